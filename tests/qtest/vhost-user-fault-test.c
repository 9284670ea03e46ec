/*
 * QTest testcase for vhost-user backends that do something wrong
 *
 * QEMU does without the disk then: it neither aborts nor hangs, memory can be
 * unplugged, and another disk be used.
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
#include "standard-headers/linux/virtio_config.h"

#define MEM_SLOT 3
#define DISK_SLOT 4
#define MAX_REGIONS 509
/* Until a backend that was lost is tried again */
#define RECONNECT_MS 1
#define TIMEOUT_US (30 * G_USEC_PER_SEC)

typedef struct Fault {
    const char *name;
    QVhostUserFault fault;
} Fault;

static const Fault faults[] = {
    { "close", QVHOST_USER_CLOSE },
    { "close-within", QVHOST_USER_CLOSE_WITHIN },
    { "close-after", QVHOST_USER_CLOSE_AFTER },
    { "other-request", QVHOST_USER_OTHER_REQUEST },
    { "no-reply-flag", QVHOST_USER_NO_REPLY_FLAG },
    { "empty", QVHOST_USER_EMPTY },
    { "short", QVHOST_USER_SHORT },
    { "long", QVHOST_USER_LONG },
    { "huge", QVHOST_USER_HUGE },
    { "zero", QVHOST_USER_ZERO },
    { "ones", QVHOST_USER_ONES },
};

typedef struct TestVM {
    QTestState *qts;
    QGuestAllocator alloc;
    QPCIBus *pcibus;
    QVirtioMEMPCI *mem;
    struct virtio_mem_config config;
    char *tmpdir;
    bool reconnect;
    /* Another one each time, as one that is removed may try to connect still */
    char *chardev;
    unsigned int nr_chardevs;
} TestVM;

static TestVM *vm_new(bool reconnect)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(MEM_SLOT, 0) };
    TestVM *vm = g_new0(TestVM, 1);

    vm->reconnect = reconnect;
    vm->tmpdir = g_dir_make_tmp("vhost-user-fault-XXXXXX", NULL);
    g_assert_nonnull(vm->tmpdir);
    vm->qts = qtest_init(
        "-M pc,memory-backend=ram -nodefaults -m 64M,slots=1,maxmem=64G "
        "-object memory-backend-memfd,id=ram,size=64M "
        "-object memory-backend-memfd,id=mem,size=4G,reserve=off "
        "-device virtio-mem-pci,id=vmem,memdev=mem,requested-size=4G,"
        "unplugged-inaccessible=on,dynamic-memslots=on,addr="
        stringify(MEM_SLOT));
    pc_alloc_init(&vm->alloc, vm->qts, 0);
    vm->pcibus = qpci_new_pc(vm->qts, &vm->alloc);
    vm->mem = qvirtio_mem_pci_new(vm->pcibus, &addr, &vm->alloc);
    qvirtio_mem_pci_start(vm->mem);
    qvirtio_mem_read_config(&vm->mem->mem, &vm->config);
    return vm;
}

static void vm_free(TestVM *vm)
{
    qvirtio_mem_pci_free(vm->mem);
    qpci_free_pc(vm->pcibus);
    alloc_destroy(&vm->alloc);
    qtest_quit(vm->qts);
    rmdir(vm->tmpdir);
    g_free(vm->chardev);
    g_free(vm->tmpdir);
    g_free(vm);
}

/* Returns whether it could be plugged. */
static bool plug_disk(TestVM *vm, const char *path)
{
    QDict *rsp;
    bool plugged;

    g_free(vm->chardev);
    vm->chardev = g_strdup_printf("chr%u", vm->nr_chardevs++);
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': %s, 'backend': {"
        "  'type': 'socket', 'data': { 'server': false, 'reconnect-ms': %d,"
        "  'addr': { 'type': 'unix', 'data': { 'path': %s } } } } } }",
        vm->chardev, vm->reconnect ? RECONNECT_MS : 0, path);
    rsp = qtest_qmp(vm->qts,
        "{ 'execute': 'device_add', 'arguments': { 'id': 'disk',"
        "  'driver': 'vhost-user-blk-pci', 'chardev': %s, 'addr': %s,"
        "  'queue-size': 8 } }",
        vm->chardev, stringify(DISK_SLOT));
    plugged = !qdict_haskey(rsp, "error");
    qobject_unref(rsp);
    return plugged;
}

/* The device may have it for a little longer than it is there. */
static void remove_chardev(TestVM *vm)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;

    while (true) {
        QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'chardev-remove',"
                               "  'arguments': { 'id': %s } }", vm->chardev);
        const bool removed = qdict_haskey(rsp, "return");

        qobject_unref(rsp);
        if (removed) {
            return;
        }
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/* Plug memory in several memslots, which may fail. */
static void plug_memory(TestVM *vm, bool may_fail)
{
    const uint64_t step = vm->config.region_size / 4;
    unsigned int i;

    for (i = 0; i < 4; i++) {
        const uint16_t type = qvirtio_mem_plug(&vm->mem->mem,
                                               vm->config.addr + i * step, 1);

        g_assert_true(type == VIRTIO_MEM_RESP_ACK || may_fail);
    }
}

static void unplug_memory(TestVM *vm)
{
    g_assert_cmpuint(qvirtio_mem_unplug_all(&vm->mem->mem), ==,
                     VIRTIO_MEM_RESP_ACK);
}

typedef struct Disk {
    QVirtioPCIDevice *dev;
    QVirtQueue *vq;
} Disk;

static void start_disk(TestVM *vm, Disk *disk)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(DISK_SLOT, 0) };
    QVirtioDevice *vdev;

    disk->dev = virtio_pci_new(vm->pcibus, &addr);
    g_assert_nonnull(disk->dev);
    vdev = &disk->dev->vdev;
    qvirtio_pci_device_enable(disk->dev);
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                               (1ull << VIRTIO_F_VERSION_1));
    qvirtio_config_readq(vdev, 0);
    disk->vq = qvirtqueue_setup(vdev, &vm->alloc, 0);
    /* Not by libqos, which insists on that it works. */
    vdev->bus->set_status(vdev, vdev->bus->get_status(vdev) |
                                VIRTIO_CONFIG_S_DRIVER_OK);
}

static void stop_disk(TestVM *vm, Disk *disk)
{
    disk->dev->vdev.bus->set_status(&disk->dev->vdev, 0);
    qvirtqueue_cleanup(disk->dev->vdev.bus, disk->vq, &vm->alloc);
    g_free(disk->dev);
}

static void unplug_disk(TestVM *vm)
{
    qpci_unplug_acpi_device_test(vm->qts, "disk", DISK_SLOT);
    remove_chardev(vm);
}

/* All that there is with a disk; returns whether it could be plugged. */
static bool use_disk(TestVM *vm, const char *path, bool may_fail)
{
    Disk disk;

    if (!plug_disk(vm, path)) {
        remove_chardev(vm);
        return false;
    }
    start_disk(vm, &disk);
    plug_memory(vm, may_fail);
    unplug_memory(vm);
    stop_disk(vm, &disk);
    unplug_disk(vm);
    return true;
}

/* Returns how many messages a backend gets that does nothing wrong. */
static unsigned int use_good_disk(TestVM *vm)
{
    g_autofree char *path = g_strdup_printf("%s/backend", vm->tmpdir);
    QVhostUserBackend *backend = qvhost_user_backend_new(path, MAX_REGIONS);
    g_autofree char *error = NULL;
    unsigned int count;

    g_assert_true(use_disk(vm, path, false));
    error = qvhost_user_backend_error(backend);
    g_assert_cmpstr(error, ==, NULL);
    count = qvhost_user_backend_nr_messages(backend, VHOST_USER_NONE);
    qvhost_user_backend_free(backend);
    return count;
}

/* Each time that QEMU connects, the fault is at one of the messages. */
static void test_always(const void *opaque)
{
    const Fault *fault = opaque;
    TestVM *vm = vm_new(false);
    const unsigned int count = use_good_disk(vm);
    unsigned int nr, nr_refused = 0;

    for (nr = 0; nr < count; nr++) {
        g_autofree char *path = g_strdup_printf("%s/%u", vm->tmpdir, nr);
        QVhostUserBackend *backend = qvhost_user_backend_new(path, MAX_REGIONS);

        g_test_message("message %u", nr);
        qvhost_user_backend_fail(backend, nr, fault->fault, true);
        nr_refused += !use_disk(vm, path, true);
        qvhost_user_backend_free(backend);
    }
    g_test_message("%u messages, the disk was refused %u times", count,
                   nr_refused);
    g_assert_cmpuint(nr_refused, >, 0);
    /* Nothing stays of it. */
    g_assert_cmpuint(use_good_disk(vm), ==, count);
    vm_free(vm);
}

/*
 * A disk is used when its backend goes; the next one does something wrong once,
 * and then serves it.
 */
static void test_again(const void *opaque)
{
    const Fault *fault = opaque;
    TestVM *vm = vm_new(true);
    g_autofree char *path = g_strdup_printf("%s/backend", vm->tmpdir);
    QVhostUserBackend *backend = qvhost_user_backend_new(path, MAX_REGIONS);
    Disk disk;
    unsigned int nr, count;

    g_assert_true(plug_disk(vm, path));
    start_disk(vm, &disk);
    plug_memory(vm, false);
    count = qvhost_user_backend_nr_messages(backend, VHOST_USER_NONE);
    for (nr = 0; nr < count; nr++) {
        g_test_message("message %u", nr);
        qvhost_user_backend_close(backend);
        qvhost_user_backend_fail(backend, nr, fault->fault, false);
        qvhost_user_backend_open(backend);
        qvhost_user_backend_wait(backend, VHOST_USER_SET_VRING_ENABLE, 1);
    }
    stop_disk(vm, &disk);
    unplug_memory(vm);
    unplug_disk(vm);
    qvhost_user_backend_free(backend);
    use_good_disk(vm);
    vm_free(vm);
}

int main(int argc, char **argv)
{
    unsigned int i;

    g_test_init(&argc, &argv, NULL);
    for (i = 0; i < ARRAY_SIZE(faults); i++) {
        g_autofree char *path = g_strdup_printf("vhost-user-fault/always/%s",
                                                faults[i].name);
        g_autofree char *again = g_strdup_printf("vhost-user-fault/again/%s",
                                                 faults[i].name);

        qtest_add_data_func(path, &faults[i], test_always);
        /*
         * Another payload is taken for what it says: without features, the
         * disk is started otherwise, and the number of regions may not shrink.
         */
        if (faults[i].fault <= QVHOST_USER_CLOSE_AFTER ||
            (faults[i].fault < QVHOST_USER_ZERO && g_test_slow())) {
            qtest_add_data_func(again, &faults[i], test_again);
        }
    }
    return g_test_run();
}
