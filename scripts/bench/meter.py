"""
What the kernel spends on one process: all memory that it accounts to a
control group which the process has for itself, so that nothing else on the
machine is seen. Without control groups, it is what the machine uses.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import atexit
import itertools
import os
import re
import time
from pathlib import Path
from typing import List, Optional

from bench.host import kernel_memory, settled

ROOT = Path('/sys/fs/cgroup')
# How long the end of a process that was killed may take
PATIENCE = 10.0
_NUMBERS = itertools.count()


def _own_group(controller: str) -> Optional[Path]:
    """The group that this process is in."""
    for line in Path('/proc/self/cgroup').read_text('utf-8').splitlines():
        _number, controllers, path = line.split(':', 2)
        if controller == controllers:
            return ROOT / controller / path.lstrip('/')
    return None


def _create() -> Optional[Path]:
    """A new group below our own, where the kernel's memory is counted."""
    for controller, file in (('memory', 'memory.kmem.usage_in_bytes'),
                             ('', 'memory.stat')):
        parent = _own_group(controller)
        if parent is None or not os.access(parent, os.W_OK):
            continue
        group = parent / f'virtio-mem-bench-{os.getpid()}-{next(_NUMBERS)}'
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / file).exists():
            return group
        group.rmdir()
    return None


def _remove(group: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class Meter:
    """To be made before the process, closed after its end."""

    def __init__(self) -> None:
        self._group = _create()
        # A signal may come at any time.
        atexit.register(self.close)

    @property
    def method(self) -> str:
        """What is read."""
        return ('control group' if self._group is not None
                else 'VmallocUsed of the machine')

    def command(self) -> List[str]:
        """What comes before the command that is to be measured."""
        if self._group is None:
            return []
        return ['sh', '-c',
                f'echo $$ >{self._group}/cgroup.procs && exec "$@"', 'sh']

    def _kernel(self) -> int:
        assert self._group is not None
        file = self._group / 'memory.kmem.usage_in_bytes'
        if file.exists():
            return int(file.read_text('ascii'))
        match = re.search(r'^kernel (\d+)$',
                          (self._group / 'memory.stat').read_text('ascii'),
                          re.M)
        return int(match[1]) if match else 0

    def read(self) -> int:
        """Bytes, once they have settled."""
        if self._group is None:
            return settled(lambda: kernel_memory().vmalloc)
        return settled(self._kernel)

    def close(self) -> None:
        """Remove the group, which is empty or is about to be."""
        if self._group is not None:
            _remove(self._group)
            self._group = None
            atexit.unregister(self.close)
