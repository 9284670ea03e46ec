/*
 * libqos vhost-user backend
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_LIBQOS_VHOST_USER_BACKEND_H
#define TESTS_LIBQOS_VHOST_USER_BACKEND_H

/* Only for the definition of the protocol */
#include "subprojects/libvhost-user/libvhost-user.h"

/*
 * A vhost-user backend that runs in a thread of the test and does no I/O: it
 * answers what it is asked, keeps the table of memory regions that it is given
 * and the log of dirty pages, and holds QEMU to the protocol. It knows any
 * number of memory regions.
 *
 * It listens on a UNIX socket, one frontend after the other may connect:
 *
 *   -chardev socket,id=chr0,path=...,reconnect=1
 *   -device vhost-user-blk-pci,chardev=chr0
 *
 * vhost-user-blk is the frontend to be used with it. It connects again when the
 * backend was closed and opened, and it can be migrated; QEMU's other simple
 * frontends (vhost-user-rng, vhost-user-i2c) do neither in this version.
 * Network devices do, with up to 16 pairs of queues:
 *
 *   -netdev vhost-user,id=net0,chardev=chr0,queues=2
 *   -device virtio-net-pci,netdev=net0,mq=on
 *
 * QEMU sends the table only while the guest's driver has the device started,
 * and waits for an answer to each change: the table is up to date once QEMU is
 * done with what the test asked for. QEMU does not wait until queues are
 * started or stopped, and connecting again takes a second: see
 * qvhost_user_backend_wait().
 *
 * All functions may be called from any thread, but qvhost_user_backend_free().
 */
typedef struct QVhostUserBackend QVhostUserBackend;

/* Instead of a number of regions: a backend without CONFIGURE_MEM_SLOTS */
#define QVHOST_USER_BASELINE 0

/* Likewise: a backend without protocol features at all, for network devices */
#define QVHOST_USER_NO_PROTOCOL_FEATURES UINT_MAX

/**
 * QVhostUserRegion: a memory region that the backend holds
 * @addr: guest-physical address
 * @size: size in bytes
 * @mmap_offset: offset of the memory in the file that it came with
 */
typedef struct QVhostUserRegion {
    uint64_t addr;
    uint64_t size;
    uint64_t mmap_offset;
} QVhostUserRegion;

/**
 * qvhost_user_backend_new:
 * @path: path of the socket; nothing may exist there
 * @max_regions: how many memory regions the backend can hold, as it tells the
 *     frontend (VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS), or
 *     QVHOST_USER_BASELINE or QVHOST_USER_NO_PROTOCOL_FEATURES to have it not
 *     say so, which means 8
 *
 * Returns: a backend that listens on @path.
 */
QVhostUserBackend *qvhost_user_backend_new(const char *path,
                                           unsigned int max_regions);

/**
 * qvhost_user_backend_free:
 * @backend: the backend, or NULL
 *
 * Close the backend, and free it. The socket is gone from the file system.
 */
void qvhost_user_backend_free(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_close:
 *
 * Close all connections without a word and forget everything that came over
 * them, as if the backend was killed. Nobody can connect to it, until
 * qvhost_user_backend_open(). Does nothing if the backend is closed.
 */
void qvhost_user_backend_close(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_open:
 * @backend: the backend, which has to be closed
 *
 * Listen again, as if the backend was started anew. All message counts are 0.
 */
void qvhost_user_backend_open(QVhostUserBackend *backend);

/**
 * QVhostUserFault: what a backend does wrong
 *
 * @QVHOST_USER_CLOSE: close the connection instead of an answer
 * @QVHOST_USER_CLOSE_WITHIN: close it when half of the answer's header is sent
 * @QVHOST_USER_CLOSE_AFTER: close it after the answer
 * @QVHOST_USER_OTHER_REQUEST: answer another request
 * @QVHOST_USER_NO_REPLY_FLAG: the answer does not say that it is one
 * @QVHOST_USER_EMPTY: answer without a payload
 * @QVHOST_USER_SHORT: answer with one byte too few
 * @QVHOST_USER_LONG: answer with one byte too many
 * @QVHOST_USER_HUGE: claim that the payload is of the largest size, and close
 * @QVHOST_USER_ZERO: all that is in the payload is 0
 * @QVHOST_USER_ONES: all bits in the payload are 1
 */
typedef enum QVhostUserFault {
    QVHOST_USER_CLOSE,
    QVHOST_USER_CLOSE_WITHIN,
    QVHOST_USER_CLOSE_AFTER,
    QVHOST_USER_OTHER_REQUEST,
    QVHOST_USER_NO_REPLY_FLAG,
    QVHOST_USER_EMPTY,
    QVHOST_USER_SHORT,
    QVHOST_USER_LONG,
    QVHOST_USER_HUGE,
    QVHOST_USER_ZERO,
    QVHOST_USER_ONES,
    QVHOST_USER_NR_FAULTS,
} QVhostUserFault;

/**
 * qvhost_user_backend_fail:
 * @backend: the backend
 * @nr: which message to fail at, 0 for the next one
 * @fault: what to do then
 * @always: with each connection, rather than once
 *
 * Do something wrong. All but the first and the third need a message that
 * has an answer; without, the backend does nothing wrong.
 */
void qvhost_user_backend_fail(QVhostUserBackend *backend, unsigned int nr,
                              QVhostUserFault fault, bool always);

/**
 * qvhost_user_backend_path:
 *
 * Returns: the path of the socket, valid until the backend is freed.
 */
const char *qvhost_user_backend_path(const QVhostUserBackend *backend);

/**
 * qvhost_user_backend_max_regions:
 *
 * Returns: how many memory regions the backend can hold.
 */
unsigned int
qvhost_user_backend_max_regions(const QVhostUserBackend *backend);

/**
 * qvhost_user_backend_started:
 *
 * Returns: whether a queue of the device is started.
 */
bool qvhost_user_backend_started(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_nr_regions:
 *
 * Returns: how many memory regions the backend holds.
 */
unsigned int qvhost_user_backend_nr_regions(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_regions:
 *
 * Returns: the memory regions that the backend holds, an array of
 * QVhostUserRegion, ordered by guest-physical address. To be freed by the
 * caller.
 */
GArray *qvhost_user_backend_regions(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_memory:
 * @backend: the backend
 * @addr: guest-physical address
 * @size: size in bytes
 *
 * Returns: where the backend has that memory, or NULL if no memory region
 * covers it. Valid as long as the memory region is there.
 */
void *qvhost_user_backend_memory(QVhostUserBackend *backend, uint64_t addr,
                                 uint64_t size);

/**
 * qvhost_user_backend_log_size:
 *
 * Returns: the size in bytes of the log of dirty pages that came last, or 0.
 */
uint64_t qvhost_user_backend_log_size(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_log_allocated:
 *
 * Returns: for how many bytes of that log the host had allocated memory when it
 * came.
 */
uint64_t qvhost_user_backend_log_allocated(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_log:
 * @backend: the backend
 * @addr: guest-physical address
 *
 * Tell the frontend that the page at @addr was written to.
 *
 * Returns: false if it does not want to know, or if its log does not reach that
 * far.
 */
bool qvhost_user_backend_log(QVhostUserBackend *backend, uint64_t addr);

/**
 * qvhost_user_backend_set_iommu:
 *
 * Have the backend be behind an IOMMU: the device needs iommu_platform=on. To
 * be called before a frontend connects.
 */
void qvhost_user_backend_set_iommu(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_translate:
 * @backend: the backend
 * @iova: an address as the device sees it
 *
 * Look up what the frontend told of the IOMMU, all of which has to lead to
 * memory regions. The backend itself asks for nothing.
 *
 * Returns: the guest-physical address, or UINT64_MAX if it is not known.
 */
uint64_t qvhost_user_backend_translate(QVhostUserBackend *backend,
                                       uint64_t iova);

/**
 * qvhost_user_backend_offer_notifiers:
 *
 * Have the backend be able to map a page into a BAR of the device by which the
 * guest notifies it of a queue: the device needs page-per-vq=on. To be called
 * before a frontend connects.
 */
void qvhost_user_backend_offer_notifiers(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_map_notifier:
 * @backend: the backend, the device of which is started
 * @queue: index of the queue
 *
 * Map such a page. It stays until the queue is stopped.
 */
void qvhost_user_backend_map_notifier(QVhostUserBackend *backend,
                                      unsigned int queue);

/**
 * qvhost_user_backend_take_regions:
 * @backend: the backend
 * @count: how many regions to take from now on before more are refused, or
 *     UINT_MAX: none is refused, as in the beginning
 *
 * Refuse single regions (VHOST_USER_ADD_MEM_REG), as a backend does that has
 * no memory for them.
 */
void qvhost_user_backend_take_regions(QVhostUserBackend *backend,
                                      unsigned int count);

/**
 * qvhost_user_backend_nr_messages:
 * @backend: the backend
 * @request: VHOST_USER_*, or VHOST_USER_NONE for messages of all types
 *
 * Returns: how many messages of that type came since the backend was opened.
 */
unsigned int qvhost_user_backend_nr_messages(QVhostUserBackend *backend,
                                             VhostUserRequest request);

/**
 * qvhost_user_backend_is_ready:
 *
 * Returns: whether a frontend has connected, and asked for all that
 * vhost-user-blk needs to know before the device can be used.
 */
bool qvhost_user_backend_is_ready(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_miss:
 * @backend: the backend, which has to be behind an IOMMU
 * @iova: an address as the device sees it
 *
 * Ask what is there. The frontend answers when it gets to it.
 *
 * Returns: false if there is no frontend that could be asked.
 */
bool qvhost_user_backend_miss(QVhostUserBackend *backend, uint64_t iova);

/* Wait for a queue to be started, which QEMU does not wait for. */
void qvhost_user_backend_wait_started(QVhostUserBackend *backend);

/**
 * qvhost_user_backend_wait:
 * @backend: the backend
 * @request: VHOST_USER_*, or VHOST_USER_NONE for messages of all types
 * @count: how many messages to wait for, counted since the backend was opened
 *
 * Wait until that many messages came and were answered. The test fails if they
 * don't come in a time that is long enough for QEMU to connect again.
 *
 * The last messages that start a device are those that enable its queues:
 * VHOST_USER_SET_VRING_ENABLE.
 */
void qvhost_user_backend_wait(QVhostUserBackend *backend,
                              VhostUserRequest request, unsigned int count);

/**
 * qvhost_user_backend_error:
 *
 * Errors are messages that no frontend should send: to add a region that is
 * there already, that overlaps with another one, or that is one more than the
 * backend can hold; to remove a region that is not there; to start a queue in
 * memory that the backend does not have in one piece, or to take that from it
 * before the queue is stopped; to have it write to memory, or to a queue, that
 * the log does not reach; and malformed ones.
 * The frontend is told about them, too, if it wants to know. Errors are never
 * forgotten, also not when the backend is closed.
 *
 * Returns: what was wrong first, or NULL. To be freed by the caller.
 */
char *qvhost_user_backend_error(QVhostUserBackend *backend);

#endif
