/*
 * Framework for tests of the memslot account: machines
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "libqos/host.h"
#include "qobject/qdict.h"

#define ACPI_PCIHP_ADDR 0xae00
#define ACPI_PCIHP_EJECT 0x8

char *preload_path;

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

/* The human monitor takes arguments as -device does, without types. */
char *try_device_add(TestVM *vm, const char *args)
{
    g_autofree char *command = g_strdup_printf("device_add %s", args);
    g_autofree char *output = qmonitor_hmp(vm->mon, command);
    g_auto(GStrv) lines = g_strsplit(output, "\n", -1);
    unsigned int i;

    /* Warnings may come before the error, and hints after it. */
    for (i = 0; lines[i]; i++) {
        if (g_str_has_prefix(lines[i], "Error: ")) {
            return g_strdup(lines[i] + strlen("Error: "));
        }
    }
    return NULL;
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

/* ---- Machines ---- */

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

char *vm_file(const TestVM *vm, const char *name)
{
    return g_build_filename(vm->tmpdir, name, NULL);
}

char *vm_vnew_id(TestVM *vm, const char *prefix)
{
    return g_strdup_printf("%s%u", prefix, vm->last_id++);
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

unsigned int take_dimm_slot(TestVM *vm)
{
    return take_slot(vm->dimm_slot_used, 0, ARRAY_SIZE(vm->dimm_slot_used) - 1);
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
                           " -m %" PRIu64 "B,slots=%u,maxmem=%" PRIu64 "B"
                           " -device memslot-testdev,id=testdev0,addr=%" PRIu64
                           " -device memslot-testdev,id=testdev1,addr=%" PRIu64
                           ",share=on"
                           " -device memslot-testdev,id=inner,addr=%" PRIu64
                           ",share=on %s 2>>%s",
                           vm->kvm ? "-accel kvm" : "", bios, mon,
                           (uint64_t)BOOT_RAM_SIZE, DIMM_SLOTS,
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
    if (vm->kvm) {
        qhost_wait_asleep(vm->qts);
    }
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
    /* Vhost devices are started only while the VM runs. */
    qhost_write_sleeping_firmware(bios);

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
        if (vm->ring_addr != RING_LATER && vm_holder(vm, backend).used) {
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

void eject_pci_device(TestVM *vm, unsigned int slot)
{
    qtest_outl(vm->qts, ACPI_PCIHP_ADDR + ACPI_PCIHP_EJECT, 1 << slot);
}

void set_testdev_count(TestVM *vm, bool shared, unsigned int count)
{
    run_hmp(vm, "qom-set /machine/peripheral/testdev%u count %u", shared,
            count);
    vm->testdev_count[shared] = count;
    vm_check(vm);
}
