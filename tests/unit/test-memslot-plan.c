/*
 * Unit tests for memslot plans
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <math.h>
#include "qemu/host-utils.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/mem/memslot-plan.h"

static void check_tiling(const MemslotPlan *plan, const MemslotPlanInput *in)
{
    const unsigned int count = memslot_plan_count(plan);
    uint64_t end = 0;
    unsigned int i;

    g_assert_cmpuint(count, >=, 1);
    g_assert_cmpuint(count, <=, in->budget);
    for (i = 0; i < count; i++) {
        const uint64_t size = memslot_plan_size(plan, i);

        g_assert_cmphex(memslot_plan_offset(plan, i), ==, end);
        g_assert_cmphex(size, >, 0);
        g_assert_cmphex(end % in->alignment, ==, 0);
        if (i < count - 1) {
            g_assert_cmphex(size, >=, in->min_memslot_size);
        }
        end += size;
    }
    g_assert_cmphex(end, ==, in->region_size);
}

/* No boundary lies within an aligned page of 1 GiB that it could have spared */
static void check_huge_pages(const MemslotPlan *plan)
{
    unsigned int i;

    for (i = 0; i < memslot_plan_count(plan) - 1; i++) {
        const uint64_t size = memslot_plan_size(plan, i);

        if (size < 1 * GiB) {
            g_assert_true(is_power_of_2(size));
        }
        g_assert_cmphex(memslot_plan_offset(plan, i) % MIN(size, 1 * GiB), ==,
                        0);
        g_assert_cmphex(size % MIN(size, 1 * GiB), ==, 0);
    }
}

static uint64_t smallest_size(const MemslotPlanInput *in)
{
    return MAX(in->alignment, in->min_memslot_size);
}

/* The size of all memslots but the last one, if they were equal */
static uint64_t equal_size(const MemslotPlanInput *in)
{
    uint64_t size = smallest_size(in);

    while ((in->region_size - 1) / size >= in->budget) {
        size += size < 1 * GiB ? size : MAX(smallest_size(in), 1 * GiB);
    }
    return size;
}

static uint64_t largest_size(const MemslotPlanInput *in)
{
    /* With larger regions, nothing is found in steps of 1 GiB. */
    const uint64_t size = in->region_size > 64 * TiB ? in->region_size
                                                     : equal_size(in);

    return size > UINT64_MAX / in->spread ? UINT64_MAX : size * in->spread;
}

/*
 * What is mapped when the first block of a memslot gets plugged, over what is
 * plugged then; one smallest memslot is for free.
 */
static double memslot_ratio(const MemslotPlanInput *in, uint64_t offset,
                            uint64_t size)
{
    if (size <= smallest_size(in)) {
        return 1;
    }
    return offset ? 1 + (double)size / offset
                  : (double)size / smallest_size(in);
}

static double worst_ratio(const MemslotPlan *plan, const MemslotPlanInput *in)
{
    double worst = 1;
    unsigned int i;

    for (i = 0; i < memslot_plan_count(plan); i++) {
        worst = MAX(worst, memslot_ratio(in, memslot_plan_offset(plan, i),
                                         memslot_plan_size(plan, i)));
    }
    return worst;
}

/* Whether a memslot that is not the last one may have that size */
static bool is_legal(const MemslotPlanInput *in, uint64_t offset,
                     uint64_t size)
{
    const uint64_t huge_size = MAX(smallest_size(in), 1 * GiB);

    if (size >= huge_size) {
        return offset % huge_size == 0 && size % huge_size == 0;
    }
    return is_power_of_2(size) && offset % size == 0;
}

/* Try all plans for the region from @offset on, return the best worst ratio. */
static double best_ratio(const MemslotPlanInput *in, uint64_t offset,
                         unsigned int budget)
{
    const uint64_t left = in->region_size - offset;
    const uint64_t largest = largest_size(in);
    double best = INFINITY;
    uint64_t size;

    if (!budget) {
        return INFINITY;
    }
    if (left <= largest) {
        best = memslot_ratio(in, offset, left);
    }
    for (size = smallest_size(in); size < left && size <= largest;
         size += smallest_size(in)) {
        if (is_legal(in, offset, size)) {
            const double ratio = memslot_ratio(in, offset, size);

            best = MIN(best, MAX(ratio, best_ratio(in, offset + size,
                                                   budget - 1)));
        }
    }
    return best;
}

/* Guests that plug blocks anywhere do not pay for those that start at 0. */
static void check_spread(const MemslotPlan *plan, const MemslotPlanInput *in)
{
    unsigned int i;

    for (i = 0; i < memslot_plan_count(plan); i++) {
        g_assert_cmphex(memslot_plan_size(plan, i), <=, largest_size(in));
    }
}

static unsigned int find_slowly(const MemslotPlan *plan, uint64_t offset)
{
    unsigned int i;

    for (i = 0; i < memslot_plan_count(plan); i++) {
        if (offset - memslot_plan_offset(plan, i) <
            memslot_plan_size(plan, i)) {
            return i;
        }
    }
    g_assert_not_reached();
}

static void check_find(const MemslotPlan *plan, uint64_t offset, uint64_t size)
{
    unsigned int first = UINT_MAX, last = UINT_MAX;

    g_assert_true(memslot_plan_find(plan, offset, size, &first, &last));
    g_assert_cmpuint(first, ==, find_slowly(plan, offset));
    g_assert_cmpuint(last, ==, find_slowly(plan, offset + size - 1));
}

static void check_not_found(const MemslotPlan *plan, uint64_t offset,
                            uint64_t size)
{
    unsigned int first = 1234, last = 5678;

    g_assert_false(memslot_plan_find(plan, offset, size, &first, &last));
    g_assert_cmpuint(first, ==, 1234);
    g_assert_cmpuint(last, ==, 5678);
}

static void check_lookup(const MemslotPlan *plan, const MemslotPlanInput *in)
{
    const uint64_t region_size = in->region_size;
    const unsigned int last = memslot_plan_count(plan) - 1;
    const uint64_t last_offset = memslot_plan_offset(plan, last);

    check_find(plan, 0, 1);
    check_find(plan, 0, region_size);
    check_find(plan, region_size - 1, 1);
    check_find(plan, last_offset, 1);
    check_find(plan, last_offset, memslot_plan_size(plan, last));
    if (last) {
        check_find(plan, last_offset - 1, 1);
        check_find(plan, last_offset - 1, 2);
    }

    check_not_found(plan, 0, 0);
    check_not_found(plan, region_size - 1, 0);
    check_not_found(plan, region_size, 1);
    check_not_found(plan, region_size, 0);
    check_not_found(plan, region_size - 1, 2);
    check_not_found(plan, 1, UINT64_MAX);
    check_not_found(plan, UINT64_MAX, 1);
    check_not_found(plan, UINT64_MAX, UINT64_MAX);
}

static MemslotPlan *new_checked_plan(const MemslotPlanInput *in)
{
    MemslotPlan *plan = memslot_plan_new(in, &error_abort);

    g_test_message("region 0x%" PRIx64 ", alignment 0x%" PRIx64 ", smallest"
                   " memslot 0x%" PRIx64 ", budget %u, spread %u",
                   in->region_size, in->alignment, in->min_memslot_size,
                   in->budget, in->spread);
    check_tiling(plan, in);
    check_huge_pages(plan);
    check_spread(plan, in);
    check_lookup(plan, in);
    return plan;
}

typedef struct PlanCase {
    MemslotPlanInput in;
    unsigned int count;
    uint64_t first_size;
    uint64_t largest_size;
    uint64_t last_size;
} PlanCase;

static const PlanCase plan_cases[] = {
    /* one block, however small */
    { { 2 * MiB, 2 * MiB, 1 * GiB, 256, 2 }, 1, 2 * MiB, 2 * MiB, 2 * MiB },
    { { 1 * GiB, 2 * MiB, 1 * GiB, 256, 2 }, 1, 1 * GiB, 1 * GiB, 1 * GiB },
    /* one memslot per GiB, the last one may be shorter */
    { { 4 * GiB, 2 * MiB, 1 * GiB, 256, 2 }, 4, 1 * GiB, 1 * GiB, 1 * GiB },
    { { 4 * GiB + 2 * MiB, 2 * MiB, 1 * GiB, 256, 2 },
      5, 1 * GiB, 1 * GiB, 2 * MiB },
    { { 4 * GiB - 2 * MiB, 2 * MiB, 1 * GiB, 256, 2 },
      4, 1 * GiB, 1 * GiB, 1 * GiB - 2 * MiB },
    { { 256 * GiB, 2 * MiB, 1 * GiB, 256, 2 },
      256, 1 * GiB, 1 * GiB, 1 * GiB },
    { { 16 * TiB, 2 * MiB, 1 * GiB, 32764, 2 },
      16384, 1 * GiB, 1 * GiB, 1 * GiB },
    /* the budget makes them larger, in steps of 1 GiB, towards the end */
    { { 257 * GiB, 2 * MiB, 1 * GiB, 256, 2 },
      256, 1 * GiB, 2 * GiB, 2 * GiB },
    { { 600 * GiB, 2 * MiB, 1 * GiB, 256, 2 },
      256, 1 * GiB, 6 * GiB, 3 * GiB },
    { { 1 * TiB, 2 * MiB, 1 * GiB, 256, 2 },
      256, 1 * GiB, 8 * GiB, 5 * GiB },
    { { 1 * TiB, 2 * MiB, 1 * GiB, 255, 2 },
      255, 1 * GiB, 10 * GiB, 3 * GiB },
    { { 16 * TiB, 2 * MiB, 1 * GiB, 256, 2 },
      256, 1 * GiB, 128 * GiB, 127 * GiB },
    /* or all of them, if it is small */
    { { 4 * GiB, 2 * MiB, 1 * GiB, 3, 2 }, 2, 2 * GiB, 2 * GiB, 2 * GiB },
    { { 16 * GiB, 2 * MiB, 1 * GiB, 4, 2 }, 4, 2 * GiB, 8 * GiB, 8 * GiB },
    /* what the spread does */
    { { 16 * GiB, 2 * MiB, 1 * GiB, 4, 1 }, 4, 4 * GiB, 4 * GiB, 4 * GiB },
    { { 17 * GiB, 2 * MiB, 1 * GiB, 4, 1 }, 4, 3 * GiB, 5 * GiB, 4 * GiB },
    { { 1 * TiB, 2 * MiB, 1 * GiB, 256, 1 }, 256, 4 * GiB, 4 * GiB, 4 * GiB },
    { { 1 * TiB, 2 * MiB, 1 * GiB, 256, UINT_MAX },
      256, 1 * GiB, 17 * GiB, 5 * GiB },
    /* one memslot is a plan, too */
    { { 4 * GiB, 2 * MiB, 1 * GiB, 1, 2 }, 1, 4 * GiB, 4 * GiB, 4 * GiB },
    { { 16 * TiB, 2 * MiB, 1 * GiB, 1, 2 }, 1, 16 * TiB, 16 * TiB, 16 * TiB },
    /* large blocks */
    { { 4 * GiB, 1 * GiB, 1 * GiB, 256, 2 }, 4, 1 * GiB, 1 * GiB, 1 * GiB },
    { { 6 * GiB, 2 * GiB, 1 * GiB, 256, 2 }, 3, 2 * GiB, 2 * GiB, 2 * GiB },
    { { 1 * TiB, 4 * GiB, 1 * GiB, 100, 2 },
      100, 4 * GiB, 24 * GiB, 20 * GiB },
    /* small memslots divide 1 GiB */
    { { 1 * GiB, 1 * MiB, 128 * MiB, 256, 2 },
      8, 128 * MiB, 128 * MiB, 128 * MiB },
    { { 1 * GiB, 1 * MiB, 128 * MiB, 3, 2 },
      3, 256 * MiB, 512 * MiB, 512 * MiB },
    { { 100 * MiB, 1 * MiB, 1 * MiB, 64, 2 }, 63, 1 * MiB, 4 * MiB, 4 * MiB },
    { { 3 * GiB, 1 * MiB, 128 * MiB, 2, 2 },
      2, 512 * MiB, 2560 * MiB, 2560 * MiB },
    { { 1 * TiB, 2 * MiB, 128 * MiB, 256, 2 },
      256, 128 * MiB, 8 * GiB, 8 * GiB },
    /* the end of the 64-bit range */
    { { UINT64_MAX - 2 * MiB + 1, 2 * MiB, 1 * GiB, 1, 2 },
      1, UINT64_MAX - 2 * MiB + 1, UINT64_MAX - 2 * MiB + 1,
      UINT64_MAX - 2 * MiB + 1 },
    { { UINT64_MAX - 2 * MiB + 1, 2 * MiB, 1 * GiB, 2, 2 },
      2, 128 * TiB, UINT64_MAX - 2 * MiB + 1 - 128 * TiB,
      UINT64_MAX - 2 * MiB + 1 - 128 * TiB },
    { { 1ull << 63, 1ull << 63, 1ull << 63, 256, 2 },
      1, 1ull << 63, 1ull << 63, 1ull << 63 },
};

static void test_table(void)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(plan_cases); i++) {
        const PlanCase *c = &plan_cases[i];
        g_autoptr(MemslotPlan) plan = new_checked_plan(&c->in);
        const unsigned int count = memslot_plan_count(plan);
        uint64_t largest = 0;
        unsigned int j;

        g_assert_cmpuint(count, ==, c->count);
        for (j = 0; j < count; j++) {
            largest = MAX(largest, memslot_plan_size(plan, j));
        }
        g_assert_cmphex(memslot_plan_size(plan, 0), ==, c->first_size);
        g_assert_cmphex(largest, ==, c->largest_size);
        g_assert_cmphex(memslot_plan_size(plan, count - 1), ==, c->last_size);
    }
}

typedef struct BadCase {
    MemslotPlanInput in;
    const char *error;
} BadCase;

static const BadCase bad_cases[] = {
    { { 1 * GiB, 2 * MiB, 1 * GiB, 256, 0 },
      "a spread of 0 is too small, memslots have to be at least as large as"
      " equal ones would be" },
    { { 0, 2 * MiB, 1 * GiB, 256, 2 },
      "an empty region cannot be divided into memslots" },
    { { 1 * GiB, 0, 1 * GiB, 256, 2 },
      "memslot alignment (0x0) has to be a power of two" },
    { { 1 * GiB, 3 * MiB, 1 * GiB, 256, 2 },
      "memslot alignment (0x300000) has to be a power of two" },
    { { 1 * GiB, 2 * MiB, 0, 256, 2 },
      "smallest memslot size (0x0) has to be a power of two" },
    { { 1 * GiB, 2 * MiB, 3 * GiB, 256, 2 },
      "smallest memslot size (0xc0000000) has to be a power of two" },
    { { 1 * GiB + 1 * MiB, 2 * MiB, 1 * GiB, 256, 2 },
      "region size (0x40100000) has to be a multiple of the memslot alignment"
      " (0x200000)" },
    { { UINT64_MAX, 2 * MiB, 1 * GiB, 256, 2 },
      "region size (0xffffffffffffffff) has to be a multiple of the memslot"
      " alignment (0x200000)" },
    { { 1 * GiB, 2 * MiB, 1 * GiB, 0, 2 },
      "a budget of 0 memslots is too small, at least one memslot is required" },
};

static void test_bad_input(void)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(bad_cases); i++) {
        Error *err = NULL;

        g_assert_null(memslot_plan_new(&bad_cases[i].in, &err));
        g_assert_nonnull(err);
        g_assert_cmpstr(error_get_pretty(err), ==, bad_cases[i].error);
        error_free(err);
    }
}

static uint64_t rand_u64(void)
{
    return (uint64_t)(uint32_t)g_test_rand_int() << 32 |
           (uint32_t)g_test_rand_int();
}

/* A number below @limit; small and large ones are about as likely */
static uint64_t rand_below(uint64_t limit)
{
    return rand_u64() % (rand_u64() % 2 ? limit
                                        : 1 + (limit >> rand_u64() % 64));
}

static void test_random(void)
{
    static const unsigned int budgets[] = { 1, 2, 3, 255, 256, 32764 };
    int i, j;

    for (i = 0; i < 2000; i++) {
        const uint64_t block_size = 1 * MiB << rand_u64() % 11;
        const MemslotPlanInput in = {
            .region_size = block_size *
                           (1 + rand_below(16 * TiB / block_size)),
            .alignment = block_size,
            .min_memslot_size = rand_u64() % 4 ? 1 * GiB
                                               : 1 * MiB << rand_u64() % 13,
            .budget = rand_u64() % 2 ? budgets[rand_u64() % ARRAY_SIZE(budgets)]
                                     : 1 + rand_u64() % 32764,
            .spread = rand_u64() % 4 ? 1 + rand_u64() % 4 : UINT_MAX,
        };
        g_autoptr(MemslotPlan) plan = NULL;

        plan = new_checked_plan(&in);
        for (j = 0; j < 20; j++) {
            const uint64_t offset = rand_below(in.region_size);

            check_find(plan, offset, 1 + rand_below(in.region_size - offset));
        }
    }
}

/* No plan there is has a better worst ratio. */
static void test_exhaustive(void)
{
    static const uint64_t sizes[] = { 128 * MiB, 512 * MiB, 1 * GiB, 2 * GiB };
    static const unsigned int spreads[] = { 1, 2, 3, 1000 };
    int i, j, k;

    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        for (j = 0; j < ARRAY_SIZE(spreads); j++) {
            for (k = 1; k <= 3 * 14 * 6; k++) {
                const MemslotPlanInput in = {
                    .region_size = (k / 6 + 1) * sizes[i] -
                                   k % 3 * (sizes[i] / 4),
                    .alignment = sizes[i] / 4,
                    .min_memslot_size = sizes[i],
                    .budget = k % 6 + 1,
                    .spread = spreads[j],
                };
                g_autoptr(MemslotPlan) plan = new_checked_plan(&in);

                if (in.region_size > 12 * sizes[i] && in.budget > 4) {
                    continue;
                }
                g_assert_cmpfloat(worst_ratio(plan, &in), ==,
                                  best_ratio(&in, 0, in.budget));
            }
        }
    }
}

/*
 * However large the region, what is mapped is close to what is plugged: with
 * equal memslots, the first block had 1/256 of the region mapped.
 */
static void test_ratio(void)
{
    static const struct {
        uint64_t region_size;
        unsigned int budget;
        double ratio;
    } cases[] = {
        { 256 * GiB, 256, 1 },
        { 512 * GiB, 256, 1.015 },
        { 1 * TiB, 64, 1.14 },
        { 1 * TiB, 256, 1.021 },
        { 16 * TiB, 256, 1.044 },
        { 16 * TiB, 64, 1.24 },
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        const MemslotPlanInput in = {
            .region_size = cases[i].region_size,
            .alignment = 2 * MiB,
            .min_memslot_size = MEMSLOT_PLAN_DEFAULT_MIN_SIZE,
            .budget = cases[i].budget,
            .spread = MEMSLOT_PLAN_DEFAULT_SPREAD,
        };
        g_autoptr(MemslotPlan) plan = new_checked_plan(&in);
        const double ratio = worst_ratio(plan, &in);

        g_assert_cmphex(memslot_plan_size(plan, 0), ==, 1 * GiB);
        g_assert_cmpfloat(ratio, <=, cases[i].ratio);
        g_assert_cmpfloat(ratio, >, 1 + (cases[i].ratio - 1) * 0.9 -
                                    (cases[i].ratio == 1));
        g_test_message("%" PRIu64 " GiB in %u of %u memslots: %.4f",
                       in.region_size / GiB, memslot_plan_count(plan),
                       in.budget, ratio);
    }
}

static void test_free_null(void)
{
    memslot_plan_free(NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/memslot-plan/table", test_table);
    g_test_add_func("/memslot-plan/bad-input", test_bad_input);
    g_test_add_func("/memslot-plan/random", test_random);
    g_test_add_func("/memslot-plan/exhaustive", test_exhaustive);
    g_test_add_func("/memslot-plan/ratio", test_ratio);
    g_test_add_func("/memslot-plan/free-null", test_free_null);
    return g_test_run();
}
