/*
 * libqos driver for virtio-mem
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "../libqtest.h"
#include "qemu/module.h"
#include "qemu/bswap.h"
#include "qgraph.h"
#include "virtio-mem.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"

/* Discarding or preallocating much memory on a busy host can take a while. */
#define QVIRTIO_MEM_TIMEOUT_US (60 * 1000 * 1000)

#define QVIRTIO_MEM_POLL_INTERVAL_US 100

/*
 * A request takes two descriptors. To set up all that the device has would
 * take most of the time that it takes to start it.
 */
#define QVIRTIO_MEM_QUEUE_SIZE 4

static bool qvirtio_mem_needs_reset(QVirtioMEM *mem)
{
    return mem->vdev->bus->get_status(mem->vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

/*
 * Unlike qvirtio_wait_used_elem(), does not step the clock: that works with
 * "-accel qtest" only, and the device does not depend on timers.
 */
static bool qvirtio_mem_wait_used(QVirtioMEM *mem, uint32_t head)
{
    const gint64 start_time = g_get_monotonic_time();
    uint32_t got_head;

    while (!qvirtqueue_get_buf(mem->qts, mem->vq, &got_head, NULL)) {
        if (qvirtio_mem_needs_reset(mem)) {
            return false;
        }
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        QVIRTIO_MEM_TIMEOUT_US);
        g_usleep(QVIRTIO_MEM_POLL_INTERVAL_US);
    }
    g_assert_cmpint(got_head, ==, head);
    g_assert_true(mem->vdev->bus->get_queue_isr_status(mem->vdev, mem->vq));
    return true;
}

bool qvirtio_mem_request(QVirtioMEM *mem, const void *req, size_t req_size,
                         void *resp, size_t resp_size)
{
    QVirtQueue *vq = mem->vq;
    uint64_t req_addr, resp_addr;
    uint32_t head;
    bool responded;

    req_addr = guest_alloc(mem->alloc, req_size);
    resp_addr = guest_alloc(mem->alloc, resp_size);
    qtest_memwrite(mem->qts, req_addr, req, req_size);
    qtest_memset(mem->qts, resp_addr, 0xff, resp_size);

    /*
     * libqos does not reclaim descriptors. There is never more than one request
     * in flight, so all of them are free.
     */
    vq->free_head = 0;
    vq->num_free = vq->size;
    head = qvirtqueue_add(mem->qts, vq, req_addr, req_size, false, true);
    qvirtqueue_add(mem->qts, vq, resp_addr, resp_size, true, false);
    qvirtqueue_kick(mem->qts, mem->vdev, vq, head);

    responded = qvirtio_mem_wait_used(mem, head);
    if (responded) {
        qtest_memread(mem->qts, resp_addr, resp, resp_size);
    }

    guest_free(mem->alloc, resp_addr);
    guest_free(mem->alloc, req_addr);
    return responded;
}

static uint16_t qvirtio_mem_simple_request(QVirtioMEM *mem, uint16_t type,
                                           uint64_t addr, uint16_t nb_blocks,
                                           uint16_t *state)
{
    /* All requests that have arguments share the layout of the plug request. */
    const struct virtio_mem_req req = {
        .type = cpu_to_le16(type),
        .u.plug.addr = cpu_to_le64(addr),
        .u.plug.nb_blocks = cpu_to_le16(nb_blocks),
    };
    struct virtio_mem_resp resp;

    g_assert_true(qvirtio_mem_request(mem, &req, sizeof(req),
                                      &resp, sizeof(resp)));
    if (state && le16_to_cpu(resp.type) == VIRTIO_MEM_RESP_ACK) {
        *state = le16_to_cpu(resp.u.state.state);
    }
    return le16_to_cpu(resp.type);
}

uint16_t qvirtio_mem_plug(QVirtioMEM *mem, uint64_t addr, uint16_t nb_blocks)
{
    return qvirtio_mem_simple_request(mem, VIRTIO_MEM_REQ_PLUG, addr, nb_blocks,
                                      NULL);
}

uint16_t qvirtio_mem_unplug(QVirtioMEM *mem, uint64_t addr, uint16_t nb_blocks)
{
    return qvirtio_mem_simple_request(mem, VIRTIO_MEM_REQ_UNPLUG, addr,
                                      nb_blocks, NULL);
}

uint16_t qvirtio_mem_unplug_all(QVirtioMEM *mem)
{
    return qvirtio_mem_simple_request(mem, VIRTIO_MEM_REQ_UNPLUG_ALL, 0, 0,
                                      NULL);
}

uint16_t qvirtio_mem_state(QVirtioMEM *mem, uint64_t addr, uint16_t nb_blocks,
                           uint16_t *state)
{
    return qvirtio_mem_simple_request(mem, VIRTIO_MEM_REQ_STATE, addr,
                                      nb_blocks, state);
}

bool qvirtio_mem_has_feature(QVirtioMEM *mem, unsigned int bit)
{
    g_assert_true(mem->vdev->features_negotiated);
    return mem->vdev->features & (1ull << bit);
}

void qvirtio_mem_read_config(QVirtioMEM *mem, struct virtio_mem_config *config)
{
    QVirtioDevice *vdev = mem->vdev;

    memset(config, 0, sizeof(*config));
#define READ_FIELD(suffix, field)                                          \
    (config->field = qvirtio_config_read ## suffix(vdev,                   \
                         offsetof(struct virtio_mem_config, field)))
    READ_FIELD(q, block_size);
    READ_FIELD(w, node_id);
    READ_FIELD(q, addr);
    READ_FIELD(q, region_size);
    READ_FIELD(q, usable_region_size);
    READ_FIELD(q, plugged_size);
    READ_FIELD(q, requested_size);
#undef READ_FIELD
}

bool qvirtio_mem_accepts_features(QVirtioMEM *mem, uint64_t features)
{
    QVirtioDevice *vdev = mem->vdev;
    bool accepted;

    qvirtio_start_device(vdev);
    vdev->bus->set_features(vdev, features);
    vdev->bus->set_status(vdev, vdev->bus->get_status(vdev) |
                                VIRTIO_CONFIG_S_FEATURES_OK);
    accepted = vdev->bus->get_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK;

    qvirtio_reset(vdev);
    return accepted;
}

static void qvirtio_mem_free_queue(QVirtioMEM *mem)
{
    if (mem->vq) {
        qvirtqueue_cleanup(mem->vdev->bus, mem->vq, mem->alloc);
        mem->vq = NULL;
    }
}

static void qvirtio_mem_shrink_queue(QVirtioMEM *mem)
{
    QVirtioPCIDevice *dev = container_of(mem->vdev, QVirtioPCIDevice, vdev);

    mem->vdev->bus->queue_select(mem->vdev, 0);
    qpci_io_writew(dev->pdev, dev->bar, dev->common_cfg_offset +
                   offsetof(struct virtio_pci_common_cfg, queue_size),
                   QVIRTIO_MEM_QUEUE_SIZE);
}

static void qvirtio_mem_setup(QVirtioMEM *mem)
{
    QVirtioDevice *vdev = mem->vdev;
    uint64_t features;

    features = qvirtio_get_features(vdev);
    features &= ~(QVIRTIO_F_BAD_FEATURE |
                  (1ull << VIRTIO_RING_F_INDIRECT_DESC) |
                  (1ull << VIRTIO_RING_F_EVENT_IDX));
    qvirtio_set_features(vdev, features);

    qvirtio_mem_free_queue(mem);
    qvirtio_mem_shrink_queue(mem);
    mem->vq = qvirtqueue_setup(vdev, mem->alloc, 0);
    qvirtio_set_driver_ok(vdev);
}

void qvirtio_mem_start(QVirtioMEM *mem)
{
    qvirtio_start_device(mem->vdev);
    qvirtio_mem_setup(mem);
}

void qvirtio_mem_pci_start(QVirtioMEMPCI *mem_pci)
{
    qvirtio_pci_device_enable(&mem_pci->pci_vdev);
    qvirtio_mem_start(&mem_pci->mem);
}

static void *qvirtio_mem_get_driver(QVirtioMEM *mem, const char *interface)
{
    if (!g_strcmp0(interface, "virtio-mem")) {
        return mem;
    }
    if (!g_strcmp0(interface, "virtio")) {
        return mem->vdev;
    }

    fprintf(stderr, "%s not present in virtio-mem-device\n", interface);
    g_assert_not_reached();
}

static void *qvirtio_mem_pci_get_driver(void *object, const char *interface)
{
    QVirtioMEMPCI *mem_pci = object;

    if (!g_strcmp0(interface, "pci-device")) {
        return mem_pci->pci_vdev.pdev;
    }
    return qvirtio_mem_get_driver(&mem_pci->mem, interface);
}

static void qvirtio_mem_pci_destructor(QOSGraphObject *obj)
{
    QVirtioMEMPCI *mem_pci = (QVirtioMEMPCI *)obj;

    qvirtio_mem_free_queue(&mem_pci->mem);
    qvirtio_pci_destructor(obj);
}

static void qvirtio_mem_pci_start_hw(QOSGraphObject *obj)
{
    QVirtioMEMPCI *mem_pci = (QVirtioMEMPCI *)obj;

    qvirtio_pci_start_hw(obj);
    qvirtio_mem_setup(&mem_pci->mem);
}

QVirtioMEMPCI *qvirtio_mem_pci_new(QPCIBus *bus, QPCIAddress *addr,
                                   QGuestAllocator *alloc)
{
    QVirtioMEMPCI *mem_pci = g_new0(QVirtioMEMPCI, 1);
    QOSGraphObject *obj = &mem_pci->pci_vdev.obj;

    virtio_pci_init(&mem_pci->pci_vdev, bus, addr);
    mem_pci->mem.vdev = &mem_pci->pci_vdev.vdev;
    mem_pci->mem.qts = bus->qts;
    mem_pci->mem.alloc = alloc;

    obj->get_driver = qvirtio_mem_pci_get_driver;
    obj->start_hw = qvirtio_mem_pci_start_hw;
    obj->destructor = qvirtio_mem_pci_destructor;
    return mem_pci;
}

void qvirtio_mem_pci_free(QVirtioMEMPCI *mem_pci)
{
    if (mem_pci) {
        qvirtio_mem_pci_destructor(&mem_pci->pci_vdev.obj);
        g_free(mem_pci);
    }
}

static void *qvirtio_mem_pci_create(void *pci_bus, QGuestAllocator *alloc,
                                    void *addr)
{
    return &qvirtio_mem_pci_new(pci_bus, addr, alloc)->pci_vdev.obj;
}

static void qvirtio_mem_register_nodes(void)
{
    QPCIAddress addr = {
        .devfn = QPCI_DEVFN(4, 0),
    };
    QOSGraphEdgeOptions opts = {
        .before_cmd_line = "-m 128M,maxmem=640M "
                           "-object memory-backend-ram,id=vmem0,size=512M",
        .extra_device_opts = "addr=04.0,memdev=vmem0,requested-size=512M",
    };

    add_qpci_address(&opts, &addr);
    qos_node_create_driver("virtio-mem-pci", qvirtio_mem_pci_create);
    qos_node_consumes("virtio-mem-pci", "pci-bus", &opts);
    qos_node_produces("virtio-mem-pci", "pci-device");
    qos_node_produces("virtio-mem-pci", "virtio");
    qos_node_produces("virtio-mem-pci", "virtio-mem");
}

libqos_init(qvirtio_mem_register_nodes);
