/*
 * A device for tests that takes memslots from everybody else
 *
 * It maps pages of RAM that are not next to each other, so that each of them
 * is a memslot of its own for KVM, and a memory region for vhost. Unlike a
 * memory device, it asks nobody: so do PCI BARs, ROMs and boot memory, and
 * memslots that were free when a memory device was plugged may be gone later.
 *
 * Properties, for -device:
 *   addr   guest-physical address of the first page
 *   share  whether the pages can be shared with other processes: vhost-user
 *          backends see no others
 *   count  number of pages; page i is at addr + i * 8 KiB and has 4 KiB
 *
 * "count" can also be changed with qom-set: all pages that come or go do so in
 * one memory transaction. The pages lie above other memory at their addresses.
 * Those in the range of device memory are mapped as memory devices are, which
 * is what nobody should do without asking.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qemu/memfd.h"
#include "qemu/units.h"
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "hw/boards.h"
#include "hw/qdev-core.h"
#include "hw/qdev-properties.h"
#include "qom/object.h"

#define TYPE_MEMSLOT_TESTDEV "memslot-testdev"
OBJECT_DECLARE_SIMPLE_TYPE(MemslotTestdev, MEMSLOT_TESTDEV)

#define TESTDEV_PAGE_SIZE (4 * KiB)
#define TESTDEV_PAGE_DISTANCE (8 * KiB)

/* More than KVM can have on any host. */
#define TESTDEV_MAX_COUNT (64 * KiB)

struct MemslotTestdev {
    DeviceState parent_obj;

    uint64_t addr;
    bool share;
    uint32_t count;

    /* what backs all pages that could ever be mapped; never mapped itself */
    MemoryRegion ram;
    /* aliases, made when they are first mapped: MemoryRegion */
    GPtrArray *pages;
};

static MemoryRegion *testdev_get_page(MemslotTestdev *dev, uint32_t i)
{
    while (dev->pages->len <= i) {
        const uint32_t next = dev->pages->len;
        g_autofree char *name = g_strdup_printf("page-%" PRIu32, next);
        MemoryRegion *page = g_new0(MemoryRegion, 1);

        memory_region_init_alias(page, OBJECT(dev), name, &dev->ram,
                                 next * TESTDEV_PAGE_SIZE, TESTDEV_PAGE_SIZE);
        g_ptr_array_add(dev->pages, page);
    }
    return g_ptr_array_index(dev->pages, i);
}

/* Where the pages get mapped, and the offset of the first one there */
static MemoryRegion *testdev_find_parent(const MemslotTestdev *dev,
                                         hwaddr *offset)
{
    DeviceMemoryState *dms = current_machine->device_memory;

    *offset = dev->addr;
    if (dms && dev->addr >= dms->base &&
        dev->addr - dms->base < memory_region_size(&dms->mr)) {
        *offset -= dms->base;
        return &dms->mr;
    }
    return get_system_memory();
}

/* Map the first @to pages, with the first @from of them being mapped so far. */
static void testdev_map(MemslotTestdev *dev, uint32_t from, uint32_t to)
{
    hwaddr offset;
    MemoryRegion *parent = testdev_find_parent(dev, &offset);
    uint32_t i;

    memory_region_transaction_begin();
    for (i = from; i < to; i++) {
        memory_region_add_subregion_overlap(parent, offset +
                                            i * TESTDEV_PAGE_DISTANCE,
                                            testdev_get_page(dev, i), 1);
    }
    for (i = to; i < from; i++) {
        memory_region_del_subregion(parent, testdev_get_page(dev, i));
    }
    memory_region_transaction_commit();
}

static void testdev_get_count(Object *obj, Visitor *v, const char *name,
                              void *opaque, Error **errp)
{
    visit_type_uint32(v, name, &MEMSLOT_TESTDEV(obj)->count, errp);
}

static void testdev_set_count(Object *obj, Visitor *v, const char *name,
                              void *opaque, Error **errp)
{
    MemslotTestdev *dev = MEMSLOT_TESTDEV(obj);
    uint32_t count;

    if (!visit_type_uint32(v, name, &count, errp)) {
        return;
    }
    if (count > TESTDEV_MAX_COUNT) {
        error_setg(errp, "'%s' (%" PRIu32 ") must not exceed %u", name, count,
                   (unsigned int)TESTDEV_MAX_COUNT);
        return;
    }
    if (DEVICE(dev)->realized) {
        testdev_map(dev, dev->count, count);
    }
    dev->count = count;
}

static bool testdev_init_shared_ram(MemslotTestdev *dev, Error **errp)
{
    const uint64_t size = TESTDEV_MAX_COUNT * TESTDEV_PAGE_SIZE;
    const int fd = qemu_memfd_create(TYPE_MEMSLOT_TESTDEV, size, false, 0, 0,
                                     errp);

    if (fd < 0) {
        return false;
    }
    if (!memory_region_init_ram_from_fd(&dev->ram, OBJECT(dev),
                                        TYPE_MEMSLOT_TESTDEV, size, RAM_SHARED,
                                        fd, 0, errp)) {
        close(fd);
        return false;
    }
    return true;
}

/* The RAM is nobody's memory: it is not migrated. */
static bool testdev_init_ram(MemslotTestdev *dev, Error **errp)
{
    if (dev->share) {
        return testdev_init_shared_ram(dev, errp);
    }
    return memory_region_init_ram_nomigrate(&dev->ram, OBJECT(dev),
                                            TYPE_MEMSLOT_TESTDEV,
                                            TESTDEV_MAX_COUNT *
                                            TESTDEV_PAGE_SIZE, errp);
}

static void testdev_realize(DeviceState *qdev, Error **errp)
{
    MemslotTestdev *dev = MEMSLOT_TESTDEV(qdev);

    if (!QEMU_IS_ALIGNED(dev->addr, TESTDEV_PAGE_SIZE)) {
        error_setg(errp, "'addr' (0x%" PRIx64 ") has to be a multiple of 0x%x",
                   dev->addr, (unsigned int)TESTDEV_PAGE_SIZE);
        return;
    }
    if (dev->addr > INT64_MAX) {
        error_setg(errp, "'addr' (0x%" PRIx64 ") is too high", dev->addr);
        return;
    }
    if (testdev_init_ram(dev, errp)) {
        testdev_map(dev, 0, dev->count);
    }
}

static void testdev_unrealize(DeviceState *qdev)
{
    MemslotTestdev *dev = MEMSLOT_TESTDEV(qdev);

    testdev_map(dev, dev->count, 0);
}

static void testdev_free_page(gpointer data)
{
    object_unparent(OBJECT(data));
    g_free(data);
}

static void testdev_instance_init(Object *obj)
{
    MemslotTestdev *dev = MEMSLOT_TESTDEV(obj);

    dev->pages = g_ptr_array_new_with_free_func(testdev_free_page);

    /* Not a qdev property, as these cannot be set while the device is used. */
    object_property_add(obj, "count", "uint32", testdev_get_count,
                        testdev_set_count, NULL, NULL);
}

static void testdev_instance_finalize(Object *obj)
{
    g_ptr_array_free(MEMSLOT_TESTDEV(obj)->pages, true);
}

static const Property testdev_properties[] = {
    DEFINE_PROP_UINT64("addr", MemslotTestdev, addr, 0),
    DEFINE_PROP_BOOL("share", MemslotTestdev, share, false),
};

static void testdev_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);

    dc->desc = "Memslot test device";
    dc->realize = testdev_realize;
    dc->unrealize = testdev_unrealize;
    dc->hotpluggable = false;
    device_class_set_props(dc, testdev_properties);
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
}

static const TypeInfo testdev_info = {
    .name = TYPE_MEMSLOT_TESTDEV,
    .parent = TYPE_DEVICE,
    .instance_size = sizeof(MemslotTestdev),
    .instance_init = testdev_instance_init,
    .instance_finalize = testdev_instance_finalize,
    .class_init = testdev_class_init,
};

static void testdev_register_types(void)
{
    type_register_static(&testdev_info);
}

type_init(testdev_register_types)
