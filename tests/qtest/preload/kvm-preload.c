/*
 * A library to preload into QEMU that watches KVM's memslots, and that makes
 * KVM have fewer of them, or refuse them
 *
 * To be used with LD_PRELOAD. Without one of these in the environment, it
 * changes nothing:
 *
 * KVM_PRELOAD_NR_MEMSLOTS=N
 *   KVM says that it can hold N memslots. It still can hold as many as it can.
 *
 * KVM_PRELOAD_REGION2=1
 *   KVM says that it has memory attributes, so that QEMU uses
 *   KVM_SET_USER_MEMORY_REGION2 if KVM has that, and guest_memfd.
 *
 * KVM_PRELOAD_FAIL_FILE=FILE, KVM_PRELOAD_FAIL=N
 *   While FILE exists, the N-th memslot that is added, and all that are added
 *   after it, are refused with ENOMEM. N is 1 by default. Counting starts anew
 *   whenever a memslot was added without FILE.
 *
 * KVM_PRELOAD_FAIL_ADDR=ADDR
 *   Memslots below that guest-physical address are not counted, nor refused.
 *
 * KVM_PRELOAD_LOG=FILE
 *   Append a line for each KVM_SET_USER_MEMORY_REGION and
 *   KVM_SET_USER_MEMORY_REGION2: address space, slot, address and size in
 *   hexadecimal (size 0: the slot is removed), result (0 or a negative errno),
 *   the CPU time in ns that the thread has spent since its last such call
 *   returned: QEMU's own, without KVM's and without ours; and 1 or 2 for which
 *   of the two it is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <dlfcn.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>

#define MAX_AS 2
#define MAX_SLOTS (1 << 16)

static int (*real_ioctl)(int fd, unsigned long request, ...);

static const char *fail_file;
static unsigned long fail_from = 1;
static uint64_t fail_addr;
static long nr_memslots;
static bool has_attributes;
static int log_fd = -1;

/* QEMU adds and removes memslots one at a time. */
static bool added[MAX_AS][MAX_SLOTS];
static unsigned long nr_added_while_failing;

static __thread uint64_t last_return_ns;

/* What reading the clock costs, which is not QEMU's own time */
static uint64_t clock_cost_ns = UINT64_MAX;

static uint64_t thread_cpu_ns(void)
{
    struct timespec ts = { };

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void __attribute__((constructor)) preload_init(void)
{
    const char *str;
    int i;

    real_ioctl = dlsym(RTLD_NEXT, "ioctl");
    for (i = 0; i < 100; i++) {
        const uint64_t start_ns = thread_cpu_ns();

        clock_cost_ns = MIN(clock_cost_ns, thread_cpu_ns() - start_ns);
    }

    str = getenv("KVM_PRELOAD_NR_MEMSLOTS");
    if (str) {
        nr_memslots = atol(str);
    }
    has_attributes = getenv("KVM_PRELOAD_REGION2");
    fail_file = getenv("KVM_PRELOAD_FAIL_FILE");
    str = getenv("KVM_PRELOAD_FAIL");
    if (str) {
        fail_from = atol(str);
    }
    str = getenv("KVM_PRELOAD_FAIL_ADDR");
    if (str && sscanf(str, "0x%" SCNx64, &fail_addr) != 1) {
        abort();
    }
    str = getenv("KVM_PRELOAD_LOG");
    if (str) {
        log_fd = open(str, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
}

static bool refuse_to_add(void)
{
    if (!fail_file || access(fail_file, F_OK) != 0) {
        nr_added_while_failing = 0;
        return false;
    }
    return ++nr_added_while_failing >= fail_from;
}

/* The structure of the successor begins as that of the first one does. */
static int set_user_memory_region(int fd, unsigned long request,
                                  struct kvm_userspace_memory_region *mem)
{
    const uint64_t ns = thread_cpu_ns() - last_return_ns;
    const uint64_t own_ns = ns - MIN(ns, clock_cost_ns);
    const unsigned int as = mem->slot >> 16, slot = mem->slot & 0xffff;
    bool *is_added = &added[as % MAX_AS][slot];
    int ret, saved_errno;

    if (mem->memory_size && !*is_added && mem->guest_phys_addr >= fail_addr &&
        refuse_to_add()) {
        errno = ENOMEM;
        ret = -1;
    } else {
        ret = real_ioctl(fd, request, mem);
    }
    saved_errno = errno;
    if (ret == 0) {
        *is_added = mem->memory_size;
    }

    if (log_fd >= 0) {
        char line[128];
        const int len = snprintf(line, sizeof(line), "%u %u 0x%llx 0x%llx %d"
                                 " %" PRIu64 " %d\n", as, slot,
                                 mem->guest_phys_addr, mem->memory_size,
                                 ret < 0 ? -saved_errno : ret, own_ns,
                                 request == KVM_SET_USER_MEMORY_REGION ? 1 : 2);

        if (write(log_fd, line, len) != len) {
            abort();
        }
    }

    last_return_ns = thread_cpu_ns();
    errno = saved_errno;
    return ret;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list ap;
    void *arg;

    /* All that are there have no argument or one that fits. */
    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);

    if (!real_ioctl) {
        /* another library's constructor that comes before ours */
        real_ioctl = dlsym(RTLD_NEXT, "ioctl");
    }

    /* These numbers are KVM's alone, so there is no need to look at fd. */
    if (request == KVM_SET_USER_MEMORY_REGION ||
        request == KVM_SET_USER_MEMORY_REGION2) {
        return set_user_memory_region(fd, request, arg);
    }
    if (request == KVM_CHECK_EXTENSION && nr_memslots &&
        arg == (void *)KVM_CAP_NR_MEMSLOTS) {
        return nr_memslots;
    }
    if (request == KVM_CHECK_EXTENSION && has_attributes &&
        arg == (void *)KVM_CAP_MEMORY_ATTRIBUTES) {
        return KVM_MEMORY_ATTRIBUTE_PRIVATE;
    }
    return real_ioctl(fd, request, arg);
}
