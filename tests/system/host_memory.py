"""
What the host spends on a memory backend.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import mmap
import os
import re
from pathlib import Path
from typing import Dict


def all_files(pid: int) -> Dict[int, Dict[int, int]]:
    """
    The files in memory (memfd) that a process has open: how many bytes each
    has allocated, by size and inode.
    """
    found: Dict[int, Dict[int, int]] = {}
    directory = f'/proc/{pid}/fd'
    for name in os.listdir(directory):
        path = f'{directory}/{name}'
        try:
            if not os.readlink(path).startswith('/memfd:'):
                continue
            status = os.stat(path)
        except FileNotFoundError:
            continue
        found.setdefault(status.st_size, {})[status.st_ino] = (
            status.st_blocks * 512)
    return found


def nr_descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f'/proc/{pid}/fd'))


def files(pid: int, size: int) -> Dict[int, int]:
    """Those that have a size, by inode."""
    return all_files(pid).get(size, {})


def shared_memory(pid: int, size: int) -> int:
    """The inode of a file in memory that a process has open."""
    for inode in files(pid, size):
        return inode
    raise KeyError(f'process {pid} has no file in memory of {size} bytes')


def mapped(pid: int, size: int) -> mmap.mmap:
    """Such a file, as memory of this process too."""
    inode = shared_memory(pid, size)
    for descriptor in Path(f'/proc/{pid}/fd').iterdir():
        if descriptor.exists() and descriptor.stat().st_ino == inode:
            with descriptor.open('r+b', buffering=0) as file:
                return mmap.mmap(file.fileno(), size)
    raise KeyError(inode)


def in_file(pid: int, size: int) -> int:
    """Bytes of memory in such a file."""
    return files(pid, size)[shared_memory(pid, size)]


def resident(pid: int, size: int) -> int:
    """How much of a mapping of some size is there, as smaps has it."""
    smaps = Path(f'/proc/{pid}/smaps').read_text('ascii')
    for match in re.finditer(r'^([0-9a-f]+)-([0-9a-f]+) .*\n(?:.*\n)*?'
                             r'Rss: +(\d+) kB$', smaps, re.M):
        if int(match[2], 16) - int(match[1], 16) == size:
            return int(match[3]) * 1024
    raise KeyError(f'process {pid} has no mapping of {size} bytes')
