/*
 * Random sequences of steps, to find what nobody thought of
 *
 * To repeat one: MEMSLOT_SEED=number, as it was printed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define RANDOM_SEQUENCES 10
#define RANDOM_STEPS 500

/* Devices that guests may read can't be unplugged: start anew now and then. */
#define RANDOM_STEPS_PER_VM 250
#define RANDOM_MAX_VMEMS 7
#define RANDOM_MAX_DIMMS 40
#define RANDOM_MAX_BACKENDS 5

#define RANDOM_MAX_RESTARTS 5

/* Of addresses of memory devices */
#define MAX_ALIGNMENT (1 * GiB)

/* Taking more memslots away would be most of what it takes time for. */
#define RANDOM_MAX_TAKEN 150

/* What came of the steps, to see that not all of them are alike */
typedef struct Outcomes {
    unsigned int mems;
    unsigned int mems_refused;
    unsigned int unplugs;
    unsigned int unplugs_refused;
    unsigned int backends;
    unsigned int backends_refused;
    unsigned int whole_devices;
    unsigned int restarts;
    unsigned int plugs;
    unsigned int plugs_busy;
    unsigned int sizes;
    unsigned int sizes_refused;
} Outcomes;

typedef struct Random {
    GRand *rand;
    TestVM *vm;
    /* pages of test devices that stay; [1] is shared */
    unsigned int taken[2];
    Outcomes outcomes;
} Random;

/* Returns a number from 0 to @n - 1. */
static unsigned int below(Random *r, unsigned int n)
{
    return g_rand_int_range(r->rand, 0, n);
}

static bool coin(Random *r)
{
    return below(r, 2);
}

static unsigned int count_mems(const TestVM *vm, MemKind kind)
{
    unsigned int count = 0;
    const Mem *mem;

    for_each_mem(mem, vm) {
        count += mem->config.kind == kind;
    }
    return count;
}

/* Returns NULL if there is none. */
static Mem *random_mem(Random *r, MemKind kind)
{
    const unsigned int count = count_mems(r->vm, kind);
    unsigned int index = count ? below(r, count) : 0;
    Mem *mem;

    for_each_mem(mem, r->vm) {
        if (mem->config.kind == kind && index-- == 0) {
            return mem;
        }
    }
    return NULL;
}

/* Small sizes and large ones are of the same interest. */
static uint64_t random_size(Random *r, uint64_t unit, uint64_t max)
{
    uint64_t size = unit << below(r, 15);

    size += unit * below(r, 3);
    return MIN(size, ROUND_DOWN(max, unit));
}

/* Returns the start of the memslot that holds the offset. */
static uint64_t memslot_start(const Mem *mem, uint64_t offset)
{
    unsigned int memslot, last;

    if (!mem->plan) {
        return 0;
    }
    memslot_plan_find(mem->plan, offset, 1, &memslot, &last);
    return memslot_plan_offset(mem->plan, memslot);
}

/* Returns false if there is nothing in the usable region. */
static bool random_range(Random *r, const Mem *mem, uint64_t *offset,
                         uint64_t *size)
{
    const unsigned int blocks = mem->usable_size / mem->block_size;

    if (!blocks) {
        return false;
    }
    *offset = below(r, blocks) * mem->block_size;
    if (coin(r)) {
        *offset = memslot_start(mem, *offset);
    }
    *size = random_size(r, mem->block_size, mem->usable_size - *offset);
    return true;
}

static uint64_t room_to_plug(const Mem *mem)
{
    const uint64_t plugged = plugged_size(mem);

    return mem->requested_size > plugged ? mem->requested_size - plugged : 0;
}

static void random_plug(Random *r)
{
    Mem *mem = random_mem(r, VMEM);
    uint64_t offset, size;

    if (mem && random_range(r, mem, &offset, &size)) {
        uint64_t room = ROUND_DOWN(room_to_plug(mem), mem->block_size);
        uint16_t resp;

        /* Mostly no more than is requested */
        if (below(r, 8) && room) {
            size = MIN(size, room);
        }
        resp = plug(r->vm, mem, offset, size);
        r->outcomes.plugs += resp == VIRTIO_MEM_RESP_ACK;
        r->outcomes.plugs_busy += resp == VIRTIO_MEM_RESP_BUSY;
    }
}

/* What is plugged, from some block on */
static void random_unplug(Random *r)
{
    Mem *mem = random_mem(r, VMEM);
    uint64_t offset, size, end;

    if (!mem || !random_range(r, mem, &offset, &size)) {
        return;
    }
    end = offset;
    while (end < offset + size && mem->plugged[end / mem->block_size]) {
        end += mem->block_size;
    }
    unplug(r->vm, mem, offset, MAX(end - offset, mem->block_size));
}

static void random_unplug_all(Random *r)
{
    Mem *mem = random_mem(r, VMEM);

    if (mem) {
        unplug_all(r->vm, mem);
    }
}

static void random_request_size(Random *r)
{
    Mem *mem = random_mem(r, VMEM);
    uint64_t size;

    if (mem) {
        size = coin(r) ? mem->config.size : below(r, 4) ?
               random_size(r, mem->block_size, mem->config.size) : 0;
        if (request_size(r->vm, mem, size)) {
            r->outcomes.sizes++;
        } else {
            r->outcomes.sizes_refused++;
        }
    }
}

static uint64_t unassigned_size(const TestVM *vm)
{
    uint64_t size = vm->device_memory_size;
    const Mem *mem;

    for_each_mem(mem, vm) {
        size -= mem->config.size;
    }
    return size;
}

/* The most that a new device may have: what is left may be in pieces. */
static uint64_t largest_hole(TestVM *vm)
{
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-memory-devices' }");
    uint64_t end = DEVICE_MEMORY_BASE, hole = 0;
    const QListEntry *entry;

    /* In the order of their addresses */
    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        const QDict *info = qobject_to(QDict, qlist_entry_obj(entry));
        const QDict *data = qdict_get_qdict(info, "data");
        const bool is_dimm = g_str_equal(qdict_get_str(info, "type"), "dimm");
        const uint64_t addr = qdict_get_int(data, is_dimm ? "addr" : "memaddr");

        hole = MAX(hole, addr - end);
        end = addr + qdict_get_int(data, is_dimm ? "size" : "max-size");
    }
    qobject_unref(rsp);
    if (end < DEVICE_MEMORY_BASE + vm->device_memory_size) {
        hole = MAX(hole, DEVICE_MEMORY_BASE + vm->device_memory_size - end);
    }
    return hole;
}

/* QEMU takes some 50 ms to refuse a device: do without most of that. */
static bool skip_refusal(Random *r, const char *expected_error)
{
    return expected_error && below(r, 3);
}

static void random_add_mem(Random *r, MemConfig *config)
{
    g_autofree char *error = NULL;

    config->shared = below(r, 3);
    error = model_check_mem(r->vm, config->shared, "");
    if (config->size > unassigned_size(r->vm) || skip_refusal(r, error) ||
        config->size + MAX_ALIGNMENT > largest_hole(r->vm)) {
        return;
    }
    if (vm_add_mem(r->vm, config)) {
        r->outcomes.mems++;
    } else {
        r->outcomes.mems_refused++;
    }
}

static void random_add_dimm(Random *r)
{
    MemConfig config = dimm;

    if (count_mems(r->vm, DIMM) < RANDOM_MAX_DIMMS) {
        config.size *= 1 + below(r, 4);
        random_add_mem(r, &config);
    }
}

static void random_add_vmem(Random *r)
{
    MemConfig config = {
        .kind = VMEM,
        .size = (1 + below(r, 40)) * GiB,
        .multiple = below(r, 5),
        .inaccessible = below(r, 3),
    };

    if (count_mems(r->vm, VMEM) < RANDOM_MAX_VMEMS) {
        config.size += coin(r) ? 0 : 6 * MiB;
        if (coin(r)) {
            config.requested_size = random_size(r, 2 * MiB, config.size);
        }
        random_add_mem(r, &config);
    }
}

static void random_remove_vmem(Random *r)
{
    Mem *mem = random_mem(r, VMEM);
    g_autofree char *memdev = NULL;

    if (!mem) {
        return;
    }
    if (below(r, 3)) {
        request_size(r->vm, mem, 0);
        unplug_all(r->vm, mem);
    }
    memdev = g_strdup(mem->memdev);
    if (vm_unplug_vmem(r->vm, mem)) {
        vm_remove_memdev(r->vm, memdev);
        r->outcomes.unplugs++;
    } else {
        r->outcomes.unplugs_refused++;
    }
}

static void random_remove_dimm(Random *r)
{
    Mem *mem = random_mem(r, DIMM);

    if (mem) {
        vm_remove_dimm(r->vm, mem);
    }
}

static void random_add_backend(Random *r)
{
    static const unsigned int sizes[] = {
        QVHOST_USER_BASELINE, 8, 32, 64, 200, 508, 509, 509, 600,
    };
    unsigned int size = sizes[below(r, ARRAY_SIZE(sizes))];
    Backend model = { .id = (char *)"", .whole_devices = coin(r) };
    const Holder holder = vm_holder(r->vm, &model);
    g_autofree char *error = NULL;
    Backend *backend;

    if (coin(r)) {
        /* One that can hold about what there is, in one way or the other */
        size = MAX(holder.used + holder.reserved + below(r, 6), 4) - 3;
    }
    model.limit = MIN(size ?: 8, VHOST_USER_MAX_REGIONS);
    model_attach(r->vm, &model);
    error = model_check_backend(r->vm, &model);

    if (r->vm->backends->len + r->vm->killed->len == RANDOM_MAX_BACKENDS ||
        skip_refusal(r, error)) {
        return;
    }
    backend = vm_add_backend(r->vm, size);
    if (backend && below(r, 4)) {
        backend_start(r->vm, backend);
    }
    if (backend) {
        r->outcomes.backends++;
        r->outcomes.whole_devices += backend->whole_devices;
    } else {
        r->outcomes.backends_refused++;
    }
}

static void random_remove_backend(Random *r)
{
    const unsigned int count = r->vm->backends->len;

    if (count) {
        vm_remove_backend(r->vm, g_ptr_array_index(r->vm->backends,
                                                   below(r, count)));
    }
}

static void random_kill_backend(Random *r)
{
    const unsigned int count = r->vm->backends->len;
    Backend *backend;

    if (!count || r->vm->killed->len ||
        r->outcomes.restarts == RANDOM_MAX_RESTARTS) {
        return;
    }
    backend = g_ptr_array_index(r->vm->backends, below(r, count));
    if (backend->started) {
        kill_backend(r->vm, backend);
    }
}

/* The one that was killed, if it would not be refused now */
static void random_restart_backend(Random *r)
{
    g_autofree char *error = NULL;
    Backend *backend;

    if (!r->vm->killed->len) {
        return;
    }
    backend = g_ptr_array_index(r->vm->killed, 0);
    model_attach(r->vm, backend);
    error = model_check_backend(r->vm, backend);
    if (!error) {
        restart_backends(r->vm, &backend, 1);
        r->outcomes.restarts++;
    }
}

/* How many more pages a test device can map with all having room for them */
static unsigned int random_room(Random *r, bool shared)
{
    g_autoptr(GArray) holders = vm_holders(r->vm, shared);
    unsigned int i, room = UINT_MAX;

    for (i = 0; i < holders->len; i++) {
        const Holder *holder = &g_array_index(holders, Holder, i);

        room = MIN(room, holder->limit - holder->used +
                         r->vm->testdev_count[shared] - r->taken[shared]);
    }
    return room;
}

static void random_set_taken(Random *r, bool shared, unsigned int count)
{
    set_testdev_count(r->vm, shared, r->taken[shared] + count);
}

static void random_taken(Random *r)
{
    const bool shared = !r->vm->kvm || coin(r);
    const unsigned int room = random_room(r, shared);
    unsigned int count = below(r, 30);

    if (room <= RANDOM_MAX_TAKEN && !below(r, 3)) {
        count = room - MIN(room, below(r, 5));
    }
    random_set_taken(r, shared, MIN(count, room));
}

/* There is next to nothing left while memory is about to be mapped. */
static void random_taken_meanwhile(Random *r)
{
    const bool shared = !r->vm->kvm || coin(r);
    const unsigned int room = random_room(r, shared);
    const unsigned int count = r->vm->testdev_count[shared] - r->taken[shared];

    if (room > RANDOM_MAX_TAKEN) {
        return;
    }
    random_set_taken(r, shared, room - MIN(room, below(r, 5)));
    random_request_size(r);
    random_plug(r);
    random_plug(r);
    random_plug(r);
    random_set_taken(r, shared, MIN(count, random_room(r, shared)));
}

static const struct {
    void (*fn)(Random *r);
    unsigned int weight;
} random_steps[] = {
    { random_plug, 30 },
    { random_unplug, 12 },
    { random_unplug_all, 4 },
    { random_request_size, 14 },
    { random_add_dimm, 9 },
    { random_add_vmem, 4 },
    { random_remove_dimm, 8 },
    { random_remove_vmem, 3 },
    { random_add_backend, 4 },
    { random_remove_backend, 2 },
    { random_kill_backend, 1 },
    { random_restart_backend, 1 },
    { random_taken, 6 },
    { random_taken_meanwhile, 5 },
};

static void random_step(Random *r)
{
    unsigned int i, rest, total = 0;

    for (i = 0; i < ARRAY_SIZE(random_steps); i++) {
        total += random_steps[i].weight;
    }
    rest = below(r, total);
    for (i = 0; rest >= random_steps[i].weight; i++) {
        rest -= random_steps[i].weight;
    }
    random_steps[i].fn(r);
}

static void test_random(const TestCase *test)
{
    static const unsigned int kvm_limits[] = { 0, 509, 509, 509, 64 };
    const char *seed_given = g_getenv("MEMSLOT_SEED");
    const guint32 seed = seed_given ? g_ascii_strtoull(seed_given, NULL, 0) :
                         g_test_rand_int() + test->index;
    Random r = { .rand = g_rand_new_with_seed(seed) };
    TestCase test_case = *test;
    const Outcomes *o = &r.outcomes;
    unsigned int step;

    if (test->kvm && preload_path) {
        test_case.kvm_limit = kvm_limits[test->index % ARRAY_SIZE(kvm_limits)];
    }
    g_test_message("MEMSLOT_SEED=%" PRIu32, seed);
    for (step = 0; step < RANDOM_STEPS; step++) {
        if (step % RANDOM_STEPS_PER_VM == 0) {
            if (r.vm) {
                vm_stop(r.vm);
            }
            r.vm = vm_new_default(&test_case, 200 * GiB);
            if (test_case.kvm_limit >= HISTORICAL_MAX) {
                r.taken[false] = test_case.kvm_limit - RANDOM_MAX_TAKEN;
                random_set_taken(&r, false, 0);
            } else if (!test->kvm && test->index % 3 == 1) {
                /* Large backends run out of memslots, small ones don't fit. */
                r.taken[true] = HISTORICAL_MAX - RANDOM_MAX_TAKEN;
                random_set_taken(&r, true, 0);
            }
        }
        random_step(&r);
    }
    vm_stop(r.vm);
    g_rand_free(r.rand);
    g_test_message("memory devices: %u, refused: %u, unplugged: %u, not: %u;"
                   " backends: %u, with whole devices: %u, refused: %u,"
                   " restarted: %u; plugged: %u, busy: %u; sizes: %u, refused:"
                   " %u", o->mems, o->mems_refused, o->unplugs,
                   o->unplugs_refused, o->backends, o->whole_devices,
                   o->backends_refused, o->restarts, o->plugs, o->plugs_busy,
                   o->sizes, o->sizes_refused);
}

static const TestGroup groups[] = {
    { "random", test_random, .times = RANDOM_SEQUENCES },
};

void add_random_tests(bool kvm)
{
    add_test_groups(groups, ARRAY_SIZE(groups), kvm);
}
