/*
 * Framework for tests of the memslot account
 *
 * A step does something to a machine and to the model of it, and compares: what
 * the model refuses is refused by QEMU, in the same words, and afterwards all
 * counts, memslots and memory regions are the expected ones.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_MEMSLOT_ACCOUNT_FRAMEWORK_H
#define TESTS_MEMSLOT_ACCOUNT_FRAMEWORK_H

#include "model.h"

#define BOOT_RAM_SIZE (128 * MiB)

/* Where device memory starts if there is no boot memory above 4 GiB */
#define DEVICE_MEMORY_BASE (4 * GiB)

/* Nothing else is there, and no memory device. */
#define TESTDEV_ADDR (2 * GiB)
#define SHARED_TESTDEV_ADDR (2 * GiB + 512 * MiB)

/* All kinds of boot memory that is shared with vhost-user backends */
#define SHARED_BOOT_MEMORY                                                 \
    "-machine pc,nvdimm=on,memory-backend=boot0"                           \
    " -object memory-backend-memfd,id=boot0,size=128M"

/* A single piece of it, and none: for backends that can hold next to nothing */
#define ONE_SHARED_BOOT_MEMORY                                             \
    "-machine pc -object memory-backend-ram,id=private0,size=64M"          \
    " -object memory-backend-memfd,id=boot1,size=64M"                      \
    " -numa node,memdev=private0 -numa node,memdev=boot1"
#define NO_SHARED_BOOT_MEMORY "-machine pc"

/* ---- Tests ---- */

typedef struct TestCase {
    bool kvm;
    /* what KVM shall say that it can hold; 0 for what it can */
    unsigned int kvm_limit;
    bool cold;
    /* to tell apart tests that are otherwise the same */
    unsigned int index;
    void (*fn)(const struct TestCase *test);
} TestCase;

typedef struct TestGroup {
    const char *name;
    void (*fn)(const TestCase *test);
    /* also with all that comes first being there from the start */
    bool cold;
    /* with KVM only, which says that this is what it can hold */
    unsigned int kvm_limit;
    /* how many times, each with an index of its own; 0 for once */
    unsigned int times;
} TestGroup;

/* The library that has KVM say that it can hold less, see kvm-preload.c */
extern char *preload_path;

void add_test_groups(const TestGroup *groups, unsigned int count, bool kvm);

void add_admission_tests(bool kvm);
void add_budget_tests(bool kvm);
void add_hotplug_tests(bool kvm);
void add_migration_tests(bool kvm);
void add_query_tests(bool kvm);
void add_random_tests(bool kvm);
void add_taken_tests(bool kvm);
void add_vhost_user_tests(bool kvm);
void add_whole_device_tests(bool kvm);

/* The backend of these tests, talked to without QEMU in between */
void add_backend_test(void);

/* ---- The machine ---- */

/*
 * Returns a machine that runs already, to which all is added while it does; or
 * one that does not run before vm_start(), with all that is added up to then
 * being on its command line.
 */
TestVM *vm_new(const TestCase *test, uint64_t device_memory_size,
               const char *fmt, ...) G_GNUC_PRINTF(3, 4);
TestVM *vm_new_default(const TestCase *test, uint64_t device_memory_size);

/* Does nothing if the machine runs already. */
void vm_start(TestVM *vm);
void vm_stop(TestVM *vm);

/*
 * Memory is unplugged by that, backends are stopped, and devices are gone that
 * the guest was asked to let go of.
 */
void vm_reset(TestVM *vm);

/* Starts QEMU, and no driver. */
void vm_boot(TestVM *vm);

/* What is refused on the command line is refused with the same words. */
void check_start_fails(TestVM *vm, const char *expected);

char *vm_file(const TestVM *vm, const char *name);
char *vm_vnew_id(TestVM *vm, const char *prefix);
unsigned int take_pci_slot(TestVM *vm);
unsigned int take_dimm_slot(TestVM *vm);

/* Returns how many times QEMU has written the text to stderr. */
unsigned int vm_nr_warnings(const TestVM *vm, const char *text);

/* ---- Monitor ---- */

/* Returns the error's description, or NULL on success. */
char *try_qmp(TestVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
void qmp_succeeds(TestVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* A command that prints nothing if it works */
void run_hmp(TestVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* Arguments as for -device. Returns the error, or NULL on success. */
char *try_device_add(TestVM *vm, const char *args);
void wait_device_deleted(TestVM *vm, const char *id);

/* Play the guest, which lets go of a device that was asked for. */
void eject_pci_device(TestVM *vm, unsigned int slot);

/* ---- The check after each step ---- */

void vm_check(TestVM *vm);

/* Find out what is there before anything else is. */
void vm_measure(TestVM *vm);

/* Not only its table makes for messages now. */
void backend_forget(Backend *backend);

/* ---- Memory devices ---- */

Mem *mem_new(TestVM *vm, const MemConfig *config);
void mem_free(Mem *mem);
char *mem_object_args(const Mem *mem);
char *mem_device_args(const Mem *mem);

/* Returns NULL if QEMU refuses the memory device, and should. */
Mem *vm_add_mem(TestVM *vm, const MemConfig *config);

/*
 * The model is not only what QEMU is held to: it is checked here that it says
 * what it should, unless @reason is NULL.
 */
void assert_refused(TestVM *vm, const MemConfig *config, const char *reason);

void vm_remove_dimm(TestVM *vm, Mem *mem);

/* For when something else is to come of it, which a check might not wait for */
void vm_remove_dimm_unchecked(TestVM *vm, Mem *mem);

/*
 * Unplug a virtio-mem device: its memory backend stays, and can be plugged
 * again. They return false if QEMU refuses, and should.
 */
bool vm_unplug_vmem(TestVM *vm, Mem *mem);
Mem *vm_add_mem_with(TestVM *vm, const MemConfig *config, const char *memdev);
void vm_remove_memdev(TestVM *vm, const char *memdev);

/* The same in two steps: it is asked for, and the guest lets go of it. */
bool vm_request_unplug(TestVM *vm, Mem *mem);
void vm_finish_unplug(TestVM *vm, Mem *mem);

/* Find the virtio-mem device, as its driver would. */
void mem_start(TestVM *vm, Mem *mem);

/* The guest's requests: return VIRTIO_MEM_RESP_* */
uint16_t plug(TestVM *vm, Mem *mem, uint64_t offset, uint64_t size);
uint16_t unplug(TestVM *vm, Mem *mem, uint64_t offset, uint64_t size);
void unplug_all(TestVM *vm, Mem *mem);

#define assert_ack(expr)   g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_ACK)
#define assert_busy(expr)  g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_BUSY)

/* Returns false if QEMU refuses, and should. */
bool request_size(TestVM *vm, Mem *mem, uint64_t size);

/* Somebody takes memslots, or gives them back. */
void set_testdev_count(TestVM *vm, bool shared, unsigned int count);

/* ---- vhost-user backends ---- */

Backend *backend_new(TestVM *vm, unsigned int max_regions);
void backend_free(TestVM *vm, Backend *backend);
char *backend_chardev_args(const Backend *backend);
char *backend_device_args(const Backend *backend);

/*
 * Returns NULL if QEMU refuses the backend, and should. It is not started
 * before the driver does.
 */
Backend *vm_add_backend(TestVM *vm, unsigned int max_regions);
Backend *vm_add_started_backend(TestVM *vm, unsigned int max_regions);
void vm_remove_backend(TestVM *vm, Backend *backend);
void assert_backend_refused(TestVM *vm, unsigned int max_regions,
                            unsigned int used, unsigned int reserved);

/* Play the driver, so that QEMU starts the backend. */
void backend_start(TestVM *vm, Backend *backend);

/* The device is left as it is. */
void backend_free_driver(TestVM *vm, Backend *backend);

/* For one that is started: QEMU does not notice with others. */
void kill_backend(TestVM *vm, Backend *backend);
void restart_backends(TestVM *vm, Backend **backends, unsigned int count);

/* Wait for backends that were killed and that QEMU connects to again. */
void expect_backends(TestVM *vm, Backend **backends, unsigned int count);

/* Whether QEMU counts with it */
bool holder_is_shown(TestVM *vm, const Backend *backend);

/* Messages that one got, and the total of those that there are */
unsigned int nr_messages(const Backend *backend);
unsigned int vm_nr_messages(const TestVM *vm);

/* Whether the backend can access the block at some offset */
bool can_reach(const Backend *backend, const Mem *mem, uint64_t offset);

#endif
