/*
 * Memory of the host that virtio-mem devices use
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "libqos/host.h"
#include "checks.h"
#include "host-memory.h"
#include <linux/magic.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <sched.h>

#define HUGE_PAGES_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB"

uint64_t huge_pages(const char *what)
{
    g_autofree char *path = g_build_filename(HUGE_PAGES_DIR, what, NULL);
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return g_ascii_strtoull(text, NULL, 10);
}

bool set_huge_pages(uint64_t nb_pages)
{
    FILE *file = fopen(HUGE_PAGES_DIR "/nr_hugepages", "w");
    bool done;

    if (!file) {
        return false;
    }
    done = fprintf(file, "%" PRIu64, nb_pages) > 0;
    /* The page allocator might give us fewer than we asked for. */
    return fclose(file) == 0 && done && huge_pages("nr_hugepages") == nb_pages;
}

void host_restore(void *opaque)
{
    Host *host = opaque;

    if (host->is_mounted) {
        /* All that is in there goes along. */
        g_assert_cmpint(umount2(host->dir, MNT_DETACH), ==, 0);
    }
    if (host->dir) {
        qhost_remove_dir(host->dir);
    }
    if (host->has_huge_pages) {
        set_huge_pages(host->old_huge_pages);
    }
    qtest_remove_abrt_handler(host);
    g_free(host->dir);
}

/* Like all that prepares the host: skips the test where it returns false. */
static bool host_add_huge_pages(Host *host, unsigned int nb_pages)
{
    if (!g_file_test(HUGE_PAGES_DIR, G_FILE_TEST_IS_DIR)) {
        g_test_skip("the kernel has no huge pages of 2 MiB");
        return false;
    }
    host->old_huge_pages = huge_pages("nr_hugepages");
    host->has_huge_pages = true;
    if (!set_huge_pages(host->old_huge_pages + nb_pages)) {
        qhost_skip("root", "the kernel does not give us %u huge pages",
                   nb_pages);
        return false;
    }
    return true;
}

/* In a mount namespace of its own, it goes away by itself. */
static bool host_mount(Host *host, const char *type, const char *options)
{
    if (unshare(CLONE_NEWNS) ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("virtio-mem-test", host->dir, type, 0, options)) {
        qhost_skip("root", "cannot mount a %s: %s", type, strerror(errno));
        return false;
    }
    host->is_mounted = true;
    return true;
}

static bool is_on_disk(const char *dir)
{
    struct statfs st;

    return statfs(dir, &st) == 0 && access(dir, W_OK) == 0 &&
           st.f_type != TMPFS_MAGIC && st.f_type != RAMFS_MAGIC;
}

static bool host_find_disk(Host *host)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *self_dir = self ? g_path_get_dirname(self) : g_strdup(".");
    const char *dirs[] = { g_get_tmp_dir(), "/var/tmp", self_dir };
    g_autofree char *reason = NULL;
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(dirs); i++) {
        if (is_on_disk(dirs[i])) {
            host->dir = g_strdup_printf("%s/virtio-mem-test.XXXXXX", dirs[i]);
            g_assert_nonnull(g_mkdtemp(host->dir));
            return true;
        }
    }
    reason = g_strdup_printf("neither %s nor %s nor %s is on a disk", dirs[0],
                             dirs[1], dirs[2]);
    g_test_skip(reason);
    return false;
}

bool host_prepare(Host *host, const DeviceConfig *config)
{
    qtest_add_abrt_handler(host_restore, host);
    if (config->nb_huge_pages &&
        !host_add_huge_pages(host, config->nb_huge_pages)) {
        return false;
    }
    if (config->fs == FS_DISK) {
        return host_find_disk(host);
    }
    if (config->fs == FS_HUGETLB) {
        host->dir = create_tmpdir();
        return host_mount(host, "hugetlbfs", "pagesize=2M");
    }
    return true;
}

uint64_t allocated_size(const char *path)
{
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return st.st_blocks * 512ull;
}


HostMemory find_host_memory(TestVM *vm, unsigned int i,
                                   uint64_t mapped_addr)
{
    const Model *model = vm_model(vm, i);
    g_autofree char *command = g_strdup_printf("gpa2hva 0x%" PRIx64,
                                               mapped_addr);
    g_autofree char *output = hmp(vm, command);
    const char *hva = strstr(output, ") is ");
    struct ucred cred;
    socklen_t len = sizeof(cred);

    g_assert_nonnull(hva);
    g_assert_cmpint(getsockopt(vm->hmp_fd, SOL_SOCKET, SO_PEERCRED, &cred,
                               &len), ==, 0);
    return (HostMemory) {
        .pid = cred.pid,
        .start = g_ascii_strtoull(hva + strlen(") is "), NULL, 16) -
                 (mapped_addr - model->addr),
        .size = model->region_size,
    };
}

char *proc_path(const HostMemory *mem, const char *name)
{
    return g_strdup_printf("/proc/%d/%s", mem->pid, name);
}

bool can_see_memory(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/map_files", 0, NULL);
    const char *name = dir ? g_dir_read_name(dir) : NULL;
    g_autofree char *path = g_build_filename("/proc/self/map_files", name,
                                             NULL);
    struct stat st;

    if (!name || stat(path, &st) != 0) {
        qhost_skip("root",
                   "not allowed to see what memory of QEMU is mapped to");
        return false;
    }
    return true;
}

/* What its file or its shared memory takes, 0 if it has none */
static uint64_t allocated_in_file(const HostMemory *mem)
{
    g_autofree char *maps_path = proc_path(mem, "maps");
    g_autofree char *maps = NULL;
    g_auto(GStrv) lines = NULL;
    unsigned int i;

    g_assert_true(g_file_get_contents(maps_path, &maps, NULL, NULL));
    lines = g_strsplit(maps, "\n", -1);
    for (i = 0; lines[i]; i++) {
        g_autofree char *range = NULL;
        g_autofree char *path = NULL;
        uint64_t start, end, inode;

        if (sscanf(lines[i], "%" SCNx64 "-%" SCNx64 " %*s %*s %*s %" SCNu64,
                   &start, &end, &inode) != 3 ||
            mem->start < start || mem->start >= end) {
            continue;
        }
        if (!inode) {
            return 0;
        }
        range = g_strdup_printf("map_files/%" PRIx64 "-%" PRIx64, start, end);
        path = proc_path(mem, range);
        return allocated_size(path);
    }
    g_assert_not_reached();
}

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_SHARED (1ull << 61)

uint64_t allocated_privately(const HostMemory *mem, uint64_t offset,
                                    uint64_t size)
{
    const uint64_t page_size = qemu_real_host_page_size();
    const uint64_t nb_pages = size / page_size;
    g_autofree uint64_t *entries = g_new(uint64_t, nb_pages);
    g_autofree char *path = proc_path(mem, "pagemap");
    const int fd = open(path, O_RDONLY);
    uint64_t i, count = 0;

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(pread(fd, entries, nb_pages * sizeof(*entries),
                          (mem->start + offset) / page_size *
                          sizeof(*entries)), ==, nb_pages * sizeof(*entries));
    close(fd);
    for (i = 0; i < nb_pages; i++) {
        count += (entries[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) &&
                 !(entries[i] & PAGEMAP_SHARED);
    }
    return count * page_size;
}

/* What the file system needs besides the contents of a file */
#define FILE_OVERHEAD (64 * KiB)

void check_allocated(const HostMemory *mem, uint64_t min, uint64_t max)
{
    const uint64_t private = allocated_privately(mem, 0, mem->size);
    const uint64_t file = allocated_in_file(mem);

    g_assert_cmphex(file, <=, max + FILE_OVERHEAD);
    g_assert_cmphex(private, <=, max);
    g_assert_cmphex(MAX(file, private), >=, min);
}

static uint64_t block_pattern(unsigned int block)
{
    return 0x0123456789abcdefull * (block + 1);
}

static uint64_t block_end(const Blocks *blocks, unsigned int block)
{
    return blocks->addr + (block + 1) * blocks->block_size - sizeof(uint64_t);
}

void write_block(const Blocks *blocks, unsigned int block)
{
    qtest_writeq(blocks->vm->qts, blocks->addr + block * blocks->block_size,
                 block_pattern(block));
    qtest_writeq(blocks->vm->qts, block_end(blocks, block),
                 ~block_pattern(block));
}

void check_block(const Blocks *blocks, unsigned int block)
{
    QTestState *qts = blocks->vm->qts;

    g_assert_cmphex(qtest_readq(qts, blocks->addr + block * blocks->block_size),
                    ==, block_pattern(block));
    g_assert_cmphex(qtest_readq(qts, block_end(blocks, block)), ==,
                    ~block_pattern(block));
}

void check_block_is_zero(const Blocks *blocks, const HostMemory *mem,
                                unsigned int block)
{
    const uint64_t offset = blocks->addr + block * blocks->block_size -
                            vm_model(blocks->vm, 0)->addr;
    g_autofree char *data = g_malloc(blocks->block_size);
    g_autofree char *path = proc_path(mem, "mem");
    const int fd = open(path, O_RDONLY);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(pread(fd, data, blocks->block_size, mem->start + offset),
                    ==, blocks->block_size);
    close(fd);
    g_assert_true(buffer_is_zero(data, blocks->block_size));
}
