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
