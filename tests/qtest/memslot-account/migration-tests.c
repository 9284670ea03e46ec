/*
 * Tests of migration with vhost backends that log what they write
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "qobject/qdict.h"

#define PAGE (4 * KiB)

/*
 * When the first pages have left for certain: what counts as sent may still be
 * in memory, where it can be written to, until as many as 64 parts go together.
 */
#define FIRST_PAGES_SENT (512 * KiB)

static char *migration_status(TestVM *vm)
{
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-migrate' }");
    char *status = g_strdup(qdict_get_try_str(qdict_get_qdict(rsp, "return"),
                                              "status") ?: "");

    qobject_unref(rsp);
    return status;
}

static void wait_migration(TestVM *vm, const char *expected)
{
    g_autofree char *status = migration_status(vm);

    while (!g_str_equal(status, expected)) {
        g_assert_cmpstr(status, !=, "failed");
        g_usleep(1000);
        g_free(status);
        status = migration_status(vm);
    }
}

/* Bytes that were sent as they are, not as a page of zeroes */
static uint64_t migration_sent(TestVM *vm)
{
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-migrate' }");
    const QDict *info = qdict_get_qdict(rsp, "return");
    uint64_t sent = 0;

    if (qdict_haskey(info, "ram")) {
        sent = qdict_get_int(qdict_get_qdict(info, "ram"), "normal-bytes");
    }
    qobject_unref(rsp);
    return sent;
}

/* A migration counts as completed a little earlier than the VM is stopped. */
static void wait_postmigrate(TestVM *vm)
{
    bool done = false;

    while (!done) {
        QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-status' }");
        const QDict *info = qdict_get_qdict(rsp, "return");

        done = g_str_equal(qdict_get_str(info, "status"), "postmigrate");
        qobject_unref(rsp);
        g_usleep(1000);
    }
}

/* Being watched by a vhost backend is no reason not to migrate. */
static void test_migration(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    Backend *backend;
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    backend = vm_add_started_backend(vm, 32);
    vm_start(vm);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 1 * GiB - 2 * MiB, 4 * MiB));
    assert_ack(plug(vm, mem, 8 * GiB, 2 * MiB));

    qmp_succeeds(vm, "{ 'execute': 'migrate', 'arguments':"
                 " { 'uri': 'exec:cat > /dev/null' } }");
    wait_migration(vm, "completed");
    g_assert_cmpuint(qvhost_user_backend_nr_messages(backend->vu,
                                                     VHOST_USER_SET_LOG_BASE),
                     >=, 1);

    /* The VM is stopped, but as the migration could have failed: */
    wait_postmigrate(vm);
    qmp_succeeds(vm, "{ 'execute': 'cont' }");
    qvhost_user_backend_wait(backend->vu, VHOST_USER_SET_VRING_ENABLE, 3);
    backend_forget(backend);
    vm_check(vm);
    unplug_all(vm, mem);
    vm_stop(vm);
}

/* A limit has it not complete before there is none any more. */
static void start_migration(TestVM *vm, const char *uri, bool slowly)
{
    qmp_succeeds(vm, "{ 'execute': 'migrate-set-parameters', 'arguments':"
                 " { 'max-bandwidth': %u } }", slowly ? 1000000 : 0);
    qmp_succeeds(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
                 uri);
}

/* A machine with the same devices, to migrate to; does not run before */
static TestVM *migration_target(const TestCase *test, TestVM *source,
                                const char *uri)
{
    const TestCase cold = { .kvm = test->kvm, .cold = true };
    TestVM *vm = vm_new_default(&cold, source->device_memory_size);
    Backend *backend;
    Mem *mem;

    for_each_mem(mem, source) {
        vm_add_mem(vm, &mem->config);
    }
    for_each_backend(backend, source) {
        vm_add_backend(vm, backend->configurable ? backend->limit :
                                                   QVHOST_USER_BASELINE);
    }
    g_string_append_printf(vm->args, " -incoming %s", uri);
    vm_boot(vm);
    return vm;
}

/* It has what the source had, with another QEMU and other backends. */
static void model_migrated(TestVM *vm, const TestVM *source)
{
    unsigned int i;

    for (i = 0; i < vm->mems->len; i++) {
        Mem *mem = g_ptr_array_index(vm->mems, i);
        const Mem *from = g_ptr_array_index(source->mems, i);

        mem->addr = from->addr;
        mem->requested_size = from->requested_size;
        mem->usable_size = from->usable_size;
        memcpy(mem->plugged, from->plugged,
               nr_blocks(mem) * sizeof(*mem->plugged));
    }
    for (i = 0; i < vm->backends->len; i++) {
        Backend *backend = g_ptr_array_index(vm->backends, i);

        qvhost_user_backend_wait(backend->vu, VHOST_USER_SET_VRING_ENABLE, 1);
        backend->started = true;
    }
}

/* Returns the size of the log, which is the same for all. */
static uint64_t log_size_of(Backend **backends, unsigned int nb_backends)
{
    const uint64_t size = qvhost_user_backend_log_size(backends[0]->vu);
    unsigned int i;

    for (i = 1; i < nb_backends; i++) {
        g_assert_cmpuint(qvhost_user_backend_log_size(backends[i]->vu), ==,
                         size);
    }
    return size;
}

/* Starts logging of dirty pages, and stops it again. */
static uint64_t measure_log(TestVM *vm, Backend **backends,
                            unsigned int nb_backends)
{
    g_autofree unsigned int *counts = g_new(unsigned int, nb_backends);
    g_autofree unsigned int *addrs = g_new(unsigned int, nb_backends);
    unsigned int i;

    for (i = 0; i < nb_backends; i++) {
        counts[i] = qvhost_user_backend_nr_messages(backends[i]->vu,
                                                    VHOST_USER_SET_LOG_BASE);
        addrs[i] = qvhost_user_backend_nr_messages(backends[i]->vu,
                                                   VHOST_USER_SET_VRING_ADDR);
    }
    start_migration(vm, "exec:cat > /dev/null", true);
    for (i = 0; i < nb_backends; i++) {
        qvhost_user_backend_wait(backends[i]->vu, VHOST_USER_SET_LOG_BASE,
                                 counts[i] + 1);
    }
    qmp_succeeds(vm, "{ 'execute': 'migrate_cancel' }");
    wait_migration(vm, "cancelled");
    for (i = 0; i < nb_backends; i++) {
        /* The last message when logging starts, and when it stops */
        qvhost_user_backend_wait(backends[i]->vu, VHOST_USER_SET_VRING_ADDR,
                                 addrs[i] + 2);
        backend_forget(backends[i]);
    }
    vm_check(vm);
    return log_size_of(backends, nb_backends);
}

/* Whether the log has a bit for each page up to the end of the memory */
static bool log_covers(uint64_t log_size, const Mem *mem, uint64_t end)
{
    return log_size * 8 * PAGE >= mem->addr + end;
}

static void assert_content(TestVM *vm, uint64_t addr, uint8_t expected)
{
    uint8_t content[PAGE];
    unsigned int i;

    qtest_memread(vm->qts, addr, content, sizeof(content));
    for (i = 0; i < sizeof(content); i++) {
        g_assert_cmphex(content[i], ==, expected);
    }
}

/* Write to a page by way of the backend, which QEMU does not notice. */
static void backend_write(Backend *backend, uint64_t addr)
{
    void *memory = qvhost_user_backend_memory(backend->vu, addr, PAGE);

    g_assert_nonnull(memory);
    memset(memory, 2, PAGE);
}

/* As fast as it goes now, and compare. */
static void finish_migration(TestVM *vm, TestVM *target)
{
    qmp_succeeds(vm, "{ 'execute': 'migrate-set-parameters', 'arguments':"
                 " { 'max-bandwidth': 0 } }");
    wait_migration(vm, "completed");
    wait_migration(target, "completed");
    model_migrated(target, vm);
    vm_check(target);
}

/* What backends write while the machine migrates gets to the target. */
static void check_migration_log(const TestCase *test, const unsigned int *sizes,
                                unsigned int nb_backends)
{
    const uint64_t offset = 9 * GiB, size = 16 * GiB, step = 64 * KiB;
    const MemConfig config = multiple(true, size);
    TestVM *vm = vm_new_default(test, 64 * GiB), *target;
    g_autofree char *socket = vm_file(vm, "migration");
    g_autofree char *uri = g_strdup_printf("unix:%s", socket);
    uint64_t addr, log_size, i;
    Backend *backends[2];
    Mem *mem;

    g_assert_cmpuint(nb_backends, <=, ARRAY_SIZE(backends));
    mem = vm_add_mem(vm, &config);
    for (i = 0; i < nb_backends; i++) {
        backends[i] = vm_add_started_backend(vm, sizes[i]);
    }
    vm_start(vm);
    request_size(vm, mem, size);

    /*
     * Wherever memory is plugged, and whatever a backend is shown, all backends
     * have the same log.
     */
    assert_ack(plug(vm, mem, 0, 2 * MiB));
    log_size = measure_log(vm, backends, nb_backends);
    g_assert_true(log_covers(log_size, mem, size));
    /* It costs what is written, not what could be. */
    g_assert_cmpuint(qvhost_user_backend_log_allocated(backends[0]->vu), ==, 0);
    assert_ack(plug(vm, mem, 2 * MiB, size - 2 * MiB));
    g_assert_cmpuint(measure_log(vm, backends, nb_backends), ==, log_size);
    assert_ack(unplug(vm, mem, 0, offset));
    assert_ack(unplug(vm, mem, offset + 4 * MiB, size - offset - 4 * MiB));
    g_assert_cmpuint(mem_used(mem), ==, 1);

    /* What comes after the first pages takes its time. */
    addr = mem->addr + offset;
    for (i = 0; i < 4 * MiB; i += step) {
        qtest_memset(vm->qts, addr + i, 1, step);
    }
    target = migration_target(test, vm, uri);
    start_migration(vm, uri, true);
    while (migration_sent(vm) < FIRST_PAGES_SENT) {
        g_usleep(1000);
    }
    for (i = 0; i < nb_backends; i++) {
        backend_write(backends[i], addr + 2 * i * PAGE);
        g_assert_true(qvhost_user_backend_log(backends[i]->vu,
                                              addr + 2 * i * PAGE));
        /* It keeps this one to itself, or the test would prove nothing. */
        backend_write(backends[i], addr + (2 * i + 1) * PAGE);
    }
    g_assert_cmpuint(log_size_of(backends, nb_backends), ==, log_size);

    finish_migration(vm, target);
    for (i = 0; i < nb_backends; i++) {
        assert_content(target, addr + 2 * i * PAGE, 2);
        assert_content(target, addr + (2 * i + 1) * PAGE, 1);
    }
    assert_content(target, addr + 4 * MiB - PAGE, 1);

    unlink(socket);
    vm_stop(target);
    vm_stop(vm);
}

static void test_migration_log(const TestCase *test)
{
    static const unsigned int sizes[] = { QVHOST_USER_BASELINE, 8, 509 };
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        check_migration_log(test, &sizes[i], 1);
    }
}

/* QEMU reads a log that several backends write to by way of one of them. */
static void test_migration_log_mixed(const TestCase *test)
{
    static const unsigned int sizes[][2] = { { 8, 509 }, { 509, 8 } };
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        check_migration_log(test, sizes[i], ARRAY_SIZE(sizes[i]));
    }
}

/* Memory that may be read, and is mapped because of that, when it is late */
static void test_migration_log_grows(const TestCase *test)
{
    MemConfig config = multiple(true, 16 * GiB);
    TestVM *vm = vm_new_default(test, 64 * GiB), *target;
    g_autofree char *socket = vm_file(vm, "migration");
    g_autofree char *uri = g_strdup_printf("unix:%s", socket);
    const uint64_t step = 64 * KiB, unplugged = 8 * GiB;
    uint64_t log_size, i;
    Backend *backends[2];
    Mem *mem;

    config.inaccessible = false;
    config.requested_size = 1 * GiB;
    mem = vm_add_mem(vm, &config);
    backends[0] = vm_add_started_backend(vm, 509);
    backends[1] = vm_add_started_backend(vm, 8);
    vm_start(vm);
    assert_ack(plug(vm, mem, 0, 4 * MiB));
    for (i = 0; i < 4 * MiB; i += step) {
        qtest_memset(vm->qts, mem->addr + i, 1, step);
    }

    target = migration_target(test, vm, uri);
    start_migration(vm, uri, true);
    while (migration_sent(vm) < FIRST_PAGES_SENT) {
        g_usleep(1000);
    }
    log_size = log_size_of(backends, ARRAY_SIZE(backends));
    for (i = 0; i < ARRAY_SIZE(backends); i++) {
        backend_forget(backends[i]);
    }
    g_assert_false(can_reach(backends[0], mem, unplugged));
    g_assert_cmpuint(mem_used(mem), ==, 2);
    g_assert_true(request_size(vm, mem, 16 * GiB));
    g_assert_cmpuint(mem_used(mem), ==, 16);
    g_assert_true(can_reach(backends[0], mem, unplugged));

    /* The log has room for it, as ever, and that is not sent. */
    g_assert_cmpuint(log_size_of(backends, ARRAY_SIZE(backends)), ==,
                     log_size);
    for (i = 0; i < ARRAY_SIZE(backends); i++) {
        backend_write(backends[i], mem->addr + i * PAGE);
        g_assert_true(qvhost_user_backend_log(backends[i]->vu,
                                              mem->addr + i * PAGE));
        backend_write(backends[i], mem->addr + unplugged + i * PAGE);
        g_assert_true(qvhost_user_backend_log(backends[i]->vu, mem->addr +
                                              unplugged + i * PAGE));
    }
    assert_busy(qvirtio_mem_plug(&mem->pci->mem, mem->addr + unplugged, 1));

    finish_migration(vm, target);
    for (i = 0; i < ARRAY_SIZE(backends); i++) {
        assert_content(target, mem->addr + i * PAGE, 2);
        assert_content(target, mem->addr + unplugged + i * PAGE, 0);
    }
    assert_content(target, mem->addr + 4 * MiB - PAGE, 1);

    unlink(socket);
    vm_stop(target);
    vm_stop(vm);
}

static const TestGroup groups[] = {
    { "migration", test_migration },
    { "migration-log", test_migration_log },
    { "migration-log-mixed", test_migration_log_mixed },
    { "migration-log-grows", test_migration_log_grows },
};

void add_migration_tests(bool kvm)
{
    add_test_groups(groups, ARRAY_SIZE(groups), kvm);
}
