/*
 * Bytes as operations on virtio-mem devices: what is done to the machine
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "ops-int.h"

/* See migration/savevm.c. */
#define STREAM_MAGIC "QEVM\0\0\0\3"
#define STREAM_MAGIC_SIZE 8
#define SECTION_FULL 0x04
#define SECTION_FOOTER 0x7e
#define SECTION_END 0x00

/* The fields of the early part, see vmstate_virtio_mem_device_early */
#define EARLY_ADDR 0
#define EARLY_REGION_SIZE 8
#define EARLY_BLOCK_SIZE 16
#define EARLY_NODE 24
#define EARLY_SIZE 28
#define EARLY_BITMAP 36

/* Of the late part, see vmstate_virtio_mem_device, after where it starts */
#define LATE_USABLE_SIZE 0
#define LATE_REQUESTED_SIZE 8

enum {
    EDIT_USABLE_SIZE,
    EDIT_REQUESTED_SIZE,
    EDIT_SIZE,
    /* the size is made to fit */
    EDIT_BITMAP,
    EDIT_BITMAP_ONLY,
    EDIT_SANITY_CHECK,
    /* anything else, byte by byte */
    EDIT_EARLY,
    EDIT_LATE,
    NR_EDITS
};

void ops_run_machine(VirtioMEMOps *ops, bool running)
{
    if (running == ops->running) {
        return;
    }
    if (running) {
        /* The backends get all memory anew, and have to take it. */
        ops_refuse(ops, false);
    }
    ops->host->run(ops->host->qts, running);
    ops->running = running;
}

void ops_migrate(VirtioMEMOps *ops, bool start)
{
    if (start != ops->migrating) {
        ops->host->migrate(ops->host->qts, start);
        ops->migrating = start;
    }
}

/* ---- States ---- */

/* Without queues: what is in them would not be there when it is loaded. */
void ops_save(VirtioMEMOps *ops)
{
    unsigned int i;

    ops_migrate(ops, false);
    ops_run_machine(ops, false);
    for (i = 0; i < NR_DEVICES; i++) {
        qvirtio_reset(ops->devices[i].pci->mem.vdev);
    }
    if (ops->saved) {
        g_byte_array_unref(ops->saved);
    }
    ops->saved = ops->host->save(ops->host->qts);
    for (i = 0; i < NR_DEVICES; i++) {
        qvirtio_mem_start(&ops->devices[i].pci->mem);
    }
}

/* A part of what was saved, and where in it the data is */
typedef struct Section {
    uint8_t *start;
    uint8_t *data;
    uint8_t *footer;
    uint8_t *end;
} Section;

static uint8_t *find_bytes(GByteArray *bytes, size_t from, const void *what,
                           size_t size)
{
    uint8_t *found = memmem(bytes->data + from, bytes->len - from, what, size);

    g_assert_nonnull(found);
    return found;
}

static Section find_section(VirtioMEMOps *ops, const Device *dev,
                            const char *name)
{
    const unsigned int slot = FIRST_DEVICE_SLOT + (dev - ops->devices);
    g_autofree char *id = g_strdup_printf("0000:00:%02x.0/%s", slot, name);
    g_autofree char *prefixed = g_strdup_printf("%c%s", (int)strlen(id), id);
    uint8_t footer[5] = { SECTION_FOOTER };
    Section section;
    uint8_t *found;

    found = find_bytes(ops->saved, 0, prefixed, strlen(prefixed));
    /* its type and number; after the name, the instance and the version */
    section.start = found - 5;
    g_assert_cmpint(section.start[0], ==, SECTION_FULL);
    section.data = found + strlen(prefixed) + 8;
    memcpy(footer + 1, section.start + 1, 4);
    section.footer = find_bytes(ops->saved, section.data - ops->saved->data,
                                footer, sizeof(footer));
    section.end = section.footer + sizeof(footer);
    return section;
}

void ops_find_sizes(VirtioMEMOps *ops)
{
    unsigned int i;

    ops_save(ops);
    for (i = 0; i < NR_DEVICES; i++) {
        Device *dev = &ops->devices[i];
        const Section late = find_section(ops, dev, "virtio-mem");
        const uint64_t sizes[] = {
            cpu_to_be64(dev->model.usable_size),
            cpu_to_be64(dev->model.requested_size),
        };

        dev->sizes_offset = find_bytes(ops->saved,
                                       late.data - ops->saved->data, sizes,
                                       sizeof(sizes)) - late.data;
        g_assert_cmpuint(dev->sizes_offset + sizeof(sizes), <=,
                         late.footer - late.data);
    }
    g_clear_pointer(&ops->saved, g_byte_array_unref);
}

static bool is_plugged(const Section *early, uint64_t block)
{
    return ldq_be_p(early->data + EARLY_BITMAP + 8 * (block / 64)) >>
           block % 64 & 1;
}

static uint64_t count_plugged(const Device *dev, const Section *early)
{
    uint64_t i, count = 0;

    for (i = 0; i < ops_nb_blocks(dev); i++) {
        count += is_plugged(early, i);
    }
    return count;
}

/* Returns false if the state is not one that can be told from its fields. */
static bool apply_edit(const Device *dev, const Section *early,
                       const Section *late, const Edit *edit)
{
    const uint64_t nb_words = DIV_ROUND_UP(ops_nb_blocks(dev), 64);
    uint8_t *sizes = late->data + dev->sizes_offset;
    uint8_t *word = early->data + EARLY_BITMAP + 8 * (edit->pos % nb_words);
    const uint16_t raw_pos = edit->pos | (edit->value & 0xff00);

    switch (edit->what % NR_EDITS) {
    case EDIT_USABLE_SIZE:
        stq_be_p(sizes + LATE_USABLE_SIZE, edit->value);
        return true;
    case EDIT_REQUESTED_SIZE:
        stq_be_p(sizes + LATE_REQUESTED_SIZE, edit->value);
        return true;
    case EDIT_SIZE:
        stq_be_p(early->data + EARLY_SIZE, edit->value);
        return true;
    case EDIT_BITMAP:
        stq_be_p(word, edit->value);
        stq_be_p(early->data + EARLY_SIZE,
                 count_plugged(dev, early) * dev->model.block_size);
        return true;
    case EDIT_BITMAP_ONLY:
        stq_be_p(word, edit->value);
        return true;
    case EDIT_SANITY_CHECK:
        stq_be_p(early->data + 8 * (edit->pos % 4), edit->value);
        return false;
    case EDIT_EARLY:
        early->data[raw_pos % (early->footer - early->data)] = edit->value;
        return false;
    default:
        late->data[raw_pos % (late->footer - late->data)] = edit->value;
        return false;
    }
}

/* The machine is as after a reset, whatever was loaded. */
static void forget_loaded(VirtioMEMOps *ops, Device *dev)
{
    const VirtioMEMHost *host = ops->host;
    Model *model = &dev->model;

    model->requested_size = host->get(host->qts, dev->qom_path,
                                      "requested-size");
    g_assert_cmphex(model->requested_size, <=, model->region_size);
    g_assert_cmphex(model->requested_size % model->block_size, ==, 0);
    /* Whether it was discarded depends on how far loading got. */
    memset(dev->fading, 1, ops_nb_blocks(dev) * sizeof(*dev->fading));
    ops_reset_machine(ops);
}

/* All that is told of the state that was loaded has to be what is in there. */
static void expect_loaded(Device *dev, const Section *early,
                          const Section *late)
{
    const uint8_t *sizes = late->data + dev->sizes_offset;
    Model *model = &dev->model;
    uint64_t i;

    model->usable_size = ldq_be_p(sizes + LATE_USABLE_SIZE);
    model->requested_size = ldq_be_p(sizes + LATE_REQUESTED_SIZE);
    for (i = 0; i < ops_nb_blocks(dev); i++) {
        model->plugged[i] = is_plugged(early, i);
        if (!model->plugged[i]) {
            ops_discarded(dev, i, 1);
        }
    }
    g_assert_cmphex(model_plugged_size(model), ==,
                    ldq_be_p(early->data + EARLY_SIZE));
    g_assert_cmphex(model->usable_size, <=, model->region_size);
    g_assert_cmphex(model->usable_size % model->block_size, ==, 0);
    g_assert_cmphex(model->requested_size, <=, model->region_size);
    g_assert_cmphex(model->requested_size % model->block_size, ==, 0);
}

void ops_load(VirtioMEMOps *ops, Device *dev, const Edit *edits,
              unsigned int nr_edits)
{
    const VirtioMEMHost *host = ops->host;
    g_autoptr(GByteArray) state = g_byte_array_new();
    g_autofree uint8_t *original = NULL;
    const uint8_t end = SECTION_END;
    Section early, late;
    bool success, is_known = true;
    unsigned int i;

    ops_migrate(ops, false);
    ops_run_machine(ops, false);
    if (!ops->saved) {
        ops_save(ops);
    }
    early = find_section(ops, dev, "virtio-mem-device-early");
    late = find_section(ops, dev, "virtio-mem");
    original = g_memdup2(ops->saved->data, ops->saved->len);
    for (i = 0; i < nr_edits; i++) {
        is_known = apply_edit(dev, &early, &late, &edits[i]) && is_known;
    }

    g_byte_array_append(state, (const uint8_t *)STREAM_MAGIC,
                        STREAM_MAGIC_SIZE);
    g_byte_array_append(state, early.start, early.end - early.start);
    g_byte_array_append(state, late.start, late.end - late.start);
    g_byte_array_append(state, &end, 1);

    ops_reset_machine(ops);
    success = host->load(host->qts, state);
    if (success && is_known) {
        expect_loaded(dev, &early, &late);
        g_assert_cmphex(model_plugged_size(&dev->model), <=,
                        ops->max_populated);
    } else {
        /* There has to be a reason. */
        g_assert_true(success || nr_edits ||
                      count_plugged(dev, &early) * dev->model.block_size >
                      ops->max_populated);
        forget_loaded(ops, dev);
    }
    ops_start_drivers(ops);
    memcpy(ops->saved->data, original, ops->saved->len);
}
