/*
 * QTest testcase for virtio-mem's memslots with KVM, and for a KVM that refuses
 * them
 *
 * A library that is preloaded into QEMU (kvm-preload.c) tells about each single
 * KVM_SET_USER_MEMORY_REGION or KVM_SET_USER_MEMORY_REGION2, and has it fail.
 * The tests play the guest's driver; no vCPU ever runs.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/host.h"
#include "libqos/libqos-pc.h"
#include "libqos/virtio-mem.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define BOOT_RAM_SIZE (128 * MiB)
#define MEMSLOT_SIZE (1 * GiB)
#define MAX_DEVICE_MEMSLOTS 256
#define MAX_KVM_AS 2
#define TIMEOUT_US (60 * 1000 * 1000)

typedef struct Setup {
    unsigned int nb_memslots;
    bool unplugged_inaccessible;
    /* what KVM says that it can hold; 0: what is true */
    unsigned int kvm_limit;
    /* have QEMU use KVM_SET_USER_MEMORY_REGION2 */
    bool region2;
    /* refuse the n-th memslot and later ones, while that is switched on */
    unsigned int fail_from;
    const char *extra_args;
} Setup;

typedef struct Call {
    unsigned int as;
    uint64_t addr;
    uint64_t size;
    int result;
} Call;

typedef struct TestVM {
    QOSState *qs;
    QTestState *qts;
    QVirtioMEMPCI *pci;
    char *dir;
    char *fail_path;
    char *stderr_path;
    char *log_path;
    FILE *log;
    /* addresses of what KVM has now */
    GHashTable *added[MAX_KVM_AS];
    unsigned int nb_as;
    /* 1 or 2: KVM_SET_USER_MEMORY_REGION or its successor; 0: no call so far */
    unsigned int ioctl;
    uint64_t addr;
    uint64_t size;
    uint64_t block_size;
    uint64_t stderr_seen;
} TestVM;

static char *preload_path;

/* ---- What KVM is told ---- */

/* Returns all calls (Call) since the last time. */
static GArray *read_calls(TestVM *vm)
{
    GArray *calls = g_array_new(false, false, sizeof(Call));
    g_autofree char *line = NULL;
    size_t line_size = 0;

    clearerr(vm->log);
    while (getline(&line, &line_size, vm->log) > 0) {
        Call call;

        g_assert_cmpint(sscanf(line, "%u %*u 0x%" SCNx64 " 0x%" SCNx64
                               " %d %*u %u\n", &call.as, &call.addr,
                               &call.size, &call.result, &vm->ioctl), ==, 5);
        g_assert_cmpuint(call.as, <, MAX_KVM_AS);
        vm->nb_as = MAX(vm->nb_as, call.as + 1);
        if (call.result == 0) {
            GHashTable *added = vm->added[call.as];
            uint64_t *key = g_new(uint64_t, 1);

            *key = call.addr;
            if (call.size) {
                g_hash_table_add(added, key);
            } else {
                g_assert_true(g_hash_table_remove(added, key));
                g_free(key);
            }
        }
        g_array_append_val(calls, call);
    }
    return calls;
}

static bool has_memslot(TestVM *vm, unsigned int as, unsigned int memslot)
{
    const uint64_t addr = vm->addr + memslot * MEMSLOT_SIZE;

    return g_hash_table_contains(vm->added[as], &addr);
}

static QDict *holder_kvm(const QDict *info)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "holders"), entry) {
        QDict *holder = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(holder, "type"), "kvm")) {
            return holder;
        }
    }
    g_assert_not_reached();
}

/* QEMU's own count of KVM's memslots has to be the true one. */
static void check_count(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-memslots' }");
    unsigned int as, used = 0;

    g_assert_true(qdict_haskey(rsp, "return"));
    for (as = 0; as < vm->nb_as; as++) {
        used = MAX(used, g_hash_table_size(vm->added[as]));
    }
    g_assert_cmpint(qdict_get_int(holder_kvm(qdict_get_qdict(rsp, "return")),
                                  "used"), ==, used);
    qobject_unref(rsp);
}

/* ---- The VM ---- */

/* Returns what LD_PRELOAD was, for preload_end(). */
static char *preload_begin(TestVM *vm, const Setup *setup)
{
    g_autofree char *limit = g_strdup_printf("%u", setup->kvm_limit);
    g_autofree char *fail = g_strdup_printf("%u", setup->fail_from);

    g_setenv("KVM_PRELOAD_LOG", vm->log_path, true);
    if (setup->kvm_limit) {
        g_setenv("KVM_PRELOAD_NR_MEMSLOTS", limit, true);
    }
    if (setup->region2) {
        g_setenv("KVM_PRELOAD_REGION2", "1", true);
    }
    if (setup->fail_from) {
        g_setenv("KVM_PRELOAD_FAIL", fail, true);
        g_setenv("KVM_PRELOAD_FAIL_FILE", vm->fail_path, true);
    }
    return qhost_preload_begin(preload_path);
}

static void preload_end(char *others)
{
    qhost_preload_end(others);
    g_unsetenv("KVM_PRELOAD_LOG");
    g_unsetenv("KVM_PRELOAD_NR_MEMSLOTS");
    g_unsetenv("KVM_PRELOAD_REGION2");
    g_unsetenv("KVM_PRELOAD_FAIL");
    g_unsetenv("KVM_PRELOAD_FAIL_FILE");
}

static void set_failing(TestVM *vm, bool failing)
{
    if (failing) {
        g_assert_true(g_file_set_contents(vm->fail_path, "", 0, NULL));
    } else {
        g_assert_cmpint(unlink(vm->fail_path), ==, 0);
    }
}

static void clean_up_on_abort(void *opaque)
{
    TestVM *vm = opaque;
    g_autofree char *text = NULL;

    if (g_file_get_contents(vm->stderr_path, &text, NULL, NULL)) {
        fputs(text, stderr);
    }
    qhost_remove_dir(vm->dir);
}

/* Returns what QEMU has written to stderr since the last time. */
static char *read_stderr(TestVM *vm)
{
    g_autofree char *text = NULL;
    size_t len;
    char *rest;

    g_assert_true(g_file_get_contents(vm->stderr_path, &text, &len, NULL));
    rest = g_strdup(text + vm->stderr_seen);
    vm->stderr_seen = len;
    return rest;
}

static void vm_start_driver(TestVM *vm)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(4, 0) };
    struct virtio_mem_config config;

    vm->pci = qvirtio_mem_pci_new(vm->qs->pcibus, &addr, &vm->qs->alloc);
    qvirtio_mem_pci_start(vm->pci);
    qvirtio_mem_read_config(&vm->pci->mem, &config);
    vm->addr = config.addr;
    vm->size = config.region_size;
    vm->block_size = config.block_size;
}

/* Unlike qtest_pc_boot(), works with an interrupt controller of KVM. */
static QOSState *G_GNUC_PRINTF(1, 2) boot_pc(const char *fmt, ...)
{
    QOSState *qs;
    va_list ap;

    va_start(ap, fmt);
    qs = qtest_pc_vboot(fmt, ap);
    va_end(ap);
    return qs;
}

static TestVM *vm_boot(const Setup *setup)
{
    TestVM *vm = g_new0(TestVM, 1);
    const uint64_t size = setup->nb_memslots * MEMSLOT_SIZE;
    unsigned int as;
    char *others;

    vm->dir = g_dir_make_tmp("kvm-memslots-test.XXXXXX", NULL);
    g_assert_nonnull(vm->dir);
    vm->fail_path = g_build_filename(vm->dir, "fail", NULL);
    vm->stderr_path = g_build_filename(vm->dir, "stderr", NULL);
    vm->log_path = g_build_filename(vm->dir, "log", NULL);
    qtest_add_abrt_handler(clean_up_on_abort, vm);
    for (as = 0; as < MAX_KVM_AS; as++) {
        vm->added[as] = g_hash_table_new_full(g_int64_hash, g_int64_equal,
                                              g_free, NULL);
    }

    others = preload_begin(vm, setup);
    vm->qs = boot_pc("-accel kvm -S -nodefaults -machine pc"
                     " -m %" PRIu64 "B,maxmem=%" PRIu64 "B"
                     " -object memory-backend-ram,id=mem0,reserve=off,"
                     "size=%" PRIu64
                     " -device virtio-mem-pci,id=vm0,memdev=mem0,addr=4.0"
                     ",multiple-memslots=on,unplugged-inaccessible=%s"
                     " %s 2>%s", (uint64_t)BOOT_RAM_SIZE, BOOT_RAM_SIZE + size,
                     size, setup->unplugged_inaccessible ? "on" : "off",
                     setup->extra_args ?: "", vm->stderr_path);
    preload_end(others);
    vm->qts = vm->qs->qts;

    vm->log = fopen(vm->log_path, "r");
    g_assert_nonnull(vm->log);
    g_array_unref(read_calls(vm));
    g_assert_cmpuint(vm->nb_as, >, 0);
    g_free(read_stderr(vm));
    return vm;
}

static TestVM *vm_start(const Setup *setup)
{
    TestVM *vm = vm_boot(setup);

    vm_start_driver(vm);
    g_array_unref(read_calls(vm));
    check_count(vm);
    return vm;
}

static void vm_stop(TestVM *vm)
{
    unsigned int as;

    qvirtio_mem_pci_free(vm->pci);
    qtest_shutdown(vm->qs);
    fclose(vm->log);
    qtest_remove_abrt_handler(vm);
    qhost_remove_dir(vm->dir);
    for (as = 0; as < MAX_KVM_AS; as++) {
        g_hash_table_unref(vm->added[as]);
    }
    g_free(vm->log_path);
    g_free(vm->stderr_path);
    g_free(vm->fail_path);
    g_free(vm->dir);
    g_free(vm);
}

static QDict *try_request_size(TestVM *vm, uint64_t size)
{
    return qtest_qmp(vm->qts, "{ 'execute': 'qom-set', 'arguments': {"
                     " 'path': '/machine/peripheral/vm0',"
                     " 'property': 'requested-size', 'value': %" PRIu64 " } }",
                     size);
}

static void request_size(TestVM *vm, uint64_t size)
{
    QDict *rsp = try_request_size(vm, size);

    g_assert_true(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
}

static uint16_t plug(TestVM *vm, uint64_t offset, uint64_t size)
{
    return qvirtio_mem_plug(&vm->pci->mem, vm->addr + offset,
                            size / vm->block_size);
}

static uint16_t unplug(TestVM *vm, uint64_t offset, uint64_t size)
{
    return qvirtio_mem_unplug(&vm->pci->mem, vm->addr + offset,
                              size / vm->block_size);
}

static void unplug_all(TestVM *vm)
{
    g_assert_cmpint(qvirtio_mem_unplug_all(&vm->pci->mem), ==,
                    VIRTIO_MEM_RESP_ACK);
}

/* Whether QEMU could be made to use the ioctl(); if not, skip the test. */
static bool has_ioctl(const TestVM *vm, const Setup *setup)
{
    if (setup->region2 && vm->ioctl != 2) {
        g_test_skip("KVM has no KVM_SET_USER_MEMORY_REGION2 or no guest_memfd");
        return false;
    }
    return true;
}

#define assert_ack(expr)  g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_ACK)
#define assert_busy(expr) g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_BUSY)

/* ---- One call per memslot ---- */

static void check_calls(TestVM *vm, GArray *calls, bool add)
{
    bool seen[MAX_KVM_AS][MAX_DEVICE_MEMSLOTS] = { };
    unsigned int i;

    g_assert_cmpuint(calls->len, ==, MAX_DEVICE_MEMSLOTS * vm->nb_as);
    for (i = 0; i < calls->len; i++) {
        const Call *call = &g_array_index(calls, Call, i);
        const uint64_t offset = call->addr - vm->addr;

        g_assert_cmpint(call->result, ==, 0);
        g_assert_cmphex(call->size, ==, add ? MEMSLOT_SIZE : 0);
        g_assert_cmphex(offset, <, vm->size);
        g_assert_cmphex(offset % MEMSLOT_SIZE, ==, 0);
        g_assert_false(seen[call->as][offset / MEMSLOT_SIZE]);
        seen[call->as][offset / MEMSLOT_SIZE] = true;
    }
    check_count(vm);
}

/* All at once, in one memory transaction */
static void map_all(TestVM *vm)
{
    g_autoptr(GArray) calls = NULL;

    request_size(vm, vm->size);
    calls = read_calls(vm);
    check_calls(vm, calls, true);
}

static void unmap_all(TestVM *vm)
{
    g_autoptr(GArray) calls = NULL;

    request_size(vm, 0);
    unplug_all(vm);
    calls = read_calls(vm);
    check_calls(vm, calls, false);
}

static void test_count(const void *opaque)
{
    const Setup *setup = opaque;
    TestVM *vm = vm_start(setup);

    if (has_ioctl(vm, setup)) {
        map_all(vm);
        unmap_all(vm);
        map_all(vm);
    }
    vm_stop(vm);
}

/* ---- Memslots that KVM refuses ---- */

/* Of 8 memslots, @mapped tells those that are mapped, one bit for each. */
static void check_device(TestVM *vm, unsigned int mapped, uint64_t plugged)
{
    struct virtio_mem_config config;
    unsigned int as, i;

    g_array_unref(read_calls(vm));
    for (as = 0; as < vm->nb_as; as++) {
        for (i = 0; i < 8; i++) {
            g_assert_cmpint(has_memslot(vm, as, i), ==, (mapped >> i) & 1);
        }
    }
    check_count(vm);
    qvirtio_mem_read_config(&vm->pci->mem, &config);
    g_assert_cmphex(config.plugged_size, ==, plugged);
}

/* Since the last call, nothing has happened to that memslot. */
static void check_untouched(const TestVM *vm, const GArray *calls,
                            unsigned int memslot)
{
    unsigned int i;

    for (i = 0; i < calls->len; i++) {
        g_assert_cmphex(g_array_index(calls, Call, i).addr, !=,
                        vm->addr + memslot * MEMSLOT_SIZE);
    }
}

/*
 * After that many memslots were added, the others were refused. The ones that
 * were added are gone, and nobody tried to remove one of the others. Memslot
 * @untouched was there and should have stayed.
 */
static void check_refusal(TestVM *vm, unsigned int added,
                          unsigned int untouched)
{
    g_autoptr(GArray) calls = read_calls(vm);
    unsigned int i, nb_added = 0, nb_removed = 0, nb_refused = 0;

    for (i = 0; i < calls->len; i++) {
        const Call *call = &g_array_index(calls, Call, i);

        if (call->size && call->result) {
            g_assert_cmpint(call->result, ==, -ENOMEM);
            nb_refused++;
        } else if (call->size) {
            nb_added++;
        } else {
            g_assert_cmpint(call->result, ==, 0);
            nb_removed++;
        }
    }
    g_assert_cmpuint(nb_added, ==, added);
    g_assert_cmpuint(nb_removed, ==, added);
    g_assert_cmpuint(nb_refused, >, 0);
    check_untouched(vm, calls, untouched);
}

/* QEMU has told about the problem exactly that often, each time with a hint. */
static void check_nb_warnings(TestVM *vm, unsigned int expected)
{
    g_autofree char *text = read_stderr(vm);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    unsigned int i, warnings = 0, hints = 0;

    for (i = 0; lines[i] && *lines[i]; i++) {
        g_test_message("stderr: %s", lines[i]);
        if (g_str_equal(lines[i], "The host's kernel needs memory of its own"
                        " for each memslot.")) {
            hints++;
        } else {
            g_assert_nonnull(strstr(lines[i], "warning: "));
            /* What the host's CPU lacks is not our business. */
            warnings += !strstr(lines[i], "requested feature");
        }
    }
    g_assert_cmpuint(warnings, ==, expected);
    g_assert_cmpuint(hints, ==, expected);
}

static void check_plug_refused(TestVM *vm)
{
    const uint64_t block = vm->block_size;
    QDict *event;

    request_size(vm, vm->size);
    assert_ack(plug(vm, 0, block));
    check_device(vm, 0x01, block);

    set_failing(vm, true);
    assert_busy(plug(vm, 2 * MEMSLOT_SIZE, block));
    check_refusal(vm, 0, 0);
    check_device(vm, 0x01, block);
    check_nb_warnings(vm, 1);
    event = qtest_qmp_eventwait_ref(vm->qts, "MEMORY_DEVICE_REQUEST_REFUSED");
    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(event, "data"), "refuser"),
                    ==, "kvm");
    qobject_unref(event);
    assert_busy(plug(vm, 2 * MEMSLOT_SIZE, block));
    assert_busy(plug(vm, MEMSLOT_SIZE - block, 2 * MEMSLOT_SIZE));
    check_refusal(vm, 0, 0);
    check_device(vm, 0x01, block);
    check_nb_warnings(vm, 0);

    /* What needs no further memslot still works. */
    assert_ack(plug(vm, block, block));
    assert_ack(unplug(vm, 0, block));
    check_device(vm, 0x01, block);
    /* It is no reason to warn again: the guest could fill the log. */
    assert_busy(plug(vm, 2 * MEMSLOT_SIZE, block));
    check_nb_warnings(vm, 0);

    set_failing(vm, false);
    assert_ack(plug(vm, 2 * MEMSLOT_SIZE, block));
    check_device(vm, 0x05, 2 * block);
    qtest_writeq(vm->qts, vm->addr + 2 * MEMSLOT_SIZE, 0x0123456789abcdef);
    assert_ack(plug(vm, MEMSLOT_SIZE, MEMSLOT_SIZE));
    check_device(vm, 0x07, MEMSLOT_SIZE + 2 * block);
    g_assert_cmphex(qtest_readq(vm->qts, vm->addr + 2 * MEMSLOT_SIZE), ==,
                    0x0123456789abcdef);

    unplug_all(vm);
    check_device(vm, 0, 0);
    check_nb_warnings(vm, 0);
}

static void test_plug_refused(const void *opaque)
{
    const Setup setup = {
        .nb_memslots = 8,
        .unplugged_inaccessible = true,
        .fail_from = 1,
        .region2 = GPOINTER_TO_UINT(opaque),
    };
    TestVM *vm = vm_start(&setup);

    if (has_ioctl(vm, &setup)) {
        check_plug_refused(vm);
    }
    vm_stop(vm);
}

/* Several memslots are needed, and not the first of them is refused. */
static void test_plug_partly_refused(const void *opaque)
{
    const Setup setup = {
        .nb_memslots = 8,
        .unplugged_inaccessible = true,
        .fail_from = 3,
    };
    TestVM *vm = vm_start(&setup);
    const uint64_t block = vm->block_size;
    g_autoptr(GArray) calls = NULL;

    request_size(vm, vm->size);
    assert_ack(plug(vm, 3 * MEMSLOT_SIZE, block));
    qtest_writeq(vm->qts, vm->addr + 3 * MEMSLOT_SIZE, 0x0123456789abcdef);
    check_device(vm, 0x08, block);

    set_failing(vm, true);
    assert_busy(plug(vm, 3 * MEMSLOT_SIZE + block, 4 * MEMSLOT_SIZE));
    check_refusal(vm, setup.fail_from - 1, 3);
    check_device(vm, 0x08, block);
    check_nb_warnings(vm, 1);
    g_assert_cmphex(qtest_readq(vm->qts, vm->addr + 3 * MEMSLOT_SIZE), ==,
                    0x0123456789abcdef);
    set_failing(vm, false);

    assert_ack(plug(vm, 3 * MEMSLOT_SIZE + block, 4 * MEMSLOT_SIZE));
    calls = read_calls(vm);
    check_untouched(vm, calls, 3);
    check_device(vm, 0xf8, 4 * MEMSLOT_SIZE + block);
    unplug_all(vm);
    check_device(vm, 0, 0);

    /* Nothing was left behind that would count. */
    assert_ack(plug(vm, 0, 8 * MEMSLOT_SIZE - block));
    check_device(vm, 0xff, 8 * MEMSLOT_SIZE - block);
    vm_stop(vm);
}

/*
 * Without VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE, growing the usable region is
 * what needs memslots.
 */
static void test_request_refused(const void *opaque)
{
    const Setup setup = {
        .nb_memslots = 8,
        .fail_from = GPOINTER_TO_UINT(opaque),
    };
    TestVM *vm = vm_start(&setup);
    struct virtio_mem_config before, after;
    QDict *rsp;

    request_size(vm, MEMSLOT_SIZE);
    assert_ack(plug(vm, 0, vm->block_size));
    check_device(vm, 0x03, vm->block_size);
    qvirtio_mem_read_config(&vm->pci->mem, &before);

    set_failing(vm, true);
    rsp = try_request_size(vm, vm->size);
    g_assert_true(qdict_haskey(rsp, "error"));
    g_test_message("%s", qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"));
    qobject_unref(rsp);
    qvirtio_mem_read_config(&vm->pci->mem, &after);
    g_assert_cmpmem(&after, sizeof(after), &before, sizeof(before));
    check_refusal(vm, setup.fail_from - 1, 0);
    check_device(vm, 0x03, vm->block_size);
    check_nb_warnings(vm, 0);

    /* Shrinking needs none. */
    request_size(vm, vm->block_size);
    set_failing(vm, false);

    request_size(vm, vm->size);
    check_device(vm, 0xff, vm->block_size);
    vm_stop(vm);
}

/* ---- Migration to a host that refuses them ---- */

static bool migration_has_status(TestVM *vm, const char *expected)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    QDict *info = qdict_get_qdict(rsp, "return");
    const char *status = qdict_get_try_str(info, "status");
    const bool found = status && g_str_equal(status, expected);

    g_assert_false(status && !found && (g_str_equal(status, "completed") ||
                                        g_str_equal(status, "failed")));
    qobject_unref(rsp);
    return found;
}

static void enable_return_path(TestVM *vm)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute':"
                             " 'migrate-set-capabilities', 'arguments': {"
                             " 'capabilities': [ {"
                             " 'capability': 'return-path',"
                             " 'state': true } ] } }");
}

static void start_migration(TestVM *from, TestVM *to)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/socket", from->dir);

    enable_return_path(from);
    enable_return_path(to);
    qtest_qmp_assert_success(to->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    qtest_qmp_assert_success(from->qts, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': %s } }", uri);
}

static void wait_for_status(TestVM *vm, const char *status)
{
    const gint64 start_time = g_get_monotonic_time();

    while (!migration_has_status(vm, status)) {
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=, TIMEOUT_US);
        g_usleep(1000);
    }
}

static void test_migration_refused(const void *opaque)
{
    const unsigned int fail_from = GPOINTER_TO_UINT(opaque);
    const Setup source = {
        .nb_memslots = 8,
        .unplugged_inaccessible = true,
    };
    const Setup destination = {
        .nb_memslots = 8,
        .unplugged_inaccessible = true,
        .fail_from = fail_from,
        .extra_args = "-incoming defer",
    };
    TestVM *from = vm_start(&source), *to = vm_boot(&destination);
    const gint64 start_time = g_get_monotonic_time();
    const uint64_t block = from->block_size;
    g_autofree char *errors = NULL;

    request_size(from, from->size);
    assert_ack(plug(from, 0, block));
    assert_ack(plug(from, 3 * MEMSLOT_SIZE - block, 2 * block));
    check_device(from, 0x0d, 3 * block);

    set_failing(to, true);
    qtest_set_expected_status(to->qts, EXIT_FAILURE);
    start_migration(from, to);
    while (qtest_probe_child(to->qts)) {
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=, TIMEOUT_US);
        g_usleep(1000);
    }
    errors = read_stderr(to);
    g_test_message("stderr: %s", errors);
    g_assert_nonnull(strstr(errors, "load of migration failed"));
    vm_stop(to);

    /* The source goes on. */
    wait_for_status(from, "failed");
    assert_ack(plug(from, 5 * MEMSLOT_SIZE, block));
    assert_ack(unplug(from, 0, block));
    check_device(from, 0x2c, 3 * block);

    /*
     * It can be migrated to where there are enough memslots. QEMU does not
     * migrate a stopped VM twice, unless it is reset in between.
     */
    qtest_qmp_assert_success(from->qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(from->qts, "RESET");
    qvirtio_mem_pci_start(from->pci);
    check_device(from, 0, 0);
    assert_ack(plug(from, MEMSLOT_SIZE - block, 2 * block));
    check_device(from, 0x03, 2 * block);

    to = vm_boot(&destination);
    start_migration(from, to);
    wait_for_status(from, "completed");
    wait_for_status(to, "completed");
    vm_start_driver(to);
    check_device(to, 0x03, 2 * block);
    vm_stop(to);
    vm_stop(from);
}

/* ---- The table of tests ---- */

static const Setup count_setups[] = {
    { .nb_memslots = MAX_DEVICE_MEMSLOTS },
    { .nb_memslots = MAX_DEVICE_MEMSLOTS, .kvm_limit = 509 },
    { .nb_memslots = MAX_DEVICE_MEMSLOTS, .region2 = true },
};

int main(int argc, char **argv)
{
    const char *reason;
    int ret;

    g_test_init(&argc, &argv, NULL);
    preload_path = qhost_find_module("kvm-preload.so");

    reason = qhost_why_no_kvm();
    if (!reason && !preload_path) {
        reason = "preload/kvm-preload.so is not there";
    }
    if (reason) {
        qtest_add_data_func("kvm-memslots", reason, qhost_test_no_kvm);
        ret = g_test_run();
        g_free(preload_path);
        return ret;
    }

    qtest_add_data_func("kvm-memslots/count/own-limit", &count_setups[0],
                        test_count);
    qtest_add_data_func("kvm-memslots/count/limit-509", &count_setups[1],
                        test_count);
    qtest_add_data_func("kvm-memslots/count/region2", &count_setups[2],
                        test_count);
    qtest_add_data_func("kvm-memslots/plug-refused", NULL, test_plug_refused);
    qtest_add_data_func("kvm-memslots/plug-refused-region2",
                        GUINT_TO_POINTER(true), test_plug_refused);
    qtest_add_data_func("kvm-memslots/plug-partly-refused", NULL,
                        test_plug_partly_refused);
    qtest_add_data_func("kvm-memslots/request-refused/first",
                        GUINT_TO_POINTER(1), test_request_refused);
    qtest_add_data_func("kvm-memslots/request-refused/third",
                        GUINT_TO_POINTER(3), test_request_refused);
    qtest_add_data_func("kvm-memslots/migration-refused/first",
                        GUINT_TO_POINTER(1), test_migration_refused);
    qtest_add_data_func("kvm-memslots/migration-refused/third",
                        GUINT_TO_POINTER(3), test_migration_refused);
    ret = g_test_run();
    g_free(preload_path);
    return ret;
}
