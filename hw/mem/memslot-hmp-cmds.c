/*
 * HMP commands related to memslots
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-memslots.h"

static void hmp_print_memslot_holder(Monitor *mon,
                                     const MemslotHolderInfo *holder)
{
    if (holder->id) {
        monitor_printf(mon, "Memslots [%s]: \"%s\"\n",
                       MemslotHolderType_str(holder->type), holder->id);
    } else {
        monitor_printf(mon, "Memslots [%s]\n",
                       MemslotHolderType_str(holder->type));
    }
    if (holder->has_limit) {
        monitor_printf(mon, "  limit: %" PRId64 "\n", holder->limit);
    }
    monitor_printf(mon, "  used: %" PRId64 "\n", holder->used);
    if (holder->has_free) {
        monitor_printf(mon, "  free: %" PRId64 "\n", holder->free);
    }
    monitor_printf(mon, "  reserved: %" PRId64 "\n", holder->reserved);
    monitor_printf(mon, "  shared-only: %s\n",
                   holder->shared_only ? "true" : "false");
    monitor_printf(mon, "  whole-devices: %s\n",
                   holder->whole_devices ? "true" : "false");
}

void hmp_info_memslots(Monitor *mon, const QDict *qdict)
{
    g_autoptr(MemslotsInfo) info = qmp_query_memslots(&error_abort);
    const MemslotHolderInfoList *holder;

    monitor_printf(mon, "Memslots [memory devices]\n");
    monitor_printf(mon, "  soft-limit: %" PRId64 "\n", info->soft_limit);
    monitor_printf(mon, "  required: %" PRId64 "\n", info->required);
    monitor_printf(mon, "  used: %" PRId64 "\n", info->used);
    monitor_printf(mon, "  reserved: %" PRId64 "\n", info->reserved);

    for (holder = info->holders; holder; holder = holder->next) {
        hmp_print_memslot_holder(mon, holder->value);
    }
}
