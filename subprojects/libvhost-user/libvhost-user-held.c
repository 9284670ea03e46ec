/*
 * Vhost User library: elements that are held while memory regions come and go
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <stdlib.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "libvhost-user-held.h"

/* A region that was removed, with elements that use it */
struct VuHeldRegion {
    VuHeldRegion *next;
    void *start;
    size_t size;
    unsigned int nusers;
};

static bool buffers_use(const struct iovec *sg, unsigned int num,
                        const VuHeldRegion *region)
{
    unsigned int i;

    for (i = 0; i < num; i++) {
        /* No buffer extends beyond the region that it begins in. */
        if ((uintptr_t)sg[i].iov_base - (uintptr_t)region->start <
            region->size) {
            return true;
        }
    }
    return false;
}

static bool element_uses(const VuVirtqElement *elem,
                         const VuHeldRegion *region)
{
    return buffers_use(elem->in_sg, elem->in_num, region) ||
           buffers_use(elem->out_sg, elem->out_num, region);
}

void vu_element_hold(VuDev *dev, VuVirtqElement *elem)
{
    elem->held_next = dev->held_elements;
    elem->held_link = &dev->held_elements;
    if (elem->held_next) {
        elem->held_next->held_link = &elem->held_next;
    }
    dev->held_elements = elem;
}

void vu_element_release(VuDev *dev, VuVirtqElement *elem)
{
    VuHeldRegion **link = &dev->held_regions;
    VuHeldRegion *region;

    *elem->held_link = elem->held_next;
    if (elem->held_next) {
        elem->held_next->held_link = elem->held_link;
    }

    while ((region = *link)) {
        if (!element_uses(elem, region) || --region->nusers) {
            link = &region->next;
            continue;
        }
        *link = region->next;
        munmap(region->start, region->size);
        dev->nheld_regions--;
        free(region);
    }
}

void vu_unmap_region(VuDev *dev, const VuDevRegion *region)
{
    VuHeldRegion held = {
        .next = dev->held_regions,
        .start = (void *)(uintptr_t)region->mmap_addr,
        .size = region->size + region->mmap_offset,
    };
    VuHeldRegion *copy;
    VuVirtqElement *elem;

    for (elem = dev->held_elements; elem; elem = elem->held_next) {
        held.nusers += element_uses(elem, &held);
    }
    if (!held.nusers) {
        munmap(held.start, held.size);
        return;
    }

    copy = malloc(sizeof(*copy));
    if (copy) {
        *copy = held;
        dev->held_regions = copy;
        dev->nheld_regions++;
    }
    /* Without memory to remember it, it stays mapped for good. */
    if (!dev->broken &&
        (!copy || dev->nheld_regions > VHOST_USER_MAX_RAM_SLOTS)) {
        dev->broken = true;
        dev->panic(dev, "too many removed memory regions are in use");
    }
}
