/*
 * Memslots that KVM may refuse
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_KVM_TRY_MEMSLOTS_H
#define SYSTEM_KVM_TRY_MEMSLOTS_H

/**
 * kvm_try_memslots_begin: go on without memslots that KVM refuses
 *
 * Usually, QEMU aborts if it can't add a memslot, as KVM has no memory for it
 * or holds as many as it can. Until kvm_try_memslots_end() is called, such a
 * memslot is left out instead.
 *
 * Memory that lacks its memslot stays mapped for the rest of QEMU: if the guest
 * accesses it, KVM exits to QEMU, which serves what KVM can emulate. That is
 * slow, and code can't be executed there. With several address spaces, memory
 * can lack its memslot in only one of them. It is for the caller to unmap the
 * memory: that removes the memslots that were added, and is fine with those
 * that were not.
 *
 * begin and end have to enclose a complete memory transaction: memslots are
 * added at the end of the outermost one. They can't be nested, and the BQL has
 * to be held all the time. Anything but adding memslots aborts on failure, as
 * ever.
 *
 * May be called without KVM; then nothing fails.
 */
void kvm_try_memslots_begin(void);

/**
 * kvm_try_memslots_end: the end of what kvm_try_memslots_begin() began
 *
 * There is no message about memslots that were left out, only trace events.
 *
 * Returns: 0 if all memslots were added, else the negative errno of the first
 * one that was not; -ENOSPC if KVM holds as many as it can.
 */
int kvm_try_memslots_end(void);

/* For KVM alone */

/**
 * kvm_is_trying_memslots: whether a memslot that is refused is to be left out
 */
bool kvm_is_trying_memslots(void);

/**
 * kvm_memslot_refused: note that a memslot was left out
 *
 * @err: a negative errno
 */
void kvm_memslot_refused(int err);

#endif /* SYSTEM_KVM_TRY_MEMSLOTS_H */
