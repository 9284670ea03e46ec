"""
What KVM on x86 allocates for a memslot, whatever is in it.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from dataclasses import dataclass

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SMALL, LARGE, HUGE = 4 * KIB, 2 * MIB, GIB
# KVM counts the pages of a memslot in 31 bits.
MOST_OF_A_MEMSLOT = ((1 << 31) - 1) * SMALL


@dataclass(frozen=True)
class Flavour:
    """How a KVM keeps track of guest memory."""
    # Reverse map: always with shadow paging, else only for nested VMs
    rmap: bool
    # Counts of those who track writes to a page
    tracking: bool = True
    # Address spaces; there is one more with SMM.
    spaces: int = 1

    def bytes(self, size: int) -> int:
        """What memslots of @size in all need."""
        large, huge = size // LARGE, size // HUGE
        need = 4 * (large + huge)
        if self.rmap:
            need += 8 * (size // SMALL + large + huge)
        if self.tracking:
            need += 2 * (size // SMALL)
        return need * self.spaces

    def dirty_log(self, size: int) -> int:
        """What memslots of @size in all need more during a migration."""
        return 2 * (size // SMALL // 8) * self.spaces

    def __str__(self) -> str:
        parts = ['shadow paging' if self.rmap else 'TDP MMU',
                 'page tracking' if self.tracking else 'no page tracking',
                 'SMM' if self.spaces > 1 else 'no SMM']
        return ', '.join(parts)


def guess(size: int, measured: int) -> Flavour:
    """The flavour that comes closest to what a memslot was seen to cost."""
    flavours = [Flavour(rmap, tracking) for rmap in (False, True)
                for tracking in (False, True)]
    return min(flavours,
               key=lambda flavour: abs(flavour.bytes(size) - measured))
