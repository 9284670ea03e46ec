/*
 * Whether a display wants to know of dirty pages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/ram_addr.h"

bool cpu_physical_memory_is_displayed(ram_addr_t addr)
{
    RAMBlock *block;

    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH(block) {
        if (addr - block->offset < block->max_length) {
            return memory_region_is_logging(block->mr, DIRTY_MEMORY_VGA);
        }
    }
    /* VFIO gives addresses of guest memory for what an IOMMU unmaps. */
    return true;
}
