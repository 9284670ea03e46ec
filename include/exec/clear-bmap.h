/*
 * What of a RAM block's dirty log is still to be cleared while migrating
 *
 * Clearing the log of a whole RAM block takes long with KVM. So a sync only
 * notes what it would have to clear: a bit of RAMBlock.clear_bmap for each
 * chunk of 1 << RAMBlock.clear_bmap_shift pages. A chunk is cleared right
 * before the first of its pages is sent.
 *
 * All of it is protected by the bitmap_mutex of migration.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_CLEAR_BMAP_H
#define EXEC_CLEAR_BMAP_H

#include "qemu/bitmap.h"
#include "exec/ramblock.h"

/* The number of chunks, the last one maybe short, of so many pages. */
static inline long clear_bmap_size(uint64_t pages, uint8_t shift)
{
    return DIV_ROUND_UP(pages, 1UL << shift);
}

/* Note each chunk that has one of the @npages pages that @start begins. */
static inline void clear_bmap_set(RAMBlock *rb, uint64_t start, uint64_t npages)
{
    const uint8_t shift = rb->clear_bmap_shift;
    const long first = start >> shift;

    bitmap_set(rb->clear_bmap, first,
               clear_bmap_size(start + npages, shift) - first);
}

/* Whether the chunk of @page was to be cleared; now it is not any more. */
static inline bool clear_bmap_test_and_clear(RAMBlock *rb, uint64_t page)
{
    return bitmap_test_and_clear(rb->clear_bmap, page >> rb->clear_bmap_shift,
                                 1);
}

#endif
