/*
 * Tests of virtio-mem devices that are unplugged, and of those that QEMU cannot
 * make: what they were promised is there for others
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"

/* A device is unplugged once nothing of it is plugged, or asked for. */
static void test_unplug(const TestCase *test)
{
    static const unsigned int sizes[] = { QVHOST_USER_BASELINE, 8, 509 };
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    const MemConfig other = multiple(false, 16 * GiB);
    const MemConfig off = single(true, 16 * GiB);
    g_autofree char *memdev = NULL;
    Backend *backend;
    unsigned int i;
    Mem *mem[2];

    mem[0] = vm_add_mem(vm, &config);
    memdev = g_strdup(mem[0]->memdev);
    mem[1] = vm_add_mem(vm, &other);
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        vm_add_started_backend(vm, sizes[i]);
    }
    vm_start(vm);
    g_assert_cmpuint(vm_required(vm, false), ==, 32);
    g_assert_cmpuint(vm_required(vm, true), ==, 16);

    request_size(vm, mem[0], 16 * GiB);
    g_assert_false(vm_unplug_vmem(vm, mem[0]));
    assert_ack(plug(vm, mem[0], 3 * GiB, 2 * GiB));
    qtest_memset(vm->qts, mem[0]->addr + 3 * GiB, 1, 4 * KiB);
    g_assert_false(vm_unplug_vmem(vm, mem[0]));
    request_size(vm, mem[0], 0);
    g_assert_false(vm_unplug_vmem(vm, mem[0]));
    unplug_all(vm, mem[0]);
    g_assert_true(vm_unplug_vmem(vm, mem[0]));
    g_assert_cmpuint(vm_required(vm, false), ==, 16);
    g_assert_cmpuint(vm_required(vm, true), ==, 0);
    for_each_backend(backend, vm) {
        g_assert_cmpuint(vm_holder(vm, backend).used, ==, vm->base_shared);
    }

    /* The same memory, and nothing that was in it */
    mem[0] = vm_add_mem_with(vm, &config, memdev);
    g_assert_cmpuint(mem[0]->required, ==, 16);
    request_size(vm, mem[0], 16 * GiB);
    assert_ack(plug(vm, mem[0], 0, 16 * GiB));
    g_assert_cmphex(qtest_readq(vm->qts, mem[0]->addr + 3 * GiB), ==, 0);
    request_size(vm, mem[0], 0);
    unplug_all(vm, mem[0]);
    g_assert_true(vm_unplug_vmem(vm, mem[0]));

    /* In a single memslot, and back */
    mem[0] = vm_add_mem_with(vm, &off, memdev);
    g_assert_cmpuint(vm_required(vm, true), ==, 1);
    g_assert_cmpuint(vm_used(vm, true), ==, 1);
    g_assert_true(vm_unplug_vmem(vm, mem[0]));
    mem[0] = vm_add_mem_with(vm, &config, memdev);
    g_assert_cmpuint(vm_required(vm, true), ==, 16);
    g_assert_true(vm_unplug_vmem(vm, mem[0]));
    vm_remove_memdev(vm, memdev);

    /* The other one was left alone. */
    request_size(vm, mem[1], 16 * GiB);
    assert_ack(plug(vm, mem[1], 0, 16 * GiB));
    vm_stop(vm);
}

/* Devices that guests may read cannot be unplugged. */
static void test_unplug_accessible(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    MemConfig config = multiple(true, 16 * GiB);
    Mem *mem;

    config.inaccessible = false;
    mem = vm_add_mem(vm, &config);
    vm_start(vm);
    g_assert_false(vm_unplug_vmem(vm, mem));
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 16 * GiB));
    vm_stop(vm);
}

/* What is given back can be promised to others. */
static void test_unplug_promise(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 128 * GiB);
    const MemConfig config = multiple(true, 40 * GiB);
    g_autofree char *memdev = NULL;
    Mem *mem, *last = NULL;
    Backend *backend;
    unsigned int i;

    mem = vm_add_mem(vm, &config);
    g_assert_cmpuint(mem->required, ==, 40);
    memdev = g_strdup(mem->memdev);
    backend = vm_add_started_backend(vm, 509);
    vm_start(vm);
    g_assert_false(backend->whole_devices);
    set_testdev_count(vm, true, 509 - vm->base_shared - 40);
    assert_refused(vm, &shared_dimm, NULL);

    /* Not as long as the guest has it. */
    g_assert_true(vm_request_unplug(vm, mem));
    assert_refused(vm, &shared_dimm, NULL);
    vm_finish_unplug(vm, mem);
    for (i = 0; i < 30; i++) {
        last = vm_add_mem(vm, &shared_dimm);
    }

    /* Ten are left. */
    mem = vm_add_mem_with(vm, &config, memdev);
    g_assert_cmpuint(mem->required, <=, 10);
    g_assert_true(vm_unplug_vmem(vm, mem));
    for (i = 0; i < 10; i++) {
        last = vm_add_mem(vm, &shared_dimm);
    }
    g_assert_null(vm_add_mem_with(vm, &config, memdev));
    vm_remove_dimm(vm, last);
    mem = vm_add_mem_with(vm, &config, memdev);
    g_assert_cmpuint(mem->required, ==, 1);
    vm_stop(vm);
}

/* The guest takes its time to let go of a device, or never does. */
static void test_unplug_half_way(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    g_autofree char *path = NULL, *error = NULL, *memdev = NULL;
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    memdev = g_strdup(mem->memdev);
    vm_add_started_backend(vm, 8);
    vm_start(vm);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 2 * GiB));
    request_size(vm, mem, 0);
    unplug_all(vm, mem);

    g_assert_true(vm_request_unplug(vm, mem));
    path = g_strdup_printf("/machine/peripheral/%s", mem->id);
    error = try_qmp(vm, "{ 'execute': 'qom-set', 'arguments': { 'path': %s,"
                    " 'property': 'requested-size', 'value': 2097152 } }",
                    path);
    g_assert_cmpstr(error, ==, "'requested-size' cannot be changed if the"
                    " device is in the process of unplug");
    g_assert_cmpint(plug(vm, mem, 0, 2 * MiB), ==, VIRTIO_MEM_RESP_ERROR);
    vm_add_mem(vm, &shared_dimm);
    g_assert_cmpuint(vm_required(vm, true), ==, 17);

    /* A reset is the end of it. */
    vm_reset(vm);
    g_assert_cmpuint(vm_required(vm, true), ==, 1);
    mem = vm_add_mem_with(vm, &config, memdev);
    g_assert_cmpuint(vm_required(vm, true), ==, 17);
    vm_stop(vm);
}

typedef struct BadDevice {
    /* as for -device, instead of @good */
    const char *args;
    /* what the error has in it */
    const char *error;
} BadDevice;

static const char *const bad_devices[][2] = {
    /* refused before there are memslots to be promised */
    { "memdev=none", "Device 'none' not found" },
    { "memdev=large", "not enough space" },
    { "memdev=ram,memaddr=0x100001000", "aligned to 0x200000 bytes" },
    { "memdev=ram,memaddr=0x80000000", "usable range for memory devices" },
    /* refused by the device, or by its bus */
    { "memdev=ram-mem0", "busy memdev" },
    { "memdev=ram,node=7", "'node' property" },
    { "memdev=ram,requested-size=1048576", "'requested-size'" },
    { "memdev=ram,block-size=34359738368", "'block-size'" },
    { "memdev=ram,addr=1.0", "PCI: slot 1 function 0 not available" },
    /* refused when the device is done, and may have memslots mapped */
    { "memdev=ram,romfile=none.rom", "romfile" },
    { "memdev=ram,romfile=none.rom,unplugged-inaccessible=off,"
      "requested-size=2147483648", "romfile" },
};

/* @bad: arguments, and what the error has in it */
static void assert_not_realized(TestVM *vm, const char *const bad[2])
{
    g_autofree char *args =
        g_strdup_printf("virtio-mem-pci,id=bad,multiple-memslots=on,%s",
                        bad[0]);
    const unsigned int messages = vm_nr_messages(vm);
    g_autofree char *error = try_device_add(vm, args);

    g_test_message("%s: %s", bad[0], error ?: "no error");
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error, bad[1]));
    g_assert_cmpuint(vm_nr_messages(vm), ==, messages);
    vm_check(vm);
}

static unsigned int count_ram_blocks(TestVM *vm)
{
    g_autofree char *output = qmonitor_hmp(vm->mon, "info ramblock");
    g_auto(GStrv) lines = g_strsplit(output, "\n", -1);

    return g_strv_length(lines);
}

/* A device that cannot be made is promised nothing, and leaves nothing. */
static void test_failed_realize(const TestCase *test)
{
    const char *add_ram = "object_add memory-backend-memfd,reserve=off,id=ram,"
                          "size=8G";
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig other = multiple(true, 16 * GiB);
    const MemConfig config = multiple(true, 8 * GiB);
    unsigned int i, ram_blocks;
    Mem *mem;

    mem = vm_add_mem(vm, &other);
    g_assert_cmpstr(mem->memdev, ==, "ram-mem0");
    vm_add_started_backend(vm, 8);
    vm_add_started_backend(vm, 509);
    vm_start(vm);
    run_hmp(vm, "object_add memory-backend-memfd,reserve=off,id=large,"
            "size=64G");
    ram_blocks = count_ram_blocks(vm);
    for (i = 0; i < ARRAY_SIZE(bad_devices); i++) {
        run_hmp(vm, "%s", add_ram);
        assert_not_realized(vm, bad_devices[i]);
        vm_remove_memdev(vm, "ram");
        g_assert_cmpuint(count_ram_blocks(vm), ==, ram_blocks);
    }

    /* It is not the memory's fault. */
    run_hmp(vm, "%s", add_ram);
    for (i = 0; i < ARRAY_SIZE(bad_devices); i++) {
        assert_not_realized(vm, bad_devices[i]);
    }
    mem = vm_add_mem_with(vm, &config, "ram");
    g_assert_cmpuint(mem->required, ==, 8);
    request_size(vm, mem, 8 * GiB);
    assert_ack(plug(vm, mem, 0, 8 * GiB));
    vm_stop(vm);
}

static const TestGroup groups[] = {
    { "unplug", test_unplug, .cold = true },
    { "unplug-accessible", test_unplug_accessible },
    { "unplug-promise", test_unplug_promise, .cold = true },
    { "unplug-half-way", test_unplug_half_way, .cold = true },
    { "failed-realize", test_failed_realize },
};

void add_hotplug_tests(bool kvm)
{
    add_test_groups(groups, ARRAY_SIZE(groups), kvm);
}
