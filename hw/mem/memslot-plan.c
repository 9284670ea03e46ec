/*
 * Memslot plan: how the memory region of a memory device is divided
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/mem/memslot-plan.h"

struct MemslotPlan {
    unsigned int count;
    /* count + 1 entries: memslot i spans [boundaries[i], boundaries[i + 1]) */
    uint64_t boundaries[];
};

static bool memslot_plan_check_input(const MemslotPlanInput *input,
                                     Error **errp)
{
    if (!is_power_of_2(input->alignment)) {
        error_setg(errp, "memslot alignment (0x%" PRIx64
                   ") has to be a power of two", input->alignment);
        return false;
    }
    if (!is_power_of_2(input->min_memslot_size)) {
        error_setg(errp, "smallest memslot size (0x%" PRIx64
                   ") has to be a power of two", input->min_memslot_size);
        return false;
    }
    if (!input->region_size) {
        error_setg(errp, "an empty region cannot be divided into memslots");
        return false;
    }
    if (!QEMU_IS_ALIGNED(input->region_size, input->alignment)) {
        error_setg(errp, "region size (0x%" PRIx64 ") has to be a multiple of"
                   " the memslot alignment (0x%" PRIx64 ")",
                   input->region_size, input->alignment);
        return false;
    }
    if (!input->budget) {
        error_setg(errp, "a budget of 0 memslots is too small, at least one"
                   " memslot is required");
        return false;
    }
    if (!input->spread) {
        error_setg(errp, "a spread of 0 is too small, memslots have to be at"
                   " least as large as equal ones would be");
        return false;
    }
    return true;
}

/*
 * A memslot must not be larger than this share of what lies before it. A fixed
 * point number: sizes are multiplied by @numerator and shifted by @shift.
 */
typedef struct MemslotPlanShare {
    uint64_t numerator;
    unsigned int shift;
} MemslotPlanShare;

/* What limits the size of memslots. */
typedef struct MemslotPlanLimits {
    uint64_t min_size;
    uint64_t max_size;
    MemslotPlanShare share;
} MemslotPlanLimits;

static uint64_t memslot_plan_scale(uint64_t size, MemslotPlanShare share)
{
    uint64_t low, high;

    mulu64(&low, &high, size, share.numerator);
    if (share.shift) {
        low = low >> share.shift | high << (64 - share.shift);
        high >>= share.shift;
    }
    return high ? UINT64_MAX : low;
}

/*
 * Returns the size that equal memslots would have, but for the last one;
 * UINT64_MAX stands for all that is too large.
 */
static uint64_t memslot_plan_equal_size(const MemslotPlanInput *input)
{
    /* Rounding up the quotient keeps the number of memslots in the budget. */
    const uint64_t fair_size = (input->region_size - 1) / input->budget + 1;
    uint64_t granule = MAX(input->alignment, input->min_memslot_size);

    if (fair_size <= 1 * GiB) {
        return MAX(granule, pow2ceil(fair_size));
    }
    granule = MAX(granule, 1 * GiB);
    if (fair_size > UINT64_MAX - (granule - 1)) {
        return UINT64_MAX;
    }
    return QEMU_ALIGN_UP(fair_size, granule);
}

/*
 * Returns what the memslot at the offset must not exceed. The first one has
 * nothing before it: it is measured by a smallest memslot, all of it plugged.
 */
static uint64_t memslot_plan_max_size(const MemslotPlanLimits *limits,
                                      uint64_t offset)
{
    uint64_t size;

    if (offset) {
        size = memslot_plan_scale(offset, limits->share);
    } else {
        size = memslot_plan_scale(limits->min_size, limits->share);
        size += MIN(limits->min_size, UINT64_MAX - size);
    }
    return MAX(limits->min_size, MIN(size, limits->max_size));
}

/* Returns the largest size up to the given one that spares huge pages. */
static uint64_t memslot_plan_align_size(const MemslotPlanLimits *limits,
                                        uint64_t offset, uint64_t size)
{
    const uint64_t huge_size = MAX(limits->min_size, 1 * GiB);

    if (size >= huge_size && QEMU_IS_ALIGNED(offset, huge_size)) {
        return QEMU_ALIGN_DOWN(size, huge_size);
    }
    size = pow2floor(size);
    return offset ? MIN(size, offset & -offset) : size;
}

/*
 * Make each memslot as large as the limits allow. As that only depends on where
 * it starts, no plan within the limits gets further with as many memslots.
 *
 * Returns the number of memslots, or zero if it exceeds the budget. Their
 * boundaries are stored, if wanted: budget + 1 at most.
 */
static unsigned int memslot_plan_fill(const MemslotPlanInput *input,
                                      const MemslotPlanLimits *limits,
                                      uint64_t *boundaries)
{
    unsigned int count = 0;
    uint64_t offset = 0, size;

    while (offset < input->region_size) {
        if (count == input->budget) {
            return 0;
        }
        if (boundaries) {
            boundaries[count] = offset;
        }
        count++;

        size = memslot_plan_max_size(limits, offset);
        if (size >= input->region_size - offset) {
            offset = input->region_size;
        } else {
            offset += memslot_plan_align_size(limits, offset, size);
        }
    }
    if (boundaries) {
        boundaries[count] = offset;
    }
    return count;
}

/* Find the smallest share that keeps the number of memslots in the budget. */
static void memslot_plan_find_share(const MemslotPlanInput *input,
                                    MemslotPlanLimits *limits)
{
    const uint64_t most_memslots =
        (input->region_size - 1) / limits->min_size + 1;
    /*
     * With fewer than 2^16 memslots, shares differ by more than 2^-32. There
     * has to be room for that of the whole region in a smallest memslot.
     */
    const unsigned int shift = MIN(clz64(most_memslots), 32);
    MemslotPlanShare *share = &limits->share;
    uint64_t too_small, enough;

    *share = (MemslotPlanShare) { 0, shift };
    if (memslot_plan_fill(input, limits, NULL)) {
        return;
    }

    /* Then, the largest size is the only limit, and equal memslots fit. */
    too_small = 0;
    enough = UINT64_MAX;
    while (enough - too_small > 1) {
        share->numerator = too_small + (enough - too_small) / 2;
        if (memslot_plan_fill(input, limits, NULL)) {
            enough = share->numerator;
        } else {
            too_small = share->numerator;
        }
    }
    share->numerator = enough;
}

MemslotPlan *memslot_plan_new(const MemslotPlanInput *input, Error **errp)
{
    MemslotPlanLimits limits;
    MemslotPlan *plan;
    uint64_t equal_size;
    unsigned int count;

    if (!memslot_plan_check_input(input, errp)) {
        return NULL;
    }

    equal_size = memslot_plan_equal_size(input);
    limits.min_size = MAX(input->alignment, input->min_memslot_size);
    limits.max_size = equal_size > UINT64_MAX / input->spread ?
                      UINT64_MAX : equal_size * input->spread;
    memslot_plan_find_share(input, &limits);

    count = memslot_plan_fill(input, &limits, NULL);
    plan = g_malloc(sizeof(*plan) +
                    (count + 1) * sizeof(plan->boundaries[0]));
    plan->count = count;
    memslot_plan_fill(input, &limits, plan->boundaries);
    return plan;
}

void memslot_plan_free(MemslotPlan *plan)
{
    g_free(plan);
}

unsigned int memslot_plan_count(const MemslotPlan *plan)
{
    return plan->count;
}

uint64_t memslot_plan_offset(const MemslotPlan *plan, unsigned int memslot)
{
    g_assert(memslot < plan->count);
    return plan->boundaries[memslot];
}

uint64_t memslot_plan_size(const MemslotPlan *plan, unsigned int memslot)
{
    g_assert(memslot < plan->count);
    return plan->boundaries[memslot + 1] - plan->boundaries[memslot];
}

/* Returns the last memslot that starts at or below the given offset. */
static unsigned int memslot_plan_find_one(const MemslotPlan *plan,
                                          uint64_t offset)
{
    unsigned int low = 0, high = plan->count;

    while (high - low > 1) {
        const unsigned int mid = low + (high - low) / 2;

        if (plan->boundaries[mid] <= offset) {
            low = mid;
        } else {
            high = mid;
        }
    }
    return low;
}

bool memslot_plan_find(const MemslotPlan *plan, uint64_t offset, uint64_t size,
                       unsigned int *first, unsigned int *last)
{
    const uint64_t region_size = plan->boundaries[plan->count];

    if (!size || offset >= region_size || size > region_size - offset) {
        return false;
    }
    *first = memslot_plan_find_one(plan, offset);
    *last = memslot_plan_find_one(plan, offset + size - 1);
    return true;
}
