/*
 * QTest testcases for virtio-mem: memslots
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "checks.h"
#include "steps.h"
#include "tests.h"

/* Of sixteen devices, it takes long to look at all. */
#define MANY_DEVICES_STEPS 30

/* Each device minds its own memslots, though they are next to each other. */
static void test_two_devices(const TestCase *test)
{
    DeviceConfig configs[] = { test->config, test->config };
    unsigned int i;
    TestVM *vm;

    /* Put the second device where no memslot would be if it were the first. */
    configs[0].size = 2 * GiB + 514 * MiB;
    vm = vm_start_with(test, configs, ARRAY_SIZE(configs), "");
    g_assert_cmphex(vm_model(vm, 1)->addr % GiB, !=, 0);

    for (i = 0; i < ARRAY_SIZE(configs); i++) {
        request_size(vm, i, vm_model(vm, i)->region_size);
        change_many(vm, i, 0, vm_model(vm, i)->region_size, true);
    }
    assert_ack(unplug_all(vm, 0));
    g_assert_cmpuint(model_nb_mapped(vm_model(vm, 1)), ==,
                     model_nb_memslots(vm_model(vm, 1)));
    for (i = 0; i < RANDOM_STEPS; i++) {
        random_step(vm, random_below(ARRAY_SIZE(configs)));
    }
    system_reset(vm);
    vm_stop(vm);
}

/* However many memslots a step touches, listeners see one change. */
static void test_one_transaction(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    QVirtioMEM *mem = vm_mem(vm, 0);
    const uint64_t nb_blocks = model->region_size / model->block_size;
    unsigned int nb_flatviews;
    QDict *rsp;

    if (!vm->traced) {
        g_test_skip("needs trace events in the log");
        vm_stop(vm);
        return;
    }

    /* vm_check() returns what one step led to; the first maps one memslot. */
    if (model->unplugged_inaccessible) {
        request_size(vm, 0, model->region_size);
        assert_ack(qvirtio_mem_plug(mem, model->addr, 1));
        assert_ack(model_plug(model, model->addr, 1));
        nb_flatviews = vm_check(vm);

        assert_ack(qvirtio_mem_plug(mem, model->addr + model->block_size,
                                    nb_blocks - 1));
        assert_ack(model_plug(model, model->addr + model->block_size,
                              nb_blocks - 1));
        g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

        assert_ack(qvirtio_mem_unplug(mem, model->addr, nb_blocks));
        assert_ack(model_unplug(model, model->addr, nb_blocks));
        /* The view of memory devices alone is not made if it is empty. */
        g_assert_cmpuint(vm_check(vm), <=, nb_flatviews);

        assert_ack(plug_at(vm, 0, model->addr, nb_blocks));
    } else {
        rsp = qom_set_requested_size(vm, 0, model->block_size);
        model_request_size(model, model->block_size);
        qobject_unref(rsp);
        nb_flatviews = vm_check(vm);

        rsp = qom_set_requested_size(vm, 0, model->region_size);
        model_request_size(model, model->region_size);
        qobject_unref(rsp);
        g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

        request_size(vm, 0, 0);
    }
    g_assert_cmpuint(nb_flatviews, >, 0);
    g_assert_cmpuint(model_nb_mapped(model), ==, model_nb_memslots(model));

    assert_ack(qvirtio_mem_unplug_all(mem));
    assert_ack(model_unplug_all(model));
    g_assert_cmpuint(vm_check(vm), <=, nb_flatviews);

    vm_stop(vm);
}

static unsigned int nb_late_discards(TestVM *vm)
{
    g_autofree char *text = NULL;
    unsigned int count = 0;
    const char *event = "virtio_mem_discard_unmapped", *pos;

    g_assert_true(g_file_get_contents(vm->log_path, &text, NULL, NULL));
    for (pos = strstr(text, event); pos; pos = strstr(pos + 1, event)) {
        count++;
    }
    return count;
}

/* What is discarded later is what was unmapped, all in one go. */
static void test_late_discards(const TestCase *test)
{
    TestVM *vm = vm_start_with(test, &test->config, 1,
                               "-trace virtio_mem_discard_unmapped");
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    const bool inaccessible = model->unplugged_inaccessible;
    unsigned int count;

    if (!vm->traced) {
        g_test_skip("needs trace events in the log");
        vm_stop(vm);
        return;
    }

    request_size(vm, 0, model->region_size);
    g_assert_cmpuint(nb_late_discards(vm), ==, 0);
    assert_ack(plug_at(vm, 0, addr, 3 * GiB / block));
    assert_ack(unplug_at(vm, 0, addr, 1));
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB + block, 8));
    g_assert_cmpuint(nb_late_discards(vm), ==, 0);

    /* The rest of one memslot, and two at once */
    assert_ack(unplug_at(vm, 0, addr + block, 1 * GiB / block - 1));
    g_assert_cmpuint(nb_late_discards(vm), ==, inaccessible);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmpuint(nb_late_discards(vm), ==, 2 * inaccessible);

    /* Nothing is plugged. */
    assert_ack(unplug_all(vm, 0));
    system_reset(vm);
    g_assert_cmpuint(nb_late_discards(vm), ==, 2 * inaccessible);

    /* The usable region takes with it what it covered. */
    request_size(vm, 0, 0);
    count = nb_late_discards(vm);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmpuint(nb_late_discards(vm), ==, count + !inaccessible);
    vm_stop(vm);
}

/* At an address that is no multiple of the size of memslots, nor of 1 GiB */
static void test_memaddr(const TestCase *test)
{
    const uint64_t addr = 5 * GiB + 514 * MiB;
    g_autofree char *memaddr = g_strdup_printf("memaddr=0x%" PRIx64, addr);
    g_autofree char *backend = NULL;
    g_autofree char *device = NULL;
    g_autofree char *args = NULL;
    DeviceConfig config = test->config;
    TestVM *vm = vm_new(test);
    Model *model;
    unsigned int i;

    config.extra_props = memaddr;
    backend = backend_args(vm->tmpdir, 0, &config);
    device = device_args(0, &config);
    args = g_strdup_printf("-object %s -device %s", backend, device);
    vm_boot(vm, 2 * config.size, args);
    device_init(vm, 0, &config);
    model = vm_model(vm, 0);
    g_assert_cmphex(model->addr, ==, addr);
    vm_check(vm);

    request_size(vm, 0, model->region_size);
    change_many(vm, 0, 0, model->region_size, true);
    qtest_writeq(vm->qts, addr + 1 * GiB - 8, 0x0123456789abcdef);
    qtest_writeq(vm->qts, addr + 1 * GiB, 0xfedcba9876543210);
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr + 1 * GiB - 8), ==,
                    0x0123456789abcdef);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr + 1 * GiB), ==, 0);
    for (i = 0; i < RANDOM_STEPS / 4; i++) {
        random_step(vm, 0);
    }
    assert_ack(unplug_all(vm, 0));
    vm_stop(vm);
}

/* What is requested at start can be plugged, without a word from outside. */
static void test_requested_at_start(const TestCase *test)
{
    DeviceConfig config = test->config;
    TestVM *vm;
    Model *model;

    config.requested_size = 2 * GiB;
    vm = vm_start_with(test, &config, 1, "");
    model = vm_model(vm, 0);
    g_assert_cmphex(model->usable_size, ==, 2 * GiB + arch->usable_extent);

    change_many(vm, 0, 0, config.requested_size, true);
    assert_nack(plug_at(vm, 0, model->addr + config.requested_size, 1));
    system_reset(vm);
    assert_ack(plug_at(vm, 0, model->addr + config.requested_size, 1));
    request_size(vm, 0, 0);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(model->usable_size, ==, 0);
    vm_stop(vm);
}

/* They share what there is of memslots, and keep out of each other's way. */
static void test_many_devices(const TestCase *test)
{
    DeviceConfig configs[MAX_DEVICES];
    const Model *model;
    unsigned int i, mapped = 0;
    TestVM *vm;

    for (i = 0; i < MAX_DEVICES; i++) {
        configs[i] = test->config;
    }
    vm = vm_start_with(test, configs, MAX_DEVICES, "");
    model = vm_model(vm, 0);
    g_assert_cmpuint(query_memslots(vm, "required"), ==,
                     MAX_DEVICES * model_nb_memslots(model));
    for (i = 0; i < MAX_DEVICES; i++) {
        model = vm_model(vm, i);
        request_size(vm, i, model->region_size);
        g_assert_cmpint(qvirtio_mem_plug(vm_mem(vm, i),
                                         model->addr + i * model->block_size,
                                         1 + i), ==, VIRTIO_MEM_RESP_ACK);
        assert_ack(model_plug(vm_model(vm, i),
                              model->addr + i * model->block_size, 1 + i));
        qtest_writeq(vm->qts, model->addr + i * model->block_size, i + 1);
    }
    vm_check(vm);
    for (i = 0; i < MAX_DEVICES; i += 2) {
        assert_ack(unplug_all(vm, i));
    }
    for (i = 1; i < MAX_DEVICES; i += 2) {
        model = vm_model(vm, i);
        g_assert_cmphex(qtest_readq(vm->qts,
                                    model->addr + i * model->block_size), ==,
                        i + 1);
    }
    for (i = 0; i < MANY_DEVICES_STEPS; i++) {
        random_step(vm, random_below(MAX_DEVICES));
    }
    for (i = 0; i < MAX_DEVICES; i++) {
        mapped += model_nb_mapped(vm_model(vm, i));
    }
    g_assert_cmpuint(query_memslots(vm, "used"), ==, mapped);
    system_reset(vm);
    vm_stop(vm);
}

/* ---- A BAR where the device has memory, or could have it ---- */

#define BAR_SIZE (2 * GiB)

static void place_bar(QPCIDevice *dev, uint64_t addr)
{
    qpci_config_writew(dev, PCI_COMMAND, 0);
    qpci_config_writel(dev, PCI_BASE_ADDRESS_2, addr);
    qpci_config_writel(dev, PCI_BASE_ADDRESS_3, addr >> 32);
    qpci_config_writew(dev, PCI_COMMAND, PCI_COMMAND_MEMORY);
}

static bool bar_is_mapped(TestVM *vm)
{
    g_autofree char *text = hmp(vm, "info mtree -f");

    return strstr(text, "): bar\n") || strstr(text, "): bar @") ||
           strstr(text, "): bar KVM");
}

/* Memory that is not plugged is nobody else's. */
static void test_bar(const TestCase *test)
{
    const char *args = "-object memory-backend-ram,id=bar,size=2G,reserve=off"
                       " -device ivshmem-plain,memdev=bar,addr=10.0";
    const uint64_t value = 0x0123456789abcdef;
    uint64_t offset, start, unmapped;
    QPCIDevice *bar;
    Model *model;
    TestVM *vm;

    if (!qtest_has_device("ivshmem-plain")) {
        g_test_skip("needs a device with a large BAR");
        return;
    }
    vm = vm_start_with(test, &test->config, 1, args);
    model = vm_model(vm, 0);
    bar = qpci_device_find(vm->qs->pcibus, QPCI_DEVFN(16, 0));
    g_assert_nonnull(bar);
    unmapped = qtest_readq(vm->qts, 2 * GiB);

    /* The BAR is one that would be mapped elsewhere. */
    place_bar(bar, QEMU_ALIGN_UP(model->addr + model->region_size, BAR_SIZE));
    g_assert_true(bar_is_mapped(vm));

    request_size(vm, 0, model->block_size);
    for (offset = 0; offset < model->region_size; offset += BAR_SIZE) {
        start = model->addr + offset;
        g_assert_cmphex(start % BAR_SIZE, ==, 0);
        place_bar(bar, start);
        g_assert_false(bar_is_mapped(vm));
        vm_check(vm);

        /* Nothing is there, and nothing takes a write. */
        if (!model_memslot_mapped(model, model_nb_memslots(model) - 1)) {
            qtest_writeq(vm->qts, start + BAR_SIZE - 8, value);
            g_assert_cmphex(qtest_readq(vm->qts, start + BAR_SIZE - 8), ==,
                            unmapped);
        }

        request_size(vm, 0, offset + model->block_size);
        assert_ack(plug_at(vm, 0, start, 1));
        qtest_writeq(vm->qts, start, value);
        place_bar(bar, model->addr);
        place_bar(bar, start);
        g_assert_false(bar_is_mapped(vm));
        g_assert_cmphex(qtest_readq(vm->qts, start), ==, value);
        assert_ack(unplug_at(vm, 0, start, 1));
        g_assert_false(bar_is_mapped(vm));
    }
    assert_ack(unplug_all(vm, 0));
    g_assert_false(bar_is_mapped(vm));
    vm_check(vm);

    g_free(bar);
    vm_stop(vm);
}

/* ---- What KVM allocates in the kernel ---- */

static uint64_t meminfo(const char *field)
{
    g_autofree char *text = NULL;
    const char *line;
    uint64_t kib;

    g_assert_true(g_file_get_contents("/proc/meminfo", &text, NULL, NULL));
    line = strstr(text, field);
    g_assert_nonnull(line);
    g_assert_cmpint(sscanf(line + strlen(field), ": %" SCNu64 " kB", &kib),
                    ==, 1);
    return kib * KiB;
}

static int64_t growth_since(uint64_t start)
{
    return (int64_t)meminfo("VmallocUsed") - (int64_t)start;
}

typedef struct KernelMemory {
    int64_t nothing_plugged;
    int64_t one_gib_plugged;
    int64_t all_unplugged;
} KernelMemory;

static KernelMemory measure_kernel_memory(const TestCase *test,
                                          const DeviceConfig *config)
{
    TestVM *vm = vm_new(test);
    g_autofree char *backend = backend_args(vm->tmpdir, 0, config);
    g_autofree char *device = device_args(0, config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *args = g_strdup_printf("-object %s", backend);
    g_autofree char *output = NULL;
    KernelMemory result;
    Model *model;
    uint64_t start;

    vm_boot(vm, config->size, args);
    start = meminfo("VmallocUsed");
    output = hmp(vm, device_add);
    g_assert_cmpstr(output, ==, "");
    result.nothing_plugged = growth_since(start);

    vm_skip_changes(vm);
    device_init(vm, 0, config);
    model = vm_model(vm, 0);
    request_size(vm, 0, 1 * GiB);
    assert_ack(plug_at(vm, 0, model->addr, 1 * GiB / model->block_size));
    result.one_gib_plugged = growth_since(start);
    assert_ack(unplug_all(vm, 0));
    result.all_unplugged = growth_since(start);

    vm_stop(vm);
    return result;
}

static void kernel_memory_min(KernelMemory *a, const KernelMemory *b)
{
    a->nothing_plugged = MIN(a->nothing_plugged, b->nothing_plugged);
    a->one_gib_plugged = MIN(a->one_gib_plugged, b->one_gib_plugged);
    a->all_unplugged = MIN(a->all_unplugged, b->all_unplugged);
}

static bool kernel_memory_fits(const KernelMemory *used, int64_t nothing,
                               int64_t one_memslot)
{
    return used->nothing_plugged < nothing &&
           used->one_gib_plugged < one_memslot + nothing &&
           used->all_unplugged < nothing;
}

static void test_kernel_memory(const TestCase *test)
{
    /* Other users of the kernel's memory come and go meanwhile. */
    const unsigned int max_attempts = 10;
    const int64_t noise = 4 * MiB;
    const uint64_t needed = test->config.size / 128;
    DeviceConfig single = test->config;
    KernelMemory used, used_single;
    int64_t one_memslot;
    unsigned int i;

    if (meminfo("MemAvailable") < needed) {
        g_test_skip("not enough memory to see what a single memslot costs");
        return;
    }

    single.multiple_memslots = false;
    used_single = measure_kernel_memory(test, &single);
    g_test_message("one memslot: %" PRId64 " KiB",
                   used_single.nothing_plugged / (int64_t)KiB);

    one_memslot = used_single.nothing_plugged /
                  (int64_t)(test->config.size /
                            test->config.first_memslot_size);
    used = measure_kernel_memory(test, &test->config);
    for (i = 1; i < max_attempts &&
                !kernel_memory_fits(&used, noise, one_memslot); i++) {
        const KernelMemory again = measure_kernel_memory(test, &test->config);

        kernel_memory_min(&used, &again);
    }
    g_test_message("multiple memslots: nothing plugged %" PRId64 " KiB,"
                   " 1 GiB plugged %" PRId64 " KiB, all unplugged %" PRId64
                   " KiB", used.nothing_plugged / (int64_t)KiB,
                   used.one_gib_plugged / (int64_t)KiB,
                   used.all_unplugged / (int64_t)KiB);

    g_assert_cmpint(used.nothing_plugged, <, noise);
    g_assert_cmpint(used.one_gib_plugged, <, one_memslot + noise);
    g_assert_cmpint(used.all_unplugged, <, noise);
}

/* All memslots that memory devices may have, between sixteen of them */
static const NamedConfig many_devices_configs[] = {
    { "inaccessible",
      { RAM_SPARSE, MULTIPLE(32 * GiB, 1 * GiB), INACCESSIBLE,
        .memslot_budget = 16 } },
    { "accessible",
      { RAM_SPARSE, MULTIPLE(32 * GiB, 1 * GiB), ACCESSIBLE,
        .memslot_budget = 16 } },
    { }
};

static const NamedConfig multiple_configs[] = {
    { "inaccessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "accessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { }
};

static const NamedConfig kernel_memory_configs[] = {
    { "inaccessible",
      { RAM_SPARSE, MULTIPLE(1 * TiB, 1 * GiB), INACCESSIBLE } },
    { }
};

static const TestGroup groups[] = {
    { "two-devices", test_two_devices, basic_configs },
    { "one-transaction", test_one_transaction, multiple_configs },
    { "late-discards", test_late_discards, multiple_configs },
    { "memaddr", test_memaddr, basic_configs },
    { "requested-at-start", test_requested_at_start, basic_configs },
    { "many-devices", test_many_devices, many_devices_configs },
    { "bar", test_bar, basic_configs, .needs_pc = true },
    { "kernel-memory", test_kernel_memory, kernel_memory_configs,
      .kvm_only = true, .needs_pc = true },
    { }
};

void add_memslots_tests(void)
{
    add_tests(groups);
}
