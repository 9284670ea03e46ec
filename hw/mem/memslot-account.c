/*
 * Memslot account: who holds memslots, and what memory devices were promised
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "hw/mem/memslot-account.h"
#include "exec/address-spaces.h"
#include "hw/boards.h"
#include "hw/virtio/vhost.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-machine.h"
#include "qemu/error-report.h"
#include "sysemu/kvm.h"
#include "trace.h"

/* What one memory device was promised, and has mapped of it. */
typedef struct MemslotPromise {
    MemoryRegion *ram;
    hwaddr addr;
    unsigned int required;
    unsigned int used;
    QLIST_ENTRY(MemslotPromise) next;
} MemslotPromise;

/* Sums of several promises. */
typedef struct MemslotTally {
    unsigned int required;
    unsigned int used;
    unsigned int reserved;
} MemslotTally;

static bool memslot_is_shared(MemoryRegion *ram)
{
    return memory_region_get_fd(ram) >= 0;
}

/* The promises as one sees them that has to hold the memslots. */
static MemslotTally memslot_account_tally(const MemslotAccount *account,
                                          bool shared_only, bool coalesced)
{
    const unsigned int most = coalesced ? 1 : UINT_MAX;
    MemslotTally tally = {};
    const MemslotPromise *promise;

    if (!account) {
        return tally;
    }

    tally.used = shared_only ? 0 : account->strays;
    QLIST_FOREACH(promise, &account->promises, next) {
        const unsigned int required = MIN(promise->required, most);
        const unsigned int used = MIN(promise->used, most);

        if (shared_only && !memslot_is_shared(promise->ram)) {
            continue;
        }
        tally.required += required;
        tally.used += used;
        /* More used than required is a bug, but nothing to fall over. */
        tally.reserved += required - MIN(required, used);
    }
    return tally;
}

static MemoryRegion *memslot_resolve_alias(MemoryRegion *mr)
{
    while (mr->alias) {
        mr = mr->alias;
    }
    return mr;
}

static MemslotPromise *memslot_account_find_promise(MemslotAccount *account,
                                                    MemoryRegion *ram)
{
    MemslotPromise *promise;

    QLIST_FOREACH(promise, &account->promises, next) {
        if (promise->ram == ram) {
            break;
        }
    }
    return promise;
}

/*
 * Count a section of the device memory with what its memory device was
 * promised, or with the strays. Returns whether it is covered by a promise, or
 * of no concern.
 *
 * The listener is not one of an address space of its own: all its flat views
 * would have to be generated, too. This way, we see what KVM and vhost see.
 */
static bool memslot_account_count(MemslotAccount *account,
                                  MemoryRegionSection *section, int change)
{
    DeviceMemoryState *dms = container_of(account, DeviceMemoryState, memslots);
    const hwaddr addr = section->offset_within_address_space;
    MemslotPromise *promise;

    if (!memory_region_is_ram(section->mr) || addr < dms->base ||
        addr - dms->base >= memory_region_size(&dms->mr)) {
        return true;
    }

    promise = memslot_account_find_promise(account, section->mr);
    if (!promise) {
        account->strays += change;
        return false;
    }
    promise->used += change;
    return promise->used <= promise->required;
}

static void memslot_account_region_add(MemoryListener *listener,
                                       MemoryRegionSection *section)
{
    MemslotAccount *account = container_of(listener, MemslotAccount, listener);

    if (!memslot_account_count(account, section, 1)) {
        warn_report_once("more memslots are mapped into the device memory than"
                         " memory devices asked for: memory region '%s'",
                         memory_region_name(section->mr));
    }
}

static void memslot_account_region_del(MemoryListener *listener,
                                       MemoryRegionSection *section)
{
    MemslotAccount *account = container_of(listener, MemslotAccount, listener);

    memslot_account_count(account, section, -1);
}

/* Returns NULL if there is no device memory, and so no promises. */
static MemslotAccount *memslot_account_find(MachineState *ms)
{
    MemslotAccount *account;

    if (!ms || !ms->device_memory) {
        return NULL;
    }

    account = &ms->device_memory->memslots;
    if (!account->listener.name) {
        account->listener = (MemoryListener) {
            .name = "memslot-account",
            .region_add = memslot_account_region_add,
            .region_del = memslot_account_region_del,
        };
        memory_listener_register(&account->listener, &address_space_memory);
    }
    return account;
}

static MemslotCounts memslot_holder_counts(const MemslotHolder *holder,
                                           const MemslotAccount *account)
{
    return (MemslotCounts) {
        .limit = holder->limit,
        .used = holder->used,
        .reserved = memslot_account_tally(account, holder->shared_only,
                                          holder->coalesced).reserved,
    };
}

static bool memslot_holder_sees(const MemslotHolder *holder, MemoryRegion *ram)
{
    return !holder->shared_only || memslot_is_shared(ram);
}

static void foreach_memslot_holder(MemslotHolderFunc *func, void *opaque)
{
    if (kvm_enabled()) {
        const unsigned int limit = kvm_get_max_memslots();
        const MemslotHolder kvm = {
            .limit = limit,
            .used = limit - kvm_get_free_memslots(),
        };

        func(&kvm, opaque);
    }
    vhost_foreach_memslot_holder(func, opaque);
}

typedef struct HolderCounts {
    const MemslotAccount *account;
    MemoryRegion *ram;
    const char *id;
    /* of MemslotCounts */
    GArray *counts;
} HolderCounts;

static void memslot_holder_collect(const MemslotHolder *holder, void *opaque)
{
    HolderCounts *collect = opaque;
    const MemslotCounts counts = memslot_holder_counts(holder,
                                                       collect->account);

    if (memslot_holder_sees(holder, collect->ram) && !holder->coalesced) {
        trace_memslot_account_holder(collect->id,
                                     holder->id ? holder->id : "KVM",
                                     counts.limit, counts.used,
                                     counts.reserved);
        g_array_append_val(collect->counts, counts);
    }
}

unsigned int memslot_account_budget(MachineState *ms, const char *id,
                                    MemoryRegion *ram, uint64_t unassigned_size)
{
    const MemslotAccount *account = memslot_account_find(ms);
    const MemslotTally tally = memslot_account_tally(account, false, false);
    g_autoptr(GArray) counts = g_array_new(false, false, sizeof(MemslotCounts));
    HolderCounts collect = {
        .account = account,
        .ram = ram,
        .id = id ? id : "",
        .counts = counts,
    };
    MemslotBudgetFacts facts = {
        .required_memslots = tally.required,
        .region_size = memory_region_size(ram),
        .unassigned_size = unassigned_size,
    };
    unsigned int budget;

    foreach_memslot_holder(memslot_holder_collect, &collect);
    facts.holders = (MemslotCounts *)counts->data;
    facts.nr_holders = counts->len;

    budget = memslot_budget(&facts);
    trace_memslot_account_budget(collect.id, tally.required, tally.used,
                                 facts.region_size, facts.unassigned_size,
                                 budget);
    return budget;
}

typedef struct HolderCheck {
    MemslotAccount *account;
    MemoryRegion *ram;
    const char *id;
    unsigned int memslots;
    Error **errp;
    bool failed;
} HolderCheck;

static char *memslot_holder_name(const MemslotHolder *holder)
{
    return holder->id ? g_strdup_printf("vhost backend '%s'", holder->id)
                      : g_strdup("KVM");
}

static void memslot_holder_check_device(const MemslotHolder *holder,
                                        void *opaque)
{
    HolderCheck *check = opaque;
    const MemslotCounts counts = memslot_holder_counts(holder, check->account);
    const unsigned int needed = holder->coalesced ? 1 : check->memslots;
    g_autofree char *name = NULL;

    if (check->failed || !memslot_holder_sees(holder, check->ram) ||
        memslot_counts_fit(&counts, needed)) {
        return;
    }

    check->failed = true;
    name = memslot_holder_name(holder);
    error_setg(check->errp, "not enough memslots for memory device '%s': %s can"
               " hold %u, of which %u are used and %u are reserved for other"
               " memory devices, but %u %s needed", check->id, name,
               counts.limit, counts.used, counts.reserved, needed,
               needed == 1 ? "is" : "are");
    error_append_hint(check->errp, "Use fewer, larger memory devices%s.\n",
                      holder->id ? ", or a vhost backend that can hold more"
                                   " memory regions" : "");
}

bool memslot_account_check_device(MachineState *ms, const char *id,
                                  MemoryRegion *ram, unsigned int memslots,
                                  Error **errp)
{
    ERRP_GUARD();
    HolderCheck check = {
        .account = memslot_account_find(ms),
        .ram = ram,
        .id = id ? id : "",
        .memslots = memslots,
        .errp = errp,
    };

    foreach_memslot_holder(memslot_holder_check_device, &check);
    return !check.failed;
}

void memslot_account_promise(MachineState *ms, MemoryRegion *ram,
                             hwaddr addr, unsigned int memslots)
{
    MemslotAccount *account = memslot_account_find(ms);
    MemslotPromise *promise = g_new0(MemslotPromise, 1);

    promise->ram = memslot_resolve_alias(ram);
    promise->addr = addr;
    promise->required = memslots;
    QLIST_INSERT_HEAD(&account->promises, promise, next);
    trace_memslot_account_promise(memory_region_name(promise->ram), memslots);
}

void memslot_account_release(MachineState *ms, MemoryRegion *ram)
{
    MemslotAccount *account = memslot_account_find(ms);
    MemslotPromise *promise;

    promise = memslot_account_find_promise(account, memslot_resolve_alias(ram));
    trace_memslot_account_release(memory_region_name(promise->ram),
                                  promise->required);
    QLIST_REMOVE(promise, next);
    g_free(promise);
}

static void memslot_holder_check_map(const MemslotHolder *holder, void *opaque)
{
    HolderCheck *check = opaque;
    const MemslotCounts counts = {
        .limit = holder->limit,
        .used = holder->used,
    };
    unsigned int needed = check->memslots;
    g_autofree char *name = NULL;

    if (holder->coalesced) {
        const MemslotPromise *promise;

        promise = memslot_account_find_promise(check->account, check->ram);
        needed = promise && promise->used ? 0 : MIN(needed, 1);
    }
    if (check->failed || !needed || !memslot_holder_sees(holder, check->ram) ||
        memslot_counts_fit(&counts, needed)) {
        return;
    }

    check->failed = true;
    name = memslot_holder_name(holder);
    error_setg(check->errp, "%s can hold %u memslots, of which %u are used, but"
               " %u more %s needed", name, counts.limit, counts.used, needed,
               needed == 1 ? "is" : "are");
    error_append_hint(check->errp, "'info memslots' shows who holds how many;"
                      " PCI devices with many BARs may have taken what is"
                      " missing.\n");
}

bool memslot_account_map_begin(MemoryRegion *ram, unsigned int memslots,
                               Error **errp)
{
    ERRP_GUARD();
    HolderCheck check = {
        .account = memslot_account_find(current_machine),
        .ram = ram,
        .memslots = memslots,
        .errp = errp,
    };

    foreach_memslot_holder(memslot_holder_check_map, &check);
    if (check.failed) {
        return false;
    }

    if (kvm_enabled()) {
        kvm_try_memslots_begin();
    }
    return true;
}

bool memslot_account_map_end(Error **errp)
{
    ERRP_GUARD();
    const int ret = kvm_enabled() ? kvm_try_memslots_end() : 0;

    if (ret) {
        error_setg_errno(errp, -ret, "KVM cannot map more memory");
        error_append_hint(errp, "The host's kernel needs memory of its own for"
                          " each memslot.\n");
    }
    return !ret;
}

bool memslot_account_wants_coalesced(const MemslotHolder *backend)
{
    const MemslotAccount *account = memslot_account_find(current_machine);
    const MemslotCounts counts = memslot_holder_counts(backend, account);

    return memslot_counts_coalesce(&counts);
}

void memslot_account_coalesce(MemoryRegionSection *section)
{
    DeviceMemoryState *dms = current_machine ? current_machine->device_memory
                                             : NULL;
    const MemslotPromise *promise;

    /* Listeners call us, so this is not the time to register another one. */
    promise = dms ? memslot_account_find_promise(&dms->memslots, section->mr)
                  : NULL;
    if (!promise || promise->required == 1 ||
        section->offset_within_address_space - promise->addr !=
        section->offset_within_region) {
        return;
    }

    section->offset_within_address_space = promise->addr;
    section->offset_within_region = 0;
    section->size = int128_make64(memory_region_size(promise->ram));
}

bool memslot_account_check_vhost(const MemslotHolder *backend, Error **errp)
{
    ERRP_GUARD();
    const MemslotAccount *account = memslot_account_find(current_machine);
    const MemslotCounts counts = memslot_holder_counts(backend, account);

    if (memslot_counts_fit(&counts, 0)) {
        return true;
    }

    error_setg(errp, "vhost backend '%s' can hold %u memory regions, but %u are"
               " used and %u are reserved for memory devices", backend->id,
               counts.limit, counts.used, counts.reserved);
    error_append_hint(errp, "Use a vhost backend that can hold more memory"
                      " regions, or fewer memory devices.\n");
    return false;
}

typedef struct HolderQuery {
    const MemslotAccount *account;
    MemslotHolderInfoList **tail;
} HolderQuery;

static void memslot_holder_query(const MemslotHolder *holder, void *opaque)
{
    HolderQuery *query = opaque;
    const MemslotCounts counts = memslot_holder_counts(holder, query->account);
    MemslotHolderInfo *info = g_new0(MemslotHolderInfo, 1);

    info->type = holder->id ? MEMSLOT_HOLDER_TYPE_VHOST
                            : MEMSLOT_HOLDER_TYPE_KVM;
    info->has_id = holder->id;
    info->id = g_strdup(holder->id);
    info->has_limit = info->has_free = counts.limit != MEMSLOTS_UNLIMITED;
    if (info->has_limit) {
        info->limit = counts.limit;
        info->free = memslot_counts_free(&counts);
    }
    info->used = counts.used;
    info->reserved = counts.reserved;
    info->shared_only = holder->shared_only;
    info->coalesced = holder->coalesced;
    QAPI_LIST_APPEND(query->tail, info);
}

MemslotsInfo *qmp_query_memslots(Error **errp)
{
    const MemslotAccount *account = memslot_account_find(current_machine);
    const MemslotTally tally = memslot_account_tally(account, false, false);
    MemslotsInfo *info = g_new0(MemslotsInfo, 1);
    HolderQuery query = {
        .account = account,
        .tail = &info->holders,
    };

    info->soft_limit = MEMSLOTS_SOFT_LIMIT;
    info->required = tally.required;
    info->used = tally.used;
    info->reserved = tally.reserved;
    foreach_memslot_holder(memslot_holder_query, &query);
    return info;
}
