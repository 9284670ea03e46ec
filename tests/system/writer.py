"""
A vCPU that writes to guest-physical memory.

What a driver writes goes through QEMU, which knows what it writes to. Only
what a vCPU writes has to be found in KVM's dirty log, or noticed by TCG.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import functools
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import (Callable, Dict, List, Optional, Sequence, Tuple,
                    TypeVar)

from drivers import Machine
from vm import GIB, MIB, Timeout, wait_until

PAGE = 4096
# As in baremetal/writer.S
RUN, RUNNING, COUNT, ROUNDS = 0x1000, 0x1004, 0x1008, 0x100c
WINDOW, LIST = 0x2000, 0x8000
# What the window, of 1 GiB at 1 GiB, is made of
LARGE_PAGE = 2 * MIB
MAX_LARGE_PAGES = 512
# Present, writable, accessed, dirty, and large
LARGE = 0xe3

T = TypeVar('T')


@functools.lru_cache(maxsize=None)
def firmware() -> bytes:
    """The firmware that does it."""
    source = Path(__file__).parent / 'baremetal' / 'writer.S'
    with tempfile.TemporaryDirectory(prefix='virtio-mem-') as directory:
        binary = Path(directory) / 'writer'
        subprocess.run(
            ['gcc', '-nostdlib', '-static', '-o', str(binary),
             '-Wl,-N,-Ttext=0xf0000,--oformat=binary,--build-id=none',
             str(source)], check=True)
        return binary.read_bytes()


def wait_soon(what: str, probe: Callable[[], Optional[T]]) -> T:
    """Wait for something that usually takes no more than a moment."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        value = probe()
        if value is not None:
            return value
        time.sleep(0.005)
    return wait_until(what, probe, timeout=60)


class Writer:
    """The vCPU of a machine that has the firmware."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        # The numbers that it increments, by their physical address
        self.numbers: Dict[int, int] = {}
        self.is_running = False
        self._rounds = 0

    def set_places(self, addresses: Sequence[int]) -> None:
        """What to increment from now on, from 0, while it sleeps."""
        self.numbers = dict.fromkeys(addresses, 0)
        pages = sorted({address // LARGE_PAGE for address in addresses})
        assert len(pages) <= MAX_LARGE_PAGES
        self.machine.write(WINDOW, struct.pack(
            f'<{len(pages)}Q', *(page * LARGE_PAGE | LARGE
                                 for page in pages)))
        virtual: List[int] = [
            GIB + pages.index(address // LARGE_PAGE) * LARGE_PAGE
            + address % LARGE_PAGE for address in addresses]
        self.machine.write(LIST, struct.pack(f'<{len(virtual)}I', *virtual))
        self.machine.set_number(COUNT, 'l', len(virtual))

    def rounds(self) -> int:
        """How often it has incremented all of them."""
        return self.machine.number(ROUNDS, 'l')

    def checkpoint(self) -> Tuple[Dict[int, int], int]:
        """What restore() needs to go back to now."""
        return dict(self.numbers), self._rounds

    def restore(self, checkpoint: Tuple[Dict[int, int], int]) -> None:
        """The machine is back where it was."""
        numbers, self._rounds = checkpoint
        self.numbers = dict(numbers)

    def start(self) -> None:
        """Have it write."""
        self._rounds = self.rounds()
        self.is_running = True
        self.machine.set_number(RUN, 'l', 1)
        self.wait_rounds(1)

    def wait_rounds(self, more: int) -> None:
        """Wait until it has done some more rounds."""
        enough = self.rounds() + more
        try:
            wait_soon(f'the vCPU has written {more} times',
                      lambda: self.rounds() >= enough or None)
        except Timeout as error:
            raise Timeout(f'{error}\n' + '\n'.join(
                self.machine.hmp(f'info {what}')
                for what in ('status', 'registers', 'lapic'))) from None

    def stop(self) -> None:
        """Have it sleep: all numbers have been incremented as often."""
        self.is_running = False
        self.machine.set_number(RUN, 'l', 0)
        wait_soon('the vCPU sleeps', lambda: not self.machine.number(
            RUNNING, 'l') or None)
        done = self.rounds() - self._rounds
        self._rounds += done
        for address in self.numbers:
            self.numbers[address] += done
