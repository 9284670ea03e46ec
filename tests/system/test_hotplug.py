"""
A virtio-mem device comes while a Linux guest runs, goes, and comes again.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import unittest
from typing import List

from qemu.qmp import ExecuteError

import environment
from guest import Guest
from vhost_backends import wait_deleted
from vm import (BOOT_STALL, GIB, VirtualMachine, plugged_memslots,
                wait_until)

NAME, BACKEND = 'vmem0', 'vmem0-backend'
SIZE = 4 * GIB
SLOT = 5


class HotplugTests:
    """What is tested with each accelerator."""

    class Base(unittest.TestCase):
        """One guest a test."""
        accel: str
        vm: VirtualMachine
        guest: Guest

        def setUp(self) -> None:
            accelerator = environment.accelerator(self.accel)
            # Machine q35 would need a port to plug the device into.
            self.vm = VirtualMachine(
                environment.qemu_system(), accelerator.name, GIB,
                maxmem=GIB + SIZE, machine='pc', cpu=accelerator.cpu)
            self.addCleanup(self.vm.shutdown)
            self.guest = self.vm.add_guest(environment.image())
            self.vm.launch()
            self.guest.wait_ready(BOOT_STALL)
            self.vm.cmd('object-add', qom_type='memory-backend-ram',
                        id=BACKEND, size=SIZE, reserve=False)

        def account(self) -> List[int]:
            """Memslots that memory devices were promised, and use."""
            info = self.vm.cmd('query-memslots')
            return [info[name] for name in ('required', 'used', 'reserved')]

        def plug_device(self, size: int) -> None:
            """Plug the device, and have the guest plug some memory."""
            self.vm.cmd('device_add', driver='virtio-mem-pci', id=NAME,
                        memdev=BACKEND, addr=str(SLOT), requested_size=size,
                        unplugged_inaccessible='on', multiple_memslots=True)
            self.vm.wait_plugged(NAME, size)
            self.assert_memslots()

        def assert_memslots(self) -> None:
            """What the guest has memory of is mapped."""
            slots = self.vm.plan(NAME)
            self.assertEqual(len(slots), 4)

            def plugged() -> List[int]:
                return plugged_memslots(self.vm, NAME, slots)
            wait_until(f'memslots {plugged()} are mapped (and not '
                       f'{self.vm.mapped_memslots(NAME)})',
                       lambda: self.vm.mapped_memslots(NAME) == plugged()
                       or None, timeout=10)
            used = len(plugged())
            self.assertEqual(self.account(), [4, used, 4 - used])

        def assert_stays(self, reason: str) -> None:
            """The device cannot be unplugged now, and keeps its promise."""
            with self.assertRaisesRegex(ExecuteError, reason):
                self.vm.cmd('device_del', id=NAME)
            # The guest may be plugging meanwhile.
            required, used, reserved = self.account()
            self.assertEqual((required, used + reserved), (4, 4))

        def empty_device(self) -> None:
            """Have the guest give all memory back."""
            self.vm.request(NAME, 0)
            self.vm.wait_plugged(NAME, 0)
            self.assert_memslots()

        def wait_gone(self) -> None:
            """The guest has agreed to device_del, and nothing is left."""
            wait_deleted(self.vm, NAME)
            self.assertEqual(self.account(), [0, 0, 0])
            self.assertEqual(self.vm.cmd('query-memory-devices'), [])
            for form in ('', ' -f'):
                self.assertNotIn(BACKEND, self.vm.hmp(f'info mtree{form}'))

        def test_come_and_go(self) -> None:
            """The promise goes with the device; its backend serves again."""
            base = self.guest.meminfo('MemTotal')
            self.assertEqual(self.account(), [0, 0, 0])
            for seed, size in ((1, 2 * GIB), (2, SIZE)):
                self.plug_device(size)
                pattern = self.guest.fill_movable(seed)
                self.guest.check(seed, pattern)
                self.assert_stays('still plugged')
                self.guest.check(seed, pattern)
                self.guest.free()
                self.empty_device()
                self.vm.cmd('device_del', id=NAME)
                self.wait_gone()
                self.assertEqual(self.guest.meminfo('MemTotal'), base)
            # Nothing holds on to it.
            self.vm.cmd('object-del', id=BACKEND)

        def test_on_its_way(self) -> None:
            """A device that is about to go asks for no memory any more."""
            self.plug_device(GIB)
            self.empty_device()
            self.vm.request(NAME, GIB)
            # The guest may have begun to plug, or not.
            self.assert_stays('still plugged|requested-size')
            self.vm.wait_plugged(NAME, GIB)
            self.empty_device()
            self.vm.cmd('stop')
            self.vm.cmd('device_del', id=NAME)
            before = self.account()
            with self.assertRaisesRegex(ExecuteError, 'process of unplug'):
                self.vm.request(NAME, GIB)
            self.assertEqual(self.account(), before)
            self.vm.cmd('cont')
            self.wait_gone()


class TestTCG(HotplugTests.Base):
    """With emulation."""
    accel = 'tcg'


class TestKVM(HotplugTests.Base):
    """With virtualisation."""
    accel = 'kvm'


if __name__ == '__main__':
    unittest.main()
