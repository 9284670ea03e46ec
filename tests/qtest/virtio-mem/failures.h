/*
 * Failures of what is below virtio-mem devices
 *
 * See memory-preload.c and kvm-preload.c, which every VM of these tests loads
 * if they were built.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_FAILURES_H
#define TESTS_VIRTIO_MEM_FAILURES_H

#include "framework.h"

/* Skips the test if not. */
bool can_fail_calls(void);

/* Have calls fail from now on; the rules are explained in memory-preload.c. */
void fail_calls(TestVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

void stop_failing(TestVM *vm);

/* Have KVM refuse memslots that are added from now on. */
void refuse_memslots(TestVM *vm, bool refuse);

/* The calls by which memory of that kind is given back, in that order */
const char *const *discard_calls(const DeviceConfig *config);

/* QEMU has said that since its file was last emptied; empty it. */
void expect_stderr(TestVM *vm, const char *expected);

/* For the framework: between these, programs that start can be made to fail. */
char *failures_preload_begin(TestVM *vm);
void failures_preload_end(char *others);

void failures_init(void);
void failures_cleanup(void);

#endif
