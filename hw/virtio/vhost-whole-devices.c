/*
 * vhost: showing memory devices as a whole to backends that hold few regions
 *
 * All memslots of a memory device are parts of one RAM memory region, in the
 * order of their addresses, and nothing else is mapped in between. A memory
 * region of a backend is but a translation of addresses: one for all of the
 * device is right for each of its memslots, mapped or not.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/address-spaces.h"
#include "hw/virtio/vhost.h"
#include "hw/virtio/vhost-memslots.h"
#include "trace.h"

void vhost_whole_devices_init(struct vhost_dev *hdev)
{
    const MemslotHolder holder = vhost_dev_memslot_holder(hdev);

    hdev->whole_devices = memslot_account_wants_whole_devices(&holder);
    if (hdev->whole_devices) {
        /* Have all sections added once more, in the other way. */
        memory_listener_unregister(&hdev->memory_listener);
        memory_listener_register(&hdev->memory_listener, &address_space_memory);
    }
}

bool vhost_whole_devices_cover(const struct vhost_dev *hdev,
                               const MemoryRegionSection *section)
{
    return hdev->whole_devices && memslot_account_is_on_demand(section->mr);
}

typedef struct VhostWholeDevices {
    struct vhost_dev *hdev;
    VhostSectionFilter *filter;
} VhostWholeDevices;

static void vhost_whole_device_add(const MemoryRegionSection *device,
                                   void *opaque)
{
    const VhostWholeDevices *whole = opaque;
    struct vhost_dev *hdev = whole->hdev;
    MemoryRegionSection section = *device;
    int i = hdev->n_tmp_sections;

    if (!whole->filter(hdev, &section)) {
        return;
    }
    trace_vhost_region_add_section(section.mr->name,
                                   section.offset_within_address_space,
                                   int128_get64(section.size),
                                   (uintptr_t)memory_region_get_ram_ptr(
                                       section.mr));

    /* Sections are in the order of their addresses, and do not overlap. */
    hdev->tmp_sections = g_renew(MemoryRegionSection, hdev->tmp_sections,
                                 ++hdev->n_tmp_sections);
    while (i && hdev->tmp_sections[i - 1].offset_within_address_space >
                section.offset_within_address_space) {
        hdev->tmp_sections[i] = hdev->tmp_sections[i - 1];
        i--;
    }
    hdev->tmp_sections[i] = section;
    memory_region_ref(section.mr);
}

void vhost_whole_devices_add(struct vhost_dev *hdev, VhostSectionFilter *filter)
{
    VhostWholeDevices whole = {
        .hdev = hdev,
        .filter = filter,
    };

    if (hdev->whole_devices) {
        memslot_account_foreach_device(vhost_whole_device_add, &whole);
    }
}
