/*
 * QTest testcase that runs what a fuzzer found worth keeping for virtio-mem
 *
 * The corpus holds one program for virtio-mem/ops.c per line, in base64.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/libqos-pc.h"
#include "qobject/qdict.h"
#include "virtio-mem/ops.h"

#define TIMEOUT_US (30 * G_USEC_PER_SEC)

static bool host_set(QTestState *qts, const char *path, const char *property,
                     uint64_t value)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'qom-set', 'arguments':"
                           " { 'path': %s, 'property': %s, 'value': %" PRIu64
                           " } }", path, property, value);
    const bool success = qdict_haskey(rsp, "return");

    qobject_unref(rsp);
    return success;
}

static uint64_t host_get(QTestState *qts, const char *path,
                         const char *property)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'qom-get', 'arguments':"
                           " { 'path': %s, 'property': %s } }", path, property);
    uint64_t value;

    g_assert_true(qdict_haskey(rsp, "return"));
    value = qdict_get_int(rsp, "return");
    qobject_unref(rsp);
    return value;
}

static bool host_get_bool(QTestState *qts, const char *path,
                          const char *property)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'qom-get', 'arguments':"
                           " { 'path': %s, 'property': %s } }", path, property);
    bool value;

    /* This tells the same as an error. */
    value = qdict_get_try_bool(rsp, "return", false);
    qobject_unref(rsp);
    return value;
}

static unsigned int host_nb_mapped(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-memslots' }");
    unsigned int used;

    g_assert_true(qdict_haskey(rsp, "return"));
    used = qdict_get_int(qdict_get_qdict(rsp, "return"), "used");
    qobject_unref(rsp);
    return used;
}

static void host_system_reset(QTestState *qts)
{
    qtest_qmp_assert_success(qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(qts, "RESET");
}

static void host_run(QTestState *qts, bool running)
{
    qtest_qmp_assert_success(qts, "{ 'execute': %s }",
                             running ? "cont" : "stop");
}

static void wait_for_migration_status(QTestState *qts, const char *wanted)
{
    const gint64 end = g_get_monotonic_time() + TIMEOUT_US;
    bool reached = false;

    while (!reached) {
        QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-migrate' }");
        QDict *info = qdict_get_qdict(rsp, "return");

        reached = g_str_equal(qdict_get_str(info, "status"), wanted);
        qobject_unref(rsp);
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    }
}

static void host_migrate(QTestState *qts, bool start)
{
    if (start) {
        /* Too slow to be over before we are; below 10 means no limit. */
        qtest_qmp_assert_success(qts, "{ 'execute': 'migrate-set-parameters',"
                                 " 'arguments': { 'max-bandwidth': 1000 } }");
        qtest_qmp_assert_success(qts, "{ 'execute': 'migrate', 'arguments':"
                                 " { 'uri': 'exec:cat >/dev/null' } }");
    } else {
        qtest_qmp_assert_success(qts, "{ 'execute': 'migrate_cancel' }");
    }
    wait_for_migration_status(qts, start ? "active" : "cancelled");
}

/* It is an error if one is measured, which does no harm. */
static void host_measure_dirty_rate(QTestState *qts)
{
    unsigned int i;

    for (i = 0; i < 2; i++) {
        qtest_qmp_send(qts, "{ 'execute': 'calc-dirty-rate', 'arguments':"
                       " { 'calc-time': 50, 'calc-time-unit': 'millisecond',"
                       "   'mode': 'dirty-bitmap' } }");
    }
    for (i = 0; i < 2; i++) {
        qobject_unref(qtest_qmp_receive(qts));
    }
}

static char *state_path;

static GByteArray *host_save(QTestState *qts)
{
    char *bytes;
    gsize size;

    qtest_qmp_assert_success(qts, "{ 'execute': 'xen-save-devices-state',"
                             " 'arguments': { 'filename': %s,"
                             " 'live': false } }", state_path);
    g_assert_true(g_file_get_contents(state_path, &bytes, &size, NULL));
    return g_byte_array_new_take((guint8 *)bytes, size);
}

static bool host_load(QTestState *qts, const GByteArray *state)
{
    QDict *rsp;
    bool success;

    g_assert_true(g_file_set_contents(state_path, (char *)state->data,
                                      state->len, NULL));
    rsp = qtest_qmp(qts, "{ 'execute': 'xen-load-devices-state',"
                    " 'arguments': { 'filename': %s } }", state_path);
    success = qdict_haskey(rsp, "return");
    qobject_unref(rsp);
    return success;
}

static void host_settle(QTestState *qts)
{
    qobject_unref(qtest_qmp(qts, "{ 'execute': 'query-status' }"));
}

/* The line of a failing program is the last one that is printed. */
static void test_corpus(void)
{
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "qtest",
                                                  "virtio-mem", "corpus.txt",
                                                  NULL);
    g_autofree char *args = NULL;
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    VirtioMEMHost host = {
        .set = host_set,
        .get = host_get,
        .get_bool = host_get_bool,
        .nb_mapped = host_nb_mapped,
        .system_reset = host_system_reset,
        .run = host_run,
        .migrate = host_migrate,
        .measure_dirty_rate = host_measure_dirty_rate,
        .save = host_save,
        .load = host_load,
        .settle = host_settle,
    };
    QOSState *qs;
    VirtioMEMOps *ops;
    unsigned int i, count = 0;
    int fd;

    if (!qtest_has_device("vhost-user-blk-pci") ||
        !qtest_has_device("virtio-iommu-pci")) {
        g_test_skip("vhost-user-blk-pci or virtio-iommu-pci is not built in");
        return;
    }
    fd = g_file_open_tmp("virtio-mem-fuzz-XXXXXX", &state_path, NULL);
    g_assert_cmpint(fd, >=, 0);
    close(fd);

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    lines = g_strsplit(text, "\n", -1);

    ops = virtio_mem_ops_new();
    args = virtio_mem_ops_args(ops);
    qs = qtest_pc_boot("%s", args);
    host.qts = qs->qts;
    virtio_mem_ops_start(ops, &host, qs->pcibus, &qs->alloc);
    for (i = 0; lines[i]; i++) {
        g_autofree uint8_t *program = NULL;
        size_t size;

        if (!lines[i][0] || lines[i][0] == '#') {
            continue;
        }
        g_test_message("line %u: %s", i + 1, lines[i]);
        program = g_base64_decode(lines[i], &size);
        virtio_mem_ops_run(ops, program, size);
        count++;
    }
    g_assert_cmpuint(count, >, 0);

    virtio_mem_ops_free(ops);
    qtest_shutdown(qs);
    unlink(state_path);
    g_free(state_path);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("virtio-mem-fuzz/corpus", test_corpus);

    return g_test_run();
}
