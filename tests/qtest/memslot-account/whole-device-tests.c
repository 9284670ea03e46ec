/*
 * Tests of what vhost backends are shown: memslots, or whole devices if they
 * can hold only few memory regions
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"

static const struct {
    unsigned int max_regions;
    const char *boot_memory;
    /* in boot memory, unless nothing of that is shared */
    uint64_t ring_addr;
} backend_sizes[] = {
    { 1, NO_SHARED_BOOT_MEMORY, RING_LATER },
    { 2, ONE_SHARED_BOOT_MEMORY, BOOT_RAM_SIZE - 1 * MiB },
    { QVHOST_USER_BASELINE, SHARED_BOOT_MEMORY, BOOT_RAM_SIZE - 1 * MiB },
    { 8, SHARED_BOOT_MEMORY, BOOT_RAM_SIZE - 1 * MiB },
    { 64, SHARED_BOOT_MEMORY, BOOT_RAM_SIZE - 1 * MiB },
    { 509, SHARED_BOOT_MEMORY, BOOT_RAM_SIZE - 1 * MiB },
};

typedef enum Order {
    BACKEND_FIRST,
    DEVICE_FIRST,
    /* the device, and the guest has plugged some of its memory */
    MEMORY_FIRST,
} Order;

/* All but that at 3 GiB, of a device of 8 GiB with 8 memslots */
static void plug_others(TestVM *vm, Mem *mem)
{
    assert_ack(plug(vm, mem, 0, 2 * GiB));
    assert_ack(plug(vm, mem, 2 * GiB, 1 * GiB));
    assert_ack(plug(vm, mem, 3 * GiB + 2 * MiB, 5 * GiB - 2 * MiB));
}

static void unplug_others(TestVM *vm, Mem *mem)
{
    assert_ack(unplug(vm, mem, 3 * GiB + 2 * MiB, 5 * GiB - 2 * MiB));
    assert_ack(unplug(vm, mem, 0, 3 * GiB));
}

/*
 * A device of 8 GiB has one block at 3 GiB plugged. A backend that can hold
 * many memory regions is told about each memslot, and reaches no other memory.
 * One that can't reaches all of the device, and is told nothing: not when the
 * last memslot goes either, as it could be at work there.
 */
static void check_backend_memslots(TestVM *vm, Backend *backend, Mem *mem)
{
    const bool small = backend->limit < HISTORICAL_MAX;
    unsigned int messages = nr_messages(backend);

    g_assert_cmpint(backend->whole_devices, ==, small);
    g_assert_cmpuint(mem_used(mem), ==, 1);
    g_assert_true(can_reach(backend, mem, 3 * GiB));
    g_assert_cmpint(can_reach(backend, mem, 0), ==, small);
    g_assert_cmpint(can_reach(backend, mem, 5 * GiB), ==, small);

    plug_others(vm, mem);
    g_assert_cmpuint(mem_used(mem), ==, 8);
    g_assert_cmpuint(nr_messages(backend) - messages, ==, small ? 0 : 7);
    g_assert_true(can_reach(backend, mem, 0));
    g_assert_true(can_reach(backend, mem, 8 * GiB - 2 * MiB));

    unplug_others(vm, mem);
    g_assert_cmpuint(nr_messages(backend) - messages, ==, small ? 0 : 14);
    messages = nr_messages(backend);
    unplug_all(vm, mem);
    g_assert_cmpuint(mem_used(mem), ==, 0);
    g_assert_cmpuint(nr_messages(backend) - messages, ==, small ? 0 : 1);
    g_assert_cmpint(can_reach(backend, mem, 3 * GiB), ==, small);
    assert_ack(plug(vm, mem, 3 * GiB, 2 * MiB));
    g_assert_cmpuint(nr_messages(backend) - messages, ==, small ? 0 : 2);
}

/* A device has the same memslots with any backend as without it. */
static void check_backend_size(const TestCase *test, unsigned int i,
                               Order order)
{
    const MemConfig private_mem = multiple(false, 8 * GiB);
    const MemConfig shared_mem = multiple(true, 8 * GiB);
    const unsigned int max_regions = backend_sizes[i].max_regions;
    TestVM *vm = vm_new(test, 64 * GiB, "%s", backend_sizes[i].boot_memory);
    Backend *backend = NULL;
    Mem *mem[2];

    vm->ring_addr = backend_sizes[i].ring_addr;
    if (order == BACKEND_FIRST) {
        backend = vm_add_backend(vm, max_regions);
    }
    mem[0] = vm_add_mem(vm, &private_mem);
    mem[1] = vm_add_mem(vm, &shared_mem);
    if (order == DEVICE_FIRST) {
        backend = vm_add_backend(vm, max_regions);
    }
    vm_start(vm);
    g_assert_cmpuint(mem[0]->required, ==, 8);
    g_assert_cmpuint(mem[1]->required, ==, 8);

    request_size(vm, mem[0], 8 * GiB);
    request_size(vm, mem[1], 8 * GiB);
    assert_ack(plug(vm, mem[0], 0, 4 * GiB));
    assert_ack(plug(vm, mem[1], 3 * GiB, 2 * MiB));
    if (order == MEMORY_FIRST) {
        backend = vm_add_backend(vm, max_regions);
    }
    g_assert_nonnull(backend);
    if (!backend->started) {
        if (vm->ring_addr == RING_LATER) {
            vm->ring_addr = mem[1]->addr + 3 * GiB;
        }
        backend_start(vm, backend);
    }
    check_backend_memslots(vm, backend, mem[1]);
    assert_ack(plug(vm, mem[0], 4 * GiB, 4 * GiB));
    g_assert_false(can_reach(backend, mem[0], 0));

    if (order == MEMORY_FIRST) {
        kill_backend(vm, backend);
        plug_others(vm, mem[1]);
        assert_ack(unplug(vm, mem[0], 0, 4 * GiB));
        restart_backends(vm, &backend, 1);
        unplug_others(vm, mem[1]);
        check_backend_memslots(vm, backend, mem[1]);
    }
    vm_remove_backend(vm, backend);
    g_assert_cmpuint(mem_used(mem[1]), ==, 1);
    plug_others(vm, mem[1]);
    vm_stop(vm);
}

static void test_backend_first(const TestCase *test)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(backend_sizes); i++) {
        check_backend_size(test, i, BACKEND_FIRST);
    }
}

static void test_backend_later(const TestCase *test)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(backend_sizes); i++) {
        check_backend_size(test, i, DEVICE_FIRST);
    }
}

static void test_backend_last(const TestCase *test)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(backend_sizes); i++) {
        check_backend_size(test, i, MEMORY_FIRST);
    }
}

/* Returns how many messages a backend gets when memory comes and goes. */
static unsigned int count_messages(TestVM *vm, const Backend *backend, Mem *mem)
{
    const unsigned int messages = nr_messages(backend);
    const uint64_t step = MIN(mem->config.size, 512 * MiB);
    uint64_t offset;

    request_size(vm, mem, mem->config.size);
    for (offset = 0; offset < mem->config.size; offset += step) {
        assert_ack(plug(vm, mem, offset, step));
    }
    for (offset = 0; offset < mem->config.size; offset += step) {
        assert_ack(unplug(vm, mem, offset, step));
    }
    return nr_messages(backend) - messages;
}

/* Small backends are told what they are told without multiple memslots. */
static void test_messages(const TestCase *test)
{
    static const unsigned int small_sizes[] = { QVHOST_USER_BASELINE, 8, 508 };
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig many = multiple(true, 16 * GiB);
    const MemConfig one = multiple(true, 1 * GiB);
    const MemConfig off = single(true, 16 * GiB);
    Backend *backend;
    unsigned int i;
    Mem *mem[3];

    mem[0] = vm_add_mem(vm, &many);
    mem[1] = vm_add_mem(vm, &one);
    mem[2] = vm_add_mem(vm, &off);
    for (i = 0; i < ARRAY_SIZE(small_sizes); i++) {
        vm_add_started_backend(vm, small_sizes[i]);
    }
    vm_add_started_backend(vm, 509);
    vm_start(vm);
    g_assert_cmpuint(mem[0]->required, ==, 16);
    g_assert_cmpuint(mem[1]->required, ==, 1);
    for (i = 0; i < vm->backends->len; i++) {
        backend = g_ptr_array_index(vm->backends, i);
        g_assert_cmpuint(count_messages(vm, backend, mem[2]), ==, 0);
        /* A memslot is added, and removed. */
        g_assert_cmpuint(count_messages(vm, backend, mem[1]), ==,
                         backend->whole_devices ? 0 : 2);
        g_assert_cmpuint(count_messages(vm, backend, mem[0]), ==,
                         backend->whole_devices ? 0 : 32);
    }
    vm_stop(vm);
}

/* Which view a backend gets is decided anew only when it comes anew. */
static void test_mixed_backends(const TestCase *test)
{
    static const unsigned int sizes[] = {
        QVHOST_USER_BASELINE, 8, 32, 508, 509, 600,
    };
    TestVM *vm = vm_new_default(test, 128 * GiB);
    const MemConfig vmem = multiple(true, 40 * GiB);
    Backend *backends[ARRAY_SIZE(sizes)], *full;
    unsigned int i, messages;
    Mem *mem[2];

    mem[0] = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem[0]->required, ==, 40);
    request_size(vm, mem[0], 40 * GiB);
    assert_ack(plug(vm, mem[0], 0, 2 * GiB));

    /* QEMU hands out no more than 512: 500 and 40 don't fit. */
    set_testdev_count(vm, true, 500);
    full = vm_add_started_backend(vm, 600);
    g_assert_true(full->whole_devices);
    assert_ack(plug(vm, mem[0], 2 * GiB, 38 * GiB));
    set_testdev_count(vm, true, 0);
    g_assert_true(full->whole_devices);
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        backends[i] = vm_add_started_backend(vm, sizes[i]);
        g_assert_cmpint(backends[i]->whole_devices, ==, sizes[i] < 509);
    }
    mem[1] = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem[1]->required, ==, 40);
    request_size(vm, mem[1], 40 * GiB);
    assert_ack(plug(vm, mem[1], 20 * GiB, 2 * GiB));
    assert_ack(unplug(vm, mem[0], 0, 39 * GiB));
    assert_ack(plug(vm, mem[0], 0, 10 * GiB));

    /* The last small one leaves, and nobody else hears of it. */
    messages = nr_messages(full);
    for (i = 0; i < ARRAY_SIZE(sizes) && sizes[i] < 509; i++) {
        vm_remove_backend(vm, backends[i]);
    }
    g_assert_cmpuint(nr_messages(full), ==, messages);
    g_assert_cmpuint(mem_used(mem[0]), ==, 11);

    kill_backend(vm, full);
    assert_ack(plug(vm, mem[1], 0, 2 * GiB));
    restart_backends(vm, &full, 1);
    g_assert_false(full->whole_devices);
    unplug_all(vm, mem[0]);

    /* And the other way round */
    kill_backend(vm, full);
    vm_remove_backend(vm, backends[ARRAY_SIZE(sizes) - 1]);
    vm_remove_backend(vm, backends[ARRAY_SIZE(sizes) - 2]);
    assert_ack(plug(vm, mem[0], 0, 5 * GiB));
    set_testdev_count(vm, true, 500);
    restart_backends(vm, &full, 1);
    g_assert_true(full->whole_devices);
    unplug_all(vm, mem[0]);
    assert_ack(plug(vm, mem[0], 0, 40 * GiB));
    vm_stop(vm);
}

static unsigned int nr_removed(const Backend *backend)
{
    return qvhost_user_backend_nr_messages(backend->vu, VHOST_USER_REM_MEM_REG);
}

/* A reset unplugs all memory, but no backend is at work meanwhile. */
static void test_reset(const TestCase *test)
{
    static const unsigned int sizes[] = { QVHOST_USER_BASELINE, 8, 64, 509 };
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    Backend *backends[ARRAY_SIZE(sizes)];
    unsigned int removed[ARRAY_SIZE(sizes)];
    unsigned int i;
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        backends[i] = vm_add_started_backend(vm, sizes[i]);
    }
    vm_start(vm);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 4 * GiB));
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        removed[i] = nr_removed(backends[i]);
    }

    vm_reset(vm);
    g_assert_cmpuint(mem_used(mem), ==, 0);
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        g_assert_false(qvhost_user_backend_started(backends[i]->vu));
        g_assert_cmpuint(nr_removed(backends[i]), ==, removed[i]);
    }

    /* The driver has them start again. */
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        backend_start(vm, backends[i]);
        g_assert_cmpint(can_reach(backends[i], mem, 0), ==, sizes[i] < 509);
    }
    assert_ack(plug(vm, mem, 8 * GiB, 4 * GiB));
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        g_assert_true(can_reach(backends[i], mem, 8 * GiB));
    }
    unplug_all(vm, mem);
    vm_stop(vm);
}

static const TestGroup groups[] = {
    { "backend-first", test_backend_first, .cold = true },
    { "backend-later", test_backend_later, .cold = true },
    { "backend-last", test_backend_last },
    { "messages", test_messages },
    { "mixed-backends", test_mixed_backends },
    { "reset", test_reset, .cold = true },
};

void add_whole_device_tests(bool kvm)
{
    add_test_groups(groups, ARRAY_SIZE(groups), kvm);
}
