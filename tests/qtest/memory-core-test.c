/*
 * Tests of what QEMU's memory core tells others, no guest needed
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "qobject/qdict.h"

#define RAM_SIZE (64 * MiB)
#define PAGE (4 * KiB)

/* A device that looks at memory: see hw/mem/ram-discard-testdev.c */
#define TESTDEV "-device ram-discard-testdev,id=testdev "
#define TESTDEV_PATH "/machine/peripheral/testdev"

/* A PCI device with memory, and where that is mapped */
#define PCI_SLOT 5
#define PCI_BAR 0xe0000000
#define PCI_DEVICE "-device pci-testdev,id=pci,addr=5 "

/* The eject register of the PCI hotplug controller of machine pc */
#define ACPI_PCI_EJECT 0xae08

static QTestState *start(const char *args)
{
    return qtest_initf("-machine pc -nodefaults -m %" PRIu64 "M %s",
                       (uint64_t)(RAM_SIZE / MiB), args);
}

static uint64_t get_number(QTestState *qts, const char *property)
{
    QDict *response = qtest_qmp(qts, "{ 'execute': 'qom-get', 'arguments': {"
                                " 'path': %s, 'property': %s } }",
                                TESTDEV_PATH, property);
    uint64_t value;

    g_assert_true(qdict_haskey(response, "return"));
    value = qdict_get_int(response, "return");
    qobject_unref(response);
    return value;
}

static void set_number(QTestState *qts, const char *property, uint64_t value)
{
    qtest_qmp_assert_success(qts, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': %s, 'property': %s, 'value': %" PRIu64
                             " } }", TESTDEV_PATH, property, value);
}

static void assert_display_dirty(QTestState *qts, uint64_t expected)
{
    g_assert_cmphex(get_number(qts, "display-dirty"), ==, expected);
    /* They are drawn now. */
    g_assert_cmphex(get_number(qts, "display-dirty"), ==, 0);
}

/* A display has to draw all at first, and then what is written. */
static void test_display(void)
{
    QTestState *qts = start(TESTDEV);

    set_number(qts, "iotlb-address", MiB);
    qtest_qom_set_bool(qts, TESTDEV_PATH, "displayed", true);
    assert_display_dirty(qts, RAM_SIZE);

    qtest_writel(qts, 2 * MiB, 1);
    qtest_writel(qts, 2 * MiB + 4, 1);
    qtest_writel(qts, RAM_SIZE - 4, 1);
    assert_display_dirty(qts, 2 * PAGE);

    /* Nobody notes what is written while there is no display. */
    qtest_qom_set_bool(qts, TESTDEV_PATH, "displayed", false);
    qtest_writel(qts, 2 * MiB, 2);
    qtest_qom_set_bool(qts, TESTDEV_PATH, "displayed", true);
    assert_display_dirty(qts, RAM_SIZE);

    qtest_quit(qts);
}

/* An entry of an IOMMU's TLB for all addresses there are leads to no memory. */
static void test_largest_iotlb_entry(void)
{
    QTestState *qts = start(TESTDEV);

    set_number(qts, "iotlb-mask", PAGE - 1);
    g_assert_true(qtest_qom_get_bool(qts, TESTDEV_PATH, "iotlb-valid"));
    set_number(qts, "iotlb-mask", UINT64_MAX);
    g_assert_false(qtest_qom_get_bool(qts, TESTDEV_PATH, "iotlb-valid"));

    qtest_quit(qts);
}

static void pci_write(QTestState *qts, uint8_t offset, uint32_t value)
{
    qtest_outl(qts, 0xcf8, 0x80000000 | PCI_SLOT << 11 | offset);
    qtest_outl(qts, 0xcfc, value);
}

static bool is_deleted(QTestState *qts, unsigned int max_seconds)
{
    const gint64 end = g_get_monotonic_time() +
                       max_seconds * G_TIME_SPAN_SECOND;
    QDict *event;

    do {
        qtest_qmp_assert_success(qts, "{ 'execute': 'query-status' }");
        /* Another one tells of the device's proxy, or the like. */
        while ((event = qtest_qmp_event_ref(qts, "DEVICE_DELETED"))) {
            const bool found = qdict_haskey(qdict_get_qdict(event, "data"),
                                            "device");

            qobject_unref(event);
            if (found) {
                return true;
            }
        }
        g_usleep(G_TIME_SPAN_MILLISECOND);
    } while (g_get_monotonic_time() < end);
    return false;
}

/* Looking at a device's memory does not keep it from going away. */
static void test_look_at_flat_views(void)
{
    QTestState *qts = start(PCI_DEVICE);
    g_autofree char *shown = NULL;

    pci_write(qts, 0x10, PCI_BAR);
    pci_write(qts, 4, 2);
    shown = qtest_hmp(qts, "info mtree -f");
    g_assert_nonnull(strstr(shown, "pci-testdev-mmio"));

    qtest_qmp_assert_success(qts, "{ 'execute': 'device_del', 'arguments': {"
                             " 'id': 'pci' } }");
    qtest_outl(qts, ACPI_PCI_EJECT, 1 << PCI_SLOT);
    g_assert_true(is_deleted(qts, 30));

    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/memory-core/display", test_display);
    qtest_add_func("/memory-core/largest-iotlb-entry",
                   test_largest_iotlb_entry);
    qtest_add_func("/memory-core/look-at-flat-views", test_look_at_flat_views);

    return g_test_run();
}
