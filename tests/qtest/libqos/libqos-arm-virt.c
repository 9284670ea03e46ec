/*
 * libqos boot of ARM's machine "virt", without the qgraph framework
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "generic-pcihost.h"
#include "libqos-arm-virt.h"

#define ARM_PAGE_SIZE 4096
#define ARM_VIRT_RAM_ADDR 0x40000000
/* The machine writes the device tree there, at reset. */
#define ARM_VIRT_FDT_SIZE (1 * MiB)
#define ARM_VIRT_MIN_RAM_SIZE (128 * MiB)

static void arm_virt_alloc_init(QGuestAllocator *alloc, QTestState *qts,
                                QAllocOpts flags)
{
    alloc_init(alloc, flags, ARM_VIRT_RAM_ADDR + ARM_VIRT_FDT_SIZE,
               ARM_VIRT_RAM_ADDR + ARM_VIRT_MIN_RAM_SIZE, ARM_PAGE_SIZE);
}

/* It moves if there is much memory; firmware would look at the device tree. */
static uint64_t arm_virt_ecam_addr(QTestState *qts)
{
    g_autofree char *text = qtest_hmp(qts, "info mtree");
    g_autoptr(GRegex) regex =
        g_regex_new("([0-9a-f]+)-[0-9a-f]+ \\([^)]*\\): alias pcie-ecam ", 0, 0,
                    NULL);
    g_autoptr(GMatchInfo) match = NULL;
    g_autofree char *addr = NULL;

    g_assert_true(g_regex_match(regex, text, 0, &match));
    addr = g_match_info_fetch(match, 1);
    return g_ascii_strtoull(addr, NULL, 16);
}

static QPCIBus *qpci_new_arm_virt(QTestState *qts, QGuestAllocator *alloc)
{
    QGenericPCIBus *generic = g_new0(QGenericPCIBus, 1);

    qpci_init_generic(generic, qts, alloc, false);
    generic->ecam_alloc_ptr = arm_virt_ecam_addr(qts);
    return &generic->bus;
}

static void qpci_free_arm_virt(QPCIBus *bus)
{
    g_free(container_of(bus, QGenericPCIBus, bus));
}

static QOSOps qos_ops = {
    .alloc_init = arm_virt_alloc_init,
    .qpci_new = qpci_new_arm_virt,
    .qpci_free = qpci_free_arm_virt,
};

QOSState *qtest_arm_virt_vboot(const char *cmdline_fmt, va_list ap)
{
    return qtest_vboot(&qos_ops, cmdline_fmt, ap);
}
