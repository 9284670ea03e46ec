/*
 * What the programs of the guest write, so that they know it again
 *
 * Every 64-bit word of a pattern differs from every other and from the words
 * at the same place of another seed, so that a page that was lost, zeroed,
 * repeated or swapped with another one is found.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef PATTERN_H
#define PATTERN_H

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Odd, so that the words only repeat after 2^64 of them. */
#define PATTERN_STRIDE 0x9e3779b97f4a7c15ULL

static inline void __attribute__((noreturn)) die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(2);
}

static inline uint64_t number(const char *text)
{
    uint64_t value;
    char *end;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (errno || end == text || *end) {
        fprintf(stderr, "'%s' is not a number\n", text);
        exit(2);
    }
    return value;
}

static inline void pattern_fill(uint64_t *words, uint64_t size, uint64_t seed)
{
    for (uint64_t i = 0; i < size / sizeof(seed); i++) {
        words[i] = seed;
        seed += PATTERN_STRIDE;
    }
}

/* Prints the first difference, if there is one. */
static inline int pattern_check(const char *what, const uint64_t *words,
                                uint64_t size, uint64_t seed)
{
    for (uint64_t i = 0; i < size / sizeof(seed); i++) {
        if (words[i] != seed) {
            printf("%s: at 0x%" PRIx64 ": 0x%016" PRIx64
                   " instead of 0x%016" PRIx64 "\n",
                   what, i * sizeof(seed), words[i], seed);
            return 1;
        }
        seed += PATTERN_STRIDE;
    }
    return 0;
}

#endif
