/*
 * KVM's dirty log of memory that a RamDiscardManager has populated in part
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef KVM_POPULATED_LOG_H
#define KVM_POPULATED_LOG_H

#include "exec/memory.h"
#include "system/kvm_int.h"

/* Has KVM write the log of a memslot to its dirty_bmap */
typedef bool KVMGetDirtyLog(KVMState *s, KVMSlot *slot);

/**
 * kvm_begin_populated_log: know what is in the log of a new memslot
 *
 * KVM may set all pages in the log of a new memslot. While nothing but the
 * dirty rate is measured, have the slot's dirty_bmap say so, too: what gets
 * populated can be cleared then. A migration has to see all that is set first.
 *
 * @slot: the memslot, with its dirty_bmap if it is logged
 * @mr: the RAM that it shows; without a RamDiscardManager, nothing is done
 */
void kvm_begin_populated_log(KVMSlot *slot, MemoryRegion *mr);

/**
 * kvm_sync_populated_log: take dirty pages from the log where RAM is populated
 *
 * What is discarded may be dirty in the log from the start, and stays so. KVM
 * is not asked for the log if nothing is populated.
 *
 * @slot: the memslot, with its slots_lock held
 * @section: memory with a RamDiscardManager, of which the memslot is a part
 * @start_addr: guest-physical address of the memslot
 * @size: its size in bytes
 * @get_log: gets the log
 */
void kvm_sync_populated_log(KVMSlot *slot, const MemoryRegionSection *section,
                            hwaddr start_addr, hwaddr size,
                            KVMGetDirtyLog *get_log);

#endif /* KVM_POPULATED_LOG_H */
