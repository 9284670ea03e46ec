/*
 * Memslot plan: how the memory region of a memory device is divided
 *
 * A device that provides memory on demand (virtio-mem) has a memory region that
 * is much larger than what is in use. KVM and vhost keep metadata for all of a
 * memslot, so the region gets divided into memslots that are mapped as they are
 * needed. The plan is the arithmetic of that: where one memslot ends and the
 * next one starts. It knows of no memory region, accelerator or device.
 *
 * All plans tile the region exactly, in order and without gaps. Memslots differ
 * in size: guests plug memory from the start of a region, so the memslots there
 * are the smallest, and grow with the memory that lies before them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MEM_MEMSLOT_PLAN_H
#define HW_MEM_MEMSLOT_PLAN_H

/*
 * The smallest memslot that is worth having by default: KVM's metadata for
 * 1 GiB is 2.5 MiB at most, and a guest page of 1 GiB is never cut in two.
 */
#define MEMSLOT_PLAN_DEFAULT_MIN_SIZE (1 * GiB)

/*
 * How much larger than equal memslots the largest one is by default: where a
 * guest plugs its blocks anywhere, a memslot is mapped for a single one.
 */
#define MEMSLOT_PLAN_DEFAULT_SPREAD 2

typedef struct MemslotPlan MemslotPlan;

/**
 * MemslotPlanInput: what a plan is made from
 * @region_size: size of the region in bytes; a multiple of @alignment
 * @alignment: power of two in bytes that all boundaries between memslots are
 *     multiples of, relative to the start of the region. At least the block
 *     size of the device and the page size of its memory backend.
 * @min_memslot_size: power of two in bytes; no memslot but the last one is
 *     smaller
 * @budget: the most memslots that the plan may have, at least one
 * @spread: at least one; no memslot is larger than this many would be if all
 *     were equal
 */
typedef struct MemslotPlanInput {
    uint64_t region_size;
    uint64_t alignment;
    uint64_t min_memslot_size;
    unsigned int budget;
    unsigned int spread;
} MemslotPlanInput;

/**
 * memslot_plan_new: divide a region into memslots
 *
 * Of all plans that the input allows, this one maps the least for a guest that
 * plugs its memory from the start of the region. Its measure is the worst ratio
 * of what is mapped to what is plugged, from the smallest memslot on, where one
 * smallest memslot more is for free:
 *
 *     mapped <= MAX(ratio * plugged, plugged + smallest memslot)
 *
 * Memslots of 1 GiB and more are multiples of 1 GiB, smaller ones are powers of
 * two, and all of them are aligned accordingly: no boundary lies within an
 * (aligned) page of 1 GiB, except between memslots that are smaller. The last
 * memslot takes what is left, whatever its size.
 *
 * A pure function that may be called at any time from any thread.
 *
 * Returns: the plan, to be freed with memslot_plan_free(); on bad input NULL,
 * with @errp set.
 */
MemslotPlan *memslot_plan_new(const MemslotPlanInput *input, Error **errp);

/**
 * memslot_plan_free: free a plan
 *
 * @plan: the plan; NULL is fine
 */
void memslot_plan_free(MemslotPlan *plan);

/**
 * memslot_plan_count: the number of memslots, at least one
 */
unsigned int memslot_plan_count(const MemslotPlan *plan);

/**
 * memslot_plan_offset: where a memslot starts
 *
 * @plan: the plan
 * @memslot: index of the memslot, less than memslot_plan_count()
 *
 * Returns: offset in bytes from the start of the region.
 */
uint64_t memslot_plan_offset(const MemslotPlan *plan, unsigned int memslot);

/**
 * memslot_plan_size: how large a memslot is
 *
 * @plan: the plan
 * @memslot: index of the memslot, less than memslot_plan_count()
 *
 * Returns: size in bytes, never zero.
 */
uint64_t memslot_plan_size(const MemslotPlan *plan, unsigned int memslot);

/**
 * memslot_plan_find: find the memslots that a range touches
 *
 * Takes time logarithmic in the number of memslots.
 *
 * @plan: the plan
 * @offset: start of the range, in bytes from the start of the region
 * @size: size of the range in bytes
 * @first: set to the index of the memslot that holds the first byte
 * @last: set to the index of the memslot that holds the last byte
 *
 * Returns: false, with @first and @last untouched, if the range is empty or not
 * wholly within the region.
 */
bool memslot_plan_find(const MemslotPlan *plan, uint64_t offset, uint64_t size,
                       unsigned int *first, unsigned int *last);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(MemslotPlan, memslot_plan_free)

#endif /* HW_MEM_MEMSLOT_PLAN_H */
