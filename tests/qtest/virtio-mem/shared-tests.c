/*
 * QTest testcases for virtio-mem: memory that two virtual machines share
 *
 * With the migration capability x-ignore-shared, source and destination use the
 * same file, and what is in there is not sent. The destination must not discard
 * any of it, not even if it fails: the source goes on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/host.h"
#include "checks.h"
#include "failures.h"
#include "host-memory.h"
#include "listeners.h"
#include "migration.h"
#include "steps.h"
#include "tests.h"

/* More than any other memory that is sent, so that it would show. */
#define PLUGGED_SIZE (512 * MiB)

/* What was unmapped is discarded by another thread, if at all. */
#define DISCARD_WAIT_US (100 * 1000)

typedef struct SharedVM {
    TestCase test;
    char *dir;
    char *mem_path;
    char *state_path;
    TestVM *vm;
    /* two, on both sides of where memslots meet */
    Blocks blocks;
    uint64_t allocated;
} SharedVM;

static void shared_vm_abort(void *opaque)
{
    qhost_remove_dir(((SharedVM *)opaque)->dir);
}

static void check_source(const SharedVM *source)
{
    check_block(&source->blocks, 0);
    check_block(&source->blocks, 1);
    g_assert_cmphex(allocated_size(source->mem_path), ==, source->allocated);
}

static void shared_vm_start(SharedVM *source, const TestCase *test)
{
    Model *model;
    uint64_t addr;

    source->test = *test;
    source->dir = create_tmpdir();
    source->test.config.mem_dir = source->dir;
    source->mem_path = g_build_filename(source->dir, "mem0", NULL);
    source->state_path = g_build_filename(source->dir, "state", NULL);
    qtest_add_abrt_handler(shared_vm_abort, source);

    source->vm = vm_start_with(&source->test, &source->test.config, 1, TESTDEV);
    model = vm_model(source->vm, 0);
    addr = model->addr + 2 * GiB - PLUGGED_SIZE / 2;
    source->blocks = (Blocks) {
        .vm = source->vm,
        .addr = model->addr + 2 * GiB - model->block_size,
        .block_size = model->block_size,
        .count = 2,
    };
    request_size(source->vm, 0, 3 * GiB);
    assert_ack(plug_at(source->vm, 0, addr, PLUGGED_SIZE / model->block_size));
    write_block(&source->blocks, 0);
    write_block(&source->blocks, 1);
    source->allocated = allocated_size(source->mem_path);

    set_migration_capability(source->vm, "x-ignore-shared");
    migrate_to_file(source->vm, source->state_path);
    g_assert_cmphex(migrated_size(source->vm), <,
                    BOOT_RAM_SIZE + arch->other_ram);
    check_source(source);
}

static void shared_vm_stop(SharedVM *source)
{
    check_source(source);
    vm_stop(source->vm);
    qtest_remove_abrt_handler(source);
    qhost_remove_dir(source->dir);
    g_free(source->dir);
    g_free(source->mem_path);
    g_free(source->state_path);
}

static TestVM *shared_vm_boot_destination(const SharedVM *source,
                                          const char *extra_args)
{
    TestVM *vm = boot_destination(&source->test, &source->test.config,
                                  extra_args);

    set_migration_capability(vm, "x-ignore-shared");
    return vm;
}

static void test_ignore_shared(const TestCase *test)
{
    SharedVM source = { };
    TestVM *to;
    Blocks blocks;

    shared_vm_start(&source, test);
    to = shared_vm_boot_destination(&source, TESTDEV);
    migrate_from_file(to, source.state_path);
    device_init_migrated(to, &source.test.config, vm_model(source.vm, 0));
    vm_skip_changes(to);
    vm_check(to);
    check_listeners(to);
    check_source(&source);

    blocks = source.blocks;
    blocks.vm = to;
    check_block(&blocks, 0);
    check_block(&blocks, 1);
    vm_stop(to);
    shared_vm_stop(&source);
}

/* The destination fails, and ends or stays to be asked why. */
static void fail_destination(const SharedVM *source, const char *extra_args,
                             bool refuse, bool stays)
{
    g_autofree char *uri = g_strdup_printf("exec:cat %s", source->state_path);
    TestVM *to = shared_vm_boot_destination(source, extra_args);

    if (refuse) {
        g_assert_true(g_file_set_contents(to->kvm_fail_path, "", 0, NULL));
    }
    qtest_qmp_assert_success(to->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s,"
                             " 'exit-on-error': %i } }", uri, !stays);
    if (stays) {
        wait_for_migration_status(to, "failed");
        g_usleep(DISCARD_WAIT_US);
    } else {
        qtest_set_expected_status(to->qts, EXIT_FAILURE);
        wait_for_exit(to);
    }
    check_source(source);
    vm_stop(to);
    check_source(source);
}

static void test_ignore_shared_fails(const TestCase *test)
{
    g_autofree char *limited = NULL;
    SharedVM source = { };
    unsigned int i;

    shared_vm_start(&source, test);
    /* A listener takes the first half of what is plugged, but not the other. */
    limited = g_strdup_printf(TESTDEV ",max-populated=%" PRIu64,
                              (uint64_t)PLUGGED_SIZE - 1);
    for (i = 0; i < 2; i++) {
        fail_destination(&source, limited, false, i);
        if (test->kvm && test->config.multiple_memslots && can_fail_calls()) {
            fail_destination(&source, TESTDEV, true, i);
        }
    }
    shared_vm_stop(&source);
}

static const NamedConfig shared_configs[] = {
    { "inaccessible", BACKEND(FILE_SHARED) },
    { "accessible", ACCESSIBLE_BACKEND(FILE_SHARED) },
    { "single-inaccessible", SINGLE_BACKEND(FILE_SHARED) },
    { }
};

static const TestGroup groups[] = {
    { "ignore-shared", test_ignore_shared, shared_configs,
      .late_too = true },
    { "ignore-shared-fails", test_ignore_shared_fails, shared_configs,
      .late_too = true },
    { }
};

void add_shared_tests(void)
{
    add_tests(groups);
}
