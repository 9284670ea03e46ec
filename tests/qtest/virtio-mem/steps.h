/*
 * Steps that tests take with virtio-mem devices
 *
 * Each does something, has the model do the same, and compares.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_MEM_STEPS_H
#define TESTS_VIRTIO_MEM_STEPS_H

#include "framework.h"

/* A request can't name more blocks, see struct virtio_mem_req_plug. */
#define MAX_REQUEST_BLOCKS UINT16_MAX

/* Requests of the driver of the i-th device; return the response. */
uint16_t plug_at(TestVM *vm, unsigned int i, uint64_t addr, uint64_t nb_blocks);
uint16_t unplug_at(TestVM *vm, unsigned int i, uint64_t addr,
                   uint64_t nb_blocks);
uint16_t state_at(TestVM *vm, unsigned int i, uint64_t addr, uint64_t nb_blocks,
                  uint16_t *state);
uint16_t unplug_all(TestVM *vm, unsigned int i);

#define assert_ack(expr)   g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_ACK)
#define assert_nack(expr)  g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_NACK)
#define assert_busy(expr)  g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_BUSY)
#define assert_error(expr) g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_ERROR)

/* Plugs or unplugs any number of blocks, with no check in between. */
void change_many(TestVM *vm, unsigned int i, uint64_t offset, uint64_t size,
                 bool plug);

/* The host changes the requested size; a bad one has to be refused. */
void request_size(TestVM *vm, unsigned int i, uint64_t size);
void request_bad_size(TestVM *vm, unsigned int i, uint64_t size);

/* The same, and nothing else. Returns QEMU's response. */
QDict *qom_set_requested_size(TestVM *vm, unsigned int i, uint64_t size);

/* All devices have to be started again, as the guest's driver would. */
void system_reset(TestVM *vm);

/* Any request or change of the requested size, most of which succeed */
void random_step(TestVM *vm, unsigned int i);

uint64_t random_below(uint64_t end);

#endif
