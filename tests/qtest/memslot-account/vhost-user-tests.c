/*
 * Tests of vhost-user backends that are killed and come back, and of the
 * backend that all these tests use
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "standard-headers/linux/virtio_pci.h"
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PAGE (4 * KiB)

/* ---- The backend, talked to without QEMU in between ---- */

static int connect_to_backend(QVhostUserBackend *backend)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_strlcpy(addr.sun_path, qvhost_user_backend_path(backend),
              sizeof(addr.sun_path));
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    return fd;
}

/* Returns what the backend answers. */
static uint64_t send_message(int fd, VhostUserMsg *msg, uint32_t size,
                             int file)
{
    char control[CMSG_SPACE(sizeof(file))] QEMU_ALIGNED(8) = { };
    struct iovec iov = { .iov_base = msg };
    struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };
    uint64_t answer;

    msg->flags = 1 | VHOST_USER_NEED_REPLY_MASK;
    msg->size = size;
    iov.iov_len = VHOST_USER_HDR_SIZE + size;
    if (file >= 0) {
        struct cmsghdr *cmsg;

        hdr.msg_control = control;
        hdr.msg_controllen = sizeof(control);
        cmsg = CMSG_FIRSTHDR(&hdr);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(file));
        memcpy(CMSG_DATA(cmsg), &file, sizeof(file));
    }
    g_assert_cmpint(sendmsg(fd, &hdr, 0), ==, iov.iov_len);

    g_assert_cmpint(recv(fd, msg, VHOST_USER_HDR_SIZE, MSG_WAITALL), ==,
                    VHOST_USER_HDR_SIZE);
    g_assert_cmpint(msg->flags, ==, 1 | VHOST_USER_REPLY_MASK);
    g_assert_cmpint(msg->size, ==, sizeof(answer));
    g_assert_cmpint(recv(fd, &answer, sizeof(answer), MSG_WAITALL), ==,
                    sizeof(answer));
    return answer;
}

/* Memory is at addr in the process that sends it, and in its file. */
static uint64_t change_region(int fd, VhostUserRequest request, uint64_t addr,
                              uint64_t size, int file)
{
    VhostUserMsg msg = {
        .request = request,
        .payload.memreg.region = {
            .guest_phys_addr = addr,
            .memory_size = size,
            .userspace_addr = addr,
            .mmap_offset = addr,
        },
    };

    return send_message(fd, &msg, sizeof(msg.payload.memreg), file);
}

static void assert_backend_error(QVhostUserBackend **backend, int *fd,
                                 const char *expected)
{
    g_autofree char *error = qvhost_user_backend_error(*backend);
    g_autofree char *path = g_strdup(qvhost_user_backend_path(*backend));
    const uint64_t features =
        1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK |
        1ull << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;
    VhostUserMsg msg = {
        .request = VHOST_USER_SET_PROTOCOL_FEATURES,
        .payload.u64 = features,
    };

    /* It tells the first error only: go on with another one. */
    g_assert_cmpstr(error, ==, expected);
    close(*fd);
    qvhost_user_backend_free(*backend);
    *backend = qvhost_user_backend_new(path, 2);
    *fd = connect_to_backend(*backend);
    g_assert_cmpint(send_message(*fd, &msg, sizeof(features), -1), ==, 0);
}

#define add_region(...) change_region(fd, VHOST_USER_ADD_MEM_REG, __VA_ARGS__)
#define remove_region(...)                                                 \
    change_region(fd, VHOST_USER_REM_MEM_REG, __VA_ARGS__, -1)

static void test_library(const void *opaque)
{
    g_autofree char *dir = g_dir_make_tmp("memslot-account-test.XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "backend", NULL);
    QVhostUserBackend *backend = qvhost_user_backend_new(path, 2);
    int fd = connect_to_backend(backend);
    const int file = memfd_create("test", 0);
    uint8_t content[0x10];
    GArray *regions;
    void *memory;

    g_assert_cmpint(ftruncate(file, 1 * MiB), ==, 0);
    assert_backend_error(&backend, &fd, NULL);

    g_assert_cmpint(add_region(0x2000, 0x1000, file), ==, 0);
    g_assert_cmpint(add_region(0x1000, 0x1000, file), ==, 0);
    regions = qvhost_user_backend_regions(backend);
    g_assert_cmpuint(regions->len, ==, 2);
    g_assert_cmphex(g_array_index(regions, QVhostUserRegion, 0).addr, ==,
                    0x1000);
    g_assert_cmphex(g_array_index(regions, QVhostUserRegion, 1).mmap_offset,
                    ==, 0x2000);
    g_array_unref(regions);

    /* Memory is what is in the file, and nothing that is not added. */
    memory = qvhost_user_backend_memory(backend, 0x2ff0, 0x10);
    g_assert_nonnull(memory);
    memset(memory, 1, 0x10);
    g_assert_cmpint(pread(file, content, sizeof(content), 0x2ff0), ==,
                    sizeof(content));
    g_assert_cmpmem(content, sizeof(content), memory, 0x10);
    g_assert_null(qvhost_user_backend_memory(backend, 0x2ff0, 0x11));
    g_assert_null(qvhost_user_backend_memory(backend, 0xfff, 1));
    g_assert_null(qvhost_user_backend_memory(backend, 0x3000, 1));
    g_assert_cmpuint(qvhost_user_backend_log_size(backend), ==, 0);
    g_assert_false(qvhost_user_backend_log(backend, 0x2000));

    g_assert_cmpint(remove_region(0x2000, 0x1000), ==, 0);
    g_assert_cmpuint(qvhost_user_backend_nr_regions(backend), ==, 1);
    g_assert_null(qvhost_user_backend_memory(backend, 0x2000, 1));
    g_assert_cmpint(add_region(0x2000, 0x1000, file), ==, 0);
    g_assert_cmpint(add_region(0x3000, 0x1000, file), !=, 0);
    g_assert_cmpuint(qvhost_user_backend_nr_regions(backend), ==, 2);
    g_assert_cmpuint(qvhost_user_backend_nr_messages(backend,
                                                     VHOST_USER_ADD_MEM_REG),
                     ==, 4);
    assert_backend_error(&backend, &fd, "region 0x3000 is one more than 2");

    g_assert_cmpint(add_region(0x1000, 0x1000, file), ==, 0);
    g_assert_cmpint(add_region(0x1000, 0x1000, file), !=, 0);
    assert_backend_error(&backend, &fd, "region 0x1000 overlaps with 0x1000");
    g_assert_cmpint(add_region(0x1000, 0x3000, file), ==, 0);
    g_assert_cmpint(add_region(0x2000, 0x1000, file), !=, 0);
    assert_backend_error(&backend, &fd, "region 0x2000 overlaps with 0x1000");
    g_assert_cmpint(add_region(0x1000, 0x1000, file), ==, 0);
    g_assert_cmpint(remove_region(0x1000, 0x2000), !=, 0);
    assert_backend_error(&backend, &fd,
                         "region 0x1000 to be removed does not exist");
    g_assert_cmpint(add_region(0x1000, 0x1000, -1), !=, 0);
    assert_backend_error(&backend, &fd, "region with 0 files");
    g_assert_cmpint(add_region(0, 0, file), !=, 0);
    assert_backend_error(&backend, &fd, "bad range of region 0x0");
    g_assert_cmpint(add_region(0, 2 * MiB, file), !=, 0);
    assert_backend_error(&backend, &fd, "region 0x0 exceeds its file");

    /* Nothing is left when it is killed, and it can be had again. */
    g_assert_cmpint(add_region(0x1000, 0x1000, file), ==, 0);
    qvhost_user_backend_close(backend);
    g_assert_cmpuint(qvhost_user_backend_nr_regions(backend), ==, 0);
    g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    close(fd);
    qvhost_user_backend_open(backend);
    g_assert_cmpuint(qvhost_user_backend_nr_messages(backend, VHOST_USER_NONE),
                     ==, 0);
    fd = connect_to_backend(backend);
    g_assert_cmpint(add_region(0x1000, 0x1000, file), !=, 0);
    assert_backend_error(&backend, &fd, "request to change a single region");

    close(fd);
    close(file);
    qvhost_user_backend_free(backend);
    g_assert_cmpint(rmdir(dir), ==, 0);
}

void add_backend_test(void)
{
    qtest_add_data_func("memslot-account/backend", NULL, test_library);
}

/* ---- Backends that are killed, and that come back ---- */

/* A backend that was killed holds nothing, until it is back. */
static void test_restart(const TestCase *test)
{
    static const unsigned int sizes[] = {
        QVHOST_USER_BASELINE, 8, 64, 509, 32,
    };
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    const unsigned int nr_killed = ARRAY_SIZE(sizes) - 1;
    Backend *backends[ARRAY_SIZE(sizes)];
    unsigned int i;
    Mem *mem, *dimms[2];

    mem = vm_add_mem(vm, &config);
    dimms[0] = vm_add_mem(vm, &shared_dimm);
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        backends[i] = vm_add_started_backend(vm, sizes[i]);
    }
    vm_start(vm);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 4 * GiB));

    /* Life goes on meanwhile. */
    for (i = 0; i < nr_killed; i++) {
        kill_backend(vm, backends[i]);
    }
    assert_ack(plug(vm, mem, 8 * GiB, 4 * GiB));
    assert_ack(unplug(vm, mem, 0, 2 * GiB));
    dimms[1] = vm_add_mem(vm, &shared_dimm);
    vm_remove_dimm(vm, dimms[0]);

    restart_backends(vm, backends, nr_killed);
    assert_ack(plug(vm, mem, 12 * GiB, 4 * GiB));
    vm_remove_dimm(vm, dimms[1]);
    unplug_all(vm, mem);
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        vm_remove_backend(vm, backends[i]);
    }
    vm_stop(vm);
}

/* A backend that comes back and is refused is welcome once there is room. */
static void test_restart_refused(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    g_autofree char *refusal = NULL;
    Backend *backend, *other;
    unsigned int i;
    Mem *mem, *last;

    mem = vm_add_mem(vm, &config);
    for (i = vm->base_shared + 1; i < 8; i++) {
        vm_add_mem(vm, &shared_dimm);
    }
    backend = vm_add_started_backend(vm, 8);
    other = vm_add_started_backend(vm, 64);
    vm_start(vm);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 4 * GiB));

    /* With it gone, there is nothing in the way of another DIMM. */
    assert_refused(vm, &shared_dimm, NULL);
    kill_backend(vm, backend);
    last = vm_add_mem(vm, &shared_dimm);
    model_attach(vm, backend);
    refusal = model_check_backend(vm, backend);
    g_assert_nonnull(refusal);
    qvhost_user_backend_open(backend->vu);
    while (!vm_nr_warnings(vm, refusal)) {
        g_usleep(1000);
    }
    g_assert_false(holder_is_shown(vm, backend));
    vm_check(vm);
    assert_ack(plug(vm, mem, 4 * GiB, 4 * GiB));

    /* QEMU goes on trying. */
    vm_remove_dimm_unchecked(vm, last);
    expect_backends(vm, &backend, 1);
    assert_ack(plug(vm, mem, 8 * GiB, 8 * GiB));
    unplug_all(vm, mem);
    vm_remove_backend(vm, backend);
    vm_remove_backend(vm, other);
    vm_stop(vm);
}

/* ---- Behind an IOMMU, whose pages are larger than memslots ---- */

/* See the specification of VT-d. */
#define VTD_BASE 0xfed90000
#define VTD_GCMD (VTD_BASE + 0x18)
#define VTD_GCMD_TRANSLATE (1u << 31)
#define VTD_GCMD_SET_ROOT (1u << 30)
#define VTD_ROOT_TABLE (VTD_BASE + 0x20)
#define VTD_PRESENT 1
#define VTD_READ_WRITE 3
#define VTD_LARGE_PAGE (1 << 7)
#define VTD_FOUR_LEVELS 2

/* Addresses are the same behind it as before, in pages of 1 GiB. */
static void start_iommu(QTestState *qts, QGuestAllocator *alloc,
                        unsigned int devfn)
{
    const uint64_t tables = guest_alloc(alloc, 4 * PAGE);
    const uint64_t contexts = tables + PAGE, level4 = tables + 2 * PAGE;
    const uint64_t level3 = tables + 3 * PAGE;
    uint64_t i;

    g_assert_cmphex(tables % PAGE, ==, 0);
    qtest_memset(qts, tables, 0, 4 * PAGE);
    qtest_writeq(qts, tables, contexts | VTD_PRESENT);
    qtest_writeq(qts, contexts + 16 * devfn, level4 | VTD_PRESENT);
    qtest_writeq(qts, contexts + 16 * devfn + 8, 1 << 8 | VTD_FOUR_LEVELS);
    qtest_writeq(qts, level4, level3 | VTD_READ_WRITE);
    for (i = 0; i < 16; i++) {
        qtest_writeq(qts, level3 + 8 * i,
                     i * GiB | VTD_LARGE_PAGE | VTD_READ_WRITE);
    }
    qtest_writeq(qts, VTD_ROOT_TABLE, tables);
    qtest_writel(qts, VTD_GCMD, VTD_GCMD_SET_ROOT);
    qtest_writel(qts, VTD_GCMD, VTD_GCMD_TRANSLATE);
}

static void write_common(QVirtioPCIDevice *dev, unsigned int offset,
                         uint32_t value)
{
    qpci_io_writel(dev->pdev, dev->bar, dev->common_cfg_offset + offset, value);
}

/* Has its driver put the used ring, which QEMU translates, anywhere. */
static void start_with_used_ring(QOSState *qs, unsigned int slot,
                                 QVhostUserBackend *backend, uint64_t used)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(slot, 0) };
    const unsigned int count =
        qvhost_user_backend_nr_messages(backend, VHOST_USER_SET_VRING_ENABLE);
    QVirtioPCIDevice *dev = virtio_pci_new(qs->pcibus, &addr);
    QVirtioDevice *vdev = &dev->vdev;
    QVirtQueue *vq;

    qvirtio_pci_device_enable(dev);
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, 1ull << VIRTIO_F_VERSION_1 |
                               1ull << VIRTIO_F_ACCESS_PLATFORM);
    vq = qvirtqueue_setup(vdev, &qs->alloc, 0);
    write_common(dev, offsetof(struct virtio_pci_common_cfg, queue_used_lo),
                 used);
    write_common(dev, offsetof(struct virtio_pci_common_cfg, queue_used_hi),
                 used >> 32);
    qpci_io_writew(dev->pdev, dev->bar, dev->common_cfg_offset +
                   offsetof(struct virtio_pci_common_cfg, queue_enable), 1);
    qvirtio_set_driver_ok(vdev);
    qvhost_user_backend_wait(backend, VHOST_USER_SET_VRING_ENABLE, count + 1);

    g_assert_cmphex(qvhost_user_backend_translate(backend, used), ==, used);
    qvirtio_reset(vdev);
    qvirtqueue_cleanup(vdev->bus, vq, &qs->alloc);
    qvirtio_pci_destructor(&dev->obj);
    g_free(dev);
}

/* An address is found wherever it is in a page, and what else is mapped. */
static void test_iommu(const TestCase *test)
{
    g_autofree char *dir = g_dir_make_tmp("memslot-account-test.XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "backend", NULL);
    QVhostUserBackend *backend = qvhost_user_backend_new(path, 509);
    QPCIAddress addr = { .devfn = QPCI_DEVFN(4, 0) };
    struct virtio_mem_config config;
    QVirtioMEMPCI *mem;
    QOSState *qs;
    unsigned int i;
    static const uint64_t offsets[] = {
        512 * MiB, 0, 640 * MiB, 1 * GiB - 2 * MiB, 3 * GiB + 256 * MiB,
    };

    if (test->kvm) {
        g_test_skip("it is the same without");
        qvhost_user_backend_free(backend);
        g_assert_cmpint(rmdir(dir), ==, 0);
        return;
    }
    qvhost_user_backend_set_iommu(backend);
    qs = qtest_pc_boot("-nodefaults -machine q35,memory-backend=boot0"
                       " -m 128M,maxmem=8G -device intel-iommu"
                       " -object memory-backend-memfd,id=boot0,size=128M"
                       " -object memory-backend-memfd,id=mem0,size=4G"
                       " -device virtio-mem-pci,id=vm0,memdev=mem0,addr=4.0,"
                       "requested-size=4G,multiple-memslots=on,"
                       "memslot-min-size=128M"
                       " -chardev socket,id=chr0,path=%s"
                       " -device vhost-user-blk-pci,chardev=chr0,addr=5.0,"
                       "iommu_platform=on,disable-legacy=on", path);
    start_iommu(qs->qts, &qs->alloc, QPCI_DEVFN(5, 0));
    mem = qvirtio_mem_pci_new(qs->pcibus, &addr, &qs->alloc);
    qvirtio_mem_pci_start(mem);
    qvirtio_mem_read_config(&mem->mem, &config);
    g_assert_cmphex(config.addr % GiB, ==, 0);

    for (i = 0; i < ARRAY_SIZE(offsets); i++) {
        const uint64_t used = config.addr + offsets[i];
        g_autofree char *error = NULL;

        g_assert_cmpint(qvirtio_mem_plug(&mem->mem, used, 1), ==,
                        VIRTIO_MEM_RESP_ACK);
        start_with_used_ring(qs, 5, backend, used);
        start_with_used_ring(qs, 5, backend, used + MiB);
        error = qvhost_user_backend_error(backend);
        g_assert_cmpstr(error, ==, NULL);
    }

    qvirtio_mem_pci_free(mem);
    qtest_shutdown(qs);
    qvhost_user_backend_free(backend);
    g_assert_cmpint(rmdir(dir), ==, 0);
}

static const TestGroup groups[] = {
    { "restart", test_restart, .cold = true },
    { "restart-refused", test_restart_refused },
    { "iommu", test_iommu },
};

void add_vhost_user_tests(bool kvm)
{
    add_test_groups(groups, ARRAY_SIZE(groups), kvm);
}
