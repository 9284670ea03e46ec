/*
 * Unit tests for memslot plans
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
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

    for (i = 1; i < memslot_plan_count(plan); i++) {
        const uint64_t before = memslot_plan_size(plan, i - 1);

        if (before >= 1 * GiB) {
            g_assert_cmphex(memslot_plan_offset(plan, i) % (1 * GiB), ==, 0);
        } else {
            g_assert_cmphex((1 * GiB) % before, ==, 0);
            g_assert_cmphex(memslot_plan_offset(plan, i) % before, ==, 0);
        }
    }
}

/* The budget is put to use: smaller memslots would not have fitted into it */
static void check_fineness(const MemslotPlan *plan, const MemslotPlanInput *in)
{
    const uint64_t smallest = MAX(in->alignment, in->min_memslot_size);
    const uint64_t size = memslot_plan_size(plan, 0);
    const uint64_t finer = size > 1 * GiB ? size - MAX(smallest, 1 * GiB)
                                          : size / 2;

    if (memslot_plan_count(plan) == 1 || size <= smallest) {
        return;
    }
    g_assert_cmphex((in->region_size - 1) / finer + 1, >, in->budget);
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

    check_tiling(plan, in);
    check_huge_pages(plan);
    check_fineness(plan, in);
    check_lookup(plan, in);
    return plan;
}

typedef struct PlanCase {
    MemslotPlanInput in;
    unsigned int count;
    uint64_t first_size;
    uint64_t last_size;
} PlanCase;

static const PlanCase plan_cases[] = {
    /* one block, however small */
    { { 2 * MiB, 2 * MiB, 1 * GiB, 256 }, 1, 2 * MiB, 2 * MiB },
    { { 1 * GiB, 2 * MiB, 1 * GiB, 256 }, 1, 1 * GiB, 1 * GiB },
    /* one memslot per GiB, the last one may be shorter */
    { { 4 * GiB, 2 * MiB, 1 * GiB, 256 }, 4, 1 * GiB, 1 * GiB },
    { { 4 * GiB + 2 * MiB, 2 * MiB, 1 * GiB, 256 }, 5, 1 * GiB, 2 * MiB },
    { { 4 * GiB - 2 * MiB, 2 * MiB, 1 * GiB, 256 },
      4, 1 * GiB, 1 * GiB - 2 * MiB },
    { { 256 * GiB, 2 * MiB, 1 * GiB, 256 }, 256, 1 * GiB, 1 * GiB },
    /* the budget makes them larger, in steps of 1 GiB */
    { { 257 * GiB, 2 * MiB, 1 * GiB, 256 }, 129, 2 * GiB, 1 * GiB },
    { { 600 * GiB, 2 * MiB, 1 * GiB, 256 }, 200, 3 * GiB, 3 * GiB },
    { { 1 * TiB, 2 * MiB, 1 * GiB, 256 }, 256, 4 * GiB, 4 * GiB },
    { { 1 * TiB, 2 * MiB, 1 * GiB, 255 }, 205, 5 * GiB, 4 * GiB },
    { { 16 * TiB, 2 * MiB, 1 * GiB, 256 }, 256, 64 * GiB, 64 * GiB },
    { { 16 * TiB, 2 * MiB, 1 * GiB, 32764 }, 16384, 1 * GiB, 1 * GiB },
    { { 4 * GiB, 2 * MiB, 1 * GiB, 3 }, 2, 2 * GiB, 2 * GiB },
    /* one memslot is a plan, too */
    { { 4 * GiB, 2 * MiB, 1 * GiB, 1 }, 1, 4 * GiB, 4 * GiB },
    { { 16 * TiB, 2 * MiB, 1 * GiB, 1 }, 1, 16 * TiB, 16 * TiB },
    /* large blocks */
    { { 4 * GiB, 1 * GiB, 1 * GiB, 256 }, 4, 1 * GiB, 1 * GiB },
    { { 6 * GiB, 2 * GiB, 1 * GiB, 256 }, 3, 2 * GiB, 2 * GiB },
    { { 1 * TiB, 4 * GiB, 1 * GiB, 100 }, 86, 12 * GiB, 4 * GiB },
    /* small memslots divide 1 GiB */
    { { 1 * GiB, 1 * MiB, 128 * MiB, 256 }, 8, 128 * MiB, 128 * MiB },
    { { 1 * GiB, 1 * MiB, 128 * MiB, 3 }, 2, 512 * MiB, 512 * MiB },
    { { 100 * MiB, 1 * MiB, 1 * MiB, 64 }, 50, 2 * MiB, 2 * MiB },
    { { 3 * GiB, 1 * MiB, 128 * MiB, 2 }, 2, 2 * GiB, 1 * GiB },
    /* the end of the 64-bit range */
    { { UINT64_MAX - 2 * MiB + 1, 2 * MiB, 1 * GiB, 1 },
      1, UINT64_MAX - 2 * MiB + 1, UINT64_MAX - 2 * MiB + 1 },
    { { UINT64_MAX - 2 * MiB + 1, 2 * MiB, 1 * GiB, 2 },
      2, 1ull << 63, (1ull << 63) - 2 * MiB },
    { { 1ull << 63, 1ull << 63, 1ull << 63, 256 }, 1, 1ull << 63, 1ull << 63 },
};

static void test_table(void)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(plan_cases); i++) {
        const PlanCase *c = &plan_cases[i];
        g_autoptr(MemslotPlan) plan = new_checked_plan(&c->in);
        const unsigned int count = memslot_plan_count(plan);

        g_assert_cmpuint(count, ==, c->count);
        g_assert_cmphex(memslot_plan_size(plan, 0), ==, c->first_size);
        g_assert_cmphex(memslot_plan_size(plan, count - 1), ==, c->last_size);
    }
}

typedef struct BadCase {
    MemslotPlanInput in;
    const char *error;
} BadCase;

static const BadCase bad_cases[] = {
    { { 0, 2 * MiB, 1 * GiB, 256 },
      "an empty region cannot be divided into memslots" },
    { { 1 * GiB, 0, 1 * GiB, 256 },
      "memslot alignment (0x0) has to be a power of two" },
    { { 1 * GiB, 3 * MiB, 1 * GiB, 256 },
      "memslot alignment (0x300000) has to be a power of two" },
    { { 1 * GiB, 2 * MiB, 0, 256 },
      "smallest memslot size (0x0) has to be a power of two" },
    { { 1 * GiB, 2 * MiB, 3 * GiB, 256 },
      "smallest memslot size (0xc0000000) has to be a power of two" },
    { { 1 * GiB + 1 * MiB, 2 * MiB, 1 * GiB, 256 },
      "region size (0x40100000) has to be a multiple of the memslot alignment"
      " (0x200000)" },
    { { UINT64_MAX, 2 * MiB, 1 * GiB, 256 },
      "region size (0xffffffffffffffff) has to be a multiple of the memslot"
      " alignment (0x200000)" },
    { { 1 * GiB, 2 * MiB, 1 * GiB, 0 },
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
        };
        g_autoptr(MemslotPlan) plan = NULL;

        plan = new_checked_plan(&in);
        for (j = 0; j < 20; j++) {
            const uint64_t offset = rand_below(in.region_size);

            check_find(plan, offset, 1 + rand_below(in.region_size - offset));
        }
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
    g_test_add_func("/memslot-plan/free-null", test_free_null);
    return g_test_run();
}
