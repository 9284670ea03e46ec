"""
A guest that touches memory which it has not plugged, and one that watches its
memory while the memslots around it come and go.

Both run a small program of ours on real vCPUs, so that they do with KVM what
a stock guest would not do.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import ctypes
import random
import re
import unittest
from contextlib import contextmanager
from typing import Callable, Iterator, List, Set

import environment
import host_memory
from baremetal import AREA_SIZE, CPUS, BareMetal, Command, Outcome
from drivers import QUEUE_SIZE, Answer, VirtioBlk, VirtioMem
from nbd_disk import Disk
from vm import GIB, MIB, wait_until

NAME = 'vmem0'
DEVICE_SLOT = 5
DISK_SLOT = 6
# One memslot for each GiB
SIZE = 8 * GIB
MEMSLOTS = list(range(SIZE // GIB))
MAXMEM = 32 * GIB
BLOCK = 2 * MIB
PAGE = 4096
# Every so many bytes, memory is touched: one page of the host each.
STRIDE = MIB // 2
# Blocks of which the memslots are mapped, in the tests that map some
SOME_BLOCKS = (2 * GIB + 16 * MIB, 5 * GIB, 6 * GIB - BLOCK)
SOME_MEMSLOTS = [2, 5]
VALUE = 0x12345678

# Changes of neighbours' memslots, and how often all that is watched has to be
# seen while they happen
CHANGES = 400
MIN_PASSES = 10
WATCH_STRIDE = 128 * 1024
WATCH_SHARED = 1024
WATCH_OWN = 64

# How often memory is unplugged while it is written to, and what each CPU
# writes before
RACES = 20
RACE_ACCESSES = 1000

PR_SET_THP_DISABLE = 41
# The memory region of a device with many memslots
CONTAINER = 'virtio-mem'
KVM_EXIT_MMIO = 6


@contextmanager
def no_huge_pages() -> Iterator[None]:
    """What is started meanwhile gets no transparent huge pages."""
    libc = ctypes.CDLL(None, use_errno=True)

    def disable(value: int) -> None:
        if libc.prctl(PR_SET_THP_DISABLE, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), 'PR_SET_THP_DISABLE')
    disable(1)
    try:
        yield
    finally:
        disable(0)


class Rig:
    """A machine with a device, and what the host spends on it."""

    # From launch() on
    memory: VirtioMem

    def __init__(self, test: unittest.TestCase, accel: str, multiple: str,
                 backend: str = 'memory-backend-memfd,share=on') -> None:
        self.machine = BareMetal(environment.qemu_system(), accel, MAXMEM)
        test.addCleanup(self.machine.shutdown)
        self._in_file = 'memfd' in backend
        self._log = self.machine.directory / 'log'
        self.machine.add_args(
            '-object', f'{backend},id={NAME}-backend,size={SIZE},reserve=off',
            '-device', f'virtio-mem-pci,id={NAME},memdev={NAME}-backend,'
                       f'addr={DEVICE_SLOT},requested-size={SIZE},'
                       'block-size=2M,unplugged-inaccessible=on,'
                       f'multiple-memslots={multiple}',
            '-d', 'invalid_mem', '-D', str(self._log))
        if accel == 'kvm':
            self.machine.add_args('-trace', 'kvm_run_exit')

    def launch(self) -> None:
        """Start the machine and the driver of the device."""
        with no_huge_pages():
            self.machine.launch()
        self.memory = VirtioMem(self.machine, DEVICE_SLOT)

    def plug(self, offset: int) -> None:
        """Plug a block."""
        assert self.memory.plug(offset, BLOCK) == Answer.ACK

    def unplug(self, offset: int) -> None:
        """Unplug a block."""
        assert self.memory.unplug(offset, BLOCK) == Answer.ACK

    def host_memory(self) -> int:
        """Bytes of the host's memory that the device's backend has."""
        if self._in_file:
            return host_memory.in_file(self.machine.get_pid() or 0, SIZE)
        return self.resident()

    def wait_discarded(self) -> None:
        """Wait until the device's backend has none of the host's memory."""
        wait_until(f'{self.host_memory()} bytes are discarded',
                   lambda: self.host_memory() == 0 or None, pause=0.005)

    def resident(self) -> int:
        """How much of it QEMU has in its address space."""
        return host_memory.resident(self.machine.get_pid() or 0, SIZE)

    def strays(self) -> int:
        """
        Accesses so far to addresses of the device that nothing is at.

        KVM is without memslots for a moment before QEMU has them otherwise,
        and QEMU may find memory where KVM did not.
        """
        log = self._log.read_text('utf-8')
        # Within the container, it is the offset that is told.
        accesses = re.findall(r'^Invalid (?:read|write) at addr '
                              r"0x([0-9A-F]+), size \d+, region '([^']*)'",
                              log, re.M)
        addresses = [int(address, 16)
                     + (self.memory.start if region == CONTAINER else 0)
                     for address, region in accesses]
        exits = re.findall(rf'^kvm_run_exit .*reason {KVM_EXIT_MMIO}$', log,
                           re.M)
        return max(len(exits), sum(
            self.memory.start <= address < self.memory.start + SIZE
            for address in addresses))


def touch_from_device(rig: Rig) -> Outcome:
    """Write and read all of the region as a device might."""
    count = matches = 0
    for offset in range(0, SIZE, STRIDE):
        address = rig.memory.start + offset
        rig.machine.set_number(address, 'l', VALUE)
        matches += rig.machine.number(address, 'l') == VALUE
        count += 1
    return Outcome(count, matches, 0, 0, 0, 0, 0)


def touch_from_vcpu(command: Command) -> Callable[[Rig], Outcome]:
    """Access all of the region from the guest."""
    def touch(rig: Rig) -> Outcome:
        return rig.machine.run(command, rig.memory.start, SIZE, STRIDE, VALUE)
    return touch


class Base:
    """Hidden from the loader of tests."""

    class Accelerated(unittest.TestCase):
        """What is tested with each accelerator."""
        accel: str

        def setUp(self) -> None:
            if self.accel == 'kvm':
                environment.require_kvm()

        def rig(self, multiple: str,
                backend: str = 'memory-backend-memfd,share=on') -> Rig:
            """A machine that runs."""
            rig = Rig(self, self.accel, multiple, backend)
            rig.launch()
            return rig


class Hostile:
    """Hidden from the loader of tests."""

    class Tests(Base.Accelerated):
        """Touch memory that has not been plugged."""

        def assert_growth(self, multiple: str, mapped: List[int],
                          touch: Callable[[Rig], Outcome], what: str,
                          backend: str) -> None:
            """
            Touching all of the region costs the host the memory that is
            mapped, to the page.
            """
            rig = self.rig(multiple, backend)
            if mapped == SOME_MEMSLOTS:
                for block in SOME_BLOCKS:
                    rig.plug(block)
            if multiple == 'on':
                self.assertEqual(rig.machine.mapped_memslots(NAME), mapped)
            self.assertEqual(rig.host_memory(), 0)

            outcome = touch(rig)
            grown = rig.host_memory()
            print(f'# {self.accel}: {backend.split(",")[0]}, '
                  f'multiple-memslots={multiple}, {len(mapped)} of '
                  f'{SIZE // GIB} GiB mapped, {what}: '
                  f'{outcome.accesses} pages touched, {grown // PAGE} now '
                  f'there ({rig.resident() // PAGE} resident)', flush=True)
            self.assertEqual(outcome.accesses, SIZE // STRIDE)
            pages = len(mapped) * GIB // STRIDE
            self.assertEqual(grown, pages * PAGE)
            if what != 'written':
                self.assertEqual(outcome.matches,
                                 0 if what == 'read' else pages)
            self.assertEqual(rig.resident(), grown)
            rig.machine.shutdown()

        def each(self, touch: Callable[[Rig], Outcome], what: str,
                 backend: str = 'memory-backend-memfd,share=on') -> None:
            """With nothing mapped, some memslots, and the control."""
            for multiple, mapped in (('on', []), ('on', SOME_MEMSLOTS),
                                     ('off', MEMSLOTS)):
                with self.subTest(multiple=multiple, mapped=mapped):
                    self.assert_growth(multiple, mapped, touch, what, backend)

        def test_read(self) -> None:
            """A vCPU reads."""
            self.each(touch_from_vcpu(Command.READ), 'read')

        def test_write(self) -> None:
            """A vCPU writes."""
            self.each(touch_from_vcpu(Command.WRITE), 'written')

        def test_both(self) -> None:
            """A vCPU writes and reads back."""
            self.each(touch_from_vcpu(Command.WRITE_READ), 'written and read')

        def test_anonymous(self) -> None:
            """A vCPU writes to private memory of QEMU, and reads back."""
            self.each(touch_from_vcpu(Command.WRITE_READ), 'written and read',
                      'memory-backend-ram')

        def test_device(self) -> None:
            """Accesses come from elsewhere than a vCPU."""
            self.each(touch_from_device, 'written and read')

        def test_dma(self) -> None:
            """A disk reads into memory that has not been plugged."""
            for multiple, memslots in (('on', []), ('off', MEMSLOTS)):
                with self.subTest(multiple=multiple):
                    rig = Rig(self, self.accel, multiple)
                    rig.machine.add_args(
                        '-blockdev', 'null-co,node-name=disk,size=1048576,'
                                     'read-zeroes=on',
                        '-device', f'virtio-blk-pci,drive=disk,'
                                   f'addr={DISK_SLOT}')
                    rig.launch()
                    disk = VirtioBlk(rig.machine, DISK_SLOT)
                    for memslot in MEMSLOTS:
                        disk.transfer(disk.IN, 0,
                                      rig.memory.start + memslot * GIB, PAGE)
                    self.assertEqual(rig.host_memory(), len(memslots) * PAGE)
                    rig.machine.shutdown()

        def test_unplug(self) -> None:
            """
            What a vCPU touched around plugged blocks goes when their memslots
            do.
            """
            rig = self.rig('on')
            for memslot in MEMSLOTS:
                for offset in (0, GIB - BLOCK):
                    rig.plug(memslot * GIB + offset)
                rig.machine.run(Command.WRITE, rig.memory.start, SIZE, STRIDE)
                self.assertEqual(rig.host_memory(), GIB // STRIDE * PAGE)
                rig.unplug(memslot * GIB)
                # It may have memory, except in what has just been unplugged.
                self.assertEqual(rig.host_memory(),
                                 (GIB - BLOCK) // STRIDE * PAGE)
                rig.unplug((memslot + 1) * GIB - BLOCK)
                rig.wait_discarded()

        def test_in_flight(self) -> None:
            """
            What a disk reads into memory that was unplugged meanwhile stays
            there until that is plugged and unplugged.
            """
            rig = Rig(self, self.accel, 'on')
            slow = Disk(self, rig.machine.directory)
            rig.machine.add_args(
                '-blockdev', 'nbd,node-name=disk,server.type=unix,'
                             f'server.path={slow.path}',
                '-device', f'virtio-blk-pci,drive=disk,addr={DISK_SLOT}')
            # Looking for partitions, for example
            slow.release()
            rig.launch()
            disk = VirtioBlk(rig.machine, DISK_SLOT)
            rig.plug(0)
            slow.hold()
            disk.post(disk.IN, 0, rig.memory.start, PAGE)
            slow.wait_held(1)
            rig.unplug(0)
            self.assertEqual(rig.machine.mapped_memslots(NAME), [])
            rig.wait_discarded()

            slow.release()
            disk.wait()
            self.assertEqual(rig.host_memory(), PAGE)
            rig.plug(0)
            rig.unplug(0)
            rig.wait_discarded()

        def test_race(self) -> None:
            """
            vCPUs write to memory while it is unplugged: what they get in
            while it was still mapped does not stay.
            """
            rig = self.rig('on')
            machine, random_ = rig.machine, random.Random(1)
            machine.wake()
            areas = [rig.memory.start + memslot * GIB for memslot in MEMSLOTS]
            for race in range(RACES):
                for memslot in MEMSLOTS:
                    rig.plug(memslot * GIB)
                machine.watch(areas, PAGE)
                wait_until('all CPUs write', lambda: all(
                    machine.outcome(cpu).accesses > RACE_ACCESSES
                    for cpu in range(CPUS)) or None, pause=0.001)
                if race % 2:
                    self.assertEqual(rig.memory.unplug_all(), Answer.ACK)
                else:
                    for memslot in random_.sample(MEMSLOTS, len(MEMSLOTS)):
                        rig.unplug(memslot * GIB)
                machine.stop_watching()
                self.assertEqual(machine.mapped_memslots(NAME), [])
                rig.wait_discarded()


class Neighbours:
    """Hidden from the loader of tests."""

    class Tests(Base.Accelerated):
        """Watch memory while memslots beside it come and go."""

        # What stays, and what comes and goes: it is beside the former.
        WATCHED = MEMSLOTS[0::2]
        CHANGING = MEMSLOTS[1::2]

        @staticmethod
        def ends(memslots: List[int]) -> List[int]:
            """Offsets of the first and the last block of memslots."""
            return [offset for memslot in memslots
                    for offset in (memslot * GIB, (memslot + 1) * GIB - BLOCK)]

        def change(self, rig: Rig) -> int:
            """
            Plug and unplug the neighbours until the CPUs have seen enough of
            it, return how often.
            """
            random_ = random.Random(2)
            plugged: Set[int] = set()
            blocks = self.ends(self.CHANGING)
            changes = 0
            while changes < CHANGES or any(
                    rig.machine.outcome(cpu).passes < MIN_PASSES
                    for cpu in range(CPUS)):
                for block in random_.sample(blocks, len(blocks)):
                    if block in plugged:
                        rig.unplug(block)
                        plugged.remove(block)
                    elif random_.randrange(4):
                        rig.plug(block)
                        plugged.add(block)
                    else:
                        continue
                    changes += 1
            for block in plugged:
                rig.unplug(block)
            return changes

        def assert_counts(self, rig: Rig, areas: List[int],
                          outcomes: List[Outcome]) -> None:
            """The counts that the vCPUs left are what they have counted."""
            passes = [outcome.passes for outcome in outcomes]
            for area in areas:
                data = rig.machine.read(area, AREA_SIZE)
                for offset in range(0, AREA_SIZE, WATCH_STRIDE):
                    for cpu, count in enumerate(passes):
                        self.assertEqual(
                            number(data, offset + cpu * WATCH_OWN), count)
                    self.assertEqual(number(data, offset + WATCH_SHARED),
                                     sum(passes))

        def watch(self, multiple: str) -> None:
            """All of it."""
            rig = self.rig(multiple)
            for block in self.ends(self.WATCHED):
                rig.plug(block)
            areas = [rig.memory.start + block
                     for block in self.ends(self.WATCHED)]
            rig.machine.wake()
            rig.machine.watch(areas, WATCH_STRIDE)
            changes = self.change(rig)
            outcomes = rig.machine.stop_watching()

            strays = rig.strays()
            print(f'# {self.accel}: multiple-memslots={multiple}: {changes} '
                  f'changes, meanwhile '
                  f'{sum(outcome.accesses for outcome in outcomes)} words '
                  f'counted in, {sum(o.errors for o in outcomes)} of them '
                  f'wrong, {strays} accesses to nowhere', flush=True)
            for outcome in outcomes:
                self.assertEqual(
                    outcome.errors, 0,
                    f'at {outcome.bad_address:#x}: {outcome.bad_found:#x} '
                    f'and not {outcome.bad_expected:#x}')
            self.assertEqual(strays, 0)
            self.assert_counts(rig, areas, outcomes)

            # Accesses to nowhere would have been seen.
            count = GIB // BLOCK
            rig.machine.run(Command.READ, rig.memory.start + GIB, GIB, BLOCK)
            self.assertEqual(rig.strays(), count if multiple == 'on' else 0)

        def test_multiple(self) -> None:
            """With many memslots."""
            self.watch('on')

        def test_single(self) -> None:
            """With one that stays: the control."""
            self.watch('off')


class Flood:
    """Hidden from the loader of tests."""

    class Tests(Base.Accelerated):
        """Add requests as quickly as they are served."""

        def flood(self, multiple: str) -> None:
            """The monitor answers, and all requests are served in the end."""
            rig = self.rig(multiple)
            machine, queue = rig.machine, rig.memory.queues[0]
            rig.memory.alternate(0, BLOCK)
            machine.lead(queue.available + 2, queue.used + 2, QUEUE_SIZE // 2,
                         queue.doorbell)
            served: Set[int] = set()
            answers = 0
            while answers < 100 or len(served) <= 10:
                self.assertEqual(machine.cmd('query-status')['status'],
                                 'running')
                answers += 1
                served.add(machine.number(queue.used + 2, 'w'))
                # The vCPU may have to wait for a CPU of the host.
                self.assertLess(answers, 100000)
            machine.stop_leading()
            wait_until('all requests are served', lambda: machine.number(
                queue.used + 2, 'w') == machine.number(
                queue.available + 2, 'w') or None)

        def test_multiple(self) -> None:
            """With many memslots."""
            self.flood('on')

        def test_single(self) -> None:
            """With one."""
            self.flood('off')


def number(data: bytes, offset: int) -> int:
    """A 32-bit number among bytes."""
    return int.from_bytes(data[offset:offset + 4], 'little')


class TestHostileKVM(Hostile.Tests):
    """With virtualisation."""
    accel = 'kvm'


class TestHostileTCG(Hostile.Tests):
    """With emulation, one thread a vCPU."""
    accel = 'tcg,thread=multi'


class TestNeighboursKVM(Neighbours.Tests):
    """With virtualisation."""
    accel = 'kvm'


class TestNeighboursTCG(Neighbours.Tests):
    """With emulation, one thread a vCPU."""
    accel = 'tcg,thread=multi'


class TestFloodKVM(Flood.Tests):
    """With virtualisation."""
    accel = 'kvm'


class TestFloodTCG(Flood.Tests):
    """With emulation, one thread a vCPU."""
    accel = 'tcg,thread=multi'


if __name__ == '__main__':
    unittest.main()
