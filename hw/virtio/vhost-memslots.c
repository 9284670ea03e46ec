/*
 * vhost: the memslots that backends hold
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "hw/virtio/vhost.h"
#include "hw/virtio/vhost-memslots.h"
#include "qemu/error-report.h"
#include "qemu/report-limit.h"
#include "standard-headers/linux/vhost_types.h"
#include "trace.h"

MemslotHolder vhost_dev_memslot_holder(struct vhost_dev *hdev)
{
    const VhostOps *ops = hdev->vhost_ops;
    const int limit = ops->vhost_backend_memslots_limit(hdev);

    return (MemslotHolder) {
        .kind = MEMSLOT_HOLDER_VHOST,
        .id = hdev->id ? hdev->id : "",
        .limit = limit == INT_MAX ? MEMSLOTS_UNLIMITED : limit,
        .used = hdev->mem->nregions,
        .shared_only = ops->vhost_backend_no_private_memslots &&
                       ops->vhost_backend_no_private_memslots(hdev),
        .whole_devices = hdev->whole_devices,
    };
}

static MemslotHolder vhost_get_memslot_holder(void *opaque)
{
    return vhost_dev_memslot_holder(opaque);
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
    memslot_account_add_holder(vhost_get_memslot_holder, hdev);
    return memslot_account_check_holder(&holder, errp) ? 0 : -ENOBUFS;
}

void vhost_memslots_refused(struct vhost_dev *hdev, int ret)
{
    /* Of all backends: a guest that moves a BAR has all of them refuse. */
    static ReportLimit reports;
    const char *id = hdev->id ? hdev->id : "";
    uint64_t left_out;

    trace_vhost_memslots_refused(hdev, id, ret);
    if (memslot_account_refuse(id, -ret) ||
        !report_limit_pass(&reports, &left_out)) {
        return;
    }
    if (left_out) {
        error_report("vhost backend '%s' could not be told of %u memory regions"
                     " (nor any %" PRIu64 " times since the last such error),"
                     " and goes on with those that it has: %s", id,
                     hdev->mem->nregions, left_out, strerror(-ret));
    } else {
        error_report("vhost backend '%s' could not be told of %u memory"
                     " regions, and goes on with those that it has: %s", id,
                     hdev->mem->nregions, strerror(-ret));
    }
}

void vhost_memslots_leave(struct vhost_dev *hdev)
{
    memslot_account_remove_holder(hdev);
}
