"""
All ways of migrating, between QEMUs that map a virtio-mem device in
different memslots, with machine types that send what is plugged ahead of
memory and with those that send it after.

There is no guest. Drivers plug and unplug memory, and write to it, and so
does the vCPU, all of the time: what arrives has to be what was there when it
stopped. Each way is a row of a table, each pair of hosts that a machine
migrates between is a column, and each row is the journey of one machine.

Some tables leave out what others show; all is done if MIGRATION_MODES_ALL is
set in the environment.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import signal
import subprocess
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Type

from qemu.qmp import ExecuteError

import environment
import needs
from stream import Stream
from travel import (BLOCK, FEW, FULL, NEW_MACHINE, OFF, OLD_MACHINE, ON, ONE,
                    PEER, PEER_ON, SIZE, STOCK, Host, Setup, Station,
                    Traveller)
from vhost_backends import DEVICE, MEMORY, is_listening
from vm import GIB, MIB
from writer import PAGE, wait_soon

# In 100 ms, that is how QEMU measures it, no more can be sent than about half
# of what the vCPU has written: a migration does not end while it writes.
SLOW = 2 * MIB
FAST = 1 << 40

KVM_JOURNEY = (PEER, ON, ON, OFF, ON, FEW, FULL, ONE, ON, PEER_ON, ON, PEER)
OLD_JOURNEY = (STOCK, ON, ON, OFF, ON, PEER, ON, STOCK)
# Stock QEMU 10.0 may abort with TCG while it migrates a device that is larger
# than the memory at address 0.
TCG_JOURNEY = (ON, ON, OFF, ON, FEW, ON, PEER)


class Leg:
    """A migration from one host to another."""

    def __init__(self, journey: 'Journey', host: Host) -> None:
        self.journey = journey
        self.test = journey.test
        self.traveller = journey.traveller
        self.source = journey.traveller.station
        self.host = host
        self.directory = self.source.directory

    def set_off(self) -> None:
        """Have the vCPU write."""
        self.traveller.writer.start()
        self.traveller.rewrite(8)

    def launch(self, capabilities: Sequence[str] = (),
               incoming: bool = True, **changes: Any) -> Station:
        """A machine to go to."""
        target = Station(self.host, self.source.setup, **changes)
        self.test.addCleanup(target.shutdown)
        self.journey.way.prepare(target)
        if incoming:
            target.add_args('-incoming', 'defer')
        target.launch()
        target.set_capabilities(*capabilities)
        return target

    def arrive(self, target: Station) -> None:
        """The guest is at the target now."""
        target.wait_runs()
        self.traveller.move(target)
        self.source.shutdown()


def is_early(setup: Setup) -> bool:
    """Whether it is told what is plugged before memory comes."""
    return setup.machine != OLD_MACHINE


class Way:
    """A way to migrate. This one: all memory is sent before the vCPU goes."""
    name = 'precopy'
    backend = 'memfd'
    capabilities: Sequence[str] = ()
    parameters: Dict[str, Any] = {}
    # Why some hosts cannot be gone to in this way
    reasons: Dict[Host, str] = {}
    # What comes of it
    outcome = 'ok'
    # Where the source waits, and how else it might end up at once
    pauses: Sequence[str] = ('pause-before-switchover',)
    early: Sequence[str] = ()

    def why_not(self, _setup: Setup) -> Optional[str]:
        """Why it cannot be gone at all."""
        return None

    def prepare(self, station: Station) -> None:
        """Add what each machine has to have."""

    def start(self, leg: Leg, uri: str, target: Optional[Station] = None,
              bandwidth: int = SLOW) -> None:
        """
        Start, slowly. The source waits when there is no more to be sent, so
        that it is known what has been written until then.
        """
        leg.source.set_capabilities(*self.capabilities, *self.pauses)
        leg.source.cmd('migrate-set-parameters', **self.parameters,
                       max_bandwidth=bandwidth, downtime_limit=1)
        if target is not None:
            target.cmd('migrate-set-parameters', **self.parameters)
            target.cmd('migrate-incoming', uri=uri)
        leg.source.cmd('migrate', uri=uri)
        leg.source.wait_status('active', 'pre-switchover', *self.early)

    @staticmethod
    def dirty(leg: Leg, syncs: int) -> None:
        """Write until the dirty log was asked some times."""
        def is_dirty() -> Optional[bool]:
            info = leg.source.migration()
            leg.test.assertIn(info['status'], ('active', 'pre-switchover'),
                              info)
            leg.traveller.rewrite(1)
            return (info['ram']['dirty-sync-count'] >= syncs
                    or info['status'] == 'pre-switchover' or None)
        wait_soon('the dirty log was asked', is_dirty)

    @staticmethod
    def finish(leg: Leg, *wanted: str) -> Dict[str, Any]:
        """As fast as it goes now; returns what the source tells at last."""
        leg.source.cmd('migrate-set-parameters', max_bandwidth=FAST,
                       downtime_limit=300)
        status = leg.source.wait_status('pre-switchover', *wanted)
        if status == 'pre-switchover':
            # Still tracked, so still sent
            leg.traveller.rewrite(1)
            try:
                leg.source.cmd('migrate-continue',
                               state='pre-switchover')
            except ExecuteError:
                leg.test.assertIn('failed', wanted)
        leg.source.wait_status(*wanted)
        return leg.source.migration()

    def check(self, leg: Leg, info: Dict[str, Any]) -> None:
        """
        Pages of unplugged memory have not been sent, not even as zeroes.
        """
        ram = info['ram']
        sent = ram['duplicate'] + ram['normal']
        pages = (len(leg.traveller.blocks) * BLOCK + 2 * leg.source.RAM
                 ) // PAGE
        leg.test.assertLess(sent, pages * 2 + ram['dirty-sync-count'] * 4096)

    def travel(self, leg: Leg) -> None:
        """Go."""
        target = leg.launch(self.capabilities)
        self.start(leg, target.uri, target)
        leg.traveller.assert_busy()
        self.dirty(leg, 3)
        self.check(leg, self.finish(leg, 'completed'))
        leg.arrive(target)


PRECOPY = Way()


class Multifd(Way):
    """Through several connections."""
    name = 'multifd'
    capabilities = ('multifd',)
    parameters = {'multifd-channels': 3}

    def check(self, leg: Leg, info: Dict[str, Any]) -> None:
        super().check(leg, info)
        leg.test.assertGreater(info['ram']['multifd-bytes'], 0)


class Xbzrle(Way):
    """Sending what has changed."""
    name = 'xbzrle'
    capabilities = ('xbzrle',)
    parameters = {'xbzrle-cache-size': 8 * MIB}

    def check(self, leg: Leg, info: Dict[str, Any]) -> None:
        super().check(leg, info)
        leg.test.assertGreater(info['xbzrle-cache']['pages'], 0)


class AutoConverge(Way):
    """The vCPU is slowed down."""
    name = 'auto-converge'
    capabilities = ('auto-converge',)
    parameters = {'throttle-trigger-threshold': 1}

    def travel(self, leg: Leg) -> None:
        target = leg.launch(self.capabilities)
        self.start(leg, target.uri, target, bandwidth=SLOW // 2)

        def throttled() -> Optional[bool]:
            info = leg.source.migration()
            leg.test.assertEqual(info['status'], 'active', info)
            return info.get('cpu-throttle-percentage', 0) > 0 or None
        wait_soon('the vCPU is throttled', throttled)
        self.check(leg, self.finish(leg, 'completed'))
        leg.arrive(target)


class Postcopy(Way):
    """The vCPU goes before its memory."""
    name = 'postcopy'
    capabilities = ('postcopy-ram',)
    pauses = ()

    def switch(self, leg: Leg) -> Station:
        """Go, and have the vCPU run where memory is missing."""
        target = leg.launch(self.capabilities)
        leg.source.cmd('migrate-set-parameters',
                       max_postcopy_bandwidth=MIB // 2)
        self.start(leg, target.uri, target, bandwidth=MIB)
        leg.traveller.rewrite(8)
        leg.source.cmd('migrate-start-postcopy')
        leg.source.wait_status('postcopy-active')
        target.wait_runs()
        leg.traveller.move(target)
        return target

    def interrupt(self, leg: Leg) -> None:
        """What happens while memory is missing."""

    def check(self, leg: Leg, info: Dict[str, Any]) -> None:
        super().check(leg, info)
        leg.test.assertGreater(info['ram']['postcopy-requests'], 0)

    def travel(self, leg: Leg) -> None:
        target = self.switch(leg)
        leg.traveller.assert_busy()
        leg.traveller.rewrite(2)
        self.interrupt(leg)
        leg.traveller.writer.wait_rounds(2)
        leg.traveller.rewrite(8)
        leg.source.cmd('migrate-set-parameters',
                       max_postcopy_bandwidth=0)
        for station in (leg.source, target):
            station.wait_status('completed')
        self.check(leg, leg.source.migration())
        leg.source.shutdown()


class Recover(Postcopy):
    """The connection breaks meanwhile, and there is another one."""
    name = 'postcopy-recover'

    def interrupt(self, leg: Leg) -> None:
        target = leg.traveller.station
        leg.source.cmd('migrate-pause')
        for station in (leg.source, target):
            station.wait_status('postcopy-paused')
        uri = f'unix:{target.directory}/recovery'
        target.cmd('migrate-recover', uri=uri)
        leg.source.cmd('migrate', uri=uri, resume=True)
        leg.source.wait_status('postcopy-active')


class File(Way):
    """To a file, and back."""
    name = 'file'

    def travel(self, leg: Leg) -> None:
        path = leg.directory / 'stream'
        self.start(leg, f'exec:cat >{path}')
        leg.traveller.assert_busy()
        self.dirty(leg, 3)
        self.finish(leg, 'completed')
        self.read(leg, path)
        self.load(leg, path)

    @staticmethod
    def read(leg: Leg, path: Path) -> None:
        """The stream holds what is plugged, and no trace of memslots."""
        stream = Stream(path)
        pages = {block * BLOCK + page for block in leg.traveller.blocks
                 for page in range(0, BLOCK, PAGE)}
        name, = (name for name in stream.pages if name.endswith(MEMORY))
        leg.test.assertEqual(stream.pages[name], pages)
        # Other devices may be described in another way by another version.
        known = leg.journey.descriptions
        device = [entry for entry in stream.description['devices']
                  if 'virtio-mem' in entry['name']]
        leg.test.assertEqual(len(device), 1 + is_early(leg.source.setup))
        for of, description in ((leg.source.host.stock, stream.description),
                                (DEVICE, device)):
            leg.test.assertEqual(description,
                                 known.setdefault(of, description))

    @staticmethod
    def load(leg: Leg, path: Path) -> None:
        """Come back from a file."""
        target = leg.launch()
        target.cmd('migrate-incoming', uri=f'exec:cat {path}')
        leg.arrive(target)


class MappedRam(File):
    """To a file in which each page has its place."""
    name = 'mapped-ram'
    capabilities = ('mapped-ram',)

    def travel(self, leg: Leg) -> None:
        path = leg.directory / 'stream'
        # It was used before: where no bitmap is written, there are no bits.
        path.write_bytes(b'\xff' * 64 * MIB)
        self.start(leg, f'file:{path}')
        leg.traveller.assert_busy()
        self.dirty(leg, 3)
        self.finish(leg, 'completed')
        # There are holes where nothing is plugged.
        leg.test.assertLess(
            path.stat().st_blocks * 512,
            len(leg.traveller.blocks) * BLOCK + leg.source.RAM + 4 * MIB)
        target = leg.launch(self.capabilities)
        target.cmd('migrate-set-parameters', **self.parameters)
        target.cmd('migrate-incoming', uri=f'file:{path}')
        leg.arrive(target)


class MappedRamMultifd(MappedRam):
    """The same by several threads."""
    name = 'mapped-ram, multifd'
    capabilities = ('mapped-ram', 'multifd')
    parameters = {'multifd-channels': 3}


class Background(File):
    """A snapshot is taken while the vCPU goes on."""
    name = 'background-snapshot'
    backend = 'ram'
    capabilities = ('background-snapshot',)
    pauses = ()

    def travel(self, leg: Leg) -> None:
        path = leg.directory / 'stream'
        traveller = leg.traveller
        # It is not limited in what it sends; so what reads has to be slow.
        hurry = leg.directory / 'hurry'
        leg.source.get_qmp_events()
        self.start(leg, f'exec:{{ until [ -e {hurry} ]; do dd bs=8k count=1 '
                        f'status=none; sleep 0.02; done; cat; }} >{path}')
        # It has been active since before it stopped the vCPU.
        leg.source.wait_event('RESUME')
        traveller.assert_busy()
        # What is written now is not in the snapshot.
        pages = dict(traveller.pages)
        traveller.rewrite(16)
        traveller.writer.wait_rounds(3)
        leg.test.assertEqual(leg.source.status(), 'active')
        hurry.touch()
        leg.source.wait_status('completed')
        numbers = traveller.writer.checkpoint()
        traveller.verify()
        traveller.pages = pages
        traveller.writer.restore(numbers)
        self.read(leg, path)
        self.load(leg, path)


class Snapshot(Way):
    """savevm, then loadvm: first where it was, then elsewhere."""
    name = 'savevm, loadvm'

    def prepare(self, station: Station) -> None:
        disk = station.setup.directory / 'disk'
        if not disk.exists():
            subprocess.run([str(environment.build_dir() / 'qemu-img'),
                            'create', '-q', '-f', 'qcow2', str(disk), '1M'],
                           check=True)
        # The next machine has it open before the last one is gone.
        station.add_args('-drive', f'if=none,id=disk,file={disk},'
                                   'format=qcow2,file.locking=off')

    def travel(self, leg: Leg) -> None:
        traveller = leg.traveller
        traveller.rewrite(4)
        pages, blocks = dict(traveller.pages), set(traveller.blocks)
        numbers = traveller.writer.checkpoint()
        self.command(leg.source, 'savevm snapshot')
        traveller.verify()
        traveller.reshape()
        traveller.rewrite(16)
        traveller.verify()
        leg.test.assertNotEqual(traveller.blocks, blocks)

        def revert() -> None:
            traveller.pages, traveller.blocks = dict(pages), set(blocks)
            traveller.writer.restore(numbers)
        self.command(leg.source, 'loadvm snapshot')
        revert()
        traveller.verify()
        leg.source.cmd('stop')
        target = leg.launch(incoming=False)
        self.command(target, 'loadvm snapshot')
        leg.arrive(target)
        revert()

    @staticmethod
    def command(station: Station, line: str) -> None:
        """A command of the monitor that only says what goes wrong."""
        answer = station.hmp(line)
        assert not answer.strip(), answer


class Cancel(Way):
    """Changed one's mind twice."""
    name = 'cancel, retry'

    def travel(self, leg: Leg) -> None:
        target = leg.launch()
        self.start(leg, target.uri, target)
        self.dirty(leg, 2)
        leg.source.cmd('migrate_cancel')
        leg.source.wait_status('cancelled')
        target.wait_end()
        leg.traveller.verify()
        leg.traveller.reshape()
        leg.set_off()
        super().travel(leg)


class IgnoreShared(Way):
    """Memory stays where it is, in files that both have mapped."""
    name = 'x-ignore-shared'
    backend = 'file'
    capabilities = ('x-ignore-shared',)
    reasons = {STOCK: 'QEMU 7.2 discards the memory that the source uses '
                      'when the destination starts'}

    def check(self, leg: Leg, info: Dict[str, Any]) -> None:
        leg.test.assertLess(info['ram']['transferred'], MIB)

    def travel(self, leg: Leg) -> None:
        target = leg.launch(self.capabilities)
        self.leave_memslots(leg)
        self.start(leg, target.uri, target, bandwidth=FAST)
        self.check(leg, self.finish(leg, 'completed'))
        self.take_over(leg, target)

    @staticmethod
    def leave_memslots(leg: Leg) -> None:
        """Unplug just before: the source may still be busy with that."""
        leg.traveller.writer.stop()
        leg.traveller.reshape()
        leg.set_off()

    @staticmethod
    def take_over(leg: Leg, target: Station) -> None:
        """
        Plug while the source is still there, which must not take away what
        is not its own any more, not even at a reset.
        """
        target.wait_runs()
        leg.traveller.move(target)
        leg.traveller.grow()
        # Stock QEMU does.
        for _ in range(0 if leg.source.host.stock else 2):
            leg.source.cmd('system_reset')
            leg.source.wait_event('RESET')
        leg.traveller.verify()
        leg.source.shutdown()


class CPRTransfer(IgnoreShared):
    """The same for files that have no name, and are handed over."""
    name = 'cpr-transfer'
    backend = 'memfd'
    capabilities = ()
    reasons: Dict[Host, str] = {}

    def prepare(self, station: Station) -> None:
        station.add_args('-machine', 'aux-ram-share=on')

    def travel(self, leg: Leg) -> None:
        self.leave_memslots(leg)
        target = Station(leg.host, leg.source.setup)
        leg.test.addCleanup(target.shutdown)
        self.prepare(target)
        channels = [{'channel-type': name, 'addr': {
            'transport': 'socket', 'type': 'unix',
            'path': str(target.directory / name)}} for name in ('main', 'cpr')]
        for channel in channels:
            target.add_args('-incoming', json.dumps(channel))
        inode = leg.source.inode(SIZE)
        leg.source.set_capabilities()
        leg.source.cmd('migrate-set-parameters', mode='cpr-transfer')
        # It answers no monitor before it has the files.
        with ThreadPoolExecutor() as executor:
            launched = executor.submit(target.launch)
            wait_soon('the target waits', lambda: launched.done() or
                      is_listening(target.directory / 'cpr') or None)
            if not launched.done():
                leg.source.cmd('migrate', channels=channels)
            launched.result()
        leg.source.wait_status('completed')
        self.check(leg, leg.source.migration())
        self.take_over(leg, target)
        leg.test.assertEqual(target.inode(SIZE), inode)


class Refused(Way):
    """The destination cannot take the guest, which stays and then leaves."""
    outcome = 'refused'
    early = ('failed',)
    changes: Dict[str, Any] = {}
    # How the destination ends, and what it says
    status = 1
    message = ''
    # The way that the guest leaves in then
    next_way: Way = PRECOPY

    def spoil(self, leg: Leg) -> Station:
        """A destination that cannot take the guest."""
        return leg.launch(**self.changes)

    def during(self, leg: Leg, target: Station) -> None:
        """What happens to the destination before all has been sent."""

    def end(self, leg: Leg, target: Station) -> None:
        """The destination has ended, and said why."""
        leg.test.assertEqual(target.wait_end(), self.status)
        leg.test.assertIn(self.message, target.log())

    def travel(self, leg: Leg) -> None:
        target = self.spoil(leg)
        self.start(leg, target.uri, target)
        self.during(leg, target)
        info = self.finish(leg, 'failed', 'completed')
        self.end(leg, target)
        if info['status'] == 'completed':
            # All was sent before the destination was done with it.
            leg.source.cmd('cont')
        leg.source.wait_runs()
        leg.traveller.verify()
        leg.traveller.reshape()
        leg.set_off()
        self.next_way.travel(leg)


class Smaller(Refused):
    """The device is smaller."""
    name = 'smaller device'
    message = 'Size mismatch'

    def spoil(self, leg: Leg) -> Station:
        size = SIZE - GIB
        return leg.launch(
            backend=f'memory-backend-memfd,share=on,id={MEMORY},size={size},'
                    'reserve=off', changes={'requested-size': '0'})


class OtherBlocks(Refused):
    """Its blocks are larger."""
    name = 'other block size'
    changes = {'changes': {'block-size': '4M'}}
    message = "Property 'block-size' changed from 0x200000 to 0x400000"


class LateRefused(Refused):
    """
    It lacks another device, which it learns when it has loaded this one: what
    is plugged there goes again.
    """
    name = 'other device lacks'
    message = 'Unknown savevm section'
    SLOT = 10

    def prepare(self, station: Station) -> None:
        station.add_args('-device', f'virtio-rng-pci,addr={self.SLOT}')

    def spoil(self, leg: Leg) -> Station:
        # Nobody prepares this one.
        target = Station(leg.host, leg.source.setup)
        leg.test.addCleanup(target.shutdown)
        target.add_args('-incoming', 'defer')
        target.launch()
        target.set_capabilities(*self.capabilities)
        return target


class SharedRefused(LateRefused):
    """The same with memory that the source uses still."""
    name = 'the same, shared'
    backend = IgnoreShared.backend
    capabilities = IgnoreShared.capabilities
    reasons = IgnoreShared.reasons
    next_way = IgnoreShared()


class Killed(Refused):
    """The destination ends midway."""
    name = 'killed midway'

    def during(self, leg: Leg, target: Station) -> None:
        self.dirty(leg, 2)
        target.shutdown()

    def end(self, leg: Leg, target: Station) -> None:
        pass


@contextmanager
def mounted(kind: str, size: int) -> Iterator[Path]:
    """A file system that can hold no more than @size."""
    with tempfile.TemporaryDirectory(prefix='virtio-mem-') as directory:
        subprocess.run(['mount', '-t', kind, '-o', f'size={size}',
                        'virtio-mem', directory], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(['umount', directory], check=True)


class NoMemory(Refused):
    """The destination's memory is on a file system that is too small."""
    name = 'no memory'
    status = -signal.SIGBUS
    kind = 'tmpfs'
    size = 8 * MIB

    def why_not(self, _setup: Setup) -> Optional[str]:
        try:
            with mounted(self.kind, self.size):
                return None
        except subprocess.CalledProcessError:
            reason = f'no {self.kind} can be mounted'
            needs.insist(needs.ROOT, reason)
            return reason

    def spoil(self, leg: Leg) -> Station:
        directory = leg.test.enterContext(mounted(self.kind, self.size))
        return leg.launch(
            backend=f'memory-backend-file,share=on,id={MEMORY},size={SIZE},'
                    f'reserve=off,mem-path={directory}/memory')


class NoHugePages(NoMemory):
    """The destination's memory is made of huge pages, and there are few."""
    name = 'no huge pages'
    kind = 'hugetlbfs'
    size = 2 * BLOCK


# Which pairs of hosts a way is gone between: all of them; those that differ
# in whether there are multiple memslots; or none, as that would show no more
# than the other tables do.
ALL, SOME, NONE = 'all', 'some', 'none'
SOME_PAIRS = ((ON, ON), (ON, OFF), (OFF, ON))
# By class of tests and unplugged-inaccessible
TABLES = (('KVM', 'on'), ('KVM', 'off'), ('OldKVM', 'on'), ('OldKVM', 'off'),
          ('TCG', 'on'), ('TCG', 'off'))
WAYS: Sequence[Tuple[Type[Way], str, str, str, str, str, str]] = (
    (Way, ALL, ALL, ALL, ALL, ALL, SOME),
    (AutoConverge, SOME, NONE, NONE, NONE, SOME, NONE),
    (Xbzrle, ALL, NONE, NONE, NONE, SOME, NONE),
    (Multifd, ALL, SOME, ALL, NONE, NONE, NONE),
    (Postcopy, ALL, ALL, ALL, ALL, ALL, SOME),
    (Recover, ALL, NONE, SOME, NONE, SOME, NONE),
    (File, ALL, SOME, ALL, SOME, SOME, NONE),
    (MappedRam, ALL, SOME, NONE, NONE, SOME, NONE),
    (MappedRamMultifd, SOME, SOME, NONE, NONE, NONE, NONE),
    (Background, ALL, SOME, SOME, NONE, SOME, NONE),
    (Snapshot, ALL, ALL, ALL, ALL, ALL, SOME),
    (IgnoreShared, ALL, SOME, SOME, SOME, SOME, NONE),
    (CPRTransfer, ALL, SOME, NONE, NONE, SOME, NONE),
    (Cancel, SOME, SOME, SOME, NONE, NONE, NONE),
    (Killed, SOME, NONE, NONE, NONE, SOME, NONE),
    (Smaller, SOME, NONE, NONE, NONE, NONE, NONE),
    (OtherBlocks, SOME, SOME, SOME, NONE, NONE, NONE),
    (LateRefused, SOME, SOME, SOME, SOME, NONE, NONE),
    (SharedRefused, SOME, SOME, SOME, SOME, NONE, NONE),
    (NoMemory, SOME, NONE, NONE, NONE, NONE, NONE),
    (NoHugePages, SOME, NONE, NONE, NONE, NONE, NONE),
)
EVERYTHING = bool(os.environ.get('MIGRATION_MODES_ALL'))


class Journey:
    """A guest goes from host to host in one way."""

    def __init__(self, test: unittest.TestCase, way: Way, setup: Setup,
                 first: Host) -> None:
        self.test, self.way = test, way
        # What the streams have told about what they hold: all of one QEMU's,
        # and of the device in any
        self.descriptions: Dict[Any, Any] = {}
        station = Station(first, setup)
        test.addCleanup(station.shutdown)
        way.prepare(station)
        station.launch()
        self.traveller = Traveller(test, station)
        self.traveller.reshape()
        self.traveller.verify()

    def visit(self, host: Host) -> str:
        """Go to another host; returns the entry for the table."""
        leg = Leg(self, host)
        leg.set_off()
        self.way.travel(leg)
        self.traveller.verify()
        self.traveller.reshape()
        self.traveller.verify()
        return self.way.outcome


class Table:
    """What became of each way between each pair of hosts."""

    def __init__(self, title: str, hosts: Sequence[Host]) -> None:
        self._title = title
        self._pairs = list(zip(hosts, hosts[1:]))
        self._rows: Dict[str, List[str]] = {}
        self._reasons: List[str] = []

    def add(self, way: Way, entry: str) -> None:
        """Add the next entry of a row."""
        self._rows.setdefault(way.name, []).append(entry)

    def add_reason(self, way: Way, reason: str) -> None:
        """Add an entry about what cannot be done."""
        if reason not in self._reasons:
            self._reasons.append(reason)
        self.add(way, f'({self._reasons.index(reason) + 1})')

    def print(self) -> None:
        """Print it, as part of the output of tests."""
        names = [f'{old.name}-{new.name}' for old, new in self._pairs]
        width = max(len(name) for name in [self._title, *self._rows])
        rows = [(self._title, names), *self._rows.items()]
        for title, entries in rows:
            cells = (f'{entry:>{max(len(name), 7)}}'
                     for entry, name in zip(entries, names))
            print(f'# {title:<{width}} ', *cells, flush=True)
        if any(entry == '.' for row in self._rows.values() for entry in row):
            print('# . not gone, as it would show no more than others do',
                  flush=True)
        for number, reason in enumerate(self._reasons, 1):
            print(f'# ({number}) {reason}', flush=True)


class Modes:
    """What is tested with each accelerator."""

    class Base(unittest.TestCase):
        """The table of all ways and all pairs of hosts."""
        accel: str
        machine: str
        hosts: Sequence[Host]

        def table(self, inaccessible: str) -> None:
            """Go all ways; print what came of it."""
            table = Table(f'{self.accel}, {self.machine}, '
                          f'unplugged-inaccessible={inaccessible}',
                          self.hosts)
            column = TABLES.index((type(self).__name__[len('Test'):],
                                   inaccessible))
            try:
                for kind, *reaches in WAYS:
                    reach = ALL if EVERYTHING else reaches[column]
                    if reach != NONE:
                        self.row(table, kind(), inaccessible, reach)
            finally:
                table.print()

        def row(self, table: Table, way: Way, inaccessible: str,
                reach: str) -> None:
            """Go one way."""
            # Not even a machine that fails may leave something behind there.
            with tempfile.TemporaryDirectory(
                    prefix='virtio-mem-', dir='/dev/shm') as directory:
                setup = Setup(self.accel, self.machine, inaccessible,
                              way.backend, Path(directory))
                reason = way.why_not(setup)
                if reason is not None:
                    table.add_reason(way, reason)
                    return
                self.travel(table, way, setup, reach)
                self.doCleanups()

        def travel(self, table: Table, way: Way, setup: Setup,
                   reach: str) -> None:
            """One machine, from host to host, as long as all is well."""
            journey = None
            for old, new in zip(self.hosts, self.hosts[1:]):
                reason = (way.reasons.get(new) or old.why_not(setup)
                          or new.why_not(setup))
                if reach == SOME and (old, new) not in SOME_PAIRS:
                    table.add(way, '.')
                    journey = None
                    continue
                if reason is not None:
                    table.add_reason(way, reason)
                    journey = None
                    continue
                entry = 'FAILED'
                with self.subTest(way.name, pair=f'{old.name}-{new.name}'):
                    journey = journey or Journey(self, way, setup, old)
                    entry = journey.visit(new)
                table.add(way, entry)
                if entry == 'FAILED':
                    journey = None

        def test_inaccessible(self) -> None:
            """Guests that leave unplugged memory alone."""
            self.table('on')

        def test_accessible(self) -> None:
            """Guests that may read unplugged memory."""
            self.table('off')


class TestKVM(Modes.Base):
    """With KVM, whose memslots and dirty log are real."""
    accel = 'kvm'
    machine = NEW_MACHINE
    hosts = KVM_JOURNEY

    def setUp(self) -> None:
        environment.require_kvm()


class TestOldKVM(TestKVM):
    """The same with a machine that QEMU 7.2 has, too."""
    machine = OLD_MACHINE
    hosts = OLD_JOURNEY


class TestTCG(Modes.Base):
    """With emulation."""
    accel = 'tcg'
    machine = NEW_MACHINE
    hosts = TCG_JOURNEY


if __name__ == '__main__':
    unittest.main()
