/*
 * Unit tests for what of a RAM block's dirty log is still to be cleared
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/clear-bmap.h"

#define SHIFT 6
#define CHUNK (1 << SHIFT)
/* The last one is short. */
#define NR_CHUNKS 5
#define PAGES (NR_CHUNKS * CHUNK - 7)

static void test_size(void)
{
    g_assert_cmpint(clear_bmap_size(0, SHIFT), ==, 0);
    g_assert_cmpint(clear_bmap_size(1, SHIFT), ==, 1);
    g_assert_cmpint(clear_bmap_size(CHUNK, SHIFT), ==, 1);
    g_assert_cmpint(clear_bmap_size(CHUNK + 1, SHIFT), ==, 2);
    g_assert_cmpint(clear_bmap_size(PAGES, SHIFT), ==, NR_CHUNKS);
}

/* A range marks the chunks that it has pages of, and no others. */
static void check_range(uint64_t start, uint64_t npages)
{
    g_autofree unsigned long *bitmap = bitmap_new(NR_CHUNKS);
    RAMBlock rb = { .clear_bmap = bitmap, .clear_bmap_shift = SHIFT };
    const uint64_t end = start + npages;
    unsigned int i;

    clear_bmap_set(&rb, start, npages);
    for (i = 0; i < NR_CHUNKS; i++) {
        const bool expected = start < (i + 1) * CHUNK && end > i * CHUNK;
        /* Any page of a chunk stands for it. */
        const uint64_t page = MIN(i * CHUNK + start % CHUNK, PAGES - 1);

        if (clear_bmap_test_and_clear(&rb, page) != expected) {
            g_error("pages %" PRIu64 " to %" PRIu64 ": chunk %u is %smarked",
                    start, end - 1, i, expected ? "not " : "");
        }
        g_assert_false(clear_bmap_test_and_clear(&rb, page));
    }
}

static void test_all_ranges(void)
{
    uint64_t start, npages;

    for (start = 0; start < PAGES; start++) {
        for (npages = 1; start + npages <= PAGES; npages++) {
            check_range(start, npages);
        }
    }
}

/* What was marked before stays so. */
static void test_add(void)
{
    g_autofree unsigned long *bitmap = bitmap_new(NR_CHUNKS);
    RAMBlock rb = { .clear_bmap = bitmap, .clear_bmap_shift = SHIFT };

    clear_bmap_set(&rb, CHUNK - 1, 2);
    clear_bmap_set(&rb, 3 * CHUNK, 1);
    g_assert_cmphex(bitmap[0], ==, 0xb);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/clear-bmap/size", test_size);
    g_test_add_func("/clear-bmap/all-ranges", test_all_ranges);
    g_test_add_func("/clear-bmap/add", test_add);

    return g_test_run();
}
