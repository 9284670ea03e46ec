/*
 * libqos vhost-user backend
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "standard-headers/linux/vhost_types.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_net.h"
#include "vhost-user-backend-int.h"
#include <glib-unix.h>
#include <sys/mman.h>
#include <sys/un.h>

/* QEMU tries once a second, on a host that may be busy. */
#define WAIT_TIMEOUT_US (60 * G_TIME_SPAN_SECOND)

#define BLOCK_DEVICE_SECTORS (64 * MiB / 512)

/* libvhost-user has no name for it. */
#define VHOST_USER_IOTLB_MSG 22

static void drop_source(GSource **source, int *fd)
{
    if (*source) {
        g_source_destroy(*source);
        g_source_unref(*source);
        *source = NULL;
        close(*fd);
        *fd = -1;
    }
}

static void disconnect(QVhostUserBackend *backend)
{
    drop_source(&backend->conn_source, &backend->conn_fd);
    backend->ready = false;
    backend->protocol_features = 0;
    backend->features = 0;
    memset(backend->queues, 0, sizeof(backend->queues));
    backend_drop_log(backend);
    g_array_set_size(backend->regions, 0);
    g_array_set_size(backend->iotlb, 0);
    if (backend->req_fd >= 0) {
        close(backend->req_fd);
        backend->req_fd = -1;
    }
}

static GSource *watch(QVhostUserBackend *backend, int fd, GUnixFDSourceFunc fn)
{
    GSource *source = g_unix_fd_source_new(fd, G_IO_IN | G_IO_HUP | G_IO_ERR);

    g_source_set_callback(source, (GSourceFunc)(void (*)(void))fn, backend,
                          NULL);
    g_source_attach(source, backend->context);
    return source;
}

/* ---- Queues ---- */

/* ---- The table of memory regions ---- */

/* ---- Messages ---- */

/* Whether it is now that something has to go wrong */
static bool fails(QVhostUserBackend *backend)
{
    return backend->until_fault == 0;
}

/* Returns how much of the answer is sent. */
static uint32_t spoil(QVhostUserBackend *backend, VhostUserMsg *msg)
{
    switch (backend->fault) {
    case QVHOST_USER_CLOSE_WITHIN:
        return VHOST_USER_HDR_SIZE / 2;
    case QVHOST_USER_OTHER_REQUEST:
        msg->request++;
        break;
    case QVHOST_USER_NO_REPLY_FLAG:
        msg->flags &= ~VHOST_USER_REPLY_MASK;
        break;
    case QVHOST_USER_EMPTY:
        msg->size = 0;
        break;
    case QVHOST_USER_SHORT:
        msg->size -= msg->size > 0;
        break;
    case QVHOST_USER_LONG:
        msg->size++;
        break;
    case QVHOST_USER_HUGE:
        msg->size = UINT32_MAX;
        return VHOST_USER_HDR_SIZE;
    case QVHOST_USER_ZERO:
        memset(&msg->payload, 0, msg->size);
        break;
    case QVHOST_USER_ONES:
        memset(&msg->payload, 0xff, msg->size);
        break;
    default:
        break;
    }
    return VHOST_USER_HDR_SIZE + msg->size;
}

static void reply(QVhostUserBackend *backend, const Request *req, uint32_t size)
{
    VhostUserMsg msg = req->msg;
    ssize_t ret;

    msg.flags = PROTOCOL_VERSION | VHOST_USER_REPLY_MASK;
    msg.size = size;
    size = fails(backend) ? spoil(backend, &msg) : VHOST_USER_HDR_SIZE + size;
    ret = RETRY_ON_EINTR(send(backend->conn_fd, &msg, size, MSG_NOSIGNAL));
    /* A frontend that is gone is noticed when it is read from. */
    g_assert_true(ret == size || (ret < 0 && errno == EPIPE) ||
                  (ret < 0 && errno == ECONNRESET));
}

static void reply_u64(QVhostUserBackend *backend, Request *req, uint64_t value)
{
    req->msg.payload.u64 = value;
    reply(backend, req, sizeof(value));
}

static void reply_config(QVhostUserBackend *backend, Request *req)
{
    const uint64_t capacity = cpu_to_le64(BLOCK_DEVICE_SECTORS);
    VhostUserConfig config = {
        .size = req->msg.payload.config.size,
    };

    if (config.size > sizeof(config.region)) {
        backend_set_error(backend,
                          "request for %u bytes of config", config.size);
        config.size = sizeof(config.region);
    }
    memcpy(config.region, &capacity, sizeof(capacity));
    req->msg.payload.config = config;
    reply(backend, req, VHOST_USER_CONFIG_HDR_SIZE + config.size);
}

/* What of it is for network devices does not mean anything to others here. */
static uint64_t features(QVhostUserBackend *backend)
{
    return 1ull << VIRTIO_F_VERSION_1 | 1ull << VHOST_F_LOG_ALL |
           1ull << VIRTIO_NET_F_CTRL_VQ | 1ull << VIRTIO_NET_F_MQ |
           (uint64_t)backend->modern << VHOST_USER_F_PROTOCOL_FEATURES |
           (uint64_t)backend->iommu << VIRTIO_F_ACCESS_PLATFORM;
}

static uint64_t protocol_features(QVhostUserBackend *backend)
{
    return 1ull << VHOST_USER_PROTOCOL_F_LOG_SHMFD |
           1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK |
           1ull << VHOST_USER_PROTOCOL_F_CONFIG |
           (uint64_t)(backend->iommu || backend->has_notifiers) <<
           VHOST_USER_PROTOCOL_F_BACKEND_REQ |
           (uint64_t)backend->has_notifiers <<
           VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD |
           (uint64_t)backend->has_notifiers <<
           VHOST_USER_PROTOCOL_F_HOST_NOTIFIER |
           1ull << VHOST_USER_PROTOCOL_F_MQ |
           (uint64_t)backend->configurable <<
           VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;
}

/* Messages that have a reply of their own. Returns false for all others. */
static bool handle_question(QVhostUserBackend *backend, Request *req)
{
    switch (req->msg.request) {
    case VHOST_USER_GET_FEATURES:
        reply_u64(backend, req, features(backend));
        return true;
    case VHOST_USER_GET_PROTOCOL_FEATURES:
        reply_u64(backend, req, protocol_features(backend));
        return true;
    case VHOST_USER_GET_MAX_MEM_SLOTS:
        reply_u64(backend, req, backend->max_regions);
        return true;
    case VHOST_USER_GET_QUEUE_NUM:
        reply_u64(backend, req, MAX_QUEUE_PAIRS);
        return true;
    case VHOST_USER_GET_CONFIG:
        reply_config(backend, req);
        return true;
    case VHOST_USER_GET_VRING_BASE:
        backend_get_queue(backend,
                          req->msg.payload.state.index)->started = false;
        req->msg.payload.state.num = 0;
        g_array_set_size(backend->iotlb, 0);
        reply(backend, req, sizeof(req->msg.payload.state));
        return true;
    case VHOST_USER_SET_LOG_BASE:
        backend_set_log(backend, req);
        reply(backend, req, 0);
        return true;
    default:
        return false;
    }
}

/* What it is told of is what it is asked for by QEMU itself. */
static bool handle_iotlb(QVhostUserBackend *backend, const Request *req)
{
    struct vhost_iotlb_msg msg;

    memcpy(&msg, &req->msg.payload, sizeof(msg));
    if (req->msg.size != sizeof(msg) || !backend->iommu ||
        (msg.type != VHOST_IOTLB_UPDATE &&
         msg.type != VHOST_IOTLB_INVALIDATE)) {
        backend_set_error(backend, "bad message for the IOTLB");
        return false;
    }
    if (msg.type == VHOST_IOTLB_UPDATE) {
        g_array_append_val(backend->iotlb, msg);
    }
    return true;
}

/* Returns whether all is well. */
static bool handle_order(QVhostUserBackend *backend, const Request *req)
{
    const VhostUserMemoryRegion region = req->msg.payload.memreg.region;

    switch (req->msg.request) {
    case VHOST_USER_SET_MEM_TABLE:
        return backend_set_regions(backend, req);
    case VHOST_USER_ADD_MEM_REG:
        if (req->nr_fds != 1) {
            backend_set_error(backend, "region with %u files", req->nr_fds);
            return false;
        }
        if (!backend_may_change_single_regions(backend) ||
            !backend->nr_taken_regions) {
            return false;
        }
        if (backend->nr_taken_regions != UINT_MAX) {
            backend->nr_taken_regions--;
        }
        return backend_add_region(backend, &region, req->fds[0]);
    case VHOST_USER_REM_MEM_REG:
        return backend_may_change_single_regions(backend) &&
               backend_remove_region(backend, &region);
    case VHOST_USER_SET_PROTOCOL_FEATURES:
        backend->protocol_features = req->msg.payload.u64;
        if (req->msg.payload.u64 & ~protocol_features(backend)) {
            backend_set_error(backend, "protocol features 0x%" PRIx64,
                              req->msg.payload.u64);
            return false;
        }
        return true;
    case VHOST_USER_SET_VRING_KICK:
        backend_get_queue(backend, req->msg.payload.u64 &
                          VHOST_USER_VRING_IDX_MASK)->started = true;
        return backend_queues_are_sane(backend);
    case VHOST_USER_SET_VRING_NUM:
        backend_get_queue(backend, req->msg.payload.state.index)->num =
            req->msg.payload.state.num;
        return true;
    case VHOST_USER_IOTLB_MSG:
        return handle_iotlb(backend, req);
    case VHOST_USER_SET_VRING_ADDR:
        backend_get_queue(backend, req->msg.payload.addr.index)->addr =
            req->msg.payload.addr;
        return backend_queues_are_sane(backend);
    case VHOST_USER_SET_FEATURES:
        backend->features = req->msg.payload.u64;
        return true;
    case VHOST_USER_SET_BACKEND_REQ_FD:
        if (req->nr_fds != 1 || backend->req_fd >= 0) {
            backend_set_error(backend, "a channel of its own with %u files",
                              req->nr_fds);
            return false;
        }
        /* It has to stay, whether something is asked for or not. */
        backend->req_fd = dup(req->fds[0]);
        return true;
    case VHOST_USER_SET_VRING_CALL:
        /* The last one of all that come when a device with a queue connects */
        backend->ready = true;
        return true;
    case VHOST_USER_SET_OWNER:
    case VHOST_USER_RESET_OWNER:
    case VHOST_USER_SET_LOG_FD:
    case VHOST_USER_SET_VRING_BASE:
    case VHOST_USER_SET_VRING_ERR:
    case VHOST_USER_SET_VRING_ENABLE:
    case VHOST_USER_SET_CONFIG:
        return true;
    default:
        backend_set_error(backend, "unexpected request %d", req->msg.request);
        /* The frontend may wait for an answer that we do not know. */
        shutdown(backend->conn_fd, SHUT_RDWR);
        return false;
    }
}

static void handle(QVhostUserBackend *backend, Request *req)
{
    if (!handle_question(backend, req)) {
        const bool ok = handle_order(backend, req);

        if (req->msg.flags & VHOST_USER_NEED_REPLY_MASK) {
            reply_u64(backend, req, !ok);
        }
    }
    if (req->msg.request > VHOST_USER_NONE &&
        req->msg.request < VHOST_USER_MAX) {
        backend->nr_messages[req->msg.request]++;
        backend->nr_messages[VHOST_USER_NONE]++;
    }
}

/* ---- Connections ---- */

static void receive_fds(Request *req, struct msghdr *hdr)
{
    struct cmsghdr *cmsg;

    for (cmsg = CMSG_FIRSTHDR(hdr); cmsg; cmsg = CMSG_NXTHDR(hdr, cmsg)) {
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
            req->nr_fds = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(req->fds, CMSG_DATA(cmsg), req->nr_fds * sizeof(int));
        }
    }
}

/* Returns false if the frontend is gone. */
static bool receive(QVhostUserBackend *backend, Request *req)
{
    char control[CMSG_SPACE(sizeof(req->fds))] QEMU_ALIGNED(8);
    struct iovec iov = {
        .iov_base = &req->msg,
        .iov_len = VHOST_USER_HDR_SIZE,
    };
    struct msghdr hdr = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof(control),
    };
    /* A packed structure: clang warns of a pointer to the payload. */
    void *payload = (uint8_t *)&req->msg + VHOST_USER_HDR_SIZE;
    ssize_t ret;

    ret = RETRY_ON_EINTR(recvmsg(backend->conn_fd, &hdr,
                                 MSG_CMSG_CLOEXEC | MSG_WAITALL));
    if (ret > 0) {
        receive_fds(req, &hdr);
    }
    if (ret != VHOST_USER_HDR_SIZE) {
        return false;
    }
    if (req->msg.size > sizeof(req->msg.payload) ||
        (req->msg.flags & VHOST_USER_VERSION_MASK) != PROTOCOL_VERSION ||
        hdr.msg_flags & MSG_CTRUNC) {
        backend_set_error(backend, "malformed request %d", req->msg.request);
        return false;
    }
    if (!req->msg.size) {
        return true;
    }
    /* The frontend sends all of a message at once: this does not block. */
    ret = RETRY_ON_EINTR(recv(backend->conn_fd, payload, req->msg.size,
                              MSG_WAITALL));
    return ret == req->msg.size;
}

/* Handles one message. */
static void serve(QVhostUserBackend *backend)
{
    Request req = { };
    unsigned int i;

    if (!receive(backend, &req)) {
        disconnect(backend);
    } else if (fails(backend) && backend->fault == QVHOST_USER_CLOSE) {
        backend->until_fault--;
        disconnect(backend);
    } else {
        handle(backend, &req);
        if (fails(backend) && (backend->fault == QVHOST_USER_CLOSE_AFTER ||
                               backend->fault == QVHOST_USER_CLOSE_WITHIN ||
                               backend->fault == QVHOST_USER_HUGE)) {
            disconnect(backend);
        }
        if (backend->until_fault >= 0) {
            backend->until_fault--;
        }
    }
    for (i = 0; i < req.nr_fds; i++) {
        close(req.fds[i]);
    }
    g_cond_broadcast(&backend->cond);
}

/* Whether there is something to be read, if only the end of the connection */
static bool is_readable(int fd)
{
    char byte;

    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0;
}

/*
 * The test may have closed the socket while we were about to look at it: the
 * source is not the current one any more then.
 */
static gboolean conn_ready(gint fd, GIOCondition condition, gpointer opaque)
{
    QVhostUserBackend *backend = opaque;
    LOCK_GUARD(backend);

    if (g_main_current_source() == backend->conn_source) {
        serve(backend);
    }
    return G_SOURCE_CONTINUE;
}

static gboolean listen_ready(gint fd, GIOCondition condition, gpointer opaque)
{
    QVhostUserBackend *backend = opaque;
    LOCK_GUARD(backend);
    int conn_fd;

    if (g_main_current_source() != backend->listen_source) {
        return G_SOURCE_CONTINUE;
    }
    conn_fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    if (conn_fd < 0) {
        /* It did not wait for us. */
        return G_SOURCE_CONTINUE;
    }

    /* The previous one may have left without us having noticed so far. */
    while (backend->conn_source && is_readable(backend->conn_fd)) {
        serve(backend);
    }
    if (backend->conn_source) {
        backend_set_error(backend, "a second frontend");
        close(conn_fd);
        return G_SOURCE_CONTINUE;
    }
    if (backend->fault_again >= 0) {
        backend->until_fault = backend->fault_again;
    }
    backend->conn_fd = conn_fd;
    backend->conn_source = watch(backend, conn_fd, conn_ready);
    return G_SOURCE_CONTINUE;
}

/* ---- The functions for tests ---- */

static gpointer run_loop(gpointer loop)
{
    g_main_loop_run(loop);
    return NULL;
}

void qvhost_user_backend_open(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    g_assert_null(backend->listen_source);
    g_assert_cmpuint(g_strlcpy(addr.sun_path, backend->path,
                               sizeof(addr.sun_path)), <,
                     sizeof(addr.sun_path));
    memset(backend->nr_messages, 0, sizeof(backend->nr_messages));

    backend->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(backend->listen_fd, >=, 0);
    g_assert_cmpint(bind(backend->listen_fd, (struct sockaddr *)&addr,
                         sizeof(addr)), ==, 0);
    g_assert_cmpint(listen(backend->listen_fd, 1), ==, 0);
    backend->listen_source = watch(backend, backend->listen_fd, listen_ready);
}

void qvhost_user_backend_close(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);

    if (backend->listen_source) {
        unlink(backend->path);
    }
    drop_source(&backend->listen_source, &backend->listen_fd);
    disconnect(backend);
}

QVhostUserBackend *qvhost_user_backend_new(const char *path,
                                           unsigned int max_regions)
{
    QVhostUserBackend *backend = g_new0(QVhostUserBackend, 1);

    backend->path = g_strdup(path);
    backend->modern = max_regions != QVHOST_USER_NO_PROTOCOL_FEATURES;
    backend->configurable = backend->modern &&
                            max_regions != QVHOST_USER_BASELINE;
    backend->max_regions = backend->configurable ?
                           max_regions : VHOST_MEMORY_BASELINE_NREGIONS;
    backend->nr_taken_regions = UINT_MAX;
    backend->listen_fd = -1;
    backend->conn_fd = -1;
    backend->until_fault = -1;
    backend->fault_again = -1;
    backend->req_fd = -1;
    backend->regions = g_array_new(false, false, sizeof(Region));
    g_array_set_clear_func(backend->regions, backend_unmap_region);
    backend->iotlb = g_array_new(false, false, sizeof(struct vhost_iotlb_msg));
    g_mutex_init(&backend->lock);
    g_cond_init(&backend->cond);

    backend->context = g_main_context_new();
    backend->loop = g_main_loop_new(backend->context, false);
    qvhost_user_backend_open(backend);
    backend->thread = g_thread_new("vhost-user", run_loop, backend->loop);
    return backend;
}

static gboolean quit_loop(gpointer loop)
{
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

void qvhost_user_backend_free(QVhostUserBackend *backend)
{
    GSource *quit;

    if (!backend) {
        return;
    }
    qvhost_user_backend_close(backend);

    /* From within the loop, as it might not run yet. */
    quit = g_idle_source_new();
    g_source_set_callback(quit, quit_loop, backend->loop, NULL);
    g_source_attach(quit, backend->context);
    g_source_unref(quit);
    g_thread_join(backend->thread);

    g_main_loop_unref(backend->loop);
    g_main_context_unref(backend->context);
    g_cond_clear(&backend->cond);
    g_mutex_clear(&backend->lock);
    g_array_unref(backend->regions);
    g_array_unref(backend->iotlb);
    g_free(backend->error);
    g_free(backend->path);
    g_free(backend);
}

void qvhost_user_backend_fail(QVhostUserBackend *backend, unsigned int nr,
                              QVhostUserFault fault, bool always)
{
    LOCK_GUARD(backend);

    backend->until_fault = nr;
    backend->fault_again = always ? nr : -1;
    backend->fault = fault;
}

const char *qvhost_user_backend_path(const QVhostUserBackend *backend)
{
    return backend->path;
}

unsigned int
qvhost_user_backend_max_regions(const QVhostUserBackend *backend)
{
    return backend->max_regions;
}

bool qvhost_user_backend_started(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);

    return backend_is_started(backend);
}

unsigned int qvhost_user_backend_nr_regions(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);

    return backend->regions->len;
}

static gint compare_regions(gconstpointer a, gconstpointer b)
{
    const uint64_t addr_a = ((const QVhostUserRegion *)a)->addr;
    const uint64_t addr_b = ((const QVhostUserRegion *)b)->addr;

    return addr_a < addr_b ? -1 : addr_a > addr_b;
}

GArray *qvhost_user_backend_regions(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);
    GArray *regions = g_array_new(false, false, sizeof(QVhostUserRegion));
    unsigned int i;

    for (i = 0; i < backend->regions->len; i++) {
        const VhostUserMemoryRegion *from =
            &backend_get_region(backend, i)->region;
        const QVhostUserRegion region = {
            .addr = from->guest_phys_addr,
            .size = from->memory_size,
            .mmap_offset = from->mmap_offset,
        };

        g_array_append_val(regions, region);
    }
    g_array_sort(regions, compare_regions);
    return regions;
}

void *qvhost_user_backend_memory(QVhostUserBackend *backend, uint64_t addr,
                                 uint64_t size)
{
    LOCK_GUARD(backend);
    unsigned int i;

    for (i = 0; i < backend->regions->len; i++) {
        const Region *region = backend_get_region(backend, i);
        const uint64_t start = region->region.guest_phys_addr;

        if (addr >= start && addr - start < region->region.memory_size &&
            size <= region->region.memory_size - (addr - start)) {
            return (uint8_t *)region->host + (addr - start);
        }
    }
    return NULL;
}

uint64_t qvhost_user_backend_log_size(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);

    return backend->log_size;
}

uint64_t qvhost_user_backend_log_allocated(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);

    return backend->log_allocated;
}

bool qvhost_user_backend_log(QVhostUserBackend *backend, uint64_t addr)
{
    LOCK_GUARD(backend);
    const uint64_t page = addr / LOG_PAGE_SIZE;

    if (!(backend->features & (1ull << VHOST_F_LOG_ALL)) ||
        page / 8 >= backend->log_size) {
        return false;
    }
    /* The frontend reads and clears it meanwhile. */
    qatomic_or(&backend->log[page / 8], 1 << (page % 8));
    return true;
}

void qvhost_user_backend_set_iommu(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);

    backend->iommu = true;
}

uint64_t qvhost_user_backend_translate(QVhostUserBackend *backend,
                                       uint64_t iova)
{
    LOCK_GUARD(backend);
    unsigned int i, j;

    for (i = 0; i < backend->iotlb->len; i++) {
        const struct vhost_iotlb_msg *msg =
            &g_array_index(backend->iotlb, struct vhost_iotlb_msg, i);
        const uint64_t uaddr = msg->uaddr + (iova - msg->iova);

        if (iova < msg->iova || iova - msg->iova >= msg->size) {
            continue;
        }
        for (j = 0; j < backend->regions->len; j++) {
            const VhostUserMemoryRegion *region =
                &backend_get_region(backend, j)->region;

            if (msg->uaddr >= region->userspace_addr &&
                msg->uaddr + msg->size <= region->userspace_addr +
                                          region->memory_size) {
                return region->guest_phys_addr + uaddr - region->userspace_addr;
            }
        }
        backend_set_error(backend,
                          "entry of the IOTLB for 0x%" PRIx64 " leads out of"
                          " all regions", iova);
    }
    return UINT64_MAX;
}

void qvhost_user_backend_offer_notifiers(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);

    backend->has_notifiers = true;
}

bool qvhost_user_backend_is_ready(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);
    char byte;

    /* Neither has the frontend gone, nor is there something left to do. */
    return backend->ready &&
           recv(backend->conn_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0;
}

bool qvhost_user_backend_miss(QVhostUserBackend *backend, uint64_t iova)
{
    LOCK_GUARD(backend);
    const struct vhost_iotlb_msg iotlb = {
        .iova = iova,
        .perm = VHOST_ACCESS_RW,
        .type = VHOST_IOTLB_MISS,
    };
    VhostUserMsg msg = {
        .request = VHOST_USER_BACKEND_IOTLB_MSG,
        .flags = PROTOCOL_VERSION,
        .size = sizeof(iotlb),
    };

    if (backend->req_fd < 0) {
        return false;
    }
    memcpy(&msg.payload, &iotlb, sizeof(iotlb));
    return RETRY_ON_EINTR(send(backend->req_fd, &msg,
                               VHOST_USER_HDR_SIZE + sizeof(iotlb),
                               MSG_NOSIGNAL)) > 0;
}

void qvhost_user_backend_take_regions(QVhostUserBackend *backend,
                                      unsigned int count)
{
    LOCK_GUARD(backend);

    backend->nr_taken_regions = count;
}

unsigned int qvhost_user_backend_nr_messages(QVhostUserBackend *backend,
                                             VhostUserRequest request)
{
    LOCK_GUARD(backend);

    g_assert(request < VHOST_USER_MAX);
    return backend->nr_messages[request];
}

void qvhost_user_backend_wait_started(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);
    const gint64 end_time = g_get_monotonic_time() + WAIT_TIMEOUT_US;

    while (!backend_is_started(backend)) {
        g_assert_true(g_cond_wait_until(&backend->cond, &backend->lock,
                                        end_time));
    }
}

void qvhost_user_backend_wait(QVhostUserBackend *backend,
                              VhostUserRequest request, unsigned int count)
{
    LOCK_GUARD(backend);
    const gint64 end_time = g_get_monotonic_time() + WAIT_TIMEOUT_US;

    g_assert(request < VHOST_USER_MAX);
    while (backend->nr_messages[request] < count) {
        g_assert_true(g_cond_wait_until(&backend->cond, &backend->lock,
                                        end_time));
    }
}

char *qvhost_user_backend_error(QVhostUserBackend *backend)
{
    LOCK_GUARD(backend);

    return g_strdup(backend->error);
}
