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
 *   errors         notifications that did not fit to what we were told before
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "hw/qdev-core.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
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
};

typedef struct TestdevSection {
    RamDiscardListener listener;
    RamDiscardTestdev *dev;
    /* offsets within the memory region and sizes, in bytes */
    MemoryRegion *mr;
    uint64_t offset;
    uint64_t size;
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
    unsigned long first, count;

    if (!testdev_find_bits(ts, part, &first, &count)) {
        return;
    }
    if (find_next_zero_bit(ts->populated, first + count, first) <
        first + count) {
        testdev_error(ts, part, "discarded twice");
        return;
    }
    bitmap_clear(ts->populated, first, count);
    ts->dev->populated -= int128_get64(part->size);
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
    ts->granularity = ram_discard_manager_get_min_granularity(rdm, ts->mr);
    ts->populated = bitmap_new(ts->size / ts->granularity);
    QLIST_INSERT_HEAD(&dev->sections, ts, next);

    ram_discard_listener_init(&ts->listener, testdev_notify_populate,
                              testdev_notify_discard, false);
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

static void testdev_realize(DeviceState *qdev, Error **errp)
{
    RamDiscardTestdev *dev = RAM_DISCARD_TESTDEV(qdev);

    dev->memory_listener = (MemoryListener) {
        .name = TYPE_RAM_DISCARD_TESTDEV,
        .region_add = testdev_region_add,
        .region_del = testdev_region_del,
    };
    memory_listener_register(&dev->memory_listener, &address_space_memory);
}

static void testdev_unrealize(DeviceState *qdev)
{
    memory_listener_unregister(&RAM_DISCARD_TESTDEV(qdev)->memory_listener);
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
