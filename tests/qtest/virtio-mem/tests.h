/*
 * QTest testcases for virtio-mem, by subject
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_TESTS_H
#define TESTS_VIRTIO_MEM_TESTS_H

#include "configs.h"

/* A test, and the devices that it is run with: one row of a subject's table */
typedef struct TestGroup {
    const char *name;
    void (*fn)(const TestCase *test);
    const NamedConfig *configs;
    bool kvm_only;
    bool needs_pc;
    /*
     * also with x-early-migration=off, as "NAME-late": what is plugged arrives
     * after the memory
     */
    bool late_too;
    /* also with other machine types: a device meets its machine here */
    bool all_machines;
    /* with the defaults of other machine types, too, as "NAME-default" */
    bool machine_defaults;
} TestGroup;

/*
 * Add a table of tests, which ends with one that has no name: each test with
 * each of its devices, with and without KVM.
 */
void add_tests(const TestGroup *groups);

/* Tests that other subjects' devices have to go through as well */
void test_lifecycle(const TestCase *test);
void test_random_walk(const TestCase *test);

void add_backends_tests(void);
void add_listeners_tests(void);
void add_loadvm_tests(void);
void add_memslots_tests(void);
void add_migration_tests(void);
void add_realize_tests(void);
void add_refusal_tests(void);
void add_requests_tests(void);
void add_reset_tests(void);
void add_shared_tests(void);
void add_unplug_tests(void);

#endif
