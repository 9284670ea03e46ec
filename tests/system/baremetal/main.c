/*
 * A guest that touches what it should not, and that watches its memory
 *
 * It takes commands through mailboxes in boot memory, one for each CPU, that
 * tests read and write from outside: see mailbox.h for those. Memory above
 * 4 GiB is reached through a window of 1 GiB.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include <stdint.h>

#include "mailbox.h"
#include "tables.h"

/* The second GiB of the address space; boot memory is in the first. */
#define WINDOW              1
#define WINDOW_SIZE         (1u << 30)
#define WINDOW_ADDRESS      (WINDOW * WINDOW_SIZE)

#define ICR_LOW             ((Word *)0xfee00300)
#define ICR_HIGH            ((Word *)0xfee00310)
#define ICR_INIT            0x4500
#define ICR_STARTUP         0x4600
/* The page in which the image starts, as seen below 1 MiB */
#define STARTUP_PAGE        0xf0

/* volatile: each access has an effect, or is one that we want to see */
typedef volatile uint32_t Word;

typedef struct Tables {
    uint64_t directories[4][ENTRIES];
    uint64_t pointers[ENTRIES];
    uint64_t top[ENTRIES];
} Tables;

_Static_assert(sizeof(Tables) == TABLES_SIZE);

static void relax(void)
{
    __asm__ volatile("pause" : : : "memory");
}

/* Have the window show memory, 2 MiB of it. */
static void show(Tables *t, unsigned int page, uint64_t address)
{
    t->directories[WINDOW][page] = address | PRESENT | WRITABLE | LARGE;
}

static void flush(Tables *t)
{
    __asm__ volatile("movq %0, %%cr3" :: "r"(t->top) : "memory");
}

static Word *word_at(uint32_t offset)
{
    return (Word *)(uintptr_t)(WINDOW_ADDRESS + offset);
}

/* Write to words, and read them back, where asked for. */
static void touch(Tables *t, Mailbox *m)
{
    const uint32_t command = m->command, value = m->value, stride = m->stride;
    uint64_t address = m->address, left = m->size;

    while (left) {
        const uint32_t size = left < WINDOW_SIZE ? left : WINDOW_SIZE;

        for (unsigned int i = 0; i < ENTRIES; i++) {
            show(t, i, address + i * LARGE_PAGE);
        }
        flush(t);
        for (uint32_t offset = 0; offset < size; offset += stride) {
            if (command != COMMAND_READ) {
                *word_at(offset) = value;
            }
            if (command != COMMAND_WRITE) {
                m->matches += *word_at(offset) == value;
            }
            m->accesses++;
        }
        address += size;
        left -= size;
    }
}

static void expect(Mailbox *m, unsigned int area, uint32_t offset,
                   uint32_t found, uint32_t expected)
{
    if (found == expected) {
        return;
    }
    if (!m->errors++) {
        m->bad_address = m->areas[area] + offset;
        m->bad_found = found;
        m->bad_expected = expected;
    }
}

/*
 * Count in all areas until told to stop. Each CPU has words of its own, in
 * which nothing but its own count is ever found, and there are words that all
 * CPUs count in together.
 */
static void watch(Tables *t, Mailbox *m, uint32_t cpu)
{
    const uint32_t own = WATCH_OWN(cpu), stride = m->stride;

    for (unsigned int i = 0; i < m->nr_areas; i++) {
        show(t, i, m->areas[i]);
    }
    flush(t);

    while (!m->stop) {
        for (unsigned int i = 0; i < m->nr_areas; i++) {
            for (uint32_t j = 0; j < LARGE_PAGE; j += stride) {
                const uint32_t offset = i * LARGE_PAGE + j;
                Word *word = word_at(offset + own);
                Word *shared = word_at(offset + WATCH_SHARED);

                expect(m, i, j + own, *word, m->passes);
                *word = m->passes + 1;
                expect(m, i, j + own, *word, m->passes + 1);
                __asm__ volatile("lock incl %0" : "+m"(*shared));
                m->accesses++;
            }
        }
        m->passes++;
    }
}

/* Stay ahead of a number that a device counts up, and notify it. */
static void lead(Mailbox *m)
{
    volatile uint16_t *ours = (volatile uint16_t *)m->address;
    const volatile uint16_t *theirs = (volatile uint16_t *)m->areas[0];
    volatile uint16_t *doorbell = (volatile uint16_t *)m->areas[1];

    while (!m->stop) {
        *ours = *theirs + m->value;
        *doorbell = 0;
        m->accesses++;
    }
}

/* Have another CPU start where we did. */
static void wake(uint32_t cpu)
{
    *ICR_HIGH = cpu << 24;
    *ICR_LOW = ICR_INIT;
    while (!MAILBOX(cpu)->is_awake) {
        *ICR_HIGH = cpu << 24;
        *ICR_LOW = ICR_STARTUP | STARTUP_PAGE;
        for (unsigned int i = 0; i < 100000 && !MAILBOX(cpu)->is_awake; i++) {
            relax();
        }
    }
}

void __attribute__((noreturn)) run(uint32_t cpu, Tables *t)
{
    Mailbox *m = MAILBOX(cpu);

    m->is_awake = 1;
    for (;;) {
        switch (m->command) {
        case COMMAND_READ:
        case COMMAND_WRITE:
        case COMMAND_WRITE_READ:
            touch(t, m);
            break;
        case COMMAND_WATCH:
            watch(t, m, cpu);
            break;
        case COMMAND_LEAD:
            lead(m);
            break;
        case COMMAND_WAKE:
            wake(m->value);
            break;
        default:
            relax();
            continue;
        }
        m->command = COMMAND_NONE;
    }
}
