/*
 * libqos driver for virtio-mem
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_LIBQOS_VIRTIO_MEM_H
#define TESTS_LIBQOS_VIRTIO_MEM_H

#include "qgraph.h"
#include "virtio.h"
#include "virtio-pci.h"
#include "standard-headers/linux/virtio_mem.h"

/*
 * Addresses are guest-physical addresses in bytes, sizes are in bytes, and
 * numbers of blocks are in units of the device's block size. Responses and
 * states are VIRTIO_MEM_RESP_* and VIRTIO_MEM_STATE_*. All values are in host
 * byte order.
 *
 * None of the functions advances the virtual clock: they can be used with any
 * accelerator, also when it cannot step the clock, and with a stopped VM.
 */
typedef struct QVirtioMEM {
    QVirtioDevice *vdev;
    QVirtQueue *vq;
    QTestState *qts;
    QGuestAllocator *alloc;
} QVirtioMEM;

typedef struct QVirtioMEMPCI {
    QVirtioPCIDevice pci_vdev;
    QVirtioMEM mem;
} QVirtioMEMPCI;

/**
 * qvirtio_mem_pci_new:
 * @bus: the bus that the device is on
 * @addr: the address of the device on @bus
 * @alloc: memory for the queue and for requests
 *
 * Find a virtio-mem-pci device, without the qgraph framework. It has to be
 * started before it can be used, see qvirtio_mem_pci_start().
 *
 * @bus and @alloc remain with the caller and have to outlive the driver.
 *
 * Returns: the driver, to be freed with qvirtio_mem_pci_free().
 */
QVirtioMEMPCI *qvirtio_mem_pci_new(QPCIBus *bus, QPCIAddress *addr,
                                   QGuestAllocator *alloc);

/**
 * qvirtio_mem_pci_free:
 * @mem_pci: the driver, or NULL
 *
 * Free a driver from qvirtio_mem_pci_new(). The device is left as it is.
 */
void qvirtio_mem_pci_free(QVirtioMEMPCI *mem_pci);

/**
 * qvirtio_mem_pci_start:
 * @mem_pci: the driver
 *
 * Enable the PCI device and start it with qvirtio_mem_start(). Has to be called
 * again after a reset of the machine, as that disables the PCI device.
 */
void qvirtio_mem_pci_start(QVirtioMEMPCI *mem_pci);

/**
 * qvirtio_mem_start:
 * @mem: the driver
 *
 * Reset the device, accept all its features that make sense here and set up
 * the queue. May be called again at any time, for example when a malformed
 * request made the device ask for a reset. Neither this nor such a reset
 * changes which memory is plugged.
 */
void qvirtio_mem_start(QVirtioMEM *mem);

/**
 * qvirtio_mem_accepts_features:
 * @mem: the driver
 * @features: feature bits
 *
 * Returns: whether the device is content with a driver that accepts exactly
 * @features. The device is left reset; use qvirtio_mem_start() to go on.
 */
bool qvirtio_mem_accepts_features(QVirtioMEM *mem, uint64_t features);

/**
 * qvirtio_mem_has_feature:
 * @mem: the driver, which has to be started
 * @bit: VIRTIO_MEM_F_*
 *
 * Returns: whether the feature was negotiated.
 */
bool qvirtio_mem_has_feature(QVirtioMEM *mem, unsigned int bit);

/**
 * qvirtio_mem_read_config:
 * @mem: the driver, which has to be started
 * @config: filled with the current configuration of the device
 */
void qvirtio_mem_read_config(QVirtioMEM *mem, struct virtio_mem_config *config);

/**
 * qvirtio_mem_plug:
 * @mem: the driver, which has to be started
 * @addr: address of the first block
 * @nb_blocks: number of blocks
 *
 * Ask the device to plug blocks.
 *
 * Returns: the response
 */
uint16_t qvirtio_mem_plug(QVirtioMEM *mem, uint64_t addr, uint16_t nb_blocks);

/**
 * qvirtio_mem_unplug:
 *
 * Like qvirtio_mem_plug(), to unplug blocks.
 */
uint16_t qvirtio_mem_unplug(QVirtioMEM *mem, uint64_t addr, uint16_t nb_blocks);

/**
 * qvirtio_mem_unplug_all:
 * @mem: the driver, which has to be started
 *
 * Ask the device to unplug all blocks and to shrink the usable region.
 *
 * Returns: the response
 */
uint16_t qvirtio_mem_unplug_all(QVirtioMEM *mem);

/**
 * qvirtio_mem_state:
 * @mem: the driver, which has to be started
 * @addr: address of the first block
 * @nb_blocks: number of blocks
 * @state: set to the state of the blocks if the response is
 *         VIRTIO_MEM_RESP_ACK, unchanged otherwise
 *
 * Ask the device for the state of blocks.
 *
 * Returns: the response
 */
uint16_t qvirtio_mem_state(QVirtioMEM *mem, uint64_t addr, uint16_t nb_blocks,
                           uint16_t *state);

/**
 * qvirtio_mem_request:
 * @mem: the driver, which has to be started
 * @req: the request, as it is laid out in guest memory
 * @req_size: size of the request
 * @resp: filled with the response as it is laid out in guest memory
 * @resp_size: size of the buffer that the device gets for the response
 *
 * Send any request, also a malformed one.
 *
 * Returns: true if the device responded, false if it refused the request and
 * asks for a reset, see qvirtio_mem_start().
 */
bool qvirtio_mem_request(QVirtioMEM *mem, const void *req, size_t req_size,
                         void *resp, size_t resp_size);

#endif
