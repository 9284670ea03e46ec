/*
 * The machine of the tests of the memslot account, and a plain model of it
 *
 * Memory devices and vhost backends, and the rules about their memslots as one
 * would read them in the documentation. Nothing here asks QEMU.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_MEMSLOT_ACCOUNT_MODEL_H
#define TESTS_MEMSLOT_ACCOUNT_MODEL_H

#include "qemu/units.h"
#include "hw/mem/memslot-plan.h"
#include "libqtest.h"
#include "libqos/libqos-pc.h"
#include "libqos/monitor.h"
#include "libqos/vhost-user-backend.h"
#include "libqos/virtio-mem.h"

/* The policy, see include/hw/mem/memslot-budget.h */
#define SOFT_LIMIT 256
#define HISTORICAL_MAX 509
#define MIN_MEMSLOT_SIZE (1 * GiB)

/* QEMU cannot hand more to a vhost-user backend, whatever that can hold. */
#define VHOST_USER_MAX_REGIONS 512

#define DIMM_SIZE (128 * MiB)

#define DIMM_SLOTS 64

#define PCI_FIRST_SLOT 4
#define PCI_LAST_SLOT 31

typedef enum MemKind {
    DIMM,
    NVDIMM,
    PMEM,
    VMEM,
} MemKind;

typedef struct MemConfig {
    MemKind kind;
    bool shared;
    uint64_t size;
    unsigned int node;
    /* of virtio-mem only */
    bool multiple;
    bool inaccessible;
    uint64_t requested_size;
} MemConfig;

#define RING_LATER UINT64_MAX

/* A memory device */
typedef struct Mem {
    MemConfig config;
    char *id;
    char *memdev;
    /* of DIMMs, or a PCI slot */
    unsigned int slot;
    /* the most memslots that it may map */
    unsigned int required;
    /* the guest was asked to let go of it */
    bool unplug_requested;

    /* of virtio-mem only */
    QVirtioMEMPCI *pci;
    MemslotPlan *plan;
    uint64_t addr;
    uint64_t block_size;
    uint64_t requested_size;
    uint64_t usable_size;
    /* one per block */
    bool *plugged;
} Mem;

typedef struct Backend {
    char *id;
    char *device_id;
    QVhostUserBackend *vu;
    unsigned int limit;
    /* is shown whole devices; decided when it is attached */
    bool whole_devices;
    /* gets its table region by region, not all of it with each change */
    bool configurable;
    unsigned int pci_slot;
    bool started;
    /* the driver, from when the device is started */
    QVirtioPCIDevice *pci;
    QVirtQueue *vq;
    QGuestAllocator *ring_alloc;
    QGuestAllocator own_alloc;
    /* what it held at the last check: QVhostUserRegion; NULL: anything goes */
    GArray *last_regions;
    unsigned int last_messages;
} Backend;

typedef struct TestVM {
    /* tell QEMU that KVM can hold that many; 0 for what it can */
    unsigned int preload_limit;
    bool kvm;
    bool cold;
    uint64_t device_memory_size;
    char *tmpdir;
    QOSState *qs;
    QTestState *qts;
    QMonitor *mon;
    /* command line, before it is started */
    GString *args;

    /* in the order of their creation: Mem, Backend */
    GPtrArray *mems;
    GPtrArray *backends;
    /* those that were killed: QEMU does not count with them */
    GPtrArray *killed;
    unsigned int last_id;
    /*
     * Shared memory for the ring of a backend; 0: boot memory will do; or
     * RING_LATER: there is none so far, no backend is started
     */
    uint64_t ring_addr;
    bool pci_slot_used[PCI_LAST_SLOT + 1];
    bool dimm_slot_used[DIMM_SLOTS];

    /* pages that test devices map outside of device memory; [1] is shared */
    unsigned int testdev_count[2];
    /* and those within, which are shared */
    unsigned int inner_count;
    uint64_t inner_addr;

    /* what there is but for device memory and test devices */
    unsigned int base_shared;
    unsigned int base_kvm;
    unsigned int kvm_limit;
    /* memslots of KVM's other address spaces, over those of the memory */
    unsigned int kvm_extra;
} TestVM;

#define for_each_mem(mem_, vm_)                                            \
    for (guint i_ = 0; i_ < (vm_)->mems->len &&                            \
         (mem_ = g_ptr_array_index((vm_)->mems, i_)); i_++)

#define for_each_backend(backend_, vm_)                                    \
    for (guint i_ = 0; i_ < (vm_)->backends->len &&                        \
         (backend_ = g_ptr_array_index((vm_)->backends, i_)); i_++)

/* One that holds memslots: KVM, if there is no backend */
typedef struct Holder {
    const Backend *backend;
    unsigned int limit;
    unsigned int used;
    unsigned int reserved;
    bool shared_only;
    bool whole_devices;
} Holder;

/* ---- Kinds of memory devices ---- */

extern const MemConfig dimm;
extern const MemConfig shared_dimm;

/* Returns a virtio-mem device with multiple memslots, mapped when plugged. */
MemConfig multiple(bool shared, uint64_t size);

/* Returns a virtio-mem device with a single memslot. */
MemConfig single(bool shared, uint64_t size);

/* ---- One memory device ---- */

uint64_t nr_blocks(const Mem *mem);
uint64_t plugged_size(const Mem *mem);
uint64_t usable_size_for(const Mem *mem, uint64_t requested_size);
uint64_t count_plugged(const Mem *mem, uint64_t first, uint64_t count);
void set_plugged(Mem *mem, uint64_t first, uint64_t count, bool plugged);

/* Returns how many of its memslots are mapped. */
unsigned int mem_used(const Mem *mem);

/* ---- What is counted ---- */

unsigned int saturating_sub(unsigned int a, unsigned int b);
unsigned int vm_required(const TestVM *vm, bool shared_only);
unsigned int vm_used(const TestVM *vm, bool shared_only);
unsigned int vm_reserved(const TestVM *vm, bool shared_only);

/* Returns the counts of a backend, or of KVM if that is NULL. */
Holder vm_holder(const TestVM *vm, const Backend *backend);

/* Returns those that would have to hold memory (Holder), the latest first. */
GArray *vm_holders(const TestVM *vm, bool shared);

/* ---- What comes of a step: the error is NULL if it works ---- */

/* What is decided once, when the backend is attached */
void model_attach(const TestVM *vm, Backend *backend);

/* What a new memory device is promised */
void model_divide(const TestVM *vm, Mem *mem);

char *model_check_mem(const TestVM *vm, bool shared, const char *id);
char *model_check_backend(const TestVM *vm, const Backend *backend);
const char *model_check_unplug(const Mem *mem);

/* Returns the response, and has the blocks plugged if that is an ACK. */
uint16_t model_plug(const TestVM *vm, Mem *mem, uint64_t first, uint64_t count);

/* Sets the requested size, unless the usable region can't grow. */
char *model_request_size(const TestVM *vm, Mem *mem, uint64_t size);

#endif
