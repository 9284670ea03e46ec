/*
 * QTest testcase for vhost devices with rings in memory that the guest takes
 * away or moves, and for their log of dirty pages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/vhost-user-backend.h"
#include "libqos/virtio-mem.h"
#include "libqos/virtio-pci.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_net.h"
#include <sys/resource.h>

#define TIMEOUT_US (60 * G_USEC_PER_SEC)
#define PAGE (4 * KiB)
#define RAM_SIZE (128 * MiB)

#define VMEM_SLOT 4
#define SHMEM_SLOT 5
#define NET_SLOT 8
#define DISK_SLOT 9

/* A virtio-mem device, with a boundary of memslots at that offset */
#define VMEM_ADDR (4 * GiB)
#define VMEM_SIZE (4 * GiB)
#define VMEM_BOUNDARY (1 * GiB)
#define VMEM_BLOCK (2 * MiB)

/* PCI devices that share memory have a BAR of that size, anywhere. */
#define SHMEM_SIZE (1 * MiB)
#define NB_SHMEMS 2
#define SHMEM_ADDR (3 * GiB)
#define NOWHERE UINT64_MAX

/* All of a ring of that many entries, a part of which is in the way here. */
#define RING_ENTRIES 1024
#define RING_SIZE (32 * KiB)
#define DESC_SIZE (16 * RING_ENTRIES)
#define USED_OFFSET (DESC_SIZE + PAGE)

typedef struct TestVM {
    char *tmpdir;
    char *stderr_path;
    QVhostUserBackend *backend;
    QTestState *qts;
    QGuestAllocator alloc;
    QPCIBus *pcibus;
    QVirtioMEMPCI *mem;
    QPCIDevice *shmem[NB_SHMEMS];
    QVirtioPCIDevice *dev;
    QGuestAllocator ring_alloc;
    QVirtQueue *vq;
    /* how many queues had been started when the driver came last */
    unsigned int kicks;

    /* A second device, with a backend of its own, if there is to be one */
    bool with_disk;
    QVhostUserBackend *disk_backend;
    QVirtioPCIDevice *disk;
    QVirtQueue *disk_vq;
} TestVM;

/* ---- The VM ---- */

/* Returns arguments for QEMU. */
static char *add_disk(TestVM *vm)
{
    g_autofree char *socket = g_strdup_printf("%s/disk", vm->tmpdir);

    if (!vm->with_disk) {
        return g_strdup("");
    }
    vm->disk_backend = qvhost_user_backend_new(socket, 509);
    return g_strdup_printf("-chardev socket,id=disk,path=%s "
                           "-device vhost-user-blk-pci,chardev=disk,addr=%x.0",
                           socket, DISK_SLOT);
}

/* @queues: how many pairs of queues the network device has */
static void G_GNUC_PRINTF(5, 6) vm_start(TestVM *vm, unsigned int max_regions,
                                         uint64_t vmem_size,
                                         unsigned int queues,
                                         const char *fmt, ...)
{
    QPCIAddress mem_addr = { .devfn = QPCI_DEVFN(VMEM_SLOT, 0) };
    QPCIAddress net_addr = { .devfn = QPCI_DEVFN(NET_SLOT, 0) };
    QPCIAddress disk_addr = { .devfn = QPCI_DEVFN(DISK_SLOT, 0) };
    g_autofree char *args = NULL;
    g_autofree char *disk = NULL;
    g_autofree char *socket = NULL;
    va_list ap;
    unsigned int i;

    va_start(ap, fmt);
    args = g_strdup_vprintf(fmt, ap);
    va_end(ap);

    vm->tmpdir = g_dir_make_tmp("vhost-memory-test-XXXXXX", NULL);
    g_assert_nonnull(vm->tmpdir);
    vm->stderr_path = g_strdup_printf("%s/stderr", vm->tmpdir);
    socket = g_strdup_printf("%s/backend", vm->tmpdir);
    vm->backend = qvhost_user_backend_new(socket, max_regions);
    disk = add_disk(vm);

    vm->qts = qtest_initf("-M pc,memory-backend=ram -nodefaults "
        "-m 128M,maxmem=%" PRIu64 "B "
        "-object memory-backend-memfd,id=ram,size=128M "
        "-object memory-backend-memfd,id=vmem,size=%" PRIu64
        "B,reserve=off "
        "-device virtio-mem-pci,id=vmem0,memdev=vmem,addr=%x.0,memaddr=0x%"
        PRIx64 ",block-size=2M,requested-size=%" PRIu64 "B,dynamic-memslots=on,"
        "unplugged-inaccessible=on "
        "-object memory-backend-memfd,id=shmem0,size=1M "
        "-object memory-backend-memfd,id=shmem1,size=1M "
        "-device ivshmem-plain,memdev=shmem0,master=on,addr=%x.0 "
        "-device ivshmem-plain,memdev=shmem1,master=on,addr=%x.0 "
        "-chardev socket,id=chr,path=%s "
        "-netdev vhost-user,id=net,chardev=chr,queues=%u "
        "-device virtio-net-pci,id=net0,netdev=net,addr=%x.0,mq=on,"
        "mac=52:54:00:12:34:56,rx_queue_size=%d %s %s 2>%s",
        RAM_SIZE + vmem_size, vmem_size, VMEM_SLOT, (uint64_t)VMEM_ADDR,
        vmem_size, SHMEM_SLOT, SHMEM_SLOT + 1, socket, queues, NET_SLOT,
        RING_ENTRIES, disk, args, vm->stderr_path);

    pc_alloc_init(&vm->alloc, vm->qts, 0);
    vm->pcibus = qpci_new_pc(vm->qts, &vm->alloc);
    for (i = 0; i < NB_SHMEMS; i++) {
        vm->shmem[i] = qpci_device_find(vm->pcibus,
                                        QPCI_DEVFN(SHMEM_SLOT + i, 0));
        g_assert_nonnull(vm->shmem[i]);
    }
    vm->mem = qvirtio_mem_pci_new(vm->pcibus, &mem_addr, &vm->alloc);
    vm->dev = virtio_pci_new(vm->pcibus, &net_addr);
    g_assert_nonnull(vm->dev);
    if (vm->with_disk) {
        vm->disk = virtio_pci_new(vm->pcibus, &disk_addr);
        g_assert_nonnull(vm->disk);
    }
}

/* What a driver finds when it comes, unless the VM is to be migrated to */
static TestVM *vm_new_with(unsigned int max_regions, uint64_t vmem_size,
                           unsigned int queues, bool with_disk)
{
    TestVM *vm = g_new0(TestVM, 1);

    vm->with_disk = with_disk;
    vm_start(vm, max_regions, vmem_size, queues, "%s", "");
    qvirtio_pci_device_enable(vm->dev);
    qvirtio_mem_pci_start(vm->mem);
    return vm;
}

static TestVM *vm_new(unsigned int max_regions)
{
    return vm_new_with(max_regions, VMEM_SIZE, 1, false);
}

static void free_ring(TestVM *vm)
{
    if (vm->vq) {
        qvirtqueue_cleanup(vm->dev->vdev.bus, vm->vq, &vm->ring_alloc);
        alloc_destroy(&vm->ring_alloc);
        vm->vq = NULL;
    }
}

/* QEMU is alive, and has not sent anything that no backend takes. */
static void vm_check(TestVM *vm)
{
    g_autofree char *error = qvhost_user_backend_error(vm->backend);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'query-status' }");
    g_assert_cmpstr(error, ==, NULL);
    if (vm->with_disk) {
        g_autofree char *disk_error =
            qvhost_user_backend_error(vm->disk_backend);

        g_assert_cmpstr(disk_error, ==, NULL);
    }
}

static void vm_free(TestVM *vm)
{
    unsigned int i;

    vm_check(vm);
    free_ring(vm);
    qvirtio_mem_pci_free(vm->mem);
    qvirtio_pci_destructor(&vm->dev->obj);
    g_free(vm->dev);
    if (vm->disk_vq) {
        qvirtqueue_cleanup(vm->disk->vdev.bus, vm->disk_vq, &vm->alloc);
    }
    if (vm->disk) {
        qvirtio_pci_destructor(&vm->disk->obj);
        g_free(vm->disk);
    }
    for (i = 0; i < NB_SHMEMS; i++) {
        g_free(vm->shmem[i]);
    }
    qpci_free_pc(vm->pcibus);
    alloc_destroy(&vm->alloc);
    qtest_quit(vm->qts);
    qvhost_user_backend_free(vm->backend);
    qvhost_user_backend_free(vm->disk_backend);
    unlink(vm->stderr_path);
    rmdir(vm->tmpdir);
    g_free(vm->stderr_path);
    g_free(vm->tmpdir);
    g_free(vm);
}

static bool vm_has_said(TestVM *vm, const char *text)
{
    g_autofree char *said = NULL;

    g_assert_true(g_file_get_contents(vm->stderr_path, &said, NULL, NULL));
    return strstr(said, text);
}

/* ---- Memory ---- */

static void plug(TestVM *vm, uint64_t offset)
{
    g_assert_cmpint(qvirtio_mem_plug(&vm->mem->mem, VMEM_ADDR + offset, 1), ==,
                    VIRTIO_MEM_RESP_ACK);
}

static void unplug(TestVM *vm, uint64_t offset)
{
    g_assert_cmpint(qvirtio_mem_unplug(&vm->mem->mem, VMEM_ADDR + offset, 1),
                    ==, VIRTIO_MEM_RESP_ACK);
}

/* Have the memory of a PCI device at that address. */
static void move_shmem(TestVM *vm, unsigned int i, uint64_t addr)
{
    QPCIDevice *dev = vm->shmem[i];

    if (addr == NOWHERE) {
        qpci_config_writew(dev, PCI_COMMAND, 0);
        return;
    }
    qpci_config_writel(dev, PCI_BASE_ADDRESS_2, addr);
    qpci_config_writel(dev, PCI_BASE_ADDRESS_3, addr >> 32);
    qpci_config_writew(dev, PCI_COMMAND, PCI_COMMAND_MEMORY);
}

/* ---- The driver of the network device ---- */

static void start_driver_with(TestVM *vm, uint64_t ring, unsigned int queue)
{
    QVirtioDevice *vdev = &vm->dev->vdev;

    free_ring(vm);
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                               (1ull << VIRTIO_F_VERSION_1 |
                                1ull << VIRTIO_NET_F_CTRL_VQ |
                                1ull << VIRTIO_NET_F_MQ));
    alloc_init(&vm->ring_alloc, 0, ring, ring + RING_SIZE, PAGE);
    vm->vq = qvirtqueue_setup(vdev, &vm->ring_alloc, queue);
    g_assert_cmpuint(vm->vq->size, ==, RING_ENTRIES);
    g_assert_cmphex(vm->vq->used, ==, ring + USED_OFFSET);
    vm->kicks = qvhost_user_backend_nr_messages(vm->backend,
                                                VHOST_USER_SET_VRING_KICK);
    qvirtio_set_driver_ok(vdev);
}

static void start_driver(TestVM *vm, uint64_t ring)
{
    start_driver_with(vm, ring, 0);
}

/* QEMU does not wait for the backend to start a queue. */
static void wait_started(TestVM *vm)
{
    qvhost_user_backend_wait(vm->backend, VHOST_USER_SET_VRING_KICK,
                             vm->kicks + 1);
    g_assert_true(qvhost_user_backend_started(vm->backend));
}

static void stop_driver(TestVM *vm)
{
    qvirtio_reset(&vm->dev->vdev);
    g_assert_false(qvhost_user_backend_started(vm->backend));
}

static bool needs_reset(TestVM *vm)
{
    return vm->dev->vdev.bus->get_status(&vm->dev->vdev) &
           VIRTIO_CONFIG_S_NEEDS_RESET;
}

/* Somewhere in boot memory, where nobody has anything against it. */
static void check_works(TestVM *vm)
{
    start_driver(vm, guest_alloc(&vm->alloc, RING_SIZE));
    wait_started(vm);
    g_assert_false(needs_reset(vm));
    vm_check(vm);
}

static void start_disk(TestVM *vm)
{
    QVirtioDevice *vdev = &vm->disk->vdev;

    qvirtio_pci_device_enable(vm->disk);
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                               (1ull << VIRTIO_F_VERSION_1));
    vm->disk_vq = qvirtqueue_setup(vdev, &vm->alloc, 0);
    qvirtio_set_driver_ok(vdev);
    qvhost_user_backend_wait(vm->disk_backend, VHOST_USER_SET_VRING_KICK, 1);
}

/* ---- Rings ---- */

/* The backend has what it needs, with the protocol as it was at first. */
static void test_features(const void *opaque)
{
    TestVM *vm = vm_new(QVHOST_USER_NO_PROTOCOL_FEATURES);

    check_works(vm);
    g_assert_cmpuint(qvhost_user_backend_nr_regions(vm->backend), >=, 1);
    g_assert_nonnull(qvhost_user_backend_memory(vm->backend, vm->vq->desc,
                                                RING_SIZE));
    plug(vm, 0);
    plug(vm, VMEM_BOUNDARY);
    vm_check(vm);
    g_assert_nonnull(qvhost_user_backend_memory(vm->backend, VMEM_ADDR,
                                                VMEM_BLOCK));
    stop_driver(vm);
    vm_free(vm);
}

/*
 * The backend would find the start of a ring, and look behind the memory for
 * the rest.
 */
static void test_ring_across(const void *opaque)
{
    const uint64_t before = (uintptr_t)opaque;
    TestVM *vm = vm_new(509);

    plug(vm, VMEM_BOUNDARY - VMEM_BLOCK);
    plug(vm, VMEM_BOUNDARY);
    start_driver(vm, VMEM_ADDR + VMEM_BOUNDARY - before);
    vm_check(vm);
    g_assert_false(qvhost_user_backend_started(vm->backend));
    g_assert_true(vm_has_said(vm, before < DESC_SIZE ?
                  "net0: queue 0 cannot be used by vhost: its descriptor table"
                  " at " :
                  "net0: queue 0 cannot be used by vhost: its used ring at "));

    /* Nothing comes of it later. */
    plug(vm, 3 * GiB);
    unplug(vm, 3 * GiB);
    g_assert_false(needs_reset(vm));
    vm_check(vm);
    check_works(vm);
    plug(vm, 3 * GiB);
    stop_driver(vm);
    vm_free(vm);
}

/* One that is shown whole devices has it in one piece. */
static void test_ring_whole(const void *opaque)
{
    TestVM *vm = vm_new(8);

    plug(vm, VMEM_BOUNDARY - VMEM_BLOCK);
    plug(vm, VMEM_BOUNDARY);
    start_driver(vm, VMEM_ADDR + VMEM_BOUNDARY - PAGE);
    wait_started(vm);
    plug(vm, 3 * GiB);
    unplug(vm, VMEM_BOUNDARY);
    unplug(vm, VMEM_BOUNDARY - VMEM_BLOCK);
    vm_check(vm);
    stop_driver(vm);
    check_works(vm);
    stop_driver(vm);
    vm_free(vm);
}

/* There never is memory, or there is later. */
static void test_ring_hole(const void *opaque)
{
    TestVM *vm = vm_new(509);

    start_driver(vm, SHMEM_ADDR);
    vm_check(vm);
    g_assert_false(qvhost_user_backend_started(vm->backend));
    move_shmem(vm, 0, SHMEM_ADDR);
    vm_check(vm);
    start_driver(vm, SHMEM_ADDR);
    wait_started(vm);
    vm_check(vm);
    stop_driver(vm);
    vm_free(vm);
}

/* The memory of a ring goes away while the backend looks at it. */
static void check_gone(TestVM *vm, unsigned int queue)
{
    g_autofree char *said = g_strdup_printf("net0: queue %u was stopped: its"
                                            " descriptor table at ", queue);

    vm_check(vm);
    g_assert_true(needs_reset(vm));
    g_assert_false(qvhost_user_backend_started(vm->backend));
    g_assert_true(vm_has_said(vm, said));
    /* The backend knows what there is now. */
    plug(vm, 3 * GiB);
    g_assert_nonnull(qvhost_user_backend_memory(vm->backend,
                                                VMEM_ADDR + 3 * GiB,
                                                VMEM_BLOCK));
    vm_check(vm);

    /* A reset makes up for it. */
    check_works(vm);
    stop_driver(vm);
    vm_free(vm);
}

/* The queue may be one of another pair than the first one. */
static void test_ring_unplugged(const void *opaque)
{
    const unsigned int queue = (uintptr_t)opaque;
    TestVM *vm = vm_new_with(509, VMEM_SIZE, 2, false);

    plug(vm, 0);
    start_driver_with(vm, VMEM_ADDR, queue);
    wait_started(vm);
    vm_check(vm);
    unplug(vm, 0);
    g_assert_null(qvhost_user_backend_memory(vm->backend, VMEM_ADDR, PAGE));
    check_gone(vm, queue);
}

/* Its BAR is gone, elsewhere, or below another one. */
static void test_ring_bar(const void *opaque)
{
    const unsigned int how = (uintptr_t)opaque;
    TestVM *vm = vm_new(509);

    move_shmem(vm, 0, SHMEM_ADDR);
    move_shmem(vm, 1, SHMEM_ADDR + SHMEM_SIZE);
    start_driver(vm, SHMEM_ADDR + 512 * KiB);
    wait_started(vm);
    vm_check(vm);
    switch (how) {
    case 0:
        move_shmem(vm, 0, NOWHERE);
        break;
    case 1:
        move_shmem(vm, 0, 1 * TiB);
        break;
    case 2:
        move_shmem(vm, 1, SHMEM_ADDR);
        break;
    }
    check_gone(vm, 0);
}

/* QEMU is not to be fooled by addresses that are set too late. */
static void test_ring_late(const void *opaque)
{
    TestVM *vm = vm_new(509);
    QGuestAllocator *alloc = &vm->alloc;
    QVirtQueue *vq;

    check_works(vm);
    vq = qvirtqueue_setup(&vm->dev->vdev, alloc, 1);
    stop_driver(vm);
    qvirtqueue_cleanup(vm->dev->vdev.bus, vq, alloc);
    check_works(vm);
    stop_driver(vm);
    vm_free(vm);
}

/* ---- Queues ---- */

#define MANY_QUEUES 16
#define MANY_MEMSLOTS 256

static unsigned int nr_added(TestVM *vm)
{
    return qvhost_user_backend_nr_messages(vm->backend,
                                           VHOST_USER_ADD_MEM_REG);
}

/* However many queues a device has, it is told once, and counts once. */
static void test_queues(const void *opaque)
{
    TestVM *vm = vm_new_with(509, MANY_MEMSLOTS * GiB, MANY_QUEUES, false);
    unsigned int i, added, vhosts = 0;
    const QListEntry *entry;
    QDict *rsp;

    check_works(vm);
    added = nr_added(vm);
    for (i = 0; i < MANY_MEMSLOTS; i++) {
        plug(vm, i * GiB);
        g_assert_cmpuint(nr_added(vm), ==, added + i + 1);
    }

    rsp = qtest_qmp_assert_success_ref(vm->qts,
                                       "{ 'execute': 'query-memslots' }");
    g_assert_cmpint(qdict_get_int(rsp, "required"), ==, MANY_MEMSLOTS);
    g_assert_cmpint(qdict_get_int(rsp, "used"), ==, MANY_MEMSLOTS);
    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "holders"), entry) {
        const QDict *holder = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(holder, "type"), "vhost")) {
            vhosts++;
            g_assert_cmpstr(qdict_get_str(holder, "id"), ==, "chr");
            g_assert_cmpint(qdict_get_int(holder, "used"), ==,
                            qvhost_user_backend_nr_regions(vm->backend));
            g_assert_cmpint(qdict_get_int(holder, "limit"), ==, 509);
        }
    }
    g_assert_cmpuint(vhosts, ==, 1);
    qobject_unref(rsp);
    stop_driver(vm);
    vm_free(vm);
}

/* ---- The log of dirty pages ---- */

/* Memory that takes long to be sent */
#define SCRATCH_SIZE (16 * MiB)

/* Pages in a virtio-mem device, and one in a BAR */
#define PAGE_ADDR(i) (VMEM_ADDR + (i) * PAGE)
#define SHMEM_OFFSET (64 * KiB)

static void wait_for_log(QVhostUserBackend *backend)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;

    while (!qvhost_user_backend_log(backend, PAGE_ADDR(0))) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/* Track dirty pages for a minute, which is the longest. */
static void measure_dirty_rate(TestVM *vm, unsigned int seconds)
{
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'calc-dirty-rate', 'arguments': {"
        "  'calc-time': %u, 'mode': 'dirty-bitmap' } }", seconds);
}

static char *dirty_rate_status(TestVM *vm)
{
    QDict *rsp = qtest_qmp_assert_success_ref(vm->qts,
        "{ 'execute': 'query-dirty-rate' }");
    char *status = g_strdup(qdict_get_str(rsp, "status"));

    qobject_unref(rsp);
    return status;
}

static void wait_dirty_rate(TestVM *vm, const char *expected)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;
    g_autofree char *status = dirty_rate_status(vm);

    while (!g_str_equal(status, expected)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
        g_free(status);
        status = dirty_rate_status(vm);
    }
}

/* The files of QEMU: how many are logs; what the first is that is not open */
static unsigned int count_logs(TestVM *vm, unsigned int *first_free)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd",
                                            qtest_pid(vm->qts));
    unsigned int count = 0, fd;

    for (fd = 0; fd < 1024; fd++) {
        g_autofree char *link = g_strdup_printf("%s/%u", path, fd);
        g_autofree char *file = g_file_read_link(link, NULL);

        if (!file) {
            *first_free = MIN(*first_free, fd);
        } else if (strstr(file, "memfd:vhost-log")) {
            count++;
        }
    }
    return count;
}

/* Let QEMU open no more files. Returns what it could have before. */
static struct rlimit forbid_files(TestVM *vm)
{
    struct rlimit before, limit;
    unsigned int first_free = UINT_MAX;

    count_logs(vm, &first_free);
    g_assert_cmpint(prlimit(qtest_pid(vm->qts), RLIMIT_NOFILE, NULL, &before),
                    ==, 0);
    limit = before;
    limit.rlim_cur = first_free;
    g_assert_cmpint(prlimit(qtest_pid(vm->qts), RLIMIT_NOFILE, &limit, NULL),
                    ==, 0);
    return before;
}

static void allow_files(TestVM *vm, struct rlimit limit)
{
    g_assert_cmpint(prlimit(qtest_pid(vm->qts), RLIMIT_NOFILE, &limit, NULL),
                    ==, 0);
}

/* It is there once, and does not get smaller while it is in use. */
static void test_log_size(const void *opaque)
{
    static const uint64_t addrs[] = {
        1 * TiB, 2 * TiB, 4 * TiB, NOWHERE, SHMEM_ADDR, 4 * TiB, 512 * GiB,
        8 * TiB, NOWHERE,
    };
    TestVM *vm = vm_new(509);
    uint64_t size = 0;
    unsigned int i, unused;

    plug(vm, 0);
    check_works(vm);
    measure_dirty_rate(vm, 60);
    wait_for_log(vm->backend);
    for (i = 0; i < ARRAY_SIZE(addrs); i++) {
        move_shmem(vm, 0, addrs[i]);
        plug(vm, 2 * GiB);
        unplug(vm, 2 * GiB);
        vm_check(vm);
        g_assert_cmpuint(qvhost_user_backend_log_size(vm->backend), >=, size);
        size = qvhost_user_backend_log_size(vm->backend);
        g_assert_cmpuint(count_logs(vm, &unused), ==, 1);
    }
    stop_driver(vm);
    g_assert_cmpuint(count_logs(vm, &unused), ==, 0);
    vm_free(vm);
}

/* Nothing is measured if it cannot be, and that is all. */
static void test_log_start_fails(const void *opaque)
{
    TestVM *vm = vm_new(509);
    struct rlimit limit;
    unsigned int unused;

    plug(vm, 0);
    check_works(vm);
    limit = forbid_files(vm);
    measure_dirty_rate(vm, 1);
    wait_dirty_rate(vm, "unstarted");
    g_assert_true(vm_has_said(vm, "vhost: Failed to start logging"));
    g_assert_false(qvhost_user_backend_log(vm->backend, PAGE_ADDR(0)));
    allow_files(vm, limit);
    vm_check(vm);

    measure_dirty_rate(vm, 1);
    wait_dirty_rate(vm, "measured");
    g_assert_cmpuint(qvhost_user_backend_log_size(vm->backend), >, 0);
    g_assert_cmpuint(count_logs(vm, &unused), ==, 0);
    stop_driver(vm);
    vm_free(vm);
}

/* ---- What the log is for ---- */

static int64_t migration_ram(TestVM *vm, const char *key)
{
    QDict *rsp = qtest_qmp_assert_success_ref(vm->qts,
        "{ 'execute': 'query-migrate' }");
    int64_t value = 0;

    if (qdict_haskey(rsp, "ram")) {
        value = qdict_get_int(qdict_get_qdict(rsp, "ram"), key);
    }
    qobject_unref(rsp);
    return value;
}

static void wait_migrated(TestVM *vm)
{
    const char *status = NULL;

    while (g_strcmp0(status, "completed")) {
        QDict *rsp = qtest_qmp_assert_success_ref(vm->qts,
            "{ 'execute': 'query-migrate' }");

        status = g_intern_string(qdict_get_try_str(rsp, "status"));
        qobject_unref(rsp);
        g_assert_cmpstr(status, !=, "failed");
        g_usleep(1000);
    }
}

static void set_limits(TestVM *vm, unsigned int bandwidth,
                       unsigned int downtime)
{
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'max-bandwidth': %u, 'downtime-limit': %u } }",
        bandwidth, downtime);
}

/*
 * All has been sent once, and what is to be sent again takes hours, when this
 * returns.
 */
static TestVM *start_migration(TestVM *vm)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", vm->tmpdir);
    const uint64_t scratch = guest_alloc(&vm->alloc, SCRATCH_SIZE);
    TestVM *target = g_new0(TestVM, 1);
    uint8_t content = 1;

    target->with_disk = vm->with_disk;
    vm_start(target, 509, VMEM_SIZE, 1, "-incoming %s", uri);
    set_limits(vm, 10 * MiB, 1);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate',"
                             "  'arguments': { 'uri': %s } }", uri);
    while (migration_ram(vm, "dirty-sync-count") < 2) {
        qtest_memset(vm->qts, scratch, content++, SCRATCH_SIZE);
    }
    set_limits(vm, 1000, 1);
    qtest_memset(vm->qts, scratch, content, SCRATCH_SIZE);
    wait_for_log(vm->backend);
    if (vm->with_disk) {
        wait_for_log(vm->disk_backend);
    }
    return target;
}

static void finish_migration(TestVM *vm, TestVM *target)
{
    g_autofree char *socket = g_strdup_printf("%s/migration", vm->tmpdir);

    /* It does not converge if all is dirty. */
    set_limits(vm, 0, 60000);
    wait_migrated(vm);
    wait_migrated(target);
    unlink(socket);
}

/* Write to memory by way of the backend, and tell of it or not. */
static void backend_write(QVhostUserBackend *backend, uint64_t addr, bool log)
{
    void *memory = qvhost_user_backend_memory(backend, addr, PAGE);

    g_assert_nonnull(memory);
    memset(memory, 2, PAGE);
    if (log) {
        g_assert_true(qvhost_user_backend_log(backend, addr));
    }
}

/* The log is replaced in the middle of a migration, and memory moves. */
static void test_log_moves(const void *opaque)
{
    const bool with_disk = opaque;
    TestVM *vm = vm_new_with(509, VMEM_SIZE, 1, with_disk), *target;
    QVhostUserBackend *backends[] = { vm->backend, vm->disk_backend };
    unsigned int i;

    plug(vm, 0);
    move_shmem(vm, 0, SHMEM_ADDR);
    check_works(vm);
    if (with_disk) {
        start_disk(vm);
    }
    target = start_migration(vm);

    /* Each writes to pages of its own. */
    for (i = 0; i <= with_disk; i++) {
        backend_write(backends[i], PAGE_ADDR(4 + i), true);
        backend_write(backends[i], SHMEM_ADDR + SHMEM_OFFSET + i * PAGE, true);
    }
    /* The test would prove nothing if this one arrived. */
    backend_write(vm->backend, PAGE_ADDR(2), false);
    move_shmem(vm, 0, 1 * TiB);
    for (i = 0; i <= with_disk; i++) {
        backend_write(backends[i], PAGE_ADDR(8 + i), true);
        backend_write(backends[i], 1 * TiB + SHMEM_OFFSET + (4 + i) * PAGE,
                      true);
    }
    move_shmem(vm, 0, SHMEM_ADDR);
    for (i = 0; i <= with_disk; i++) {
        backend_write(backends[i], PAGE_ADDR(12 + i), true);
    }

    finish_migration(vm, target);
    g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(2)), ==, 0);
    for (i = 0; i <= with_disk; i++) {
        const uint64_t shmem = SHMEM_ADDR + SHMEM_OFFSET + i * PAGE;

        g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(4 + i)), ==, 2);
        g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(8 + i)), ==, 2);
        g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(12 + i)), ==, 2);
        g_assert_cmpint(qtest_readb(target->qts, shmem), ==, 2);
        g_assert_cmpint(qtest_readb(target->qts, shmem + 4 * PAGE), ==, 2);
    }
    vm_free(target);
    vm_free(vm);
}

/* The log cannot become larger: all is dirty then, also what nobody tells. */
static void test_log_growth_fails(const void *opaque)
{
    TestVM *vm = vm_new(509), *target;
    struct rlimit limit;

    plug(vm, 0);
    move_shmem(vm, 0, SHMEM_ADDR);
    check_works(vm);
    target = start_migration(vm);

    backend_write(vm->backend, PAGE_ADDR(1), true);
    limit = forbid_files(vm);
    move_shmem(vm, 0, 1 * TiB);
    g_assert_true(vm_has_said(vm, "vhost cannot log dirty pages any more: all"
                              " pages count as dirty that it can write to"));
    g_assert_false(qvhost_user_backend_log(vm->backend, PAGE_ADDR(0)));
    backend_write(vm->backend, PAGE_ADDR(2), false);
    backend_write(vm->backend, 1 * TiB + SHMEM_OFFSET, false);
    allow_files(vm, limit);
    vm_check(vm);

    finish_migration(vm, target);
    g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(1)), ==, 2);
    g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(2)), ==, 2);
    g_assert_cmpint(qtest_readb(target->qts, 1 * TiB + SHMEM_OFFSET), ==, 2);
    vm_free(target);
    vm_free(vm);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_data_func("vhost-memory/features/none", NULL, test_features);
    qtest_add_data_func("vhost-memory/ring/across-descriptors",
                        (void *)(2 * PAGE), test_ring_across);
    qtest_add_data_func("vhost-memory/ring/across-used",
                        (void *)(USED_OFFSET + PAGE), test_ring_across);
    qtest_add_data_func("vhost-memory/ring/whole-device", NULL,
                        test_ring_whole);
    qtest_add_data_func("vhost-memory/ring/hole", NULL, test_ring_hole);
    qtest_add_data_func("vhost-memory/ring/unplugged", (void *)0,
                        test_ring_unplugged);
    qtest_add_data_func("vhost-memory/ring/unplugged-second-pair", (void *)2,
                        test_ring_unplugged);
    qtest_add_data_func("vhost-memory/ring/bar-gone", (void *)0,
                        test_ring_bar);
    qtest_add_data_func("vhost-memory/ring/bar-moved", (void *)1,
                        test_ring_bar);
    qtest_add_data_func("vhost-memory/ring/bar-covered", (void *)2,
                        test_ring_bar);
    qtest_add_data_func("vhost-memory/ring/late", NULL, test_ring_late);
    qtest_add_data_func("vhost-memory/queues", NULL, test_queues);
    qtest_add_data_func("vhost-memory/log/size", NULL, test_log_size);
    qtest_add_data_func("vhost-memory/log/start-fails", NULL,
                        test_log_start_fails);
    qtest_add_data_func("vhost-memory/log/moves", (void *)false,
                        test_log_moves);
    if (qtest_has_device("vhost-user-blk-pci")) {
        qtest_add_data_func("vhost-memory/log/moves-shared", (void *)true,
                            test_log_moves);
    }
    qtest_add_data_func("vhost-memory/log/growth-fails", NULL,
                        test_log_growth_fails);
    return g_test_run();
}
