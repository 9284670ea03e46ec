/*
 * Memslots that KVM may refuse
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/memory.h"
#include "qemu/main-loop.h"
#include "system/kvm-try-memslots.h"

/* Protected by the BQL */
static struct {
    bool active;
    int err;
} try_memslots;

void kvm_try_memslots_begin(void)
{
    g_assert(bql_locked());
    g_assert(!try_memslots.active && !memory_region_transaction_is_open());
    try_memslots.active = true;
    try_memslots.err = 0;
}

int kvm_try_memslots_end(void)
{
    g_assert(bql_locked());
    g_assert(try_memslots.active && !memory_region_transaction_is_open());
    try_memslots.active = false;
    return try_memslots.err;
}

bool kvm_is_trying_memslots(void)
{
    return try_memslots.active;
}

void kvm_memslot_refused(int err)
{
    try_memslots.err = try_memslots.err ?: err;
}
