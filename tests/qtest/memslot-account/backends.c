/*
 * Framework for tests of the memslot account: vhost-user backends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "framework.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

unsigned int vm_nr_messages(const TestVM *vm)
{
    const Backend *backend;
    unsigned int count = 0;

    for_each_backend(backend, vm) {
        count += qvhost_user_backend_nr_messages(backend->vu,
                                                 VHOST_USER_NONE);
    }
    return count;
}

void backend_start(TestVM *vm, Backend *backend)
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
    backend->ring_alloc = &vm->qs->alloc;
    if (vm->ring_addr) {
        backend->ring_alloc = &backend->own_alloc;
        alloc_init(backend->ring_alloc, 0, vm->ring_addr,
                   vm->ring_addr + 64 * KiB, 4 * KiB);
    }
    backend->vq = qvirtqueue_setup(vdev, backend->ring_alloc, 0);
    qvirtio_set_driver_ok(vdev);
    qvhost_user_backend_wait(backend->vu, VHOST_USER_SET_VRING_ENABLE, 1);
    backend->started = true;
    vm_check(vm);
}

void backend_free_driver(TestVM *vm, Backend *backend)
{
    if (backend->pci) {
        qvirtqueue_cleanup(backend->pci->vdev.bus, backend->vq,
                           backend->ring_alloc);
        if (backend->ring_alloc == &backend->own_alloc) {
            alloc_destroy(backend->ring_alloc);
        }
        qvirtio_pci_destructor(&backend->pci->obj);
        g_free(backend->pci);
        backend->vq = NULL;
        backend->pci = NULL;
    }
}

void backend_free(TestVM *vm, Backend *backend)
{
    backend_forget(backend);
    qvhost_user_backend_free(backend->vu);
    vm->pci_slot_used[backend->pci_slot] = false;
    g_free(backend->id);
    g_free(backend->device_id);
    g_free(backend);
}

Backend *backend_new(TestVM *vm, unsigned int max_regions)
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

char *backend_chardev_args(const Backend *backend)
{
    return g_strdup_printf("socket,id=%s,path=%s,reconnect-ms=20", backend->id,
                           qvhost_user_backend_path(backend->vu));
}

char *backend_device_args(const Backend *backend)
{
    return g_strdup_printf("vhost-user-blk-pci,id=%s,chardev=%s,addr=%x.0,"
                           "queue-size=8", backend->device_id, backend->id,
                           backend->pci_slot);
}

Backend *vm_add_backend(TestVM *vm, unsigned int max_regions)
{
    Backend *backend = backend_new(vm, max_regions);
    g_autofree char *chardev = backend_chardev_args(backend);
    g_autofree char *device = backend_device_args(backend);
    g_autofree char *expected = model_check_backend(vm, backend);
    const unsigned int messages = vm_nr_messages(vm);
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
    g_assert_cmpuint(vm_nr_messages(vm), ==, messages);
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

Backend *vm_add_started_backend(TestVM *vm, unsigned int max_regions)
{
    Backend *backend = vm_add_backend(vm, max_regions);

    if (backend && vm->qs) {
        backend_start(vm, backend);
    }
    return backend;
}

void vm_remove_backend(TestVM *vm, Backend *backend)
{
    qtest_qmp_device_del_send(vm->qts, backend->device_id);
    eject_pci_device(vm, backend->pci_slot);
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

bool holder_is_shown(TestVM *vm, const Backend *backend)
{
    return backend_position(vm, backend) >= 0;
}

void kill_backend(TestVM *vm, Backend *backend)
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

/* Backends that are awaited together may come in any order. */
void expect_backends(TestVM *vm, Backend **backends, unsigned int count)
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

void restart_backends(TestVM *vm, Backend **backends, unsigned int count)
{
    unsigned int i;

    for (i = 0; i < count; i++) {
        qvhost_user_backend_open(backends[i]->vu);
    }
    expect_backends(vm, backends, count);
}

void assert_backend_refused(TestVM *vm, unsigned int max_regions,
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

unsigned int nr_messages(const Backend *backend)
{
    return qvhost_user_backend_nr_messages(backend->vu, VHOST_USER_NONE);
}

bool can_reach(const Backend *backend, const Mem *mem, uint64_t offset)
{
    return qvhost_user_backend_memory(backend->vu, mem->addr + offset,
                                      mem->block_size);
}
