/*
 * Migration of virtual machines with virtio-mem devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_MIGRATION_H
#define TESTS_VIRTIO_MEM_MIGRATION_H

#include "framework.h"

void migrate_to_file(TestVM *vm, const char *path);

/*
 * Boot a VM that waits for a migration. Its device is not known to the VM until
 * the state has arrived, see device_init_migrated().
 */
TestVM *boot_destination(const TestCase *test, const DeviceConfig *config,
                         const char *extra_args);

void migrate_from_file(TestVM *vm, const char *path);

/* The device that has arrived is to be as the one that was sent. */
void device_init_migrated(TestVM *vm, const DeviceConfig *config,
                          const Model *from);

/* Returns the memory that migration looked at and sent, in whatever form. */
uint64_t migrated_size(TestVM *vm);

/* As "query-migrate" has it */
char *migration_status(TestVM *vm);
void wait_for_migration_status(TestVM *vm, const char *wanted);

/* Waits for QEMU to end by itself. */
void wait_for_exit(TestVM *vm);

/*
 * Have a destination load what @uri leads to: it is to fail, and to say @said
 * (NULL: anything). Frees the VM.
 */
void check_incoming_fails(TestVM *vm, const char *uri, const char *said);

void set_migration_capability(TestVM *vm, const char *name);

#endif
