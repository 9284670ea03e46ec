/*
 * Virtual machines with virtio-mem devices, for tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "libqos/host.h"
#include "libqos/libqos-arm-virt.h"
#include "libqos/libqos-pc.h"
#include "qobject/qdict.h"
#include "checks.h"
#include "failures.h"
#include "framework.h"

static const Arch archs[] = {
    {
        .name = "x86_64",
        .machine = "pc",
        .cpu = "",
        /* The default of 40 is not enough for 1 TiB. */
        .large_cpu = "-cpu qemu64,phys-bits=42",
        .vboot = qtest_pc_vboot,
        .usable_extent = 256 * MiB,
        .has_legacy_guests = true,
        .is_pc = true,
        .other_ram = 64 * MiB,
    }, {
        .name = "aarch64",
        .machine = "virt",
        .cpu = "-cpu max",
        .large_cpu = "-cpu max",
        .vboot = qtest_arm_virt_vboot,
        .usable_extent = 1 * GiB,
        .other_ram = 192 * MiB,
    },
};

const Arch *arch;

Model *vm_model(TestVM *vm, unsigned int i)
{
    g_assert_cmpuint(i, <, vm->nb_devices);
    return &vm->devices[i].model;
}

QVirtioMEM *vm_mem(TestVM *vm, unsigned int i)
{
    g_assert_cmpuint(i, <, vm->nb_devices);
    return &vm->devices[i].pci->mem;
}

char *create_tmpdir(void)
{
    /* Files on tmpfs are memory; elsewhere, they merely behave the same. */
    const char *parent = g_file_test("/dev/shm", G_FILE_TEST_IS_DIR) ?
                         "/dev/shm" : g_get_tmp_dir();
    char *path = g_strdup_printf("%s/virtio-mem-test.XXXXXX", parent);

    g_assert_nonnull(g_mkdtemp(path));
    return path;
}

char *backend_args(const char *tmpdir, unsigned int i,
                          const DeviceConfig *config)
{
    g_autofree char *mem_path =
        g_str_has_prefix(config->backend, "memory-backend-file") &&
        !strstr(config->backend, "mem-path=") ?
        g_strdup_printf(",mem-path=%s/mem%u", config->mem_dir ?: tmpdir, i) :
        g_strdup("");

    return g_strdup_printf("%s%s,id=mem%u,size=%" PRIu64, config->backend,
                           mem_path, i, config->size);
}

char *device_args(unsigned int i, const DeviceConfig *config)
{
    GString *args = g_string_new(NULL);

    g_string_printf(args, "virtio-mem-pci,id=vm%u,memdev=mem%u,addr=%02x.0",
                    i, i, 4 + i);
    if (config->multiple_memslots) {
        g_string_append_printf(args, ",%s=on", config->memslots_prop ?:
                                               "multiple-memslots");
    }
    if (config->memslot_min_size) {
        g_string_append_printf(args, ",memslot-min-size=%" PRIu64,
                               config->memslot_min_size);
    }
    /* Where there never was another way, there is nothing to choose. */
    if (config->unplugged_inaccessible && arch->has_legacy_guests) {
        g_string_append_printf(args, ",unplugged-inaccessible=%s",
                               config->unplugged_inaccessible);
    }
    if (config->block_size) {
        g_string_append_printf(args, ",block-size=%" PRIu64,
                               config->block_size);
    }
    if (config->requested_size) {
        g_string_append_printf(args, ",requested-size=%" PRIu64,
                               config->requested_size);
    }
    if (config->late_migration) {
        g_string_append(args, ",x-early-migration=off");
    }
    if (config->extra_props) {
        g_string_append_printf(args, ",%s", config->extra_props);
    }
    return g_string_free(args, false);
}

void device_init(TestVM *vm, unsigned int i, const DeviceConfig *config)
{
    Device *dev = &vm->devices[i];
    QPCIAddress addr = { .devfn = QPCI_DEVFN(4 + i, 0) };
    struct virtio_mem_config shown;
    uint64_t slot;

    dev->memdev = g_strdup_printf("mem%u", i);
    dev->qom_path = g_strdup_printf("/machine/peripheral/vm%u", i);
    dev->pci = qvirtio_mem_pci_new(vm->qs->pcibus, &addr, &vm->qs->alloc);
    qvirtio_mem_pci_start(dev->pci);

    /* The machine chooses the address and the backend the block size. */
    qvirtio_mem_read_config(&dev->pci->mem, &shown);
    dev->model = (Model) {
        .addr = shown.addr,
        .region_size = config->size,
        .block_size = config->block_size ?: shown.block_size,
        .usable_extent = arch->usable_extent,
        .unplugged_inaccessible = config->expect_inaccessible,
        .plugged = g_new0(bool, config->size / shown.block_size),
    };
    if (config->multiple_memslots) {
        model_divide(&dev->model, config->memslot_budget ?: 256,
                     config->memslot_min_size ?: 1 * GiB);
        g_assert_cmphex(model_memslot_size(&dev->model, 0), ==,
                        MIN(config->first_memslot_size, config->size));
    }
    model_request_size(&dev->model, config->requested_size);
    vm->nb_devices = MAX(vm->nb_devices, i + 1);

    dev->was_mapped = g_array_new(false, true, sizeof(bool));
    g_array_set_size(dev->was_mapped, model_nb_memslots(&dev->model));
    for (slot = 0; slot < model_nb_memslots(&dev->model); slot++) {
        g_array_index(dev->was_mapped, bool, slot) =
            model_memslot_mapped(&dev->model, slot);
    }
}

void device_cleanup(Device *dev)
{
    qvirtio_mem_pci_free(dev->pci);
    g_free(dev->memdev);
    g_free(dev->qom_path);
    model_cleanup(&dev->model);
    g_array_unref(dev->was_mapped);
}

static bool vm_kvm_enabled(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-kvm' }");
    bool enabled = qdict_get_bool(qdict_get_qdict(rsp, "return"), "enabled");

    qobject_unref(rsp);
    return enabled;
}

static QOSState *G_GNUC_PRINTF(1, 2) boot(const char *fmt, ...)
{
    QOSState *qs;
    va_list ap;

    va_start(ap, fmt);
    qs = arch->vboot(fmt, ap);
    va_end(ap);
    return qs;
}

/* Show what QEMU had to say, it might have to do with the failure. */
static void clean_up_on_abort(void *opaque)
{
    TestVM *vm = opaque;
    g_autofree char *text = NULL;

    if (g_file_get_contents(vm->stderr_path, &text, NULL, NULL)) {
        fputs(text, stderr);
    }
    qhost_remove_dir(vm->tmpdir);
}

TestVM *vm_new(const TestCase *test)
{
    TestVM *vm = g_new0(TestVM, 1);

    vm->kvm = test->kvm;
    vm->machine = test->machine ?: arch->machine;
    vm->tmpdir = create_tmpdir();
    vm->hmp_path = g_build_filename(vm->tmpdir, "hmp", NULL);
    vm->log_path = g_build_filename(vm->tmpdir, "log", NULL);
    vm->stderr_path = g_build_filename(vm->tmpdir, "stderr", NULL);
    vm->memory_fail_path = g_build_filename(vm->tmpdir, "memory-fail", NULL);
    vm->kvm_fail_path = g_build_filename(vm->tmpdir, "kvm-fail", NULL);
    qtest_add_abrt_handler(clean_up_on_abort, vm);
    return vm;
}

void vm_boot(TestVM *vm, uint64_t device_memory_size, const char *args)
{
    char *others = failures_preload_begin(vm);

    vm->qs = boot("-S -nodefaults -machine %s %s %s"
                  " -chardev socket,id=hmp,path=%s,server=on,wait=off"
                  " -mon chardev=hmp,mode=readline"
                  " -D %s -trace flatview_new"
                  " -trace memslot_set_map -trace memslot_set_unmap %s"
                  " -m %" PRIu64 "B,maxmem=%" PRIu64 "B %s 2>>%s",
                  vm->machine, vm->kvm ? "-accel kvm" : "",
                  device_memory_size >= 1 * TiB ? arch->large_cpu : arch->cpu,
                  vm->hmp_path, vm->log_path,
                  vm->kvm ? "-trace kvm_set_user_memory" : "",
                  (uint64_t)BOOT_RAM_SIZE,
                  BOOT_RAM_SIZE + device_memory_size, args, vm->stderr_path);
    failures_preload_end(others);
    vm->qts = vm->qs->qts;
    g_assert_cmpint(vm_kvm_enabled(vm), ==, vm->kvm);

    hmp_connect(vm);
    vm->log = fopen(vm->log_path, "r");
    g_assert_nonnull(vm->log);
    vm_skip_changes(vm);
    if (!vm->traced) {
        g_test_message("QEMU was built without the log backend for trace"
                       " events: not looking at single changes");
    }
}

TestVM *vm_start_with(const TestCase *test, const DeviceConfig *configs,
                             unsigned int nb_devices, const char *extra_args)
{
    g_autoptr(GString) args = g_string_new(extra_args);
    TestVM *vm = vm_new(test);
    uint64_t size = 0;
    unsigned int i;

    for (i = 0; i < nb_devices; i++) {
        g_autofree char *backend = backend_args(vm->tmpdir, i, &configs[i]);
        g_autofree char *device = device_args(i, &configs[i]);

        g_string_append_printf(args, " -object %s -device %s", backend, device);
        size += configs[i].size;
    }

    vm_boot(vm, size, args->str);
    for (i = 0; i < nb_devices; i++) {
        device_init(vm, i, &configs[i]);
    }
    vm_check(vm);
    return vm;
}

TestVM *vm_start(const TestCase *test)
{
    return vm_start_with(test, &test->config, 1, "");
}

void vm_stop(TestVM *vm)
{
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        device_cleanup(&vm->devices[i]);
    }
    qtest_shutdown(vm->qs);

    close(vm->hmp_fd);
    fclose(vm->log);
    qtest_remove_abrt_handler(vm);
    qhost_remove_dir(vm->tmpdir);
    g_free(vm->stderr_path);
    g_free(vm->memory_fail_path);
    g_free(vm->kvm_fail_path);
    g_free(vm->hmp_path);
    g_free(vm->log_path);
    g_free(vm->tmpdir);
    g_free(vm);
}

void framework_init(void)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(archs); i++) {
        if (g_str_equal(archs[i].name, qtest_get_arch())) {
            arch = &archs[i];
        }
    }
    g_assert_nonnull(arch);
    failures_init();
}

void framework_cleanup(void)
{
    failures_cleanup();
}
