/*
 * Memslot set: a RAM memory region, mapped piece by piece
 *
 * A container memory region takes the place of a RAM memory region in guest
 * physical address space. The memslots of a plan are aliases into the RAM
 * memory region; each is mapped into the container only while asked for:
 *
 *     container   |          .          .          .      |
 *     mapped      | memslot-0 .         | memslot-2 .     |
 *     RAM region  |xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx|
 *
 * Where no memslot is mapped, accesses to the container fail as those to memory
 * that does not exist. Nothing that the container overlaps shows there: a guest
 * can place a PCI BAR anywhere.
 *
 * Each mapped memslot is a range of its own in the flat view, never joined with
 * its neighbours: mapping or unmapping it adds or removes exactly one memslot
 * of KVM per address space, and touches no other one.
 *
 * The set knows nothing of the device that uses it: which memslots are to be
 * mapped when is the device's rule.
 *
 * All functions must be called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MEM_MEMSLOT_SET_H
#define HW_MEM_MEMSLOT_SET_H

#include "exec/memory.h"
#include "hw/mem/memslot-plan.h"
#include "qom/object.h"

#define TYPE_MEMSLOT_SET "memslot-set"
OBJECT_DECLARE_SIMPLE_TYPE(MemslotSet, MEMSLOT_SET)

/**
 * MemslotWanted: the rule that tells whether a memslot is to be mapped
 *
 * @offset: start of the memslot, in bytes from the start of the region
 * @size: size of the memslot in bytes
 * @opaque: as given to memslot_set_sync()
 */
typedef bool MemslotWanted(uint64_t offset, uint64_t size, void *opaque);

/**
 * MemslotFunc: something to be done about a memslot
 *
 * @offset: start of the memslot, in bytes from the start of the region
 * @size: size of the memslot in bytes
 * @opaque: as given to memslot_set_for_each_unmapped()
 */
typedef void MemslotFunc(uint64_t offset, uint64_t size, void *opaque);

/**
 * struct MemslotHull: the smallest range that holds all of several memslots
 *
 * @start: where it starts, in bytes from the start of the region
 * @end: where it ends; not larger than @start if there is nothing
 */
typedef struct MemslotHull {
    uint64_t start;
    uint64_t end;
} MemslotHull;

/**
 * memslot_set_new: create a set that is not divided into memslots yet
 *
 * A device's memory region is asked for before it is known how many memslots
 * there may be, and must stay the same: so the container comes first.
 *
 * The set is an object by itself, and owns the container and the aliases. Flat
 * views refer to the container by its owner, so they keep the set when @parent
 * has gone, with whatever that is a part of.
 *
 * @parent: the set becomes its child of the name TYPE_MEMSLOT_SET, and goes
 *     with it. Each mapped memslot keeps a reference to the set: a device must
 *     unmap all memslots when it gets unrealized.
 * @name: name of the container; the aliases are named memslot-N
 * @mr: the RAM memory region; must stay alive as long as memslots get mapped or
 *     are mapped, and must not be mapped elsewhere
 */
MemslotSet *memslot_set_new(Object *parent, const char *name, MemoryRegion *mr);

/**
 * memslot_set_divide: divide a set into memslots, once, with nothing mapped
 *
 * To be called before anything gets mapped or visited.
 *
 * @set: the set
 * @plan: how to divide the RAM memory region, made for its size; the set takes
 *     ownership
 */
void memslot_set_divide(MemslotSet *set, MemslotPlan *plan);

/**
 * memslot_set_is_divided: whether memslot_set_divide() has been called
 *
 * @set: the set
 */
bool memslot_set_is_divided(const MemslotSet *set);

/**
 * memslot_set_container: the memory region to map in place of the RAM region
 *
 * It has the size and the alignment of the RAM memory region and lives as long
 * as the set.
 *
 * @set: the set
 */
MemoryRegion *memslot_set_container(MemslotSet *set);

/**
 * memslot_set_count: the number of memslots, mapped or not
 *
 * @set: the set; with one that is not divided it is one
 */
unsigned int memslot_set_count(const MemslotSet *set);

/**
 * memslot_set_count_mapped: the number of memslots that are mapped
 *
 * @set: the set
 */
unsigned int memslot_set_count_mapped(const MemslotSet *set);

/**
 * memslot_set_mapped_size: the size in bytes of the memslots that are mapped
 *
 * @set: the set
 */
uint64_t memslot_set_mapped_size(const MemslotSet *set);

/**
 * memslot_set_count_missing: how many memslots memslot_set_sync() would map
 *
 * Nothing is mapped or unmapped.
 *
 * @set: as for memslot_set_sync()
 * @offset: likewise
 * @size: likewise
 * @wanted: likewise
 * @opaque: likewise
 */
unsigned int memslot_set_count_missing(MemslotSet *set, uint64_t offset,
                                       uint64_t size, MemslotWanted *wanted,
                                       void *opaque);

/**
 * memslot_set_sync: map or unmap the memslots that a range touches, by a rule
 *
 * Each memslot that the range touches gets mapped if @wanted says so, else
 * unmapped, all in one memory transaction (which is nested in one that the
 * caller began). Those that are as they should be stay as they are.
 *
 * @set: the set
 * @offset: start of the range, in bytes from the start of the region
 * @size: size of the range in bytes; the range must be within the region
 * @wanted: called for each memslot that the range touches, with the memslot's
 *     own offset and size; must not change any mapping. NULL: all are wanted.
 * @opaque: passed to @wanted
 *
 * Returns: where memslots have been unmapped; those in between may be mapped.
 */
MemslotHull memslot_set_sync(MemslotSet *set, uint64_t offset, uint64_t size,
                             MemslotWanted *wanted, void *opaque);

/**
 * memslot_set_for_each_unmapped: visit the unmapped memslots that a range
 * touches
 *
 * @set: the set
 * @offset: start of the range, in bytes from the start of the region
 * @size: size of the range in bytes; the range must be within the region
 * @func: called for each memslot that the range touches and that is not mapped;
 *     must not change any mapping
 * @opaque: passed to @func
 */
void memslot_set_for_each_unmapped(MemslotSet *set, uint64_t offset,
                                   uint64_t size, MemslotFunc *func,
                                   void *opaque);

/**
 * memslot_set_unmap_all: unmap all memslots, in one memory transaction
 *
 * @set: the set, divided or not
 */
void memslot_set_unmap_all(MemslotSet *set);

#endif /* HW_MEM_MEMSLOT_SET_H */
