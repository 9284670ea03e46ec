/*
 * Bytes as operations on virtio-mem devices
 *
 * Any bytes are a program: requests to plug and unplug, malformed ones, resets,
 * changes of the requested size, accesses to memory, on several devices that
 * are configured in different ways; vhost-user backends that come, go and
 * refuse memory, one of them behind a virtio-iommu; migrations that start and
 * are cancelled, dirty logging, and states that are loaded, whatever is in
 * them. After each operation, what QEMU and the backends show has to be what a
 * model of the devices says; if it is not, the program aborts.
 *
 * A fuzzer makes such programs up and runs them within QEMU, a qtest runs those
 * that are worth keeping.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_OPS_H
#define TESTS_VIRTIO_MEM_OPS_H

#include "../libqtest.h"
#include "../libqos/libqos-malloc.h"
#include "../libqos/pci.h"

typedef struct VirtioMEMOps VirtioMEMOps;

/* What can't be done with the functions of qtest within QEMU. */
typedef struct VirtioMEMHost {
    QTestState *qts;

    /* Set a property, get one; paths are paths in the QOM tree. */
    bool (*set)(QTestState *qts, const char *path, const char *property,
                uint64_t value);
    uint64_t (*get)(QTestState *qts, const char *path, const char *property);
    bool (*get_bool)(QTestState *qts, const char *path, const char *property);

    /* The number of memslots of memory devices that are mapped. */
    unsigned int (*nb_mapped)(QTestState *qts);

    /* Returns once the machine has been reset. */
    void (*system_reset)(QTestState *qts);

    /* Return once it is so: the VM runs, a migration does. */
    void (*run)(QTestState *qts, bool running);
    void (*migrate)(QTestState *qts, bool start);

    /* Starts it twice, of which one may fail; ends by itself, after 50 ms. */
    void (*measure_dirty_rate)(QTestState *qts);

    /* What QEMU saves of all devices. */
    GByteArray *(*save)(QTestState *qts);
    bool (*load)(QTestState *qts, const GByteArray *state);

    /* QEMU has done what came by itself, such as from a backend. */
    void (*settle)(QTestState *qts);
} VirtioMEMHost;

/**
 * virtio_mem_ops_new:
 *
 * Start what QEMU connects to.
 */
VirtioMEMOps *virtio_mem_ops_new(void);

/**
 * virtio_mem_ops_args:
 * @ops: the devices
 *
 * Returns: what QEMU has to be started with, besides "-accel qtest".
 */
char *virtio_mem_ops_args(VirtioMEMOps *ops);

/**
 * virtio_mem_ops_start:
 * @ops: the devices
 * @host: how to do what qtest can't do; has to outlive @ops
 * @bus: the PCI bus of the machine
 * @alloc: the memory of the machine
 *
 * Start the devices of a machine.
 */
void virtio_mem_ops_start(VirtioMEMOps *ops, const VirtioMEMHost *host,
                          QPCIBus *bus, QGuestAllocator *alloc);

void virtio_mem_ops_free(VirtioMEMOps *ops);

/* Where that cannot be called, but the program is about to end */
void virtio_mem_ops_remove_files(VirtioMEMOps *ops);

/**
 * virtio_mem_ops_run:
 * @ops: the devices
 * @data: the program
 * @size: the number of its bytes
 *
 * Run a program. It finds the devices in the same state each time: all of
 * their size is requested, and nothing is plugged.
 */
void virtio_mem_ops_run(VirtioMEMOps *ops, const uint8_t *data, size_t size);

#endif
