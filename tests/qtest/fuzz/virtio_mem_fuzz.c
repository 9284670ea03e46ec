/*
 * virtio-mem fuzzing target
 *
 * Runs programs of virtio-mem/ops.c within QEMU. There is no fork for each of
 * them, as they all start from the same state.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-buffer.h"
#include "migration/qemu-file.h"
#include "migration/misc.h"
#include "migration/migration.h"
#include "migration/savevm.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-memslots.h"
#include "qapi/qapi-commands-migration.h"
#include "qapi/qapi-commands-misc.h"
#include "qemu/main-loop.h"
#include "qemu/memfd.h"
#include "qemu/rcu.h"
#include "qemu/yank.h"
#include "qom/object.h"
#include "system/runstate.h"
#include "tests/qtest/libqos/libqos-malloc.h"
#include "tests/qtest/libqos/malloc-pc.h"
#include "tests/qtest/libqos/pci-pc.h"
#include "tests/qtest/virtio-mem/ops.h"
#include "fuzz.h"

#define RUNS_PER_DRAIN 100

static bool fuzz_set(QTestState *qts, const char *path, const char *property,
                     uint64_t value)
{
    Object *obj = object_resolve_path(path, NULL);

    return object_property_set_uint(obj, property, value, NULL);
}

static uint64_t fuzz_get(QTestState *qts, const char *path,
                         const char *property)
{
    Object *obj = object_resolve_path(path, NULL);

    return object_property_get_uint(obj, property, &error_abort);
}

static bool fuzz_get_bool(QTestState *qts, const char *path,
                          const char *property)
{
    Object *obj = object_resolve_path(path, NULL);

    return object_property_get_bool(obj, property, &error_abort);
}

static unsigned int fuzz_nb_mapped(QTestState *qts)
{
    g_autoptr(MemslotsInfo) info = qmp_query_memslots(&error_abort);

    return info->used;
}

static void fuzz_system_reset(QTestState *qts)
{
    qemu_system_reset(SHUTDOWN_CAUSE_GUEST_RESET);
}

static void fuzz_run(QTestState *qts, bool running)
{
    if (running) {
        vm_start();
    } else {
        vm_stop(RUN_STATE_PAUSED);
    }
}

/* Let other threads have the lock, and do what they leave for us. */
static void let_others_work(QTestState *qts)
{
    bql_unlock();
    g_usleep(100);
    bql_lock();
    flush_events(qts);
}

static void fuzz_migrate(QTestState *qts, bool start)
{
    MigrationState *s = migrate_get_current();
    g_autofree char *uri = NULL;
    static int fd = -1;

    if (start) {
        /* It is truncated each time. */
        if (fd < 0) {
            fd = qemu_memfd_create("stream", 0, false, 0, 0, &error_abort);
        }
        uri = g_strdup_printf("file:/proc/self/fd/%d", fd);
        /* Too slow to be over before we are; below 10 means no limit. */
        s->parameters.max_bandwidth = 1000;
        qmp_migrate(uri, false, NULL, false, false, false, false,
                    &error_abort);
        while (s->state != MIGRATION_STATUS_ACTIVE) {
            let_others_work(qts);
        }
    } else {
        g_assert_cmpint(s->state, ==, MIGRATION_STATUS_ACTIVE);
        qmp_migrate_cancel(&error_abort);
        while (s->state != MIGRATION_STATUS_CANCELLED || s->to_dst_file) {
            let_others_work(qts);
        }
    }
}

static void fuzz_measure_dirty_rate(QTestState *qts)
{
    unsigned int i;

    for (i = 0; i < 2; i++) {
        qmp_calc_dirty_rate(50, true, TIME_UNIT_MILLISECOND, false, 0, true,
                            DIRTY_RATE_MEASURE_MODE_DIRTY_BITMAP, NULL);
    }
    let_others_work(qts);
}

static GByteArray *fuzz_save(QTestState *qts)
{
    QIOChannelBuffer *ioc = qio_channel_buffer_new(64 * 1024);
    QEMUFile *file = qemu_file_new_output(QIO_CHANNEL(ioc));
    GByteArray *state = g_byte_array_new();

    g_assert_cmpint(qemu_save_device_state(file), ==, 0);
    g_assert_cmpint(qemu_fflush(file), ==, 0);
    g_byte_array_append(state, ioc->data, ioc->usage);
    qemu_fclose(file);
    object_unref(OBJECT(ioc));
    return state;
}

static bool fuzz_load(QTestState *qts, const GByteArray *state)
{
    QIOChannelBuffer *ioc = qio_channel_buffer_new(state->len);
    QEMUFile *file;
    int ret;

    memcpy(ioc->data, state->data, state->len);
    ioc->usage = state->len;
    file = qemu_file_new_input(QIO_CHANNEL(ioc));
    object_unref(OBJECT(ioc));
    g_assert_true(yank_register_instance(MIGRATION_YANK_INSTANCE, NULL));
    migrate_error_free(migrate_get_current());
    ret = qemu_loadvm_state(file);
    qemu_fclose(file);
    migration_incoming_state_destroy();
    return ret >= 0;
}

static VirtioMEMOps *ops;

static void virtio_mem_pre_fuzz(QTestState *qts)
{
    static VirtioMEMHost host = {
        .set = fuzz_set,
        .get = fuzz_get,
        .get_bool = fuzz_get_bool,
        .nb_mapped = fuzz_nb_mapped,
        .system_reset = fuzz_system_reset,
        .run = fuzz_run,
        .migrate = fuzz_migrate,
        .measure_dirty_rate = fuzz_measure_dirty_rate,
        .save = fuzz_save,
        .load = fuzz_load,
        .settle = let_others_work,
    };
    static QGuestAllocator alloc;
    sigset_t alarm;

    /* QEMU does not want it, but libFuzzer does, to see what takes too long. */
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);

    host.qts = qts;
    pc_alloc_init(&alloc, qts, ALLOC_NO_FLAGS);
    virtio_mem_ops_start(ops, &host, qpci_new_pc(qts, &alloc), &alloc);
}

static void virtio_mem_fuzz(QTestState *qts, const unsigned char *data,
                            size_t size)
{
    static unsigned int count;

    virtio_mem_ops_run(ops, data, size);
    flush_events(qts);
    /*
     * Flat views would pile up otherwise, as we never let go of the lock. Not
     * each time, as it waits for tens of milliseconds.
     */
    if (++count % RUNS_PER_DRAIN == 0) {
        drain_call_rcu();
    }
}

static void virtio_mem_fuzz_exit(void)
{
    virtio_mem_ops_remove_files(ops);
}

static GString *virtio_mem_fuzz_cmdline(FuzzTarget *t)
{
    g_autofree char *args = NULL;
    GString *cmdline = g_string_new(TARGET_NAME " -display none"
                                    " -accel qtest ");

    ops = virtio_mem_ops_new();
    atexit(virtio_mem_fuzz_exit);
    args = virtio_mem_ops_args(ops);
    return g_string_append(cmdline, args);
}

static void register_virtio_mem_fuzz_target(void)
{
    fuzz_add_target(&(FuzzTarget) {
        .name = "virtio-mem-fuzz",
        .description = "Fuzz requests to virtio-mem devices, their states, and"
                       " the memslots that they map",
        .get_init_cmdline = virtio_mem_fuzz_cmdline,
        .pre_fuzz = virtio_mem_pre_fuzz,
        .fuzz = virtio_mem_fuzz,
    });
}

fuzz_target_init(register_virtio_mem_fuzz_target);
