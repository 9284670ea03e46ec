"""
Other users of guest memory than vCPUs and devices, with memory plugged here
and there in memslots that come and go: dumps, the monitor and the debugger,
and balloons.

What is plugged is there for all of them, and what is not costs the host no
more than with a single memslot.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import struct
import unittest
from pathlib import Path
from typing import Iterable, List, Optional, Set, Tuple, Type, Union

from qemu.qmp import ExecuteError

import environment
import host_memory
from baremetal import BareMetal, Command
from drivers import Answer, Machine, VirtioMem
from dumps import PAGE, Elf, Kdump
from gdb import Gdb, GdbError
from vm import (BOOT_STALL, GIB, MIB, TCG, VirtualMachine, plugged_memslots,
                wait_until)

NAME = 'vmem0'
DEVICE_SLOT = 5
# One memslot for each GiB
SIZE = 5 * GIB
MAXMEM = 16 * GIB
BLOCK = 2 * MIB

# Both ends of a memslot, across the boundary between two, a block in the
# middle and the last one. Nothing of memslot 3.
PLUGGED = (0, GIB - BLOCK, GIB, GIB + BLOCK, GIB + GIB // 2, 2 * GIB - BLOCK,
           2 * GIB, 5 * GIB - BLOCK)
PLUGGED_MEMSLOTS = [0, 1, 2, 4]
# Unplugged after a while: where two memslots meet, and all of memslot 4
UNPLUGGED = (GIB, 5 * GIB - BLOCK)
# Not plugged, with and without a memslot
NOWHERE = (GIB // 2, 3 * GIB, 3 * GIB + GIB // 2)


def pattern(address: int) -> bytes:
    """What is written to a page: its address, again and again."""
    return struct.pack('<Q', address) * (PAGE // 8)


def ranges(blocks: Iterable[int]) -> List[Tuple[int, int]]:
    """Blocks as ranges, address and size."""
    found: List[Tuple[int, int]] = []
    for block in sorted(blocks):
        if found and sum(found[-1]) == block:
            found[-1] = (found[-1][0], found[-1][1] + BLOCK)
        else:
            found.append((block, BLOCK))
    return found


class Rig:
    """A machine with memory plugged and filled."""

    def __init__(self, test: unittest.TestCase, machine: Machine,
                 multiple: str) -> None:
        self.test = test
        self.machine = machine
        self.multiple = multiple
        test.addCleanup(machine.shutdown)
        machine.add_args(
            '-object', f'memory-backend-memfd,id={NAME}-backend,size={SIZE},'
                       'share=on,reserve=off',
            '-device', f'virtio-mem-pci,id={NAME},memdev={NAME}-backend,'
                       f'addr={DEVICE_SLOT},requested-size={SIZE},'
                       'block-size=2M,unplugged-inaccessible=on,'
                       f'multiple-memslots={multiple}')
        machine.launch()
        self.memory = VirtioMem(machine, DEVICE_SLOT)
        self.start = self.memory.start
        # Addresses of the blocks that are plugged
        self.plugged: Set[int] = set()
        for offset in PLUGGED:
            test.assertEqual(self.memory.plug(offset, BLOCK), Answer.ACK)
            self.plugged.add(self.start + offset)
        for address in self.pages():
            machine.write(address, pattern(address))
        self.assert_memslots(PLUGGED_MEMSLOTS)

    def pages(self) -> List[int]:
        """Addresses of all pages that are plugged."""
        return [address for block in sorted(self.plugged)
                for address in range(block, block + BLOCK, PAGE)]

    def assert_memslots(self, expected: List[int]) -> None:
        """What is mapped is what it has to be."""
        if self.multiple == 'on':
            self.test.assertEqual(self.machine.mapped_memslots(NAME),
                                  expected)

    def unplug_some(self) -> None:
        """Unplug what is to go after a while."""
        for offset in UNPLUGGED:
            self.test.assertEqual(self.memory.unplug(offset, BLOCK),
                                  Answer.ACK)
            self.plugged.remove(self.start + offset)
        self.assert_memslots([0, 1, 2])

    def spent(self) -> int:
        """What the host spends on the device's memory."""
        return host_memory.in_file(self.machine.get_pid() or 0, SIZE)

    def file(self, name: str) -> Path:
        """A file for QEMU to write to."""
        return self.machine.directory / name


class Base:
    """Hidden from the loader of tests."""

    class Tests(unittest.TestCase):
        """What is tested with each accelerator."""
        accel: str
        multiple: str

        def setUp(self) -> None:
            if self.accel == 'kvm':
                environment.require_kvm()
            self.start(Machine)

        def start(self, kind: Type[Machine]) -> None:
            """Start a machine."""
            self.rig = Rig(self, kind(environment.qemu_system(), self.accel,
                                      MAXMEM), self.multiple)
            self.machine = self.rig.machine

        def assert_pages(self, dump: Union[Elf, Kdump]) -> None:
            """A dump has the pages that are plugged, and no others."""
            found = {}
            for address, data in dump.pages(self.rig.start):
                self.assertEqual(data, pattern(address), hex(address))
                found[address] = True
            self.assertEqual(list(found), self.rig.pages())

        def dump(self, name: str, **arguments: object) -> Path:
            """Have QEMU dump the guest's memory to a file."""
            path = self.rig.file(name)
            self.machine.cmd('dump-guest-memory',
                             **{'paging': False,
                                'protocol': f'file:{path}', **arguments})
            return path

        # Tests of dumps

        def assert_elf(self) -> None:
            """An ELF dump has all that is plugged, and only that."""
            dump = Elf(self.dump('elf'))
            self.assertEqual(dump.above(self.rig.start),
                             ranges(self.rig.plugged))
            self.assert_pages(dump)

        def test_elf(self) -> None:
            """The usual dump."""
            spent = self.rig.spent()
            self.assertEqual(spent, len(PLUGGED) * BLOCK)
            self.assert_elf()
            self.assertEqual(self.rig.spent(), spent)
            self.rig.unplug_some()
            self.assert_elf()
            self.assertEqual(self.rig.spent(),
                             (len(PLUGGED) - len(UNPLUGGED)) * BLOCK)

        def test_kdump(self) -> None:
            """The dump that crash and makedumpfile take."""
            spent = self.rig.spent()
            self.assert_pages(Kdump(self.dump('one', format='kdump-zlib')))
            self.assertEqual(self.rig.spent(), spent)
            self.rig.unplug_some()
            self.assert_pages(Kdump(self.dump('two', format='kdump-zlib')))

        def test_part(self) -> None:
            """A part of the memory, across memslots."""
            start = self.rig.start
            # Within a block, to within the one in the middle of memslot 1
            first, last = GIB - 4 * PAGE, GIB + GIB // 2 + 8 * PAGE
            dump = Elf(self.dump('part', begin=start + first,
                                 length=last - first))
            self.assertEqual(
                dump.above(0),
                [(start + first, 4 * PAGE + 2 * BLOCK),
                 (start + GIB + GIB // 2, 8 * PAGE)])
            for address, data in dump.pages(0):
                self.assertEqual(data, pattern(address))

        def test_nowhere(self) -> None:
            """A part in which nothing is plugged: refused."""
            for offset in NOWHERE:
                with self.assertRaisesRegex(ExecuteError, 'no guest memory'):
                    self.dump('nowhere', begin=self.rig.start + offset,
                              length=16 * MIB)

        def test_paging(self) -> None:
            """
            What the guest has mapped: of each virtual range, QEMU dumps what
            is there in one piece from its start on.
            """
            self.machine.shutdown()
            self.start(BareMetal)
            assert isinstance(self.machine, BareMetal)
            # The guest's page tables point there from then on.
            first = self.rig.start + GIB
            self.machine.run(Command.READ, first, GIB, GIB // 2)
            spent = self.rig.spent()
            dump = Elf(self.dump('paging', paging=True))
            self.assertEqual(dump.above(self.rig.start), [(first, 2 * BLOCK)])
            for address, data in dump.pages(self.rig.start):
                self.assertEqual(data, pattern(address))
            self.assertEqual(self.rig.spent(), spent)

        # Tests of the monitor and the debugger

        def is_mapped(self, offset: int) -> bool:
            """Whether there is memory, plugged or not."""
            return (self.multiple == 'off'
                    or offset // GIB in PLUGGED_MEMSLOTS)

        def words(self, command: str, address: int) -> Optional[List[int]]:
            """What x or xp prints, None if there is no memory."""
            output = self.machine.hmp(f'{command} /4gx {address:#x}')
            if 'Cannot access memory' in output:
                return None
            return [int(word, 16) for line in output.splitlines()
                    for word in line.split(':')[1].split()]

        def save(self, command: str, address: int, size: int) -> bytes:
            """What pmemsave or memsave writes."""
            path = self.rig.file(command)
            self.machine.cmd(command, val=address, size=size,
                             filename=str(path))
            return path.read_bytes()

        def assert_spent(self, before: int, pages: int) -> None:
            """Accesses to NOWHERE take memory where some is mapped."""
            places = sum(self.is_mapped(offset) for offset in NOWHERE)
            self.assertEqual(self.rig.spent(), before + places * pages * PAGE)

        def test_monitor(self) -> None:
            """The commands x, xp, memsave and pmemsave."""
            spent = self.rig.spent()
            # Two blocks each: of two memslots, and of one
            for offset in (GIB, GIB + BLOCK):
                address = self.rig.start + offset
                expected = [address - PAGE] * 2 + [address] * 2
                for command in ('x', 'xp'):
                    self.assertEqual(self.words(command, address - 16),
                                     expected)
                for command in ('memsave', 'pmemsave'):
                    self.assertEqual(self.save(command, address - 16, 32),
                                     struct.pack('<4Q', *expected))
            self.assertEqual(self.rig.spent(), spent)

        def test_monitor_nowhere(self) -> None:
            """Likewise, where nothing is plugged."""
            spent = self.rig.spent()
            for offset in NOWHERE:
                address = self.rig.start + offset
                self.assertEqual(self.save('pmemsave', address, 2 * PAGE),
                                 bytes(2 * PAGE))
                if self.is_mapped(offset):
                    self.assertEqual(self.words('x', address), [0] * 4)
                    self.assertEqual(self.words('xp', address), [0] * 4)
                    self.assertEqual(self.save('memsave', address, 2 * PAGE),
                                     bytes(2 * PAGE))
                    continue
                self.assertIsNone(self.words('x', address))
                self.assertIsNone(self.words('xp', address))
                with self.assertRaisesRegex(ExecuteError, 'Invalid addr'):
                    self.save('memsave', address, 2 * PAGE)
            self.assert_spent(spent, pages=2)

        def test_monitor_end(self) -> None:
            """From the end of a memslot to where there is none."""
            end = self.rig.start + 5 * GIB
            self.assertEqual(self.save('pmemsave', end - PAGE, 2 * PAGE),
                             pattern(end - PAGE) + bytes(PAGE))
            with self.assertRaisesRegex(ExecuteError, 'Invalid addr'):
                self.save('memsave', end - PAGE, 2 * PAGE)

        def debugger(self) -> Gdb:
            """A debugger; the machine is stopped as long as it is there."""
            path = self.rig.file('gdb')
            self.machine.hmp(f'gdbserver unix:{path},server=on,wait=off')
            return Gdb(path)

        def test_debugger(self) -> None:
            """Read and write by physical and by virtual addresses."""
            spent = self.rig.spent()
            # In two memslots
            address = self.rig.start + GIB - 8
            before = struct.pack('<QQ', address + 8 - PAGE, address + 8)
            with self.debugger() as gdb:
                for physical in (True, False):
                    gdb.use_physical_addresses(physical)
                    self.assertEqual(gdb.read(address, 16), before)
                    data = bytes(range(16))
                    gdb.write(address, data)
                    self.assertEqual(self.machine.read(address, 16), data)
                    gdb.write(address, before)
                gdb.detach()
            self.assertEqual(self.rig.spent(), spent)
            self.assertEqual(self.machine.read(address, 16), before)

        def test_debugger_nowhere(self) -> None:
            """Likewise, where nothing is plugged."""
            spent = self.rig.spent()
            with self.debugger() as gdb:
                for physical in (True, False):
                    gdb.use_physical_addresses(physical)
                    for offset in NOWHERE:
                        address = self.rig.start + offset
                        data = b'by physical one.' if physical else bytes(16)
                        if self.is_mapped(offset) or physical:
                            gdb.write(address, data)
                            self.assertEqual(
                                gdb.read(address, 16),
                                data if self.is_mapped(offset) else bytes(16))
                            continue
                        with self.assertRaisesRegex(GdbError, 'E14'):
                            gdb.read(address, 16)
                        with self.assertRaisesRegex(GdbError, 'E14'):
                            gdb.write(address, data)
                gdb.detach()
            self.assert_spent(spent, pages=1)


class TestKVM(Base.Tests):
    """With virtualisation."""
    accel = 'kvm'
    multiple = 'on'


class TestTCG(Base.Tests):
    """With emulation."""
    accel = 'tcg'
    multiple = 'on'


class TestSingle(Base.Tests):
    """With one memslot: the control."""
    accel = 'tcg'
    multiple = 'off'


class TestBalloon(unittest.TestCase):
    """A Linux guest with a balloon beside the device."""

    # One memslot for each GiB
    SIZE = 4 * GIB
    RAM = GIB
    INFLATED = 512 * MIB
    SEED = 11

    def setUp(self) -> None:
        self.vm = VirtualMachine(environment.qemu_system(), TCG.name,
                                 self.RAM, maxmem=self.RAM + self.SIZE,
                                 cpu=TCG.cpu)
        self.addCleanup(self.vm.shutdown)
        self.guest = self.vm.add_guest(environment.image())

    def boot(self, plugged: int, **balloon: str) -> None:
        """Boot with a balloon, and plug memory."""
        self.vm.add_virtio_mem(NAME, self.SIZE, multiple_memslots='on',
                               unplugged_inaccessible='on')
        properties = ''.join(f',{key.replace("_", "-")}={value}'
                             for key, value in balloon.items())
        self.vm.add_args('-device', f'virtio-balloon-pci{properties}')
        self.vm.launch()
        self.guest.wait_ready(BOOT_STALL)
        self.slots = self.vm.plan(NAME)
        self.assertEqual(len(self.slots), self.SIZE // GIB)
        self.resize(plugged)

    def resize(self, size: int) -> None:
        """Have the guest plug or unplug memory, check the memslots."""
        self.vm.request(NAME, size)
        self.vm.wait_plugged(NAME, size)

        def expected() -> List[int]:
            return plugged_memslots(self.vm, NAME, self.slots)
        wait_until(f'memslots {expected()} are mapped (and not '
                   f'{self.vm.mapped_memslots(NAME)})',
                   lambda: self.vm.mapped_memslots(NAME) == expected()
                   or None, timeout=10)

    def spent(self) -> int:
        """What the host spends on the device's memory."""
        return host_memory.resident(self.vm.get_pid() or 0, self.SIZE)

    def inflate(self, size: int) -> None:
        """Have the guest give the balloon so much memory."""
        left = self.RAM - size
        self.vm.cmd('balloon', value=left)
        wait_until(f'the guest has inflated the balloon to {size}',
                   lambda: self.vm.cmd('query-balloon')['actual'] == left
                   or None)

    def test_inflate(self) -> None:
        """Inflate and deflate a balloon while memory comes and goes."""
        self.boot(plugged=3 * GIB // 2)
        # Most of the balloon will be in what has been written to.
        self.guest.fill_movable(self.SEED)
        self.guest.free()
        before = self.spent()
        self.inflate(self.INFLATED)
        inflated = self.spent()
        print(f'# {before // MIB} MiB of the device spent, with the balloon '
              f'at {self.INFLATED // MIB} MiB {inflated // MIB} MiB',
              flush=True)
        self.assertLess(inflated, before - self.INFLATED // 2)

        size = 256 * MIB
        self.guest.fill(self.SEED + 1, size)
        # More than one memslot, less than one, more again
        for plugged in (5 * GIB // 2, GIB, 2 * GIB):
            self.resize(plugged)
            self.guest.check(self.SEED + 1, size)
        self.inflate(self.INFLATED // 2)
        self.resize(5 * GIB // 4)
        self.inflate(0)
        self.guest.check(self.SEED + 1, size)
        self.guest.free()
        filled = self.guest.fill_movable(self.SEED + 2)
        self.guest.check(self.SEED + 2, filled)
        self.guest.free()
        self.resize(0)
        self.assertEqual(self.vm.mapped_memslots(NAME), [])
        wait_until('all memory is discarded',
                   lambda: self.spent() == 0 or None)

    def test_report(self) -> None:
        """The guest reports free memory, while memory comes and goes."""
        self.boot(plugged=3 * GIB // 2, free_page_reporting='on')
        for plugged in (2 * GIB, GIB):
            filled = self.guest.fill_movable(self.SEED)
            self.guest.check(self.SEED, filled)
            before = self.spent()
            self.guest.free()
            wait_until('the guest reports most of its memory as free',
                       lambda: self.spent() < before // 4 or None)
            print(f'# {before // MIB} MiB of the device spent, '
                  f'{self.spent() // MIB} MiB after reports of free memory',
                  flush=True)
            self.guest.fill(self.SEED + 1, 64 * MIB)
            self.resize(plugged)
            self.guest.check(self.SEED + 1, 64 * MIB)
            self.guest.free()
        self.resize(0)
        self.assertEqual(self.vm.mapped_memslots(NAME), [])
        wait_until('all memory is discarded',
                   lambda: self.spent() == 0 or None)


if __name__ == '__main__':
    unittest.main()
