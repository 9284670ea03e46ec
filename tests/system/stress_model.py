"""
A model of a machine with memory devices: what the virtio specification
(5.15) says and what QEMU adds, as plain as it can be.

A machine offers steps, which are methods with a name from STEPS and integers
as arguments; each returns its outcome, a word or two. The model takes a step
by changing sets and numbers; a real machine that offers the same steps has to
come to the same outcomes.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import copy
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

from vm import GIB, MIB

PAGE = 4096
# What QEMU adds to the requested size to get the usable region
USABLE_EXTENT = 256 * MIB
# The smallest memslot of several; here there are always enough for it.
MEMSLOT = GIB
# What virtio-mem and its driver count addresses with
ADDRESSES = 1 << 64

OK = 'ok'
REFUSED = 'refused'


class Step(NamedTuple):
    """What is done to a machine."""
    kind: str
    arguments: Tuple[int, ...] = ()

    def __str__(self) -> str:
        return ' '.join([self.kind] + [
            hex(value) if value >= PAGE else str(value)
            for value in self.arguments])

    @classmethod
    def parse(cls, text: str) -> 'Step':
        """The inverse of str()."""
        kind, *arguments = text.split()
        return cls(kind, tuple(int(value, 0) for value in arguments))


@dataclass(frozen=True)
class Properties:
    """What a virtio-mem device is created with, and keeps."""
    size: int
    block: int
    # Whether the driver leaves unplugged memory alone
    inaccessible: bool
    # Whether other processes can have the memory
    shared: bool


@dataclass
class Memory:
    """Memory, by page: what was written last; all else is zero."""
    # The offset of a page, and what it holds: a number other than zero
    contents: Dict[int, int] = field(default_factory=dict)
    # Whatever was written at any time
    touched: Set[int] = field(default_factory=set)

    def write(self, page: int, stamp: int) -> None:
        """Write to a page."""
        self.contents[page] = stamp
        self.touched.add(page)

    def has(self, _page: int) -> bool:
        """Whether there is memory."""
        return True

    def expected(self) -> Dict[int, int]:
        """What pages hold that it is worth to look at."""
        return {page: self.contents.get(page, 0) for page in self.touched
                if self.has(page)}


@dataclass
class Dimm(Memory):
    """Memory that is there as a whole."""
    size: int = 0
    # Whether other processes can have it
    shared: bool = False
    # Whether ACPI knows of it: not if it was added after a snapshot.
    known: bool = True


@dataclass
class Device(Memory):
    """A virtio-mem device."""
    properties: Properties = Properties(0, 1, True, True)
    # Whether it may be mapped in several memslots
    multiple: bool = False
    requested: int = 0
    usable: int = 0
    # Numbers of blocks
    plugged: Set[int] = field(default_factory=set)

    @property
    def block(self) -> int:
        """Size of a block."""
        return self.properties.block

    @property
    def size(self) -> int:
        """Bytes that are plugged."""
        return len(self.plugged) * self.block

    def has(self, page: int) -> bool:
        return page // self.block in self.plugged

    def expected(self) -> Dict[int, int]:
        expected = super().expected()
        if not self.properties.inaccessible and not self.properties.shared:
            # Unplugged memory may be read. It is zero, and takes no memory.
            expected.update({page: 0 for page in self.touched
                             if page < self.usable and not self.has(page)})
        return expected

    def _wanted_usable(self) -> int:
        if not self.requested:
            return 0
        wanted = min(self.requested + USABLE_EXTENT, self.properties.size)
        return -(-wanted // self.block) * self.block

    def request(self, size: int) -> str:
        """The host asks the driver for another size."""
        if size % self.block or size > self.properties.size:
            return REFUSED
        self.requested = size
        # It only shrinks while nothing is plugged.
        self.usable = max(self.usable, self._wanted_usable())
        return OK

    def range(self, offset: int, blocks: int) -> Optional[Set[int]]:
        """The blocks of a range that the driver may name."""
        first, rest = divmod(offset, self.block)
        if (rest or blocks == 0 or offset < 0
                or offset + blocks * self.block > self.usable):
            return None
        return set(range(first, first + blocks))

    def unplug_all(self) -> None:
        """Unplug all."""
        self.forget(self.plugged)
        self.usable = self._wanted_usable()

    def forget(self, blocks: Set[int]) -> None:
        """Unplug blocks."""
        self.contents = {page: stamp for page, stamp in self.contents.items()
                         if page // self.block not in blocks}
        self.plugged = self.plugged - blocks

    def memslots(self) -> List[Tuple[int, int]]:
        """All of its memslots, offset and size."""
        size = self.properties.size
        step = max(MEMSLOT, self.block) if self.multiple else size
        return [(offset, min(step, size - offset))
                for offset in range(0, size, step)]

    def is_mapped(self, offset: int, size: int) -> bool:
        """Whether a memslot is mapped: here is the rule."""
        if not self.multiple:
            return True
        if not self.properties.inaccessible:
            return offset < self.usable
        return any(offset <= block * self.block < offset + size
                   for block in self.plugged)

    def mapped(self) -> List[Tuple[int, int]]:
        """The memslots that are mapped, offset and size."""
        return [memslot for memslot in self.memslots()
                if self.is_mapped(*memslot)]


@dataclass
class State:
    """What a snapshot takes."""
    devices: List[Device] = field(default_factory=list)
    dimms: List[Dimm] = field(default_factory=list)
    # Whether there is a disk whose backend is another process
    disk: bool = False


class Model(State):
    """A machine."""
    # pylint: disable=too-many-public-methods

    MAX_DEVICES = 3
    MAX_DIMMS = 2
    MOST_DUMPED = 64 * MIB

    def __init__(self, listener: bool) -> None:
        super().__init__()
        # Whether a listener takes notice of what is plugged
        self.listener = listener
        # More than that it refuses.
        self.limit: Optional[int] = None
        self.running = True
        self.migrating = False
        # Whether it has taken over its images: a destination does so when it
        # runs.
        self._has_images = True
        self.snapshots: Dict[int, State] = {}
        # Which devices have several memslots at the destination: a bit each
        self._destination = 0
        self._postcopy = False

    def is_possible(self, step: Step) -> bool:
        """Whether a step has any meaning now."""
        can = getattr(self, f'can_{step.kind}', None)
        return can is None or bool(can(*step.arguments))

    def take(self, step: Step) -> str:
        """Take a step, and tell its outcome."""
        return str(getattr(self, step.kind)(*step.arguments))

    @property
    def plugged(self) -> int:
        """Bytes that are plugged."""
        return sum(device.size for device in self.devices)

    # What the driver does

    def _can_drive(self, index: int, *_: int) -> bool:
        return self.running and index < len(self.devices)

    can_plug = can_unplug = can_unplug_all = can_state = _can_drive
    can_restart = can_malformed = _can_drive

    def plug(self, index: int, offset: int, blocks: int) -> str:
        """Request to plug blocks."""
        device = self.devices[index]
        wanted = device.range(offset, blocks)
        if wanted is None:
            return 'ERROR'
        size = blocks * device.block
        if device.size + size > device.requested:
            return 'NACK'
        if wanted & device.plugged:
            return 'ERROR'
        if self.migrating:
            return 'BUSY'
        if self.limit is not None and self.plugged + size > self.limit:
            return 'BUSY'
        device.plugged = device.plugged | wanted
        return 'ACK'

    def unplug(self, index: int, offset: int, blocks: int) -> str:
        """Request to unplug blocks."""
        device = self.devices[index]
        wanted = device.range(offset, blocks)
        if wanted is None or not wanted <= device.plugged:
            return 'ERROR'
        if self.migrating:
            return 'BUSY'
        device.forget(wanted)
        return 'ACK'

    def unplug_all(self, index: int) -> str:
        """Request to unplug all."""
        device = self.devices[index]
        # Where nothing is, only the usable region shrinks.
        if self.migrating and device.plugged:
            return 'BUSY'
        device.unplug_all()
        return 'ACK'

    def state(self, index: int, offset: int, blocks: int) -> str:
        """Request to tell the state of blocks."""
        device = self.devices[index]
        wanted = device.range(offset, blocks)
        if wanted is None:
            return 'ERROR'
        if wanted <= device.plugged:
            return 'ACK plugged'
        return 'ACK mixed' if wanted & device.plugged else 'ACK unplugged'

    def restart(self, _index: int) -> str:
        """Have a new driver; the memory stays."""
        return OK

    def malformed(self, _index: int) -> str:
        """A request that is none, which breaks the device for its driver."""
        return 'broken'

    # What is done with memory

    def _can_write(self, index: int, page: int, _stamp: int) -> bool:
        return index < len(self.devices) and self.devices[index].has(page)

    can_write = _can_write

    def write(self, index: int, page: int, stamp: int) -> str:
        """Write to a page of a device."""
        self.devices[index].write(page, stamp)
        return OK

    def can_dimm_write(self, index: int, _page: int, _stamp: int) -> bool:
        """Whether there is such a DIMM."""
        return index < len(self.dimms)

    def dimm_write(self, index: int, page: int, stamp: int) -> str:
        """Write to a page of a DIMM."""
        self.dimms[index].write(page, stamp)
        return OK

    # The disk

    def _can_transfer(self, index: int, page: int, stamp: int) -> bool:
        return (self.running and self.disk
                and self._can_write(index, page, stamp)
                and self.devices[index].properties.shared)

    can_disk_in = can_disk_out = _can_transfer

    def disk_in(self, index: int, page: int, stamp: int) -> str:
        """Have the disk's backend write to a page."""
        return self.write(index, page, stamp)

    def disk_out(self, index: int, page: int, _stamp: int) -> str:
        """Have the disk's backend read from a page."""
        return f'{self.devices[index].contents.get(page, 0)}'

    def can_disk_attach(self) -> bool:
        """Whether there is none."""
        return not self.disk

    def disk_attach(self) -> str:
        """Plug the disk."""
        if self.migrating:
            return REFUSED
        self.disk = True
        return OK

    def can_disk_detach(self) -> bool:
        """Whether there is one."""
        return self.disk

    def disk_detach(self) -> str:
        """Unplug the disk."""
        if self.migrating:
            return REFUSED
        self.disk = False
        return OK

    # What the host does

    def can_request(self, index: int, _size: int) -> bool:
        """Whether there is such a device."""
        return index < len(self.devices)

    def request(self, index: int, size: int) -> str:
        """Ask for another size of a device."""
        return self.devices[index].request(size)

    def can_limit(self, _size: int) -> bool:
        """Whether there is somebody who could refuse."""
        return self.listener

    def limit_listener(self, size: int) -> str:
        """Have the listener refuse more than that; 0: nothing."""
        self.limit = size or None
        return OK

    can_limit_listener = can_limit

    def stop(self) -> str:
        """Stop the machine."""
        self.running = False
        return OK

    def cont(self) -> str:
        """Have it run."""
        self.running = True
        self._has_images = True
        return OK

    def reset(self) -> str:
        """Reset the machine."""
        for device in self.devices:
            if not (self.migrating and device.plugged):
                device.unplug_all()
        return OK

    def can_device_add(self, *_: int) -> bool:
        """Whether there is room."""
        return len(self.devices) < self.MAX_DEVICES

    def device_add(self, size: int, block: int, inaccessible: int,
                   shared: int, multiple: int) -> str:
        """Add a virtio-mem device."""
        if self.migrating:
            return REFUSED
        self.devices.append(Device(
            properties=Properties(size, block, bool(inaccessible),
                                  bool(shared)),
            multiple=bool(multiple)))
        return OK

    def can_device_remove(self) -> bool:
        """Whether there is one, and a driver that takes part."""
        return bool(self.devices) and self.running

    def device_remove(self) -> str:
        """Unplug the virtio-mem device that was added last."""
        device = self.devices[-1]
        if (self.migrating or not device.properties.inaccessible
                or device.plugged or device.requested):
            return REFUSED
        # Another one would have another address.
        self.snapshots = {
            name: snapshot for name, snapshot in self.snapshots.items()
            if len(snapshot.devices) < len(self.devices)}
        self.devices.pop()
        return OK

    def can_dimm_add(self, *_: int) -> bool:
        """Whether there is room."""
        return len(self.dimms) < self.MAX_DIMMS

    def dimm_add(self, size: int, shared: int) -> str:
        """Add a DIMM."""
        if self.migrating:
            return REFUSED
        self.dimms.append(Dimm(size=size, shared=bool(shared)))
        return OK

    def can_dimm_remove(self, _wait: int) -> bool:
        """Whether there is one that the guest can find."""
        return bool(self.dimms) and self.dimms[-1].known

    def dimm_remove(self, _wait: int) -> str:
        """Unplug the DIMM that was added last, and wait until it is freed."""
        if self.migrating:
            return REFUSED
        self.dimms.pop()
        return OK

    # Migration

    def _is_idle(self, *_: int) -> bool:
        return not self.migrating

    def _is_migrating(self) -> bool:
        return self.migrating

    can_migrate_cancel = can_migrate_kill = _is_migrating

    def can_migrate(self, _multiple: int, _return_path: int,
                    postcopy: int) -> bool:
        """Whether nothing is in the way."""
        return self._is_idle() and not (postcopy and self.disk)

    def migrate(self, multiple: int, _return_path: int,
                postcopy: int) -> str:
        """Start to migrate, and not come to an end."""
        self.migrating = True
        self._postcopy = bool(postcopy)
        self._destination = multiple
        return OK

    def can_migrate_finish(self) -> bool:
        """Whether QEMU tells the destination whether to run."""
        # After postcopy, QEMU has a machine run that was stopped.
        return self.migrating and (self.running or not self._postcopy)

    def migrate_finish(self) -> str:
        """Go on at the destination."""
        self.migrating = False
        self.limit = None
        for number, device in enumerate(self.devices):
            device.multiple = bool(self._destination >> number & 1)
        self._has_images = self.running
        return OK

    def migrate_cancel(self) -> str:
        """Stay."""
        self.migrating = False
        return OK

    def migrate_kill(self) -> str:
        """The destination dies."""
        self.migrating = False
        return 'failed'

    def can_migrate_wrong(self, index: int, *_: int) -> bool:
        """Whether there is such a device, and only the driver has to wait."""
        return (self._is_idle() and self.running
                and index < len(self.devices))

    def migrate_wrong(self, _index: int, _what: int,
                      _return_path: int) -> str:
        """Migrate to where a device has another configuration."""
        return 'failed'

    # Snapshots and dumps

    def can_savevm(self, _name: int) -> bool:
        """Whether there is somewhere to put it."""
        return self._is_idle() and self._has_images

    def savevm(self, name: int) -> str:
        """Take a snapshot."""
        self.snapshots[name] = State(copy.deepcopy(self.devices),
                                     copy.deepcopy(self.dimms), self.disk)
        return OK

    def can_loadvm(self, name: int) -> bool:
        """Whether there is such a snapshot, and it fits."""
        if not self.can_savevm(name) or name not in self.snapshots:
            return False
        snapshot = self.snapshots[name]
        sizes = [dimm.size for dimm in snapshot.dimms]
        return (snapshot.disk == self.disk and self.limit is None
                and sizes == [dimm.size for dimm in self.dimms][:len(sizes)])

    def loadvm(self, name: int) -> str:
        """
        Go back to a snapshot. What was added later stays, and is reset.
        """
        self.reset()
        snapshot = copy.deepcopy(self.snapshots[name])
        for device, saved in zip(self.devices, snapshot.devices):
            device.requested, device.usable = saved.requested, saved.usable
            device.plugged, device.contents = saved.plugged, saved.contents
        for dimm in self.dimms:
            dimm.known = False
        for dimm, saved_dimm in zip(self.dimms, snapshot.dimms):
            dimm.known = saved_dimm.known
            dimm.contents = saved_dimm.contents
            dimm.touched |= saved_dimm.touched
        return OK

    def can_dump(self) -> bool:
        """Whether it is worth the while."""
        return (self._is_idle() and not self.dimms
                and self.plugged <= self.MOST_DUMPED)

    def dump(self) -> str:
        """Write all memory to a file."""
        return OK
