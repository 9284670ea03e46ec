/*
 * Tests of virtio-mem-ccw's memslots
 *
 * libqos has no driver for virtio-ccw, so that no memory gets plugged here.
 * This tests what the proxy has to hand on; the rest is virtio-mem-test's.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define NAME "vmem0"
#define BACKEND "mem0"
#define SIZE (4 * GiB)

typedef struct Figures {
    uint64_t memslots;
    uint64_t active_memslots;
    uint64_t mapped_size;
} Figures;

/* What is promised to the device: a single memslot that is always mapped is. */
static const Figures many = { SIZE / GiB, 0, 0 };
static const Figures one = { 1, 1, SIZE };

static QTestState *start(void)
{
    return qtest_init("-machine s390-ccw-virtio -nodefaults -m 1G,maxmem=5G"
                      " -object memory-backend-ram,id=" BACKEND ",size=4G,"
                      "reserve=off");
}

static QDict *query(QTestState *qts, const char *command)
{
    return qtest_qmp_assert_success_ref(qts, "{ 'execute': %s }", command);
}

static uint64_t get_number(QTestState *qts, const char *property)
{
    QDict *response = qtest_qmp(qts, "{ 'execute': 'qom-get', 'arguments': {"
                                " 'path': '/machine/peripheral/" NAME "',"
                                " 'property': %s } }", property);
    uint64_t value;

    g_assert_true(qdict_haskey(response, "return"));
    value = qdict_get_int(response, "return");
    qobject_unref(response);
    return value;
}

static void check_account(QTestState *qts, unsigned int required,
                          unsigned int used)
{
    QDict *info = query(qts, "query-memslots");

    g_assert_cmpint(qdict_get_int(info, "required"), ==, required);
    g_assert_cmpint(qdict_get_int(info, "used"), ==, used);
    qobject_unref(info);
}

static void check_device(QTestState *qts, const Figures *figures)
{
    QDict *response = qtest_qmp(qts, "{ 'execute': 'query-memory-devices' }");
    QList *devices = qdict_get_qlist(response, "return");
    QDict *device = qobject_to(QDict, qlist_peek(devices));
    QDict *data = qdict_get_qdict(device, "data");

    g_assert_cmpstr(qdict_get_str(device, "type"), ==, "virtio-mem");
    g_assert_cmpint(qdict_get_int(data, "memslots"), ==, figures->memslots);
    g_assert_cmpint(qdict_get_int(data, "active-memslots"), ==,
                    figures->active_memslots);
    g_assert_cmpint(qdict_get_int(data, "mapped-size"), ==,
                    figures->mapped_size);
    qobject_unref(response);

    g_assert_cmpint(get_number(qts, "memslots"), ==, figures->memslots);
    g_assert_cmpint(get_number(qts, "active-memslots"), ==,
                    figures->active_memslots);
    g_assert_cmpint(get_number(qts, "mapped-size"), ==, figures->mapped_size);
    check_account(qts, figures->memslots, figures->active_memslots);
}

/* Either name of the property, and a device that goes and comes again */
static void test_hotplug(gconstpointer data)
{
    const char *property = data;
    QTestState *qts = start();
    int i;

    check_account(qts, 0, 0);
    for (i = 0; i < 2; i++) {
        qtest_qmp_device_add(qts, "virtio-mem-ccw", NAME,
                             "{ 'memdev': '" BACKEND "', %s: true,"
                             " 'requested-size': %" PRIu64 " }", property,
                             (uint64_t)GiB);
        check_device(qts, &many);
        g_assert_cmpint(get_number(qts, "requested-size"), ==, GiB);
        qtest_qmp_assert_success(qts, "{ 'execute': 'qom-set', 'arguments': {"
                                 " 'path': '/machine/peripheral/" NAME "',"
                                 " 'property': 'requested-size',"
                                 " 'value': 0 } }");
        qtest_qmp_device_del(qts, NAME);
        check_account(qts, 0, 0);
    }
    qtest_quit(qts);
}

static void test_single(void)
{
    QTestState *qts = start();

    qtest_qmp_device_add(qts, "virtio-mem-ccw", NAME,
                         "{ 'memdev': '" BACKEND "' }");
    check_device(qts, &one);
    qtest_qmp_device_del(qts, NAME);
    check_account(qts, 0, 0);
    qtest_quit(qts);
}

static void test_min_size(void)
{
    static const Figures figures = { SIZE / (2 * GiB), 0, 0 };
    QTestState *qts = start();

    qtest_qmp_device_add(qts, "virtio-mem-ccw", NAME,
                         "{ 'memdev': '" BACKEND "',"
                         " 'multiple-memslots': true,"
                         " 'memslot-min-size': %" PRIu64 " }",
                         (uint64_t)(2 * GiB));
    check_device(qts, &figures);
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_data_func("virtio-mem-ccw/multiple-memslots",
                        "multiple-memslots", test_hotplug);
    qtest_add_data_func("virtio-mem-ccw/dynamic-memslots",
                        "dynamic-memslots", test_hotplug);
    qtest_add_func("virtio-mem-ccw/single", test_single);
    qtest_add_func("virtio-mem-ccw/memslot-min-size", test_min_size);
    return g_test_run();
}
