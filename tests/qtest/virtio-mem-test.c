/*
 * QTest testcase for virtio-mem and the memslots that it maps
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/host.h"
#include "virtio-mem/framework.h"
#include "virtio-mem/tests.h"

int main(int argc, char **argv)
{
    const char *why_no_kvm = qhost_why_no_kvm();
    int ret;

    g_test_init(&argc, &argv, NULL);
    framework_init();
    if (why_no_kvm) {
        qtest_add_data_func("virtio-mem/kvm", why_no_kvm, qhost_test_no_kvm);
    }

    add_backends_tests();
    add_listeners_tests();
    add_loadvm_tests();
    add_memslots_tests();
    add_migration_tests();
    add_realize_tests();
    add_refusal_tests();
    add_requests_tests();
    add_reset_tests();
    add_shared_tests();
    add_unplug_tests();

    ret = g_test_run();
    framework_cleanup();
    return ret;
}
