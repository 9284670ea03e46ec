/*
 * Migration of RAM of which a RamDiscardManager has discarded parts
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/units.h"
#include "exec/memory.h"
#include "exec/ram_addr.h"
#include "exec/ramblock.h"
#include "exec/target_page.h"
#include "qemu-file.h"
#include "ram-discard.h"

/* Smaller gaps between what is populated are written to a file, too. */
#define MAX_BITMAP_GAP (4 * KiB)
#define CLEAR_LOG_SIZE (1 * GiB)

/* Of a RAM block: pages, from the first one to the one behind the last one */
typedef struct PageRange {
    unsigned long start;
    unsigned long end;
} PageRange;

static PageRange section_pages(const MemoryRegionSection *section)
{
    const hwaddr start = section->offset_within_region;
    const hwaddr end = start + int128_get64(section->size);

    return (PageRange) { start >> TARGET_PAGE_BITS, end >> TARGET_PAGE_BITS };
}

static int add_range(MemoryRegionSection *section, void *opaque)
{
    const PageRange range = section_pages(section);

    g_array_append_val(opaque, range);
    return 0;
}

/* By address. NULL if there is no RamDiscardManager: then it is all. */
static GArray *find_populated(RAMBlock *rb)
{
    MemoryRegionSection section = {
        .mr = rb->mr,
        .size = int128_make64(rb->used_length),
    };
    GArray *ranges;

    if (!rb->mr || !memory_region_has_ram_discard_manager(rb->mr)) {
        return NULL;
    }
    ranges = g_array_new(false, false, sizeof(PageRange));
    ram_discard_manager_replay_populated(
        memory_region_get_ram_discard_manager(rb->mr), &section, add_range,
        ranges);
    return ranges;
}

static unsigned int count_ranges(const RAMBlock *rb)
{
    return rb->populated ? rb->populated->len : 1;
}

static PageRange get_range(const RAMBlock *rb, unsigned int i)
{
    return rb->populated ? g_array_index(rb->populated, PageRange, i) :
           (PageRange) { 0, rb->used_length >> TARGET_PAGE_BITS };
}

/* The first range that ends behind a page. */
static unsigned int find_range(const RAMBlock *rb, unsigned long page)
{
    unsigned int first = 0, end = count_ranges(rb);

    while (first < end) {
        const unsigned int i = first + (end - first) / 2;

        if (get_range(rb, i).end > page) {
            end = i;
        } else {
            first = i + 1;
        }
    }
    return first;
}

uint64_t ramblock_populated_init(RAMBlock *rb)
{
    uint64_t count = 0;
    unsigned int i;

    rb->populated = find_populated(rb);
    if (!rb->populated) {
        /* It may grow, which ends the migration, but not before that. */
        bitmap_set(rb->bmap, 0, rb->max_length >> TARGET_PAGE_BITS);
        return rb->used_length >> TARGET_PAGE_BITS;
    }
    for (i = 0; i < count_ranges(rb); i++) {
        const PageRange range = get_range(rb, i);

        bitmap_set(rb->bmap, range.start, range.end - range.start);
        count += range.end - range.start;
    }
    return count;
}

void ramblock_populated_cleanup(RAMBlock *rb)
{
    g_clear_pointer(&rb->populated, g_array_unref);
}

uint64_t ramblock_populated_sync(RAMBlock *rb)
{
    uint64_t count = 0;
    unsigned int i;

    for (i = 0; i < count_ranges(rb); i++) {
        const PageRange range = get_range(rb, i);

        count += cpu_physical_memory_sync_dirty_bitmap(
            rb, (ram_addr_t)range.start << TARGET_PAGE_BITS,
            (ram_addr_t)(range.end - range.start) << TARGET_PAGE_BITS);
    }
    return count;
}

unsigned long ramblock_populated_find_dirty(RAMBlock *rb, unsigned long end,
                                            unsigned long start)
{
    unsigned int i;

    for (i = find_range(rb, start); i < count_ranges(rb); i++) {
        const PageRange range = get_range(rb, i);
        const unsigned long range_end = MIN(range.end, end);
        unsigned long page;

        if (range.start >= end) {
            break;
        }
        page = find_next_bit(rb->bmap, range_end, MAX(range.start, start));
        if (page < range_end) {
            return page;
        }
    }
    return end;
}

/* The bytes of a bitmap, of whole words, that have bits of a range. */
static PageRange range_bytes(PageRange range)
{
    return (PageRange) {
        BIT_WORD(range.start) * sizeof(unsigned long),
        BITS_TO_LONGS(range.end) * sizeof(unsigned long),
    };
}

/*
 * Nothing is written where no bits can be: the file was truncated before (see
 * file_start_outgoing_migration()), so that zeroes are read there.
 */
uint64_t ramblock_populated_put_file_bmap(QEMUFile *f, RAMBlock *rb)
{
    const unsigned int count = count_ranges(rb);
    uint64_t written = 0;
    unsigned int i = 0;

    while (i < count) {
        PageRange bytes = range_bytes(get_range(rb, i));

        for (i++; i < count; i++) {
            const PageRange next = range_bytes(get_range(rb, i));

            if (next.start > bytes.end + MAX_BITMAP_GAP) {
                break;
            }
            bytes.end = next.end;
        }
        qemu_put_buffer_at(f, (uint8_t *)rb->file_bmap + bytes.start,
                           bytes.end - bytes.start,
                           rb->bitmap_offset + bytes.start);
        written += bytes.end - bytes.start;
    }
    return written;
}

void ramblock_populated_clear_log(RAMBlock *rb)
{
    g_autoptr(GArray) ranges = find_populated(rb);
    hwaddr done = 0;
    unsigned int i;

    if (!ranges) {
        memory_region_clear_dirty_bitmap(rb->mr, 0, rb->used_length);
        return;
    }
    for (i = 0; i < ranges->len; i++) {
        const PageRange range = g_array_index(ranges, PageRange, i);
        hwaddr start = (hwaddr)range.start << TARGET_PAGE_BITS;
        hwaddr end = (hwaddr)range.end << TARGET_PAGE_BITS;

        /* Each clearing looks at all memory there is. */
        start = MAX(ROUND_DOWN(start, CLEAR_LOG_SIZE), done);
        end = MIN(ROUND_UP(end, CLEAR_LOG_SIZE), rb->used_length);
        if (start < end) {
            memory_region_clear_dirty_bitmap(rb->mr, start, end - start);
            done = end;
        }
    }
}
