/*
 * Failures of what is below virtio-mem devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/host.h"
#include "checks.h"
#include "failures.h"

/* NULL if they were not built */
static char *memory_preload_path;
static char *kvm_preload_path;

void failures_init(void)
{
    memory_preload_path = qhost_find_module("memory-preload.so");
    kvm_preload_path = qhost_find_module("kvm-preload.so");
}

void failures_cleanup(void)
{
    g_free(memory_preload_path);
    g_free(kvm_preload_path);
}

char *failures_preload_begin(TestVM *vm)
{
    g_autofree char *both = NULL;

    if (!memory_preload_path || !kvm_preload_path) {
        return g_strdup(g_getenv("LD_PRELOAD"));
    }
    both = g_strdup_printf("%s:%s", memory_preload_path, kvm_preload_path);
    g_setenv("MEMORY_PRELOAD_FAIL_FILE", vm->memory_fail_path, true);
    g_setenv("KVM_PRELOAD_FAIL_FILE", vm->kvm_fail_path, true);
    return qhost_preload_begin(both);
}

void failures_preload_end(char *others)
{
    qhost_preload_end(others);
}

void fail_calls(TestVM *vm, const char *fmt, ...)
{
    g_autofree char *rules = NULL;
    va_list ap;

    va_start(ap, fmt);
    rules = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    /* This replaces the file. */
    g_assert_true(g_file_set_contents(vm->memory_fail_path, rules, -1, NULL));
}

void stop_failing(TestVM *vm)
{
    g_assert_cmpint(unlink(vm->memory_fail_path), ==, 0);
}

bool can_fail_calls(void)
{
    if (!memory_preload_path || !kvm_preload_path) {
        g_test_skip("memory-preload.so and kvm-preload.so are not next to this"
                    " program");
        return false;
    }
    return true;
}

void refuse_memslots(TestVM *vm, bool refuse)
{
    if (refuse) {
        g_assert_true(g_file_set_contents(vm->kvm_fail_path, "", 0, NULL));
    } else {
        g_assert_cmpint(unlink(vm->kvm_fail_path), ==, 0);
        /* Those that were refused are not to be taken for changes. */
        vm_skip_changes(vm);
    }
    vm_model(vm, 0)->no_memslots = refuse;
    vm->maps_in_vain = refuse;
}

const char *const *discard_calls(const DeviceConfig *config)
{
    static const char *const anonymous[] = { "dontneed", NULL };
    static const char *const file[] = { "punch-hole", "dontneed", NULL };
    static const char *const huge[] = { "punch-hole", NULL };

    if (config->nb_huge_pages) {
        return huge;
    }
    /* Memory that is shared has a file, too, if only one without a name. */
    if (!g_str_has_prefix(config->backend, "memory-backend-ram") ||
        strstr(config->backend, "share=on")) {
        return file;
    }
    return anonymous;
}

void expect_stderr(TestVM *vm, const char *expected)
{
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(vm->stderr_path, &text, NULL, NULL));
    if (!strstr(text, expected)) {
        /* Shows both. */
        g_assert_cmpstr(text, ==, expected);
    }
    g_assert_cmpint(truncate(vm->stderr_path, 0), ==, 0);
}
