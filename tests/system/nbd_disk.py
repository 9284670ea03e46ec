"""
A disk for a block layer elsewhere, by the protocol of NBD, of which a part
answers when the test says so.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import random
import socket
import struct
import threading
import unittest
from pathlib import Path
from typing import List, Tuple

from vm import MIB, wait_until

SIZE = 4 * MIB
# Requests that begin below that wait for Disk.release().
SLOW = MIB

MAGIC, OPTION_MAGIC = b'NBDMAGIC', b'IHAVEOPT'
OPTION_REPLY, REQUEST, REPLY = 0x3e889045565a9, 0x25609513, 0x67446698
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
HAS_FLAGS, SEND_FLUSH = 1, 4
OPT_GO = 7
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, 1 << 31 | 1
INFO_EXPORT = 0
READ, WRITE, DISCONNECT, FLUSH = range(4)


class Disk:
    """The disk, with random data."""

    def __init__(self, test: unittest.TestCase, directory: Path) -> None:
        """The @test ends it."""
        self.path = directory / 'nbd'
        self.data = bytearray(random.Random(5).randbytes(SIZE))
        self._lock = threading.Lock()
        self._held: List[Tuple[socket.socket, bytes]] = []
        self._holding = True
        self._seen = 0
        # pylint: disable=consider-using-with
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()
        test.addCleanup(self._close)

    def _close(self) -> None:
        # That alone ends accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def seen(self) -> int:
        """How many requests for the slow part there were."""
        return self._seen

    def wait_held(self, number: int) -> None:
        """Wait until so many requests for the slow part are held."""
        def arrived() -> bool:
            with self._lock:
                return len(self._held) == number
        wait_until(f'{number} requests are held', lambda: arrived() or None,
                   timeout=60, pause=0.001)

    def release(self) -> None:
        """Answer what is held, and hold nothing from now on."""
        with self._lock:
            self._holding = False
            for connection, reply in self._held:
                # The client may have died of it.
                with contextlib.suppress(ConnectionError):
                    connection.sendall(reply)
            self._held.clear()

    def hold(self) -> None:
        """Hold requests for the slow part again, as at the start."""
        with self._lock:
            self._holding = True

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_one, args=(connection,),
                             daemon=True).start()

    def _serve_one(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._negotiate(connection)
                while self._request(connection):
                    pass
            except (ConnectionError, EOFError):
                pass
            with self._lock:
                self._held = [held for held in self._held
                              if held[0] is not connection]

    @staticmethod
    def _bytes(connection: socket.socket, size: int) -> bytes:
        data = b''
        while len(data) < size:
            part = connection.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _negotiate(self, connection: socket.socket) -> None:
        connection.sendall(MAGIC + OPTION_MAGIC
                           + struct.pack('>H', FIXED_NEWSTYLE | NO_ZEROES))
        self._bytes(connection, 4)
        option = None
        while option != OPT_GO:
            magic, option, size = struct.unpack(
                '>8sII', self._bytes(connection, 16))
            assert magic == OPTION_MAGIC
            self._bytes(connection, size)
            if option != OPT_GO:
                connection.sendall(struct.pack('>QIII', OPTION_REPLY, option,
                                               REP_ERR_UNSUP, 0))
        info = struct.pack('>HQH', INFO_EXPORT, SIZE, HAS_FLAGS | SEND_FLUSH)
        for kind, data in ((REP_INFO, info), (REP_ACK, b'')):
            connection.sendall(struct.pack('>QIII', OPTION_REPLY, OPT_GO,
                                           kind, len(data)) + data)

    def _request(self, connection: socket.socket) -> bool:
        magic, _, kind, handle, offset, size = struct.unpack(
            '>IHHQQI', self._bytes(connection, 28))
        assert magic == REQUEST
        if kind == DISCONNECT:
            return False
        reply = struct.pack('>IIQ', REPLY, 0, handle)
        if kind == READ:
            reply += self.data[offset:offset + size]
        elif kind == WRITE:
            self.data[offset:offset + size] = self._bytes(connection, size)
        slow = kind != FLUSH and offset < SLOW
        with self._lock:
            self._seen += slow
            if slow and self._holding:
                self._held.append((connection, reply))
            else:
                connection.sendall(reply)
        return True
