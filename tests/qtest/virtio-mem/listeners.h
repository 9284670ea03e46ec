/*
 * Listeners that mirror what is plugged, as VFIO does
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_LISTENERS_H
#define TESTS_VIRTIO_MEM_LISTENERS_H

#include "framework.h"

/* For vm_start_with() */
#define TESTDEV "-device ram-discard-testdev,id=testdev"
#define TESTDEV_PATH "/machine/peripheral/testdev"

/* The listeners know of all that is plugged, and were told in order. */
void check_listeners(TestVM *vm);

/* Have the listeners go, or come back and be told what is plugged by then. */
void set_listening(TestVM *vm, bool listening);

/* Have them take no more than that. */
void limit_listeners(TestVM *vm, uint64_t size);

/* Listeners refuse a request; all is as before it, memslots too. */
void plug_refused(TestVM *vm, uint64_t addr, uint64_t nb_blocks);

/* See ram-discard-testdev.c */
void set_testdev(TestVM *vm, const char *property, uint64_t value);

#endif
