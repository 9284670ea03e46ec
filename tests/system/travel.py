"""
What travels when there is no guest: drivers, and a vCPU that writes. And the
machines that it travels between, which map a virtio-mem device in different
memslots.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import random
import re
import struct
import unittest
from dataclasses import dataclass
from pathlib import Path
from typing import (Any, Callable, Dict, List, Optional, Sequence, Set,
                    Tuple)

import environment
import writer
from drivers import Answer, State, VirtioMem
from vhost_backends import (DEVICE, DEVICE_SLOT, MEMORY, TracedMachine,
                            peer_qemu)
from vm import GIB, MIB, touched, usable_memslots
from writer import PAGE, wait_soon

# 12 memslots if there is nothing else
SIZE = 11 * GIB + 512 * MIB
BLOCK = 2 * MIB
MAXMEM = 16 * GIB
# How much the guest may read beyond what is requested
LEEWAY = 256 * MIB
SEED = 11

# How many pages the vCPU writes to
PLACES = 90


# The newest machine type that each QEMU has: which QEMU 7.2 is, and one that
# sends what is plugged ahead of memory.
OLD_MACHINE, NEW_MACHINE = 'pc-i440fx-7.2', 'pc-i440fx-10.0'


@dataclass(frozen=True, eq=False)
class Host:
    """A QEMU to migrate from and to."""
    name: str
    # What has it map several memslots, or not
    multiple: Dict[str, str]
    # How many memslots the device gets; more than one number if that
    # depends on what else there is
    memslots: Sequence[int] = (1,)
    maxmem: int = MAXMEM
    # How many memslots KVM says it has
    kvm: Optional[int] = None
    arguments: Sequence[str] = ()
    # What gives the program: None, the one to be tested
    stock: Optional[Callable[[], str]] = None

    @property
    def is_multiple(self) -> bool:
        """Whether it may map several memslots."""
        return 'on' in self.multiple.values()

    def why_not(self, setup: 'Setup') -> Optional[str]:
        """Why a machine cannot be there."""
        if self is PEER_ON and setup.inaccessible != 'on':
            return ('stock QEMU takes dynamic-memslots=on with '
                    'unplugged-inaccessible=on only')
        return None


# Debian's, of different age
STOCK = Host('7.2', {}, stock=environment.stock_qemu)
PEER = Host('10.0', {}, stock=peer_qemu)
PEER_ON = Host('10.0 on', {'dynamic-memslots': 'on'}, (12,), stock=peer_qemu)

OFF = Host('off', {'multiple-memslots': 'off'})
ON = Host('on', {'multiple-memslots': 'on'}, (12,))
# The device has a small share of all memory that could be added.
FEW = Host('few', ON.multiple, (4,), maxmem=640 * GIB)
# Others have taken most of what KVM has.
FULL = Host('full', ON.multiple, range(2, 12), kvm=512, arguments=(
    '-device', 'memslot-testdev,addr=0x40000000,count=496'))
# KVM has so little that nobody gets more than one.
ONE = Host('one', ON.multiple, kvm=508)


@dataclass(frozen=True)
class Setup:
    """What all machines of a journey have in common."""
    accel: str
    machine: str
    inaccessible: str
    # memory-backend-...
    backend: str
    # Where shared files are
    directory: Path

    @property
    def requested(self) -> int:
        """All; or less, so that what the leeway adds is in another memslot."""
        return SIZE if self.inaccessible == 'on' else 9 * GIB

    @property
    def usable(self) -> int:
        """The part of the region that is usable."""
        return min(SIZE, self.requested + LEEWAY)


class Station(TracedMachine):
    """A machine that a guest can stay at."""

    def __init__(self, host: Host, setup: Setup,
                 changes: Optional[Dict[str, str]] = None,
                 backend: Optional[str] = None) -> None:
        self.host, self.setup = host, setup
        super().__init__(host.stock() if host.stock
                         else environment.qemu_system(),
                         setup.accel, host.maxmem, setup.machine)
        if host.kvm is not None:
            library = (environment.build_dir() / 'qemu-build' / 'tests'
                       / 'qtest' / 'preload' / 'kvm-preload.so')
            self._wrapper = ['env', f'LD_PRELOAD={library}',
                             f'KVM_PRELOAD_NR_MEMSLOTS={host.kvm}']
        self.add_args(*host.arguments)
        device = {
            'id': DEVICE, 'memdev': MEMORY, 'addr': str(DEVICE_SLOT),
            'requested-size': str(setup.requested),
            'unplugged-inaccessible': setup.inaccessible, **host.multiple}
        if host.stock is None:
            self.add_args('-device', 'ram-discard-testdev,id=listener')
        device.update(changes or {})
        self.add_args('-object', backend or self._backend(MEMORY, SIZE),
                      '-device', ','.join(['virtio-mem-pci'] + [
                          f'{key}={value}' for key, value in device.items()]))

    @staticmethod
    def firmware() -> bytes:
        return writer.firmware()

    def _backend(self, name: str, size: int) -> str:
        what = {'ram': 'memory-backend-ram',
                'memfd': 'memory-backend-memfd,share=on',
                'file': 'memory-backend-file,share=on,'
                        f'mem-path={self.setup.directory}/{name}'}
        return f'{what[self.setup.backend]},id={name},size={size},reserve=off'

    def ram_backend(self) -> str:
        return re.sub(',id=.*', '', self._backend('ram', self.RAM))

    @property
    def uri(self) -> str:
        """Where others can migrate to this one."""
        return f'unix:{self.directory}/migration'

    def set_capabilities(self, *names: str) -> None:
        """Have these capabilities for migration, and no others."""
        known = self.cmd('query-migrate-capabilities')
        self.cmd('migrate-set-capabilities', capabilities=[
            {'capability': entry['capability'],
             'state': entry['capability'] in names} for entry in known])

    def migration(self) -> Dict[str, Any]:
        """What there is to know about a migration."""
        return dict(self.cmd('query-migrate'))

    def status(self) -> str:
        """How far a migration is."""
        return str(self.migration().get('status'))

    def wait_status(self, *wanted: str) -> str:
        """Wait until a migration is that far."""
        def arrived() -> Optional[str]:
            status = self.status()
            if status in ('failed', 'completed') and status not in wanted:
                raise AssertionError(str(self.migration()))
            return status if status in wanted else None
        return wait_soon(f'the migration is {wanted}', arrived)

    def wait_runs(self) -> None:
        """Wait until the vCPU is allowed to run."""
        wait_soon('it runs', lambda: self.cmd(
            'query-status')['status'] == 'running' or None)

    def wait_event(self, name: str) -> None:
        """Wait for an event."""
        def arrived() -> Optional[bool]:
            # Events are only received together with an answer.
            self.status()
            return any(event['event'] == name
                       for event in self.get_qmp_events()) or None
        wait_soon(f'the event {name}', arrived)

    def wait_end(self) -> Optional[int]:
        """Wait until QEMU ends by itself, return its exit status."""
        wait_soon('QEMU ends', lambda: not self.is_running() or None)
        return self.exitcode()

    def log(self) -> str:
        """What it has to say."""
        assert self._qemu_log_path is not None
        return Path(self._qemu_log_path).read_text('utf-8')

    def _file(self) -> Path:
        """The file that holds the device's memory."""
        directory = Path(f'/proc/{self.get_pid()}/fd')
        for descriptor in directory.iterdir():
            try:
                status = descriptor.stat()
            except FileNotFoundError:
                continue
            if status.st_size == SIZE:
                return descriptor
        raise KeyError('no file is the memory of the device')

    def _base(self, address: int) -> int:
        """Where QEMU has some guest-physical memory that is mapped."""
        answer = self.hmp(f'gpa2hva {address:#x}')
        match = re.search(r'is (0x[0-9a-f]+)', answer)
        assert match is not None, answer
        return int(match[1], 16)

    def contents(self, blocks: Set[int], start: int) -> Dict[int, bytes]:
        """
        What blocks hold, without the way through guest-physical memory, and
        without allocating any.
        """
        if self.setup.backend == 'ram':
            with open(f'/proc/{self.get_pid()}/mem', 'rb') as memory:
                found = {}
                for block in blocks:
                    memory.seek(self._base(start + block * BLOCK))
                    found[block] = memory.read(BLOCK)
                return found
        with self._file().open('rb') as memory:
            return {block: os.pread(memory.fileno(), BLOCK, block * BLOCK)
                    for block in blocks}

    def allocated(self, mapped: int, start: int) -> Set[int]:
        """
        The blocks of which the host has allocated memory; one block has to
        be known that is @mapped.
        """
        if self.setup.backend != 'ram':
            with self._file().open('rb') as memory:
                return data_blocks(memory.fileno())
        base = self._base(start + mapped * BLOCK) - mapped * BLOCK
        size = BLOCK // PAGE * 8
        with open(f'/proc/{self.get_pid()}/pagemap', 'rb') as pagemap:
            pagemap.seek(base // PAGE * 8)
            return {block for block in range(SIZE // BLOCK)
                    if any(pagemap.read(size))}


def data_blocks(descriptor: int) -> Set[int]:
    """The blocks of a file that are not holes."""
    found: Set[int] = set()
    offset = 0
    while True:
        try:
            first = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:
            return found
        offset = os.lseek(descriptor, first, os.SEEK_HOLE)
        found.update(range(first // BLOCK, -(-offset // BLOCK)))


def runs(blocks: Set[int]) -> List[Tuple[int, int]]:
    """First blocks and numbers of blocks of what is adjacent."""
    found: List[Tuple[int, int]] = []
    for block in sorted(blocks):
        if found and sum(found[-1]) == block:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found


class Traveller:
    """The drivers, the vCPU, and what is known of the guest's memory."""

    def __init__(self, test: unittest.TestCase, station: Station) -> None:
        self.test = test
        self.random = random.Random(SEED)
        self.station = station
        self.memory = VirtioMem(station, DEVICE_SLOT)
        self.writer = writer.Writer(station)
        self.blocks: Set[int] = set()
        # What was written, by offset; all else is zero.
        self.pages: Dict[int, bytes] = {}

    def move(self, station: Station) -> None:
        """Go on at another machine that the guest has come to."""
        station.adopt(self.station)
        self.station = station
        self.memory.machine = self.writer.machine = station

    def pattern(self) -> Set[int]:
        """
        Blocks to be plugged: at either end of memslots, across the
        boundaries between some, and with a hole that is larger than most.
        """
        per_gib = GIB // BLOCK
        blocks = {self.station.setup.usable // BLOCK - 1}
        nothing: Set[int] = set()
        hole = self.random.randrange(1, 5)
        for unit in range(self.station.setup.usable // GIB):
            if hole <= unit < hole + 5:
                continue
            first, last = unit * per_gib, (unit + 1) * per_gib - 1
            blocks |= self.random.choice((
                nothing, {first}, {last}, {last}, {last, last + 1},
                {last - 1, last, last + 1, last + 2},
                {first + self.random.randrange(per_gib)}))
        # Across the end of a memslot, whatever size it has
        return blocks | {6 * per_gib - 1, 6 * per_gib} - set(
            range(hole * per_gib, (hole + 5) * per_gib))

    def reshape(self) -> None:
        """Plug and unplug until another pattern is plugged."""
        self.resize(self.pattern())
        for block in self.blocks:
            for _ in range(4):
                self.write(block * BLOCK
                           + self.random.randrange(BLOCK // PAGE) * PAGE)
        for address in self.writer.numbers:
            if (address - self.memory.start) // BLOCK in self.blocks:
                self.station.write(address, bytes(8))
        blocks = sorted(self.blocks)
        places = {block * BLOCK + page for block in blocks
                  for page in (0, BLOCK - PAGE)}
        while len(places) < PLACES:
            places.add(self.random.choice(blocks) * BLOCK
                       + self.random.randrange(BLOCK // PAGE) * PAGE)
        for place in sorted(places):
            self.write(place)
        self.writer.set_places([self.memory.start + place
                                for place in sorted(places)])

    def grow(self) -> None:
        """Plug more, and write there; the vCPU sleeps after it."""
        self.writer.stop()
        more = self.pattern() - self.blocks
        self.resize(self.blocks | more)
        for block in more:
            self.write(block * BLOCK
                       + self.random.randrange(BLOCK // PAGE) * PAGE)

    def resize(self, wanted: Set[int]) -> None:
        """Unplug and plug blocks, by runs of them, in any order."""
        steps = [(self.memory.unplug, *run)
                 for run in runs(self.blocks - wanted)]
        steps += [(self.memory.plug, *run)
                  for run in runs(wanted - self.blocks)]
        self.random.shuffle(steps)
        for request, first, count in steps:
            self.test.assertEqual(
                request(first * BLOCK, count * BLOCK), Answer.ACK)
        self.blocks = set(wanted)
        self.pages = {offset: data for offset, data in self.pages.items()
                      if offset // BLOCK in wanted}

    def write(self, offset: int) -> None:
        """Write a page, but for where the vCPU writes."""
        data = self.random.randbytes(PAGE - 8)
        self.station.write(self.memory.start + offset + 8, data)
        self.pages[offset] = bytes(8) + data

    def rewrite(self, count: int) -> None:
        """Write some of the pages once more, and as many others."""
        known = self.random.sample(sorted(self.pages), count)
        for offset in known:
            self.write(offset)
            self.write(offset // BLOCK * BLOCK
                       + self.random.randrange(BLOCK // PAGE) * PAGE)

    def expected(self, block: int) -> bytes:
        """What a block has to hold."""
        data = bytearray(BLOCK)
        for page in range(0, BLOCK, PAGE):
            known = self.pages.get(block * BLOCK + page)
            if known is not None:
                data[page:page + PAGE] = known
        for address, number in self.writer.numbers.items():
            offset = address - self.memory.start - block * BLOCK
            if 0 <= offset < BLOCK:
                struct.pack_into('<I', data, offset, number & 0xffffffff)
        return bytes(data)

    def verify(self) -> None:
        """All is as it has to be, here and now; the vCPU sleeps after it."""
        self.writer.stop()
        self.verify_device()
        self.verify_memslots()
        self.verify_listener()
        contents = self.station.contents(self.blocks, self.memory.start)
        for block, data in contents.items():
            self.verify_block(block, data)
        # The way that drivers, devices and the vCPU see it
        for block in self.blocks:
            for page in (0, BLOCK - PAGE):
                self.test.assertEqual(
                    self.station.read(self.memory.start + block * BLOCK
                                      + page, PAGE),
                    contents[block][page:page + PAGE])
        allocated = self.station.allocated(min(self.blocks),
                                           self.memory.start)
        self.test.assertLessEqual(allocated, self.blocks,
                                  'unplugged memory is allocated')

    def verify_block(self, block: int, data: bytes) -> None:
        """A block holds what it has to."""
        wanted = self.expected(block)
        if data != wanted:
            wrong = [page for page in range(BLOCK // PAGE)
                     if data[page * PAGE:(page + 1) * PAGE]
                     != wanted[page * PAGE:(page + 1) * PAGE]]
            page = wrong[0] * PAGE
            self.test.fail(
                f'block {block} differs in pages {wrong}; the first starts '
                f'with {data[page:page + 16].hex()} and not '
                f'{wanted[page:page + 16].hex()}')

    def verify_device(self) -> None:
        """The device knows what is plugged."""
        setup = self.station.setup
        info = self.station.memory_device(DEVICE)
        self.test.assertEqual(
            (info['size'], info['requested-size']),
            (len(self.blocks) * BLOCK, setup.requested))
        self.test.assertEqual(self.memory.config(32, 'q'), setup.usable)
        unplugged = set(range(setup.usable // BLOCK)) - self.blocks
        for blocks, state in ((self.blocks, State.PLUGGED),
                              (unplugged, State.UNPLUGGED)):
            for first, count in runs(blocks):
                self.test.assertEqual(self.memory.state(
                    first * BLOCK, count * BLOCK), state)

    def verify_listener(self) -> None:
        """VFIO would know what is plugged, too."""
        if self.station.host.stock is None:
            told = [self.station.cmd(
                'qom-get', path='/machine/peripheral/listener', property=name)
                for name in ('populated', 'errors')]
            self.test.assertEqual(told, [len(self.blocks) * BLOCK, 0])

    def verify_memslots(self) -> None:
        """What is mapped is what the rule for the host says."""
        station, start = self.station, self.memory.start
        wanted = [(start, SIZE)]
        slots = 1
        if station.host.is_multiple:
            plan = station.plan(DEVICE)
            slots = len(plan)
            if station.setup.inaccessible == 'on':
                indices = touched(plan, [(block * BLOCK,
                                          block * BLOCK + BLOCK - 1)
                                         for block in self.blocks])
            else:
                indices = usable_memslots(plan, station.setup.usable)
            wanted = [(start + plan[index].offset, plan[index].size)
                      for index in indices]
        self.test.assertIn(slots, station.host.memslots)
        self.test.assertEqual(station.memslots(), wanted)

    def assert_busy(self) -> None:
        """Nothing can be plugged or unplugged now."""
        block = min(self.blocks)
        free = min(set(range(SIZE // BLOCK)) - self.blocks)
        self.test.assertEqual(
            [self.memory.unplug(block * BLOCK, BLOCK),
             self.memory.plug(free * BLOCK, BLOCK),
             self.memory.unplug_all()], [Answer.BUSY] * 3)
