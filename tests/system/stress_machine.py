"""
A real machine that offers the same steps as the model, and shows what it is
like after each of them. There is no guest; drivers.py has the drivers.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import copy
import functools
import itertools
import random
import re
import struct
import subprocess
import tempfile
import time
import unittest
from dataclasses import dataclass, field
from pathlib import Path
from typing import (Any, BinaryIO, Dict, Iterator, List, NamedTuple, Optional,
                    Set, Tuple)

from qemu.qmp import ExecuteError

import environment
import mtree
from drivers import Answer, VirtioBlk, VirtioMem
from host_memory import files
from stress_model import OK, PAGE, REFUSED, Device, Memory, Model, Step
from vhost_backends import Block, OldStorageDaemon, TracedMachine, joined
from vm import MIB, Disagreement, Timeout, first_error, wait_until

LISTENER = 'listener'
# Registers of the controller for memory hotplug of machine pc
ACPI_MEMORY, ACPI_MEMORY_FLAGS, ACPI_MEMORY_EJECT = 0xa00, 0x14, 8
# PCI slots of the virtio-mem devices; the disk has another one.
SLOTS = (5, 8, 9)
# Machine pc has no other memory there, if there is so little of it.
DEVICE_MEMORY = 1 << 32
# Random, so that a slow migration takes a minute; no driver uses it.
BALLAST = range(2 * MIB, 6 * MIB, 64 * 1024)
FREE_TIME = 0.3
SLOW, FAST = 64 * 1024, 1 << 40
NEEDS_RESET = 64
STATES = ('plugged', 'unplugged', 'mixed')
# The host allocates memory in pieces as large as that where it can.
HUGE_PAGE = 2 * MIB

_KVM_CALL = re.compile(r'kvm_set_user_memory (.*Slot#\d+) flags=0x([0-9a-f]+) '
                       r'gpa=0x([0-9a-f]+) size=0x([0-9a-f]+) .*'
                       r'ret=(-?\d+)$')
KVM_MEM_LOG_DIRTY_PAGES = 1
_SMAPS = re.compile(r'([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) *(\S*)')


@functools.lru_cache(maxsize=4096)
def pattern(stamp: int) -> bytes:
    """What is written to a page for a number."""
    if not stamp:
        return bytes(PAGE)
    data = random.Random(stamp).randbytes(PAGE - 8)
    return stamp.to_bytes(8, 'little') + data


def read_stamp(data: bytes) -> str:
    """The number that was written to a page."""
    stamp = int.from_bytes(data[:8], 'little')
    return f'{stamp}' if data == pattern(stamp) else 'garbage'


def agree(what: str, shown: object, expected: object) -> None:
    """See that the machine and the model agree."""
    if shown != expected:
        raise Disagreement(f'{what}: {shown}, expected: {expected}')


def see_migrating(error: ExecuteError) -> None:
    """See that a command was refused because of a migration."""
    if 'not allowed while migrating' not in str(error):
        raise error


@dataclass
class Drivers:
    """The drivers of a machine that have been started."""
    machine: TracedMachine
    # By the index of their devices
    memory: Dict[int, VirtioMem] = field(default_factory=dict)
    disk: Optional[VirtioBlk] = None

    def copied(self, machine: TracedMachine) -> 'Drivers':
        """Drivers as they are now, for this machine or another one."""
        return copy.deepcopy(self, {id(self.machine): machine})


class Disk(Block):
    """The disk, without its driver."""

    def with_driver(self, drivers: Drivers) -> 'Disk':
        """Itself, with a driver that may have to be started."""
        if drivers.disk is None:
            self.start()
            drivers.disk = self._driver
        self._driver = drivers.disk
        return self


class OldDisk(Disk):
    """One whose backend can hold few memory regions."""
    kind = OldStorageDaemon


class KVMView:
    """The memslots that KVM was told of, from the trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace
        self._position = 0
        # Addresses, sizes, flags
        self._slots: Dict[str, Tuple[int, int, int]] = {}
        # Addresses where a memslot was removed since the last call
        self.removed: Set[int] = set()

    def _lines(self) -> Iterator[str]:
        with self._trace.open('rb') as trace:
            trace.seek(self._position)
            for line in trace:
                if not line.endswith(b'\n'):
                    break
                self._position += len(line)
                yield line.decode('utf-8', 'replace').rstrip()

    def update(self) -> None:
        """Read what is new."""
        self.removed = set()
        for line in self._lines():
            match = _KVM_CALL.match(line)
            if match is None:
                continue
            agree('KVM_SET_USER_MEMORY_REGION', match[5], '0')
            flags, address, size = (int(match[number], 16)
                                    for number in (2, 3, 4))
            if size:
                self._slots[match[1]] = address, size, flags
            else:
                self._slots.pop(match[1], None)
                self.removed.add(address)

    def within(self, first: int, size: int) -> List[Tuple[int, int]]:
        """The memslots in a range of addresses, addresses and sizes."""
        return sorted(slot[:2] for slot in self._slots.values()
                      if first <= slot[0] < first + size)

    def without_log(self, first: int) -> List[int]:
        """
        Addresses from one on where KVM does not note what the guest writes.
        """
        return sorted(address for address, _, flags in self._slots.values()
                      if address >= first
                      and not flags & KVM_MEM_LOG_DIRTY_PAGES)


class Host:
    """A QEMU process with memory devices."""

    def __init__(self, machine: TracedMachine, listener: bool) -> None:
        self.machine = machine
        self.kvm = KVMView(machine.trace) if machine.accel == 'kvm' else None
        self.listener = listener
        self.disk: Optional[Disk] = None
        self.drivers = Drivers(machine)
        # What was expected to be mapped at the last check, as addresses
        self._mapped: Set[int] = set()

    def cmd(self, name: str, **arguments: Any) -> Any:
        """Run a command of the monitor."""
        return self.machine.cmd(name, **arguments)

    def query(self) -> Dict[str, Dict[str, Any]]:
        """What query-memory-devices tells, by id."""
        return {device['data']['id']: device['data'] for device in
                self.cmd('query-memory-devices')}

    def listener_property(self, name: str) -> int:
        """What the listener tells."""
        return int(self.cmd(
            'qom-get', path=f'/machine/peripheral/{LISTENER}', property=name))

    def driver(self, index: int) -> VirtioMem:
        """The driver of a device, started if need be."""
        drivers = self.drivers.memory
        if index not in drivers:
            drivers[index] = VirtioMem(self.machine, SLOTS[index])
        return drivers[index]

    def check(self, model: Model, step: Optional[Step]) -> None:
        """See that all is as the model has it."""
        status = self.cmd('query-status')
        agree('running', status['running'], model.running)
        devices = self.query()
        agree('memory devices', set(devices),
              {f'vmem{i}' for i in range(len(model.devices))}
              | {f'dimm{i}' for i in range(len(model.dimms))})
        self._check_devices(model, devices)
        self._check_mapped(model, devices, step)
        self._check_memslots(model)
        self._check_listener(model)
        self._check_contents(model, devices)
        self._check_footprint(model)
        if model.disk and model.running:
            self._check_backend(model)
        if step and step.kind == 'dump':
            self._check_dump(model, devices)

    def _check_devices(self, model: Model,
                       devices: Dict[str, Dict[str, Any]]) -> None:
        for index, expected in enumerate(model.devices):
            name = f'vmem{index}'
            shown = devices[name]
            agree(f'{name} in query-memory-devices',
                  {key: shown[key] for key in ('size', 'requested-size',
                                               'max-size', 'block-size')},
                  {'size': expected.size,
                   'requested-size': expected.requested,
                   'max-size': expected.properties.size,
                   'block-size': expected.block})
            driver = self.drivers.memory.get(index)
            if driver is None:
                continue
            agree(f'{name}: config space',
                  [driver.config(offset, 'q') for offset in (
                      0, 16, 24, 32, 40, 48)],
                  [expected.block, shown['memaddr'],
                   expected.properties.size, expected.usable, expected.size,
                   expected.requested])

    def _check_mapped(self, model: Model, devices: Dict[str, Dict[str, Any]],
                      step: Optional[Step]) -> None:
        tree = self.machine.hmp('info mtree')
        flat = self.machine.hmp('info mtree -f')
        if self.kvm:
            self.kvm.update()
        was_mapped, self._mapped = self._mapped, set()

        for index, expected in enumerate(model.devices):
            name = f'vmem{index}'
            start = devices[name]['memaddr']
            mapped = expected.mapped()
            agree(f'{name}: flat view',
                  [(part.address - start, part.size, part.offset)
                   for part in mtree.rendered(flat, f'{name}-backend')],
                  [(offset, size, offset) for offset, size in mapped])
            names = ({memslot: f'memslot-{i}' for i, memslot in
                      enumerate(expected.memslots())}
                     if expected.multiple else {})
            agree(f'{name}: aliases',
                  [(part.name, part.address - start, part.size, part.offset)
                   for part in mtree.aliases(tree, f'{name}-backend')],
                  [(names[memslot], *memslot, memslot[0])
                   for memslot in mapped if memslot in names])
            self._mapped |= {start + offset for offset, _ in mapped}
            if self.kvm:
                agree(f'{name}: memslots of KVM',
                      [(address - start, size) for address, size in
                       self.kvm.within(start, expected.properties.size)],
                      mapped)
        for index, dimm in enumerate(model.dimms):
            start = devices[f'dimm{index}']['addr']
            agree(f'dimm{index}: flat view',
                  [(part.address, part.size, part.offset) for part in
                   mtree.rendered(flat, f'dimm{index}-backend')],
                  [(start, dimm.size, 0)])
        if self.kvm and model.migrating:
            agree('memslots of KVM without a log of dirty pages',
                  self.kvm.without_log(DEVICE_MEMORY), [])
        # A snapshot is loaded after a reset, which unplugs all.
        if self.kvm and step and step.kind != 'loadvm':
            agree('memslots removed from KVM that are needed',
                  sorted(self.kvm.removed & was_mapped & self._mapped), [])

    def _check_memslots(self, model: Model) -> None:
        info = self.cmd('query-memslots')
        required = sum(len(device.memslots()) for device in model.devices)
        used = sum(len(device.mapped()) for device in model.devices)
        agree('query-memslots',
              {key: info[key] for key in ('required', 'used', 'reserved')},
              {'required': required + len(model.dimms),
               'used': used + len(model.dimms),
               'reserved': required - used})
        for holder in info['holders']:
            if holder['type'] == 'kvm':
                agree('memslots reserved in KVM', holder['reserved'],
                      required - used)
        agree('vhost backends in query-memslots',
              [(holder['id'], holder['whole-devices'])
               for holder in info['holders'] if holder['type'] == 'vhost'],
              [(self.disk.chardev, self.disk.backend.is_whole())]
              if self.disk else [])

    def _check_listener(self, model: Model) -> None:
        if self.listener:
            agree('errors of the listener',
                  self.listener_property('errors'), 0)
            agree('what the listener knows to be plugged',
                  self.listener_property('populated'), model.plugged)

    def _check_backend(self, model: Model) -> None:
        """
        The disk's backend has mapped what it is shown: each device as a
        whole or its memslots, and each DIMM.
        """
        assert self.disk is not None
        if self.drivers.disk is None:
            return
        backend, pid = self.disk.backend, self.machine.get_pid() or 0
        # What it has of each file of a size, which has no name
        shown: Dict[int, List[List[Tuple[int, int]]]] = {}
        for device in model.devices:
            size = device.properties.size
            if device.properties.shared:
                shown.setdefault(size, []).append(
                    [(0, size)] if backend.is_whole()
                    else joined(device.mapped()))
        for dimm in model.dimms:
            if dimm.shared:
                shown.setdefault(dimm.size, []).append([(0, dimm.size)])
        agree('mappings of the backend, by size of files',
              {size: sorted(joined((mapping.offset, mapping.size)
                                   for mapping in backend.mappings(inode))
                            for inode in files(pid, size))
               for size in shown},
              {size: sorted(ranges) for size, ranges in shown.items()})

    @property
    def dump(self) -> Path:
        """Where memory is dumped to."""
        return self.machine.directory / 'dump'

    def _check_dump(self, model: Model,
                    devices: Dict[str, Dict[str, Any]]) -> None:
        """All that is plugged is in the dump, and nothing else."""
        with self.dump.open('rb') as dump:
            segments = read_segments(dump)
            for index, device in enumerate(model.devices):
                start = devices[f'vmem{index}']['memaddr']
                size = device.properties.size
                within = [segment for segment in segments
                          if start <= segment.address < start + size]
                agree(f'vmem{index}: blocks in the dump',
                      {block for segment in within
                       for block in segment.blocks(start, device.block)},
                      device.plugged)
                for segment in within:
                    for page, stamp in device.contents.items():
                        offset = start + page - segment.address
                        if not 0 <= offset < segment.size:
                            continue
                        dump.seek(segment.offset + offset)
                        agree(f'vmem{index}: page {page:#x} in the dump',
                              read_stamp(dump.read(PAGE)), str(stamp))
        self.dump.unlink()

    def _check_contents(self, model: Model,
                        devices: Dict[str, Dict[str, Any]]) -> None:
        memories: List[Tuple[str, int, Memory]] = []
        for index, device in enumerate(model.devices):
            name = f'vmem{index}'
            memories.append((name, devices[name]['memaddr'], device))
        for index, dimm in enumerate(model.dimms):
            name = f'dimm{index}'
            memories.append((name, devices[name]['addr'], dimm))
        for name, start, memory in memories:
            for page, stamp in memory.expected().items():
                data = self.machine.read(start + page, PAGE)
                if data != pattern(stamp):
                    raise Disagreement(
                        f'{name}: page {page:#x} holds {read_stamp(data)}, '
                        f'expected: {stamp}')

    def _check_footprint(self, model: Model) -> None:
        """Memory that is not plugged is not allocated either."""
        footprint = Footprint(self.machine.get_pid() or 0)
        for shared in (False, True):
            bound: Dict[int, int] = {}
            for device in model.devices:
                if device.properties.shared is shared:
                    size = device.properties.size
                    bound[size] = bound.get(size, 0) + largest(device)
            for size, most in bound.items():
                allocated = (footprint.shared(size) if shared
                             else footprint.anonymous(size))
                if allocated > most:
                    raise Disagreement(
                        f'{allocated} bytes of memory allocated for devices '
                        f'of {size} bytes, expected: at most {most}')


def largest(device: Device) -> int:
    """How much memory the host may have allocated for a device."""
    # Blocks that share a huge page go together, whatever their state, and
    # what was around a block is left when it is unplugged.
    return (device.size if device.block >= HUGE_PAGE
            else device.properties.size)


class Segment(NamedTuple):
    """A range of memory in a dump."""
    address: int
    size: int
    offset: int

    def blocks(self, start: int, block: int) -> range:
        """The blocks of a device that it has."""
        first = self.address - start
        return range(first // block, (first + self.size) // block)


def read_segments(dump: BinaryIO) -> List[Segment]:
    """The ranges of memory in a dump, which is an ELF file."""
    header = dump.read(64)
    offset, = struct.unpack_from('<Q', header, 32)
    size, count = struct.unpack_from('<HH', header, 54)
    dump.seek(offset)
    headers = dump.read(size * count)
    segments = []
    for number in range(count):
        kind, where, address, length = struct.unpack_from(
            '<I4xQ8xQQ', headers, size * number)
        if kind == 1:
            segments.append(Segment(address, length, where))
    return segments


class Footprint:
    """How much memory of a process is allocated."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def shared(self, size: int) -> int:
        """Of files in memory that have a size."""
        return sum(files(self._pid, size).values())

    def anonymous(self, size: int) -> int:
        """Of mappings without a file that have a size."""
        total = 0
        inside = False
        smaps = Path(f'/proc/{self._pid}/smaps').read_text(encoding='utf-8')
        for line in smaps.splitlines():
            match = _SMAPS.match(line)
            if match:
                inside = (int(match[2], 16) - int(match[1], 16) == size
                          and match[3] == '0')
            elif inside and line.startswith('Anonymous:'):
                total += int(line.split()[1]) * 1024
        return total


def _add_backend(name: str, size: int, shared: bool) -> List[str]:
    kind = 'memfd,share=on' if shared else 'ram'
    return ['-object', f'memory-backend-{kind},id={name}-backend,'
                       f'size={size},reserve=off']


class RealMachine:
    """A machine that moves from one QEMU to another."""
    # pylint: disable=too-many-public-methods,too-many-instance-attributes

    def __init__(self, accel: str, listener: bool) -> None:
        self._accel = accel
        self._listener = listener
        # Ends all processes that it starts
        self._test = unittest.TestCase()
        # pylint: disable=consider-using-with
        directory = tempfile.TemporaryDirectory(prefix='virtio-mem-')
        self._test.addCleanup(directory.cleanup)
        self._directory = Path(directory.name)
        self._snapshots = self._directory / 'snapshots'
        self._disk = self._directory / 'disk'
        self._disk.write_bytes(bytes(Disk.DISK))
        self._saved: Dict[int, Drivers] = {}
        self._added: List[Dict[str, Any]] = []
        self._dimms: List[Tuple[int, bool]] = []
        self._target: Optional[Host] = None
        self._postcopy = False
        self._kinds = itertools.cycle((OldDisk, Disk))
        try:
            self._host = self._boot()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> Host:
        subprocess.run(
            [str(environment.build_dir() / 'qemu-img'), 'create', '-q', '-f',
             'qcow2', str(self._snapshots), '1M'],
            check=True, stdin=subprocess.DEVNULL)
        host = self._make_host()
        host.machine.launch()
        ballast = random.Random(0)
        for address in BALLAST:
            host.machine.write(address, ballast.randbytes(BALLAST.step))
        return host

    def _make_host(self) -> Host:
        machine = TracedMachine(environment.qemu_system(), self._accel)
        self._test.addCleanup(machine.shutdown)
        machine.add_args('-drive', 'if=none,id=snapshots,format=qcow2,'
                                   f'file={self._snapshots}')
        if self._listener:
            machine.add_args('-device', f'ram-discard-testdev,id={LISTENER}')
        return Host(machine, self._listener)

    def close(self) -> None:
        """End it."""
        self._test.doCleanups()

    def post_mortem(self, error: Exception) -> Optional[str]:
        """What QEMU printed, if it is gone."""
        machine = self._host.machine
        if isinstance(error, Disagreement):
            return None
        try:
            # Its sockets may be gone before it is.
            wait_until('QEMU is gone',
                       lambda: not machine.is_running() or None, timeout=10)
        except Timeout:
            return None
        code = machine.exitcode()
        machine.shutdown()
        return f'exit code {code}, output: {machine.get_log()}'

    def check(self, model: Model, step: Optional[Step]) -> None:
        """See that all is as the model has it."""
        self._host.check(model, step)
        if model.migrating:
            agree('migration', self._migration(self._host)['status'],
                  'active')

    def take(self, step: Step) -> str:
        """Take a step, and tell its outcome."""
        return str(getattr(self, step.kind)(*step.arguments))

    @property
    def _machine(self) -> TracedMachine:
        return self._host.machine

    # What the driver does

    def plug(self, index: int, offset: int, blocks: int) -> str:
        """Request to plug blocks."""
        driver = self._host.driver(index)
        return driver.plug(offset, blocks * driver.block).name

    def unplug(self, index: int, offset: int, blocks: int) -> str:
        """Request to unplug blocks."""
        driver = self._host.driver(index)
        return driver.unplug(offset, blocks * driver.block).name

    def unplug_all(self, index: int) -> str:
        """Request to unplug all."""
        return self._host.driver(index).unplug_all().name

    def state(self, index: int, offset: int, blocks: int) -> str:
        """Request to tell the state of blocks."""
        driver = self._host.driver(index)
        answer, state = driver.request_state(offset, blocks * driver.block)
        if answer is not Answer.ACK:
            return answer.name
        return f'{answer.name} {STATES[state]}'

    def restart(self, index: int) -> str:
        """Have a new driver."""
        self._host.drivers.memory.pop(index, None)
        self._host.driver(index)
        return OK

    def malformed(self, index: int) -> str:
        """A request that is none."""
        driver = self._host.driver(index)
        driver.post_malformed()
        wait_until('the device needs a reset',
                   lambda: driver.status() & NEEDS_RESET or None, timeout=30)
        del self._host.drivers.memory[index]
        return 'broken'

    # What is done with memory

    def _address(self, name: str, page: int) -> int:
        device = self._host.query()[name]
        return int(device.get('memaddr', device.get('addr'))) + page

    def write(self, index: int, page: int, stamp: int) -> str:
        """Write to a page of a device."""
        self._machine.write(self._address(f'vmem{index}', page),
                            pattern(stamp))
        return OK

    def dimm_write(self, index: int, page: int, stamp: int) -> str:
        """Write to a page of a DIMM."""
        self._machine.write(self._address(f'dimm{index}', page),
                            pattern(stamp))
        return OK

    # The disk

    @property
    def _front(self) -> Disk:
        assert self._host.disk is not None
        return self._host.disk

    def disk_in(self, index: int, page: int, stamp: int) -> str:
        """Have the disk's backend write to a page."""
        self._front.with_driver(self._host.drivers).deliver(
            self._address(f'vmem{index}', page), pattern(stamp))
        return OK

    def disk_out(self, index: int, page: int, _stamp: int) -> str:
        """Have the disk's backend read from a page."""
        return read_stamp(self._front.with_driver(self._host.drivers).collect(
            self._address(f'vmem{index}', page), PAGE))

    def disk_attach(self) -> str:
        """Plug a disk, of either kind in turn."""
        disk = next(self._kinds)(self._test, self._machine, self._disk)
        try:
            disk.plug()
        except ExecuteError as error:
            see_migrating(error)
            self._machine.cmd('chardev-remove', id=disk.chardev)
            disk.backend.kill()
            return REFUSED
        self._host.disk = disk
        return OK

    def disk_detach(self) -> str:
        """Unplug the disk."""
        try:
            self._front.unplug()
        except ExecuteError as error:
            see_migrating(error)
            return REFUSED
        self._front.backend.kill()
        self._host.disk = None
        self._host.drivers.disk = None
        return OK

    # What the host does

    def request(self, index: int, size: int) -> str:
        """Ask for another size of a device."""
        try:
            self._machine.request(f'vmem{index}', size)
        except ExecuteError:
            return REFUSED
        return OK

    def limit_listener(self, size: int) -> str:
        """Have the listener refuse more than that; 0: nothing."""
        self._machine.cmd(
            'qom-set', path=f'/machine/peripheral/{LISTENER}',
            property='max-populated', value=size or (1 << 64) - 1)
        return OK

    def stop(self) -> str:
        """Stop the machine."""
        self._machine.cmd('stop')
        return OK

    def cont(self) -> str:
        """Have it run."""
        self._machine.cmd('cont')
        return OK

    def reset(self) -> str:
        """Reset the machine."""
        self._machine.cmd('system_reset')
        self._machine.event_wait('RESET')
        self._host.drivers = Drivers(self._machine)
        return OK

    def device_add(self, size: int, block: int, inaccessible: int,
                   shared: int, multiple: int) -> str:
        """Add a virtio-mem device."""
        index = len(self._added)
        name = f'vmem{index}'
        properties = {
            'block-size': block,
            'unplugged-inaccessible': 'on' if inaccessible else 'off'}
        if not self._add(name, size, bool(shared), {
                **properties, 'driver': 'virtio-mem-pci',
                'addr': str(SLOTS[index]),
                'multiple-memslots': bool(multiple)}):
            return REFUSED
        self._added.append({'size': size, 'shared': bool(shared),
                            'properties': properties})
        return OK

    def device_remove(self) -> str:
        """Unplug the virtio-mem device that was added last."""
        index = len(self._added) - 1
        name = f'vmem{index}'
        try:
            self._machine.cmd('device_del', id=name)
        except ExecuteError as error:
            if 'cannot get unplugged while' not in str(error):
                see_migrating(error)
            return REFUSED
        self._machine.eject(SLOTS[index])
        self._machine.event_wait('DEVICE_DELETED', timeout=30.0,
                                 match={'data': {'device': name}})
        self._machine.cmd('object-del', id=f'{name}-backend')
        self._added.pop()
        self._host.drivers.memory.pop(index, None)
        return OK

    def dimm_add(self, size: int, shared: int) -> str:
        """Add a DIMM."""
        if not self._add(f'dimm{len(self._dimms)}', size, bool(shared),
                         {'driver': 'pc-dimm'}):
            return REFUSED
        self._dimms.append((size, bool(shared)))
        return OK

    def dimm_remove(self, wait: int) -> str:
        """Unplug the DIMM that was added last, and wait until it is freed."""
        name = f'dimm{len(self._dimms) - 1}'
        slot = self._host.query()[name]['slot']
        try:
            self._machine.cmd('device_del', id=name)
        except ExecuteError as error:
            see_migrating(error)
            return REFUSED
        # What the guest's ACPI code does
        self._machine.qtest(f'outl {ACPI_MEMORY} {slot}')
        self._machine.qtest(f'outb {ACPI_MEMORY + ACPI_MEMORY_FLAGS} '
                            f'{ACPI_MEMORY_EJECT}')
        self._machine.event_wait('DEVICE_DELETED', timeout=30.0,
                                 match={'data': {'device': name}})
        self._machine.cmd('object-del', id=f'{name}-backend')
        self._dimms.pop()
        if wait:
            # Nothing tells that QEMU has freed the memory.
            time.sleep(FREE_TIME)
        return OK

    def _add(self, name: str, size: int, shared: bool,
             properties: Dict[str, Any]) -> bool:
        backend = {'qom-type': 'memory-backend-memfd', 'share': True
                   } if shared else {'qom-type': 'memory-backend-ram'}
        # Names of properties have dashes.
        self._command('object-add', {'id': f'{name}-backend', 'size': size,
                                     'reserve': False, **backend})
        try:
            self._command('device_add', {
                'id': name, 'memdev': f'{name}-backend', **properties})
        except ExecuteError as error:
            see_migrating(error)
            self._command('object-del', {'id': f'{name}-backend'})
            return False
        return True

    def _command(self, name: str, arguments: Dict[str, Any]) -> None:
        self._machine.cmd(name, conv_keys=False, **arguments)

    # Migration

    def _incoming(self, multiple: int,
                  wrong: Optional[Dict[str, Any]] = None) -> Host:
        """Start a destination; one device of it may be a wrong one."""
        host = self._make_host()
        if self._host.disk is not None:
            host.disk = type(self._host.disk)(self._test, host.machine,
                                              self._disk)
            host.disk.add()
        shown = self._host.query()
        for index, (size, shared) in enumerate(self._dimms):
            name = f'dimm{index}'
            host.machine.add_args(
                *_add_backend(name, size, shared),
                '-device', f'pc-dimm,id={name},memdev={name}-backend,'
                           f'addr={shown[name]["addr"]},'
                           f'slot={shown[name]["slot"]}')
        for index, device in enumerate(self._added):
            name = f'vmem{index}'
            if wrong is not None and index == wrong['index']:
                device = {**device, **wrong}
            properties = {
                **device['properties'], 'id': name,
                'memdev': f'{name}-backend', 'addr': SLOTS[index],
                'memaddr': shown[name]['memaddr'],
                'multiple-memslots': 'on' if multiple >> index & 1 else 'off'}
            host.machine.add_args(
                *_add_backend(name, device['size'], device['shared']),
                '-device', ','.join(['virtio-mem-pci'] + [
                    f'{key}={value}' for key, value in properties.items()]))
        host.machine.add_incoming()
        host.machine.launch()
        return host

    def _start_migration(self, target: Host, bandwidth: int,
                         return_path: int, postcopy: int = 0) -> None:
        for host in (self._host, target):
            host.machine.cmd('migrate-set-capabilities', capabilities=[
                {'capability': 'return-path', 'state': bool(return_path)},
                {'capability': 'postcopy-ram', 'state': bool(postcopy)}])
        self._machine.cmd('migrate-set-parameters',
                          max_bandwidth=bandwidth)
        self._machine.cmd(
            'migrate', uri=f'unix:{target.machine.directory}/migration')

    @staticmethod
    def _migration(host: Host) -> Dict[str, Any]:
        return dict(host.cmd('query-migrate'))

    def _wait_migration(self, *wanted: str) -> str:
        final = {'active', 'completed', 'failed', 'cancelled'} - set(wanted)

        def status() -> Optional[str]:
            info = self._migration(self._host)
            if info['status'] in final and 'active' in wanted:
                raise Disagreement(f'migration: {info}')
            if info['status'] in final - {'active'}:
                raise Disagreement(f'migration: {info}')
            return info['status'] if info['status'] in wanted else None
        return wait_until(f'the migration is {wanted}', status, timeout=120)

    def migrate(self, multiple: int, return_path: int,
                postcopy: int) -> str:
        """Start to migrate, and not come to an end."""
        self._target = self._incoming(multiple)
        self._postcopy = bool(postcopy)
        self._start_migration(self._target, SLOW, return_path, postcopy)
        self._wait_migration('active')
        return OK

    def _take_target(self) -> Host:
        assert self._target is not None
        target, self._target = self._target, None
        return target

    def migrate_finish(self) -> str:
        """Go on at the destination."""
        target, old = self._take_target(), self._host
        try:
            self._arrive(target)
        except Exception as error:
            # It depends on who is faster what the source knows.
            target.machine.shutdown()
            log = first_error(target.machine.get_log())
            raise Disagreement(f'the migration fails: {log}') from error
        target.machine.adopt(old.machine)
        target.drivers = old.drivers.copied(target.machine)
        self._host = target
        self._end(old)
        return OK

    def _arrive(self, target: Host) -> None:
        if self._postcopy:
            self._machine.cmd('migrate-start-postcopy')
        self._machine.cmd('migrate-set-parameters', max_bandwidth=FAST)
        self._wait_migration('completed')
        wait_until('the destination has all', lambda: (
            target.cmd('query-status')['status'] != 'inmigrate'
            and self._migration(target)['status'] == 'completed') or None)

    @staticmethod
    def _end(host: Host) -> None:
        host.machine.shutdown()
        if host.disk is not None:
            host.disk.backend.kill()

    def migrate_cancel(self) -> str:
        """Stay."""
        self._machine.cmd('migrate_cancel')
        self._wait_migration('cancelled')
        self._end(self._take_target())
        return OK

    def migrate_kill(self) -> str:
        """The destination dies."""
        self._end(self._take_target())
        return self._wait_migration('failed')

    def migrate_wrong(self, index: int, what: int, return_path: int) -> str:
        """Migrate to where a device has another configuration."""
        device = self._added[index]
        block = device['properties']['block-size']
        wrong: Dict[str, Any] = {'index': index}
        if what:
            wrong['size'] = device['size'] - 2 * block
        else:
            wrong['properties'] = {
                **device['properties'],
                'block-size': block // 2 if block > MIB else 2 * block}
        target = self._incoming(0, wrong)
        self._start_migration(target, FAST, return_path)
        status = self._wait_migration('failed', 'completed')
        wait_until('the destination gives up',
                   lambda: not target.machine.is_running() or None)
        self._end(target)
        if status == 'completed':
            # The source could not know.
            self._machine.cmd('cont')
        return 'failed'

    # Snapshots and dumps

    def _monitor(self, line: str) -> str:
        return self._machine.hmp(line).strip() or OK

    def savevm(self, name: int) -> str:
        """Take a snapshot."""
        outcome = self._monitor(f'savevm state{name}')
        self._saved[name] = self._host.drivers.copied(self._machine)
        return outcome

    def loadvm(self, name: int) -> str:
        """Go back to a snapshot."""
        outcome = self._monitor(f'loadvm state{name}')
        self._host.drivers = self._saved[name].copied(self._machine)
        return outcome

    def dump(self) -> str:
        """Write all memory to a file."""
        self._machine.cmd('dump-guest-memory', paging=False,
                          protocol=f'file:{self._host.dump}')
        return OK
