/*
 * Memslot plan: how the memory region of a memory device is divided
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
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
    return true;
}

/* Returns the size of all memslots but the last one. */
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
        return input->region_size;
    }
    return QEMU_ALIGN_UP(fair_size, granule);
}

MemslotPlan *memslot_plan_new(const MemslotPlanInput *input, Error **errp)
{
    MemslotPlan *plan;
    uint64_t memslot_size;
    unsigned int i, count;

    if (!memslot_plan_check_input(input, errp)) {
        return NULL;
    }

    memslot_size = memslot_plan_equal_size(input);
    count = (input->region_size - 1) / memslot_size + 1;

    plan = g_malloc(sizeof(*plan) +
                    (count + 1) * sizeof(plan->boundaries[0]));
    plan->count = count;
    for (i = 0; i < count; i++) {
        plan->boundaries[i] = i * memslot_size;
    }
    plan->boundaries[count] = input->region_size;
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
