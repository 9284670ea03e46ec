/*
 * vhost: the memslots that backends hold
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "hw/virtio/vhost.h"
#include "hw/virtio/vhost-memslots.h"
#include "standard-headers/linux/vhost_types.h"
#include "trace.h"

/* Those that were admitted, or are about to be; one for each device. */
static QLIST_HEAD(, vhost_dev) vhost_devices =
    QLIST_HEAD_INITIALIZER(vhost_devices);

MemslotHolder vhost_dev_memslot_holder(struct vhost_dev *hdev)
{
    const VhostOps *ops = hdev->vhost_ops;
    const int limit = ops->vhost_backend_memslots_limit(hdev);

    return (MemslotHolder) {
        .id = hdev->id ? hdev->id : "",
        .limit = limit == INT_MAX ? MEMSLOTS_UNLIMITED : limit,
        .used = hdev->mem->nregions,
        .shared_only = ops->vhost_backend_no_private_memslots &&
                       ops->vhost_backend_no_private_memslots(hdev),
        .whole_devices = hdev->whole_devices,
    };
}

void vhost_foreach_memslot_holder(MemslotHolderFunc *func, void *opaque)
{
    struct vhost_dev *hdev;

    QLIST_FOREACH(hdev, &vhost_devices, entry) {
        const MemslotHolder holder = vhost_dev_memslot_holder(hdev);

        func(&holder, opaque);
    }
}

int vhost_memslots_admit(struct vhost_dev *hdev, Error **errp)
{
    const MemslotHolder holder = vhost_dev_memslot_holder(hdev);

    if (hdev->more_queues) {
        /* It holds what is held for the first ones. */
        return 0;
    }
    trace_vhost_memslots_admit(hdev, holder.id, holder.limit, holder.used,
                               holder.whole_devices);
    QLIST_INSERT_HEAD(&vhost_devices, hdev, entry);
    return memslot_account_check_vhost(&holder, errp) ? 0 : -ENOBUFS;
}

bool vhost_memslots_refused(struct vhost_dev *hdev, int ret)
{
    const char *id = hdev->id ? hdev->id : "";

    trace_vhost_memslots_refused(hdev, id, ret);
    return memslot_account_refuse(id, -ret);
}

void vhost_memslots_leave(struct vhost_dev *hdev)
{
    QLIST_SAFE_REMOVE(hdev, entry);
}
