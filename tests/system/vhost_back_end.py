"""
The backend of a vhost-user network device, in a thread of the test: it returns
all packets to where they came from, can refuse memory when the test says so,
and holds QEMU to the protocol.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
import unittest
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from drivers import DESC_NEXT, DESC_WRITE, F_VERSION_1
from vhost_backends import MANY_REGIONS
from vhost_front_end import (F_PROTOCOL_FEATURES, NEED_REPLY, PROTOCOL_MQ,
                             PROTOCOL_MEM_SLOTS, PROTOCOL_REPLY_ACK, REPLY,
                             VERSION, Message)
from vm import wait_until

F_MQ, F_LOG_ALL = 1 << 22, 1 << 26
PROTOCOL_LOG_SHMFD = 1 << 1
# A ring whose used ring is logged; no file comes along.
VRING_LOG, NO_FD = 1, 0x100
# How many regions a backend holds that does not say
BASELINE = 8
HEADER = 12
LOG_PAGE = 4096
# Whatever is asked for is a number of these sizes.
ANSWERS = {
    Message.GET_FEATURES: '<Q', Message.GET_PROTOCOL_FEATURES: '<Q',
    Message.GET_QUEUE_NUM: '<Q', Message.GET_MAX_MEM_SLOTS: '<Q',
}


class Violation(Exception):
    """What no front end should send."""


@dataclass(frozen=True)
class Region:
    """A memory region that the backend was shown."""
    address: int
    size: int
    user: int
    # Of the file that it is part of
    offset: int
    inode: int
    memory: mmap.mmap

    @classmethod
    def map(cls, entry: bytes, fd: int) -> 'Region':
        """What a message says."""
        address, size, user, offset = struct.unpack('<QQQQ', entry)
        return cls(address, size, user, offset, os.fstat(fd).st_ino,
                   mmap.mmap(fd, size, offset=offset))

    def has(self, start: int, address: int, size: int) -> bool:
        """Whether all of a range is in it, by its start in that space."""
        return start <= address and address + size <= start + self.size


@dataclass
class Queue:
    """A virtqueue."""
    size: int = 0
    # Addresses in QEMU's address space, and of the used ring in the log
    descriptors: int = 0
    available: int = 0
    used: int = 0
    log: Optional[int] = None
    # What comes next
    base: int = 0
    used_base: int = 0
    kick_fd: Optional[int] = None
    call_fd: Optional[int] = None
    enabled: bool = False

    @property
    def started(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self.kick_fd is not None

    def rings(self) -> List[Tuple[int, int]]:
        """Where its rings are, and their sizes."""
        return [(self.descriptors, 16 * self.size),
                (self.available, 6 + 2 * self.size),
                (self.used, 6 + 8 * self.size)]


class BackEnd:
    """The backend, for one connection at a time."""
    # pylint: disable=too-many-instance-attributes

    def __init__(self, test: unittest.TestCase, directory: Path, name: str,
                 limit: int, nr_pairs: int) -> None:
        """
        It holds so many memory regions, and says so unless it is BASELINE.
        The @test ends it.
        """
        self.socket = directory / f'{name}.socket'
        self.limit = limit
        self.nr_pairs = nr_pairs
        # What a front end did that it must not do
        self.violations: List[str] = []
        self._lock = threading.Lock()
        self._connection: Optional[socket.socket] = None
        self._listener: Optional[socket.socket] = None
        self._ended = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._taken: Optional[int] = None
        self._nr_stopped = 0
        self._forget()
        test.addCleanup(self.kill)

    def _forget(self) -> None:
        self._regions: List[Region] = []
        self._queues = [Queue() for _ in range(2 * self.nr_pairs)]
        self._features = self._protocol = 0
        self._log: Optional[mmap.mmap] = None

    # What the test asks for

    def is_whole(self) -> bool:
        """Whether it sees memory devices as a whole, not their memslots."""
        return self.limit < MANY_REGIONS

    def start(self) -> None:
        """Listen."""
        self.socket.unlink(missing_ok=True)
        # pylint: disable=consider-using-with
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen()
        self._thread.start()

    def kill(self) -> None:
        """End without a word."""
        if self._listener is None:
            return
        os.eventfd_write(self._ended, 1)
        self._thread.join()
        self._listener.close()
        self._listener = None
        self._drop()
        os.close(self._ended)

    def settle(self) -> None:
        """Wait until all has been handled that was sent so far."""
        def is_idle() -> bool:
            with self._lock:
                waiting = [self._connection] if self._connection else []
                kicks = [queue.kick_fd for queue in self._queues
                         if queue.kick_fd is not None]
                return not select.select([*waiting, *kicks], [], [], 0)[0]
        wait_until('the backend is idle', lambda: is_idle() or None,
                   timeout=30, pause=0.0005)

    def started(self) -> List[bool]:
        """Which queues are started."""
        self.settle()
        with self._lock:
            return [queue.started for queue in self._queues]

    def nr_stopped(self) -> int:
        """How often it was told to stop a queue."""
        self.settle()
        with self._lock:
            return self._nr_stopped

    def regions(self) -> List[Region]:
        """The memory regions that it has, by address."""
        self.settle()
        with self._lock:
            return sorted(self._regions, key=lambda region: region.address)

    def take(self, count: Optional[int]) -> None:
        """Take so many more regions one by one, then refuse; None: all."""
        with self._lock:
            self._taken = count

    # The thread

    def _run(self) -> None:
        assert self._listener is not None
        while True:
            fds = {queue.kick_fd: index
                   for index, queue in enumerate(self._queues)
                   if queue.kick_fd is not None}
            connection = self._connection or self._listener
            ready = select.select([self._ended, connection, *fds], [], [])[0]
            if self._ended in ready:
                return
            with self._lock:
                if self._connection is None:
                    self._connection = self._listener.accept()[0]
                    continue
                # What is kicked is told before what is sent later.
                for fd in fds.keys() & ready:
                    # QEMU may have looked at it, too.
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                    self._forward(fds[fd])
                if connection in ready:
                    self._handle_safely()

    def _handle_safely(self) -> None:
        try:
            self._handle()
        except (ConnectionError, EOFError):
            self._drop()
        except (Violation, ValueError, struct.error, OSError) as error:
            self.violations.append(f'{type(error).__name__}: {error}')
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        for queue in self._queues:
            self._stop(queue)
            if queue.call_fd is not None:
                os.close(queue.call_fd)
        self._forget()

    @staticmethod
    def _stop(queue: Queue) -> None:
        if queue.kick_fd is not None:
            os.close(queue.kick_fd)
            queue.kick_fd = None

    # Messages

    def _handle(self) -> None:
        assert self._connection is not None
        header, fds, _, _ = socket.recv_fds(self._connection, 12, 64)
        try:
            if not header:
                raise EOFError
            request, flags, size = struct.unpack('<III', header)
            payload = b''
            while len(payload) < size:
                part = self._connection.recv(size - len(payload))
                if not part:
                    raise EOFError
                payload += part
            message = Message(request)
            self._reply(message, flags, self._answer(message, payload, fds))
        finally:
            for fd in fds:
                os.close(fd)

    def _reply(self, message: Message, flags: int,
               answer: Optional[bytes]) -> None:
        assert self._connection is not None
        if answer is None:
            if not flags & NEED_REPLY:
                return
            answer = bytes(8)
        self._connection.sendall(struct.pack(
            '<III', message, VERSION | REPLY, len(answer)) + answer)

    def _answer(self, message: Message, payload: bytes,
                fds: Sequence[int]) -> Optional[bytes]:
        """Do what a message says; what it is answered with, if it must be."""
        # pylint: disable=too-many-return-statements
        if message in ANSWERS:
            return struct.pack(ANSWERS[message], self._number(message))
        if message in (Message.SET_FEATURES, Message.SET_PROTOCOL_FEATURES):
            value, = struct.unpack('<Q', payload)
            if message is Message.SET_FEATURES:
                self._features = value
            else:
                self._protocol = value
        elif message is Message.SET_MEM_TABLE:
            self._set_table(payload, fds)
        elif message is Message.ADD_MEM_REG:
            if self._taken == 0:
                return struct.pack('<Q', 1)
            if self._taken is not None:
                self._taken -= 1
            self._add(Region.map(payload[8:], fds[0]))
        elif message is Message.REM_MEM_REG:
            self._remove(payload[8:])
        elif message is Message.SET_LOG_BASE:
            size, offset = struct.unpack('<QQ', payload)
            self._log = mmap.mmap(fds[0], size, offset=offset)
            return bytes(8)
        elif message is Message.GET_VRING_BASE:
            return self._stop_queue(payload)
        elif message in (Message.SET_VRING_KICK, Message.SET_VRING_CALL,
                         Message.SET_VRING_ERR):
            self._set_file(message, payload, fds)
        elif message not in (Message.SET_OWNER, Message.RESET_OWNER,
                             Message.SEND_RARP):
            self._set_queue(message, payload)
        return None

    def _number(self, message: Message) -> int:
        if message is Message.GET_FEATURES:
            return F_VERSION_1 | F_PROTOCOL_FEATURES | F_LOG_ALL | F_MQ
        if message is Message.GET_PROTOCOL_FEATURES:
            slots = 0 if self.limit == BASELINE else PROTOCOL_MEM_SLOTS
            return (PROTOCOL_MQ | PROTOCOL_LOG_SHMFD | PROTOCOL_REPLY_ACK
                    | slots)
        if message is Message.GET_QUEUE_NUM:
            return self.nr_pairs
        return self.limit

    # Memory regions

    def _add(self, region: Region) -> None:
        if len(self._regions) >= self.limit:
            raise Violation('one region too many')
        for other in self._regions:
            if (region.address < other.address + other.size
                    and other.address < region.address + region.size):
                raise Violation(f'{region} and {other} overlap')
        self._regions.append(region)

    def _remove(self, entry: bytes) -> None:
        found = [region for region in self._regions if struct.pack(
            '<QQQ', region.address, region.size, region.user) == entry[:24]]
        if len(found) != 1:
            raise Violation(f'no such region: {entry.hex()}')
        self._regions.remove(found[0])
        self._check_rings()

    def _set_table(self, payload: bytes, fds: Sequence[int]) -> None:
        count, _ = struct.unpack_from('<II', payload)
        if count != len(fds):
            raise Violation(f'{count} regions, {len(fds)} files')
        self._regions = []
        for number, fd in enumerate(fds):
            self._add(Region.map(payload[8 + 32 * number:][:32], fd))
        self._check_rings()

    def _check_rings(self) -> None:
        for index, queue in enumerate(self._queues):
            if not queue.started:
                continue
            for user, size in queue.rings():
                if self._find_user(user, size) is None:
                    raise Violation(f'queue {index}: a ring is not in one '
                                    'region')

    def _find_user(self, user: int,
                   size: int) -> Optional[Tuple[mmap.mmap, int]]:
        for region in self._regions:
            if region.has(region.user, user, size):
                return region.memory, user - region.user
        return None

    def _user(self, user: int, size: int) -> Tuple[mmap.mmap, int]:
        found = self._find_user(user, size)
        if found is None:
            raise Violation(f'no memory at {user:#x}')
        return found

    def _parts(self, address: int,
               size: int) -> List[Tuple[mmap.mmap, int, int, int]]:
        """
        A range of guest-physical memory: memory, offset, size and address of
        each part that is in a region.
        """
        parts = []
        while size:
            for region in self._regions:
                if region.has(region.address, address, 1):
                    offset = address - region.address
                    part = min(size, region.size - offset)
                    parts.append((region.memory, offset, part, address))
                    address, size = address + part, size - part
                    break
            else:
                raise Violation(f'no memory at {address:#x}')
        return parts

    # Queues

    def _get_queue(self, index: int) -> Queue:
        if index >= len(self._queues):
            raise Violation(f'no queue {index}')
        return self._queues[index]

    def _set_queue(self, message: Message, payload: bytes) -> None:
        index, value = struct.unpack_from('<II', payload)
        queue = self._get_queue(index)
        if message is Message.SET_VRING_NUM:
            queue.size = value
        elif message is Message.SET_VRING_BASE:
            queue.base = value
        elif message is Message.SET_VRING_ENABLE:
            queue.enabled = bool(value)
        elif message is Message.SET_VRING_ADDR:
            queue.descriptors, queue.used, queue.available, log = (
                struct.unpack_from('<QQQQ', payload, 8))
            queue.log = log if value & VRING_LOG else None
            for user, size in queue.rings():
                self._user(user, size)
        else:
            raise Violation(f'{message!r}')
        if message is Message.SET_VRING_ENABLE:
            self._forward(index)

    def _set_file(self, message: Message, payload: bytes,
                  fds: Sequence[int]) -> None:
        value, = struct.unpack('<Q', payload)
        fd = None if value & NO_FD else os.dup(fds[0])
        queue = self._get_queue(value & 0xff)
        if message is Message.SET_VRING_CALL:
            if queue.call_fd is not None:
                os.close(queue.call_fd)
            queue.call_fd = fd
        elif message is Message.SET_VRING_KICK:
            if queue.started or fd is None:
                raise Violation(f'{message!r}: {value:#x}')
            queue.kick_fd = fd
            self._check_rings()
            memory, offset = self._user(queue.used, 4)
            queue.used_base, = struct.unpack_from('<H', memory, offset + 2)
            self._forward(value & 0xff)
        elif fd is not None:
            os.close(fd)

    def _stop_queue(self, payload: bytes) -> bytes:
        index, _ = struct.unpack('<II', payload)
        queue = self._get_queue(index)
        self._stop(queue)
        self._nr_stopped += 1
        return struct.pack('<II', index, queue.base)

    # Packets

    def _forward(self, index: int) -> None:
        """Look at a pair of queues, one of which was kicked."""
        first = index & ~1
        receive, send = self._queues[first:first + 2]
        if all(queue.started and queue.enabled for queue in (receive, send)):
            try:
                while self._count(send) and self._count(receive):
                    self._return(send, receive)
            except Violation as error:
                self.violations.append(str(error))

    def _count(self, queue: Queue) -> int:
        memory, offset = self._user(queue.available, 4)
        posted, = struct.unpack_from('<H', memory, offset + 2)
        count = int(posted - queue.base) & 0xffff
        # There are not so many unless the driver has lost its ring.
        return count if count <= queue.size else 0

    def _return(self, send: Queue, receive: Queue) -> None:
        head, buffers = self._pop(send)
        packet = bytes(HEADER) + b''.join(
            memory[offset:offset + size] for address, length, _ in buffers
            for memory, offset, size, _ in self._parts(address, length)
        )[HEADER:]
        target, buffers = self._pop(receive)
        rest = packet
        for address, length, writable in buffers:
            if not writable:
                raise Violation('a buffer to receive that is only to be read')
            for memory, offset, size, start in self._parts(
                    address, min(length, len(rest))):
                memory[offset:offset + size] = rest[:size]
                rest = rest[size:]
                self._note(start, size)
        self._push(receive, target, len(packet))
        self._push(send, head, 0)

    def _pop(self, queue: Queue) -> Tuple[int, List[Tuple[int, int, bool]]]:
        memory, offset = self._user(queue.available, 6 + 2 * queue.size)
        head, = struct.unpack_from(
            '<H', memory, offset + 4 + 2 * (queue.base % queue.size))
        queue.base = queue.base + 1 & 0xffff
        table, first = self._user(queue.descriptors, 16 * queue.size)
        buffers, index, flags = [], head, DESC_NEXT
        while flags & DESC_NEXT:
            if index >= queue.size or len(buffers) >= queue.size:
                raise Violation(f'descriptor {index}')
            address, size, flags, following = struct.unpack_from(
                '<QIHH', table, first + 16 * index)
            buffers.append((address, size, bool(flags & DESC_WRITE)))
            index = following
        return head, buffers

    def _push(self, queue: Queue, head: int, size: int) -> None:
        memory, offset = self._user(queue.used, 6 + 8 * queue.size)
        entry = 4 + 8 * (queue.used_base % queue.size)
        struct.pack_into('<II', memory, offset + entry, head, size)
        queue.used_base = queue.used_base + 1 & 0xffff
        struct.pack_into('<H', memory, offset + 2, queue.used_base)
        if queue.log is not None:
            self._note(queue.log, 4)
            self._note(queue.log + entry, 8)
        if queue.call_fd is not None:
            os.eventfd_write(queue.call_fd, 1)

    def _note(self, address: int, size: int) -> None:
        """Tell of memory that was written to, if that is of interest."""
        if not self._features & F_LOG_ALL or self._log is None:
            return
        for page in range(address // LOG_PAGE,
                          (address + size - 1) // LOG_PAGE + 1):
            if page // 8 >= len(self._log):
                raise Violation(f'the log does not reach {address:#x}')
            self._log[page // 8] |= 1 << page % 8
