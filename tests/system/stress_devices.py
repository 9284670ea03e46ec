"""
The devices of a machine of stress_machine.py that have backends, and those
with BARs of RAM.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import copy
import unittest
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, TypeVar

import nbd_disk
from drivers import Queue, VirtioBlk, VirtioMem, VirtioNet
from nbd_disk import SLOW
from stress_memory import PAGE
from stress_values import agree, pattern, read_stamp
from vhost_back_end import BackEnd
from vhost_backends import (Backend, Block, HeldStorageDaemon,
                            OldStorageDaemon, TracedMachine, add_chardev,
                            wait_deleted)
from vhost_front_end import TIMEOUT, FrontEnd, Message
from vm import MIB, Disagreement, wait_until

T = TypeVar('T')


@dataclass
class Drivers:
    """The drivers of a machine that have been started."""
    machine: TracedMachine
    # By the index of their devices
    memory: Dict[int, VirtioMem] = field(default_factory=dict)
    disk: Optional[VirtioBlk] = None
    network: Optional[VirtioNet] = None

    def copied(self, machine: TracedMachine) -> 'Drivers':
        """Drivers as they are now, for this machine or another one."""
        return copy.deepcopy(self, {id(self.machine): machine})


def make_rings(machine: TracedMachine, address: Optional[int],
               nr_queues: int) -> Optional[Sequence[int]]:
    """Where rings are in memory that has an address, if it is given."""
    if address is None:
        return None
    space = nr_queues * Queue.SPACE
    machine.write(address, bytes(space))
    return range(address, address + space, Queue.SPACE)


class Disk(Block):
    """A disk, without its driver."""
    nr_queues = 1
    machine: TracedMachine

    def __init__(self, test: unittest.TestCase, machine: TracedMachine,
                 nbd: 'nbd_disk.Disk', path: Path) -> None:
        self.nbd = nbd
        # Requests in flight that are held
        self.held: List[int] = []
        # The other one that is told to stop, if there is one
        self.network: Optional[BackEnd] = None
        super().__init__(test, machine, path)

    def start(self) -> None:
        self.start_at(None)

    def start_at(self, address: Optional[int]) -> None:
        """Start a driver, with rings in memory that has an address."""
        self._driver = VirtioBlk(
            self.machine, self.slot, self.nr_queues,
            make_rings(self.machine, address, self.nr_queues))

    @property
    def driver(self) -> VirtioBlk:
        """Its driver."""
        assert self._driver is not None
        return self._driver

    def with_driver(self, drivers: Drivers) -> 'Disk':
        """Itself, with a driver that may have to be started."""
        if drivers.disk is None:
            self.start()
            drivers.disk = self._driver
        self._driver = drivers.disk
        return self

    def drain(self, call: Callable[[], T], forgets: bool = False) -> T:
        """
        Do what QEMU cannot do while there are requests in flight, after which
        the rings may not be there any more.
        """
        raise NotImplementedError

    def perhaps_drain(self, call: Callable[[], T]) -> T:
        """Likewise, if QEMU waits for them."""
        raise NotImplementedError


class OldDisk(Disk):
    """One whose backend can hold few memory regions."""
    kind = OldStorageDaemon

    def __init__(self, test: unittest.TestCase, machine: TracedMachine,
                 nbd: 'nbd_disk.Disk') -> None:
        path = nbd.path.with_name('disk')
        if not path.exists():
            path.write_bytes(bytes(self.DISK))
        super().__init__(test, machine, nbd, path)


class HeldDisk(Disk):
    """One that answers part of the requests when it is told to."""
    nr_queues = 2
    properties = {'num-queues': nr_queues}

    def __init__(self, test: unittest.TestCase, machine: TracedMachine,
                 nbd: 'nbd_disk.Disk') -> None:
        self._test = test
        self._other: Optional[FrontEnd] = None
        self._nr_others = 0
        super().__init__(test, machine, nbd, nbd.path)

    def make_backend(self, test: unittest.TestCase,
                     directory: Path) -> Backend:
        return HeldStorageDaemon(test, directory, self.front, self.nbd.path)

    def _offset(self, address: int) -> int:
        return SLOW + address % (nbd_disk.SIZE - SLOW) // PAGE * PAGE

    def deliver(self, address: int, data: bytes) -> None:
        offset = self._offset(address)
        self.nbd.data[offset:offset + len(data)] = data
        self.driver.transfer(VirtioBlk.IN, offset, address, len(data))

    def collect(self, address: int, size: int) -> bytes:
        offset = self._offset(address)
        self.driver.transfer(VirtioBlk.OUT, offset, address, size)
        return bytes(self.nbd.data[offset:offset + size])

    def begin(self, address: int, data: bytes) -> None:
        """Have the backend be about to write to guest-physical memory."""
        number = len(self.held) + 1
        offset = number * PAGE
        self.nbd.data[offset:offset + len(data)] = data
        self.driver.post(VirtioBlk.IN, offset, address, len(data), 1, number)
        self.held.append(number)
        self.nbd.wait_held(number)

    def end(self) -> None:
        """Have it write."""
        self.check_others()
        self.nbd.release()
        self._finish(self.driver)

    def _finish(self, driver: Optional[VirtioBlk]) -> None:
        """All that was held is done, which a driver may see."""
        if driver is not None:
            for _ in self.held:
                driver.queues[1].wait()
            for number in self.held:
                driver.check(number)
        self.held = []
        self.nbd.hold()
        self.check_others()

    def drain(self, call: Callable[[], T], forgets: bool = False) -> T:
        told, driver = self._nr_told(), self.driver
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(call)
            try:
                wait_until('the backend is to stop', lambda: (
                    future.done() or self._nr_told() > told or None),
                    timeout=TIMEOUT, pause=0.005)
                if self._nr_told() == told:
                    raise Disagreement('the backend is not told to stop: '
                                       f'{future.exception()}')
                self.check_others()
            finally:
                self.nbd.release()
            result = future.result(TIMEOUT)
        self._finish(None if forgets else driver)
        return result

    def perhaps_drain(self, call: Callable[[], T]) -> T:
        told = self._nr_told()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(call)
            try:
                wait_until('done, or the backend is to stop', lambda: (
                    future.done() or self._nr_told() > told or None),
                    timeout=TIMEOUT, pause=0.002)
                is_told = self._nr_told() > told
                if is_told:
                    self.check_others()
            except BaseException:
                self.nbd.release()
                raise
            if not is_told:
                return future.result()
            self.nbd.release()
            result = future.result(TIMEOUT)
        # The driver has no rings any more.
        self._finish(None)
        return result

    def _nr_told(self) -> int:
        """How often the backend was told to stop a queue."""
        told = self.machine.messages()[Message.GET_VRING_BASE]
        return told - (self.network.nr_stopped() if self.network else 0)

    def check_others(self) -> None:
        """The backend serves another front end."""
        if self._other is None:
            assert isinstance(self.backend, HeldStorageDaemon)
            self._other = FrontEnd(self._test, self.backend.sockets[1])
        other = self._other
        request = other.read(0, SLOW, (MIB - PAGE, PAGE))
        self._nr_others += 1

        def is_done() -> bool:
            agree('end of the backend', self.backend.ended(), None)
            return other.queues[0].used == self._nr_others & 0xffff
        wait_until('the backend serves others', lambda: is_done() or None,
                   timeout=TIMEOUT, pause=0.001)
        agree('status of a request of others', request.status, 0)


class NetworkDevice:
    """A network device and its backend, without its driver."""
    chardev, front, slot = 'vhost3', 'nic', 7

    def __init__(self, test: unittest.TestCase, machine: TracedMachine,
                 limit: int, pairs: int) -> None:
        self.machine = machine
        self.pairs = pairs
        self.backend = BackEnd(test, machine.directory, self.front, limit,
                               pairs)
        self.backend.start()
        self._buffer: Optional[int] = None

    def twin(self, test: unittest.TestCase,
             machine: TracedMachine) -> 'NetworkDevice':
        """One to migrate to."""
        return NetworkDevice(test, machine, self.backend.limit, self.pairs)

    @property
    def _multiple(self) -> bool:
        return self.pairs > 1

    def add(self) -> None:
        """Have it there from the start."""
        multiple = 'on' if self._multiple else 'off'
        self.machine.add_args(
            '-chardev',
            f'socket,id={self.chardev},path={self.backend.socket}',
            '-netdev', f'vhost-user,id={self.front}-netdev,'
                       f'chardev={self.chardev},queues={self.pairs}',
            '-device', f'virtio-net-pci,id={self.front},romfile=,'
                       f'netdev={self.front}-netdev,addr={self.slot},'
                       f'mq={multiple}')

    def plug(self) -> None:
        """Add it while the machine runs."""
        add_chardev(self.machine, self.chardev, self.backend.socket)
        self.machine.cmd('netdev_add', type='vhost-user',
                         id=f'{self.front}-netdev', chardev=self.chardev,
                         queues=self.pairs)
        self.machine.cmd('device_add', driver='virtio-net-pci',
                         id=self.front, netdev=f'{self.front}-netdev',
                         addr=str(self.slot), romfile='', mq=self._multiple)

    def remove(self) -> None:
        """Remove what is left without the device."""
        # Takes the character device along.
        self.machine.cmd('netdev_del', id=f'{self.front}-netdev')
        self.backend.kill()

    def unplug(self) -> None:
        """Remove it while the machine runs."""
        self.machine.cmd('device_del', id=self.front)
        self.machine.eject(self.slot)
        wait_deleted(self.machine, self.front)
        self.remove()

    def start(self, address: Optional[int]) -> VirtioNet:
        """Start a driver, with rings in memory that has an address."""
        return VirtioNet(self.machine, self.slot, self.pairs,
                         make_rings(self.machine, address, 2 * self.pairs))

    def _own_buffer(self) -> int:
        if self._buffer is None:
            self._buffer = self.machine.allocate(PAGE)
        return self._buffer

    def _loop(self, driver: VirtioNet, source: int, target: int,
              pair: int) -> None:
        driver.provide(target, PAGE, pair)
        driver.send(source, PAGE, pair)
        agree('size of what comes back', driver.receive(pair), PAGE)

    def deliver(self, driver: VirtioNet, address: int, stamp: int) -> None:
        """Have the backend write to guest-physical memory."""
        buffer = self._own_buffer()
        self.machine.write(buffer, pattern(stamp))
        self._loop(driver, buffer, address, stamp % self.pairs)

    def collect(self, driver: VirtioNet, address: int, stamp: int) -> str:
        """Have the backend read guest-physical memory."""
        buffer = self._own_buffer()
        self._loop(driver, address, buffer, stamp % self.pairs)
        return read_stamp(self.machine.read(buffer, PAGE))


class Bar:
    """The BAR of a PCI device that has RAM."""
    SLOTS = (10, 11)
    # Where nothing else is
    ALONE = 1 << 39
    COMMAND, BAR2 = 4, 0x18
    MEMORY_SPACE = 2

    def __init__(self, machine: TracedMachine, number: int, size: int,
                 shared: bool) -> None:
        self._machine = machine
        self._slot = self.SLOTS[number]
        self.alone = self.ALONE + number * (1 << 30)
        self.size = size
        self.memory = f'shm{number}'
        kind = 'memfd,share=on' if shared else 'ram'
        machine.add_args(
            '-object', f'memory-backend-{kind},id={self.memory},size={size}',
            '-device', f'ivshmem-plain,memdev={self.memory},master=on,'
                       f'addr={self._slot:#x}')

    def move(self, address: Optional[int]) -> None:
        """Have it at an address, or nowhere."""
        if address is None:
            self._machine.pci_write(self._slot, self.COMMAND, 0)
            return
        address &= -self.size
        for register, value in ((self.BAR2, address & 0xffffffff),
                                (self.BAR2 + 4, address >> 32),
                                (self.COMMAND, self.MEMORY_SPACE)):
            self._machine.pci_write(self._slot, register, value)

    @property
    def address(self) -> Optional[int]:
        """Where it is."""
        read = self._machine.pci_read
        if not read(self._slot, self.COMMAND) & self.MEMORY_SPACE:
            return None
        # It is nowhere at 0, where it is at first.
        return (read(self._slot, self.BAR2) & -16
                | read(self._slot, self.BAR2 + 4) << 32) or None
