/*
 * A library to preload into QEMU that records KVM's ioctls
 *
 * BENCH_IOCTLS names a file of MAX_RECORDS records, after a header that has
 * their number. It is shared memory, so that recording takes no time that
 * would be seen in what is measured.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <linux/kvm.h>

#define MAX_RECORDS (1 << 16)

typedef struct Record {
    uint64_t start_ns;
    uint64_t duration_ns;
    uint64_t request;
    /* slot number of a memslot or its log; address and size of a memslot */
    uint64_t slot;
    uint64_t address;
    uint64_t size;
} Record;

typedef struct Records {
    _Atomic uint64_t nb;
    uint64_t reserved[5];
    Record record[MAX_RECORDS];
} Records;

static int (*real_ioctl)(int fd, unsigned long request, ...);
static Records *records;

static uint64_t now_ns(void)
{
    struct timespec ts = { };

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void __attribute__((constructor)) preload_init(void)
{
    const char *path = getenv("BENCH_IOCTLS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;

    real_ioctl = dlsym(RTLD_NEXT, "ioctl");
    if (fd >= 0) {
        records = mmap(NULL, sizeof(*records), PROT_READ | PROT_WRITE,
                       MAP_SHARED, fd, 0);
        if (records == MAP_FAILED) {
            abort();
        }
        close(fd);
    }
}

static int record(int fd, unsigned long request, void *arg)
{
    const uint64_t start_ns = now_ns();
    const int ret = real_ioctl(fd, request, arg);
    const uint64_t duration_ns = now_ns() - start_ns;
    const uint64_t nb = atomic_fetch_add(&records->nb, 1);
    Record *r = &records->record[nb % MAX_RECORDS];

    r->start_ns = start_ns;
    r->duration_ns = duration_ns;
    r->request = request;
    /* A later ioctl with the same purpose has the same fields. */
    if (_IOC_NR(request) == _IOC_NR(KVM_SET_USER_MEMORY_REGION) ||
        _IOC_NR(request) == 0x49) {
        const struct kvm_userspace_memory_region *mem = arg;

        r->slot = mem->slot;
        r->address = mem->guest_phys_addr;
        r->size = mem->memory_size;
    } else if (_IOC_NR(request) == _IOC_NR(KVM_GET_DIRTY_LOG)) {
        r->slot = ((const struct kvm_dirty_log *)arg)->slot;
    } else if (_IOC_NR(request) == _IOC_NR(KVM_CLEAR_DIRTY_LOG)) {
        r->slot = ((const struct kvm_clear_dirty_log *)arg)->slot;
    }
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
    if (records && _IOC_TYPE(request) == KVMIO && request != KVM_RUN) {
        return record(fd, request, arg);
    }
    return real_ioctl(fd, request, arg);
}
