/*
 * Tests of how many memslots memory devices get
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"

/* All kinds of memory devices, beside each other */
static void test_mix(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 96 * GiB);
    const MemConfig on = multiple(false, 16 * GiB);
    const MemConfig on_shared = multiple(true, 16 * GiB);
    const MemConfig off = single(false, 4 * GiB);
    const MemConfig off_shared = single(true, 4 * GiB);
    const MemConfig nvdimm = { NVDIMM, .size = DIMM_SIZE };
    const MemConfig pmem = { PMEM, .shared = true, DIMM_SIZE };
    MemConfig accessible = multiple(true, 8 * GiB);
    Mem *mem[6], *dimms[2];
    Backend *backend;

    accessible.inaccessible = false;
    accessible.requested_size = 3 * GiB;

    mem[0] = vm_add_mem(vm, &on);
    mem[1] = vm_add_mem(vm, &on_shared);
    dimms[0] = vm_add_mem(vm, &dimm);
    mem[2] = vm_add_mem(vm, &off);
    mem[3] = vm_add_mem(vm, &off_shared);
    dimms[1] = vm_add_mem(vm, &shared_dimm);
    mem[4] = vm_add_mem(vm, &accessible);
    vm_add_mem(vm, &nvdimm);
    vm_add_mem(vm, &pmem);
    backend = vm_add_backend(vm, 64);
    mem[5] = vm_add_mem(vm, &on_shared);
    vm_start(vm);
    if (!vm->cold) {
        /* What it will hold is known before the driver starts it. */
        g_assert_false(qvhost_user_backend_started(backend->vu));
        backend_start(vm, backend);
    }

    /* The backend makes no difference, whether it comes before or after. */
    g_assert_true(backend->whole_devices);
    g_assert_cmpuint(mem[0]->required, ==, 16);
    g_assert_cmpuint(mem[1]->required, ==, 16);
    g_assert_cmpuint(mem[4]->required, ==, 8);
    g_assert_cmpuint(mem[5]->required, ==, 16);
    g_assert_cmpuint(vm_required(vm, false), ==, 16 + 16 + 8 + 16 + 6);
    g_assert_cmpuint(vm_required(vm, true), ==, 16 + 8 + 16 + 3);
    /* Five that always are, and the usable region of the accessible one */
    g_assert_cmpuint(vm_used(vm, false), ==, 6 + 4);
    g_assert_cmpuint(vm_used(vm, true), ==, 3 + 4);

    request_size(vm, mem[0], 16 * GiB);
    request_size(vm, mem[1], 16 * GiB);
    request_size(vm, mem[3], 1 * GiB);
    request_size(vm, mem[5], 16 * GiB);
    assert_ack(plug(vm, mem[0], 1 * GiB - 2 * MiB, 4 * MiB));
    assert_ack(plug(vm, mem[1], 0, 16 * GiB));
    assert_ack(plug(vm, mem[3], 0, 1 * GiB));
    assert_ack(plug(vm, mem[4], 0, 1 * GiB));
    assert_ack(plug(vm, mem[5], 8 * GiB, 2 * MiB));
    g_assert_cmpuint(vm_used(vm, false), ==, 6 + 4 + 2 + 16 + 1);
    g_assert_true(request_size(vm, mem[4], 8 * GiB));
    g_assert_cmpuint(vm_used(vm, true), ==, 3 + 8 + 16 + 1);
    vm_remove_dimm(vm, dimms[1]);
    assert_ack(unplug(vm, mem[1], 2 * GiB, 14 * GiB));
    unplug_all(vm, mem[0]);
    vm_remove_dimm(vm, dimms[0]);
    request_size(vm, mem[4], 0);
    unplug_all(vm, mem[4]);
    g_assert_cmpuint(vm_used(vm, false), ==, 4 + 2 + 1);
    vm_remove_backend(vm, backend);
    vm_stop(vm);
}

/* Devices share by size what one device alone could have. */
static void test_soft_limit(const TestCase *test)
{
    static const struct {
        uint64_t size;
        unsigned int memslots;
    } devices[] = {
        { 320 * GiB, 126 },
        { 64 * GiB, 25 },
        { 128 * GiB, 50 },
        { 64 * GiB, 25 },
        { 60 * GiB, 25 },
    };
    TestVM *vm = vm_new_default(test, 648 * GiB);
    const MemConfig last = multiple(true, 2 * GiB);
    unsigned int i;
    Mem *mem;

    for (i = 0; i < ARRAY_SIZE(devices); i++) {
        const MemConfig config = multiple(i % 2, devices[i].size);

        mem = vm_add_mem(vm, &config);
        g_assert_cmpuint(mem->required, ==, devices[i].memslots);
    }
    for (i = vm_required(vm, false); i < SOFT_LIMIT; i++) {
        vm_add_mem(vm, &dimm);
    }

    /* Nothing is left that could be shared, but one is for everybody. */
    mem = vm_add_mem(vm, &last);
    g_assert_cmpuint(mem->required, ==, 1);
    vm_add_mem(vm, &dimm);
    g_assert_cmpuint(vm_required(vm, false), ==, SOFT_LIMIT + 2);
    vm_start(vm);
    vm_stop(vm);
}

/* Memory on all nodes counts. */
static void test_numa(const TestCase *test)
{
    TestVM *vm = vm_new(test, 64 * GiB, "-machine pc"
                        " -object memory-backend-memfd,id=boot0,size=64M"
                        " -object memory-backend-memfd,id=boot1,size=64M"
                        " -numa node,memdev=boot0 -numa node,memdev=boot1"
                        " -numa node");
    MemConfig config = multiple(true, 16 * GiB);
    unsigned int node;
    Mem *mems[3];

    for (node = 0; node < 3; node++) {
        MemConfig dimm_config = shared_dimm;

        dimm_config.node = node;
        vm_add_mem(vm, &dimm_config);
        config.node = node;
        mems[node] = vm_add_mem(vm, &config);
        g_assert_cmpuint(mems[node]->required, ==, 16);
    }
    vm_add_started_backend(vm, 64);
    vm_start(vm);
    for (node = 0; node < 3; node++) {
        request_size(vm, mems[node], 16 * GiB);
        assert_ack(plug(vm, mems[node], 0, 16 * GiB));
    }
    vm_stop(vm);
}

static const TestGroup groups[] = {
    { "mix", test_mix, .cold = true },
    { "soft-limit", test_soft_limit, .cold = true },
    { "numa", test_numa, .cold = true },
};

void add_budget_tests(bool kvm)
{
    add_test_groups(groups, ARRAY_SIZE(groups), kvm);
}
