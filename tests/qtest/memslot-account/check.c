/*
 * The check after each step of a test of the memslot account
 *
 * What "query-memslots" counts has to be what the model says, what the flat
 * view shows, and what each vhost backend really holds.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

/* ---- What the flat view shows ---- */

static const Mem *find_memdev(const TestVM *vm, const char *memdev)
{
    const Mem *mem;

    for_each_mem(mem, vm) {
        if (g_str_equal(mem->memdev, memdev)) {
            return mem;
        }
    }
    return NULL;
}

/* Test devices all have the same name. */
static bool range_is_shared(const TestVM *vm, const QFlatRange *range)
{
    const Mem *mem = find_memdev(vm, range->name);

    if (mem) {
        return mem->config.shared;
    }
    if (g_str_equal(range->name, "memslot-testdev")) {
        return range->addr >= SHARED_TESTDEV_ADDR;
    }
    return g_str_has_prefix(range->name, "boot");
}

typedef struct Shown {
    /* in device memory */
    unsigned int all;
    unsigned int shared;
    /* in KVM's address space for memory */
    unsigned int kvm;
    /*
     * The memory regions that vhost-user has to know: QVhostUserRegion. In [1],
     * those of backends that are shown whole devices, from plug to unplug.
     */
    GArray *regions[2];
} Shown;

static void shown_clear(Shown *shown)
{
    g_array_unref(shown->regions[false]);
    g_array_unref(shown->regions[true]);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Shown, shown_clear)

/* vhost joins neighbours, but for memslots of one device. */
static void add_shown_region(GArray *regions, const QFlatRange *range,
                             bool may_join)
{
    const QVhostUserRegion region = {
        .addr = range->addr,
        .size = range->size,
        .mmap_offset = range->offset,
    };
    QVhostUserRegion *last = NULL;

    if (regions->len) {
        last = &g_array_index(regions, QVhostUserRegion, regions->len - 1);
    }
    if (may_join && last && last->addr + last->size == region.addr &&
        last->mmap_offset + last->size == region.mmap_offset) {
        last->size += region.size;
        return;
    }
    g_array_append_val(regions, region);
}

static void add_whole_devices(GArray *regions, const TestVM *vm)
{
    const Mem *mem;

    for_each_mem(mem, vm) {
        if (mem->config.multiple && mem->config.shared) {
            const QVhostUserRegion region = {
                .addr = mem->addr,
                .size = mem->config.size,
            };

            g_array_append_val(regions, region);
        }
    }
}

static gint compare_regions(gconstpointer a, gconstpointer b)
{
    const uint64_t addr_a = ((const QVhostUserRegion *)a)->addr;
    const uint64_t addr_b = ((const QVhostUserRegion *)b)->addr;

    return addr_a < addr_b ? -1 : addr_a > addr_b;
}

static void shown_add_region(Shown *shown, const Mem *mem,
                             const QFlatRange *range, bool may_join)
{
    add_shown_region(shown->regions[false], range, may_join);
    if (!mem || !mem->config.multiple) {
        add_shown_region(shown->regions[true], range, may_join);
    }
}

static void show_flat_view(TestVM *vm, Shown *shown)
{
    g_autoptr(GArray) ranges = qmonitor_flat_view(vm->mon);
    unsigned int i;

    *shown = (Shown) {
        .regions = {
            g_array_new(false, false, sizeof(QVhostUserRegion)),
            g_array_new(false, false, sizeof(QVhostUserRegion)),
        },
    };
    for (i = 0; i < ranges->len; i++) {
        const QFlatRange *range = &g_array_index(ranges, QFlatRange, i);
        const bool in_device_memory = range->addr >= DEVICE_MEMORY_BASE;

        shown->kvm += range->kvm;
        if (!range->ram) {
            continue;
        }
        shown->all += in_device_memory;
        if (range_is_shared(vm, range)) {
            shown->shared += in_device_memory;
            shown_add_region(shown, find_memdev(vm, range->name), range,
                             !in_device_memory);
        }
    }
    add_whole_devices(shown->regions[true], vm);
    g_array_sort(shown->regions[true], compare_regions);
}

/* ---- What QEMU and the backends say ---- */

static void check_holder(TestVM *vm, const QDict *info, const Backend *backend)
{
    const Holder holder = vm_holder(vm, backend);

    g_assert_cmpstr(qdict_get_str(info, "type"), ==,
                    backend ? "vhost" : "kvm");
    g_assert_cmpstr(qdict_get_try_str(info, "id"), ==,
                    backend ? backend->id : NULL);
    g_assert_cmpint(qdict_get_int(info, "limit"), ==, holder.limit);
    g_assert_cmpint(qdict_get_int(info, "used"), ==, holder.used);
    g_assert_cmpint(qdict_get_int(info, "free"), ==,
                    saturating_sub(holder.limit, holder.used));
    g_assert_cmpint(qdict_get_int(info, "reserved"), ==, holder.reserved);
    g_assert_cmpint(qdict_get_bool(info, "shared-only"), ==,
                    holder.shared_only);
    g_assert_cmpint(qdict_get_bool(info, "whole-devices"), ==,
                    holder.whole_devices);
}

static void check_query(TestVM *vm)
{
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-memslots' }");
    const QDict *info = qdict_get_qdict(rsp, "return");
    const QListEntry *entry;
    unsigned int i;

    g_assert_nonnull(info);
    g_assert_cmpint(qdict_get_int(info, "soft-limit"), ==, SOFT_LIMIT);
    g_assert_cmpint(qdict_get_int(info, "required"), ==,
                    vm_required(vm, false));
    g_assert_cmpint(qdict_get_int(info, "used"), ==, vm_used(vm, false));
    g_assert_cmpint(qdict_get_int(info, "reserved"), ==,
                    vm_reserved(vm, false));

    entry = qlist_first(qdict_get_qlist(info, "holders"));
    if (vm->kvm) {
        check_holder(vm, qobject_to(QDict, qlist_entry_obj(entry)), NULL);
        entry = qlist_next(entry);
    }
    for (i = vm->backends->len; i > 0; i--) {
        g_assert_nonnull(entry);
        check_holder(vm, qobject_to(QDict, qlist_entry_obj(entry)),
                     g_ptr_array_index(vm->backends, i - 1));
        entry = qlist_next(entry);
    }
    g_assert_null(entry);
    qobject_unref(rsp);
}

static bool region_equal(const QVhostUserRegion *a, const QVhostUserRegion *b)
{
    return a->addr == b->addr && a->size == b->size &&
           a->mmap_offset == b->mmap_offset;
}

/* How many regions are in only one of two tables, which have an order */
static unsigned int count_changes(GArray *a, GArray *b)
{
    unsigned int i = 0, j = 0, count = 0;

    while (i < a->len && j < b->len) {
        const QVhostUserRegion *x = &g_array_index(a, QVhostUserRegion, i);
        const QVhostUserRegion *y = &g_array_index(b, QVhostUserRegion, j);

        if (region_equal(x, y)) {
            i++;
            j++;
            continue;
        }
        count++;
        if (x->addr <= y->addr) {
            i++;
        } else {
            j++;
        }
    }
    return count + (a->len - i) + (b->len - j);
}

/* A backend is told what changed, and nothing if nothing did. */
static void check_messages(Backend *backend, GArray *regions)
{
    const unsigned int messages =
        qvhost_user_backend_nr_messages(backend->vu, VHOST_USER_NONE);

    if (backend->last_regions) {
        const unsigned int changes = count_changes(backend->last_regions,
                                                   regions);
        const unsigned int count = messages - backend->last_messages;

        if (backend->configurable || !changes) {
            g_assert_cmpuint(count, ==, changes);
        } else {
            g_assert_cmpuint(count, >=, 1);
            g_assert_cmpuint(count, <=, changes);
        }
        g_array_unref(backend->last_regions);
    }
    backend->last_regions = g_array_ref(regions);
    backend->last_messages = messages;
}

void backend_forget(Backend *backend)
{
    if (backend->last_regions) {
        g_array_unref(backend->last_regions);
        backend->last_regions = NULL;
    }
}

/* A backend that is not started holds what it held when it was. */
static void check_backend(Backend *backend, const Shown *shown)
{
    GArray *expected = shown->regions[backend->whole_devices];
    g_autofree char *error = NULL;
    g_autoptr(GArray) regions = NULL;
    unsigned int i;

    if (backend->started) {
        qvhost_user_backend_wait_started(backend->vu);
    }
    error = qvhost_user_backend_error(backend->vu);
    g_assert_cmpstr(error, ==, NULL);
    if (!backend->started) {
        g_assert_false(qvhost_user_backend_started(backend->vu));
        return;
    }
    regions = qvhost_user_backend_regions(backend->vu);
    g_assert_cmpuint(regions->len, ==, expected->len);
    for (i = 0; i < expected->len; i++) {
        const QVhostUserRegion *a = &g_array_index(regions, QVhostUserRegion,
                                                   i);
        const QVhostUserRegion *b = &g_array_index(expected, QVhostUserRegion,
                                                   i);

        g_assert_cmphex(a->addr, ==, b->addr);
        g_assert_cmphex(a->size, ==, b->size);
        g_assert_cmphex(a->mmap_offset, ==, b->mmap_offset);
    }
    check_messages(backend, regions);
}

void vm_check(TestVM *vm)
{
    g_auto(Shown) shown = { };
    Backend *backend;

    check_query(vm);
    show_flat_view(vm, &shown);
    g_assert_cmpuint(shown.all, ==, vm_used(vm, false));
    g_assert_cmpuint(shown.shared, ==, vm_used(vm, true));
    if (vm->kvm) {
        g_assert_cmpuint(shown.kvm + vm->kvm_extra, ==,
                         vm_holder(vm, NULL).used);
    }
    for_each_backend(backend, vm) {
        g_assert_cmpuint(shown.regions[backend->whole_devices]->len, ==,
                         vm_holder(vm, backend).used);
        check_backend(backend, &shown);
    }
}

void vm_measure(TestVM *vm)
{
    g_auto(Shown) shown = { };
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-memslots' }");
    const QList *holders = qdict_get_qlist(qdict_get_qdict(rsp, "return"),
                                           "holders");

    show_flat_view(vm, &shown);
    g_assert_cmpuint(shown.all, ==, 0);
    vm->base_shared = shown.regions[false]->len;
    if (vm->kvm) {
        const QDict *kvm = qobject_to(QDict,
                                      qlist_entry_obj(qlist_first(holders)));

        vm->kvm_limit = qdict_get_int(kvm, "limit");
        vm->base_kvm = qdict_get_int(kvm, "used");
        vm->kvm_extra = vm->base_kvm - shown.kvm;
    }
    qobject_unref(rsp);
}
