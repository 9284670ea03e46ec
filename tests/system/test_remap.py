"""
A vCPU uses one device while other devices are mapped and unmapped.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import unittest

import environment
import writer
from drivers import BARS, Machine
from vm import GIB, wait_until

# PCI configuration space of the device in slot 5: registers, and what to write
# to the command register
SLOT, COMMAND, BAR = 5, 4, 0x20
ENABLED, DISABLED = 6, 4
# With QEMU 7.2 as it is, about one start in ten fails.
STARTS = 25
REMAPS = 60


class WriterMachine(Machine):
    """The first thing that the vCPU does is to set up its APIC's timer."""

    @staticmethod
    def firmware() -> bytes:
        return writer.firmware()


class TestRemap(unittest.TestCase):
    """No access goes to another device."""

    def test_timer(self) -> None:
        """All of the timer's registers are set."""
        for start in range(STARTS):
            self.start(start)

    def start(self, start: int) -> None:
        """Start a machine and look at its timer."""
        binary = environment.qemu_system()
        with WriterMachine(binary, 'tcg', 8 * GIB) as machine:
            machine.add_args('-S', '-device', f'virtio-rng-pci,addr={SLOT}')
            machine.launch()
            machine.pci_write(SLOT, BAR, BARS)
            machine.pci_write(SLOT, BAR + 4, 0)
            machine.cmd('cont')
            for count in range(REMAPS):
                machine.pci_write(SLOT, COMMAND,
                                  DISABLED if count % 2 else ENABLED)
            wait_until('the vCPU is done and sleeps', lambda: 'HLT=1' in
                       machine.hmp('info registers') or None)
            self.assertRegex(machine.hmp('info lapic'),
                             r'LVTT\s.*\bperiodic\b', f'start {start}')


if __name__ == '__main__':
    unittest.main()
