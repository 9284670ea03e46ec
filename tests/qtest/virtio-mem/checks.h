/*
 * What QEMU shows of virtio-mem devices, compared with their models
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_CHECKS_H
#define TESTS_VIRTIO_MEM_CHECKS_H

#include "framework.h"

/*
 * All devices are as their models say: what they show to the guest, where they
 * have memory, and what of that changed since the last call.
 *
 * Returns how many flat views were made since the last call.
 */
unsigned int vm_check(TestVM *vm);

/* Memory regions and flat views alone */
void check_regions(TestVM *vm);

/* Forget about the changes so far, but for the address spaces of KVM. */
void vm_skip_changes(TestVM *vm);

/* The first device goes, and has unmapped all of its memslots. */
void check_all_unmapped(TestVM *vm);

/* The first event that tells of a refused request of the i-th device */
void assert_refused_event(TestVM *vm, unsigned int i, const char *refuser);

/* There is no device, nor anything left of one. */
void assert_no_region_of_device(TestVM *vm);

uint64_t qom_get_size(TestVM *vm, const char *path, const char *property);
bool qom_get_bool(TestVM *vm, const char *path, const char *property);

/* A member of what "query-memslots" returns */
uint64_t query_memslots(TestVM *vm, const char *what);

/*
 * Much of the output of the commands that we use is of no interest, so
 * qtest_hmp(), which gets all of it byte by byte, would be most of the time
 * that this test takes. Our monitor is an interactive one, for a human.
 */
char *hmp(TestVM *vm, const char *command);

/* The output contains what is expected; is empty, if that is. */
void assert_hmp(TestVM *vm, const char *command, const char *expected);

/* QEMU created the socket before it became ready. */
void hmp_connect(TestVM *vm);

#endif
