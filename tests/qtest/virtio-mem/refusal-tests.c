/*
 * QTest testcases for virtio-mem: what is below the device refuses
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/host.h"
#include "checks.h"
#include "failures.h"
#include "host-memory.h"
#include "listeners.h"
#include "steps.h"
#include "tests.h"
#include <sys/mount.h>
#include <sched.h>

/* A request that fails for lack of memory leaves all as it is. */
static void test_prealloc_fails(const TestCase *test)
{
    g_autofree char *dir = create_tmpdir();
    g_autofree char *mem_path = g_build_filename(dir, "mem", NULL);
    g_autofree char *backend = NULL;
    DeviceConfig config = test->config;
    uint64_t addr, block, allocated;
    Model *model;
    TestVM *vm;

    /* In a mount namespace of its own, it goes away by itself. */
    if (unshare(CLONE_NEWNS) ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("virtio-mem-test", dir, "tmpfs", 0, "size=64M")) {
        qhost_skip("root", "cannot mount a tmpfs: %s", strerror(errno));
        g_assert_cmpint(rmdir(dir), ==, 0);
        return;
    }

    backend = g_strdup_printf("memory-backend-file,share=on,mem-path=%s",
                              mem_path);
    config.backend = backend;
    config.extra_props = "prealloc=on";
    vm = vm_start_with(test, &config, 1, "");
    model = vm_model(vm, 0);
    addr = model->addr;
    block = model->block_size;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 2));
    allocated = allocated_size(mem_path);
    g_assert_cmphex(allocated, ==, 2 * block);

    /* Three memslots, the second of which has plugged blocks or not */
    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr, 1 * GiB / block));
    assert_refused_event(vm, 0, "host");
    g_assert_cmphex(allocated_size(mem_path), ==, allocated);
    assert_busy(plug_at(vm, 0, addr + 1 * GiB + 2 * block, 2 * GiB / block));
    g_assert_cmphex(allocated_size(mem_path), ==, allocated);
    assert_busy(plug_at(vm, 0, addr + 2 * GiB - block, 1 * GiB / block + 2));
    g_assert_cmphex(allocated_size(mem_path), ==, allocated);

    /* There still is room for less, and after that for nothing. */
    model->busy = BUSY_NEVER;
    assert_ack(plug_at(vm, 0, addr, 30));
    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr + 2 * GiB, 1));

    g_assert_cmpint(mount(NULL, dir, NULL, MS_REMOUNT, "size=128M"), ==, 0);
    model->busy = BUSY_NEVER;
    assert_ack(plug_at(vm, 0, addr + 2 * GiB, 1));
    assert_ack(plug_at(vm, 0, addr + 3 * GiB - block, 2));
    g_assert_cmphex(allocated_size(mem_path), ==, model_plugged_size(model));
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(allocated_size(mem_path), ==, 0);

    vm_stop(vm);
    g_assert_cmpint(umount(dir), ==, 0);
    g_assert_cmpint(rmdir(dir), ==, 0);
}

static void check_discard_fails(TestVM *vm, const char *call, int err)
{
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr + 1 * GiB, block = model->block_size;
    g_autofree char *reason = g_strdup_printf("ram_block_discard_range: Failed"
                                              " to %s ",
                                              g_str_equal(call, "punch-hole") ?
                                              "fallocate" : "discard range");
    g_autofree char *number = g_strdup_printf("(-%d)", err);

    fail_calls(vm, "%s %d", call, err);
    model->busy = BUSY_UNPLUG;
    assert_busy(unplug_at(vm, 0, addr, 1));
    expect_stderr(vm, reason);
    check_listeners(vm);
    assert_busy(unplug_at(vm, 0, addr - block, 2));
    expect_stderr(vm, number);
    assert_busy(unplug_all(vm, 0));
    expect_stderr(vm, reason);
    check_listeners(vm);

    /* What needs nothing of the kind still works. */
    assert_error(unplug_at(vm, 0, addr + 2 * block, 1));
    request_size(vm, 0, model->block_size);
    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr + 2 * GiB, 1));
    check_listeners(vm);

    system_reset(vm);
    expect_stderr(vm, reason);
    check_listeners(vm);

    stop_failing(vm);
    model->busy = BUSY_NEVER;
    assert_ack(unplug_at(vm, 0, addr + 2 * GiB, 1));
    check_listeners(vm);
}

/* Memory that can't be given back stays plugged, and the guest is told. */
static void test_discard_fails(const TestCase *test)
{
    static const int errors[] = { EINVAL, EPERM, EIO, ENOMEM, EOPNOTSUPP };
    const char *const *calls = discard_calls(&test->config);
    Model *model;
    Blocks blocks;
    HostMemory mem;
    unsigned int i;
    TestVM *vm;

    if (!can_fail_calls() || !can_see_memory()) {
        return;
    }

    vm = vm_start_with(test, &test->config, 1, TESTDEV);
    model = vm_model(vm, 0);
    blocks = (Blocks) {
        .vm = vm,
        .addr = model->addr + 1 * GiB - model->block_size,
        .block_size = model->block_size,
        .count = 2,
    };

    request_size(vm, 0, model->region_size);
    for (; *calls; calls++) {
        assert_ack(plug_at(vm, 0, blocks.addr, blocks.count));
        mem = find_host_memory(vm, 0, blocks.addr);
        write_block(&blocks, 0);
        write_block(&blocks, 1);
        for (i = 0; i < ARRAY_SIZE(errors); i++) {
            check_discard_fails(vm, *calls, errors[i]);
        }
        if (*calls == discard_calls(&test->config)[0]) {
            /* Nothing was given back, not even in part. */
            check_block(&blocks, 0);
            check_block(&blocks, 1);
        }

        write_block(&blocks, 0);
        write_block(&blocks, 1);
        assert_ack(unplug_at(vm, 0, blocks.addr, 1));
        check_block(&blocks, 1);
        assert_ack(plug_at(vm, 0, blocks.addr, 1));
        check_block_is_zero(&blocks, &mem, 0);
        check_block(&blocks, 1);
        assert_ack(unplug_all(vm, 0));
        check_allocated(&mem, 0, 0);
        check_listeners(vm);
    }
    vm_stop(vm);
}

/* A failed request can't be undone in full: it is not worse than that. */
static void test_rollback_fails(const TestCase *test)
{
    const char *call = discard_calls(&test->config)[0];
    DeviceConfig config = test->config;
    Model *model;
    uint64_t addr, block;
    HostMemory mem;
    TestVM *vm;

    if (!can_fail_calls() || !can_see_memory()) {
        return;
    }

    config.extra_props = "prealloc=on";
    vm = vm_start_with(test, &config, 1, TESTDEV);
    model = vm_model(vm, 0);
    addr = model->addr + 1 * GiB;
    block = model->block_size;
    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr, 1));
    mem = find_host_memory(vm, 0, addr);
    check_allocated(&mem, block, block);

    /* The second of two memslots is refused, all memory was allocated. */
    limit_listeners(vm, 2 * block);
    fail_calls(vm, "%s %d", call, EIO);
    plug_refused(vm, addr + 1 * GiB - block, 2);
    expect_stderr(vm, "(-5)");
    plug_refused(vm, addr + 1 * GiB - block, 2);
    plug_refused(vm, addr - block, 1 * GiB / block);
    check_allocated(&mem, block, model->region_size);

    /* What was left is no obstacle, nor does it show. */
    limit_listeners(vm, UINT64_MAX);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    check_block_is_zero(&(Blocks) { .vm = vm, .addr = addr + 1 * GiB - block,
                                    .block_size = block }, &mem, 0);
    check_listeners(vm);
    stop_failing(vm);

    /* With the cause gone, nothing is left. */
    assert_ack(unplug_all(vm, 0));
    check_allocated(&mem, 0, 0);
    limit_listeners(vm, 0);
    plug_refused(vm, addr + 1 * GiB - block, 2);
    check_allocated(&mem, 0, 0);
    check_listeners(vm);
    vm_stop(vm);
}

/* Any sequence of requests, with what is below failing now and then */
static void test_random_failures(const TestCase *test)
{
    const char *call = discard_calls(&test->config)[0];
    unsigned int i, nb_failing = 0;
    Model *model;
    TestVM *vm;

    if (!can_fail_calls()) {
        return;
    }

    vm = vm_start_with(test, &test->config, 1, TESTDEV);
    model = vm_model(vm, 0);
    request_size(vm, 0, model->region_size);
    for (i = 0; i < RANDOM_STEPS; i++) {
        if (!random_below(10)) {
            /* or it is rare that a memslot is needed */
            request_size(vm, 0, 0);
            unplug_all(vm, 0);
        }
        if (!random_below(8)) {
            model->busy = BUSY_UNPLUG;
            fail_calls(vm, "%s %d", call, EIO);
        }
        if (!random_below(4)) {
            model->max_plugged = model_plugged_size(model) +
                                 (1 + random_below(1000)) * model->block_size;
            limit_listeners(vm, model->max_plugged);
        }
        if (test->kvm && !random_below(8)) {
            refuse_memslots(vm, !model->no_memslots);
        }
        vm->maps_in_vain = model->max_plugged || model->no_memslots;
        nb_failing += vm->maps_in_vain || model->busy != BUSY_NEVER;

        /* Others have memslots, too, and they do need them after a reset. */
        if (model->no_memslots || random_below(20)) {
            random_step(vm, 0);
        } else {
            system_reset(vm);
        }
        check_listeners(vm);

        if (model->busy != BUSY_NEVER) {
            model->busy = BUSY_NEVER;
            stop_failing(vm);
        }
        if (model->max_plugged) {
            model->max_plugged = 0;
            limit_listeners(vm, UINT64_MAX);
        }
        vm->maps_in_vain = model->no_memslots;
    }
    g_assert_cmpuint(nb_failing, >, 0);

    if (model->no_memslots) {
        refuse_memslots(vm, false);
    }
    assert_ack(unplug_all(vm, 0));
    request_size(vm, 0, model->region_size);
    change_many(vm, 0, 0, model->region_size, true);
    check_listeners(vm);
    vm_stop(vm);
}

/* However memory can't be allocated, the guest is told, and may try again. */
static void test_prealloc_errors(const TestCase *test)
{
    static const int errors[] = { ENOMEM, EFAULT, EHWPOISON, EAGAIN };
    DeviceConfig config = test->config;
    Model *model;
    uint64_t addr, block;
    HostMemory mem;
    unsigned int i;
    TestVM *vm;

    if (!can_fail_calls() || !can_see_memory()) {
        return;
    }

    config.extra_props = "prealloc=on";
    vm = vm_start_with(test, &config, 1, TESTDEV);
    model = vm_model(vm, 0);
    addr = model->addr + 1 * GiB;
    block = model->block_size;
    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr, 1));
    mem = find_host_memory(vm, 0, addr);

    for (i = 0; i < ARRAY_SIZE(errors); i++) {
        model->busy = BUSY_PLUG;
        /* The first call finds out whether the kernel knows of it. */
        fail_calls(vm, "populate %d", errors[i]);
        assert_busy(plug_at(vm, 0, addr + block, 1));
        fail_calls(vm, "populate %d 1", errors[i]);
        assert_busy(plug_at(vm, 0, addr - block, 1));
        fail_calls(vm, "populate %d 1", errors[i]);
        assert_busy(plug_at(vm, 0, addr + 1 * GiB - block, 2));
        check_allocated(&mem, block, block);
        check_listeners(vm);
        if (i == 0) {
            expect_stderr(vm, strerror(errors[i]));
        }
        stop_failing(vm);
        model->busy = BUSY_NEVER;
        assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
        check_allocated(&mem, 3 * block, 3 * block);
        assert_ack(unplug_at(vm, 0, addr + 1 * GiB - block, 2));
    }

    /* Kernels before 5.14 do not, so that QEMU touches the memory. */
    fail_calls(vm, "populate %d", EINVAL);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    check_allocated(&mem, 3 * block, 3 * block);
    stop_failing(vm);
    vm_stop(vm);
}

/* More huge pages are wanted than there are. */
static void check_pool_exhausted(TestVM *vm, bool old_kernel)
{
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    const uint64_t nb_pages = huge_pages("nr_hugepages");
    const uint64_t nb_free = huge_pages("free_hugepages");
    const uint64_t nb_blocks = nb_free * HUGE_PAGE_SIZE / block;
    HostMemory mem;

    if (old_kernel) {
        /* SIGBUS is what tells then. */
        fail_calls(vm, "populate %d", EINVAL);
    }

    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    mem = find_host_memory(vm, 0, addr + 1 * GiB);
    check_allocated(&mem, 2 * block, 2 * block);

    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr + 2 * GiB - block, nb_blocks - 1));
    g_assert_cmpuint(huge_pages("free_hugepages"), ==,
                     nb_free - 2 * block / HUGE_PAGE_SIZE);
    check_allocated(&mem, 2 * block, 2 * block);
    assert_busy(plug_at(vm, 0, addr + 1 * GiB + block, 2 * GiB / block));
    g_assert_cmpuint(huge_pages("free_hugepages"), ==,
                     nb_free - 2 * block / HUGE_PAGE_SIZE);

    /* The very last one can be had, and more once there are more. */
    model->busy = BUSY_NEVER;
    assert_ack(plug_at(vm, 0, addr + 2 * GiB - block, nb_blocks - 2));
    g_assert_cmpuint(huge_pages("free_hugepages"), ==, 0);
    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr, 1));
    model->busy = BUSY_NEVER;
    g_assert_true(set_huge_pages(nb_pages + block / HUGE_PAGE_SIZE));
    assert_ack(plug_at(vm, 0, addr, 1));
    assert_ack(unplug_all(vm, 0));
    g_assert_true(set_huge_pages(nb_pages));
    g_assert_cmpuint(huge_pages("free_hugepages"), ==, nb_free);

    if (old_kernel) {
        stop_failing(vm);
    }
}

static void test_pool_exhausted(const TestCase *test)
{
    DeviceConfig config = test->config;
    TestVM *vm;

    if (!can_see_memory()) {
        return;
    }

    config.extra_props = "prealloc=on";
    vm = vm_start_with(test, &config, 1, "");
    request_size(vm, 0, vm_model(vm, 0)->region_size);
    check_pool_exhausted(vm, false);
    expect_stderr(vm, "preallocating memory failed: Bad address");
    if (can_fail_calls()) {
        check_pool_exhausted(vm, true);
    }
    vm_stop(vm);
}

static const NamedConfig huge_configs[] = {
    { "memfd", HUGE_BACKEND(HUGE_MEMFD) },
    { "file-private", HUGE_FS_BACKEND(HUGE_FILE_PRIVATE) },
    { "accessible-memfd",
      { HUGE_MEMFD, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE, HUGE } },
    { "single-memfd", { HUGE_MEMFD, SINGLE(4 * GiB), INACCESSIBLE, HUGE } },
    { }
};

static const TestGroup groups[] = {
    { "prealloc-fails", test_prealloc_fails, basic_configs },
    { "discard-fails", test_discard_fails, discard_configs },
    { "rollback-fails", test_rollback_fails, discard_configs },
    { "prealloc-errors", test_prealloc_errors, discard_configs },
    { "random-failures", test_random_failures, basic_configs },
    { "pool-exhausted", test_pool_exhausted, huge_configs },
    { }
};

void add_refusal_tests(void)
{
    add_tests(groups);
}
