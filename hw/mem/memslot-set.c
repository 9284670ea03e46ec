/*
 * Memslot set: a RAM memory region, mapped piece by piece
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/mem/memslot-set.h"
#include "qemu/main-loop.h"
#include "trace.h"

struct MemslotSet {
    Object parent_obj;

    MemoryRegion container;
    /* the RAM memory region that the aliases point into */
    MemoryRegion *mr;
    /* NULL until the set is divided */
    MemslotPlan *plan;
    /* one per memslot of the plan; a subregion of the container if mapped */
    MemoryRegion *aliases;
};

MemslotSet *memslot_set_new(Object *parent, const char *name, MemoryRegion *mr)
{
    MemslotSet *set = MEMSLOT_SET(object_new(TYPE_MEMSLOT_SET));

    g_assert(bql_locked());
    g_assert(memory_region_is_ram(mr));

    object_property_add_child(parent, TYPE_MEMSLOT_SET, OBJECT(set));
    object_unref(set);

    /* Not a pure container: one would show what lies below where it is empty */
    memory_region_init_io(&set->container, OBJECT(set), NULL, NULL, name,
                          memory_region_size(mr));
    set->container.align = memory_region_get_alignment(mr);
    /* Handed down to all aliases, see memory_region_set_unmergeable(). */
    memory_region_set_unmergeable(&set->container, true);
    set->mr = mr;
    return set;
}

void memslot_set_divide(MemslotSet *set, MemslotPlan *plan)
{
    const unsigned int count = memslot_plan_count(plan);
    const uint64_t size = memory_region_size(set->mr);
    unsigned int i;

    g_assert(bql_locked());
    g_assert(!set->plan);
    g_assert(memslot_plan_offset(plan, count - 1) +
             memslot_plan_size(plan, count - 1) == size);

    set->plan = plan;
    trace_memslot_set_plan(memory_region_name(set->mr), size, count,
                           memslot_plan_size(plan, 0));

    set->aliases = g_new0(MemoryRegion, count);
    for (i = 0; i < count; i++) {
        g_autofree char *alias_name = g_strdup_printf("memslot-%u", i);

        memory_region_init_alias(&set->aliases[i], OBJECT(set), alias_name,
                                 set->mr, memslot_plan_offset(plan, i),
                                 memslot_plan_size(plan, i));
    }
}

bool memslot_set_is_divided(const MemslotSet *set)
{
    return set->plan;
}

MemoryRegion *memslot_set_container(MemslotSet *set)
{
    return &set->container;
}

unsigned int memslot_set_count(const MemslotSet *set)
{
    return set->plan ? memslot_plan_count(set->plan) : 1;
}

unsigned int memslot_set_count_mapped(const MemslotSet *set)
{
    unsigned int i, count = 0;

    g_assert(bql_locked());
    for (i = 0; set->plan && i < memslot_plan_count(set->plan); i++) {
        count += memory_region_is_mapped(&set->aliases[i]);
    }
    return count;
}

uint64_t memslot_set_mapped_size(const MemslotSet *set)
{
    uint64_t size = 0;
    unsigned int i;

    g_assert(bql_locked());
    for (i = 0; set->plan && i < memslot_plan_count(set->plan); i++) {
        if (memory_region_is_mapped(&set->aliases[i])) {
            size += memslot_plan_size(set->plan, i);
        }
    }
    return size;
}

static void memslot_set_map_one(MemslotSet *set, unsigned int memslot)
{
    const uint64_t offset = memslot_plan_offset(set->plan, memslot);

    trace_memslot_set_map(memory_region_name(set->mr), memslot, offset,
                          memslot_plan_size(set->plan, memslot));
    memory_region_add_subregion(&set->container, offset,
                                &set->aliases[memslot]);
}

static void memslot_set_unmap_one(MemslotSet *set, unsigned int memslot)
{
    trace_memslot_set_unmap(memory_region_name(set->mr), memslot,
                            memslot_plan_offset(set->plan, memslot),
                            memslot_plan_size(set->plan, memslot));
    memory_region_del_subregion(&set->container, &set->aliases[memslot]);
}

static bool memslot_set_is_wanted(const MemslotSet *set, unsigned int memslot,
                                  MemslotWanted *wanted, void *opaque)
{
    return !wanted || wanted(memslot_plan_offset(set->plan, memslot),
                             memslot_plan_size(set->plan, memslot), opaque);
}

static void memslot_set_find(const MemslotSet *set, uint64_t offset,
                             uint64_t size, unsigned int *first,
                             unsigned int *last)
{
    bool found;

    g_assert(bql_locked());
    g_assert(set->plan);
    found = memslot_plan_find(set->plan, offset, size, first, last);
    g_assert(found);
}

unsigned int memslot_set_count_missing(MemslotSet *set, uint64_t offset,
                                       uint64_t size, MemslotWanted *wanted,
                                       void *opaque)
{
    unsigned int i, first, last, missing = 0;

    memslot_set_find(set, offset, size, &first, &last);
    for (i = first; i <= last; i++) {
        missing += !memory_region_is_mapped(&set->aliases[i]) &&
                   memslot_set_is_wanted(set, i, wanted, opaque);
    }
    return missing;
}

MemslotHull memslot_set_sync(MemslotSet *set, uint64_t offset, uint64_t size,
                             MemslotWanted *wanted, void *opaque)
{
    MemslotHull unmapped = { .start = UINT64_MAX };
    unsigned int i, first, last;

    memslot_set_find(set, offset, size, &first, &last);

    memory_region_transaction_begin();
    for (i = first; i <= last; i++) {
        const bool is_mapped = memory_region_is_mapped(&set->aliases[i]);
        const bool is_wanted = memslot_set_is_wanted(set, i, wanted, opaque);

        if (is_wanted && !is_mapped) {
            memslot_set_map_one(set, i);
        } else if (!is_wanted && is_mapped) {
            const uint64_t start = memslot_plan_offset(set->plan, i);

            memslot_set_unmap_one(set, i);
            unmapped.start = MIN(unmapped.start, start);
            unmapped.end = start + memslot_plan_size(set->plan, i);
        }
    }
    memory_region_transaction_commit();
    return unmapped;
}

void memslot_set_for_each_unmapped(MemslotSet *set, uint64_t offset,
                                   uint64_t size, MemslotFunc *func,
                                   void *opaque)
{
    unsigned int i, first, last;

    memslot_set_find(set, offset, size, &first, &last);
    for (i = first; i <= last; i++) {
        if (!memory_region_is_mapped(&set->aliases[i])) {
            func(memslot_plan_offset(set->plan, i),
                 memslot_plan_size(set->plan, i), opaque);
        }
    }
}

static bool memslot_wanted_never(uint64_t offset, uint64_t size, void *opaque)
{
    return false;
}

void memslot_set_unmap_all(MemslotSet *set)
{
    if (set->plan) {
        memslot_set_sync(set, 0, memory_region_size(set->mr),
                         memslot_wanted_never, NULL);
    }
}

/* QOM has finalized the memory regions, which are children. */
static void memslot_set_finalize(Object *obj)
{
    MemslotSet *set = MEMSLOT_SET(obj);

    g_free(set->aliases);
    memslot_plan_free(set->plan);
}

static const TypeInfo memslot_set_types[] = {
    {
        .name = TYPE_MEMSLOT_SET,
        .parent = TYPE_OBJECT,
        .instance_size = sizeof(MemslotSet),
        .instance_finalize = memslot_set_finalize,
    }
};

DEFINE_TYPES(memslot_set_types)
