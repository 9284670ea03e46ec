"""
Drivers for virtio devices over the qtest protocol: no guest needed.

The firmware of the machine halts its only vCPU for good, so that the drivers
have the devices for themselves. With KVM, memslots, vhost and migration are
all real even where no guest would boot.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import base64
import itertools
import struct
import time
from enum import IntEnum
from typing import Dict, List, Optional, Sequence, Tuple

from qemu.machine.qtest import QEMUQtestProtocol

from vm import MIB, QMP_TIMEOUT, VirtualMachine

# Where the drivers keep what they share with devices.
HEAP = 16 * MIB
# Where BARs go: no RAM is there, and the PCI host lets them through.
BARS = 0xe0000000
BAR_SIZE = 64 * 1024
# Ports to PCI configuration space
PCI_ADDRESS, PCI_DATA = 0xcf8, 0xcfc
# Eject register of the PCI hotplug controller of machine pc.
ACPI_PCI_EJECT = 0xae08
# Something hangs if a request takes as long as that.
REQUEST_TIMEOUT = 30.0

QUEUE_SIZE = 64
DESC_NEXT, DESC_WRITE = 1, 2
F_VERSION_1 = 1 << 32

# A device's buffer: address, size, whether the device writes to it.
Buffer = Tuple[int, int, bool]


class DriverError(Exception):
    """A device did not do what the specification says."""


class Machine(VirtualMachine):
    """
    A machine of type pc or a version of it, the vCPU of which sleeps.

    All of its memory can be shared with vhost-user backends.
    """
    RAM = 64 * MIB

    def __init__(self, binary: str, accel: str, maxmem: int,
                 machine: str = 'pc') -> None:
        super().__init__(binary, accel, self.RAM, maxmem,
                         machine=f'{machine},memory-backend=ram')
        firmware = self.directory / 'firmware'
        firmware.write_bytes(self.firmware())
        socket = str(self.directory / 'qtest')
        self._qtest = QEMUQtestProtocol(socket, server=True)
        self._heap = HEAP
        self._free_bars = itertools.count(BARS, BAR_SIZE)
        self.add_args(
            '-object', f'{self.ram_backend()},id=ram,size={self.RAM}',
            '-bios', str(firmware),
            '-qtest', f'unix:{socket}', '-qtest-log', '/dev/null')

    @staticmethod
    def firmware() -> bytes:
        """What the vCPU runs, 64 KiB."""
        code = bytearray(64 * 1024)
        # At the reset vector: cli, hlt, jmp to the latter
        code[-16:-12] = b'\xfa\xf4\xeb\xfd'
        return bytes(code)

    def ram_backend(self) -> str:
        """Where boot memory comes from."""
        return 'memory-backend-memfd,share=on'

    def _post_launch(self) -> None:
        super()._post_launch()
        self._qtest.accept()
        # Without, a machine that hangs would do so for good.
        self._qmp.settimeout(QMP_TIMEOUT)
        self._qtest.settimeout(QMP_TIMEOUT)

    def _post_shutdown(self) -> None:
        self._qtest.close()
        super()._post_shutdown()

    def qtest(self, command: str) -> str:
        """Run a command of the qtest protocol, return what it gives."""
        answer = self._qtest.cmd(command).split()
        if not answer or answer[0] != 'OK':
            raise DriverError(f'{command[:80]}: {answer}')
        return answer[1] if len(answer) > 1 else ''

    def read(self, address: int, size: int) -> bytes:
        """Read guest-physical memory."""
        return base64.b64decode(self.qtest(f'b64read {address} {size}'))

    def write(self, address: int, data: bytes) -> None:
        """Write guest-physical memory."""
        encoded = base64.b64encode(data).decode('ascii')
        self.qtest(f'b64write {address} {len(data)} {encoded}')

    def number(self, address: int, letter: str) -> int:
        """Read a number; the letter (b, w, l or q) gives its size."""
        return int(self.qtest(f'read{letter} {address}'), 16)

    def set_number(self, address: int, letter: str, value: int) -> None:
        """Write a number."""
        self.qtest(f'write{letter} {address} {value}')

    def pci_read(self, slot: int, register: int) -> int:
        """Read from the configuration space of a device on the root bus."""
        self._select_pci(slot, register)
        return int(self.qtest(f'inl {PCI_DATA}'), 16)

    def pci_write(self, slot: int, register: int, value: int) -> None:
        """Write to it."""
        self._select_pci(slot, register)
        self.qtest(f'outl {PCI_DATA} {value}')

    def _select_pci(self, slot: int, register: int) -> None:
        self.qtest(f'outl {PCI_ADDRESS} '
                   f'{0x80000000 | slot << 11 | register & ~3}')

    def allocate(self, size: int) -> int:
        """Boot memory that nothing else uses, aligned to pages."""
        address = self._heap
        self._heap += -(-size // 4096) * 4096
        assert self._heap <= self.RAM
        return address

    def allocate_bar(self) -> int:
        """Addresses for a device."""
        return next(self._free_bars)

    def adopt(self, other: 'Machine') -> None:
        """Go on where a machine left off that was migrated to this one."""
        # pylint: disable=protected-access
        self._heap = other._heap
        self._free_bars = other._free_bars

    def eject(self, slot: int) -> None:
        """What the guest's ACPI code does about device_del."""
        self.qtest(f'outl {ACPI_PCI_EJECT} {1 << slot}')


def memory_device(name: str, backend: str, slot: int, size: int, block: int,
                  multiple: bool) -> Dict[str, object]:
    """
    What -device and device_add need for a virtio-mem device in a slot, of
    which the guest may plug all, in blocks of a size.
    """
    return {'driver': 'virtio-mem-pci', 'id': name, 'memdev': backend,
            'addr': f'{slot:#x}', 'requested-size': size, 'block-size': block,
            'unplugged-inaccessible': 'on', 'multiple-memslots': multiple}


class Queue:
    """A split virtqueue."""
    # How much room there is for all of its rings, and where these are in it
    SPACE = 4096
    _AVAILABLE, _USED = 16 * QUEUE_SIZE, 32 * QUEUE_SIZE

    def __init__(self, device: 'VirtioDevice',
                 address: Optional[int] = None) -> None:
        """All that the rings take is 0 at an address that is given."""
        self._device = device
        # In boot memory, each has a page of its own.
        self.descriptors, self.available, self.used = (
            device.machine.allocate(size) if address is None else start
            for start, size in self.rings(address or 0))
        self.doorbell = 0
        self._next = 0
        self._posted = 0
        self._seen = 0

    def describe(self, index: int, buffers: Sequence[Buffer]) -> int:
        """Chain descriptors, return the index of the one after the last."""
        for number, (address, size, writable) in enumerate(buffers):
            following = (index + 1) % QUEUE_SIZE
            last = number == len(buffers) - 1
            flags = ((0 if last else DESC_NEXT)
                     | (DESC_WRITE if writable else 0))
            self._device.machine.write(
                self.descriptors + 16 * index,
                struct.pack('<QIHH', address, size, flags,
                            0 if last else following))
            index = following
        return index

    @classmethod
    def rings(cls, address: int) -> List[Tuple[int, int]]:
        """Addresses and sizes of the rings of a queue there."""
        return [(address, 16 * QUEUE_SIZE),
                (address + cls._AVAILABLE, 6 + 2 * QUEUE_SIZE),
                (address + cls._USED, 6 + 8 * QUEUE_SIZE)]

    def post(self, buffers: Sequence[Buffer]) -> None:
        """Give buffers to the device, as one request."""
        machine = self._device.machine
        head = self._next
        self._next = self.describe(head, buffers)
        machine.set_number(
            self.available + 4 + 2 * (self._posted % QUEUE_SIZE), 'w', head)
        self._posted += 1
        machine.set_number(self.available + 2, 'w', self._posted & 0xffff)
        machine.set_number(self.doorbell, 'w', self._device.queues.index(self))

    def is_answered(self) -> bool:
        """Whether there is an answer to wait for."""
        return self._device.machine.number(self.used + 2,
                                           'w') != self._seen & 0xffff

    def wait(self) -> int:
        """Wait for the next answer, return how many bytes it has."""
        machine = self._device.machine
        deadline = time.monotonic() + REQUEST_TIMEOUT
        while not self.is_answered():
            if time.monotonic() > deadline:
                raise DriverError('no answer from the device in slot '
                                  f'{self._device.slot}')
            time.sleep(0.0005)
        entry = self.used + 4 + 8 * (self._seen % QUEUE_SIZE)
        self._seen += 1
        return machine.number(entry + 4, 'l')

    def request(self, buffers: Sequence[Buffer]) -> int:
        """Post a request and wait for its answer."""
        self.post(buffers)
        return self.wait()


class VirtioDevice:
    """A virtio-pci device of the current specification on the root bus."""

    def __init__(self, machine: Machine, slot: int, nr_queues: int,
                 features: int = 0,
                 rings: Optional[Sequence[int]] = None) -> None:
        """The first queues may have their rings at given addresses."""
        self.machine = machine
        self._rings = rings or []
        self.slot = slot
        self._common = self._notify = self._config = 0
        self._multiplier = 0
        self.queues: List[Queue] = []
        self._find()
        self._start(nr_queues, features | F_VERSION_1)

    def _pci_read(self, register: int) -> int:
        return self.machine.pci_read(self.slot, register)

    def _pci_write(self, register: int, value: int) -> None:
        self.machine.pci_write(self.slot, register, value)

    def _find(self) -> None:
        """Map the BAR that has all that is needed, and find things there."""
        if self._pci_read(0) & 0xffff != 0x1af4:
            raise DriverError(f'no virtio device in slot {self.slot}')
        base = self.machine.allocate_bar()
        self._pci_write(0x10 + 4 * 4, base)
        self._pci_write(0x10 + 4 * 5, 0)
        # Memory space, bus master
        self._pci_write(4, 6)
        capability = self._pci_read(0x34) & 0xff
        while capability:
            first = self._pci_read(capability)
            kind = first >> 24
            if first & 0xff == 9 and self._pci_read(capability + 4) & 7 == 4:
                address = base + self._pci_read(capability + 8)
                if kind == 1:
                    self._common = address
                elif kind == 2:
                    self._notify = address
                    self._multiplier = self._pci_read(capability + 16)
                elif kind == 4:
                    self._config = address
            capability = first >> 8 & 0xff

    def _features(self) -> int:
        features = 0
        for half in range(2):
            self.machine.set_number(self._common, 'l', half)
            features |= self.machine.number(self._common + 4,
                                            'l') << 32 * half
        return features

    def _start(self, nr_queues: int, wanted: int) -> None:
        machine, common = self.machine, self._common
        for status in (0, 1, 3):
            machine.set_number(common + 0x14, 'b', status)
        features = self._features() & wanted
        for half in range(2):
            machine.set_number(common + 8, 'l', half)
            machine.set_number(common + 12, 'l',
                               features >> 32 * half & 0xffffffff)
        machine.set_number(common + 0x14, 'b', 11)
        if not machine.number(common + 0x14, 'b') & 8:
            raise DriverError(f'features {features:#x} refused')
        for index in range(nr_queues):
            queue = Queue(self, *self._rings[index:index + 1])
            self.queues.append(queue)
            machine.set_number(common + 0x16, 'w', index)
            machine.set_number(common + 0x18, 'w', QUEUE_SIZE)
            for offset, address in ((0x20, queue.descriptors),
                                    (0x28, queue.available),
                                    (0x30, queue.used)):
                machine.set_number(common + offset, 'l',
                                   address & 0xffffffff)
                machine.set_number(common + offset + 4, 'l', address >> 32)
            queue.doorbell = (self._notify + self._multiplier
                              * machine.number(common + 0x1e, 'w'))
            machine.set_number(common + 0x1c, 'w', 1)
        machine.set_number(common + 0x14, 'b', 15)

    @property
    def has_places(self) -> bool:
        """Whether rings are where somebody wanted them."""
        return bool(self._rings)

    def status(self) -> int:
        """The status of the device."""
        return self.machine.number(self._common + 0x14, 'b')

    def config(self, offset: int, letter: str) -> int:
        """Read a field of the device's configuration."""
        return self.machine.number(self._config + offset, letter)


class Answer(IntEnum):
    """How a virtio-mem device answers a request."""
    ACK = 0
    NACK = 1
    BUSY = 2
    ERROR = 3


class State(IntEnum):
    """What a virtio-mem device tells about a range."""
    PLUGGED = 0
    UNPLUGGED = 1
    MIXED = 2


class VirtioMem(VirtioDevice):
    """A virtio-mem device."""
    PLUG, UNPLUG, UNPLUG_ALL, STATE = 0, 1, 2, 3
    # How many bytes a request and its answer have
    REQUEST, RESPONSE = 24, 10
    # ACPI_PXM, UNPLUGGED_INACCESSIBLE
    FEATURES = 3

    def __init__(self, machine: Machine, slot: int) -> None:
        super().__init__(machine, slot, 1, self.FEATURES)
        self._buffer = machine.allocate(4096)
        self.block = self.config(0, 'q')
        self.start = self.config(16, 'q')

    def _request(self, kind: int, offset: int = 0, size: int = 0) -> Answer:
        address = (self.start + offset) % (1 << 64)
        self.machine.write(self._buffer, struct.pack(
            '<H6xQH6x', kind, address, size // self.block))
        self.queues[0].request([(self._buffer, self.REQUEST, False),
                                (self._buffer + 64, self.RESPONSE, True)])
        return Answer(self.machine.number(self._buffer + 64, 'w'))

    def plug(self, offset: int, size: int) -> Answer:
        """Plug part of the device."""
        return self._request(self.PLUG, offset, size)

    def unplug(self, offset: int, size: int) -> Answer:
        """Unplug part of the device."""
        return self._request(self.UNPLUG, offset, size)

    def unplug_all(self) -> Answer:
        """Unplug all of the device."""
        return self._request(self.UNPLUG_ALL)

    def request_state(self, offset: int, size: int) -> Tuple[Answer, int]:
        """Ask for the State of part of the device."""
        answer = self._request(self.STATE, offset, size)
        return answer, self.machine.number(self._buffer + 64 + 8, 'w')

    def state(self, offset: int, size: int) -> State:
        """What is plugged of part of the device, which has to be valid."""
        answer, state = self.request_state(offset, size)
        if answer != Answer.ACK:
            raise DriverError(f'state of {size:#x} bytes at {offset:#x}: '
                              f'{answer!r}')
        return State(state)

    def alternate(self, offset: int, size: int) -> None:
        """Have the queue's entries plug and unplug a range in turn."""
        queue = self.queues[0]
        for number, kind in enumerate((self.PLUG, self.UNPLUG)):
            buffer = self._buffer + 128 * number
            self.machine.write(buffer, struct.pack(
                '<H6xQH6x', kind, self.start + offset, size // self.block))
            queue.describe(2 * number, [(buffer, self.REQUEST, False),
                                        (buffer + 64, self.RESPONSE, True)])
        for entry in range(QUEUE_SIZE):
            self.machine.set_number(queue.available + 4 + 2 * entry, 'w',
                                    2 * (entry % 2))

    def post_malformed(self) -> None:
        """Post a request that is too short."""
        self.queues[0].post([(self._buffer, self.REQUEST - 1, False),
                             (self._buffer + 64, self.RESPONSE, True)])


class VirtioBlk(VirtioDevice):
    """A virtio-blk device."""
    SECTOR = 512
    IN, OUT = 0, 1
    MQ = 1 << 12
    # Room for the header of a request and its status
    HEADER, STATUS = 128, 64

    def __init__(self, machine: Machine, slot: int, nr_queues: int = 1,
                 rings: Optional[Sequence[int]] = None) -> None:
        super().__init__(machine, slot, nr_queues,
                         (nr_queues > 1) * self.MQ, rings)
        self._buffer = machine.allocate(4096)

    def place(self, address: int) -> None:
        """Where headers of requests and their status are from now on."""
        self._buffer = address

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments
    def post(self, kind: int, offset: int, address: int, size: int,
             queue: int = 0, number: int = 0) -> None:
        """
        Start a request for bytes of the disk; those that are not done yet
        have different numbers.
        """
        header = self._buffer + number * self.HEADER
        self.machine.write(header, struct.pack(
            '<IIQ', kind, 0, offset // self.SECTOR))
        self.machine.set_number(header + self.STATUS, 'b', 255)
        self.queues[queue].post([(header, 16, False),
                                 (address, size, kind == self.IN),
                                 (header + self.STATUS, 1, True)])

    def check(self, number: int = 0) -> None:
        """See that a request was well done."""
        status = self.machine.number(
            self._buffer + number * self.HEADER + self.STATUS, 'b')
        if status:
            raise DriverError(f'I/O error: status {status}')

    def wait(self) -> None:
        """Wait until the request is done, and well done."""
        self.queues[0].wait()
        self.check()

    def transfer(self, kind: int, offset: int, address: int,
                 size: int) -> None:
        """Move bytes between the disk and guest-physical memory."""
        self.post(kind, offset, address, size)
        self.wait()


class VirtioNet(VirtioDevice):
    """A virtio-net device with pairs of queues, all of them in use."""
    HEADER = 12
    LARGEST = 1514
    CTRL_VQ, MQ = 1 << 17, 1 << 22
    # Of the control queue: class and command to use more pairs
    SET_PAIRS = b'\x04\0'
    RECEIVE, SEND = 0, 1

    def __init__(self, machine: Machine, slot: int, nr_pairs: int = 1,
                 rings: Optional[Sequence[int]] = None) -> None:
        multiple = nr_pairs > 1
        super().__init__(machine, slot, 2 * nr_pairs + multiple,
                         multiple * (self.CTRL_VQ | self.MQ), rings)
        self._header = machine.allocate(4096)
        if multiple:
            self._use(nr_pairs)

    def _use(self, nr_pairs: int) -> None:
        buffer = self._header
        self.machine.write(buffer, self.SET_PAIRS
                           + struct.pack('<HB', nr_pairs, 255))
        self.queues[-1].request([(buffer, 2, False), (buffer + 2, 2, False),
                                 (buffer + 4, 1, True)])
        if self.machine.number(buffer + 4, 'b'):
            raise DriverError(f'{nr_pairs} pairs of queues refused')

    def _queue(self, pair: int, which: int) -> Queue:
        return self.queues[2 * pair + which]

    def provide(self, address: int, size: int = LARGEST,
                pair: int = 0) -> None:
        """Have the next packet that comes written to guest memory."""
        self._queue(pair, self.RECEIVE).post([
            (self._header, self.HEADER, True), (address, size, True)])

    def send(self, address: int, size: int, pair: int = 0) -> None:
        """Send a packet that is in guest memory."""
        self.machine.write(self._header + self.HEADER, bytes(self.HEADER))
        self._queue(pair, self.SEND).request([
            (self._header + self.HEADER, self.HEADER, False),
            (address, size, False)])

    def receive(self, pair: int = 0) -> int:
        """Wait for a packet, return its size."""
        return self._queue(pair, self.RECEIVE).wait() - self.HEADER
