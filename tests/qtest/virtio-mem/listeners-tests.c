/*
 * QTest testcases for virtio-mem: listeners
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "checks.h"
#include "failures.h"
#include "listeners.h"
#include "steps.h"
#include "tests.h"

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
    assert_refused_event(vm, 0, "dma");
    expect_stderr(vm, "memory cannot be plugged now: a device that does DMA,"
                  " such as one of VFIO, cannot map it: No space left on"
                  " device");
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

static const TestGroup groups[] = {
    { "listeners", test_listeners, basic_configs },
    { "listeners-double-discard", test_listeners_double_discard,
      basic_configs },
    { "listeners-come-and-go", test_listeners_come_and_go, basic_configs },
    { "iotlb", test_iotlb, basic_configs },
    { "iotlb-whole", test_iotlb_whole, basic_configs },
    { }
};

void add_listeners_tests(void)
{
    add_tests(groups);
}
