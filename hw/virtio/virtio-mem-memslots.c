/*
 * virtio-mem: which memslots are mapped when
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/virtio/virtio-mem.h"
#include "hw/virtio/virtio-mem-memslots.h"
#include "exec/ram_addr.h"
#include "hw/mem/memslot-account.h"
#include "hw/virtio/virtio-bus.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qapi/qapi-events-memslots.h"
#include "qapi/qapi-visit-common.h"
#include "qapi/visitor.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "system/runstate.h"
#include "trace.h"

/* Linux adds memory in parts of 128 MiB: smaller memslots would gain little. */
#define VIRTIO_MEM_MEMSLOT_MIN_SIZE_MIN (128 * MiB)

/* The range of the memslots that were unmapped in one go. */
typedef struct VirtIOMEMUnmapped {
    struct rcu_head rcu;
    /* NULL: there is nothing to discard any more */
    VirtIOMEM *vmem;
    uint64_t offset;
    uint64_t size;
    QLIST_ENTRY(VirtIOMEMUnmapped) next;
} VirtIOMEMUnmapped;

static uint64_t virtio_mem_region_size(const VirtIOMEM *vmem)
{
    return memory_region_size(&vmem->memdev->mr);
}

static bool virtio_mem_wants_memslots(const VirtIOMEM *vmem)
{
    return vmem->memslots.multiple == ON_OFF_AUTO_ON ||
           vmem->memslots.dynamic == ON_OFF_AUTO_ON;
}

/* What users know the device by: the id of its proxy, if that has one. */
static const char *virtio_mem_name(const VirtIOMEM *vmem)
{
    return object_get_canonical_path_component(OBJECT(vmem)->parent);
}

void virtio_mem_refused(VirtIOMEM *vmem, MemoryRefuser refuser,
                        const char *backend, Error *err)
{
    Object *proxy = OBJECT(vmem)->parent;
    DeviceState *dev = DEVICE(object_dynamic_cast(proxy, TYPE_DEVICE));
    g_autofree char *path = object_get_canonical_path(proxy);
    uint64_t left_out;

    trace_virtio_mem_refused(path, MemoryRefuser_str(refuser),
                             error_get_pretty(err));
    if (!report_limit_pass(&vmem->memslots.refusals, &left_out)) {
        error_free(err);
        return;
    }

    qapi_event_send_memory_device_request_refused(dev ? dev->id : NULL, path,
                                                  refuser, backend,
                                                  error_get_pretty(err),
                                                  left_out);
    if (left_out) {
        warn_reportf_err(err, "virtio-mem device '%s': memory cannot be plugged"
                         " now (nor %" PRIu64 " times since the last warning):"
                         " ", virtio_mem_name(vmem), left_out);
    } else {
        warn_reportf_err(err, "virtio-mem device '%s': memory cannot be plugged"
                         " now: ", virtio_mem_name(vmem));
    }
}

/* What is taken from the queue before others that the main loop serves */
#define VIRTIO_MEM_TURN 16

bool virtio_mem_has_turn(VirtIOMEM *vmem, VirtQueue *vq)
{
    /* Else, a vCPU that has notified us waits, and gets no further. */
    const bool is_main_loop =
        VIRTIO_BUS(qdev_get_parent_bus(DEVICE(vmem)))->ioeventfd_started;

    if (!is_main_loop || ++vmem->memslots.turn % VIRTIO_MEM_TURN) {
        return true;
    }
    event_notifier_set(virtio_queue_get_host_notifier(vq));
    return false;
}

/*
 * The rule for what is mapped: memory that the driver may access.
 *
 * With VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE (virtio spec, 5.15.6), that is
 * plugged memory. Without it, a driver may also read unplugged memory within
 * the usable region. What is plugged is within the usable region, but for the
 * time between the early and the late part of a migration.
 */
static bool virtio_mem_memslot_wanted(uint64_t offset, uint64_t size,
                                      void *opaque)
{
    const VirtIOMEM *vmem = opaque;
    const unsigned long first_bit = offset / vmem->block_size;
    const unsigned long end_bit = (offset + size) / vmem->block_size;

    if (vmem->unplugged_inaccessible == ON_OFF_AUTO_OFF &&
        offset < vmem->usable_region_size) {
        return true;
    }
    return find_next_bit(vmem->bitmap, end_bit, first_bit) < end_bit;
}

static void virtio_mem_discard_memslot(uint64_t offset, uint64_t size,
                                       void *opaque)
{
    const VirtIOMEM *vmem = opaque;

    /* If that fails, the memory stays until it is plugged and unplugged. */
    ram_block_discard_range(vmem->memdev->mr.ram_block, offset, size);
}

/*
 * Whether the memory is ours to discard. The source of a migration may go on
 * with memory that we share with it, the destination may run on it already,
 * a moment before we know that it does, and whatever becomes of us: a reset
 * ends RUN_STATE_POSTMIGRATE, and only the user has the VM run here again.
 */
static bool virtio_mem_owns_memory(void)
{
    return !runstate_check(RUN_STATE_INMIGRATE) &&
           !runstate_check(RUN_STATE_FINISH_MIGRATE) &&
           (runstate_is_live(runstate_get()) || !migration_has_completed());
}

static void virtio_mem_forget_unmapped(VirtIOMEMUnmapped *unmapped)
{
    unmapped->vmem = NULL;
    QLIST_REMOVE(unmapped, next);
}

/* What has been mapped again in the meantime stays as it is. */
static void virtio_mem_discard_unmapped(VirtIOMEMUnmapped *unmapped)
{
    VirtIOMEM *vmem = unmapped->vmem;

    if (virtio_mem_owns_memory()) {
        trace_virtio_mem_discard_unmapped(unmapped->offset, unmapped->size);
        memslot_set_for_each_unmapped(vmem->memslots.set, unmapped->offset,
                                      unmapped->size,
                                      virtio_mem_discard_memslot, vmem);
    }
    virtio_mem_forget_unmapped(unmapped);
}

/* Called by the RCU thread with the BQL held. */
static void virtio_mem_grace_period_ended(VirtIOMEMUnmapped *unmapped)
{
    if (unmapped->vmem) {
        virtio_mem_discard_unmapped(unmapped);
    }
    g_free(unmapped);
}

/*
 * Discard all memory of the memslots that were unmapped.
 *
 * As long as a memslot is mapped, a driver can populate all of it, whatever is
 * plugged there. vCPUs that run may still do so for a moment: KVM removes a
 * memslot before the new flat view is published, so that an exit to QEMU may
 * find the memory in the old one, and TCG flushes the TLBs of vCPUs later. Both
 * are over as soon as they have left the RCU critical section that they are in.
 *
 * If no vCPU runs, nothing is left for later: a state may be loaded next, whose
 * memory comes before its memslots.
 */
static void virtio_mem_memslots_unmapped(VirtIOMEM *vmem,
                                         const MemslotHull *hull)
{
    VirtIOMEMUnmapped *unmapped, *next;

    if (hull->start < hull->end) {
        unmapped = g_new(VirtIOMEMUnmapped, 1);
        *unmapped = (VirtIOMEMUnmapped) {
            .vmem = vmem,
            .offset = hull->start,
            .size = hull->end - hull->start,
        };
        QLIST_INSERT_HEAD(&vmem->memslots.unmapped, unmapped, next);
        call_rcu(unmapped, virtio_mem_grace_period_ended, rcu);
    }

    if (!runstate_is_running()) {
        QLIST_FOREACH_SAFE(unmapped, &vmem->memslots.unmapped, next, next) {
            virtio_mem_discard_unmapped(unmapped);
        }
    }
}

void virtio_mem_memslots_sync(VirtIOMEM *vmem, uint64_t offset, uint64_t size)
{
    MemslotHull unmapped;

    if (vmem->memslots.set) {
        unmapped = memslot_set_sync(vmem->memslots.set, offset, size,
                                    virtio_mem_memslot_wanted, vmem);
        virtio_mem_memslots_unmapped(vmem, &unmapped);
    }
}

/*
 * Likewise, where memslots may have to be mapped: that can fail. If it does,
 * the caller has to sync the memslots once more, with the rule giving what it
 * gave before.
 */
static bool virtio_mem_memslots_map(VirtIOMEM *vmem, uint64_t offset,
                                    uint64_t size, MemslotWanted *wanted,
                                    MemslotRefuser *refuser, Error **errp)
{
    MemslotSet *set = vmem->memslots.set;
    MemslotHull unmapped;
    unsigned int missing;
    bool mapped;

    missing = memslot_set_count_missing(set, offset, size, wanted, vmem);
    if (!memslot_account_map_begin(&vmem->memdev->mr, missing, refuser,
                                   errp)) {
        return false;
    }
    unmapped = memslot_set_sync(set, offset, size, wanted, vmem);
    mapped = memslot_account_map_end(refuser, errp);
    virtio_mem_memslots_unmapped(vmem, &unmapped);
    return mapped;
}

static const MemoryRefuser memory_refusers[] = {
    [MEMSLOT_HOLDER_KVM] = MEMORY_REFUSER_KVM,
    [MEMSLOT_HOLDER_VHOST] = MEMORY_REFUSER_VHOST,
    [MEMSLOT_HOLDER_PCI_PROXY] = MEMORY_REFUSER_PCI_PROXY,
};

int virtio_mem_memslots_plug(VirtIOMEM *vmem, uint64_t offset, uint64_t size)
{
    MemslotSet *set = vmem->memslots.set;
    g_auto(MemslotRefuser) refuser = {};
    Error *local_err = NULL;

    if (!set ||
        !memslot_set_count_missing(set, offset, size, NULL, NULL) ||
        virtio_mem_memslots_map(vmem, offset, size, NULL, &refuser,
                                &local_err)) {
        return 0;
    }
    virtio_mem_refused(vmem, memory_refusers[refuser.kind], refuser.id,
                       local_err);
    return -EBUSY;
}

void virtio_mem_memslots_plugged(VirtIOMEM *vmem, uint64_t offset,
                                 uint64_t size)
{
    /*
     * A log may have pages set from its start. Those that were plugged when
     * the measurement began have been cleared, and no migration needs the
     * others: none runs.
     */
    if (global_dirty_tracking == GLOBAL_DIRTY_DIRTY_RATE) {
        memory_region_clear_dirty_bitmap(&vmem->memdev->mr, offset, size);
    }
}

void virtio_mem_memslots_plug_failed(VirtIOMEM *vmem, uint64_t offset,
                                     uint64_t size, int ret)
{
    Error *local_err = NULL;

    /* All others have reported it. */
    if (ret != -EBUSY) {
        error_setg_errno(&local_err, -ret, "a device that does DMA, such as"
                         " one of VFIO, cannot map it");
        virtio_mem_refused(vmem, MEMORY_REFUSER_DMA, NULL, local_err);
    }
    virtio_mem_memslots_sync(vmem, offset, size);
}

bool virtio_mem_memslots_set_usable(VirtIOMEM *vmem, uint64_t size,
                                    Error **errp)
{
    const uint64_t old_size = vmem->usable_region_size;
    g_auto(MemslotRefuser) refuser = {};

    vmem->usable_region_size = size;
    if (!vmem->memslots.set || !DEVICE(vmem)->realized) {
        return true;
    }
    if (size <= old_size) {
        virtio_mem_memslots_sync(vmem, 0, virtio_mem_region_size(vmem));
        return true;
    }
    if (virtio_mem_memslots_map(vmem, 0, virtio_mem_region_size(vmem),
                                virtio_mem_memslot_wanted, &refuser, errp)) {
        return true;
    }

    vmem->usable_region_size = old_size;
    virtio_mem_memslots_sync(vmem, 0, virtio_mem_region_size(vmem));
    return false;
}

void virtio_mem_memslots_usable_refused(VirtIOMEM *vmem, Error *err)
{
    trace_virtio_mem_usable_refused(virtio_mem_name(vmem),
                                    error_get_pretty(err));
    if (report_limit_pass(&vmem->memslots.usable_refusals, NULL)) {
        warn_reportf_err(err, "virtio-mem device '%s': the usable region cannot"
                         " grow now: ", virtio_mem_name(vmem));
    } else {
        error_free(err);
    }
}

/*
 * Whoever sent the state may have made it up. What a driver may ask for is
 * checked against it later, and must not lead out of the region.
 */
static bool virtio_mem_state_is_sane(const VirtIOMEM *vmem)
{
    const uint64_t region_size = virtio_mem_region_size(vmem);
    const uint64_t nb_plugged = bitmap_count_one(vmem->bitmap,
                                                 vmem->bitmap_size);

    return vmem->size == nb_plugged * vmem->block_size &&
           vmem->usable_region_size <= region_size &&
           vmem->requested_size <= region_size &&
           QEMU_IS_ALIGNED(vmem->usable_region_size | vmem->requested_size,
                           vmem->block_size);
}

int virtio_mem_memslots_load(VirtIOMEM *vmem)
{
    g_auto(MemslotRefuser) refuser = {};
    Error *local_err = NULL;
    bool mapped;

    if (!virtio_mem_state_is_sane(vmem)) {
        error_report("virtio-mem device '%s': a state cannot be loaded that has"
                     " 0x%" PRIx64 " bytes plugged, 0x%" PRIx64 " usable and"
                     " 0x%" PRIx64 " requested, as it contradicts itself or the"
                     " device", virtio_mem_name(vmem), vmem->size,
                     vmem->usable_region_size, vmem->requested_size);
        vmem->requested_size = 0;
        return -EINVAL;
    }

    if (!vmem->memslots.set) {
        return 0;
    }

    vmem->memslots.loading = true;
    mapped = virtio_mem_memslots_map(vmem, 0, virtio_mem_region_size(vmem),
                                     virtio_mem_memslot_wanted, &refuser,
                                     &local_err);
    vmem->memslots.loading = false;
    if (!mapped) {
        error_reportf_err(local_err, "virtio-mem device '%s': memory cannot be"
                          " mapped: ", virtio_mem_name(vmem));
        return -EBUSY;
    }
    return 0;
}

bool virtio_mem_memslots_replay_later(const VirtIOMEM *vmem)
{
    return vmem->memslots.loading;
}

MemoryRegion *virtio_mem_memslots_get_region(VirtIOMEM *vmem)
{
    MemoryRegion *mr = &vmem->memdev->mr;

    /* Without RAM, realize() is going to tell what is wrong. */
    if (!virtio_mem_wants_memslots(vmem) || !memory_region_is_ram(mr) ||
        !mr->ram_block) {
        return mr;
    }

    if (!vmem->memslots.set) {
        vmem->memslots.set = memslot_set_new(OBJECT(vmem), TYPE_VIRTIO_MEM, mr);
    }
    return memslot_set_container(vmem->memslots.set);
}

static uint64_t virtio_mem_get_min_memslot_size(const VirtIOMEM *vmem,
                                                uint64_t block_size)
{
    return vmem->memslots.min_size ?: MAX(MEMSLOT_PLAN_DEFAULT_MIN_SIZE,
                                          block_size);
}

static bool virtio_mem_memslots_divide(VirtIOMEM *vmem, unsigned int budget,
                                       Error **errp)
{
    /* The default, if it was not set and the device is not realized yet. */
    const uint64_t block_size = object_property_get_uint(
        OBJECT(vmem), VIRTIO_MEM_BLOCK_SIZE_PROP, &error_abort);
    MemoryRegion *mr = &vmem->memdev->mr;
    const MemslotPlanInput input = {
        .region_size = memory_region_size(mr),
        .alignment = MAX(block_size, qemu_ram_pagesize(mr->ram_block)),
        .min_memslot_size = virtio_mem_get_min_memslot_size(vmem, block_size),
        .budget = budget,
        .spread = MEMSLOT_PLAN_DEFAULT_SPREAD,
    };
    MemslotPlan *plan = memslot_plan_new(&input, errp);

    if (plan) {
        memslot_set_divide(vmem->memslots.set, plan);
    }
    return plan;
}

void virtio_mem_memslots_decide(VirtIOMEM *vmem, unsigned int limit)
{
    /* An earlier attempt to realize the device might have failed. */
    if (vmem->memslots.set && !memslot_set_is_divided(vmem->memslots.set)) {
        virtio_mem_memslots_divide(vmem, limit, NULL);
    }
}

unsigned int virtio_mem_memslots_count(const VirtIOMEM *vmem)
{
    return vmem->memslots.set ? memslot_set_count(vmem->memslots.set) : 1;
}

static bool virtio_mem_memslots_check(const VirtIOMEM *vmem, Error **errp)
{
    ERRP_GUARD();
    const VirtIOMEMMemslots *memslots = &vmem->memslots;

    if (memslots->multiple != ON_OFF_AUTO_AUTO &&
        memslots->dynamic != ON_OFF_AUTO_AUTO &&
        memslots->multiple != memslots->dynamic) {
        error_setg(errp, "'%s' and '%s' are the same property, but were set to"
                   " '%s' and '%s'", VIRTIO_MEM_MULTIPLE_MEMSLOTS_PROP,
                   VIRTIO_MEM_DYNAMIC_MEMSLOTS_PROP,
                   OnOffAuto_str(memslots->multiple),
                   OnOffAuto_str(memslots->dynamic));
        error_append_hint(errp, "Set one of them, or both to the same"
                          " value.\n");
        return false;
    }

    if (virtio_mem_get_min_memslot_size(vmem, vmem->block_size) <
        vmem->block_size) {
        error_setg(errp, "'%s' property (0x%" PRIx64 ") has to be at least as"
                   " large as '%s' (0x%" PRIx64 ")",
                   VIRTIO_MEM_MEMSLOT_MIN_SIZE_PROP, memslots->min_size,
                   VIRTIO_MEM_BLOCK_SIZE_PROP, vmem->block_size);
        error_append_hint(errp, "Make it larger, or do not set it.\n");
        return false;
    }
    return true;
}

bool virtio_mem_memslots_prepare(VirtIOMEM *vmem, Error **errp)
{
    if (!virtio_mem_memslots_check(vmem, errp)) {
        return false;
    }

    /* Nobody asked for the region of a device that is no memory device. */
    virtio_mem_memslots_get_region(vmem);
    return !vmem->memslots.set || memslot_set_is_divided(vmem->memslots.set) ||
           virtio_mem_memslots_divide(vmem, 1, errp);
}

void virtio_mem_memslots_realize(VirtIOMEM *vmem)
{
    /* Nobody sees them before the container is mapped, so nobody refuses. */
    virtio_mem_memslots_sync(vmem, 0, virtio_mem_region_size(vmem));
}

void virtio_mem_memslots_unrealize(VirtIOMEM *vmem)
{
    VirtIOMEMUnmapped *unmapped, *next;

    QLIST_FOREACH_SAFE(unmapped, &vmem->memslots.unmapped, next, next) {
        virtio_mem_forget_unmapped(unmapped);
    }
    /*
     * Mapped memslots keep a reference to the device, and the RamDiscardManager
     * cannot be unset while there are any.
     */
    if (vmem->memslots.set) {
        memslot_set_unmap_all(vmem->memslots.set);
    }
}

static bool virtio_mem_is_mapped(const VirtIOMEM *vmem)
{
    return vmem->memdev && memory_region_is_mapped(&vmem->memdev->mr);
}

static unsigned int virtio_mem_count_active_memslots(const VirtIOMEM *vmem)
{
    const MemslotSet *set = vmem->memslots.set;

    return set ? memslot_set_count_mapped(set) : virtio_mem_is_mapped(vmem);
}

static uint64_t virtio_mem_get_mapped_size(const VirtIOMEM *vmem)
{
    if (vmem->memslots.set) {
        return memslot_set_mapped_size(vmem->memslots.set);
    }
    return virtio_mem_is_mapped(vmem) ? virtio_mem_region_size(vmem) : 0;
}

void virtio_mem_memslots_fill_info(const VirtIOMEM *vmem,
                                   VirtioMEMDeviceInfo *info)
{
    info->memslots = virtio_mem_memslots_count(vmem);
    info->active_memslots = virtio_mem_count_active_memslots(vmem);
    info->mapped_size = virtio_mem_get_mapped_size(vmem);
}

/* Properties */

static void virtio_mem_get_memslots_prop(Object *obj, Visitor *v,
                                         const char *name, void *opaque,
                                         Error **errp)
{
    uint32_t value = virtio_mem_memslots_count(VIRTIO_MEM(obj));

    visit_type_uint32(v, name, &value, errp);
}

static void virtio_mem_get_active_memslots_prop(Object *obj, Visitor *v,
                                                const char *name, void *opaque,
                                                Error **errp)
{
    uint32_t value = virtio_mem_count_active_memslots(VIRTIO_MEM(obj));

    visit_type_uint32(v, name, &value, errp);
}

static void virtio_mem_get_mapped_size_prop(Object *obj, Visitor *v,
                                            const char *name, void *opaque,
                                            Error **errp)
{
    uint64_t value = virtio_mem_get_mapped_size(VIRTIO_MEM(obj));

    visit_type_size(v, name, &value, errp);
}

static const struct {
    const char *name;
    const char *type;
    const char *description;
    ObjectPropertyAccessor *get;
} virtio_mem_memslots_props[] = {
    {
        VIRTIO_MEM_MEMSLOTS_PROP, "uint32",
        "the most memslots to be mapped (read-only)",
        virtio_mem_get_memslots_prop,
    }, {
        VIRTIO_MEM_ACTIVE_MEMSLOTS_PROP, "uint32",
        "the memslots that are mapped (read-only)",
        virtio_mem_get_active_memslots_prop,
    }, {
        VIRTIO_MEM_MAPPED_SIZE_PROP, "size",
        "the size of the memslots that are mapped (read-only)",
        virtio_mem_get_mapped_size_prop,
    },
};

void virtio_mem_memslots_init(VirtIOMEM *vmem)
{
    int i;

    QLIST_INIT(&vmem->memslots.unmapped);
    for (i = 0; i < ARRAY_SIZE(virtio_mem_memslots_props); i++) {
        object_property_add(OBJECT(vmem), virtio_mem_memslots_props[i].name,
                            virtio_mem_memslots_props[i].type,
                            virtio_mem_memslots_props[i].get, NULL, NULL, NULL);
        object_property_set_description(
            OBJECT(vmem), virtio_mem_memslots_props[i].name,
            virtio_mem_memslots_props[i].description);
    }
}

void virtio_mem_memslots_alias_properties(Object *proxy, VirtIOMEM *vmem)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(virtio_mem_memslots_props); i++) {
        object_property_add_alias(proxy, virtio_mem_memslots_props[i].name,
                                  OBJECT(vmem),
                                  virtio_mem_memslots_props[i].name);
    }
}

static void virtio_mem_get_memslots_hint(Object *obj, Visitor *v,
                                         const char *name, void *opaque,
                                         Error **errp)
{
    bool value = virtio_mem_wants_memslots(VIRTIO_MEM(obj));

    visit_type_bool(v, name, &value, errp);
}

static void virtio_mem_set_memslots_hint(Object *obj, Visitor *v,
                                         const char *name, void *opaque,
                                         Error **errp)
{
    OnOffAuto *hint = object_field_prop_ptr(obj, opaque);
    bool value;

    if (visit_type_bool(v, name, &value, errp)) {
        *hint = value ? ON_OFF_AUTO_ON : ON_OFF_AUTO_OFF;
    }
}

/* Two names for one property, of which each may be set. */
const PropertyInfo virtio_mem_memslots_hint = {
    .type = "bool",
    .description = "map memory in several memslots, each only while it is"
                   " needed (default: off)",
    .get = virtio_mem_get_memslots_hint,
    .set = virtio_mem_set_memslots_hint,
};

static void virtio_mem_get_memslot_min_size(Object *obj, Visitor *v,
                                            const char *name, void *opaque,
                                            Error **errp)
{
    const VirtIOMEM *vmem = VIRTIO_MEM(obj);
    uint64_t value = virtio_mem_get_min_memslot_size(vmem, vmem->block_size);

    visit_type_size(v, name, &value, errp);
}

static void virtio_mem_set_memslot_min_size(Object *obj, Visitor *v,
                                            const char *name, void *opaque,
                                            Error **errp)
{
    uint64_t value;

    if (!visit_type_size(v, name, &value, errp)) {
        return;
    }
    if (value < VIRTIO_MEM_MEMSLOT_MIN_SIZE_MIN || !is_power_of_2(value)) {
        error_setg(errp, "'%s' property (0x%" PRIx64 ") has to be a power of"
                   " two and at least 0x%" PRIx64, name, value,
                   (uint64_t)VIRTIO_MEM_MEMSLOT_MIN_SIZE_MIN);
        error_append_hint(errp, "%s=1G is the default; the smaller, the more"
                          " memslots are needed.\n", name);
        return;
    }
    VIRTIO_MEM(obj)->memslots.min_size = value;
}

const PropertyInfo virtio_mem_memslot_min_size = {
    .type = "size",
    .description = "the smallest memslot, a power of two from 128M on"
                   " (default: 1G, or a block if that is larger)",
    .get = virtio_mem_get_memslot_min_size,
    .set = virtio_mem_set_memslot_min_size,
};
