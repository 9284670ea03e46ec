/*
 * libqos client for a monitor of its own
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_LIBQOS_MONITOR_H
#define TESTS_LIBQOS_MONITOR_H

#include "qobject/qdict.h"

/*
 * qtest_qmp() and qtest_hmp() read byte by byte. For a test that looks at all
 * of the memory after every step, that is most of the time that it takes. This
 * client reads as much as there is, from a monitor on a socket:
 *
 *   -chardev socket,id=mon,path=...,server=on,wait=off
 *   -mon chardev=mon,mode=control
 *
 * It is for commands only: it drops events. These can be had with
 * qtest_qmp_eventwait() and the like, also if a command of this client is what
 * causes them.
 */
typedef struct QMonitor QMonitor;

/**
 * QFlatRange: a range of a flat view
 * @addr: guest-physical address
 * @size: size in bytes
 * @offset: offset within the memory region
 * @name: name of the memory region; for memory backends, this is their id
 * @ram: whether it is RAM that can be written to
 * @kvm: whether KVM has a memslot for it
 */
typedef struct QFlatRange {
    uint64_t addr;
    uint64_t size;
    uint64_t offset;
    char *name;
    bool ram;
    bool kvm;
} QFlatRange;

/**
 * qmonitor_new:
 * @path: path of the socket, which QEMU has opened
 *
 * Returns: a client that is connected, to be freed with qmonitor_free().
 */
QMonitor *qmonitor_new(const char *path);

/**
 * qmonitor_free:
 * @mon: the client, or NULL
 */
void qmonitor_free(QMonitor *mon);

/**
 * qmonitor_qmp:
 * @mon: the client
 * @fmt: the command, as for qtest_qmp()
 *
 * Returns: the response. To be unreferenced by the caller.
 */
QDict *qmonitor_qmp(QMonitor *mon, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/**
 * qmonitor_vqmp:
 *
 * Like qmonitor_qmp(), with a list of arguments.
 */
QDict *qmonitor_vqmp(QMonitor *mon, const char *fmt, va_list ap)
    G_GNUC_PRINTF(2, 0);

/**
 * qmonitor_hmp:
 * @mon: the client
 * @command: a line for the human monitor
 *
 * Returns: what the command printed, with "\n" at the end of each line. To be
 * freed by the caller.
 */
char *qmonitor_hmp(QMonitor *mon, const char *command);

/**
 * qmonitor_flat_view:
 * @mon: the client
 *
 * Returns: what "info mtree -f" shows of the address space "memory", an array
 * of QFlatRange, ordered by address. To be freed by the caller.
 */
GArray *qmonitor_flat_view(QMonitor *mon);

#endif
