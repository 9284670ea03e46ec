/*
 * vhost: the log of dirty pages
 *
 * Copyright Red Hat, Inc. 2010
 *
 * Authors:
 *  Michael S. Tsirkin <mst@redhat.com>
 *
 * This work is licensed under the terms of the GNU GPL, version 2.  See
 * the COPYING file in the top-level directory.
 *
 * Contributions after 2012-01-13 are licensed under the terms of the
 * GNU GPL, version 2 or (at your option) any later version.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/boards.h"
#include "hw/virtio/vhost-log.h"
#include "hw/virtio/vhost-rings.h"
#include "qapi/error.h"
#include "qemu/atomic.h"
#include "qemu/error-report.h"
#include "qemu/log.h"
#include "qemu/memfd.h"
#include "qemu/range.h"
#include "standard-headers/linux/vhost_types.h"

/* A log that replaces another one is larger by that, in chunks. */
#define VHOST_LOG_BUFFER (4096 / sizeof(vhost_log_chunk_t))

static struct vhost_log *vhost_log[VHOST_BACKEND_TYPE_MAX];
static struct vhost_log *vhost_log_shm[VHOST_BACKEND_TYPE_MAX];

/* Backends that have a log: the first one is elected to read it. */
static QLIST_HEAD(, vhost_dev) vhost_log_devs[VHOST_BACKEND_TYPE_MAX];

static VhostBackendType vhost_log_type(const struct vhost_dev *dev)
{
    assert(dev->vhost_ops);
    assert(dev->vhost_ops->backend_type > VHOST_BACKEND_TYPE_NONE);
    assert(dev->vhost_ops->backend_type < VHOST_BACKEND_TYPE_MAX);

    return dev->vhost_ops->backend_type;
}

static bool vhost_log_is_elected(const struct vhost_dev *dev)
{
    return dev == QLIST_FIRST(&vhost_log_devs[vhost_log_type(dev)]);
}

static void vhost_log_join(struct vhost_dev *dev)
{
    struct vhost_dev *first = QLIST_FIRST(&vhost_log_devs[vhost_log_type(dev)]);

    if (QLIST_IS_INSERTED(dev, logdev_entry)) {
        return;
    }
    if (!first) {
        QLIST_INSERT_HEAD(&vhost_log_devs[vhost_log_type(dev)], dev,
                          logdev_entry);
    } else {
        /*
         * The first vhost_device in the list is selected as the shared
         * logger to scan memory sections. Put new entry next to the head
         * to avoid inadvertent change to the underlying logger device.
         * This is done in order to get better cache locality and to avoid
         * performance churn on the hot path for log scanning. Even when
         * new devices come and go quickly, it wouldn't end up changing
         * the active leading logger device at all.
         */
        QLIST_INSERT_AFTER(first, dev, logdev_entry);
    }
}

/* ---- Reading the log ---- */

/* The bits of a chunk, which begins at an address, that are for a range. */
static vhost_log_chunk_t vhost_log_mask(uint64_t addr, uint64_t start,
                                        uint64_t end)
{
    vhost_log_chunk_t mask = ~(vhost_log_chunk_t)0;

    if (addr < start) {
        mask <<= (start - addr) / VHOST_LOG_PAGE;
    }
    if (end - addr < VHOST_LOG_CHUNK) {
        mask &= ~(vhost_log_chunk_t)0 >>
                (VHOST_LOG_BITS - 1 - (end - addr) / VHOST_LOG_PAGE);
    }
    return mask;
}

/* Without a log, all of it is dirty. */
static void vhost_log_sync_range(const struct vhost_log *log,
                                 MemoryRegionSection *section,
                                 uint64_t mfirst, uint64_t mlast,
                                 uint64_t rfirst, uint64_t rlast)
{
    uint64_t start = MAX(mfirst, rfirst);
    uint64_t end = MIN(mlast, rlast);
    uint64_t addr = QEMU_ALIGN_DOWN(start, VHOST_LOG_CHUNK);
    vhost_log_chunk_t *from, *to;

    if (end < start) {
        return;
    }
    if (!log) {
        /* Nobody knows better. */
        memory_region_set_dirty(section->mr, section->offset_within_region +
                                start - section->offset_within_address_space,
                                end - start + 1);
        return;
    }
    /* An IOMMU may have a ring anywhere, also where nothing can be logged. */
    if (start / VHOST_LOG_CHUNK >= log->size) {
        return;
    }
    from = log->log + start / VHOST_LOG_CHUNK;
    to = log->log + MIN(end / VHOST_LOG_CHUNK + 1, log->size);

    for (; from < to; ++from) {
        const vhost_log_chunk_t mask = vhost_log_mask(addr, start, end);
        vhost_log_chunk_t bits;
        /*
         * We first check with non-atomic: much cheaper,
         * and we expect non-dirty to be the common case.
         */
        if (!(*from & mask)) {
            addr += VHOST_LOG_CHUNK;
            continue;
        }
        /*
         * Data must be read atomically. We don't really need barrier semantics
         * but it's easier to use atomic_* than roll our own. The other bits may
         * be for another section, or for none.
         */
        bits = qatomic_fetch_and(from, ~mask) & mask;
        while (bits) {
            int bit = ctzl(bits);
            hwaddr page_addr;
            hwaddr section_offset;
            hwaddr mr_offset;
            page_addr = addr + bit * VHOST_LOG_PAGE;
            section_offset = page_addr - section->offset_within_address_space;
            mr_offset = section_offset + section->offset_within_region;
            memory_region_set_dirty(section->mr, mr_offset, VHOST_LOG_PAGE);
            bits &= ~(0x1ull << bit);
        }
        addr += VHOST_LOG_CHUNK;
    }
}

/* @all: also what others that share the log have written */
static void vhost_log_sync_section(struct vhost_dev *dev,
                                   const struct vhost_log *log,
                                   MemoryRegionSection *section, bool all)
{
    int i;
    const hwaddr start_addr = section->offset_within_address_space;
    const hwaddr end_addr = range_get_last(start_addr,
                                           int128_get64(section->size));

    if (all) {
        for (i = 0; i < dev->mem->nregions; ++i) {
            struct vhost_memory_region *reg = dev->mem->regions + i;
            vhost_log_sync_range(log, section, start_addr, end_addr,
                                 reg->guest_phys_addr,
                                 range_get_last(reg->guest_phys_addr,
                                                reg->memory_size));
        }
    }
    for (i = 0; i < dev->nvqs; ++i) {
        struct vhost_virtqueue *vq = dev->vqs + i;

        if (!vq->used_phys && !vq->used_size) {
            continue;
        }

        if (vhost_dev_has_iommu(dev)) {
            IOMMUTLBEntry iotlb;
            hwaddr used_phys = vq->used_phys, used_size = vq->used_size;
            hwaddr phys, s, offset;

            while (used_size) {
                rcu_read_lock();
                iotlb = address_space_get_iotlb_entry(dev->vdev->dma_as,
                                                      used_phys,
                                                      true,
                                                      MEMTXATTRS_UNSPECIFIED);
                rcu_read_unlock();

                if (!iotlb.target_as) {
                    qemu_log_mask(LOG_GUEST_ERROR, "translation "
                                  "failure for used_iova %"PRIx64"\n",
                                  used_phys);
                    return;
                }

                offset = used_phys & iotlb.addr_mask;
                phys = iotlb.translated_addr + offset;

                /*
                 * Distance from start of used ring until last byte of
                 * IOMMU page.
                 */
                s = iotlb.addr_mask - offset;
                /*
                 * Size of used ring, or of the part of it until end
                 * of IOMMU page. To avoid zero result, do the adding
                 * outside of MIN().
                 */
                s = MIN(s, used_size - 1) + 1;

                vhost_log_sync_range(log, section, start_addr, end_addr, phys,
                                     range_get_last(phys, s));
                used_size -= s;
                used_phys += s;
            }
        } else {
            vhost_log_sync_range(log, section, start_addr,
                                 end_addr, vq->used_phys,
                                 range_get_last(vq->used_phys, vq->used_size));
        }
    }
}

static void vhost_log_sync_all(struct vhost_dev *dev,
                               const struct vhost_log *log)
{
    int i;

    for (i = 0; i < dev->n_mem_sections; i++) {
        vhost_log_sync_section(dev, log, &dev->mem_sections[i], true);
    }
}

void vhost_log_sync(MemoryListener *listener, MemoryRegionSection *section)
{
    struct vhost_dev *dev = container_of(listener, struct vhost_dev,
                                         memory_listener);

    if (dev->log_enabled && dev->started) {
        vhost_log_sync_section(dev, dev->log, section,
                               !dev->log || vhost_log_is_elected(dev));
    }
}

void vhost_log_sync_removed(struct vhost_dev *dev, MemoryRegionSection *old,
                            unsigned int nb_old)
{
    unsigned int i, j;

    for (i = 0; i < nb_old; i++) {
        for (j = 0; j < dev->n_mem_sections; j++) {
            if (MemoryRegionSection_eq(&old[i], &dev->mem_sections[j])) {
                break;
            }
        }
        /* What was discarded is not dirty any more. */
        if (j == dev->n_mem_sections &&
            !memory_region_has_ram_discard_manager(old[i].mr)) {
            vhost_log_sync_range(dev->log, &old[i], 0, UINT64_MAX,
                                 old[i].offset_within_address_space,
                                 range_get_last(
                                     old[i].offset_within_address_space,
                                     int128_get64(old[i].size)));
        }
    }
}

/* ---- Logs ---- */

/*
 * How many chunks a backend needs. All memory devices that there could be are
 * counted: the log does not have to grow when one is plugged, and what is never
 * written to does not take memory.
 */
static uint64_t vhost_log_needed(struct vhost_dev *dev,
                                 const MemoryRegionSection *sections,
                                 unsigned int nb_sections)
{
    DeviceMemoryState *device_memory = current_machine->device_memory;
    uint64_t last = 0;
    unsigned int i;

    if (device_memory) {
        last = device_memory->base + memory_region_size(&device_memory->mr);
    }
    for (i = 0; i < nb_sections; i++) {
        last = MAX(last, range_get_last(sections[i].offset_within_address_space,
                                        int128_get64(sections[i].size)));
    }
    /* Memory may have gone from where rings are, but not for the kernel. */
    for (i = 0; i < dev->nvqs && !vhost_dev_has_iommu(dev); i++) {
        const struct vhost_virtqueue *vq = &dev->vqs[i];

        if (vhost_rings_are_mapped(vq)) {
            last = MAX(last, range_get_last(vq->used_phys, vq->used_size));
        }
    }
    return last / VHOST_LOG_CHUNK + 1;
}

static bool vhost_log_is_shared(struct vhost_dev *dev)
{
    return dev->vhost_ops->vhost_requires_shm_log &&
           dev->vhost_ops->vhost_requires_shm_log(dev);
}

/* Where the current log is remembered */
static struct vhost_log **vhost_log_current(struct vhost_dev *dev)
{
    return vhost_log_is_shared(dev) ? &vhost_log_shm[vhost_log_type(dev)]
                                    : &vhost_log[vhost_log_type(dev)];
}

static struct vhost_log *vhost_log_alloc(uint64_t size, bool share)
{
    Error *err = NULL;
    struct vhost_log *log = g_new0(struct vhost_log, 1);
    const uint64_t bytes = size * sizeof(*log->log);

    log->size = size;
    log->fd = -1;
    if (share) {
        /* It reads as zeroes, and takes no memory before it is written to. */
        log->log = qemu_memfd_alloc("vhost-log", bytes,
                                    F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL,
                                    &log->fd, &err);
        if (err) {
            error_report_err(err);
        }
    } else {
        log->log = g_try_malloc0(bytes);
    }
    if (!log->log) {
        g_clear_pointer(&log, g_free);
    }
    return log;
}

static void vhost_log_unref(struct vhost_dev *dev, struct vhost_log *log)
{
    if (--log->refcnt) {
        return;
    }
    if (*vhost_log_current(dev) == log) {
        *vhost_log_current(dev) = NULL;
    }
    if (log->fd >= 0) {
        qemu_memfd_free(log->log, log->size * sizeof(*log->log), log->fd);
    } else {
        g_free(log->log);
    }
    g_free(log);
}

/* The backend does not write to that log any more. */
static void vhost_log_put(struct vhost_dev *dev, struct vhost_log *log,
                          bool sync)
{
    /* The last one looks for all, elected or not. */
    if (sync && log->refcnt == 1) {
        vhost_log_sync_all(dev, log);
    }
    vhost_log_unref(dev, log);
}

static int vhost_log_set(struct vhost_dev *dev, struct vhost_log *log)
{
    struct vhost_log *old = dev->log;
    int r;

    if (log == old) {
        return 0;
    }
    /* The old one has to be there until the backend knows. */
    r = dev->vhost_ops->vhost_set_log_base(dev, (uintptr_t)log->log, log);
    if (r < 0) {
        error_report("vhost_set_log_base failed: %s (%d)", strerror(-r), -r);
        return r;
    }
    log->refcnt++;
    dev->log = log;
    dev->log_size = log->size;
    vhost_log_join(dev);
    if (old) {
        vhost_log_put(dev, old, true);
    }
    return 0;
}

static int vhost_log_use_size(struct vhost_dev *dev, uint64_t size)
{
    const bool share = vhost_log_is_shared(dev);
    struct vhost_log *log = *vhost_log_current(dev);
    struct vhost_dev *other, *next;
    int r;

    if (!log || log->size < size) {
        log = vhost_log_alloc(log ? size + VHOST_LOG_BUFFER : size, share);
        if (!log) {
            return -ENOMEM;
        }
        *vhost_log_current(dev) = log;
    }

    log->refcnt++;
    QLIST_FOREACH_SAFE(other, &vhost_log_devs[vhost_log_type(dev)],
                       logdev_entry, next) {
        if (other != dev && vhost_log_is_shared(other) == share &&
            vhost_log_set(other, log) < 0) {
            /* It is the last one with the old log: nobody is to rely on it. */
            QLIST_SAFE_REMOVE(other, logdev_entry);
        }
    }
    r = vhost_log_set(dev, log);
    vhost_log_unref(dev, log);
    return r;
}

int vhost_log_use(struct vhost_dev *dev)
{
    return vhost_log_use_size(dev, vhost_log_needed(dev, dev->mem_sections,
                                                    dev->n_mem_sections));
}

void vhost_log_leave(struct vhost_dev *dev, bool sync)
{
    struct vhost_log *log = dev->log;

    if (!log) {
        /* What it has written is not looked for once more when it is gone. */
        if (sync && dev->log_enabled) {
            vhost_log_sync_all(dev, NULL);
        }
        return;
    }
    QLIST_SAFE_REMOVE(dev, logdev_entry);
    vhost_log_put(dev, log, sync);
    dev->log = NULL;
    dev->log_size = 0;
}

void vhost_log_grow(struct vhost_dev *dev)
{
    if (dev->log &&
        vhost_log_use_size(dev, vhost_log_needed(dev, dev->tmp_sections,
                                                 dev->n_tmp_sections)) < 0) {
        error_report("vhost cannot log dirty pages any more: all pages count"
                     " as dirty that it can write to");
        vhost_dev_set_log(dev, false);
        vhost_log_leave(dev, true);
    }
}
