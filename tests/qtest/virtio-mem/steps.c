/*
 * Steps that tests take with virtio-mem devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "checks.h"
#include "steps.h"

uint16_t plug_at(TestVM *vm, unsigned int i, uint64_t addr,
                        uint64_t nb_blocks)
{
    const uint16_t resp = qvirtio_mem_plug(vm_mem(vm, i), addr, nb_blocks);

    g_assert_cmpint(resp, ==, model_plug(vm_model(vm, i), addr, nb_blocks));
    vm_check(vm);
    return resp;
}

uint16_t unplug_at(TestVM *vm, unsigned int i, uint64_t addr,
                          uint64_t nb_blocks)
{
    const uint16_t resp = qvirtio_mem_unplug(vm_mem(vm, i), addr, nb_blocks);

    g_assert_cmpint(resp, ==, model_unplug(vm_model(vm, i), addr, nb_blocks));
    vm_check(vm);
    return resp;
}

uint16_t state_at(TestVM *vm, unsigned int i, uint64_t addr,
                         uint64_t nb_blocks, uint16_t *state)
{
    uint16_t expected_state = UINT16_MAX;
    const uint16_t resp = qvirtio_mem_state(vm_mem(vm, i), addr, nb_blocks,
                                            state);

    g_assert_cmpint(resp, ==, model_state(vm_model(vm, i), addr, nb_blocks,
                                          &expected_state));
    if (resp == VIRTIO_MEM_RESP_ACK) {
        g_assert_cmpint(*state, ==, expected_state);
    }
    vm_check(vm);
    return resp;
}

uint16_t unplug_all(TestVM *vm, unsigned int i)
{
    const uint16_t resp = qvirtio_mem_unplug_all(vm_mem(vm, i));

    g_assert_cmpint(resp, ==, model_unplug_all(vm_model(vm, i)));
    vm_check(vm);
    return resp;
}

QDict *qom_set_requested_size(TestVM *vm, unsigned int i, uint64_t size)
{
    g_assert_cmpuint(i, <, vm->nb_devices);
    return qtest_qmp(vm->qts, "{ 'execute': 'qom-set', 'arguments': {"
                     " 'path': %s, 'property': 'requested-size',"
                     " 'value': %" PRIu64 " } }",
                     vm->devices[i].qom_path, size);
}

void request_size(TestVM *vm, unsigned int i, uint64_t size)
{
    QDict *rsp = qom_set_requested_size(vm, i, size);

    g_assert_cmpint(qdict_haskey(rsp, "return"), ==,
                    model_request_size(vm_model(vm, i), size));
    qobject_unref(rsp);
    vm_check(vm);
}

void request_bad_size(TestVM *vm, unsigned int i, uint64_t size)
{
    QDict *rsp = qom_set_requested_size(vm, i, size);

    g_assert_true(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);
    vm_check(vm);
}

void system_reset(TestVM *vm)
{
    unsigned int i;

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(vm->qts, "RESET");

    for (i = 0; i < vm->nb_devices; i++) {
        model_unplug_all(vm_model(vm, i));
        qvirtio_mem_pci_start(vm->devices[i].pci);
    }
    vm_check(vm);
}

void change_many(TestVM *vm, unsigned int i, uint64_t offset,
                        uint64_t size, bool plug)
{
    Model *model = vm_model(vm, i);
    uint64_t addr = model->addr + offset;
    uint64_t nb_blocks = size / model->block_size;

    while (nb_blocks) {
        const uint16_t now = MIN(nb_blocks, MAX_REQUEST_BLOCKS);

        if (plug) {
            g_assert_cmpint(qvirtio_mem_plug(vm_mem(vm, i), addr, now), ==,
                            VIRTIO_MEM_RESP_ACK);
        } else {
            g_assert_cmpint(qvirtio_mem_unplug(vm_mem(vm, i), addr, now), ==,
                            VIRTIO_MEM_RESP_ACK);
        }
        model_set_plugged(model, addr, now, plug);
        addr += now * model->block_size;
        nb_blocks -= now;
    }
    vm_check(vm);
}

uint64_t random_below(uint64_t end)
{
    return ((uint64_t)g_test_rand_int() << 32 | (uint32_t)g_test_rand_int()) %
           end;
}

/* Pick a block that is in the given state, or any if there is none. */
static uint64_t random_block(const Model *model, bool plugged)
{
    const uint64_t nb_blocks = model->region_size / model->block_size;
    const uint64_t start = random_below(nb_blocks);
    uint64_t i;

    for (i = 0; i < nb_blocks; i++) {
        if (model->plugged[(start + i) % nb_blocks] == plugged) {
            return (start + i) % nb_blocks;
        }
    }
    return start;
}

/* Pick a number of blocks from the given one on that are in its state. */
static uint64_t random_run(const Model *model, uint64_t first)
{
    const uint64_t nb_blocks = model->region_size / model->block_size;
    uint64_t length = 1;

    while (first + length < nb_blocks && length < MAX_REQUEST_BLOCKS &&
           model->plugged[first + length] == model->plugged[first]) {
        length++;
    }
    return 1 + random_below(length);
}

void random_step(TestVM *vm, unsigned int i)
{
    const Model *model = vm_model(vm, i);
    const uint64_t nb_blocks = model->region_size / model->block_size;
    const uint64_t dice = random_below(100);
    uint64_t addr, length;
    uint16_t state;

    if (dice < 5) {
        unplug_all(vm, i);
        return;
    }
    if (dice < 20) {
        request_size(vm, i, random_below(nb_blocks + 1) * model->block_size);
        return;
    }

    if (dice < 85) {
        /* likely to succeed */
        const uint64_t first = random_block(model, dice < 50);

        addr = model->addr + first * model->block_size;
        length = random_run(model, first);
    } else {
        addr = model->addr + random_below(nb_blocks) * model->block_size;
        length = random_below(MIN(MAX_REQUEST_BLOCKS, nb_blocks));
    }

    if (dice < 50) {
        unplug_at(vm, i, addr, length);
    } else if (dice < 90) {
        plug_at(vm, i, addr, length);
    } else {
        state_at(vm, i, addr, length, &state);
    }
}
