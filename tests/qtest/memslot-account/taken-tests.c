/*
 * Tests of memslots that somebody takes without asking: PCI devices do
 *
 * What was promised may be gone then. A test device plays them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"

#define TAKEN_HINT "'info memslots' shows who holds how many; PCI devices" \
                   " with many BARs may have taken what is missing.\n"

/* A promise does not keep those away that do not ask. */
static void test_taken(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 32 * GiB);
    const char *warning = "warning: virtio-mem device 'mem0': memory cannot be"
                          " plugged now:";
    g_autofree char *why = NULL;
    unsigned int taken, nr_messages;
    Backend *backend;
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    g_assert_cmpuint(mem->required, ==, 32);
    backend = vm_add_started_backend(vm, 509);
    vm_start(vm);
    request_size(vm, mem, 32 * GiB);
    assert_ack(plug(vm, mem, 0, 1 * GiB + 2 * MiB));

    /* Two are left, where 30 have been promised. */
    taken = 509 - vm->base_shared - 2 - 2;
    set_testdev_count(vm, true, taken);
    nr_messages = vm_nr_messages(vm);
    assert_busy(plug(vm, mem, 2 * GiB, 3 * GiB));
    assert_busy(plug(vm, mem, 2 * GiB, 3 * GiB));
    assert_busy(plug(vm, mem, 2 * GiB, 30 * GiB));
    g_assert_cmpuint(vm_nr_messages(vm), ==, nr_messages);
    why = g_strdup_printf("%s vhost backend '%s' can hold 509 memslots, of"
                          " which 507 are used, but 3 more are needed\n"
                          TAKEN_HINT, warning, backend->id);
    g_assert_cmpuint(vm_nr_warnings(vm, why), ==, 1);
    g_assert_cmpuint(vm_nr_warnings(vm, warning), ==, 1);

    /* Less will do, and so will memslots that are mapped already. */
    assert_ack(plug(vm, mem, 1 * GiB + 2 * MiB, 1 * GiB - 2 * MiB));
    assert_ack(plug(vm, mem, 2 * GiB, 2 * GiB));
    assert_busy(plug(vm, mem, 4 * GiB, 2 * MiB));
    g_assert_cmpuint(vm_nr_warnings(vm, warning), ==, 2);
    assert_ack(unplug(vm, mem, 0, 1 * GiB));
    assert_ack(plug(vm, mem, 4 * GiB, 2 * MiB));

    set_testdev_count(vm, true, 0);
    assert_ack(plug(vm, mem, 5 * GiB, 27 * GiB));
    set_testdev_count(vm, true, 10);
    unplug_all(vm, mem);
    vm_stop(vm);
}

/* One that is shown whole devices has what it was promised, from the start. */
static void test_taken_whole_devices(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 32 * GiB);
    g_autofree char *reason = NULL;
    unsigned int messages;
    Backend *backend;
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    g_assert_cmpuint(mem->required, ==, 32);
    backend = vm_add_started_backend(vm, 8);
    vm_start(vm);
    request_size(vm, mem, 32 * GiB);
    set_testdev_count(vm, true, 8 - vm->base_shared - 1);
    reason = g_strdup_printf("vhost backend '%s' can hold 8, of which 8 are"
                             " used and 0 are reserved for other memory"
                             " devices, but 1 is needed", backend->id);
    assert_refused(vm, &shared_dimm, reason);

    messages = nr_messages(backend);
    assert_ack(plug(vm, mem, 2 * GiB, 2 * MiB));
    assert_ack(plug(vm, mem, 0, 2 * GiB));
    assert_ack(plug(vm, mem, 3 * GiB, 29 * GiB));
    assert_ack(unplug(vm, mem, 2 * GiB, 2 * MiB));
    unplug_all(vm, mem);
    g_assert_cmpuint(nr_messages(backend), ==, messages);
    assert_refused(vm, &shared_dimm, reason);
    vm_stop(vm);
}

/* Memory that a guest may read is mapped with the usable region. */
static void test_taken_accessible(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    MemConfig config = multiple(true, 32 * GiB);
    Mem *mem;

    config.inaccessible = false;
    config.requested_size = 1 * GiB;
    mem = vm_add_mem(vm, &config);
    vm_add_started_backend(vm, 509);
    vm_start(vm);
    g_assert_cmpuint(mem_used(mem), ==, 2);

    set_testdev_count(vm, true, 509 - vm->base_shared - 2 - 2);
    g_assert_false(request_size(vm, mem, 4 * GiB));
    g_assert_false(request_size(vm, mem, 32 * GiB));
    assert_ack(plug(vm, mem, 0, 1 * GiB));
    g_assert_true(request_size(vm, mem, 3 * GiB));
    g_assert_cmpuint(mem_used(mem), ==, 4);
    g_assert_true(request_size(vm, mem, 0));
    g_assert_false(request_size(vm, mem, 8 * GiB));
    unplug_all(vm, mem);
    g_assert_cmpuint(mem_used(mem), ==, 0);

    set_testdev_count(vm, true, 0);
    g_assert_true(request_size(vm, mem, 32 * GiB));
    assert_ack(plug(vm, mem, 0, 32 * GiB));
    vm_stop(vm);
}

/* What nobody asked for can be more than can be handed to any backend. */
static void test_too_many_regions(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const unsigned int count = VHOST_USER_MAX_REGIONS + 1 - vm->base_shared;
    const char *error = "vhost-user: 513 memory regions, at most 512 can be"
                        " handed to a backend\n"
                        "vhost_set_mem_table failed: No buffer space available"
                        " (105)\n";
    g_autofree char *command =
        g_strdup_printf("qom-set /machine/peripheral/testdev1 count %u", count);
    g_autofree char *output = NULL;

    vm_add_started_backend(vm, 600);
    vm_start(vm);
    set_testdev_count(vm, true, count - 1);
    output = qmonitor_hmp(vm->mon, command);
    g_assert_cmpstr(output, ==, error);
    set_testdev_count(vm, true, count - 1);
    set_testdev_count(vm, true, 0);
    vm_stop(vm);
}

/* What is within device memory counts as mapped by a memory device. */
static void test_used_over_required(const TestCase *test)
{
    const char *warning = "warning: more memslots are mapped into the device"
                          " memory than memory devices asked for: memory region"
                          " 'memslot-testdev'\n";
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(false, 8 * GiB);
    g_autofree char *output = NULL;
    Mem *mem;

    vm_add_mem(vm, &dimm);
    vm_add_mem(vm, &shared_dimm);
    mem = vm_add_mem(vm, &config);
    vm_add_started_backend(vm, 32);
    vm_start(vm);
    request_size(vm, mem, 8 * GiB);
    g_assert_cmpuint(vm_reserved(vm, false), ==, 8);

    /* Warnings go to the monitor that caused them. */
    output = qmonitor_hmp(vm->mon,
                          "qom-set /machine/peripheral/inner count 5");
    g_assert_cmpstr(output, ==, warning);
    vm->inner_count = 5;
    vm_check(vm);
    run_hmp(vm, "qom-set /machine/peripheral/inner count 0");
    vm->inner_count = 0;
    vm_check(vm);
    run_hmp(vm, "qom-set /machine/peripheral/inner count 6");
    vm->inner_count = 6;
    vm_check(vm);

    /* It makes nothing go wrong that would work without. */
    g_assert_cmpuint(vm_reserved(vm, false), ==, 8);
    vm_add_mem(vm, &dimm);
    assert_ack(plug(vm, mem, 0, 2 * GiB));
    run_hmp(vm, "qom-set /machine/peripheral/inner count 0");
    vm->inner_count = 0;
    vm_check(vm);
    vm_stop(vm);
}

/* The test device says what it cannot do. */
static void test_testdev(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    g_autofree char *error = NULL;
    unsigned int nr_messages;
    Backend *backend;

    backend = vm_add_started_backend(vm, 64);
    error = try_qmp(vm, "{ 'execute': 'qom-set', 'arguments': { 'path':"
                    " '/machine/peripheral/testdev0', 'property': 'count',"
                    " 'value': 65537 } }");
    g_assert_cmpstr(error, ==, "'count' (65537) must not exceed 65536");
    g_free(error);
    error = try_device_add(vm, "memslot-testdev,id=more");
    g_assert_cmpstr(error, ==,
                    "Device 'memslot-testdev' does not support hotplugging");
    vm_check(vm);

    set_testdev_count(vm, true, 8);
    nr_messages = vm_nr_messages(vm);
    set_testdev_count(vm, false, 10);
    g_assert_cmpuint(vm_nr_messages(vm), ==, nr_messages);
    set_testdev_count(vm, true, 5);
    g_assert_cmpuint(vm_nr_messages(vm), ==, nr_messages + 3);
    g_assert_cmpuint(qvhost_user_backend_nr_messages(backend->vu,
                                                     VHOST_USER_REM_MEM_REG),
                     ==, 3);
    vm_stop(vm);

    vm = vm_new_default(&(TestCase) { .kvm = test->kvm, .cold = true },
                        64 * GiB);
    g_string_append(vm->args, " -device memslot-testdev,addr=0x80000800");
    check_start_fails(vm, "'addr' (0x80000800) has to be a multiple of 0x1000");
    g_string_assign(vm->args, SHARED_BOOT_MEMORY
                    " -device memslot-testdev,addr=0x8000000000001000");
    check_start_fails(vm, "'addr' (0x8000000000001000) is too high");
    g_string_assign(vm->args, SHARED_BOOT_MEMORY);
    vm_start(vm);
    vm_stop(vm);
}

static const TestGroup groups[] = {
    { "taken", test_taken, .cold = true },
    { "taken-whole-devices", test_taken_whole_devices, .cold = true },
    { "taken-accessible", test_taken_accessible, .cold = true },
    { "too-many-regions", test_too_many_regions },
    { "used-over-required", test_used_over_required, .cold = true },
    { "testdev", test_testdev },
};

void add_taken_tests(bool kvm)
{
    add_test_groups(groups, ARRAY_SIZE(groups), kvm);
}
