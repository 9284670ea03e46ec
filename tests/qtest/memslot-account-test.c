/*
 * QTest testcase for the memslot account
 *
 * Memory devices and vhost backends come and go, the guest plugs and unplugs
 * memory, and somebody else takes memslots. A plain model of the machine says
 * which of that works, what those that don't are told, and which memslots are
 * there: all of it has to be exactly what QEMU says. After every step, what
 * "query-memslots" counts has to be what the flat view shows, and what each
 * vhost backend really holds. Those that can't hold a memory region for each
 * memslot hold one for each memory device, and get no message while that stays.
 *
 * To repeat a random sequence: MEMSLOT_SEED=number, as it was printed.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/mem/memslot-plan.h"
#include "libqtest.h"
#include "libqos/host.h"
#include "libqos/libqos-pc.h"
#include "libqos/monitor.h"
#include "libqos/vhost-user-backend.h"
#include "libqos/virtio-mem.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qmp/qlist.h"
#include <sys/socket.h>
#include <sys/un.h>

#define BOOT_RAM_SIZE (128 * MiB)

/* Where device memory starts if there is no boot memory above 4 GiB */
#define DEVICE_MEMORY_BASE (4 * GiB)

/* The policy, see include/hw/mem/memslot-budget.h */
#define SOFT_LIMIT 256
#define HISTORICAL_MAX 509
#define MIN_MEMSLOT_SIZE (1 * GiB)

/* QEMU cannot hand more to a vhost-user backend, whatever that can hold. */
#define VHOST_USER_MAX_REGIONS 512

/* What a virtio-mem device adds to the requested size, see the specification */
#define USABLE_EXTENT (256 * MiB)

/* Nothing else is there, and no memory device. */
#define TESTDEV_ADDR (2 * GiB)
#define SHARED_TESTDEV_ADDR (2 * GiB + 512 * MiB)

#define PCI_FIRST_SLOT 4
#define PCI_LAST_SLOT 31

#define ACPI_MEMHP_ADDR 0xa00
#define ACPI_MEMHP_SELECT 0x0
#define ACPI_MEMHP_CONTROL 0x14
#define ACPI_MEMHP_EJECT 0x8

#define ACPI_PCIHP_ADDR 0xae00
#define ACPI_PCIHP_EJECT 0x8

/* ---- The machine, and the model of what is in it ---- */

typedef enum MemKind {
    DIMM,
    NVDIMM,
    PMEM,
    VMEM,
} MemKind;

typedef struct MemConfig {
    MemKind kind;
    bool shared;
    uint64_t size;
    unsigned int node;
    /* of virtio-mem only */
    bool multiple;
    bool inaccessible;
    uint64_t requested_size;
} MemConfig;

/* A memory device */
typedef struct Mem {
    MemConfig config;
    char *id;
    char *memdev;
    unsigned int pci_slot;
    /* the most memslots that it may map */
    unsigned int required;

    /* of virtio-mem only */
    QVirtioMEMPCI *pci;
    MemslotPlan *plan;
    uint64_t addr;
    uint64_t block_size;
    uint64_t requested_size;
    uint64_t usable_size;
    /* one per block */
    bool *plugged;
} Mem;

typedef struct Backend {
    char *id;
    char *device_id;
    QVhostUserBackend *vu;
    unsigned int limit;
    /* is shown memory devices as a whole; decided when it is attached */
    bool coalesced;
    /* gets its table region by region, not all of it with each change */
    bool configurable;
    unsigned int pci_slot;
    bool started;
    /* the driver, from when the device is started */
    QVirtioPCIDevice *pci;
    QVirtQueue *vq;
    /* what it held at the last check: QVhostUserRegion; NULL: anything goes */
    GArray *last_regions;
    unsigned int last_messages;
} Backend;

typedef struct TestCase {
    bool kvm;
    /* what KVM shall say that it can hold; 0 for what it can */
    unsigned int kvm_limit;
    bool cold;
    /* to tell apart tests that are otherwise the same */
    unsigned int index;
    void (*fn)(const struct TestCase *test);
} TestCase;

typedef struct TestVM {
    /* tell QEMU that KVM can hold that many; 0 for what it can */
    unsigned int preload_limit;
    bool kvm;
    bool cold;
    uint64_t device_memory_size;
    char *tmpdir;
    QOSState *qs;
    QTestState *qts;
    QMonitor *mon;
    /* command line, before it is started */
    GString *args;

    /* in the order of their creation: Mem, Backend */
    GPtrArray *mems;
    GPtrArray *backends;
    /* those that were killed: QEMU does not count with them */
    GPtrArray *killed;
    unsigned int last_id;
    bool pci_slot_used[PCI_LAST_SLOT + 1];
    bool dimm_slot_used[256];

    /* pages that test devices map outside of device memory; [1] is shared */
    unsigned int testdev_count[2];
    /* and those within, which are shared */
    unsigned int inner_count;
    uint64_t inner_addr;

    /* what there is but for device memory and test devices */
    unsigned int base_shared;
    unsigned int base_kvm;
    unsigned int kvm_limit;
    /* memslots of KVM's other address spaces, over those of the memory */
    unsigned int kvm_extra;
} TestVM;

#define for_each_mem(mem_, vm_)                                            \
    for (guint i_ = 0; i_ < (vm_)->mems->len &&                            \
         (mem_ = g_ptr_array_index((vm_)->mems, i_)); i_++)

#define for_each_backend(backend_, vm_)                                    \
    for (guint i_ = 0; i_ < (vm_)->backends->len &&                        \
         (backend_ = g_ptr_array_index((vm_)->backends, i_)); i_++)

/* One that holds memslots: KVM, if there is no backend */
typedef struct Holder {
    const Backend *backend;
    unsigned int limit;
    unsigned int used;
    unsigned int reserved;
    bool shared_only;
    bool coalesced;
} Holder;

static uint64_t nr_blocks(const Mem *mem)
{
    return mem->config.size / mem->block_size;
}

static uint64_t plugged_size(const Mem *mem)
{
    uint64_t i, size = 0;

    for (i = 0; i < nr_blocks(mem); i++) {
        size += mem->plugged[i] ? mem->block_size : 0;
    }
    return size;
}

static uint64_t usable_size_for(const Mem *mem, uint64_t requested_size)
{
    if (!requested_size) {
        return 0;
    }
    return ROUND_UP(MIN(requested_size + USABLE_EXTENT, mem->config.size),
                    mem->block_size);
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

/* How many memslots are mapped */
static unsigned int mem_used(const Mem *mem)
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

static unsigned int saturating_sub(unsigned int a, unsigned int b)
{
    return a > b ? a - b : 0;
}

static unsigned int vm_required(const TestVM *vm, bool shared_only)
{
    unsigned int required = 0;
    const Mem *mem;

    for_each_mem(mem, vm) {
        required += mem->config.shared || !shared_only ? mem->required : 0;
    }
    return required;
}

/* With no more than @most memslots of each memory device being told apart */
static unsigned int vm_used_up_to(const TestVM *vm, bool shared_only,
                                  unsigned int most)
{
    unsigned int used = vm->inner_count;
    const Mem *mem;

    for_each_mem(mem, vm) {
        used += mem->config.shared || !shared_only ?
                MIN(mem_used(mem), most) : 0;
    }
    return used;
}

static unsigned int vm_used(const TestVM *vm, bool shared_only)
{
    return vm_used_up_to(vm, shared_only, UINT_MAX);
}

/* Promised, and not mapped yet. Others being there changes nothing. */
static unsigned int vm_reserved_up_to(const TestVM *vm, bool shared_only,
                                      unsigned int most)
{
    unsigned int reserved = 0;
    const Mem *mem;

    for_each_mem(mem, vm) {
        reserved += mem->config.shared || !shared_only ?
                    MIN(mem->required, most) - MIN(mem_used(mem), most) : 0;
    }
    return reserved;
}

static unsigned int vm_reserved(const TestVM *vm, bool shared_only)
{
    return vm_reserved_up_to(vm, shared_only, UINT_MAX);
}

static Holder vm_holder(const TestVM *vm, const Backend *backend)
{
    Holder holder = {
        .backend = backend,
        .limit = backend ? backend->limit : vm->kvm_limit,
        .shared_only = backend,
        .coalesced = backend && backend->coalesced,
    };
    const unsigned int most = holder.coalesced ? 1 : UINT_MAX;

    holder.used = vm_used_up_to(vm, holder.shared_only, most);
    holder.reserved = vm_reserved_up_to(vm, holder.shared_only, most);
    if (backend) {
        holder.used += vm->base_shared + vm->testdev_count[true];
    } else {
        holder.used += vm->base_kvm + vm->testdev_count[false] +
                       vm->testdev_count[true];
    }
    return holder;
}

/* What is decided once, when it is attached */
static void model_attach(const TestVM *vm, Backend *backend)
{
    Holder holder;

    backend->coalesced = false;
    holder = vm_holder(vm, backend);
    backend->coalesced = holder.limit < HISTORICAL_MAX ||
                         holder.used + holder.reserved > holder.limit;
}

/* Those that would have to hold memory; the latest backend first */
static GArray *vm_holders(const TestVM *vm, bool shared)
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

/* Returns the error that QEMU should report if the device gets refused. */
static char *model_check_mem(const TestVM *vm, bool shared, const char *id)
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

static char *model_check_backend(const TestVM *vm, const Backend *backend)
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

/* Returns why memslots can't be mapped, though they have been promised. */
static char *model_check_map(const TestVM *vm, const Mem *mem,
                             unsigned int memslots)
{
    g_autoptr(GArray) holders = vm_holders(vm, mem->config.shared);
    unsigned int i;

    for (i = 0; i < holders->len; i++) {
        const Holder *holder = &g_array_index(holders, Holder, i);
        g_autofree char *name = holder_name(holder);
        unsigned int needed = memslots;

        if (holder->coalesced) {
            needed = mem_used(mem) ? 0 : MIN(memslots, 1);
        }
        if (needed && holder->used + needed > holder->limit) {
            return g_strdup_printf("%s can hold %u memslots, of which %u are"
                                   " used, but %u more %s needed", name,
                                   holder->limit, holder->used, needed,
                                   is_or_are(needed));
        }
    }
    return NULL;
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

        if (holder->coalesced) {
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

static void model_divide(const TestVM *vm, Mem *mem)
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

/* ---- What QEMU says ---- */

/* Returns the error's description, or NULL on success. */
static char *G_GNUC_PRINTF(2, 3) try_qmp(TestVM *vm, const char *fmt, ...)
{
    char *error = NULL;
    va_list ap;
    QDict *rsp;

    va_start(ap, fmt);
    rsp = qmonitor_vqmp(vm->mon, fmt, ap);
    va_end(ap);
    if (qdict_haskey(rsp, "error")) {
        error = g_strdup(qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"));
    }
    qobject_unref(rsp);
    return error;
}

static void G_GNUC_PRINTF(2, 3) qmp_succeeds(TestVM *vm, const char *fmt, ...)
{
    va_list ap;
    QDict *rsp;

    va_start(ap, fmt);
    rsp = qmonitor_vqmp(vm->mon, fmt, ap);
    va_end(ap);
    if (!qdict_haskey(rsp, "return")) {
        g_error("%s: %s", fmt,
                qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"));
    }
    qobject_unref(rsp);
}

/* A command that prints nothing if it works */
static void G_GNUC_PRINTF(2, 3) run_hmp(TestVM *vm, const char *fmt, ...)
{
    g_autofree char *command = NULL;
    g_autofree char *output = NULL;
    va_list ap;

    va_start(ap, fmt);
    command = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    output = qmonitor_hmp(vm->mon, command);
    g_assert_cmpstr(output, ==, "");
}

static const Mem *find_memdev(const TestVM *vm, const char *memdev)
{
    const Mem *mem;

    for_each_mem(mem, vm) {
        if (g_str_equal(mem->memdev, memdev)) {
            return mem;
        }
    }
    return NULL;
}

/* Test devices all have the same name. */
static bool range_is_shared(const TestVM *vm, const QFlatRange *range)
{
    const Mem *mem = find_memdev(vm, range->name);

    if (mem) {
        return mem->config.shared;
    }
    if (g_str_equal(range->name, "memslot-testdev")) {
        return range->addr >= SHARED_TESTDEV_ADDR;
    }
    return g_str_has_prefix(range->name, "boot");
}

typedef struct Shown {
    /* in device memory */
    unsigned int all;
    unsigned int shared;
    /* in KVM's address space for memory */
    unsigned int kvm;
    /*
     * The memory regions that vhost-user has to know: QVhostUserRegion. In [1],
     * as backends do that are shown memory devices as a whole.
     */
    GArray *regions[2];
} Shown;

static void shown_clear(Shown *shown)
{
    g_array_unref(shown->regions[false]);
    g_array_unref(shown->regions[true]);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Shown, shown_clear)

/* vhost joins neighbours, but for memslots of one device. */
static void add_shown_region(GArray *regions, const QFlatRange *range,
                             bool may_join)
{
    const QVhostUserRegion region = {
        .addr = range->addr,
        .size = range->size,
        .mmap_offset = range->offset,
    };
    QVhostUserRegion *last = NULL;

    if (regions->len) {
        last = &g_array_index(regions, QVhostUserRegion, regions->len - 1);
    }
    if (may_join && last && last->addr + last->size == region.addr &&
        last->mmap_offset + last->size == region.mmap_offset) {
        last->size += region.size;
        return;
    }
    g_array_append_val(regions, region);
}

/* All of the device, as soon as there is any of it */
static void add_whole_region(GArray *regions, const Mem *mem)
{
    const QVhostUserRegion region = {
        .addr = mem->addr,
        .size = mem->config.size,
    };
    const QVhostUserRegion *last = NULL;

    if (regions->len) {
        last = &g_array_index(regions, QVhostUserRegion, regions->len - 1);
    }
    if (!last || last->addr != region.addr) {
        g_array_append_val(regions, region);
    }
}

static void shown_add_region(Shown *shown, const Mem *mem,
                             const QFlatRange *range, bool may_join)
{
    add_shown_region(shown->regions[false], range, may_join);
    if (mem && mem->config.kind == VMEM) {
        add_whole_region(shown->regions[true], mem);
    } else {
        add_shown_region(shown->regions[true], range, may_join);
    }
}

static void show_flat_view(TestVM *vm, Shown *shown)
{
    g_autoptr(GArray) ranges = qmonitor_flat_view(vm->mon);
    unsigned int i;

    *shown = (Shown) {
        .regions = {
            g_array_new(false, false, sizeof(QVhostUserRegion)),
            g_array_new(false, false, sizeof(QVhostUserRegion)),
        },
    };
    for (i = 0; i < ranges->len; i++) {
        const QFlatRange *range = &g_array_index(ranges, QFlatRange, i);
        const bool in_device_memory = range->addr >= DEVICE_MEMORY_BASE;

        shown->kvm += range->kvm;
        if (!range->ram) {
            continue;
        }
        shown->all += in_device_memory;
        if (range_is_shared(vm, range)) {
            shown->shared += in_device_memory;
            shown_add_region(shown, find_memdev(vm, range->name), range,
                             !in_device_memory);
        }
    }
}

/* ---- The check after each step ---- */

static void check_holder(TestVM *vm, const QDict *info, const Backend *backend)
{
    const Holder holder = vm_holder(vm, backend);

    g_assert_cmpstr(qdict_get_str(info, "type"), ==,
                    backend ? "vhost" : "kvm");
    g_assert_cmpstr(qdict_get_try_str(info, "id"), ==,
                    backend ? backend->id : NULL);
    g_assert_cmpint(qdict_get_int(info, "limit"), ==, holder.limit);
    g_assert_cmpint(qdict_get_int(info, "used"), ==, holder.used);
    g_assert_cmpint(qdict_get_int(info, "free"), ==,
                    saturating_sub(holder.limit, holder.used));
    g_assert_cmpint(qdict_get_int(info, "reserved"), ==, holder.reserved);
    g_assert_cmpint(qdict_get_bool(info, "shared-only"), ==,
                    holder.shared_only);
    g_assert_cmpint(qdict_get_bool(info, "coalesced"), ==, holder.coalesced);
}

static void check_query(TestVM *vm)
{
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-memslots' }");
    const QDict *info = qdict_get_qdict(rsp, "return");
    const QListEntry *entry;
    unsigned int i;

    g_assert_nonnull(info);
    g_assert_cmpint(qdict_get_int(info, "soft-limit"), ==, SOFT_LIMIT);
    g_assert_cmpint(qdict_get_int(info, "required"), ==,
                    vm_required(vm, false));
    g_assert_cmpint(qdict_get_int(info, "used"), ==, vm_used(vm, false));
    g_assert_cmpint(qdict_get_int(info, "reserved"), ==,
                    vm_reserved(vm, false));

    entry = qlist_first(qdict_get_qlist(info, "holders"));
    if (vm->kvm) {
        check_holder(vm, qobject_to(QDict, qlist_entry_obj(entry)), NULL);
        entry = qlist_next(entry);
    }
    for (i = vm->backends->len; i > 0; i--) {
        g_assert_nonnull(entry);
        check_holder(vm, qobject_to(QDict, qlist_entry_obj(entry)),
                     g_ptr_array_index(vm->backends, i - 1));
        entry = qlist_next(entry);
    }
    g_assert_null(entry);
    qobject_unref(rsp);
}

static bool region_equal(const QVhostUserRegion *a, const QVhostUserRegion *b)
{
    return a->addr == b->addr && a->size == b->size &&
           a->mmap_offset == b->mmap_offset;
}

/* How many regions are in only one of two tables, which have an order */
static unsigned int count_changes(GArray *a, GArray *b)
{
    unsigned int i = 0, j = 0, count = 0;

    while (i < a->len && j < b->len) {
        const QVhostUserRegion *x = &g_array_index(a, QVhostUserRegion, i);
        const QVhostUserRegion *y = &g_array_index(b, QVhostUserRegion, j);

        if (region_equal(x, y)) {
            i++;
            j++;
            continue;
        }
        count++;
        if (x->addr <= y->addr) {
            i++;
        } else {
            j++;
        }
    }
    return count + (a->len - i) + (b->len - j);
}

/* A backend is told what changed, and nothing if nothing did. */
static void check_messages(Backend *backend, GArray *regions)
{
    const unsigned int messages =
        qvhost_user_backend_nr_messages(backend->vu, VHOST_USER_NONE);

    if (backend->last_regions) {
        const unsigned int changes = count_changes(backend->last_regions,
                                                   regions);
        const unsigned int count = messages - backend->last_messages;

        if (backend->configurable || !changes) {
            g_assert_cmpuint(count, ==, changes);
        } else {
            g_assert_cmpuint(count, >=, 1);
            g_assert_cmpuint(count, <=, changes);
        }
        g_array_unref(backend->last_regions);
    }
    backend->last_regions = g_array_ref(regions);
    backend->last_messages = messages;
}

/* Not only its table makes for messages now. */
static void backend_forget(Backend *backend)
{
    if (backend->last_regions) {
        g_array_unref(backend->last_regions);
        backend->last_regions = NULL;
    }
}

/* A backend that is not started holds what it held when it was. */
static void check_backend(Backend *backend, const Shown *shown)
{
    GArray *expected = shown->regions[backend->coalesced];
    g_autofree char *error = qvhost_user_backend_error(backend->vu);
    g_autoptr(GArray) regions = qvhost_user_backend_regions(backend->vu);
    unsigned int i;

    g_assert_cmpstr(error, ==, NULL);
    g_assert_cmpint(qvhost_user_backend_started(backend->vu), ==,
                    backend->started);
    if (!backend->started) {
        return;
    }
    g_assert_cmpuint(regions->len, ==, expected->len);
    for (i = 0; i < expected->len; i++) {
        const QVhostUserRegion *a = &g_array_index(regions, QVhostUserRegion,
                                                   i);
        const QVhostUserRegion *b = &g_array_index(expected, QVhostUserRegion,
                                                   i);

        g_assert_cmphex(a->addr, ==, b->addr);
        g_assert_cmphex(a->size, ==, b->size);
        g_assert_cmphex(a->mmap_offset, ==, b->mmap_offset);
    }
    check_messages(backend, regions);
}

static void vm_check(TestVM *vm)
{
    g_auto(Shown) shown = { };
    Backend *backend;

    check_query(vm);
    show_flat_view(vm, &shown);
    g_assert_cmpuint(shown.all, ==, vm_used(vm, false));
    g_assert_cmpuint(shown.shared, ==, vm_used(vm, true));
    if (vm->kvm) {
        g_assert_cmpuint(shown.kvm + vm->kvm_extra, ==,
                         vm_holder(vm, NULL).used);
    }
    for_each_backend(backend, vm) {
        g_assert_cmpuint(shown.regions[backend->coalesced]->len, ==,
                         vm_holder(vm, backend).used);
        check_backend(backend, &shown);
    }
}

/* ---- Starting and stopping virtual machines ---- */

/* The library that has KVM say that it can hold less, see kvm-preload.c */
static char *preload_path;

static const char *on_off(bool on)
{
    return on ? "on" : "off";
}

/* Show what QEMU had to say, if it might have to do with the failure. */
static void clean_up_on_abort(void *path)
{
    g_autofree char *stderr_path = g_build_filename(path, "stderr", NULL);
    g_autofree char *text = NULL;

    if (g_file_get_contents(stderr_path, &text, NULL, NULL)) {
        fputs(text, stderr);
    }
    qhost_remove_dir(path);
}

/*
 * Vhost devices are started only while the VM runs, and KVM has nothing but
 * vCPUs to run. This firmware has them halt, for ever.
 */
static void write_firmware(const char *path)
{
    /* cli; hlt; jmp to the hlt */
    static const uint8_t code[] = { 0xfa, 0xf4, 0xeb, 0xfd };
    const size_t size = 64 * KiB, reset_vector = size - 16;
    g_autofree uint8_t *rom = g_malloc0(size);

    memcpy(rom + reset_vector, code, sizeof(code));
    g_assert_true(g_file_set_contents(path, (char *)rom, size, NULL));
}

static char *vm_file(const TestVM *vm, const char *name)
{
    return g_build_filename(vm->tmpdir, name, NULL);
}

static char *vm_vnew_id(TestVM *vm, const char *prefix)
{
    return g_strdup_printf("%s%u", prefix, vm->last_id++);
}

static QOSState *G_GNUC_PRINTF(1, 2) boot_pc(const char *fmt, ...)
{
    QOSState *qs;
    va_list ap;

    va_start(ap, fmt);
    qs = qtest_pc_vboot(fmt, ap);
    va_end(ap);
    return qs;
}

static void mem_free(gpointer data)
{
    Mem *mem = data;

    qvirtio_mem_pci_free(mem->pci);
    g_free(mem->id);
    g_free(mem->memdev);
    g_free(mem->plugged);
    memslot_plan_free(mem->plan);
    g_free(mem);
}

/*
 * Refusals are explained to users on stderr, too, which would be confusing to
 * those that run this test.
 */
static char *vm_cmdline(const TestVM *vm)
{
    g_autofree char *stderr_path = vm_file(vm, "stderr");
    g_autofree char *bios = vm_file(vm, "bios");
    g_autofree char *mon = vm_file(vm, "mon");

    return g_strdup_printf("-nodefaults %s -bios %s"
                           " -chardev socket,id=mon,path=%s,server=on,wait=off"
                           " -mon chardev=mon,mode=control"
                           " -m %" PRIu64 "B,slots=64,maxmem=%" PRIu64 "B"
                           " -device memslot-testdev,id=testdev0,addr=%" PRIu64
                           " -device memslot-testdev,id=testdev1,addr=%" PRIu64
                           ",share=on"
                           " -device memslot-testdev,id=inner,addr=%" PRIu64
                           ",share=on %s 2>>%s",
                           vm->kvm ? "-accel kvm" : "", bios, mon,
                           (uint64_t)BOOT_RAM_SIZE,
                           BOOT_RAM_SIZE + vm->device_memory_size,
                           (uint64_t)TESTDEV_ADDR,
                           (uint64_t)SHARED_TESTDEV_ADDR, vm->inner_addr,
                           vm->args->str, stderr_path);
}

/* What is there before anything else is */
static void vm_measure(TestVM *vm)
{
    g_auto(Shown) shown = { };
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-memslots' }");
    const QList *holders = qdict_get_qlist(qdict_get_qdict(rsp, "return"),
                                           "holders");

    show_flat_view(vm, &shown);
    g_assert_cmpuint(shown.all, ==, 0);
    vm->base_shared = shown.regions[false]->len;
    if (vm->kvm) {
        const QDict *kvm = qobject_to(QDict,
                                      qlist_entry_obj(qlist_first(holders)));

        vm->kvm_limit = qdict_get_int(kvm, "limit");
        vm->base_kvm = qdict_get_int(kvm, "used");
        vm->kvm_extra = vm->base_kvm - shown.kvm;
    }
    qobject_unref(rsp);
}

static void vm_boot(TestVM *vm)
{
    g_autofree char *args = vm_cmdline(vm);
    g_autofree char *path = vm_file(vm, "mon");
    g_autofree char *limit = g_strdup_printf("%u", vm->preload_limit);
    char *others = NULL;

    if (vm->preload_limit) {
        g_setenv("KVM_PRELOAD_NR_MEMSLOTS", limit, true);
        others = qhost_preload_begin(preload_path);
    }
    vm->qs = boot_pc("%s", args);
    if (vm->preload_limit) {
        qhost_preload_end(others);
        g_unsetenv("KVM_PRELOAD_NR_MEMSLOTS");
    }
    vm->qts = vm->qs->qts;
    vm->mon = qmonitor_new(path);
}

static void vm_shutdown(TestVM *vm)
{
    qmonitor_free(vm->mon);
    qtest_shutdown(vm->qs);
    vm->qs = NULL;
}

/*
 * Returns a machine that runs already, to which all is added while it does; or
 * one that does not run before vm_start(), with all that is added up to then
 * being on its command line.
 */
static TestVM *G_GNUC_PRINTF(3, 4)
vm_new(const TestCase *test, uint64_t device_memory_size, const char *fmt, ...)
{
    TestVM *vm = g_new0(TestVM, 1);
    g_autofree char *bios = NULL;
    va_list ap;

    vm->kvm = test->kvm;
    vm->preload_limit = test->kvm_limit;
    vm->cold = test->cold;
    vm->device_memory_size = device_memory_size;
    /* Not taken: QEMU leaves room for alignment. */
    vm->inner_addr = DEVICE_MEMORY_BASE + device_memory_size;
    vm->tmpdir = g_dir_make_tmp("memslot-account-test.XXXXXX", NULL);
    g_assert_nonnull(vm->tmpdir);
    qtest_add_abrt_handler(clean_up_on_abort, vm->tmpdir);
    bios = vm_file(vm, "bios");
    write_firmware(bios);

    vm->args = g_string_new(NULL);
    va_start(ap, fmt);
    g_string_append_vprintf(vm->args, fmt, ap);
    va_end(ap);
    vm->mems = g_ptr_array_new_with_free_func(mem_free);
    vm->backends = g_ptr_array_new();
    vm->killed = g_ptr_array_new();

    /* The model has to know now, the machine is not there before it starts. */
    vm_boot(vm);
    vm_measure(vm);
    if (vm->cold) {
        vm_shutdown(vm);
    }
    return vm;
}

/* All kinds of boot memory that is shared with vhost-user backends */
#define SHARED_BOOT_MEMORY                                                 \
    "-machine pc,nvdimm=on,memory-backend=boot0"                           \
    " -object memory-backend-memfd,id=boot0,size=128M"

/* A single piece of it, and none: for backends that can hold next to nothing */
#define ONE_SHARED_BOOT_MEMORY                                             \
    "-machine pc -object memory-backend-ram,id=private0,size=64M"          \
    " -object memory-backend-memfd,id=boot1,size=64M"                      \
    " -numa node,memdev=private0 -numa node,memdev=boot1"
#define NO_SHARED_BOOT_MEMORY "-machine pc"

static TestVM *vm_new_default(const TestCase *test, uint64_t device_memory_size)
{
    return vm_new(test, device_memory_size, SHARED_BOOT_MEMORY);
}

static unsigned int take_slot(bool *used, unsigned int first, unsigned int last)
{
    while (used[first]) {
        first++;
    }
    g_assert_cmpuint(first, <=, last);
    used[first] = true;
    return first;
}

static unsigned int take_pci_slot(TestVM *vm)
{
    return take_slot(vm->pci_slot_used, PCI_FIRST_SLOT, PCI_LAST_SLOT);
}

/* ---- Steps: do it, have the model do it, compare ---- */

/* Returns the error's description, or NULL on success. */
static char *try_device_add(TestVM *vm, const char *args)
{
    g_auto(GStrv) words = g_strsplit(args, ",", -1);
    QDict *dict = qdict_new();
    unsigned int i;

    qdict_put_str(dict, "driver", words[0]);
    for (i = 1; words[i]; i++) {
        g_auto(GStrv) pair = g_strsplit(words[i], "=", 2);

        qdict_put_str(dict, pair[0], pair[1]);
    }
    return try_qmp(vm, "{ 'execute': 'device_add', 'arguments': %p }", dict);
}

static void wait_device_deleted(TestVM *vm, const char *id)
{
    bool found = false;

    while (!found) {
        QDict *event = qtest_qmp_eventwait_ref(vm->qts, "DEVICE_DELETED");
        const QDict *data = qdict_get_qdict(event, "data");

        found = g_str_equal(qdict_get_try_str(data, "device") ?: "", id);
        qobject_unref(event);
    }
}

/* Messages that the backends got; the total of those that there are. */
static unsigned int vm_nr_messages(const TestVM *vm)
{
    const Backend *backend;
    unsigned int count = 0;

    for_each_backend(backend, vm) {
        count += qvhost_user_backend_nr_messages(backend->vu,
                                                 VHOST_USER_NONE);
    }
    return count;
}

static char *mem_device_args(const Mem *mem)
{
    const MemConfig *config = &mem->config;

    switch (config->kind) {
    case DIMM:
    case NVDIMM:
        return g_strdup_printf("%s,id=%s,memdev=%s,slot=%u,node=%u",
                               config->kind == DIMM ? "pc-dimm" : "nvdimm",
                               mem->id, mem->memdev, mem->pci_slot,
                               config->node);
    case PMEM:
        return g_strdup_printf("virtio-pmem-pci,id=%s,memdev=%s,addr=%x.0",
                               mem->id, mem->memdev, mem->pci_slot);
    case VMEM:
        return g_strdup_printf("virtio-mem-pci,id=%s,memdev=%s,addr=%x.0,"
                               "node=%u,multiple-memslots=%s,"
                               "unplugged-inaccessible=%s,requested-size=%"
                               PRIu64, mem->id, mem->memdev, mem->pci_slot,
                               config->node, on_off(config->multiple),
                               on_off(config->inaccessible),
                               config->requested_size);
    default:
        g_assert_not_reached();
    }
}

/* Find the virtio-mem device, as its driver would. */
static void mem_start(TestVM *vm, Mem *mem)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(mem->pci_slot, 0) };
    struct virtio_mem_config shown;

    if (mem->config.kind != VMEM) {
        return;
    }
    mem->pci = qvirtio_mem_pci_new(vm->qs->pcibus, &addr, &vm->qs->alloc);
    qvirtio_mem_pci_start(mem->pci);
    qvirtio_mem_read_config(&mem->pci->mem, &shown);
    g_assert_cmphex(shown.region_size, ==, mem->config.size);
    g_assert_cmphex(shown.usable_region_size, ==, mem->usable_size);
    g_assert_cmphex(shown.block_size, ==, mem->block_size);
    mem->addr = shown.addr;
}

static void release_slot(TestVM *vm, const Mem *mem)
{
    if (mem->config.kind == DIMM || mem->config.kind == NVDIMM) {
        vm->dimm_slot_used[mem->pci_slot] = false;
    } else {
        vm->pci_slot_used[mem->pci_slot] = false;
    }
}

static Mem *mem_new(TestVM *vm, const MemConfig *config)
{
    Mem *mem = g_new0(Mem, 1);

    mem->config = *config;
    mem->id = vm_vnew_id(vm, "mem");
    mem->memdev = g_strdup_printf("ram-%s", mem->id);
    mem->pci_slot = config->kind == DIMM || config->kind == NVDIMM ?
                    take_slot(vm->dimm_slot_used, 0, 63) : take_pci_slot(vm);
    mem->required = 1;
    mem->block_size = 2 * MiB;
    mem->requested_size = config->requested_size;
    mem->usable_size = usable_size_for(mem, config->requested_size);
    if (config->kind == VMEM) {
        mem->plugged = g_new0(bool, nr_blocks(mem));
        model_divide(vm, mem);
    }
    return mem;
}

static char *mem_object_args(const Mem *mem)
{
    return g_strdup_printf("%s,id=%s,size=%" PRIu64 ",reserve=off",
                           mem->config.shared ? "memory-backend-memfd"
                                              : "memory-backend-ram",
                           mem->memdev, mem->config.size);
}

/* Returns NULL if QEMU refuses the memory device, and should. */
static Mem *vm_add_mem(TestVM *vm, const MemConfig *config)
{
    Mem *mem = mem_new(vm, config);
    g_autofree char *object = mem_object_args(mem);
    g_autofree char *device = mem_device_args(mem);
    g_autofree char *expected = model_check_mem(vm, config->shared, mem->id);
    const unsigned int nr_messages = vm_nr_messages(vm);
    g_autofree char *error = NULL;

    if (!vm->qs) {
        g_assert_null(expected);
        g_string_append_printf(vm->args, " -object %s -device %s", object,
                               device);
        g_ptr_array_add(vm->mems, mem);
        return mem;
    }

    run_hmp(vm, "object_add %s", object);
    error = try_device_add(vm, device);
    g_assert_cmpstr(error, ==, expected);
    if (error || !config->shared) {
        g_assert_cmpuint(vm_nr_messages(vm), ==, nr_messages);
    }
    if (error) {
        run_hmp(vm, "object_del %s", mem->memdev);
        release_slot(vm, mem);
        mem_free(mem);
        mem = NULL;
    } else {
        g_ptr_array_add(vm->mems, mem);
        mem_start(vm, mem);
    }
    vm_check(vm);
    return mem;
}

static void vm_remove_dimm(TestVM *vm, Mem *mem)
{
    g_assert_cmpint(mem->config.kind, ==, DIMM);
    qtest_qmp_device_del_send(vm->qts, mem->id);
    vm_check(vm);
    qtest_outl(vm->qts, ACPI_MEMHP_ADDR + ACPI_MEMHP_SELECT, mem->pci_slot);
    qtest_outb(vm->qts, ACPI_MEMHP_ADDR + ACPI_MEMHP_CONTROL,
               ACPI_MEMHP_EJECT);
    wait_device_deleted(vm, mem->id);
    run_hmp(vm, "object_del %s", mem->memdev);
    release_slot(vm, mem);
    g_assert_true(g_ptr_array_remove(vm->mems, mem));
    vm_check(vm);
}

/* Play the driver, so that QEMU starts the backend. */
static void backend_start(TestVM *vm, Backend *backend)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(backend->pci_slot, 0) };
    QVirtioDevice *vdev;

    backend->pci = virtio_pci_new(vm->qs->pcibus, &addr);
    vdev = &backend->pci->vdev;
    qvirtio_pci_device_enable(backend->pci);
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                         ~(QVIRTIO_F_BAD_FEATURE |
                           1ull << VIRTIO_RING_F_INDIRECT_DESC |
                           1ull << VIRTIO_RING_F_EVENT_IDX));
    backend->vq = qvirtqueue_setup(vdev, &vm->qs->alloc, 0);
    qvirtio_set_driver_ok(vdev);
    qvhost_user_backend_wait(backend->vu, VHOST_USER_SET_VRING_ENABLE, 1);
    backend->started = true;
    vm_check(vm);
}

/* The device is left as it is. */
static void backend_free_driver(TestVM *vm, Backend *backend)
{
    if (backend->pci) {
        qvirtqueue_cleanup(backend->pci->vdev.bus, backend->vq,
                           &vm->qs->alloc);
        qvirtio_pci_destructor(&backend->pci->obj);
        g_free(backend->pci);
        backend->vq = NULL;
        backend->pci = NULL;
    }
}

static void backend_free(TestVM *vm, Backend *backend)
{
    backend_forget(backend);
    qvhost_user_backend_free(backend->vu);
    vm->pci_slot_used[backend->pci_slot] = false;
    g_free(backend->id);
    g_free(backend->device_id);
    g_free(backend);
}

static Backend *backend_new(TestVM *vm, unsigned int max_regions)
{
    Backend *backend = g_new0(Backend, 1);
    g_autofree char *path = NULL;

    backend->id = vm_vnew_id(vm, "backend");
    backend->device_id = g_strdup_printf("%s-blk", backend->id);
    path = vm_file(vm, backend->id);
    backend->vu = qvhost_user_backend_new(path, max_regions);
    backend->limit = MIN(qvhost_user_backend_max_regions(backend->vu),
                         VHOST_USER_MAX_REGIONS);
    backend->configurable = max_regions != QVHOST_USER_BASELINE;
    backend->pci_slot = take_pci_slot(vm);
    model_attach(vm, backend);
    return backend;
}

/* QEMU may keep the chardev for a moment after its device is gone. */
static void remove_chardev(TestVM *vm, const char *id)
{
    char *error;

    while ((error = try_qmp(vm, "{ 'execute': 'chardev-remove', 'arguments':"
                            " { 'id': %s } }", id))) {
        g_autofree char *expected = g_strdup_printf("Chardev '%s' is busy", id);

        g_assert_cmpstr(error, ==, expected);
        g_free(error);
        g_usleep(1000);
    }
}

static char *backend_chardev_args(const Backend *backend)
{
    return g_strdup_printf("socket,id=%s,path=%s,reconnect=1", backend->id,
                           qvhost_user_backend_path(backend->vu));
}

static char *backend_device_args(const Backend *backend)
{
    return g_strdup_printf("vhost-user-blk-pci,id=%s,chardev=%s,addr=%x.0,"
                           "queue-size=8", backend->device_id, backend->id,
                           backend->pci_slot);
}

/*
 * Returns NULL if QEMU refuses the backend, and should. It is not started
 * before the driver does.
 */
static Backend *vm_add_backend(TestVM *vm, unsigned int max_regions)
{
    Backend *backend = backend_new(vm, max_regions);
    g_autofree char *chardev = backend_chardev_args(backend);
    g_autofree char *device = backend_device_args(backend);
    g_autofree char *expected = model_check_backend(vm, backend);
    const unsigned int nr_messages = vm_nr_messages(vm);
    g_autofree char *error = NULL;

    if (!vm->qs) {
        g_assert_null(expected);
        g_string_append_printf(vm->args, " -chardev %s -device %s", chardev,
                               device);
        g_ptr_array_add(vm->backends, backend);
        return backend;
    }

    run_hmp(vm, "chardev-add %s", chardev);
    error = try_device_add(vm, device);
    g_assert_cmpstr(error, ==, expected);
    g_assert_cmpuint(vm_nr_messages(vm), ==, nr_messages);
    if (error) {
        remove_chardev(vm, backend->id);
        backend_free(vm, backend);
        backend = NULL;
    } else {
        g_ptr_array_add(vm->backends, backend);
    }
    vm_check(vm);
    return backend;
}

static Backend *vm_add_started_backend(TestVM *vm, unsigned int max_regions)
{
    Backend *backend = vm_add_backend(vm, max_regions);

    if (backend && vm->qs) {
        backend_start(vm, backend);
    }
    return backend;
}

static void vm_remove_backend(TestVM *vm, Backend *backend)
{
    qtest_qmp_device_del_send(vm->qts, backend->device_id);
    qtest_outl(vm->qts, ACPI_PCIHP_ADDR + ACPI_PCIHP_EJECT,
               1 << backend->pci_slot);
    wait_device_deleted(vm, backend->device_id);
    remove_chardev(vm, backend->id);
    g_assert_true(g_ptr_array_remove(vm->backends, backend));
    backend_free_driver(vm, backend);
    backend_free(vm, backend);
    vm_check(vm);
}

/* Returns how many of those that QEMU counts with came before; -1: not shown */
static int backend_position(TestVM *vm, const Backend *backend)
{
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-memslots' }");
    const QList *holders = qdict_get_qlist(qdict_get_qdict(rsp, "return"),
                                           "holders");
    const QListEntry *entry;
    int position = -1;

    /* The latest is shown first. */
    QLIST_FOREACH_ENTRY(holders, entry) {
        const QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        if (position >= 0) {
            position += g_str_equal(qdict_get_str(info, "type"), "vhost");
        } else if (!g_strcmp0(qdict_get_try_str(info, "id"), backend->id)) {
            position = 0;
        }
    }
    qobject_unref(rsp);
    return position;
}

static bool holder_is_shown(TestVM *vm, const Backend *backend)
{
    return backend_position(vm, backend) >= 0;
}

/* For one that is started: QEMU 7.2 does not notice with others. */
static void kill_backend(TestVM *vm, Backend *backend)
{
    g_assert_true(backend->started);
    qvhost_user_backend_close(backend->vu);
    while (holder_is_shown(vm, backend)) {
        g_usleep(1000);
    }
    g_assert_true(g_ptr_array_remove(vm->backends, backend));
    g_ptr_array_add(vm->killed, backend);
    backend_forget(backend);
    vm_check(vm);
}

/*
 * QEMU tries once a second. Backends that are awaited together may come in any
 * order.
 */
static void expect_backends(TestVM *vm, Backend **backends, unsigned int count)
{
    unsigned int i;

    for (i = 0; i < count; i++) {
        g_autofree char *error = NULL;

        model_attach(vm, backends[i]);
        error = model_check_backend(vm, backends[i]);
        g_assert_cmpstr(error, ==, NULL);
    }
    for (i = 0; i < count; i++) {
        qvhost_user_backend_wait(backends[i]->vu, VHOST_USER_SET_VRING_ENABLE,
                                 1);
        g_assert_true(g_ptr_array_remove(vm->killed, backends[i]));
        g_ptr_array_add(vm->backends, NULL);
    }
    for (i = 0; i < count; i++) {
        const int position = backend_position(vm, backends[i]);

        g_assert_cmpint(position, >=, 0);
        g_assert_cmpint(position, <, vm->backends->len);
        g_assert_null(g_ptr_array_index(vm->backends, position));
        g_ptr_array_index(vm->backends, position) = backends[i];
    }
    vm_check(vm);
}

static void restart_backends(TestVM *vm, Backend **backends, unsigned int count)
{
    unsigned int i;

    for (i = 0; i < count; i++) {
        qvhost_user_backend_open(backends[i]->vu);
    }
    expect_backends(vm, backends, count);
}

/* Does nothing if the machine runs already. */
static void vm_start(TestVM *vm)
{
    Backend *backend;
    Mem *mem;

    if (vm->qs) {
        return;
    }
    vm_boot(vm);
    for_each_mem(mem, vm) {
        mem_start(vm, mem);
    }
    for_each_backend(backend, vm) {
        /* One that would be shown nothing would not start. */
        if (vm_holder(vm, backend).used) {
            backend_start(vm, backend);
        }
    }
    vm_check(vm);
}

static void vm_stop(TestVM *vm)
{
    Backend *backend;

    while (vm->killed->len) {
        g_ptr_array_add(vm->backends,
                        g_ptr_array_remove_index(vm->killed, 0));
    }
    for_each_backend(backend, vm) {
        backend_free_driver(vm, backend);
    }
    g_ptr_array_unref(vm->mems);
    vm_shutdown(vm);
    for_each_backend(backend, vm) {
        backend_free(vm, backend);
    }
    g_ptr_array_unref(vm->backends);
    g_ptr_array_unref(vm->killed);
    qtest_remove_abrt_handler(vm->tmpdir);
    qhost_remove_dir(vm->tmpdir);
    g_free(vm->tmpdir);
    g_string_free(vm->args, true);
    g_free(vm);
}

static QVirtioMEM *mem_driver(Mem *mem)
{
    return &mem->pci->mem;
}

#define read_config(mem, field)                                            \
    qvirtio_config_readq(mem_driver(mem)->vdev,                            \
                         offsetof(struct virtio_mem_config, field))

static void check_sizes(Mem *mem)
{
    g_assert_cmphex(read_config(mem, plugged_size), ==, plugged_size(mem));
    g_assert_cmphex(read_config(mem, requested_size), ==, mem->requested_size);
    g_assert_cmphex(read_config(mem, usable_region_size), ==,
                    mem->usable_size);
}

static uint64_t count_plugged(const Mem *mem, uint64_t first, uint64_t count)
{
    uint64_t i, plugged = 0;

    for (i = first; i < first + count; i++) {
        plugged += mem->plugged[i];
    }
    return plugged;
}

static void set_plugged(Mem *mem, uint64_t first, uint64_t count, bool plugged)
{
    memset(mem->plugged + first, plugged, count * sizeof(*mem->plugged));
}

/* For blocks of the usable region only */
static uint16_t model_plug(const TestVM *vm, Mem *mem, uint64_t first,
                           uint64_t count)
{
    g_autofree char *error = NULL;
    unsigned int used;

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

static uint16_t plug(TestVM *vm, Mem *mem, uint64_t offset, uint64_t size)
{
    const uint64_t first = offset / mem->block_size;
    const uint64_t count = size / mem->block_size;
    const uint16_t expected = model_plug(vm, mem, first, count);
    const uint16_t resp = qvirtio_mem_plug(mem_driver(mem), mem->addr + offset,
                                           count);

    g_assert_cmpint(resp, ==, expected);
    check_sizes(mem);
    vm_check(vm);
    return resp;
}

static uint16_t unplug(TestVM *vm, Mem *mem, uint64_t offset, uint64_t size)
{
    const uint64_t first = offset / mem->block_size;
    const uint64_t count = size / mem->block_size;
    const uint16_t resp = qvirtio_mem_unplug(mem_driver(mem),
                                             mem->addr + offset, count);

    if (count_plugged(mem, first, count) == count) {
        g_assert_cmpint(resp, ==, VIRTIO_MEM_RESP_ACK);
        set_plugged(mem, first, count, false);
    } else {
        g_assert_cmpint(resp, ==, VIRTIO_MEM_RESP_ERROR);
    }
    check_sizes(mem);
    vm_check(vm);
    return resp;
}

static void unplug_all(TestVM *vm, Mem *mem)
{
    g_assert_cmpint(qvirtio_mem_unplug_all(mem_driver(mem)), ==,
                    VIRTIO_MEM_RESP_ACK);
    set_plugged(mem, 0, nr_blocks(mem), false);
    mem->usable_size = usable_size_for(mem, mem->requested_size);
    check_sizes(mem);
    vm_check(vm);
}

/* Returns why the usable region can't grow, or NULL if it does, or need not. */
static char *model_request_size(const TestVM *vm, Mem *mem, uint64_t size)
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

/* Returns false if QEMU refuses, and should. */
static bool request_size(TestVM *vm, Mem *mem, uint64_t size)
{
    g_autofree char *path = g_strdup_printf("/machine/peripheral/%s", mem->id);
    g_autofree char *reason = model_request_size(vm, mem, size);
    g_autofree char *expected =
        reason ? g_strdup_printf("'requested-size' cannot be set to 0x%" PRIx64
                                 " now: %s", size, reason) : NULL;
    g_autofree char *error =
        try_qmp(vm, "{ 'execute': 'qom-set', 'arguments': { 'path': %s,"
                " 'property': 'requested-size', 'value': %" PRIu64 " } }",
                path, size);

    g_assert_cmpstr(error, ==, expected);
    check_sizes(mem);
    vm_check(vm);
    return !error;
}

/* Somebody takes memslots, or gives them back. */
static void set_testdev_count(TestVM *vm, bool shared, unsigned int count)
{
    run_hmp(vm, "qom-set /machine/peripheral/testdev%u count %u", shared,
            count);
    vm->testdev_count[shared] = count;
    vm_check(vm);
}

/* ---- Tests ---- */

#define DIMM_SIZE (128 * MiB)

static const MemConfig dimm = { DIMM, .size = DIMM_SIZE };
static const MemConfig shared_dimm = { DIMM, .shared = true, DIMM_SIZE };

/* Returns a virtio-mem device with multiple memslots, mapped when plugged. */
static MemConfig multiple(bool shared, uint64_t size)
{
    return (MemConfig) {
        VMEM, shared, size, .multiple = true, .inaccessible = true,
    };
}

static MemConfig single(bool shared, uint64_t size)
{
    return (MemConfig) { VMEM, shared, size, .inaccessible = true };
}

#define assert_ack(expr)   g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_ACK)
#define assert_busy(expr)  g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_BUSY)

/*
 * The model is not only what QEMU is held to: it is checked here that it says
 * what it should, unless @reason is NULL.
 */
static void assert_refused(TestVM *vm, const MemConfig *config,
                           const char *reason)
{
    g_autofree char *expected = !reason ? NULL :
        g_strdup_printf("not enough memslots for memory device 'mem%u': %s",
                        vm->last_id, reason);
    g_autofree char *error = model_check_mem(vm, config->shared, "mem?");
    g_autofree char *id = g_strdup_printf("'mem%u'", vm->last_id);
    g_auto(GStrv) parts = NULL;
    g_autofree char *predicted = NULL;

    g_assert_nonnull(error);
    parts = g_strsplit(error, "'mem?'", 2);
    predicted = g_strjoinv(id, parts);
    if (expected) {
        g_assert_cmpstr(predicted, ==, expected);
    }
    g_assert_null(vm_add_mem(vm, config));
}

static void assert_backend_refused(TestVM *vm, unsigned int max_regions,
                                   unsigned int used, unsigned int reserved)
{
    Backend backend = { .limit = max_regions };
    Holder holder;

    model_attach(vm, &backend);
    holder = vm_holder(vm, &backend);
    g_assert_cmpuint(holder.used, ==, used);
    g_assert_cmpuint(holder.reserved, ==, reserved);
    g_assert_null(vm_add_backend(vm, max_regions));
}

/* All kinds of memory devices, beside each other */
static void test_mix(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 96 * GiB);
    const MemConfig on = multiple(false, 16 * GiB);
    const MemConfig on_shared = multiple(true, 16 * GiB);
    const MemConfig off = single(false, 4 * GiB);
    const MemConfig off_shared = single(true, 4 * GiB);
    const MemConfig nvdimm = { NVDIMM, .size = DIMM_SIZE };
    const MemConfig pmem = { PMEM, .shared = true, DIMM_SIZE };
    MemConfig accessible = multiple(true, 8 * GiB);
    Mem *mem[6], *dimms[2];
    Backend *backend;

    accessible.inaccessible = false;
    accessible.requested_size = 3 * GiB;

    mem[0] = vm_add_mem(vm, &on);
    mem[1] = vm_add_mem(vm, &on_shared);
    dimms[0] = vm_add_mem(vm, &dimm);
    mem[2] = vm_add_mem(vm, &off);
    mem[3] = vm_add_mem(vm, &off_shared);
    dimms[1] = vm_add_mem(vm, &shared_dimm);
    mem[4] = vm_add_mem(vm, &accessible);
    vm_add_mem(vm, &nvdimm);
    vm_add_mem(vm, &pmem);
    backend = vm_add_backend(vm, 64);
    mem[5] = vm_add_mem(vm, &on_shared);
    vm_start(vm);
    if (!vm->cold) {
        /* What it will hold is known before the driver starts it. */
        g_assert_false(qvhost_user_backend_started(backend->vu));
        backend_start(vm, backend);
    }

    /* The backend makes no difference, whether it comes before or after. */
    g_assert_true(backend->coalesced);
    g_assert_cmpuint(mem[0]->required, ==, 16);
    g_assert_cmpuint(mem[1]->required, ==, 16);
    g_assert_cmpuint(mem[4]->required, ==, 8);
    g_assert_cmpuint(mem[5]->required, ==, 16);
    g_assert_cmpuint(vm_required(vm, false), ==, 16 + 16 + 8 + 16 + 6);
    g_assert_cmpuint(vm_required(vm, true), ==, 16 + 8 + 16 + 3);
    /* Five that always are, and the usable region of the accessible one */
    g_assert_cmpuint(vm_used(vm, false), ==, 6 + 4);
    g_assert_cmpuint(vm_used(vm, true), ==, 3 + 4);

    request_size(vm, mem[0], 16 * GiB);
    request_size(vm, mem[1], 16 * GiB);
    request_size(vm, mem[3], 1 * GiB);
    request_size(vm, mem[5], 16 * GiB);
    assert_ack(plug(vm, mem[0], 1 * GiB - 2 * MiB, 4 * MiB));
    assert_ack(plug(vm, mem[1], 0, 16 * GiB));
    assert_ack(plug(vm, mem[3], 0, 1 * GiB));
    assert_ack(plug(vm, mem[4], 0, 1 * GiB));
    assert_ack(plug(vm, mem[5], 8 * GiB, 2 * MiB));
    g_assert_cmpuint(vm_used(vm, false), ==, 6 + 4 + 2 + 16 + 1);
    g_assert_true(request_size(vm, mem[4], 8 * GiB));
    g_assert_cmpuint(vm_used(vm, true), ==, 3 + 8 + 16 + 1);
    vm_remove_dimm(vm, dimms[1]);
    assert_ack(unplug(vm, mem[1], 2 * GiB, 14 * GiB));
    unplug_all(vm, mem[0]);
    vm_remove_dimm(vm, dimms[0]);
    request_size(vm, mem[4], 0);
    unplug_all(vm, mem[4]);
    g_assert_cmpuint(vm_used(vm, false), ==, 4 + 2 + 1);
    vm_remove_backend(vm, backend);
    vm_stop(vm);
}

static const struct {
    unsigned int max_regions;
    const char *boot_memory;
} backend_sizes[] = {
    { 1, NO_SHARED_BOOT_MEMORY },
    { 2, ONE_SHARED_BOOT_MEMORY },
    { QVHOST_USER_BASELINE, SHARED_BOOT_MEMORY },
    { 8, SHARED_BOOT_MEMORY },
    { 64, SHARED_BOOT_MEMORY },
    { 509, SHARED_BOOT_MEMORY },
};

typedef enum Order {
    BACKEND_FIRST,
    DEVICE_FIRST,
    /* the device, and the guest has plugged some of its memory */
    MEMORY_FIRST,
} Order;

static unsigned int nr_messages(const Backend *backend)
{
    return qvhost_user_backend_nr_messages(backend->vu, VHOST_USER_NONE);
}

/* Whether the backend can access the block at some offset */
static bool can_reach(const Backend *backend, const Mem *mem, uint64_t offset)
{
    return qvhost_user_backend_memory(backend->vu, mem->addr + offset,
                                      mem->block_size);
}

/* All but that at 3 GiB, of a device of 8 GiB with 8 memslots */
static void plug_others(TestVM *vm, Mem *mem)
{
    assert_ack(plug(vm, mem, 0, 2 * GiB));
    assert_ack(plug(vm, mem, 2 * GiB, 1 * GiB));
    assert_ack(plug(vm, mem, 3 * GiB + 2 * MiB, 5 * GiB - 2 * MiB));
}

static void unplug_others(TestVM *vm, Mem *mem)
{
    assert_ack(unplug(vm, mem, 3 * GiB + 2 * MiB, 5 * GiB - 2 * MiB));
    assert_ack(unplug(vm, mem, 0, 3 * GiB));
}

/*
 * A device of 8 GiB has one block at 3 GiB plugged. A backend that can hold
 * many memory regions is told about each memslot, and reaches no other memory.
 * One that can't reaches all of the device, and is told nothing.
 */
static void check_backend_memslots(TestVM *vm, Backend *backend, Mem *mem)
{
    const bool small = backend->limit < HISTORICAL_MAX;
    unsigned int messages = nr_messages(backend);

    g_assert_cmpint(backend->coalesced, ==, small);
    g_assert_cmpuint(mem_used(mem), ==, 1);
    g_assert_true(can_reach(backend, mem, 3 * GiB));
    g_assert_cmpint(can_reach(backend, mem, 0), ==, small);
    g_assert_cmpint(can_reach(backend, mem, 5 * GiB), ==, small);

    plug_others(vm, mem);
    g_assert_cmpuint(mem_used(mem), ==, 8);
    g_assert_cmpuint(nr_messages(backend) - messages, ==, small ? 0 : 7);
    g_assert_true(can_reach(backend, mem, 0));
    g_assert_true(can_reach(backend, mem, 8 * GiB - 2 * MiB));

    unplug_others(vm, mem);
    g_assert_cmpuint(nr_messages(backend) - messages, ==, small ? 0 : 14);
    messages = nr_messages(backend);
    unplug_all(vm, mem);
    g_assert_cmpuint(nr_messages(backend) - messages, ==, 1);
    g_assert_false(can_reach(backend, mem, 3 * GiB));
    assert_ack(plug(vm, mem, 3 * GiB, 2 * MiB));
    g_assert_cmpuint(nr_messages(backend) - messages, ==, 2);
}

/* A device has the same memslots with any backend as without it. */
static void check_backend_size(const TestCase *test, unsigned int i,
                               Order order)
{
    const MemConfig private_mem = multiple(false, 8 * GiB);
    const MemConfig shared_mem = multiple(true, 8 * GiB);
    const unsigned int max_regions = backend_sizes[i].max_regions;
    TestVM *vm = vm_new(test, 64 * GiB, "%s", backend_sizes[i].boot_memory);
    Backend *backend = NULL;
    Mem *mem[2];

    if (order == BACKEND_FIRST) {
        backend = vm_add_backend(vm, max_regions);
    }
    mem[0] = vm_add_mem(vm, &private_mem);
    mem[1] = vm_add_mem(vm, &shared_mem);
    if (order == DEVICE_FIRST) {
        backend = vm_add_backend(vm, max_regions);
    }
    vm_start(vm);
    g_assert_cmpuint(mem[0]->required, ==, 8);
    g_assert_cmpuint(mem[1]->required, ==, 8);

    request_size(vm, mem[0], 8 * GiB);
    request_size(vm, mem[1], 8 * GiB);
    assert_ack(plug(vm, mem[0], 0, 4 * GiB));
    assert_ack(plug(vm, mem[1], 3 * GiB, 2 * MiB));
    if (order == MEMORY_FIRST) {
        backend = vm_add_backend(vm, max_regions);
    }
    g_assert_nonnull(backend);
    if (!backend->started) {
        backend_start(vm, backend);
    }
    check_backend_memslots(vm, backend, mem[1]);
    assert_ack(plug(vm, mem[0], 4 * GiB, 4 * GiB));
    g_assert_false(can_reach(backend, mem[0], 0));

    /* What takes a second is done with the others all at once. */
    if (order == MEMORY_FIRST && max_regions && max_regions < 8) {
        kill_backend(vm, backend);
        plug_others(vm, mem[1]);
        assert_ack(unplug(vm, mem[0], 0, 4 * GiB));
        restart_backends(vm, &backend, 1);
        unplug_others(vm, mem[1]);
        check_backend_memslots(vm, backend, mem[1]);
    }
    vm_remove_backend(vm, backend);
    g_assert_cmpuint(mem_used(mem[1]), ==, 1);
    plug_others(vm, mem[1]);
    vm_stop(vm);
}

static void test_backend_first(const TestCase *test)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(backend_sizes); i++) {
        check_backend_size(test, i, BACKEND_FIRST);
    }
}

static void test_backend_later(const TestCase *test)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(backend_sizes); i++) {
        check_backend_size(test, i, DEVICE_FIRST);
    }
}

static void test_backend_last(const TestCase *test)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(backend_sizes); i++) {
        check_backend_size(test, i, MEMORY_FIRST);
    }
}

/* Returns how many messages a backend gets when memory comes and goes. */
static unsigned int count_messages(TestVM *vm, const Backend *backend, Mem *mem)
{
    const unsigned int messages = nr_messages(backend);
    const uint64_t step = MIN(mem->config.size, 512 * MiB);
    uint64_t offset;

    request_size(vm, mem, mem->config.size);
    for (offset = 0; offset < mem->config.size; offset += step) {
        assert_ack(plug(vm, mem, offset, step));
    }
    for (offset = 0; offset < mem->config.size; offset += step) {
        assert_ack(unplug(vm, mem, offset, step));
    }
    return nr_messages(backend) - messages;
}

/* Small backends are not told more than without multiple memslots. */
static void test_messages(const TestCase *test)
{
    static const unsigned int small_sizes[] = { QVHOST_USER_BASELINE, 8, 508 };
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig many = multiple(true, 16 * GiB);
    const MemConfig one = multiple(true, 1 * GiB);
    const MemConfig off = single(true, 16 * GiB);
    Backend *backend;
    unsigned int i;
    Mem *mem[3];

    mem[0] = vm_add_mem(vm, &many);
    mem[1] = vm_add_mem(vm, &one);
    mem[2] = vm_add_mem(vm, &off);
    for (i = 0; i < ARRAY_SIZE(small_sizes); i++) {
        vm_add_started_backend(vm, small_sizes[i]);
    }
    vm_add_started_backend(vm, 509);
    vm_start(vm);
    g_assert_cmpuint(mem[0]->required, ==, 16);
    g_assert_cmpuint(mem[1]->required, ==, 1);
    for (i = 0; i < vm->backends->len; i++) {
        backend = g_ptr_array_index(vm->backends, i);
        g_assert_cmpuint(count_messages(vm, backend, mem[2]), ==, 0);
        /* Once all of it is added, and removed */
        g_assert_cmpuint(count_messages(vm, backend, mem[1]), ==, 2);
        g_assert_cmpuint(count_messages(vm, backend, mem[0]), ==,
                         backend->coalesced ? 2 : 32);
    }
    vm_stop(vm);
}

/* A backend that does not see memory is not in its way. */
static void test_kinds(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig private_mem = multiple(false, 16 * GiB);
    const unsigned int room = 8 - vm->base_shared;
    g_autofree char *reason =
        g_strdup_printf("vhost backend '%s' can hold 8, of which 8 are used and"
                        " 0 are reserved for other memory devices, but 1 is"
                        " needed", "backend0");
    Mem *first = NULL, *mem;
    unsigned int i;

    vm_add_started_backend(vm, QVHOST_USER_BASELINE);
    for (i = 0; i < room; i++) {
        mem = vm_add_mem(vm, &shared_dimm);
        first = first ?: mem;
    }
    vm_start(vm);

    assert_refused(vm, &shared_dimm, reason);
    for (i = 0; i < 10; i++) {
        vm_add_mem(vm, &dimm);
    }
    mem = vm_add_mem(vm, &private_mem);
    g_assert_cmpuint(mem->required, ==, 16);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 16 * GiB));

    assert_refused(vm, &shared_dimm, reason);
    vm_remove_dimm(vm, first);
    g_assert_nonnull(vm_add_mem(vm, &shared_dimm));
    assert_refused(vm, &shared_dimm, reason);
    vm_stop(vm);
}

/* What was promised to others counts, and who comes first is served first. */
static void test_reservations(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 192 * GiB);
    const MemConfig vmem = multiple(true, 40 * GiB);
    const unsigned int room = 10;
    g_autofree char *reason = NULL;
    unsigned int i, taken;
    Mem *mem, *last = NULL;
    Backend *large;

    mem = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem->required, ==, 40);
    large = vm_add_started_backend(vm, 509);
    vm_start(vm);
    g_assert_false(large->coalesced);
    taken = 509 - vm->base_shared - 40 - room;
    set_testdev_count(vm, true, taken);
    for (i = 0; i < room; i++) {
        last = vm_add_mem(vm, &shared_dimm);
    }

    reason = g_strdup_printf("vhost backend '%s' can hold 509, of which 469 are"
                             " used and 40 are reserved for other memory"
                             " devices, but 1 is needed", large->id);
    assert_refused(vm, &shared_dimm, reason);
    assert_refused(vm, &vmem, reason);

    /* What is mapped is not reserved any more: the sum stays the same. */
    request_size(vm, mem, 40 * GiB);
    assert_ack(plug(vm, mem, 0, 38 * GiB));
    g_free(reason);
    reason = g_strdup_printf("vhost backend '%s' can hold 509, of which 507 are"
                             " used and 2 are reserved for other memory"
                             " devices, but 1 is needed", large->id);
    assert_refused(vm, &shared_dimm, reason);

    /* Room by way of a memory device, and by way of the backend */
    vm_remove_dimm(vm, last);
    last = vm_add_mem(vm, &shared_dimm);
    assert_refused(vm, &shared_dimm, reason);
    assert_ack(plug(vm, mem, 38 * GiB, 2 * GiB));
    unplug_all(vm, mem);
    assert_backend_refused(vm, 64, vm->base_shared + taken + room, 1);
    vm_remove_backend(vm, large);
    g_assert_nonnull(vm_add_mem(vm, &shared_dimm));
    set_testdev_count(vm, true, 0);

    /* One that is shown memory devices as a whole has to hold these only. */
    mem = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem->required, ==, 40);
    assert_backend_refused(vm, 8, vm->base_shared + room + 1, 2);
    vm_add_started_backend(vm, vm->base_shared + room + 1 + 2);
    assert_refused(vm, &shared_dimm, NULL);
    vm_remove_dimm(vm, last);
    mem = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem->required, ==, 40);
    assert_refused(vm, &vmem, NULL);
    vm_stop(vm);
}

/* A backend is refused only if it could not hold what QEMU must show it. */
static void test_backend_refused(const TestCase *test)
{
    TestVM *vm = vm_new(test, 64 * GiB, ONE_SHARED_BOOT_MEMORY);
    const MemConfig private_mem = multiple(false, 8 * GiB);
    const MemConfig shared_mem = multiple(true, 8 * GiB);
    g_autofree char *reason = NULL;
    Backend *backend;
    Mem *mem[3];

    g_assert_cmpuint(vm->base_shared, ==, 1);
    backend = vm_add_started_backend(vm, 1);
    mem[0] = vm_add_mem(vm, &private_mem);
    vm_start(vm);
    g_assert_cmpuint(mem[0]->required, ==, 8);
    reason = g_strdup_printf("vhost backend '%s' can hold 1, of which 1 are"
                             " used and 0 are reserved for other memory"
                             " devices, but 1 is needed", backend->id);
    assert_refused(vm, &shared_mem, reason);
    assert_refused(vm, &shared_dimm, reason);

    /* It works once the backend is gone, and that one can't come back. */
    vm_remove_backend(vm, backend);
    mem[1] = vm_add_mem(vm, &shared_mem);
    g_assert_cmpuint(mem[1]->required, ==, 8);
    assert_backend_refused(vm, 1, 1, 1);
    request_size(vm, mem[1], 8 * GiB);
    assert_ack(plug(vm, mem[1], 0, 8 * GiB));
    assert_backend_refused(vm, 1, 2, 0);

    backend = vm_add_started_backend(vm, 2);
    g_free(reason);
    reason = g_strdup_printf("vhost backend '%s' can hold 2, of which 2 are"
                             " used and 0 are reserved for other memory"
                             " devices, but 1 is needed", backend->id);
    assert_refused(vm, &shared_dimm, reason);
    unplug_all(vm, mem[1]);
    g_free(reason);
    reason = g_strdup_printf("vhost backend '%s' can hold 2, of which 1 are"
                             " used and 1 are reserved for other memory"
                             " devices, but 1 is needed", backend->id);
    assert_refused(vm, &shared_dimm, reason);
    vm_remove_backend(vm, backend);
    mem[2] = vm_add_mem(vm, &shared_dimm);
    assert_backend_refused(vm, 2, 2, 1);
    vm_remove_dimm(vm, mem[2]);
    g_assert_nonnull(vm_add_started_backend(vm, 2));
    assert_ack(plug(vm, mem[1], 0, 8 * GiB));
    vm_stop(vm);
}

/* Which view a backend gets is decided anew only when it comes anew. */
static void test_mixed_backends(const TestCase *test)
{
    static const unsigned int sizes[] = {
        QVHOST_USER_BASELINE, 8, 32, 508, 509, 600,
    };
    TestVM *vm = vm_new_default(test, 128 * GiB);
    const MemConfig vmem = multiple(true, 40 * GiB);
    Backend *backends[ARRAY_SIZE(sizes)], *full;
    unsigned int i, messages;
    Mem *mem[2];

    mem[0] = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem[0]->required, ==, 40);
    request_size(vm, mem[0], 40 * GiB);
    assert_ack(plug(vm, mem[0], 0, 2 * GiB));

    /* QEMU hands out no more than 512: 500 and 40 don't fit. */
    set_testdev_count(vm, true, 500);
    full = vm_add_started_backend(vm, 600);
    g_assert_true(full->coalesced);
    assert_ack(plug(vm, mem[0], 2 * GiB, 38 * GiB));
    set_testdev_count(vm, true, 0);
    g_assert_true(full->coalesced);
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        backends[i] = vm_add_started_backend(vm, sizes[i]);
        g_assert_cmpint(backends[i]->coalesced, ==, sizes[i] < 509);
    }
    mem[1] = vm_add_mem(vm, &vmem);
    g_assert_cmpuint(mem[1]->required, ==, 40);
    request_size(vm, mem[1], 40 * GiB);
    assert_ack(plug(vm, mem[1], 20 * GiB, 2 * GiB));
    assert_ack(unplug(vm, mem[0], 0, 39 * GiB));
    assert_ack(plug(vm, mem[0], 0, 10 * GiB));

    /* The last small one leaves, and nobody else hears of it. */
    messages = nr_messages(full);
    for (i = 0; i < ARRAY_SIZE(sizes) && sizes[i] < 509; i++) {
        vm_remove_backend(vm, backends[i]);
    }
    g_assert_cmpuint(nr_messages(full), ==, messages);
    g_assert_cmpuint(mem_used(mem[0]), ==, 11);

    kill_backend(vm, full);
    assert_ack(plug(vm, mem[1], 0, 2 * GiB));
    restart_backends(vm, &full, 1);
    g_assert_false(full->coalesced);
    unplug_all(vm, mem[0]);

    /* And the other way round */
    kill_backend(vm, full);
    vm_remove_backend(vm, backends[ARRAY_SIZE(sizes) - 1]);
    vm_remove_backend(vm, backends[ARRAY_SIZE(sizes) - 2]);
    assert_ack(plug(vm, mem[0], 0, 5 * GiB));
    set_testdev_count(vm, true, 500);
    restart_backends(vm, &full, 1);
    g_assert_true(full->coalesced);
    unplug_all(vm, mem[0]);
    assert_ack(plug(vm, mem[0], 0, 40 * GiB));
    vm_stop(vm);
}

/* Devices share by size what one device alone could have. */
static void test_soft_limit(const TestCase *test)
{
    static const struct {
        uint64_t size;
        unsigned int memslots;
    } devices[] = {
        { 320 * GiB, 126 },
        { 64 * GiB, 25 },
        { 128 * GiB, 50 },
        { 64 * GiB, 25 },
        { 60 * GiB, 25 },
    };
    TestVM *vm = vm_new_default(test, 648 * GiB);
    const MemConfig last = multiple(true, 2 * GiB);
    unsigned int i;
    Mem *mem;

    for (i = 0; i < ARRAY_SIZE(devices); i++) {
        const MemConfig config = multiple(i % 2, devices[i].size);

        mem = vm_add_mem(vm, &config);
        g_assert_cmpuint(mem->required, ==, devices[i].memslots);
    }
    for (i = vm_required(vm, false); i < SOFT_LIMIT; i++) {
        vm_add_mem(vm, &dimm);
    }

    /* Nothing is left that could be shared, but one is for everybody. */
    mem = vm_add_mem(vm, &last);
    g_assert_cmpuint(mem->required, ==, 1);
    vm_add_mem(vm, &dimm);
    g_assert_cmpuint(vm_required(vm, false), ==, SOFT_LIMIT + 2);
    vm_start(vm);
    vm_stop(vm);
}

/* Memory on all nodes counts. */
static void test_numa(const TestCase *test)
{
    TestVM *vm = vm_new(test, 64 * GiB, "-machine pc"
                        " -object memory-backend-memfd,id=boot0,size=64M"
                        " -object memory-backend-memfd,id=boot1,size=64M"
                        " -numa node,memdev=boot0 -numa node,memdev=boot1"
                        " -numa node");
    MemConfig config = multiple(true, 16 * GiB);
    unsigned int node;
    Mem *mems[3];

    for (node = 0; node < 3; node++) {
        MemConfig dimm_config = shared_dimm;

        dimm_config.node = node;
        vm_add_mem(vm, &dimm_config);
        config.node = node;
        mems[node] = vm_add_mem(vm, &config);
        g_assert_cmpuint(mems[node]->required, ==, 16);
    }
    vm_add_started_backend(vm, 64);
    vm_start(vm);
    for (node = 0; node < 3; node++) {
        request_size(vm, mems[node], 16 * GiB);
        assert_ack(plug(vm, mems[node], 0, 16 * GiB));
    }
    vm_stop(vm);
}

static unsigned int vm_nr_warnings(const TestVM *vm, const char *text)
{
    g_autofree char *path = vm_file(vm, "stderr");
    g_autofree char *output = NULL;
    unsigned int count = 0;
    const char *pos;

    g_assert_true(g_file_get_contents(path, &output, NULL, NULL));
    for (pos = strstr(output, text); pos; pos = strstr(pos + 1, text)) {
        count++;
    }
    return count;
}

#define TAKEN_HINT "'info memslots' shows who holds how many; PCI devices" \
                   " with many BARs may have taken what is missing.\n"

/* A promise does not keep those away that do not ask. */
static void test_taken(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 32 * GiB);
    const char *warning = "warning: virtio-mem device 'mem0': memory cannot be"
                          " plugged now:";
    g_autofree char *why = NULL;
    unsigned int taken, nr_messages;
    Backend *backend;
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    g_assert_cmpuint(mem->required, ==, 32);
    backend = vm_add_started_backend(vm, 509);
    vm_start(vm);
    request_size(vm, mem, 32 * GiB);
    assert_ack(plug(vm, mem, 0, 1 * GiB + 2 * MiB));

    /* Two are left, where 30 have been promised. */
    taken = 509 - vm->base_shared - 2 - 2;
    set_testdev_count(vm, true, taken);
    nr_messages = vm_nr_messages(vm);
    assert_busy(plug(vm, mem, 2 * GiB, 3 * GiB));
    assert_busy(plug(vm, mem, 2 * GiB, 3 * GiB));
    assert_busy(plug(vm, mem, 2 * GiB, 30 * GiB));
    g_assert_cmpuint(vm_nr_messages(vm), ==, nr_messages);
    why = g_strdup_printf("%s vhost backend '%s' can hold 509 memslots, of"
                          " which 507 are used, but 3 more are needed\n"
                          TAKEN_HINT, warning, backend->id);
    g_assert_cmpuint(vm_nr_warnings(vm, why), ==, 1);
    g_assert_cmpuint(vm_nr_warnings(vm, warning), ==, 1);

    /* Less will do, and so will memslots that are mapped already. */
    assert_ack(plug(vm, mem, 1 * GiB + 2 * MiB, 1 * GiB - 2 * MiB));
    assert_ack(plug(vm, mem, 2 * GiB, 2 * GiB));
    assert_busy(plug(vm, mem, 4 * GiB, 2 * MiB));
    g_assert_cmpuint(vm_nr_warnings(vm, warning), ==, 2);
    assert_ack(unplug(vm, mem, 0, 1 * GiB));
    assert_ack(plug(vm, mem, 4 * GiB, 2 * MiB));

    set_testdev_count(vm, true, 0);
    assert_ack(plug(vm, mem, 5 * GiB, 27 * GiB));
    set_testdev_count(vm, true, 10);
    unplug_all(vm, mem);
    vm_stop(vm);
}

/* Of one that is shown the device as a whole, there is only one to be taken. */
static void test_taken_coalesced(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 32 * GiB);
    const char *warning = "warning: virtio-mem device 'mem0': memory cannot be"
                          " plugged now:";
    g_autofree char *why = NULL;
    unsigned int messages;
    Backend *backend;
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    backend = vm_add_started_backend(vm, 8);
    vm_start(vm);
    request_size(vm, mem, 32 * GiB);
    set_testdev_count(vm, true, 8 - vm->base_shared);
    messages = nr_messages(backend);
    assert_busy(plug(vm, mem, 2 * GiB, 3 * GiB));
    assert_busy(plug(vm, mem, 2 * GiB, 2 * MiB));
    g_assert_cmpuint(nr_messages(backend), ==, messages);
    why = g_strdup_printf("%s vhost backend '%s' can hold 8 memslots, of which"
                          " 8 are used, but 1 more is needed\n" TAKEN_HINT,
                          warning, backend->id);
    g_assert_cmpuint(vm_nr_warnings(vm, why), ==, 1);
    g_assert_cmpuint(vm_nr_warnings(vm, warning), ==, 1);

    set_testdev_count(vm, true, 8 - vm->base_shared - 1);
    assert_ack(plug(vm, mem, 2 * GiB, 2 * MiB));
    assert_ack(plug(vm, mem, 0, 2 * GiB));
    assert_ack(plug(vm, mem, 3 * GiB, 29 * GiB));
    assert_ack(unplug(vm, mem, 2 * GiB, 2 * MiB));
    unplug_all(vm, mem);
    vm_stop(vm);
}


/* Memory that a guest may read is mapped with the usable region. */
static void test_taken_accessible(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    MemConfig config = multiple(true, 32 * GiB);
    Mem *mem;

    config.inaccessible = false;
    config.requested_size = 1 * GiB;
    mem = vm_add_mem(vm, &config);
    vm_add_started_backend(vm, 509);
    vm_start(vm);
    g_assert_cmpuint(mem_used(mem), ==, 2);

    set_testdev_count(vm, true, 509 - vm->base_shared - 2 - 2);
    g_assert_false(request_size(vm, mem, 4 * GiB));
    g_assert_false(request_size(vm, mem, 32 * GiB));
    assert_ack(plug(vm, mem, 0, 1 * GiB));
    g_assert_true(request_size(vm, mem, 3 * GiB));
    g_assert_cmpuint(mem_used(mem), ==, 4);
    g_assert_true(request_size(vm, mem, 0));
    g_assert_false(request_size(vm, mem, 8 * GiB));
    unplug_all(vm, mem);
    g_assert_cmpuint(mem_used(mem), ==, 0);

    set_testdev_count(vm, true, 0);
    g_assert_true(request_size(vm, mem, 32 * GiB));
    assert_ack(plug(vm, mem, 0, 32 * GiB));
    vm_stop(vm);
}

/* What nobody asked for can be more than can be handed to any backend. */
static void test_too_many_regions(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const unsigned int count = VHOST_USER_MAX_REGIONS + 1 - vm->base_shared;
    const char *error = "vhost-user: 513 memory regions, at most 512 can be"
                        " handed to a backend\n"
                        "vhost_set_mem_table failed: No buffer space available"
                        " (105)\n";
    g_autofree char *command =
        g_strdup_printf("qom-set /machine/peripheral/testdev1 count %u", count);
    g_autofree char *output = NULL;

    vm_add_started_backend(vm, 600);
    vm_start(vm);
    set_testdev_count(vm, true, count - 1);
    output = qmonitor_hmp(vm->mon, command);
    g_assert_cmpstr(output, ==, error);
    set_testdev_count(vm, true, count - 1);
    set_testdev_count(vm, true, 0);
    vm_stop(vm);
}

/* What is within device memory counts as mapped by a memory device. */
static void test_used_over_required(const TestCase *test)
{
    const char *warning = "warning: more memslots are mapped into the device"
                          " memory than memory devices asked for: memory region"
                          " 'memslot-testdev'\n";
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(false, 8 * GiB);
    g_autofree char *output = NULL;
    Mem *mem;

    vm_add_mem(vm, &dimm);
    vm_add_mem(vm, &shared_dimm);
    mem = vm_add_mem(vm, &config);
    vm_add_started_backend(vm, 32);
    vm_start(vm);
    request_size(vm, mem, 8 * GiB);
    g_assert_cmpuint(vm_reserved(vm, false), ==, 8);

    /* Warnings go to the monitor that caused them. */
    output = qmonitor_hmp(vm->mon,
                          "qom-set /machine/peripheral/inner count 5");
    g_assert_cmpstr(output, ==, warning);
    vm->inner_count = 5;
    vm_check(vm);
    run_hmp(vm, "qom-set /machine/peripheral/inner count 0");
    vm->inner_count = 0;
    vm_check(vm);
    run_hmp(vm, "qom-set /machine/peripheral/inner count 6");
    vm->inner_count = 6;
    vm_check(vm);

    /* It makes nothing go wrong that would work without. */
    g_assert_cmpuint(vm_reserved(vm, false), ==, 8);
    vm_add_mem(vm, &dimm);
    assert_ack(plug(vm, mem, 0, 2 * GiB));
    run_hmp(vm, "qom-set /machine/peripheral/inner count 0");
    vm->inner_count = 0;
    vm_check(vm);
    vm_stop(vm);
}

/* What is refused on the command line is refused with the same words. */
static void check_start_fails(TestVM *vm, const char *expected)
{
    g_autofree char *args = vm_cmdline(vm);
    g_autofree char *command =
        /* The last device has QEMU not run for ever if it should start. */
        g_strdup_printf("exec %s -display none %s %s -device none-of-these",
                        g_getenv("QTEST_QEMU_BINARY"),
                        vm->kvm ? "" : "-accel qtest", args);
    char *argv[] = { (char *)"/bin/sh", (char *)"-c", command, NULL };
    g_autoptr(GError) error = NULL;
    int status;

    g_assert_true(g_spawn_sync(NULL, argv, NULL, 0, NULL, NULL, NULL, NULL,
                               &status, &error));
    g_assert_no_error(error);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, EXIT_FAILURE);
    g_assert_cmpuint(vm_nr_warnings(vm, expected), >=, 1);
}

static void test_cold_refusals(const TestCase *test)
{
    const TestCase cold = { .kvm = test->kvm, .cold = true };
    TestVM *vm = vm_new_default(&cold, 64 * GiB);
    const MemConfig vmem = multiple(true, 16 * GiB);
    g_autofree char *accepted = NULL, *error = NULL, *expected = NULL;
    g_autofree char *object = NULL, *chardev = NULL, *device = NULL;
    Backend *backend;
    unsigned int i;
    Mem *mem;

    /* A memory device */
    vm_add_backend(vm, 8);
    for (i = vm->base_shared; i < 8; i++) {
        vm_add_mem(vm, &shared_dimm);
    }
    accepted = g_strdup(vm->args->str);
    mem = mem_new(vm, &shared_dimm);
    object = mem_object_args(mem);
    device = mem_device_args(mem);
    error = model_check_mem(vm, true, mem->id);
    g_assert_nonnull(error);
    expected = g_strconcat(error, "\nUse fewer, larger memory devices, or a"
                           " vhost backend that can hold more memory"
                           " regions.\n", NULL);
    g_string_append_printf(vm->args, " -object %s -device %s", object, device);
    check_start_fails(vm, expected);
    mem_free(mem);

    /* All but that one are fine. */
    g_string_assign(vm->args, accepted);
    vm_start(vm);
    vm_stop(vm);

    /* A vhost backend */
    vm = vm_new_default(&cold, 64 * GiB);
    vm_add_mem(vm, &vmem);
    for (i = vm->base_shared; i < 8; i++) {
        vm_add_mem(vm, &shared_dimm);
    }
    backend = backend_new(vm, 8);
    chardev = backend_chardev_args(backend);
    g_free(device);
    device = backend_device_args(backend);
    g_free(error);
    error = model_check_backend(vm, backend);
    g_assert_nonnull(error);
    g_free(expected);
    expected = g_strconcat(error, "\nUse a vhost backend that can hold more"
                           " memory regions, or fewer memory devices.\n", NULL);
    g_free(accepted);
    accepted = g_strdup(vm->args->str);
    g_string_append_printf(vm->args, " -chardev %s -device %s", chardev,
                           device);
    check_start_fails(vm, expected);
    backend_free(vm, backend);

    g_string_assign(vm->args, accepted);
    vm_start(vm);
    vm_stop(vm);
}

static char *migration_status(TestVM *vm)
{
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-migrate' }");
    char *status = g_strdup(qdict_get_try_str(qdict_get_qdict(rsp, "return"),
                                              "status") ?: "");

    qobject_unref(rsp);
    return status;
}

static void wait_migration(TestVM *vm, const char *expected)
{
    g_autofree char *status = migration_status(vm);

    while (!g_str_equal(status, expected)) {
        g_assert_cmpstr(status, !=, "failed");
        g_usleep(1000);
        g_free(status);
        status = migration_status(vm);
    }
}

/* Bytes that were sent as they are, not as a page of zeroes */
static uint64_t migration_sent(TestVM *vm)
{
    QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-migrate' }");
    const QDict *info = qdict_get_qdict(rsp, "return");
    uint64_t sent = 0;

    if (qdict_haskey(info, "ram")) {
        sent = qdict_get_int(qdict_get_qdict(info, "ram"), "normal-bytes");
    }
    qobject_unref(rsp);
    return sent;
}

/* A migration counts as completed a little earlier than the VM is stopped. */
static void wait_postmigrate(TestVM *vm)
{
    bool done = false;

    while (!done) {
        QDict *rsp = qmonitor_qmp(vm->mon, "{ 'execute': 'query-status' }");
        const QDict *info = qdict_get_qdict(rsp, "return");

        done = g_str_equal(qdict_get_str(info, "status"), "postmigrate");
        qobject_unref(rsp);
        g_usleep(1000);
    }
}

/* Being watched by a vhost backend is no reason not to migrate. */
static void test_migration(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    Backend *backend;
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    backend = vm_add_started_backend(vm, 32);
    vm_start(vm);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 1 * GiB - 2 * MiB, 4 * MiB));
    assert_ack(plug(vm, mem, 8 * GiB, 2 * MiB));

    qmp_succeeds(vm, "{ 'execute': 'migrate', 'arguments':"
                 " { 'uri': 'exec:cat > /dev/null' } }");
    wait_migration(vm, "completed");
    g_assert_cmpuint(qvhost_user_backend_nr_messages(backend->vu,
                                                     VHOST_USER_SET_LOG_BASE),
                     >=, 1);

    /* The VM is stopped, but as the migration could have failed: */
    wait_postmigrate(vm);
    qmp_succeeds(vm, "{ 'execute': 'cont' }");
    qvhost_user_backend_wait(backend->vu, VHOST_USER_SET_VRING_ENABLE, 3);
    backend_forget(backend);
    vm_check(vm);
    unplug_all(vm, mem);
    vm_stop(vm);
}

/* A limit has it not complete before there is none any more. */
static void start_migration(TestVM *vm, const char *uri, bool slowly)
{
    qmp_succeeds(vm, "{ 'execute': 'migrate-set-parameters', 'arguments':"
                 " { 'max-bandwidth': %u } }", slowly ? 1000000 : 0);
    qmp_succeeds(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
                 uri);
}

/* A machine with the same devices, to migrate to; does not run before */
static TestVM *migration_target(const TestCase *test, TestVM *source,
                                const char *uri)
{
    const TestCase cold = { .kvm = test->kvm, .cold = true };
    TestVM *vm = vm_new_default(&cold, source->device_memory_size);
    Backend *backend;
    Mem *mem;

    for_each_mem(mem, source) {
        vm_add_mem(vm, &mem->config);
    }
    for_each_backend(backend, source) {
        vm_add_backend(vm, backend->configurable ? backend->limit :
                                                   QVHOST_USER_BASELINE);
    }
    g_string_append_printf(vm->args, " -incoming %s", uri);
    vm_boot(vm);
    return vm;
}

/* It has what the source had, with another QEMU and other backends. */
static void model_migrated(TestVM *vm, const TestVM *source)
{
    unsigned int i;

    for (i = 0; i < vm->mems->len; i++) {
        Mem *mem = g_ptr_array_index(vm->mems, i);
        const Mem *from = g_ptr_array_index(source->mems, i);

        mem->addr = from->addr;
        mem->requested_size = from->requested_size;
        mem->usable_size = from->usable_size;
        memcpy(mem->plugged, from->plugged,
               nr_blocks(mem) * sizeof(*mem->plugged));
    }
    for (i = 0; i < vm->backends->len; i++) {
        Backend *backend = g_ptr_array_index(vm->backends, i);

        qvhost_user_backend_wait(backend->vu, VHOST_USER_SET_VRING_ENABLE, 1);
        backend->started = true;
    }
}

/* Starts logging of dirty pages, and stops it again. */
static uint64_t measure_log(TestVM *vm, Backend *backend)
{
    const unsigned int count =
        qvhost_user_backend_nr_messages(backend->vu, VHOST_USER_SET_LOG_BASE);

    start_migration(vm, "exec:cat > /dev/null", true);
    qvhost_user_backend_wait(backend->vu, VHOST_USER_SET_LOG_BASE, count + 1);
    qmp_succeeds(vm, "{ 'execute': 'migrate_cancel' }");
    wait_migration(vm, "cancelled");
    backend_forget(backend);
    vm_check(vm);
    return qvhost_user_backend_log_size(backend->vu);
}

/* Whether the log has a bit for each page up to the end of the memory */
static bool log_covers(uint64_t log_size, const Mem *mem, uint64_t end)
{
    return log_size * 8 * 4 * KiB >= mem->addr + end;
}

static void assert_content(TestVM *vm, uint64_t addr, uint8_t expected)
{
    uint8_t content[4 * KiB];
    unsigned int i;

    qtest_memread(vm->qts, addr, content, sizeof(content));
    for (i = 0; i < sizeof(content); i++) {
        g_assert_cmphex(content[i], ==, expected);
    }
}

/* What a backend writes while the machine migrates gets to the target. */
static void check_migration_log(const TestCase *test, unsigned int max_regions)
{
    const uint64_t offset = 9 * GiB, size = 16 * GiB, step = 64 * KiB;
    const MemConfig config = multiple(true, size);
    TestVM *vm = vm_new_default(test, 64 * GiB), *target;
    g_autofree char *socket = vm_file(vm, "migration");
    g_autofree char *uri = g_strdup_printf("unix:%s", socket);
    uint64_t addr, log_size, i;
    Backend *backend;
    void *memory[2];
    Mem *mem;

    mem = vm_add_mem(vm, &config);
    backend = vm_add_started_backend(vm, max_regions);
    vm_start(vm);
    request_size(vm, mem, size);

    /* Wherever memory is plugged, the log is for all that it can reach. */
    assert_ack(plug(vm, mem, 0, 2 * MiB));
    log_size = measure_log(vm, backend);
    g_assert_true(log_covers(log_size, mem, 1 * GiB));
    g_assert_cmpint(log_covers(log_size, mem, size), ==, backend->coalesced);
    assert_ack(plug(vm, mem, 2 * MiB, size - 2 * MiB));
    g_assert_true(log_covers(measure_log(vm, backend), mem, size));
    if (backend->coalesced) {
        g_assert_cmpuint(qvhost_user_backend_log_size(backend->vu), ==,
                         log_size);
    }
    assert_ack(unplug(vm, mem, 0, offset));
    assert_ack(unplug(vm, mem, offset + 4 * MiB, size - offset - 4 * MiB));
    g_assert_cmpuint(mem_used(mem), ==, 1);

    /* What comes after the first two pages takes its time. */
    addr = mem->addr + offset;
    for (i = 0; i < 4 * MiB; i += step) {
        qtest_memset(vm->qts, addr + i, 1, step);
    }
    target = migration_target(test, vm, uri);
    start_migration(vm, uri, true);
    while (migration_sent(vm) < 16 * KiB) {
        g_usleep(1000);
    }
    for (i = 0; i < 2; i++) {
        memory[i] = qvhost_user_backend_memory(backend->vu, addr + i * 4 * KiB,
                                               4 * KiB);
        g_assert_nonnull(memory[i]);
        memset(memory[i], 2, 4 * KiB);
    }
    /* It keeps the second one to itself, or the test would prove nothing. */
    g_assert_true(qvhost_user_backend_log(backend->vu, addr));
    log_size = qvhost_user_backend_log_size(backend->vu);
    g_assert_cmpint(log_covers(log_size, mem, size), ==, backend->coalesced);

    qmp_succeeds(vm, "{ 'execute': 'migrate-set-parameters', 'arguments':"
                 " { 'max-bandwidth': 0 } }");
    wait_migration(vm, "completed");
    wait_migration(target, "completed");
    model_migrated(target, vm);
    vm_check(target);
    assert_content(target, addr, 2);
    assert_content(target, addr + 4 * KiB, 1);
    assert_content(target, addr + 4 * MiB - 4 * KiB, 1);

    unlink(socket);
    vm_stop(target);
    vm_stop(vm);
}

static void test_migration_log(const TestCase *test)
{
    static const unsigned int sizes[] = { QVHOST_USER_BASELINE, 8, 509 };
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        check_migration_log(test, sizes[i]);
    }
}

/* The test device says what it cannot do. */
static void test_testdev(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    g_autofree char *error = NULL;
    unsigned int nr_messages;
    Backend *backend;

    backend = vm_add_started_backend(vm, 64);
    error = try_qmp(vm, "{ 'execute': 'qom-set', 'arguments': { 'path':"
                    " '/machine/peripheral/testdev0', 'property': 'count',"
                    " 'value': 65537 } }");
    g_assert_cmpstr(error, ==, "'count' (65537) must not exceed 65536");
    g_free(error);
    error = try_device_add(vm, "memslot-testdev,id=more");
    g_assert_cmpstr(error, ==,
                    "Parameter 'driver' expects a pluggable device type");
    vm_check(vm);

    set_testdev_count(vm, true, 8);
    nr_messages = vm_nr_messages(vm);
    set_testdev_count(vm, false, 10);
    g_assert_cmpuint(vm_nr_messages(vm), ==, nr_messages);
    set_testdev_count(vm, true, 5);
    g_assert_cmpuint(vm_nr_messages(vm), ==, nr_messages + 3);
    g_assert_cmpuint(qvhost_user_backend_nr_messages(backend->vu,
                                                     VHOST_USER_REM_MEM_REG),
                     ==, 3);
    vm_stop(vm);

    vm = vm_new_default(&(TestCase) { .kvm = test->kvm, .cold = true },
                        64 * GiB);
    g_string_append(vm->args, " -device memslot-testdev,addr=0x80000800");
    check_start_fails(vm, "'addr' (0x80000800) has to be a multiple of 0x1000");
    g_string_assign(vm->args, SHARED_BOOT_MEMORY
                    " -device memslot-testdev,addr=0x8000000000001000");
    check_start_fails(vm, "'addr' (0x8000000000001000) is too high");
    g_string_assign(vm->args, SHARED_BOOT_MEMORY);
    vm_start(vm);
    vm_stop(vm);
}

/* A backend that was killed holds nothing, until it is back. */
static void test_restart(const TestCase *test)
{
    static const unsigned int sizes[] = {
        QVHOST_USER_BASELINE, 8, 64, 509, 32,
    };
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    const unsigned int nr_killed = ARRAY_SIZE(sizes) - 1;
    Backend *backends[ARRAY_SIZE(sizes)];
    unsigned int i;
    Mem *mem, *dimms[2];

    mem = vm_add_mem(vm, &config);
    dimms[0] = vm_add_mem(vm, &shared_dimm);
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        backends[i] = vm_add_started_backend(vm, sizes[i]);
    }
    vm_start(vm);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 4 * GiB));

    /* Life goes on meanwhile. */
    for (i = 0; i < nr_killed; i++) {
        kill_backend(vm, backends[i]);
    }
    assert_ack(plug(vm, mem, 8 * GiB, 4 * GiB));
    assert_ack(unplug(vm, mem, 0, 2 * GiB));
    dimms[1] = vm_add_mem(vm, &shared_dimm);
    vm_remove_dimm(vm, dimms[0]);

    restart_backends(vm, backends, nr_killed);
    assert_ack(plug(vm, mem, 12 * GiB, 4 * GiB));
    vm_remove_dimm(vm, dimms[1]);
    unplug_all(vm, mem);
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        vm_remove_backend(vm, backends[i]);
    }
    vm_stop(vm);
}

/* A backend that comes back and is refused is welcome once there is room. */
static void test_restart_refused(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 64 * GiB);
    const MemConfig config = multiple(true, 16 * GiB);
    g_autofree char *refusal = NULL;
    Backend *backend, *other;
    unsigned int i;
    Mem *mem, *last;

    mem = vm_add_mem(vm, &config);
    for (i = vm->base_shared + 1; i < 8; i++) {
        vm_add_mem(vm, &shared_dimm);
    }
    backend = vm_add_started_backend(vm, 8);
    other = vm_add_started_backend(vm, 64);
    vm_start(vm);
    request_size(vm, mem, 16 * GiB);
    assert_ack(plug(vm, mem, 0, 4 * GiB));

    /* With it gone, there is nothing in the way of another DIMM. */
    assert_refused(vm, &shared_dimm, NULL);
    kill_backend(vm, backend);
    last = vm_add_mem(vm, &shared_dimm);
    model_attach(vm, backend);
    refusal = model_check_backend(vm, backend);
    g_assert_nonnull(refusal);
    qvhost_user_backend_open(backend->vu);
    while (!vm_nr_warnings(vm, refusal)) {
        g_usleep(1000);
    }
    g_assert_false(holder_is_shown(vm, backend));
    vm_check(vm);
    assert_ack(plug(vm, mem, 4 * GiB, 4 * GiB));

    vm_remove_dimm(vm, last);
    expect_backends(vm, &backend, 1);
    assert_ack(plug(vm, mem, 8 * GiB, 8 * GiB));
    unplug_all(vm, mem);
    vm_remove_backend(vm, backend);
    vm_remove_backend(vm, other);
    vm_stop(vm);
}

/* KVM holds all memory, and much else. */
static void test_kvm_limit(const TestCase *test)
{
    TestVM *vm = vm_new_default(test, 256 * GiB);
    const unsigned int limit = test->kvm_limit;
    const unsigned int room = limit - vm->base_kvm;
    const MemConfig vmem = multiple(false, 64 * GiB);
    g_autofree char *reason = NULL;
    unsigned int i, promised;
    Mem *mem, *last;

    g_assert_cmpuint(vm->kvm_limit, ==, limit);
    mem = vm_add_mem(vm, &vmem);
    promised = mem->required;
    g_assert_cmpuint(promised, ==, limit < HISTORICAL_MAX ? 1 : 64);
    vm_start(vm);
    request_size(vm, mem, 64 * GiB);
    if (promised > 1) {
        assert_ack(plug(vm, mem, 0, 10 * GiB));
    }

    /* All but 10, then with DIMMs that take the rest */
    set_testdev_count(vm, false, room - promised - 10);
    for (i = 0; i < 10; i++) {
        last = vm_add_mem(vm, i % 2 ? &dimm : &shared_dimm);
    }
    reason = g_strdup_printf("KVM can hold %u, of which %u are used and %u are"
                             " reserved for other memory devices, but 1 is"
                             " needed", limit, limit - promised + mem_used(mem),
                             promised - mem_used(mem));
    assert_refused(vm, &dimm, reason);
    assert_refused(vm, &shared_dimm, reason);
    assert_refused(vm, &vmem, reason);

    vm_remove_dimm(vm, last);
    last = vm_add_mem(vm, &dimm);
    assert_refused(vm, &dimm, reason);

    /* Both have the promise kept. */
    assert_ack(plug(vm, mem, 10 * GiB, 54 * GiB));
    g_assert_cmpuint(vm_holder(vm, NULL).used, ==, limit);
    assert_refused(vm, &dimm, NULL);
    unplug_all(vm, mem);

    set_testdev_count(vm, false, room - promised - 10 + 1);
    if (promised > 1) {
        assert_busy(plug(vm, mem, 0, 64 * GiB));
        assert_ack(plug(vm, mem, 0, 63 * GiB));
        unplug_all(vm, mem);
    } else {
        assert_busy(plug(vm, mem, 0, 2 * MiB));
    }
    set_testdev_count(vm, false, 0);
    assert_ack(plug(vm, mem, 0, 64 * GiB));
    vm_stop(vm);
}

/* ---- The backend of this test, talked to without QEMU in between ---- */

static int connect_to_backend(QVhostUserBackend *backend)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_strlcpy(addr.sun_path, qvhost_user_backend_path(backend),
              sizeof(addr.sun_path));
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    return fd;
}

/* Returns what the backend answers. */
static uint64_t send_message(int fd, VhostUserMsg *msg, uint32_t size,
                             int file)
{
    char control[CMSG_SPACE(sizeof(file))] QEMU_ALIGNED(8) = { };
    struct iovec iov = { .iov_base = msg };
    struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };
    uint64_t answer;

    msg->flags = 1 | VHOST_USER_NEED_REPLY_MASK;
    msg->size = size;
    iov.iov_len = VHOST_USER_HDR_SIZE + size;
    if (file >= 0) {
        struct cmsghdr *cmsg;

        hdr.msg_control = control;
        hdr.msg_controllen = sizeof(control);
        cmsg = CMSG_FIRSTHDR(&hdr);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(file));
        memcpy(CMSG_DATA(cmsg), &file, sizeof(file));
    }
    g_assert_cmpint(sendmsg(fd, &hdr, 0), ==, iov.iov_len);

    g_assert_cmpint(recv(fd, msg, VHOST_USER_HDR_SIZE, MSG_WAITALL), ==,
                    VHOST_USER_HDR_SIZE);
    g_assert_cmpint(msg->flags, ==, 1 | VHOST_USER_REPLY_MASK);
    g_assert_cmpint(msg->size, ==, sizeof(answer));
    g_assert_cmpint(recv(fd, &answer, sizeof(answer), MSG_WAITALL), ==,
                    sizeof(answer));
    return answer;
}

/* Memory is at addr in the process that sends it, and in its file. */
static uint64_t change_region(int fd, VhostUserRequest request, uint64_t addr,
                              uint64_t size, int file)
{
    VhostUserMsg msg = {
        .request = request,
        .payload.memreg.region = {
            .guest_phys_addr = addr,
            .memory_size = size,
            .userspace_addr = addr,
            .mmap_offset = addr,
        },
    };

    return send_message(fd, &msg, sizeof(msg.payload.memreg), file);
}

static void assert_backend_error(QVhostUserBackend **backend, int *fd,
                                 const char *expected)
{
    g_autofree char *error = qvhost_user_backend_error(*backend);
    g_autofree char *path = g_strdup(qvhost_user_backend_path(*backend));
    const uint64_t features =
        1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK |
        1ull << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;
    VhostUserMsg msg = {
        .request = VHOST_USER_SET_PROTOCOL_FEATURES,
        .payload.u64 = features,
    };

    /* It tells the first error only: go on with another one. */
    g_assert_cmpstr(error, ==, expected);
    close(*fd);
    qvhost_user_backend_free(*backend);
    *backend = qvhost_user_backend_new(path, 2);
    *fd = connect_to_backend(*backend);
    g_assert_cmpint(send_message(*fd, &msg, sizeof(features), -1), ==, 0);
}

#define add_region(...) change_region(fd, VHOST_USER_ADD_MEM_REG, __VA_ARGS__)
#define remove_region(...)                                                 \
    change_region(fd, VHOST_USER_REM_MEM_REG, __VA_ARGS__, -1)

static void test_library(const void *opaque)
{
    g_autofree char *dir = g_dir_make_tmp("memslot-account-test.XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "backend", NULL);
    QVhostUserBackend *backend = qvhost_user_backend_new(path, 2);
    int fd = connect_to_backend(backend);
    const int file = memfd_create("test", 0);
    uint8_t content[0x10];
    GArray *regions;
    void *memory;

    g_assert_cmpint(ftruncate(file, 1 * MiB), ==, 0);
    assert_backend_error(&backend, &fd, NULL);

    g_assert_cmpint(add_region(0x2000, 0x1000, file), ==, 0);
    g_assert_cmpint(add_region(0x1000, 0x1000, file), ==, 0);
    regions = qvhost_user_backend_regions(backend);
    g_assert_cmpuint(regions->len, ==, 2);
    g_assert_cmphex(g_array_index(regions, QVhostUserRegion, 0).addr, ==,
                    0x1000);
    g_assert_cmphex(g_array_index(regions, QVhostUserRegion, 1).mmap_offset,
                    ==, 0x2000);
    g_array_unref(regions);

    /* Memory is what is in the file, and nothing that is not added. */
    memory = qvhost_user_backend_memory(backend, 0x2ff0, 0x10);
    g_assert_nonnull(memory);
    memset(memory, 1, 0x10);
    g_assert_cmpint(pread(file, content, sizeof(content), 0x2ff0), ==,
                    sizeof(content));
    g_assert_cmpmem(content, sizeof(content), memory, 0x10);
    g_assert_null(qvhost_user_backend_memory(backend, 0x2ff0, 0x11));
    g_assert_null(qvhost_user_backend_memory(backend, 0xfff, 1));
    g_assert_null(qvhost_user_backend_memory(backend, 0x3000, 1));
    g_assert_cmpuint(qvhost_user_backend_log_size(backend), ==, 0);
    g_assert_false(qvhost_user_backend_log(backend, 0x2000));

    g_assert_cmpint(remove_region(0x2000, 0x1000), ==, 0);
    g_assert_cmpuint(qvhost_user_backend_nr_regions(backend), ==, 1);
    g_assert_null(qvhost_user_backend_memory(backend, 0x2000, 1));
    g_assert_cmpint(add_region(0x2000, 0x1000, file), ==, 0);
    g_assert_cmpint(add_region(0x3000, 0x1000, file), !=, 0);
    g_assert_cmpuint(qvhost_user_backend_nr_regions(backend), ==, 2);
    g_assert_cmpuint(qvhost_user_backend_nr_messages(backend,
                                                     VHOST_USER_ADD_MEM_REG),
                     ==, 4);
    assert_backend_error(&backend, &fd, "region 0x3000 is one more than 2");

    g_assert_cmpint(add_region(0x1000, 0x1000, file), ==, 0);
    g_assert_cmpint(add_region(0x1000, 0x1000, file), !=, 0);
    assert_backend_error(&backend, &fd, "region 0x1000 overlaps with 0x1000");
    g_assert_cmpint(add_region(0x1000, 0x3000, file), ==, 0);
    g_assert_cmpint(add_region(0x2000, 0x1000, file), !=, 0);
    assert_backend_error(&backend, &fd, "region 0x2000 overlaps with 0x1000");
    g_assert_cmpint(add_region(0x1000, 0x1000, file), ==, 0);
    g_assert_cmpint(remove_region(0x1000, 0x2000), !=, 0);
    assert_backend_error(&backend, &fd,
                         "region 0x1000 to be removed does not exist");
    g_assert_cmpint(add_region(0x1000, 0x1000, -1), !=, 0);
    assert_backend_error(&backend, &fd, "region with 0 files");
    g_assert_cmpint(add_region(0, 0, file), !=, 0);
    assert_backend_error(&backend, &fd, "bad range of region 0x0");
    g_assert_cmpint(add_region(0, 2 * MiB, file), !=, 0);
    assert_backend_error(&backend, &fd, "region 0x0 exceeds its file");

    /* Nothing is left when it is killed, and it can be had again. */
    g_assert_cmpint(add_region(0x1000, 0x1000, file), ==, 0);
    qvhost_user_backend_close(backend);
    g_assert_cmpuint(qvhost_user_backend_nr_regions(backend), ==, 0);
    g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    close(fd);
    qvhost_user_backend_open(backend);
    g_assert_cmpuint(qvhost_user_backend_nr_messages(backend, VHOST_USER_NONE),
                     ==, 0);
    fd = connect_to_backend(backend);
    g_assert_cmpint(add_region(0x1000, 0x1000, file), !=, 0);
    assert_backend_error(&backend, &fd, "request to change a single region");

    close(fd);
    close(file);
    qvhost_user_backend_free(backend);
    g_assert_cmpint(rmdir(dir), ==, 0);
}

/* ---- Random sequences ---- */

#define RANDOM_SEQUENCES 10
#define RANDOM_STEPS 500

/* virtio-mem devices can't be unplugged: start anew, from time to time. */
#define RANDOM_STEPS_PER_VM 250
#define RANDOM_MAX_VMEMS 7
#define RANDOM_MAX_DIMMS 40
#define RANDOM_MAX_BACKENDS 5

/* QEMU takes up to a second to connect again. */
#define RANDOM_MAX_RESTARTS 1

/* Taking more memslots away would be most of what it takes time for. */
#define RANDOM_MAX_TAKEN 150

/* What came of the steps, to see that not all of them are alike */
typedef struct Outcomes {
    unsigned int mems;
    unsigned int mems_refused;
    unsigned int backends;
    unsigned int backends_refused;
    unsigned int coalesced;
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
    if (config->size > unassigned_size(r->vm) || skip_refusal(r, error)) {
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
    Backend model = { .id = (char *)"", .coalesced = coin(r) };
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
        r->outcomes.coalesced += backend->coalesced;
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
    g_test_message("memory devices: %u, refused: %u; backends: %u, coalesced:"
                   " %u, refused: %u, restarted: %u; plugged: %u, busy: %u;"
                   " sizes: %u, refused: %u", o->mems, o->mems_refused,
                   o->backends, o->coalesced, o->backends_refused, o->restarts,
                   o->plugs, o->plugs_busy, o->sizes, o->sizes_refused);
}

/* ---- The table of tests ---- */

typedef struct TestGroup {
    const char *name;
    void (*fn)(const TestCase *test);
    /* also with all that comes first being there from the start */
    bool cold;
    /* with KVM only, which says that this is what it can hold */
    unsigned int kvm_limit;
    /* how many times, each with an index of its own; 0 for once */
    unsigned int times;
} TestGroup;

static const TestGroup test_groups[] = {
    { "mix", test_mix, .cold = true },
    { "backend-first", test_backend_first, .cold = true },
    { "backend-later", test_backend_later, .cold = true },
    { "backend-last", test_backend_last },
    { "messages", test_messages },
    { "mixed-backends", test_mixed_backends },
    { "backend-refused", test_backend_refused, .cold = true },
    { "kinds", test_kinds, .cold = true },
    { "reservations", test_reservations, .cold = true },
    { "soft-limit", test_soft_limit, .cold = true },
    { "numa", test_numa, .cold = true },
    { "taken", test_taken, .cold = true },
    { "taken-coalesced", test_taken_coalesced, .cold = true },
    { "taken-accessible", test_taken_accessible, .cold = true },
    { "too-many-regions", test_too_many_regions },
    { "used-over-required", test_used_over_required, .cold = true },
    { "cold-refusals", test_cold_refusals },
    { "migration", test_migration },
    { "migration-log", test_migration_log },
    { "testdev", test_testdev },
    { "restart", test_restart, .cold = true },
    { "restart-refused", test_restart_refused },
    { "random", test_random, .times = RANDOM_SEQUENCES },
    { "limit-32", test_kvm_limit, .cold = true, .kvm_limit = 32 },
    { "limit-508", test_kvm_limit, .cold = true, .kvm_limit = 508 },
    { "limit-509", test_kvm_limit, .cold = true, .kvm_limit = 509 },
};

static void run_test(const void *data)
{
    const TestCase *test = data;

    test->fn(test);
}

static void add_test(const TestGroup *group, bool kvm, bool cold,
                     unsigned int index)
{
    g_autofree char *suffix = group->times ? g_strdup_printf("/%u", index) :
                              g_strdup(!group->cold ? "" :
                                       cold ? "/cold" : "/hot");
    g_autofree char *path =
        g_strdup_printf("memslot-account/%s/%s%s", kvm ? "kvm" : "qtest",
                        group->name, suffix);
    TestCase *test = g_new(TestCase, 1);

    *test = (TestCase) {
        .kvm = kvm,
        .kvm_limit = group->kvm_limit,
        .cold = cold,
        .index = index,
        .fn = group->fn,
    };
    qtest_add_data_func_full(path, test, run_test, g_free);
}

static void add_tests(bool kvm)
{
    unsigned int i, j;

    for (i = 0; i < ARRAY_SIZE(test_groups); i++) {
        const TestGroup *group = &test_groups[i];

        if (group->kvm_limit && (!kvm || !preload_path)) {
            continue;
        }
        for (j = 0; j < MAX(group->times, 1); j++) {
            add_test(group, kvm, false, j);
        }
        if (group->cold) {
            add_test(group, kvm, true, 0);
        }
    }
}

int main(int argc, char **argv)
{
    const char *why_no_kvm;
    int ret;

    g_test_init(&argc, &argv, NULL);
    preload_path = qhost_find_module("kvm-preload.so");

    qtest_add_data_func("memslot-account/backend", NULL, test_library);
    add_tests(false);
    why_no_kvm = qhost_why_no_kvm();
    if (why_no_kvm) {
        qtest_add_data_func("memslot-account/kvm", why_no_kvm,
                            qhost_test_no_kvm);
    } else {
        add_tests(true);
        if (!preload_path) {
            qtest_add_data_func("memslot-account/kvm/limits",
                                "kvm-preload.so is not next to this program",
                                qhost_test_no_kvm);
        }
    }
    ret = g_test_run();
    g_free(preload_path);
    return ret;
}
