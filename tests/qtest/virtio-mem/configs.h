/*
 * Virtio-mem devices that tests are good for
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_CONFIGS_H
#define TESTS_VIRTIO_MEM_CONFIGS_H

#include "qemu/units.h"
#include "framework.h"

/* Tables of these end with one that has no name. */
typedef struct NamedConfig {
    const char *name;
    DeviceConfig config;
} NamedConfig;

/* Members of DeviceConfig: what an unplugged block is to a guest, */
#define INACCESSIBLE                                                       \
    .unplugged_inaccessible = "on", .expect_inaccessible = true
#define ACCESSIBLE                                                         \
    .unplugged_inaccessible = "off", .expect_inaccessible = false
#define AUTO_INACCESSIBLE                                                  \
    .unplugged_inaccessible = "auto", .expect_inaccessible = true
#define AUTO_ACCESSIBLE                                                    \
    .unplugged_inaccessible = "auto", .expect_inaccessible = false
#define DEFAULT_INACCESSIBLE .expect_inaccessible = true
#define DEFAULT_ACCESSIBLE .expect_inaccessible = false

/* size and memslots, */
#define MULTIPLE(size_, first_memslot_size_)                               \
    .size = size_, .multiple_memslots = true,                              \
    .first_memslot_size = first_memslot_size_
#define SINGLE(size_) .size = size_

/* and the kind of memory */
#define RAM "memory-backend-ram"
#define RAM_SHARED "memory-backend-ram,share=on"
#define RAM_SPARSE "memory-backend-ram,reserve=off"
#define MEMFD "memory-backend-memfd"
#define MEMFD_PRIVATE "memory-backend-memfd,share=off"
#define FILE_SHARED "memory-backend-file,share=on"
#define FILE_PRIVATE "memory-backend-file,share=off"
#define HUGE_MEMFD "memory-backend-memfd,hugetlb=on,hugetlbsize=2M,reserve=off"
#define HUGE_MEMFD_PRIVATE HUGE_MEMFD ",share=off"
#define HUGE_MEMFD_RESERVED "memory-backend-memfd,hugetlb=on,hugetlbsize=2M"
#define HUGE_FILE FILE_SHARED ",reserve=off"
#define HUGE_FILE_PRIVATE FILE_PRIVATE ",reserve=off"

/* Devices that differ in their memory only */
#define BACKEND(backend) { backend, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE }
#define SINGLE_BACKEND(backend) { backend, SINGLE(4 * GiB), INACCESSIBLE }
#define ACCESSIBLE_BACKEND(backend)                                        \
    { backend, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE }

#define HUGE .nb_huge_pages = 16
#define HUGE_BACKEND(backend)                                              \
    { backend, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE, HUGE }
#define HUGE_FS_BACKEND(backend)                                           \
    { backend, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE, HUGE,             \
      .fs = FS_HUGETLB }
#define DISK_BACKEND(backend)                                              \
    { backend, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE, .fs = FS_DISK }

/* The devices that nearly all tests are good for */
extern const NamedConfig basic_configs[];

/* Kinds of memory that are given back in different ways */
extern const NamedConfig discard_configs[];

#endif
