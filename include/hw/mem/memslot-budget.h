/*
 * Memslot budget: how many memslots a memory device may use
 *
 * The policy alone, as pure functions over facts; the memslot account gathers
 * the facts. All of them may be called at any time from any thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MEM_MEMSLOT_BUDGET_H
#define HW_MEM_MEMSLOT_BUDGET_H

/* The limit of those that have none. */
#define MEMSLOTS_UNLIMITED UINT_MAX

/*
 * Historically, KVM and vhost promised 509 memslots to a VM: up to 256 for
 * memory devices (the most DIMMs a machine takes), the rest for everything else
 * that maps memory without asking first: boot memory, ROMs, PCI BARs.
 *
 * Memory devices that may choose how many memslots they use share what the
 * others leave of the same 256, and use one each where nothing is left or less
 * than 509 can be had.
 */
#define MEMSLOTS_HISTORICAL_MAX 509
#define MEMSLOTS_SOFT_LIMIT 256

/**
 * MemslotCounts: the memslots of one that holds them, KVM or a vhost backend
 * @limit: how many it can hold, or MEMSLOTS_UNLIMITED
 * @used: how many it holds, whoever mapped them
 * @reserved: how many it does not hold yet, but memory devices have been
 *     promised; nobody else is kept from taking them
 */
typedef struct MemslotCounts {
    unsigned int limit;
    unsigned int used;
    unsigned int reserved;
} MemslotCounts;

/**
 * MemslotBudgetFacts: what the decision depends on
 * @holders: the counts of all that have to hold the device's memslots
 * @nr_holders: number of entries in @holders
 * @required_memslots: the most memslots that all other memory devices may map
 * @region_size: size of the device's memory region in bytes, not zero
 * @unassigned_size: device memory in bytes that no other memory device takes
 */
typedef struct MemslotBudgetFacts {
    const MemslotCounts *holders;
    unsigned int nr_holders;
    unsigned int required_memslots;
    uint64_t region_size;
    uint64_t unassigned_size;
} MemslotBudgetFacts;

/**
 * memslot_counts_free: the memslots that are not in use, promised or not
 *
 * Returns: MEMSLOTS_UNLIMITED if there is no limit, zero if it is exceeded.
 */
unsigned int memslot_counts_free(const MemslotCounts *counts);

/**
 * memslot_counts_fit: whether more memslots can be promised
 * @counts: the counts of one that holds memslots
 * @needed: the number of memslots to be promised, on top of @counts
 *
 * Returns: whether all promises can be held, the new one among them. With zero
 * @needed: those that there are already.
 */
bool memslot_counts_fit(const MemslotCounts *counts, unsigned int needed);

/**
 * memslot_counts_whole_devices: whether to show whole devices in place of their
 * memslots
 * @counts: the counts of a vhost backend that could be shown all memslots
 *
 * Returns: true for a backend that cannot hold as many memslots as memory
 * devices might want, or as many as they have been promised. It is better shown
 * each memory device as a whole, and does not count for memslot_budget() then.
 */
bool memslot_counts_whole_devices(const MemslotCounts *counts);

/**
 * memslot_budget: decide how many memslots a memory device may use
 *
 * What the soft limit and the promises to other memory devices leave is shared
 * among the devices to come by size: a device gets the share that it takes of
 * the device memory that is left. One that takes all of it gets all.
 *
 * Returns: the budget, at least one and at most MEMSLOTS_SOFT_LIMIT. More than
 * one is never more than each holder has free and not promised.
 */
unsigned int memslot_budget(const MemslotBudgetFacts *facts);

#endif /* HW_MEM_MEMSLOT_BUDGET_H */
