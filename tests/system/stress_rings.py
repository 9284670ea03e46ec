"""
Devices with vhost backends in the model of stress_model.py: where their rings
may be, and what becomes of them when the guest takes that memory away.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Iterator, List, Sequence, Set, Tuple

from drivers import Queue
from stress_memory import PAGE, Bar, Device
from vhost_backends import (MANY_REGIONS, OldStorageDaemon, StorageDaemon,
                            joined)

# Disks: one that does not hold requests, and can hold few memory regions, and
# one that does, and can hold many
OLD_DISK, DISK = 1, 2


class Place(IntEnum):
    """Where rings are; below that, the number is that of a device."""
    RAM = 8
    BAR = 9
    # The device is no more.
    NOWHERE = 10


@dataclass
class Queues:
    """The queues of a device, and its backend."""
    # How many regions the backend can hold
    limit: int
    count: int
    # Whether there is a driver, and where it has its rings
    started: bool = False
    place: int = Place.RAM
    offset: int = 0
    # Which queues are the backend's
    queues: List[bool] = field(default_factory=list)
    # Whether the driver has to reset the device
    broken: bool = False
    # Whether the driver has unplugged some of its rings
    lost: bool = False

    def __post_init__(self) -> None:
        self.halt()

    @property
    def is_whole(self) -> bool:
        """Whether the backend sees memory devices as a whole."""
        return self.limit < MANY_REGIONS

    @property
    def sees(self) -> bool:
        """Whether the backend is told of memory that comes and goes."""
        return any(self.queues)

    @property
    def works(self) -> bool:
        """Whether requests are answered."""
        return all(self.queues) and not self.broken and not self.lost

    @property
    def space(self) -> int:
        """How much room all rings take."""
        return self.count * Queue.SPACE

    def pages(self, place: int) -> Set[int]:
        """The pages of a place that have rings."""
        if not self.started or self.place != place:
            return set()
        end = self.offset + self.space
        return set(range(self.offset // PAGE * PAGE, end, PAGE))

    def _rings(self) -> Iterator[Sequence[Tuple[int, int]]]:
        for index in range(self.count):
            yield Queue.rings(self.offset + index * Queue.SPACE)

    def start(self, place: int, offset: int) -> None:
        """There is a new driver."""
        self.stop()
        self.started, self.place, self.offset = True, place, offset

    def stop(self) -> None:
        """There is no driver any more."""
        self.halt()
        self.started = self.broken = self.lost = False
        self.place, self.offset = Place.RAM, 0

    def halt(self) -> None:
        """The backend gives back its queues."""
        self.queues = [False] * self.count

    def run(self, devices: Sequence[Device], bars: Sequence[Bar]) -> None:
        """The backend is given the queues, all or none."""
        if self.started:
            usable = self._usable(devices, bars)
            self.queues = [all(usable)] * self.count

    def update(self, devices: Sequence[Device], bars: Sequence[Bar]) -> None:
        """The guest may have taken the memory of rings away."""
        if not self.started:
            return
        usable = self._usable(devices, bars, running=True)
        if any(was and not now for was, now in zip(self.queues, usable)):
            self.broken = True
        self.queues = [was and now for was, now in zip(self.queues, usable)]
        if self.place < len(devices):
            device = devices[self.place]
            if not self._is_smooth(device):
                self.broken = True
            lost = sum(not device.has(page)
                       for page in self.pages(self.place))
            if lost:
                self.lost = True
                device.lost = max(device.lost, lost)

    def forget(self, device: int) -> None:
        """A device is no more."""
        if self.place == device:
            self.place, self.lost = Place.NOWHERE, True

    def _usable(self, devices: Sequence[Device], bars: Sequence[Bar],
                running: bool = False) -> List[bool]:
        """Which queues are where the backend would look for them."""
        whole = self._ranges(devices, bars, running)
        return [all(any(start <= ring and ring + size <= start + length
                        for start, length in whole)
                    for ring, size in rings) for rings in self._rings()]

    def _ranges(self, devices: Sequence[Device], bars: Sequence[Bar],
                running: bool) -> List[Tuple[int, int]]:
        """Where all of a ring has to be, offsets and sizes."""
        if self.place == Place.RAM:
            return [(0, self.space)]
        if self.place == Place.BAR:
            bar = bars[0]
            return [(0, bar.size)] if bar.shared and bar.alone else []
        if self.place >= len(devices):
            return []
        device = devices[self.place]
        if not device.properties.shared:
            return []
        if not self.is_whole:
            return device.mapped()
        # The backend has all of it. QEMU has what is mapped, which it looks
        # at when it starts a queue.
        return ([(0, device.properties.size)] if running
                else joined(device.mapped()))

    def _is_smooth(self, device: Device) -> bool:
        """
        Whether each ring is in memory, or else in none: QEMU has no other way
        to look at it.
        """
        edges = {edge for offset, size in joined(device.mapped())
                 for edge in (offset, offset + size)}
        return not any(ring < edge < ring + size for rings in self._rings()
                       for ring, size in rings for edge in edges)


class Network(Queues):
    """
    A network device with pairs of queues. If QEMU cannot start all of them, it
    does without the backend, and nobody answers.
    """

    def __init__(self, limit: int, pairs: int) -> None:
        super().__init__(limit, 2 * pairs)
        self.pairs = pairs


class Disk(Queues):
    """A disk."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        super().__init__(*((StorageDaemon.LIMIT, 2) if kind == DISK
                           else (OldStorageDaemon.LIMIT, 1)))
