/*
 * QTest testcases for virtio-mem, by subject
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/host.h"
#include "host-memory.h"
#include "tests.h"

/* Since machine types 8.1, unplugged-inaccessible is on by default. */
static const NamedConfig on_machine_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), DEFAULT_INACCESSIBLE } },
    { "memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), DEFAULT_INACCESSIBLE } },
    { "single-ram", { RAM, SINGLE(4 * GiB), DEFAULT_INACCESSIBLE } },
    { }
};

/* Before, it was auto. */
static const NamedConfig auto_machine_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), DEFAULT_ACCESSIBLE } },
    { "memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), DEFAULT_INACCESSIBLE } },
    { "single-ram", { RAM, SINGLE(4 * GiB), DEFAULT_ACCESSIBLE } },
    { "single-memfd", { MEMFD, SINGLE(4 * GiB), DEFAULT_INACCESSIBLE } },
    { }
};

/* Up to version 6.2, it was off. */
static const NamedConfig off_machine_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), DEFAULT_ACCESSIBLE } },
    { "memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), DEFAULT_ACCESSIBLE } },
    { "single-memfd", { MEMFD, SINGLE(4 * GiB), DEFAULT_ACCESSIBLE } },
    { "auto-ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "auto-memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { }
};

typedef struct MachineType {
    const char *arch;
    /* as for -machine */
    const char *name;
    /* devices that have defaults of this machine type */
    const NamedConfig *configs;
    bool no_kvm;
} MachineType;

/* Up to versions 7.2, what is plugged migrates after the memory. */
static const MachineType machine_types[] = {
    { "x86_64", "pc-i440fx-6.2", off_machine_configs },
    { "x86_64", "pc-q35-7.2", auto_machine_configs },
    { "x86_64", "pc-i440fx-8.0", auto_machine_configs },
    { "x86_64", "q35", on_machine_configs },
    { "aarch64", "virt-7.2", on_machine_configs },
    /* with an address space of its own for secure memory */
    { "aarch64", "virt,secure=on", on_machine_configs, .no_kvm = true },
};

static void run_test(const void *data)
{
    TestCase test = *(const TestCase *)data;
    Host host = { };

    if (host_prepare(&host, &test.config)) {
        test.config.mem_dir = host.dir;
        test.fn(&test);
    }
    host_restore(&host);
}

static void add_group(const TestGroup *group, const char *path,
                      const TestCase *base, const NamedConfig *configs)
{
    const NamedConfig *named;

    for (named = configs; named->name; named++) {
        g_autofree char *name = g_strdup_printf("%s/%s", path, named->name);
        TestCase *test;

        if (!named->config.expect_inaccessible && !arch->has_legacy_guests) {
            continue;
        }
        test = g_new(TestCase, 1);
        *test = *base;
        test->fn = group->fn;
        test->config = named->config;
        test->config.late_migration = base->config.late_migration;
        qtest_add_data_func_full(name, test, run_test, g_free);
    }
}

static void add_group_for_machines(const TestGroup *group, const char *accel,
                                   bool kvm)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(machine_types); i++) {
        const MachineType *type = &machine_types[i];
        const TestCase base = { .kvm = kvm, .machine = type->name };
        g_autofree char *path =
            g_strdup_printf("virtio-mem/%s/machines/%s/%s", accel, type->name,
                            group->name);
        g_autofree char *default_path = g_strdup_printf("%s-default", path);

        if (!g_str_equal(type->arch, arch->name) || (type->no_kvm && kvm)) {
            continue;
        }
        add_group(group, path, &base, group->configs);
        if (group->machine_defaults) {
            add_group(group, default_path, &base, type->configs);
        }
    }
}

static void add_tests_with(const TestGroup *groups, const char *accel, bool kvm)
{
    const TestGroup *group;

    for (group = groups; group->name; group++) {
        const TestCase base = { .kvm = kvm };
        g_autofree char *path = g_strdup_printf("virtio-mem/%s/%s", accel,
                                                group->name);

        if ((group->kvm_only && !kvm) ||
            (group->needs_pc && !arch->is_pc)) {
            continue;
        }
        add_group(group, path, &base, group->configs);
        if (group->late_too) {
            g_autofree char *late_path = g_strdup_printf("%s-late", path);
            TestCase late = base;

            late.config.late_migration = true;
            add_group(group, late_path, &late, group->configs);
        }
        if (group->all_machines) {
            add_group_for_machines(group, accel, kvm);
        }
    }
}

void add_tests(const TestGroup *groups)
{
    add_tests_with(groups, "qtest", false);
    if (!qhost_why_no_kvm()) {
        add_tests_with(groups, "kvm", true);
    }
}
