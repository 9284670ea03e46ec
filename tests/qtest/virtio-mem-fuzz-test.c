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

/* The line of a failing program is the last one that is printed. */
static void test_corpus(void)
{
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "qtest",
                                                  "virtio-mem", "corpus.txt",
                                                  NULL);
    g_autofree char *args = virtio_mem_ops_args();
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    VirtioMEMHost host = {
        .set = host_set,
        .get = host_get,
        .nb_mapped = host_nb_mapped,
        .system_reset = host_system_reset,
    };
    QOSState *qs;
    VirtioMEMOps *ops;
    unsigned int i, count = 0;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    lines = g_strsplit(text, "\n", -1);

    qs = qtest_pc_boot("%s", args);
    host.qts = qs->qts;
    ops = virtio_mem_ops_new(&host, qs->pcibus, &qs->alloc);
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
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("virtio-mem-fuzz/corpus", test_corpus);

    return g_test_run();
}
