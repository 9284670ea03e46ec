/*
 * A model of a virtio-mem device, and of the memslots that it maps
 *
 * What the device has to do is said once more here, as plainly as possible:
 * tests compare what the device does with what the model says.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_MODEL_H
#define TESTS_VIRTIO_MEM_MODEL_H

#include "hw/mem/memslot-plan.h"
#include "standard-headers/linux/virtio_mem.h"

typedef enum Busy {
    BUSY_NEVER,
    /* no memory to back a block */
    BUSY_PLUG,
    /* memory can't be given back */
    BUSY_UNPLUG,
    /* a migration is running */
    BUSY_ALWAYS,
} Busy;

typedef struct Model {
    uint64_t addr;
    uint64_t region_size;
    uint64_t block_size;
    /* what the device adds to the requested size to get the usable region */
    uint64_t usable_extent;
    /* NULL without multiple-memslots */
    MemslotPlan *plan;
    bool unplugged_inaccessible;
    uint64_t requested_size;
    uint64_t usable_size;
    Busy busy;
    /* KVM takes no more memslots */
    bool no_memslots;
    /* listeners take no more than that; 0 for no limit */
    uint64_t max_plugged;
    /* one per block */
    bool *plugged;
} Model;

/* The bytes that are plugged. */
uint64_t model_plugged_size(const Model *model);

/* The usable region that the requested size asks for. */
uint64_t model_wanted_usable_size(const Model *model);

/*
 * The host requests a size that is within the region and made of blocks.
 * Returns false if that is refused.
 */
bool model_request_size(Model *model, uint64_t size);

/* Whether the blocks are within the usable region. */
bool model_valid_range(const Model *model, uint64_t addr, uint64_t nb_blocks);

/* Returns how many blocks of the range, which has to be valid, are plugged. */
uint64_t model_count_plugged(const Model *model, uint64_t addr,
                             uint64_t nb_blocks);

/* Sets the state of blocks, with no question asked. */
void model_set_plugged(Model *model, uint64_t addr, uint64_t nb_blocks,
                       bool value);

/* The requests of a driver: change the model, return VIRTIO_MEM_RESP_*. */
uint16_t model_plug(Model *model, uint64_t addr, uint64_t nb_blocks);
uint16_t model_unplug(Model *model, uint64_t addr, uint64_t nb_blocks);
uint16_t model_unplug_all(Model *model);
uint16_t model_state(const Model *model, uint64_t addr, uint64_t nb_blocks,
                     uint16_t *state);

/*
 * Divide the region with multiple-memslots=on. Where memslots start and end is
 * no question of a model: the unit test of plans knows.
 */
void model_divide(Model *model, unsigned int budget,
                  uint64_t min_memslot_size);

/* Free what belongs to the model. */
void model_cleanup(Model *model);

/* The memslots: where they are, and which ones are mapped. */
uint64_t model_nb_memslots(const Model *model);
uint64_t model_memslot_offset(const Model *model, uint64_t memslot);
uint64_t model_memslot_size(const Model *model, uint64_t memslot);
uint64_t model_memslot_at(const Model *model, uint64_t offset);
bool model_memslot_mapped(const Model *model, uint64_t memslot);
unsigned int model_nb_mapped(const Model *model);

/* The test fails unless the configuration (host byte order) is the model's. */
void model_check_config(const Model *model,
                        const struct virtio_mem_config *config);

#endif
