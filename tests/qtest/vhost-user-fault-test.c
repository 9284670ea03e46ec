/*
 * QTest testcase for vhost-user backends that do something wrong
 *
 * QEMU has to do without a device then, and must neither abort nor hang.
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

/* The next backend is as bad. */
static bool always;

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

/* Plug and unplug memory of several memslots, which may fail. */
static void change_memory(TestVM *vm, bool may_fail)
{
    QVirtioMEM *mem = &vm->mem->mem;
    const uint64_t step = vm->config.region_size / 4;
    unsigned int i;

    for (i = 0; i < 4; i++) {
        const uint16_t type = qvirtio_mem_plug(mem, vm->config.addr + i * step,
                                               1);

        g_assert_true(type == VIRTIO_MEM_RESP_ACK || may_fail);
    }
    g_assert_cmpuint(qvirtio_mem_unplug_all(mem), ==, VIRTIO_MEM_RESP_ACK);
}

/* All that there is with a disk; returns whether it could be plugged. */
static bool use_disk(TestVM *vm, const char *path, bool may_fail)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(DISK_SLOT, 0) };
    const bool plugged = plug_disk(vm, path);

    if (plugged) {
        QVirtioPCIDevice *dev = virtio_pci_new(vm->pcibus, &addr);
        QVirtioDevice *vdev = &dev->vdev;
        QVirtQueue *vq;
        unsigned int i;

        g_assert_nonnull(dev);
        qvirtio_pci_device_enable(dev);
        for (i = 0; i < 2; i++) {
            qvirtio_start_device(vdev);
            qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                                       (1ull << VIRTIO_F_VERSION_1));
            qvirtio_config_readq(vdev, 0);
            vq = qvirtqueue_setup(vdev, &vm->alloc, 0);
            vdev->bus->set_status(vdev, vdev->bus->get_status(vdev) |
                                        VIRTIO_CONFIG_S_DRIVER_OK);
            change_memory(vm, may_fail);
            vdev->bus->set_status(vdev, 0);
            qvirtqueue_cleanup(vdev->bus, vq, &vm->alloc);
        }
        g_free(dev);
        qpci_unplug_acpi_device_test(vm->qts, "disk", DISK_SLOT);
    }
    remove_chardev(vm);
    return plugged;
}

/* Have the fault at each of the messages. */
static void test_fault(const Fault *fault, bool reconnect)
{
    TestVM *vm = vm_new(reconnect);
    unsigned int nr, count, nr_refused = 0;

    nr = 0;
    do {
        g_autofree char *path = g_strdup_printf("%s/%u", vm->tmpdir, nr);
        const gint64 t0 = g_get_monotonic_time();
        QVhostUserBackend *backend = qvhost_user_backend_new(path, MAX_REGIONS);

        g_test_message("message %u", nr);
        qvhost_user_backend_fail(backend, nr, fault->fault, always);
        nr_refused += !use_disk(vm, path, true);
        count = qvhost_user_backend_nr_messages(backend, VHOST_USER_NONE);
        qvhost_user_backend_free(backend);
        g_test_message("message %u took %d ms", nr, (int)(g_get_monotonic_time() - t0) / 1000);
        nr++;
    } while (nr < 49);
    g_test_message("%u messages, refused %u times", count, nr_refused);
    vm_free(vm);
}

static void test_without_reconnect(const void *opaque)
{
    test_fault(opaque, false);
}

static void test_with_reconnect(const void *opaque)
{
    test_fault(opaque, true);
}

/* How many messages there are if all is well */
static void test_none(void)
{
    TestVM *vm = vm_new(false);
    g_autofree char *path = g_strdup_printf("%s/backend", vm->tmpdir);
    QVhostUserBackend *backend = qvhost_user_backend_new(path, MAX_REGIONS);
    g_autofree char *error = NULL;

    g_assert_true(use_disk(vm, path, false));
    error = qvhost_user_backend_error(backend);
    g_assert_cmpstr(error, ==, NULL);
    g_test_message("%u messages",
                   qvhost_user_backend_nr_messages(backend, VHOST_USER_NONE));
    qvhost_user_backend_free(backend);
    vm_free(vm);
}

int main(int argc, char **argv)
{
    unsigned int i;

    g_test_init(&argc, &argv, NULL);
    always = getenv("ALWAYS");
    qtest_add_func("vhost-user-fault/none", test_none);
    for (i = 0; i < ARRAY_SIZE(faults); i++) {
        g_autofree char *path = g_strdup_printf("vhost-user-fault/%s",
                                                faults[i].name);
        g_autofree char *reconnect = g_strdup_printf("%s/reconnect", path);

        qtest_add_data_func(path, &faults[i], test_without_reconnect);
        qtest_add_data_func(reconnect, &faults[i], test_with_reconnect);
    }
    return g_test_run();
}
