/*
 * Unit tests for the index of KVM's memslots
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "accel/kvm/kvm-memslot-index.h"

#define MAX_MEMSLOTS 1000

static void test_empty(void)
{
    KVMMemslotIndex *index = kvm_memslot_index_new();

    g_assert_cmpint(kvm_memslot_index_find(index, 0), ==, -1);
    g_assert_cmpint(kvm_memslot_index_add(index, 0), ==, -1);
    kvm_memslot_index_grow(index, 0);
    g_assert_cmpint(kvm_memslot_index_add(index, 0), ==, -1);
    g_assert_cmpint(kvm_memslot_index_find(index, 0), ==, -1);
    kvm_memslot_index_free(index);
}

/* Numbers are taken from the lowest on, and free ones again. */
static void test_numbers(void)
{
    KVMMemslotIndex *index = kvm_memslot_index_new();
    const hwaddr addrs[] = { 0, 4 * KiB, 4 * GiB, 1 * TiB, UINT64_MAX - 4095 };
    unsigned int i;

    kvm_memslot_index_grow(index, ARRAY_SIZE(addrs));
    for (i = 0; i < ARRAY_SIZE(addrs); i++) {
        g_assert_cmpint(kvm_memslot_index_find(index, addrs[i]), ==, -1);
        g_assert_cmpint(kvm_memslot_index_add(index, addrs[i]), ==, i);
    }
    g_assert_cmpint(kvm_memslot_index_add(index, 8 * KiB), ==, -1);
    g_assert_cmpint(kvm_memslot_index_find(index, 8 * KiB), ==, -1);
    for (i = 0; i < ARRAY_SIZE(addrs); i++) {
        g_assert_cmpint(kvm_memslot_index_find(index, addrs[i]), ==, i);
        g_assert_cmpint(kvm_memslot_index_find(index, addrs[i] + 1), ==, -1);
    }

    kvm_memslot_index_remove(index, 4 * GiB);
    g_assert_cmpint(kvm_memslot_index_find(index, 4 * GiB), ==, -1);
    g_assert_cmpint(kvm_memslot_index_add(index, 2 * GiB), ==, 2);
    g_assert_cmpint(kvm_memslot_index_add(index, 4 * GiB), ==, -1);
    kvm_memslot_index_free(index);
}

static void test_grow(void)
{
    KVMMemslotIndex *index = kvm_memslot_index_new();
    unsigned int nr, i;

    for (nr = 0; nr < MAX_MEMSLOTS; nr++) {
        kvm_memslot_index_grow(index, nr + 1);
        g_assert_cmpint(kvm_memslot_index_add(index, nr * GiB), ==, nr);
        g_assert_cmpint(kvm_memslot_index_add(index, MAX_MEMSLOTS * GiB), ==,
                        -1);
    }
    /* Fewer are no reason to lose any. */
    kvm_memslot_index_grow(index, 1);
    for (i = 0; i < nr; i++) {
        g_assert_cmpint(kvm_memslot_index_find(index, i * GiB), ==, i);
    }
    kvm_memslot_index_free(index);
}

/* Each number is in use once, whatever comes and goes. */
static void test_random(void)
{
    KVMMemslotIndex *index = kvm_memslot_index_new();
    int *numbers = g_new(int, MAX_MEMSLOTS);
    bool *taken = g_new0(bool, MAX_MEMSLOTS);
    unsigned int nr = 1, nr_taken = 0, i, step;

    for (i = 0; i < MAX_MEMSLOTS; i++) {
        numbers[i] = -1;
    }
    kvm_memslot_index_grow(index, nr);

    for (step = 0; step < 100 * MAX_MEMSLOTS; step++) {
        i = g_test_rand_int_range(0, MAX_MEMSLOTS);
        g_assert_cmpint(kvm_memslot_index_find(index, i * GiB), ==, numbers[i]);

        if (numbers[i] >= 0) {
            kvm_memslot_index_remove(index, i * GiB);
            taken[numbers[i]] = false;
            nr_taken--;
            numbers[i] = -1;
            continue;
        }

        numbers[i] = kvm_memslot_index_add(index, i * GiB);
        if (numbers[i] < 0) {
            g_assert_cmpint(nr_taken, ==, nr);
            nr = MIN(2 * nr, MAX_MEMSLOTS);
            kvm_memslot_index_grow(index, nr);
        } else {
            g_assert_cmpint(numbers[i], <, nr);
            g_assert_false(taken[numbers[i]]);
            taken[numbers[i]] = true;
            nr_taken++;
        }
    }
    g_free(taken);
    g_free(numbers);
    kvm_memslot_index_free(index);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/kvm-memslot-index/empty", test_empty);
    g_test_add_func("/kvm-memslot-index/numbers", test_numbers);
    g_test_add_func("/kvm-memslot-index/grow", test_grow);
    g_test_add_func("/kvm-memslot-index/random", test_random);
    return g_test_run();
}
