/*
 * vhost: the rings of virtqueues in the memory that a backend has
 *
 * A backend gets addresses of rings as QEMU has them, and translates them by
 * its memory regions, or, in the kernel, takes them as they are. It may look
 * where a ring starts only. So all of each ring has to be in one memory region,
 * unless an IOMMU is in between.
 *
 * All functions must be called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VHOST_RINGS_H
#define HW_VIRTIO_VHOST_RINGS_H

#include "hw/virtio/vhost.h"

/**
 * vhost_rings_map: map the rings of a virtqueue that is to be started
 *
 * Reports it if the guest has a ring where the backend would not find it.
 *
 * @dev: the backend, whose memory regions are up to date
 * @vq: the virtqueue, with the addresses and sizes of its rings; not mapped
 * @idx: its index within the virtio device
 *
 * Returns: zero on success, or a negative error number.
 */
int vhost_rings_map(struct vhost_dev *dev, struct vhost_virtqueue *vq,
                    unsigned int idx);

/**
 * vhost_rings_are_mapped: whether the virtqueue was started
 *
 * The guest may set the addresses of rings at any time. Only those matter that
 * the virtqueue was started with, if it was. Its desc_phys is zero when the
 * backend does not use it, also after vhost_rings_check() has stopped it.
 *
 * @vq: the virtqueue
 */
bool vhost_rings_are_mapped(const struct vhost_virtqueue *vq);

/**
 * vhost_rings_unmap: undo vhost_rings_map()
 *
 * @dev: the backend, which does not use the virtqueue any more
 * @vq: the virtqueue; nothing happens if it is not mapped
 */
void vhost_rings_unmap(struct vhost_dev *dev, struct vhost_virtqueue *vq);

/**
 * vhost_rings_check: stop virtqueues that have lost their memory
 *
 * To be called with new memory regions, before the backend gets them. That is
 * about all virtqueues of the device, also those of other struct vhost_dev. The
 * backend is told to stop such a virtqueue, and the device is broken until the
 * guest resets it. The rings remain mapped until the virtqueue is stopped by
 * vhost_virtqueue_stop(): the kernel goes on with them.
 *
 * @dev: the backend, which is started
 */
void vhost_rings_check(struct vhost_dev *dev);

#endif /* HW_VIRTIO_VHOST_RINGS_H */
