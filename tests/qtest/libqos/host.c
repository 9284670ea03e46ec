/*
 * libqos helpers for what tests need of the host
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "host.h"

void qhost_skip(const char *need, const char *fmt, ...)
{
    g_auto(GStrv) required = g_strsplit(g_getenv("REQUIRE") ?: "", ",", -1);
    g_autofree char *reason = NULL;
    va_list ap;

    va_start(ap, fmt);
    reason = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    if (g_strv_contains((const char *const *)required, need)) {
        g_test_message("%s (REQUIRE has \"%s\")", reason, need);
        g_test_fail();
    } else {
        g_test_skip(reason);
    }
}

static bool can_open_kvm(void)
{
    const int fd = open("/dev/kvm", O_RDWR);

    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

const char *qhost_why_no_kvm(void)
{
    if (!can_open_kvm()) {
        return "/dev/kvm can't be opened";
    }
    return qtest_has_accel("kvm") ? NULL : "KVM is not built in";
}

void qhost_test_no_kvm(const void *reason)
{
    if (can_open_kvm()) {
        /* What was built lacks something, and not the host. */
        g_test_skip(reason);
    } else {
        qhost_skip("kvm", "%s", (const char *)reason);
    }
}

char *qhost_find_module(const char *name)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *dir = self ? g_path_get_dirname(self) : g_strdup(".");
    g_autofree char *path = g_build_filename(dir, "preload", name, NULL);

    return access(path, R_OK) == 0 ? g_steal_pointer(&path) : NULL;
}

char *qhost_preload_begin(const char *path)
{
    char *others = g_strdup(g_getenv("LD_PRELOAD"));
    g_autofree char *all = g_strdup_printf("%s%s%s", path, others ? ":" : "",
                                           others ?: "");

    g_setenv("LD_PRELOAD", all, true);
    return others;
}

void qhost_preload_end(char *others)
{
    if (others) {
        g_setenv("LD_PRELOAD", others, true);
    } else {
        g_unsetenv("LD_PRELOAD");
    }
    g_free(others);
}

void qhost_remove_dir(const char *path)
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

void qhost_write_sleeping_firmware(const char *path)
{
    /* cli; hlt; jmp to the hlt */
    static const uint8_t code[] = { 0xfa, 0xf4, 0xeb, 0xfd };
    const size_t size = 64 * KiB, reset_vector = size - 16;
    g_autofree uint8_t *rom = g_malloc0(size);

    memcpy(rom + reset_vector, code, sizeof(code));
    g_assert_true(g_file_set_contents(path, (char *)rom, size, NULL));
}

static const char *query_status(QTestState *qts)
{
    QDict *rsp = qtest_qmp_assert_success_ref(qts,
        "{ 'execute': 'query-status' }");
    const char *status = g_intern_string(qdict_get_str(rsp, "status"));

    qobject_unref(rsp);
    return status;
}

static void reset_stopped(QTestState *qts)
{
    qtest_qmp_assert_success(qts, "{ 'execute': 'system_reset' }");
    while (!g_str_equal(query_status(qts), "prelaunch")) {
        g_usleep(1000);
    }
    qtest_qmp_assert_success(qts, "{ 'execute': 'cont' }");
}

void qhost_wait_asleep(QTestState *qts)
{
    /* By far more often than it fails */
    unsigned int resets = 10;

    while (!g_str_equal(query_status(qts), "inmigrate")) {
        g_autofree char *registers = qtest_hmp(qts, "info registers");

        if (g_str_equal(query_status(qts), "internal-error")) {
            g_assert_cmpuint(resets--, >, 0);
            g_test_message("KVM did not get to the second instruction");
            reset_stopped(qts);
        } else if (strstr(registers, "HLT=1")) {
            return;
        }
        g_usleep(1000);
    }
}
