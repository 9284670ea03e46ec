/*
 * Index of the memslots of an address space: which numbers are free, and which
 * memslot is at an address
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/xxhash.h"
#include "kvm-memslot-index.h"

struct KVMMemslotIndex {
    /* Numbers in use, by address */
    GHashTable *numbers;
    /* All others, as a stack */
    GArray *free;
    unsigned int nr;
};

/*
 * Not g_int64_hash(), which may ignore the upper half: the lower one is often
 * the same for all large memslots.
 */
static guint hash_addr(gconstpointer addr)
{
    return qemu_xxhash2(*(const hwaddr *)addr);
}

KVMMemslotIndex *kvm_memslot_index_new(void)
{
    KVMMemslotIndex *index = g_new0(KVMMemslotIndex, 1);

    index->numbers = g_hash_table_new_full(hash_addr, g_int64_equal, g_free,
                                           NULL);
    index->free = g_array_new(false, false, sizeof(int));
    return index;
}

void kvm_memslot_index_free(KVMMemslotIndex *index)
{
    g_hash_table_destroy(index->numbers);
    g_array_free(index->free, true);
    g_free(index);
}

void kvm_memslot_index_grow(KVMMemslotIndex *index, unsigned int nr)
{
    int i;

    /* Backwards, to have the lowest numbers taken first */
    for (i = (int)nr - 1; i >= (int)index->nr; i--) {
        g_array_append_val(index->free, i);
    }
    index->nr = MAX(index->nr, nr);
}

int kvm_memslot_index_add(KVMMemslotIndex *index, hwaddr start_addr)
{
    const guint nr_free = index->free->len;
    int number;

    assert(kvm_memslot_index_find(index, start_addr) < 0);
    if (!nr_free) {
        return -1;
    }

    number = g_array_index(index->free, int, nr_free - 1);
    g_array_set_size(index->free, nr_free - 1);
    g_hash_table_insert(index->numbers,
                        g_memdup2(&start_addr, sizeof(start_addr)),
                        GINT_TO_POINTER(number));
    return number;
}

void kvm_memslot_index_remove(KVMMemslotIndex *index, hwaddr start_addr)
{
    const int number = kvm_memslot_index_find(index, start_addr);

    assert(number >= 0);
    g_hash_table_remove(index->numbers, &start_addr);
    g_array_append_val(index->free, number);
}

int kvm_memslot_index_find(KVMMemslotIndex *index, hwaddr start_addr)
{
    gpointer number;

    return g_hash_table_lookup_extended(index->numbers, &start_addr, NULL,
                                        &number) ?
           GPOINTER_TO_INT(number) : -1;
}
