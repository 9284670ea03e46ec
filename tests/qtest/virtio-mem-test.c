/*
 * QTest testcase for virtio-mem and the memslots that it maps
 *
 * The tests play the guest's driver. After every step, what QEMU shows of the
 * device - its configuration space, "info mtree -f", "info mtree", the counts
 * of "query-memslots" and, where there is a trace log, each single memslot that
 * was mapped or unmapped - has to be exactly what a model of the device says.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "libqtest.h"
#include "libqos/host.h"
#include "libqos/libqos-arm-virt.h"
#include "libqos/libqos-pc.h"
#include "libqos/virtio-mem.h"
#include "virtio-mem-model.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qmp/qlist.h"
#include "standard-headers/linux/virtio_config.h"
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sched.h>

#define BOOT_RAM_SIZE (128 * MiB)
#define MAX_DEVICES 16
#define RANDOM_STEPS 200
/* Of sixteen devices, it takes long to look at all. */
#define MANY_DEVICES_STEPS 30

/* A request can't name more blocks, see struct virtio_mem_req_plug. */
#define MAX_REQUEST_BLOCKS UINT16_MAX

#define MIGRATION_TIMEOUT_US (30 * 1000 * 1000)

/* ---- What differs from one architecture to the next ---- */

typedef struct Arch {
    const char *name;
    /* unless a test asks for another one */
    const char *machine;
    const char *cpu;
    /* for device memory of 1 TiB */
    const char *large_cpu;
    QOSState *(*vboot)(const char *fmt, va_list ap);
    /* see Model */
    uint64_t usable_extent;
    /* whether there are guests that may read unplugged memory */
    bool has_legacy_guests;
    /* whether devices can be added to the root bus of the default machine */
    bool has_hotplug;
    /*
     * at most so much of what migrates is neither boot nor device memory:
     * firmware, flash, video memory and the like, and what is sent twice
     */
    uint64_t other_ram;
} Arch;

static const Arch archs[] = {
    {
        .name = "x86_64",
        .machine = "pc",
        .cpu = "",
        /* The default of 40 is not enough for 1 TiB. */
        .large_cpu = "-cpu qemu64,phys-bits=42",
        .vboot = qtest_pc_vboot,
        .usable_extent = 256 * MiB,
        .has_legacy_guests = true,
        .has_hotplug = true,
        .other_ram = 64 * MiB,
    }, {
        .name = "aarch64",
        .machine = "virt",
        .cpu = "-cpu max",
        .large_cpu = "-cpu max",
        .vboot = qtest_arm_virt_vboot,
        .usable_extent = 1 * GiB,
        .other_ram = 192 * MiB,
    },
};

/* The one that is tested */
static const Arch *arch;

/* ---- A virtual machine with devices, each along with its model ---- */

/* Where memory-backend-file has its file */
typedef enum FileSystem {
    FS_TMPFS,
    FS_DISK,
    FS_HUGETLB,
} FileSystem;

typedef struct DeviceConfig {
    /* -object, without id and size */
    const char *backend;
    uint64_t size;
    /* 0 for the default; then it has to be what the backend leads to */
    uint64_t block_size;
    bool multiple_memslots;
    /* 0 for the default */
    uint64_t memslot_min_size;
    /* 0 for the most there can be */
    unsigned int memslot_budget;
    /* expected size of the first memslot */
    uint64_t first_memslot_size;
    /* NULL for the default, which is auto */
    const char *unplugged_inaccessible;
    /* what that has to lead to */
    bool expect_inaccessible;
    /* at start */
    uint64_t requested_size;
    const char *extra_props;
    FileSystem fs;
    /* huge pages of 2 MiB that there have to be */
    unsigned int nb_huge_pages;
    /* a directory in the file system, set by run_test(); NULL for tmpfs */
    const char *mem_dir;
} DeviceConfig;

typedef struct Device {
    QVirtioMEMPCI *pci;
    Model model;
    char *memdev;
    char *qom_path;
    /* bool per memslot: whether it was mapped when we last looked */
    GArray *was_mapped;
} Device;

typedef struct TestVM {
    QOSState *qs;
    QTestState *qts;
    bool kvm;
    const char *machine;
    char *tmpdir;
    char *hmp_path;
    int hmp_fd;
    char *log_path;
    FILE *log;
    char *stderr_path;
    /* see memory-preload.c and kvm-preload.c */
    char *memory_fail_path;
    char *kvm_fail_path;
    /* false if trace events do not go to the log, for whatever reason */
    bool traced;
    /* true if memslots are mapped and unmapped again, as something refuses */
    bool maps_in_vain;
    /* number of KVM address spaces that RAM is in */
    unsigned int nb_kvm_as;
    unsigned int nb_devices;
    Device devices[MAX_DEVICES];
} TestVM;

typedef struct TestCase {
    bool kvm;
    /* as for -machine; NULL for the default */
    const char *machine;
    void (*fn)(const struct TestCase *test);
    DeviceConfig config;
} TestCase;

static Model *vm_model(TestVM *vm, unsigned int i)
{
    g_assert_cmpuint(i, <, vm->nb_devices);
    return &vm->devices[i].model;
}

static QVirtioMEM *vm_mem(TestVM *vm, unsigned int i)
{
    g_assert_cmpuint(i, <, vm->nb_devices);
    return &vm->devices[i].pci->mem;
}

/* ---- What QEMU shows: memory regions ---- */

#define HMP_PROMPT "(qemu) "

static GString *hmp_read_to_prompt(TestVM *vm)
{
    GString *output = g_string_new(NULL);

    while (!g_str_has_suffix(output->str, HMP_PROMPT)) {
        char buf[4096];
        ssize_t len;

        TFR(len = read(vm->hmp_fd, buf, sizeof(buf)));
        g_assert_cmpint(len, >, 0);
        g_string_append_len(output, buf, len);
    }
    return output;
}

/* QEMU created the socket before it became ready. */
static void hmp_connect(TestVM *vm)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    g_assert_cmpuint(g_strlcpy(addr.sun_path, vm->hmp_path,
                               sizeof(addr.sun_path)), <,
                     sizeof(addr.sun_path));
    vm->hmp_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    g_assert_cmpint(vm->hmp_fd, >=, 0);
    g_assert_cmpint(connect(vm->hmp_fd, (struct sockaddr *)&addr,
                            sizeof(addr)), ==, 0);
    g_string_free(hmp_read_to_prompt(vm), true);
}

/*
 * Much of the output of the commands that we use is of no interest, so
 * qtest_hmp(), which gets all of it byte by byte, would be most of the time
 * that this test takes. Our monitor is an interactive one, for a human.
 */
static char *hmp(TestVM *vm, const char *command)
{
    g_autoptr(GString) output = NULL;
    g_auto(GStrv) parts = NULL;
    const char *end_of_echo;

    g_assert_cmpint(dprintf(vm->hmp_fd, "%s\n", command), ==,
                    strlen(command) + 1);
    output = hmp_read_to_prompt(vm);
    g_string_truncate(output, output->len - strlen(HMP_PROMPT));

    end_of_echo = strchr(output->str, '\n');
    g_assert_nonnull(end_of_echo);
    parts = g_strsplit(end_of_echo + 1, "\r", -1);
    return g_strjoinv("", parts);
}

/* Returns the lines of the paragraph that contains the given line. */
static char **find_paragraph(const char *text, const char *line)
{
    g_auto(GStrv) paragraphs = g_strsplit(text, "\n\n", -1);
    int i;

    for (i = 0; paragraphs[i]; i++) {
        char **lines = g_strsplit(paragraphs[i], "\n", -1);

        if (g_strv_contains((const char * const *)lines, line)) {
            return lines;
        }
        g_strfreev(lines);
    }
    g_assert_not_reached();
}

static void append_range(GString *out, uint64_t addr, uint64_t size)
{
    g_string_append_printf(out, "%016" PRIx64 "-%016" PRIx64, addr,
                           addr + size - 1);
}

/* The ranges of the flat view that show memory of the device. */
static char *shown_flat_ranges(const Device *dev, char **lines)
{
    g_autofree char *pattern =
        g_strdup_printf("^  ([0-9a-f]+-[0-9a-f]+) \\(prio 0, ram\\): %s"
                        "(?: @([0-9a-f]+))?(?: KVM)*$", dev->memdev);
    g_autoptr(GRegex) regex = g_regex_new(pattern, 0, 0, NULL);
    GString *out = g_string_new(NULL);
    int i;

    for (i = 0; lines[i]; i++) {
        g_autoptr(GMatchInfo) match = NULL;

        if (g_regex_match(regex, lines[i], 0, &match)) {
            g_autofree char *range = g_match_info_fetch(match, 1);
            g_autofree char *offset = g_match_info_fetch(match, 2);

            g_string_append_printf(out, "%s @%016" PRIx64 "\n", range,
                                   g_ascii_strtoull(offset, NULL, 16));
        }
    }
    return g_string_free(out, false);
}

static char *expected_flat_ranges(const Device *dev)
{
    const Model *model = &dev->model;
    GString *out = g_string_new(NULL);
    uint64_t i;

    for (i = 0; i < model_nb_memslots(model); i++) {
        const uint64_t offset = model_memslot_offset(model, i);

        if (model_memslot_mapped(model, i)) {
            append_range(out, model->addr + offset,
                         model_memslot_size(model, i));
            g_string_append_printf(out, " @%016" PRIx64 "\n", offset);
        }
    }
    return g_string_free(out, false);
}

/* The memory regions, as they are nested, that the device consists of. */
static char *shown_regions(const Device *dev, char **lines)
{
    g_autofree char *pattern =
        g_strdup_printf("^ +(([0-9a-f]+)-[0-9a-f]+) \\(prio 0, [^)]*\\): "
                        "(virtio-mem|%s|alias memslot-[0-9]+ @%s .*)$",
                        dev->memdev, dev->memdev);
    g_autoptr(GRegex) regex = g_regex_new(pattern, 0, 0, NULL);
    GString *out = g_string_new(NULL);
    int i;

    for (i = 0; lines[i]; i++) {
        g_autoptr(GMatchInfo) match = NULL;

        if (g_regex_match(regex, lines[i], 0, &match)) {
            g_autofree char *range = g_match_info_fetch(match, 1);
            g_autofree char *start = g_match_info_fetch(match, 2);
            g_autofree char *name = g_match_info_fetch(match, 3);
            const uint64_t addr = g_ascii_strtoull(start, NULL, 16);

            /* Other devices have a container of the same name. */
            if (addr >= dev->model.addr &&
                addr - dev->model.addr < dev->model.region_size) {
                g_string_append_printf(out, "%s %s\n", range, name);
            }
        }
    }
    return g_string_free(out, false);
}

static char *expected_regions(const Device *dev)
{
    const Model *model = &dev->model;
    GString *out = g_string_new(NULL);
    uint64_t i;

    append_range(out, model->addr, model->region_size);
    g_string_append_printf(out, " %s\n",
                           model->plan ? "virtio-mem" : dev->memdev);

    for (i = 0; model->plan && i < model_nb_memslots(model); i++) {
        const uint64_t offset = model_memslot_offset(model, i);
        const uint64_t size = model_memslot_size(model, i);

        if (model_memslot_mapped(model, i)) {
            append_range(out, model->addr + offset, size);
            g_string_append_printf(out, " alias memslot-%" PRIu64 " @%s ", i,
                                   dev->memdev);
            append_range(out, offset, size);
            g_string_append_c(out, '\n');
        }
    }
    return g_string_free(out, false);
}

static void check_regions(TestVM *vm)
{
    g_autofree char *flat_text = hmp(vm, "info mtree -f");
    g_auto(GStrv) flat_lines = find_paragraph(flat_text,
                                              " AS \"memory\", root: system");
    g_autofree char *text = hmp(vm, "info mtree");
    g_auto(GStrv) lines = find_paragraph(text, "address-space: memory");
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        const Device *dev = &vm->devices[i];
        g_autofree char *flat_shown = shown_flat_ranges(dev, flat_lines);
        g_autofree char *flat_expected = expected_flat_ranges(dev);
        g_autofree char *regions_shown = shown_regions(dev, lines);
        g_autofree char *regions_expected = expected_regions(dev);

        g_assert_cmpstr(flat_shown, ==, flat_expected);
        g_assert_cmpstr(regions_shown, ==, regions_expected);
    }
}

/* ---- What QEMU shows: single changes, in the trace log ---- */

/*
 * Only a memslot whose range is the same before and after a step tells nothing
 * about whether it was removed and added again in between. The traces do.
 */
typedef struct Changes {
    /* one line per change, in the order of the memslots */
    GPtrArray *lines;
    unsigned int nb_flatviews;
} Changes;

static void changes_clear(Changes *changes)
{
    g_ptr_array_unref(changes->lines);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Changes, changes_clear)

static gint compare_lines(gconstpointer a, gconstpointer b)
{
    return g_strcmp0(*(char * const *)a, *(char * const *)b);
}

static char *changes_to_string(Changes *changes)
{
    g_ptr_array_sort(changes->lines, compare_lines);
    g_ptr_array_add(changes->lines, NULL);
    return g_strjoinv("\n", (char **)changes->lines->pdata);
}

static void G_GNUC_PRINTF(2, 3)
changes_add(Changes *changes, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_ptr_array_add(changes->lines, g_strdup_vprintf(fmt, ap));
    va_end(ap);
}

static bool vm_contains_addr(TestVM *vm, uint64_t addr)
{
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        const Model *model = &vm->devices[i].model;

        if (addr >= model->addr && addr - model->addr < model->region_size) {
            return true;
        }
    }
    return false;
}

/* Reads what was logged since the last call. */
static void read_changes(TestVM *vm, Changes *changes)
{
    g_autofree char *line = NULL;
    size_t line_size = 0;

    changes->lines = g_ptr_array_new_with_free_func(g_free);
    changes->nb_flatviews = 0;

    clearerr(vm->log);
    while (getline(&line, &line_size, vm->log) > 0) {
        char name[64];
        unsigned int memslot, kvm_slot, flags;
        uint64_t offset, addr, size, hva;
        int ret;

        g_assert_true(g_str_has_suffix(line, "\n"));
        if (sscanf(line, "memslot_set_map name=%63s memslot=%u"
                   " offset=0x%" SCNx64 " size=0x%" SCNx64,
                   name, &memslot, &offset, &size) == 4) {
            changes_add(changes, "map %s %u 0x%" PRIx64 " 0x%" PRIx64, name,
                        memslot, offset, size);
        } else if (sscanf(line, "memslot_set_unmap name=%63s memslot=%u"
                          " offset=0x%" SCNx64 " size=0x%" SCNx64,
                          name, &memslot, &offset, &size) == 4) {
            changes_add(changes, "unmap %s %u 0x%" PRIx64 " 0x%" PRIx64, name,
                        memslot, offset, size);
        } else if (sscanf(line, "kvm_set_user_memory Slot#%u flags=0x%x"
                          " gpa=0x%" SCNx64 " size=0x%" SCNx64
                          " ua=0x%" SCNx64 " ret=%d", &kvm_slot, &flags, &addr,
                          &size, &hva, &ret) == 6) {
            if (vm_contains_addr(vm, addr)) {
                g_assert_true(ret == 0 || vm->devices[0].model.no_memslots);
                changes_add(changes, "kvm as=%u gpa=0x%" PRIx64
                            " size=0x%" PRIx64, kvm_slot >> 16, addr, size);
            } else {
                vm->nb_kvm_as = MAX(vm->nb_kvm_as, (kvm_slot >> 16) + 1);
            }
        } else if (g_str_has_prefix(line, "flatview_new ")) {
            changes->nb_flatviews++;
        }
    }
}

static void expect_changes_of(TestVM *vm, Device *dev, Changes *changes)
{
    const Model *model = &dev->model;
    unsigned int i, as;

    for (i = 0; i < model_nb_memslots(model); i++) {
        const bool mapped = model_memslot_mapped(model, i);
        const uint64_t offset = model_memslot_offset(model, i);
        const uint64_t size = model_memslot_size(model, i);
        bool *was_mapped = &g_array_index(dev->was_mapped, bool, i);

        if (*was_mapped == mapped) {
            continue;
        }
        *was_mapped = mapped;

        changes_add(changes, "%s %s %u 0x%" PRIx64 " 0x%" PRIx64,
                    mapped ? "map" : "unmap", dev->memdev, i, offset, size);
        for (as = 0; as < vm->nb_kvm_as; as++) {
            changes_add(changes, "kvm as=%u gpa=0x%" PRIx64 " size=0x%" PRIx64,
                        as, model->addr + offset, mapped ? size : 0);
        }
    }
}

/* Returns how many flat views were made since the last call. */
static unsigned int check_changes(TestVM *vm)
{
    g_auto(Changes) shown = { };
    g_auto(Changes) expected = {
        .lines = g_ptr_array_new_with_free_func(g_free),
    };
    g_autofree char *shown_str = NULL, *expected_str = NULL;
    unsigned int i;

    read_changes(vm, &shown);
    for (i = 0; i < vm->nb_devices; i++) {
        expect_changes_of(vm, &vm->devices[i], &expected);
    }
    if (vm->traced && !vm->maps_in_vain) {
        shown_str = changes_to_string(&shown);
        expected_str = changes_to_string(&expected);
        g_assert_cmpstr(shown_str, ==, expected_str);
    }
    return shown.nb_flatviews;
}

/* ---- The check after each step ---- */

static uint64_t qom_get_size(TestVM *vm, const char *path, const char *property)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'qom-get', 'arguments':"
                           " { 'path': %s, 'property': %s } }", path, property);
    uint64_t size;

    g_assert_true(qdict_haskey(rsp, "return"));
    size = qdict_get_int(rsp, "return");
    qobject_unref(rsp);
    return size;
}

static bool qom_get_bool(TestVM *vm, const char *path, const char *property)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'qom-get', 'arguments':"
                           " { 'path': %s, 'property': %s } }", path, property);
    bool value;

    g_assert_true(qdict_haskey(rsp, "return"));
    value = qdict_get_bool(rsp, "return");
    qobject_unref(rsp);
    return value;
}

static void check_config(TestVM *vm, Device *dev)
{
    const Model *model = &dev->model;
    struct virtio_mem_config config;

    qvirtio_mem_read_config(&dev->pci->mem, &config);
    model_check_config(model, &config);

    g_assert_cmphex(qom_get_size(vm, dev->qom_path, "size"), ==,
                    model_plugged_size(model));
}

/* All memslots are promised, those that are mapped are used. */
static void check_account(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-memslots' }");
    const QDict *shown = qdict_get_qdict(rsp, "return");
    unsigned int i, required = 0, used = 0;

    for (i = 0; i < vm->nb_devices; i++) {
        required += model_nb_memslots(&vm->devices[i].model);
        used += model_nb_mapped(&vm->devices[i].model);
    }
    g_assert_cmpint(qdict_get_int(shown, "required"), ==, required);
    g_assert_cmpint(qdict_get_int(shown, "used"), ==, used);
    g_assert_cmpint(qdict_get_int(shown, "reserved"), ==, required - used);
    qobject_unref(rsp);
}

/* Returns how many flat views were made since the last call. */
static unsigned int vm_check(TestVM *vm)
{
    const unsigned int nb_flatviews = check_changes(vm);
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        check_config(vm, &vm->devices[i]);
    }
    check_regions(vm);
    check_account(vm);
    return nb_flatviews;
}

/* ---- Steps: do it, have the model do it, compare ---- */

static uint16_t plug_at(TestVM *vm, unsigned int i, uint64_t addr,
                        uint64_t nb_blocks)
{
    const uint16_t resp = qvirtio_mem_plug(vm_mem(vm, i), addr, nb_blocks);

    g_assert_cmpint(resp, ==, model_plug(vm_model(vm, i), addr, nb_blocks));
    vm_check(vm);
    return resp;
}

static uint16_t unplug_at(TestVM *vm, unsigned int i, uint64_t addr,
                          uint64_t nb_blocks)
{
    const uint16_t resp = qvirtio_mem_unplug(vm_mem(vm, i), addr, nb_blocks);

    g_assert_cmpint(resp, ==, model_unplug(vm_model(vm, i), addr, nb_blocks));
    vm_check(vm);
    return resp;
}

static uint16_t state_at(TestVM *vm, unsigned int i, uint64_t addr,
                         uint64_t nb_blocks, uint16_t *state)
{
    uint16_t expected_state = UINT16_MAX;
    const uint16_t resp = qvirtio_mem_state(vm_mem(vm, i), addr, nb_blocks,
                                            state);

    g_assert_cmpint(resp, ==, model_state(vm_model(vm, i), addr, nb_blocks,
                                          &expected_state));
    if (resp == VIRTIO_MEM_RESP_ACK) {
        g_assert_cmpint(*state, ==, expected_state);
    }
    vm_check(vm);
    return resp;
}

static uint16_t unplug_all(TestVM *vm, unsigned int i)
{
    const uint16_t resp = qvirtio_mem_unplug_all(vm_mem(vm, i));

    g_assert_cmpint(resp, ==, model_unplug_all(vm_model(vm, i)));
    vm_check(vm);
    return resp;
}

static QDict *qom_set_requested_size(TestVM *vm, unsigned int i, uint64_t size)
{
    g_assert_cmpuint(i, <, vm->nb_devices);
    return qtest_qmp(vm->qts, "{ 'execute': 'qom-set', 'arguments': {"
                     " 'path': %s, 'property': 'requested-size',"
                     " 'value': %" PRIu64 " } }",
                     vm->devices[i].qom_path, size);
}

static void request_size(TestVM *vm, unsigned int i, uint64_t size)
{
    QDict *rsp = qom_set_requested_size(vm, i, size);

    g_assert_cmpint(qdict_haskey(rsp, "return"), ==,
                    model_request_size(vm_model(vm, i), size));
    qobject_unref(rsp);
    vm_check(vm);
}

static void request_bad_size(TestVM *vm, unsigned int i, uint64_t size)
{
    QDict *rsp = qom_set_requested_size(vm, i, size);

    g_assert_true(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);
    vm_check(vm);
}

/* All devices have to be started again, as the guest's driver would. */
static void system_reset(TestVM *vm)
{
    unsigned int i;

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(vm->qts, "RESET");

    for (i = 0; i < vm->nb_devices; i++) {
        model_unplug_all(vm_model(vm, i));
        qvirtio_mem_pci_start(vm->devices[i].pci);
    }
    vm_check(vm);
}

/* Plugs or unplugs any number of blocks, with no check in between. */
static void change_many(TestVM *vm, unsigned int i, uint64_t offset,
                        uint64_t size, bool plug)
{
    Model *model = vm_model(vm, i);
    uint64_t addr = model->addr + offset;
    uint64_t nb_blocks = size / model->block_size;

    while (nb_blocks) {
        const uint16_t now = MIN(nb_blocks, MAX_REQUEST_BLOCKS);

        if (plug) {
            g_assert_cmpint(qvirtio_mem_plug(vm_mem(vm, i), addr, now), ==,
                            VIRTIO_MEM_RESP_ACK);
        } else {
            g_assert_cmpint(qvirtio_mem_unplug(vm_mem(vm, i), addr, now), ==,
                            VIRTIO_MEM_RESP_ACK);
        }
        model_set_plugged(model, addr, now, plug);
        addr += now * model->block_size;
        nb_blocks -= now;
    }
    vm_check(vm);
}

#define assert_ack(expr)   g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_ACK)
#define assert_nack(expr)  g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_NACK)
#define assert_busy(expr)  g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_BUSY)
#define assert_error(expr) g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_ERROR)

/* ---- Starting and stopping virtual machines ---- */

static char *create_tmpdir(void)
{
    /* Files on tmpfs are memory; elsewhere, they merely behave the same. */
    const char *parent = g_file_test("/dev/shm", G_FILE_TEST_IS_DIR) ?
                         "/dev/shm" : g_get_tmp_dir();
    char *path = g_strdup_printf("%s/virtio-mem-test.XXXXXX", parent);

    g_assert_nonnull(g_mkdtemp(path));
    return path;
}

static char *backend_args(const char *tmpdir, unsigned int i,
                          const DeviceConfig *config)
{
    g_autofree char *mem_path =
        g_str_has_prefix(config->backend, "memory-backend-file") &&
        !strstr(config->backend, "mem-path=") ?
        g_strdup_printf(",mem-path=%s/mem%u", config->mem_dir ?: tmpdir, i) :
        g_strdup("");

    return g_strdup_printf("%s%s,id=mem%u,size=%" PRIu64, config->backend,
                           mem_path, i, config->size);
}

static char *device_args(unsigned int i, const DeviceConfig *config)
{
    GString *args = g_string_new(NULL);

    g_string_printf(args, "virtio-mem-pci,id=vm%u,memdev=mem%u,addr=%02x.0",
                    i, i, 4 + i);
    if (config->multiple_memslots) {
        g_string_append(args, ",multiple-memslots=on");
    }
    if (config->memslot_min_size) {
        g_string_append_printf(args, ",memslot-min-size=%" PRIu64,
                               config->memslot_min_size);
    }
    /* Where there never was another way, there is nothing to choose. */
    if (config->unplugged_inaccessible && arch->has_legacy_guests) {
        g_string_append_printf(args, ",unplugged-inaccessible=%s",
                               config->unplugged_inaccessible);
    }
    if (config->block_size) {
        g_string_append_printf(args, ",block-size=%" PRIu64,
                               config->block_size);
    }
    if (config->requested_size) {
        g_string_append_printf(args, ",requested-size=%" PRIu64,
                               config->requested_size);
    }
    if (config->extra_props) {
        g_string_append_printf(args, ",%s", config->extra_props);
    }
    return g_string_free(args, false);
}

static void device_init(TestVM *vm, unsigned int i, const DeviceConfig *config)
{
    Device *dev = &vm->devices[i];
    QPCIAddress addr = { .devfn = QPCI_DEVFN(4 + i, 0) };
    struct virtio_mem_config shown;
    uint64_t slot;

    dev->memdev = g_strdup_printf("mem%u", i);
    dev->qom_path = g_strdup_printf("/machine/peripheral/vm%u", i);
    dev->pci = qvirtio_mem_pci_new(vm->qs->pcibus, &addr, &vm->qs->alloc);
    qvirtio_mem_pci_start(dev->pci);

    /* The machine chooses the address and the backend the block size. */
    qvirtio_mem_read_config(&dev->pci->mem, &shown);
    dev->model = (Model) {
        .addr = shown.addr,
        .region_size = config->size,
        .block_size = config->block_size ?: shown.block_size,
        .usable_extent = arch->usable_extent,
        .unplugged_inaccessible = config->expect_inaccessible,
        .plugged = g_new0(bool, config->size / shown.block_size),
    };
    if (config->multiple_memslots) {
        model_divide(&dev->model, config->memslot_budget ?: 256,
                     config->memslot_min_size ?: 1 * GiB);
        g_assert_cmphex(model_memslot_size(&dev->model, 0), ==,
                        MIN(config->first_memslot_size, config->size));
    }
    model_request_size(&dev->model, config->requested_size);
    vm->nb_devices = MAX(vm->nb_devices, i + 1);

    dev->was_mapped = g_array_new(false, true, sizeof(bool));
    g_array_set_size(dev->was_mapped, model_nb_memslots(&dev->model));
    for (slot = 0; slot < model_nb_memslots(&dev->model); slot++) {
        g_array_index(dev->was_mapped, bool, slot) =
            model_memslot_mapped(&dev->model, slot);
    }
}

static bool vm_kvm_enabled(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-kvm' }");
    bool enabled = qdict_get_bool(qdict_get_qdict(rsp, "return"), "enabled");

    qobject_unref(rsp);
    return enabled;
}

static QOSState *G_GNUC_PRINTF(1, 2) boot(const char *fmt, ...)
{
    QOSState *qs;
    va_list ap;

    va_start(ap, fmt);
    qs = arch->vboot(fmt, ap);
    va_end(ap);
    return qs;
}

/* Show what QEMU had to say, it might have to do with the failure. */
static void clean_up_on_abort(void *opaque)
{
    TestVM *vm = opaque;
    g_autofree char *text = NULL;

    if (g_file_get_contents(vm->stderr_path, &text, NULL, NULL)) {
        fputs(text, stderr);
    }
    qhost_remove_dir(vm->tmpdir);
}

static TestVM *vm_new(const TestCase *test)
{
    TestVM *vm = g_new0(TestVM, 1);

    vm->kvm = test->kvm;
    vm->machine = test->machine ?: arch->machine;
    vm->tmpdir = create_tmpdir();
    vm->hmp_path = g_build_filename(vm->tmpdir, "hmp", NULL);
    vm->log_path = g_build_filename(vm->tmpdir, "log", NULL);
    vm->stderr_path = g_build_filename(vm->tmpdir, "stderr", NULL);
    vm->memory_fail_path = g_build_filename(vm->tmpdir, "memory-fail", NULL);
    vm->kvm_fail_path = g_build_filename(vm->tmpdir, "kvm-fail", NULL);
    qtest_add_abrt_handler(clean_up_on_abort, vm);
    return vm;
}

/* Forget about the changes so far, but for the address spaces of KVM. */
static void vm_skip_changes(TestVM *vm)
{
    g_auto(Changes) changes = { };

    read_changes(vm, &changes);
    /* Making a flat view can't be avoided: if none is there, nothing is. */
    vm->traced = vm->traced || changes.nb_flatviews;
    g_assert_true(!vm->kvm || !vm->traced || vm->nb_kvm_as);
}

/* ---- Calls that fail ---- */

/* NULL if they were not built */
static char *memory_preload_path;
static char *kvm_preload_path;

/* Returns what LD_PRELOAD was, for qhost_preload_end(). */
static char *vm_preload_begin(TestVM *vm)
{
    g_autofree char *both = g_strdup_printf("%s:%s", memory_preload_path,
                                            kvm_preload_path);

    g_setenv("MEMORY_PRELOAD_FAIL_FILE", vm->memory_fail_path, true);
    g_setenv("KVM_PRELOAD_FAIL_FILE", vm->kvm_fail_path, true);
    return qhost_preload_begin(both);
}

/* Have calls fail from now on; the rules are explained in memory-preload.c. */
static void G_GNUC_PRINTF(2, 3) fail_calls(TestVM *vm, const char *fmt, ...)
{
    g_autofree char *rules = NULL;
    va_list ap;

    va_start(ap, fmt);
    rules = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    /* This replaces the file. */
    g_assert_true(g_file_set_contents(vm->memory_fail_path, rules, -1, NULL));
}

static void stop_failing(TestVM *vm)
{
    g_assert_cmpint(unlink(vm->memory_fail_path), ==, 0);
}

/*
 * Boot with an address space for memory devices that has the given size.
 *
 * The VM stays stopped: with KVM, the guest's firmware must not run, as it
 * would get in the way of the driver in this test.
 */
static void vm_boot(TestVM *vm, uint64_t device_memory_size, const char *args)
{
    char *others = NULL;

    if (memory_preload_path && kvm_preload_path) {
        others = vm_preload_begin(vm);
    }
    vm->qs = boot("-S -nodefaults -machine %s %s %s"
                  " -chardev socket,id=hmp,path=%s,server=on,wait=off"
                  " -mon chardev=hmp,mode=readline"
                  " -D %s -trace flatview_new"
                  " -trace memslot_set_map -trace memslot_set_unmap %s"
                  " -m %" PRIu64 "B,maxmem=%" PRIu64 "B %s 2>>%s",
                  vm->machine, vm->kvm ? "-accel kvm" : "",
                  device_memory_size >= 1 * TiB ? arch->large_cpu : arch->cpu,
                  vm->hmp_path, vm->log_path,
                  vm->kvm ? "-trace kvm_set_user_memory" : "",
                  (uint64_t)BOOT_RAM_SIZE,
                  BOOT_RAM_SIZE + device_memory_size, args, vm->stderr_path);
    if (memory_preload_path && kvm_preload_path) {
        qhost_preload_end(others);
    }
    vm->qts = vm->qs->qts;
    g_assert_cmpint(vm_kvm_enabled(vm), ==, vm->kvm);

    hmp_connect(vm);
    vm->log = fopen(vm->log_path, "r");
    g_assert_nonnull(vm->log);
    vm_skip_changes(vm);
    if (!vm->traced) {
        g_test_message("QEMU was built without the log backend for trace"
                       " events: not looking at single changes");
    }
}

/* With extra arguments for QEMU, which may be empty. */
static TestVM *vm_start_with(const TestCase *test, const DeviceConfig *configs,
                             unsigned int nb_devices, const char *extra_args)
{
    g_autoptr(GString) args = g_string_new(extra_args);
    TestVM *vm = vm_new(test);
    uint64_t size = 0;
    unsigned int i;

    for (i = 0; i < nb_devices; i++) {
        g_autofree char *backend = backend_args(vm->tmpdir, i, &configs[i]);
        g_autofree char *device = device_args(i, &configs[i]);

        g_string_append_printf(args, " -object %s -device %s", backend, device);
        size += configs[i].size;
    }

    vm_boot(vm, size, args->str);
    for (i = 0; i < nb_devices; i++) {
        device_init(vm, i, &configs[i]);
    }
    vm_check(vm);
    return vm;
}

static TestVM *vm_start(const TestCase *test)
{
    return vm_start_with(test, &test->config, 1, "");
}

static void vm_stop(TestVM *vm)
{
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        Device *dev = &vm->devices[i];

        qvirtio_mem_pci_free(dev->pci);
        g_free(dev->memdev);
        g_free(dev->qom_path);
        model_cleanup(&dev->model);
        g_array_unref(dev->was_mapped);
    }
    qtest_shutdown(vm->qs);

    close(vm->hmp_fd);
    fclose(vm->log);
    qtest_remove_abrt_handler(vm);
    qhost_remove_dir(vm->tmpdir);
    g_free(vm->stderr_path);
    g_free(vm->memory_fail_path);
    g_free(vm->kvm_fail_path);
    g_free(vm->hmp_path);
    g_free(vm->log_path);
    g_free(vm->tmpdir);
    g_free(vm);
}

/* ---- Tests ---- */

static void test_features(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    QVirtioMEM *mem = vm_mem(vm, 0);
    const uint64_t inaccessible = 1ull << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE;
    const uint64_t features = mem->vdev->features;

    g_assert_cmpint(test->config.expect_inaccessible, ==,
                    qvirtio_mem_has_feature(mem,
                                        VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE));

    /* A driver that would touch unplugged memory must not start. */
    g_assert_true(qvirtio_mem_accepts_features(mem, features));
    g_assert_cmpint(qvirtio_mem_accepts_features(mem, features & ~inaccessible),
                    ==, !test->config.expect_inaccessible);

    qvirtio_mem_start(mem);
    vm_check(vm);
    vm_stop(vm);
}

/* From nothing to all and back, memslot by memslot and across memslots. */
static void test_lifecycle(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t size = model->region_size, block = model->block_size;
    const uint64_t memslot_size = model_memslot_size(model, 0);
    const uint64_t nb_memslots = model_nb_memslots(model);
    const uint64_t last_offset = model_memslot_offset(model, nb_memslots - 1);
    const uint64_t last_size = model_memslot_size(model, nb_memslots - 1);
    const uint64_t half = ROUND_DOWN(memslot_size / 2, block);
    const bool on_demand = model->plan && model->unplugged_inaccessible;
    uint16_t state;

    g_assert_cmpuint(model_nb_mapped(model), ==, model->plan ? 0 : 1);
    request_size(vm, 0, size);

    /* The first and the last block of a memslot make it come and go alone. */
    assert_ack(plug_at(vm, 0, model->addr, 1));
    assert_ack(state_at(vm, 0, model->addr, 1, &state));
    g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_PLUGGED);
    if (size > block) {
        assert_ack(state_at(vm, 0, model->addr + block, 1, &state));
        g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_UNPLUGGED);
        assert_ack(state_at(vm, 0, model->addr, 2, &state));
        g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_MIXED);
    }
    if (memslot_size > block) {
        assert_ack(plug_at(vm, 0, model->addr + memslot_size - block, 1));
        assert_ack(unplug_at(vm, 0, model->addr, 1));
        assert_ack(unplug_at(vm, 0, model->addr + memslot_size - block, 1));
    } else {
        assert_ack(unplug_at(vm, 0, model->addr, 1));
    }
    if (on_demand) {
        g_assert_cmpuint(model_nb_mapped(model), ==, 0);
    }

    /* Down to the very last block, in a memslot that might be shorter. */
    assert_ack(plug_at(vm, 0, model->addr + size - block, 1));
    if (last_size > block) {
        assert_ack(plug_at(vm, 0, model->addr + last_offset, 1));
        assert_ack(unplug_at(vm, 0, model->addr + size - block, 1));
        assert_ack(unplug_at(vm, 0, model->addr + last_offset, 1));
    } else {
        assert_ack(unplug_at(vm, 0, model->addr + size - block, 1));
    }

    if (nb_memslots > 1) {
        /* One request for two memslots, one of which keeps a block. */
        const uint64_t addr = model->addr + memslot_size - block;

        assert_ack(plug_at(vm, 0, addr, 2));
        if (last_size > block) {
            assert_ack(plug_at(vm, 0, addr + 2 * block, 1));
        }
        assert_ack(unplug_at(vm, 0, addr, 2));
        if (last_size > block) {
            assert_ack(unplug_at(vm, 0, addr + 2 * block, 1));
        }
    }

    change_many(vm, 0, 0, size, true);
    g_assert_cmpuint(model_nb_mapped(model), ==, nb_memslots);
    change_many(vm, 0, half, size - half, false);
    change_many(vm, 0, half, size - half, true);
    change_many(vm, 0, 0, size, false);
    if (on_demand) {
        g_assert_cmpuint(model_nb_mapped(model), ==, 0);
    }

    change_many(vm, 0, 0, size, true);
    request_size(vm, 0, 0);
    g_assert_cmpuint(model_nb_mapped(model), ==, nb_memslots);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmpuint(model_nb_mapped(model), ==, model->plan ? 0 : 1);
    /* Nothing is left to be done. */
    assert_ack(unplug_all(vm, 0));

    vm_stop(vm);
}

static void test_bad_ranges(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    const uint64_t requested = 1 * GiB + 8 * block;
    uint64_t usable, usable_end;
    uint16_t state;
    unsigned int i;

    /* Without a requested size, there is no usable region. */
    assert_error(plug_at(vm, 0, addr, 1));
    assert_error(unplug_at(vm, 0, addr, 1));
    assert_error(state_at(vm, 0, addr, 1, &state));

    request_size(vm, 0, requested);
    usable = model->usable_size;
    usable_end = addr + usable;
    g_assert_cmphex(usable, <, model->region_size);

    /* Exceeding what was requested */
    assert_nack(plug_at(vm, 0, addr, requested / block + 1));
    assert_ack(plug_at(vm, 0, addr + block, requested / block - 1));
    assert_nack(plug_at(vm, 0, usable_end - 2 * block, 2));
    assert_ack(plug_at(vm, 0, usable_end - block, 1));
    assert_nack(plug_at(vm, 0, addr, 1));
    assert_ack(unplug_at(vm, 0, usable_end - block, 1));
    assert_ack(unplug_at(vm, 0, addr + block, 4));
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 4));

    /* Overlapping with blocks that already are as they shall become */
    assert_error(plug_at(vm, 0, addr + 5 * block, 1));
    assert_error(plug_at(vm, 0, addr + 4 * block, 2));
    assert_error(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    assert_error(plug_at(vm, 0, addr + 1 * GiB + 3 * block, 2));
    assert_error(unplug_at(vm, 0, addr, 1));
    assert_error(unplug_at(vm, 0, addr + 4 * block, 2));
    assert_error(unplug_at(vm, 0, addr + 1 * GiB - block, 2));
    assert_error(unplug_at(vm, 0, usable_end - block, 1));

    const struct {
        uint64_t addr;
        uint16_t nb_blocks;
    } invalid[] = {
        /* no block */
        { addr, 0 },
        { addr + 8 * block, 0 },
        /* misaligned */
        { addr + 1, 1 },
        { addr + block / 2, 1 },
        { addr - 1, 1 },
        /* outside of the region */
        { 0, 1 },
        { addr - block, 1 },
        { addr - block, 2 },
        { addr + model->region_size, 1 },
        { addr + model->region_size - block, 2 },
        { addr, MAX_REQUEST_BLOCKS },
        /* outside of the usable region */
        { usable_end, 1 },
        { usable_end - block, 2 },
        { addr, usable / block + 1 },
        { addr + model->region_size - block, 1 },
        /* not below the end of the address space */
        { -block, 1 },
        { -block, 2 },
        { -block * 16, MAX_REQUEST_BLOCKS },
        { UINT64_MAX, 1 },
    };

    for (i = 0; i < ARRAY_SIZE(invalid); i++) {
        assert_error(plug_at(vm, 0, invalid[i].addr, invalid[i].nb_blocks));
        assert_error(unplug_at(vm, 0, invalid[i].addr, invalid[i].nb_blocks));
        assert_error(state_at(vm, 0, invalid[i].addr, invalid[i].nb_blocks,
                              &state));
    }
    vm_stop(vm);
}

static void test_malformed_requests(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    QVirtioMEM *mem = vm_mem(vm, 0);
    Model *model = vm_model(vm, 0);
    struct virtio_mem_req plug = {
        .type = cpu_to_le16(VIRTIO_MEM_REQ_PLUG),
        .u.plug.addr = cpu_to_le64(model->addr + 2 * GiB),
        .u.plug.nb_blocks = cpu_to_le16(1),
    };
    struct virtio_mem_req unknown = plug, unknown_max = plug;
    /* The spec allows for more than is needed, on both sides. */
    uint8_t long_req[sizeof(plug) + 64] = { }, long_resp[64];
    struct virtio_mem_resp resp;
    const struct {
        const void *req;
        size_t req_size;
        size_t resp_size;
    } malformed[] = {
        { &plug, sizeof(plug) - 1, sizeof(resp) },
        { &plug, 1, sizeof(resp) },
        { &plug, sizeof(plug), sizeof(resp) - 1 },
        { &plug, sizeof(plug), 1 },
        { &unknown, sizeof(unknown), sizeof(resp) },
        { &unknown_max, sizeof(unknown_max), sizeof(resp) },
    };
    unsigned int i;

    unknown.type = cpu_to_le16(VIRTIO_MEM_REQ_STATE + 1);
    unknown_max.type = cpu_to_le16(UINT16_MAX);

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, model->addr + 1 * GiB, 1));

    for (i = 0; i < ARRAY_SIZE(malformed); i++) {
        g_assert_false(qvirtio_mem_request(mem, malformed[i].req,
                                           malformed[i].req_size, &resp,
                                           malformed[i].resp_size));
        vm_check(vm);
        qvirtio_mem_start(mem);
        vm_check(vm);
        assert_ack(plug_at(vm, 0, model->addr + 2 * GiB, 1));
        assert_ack(unplug_at(vm, 0, model->addr + 2 * GiB, 1));
    }

    memcpy(long_req, &plug, sizeof(plug));
    g_assert_true(qvirtio_mem_request(mem, long_req, sizeof(long_req),
                                      long_resp, sizeof(long_resp)));
    memcpy(&resp, long_resp, sizeof(resp));
    g_assert_cmpint(le16_to_cpu(resp.type), ==, VIRTIO_MEM_RESP_ACK);
    assert_ack(model_plug(model, model->addr + 2 * GiB, 1));
    vm_check(vm);

    vm_stop(vm);
}

/* The usable region grows along with the requested size, then shrinks late. */
static void test_usable_region(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t block = model->block_size;
    const bool follows = model->plan && !model->unplugged_inaccessible;
    /* The first memslot that the usable region of one block does not touch */
    const uint64_t memslot = model->usable_extent / GiB + 1;
    const uint64_t offset = memslot * GiB;

    request_size(vm, 0, block);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot);
    }
    /* The last size for which that many memslots are enough, and one more */
    request_size(vm, 0, offset - model->usable_extent);
    g_assert_cmphex(model->usable_size, ==, offset);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot);
    }
    request_size(vm, 0, offset - model->usable_extent + block);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot + 1);
    }
    assert_ack(plug_at(vm, 0, model->addr + offset, 1));

    request_size(vm, 0, model->region_size);
    g_assert_cmphex(model->usable_size, ==, model->region_size);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, model_nb_memslots(model));
    }

    request_bad_size(vm, 0, block / 2);
    request_bad_size(vm, 0, model->region_size + block);

    request_size(vm, 0, block);
    assert_ack(unplug_at(vm, 0, model->addr + offset, 1));
    g_assert_cmphex(model->usable_size, ==, model->region_size);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(model->usable_size, <, offset);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot);
    }

    request_size(vm, 0, 0);
    g_assert_cmphex(model->usable_size, >, 0);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(model->usable_size, ==, 0);

    vm_stop(vm);
}

static void test_reset(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t blocks_per_gib = 1 * GiB / model->block_size;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, model->addr + 1 * GiB / 2, blocks_per_gib));
    assert_ack(plug_at(vm, 0, model->addr + 3 * GiB, 1));

    /* A reset of the device alone does not touch the memory. */
    qvirtio_mem_start(vm_mem(vm, 0));
    vm_check(vm);

    system_reset(vm);
    g_assert_cmphex(model->usable_size, ==, model->region_size);
    assert_ack(plug_at(vm, 0, model->addr + 1 * GiB / 2, blocks_per_gib));

    request_size(vm, 0, model->block_size);
    system_reset(vm);
    g_assert_cmphex(model->usable_size, <, 2 * GiB);

    request_size(vm, 0, 0);
    system_reset(vm);
    g_assert_cmphex(model->usable_size, ==, 0);
    vm_stop(vm);
}

/* What is in a plugged block stays, whatever happens to the memslots around. */
static void test_contents(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr + 1 * GiB, block = model->block_size;
    const uint64_t pattern = 0x0123456789abcdefull;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr, 2));
    qtest_writeq(vm->qts, addr, pattern);
    qtest_writeq(vm->qts, addr + 2 * block - sizeof(pattern), ~pattern);

    assert_ack(plug_at(vm, 0, addr - block, 1));
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 1));
    assert_ack(unplug_at(vm, 0, addr - block, 1));
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr), ==, pattern);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 2 * block - sizeof(pattern)),
                    ==, ~pattern);

    /* Unplugged memory is given back, so nothing of it can be left. */
    assert_ack(unplug_at(vm, 0, addr, 1));
    assert_ack(plug_at(vm, 0, addr, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr), ==, 0);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 2 * block - sizeof(pattern)),
                    ==, ~pattern);

    assert_ack(unplug_all(vm, 0));
    assert_ack(plug_at(vm, 0, addr, 2));
    g_assert_cmphex(qtest_readq(vm->qts, addr + 2 * block - sizeof(pattern)),
                    ==, 0);
    vm_stop(vm);
}

static uint64_t random_below(uint64_t end)
{
    return ((uint64_t)g_test_rand_int() << 32 | (uint32_t)g_test_rand_int()) %
           end;
}

/* Pick a block that is in the given state, or any if there is none. */
static uint64_t random_block(const Model *model, bool plugged)
{
    const uint64_t nb_blocks = model->region_size / model->block_size;
    const uint64_t start = random_below(nb_blocks);
    uint64_t i;

    for (i = 0; i < nb_blocks; i++) {
        if (model->plugged[(start + i) % nb_blocks] == plugged) {
            return (start + i) % nb_blocks;
        }
    }
    return start;
}

/* Pick a number of blocks from the given one on that are in its state. */
static uint64_t random_run(const Model *model, uint64_t first)
{
    const uint64_t nb_blocks = model->region_size / model->block_size;
    uint64_t length = 1;

    while (first + length < nb_blocks && length < MAX_REQUEST_BLOCKS &&
           model->plugged[first + length] == model->plugged[first]) {
        length++;
    }
    return 1 + random_below(length);
}

static void random_step(TestVM *vm, unsigned int i)
{
    const Model *model = vm_model(vm, i);
    const uint64_t nb_blocks = model->region_size / model->block_size;
    const uint64_t dice = random_below(100);
    uint64_t addr, length;
    uint16_t state;

    if (dice < 5) {
        unplug_all(vm, i);
        return;
    }
    if (dice < 20) {
        request_size(vm, i, random_below(nb_blocks + 1) * model->block_size);
        return;
    }

    if (dice < 85) {
        /* likely to succeed */
        const uint64_t first = random_block(model, dice < 50);

        addr = model->addr + first * model->block_size;
        length = random_run(model, first);
    } else {
        addr = model->addr + random_below(nb_blocks) * model->block_size;
        length = random_below(MIN(MAX_REQUEST_BLOCKS, nb_blocks));
    }

    if (dice < 50) {
        unplug_at(vm, i, addr, length);
    } else if (dice < 90) {
        plug_at(vm, i, addr, length);
    } else {
        state_at(vm, i, addr, length, &state);
    }
}

static void test_random_walk(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    unsigned int i;

    request_size(vm, 0, vm_model(vm, 0)->region_size);
    for (i = 0; i < RANDOM_STEPS; i++) {
        random_step(vm, 0);
    }
    vm_stop(vm);
}

/* Each device minds its own memslots, though they are next to each other. */
static void test_two_devices(const TestCase *test)
{
    DeviceConfig configs[] = { test->config, test->config };
    unsigned int i;
    TestVM *vm;

    /* Put the second device where no memslot would be if it were the first. */
    configs[0].size = 2 * GiB + 514 * MiB;
    vm = vm_start_with(test, configs, ARRAY_SIZE(configs), "");
    g_assert_cmphex(vm_model(vm, 1)->addr % GiB, !=, 0);

    for (i = 0; i < ARRAY_SIZE(configs); i++) {
        request_size(vm, i, vm_model(vm, i)->region_size);
        change_many(vm, i, 0, vm_model(vm, i)->region_size, true);
    }
    assert_ack(unplug_all(vm, 0));
    g_assert_cmpuint(model_nb_mapped(vm_model(vm, 1)), ==,
                     model_nb_memslots(vm_model(vm, 1)));
    for (i = 0; i < RANDOM_STEPS; i++) {
        random_step(vm, random_below(ARRAY_SIZE(configs)));
    }
    system_reset(vm);
    vm_stop(vm);
}

/* However many memslots a step touches, listeners see one change. */
static void test_one_transaction(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    QVirtioMEM *mem = vm_mem(vm, 0);
    const uint64_t nb_blocks = model->region_size / model->block_size;
    unsigned int nb_flatviews;
    QDict *rsp;

    if (!vm->traced) {
        g_test_skip("needs trace events in the log");
        vm_stop(vm);
        return;
    }

    /* vm_check() returns what one step led to; the first maps one memslot. */
    if (model->unplugged_inaccessible) {
        request_size(vm, 0, model->region_size);
        assert_ack(qvirtio_mem_plug(mem, model->addr, 1));
        assert_ack(model_plug(model, model->addr, 1));
        nb_flatviews = vm_check(vm);

        assert_ack(qvirtio_mem_plug(mem, model->addr + model->block_size,
                                    nb_blocks - 1));
        assert_ack(model_plug(model, model->addr + model->block_size,
                              nb_blocks - 1));
        g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

        assert_ack(qvirtio_mem_unplug(mem, model->addr, nb_blocks));
        assert_ack(model_unplug(model, model->addr, nb_blocks));
        g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

        assert_ack(plug_at(vm, 0, model->addr, nb_blocks));
    } else {
        rsp = qom_set_requested_size(vm, 0, model->block_size);
        model_request_size(model, model->block_size);
        qobject_unref(rsp);
        nb_flatviews = vm_check(vm);

        rsp = qom_set_requested_size(vm, 0, model->region_size);
        model_request_size(model, model->region_size);
        qobject_unref(rsp);
        g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

        request_size(vm, 0, 0);
    }
    g_assert_cmpuint(nb_flatviews, >, 0);
    g_assert_cmpuint(model_nb_mapped(model), ==, model_nb_memslots(model));

    assert_ack(qvirtio_mem_unplug_all(mem));
    assert_ack(model_unplug_all(model));
    g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

    vm_stop(vm);
}

static char *migration_status(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    char *status = g_strdup(qdict_get_str(qdict_get_qdict(rsp, "return"),
                                          "status"));

    qobject_unref(rsp);
    return status;
}

static void wait_for_migration_status(TestVM *vm, const char *wanted)
{
    const gint64 start_time = g_get_monotonic_time();
    bool reached = false;

    while (!reached) {
        g_autofree char *status = migration_status(vm);

        reached = g_str_equal(status, wanted);
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        MIGRATION_TIMEOUT_US);
        g_usleep(1000);
    }
}

/* A request that fails because of a migration leaves all as it is. */
static void test_busy_while_migrating(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    g_autofree char *status = NULL;
    uint16_t state;

    request_size(vm, 0, 2 * GiB);
    assert_ack(plug_at(vm, 0, addr, 4));

    /* Too slow to be over before we are; anything below 10 means no limit. */
    qtest_qmp_assert_success(vm->qts,
                             "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'max-bandwidth': 1000 } }");
    qtest_qmp_assert_success(vm->qts,
                             "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': 'exec:cat >/dev/null' } }");
    model->busy = BUSY_ALWAYS;
    wait_for_migration_status(vm, "active");
    /* Dirty logging was turned on, for which memslots change their flags. */
    vm_skip_changes(vm);

    assert_busy(plug_at(vm, 0, addr + 4 * block, 1));
    assert_busy(plug_at(vm, 0, addr + 1 * GiB, 1));
    assert_busy(unplug_at(vm, 0, addr, 1));
    assert_busy(unplug_at(vm, 0, addr, 4));
    assert_busy(unplug_all(vm, 0));
    assert_error(plug_at(vm, 0, addr, 1));
    assert_error(unplug_at(vm, 0, addr + 1 * GiB, 1));
    assert_ack(state_at(vm, 0, addr, 4, &state));
    g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_PLUGGED);
    /* The usable region may grow, but not shrink. */
    request_size(vm, 0, 3 * GiB);
    request_size(vm, 0, 0);
    system_reset(vm);
    g_assert_cmphex(model_plugged_size(model), ==, 4 * block);

    status = migration_status(vm);
    g_assert_cmpstr(status, ==, "active");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate_cancel' }");
    wait_for_migration_status(vm, "cancelled");
    model->busy = BUSY_NEVER;
    vm_check(vm);

    request_size(vm, 0, 2 * GiB);
    assert_ack(unplug_at(vm, 0, addr, 4));
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 1));
    vm_stop(vm);
}

static uint64_t allocated_size(const char *path)
{
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return st.st_blocks * 512ull;
}

/* A request that fails for lack of memory leaves all as it is. */
static void test_prealloc_fails(const TestCase *test)
{
    g_autofree char *dir = create_tmpdir();
    g_autofree char *mem_path = g_build_filename(dir, "mem", NULL);
    g_autofree char *backend = NULL;
    DeviceConfig config = test->config;
    uint64_t addr, block, allocated;
    Model *model;
    TestVM *vm;

    /* In a mount namespace of its own, it goes away by itself. */
    if (unshare(CLONE_NEWNS) ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("virtio-mem-test", dir, "tmpfs", 0, "size=64M")) {
        qhost_skip("root", "cannot mount a tmpfs: %s", strerror(errno));
        g_assert_cmpint(rmdir(dir), ==, 0);
        return;
    }

    backend = g_strdup_printf("memory-backend-file,share=on,mem-path=%s",
                              mem_path);
    config.backend = backend;
    config.extra_props = "prealloc=on";
    vm = vm_start_with(test, &config, 1, "");
    model = vm_model(vm, 0);
    addr = model->addr;
    block = model->block_size;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 2));
    allocated = allocated_size(mem_path);
    g_assert_cmphex(allocated, ==, 2 * block);

    /* Three memslots, the second of which has plugged blocks or not */
    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr, 1 * GiB / block));
    g_assert_cmphex(allocated_size(mem_path), ==, allocated);
    assert_busy(plug_at(vm, 0, addr + 1 * GiB + 2 * block, 2 * GiB / block));
    g_assert_cmphex(allocated_size(mem_path), ==, allocated);
    assert_busy(plug_at(vm, 0, addr + 2 * GiB - block, 1 * GiB / block + 2));
    g_assert_cmphex(allocated_size(mem_path), ==, allocated);

    /* There still is room for less, and after that for nothing. */
    model->busy = BUSY_NEVER;
    assert_ack(plug_at(vm, 0, addr, 30));
    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr + 2 * GiB, 1));

    g_assert_cmpint(mount(NULL, dir, NULL, MS_REMOUNT, "size=128M"), ==, 0);
    model->busy = BUSY_NEVER;
    assert_ack(plug_at(vm, 0, addr + 2 * GiB, 1));
    assert_ack(plug_at(vm, 0, addr + 3 * GiB - block, 2));
    g_assert_cmphex(allocated_size(mem_path), ==, model_plugged_size(model));
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(allocated_size(mem_path), ==, 0);

    vm_stop(vm);
    g_assert_cmpint(umount(dir), ==, 0);
    g_assert_cmpint(rmdir(dir), ==, 0);
}

/* ---- What the host has to have, and has to have back ---- */

#define HUGE_PAGE_SIZE (2 * MiB)
#define HUGE_PAGES_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB"

typedef struct Host {
    /* where the files of memory backends go; NULL if that does not matter */
    char *dir;
    bool is_mounted;
    /* what there was before, if that was changed */
    bool has_huge_pages;
    uint64_t old_huge_pages;
} Host;

static uint64_t huge_pages(const char *what)
{
    g_autofree char *path = g_build_filename(HUGE_PAGES_DIR, what, NULL);
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return g_ascii_strtoull(text, NULL, 10);
}

static bool set_huge_pages(uint64_t nb_pages)
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

static void host_restore(void *opaque)
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

static bool host_prepare(Host *host, const DeviceConfig *config)
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

/* ---- Memory of the host that a device uses ---- */

/* Where QEMU has the memory of a device */
typedef struct HostMemory {
    pid_t pid;
    uint64_t start;
    uint64_t size;
} HostMemory;

static HostMemory find_host_memory(TestVM *vm, unsigned int i,
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

static char *proc_path(const HostMemory *mem, const char *name)
{
    return g_strdup_printf("/proc/%d/%s", mem->pid, name);
}

/* What is behind a mapping is for the privileged to see, see proc(5). */
static bool can_see_memory(void)
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

/* What is QEMU's alone: anonymous memory, and copies of a private file's */
static uint64_t allocated_privately(const HostMemory *mem, uint64_t offset,
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

/* Neither the one kind of memory nor the other exceeds what is plugged. */
static void check_allocated(const HostMemory *mem, uint64_t min, uint64_t max)
{
    const uint64_t private = allocated_privately(mem, 0, mem->size);
    const uint64_t file = allocated_in_file(mem);

    g_assert_cmphex(file, <=, max + FILE_OVERHEAD);
    g_assert_cmphex(private, <=, max);
    g_assert_cmphex(MAX(file, private), >=, min);
}

typedef struct Blocks {
    TestVM *vm;
    uint64_t addr;
    uint64_t block_size;
    unsigned int count;
} Blocks;

static uint64_t block_pattern(unsigned int block)
{
    return 0x0123456789abcdefull * (block + 1);
}

static uint64_t block_end(const Blocks *blocks, unsigned int block)
{
    return blocks->addr + (block + 1) * blocks->block_size - sizeof(uint64_t);
}

static void write_block(const Blocks *blocks, unsigned int block)
{
    qtest_writeq(blocks->vm->qts, blocks->addr + block * blocks->block_size,
                 block_pattern(block));
    qtest_writeq(blocks->vm->qts, block_end(blocks, block),
                 ~block_pattern(block));
}

static void check_block(const Blocks *blocks, unsigned int block)
{
    QTestState *qts = blocks->vm->qts;

    g_assert_cmphex(qtest_readq(qts, blocks->addr + block * blocks->block_size),
                    ==, block_pattern(block));
    g_assert_cmphex(qtest_readq(qts, block_end(blocks, block)), ==,
                    ~block_pattern(block));
}

/* All of it: so much that qtest_memread() would take seconds */
static void check_block_is_zero(const Blocks *blocks, const HostMemory *mem,
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

/*
 * Memory is taken from the host when it is plugged or when it is used, and
 * goes back when it is unplugged, all of it and nothing else.
 */
static void check_memory(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t block = model->block_size;
    const uint64_t page = test->config.nb_huge_pages ?
                          HUGE_PAGE_SIZE : qemu_real_host_page_size();
    /* two at the end of a memslot, and where there is one, two of the next */
    const Blocks blocks = {
        .vm = vm,
        .addr = model->addr + model_memslot_size(model, 0) - 2 * block,
        .block_size = block,
        .count = model_nb_memslots(model) > 1 ? 4 : 2,
    };
    const uint64_t touched = 2 * page;
    const bool prealloc = test->config.extra_props &&
                          strstr(test->config.extra_props, "prealloc=on");
    const uint64_t nb_free = test->config.nb_huge_pages ?
                             huge_pages("free_hugepages") : 0;
    HostMemory mem;
    unsigned int i;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, blocks.addr, blocks.count));
    mem = find_host_memory(vm, 0, blocks.addr);
    if (prealloc) {
        check_allocated(&mem, blocks.count * block, blocks.count * block);
    } else {
        check_allocated(&mem, 0, 0);
    }
    for (i = 0; i < blocks.count; i++) {
        write_block(&blocks, i);
    }
    check_allocated(&mem, blocks.count * MIN(block, touched),
                    blocks.count * block);

    /* The neighbours, one in the next memslot, keep what is in there. */
    assert_ack(unplug_at(vm, 0, blocks.addr + block, 1));
    check_allocated(&mem, (blocks.count - 1) * MIN(block, touched),
                    (blocks.count - 1) * block);
    g_assert_cmphex(allocated_privately(&mem, blocks.addr + block - model->addr,
                                        block), ==, 0);
    for (i = 0; i < blocks.count; i++) {
        if (i != 1) {
            check_block(&blocks, i);
        }
    }
    assert_ack(plug_at(vm, 0, blocks.addr + block, 1));
    check_block_is_zero(&blocks, &mem, 1);
    write_block(&blocks, 1);
    for (i = 0; i < blocks.count; i++) {
        check_block(&blocks, i);
    }

    assert_ack(unplug_at(vm, 0, blocks.addr, blocks.count));
    check_allocated(&mem, 0, 0);
    for (i = 0; i < 2; i++) {
        unsigned int j;

        assert_ack(plug_at(vm, 0, blocks.addr, blocks.count));
        for (j = 0; j < blocks.count; j++) {
            check_block_is_zero(&blocks, &mem, j);
            write_block(&blocks, j);
        }
        if (i == 0) {
            assert_ack(unplug_all(vm, 0));
        } else {
            system_reset(vm);
        }
        check_allocated(&mem, 0, 0);
        if (test->config.nb_huge_pages) {
            g_assert_cmpuint(huge_pages("free_hugepages"), ==, nb_free);
        }
    }
    vm_stop(vm);
}

static void test_memory(const TestCase *test)
{
    if (can_see_memory()) {
        check_memory(test);
    }
}

/* The NUMA policy of the memory backend outlives all that is done to it. */
static void test_numa_policy(const TestCase *test)
{
#ifdef CONFIG_NUMA
    g_autofree char *policy = g_strdup(strstr(test->config.backend, "policy=") +
                                       strlen("policy="));
    TestVM *vm;
    Model *model;
    HostMemory mem;
    unsigned int i;

    if (!g_file_test("/proc/self/numa_maps", G_FILE_TEST_EXISTS)) {
        g_test_skip("the kernel does not know about NUMA");
        return;
    }
    /* The kernel's word for it is a shorter one. */
    if (g_str_equal(policy, "preferred")) {
        policy[strlen("prefer")] = '\0';
    }

    vm = vm_start(test);
    model = vm_model(vm, 0);
    request_size(vm, 0, model->region_size);
    for (i = 0; i < 2; i++) {
        g_autofree char *path = NULL;
        g_autofree char *text = NULL;
        g_autofree char *line_start = NULL;
        const char *line;

        assert_ack(plug_at(vm, 0, model->addr, 1));
        assert_ack(plug_at(vm, 0, model->addr + 1 * GiB, 1));
        qtest_writeq(vm->qts, model->addr + 1 * GiB, 1);
        mem = find_host_memory(vm, 0, model->addr);
        path = proc_path(&mem, "numa_maps");
        g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
        line_start = g_strdup_printf("%" PRIx64 " %s", mem.start, policy);
        line = strstr(text, line_start);
        g_assert_nonnull(line);
        g_assert_nonnull(strchr(line, ':'));
        g_assert_cmpint(strchr(line, ':')[1], ==, '0');

        assert_ack(unplug_at(vm, 0, model->addr, 1));
        assert_ack(unplug_all(vm, 0));
    }
    vm_stop(vm);
#else
    g_test_skip("NUMA is not built in");
#endif
}

/* At an address that is no multiple of the size of memslots, nor of 1 GiB */
static void test_memaddr(const TestCase *test)
{
    const uint64_t addr = 5 * GiB + 514 * MiB;
    g_autofree char *memaddr = g_strdup_printf("memaddr=0x%" PRIx64, addr);
    g_autofree char *backend = NULL;
    g_autofree char *device = NULL;
    g_autofree char *args = NULL;
    DeviceConfig config = test->config;
    TestVM *vm = vm_new(test);
    Model *model;
    unsigned int i;

    config.extra_props = memaddr;
    backend = backend_args(vm->tmpdir, 0, &config);
    device = device_args(0, &config);
    args = g_strdup_printf("-object %s -device %s", backend, device);
    vm_boot(vm, 2 * config.size, args);
    device_init(vm, 0, &config);
    model = vm_model(vm, 0);
    g_assert_cmphex(model->addr, ==, addr);
    vm_check(vm);

    request_size(vm, 0, model->region_size);
    change_many(vm, 0, 0, model->region_size, true);
    qtest_writeq(vm->qts, addr + 1 * GiB - 8, 0x0123456789abcdef);
    qtest_writeq(vm->qts, addr + 1 * GiB, 0xfedcba9876543210);
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr + 1 * GiB - 8), ==,
                    0x0123456789abcdef);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr + 1 * GiB), ==, 0);
    for (i = 0; i < RANDOM_STEPS / 4; i++) {
        random_step(vm, 0);
    }
    assert_ack(unplug_all(vm, 0));
    vm_stop(vm);
}

/* What is requested at start can be plugged, without a word from outside. */
static void test_requested_at_start(const TestCase *test)
{
    DeviceConfig config = test->config;
    TestVM *vm;
    Model *model;

    config.requested_size = 2 * GiB;
    vm = vm_start_with(test, &config, 1, "");
    model = vm_model(vm, 0);
    g_assert_cmphex(model->usable_size, ==, 2 * GiB + arch->usable_extent);

    change_many(vm, 0, 0, config.requested_size, true);
    assert_nack(plug_at(vm, 0, model->addr + config.requested_size, 1));
    system_reset(vm);
    assert_ack(plug_at(vm, 0, model->addr + config.requested_size, 1));
    request_size(vm, 0, 0);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(model->usable_size, ==, 0);
    vm_stop(vm);
}

static uint64_t query_memslots(TestVM *vm, const char *what)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-memslots' }");
    const uint64_t value = qdict_get_int(qdict_get_qdict(rsp, "return"), what);

    qobject_unref(rsp);
    return value;
}

/* They share what there is of memslots, and keep out of each other's way. */
static void test_many_devices(const TestCase *test)
{
    DeviceConfig configs[MAX_DEVICES];
    const Model *model;
    unsigned int i, mapped = 0;
    TestVM *vm;

    for (i = 0; i < MAX_DEVICES; i++) {
        configs[i] = test->config;
    }
    vm = vm_start_with(test, configs, MAX_DEVICES, "");
    model = vm_model(vm, 0);
    g_assert_cmpuint(query_memslots(vm, "required"), ==,
                     MAX_DEVICES * model_nb_memslots(model));
    for (i = 0; i < MAX_DEVICES; i++) {
        model = vm_model(vm, i);
        request_size(vm, i, model->region_size);
        g_assert_cmpint(qvirtio_mem_plug(vm_mem(vm, i),
                                         model->addr + i * model->block_size,
                                         1 + i), ==, VIRTIO_MEM_RESP_ACK);
        assert_ack(model_plug(vm_model(vm, i),
                              model->addr + i * model->block_size, 1 + i));
        qtest_writeq(vm->qts, model->addr + i * model->block_size, i + 1);
    }
    vm_check(vm);
    for (i = 0; i < MAX_DEVICES; i += 2) {
        assert_ack(unplug_all(vm, i));
    }
    for (i = 1; i < MAX_DEVICES; i += 2) {
        model = vm_model(vm, i);
        g_assert_cmphex(qtest_readq(vm->qts,
                                    model->addr + i * model->block_size), ==,
                        i + 1);
    }
    for (i = 0; i < MANY_DEVICES_STEPS; i++) {
        random_step(vm, random_below(MAX_DEVICES));
    }
    for (i = 0; i < MAX_DEVICES; i++) {
        mapped += model_nb_mapped(vm_model(vm, i));
    }
    g_assert_cmpuint(query_memslots(vm, "used"), ==, mapped);
    system_reset(vm);
    vm_stop(vm);
}

static void assert_no_region_of_device(TestVM *vm)
{
    g_autofree char *text = hmp(vm, "info mtree");

    g_assert_null(strstr(text, "): virtio-mem\n"));
    g_assert_null(strstr(text, "alias memslot-"));
}

/* A device that fails to be realized leaves nothing behind. */
static void test_failed_realize(const TestCase *test)
{
    static const struct {
        const char *props;
        const char *error;
        const char *hint;
    } failures[] = {
        { "", "'memdev' property must be set" },
        { ",memdev=mem0,node=7", "'node' property has value '7'" },
        { ",memdev=mem0,block-size=3M", "has to be a power of two" },
        { ",memdev=mem0,block-size=512K", "has to be at least 0x100000" },
        { ",memdev=mem0,requested-size=3M",
          "'requested-size' property has to be multiples of 'block-size'" },
        { ",memdev=mem0,memaddr=0x100100000", "address must be aligned to" },
        { ",memdev=odd", "multiple" },
        { ",memdev=huge", "not enough space" },
        { ",memdev=none", "not found" },
        { ",memdev=mem0,unplugged-inaccessible=maybe", "maybe" },
        { ",memdev=mem0,memslot-min-size=64M",
          "'memslot-min-size' property (0x4000000) has to be a power of two"
          " and at least 0x8000000",
          "memslot-min-size=1G is the default; the smaller, the more memslots"
          " are needed." },
        { ",memdev=mem0,memslot-min-size=384M",
          "'memslot-min-size' property (0x18000000) has to be a power of two"
          " and at least 0x8000000" },
        { ",memdev=mem0,memslot-min-size=0",
          "'memslot-min-size' property (0x0) has to be a power of two" },
        { ",memdev=mem0,memslot-min-size=small", "'memslot-min-size'" },
        { ",memdev=mem0,memslot-min-size=256M,block-size=512M",
          "'memslot-min-size' property (0x10000000) has to be at least as"
          " large as 'block-size' (0x20000000)",
          "Make it larger, or do not set it." },
    };
    g_autofree char *backend = NULL;
    g_autofree char *device = device_args(0, &test->config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *args = NULL;
    g_autofree char *busy = NULL;
    TestVM *vm = vm_new(test);
    unsigned int i;

    backend = backend_args(vm->tmpdir, 0, &test->config);
    args = g_strdup_printf("-object %s"
                           " -object memory-backend-ram,id=odd,size=1027M"
                           " -object memory-backend-ram,id=huge,size=16G,"
                           "reserve=off", backend);
    /* Not for lack of space shall a second device fail. */
    vm_boot(vm, 2 * test->config.size, args);

    for (i = 0; i < ARRAY_SIZE(failures); i++) {
        g_autofree char *command =
            g_strdup_printf("device_add virtio-mem-pci,id=vm0,addr=04.0,"
                            "multiple-memslots=%s%s",
                            test->config.multiple_memslots ? "on" : "off",
                            failures[i].props);
        g_autofree char *output = hmp(vm, command);

        g_test_message("%s: %s", command, output);
        g_assert_nonnull(strstr(output, failures[i].error));
        if (failures[i].hint) {
            g_assert_nonnull(strstr(output, failures[i].hint));
        }
        assert_no_region_of_device(vm);
    }

    /* It is still to be had in full. */
    busy = hmp(vm, device_add);
    g_assert_cmpstr(busy, ==, "");
    vm_skip_changes(vm);
    device_init(vm, 0, &test->config);
    vm_check(vm);
    request_size(vm, 0, test->config.size);
    change_many(vm, 0, 0, test->config.size, true);

    g_free(busy);
    busy = hmp(vm, "device_add virtio-mem-pci,id=vm1,addr=05.0,memdev=mem0");
    g_assert_nonnull(strstr(busy, "busy memdev: mem0"));
    vm_check(vm);
    assert_ack(unplug_all(vm, 0));
    vm_stop(vm);
}

/* ---- Listeners that mirror what is plugged, as VFIO does ---- */

#define TESTDEV "-device ram-discard-testdev,id=testdev"
#define TESTDEV_PATH "/machine/peripheral/testdev"

/* The listeners know of all that is plugged, and were told in order. */
static void check_listeners(TestVM *vm)
{
    const bool listening = qom_get_bool(vm, TESTDEV_PATH, "listening");
    uint64_t plugged = 0, sections = 0, granularity = 0;
    unsigned int i;

    for (i = 0; listening && i < vm->nb_devices; i++) {
        const Model *model = vm_model(vm, i);

        plugged += model_plugged_size(model);
        sections += model_nb_mapped(model);
        if (model_nb_mapped(model)) {
            granularity = MIN_NON_ZERO(granularity, model->block_size);
        }
    }
    g_assert_cmphex(qom_get_size(vm, TESTDEV_PATH, "populated"), ==, plugged);
    /* One for each memslot, however few blocks are plugged there */
    g_assert_cmpuint(qom_get_size(vm, TESTDEV_PATH, "sections"), ==, sections);
    g_assert_cmphex(qom_get_size(vm, TESTDEV_PATH, "granularity"), ==,
                    granularity);
    /* What they get when they ask is what they were told. */
    g_assert_true(qom_get_bool(vm, TESTDEV_PATH, "check"));
    g_assert_cmpuint(qom_get_size(vm, TESTDEV_PATH, "errors"), ==, 0);
}

/* Have the listeners go, or come back and be told what is plugged by then. */
static void set_listening(TestVM *vm, bool listening)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': %s, 'property': 'listening',"
                             " 'value': %i } }", TESTDEV_PATH, listening);
    check_listeners(vm);
}

static void set_testdev(TestVM *vm, const char *property, uint64_t value)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': %s, 'property': %s,"
                             " 'value': %" PRIu64 " } }", TESTDEV_PATH,
                             property, value);
}

static void limit_listeners(TestVM *vm, uint64_t size)
{
    set_testdev(vm, "max-populated", size);
}

/* Listeners refuse a request; all is as before it, memslots too. */
static void plug_refused(TestVM *vm, uint64_t addr, uint64_t nb_blocks)
{
    Model *model = vm_model(vm, 0);

    model->busy = BUSY_PLUG;
    g_assert_cmpint(qvirtio_mem_plug(vm_mem(vm, 0), addr, nb_blocks), ==,
                    model_plug(model, addr, nb_blocks));
    model->busy = BUSY_NEVER;
    /* A memslot might have come for the listeners to look at, and gone. */
    vm_skip_changes(vm);
    vm_check(vm);
    check_listeners(vm);
}

static void check_listeners_told(const TestCase *test, const char *testdev)
{
    TestVM *vm = vm_start_with(test, &test->config, 1, testdev);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    check_listeners(vm);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB + 8 * block, 2));
    check_listeners(vm);

    /* Refused by the first listener, or after the first one has agreed */
    limit_listeners(vm, model_plugged_size(model));
    plug_refused(vm, addr + 2 * GiB, 1);
    plug_refused(vm, addr, 1);
    limit_listeners(vm, model_plugged_size(model) + block);
    plug_refused(vm, addr + 2 * GiB - block, 2);
    plug_refused(vm, addr + 3 * GiB - block, 2);

    limit_listeners(vm, UINT64_MAX);
    assert_ack(plug_at(vm, 0, addr + 3 * GiB - block, 2));
    check_listeners(vm);
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB - block, 1));
    check_listeners(vm);
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 1));
    check_listeners(vm);
    system_reset(vm);
    check_listeners(vm);

    assert_ack(plug_at(vm, 0, addr, 4));
    request_size(vm, 0, 0);
    assert_ack(unplug_all(vm, 0));
    check_listeners(vm);
    vm_stop(vm);
}

static void test_listeners(const TestCase *test)
{
    check_listeners_told(test, TESTDEV);
}

/* They may be told to discard a section as a whole. */
static void test_listeners_double_discard(const TestCase *test)
{
    check_listeners_told(test, TESTDEV ",double-discard=on");
}

/*
 * Listeners come and go along with memslots, as if a device was plugged and
 * unplugged meanwhile; those that come are told what is plugged by then.
 */
static void test_listeners_come_and_go(const TestCase *test)
{
    DeviceConfig configs[] = { test->config, test->config };
    bool listening = true;
    unsigned int i;
    TestVM *vm;

    vm = vm_start_with(test, configs, ARRAY_SIZE(configs), TESTDEV);
    for (i = 0; i < ARRAY_SIZE(configs); i++) {
        request_size(vm, i, vm_model(vm, i)->region_size);
    }
    for (i = 0; i < RANDOM_STEPS; i++) {
        random_step(vm, random_below(ARRAY_SIZE(configs)));
        check_listeners(vm);
        if (!random_below(4)) {
            listening = !listening;
            set_listening(vm, listening);
        }
    }
    system_reset(vm);
    check_listeners(vm);
    vm_stop(vm);
}

/*
 * What an entry of an IOMMU's TLB leads to may be larger than a memslot, or lie
 * on both sides of where two of them meet; all of it has to be plugged.
 */
static void test_iotlb(const TestCase *test)
{
    TestVM *vm = vm_start_with(test, &test->config, 1, TESTDEV);
    Model *model = vm_model(vm, 0);
    const uint64_t block = model->block_size;
    uint64_t size, offset;

    request_size(vm, 0, model->region_size);
    change_many(vm, 0, 0, model->region_size, true);
    for (offset = 0; offset < model->region_size; offset += 1 * GiB + block) {
        assert_ack(unplug_at(vm, 0, model->addr + offset, 1));
    }
    for (size = block; size <= model->region_size; size *= 2) {
        for (offset = 0; offset < model->region_size; offset += size) {
            const uint64_t addr = model->addr + offset;
            const uint64_t plugged = model_count_plugged(model, addr,
                                                         size / block);

            /* Those that have changes near them will do, for small sizes. */
            if (size < 256 * MiB && offset % (512 * MiB) > 8 * block) {
                continue;
            }
            set_testdev(vm, "iotlb-address", addr);
            set_testdev(vm, "iotlb-mask", size - 1);
            g_assert_cmpint(qom_get_bool(vm, TESTDEV_PATH, "iotlb-valid"), ==,
                            plugged == size / block);
        }
    }
    vm_stop(vm);
}

/* All of the device at once, over all of its memslots */
static void test_iotlb_whole(const TestCase *test)
{
    TestVM *vm = vm_start_with(test, &test->config, 1, TESTDEV);
    Model *model = vm_model(vm, 0);

    request_size(vm, 0, model->region_size);
    change_many(vm, 0, 0, model->region_size, true);
    set_testdev(vm, "iotlb-address", model->addr);
    set_testdev(vm, "iotlb-mask", model->region_size - 1);
    g_assert_true(qom_get_bool(vm, TESTDEV_PATH, "iotlb-valid"));
    /* One memslot in the middle goes, or just its memory. */
    change_many(vm, 0, 1 * GiB, 1 * GiB, false);
    g_assert_false(qom_get_bool(vm, TESTDEV_PATH, "iotlb-valid"));
    vm_stop(vm);
}

/* ---- Migration ---- */

static void migrate_to_file(TestVM *vm, const char *path)
{
    g_autofree char *uri = g_strdup_printf("exec:cat >%s", path);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': %s } }", uri);
    wait_for_migration_status(vm, "completed");
}

/* Returns the memory that migration looked at and sent, in whatever form. */
static uint64_t migrated_size(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    QDict *ram = qdict_get_qdict(qdict_get_qdict(rsp, "return"), "ram");
    const uint64_t pages = qdict_get_int(ram, "normal") +
                           qdict_get_int(ram, "duplicate");
    const uint64_t size = pages * qdict_get_int(ram, "page-size");

    qobject_unref(rsp);
    return size;
}

static bool incoming_is_done(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    QDict *info = qdict_get_qdict(rsp, "return");
    const char *status = qdict_get_try_str(info, "status");
    const bool done = status && g_str_equal(status, "completed");

    g_assert_true(!status || !g_str_equal(status, "failed"));
    qobject_unref(rsp);
    return done;
}

static void migrate_from_file(TestVM *vm, const char *path)
{
    const gint64 start_time = g_get_monotonic_time();
    g_autofree char *uri = g_strdup_printf("exec:cat %s", path);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    while (!incoming_is_done(vm)) {
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        MIGRATION_TIMEOUT_US);
        g_usleep(1000);
    }
}

/* The device that has arrived is to be as the one that was sent. */
static void device_init_migrated(TestVM *vm, const DeviceConfig *config,
                                 const Model *from)
{
    Device *dev = &vm->devices[0];
    uint64_t i;

    device_init(vm, 0, config);
    dev->model.requested_size = from->requested_size;
    dev->model.usable_size = from->usable_size;
    memcpy(dev->model.plugged, from->plugged,
           from->region_size / from->block_size * sizeof(*from->plugged));
    for (i = 0; i < model_nb_memslots(&dev->model); i++) {
        g_array_index(dev->was_mapped, bool, i) =
            model_memslot_mapped(&dev->model, i);
    }
}

/* The devices are not known to the VM until their state has arrived. */
static TestVM *boot_destination(const TestCase *test,
                                const DeviceConfig *config,
                                const char *extra_args)
{
    TestVM *vm = vm_new(test);
    g_autofree char *backend = backend_args(vm->tmpdir, 0, config);
    g_autofree char *device = device_args(0, config);
    g_autofree char *args = g_strdup_printf("%s -object %s -device %s"
                                            " -incoming defer", extra_args,
                                            backend, device);

    vm_boot(vm, config->size, args);
    return vm;
}

static void check_migration(const TestCase *test, bool to_multiple_memslots,
                            const char *requested_before)
{
    const uint64_t pattern = 0x0123456789abcdef;
    TestVM *from = vm_start_with(test, &test->config, 1, TESTDEV);
    Model *model = vm_model(from, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    g_autofree char *path = g_build_filename(from->tmpdir, "state", NULL);
    g_autofree char *extra_props = g_strdup_printf("requested-size=%s",
                                                   requested_before);
    DeviceConfig config = test->config;
    TestVM *to;

    request_size(from, 0, 3 * GiB - 512 * MiB);
    assert_ack(plug_at(from, 0, addr, 3));
    assert_ack(plug_at(from, 0, addr + 2 * GiB - block, 2));
    assert_ack(unplug_at(from, 0, addr + block, 1));
    qtest_writeq(from->qts, addr + 2 * block, pattern);
    qtest_writeq(from->qts, addr + 2 * GiB, ~pattern);
    migrate_to_file(from, path);

    config.multiple_memslots = to_multiple_memslots;
    config.first_memslot_size = 1 * GiB;
    config.extra_props = extra_props;
    to = boot_destination(test, &config, TESTDEV);
    migrate_from_file(to, path);

    device_init_migrated(to, &config, model);
    vm_skip_changes(to);
    vm_check(to);
    check_listeners(to);
    g_assert_cmphex(qtest_readq(to->qts, addr + 2 * block), ==, pattern);
    g_assert_cmphex(qtest_readq(to->qts, addr + 2 * GiB), ==, ~pattern);

    /* Life goes on. */
    assert_ack(unplug_at(to, 0, addr + 2 * GiB - block, 1));
    assert_ack(plug_at(to, 0, addr + 1 * GiB, 2));
    check_listeners(to);
    assert_ack(unplug_all(to, 0));
    check_listeners(to);

    vm_stop(to);
    vm_stop(from);
}

static void wait_for_exit(TestVM *vm)
{
    const gint64 start_time = g_get_monotonic_time();

    while (qtest_probe_child(vm->qts)) {
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        MIGRATION_TIMEOUT_US);
        g_usleep(1000);
    }
}

/* A listener that can't take what is plugged must not go unheard. */
static void test_migration_refused(const TestCase *test)
{
    TestVM *from = vm_start(test);
    Model *model = vm_model(from, 0);
    g_autofree char *path = g_build_filename(from->tmpdir, "state", NULL);
    g_autofree char *extra_args = NULL;
    g_autofree char *uri = g_strdup_printf("exec:cat %s", path);
    TestVM *to;

    request_size(from, 0, model->region_size);
    assert_ack(plug_at(from, 0, model->addr + 1 * GiB - model->block_size, 2));
    migrate_to_file(from, path);

    extra_args = g_strdup_printf(TESTDEV ",max-populated=%" PRIu64,
                                 model->block_size);
    to = boot_destination(test, &test->config, extra_args);
    qtest_qmp_assert_success(to->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    qtest_set_expected_status(to->qts, EXIT_FAILURE);
    wait_for_exit(to);

    vm_stop(to);
    vm_stop(from);
}

static void check_migration_size(const TestCase *test, uint64_t plugged)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    g_autofree char *path = g_build_filename(vm->tmpdir, "state", NULL);

    request_size(vm, 0, plugged ? model->region_size : 0);
    if (plugged) {
        assert_ack(plug_at(vm, 0, model->addr + 2 * GiB - plugged / 2,
                           plugged / model->block_size));
    }
    migrate_to_file(vm, path);
    g_assert_cmphex(migrated_size(vm), >=, BOOT_RAM_SIZE + plugged);
    g_assert_cmphex(migrated_size(vm), <,
                    BOOT_RAM_SIZE + plugged + arch->other_ram);
    vm_stop(vm);
}

/* Unplugged memory is not sent, whether any of the rest is mapped or not. */
static void test_migration_size(const TestCase *test)
{
    check_migration_size(test, 0);
    check_migration_size(test, 128 * MiB);
}

static void test_migration(const TestCase *test)
{
    int to_multiple;

    for (to_multiple = 0; to_multiple < 2; to_multiple++) {
        /* Less than what is about to arrive, or more */
        check_migration(test, to_multiple, "0");
        check_migration(test, to_multiple, "4G");
    }
}

/* ---- Failures of what is below the device ---- */

static bool can_fail_calls(void)
{
    if (!memory_preload_path || !kvm_preload_path) {
        g_test_skip("memory-preload.so and kvm-preload.so are not next to this"
                    " program");
        return false;
    }
    return true;
}

/* Have KVM refuse memslots that are added from now on. */
static void refuse_memslots(TestVM *vm, bool refuse)
{
    if (refuse) {
        g_assert_true(g_file_set_contents(vm->kvm_fail_path, "", 0, NULL));
    } else {
        g_assert_cmpint(unlink(vm->kvm_fail_path), ==, 0);
        /* Those that were refused are not to be taken for changes. */
        vm_skip_changes(vm);
    }
    vm_model(vm, 0)->no_memslots = refuse;
    vm->maps_in_vain = refuse;
}

/* The calls by which memory of that kind is given back, in that order */
static const char *const *discard_calls(const DeviceConfig *config)
{
    static const char *const anonymous[] = { "dontneed", NULL };
    static const char *const shared[] = { "remove", NULL };
    static const char *const file[] = { "punch-hole", "dontneed", NULL };
    static const char *const huge[] = { "punch-hole", NULL };

    if (config->nb_huge_pages) {
        return huge;
    }
    if (!g_str_has_prefix(config->backend, "memory-backend-ram")) {
        return file;
    }
    return strstr(config->backend, "share=on") ? shared : anonymous;
}

/* QEMU has said that since the file was last emptied; empty it. */
static void expect_stderr(TestVM *vm, const char *expected)
{
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(vm->stderr_path, &text, NULL, NULL));
    if (!strstr(text, expected)) {
        /* Shows both. */
        g_assert_cmpstr(text, ==, expected);
    }
    g_assert_cmpint(truncate(vm->stderr_path, 0), ==, 0);
}

static void check_discard_fails(TestVM *vm, const char *call, int err)
{
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr + 1 * GiB, block = model->block_size;
    g_autofree char *reason = g_strdup_printf("ram_block_discard_range: Failed"
                                              " to %s ",
                                              g_str_equal(call, "punch-hole") ?
                                              "fallocate" : "discard range");
    g_autofree char *number = g_strdup_printf("(-%d)", err);

    fail_calls(vm, "%s %d", call, err);
    model->busy = BUSY_UNPLUG;
    assert_busy(unplug_at(vm, 0, addr, 1));
    expect_stderr(vm, reason);
    check_listeners(vm);
    assert_busy(unplug_at(vm, 0, addr - block, 2));
    expect_stderr(vm, number);
    assert_busy(unplug_all(vm, 0));
    expect_stderr(vm, reason);
    check_listeners(vm);

    /* What needs nothing of the kind still works. */
    assert_error(unplug_at(vm, 0, addr + 2 * block, 1));
    request_size(vm, 0, model->block_size);
    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr + 2 * GiB, 1));
    check_listeners(vm);

    system_reset(vm);
    expect_stderr(vm, reason);
    check_listeners(vm);

    stop_failing(vm);
    model->busy = BUSY_NEVER;
    assert_ack(unplug_at(vm, 0, addr + 2 * GiB, 1));
    check_listeners(vm);
}

/* Memory that can't be given back stays plugged, and the guest is told. */
static void test_discard_fails(const TestCase *test)
{
    static const int errors[] = { EINVAL, EPERM, EIO, ENOMEM, EOPNOTSUPP };
    const char *const *calls = discard_calls(&test->config);
    Model *model;
    Blocks blocks;
    HostMemory mem;
    unsigned int i;
    TestVM *vm;

    if (!can_fail_calls() || !can_see_memory()) {
        return;
    }

    vm = vm_start_with(test, &test->config, 1, TESTDEV);
    model = vm_model(vm, 0);
    blocks = (Blocks) {
        .vm = vm,
        .addr = model->addr + 1 * GiB - model->block_size,
        .block_size = model->block_size,
        .count = 2,
    };

    request_size(vm, 0, model->region_size);
    for (; *calls; calls++) {
        assert_ack(plug_at(vm, 0, blocks.addr, blocks.count));
        mem = find_host_memory(vm, 0, blocks.addr);
        write_block(&blocks, 0);
        write_block(&blocks, 1);
        for (i = 0; i < ARRAY_SIZE(errors); i++) {
            check_discard_fails(vm, *calls, errors[i]);
        }
        if (*calls == discard_calls(&test->config)[0]) {
            /* Nothing was given back, not even in part. */
            check_block(&blocks, 0);
            check_block(&blocks, 1);
        }

        write_block(&blocks, 0);
        write_block(&blocks, 1);
        assert_ack(unplug_at(vm, 0, blocks.addr, 1));
        check_block(&blocks, 1);
        assert_ack(plug_at(vm, 0, blocks.addr, 1));
        check_block_is_zero(&blocks, &mem, 0);
        check_block(&blocks, 1);
        assert_ack(unplug_all(vm, 0));
        check_allocated(&mem, 0, 0);
        check_listeners(vm);
    }
    vm_stop(vm);
}

/* A failed request can't be undone in full: it is not worse than that. */
static void test_rollback_fails(const TestCase *test)
{
    const char *call = discard_calls(&test->config)[0];
    DeviceConfig config = test->config;
    Model *model;
    uint64_t addr, block;
    HostMemory mem;
    TestVM *vm;

    if (!can_fail_calls() || !can_see_memory()) {
        return;
    }

    config.extra_props = "prealloc=on";
    vm = vm_start_with(test, &config, 1, TESTDEV);
    model = vm_model(vm, 0);
    addr = model->addr + 1 * GiB;
    block = model->block_size;
    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr, 1));
    mem = find_host_memory(vm, 0, addr);
    check_allocated(&mem, block, block);

    /* The second of two memslots is refused, all memory was allocated. */
    limit_listeners(vm, 2 * block);
    fail_calls(vm, "%s %d", call, EIO);
    plug_refused(vm, addr + 1 * GiB - block, 2);
    expect_stderr(vm, "(-5)");
    plug_refused(vm, addr + 1 * GiB - block, 2);
    plug_refused(vm, addr - block, 1 * GiB / block);
    check_allocated(&mem, block, model->region_size);

    /* What was left is no obstacle, nor does it show. */
    limit_listeners(vm, UINT64_MAX);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    check_block_is_zero(&(Blocks) { .vm = vm, .addr = addr + 1 * GiB - block,
                                    .block_size = block }, &mem, 0);
    check_listeners(vm);
    stop_failing(vm);

    /* With the cause gone, nothing is left. */
    assert_ack(unplug_all(vm, 0));
    check_allocated(&mem, 0, 0);
    limit_listeners(vm, 0);
    plug_refused(vm, addr + 1 * GiB - block, 2);
    check_allocated(&mem, 0, 0);
    check_listeners(vm);
    vm_stop(vm);
}

/* Any sequence of requests, with what is below failing now and then */
static void test_random_failures(const TestCase *test)
{
    const char *call = discard_calls(&test->config)[0];
    unsigned int i, nb_failing = 0;
    Model *model;
    TestVM *vm;

    if (!can_fail_calls()) {
        return;
    }

    vm = vm_start_with(test, &test->config, 1, TESTDEV);
    model = vm_model(vm, 0);
    request_size(vm, 0, model->region_size);
    for (i = 0; i < RANDOM_STEPS; i++) {
        if (!random_below(10)) {
            /* or it is rare that a memslot is needed */
            request_size(vm, 0, 0);
            unplug_all(vm, 0);
        }
        if (!random_below(8)) {
            model->busy = BUSY_UNPLUG;
            fail_calls(vm, "%s %d", call, EIO);
        }
        if (!random_below(4)) {
            model->max_plugged = model_plugged_size(model) +
                                 (1 + random_below(1000)) * model->block_size;
            limit_listeners(vm, model->max_plugged);
        }
        if (test->kvm && !random_below(8)) {
            refuse_memslots(vm, !model->no_memslots);
        }
        vm->maps_in_vain = model->max_plugged || model->no_memslots;
        nb_failing += vm->maps_in_vain || model->busy != BUSY_NEVER;

        /* Others have memslots, too, and they do need them after a reset. */
        if (model->no_memslots || random_below(20)) {
            random_step(vm, 0);
        } else {
            system_reset(vm);
        }
        check_listeners(vm);

        if (model->busy != BUSY_NEVER) {
            model->busy = BUSY_NEVER;
            stop_failing(vm);
        }
        if (model->max_plugged) {
            model->max_plugged = 0;
            limit_listeners(vm, UINT64_MAX);
        }
        vm->maps_in_vain = model->no_memslots;
    }
    g_assert_cmpuint(nb_failing, >, 0);

    if (model->no_memslots) {
        refuse_memslots(vm, false);
    }
    assert_ack(unplug_all(vm, 0));
    request_size(vm, 0, model->region_size);
    change_many(vm, 0, 0, model->region_size, true);
    check_listeners(vm);
    vm_stop(vm);
}

/* However memory can't be allocated, the guest is told, and may try again. */
static void test_prealloc_errors(const TestCase *test)
{
    static const int errors[] = { ENOMEM, EFAULT, EHWPOISON, EAGAIN };
    DeviceConfig config = test->config;
    Model *model;
    uint64_t addr, block;
    HostMemory mem;
    unsigned int i;
    TestVM *vm;

    if (!can_fail_calls() || !can_see_memory()) {
        return;
    }

    config.extra_props = "prealloc=on";
    vm = vm_start_with(test, &config, 1, TESTDEV);
    model = vm_model(vm, 0);
    addr = model->addr + 1 * GiB;
    block = model->block_size;
    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr, 1));
    mem = find_host_memory(vm, 0, addr);

    for (i = 0; i < ARRAY_SIZE(errors); i++) {
        model->busy = BUSY_PLUG;
        /* The first call finds out whether the kernel knows of it. */
        fail_calls(vm, "populate %d", errors[i]);
        assert_busy(plug_at(vm, 0, addr + block, 1));
        fail_calls(vm, "populate %d 1", errors[i]);
        assert_busy(plug_at(vm, 0, addr - block, 1));
        fail_calls(vm, "populate %d 1", errors[i]);
        assert_busy(plug_at(vm, 0, addr + 1 * GiB - block, 2));
        check_allocated(&mem, block, block);
        check_listeners(vm);
        if (i == 0) {
            expect_stderr(vm, strerror(errors[i]));
        }
        stop_failing(vm);
        model->busy = BUSY_NEVER;
        assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
        check_allocated(&mem, 3 * block, 3 * block);
        assert_ack(unplug_at(vm, 0, addr + 1 * GiB - block, 2));
    }

    /* Kernels before 5.14 do not, so that QEMU touches the memory. */
    fail_calls(vm, "populate %d", EINVAL);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    check_allocated(&mem, 3 * block, 3 * block);
    stop_failing(vm);
    vm_stop(vm);
}

/* More huge pages are wanted than there are. */
static void check_pool_exhausted(TestVM *vm, bool old_kernel)
{
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    const uint64_t nb_pages = huge_pages("nr_hugepages");
    const uint64_t nb_free = huge_pages("free_hugepages");
    const uint64_t nb_blocks = nb_free * HUGE_PAGE_SIZE / block;
    HostMemory mem;

    if (old_kernel) {
        /* SIGBUS is what tells then. */
        fail_calls(vm, "populate %d", EINVAL);
    }

    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    mem = find_host_memory(vm, 0, addr + 1 * GiB);
    check_allocated(&mem, 2 * block, 2 * block);

    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr + 2 * GiB - block, nb_blocks - 1));
    g_assert_cmpuint(huge_pages("free_hugepages"), ==,
                     nb_free - 2 * block / HUGE_PAGE_SIZE);
    check_allocated(&mem, 2 * block, 2 * block);
    assert_busy(plug_at(vm, 0, addr + 1 * GiB + block, 2 * GiB / block));
    g_assert_cmpuint(huge_pages("free_hugepages"), ==,
                     nb_free - 2 * block / HUGE_PAGE_SIZE);

    /* The very last one can be had, and more once there are more. */
    model->busy = BUSY_NEVER;
    assert_ack(plug_at(vm, 0, addr + 2 * GiB - block, nb_blocks - 2));
    g_assert_cmpuint(huge_pages("free_hugepages"), ==, 0);
    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr, 1));
    model->busy = BUSY_NEVER;
    g_assert_true(set_huge_pages(nb_pages + block / HUGE_PAGE_SIZE));
    assert_ack(plug_at(vm, 0, addr, 1));
    assert_ack(unplug_all(vm, 0));
    g_assert_true(set_huge_pages(nb_pages));
    g_assert_cmpuint(huge_pages("free_hugepages"), ==, nb_free);

    if (old_kernel) {
        stop_failing(vm);
    }
}

static void test_pool_exhausted(const TestCase *test)
{
    DeviceConfig config = test->config;
    TestVM *vm;

    if (!can_see_memory()) {
        return;
    }

    config.extra_props = "prealloc=on";
    vm = vm_start_with(test, &config, 1, "");
    request_size(vm, 0, vm_model(vm, 0)->region_size);
    check_pool_exhausted(vm, false);
    expect_stderr(vm, "preallocating memory failed: Bad address");
    if (can_fail_calls()) {
        check_pool_exhausted(vm, true);
    }
    vm_stop(vm);
}

static void assert_hmp(TestVM *vm, const char *command, const char *expected)
{
    g_autofree char *output = hmp(vm, command);

    if (!*expected) {
        g_assert_cmpstr(output, ==, "");
    } else if (!strstr(output, expected)) {
        /* Shows both. */
        g_assert_cmpstr(output, ==, expected);
    }
}

/* If memory can't be given back at the start, there is no device. */
static void test_realize_fails(const TestCase *test)
{
    g_autofree char *device = device_args(0, &test->config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *backend = NULL;
    g_autofree char *args = NULL;
    TestVM *vm;

    if (!can_fail_calls()) {
        return;
    }

    vm = vm_new(test);
    backend = backend_args(vm->tmpdir, 0, &test->config);
    args = g_strdup_printf("-object %s %s", backend, TESTDEV);
    vm_boot(vm, test->config.size, args);

    fail_calls(vm, "%s %d", discard_calls(&test->config)[0], EIO);
    assert_hmp(vm, device_add, "Unexpected error discarding RAM: Input/output"
                               " error");
    assert_no_region_of_device(vm);
    stop_failing(vm);

    if (test->config.nb_huge_pages) {
        assert_hmp(vm, "device_add virtio-mem-pci,memdev=mem0,block-size=1M",
                   "has to be at least the page size (0x200000)");
        assert_no_region_of_device(vm);
    }

    assert_hmp(vm, device_add, "");
    vm_skip_changes(vm);
    device_init(vm, 0, &test->config);
    vm_check(vm);
    request_size(vm, 0, test->config.size);
    assert_ack(plug_at(vm, 0, vm_model(vm, 0)->addr, 1));
    check_listeners(vm);
    vm_stop(vm);
}

/* Memory that is locked can't be given back. */
static void test_mlock(const TestCase *test)
{
    g_autofree char *device = device_args(0, &test->config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *backend = NULL;
    g_autofree char *args = NULL;
    struct rlimit limit;
    TestVM *vm;

    g_assert_cmpint(getrlimit(RLIMIT_MEMLOCK, &limit), ==, 0);
    if (geteuid() != 0 && limit.rlim_cur != RLIM_INFINITY) {
        qhost_skip("root", "not allowed to lock all memory");
        return;
    }

    vm = vm_new(test);
    backend = backend_args(vm->tmpdir, 0, &test->config);
    args = g_strdup_printf("-object %s -overcommit mem-lock=on", backend);
    vm_boot(vm, test->config.size, args);
    assert_hmp(vm, device_add, "Incompatible with mlock");
    assert_no_region_of_device(vm);
    vm_stop(vm);
}

/* A destination that can't give back what is unplugged is not to go on. */
static void test_migration_discard_fails(const TestCase *test)
{
    const char *call = discard_calls(&test->config)[0];
    g_autofree char *path = NULL;
    g_autofree char *uri = NULL;
    Model *model;
    unsigned int nth;
    TestVM *from, *to;

    if (!can_fail_calls()) {
        return;
    }

    from = vm_start_with(test, &test->config, 1, TESTDEV);
    model = vm_model(from, 0);
    path = g_build_filename(from->tmpdir, "state", NULL);
    uri = g_strdup_printf("exec:cat %s", path);
    request_size(from, 0, model->region_size);
    assert_ack(plug_at(from, 0, model->addr + 1 * GiB - model->block_size, 2));
    migrate_to_file(from, path);

    /* Two ranges are unplugged, and there is one call for each. */
    for (nth = 0; nth < 2; nth++) {
        to = boot_destination(test, &test->config, TESTDEV);
        fail_calls(to, "%s %d %u", call, EIO, nth);
        qtest_qmp_assert_success(to->qts, "{ 'execute': 'migrate-incoming',"
                                 " 'arguments': { 'uri': %s } }", uri);
        qtest_set_expected_status(to->qts, EXIT_FAILURE);
        wait_for_exit(to);
        expect_stderr(to, "(-5)");
        vm_stop(to);
    }

    to = boot_destination(test, &test->config, TESTDEV);
    fail_calls(to, "%s %d 2", call, EIO);
    migrate_from_file(to, path);
    device_init_migrated(to, &test->config, model);
    vm_skip_changes(to);
    vm_check(to);
    check_listeners(to);
    vm_stop(to);
    vm_stop(from);
}

/* ---- Snapshots ---- */

/* The device is to be as it was when the model was like that. */
static void device_set_model(TestVM *vm, const Model *model)
{
    Device *dev = &vm->devices[0];
    uint64_t i;

    qvirtio_mem_pci_start(dev->pci);
    dev->model.requested_size = model->requested_size;
    dev->model.usable_size = model->usable_size;
    memcpy(dev->model.plugged, model->plugged,
           model->region_size / model->block_size * sizeof(*model->plugged));
    for (i = 0; i < model_nb_memslots(model); i++) {
        g_array_index(dev->was_mapped, bool, i) = model_memslot_mapped(model,
                                                                       i);
    }
    vm_skip_changes(vm);
    vm_check(vm);
    check_listeners(vm);
}

/*
 * After a snapshot that could not be loaded, nothing is plugged, whatever was
 * done until then, and nothing is allocated, where @mem is given. The VM can't
 * go on like that, but it can be reset.
 */
static void recover_from_loadvm(TestVM *vm, const Model *saved,
                                const HostMemory *mem)
{
    Model *model = vm_model(vm, 0);

    if (mem) {
        check_allocated(mem, 0, 0);
    }
    g_assert_cmphex(qom_get_size(vm, vm->devices[0].qom_path, "size"), ==, 0);
    g_assert_cmphex(qom_get_size(vm, TESTDEV_PATH, "populated"), ==, 0);
    model_set_plugged(model, model->addr,
                      model->region_size / model->block_size, false);
    model->usable_size = 0;
    check_regions(vm);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(vm->qts, "RESET");
    model->requested_size = saved->requested_size;
    model->usable_size = model_wanted_usable_size(model);
    device_set_model(vm, model);

    assert_ack(plug_at(vm, 0, model->addr + 2 * GiB, 1));
    check_listeners(vm);
}

/* All ways in which loading a snapshot can fail, once the stream is there */
static void check_loadvm_failures(TestVM *vm, const TestCase *test,
                                  const Model *saved, const HostMemory *mem)
{
    const char *call = discard_calls(&test->config)[0];
    g_autofree char *still_plugged = NULL;
    Model *model = vm_model(vm, 0);

    /* A listener takes the first range, but not the second. */
    limit_listeners(vm, model_plugged_size(saved) - 1);
    assert_hmp(vm, "loadvm a", "virtio-mem device 'vm0': plugged memory was"
                               " refused by one that has to map it, such as"
                               " VFIO: No space left on device");
    recover_from_loadvm(vm, saved, mem);
    limit_listeners(vm, UINT64_MAX);
    assert_hmp(vm, "loadvm a", "");
    device_set_model(vm, saved);

    /* The first call is for all of the memory, by the reset. */
    fail_calls(vm, "%s %d 1", call, EIO);
    assert_hmp(vm, "loadvm a", "ram_block_discard_range: Failed");
    stop_failing(vm);
    recover_from_loadvm(vm, saved, NULL);
    assert_hmp(vm, "loadvm a", "");
    device_set_model(vm, saved);

    /* What can't be unplugged must not be taken for what was saved. */
    assert_ack(unplug_at(vm, 0, model->addr + 1 * GiB, 1));
    assert_ack(plug_at(vm, 0, model->addr + 2 * GiB, 1));
    fail_calls(vm, "%s %d", call, EIO);
    still_plugged = g_strdup_printf("virtio-mem device 'vm0': a state cannot"
                                    " be loaded while 0x%" PRIx64 " bytes are"
                                    " plugged, which the reset before could not"
                                    " unplug", model_plugged_size(model));
    assert_hmp(vm, "loadvm a", still_plugged);
    stop_failing(vm);
    device_set_model(vm, model);
    system_reset(vm);
    assert_hmp(vm, "loadvm a", "");
    device_set_model(vm, saved);

    if (test->kvm && model->plan) {
        /* Of two or more memslots, the second is refused. */
        request_size(vm, 0, 0);
        assert_ack(unplug_all(vm, 0));
        g_assert_cmpuint(model_nb_mapped(model), ==, 0);
        refuse_memslots(vm, true);
        assert_hmp(vm, "loadvm a", "virtio-mem device 'vm0': memory cannot be"
                                   " mapped: KVM cannot map more memory: Cannot"
                                   " allocate memory\nThe host's kernel needs"
                                   " memory of its own for each memslot.");
        refuse_memslots(vm, false);
        recover_from_loadvm(vm, saved, mem);
        assert_hmp(vm, "loadvm a", "");
        device_set_model(vm, saved);
    }
}

static void remove_dir_on_abort(void *path)
{
    qhost_remove_dir(path);
}

static void test_loadvm(const TestCase *test)
{
    const uint64_t pattern = 0x0123456789abcdefull;
    g_autofree char *dir = NULL;
    g_autofree char *disk = NULL;
    g_autofree char *extra_args = NULL;
    g_autofree bool *plugged = NULL;
    Model *model, saved;
    uint64_t addr, block;
    HostMemory mem;
    TestVM *vm;

    if (!can_fail_calls() || !can_see_memory()) {
        return;
    }
    if (!have_qemu_img()) {
        g_test_skip("QTEST_QEMU_IMG is not set");
        return;
    }

    dir = create_tmpdir();
    qtest_add_abrt_handler(remove_dir_on_abort, dir);
    disk = g_build_filename(dir, "disk.qcow2", NULL);
    mkqcow2(disk, 16);
    extra_args = g_strdup_printf(TESTDEV " -drive if=none,id=disk,format=qcow2,"
                                 "file=%s", disk);
    g_setenv("KVM_PRELOAD_FAIL", "2", true);
    vm = vm_start_with(test, &test->config, 1, extra_args);
    g_unsetenv("KVM_PRELOAD_FAIL");
    model = vm_model(vm, 0);
    addr = model->addr;
    block = model->block_size;

    request_size(vm, 0, 3 * GiB);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    assert_ack(plug_at(vm, 0, addr + 3 * GiB, 1));
    qtest_writeq(vm->qts, addr + 1 * GiB, pattern);
    qtest_writeq(vm->qts, addr + 3 * GiB, ~pattern);
    saved = *model;
    plugged = g_memdup2(model->plugged, model->region_size / block);
    saved.plugged = plugged;
    assert_hmp(vm, "savevm a", "");
    /* Dirty logging was turned on and off meanwhile. */
    vm_skip_changes(vm);
    vm_check(vm);

    /* More in one place, less in another */
    request_size(vm, 0, 4 * GiB);
    qtest_writeq(vm->qts, addr + 1 * GiB, pattern + 1);
    assert_ack(unplug_at(vm, 0, addr + 3 * GiB, 1));
    assert_ack(plug_at(vm, 0, addr + 2 * GiB, 1));
    assert_hmp(vm, "loadvm a", "");
    device_set_model(vm, &saved);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 1 * GiB), ==, pattern);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 3 * GiB), ==, ~pattern);

    mem = find_host_memory(vm, 0, addr + 1 * GiB);
    check_loadvm_failures(vm, test, &saved, &mem);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 1 * GiB), ==, pattern);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 3 * GiB), ==, ~pattern);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB + block, 4));
    assert_ack(unplug_all(vm, 0));
    check_listeners(vm);

    vm_stop(vm);
    qtest_remove_abrt_handler(dir);
    qhost_remove_dir(dir);
}

/* ---- What KVM allocates in the kernel ---- */

static uint64_t meminfo(const char *field)
{
    g_autofree char *text = NULL;
    const char *line;
    uint64_t kib;

    g_assert_true(g_file_get_contents("/proc/meminfo", &text, NULL, NULL));
    line = strstr(text, field);
    g_assert_nonnull(line);
    g_assert_cmpint(sscanf(line + strlen(field), ": %" SCNu64 " kB", &kib),
                    ==, 1);
    return kib * KiB;
}

static int64_t growth_since(uint64_t start)
{
    return (int64_t)meminfo("VmallocUsed") - (int64_t)start;
}

typedef struct KernelMemory {
    int64_t nothing_plugged;
    int64_t one_gib_plugged;
    int64_t all_unplugged;
} KernelMemory;

static KernelMemory measure_kernel_memory(const TestCase *test,
                                          const DeviceConfig *config)
{
    TestVM *vm = vm_new(test);
    g_autofree char *backend = backend_args(vm->tmpdir, 0, config);
    g_autofree char *device = device_args(0, config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *args = g_strdup_printf("-object %s", backend);
    g_autofree char *output = NULL;
    KernelMemory result;
    Model *model;
    uint64_t start;

    vm_boot(vm, config->size, args);
    start = meminfo("VmallocUsed");
    output = hmp(vm, device_add);
    g_assert_cmpstr(output, ==, "");
    result.nothing_plugged = growth_since(start);

    vm_skip_changes(vm);
    device_init(vm, 0, config);
    model = vm_model(vm, 0);
    request_size(vm, 0, 1 * GiB);
    assert_ack(plug_at(vm, 0, model->addr, 1 * GiB / model->block_size));
    result.one_gib_plugged = growth_since(start);
    assert_ack(unplug_all(vm, 0));
    result.all_unplugged = growth_since(start);

    vm_stop(vm);
    return result;
}

static void kernel_memory_min(KernelMemory *a, const KernelMemory *b)
{
    a->nothing_plugged = MIN(a->nothing_plugged, b->nothing_plugged);
    a->one_gib_plugged = MIN(a->one_gib_plugged, b->one_gib_plugged);
    a->all_unplugged = MIN(a->all_unplugged, b->all_unplugged);
}

static bool kernel_memory_fits(const KernelMemory *used, int64_t nothing,
                               int64_t one_memslot)
{
    return used->nothing_plugged < nothing &&
           used->one_gib_plugged < one_memslot + nothing &&
           used->all_unplugged < nothing;
}

static void test_kernel_memory(const TestCase *test)
{
    /* Other users of the kernel's memory come and go meanwhile. */
    const unsigned int max_attempts = 10;
    const int64_t noise = 4 * MiB;
    const uint64_t needed = test->config.size / 128;
    DeviceConfig single = test->config;
    KernelMemory used, used_single;
    int64_t one_memslot;
    unsigned int i;

    if (meminfo("MemAvailable") < needed) {
        g_test_skip("not enough memory to see what a single memslot costs");
        return;
    }

    single.multiple_memslots = false;
    used_single = measure_kernel_memory(test, &single);
    g_test_message("one memslot: %" PRId64 " KiB",
                   used_single.nothing_plugged / (int64_t)KiB);

    one_memslot = used_single.nothing_plugged /
                  (int64_t)(test->config.size /
                            test->config.first_memslot_size);
    used = measure_kernel_memory(test, &test->config);
    for (i = 1; i < max_attempts &&
                !kernel_memory_fits(&used, noise, one_memslot); i++) {
        const KernelMemory again = measure_kernel_memory(test, &test->config);

        kernel_memory_min(&used, &again);
    }
    g_test_message("multiple memslots: nothing plugged %" PRId64 " KiB,"
                   " 1 GiB plugged %" PRId64 " KiB, all unplugged %" PRId64
                   " KiB", used.nothing_plugged / (int64_t)KiB,
                   used.one_gib_plugged / (int64_t)KiB,
                   used.all_unplugged / (int64_t)KiB);

    g_assert_cmpint(used.nothing_plugged, <, noise);
    g_assert_cmpint(used.one_gib_plugged, <, one_memslot + noise);
    g_assert_cmpint(used.all_unplugged, <, noise);
}

/* ---- The tables of devices and of tests ---- */

#define INACCESSIBLE                                                       \
    .unplugged_inaccessible = "on", .expect_inaccessible = true
#define ACCESSIBLE                                                         \
    .unplugged_inaccessible = "off", .expect_inaccessible = false
#define AUTO_INACCESSIBLE .expect_inaccessible = true
#define AUTO_ACCESSIBLE .expect_inaccessible = false

#define MULTIPLE(size_, first_memslot_size_)                               \
    .size = size_, .multiple_memslots = true,                              \
    .first_memslot_size = first_memslot_size_
#define SINGLE(size_) .size = size_

#define RAM "memory-backend-ram"
#define RAM_SHARED "memory-backend-ram,share=on"
#define RAM_SPARSE "memory-backend-ram,reserve=off"
#define MEMFD "memory-backend-memfd"
#define MEMFD_PRIVATE "memory-backend-memfd,share=off"
#define FILE_SHARED "memory-backend-file,share=on"
#define FILE_PRIVATE "memory-backend-file,share=off"
#define HUGE_MEMFD "memory-backend-memfd,hugetlb=on,hugetlbsize=2M,reserve=off"
#define HUGE_MEMFD_PRIVATE HUGE_MEMFD ",share=off"
#define HUGE_MEMFD_RESERVED "memory-backend-memfd,hugetlb=on,hugetlbsize=2M"
#define HUGE_FILE FILE_SHARED ",reserve=off"
#define HUGE_FILE_PRIVATE FILE_PRIVATE ",reserve=off"

typedef struct NamedConfig {
    const char *name;
    DeviceConfig config;
} NamedConfig;

/* The devices that nearly all tests are good for */
static const NamedConfig basic_configs[] = {
    { "inaccessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "accessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { "single-inaccessible", { RAM, SINGLE(4 * GiB), INACCESSIBLE } },
    { "single-accessible", { RAM, SINGLE(4 * GiB), ACCESSIBLE } },
};

/* unplugged-inaccessible=auto depends on the kind of memory. */
static const NamedConfig auto_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "ram-shared",
      { RAM_SHARED, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "file", { FILE_SHARED, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "file-private",
      { FILE_PRIVATE, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "single-ram", { RAM, SINGLE(4 * GiB), AUTO_ACCESSIBLE } },
    { "single-memfd", { MEMFD, SINGLE(4 * GiB), AUTO_INACCESSIBLE } },
};

/* Devices of other shapes and kinds of memory */
static const NamedConfig more_configs[] = {
    { "memfd-inaccessible",
      { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "memfd-accessible", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { "file-inaccessible",
      { FILE_SHARED, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "file-accessible",
      { FILE_SHARED, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { "short-last-memslot-inaccessible",
      { RAM, MULTIPLE(2 * GiB + 518 * MiB, 1 * GiB), INACCESSIBLE } },
    { "short-last-memslot-accessible",
      { RAM, MULTIPLE(2 * GiB + 518 * MiB, 1 * GiB), ACCESSIBLE } },
    { "one-block-in-last-memslot",
      { RAM, MULTIPLE(2 * GiB + 2 * MiB, 1 * GiB), INACCESSIBLE } },
    { "small-inaccessible",
      { RAM, MULTIPLE(512 * MiB, 1 * GiB), INACCESSIBLE } },
    { "small-accessible", { RAM, MULTIPLE(512 * MiB, 1 * GiB), ACCESSIBLE } },
    { "blocks-of-64m",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE,
        .block_size = 64 * MiB } },
    /* The default on ARM with pages of 16 KiB and 64 KiB */
    { "blocks-of-32m",
      { RAM, MULTIPLE(2 * GiB + 32 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 32 * MiB } },
    { "blocks-of-512m",
      { RAM, MULTIPLE(5 * GiB + 512 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 512 * MiB } },
    { "blocks-of-1g-inaccessible",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE,
        .block_size = 1 * GiB } },
    { "blocks-of-1g-accessible",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE, .block_size = 1 * GiB } },
    { "blocks-of-2g",
      { RAM, MULTIPLE(6 * GiB, 2 * GiB), INACCESSIBLE,
        .block_size = 2 * GiB } },
    { "memslots-of-128m-inaccessible",
      { RAM, MULTIPLE(4 * GiB - 64 * MiB, 128 * MiB), INACCESSIBLE,
        .memslot_min_size = 128 * MiB } },
    { "memslots-of-128m-accessible",
      { RAM, MULTIPLE(4 * GiB - 64 * MiB, 128 * MiB), ACCESSIBLE,
        .memslot_min_size = 128 * MiB } },
    { "memslots-of-2g",
      { RAM, MULTIPLE(7 * GiB, 2 * GiB), INACCESSIBLE,
        .memslot_min_size = 2 * GiB } },
    /* As many memslots as devices may have in all, hence larger ones */
    { "large-of-128m",
      { RAM_SPARSE, MULTIPLE(64 * GiB, 128 * MiB), INACCESSIBLE,
        .memslot_min_size = 128 * MiB } },
    { "large-inaccessible",
      { RAM_SPARSE, MULTIPLE(1 * TiB, 1 * GiB), INACCESSIBLE } },
    { "large-accessible",
      { RAM_SPARSE, MULTIPLE(1 * TiB, 1 * GiB), ACCESSIBLE } },
};

#define BACKEND(backend) { backend, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE }
#define SINGLE_BACKEND(backend) { backend, SINGLE(4 * GiB), INACCESSIBLE }
#define ACCESSIBLE_BACKEND(backend)                                        \
    { backend, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE }

#define HUGE .nb_huge_pages = 16
#define HUGE_BACKEND(backend)                                              \
    { backend, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE, HUGE }
#define HUGE_FS_BACKEND(backend)                                           \
    { backend, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE, HUGE,             \
      .fs = FS_HUGETLB }
#define DISK_BACKEND(backend)                                              \
    { backend, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE, .fs = FS_DISK }

/* All kinds of memory */
static const NamedConfig backend_configs[] = {
    { "ram", BACKEND(RAM) },
    { "ram-sparse", BACKEND(RAM_SPARSE) },
    { "ram-shared", BACKEND(RAM_SHARED) },
    { "memfd", BACKEND(MEMFD) },
    { "memfd-private", BACKEND(MEMFD_PRIVATE) },
    { "file", BACKEND(FILE_SHARED) },
    { "file-private", BACKEND(FILE_PRIVATE) },
    { "disk", DISK_BACKEND(FILE_SHARED) },
    { "disk-private", DISK_BACKEND(FILE_PRIVATE) },
    { "huge-memfd", HUGE_BACKEND(HUGE_MEMFD) },
    { "huge-memfd-private", HUGE_BACKEND(HUGE_MEMFD_PRIVATE) },
    { "huge-file", HUGE_FS_BACKEND(HUGE_FILE) },
    { "huge-file-private", HUGE_FS_BACKEND(HUGE_FILE_PRIVATE) },
    { "accessible-ram", ACCESSIBLE_BACKEND(RAM) },
    { "accessible-memfd", ACCESSIBLE_BACKEND(MEMFD) },
    { "single-ram", SINGLE_BACKEND(RAM) },
    { "single-memfd", SINGLE_BACKEND(MEMFD) },
    { "single-huge-memfd",
      { HUGE_MEMFD, SINGLE(4 * GiB), INACCESSIBLE, HUGE } },
    { "short-last-memslot-huge-memfd",
      { HUGE_MEMFD, MULTIPLE(2 * GiB + 518 * MiB, 1 * GiB), INACCESSIBLE,
        HUGE } },
    { "short-last-memslot-disk",
      { FILE_SHARED, MULTIPLE(1 * GiB + 8 * MiB, 1 * GiB), INACCESSIBLE,
        .fs = FS_DISK } },
    { "huge-memfd-blocks-of-8m",
      { HUGE_MEMFD, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE,
        .nb_huge_pages = 64, .block_size = 8 * MiB } },
};

/* Among these, blocks that are smaller than a transparent huge page */
static const NamedConfig few_backend_configs[] = {
    { "ram-blocks-of-1m",
      { RAM, MULTIPLE(2 * GiB + 6 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 1 * MiB } },
    { "memfd-blocks-of-1m",
      { MEMFD, MULTIPLE(2 * GiB + 6 * MiB, 1 * GiB), ACCESSIBLE,
        .block_size = 1 * MiB } },
    { "disk", DISK_BACKEND(FILE_SHARED) },
    { "huge-memfd", HUGE_BACKEND(HUGE_MEMFD) },
    { "blocks-of-512m",
      { RAM, MULTIPLE(4 * GiB + 512 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 512 * MiB } },
};

#define SMALL_BACKEND(backend, ...)                                        \
    { backend, MULTIPLE(1 * GiB + 64 * MiB, 1 * GiB), INACCESSIBLE,        \
      __VA_ARGS__ }
#define TINY_BACKEND(backend, ...)                                         \
    { backend, MULTIPLE(64 * MiB, 1 * GiB), INACCESSIBLE, __VA_ARGS__ }
#define PREALLOC .extra_props = "prealloc=on"
/* as many as make up a small device */
#define RESERVED_HUGE .nb_huge_pages = 544

/*
 * Memory that is allocated when it is plugged; or all of it at start, only to
 * be given back right away; or set aside
 */
static const NamedConfig preallocated_configs[] = {
    { "ram-prealloc", SMALL_BACKEND(RAM, PREALLOC) },
    { "ram-shared-prealloc", SMALL_BACKEND(RAM_SHARED, PREALLOC) },
    { "memfd-prealloc", SMALL_BACKEND(MEMFD, PREALLOC) },
    { "file-private-prealloc", SMALL_BACKEND(FILE_PRIVATE, PREALLOC) },
    { "disk-prealloc",
      SMALL_BACKEND(FILE_SHARED, PREALLOC, .fs = FS_DISK) },
    { "huge-memfd-prealloc", SMALL_BACKEND(HUGE_MEMFD, PREALLOC, HUGE) },
    { "huge-file-private-prealloc",
      SMALL_BACKEND(HUGE_FILE_PRIVATE, PREALLOC, HUGE, .fs = FS_HUGETLB) },
    { "huge-memfd-reserved",
      SMALL_BACKEND(HUGE_MEMFD_RESERVED, RESERVED_HUGE) },
    { "huge-memfd-reserved-prealloc",
      SMALL_BACKEND(HUGE_MEMFD_RESERVED, RESERVED_HUGE, PREALLOC) },
    { "huge-memfd-all-prealloc",
      TINY_BACKEND(HUGE_MEMFD_RESERVED ",prealloc=on",
                   .nb_huge_pages = 32) },
    { "ram-all-prealloc", TINY_BACKEND(RAM ",prealloc=on") },
    { "memfd-all-prealloc", TINY_BACKEND(MEMFD ",prealloc=on") },
};

static const NamedConfig tiny_configs[] = {
    { "multiple", TINY_BACKEND(RAM) },
    { "single", { RAM, SINGLE(64 * MiB), INACCESSIBLE } },
};

static const NamedConfig numa_configs[] = {
    { "bind", BACKEND(RAM ",host-nodes=0,policy=bind") },
    { "preferred", BACKEND(RAM ",host-nodes=0,policy=preferred") },
    { "interleave", BACKEND(MEMFD ",host-nodes=0,policy=interleave") },
};

/* All memslots that memory devices may have, between sixteen of them */
static const NamedConfig many_devices_configs[] = {
    { "inaccessible",
      { RAM_SPARSE, MULTIPLE(32 * GiB, 1 * GiB), INACCESSIBLE,
        .memslot_budget = 16 } },
    { "accessible",
      { RAM_SPARSE, MULTIPLE(32 * GiB, 1 * GiB), ACCESSIBLE,
        .memslot_budget = 16 } },
};

/* Kinds of memory that are given back in different ways */
static const NamedConfig discard_configs[] = {
    { "ram", BACKEND(RAM) },
    { "ram-shared", BACKEND(RAM_SHARED) },
    { "memfd", BACKEND(MEMFD) },
    { "disk-private", DISK_BACKEND(FILE_PRIVATE) },
    { "huge-memfd", HUGE_BACKEND(HUGE_MEMFD) },
    { "accessible-ram", ACCESSIBLE_BACKEND(RAM) },
    { "single-memfd", SINGLE_BACKEND(MEMFD) },
};

static const NamedConfig huge_configs[] = {
    { "memfd", HUGE_BACKEND(HUGE_MEMFD) },
    { "file-private", HUGE_FS_BACKEND(HUGE_FILE_PRIVATE) },
    { "accessible-memfd",
      { HUGE_MEMFD, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE, HUGE } },
    { "single-memfd", { HUGE_MEMFD, SINGLE(4 * GiB), INACCESSIBLE, HUGE } },
};

static const NamedConfig multiple_configs[] = {
    { "inaccessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "accessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
};

static const NamedConfig kernel_memory_configs[] = {
    { "inaccessible",
      { RAM_SPARSE, MULTIPLE(1 * TiB, 1 * GiB), INACCESSIBLE } },
};

typedef struct TestGroup {
    const char *name;
    void (*fn)(const TestCase *test);
    const NamedConfig *configs;
    unsigned int nb_configs;
    bool kvm_only;
    bool needs_hotplug;
} TestGroup;

#define WITH(array) .configs = array, .nb_configs = ARRAY_SIZE(array)

static const TestGroup test_groups[] = {
    { "features", test_features, WITH(basic_configs) },
    { "features-auto", test_features, WITH(auto_configs) },
    { "lifecycle", test_lifecycle, WITH(basic_configs) },
    { "lifecycle-auto", test_lifecycle, WITH(auto_configs) },
    { "lifecycle-more", test_lifecycle, WITH(more_configs) },
    { "random-walk", test_random_walk, WITH(basic_configs) },
    { "random-walk-more", test_random_walk, WITH(more_configs) },
    { "bad-ranges", test_bad_ranges, WITH(basic_configs) },
    { "malformed-requests", test_malformed_requests, WITH(basic_configs) },
    { "usable-region", test_usable_region, WITH(basic_configs) },
    { "reset", test_reset, WITH(basic_configs) },
    { "contents", test_contents, WITH(basic_configs) },
    { "two-devices", test_two_devices, WITH(basic_configs) },
    { "one-transaction", test_one_transaction, WITH(multiple_configs) },
    { "busy-while-migrating", test_busy_while_migrating, WITH(basic_configs) },
    { "prealloc-fails", test_prealloc_fails, WITH(basic_configs) },
    { "listeners", test_listeners, WITH(basic_configs) },
    { "listeners-double-discard", test_listeners_double_discard,
      WITH(basic_configs) },
    { "listeners-come-and-go", test_listeners_come_and_go,
      WITH(basic_configs) },
    { "iotlb", test_iotlb, WITH(basic_configs) },
    { "iotlb-whole", test_iotlb_whole, WITH(basic_configs) },
    { "migration", test_migration, WITH(basic_configs) },
    { "migration-refused", test_migration_refused, WITH(basic_configs) },
    { "migration-size", test_migration_size, WITH(basic_configs) },
    { "failed-realize", test_failed_realize, WITH(basic_configs),
      .needs_hotplug = true },
    { "backends", test_lifecycle, WITH(backend_configs) },
    { "backends-random-walk", test_random_walk, WITH(few_backend_configs) },
    { "backends-memory", test_memory, WITH(backend_configs) },
    { "backends-memory-small", test_memory, WITH(preallocated_configs) },
    { "numa-policy", test_numa_policy, WITH(numa_configs) },
    { "memaddr", test_memaddr, WITH(basic_configs) },
    { "requested-at-start", test_requested_at_start, WITH(basic_configs) },
    { "many-devices", test_many_devices, WITH(many_devices_configs) },
    { "discard-fails", test_discard_fails, WITH(discard_configs) },
    { "rollback-fails", test_rollback_fails, WITH(discard_configs) },
    { "prealloc-errors", test_prealloc_errors, WITH(discard_configs) },
    { "random-failures", test_random_failures, WITH(basic_configs) },
    { "pool-exhausted", test_pool_exhausted, WITH(huge_configs) },
    { "realize-fails", test_realize_fails, WITH(discard_configs),
      .needs_hotplug = true },
    { "mlock", test_mlock, WITH(tiny_configs),
      .needs_hotplug = true },
    { "migration-discard-fails", test_migration_discard_fails,
      WITH(basic_configs) },
    { "loadvm", test_loadvm, WITH(basic_configs) },
    { "kernel-memory", test_kernel_memory, WITH(kernel_memory_configs),
      .kvm_only = true, .needs_hotplug = true },
};

/* What is the default depends on the machine type. */
static const NamedConfig new_machine_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "single-ram", { RAM, SINGLE(4 * GiB), AUTO_ACCESSIBLE } },
    { "single-memfd", { MEMFD, SINGLE(4 * GiB), AUTO_INACCESSIBLE } },
};

/* Up to version 6.2, unplugged-inaccessible is off unless asked for. */
static const NamedConfig old_machine_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "single-memfd", { MEMFD, SINGLE(4 * GiB), AUTO_ACCESSIBLE } },
    { "auto-ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB),
                    .unplugged_inaccessible = "auto" } },
    { "auto-memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE,
                      .unplugged_inaccessible = "auto" } },
};

static const NamedConfig arm_machine_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
};

/*
 * Other machine types, each with the tests in which a device meets its machine:
 * where it is mapped, how it is reset and migrated, what the guest gets to see.
 */
static const TestGroup machine_groups[] = {
    { "features", test_features, WITH(basic_configs) },
    { "lifecycle", test_lifecycle, WITH(basic_configs) },
    { "usable-region", test_usable_region, WITH(basic_configs) },
    { "reset", test_reset, WITH(basic_configs) },
    { "contents", test_contents, WITH(basic_configs) },
    { "migration", test_migration, WITH(basic_configs) },
};

typedef struct MachineType {
    const char *arch;
    /* as for -machine */
    const char *name;
    /* devices that have defaults of this machine type */
    const NamedConfig *configs;
    unsigned int nb_configs;
    bool no_kvm;
} MachineType;

static const MachineType machine_types[] = {
    { "x86_64", "pc-i440fx-6.2", WITH(old_machine_configs) },
    { "x86_64", "pc-i440fx-7.2", WITH(new_machine_configs) },
    { "x86_64", "pc-q35-6.2", WITH(old_machine_configs) },
    { "x86_64", "pc-q35-7.2", WITH(new_machine_configs) },
    { "aarch64", "virt-6.2", WITH(arm_machine_configs) },
    { "aarch64", "virt-7.2", WITH(arm_machine_configs) },
    /* with an address space of its own for secure memory */
    { "aarch64", "virt,secure=on", WITH(arm_machine_configs), .no_kvm = true },
};

static void run_test(const void *data)
{
    TestCase test = *(const TestCase *)data;
    Host host = { };

    if (host_prepare(&host, &test.config)) {
        test.config.mem_dir = host.dir;
        test.fn(&test);
    }
    host_restore(&host);
}

/* With the machine type NULL for the default one */
static void add_group(bool kvm, const char *prefix, const char *machine,
                      const TestGroup *group)
{
    unsigned int i;

    if ((group->kvm_only && !kvm) ||
        (group->needs_hotplug && !arch->has_hotplug)) {
        return;
    }
    for (i = 0; i < group->nb_configs; i++) {
        const NamedConfig *named = &group->configs[i];
        g_autofree char *path =
            g_strdup_printf("virtio-mem/%s/%s%s/%s", kvm ? "kvm" : "qtest",
                            prefix, group->name, named->name);
        TestCase *test;

        if (!named->config.expect_inaccessible && !arch->has_legacy_guests) {
            continue;
        }
        test = g_new(TestCase, 1);
        *test = (TestCase) {
            .kvm = kvm,
            .machine = machine,
            .fn = group->fn,
            .config = named->config,
        };
        qtest_add_data_func_full(path, test, run_test, g_free);
    }
}

static void add_machine_type(bool kvm, const MachineType *type)
{
    g_autofree char *prefix = g_strdup_printf("machines/%s/", type->name);
    const TestGroup default_groups[] = {
        { "features-default", test_features,
          .configs = type->configs, .nb_configs = type->nb_configs },
        { "lifecycle-default", test_lifecycle,
          .configs = type->configs, .nb_configs = type->nb_configs },
    };
    unsigned int i;

    if (type->no_kvm && kvm) {
        return;
    }
    for (i = 0; i < ARRAY_SIZE(machine_groups); i++) {
        add_group(kvm, prefix, type->name, &machine_groups[i]);
    }
    for (i = 0; i < ARRAY_SIZE(default_groups); i++) {
        add_group(kvm, prefix, type->name, &default_groups[i]);
    }
}

static void add_tests(bool kvm)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(test_groups); i++) {
        add_group(kvm, "", NULL, &test_groups[i]);
    }
    for (i = 0; i < ARRAY_SIZE(machine_types); i++) {
        if (g_str_equal(machine_types[i].arch, arch->name)) {
            add_machine_type(kvm, &machine_types[i]);
        }
    }
}

static const Arch *find_arch(const char *name)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(archs); i++) {
        if (g_str_equal(archs[i].name, name)) {
            return &archs[i];
        }
    }
    g_assert_not_reached();
}

int main(int argc, char **argv)
{
    const char *why_no_kvm;
    int ret;

    g_test_init(&argc, &argv, NULL);
    arch = find_arch(qtest_get_arch());
    memory_preload_path = qhost_find_module("memory-preload.so");
    kvm_preload_path = qhost_find_module("kvm-preload.so");

    add_tests(false);
    why_no_kvm = qhost_why_no_kvm();
    if (why_no_kvm) {
        qtest_add_data_func("virtio-mem/kvm", why_no_kvm, qhost_test_no_kvm);
    } else {
        add_tests(true);
    }
    ret = g_test_run();
    g_free(memory_preload_path);
    g_free(kvm_preload_path);
    return ret;
}
