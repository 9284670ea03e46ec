/*
 * Virtio-mem devices that tests are good for
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "configs.h"

const NamedConfig basic_configs[] = {
    { "inaccessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "accessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { "single-inaccessible", { RAM, SINGLE(4 * GiB), INACCESSIBLE } },
    { "single-accessible", { RAM, SINGLE(4 * GiB), ACCESSIBLE } },
    { }
};

const NamedConfig discard_configs[] = {
    { "ram", BACKEND(RAM) },
    { "ram-shared", BACKEND(RAM_SHARED) },
    { "memfd", BACKEND(MEMFD) },
    { "disk-private", DISK_BACKEND(FILE_PRIVATE) },
    { "huge-memfd", HUGE_BACKEND(HUGE_MEMFD) },
    { "accessible-ram", ACCESSIBLE_BACKEND(RAM) },
    { "single-memfd", SINGLE_BACKEND(MEMFD) },
    { }
};
