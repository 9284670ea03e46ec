/*
 * Bytes as operations on virtio-mem devices: who else has the memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "ops-int.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_iommu.h"
#include "standard-headers/linux/virtio_pci.h"
#include <glib/gstdio.h>

#define QUEUE_SIZE 4
#define TIMEOUT_US (30 * G_USEC_PER_SEC)

#define LISTENER "/machine/peripheral/listener"

typedef struct DiskConfig {
    unsigned int max_regions;
    bool iommu;
} DiskConfig;

/* One that is shown memslots, and one that is shown whole devices */
static const DiskConfig disk_configs[NR_DISKS] = {
    { 509, false },
    { 32, true },
};

/* ---- Disks ---- */

void ops_new_disks(VirtioMEMOps *ops)
{
    unsigned int i;

    ops->tmpdir = g_dir_make_tmp("virtio-mem-fuzz-XXXXXX", NULL);
    g_assert_nonnull(ops->tmpdir);
    for (i = 0; i < NR_DISKS; i++) {
        const DiskConfig *config = &disk_configs[i];
        g_autofree char *path = g_strdup_printf("%s/%u", ops->tmpdir, i);
        Disk *disk = &ops->disks[i];

        disk->backend = qvhost_user_backend_new(path, config->max_regions);
        disk->whole_devices = config->max_regions < 509;
        if (config->iommu) {
            qvhost_user_backend_set_iommu(disk->backend);
        }
    }
}

void ops_free_disks(VirtioMEMOps *ops)
{
    unsigned int i;

    for (i = 0; i < NR_DISKS; i++) {
        Disk *disk = &ops->disks[i];

        qvhost_user_backend_free(disk->backend);
        g_free(disk->vq);
        g_free(disk->pci);
    }
    g_free(ops->iommu_vq);
    g_free(ops->iommu);
    g_rmdir(ops->tmpdir);
    g_free(ops->tmpdir);
}

void virtio_mem_ops_remove_files(VirtioMEMOps *ops)
{
    unsigned int i;

    for (i = 0; i < NR_DISKS; i++) {
        g_unlink(qvhost_user_backend_path(ops->disks[i].backend));
    }
    g_rmdir(ops->tmpdir);
}

void ops_add_disks(VirtioMEMOps *ops, GString *args)
{
    unsigned int i;

    g_string_append_printf(args, " -device virtio-iommu-pci,addr=%02x.0",
                           IOMMU_SLOT);
    for (i = 0; i < NR_DISKS; i++) {
        g_string_append_printf(args, " -chardev socket,id=chr%u,path=%s,"
                               "reconnect-ms=1"
                               " -device vhost-user-blk-pci,chardev=chr%u,"
                               "addr=%02x.0,num-queues=1,disable-legacy=on%s",
                               i,
                               qvhost_user_backend_path(ops->disks[i].backend),
                               i, FIRST_DISK_SLOT + i,
                               disk_configs[i].iommu ? ",iommu_platform=on"
                                                     : "");
    }
}

static QVirtioPCIDevice *enable_pci(VirtioMEMOps *ops, unsigned int slot)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(slot, 0) };
    QVirtioPCIDevice *pci = virtio_pci_new(ops->bus, &addr);

    g_assert_nonnull(pci);
    qvirtio_pci_device_enable(pci);
    return pci;
}

static QVirtQueue *set_up_queue(VirtioMEMOps *ops, QVirtioPCIDevice *pci)
{
    QVirtioDevice *vdev = &pci->vdev;

    vdev->bus->queue_select(vdev, 0);
    qpci_io_writew(pci->pdev, pci->bar, pci->common_cfg_offset +
                   offsetof(struct virtio_pci_common_cfg, queue_size),
                   QUEUE_SIZE);
    return qvirtqueue_setup(vdev, ops->alloc, 0);
}

/* Not by libqos, which insists on that it works. */
static void set_driver_ok(QVirtioPCIDevice *pci)
{
    QVirtioDevice *vdev = &pci->vdev;

    vdev->bus->set_status(vdev, vdev->bus->get_status(vdev) |
                                VIRTIO_CONFIG_S_DRIVER_OK);
}

/* It may have been lost; then QEMU tries to connect again. */
static void wait_for_backend(VirtioMEMOps *ops, Disk *disk)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;

    ops->host->settle(ops->host->qts);
    while (!qvhost_user_backend_is_ready(disk->backend)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
        ops->host->settle(ops->host->qts);
    }
    ops->host->settle(ops->host->qts);
}

/* The rings are in low memory, or anywhere in that of a virtio-mem device. */
static void place_rings(Disk *disk, const Device *dev, const Op *op)
{
    QVirtioPCIDevice *pci = disk->pci;
    QVirtQueue vq = *disk->vq;

    vq.desc = dev->model.addr + op->b * ops_stride(dev) % ops_nb_blocks(dev) *
                                dev->model.block_size;
    if (op->device & FLAG_UNALIGNED) {
        /* the used ring after the end of a block, the others before it */
        vq.desc -= 64;
    }
    vq.avail = vq.desc + 64;
    vq.used = vq.avail + 4096 * (op->device >> 6);
    pci->vdev.bus->set_queue_address(&pci->vdev, &vq);
    qpci_io_writew(pci->pdev, pci->bar, pci->common_cfg_offset +
                   offsetof(struct virtio_pci_common_cfg, queue_enable), 1);
}

void ops_start_disk(VirtioMEMOps *ops, Disk *disk, const Device *dev,
                    const Op *op)
{
    const unsigned int i = disk - ops->disks;
    const uint64_t wanted = 1ull << VIRTIO_F_VERSION_1 |
                            1ull << VIRTIO_F_ACCESS_PLATFORM;
    QVirtioDevice *vdev;

    ops_stop_disk(ops, disk);
    ops_refuse(ops, false);
    wait_for_backend(ops, disk);
    if (!disk->pci) {
        disk->pci = enable_pci(ops, FIRST_DISK_SLOT + i);
    }
    vdev = &disk->pci->vdev;
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) & wanted);
    disk->vq = set_up_queue(ops, disk->pci);
    disk->odd = op->device & FLAG_OTHER || (disk_configs[i].iommu &&
                                            ops->iommu_vq);
    if (op->device & FLAG_OTHER) {
        place_rings(disk, dev, op);
    }
    set_driver_ok(disk->pci);
}

void ops_stop_disk(VirtioMEMOps *ops, Disk *disk)
{
    if (disk->vq) {
        ops_refuse(ops, false);
        disk->pci->vdev.bus->set_status(&disk->pci->vdev, 0);
        qvirtqueue_cleanup(disk->pci->vdev.bus, disk->vq, ops->alloc);
        disk->vq = NULL;
    }
}

void ops_refuse(VirtioMEMOps *ops, bool refuse)
{
    Disk *disk = &ops->disks[0];

    if (refuse != disk->refuses) {
        qvhost_user_backend_take_regions(disk->backend,
                                         refuse ? 0 : UINT_MAX);
        disk->refuses = refuse;
    }
}

void ops_disks_are_reset(VirtioMEMOps *ops)
{
    unsigned int i;

    ops_refuse(ops, false);
    for (i = 0; i < NR_DISKS; i++) {
        Disk *disk = &ops->disks[i];

        if (disk->vq) {
            qvirtqueue_cleanup(disk->pci->vdev.bus, disk->vq, ops->alloc);
            disk->vq = NULL;
        }
        g_clear_pointer(&disk->pci, g_free);
    }
    if (ops->iommu_vq) {
        qvirtqueue_cleanup(ops->iommu->vdev.bus, ops->iommu_vq, ops->alloc);
        ops->iommu_vq = NULL;
        g_clear_pointer(&ops->iommu, g_free);
    }
}

/* Whether the backend is known to be at work */
static bool is_at_work(const VirtioMEMOps *ops, const Disk *disk)
{
    return disk->vq && !disk->odd && ops->running;
}

bool ops_is_refused(const VirtioMEMOps *ops)
{
    return ops->disks[0].refuses && is_at_work(ops, &ops->disks[0]);
}

void ops_check_backends(VirtioMEMOps *ops, const Device *dev)
{
    const Model *model = &dev->model;
    unsigned int i, j;

    for (i = 0; i < NR_DISKS; i++) {
        const Disk *disk = &ops->disks[i];
        g_autofree char *error = qvhost_user_backend_error(disk->backend);

        g_assert_cmpstr(error, ==, NULL);
        if (!is_at_work(ops, disk)) {
            continue;
        }
        for (j = 0; j < model_nb_memslots(model); j++) {
            const uint64_t addr = model->addr + model_memslot_offset(model, j);
            const uint64_t *mem = qvhost_user_backend_memory(disk->backend,
                                                             addr, 8);
            const bool mapped = model_memslot_mapped(model, j);

            if (!dev->shared || (!mapped && !disk->whole_devices)) {
                g_assert_null(mem);
            } else {
                g_assert_nonnull(mem);
            }
            if (mem && mapped) {
                /* Just read: memory that is not plugged may be private. */
                g_assert_cmphex(*(const volatile uint64_t *)mem, ==,
                                qtest_readq(ops->host->qts, addr));
            }
        }
    }
}

/* ---- The IOMMU ---- */

static void start_iommu(VirtioMEMOps *ops)
{
    QVirtioDevice *vdev;

    ops->iommu = enable_pci(ops, IOMMU_SLOT);
    vdev = &ops->iommu->vdev;
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                               ~(1ull << VIRTIO_RING_F_INDIRECT_DESC |
                                 1ull << VIRTIO_RING_F_EVENT_IDX |
                                 QVIRTIO_F_BAD_FEATURE));
    ops->iommu_vq = set_up_queue(ops, ops->iommu);
    set_driver_ok(ops->iommu);
}

/* It answers before the access that tells it of the request is over. */
static void iommu_request(VirtioMEMOps *ops, const void *req, size_t size)
{
    QTestState *qts = ops->host->qts;
    QVirtQueue *vq = ops->iommu_vq;
    struct virtio_iommu_req_tail tail;
    const uint64_t req_addr = guest_alloc(ops->alloc, size);
    const uint64_t tail_addr = guest_alloc(ops->alloc, sizeof(tail));
    uint32_t head;

    qtest_memwrite(qts, req_addr, req, size);
    vq->free_head = 0;
    vq->num_free = vq->size;
    head = qvirtqueue_add(qts, vq, req_addr, size, false, true);
    qvirtqueue_add(qts, vq, tail_addr, sizeof(tail), true, false);
    qvirtqueue_kick(qts, &ops->iommu->vdev, vq, head);
    g_assert_true(qvirtqueue_get_buf(qts, vq, NULL, NULL));
    guest_free(ops->alloc, tail_addr);
    guest_free(ops->alloc, req_addr);
}

void ops_iommu(VirtioMEMOps *ops, unsigned int kind, uint32_t domain,
               const IOMMURange *range)
{
    const uint32_t endpoint = QPCI_DEVFN(FIRST_DISK_SLOT + 1, 0);
    const struct virtio_iommu_req_attach attach = {
        .head.type = kind ? VIRTIO_IOMMU_T_DETACH : VIRTIO_IOMMU_T_ATTACH,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(endpoint),
    };
    const struct virtio_iommu_req_map map = {
        .head.type = VIRTIO_IOMMU_T_MAP,
        .domain = cpu_to_le32(domain),
        .virt_start = cpu_to_le64(range->virt_start),
        .virt_end = cpu_to_le64(range->virt_end),
        .phys_start = cpu_to_le64(range->phys_start),
        .flags = cpu_to_le32(VIRTIO_IOMMU_MAP_F_READ |
                             VIRTIO_IOMMU_MAP_F_WRITE),
    };
    const struct virtio_iommu_req_unmap unmap = {
        .head.type = VIRTIO_IOMMU_T_UNMAP,
        .domain = cpu_to_le32(domain),
        .virt_start = cpu_to_le64(range->virt_start),
        .virt_end = cpu_to_le64(range->virt_end),
    };

    if (!ops->iommu_vq) {
        start_iommu(ops);
    }
    /* What it cannot reach any more, it may lose. */
    ops->disks[1].odd = true;
    switch (kind) {
    case 2:
        iommu_request(ops, &map, offsetof(typeof(map), tail));
        break;
    case 3:
        iommu_request(ops, &unmap, offsetof(typeof(unmap), tail));
        break;
    default:
        iommu_request(ops, &attach, offsetof(typeof(attach), tail));
        break;
    }
}

void ops_iotlb_miss(VirtioMEMOps *ops, uint64_t iova)
{
    Disk *disk = &ops->disks[1];

    if (disk->vq && ops->running &&
        qvhost_user_backend_miss(disk->backend, iova)) {
        ops->host->settle(ops->host->qts);
    }
}

void ops_translate(VirtioMEMOps *ops, const Device *dev, uint64_t block,
                   uint64_t mask)
{
    const VirtioMEMHost *host = ops->host;
    const Model *model = &dev->model;
    const uint64_t offset = block * model->block_size;
    const uint64_t addr = model->addr + offset;
    bool expected = mask < model->region_size - offset;

    if (expected) {
        const uint64_t count = DIV_ROUND_UP(mask + 1, model->block_size);

        expected = model_count_plugged(model, addr, count) == count;
    }
    g_assert_true(host->set(host->qts, LISTENER, "iotlb-address", addr));
    g_assert_true(host->set(host->qts, LISTENER, "iotlb-mask", mask));
    g_assert_cmpint(host->get_bool(host->qts, LISTENER, "iotlb-valid"), ==,
                    expected);
}
