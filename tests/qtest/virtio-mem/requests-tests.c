/*
 * QTest testcases for virtio-mem: requests of the driver
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "checks.h"
#include "steps.h"
#include "tests.h"

static void test_features(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    QVirtioMEM *mem = vm_mem(vm, 0);
    const uint64_t inaccessible = 1ull << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE;
    const uint64_t features = mem->vdev->features;

    g_assert_cmpint(test->config.expect_inaccessible, ==,
                    qvirtio_mem_has_feature(mem,
                                        VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE));

    /* A driver that would touch unplugged memory must not start. */
    g_assert_true(qvirtio_mem_accepts_features(mem, features));
    g_assert_cmpint(qvirtio_mem_accepts_features(mem, features & ~inaccessible),
                    ==, !test->config.expect_inaccessible);

    qvirtio_mem_start(mem);
    vm_check(vm);
    vm_stop(vm);
}

/* From nothing to all and back, memslot by memslot and across memslots. */
void test_lifecycle(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t size = model->region_size, block = model->block_size;
    const uint64_t memslot_size = model_memslot_size(model, 0);
    const uint64_t nb_memslots = model_nb_memslots(model);
    const uint64_t last_offset = model_memslot_offset(model, nb_memslots - 1);
    const uint64_t last_size = model_memslot_size(model, nb_memslots - 1);
    const uint64_t half = ROUND_DOWN(memslot_size / 2, block);
    const bool on_demand = model->plan && model->unplugged_inaccessible;
    uint16_t state;

    g_assert_cmpuint(model_nb_mapped(model), ==, model->plan ? 0 : 1);
    request_size(vm, 0, size);

    /* The first and the last block of a memslot make it come and go alone. */
    assert_ack(plug_at(vm, 0, model->addr, 1));
    assert_ack(state_at(vm, 0, model->addr, 1, &state));
    g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_PLUGGED);
    if (size > block) {
        assert_ack(state_at(vm, 0, model->addr + block, 1, &state));
        g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_UNPLUGGED);
        assert_ack(state_at(vm, 0, model->addr, 2, &state));
        g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_MIXED);
    }
    if (memslot_size > block) {
        assert_ack(plug_at(vm, 0, model->addr + memslot_size - block, 1));
        assert_ack(unplug_at(vm, 0, model->addr, 1));
        assert_ack(unplug_at(vm, 0, model->addr + memslot_size - block, 1));
    } else {
        assert_ack(unplug_at(vm, 0, model->addr, 1));
    }
    if (on_demand) {
        g_assert_cmpuint(model_nb_mapped(model), ==, 0);
    }

    /* Down to the very last block, in a memslot that might be shorter. */
    assert_ack(plug_at(vm, 0, model->addr + size - block, 1));
    if (last_size > block) {
        assert_ack(plug_at(vm, 0, model->addr + last_offset, 1));
        assert_ack(unplug_at(vm, 0, model->addr + size - block, 1));
        assert_ack(unplug_at(vm, 0, model->addr + last_offset, 1));
    } else {
        assert_ack(unplug_at(vm, 0, model->addr + size - block, 1));
    }

    if (nb_memslots > 1) {
        /* One request for two memslots, one of which keeps a block. */
        const uint64_t addr = model->addr + memslot_size - block;

        assert_ack(plug_at(vm, 0, addr, 2));
        if (last_size > block) {
            assert_ack(plug_at(vm, 0, addr + 2 * block, 1));
        }
        assert_ack(unplug_at(vm, 0, addr, 2));
        if (last_size > block) {
            assert_ack(unplug_at(vm, 0, addr + 2 * block, 1));
        }
    }

    change_many(vm, 0, 0, size, true);
    g_assert_cmpuint(model_nb_mapped(model), ==, nb_memslots);
    change_many(vm, 0, half, size - half, false);
    change_many(vm, 0, half, size - half, true);
    change_many(vm, 0, 0, size, false);
    if (on_demand) {
        g_assert_cmpuint(model_nb_mapped(model), ==, 0);
    }

    change_many(vm, 0, 0, size, true);
    request_size(vm, 0, 0);
    g_assert_cmpuint(model_nb_mapped(model), ==, nb_memslots);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmpuint(model_nb_mapped(model), ==, model->plan ? 0 : 1);
    /* Nothing is left to be done. */
    assert_ack(unplug_all(vm, 0));

    vm_stop(vm);
}

static void test_bad_ranges(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    const uint64_t requested = 1 * GiB + 8 * block;
    uint64_t usable, usable_end;
    uint16_t state;
    unsigned int i;

    /* Without a requested size, there is no usable region. */
    assert_error(plug_at(vm, 0, addr, 1));
    assert_error(unplug_at(vm, 0, addr, 1));
    assert_error(state_at(vm, 0, addr, 1, &state));

    request_size(vm, 0, requested);
    usable = model->usable_size;
    usable_end = addr + usable;
    g_assert_cmphex(usable, <, model->region_size);

    /* Exceeding what was requested */
    assert_nack(plug_at(vm, 0, addr, requested / block + 1));
    assert_ack(plug_at(vm, 0, addr + block, requested / block - 1));
    assert_nack(plug_at(vm, 0, usable_end - 2 * block, 2));
    assert_ack(plug_at(vm, 0, usable_end - block, 1));
    assert_nack(plug_at(vm, 0, addr, 1));
    assert_ack(unplug_at(vm, 0, usable_end - block, 1));
    assert_ack(unplug_at(vm, 0, addr + block, 4));
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 4));

    /* Overlapping with blocks that already are as they shall become */
    assert_error(plug_at(vm, 0, addr + 5 * block, 1));
    assert_error(plug_at(vm, 0, addr + 4 * block, 2));
    assert_error(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    assert_error(plug_at(vm, 0, addr + 1 * GiB + 3 * block, 2));
    assert_error(unplug_at(vm, 0, addr, 1));
    assert_error(unplug_at(vm, 0, addr + 4 * block, 2));
    assert_error(unplug_at(vm, 0, addr + 1 * GiB - block, 2));
    assert_error(unplug_at(vm, 0, usable_end - block, 1));

    const struct {
        uint64_t addr;
        uint16_t nb_blocks;
    } invalid[] = {
        /* no block */
        { addr, 0 },
        { addr + 8 * block, 0 },
        /* misaligned */
        { addr + 1, 1 },
        { addr + block / 2, 1 },
        { addr - 1, 1 },
        /* outside of the region */
        { 0, 1 },
        { addr - block, 1 },
        { addr - block, 2 },
        { addr + model->region_size, 1 },
        { addr + model->region_size - block, 2 },
        { addr, MAX_REQUEST_BLOCKS },
        /* outside of the usable region */
        { usable_end, 1 },
        { usable_end - block, 2 },
        { addr, usable / block + 1 },
        { addr + model->region_size - block, 1 },
        /* not below the end of the address space */
        { -block, 1 },
        { -block, 2 },
        { -block * 16, MAX_REQUEST_BLOCKS },
        { UINT64_MAX, 1 },
    };

    for (i = 0; i < ARRAY_SIZE(invalid); i++) {
        assert_error(plug_at(vm, 0, invalid[i].addr, invalid[i].nb_blocks));
        assert_error(unplug_at(vm, 0, invalid[i].addr, invalid[i].nb_blocks));
        assert_error(state_at(vm, 0, invalid[i].addr, invalid[i].nb_blocks,
                              &state));
    }
    vm_stop(vm);
}

static void test_malformed_requests(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    QVirtioMEM *mem = vm_mem(vm, 0);
    Model *model = vm_model(vm, 0);
    struct virtio_mem_req plug = {
        .type = cpu_to_le16(VIRTIO_MEM_REQ_PLUG),
        .u.plug.addr = cpu_to_le64(model->addr + 2 * GiB),
        .u.plug.nb_blocks = cpu_to_le16(1),
    };
    struct virtio_mem_req unknown = plug, unknown_max = plug;
    /* The spec allows for more than is needed, on both sides. */
    uint8_t long_req[sizeof(plug) + 64] = { }, long_resp[64];
    struct virtio_mem_resp resp;
    const struct {
        const void *req;
        size_t req_size;
        size_t resp_size;
    } malformed[] = {
        { &plug, sizeof(plug) - 1, sizeof(resp) },
        { &plug, 1, sizeof(resp) },
        { &plug, sizeof(plug), sizeof(resp) - 1 },
        { &plug, sizeof(plug), 1 },
        { &unknown, sizeof(unknown), sizeof(resp) },
        { &unknown_max, sizeof(unknown_max), sizeof(resp) },
    };
    unsigned int i;

    unknown.type = cpu_to_le16(VIRTIO_MEM_REQ_STATE + 1);
    unknown_max.type = cpu_to_le16(UINT16_MAX);

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, model->addr + 1 * GiB, 1));

    for (i = 0; i < ARRAY_SIZE(malformed); i++) {
        g_assert_false(qvirtio_mem_request(mem, malformed[i].req,
                                           malformed[i].req_size, &resp,
                                           malformed[i].resp_size));
        vm_check(vm);
        qvirtio_mem_start(mem);
        vm_check(vm);
        assert_ack(plug_at(vm, 0, model->addr + 2 * GiB, 1));
        assert_ack(unplug_at(vm, 0, model->addr + 2 * GiB, 1));
    }

    memcpy(long_req, &plug, sizeof(plug));
    g_assert_true(qvirtio_mem_request(mem, long_req, sizeof(long_req),
                                      long_resp, sizeof(long_resp)));
    memcpy(&resp, long_resp, sizeof(resp));
    g_assert_cmpint(le16_to_cpu(resp.type), ==, VIRTIO_MEM_RESP_ACK);
    assert_ack(model_plug(model, model->addr + 2 * GiB, 1));
    vm_check(vm);

    vm_stop(vm);
}

/* The usable region grows along with the requested size, then shrinks late. */
static void test_usable_region(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t block = model->block_size;
    const bool follows = model->plan && !model->unplugged_inaccessible;
    /* The first memslot that the usable region of one block does not touch */
    const uint64_t memslot = model->usable_extent / GiB + 1;
    const uint64_t offset = memslot * GiB;

    request_size(vm, 0, block);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot);
    }
    /* The last size for which that many memslots are enough, and one more */
    request_size(vm, 0, offset - model->usable_extent);
    g_assert_cmphex(model->usable_size, ==, offset);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot);
    }
    request_size(vm, 0, offset - model->usable_extent + block);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot + 1);
    }
    assert_ack(plug_at(vm, 0, model->addr + offset, 1));

    request_size(vm, 0, model->region_size);
    g_assert_cmphex(model->usable_size, ==, model->region_size);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, model_nb_memslots(model));
    }

    request_bad_size(vm, 0, block / 2);
    request_bad_size(vm, 0, model->region_size + block);

    request_size(vm, 0, block);
    assert_ack(unplug_at(vm, 0, model->addr + offset, 1));
    g_assert_cmphex(model->usable_size, ==, model->region_size);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(model->usable_size, <, offset);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot);
    }

    request_size(vm, 0, 0);
    g_assert_cmphex(model->usable_size, >, 0);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(model->usable_size, ==, 0);

    vm_stop(vm);
}

/* What is in a plugged block stays, whatever happens to the memslots around. */
static void test_contents(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr + 1 * GiB, block = model->block_size;
    const uint64_t pattern = 0x0123456789abcdefull;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr, 2));
    qtest_writeq(vm->qts, addr, pattern);
    qtest_writeq(vm->qts, addr + 2 * block - sizeof(pattern), ~pattern);

    assert_ack(plug_at(vm, 0, addr - block, 1));
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 1));
    assert_ack(unplug_at(vm, 0, addr - block, 1));
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr), ==, pattern);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 2 * block - sizeof(pattern)),
                    ==, ~pattern);

    /* Unplugged memory is given back, so nothing of it can be left. */
    assert_ack(unplug_at(vm, 0, addr, 1));
    assert_ack(plug_at(vm, 0, addr, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr), ==, 0);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 2 * block - sizeof(pattern)),
                    ==, ~pattern);

    assert_ack(unplug_all(vm, 0));
    assert_ack(plug_at(vm, 0, addr, 2));
    g_assert_cmphex(qtest_readq(vm->qts, addr + 2 * block - sizeof(pattern)),
                    ==, 0);
    vm_stop(vm);
}

void test_random_walk(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    unsigned int i;

    request_size(vm, 0, vm_model(vm, 0)->region_size);
    for (i = 0; i < RANDOM_STEPS; i++) {
        random_step(vm, 0);
    }
    vm_stop(vm);
}

/* unplugged-inaccessible=auto depends on the kind of memory. */
static const NamedConfig auto_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "ram-shared",
      { RAM_SHARED, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "file", { FILE_SHARED, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "file-private",
      { FILE_PRIVATE, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "single-ram", { RAM, SINGLE(4 * GiB), AUTO_ACCESSIBLE } },
    { "single-memfd", { MEMFD, SINGLE(4 * GiB), AUTO_INACCESSIBLE } },
    { }
};

/* Devices of other shapes and kinds of memory */
static const NamedConfig more_configs[] = {
    { "memfd-inaccessible",
      { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "memfd-accessible", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { "file-inaccessible",
      { FILE_SHARED, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "file-accessible",
      { FILE_SHARED, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { "short-last-memslot-inaccessible",
      { RAM, MULTIPLE(2 * GiB + 518 * MiB, 1 * GiB), INACCESSIBLE } },
    { "short-last-memslot-accessible",
      { RAM, MULTIPLE(2 * GiB + 518 * MiB, 1 * GiB), ACCESSIBLE } },
    { "one-block-in-last-memslot",
      { RAM, MULTIPLE(2 * GiB + 2 * MiB, 1 * GiB), INACCESSIBLE } },
    { "dynamic-memslots-inaccessible",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE,
        .memslots_prop = "dynamic-memslots" } },
    { "dynamic-memslots-accessible",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE,
        .memslots_prop = "dynamic-memslots" } },
    { "small-inaccessible",
      { RAM, MULTIPLE(512 * MiB, 1 * GiB), INACCESSIBLE } },
    { "small-accessible", { RAM, MULTIPLE(512 * MiB, 1 * GiB), ACCESSIBLE } },
    { "blocks-of-64m",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE,
        .block_size = 64 * MiB } },
    /* The default on ARM with pages of 16 KiB and 64 KiB */
    { "blocks-of-32m",
      { RAM, MULTIPLE(2 * GiB + 32 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 32 * MiB } },
    { "blocks-of-512m",
      { RAM, MULTIPLE(5 * GiB + 512 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 512 * MiB } },
    { "blocks-of-1g-inaccessible",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE,
        .block_size = 1 * GiB } },
    { "blocks-of-1g-accessible",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE, .block_size = 1 * GiB } },
    { "blocks-of-2g",
      { RAM, MULTIPLE(6 * GiB, 2 * GiB), INACCESSIBLE,
        .block_size = 2 * GiB } },
    { "memslots-of-128m-inaccessible",
      { RAM, MULTIPLE(4 * GiB - 64 * MiB, 128 * MiB), INACCESSIBLE,
        .memslot_min_size = 128 * MiB } },
    { "memslots-of-128m-accessible",
      { RAM, MULTIPLE(4 * GiB - 64 * MiB, 128 * MiB), ACCESSIBLE,
        .memslot_min_size = 128 * MiB } },
    { "memslots-of-2g",
      { RAM, MULTIPLE(7 * GiB, 2 * GiB), INACCESSIBLE,
        .memslot_min_size = 2 * GiB } },
    /* As many memslots as devices may have in all, hence larger ones */
    { "large-of-128m",
      { RAM_SPARSE, MULTIPLE(64 * GiB, 128 * MiB), INACCESSIBLE,
        .memslot_min_size = 128 * MiB } },
    { "large-inaccessible",
      { RAM_SPARSE, MULTIPLE(1 * TiB, 1 * GiB), INACCESSIBLE } },
    { "large-accessible",
      { RAM_SPARSE, MULTIPLE(1 * TiB, 1 * GiB), ACCESSIBLE } },
    { }
};

static const TestGroup groups[] = {
    { "features", test_features, basic_configs,
      .all_machines = true, .machine_defaults = true },
    { "features-auto", test_features, auto_configs },
    { "lifecycle", test_lifecycle, basic_configs,
      .all_machines = true, .machine_defaults = true },
    { "lifecycle-auto", test_lifecycle, auto_configs },
    { "lifecycle-more", test_lifecycle, more_configs },
    { "random-walk", test_random_walk, basic_configs },
    { "random-walk-more", test_random_walk, more_configs },
    { "bad-ranges", test_bad_ranges, basic_configs },
    { "malformed-requests", test_malformed_requests, basic_configs },
    { "usable-region", test_usable_region, basic_configs,
      .all_machines = true },
    { "contents", test_contents, basic_configs, .all_machines = true },
    { }
};

void add_requests_tests(void)
{
    add_tests(groups);
}
