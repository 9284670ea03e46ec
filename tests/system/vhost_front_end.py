"""
The front end of a vhost-user block device, without a VM: it can do to the
backend what QEMU would not do, or not at that moment.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import mmap
import os
import select
import socket
import struct
import threading
import unittest
from enum import IntEnum
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

from drivers import DESC_NEXT, DESC_WRITE, F_VERSION_1
from vm import GIB, MIB, wait_until

# Only hit when the backend hangs.
TIMEOUT = 60.0

VERSION, REPLY, NEED_REPLY = 1, 4, 8
F_PROTOCOL_FEATURES = 1 << 30
PROTOCOL_MQ, PROTOCOL_REPLY_ACK, PROTOCOL_MEM_SLOTS = (
    1 << 0, 1 << 3, 1 << 15)

SECTOR = 512
IN, OUT, UNKNOWN = 0, 1, 99
# How a request went
PENDING = 255


class Message(IntEnum):
    """Messages of the protocol."""
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


class Region:
    """Memory of the guest, which is a file."""
    # Not where the guest has it
    USERSPACE = 1 << 40

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size
        self.fd = os.memfd_create('guest')
        os.ftruncate(self.fd, size)
        self.inode = os.fstat(self.fd).st_ino
        self.memory = mmap.mmap(self.fd, size)

    @property
    def table_entry(self) -> bytes:
        """What a backend is told."""
        return struct.pack('<QQQQ', self.address, self.size,
                           self.USERSPACE + self.address, 0)

    def close(self) -> None:
        """Nobody needs it any more."""
        self.memory.close()
        os.close(self.fd)


class Queue:
    """A split virtqueue, in a part of a region from address 0 on."""
    SPACE = 64 * 1024

    def __init__(self, region: Region, offset: int, size: int,
                 used: Optional[Region] = None) -> None:
        """The used ring may be all of another region."""
        self.size = size
        self._memory = region.memory
        self.descriptors = offset
        self.available = offset + 16 * size
        self._used_memory = used.memory if used else region.memory
        self.used_ring = 0 if used else offset + self.SPACE // 2
        # Addresses that the backend is told of
        self.addresses = tuple(
            Region.USERSPACE + address for address in
            (self.descriptors,
             used.address if used else self.used_ring, self.available))
        self.kick_fd = os.eventfd(0)
        self.call_fd = os.eventfd(0)
        self._next = self._posted = 0

    def post(self, buffers: Sequence[Tuple[int, int, bool]]) -> None:
        """Give buffers to the device, as one request."""
        head = self._next
        for number, (address, size, writable) in enumerate(buffers):
            index = self._next
            self._next = (index + 1) % self.size
            flags = ((DESC_NEXT if number < len(buffers) - 1 else 0)
                     | (DESC_WRITE if writable else 0))
            struct.pack_into('<QIHH', self._memory,
                             self.descriptors + 16 * index, address, size,
                             flags, self._next)
        struct.pack_into('<H', self._memory, self.available + 4
                         + 2 * (self._posted % self.size), head)
        self._posted += 1
        struct.pack_into('<H', self._memory, self.available + 2,
                         self._posted & 0xffff)
        self.kick()

    def kick(self) -> None:
        """Tell the device of requests."""
        os.eventfd_write(self.kick_fd, 1)

    @property
    def used(self) -> int:
        """How many requests are done, modulo 64 KiB."""
        return int(struct.unpack_from('<H', self._used_memory,
                                      self.used_ring + 2)[0])

    def close(self) -> None:
        """Nobody needs it any more."""
        os.close(self.kick_fd)
        os.close(self.call_fd)


class Request:
    """A request for the disk, with header and status in some region."""

    def __init__(self, region: Region, offset: int) -> None:
        self._memory = region.memory
        self._offset = offset

    @property
    def status(self) -> int:
        """How it went, PENDING before that."""
        return self._memory[self._offset + 16]


class FrontEnd:
    """The front end, its memory, and the driver of the device."""
    BOOT = 2 * MIB
    # Where memory comes and goes
    HOTPLUG = 4 * GIB
    QUEUE_SIZE = 64

    def __init__(self, test: unittest.TestCase, path: Path,
                 nr_queues: int = 2, queue_size: int = QUEUE_SIZE,
                 used: Optional[Region] = None) -> None:
        """
        Start the device. The used ring of the first queue may be in a region
        of its own.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        test.addCleanup(self._socket.close)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(str(path))
        self._acknowledged = False
        self._requests = 0
        self.boot = Region(0, self.BOOT)
        test.addCleanup(self.boot.close)
        self.queues: List[Queue] = []
        self.negotiate()
        self.add(self.boot)
        if used is not None:
            self.add(used)
        for index in range(nr_queues):
            queue = Queue(self.boot, index * Queue.SPACE, queue_size,
                          None if index else used)
            test.addCleanup(queue.close)
            self.queues.append(queue)
            self.start(index, 0)

    def send(self, message: Message, payload: bytes = b'',
             fds: Sequence[int] = ()) -> None:
        """Send a message."""
        flags = VERSION | (NEED_REPLY if self._acknowledged else 0)
        socket.send_fds(self._socket,
                        [struct.pack('<III', message, flags, len(payload))
                         + payload], fds)

    def receive(self, message: Message) -> bytes:
        """Receive the answer to it."""
        kind, flags, size = struct.unpack('<III', self._bytes(12))
        assert (kind, flags & ~NEED_REPLY) == (message, VERSION | REPLY)
        return self._bytes(size)

    def _bytes(self, size: int) -> bytes:
        data = b''
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise ConnectionResetError('the backend has closed')
            data += part
        return data

    def is_answered(self) -> bool:
        """Whether something has been received."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def is_closed(self) -> bool:
        """Whether the backend has left: wait for that."""
        try:
            return not self._socket.recv(1)
        except ConnectionResetError:
            return True

    def ask(self, message: Message, payload: bytes = b'') -> bytes:
        """Send a message that has an answer."""
        self.send(message, payload)
        return self.receive(message)

    def tell(self, message: Message, payload: bytes = b'',
             fds: Sequence[int] = ()) -> None:
        """Send a message and have it acknowledged."""
        self.send(message, payload, fds)
        if self._acknowledged:
            assert not any(self.receive(message))

    def negotiate(self) -> None:
        """What comes first."""
        wanted = PROTOCOL_MQ | PROTOCOL_REPLY_ACK | PROTOCOL_MEM_SLOTS
        features, = struct.unpack('<Q', self.ask(Message.GET_FEATURES))
        assert features & F_PROTOCOL_FEATURES
        found, = struct.unpack('<Q', self.ask(Message.GET_PROTOCOL_FEATURES))
        assert not wanted & ~found
        self.tell(Message.SET_PROTOCOL_FEATURES, struct.pack('<Q', wanted))
        self._acknowledged = True
        self.tell(Message.SET_OWNER)
        self.tell(Message.SET_FEATURES, struct.pack(
            '<Q', F_VERSION_1 | F_PROTOCOL_FEATURES))

    def add(self, region: Region) -> None:
        """Show the backend a region."""
        self.tell(Message.ADD_MEM_REG, bytes(8) + region.table_entry,
                  [region.fd])

    def remove(self, region: Region) -> None:
        """Take it away."""
        self.tell(Message.REM_MEM_REG, bytes(8) + region.table_entry)

    def set_table(self, *regions: Region) -> None:
        """Show the backend these regions instead of all others."""
        self.tell(Message.SET_MEM_TABLE, struct.pack('<II', len(regions), 0)
                  + b''.join(region.table_entry for region in regions),
                  [region.fd for region in regions])

    def start(self, index: int, base: int) -> None:
        """Start a queue."""
        queue = self.queues[index]
        for message, value in ((Message.SET_VRING_NUM, queue.size),
                               (Message.SET_VRING_BASE, base)):
            self.tell(message, struct.pack('<II', index, value))
        self.tell(Message.SET_VRING_ADDR, struct.pack(
            '<IIQQQQ', index, 0, *queue.addresses, 0))
        for message, fd in ((Message.SET_VRING_CALL, queue.call_fd),
                            (Message.SET_VRING_KICK, queue.kick_fd)):
            self.tell(message, struct.pack('<Q', index), [fd])

    def begin_stop(self, index: int) -> None:
        """Ask for a queue to be stopped."""
        self.send(Message.GET_VRING_BASE, struct.pack('<II', index, 0))

    def end_stop(self, index: int) -> int:
        """Wait until it is stopped, return where it would go on."""
        found, base = struct.unpack('<II',
                                    self.receive(Message.GET_VRING_BASE))
        assert found == index
        return int(base)

    def stop(self, index: int) -> int:
        """Stop a queue, return where it would go on."""
        self.begin_stop(index)
        return self.end_stop(index)

    def read(self, index: int, offset: int, *buffers: Tuple[int, int],
             within: Optional[Region] = None) -> Request:
        """
        Begin to read from the disk, by a queue, into buffers; header and
        status are at the end of a region, or in boot memory.
        """
        region, where = self.boot, MIB + self._requests * 32
        if within is None:
            self._requests += 1
            assert where < self.BOOT
        else:
            region, where = within, within.size - 32
        struct.pack_into('<IIQB', region.memory, where, IN, 0,
                         offset // SECTOR, PENDING)
        address = region.address + where
        self.queues[index].post(
            [(address, 16, False)]
            + [(start, size, True) for start, size in buffers]
            + [(address + 16, 1, True)])
        return Request(region, where)

    def keep_busy(self, index: int) -> 'Busy':
        """Have a queue that was not used never run out of requests."""
        queue = self.queues[index]
        return Busy(self.boot.memory, queue.descriptors, queue.available,
                    queue.used_ring, MIB - 4096, queue.kick)


class Busy:
    """
    Has a queue never run out of requests, which the device answers at once as
    it does not know them. The queue has not been used before.
    """

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments
    def __init__(self, memory: mmap.mmap, descriptors: int, available: int,
                 used: int, where: int, kick: Callable[[], None]) -> None:
        """
        The @memory of the guest, from address 0 on; the parts of the queue;
        @where it has room for a request.
        """
        self._memory = memory
        self._available, self._used = available, used
        self._kick = kick
        struct.pack_into('<IIQ', memory, where, UNKNOWN, 0, 0)
        # All entries of the available ring are 0, which is this request.
        struct.pack_into('<QIHH', memory, descriptors, where, 16, DESC_NEXT, 1)
        struct.pack_into('<QIHH', memory, descriptors + 16, where + 16, 1,
                         DESC_WRITE, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> 'Busy':
        self._thread.start()
        try:
            self.wait_progress()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _nr_used(self) -> int:
        return int(struct.unpack_from('<H', self._memory, self._used + 2)[0])

    def _run(self) -> None:
        while not self._ended.is_set():
            # As many as it takes for the device not to get there before
            # this thread runs again, as a rule
            struct.pack_into('<H', self._memory, self._available + 2,
                             self._nr_used() + 0x7fff & 0xffff)

    def wait_progress(self) -> None:
        """Wait until some more requests are done."""
        before = self._nr_used()

        def has_some() -> Optional[bool]:
            # A device that got to the end waits for this.
            self._kick()
            return self._nr_used() != before or None

        wait_until('requests are done', has_some, timeout=TIMEOUT,
                   pause=0.001)
