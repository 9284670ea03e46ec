/*
 * A model of a virtio-mem device, and of the memslots that it maps
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "model.h"

uint64_t model_plugged_size(const Model *model)
{
    uint64_t i, size = 0;

    for (i = 0; i < model->region_size / model->block_size; i++) {
        size += model->plugged[i] ? model->block_size : 0;
    }
    return size;
}

uint64_t model_wanted_usable_size(const Model *model)
{
    uint64_t size = model->requested_size + model->usable_extent;

    if (!model->requested_size) {
        return 0;
    }
    return ROUND_UP(MIN(size, model->region_size), model->block_size);
}

bool model_valid_range(const Model *model, uint64_t addr,
                       uint64_t nb_blocks)
{
    return addr % model->block_size == 0 && nb_blocks &&
           addr >= model->addr &&
           addr - model->addr < model->usable_size &&
           nb_blocks <= (model->usable_size - (addr - model->addr)) /
                        model->block_size;
}

uint64_t model_count_plugged(const Model *model, uint64_t addr,
                             uint64_t nb_blocks)
{
    const bool *plugged = model->plugged +
                          (addr - model->addr) / model->block_size;
    uint64_t i, count = 0;

    for (i = 0; i < nb_blocks; i++) {
        count += plugged[i];
    }
    return count;
}

void model_set_plugged(Model *model, uint64_t addr, uint64_t nb_blocks,
                       bool value)
{
    bool *plugged = model->plugged + (addr - model->addr) / model->block_size;

    memset(plugged, value, nb_blocks * sizeof(*plugged));
}

void model_divide(Model *model, unsigned int budget,
                  uint64_t min_memslot_size)
{
    model->plan = memslot_plan_new(&(MemslotPlanInput) {
        .region_size = model->region_size,
        .alignment = model->block_size,
        .min_memslot_size = min_memslot_size,
        .budget = budget,
        .spread = MEMSLOT_PLAN_DEFAULT_SPREAD,
    }, &error_abort);
}

void model_cleanup(Model *model)
{
    g_clear_pointer(&model->plan, memslot_plan_free);
    g_clear_pointer(&model->plugged, g_free);
}

uint64_t model_nb_memslots(const Model *model)
{
    return model->plan ? memslot_plan_count(model->plan) : 1;
}

uint64_t model_memslot_offset(const Model *model, uint64_t memslot)
{
    return model->plan ? memslot_plan_offset(model->plan, memslot) : 0;
}

uint64_t model_memslot_size(const Model *model, uint64_t memslot)
{
    return model->plan ? memslot_plan_size(model->plan, memslot)
                       : model->region_size;
}

uint64_t model_memslot_at(const Model *model, uint64_t offset)
{
    uint64_t memslot = 0;

    while (model_memslot_offset(model, memslot) +
           model_memslot_size(model, memslot) <= offset) {
        memslot++;
    }
    return memslot;
}

bool model_memslot_mapped(const Model *model, uint64_t memslot)
{
    const uint64_t offset = model_memslot_offset(model, memslot);

    if (!model->plan) {
        return true;
    }
    if (!model->unplugged_inaccessible && offset < model->usable_size) {
        return true;
    }
    /* Within the usable region, unless a state is loaded that is made up */
    return model_count_plugged(model, model->addr + offset,
                               model_memslot_size(model, memslot) /
                               model->block_size);
}

/* Returns whether a range needs a memslot that is not mapped. */
static bool model_lacks_memslot(const Model *model, uint64_t addr,
                                uint64_t nb_blocks)
{
    const uint64_t start = addr - model->addr;
    const uint64_t end = start + nb_blocks * model->block_size;
    uint64_t i;

    for (i = 0; i < model_nb_memslots(model); i++) {
        const uint64_t offset = model_memslot_offset(model, i);

        if (offset < end && start < offset + model_memslot_size(model, i) &&
            !model_memslot_mapped(model, i)) {
            return true;
        }
    }
    return false;
}

bool model_request_size(Model *model, uint64_t size)
{
    Model wanted = *model;

    wanted.requested_size = size;
    wanted.usable_size = MAX(model->usable_size,
                             model_wanted_usable_size(&wanted));
    if (model->no_memslots && !model->unplugged_inaccessible &&
        wanted.usable_size &&
        model_lacks_memslot(model, model->addr,
                            wanted.usable_size / model->block_size)) {
        return false;
    }
    *model = wanted;
    return true;
}

uint16_t model_plug(Model *model, uint64_t addr, uint64_t nb_blocks)
{
    if (!model_valid_range(model, addr, nb_blocks)) {
        return VIRTIO_MEM_RESP_ERROR;
    }
    if (model_plugged_size(model) + nb_blocks * model->block_size >
        model->requested_size) {
        return VIRTIO_MEM_RESP_NACK;
    }
    if (model_count_plugged(model, addr, nb_blocks)) {
        return VIRTIO_MEM_RESP_ERROR;
    }
    if (model->busy == BUSY_PLUG || model->busy == BUSY_ALWAYS ||
        (model->max_plugged &&
         model_plugged_size(model) + nb_blocks * model->block_size >
         model->max_plugged) ||
        (model->no_memslots && model_lacks_memslot(model, addr, nb_blocks))) {
        return VIRTIO_MEM_RESP_BUSY;
    }
    model_set_plugged(model, addr, nb_blocks, true);
    return VIRTIO_MEM_RESP_ACK;
}

uint16_t model_unplug(Model *model, uint64_t addr, uint64_t nb_blocks)
{
    if (!model_valid_range(model, addr, nb_blocks) ||
        model_count_plugged(model, addr, nb_blocks) != nb_blocks) {
        return VIRTIO_MEM_RESP_ERROR;
    }
    if (model->busy == BUSY_UNPLUG || model->busy == BUSY_ALWAYS) {
        return VIRTIO_MEM_RESP_BUSY;
    }
    model_set_plugged(model, addr, nb_blocks, false);
    return VIRTIO_MEM_RESP_ACK;
}

uint16_t model_unplug_all(Model *model)
{
    if (model_plugged_size(model) &&
        (model->busy == BUSY_UNPLUG || model->busy == BUSY_ALWAYS)) {
        return VIRTIO_MEM_RESP_BUSY;
    }
    model_set_plugged(model, model->addr,
                      model->region_size / model->block_size, false);
    model->usable_size = model_wanted_usable_size(model);
    return VIRTIO_MEM_RESP_ACK;
}

uint16_t model_state(const Model *model, uint64_t addr,
                     uint64_t nb_blocks, uint16_t *state)
{
    uint64_t count;

    if (!model_valid_range(model, addr, nb_blocks)) {
        return VIRTIO_MEM_RESP_ERROR;
    }
    count = model_count_plugged(model, addr, nb_blocks);
    *state = count == nb_blocks ? VIRTIO_MEM_STATE_PLUGGED :
             count == 0 ? VIRTIO_MEM_STATE_UNPLUGGED : VIRTIO_MEM_STATE_MIXED;
    return VIRTIO_MEM_RESP_ACK;
}

unsigned int model_nb_mapped(const Model *model)
{
    unsigned int i, count = 0;

    for (i = 0; i < model_nb_memslots(model); i++) {
        count += model_memslot_mapped(model, i);
    }
    return count;
}

void model_check_config(const Model *model,
                        const struct virtio_mem_config *config)
{
    g_assert_cmphex(config->block_size, ==, model->block_size);
    g_assert_cmpint(config->node_id, ==, 0);
    g_assert_cmphex(config->addr, ==, model->addr);
    g_assert_cmphex(config->region_size, ==, model->region_size);
    g_assert_cmphex(config->usable_region_size, ==, model->usable_size);
    g_assert_cmphex(config->plugged_size, ==, model_plugged_size(model));
    g_assert_cmphex(config->requested_size, ==, model->requested_size);
}
