/*
 * QTest testcases for vhost devices: VMs with memory that the guest takes away
 * or moves
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "libqos/host.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_net.h"

#define RAM_SIZE (128 * MiB)

#define VMEM_SLOT 4
#define SHMEM_SLOT 5
#define NET_SLOT 8
#define DISK_SLOT 9

/* ---- The VM ---- */

/* Returns arguments for QEMU. */
static char *add_disk(TestVM *vm)
{
    g_autofree char *socket = g_strdup_printf("%s/disk", vm->tmpdir);

    if (!vm->config.with_disk) {
        return g_strdup("");
    }
    vm->disk_backend = qvhost_user_backend_new(socket, 509);
    return g_strdup_printf("-chardev socket,id=disk,path=%s "
                           "-device vhost-user-blk-pci,chardev=disk,addr=%x.0",
                           socket, DISK_SLOT);
}

TestVM *vm_boot(const VMConfig *config)
{
    QPCIAddress mem_addr = { .devfn = QPCI_DEVFN(VMEM_SLOT, 0) };
    QPCIAddress net_addr = { .devfn = QPCI_DEVFN(NET_SLOT, 0) };
    QPCIAddress disk_addr = { .devfn = QPCI_DEVFN(DISK_SLOT, 0) };
    const uint64_t vmem_size = config->vmem_size ?: VMEM_SIZE;
    const uint64_t shmem_size = config->shmem_size ?: SHMEM_SIZE;
    TestVM *vm = g_new0(TestVM, 1);
    g_autofree char *disk = NULL;
    g_autofree char *socket = NULL;
    unsigned int i;

    vm->config = *config;
    vm->tmpdir = g_dir_make_tmp("vhost-memory-test-XXXXXX", NULL);
    g_assert_nonnull(vm->tmpdir);
    vm->stderr_path = g_strdup_printf("%s/stderr", vm->tmpdir);
    socket = g_strdup_printf("%s/backend", vm->tmpdir);
    vm->backend = qvhost_user_backend_new(socket, config->max_regions);
    if (config->with_notifiers) {
        qvhost_user_backend_offer_notifiers(vm->backend);
    }
    disk = add_disk(vm);

    /* The memory of a BAR comes first, wherever it is later. */
    vm->qts = qtest_initf("-M %s,memory-backend=ram -nodefaults "
        "-m 128M,maxmem=%" PRIu64 "B "
        "-object memory-backend-memfd,id=shmem0,size=%" PRIu64 "B "
        "-object memory-backend-memfd,id=shmem1,size=%" PRIu64 "B "
        "-object memory-backend-memfd,id=ram,size=128M "
        "-object memory-backend-memfd,id=vmem,size=%" PRIu64
        "B,reserve=off "
        "-device virtio-mem-pci,id=vmem0,memdev=vmem,addr=%x.0,memaddr=0x%"
        PRIx64 ",block-size=2M,requested-size=%" PRIu64 "B,dynamic-memslots=on,"
        "unplugged-inaccessible=on "
        "-device ivshmem-plain,memdev=shmem0,master=on,addr=%x.0 "
        "-device ivshmem-plain,memdev=shmem1,master=on,addr=%x.0 "
        "-chardev socket,id=chr,path=%s "
        "-netdev vhost-user,id=net,chardev=chr,queues=%u "
        "-device virtio-net-pci,id=net0,netdev=net,addr=%x.0,mq=on,"
        "mac=52:54:00:12:34:56,rx_queue_size=%d %s %s 2>%s",
        config->machine ?: "pc", RAM_SIZE + vmem_size, shmem_size, shmem_size,
        vmem_size, VMEM_SLOT, (uint64_t)VMEM_ADDR, vmem_size, SHMEM_SLOT,
        SHMEM_SLOT + 1, socket, config->queues ?: 1, NET_SLOT, RING_ENTRIES,
        disk, config->args ?: "", vm->stderr_path);

    pc_alloc_init(&vm->alloc, vm->qts, 0);
    vm->pcibus = qpci_new_pc(vm->qts, &vm->alloc);
    for (i = 0; i < NB_SHMEMS; i++) {
        vm->shmem[i] = qpci_device_find(vm->pcibus,
                                        QPCI_DEVFN(SHMEM_SLOT + i, 0));
        g_assert_nonnull(vm->shmem[i]);
    }
    vm->mem = qvirtio_mem_pci_new(vm->pcibus, &mem_addr, &vm->alloc);
    vm->dev = virtio_pci_new(vm->pcibus, &net_addr);
    g_assert_nonnull(vm->dev);
    if (config->with_disk) {
        vm->disk = virtio_pci_new(vm->pcibus, &disk_addr);
        g_assert_nonnull(vm->disk);
    }
    return vm;
}

void vm_start(TestVM *vm)
{
    qvirtio_pci_device_enable(vm->dev);
    qvirtio_mem_pci_start(vm->mem);
}

TestVM *vm_new_with(const VMConfig *config)
{
    TestVM *vm = vm_boot(config);

    vm_start(vm);
    return vm;
}

TestVM *vm_new(unsigned int max_regions)
{
    return vm_new_with(&(VMConfig) { .max_regions = max_regions });
}

static void free_ring(TestVM *vm)
{
    if (vm->vq) {
        qvirtqueue_cleanup(vm->dev->vdev.bus, vm->vq, &vm->ring_alloc);
        alloc_destroy(&vm->ring_alloc);
        vm->vq = NULL;
    }
}

void vm_check(TestVM *vm)
{
    g_autofree char *error = qvhost_user_backend_error(vm->backend);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'query-status' }");
    g_assert_cmpstr(error, ==, NULL);
    if (vm->config.with_disk) {
        g_autofree char *disk_error =
            qvhost_user_backend_error(vm->disk_backend);

        g_assert_cmpstr(disk_error, ==, NULL);
    }
}

void vm_free(TestVM *vm)
{
    unsigned int i;

    vm_check(vm);
    free_ring(vm);
    qvirtio_mem_pci_free(vm->mem);
    qvirtio_pci_destructor(&vm->dev->obj);
    g_free(vm->dev);
    if (vm->disk_vq) {
        qvirtqueue_cleanup(vm->disk->vdev.bus, vm->disk_vq, &vm->alloc);
    }
    if (vm->disk) {
        qvirtio_pci_destructor(&vm->disk->obj);
        g_free(vm->disk);
    }
    for (i = 0; i < NB_SHMEMS; i++) {
        g_free(vm->shmem[i]);
    }
    qpci_free_pc(vm->pcibus);
    alloc_destroy(&vm->alloc);
    qtest_quit(vm->qts);
    qvhost_user_backend_free(vm->backend);
    qvhost_user_backend_free(vm->disk_backend);
    qhost_remove_dir(vm->tmpdir);
    g_free(vm->stderr_path);
    g_free(vm->tmpdir);
    g_free(vm);
}

bool vm_has_said(TestVM *vm, const char *text)
{
    g_autofree char *said = NULL;

    g_assert_true(g_file_get_contents(vm->stderr_path, &said, NULL, NULL));
    return strstr(said, text);
}

/* ---- Memory ---- */

void plug(TestVM *vm, uint64_t offset)
{
    g_assert_cmpint(qvirtio_mem_plug(&vm->mem->mem, VMEM_ADDR + offset, 1), ==,
                    VIRTIO_MEM_RESP_ACK);
}

void unplug(TestVM *vm, uint64_t offset)
{
    g_assert_cmpint(qvirtio_mem_unplug(&vm->mem->mem, VMEM_ADDR + offset, 1),
                    ==, VIRTIO_MEM_RESP_ACK);
}

void move_shmem(TestVM *vm, unsigned int i, uint64_t addr)
{
    QPCIDevice *dev = vm->shmem[i];

    if (addr == NOWHERE) {
        qpci_config_writew(dev, PCI_COMMAND, 0);
        return;
    }
    qpci_config_writel(dev, PCI_BASE_ADDRESS_2, addr);
    qpci_config_writel(dev, PCI_BASE_ADDRESS_3, addr >> 32);
    qpci_config_writew(dev, PCI_COMMAND, PCI_COMMAND_MEMORY);
}

/* ---- The driver of the network device ---- */

void start_driver_with(TestVM *vm, uint64_t ring, unsigned int queue)
{
    QVirtioDevice *vdev = &vm->dev->vdev;

    free_ring(vm);
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                               (1ull << VIRTIO_F_VERSION_1 |
                                1ull << VIRTIO_NET_F_CTRL_VQ |
                                1ull << VIRTIO_NET_F_MQ));
    alloc_init(&vm->ring_alloc, 0, ring, ring + RING_SIZE, PAGE);
    vm->vq = qvirtqueue_setup(vdev, &vm->ring_alloc, queue);
    g_assert_cmpuint(vm->vq->size, ==, RING_ENTRIES);
    g_assert_cmphex(vm->vq->used, ==, ring + USED_OFFSET);
    vm->kicks = qvhost_user_backend_nr_messages(vm->backend,
                                                VHOST_USER_SET_VRING_KICK);
    qvirtio_set_driver_ok(vdev);
}

void start_driver(TestVM *vm, uint64_t ring)
{
    start_driver_with(vm, ring, 0);
}

void wait_started(TestVM *vm)
{
    qvhost_user_backend_wait(vm->backend, VHOST_USER_SET_VRING_KICK,
                             vm->kicks + 1);
    g_assert_true(qvhost_user_backend_started(vm->backend));
}

void stop_driver(TestVM *vm)
{
    qvirtio_reset(&vm->dev->vdev);
    g_assert_false(qvhost_user_backend_started(vm->backend));
}

bool needs_reset(TestVM *vm)
{
    return vm->dev->vdev.bus->get_status(&vm->dev->vdev) &
           VIRTIO_CONFIG_S_NEEDS_RESET;
}

void check_works(TestVM *vm)
{
    start_driver(vm, guest_alloc(&vm->alloc, RING_SIZE));
    wait_started(vm);
    g_assert_false(needs_reset(vm));
    vm_check(vm);
}

void start_disk(TestVM *vm)
{
    QVirtioDevice *vdev = &vm->disk->vdev;

    qvirtio_pci_device_enable(vm->disk);
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                               (1ull << VIRTIO_F_VERSION_1));
    vm->disk_vq = qvirtqueue_setup(vdev, &vm->alloc, 0);
    qvirtio_set_driver_ok(vdev);
    qvhost_user_backend_wait(vm->disk_backend, VHOST_USER_SET_VRING_KICK, 1);
}
