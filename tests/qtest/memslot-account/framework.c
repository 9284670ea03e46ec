/*
 * Framework for tests of the memslot account: machines and memory devices
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "libqos/host.h"
#include "qobject/qdict.h"

#define ACPI_MEMHP_ADDR 0xa00
#define ACPI_MEMHP_SELECT 0x0
#define ACPI_MEMHP_CONTROL 0x14
#define ACPI_MEMHP_EJECT 0x8

#define ACPI_PCIHP_ADDR 0xae00
#define ACPI_PCIHP_EJECT 0x8

char *preload_path;

/* ---- Monitor ---- */

char *try_qmp(TestVM *vm, const char *fmt, ...)
{
    char *error = NULL;
    va_list ap;
    QDict *rsp;

    va_start(ap, fmt);
    rsp = qmonitor_vqmp(vm->mon, fmt, ap);
    va_end(ap);
    if (qdict_haskey(rsp, "error")) {
        error = g_strdup(qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"));
    }
    qobject_unref(rsp);
    return error;
}

void qmp_succeeds(TestVM *vm, const char *fmt, ...)
{
    va_list ap;
    QDict *rsp;

    va_start(ap, fmt);
    rsp = qmonitor_vqmp(vm->mon, fmt, ap);
    va_end(ap);
    if (!qdict_haskey(rsp, "return")) {
        g_error("%s: %s", fmt,
                qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"));
    }
    qobject_unref(rsp);
}

void run_hmp(TestVM *vm, const char *fmt, ...)
{
    g_autofree char *command = NULL;
    g_autofree char *output = NULL;
    va_list ap;

    va_start(ap, fmt);
    command = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    output = qmonitor_hmp(vm->mon, command);
    g_assert_cmpstr(output, ==, "");
}

static const char *on_off(bool on)
{
    return on ? "on" : "off";
}

/* Show what QEMU had to say, if it might have to do with the failure. */
static void clean_up_on_abort(void *path)
{
    g_autofree char *stderr_path = g_build_filename(path, "stderr", NULL);
    g_autofree char *text = NULL;

    if (g_file_get_contents(stderr_path, &text, NULL, NULL)) {
        fputs(text, stderr);
    }
    qhost_remove_dir(path);
}

/*
 * Vhost devices are started only while the VM runs, and KVM has nothing but
 * vCPUs to run. This firmware has them halt, for ever.
 */
static void write_firmware(const char *path)
{
    /* cli; hlt; jmp to the hlt */
    static const uint8_t code[] = { 0xfa, 0xf4, 0xeb, 0xfd };
    const size_t size = 64 * KiB, reset_vector = size - 16;
    g_autofree uint8_t *rom = g_malloc0(size);

    memcpy(rom + reset_vector, code, sizeof(code));
    g_assert_true(g_file_set_contents(path, (char *)rom, size, NULL));
}

char *vm_file(const TestVM *vm, const char *name)
{
    return g_build_filename(vm->tmpdir, name, NULL);
}

char *vm_vnew_id(TestVM *vm, const char *prefix)
{
    return g_strdup_printf("%s%u", prefix, vm->last_id++);
}

static QOSState *G_GNUC_PRINTF(1, 2) boot_pc(const char *fmt, ...)
{
    QOSState *qs;
    va_list ap;

    va_start(ap, fmt);
    qs = qtest_pc_vboot(fmt, ap);
    va_end(ap);
    return qs;
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

/*
 * Refusals are explained to users on stderr, too, which would be confusing to
 * those that run this test.
 */
static char *vm_cmdline(const TestVM *vm)
{
    g_autofree char *stderr_path = vm_file(vm, "stderr");
    g_autofree char *bios = vm_file(vm, "bios");
    g_autofree char *mon = vm_file(vm, "mon");

    return g_strdup_printf("-nodefaults %s -bios %s"
                           " -chardev socket,id=mon,path=%s,server=on,wait=off"
                           " -mon chardev=mon,mode=control"
                           " -m %" PRIu64 "B,slots=64,maxmem=%" PRIu64 "B"
                           " -device memslot-testdev,id=testdev0,addr=%" PRIu64
                           " -device memslot-testdev,id=testdev1,addr=%" PRIu64
                           ",share=on"
                           " -device memslot-testdev,id=inner,addr=%" PRIu64
                           ",share=on %s 2>>%s",
                           vm->kvm ? "-accel kvm" : "", bios, mon,
                           (uint64_t)BOOT_RAM_SIZE,
                           BOOT_RAM_SIZE + vm->device_memory_size,
                           (uint64_t)TESTDEV_ADDR,
                           (uint64_t)SHARED_TESTDEV_ADDR, vm->inner_addr,
                           vm->args->str, stderr_path);
}

void vm_boot(TestVM *vm)
{
    g_autofree char *args = vm_cmdline(vm);
    g_autofree char *path = vm_file(vm, "mon");
    g_autofree char *limit = g_strdup_printf("%u", vm->preload_limit);
    char *others = NULL;

    if (vm->preload_limit) {
        g_setenv("KVM_PRELOAD_NR_MEMSLOTS", limit, true);
        others = qhost_preload_begin(preload_path);
    }
    vm->qs = boot_pc("%s", args);
    if (vm->preload_limit) {
        qhost_preload_end(others);
        g_unsetenv("KVM_PRELOAD_NR_MEMSLOTS");
    }
    vm->qts = vm->qs->qts;
    vm->mon = qmonitor_new(path);
}

static void vm_shutdown(TestVM *vm)
{
    qmonitor_free(vm->mon);
    qtest_shutdown(vm->qs);
    vm->qs = NULL;
}

TestVM *vm_new(const TestCase *test, uint64_t device_memory_size,
               const char *fmt, ...)
{
    TestVM *vm = g_new0(TestVM, 1);
    g_autofree char *bios = NULL;
    va_list ap;

    vm->kvm = test->kvm;
    vm->preload_limit = test->kvm_limit;
    vm->cold = test->cold;
    vm->device_memory_size = device_memory_size;
    /* Not taken: QEMU leaves room for alignment. */
    vm->inner_addr = DEVICE_MEMORY_BASE + device_memory_size;
    vm->tmpdir = g_dir_make_tmp("memslot-account-test.XXXXXX", NULL);
    g_assert_nonnull(vm->tmpdir);
    qtest_add_abrt_handler(clean_up_on_abort, vm->tmpdir);
    bios = vm_file(vm, "bios");
    write_firmware(bios);

    vm->args = g_string_new(NULL);
    va_start(ap, fmt);
    g_string_append_vprintf(vm->args, fmt, ap);
    va_end(ap);
    vm->mems = g_ptr_array_new_with_free_func((GDestroyNotify)mem_free);
    vm->backends = g_ptr_array_new();
    vm->killed = g_ptr_array_new();

    /* The model has to know now, the machine is not there before it starts. */
    vm_boot(vm);
    vm_measure(vm);
    if (vm->cold) {
        vm_shutdown(vm);
    }
    return vm;
}

TestVM *vm_new_default(const TestCase *test, uint64_t device_memory_size)
{
    return vm_new(test, device_memory_size, SHARED_BOOT_MEMORY);
}

static unsigned int take_slot(bool *used, unsigned int first, unsigned int last)
{
    while (used[first]) {
        first++;
    }
    g_assert_cmpuint(first, <=, last);
    used[first] = true;
    return first;
}

unsigned int take_pci_slot(TestVM *vm)
{
    return take_slot(vm->pci_slot_used, PCI_FIRST_SLOT, PCI_LAST_SLOT);
}

char *try_device_add(TestVM *vm, const char *args)
{
    g_auto(GStrv) words = g_strsplit(args, ",", -1);
    QDict *dict = qdict_new();
    unsigned int i;

    qdict_put_str(dict, "driver", words[0]);
    for (i = 1; words[i]; i++) {
        g_auto(GStrv) pair = g_strsplit(words[i], "=", 2);

        qdict_put_str(dict, pair[0], pair[1]);
    }
    return try_qmp(vm, "{ 'execute': 'device_add', 'arguments': %p }", dict);
}

void wait_device_deleted(TestVM *vm, const char *id)
{
    bool found = false;

    while (!found) {
        QDict *event = qtest_qmp_eventwait_ref(vm->qts, "DEVICE_DELETED");
        const QDict *data = qdict_get_qdict(event, "data");

        found = g_str_equal(qdict_get_try_str(data, "device") ?: "", id);
        qobject_unref(event);
    }
}

char *mem_device_args(const Mem *mem)
{
    const MemConfig *config = &mem->config;

    switch (config->kind) {
    case DIMM:
    case NVDIMM:
        return g_strdup_printf("%s,id=%s,memdev=%s,slot=%u,node=%u",
                               config->kind == DIMM ? "pc-dimm" : "nvdimm",
                               mem->id, mem->memdev, mem->pci_slot,
                               config->node);
    case PMEM:
        return g_strdup_printf("virtio-pmem-pci,id=%s,memdev=%s,addr=%x.0",
                               mem->id, mem->memdev, mem->pci_slot);
    case VMEM:
        return g_strdup_printf("virtio-mem-pci,id=%s,memdev=%s,addr=%x.0,"
                               "node=%u,multiple-memslots=%s,"
                               "unplugged-inaccessible=%s,requested-size=%"
                               PRIu64, mem->id, mem->memdev, mem->pci_slot,
                               config->node, on_off(config->multiple),
                               on_off(config->inaccessible),
                               config->requested_size);
    default:
        g_assert_not_reached();
    }
}

void mem_start(TestVM *vm, Mem *mem)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(mem->pci_slot, 0) };
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

static void release_slot(TestVM *vm, const Mem *mem)
{
    if (mem->config.kind == DIMM || mem->config.kind == NVDIMM) {
        vm->dimm_slot_used[mem->pci_slot] = false;
    } else {
        vm->pci_slot_used[mem->pci_slot] = false;
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
    mem->pci_slot = config->kind == DIMM || config->kind == NVDIMM ?
                    take_slot(vm->dimm_slot_used, 0, 63) : take_pci_slot(vm);
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

char *mem_object_args(const Mem *mem)
{
    return g_strdup_printf("%s,id=%s,size=%" PRIu64 ",reserve=off",
                           mem->config.shared ? "memory-backend-memfd"
                                              : "memory-backend-ram",
                           mem->memdev, mem->config.size);
}

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

void vm_remove_memdev(TestVM *vm, const char *memdev)
{
    run_hmp(vm, "object_del %s", memdev);
}

static void remove_mem(TestVM *vm, Mem *mem)
{
    wait_device_deleted(vm, mem->id);
    release_slot(vm, mem);
    g_assert_true(g_ptr_array_remove(vm->mems, mem));
}

void vm_remove_dimm(TestVM *vm, Mem *mem)
{
    g_autofree char *memdev = g_strdup(mem->memdev);

    g_assert_cmpint(mem->config.kind, ==, DIMM);
    qtest_qmp_device_del_send(vm->qts, mem->id);
    vm_check(vm);
    qtest_outl(vm->qts, ACPI_MEMHP_ADDR + ACPI_MEMHP_SELECT, mem->pci_slot);
    qtest_outb(vm->qts, ACPI_MEMHP_ADDR + ACPI_MEMHP_CONTROL,
               ACPI_MEMHP_EJECT);
    remove_mem(vm, mem);
    vm_remove_memdev(vm, memdev);
    vm_check(vm);
}

void eject_pci_device(TestVM *vm, unsigned int slot)
{
    qtest_outl(vm->qts, ACPI_PCIHP_ADDR + ACPI_PCIHP_EJECT, 1 << slot);
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
    eject_pci_device(vm, mem->pci_slot);
    remove_mem(vm, mem);
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

void vm_start(TestVM *vm)
{
    Backend *backend;
    Mem *mem;

    if (vm->qs) {
        return;
    }
    vm_boot(vm);
    for_each_mem(mem, vm) {
        mem_start(vm, mem);
    }
    for_each_backend(backend, vm) {
        /* One that would be shown nothing would not start. */
        if (vm_holder(vm, backend).used) {
            backend_start(vm, backend);
        }
    }
    vm_check(vm);
}

void vm_stop(TestVM *vm)
{
    Backend *backend;

    while (vm->killed->len) {
        g_ptr_array_add(vm->backends,
                        g_ptr_array_remove_index(vm->killed, 0));
    }
    for_each_backend(backend, vm) {
        backend_free_driver(vm, backend);
    }
    g_ptr_array_unref(vm->mems);
    vm_shutdown(vm);
    for_each_backend(backend, vm) {
        backend_free(vm, backend);
    }
    g_ptr_array_unref(vm->backends);
    g_ptr_array_unref(vm->killed);
    qtest_remove_abrt_handler(vm->tmpdir);
    qhost_remove_dir(vm->tmpdir);
    g_free(vm->tmpdir);
    g_string_free(vm->args, true);
    g_free(vm);
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
    for (i = vm->mems->len; i > 0; i--) {
        Mem *mem = g_ptr_array_index(vm->mems, i - 1);

        if (mem->unplug_requested) {
            remove_mem(vm, mem);
        }
    }
    qtest_qmp_eventwait(vm->qts, "RESET");
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

void set_testdev_count(TestVM *vm, bool shared, unsigned int count)
{
    run_hmp(vm, "qom-set /machine/peripheral/testdev%u count %u", shared,
            count);
    vm->testdev_count[shared] = count;
    vm_check(vm);
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

unsigned int vm_nr_warnings(const TestVM *vm, const char *text)
{
    g_autofree char *path = vm_file(vm, "stderr");
    g_autofree char *output = NULL;
    unsigned int count = 0;
    const char *pos;

    g_assert_true(g_file_get_contents(path, &output, NULL, NULL));
    for (pos = strstr(output, text); pos; pos = strstr(pos + 1, text)) {
        count++;
    }
    return count;
}

void check_start_fails(TestVM *vm, const char *expected)
{
    g_autofree char *args = vm_cmdline(vm);
    g_autofree char *command =
        /* The last device has QEMU not run for ever if it should start. */
        g_strdup_printf("exec %s -display none %s %s -device none-of-these",
                        g_getenv("QTEST_QEMU_BINARY"),
                        vm->kvm ? "" : "-accel qtest", args);
    char *argv[] = { (char *)"/bin/sh", (char *)"-c", command, NULL };
    g_autoptr(GError) error = NULL;
    int status;

    g_assert_true(g_spawn_sync(NULL, argv, NULL, 0, NULL, NULL, NULL, NULL,
                               &status, &error));
    g_assert_no_error(error);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, EXIT_FAILURE);
    g_assert_cmpuint(vm_nr_warnings(vm, expected), >=, 1);
}

/* ---- The table of tests ---- */

static void run_test(const void *data)
{
    const TestCase *test = data;

    test->fn(test);
}

static void add_test(const TestGroup *group, bool kvm, bool cold,
                     unsigned int index)
{
    g_autofree char *suffix = group->times ? g_strdup_printf("/%u", index) :
                              g_strdup(!group->cold ? "" :
                                       cold ? "/cold" : "/hot");
    g_autofree char *path =
        g_strdup_printf("memslot-account/%s/%s%s", kvm ? "kvm" : "qtest",
                        group->name, suffix);
    TestCase *test = g_new(TestCase, 1);

    *test = (TestCase) {
        .kvm = kvm,
        .kvm_limit = group->kvm_limit,
        .cold = cold,
        .index = index,
        .fn = group->fn,
    };
    qtest_add_data_func_full(path, test, run_test, g_free);
}

void add_test_groups(const TestGroup *groups, unsigned int count, bool kvm)
{
    unsigned int i, j;

    for (i = 0; i < count; i++) {
        const TestGroup *group = &groups[i];

        if (group->kvm_limit && (!kvm || !preload_path)) {
            continue;
        }
        for (j = 0; j < MAX(group->times, 1); j++) {
            add_test(group, kvm, false, j);
        }
        if (group->cold) {
            add_test(group, kvm, true, 0);
        }
    }
}
