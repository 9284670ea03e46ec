"""
Who else has KVM log what vCPUs write, beside migration: displays, and whoever
wants to know how fast memory gets dirty.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import unittest
from typing import Iterable, Iterator, List, Optional, Tuple

import environment
import host_memory
from baremetal import BareMetal, Command
from drivers import Answer, Machine, VirtioMem
from vhost_backends import DEVICE_SLOT, TracedMachine
from vm import GIB, MIB, wait_until

TIB = 1024 * GIB

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
        self.machine.cmd('migrate-set-parameters', max_bandwidth=SLOW,
                         avail_switchover_bandwidth=SLOW)
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

    def test_logged(self) -> None:
        """
        The log tells what the guest writes to memory that comes and goes, and
        not that it does.
        """
        for multiple in ('on', 'off'):
            with self.subTest(multiple=multiple):
                self._test_logged(multiple)

    def _test_logged(self, multiple: str) -> None:
        size, part = 4 * GIB, 256 * MIB
        cpu = environment.require_kvm()
        machine = BareMetal(environment.qemu_system(), 'kvm', 4 * size)
        self.addCleanup(machine.shutdown)
        machine.add_args(
            '-D', str(machine.directory / 'trace'),
            '-trace', 'kvm_set_user_memory', '-cpu', cpu, '-object',
            f'memory-backend-memfd,id=mem,size={size},reserve=off', '-device',
            f'virtio-mem-pci,id=vmem,memdev=mem,addr={DEVICE_SLOT},'
            f'requested-size={size},block-size=2M,unplugged-inaccessible=on,'
            f'multiple-memslots={multiple}')
        machine.launch()
        memory = VirtioMem(machine, DEVICE_SLOT)
        written = 64 * MIB

        def come_and_go() -> Iterator[None]:
            for offset in (part, GIB, 3 * GIB):
                self.assertEqual(memory.plug(offset, part), Answer.ACK)
            self.assertEqual(memory.unplug(GIB, part), Answer.ACK)
            yield

        def come_and_write() -> Iterator[None]:
            self.assertEqual(memory.plug(2 * GIB, part), Answer.ACK)
            machine.run(Command.WRITE, memory.start + 2 * GIB, written, 4096,
                        1)
            yield

        self.assertEqual(memory.plug(0, part), Answer.ACK)
        # Pages that the guest talks through are written all the time.
        self.assertLessEqual(self.measure(machine, 1, come_and_go()), 1)
        self.assertIn(self.measure(machine, 3, come_and_write()),
                      range(1, 2 + written // MIB // 3))

    def measure(self, machine: Machine, seconds: int,
                meanwhile: Iterable[None]) -> int:
        """The dirty rate in MiB per second by the log."""
        def nr_started() -> int:
            return (machine.directory / 'trace').read_text('utf-8').count(
                ' flags=0x1 gpa=0x0 ')

        before = nr_started()
        machine.cmd('calc-dirty-rate', mode='dirty-bitmap', calc_time=seconds)
        wait_until('boot memory is logged',
                   lambda: nr_started() > before or None)
        for _ in meanwhile:
            pass
        info = wait_until('the rate is measured', lambda: (
            lambda info: info if info['status'] == 'measured' else None)(
                machine.cmd('query-dirty-rate')))
        return int(info['dirty-rate'])

    def sample(self, machine: TracedMachine, samples: int,
               meanwhile: Iterable[object] = ()) -> int:
        """
        The dirty rate in MiB per second by so many sampled pages per GiB;
        @meanwhile is iterated until it is known.
        """
        def dirty_rate() -> Optional[int]:
            info = machine.cmd('query-dirty-rate')
            return (info['dirty-rate'] if info['status'] == 'measured'
                    else None)

        machine.cmd('calc-dirty-rate', mode='page-sampling',
                    sample_pages=samples, calc_time=1)
        for _ in meanwhile:
            if dirty_rate() is not None:
                break
        return wait_until('the rate is measured', dirty_rate)

    def plugged(self, multiple: str, size: int, offsets: Iterable[int],
                part: int) -> Tuple[TracedMachine, VirtioMem]:
        """A machine with parts of a device plugged and written."""
        machine = TracedMachine(environment.qemu_system(), 'tcg', 4 * size)
        machine.add_args('-cpu', 'qemu64,phys-bits=48')
        self.addCleanup(machine.shutdown)
        machine.add_device(f'multiple-memslots={multiple}', size)
        machine.launch()
        memory = VirtioMem(machine, DEVICE_SLOT)
        for offset in offsets:
            self.assertEqual(memory.plug(offset, part), Answer.ACK)
            machine.qtest(f'memset {memory.start + offset} {part} 1')
        return machine, memory

    def test_sampled(self) -> None:
        """
        Samples of pages tell what is written, and leave alone what is
        unplugged.
        """
        for multiple in ('on', 'off'):
            with self.subTest(multiple=multiple):
                self._test_sampled(multiple)

    def _test_sampled(self, multiple: str) -> None:
        size, part, most = 4 * GIB, 32 * MIB, 16384
        machine, memory = self.plugged(multiple, size, (0, GIB), part)

        def allocated() -> List[int]:
            return list(host_memory.files(machine.get_pid() or 0,
                                          size).values())

        def unplug() -> Iterator[None]:
            self.assertEqual(memory.unplug(0, part), Answer.ACK)
            yield

        self.assertEqual(self.sample(machine, most), 0)
        self.assertEqual(allocated(), [2 * part])
        # At most all that is plugged is written each second.
        writes = (machine.qtest(f'memset {memory.start + GIB} {part} {value}')
                  for value in range(2, 256))
        self.assertIn(self.sample(machine, most, writes),
                      range(1, 2 * part // MIB))
        # What is unplugged has changed, but is not read any more.
        self.assertEqual(self.sample(machine, most, unplug()), 0)
        self.assertEqual(allocated(), [part])

    def test_large(self) -> None:
        """Samples come from all of a block with more than 2^31 pages."""
        part = 128 * MIB
        machine, memory = self.plugged('on', 9 * TIB, (0, 5 * TIB), part)
        writes = (machine.qtest(f'memset {memory.start} {part} {value}')
                  for value in range(2, 256))
        # Few pages are sampled: about 16 of what is written.
        self.assertIn(self.sample(machine, 128, writes),
                      range(1, 16 * part // MIB))


if __name__ == '__main__':
    unittest.main()
