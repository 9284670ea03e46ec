/*
 * A library to preload into QEMU that makes the calls fail by which it
 * allocates memory of the guest, and by which it gives memory back
 *
 * To be used with LD_PRELOAD. As long as the file that the environment variable
 * MEMORY_PRELOAD_FAIL_FILE names does not exist, this changes nothing. While it
 * does, each of its lines makes one kind of call fail:
 *
 *   CALL ERRNO [COUNT]
 *
 * CALL is one of
 *   dontneed   madvise() with MADV_DONTNEED
 *   remove     madvise() with MADV_REMOVE
 *   populate   madvise() with MADV_POPULATE_WRITE
 *   punch-hole fallocate() with FALLOC_FL_PUNCH_HOLE
 * ERRNO is a number. The first COUNT calls still succeed, 0 by default, counted
 * since the file was last written. The file has to be replaced by rename().
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <dlfcn.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

typedef enum Call {
    CALL_DONTNEED,
    CALL_REMOVE,
    CALL_POPULATE,
    CALL_PUNCH_HOLE,
    CALL_MAX,
} Call;

static const char *const call_names[CALL_MAX] = {
    [CALL_DONTNEED] = "dontneed",
    [CALL_REMOVE] = "remove",
    [CALL_POPULATE] = "populate",
    [CALL_PUNCH_HOLE] = "punch-hole",
};

/*
 * How many calls were made since the file was written. QEMU makes those that
 * tests count one at a time.
 */
static unsigned long nr_calls[CALL_MAX];
static struct timespec counted_since;

static void *find_real(void **real, const char *name)
{
    if (!*real) {
        *real = dlsym(RTLD_NEXT, name);
    }
    return *real;
}

/* Returns what errno is to be, or 0 if the call is not to fail. */
static int find_errno(Call call, FILE *file)
{
    char line[128], name[16];
    unsigned long count;
    int err;

    while (fgets(line, sizeof(line), file)) {
        count = 0;
        if (sscanf(line, "%15s %d %lu", name, &err, &count) >= 2 &&
            strcmp(name, call_names[call]) == 0) {
            return nr_calls[call]++ >= count ? err : 0;
        }
    }
    return 0;
}

static bool refuse(Call call)
{
    const char *path = getenv("MEMORY_PRELOAD_FAIL_FILE");
    const int saved_errno = errno;
    struct stat st;
    FILE *file;
    int err;

    file = path ? fopen(path, "re") : NULL;
    if (!file || fstat(fileno(file), &st) != 0) {
        errno = saved_errno;
        return false;
    }
    if (memcmp(&st.st_mtim, &counted_since, sizeof(counted_since)) != 0) {
        memset(nr_calls, 0, sizeof(nr_calls));
        counted_since = st.st_mtim;
    }
    err = find_errno(call, file);
    fclose(file);

    errno = err ?: saved_errno;
    return err;
}

int madvise(void *addr, size_t length, int advice)
{
    static void *real;
    int (*real_madvise)(void *, size_t, int) = find_real(&real, "madvise");

    if ((advice == MADV_DONTNEED && refuse(CALL_DONTNEED)) ||
        (advice == MADV_REMOVE && refuse(CALL_REMOVE)) ||
        (advice == MADV_POPULATE_WRITE && refuse(CALL_POPULATE))) {
        return -1;
    }
    return real_madvise(addr, length, advice);
}

/* QEMU is built with 64-bit file offsets, and so are we. */
int fallocate(int fd, int mode, off_t offset, off_t length)
{
    static void *real;
    int (*real_fallocate)(int, int, off_t, off_t) = find_real(&real,
                                                              "fallocate64");

    if ((mode & FALLOC_FL_PUNCH_HOLE) && refuse(CALL_PUNCH_HOLE)) {
        return -1;
    }
    return real_fallocate(fd, mode, offset, length);
}
