/*
 * KVM's dirty log of memory that a RamDiscardManager has populated in part
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/ram_addr.h"
#include "kvm-populated-log.h"
#include "qemu/bitops.h"

typedef struct KVMPopulatedSync {
    KVMSlot *slot;
    KVMGetDirtyLog *get_log;
    bool has_log;
} KVMPopulatedSync;

void kvm_begin_populated_log(KVMSlot *slot, MemoryRegion *mr)
{
    if (slot->dirty_bmap && memory_region_has_ram_discard_manager(mr) &&
        global_dirty_tracking == GLOBAL_DIRTY_DIRTY_RATE) {
        memset(slot->dirty_bmap, 0xff, slot->dirty_bmap_size);
    }
}

/* What else is in the same words of the log is taken, too. */
static int kvm_sync_part(MemoryRegionSection *part, void *opaque)
{
    KVMPopulatedSync *sync = opaque;
    KVMSlot *slot = sync->slot;
    const ram_addr_t psize = qemu_real_host_page_size();
    ram_addr_t start = memory_region_get_ram_addr(part->mr) +
                       part->offset_within_region - slot->ram_start_offset;
    const ram_addr_t end = start + int128_get64(part->size);

    if (!sync->has_log && !sync->get_log(kvm_state, slot)) {
        return -ENOENT;
    }
    sync->has_log = true;

    start = ROUND_DOWN(start, psize * BITS_PER_LONG);
    cpu_physical_memory_set_dirty_lebitmap(
        slot->dirty_bmap + BIT_WORD(start / psize),
        slot->ram_start_offset + start, (end - start) / psize);
    return 0;
}

void kvm_sync_populated_log(KVMSlot *slot, const MemoryRegionSection *section,
                            hwaddr start_addr, hwaddr size,
                            KVMGetDirtyLog *get_log)
{
    KVMPopulatedSync sync = { .slot = slot, .get_log = get_log };
    MemoryRegionSection part = *section;

    part.offset_within_region += start_addr -
                                 section->offset_within_address_space;
    part.size = int128_make64(size);
    ram_discard_manager_replay_populated(
        memory_region_get_ram_discard_manager(section->mr), &part,
        kvm_sync_part, &sync);
}
