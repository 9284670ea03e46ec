/*
 * QTest testcases for virtio-mem: devices that are unplugged
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "checks.h"
#include "failures.h"
#include "host-memory.h"
#include "listeners.h"
#include "steps.h"
#include "tests.h"

/* Where a guest with the machine "pc" has a device of the root bus ejected */
#define ACPI_EJECT_PORT 0xae08
#define SLOT 4

/* Fails the test if the device may be unplugged, or for another reason. */
static void unplug_refused(TestVM *vm, const char *reason)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'device_del',"
                           " 'arguments': { 'id': 'vm0' } }");
    const QDict *error = qdict_get_qdict(rsp, "error");

    g_assert_nonnull(error);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), reason));
    qobject_unref(rsp);
    vm_check(vm);
}

static void request_unplug(TestVM *vm)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'device_del',"
                             " 'arguments': { 'id': 'vm0' } }");
    vm_check(vm);
}

/* First goes the virtio device, then the PCI device that it is part of. */
static void wait_until_unplugged(TestVM *vm)
{
    bool done = false;

    while (!done) {
        QDict *event = qtest_qmp_eventwait_ref(vm->qts, "DEVICE_DELETED");

        done = qdict_haskey(qdict_get_qdict(event, "data"), "device");
        qobject_unref(event);
    }
    check_all_unmapped(vm);
    device_cleanup(&vm->devices[0]);
    vm->nb_devices = 0;
}

static void eject(TestVM *vm)
{
    qtest_outl(vm->qts, ACPI_EJECT_PORT, 1 << SLOT);
    wait_until_unplugged(vm);
}

/* No memory of the device is left, nor a promise, nor a listener. */
static void check_nothing_left(TestVM *vm)
{
    assert_no_region_of_device(vm);
    check_listeners(vm);
    vm_check(vm);
}

/* The same device, with the same memory */
static void plug_device(TestVM *vm, const TestCase *test)
{
    g_autofree char *device = device_args(0, &test->config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);

    assert_hmp(vm, device_add, "");
    vm_skip_changes(vm);
    device_init(vm, 0, &test->config);
    vm_check(vm);
    check_listeners(vm);
}

/* Two blocks, in two memslots where there are several, and what is in there */
static Blocks plug_blocks(TestVM *vm)
{
    const Model *model = vm_model(vm, 0);
    const Blocks blocks = {
        .vm = vm,
        .addr = model->addr + 1 * GiB - model->block_size,
        .block_size = model->block_size,
        .count = 2,
    };
    unsigned int i;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, blocks.addr, blocks.count));
    for (i = 0; i < blocks.count; i++) {
        g_assert_cmphex(qtest_readq(vm->qts, blocks.addr +
                                    i * blocks.block_size), ==, 0);
        write_block(&blocks, i);
        check_block(&blocks, i);
    }
    check_listeners(vm);
    return blocks;
}

/* A device that has no memory plugged, nor may get any, can be unplugged. */
static void test_unplug(const TestCase *test)
{
    TestVM *vm = vm_start_with(test, &test->config, 1, TESTDEV);
    unsigned int i;

    if (!vm_model(vm, 0)->unplugged_inaccessible) {
        unplug_refused(vm, "'unplugged-inaccessible' != 'on'");
        plug_blocks(vm);
        vm_stop(vm);
        return;
    }

    for (i = 0; i < 3; i++) {
        plug_blocks(vm);
        unplug_refused(vm, "some of its memory is still plugged");
        request_size(vm, 0, 0);
        unplug_refused(vm, "some of its memory is still plugged");
        assert_ack(unplug_all(vm, 0));
        request_size(vm, 0, vm_model(vm, 0)->block_size);
        unplug_refused(vm, "'requested-size' != '0'");
        request_size(vm, 0, 0);

        request_unplug(vm);
        eject(vm);
        check_nothing_left(vm);
        plug_device(vm, test);
    }
    vm_stop(vm);
}

/* RCU is the last to let go of memory. */
static void wait_ram_block_gone(TestVM *vm, const char *name)
{
    const gint64 end = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    bool found;

    do {
        g_autofree char *blocks = qtest_hmp(vm->qts, "info ramblock");

        found = strstr(blocks, name);
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    } while (found);
}

/* The guest ejects a device with memory plugged; nobody has asked it to. */
static void test_eject(const TestCase *test)
{
    TestVM *vm;
    unsigned int i;

    if (!can_see_memory()) {
        return;
    }
    vm = vm_start_with(test, &test->config, 1, TESTDEV);
    for (i = 0; i < 3; i++) {
        const Blocks blocks = plug_blocks(vm);
        const HostMemory mem = find_host_memory(vm, 0, blocks.addr);

        check_allocated(&mem, 1, blocks.count * blocks.block_size);
        eject(vm);
        check_nothing_left(vm);
        check_allocated(&mem, 0, 0);
        if (i < 2) {
            plug_device(vm, test);
        }
    }

    /* Nobody has a reference to the memory any more, nor keeps it. */
    assert_hmp(vm, "object_del mem0", "");
    wait_ram_block_gone(vm, "mem0");
    vm_stop(vm);
}

/* The guest takes its time to answer, but gets no memory meanwhile. */
static void check_pending(TestVM *vm)
{
    const Model *model = vm_model(vm, 0);
    QDict *rsp;

    request_bad_size(vm, 0, model->region_size);
    /* What users are not meant to know: the part that is no PCI device */
    rsp = qtest_qmp_assert_failure_ref(vm->qts, "{ 'execute': 'qom-set',"
        " 'arguments': { 'path': '/machine/peripheral/vm0/virtio-backend',"
        " 'property': 'requested-size', 'value': %" PRIu64 " } }",
        model->region_size);
    g_assert_nonnull(strstr(qdict_get_str(rsp, "desc"), "process of unplug"));
    qobject_unref(rsp);
    assert_error(plug_at(vm, 0, model->addr, 1));
    assert_ack(unplug_all(vm, 0));
    qvirtio_mem_start(vm_mem(vm, 0));
    check_listeners(vm);
}

static void test_unplug_late(const TestCase *test)
{
    TestVM *vm = vm_start_with(test, &test->config, 1, TESTDEV);

    request_unplug(vm);
    check_pending(vm);
    eject(vm);
    check_nothing_left(vm);
    plug_device(vm, test);
    plug_blocks(vm);
    vm_stop(vm);
}

/* The guest does not answer, but is reset. */
static void test_unplug_by_reset(const TestCase *test)
{
    TestVM *vm = vm_start_with(test, &test->config, 1, TESTDEV);

    request_unplug(vm);
    check_pending(vm);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'system_reset' }");
    wait_until_unplugged(vm);
    check_nothing_left(vm);
    plug_device(vm, test);
    plug_blocks(vm);
    system_reset(vm);
    vm_stop(vm);
}

/*
 * What is left to be done when vCPUs can't reach unmapped memory any more is
 * done, or has been forgotten, when the device is gone. That needs a VM that
 * runs: without KVM, there still is no guest.
 */
static void test_unplug_while_running(const TestCase *test)
{
    TestVM *vm;
    unsigned int i;

    if (test->kvm) {
        g_test_skip("the guest would run");
        return;
    }
    vm = vm_start_with(test, &test->config, 1, TESTDEV);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'cont' }");
    for (i = 0; i < 10; i++) {
        Model *model = vm_model(vm, 0);

        request_size(vm, 0, model->region_size);
        change_many(vm, 0, 0, model->region_size, true);
        request_size(vm, 0, 0);
        g_assert_cmpint(qvirtio_mem_unplug_all(vm_mem(vm, 0)), ==,
                        VIRTIO_MEM_RESP_ACK);
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'device_del',"
                                 " 'arguments': { 'id': 'vm0' } }");
        eject(vm);
        if (i % 2) {
            check_nothing_left(vm);
        }
        plug_device(vm, test);
    }
    vm_stop(vm);
}

/* KVM refuses all that the guest plugs: then the device goes. */
static void test_unplug_refused_memslots(const TestCase *test)
{
    TestVM *vm;
    Model *model;

    if (!can_fail_calls()) {
        return;
    }
    vm = vm_start_with(test, &test->config, 1, TESTDEV);
    model = vm_model(vm, 0);
    request_size(vm, 0, model->region_size);
    refuse_memslots(vm, true);
    assert_busy(plug_at(vm, 0, model->addr + 1 * GiB, 1));
    refuse_memslots(vm, false);
    request_size(vm, 0, 0);
    request_unplug(vm);
    eject(vm);
    check_nothing_left(vm);
    plug_device(vm, test);
    plug_blocks(vm);
    vm_stop(vm);
}

static const NamedConfig inaccessible_configs[] = {
    { "multiple", BACKEND(RAM) },
    { "multiple-memfd", BACKEND(MEMFD) },
    { "single", SINGLE_BACKEND(RAM) },
    { }
};

static const NamedConfig multiple_configs[] = {
    { "multiple", BACKEND(RAM) },
    { }
};

static const TestGroup groups[] = {
    { "unplug", test_unplug, basic_configs, .needs_pc = true },
    { "eject", test_eject, basic_configs, .needs_pc = true },
    { "unplug-late", test_unplug_late, inaccessible_configs,
      .needs_pc = true },
    { "unplug-by-reset", test_unplug_by_reset, inaccessible_configs,
      .needs_pc = true },
    { "unplug-while-running", test_unplug_while_running, inaccessible_configs,
      .needs_pc = true },
    { "unplug-refused-memslots", test_unplug_refused_memslots,
      multiple_configs, .kvm_only = true, .needs_pc = true },
    { }
};

void add_unplug_tests(void)
{
    add_tests(groups);
}
