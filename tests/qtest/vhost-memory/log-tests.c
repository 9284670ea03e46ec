/*
 * QTest testcases for vhost devices: the log of dirty pages, and memory that
 * the guest takes away or moves
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "libqos/host.h"
#include "qobject/qdict.h"
#include <sys/resource.h>

/* Memory that takes long to be sent */
#define SCRATCH_SIZE (16 * MiB)

/* Pages in a virtio-mem device, and one in a BAR */
#define PAGE_ADDR(i) (VMEM_ADDR + (i) * PAGE)
#define SHMEM_OFFSET (64 * KiB)

static void wait_for_log(QVhostUserBackend *backend)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;

    while (!qvhost_user_backend_log(backend, PAGE_ADDR(0))) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

static void measure_dirty_rate_by(TestVM *vm, const char *mode,
                                  unsigned int seconds)
{
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'calc-dirty-rate', 'arguments': {"
        "  'calc-time': %u, 'mode': %s } }", seconds, mode);
}

/* Track dirty pages for a minute, which is the longest. */
static void measure_dirty_rate(TestVM *vm, unsigned int seconds)
{
    measure_dirty_rate_by(vm, "dirty-bitmap", seconds);
}

static char *dirty_rate_status(TestVM *vm)
{
    QDict *rsp = qtest_qmp_assert_success_ref(vm->qts,
        "{ 'execute': 'query-dirty-rate' }");
    char *status = g_strdup(qdict_get_str(rsp, "status"));

    qobject_unref(rsp);
    return status;
}

static void wait_dirty_rate(TestVM *vm, const char *expected)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;
    g_autofree char *status = dirty_rate_status(vm);

    while (!g_str_equal(status, expected)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
        g_free(status);
        status = dirty_rate_status(vm);
    }
}

static void wait_said(TestVM *vm, const char *text)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;

    while (!vm_has_said(vm, text)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/* The files of QEMU: how many are logs; what the first is that is not open */
static unsigned int count_logs(TestVM *vm, unsigned int *first_free)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd",
                                            qtest_pid(vm->qts));
    unsigned int count = 0, fd;

    for (fd = 0; fd < 1024; fd++) {
        g_autofree char *link = g_strdup_printf("%s/%u", path, fd);
        g_autofree char *file = g_file_read_link(link, NULL);

        if (!file) {
            *first_free = MIN(*first_free, fd);
        } else if (strstr(file, "memfd:vhost-log")) {
            count++;
        }
    }
    return count;
}

/*
 * Let QEMU open no more files: none but those below the limit, which are all
 * open. The limit can't be lower, as QEMU polls that many. Some file may be
 * about to be closed, so wait until none is any more.
 *
 * Returns what it could have before.
 */
static struct rlimit forbid_files(TestVM *vm)
{
    struct rlimit before, limit;
    unsigned int times = 0;

    g_assert_cmpint(prlimit(qtest_pid(vm->qts), RLIMIT_NOFILE, NULL, &before),
                    ==, 0);
    limit = before;
    while (times < 20) {
        unsigned int first_free = UINT_MAX;

        count_logs(vm, &first_free);
        times = first_free == limit.rlim_cur ? times + 1 : 0;
        limit.rlim_cur = first_free;
        g_assert_cmpint(prlimit(qtest_pid(vm->qts), RLIMIT_NOFILE, &limit,
                                NULL), ==, 0);
        g_usleep(1000);
    }
    return before;
}

static void allow_files(TestVM *vm, struct rlimit limit)
{
    g_assert_cmpint(prlimit(qtest_pid(vm->qts), RLIMIT_NOFILE, &limit, NULL),
                    ==, 0);
}

/* It is there once, and does not get smaller while it is in use. */
static void test_log_size(const void *opaque)
{
    static const uint64_t addrs[] = {
        1 * TiB, 2 * TiB, 4 * TiB, NOWHERE, SHMEM_ADDR, 4 * TiB, 512 * GiB,
        8 * TiB, NOWHERE,
    };
    TestVM *vm = vm_new(509);
    uint64_t size = 0;
    unsigned int i, unused;

    plug(vm, 0);
    check_works(vm);
    measure_dirty_rate(vm, 60);
    wait_for_log(vm->backend);
    for (i = 0; i < ARRAY_SIZE(addrs); i++) {
        move_shmem(vm, 0, addrs[i]);
        plug(vm, 2 * GiB);
        unplug(vm, 2 * GiB);
        vm_check(vm);
        g_assert_cmpuint(qvhost_user_backend_log_size(vm->backend), >=, size);
        size = qvhost_user_backend_log_size(vm->backend);
        g_assert_cmpuint(count_logs(vm, &unused), ==, 1);
    }
    stop_driver(vm);
    g_assert_cmpuint(count_logs(vm, &unused), ==, 0);
    vm_free(vm);
}

/* Nothing is measured if it cannot be, and that is all. */
static void test_log_start_fails(const void *opaque)
{
    TestVM *vm = vm_new(509);
    struct rlimit limit;
    unsigned int unused;

    plug(vm, 0);
    check_works(vm);
    limit = forbid_files(vm);
    measure_dirty_rate(vm, 1);
    /* A thread of its own starts with it: "unstarted" is what it is before. */
    wait_said(vm, "vhost: Failed to start logging");
    wait_dirty_rate(vm, "unstarted");
    g_assert_false(qvhost_user_backend_log(vm->backend, PAGE_ADDR(0)));
    allow_files(vm, limit);
    vm_check(vm);

    measure_dirty_rate(vm, 1);
    wait_dirty_rate(vm, "measured");
    g_assert_cmpuint(qvhost_user_backend_log_size(vm->backend), >, 0);
    g_assert_cmpuint(count_logs(vm, &unused), ==, 0);
    stop_driver(vm);
    vm_free(vm);
}

/* With KVM's rings of dirty pages, vCPUs are measured without the log. */
static void test_log_start_fails_ring(const void *opaque)
{
    VMConfig config = { .max_regions = 509 };
    g_autofree char *bios = NULL;
    g_autofree char *args = NULL;
    struct rlimit limit;
    TestVM *vm;
    int fd;

    if (qhost_why_no_kvm()) {
        qhost_test_no_kvm("KVM is not built in");
        return;
    }
    fd = g_file_open_tmp("vhost-memory-test-XXXXXX.bios", &bios, NULL);
    g_assert_cmpint(fd, >=, 0);
    close(fd);
    qhost_write_sleeping_firmware(bios);
    args = g_strdup_printf("-accel kvm,dirty-ring-size=4096 -bios %s", bios);
    config.args = args;
    vm = vm_boot(&config);
    unlink(bios);
    qhost_wait_asleep(vm->qts);
    vm_start(vm);
    plug(vm, 0);
    check_works(vm);
    limit = forbid_files(vm);
    measure_dirty_rate_by(vm, "dirty-ring", 1);
    wait_said(vm, "vhost: Failed to start logging");
    wait_dirty_rate(vm, "measured");
    allow_files(vm, limit);
    stop_driver(vm);
    vm_free(vm);
}

/* ---- What the log is for ---- */

static int64_t migration_ram(TestVM *vm, const char *key)
{
    QDict *rsp = qtest_qmp_assert_success_ref(vm->qts,
        "{ 'execute': 'query-migrate' }");
    int64_t value = 0;

    if (qdict_haskey(rsp, "ram")) {
        value = qdict_get_int(qdict_get_qdict(rsp, "ram"), key);
    }
    qobject_unref(rsp);
    return value;
}

static void wait_migrated(TestVM *vm)
{
    const char *status = NULL;

    while (g_strcmp0(status, "completed")) {
        QDict *rsp = qtest_qmp_assert_success_ref(vm->qts,
            "{ 'execute': 'query-migrate' }");

        status = g_intern_string(qdict_get_try_str(rsp, "status"));
        qobject_unref(rsp);
        g_assert_cmpstr(status, !=, "failed");
        g_usleep(1000);
    }
}

static void set_limits(TestVM *vm, unsigned int bandwidth,
                       unsigned int downtime)
{
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'max-bandwidth': %u, 'downtime-limit': %u } }",
        bandwidth, downtime);
}

/*
 * All has been sent once, and what is to be sent again takes hours, when this
 * returns.
 */
static TestVM *start_migration(TestVM *vm)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", vm->tmpdir);
    const uint64_t scratch = guest_alloc(&vm->alloc, SCRATCH_SIZE);
    g_autofree char *args = g_strdup_printf("-incoming %s", uri);
    VMConfig config = vm->config;
    TestVM *target;
    uint8_t content = 1;

    config.args = args;
    target = vm_boot(&config);
    set_limits(vm, 10 * MiB, 1);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate',"
                             "  'arguments': { 'uri': %s } }", uri);
    while (migration_ram(vm, "dirty-sync-count") < 2) {
        qtest_memset(vm->qts, scratch, content++, SCRATCH_SIZE);
    }
    set_limits(vm, 1000, 1);
    qtest_memset(vm->qts, scratch, content, SCRATCH_SIZE);
    wait_for_log(vm->backend);
    if (vm->config.with_disk) {
        wait_for_log(vm->disk_backend);
    }
    return target;
}

static void finish_migration(TestVM *vm, TestVM *target)
{
    g_autofree char *socket = g_strdup_printf("%s/migration", vm->tmpdir);

    /* It does not converge if all is dirty. */
    set_limits(vm, 0, 60000);
    wait_migrated(vm);
    wait_migrated(target);
    unlink(socket);
}

/* Write to memory by way of the backend, and tell of it or not. */
static void backend_write(QVhostUserBackend *backend, uint64_t addr, bool log)
{
    void *memory = qvhost_user_backend_memory(backend, addr, PAGE);

    g_assert_nonnull(memory);
    memset(memory, 2, PAGE);
    if (log) {
        g_assert_true(qvhost_user_backend_log(backend, addr));
    }
}

/* The log is replaced in the middle of a migration, and memory moves. */
static void test_log_moves(const void *opaque)
{
    const bool with_disk = opaque;
    const VMConfig config = { .max_regions = 509, .with_disk = with_disk };
    TestVM *vm = vm_new_with(&config), *target;
    QVhostUserBackend *backends[] = { vm->backend, vm->disk_backend };
    unsigned int i;

    plug(vm, 0);
    move_shmem(vm, 0, SHMEM_ADDR);
    check_works(vm);
    if (with_disk) {
        start_disk(vm);
    }
    target = start_migration(vm);

    /* Each writes to pages of its own. */
    for (i = 0; i <= with_disk; i++) {
        backend_write(backends[i], PAGE_ADDR(4 + i), true);
        backend_write(backends[i], SHMEM_ADDR + SHMEM_OFFSET + i * PAGE, true);
    }
    /* The test would prove nothing if this one arrived. */
    backend_write(vm->backend, PAGE_ADDR(2), false);
    move_shmem(vm, 0, 1 * TiB);
    for (i = 0; i <= with_disk; i++) {
        backend_write(backends[i], PAGE_ADDR(8 + i), true);
        backend_write(backends[i], 1 * TiB + SHMEM_OFFSET + (4 + i) * PAGE,
                      true);
    }
    move_shmem(vm, 0, SHMEM_ADDR);
    for (i = 0; i <= with_disk; i++) {
        backend_write(backends[i], PAGE_ADDR(12 + i), true);
    }

    finish_migration(vm, target);
    g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(2)), ==, 0);
    for (i = 0; i <= with_disk; i++) {
        const uint64_t shmem = SHMEM_ADDR + SHMEM_OFFSET + i * PAGE;

        g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(4 + i)), ==, 2);
        g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(8 + i)), ==, 2);
        g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(12 + i)), ==, 2);
        g_assert_cmpint(qtest_readb(target->qts, shmem), ==, 2);
        g_assert_cmpint(qtest_readb(target->qts, shmem + 4 * PAGE), ==, 2);
    }
    vm_free(target);
    vm_free(vm);
}

/*
 * The log cannot become larger: all is dirty then, also what nobody tells, and
 * also if the guest stops the device before anybody asks.
 */
static void test_log_growth_fails(const void *opaque)
{
    const bool stop = opaque;
    TestVM *vm = vm_new(509), *target;
    struct rlimit limit;

    plug(vm, 0);
    move_shmem(vm, 0, SHMEM_ADDR);
    check_works(vm);
    target = start_migration(vm);

    backend_write(vm->backend, PAGE_ADDR(1), true);
    limit = forbid_files(vm);
    move_shmem(vm, 0, 1 * TiB);
    g_assert_true(vm_has_said(vm, "vhost cannot log dirty pages any more: all"
                              " pages count as dirty that it can write to"));
    g_assert_false(qvhost_user_backend_log(vm->backend, PAGE_ADDR(0)));
    backend_write(vm->backend, PAGE_ADDR(2), false);
    backend_write(vm->backend, 1 * TiB + SHMEM_OFFSET, false);
    allow_files(vm, limit);
    vm_check(vm);

    if (stop) {
        stop_driver(vm);
    }
    finish_migration(vm, target);
    g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(1)), ==, 2);
    g_assert_cmpint(qtest_readb(target->qts, PAGE_ADDR(2)), ==, 2);
    g_assert_cmpint(qtest_readb(target->qts, 1 * TiB + SHMEM_OFFSET), ==, 2);
    vm_free(target);
    vm_free(vm);
}

/*
 * Pages share a word of the log that are in the memory of different devices. A
 * backend may also tell of pages where there is no memory.
 */
static void test_log_neighbours(const void *opaque)
{
    const VMConfig config = { .max_regions = 509, .shmem_size = 64 * KiB };
    const uint64_t addr = SHMEM_ADDR + config.shmem_size;
    TestVM *vm = vm_new_with(&config), *target;
    uint64_t page;
    unsigned int i;

    plug(vm, 0);
    for (i = 0; i < NB_SHMEMS; i++) {
        move_shmem(vm, i, addr + i * config.shmem_size);
    }
    check_works(vm);
    target = start_migration(vm);
    for (i = 0; i < NB_SHMEMS; i++) {
        page = addr + i * config.shmem_size;
        backend_write(vm->backend, page, true);
        backend_write(vm->backend, page + config.shmem_size - PAGE, true);
    }
    g_assert_true(qvhost_user_backend_log(vm->backend, SHMEM_ADDR));
    g_assert_true(qvhost_user_backend_log(vm->backend, addr + NB_SHMEMS *
                                                       config.shmem_size));
    finish_migration(vm, target);
    for (i = 0; i < NB_SHMEMS; i++) {
        page = addr + i * config.shmem_size;
        g_assert_cmpint(qtest_readb(target->qts, page), ==, 2);
        page += config.shmem_size - PAGE;
        g_assert_cmpint(qtest_readb(target->qts, page), ==, 2);
    }
    vm_free(target);
    vm_free(vm);
}

void add_log_tests(void)
{
    qtest_add_data_func("vhost-memory/log/size", NULL, test_log_size);
    qtest_add_data_func("vhost-memory/log/start-fails", NULL,
                        test_log_start_fails);
    qtest_add_data_func("vhost-memory/log/start-fails-ring", NULL,
                        test_log_start_fails_ring);
    qtest_add_data_func("vhost-memory/log/moves", (void *)false,
                        test_log_moves);
    if (qtest_has_device("vhost-user-blk-pci")) {
        qtest_add_data_func("vhost-memory/log/moves-shared", (void *)true,
                            test_log_moves);
    }
    qtest_add_data_func("vhost-memory/log/growth-fails", (void *)false,
                        test_log_growth_fails);
    qtest_add_data_func("vhost-memory/log/growth-fails-stopped", (void *)true,
                        test_log_growth_fails);
    qtest_add_data_func("vhost-memory/log/neighbours", NULL,
                        test_log_neighbours);
}
