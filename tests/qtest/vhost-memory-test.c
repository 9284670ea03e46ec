/*
 * QTest testcase for vhost devices with rings in memory that the guest takes
 * away or moves, and for their log of dirty pages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "vhost-memory/framework.h"

/* A register of the host bridge of the machine "q35" */
#define MCH_PCIEXBAR 0x60

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

/* However often memory changes, a device is broken once. */
static void test_ring_said_once(const void *opaque)
{
    TestVM *vm = vm_new(509);
    g_autofree char *said = NULL;
    unsigned int i, count = 0;
    const char *pos;

    plug(vm, VMEM_BOUNDARY - VMEM_BLOCK);
    plug(vm, VMEM_BOUNDARY);
    start_driver(vm, VMEM_ADDR + VMEM_BOUNDARY - PAGE);
    unplug(vm, VMEM_BOUNDARY);
    g_assert_true(needs_reset(vm));
    for (i = 0; i < 10; i++) {
        plug(vm, 3 * GiB);
        unplug(vm, 3 * GiB);
    }
    vm_check(vm);
    g_assert_true(g_file_get_contents(vm->stderr_path, &said, NULL, NULL));
    for (pos = said; (pos = strstr(pos, "Cannot map")); pos++) {
        count++;
    }
    g_assert_cmpuint(count, ==, 1);
    check_works(vm);
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
    TestVM *vm = vm_new_with(&(VMConfig) { .max_regions = 509, .queues = 2 });

    plug(vm, 0);
    start_driver_with(vm, VMEM_ADDR, queue);
    wait_started(vm);
    vm_check(vm);
    unplug(vm, 0);
    g_assert_null(qvhost_user_backend_memory(vm->backend, VMEM_ADDR, PAGE));
    check_gone(vm, queue);
}

/*
 * The page that the backend is notified by goes with the queue: that is another
 * change of memory, for all backends (here: one for each pair of queues).
 */
static void test_ring_notifier(const void *opaque)
{
    TestVM *vm = vm_new_with(&(VMConfig) {
        .max_regions = 509,
        .queues = 2,
        .with_notifiers = true,
        .args = "-global virtio-net-pci.page-per-vq=on",
    });

    plug(vm, 0);
    start_driver(vm, VMEM_ADDR);
    wait_started(vm);
    qvhost_user_backend_map_notifier(vm->backend, 0);
    vm_check(vm);
    unplug(vm, 0);
    check_gone(vm, 0);
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

/* With the machine "q35", a guest can have that in the way of all RAM. */
static void move_config_space(TestVM *vm, uint64_t addr)
{
    QPCIDevice *host_bridge = qpci_device_find(vm->pcibus, QPCI_DEVFN(0, 0));

    qpci_config_writel(host_bridge, MCH_PCIEXBAR + 4, addr >> 32);
    qpci_config_writel(host_bridge, MCH_PCIEXBAR, (uint32_t)addr | 1);
    g_free(host_bridge);
}

static void test_ring_hidden(const void *opaque)
{
    const unsigned int max_regions = (uintptr_t)opaque;
    const bool has_memslots = max_regions == 509;
    const uint64_t addr = VMEM_ADDR + VMEM_BOUNDARY / 2;
    TestVM *vm = vm_new_with(&(VMConfig) {
        .max_regions = max_regions,
        .machine = "q35",
    });

    plug(vm, VMEM_BOUNDARY / 2);
    start_driver(vm, addr);
    wait_started(vm);
    move_config_space(vm, addr);
    vm_check(vm);
    g_assert_cmpint(needs_reset(vm), ==, has_memslots);
    g_assert_cmpint(!qvhost_user_backend_memory(vm->backend, addr, PAGE), ==,
                    has_memslots);

    /* Memslots that consist of two parts are fine. */
    unplug(vm, VMEM_BOUNDARY / 2);
    plug(vm, VMEM_BOUNDARY / 2);
    move_config_space(vm, VMEM_ADDR + 3 * GiB);
    check_works(vm);
    stop_driver(vm);
    vm_free(vm);
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
    TestVM *vm = vm_new_with(&(VMConfig) {
        .max_regions = 509,
        .vmem_size = MANY_MEMSLOTS * GiB,
        .queues = MANY_QUEUES,
    });
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
    qtest_add_data_func("vhost-memory/ring/said-once", NULL,
                        test_ring_said_once);
    qtest_add_data_func("vhost-memory/ring/hole", NULL, test_ring_hole);
    qtest_add_data_func("vhost-memory/ring/unplugged", (void *)0,
                        test_ring_unplugged);
    qtest_add_data_func("vhost-memory/ring/unplugged-second-pair", (void *)2,
                        test_ring_unplugged);
    qtest_add_data_func("vhost-memory/ring/notifier", NULL,
                        test_ring_notifier);
    qtest_add_data_func("vhost-memory/ring/bar-gone", (void *)0,
                        test_ring_bar);
    qtest_add_data_func("vhost-memory/ring/bar-moved", (void *)1,
                        test_ring_bar);
    qtest_add_data_func("vhost-memory/ring/bar-covered", (void *)2,
                        test_ring_bar);
    qtest_add_data_func("vhost-memory/ring/hidden", (void *)509,
                        test_ring_hidden);
    qtest_add_data_func("vhost-memory/ring/hidden-whole-device", (void *)8,
                        test_ring_hidden);
    qtest_add_data_func("vhost-memory/ring/late", NULL, test_ring_late);
    qtest_add_data_func("vhost-memory/queues", NULL, test_queues);
    add_log_tests();
    return g_test_run();
}
