/*
 * Memslots that processes of x-pci-proxy-dev hold
 *
 * A message to such a process hands it all memory that it may see, with one
 * file descriptor for each region, of which a message can carry REMOTE_MAX_FDS.
 * With more regions no message is sent at all. So the process counts like a
 * vhost backend with few memory regions.
 *
 * All functions must be called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MEM_MEMSLOT_PCI_PROXY_H
#define HW_MEM_MEMSLOT_PCI_PROXY_H

#include "hw/remote/proxy.h"

/**
 * memslot_pci_proxy_admit: let a process in if it can hold what memory devices
 * were promised
 *
 * @proxy: its device, being realized, with all that PCIDeviceClass::exit()
 *     undoes; if the process is not let in, that has been called
 * @errp: set if the process cannot hold as many memory regions
 *
 * Returns: true on success.
 */
bool memslot_pci_proxy_admit(PCIProxyDev *proxy, Error **errp);

/**
 * memslot_pci_proxy_leave: forget a process
 *
 * @proxy: its device, admitted or not
 */
void memslot_pci_proxy_leave(PCIProxyDev *proxy);

#endif /* HW_MEM_MEMSLOT_PCI_PROXY_H */
