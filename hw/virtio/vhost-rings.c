/*
 * vhost: the rings of virtqueues in the memory that a backend has
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/cpu-common.h"
#include "hw/virtio/vhost-rings.h"
#include "qemu/error-report.h"
#include "standard-headers/linux/vhost_types.h"

#define NB_RINGS 3

/*
 * struct vhost_dev of which rings are mapped. A device with several pairs of
 * queues has one for each, but the backend has one table of memory regions.
 */
static GSList *vhost_rings_devs;

typedef struct VhostRing {
    const char *name;
    void **host;
    hwaddr addr;
    hwaddr size;
    bool is_write;
} VhostRing;

static void vhost_get_rings(struct vhost_virtqueue *vq,
                            VhostRing rings[NB_RINGS])
{
    rings[0] = (VhostRing) {
        "descriptor table", &vq->desc, vq->desc_phys, vq->desc_size, false
    };
    rings[1] = (VhostRing) {
        "available ring", &vq->avail, vq->avail_phys, vq->avail_size, false
    };
    rings[2] = (VhostRing) {
        "used ring", &vq->used, vq->used_phys, vq->used_size, true
    };
}

static bool vhost_ring_is_in_region(const struct vhost_memory *mem,
                                    const VhostRing *ring)
{
    unsigned int i;

    for (i = 0; i < mem->nregions; i++) {
        const struct vhost_memory_region *reg = &mem->regions[i];
        const hwaddr offset = ring->addr - reg->guest_phys_addr;

        if (ring->addr >= reg->guest_phys_addr && offset < reg->memory_size) {
            return ring->size <= reg->memory_size - offset &&
                   reg->userspace_addr + offset == (uintptr_t)*ring->host;
        }
    }
    return false;
}

/* Returns a ring that is not where the backend would look for it, or NULL. */
static const VhostRing *vhost_find_lost_ring(struct vhost_dev *dev,
                                             const struct vhost_memory *mem,
                                             const VhostRing rings[NB_RINGS])
{
    unsigned int i;

    if (vhost_dev_has_iommu(dev)) {
        return NULL;
    }
    for (i = 0; i < NB_RINGS; i++) {
        if (!vhost_ring_is_in_region(mem, &rings[i])) {
            return &rings[i];
        }
    }
    return NULL;
}

static void vhost_ring_map(struct vhost_dev *dev, const VhostRing *ring)
{
    hwaddr len = ring->size;

    if (vhost_dev_has_iommu(dev)) {
        *ring->host = (void *)(uintptr_t)ring->addr;
        return;
    }
    /* Less than all of it, or not the RAM, is not in a memory region. */
    *ring->host = cpu_physical_memory_map(ring->addr, &len, ring->is_write);
}

/* For log messages: what users know the device by */
static const char *vhost_device_id(const struct vhost_dev *dev)
{
    const DeviceState *proxy = qdev_get_parent_bus(DEVICE(dev->vdev))->parent;

    return proxy->id ?: dev->vdev->name;
}

bool vhost_rings_are_mapped(const struct vhost_virtqueue *vq)
{
    return vq->desc;
}

static void vhost_unmap(struct vhost_dev *dev, struct vhost_virtqueue *vq,
                        bool was_used)
{
    VhostRing rings[NB_RINGS];
    unsigned int i;

    vhost_get_rings(vq, rings);
    for (i = 0; i < NB_RINGS; i++) {
        const hwaddr written = was_used && rings[i].is_write ? rings[i].size
                                                             : 0;

        if (*rings[i].host && !vhost_dev_has_iommu(dev)) {
            cpu_physical_memory_unmap(*rings[i].host, rings[i].size,
                                      rings[i].is_write, written);
        }
        *rings[i].host = NULL;
    }
    vq->desc_phys = 0;

    for (i = 0; i < dev->nvqs; i++) {
        if (vhost_rings_are_mapped(&dev->vqs[i])) {
            return;
        }
    }
    vhost_rings_devs = g_slist_remove(vhost_rings_devs, dev);
}

int vhost_rings_map(struct vhost_dev *dev, struct vhost_virtqueue *vq,
                    unsigned int idx)
{
    VhostRing rings[NB_RINGS];
    const VhostRing *lost;
    unsigned int i;

    vhost_get_rings(vq, rings);
    for (i = 0; i < NB_RINGS; i++) {
        vhost_ring_map(dev, &rings[i]);
    }
    lost = vhost_find_lost_ring(dev, dev->mem, rings);
    if (lost) {
        error_report("%s: queue %u cannot be used by vhost: its %s at 0x%"
                     HWADDR_PRIx " is not in one memory region",
                     vhost_device_id(dev), idx, lost->name, lost->addr);
        vhost_unmap(dev, vq, false);
        return -EFAULT;
    }
    if (!g_slist_find(vhost_rings_devs, dev)) {
        vhost_rings_devs = g_slist_prepend(vhost_rings_devs, dev);
    }
    return 0;
}

void vhost_rings_unmap(struct vhost_dev *dev, struct vhost_virtqueue *vq)
{
    vhost_unmap(dev, vq, true);
}

static void vhost_rings_check_queues(struct vhost_dev *dev,
                                     const struct vhost_memory *mem)
{
    unsigned int i;

    for (i = 0; i < dev->nvqs; i++) {
        struct vhost_virtqueue *vq = &dev->vqs[i];
        const unsigned int idx = dev->vq_index + i;
        struct vhost_vring_state state = {
            .index = dev->vhost_ops->vhost_get_vq_index(dev, idx),
        };
        VhostRing rings[NB_RINGS];
        const VhostRing *lost;

        if (!vq->desc_phys) {
            continue;
        }
        vhost_get_rings(vq, rings);
        lost = vhost_find_lost_ring(dev, mem, rings);
        if (lost) {
            virtio_error(dev->vdev, "%s: queue %u was stopped: its %s at 0x%"
                         HWADDR_PRIx " is not in one memory region any more",
                         vhost_device_id(dev), idx, lost->name, lost->addr);
            /* Whether it works or not, do not stop it again. */
            vq->desc_phys = 0;
            /* Unmaps what the backend mapped to be notified by, if it did. */
            dev->vhost_ops->vhost_get_vring_base(dev, &state);
        }
    }
}

void vhost_rings_check(struct vhost_dev *dev)
{
    GSList *item;

    for (item = vhost_rings_devs; item; item = item->next) {
        struct vhost_dev *other = item->data;

        /* Whoever is told first of new memory regions tells the backend. */
        if (other->vdev == dev->vdev) {
            vhost_rings_check_queues(other, dev->mem);
        }
    }
}
