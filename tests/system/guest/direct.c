/*
 * Write a disk and read it again, from and to memory in a given range
 *
 * All of a buffer is written to the disk past the page cache, and read back,
 * over and over, with other contents each time, until a file appears. The
 * device itself reads and writes the buffer, wherever in guest-physical memory
 * that is; the program tells how much of it was in the range.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pattern.h"

#define PAGE 4096
/* In /proc/self/pagemap */
#define PRESENT (1ULL << 63)
#define FRAME ((1ULL << 55) - 1)
/* Large enough for some requests to be under way at once. */
#define CHUNK (1 << 20)

/* Pages of the buffer that are in a range of guest-physical addresses. */
static uint64_t pages_within(const char *buffer, uint64_t size,
                             uint64_t first, uint64_t last)
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    uint64_t found = 0;

    if (fd < 0) {
        die("/proc/self/pagemap");
    }
    for (uint64_t offset = 0; offset < size; offset += PAGE) {
        uint64_t entry, address;

        if (pread(fd, &entry, sizeof(entry), ((uintptr_t)buffer + offset) /
                  PAGE * sizeof(entry)) != sizeof(entry)) {
            die("/proc/self/pagemap");
        }
        address = (entry & FRAME) * PAGE;
        found += (entry & PRESENT) && address >= first && address <= last;
    }
    close(fd);
    return found;
}

static void transfer(int fd, char *buffer, uint64_t size, int writing)
{
    for (uint64_t offset = 0; offset < size; offset += CHUNK) {
        ssize_t done = writing ? pwrite(fd, buffer + offset, CHUNK, offset)
                               : pread(fd, buffer + offset, CHUNK, offset);

        if (done != CHUNK) {
            die(writing ? "write" : "read");
        }
    }
}

int main(int argc, char **argv)
{
    uint64_t size, seed, first, last, within = 0, pages = 0, pass = 0;
    char *buffer;
    int fd;

    if (argc != 7) {
        fprintf(stderr, "usage: direct DISK SIZE SEED FIRST LAST STOP-FILE\n");
        return 2;
    }
    size = number(argv[2]);
    seed = number(argv[3]);
    first = number(argv[4]);
    last = number(argv[5]);
    fd = open(argv[1], O_RDWR | O_DIRECT);
    if (fd < 0) {
        die(argv[1]);
    }
    buffer = mmap(NULL, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) {
        die("mmap");
    }

    do {
        pattern_fill((uint64_t *)buffer, size, seed + pass);
        transfer(fd, buffer, size, 1);
        /* Whatever is not read back is to be noticed. */
        memset(buffer, 0xff, size);
        transfer(fd, buffer, size, 0);
        if (pattern_check(argv[1], (uint64_t *)buffer, size, seed + pass)) {
            return 1;
        }
        within += pages_within(buffer, size, first, last);
        pages += size / PAGE;
        pass++;
    } while (access(argv[6], F_OK));

    printf("%" PRIu64 " passes, %" PRIu64 " of %" PRIu64 " pages\n",
           pass, within, pages);
    return 0;
}
