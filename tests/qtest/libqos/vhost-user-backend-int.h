/*
 * libqos vhost-user backend: what its files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_LIBQOS_VHOST_USER_BACKEND_INT_H
#define TESTS_LIBQOS_VHOST_USER_BACKEND_INT_H

#include "qemu/units.h"
#include "standard-headers/linux/vhost_types.h"
#include "vhost-user-backend.h"

#define PROTOCOL_VERSION 1

/* Each bit of the log is for that much of guest-physical memory. */
#define LOG_PAGE_SIZE (4 * KiB)

/* Network devices may have as many pairs of queues. */
#define MAX_QUEUE_PAIRS 16
#define MAX_QUEUES (2 * MAX_QUEUE_PAIRS)

/* A memory region, and where its memory is mapped */
typedef struct Region {
    VhostUserMemoryRegion region;
    void *host;
} Region;

typedef struct Queue {
    unsigned int num;
    struct vhost_vring_addr addr;
    bool started;
} Queue;

struct QVhostUserBackend {
    char *path;
    /* offers VHOST_USER_F_PROTOCOL_FEATURES */
    bool modern;
    bool configurable;
    unsigned int max_regions;

    /* The thread does nothing but to dispatch the sources of the context. */
    GMainContext *context;
    GMainLoop *loop;
    GThread *thread;

    /*
     * Protects everything below. The thread holds it from when it starts to
     * look at its sockets until all that came is handled and answered.
     */
    GMutex lock;
    /* signalled when messages came */
    GCond cond;

    /* -1 and NULL if there is none */
    int listen_fd;
    GSource *listen_source;
    int conn_fd;
    GSource *conn_source;

    /* What the frontend told: gone with the connection */
    bool ready;
    uint64_t protocol_features;
    uint64_t features;
    /* Region, in no order */
    GArray *regions;
    Queue queues[MAX_QUEUES];
    /* NULL if there is none */
    uint8_t *log;
    uint64_t log_size;
    uint64_t log_allocated;

    /* It is behind an IOMMU, and has been told of these: vhost_iotlb_msg */
    bool iommu;
    GArray *iotlb;

    /* It has pages that the guest can write to in order to kick a queue. */
    bool has_notifiers;

    /* What it can ask QEMU on, or -1 */
    int req_fd;

    /* How many single regions are taken before others are refused */
    unsigned int nr_taken_regions;
    unsigned int nr_messages[VHOST_USER_MAX];
    char *error;

    /* How many messages to do well with before, or -1 */
    int until_fault;
    /* The same for the next connection */
    int fault_again;
    QVhostUserFault fault;
};

/* To clang, a variable that there only is a cleanup for would be unused. */
#define LOCK_GUARD(backend)                                                \
    G_GNUC_UNUSED g_autoptr(GMutexLocker) locker =                         \
        g_mutex_locker_new(&(backend)->lock)

/* A message and the files that came with it, which are closed in the end */
typedef struct Request {
    VhostUserMsg msg;
    int fds[VHOST_MEMORY_BASELINE_NREGIONS];
    unsigned int nr_fds;
} Request;

/* All of these are called with the lock held. */

/* Keep the first error for whoever asks for it. */
void G_GNUC_PRINTF(2, 3)
backend_set_error(QVhostUserBackend *backend, const char *fmt, ...);

Region *backend_get_region(QVhostUserBackend *backend, unsigned int i);
void backend_unmap_region(gpointer data);
void backend_drop_log(QVhostUserBackend *backend);
Queue *backend_get_queue(QVhostUserBackend *backend, unsigned int i);

/* Whether any queue is at work */
bool backend_is_started(const QVhostUserBackend *backend);

/* Return false if the frontend did something wrong; that is noted. */
bool backend_queues_are_sane(QVhostUserBackend *backend);
bool backend_add_region(QVhostUserBackend *backend,
                        const VhostUserMemoryRegion *region, int fd);
bool backend_remove_region(QVhostUserBackend *backend,
                           const VhostUserMemoryRegion *region);
bool backend_set_regions(QVhostUserBackend *backend, const Request *req);
bool backend_may_change_single_regions(QVhostUserBackend *backend);
bool backend_set_log(QVhostUserBackend *backend, const Request *req);

#endif
