/*
 * Vhost User library: elements that are held while memory regions come and go
 *
 * A front end may remove a memory region while the device works on elements
 * that have buffers there.  It is not made to wait: the region is gone for all
 * that is translated from then on, but it stays mapped until the last element
 * is released that uses it.
 *
 * Only devices need this that handle messages while they work on elements.
 * None of it is thread-safe: all belongs where vu_dispatch() is called.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef LIBVHOST_USER_HELD_H
#define LIBVHOST_USER_HELD_H

#include "libvhost-user.h"

/**
 * vu_element_hold:
 * @dev: a VuDev context
 * @elem: an element that vu_queue_pop() returned
 *
 * Keep the memory mapped that the buffers of @elem lie in.  Meanwhile, its
 * array of buffers may be changed in that buffers become smaller.
 */
void vu_element_hold(VuDev *dev, VuVirtqElement *elem);

/**
 * vu_element_release:
 * @dev: a VuDev context
 * @elem: an element that is held
 *
 * To be called before @elem is freed, and before vu_deinit().
 */
void vu_element_release(VuDev *dev, VuVirtqElement *elem);

/*
 * vu_unmap_region:
 * @dev: a VuDev context
 * @region: a region that was removed
 *
 * Unmap @region, now or when no element that is held uses it any more.  So many
 * may be kept as there can be regions; with more, the device is broken, or
 * somebody who has elements worked on for long could have us run out of
 * mappings.
 */
void vu_unmap_region(VuDev *dev, const VuDevRegion *region);

#endif /* LIBVHOST_USER_HELD_H */
