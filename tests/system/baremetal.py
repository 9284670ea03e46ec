"""
A guest of a few hundred bytes that does with memory what it is told, where a
stock Linux guest would not boot (with KVM) or would not do it.

Its program is in baremetal/, and takes commands through mailboxes in boot
memory.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import functools
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import List, Sequence

from drivers import Machine
from vm import wait_until

SOURCES = Path(__file__).resolve().parent / 'baremetal'
CPUS = 2
CFLAGS = ('-m64', '-mno-red-zone', '-O2', '-Wall', '-Werror', '-std=gnu11',
          '-ffreestanding', '-fno-pic', '-fno-stack-protector',
          '-fcf-protection=none', '-fno-asynchronous-unwind-tables',
          '-mgeneral-regs-only',
          f'-DCPUS={CPUS}', '-DSTACK_SHIFT=12')

# See baremetal/mailbox.h.
MAX_AREAS = 64
AREA_SIZE = 2 << 20
MAILBOX = 0x10000
MAILBOX_STRIDE = 0x1000
# command, stop, what commands take, whether the CPU is awake
_PARAMETERS = struct.Struct('<IIQQIIII')
_OUTCOME = struct.Struct('<IIIIQII')
_AREAS = MAILBOX + _PARAMETERS.size + _OUTCOME.size
_STOP = 4


class Command(IntEnum):
    """What the guest can do."""
    NONE = 0
    READ = 1
    WRITE = 2
    WRITE_READ = 3
    WATCH = 4
    WAKE = 5
    LEAD = 6


@dataclass(frozen=True)
class Outcome:
    """What the guest has to say about a command."""
    accesses: int
    # words that had the expected value when they were read
    matches: int
    passes: int
    # how often a watched word was not what it had to be, and the first one
    errors: int
    bad_address: int
    bad_found: int
    bad_expected: int


@functools.lru_cache(maxsize=None)
def image() -> bytes:
    """The guest's program, as firmware."""
    with tempfile.TemporaryDirectory(prefix='baremetal-') as directory:
        work = Path(directory)
        objects = []
        for source in (SOURCES / 'entry.S', SOURCES / 'main.c'):
            objects.append(str(work / f'{source.stem}.o'))
            subprocess.run(['gcc', *CFLAGS, '-c', str(source),
                            '-o', objects[-1]], check=True)
        subprocess.run(['ld', '-m', 'elf_x86_64',
                        '-T', str(SOURCES / 'rom.ld'),
                        '-o', str(work / 'elf'), *objects], check=True)
        subprocess.run(['objcopy', '-O', 'binary', '-j', '.text',
                        '-j', '.reset', str(work / 'elf'), str(work / 'rom')],
                       check=True)
        return (work / 'rom').read_bytes()


class BareMetal(Machine):
    """A machine with vCPUs that run the program."""

    def __init__(self, binary: str, accel: str, maxmem: int) -> None:
        super().__init__(binary, accel, maxmem)
        self.add_args('-smp', str(CPUS))

    @staticmethod
    def firmware() -> bytes:
        return image()

    def wake(self) -> None:
        """Start all CPUs but the first, which runs already."""
        for cpu in range(1, CPUS):
            self.command_cpu(0, Command.WAKE, value=cpu)
            self.wait_done(0)

    # pylint: disable=too-many-arguments
    def command_cpu(self, cpu: int, command: Command, address: int = 0,
                    size: int = 0, stride: int = 0, value: int = 0,
                    areas: Sequence[int] = ()) -> None:
        """Have a CPU start with a command."""
        assert len(areas) <= MAX_AREAS
        mailbox = MAILBOX + cpu * MAILBOX_STRIDE
        awake = 1 if command is not Command.WAKE else 0
        self.write(mailbox, _PARAMETERS.pack(
            Command.NONE, 0, address, size, stride, value, len(areas), awake)
            + bytes(_OUTCOME.size))
        if areas:
            self.write(_AREAS + cpu * MAILBOX_STRIDE,
                       struct.pack(f'<{len(areas)}Q', *areas))
        self.set_number(mailbox, 'l', command)

    def outcome(self, cpu: int) -> Outcome:
        """What a CPU has to say so far."""
        return Outcome(*_OUTCOME.unpack(self.read(
            MAILBOX + cpu * MAILBOX_STRIDE + _PARAMETERS.size,
            _OUTCOME.size)))

    def wait_done(self, cpu: int) -> Outcome:
        """Wait until a CPU is done with its command."""
        mailbox = MAILBOX + cpu * MAILBOX_STRIDE
        wait_until(f'CPU {cpu} is done', lambda: True if self.number(
            mailbox, 'l') == Command.NONE else None, pause=0.005)
        return self.outcome(cpu)

    def run(self, command: Command, address: int, size: int, stride: int,
            value: int = 0) -> Outcome:
        """Have the first CPU run a command and wait for it."""
        self.command_cpu(0, command, address, size, stride, value)
        return self.wait_done(0)

    def watch(self, areas: Sequence[int], stride: int) -> None:
        """Have all CPUs watch areas."""
        for cpu in range(CPUS):
            self.command_cpu(cpu, Command.WATCH, stride=stride, areas=areas)

    def lead(self, ours: int, theirs: int, lead: int, doorbell: int) -> None:
        """Have the first CPU keep a number ahead of another one."""
        self.command_cpu(0, Command.LEAD, ours, value=lead,
                         areas=[theirs, doorbell])

    def stop_leading(self) -> None:
        """End what lead() started."""
        self.set_number(MAILBOX + _STOP, 'l', 1)
        self.wait_done(0)

    def stop_watching(self) -> List[Outcome]:
        """End what watch() started."""
        for cpu in range(CPUS):
            self.set_number(MAILBOX + cpu * MAILBOX_STRIDE + _STOP, 'l', 1)
        return [self.wait_done(cpu) for cpu in range(CPUS)]
