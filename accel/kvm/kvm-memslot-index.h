/*
 * Index of the memslots of an address space: which numbers are free, and which
 * memslot is at an address
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef ACCEL_KVM_MEMSLOT_INDEX_H
#define ACCEL_KVM_MEMSLOT_INDEX_H

#include "exec/hwaddr.h"

/* Memslots do not overlap: the address where one starts tells which it is. */
typedef struct KVMMemslotIndex KVMMemslotIndex;

KVMMemslotIndex *kvm_memslot_index_new(void);
void kvm_memslot_index_free(KVMMemslotIndex *index);

/*
 * kvm_memslot_index_grow: have numbers from 0 to @nr - 1
 *
 * There is none at first. Numbers that are there remain what they are.
 */
void kvm_memslot_index_grow(KVMMemslotIndex *index, unsigned int nr);

/*
 * kvm_memslot_index_add: take a free number for a memslot at @start_addr
 *
 * There must be no memslot at that address.
 *
 * Returns: the number, or -1 if none is free.
 */
int kvm_memslot_index_add(KVMMemslotIndex *index, hwaddr start_addr);

/*
 * kvm_memslot_index_remove: free the number of the memslot at @start_addr
 *
 * There must be one.
 */
void kvm_memslot_index_remove(KVMMemslotIndex *index, hwaddr start_addr);

/*
 * kvm_memslot_index_find: the number of the memslot at @start_addr
 *
 * Returns: -1 if there is none.
 */
int kvm_memslot_index_find(KVMMemslotIndex *index, hwaddr start_addr);

#endif
