/*
 * virtio-mem: which memslots are mapped when
 *
 * With "multiple-memslots=on", a virtio-mem device hands out a container in
 * place of the memory region of its backend, and maps those memslots into it
 * that the driver may access.  This is the rule for it, what a refused memslot
 * leads to, and the properties; hw/mem/memslot-set.h is the mechanism.
 *
 * All functions must be called with the BQL held.  Offsets and sizes are in
 * bytes, relative to the start of the device's memory region.  With
 * "multiple-memslots=off", functions do nothing and report success.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_MEM_MEMSLOTS_H
#define HW_VIRTIO_MEM_MEMSLOTS_H

#include "hw/mem/memslot-set.h"
#include "hw/qdev-properties.h"
#include "qapi/qapi-types-common.h"
#include "qapi/qapi-types-machine.h"
#include "qapi/qapi-types-memslots.h"
#include "qemu/report-limit.h"

#define VIRTIO_MEM_MULTIPLE_MEMSLOTS_PROP "multiple-memslots"
#define VIRTIO_MEM_MEMSLOT_MIN_SIZE_PROP "memslot-min-size"
#define VIRTIO_MEM_MEMSLOTS_PROP "memslots"
#define VIRTIO_MEM_ACTIVE_MEMSLOTS_PROP "active-memslots"
#define VIRTIO_MEM_MAPPED_SIZE_PROP "mapped-size"

/* See hw/virtio/virtio-mem.h, which needs this header first. */
typedef struct VirtIOMEM VirtIOMEM;

typedef struct VirtIOMEMMemslots {
    /*
     * Whether to map the memory in several memslots if possible (a hint), by
     * its two names. auto: not set by that name
     */
    OnOffAuto multiple;
    OnOffAuto dynamic;

    /* size of the smallest memslot, if it was set (else 0) */
    uint64_t min_size;

    /* private: */
    /* a child; NULL: the memory region of the backend is mapped as a whole */
    MemslotSet *set;

    /* requests that were refused, of which one a minute is reported */
    ReportLimit refusals;

    /* likewise, where the usable region could not grow to what is requested */
    ReportLimit usable_refusals;

    /* how many requests have been looked for, see virtio_mem_has_turn() */
    unsigned int turn;

    /* a state is loaded, and listeners are going to be told of it later */
    bool loading;

    /* what is going to be discarded when vCPUs can no longer reach it */
    QLIST_HEAD(, VirtIOMEMUnmapped) unmapped;
} VirtIOMEMMemslots;

/* the settable properties; states of type OnOffAuto and uint64_t */
extern const PropertyInfo virtio_mem_memslots_hint;
extern const PropertyInfo virtio_mem_memslot_min_size;

/**
 * virtio_mem_memslots_init: add the properties that cannot be set
 *
 * @vmem: the device, being initialized
 */
void virtio_mem_memslots_init(VirtIOMEM *vmem);

/**
 * virtio_mem_memslots_alias_properties: show these properties on a proxy
 *
 * @proxy: the device that @vmem is part of
 * @vmem: the device
 */
void virtio_mem_memslots_alias_properties(Object *proxy, VirtIOMEM *vmem);

/**
 * virtio_mem_memslots_get_region: the memory region to map
 *
 * Stays the same from the first call on.
 *
 * @vmem: the device, which has a memory backend
 */
MemoryRegion *virtio_mem_memslots_get_region(VirtIOMEM *vmem);

/**
 * virtio_mem_memslots_decide: divide the memory region into memslots
 *
 * Leaves it undivided if realizing the device is going to fail.
 *
 * @vmem: the device, before it is realized
 * @limit: the most memslots that it may use
 */
void virtio_mem_memslots_decide(VirtIOMEM *vmem, unsigned int limit);

/**
 * virtio_mem_memslots_count: the most memslots that will ever be mapped
 *
 * @vmem: the device, after virtio_mem_memslots_decide()
 */
unsigned int virtio_mem_memslots_count(const VirtIOMEM *vmem);

/**
 * virtio_mem_memslots_prepare: check the properties, be ready to map memslots
 *
 * @vmem: the device, being realized, whose other properties are fine
 * @errp: set if the properties contradict each other or the block size
 *
 * Returns: true on success.
 */
bool virtio_mem_memslots_prepare(VirtIOMEM *vmem, Error **errp);

/**
 * virtio_mem_memslots_realize: map the memslots that are needed at start
 *
 * @vmem: the device, being realized, with its bitmap, its usable region and its
 *     RamDiscardManager, but before its memory region is mapped
 */
void virtio_mem_memslots_realize(VirtIOMEM *vmem);

/**
 * virtio_mem_memslots_unrealize: unmap all, forget what was to be discarded
 *
 * @vmem: the device; it may be destroyed afterwards
 */
void virtio_mem_memslots_unrealize(VirtIOMEM *vmem);

/**
 * virtio_mem_has_turn: whether to take another request from the queue
 *
 * A guest can add requests as quickly as they are served. Whatever else the
 * main loop has to serve, the monitor among it, must get its turn.
 *
 * @vmem: the device
 * @vq: its queue
 *
 * Returns: true if so. Otherwise, the queue is going to be served again.
 */
bool virtio_mem_has_turn(VirtIOMEM *vmem, VirtQueue *vq);

/**
 * virtio_mem_memslots_plug: map the memslots of a range that gets plugged
 *
 * To be called before the range is plugged in the bitmap and before listeners
 * are told of it: those that register now replay what is plugged so far, and
 * learn of the range like all others. If a memslot is refused, it is reported.
 *
 * @vmem: the device
 * @offset: start of the range
 * @size: size of the range
 *
 * Returns: zero, or -EBUSY if a memslot was refused; the caller has to call
 * virtio_mem_memslots_plug_failed() then.
 */
int virtio_mem_memslots_plug(VirtIOMEM *vmem, uint64_t offset, uint64_t size);

/**
 * virtio_mem_memslots_plug_failed: unmap the memslots of a range that was to be
 * plugged and could not be
 *
 * @vmem: the device
 * @offset: start of the range
 * @size: size of the range
 * @ret: -EBUSY if the reason was reported, or what a listener returned
 */
void virtio_mem_memslots_plug_failed(VirtIOMEM *vmem, uint64_t offset,
                                     uint64_t size, int ret);

/**
 * virtio_mem_memslots_plugged: do not count a range as written by the guest
 * that was plugged
 *
 * KVM's log of a new memslot can have all pages set, as that of memory which is
 * unplugged has. If the dirty rate is measured with it, clear the range.
 *
 * @vmem: the device
 * @offset: start of the range
 * @size: size of the range
 */
void virtio_mem_memslots_plugged(VirtIOMEM *vmem, uint64_t offset,
                                 uint64_t size);

/**
 * virtio_mem_refused: report that a request of the driver was refused
 *
 * Warns, and sends an event. Drivers try again and again: that is done at most
 * once a minute for each device. Also with "multiple-memslots=off".
 *
 * @vmem: the device
 * @refuser: who refused it
 * @backend: the id of the vhost backend or the like that did, or NULL
 * @err: why; is freed
 */
void virtio_mem_refused(VirtIOMEM *vmem, MemoryRefuser refuser,
                        const char *backend, Error *err);

/**
 * virtio_mem_memslots_sync: map and unmap the memslots that a range touches, by
 * the rule
 *
 * To be called when memory was unplugged, or was to be plugged and could not
 * be: it must not need memslots that are not mapped. What unmapped memslots
 * hold is discarded as soon as no vCPU can reach it any more.
 *
 * @vmem: the device
 * @offset: start of the range
 * @size: size of the range
 */
void virtio_mem_memslots_sync(VirtIOMEM *vmem, uint64_t offset, uint64_t size);

/**
 * virtio_mem_memslots_set_usable: change the size of the usable region
 *
 * @vmem: the device, realized or not
 * @size: the size, in bytes
 * @errp: set if a memslot was refused; nothing has changed then. Shrinking
 *     never fails.
 *
 * Returns: true on success.
 */
bool virtio_mem_memslots_set_usable(VirtIOMEM *vmem, uint64_t size,
                                    Error **errp);

/**
 * virtio_mem_memslots_usable_refused: report that the usable region stays
 * smaller than it should be
 *
 * That can happen at a reset, or when the driver unplugs all, after a state
 * could not be loaded: nothing is usable then. The next of these tries again.
 *
 * @vmem: the device
 * @err: why; is freed
 */
void virtio_mem_memslots_usable_refused(VirtIOMEM *vmem, Error *err);

/**
 * virtio_mem_memslots_load: check a loaded state, map the memslots it asks for
 *
 * Listeners that register meanwhile are not told what is plugged: the caller
 * tells all of them afterwards, see virtio_mem_memslots_replay_later().
 *
 * @vmem: the device, with bitmap and usable region as far as they were loaded
 *
 * Returns: zero; -EBUSY if a memslot was refused, or -EINVAL if the state
 * cannot be, with one memslot as with many. That was reported; the caller has
 * to unplug all memory and to call virtio_mem_memslots_sync() then.
 */
int virtio_mem_memslots_load(VirtIOMEM *vmem);

/**
 * virtio_mem_memslots_replay_later: whether listeners that register now are
 * going to be told later what is plugged
 *
 * @vmem: the device
 */
bool virtio_mem_memslots_replay_later(const VirtIOMEM *vmem);

/**
 * virtio_mem_memslots_fill_info: tell how many memslots there are
 *
 * @vmem: the device, realized
 * @info: where to tell it
 */
void virtio_mem_memslots_fill_info(const VirtIOMEM *vmem,
                                   VirtioMEMDeviceInfo *info);

#endif /* HW_VIRTIO_MEM_MEMSLOTS_H */
