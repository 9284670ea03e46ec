/*
 * What tests and the guest have in common; baremetal.py has the same
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef MAILBOX_H
#define MAILBOX_H

#define MAX_AREAS           64

enum {
    COMMAND_NONE = 0,
    /* Read, write, or both, each @stride from @address on. */
    COMMAND_READ = 1,
    COMMAND_WRITE = 2,
    COMMAND_WRITE_READ = 3,
    /* Count in @areas of 2 MiB, each @stride, until @stop is set. */
    COMMAND_WATCH = 4,
    /* Start the CPU @value. */
    COMMAND_WAKE = 5,
    /*
     * Until @stop is set, have the number (16 bits) at @address be @value more
     * than that at the first of @areas, and write zero to the second one.
     */
    COMMAND_LEAD = 6,
};

/* Where, after each stride of an area, a CPU counts, and all of them do */
#define WATCH_OWN(cpu)      (64 * (cpu))
#define WATCH_SHARED        1024

/* volatile: tests look at it and change it at any time */
typedef volatile struct Mailbox {
    /* set by the test; NONE as soon as the command is done */
    uint32_t command;
    uint32_t stop;
    uint64_t address;
    uint64_t size;
    uint32_t stride;
    uint32_t value;
    uint32_t nr_areas;

    /* set by the guest, to zero by the test before each command */
    uint32_t is_awake;
    /* words that were accessed, and those that had @value when read */
    uint32_t accesses;
    uint32_t matches;
    /* how often all areas have been counted in */
    uint32_t passes;
    /* what was found and should not have been, and the first such */
    uint32_t errors;
    uint64_t bad_address;
    uint32_t bad_found;
    uint32_t bad_expected;

    uint64_t areas[MAX_AREAS];
} Mailbox;

#define MAILBOX(cpu)        ((Mailbox *)(0x10000ul + 0x1000 * (cpu)))

#endif
