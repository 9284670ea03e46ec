/*
 * vhost: the memslots that backends hold, and what they are shown of memory
 * devices
 *
 * A vhost backend calls its memslots memory regions. It has one for each
 * section of RAM in address_space_memory that it may see.
 *
 * All functions must be called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VHOST_MEMSLOTS_H
#define HW_VIRTIO_VHOST_MEMSLOTS_H

#include "exec/memory.h"
#include "hw/mem/memslot-account.h"

struct vhost_dev;

/**
 * vhost_dev_memslot_holder: the memory regions that a backend holds
 *
 * A device with several pairs of queues has a struct vhost_dev for each, but is
 * one backend: all of them hold the same memory regions, with the same limit.
 *
 * @hdev: the backend, whose memory listener is registered
 */
MemslotHolder vhost_dev_memslot_holder(struct vhost_dev *hdev);

/**
 * vhost_memslots_admit: let a backend in if it can hold what memory devices
 * were promised
 *
 * From now on the backend is asked when others are to be admitted, until
 * vhost_memslots_leave() is called, which the caller has to do in any case.
 *
 * @hdev: the backend, whose memory listener is registered
 * @errp: set if the backend cannot hold as many memory regions
 *
 * Returns: zero on success, or a negative error number.
 */
int vhost_memslots_admit(struct vhost_dev *hdev, Error **errp);

/**
 * vhost_memslots_refused: a backend that runs could not be told of memory
 *
 * Either whoever maps the memory can do without and reports it, see
 * memslot_account_refuse(), or it is reported here: once a minute, as guests
 * can bring it about at any time.
 *
 * @hdev: the backend
 * @ret: a negative error number
 */
void vhost_memslots_refused(struct vhost_dev *hdev, int ret);

/**
 * vhost_memslots_leave: forget a backend
 *
 * @hdev: the backend, admitted or not
 */
void vhost_memslots_leave(struct vhost_dev *hdev);

/**
 * vhost_whole_devices_init: decide what a backend is shown of memory devices
 *
 * A backend that cannot hold as many memory regions as memory devices might
 * want is shown each device that maps memslots on demand as a whole, in one
 * region, from the moment the device is plugged until it is unplugged. Memslots
 * come and go without a message to it, and no region is taken from it while it
 * runs. It can reach unplugged memory, as it can with a single memslot.
 *
 * @hdev: the backend, whose memory listener is registered; it gets registered
 *     again if the backend is to be shown whole devices
 */
void vhost_whole_devices_init(struct vhost_dev *hdev);

/**
 * vhost_whole_devices_cover: whether a section is part of a device that the
 * backend is shown as a whole
 *
 * @hdev: the backend
 * @section: a section of RAM in address_space_memory
 */
bool vhost_whole_devices_cover(const struct vhost_dev *hdev,
                               const MemoryRegionSection *section);

/**
 * VhostSectionFilter: whether a backend may see a section at all
 *
 * @hdev: the backend
 * @section: a section in address_space_memory
 */
typedef bool VhostSectionFilter(struct vhost_dev *hdev,
                                MemoryRegionSection *section);

/**
 * vhost_whole_devices_add: add the devices that the backend is shown as a whole
 *
 * To be called by the backend's memory listener when all sections have been
 * collected in its tmp_sections but those that vhost_whole_devices_cover()
 * tells of. Each device becomes a section, with a reference to its memory
 * region.
 *
 * @hdev: the backend
 * @filter: decides about each device
 */
void vhost_whole_devices_add(struct vhost_dev *hdev,
                             VhostSectionFilter *filter);

#endif /* HW_VIRTIO_VHOST_MEMSLOTS_H */
