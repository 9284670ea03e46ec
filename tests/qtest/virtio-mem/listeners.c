/*
 * Listeners that mirror what is plugged, as VFIO does
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "checks.h"
#include "listeners.h"
#include "steps.h"

void check_listeners(TestVM *vm)
{
    const bool listening = qom_get_bool(vm, TESTDEV_PATH, "listening");
    uint64_t plugged = 0, sections = 0, granularity = 0;
    unsigned int i;

    for (i = 0; listening && i < vm->nb_devices; i++) {
        const Model *model = vm_model(vm, i);

        plugged += model_plugged_size(model);
        sections += model_nb_mapped(model);
        if (model_nb_mapped(model)) {
            granularity = MIN_NON_ZERO(granularity, model->block_size);
        }
    }
    g_assert_cmphex(qom_get_size(vm, TESTDEV_PATH, "populated"), ==, plugged);
    /* One for each memslot, however few blocks are plugged there */
    g_assert_cmpuint(qom_get_size(vm, TESTDEV_PATH, "sections"), ==, sections);
    g_assert_cmphex(qom_get_size(vm, TESTDEV_PATH, "granularity"), ==,
                    granularity);
    /* What they get when they ask is what they were told. */
    g_assert_true(qom_get_bool(vm, TESTDEV_PATH, "check"));
    g_assert_cmpuint(qom_get_size(vm, TESTDEV_PATH, "errors"), ==, 0);
}

void set_listening(TestVM *vm, bool listening)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': %s, 'property': 'listening',"
                             " 'value': %i } }", TESTDEV_PATH, listening);
    check_listeners(vm);
}

void set_testdev(TestVM *vm, const char *property, uint64_t value)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': %s, 'property': %s,"
                             " 'value': %" PRIu64 " } }", TESTDEV_PATH,
                             property, value);
}

void limit_listeners(TestVM *vm, uint64_t size)
{
    set_testdev(vm, "max-populated", size);
}

void plug_refused(TestVM *vm, uint64_t addr, uint64_t nb_blocks)
{
    Model *model = vm_model(vm, 0);

    model->busy = BUSY_PLUG;
    g_assert_cmpint(qvirtio_mem_plug(vm_mem(vm, 0), addr, nb_blocks), ==,
                    model_plug(model, addr, nb_blocks));
    model->busy = BUSY_NEVER;
    /* A memslot might have come for the listeners to look at, and gone. */
    vm_skip_changes(vm);
    vm_check(vm);
    check_listeners(vm);
}
