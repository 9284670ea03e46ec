/*
 * Memslot account: who holds memslots, and what memory devices were promised
 *
 * Memory devices that map memslots later than they are plugged rely on a
 * promise: that these memslots will be there. The account keeps what has been
 * promised and what is mapped, asks all that hold memslots (KVM, vhost backends
 * and others) for their counts, and has memslot-budget.h decide.
 *
 * All of it must be called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MEM_MEMSLOT_ACCOUNT_H
#define HW_MEM_MEMSLOT_ACCOUNT_H

#include "exec/memory.h"
#include "hw/mem/memslot-budget.h"

/* What holds memslots; see MemslotHolderType in qapi/memslots.json. */
typedef enum MemslotHolderKind {
    MEMSLOT_HOLDER_KVM,
    MEMSLOT_HOLDER_VHOST,
    MEMSLOT_HOLDER_PCI_PROXY,
} MemslotHolderKind;

/**
 * MemslotHolder: one that holds memslots
 * @kind: what it is
 * @id: what users know it by; NULL for KVM
 * @limit: the memslots that it can hold, or MEMSLOTS_UNLIMITED
 * @used: the memslots that it holds
 * @shared_only: it does not see memory without a file descriptor
 * @whole_devices: it is shown each memory device that maps memslots on demand
 *     as a whole, in one memslot, from plug to unplug
 */
typedef struct MemslotHolder {
    MemslotHolderKind kind;
    const char *id;
    unsigned int limit;
    unsigned int used;
    bool shared_only;
    bool whole_devices;
} MemslotHolder;

typedef void MemslotHolderFunc(const MemslotHolder *holder, void *opaque);

/**
 * MemslotHolderGet: tell of one that holds memslots, as of now
 * @opaque: as given to memslot_account_add_holder()
 */
typedef MemslotHolder MemslotHolderGet(void *opaque);

/**
 * MemslotRefuser: who did not take a memslot
 * @kind: what it is
 * @id: what users know it by; NULL for KVM
 */
typedef struct MemslotRefuser {
    MemslotHolderKind kind;
    char *id;
} MemslotRefuser;

/**
 * MemslotTally: sums over memory devices
 * @required: the most memslots that they may map
 * @used: the memslots that they have mapped
 * @reserved: the memslots that they may map and have not mapped
 */
typedef struct MemslotTally {
    unsigned int required;
    unsigned int used;
    unsigned int reserved;
} MemslotTally;

/**
 * MemslotAccount: the account of a machine's device memory
 */
typedef struct MemslotAccount {
    /* private: */
    /* sees what gets mapped into the device memory */
    MemoryListener listener;
    QLIST_HEAD(, MemslotPromise) promises;
    /* mapped into the device memory, but not promised to any memory device */
    unsigned int strays;
} MemslotAccount;

/**
 * memslot_account_init: open the account of a machine's device memory
 * @account: the account, zero-initialized
 * @as: the address space of the device memory, with nothing mapped
 */
void memslot_account_init(MemslotAccount *account, AddressSpace *as);

/**
 * memslot_account_find: the account of a machine
 * @ms: the machine; NULL is fine
 *
 * Returns: NULL if there is no device memory, and so no promises.
 */
MemslotAccount *memslot_account_find(MachineState *ms);

/**
 * memslot_account_tally: sum up what memory devices were promised
 * @account: the account; NULL is fine
 * @holder: who has to hold it; NULL: all of it
 */
MemslotTally memslot_account_tally(const MemslotAccount *account,
                                   const MemslotHolder *holder);

/**
 * memslot_account_counts: the counts of one that holds memslots
 * @account: the account; NULL is fine
 * @holder: who holds them
 */
MemslotCounts memslot_account_counts(const MemslotAccount *account,
                                     const MemslotHolder *holder);

/**
 * memslot_account_add_holder: have one asked that holds memslots, like KVM
 * @get: tells what it holds
 * @opaque: passed to @get
 *
 * From now on it is asked when others are to be admitted, until
 * memslot_account_remove_holder() is called. See also
 * memslot_account_check_holder().
 */
void memslot_account_add_holder(MemslotHolderGet *get, void *opaque);

/**
 * memslot_account_remove_holder: forget one that holds memslots
 * @opaque: as given to memslot_account_add_holder(); fine if it was not
 */
void memslot_account_remove_holder(void *opaque);

/**
 * memslot_account_foreach_holder: visit KVM, if it is used, and all that were
 * added
 * @func: called for each of them
 * @opaque: passed to @func
 */
void memslot_account_foreach_holder(MemslotHolderFunc *func, void *opaque);

/**
 * memslot_account_budget: decide how many memslots a memory device may use
 * @ms: the machine, which has device memory
 * @id: the id of the device, for tracing
 * @ram: the device's RAM memory region
 * @unassigned_size: device memory in bytes that no memory device takes yet
 *
 * Returns: the budget, at least one. Nothing is promised yet.
 */
unsigned int memslot_account_budget(MachineState *ms, const char *id,
                                    MemoryRegion *ram,
                                    uint64_t unassigned_size);

/**
 * memslot_account_check_device: check whether a memory device can be admitted
 * @ms: the machine, which has device memory
 * @id: the id of the device
 * @ram: the device's RAM memory region
 * @memslots: the most memslots that the device may map
 * @errp: set if one of those that have to hold the memslots could not hold
 *     these and all that have been promised before
 *
 * Returns: true on success. Nothing is promised yet.
 */
bool memslot_account_check_device(MachineState *ms, const char *id,
                                  MemoryRegion *ram, unsigned int memslots,
                                  Error **errp);

/**
 * memslot_account_promise: promise memslots to a memory device
 * @ms: the machine, which has device memory
 * @mr: the memory region of the device that is about to be mapped; another one
 *     than @ram if it is a container in which the device maps memslots
 * @ram: the device's RAM memory region
 * @addr: the guest-physical address of the device's memory
 * @memslots: the most memslots that the device may map
 *
 * To be called before the device's memory gets mapped, after
 * memslot_account_check_device() was successful.
 */
void memslot_account_promise(MachineState *ms, MemoryRegion *mr,
                             MemoryRegion *ram, hwaddr addr,
                             unsigned int memslots);

/**
 * memslot_account_release: take a promise back
 * @ms: the machine, which has device memory
 * @ram: the device's RAM memory region
 *
 * To be called after the device's memory has been unmapped.
 */
void memslot_account_release(MachineState *ms, MemoryRegion *ram);

/**
 * memslot_account_map_begin: prepare to map memslots that have been promised
 * @ram: the RAM memory region that the memslots are part of
 * @memslots: the number of memslots that are about to be mapped
 * @refuser: zero-initialized; set to who lacks them, if somebody does
 * @errp: set if somebody else has taken them in the meantime
 *
 * A promise keeps other memory devices and vhost backends away, but not what
 * maps memory without asking: PCI BARs, for example. Nor can it tell how much
 * memory the kernel has left for KVM's metadata.
 *
 * On success, the caller maps the memslots in one memory transaction that is
 * not nested in another one, and calls memslot_account_map_end().
 *
 * Returns: true on success. Otherwise, nothing must be mapped.
 */
bool memslot_account_map_begin(MemoryRegion *ram, unsigned int memslots,
                               MemslotRefuser *refuser, Error **errp);

/**
 * memslot_account_refuse: tell that a vhost backend did not take memory
 * @backend: the id of the backend
 * @err: a positive error number
 *
 * To be called when a change of the memory map could not be told to the
 * backend.
 *
 * Returns: true if memslot_account_map_end() is going to report it: whoever
 * maps the memory can do without, and unmaps it again. False if nobody can.
 */
bool memslot_account_refuse(const char *backend, int err);

/**
 * memslot_account_map_end: tell whether all memslots have been mapped
 * @refuser: zero-initialized; set to who refused one of them, if somebody did
 * @errp: set if KVM or a vhost backend refused one of them
 *
 * Returns: true on success. Otherwise, the caller has to unmap what it mapped.
 * Until then, memory that KVM refused to map can still be accessed by a guest,
 * but slowly.
 */
bool memslot_account_map_end(MemslotRefuser *refuser, Error **errp);

/**
 * memslot_refuser_clear: free what is in it
 * @refuser: set or not
 */
void memslot_refuser_clear(MemslotRefuser *refuser);

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(MemslotRefuser, memslot_refuser_clear)

/**
 * memslot_account_wants_whole_devices: whether to show a vhost backend memory
 * devices as a whole
 * @backend: the backend, with the memslots that it would hold as of now
 *
 * To be decided once, when the backend comes.
 */
bool memslot_account_wants_whole_devices(const MemslotHolder *backend);

/**
 * memslot_account_check_holder: check whether one that holds memslots can be
 * admitted
 * @holder: with the memslots that it holds as of now; not KVM, which came first
 * @errp: set if it could not hold what has been promised to memory devices
 *
 * Returns: true on success.
 */
bool memslot_account_check_holder(const MemslotHolder *holder, Error **errp);

/**
 * MemslotDeviceFunc: something to be done about a memory device
 * @section: all of the device's memory in address_space_memory, mapped or not;
 *     without a flat view, and not a reference to the memory region
 * @opaque: as given to memslot_account_foreach_device()
 */
typedef void MemslotDeviceFunc(const MemoryRegionSection *section,
                               void *opaque);

/**
 * memslot_account_foreach_device: visit the memory devices that map memslots on
 * demand
 * @func: called for each of them, in the order of their addresses
 * @opaque: passed to @func
 *
 * A device's memory lies in one piece, in the order of its RAM memory region,
 * and no other RAM is ever mapped there.
 */
void memslot_account_foreach_device(MemslotDeviceFunc *func, void *opaque);

/**
 * memslot_account_is_on_demand: whether RAM is mapped in memslots on demand
 * @ram: a RAM memory region
 *
 * Returns: whether memslot_account_foreach_device() visits its memory device.
 */
bool memslot_account_is_on_demand(MemoryRegion *ram);

#endif /* HW_MEM_MEMSLOT_ACCOUNT_H */
