/*
 * Memslots that processes of x-pci-proxy-dev hold
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/mem/memslot-account.h"
#include "hw/mem/memslot-pci-proxy.h"
#include "hw/remote/mpqemu-link.h"

static MemslotHolder memslot_get_pci_proxy(void *opaque)
{
    const PCIProxyDev *proxy = opaque;
    const char *id = DEVICE(proxy)->id;

    return (MemslotHolder) {
        .kind = MEMSLOT_HOLDER_PCI_PROXY,
        .id = id ? id : "",
        .limit = REMOTE_MAX_FDS,
        .used = proxy->proxy_listener.n_mr_sections,
        .shared_only = true,
    };
}

bool memslot_pci_proxy_admit(PCIProxyDev *proxy, Error **errp)
{
    const MemslotHolder holder = memslot_get_pci_proxy(proxy);

    if (!memslot_account_check_holder(&holder, errp)) {
        PCI_DEVICE_GET_CLASS(proxy)->exit(PCI_DEVICE(proxy));
        return false;
    }
    memslot_account_add_holder(memslot_get_pci_proxy, proxy);
    return true;
}

void memslot_pci_proxy_leave(PCIProxyDev *proxy)
{
    memslot_account_remove_holder(proxy);
}
