"""
Read the memory, and the description of all else, in a migration stream.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, Dict, Set

from writer import PAGE

# No more than that has to be there before memory.
EARLY = 64 * 1024
# Kinds of sections
START, PART, END, FULL, DESCRIPTION, CONFIGURATION, COMMAND, FOOTER = (
    1, 2, 3, 4, 6, 7, 8, 0x7e)
# What a record of the section "ram" holds
ZERO, MEM_SIZE, NORMAL, EOS, CONTINUE = 2, 4, 8, 16, 32


class Stream:
    """A stream that was written to a file, without any capability."""

    def __init__(self, path: Path) -> None:
        # Offsets of the pages that it holds, by the name of the memory
        self.pages: Dict[str, Set[int]] = {}
        # What the source said about the state of its devices
        self.description: Any = None
        self._block = ''
        with path.open('rb') as stream:
            self._stream: BinaryIO = stream
            self._read()

    def _number(self, size: int) -> int:
        return int.from_bytes(self._bytes(size), 'big')

    def _bytes(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError
        return data

    def _name(self) -> str:
        return self._bytes(self._number(1)).decode('ascii')

    def _read(self) -> None:
        assert self._bytes(8) == struct.pack('>4sI', b'QEVM', 3)
        kind = self._number(1)
        if kind == CONFIGURATION:
            self._bytes(self._number(4))
            kind = self._number(1)
        # Memory is sent first, all but what has to be there before it.
        while kind in (START, PART, END):
            section = self._bytes(4)
            if kind == START:
                assert self._name() == 'ram'
                self._bytes(8)
            self._memory()
            assert self._number(1) == FOOTER
            self._number(4)
            kind = self._number(1)
            if kind == FULL:
                kind = self._skip_early(section)
            while kind == COMMAND:
                self._number(2)
                self._bytes(self._number(2))
                kind = self._number(1)
        assert kind == FULL, kind
        rest = self._stream.read()
        start = rest.rindex(bytes([0, DESCRIPTION])) + 2
        size = int.from_bytes(rest[start:start + 4], 'big')
        text = rest[start + 4:start + 4 + size]
        self.description = json.loads(text)

    def _skip_early(self, memory: bytes) -> int:
        """
        Skip what stands between parts of memory, a section with a number;
        return the kind of what follows. No section tells its size.
        """
        start = self._stream.tell()
        rest = self._stream.read(EARLY)
        match = re.search(re.escape(bytes([FOOTER]) + rest[:4])
                          + b'[%c%c]' % (PART, END) + re.escape(memory), rest)
        self._stream.seek(start + (match.end() - 5 if match else 0))
        return self._number(1) if match else FULL

    def _memory(self) -> None:
        while True:
            record = self._number(8)
            flags, address = record % PAGE, record - record % PAGE
            if flags == EOS:
                return
            if flags == MEM_SIZE:
                while address:
                    self.pages[self._name()] = set()
                    address -= self._number(8)
                continue
            if not flags & CONTINUE:
                self._block = self._name()
            flags &= ~CONTINUE
            assert flags in (ZERO, NORMAL), flags
            self._bytes(1 if flags == ZERO else PAGE)
            self.pages[self._block].add(address)
