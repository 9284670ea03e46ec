"""
Read what dump-guest-memory writes.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, List, Tuple

PAGE = 4096


class DumpError(Exception):
    """A dump is not what its format says."""


@dataclass(frozen=True)
class Segment:
    """A range of guest-physical memory in an ELF dump."""
    address: int
    size: int
    # where its bytes are in the file, and how many of them
    offset: int
    file_size: int


class Elf:
    """An ELF core dump of a 64-bit machine."""
    _HEADER = struct.Struct('<16sHHIQQQIHHHHHH')
    _PROGRAM_HEADER = struct.Struct('<IIQQQQQQ')
    _CORE, _LOAD = 4, 1

    def __init__(self, path: Path) -> None:
        self._path = path
        self.segments: List[Segment] = []
        with path.open('rb') as dump:
            header = self._HEADER.unpack(dump.read(self._HEADER.size))
            ident, kind, position, number = (header[0], header[1], header[5],
                                             header[10])
            if ident[:6] != b'\x7fELF\x02\x01' or kind != self._CORE:
                raise DumpError(f'not a core dump: {ident!r}, type {kind}')
            dump.seek(position)
            for _ in range(number):
                kind, _flags, offset, _virtual, address, file_size, size, _ = (
                    self._PROGRAM_HEADER.unpack(
                        dump.read(self._PROGRAM_HEADER.size)))
                if kind == self._LOAD:
                    self.segments.append(Segment(address, size, offset,
                                                 file_size))

    def above(self, start: int) -> List[Tuple[int, int]]:
        """The ranges from an address on, with as many bytes of each."""
        return [(segment.address, segment.file_size)
                for segment in self.segments if segment.address >= start]

    def pages(self, start: int) -> Iterator[Tuple[int, bytes]]:
        """The pages from an address on, and what is in them."""
        with self._path.open('rb') as dump:
            for segment in self.segments:
                if segment.address < start:
                    continue
                dump.seek(segment.offset)
                for offset in range(0, segment.file_size, PAGE):
                    yield segment.address + offset, dump.read(PAGE)


class Kdump:
    """
    A dump in the format of kdump, compressed with zlib and flattened: a
    sequence of records that tell where in the dump they belong.
    """
    _FLATTENED = b'makedumpfile'
    _FLATTENED_HEADER = 4096
    _RECORD = struct.Struct('>qq')
    # block_size, sub_hdr_size, bitmap_blocks
    _SIZES = struct.Struct('<III')
    _SIZES_OFFSET = 428
    _DESCRIPTOR = struct.Struct('<QIIQ')
    _ZLIB = 1

    def __init__(self, path: Path) -> None:
        with path.open('rb') as flattened:
            self._dump = self._unflatten(flattened)
        if self._dump[:8] != b'KDUMP   ':
            raise DumpError(f'not a kdump: {bytes(self._dump[:8])!r}')
        block, sub_header, bitmaps = self._SIZES.unpack_from(
            self._dump, self._SIZES_OFFSET)
        first = (1 + sub_header) * block
        size = bitmaps * block // 2
        bitmap = self._dump[first:first + size]
        # Those of all pages, and of those that are dumped
        if self._dump[first + size:first + 2 * size] != bitmap:
            raise DumpError('pages are left out')
        descriptors = first + 2 * size
        # Where the descriptor of each page is
        self._pages: Dict[int, int] = {}
        for index, byte in enumerate(bitmap):
            for bit in range(8) if byte else ():
                if byte >> bit & 1:
                    self._pages[(index * 8 + bit) * PAGE] = (
                        descriptors + len(self._pages)
                        * self._DESCRIPTOR.size)

    @classmethod
    def _unflatten(cls, flattened: BinaryIO) -> bytearray:
        header = flattened.read(cls._FLATTENED_HEADER)
        if header[:len(cls._FLATTENED)] != cls._FLATTENED:
            raise DumpError(f'not flattened: {header[:16]!r}')
        dump = bytearray()
        while True:
            offset, size = cls._RECORD.unpack(
                flattened.read(cls._RECORD.size))
            if offset < 0:
                return dump
            if offset + size > len(dump):
                dump.extend(bytes(offset + size - len(dump)))
            dump[offset:offset + size] = flattened.read(size)

    def pages(self, start: int) -> Iterator[Tuple[int, bytes]]:
        """The pages from an address on, and what is in them."""
        for address, descriptor in self._pages.items():
            if address < start:
                continue
            offset, size, flags, _ = self._DESCRIPTOR.unpack_from(
                self._dump, descriptor)
            data = bytes(self._dump[offset:offset + size])
            yield address, (zlib.decompress(data) if flags & self._ZLIB
                            else data)
