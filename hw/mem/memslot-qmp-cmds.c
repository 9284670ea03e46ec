/*
 * QMP commands related to memslots
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/boards.h"
#include "hw/mem/memslot-account.h"
#include "qapi/qapi-commands-memslots.h"

static const MemslotHolderType memslot_holder_types[] = {
    [MEMSLOT_HOLDER_KVM] = MEMSLOT_HOLDER_TYPE_KVM,
    [MEMSLOT_HOLDER_VHOST] = MEMSLOT_HOLDER_TYPE_VHOST,
    [MEMSLOT_HOLDER_PCI_PROXY] = MEMSLOT_HOLDER_TYPE_PCI_PROXY,
};

typedef struct HolderQuery {
    const MemslotAccount *account;
    MemslotHolderInfoList **tail;
} HolderQuery;

static void memslot_holder_query(const MemslotHolder *holder, void *opaque)
{
    HolderQuery *query = opaque;
    const MemslotCounts counts = memslot_account_counts(query->account, holder);
    MemslotHolderInfo *info = g_new0(MemslotHolderInfo, 1);

    info->type = memslot_holder_types[holder->kind];
    info->id = g_strdup(holder->id);
    info->has_limit = info->has_free = counts.limit != MEMSLOTS_UNLIMITED;
    if (info->has_limit) {
        info->limit = counts.limit;
        info->free = memslot_counts_free(&counts);
    }
    info->used = counts.used;
    info->reserved = counts.reserved;
    info->shared_only = holder->shared_only;
    info->whole_devices = holder->whole_devices;
    QAPI_LIST_APPEND(query->tail, info);
}

MemslotsInfo *qmp_query_memslots(Error **errp)
{
    const MemslotAccount *account = memslot_account_find(current_machine);
    const MemslotTally tally = memslot_account_tally(account, NULL);
    MemslotsInfo *info = g_new0(MemslotsInfo, 1);
    HolderQuery query = {
        .account = account,
        .tail = &info->holders,
    };

    info->soft_limit = MEMSLOTS_SOFT_LIMIT;
    info->required = tally.required;
    info->used = tally.used;
    info->reserved = tally.reserved;
    memslot_account_foreach_holder(memslot_holder_query, &query);
    return info;
}
