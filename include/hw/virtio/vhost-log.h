/*
 * vhost: the log of dirty pages
 *
 * Backends that write to memory while its dirty pages are tracked tell so in a
 * log, which has a bit for each page of guest-physical memory. All backends of
 * a type share one log, and one of them, elected, reads it for all: that goes
 * well only if all of them have the same one. It is as large as any of them
 * needs, and never shrinks while it is in use: what is taken away may have been
 * written to, and the kernel goes on with rings that lie in it.
 *
 * If there is no memory for a larger log, a backend is left without, and has to
 * be told not to log. Everything that it can write to is dirty then.
 *
 * All functions must be called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VHOST_LOG_H
#define HW_VIRTIO_VHOST_LOG_H

#include "hw/virtio/vhost.h"

/**
 * vhost_log_needed: how large a log has to be
 *
 * Rings count as well: memory may have gone from where they are, but not for
 * the kernel.
 *
 * @dev: the backend
 * @sections: the sections of memory that it has, or is about to get
 * @nb_sections: their number
 *
 * Returns: the number of chunks, each for VHOST_LOG_CHUNK bytes of memory
 */
uint64_t vhost_log_needed(struct vhost_dev *dev,
                          const MemoryRegionSection *sections,
                          unsigned int nb_sections);

/**
 * vhost_log_use: have a backend use a log of at least that size
 *
 * To be called before the backend is told to log, and while it logs, before it
 * is given more memory, while @dev has the sections that it had before. If the
 * log has to grow, all backends of the type change to the new one.
 *
 * @dev: the backend
 * @size: the number of chunks
 *
 * Returns: zero on success, or a negative error number, with the backend's log
 * being as before.
 */
int vhost_log_use(struct vhost_dev *dev, uint64_t size);

/**
 * vhost_log_leave: have a backend without a log
 *
 * @dev: the backend, which does not log any more; it may have no log
 * @sync: whether what is in the log still matters
 */
void vhost_log_leave(struct vhost_dev *dev, bool sync);

/**
 * vhost_log_sync: the callback of a backend's memory listener
 */
void vhost_log_sync(MemoryListener *listener, MemoryRegionSection *section);

/**
 * vhost_log_sync_removed: read what the log tells of sections that are gone
 *
 * To be called when the backend cannot write there any more.
 *
 * @dev: the backend, which logs
 * @old: the sections that it had before
 * @nb_old: their number
 */
void vhost_log_sync_removed(struct vhost_dev *dev, MemoryRegionSection *old,
                            unsigned int nb_old);

#endif /* HW_VIRTIO_VHOST_LOG_H */
