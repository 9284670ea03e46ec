/*
 * QTest testcases for vhost devices: VMs with memory that the guest takes away
 * or moves
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VHOST_MEMORY_FRAMEWORK_H
#define TESTS_VHOST_MEMORY_FRAMEWORK_H

#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/pci.h"
#include "libqos/vhost-user-backend.h"
#include "libqos/virtio-mem.h"
#include "libqos/virtio-pci.h"

#define TIMEOUT_US (60 * G_USEC_PER_SEC)
#define PAGE (4 * KiB)

/* A virtio-mem device, with a boundary of memslots at that offset */
#define VMEM_ADDR (4 * GiB)
#define VMEM_SIZE (4 * GiB)
#define VMEM_BOUNDARY (1 * GiB)
#define VMEM_BLOCK (2 * MiB)

/* PCI devices that share memory have a BAR of that size, anywhere. */
#define SHMEM_SIZE (1 * MiB)
#define NB_SHMEMS 2
#define SHMEM_ADDR (3 * GiB)
#define NOWHERE UINT64_MAX

/* All of a ring of that many entries, a part of which is in the way here. */
#define RING_ENTRIES 1024
#define RING_SIZE (32 * KiB)
#define DESC_SIZE (16 * RING_ENTRIES)
#define USED_OFFSET (DESC_SIZE + PAGE)

/* What is 0 or NULL is as it says. */
typedef struct VMConfig {
    /* of the backend of the network device, see qvhost_user_backend_new() */
    unsigned int max_regions;
    /* pc */
    const char *machine;
    /* VMEM_SIZE */
    uint64_t vmem_size;
    /* SHMEM_SIZE */
    uint64_t shmem_size;
    /* how many pairs the network device has: 1 */
    unsigned int queues;
    /* a second vhost device, with a backend of its own */
    bool with_disk;
    /* the backend can have the guest notify it without QEMU */
    bool with_notifiers;
    /* more arguments for QEMU */
    const char *args;
} VMConfig;

typedef struct TestVM {
    VMConfig config;
    char *tmpdir;
    char *stderr_path;
    QVhostUserBackend *backend;
    QTestState *qts;
    QGuestAllocator alloc;
    QPCIBus *pcibus;
    QVirtioMEMPCI *mem;
    QPCIDevice *shmem[NB_SHMEMS];
    QVirtioPCIDevice *dev;
    QGuestAllocator ring_alloc;
    QVirtQueue *vq;
    /* how many queues had been started when the driver came last */
    unsigned int kicks;

    QVhostUserBackend *disk_backend;
    QVirtioPCIDevice *disk;
    QVirtQueue *disk_vq;
} TestVM;

/* A VM that nothing was done to yet */
TestVM *vm_boot(const VMConfig *config);

/* What was booted is as a driver finds it. */
void vm_start(TestVM *vm);

/* What a driver finds when it comes */
TestVM *vm_new_with(const VMConfig *config);
TestVM *vm_new(unsigned int max_regions);

void vm_free(TestVM *vm);

/* QEMU is alive, and has not sent anything that no backend takes. */
void vm_check(TestVM *vm);

/* Whether that is in what QEMU wrote to stderr */
bool vm_has_said(TestVM *vm, const char *text);

/* Plug or unplug a block of the virtio-mem device. */
void plug(TestVM *vm, uint64_t offset);
void unplug(TestVM *vm, uint64_t offset);

/* Have the memory of a PCI device at that address. */
void move_shmem(TestVM *vm, unsigned int i, uint64_t addr);

/* The driver of the network device, with one queue */
void start_driver_with(TestVM *vm, uint64_t ring, unsigned int queue);
void start_driver(TestVM *vm, uint64_t ring);
void stop_driver(TestVM *vm);
bool needs_reset(TestVM *vm);

/* QEMU does not wait for the backend to start a queue. */
void wait_started(TestVM *vm);

/* Start it somewhere in boot memory, where nobody has anything against it. */
void check_works(TestVM *vm);

void start_disk(TestVM *vm);

/* Each file of tests has a function to add them. */
void add_log_tests(void);

#endif
