/*
 * Bytes as operations on virtio-mem devices: what the files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_OPS_INT_H
#define TESTS_VIRTIO_MEM_OPS_INT_H

#include "ops.h"
#include "model.h"
#include "../libqos/vhost-user-backend.h"
#include "../libqos/virtio-mem.h"

typedef struct Op {
    uint8_t code;
    /* the lower two bits: the device; the others: FLAG_* */
    uint8_t device;
    uint8_t a;
    uint8_t b;
} Op;

/* The range or size is not aligned. */
#define FLAG_UNALIGNED (1 << 2)
/* The argument counts blocks, not strides. */
#define FLAG_BLOCKS    (1 << 3)
/* The range starts before the region; the listener has no limit. */
#define FLAG_OTHER     (1 << 4)

#define NR_DEVICES 4
#define NR_DISKS 2

/* The slots of the PCI bus */
#define FIRST_DEVICE_SLOT 4
#define FIRST_DISK_SLOT (FIRST_DEVICE_SLOT + NR_DEVICES)
#define IOMMU_SLOT (FIRST_DISK_SLOT + NR_DISKS)

typedef struct Device {
    Model model;
    QVirtioMEMPCI *pci;
    char *qom_path;
    /* vhost-user backends can have its memory */
    bool shared;
    /* what was written to each block and not discarded since */
    uint64_t *stamps;
    /* the blocks of which that may be discarded at any time, if unmapped */
    bool *fading;
    /* the blocks that were written to by this program */
    GHashTable *written;
    /* where its usable and its requested size are in its saved state */
    size_t sizes_offset;
} Device;

/* A disk that a vhost-user backend serves */
typedef struct Disk {
    QVhostUserBackend *backend;
    QVirtioPCIDevice *pci;
    /* NULL unless the driver has started it */
    QVirtQueue *vq;
    /* memory of virtio-mem devices is one region each, however it is mapped */
    bool whole_devices;
    /* its rings may be where the backend has no memory */
    bool odd;
    /* takes no more regions */
    bool refuses;
} Disk;

struct VirtioMEMOps {
    const VirtioMEMHost *host;
    QPCIBus *bus;
    QGuestAllocator *alloc;
    /* where the allocation of addresses for BARs starts */
    uint64_t mmio_start;
    uint64_t max_populated;
    uint64_t last_probe;
    Device devices[NR_DEVICES];

    char *tmpdir;
    Disk disks[NR_DISKS];
    /* NULL unless it was used since the last reset */
    QVirtQueue *iommu_vq;
    QVirtioPCIDevice *iommu;

    bool running;
    bool migrating;
    /* what was saved by this program, or NULL */
    GByteArray *saved;
    /* how often this program has done what takes long */
    unsigned int nr_slow;
};

uint64_t ops_nb_blocks(const Device *dev);
/* Each region has about as many strides, however many blocks it has. */
uint64_t ops_stride(const Device *dev);

/* All memory is discarded. */
void ops_discarded(Device *dev, uint64_t first, uint64_t count);

/* Reset the machine; the drivers of virtio-mem devices are to be started. */
void ops_reset_machine(VirtioMEMOps *ops);
void ops_start_drivers(VirtioMEMOps *ops);

/* ---- ops-machine.c: what is done to the machine ---- */

void ops_run_machine(VirtioMEMOps *ops, bool running);
void ops_migrate(VirtioMEMOps *ops, bool start);
void ops_save(VirtioMEMOps *ops);

/* Where the sizes are in what is saved, for ops_load() */
void ops_find_sizes(VirtioMEMOps *ops);

/* A change of a state before it is loaded */
typedef struct QEMU_PACKED Edit {
    /* EDIT_* */
    uint8_t what;
    uint8_t pos;
    uint64_t value;
} Edit;

/* The machine is reset, and the state of one device is loaded. */
void ops_load(VirtioMEMOps *ops, Device *dev, const Edit *edits,
              unsigned int nr_edits);

/* ---- ops-vhost.c: who else has the memory ---- */

void ops_add_disks(VirtioMEMOps *ops, GString *args);
void ops_new_disks(VirtioMEMOps *ops);
void ops_free_disks(VirtioMEMOps *ops);

void ops_start_disk(VirtioMEMOps *ops, Disk *disk, const Device *dev,
                    const Op *op);
void ops_stop_disk(VirtioMEMOps *ops, Disk *disk);
void ops_refuse(VirtioMEMOps *ops, bool refuse);

/* All drivers have forgotten about their devices. */
void ops_disks_are_reset(VirtioMEMOps *ops);

/* Whether no memslot can be mapped, as a backend refuses it */
bool ops_is_refused(const VirtioMEMOps *ops);

/* The backends have what is mapped, and nothing else. */
void ops_check_backends(VirtioMEMOps *ops, const Device *dev);

typedef struct IOMMURange {
    uint64_t virt_start;
    uint64_t virt_end;
    uint64_t phys_start;
} IOMMURange;

/* A request to the IOMMU */
void ops_iommu(VirtioMEMOps *ops, unsigned int kind, uint32_t domain,
               const IOMMURange *range);
/* The backend behind the IOMMU asks for an address. */
void ops_iotlb_miss(VirtioMEMOps *ops, uint64_t iova);
/* An entry of an IOMMU's TLB is followed, as by VFIO. */
void ops_translate(VirtioMEMOps *ops, const Device *dev, uint64_t block,
                   uint64_t mask);

#endif
