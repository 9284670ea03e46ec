/*
 * QTest testcase for vhost-user devices in front of a daemon that is slow, goes
 * away or has memory mapped that is unplugged
 *
 * The daemon is the storage daemon. Devices that are no disks are served by it
 * as well: they get that far before anybody looks at a request.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_scsi.h"

#define PCI_SLOT 4
#define TIMEOUT_US (30 * G_USEC_PER_SEC)

/* Memory hotplug on PCs: select a slot, eject what is in it */
#define MEMHP_SELECT 0xa00
#define MEMHP_CONTROL 0xa14
#define MEMHP_EJECT 8

/* The daemon serves that many requests per second if it is slow. */
#define SLOW_IOPS 10
#define SLOW_REQUESTS 20

typedef struct TestVM {
    char *tmpdir;
    char *socket;
    char *disk;
    pid_t daemon;
    bool slow;
    QTestState *qts;
    QGuestAllocator alloc;
    QPCIBus *pcibus;
    QVirtioPCIDevice *dev;
    QVirtQueue *vq[2];
} TestVM;

/* ---- The daemon ---- */

static void daemon_stop(void *opaque)
{
    TestVM *vm = opaque;

    if (vm->daemon) {
        kill(vm->daemon, SIGKILL);
        waitpid(vm->daemon, NULL, 0);
        vm->daemon = 0;
    }
}

static bool daemon_is_listening(TestVM *vm)
{
    g_autofree char *sockets = NULL;

    /* Trying would be a connection; a socket may be there and not listen. */
    g_assert_true(g_file_get_contents("/proc/net/unix", &sockets, NULL, NULL));
    return strstr(sockets, vm->socket);
}

static void daemon_start(TestVM *vm)
{
    g_autofree char *file =
        g_strdup_printf("driver=file,node-name=file,filename=%s", vm->disk);
    g_autofree char *throttle =
        g_strdup_printf("throttle-group,id=group,limits.iops-total=%d",
                        vm->slow ? SLOW_IOPS : 0);
    g_autofree char *export =
        g_strdup_printf("vhost-user-blk,id=export,node-name=disk,writable=on,"
                        "num-queues=3,addr.type=unix,addr.path=%s", vm->socket);

    unlink(vm->socket);
    vm->daemon = fork();
    g_assert_cmpint(vm->daemon, >=, 0);
    if (!vm->daemon) {
        close(STDOUT_FILENO);
        open("/dev/null", O_WRONLY);
        execl(getenv("QTEST_QEMU_STORAGE_DAEMON_BINARY"), "qemu-storage-daemon",
              "--object", throttle, "--blockdev", file, "--blockdev",
              "driver=throttle,node-name=disk,throttle-group=group,file=file",
              "--export", export, NULL);
        _exit(1);
    }
    while (!daemon_is_listening(vm)) {
        g_assert_cmpint(waitpid(vm->daemon, NULL, WNOHANG), ==, 0);
        g_usleep(1000);
    }
}

/* The files in memory that a process has mapped, by inode */
static GHashTable *mapped_files(pid_t pid)
{
    GHashTable *inodes = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                               NULL);
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", pid);
    g_autofree char *maps = NULL;
    g_auto(GStrv) lines = NULL;
    unsigned int i;

    g_assert_true(g_file_get_contents(path, &maps, NULL, NULL));
    lines = g_strsplit(maps, "\n", 0);
    for (i = 0; lines[i]; i++) {
        char inode[32];

        if (strstr(lines[i], "/memfd:memory-backend-memfd") &&
            sscanf(lines[i], "%*s %*s %*s %*s %31s", inode) == 1) {
            g_hash_table_add(inodes, g_strdup(inode));
        }
    }
    return inodes;
}

static bool daemon_has_memory(TestVM *vm, unsigned int nr_backends)
{
    GHashTable *ours = mapped_files(qtest_pid(vm->qts));
    GHashTable *theirs = mapped_files(vm->daemon);
    bool same = g_hash_table_size(ours) == nr_backends &&
                g_hash_table_size(theirs) == nr_backends;
    GHashTableIter iter;
    gpointer inode;

    g_hash_table_iter_init(&iter, ours);
    while (g_hash_table_iter_next(&iter, &inode, NULL)) {
        same &= g_hash_table_contains(theirs, inode);
    }
    g_hash_table_destroy(ours);
    g_hash_table_destroy(theirs);
    return same;
}

/* Before long, the daemon has to have mapped what QEMU has. */
static void assert_daemon_has_memory(TestVM *vm, unsigned int nr_backends)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;

    while (!daemon_has_memory(vm, nr_backends)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/* ---- The VM ---- */

static TestVM *vm_new(bool slow, const char *args)
{
    TestVM *vm = g_new0(TestVM, 1);
    int fd;

    vm->tmpdir = g_dir_make_tmp("vhost-user-daemon-XXXXXX", NULL);
    g_assert_nonnull(vm->tmpdir);
    vm->socket = g_strdup_printf("%s/socket", vm->tmpdir);
    vm->disk = g_strdup_printf("%s/disk", vm->tmpdir);
    fd = open(vm->disk, O_WRONLY | O_CREAT, 0600);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, 1 * MiB), ==, 0);
    close(fd);

    vm->slow = slow;
    qtest_add_abrt_handler(daemon_stop, vm);
    daemon_start(vm);

    vm->qts = qtest_initf("-M pc,memory-backend=ram -nodefaults "
                          "-m 256M,slots=1,maxmem=1G "
                          "-object memory-backend-memfd,id=ram,size=256M %s",
                          args);
    pc_alloc_init(&vm->alloc, vm->qts, 0);
    vm->pcibus = qpci_new_pc(vm->qts, &vm->alloc);
    return vm;
}

static void vm_add_chardev(TestVM *vm)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;

    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': 'chr', 'backend': {"
        "  'type': 'socket', 'data': { 'server': false, 'reconnect-ms': 10,"
        "  'addr': { 'type': 'unix', 'data': { 'path': %s } } } } } }",
        vm->socket);

    /* It is open once its name tells of a connection. */
    while (true) {
        QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-chardev' }");
        const QListEntry *entry;
        bool open = false;

        QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
            QDict *chr = qobject_to(QDict, qlist_entry_obj(entry));

            open |= g_str_equal(qdict_get_str(chr, "label"), "chr") &&
                    g_str_has_prefix(qdict_get_str(chr, "filename"), "unix:");
        }
        qobject_unref(rsp);
        if (open) {
            break;
        }
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

static void vm_add_device(TestVM *vm, const char *driver)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(PCI_SLOT, 0) };

    vm_add_chardev(vm);
    qtest_qmp_device_add(vm->qts, driver, "dev",
                         "{ 'addr': %s, 'chardev': 'chr' }",
                         stringify(PCI_SLOT));
    vm->dev = virtio_pci_new(vm->pcibus, &addr);
    g_assert_nonnull(vm->dev);
    qvirtio_pci_device_enable(vm->dev);
}

static void vm_stop(TestVM *vm)
{
    g_free(vm->dev);
    qpci_free_pc(vm->pcibus);
    alloc_destroy(&vm->alloc);
    qtest_quit(vm->qts);

    /* Alive up to now */
    g_assert_cmpint(waitpid(vm->daemon, NULL, WNOHANG), ==, 0);
    daemon_stop(vm);
    qtest_remove_abrt_handler(vm);
    unlink(vm->socket);
    unlink(vm->disk);
    rmdir(vm->tmpdir);
    g_free(vm->socket);
    g_free(vm->disk);
    g_free(vm->tmpdir);
    g_free(vm);
}

/* Be a driver that begins to use the device, with the first @nr_queues. */
static void device_start(TestVM *vm, unsigned int nr_queues)
{
    QVirtioDevice *vdev = &vm->dev->vdev;
    unsigned int i;

    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                               (1ull << VIRTIO_F_VERSION_1));
    for (i = 0; i < nr_queues; i++) {
        vm->vq[i] = qvirtqueue_setup(vdev, &vm->alloc, i);
    }
    qvirtio_set_driver_ok(vdev);
}

static void device_stop(TestVM *vm, unsigned int nr_queues)
{
    unsigned int i;

    qvirtio_reset(&vm->dev->vdev);
    for (i = 0; i < nr_queues; i++) {
        qvirtqueue_cleanup(vm->dev->vdev.bus, vm->vq[i], &vm->alloc);
    }
}

/* Read a sector by the first queue. Returns where its status will be. */
static uint64_t disk_read(TestVM *vm)
{
    const struct virtio_blk_outhdr header = { };
    const uint64_t addr = guest_alloc(&vm->alloc, sizeof(header) + 512 + 1);
    uint32_t head;

    qtest_memwrite(vm->qts, addr, &header, sizeof(header));
    qtest_writeb(vm->qts, addr + sizeof(header) + 512, 0xff);
    head = qvirtqueue_add(vm->qts, vm->vq[0], addr, sizeof(header), false,
                          true);
    qvirtqueue_add(vm->qts, vm->vq[0], addr + sizeof(header), 512, true,
                   true);
    qvirtqueue_add(vm->qts, vm->vq[0], addr + sizeof(header) + 512, 1, true,
                   false);
    qvirtqueue_kick(vm->qts, &vm->dev->vdev, vm->vq[0], head);
    return addr + sizeof(header) + 512;
}

static unsigned int nr_used(TestVM *vm)
{
    return qtest_readw(vm->qts, vm->vq[0]->used + 2);
}

static void wait_for_used(TestVM *vm, unsigned int nr)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;

    while (nr_used(vm) != nr) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/* ---- Tests ---- */

/*
 * Memory is unplugged, and maybe other memory plugged in its place, while the
 * daemon has it mapped and the device is stopped.
 */
static void test_memory(const void *opaque)
{
    const bool replace = opaque;
    TestVM *vm = vm_new(false, "-object memory-backend-memfd,id=mem,size=256M "
                               "-device pc-dimm,id=dimm,memdev=mem");
    unsigned int i;

    vm_add_device(vm, "vhost-user-blk-pci");
    device_start(vm, 1);
    assert_daemon_has_memory(vm, 2);
    device_stop(vm, 1);

    qtest_qmp_device_del_send(vm->qts, "dimm");
    qtest_outl(vm->qts, MEMHP_SELECT, 0);
    qtest_outb(vm->qts, MEMHP_CONTROL, MEMHP_EJECT);
    qtest_qmp_eventwait(vm->qts, "DEVICE_DELETED");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'object-del',"
                             "  'arguments': { 'id': 'mem' } }");
    /* QEMU frees memory a little later, unless somebody has it still. */
    for (i = 0; i < 50 && daemon_has_memory(vm, 2); i++) {
        g_usleep(10000);
    }
    if (replace) {
        qtest_qmp_assert_success(vm->qts,
            "{ 'execute': 'object-add', 'arguments': { 'id': 'mem',"
            "  'qom-type': 'memory-backend-memfd', 'size': %d } }",
            256 * (int)MiB);
        qtest_qmp_device_add(vm->qts, "pc-dimm", "dimm", "{ 'memdev': 'mem' }");
    }

    device_start(vm, 1);
    disk_read(vm);
    wait_for_used(vm, 1);
    assert_daemon_has_memory(vm, replace ? 2 : 1);
    device_stop(vm, 1);
    vm_stop(vm);
}

/* A netdev that the daemon cannot serve is refused, once, and with a reason. */
static void test_netdev(void)
{
    TestVM *vm = vm_new(false, "");
    QDict *error;

    vm_add_chardev(vm);
    error = qtest_qmp_assert_failure_ref(vm->qts,
        "{ 'execute': 'netdev_add', 'arguments': { 'type': 'vhost-user',"
        "  'id': 'net', 'chardev': 'chr', 'queues': 4 } }");
    g_assert_cmpstr(qdict_get_str(error, "desc"), ==,
                    "you are asking more queues than supported: 3");
    qobject_unref(error);
    vm_stop(vm);
}

typedef struct Return {
    const char *driver;
    /* The device is started before the daemon is killed, ... */
    bool used;
    /* ... it is while the daemon is not there. */
    bool meanwhile;
    /* The guest reads the configuration then, too. */
    bool config;
    unsigned int nr_queues;
} Return;

/* The daemon is killed, and another one comes. */
static void test_return(const void *opaque)
{
    const Return *test = opaque;
    TestVM *vm = vm_new(false, "");
    unsigned int i;

    vm_add_device(vm, test->driver);
    if (test->used) {
        device_start(vm, test->nr_queues);
        assert_daemon_has_memory(vm, 1);
    }
    daemon_stop(vm);
    /* Time to notice */
    for (i = 0; i < 20; i++) {
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'query-status' }");
        g_usleep(5000);
    }
    if (test->config) {
        qvirtio_config_readl(&vm->dev->vdev, 0);
    }
    if (test->meanwhile) {
        if (test->used) {
            device_stop(vm, test->nr_queues);
        }
        device_start(vm, test->nr_queues);
    }

    /* It does not matter which of the two comes first. */
    daemon_start(vm);
    if (!test->used && !test->meanwhile) {
        device_start(vm, test->nr_queues);
    }
    assert_daemon_has_memory(vm, 1);
    device_stop(vm, test->nr_queues);
    vm_stop(vm);
}

static const Return returns[] = {
    { "vhost-user-blk-pci", true, false, true, 1 },
    { "vhost-user-blk-pci", true, true, true, 1 },
    { "vhost-user-blk-pci", false, false, false, 1 },
    { "vhost-user-rng-pci", true, false, false, 1 },
    { "vhost-user-rng-pci", true, true, false, 1 },
    { "vhost-user-rng-pci", false, false, false, 1 },
    { "vhost-user-gpio-pci", true, false, true, 2 },
    { "vhost-user-gpio-pci", false, true, false, 2 },
};

/*
 * A VM that is stopped finds all requests completed that it has made: nobody
 * would tell it of others, and a destination would not even have them.
 */
static void test_stop(void)
{
    TestVM *vm = vm_new(true, "");
    uint64_t status[SLOW_REQUESTS];
    unsigned int i;

    vm_add_device(vm, "vhost-user-blk-pci");
    device_start(vm, 1);
    for (i = 0; i < SLOW_REQUESTS; i++) {
        status[i] = disk_read(vm);
    }
    g_assert_cmpuint(nr_used(vm), <, SLOW_REQUESTS);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'stop' }");
    g_assert_cmpuint(nr_used(vm), ==, SLOW_REQUESTS);
    for (i = 0; i < SLOW_REQUESTS; i++) {
        g_assert_cmpuint(qtest_readb(vm->qts, status[i]), ==, VIRTIO_BLK_S_OK);
    }

    /* It goes on as if nothing had been. */
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'cont' }");
    disk_read(vm);
    wait_for_used(vm, SLOW_REQUESTS + 1);
    device_stop(vm, 1);
    vm_stop(vm);
}

/* QEMU does not like what the guest writes, but that is the guest's problem. */
static void test_config(void)
{
    TestVM *vm = vm_new(false, "");
    const uint32_t offset = offsetof(struct virtio_scsi_config, sense_size);

    vm_add_device(vm, "vhost-user-scsi-pci");
    device_start(vm, 0);
    qpci_io_writel(vm->dev->pdev, vm->dev->bar,
                   vm->dev->device_cfg_offset + offset, 1);
    g_assert_true(vm->dev->vdev.bus->get_status(&vm->dev->vdev) &
                  VIRTIO_CONFIG_S_NEEDS_RESET);
    device_stop(vm, 0);
    vm_stop(vm);
}

int main(int argc, char **argv)
{
    unsigned int i;

    g_test_init(&argc, &argv, NULL);
    if (!getenv("QTEST_QEMU_STORAGE_DAEMON_BINARY")) {
        g_test_message("QTEST_QEMU_STORAGE_DAEMON_BINARY not defined");
        return g_test_run();
    }

    qtest_add_data_func("vhost-user-daemon/memory/gone", (void *)false,
                        test_memory);
    qtest_add_data_func("vhost-user-daemon/memory/replaced", (void *)true,
                        test_memory);
    qtest_add_func("vhost-user-daemon/netdev", test_netdev);
    if (qtest_has_device("vhost-user-scsi-pci")) {
        qtest_add_func("vhost-user-daemon/config", test_config);
    }
    qtest_add_func("vhost-user-daemon/stop", test_stop);
    for (i = 0; i < ARRAY_SIZE(returns); i++) {
        const Return *test = &returns[i];
        g_autofree char *path =
            g_strdup_printf("vhost-user-daemon/return/%s/%s%s", test->driver,
                            test->used ? "used" : "unused",
                            test->meanwhile ? "-meanwhile" : "");

        if (qtest_has_device(test->driver)) {
            qtest_add_data_func(path, test, test_return);
        }
    }
    return g_test_run();
}
