/*
 * Unit tests for the memslot budget of memory devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "hw/mem/memslot-budget.h"

#define UNLIMITED MEMSLOTS_UNLIMITED
#define MAX_HOLDERS 3

/* The VM has that many memslots that are none of memory devices. */
#define BOOT_MEMSLOTS 4

typedef struct BudgetCase {
    MemslotCounts holders[MAX_HOLDERS];
    unsigned int required_memslots;
    uint64_t region_size;
    uint64_t unassigned_size;
    unsigned int budget;
} BudgetCase;

/* An entry with no limit, no use and no reservation ends the holders. */
static unsigned int count_holders(const MemslotCounts *holders)
{
    unsigned int n;

    for (n = 0; n < MAX_HOLDERS; n++) {
        if (!holders[n].limit && !holders[n].used && !holders[n].reserved) {
            break;
        }
    }
    return n;
}

static const BudgetCase budget_cases[] = {
    /* nobody sets a limit: the soft limit does */
    { { }, 0, 1 * TiB, 1 * TiB, 256 },
    { { { UNLIMITED, 4, 0 } }, 0, 1 * TiB, 1 * TiB, 256 },
    /* KVM of today, right after start */
    { { { 32764, 4, 0 } }, 0, 1 * TiB, 1 * TiB, 256 },
    { { { 32764, 4, 0 } }, 0, 512 * GiB, 1 * TiB, 128 },
    { { { 32764, 4, 0 } }, 0, 10 * GiB, 1000 * GiB, 2 },
    { { { 32764, 4, 0 } }, 0, 2 * MiB, 1 * TiB, 1 },
    /* others have been promised some, mapped or not */
    { { { 32764, 4, 128 } }, 128, 512 * GiB, 512 * GiB, 128 },
    { { { 32764, 104, 28 } }, 128, 512 * GiB, 512 * GiB, 128 },
    { { { 32764, 4, 128 } }, 128, 256 * GiB, 512 * GiB, 64 },
    { { { 32764, 4, 254 } }, 254, 1 * TiB, 1 * TiB, 2 },
    { { { 32764, 259, 0 } }, 255, 1 * TiB, 1 * TiB, 1 },
    { { { 32764, 260, 0 } }, 256, 1 * TiB, 1 * TiB, 1 },
    { { { 32764, 304, 0 } }, 300, 1 * TiB, 1 * TiB, 1 },
    /* the historical maximum, and one less than that */
    { { { 509, 4, 0 } }, 0, 1 * TiB, 1 * TiB, 256 },
    { { { 508, 4, 0 } }, 0, 1 * TiB, 1 * TiB, 1 },
    /* little is free, or what is free is promised */
    { { { 509, 489, 0 } }, 0, 1 * TiB, 1 * TiB, 20 },
    { { { 509, 489, 10 } }, 15, 1 * TiB, 1 * TiB, 10 },
    { { { 509, 489, 25 } }, 30, 1 * TiB, 1 * TiB, 1 },
    { { { 509, 509, 0 } }, 0, 1 * TiB, 1 * TiB, 1 },
    { { { 509, 600, 0 } }, 0, 1 * TiB, 1 * TiB, 1 },
    /* the tightest one of several counts, wherever it stands */
    { { { 32764, 4, 0 }, { 509, 499, 0 } }, 0, 1 * TiB, 1 * TiB, 10 },
    { { { 509, 499, 0 }, { 32764, 4, 0 } }, 0, 1 * TiB, 1 * TiB, 10 },
    { { { 32764, 4, 0 }, { 600, 3, 0 }, { 32, 3, 0 } }, 0,
      1 * TiB, 1 * TiB, 1 },
    { { { UNLIMITED, 4, 0 }, { 509, 500, 4 } }, 9, 1 * TiB, 1 * TiB, 5 },
    /* sizes that no machine has today */
    { { { 32764, 4, 0 } }, 0, UINT64_MAX, UINT64_MAX, 256 },
    { { { 32764, 4, 0 } }, 0, UINT64_MAX / 2, UINT64_MAX, 127 },
    { { { 32764, 4, 0 } }, 0, 1 * TiB, 0, 256 },
};

static void test_table(void)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(budget_cases); i++) {
        const BudgetCase *c = &budget_cases[i];
        const MemslotBudgetFacts facts = {
            .holders = c->holders,
            .nr_holders = count_holders(c->holders),
            .required_memslots = c->required_memslots,
            .region_size = c->region_size,
            .unassigned_size = c->unassigned_size,
        };

        g_assert_cmpuint(memslot_budget(&facts), ==, c->budget);
    }
}

typedef struct FitCase {
    MemslotCounts counts;
    unsigned int needed;
    unsigned int free;
    bool fit;
} FitCase;

static const FitCase fit_cases[] = {
    { { 32, 0, 0 }, 32, 32, true },
    { { 32, 0, 0 }, 33, 32, false },
    { { 32, 30, 0 }, 2, 2, true },
    { { 32, 30, 1 }, 1, 2, true },
    { { 32, 30, 1 }, 2, 2, false },
    { { 32, 30, 2 }, 0, 2, true },
    { { 32, 30, 3 }, 0, 2, false },
    { { 32, 32, 0 }, 0, 0, true },
    { { 32, 33, 0 }, 0, 0, false },
    { { 0, 0, 0 }, 0, 0, true },
    { { 0, 0, 0 }, 1, 0, false },
    { { UNLIMITED, 33, 5 }, 1000, UNLIMITED, true },
    { { UNLIMITED, UINT_MAX, UINT_MAX }, UINT_MAX, UNLIMITED, true },
    /* no sum wraps around */
    { { 509, UINT_MAX, 1 }, 0, 0, false },
    { { 509, 1, UINT_MAX }, 1, 508, false },
    { { 509, 1, 0 }, UINT_MAX, 508, false },
};

static void test_fit(void)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(fit_cases); i++) {
        const FitCase *c = &fit_cases[i];

        g_assert_cmpuint(memslot_counts_free(&c->counts), ==, c->free);
        g_assert_cmpint(memslot_counts_fit(&c->counts, c->needed), ==, c->fit);
    }
}

static unsigned int rand_range(unsigned int end)
{
    return (uint32_t)g_test_rand_int() % end;
}

static void test_invariants(void)
{
    int i, j;

    for (i = 0; i < 100000; i++) {
        const unsigned int required = rand_range(400);
        const uint64_t left = 1 + rand_range(UINT_MAX);
        MemslotCounts holders[MAX_HOLDERS];
        MemslotBudgetFacts facts = {
            .holders = holders,
            .nr_holders = rand_range(MAX_HOLDERS + 1),
            .required_memslots = required,
            .unassigned_size = left * MiB,
            .region_size = (1 + rand_range(left)) * MiB,
        };
        unsigned int budget, larger, fewer;

        for (j = 0; j < facts.nr_holders; j++) {
            const unsigned int limit = rand_range(3) ? 32764 : rand_range(1000);

            holders[j] = (MemslotCounts) {
                .limit = rand_range(20) ? limit : UNLIMITED,
                .used = rand_range(limit + 2),
                .reserved = rand_range(required + 1),
            };
        }
        budget = memslot_budget(&facts);

        g_assert_cmpuint(budget, >=, 1);
        if (budget > 1) {
            g_assert_cmpuint(budget + required, <=, 256);
            for (j = 0; j < facts.nr_holders; j++) {
                g_assert_cmpuint(holders[j].limit, >=, 509);
                g_assert_true(memslot_counts_fit(&holders[j], budget));
            }
            /* its share of memory is at least its share of memslots */
            g_assert_cmpfloat((double)budget / (256 - required), <=,
                              (double)facts.region_size /
                              facts.unassigned_size * 1.000001);
        }

        /* a larger device never gets less */
        facts.region_size = facts.unassigned_size;
        larger = memslot_budget(&facts);
        g_assert_cmpuint(larger, >=, budget);

        /* nor one that fewer have to hold */
        if (facts.nr_holders) {
            facts.nr_holders--;
            fewer = memslot_budget(&facts);
            g_assert_cmpuint(fewer, >=, larger);
        }
    }
}

/* Devices that come one after the other share the soft limit by size. */
static void test_share(void)
{
    int i;

    for (i = 0; i < 1000; i++) {
        MemslotBudgetFacts facts = {
            .unassigned_size = (256 + rand_range(4096)) * GiB,
        };
        unsigned int single = 0, last = 0;

        while (facts.unassigned_size) {
            const uint64_t left = facts.unassigned_size / GiB;

            facts.region_size = (1 + rand_range(left)) * GiB;
            last = memslot_budget(&facts);
            single += last == 1;
            facts.required_memslots += last;
            facts.unassigned_size -= facts.region_size;
        }
        /* Only devices that get the minimum of one can exceed it. */
        if (facts.required_memslots > 256) {
            g_assert_cmpuint(last, ==, 1);
            g_assert_cmpuint(facts.required_memslots - 256, <=, single);
        }
    }
}

static void test_whole_devices(void)
{
    static const struct {
        MemslotCounts counts;
        bool whole_devices;
    } cases[] = {
        { { 1, 0, 0 }, true },
        { { 64, 4, 0 }, true },
        { { 508, 4, 0 }, true },
        { { 509, 4, 0 }, false },
        { { 509, 4, 505 }, false },
        { { 509, 4, 506 }, true },
        { { 509, 510, 0 }, true },
        { { UNLIMITED, 510, 5 }, false },
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        g_assert_cmpint(memslot_counts_whole_devices(&cases[i].counts), ==,
                        cases[i].whole_devices);
    }
}

/* What a plain reading of the rules gives. */
static unsigned int expected_budget(unsigned int kvm_limit,
                                    unsigned int vhost_limit,
                                    unsigned int promised, unsigned int part)
{
    unsigned int limit = kvm_limit;
    int available;

    if (vhost_limit >= 509) {
        limit = MIN(limit, vhost_limit);
    }
    available = MIN(256 - (int)promised,
                    (int)limit - BOOT_MEMSLOTS - (int)promised);
    return limit < 509 ? 1 : MAX(available / (int)part, 1);
}

/*
 * Real situations: the limits of KVM and of vhost backends that there are, with
 * another memory device that was promised more and more memslots before and has
 * mapped half of them, and devices that take all of the device memory that is
 * left, half of it, or a hundredth.
 */
static void test_situations(void)
{
    static const unsigned int kvm_limits[] = { 32764, 509, 32 };
    static const unsigned int vhost_limits[] = { 8, 32, 64, 509, UNLIMITED };
    static const unsigned int promises[] = { 0, 1, 20, 128, 254, 255 };
    static const unsigned int parts[] = { 1, 2, 100 };
    int i, j, k, l;

    g_test_message("%5s %4s %8s  %5s %-5s %4s %8s  %s", "KVM", "used",
                   "reserved", "vhost", "view", "used", "reserved",
                   "memslots, admitted: all, half, a hundredth");
    for (i = 0; i < ARRAY_SIZE(kvm_limits); i++) {
        for (j = 0; j < ARRAY_SIZE(vhost_limits); j++) {
            for (k = 0; k < ARRAY_SIZE(promises); k++) {
                const unsigned int mapped = promises[k] / 2;
                const MemslotCounts kvm = {
                    kvm_limits[i], BOOT_MEMSLOTS + mapped, promises[k] - mapped
                };
                MemslotCounts vhost = {
                    vhost_limits[j], BOOT_MEMSLOTS + mapped,
                    promises[k] - mapped
                };
                const bool whole = memslot_counts_whole_devices(&vhost);
                const MemslotCounts holders[2] = { kvm, vhost };
                g_autoptr(GString) line = g_string_new(NULL);

                g_assert_cmpint(whole, ==, vhost_limits[j] < 509);
                if (whole) {
                    /* all of the other device, also if nothing is mapped */
                    vhost.used = BOOT_MEMSLOTS + (promises[k] ? 1 : 0);
                    vhost.reserved = 0;
                }
                g_string_printf(line, "%5u %4u %8u  ", kvm.limit, kvm.used,
                                kvm.reserved);
                if (vhost.limit == UNLIMITED) {
                    g_string_append_printf(line, "%5s", "none");
                } else {
                    g_string_append_printf(line, "%5u", vhost.limit);
                }
                g_string_append_printf(line, " %-5s %4u %8u ",
                                       whole ? "whole" : "slots",
                                       vhost.used, vhost.reserved);

                for (l = 0; l < ARRAY_SIZE(parts); l++) {
                    const MemslotBudgetFacts facts = {
                        .holders = holders,
                        .nr_holders = whole ? 1 : 2,
                        .required_memslots = promises[k],
                        .region_size = 600 * GiB / parts[l],
                        .unassigned_size = 600 * GiB,
                    };
                    const unsigned int budget = memslot_budget(&facts);
                    const bool fit = memslot_counts_fit(&kvm, budget) &&
                        memslot_counts_fit(&vhost, whole ? 1 : budget);

                    g_assert_cmpuint(budget, ==,
                                     expected_budget(kvm_limits[i],
                                                     vhost_limits[j],
                                                     promises[k], parts[l]));
                    /* only KVM's 32 are too few for anything here */
                    g_assert_cmpint(fit, ==,
                                    BOOT_MEMSLOTS + promises[k] + budget <=
                                    kvm_limits[i]);
                    /* one memslot is the only thing that can be refused */
                    g_assert_true(fit || budget == 1);
                    g_string_append_printf(line, " %3u %-7s", budget,
                                           fit ? "yes" : "refused");
                }
                g_test_message("%s", line->str);
            }
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/memslot-budget/table", test_table);
    g_test_add_func("/memslot-budget/fit", test_fit);
    g_test_add_func("/memslot-budget/invariants", test_invariants);
    g_test_add_func("/memslot-budget/share", test_share);
    g_test_add_func("/memslot-budget/whole-devices", test_whole_devices);
    g_test_add_func("/memslot-budget/situations", test_situations);
    return g_test_run();
}
