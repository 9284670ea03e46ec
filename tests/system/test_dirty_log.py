"""
Who else has KVM log what vCPUs write, beside migration: displays, and whoever
wants to know how fast memory gets dirty.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import unittest

import environment
from baremetal import BareMetal, Command
from drivers import Answer, VirtioMem
from vhost_backends import DEVICE_SLOT, TracedMachine
from vm import GIB, MIB, wait_until

CARD_SLOT = 6
FRAMEBUFFER = 0xe8000000
# Ports of a VGA card: index and data of its extension, then palette and
# attribute registers
VBE_INDEX, VBE_DATA = 0x1ce, 0x1cf
DAC_INDEX, DAC_DATA = 0x3c8, 0x3c9
ATTRIBUTE, STATUS = 0x3c0, 0x3da
# Of the extension: size and depth, then linear framebuffer and on
WIDTH, HEIGHT, DEPTH, LINEAR_ON = 640, 480, 8, 0x41
# Brightest of a colour in the palette
BRIGHTEST = 0x3f
# Bytes per second: few enough for a migration to go on for long
SLOW = 4096


class TestDisplay(unittest.TestCase):
    """
    A display in a mode in which QEMU converts what it shows, and so looks for
    what is dirty.
    """

    def setUp(self) -> None:
        cpu = environment.require_kvm()
        self.machine = BareMetal(environment.qemu_system(), 'kvm', GIB)
        self.addCleanup(self.machine.shutdown)
        self.machine.add_args('-cpu', cpu,
                              '-device', f'VGA,addr={CARD_SLOT}')
        self.machine.launch()
        for register, value in ((0x10, FRAMEBUFFER), (4, 3)):
            self.machine.pci_write(CARD_SLOT, register, value)
        for index, value in ((1, WIDTH), (2, HEIGHT), (3, DEPTH),
                             (4, LINEAR_ON)):
            self.machine.qtest(f'outw {VBE_INDEX} {index}')
            self.machine.qtest(f'outw {VBE_DATA} {value}')
        # Shades of red
        self.machine.qtest(f'outb {DAC_INDEX} 0')
        for shade in range(BRIGHTEST + 1):
            for colour in (shade, 0, 0):
                self.machine.qtest(f'outb {DAC_DATA} {colour}')
        self.machine.qtest(f'inb {STATUS}')
        self.machine.qtest(f'outb {ATTRIBUTE} 0x20')

    def draw(self, line: int, shade: int) -> None:
        """Have the vCPU draw a line."""
        self.machine.run(Command.WRITE, FRAMEBUFFER, (line + 1) * WIDTH, 4,
                         shade * 0x01010101)

    def shown(self, line: int) -> int:
        """What the display has in a line: a shade, the same everywhere."""
        file = self.machine.directory / 'screen'
        self.machine.cmd('screendump', filename=str(file))
        header, _, pixels = file.read_bytes().partition(b'\n255\n')
        self.assertEqual(header, f'P6\n{WIDTH} {HEIGHT}'.encode('ascii'))
        row = pixels[line * WIDTH * 3:(line + 1) * WIDTH * 3]
        self.assertEqual(row, row[:3] * WIDTH)
        self.assertEqual(row[1:3], b'\0\0')
        return row[0] >> 2

    def test_shown(self) -> None:
        """What the vCPU draws is shown, before, during and after migration."""
        self.assertEqual(self.shown(0), 0)

        def draw_all(first: int) -> None:
            for shade in range(first, first + 3):
                self.draw(shade, shade)
                self.assertEqual([self.shown(line)
                                  for line in (0, shade, shade + 1)],
                                 [shade, shade, 0])

        draw_all(1)
        self.machine.cmd('migrate-set-parameters', max_bandwidth=SLOW)
        self.machine.cmd(
            'migrate', uri=f'exec:cat >{self.machine.directory}/migration')
        self.machine.wait_migration('active')
        draw_all(11)
        self.machine.cmd('migrate_cancel')
        self.machine.wait_migration('cancelled')
        draw_all(21)


class TestDirtyRate(unittest.TestCase):
    """Memory that comes while the dirty rate is measured is logged, too."""
    SIZE = 128 * MIB

    def test_plugged(self) -> None:
        """A DIMM, and a memslot of a virtio-mem device."""
        environment.require_kvm()
        machine = TracedMachine(environment.qemu_system())
        self.addCleanup(machine.shutdown)
        machine.add_device('multiple-memslots=on', 4 * GIB)
        machine.launch()
        machine.cmd('calc-dirty-rate', mode='dirty-bitmap', calc_time=60)
        wait_until('boot memory is logged', lambda: ' flags=0x1 gpa=0x0 ' in
                   machine.trace.read_text('utf-8') or None)
        memory = VirtioMem(machine, DEVICE_SLOT)
        self.assertEqual(memory.plug(0, memory.block), Answer.ACK)
        # Nothing that changes memory comes after it, and so nothing that would
        # have it logged all the same.
        machine.cmd('object-add', qom_type='memory-backend-ram',
                    id='dimm-backend', size=self.SIZE)
        machine.cmd('device_add', driver='pc-dimm', id='dimm',
                    memdev='dimm-backend')
        for address in (machine.memory_device('dimm')['addr'], memory.start):
            # The last call of KVM about it decides.
            flags = re.findall(
                rf'^kvm_set_user_memory .*flags=(0x\d+) gpa=0x{address:x} ',
                machine.trace.read_text('utf-8'), re.M)
            self.assertEqual(flags[-1:], ['0x1'], hex(address))


if __name__ == '__main__':
    unittest.main()
