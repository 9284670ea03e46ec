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
from dataclasses import dataclass, field, replace
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

from stress_memory import (OK, PAGE, REFUSED, Bar, Device, Dimm, Properties)
from stress_rings import DISK, OLD_DISK, Disk, Network, Place, Queues
from vm import MIB

# What virtio-mem and its driver count addresses with
ADDRESSES = 1 << 64
# Where a BAR is: nowhere, where nothing else is, or in a device of that number
OFF, ALONE, INSIDE = 0, 1, 2


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


@dataclass
class State:
    """What a snapshot takes."""
    devices: List[Device] = field(default_factory=list)
    dimms: List[Dimm] = field(default_factory=list)
    bars: List[Bar] = field(default_factory=lambda: [
        Bar(size=MIB, shared=True), Bar(size=4 * MIB)])
    # A disk whose backend is another process, if there is one
    disk: Optional[Disk] = None
    network: Optional[Network] = None

    def queued(self) -> List[Queues]:
        """The devices that have queues."""
        return [device for device in (self.disk, self.network)
                if device is not None]


class Request(NamedTuple):
    """A request in flight, which the disk answers when it is told to."""
    device: Device
    page: int
    stamp: int


class Setup(NamedTuple):
    """What a machine has from the start."""
    # Whether a listener takes notice of what is plugged
    listener: bool = False
    # Whether KVM tells of dirty pages by a ring, and QEMU can slow down vCPUs
    ring: bool = False


class Model(State):
    """A machine."""
    # pylint: disable=too-many-public-methods

    MAX_DEVICES = 3
    MAX_DIMMS = 2
    MOST_DUMPED = 64 * MIB
    MOST_REQUESTS = 4

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        # More than that the listener refuses.
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
        # What the disk holds
        self.requests: List[Request] = []
        # Whether the dirty rate is being measured, as far as we know
        self.measuring = False
        # Whether vCPUs are slowed down
        self.slowed = False

    def is_possible(self, step: Step) -> bool:
        """Whether a step has any meaning now."""
        can = getattr(self, f'can_{step.kind}', None)
        return can is None or bool(can(*step.arguments))

    def take(self, step: Step) -> str:
        """Take a step, and tell its outcome."""
        outcome = str(getattr(self, step.kind)(*step.arguments))
        before = self.disk is not None and self.disk.queues
        for device in self.queued():
            device.update(self.devices, self.bars)
        if self.disk is not None and self.disk.queues != before:
            # What was in flight was waited for.
            self._complete()
        return outcome

    def _complete(self) -> None:
        """The disk answers."""
        for request in self.requests:
            request.device.receive(request.page, request.stamp)
        self.requests = []

    def _halt(self) -> None:
        """Backends stop, which takes until they have answered."""
        self._complete()
        for device in self.queued():
            device.halt()

    def _run(self) -> None:
        for device in self.queued() if self.running else ():
            device.run(self.devices, self.bars)

    @property
    def plugged(self) -> int:
        """Bytes that are plugged."""
        return sum(device.size for device in self.devices)

    # What the driver does

    def _can_drive(self, index: int, *_: int) -> bool:
        return self.running and index < len(self.devices)

    can_plug = can_state = can_restart = can_malformed = _can_drive

    def _can_unplug(self, index: int, *_: int) -> bool:
        # It depends on who is faster what becomes of requests that are done
        # because their rings go.
        return self._can_drive(index) and not (
            self.disk is not None and self.disk.place == index
            and any(request.device is self.devices[index]
                    for request in self.requests))

    can_unplug = can_unplug_all = _can_unplug

    def plug(self, index: int, offset: int, blocks: int) -> str:
        """Request to plug blocks."""
        return self._plug(index, offset, blocks, None)

    def can_plug_taken(self, index: int, *_: int) -> bool:
        """Whether there is somebody who could refuse."""
        return self._can_drive(index) and self.network is not None

    def plug_taken(self, index: int, offset: int, blocks: int,
                   taken: int) -> str:
        """Likewise, while a backend takes so many regions and no more."""
        return self._plug(index, offset, blocks, taken)

    def _limit(self, device: Device, taken: Optional[int]) -> Optional[int]:
        """How many memslots of a device a backend takes that takes @taken."""
        assert taken is None or self.network is not None
        if (self.network is None or not self.network.sees
                or self.network.is_whole or not device.properties.shared):
            return None
        return taken

    def _plug(self, index: int, offset: int, blocks: int,
              taken: Optional[int]) -> str:
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
        limit = self._limit(device, taken)
        if (self.limit is not None and self.plugged + size > self.limit
                or limit is not None and device.missing(wanted) > limit):
            device.plug_refused(wanted)
            return 'BUSY'
        device.plug(wanted)
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
        return (index < len(self.devices) and self.devices[index].has(page)
                and page not in self._rings(index))

    can_write = _can_write

    def _rings(self, place: int) -> Set[int]:
        return {page for device in self.queued()
                for page in device.pages(place)}

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

    def can_bar_write(self, number: int, page: int, _stamp: int) -> bool:
        """Whether it shows."""
        return (self.bars[number].alone
                and not (number == 0 and page in self._rings(Place.BAR)))

    def bar_write(self, number: int, page: int, stamp: int) -> str:
        """Write to a page of a BAR."""
        self.bars[number].write(page, stamp)
        return OK

    def can_bar_move(self, _number: int, place: int, _offset: int) -> bool:
        """Whether there is such a place."""
        return self.running and place < INSIDE + len(self.devices)

    def bar_move(self, number: int, place: int, _offset: int) -> str:
        """Have a BAR somewhere, in a device so far from its start."""
        bar = self.bars[number]
        bar.enabled, bar.alone = place != OFF, place == ALONE
        return OK

    # The disk

    def _can_use(self, device: Optional[Queues], index: int, page: int,
                 stamp: int) -> bool:
        return (self.running and device is not None
                and (device.works or not device.started)
                and self._can_write(index, page, stamp)
                and self.devices[index].properties.shared)

    def _can_transfer(self, index: int, page: int, stamp: int) -> bool:
        return self._can_use(self.disk, index, page, stamp)

    can_disk_in = _can_transfer

    def can_disk_out(self, index: int, page: int, stamp: int) -> bool:
        """Whether the disk can read a page that holds what we know."""
        return (self._can_transfer(index, page, stamp)
                and page not in self.devices[index].unknown)

    def _start_disk(self) -> None:
        assert self.disk is not None
        if not self.disk.started:
            self.disk.start(Place.RAM, 0)
            if self.running:
                self.disk.run(self.devices, self.bars)

    def disk_in(self, index: int, page: int, stamp: int) -> str:
        """Have the disk's backend write to a page."""
        self._start_disk()
        return self.write(index, page, stamp)

    def disk_out(self, index: int, page: int, _stamp: int) -> str:
        """Have the disk's backend read from a page."""
        self._start_disk()
        return f'{self.devices[index].contents.get(page, 0)}'

    def can_disk_begin(self, index: int, page: int, stamp: int) -> bool:
        """Whether the disk can hold one more."""
        return (self._can_transfer(index, page, stamp)
                and self.disk is not None and self.disk.kind == DISK
                and len(self.requests) < self.MOST_REQUESTS
                and not any(request.device is self.devices[index]
                            and request.page == page
                            for request in self.requests))

    def disk_begin(self, index: int, page: int, stamp: int) -> str:
        """Have it be about to write to a page."""
        self._start_disk()
        self.requests.append(Request(self.devices[index], page, stamp))
        return OK

    def can_disk_end(self) -> bool:
        """Whether it holds any."""
        return bool(self.requests)

    def disk_end(self) -> str:
        """Have it write."""
        self._complete()
        return OK

    def can_disk_attach(self, _kind: int) -> bool:
        """Whether there is none."""
        return self.disk is None

    def disk_attach(self, kind: int) -> str:
        """Plug a disk."""
        if self.migrating:
            return REFUSED
        self.disk = Disk(kind)
        return OK

    def can_disk_detach(self) -> bool:
        """Whether there is one."""
        return self.disk is not None

    def disk_detach(self) -> str:
        """Unplug the disk."""
        if self.migrating:
            return REFUSED
        self._complete()
        self.disk = None
        return OK

    def can_disk_start(self, place: int, offset: int) -> bool:
        """Whether a driver can have its rings there, and has use for it."""
        if self.disk is None or not self._can_start(self.disk, place, offset):
            return False
        # The older daemon leaves if it is shown memory when rings are gone.
        if self.disk.kind == OLD_DISK and place != Place.RAM:
            return False
        # Without the backend, there is no disk.
        disk = Disk(self.disk.kind)
        disk.start(place, offset)
        disk.run(self.devices, self.bars)
        return disk.works

    def disk_start(self, place: int, offset: int) -> str:
        """Have a new driver, with rings in memory of which it has all."""
        assert self.disk is not None
        self._complete()
        self._start(self.disk, place, offset)
        return OK

    # The network device

    def can_network_attach(self, *_: int) -> bool:
        """Whether there is none."""
        return self.network is None

    def network_attach(self, limit: int, pairs: int) -> str:
        """Plug one."""
        if self.migrating:
            return REFUSED
        self.network = Network(limit, pairs)
        return OK

    def can_network_detach(self) -> bool:
        """Whether there is one."""
        return self.network is not None

    def network_detach(self) -> str:
        """Unplug it."""
        if self.migrating:
            return REFUSED
        self.network = None
        return OK

    def _can_start(self, device: Queues, place: int, offset: int) -> bool:
        if not self.running:
            return False
        pages = set(range(offset // PAGE * PAGE, offset + device.space, PAGE))
        for other in self.queued():
            if other is not device and pages & other.pages(place):
                return False
        if place < len(self.devices):
            return (all(self.devices[place].has(page) for page in pages)
                    and not any(request.device is self.devices[place]
                                and request.page in pages
                                for request in self.requests))
        if place == Place.BAR:
            return (self.bars[0].alone
                    and offset + device.space <= self.bars[0].size)
        return place == Place.RAM

    def _start(self, device: Queues, place: int, offset: int) -> None:
        device.start(place, offset)
        if place < len(self.devices):
            self.devices[place].lend(device.pages(place))
        elif place == Place.BAR:
            self.bars[0].lend(device.pages(place))
        device.run(self.devices, self.bars)

    def can_network_start(self, place: int, offset: int) -> bool:
        """Whether a driver can have its rings there."""
        return (self.network is not None
                and self._can_start(self.network, place, offset))

    def network_start(self, place: int, offset: int) -> str:
        """Have a new driver, with rings in memory of which it has all."""
        assert self.network is not None
        self._start(self.network, place, offset)
        return 'backend' if self.network.sees else 'no backend'

    def _can_loop(self, index: int, page: int, stamp: int) -> bool:
        return (self.network is not None and self.network.started
                and self._can_use(self.network, index, page, stamp))

    can_network_in = _can_loop

    def can_network_out(self, index: int, page: int, stamp: int) -> bool:
        """Whether the network can read a page that holds what we know."""
        return (self._can_loop(index, page, stamp)
                and page not in self.devices[index].unknown)

    def network_in(self, index: int, page: int, stamp: int) -> str:
        """Have the backend write to a page."""
        return self.write(index, page, stamp)

    def network_out(self, index: int, page: int, _stamp: int) -> str:
        """Have the backend read from a page."""
        return f'{self.devices[index].contents.get(page, 0)}'

    # What the host does

    def can_request(self, index: int, _size: int) -> bool:
        """Whether there is such a device."""
        return index < len(self.devices)

    def request(self, index: int, size: int) -> str:
        """Ask for another size of a device."""
        return self.devices[index].request(size)

    def can_request_taken(self, index: int, *_: int) -> bool:
        """Whether there is somebody who could refuse."""
        return self.can_request(index, 0) and self.network is not None

    def request_taken(self, index: int, size: int, taken: int) -> str:
        """Likewise, while a backend takes so many regions and no more."""
        device = self.devices[index]
        return device.request(size, self._limit(device, taken))

    def can_limit(self, _size: int) -> bool:
        """Whether there is somebody who could refuse."""
        return self.setup.listener

    def limit_listener(self, size: int) -> str:
        """Have the listener refuse more than that; 0: nothing."""
        self.limit = size or None
        return OK

    can_limit_listener = can_limit

    def stop(self) -> str:
        """Stop the machine."""
        if self.running:
            self._halt()
        self.running = False
        return OK

    def can_stop(self) -> bool:
        """Whether all would be there again later that is used now."""
        return not self.is_lost

    @property
    def is_lost(self) -> bool:
        """Whether a driver has lost memory that it uses."""
        # Without its rings, a disk does not start again.
        return (any(device.lost for device in self.queued())
                or self.disk is not None and self.disk.broken)

    def cont(self) -> str:
        """Have it run."""
        if not self.running:
            self.running = True
            self._run()
        self._has_images = True
        return OK

    def reset(self) -> str:
        """Reset the machine."""
        self._complete()
        for queued in self.queued():
            queued.stop()
        for bar in self.bars:
            bar.enabled = bar.alone = False
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
        for queued in self.queued():
            queued.forget(len(self.devices))
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
        return (self._is_idle() and not self.is_lost
                and not (postcopy and (self.disk or self.network)))

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
        return (self.migrating and (self.running or not self._postcopy)
                and not self.is_lost and self._would_start(
                    self.disk, self._arrived(), self.bars))

    def _arrived(self) -> List[Device]:
        """The devices as they are at the destination."""
        return [replace(device, multiple=bool(self._destination >> number & 1))
                for number, device in enumerate(self.devices)]

    @staticmethod
    def _would_start(disk: Optional[Disk], devices: List[Device],
                     bars: List[Bar]) -> bool:
        """Whether a disk finds its rings: else it is none any more."""
        if disk is None or not disk.started:
            return True
        disk = copy.deepcopy(disk)
        disk.run(devices, bars)
        return disk.works

    def migrate_finish(self) -> str:
        """Go on at the destination."""
        self.migrating = self.measuring = self.slowed = False
        self.limit = None
        self._halt()
        for device, arrived in zip(self.devices, self._arrived()):
            device.multiple, device.strays = arrived.multiple, {}
        self._has_images = self.running
        self._run()
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
        return (self._is_idle() and self.running and not self.requests
                and index < len(self.devices) and self._would_not_change)

    @property
    def _would_not_change(self) -> bool:
        """Whether no device with queues cares if the machine stops."""
        return all(device.works or not device.started
                   for device in self.queued())

    def migrate_wrong(self, _index: int, _what: int,
                      _return_path: int) -> str:
        """Migrate to where a device has another configuration."""
        return 'failed'

    # Snapshots and dumps

    def can_savevm(self, _name: int) -> bool:
        """Whether there is somewhere to put it."""
        return (self._is_idle() and self._has_images
                and not self.is_lost)

    def savevm(self, name: int) -> str:
        """Take a snapshot."""
        self._halt()
        self.snapshots[name] = State(*copy.deepcopy((
            self.devices, self.dimms, self.bars, self.disk, self.network)))
        self._run()
        return OK

    def can_loadvm(self, name: int) -> bool:
        """Whether there is such a snapshot, and it fits."""
        if (not self._is_idle() or not self._has_images
                or name not in self.snapshots):
            return False
        snapshot = self.snapshots[name]
        sizes = [dimm.size for dimm in snapshot.dimms]
        limits = [[(type(device), device.limit, device.count)
                   for device in state.queued()]
                  for state in (snapshot, self)]
        devices = [replace(saved, multiple=device.multiple) for saved, device
                   in zip(snapshot.devices, self.devices)]
        return (limits[0] == limits[1] and self.limit is None
                and self._would_start(snapshot.disk, devices, snapshot.bars)
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
            device.unknown, device.strays = saved.unknown, {}
        for bar, saved_bar in zip(self.bars, snapshot.bars):
            bar.enabled, bar.alone = saved_bar.enabled, saved_bar.alone
            bar.contents, bar.unknown = saved_bar.contents, saved_bar.unknown
        self.disk, self.network = snapshot.disk, snapshot.network
        for queued in self.queued():
            queued.halt()
        self._run()
        for dimm in self.dimms:
            dimm.known = False
        for dimm, saved_dimm in zip(self.dimms, snapshot.dimms):
            dimm.known = saved_dimm.known
            dimm.contents = saved_dimm.contents
            dimm.touched |= saved_dimm.touched
        return OK

    # How fast memory gets dirty

    def can_measure(self, _milliseconds: int) -> bool:
        """Whether that is not going on."""
        return not self.measuring

    def measure(self, _milliseconds: int) -> str:
        """Begin to measure, and go on in the meantime."""
        self.measuring = True
        return OK

    def can_measure_end(self) -> bool:
        """Whether that has begun."""
        return self.measuring

    def measure_end(self) -> str:
        """Wait for the end."""
        self.measuring = False
        return 'measured'

    def can_slow(self, _megabytes: int) -> bool:
        """Whether that can be done."""
        return self.setup.ring

    def slow(self, megabytes: int) -> str:
        """
        Slow down vCPUs that write to more memory than that in a second; 0:
        none any more.
        """
        self.slowed = megabytes > 0
        return OK

    def can_dump(self) -> bool:
        """Whether it is worth the while."""
        return (self._is_idle() and not self.dimms and not self.is_lost
                and self.plugged <= self.MOST_DUMPED)

    def dump(self) -> str:
        """Write all memory to a file, while nothing runs."""
        self._halt()
        self._run()
        return OK
