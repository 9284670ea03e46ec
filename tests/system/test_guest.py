"""
A Linux guest plugs memory, uses all of it, gives it back and plugs again.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import unittest
from typing import Callable, List

import environment
from guest import Guest
from vm import (BOOT_STALL, GIB, VirtualMachine, plugged_memslots,
                usable_memslots, usable_region, wait_until)

NAME = 'vmem0'
SIZE = 4 * GIB


class GuestTests:
    """What is tested with each accelerator."""

    class Base(unittest.TestCase):
        """One guest a test."""
        accel: str
        vm: VirtualMachine
        guest: Guest
        base: int

        def boot(self, unplugged_inaccessible: str) -> None:
            """Boot a guest with a virtio-mem device, nothing plugged."""
            accelerator = environment.accelerator(self.accel)
            self.vm = VirtualMachine(
                environment.qemu_system(), accelerator.name, GIB,
                maxmem=GIB + SIZE, cpu=accelerator.cpu)
            self.addCleanup(self.vm.shutdown)
            self.guest = self.vm.add_guest(environment.image())
            self.vm.add_virtio_mem(
                NAME, SIZE, multiple_memslots='on',
                unplugged_inaccessible=unplugged_inaccessible)
            self.vm.launch()
            self.guest.wait_ready(BOOT_STALL)
            self.base = self.guest.meminfo('MemTotal')

        def resize(self, size: int, mapped: Callable[[], List[int]]) -> None:
            """
            Have the guest plug or unplug memory; QEMU, the guest and the
            memslots have to agree on it.
            """
            self.vm.request(NAME, size)
            self.vm.wait_plugged(NAME, size)
            # The guest's own books follow what it tells the device.
            wait_until(
                f'MemTotal is {size} over what it was at boot',
                lambda: self.guest.meminfo('MemTotal') == self.base + size
                or None)
            wait_until(
                f'with {size} plugged, memslots {mapped()} are mapped '
                f'(and not {self.vm.mapped_memslots(NAME)})',
                lambda: self.vm.mapped_memslots(NAME) == mapped() or None,
                timeout=10)

        def use(self, seed: int) -> None:
            """Write to all of the device's memory, and read it back."""
            size = self.guest.fill_movable(seed)
            self.guest.check(seed, size)
            self.guest.free()

        def test_inaccessible(self) -> None:
            """Memslots are mapped if something in them is plugged."""
            self.boot('on')
            slots = self.vm.plan(NAME)

            def plugged() -> List[int]:
                return plugged_memslots(self.vm, NAME, slots)

            self.assertEqual(self.vm.mapped_memslots(NAME), [])
            self.resize(SIZE, plugged)
            self.assertEqual(self.vm.mapped_memslots(NAME), [0, 1, 2, 3])
            self.use(seed=1)
            self.assertEqual(self.vm.mapped_memslots(NAME), [0, 1, 2, 3])

            # All of one memslot in the middle
            start = self.vm.memory_device(NAME)['memaddr']
            self.guest.offline(start + slots[1].offset,
                               start + slots[2].offset - 1)
            self.resize(SIZE - slots[1].size, plugged)
            self.assertEqual(self.vm.mapped_memslots(NAME), [0, 2, 3])

            self.resize(GIB, plugged)
            self.resize(SIZE, plugged)
            self.assertEqual(self.vm.mapped_memslots(NAME), [0, 1, 2, 3])
            self.use(seed=2)
            self.resize(0, plugged)
            self.assertEqual(self.vm.mapped_memslots(NAME), [])

        def test_accessible(self) -> None:
            """Memslots are mapped if the usable region reaches them."""
            self.boot('off')
            slots = self.vm.plan(NAME)
            largest = 0

            def usable() -> List[int]:
                device = self.vm.memory_device(NAME)
                return usable_memslots(slots, usable_region(largest, device))

            self.assertEqual(self.vm.mapped_memslots(NAME), [])
            for size in (GIB // 2, GIB, 2 * GIB, GIB, SIZE):
                # It only shrinks when all is unplugged at once.
                largest = max(largest, size)
                self.resize(size, usable)
            self.assertEqual(self.vm.mapped_memslots(NAME), [0, 1, 2, 3])
            self.use(seed=3)
            self.resize(0, usable)
            self.assertEqual(self.vm.mapped_memslots(NAME), [0, 1, 2, 3])


class TestTCG(GuestTests.Base):
    """With emulation."""
    accel = 'tcg'


class TestKVM(GuestTests.Base):
    """With virtualisation."""
    accel = 'kvm'


if __name__ == '__main__':
    unittest.main()
