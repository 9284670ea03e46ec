/*
 * Report what a guest does at a bounded rate
 *
 * A guest can do the same thing again and again, and must not be able to fill a
 * log with it. "Once" is not enough, though: what a guest was refused an hour
 * ago is not what it is refused now.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_REPORT_LIMIT_H
#define QEMU_REPORT_LIMIT_H

#include "qemu/timer.h"

/* What comes more often is left out. */
#define REPORT_LIMIT_INTERVAL_NS (60 * NANOSECONDS_PER_SECOND)

/**
 * ReportLimit: when something was reported last
 *
 * To be initialized with zeroes, and protected by the caller.
 */
typedef struct ReportLimit {
    /* private: */
    bool reported;
    int64_t last;
    uint64_t left_out;
} ReportLimit;

/**
 * report_limit_pass: whether something may be reported now
 *
 * Time is that of the guest (QEMU_CLOCK_VIRTUAL), which does nothing while it
 * is stopped. When a snapshot is loaded, it may go back.
 *
 * @limit: what was reported before
 * @left_out: how many times it was left out since then, set if it may be
 *     reported now; NULL is fine
 *
 * Returns: true if so. The caller has to report it then.
 */
static inline bool report_limit_pass(ReportLimit *limit, uint64_t *left_out)
{
    const int64_t now = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);

    if (limit->reported && now >= limit->last &&
        now - limit->last < REPORT_LIMIT_INTERVAL_NS) {
        limit->left_out++;
        return false;
    }
    if (left_out) {
        *left_out = limit->left_out;
    }
    *limit = (ReportLimit) { .reported = true, .last = now };
    return true;
}

#endif /* QEMU_REPORT_LIMIT_H */
