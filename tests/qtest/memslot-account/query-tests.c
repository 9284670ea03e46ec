/*
 * Tests of what is told about memslots
 *
 * What "query-memslots" tells is checked after every step of all tests. Here
 * is what else there is: "info memslots", and machines without memory devices.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

static void append_holder(GString *text, const TestVM *vm,
                          const Backend *backend)
{
    const Holder holder = vm_holder(vm, backend);

    if (backend) {
        g_string_append_printf(text, "Memslots [vhost]: \"%s\"\n", backend->id);
    } else {
        g_string_append(text, "Memslots [kvm]\n");
    }
    g_string_append_printf(text, "  limit: %u\n  used: %u\n  free: %u\n"
                           "  reserved: %u\n  shared-only: %s\n"
                           "  whole-devices: %s\n", holder.limit, holder.used,
                           saturating_sub(holder.limit, holder.used),
                           holder.reserved, backend ? "true" : "false",
                           holder.whole_devices ? "true" : "false");
}

static void check_info(TestVM *vm)
{
    g_autofree char *output = qmonitor_hmp(vm->mon, "info memslots");
    g_autoptr(GString) text = g_string_new(NULL);
    unsigned int i;

    g_string_printf(text, "Memslots [memory devices]\n  soft-limit: %u\n"
                    "  required: %u\n  used: %u\n  reserved: %u\n", SOFT_LIMIT,
                    vm_required(vm, false), vm_used(vm, false),
                    vm_reserved(vm, false));
    if (vm->kvm) {
        append_holder(text, vm, NULL);
    }
    for (i = vm->backends->len; i > 0; i--) {
        append_holder(text, vm, g_ptr_array_index(vm->backends, i - 1));
    }
    g_assert_cmpstr(output, ==, text->str);
}

static void test_info(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    vm_add_mem(vm, &dimm);
    vm_add_started_backend(vm, 8);
    vm_add_started_backend(vm, 509);
    vm_start(vm);
    check_info(vm);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 4 * GiB));
    g_assert_cmpuint(vm_reserved(vm, true), ==, 12);
    check_info(vm);
    vm_stop(vm);
}

/* There is no device memory, and no machine that could have some. */
static void test_none(const TestCase *test)
{
    static const char *const machines[] = { "pc", "none" };
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(machines); i++) {
        QTestState *qts = qtest_initf("-machine %s -nodefaults %s", machines[i],
                                      test->kvm ? "-accel kvm" : "");
        QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-memslots' }");
        const QDict *info = qdict_get_qdict(rsp, "return");

        g_assert_nonnull(info);
        g_assert_cmpint(qdict_get_int(info, "soft-limit"), ==, SOFT_LIMIT);
        g_assert_cmpint(qdict_get_int(info, "required"), ==, 0);
        g_assert_cmpint(qdict_get_int(info, "used"), ==, 0);
        g_assert_cmpint(qdict_get_int(info, "reserved"), ==, 0);
        g_assert_cmpuint(qlist_size(qdict_get_qlist(info, "holders")), ==,
                         test->kvm);
        qobject_unref(rsp);
        qtest_quit(qts);
    }
}

static const TestGroup groups[] = {
    { "info", test_info, .cold = true },
    { "none", test_none },
};

void add_query_tests(bool kvm)
{
    add_test_groups(groups, ARRAY_SIZE(groups), kvm);
}
