/*
 * Bytes as operations on virtio-mem devices
 *
 * Any bytes are a program: requests to plug and unplug, malformed ones, resets,
 * changes of the requested size, accesses to memory, on several devices that
 * are configured in different ways. After each operation, what QEMU shows has
 * to be what a model of the devices says; if it is not, the program aborts.
 *
 * A fuzzer makes such programs up and runs them within QEMU, a qtest runs those
 * that are worth keeping.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_OPS_H
#define TESTS_VIRTIO_MEM_OPS_H

#include "libqtest.h"
#include "libqos/libqos-malloc.h"
#include "libqos/pci.h"

typedef struct VirtioMEMOps VirtioMEMOps;

/* What can't be done with the functions of qtest within QEMU. */
typedef struct VirtioMEMHost {
    QTestState *qts;

    /* Set a property, get one; paths are paths in the QOM tree. */
    bool (*set)(QTestState *qts, const char *path, const char *property,
                uint64_t value);
    uint64_t (*get)(QTestState *qts, const char *path, const char *property);

    /* The number of memslots of memory devices that are mapped. */
    unsigned int (*nb_mapped)(QTestState *qts);

    /* Returns once the machine has been reset. */
    void (*system_reset)(QTestState *qts);
} VirtioMEMHost;

/**
 * virtio_mem_ops_args:
 *
 * Returns: what QEMU has to be started with, besides "-accel qtest".
 */
char *virtio_mem_ops_args(void);

/**
 * virtio_mem_ops_new:
 * @host: how to do what qtest can't do; has to outlive what is returned
 * @bus: the PCI bus of the machine
 * @alloc: the memory of the machine
 *
 * Start the devices of a machine.
 */
VirtioMEMOps *virtio_mem_ops_new(const VirtioMEMHost *host, QPCIBus *bus,
                                 QGuestAllocator *alloc);

void virtio_mem_ops_free(VirtioMEMOps *ops);

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
