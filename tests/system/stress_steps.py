"""
Random steps for a machine, some of which make no sense on purpose.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import random
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from stress_memory import MEMSLOT, PAGE, Device
from stress_model import ADDRESSES, ALONE, INSIDE, OFF, Model, Setup, Step
from stress_rings import DISK, OLD_DISK, Place, Queues
from vhost_back_end import BASELINE
from vm import GIB, MIB

Arguments = Optional[Tuple[int, ...]]

# How often each kind of step is chosen where it is possible; each seed has
# its favourites.
WEIGHTS = {
    'plug': 30, 'plug_taken': 5, 'unplug': 16, 'unplug_all': 1, 'state': 6,
    'restart': 1, 'malformed': 1,
    'write': 20, 'dimm_write': 2, 'bar_write': 2, 'bar_move': 5,
    'disk_in': 8, 'disk_out': 4, 'disk_begin': 14, 'disk_end': 6,
    'disk_attach': 6, 'disk_detach': 1, 'disk_start': 5,
    'network_attach': 6, 'network_detach': 0.5, 'network_start': 8,
    'network_in': 8, 'network_out': 4,
    'measure': 2, 'measure_end': 1, 'slow': 2,
    'request': 10, 'request_taken': 2, 'limit_listener': 2,
    'stop': 2, 'cont': 1, 'reset': 1,
    'device_add': 2, 'device_remove': 2, 'dimm_add': 1.5, 'dimm_remove': 0.5,
    'migrate': 4, 'migrate_finish': 8, 'migrate_cancel': 2,
    'migrate_kill': 2, 'migrate_wrong': 1,
    'savevm': 2, 'loadvm': 3, 'dump': 1,
}
FACTORS = (0.25, 1, 1, 3)
# There is little else to do while the machine is stopped.
STOPPED_FACTORS = {'cont': 16}
# What was sent is to be sent again.
MIGRATING_FACTORS = {'write': 3, 'disk_in': 3, 'network_in': 3}
# A migration is slow, but comes to an end. After so many steps:
LONG = 30
LONG_FACTORS = {'migrate_finish': 20, 'migrate_cancel': 20}

BLOCKS = (MIB, 2 * MIB, 4 * MIB, 16 * MIB, 128 * MIB)
DIMMS = (128 * MIB, 192 * MIB)
# All that is plugged is read by a migration, which allocates it if shared.
MOST = 512 * MIB
MOST_SHARED = 384 * MIB
# A request has no room for more blocks.
MOST_BLOCKS = 0xffff
# All that was ever written is read after each step.
MOST_PAGES = 128
SNAPSHOTS = 2
# What backends of network devices can hold. There are never more regions than
# the first one of these.
LIMITS = (BASELINE, 32, 509, 509, 509)
MOST_PAIRS = 4
# How often a range of blocks comes from nowhere
WILD = 0.1


class Chooser:
    """Chooses steps, on and on: the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.setup = Setup(listener=self._random.random() < 0.5,
                           ring=self._random.random() < 0.25)
        self._weights = {kind: weight * self._random.choice(FACTORS)
                         for kind, weight in WEIGHTS.items()}
        self._stamp = 0
        # For how many steps there has been a migration
        self._migrating = 0
        self._arguments: Dict[str, Callable[[Model], Arguments]] = {
            'plug': self._plug, 'unplug': self._unplug, 'state': self._state,
            'plug_taken': self._taken(self._plug),
            'request_taken': self._taken(self._request),
            'unplug_all': self._index, 'restart': self._index,
            'malformed': self._index,
            'write': self._page, 'disk_in': self._page,
            'disk_out': self._page, 'dimm_write': self._dimm_page,
            'disk_begin': self._page, 'network_in': self._page,
            'network_out': self._page,
            'disk_attach': lambda _model: (
                self._random.choice((OLD_DISK, DISK, DISK)),),
            'network_attach': lambda _model: (
                self._random.choice(LIMITS),
                self._random.randrange(MOST_PAIRS) + 1),
            'network_start': lambda model: self._rings(model, model.network),
            'disk_start': lambda model: self._rings(model, model.disk),
            'bar_write': self._bar_page, 'bar_move': self._bar,
            'measure': lambda _model: (
                self._random.choice((1000, 2000, 5000)),),
            'slow': lambda _model: (self._random.choice((0, 1)),),
            'request': self._request, 'limit_listener': self._limit,
            'device_add': self._device, 'device_remove': self._removal,
            'dimm_add': self._dimm,
            'dimm_remove': lambda _model: (self._flip(),),
            'migrate': self._migrate, 'migrate_wrong': self._wrong,
            'savevm': self._save, 'loadvm': self._snapshot,
        }

    def __call__(self, model: Model) -> Step:
        """The next step."""
        weights = self._weights_now(model)
        while True:
            kind = 'device_add'
            if model.devices:
                kind = self._random.choices(list(weights),
                                            list(weights.values()))[0]
            choose = self._arguments.get(kind)
            arguments: Arguments = choose(model) if choose else ()
            if arguments is not None:
                step = Step(kind, arguments)
                if model.is_possible(step):
                    return step

    def _weights_now(self, model: Model) -> Dict[str, float]:
        weights = dict(self._weights)
        self._migrating = self._migrating + 1 if model.migrating else 0
        for applies, factors in ((not model.running, STOPPED_FACTORS),
                                 (model.migrating, MIGRATING_FACTORS),
                                 (self._migrating > LONG, LONG_FACTORS)):
            if applies:
                for kind, factor in factors.items():
                    weights[kind] *= factor
        return weights

    def _index(self, model: Model) -> Tuple[int]:
        return (self._random.randrange(len(model.devices)),)

    def _flip(self) -> int:
        return self._random.randrange(2)

    # Ranges of blocks

    def _plug(self, model: Model) -> Arguments:
        index, = self._index(model)
        device = model.devices[index]
        if self._is_pointless(device.requested - device.size):
            return None
        room = min(MOST - model.plugged, device.requested - device.size)
        if device.properties.shared:
            shared = sum(other.size for other in model.devices
                         if other.properties.shared)
            room = min(room, MOST_SHARED - shared)
        offset, blocks = self._range(device, room // device.block,
                                     plugged=False)
        # It may be that this is too much only for us.
        size = blocks * device.block
        if size > room and device.size + size <= device.requested:
            return None
        return index, offset, blocks

    def _unplug(self, model: Model) -> Arguments:
        index, = self._index(model)
        device = model.devices[index]
        if self._is_pointless(device.size):
            return None
        return (index, *self._range(device, MOST_BLOCKS, plugged=True))

    def _is_pointless(self, what_is_left: int) -> bool:
        return what_is_left <= 0 and self._random.random() > WILD / 2

    def _state(self, model: Model) -> Arguments:
        index, = self._index(model)
        device = model.devices[index]
        return (index, *self._range(device, MOST_BLOCKS,
                                    plugged=bool(self._flip())))

    def _range(self, device: Device, most: int,
               plugged: bool) -> Tuple[int, int]:
        """
        An offset and a number of blocks; more often than not, a driver in
        its right mind could name them.
        """
        usable = device.usable // device.block
        if not usable or self._random.random() < WILD:
            return self._wild_range(device)
        if plugged and device.plugged:
            first = self._random.choice(sorted(device.plugged))
        elif self._flip():
            first = self._random.randrange(usable)
        else:
            # Close to where a memslot ends and the next one begins
            memslot = self._random.randrange(-(-device.usable // MEMSLOT))
            first = memslot * MEMSLOT // device.block
            first -= self._random.randrange(min(4, first + 1))
        end = first
        length = self._length(most)
        while end < usable and end - first < length and (
                (end in device.plugged) is plugged):
            end += 1
        # Nothing but that, or a bit more
        blocks = max(end - first, 1) + (self._random.random() < WILD / 2)
        return first * device.block, blocks

    def _length(self, most: int) -> int:
        """A number of blocks, a small one more often than not."""
        if most < 1:
            return 1
        return min(self._random.choice((1, 2, 8, 64, most)), most)

    def _wild_range(self, device: Device) -> Tuple[int, int]:
        size = device.properties.size
        blocks = self._random.choice((0, 1, 2, self._length(MOST_BLOCKS),
                                      MOST_BLOCKS))
        offset = self._random.choice((
            self._random.randrange(size // device.block) * device.block,
            self._random.randrange(size // PAGE) * PAGE,
            device.usable, device.usable - device.block,
            size - device.block, size, 2 * size, -device.block,
            # The last block that has an address, if the device starts at 0
            ADDRESSES // 2))
        return offset, blocks

    # Pages

    def _page(self, model: Model) -> Arguments:
        index, = self._index(model)
        device = model.devices[index]
        if not device.plugged:
            return None
        written = sorted(device.contents)
        if len(written) >= MOST_PAGES or written and not self._flip():
            page = self._random.choice(written)
        else:
            block = self._random.choice(sorted(device.plugged))
            inside = device.block // PAGE
            page = PAGE * (block * inside + self._random.choice(
                (0, inside - 1, self._random.randrange(inside))))
        return index, page, self._next_stamp()

    def _dimm_page(self, model: Model) -> Arguments:
        if not model.dimms:
            return None
        index = self._random.randrange(len(model.dimms))
        pages = model.dimms[index].size // PAGE
        # A few only, so that they are written to again
        page = self._random.randrange(16) * (pages // 16)
        return index, page * PAGE, self._next_stamp()

    def _bar_page(self, model: Model) -> Arguments:
        number = self._random.randrange(len(model.bars))
        page = self._random.randrange(16) * (model.bars[number].size // 16)
        return number, page, self._next_stamp()

    def _next_stamp(self) -> int:
        self._stamp += 1
        return self._stamp

    # Rings and BARs

    def _rings(self, model: Model, queued: Optional[Queues]) -> Arguments:
        if queued is None:
            return None
        space = queued.space
        place = self._random.choice((*range(len(model.devices)), *range(
            len(model.devices)), Place.RAM, Place.BAR))
        if place == Place.RAM:
            return place, 0
        if place == Place.BAR:
            room = (model.bars[0].size - space) // PAGE
            return place, self._random.randrange(room + 1) * PAGE
        device = model.devices[place]
        if not device.plugged:
            return None
        block = self._random.choice(sorted(device.plugged))
        start = block * device.block
        # Anywhere, or where the next memslot begins in the middle of a ring
        if self._flip():
            return place, start + self._random.randrange(
                device.block // PAGE) * PAGE
        boundaries = [number * device.block for number in device.plugged
                      if number - 1 in device.plugged
                      and not number * device.block % MEMSLOT]
        if boundaries:
            start = self._random.choice(sorted(boundaries))
        cut = self._random.randrange(space // 16) * 16
        return place, max(start - cut, 0)

    def _bar(self, model: Model) -> Arguments:
        number = self._random.randrange(len(model.bars))
        place = self._random.choice((OFF, ALONE, ALONE, *range(
            INSIDE, INSIDE + len(model.devices))))
        offset = 0
        if place >= INSIDE:
            bar, device = model.bars[number], model.devices[place - INSIDE]
            offset = bar.size * self._random.randrange(
                device.properties.size // bar.size)
        return number, place, offset

    # The host

    def _taken(self, choose: Callable[[Model], Arguments]
               ) -> Callable[[Model], Arguments]:
        """Likewise, with a number of regions that a backend takes."""
        def chosen(model: Model) -> Arguments:
            arguments = choose(model)
            return arguments and (*arguments, self._random.choice((0, 0, 1)))
        return chosen

    def _request(self, model: Model) -> Arguments:
        index, = self._index(model)
        device = model.devices[index]
        size, block = device.properties.size, device.block
        some = self._random.randrange(size // block + 1) * block
        requested = self._random.choice((
            0, size, size, some, some, some, some, min(some, MOST),
            min(some, MOST), device.size, self._random.choice((
                size + block, some + PAGE, ADDRESSES - block))))
        return index, requested

    def _limit(self, model: Model) -> Arguments:
        if model.limit is not None and self._likely():
            return (0,)
        return (model.plugged + self._random.randrange(64) * MIB,)

    def _device(self, _model: Model) -> Arguments:
        block = self._random.choice(BLOCKS)
        size = self._random.choice((GIB // 2, *(
            GIB * number for number in (1, 2, 3, 4, 6, 12))))
        if self._flip():
            # Twice the block size divides it, so there are other block sizes.
            size += 2 * block * self._random.randrange(GIB // (2 * block))
        return size, block, self._flip(), self._flip(), self._likely()

    def _removal(self, model: Model) -> Arguments:
        device = model.devices[-1]
        return None if self._is_pointless(
            not (device.plugged or device.requested)) else ()

    def _likely(self) -> int:
        return int(self._random.random() < 0.75)

    def _dimm(self, _model: Model) -> Arguments:
        return self._random.choice(DIMMS), self._flip()

    def _migrate(self, model: Model) -> Arguments:
        bits = [self._likely() << number
                for number in range(len(model.devices))]
        return sum(bits), self._flip(), int(self._random.random() < 0.3)

    def _wrong(self, model: Model) -> Arguments:
        return (*self._index(model), self._flip(), self._flip())

    def _save(self, model: Model) -> Arguments:
        return (None if self._is_pointless(model.plugged)
                else self._snapshot(model))

    def _snapshot(self, _model: Model) -> Tuple[int]:
        return (self._random.randrange(SNAPSHOTS),)


def limited(choose: Callable[[Model], Step],
            most: int) -> Callable[[Model], Optional[Step]]:
    """Chooses no more than so many steps."""
    rest = iter(range(most))
    return lambda model: (None if next(rest, None) is None
                          else choose(model))


# Steps of which the first argument is the index of a device
INDEXED = {'plug', 'plug_taken', 'unplug', 'unplug_all', 'state', 'restart',
           'malformed', 'write', 'disk_in', 'disk_out', 'disk_begin',
           'network_in', 'network_out', 'request', 'request_taken',
           'migrate_wrong'}


def without_device(steps: Sequence[Step], index: int) -> List[Step]:
    """
    The steps that are left to take without one of the devices; all of them if
    that cannot be told.
    """
    left = []
    if any(step.kind == 'device_remove' for step in steps):
        # Which device one has removed depends on the outcome of others.
        return list(steps)
    devices = 0
    for step in steps:
        first, rest = step.arguments[:1], step.arguments[1:]
        if step.kind == 'device_add':
            devices += 1
            if devices == index + 1:
                continue
        elif step.kind in INDEXED and first[0] == index:
            continue
        elif step.kind in INDEXED and first[0] > index:
            first = (first[0] - 1,)
        elif (step.kind in ('network_start', 'disk_start')
              and first[0] < Place.RAM):
            if first[0] == index:
                continue
            first = (first[0] - (first[0] > index),)
        elif step.kind == 'bar_move' and rest[0] >= INSIDE:
            if rest[0] == INSIDE + index:
                continue
            rest = (rest[0] - (rest[0] > INSIDE + index), *rest[1:])
        elif step.kind == 'migrate':
            below = (1 << index) - 1
            first = (first[0] & below | first[0] >> 1 & ~below,)
        left.append(Step(step.kind, first + rest))
    return left


def plainer(step: Step) -> Optional[Step]:
    """A step that does much the same, with less."""
    if step.kind in ('plug_taken', 'request_taken'):
        return Step(step.kind.removesuffix('_taken'), step.arguments[:-1])
    if step.kind in ('disk_in', 'network_in'):
        return Step('write', step.arguments)
    return None


def replay(steps: Sequence[Step]) -> Callable[[Model], Optional[Step]]:
    """Chooses these steps, one after the other."""
    rest = iter(steps)
    return lambda _model: next(rest, None)
