/*
 * QTest testcases for virtio-mem: all kinds of memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "host-memory.h"
#include "steps.h"
#include "tests.h"

/*
 * Memory is taken from the host when it is plugged or when it is used, and
 * goes back when it is unplugged, all of it and nothing else.
 */
static void check_memory(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t block = model->block_size;
    const uint64_t page = test->config.nb_huge_pages ?
                          HUGE_PAGE_SIZE : qemu_real_host_page_size();
    /* two at the end of a memslot, and where there is one, two of the next */
    const Blocks blocks = {
        .vm = vm,
        .addr = model->addr + model_memslot_size(model, 0) - 2 * block,
        .block_size = block,
        .count = model_nb_memslots(model) > 1 ? 4 : 2,
    };
    const uint64_t touched = 2 * page;
    const bool prealloc = test->config.extra_props &&
                          strstr(test->config.extra_props, "prealloc=on");
    const uint64_t nb_free = test->config.nb_huge_pages ?
                             huge_pages("free_hugepages") : 0;
    HostMemory mem;
    unsigned int i;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, blocks.addr, blocks.count));
    mem = find_host_memory(vm, 0, blocks.addr);
    if (prealloc) {
        check_allocated(&mem, blocks.count * block, blocks.count * block);
    } else {
        check_allocated(&mem, 0, 0);
    }
    for (i = 0; i < blocks.count; i++) {
        write_block(&blocks, i);
    }
    check_allocated(&mem, blocks.count * MIN(block, touched),
                    blocks.count * block);

    /* The neighbours, one in the next memslot, keep what is in there. */
    assert_ack(unplug_at(vm, 0, blocks.addr + block, 1));
    check_allocated(&mem, (blocks.count - 1) * MIN(block, touched),
                    (blocks.count - 1) * block);
    g_assert_cmphex(allocated_privately(&mem, blocks.addr + block - model->addr,
                                        block), ==, 0);
    for (i = 0; i < blocks.count; i++) {
        if (i != 1) {
            check_block(&blocks, i);
        }
    }
    assert_ack(plug_at(vm, 0, blocks.addr + block, 1));
    check_block_is_zero(&blocks, &mem, 1);
    write_block(&blocks, 1);
    for (i = 0; i < blocks.count; i++) {
        check_block(&blocks, i);
    }

    assert_ack(unplug_at(vm, 0, blocks.addr, blocks.count));
    check_allocated(&mem, 0, 0);
    for (i = 0; i < 2; i++) {
        unsigned int j;

        assert_ack(plug_at(vm, 0, blocks.addr, blocks.count));
        for (j = 0; j < blocks.count; j++) {
            check_block_is_zero(&blocks, &mem, j);
            write_block(&blocks, j);
        }
        if (i == 0) {
            assert_ack(unplug_all(vm, 0));
        } else {
            system_reset(vm);
        }
        check_allocated(&mem, 0, 0);
        if (test->config.nb_huge_pages) {
            g_assert_cmpuint(huge_pages("free_hugepages"), ==, nb_free);
        }
    }
    vm_stop(vm);
}

static void test_memory(const TestCase *test)
{
    if (can_see_memory()) {
        check_memory(test);
    }
}

/* The NUMA policy of the memory backend outlives all that is done to it. */
static void test_numa_policy(const TestCase *test)
{
#ifdef CONFIG_NUMA
    g_autofree char *policy = g_strdup(strstr(test->config.backend, "policy=") +
                                       strlen("policy="));
    TestVM *vm;
    Model *model;
    HostMemory mem;
    unsigned int i;

    if (!g_file_test("/proc/self/numa_maps", G_FILE_TEST_EXISTS)) {
        g_test_skip("the kernel does not know about NUMA");
        return;
    }
    /* The kernel's word for it is a shorter one. */
    if (g_str_equal(policy, "preferred")) {
        policy[strlen("prefer")] = '\0';
    }

    vm = vm_start(test);
    model = vm_model(vm, 0);
    request_size(vm, 0, model->region_size);
    for (i = 0; i < 2; i++) {
        g_autofree char *path = NULL;
        g_autofree char *text = NULL;
        g_autofree char *line_start = NULL;
        const char *line;

        assert_ack(plug_at(vm, 0, model->addr, 1));
        assert_ack(plug_at(vm, 0, model->addr + 1 * GiB, 1));
        qtest_writeq(vm->qts, model->addr + 1 * GiB, 1);
        mem = find_host_memory(vm, 0, model->addr);
        path = proc_path(&mem, "numa_maps");
        g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
        line_start = g_strdup_printf("%" PRIx64 " %s", mem.start, policy);
        line = strstr(text, line_start);
        g_assert_nonnull(line);
        g_assert_nonnull(strchr(line, ':'));
        g_assert_cmpint(strchr(line, ':')[1], ==, '0');

        assert_ack(unplug_at(vm, 0, model->addr, 1));
        assert_ack(unplug_all(vm, 0));
    }
    vm_stop(vm);
#else
    g_test_skip("NUMA is not built in");
#endif
}

/* All kinds of memory */
static const NamedConfig backend_configs[] = {
    { "ram", BACKEND(RAM) },
    { "ram-sparse", BACKEND(RAM_SPARSE) },
    { "ram-shared", BACKEND(RAM_SHARED) },
    { "memfd", BACKEND(MEMFD) },
    { "memfd-private", BACKEND(MEMFD_PRIVATE) },
    { "file", BACKEND(FILE_SHARED) },
    { "file-private", BACKEND(FILE_PRIVATE) },
    { "disk", DISK_BACKEND(FILE_SHARED) },
    { "disk-private", DISK_BACKEND(FILE_PRIVATE) },
    { "huge-memfd", HUGE_BACKEND(HUGE_MEMFD) },
    { "huge-memfd-private", HUGE_BACKEND(HUGE_MEMFD_PRIVATE) },
    { "huge-file", HUGE_FS_BACKEND(HUGE_FILE) },
    { "huge-file-private", HUGE_FS_BACKEND(HUGE_FILE_PRIVATE) },
    { "accessible-ram", ACCESSIBLE_BACKEND(RAM) },
    { "accessible-memfd", ACCESSIBLE_BACKEND(MEMFD) },
    { "single-ram", SINGLE_BACKEND(RAM) },
    { "single-memfd", SINGLE_BACKEND(MEMFD) },
    { "single-huge-memfd",
      { HUGE_MEMFD, SINGLE(4 * GiB), INACCESSIBLE, HUGE } },
    { "short-last-memslot-huge-memfd",
      { HUGE_MEMFD, MULTIPLE(2 * GiB + 518 * MiB, 1 * GiB), INACCESSIBLE,
        HUGE } },
    { "short-last-memslot-disk",
      { FILE_SHARED, MULTIPLE(1 * GiB + 8 * MiB, 1 * GiB), INACCESSIBLE,
        .fs = FS_DISK } },
    { "huge-memfd-blocks-of-8m",
      { HUGE_MEMFD, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE,
        .nb_huge_pages = 64, .block_size = 8 * MiB } },
    { }
};

/* Among these, blocks that are smaller than a transparent huge page */
static const NamedConfig few_backend_configs[] = {
    { "ram-blocks-of-1m",
      { RAM, MULTIPLE(2 * GiB + 6 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 1 * MiB } },
    { "memfd-blocks-of-1m",
      { MEMFD, MULTIPLE(2 * GiB + 6 * MiB, 1 * GiB), ACCESSIBLE,
        .block_size = 1 * MiB } },
    { "disk", DISK_BACKEND(FILE_SHARED) },
    { "huge-memfd", HUGE_BACKEND(HUGE_MEMFD) },
    { "blocks-of-512m",
      { RAM, MULTIPLE(4 * GiB + 512 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 512 * MiB } },
    { }
};

#define SMALL_BACKEND(backend, ...)                                        \
    { backend, MULTIPLE(1 * GiB + 64 * MiB, 1 * GiB), INACCESSIBLE,        \
      __VA_ARGS__ }
#define PREALLOC .extra_props = "prealloc=on"
/* as many as make up a small device */
#define RESERVED_HUGE .nb_huge_pages = 544

/* Memory that is allocated when it is plugged, or set aside */
static const NamedConfig preallocated_configs[] = {
    { "ram-prealloc", SMALL_BACKEND(RAM, PREALLOC) },
    { "ram-shared-prealloc", SMALL_BACKEND(RAM_SHARED, PREALLOC) },
    { "memfd-prealloc", SMALL_BACKEND(MEMFD, PREALLOC) },
    { "file-private-prealloc", SMALL_BACKEND(FILE_PRIVATE, PREALLOC) },
    { "disk-prealloc",
      SMALL_BACKEND(FILE_SHARED, PREALLOC, .fs = FS_DISK) },
    { "huge-memfd-prealloc", SMALL_BACKEND(HUGE_MEMFD, PREALLOC, HUGE) },
    { "huge-file-private-prealloc",
      SMALL_BACKEND(HUGE_FILE_PRIVATE, PREALLOC, HUGE, .fs = FS_HUGETLB) },
    { "huge-memfd-reserved",
      SMALL_BACKEND(HUGE_MEMFD_RESERVED, RESERVED_HUGE) },
    { "huge-memfd-reserved-prealloc",
      SMALL_BACKEND(HUGE_MEMFD_RESERVED, RESERVED_HUGE, PREALLOC) },
    { }
};

static const NamedConfig numa_configs[] = {
    { "bind", BACKEND(RAM ",host-nodes=0,policy=bind") },
    { "preferred", BACKEND(RAM ",host-nodes=0,policy=preferred") },
    { "interleave", BACKEND(MEMFD ",host-nodes=0,policy=interleave") },
    { }
};

static const TestGroup groups[] = {
    { "backends", test_lifecycle, backend_configs },
    { "backends-random-walk", test_random_walk, few_backend_configs },
    { "backends-memory", test_memory, backend_configs },
    { "backends-memory-small", test_memory, preallocated_configs },
    { "numa-policy", test_numa_policy, numa_configs },
    { }
};

void add_backends_tests(void)
{
    add_tests(groups);
}
