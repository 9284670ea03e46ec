"""
A QEMU process with memory devices, and how all that can be seen of it is
compared with a model.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import struct
import time
from pathlib import Path
from typing import (Any, BinaryIO, Dict, Iterator, List, NamedTuple, Optional,
                    Set, Tuple)

import mtree
from drivers import VirtioMem
from host_memory import all_files, files
from stress_devices import Bar, Disk, Drivers, NetworkDevice
from stress_memory import PAGE, Device, Memory
from stress_model import Model, Setup, Step
from stress_values import agree, pattern, read_stamp
from vhost_backends import TracedMachine, joined
from vm import MIB, Disagreement, wait_until

LISTENER = 'listener'
# PCI slots of the virtio-mem devices; others have other ones.
SLOTS = (5, 8, 9)
# Machine pc has no other memory there, if there is so little of it.
DEVICE_MEMORY = 1 << 32
NEEDS_RESET = 64
# The host allocates memory in pieces as large as that where it can.
HUGE_PAGE = 2 * MIB
# No other memory is as large.
FENCE = 3 * MIB

_KVM_CALL = re.compile(r'kvm_set_user_memory (.*Slot#\d+) flags=0x([0-9a-f]+) '
                       r'gpa=0x([0-9a-f]+) size=0x([0-9a-f]+) .*'
                       r'ret=(-?\d+)$')
KVM_MEM_LOG_DIRTY_PAGES = 1
_SMAPS = re.compile(r'([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) *(\S*)')
# What dirty pages are logged for: migration is another one.
DIRTY_RATE, DIRTY_LIMIT = 2, 4
_LOGGED = re.compile(rb'^global_dirty_changed bitmask (0x\d)$', re.M)


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

    def all(self) -> List[Tuple[int, int]]:
        """All memslots, addresses and sizes."""
        return sorted(slot[:2] for slot in self._slots.values())

    def without_log(self, first: int) -> List[int]:
        """
        Addresses from one on where KVM does not note what the guest writes.
        """
        return sorted(address for address, _, flags in self._slots.values()
                      if address >= first
                      and not flags & KVM_MEM_LOG_DIRTY_PAGES)


class Host:
    """A QEMU process with memory devices."""

    def __init__(self, machine: TracedMachine, setup: Setup) -> None:
        self.machine = machine
        machine.add_args('-trace', 'global_dirty_changed')
        self.bars = [Bar(machine, number, bar.size, bar.shared)
                     for number, bar in enumerate(Model(setup).bars)]
        self.kvm = (KVMView(machine.trace) if machine.accel.startswith('kvm')
                    else None)
        self.setup = setup
        self.disk: Optional[Disk] = None
        self.network: Optional[NetworkDevice] = None
        self.drivers = Drivers(machine)
        # Where BARs were at the last check
        self._bars: Dict[Bar, Optional[int]] = {}
        # How many memory regions of boot memory backends have, if known
        self._boot_regions: Optional[int] = None
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

    def fence(self) -> None:
        """
        Wait until QEMU has done what it has put off: that happens in order.
        """
        self.cmd('object-add', qom_type='memory-backend-memfd', id='fence',
                 size=FENCE, share=True, reserve=False)
        self.cmd('object-del', id='fence')
        pid = self.machine.get_pid() or 0
        wait_until('memory is freed', lambda: not files(pid, FENCE) or None,
                   timeout=30, pause=0.002)

    def is_logged(self, reason: int) -> bool:
        """Whether dirty pages are logged for a reason, or still are."""
        reasons = _LOGGED.findall(self.machine.trace.read_bytes())
        return bool(reasons and int(reasons[-1], 16) & reason)

    def measurement(self) -> str:
        """How far QEMU is with measuring the dirty rate."""
        return str(self.cmd('query-dirty-rate')['status'])

    def is_measuring(self) -> bool:
        """Whether it is measured now."""
        return self.measurement() == 'measuring'

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
        self._bars = {bar: bar.address for bar in self.bars}
        self._check_devices(model, devices)
        self._check_mapped(model, devices, step)
        self._check_bars(model, devices)
        self._check_memslots(model, devices)
        self._check_network(model, devices)
        for driver, queued in ((self.drivers.disk, model.disk),
                               (self.drivers.network, model.network)):
            if driver is not None and queued is not None:
                agree(f'slot {driver.slot}: whether it needs a reset',
                      bool(driver.status() & NEEDS_RESET), queued.broken)
        self._check_listener(model)
        self._check_contents(model, devices)
        self._check_footprint(model)
        if model.disk and model.running and not model.requests:
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
        is_logged = model.migrating or model.slowed
        if self.kvm:
            was_measuring = model.measuring and self.is_measuring()
            self.kvm.update()
            is_logged |= was_measuring and self.is_measuring()
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
        for bar in self.bars:
            self._check_bar_mapped(bar, flat, devices)
        if self.kvm and is_logged:
            agree('memslots of KVM without a log of dirty pages',
                  self.kvm.without_log(DEVICE_MEMORY), [])
        # A snapshot is loaded after a reset, which unplugs all.
        if self.kvm and step and step.kind != 'loadvm':
            agree('memslots removed from KVM that are needed',
                  sorted(self.kvm.removed & was_mapped & self._mapped), [])

    def _check_bar_mapped(self, bar: Bar, flat: str,
                          devices: Dict[str, Dict[str, Any]]) -> None:
        shown = self._shown(bar, devices)
        if shown is None:
            return
        agree(f'{bar.memory}: flat view',
              [(part.address, part.size, part.offset)
               for part in mtree.rendered(flat, bar.memory)], shown)
        if self.kvm and self._bars[bar] == bar.alone:
            agree(f'{bar.memory}: memslots of KVM',
                  self.kvm.within(bar.alone, bar.size),
                  [(bar.alone, bar.size)])

    def _shown(self, bar: Bar, devices: Dict[str, Dict[str, Any]]
               ) -> Optional[List[Tuple[int, int, int]]]:
        """
        The parts of a BAR that show: addresses, sizes, offsets. Where they
        are as other BARs are, this one or another one does.
        """
        first = self._bars[bar]
        if first is None:
            return []
        end = first + bar.size
        for other, address in self._bars.items():
            if (other is not bar and address is not None
                    and address < end and first < address + other.size):
                return None
        parts = [(first, end)]
        for device in devices.values():
            # As a memory device, which may be as large as that
            start = device.get('memaddr', device.get('addr'))
            size = device.get('max-size', device['size'])
            parts = [part for low, high in parts for part in (
                (low, min(high, start)), (max(low, start + size), high))
                if part[0] < part[1]]
        return [(low, high - low, low - first) for low, high in sorted(parts)]

    def _check_bars(self, model: Model,
                    devices: Dict[str, Dict[str, Any]]) -> None:
        for bar, expected in zip(self.bars, model.bars):
            agree(f'{bar.memory}: whether it is somewhere',
                  self._bars[bar] is not None, expected.enabled)
            agree(f'{bar.memory}: whether it is alone',
                  self._bars[bar] == bar.alone, expected.alone)
            if expected.alone:
                self._check_pages(bar.memory, bar.alone, expected)

    def _regions(self, model: Model, devices: Dict[str, Dict[str, Any]],
                 whole: bool) -> Optional[List[Tuple[int, int, int]]]:
        """
        The memory regions of a backend: addresses, sizes, offsets in their
        files. None if it depends on how BARs are one above the other.
        """
        regions = []
        for index, device in enumerate(model.devices):
            start = devices[f'vmem{index}']['memaddr']
            if device.properties.shared:
                regions += [(start + offset, size, offset) for offset, size
                            in ([(0, device.properties.size)] if whole
                                else device.mapped())]
        for index, dimm in enumerate(model.dimms):
            if dimm.shared:
                regions.append((devices[f'dimm{index}']['addr'], dimm.size,
                                0))
        for bar, expected in zip(self.bars, model.bars):
            shown = self._shown(bar, devices)
            if shown is None:
                return None
            if expected.shared:
                regions += shown
        return sorted(regions)

    def _check_memslots(self, model: Model,
                        devices: Dict[str, Dict[str, Any]]) -> None:
        info = self.cmd('query-memslots')
        required = sum(len(device.memslots()) for device in model.devices)
        used = sum(len(device.mapped()) for device in model.devices)
        agree('query-memslots',
              {key: info[key] for key in ('required', 'used', 'reserved')},
              {'required': required + len(model.dimms),
               'used': used + len(model.dimms),
               'reserved': required - used})
        expected = []
        if self.disk is not None:
            expected.append((self.disk.chardev, self.disk.backend.LIMIT,
                             self.disk.backend.is_whole()))
        if self.network is not None:
            expected.append((self.network.chardev,
                             self.network.backend.limit,
                             self.network.backend.is_whole()))
        agree('vhost backends in query-memslots',
              sorted((holder['id'], holder['limit'], holder['whole-devices'])
                     for holder in info['holders']
                     if holder['type'] == 'vhost'), sorted(expected))
        for holder in info['holders']:
            if holder['type'] == 'vhost':
                self._check_holder(model, devices, holder)
            elif self.kvm:
                agree('memslots reserved in KVM', holder['reserved'],
                      required - used)
                agree('memslots used in KVM', holder['used'],
                      len(self.kvm.all()))

    def _check_holder(self, model: Model, devices: Dict[str, Dict[str, Any]],
                      holder: Dict[str, Any]) -> None:
        whole = holder['whole-devices']
        shared = [device for device in model.devices
                  if device.properties.shared]
        agree(f'memory regions reserved in {holder["id"]}',
              holder['reserved'],
              0 if whole else sum(len(device.memslots())
                                  - len(device.mapped())
                                  for device in shared))
        expected = self._regions(model, devices, whole)
        if expected is None:
            return
        rest = holder['used'] - len(expected)
        if self._boot_regions is None:
            self._boot_regions = rest
        agree(f'memory regions used in {holder["id"]}', holder['used'],
              len(expected) + self._boot_regions)

    def _check_network(self, model: Model,
                       devices: Dict[str, Dict[str, Any]]) -> None:
        if self.network is None or model.network is None:
            return
        backend, expected = self.network.backend, model.network
        agree('queues of the network backend', backend.started(),
              expected.queues)
        agree('what the network backend was wrongly told',
              backend.violations, [])
        regions = self._regions(model, devices, expected.is_whole)
        if expected.sees and regions is not None:
            agree('memory regions of the network backend',
                  [(region.address, region.size, region.offset)
                   for region in backend.regions()
                   if region.address >= DEVICE_MEMORY], regions)

    def _check_listener(self, model: Model) -> None:
        if self.setup.listener:
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
        expected = {size: sorted(ranges) for size, ranges in shown.items()}

        # QEMU keeps memory that is gone as long as a backend has it that has
        # not been told, as its device is stopped.
        kept = ({region.inode for region in self.network.backend.regions()}
                if self.network and not any(self.network.backend.started())
                else set())

        def mappings() -> Dict[int, List[List[Tuple[int, int]]]]:
            opened = all_files(pid)
            found = {}
            for size, ranges in expected.items():
                files = {inode: joined((mapping.offset, mapping.size)
                                       for mapping in backend.mappings(inode))
                         for inode in opened.get(size, {})}
                for inode in kept & files.keys():
                    if len(files) > len(ranges) and not files[inode]:
                        del files[inode]
                found[size] = sorted(files.values())
            return found
        # QEMU closes files of memory that is gone in its own time, and the
        # backend unmaps what requests have used that were in flight.
        deadline = time.monotonic() + 10
        while mappings() != expected and time.monotonic() < deadline:
            time.sleep(0.02)
        agree('mappings of the backend, by size of files', mappings(),
              expected)

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
            self._check_pages(name, start, memory)

    def _check_pages(self, name: str, start: int, memory: Memory) -> None:
        for page, stamp in memory.expected().items():
            data = self.machine.read(start + page, PAGE)
            if data != pattern(stamp):
                raise Disagreement(
                    f'{name}: page {page:#x} holds {read_stamp(data)}, '
                    f'expected: {stamp}')

    def _check_footprint(self, model: Model) -> None:
        """Memory that is not plugged is not allocated either."""
        excess = self._excess(model)
        if excess:
            # QEMU discards in its own time what is left in memslots.
            self.fence()
            excess = self._excess(model)
        agree('memory that is allocated, by size of devices, and the most '
              'that is expected', excess, {})

    def _excess(self, model: Model) -> Dict[int, Tuple[int, int]]:
        footprint = Footprint(self.machine.get_pid() or 0)
        excess = {}
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
                    excess[size] = allocated, most
        return excess


def largest(device: Device) -> int:
    """How much memory the host may have allocated for a device."""
    # Blocks that share a huge page go together, whatever their state, and
    # what was around a block is left when it is unplugged.
    return (device.size + (len(device.strays) + device.lost) * HUGE_PAGE
            if device.block >= HUGE_PAGE else device.properties.size)


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
        self._files = all_files(pid)

    def shared(self, size: int) -> int:
        """Of files in memory that have a size."""
        return sum(self._files.get(size, {}).values())

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
