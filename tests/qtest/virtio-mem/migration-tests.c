/*
 * QTest testcases for virtio-mem: migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "checks.h"
#include "failures.h"
#include "listeners.h"
#include "migration.h"
#include "steps.h"
#include "tests.h"

static void start_slow_migration(TestVM *vm)
{
    /* Too slow to be over before we are; anything below 10 means no limit. */
    qtest_qmp_assert_success(vm->qts,
                             "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'max-bandwidth': 1000,"
                             " 'avail-switchover-bandwidth': 1000,"
                             " 'downtime-limit': 1 } }");
    qtest_qmp_assert_success(vm->qts,
                             "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': 'exec:cat >/dev/null' } }");
    vm_model(vm, 0)->busy = BUSY_ALWAYS;
    wait_for_migration_status(vm, "active");
    /* Dirty logging was turned on, for which memslots change their flags. */
    vm_skip_changes(vm);
}

/* It must not be over yet. */
static void cancel_migration(TestVM *vm)
{
    g_autofree char *status = migration_status(vm);

    g_assert_cmpstr(status, ==, "active");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate_cancel' }");
    wait_for_migration_status(vm, "cancelled");
    vm_model(vm, 0)->busy = BUSY_NEVER;
}

/* A request that fails because of a migration leaves all as it is. */
static void test_busy_while_migrating(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    uint16_t state;

    request_size(vm, 0, 2 * GiB);
    assert_ack(plug_at(vm, 0, addr, 4));

    start_slow_migration(vm);

    assert_busy(plug_at(vm, 0, addr + 4 * block, 1));
    assert_busy(plug_at(vm, 0, addr + 1 * GiB, 1));
    assert_busy(unplug_at(vm, 0, addr, 1));
    assert_busy(unplug_at(vm, 0, addr, 4));
    assert_busy(unplug_all(vm, 0));
    assert_error(plug_at(vm, 0, addr, 1));
    assert_error(unplug_at(vm, 0, addr + 1 * GiB, 1));
    assert_ack(state_at(vm, 0, addr, 4, &state));
    g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_PLUGGED);
    /* The usable region may grow, but not shrink. */
    request_size(vm, 0, 3 * GiB);
    request_size(vm, 0, 0);
    system_reset(vm);
    g_assert_cmphex(model_plugged_size(model), ==, 4 * block);

    cancel_migration(vm);
    vm_check(vm);

    request_size(vm, 0, 2 * GiB);
    assert_ack(unplug_at(vm, 0, addr, 4));
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 1));
    vm_stop(vm);
}

/* Where nothing is plugged, there is nothing that must not change. */
static void test_idle_while_migrating(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);

    request_size(vm, 0, 2 * GiB);
    start_slow_migration(vm);

    assert_busy(plug_at(vm, 0, model->addr, 1));
    assert_ack(unplug_all(vm, 0));
    request_size(vm, 0, model->block_size);
    assert_ack(unplug_all(vm, 0));
    request_size(vm, 0, 3 * GiB);
    system_reset(vm);
    request_size(vm, 0, 0);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(model->usable_size, ==, 0);

    cancel_migration(vm);
    vm_skip_changes(vm);
    request_size(vm, 0, 2 * GiB);
    assert_ack(plug_at(vm, 0, model->addr + 1 * GiB, 1));
    vm_stop(vm);
}

static void check_migration(const TestCase *test, bool to_multiple_memslots,
                            const char *requested_before)
{
    const uint64_t pattern = 0x0123456789abcdef;
    TestVM *from = vm_start_with(test, &test->config, 1, TESTDEV);
    Model *model = vm_model(from, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    g_autofree char *path = g_build_filename(from->tmpdir, "state", NULL);
    g_autofree char *extra_props = g_strdup_printf("requested-size=%s",
                                                   requested_before);
    DeviceConfig config = test->config;
    TestVM *to;

    request_size(from, 0, 3 * GiB - 512 * MiB);
    assert_ack(plug_at(from, 0, addr, 3));
    assert_ack(plug_at(from, 0, addr + 2 * GiB - block, 2));
    assert_ack(unplug_at(from, 0, addr + block, 1));
    qtest_writeq(from->qts, addr + 2 * block, pattern);
    qtest_writeq(from->qts, addr + 2 * GiB, ~pattern);
    migrate_to_file(from, path);

    config.multiple_memslots = to_multiple_memslots;
    config.first_memslot_size = 1 * GiB;
    config.extra_props = extra_props;
    to = boot_destination(test, &config, TESTDEV);
    migrate_from_file(to, path);

    device_init_migrated(to, &config, model);
    vm_skip_changes(to);
    vm_check(to);
    check_listeners(to);
    g_assert_cmphex(qtest_readq(to->qts, addr + 2 * block), ==, pattern);
    g_assert_cmphex(qtest_readq(to->qts, addr + 2 * GiB), ==, ~pattern);

    /* Life goes on. */
    assert_ack(unplug_at(to, 0, addr + 2 * GiB - block, 1));
    assert_ack(plug_at(to, 0, addr + 1 * GiB, 2));
    check_listeners(to);
    assert_ack(unplug_all(to, 0));
    check_listeners(to);

    vm_stop(to);
    vm_stop(from);
}

static void test_migration(const TestCase *test)
{
    int to_multiple;

    for (to_multiple = 0; to_multiple < 2; to_multiple++) {
        /* Less than what is about to arrive, or more */
        check_migration(test, to_multiple, "0");
        check_migration(test, to_multiple, "4G");
    }
}

/* A listener that can't take what is plugged must not go unheard. */
static void test_migration_refused(const TestCase *test)
{
    TestVM *from = vm_start(test);
    Model *model = vm_model(from, 0);
    g_autofree char *path = g_build_filename(from->tmpdir, "state", NULL);
    g_autofree char *extra_args = NULL;
    g_autofree char *uri = g_strdup_printf("exec:cat %s", path);
    TestVM *to;

    request_size(from, 0, model->region_size);
    assert_ack(plug_at(from, 0, model->addr + 1 * GiB - model->block_size, 2));
    migrate_to_file(from, path);

    extra_args = g_strdup_printf(TESTDEV ",max-populated=%" PRIu64,
                                 model->block_size);
    to = boot_destination(test, &test->config, extra_args);
    check_incoming_fails(to, uri, NULL);
    vm_stop(from);
}

static void check_migration_size(const TestCase *test, uint64_t plugged)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    g_autofree char *path = g_build_filename(vm->tmpdir, "state", NULL);

    request_size(vm, 0, plugged ? model->region_size : 0);
    if (plugged) {
        assert_ack(plug_at(vm, 0, model->addr + 2 * GiB - plugged / 2,
                           plugged / model->block_size));
    }
    migrate_to_file(vm, path);
    g_assert_cmphex(migrated_size(vm), >=, BOOT_RAM_SIZE + plugged);
    g_assert_cmphex(migrated_size(vm), <,
                    BOOT_RAM_SIZE + plugged + arch->other_ram);
    vm_stop(vm);
}

/* Unplugged memory is not sent, whether any of the rest is mapped or not. */
static void test_migration_size(const TestCase *test)
{
    check_migration_size(test, 0);
    check_migration_size(test, 128 * MiB);
}

/* A destination that can't give back what is unplugged is not to go on. */
static void test_migration_discard_fails(const TestCase *test)
{
    const char *call = discard_calls(&test->config)[0];
    g_autofree char *path = NULL;
    g_autofree char *uri = NULL;
    Model *model;
    unsigned int nth;
    TestVM *from, *to;

    if (!can_fail_calls()) {
        return;
    }

    from = vm_start_with(test, &test->config, 1, TESTDEV);
    model = vm_model(from, 0);
    path = g_build_filename(from->tmpdir, "state", NULL);
    uri = g_strdup_printf("exec:cat %s", path);
    request_size(from, 0, model->region_size);
    assert_ack(plug_at(from, 0, model->addr + 1 * GiB - model->block_size, 2));
    migrate_to_file(from, path);

    /* Two ranges are unplugged, and there is one call for each. */
    for (nth = 0; nth < 2; nth++) {
        to = boot_destination(test, &test->config, TESTDEV);
        fail_calls(to, "%s %d %u", call, EIO, nth);
        check_incoming_fails(to, uri, "(-5)");
    }

    to = boot_destination(test, &test->config, TESTDEV);
    fail_calls(to, "%s %d 2", call, EIO);
    migrate_from_file(to, path);
    device_init_migrated(to, &test->config, model);
    vm_skip_changes(to);
    vm_check(to);
    check_listeners(to);
    vm_stop(to);
    vm_stop(from);
}

/* Put a number in the place of one that is in the file once; big endian. */
static void forge(const char *path, const uint64_t was[2], uint64_t forged)
{
    const uint64_t wanted[2] = { cpu_to_be64(was[0]), cpu_to_be64(was[1]) };
    const uint64_t value = cpu_to_be64(forged);
    g_autofree char *state = NULL;
    char *found, *again;
    gsize size;

    g_assert_true(g_file_get_contents(path, &state, &size, NULL));
    found = memmem(state, size, wanted, sizeof(wanted));
    g_assert_nonnull(found);
    again = memmem(found + 1, state + size - (found + 1), wanted,
                   sizeof(wanted));
    g_assert_null(again);
    memcpy(found, &value, sizeof(value));
    g_assert_true(g_file_set_contents(path, state, size, NULL));
}

static void check_forged(const TestCase *test, const TestVM *from,
                         const char *path)
{
    g_autofree char *uri = g_strdup_printf("exec:cat %s", path);
    TestVM *to = boot_destination(test, &test->config, TESTDEV);

    check_incoming_fails(to, uri,
                         "requested, as it contradicts itself or the device");
}

/*
 * A state that was made up must not have the guest's requests lead out of the
 * region.
 */
static void test_migration_forged(const TestCase *test)
{
    TestVM *from = vm_start(test);
    Model *model = vm_model(from, 0);
    const uint64_t block = model->block_size;
    g_autofree char *path = g_build_filename(from->tmpdir, "state", NULL);
    /* usable_region_size and requested_size stand side by side. */
    uint64_t late[2], early[2];

    request_size(from, 0, 3 * GiB + 3 * block);
    assert_ack(plug_at(from, 0, model->addr, 64));
    migrate_to_file(from, path);
    late[0] = model->usable_size;
    late[1] = model->requested_size;
    /* So do the plugged size and the bitmap. */
    early[0] = 64 * block;
    early[1] = UINT64_MAX;

    forge(path, late, model->region_size + block);
    check_forged(test, from, path);
    late[0] = model->region_size + block;
    forge(path, late, model->usable_size);
    late[0] = model->usable_size;

    forge(path, early, 65 * block);
    check_forged(test, from, path);
    vm_stop(from);
}

/* A file tells how large the pages are that it has bits for. */
static void test_migration_forged_file(const TestCase *test)
{
    /* version and page size, at the start of what it has of each block */
    const char header[] = "\0\0\0\1\0\0\0\0\0\0\x10\0";
    const size_t header_size = sizeof(header) - 1;
    TestVM *from = vm_start(test), *to;
    g_autofree char *path = g_build_filename(from->tmpdir, "state", NULL);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autofree char *state = NULL;
    unsigned int count = 0;
    char *found;
    gsize size;

    set_migration_capability(from, "mapped-ram");
    qtest_qmp_assert_success(from->qts, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': %s } }", uri);
    wait_for_migration_status(from, "completed");

    g_assert_true(g_file_get_contents(path, &state, &size, NULL));
    for (found = state;
         (found = memmem(found, state + size - found, header, header_size));
         found += header_size) {
        memset(found + sizeof(uint32_t), 0, sizeof(uint64_t));
        count++;
    }
    g_assert_cmpuint(count, >=, 2);
    g_assert_true(g_file_set_contents(path, state, size, NULL));

    to = boot_destination(test, &test->config, TESTDEV);
    set_migration_capability(to, "mapped-ram");
    check_incoming_fails(to, uri, "Error reading ramblock");
    vm_stop(from);
}

static const NamedConfig multiple_configs[] = {
    { "multiple", BACKEND(RAM) },
    { }
};

static const TestGroup groups[] = {
    { "migration-forged", test_migration_forged, basic_configs },
    { "migration-forged-file", test_migration_forged_file,
      multiple_configs },
    { "busy-while-migrating", test_busy_while_migrating, basic_configs },
    { "idle-while-migrating", test_idle_while_migrating, basic_configs },
    { "migration", test_migration, basic_configs,
      .all_machines = true, .late_too = true },
    { "migration-refused", test_migration_refused, basic_configs,
      .late_too = true },
    { "migration-size", test_migration_size, basic_configs },
    { "migration-discard-fails", test_migration_discard_fails,
      basic_configs, .late_too = true },
    { }
};

void add_migration_tests(void)
{
    add_tests(groups);
}
