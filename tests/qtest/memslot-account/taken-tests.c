/*
 * Tests of memslots that somebody takes without asking: PCI devices do
 *
 * What was promised may be gone then. A test device plays them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "qobject/qdict.h"

#define TAKEN_HINT "'info memslots' shows who holds how many; PCI devices" \
                   " with many BARs may have taken what is missing.\n"

#define MINUTE_NS 60000000000ll

/* Warned of and told with an event */
static void check_event(TestVM *vm, const Mem *mem, const char *refuser,
                        const char *backend, const char *reason,
                        unsigned int left_out)
{
    QDict *event = qtest_qmp_eventwait_ref(vm->qts,
                                           "MEMORY_DEVICE_REQUEST_REFUSED");
    const QDict *data = qdict_get_qdict(event, "data");
    g_autofree char *path = g_strdup_printf("/machine/peripheral/%s", mem->id);

    g_assert_cmpstr(qdict_get_str(data, "id"), ==, mem->id);
    g_assert_cmpstr(qdict_get_str(data, "qom-path"), ==, path);
    g_assert_cmpstr(qdict_get_str(data, "refuser"), ==, refuser);
    g_assert_cmpstr(qdict_get_try_str(data, "backend"), ==, backend);
    g_assert_cmpstr(qdict_get_str(data, "reason"), ==, reason);
    g_assert_cmpint(qdict_get_int(data, "left-out"), ==, left_out);
    qobject_unref(event);
}

/* A promise does not keep those away that do not ask. */
static void test_taken(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 32 * GiB);
    const char *warning = "warning: virtio-mem device 'mem0': memory cannot be"
                          " plugged now: ";
    g_autofree char *reason = NULL;
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
    reason = g_strdup_printf("vhost backend '%s' can hold 509 memslots, of"
                             " which 507 are used, but 3 more are needed",
                             backend->id);
    check_event(vm, mem, "vhost", backend->id, reason, 0);
    assert_busy(plug(vm, mem, 2 * GiB, 3 * GiB));
    assert_busy(plug(vm, mem, 2 * GiB, 30 * GiB));
    g_assert_cmpuint(vm_nr_messages(vm), ==, nr_messages);
    why = g_strdup_printf("%s%s\n" TAKEN_HINT, warning, reason);
    g_assert_cmpuint(vm_nr_warnings(vm, why), ==, 1);

    /* Less will do, and so will memslots that are mapped already. */
    assert_ack(plug(vm, mem, 1 * GiB + 2 * MiB, 1 * GiB - 2 * MiB));
    assert_ack(plug(vm, mem, 2 * GiB, 2 * GiB));
    assert_busy(plug(vm, mem, 4 * GiB, 2 * MiB));
    assert_ack(unplug(vm, mem, 0, 1 * GiB));
    assert_ack(plug(vm, mem, 4 * GiB, 2 * MiB));

    set_testdev_count(vm, true, 0);
    assert_ack(plug(vm, mem, 5 * GiB, 27 * GiB));
    set_testdev_count(vm, true, 10);
    unplug_all(vm, mem);
    vm_stop(vm);
}

/* However often a guest is refused, that is reported once in a minute. */
static void test_report_rate(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 8 * GiB);
    const char *warnings[] = { "'mem0': memory cannot be plugged now",
                               "'mem1': memory cannot be plugged now" };
    const char *counted = "'mem0': memory cannot be plugged now (nor 22 times"
                          " since the last warning): vhost backend '";
    g_autofree char *reason = NULL;
    Backend *backend;
    unsigned int i;
    Mem *mem[2];

    if (test->kvm) {
        g_test_skip("only qtest's clock can be set");
        vm_stop(vm);
        return;
    }
    mem[0] = vm_add_mem(vm, &config);
    mem[1] = vm_add_mem(vm, &config);
    backend = vm_add_started_backend(vm, 509);
    request_size(vm, mem[0], 8 * GiB);
    request_size(vm, mem[1], 8 * GiB);

    /* One is free: a request for two and one for one in turn */
    set_testdev_count(vm, true, 509 - vm->base_shared - 1);
    reason = g_strdup_printf("vhost backend '%s' can hold 509 memslots, of"
                             " which 508 are used, but 2 more are needed",
                             backend->id);
    for (i = 0; i < 20; i++) {
        assert_busy(plug(vm, mem[0], 1 * GiB, 2 * GiB));
        assert_ack(plug(vm, mem[0], 0, 1 * GiB));
        assert_ack(unplug(vm, mem[0], 0, 1 * GiB));
    }
    check_event(vm, mem[0], "vhost", backend->id, reason, 0);
    g_assert_cmpuint(vm_nr_warnings(vm, warnings[0]), ==, 1);

    /* Each device has its own. */
    assert_busy(plug(vm, mem[1], 0, 2 * GiB));
    check_event(vm, mem[1], "vhost", backend->id, reason, 0);
    g_assert_cmpuint(vm_nr_warnings(vm, warnings[1]), ==, 1);

    qtest_clock_step(vm->qts, MINUTE_NS - 1);
    for (i = 0; i < 3; i++) {
        assert_busy(plug(vm, mem[0], 1 * GiB, 2 * GiB));
    }
    g_assert_cmpuint(vm_nr_warnings(vm, warnings[0]), ==, 1);
    qtest_clock_step(vm->qts, 1);
    assert_busy(plug(vm, mem[0], 1 * GiB, 2 * GiB));
    check_event(vm, mem[0], "vhost", backend->id, reason, 22);
    g_assert_cmpuint(vm_nr_warnings(vm, counted), ==, 1);
    qtest_clock_step(vm->qts, MINUTE_NS);
    assert_busy(plug(vm, mem[0], 1 * GiB, 2 * GiB));
    check_event(vm, mem[0], "vhost", backend->id, reason, 0);
    g_assert_cmpuint(vm_nr_warnings(vm, warnings[0]), ==, 3);
    g_assert_cmpuint(vm_nr_warnings(vm, warnings[1]), ==, 1);
    vm_stop(vm);
}

/* One gets what it refused, or did not get to see; then messages differ. */
static void refused_check(TestVM *vm, Backend *backends[], unsigned int count)
{
    unsigned int i;

    for (i = 0; i < count; i++) {
        backend_forget(backends[i]);
    }
    vm_check(vm);
}

/* A backend that is asked can still refuse: nothing changes then. */
static void test_backend_refuses(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    MemConfig config = multiple(true, 8 * GiB);
    const char *warning = "memory cannot be plugged now";
    g_autofree char *reason = NULL;
    g_autofree char *path = NULL;
    g_autofree char *error = NULL;
    g_autofree char *expected = NULL;
    Backend *backends[3];
    unsigned int i;
    Mem *mem[2];

    mem[0] = vm_add_mem(vm, &config);
    config.inaccessible = false;
    config.requested_size = 1 * GiB;
    mem[1] = vm_add_mem(vm, &config);
    for (i = 0; i < ARRAY_SIZE(backends); i++) {
        backends[i] = vm_add_started_backend(vm, i == 2 ? 8 : 509);
    }
    vm_start(vm);
    request_size(vm, mem[0], 8 * GiB);
    assert_ack(plug(vm, mem[0], 0, 1 * GiB));
    reason = g_strdup_printf("vhost backend '%s' refused memory: Input/output"
                             " error", backends[1]->id);

    /* The first of three, the last of them, or the only one */
    for (i = 0; i < 3; i++) {
        const uint64_t size = i == 2 ? 1 * GiB : 3 * GiB;

        qvhost_user_backend_take_regions(backends[1]->vu, i == 1 ? 2 : 0);
        assert_busy(qvirtio_mem_plug(&mem[0]->pci->mem,
                                     mem[0]->addr + 2 * GiB,
                                     size / mem[0]->block_size));
        if (!i) {
            check_event(vm, mem[0], "vhost", backends[1]->id, reason, 0);
        }
        refused_check(vm, backends, ARRAY_SIZE(backends));
        g_assert_false(can_reach(backends[0], mem[0], 2 * GiB));
        /* Memory that is mapped is nobody's business. */
        assert_ack(unplug(vm, mem[0], 0, 2 * MiB));
        assert_ack(plug(vm, mem[0], 0, 2 * MiB));
    }
    g_assert_cmpuint(vm_nr_warnings(vm, warning), >=, 1);
    g_assert_cmpuint(vm_nr_warnings(vm, reason), ==,
                     vm_nr_warnings(vm, warning));
    g_assert_cmpuint(vm_nr_warnings(vm, "The backend may have told more, in a"
                                    " log of its own.\n"), ==,
                     vm_nr_warnings(vm, warning));
    g_assert_cmpuint(vm_nr_warnings(vm, "set_mem_table"), ==, 0);

    /* With memory that may be read, a larger requested size is refused. */
    path = g_strdup_printf("/machine/peripheral/%s", mem[1]->id);
    error = try_qmp(vm, "{ 'execute': 'qom-set', 'arguments': { 'path': %s,"
                    " 'property': 'requested-size', 'value': %" PRIu64 " } }",
                    path, 8 * GiB);
    expected = g_strdup_printf("'requested-size' cannot be set to 0x200000000"
                               " now: %s", reason);
    g_assert_cmpstr(error, ==, expected);
    refused_check(vm, backends, ARRAY_SIZE(backends));

    qvhost_user_backend_take_regions(backends[1]->vu, UINT_MAX);
    request_size(vm, mem[1], 8 * GiB);
    assert_ack(plug(vm, mem[0], 2 * GiB, 3 * GiB));
    assert_ack(plug(vm, mem[1], 2 * GiB, 3 * GiB));
    unplug_all(vm, mem[0]);
    unplug_all(vm, mem[1]);
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
    const char *error = "vhost backend 'backend0' could not be told of 513"
                        " memory regions, and goes on with those that it has:"
                        " No buffer space available\n";
    const char *later = "vhost backend 'backend0' could not be told of 513"
                        " memory regions (nor any 1 times since the last such"
                        " error), and goes on with those that it has:"
                        " No buffer space available\n";
    g_autofree char *command =
        g_strdup_printf("qom-set /machine/peripheral/testdev1 count %u", count);
    g_autofree char *output = NULL;

    vm_add_started_backend(vm, 600);
    vm_start(vm);
    set_testdev_count(vm, true, count - 1);
    output = qmonitor_hmp(vm->mon, command);
    g_assert_cmpstr(output, ==, error);
    set_testdev_count(vm, true, count - 1);

    /* Once in a minute is enough. */
    run_hmp(vm, "%s", command);
    set_testdev_count(vm, true, count - 1);
    if (!vm->kvm) {
        g_autofree char *again = NULL;

        qtest_clock_step(vm->qts, MINUTE_NS);
        again = qmonitor_hmp(vm->mon, command);
        g_assert_cmpstr(again, ==, later);
        set_testdev_count(vm, true, count - 1);
    }
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
    { "report-rate", test_report_rate },
    { "backend-refuses", test_backend_refuses, .cold = true },
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
