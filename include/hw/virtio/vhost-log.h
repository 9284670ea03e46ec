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
 * If there is no memory for a larger log, a backend is left without. Everything
 * that it can write to is dirty then.
 *
 * All functions must be called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VHOST_LOG_H
#define HW_VIRTIO_VHOST_LOG_H

#include "hw/virtio/vhost.h"

/**
 * vhost_log_use: have a backend use a log
 *
 * To be called before the backend is told to log.
 *
 * @dev: the backend
 *
 * Returns: zero on success, or a negative error number.
 */
int vhost_log_use(struct vhost_dev *dev);

/**
 * vhost_log_grow: have a log that is large enough for new sections
 *
 * To be called before the backend gets its tmp_sections, and while all else is
 * as before. If the log has to grow, all backends of the type change to the new
 * one. If it cannot, the backend is told not to log any more.
 *
 * @dev: the backend; nothing happens if it does not log
 */
void vhost_log_grow(struct vhost_dev *dev);

/**
 * vhost_log_leave: have a backend without a log
 *
 * @dev: the backend, which does not log any more; it may have no log
 * @sync: whether what is in the log, or all if there is none, still matters
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

/**
 * vhost_dev_set_log: tell a backend whether to log, in vhost.c
 *
 * @dev: the backend, which is started, and has a log
 * @enable_log: whether to log
 *
 * Returns: zero on success, or a negative error number.
 */
int vhost_dev_set_log(struct vhost_dev *dev, bool enable_log);

#endif /* HW_VIRTIO_VHOST_LOG_H */
