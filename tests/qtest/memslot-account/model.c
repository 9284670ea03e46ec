/*
 * A plain model of what has memslots in a machine
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "model.h"

/* What a virtio-mem device adds to the requested size, see the specification */
#define USABLE_EXTENT (256 * MiB)

/* ---- Kinds of memory devices ---- */

const MemConfig dimm = { DIMM, .size = DIMM_SIZE };
const MemConfig shared_dimm = { DIMM, .shared = true, DIMM_SIZE };

MemConfig multiple(bool shared, uint64_t size)
{
    return (MemConfig) {
        VMEM, shared, size, .multiple = true, .inaccessible = true,
    };
}

MemConfig single(bool shared, uint64_t size)
{
    return (MemConfig) { VMEM, shared, size, .inaccessible = true };
}

/* ---- One memory device ---- */

uint64_t nr_blocks(const Mem *mem)
{
    return mem->config.size / mem->block_size;
}

uint64_t plugged_size(const Mem *mem)
{
    uint64_t i, size = 0;

    for (i = 0; i < nr_blocks(mem); i++) {
        size += mem->plugged[i] ? mem->block_size : 0;
    }
    return size;
}

uint64_t usable_size_for(const Mem *mem, uint64_t requested_size)
{
    if (!requested_size) {
        return 0;
    }
    return ROUND_UP(MIN(requested_size + USABLE_EXTENT, mem->config.size),
                    mem->block_size);
}

uint64_t count_plugged(const Mem *mem, uint64_t first, uint64_t count)
{
    uint64_t i, plugged = 0;

    for (i = first; i < first + count; i++) {
        plugged += mem->plugged[i];
    }
    return plugged;
}

void set_plugged(Mem *mem, uint64_t first, uint64_t count, bool plugged)
{
    memset(mem->plugged + first, plugged, count * sizeof(*mem->plugged));
}

static bool any_plugged(const Mem *mem, uint64_t offset, uint64_t size)
{
    const uint64_t end = MIN(offset + size, mem->config.size);

    for (; offset < end; offset += mem->block_size) {
        if (mem->plugged[offset / mem->block_size]) {
            return true;
        }
    }
    return false;
}

static bool memslot_mapped(const Mem *mem, unsigned int memslot)
{
    uint64_t offset;

    if (!mem->config.multiple) {
        return true;
    }
    offset = memslot_plan_offset(mem->plan, memslot);
    if (!mem->config.inaccessible) {
        return offset < mem->usable_size;
    }
    return any_plugged(mem, offset, memslot_plan_size(mem->plan, memslot));
}

unsigned int mem_used(const Mem *mem)
{
    unsigned int i, used = 0;

    if (mem->config.kind != VMEM) {
        return 1;
    }
    for (i = 0; i < mem->required; i++) {
        used += memslot_mapped(mem, i);
    }
    return used;
}

/* ---- What is counted ---- */

unsigned int saturating_sub(unsigned int a, unsigned int b)
{
    return a > b ? a - b : 0;
}

unsigned int vm_required(const TestVM *vm, bool shared_only)
{
    unsigned int required = 0;
    const Mem *mem;

    for_each_mem(mem, vm) {
        required += mem->config.shared || !shared_only ? mem->required : 0;
    }
    return required;
}

/* Memslots that are mapped, and those that are promised and not mapped yet */
typedef struct Tally {
    unsigned int used;
    unsigned int reserved;
} Tally;

/* What a memory device comes to, for one that is shown memslots or not */
static Tally mem_tally(const Mem *mem, bool whole_devices)
{
    const unsigned int used = mem_used(mem);

    if (whole_devices) {
        /* The whole device, however much of it is plugged: one memory region */
        return (Tally) { .used = 1 };
    }
    return (Tally) { .used = used, .reserved = mem->required - used };
}

static Tally vm_tally(const TestVM *vm, bool shared_only, bool whole_devices)
{
    Tally sum = { .used = vm->inner_count };
    const Mem *mem;

    for_each_mem(mem, vm) {
        if (mem->config.shared || !shared_only) {
            const Tally tally = mem_tally(mem, whole_devices);

            sum.used += tally.used;
            sum.reserved += tally.reserved;
        }
    }
    return sum;
}

unsigned int vm_used(const TestVM *vm, bool shared_only)
{
    return vm_tally(vm, shared_only, false).used;
}

/* Others being there changes nothing. */
unsigned int vm_reserved(const TestVM *vm, bool shared_only)
{
    return vm_tally(vm, shared_only, false).reserved;
}

Holder vm_holder(const TestVM *vm, const Backend *backend)
{
    Holder holder = {
        .backend = backend,
        .limit = backend ? backend->limit : vm->kvm_limit,
        .shared_only = backend,
        .whole_devices = backend && backend->whole_devices,
    };
    const Tally tally = vm_tally(vm, holder.shared_only, holder.whole_devices);

    holder.used = tally.used + vm->testdev_count[true];
    if (backend) {
        holder.used += vm->base_shared;
    } else {
        holder.used += vm->base_kvm + vm->testdev_count[false];
    }
    holder.reserved = tally.reserved;
    return holder;
}

GArray *vm_holders(const TestVM *vm, bool shared)
{
    GArray *holders = g_array_new(false, false, sizeof(Holder));
    unsigned int i;

    if (vm->kvm) {
        const Holder kvm = vm_holder(vm, NULL);

        g_array_append_val(holders, kvm);
    }
    for (i = vm->backends->len; shared && i > 0; i--) {
        const Holder holder =
            vm_holder(vm, g_ptr_array_index(vm->backends, i - 1));

        g_array_append_val(holders, holder);
    }
    return holders;
}

/* ---- What comes of a step ---- */

void model_attach(const TestVM *vm, Backend *backend)
{
    Holder holder;

    backend->whole_devices = false;
    holder = vm_holder(vm, backend);
    backend->whole_devices = holder.limit < HISTORICAL_MAX ||
                             holder.used + holder.reserved > holder.limit;
}

static unsigned int model_budget(const TestVM *vm, const MemConfig *config)
{
    g_autoptr(GArray) holders = vm_holders(vm, config->shared);
    unsigned int available = saturating_sub(SOFT_LIMIT, vm_required(vm, false));
    uint64_t unassigned = vm->device_memory_size;
    const Mem *mem;
    unsigned int i;

    for (i = 0; i < holders->len; i++) {
        const Holder *holder = &g_array_index(holders, Holder, i);

        if (holder->whole_devices) {
            continue;
        }
        if (holder->limit < HISTORICAL_MAX) {
            return 1;
        }
        available = MIN(available, saturating_sub(holder->limit, holder->used +
                                                  holder->reserved));
    }
    for_each_mem(mem, vm) {
        unassigned -= mem->config.size;
    }
    /* No overflow: sizes are multiples of 1 MiB. */
    available = config->size / MiB * available / (unassigned / MiB);
    return MAX(available, 1);
}

void model_divide(const TestVM *vm, Mem *mem)
{
    mem->required = 1;
    if (mem->config.multiple) {
        mem->plan = memslot_plan_new(&(MemslotPlanInput) {
            .region_size = mem->config.size,
            .alignment = mem->block_size,
            .min_memslot_size = MIN_MEMSLOT_SIZE,
            .budget = model_budget(vm, &mem->config),
            .spread = MEMSLOT_PLAN_DEFAULT_SPREAD,
        }, &error_abort);
        mem->required = memslot_plan_count(mem->plan);
    }
}

static char *holder_name(const Holder *holder)
{
    return holder->backend ?
           g_strdup_printf("vhost backend '%s'", holder->backend->id) :
           g_strdup("KVM");
}

static const char *is_or_are(unsigned int count)
{
    return count == 1 ? "is" : "are";
}

char *model_check_mem(const TestVM *vm, bool shared, const char *id)
{
    g_autoptr(GArray) holders = vm_holders(vm, shared);
    unsigned int i;

    for (i = 0; i < holders->len; i++) {
        const Holder *holder = &g_array_index(holders, Holder, i);
        g_autofree char *name = holder_name(holder);

        if (holder->used + holder->reserved + 1 > holder->limit) {
            return g_strdup_printf("not enough memslots for memory device '%s':"
                                   " %s can hold %u, of which %u are used and"
                                   " %u are reserved for other memory devices,"
                                   " but 1 is needed", id, name, holder->limit,
                                   holder->used, holder->reserved);
        }
    }
    return NULL;
}

char *model_check_backend(const TestVM *vm, const Backend *backend)
{
    const Holder holder = vm_holder(vm, backend);

    if (holder.used + holder.reserved <= holder.limit) {
        return NULL;
    }
    return g_strdup_printf("vhost backend '%s' can hold %u memory regions, but"
                           " %u are used and %u are reserved for memory"
                           " devices", backend->id, holder.limit, holder.used,
                           holder.reserved);
}

const char *model_check_unplug(const Mem *mem)
{
    if (!mem->config.inaccessible) {
        return "virtio-mem device cannot get unplugged while"
               " 'unplugged-inaccessible' != 'on'";
    }
    if (plugged_size(mem)) {
        return "virtio-mem device cannot get unplugged while some of its"
               " memory is still plugged";
    }
    if (mem->requested_size) {
        return "virtio-mem device cannot get unplugged while 'requested-size'"
               " != '0'";
    }
    return NULL;
}

/* Returns why memslots can't be mapped, though they have been promised. */
static char *model_check_map(const TestVM *vm, const Mem *mem,
                             unsigned int memslots)
{
    g_autoptr(GArray) holders = vm_holders(vm, mem->config.shared);
    unsigned int i;

    for (i = 0; i < holders->len; i++) {
        const Holder *holder = &g_array_index(holders, Holder, i);
        g_autofree char *name = holder_name(holder);

        /* What is shown as a whole is there already. */
        if (memslots && !holder->whole_devices &&
            holder->used + memslots > holder->limit) {
            return g_strdup_printf("%s can hold %u memslots, of which %u are"
                                   " used, but %u more %s needed", name,
                                   holder->limit, holder->used, memslots,
                                   is_or_are(memslots));
        }
    }
    return NULL;
}

uint16_t model_plug(const TestVM *vm, Mem *mem, uint64_t first, uint64_t count)
{
    g_autofree char *error = NULL;
    unsigned int used;

    if ((first + count) * mem->block_size > mem->usable_size) {
        return VIRTIO_MEM_RESP_ERROR;
    }
    if (plugged_size(mem) + count * mem->block_size > mem->requested_size) {
        return VIRTIO_MEM_RESP_NACK;
    }
    if (count_plugged(mem, first, count)) {
        return VIRTIO_MEM_RESP_ERROR;
    }
    used = mem_used(mem);
    set_plugged(mem, first, count, true);
    used = mem_used(mem) - used;
    /* What it takes is asked for with the memslots not being there yet. */
    set_plugged(mem, first, count, false);
    error = model_check_map(vm, mem, used);
    if (error) {
        return VIRTIO_MEM_RESP_BUSY;
    }
    set_plugged(mem, first, count, true);
    return VIRTIO_MEM_RESP_ACK;
}

char *model_request_size(const TestVM *vm, Mem *mem, uint64_t size)
{
    const uint64_t old_size = mem->usable_size;
    const unsigned int used = mem_used(mem);
    unsigned int needed;
    char *error;

    mem->usable_size = MAX(old_size, usable_size_for(mem, size));
    needed = mem_used(mem) - used;
    mem->usable_size = old_size;
    error = model_check_map(vm, mem, needed);
    if (!error) {
        mem->usable_size = MAX(old_size, usable_size_for(mem, size));
        mem->requested_size = size;
    }
    return error;
}
