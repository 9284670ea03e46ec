/*
 * A device for tests that listens to RamDiscardManagers as VFIO does
 *
 * Like VFIO, it registers one RamDiscardListener for each section of guest
 * memory that has a RamDiscardManager, and it can run out of what it needs to
 * take more memory. Unlike VFIO, it needs no hardware and keeps a strict record
 * of what it has been told: memory must not be populated or discarded twice,
 * and none may be left when a section goes away.
 *
 * Properties, for qom-get and qom-set:
 *   populated      bytes of memory that are populated, as far as we were told
 *   max-populated  bytes of memory that we take; more gets refused
 *   errors         notifications that did not fit to what we were told before,
 *                  and what else is not as it should be
 *   sections       sections that we listen to
 *   granularity    the smallest granularity of any of them in bytes, or 0
 *   listening      whether we listen at all; if not, there are no sections
 *   check          reading it asks the RamDiscardManagers about all sections;
 *                  false (and an error) if they tell other than they told
 *   iotlb-address  where an entry of an IOMMU's TLB leads to
 *   iotlb-mask     the offsets that this entry takes over
 *   iotlb-valid    whether memory can be accessed through this entry
 *   displayed      whether a display wants to know of writes to the RAM which
 *                  that address is in
 *   display-dirty  bytes of it that a display has to draw; reading it takes
 *                  them for drawn
 *   double-discard to be set at the start: we may be told to discard what is
 *                  not populated, as VFIO may be
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "hw/qdev-core.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "qom/object.h"

#define TYPE_RAM_DISCARD_TESTDEV "ram-discard-testdev"
OBJECT_DECLARE_SIMPLE_TYPE(RamDiscardTestdev, RAM_DISCARD_TESTDEV)

struct RamDiscardTestdev {
    DeviceState parent_obj;

    MemoryListener memory_listener;
    QLIST_HEAD(, TestdevSection) sections;

    uint64_t populated;
    uint64_t max_populated;
    uint64_t errors;
    bool listening;
    bool double_discard;
    uint64_t iotlb_address;
    uint64_t iotlb_mask;
    MemoryRegion *displayed;
};

typedef struct TestdevSection {
    RamDiscardListener listener;
    RamDiscardTestdev *dev;
    /* offsets within the memory region and sizes, in bytes */
    MemoryRegion *mr;
    uint64_t offset;
    uint64_t size;
    /* address of the section's first byte */
    hwaddr address;
    uint64_t granularity;
    /* one bit for each granule of the section */
    unsigned long *populated;
    QLIST_ENTRY(TestdevSection) next;
} TestdevSection;

static void testdev_error(TestdevSection *ts,
                          const MemoryRegionSection *section, const char *what)
{
    ts->dev->errors++;
    error_report("%s: %s: offset 0x%" HWADDR_PRIx " size 0x%" PRIx64,
                 TYPE_RAM_DISCARD_TESTDEV, what, section->offset_within_region,
                 int128_get64(section->size));
}

/* Returns false if the part is not one of the section. */
static bool testdev_find_bits(TestdevSection *ts,
                              const MemoryRegionSection *part,
                              unsigned long *first, unsigned long *count)
{
    const uint64_t offset = part->offset_within_region - ts->offset;
    const uint64_t size = int128_get64(part->size);

    if (part->mr != ts->mr || part->offset_within_region < ts->offset ||
        offset > ts->size || !size || size > ts->size - offset ||
        !QEMU_IS_ALIGNED(offset | size, ts->granularity)) {
        testdev_error(ts, part, "not within the section");
        return false;
    }
    if (part->offset_within_address_space != ts->address + offset) {
        testdev_error(ts, part, "not where the section is");
        return false;
    }
    *first = offset / ts->granularity;
    *count = size / ts->granularity;
    return true;
}

static int testdev_notify_populate(RamDiscardListener *rdl,
                                   MemoryRegionSection *part)
{
    TestdevSection *ts = container_of(rdl, TestdevSection, listener);
    const uint64_t size = int128_get64(part->size);
    unsigned long first, count;

    if (!testdev_find_bits(ts, part, &first, &count)) {
        return -EINVAL;
    }
    if (find_next_bit(ts->populated, first + count, first) < first + count) {
        testdev_error(ts, part, "populated twice");
        return -EEXIST;
    }
    if (ts->dev->populated + size > ts->dev->max_populated) {
        return -ENOSPC;
    }
    bitmap_set(ts->populated, first, count);
    ts->dev->populated += size;
    return 0;
}

static void testdev_notify_discard(RamDiscardListener *rdl,
                                   MemoryRegionSection *part)
{
    TestdevSection *ts = container_of(rdl, TestdevSection, listener);
    unsigned long i, first, count;

    if (!testdev_find_bits(ts, part, &first, &count)) {
        return;
    }
    if (!ts->dev->double_discard &&
        find_next_zero_bit(ts->populated, first + count, first) <
        first + count) {
        testdev_error(ts, part, "discarded twice");
        return;
    }
    for (i = first; i < first + count; i++) {
        if (test_and_clear_bit(i, ts->populated)) {
            ts->dev->populated -= ts->granularity;
        }
    }
}

static void testdev_region_add(MemoryListener *listener,
                               MemoryRegionSection *section)
{
    RamDiscardTestdev *dev = container_of(listener, RamDiscardTestdev,
                                          memory_listener);
    RamDiscardManager *rdm;
    TestdevSection *ts;

    if (!memory_region_has_ram_discard_manager(section->mr)) {
        return;
    }

    rdm = memory_region_get_ram_discard_manager(section->mr);
    ts = g_new0(TestdevSection, 1);
    ts->dev = dev;
    ts->mr = section->mr;
    ts->offset = section->offset_within_region;
    ts->size = int128_get64(section->size);
    ts->address = section->offset_within_address_space;
    ts->granularity = ram_discard_manager_get_min_granularity(rdm, ts->mr);
    if (!QEMU_IS_ALIGNED(ts->offset | ts->size, ts->granularity)) {
        testdev_error(ts, section, "not aligned to the granularity");
    }
    ts->populated = bitmap_new(ts->size / ts->granularity);
    QLIST_INSERT_HEAD(&dev->sections, ts, next);

    ram_discard_listener_init(&ts->listener, testdev_notify_populate,
                              testdev_notify_discard, dev->double_discard);
    ram_discard_manager_register_listener(rdm, &ts->listener, section);
}

static void testdev_region_del(MemoryListener *listener,
                               MemoryRegionSection *section)
{
    RamDiscardTestdev *dev = container_of(listener, RamDiscardTestdev,
                                          memory_listener);
    TestdevSection *ts;

    QLIST_FOREACH(ts, &dev->sections, next) {
        if (ts->mr == section->mr &&
            ts->offset == section->offset_within_region) {
            break;
        }
    }
    if (!ts) {
        return;
    }

    ram_discard_manager_unregister_listener(
        memory_region_get_ram_discard_manager(ts->mr), &ts->listener);
    if (!bitmap_empty(ts->populated, ts->size / ts->granularity)) {
        testdev_error(ts, section, "populated memory left behind");
    }
    QLIST_REMOVE(ts, next);
    g_free(ts->populated);
    g_free(ts);
}

/* What the RamDiscardManager of a section tells when asked */
typedef struct TestdevReplay {
    TestdevSection *ts;
    unsigned long *told;
} TestdevReplay;

static int testdev_replay(MemoryRegionSection *part, void *opaque)
{
    TestdevReplay *replay = opaque;
    unsigned long first, count;

    if (testdev_find_bits(replay->ts, part, &first, &count)) {
        if (find_next_bit(replay->told, first + count, first) <
            first + count) {
            testdev_error(replay->ts, part, "replayed twice");
        }
        bitmap_set(replay->told, first, count);
    }
    return 0;
}

static void testdev_replay_discarded(MemoryRegionSection *part, void *opaque)
{
    testdev_replay(part, opaque);
}

static void testdev_check_section(TestdevSection *ts)
{
    RamDiscardManager *rdm = memory_region_get_ram_discard_manager(ts->mr);
    const unsigned long count = ts->size / ts->granularity;
    g_autofree unsigned long *populated = bitmap_new(count);
    g_autofree unsigned long *discarded = bitmap_new(count);
    MemoryRegionSection section = {
        .mr = ts->mr,
        .offset_within_region = ts->offset,
        .offset_within_address_space = ts->address,
        .size = int128_make64(ts->size),
    };
    MemoryRegionSection part = section;
    unsigned long i;

    ram_discard_manager_replay_populated(rdm, &section, testdev_replay,
                                         &(TestdevReplay) { ts, populated });
    ram_discard_manager_replay_discarded(rdm, &section,
                                         testdev_replay_discarded,
                                         &(TestdevReplay) { ts, discarded });
    part.size = int128_make64(ts->granularity);
    for (i = 0; i < count; i++) {
        const bool expected = test_bit(i, ts->populated);

        part.offset_within_region = ts->offset + i * ts->granularity;
        part.offset_within_address_space = ts->address + i * ts->granularity;
        if (test_bit(i, populated) != expected ||
            test_bit(i, discarded) == expected ||
            ram_discard_manager_is_populated(rdm, &part) != expected) {
            testdev_error(ts, &part, "not as we were told");
        }
    }
    if (ram_discard_manager_is_populated(rdm, &section) !=
        bitmap_full(ts->populated, count)) {
        testdev_error(ts, &section, "as a whole not as we were told");
    }
}

static bool testdev_get_check(Object *obj, Error **errp)
{
    RamDiscardTestdev *dev = RAM_DISCARD_TESTDEV(obj);
    const uint64_t errors = dev->errors;
    TestdevSection *ts;

    QLIST_FOREACH(ts, &dev->sections, next) {
        testdev_check_section(ts);
    }
    return dev->errors == errors;
}

static void testdev_get_sections(Object *obj, Visitor *v, const char *name,
                                 void *opaque, Error **errp)
{
    RamDiscardTestdev *dev = RAM_DISCARD_TESTDEV(obj);
    TestdevSection *ts;
    uint64_t count = 0;

    QLIST_FOREACH(ts, &dev->sections, next) {
        count++;
    }
    visit_type_uint64(v, name, &count, errp);
}

static void testdev_get_granularity(Object *obj, Visitor *v, const char *name,
                                    void *opaque, Error **errp)
{
    RamDiscardTestdev *dev = RAM_DISCARD_TESTDEV(obj);
    TestdevSection *ts;
    uint64_t granularity = 0;

    QLIST_FOREACH(ts, &dev->sections, next) {
        granularity = MIN_NON_ZERO(granularity, ts->granularity);
    }
    visit_type_uint64(v, name, &granularity, errp);
}

/* VFIO translates like that what is behind an IOMMU. */
static bool testdev_get_iotlb_valid(Object *obj, Error **errp)
{
    RamDiscardTestdev *dev = RAM_DISCARD_TESTDEV(obj);
    IOMMUTLBEntry entry = {
        .target_as = &address_space_memory,
        .translated_addr = dev->iotlb_address,
        .addr_mask = dev->iotlb_mask,
        .perm = IOMMU_RW,
    };
    bool read_only;
    void *host;

    RCU_READ_LOCK_GUARD();
    return memory_get_xlat_addr(&entry, &host, NULL, &read_only, NULL, NULL);
}

static void testdev_display(RamDiscardTestdev *dev, MemoryRegion *mr)
{
    if (dev->displayed) {
        memory_region_set_log(dev->displayed, false, DIRTY_MEMORY_VGA);
        memory_region_unref(dev->displayed);
    }
    dev->displayed = mr;
    if (mr) {
        memory_region_set_log(mr, true, DIRTY_MEMORY_VGA);
    }
}

static bool testdev_get_displayed(Object *obj, Error **errp)
{
    return RAM_DISCARD_TESTDEV(obj)->displayed;
}

static void testdev_set_displayed(Object *obj, bool value, Error **errp)
{
    RamDiscardTestdev *dev = RAM_DISCARD_TESTDEV(obj);
    MemoryRegion *mr = NULL;

    if (value) {
        mr = memory_region_find(get_system_memory(), dev->iotlb_address, 1).mr;
        if (!mr || !memory_region_is_ram(mr)) {
            error_setg(errp, "no RAM is at 0x%" PRIx64, dev->iotlb_address);
            memory_region_unref(mr);
            return;
        }
    }
    testdev_display(dev, mr);
}

static void testdev_get_display_dirty(Object *obj, Visitor *v, const char *name,
                                      void *opaque, Error **errp)
{
    MemoryRegion *mr = RAM_DISCARD_TESTDEV(obj)->displayed;
    const uint64_t size = mr ? memory_region_size(mr) : 0;
    g_autofree DirtyBitmapSnapshot *snapshot = NULL;
    const uint64_t page = 4 * KiB;
    uint64_t offset, dirty = 0;

    if (size) {
        snapshot = memory_region_snapshot_and_clear_dirty(mr, 0, size,
                                                          DIRTY_MEMORY_VGA);
    }
    for (offset = 0; offset < size; offset += page) {
        if (memory_region_snapshot_get_dirty(mr, snapshot, offset, page)) {
            dirty += page;
        }
    }
    visit_type_uint64(v, name, &dirty, errp);
}

static void testdev_listen(RamDiscardTestdev *dev, bool listening)
{
    if (listening == dev->listening) {
        return;
    }
    dev->listening = listening;
    if (listening) {
        memory_listener_register(&dev->memory_listener, &address_space_memory);
    } else {
        memory_listener_unregister(&dev->memory_listener);
    }
}

static bool testdev_get_listening(Object *obj, Error **errp)
{
    return RAM_DISCARD_TESTDEV(obj)->listening;
}

static void testdev_set_listening(Object *obj, bool value, Error **errp)
{
    if (!DEVICE(obj)->realized) {
        error_setg(errp, "the device does not listen before it is realized");
        return;
    }
    testdev_listen(RAM_DISCARD_TESTDEV(obj), value);
}

static bool testdev_get_double_discard(Object *obj, Error **errp)
{
    return RAM_DISCARD_TESTDEV(obj)->double_discard;
}

static void testdev_set_double_discard(Object *obj, bool value, Error **errp)
{
    if (DEVICE(obj)->realized) {
        error_setg(errp, "the device has told its listeners' kind already");
        return;
    }
    RAM_DISCARD_TESTDEV(obj)->double_discard = value;
}

static void testdev_realize(DeviceState *qdev, Error **errp)
{
    RamDiscardTestdev *dev = RAM_DISCARD_TESTDEV(qdev);

    dev->memory_listener = (MemoryListener) {
        .name = TYPE_RAM_DISCARD_TESTDEV,
        .region_add = testdev_region_add,
        .region_del = testdev_region_del,
    };
    testdev_listen(dev, true);
}

static void testdev_unrealize(DeviceState *qdev)
{
    testdev_listen(RAM_DISCARD_TESTDEV(qdev), false);
    testdev_display(RAM_DISCARD_TESTDEV(qdev), NULL);
}

static void testdev_instance_init(Object *obj)
{
    RamDiscardTestdev *dev = RAM_DISCARD_TESTDEV(obj);

    QLIST_INIT(&dev->sections);
    dev->max_populated = UINT64_MAX;

    /* Not qdev properties, as these cannot be set while the device is used. */
    object_property_add_uint64_ptr(obj, "populated", &dev->populated,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint64_ptr(obj, "max-populated", &dev->max_populated,
                                   OBJ_PROP_FLAG_READWRITE);
    object_property_add_uint64_ptr(obj, "errors", &dev->errors,
                                   OBJ_PROP_FLAG_READ);
    object_property_add(obj, "sections", "uint64", testdev_get_sections,
                        NULL, NULL, NULL);
    object_property_add(obj, "granularity", "uint64", testdev_get_granularity,
                        NULL, NULL, NULL);
    object_property_add_bool(obj, "check", testdev_get_check, NULL);
    object_property_add_bool(obj, "listening", testdev_get_listening,
                             testdev_set_listening);
    object_property_add_uint64_ptr(obj, "iotlb-address", &dev->iotlb_address,
                                   OBJ_PROP_FLAG_READWRITE);
    object_property_add_uint64_ptr(obj, "iotlb-mask", &dev->iotlb_mask,
                                   OBJ_PROP_FLAG_READWRITE);
    object_property_add_bool(obj, "iotlb-valid", testdev_get_iotlb_valid, NULL);
    object_property_add_bool(obj, "displayed", testdev_get_displayed,
                             testdev_set_displayed);
    object_property_add(obj, "display-dirty", "uint64",
                        testdev_get_display_dirty, NULL, NULL, NULL);
    object_property_add_bool(obj, "double-discard", testdev_get_double_discard,
                             testdev_set_double_discard);
}

static void testdev_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);

    dc->desc = "RamDiscardManager test device";
    dc->realize = testdev_realize;
    dc->unrealize = testdev_unrealize;
    dc->hotpluggable = false;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
}

static const TypeInfo testdev_info = {
    .name = TYPE_RAM_DISCARD_TESTDEV,
    .parent = TYPE_DEVICE,
    .instance_size = sizeof(RamDiscardTestdev),
    .instance_init = testdev_instance_init,
    .class_init = testdev_class_init,
};

static void testdev_register_types(void)
{
    type_register_static(&testdev_info);
}

type_init(testdev_register_types)
