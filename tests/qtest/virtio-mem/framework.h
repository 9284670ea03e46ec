/*
 * Virtual machines with virtio-mem devices, for tests
 *
 * The tests play the guest's driver. After every step, what QEMU shows of the
 * device - its configuration space, "info mtree -f", "info mtree", the counts
 * of "query-memslots" and, where there is a trace log, each single memslot that
 * was mapped or unmapped - has to be exactly what a model of the device says:
 * see checks.h for what is looked at, steps.h for what can be done.
 *
 * A test is a function that gets the device that it is to be run with. Each
 * subject has a file with its tests and a table of them, see tests.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_FRAMEWORK_H
#define TESTS_VIRTIO_MEM_FRAMEWORK_H

#include "libqtest.h"
#include "libqos/libqos.h"
#include "libqos/virtio-mem.h"
#include "model.h"

#define BOOT_RAM_SIZE (128 * MiB)
#define MAX_DEVICES 16
#define RANDOM_STEPS 200

/* ---- What differs from one architecture to the next ---- */

typedef struct Arch {
    const char *name;
    /* unless a test asks for another one */
    const char *machine;
    const char *cpu;
    /* for device memory of 1 TiB */
    const char *large_cpu;
    QOSState *(*vboot)(const char *fmt, va_list ap) G_GNUC_PRINTF(1, 0);
    /* see Model */
    uint64_t usable_extent;
    /* whether there are guests that may read unplugged memory */
    bool has_legacy_guests;
    /*
     * whether the default machine is one of which devices can be added to the
     * root bus, and removed, and that can sleep, all as on a PC
     */
    bool is_pc;
    /*
     * at most so much of what migrates is neither boot nor device memory:
     * firmware, flash, video memory and the like, and what is sent twice
     */
    uint64_t other_ram;
} Arch;

/* The one that is tested */
extern const Arch *arch;

/* ---- A device, and what a test needs besides ---- */

/* Where memory-backend-file has its file */
typedef enum FileSystem {
    FS_TMPFS,
    FS_DISK,
    FS_HUGETLB,
} FileSystem;

typedef struct DeviceConfig {
    /* -object, without id and size */
    const char *backend;
    uint64_t size;
    /* 0 for the default; then it has to be what the backend leads to */
    uint64_t block_size;
    bool multiple_memslots;
    /* by which property; NULL for the one of that name */
    const char *memslots_prop;
    /* 0 for the default */
    uint64_t memslot_min_size;
    /* 0 for the most there can be */
    unsigned int memslot_budget;
    /* expected size of the first memslot */
    uint64_t first_memslot_size;
    /* NULL for the default, which depends on the machine type */
    const char *unplugged_inaccessible;
    /* what that has to lead to */
    bool expect_inaccessible;
    /* what is plugged arrives after the memory, whatever the machine type */
    bool late_migration;
    /* at start */
    uint64_t requested_size;
    const char *extra_props;
    FileSystem fs;
    /* huge pages of 2 MiB that there have to be */
    unsigned int nb_huge_pages;
    /* a directory in the file system, set before a test; NULL for tmpfs */
    const char *mem_dir;
} DeviceConfig;

typedef struct TestCase {
    bool kvm;
    /* as for -machine; NULL for the default */
    const char *machine;
    void (*fn)(const struct TestCase *test);
    DeviceConfig config;
} TestCase;

/* ---- A virtual machine with devices, each along with its model ---- */

typedef struct Device {
    QVirtioMEMPCI *pci;
    Model model;
    char *memdev;
    char *qom_path;
    /* bool per memslot: whether it was mapped when we last looked */
    GArray *was_mapped;
} Device;

typedef struct TestVM {
    QOSState *qs;
    QTestState *qts;
    bool kvm;
    const char *machine;
    char *tmpdir;
    char *hmp_path;
    int hmp_fd;
    char *log_path;
    FILE *log;
    char *stderr_path;
    /* see memory-preload.c and kvm-preload.c */
    char *memory_fail_path;
    char *kvm_fail_path;
    /* false if trace events do not go to the log, for whatever reason */
    bool traced;
    /* true if memslots are mapped and unmapped again, as something refuses */
    bool maps_in_vain;
    /* number of KVM address spaces that RAM is in */
    unsigned int nb_kvm_as;
    unsigned int nb_devices;
    Device devices[MAX_DEVICES];
} TestVM;

Model *vm_model(TestVM *vm, unsigned int i);
QVirtioMEM *vm_mem(TestVM *vm, unsigned int i);

/* Start a VM with the device of the test, and check it. */
TestVM *vm_start(const TestCase *test);

/* With any devices, and extra arguments for QEMU, which may be empty */
TestVM *vm_start_with(const TestCase *test, const DeviceConfig *configs,
                      unsigned int nb_devices, const char *extra_args);

void vm_stop(TestVM *vm);

/* The steps of the above, for tests that need something in between. */
TestVM *vm_new(const TestCase *test);

/*
 * Boot with an address space for memory devices that has the given size.
 *
 * The VM stays stopped: with KVM, the guest's firmware must not run, as it
 * would get in the way of the driver in this test.
 */
void vm_boot(TestVM *vm, uint64_t device_memory_size, const char *args);

/* Arguments of -object and -device for the device of the given number */
char *backend_args(const char *tmpdir, unsigned int i,
                   const DeviceConfig *config);
char *device_args(unsigned int i, const DeviceConfig *config);

/* Find a device that is there, start it, and have a model for it. */
void device_init(TestVM *vm, unsigned int i, const DeviceConfig *config);

/* Forget about a device, which may be gone. */
void device_cleanup(Device *dev);

/* Where files are memory, if there is such a file system */
char *create_tmpdir(void);

/* Find out what is tested, and with what; has to come before all else. */
void framework_init(void);

void framework_cleanup(void);

#endif
