/*
 * virtio-mem fuzzing target
 *
 * Runs programs of virtio-mem/ops.c within QEMU. There is no fork for each of
 * them, as they all start from the same state.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-memslots.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
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

static unsigned int fuzz_nb_mapped(QTestState *qts)
{
    g_autoptr(MemslotsInfo) info = qmp_query_memslots(&error_abort);

    return info->used;
}

static void fuzz_system_reset(QTestState *qts)
{
    qemu_system_reset(SHUTDOWN_CAUSE_GUEST_RESET);
}

static VirtioMEMOps *ops;

static void virtio_mem_pre_fuzz(QTestState *qts)
{
    static VirtioMEMHost host = {
        .set = fuzz_set,
        .get = fuzz_get,
        .nb_mapped = fuzz_nb_mapped,
        .system_reset = fuzz_system_reset,
    };
    static QGuestAllocator alloc;

    host.qts = qts;
    pc_alloc_init(&alloc, qts, ALLOC_NO_FLAGS);
    ops = virtio_mem_ops_new(&host, qpci_new_pc(qts, &alloc), &alloc);
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

static GString *virtio_mem_fuzz_cmdline(FuzzTarget *t)
{
    g_autofree char *args = virtio_mem_ops_args();
    GString *cmdline = g_string_new(TARGET_NAME " -display none"
                                    " -accel qtest ");

    return g_string_append(cmdline, args);
}

static void register_virtio_mem_fuzz_target(void)
{
    fuzz_add_target(&(FuzzTarget) {
        .name = "virtio-mem-fuzz",
        .description = "Fuzz requests to virtio-mem devices, and the memslots"
                       " that these map",
        .get_init_cmdline = virtio_mem_fuzz_cmdline,
        .pre_fuzz = virtio_mem_pre_fuzz,
        .fuzz = virtio_mem_fuzz,
    });
}

fuzz_target_init(register_virtio_mem_fuzz_target);
