/*
 * QTest testcases for virtio-mem: resets
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "checks.h"
#include "host-memory.h"
#include "listeners.h"
#include "steps.h"
#include "tests.h"

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

/* The power management of the machine "pc"; firmware chooses the port. */
#define PM_DEVFN QPCI_DEVFN(1, 3)
#define PM_CONFIG_BASE 0x40
#define PM_CONFIG_ENABLE 0x80
#define PM_PORT 0xb000
#define PM1_CONTROL_PORT (PM_PORT + 4)
#define PM1_SLEEP_TYPE_TO_RAM (1 << 10)
#define PM1_SLEEP_ENABLE (1 << 13)

static void suspend_to_ram(TestVM *vm)
{
    QPCIDevice *pm = qpci_device_find(vm->qs->pcibus, PM_DEVFN);

    g_assert_nonnull(pm);
    qpci_config_writel(pm, PM_CONFIG_BASE, PM_PORT | 1);
    qpci_config_writeb(pm, PM_CONFIG_ENABLE, 1);
    g_free(pm);
    qtest_outw(vm->qts, PM1_CONTROL_PORT,
               PM1_SLEEP_TYPE_TO_RAM | PM1_SLEEP_ENABLE);
    qtest_qmp_eventwait(vm->qts, "SUSPEND");
}

/*
 * When the machine wakes up, all its devices are reset, as is the PCI device
 * that this one is part of: but the guest goes on with the memory that it has.
 */
static void test_wakeup(const TestCase *test)
{
    TestVM *vm;
    Model *model;
    Blocks blocks;
    unsigned int i;

    if (test->kvm) {
        g_test_skip("the guest would run");
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

    request_size(vm, 0, 3 * GiB);
    assert_ack(plug_at(vm, 0, blocks.addr, blocks.count));
    write_block(&blocks, 0);
    write_block(&blocks, 1);
    /* A usable region that is larger than it has to be does not shrink. */
    request_size(vm, 0, 2 * GiB);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'cont' }");
    for (i = 0; i < 2; i++) {
        suspend_to_ram(vm);
        vm_check(vm);
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'system_wakeup' }");
        qtest_qmp_eventwait(vm->qts, "WAKEUP");

        qvirtio_mem_pci_start(vm->devices[0].pci);
        vm_check(vm);
        check_listeners(vm);
        check_block(&blocks, 0);
        check_block(&blocks, 1);
        assert_ack(unplug_at(vm, 0, blocks.addr, 1));
        assert_ack(plug_at(vm, 0, blocks.addr, 1));
        write_block(&blocks, 0);
    }

    /* Any other reset takes it all. */
    system_reset(vm);
    check_listeners(vm);
    g_assert_cmphex(model->usable_size, ==, 2 * GiB + model->usable_extent);
    vm_stop(vm);
}

static const TestGroup groups[] = {
    { "reset", test_reset, basic_configs, .all_machines = true },
    { "wakeup", test_wakeup, basic_configs, .needs_pc = true },
    { }
};

void add_reset_tests(void)
{
    add_tests(groups);
}
