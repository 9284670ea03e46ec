"""
The machine that it runs on: what it is, and what its kernel and a process
use of memory.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List

from bench.formula import GIB

# What the kernel frees late is freed when a figure has not changed for so
# many readings; machines that others use may never get there.
READINGS, PAUSE, PATIENCE = 4, 0.03, 5.0


@dataclass(frozen=True)
class Kernel:
    """Bytes of memory that the kernel uses."""
    vmalloc: int
    slab: int
    page_tables: int

    def __sub__(self, other: 'Kernel') -> 'Kernel':
        return Kernel(self.vmalloc - other.vmalloc, self.slab - other.slab,
                      self.page_tables - other.page_tables)


def _fields(path: str) -> Dict[str, int]:
    text = Path(path).read_text(encoding='ascii', errors='replace')
    return {match[1]: int(match[2]) * 1024 for match in
            re.finditer(r'^(\w+):\s+(\d+) kB$', text, re.M)}


def available() -> int:
    """Bytes of memory that programs and the kernel could still have."""
    return _fields('/proc/meminfo')['MemAvailable']


def settled(read: Callable[[], int]) -> int:
    """A figure once it does not change any more."""
    deadline = time.monotonic() + PATIENCE
    seen: List[int] = []
    while True:
        seen = (seen + [read()])[-READINGS:]
        if (len(seen) == READINGS and len(set(seen)) == 1
                or time.monotonic() > deadline):
            return seen[-1]
        time.sleep(PAUSE)


def kernel_memory() -> Kernel:
    """What the kernel uses of the machine's memory."""
    fields = _fields('/proc/meminfo')
    return Kernel(fields['VmallocUsed'], fields['Slab'],
                  fields['PageTables'])


def anonymous(pid: int) -> int:
    """Bytes of a process's own memory, without files."""
    return _fields(f'/proc/{pid}/status')['RssAnon']


def describe() -> Dict[str, str]:
    """The machine, for people to read."""
    info = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    model = re.search(r'^model name\s*: (.*)$', info, re.M)
    total = _fields('/proc/meminfo')['MemTotal']
    return {'cpu': model[1] if model else platform.machine(),
            'cpus': str(os.cpu_count()),
            'memory': f'{total / GIB:.0f} GiB',
            'kernel': f'{platform.system()} {platform.release()}'}
