/*
 * QTest testcases for virtio-mem: devices that cannot be had
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/host.h"
#include "checks.h"
#include "failures.h"
#include "listeners.h"
#include "steps.h"
#include "tests.h"
#include <sys/resource.h>

/* A device that fails to be realized leaves nothing behind. */
static void test_failed_realize(const TestCase *test)
{
    static const struct {
        const char *props;
        const char *error;
        const char *hint;
    } failures[] = {
        { "", "'memdev' property must be set" },
        { ",memdev=mem0,node=7", "'node' property has value '7'" },
        { ",memdev=mem0,block-size=3M", "has to be a power of two" },
        { ",memdev=mem0,block-size=512K", "has to be at least 0x100000" },
        { ",memdev=mem0,requested-size=3M",
          "'requested-size' property has to be multiples of 'block-size'" },
        { ",memdev=mem0,memaddr=0x100100000", "address must be aligned to" },
        /* for huge pages, however small blocks are */
        { ",memdev=mem0,memaddr=0x100100000,block-size=1M",
          "address must be aligned to 0x200000" },
        { ",memdev=odd", "multiple" },
        { ",memdev=huge", "not enough space" },
        { ",memdev=none", "not found" },
        { ",memdev=full", "a memdev with preallocation enabled: full" },
        { ",memdev=mem0,unplugged-inaccessible=maybe", "maybe" },
        /* The memslots of the usable region are mapped by then. */
        { ",memdev=mem0,unplugged-inaccessible=off,requested-size=2G,"
          "romfile=none", "failed to find romfile" },
        { ",memdev=mem0,memslot-min-size=64M",
          "'memslot-min-size' property (0x4000000) has to be a power of two"
          " and at least 0x8000000",
          "memslot-min-size=1G is the default; the smaller, the more memslots"
          " are needed." },
        { ",memdev=mem0,memslot-min-size=384M",
          "'memslot-min-size' property (0x18000000) has to be a power of two"
          " and at least 0x8000000" },
        { ",memdev=mem0,memslot-min-size=0",
          "'memslot-min-size' property (0x0) has to be a power of two" },
        { ",memdev=mem0,memslot-min-size=small", "'memslot-min-size'" },
        { ",memdev=mem0,memslot-min-size=256M,block-size=512M",
          "'memslot-min-size' property (0x10000000) has to be at least as"
          " large as 'block-size' (0x20000000)",
          "Make it larger, or do not set it." },
    };
    g_autofree char *backend = NULL;
    g_autofree char *device = device_args(0, &test->config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *args = NULL;
    g_autofree char *busy = NULL;
    TestVM *vm = vm_new(test);
    unsigned int i;

    backend = backend_args(vm->tmpdir, 0, &test->config);
    args = g_strdup_printf("-object %s"
                           " -object memory-backend-ram,id=full,size=64M,"
                           "prealloc=on"
                           " -object memory-backend-ram,id=odd,size=1027M"
                           " -object memory-backend-ram,id=huge,size=16G,"
                           "reserve=off", backend);
    /* Not for lack of space shall a second device fail. */
    vm_boot(vm, 2 * test->config.size, args);

    for (i = 0; i < ARRAY_SIZE(failures); i++) {
        g_autofree char *command =
            g_strdup_printf("device_add virtio-mem-pci,id=vm0,addr=04.0,"
                            "multiple-memslots=%s%s",
                            test->config.multiple_memslots ? "on" : "off",
                            failures[i].props);
        g_autofree char *output = hmp(vm, command);

        g_test_message("%s: %s", command, output);
        g_assert_nonnull(strstr(output, failures[i].error));
        if (failures[i].hint) {
            g_assert_nonnull(strstr(output, failures[i].hint));
        }
        assert_no_region_of_device(vm);
    }

    /* It is still to be had in full. */
    busy = hmp(vm, device_add);
    g_assert_cmpstr(busy, ==, "");
    vm_skip_changes(vm);
    device_init(vm, 0, &test->config);
    vm_check(vm);
    request_size(vm, 0, test->config.size);
    change_many(vm, 0, 0, test->config.size, true);

    g_free(busy);
    busy = hmp(vm, "device_add virtio-mem-pci,id=vm1,addr=05.0,memdev=mem0");
    g_assert_nonnull(strstr(busy, "busy memdev: mem0"));
    vm_check(vm);
    assert_ack(unplug_all(vm, 0));
    vm_stop(vm);
}

/* If memory can't be given back at the start, there is no device. */
static void test_realize_fails(const TestCase *test)
{
    g_autofree char *device = device_args(0, &test->config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *backend = NULL;
    g_autofree char *args = NULL;
    TestVM *vm;

    if (!can_fail_calls()) {
        return;
    }

    vm = vm_new(test);
    backend = backend_args(vm->tmpdir, 0, &test->config);
    args = g_strdup_printf("-object %s %s", backend, TESTDEV);
    vm_boot(vm, test->config.size, args);

    fail_calls(vm, "%s %d", discard_calls(&test->config)[0], EIO);
    assert_hmp(vm, device_add, "Unexpected error discarding RAM: Input/output"
                               " error");
    assert_no_region_of_device(vm);
    stop_failing(vm);

    if (test->config.nb_huge_pages) {
        assert_hmp(vm, "device_add virtio-mem-pci,memdev=mem0,block-size=1M",
                   "has to be at least the page size (0x200000)");
        assert_no_region_of_device(vm);
    }

    assert_hmp(vm, device_add, "");
    vm_skip_changes(vm);
    device_init(vm, 0, &test->config);
    vm_check(vm);
    request_size(vm, 0, test->config.size);
    assert_ack(plug_at(vm, 0, vm_model(vm, 0)->addr, 1));
    check_listeners(vm);
    vm_stop(vm);
}

/* Memory that is locked can't be given back. */
static void test_mlock(const TestCase *test)
{
    g_autofree char *device = device_args(0, &test->config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *backend = NULL;
    g_autofree char *args = NULL;
    struct rlimit limit;
    TestVM *vm;

    g_assert_cmpint(getrlimit(RLIMIT_MEMLOCK, &limit), ==, 0);
    if (geteuid() != 0 && limit.rlim_cur != RLIM_INFINITY) {
        qhost_skip("root", "not allowed to lock all memory");
        return;
    }

    vm = vm_new(test);
    backend = backend_args(vm->tmpdir, 0, &test->config);
    args = g_strdup_printf("-object %s -overcommit mem-lock=on", backend);
    vm_boot(vm, test->config.size, args);
    assert_hmp(vm, device_add, "Incompatible with mlock");
    assert_no_region_of_device(vm);
    vm_stop(vm);
}

static const NamedConfig tiny_configs[] = {
    { "multiple", { RAM, MULTIPLE(64 * MiB, 1 * GiB), INACCESSIBLE } },
    { "single", { RAM, SINGLE(64 * MiB), INACCESSIBLE } },
    { }
};

static const TestGroup groups[] = {
    { "failed-realize", test_failed_realize, basic_configs,
      .needs_pc = true },
    { "realize-fails", test_realize_fails, discard_configs,
      .needs_pc = true },
    { "mlock", test_mlock, tiny_configs, .needs_pc = true },
    { }
};

void add_realize_tests(void)
{
    add_tests(groups);
}
