"""
The memory of a machine in the model of stress_model.py: memory devices, and
others.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Optional, Set, Tuple

from vm import GIB, MIB

PAGE = 4096
# What QEMU adds to the requested size to get the usable region
USABLE_EXTENT = 256 * MIB
# The smallest memslot of several; here there are always enough for it.
MEMSLOT = GIB

OK = 'ok'
REFUSED = 'refused'


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
    # Pages that others write to
    unknown: Set[int] = field(default_factory=set)

    def write(self, page: int, stamp: int) -> None:
        """Write to a page."""
        self.contents[page] = stamp
        self.touched.add(page)
        self.unknown.discard(page)

    def lend(self, pages: Iterable[int]) -> None:
        """Have others write to pages, whatever that is."""
        for page in pages:
            self.contents.pop(page, None)
            self.unknown.add(page)

    def has(self, _page: int) -> bool:
        """Whether there is memory."""
        return True

    def expected(self) -> Dict[int, int]:
        """What pages hold that it is worth to look at."""
        return {page: self.contents.get(page, 0)
                for page in self.touched - self.unknown if self.has(page)}


@dataclass
class Dimm(Memory):
    """Memory that is there as a whole."""
    size: int = 0
    # Whether other processes can have it
    shared: bool = False
    # Whether ACPI knows of it: not if it was added after a snapshot.
    known: bool = True


@dataclass
class Bar(Memory):
    """The RAM of a PCI device, which the guest has somewhere."""
    size: int = 0
    # Whether other processes can have it
    shared: bool = False
    # Whether the guest has it somewhere, and nothing else there
    enabled: bool = False
    alone: bool = False


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
    # What was written to unplugged memory after that was discarded: it shows
    # when the memory is plugged.
    strays: Dict[int, int] = field(default_factory=dict)
    # How many pages of unplugged memory QEMU looks at to find rings there
    lost: int = 0

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

    def request(self, size: int, taken: Optional[int] = None) -> str:
        """
        The host asks the driver for another size. No more than so many
        memslots can be mapped for that.
        """
        if size % self.block or size > self.properties.size:
            return REFUSED
        requested, usable, before = self.requested, self.usable, self.mapped()
        self.requested = size
        # It only shrinks while nothing is plugged.
        self.usable = max(usable, self._wanted_usable())
        added = [memslot for memslot in self.mapped()
                 if memslot not in before]
        if taken is not None and len(added) > taken:
            self.requested, self.usable = requested, usable
            self._discard_unmapped(added)
            return REFUSED
        return OK

    def missing(self, blocks: Set[int]) -> int:
        """How many memslots have to be mapped to plug blocks."""
        return len(set(self._memslots_of(blocks)) - set(self.mapped()))

    def range(self, offset: int, blocks: int) -> Optional[Set[int]]:
        """The blocks of a range that the driver may name."""
        first, rest = divmod(offset, self.block)
        if (rest or blocks == 0 or offset < 0
                or offset + blocks * self.block > self.usable):
            return None
        return set(range(first, first + blocks))

    def plug(self, blocks: Set[int]) -> None:
        """Plug blocks."""
        self.plugged = self.plugged | blocks
        for page in [page for page in self.strays if self.has(page)]:
            self.write(page, self.strays.pop(page))

    def plug_refused(self, blocks: Set[int]) -> None:
        """Blocks are not plugged because somebody cannot have it."""
        self.strays = {page: stamp for page, stamp in self.strays.items()
                       if page // self.block not in blocks}
        self._discard_unmapped(self._memslots_of(blocks))

    def unplug_all(self) -> None:
        """Unplug all."""
        if self.plugged:
            self.strays = {}
        self.forget(self.plugged)
        before = self.mapped()
        self.usable = self._wanted_usable()
        self._discard_unmapped(before)

    def forget(self, blocks: Set[int]) -> None:
        """Unplug blocks."""
        self.contents = {page: stamp for page, stamp in self.contents.items()
                         if page // self.block not in blocks}
        self.unknown = {page for page in self.unknown
                        if page // self.block not in blocks}
        self.plugged = self.plugged - blocks
        self._discard_unmapped(self._memslots_of(blocks))

    def _memslots_of(self, blocks: Set[int]) -> List[Tuple[int, int]]:
        memslots = self.memslots()
        largest = memslots[0][1]
        return [memslots[index] for index in
                {block * self.block // largest for block in blocks}]

    def _discard_unmapped(self, memslots: List[Tuple[int, int]]) -> None:
        for offset, size in set(memslots) - set(self.mapped()):
            self.strays = {page: stamp for page, stamp in self.strays.items()
                           if not offset <= page < offset + size}

    def receive(self, page: int, stamp: int) -> None:
        """A backend writes to a page, plugged or not."""
        if self.has(page):
            self.write(page, stamp)
        else:
            self.strays[page] = stamp

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
