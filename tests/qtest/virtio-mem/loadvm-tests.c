/*
 * QTest testcases for virtio-mem: snapshots
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/host.h"
#include "checks.h"
#include "failures.h"
#include "host-memory.h"
#include "listeners.h"
#include "steps.h"
#include "tests.h"

/* The device is to be as it was when the model was like that. */
static void device_set_model(TestVM *vm, const Model *model)
{
    Device *dev = &vm->devices[0];
    uint64_t i;

    qvirtio_mem_pci_start(dev->pci);
    dev->model.requested_size = model->requested_size;
    dev->model.usable_size = model->usable_size;
    memcpy(dev->model.plugged, model->plugged,
           model->region_size / model->block_size * sizeof(*model->plugged));
    for (i = 0; i < model_nb_memslots(model); i++) {
        g_array_index(dev->was_mapped, bool, i) = model_memslot_mapped(model,
                                                                       i);
    }
    vm_skip_changes(vm);
    vm_check(vm);
    check_listeners(vm);
}

/*
 * After a snapshot that could not be loaded, nothing is plugged, whatever was
 * done until then, and nothing is allocated, where @mem is given. The VM can't
 * go on like that, but it can be reset.
 */
static void recover_from_loadvm(TestVM *vm, const Model *saved,
                                const HostMemory *mem)
{
    Model *model = vm_model(vm, 0);
    uint64_t requested_size;

    if (mem) {
        check_allocated(mem, 0, 0);
    }
    g_assert_cmphex(qom_get_size(vm, vm->devices[0].qom_path, "size"), ==, 0);
    g_assert_cmphex(qom_get_size(vm, TESTDEV_PATH, "populated"), ==, 0);
    model_set_plugged(model, model->addr,
                      model->region_size / model->block_size, false);
    model->usable_size = 0;
    check_regions(vm);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(vm->qts, "RESET");
    /* What is requested comes late, and may not have come. */
    requested_size = qom_get_size(vm, vm->devices[0].qom_path,
                                  "requested-size");
    g_assert_true(requested_size == saved->requested_size ||
                  requested_size == model->requested_size);
    model->requested_size = requested_size;
    model->usable_size = model_wanted_usable_size(model);
    device_set_model(vm, model);

    request_size(vm, 0, saved->requested_size);
    assert_ack(plug_at(vm, 0, model->addr + 2 * GiB, 1));
    check_listeners(vm);
}

/*
 * After such a failure, the usable region has to grow, which can fail as well:
 * then the guest finds nothing usable, and what was requested still is.
 */
static void check_reset_refused(TestVM *vm)
{
    const char *warning = "warning: virtio-mem device 'vm0': the usable region"
                          " cannot grow now: KVM cannot map more memory: Cannot"
                          " allocate memory\n";
    Model *model = vm_model(vm, 0);
    struct virtio_mem_config config;
    g_autofree char *text = NULL;
    int i;

    g_assert_cmpint(truncate(vm->stderr_path, 0), ==, 0);
    for (i = 0; i < 3; i++) {
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'system_reset' }");
        qtest_qmp_eventwait(vm->qts, "RESET");
        qvirtio_mem_pci_start(vm->devices[0].pci);
        qvirtio_mem_read_config(vm_mem(vm, 0), &config);
        g_assert_cmphex(config.usable_region_size, ==, 0);
        g_assert_cmphex(config.requested_size, !=, 0);
        g_assert_cmphex(config.plugged_size, ==, 0);
        model_set_plugged(model, model->addr,
                          model->region_size / model->block_size, false);
        model->usable_size = 0;
        check_regions(vm);
        g_assert_cmpint(qvirtio_mem_unplug_all(vm_mem(vm, 0)), ==,
                        VIRTIO_MEM_RESP_ACK);
    }

    /* It is said once. */
    g_assert_true(g_file_get_contents(vm->stderr_path, &text, NULL, NULL));
    g_assert_true(g_str_has_suffix(strstr(text, warning) ?: "",
                                   "needs memory of its own for each"
                                   " memslot.\n"));
    g_assert_null(strstr(strstr(text, warning) + 1, warning));
}

/* All ways in which loading a snapshot can fail, once the stream is there */
static void check_loadvm_failures(TestVM *vm, const TestCase *test,
                                  const Model *saved, const HostMemory *mem)
{
    const char *call = discard_calls(&test->config)[0];
    g_autofree char *still_plugged = NULL;
    Model *model = vm_model(vm, 0);

    /* A listener takes the first range, but not the second. */
    limit_listeners(vm, model_plugged_size(saved) - 1);
    assert_hmp(vm, "loadvm a", "virtio-mem device 'vm0': plugged memory was"
                               " refused by one that has to map it, such as"
                               " VFIO: No space left on device");
    recover_from_loadvm(vm, saved, mem);
    limit_listeners(vm, UINT64_MAX);
    assert_hmp(vm, "loadvm a", "");
    device_set_model(vm, saved);

    /* The first call is for all of the memory, by the reset. */
    fail_calls(vm, "%s %d 1", call, EIO);
    assert_hmp(vm, "loadvm a", "ram_block_discard_range: Failed");
    stop_failing(vm);
    recover_from_loadvm(vm, saved, NULL);
    assert_hmp(vm, "loadvm a", "");
    device_set_model(vm, saved);

    /* What can't be unplugged must not be taken for what was saved. */
    assert_ack(unplug_at(vm, 0, model->addr + 1 * GiB, 1));
    assert_ack(plug_at(vm, 0, model->addr + 2 * GiB, 1));
    fail_calls(vm, "%s %d", call, EIO);
    still_plugged = g_strdup_printf("virtio-mem device 'vm0': a state cannot"
                                    " be loaded while 0x%" PRIx64 " bytes are"
                                    " plugged, which the reset before could not"
                                    " unplug", model_plugged_size(model));
    assert_hmp(vm, "loadvm a", still_plugged);
    stop_failing(vm);
    device_set_model(vm, model);
    system_reset(vm);
    assert_hmp(vm, "loadvm a", "");
    device_set_model(vm, saved);

    if (test->kvm && model->plan) {
        /* Of two or more memslots, the second is refused. */
        request_size(vm, 0, 0);
        assert_ack(unplug_all(vm, 0));
        g_assert_cmpuint(model_nb_mapped(model), ==, 0);
        refuse_memslots(vm, true);
        assert_hmp(vm, "loadvm a", "virtio-mem device 'vm0': memory cannot be"
                                   " mapped: KVM cannot map more memory: Cannot"
                                   " allocate memory\nThe host's kernel needs"
                                   " memory of its own for each memslot.");
        refuse_memslots(vm, false);
        recover_from_loadvm(vm, saved, mem);
        assert_hmp(vm, "loadvm a", "");
        device_set_model(vm, saved);
    }

    if (test->kvm && model->plan && !model->unplugged_inaccessible) {
        /* Then the reset, which needs memslots for what may be read */
        request_size(vm, 0, 1 * GiB);
        assert_ack(unplug_all(vm, 0));
        refuse_memslots(vm, true);
        assert_hmp(vm, "loadvm a", "virtio-mem device 'vm0': memory cannot be"
                                   " mapped: KVM cannot map more memory");
        check_reset_refused(vm);
        refuse_memslots(vm, false);
        recover_from_loadvm(vm, saved, mem);
        assert_hmp(vm, "loadvm a", "");
        device_set_model(vm, saved);
    }
}

static void remove_dir_on_abort(void *path)
{
    qhost_remove_dir(path);
}

static void test_loadvm(const TestCase *test)
{
    const uint64_t pattern = 0x0123456789abcdefull;
    g_autofree char *dir = NULL;
    g_autofree char *disk = NULL;
    g_autofree char *extra_args = NULL;
    g_autofree bool *plugged = NULL;
    Model *model, saved;
    uint64_t addr, block;
    HostMemory mem;
    TestVM *vm;

    if (!can_fail_calls() || !can_see_memory()) {
        return;
    }
    if (!have_qemu_img()) {
        g_test_skip("QTEST_QEMU_IMG is not set");
        return;
    }

    dir = create_tmpdir();
    qtest_add_abrt_handler(remove_dir_on_abort, dir);
    disk = g_build_filename(dir, "disk.qcow2", NULL);
    mkqcow2(disk, 16);
    extra_args = g_strdup_printf(TESTDEV " -drive if=none,id=disk,format=qcow2,"
                                 "file=%s", disk);
    g_setenv("KVM_PRELOAD_FAIL", "2", true);
    /* A reset moves others, which must not be refused. */
    g_setenv("KVM_PRELOAD_FAIL_ADDR", "0x100000000", true);
    vm = vm_start_with(test, &test->config, 1, extra_args);
    g_unsetenv("KVM_PRELOAD_FAIL_ADDR");
    g_unsetenv("KVM_PRELOAD_FAIL");
    model = vm_model(vm, 0);
    addr = model->addr;
    block = model->block_size;

    request_size(vm, 0, 3 * GiB);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    assert_ack(plug_at(vm, 0, addr + 3 * GiB, 1));
    qtest_writeq(vm->qts, addr + 1 * GiB, pattern);
    qtest_writeq(vm->qts, addr + 3 * GiB, ~pattern);
    saved = *model;
    plugged = g_memdup2(model->plugged, model->region_size / block);
    saved.plugged = plugged;
    assert_hmp(vm, "savevm a", "");
    /* Dirty logging was turned on and off meanwhile. */
    vm_skip_changes(vm);
    vm_check(vm);

    /* More in one place, less in another */
    request_size(vm, 0, 4 * GiB);
    qtest_writeq(vm->qts, addr + 1 * GiB, pattern + 1);
    assert_ack(unplug_at(vm, 0, addr + 3 * GiB, 1));
    assert_ack(plug_at(vm, 0, addr + 2 * GiB, 1));
    assert_hmp(vm, "loadvm a", "");
    device_set_model(vm, &saved);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 1 * GiB), ==, pattern);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 3 * GiB), ==, ~pattern);

    mem = find_host_memory(vm, 0, addr + 1 * GiB);
    check_loadvm_failures(vm, test, &saved, &mem);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 1 * GiB), ==, pattern);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 3 * GiB), ==, ~pattern);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB + block, 4));
    assert_ack(unplug_all(vm, 0));
    check_listeners(vm);

    vm_stop(vm);
    qtest_remove_abrt_handler(dir);
    qhost_remove_dir(dir);
}

static const TestGroup groups[] = {
    { "loadvm", test_loadvm, basic_configs, .late_too = true },
    { }
};

void add_loadvm_tests(void)
{
    add_tests(groups);
}
