/*
 * Bytes as operations on virtio-mem devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "ops-int.h"

/*
 * An operation takes four bytes: what to do, with which device, and two
 * arguments. One that is cut off is not run.
 */
enum {
    OP_PLUG,
    OP_UNPLUG,
    OP_STATE,
    OP_UNPLUG_ALL,
    OP_REQUEST_SIZE,
    /* followed by a struct virtio_mem_req, as the guest has it in memory */
    OP_RAW_REQUEST,
    OP_WRITE,
    OP_CONFIG,
    OP_LIMIT_LISTENER,
    OP_RESET_DEVICE,
    OP_RESET_SYSTEM,
    OP_RUN_MACHINE,
    OP_MIGRATE,
    OP_DIRTY_RATE,
    OP_SAVE,
    /* followed by what is changed of the state */
    OP_LOAD,
    OP_START_DISK,
    OP_STOP_DISK,
    OP_REFUSE,
    OP_IOMMU,
    /* followed by an IOMMURange */
    OP_RAW_IOMMU,
    OP_IOTLB_MISS,
    OP_TRANSLATE,
    NR_OPS
};

/* What takes long is done that often by a program, and then ignored. */
#define MAX_SLOW_OPS 4
#define MAX_EDITS 4

/* Each region has about as many strides, however many blocks it has. */
#define NR_STRIDES 32
/* Ranges may start and end behind the region. */
#define NR_STRIDES_BEHIND 3

/* Where we probe a memslot, and where programs write to a block. */
#define PROBE_OFFSET (1 * 4096)
#define STAMP_OFFSET (2 * 4096)

/* How many memslots there may be, as all others are left to KVM and vhost */
#define MAX_MEMSLOTS 256

/* Config space is followed by what reads as all ones. */
#define CONFIG_SPACE 64

#define LISTENER "/machine/peripheral/listener"

typedef struct DeviceConfig {
    uint64_t size;
    uint64_t block_size;
    /* 0 without multiple-memslots */
    uint64_t min_memslot_size;
    bool unplugged_inaccessible;
    bool shared;
} DeviceConfig;

static const DeviceConfig configs[NR_DEVICES] = {
    { 4608 * MiB, 128 * MiB, 1 * GiB, true, true },
    { 3 * GiB, 64 * MiB, 512 * MiB, false, true },
    /* many blocks, more than a request can name in one go by strides */
    { 2560 * MiB, 2 * MiB, 1 * GiB, true, true },
    { 1 * GiB, 32 * MiB, 0, false, false },
};

uint64_t ops_nb_blocks(const Device *dev)
{
    return dev->model.region_size / dev->model.block_size;
}

uint64_t ops_stride(const Device *dev)
{
    return ops_nb_blocks(dev) / NR_STRIDES ?: 1;
}

static uint64_t plugged_size_of_all(const VirtioMEMOps *ops)
{
    uint64_t size = 0;
    unsigned int i;

    for (i = 0; i < NR_DEVICES; i++) {
        size += model_plugged_size(&ops->devices[i].model);
    }
    return size;
}

/* ---- Checks ---- */

static void check_config(const Device *dev)
{
    struct virtio_mem_config config;

    qvirtio_mem_read_config(&dev->pci->mem, &config);
    model_check_config(&dev->model, &config);
}

/* What is written stays only where something is mapped. */
static void probe_memslot(VirtioMEMOps *ops, const Device *dev,
                          unsigned int memslot)
{
    const uint64_t addr = dev->model.addr + PROBE_OFFSET +
                          model_memslot_offset(&dev->model, memslot);
    const uint64_t value = ++ops->last_probe;

    qtest_writeq(ops->host->qts, addr, value);
    g_assert_cmphex(qtest_readq(ops->host->qts, addr), ==,
                    model_memslot_mapped(&dev->model, memslot) ? value : 0);
}

static uint64_t stamp_addr(const Device *dev, uint64_t block)
{
    return dev->model.addr + block * dev->model.block_size + STAMP_OFFSET;
}

static bool block_is_mapped(const Device *dev, uint64_t block)
{
    const uint64_t offset = block * dev->model.block_size;

    return model_memslot_mapped(&dev->model,
                                model_memslot_at(&dev->model, offset));
}

static void check_block(VirtioMEMOps *ops, Device *dev, uint64_t block)
{
    const bool mapped = block_is_mapped(dev, block);
    const uint64_t value = qtest_readq(ops->host->qts, stamp_addr(dev, block));

    if (mapped && dev->fading[block]) {
        dev->fading[block] = false;
        if (!value) {
            dev->stamps[block] = 0;
        }
    }
    g_assert_cmphex(value, ==, mapped ? dev->stamps[block] : 0);
}

static void check_device(VirtioMEMOps *ops, Device *dev)
{
    GHashTableIter iter;
    void *block;
    unsigned int i;

    check_config(dev);
    for (i = 0; i < model_nb_memslots(&dev->model); i++) {
        probe_memslot(ops, dev, i);
    }
    g_hash_table_iter_init(&iter, dev->written);
    while (g_hash_table_iter_next(&iter, &block, NULL)) {
        check_block(ops, dev, GPOINTER_TO_UINT(block));
    }
    ops_check_backends(ops, dev);
}

static void check_totals(VirtioMEMOps *ops)
{
    const VirtioMEMHost *host = ops->host;
    unsigned int i, nb_mapped = 0;

    for (i = 0; i < NR_DEVICES; i++) {
        nb_mapped += model_nb_mapped(&ops->devices[i].model);
    }
    g_assert_cmpuint(host->nb_mapped(host->qts), ==, nb_mapped);
    g_assert_cmphex(host->get(host->qts, LISTENER, "populated"), ==,
                    plugged_size_of_all(ops));
    g_assert_cmpuint(host->get(host->qts, LISTENER, "errors"), ==, 0);
}

static void check_all(VirtioMEMOps *ops)
{
    unsigned int i;

    for (i = 0; i < NR_DEVICES; i++) {
        check_device(ops, &ops->devices[i]);
    }
    check_totals(ops);
}

/* ---- Operations ---- */

void ops_discarded(Device *dev, uint64_t first, uint64_t count)
{
    memset(&dev->stamps[first], 0, count * sizeof(*dev->stamps));
    memset(&dev->fading[first], 0, count * sizeof(*dev->fading));
}

/*
 * Of a memslot that gets unmapped, nothing is left, whatever was plugged. While
 * the machine runs, that takes a moment, and is over if it is mapped again.
 */
static void discard_unmapped(const VirtioMEMOps *ops, Device *dev)
{
    const Model *model = &dev->model;
    unsigned int i;

    for (i = 0; i < model_nb_memslots(model); i++) {
        const uint64_t first = model_memslot_offset(model, i) /
                               model->block_size;
        const uint64_t count = model_memslot_size(model, i) / model->block_size;

        if (model_memslot_mapped(model, i)) {
            continue;
        }
        if (ops->running) {
            memset(&dev->fading[first], 1, count * sizeof(*dev->fading));
        } else {
            ops_discarded(dev, first, count);
        }
    }
}

/*
 * A driver that may read memory that is not plugged can write to it as well.
 * That stays, unless there is something to unplug.
 */
static uint16_t expect_unplug_all(VirtioMEMOps *ops, Device *dev)
{
    const bool has_plugged = model_plugged_size(&dev->model);
    uint16_t resp;

    dev->model.busy = ops->migrating ? BUSY_ALWAYS : BUSY_NEVER;
    resp = model_unplug_all(&dev->model);
    if (resp == VIRTIO_MEM_RESP_ACK) {
        if (has_plugged) {
            ops_discarded(dev, 0, ops_nb_blocks(dev));
        }
        discard_unmapped(ops, dev);
    }
    return resp;
}

/* A request, as it is defined, and the response that the model expects. */
static uint16_t expect_response(VirtioMEMOps *ops, Device *dev, uint16_t type,
                                uint64_t addr, uint16_t count, uint16_t *state)
{
    Model *model = &dev->model;
    const uint64_t first = (addr - model->addr) / model->block_size;
    uint16_t resp;

    model->busy = ops->migrating ? BUSY_ALWAYS : BUSY_NEVER;
    model->no_memslots = dev->shared && ops_is_refused(ops);
    switch (type) {
    case VIRTIO_MEM_REQ_PLUG:
        if (!ops->migrating && plugged_size_of_all(ops) + count *
                               model->block_size > ops->max_populated) {
            model->busy = BUSY_PLUG;
        }
        resp = model_plug(model, addr, count);
        if (resp == VIRTIO_MEM_RESP_BUSY && !ops->migrating) {
            ops_discarded(dev, first, count);
            discard_unmapped(ops, dev);
        }
        return resp;
    case VIRTIO_MEM_REQ_UNPLUG:
        resp = model_unplug(model, addr, count);
        if (resp == VIRTIO_MEM_RESP_ACK) {
            ops_discarded(dev, first, count);
            discard_unmapped(ops, dev);
        }
        return resp;
    case VIRTIO_MEM_REQ_UNPLUG_ALL:
        return expect_unplug_all(ops, dev);
    case VIRTIO_MEM_REQ_STATE:
        return model_state(model, addr, count, state);
    default:
        g_assert_not_reached();
    }
}

static bool request_is_known(uint16_t type)
{
    return type == VIRTIO_MEM_REQ_PLUG || type == VIRTIO_MEM_REQ_UNPLUG ||
           type == VIRTIO_MEM_REQ_UNPLUG_ALL || type == VIRTIO_MEM_REQ_STATE;
}

static void request(VirtioMEMOps *ops, Device *dev,
                    const struct virtio_mem_req *req, size_t req_size,
                    size_t resp_size)
{
    const uint16_t type = le16_to_cpu(req->type);
    g_autofree uint8_t *buf = g_malloc0(MAX(req_size, sizeof(*req)));
    union {
        struct virtio_mem_resp resp;
        uint8_t bytes[64];
    } shown, expected;
    uint16_t state = 0;
    bool responded;

    g_assert_cmpuint(resp_size, <=, sizeof(shown));
    memset(&expected, 0xff, sizeof(expected));
    memcpy(buf, req, sizeof(*req));
    responded = qvirtio_mem_request(&dev->pci->mem, buf, req_size, &shown,
                                    resp_size);

    if (req_size < sizeof(*req) || resp_size < sizeof(shown.resp) ||
        !request_is_known(type)) {
        g_assert_false(responded);
        qvirtio_mem_start(&dev->pci->mem);
        return;
    }

    g_assert_true(responded);
    memset(&expected.resp, 0, sizeof(expected.resp));
    expected.resp.type =
        cpu_to_le16(expect_response(ops, dev, type,
                                    le64_to_cpu(req->u.plug.addr),
                                    le16_to_cpu(req->u.plug.nb_blocks),
                                    &state));
    expected.resp.u.state.state = cpu_to_le16(state);
    g_assert_cmpmem(&shown, resp_size, &expected, resp_size);
}

static void op_request(VirtioMEMOps *ops, Device *dev, uint16_t type,
                       const Op *op)
{
    const uint64_t block_size = dev->model.block_size;
    const unsigned int range = ops_nb_blocks(dev) / ops_stride(dev) +
                               NR_STRIDES_BEHIND;
    uint64_t addr = dev->model.addr +
                    (op->a % range) * ops_stride(dev) * block_size;
    struct virtio_mem_req req = {
        .type = cpu_to_le16(type),
        .u.plug.nb_blocks = cpu_to_le16(op->device & FLAG_BLOCKS ? op->b :
                                        op->b % range * ops_stride(dev)),
    };

    if (op->device & FLAG_UNALIGNED) {
        addr += op->b * 4096;
    }
    if (op->device & FLAG_OTHER) {
        addr -= ops_stride(dev) * block_size;
    }
    req.u.plug.addr = cpu_to_le64(addr);
    request(ops, dev, &req, sizeof(req), sizeof(struct virtio_mem_resp));
}

static void op_raw_request(VirtioMEMOps *ops, Device *dev, const Op *op,
                           struct virtio_mem_req *req)
{
    size_t req_size = sizeof(*req), resp_size = sizeof(struct virtio_mem_resp);

    if (op->a & 0x80) {
        req_size = 1 + op->a % 0x40;
    }
    if (op->b & 0x80) {
        resp_size = 1 + op->b % 0x40;
    }
    if (op->device & FLAG_OTHER) {
        req->u.plug.addr = cpu_to_le64(le64_to_cpu(req->u.plug.addr) +
                                       dev->model.addr);
    }
    request(ops, dev, req, req_size, resp_size);
}

static void request_size(VirtioMEMOps *ops, Device *dev, uint64_t size)
{
    const VirtioMEMHost *host = ops->host;
    bool expected = size <= dev->model.region_size &&
                    size % dev->model.block_size == 0;

    if (expected) {
        dev->model.no_memslots = dev->shared && ops_is_refused(ops);
        expected = model_request_size(&dev->model, size);
    }
    g_assert_cmpint(host->set(host->qts, dev->qom_path, "requested-size", size),
                    ==, expected);
}

static void op_request_size(VirtioMEMOps *ops, Device *dev, const Op *op)
{
    const unsigned int range = ops_nb_blocks(dev) / ops_stride(dev) +
                               NR_STRIDES_BEHIND;
    uint64_t size = op->a % range * ops_stride(dev) * dev->model.block_size;

    if (op->device & FLAG_BLOCKS) {
        size += op->b * dev->model.block_size;
    }
    if (op->device & FLAG_UNALIGNED) {
        size += op->b * 4096;
    }
    request_size(ops, dev, size);
}

/* Also where no memory is plugged: that must do no harm. */
static void op_write(VirtioMEMOps *ops, Device *dev, const Op *op)
{
    const uint64_t block = op->a * ops_stride(dev) % ops_nb_blocks(dev);

    check_block(ops, dev, block);
    qtest_writeq(ops->host->qts, stamp_addr(dev, block), op->b);
    dev->fading[block] = dev->fading[block] && !block_is_mapped(dev, block);
    if (block_is_mapped(dev, block)) {
        dev->stamps[block] = op->b;
    }
    g_hash_table_add(dev->written, GUINT_TO_POINTER(block));
}

/* Drivers can't change the configuration, nor read what is not there. */
static void op_config(Device *dev, const Op *op)
{
    QVirtioPCIDevice *pci = &dev->pci->pci_vdev;
    const unsigned int pos = op->a % CONFIG_SPACE;
    const uint64_t offset = pci->device_cfg_offset + pos;
    const unsigned int size = 1 << (op->a >> 6) % 3;
    uint32_t value;

    switch (size) {
    case 1:
        qpci_io_writeb(pci->pdev, pci->bar, offset, op->b);
        value = qpci_io_readb(pci->pdev, pci->bar, offset);
        break;
    case 2:
        qpci_io_writew(pci->pdev, pci->bar, offset, op->b);
        value = qpci_io_readw(pci->pdev, pci->bar, offset);
        break;
    default:
        qpci_io_writel(pci->pdev, pci->bar, offset, op->b);
        value = qpci_io_readl(pci->pdev, pci->bar, offset);
        break;
    }
    if (pos >= sizeof(struct virtio_mem_config)) {
        g_assert_cmphex(value, ==, MAKE_64BIT_MASK(0, 8 * size));
    }
}

static void limit_listener(VirtioMEMOps *ops, uint64_t max_populated)
{
    const VirtioMEMHost *host = ops->host;

    g_assert_true(host->set(host->qts, LISTENER, "max-populated",
                            max_populated));
    ops->max_populated = max_populated;
}

void ops_reset_machine(VirtioMEMOps *ops)
{
    unsigned int i;

    ops_disks_are_reset(ops);
    ops->host->system_reset(ops->host->qts);
    /* No BAR is mapped any more; libqos does not reclaim addresses. */
    ops->bus->mmio_alloc_ptr = ops->mmio_start;
    for (i = 0; i < NR_DEVICES; i++) {
        expect_unplug_all(ops, &ops->devices[i]);
    }
}

void ops_start_drivers(VirtioMEMOps *ops)
{
    unsigned int i;

    for (i = 0; i < NR_DEVICES; i++) {
        qvirtio_mem_pci_start(ops->devices[i].pci);
    }
}

static void reset_system(VirtioMEMOps *ops)
{
    ops_reset_machine(ops);
    ops_start_drivers(ops);
}

/* What is done in the device: a stride of it, or what is near that. */
static uint64_t op_addr(const Device *dev, const Op *op)
{
    uint64_t addr = dev->model.addr +
                    op->a * ops_stride(dev) % ops_nb_blocks(dev) *
                    dev->model.block_size;

    return op->device & FLAG_UNALIGNED ? addr + op->b * 4096 : addr;
}

/* At the same address behind the IOMMU, or from its start on */
static void op_iommu(VirtioMEMOps *ops, const Device *dev, const Op *op)
{
    const uint64_t addr = op_addr(dev, op);
    const uint64_t start = op->device & FLAG_OTHER ? op->b * 4096 : addr;
    const IOMMURange range = {
        .virt_start = start,
        .virt_end = start + (4096ull << op->b % 24) - 1,
        .phys_start = addr,
    };

    ops_iommu(ops, op->device >> 6, op->device >> 5 & 1, &range);
}

/* Whether the program may do once more what takes long */
static bool may_be_slow(VirtioMEMOps *ops)
{
    return ops->nr_slow++ < MAX_SLOW_OPS;
}

/* What follows some operations */
typedef union Extra {
    struct virtio_mem_req req;
    IOMMURange range;
    Edit edits[MAX_EDITS];
} Extra;

static size_t extra_size(const Op *op)
{
    switch (op->code % NR_OPS) {
    case OP_RAW_REQUEST:
        return sizeof(struct virtio_mem_req);
    case OP_RAW_IOMMU:
        return sizeof(IOMMURange);
    case OP_LOAD:
        return op->a % (MAX_EDITS + 1) * sizeof(Edit);
    default:
        return 0;
    }
}

/* Operations on the machine, and on what shares the memory with it */
static void run_machine_op(VirtioMEMOps *ops, Device *dev, const Op *op,
                           Extra *extra)
{
    Disk *disk = &ops->disks[op->a % NR_DISKS];

    switch (op->code % NR_OPS) {
    case OP_RESET_SYSTEM:
        if (may_be_slow(ops)) {
            reset_system(ops);
        }
        break;
    case OP_RUN_MACHINE:
        ops_run_machine(ops, op->a & 1);
        break;
    case OP_MIGRATE:
        if (may_be_slow(ops)) {
            ops_migrate(ops, op->a & 1);
        }
        break;
    case OP_DIRTY_RATE:
        if (may_be_slow(ops)) {
            ops->host->measure_dirty_rate(ops->host->qts);
        }
        break;
    case OP_SAVE:
        if (may_be_slow(ops)) {
            ops_save(ops);
        }
        break;
    case OP_LOAD:
        if (may_be_slow(ops)) {
            ops_load(ops, dev, extra->edits, op->a % (MAX_EDITS + 1));
        }
        break;
    case OP_START_DISK:
        ops_start_disk(ops, disk, dev, op);
        break;
    case OP_STOP_DISK:
        ops_stop_disk(ops, disk);
        break;
    case OP_REFUSE:
        ops_refuse(ops, op->a & 1);
        break;
    case OP_IOMMU:
        op_iommu(ops, dev, op);
        break;
    case OP_RAW_IOMMU:
        if (op->device & FLAG_OTHER) {
            extra->range.phys_start += dev->model.addr;
        }
        ops_iommu(ops, op->device >> 6, op->device >> 5 & 1, &extra->range);
        break;
    case OP_IOTLB_MISS:
        ops_iotlb_miss(ops, op->device & FLAG_OTHER ? op->b * 4096 :
                                                      op_addr(dev, op));
        break;
    case OP_TRANSLATE:
        ops_translate(ops, dev, op->a * ops_stride(dev) % ops_nb_blocks(dev),
                      op->b % 65 ? MAKE_64BIT_MASK(0, op->b % 65) : 0);
        break;
    }
}

static void run_op(VirtioMEMOps *ops, Device *dev, const Op *op, Extra *extra)
{
    switch (op->code % NR_OPS) {
    case OP_PLUG:
        op_request(ops, dev, VIRTIO_MEM_REQ_PLUG, op);
        break;
    case OP_UNPLUG:
        op_request(ops, dev, VIRTIO_MEM_REQ_UNPLUG, op);
        break;
    case OP_STATE:
        op_request(ops, dev, VIRTIO_MEM_REQ_STATE, op);
        break;
    case OP_UNPLUG_ALL:
        op_request(ops, dev, VIRTIO_MEM_REQ_UNPLUG_ALL, op);
        break;
    case OP_REQUEST_SIZE:
        op_request_size(ops, dev, op);
        break;
    case OP_RAW_REQUEST:
        op_raw_request(ops, dev, op, &extra->req);
        break;
    case OP_WRITE:
        op_write(ops, dev, op);
        break;
    case OP_CONFIG:
        op_config(dev, op);
        break;
    case OP_LIMIT_LISTENER:
        limit_listener(ops, op->device & FLAG_OTHER ? UINT64_MAX :
                            op->a * 32 * MiB);
        break;
    case OP_RESET_DEVICE:
        qvirtio_mem_start(&dev->pci->mem);
        break;
    default:
        run_machine_op(ops, dev, op, extra);
        break;
    }
}

/* ---- Programs ---- */

static bool take(const uint8_t **data, size_t *size, void *into, size_t count)
{
    if (*size < count) {
        return false;
    }
    memcpy(into, *data, count);
    *data += count;
    *size -= count;
    return true;
}

static void unplug_all(VirtioMEMOps *ops, Device *dev)
{
    const struct virtio_mem_req req = {
        .type = cpu_to_le16(VIRTIO_MEM_REQ_UNPLUG_ALL),
    };

    request(ops, dev, &req, sizeof(req), sizeof(struct virtio_mem_resp));
}

/* So that there is something to unplug. */
static void plug_one(VirtioMEMOps *ops, Device *dev)
{
    const struct virtio_mem_req req = {
        .type = cpu_to_le16(VIRTIO_MEM_REQ_PLUG),
        .u.plug.addr = cpu_to_le64(dev->model.addr),
        .u.plug.nb_blocks = cpu_to_le16(1),
    };

    request(ops, dev, &req, sizeof(req), sizeof(struct virtio_mem_resp));
}

/* All of its size is requested, nothing is plugged, and nothing was written. */
static void reset_device(VirtioMEMOps *ops, Device *dev)
{
    const Model *model = &dev->model;

    if (model_plugged_size(model) ||
        model->requested_size != model->region_size ||
        model->usable_size != model->region_size) {
        unplug_all(ops, dev);
        request_size(ops, dev, model->region_size);
    }
    if (g_hash_table_size(dev->written)) {
        g_hash_table_remove_all(dev->written);
        plug_one(ops, dev);
        unplug_all(ops, dev);
    }
}

static void reset_devices(VirtioMEMOps *ops)
{
    unsigned int i;

    ops_refuse(ops, false);
    ops_migrate(ops, false);
    ops_run_machine(ops, false);
    for (i = 0; i < NR_DISKS; i++) {
        ops_stop_disk(ops, &ops->disks[i]);
    }
    if (ops->iommu_vq) {
        reset_system(ops);
    }
    g_clear_pointer(&ops->saved, g_byte_array_unref);
    ops->nr_slow = 0;

    limit_listener(ops, UINT64_MAX);
    for (i = 0; i < NR_DEVICES; i++) {
        reset_device(ops, &ops->devices[i]);
    }
    check_all(ops);
}

static void check_all_blocks(VirtioMEMOps *ops)
{
    unsigned int i, block;

    for (i = 0; i < NR_DEVICES; i++) {
        Device *dev = &ops->devices[i];

        for (block = 0; block < ops_nb_blocks(dev); block += ops_stride(dev)) {
            check_block(ops, dev, block);
        }
    }
}

void virtio_mem_ops_run(VirtioMEMOps *ops, const uint8_t *data, size_t size)
{
    Extra extra;
    Op op;

    QEMU_BUILD_BUG_ON(sizeof(op) != 4);

    reset_devices(ops);
    while (take(&data, &size, &op, sizeof(op))) {
        Device *dev = &ops->devices[op.device % NR_DEVICES];

        if (!take(&data, &size, &extra, extra_size(&op))) {
            break;
        }
        run_op(ops, dev, &op, &extra);
        /* The others are looked at in the end, and part of the totals. */
        check_device(ops, dev);
        check_totals(ops);
    }
    check_all(ops);
    check_all_blocks(ops);
}

/* ---- The machine ---- */

char *virtio_mem_ops_args(VirtioMEMOps *ops)
{
    GString *args = g_string_new("-S -nodefaults"
                                 " -machine pc,memory-backend=ram,"
                                 "suppress-vmdesc=on"
                                 " -global migration.send-configuration=off"
                                 " -object memory-backend-memfd,id=ram,"
                                 "size=128M"
                                 " -m 128M,maxmem=32G"
                                 " -device ram-discard-testdev,id=listener");
    unsigned int i;

    for (i = 0; i < NR_DEVICES; i++) {
        const DeviceConfig *config = &configs[i];

        g_string_append_printf(args, " -object memory-backend-%s,id=mem%u,"
                               "size=%" PRIu64 ",reserve=off"
                               " -device virtio-mem-pci,id=vm%u,memdev=mem%u,"
                               "addr=%02x.0,block-size=%" PRIu64 ","
                               "unplugged-inaccessible=%s,ioeventfd=off",
                               config->shared ? "memfd" : "ram", i,
                               config->size, i, i, FIRST_DEVICE_SLOT + i,
                               config->block_size,
                               config->unplugged_inaccessible ? "on" : "off");
        if (config->min_memslot_size) {
            g_string_append_printf(args, ",multiple-memslots=on,"
                                   "memslot-min-size=%" PRIu64,
                                   config->min_memslot_size);
        }
    }
    ops_add_disks(ops, args);
    return g_string_free(args, false);
}

static void device_init(VirtioMEMOps *ops, unsigned int i)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(FIRST_DEVICE_SLOT + i, 0) };
    Device *dev = &ops->devices[i];
    struct virtio_mem_config config;

    dev->pci = qvirtio_mem_pci_new(ops->bus, &addr, ops->alloc);
    qvirtio_mem_pci_start(dev->pci);
    dev->qom_path = g_strdup_printf("/machine/peripheral/vm%u", i);
    dev->shared = configs[i].shared;

    /* The machine chooses the address. */
    qvirtio_mem_read_config(&dev->pci->mem, &config);
    dev->model = (Model) {
        .addr = config.addr,
        .region_size = configs[i].size,
        .block_size = configs[i].block_size,
        .usable_extent = 256 * MiB,
        .unplugged_inaccessible = configs[i].unplugged_inaccessible,
    };
    if (configs[i].min_memslot_size) {
        model_divide(&dev->model, MAX_MEMSLOTS, configs[i].min_memslot_size);
    }
    dev->model.plugged = g_new0(bool, ops_nb_blocks(dev));
    dev->stamps = g_new0(uint64_t, ops_nb_blocks(dev));
    dev->fading = g_new0(bool, ops_nb_blocks(dev));
    dev->written = g_hash_table_new(NULL, NULL);
}

VirtioMEMOps *virtio_mem_ops_new(void)
{
    VirtioMEMOps *ops = g_new0(VirtioMEMOps, 1);

    ops_new_disks(ops);
    return ops;
}

void virtio_mem_ops_start(VirtioMEMOps *ops, const VirtioMEMHost *host,
                          QPCIBus *bus, QGuestAllocator *alloc)
{
    unsigned int i;

    ops->host = host;
    ops->bus = bus;
    ops->alloc = alloc;
    ops->mmio_start = bus->mmio_alloc_ptr;
    for (i = 0; i < NR_DEVICES; i++) {
        device_init(ops, i);
        request_size(ops, &ops->devices[i], configs[i].size);
    }
    ops_find_sizes(ops);
}

void virtio_mem_ops_free(VirtioMEMOps *ops)
{
    unsigned int i;

    ops_free_disks(ops);
    for (i = 0; i < NR_DEVICES; i++) {
        Device *dev = &ops->devices[i];

        qvirtio_mem_pci_free(dev->pci);
        g_free(dev->qom_path);
        model_cleanup(&dev->model);
        g_free(dev->stamps);
        g_free(dev->fading);
        g_hash_table_unref(dev->written);
    }
    if (ops->saved) {
        g_byte_array_unref(ops->saved);
    }
    g_free(ops);
}
