/*
 * libqos helpers for what tests need of the host
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_LIBQOS_HOST_H
#define TESTS_LIBQOS_HOST_H

#include "../libqtest.h"

/**
 * qhost_skip:
 * @need: what the host lacks: "kvm", or "root" for what only root may do
 * @fmt: the reason, as for printf()
 *
 * Skip the test that runs. If the environment variable REQUIRE, a list with
 * commas, has @need in it, the test fails instead.
 */
void qhost_skip(const char *need, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/**
 * qhost_why_no_kvm:
 *
 * Returns: why QEMU can't use KVM here, or NULL if it can.
 */
const char *qhost_why_no_kvm(void);

/**
 * qhost_test_no_kvm:
 * @reason: why there are no tests with KVM
 *
 * A test for qtest_add_data_func() that stands for those, and is skipped, or
 * fails if there is no KVM but REQUIRE has "kvm" in it.
 */
void qhost_test_no_kvm(const void *reason);

/**
 * qhost_find_module:
 * @name: file name of a library that is built along with the tests
 *
 * Returns: the path of the library, which lies in "preload" next to the test's
 * program, or NULL if it is not there: not all C libraries allow for it. To be
 * freed by the caller.
 */
char *qhost_find_module(const char *name);

/**
 * qhost_preload_begin:
 * @path: path of a library
 *
 * Have programs that are started from now on load the library before all
 * others, including those that LD_PRELOAD names already.
 *
 * Returns: what LD_PRELOAD was, for qhost_preload_end(); may be NULL.
 */
char *qhost_preload_begin(const char *path);

/**
 * qhost_preload_end:
 * @others: what qhost_preload_begin() returned; is freed
 *
 * Programs that are started from now on do not load the library any more.
 */
void qhost_preload_end(char *others);

/**
 * qhost_remove_dir:
 * @path: path of a directory that contains nothing but files
 *
 * Remove the directory and all that is in it.
 */
void qhost_remove_dir(const char *path);

/**
 * qhost_write_sleeping_firmware:
 * @path: where to write it
 *
 * Write firmware for -bios with which the vCPU of a PC sleeps: with KVM, vCPUs
 * run, and a guest would get in the test's way.
 */
void qhost_write_sleeping_firmware(const char *path);

/**
 * qhost_wait_asleep:
 * @qts: a PC with one vCPU, KVM and that firmware, just started
 *
 * Wait until the vCPU sleeps, unless the VM waits for a migration. KVM that
 * runs in a VM itself fails now and then to emulate the very first instruction,
 * and the VM stops: reset it and have it go on.
 */
void qhost_wait_asleep(QTestState *qts);

#endif
