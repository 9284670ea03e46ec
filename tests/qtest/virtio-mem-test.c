/*
 * QTest testcase for virtio-mem and the memslots that it maps
 *
 * The tests play the guest's driver. After every step, what QEMU shows of the
 * device - its configuration space, "info mtree -f", "info mtree", the counts
 * of "query-memslots" and, where there is a trace log, each single memslot that
 * was mapped or unmapped - has to be exactly what a model of the device says.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qemu/bswap.h"
#include "libqtest.h"
#include "libqos/libqos-arm-virt.h"
#include "libqos/libqos-pc.h"
#include "libqos/virtio-mem.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qmp/qlist.h"
#include "standard-headers/linux/virtio_config.h"
#include <sys/mount.h>
#include <sys/un.h>
#include <sched.h>

#define BOOT_RAM_SIZE (128 * MiB)
#define MAX_DEVICES 2
#define RANDOM_STEPS 200

/* A request can't name more blocks, see struct virtio_mem_req_plug. */
#define MAX_REQUEST_BLOCKS UINT16_MAX

#define MIGRATION_TIMEOUT_US (30 * 1000 * 1000)

/* ---- What differs from one architecture to the next ---- */

typedef struct Arch {
    const char *name;
    /* unless a test asks for another one */
    const char *machine;
    const char *cpu;
    /* for device memory of 1 TiB */
    const char *large_cpu;
    QOSState *(*vboot)(const char *fmt, va_list ap);
    /* see Model */
    uint64_t usable_extent;
    /* whether there are guests that may read unplugged memory */
    bool has_legacy_guests;
    /* whether devices can be added to the root bus of the default machine */
    bool has_hotplug;
    /*
     * at most so much of what migrates is neither boot nor device memory:
     * firmware, flash, video memory and the like, and what is sent twice
     */
    uint64_t other_ram;
} Arch;

static const Arch archs[] = {
    {
        .name = "x86_64",
        .machine = "pc",
        .cpu = "",
        /* The default of 40 is not enough for 1 TiB. */
        .large_cpu = "-cpu qemu64,phys-bits=42",
        .vboot = qtest_pc_vboot,
        .usable_extent = 256 * MiB,
        .has_legacy_guests = true,
        .has_hotplug = true,
        .other_ram = 64 * MiB,
    }, {
        .name = "aarch64",
        .machine = "virt",
        .cpu = "-cpu max",
        .large_cpu = "-cpu max",
        .vboot = qtest_arm_virt_vboot,
        .usable_extent = 1 * GiB,
        .other_ram = 192 * MiB,
    },
};

/* The one that is tested */
static const Arch *arch;

/* ---- The model of a device ---- */

typedef enum Busy {
    BUSY_NEVER,
    /* no memory to back a block */
    BUSY_PLUG,
    /* a migration is running */
    BUSY_ALWAYS,
} Busy;

typedef struct Model {
    uint64_t addr;
    uint64_t region_size;
    uint64_t block_size;
    /* what the device adds to the requested size to get the usable region */
    uint64_t usable_extent;
    /* size of all memslots but the last one; 0 without multiple-memslots */
    uint64_t memslot_size;
    bool unplugged_inaccessible;
    uint64_t requested_size;
    uint64_t usable_size;
    Busy busy;
    /* one per block */
    bool *plugged;
} Model;

static uint64_t model_plugged_size(const Model *model)
{
    uint64_t i, size = 0;

    for (i = 0; i < model->region_size / model->block_size; i++) {
        size += model->plugged[i] ? model->block_size : 0;
    }
    return size;
}

static uint64_t model_wanted_usable_size(const Model *model)
{
    uint64_t size = model->requested_size + model->usable_extent;

    if (!model->requested_size) {
        return 0;
    }
    return ROUND_UP(MIN(size, model->region_size), model->block_size);
}

static void model_request_size(Model *model, uint64_t size)
{
    model->requested_size = size;
    model->usable_size = MAX(model->usable_size,
                             model_wanted_usable_size(model));
}

static bool model_valid_range(const Model *model, uint64_t addr,
                              uint64_t nb_blocks)
{
    return addr % model->block_size == 0 && nb_blocks &&
           addr >= model->addr &&
           addr - model->addr < model->usable_size &&
           nb_blocks <= (model->usable_size - (addr - model->addr)) /
                        model->block_size;
}

/* Returns how many blocks of the range, which has to be valid, are plugged. */
static uint64_t model_count_plugged(const Model *model, uint64_t addr,
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

static void model_set_plugged(Model *model, uint64_t addr, uint64_t nb_blocks,
                              bool value)
{
    bool *plugged = model->plugged + (addr - model->addr) / model->block_size;

    memset(plugged, value, nb_blocks * sizeof(*plugged));
}

static uint16_t model_plug(Model *model, uint64_t addr, uint64_t nb_blocks)
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
    if (model->busy != BUSY_NEVER) {
        return VIRTIO_MEM_RESP_BUSY;
    }
    model_set_plugged(model, addr, nb_blocks, true);
    return VIRTIO_MEM_RESP_ACK;
}

static uint16_t model_unplug(Model *model, uint64_t addr, uint64_t nb_blocks)
{
    if (!model_valid_range(model, addr, nb_blocks) ||
        model_count_plugged(model, addr, nb_blocks) != nb_blocks) {
        return VIRTIO_MEM_RESP_ERROR;
    }
    if (model->busy == BUSY_ALWAYS) {
        return VIRTIO_MEM_RESP_BUSY;
    }
    model_set_plugged(model, addr, nb_blocks, false);
    return VIRTIO_MEM_RESP_ACK;
}

static uint16_t model_unplug_all(Model *model)
{
    if (model->busy == BUSY_ALWAYS) {
        return VIRTIO_MEM_RESP_BUSY;
    }
    model_set_plugged(model, model->addr,
                      model->region_size / model->block_size, false);
    model->usable_size = model_wanted_usable_size(model);
    return VIRTIO_MEM_RESP_ACK;
}

static uint16_t model_state(const Model *model, uint64_t addr,
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

static uint64_t model_nb_memslots(const Model *model)
{
    return model->memslot_size ?
           DIV_ROUND_UP(model->region_size, model->memslot_size) : 1;
}

static uint64_t model_memslot_offset(const Model *model, uint64_t memslot)
{
    return memslot * model->memslot_size;
}

static uint64_t model_memslot_size(const Model *model, uint64_t memslot)
{
    const uint64_t rest = model->region_size -
                          model_memslot_offset(model, memslot);

    return model->memslot_size ? MIN(rest, model->memslot_size) : rest;
}

static bool model_memslot_mapped(const Model *model, uint64_t memslot)
{
    const uint64_t offset = model_memslot_offset(model, memslot);

    if (!model->memslot_size) {
        return true;
    }
    if (!model->unplugged_inaccessible) {
        return offset < model->usable_size;
    }
    return model_count_plugged(model, model->addr + offset,
                               model_memslot_size(model, memslot) /
                               model->block_size);
}

static unsigned int model_nb_mapped(const Model *model)
{
    unsigned int i, count = 0;

    for (i = 0; i < model_nb_memslots(model); i++) {
        count += model_memslot_mapped(model, i);
    }
    return count;
}

/* ---- A virtual machine with devices, each along with its model ---- */

typedef struct DeviceConfig {
    /* -object, without id and size */
    const char *backend;
    uint64_t size;
    /* 0 for the default; then it has to be what the backend leads to */
    uint64_t block_size;
    /* expected size of all memslots but the last one */
    uint64_t memslot_size;
    bool multiple_memslots;
    /* NULL for the default, which is auto */
    const char *unplugged_inaccessible;
    /* what that has to lead to */
    bool expect_inaccessible;
    const char *extra_props;
} DeviceConfig;

typedef struct Device {
    QVirtioMEMPCI *pci;
    Model model;
    char *memdev;
    char *qom_path;
    /* bool per memslot: whether it was mapped when we last looked */
    GArray *was_mapped;
} Device;

typedef struct TestVM {
    QOSState *qs;
    QTestState *qts;
    bool kvm;
    const char *machine;
    char *tmpdir;
    char *hmp_path;
    int hmp_fd;
    char *log_path;
    FILE *log;
    /* false if trace events do not go to the log, for whatever reason */
    bool traced;
    /* number of KVM address spaces that RAM is in */
    unsigned int nb_kvm_as;
    unsigned int nb_devices;
    Device devices[MAX_DEVICES];
} TestVM;

typedef struct TestCase {
    bool kvm;
    /* as for -machine; NULL for the default */
    const char *machine;
    void (*fn)(const struct TestCase *test);
    DeviceConfig config;
} TestCase;

static Model *vm_model(TestVM *vm, unsigned int i)
{
    g_assert_cmpuint(i, <, vm->nb_devices);
    return &vm->devices[i].model;
}

static QVirtioMEM *vm_mem(TestVM *vm, unsigned int i)
{
    g_assert_cmpuint(i, <, vm->nb_devices);
    return &vm->devices[i].pci->mem;
}

/* ---- What QEMU shows: memory regions ---- */

#define HMP_PROMPT "(qemu) "

static GString *hmp_read_to_prompt(TestVM *vm)
{
    GString *output = g_string_new(NULL);

    while (!g_str_has_suffix(output->str, HMP_PROMPT)) {
        char buf[4096];
        ssize_t len;

        TFR(len = read(vm->hmp_fd, buf, sizeof(buf)));
        g_assert_cmpint(len, >, 0);
        g_string_append_len(output, buf, len);
    }
    return output;
}

/* QEMU created the socket before it became ready. */
static void hmp_connect(TestVM *vm)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    g_assert_cmpuint(g_strlcpy(addr.sun_path, vm->hmp_path,
                               sizeof(addr.sun_path)), <,
                     sizeof(addr.sun_path));
    vm->hmp_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    g_assert_cmpint(vm->hmp_fd, >=, 0);
    g_assert_cmpint(connect(vm->hmp_fd, (struct sockaddr *)&addr,
                            sizeof(addr)), ==, 0);
    g_string_free(hmp_read_to_prompt(vm), true);
}

/*
 * Much of the output of the commands that we use is of no interest, so
 * qtest_hmp(), which gets all of it byte by byte, would be most of the time
 * that this test takes. Our monitor is an interactive one, for a human.
 */
static char *hmp(TestVM *vm, const char *command)
{
    g_autoptr(GString) output = NULL;
    g_auto(GStrv) parts = NULL;
    const char *end_of_echo;

    g_assert_cmpint(dprintf(vm->hmp_fd, "%s\n", command), ==,
                    strlen(command) + 1);
    output = hmp_read_to_prompt(vm);
    g_string_truncate(output, output->len - strlen(HMP_PROMPT));

    end_of_echo = strchr(output->str, '\n');
    g_assert_nonnull(end_of_echo);
    parts = g_strsplit(end_of_echo + 1, "\r", -1);
    return g_strjoinv("", parts);
}

/* Returns the lines of the paragraph that contains the given line. */
static char **find_paragraph(const char *text, const char *line)
{
    g_auto(GStrv) paragraphs = g_strsplit(text, "\n\n", -1);
    int i;

    for (i = 0; paragraphs[i]; i++) {
        char **lines = g_strsplit(paragraphs[i], "\n", -1);

        if (g_strv_contains((const char * const *)lines, line)) {
            return lines;
        }
        g_strfreev(lines);
    }
    g_assert_not_reached();
}

static void append_range(GString *out, uint64_t addr, uint64_t size)
{
    g_string_append_printf(out, "%016" PRIx64 "-%016" PRIx64, addr,
                           addr + size - 1);
}

/* The ranges of the flat view that show memory of the device. */
static char *shown_flat_ranges(TestVM *vm, const Device *dev)
{
    g_autofree char *text = hmp(vm, "info mtree -f");
    g_auto(GStrv) lines = find_paragraph(text,
                                         " AS \"memory\", root: system");
    g_autofree char *pattern =
        g_strdup_printf("^  ([0-9a-f]+-[0-9a-f]+) \\(prio 0, ram\\): %s"
                        "(?: @([0-9a-f]+))?(?: KVM)*$", dev->memdev);
    g_autoptr(GRegex) regex = g_regex_new(pattern, 0, 0, NULL);
    GString *out = g_string_new(NULL);
    int i;

    for (i = 0; lines[i]; i++) {
        g_autoptr(GMatchInfo) match = NULL;

        if (g_regex_match(regex, lines[i], 0, &match)) {
            g_autofree char *range = g_match_info_fetch(match, 1);
            g_autofree char *offset = g_match_info_fetch(match, 2);

            g_string_append_printf(out, "%s @%016" PRIx64 "\n", range,
                                   g_ascii_strtoull(offset, NULL, 16));
        }
    }
    return g_string_free(out, false);
}

static char *expected_flat_ranges(const Device *dev)
{
    const Model *model = &dev->model;
    GString *out = g_string_new(NULL);
    uint64_t i;

    for (i = 0; i < model_nb_memslots(model); i++) {
        const uint64_t offset = model_memslot_offset(model, i);

        if (model_memslot_mapped(model, i)) {
            append_range(out, model->addr + offset,
                         model_memslot_size(model, i));
            g_string_append_printf(out, " @%016" PRIx64 "\n", offset);
        }
    }
    return g_string_free(out, false);
}

/* The memory regions, as they are nested, that the device consists of. */
static char *shown_regions(TestVM *vm, const Device *dev)
{
    g_autofree char *text = hmp(vm, "info mtree");
    g_auto(GStrv) lines = find_paragraph(text, "address-space: memory");
    g_autofree char *pattern =
        g_strdup_printf("^ +(([0-9a-f]+)-[0-9a-f]+) \\(prio 0, [^)]*\\): "
                        "(virtio-mem|%s|alias memslot-[0-9]+ @%s .*)$",
                        dev->memdev, dev->memdev);
    g_autoptr(GRegex) regex = g_regex_new(pattern, 0, 0, NULL);
    GString *out = g_string_new(NULL);
    int i;

    for (i = 0; lines[i]; i++) {
        g_autoptr(GMatchInfo) match = NULL;

        if (g_regex_match(regex, lines[i], 0, &match)) {
            g_autofree char *range = g_match_info_fetch(match, 1);
            g_autofree char *start = g_match_info_fetch(match, 2);
            g_autofree char *name = g_match_info_fetch(match, 3);
            const uint64_t addr = g_ascii_strtoull(start, NULL, 16);

            /* Other devices have a container of the same name. */
            if (addr >= dev->model.addr &&
                addr - dev->model.addr < dev->model.region_size) {
                g_string_append_printf(out, "%s %s\n", range, name);
            }
        }
    }
    return g_string_free(out, false);
}

static char *expected_regions(const Device *dev)
{
    const Model *model = &dev->model;
    GString *out = g_string_new(NULL);
    uint64_t i;

    append_range(out, model->addr, model->region_size);
    g_string_append_printf(out, " %s\n",
                           model->memslot_size ? "virtio-mem" : dev->memdev);

    for (i = 0; model->memslot_size && i < model_nb_memslots(model); i++) {
        const uint64_t offset = model_memslot_offset(model, i);
        const uint64_t size = model_memslot_size(model, i);

        if (model_memslot_mapped(model, i)) {
            append_range(out, model->addr + offset, size);
            g_string_append_printf(out, " alias memslot-%" PRIu64 " @%s ", i,
                                   dev->memdev);
            append_range(out, offset, size);
            g_string_append_c(out, '\n');
        }
    }
    return g_string_free(out, false);
}

static void check_regions(TestVM *vm, const Device *dev)
{
    g_autofree char *flat_shown = shown_flat_ranges(vm, dev);
    g_autofree char *flat_expected = expected_flat_ranges(dev);
    g_autofree char *regions_shown = shown_regions(vm, dev);
    g_autofree char *regions_expected = expected_regions(dev);

    g_assert_cmpstr(flat_shown, ==, flat_expected);
    g_assert_cmpstr(regions_shown, ==, regions_expected);
}

/* ---- What QEMU shows: single changes, in the trace log ---- */

/*
 * Only a memslot whose range is the same before and after a step tells nothing
 * about whether it was removed and added again in between. The traces do.
 */
typedef struct Changes {
    /* one line per change, in the order of the memslots */
    GPtrArray *lines;
    unsigned int nb_flatviews;
} Changes;

static void changes_clear(Changes *changes)
{
    g_ptr_array_unref(changes->lines);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Changes, changes_clear)

static gint compare_lines(gconstpointer a, gconstpointer b)
{
    return g_strcmp0(*(char * const *)a, *(char * const *)b);
}

static char *changes_to_string(Changes *changes)
{
    g_ptr_array_sort(changes->lines, compare_lines);
    g_ptr_array_add(changes->lines, NULL);
    return g_strjoinv("\n", (char **)changes->lines->pdata);
}

static void G_GNUC_PRINTF(2, 3)
changes_add(Changes *changes, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_ptr_array_add(changes->lines, g_strdup_vprintf(fmt, ap));
    va_end(ap);
}

static bool vm_contains_addr(TestVM *vm, uint64_t addr)
{
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        const Model *model = &vm->devices[i].model;

        if (addr >= model->addr && addr - model->addr < model->region_size) {
            return true;
        }
    }
    return false;
}

/* Reads what was logged since the last call. */
static void read_changes(TestVM *vm, Changes *changes)
{
    g_autofree char *line = NULL;
    size_t line_size = 0;

    changes->lines = g_ptr_array_new_with_free_func(g_free);
    changes->nb_flatviews = 0;

    clearerr(vm->log);
    while (getline(&line, &line_size, vm->log) > 0) {
        char name[64];
        unsigned int memslot, kvm_slot, flags;
        uint64_t offset, addr, size, hva;
        int ret;

        g_assert_true(g_str_has_suffix(line, "\n"));
        if (sscanf(line, "memslot_set_map name=%63s memslot=%u"
                   " offset=0x%" SCNx64 " size=0x%" SCNx64,
                   name, &memslot, &offset, &size) == 4) {
            changes_add(changes, "map %s %u 0x%" PRIx64 " 0x%" PRIx64, name,
                        memslot, offset, size);
        } else if (sscanf(line, "memslot_set_unmap name=%63s memslot=%u"
                          " offset=0x%" SCNx64 " size=0x%" SCNx64,
                          name, &memslot, &offset, &size) == 4) {
            changes_add(changes, "unmap %s %u 0x%" PRIx64 " 0x%" PRIx64, name,
                        memslot, offset, size);
        } else if (sscanf(line, "kvm_set_user_memory Slot#%u flags=0x%x"
                          " gpa=0x%" SCNx64 " size=0x%" SCNx64
                          " ua=0x%" SCNx64 " ret=%d", &kvm_slot, &flags, &addr,
                          &size, &hva, &ret) == 6) {
            if (vm_contains_addr(vm, addr)) {
                g_assert_cmpint(ret, ==, 0);
                changes_add(changes, "kvm as=%u gpa=0x%" PRIx64
                            " size=0x%" PRIx64, kvm_slot >> 16, addr, size);
            } else {
                vm->nb_kvm_as = MAX(vm->nb_kvm_as, (kvm_slot >> 16) + 1);
            }
        } else if (g_str_has_prefix(line, "flatview_new ")) {
            changes->nb_flatviews++;
        }
    }
}

static void expect_changes_of(TestVM *vm, Device *dev, Changes *changes)
{
    const Model *model = &dev->model;
    unsigned int i, as;

    for (i = 0; i < model_nb_memslots(model); i++) {
        const bool mapped = model_memslot_mapped(model, i);
        const uint64_t offset = model_memslot_offset(model, i);
        const uint64_t size = model_memslot_size(model, i);
        bool *was_mapped = &g_array_index(dev->was_mapped, bool, i);

        if (*was_mapped == mapped) {
            continue;
        }
        *was_mapped = mapped;

        changes_add(changes, "%s %s %u 0x%" PRIx64 " 0x%" PRIx64,
                    mapped ? "map" : "unmap", dev->memdev, i, offset, size);
        for (as = 0; as < vm->nb_kvm_as; as++) {
            changes_add(changes, "kvm as=%u gpa=0x%" PRIx64 " size=0x%" PRIx64,
                        as, model->addr + offset, mapped ? size : 0);
        }
    }
}

/* Returns how many flat views were made since the last call. */
static unsigned int check_changes(TestVM *vm)
{
    g_auto(Changes) shown = { };
    g_auto(Changes) expected = {
        .lines = g_ptr_array_new_with_free_func(g_free),
    };
    g_autofree char *shown_str = NULL, *expected_str = NULL;
    unsigned int i;

    read_changes(vm, &shown);
    for (i = 0; i < vm->nb_devices; i++) {
        expect_changes_of(vm, &vm->devices[i], &expected);
    }
    if (vm->traced) {
        shown_str = changes_to_string(&shown);
        expected_str = changes_to_string(&expected);
        g_assert_cmpstr(shown_str, ==, expected_str);
    }
    return shown.nb_flatviews;
}

/* ---- The check after each step ---- */

static uint64_t qom_get_size(TestVM *vm, const char *path, const char *property)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'qom-get', 'arguments':"
                           " { 'path': %s, 'property': %s } }", path, property);
    uint64_t size;

    g_assert_true(qdict_haskey(rsp, "return"));
    size = qdict_get_int(rsp, "return");
    qobject_unref(rsp);
    return size;
}

static void check_config(TestVM *vm, Device *dev)
{
    const Model *model = &dev->model;
    struct virtio_mem_config config;

    qvirtio_mem_read_config(&dev->pci->mem, &config);
    g_assert_cmphex(config.block_size, ==, model->block_size);
    g_assert_cmpint(config.node_id, ==, 0);
    g_assert_cmphex(config.addr, ==, model->addr);
    g_assert_cmphex(config.region_size, ==, model->region_size);
    g_assert_cmphex(config.usable_region_size, ==, model->usable_size);
    g_assert_cmphex(config.plugged_size, ==, model_plugged_size(model));
    g_assert_cmphex(config.requested_size, ==, model->requested_size);

    g_assert_cmphex(qom_get_size(vm, dev->qom_path, "size"), ==,
                    model_plugged_size(model));
}

/* All memslots are promised, those that are mapped are used. */
static void check_account(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-memslots' }");
    const QDict *shown = qdict_get_qdict(rsp, "return");
    unsigned int i, required = 0, used = 0;

    for (i = 0; i < vm->nb_devices; i++) {
        required += model_nb_memslots(&vm->devices[i].model);
        used += model_nb_mapped(&vm->devices[i].model);
    }
    g_assert_cmpint(qdict_get_int(shown, "required"), ==, required);
    g_assert_cmpint(qdict_get_int(shown, "used"), ==, used);
    g_assert_cmpint(qdict_get_int(shown, "reserved"), ==, required - used);
    qobject_unref(rsp);
}

/* Returns how many flat views were made since the last call. */
static unsigned int vm_check(TestVM *vm)
{
    const unsigned int nb_flatviews = check_changes(vm);
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        check_config(vm, &vm->devices[i]);
        check_regions(vm, &vm->devices[i]);
    }
    check_account(vm);
    return nb_flatviews;
}

/* ---- Steps: do it, have the model do it, compare ---- */

static uint16_t plug_at(TestVM *vm, unsigned int i, uint64_t addr,
                        uint64_t nb_blocks)
{
    const uint16_t resp = qvirtio_mem_plug(vm_mem(vm, i), addr, nb_blocks);

    g_assert_cmpint(resp, ==, model_plug(vm_model(vm, i), addr, nb_blocks));
    vm_check(vm);
    return resp;
}

static uint16_t unplug_at(TestVM *vm, unsigned int i, uint64_t addr,
                          uint64_t nb_blocks)
{
    const uint16_t resp = qvirtio_mem_unplug(vm_mem(vm, i), addr, nb_blocks);

    g_assert_cmpint(resp, ==, model_unplug(vm_model(vm, i), addr, nb_blocks));
    vm_check(vm);
    return resp;
}

static uint16_t state_at(TestVM *vm, unsigned int i, uint64_t addr,
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

static uint16_t unplug_all(TestVM *vm, unsigned int i)
{
    const uint16_t resp = qvirtio_mem_unplug_all(vm_mem(vm, i));

    g_assert_cmpint(resp, ==, model_unplug_all(vm_model(vm, i)));
    vm_check(vm);
    return resp;
}

static QDict *qom_set_requested_size(TestVM *vm, unsigned int i, uint64_t size)
{
    g_assert_cmpuint(i, <, vm->nb_devices);
    return qtest_qmp(vm->qts, "{ 'execute': 'qom-set', 'arguments': {"
                     " 'path': %s, 'property': 'requested-size',"
                     " 'value': %" PRIu64 " } }",
                     vm->devices[i].qom_path, size);
}

static void request_size(TestVM *vm, unsigned int i, uint64_t size)
{
    QDict *rsp = qom_set_requested_size(vm, i, size);

    g_assert_true(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);

    model_request_size(vm_model(vm, i), size);
    vm_check(vm);
}

static void request_bad_size(TestVM *vm, unsigned int i, uint64_t size)
{
    QDict *rsp = qom_set_requested_size(vm, i, size);

    g_assert_true(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);
    vm_check(vm);
}

/* All devices have to be started again, as the guest's driver would. */
static void system_reset(TestVM *vm)
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

/* Plugs or unplugs any number of blocks, with no check in between. */
static void change_many(TestVM *vm, unsigned int i, uint64_t offset,
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

#define assert_ack(expr)   g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_ACK)
#define assert_nack(expr)  g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_NACK)
#define assert_busy(expr)  g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_BUSY)
#define assert_error(expr) g_assert_cmpint(expr, ==, VIRTIO_MEM_RESP_ERROR)

/* ---- Starting and stopping virtual machines ---- */

static char *create_tmpdir(void)
{
    /* Files on tmpfs are memory; elsewhere, they merely behave the same. */
    const char *parent = g_file_test("/dev/shm", G_FILE_TEST_IS_DIR) ?
                         "/dev/shm" : g_get_tmp_dir();
    char *path = g_strdup_printf("%s/virtio-mem-test.XXXXXX", parent);

    g_assert_nonnull(g_mkdtemp(path));
    return path;
}

static char *backend_args(const char *tmpdir, unsigned int i,
                          const DeviceConfig *config)
{
    g_autofree char *mem_path =
        g_str_has_prefix(config->backend, "memory-backend-file") &&
        !strstr(config->backend, "mem-path=") ?
        g_strdup_printf(",mem-path=%s/mem%u", tmpdir, i) : g_strdup("");

    return g_strdup_printf("%s%s,id=mem%u,size=%" PRIu64, config->backend,
                           mem_path, i, config->size);
}

static char *device_args(unsigned int i, const DeviceConfig *config)
{
    GString *args = g_string_new(NULL);

    g_string_printf(args, "virtio-mem-pci,id=vm%u,memdev=mem%u,addr=%02x.0",
                    i, i, 4 + i);
    if (config->multiple_memslots) {
        g_string_append(args, ",multiple-memslots=on");
    }
    /* Where there never was another way, there is nothing to choose. */
    if (config->unplugged_inaccessible && arch->has_legacy_guests) {
        g_string_append_printf(args, ",unplugged-inaccessible=%s",
                               config->unplugged_inaccessible);
    }
    if (config->block_size) {
        g_string_append_printf(args, ",block-size=%" PRIu64,
                               config->block_size);
    }
    if (config->extra_props) {
        g_string_append_printf(args, ",%s", config->extra_props);
    }
    return g_string_free(args, false);
}

static void device_init(TestVM *vm, unsigned int i, const DeviceConfig *config)
{
    Device *dev = &vm->devices[i];
    QPCIAddress addr = { .devfn = QPCI_DEVFN(4 + i, 0) };
    struct virtio_mem_config shown;
    uint64_t slot;

    dev->memdev = g_strdup_printf("mem%u", i);
    dev->qom_path = g_strdup_printf("/machine/peripheral/vm%u", i);
    dev->pci = qvirtio_mem_pci_new(vm->qs->pcibus, &addr, &vm->qs->alloc);
    qvirtio_mem_pci_start(dev->pci);

    /* The machine chooses the address and the backend the block size. */
    qvirtio_mem_read_config(&dev->pci->mem, &shown);
    dev->model = (Model) {
        .addr = shown.addr,
        .region_size = config->size,
        .block_size = config->block_size ?: shown.block_size,
        .usable_extent = arch->usable_extent,
        .memslot_size = config->multiple_memslots ? config->memslot_size : 0,
        .unplugged_inaccessible = config->expect_inaccessible,
        .plugged = g_new0(bool, config->size / shown.block_size),
    };
    vm->nb_devices = MAX(vm->nb_devices, i + 1);

    dev->was_mapped = g_array_new(false, true, sizeof(bool));
    g_array_set_size(dev->was_mapped, model_nb_memslots(&dev->model));
    for (slot = 0; slot < model_nb_memslots(&dev->model); slot++) {
        g_array_index(dev->was_mapped, bool, slot) =
            model_memslot_mapped(&dev->model, slot);
    }
}

static bool vm_kvm_enabled(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-kvm' }");
    bool enabled = qdict_get_bool(qdict_get_qdict(rsp, "return"), "enabled");

    qobject_unref(rsp);
    return enabled;
}

static QOSState *G_GNUC_PRINTF(1, 2) boot(const char *fmt, ...)
{
    QOSState *qs;
    va_list ap;

    va_start(ap, fmt);
    qs = arch->vboot(fmt, ap);
    va_end(ap);
    return qs;
}

static void remove_dir(const char *path)
{
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;

    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);

        g_assert_cmpint(unlink(file), ==, 0);
    }
    g_dir_close(dir);
    g_assert_cmpint(rmdir(path), ==, 0);
}

static void remove_dir_on_abort(void *path)
{
    remove_dir(path);
}

static TestVM *vm_new(const TestCase *test)
{
    TestVM *vm = g_new0(TestVM, 1);

    vm->kvm = test->kvm;
    vm->machine = test->machine ?: arch->machine;
    vm->tmpdir = create_tmpdir();
    vm->hmp_path = g_build_filename(vm->tmpdir, "hmp", NULL);
    vm->log_path = g_build_filename(vm->tmpdir, "log", NULL);
    qtest_add_abrt_handler(remove_dir_on_abort, vm->tmpdir);
    return vm;
}

/* Forget about the changes so far, but for the address spaces of KVM. */
static void vm_skip_changes(TestVM *vm)
{
    g_auto(Changes) changes = { };

    read_changes(vm, &changes);
    /* Making a flat view can't be avoided: if none is there, nothing is. */
    vm->traced = vm->traced || changes.nb_flatviews;
    g_assert_true(!vm->kvm || !vm->traced || vm->nb_kvm_as);
}

/*
 * Boot with an address space for memory devices that has the given size.
 *
 * The VM stays stopped: with KVM, the guest's firmware must not run, as it
 * would get in the way of the driver in this test.
 */
static void vm_boot(TestVM *vm, uint64_t device_memory_size, const char *args)
{
    vm->qs = boot("-S -nodefaults -machine %s %s %s"
                  " -chardev socket,id=hmp,path=%s,server=on,wait=off"
                  " -mon chardev=hmp,mode=readline"
                  " -D %s -trace flatview_new"
                  " -trace memslot_set_map -trace memslot_set_unmap %s"
                  " -m %" PRIu64 "B,maxmem=%" PRIu64 "B %s",
                  vm->machine, vm->kvm ? "-accel kvm" : "",
                  device_memory_size >= 1 * TiB ? arch->large_cpu : arch->cpu,
                  vm->hmp_path, vm->log_path,
                  vm->kvm ? "-trace kvm_set_user_memory" : "",
                  (uint64_t)BOOT_RAM_SIZE,
                  BOOT_RAM_SIZE + device_memory_size, args);
    vm->qts = vm->qs->qts;
    g_assert_cmpint(vm_kvm_enabled(vm), ==, vm->kvm);

    hmp_connect(vm);
    vm->log = fopen(vm->log_path, "r");
    g_assert_nonnull(vm->log);
    vm_skip_changes(vm);
    if (!vm->traced) {
        g_test_message("QEMU was built without the log backend for trace"
                       " events: not looking at single changes");
    }
}

/* With extra arguments for QEMU, which may be empty. */
static TestVM *vm_start_with(const TestCase *test, const DeviceConfig *configs,
                             unsigned int nb_devices, const char *extra_args)
{
    g_autoptr(GString) args = g_string_new(extra_args);
    TestVM *vm = vm_new(test);
    uint64_t size = 0;
    unsigned int i;

    for (i = 0; i < nb_devices; i++) {
        g_autofree char *backend = backend_args(vm->tmpdir, i, &configs[i]);
        g_autofree char *device = device_args(i, &configs[i]);

        g_string_append_printf(args, " -object %s -device %s", backend, device);
        size += configs[i].size;
    }

    vm_boot(vm, size, args->str);
    for (i = 0; i < nb_devices; i++) {
        device_init(vm, i, &configs[i]);
    }
    vm_check(vm);
    return vm;
}

static TestVM *vm_start(const TestCase *test)
{
    return vm_start_with(test, &test->config, 1, "");
}

static void vm_stop(TestVM *vm)
{
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        Device *dev = &vm->devices[i];

        qvirtio_mem_pci_free(dev->pci);
        g_free(dev->memdev);
        g_free(dev->qom_path);
        g_free(dev->model.plugged);
        g_array_unref(dev->was_mapped);
    }
    qtest_shutdown(vm->qs);

    close(vm->hmp_fd);
    fclose(vm->log);
    qtest_remove_abrt_handler(vm->tmpdir);
    remove_dir(vm->tmpdir);
    g_free(vm->hmp_path);
    g_free(vm->log_path);
    g_free(vm->tmpdir);
    g_free(vm);
}

/* ---- Tests ---- */

static void test_features(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    QVirtioMEM *mem = vm_mem(vm, 0);
    const uint64_t inaccessible = 1ull << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE;
    const uint64_t features = mem->vdev->features;

    g_assert_cmpint(test->config.expect_inaccessible, ==,
                    qvirtio_mem_has_feature(mem,
                                        VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE));

    /* A driver that would touch unplugged memory must not start. */
    g_assert_true(qvirtio_mem_accepts_features(mem, features));
    g_assert_cmpint(qvirtio_mem_accepts_features(mem, features & ~inaccessible),
                    ==, !test->config.expect_inaccessible);

    qvirtio_mem_start(mem);
    vm_check(vm);
    vm_stop(vm);
}

/* From nothing to all and back, memslot by memslot and across memslots. */
static void test_lifecycle(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t size = model->region_size, block = model->block_size;
    const uint64_t memslot_size = model_memslot_size(model, 0);
    const uint64_t nb_memslots = model_nb_memslots(model);
    const uint64_t last_offset = model_memslot_offset(model, nb_memslots - 1);
    const uint64_t last_size = model_memslot_size(model, nb_memslots - 1);
    const uint64_t half = ROUND_DOWN(memslot_size / 2, block);
    const bool on_demand = model->memslot_size && model->unplugged_inaccessible;
    uint16_t state;

    g_assert_cmpuint(model_nb_mapped(model), ==, model->memslot_size ? 0 : 1);
    request_size(vm, 0, size);

    /* The first and the last block of a memslot make it come and go alone. */
    assert_ack(plug_at(vm, 0, model->addr, 1));
    assert_ack(state_at(vm, 0, model->addr, 1, &state));
    g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_PLUGGED);
    if (size > block) {
        assert_ack(state_at(vm, 0, model->addr + block, 1, &state));
        g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_UNPLUGGED);
        assert_ack(state_at(vm, 0, model->addr, 2, &state));
        g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_MIXED);
    }
    if (memslot_size > block) {
        assert_ack(plug_at(vm, 0, model->addr + memslot_size - block, 1));
        assert_ack(unplug_at(vm, 0, model->addr, 1));
        assert_ack(unplug_at(vm, 0, model->addr + memslot_size - block, 1));
    } else {
        assert_ack(unplug_at(vm, 0, model->addr, 1));
    }
    if (on_demand) {
        g_assert_cmpuint(model_nb_mapped(model), ==, 0);
    }

    /* Down to the very last block, in a memslot that might be shorter. */
    assert_ack(plug_at(vm, 0, model->addr + size - block, 1));
    if (last_size > block) {
        assert_ack(plug_at(vm, 0, model->addr + last_offset, 1));
        assert_ack(unplug_at(vm, 0, model->addr + size - block, 1));
        assert_ack(unplug_at(vm, 0, model->addr + last_offset, 1));
    } else {
        assert_ack(unplug_at(vm, 0, model->addr + size - block, 1));
    }

    if (nb_memslots > 1) {
        /* One request for two memslots, one of which keeps a block. */
        const uint64_t addr = model->addr + memslot_size - block;

        assert_ack(plug_at(vm, 0, addr, 2));
        if (last_size > block) {
            assert_ack(plug_at(vm, 0, addr + 2 * block, 1));
        }
        assert_ack(unplug_at(vm, 0, addr, 2));
        if (last_size > block) {
            assert_ack(unplug_at(vm, 0, addr + 2 * block, 1));
        }
    }

    change_many(vm, 0, 0, size, true);
    g_assert_cmpuint(model_nb_mapped(model), ==, nb_memslots);
    change_many(vm, 0, half, size - half, false);
    change_many(vm, 0, half, size - half, true);
    change_many(vm, 0, 0, size, false);
    if (on_demand) {
        g_assert_cmpuint(model_nb_mapped(model), ==, 0);
    }

    change_many(vm, 0, 0, size, true);
    request_size(vm, 0, 0);
    g_assert_cmpuint(model_nb_mapped(model), ==, nb_memslots);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmpuint(model_nb_mapped(model), ==, model->memslot_size ? 0 : 1);
    /* Nothing is left to be done. */
    assert_ack(unplug_all(vm, 0));

    vm_stop(vm);
}

static void test_bad_ranges(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    const uint64_t requested = 1 * GiB + 8 * block;
    uint64_t usable, usable_end;
    uint16_t state;
    unsigned int i;

    /* Without a requested size, there is no usable region. */
    assert_error(plug_at(vm, 0, addr, 1));
    assert_error(unplug_at(vm, 0, addr, 1));
    assert_error(state_at(vm, 0, addr, 1, &state));

    request_size(vm, 0, requested);
    usable = model->usable_size;
    usable_end = addr + usable;
    g_assert_cmphex(usable, <, model->region_size);

    /* Exceeding what was requested */
    assert_nack(plug_at(vm, 0, addr, requested / block + 1));
    assert_ack(plug_at(vm, 0, addr + block, requested / block - 1));
    assert_nack(plug_at(vm, 0, usable_end - 2 * block, 2));
    assert_ack(plug_at(vm, 0, usable_end - block, 1));
    assert_nack(plug_at(vm, 0, addr, 1));
    assert_ack(unplug_at(vm, 0, usable_end - block, 1));
    assert_ack(unplug_at(vm, 0, addr + block, 4));
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 4));

    /* Overlapping with blocks that already are as they shall become */
    assert_error(plug_at(vm, 0, addr + 5 * block, 1));
    assert_error(plug_at(vm, 0, addr + 4 * block, 2));
    assert_error(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    assert_error(plug_at(vm, 0, addr + 1 * GiB + 3 * block, 2));
    assert_error(unplug_at(vm, 0, addr, 1));
    assert_error(unplug_at(vm, 0, addr + 4 * block, 2));
    assert_error(unplug_at(vm, 0, addr + 1 * GiB - block, 2));
    assert_error(unplug_at(vm, 0, usable_end - block, 1));

    const struct {
        uint64_t addr;
        uint16_t nb_blocks;
    } invalid[] = {
        /* no block */
        { addr, 0 },
        { addr + 8 * block, 0 },
        /* misaligned */
        { addr + 1, 1 },
        { addr + block / 2, 1 },
        { addr - 1, 1 },
        /* outside of the region */
        { 0, 1 },
        { addr - block, 1 },
        { addr - block, 2 },
        { addr + model->region_size, 1 },
        { addr + model->region_size - block, 2 },
        { addr, MAX_REQUEST_BLOCKS },
        /* outside of the usable region */
        { usable_end, 1 },
        { usable_end - block, 2 },
        { addr, usable / block + 1 },
        { addr + model->region_size - block, 1 },
        /* not below the end of the address space */
        { -block, 1 },
        { -block, 2 },
        { -block * 16, MAX_REQUEST_BLOCKS },
        { UINT64_MAX, 1 },
    };

    for (i = 0; i < ARRAY_SIZE(invalid); i++) {
        assert_error(plug_at(vm, 0, invalid[i].addr, invalid[i].nb_blocks));
        assert_error(unplug_at(vm, 0, invalid[i].addr, invalid[i].nb_blocks));
        assert_error(state_at(vm, 0, invalid[i].addr, invalid[i].nb_blocks,
                              &state));
    }
    vm_stop(vm);
}

static void test_malformed_requests(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    QVirtioMEM *mem = vm_mem(vm, 0);
    Model *model = vm_model(vm, 0);
    struct virtio_mem_req plug = {
        .type = cpu_to_le16(VIRTIO_MEM_REQ_PLUG),
        .u.plug.addr = cpu_to_le64(model->addr + 2 * GiB),
        .u.plug.nb_blocks = cpu_to_le16(1),
    };
    struct virtio_mem_req unknown = plug, unknown_max = plug;
    /* The spec allows for more than is needed, on both sides. */
    uint8_t long_req[sizeof(plug) + 64] = { }, long_resp[64];
    struct virtio_mem_resp resp;
    const struct {
        const void *req;
        size_t req_size;
        size_t resp_size;
    } malformed[] = {
        { &plug, sizeof(plug) - 1, sizeof(resp) },
        { &plug, 1, sizeof(resp) },
        { &plug, sizeof(plug), sizeof(resp) - 1 },
        { &plug, sizeof(plug), 1 },
        { &unknown, sizeof(unknown), sizeof(resp) },
        { &unknown_max, sizeof(unknown_max), sizeof(resp) },
    };
    unsigned int i;

    unknown.type = cpu_to_le16(VIRTIO_MEM_REQ_STATE + 1);
    unknown_max.type = cpu_to_le16(UINT16_MAX);

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, model->addr + 1 * GiB, 1));

    for (i = 0; i < ARRAY_SIZE(malformed); i++) {
        g_assert_false(qvirtio_mem_request(mem, malformed[i].req,
                                           malformed[i].req_size, &resp,
                                           malformed[i].resp_size));
        vm_check(vm);
        qvirtio_mem_start(mem);
        vm_check(vm);
        assert_ack(plug_at(vm, 0, model->addr + 2 * GiB, 1));
        assert_ack(unplug_at(vm, 0, model->addr + 2 * GiB, 1));
    }

    memcpy(long_req, &plug, sizeof(plug));
    g_assert_true(qvirtio_mem_request(mem, long_req, sizeof(long_req),
                                      long_resp, sizeof(long_resp)));
    memcpy(&resp, long_resp, sizeof(resp));
    g_assert_cmpint(le16_to_cpu(resp.type), ==, VIRTIO_MEM_RESP_ACK);
    assert_ack(model_plug(model, model->addr + 2 * GiB, 1));
    vm_check(vm);

    vm_stop(vm);
}

/* The usable region grows along with the requested size, then shrinks late. */
static void test_usable_region(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t block = model->block_size;
    const bool follows = model->memslot_size && !model->unplugged_inaccessible;
    /* The first memslot that the usable region of one block does not touch */
    const uint64_t memslot = model->usable_extent / GiB + 1;
    const uint64_t offset = memslot * GiB;

    request_size(vm, 0, block);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot);
    }
    /* The last size for which that many memslots are enough, and one more */
    request_size(vm, 0, offset - model->usable_extent);
    g_assert_cmphex(model->usable_size, ==, offset);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot);
    }
    request_size(vm, 0, offset - model->usable_extent + block);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot + 1);
    }
    assert_ack(plug_at(vm, 0, model->addr + offset, 1));

    request_size(vm, 0, model->region_size);
    g_assert_cmphex(model->usable_size, ==, model->region_size);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, model_nb_memslots(model));
    }

    request_bad_size(vm, 0, block / 2);
    request_bad_size(vm, 0, model->region_size + block);

    request_size(vm, 0, block);
    assert_ack(unplug_at(vm, 0, model->addr + offset, 1));
    g_assert_cmphex(model->usable_size, ==, model->region_size);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(model->usable_size, <, offset);
    if (follows) {
        g_assert_cmpuint(model_nb_mapped(model), ==, memslot);
    }

    request_size(vm, 0, 0);
    g_assert_cmphex(model->usable_size, >, 0);
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(model->usable_size, ==, 0);

    vm_stop(vm);
}

static void test_reset(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t blocks_per_gib = 1 * GiB / model->block_size;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, model->addr + 1 * GiB / 2, blocks_per_gib));
    assert_ack(plug_at(vm, 0, model->addr + 3 * GiB, 1));

    /* A reset of the device alone does not touch the memory. */
    qvirtio_mem_start(vm_mem(vm, 0));
    vm_check(vm);

    system_reset(vm);
    g_assert_cmphex(model->usable_size, ==, model->region_size);
    assert_ack(plug_at(vm, 0, model->addr + 1 * GiB / 2, blocks_per_gib));

    request_size(vm, 0, model->block_size);
    system_reset(vm);
    g_assert_cmphex(model->usable_size, <, 2 * GiB);

    request_size(vm, 0, 0);
    system_reset(vm);
    g_assert_cmphex(model->usable_size, ==, 0);
    vm_stop(vm);
}

/* What is in a plugged block stays, whatever happens to the memslots around. */
static void test_contents(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr + 1 * GiB, block = model->block_size;
    const uint64_t pattern = 0x0123456789abcdefull;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr, 2));
    qtest_writeq(vm->qts, addr, pattern);
    qtest_writeq(vm->qts, addr + 2 * block - sizeof(pattern), ~pattern);

    assert_ack(plug_at(vm, 0, addr - block, 1));
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 1));
    assert_ack(unplug_at(vm, 0, addr - block, 1));
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr), ==, pattern);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 2 * block - sizeof(pattern)),
                    ==, ~pattern);

    /* Unplugged memory is given back, so nothing of it can be left. */
    assert_ack(unplug_at(vm, 0, addr, 1));
    assert_ack(plug_at(vm, 0, addr, 1));
    g_assert_cmphex(qtest_readq(vm->qts, addr), ==, 0);
    g_assert_cmphex(qtest_readq(vm->qts, addr + 2 * block - sizeof(pattern)),
                    ==, ~pattern);

    assert_ack(unplug_all(vm, 0));
    assert_ack(plug_at(vm, 0, addr, 2));
    g_assert_cmphex(qtest_readq(vm->qts, addr + 2 * block - sizeof(pattern)),
                    ==, 0);
    vm_stop(vm);
}

static uint64_t random_below(uint64_t end)
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

static void random_step(TestVM *vm, unsigned int i)
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

static void test_random_walk(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    unsigned int i;

    request_size(vm, 0, vm_model(vm, 0)->region_size);
    for (i = 0; i < RANDOM_STEPS; i++) {
        random_step(vm, 0);
    }
    vm_stop(vm);
}

/* Each device minds its own memslots, though they are next to each other. */
static void test_two_devices(const TestCase *test)
{
    DeviceConfig configs[MAX_DEVICES] = { test->config, test->config };
    unsigned int i;
    TestVM *vm;

    /* Put the second device where no memslot would be if it were the first. */
    configs[0].size = 2 * GiB + 514 * MiB;
    vm = vm_start_with(test, configs, MAX_DEVICES, "");
    g_assert_cmphex(vm_model(vm, 1)->addr % GiB, !=, 0);

    for (i = 0; i < MAX_DEVICES; i++) {
        request_size(vm, i, vm_model(vm, i)->region_size);
        change_many(vm, i, 0, vm_model(vm, i)->region_size, true);
    }
    assert_ack(unplug_all(vm, 0));
    g_assert_cmpuint(model_nb_mapped(vm_model(vm, 1)), ==,
                     model_nb_memslots(vm_model(vm, 1)));
    for (i = 0; i < RANDOM_STEPS; i++) {
        random_step(vm, random_below(MAX_DEVICES));
    }
    system_reset(vm);
    vm_stop(vm);
}

/* However many memslots a step touches, listeners see one change. */
static void test_one_transaction(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    QVirtioMEM *mem = vm_mem(vm, 0);
    const uint64_t nb_blocks = model->region_size / model->block_size;
    unsigned int nb_flatviews;
    QDict *rsp;

    if (!vm->traced) {
        g_test_skip("needs trace events in the log");
        vm_stop(vm);
        return;
    }

    /* vm_check() returns what one step led to; the first maps one memslot. */
    if (model->unplugged_inaccessible) {
        request_size(vm, 0, model->region_size);
        assert_ack(qvirtio_mem_plug(mem, model->addr, 1));
        assert_ack(model_plug(model, model->addr, 1));
        nb_flatviews = vm_check(vm);

        assert_ack(qvirtio_mem_plug(mem, model->addr + model->block_size,
                                    nb_blocks - 1));
        assert_ack(model_plug(model, model->addr + model->block_size,
                              nb_blocks - 1));
        g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

        assert_ack(qvirtio_mem_unplug(mem, model->addr, nb_blocks));
        assert_ack(model_unplug(model, model->addr, nb_blocks));
        g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

        assert_ack(plug_at(vm, 0, model->addr, nb_blocks));
    } else {
        rsp = qom_set_requested_size(vm, 0, model->block_size);
        model_request_size(model, model->block_size);
        qobject_unref(rsp);
        nb_flatviews = vm_check(vm);

        rsp = qom_set_requested_size(vm, 0, model->region_size);
        model_request_size(model, model->region_size);
        qobject_unref(rsp);
        g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

        request_size(vm, 0, 0);
    }
    g_assert_cmpuint(nb_flatviews, >, 0);
    g_assert_cmpuint(model_nb_mapped(model), ==, model_nb_memslots(model));

    assert_ack(qvirtio_mem_unplug_all(mem));
    assert_ack(model_unplug_all(model));
    g_assert_cmpuint(vm_check(vm), ==, nb_flatviews);

    vm_stop(vm);
}

static char *migration_status(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    char *status = g_strdup(qdict_get_str(qdict_get_qdict(rsp, "return"),
                                          "status"));

    qobject_unref(rsp);
    return status;
}

static void wait_for_migration_status(TestVM *vm, const char *wanted)
{
    const gint64 start_time = g_get_monotonic_time();
    bool reached = false;

    while (!reached) {
        g_autofree char *status = migration_status(vm);

        reached = g_str_equal(status, wanted);
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        MIGRATION_TIMEOUT_US);
        g_usleep(1000);
    }
}

/* A request that fails because of a migration leaves all as it is. */
static void test_busy_while_migrating(const TestCase *test)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    g_autofree char *status = NULL;
    uint16_t state;

    request_size(vm, 0, 2 * GiB);
    assert_ack(plug_at(vm, 0, addr, 4));

    /* Too slow to be over before we are; anything below 10 means no limit. */
    qtest_qmp_assert_success(vm->qts,
                             "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'max-bandwidth': 1000 } }");
    qtest_qmp_assert_success(vm->qts,
                             "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': 'exec:cat >/dev/null' } }");
    model->busy = BUSY_ALWAYS;
    wait_for_migration_status(vm, "active");
    /* Dirty logging was turned on, for which memslots change their flags. */
    vm_skip_changes(vm);

    assert_busy(plug_at(vm, 0, addr + 4 * block, 1));
    assert_busy(plug_at(vm, 0, addr + 1 * GiB, 1));
    assert_busy(unplug_at(vm, 0, addr, 1));
    assert_busy(unplug_at(vm, 0, addr, 4));
    assert_busy(unplug_all(vm, 0));
    assert_error(plug_at(vm, 0, addr, 1));
    assert_error(unplug_at(vm, 0, addr + 1 * GiB, 1));
    assert_ack(state_at(vm, 0, addr, 4, &state));
    g_assert_cmpint(state, ==, VIRTIO_MEM_STATE_PLUGGED);
    /* The usable region may grow, but not shrink. */
    request_size(vm, 0, 3 * GiB);
    request_size(vm, 0, 0);
    system_reset(vm);
    g_assert_cmphex(model_plugged_size(model), ==, 4 * block);

    status = migration_status(vm);
    g_assert_cmpstr(status, ==, "active");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate_cancel' }");
    wait_for_migration_status(vm, "cancelled");
    model->busy = BUSY_NEVER;
    vm_check(vm);

    request_size(vm, 0, 2 * GiB);
    assert_ack(unplug_at(vm, 0, addr, 4));
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 1));
    vm_stop(vm);
}

static uint64_t allocated_size(const char *path)
{
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return st.st_blocks * 512ull;
}

/* A request that fails for lack of memory leaves all as it is. */
static void test_prealloc_fails(const TestCase *test)
{
    g_autofree char *dir = create_tmpdir();
    g_autofree char *mem_path = g_build_filename(dir, "mem", NULL);
    g_autofree char *backend = NULL;
    DeviceConfig config = test->config;
    uint64_t addr, block, allocated;
    Model *model;
    TestVM *vm;

    /* In a mount namespace of its own, it goes away by itself. */
    if (unshare(CLONE_NEWNS) ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("virtio-mem-test", dir, "tmpfs", 0, "size=64M")) {
        g_autofree char *reason = g_strdup_printf("cannot mount a tmpfs: %s",
                                                  strerror(errno));

        g_test_skip(reason);
        g_assert_cmpint(rmdir(dir), ==, 0);
        return;
    }

    backend = g_strdup_printf("memory-backend-file,share=on,mem-path=%s",
                              mem_path);
    config.backend = backend;
    config.extra_props = "prealloc=on";
    vm = vm_start_with(test, &config, 1, "");
    model = vm_model(vm, 0);
    addr = model->addr;
    block = model->block_size;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB, 2));
    allocated = allocated_size(mem_path);
    g_assert_cmphex(allocated, ==, 2 * block);

    /* Three memslots, the second of which has plugged blocks or not */
    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr, 1 * GiB / block));
    g_assert_cmphex(allocated_size(mem_path), ==, allocated);
    assert_busy(plug_at(vm, 0, addr + 1 * GiB + 2 * block, 2 * GiB / block));
    g_assert_cmphex(allocated_size(mem_path), ==, allocated);
    assert_busy(plug_at(vm, 0, addr + 2 * GiB - block, 1 * GiB / block + 2));
    g_assert_cmphex(allocated_size(mem_path), ==, allocated);

    /* There still is room for less, and after that for nothing. */
    model->busy = BUSY_NEVER;
    assert_ack(plug_at(vm, 0, addr, 30));
    model->busy = BUSY_PLUG;
    assert_busy(plug_at(vm, 0, addr + 2 * GiB, 1));

    g_assert_cmpint(mount(NULL, dir, NULL, MS_REMOUNT, "size=128M"), ==, 0);
    model->busy = BUSY_NEVER;
    assert_ack(plug_at(vm, 0, addr + 2 * GiB, 1));
    assert_ack(plug_at(vm, 0, addr + 3 * GiB - block, 2));
    g_assert_cmphex(allocated_size(mem_path), ==, model_plugged_size(model));
    assert_ack(unplug_all(vm, 0));
    g_assert_cmphex(allocated_size(mem_path), ==, 0);

    vm_stop(vm);
    g_assert_cmpint(umount(dir), ==, 0);
    g_assert_cmpint(rmdir(dir), ==, 0);
}

static void assert_no_region_of_device(TestVM *vm)
{
    g_autofree char *text = hmp(vm, "info mtree");

    g_assert_null(strstr(text, "): virtio-mem\n"));
    g_assert_null(strstr(text, "alias memslot-"));
}

/* A device that fails to be realized leaves nothing behind. */
static void test_failed_realize(const TestCase *test)
{
    static const struct {
        const char *props;
        const char *error;
    } failures[] = {
        { "", "'memdev' property must be set" },
        { ",memdev=mem0,node=7", "'node' property has value '7'" },
        { ",memdev=mem0,block-size=3M", "has to be a power of two" },
        { ",memdev=mem0,requested-size=3M",
          "'requested-size' property has to be multiples of 'block-size'" },
        { ",memdev=mem0,memaddr=0x100100000", "address must be aligned to" },
        { ",memdev=odd", "multiple" },
        { ",memdev=huge", "not enough space" },
        { ",memdev=none", "not found" },
        { ",memdev=mem0,unplugged-inaccessible=maybe", "maybe" },
    };
    g_autofree char *backend = NULL;
    g_autofree char *device = device_args(0, &test->config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *args = NULL;
    g_autofree char *busy = NULL;
    TestVM *vm = vm_new(test);
    unsigned int i;

    backend = backend_args(vm->tmpdir, 0, &test->config);
    args = g_strdup_printf("-object %s"
                           " -object memory-backend-ram,id=odd,size=1027M"
                           " -object memory-backend-ram,id=huge,size=16G,"
                           "reserve=off", backend);
    /* Not for lack of space shall a second device fail. */
    vm_boot(vm, 2 * test->config.size, args);

    for (i = 0; i < ARRAY_SIZE(failures); i++) {
        g_autofree char *command =
            g_strdup_printf("device_add virtio-mem-pci,id=vm0,addr=04.0,"
                            "multiple-memslots=%s%s",
                            test->config.multiple_memslots ? "on" : "off",
                            failures[i].props);
        g_autofree char *output = hmp(vm, command);

        g_test_message("%s: %s", command, output);
        g_assert_nonnull(strstr(output, failures[i].error));
        assert_no_region_of_device(vm);
    }

    /* It is still to be had in full. */
    busy = hmp(vm, device_add);
    g_assert_cmpstr(busy, ==, "");
    vm_skip_changes(vm);
    device_init(vm, 0, &test->config);
    vm_check(vm);
    request_size(vm, 0, test->config.size);
    change_many(vm, 0, 0, test->config.size, true);

    g_free(busy);
    busy = hmp(vm, "device_add virtio-mem-pci,id=vm1,addr=05.0,memdev=mem0");
    g_assert_nonnull(strstr(busy, "busy memdev: mem0"));
    vm_check(vm);
    assert_ack(unplug_all(vm, 0));
    vm_stop(vm);
}

/* ---- Listeners that mirror what is plugged, as VFIO does ---- */

#define TESTDEV "-device ram-discard-testdev,id=testdev"
#define TESTDEV_PATH "/machine/peripheral/testdev"

/* The listeners know of all that is plugged, and were told in order. */
static void check_listeners(TestVM *vm)
{
    uint64_t plugged = 0;
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        plugged += model_plugged_size(vm_model(vm, i));
    }
    g_assert_cmphex(qom_get_size(vm, TESTDEV_PATH, "populated"), ==, plugged);
    g_assert_cmpuint(qom_get_size(vm, TESTDEV_PATH, "errors"), ==, 0);
}

static void limit_listeners(TestVM *vm, uint64_t size)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': %s, 'property': 'max-populated',"
                             " 'value': %" PRIu64 " } }", TESTDEV_PATH, size);
}

/* Listeners refuse a request; all is as before it, memslots too. */
static void plug_refused(TestVM *vm, uint64_t addr, uint64_t nb_blocks)
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

static void test_listeners(const TestCase *test)
{
    TestVM *vm = vm_start_with(test, &test->config, 1, TESTDEV);
    Model *model = vm_model(vm, 0);
    const uint64_t addr = model->addr, block = model->block_size;

    request_size(vm, 0, model->region_size);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB - block, 2));
    check_listeners(vm);
    assert_ack(plug_at(vm, 0, addr + 1 * GiB + 8 * block, 2));
    check_listeners(vm);

    /* Refused by the first listener, or after the first one has agreed */
    limit_listeners(vm, model_plugged_size(model));
    plug_refused(vm, addr + 2 * GiB, 1);
    plug_refused(vm, addr, 1);
    limit_listeners(vm, model_plugged_size(model) + block);
    plug_refused(vm, addr + 2 * GiB - block, 2);
    plug_refused(vm, addr + 3 * GiB - block, 2);

    limit_listeners(vm, UINT64_MAX);
    assert_ack(plug_at(vm, 0, addr + 3 * GiB - block, 2));
    check_listeners(vm);
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB - block, 1));
    check_listeners(vm);
    assert_ack(unplug_at(vm, 0, addr + 1 * GiB, 1));
    check_listeners(vm);
    system_reset(vm);
    check_listeners(vm);

    assert_ack(plug_at(vm, 0, addr, 4));
    request_size(vm, 0, 0);
    assert_ack(unplug_all(vm, 0));
    check_listeners(vm);
    vm_stop(vm);
}

/* ---- Migration ---- */

static void migrate_to_file(TestVM *vm, const char *path)
{
    g_autofree char *uri = g_strdup_printf("exec:cat >%s", path);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': %s } }", uri);
    wait_for_migration_status(vm, "completed");
}

/* Returns the memory that migration looked at and sent, in whatever form. */
static uint64_t migrated_size(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    QDict *ram = qdict_get_qdict(qdict_get_qdict(rsp, "return"), "ram");
    const uint64_t pages = qdict_get_int(ram, "normal") +
                           qdict_get_int(ram, "duplicate");
    const uint64_t size = pages * qdict_get_int(ram, "page-size");

    qobject_unref(rsp);
    return size;
}

static bool incoming_is_done(TestVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-migrate' }");
    QDict *info = qdict_get_qdict(rsp, "return");
    const char *status = qdict_get_try_str(info, "status");
    const bool done = status && g_str_equal(status, "completed");

    g_assert_true(!status || !g_str_equal(status, "failed"));
    qobject_unref(rsp);
    return done;
}

static void migrate_from_file(TestVM *vm, const char *path)
{
    const gint64 start_time = g_get_monotonic_time();
    g_autofree char *uri = g_strdup_printf("exec:cat %s", path);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    while (!incoming_is_done(vm)) {
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        MIGRATION_TIMEOUT_US);
        g_usleep(1000);
    }
}

/* The device that has arrived is to be as the one that was sent. */
static void device_init_migrated(TestVM *vm, const DeviceConfig *config,
                                 const Model *from)
{
    Device *dev = &vm->devices[0];
    uint64_t i;

    device_init(vm, 0, config);
    dev->model.requested_size = from->requested_size;
    dev->model.usable_size = from->usable_size;
    memcpy(dev->model.plugged, from->plugged,
           from->region_size / from->block_size * sizeof(*from->plugged));
    for (i = 0; i < model_nb_memslots(&dev->model); i++) {
        g_array_index(dev->was_mapped, bool, i) =
            model_memslot_mapped(&dev->model, i);
    }
}

/* The devices are not known to the VM until their state has arrived. */
static TestVM *boot_destination(const TestCase *test,
                                const DeviceConfig *config,
                                const char *extra_args)
{
    TestVM *vm = vm_new(test);
    g_autofree char *backend = backend_args(vm->tmpdir, 0, config);
    g_autofree char *device = device_args(0, config);
    g_autofree char *args = g_strdup_printf("%s -object %s -device %s"
                                            " -incoming defer", extra_args,
                                            backend, device);

    vm_boot(vm, config->size, args);
    return vm;
}

static void check_migration(const TestCase *test, bool to_multiple_memslots,
                            const char *requested_before)
{
    const uint64_t pattern = 0x0123456789abcdef;
    TestVM *from = vm_start_with(test, &test->config, 1, TESTDEV);
    Model *model = vm_model(from, 0);
    const uint64_t addr = model->addr, block = model->block_size;
    g_autofree char *path = g_build_filename(from->tmpdir, "state", NULL);
    g_autofree char *extra_props = g_strdup_printf("requested-size=%s",
                                                   requested_before);
    DeviceConfig config = test->config;
    TestVM *to;

    request_size(from, 0, 3 * GiB - 512 * MiB);
    assert_ack(plug_at(from, 0, addr, 3));
    assert_ack(plug_at(from, 0, addr + 2 * GiB - block, 2));
    assert_ack(unplug_at(from, 0, addr + block, 1));
    qtest_writeq(from->qts, addr + 2 * block, pattern);
    qtest_writeq(from->qts, addr + 2 * GiB, ~pattern);
    migrate_to_file(from, path);

    config.multiple_memslots = to_multiple_memslots;
    config.memslot_size = 1 * GiB;
    config.extra_props = extra_props;
    to = boot_destination(test, &config, TESTDEV);
    migrate_from_file(to, path);

    device_init_migrated(to, &config, model);
    vm_skip_changes(to);
    vm_check(to);
    check_listeners(to);
    g_assert_cmphex(qtest_readq(to->qts, addr + 2 * block), ==, pattern);
    g_assert_cmphex(qtest_readq(to->qts, addr + 2 * GiB), ==, ~pattern);

    /* Life goes on. */
    assert_ack(unplug_at(to, 0, addr + 2 * GiB - block, 1));
    assert_ack(plug_at(to, 0, addr + 1 * GiB, 2));
    check_listeners(to);
    assert_ack(unplug_all(to, 0));
    check_listeners(to);

    vm_stop(to);
    vm_stop(from);
}

/* A listener that can't take what is plugged must not go unheard. */
static void test_migration_refused(const TestCase *test)
{
    TestVM *from = vm_start(test);
    Model *model = vm_model(from, 0);
    g_autofree char *path = g_build_filename(from->tmpdir, "state", NULL);
    g_autofree char *extra_args = NULL;
    g_autofree char *uri = g_strdup_printf("exec:cat %s", path);
    gint64 start_time;
    TestVM *to;

    request_size(from, 0, model->region_size);
    assert_ack(plug_at(from, 0, model->addr + 1 * GiB - model->block_size, 2));
    migrate_to_file(from, path);

    extra_args = g_strdup_printf(TESTDEV ",max-populated=%" PRIu64,
                                 model->block_size);
    to = boot_destination(test, &test->config, extra_args);
    start_time = g_get_monotonic_time();
    qtest_qmp_assert_success(to->qts, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    qtest_set_expected_status(to->qts, EXIT_FAILURE);
    while (qtest_probe_child(to->qts)) {
        g_assert_cmpint(g_get_monotonic_time() - start_time, <=,
                        MIGRATION_TIMEOUT_US);
        g_usleep(1000);
    }

    vm_stop(to);
    vm_stop(from);
}

static void check_migration_size(const TestCase *test, uint64_t plugged)
{
    TestVM *vm = vm_start(test);
    Model *model = vm_model(vm, 0);
    g_autofree char *path = g_build_filename(vm->tmpdir, "state", NULL);

    request_size(vm, 0, plugged ? model->region_size : 0);
    if (plugged) {
        assert_ack(plug_at(vm, 0, model->addr + 2 * GiB - plugged / 2,
                           plugged / model->block_size));
    }
    migrate_to_file(vm, path);
    g_assert_cmphex(migrated_size(vm), >=, BOOT_RAM_SIZE + plugged);
    g_assert_cmphex(migrated_size(vm), <,
                    BOOT_RAM_SIZE + plugged + arch->other_ram);
    vm_stop(vm);
}

/* Unplugged memory is not sent, whether any of the rest is mapped or not. */
static void test_migration_size(const TestCase *test)
{
    check_migration_size(test, 0);
    check_migration_size(test, 128 * MiB);
}

static void test_migration(const TestCase *test)
{
    int to_multiple;

    for (to_multiple = 0; to_multiple < 2; to_multiple++) {
        /* Less than what is about to arrive, or more */
        check_migration(test, to_multiple, "0");
        check_migration(test, to_multiple, "4G");
    }
}

/* ---- What KVM allocates in the kernel ---- */

static uint64_t meminfo(const char *field)
{
    g_autofree char *text = NULL;
    const char *line;
    uint64_t kib;

    g_assert_true(g_file_get_contents("/proc/meminfo", &text, NULL, NULL));
    line = strstr(text, field);
    g_assert_nonnull(line);
    g_assert_cmpint(sscanf(line + strlen(field), ": %" SCNu64 " kB", &kib),
                    ==, 1);
    return kib * KiB;
}

static int64_t growth_since(uint64_t start)
{
    return (int64_t)meminfo("VmallocUsed") - (int64_t)start;
}

typedef struct KernelMemory {
    int64_t nothing_plugged;
    int64_t one_gib_plugged;
    int64_t all_unplugged;
} KernelMemory;

static KernelMemory measure_kernel_memory(const TestCase *test,
                                          const DeviceConfig *config)
{
    TestVM *vm = vm_new(test);
    g_autofree char *backend = backend_args(vm->tmpdir, 0, config);
    g_autofree char *device = device_args(0, config);
    g_autofree char *device_add = g_strdup_printf("device_add %s", device);
    g_autofree char *args = g_strdup_printf("-object %s", backend);
    g_autofree char *output = NULL;
    KernelMemory result;
    Model *model;
    uint64_t start;

    vm_boot(vm, config->size, args);
    start = meminfo("VmallocUsed");
    output = hmp(vm, device_add);
    g_assert_cmpstr(output, ==, "");
    result.nothing_plugged = growth_since(start);

    vm_skip_changes(vm);
    device_init(vm, 0, config);
    model = vm_model(vm, 0);
    request_size(vm, 0, 1 * GiB);
    assert_ack(plug_at(vm, 0, model->addr, 1 * GiB / model->block_size));
    result.one_gib_plugged = growth_since(start);
    assert_ack(unplug_all(vm, 0));
    result.all_unplugged = growth_since(start);

    vm_stop(vm);
    return result;
}

static void kernel_memory_min(KernelMemory *a, const KernelMemory *b)
{
    a->nothing_plugged = MIN(a->nothing_plugged, b->nothing_plugged);
    a->one_gib_plugged = MIN(a->one_gib_plugged, b->one_gib_plugged);
    a->all_unplugged = MIN(a->all_unplugged, b->all_unplugged);
}

static bool kernel_memory_fits(const KernelMemory *used, int64_t nothing,
                               int64_t one_memslot)
{
    return used->nothing_plugged < nothing &&
           used->one_gib_plugged < one_memslot + nothing &&
           used->all_unplugged < nothing;
}

static void test_kernel_memory(const TestCase *test)
{
    /* Other users of the kernel's memory come and go meanwhile. */
    const unsigned int max_attempts = 10;
    const int64_t noise = 4 * MiB;
    const uint64_t needed = test->config.size / 128;
    DeviceConfig single = test->config;
    KernelMemory used, used_single;
    int64_t one_memslot;
    unsigned int i;

    if (meminfo("MemAvailable") < needed) {
        g_test_skip("not enough memory to see what a single memslot costs");
        return;
    }

    single.multiple_memslots = false;
    used_single = measure_kernel_memory(test, &single);
    g_test_message("one memslot: %" PRId64 " KiB",
                   used_single.nothing_plugged / (int64_t)KiB);

    one_memslot = used_single.nothing_plugged /
                  (int64_t)(test->config.size / test->config.memslot_size);
    used = measure_kernel_memory(test, &test->config);
    for (i = 1; i < max_attempts &&
                !kernel_memory_fits(&used, noise, one_memslot); i++) {
        const KernelMemory again = measure_kernel_memory(test, &test->config);

        kernel_memory_min(&used, &again);
    }
    g_test_message("multiple memslots: nothing plugged %" PRId64 " KiB,"
                   " 1 GiB plugged %" PRId64 " KiB, all unplugged %" PRId64
                   " KiB", used.nothing_plugged / (int64_t)KiB,
                   used.one_gib_plugged / (int64_t)KiB,
                   used.all_unplugged / (int64_t)KiB);

    g_assert_cmpint(used.nothing_plugged, <, noise);
    g_assert_cmpint(used.one_gib_plugged, <, one_memslot + noise);
    g_assert_cmpint(used.all_unplugged, <, noise);
}

/* ---- The tables of devices and of tests ---- */

#define INACCESSIBLE                                                       \
    .unplugged_inaccessible = "on", .expect_inaccessible = true
#define ACCESSIBLE                                                         \
    .unplugged_inaccessible = "off", .expect_inaccessible = false
#define AUTO_INACCESSIBLE .expect_inaccessible = true
#define AUTO_ACCESSIBLE .expect_inaccessible = false

#define MULTIPLE(size_, memslot_size_)                                     \
    .size = size_, .multiple_memslots = true, .memslot_size = memslot_size_
#define SINGLE(size_) .size = size_

#define RAM "memory-backend-ram"
#define RAM_SHARED "memory-backend-ram,share=on"
#define RAM_SPARSE "memory-backend-ram,reserve=off"
#define MEMFD "memory-backend-memfd"
#define FILE_SHARED "memory-backend-file,share=on"
#define FILE_PRIVATE "memory-backend-file,share=off"

typedef struct NamedConfig {
    const char *name;
    DeviceConfig config;
} NamedConfig;

/* The devices that nearly all tests are good for */
static const NamedConfig basic_configs[] = {
    { "inaccessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "accessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { "single-inaccessible", { RAM, SINGLE(4 * GiB), INACCESSIBLE } },
    { "single-accessible", { RAM, SINGLE(4 * GiB), ACCESSIBLE } },
};

/* unplugged-inaccessible=auto depends on the kind of memory. */
static const NamedConfig auto_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "ram-shared",
      { RAM_SHARED, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "file", { FILE_SHARED, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "file-private",
      { FILE_PRIVATE, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "single-ram", { RAM, SINGLE(4 * GiB), AUTO_ACCESSIBLE } },
    { "single-memfd", { MEMFD, SINGLE(4 * GiB), AUTO_INACCESSIBLE } },
};

/* Devices of other shapes and kinds of memory */
static const NamedConfig more_configs[] = {
    { "memfd-inaccessible",
      { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "memfd-accessible", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { "file-inaccessible",
      { FILE_SHARED, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "file-accessible",
      { FILE_SHARED, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
    { "short-last-memslot-inaccessible",
      { RAM, MULTIPLE(2 * GiB + 518 * MiB, 1 * GiB), INACCESSIBLE } },
    { "short-last-memslot-accessible",
      { RAM, MULTIPLE(2 * GiB + 518 * MiB, 1 * GiB), ACCESSIBLE } },
    { "one-block-in-last-memslot",
      { RAM, MULTIPLE(2 * GiB + 2 * MiB, 1 * GiB), INACCESSIBLE } },
    { "small-inaccessible",
      { RAM, MULTIPLE(512 * MiB, 1 * GiB), INACCESSIBLE } },
    { "small-accessible", { RAM, MULTIPLE(512 * MiB, 1 * GiB), ACCESSIBLE } },
    { "blocks-of-64m",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE,
        .block_size = 64 * MiB } },
    /* The default on ARM with pages of 16 KiB and 64 KiB */
    { "blocks-of-32m",
      { RAM, MULTIPLE(2 * GiB + 32 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 32 * MiB } },
    { "blocks-of-512m",
      { RAM, MULTIPLE(5 * GiB + 512 * MiB, 1 * GiB), INACCESSIBLE,
        .block_size = 512 * MiB } },
    { "blocks-of-1g-inaccessible",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE,
        .block_size = 1 * GiB } },
    { "blocks-of-1g-accessible",
      { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE, .block_size = 1 * GiB } },
    { "blocks-of-2g",
      { RAM, MULTIPLE(6 * GiB, 2 * GiB), INACCESSIBLE,
        .block_size = 2 * GiB } },
    /* As many memslots as devices may have in all, hence larger ones */
    { "large-inaccessible",
      { RAM_SPARSE, MULTIPLE(1 * TiB, 4 * GiB), INACCESSIBLE } },
    { "large-accessible",
      { RAM_SPARSE, MULTIPLE(1 * TiB, 4 * GiB), ACCESSIBLE } },
};

static const NamedConfig multiple_configs[] = {
    { "inaccessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), INACCESSIBLE } },
    { "accessible", { RAM, MULTIPLE(4 * GiB, 1 * GiB), ACCESSIBLE } },
};

static const NamedConfig kernel_memory_configs[] = {
    { "inaccessible",
      { RAM_SPARSE, MULTIPLE(1 * TiB, 4 * GiB), INACCESSIBLE } },
};

typedef struct TestGroup {
    const char *name;
    void (*fn)(const TestCase *test);
    const NamedConfig *configs;
    unsigned int nb_configs;
    bool kvm_only;
    bool needs_hotplug;
} TestGroup;

#define WITH(array) .configs = array, .nb_configs = ARRAY_SIZE(array)

static const TestGroup test_groups[] = {
    { "features", test_features, WITH(basic_configs) },
    { "features-auto", test_features, WITH(auto_configs) },
    { "lifecycle", test_lifecycle, WITH(basic_configs) },
    { "lifecycle-auto", test_lifecycle, WITH(auto_configs) },
    { "lifecycle-more", test_lifecycle, WITH(more_configs) },
    { "random-walk", test_random_walk, WITH(basic_configs) },
    { "random-walk-more", test_random_walk, WITH(more_configs) },
    { "bad-ranges", test_bad_ranges, WITH(basic_configs) },
    { "malformed-requests", test_malformed_requests, WITH(basic_configs) },
    { "usable-region", test_usable_region, WITH(basic_configs) },
    { "reset", test_reset, WITH(basic_configs) },
    { "contents", test_contents, WITH(basic_configs) },
    { "two-devices", test_two_devices, WITH(basic_configs) },
    { "one-transaction", test_one_transaction, WITH(multiple_configs) },
    { "busy-while-migrating", test_busy_while_migrating, WITH(basic_configs) },
    { "prealloc-fails", test_prealloc_fails, WITH(basic_configs) },
    { "listeners", test_listeners, WITH(basic_configs) },
    { "migration", test_migration, WITH(basic_configs) },
    { "migration-refused", test_migration_refused, WITH(basic_configs) },
    { "migration-size", test_migration_size, WITH(basic_configs) },
    { "failed-realize", test_failed_realize, WITH(basic_configs),
      .needs_hotplug = true },
    { "kernel-memory", test_kernel_memory, WITH(kernel_memory_configs),
      .kvm_only = true, .needs_hotplug = true },
};

/* What is the default depends on the machine type. */
static const NamedConfig new_machine_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "memfd",
      { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "single-ram", { RAM, SINGLE(4 * GiB), AUTO_ACCESSIBLE } },
    { "single-memfd", { MEMFD, SINGLE(4 * GiB), AUTO_INACCESSIBLE } },
};

/* Up to version 6.2, unplugged-inaccessible is off unless asked for. */
static const NamedConfig old_machine_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "memfd",
      { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_ACCESSIBLE } },
    { "single-memfd", { MEMFD, SINGLE(4 * GiB), AUTO_ACCESSIBLE } },
    { "auto-ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB),
                    .unplugged_inaccessible = "auto" } },
    { "auto-memfd", { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE,
                      .unplugged_inaccessible = "auto" } },
};

static const NamedConfig arm_machine_configs[] = {
    { "ram", { RAM, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
    { "memfd",
      { MEMFD, MULTIPLE(4 * GiB, 1 * GiB), AUTO_INACCESSIBLE } },
};

/*
 * Other machine types, each with the tests in which a device meets its machine:
 * where it is mapped, how it is reset and migrated, what the guest gets to see.
 */
static const TestGroup machine_groups[] = {
    { "features", test_features, WITH(basic_configs) },
    { "lifecycle", test_lifecycle, WITH(basic_configs) },
    { "usable-region", test_usable_region, WITH(basic_configs) },
    { "reset", test_reset, WITH(basic_configs) },
    { "contents", test_contents, WITH(basic_configs) },
    { "migration", test_migration, WITH(basic_configs) },
};

typedef struct MachineType {
    const char *arch;
    /* as for -machine */
    const char *name;
    /* devices that have defaults of this machine type */
    const NamedConfig *configs;
    unsigned int nb_configs;
} MachineType;

static const MachineType machine_types[] = {
    { "x86_64", "pc-i440fx-6.2", WITH(old_machine_configs) },
    { "x86_64", "pc-i440fx-7.2", WITH(new_machine_configs) },
    { "x86_64", "pc-q35-6.2", WITH(old_machine_configs) },
    { "x86_64", "pc-q35-7.2", WITH(new_machine_configs) },
    { "aarch64", "virt-6.2", WITH(arm_machine_configs) },
    { "aarch64", "virt-7.2", WITH(arm_machine_configs) },
    /* with an address space of its own for secure memory */
    { "aarch64", "virt,secure=on", WITH(arm_machine_configs) },
};

static void run_test(const void *data)
{
    const TestCase *test = data;

    test->fn(test);
}

/* With the machine type NULL for the default one */
static void add_group(bool kvm, const char *prefix, const char *machine,
                      const TestGroup *group)
{
    unsigned int i;

    if ((group->kvm_only && !kvm) ||
        (group->needs_hotplug && !arch->has_hotplug)) {
        return;
    }
    for (i = 0; i < group->nb_configs; i++) {
        const NamedConfig *named = &group->configs[i];
        g_autofree char *path =
            g_strdup_printf("virtio-mem/%s/%s%s/%s", kvm ? "kvm" : "qtest",
                            prefix, group->name, named->name);
        TestCase *test;

        if (!named->config.expect_inaccessible && !arch->has_legacy_guests) {
            continue;
        }
        test = g_new(TestCase, 1);
        *test = (TestCase) {
            .kvm = kvm,
            .machine = machine,
            .fn = group->fn,
            .config = named->config,
        };
        qtest_add_data_func_full(path, test, run_test, g_free);
    }
}

static void add_machine_type(bool kvm, const MachineType *type)
{
    g_autofree char *prefix = g_strdup_printf("machines/%s/", type->name);
    const TestGroup default_groups[] = {
        { "features-default", test_features,
          .configs = type->configs, .nb_configs = type->nb_configs },
        { "lifecycle-default", test_lifecycle,
          .configs = type->configs, .nb_configs = type->nb_configs },
    };
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(machine_groups); i++) {
        add_group(kvm, prefix, type->name, &machine_groups[i]);
    }
    for (i = 0; i < ARRAY_SIZE(default_groups); i++) {
        add_group(kvm, prefix, type->name, &default_groups[i]);
    }
}

static void add_tests(bool kvm)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(test_groups); i++) {
        add_group(kvm, "", NULL, &test_groups[i]);
    }
    for (i = 0; i < ARRAY_SIZE(machine_types); i++) {
        if (g_str_equal(machine_types[i].arch, arch->name)) {
            add_machine_type(kvm, &machine_types[i]);
        }
    }
}

static const Arch *find_arch(const char *name)
{
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(archs); i++) {
        if (g_str_equal(archs[i].name, name)) {
            return &archs[i];
        }
    }
    g_assert_not_reached();
}

static bool kvm_is_usable(void)
{
    const int fd = open("/dev/kvm", O_RDWR);

    if (fd < 0) {
        return false;
    }
    close(fd);
    return qtest_has_accel("kvm");
}

static void skip_kvm(void)
{
    g_test_skip("KVM is not built in, or /dev/kvm can't be opened");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    arch = find_arch(qtest_get_arch());

    add_tests(false);
    if (kvm_is_usable()) {
        add_tests(true);
    } else {
        qtest_add_func("virtio-mem/kvm", skip_kvm);
    }
    return g_test_run();
}
