"""
A Linux guest that takes commands over a serial port.

The image (see scripts/guest-image) answers each line with the output of the
shell command that it holds, and a last line with the exit status.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import socket
import time
from pathlib import Path
from typing import Callable, List, Optional, Tuple

MIB = 1 << 20
# Generous: only hit when something hangs.
COMMAND_TIMEOUT = 300.0
PAGE_SIZE = 4096
# How much more than is free there is written to fill up the zone Movable.
SURPLUS = 64 * MIB
# The kernel keeps a part of each zone for emergencies.
MAX_FREE = 0.04


class GuestError(Exception):
    """The guest did not do what it was asked to."""


class Guest:
    """The guest's end of the serial port, as seen from the host."""

    def __init__(self, console_log: Path,
                 host: Optional[socket.socket] = None) -> None:
        """
        Unless @host is connected to it already, QEMU is to inherit its end.
        """
        self._console_log = console_log
        self.qemu_socket: Optional[socket.socket] = None
        if host is None:
            host, self.qemu_socket = socket.socketpair()
        self._host = host
        self._received = b''

    def close_qemu_socket(self) -> None:
        """Let go of QEMU's end, which the QEMU process inherited."""
        if self.qemu_socket is not None:
            self.qemu_socket.close()
            self.qemu_socket = None

    def close(self) -> None:
        """Free all resources."""
        self.close_qemu_socket()
        self._host.close()

    def console(self) -> str:
        """What the kernel printed so far."""
        if not self._console_log.exists():
            return ''
        return self._console_log.read_text(encoding='utf-8', errors='replace')

    def _console_tail(self) -> str:
        lines = [line for line in self.console().splitlines() if line.strip()]
        return '\n'.join(['the last lines on its console:'] + lines[-10:])

    def _read_line(self, deadline: float) -> str:
        while b'\n' not in self._received:
            self._host.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self._host.recv(65536)
            if not data:
                raise GuestError('QEMU has closed the guest\'s serial port; '
                                 + self._console_tail())
            self._received += data
        line, self._received = self._received.split(b'\n', 1)
        return line.decode('utf-8', errors='replace').rstrip('\r')

    def wait_ready(self, stall: float,
                   progress: Callable[[], None] = lambda: None) -> None:
        """
        Wait until the guest takes commands.

        It may take its time as long as something new appears on its console
        every @stall seconds.
        """
        seen = ''
        deadline = time.monotonic() + stall
        while True:
            try:
                if self._read_line(time.monotonic() + 0.25) == 'ready':
                    return
            except TimeoutError:
                pass
            progress()
            console = self.console()
            if console != seen:
                seen = console
                deadline = time.monotonic() + stall
            if time.monotonic() > deadline:
                raise GuestError(
                    f'nothing new on the console for {stall:.0f} s; '
                    + self._console_tail())

    def run(self, command: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a shell command in the guest, return what it prints."""
        self._host.sendall(command.encode() + b'\n')
        deadline = time.monotonic() + timeout
        lines: List[str] = []
        while True:
            try:
                line = self._read_line(deadline)
            except TimeoutError:
                raise GuestError(
                    f'"{command}" not done after {timeout:.0f} s; '
                    + self._console_tail()) from None
            status = re.fullmatch(r'status (\d+)', line)
            if status is None:
                lines.append(line)
            elif status[1] == '0':
                return '\n'.join(lines)
            else:
                raise GuestError(f'"{command}" failed: ' + '\n'.join(lines))

    def meminfo(self, field: str) -> int:
        """A field of the guest's /proc/meminfo, in bytes."""
        match = re.search(rf'^{field}: *(\d+) kB$',
                          self.run('cat /proc/meminfo'), re.MULTILINE)
        if match is None:
            raise GuestError(f'/proc/meminfo has no field {field}')
        return int(match[1]) * 1024

    def virtio_mem_ranges(self) -> List[Tuple[int, int]]:
        """
        Guest-physical ranges (first, last) that the guest has taken from
        virtio-mem devices.
        """
        found = []
        for line in self.run('cat /proc/iomem').splitlines():
            match = re.fullmatch(r' *([0-9a-f]+)-([0-9a-f]+) : '
                                 r'System RAM \(virtio_mem\)', line)
            if match:
                found.append((int(match[1], 16), int(match[2], 16)))
        return found

    def movable_pages(self) -> Tuple[int, int]:
        """
        Pages of the zone that all memory of virtio-mem devices is in: free
        ones, and all.
        """
        zoneinfo = self.run('cat /proc/zoneinfo')
        match = re.search(r'zone +Movable\n +pages free +(\d+)\n'
                          r'(?:.*\n)*? +managed +(\d+)\n', zoneinfo)
        if match is None:
            raise GuestError('/proc/zoneinfo has no zone Movable')
        return int(match[1]), int(match[2])

    def fill(self, seed: int, size: int) -> None:
        """Write a pattern to @size bytes of the guest's memory."""
        self.run(f'pattern fill /mnt/pattern {size} {seed}')

    def fill_movable(self, seed: int) -> int:
        """
        Write a pattern to all memory of virtio-mem devices that is free,
        return the size of the pattern.

        The kernel takes this memory first, so what does not fit there has
        to come from elsewhere: asking for a little more fills it up.
        """
        free, managed = self.movable_pages()
        size = free * PAGE_SIZE + SURPLUS
        self.fill(seed, size)
        left, managed = self.movable_pages()
        if left > managed * MAX_FREE:
            raise GuestError(f'{left} of {managed} pages of virtio-mem '
                             'devices are still free')
        return size

    def offline(self, first: int, last: int) -> None:
        """
        Take a range of guest-physical memory out of use: a virtio-mem device
        that has to give memory back starts with such.
        """
        size = int(self.run(
            'cat /sys/devices/system/memory/block_size_bytes'), 16)
        self.run(f'for n in $(seq {first // size} {last // size}); do '
                 'echo offline >/sys/devices/system/memory/memory$n/state '
                 '|| break; done')

    def check(self, seed: int, size: int) -> None:
        """Compare with what fill() wrote; GuestError if it differs."""
        self.run(f'pattern check /mnt/pattern {size} {seed}')

    def free(self) -> None:
        """Free what fill() wrote."""
        self.run('rm /mnt/pattern')
