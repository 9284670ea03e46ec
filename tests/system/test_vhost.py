"""
Real vhost-user backends beside a virtio-mem device with many memslots: the
storage daemon's block device, which can hold 509 memory regions, that of an
older storage daemon, which can hold 32, and DPDK's network device, which can
hold 8.

The first one is shown memslots, as KVM is. The others are shown all of the
device as one region, from the moment that both are there until one of them
goes, whatever the guest plugs.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import itertools
import random
import re
import subprocess
import tempfile
import unittest
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple, Type

from qemu.machine.machine import VMLaunchFailure
from qemu.qmp import ExecuteError

import environment
from drivers import Answer, VirtioMem
from host_memory import shared_memory
from vhost_backends import (DEVICE, DEVICE_SLOT, MEMORY, Attachment, Backend,
                            Block, Mapping, Net, OldBlock, OldStorageDaemon,
                            StorageDaemon, Testpmd, TracedMachine, joined,
                            peer_qemu, wait_deleted)
from vm import (BOOT_STALL, GIB, MIB, VirtualMachine, plugged_memslots,
                wait_until)

SIZE = 48 * GIB
# What is plugged and unplugged at once
PART = 512 * MIB
SEED = 4

# Messages that tell a backend of memory: SET_MEM_TABLE, ADD_MEM_REG and
# REM_MEM_REG; and of a log of what it writes to: SET_LOG_BASE
ADD_MEM_REG, REM_MEM_REG = 37, 38
MEMORY_MESSAGES = {5, ADD_MEM_REG, REM_MEM_REG}
SET_LOG_BASE = 6

OURS = 'multiple-memslots=on'
THEIRS = 'dynamic-memslots=on'


def assert_seen(test: unittest.TestCase, backend: Backend,
                seen: List[Mapping], size: int,
                memslots: List[Tuple[int, int]]) -> None:
    """
    A backend sees a device as a whole, or its memslots that are mapped,
    offsets and sizes.
    """
    test.assertEqual(
        joined((mapping.offset, mapping.size) for mapping in seen),
        [(0, size)] if backend.is_whole() else joined(memslots))


class Rig:
    """A machine without a guest and what the tests know about it."""

    # From launch() on
    memory: VirtioMem
    inode: int

    def __init__(self, test: unittest.TestCase, binary: str, multiple: str,
                 size: int = SIZE, part: int = PART) -> None:
        self.test = test
        self.size = size
        self.part = part
        self.random = random.Random(SEED)
        self.machine = TracedMachine(binary)
        test.addCleanup(self.machine.shutdown)
        self._multiple = multiple
        # Offsets of the parts that are plugged
        self.plugged: Set[int] = set()

    def add_device(self) -> None:
        """Add the virtio-mem device."""
        self.machine.add_device(self._multiple, self.size)

    def launch(self) -> None:
        """Start the machine and the driver of the virtio-mem device."""
        self.machine.launch()
        self.memory = VirtioMem(self.machine, DEVICE_SLOT)
        self.inode = self.machine.inode(self.size)

    def restart(self) -> None:
        """Start the driver again after a reset, which unplugged all."""
        self.memory = VirtioMem(self.machine, DEVICE_SLOT)
        self.plugged.clear()

    def plug_device(self) -> None:
        """Plug the virtio-mem device while the machine runs."""
        name, _, value = self._multiple.partition('=')
        self.machine.cmd('device_add', {
            'driver': 'virtio-mem-pci', 'id': DEVICE, 'memdev': MEMORY,
            'addr': str(DEVICE_SLOT), 'requested-size': self.size,
            'unplugged-inaccessible': 'on', name: value == 'on'})
        self.memory = VirtioMem(self.machine, DEVICE_SLOT)

    def unplug_device(self) -> None:
        """Unplug it; nothing of it is plugged."""
        self.machine.request(DEVICE, 0)
        self.machine.cmd('device_del', id=DEVICE)
        self.machine.eject(DEVICE_SLOT)
        wait_deleted(self.machine, DEVICE)

    def adopt(self, other: 'Rig') -> None:
        """Go on with a machine that was migrated here."""
        self.machine.adopt(other.machine)
        self.memory = other.memory
        self.memory.machine = self.machine
        self.inode = self.machine.inode(self.size)
        self.plugged = other.plugged

    def parts(self) -> List[int]:
        """Offsets of all parts, in some order."""
        parts = list(range(0, self.size, self.part))
        self.random.shuffle(parts)
        return parts

    def plug(self, offset: int) -> None:
        """Plug a part."""
        self.test.assertEqual(self.memory.plug(offset, self.part),
                              Answer.ACK)
        self.plugged.add(offset)

    def plug_soon(self, offset: int) -> None:
        """
        Plug a part when a backend has gone. Until QEMU has noticed that, what
        it cannot tell the backend is refused.
        """
        wait_until('QEMU does without the backend', lambda: self.memory.plug(
            offset, self.part) == Answer.ACK or None, pause=0.005)
        self.plugged.add(offset)

    def unplug(self, offset: int) -> None:
        """Unplug a part."""
        self.test.assertEqual(self.memory.unplug(offset, self.part),
                              Answer.ACK)
        self.plugged.remove(offset)

    def expected_memslots(self) -> List[Tuple[int, int]]:
        """The memslots of 1 GiB that something is plugged in."""
        touched = {offset // GIB for offset in self.plugged}
        return [(self.memory.start + index * GIB, GIB)
                for index in sorted(touched)]

    def assert_memslots(self) -> None:
        """KVM has what it is meant to have."""
        self.test.assertEqual(self.machine.memslots(),
                              self.expected_memslots())

    def address(self, size: int) -> int:
        """Anywhere in the memory that is plugged."""
        part = self.random.choice(sorted(self.plugged))
        return (self.memory.start + part
                + self.random.randrange((self.part - size) // 4096) * 4096)

    def exercise(self, front: Attachment) -> None:
        """A backend reads and writes memory of the device."""
        size = front.largest
        data = self.random.randbytes(size)
        address = self.address(size)
        front.deliver(address, data)
        self.test.assertEqual(self.machine.read(address, size), data)
        data = self.random.randbytes(size)
        address = self.address(size)
        self.machine.write(address, data)
        self.test.assertEqual(front.collect(address, size), data)

    def holder(self, front: Attachment) -> Dict[str, Any]:
        """What query-memslots tells about a backend."""
        for holder in self.machine.cmd('query-memslots')['holders']:
            if holder.get('id') == front.chardev:
                return dict(holder)
        raise KeyError(front.chardev)

    def assert_view(self, front: Attachment) -> List[Mapping]:
        """
        The backend has all of the device as one region, or its memslots.
        QEMU counts the regions that it has mapped.
        """
        whole, memslots = front.backend.is_whole(), self.expected_memslots()
        seen = front.backend.mappings(self.inode)
        assert_seen(self.test, front.backend, seen, self.size,
                    [(address - self.memory.start, size)
                     for address, size in memslots])
        boot = front.backend.mappings(shared_memory(
            self.machine.get_pid() or 0, self.machine.RAM))
        holder = self.holder(front)
        self.test.assertEqual(
            {key: holder[key] for key in ('limit', 'whole-devices', 'used',
                                          'reserved')},
            {'limit': front.backend.LIMIT, 'whole-devices': whole,
             'used': len(boot) + (1 if whole else len(memslots)),
             'reserved': 0 if whole else self.size // GIB - len(memslots)})
        return seen


class Journey:
    """A migration with the same backends on both sides."""
    # So slow that it does not end while memory is written to
    BANDWIDTH = MIB // 2

    def __init__(self, source: Rig, target: Rig,
                 *kinds: Type[Attachment]) -> None:
        """Start both machines; the driver of the source has plugged memory."""
        self.test = source.test
        self.source, self.target = source, target
        self.old = [kind(self.test, source.machine) for kind in kinds]
        self.new = [front.twin(self.test, target.machine)
                    for front in self.old]
        for rig, fronts in ((source, self.old), (target, self.new)):
            for front in fronts:
                front.add()
            rig.add_device()
        target.machine.add_incoming()
        target.machine.launch()
        source.launch()
        for front in self.old:
            front.start()
        self._turns = itertools.cycle(self.old)
        # Not more, as all of it gets read and by that allocated.
        for slot in (0, 20, 40, SIZE // GIB - 1):
            source.plug(slot * GIB)
        # What the backends have written where
        self.contents: Dict[int, bytes] = {}
        for _ in range(64 * len(kinds)):
            self.deliver(source.address(self.size))

    @property
    def size(self) -> int:
        """How much is written at once."""
        return min(4096, *(front.largest for front in self.old))

    def deliver(self, address: int) -> None:
        """Have one of the source's backends write to an address."""
        self.contents[address] = self.source.random.randbytes(self.size)
        next(self._turns).deliver(address, self.contents[address])

    def start(self, *capabilities: str) -> None:
        """Start the migration."""
        for machine in (self.source.machine, self.target.machine):
            machine.cmd('migrate-set-capabilities', capabilities=[
                {'capability': name, 'state': True} for name in capabilities])
        # Net.adopt() expects one.
        self.target.machine.cmd('migrate-set-parameters',
                                announce_rounds=1)
        self.source.machine.cmd(
            'migrate-set-parameters', max_bandwidth=self.BANDWIDTH,
            max_postcopy_bandwidth=self.BANDWIDTH // 8, downtime_limit=1)
        self.source.machine.cmd(
            'migrate', uri=f'unix:{self.target.machine.directory}/migration')

    def status(self) -> Dict[str, Any]:
        """What the source tells about the migration."""
        info: Dict[str, Any] = self.source.machine.cmd('query-migrate')
        self.test.assertNotEqual(info['status'], 'failed', info)
        return info

    def wait_status(self, status: str) -> None:
        """Wait until the source is that far."""
        wait_until(f'the migration is {status}',
                   lambda: self.status()['status'] == status or None)

    def arrive(self) -> None:
        """Have the drivers go on at the target."""
        wait_until('the target runs', lambda: self.target.machine.cmd(
            'query-status')['status'] == 'running' or None)
        self.target.adopt(self.source)
        for old, new in zip(self.old, self.new):
            new.adopt(old)

    def go_precopy(self) -> None:
        """The backends write while their writes are logged."""
        source, target = self.source, self.target
        self.test.assertEqual(source.machine.messages()[SET_LOG_BASE], 0)
        self.start()
        # All of the memory was sent, and what was written since, too.
        while self.status().get('ram', {}).get('dirty-sync-count', 0) < 3:
            self.deliver(source.random.choice(list(self.contents)))
        addresses = list(self.contents)
        source.random.shuffle(addresses)
        for address in addresses:
            self.deliver(address)
        self.test.assertEqual(self.status()['status'], 'active')
        self.test.assertGreater(source.machine.messages()[SET_LOG_BASE], 0)
        source.machine.cmd('migrate-set-parameters', max_bandwidth=1 << 40,
                           downtime_limit=300)
        self.wait_status('completed')
        self.arrive()
        for address, data in self.contents.items():
            self.test.assertEqual(target.machine.read(address, len(data)),
                                  data, hex(address))
        self.go_on()

    def go_on(self) -> None:
        """All works after the migration as it did before."""
        self.target.assert_memslots()
        for front in self.new:
            self.target.assert_view(front)
            self.target.exercise(front)
        self.target.plug(10 * GIB)
        self.target.assert_memslots()
        for front in self.new:
            self.target.exercise(front)


class NoGuest:
    """What is tested with each backend."""

    class Base(unittest.TestCase):
        """No guest: the tests drive the devices."""
        kind: Type[Attachment]

        def rig(self, size: int = SIZE, part: int = PART) -> Rig:
            """A machine with the QEMU to be tested."""
            return Rig(self, environment.qemu_system(), OURS, size, part)

        def sent(self, size: int, backend_first: bool) -> 'Counter[int]':
            """
            Plug and unplug all of a device, with a backend from the start.
            Returns the messages that the backend was sent meanwhile.
            """
            rig = self.rig(size)
            front = self.kind(self, rig.machine)
            for add in ((front.add, rig.add_device) if backend_first
                        else (rig.add_device, front.add)):
                add()
            rig.launch()
            front.start()
            rig.assert_view(front)
            before = rig.machine.messages()

            views = []
            for part in rig.parts():
                rig.plug(part)
                rig.assert_memslots()
                views.append(rig.assert_view(front))
                rig.exercise(front)
            self.assertEqual(len(rig.machine.memslots()), size // GIB)
            for part in rig.parts():
                views.append(rig.assert_view(front))
                rig.exercise(front)
                rig.unplug(part)
                rig.assert_memslots()
            views.append(rig.assert_view(front))
            if front.backend.is_whole():
                # Never mapped anew, so never gone either
                self.assertEqual(len(set(tuple(view) for view in views)), 1)
            return rig.machine.messages() - before

        def test_cold(self) -> None:
            """The backend is there before anything is plugged."""
            for backend_first in (True, False):
                with self.subTest(backend_first=backend_first):
                    self.cold(backend_first)

        def cold(self, backend_first: bool) -> None:
            """It is told of memslots one by one, or else of nothing."""
            sent = self.sent(SIZE, backend_first)
            print(f'# messages sent with {SIZE // GIB} memslots: '
                  f'{dict(sent)}', flush=True)
            memslots = 0 if self.kind.kind.is_whole() else SIZE // GIB
            self.assertEqual(sent, Counter({ADD_MEM_REG: memslots,
                                            REM_MEM_REG: memslots}))

        def test_hot(self) -> None:
            """
            The backend comes when all is plugged, goes, and comes again.
            """
            rig = self.rig()
            rig.add_device()
            rig.launch()
            for part in rig.parts():
                rig.plug(part)
            rig.assert_memslots()
            self.assertEqual(len(rig.machine.memslots()), SIZE // GIB)
            calls = rig.machine.device_memslot_calls()

            front = self.kind(self, rig.machine)
            for _ in range(2):
                front.plug()
                front.start()
                print(f'# {len(rig.machine.memslots())} memslots, then a '
                      f'backend that can hold {front.backend.LIMIT}',
                      flush=True)
                rig.assert_view(front)
                rig.exercise(front)
                self.assertEqual(rig.machine.device_memslot_calls(), calls)
                for part in rig.parts()[:8]:
                    rig.unplug(part)
                    rig.assert_memslots()
                    rig.exercise(front)
                    rig.plug(part)
                rig.assert_view(front)
                calls = rig.machine.device_memslot_calls()
                front.unplug()
                rig.assert_memslots()
                self.assertEqual(rig.machine.device_memslot_calls(), calls)

        def test_device(self) -> None:
            """The device comes while the backend runs, goes, and is back."""
            rig = self.rig()
            front = self.kind(self, rig.machine)
            front.add()
            rig.machine.launch()
            front.start()
            rig.machine.cmd('object-add', qom_type='memory-backend-memfd',
                            id=MEMORY, size=rig.size, share=True,
                            reserve=False)
            rig.inode = rig.machine.inode(rig.size)
            before = rig.holder(front)
            for _ in range(2):
                rig.plug_device()
                rig.assert_view(front)
                for part in rig.parts()[:10]:
                    rig.plug(part)
                    rig.exercise(front)
                rig.assert_memslots()
                rig.assert_view(front)
                self.assertEqual(rig.memory.unplug_all(), Answer.ACK)
                rig.plugged.clear()
                rig.assert_view(front)
                rig.unplug_device()
                self.assertEqual(front.backend.mappings(rig.inode), [])
                self.assertEqual(rig.holder(front), before)

        def test_restart(self) -> None:
            """The backend dies, memory comes and goes, it is back."""
            rig = self.rig()
            front = self.kind(self, rig.machine)
            front.add()
            rig.add_device()
            rig.launch()
            front.start()
            parts = rig.parts()
            for part in parts[:10]:
                rig.plug(part)
            rig.exercise(front)

            for _ in range(2):
                front.backend.kill()
                for part in parts[10:20]:
                    rig.plug_soon(part)
                for part in parts[:10]:
                    rig.unplug(part)
                rig.assert_memslots()
                parts = parts[10:] + parts[:10]
                front.restart()
                wait_until('the backend is told of memory',
                           lambda: front.backend.mappings(rig.inode) or None)
                for part in parts[10:20]:
                    rig.exercise(front)
                    rig.plug(part)
                    rig.assert_memslots()
                rig.exercise(front)
                for part in parts[10:20]:
                    rig.unplug(part)
                rig.assert_view(front)

        def test_migration(self) -> None:
            """To a machine with another such backend."""
            Journey(self.rig(part=4 * MIB), self.rig(part=4 * MIB),
                    self.kind).go_precopy()


class TestBlock(NoGuest.Base):
    """The storage daemon's block device."""
    kind = Block


class TestOldBlock(NoGuest.Base):
    """An older storage daemon's block device."""
    kind = OldBlock


class TestNet(NoGuest.Base):
    """DPDK's network device."""
    kind = Net

    def test_limit(self) -> None:
        """More memory devices than there can be regions are refused."""
        rig = self.rig()
        front = self.kind(self, rig.machine)
        front.add()
        rig.add_device()
        rig.launch()
        front.start()
        slots = itertools.count(8)
        for used in range(rig.holder(front)['used'] + 1, Testpmd.LIMIT + 1):
            rig.machine.plug_device(next(slots), GIB)
            holder = rig.holder(front)
            self.assertEqual((holder['used'], holder['reserved']), (used, 0))
        with self.assertRaises(ExecuteError) as refusal:
            rig.machine.plug_device(next(slots), GIB)
        print(f'# {refusal.exception}', flush=True)
        self.assertIn(f"vhost backend '{front.chardev}' can hold 8",
                      str(refusal.exception))
        for part in rig.parts()[:10]:
            rig.plug(part)
            rig.assert_memslots()
            rig.exercise(front)

    def test_postcopy(self) -> None:
        """The backend needs memory that has not arrived yet."""
        # Not with the storage daemon: its libvhost-user takes the end of a
        # table that is sent region by region for an error.
        journey = Journey(self.rig(part=4 * MIB), self.rig(part=4 * MIB),
                          self.kind)
        front, = journey.new
        journey.start('postcopy-ram')
        journey.wait_status('active')
        journey.source.machine.cmd('migrate-start-postcopy')
        journey.wait_status('postcopy-active')
        journey.arrive()
        for address, data in journey.contents.items():
            self.assertEqual(front.collect(address, len(data)), data,
                             hex(address))
        self.assertEqual(journey.status()['status'], 'postcopy-active')
        faults = journey.target.machine.faults()
        print(f'# {faults} faults of the backend', flush=True)
        self.assertGreater(faults, 0)
        journey.source.machine.cmd('migrate-set-parameters',
                                   max_postcopy_bandwidth=0)
        journey.wait_status('completed')
        journey.go_on()


class TestMix(unittest.TestCase):
    """All devices at once."""

    def rig(self, part: int = PART) -> Rig:
        """A machine with the QEMU to be tested."""
        return Rig(self, environment.qemu_system(), OURS, part=part)

    def test_come_and_go(self) -> None:
        """They come and go; the others do not notice."""
        rig = self.rig()
        block, old, net = (kind(self, rig.machine)
                           for kind in (Block, OldBlock, Net))
        block.add()
        old.add()
        rig.add_device()
        rig.launch()
        block.start()
        old.start()
        parts = rig.parts()
        for part in parts[:20]:
            rig.plug(part)
        net.plug()
        net.start()

        def change(*fronts: Attachment) -> None:
            before = [rig.assert_view(front) for front in fronts]
            for part in parts[:10]:
                rig.unplug(part)
            for part in parts[20:30]:
                rig.plug(part)
            rig.assert_memslots()
            for front in fronts:
                rig.exercise(front)
            for front, view in zip(fronts, before):
                after = rig.assert_view(front)
                if front.backend.is_whole():
                    self.assertEqual(after, view)
            parts[:] = parts[10:] + parts[:10]

        change(block, old, net)
        view, messages = rig.assert_view(net), rig.machine.messages()
        block.unplug()
        self.assertEqual(rig.assert_view(net), view)
        sent = rig.machine.messages() - messages
        self.assertEqual(set(sent) & MEMORY_MESSAGES, set())
        change(old, net)
        old.unplug()
        change(net)
        block.plug()
        block.start()
        change(block, net)
        net.unplug()
        change(block)

    def test_migration(self) -> None:
        """Logs of what is written are right, whatever who writes sees."""
        for kinds in ((Block, OldBlock, Net), (Net, OldBlock, Block)):
            with self.subTest([kind.__name__ for kind in kinds]):
                Journey(self.rig(4 * MIB), self.rig(4 * MIB),
                        *kinds).go_precopy()
                self.doCleanups()


class TestPeer(unittest.TestCase):
    """
    What stock QEMU 10.0 with dynamic-memslots=on does where the backend can
    hold few memory regions.
    """

    def test_cold(self) -> None:
        """With the backend there first, one memslot is all there is."""
        rig = Rig(self, peer_qemu(), THEIRS)
        front = OldBlock(self, rig.machine)
        front.add()
        rig.add_device()
        rig.launch()
        front.start()
        before = rig.machine.messages()
        for part in rig.parts():
            rig.plug(part)
        rig.exercise(front)
        self.assertEqual(rig.machine.memslots(), [(rig.memory.start, SIZE)])
        for part in rig.parts():
            rig.unplug(part)
        self.assertEqual(rig.machine.memslots(), [])
        print('# QEMU 10.0: 1 memslot, messages sent: '
              f'{dict(rig.machine.messages() - before)}', flush=True)

    def test_cold_after(self) -> None:
        """With the device there first, the backend is refused."""
        rig = Rig(self, peer_qemu(), THEIRS)
        front = OldBlock(self, rig.machine)
        rig.add_device()
        front.add()
        with self.assertRaises(VMLaunchFailure) as failure:
            rig.launch()
        self.assertIn('vhost backend', failure.exception.output or '')

    def test_hot(self) -> None:
        """With many memslots, the backend is refused."""
        rig = Rig(self, peer_qemu(), THEIRS)
        rig.add_device()
        rig.launch()
        for part in rig.parts():
            rig.plug(part)
        memslots = len(rig.machine.memslots())
        self.assertGreater(memslots, 1)
        front = OldBlock(self, rig.machine)
        with self.assertRaises(ExecuteError) as refusal:
            front.plug()
        print(f'# QEMU 10.0: {memslots} memslots, then a backend: '
              f'{refusal.exception}', flush=True)


class TestGuest(unittest.TestCase):
    """A Linux guest whose disk is the storage daemon's."""
    kind: Type[StorageDaemon] = StorageDaemon
    RAM = GIB
    SIZE = 4 * GIB
    # What the guest writes to the disk and reads again, all of the time
    DATA = 32 * MIB
    STOP = '/stop'

    def setUp(self) -> None:
        # Also where the guest goes
        # pylint: disable=consider-using-with
        directory = tempfile.TemporaryDirectory(prefix='virtio-mem-')
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.disk = self.directory / 'disk'
        self.disk.write_bytes(bytes(self.DATA))
        self.seeds = itertools.count(1000, 1000)

    def machine(self, name: str,
                limit: int = 0) -> Tuple[VirtualMachine, StorageDaemon]:
        """
        A machine with a virtio-mem device, not started, and its disk, which
        is as fast as it can, or does @limit requests per second.
        """
        backend = self.kind(self, self.directory, name, self.disk, limit)
        backend.start()
        vm = VirtualMachine(environment.qemu_system(), 'tcg', self.RAM,
                            maxmem=self.RAM + self.SIZE,
                            machine='pc,memory-backend=ram')
        self.addCleanup(vm.shutdown)
        vm.add_guest(environment.image())
        vm.add_args(
            '-object', f'memory-backend-memfd,id=ram,size={self.RAM},'
                       'share=on',
            '-object', f'memory-backend-memfd,id={DEVICE}-backend,'
                       f'size={self.SIZE},share=on,reserve=off',
            '-device', f'virtio-mem-pci,id={DEVICE},addr={DEVICE_SLOT},'
                       f'memdev={DEVICE}-backend,requested-size={2 * GIB},'
                       f'unplugged-inaccessible=on,{OURS}',
            *Block.arguments(backend))
        return vm, backend

    def boot(self, limit: int = 0) -> Tuple[VirtualMachine, StorageDaemon]:
        """A guest that has plugged memory and found its disk."""
        vm, backend = self.machine('first', limit)
        vm.launch()
        assert vm.guest is not None
        vm.guest.wait_ready(BOOT_STALL)
        vm.wait_plugged(DEVICE, 2 * GIB)
        self.wait_disk(vm)
        return vm, backend

    @staticmethod
    def wait_disk(vm: VirtualMachine) -> None:
        """Wait until the guest has its disk."""
        assert vm.guest is not None
        vm.guest.run('until [ -b /dev/vda ]; do sleep 0.1; done', timeout=60)

    def start_io(self, vm: VirtualMachine) -> int:
        """Have the guest write and read, and check; returns the seed."""
        assert vm.guest is not None
        seed = next(self.seeds)
        device = vm.memory_device(DEVICE)
        first = device['memaddr']
        vm.guest.run(f'rm -f {self.STOP}; direct /dev/vda {self.DATA} {seed} '
                     f'{first} {first + device["max-size"] - 1} {self.STOP} '
                     '>/result 2>&1 & io=$!')
        return seed

    def finish_io(self, vm: VirtualMachine, seed: int) -> int:
        """
        What was read must have been what was written, and so must be what is
        on the disk now. Returns how often all of it was written and read.
        """
        assert vm.guest is not None
        result = vm.guest.run(f'touch {self.STOP}; wait $io; status=$?; '
                              'cat /result; [ $status = 0 ] || '
                              '{ echo "exit status $status"; dmesg | tail; '
                              'false; }')
        match = re.fullmatch(r'(\d+) passes, (\d+) of (\d+) pages', result)
        assert match is not None, result
        passes, within, pages = (int(group) for group in match.groups())
        # The kernel prefers memory that can be unplugged for processes.
        self.assertGreater(within, 0.9 * pages)
        subprocess.run([str(self.pattern()), 'check', str(self.disk),
                        str(self.DATA), str(seed + passes - 1)], check=True)
        return passes

    def pattern(self) -> Path:
        """The guest's program, to look at the disk with."""
        program = self.directory / 'pattern'
        if not program.exists():
            source = Path(__file__).parent / 'guest' / 'pattern.c'
            subprocess.run(['gcc', '-O2', '-o', str(program), str(source)],
                           check=True)
        return program

    def assert_view(self, vm: VirtualMachine,
                    backend: StorageDaemon) -> List[Mapping]:
        """The guest's memslots are mapped; the backend sees them, or all."""
        slots = vm.plan(DEVICE)
        self.assertEqual(len(slots), 4)

        def wanted() -> List[int]:
            return plugged_memslots(vm, DEVICE, slots)
        wait_until(f'memslots {wanted()} are mapped (and not '
                   f'{vm.mapped_memslots(DEVICE)})',
                   lambda: vm.mapped_memslots(DEVICE) == wanted() or None,
                   timeout=10)
        seen = backend.mappings(shared_memory(vm.get_pid() or 0, self.SIZE))
        assert_seen(self, backend, seen, self.SIZE,
                    [(slots[index].offset, slots[index].size)
                     for index in wanted()])
        return seen

    def test_resize(self) -> None:
        """
        I/O while memory grows and shrinks; then without the backend, with it
        again, and after it died.
        """
        vm, backend = self.boot()
        guest = vm.guest
        assert guest is not None
        view = self.assert_view(vm, backend)
        seed = self.start_io(vm)
        for requested in (4 * GIB, 3 * GIB // 2, 3 * GIB, GIB, 4 * GIB):
            vm.request(DEVICE, requested)
            vm.wait_plugged(DEVICE, requested)
            after = self.assert_view(vm, backend)
            if backend.is_whole():
                self.assertEqual(after, view)
        passes = self.finish_io(vm, seed)
        print(f'# {passes} times written and read', flush=True)
        self.assertGreater(passes, 1)

        with self.subTest('restart'):
            backend.kill()
            vm.request(DEVICE, 2 * GIB)
            vm.wait_plugged(DEVICE, 2 * GIB)
            backend.start()
            wait_until('the backend is told of memory',
                       lambda: backend.mappings(shared_memory(
                           vm.get_pid() or 0, self.SIZE)) or None)
            self.finish_io(vm, self.start_io(vm))
            self.assert_view(vm, backend)

        with self.subTest('unplug'):
            vm.cmd('device_del', id=Block.front)
            Block.disconnect(vm)
            guest.run('! [ -b /dev/vda ]')
            vm.request(DEVICE, 3 * GIB)
            vm.wait_plugged(DEVICE, 3 * GIB)
            Block.connect(vm, backend)
            self.wait_disk(vm)
            self.assert_view(vm, backend)
            self.finish_io(vm, self.start_io(vm))

    def test_migration(self) -> None:
        """I/O while the guest is migrated, some not done when it stops."""
        source, _ = self.boot(limit=100)
        target, backend = self.machine('second')
        target.add_incoming()
        target.launch()
        seed = self.start_io(source)
        source.migrate_to(target)
        source.shutdown()
        self.assert_view(target, backend)
        passes = self.finish_io(target, seed)
        print(f'# {passes} times written and read', flush=True)
        self.finish_io(target, self.start_io(target))


class TestOldGuest(TestGuest):
    """The same with an older one."""
    kind = OldStorageDaemon

    def test_migration(self) -> None:
        """
        The guest is migrated between its requests: QEMU 7.2's daemon loses
        those that are not done when it stops.
        """
        source, _ = self.boot()
        target, backend = self.machine('second')
        target.add_incoming()
        target.launch()
        self.finish_io(source, self.start_io(source))
        source.migrate_to(target)
        source.shutdown()
        self.assert_view(target, backend)
        self.finish_io(target, self.start_io(target))


if __name__ == '__main__':
    unittest.main()
