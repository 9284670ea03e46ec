/*
 * Fill a file in the guest with a pattern, and check it
 *
 * Every 64-bit word of the file differs from every other and from the words
 * at the same place of another seed, so that a page that was lost, zeroed,
 * repeated or swapped with another one is found.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Odd, so that the words only repeat after 2^64 of them. */
#define STRIDE 0x9e3779b97f4a7c15ULL

static void die(const char *what)
{
    fprintf(stderr, "pattern: %s: %s\n", what, strerror(errno));
    exit(2);
}

static uint64_t number(const char *text)
{
    uint64_t value;
    char *end;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (errno || end == text || *end) {
        fprintf(stderr, "pattern: '%s' is not a number\n", text);
        exit(2);
    }
    return value;
}

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

static void fill(const char *path, uint64_t size, uint64_t word)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    uint64_t *words;

    if (fd < 0 || ftruncate(fd, size)) {
        die(path);
    }
    words = map(fd, size, PROT_READ | PROT_WRITE);
    for (uint64_t i = 0; i < size / sizeof(word); i++) {
        words[i] = word;
        word += STRIDE;
    }
}

static int check(const char *path, uint64_t size, uint64_t word)
{
    int fd = open(path, O_RDONLY);
    off_t end;
    uint64_t *words;

    if (fd < 0) {
        die(path);
    }
    end = lseek(fd, 0, SEEK_END);
    if (end < 0 || (uint64_t)end != size) {
        printf("%s: %jd bytes instead of %" PRIu64 "\n", path, (intmax_t)end,
               size);
        return 1;
    }
    words = map(fd, size, PROT_READ);
    for (uint64_t i = 0; i < size / sizeof(word); i++) {
        if (words[i] != word) {
            printf("%s: at 0x%" PRIx64 ": 0x%016" PRIx64
                   " instead of 0x%016" PRIx64 "\n",
                   path, i * sizeof(word), words[i], word);
            return 1;
        }
        word += STRIDE;
    }
    return 0;
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
