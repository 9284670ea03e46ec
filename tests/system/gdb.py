"""
A debugger that knows how to read and write memory.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import socket
from pathlib import Path
from types import TracebackType
from typing import Optional, Type

TIMEOUT = 30.0


class GdbError(Exception):
    """QEMU answers with an error, or not as the protocol says."""


class Gdb:
    """A client of QEMU's gdbstub."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(str(path))
        self._received = b''

    def __enter__(self) -> 'Gdb':
        return self

    def __exit__(self, _type: Optional[Type[BaseException]],
                 _value: Optional[BaseException],
                 _traceback: Optional[TracebackType]) -> None:
        self._socket.close()

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            data = self._socket.recv(65536)
            if not data:
                raise GdbError('the connection is gone')
            self._received += data
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def _packet(self) -> str:
        """The rest of a packet, after its first byte."""
        data = b''
        while (byte := self._take(1)) != b'#':
            data += byte
        if int(self._take(2), 16) != sum(data) & 0xff:
            raise GdbError(f'bad checksum: {data!r}')
        self._socket.sendall(b'+')
        return data.decode('ascii')

    def command(self, command: str) -> str:
        """Send a packet, return the answer."""
        data = command.encode('ascii')
        self._socket.sendall(b'$%s#%02x' % (data, sum(data) & 0xff))
        # QEMU tells that it has stopped the machine, without being asked.
        while (byte := self._take(1)) == b'$':
            self._packet()
        if byte != b'+' or self._take(1) != b'$':
            raise GdbError(f'{command[:40]}: no answer')
        return self._packet()

    def _expect_ok(self, command: str) -> None:
        answer = self.command(command)
        if answer != 'OK':
            raise GdbError(f'{command[:40]}: {answer}')

    def use_physical_addresses(self, physical: bool) -> None:
        """What addresses are from now on."""
        self._expect_ok(f'Qqemu.PhyMemMode:{int(physical)}')

    def read(self, address: int, size: int) -> bytes:
        """Read memory."""
        answer = self.command(f'm{address:x},{size:x}')
        if answer.startswith('E'):
            raise GdbError(f'read of {address:#x}: {answer}')
        return bytes.fromhex(answer)

    def write(self, address: int, data: bytes) -> None:
        """Write memory."""
        self._expect_ok(f'M{address:x},{len(data):x}:{data.hex()}')

    def detach(self) -> None:
        """Let the machine go on."""
        self._expect_ok('D')
