/*
 * Tests of who is admitted: memory devices and vhost backends, by what is held
 * and what was promised
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"

/* A backend that does not see memory is not in its way. */
static void test_kinds(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig private_mem = multiple(false, 16 * GiB);
    const unsigned int room = 8 - vm->base_shared;
    g_autofree char *reason =
        g_strdup_printf("vhost backend '%s' can hold 8, of which 8 are used and"
                        " 0 are reserved for other memory devices, but 1 is"
                        " needed", "backend0");
    Mem *first = NULL, *mem;
    unsigned int i;

    vm_add_started_backend(vm, QVHOST_USER_BASELINE);
    for (i = 0; i < room; i++) {
        mem = vm_add_mem(vm, &shared_dimm);
        first = first ?: mem;
    }
    vm_start(vm);

    assert_refused(vm, &shared_dimm, reason);
    for (i = 0; i < 10; i++) {
        vm_add_mem(vm, &dimm);
    }
    mem = vm_add_mem(vm, &private_mem);
    g_assert_cmpuint(mem->required, ==, 16);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 16 * GiB));

    assert_refused(vm, &shared_dimm, reason);
    vm_remove_dimm(vm, first);
    g_assert_nonnull(vm_add_mem(vm, &shared_dimm));
    assert_refused(vm, &shared_dimm, reason);
    vm_stop(vm);
}

/* What was promised to others counts, and who comes first is served first. */
static void test_reservations(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 192 * GiB);
    const MemConfig vmem = multiple(true, 40 * GiB);
    const unsigned int room = 10;
    g_autofree char *reason = NULL;
    unsigned int i, taken;
    Mem *mem, *last = NULL;
    Backend *large;

    mem = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem->required, ==, 40);
    large = vm_add_started_backend(vm, 509);
    vm_start(vm);
    g_assert_false(large->whole_devices);
    taken = 509 - vm->base_shared - 40 - room;
    set_testdev_count(vm, true, taken);
    for (i = 0; i < room; i++) {
        last = vm_add_mem(vm, &shared_dimm);
    }

    reason = g_strdup_printf("vhost backend '%s' can hold 509, of which 469 are"
                             " used and 40 are reserved for other memory"
                             " devices, but 1 is needed", large->id);
    assert_refused(vm, &shared_dimm, reason);
    assert_refused(vm, &vmem, reason);

    /* What is mapped is not reserved any more: the sum stays the same. */
    request_size(vm, mem, 40 * GiB);
    assert_ack(plug(vm, mem, 0, 38 * GiB));
    g_free(reason);
    reason = g_strdup_printf("vhost backend '%s' can hold 509, of which 507 are"
                             " used and 2 are reserved for other memory"
                             " devices, but 1 is needed", large->id);
    assert_refused(vm, &shared_dimm, reason);

    /* Room by way of a memory device, and by way of the backend */
    vm_remove_dimm(vm, last);
    last = vm_add_mem(vm, &shared_dimm);
    assert_refused(vm, &shared_dimm, reason);
    assert_ack(plug(vm, mem, 38 * GiB, 2 * GiB));
    unplug_all(vm, mem);
    assert_backend_refused(vm, 64, vm->base_shared + taken + room + 1, 0);
    vm_remove_backend(vm, large);
    g_assert_nonnull(vm_add_mem(vm, &shared_dimm));
    set_testdev_count(vm, true, 0);

    /* One that is shown whole devices has to hold these only. */
    mem = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem->required, ==, 40);
    assert_backend_refused(vm, 8, vm->base_shared + room + 1 + 2, 0);
    vm_add_started_backend(vm, vm->base_shared + room + 1 + 2);
    assert_refused(vm, &shared_dimm, NULL);
    vm_remove_dimm(vm, last);
    mem = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem->required, ==, 40);
    assert_refused(vm, &vmem, NULL);
    vm_stop(vm);
}

/* A backend is refused only if it could not hold what QEMU must show it. */
static void test_backend_refused(const TestCase *test)
{
    TestVM *vm = vm_new(test, 64 * GiB, ONE_SHARED_BOOT_MEMORY);
    const MemConfig private_mem = multiple(false, 8 * GiB);
    const MemConfig shared_mem = multiple(true, 8 * GiB);
    g_autofree char *reason = NULL;
    Backend *backend;
    Mem *mem[3];

    g_assert_cmpuint(vm->base_shared, ==, 1);
    vm->ring_addr = BOOT_RAM_SIZE - 1 * MiB;
    backend = vm_add_started_backend(vm, 1);
    mem[0] = vm_add_mem(vm, &private_mem);
    vm_start(vm);
    g_assert_cmpuint(mem[0]->required, ==, 8);
    reason = g_strdup_printf("vhost backend '%s' can hold 1, of which 1 are"
                             " used and 0 are reserved for other memory"
                             " devices, but 1 is needed", backend->id);
    assert_refused(vm, &shared_mem, reason);
    assert_refused(vm, &shared_dimm, reason);

    /* It works once the backend is gone, and that one can't come back. */
    vm_remove_backend(vm, backend);
    mem[1] = vm_add_mem(vm, &shared_mem);
    g_assert_cmpuint(mem[1]->required, ==, 8);
    assert_backend_refused(vm, 1, 2, 0);
    request_size(vm, mem[1], 8 * GiB);
    assert_ack(plug(vm, mem[1], 0, 8 * GiB));
    assert_backend_refused(vm, 1, 2, 0);

    backend = vm_add_started_backend(vm, 2);
    g_free(reason);
    reason = g_strdup_printf("vhost backend '%s' can hold 2, of which 2 are"
                             " used and 0 are reserved for other memory"
                             " devices, but 1 is needed", backend->id);
    assert_refused(vm, &shared_dimm, reason);
    /* The whole device is there, whatever of it is plugged. */
    unplug_all(vm, mem[1]);
    assert_refused(vm, &shared_dimm, reason);
    vm_remove_backend(vm, backend);
    mem[2] = vm_add_mem(vm, &shared_dimm);
    assert_backend_refused(vm, 2, 3, 0);
    vm_remove_dimm(vm, mem[2]);
    g_assert_nonnull(vm_add_started_backend(vm, 2));
    assert_ack(plug(vm, mem[1], 0, 8 * GiB));
    vm_stop(vm);
}

static void test_cold_refusals(const TestCase *test)
{
    const char *hint = "\nUse a vhost backend that can hold more memory"
                       " regions, or fewer, larger memory devices.\n";
    const TestCase cold = { .kvm = test->kvm, .cold = true };
    TestVM *vm = vm_new_default(&cold, 64 * GiB);
    const MemConfig vmem = multiple(true, 16 * GiB);
    g_autofree char *accepted = NULL, *error = NULL, *expected = NULL;
    g_autofree char *object = NULL, *chardev = NULL, *device = NULL;
    Backend *backend;
    unsigned int i;
    Mem *mem;

    /* A memory device */
    vm_add_backend(vm, 8);
    for (i = vm->base_shared; i < 8; i++) {
        vm_add_mem(vm, &shared_dimm);
    }
    accepted = g_strdup(vm->args->str);
    mem = mem_new(vm, &shared_dimm);
    object = mem_object_args(mem);
    device = mem_device_args(mem);
    error = model_check_mem(vm, true, mem->id);
    g_assert_nonnull(error);
    expected = g_strconcat(error, hint, NULL);
    g_string_append_printf(vm->args, " -object %s -device %s", object, device);
    check_start_fails(vm, expected);
    mem_free(mem);

    /* All but that one are fine. */
    g_string_assign(vm->args, accepted);
    vm_start(vm);
    vm_stop(vm);

    /* A vhost backend */
    vm = vm_new_default(&cold, 64 * GiB);
    vm_add_mem(vm, &vmem);
    for (i = vm->base_shared; i < 8; i++) {
        vm_add_mem(vm, &shared_dimm);
    }
    backend = backend_new(vm, 8);
    chardev = backend_chardev_args(backend);
    g_free(device);
    device = backend_device_args(backend);
    g_free(error);
    error = model_check_backend(vm, backend);
    g_assert_nonnull(error);
    g_free(expected);
    expected = g_strconcat(error, hint, NULL);
    g_free(accepted);
    accepted = g_strdup(vm->args->str);
    g_string_append_printf(vm->args, " -chardev %s -device %s", chardev,
                           device);
    check_start_fails(vm, expected);
    backend_free(vm, backend);

    g_string_assign(vm->args, accepted);
    vm_start(vm);
    vm_stop(vm);
}

/* What the human monitor tells on top of why another DIMM is refused */
static void assert_hint(TestVM *vm, const char *hint)
{
    g_autofree char *none = qtest_hmp(
        vm->qts, "object_add memory-backend-ram,id=refused,size=2M");
    g_autofree char *error = qtest_hmp(
        vm->qts, "device_add pc-dimm,memdev=refused");
    g_autofree char *end = g_strdup_printf("\r\n%s\r\n", hint);
    g_autofree char *removed = qtest_hmp(vm->qts, "object_del refused");

    g_assert_cmpstr(none, ==, "");
    g_assert_true(g_str_has_suffix(error, end));
    g_assert_cmpstr(removed, ==, "");
}

/* KVM holds all memory, and much else. */
static void test_kvm_limit(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 256 * GiB);
    const unsigned int limit = test->kvm_limit;
    const unsigned int room = limit - vm->base_kvm;
    const MemConfig vmem = multiple(false, 64 * GiB);
    g_autofree char *reason = NULL;
    unsigned int i, promised;
    Mem *mem, *last;

    g_assert_cmpuint(vm->kvm_limit, ==, limit);
    mem = vm_add_mem(vm, &vmem);
    promised = mem->required;
    g_assert_cmpuint(promised, ==, limit < HISTORICAL_MAX ? 1 : 64);
    vm_start(vm);
    request_size(vm, mem, 64 * GiB);
    if (promised > 1) {
        assert_ack(plug(vm, mem, 0, 10 * GiB));
    }

    /* All but 10, then with DIMMs that take the rest */
    set_testdev_count(vm, false, room - promised - 10);
    for (i = 0; i < 10; i++) {
        last = vm_add_mem(vm, i % 2 ? &dimm : &shared_dimm);
    }
    reason = g_strdup_printf("KVM can hold %u, of which %u are used and %u are"
                             " reserved for other memory devices, but 1 is"
                             " needed", limit, limit - promised + mem_used(mem),
                             promised - mem_used(mem));
    assert_refused(vm, &dimm, reason);
    assert_refused(vm, &shared_dimm, reason);
    assert_refused(vm, &vmem, reason);
    assert_hint(vm, "Use fewer, larger memory devices.");

    vm_remove_dimm(vm, last);
    last = vm_add_mem(vm, &dimm);
    assert_refused(vm, &dimm, reason);

    /* Both have the promise kept. */
    assert_ack(plug(vm, mem, 10 * GiB, 54 * GiB));
    g_assert_cmpuint(vm_holder(vm, NULL).used, ==, limit);
    assert_refused(vm, &dimm, NULL);
    unplug_all(vm, mem);

    set_testdev_count(vm, false, room - promised - 10 + 1);
    if (promised > 1) {
        assert_busy(plug(vm, mem, 0, 64 * GiB));
        assert_ack(plug(vm, mem, 0, 63 * GiB));
        unplug_all(vm, mem);
    } else {
        assert_busy(plug(vm, mem, 0, 2 * MiB));
    }
    set_testdev_count(vm, false, 0);
    assert_ack(plug(vm, mem, 0, 64 * GiB));
    vm_stop(vm);
}

static const TestGroup groups[] = {
    { "backend-refused", test_backend_refused, .cold = true },
    { "kinds", test_kinds, .cold = true },
    { "reservations", test_reservations, .cold = true },
    { "cold-refusals", test_cold_refusals },
    { "limit-32", test_kvm_limit, .cold = true, .kvm_limit = 32 },
    { "limit-508", test_kvm_limit, .cold = true, .kvm_limit = 508 },
    { "limit-509", test_kvm_limit, .cold = true, .kvm_limit = 509 },
};

void add_admission_tests(bool kvm)
{
    add_test_groups(groups, ARRAY_SIZE(groups), kvm);
}
