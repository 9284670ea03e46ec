"""
Views of guest-physical memory and I/O ports that do not change are kept, and
those who listen to them still see all of them.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import unittest
from typing import Callable, Dict, List

import environment
from drivers import Answer, VirtioMem
from vhost_backends import DEVICE_SLOT, Block, TracedMachine
from vm import GIB, MIB

SIZE = 4 * GIB
# A device with a BAR in I/O space, and where that goes
RNG_SLOT, PORTS = 7, 0xc000
# Registers in PCI configuration space
COMMAND, BAR = 4, 0x10
DISABLED, ENABLED = 0, 1


class TestFlatView(unittest.TestCase):
    """Memory changes while ports do not, and the other way round."""

    def setUp(self) -> None:
        self.machine = TracedMachine(environment.qemu_system())
        self.addCleanup(self.machine.shutdown)
        self.machine.add_args('-device', f'virtio-rng-pci,addr={RNG_SLOT},'
                                         'disable-legacy=off')
        for event in ('flatview_new', 'flatview_destroy'):
            self.machine.add_args('-trace', event)

    def write_config(self, register: int, value: int) -> None:
        """Write a register of the device with ports."""
        self.machine.pci_write(RNG_SLOT, register, value)

    def replaced(self, change: Callable[[], None]) -> List[str]:
        """Roots of the views that a change replaces."""
        before = len(self.machine.trace.read_text('utf-8'))
        change()
        new: Dict[str, str] = {}
        for event, view, root in re.findall(
                r'^(flatview_new|flatview_destroy) (\S+) \(root (\S+)\)$',
                self.machine.trace.read_text('utf-8')[before:], re.M):
            if event == 'flatview_new':
                new[view] = root
            else:
                # It was the same as the one before, or is that one.
                new.pop(view, None)
        return list(new.values())

    def test_views(self) -> None:
        """Only what changes is replaced."""
        self.machine.add_device('multiple-memslots=on', SIZE)
        self.machine.launch()
        memory = VirtioMem(self.machine, DEVICE_SLOT)
        self.write_config(BAR, PORTS)
        # With one memslot more or less, the view of memory devices alone has
        # another root if there would be one else, or none.
        for offset in (0, GIB):
            self.assertEqual(memory.plug(offset, memory.block), Answer.ACK)

        def plug() -> None:
            self.assertEqual(memory.plug(2 * GIB, memory.block), Answer.ACK)

        def unplug() -> None:
            self.assertEqual(memory.unplug(2 * GIB, memory.block), Answer.ACK)

        # That of all memory, and that of memory devices
        mapped = self.replaced(plug)
        self.assertEqual(len(mapped), 2)
        self.assertEqual(self.replaced(unplug), mapped)
        ports = self.replaced(lambda: self.write_config(COMMAND, ENABLED))
        self.assertEqual(len(ports), 1)
        self.assertNotIn(ports[0], mapped)
        # What the views have is right.
        self.assertRegex(self.machine.hmp('info mtree -f'),
                         rf'{PORTS:016x}-.*virtio-pci')
        self.assertEqual(
            self.replaced(lambda: self.write_config(COMMAND, DISABLED)),
            ports)
        self.assertNotRegex(self.machine.hmp('info mtree -f'),
                            rf'{PORTS:016x}-')

    def test_dirty_log(self) -> None:
        """A view that differs in nothing but what is logged is replaced."""
        environment.require_kvm()
        self.machine.add_device('multiple-memslots=on', SIZE)
        self.machine.launch()
        memory = VirtioMem(self.machine, DEVICE_SLOT)
        self.assertEqual(memory.plug(0, memory.block), Answer.ACK)
        self.machine.cmd('migrate-set-parameters', max_bandwidth=4096,
                         avail_switchover_bandwidth=4096)
        self.machine.cmd(
            'migrate', uri=f'exec:cat >{self.machine.directory}/migration')
        self.machine.wait_migration('active')
        # KVM was told to log the device's memslot.
        logged = re.findall(
            rf'^kvm_set_user_memory .*flags=0x1 gpa=0x{memory.start:x} ',
            self.machine.trace.read_text('utf-8'), re.M)
        self.assertEqual(len(logged), 1)
        self.machine.cmd('migrate_cancel')

    def test_vhost(self) -> None:
        """A backend keeps its regions while only ports change."""
        self.machine.add_device('multiple-memslots=on', SIZE)
        disk = Block(self, self.machine)
        disk.add()
        self.machine.launch()
        memory = VirtioMem(self.machine, DEVICE_SLOT)
        disk.start()
        self.assertEqual(memory.plug(0, memory.block), Answer.ACK)
        self.write_config(BAR, PORTS)
        data = bytes(range(256)) * 16
        sent = self.machine.messages()
        for command in (ENABLED, DISABLED, ENABLED):
            self.write_config(COMMAND, command)
            disk.deliver(memory.start + MIB, data)
            self.assertEqual(self.machine.read(memory.start + MIB,
                                               len(data)), data)
        self.assertEqual(self.machine.messages(), sent)


if __name__ == '__main__':
    unittest.main()
