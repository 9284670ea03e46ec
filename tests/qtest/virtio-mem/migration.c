/*
 * Migration of virtual machines with virtio-mem devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "failures.h"
#include "migration.h"

#define MIGRATION_TIMEOUT_US (30 * 1000 * 1000)

char *migration_status(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    char *status = g_strdup(qdict_get_str(qdict_get_qdict(rsp, "return"),
                                          "status"));

    qobject_unref(rsp);
    return status;
}

void wait_for_migration_status(TestVM *vm, const char *wanted)
{
    const gint64 start_time = g_get_monotonic_time();
    bool reached = false;

    while (!reached) {
        g_autofree char *status = migration_status(vm);

        reached = g_str_equal(status, wanted);
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        MIGRATION_TIMEOUT_US);
        g_usleep(1000);
    }
}

void migrate_to_file(TestVM *vm, const char *path)
{
    g_autofree char *uri = g_strdup_printf("exec:cat >%s", path);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': %s } }", uri);
    wait_for_migration_status(vm, "completed");
}

uint64_t migrated_size(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    QDict *ram = qdict_get_qdict(qdict_get_qdict(rsp, "return"), "ram");
    const uint64_t pages = qdict_get_int(ram, "normal") +
                           qdict_get_int(ram, "duplicate");
    const uint64_t size = pages * qdict_get_int(ram, "page-size");

    qobject_unref(rsp);
    return size;
}

static bool incoming_is_done(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    QDict *info = qdict_get_qdict(rsp, "return");
    const char *status = qdict_get_try_str(info, "status");
    const bool done = status && g_str_equal(status, "completed");

    g_assert_true(!status || !g_str_equal(status, "failed"));
    qobject_unref(rsp);
    return done;
}

void migrate_from_file(TestVM *vm, const char *path)
{
    const gint64 start_time = g_get_monotonic_time();
    g_autofree char *uri = g_strdup_printf("exec:cat %s", path);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    while (!incoming_is_done(vm)) {
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        MIGRATION_TIMEOUT_US);
        g_usleep(1000);
    }
}

void device_init_migrated(TestVM *vm, const DeviceConfig *config,
                                 const Model *from)
{
    Device *dev = &vm->devices[0];
    uint64_t i;

    device_init(vm, 0, config);
    dev->model.requested_size = from->requested_size;
    dev->model.usable_size = from->usable_size;
    memcpy(dev->model.plugged, from->plugged,
           from->region_size / from->block_size * sizeof(*from->plugged));
    for (i = 0; i < model_nb_memslots(&dev->model); i++) {
        g_array_index(dev->was_mapped, bool, i) =
            model_memslot_mapped(&dev->model, i);
    }
}

TestVM *boot_destination(const TestCase *test,
                                const DeviceConfig *config,
                                const char *extra_args)
{
    TestVM *vm = vm_new(test);
    g_autofree char *backend = backend_args(vm->tmpdir, 0, config);
    g_autofree char *device = device_args(0, config);
    g_autofree char *args = g_strdup_printf("%s -object %s -device %s"
                                            " -incoming defer", extra_args,
                                            backend, device);

    vm_boot(vm, config->size, args);
    return vm;
}

void wait_for_exit(TestVM *vm)
{
    const gint64 start_time = g_get_monotonic_time();

    while (qtest_probe_child(vm->qts)) {
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        MIGRATION_TIMEOUT_US);
        g_usleep(1000);
    }
}

void check_incoming_fails(TestVM *vm, const char *uri, const char *said)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    qtest_set_expected_status(vm->qts, EXIT_FAILURE);
    wait_for_exit(vm);
    if (said) {
        expect_stderr(vm, said);
    }
    vm_stop(vm);
}

void set_migration_capability(TestVM *vm, const char *name)
{
    qtest_qmp_assert_success(vm->qts,
                             "{ 'execute': 'migrate-set-capabilities',"
                             " 'arguments': { 'capabilities': [ {"
                             " 'capability': %s, 'state': true } ] } }", name);
}
