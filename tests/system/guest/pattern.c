/*
 * Fill a file in the guest with a pattern, and check it
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#define _FILE_OFFSET_BITS 64
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pattern.h"

/*
 * Faults on a mapping take huge pages and touch each of them once, where
 * read() and write() copy: under emulation, several times as fast.
 */
static uint64_t *map(int fd, uint64_t size, int protection)
{
    void *words = mmap(NULL, size, protection, MAP_SHARED, fd, 0);

    if (words == MAP_FAILED) {
        die("mmap");
    }
    return words;
}

static void fill(const char *path, uint64_t size, uint64_t seed)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);

    if (fd < 0 || ftruncate(fd, size)) {
        die(path);
    }
    pattern_fill(map(fd, size, PROT_READ | PROT_WRITE), size, seed);
}

static int check(const char *path, uint64_t size, uint64_t seed)
{
    int fd = open(path, O_RDONLY);
    off_t end;

    if (fd < 0) {
        die(path);
    }
    end = lseek(fd, 0, SEEK_END);
    if (end < 0 || (uint64_t)end != size) {
        printf("%s: %jd bytes instead of %" PRIu64 "\n", path, (intmax_t)end,
               size);
        return 1;
    }
    return pattern_check(path, map(fd, size, PROT_READ), size, seed);
}

int main(int argc, char **argv)
{
    uint64_t size, seed;

    if (argc != 5) {
        fprintf(stderr, "usage: pattern fill|check FILE SIZE SEED\n");
        return 2;
    }
    size = number(argv[3]);
    seed = number(argv[4]);
    if (!strcmp(argv[1], "fill")) {
        fill(argv[2], size, seed);
        return 0;
    }
    if (!strcmp(argv[1], "check")) {
        return check(argv[2], size, seed);
    }
    fprintf(stderr, "pattern: '%s' is neither fill nor check\n", argv[1]);
    return 2;
}
