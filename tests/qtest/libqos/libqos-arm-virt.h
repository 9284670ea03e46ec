/*
 * libqos boot of ARM's machine "virt", without the qgraph framework
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef LIBQOS_ARM_VIRT_H
#define LIBQOS_ARM_VIRT_H

#include "libqos.h"

/**
 * qtest_arm_virt_vboot:
 * @cmdline_fmt: format of the command line, which has to ask for a machine of
 *               this type, for highmem, and for a CPU with 64 bits
 * @ap: arguments of the format
 *
 * Start QEMU, with memory for a driver to allocate and access to the PCI bus.
 * The guest needs at least 128 MiB of memory.
 *
 * Returns: the machine, to be ended with qtest_shutdown()
 */
QOSState *qtest_arm_virt_vboot(const char *cmdline_fmt, va_list ap)
    G_GNUC_PRINTF(1, 0);

#endif
