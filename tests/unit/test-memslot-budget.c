/*
 * Unit tests for the memslot budget of memory devices
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "hw/mem/memslot-budget.h"

typedef struct BudgetCase {
    MemslotBudgetFacts facts;
    unsigned int budget;
} BudgetCase;

#define UNLIMITED MEMSLOTS_UNLIMITED

static const BudgetCase budget_cases[] = {
    /* no accelerator sets a limit: the soft limit does */
    { { UNLIMITED, UNLIMITED, 0, 0, 1 * TiB, 1 * TiB }, 256 },
    /* KVM of today, right after start */
    { { 32764, 32760, 0, 0, 1 * TiB, 1 * TiB }, 256 },
    { { 32764, 32760, 0, 0, 512 * GiB, 1 * TiB }, 128 },
    { { 32764, 32760, 0, 0, 10 * GiB, 1000 * GiB }, 2 },
    { { 32764, 32760, 0, 0, 2 * MiB, 1 * TiB }, 1 },
    /* others have been promised some, mapped or not */
    { { 32764, 32760, 128, 0, 512 * GiB, 512 * GiB }, 128 },
    { { 32764, 32660, 128, 100, 512 * GiB, 512 * GiB }, 128 },
    { { 32764, 32760, 128, 0, 256 * GiB, 512 * GiB }, 64 },
    { { 32764, 32760, 254, 0, 1 * TiB, 1 * TiB }, 2 },
    { { 32764, 32760, 255, 255, 1 * TiB, 1 * TiB }, 1 },
    { { 32764, 32760, 256, 256, 1 * TiB, 1 * TiB }, 1 },
    { { 32764, 32760, 300, 300, 1 * TiB, 1 * TiB }, 1 },
    /* the historical maximum, and one less than that */
    { { 509, 505, 0, 0, 1 * TiB, 1 * TiB }, 256 },
    { { 508, 504, 0, 0, 1 * TiB, 1 * TiB }, 1 },
    { { 64, 60, 0, 0, 1 * TiB, 1 * TiB }, 1 },
    { { 32, 28, 0, 0, 1 * TiB, 1 * TiB }, 1 },
    { { 8, 4, 0, 0, 1 * TiB, 1 * TiB }, 1 },
    { { 0, 0, 0, 0, 1 * TiB, 1 * TiB }, 1 },
    /* little is free, or what is free is promised */
    { { 509, 20, 0, 0, 1 * TiB, 1 * TiB }, 20 },
    { { 509, 20, 15, 5, 1 * TiB, 1 * TiB }, 10 },
    { { 509, 20, 30, 5, 1 * TiB, 1 * TiB }, 1 },
    { { 509, 0, 0, 0, 1 * TiB, 1 * TiB }, 1 },
    /* more is mapped than was promised: nothing is reserved */
    { { 509, 20, 4, 9, 1 * TiB, 1 * TiB }, 20 },
    /* sizes that no machine has today */
    { { 32764, 32760, 0, 0, UINT64_MAX, UINT64_MAX }, 256 },
    { { 32764, 32760, 0, 0, UINT64_MAX / 2, UINT64_MAX }, 127 },
    { { 32764, 32760, 0, 0, 1 * TiB, 0 }, 256 },
};

static void test_table(void)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(budget_cases); i++) {
        g_assert_cmpuint(memslot_budget(&budget_cases[i].facts), ==,
                         budget_cases[i].budget);
    }
}

static unsigned int rand_range(unsigned int end)
{
    return (uint32_t)g_test_rand_int() % end;
}

static void test_invariants(void)
{
    int i;

    for (i = 0; i < 100000; i++) {
        const unsigned int required = rand_range(400);
        const unsigned int used = rand_range(required + 1);
        const unsigned int max = rand_range(2) ? 32764 : rand_range(1000);
        const uint64_t left = 1 + rand_range(UINT_MAX);
        MemslotBudgetFacts facts = {
            .max_memslots = max,
            .free_memslots = rand_range(max + 1),
            .required_memslots = required,
            .used_memslots = used,
            .unassigned_size = left * MiB,
            .region_size = (1 + rand_range(left)) * MiB,
        };
        const unsigned int budget = memslot_budget(&facts);

        g_assert_cmpuint(budget, >=, 1);
        if (budget > 1) {
            g_assert_cmpuint(max, >=, 509);
            g_assert_cmpuint(budget + required, <=, 256);
            g_assert_cmpuint(budget + (required - used), <=,
                             facts.free_memslots);
            /* its share of memory is at least its share of memslots */
            g_assert_cmpfloat((double)budget / (256 - required), <=,
                              (double)facts.region_size /
                              facts.unassigned_size * 1.000001);
        }

        /* a larger device never gets less */
        facts.region_size = facts.unassigned_size;
        g_assert_cmpuint(memslot_budget(&facts), >=, budget);
    }
}

/* Devices that come one after the other share the soft limit by size. */
static void test_share(void)
{
    int i;

    for (i = 0; i < 1000; i++) {
        MemslotBudgetFacts facts = {
            .max_memslots = 32764,
            .free_memslots = 32000,
            .unassigned_size = (256 + rand_range(4096)) * GiB,
        };
        unsigned int single = 0, last = 0;

        while (facts.unassigned_size) {
            const uint64_t left = facts.unassigned_size / GiB;

            facts.region_size = (1 + rand_range(left)) * GiB;
            last = memslot_budget(&facts);
            single += last == 1;
            facts.required_memslots += last;
            facts.unassigned_size -= facts.region_size;
        }
        /* Only devices that get the minimum of one can exceed it. */
        if (facts.required_memslots > 256) {
            g_assert_cmpuint(last, ==, 1);
            g_assert_cmpuint(facts.required_memslots - 256, <=, single);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/memslot-budget/table", test_table);
    g_test_add_func("/memslot-budget/invariants", test_invariants);
    g_test_add_func("/memslot-budget/share", test_share);
    return g_test_run();
}
