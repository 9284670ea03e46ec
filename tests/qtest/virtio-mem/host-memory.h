/*
 * Memory of the host that virtio-mem devices use
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_HOST_MEMORY_H
#define TESTS_VIRTIO_MEM_HOST_MEMORY_H

#include "framework.h"

#define HUGE_PAGE_SIZE (2 * MiB)

/* ---- What the host has to have, and has to have back ---- */

typedef struct Host {
    /* where the files of memory backends go; NULL if that does not matter */
    char *dir;
    bool is_mounted;
    /* what there was before, if that was changed */
    bool has_huge_pages;
    uint64_t old_huge_pages;
} Host;

/* Skips the test and returns false if the device cannot be had here. */
bool host_prepare(Host *host, const DeviceConfig *config);

void host_restore(void *host);

/* What the kernel has in its file of that name */
uint64_t huge_pages(const char *what);

/* Returns false if there are fewer or more now. */
bool set_huge_pages(uint64_t nb_pages);

uint64_t allocated_size(const char *path);

/* ---- Where QEMU has the memory of a device ---- */

typedef struct HostMemory {
    pid_t pid;
    uint64_t start;
    uint64_t size;
} HostMemory;

/* What is behind a mapping is for the privileged to see; skips if we aren't. */
bool can_see_memory(void);

/* The address has to be one where a memslot is mapped. */
HostMemory find_host_memory(TestVM *vm, unsigned int i, uint64_t mapped_addr);

char *proc_path(const HostMemory *mem, const char *name);

/* What is QEMU's alone: anonymous memory, and copies of a private file's */
uint64_t allocated_privately(const HostMemory *mem, uint64_t offset,
                             uint64_t size);

/*
 * Neither what is QEMU's alone nor what is in a file exceeds @max, and one of
 * them is at least @min.
 */
void check_allocated(const HostMemory *mem, uint64_t min, uint64_t max);

/* ---- What is in there ---- */

typedef struct Blocks {
    TestVM *vm;
    uint64_t addr;
    uint64_t block_size;
    unsigned int count;
} Blocks;

void write_block(const Blocks *blocks, unsigned int block);
void check_block(const Blocks *blocks, unsigned int block);

/* All of it: so much that qtest_memread() would take seconds */
void check_block_is_zero(const Blocks *blocks, const HostMemory *mem,
                         unsigned int block);

#endif
