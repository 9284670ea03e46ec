/*
 * Memslot budget: how many memslots a memory device may use
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "hw/mem/memslot-budget.h"

/* Returns x * numerator / denominator, for numerator <= denominator. */
static unsigned int memslot_budget_scale(unsigned int x, uint64_t numerator,
                                         uint64_t denominator)
{
    uint64_t low, high;

    mulu64(&low, &high, numerator, x);
    divu128(&low, &high, denominator);
    return low;
}

static unsigned int saturating_sub(unsigned int a, unsigned int b)
{
    return a > b ? a - b : 0;
}

unsigned int memslot_counts_free(const MemslotCounts *counts)
{
    if (counts->limit == MEMSLOTS_UNLIMITED) {
        return MEMSLOTS_UNLIMITED;
    }
    return saturating_sub(counts->limit, counts->used);
}

bool memslot_counts_fit(const MemslotCounts *counts, unsigned int needed)
{
    return counts->limit == MEMSLOTS_UNLIMITED ||
           (uint64_t)counts->used + counts->reserved + needed <= counts->limit;
}

bool memslot_counts_whole_devices(const MemslotCounts *counts)
{
    return counts->limit < MEMSLOTS_HISTORICAL_MAX ||
           !memslot_counts_fit(counts, 0);
}

unsigned int memslot_budget(const MemslotBudgetFacts *facts)
{
    unsigned int available = saturating_sub(MEMSLOTS_SOFT_LIMIT,
                                            facts->required_memslots);
    unsigned int i, share;

    for (i = 0; i < facts->nr_holders; i++) {
        const MemslotCounts *counts = &facts->holders[i];

        if (counts->limit < MEMSLOTS_HISTORICAL_MAX) {
            return 1;
        }
        available = MIN(available, saturating_sub(memslot_counts_free(counts),
                                                  counts->reserved));
    }

    if (facts->region_size >= facts->unassigned_size) {
        share = available;
    } else {
        share = memslot_budget_scale(available, facts->region_size,
                                     facts->unassigned_size);
    }
    return MAX(share, 1);
}
