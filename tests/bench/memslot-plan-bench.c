/*
 * How good memslot plans are
 *
 * Prints, for regions and budgets, what plans with different bounds for the
 * largest memslot come to, and equal memslots beside them: one line each, with
 * fields separated by tabs.
 *
 *   size     of the region, in GiB
 *   budget   the most memslots that there may be
 *   plan     "equal", or "spread-N" (0: no bound)
 *   count    of memslots
 *   largest  memslot, in GiB
 *   ratio    the worst of what is mapped to what is plugged, for a guest that
 *            plugs from the start; one smallest memslot is for free
 *   random   what a single block somewhere has mapped on average, in GiB
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/mem/memslot-plan.h"

#define MIN_SIZE MEMSLOT_PLAN_DEFAULT_MIN_SIZE

/* What is learned of a plan, memslot by memslot */
typedef struct Summary {
    uint64_t region_size;
    unsigned int count;
    uint64_t largest;
    double ratio;
    double random;
} Summary;

static void summary_add(Summary *sum, uint64_t offset, uint64_t size)
{
    sum->count++;
    sum->largest = MAX(sum->largest, size);
    sum->random += (double)size / sum->region_size * size / GiB;
    if (size > MIN_SIZE) {
        const double ratio = offset ? 1 + (double)size / offset
                                    : (double)size / MIN_SIZE;

        sum->ratio = MAX(sum->ratio, ratio);
    }
}

static void summary_print(const Summary *sum, unsigned int budget,
                          const char *plan)
{
    printf("%" PRIu64 "\t%u\t%s\t%u\t%" PRIu64 "\t%.6f\t%.3f\n",
           (uint64_t)(sum->region_size / GiB), budget, plan, sum->count,
           (uint64_t)(sum->largest / GiB), sum->ratio, sum->random);
}

static void print_equal(uint64_t region_size, unsigned int budget)
{
    Summary sum = { .region_size = region_size, .ratio = 1 };
    const uint64_t size = ROUND_UP(DIV_ROUND_UP(region_size, budget),
                                   MIN_SIZE);
    uint64_t offset;

    for (offset = 0; offset < region_size; offset += size) {
        summary_add(&sum, offset, MIN(size, region_size - offset));
    }
    summary_print(&sum, budget, "equal");
}

static void print_plan(uint64_t region_size, unsigned int budget,
                       unsigned int spread)
{
    Summary sum = { .region_size = region_size, .ratio = 1 };
    g_autofree char *name = g_strdup_printf("spread-%u", spread);
    g_autoptr(MemslotPlan) plan = memslot_plan_new(&(MemslotPlanInput) {
        .region_size = region_size,
        .alignment = 2 * MiB,
        .min_memslot_size = MIN_SIZE,
        .budget = budget,
        .spread = spread ?: UINT_MAX,
    }, &error_abort);
    unsigned int i;

    for (i = 0; i < memslot_plan_count(plan); i++) {
        summary_add(&sum, memslot_plan_offset(plan, i),
                    memslot_plan_size(plan, i));
    }
    summary_print(&sum, budget, name);
}

int main(void)
{
    static const uint64_t sizes[] = {
        64 * GiB, 256 * GiB, 512 * GiB, 1 * TiB, 4 * TiB, 16 * TiB,
    };
    static const unsigned int budgets[] = { 4, 8, 16, 32, 64, 128, 256 };
    static const unsigned int spreads[] = {
        MEMSLOT_PLAN_DEFAULT_SPREAD, 4, 0,
    };
    int i, j, k;

    printf("size\tbudget\tplan\tcount\tlargest\tratio\trandom\n");
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        for (j = 0; j < ARRAY_SIZE(budgets); j++) {
            print_equal(sizes[i], budgets[j]);
            for (k = 0; k < ARRAY_SIZE(spreads); k++) {
                print_plan(sizes[i], budgets[j], spreads[k]);
            }
        }
    }
    return 0;
}
