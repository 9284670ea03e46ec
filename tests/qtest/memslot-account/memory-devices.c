/*
 * Framework for tests of the memslot account: memory devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "qobject/qdict.h"

#define ACPI_MEMHP_ADDR 0xa00
#define ACPI_MEMHP_SELECT 0x0
#define ACPI_MEMHP_CONTROL 0x14
#define ACPI_MEMHP_EJECT 0x8

/* ---- Arguments for QEMU ---- */

static const char *on_off(bool on)
{
    return on ? "on" : "off";
}

char *mem_object_args(const Mem *mem)
{
    return g_strdup_printf("%s,id=%s,size=%" PRIu64 ",reserve=off",
                           mem->config.shared ? "memory-backend-memfd"
                                              : "memory-backend-ram",
                           mem->memdev, mem->config.size);
}

char *mem_device_args(const Mem *mem)
{
    const MemConfig *config = &mem->config;

    switch (config->kind) {
    case DIMM:
    case NVDIMM:
        return g_strdup_printf("%s,id=%s,memdev=%s,slot=%u,node=%u",
                               config->kind == DIMM ? "pc-dimm" : "nvdimm",
                               mem->id, mem->memdev, mem->slot,
                               config->node);
    case PMEM:
        return g_strdup_printf("virtio-pmem-pci,id=%s,memdev=%s,addr=%x.0",
                               mem->id, mem->memdev, mem->slot);
    case VMEM:
        return g_strdup_printf("virtio-mem-pci,id=%s,memdev=%s,addr=%x.0,"
                               "node=%u,multiple-memslots=%s,"
                               "unplugged-inaccessible=%s,requested-size=%"
                               PRIu64, mem->id, mem->memdev, mem->slot,
                               config->node, on_off(config->multiple),
                               on_off(config->inaccessible),
                               config->requested_size);
    default:
        g_assert_not_reached();
    }
}

/* ---- One device ---- */

static bool is_dimm(MemKind kind)
{
    return kind == DIMM || kind == NVDIMM;
}

static void release_slot(TestVM *vm, const Mem *mem)
{
    if (is_dimm(mem->config.kind)) {
        vm->dimm_slot_used[mem->slot] = false;
    } else {
        vm->pci_slot_used[mem->slot] = false;
    }
}

static Mem *mem_new_with(TestVM *vm, const MemConfig *config,
                         const char *memdev)
{
    Mem *mem = g_new0(Mem, 1);

    mem->config = *config;
    mem->id = vm_vnew_id(vm, "mem");
    mem->memdev = memdev ? g_strdup(memdev) :
                  g_strdup_printf("ram-%s", mem->id);
    mem->slot = is_dimm(config->kind) ? take_dimm_slot(vm) : take_pci_slot(vm);
    mem->required = 1;
    mem->block_size = 2 * MiB;
    mem->requested_size = config->requested_size;
    mem->usable_size = usable_size_for(mem, config->requested_size);
    if (config->kind == VMEM) {
        mem->plugged = g_new0(bool, nr_blocks(mem));
        model_divide(vm, mem);
    }
    return mem;
}

Mem *mem_new(TestVM *vm, const MemConfig *config)
{
    return mem_new_with(vm, config, NULL);
}

void mem_free(Mem *mem)
{
    qvirtio_mem_pci_free(mem->pci);
    g_free(mem->id);
    g_free(mem->memdev);
    g_free(mem->plugged);
    memslot_plan_free(mem->plan);
    g_free(mem);
}

static QVirtioMEM *mem_driver(Mem *mem)
{
    return &mem->pci->mem;
}

#define read_config(mem, field)                                            \
    qvirtio_config_readq(mem_driver(mem)->vdev,                            \
                         offsetof(struct virtio_mem_config, field))

static void check_sizes(Mem *mem)
{
    g_assert_cmphex(read_config(mem, plugged_size), ==, plugged_size(mem));
    g_assert_cmphex(read_config(mem, requested_size), ==, mem->requested_size);
    g_assert_cmphex(read_config(mem, usable_region_size), ==,
                    mem->usable_size);
}

void mem_start(TestVM *vm, Mem *mem)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(mem->slot, 0) };
    struct virtio_mem_config shown;

    if (mem->config.kind != VMEM) {
        return;
    }
    mem->pci = qvirtio_mem_pci_new(vm->qs->pcibus, &addr, &vm->qs->alloc);
    qvirtio_mem_pci_start(mem->pci);
    qvirtio_mem_read_config(&mem->pci->mem, &shown);
    g_assert_cmphex(shown.region_size, ==, mem->config.size);
    g_assert_cmphex(shown.usable_region_size, ==, mem->usable_size);
    g_assert_cmphex(shown.block_size, ==, mem->block_size);
    mem->addr = shown.addr;
}

/* ---- Steps: plug and unplug devices ---- */

/* Returns @mem; or NULL if QEMU refuses it, and should. */
static Mem *plug_mem(TestVM *vm, Mem *mem)
{
    g_autofree char *device = mem_device_args(mem);
    g_autofree char *expected = model_check_mem(vm, mem->config.shared,
                                                mem->id);
    const unsigned int messages = vm_nr_messages(vm);
    g_autofree char *error = try_device_add(vm, device);

    g_assert_cmpstr(error, ==, expected);
    if (error || !mem->config.shared) {
        g_assert_cmpuint(vm_nr_messages(vm), ==, messages);
    }
    if (error) {
        release_slot(vm, mem);
        mem_free(mem);
        mem = NULL;
    } else {
        g_ptr_array_add(vm->mems, mem);
        mem_start(vm, mem);
    }
    vm_check(vm);
    return mem;
}

static void add_mem_to_command_line(TestVM *vm, Mem *mem)
{
    g_autofree char *object = mem_object_args(mem);
    g_autofree char *device = mem_device_args(mem);

    g_assert_null(model_check_mem(vm, mem->config.shared, mem->id));
    g_string_append_printf(vm->args, " -object %s -device %s", object, device);
    g_ptr_array_add(vm->mems, mem);
}

Mem *vm_add_mem(TestVM *vm, const MemConfig *config)
{
    Mem *mem = mem_new(vm, config);
    g_autofree char *object = mem_object_args(mem);
    g_autofree char *memdev = g_strdup(mem->memdev);

    if (!vm->qs) {
        add_mem_to_command_line(vm, mem);
        return mem;
    }
    run_hmp(vm, "object_add %s", object);
    mem = plug_mem(vm, mem);
    if (!mem) {
        vm_remove_memdev(vm, memdev);
    }
    return mem;
}

Mem *vm_add_mem_with(TestVM *vm, const MemConfig *config, const char *memdev)
{
    return plug_mem(vm, mem_new_with(vm, config, memdev));
}

void assert_refused(TestVM *vm, const MemConfig *config, const char *reason)
{
    g_autofree char *expected = !reason ? NULL :
        g_strdup_printf("not enough memslots for memory device 'mem%u': %s",
                        vm->last_id, reason);
    g_autofree char *error = model_check_mem(vm, config->shared, "mem?");
    g_autofree char *id = g_strdup_printf("'mem%u'", vm->last_id);
    g_auto(GStrv) parts = NULL;
    g_autofree char *predicted = NULL;

    g_assert_nonnull(error);
    parts = g_strsplit(error, "'mem?'", 2);
    predicted = g_strjoinv(id, parts);
    if (expected) {
        g_assert_cmpstr(predicted, ==, expected);
    }
    g_assert_null(vm_add_mem(vm, config));
}

void vm_remove_memdev(TestVM *vm, const char *memdev)
{
    run_hmp(vm, "object_del %s", memdev);
}

/* The device is gone. */
static void forget_mem(TestVM *vm, Mem *mem)
{
    release_slot(vm, mem);
    g_assert_true(g_ptr_array_remove(vm->mems, mem));
}

void vm_remove_dimm_unchecked(TestVM *vm, Mem *mem)
{
    g_autofree char *memdev = g_strdup(mem->memdev);

    g_assert_cmpint(mem->config.kind, ==, DIMM);
    qtest_qmp_device_del_send(vm->qts, mem->id);
    vm_check(vm);
    qtest_outl(vm->qts, ACPI_MEMHP_ADDR + ACPI_MEMHP_SELECT, mem->slot);
    qtest_outb(vm->qts, ACPI_MEMHP_ADDR + ACPI_MEMHP_CONTROL,
               ACPI_MEMHP_EJECT);
    wait_device_deleted(vm, mem->id);
    forget_mem(vm, mem);
    vm_remove_memdev(vm, memdev);
}

void vm_remove_dimm(TestVM *vm, Mem *mem)
{
    vm_remove_dimm_unchecked(vm, mem);
    vm_check(vm);
}

bool vm_request_unplug(TestVM *vm, Mem *mem)
{
    const char *expected = model_check_unplug(mem);
    g_autofree char *error =
        try_qmp(vm, "{ 'execute': 'device_del', 'arguments': { 'id': %s } }",
                mem->id);

    g_assert_cmpstr(error, ==, expected);
    mem->unplug_requested = !error;
    /* It is still there, and so is what it was promised. */
    vm_check(vm);
    return !error;
}

void vm_finish_unplug(TestVM *vm, Mem *mem)
{
    eject_pci_device(vm, mem->slot);
    wait_device_deleted(vm, mem->id);
    forget_mem(vm, mem);
    vm_check(vm);
}

bool vm_unplug_vmem(TestVM *vm, Mem *mem)
{
    if (!vm_request_unplug(vm, mem)) {
        return false;
    }
    vm_finish_unplug(vm, mem);
    return true;
}

/* ---- Steps: requests of the guest, and of the administrator ---- */

uint16_t plug(TestVM *vm, Mem *mem, uint64_t offset, uint64_t size)
{
    const uint64_t first = offset / mem->block_size;
    const uint64_t count = size / mem->block_size;
    const uint16_t expected = model_plug(vm, mem, first, count);
    const uint16_t resp = qvirtio_mem_plug(mem_driver(mem), mem->addr + offset,
                                           count);

    g_assert_cmpint(resp, ==, expected);
    check_sizes(mem);
    vm_check(vm);
    return resp;
}

uint16_t unplug(TestVM *vm, Mem *mem, uint64_t offset, uint64_t size)
{
    const uint64_t first = offset / mem->block_size;
    const uint64_t count = size / mem->block_size;
    const uint16_t resp = qvirtio_mem_unplug(mem_driver(mem),
                                             mem->addr + offset, count);

    if (count_plugged(mem, first, count) == count) {
        g_assert_cmpint(resp, ==, VIRTIO_MEM_RESP_ACK);
        set_plugged(mem, first, count, false);
    } else {
        g_assert_cmpint(resp, ==, VIRTIO_MEM_RESP_ERROR);
    }
    check_sizes(mem);
    vm_check(vm);
    return resp;
}

void unplug_all(TestVM *vm, Mem *mem)
{
    g_assert_cmpint(qvirtio_mem_unplug_all(mem_driver(mem)), ==,
                    VIRTIO_MEM_RESP_ACK);
    set_plugged(mem, 0, nr_blocks(mem), false);
    mem->usable_size = usable_size_for(mem, mem->requested_size);
    check_sizes(mem);
    vm_check(vm);
}

bool request_size(TestVM *vm, Mem *mem, uint64_t size)
{
    g_autofree char *path = g_strdup_printf("/machine/peripheral/%s", mem->id);
    g_autofree char *reason = model_request_size(vm, mem, size);
    g_autofree char *expected =
        reason ? g_strdup_printf("'requested-size' cannot be set to 0x%" PRIx64
                                 " now: %s", size, reason) : NULL;
    g_autofree char *error =
        try_qmp(vm, "{ 'execute': 'qom-set', 'arguments': { 'path': %s,"
                " 'property': 'requested-size', 'value': %" PRIu64 " } }",
                path, size);

    g_assert_cmpstr(error, ==, expected);
    check_sizes(mem);
    vm_check(vm);
    return !error;
}

static Mem *find_unplug_requested(const TestVM *vm)
{
    Mem *mem;

    for_each_mem(mem, vm) {
        if (mem->unplug_requested) {
            return mem;
        }
    }
    return NULL;
}

/* Devices that were asked for are deleted then, before the event or after it */
static void wait_reset(TestVM *vm)
{
    bool reset = false;

    while (!reset || find_unplug_requested(vm)) {
        QDict *event = qtest_qmp_receive_dict(vm->qts);
        const char *name = qdict_get_try_str(event, "event");
        Mem *mem = find_unplug_requested(vm);

        if (!g_strcmp0(name, "RESET")) {
            reset = true;
        } else if (mem && !g_strcmp0(name, "DEVICE_DELETED") &&
                   !g_strcmp0(qdict_get_try_str(qdict_get_qdict(event, "data"),
                                                "device"), mem->id)) {
            forget_mem(vm, mem);
        }
        qobject_unref(event);
    }
}

void vm_reset(TestVM *vm)
{
    Backend *backend;
    unsigned int i;

    for_each_backend(backend, vm) {
        backend_free_driver(vm, backend);
        backend_forget(backend);
        backend->started = false;
    }
    qmp_succeeds(vm, "{ 'execute': 'system_reset' }");
    wait_reset(vm);
    for (i = 0; i < vm->mems->len; i++) {
        Mem *mem = g_ptr_array_index(vm->mems, i);

        if (mem->config.kind == VMEM) {
            set_plugged(mem, 0, nr_blocks(mem), false);
            mem->usable_size = usable_size_for(mem, mem->requested_size);
            qvirtio_mem_pci_start(mem->pci);
            check_sizes(mem);
        }
    }
    vm_check(vm);
}
