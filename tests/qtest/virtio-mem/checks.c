/*
 * What QEMU shows of virtio-mem devices, compared with their models
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "checks.h"

#define HMP_PROMPT "(qemu) "

static GString *hmp_read_to_prompt(TestVM *vm)
{
    GString *output = g_string_new(NULL);

    while (!g_str_has_suffix(output->str, HMP_PROMPT)) {
        char buf[4096];
        ssize_t len;

        len = RETRY_ON_EINTR(read(vm->hmp_fd, buf, sizeof(buf)));
        g_assert_cmpint(len, >, 0);
        g_string_append_len(output, buf, len);
    }
    return output;
}

void hmp_connect(TestVM *vm)
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

char *hmp(TestVM *vm, const char *command)
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
static char *shown_flat_ranges(const Device *dev, char **lines)
{
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
static char *shown_regions(const Device *dev, char **lines)
{
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
                           model->plan ? "virtio-mem" : dev->memdev);

    for (i = 0; model->plan && i < model_nb_memslots(model); i++) {
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

void check_regions(TestVM *vm)
{
    g_autofree char *flat_text = hmp(vm, "info mtree -f");
    g_auto(GStrv) flat_lines = find_paragraph(flat_text,
                                              " AS \"memory\", root: system");
    g_autofree char *text = hmp(vm, "info mtree");
    g_auto(GStrv) lines = find_paragraph(text, "address-space: memory");
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        const Device *dev = &vm->devices[i];
        g_autofree char *flat_shown = shown_flat_ranges(dev, flat_lines);
        g_autofree char *flat_expected = expected_flat_ranges(dev);
        g_autofree char *regions_shown = shown_regions(dev, lines);
        g_autofree char *regions_expected = expected_regions(dev);

        g_assert_cmpstr(flat_shown, ==, flat_expected);
        g_assert_cmpstr(regions_shown, ==, regions_expected);
    }
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
        unsigned int memslot, as, kvm_slot, flags;
        uint64_t offset, addr, size, hva, fd_offset;
        int fd, ret;

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
        } else if (sscanf(line, "kvm_set_user_memory AddrSpace#%u Slot#%u"
                          " flags=0x%x gpa=0x%" SCNx64 " size=0x%" SCNx64
                          " ua=0x%" SCNx64 " guest_memfd=%d"
                          " guest_memfd_offset=0x%" SCNx64 " ret=%d",
                          &as, &kvm_slot, &flags, &addr, &size, &hva, &fd,
                          &fd_offset, &ret) == 9) {
            if (vm_contains_addr(vm, addr)) {
                g_assert_true(ret == 0 || vm->devices[0].model.no_memslots);
                changes_add(changes, "kvm as=%u gpa=0x%" PRIx64
                            " size=0x%" PRIx64, as, addr, size);
            } else {
                vm->nb_kvm_as = MAX(vm->nb_kvm_as, as + 1);
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
    if (vm->traced && !vm->maps_in_vain) {
        shown_str = changes_to_string(&shown);
        expected_str = changes_to_string(&expected);
        g_assert_cmpstr(shown_str, ==, expected_str);
    }
    return shown.nb_flatviews;
}

/* ---- The check after each step ---- */

uint64_t qom_get_size(TestVM *vm, const char *path, const char *property)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'qom-get', 'arguments':"
                           " { 'path': %s, 'property': %s } }", path, property);
    uint64_t size;

    g_assert_true(qdict_haskey(rsp, "return"));
    size = qdict_get_int(rsp, "return");
    qobject_unref(rsp);
    return size;
}

bool qom_get_bool(TestVM *vm, const char *path, const char *property)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'qom-get', 'arguments':"
                           " { 'path': %s, 'property': %s } }", path, property);
    bool value;

    g_assert_true(qdict_haskey(rsp, "return"));
    value = qdict_get_bool(rsp, "return");
    qobject_unref(rsp);
    return value;
}

static void check_config(TestVM *vm, Device *dev)
{
    const Model *model = &dev->model;
    struct virtio_mem_config config;

    qvirtio_mem_read_config(&dev->pci->mem, &config);
    model_check_config(model, &config);

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

unsigned int vm_check(TestVM *vm)
{
    const unsigned int nb_flatviews = check_changes(vm);
    unsigned int i;

    for (i = 0; i < vm->nb_devices; i++) {
        check_config(vm, &vm->devices[i]);
    }
    check_regions(vm);
    check_account(vm);
    return nb_flatviews;
}

void check_all_unmapped(TestVM *vm)
{
    g_auto(Changes) shown = { };
    const GArray *was_mapped = vm->devices[0].was_mapped;
    int mapped = 0;
    unsigned int i;

    for (i = 0; i < was_mapped->len; i++) {
        mapped += g_array_index(was_mapped, bool, i);
    }
    read_changes(vm, &shown);
    for (i = 0; i < shown.lines->len; i++) {
        const char *line = g_ptr_array_index(shown.lines, i);

        mapped += g_str_has_prefix(line, "map ");
        mapped -= g_str_has_prefix(line, "unmap ");
    }
    /* A device that is one memslot never unmaps it. */
    if (vm->traced && was_mapped->len > 1) {
        g_assert_cmpint(mapped, ==, 0);
    }
}

void vm_skip_changes(TestVM *vm)
{
    g_auto(Changes) changes = { };

    read_changes(vm, &changes);
    /* Making a flat view can't be avoided: if none is there, nothing is. */
    vm->traced = vm->traced || changes.nb_flatviews;
    g_assert_true(!vm->kvm || !vm->traced || vm->nb_kvm_as);
}

uint64_t query_memslots(TestVM *vm, const char *what)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-memslots' }");
    const uint64_t value = qdict_get_int(qdict_get_qdict(rsp, "return"), what);

    qobject_unref(rsp);
    return value;
}

void assert_refused_event(TestVM *vm, unsigned int i, const char *refuser)
{
    QDict *event = qtest_qmp_eventwait_ref(vm->qts,
                                           "MEMORY_DEVICE_REQUEST_REFUSED");
    const QDict *data = qdict_get_qdict(event, "data");

    g_assert_cmpstr(qdict_get_str(data, "qom-path"), ==,
                    vm->devices[i].qom_path);
    g_assert_cmpstr(qdict_get_str(data, "refuser"), ==, refuser);
    g_assert_false(qdict_haskey(data, "backend"));
    g_assert_cmpint(qdict_get_int(data, "left-out"), ==, 0);
    qobject_unref(event);
}

void assert_no_region_of_device(TestVM *vm)
{
    g_autofree char *text = hmp(vm, "info mtree");

    g_assert_null(strstr(text, "): virtio-mem\n"));
    g_assert_null(strstr(text, "alias memslot-"));
}

void assert_hmp(TestVM *vm, const char *command, const char *expected)
{
    g_autofree char *output = hmp(vm, command);

    if (!*expected) {
        g_assert_cmpstr(output, ==, "");
    } else if (!strstr(output, expected)) {
        /* Shows both. */
        g_assert_cmpstr(output, ==, expected);
    }
}
