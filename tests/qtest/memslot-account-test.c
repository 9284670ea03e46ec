/*
 * QTest testcase for the memslot account
 *
 * Memory devices and vhost backends come and go, the guest plugs and unplugs
 * memory, and somebody else takes memslots. A plain model of the machine says
 * which of that works, what those that don't are told, and which memslots are
 * there: all of it has to be exactly what QEMU says. After every step, what
 * "query-memslots" counts has to be what the flat view shows, and what each
 * vhost backend really holds. Those that can't hold a memory region for each
 * memslot hold one for each memory device, and get no message while that stays.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/host.h"
#include "memslot-account/framework.h"

static void add_tests(bool kvm)
{
    add_budget_tests(kvm);
    add_admission_tests(kvm);
    add_whole_device_tests(kvm);
    add_taken_tests(kvm);
    add_vhost_user_tests(kvm);
    add_hotplug_tests(kvm);
    add_query_tests(kvm);
    add_migration_tests(kvm);
    add_random_tests(kvm);
}

int main(int argc, char **argv)
{
    const char *why_no_kvm;
    int ret;

    g_test_init(&argc, &argv, NULL);
    preload_path = qhost_find_module("kvm-preload.so");

    add_backend_test();
    add_tests(false);
    why_no_kvm = qhost_why_no_kvm();
    if (why_no_kvm) {
        qtest_add_data_func("memslot-account/kvm", why_no_kvm,
                            qhost_test_no_kvm);
    } else {
        add_tests(true);
        if (!preload_path) {
            qtest_add_data_func("memslot-account/kvm/limits",
                                "preload/kvm-preload.so is not there",
                                qhost_test_no_kvm);
        }
    }
    ret = g_test_run();
    g_free(preload_path);
    return ret;
}
