/*
 * Memslot budget: how many memslots a memory device may use
 *
 * The policy alone, as a pure function over facts; the core for memory devices
 * gathers the facts.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef HW_MEM_MEMSLOT_BUDGET_H
#define HW_MEM_MEMSLOT_BUDGET_H

/* What max_memslots and free_memslots are where nothing sets a limit. */
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
 * MemslotBudgetFacts: what the decision depends on
 * @max_memslots: the most memslots that KVM and each vhost backend can hold
 * @free_memslots: the most memslots that KVM and each vhost backend can still
 *     take
 * @required_memslots: the most memslots that all other memory devices may map;
 *     a promise to them
 * @used_memslots: how many of @required_memslots are mapped at the moment
 * @region_size: size of the device's memory region in bytes, not zero
 * @unassigned_size: device memory in bytes that no other memory device takes
 */
typedef struct MemslotBudgetFacts {
    unsigned int max_memslots;
    unsigned int free_memslots;
    unsigned int required_memslots;
    unsigned int used_memslots;
    uint64_t region_size;
    uint64_t unassigned_size;
} MemslotBudgetFacts;

/**
 * memslot_budget: decide how many memslots a memory device may use
 *
 * What the soft limit and the promises to other memory devices leave is shared
 * among the devices to come by size: a device gets the share that it takes of
 * the device memory that is left. One that takes all of it gets all.
 *
 * A pure function that may be called at any time from any thread.
 *
 * Returns: the budget, at least one and at most MEMSLOTS_SOFT_LIMIT. More than
 * one is never more than is free and not promised.
 */
unsigned int memslot_budget(const MemslotBudgetFacts *facts);

#endif /* HW_MEM_MEMSLOT_BUDGET_H */
