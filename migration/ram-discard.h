/*
 * Migration of RAM of which a RamDiscardManager has discarded parts
 *
 * What is discarded is not migrated: its content is undefined, and already
 * reading it may have it populated. Nor does it cost anything: the bits of
 * discarded pages are never set in any bitmap, and nobody looks at them.
 *
 * What is populated is determined when a migration starts. It does not change
 * while one runs: RamDiscardManagers refuse to populate or discard then.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_RAM_DISCARD_H
#define QEMU_MIGRATION_RAM_DISCARD_H

#include "exec/cpu-common.h"
#include "migration/qemu-file.h"

/*
 * Determine what is populated, and set the bits of that in the dirty bitmap of
 * @rb, which is new. Without a RamDiscardManager, it is all of the RAM block.
 *
 * Returns the number of pages, within the used length, whose bits were set.
 */
uint64_t ramblock_populated_init(RAMBlock *rb);

/* Forget it. */
void ramblock_populated_cleanup(RAMBlock *rb);

/*
 * Sync the dirty bitmap of what is populated. Returns how many pages are dirty
 * that were not before.
 *
 * Called within an RCU critical section.
 */
uint64_t ramblock_populated_sync(RAMBlock *rb);

/*
 * The first page from @start on, but before @end, whose bit in the dirty bitmap
 * is set; or @end.
 */
unsigned long ramblock_populated_find_dirty(RAMBlock *rb, unsigned long end,
                                            unsigned long start);

/*
 * Write the bitmap of pages that are in the file. Leaves a hole in the file,
 * which must have been empty, where nothing is populated. Returns the number of
 * bytes written.
 */
uint64_t ramblock_populated_put_file_bmap(QEMUFile *f, RAMBlock *rb);

/*
 * Clear the dirty log of what is populated, for others than migration, in units
 * of 1 GiB.
 */
void ramblock_populated_clear_log(RAMBlock *rb);

#endif
