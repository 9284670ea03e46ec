/*
 * libqos client for a monitor of its own
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qobject.h"
#include <sys/socket.h>
#include <sys/un.h>

#define FLAT_VIEW_HEADER " AS \"memory\", root: system\n"

struct QMonitor {
    int fd;
    /* what came so far, without what was handled */
    GString *input;
};

/* Each object is a line. */
static QDict *read_object(QMonitor *mon)
{
    g_autofree char *line = NULL;
    char buf[32 * 1024];
    const char *end;

    while (!(end = memchr(mon->input->str, '\n', mon->input->len))) {
        ssize_t len;

        len = RETRY_ON_EINTR(read(mon->fd, buf, sizeof(buf)));
        g_assert_cmpint(len, >, 0);
        g_string_append_len(mon->input, buf, len);
    }
    line = g_strndup(mon->input->str, end - mon->input->str);
    g_string_erase(mon->input, 0, end + 1 - mon->input->str);
    return qobject_to(QDict, qobject_from_json(line, &error_abort));
}

QDict *qmonitor_vqmp(QMonitor *mon, const char *fmt, va_list ap)
{
    QObject *command = qobject_from_vjsonf_nofail(fmt, ap);
    g_autoptr(GString) line = qobject_to_json(command);
    ssize_t ret;

    qobject_unref(command);
    g_string_append_c(line, '\n');
    ret = RETRY_ON_EINTR(write(mon->fd, line->str, line->len));
    g_assert_cmpint(ret, ==, line->len);

    while (true) {
        QDict *object = read_object(mon);

        if (qdict_haskey(object, "return") || qdict_haskey(object, "error")) {
            return object;
        }
        qobject_unref(object);
    }
}

QDict *qmonitor_qmp(QMonitor *mon, const char *fmt, ...)
{
    QDict *response;
    va_list ap;

    va_start(ap, fmt);
    response = qmonitor_vqmp(mon, fmt, ap);
    va_end(ap);
    return response;
}

QMonitor *qmonitor_new(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    QMonitor *mon = g_new0(QMonitor, 1);
    QDict *response;

    g_assert_cmpuint(g_strlcpy(addr.sun_path, path, sizeof(addr.sun_path)), <,
                     sizeof(addr.sun_path));
    mon->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    g_assert_cmpint(mon->fd, >=, 0);
    g_assert_cmpint(connect(mon->fd, (struct sockaddr *)&addr, sizeof(addr)),
                    ==, 0);
    mon->input = g_string_new(NULL);

    /* Drops the greeting */
    response = qmonitor_qmp(mon, "{ 'execute': 'qmp_capabilities' }");
    g_assert_true(qdict_haskey(response, "return"));
    qobject_unref(response);
    return mon;
}

void qmonitor_free(QMonitor *mon)
{
    if (mon) {
        close(mon->fd);
        g_string_free(mon->input, true);
        g_free(mon);
    }
}

char *qmonitor_hmp(QMonitor *mon, const char *command)
{
    QDict *response =
        qmonitor_qmp(mon, "{ 'execute': 'human-monitor-command', 'arguments':"
                     " { 'command-line': %s } }", command);
    g_auto(GStrv) parts = g_strsplit(qdict_get_str(response, "return"), "\r",
                                     -1);

    qobject_unref(response);
    return g_strjoinv("", parts);
}

static void clear_range(gpointer range)
{
    g_free(((QFlatRange *)range)->name);
}

/*
 * The line consists of the range, "(prio ..., kind):", the name, which may have
 * spaces, "@" with the offset if that is not 0, and "KVM" for each address
 * space that KVM has it in.
 */
static void parse_range(const char *line, GArray *ranges)
{
    uint64_t start, last, offset = 0;
    char kind[16];
    int prio, name_start = 0;
    QFlatRange range;
    char *name, *at;

    g_assert_cmpint(sscanf(line, " %" SCNx64 "-%" SCNx64 " (prio %d, %15[^)]): "
                           "%n", &start, &last, &prio, kind, &name_start),
                    ==, 4);
    g_assert_cmpint(name_start, >, 0);

    name = g_strdup(line + name_start);
    range.kvm = false;
    while (g_str_has_suffix(name, " KVM")) {
        name[strlen(name) - strlen(" KVM")] = '\0';
        range.kvm = true;
    }
    at = strrchr(name, ' ');
    if (at && sscanf(at, " @%" SCNx64, &offset) == 1) {
        *at = '\0';
    }

    range.addr = start;
    range.size = last - start + 1;
    range.offset = offset;
    range.name = name;
    range.ram = g_str_equal(kind, "ram") || g_str_equal(kind, "nv-ram");
    g_array_append_val(ranges, range);
}

GArray *qmonitor_flat_view(QMonitor *mon)
{
    g_autofree char *text = qmonitor_hmp(mon, "info mtree -f");
    GArray *ranges = g_array_new(false, false, sizeof(QFlatRange));
    char *start, *end, *line;
    char *state = NULL;

    g_array_set_clear_func(ranges, clear_range);

    /* One flat view after the other, each with all its address spaces */
    start = strstr(text, FLAT_VIEW_HEADER);
    g_assert_nonnull(start);
    end = strstr(start, "\n\n");
    if (end) {
        *end = '\0';
    }
    for (line = strtok_r(start, "\n", &state); line;
         line = strtok_r(NULL, "\n", &state)) {
        if (g_str_has_prefix(line, "  ")) {
            parse_range(line, ranges);
        }
    }
    return ranges;
}
