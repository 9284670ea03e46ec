"""
KVM's ioctls as a QEMU calls them, and how long they take.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import functools
import mmap
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple

SOURCE = Path(__file__).with_suffix('.c')
# As ioctls.c has them
RECORD = struct.Struct('<6Q')
MAX_RECORDS = 1 << 16
# Numbers of KVM's ioctls: memslots, then dirty logs
SET_MEMSLOT = {0x46, 0x49}
FETCH_LOG = 0x42
DIRTY_LOG = {FETCH_LOG, 0xc0}


@functools.lru_cache(maxsize=None)
def library(directory: Path) -> Path:
    """The library to preload, compiled where it is older than its source."""
    target = directory / 'bench-ioctls.so'
    if (not target.exists()
            or target.stat().st_mtime < SOURCE.stat().st_mtime):
        subprocess.run(['gcc', '-O2', '-Wall', '-shared', '-fPIC',
                        '-o', str(target), str(SOURCE)], check=True)
    return target


@dataclass(frozen=True)
class Call:
    """One ioctl."""
    start: float
    seconds: float
    request: int
    slot: int
    address: int
    size: int

    @property
    def sets_memslot(self) -> bool:
        """Whether it adds, changes or removes a memslot."""
        return self.request & 0xff in SET_MEMSLOT

    @property
    def is_dirty_log(self) -> bool:
        """Whether it fetches or clears a dirty log."""
        return self.request & 0xff in DIRTY_LOG

    @property
    def fetches_log(self) -> bool:
        """Whether it fetches a dirty log."""
        return self.request & 0xff == FETCH_LOG


class Recorder:
    """What one QEMU, to be run with environment(), calls."""

    def __init__(self, library_path: Path, file: Path) -> None:
        self._library = library_path
        self._file = file
        with file.open('wb') as output:
            output.truncate(RECORD.size * (1 + MAX_RECORDS))

    def environment(self) -> List[str]:
        """Variables to be set, NAME=VALUE."""
        return [f'LD_PRELOAD={self._library}', f'BENCH_IOCTLS={self._file}']

    def calls(self, since: int = 0) -> List[Call]:
        """All calls so far, but for the first ones."""
        found = []
        with self._file.open('rb') as records, \
                mmap.mmap(records.fileno(), 0,
                          access=mmap.ACCESS_READ) as data:
            count = RECORD.unpack_from(data, 0)[0]
            if count > MAX_RECORDS:
                raise OverflowError(f'{count} ioctls')
            for index in range(since, count):
                start, duration, *rest = RECORD.unpack_from(
                    data, RECORD.size * (1 + index))
                found.append(Call(start / 1e9, duration / 1e9, *rest))
        return found

    def memslots(self, first: int, size: int) -> Dict[int, int]:
        """The memslots in a range of addresses: sizes, by slot number."""
        slots: Dict[int, Tuple[int, int]] = {}
        for call in self.calls():
            if not call.sets_memslot:
                continue
            if call.size:
                slots[call.slot] = (call.address, call.size)
            else:
                slots.pop(call.slot, None)
        return {slot: length for slot, (address, length) in slots.items()
                if first <= address < first + size}
