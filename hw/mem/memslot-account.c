/*
 * Memslot account: who holds memslots, and what memory devices were promised
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/mem/memslot-account.h"
#include "exec/address-spaces.h"
#include "hw/boards.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "system/kvm.h"
#include "system/kvm-try-memslots.h"
#include "trace.h"

/* What one memory device was promised, and has mapped of it. */
typedef struct MemslotPromise {
    /* what is mapped: @ram, or a container for memslots that are parts of it */
    MemoryRegion *mr;
    MemoryRegion *ram;
    hwaddr addr;
    unsigned int required;
    unsigned int used;
    QLIST_ENTRY(MemslotPromise) next;
} MemslotPromise;

/* One that holds memslots, beside KVM. */
typedef struct MemslotHolderEntry {
    MemslotHolderGet *get;
    void *opaque;
    QLIST_ENTRY(MemslotHolderEntry) next;
} MemslotHolderEntry;

static QLIST_HEAD(, MemslotHolderEntry) memslot_holders =
    QLIST_HEAD_INITIALIZER(memslot_holders);

static bool memslot_is_shared(MemoryRegion *ram)
{
    return memory_region_get_fd(ram) >= 0;
}

static bool memslot_holder_sees(const MemslotHolder *holder, MemoryRegion *ram)
{
    return !holder->shared_only || memslot_is_shared(ram);
}

static bool memslot_promise_is_on_demand(const MemslotPromise *promise)
{
    return promise->mr != promise->ram;
}

MemslotTally memslot_account_tally(const MemslotAccount *account,
                                   const MemslotHolder *holder)
{
    MemslotTally tally = {};
    const MemslotPromise *promise;

    if (!account) {
        return tally;
    }

    tally.used = holder && holder->shared_only ? 0 : account->strays;
    QLIST_FOREACH(promise, &account->promises, next) {
        unsigned int required = promise->required;
        unsigned int used = promise->used;

        if (holder && !memslot_holder_sees(holder, promise->ram)) {
            continue;
        }
        if (holder && holder->whole_devices &&
            memslot_promise_is_on_demand(promise)) {
            /* It is there from plug to unplug. */
            required = used = 1;
        }
        tally.required += required;
        tally.used += used;
        /* More used than required is a bug, but nothing to fall over. */
        tally.reserved += required - MIN(required, used);
    }
    return tally;
}

MemslotCounts memslot_account_counts(const MemslotAccount *account,
                                     const MemslotHolder *holder)
{
    return (MemslotCounts) {
        .limit = holder->limit,
        .used = holder->used,
        .reserved = memslot_account_tally(account, holder).reserved,
    };
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
 */
static bool memslot_account_count(MemslotAccount *account,
                                  MemoryRegionSection *section, int change)
{
    MemslotPromise *promise;

    if (!memory_region_is_ram(section->mr)) {
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

void memslot_account_init(MemslotAccount *account, AddressSpace *as)
{
    account->listener = (MemoryListener) {
        .name = "memslot-account",
        .region_add = memslot_account_region_add,
        .region_del = memslot_account_region_del,
    };
    memory_listener_register(&account->listener, as);
}

MemslotAccount *memslot_account_find(MachineState *ms)
{
    return ms && ms->device_memory ? &ms->device_memory->memslots : NULL;
}

void memslot_account_add_holder(MemslotHolderGet *get, void *opaque)
{
    MemslotHolderEntry *entry = g_new0(MemslotHolderEntry, 1);

    entry->get = get;
    entry->opaque = opaque;
    QLIST_INSERT_HEAD(&memslot_holders, entry, next);
}

void memslot_account_remove_holder(void *opaque)
{
    MemslotHolderEntry *entry;

    QLIST_FOREACH(entry, &memslot_holders, next) {
        if (entry->opaque == opaque) {
            QLIST_REMOVE(entry, next);
            g_free(entry);
            return;
        }
    }
}

void memslot_account_foreach_holder(MemslotHolderFunc *func, void *opaque)
{
    const MemslotHolderEntry *entry;

    if (kvm_enabled()) {
        const unsigned int limit = kvm_get_max_memslots();
        const MemslotHolder kvm = {
            .kind = MEMSLOT_HOLDER_KVM,
            .limit = limit,
            .used = limit - kvm_get_free_memslots(),
        };

        func(&kvm, opaque);
    }
    QLIST_FOREACH(entry, &memslot_holders, next) {
        const MemslotHolder holder = entry->get(entry->opaque);

        func(&holder, opaque);
    }
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
    const MemslotCounts counts = memslot_account_counts(collect->account,
                                                        holder);

    if (memslot_holder_sees(holder, collect->ram) && !holder->whole_devices) {
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
    const MemslotTally tally = memslot_account_tally(account, NULL);
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

    memslot_account_foreach_holder(memslot_holder_collect, &collect);
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
    /* who failed */
    MemslotRefuser refuser;
} HolderCheck;

static char *memslot_holder_name(const MemslotHolder *holder)
{
    static const char *const kinds[] = {
        [MEMSLOT_HOLDER_KVM] = "KVM",
        [MEMSLOT_HOLDER_VHOST] = "vhost backend",
        [MEMSLOT_HOLDER_PCI_PROXY] = "x-pci-proxy-dev",
    };

    return holder->id ? g_strdup_printf("%s '%s'", kinds[holder->kind],
                                        holder->id)
                      : g_strdup(kinds[holder->kind]);
}

/* What users can do if one cannot hold what was or is to be promised */
static void memslot_holder_append_hint(const MemslotHolder *holder,
                                       Error *const *errp)
{
    switch (holder->kind) {
    case MEMSLOT_HOLDER_KVM:
        error_append_hint(errp, "Use fewer, larger memory devices.\n");
        break;
    case MEMSLOT_HOLDER_VHOST:
        error_append_hint(errp, "Use a vhost backend that can hold more memory"
                          " regions, or fewer, larger memory devices.\n");
        break;
    case MEMSLOT_HOLDER_PCI_PROXY:
        error_append_hint(errp, "Use fewer, larger memory devices, with"
                          " 'multiple-memslots=off'.\n");
        break;
    }
}

static void memslot_holder_check_device(const MemslotHolder *holder,
                                        void *opaque)
{
    HolderCheck *check = opaque;
    const MemslotCounts counts = memslot_account_counts(check->account, holder);
    const unsigned int needed = holder->whole_devices ? 1 : check->memslots;
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
    memslot_holder_append_hint(holder, check->errp);
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

    memslot_account_foreach_holder(memslot_holder_check_device, &check);
    return !check.failed;
}

void memslot_account_promise(MachineState *ms, MemoryRegion *mr,
                             MemoryRegion *ram, hwaddr addr,
                             unsigned int memslots)
{
    MemslotAccount *account = memslot_account_find(ms);
    MemslotPromise *promise = g_new0(MemslotPromise, 1);

    promise->mr = memslot_resolve_alias(mr);
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
    const unsigned int needed = check->memslots;
    g_autofree char *name = NULL;

    /* What is shown as a whole is there already. */
    if (check->failed || holder->whole_devices || !needed ||
        !memslot_holder_sees(holder, check->ram) ||
        memslot_counts_fit(&counts, needed)) {
        return;
    }

    check->failed = true;
    check->refuser.kind = holder->kind;
    check->refuser.id = g_strdup(holder->id);
    name = memslot_holder_name(holder);
    error_setg(check->errp, "%s can hold %u memslots, of which %u are used, but"
               " %u more %s needed", name, counts.limit, counts.used, needed,
               needed == 1 ? "is" : "are");
    error_append_hint(check->errp, "'info memslots' shows who holds how many;"
                      " PCI devices with many BARs may have taken what is"
                      " missing.\n");
}

/* What a vhost backend refused between map_begin() and map_end(), if it did */
static struct {
    bool active;
    char *backend;
    Error *err;
} memslot_mapping;

bool memslot_account_map_begin(MemoryRegion *ram, unsigned int memslots,
                               MemslotRefuser *refuser, Error **errp)
{
    ERRP_GUARD();
    HolderCheck check = {
        .account = memslot_account_find(current_machine),
        .ram = ram,
        .memslots = memslots,
        .errp = errp,
    };

    memslot_account_foreach_holder(memslot_holder_check_map, &check);
    if (check.failed) {
        *refuser = check.refuser;
        return false;
    }

    g_assert(!memslot_mapping.active);
    memslot_mapping.active = true;
    if (kvm_enabled()) {
        kvm_try_memslots_begin();
    }
    return true;
}

bool memslot_account_refuse(const char *backend, int err)
{
    if (!memslot_mapping.active) {
        return false;
    }
    if (!memslot_mapping.err) {
        memslot_mapping.backend = g_strdup(backend);
        error_setg_errno(&memslot_mapping.err, err,
                         "vhost backend '%s' refused memory", backend);
        error_append_hint(&memslot_mapping.err, "The backend may have told"
                          " more, in a log of its own.\n");
    }
    return true;
}

bool memslot_account_map_end(MemslotRefuser *refuser, Error **errp)
{
    ERRP_GUARD();
    const int ret = kvm_enabled() ? kvm_try_memslots_end() : 0;
    g_autofree char *refused_by = g_steal_pointer(&memslot_mapping.backend);
    Error *refusal = g_steal_pointer(&memslot_mapping.err);

    memslot_mapping.active = false;
    if (ret) {
        refuser->kind = MEMSLOT_HOLDER_KVM;
        error_setg_errno(errp, -ret, "KVM cannot map more memory");
        error_append_hint(errp, "The host's kernel needs memory of its own for"
                          " each memslot.\n");
        error_free(refusal);
        return false;
    }
    if (refusal) {
        refuser->kind = MEMSLOT_HOLDER_VHOST;
        refuser->id = g_steal_pointer(&refused_by);
        error_propagate(errp, refusal);
        return false;
    }
    return true;
}

void memslot_refuser_clear(MemslotRefuser *refuser)
{
    g_clear_pointer(&refuser->id, g_free);
}

bool memslot_account_wants_whole_devices(const MemslotHolder *backend)
{
    const MemslotAccount *account = memslot_account_find(current_machine);
    const MemslotCounts counts = memslot_account_counts(account, backend);

    return memslot_counts_whole_devices(&counts);
}

bool memslot_account_check_holder(const MemslotHolder *holder, Error **errp)
{
    ERRP_GUARD();
    const MemslotAccount *account = memslot_account_find(current_machine);
    const MemslotCounts counts = memslot_account_counts(account, holder);
    g_autofree char *name = memslot_holder_name(holder);

    if (memslot_counts_fit(&counts, 0)) {
        return true;
    }

    error_setg(errp, "%s can hold %u memory regions, but %u are used and %u are"
               " reserved for memory devices", name, counts.limit, counts.used,
               counts.reserved);
    memslot_holder_append_hint(holder, errp);
    return false;
}

static gint memslot_promise_compare(gconstpointer a, gconstpointer b)
{
    const MemslotPromise *promise_a = *(MemslotPromise *const *)a;
    const MemslotPromise *promise_b = *(MemslotPromise *const *)b;

    return promise_a->addr < promise_b->addr ? -1 :
           promise_a->addr > promise_b->addr;
}

/*
 * Listeners ask while a device is unplugged, whose promise is released after
 * that: its memory region tells whether it is there.
 */
static bool memslot_promise_is_shown(const MemslotPromise *promise)
{
    return memslot_promise_is_on_demand(promise) &&
           memory_region_is_mapped(promise->mr);
}

void memslot_account_foreach_device(MemslotDeviceFunc *func, void *opaque)
{
    const MemslotAccount *account = memslot_account_find(current_machine);
    g_autoptr(GPtrArray) promises = g_ptr_array_new();
    MemslotPromise *promise;
    unsigned int i;

    if (!account) {
        return;
    }

    QLIST_FOREACH(promise, &account->promises, next) {
        if (memslot_promise_is_shown(promise)) {
            g_ptr_array_add(promises, promise);
        }
    }
    g_ptr_array_sort(promises, memslot_promise_compare);

    for (i = 0; i < promises->len; i++) {
        promise = g_ptr_array_index(promises, i);
        func(&(MemoryRegionSection) {
            .mr = promise->ram,
            .offset_within_address_space = promise->addr,
            .size = int128_make64(memory_region_size(promise->ram)),
            .unmergeable = true,
        }, opaque);
    }
}

bool memslot_account_is_on_demand(MemoryRegion *ram)
{
    MemslotAccount *account = memslot_account_find(current_machine);
    const MemslotPromise *promise;

    promise = account ? memslot_account_find_promise(account, ram) : NULL;
    return promise && memslot_promise_is_shown(promise);
}
