/*
 * libqos vhost-user backend: its memory regions, rings and log
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/memfd.h"
#include "vhost-user-backend-int.h"
#include <sys/mman.h>

void backend_set_error(QVhostUserBackend *backend, const char *fmt, ...)
{
    va_list ap;

    if (!backend->error) {
        va_start(ap, fmt);
        backend->error = g_strdup_vprintf(fmt, ap);
        va_end(ap);
    }
}

Region *backend_get_region(QVhostUserBackend *backend, unsigned int i)
{
    return &g_array_index(backend->regions, Region, i);
}

void backend_unmap_region(gpointer data)
{
    Region *region = data;

    munmap(region->host, region->region.memory_size);
}

void backend_drop_log(QVhostUserBackend *backend)
{
    if (backend->log) {
        munmap(backend->log, backend->log_size);
    }
    backend->log = NULL;
    backend->log_size = 0;
    backend->log_allocated = 0;
}

/* Whether the backend can access that memory of QEMU's in one piece */
static bool can_access(QVhostUserBackend *backend, uint64_t addr, uint64_t size)
{
    unsigned int i;

    for (i = 0; i < backend->regions->len; i++) {
        const VhostUserMemoryRegion *region =
            &backend_get_region(backend, i)->region;

        if (addr >= region->userspace_addr &&
            addr - region->userspace_addr < region->memory_size) {
            return size <= region->memory_size -
                           (addr - region->userspace_addr);
        }
    }
    return false;
}

/* Whether the log, if there has to be one, has bits up to an address */
static bool is_logged(const QVhostUserBackend *backend, uint64_t end)
{
    return !backend->log || end <= backend->log_size * 8 * LOG_PAGE_SIZE;
}

static uint64_t used_size(const Queue *queue)
{
    return sizeof(struct vring_used) +
           queue->num * sizeof(struct vring_used_elem);
}

bool backend_is_started(const QVhostUserBackend *backend)
{
    unsigned int i;

    for (i = 0; i < MAX_QUEUES; i++) {
        if (backend->queues[i].started) {
            return true;
        }
    }
    return false;
}

/*
 * Rings have to be in memory that the backend has; their changes, in the log.
 * Only while it is at work: what belongs together comes one by one.
 */
bool backend_queues_are_sane(QVhostUserBackend *backend)
{
    unsigned int i;

    for (i = 0; i < MAX_QUEUES; i++) {
        const Queue *queue = &backend->queues[i];

        /* What an IOMMU translates is not known before it is asked for. */
        if (!queue->started || backend->iommu) {
            continue;
        }
        if (!can_access(backend, queue->addr.desc_user_addr,
                        queue->num * sizeof(struct vring_desc)) ||
            !can_access(backend, queue->addr.avail_user_addr,
                        sizeof(struct vring_avail) +
                        queue->num * sizeof(uint16_t)) ||
            !can_access(backend, queue->addr.used_user_addr,
                        used_size(queue))) {
            backend_set_error(backend, "queue %u is not in the memory", i);
            return false;
        }
        if (queue->addr.flags & (1 << VHOST_VRING_F_LOG) &&
            !is_logged(backend, queue->addr.log_guest_addr +
                                used_size(queue))) {
            backend_set_error(backend, "queue %u is not in the log", i);
            return false;
        }
    }
    return true;
}

Queue *backend_get_queue(QVhostUserBackend *backend, unsigned int i)
{
    static Queue other;

    if (i >= MAX_QUEUES) {
        backend_set_error(backend, "queue %u", i);
        return &other;
    }
    return &backend->queues[i];
}

static bool region_is_sane(QVhostUserBackend *backend,
                           const VhostUserMemoryRegion *region, int fd)
{
    struct stat st;

    if (!region->memory_size ||
        region->guest_phys_addr > UINT64_MAX - region->memory_size ||
        region->mmap_offset > UINT64_MAX - region->memory_size) {
        backend_set_error(backend, "bad range of region 0x%" PRIx64,
                          region->guest_phys_addr);
        return false;
    }
    if (fstat(fd, &st) < 0 ||
        region->mmap_offset + region->memory_size > st.st_size) {
        backend_set_error(backend, "region 0x%" PRIx64 " exceeds its file",
                          region->guest_phys_addr);
        return false;
    }
    return true;
}

bool backend_add_region(QVhostUserBackend *backend,
                        const VhostUserMemoryRegion *region, int fd)
{
    const uint64_t addr = region->guest_phys_addr;
    Region added = { .region = *region };
    unsigned int i;

    if (!region_is_sane(backend, region, fd)) {
        return false;
    }
    for (i = 0; i < backend->regions->len; i++) {
        const VhostUserMemoryRegion *other =
            &backend_get_region(backend, i)->region;

        if (addr < other->guest_phys_addr + other->memory_size &&
            other->guest_phys_addr < addr + region->memory_size) {
            backend_set_error(backend,
                              "region 0x%" PRIx64 " overlaps with 0x%" PRIx64,
                              addr, other->guest_phys_addr);
            return false;
        }
    }
    if (backend->regions->len == backend->max_regions) {
        backend_set_error(backend,
                          "region 0x%" PRIx64 " is one more than %u", addr,
                          backend->max_regions);
        return false;
    }
    if (backend_is_started(backend) &&
        backend->features & (1ull << VHOST_F_LOG_ALL) &&
        !is_logged(backend, addr + region->memory_size)) {
        backend_set_error(backend,
                          "region 0x%" PRIx64 " is not in the log", addr);
        return false;
    }
    added.host = mmap(NULL, region->memory_size, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_NORESERVE, fd, region->mmap_offset);
    if (added.host == MAP_FAILED) {
        backend_set_error(backend,
                          "region 0x%" PRIx64 " cannot be mapped: %s", addr,
                          strerror(errno));
        return false;
    }
    g_array_append_val(backend->regions, added);
    return true;
}

bool backend_remove_region(QVhostUserBackend *backend,
                           const VhostUserMemoryRegion *region)
{
    unsigned int i;

    for (i = 0; i < backend->regions->len; i++) {
        const VhostUserMemoryRegion *other =
            &backend_get_region(backend, i)->region;

        if (region->guest_phys_addr == other->guest_phys_addr &&
            region->memory_size == other->memory_size &&
            region->userspace_addr == other->userspace_addr) {
            g_array_remove_index_fast(backend->regions, i);
            return backend_queues_are_sane(backend);
        }
    }
    backend_set_error(backend,
                      "region 0x%" PRIx64 " to be removed does not exist",
                      region->guest_phys_addr);
    return false;
}

bool backend_set_regions(QVhostUserBackend *backend, const Request *req)
{
    /* Copied as it is misaligned in the message; elsewhere, too. */
    const VhostUserMemory memory = req->msg.payload.memory;
    unsigned int i;

    if (memory.nregions > VHOST_MEMORY_BASELINE_NREGIONS ||
        memory.nregions != req->nr_fds) {
        backend_set_error(backend, "table of %u regions with %u files",
                          memory.nregions, req->nr_fds);
        return false;
    }
    g_array_set_size(backend->regions, 0);
    for (i = 0; i < memory.nregions; i++) {
        if (!backend_add_region(backend, &memory.regions[i], req->fds[i])) {
            return false;
        }
    }
    return backend_queues_are_sane(backend);
}

bool backend_may_change_single_regions(QVhostUserBackend *backend)
{
    if (!(backend->protocol_features &
          (1ull << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS))) {
        backend_set_error(backend, "request to change a single region");
        return false;
    }
    return true;
}

/* Returns whether all is well. */
bool backend_set_log(QVhostUserBackend *backend, const Request *req)
{
    const uint64_t size = req->msg.payload.log.mmap_size;
    const uint64_t offset = req->msg.payload.log.mmap_offset;
    struct stat st;

    backend_drop_log(backend);
    if (req->nr_fds != 1 || !size || fstat(req->fds[0], &st) < 0 ||
        offset > st.st_size || size > st.st_size - offset) {
        backend_set_error(backend,
                          "log of %" PRIu64 " bytes with %u files", size,
                          req->nr_fds);
        return false;
    }
    backend->log = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
                        req->fds[0], offset);
    if (backend->log == MAP_FAILED) {
        backend->log = NULL;
        backend_set_error(backend, "log cannot be mapped: %s", strerror(errno));
        return false;
    }
    backend->log_size = size;
    backend->log_allocated = st.st_blocks * 512;
    return backend_queues_are_sane(backend);
}

void qvhost_user_backend_map_notifier(QVhostUserBackend *backend,
                                      unsigned int queue)
{
    LOCK_GUARD(backend);
    const uint64_t size = qemu_real_host_page_size();
    const int fd = qemu_memfd_create("notifier", size, false, 0, 0,
                                     &error_abort);
    VhostUserMsg msg = {
        .request = VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG,
        .flags = PROTOCOL_VERSION | VHOST_USER_NEED_REPLY_MASK,
        .size = sizeof(msg.payload.area),
        .payload.area = { .u64 = queue, .size = size },
    };
    char control[CMSG_SPACE(sizeof(fd))] QEMU_ALIGNED(8) = { };
    struct iovec iov = { &msg, VHOST_USER_HDR_SIZE + msg.size };
    struct msghdr hdr = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof(control),
    };
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&hdr);
    ssize_t ret;

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
    memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
    ret = RETRY_ON_EINTR(sendmsg(backend->req_fd, &hdr, MSG_NOSIGNAL));
    g_assert_cmpint(ret, ==, iov.iov_len);
    close(fd);

    /* QEMU answers this without asking us anything. */
    iov.iov_len = VHOST_USER_HDR_SIZE + sizeof(msg.payload.u64);
    ret = RETRY_ON_EINTR(recv(backend->req_fd, &msg, iov.iov_len,
                              MSG_WAITALL));
    g_assert_cmpint(ret, ==, iov.iov_len);
    g_assert_cmpuint(msg.payload.u64, ==, 0);
}
