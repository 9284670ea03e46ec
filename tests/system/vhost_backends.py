"""
Real vhost-user backends, which are processes of other programs, and the
devices in front of them.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import re
import subprocess
import unittest
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Dict, Iterable, List, Optional, Sequence, Tuple, Type

from qemu.qmp.legacy import QEMUMonitorProtocol

import environment
import mtree
import needs
from drivers import Machine, VirtioBlk, VirtioNet
from host_memory import shared_memory
from vm import GIB, MIB, VirtualMachine, wait_until

DEVICE, MEMORY, DEVICE_SLOT = 'vmem0', 'mem0', 5
MAXMEM = 64 * GIB

# The kernel's __SO_ACCEPTCON
SO_ACCEPTCON = 1 << 16
# A backend that can hold fewer memory regions sees whole devices.
MANY_REGIONS = 509
# A file in memory, as it appears in /proc/PID/maps
_MAPPING = re.compile(r'([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ (\d+) +'
                      r'/memfd:')


@lru_cache(maxsize=None)
def _why_not(script: str, directory: Path) -> Optional[str]:
    result = subprocess.run([str(environment.SCRIPTS / script),
                             str(directory)],
                            stdin=subprocess.DEVNULL, text=True, check=False,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return result.stdout if result.returncode else None


def _get(script: str, name: str) -> Path:
    """Where a script has put what it gets; skips the test if it cannot."""
    directory = environment.build_dir() / name
    reason = _why_not(script, directory)
    if reason is not None:
        needs.lack(needs.NET, reason)
    return directory


def peer_qemu() -> str:
    """A QEMU that has virtio-mem with dynamic-memslots."""
    return str(_get('peer-qemu', 'peer') / 'qemu-system-x86_64')


@dataclass(frozen=True)
class Mapping:
    """A part of its address space where a process has part of a file."""
    address: int
    offset: int
    size: int


def joined(ranges: Iterable[Tuple[int, int]]) -> List[Tuple[int, int]]:
    """Ranges of a file, offsets and sizes, with what is adjacent joined."""
    found: List[Tuple[int, int]] = []
    for offset, size in sorted(ranges):
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((offset, size))
    return found


def is_listening(socket: Path) -> bool:
    """
    Whether somebody accepts connections to a socket. It is there before that,
    and trying would be a connection.
    """
    # Columns: number, references, protocol, flags, type, state, inode, path
    sockets = Path('/proc/net/unix').read_text(encoding='utf-8')
    return any(int(columns[3], 16) & SO_ACCEPTCON
               for columns in map(str.split, sockets.splitlines())
               if columns[-1] == str(socket))


class Backend:
    """A vhost-user backend that listens on a socket."""
    # How many memory regions it can hold
    LIMIT: int

    def __init__(self, test: unittest.TestCase, directory: Path,
                 name: str) -> None:
        """The @test ends it."""
        self.socket = directory / f'{name}.socket'
        self._log = directory / f'{name}.log'
        self._process: 'Optional[subprocess.Popen[str]]' = None
        test.addCleanup(self.kill)

    @classmethod
    def is_whole(cls) -> bool:
        """Whether it sees memory devices as a whole, not their memslots."""
        return cls.LIMIT < MANY_REGIONS

    def command(self) -> Sequence[str]:
        """The command that runs it."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def _input(self) -> IO[str]:
        assert self._process is not None and self._process.stdin is not None
        return self._process.stdin

    def ended(self) -> Optional[int]:
        """How it ended, or None if it runs."""
        assert self._process is not None
        return self._process.poll()

    def log(self) -> str:
        """What it printed since it was started."""
        return self._log.read_text(encoding='utf-8', errors='replace')

    def is_ready(self) -> bool:
        """Whether a started backend can be used."""
        return is_listening(self.socket)

    def start(self) -> None:
        """Start it, the first time or once more."""
        self.socket.unlink(missing_ok=True)
        with self._log.open('w', encoding='utf-8') as log:
            # pylint: disable=consider-using-with
            self._process = subprocess.Popen(
                list(self.command()), stdin=subprocess.PIPE, text=True,
                stdout=log, stderr=subprocess.STDOUT)
        process = self._process

        def ready() -> Optional[bool]:
            if process.poll() is not None:
                raise RuntimeError(f'{process.args!r} has ended: '
                                   + self.log())
            return self.is_ready() or None
        wait_until(f'{process.args!r} listens', ready, timeout=60)

    def kill(self) -> None:
        """Have it end without warning."""
        if self._process is not None:
            self._process.kill()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait()
            self._process = None

    def mappings(self, inode: int) -> List[Mapping]:
        """
        Where it has mapped a file in memory: it does that once for each
        memory region that it is told of, but the kernel joins what happens to
        be adjacent.
        """
        found = []
        maps = Path(f'/proc/{self.pid}/maps').read_text(encoding='utf-8')
        for line in maps.splitlines():
            match = _MAPPING.match(line)
            if match and int(match[4]) == inode:
                first, end, offset = (int(match[number], 16)
                                      for number in (1, 2, 3))
                found.append(Mapping(first, offset, end - first))
        return found


class StorageDaemon(Backend):
    """
    QEMU's own, with a block device; it can hold 509 memory regions. A limit
    for the requests per second keeps some always in flight.
    """
    LIMIT = 509

    def __init__(self, test: unittest.TestCase, directory: Path, name: str,
                 disk: Path, limit: int = 0) -> None:
        super().__init__(test, directory, name)
        self._disk = disk
        self._limit = limit

    @staticmethod
    def program() -> Sequence[str]:
        """What runs it."""
        return [str(environment.build_dir() / 'qemu-storage-daemon')]

    def command(self) -> Sequence[str]:
        return [
            *self.program(),
            # Both ends of a migration have the file open.
            '--object', f'throttle-group,id=limits,'
                        f'limits.iops-total={self._limit}',
            '--blockdev', 'driver=throttle,throttle-group=limits,'
                          'node-name=disk,file.driver=file,'
                          f'file.locking=off,file.filename={self._disk}',
            '--export', 'type=vhost-user-blk,id=export,node-name=disk,'
                        'writable=on,num-queues=2,addr.type=unix,'
                        f'addr.path={self.socket}']


class HeldStorageDaemon(StorageDaemon):
    """
    One with a disk that answers when the test says so, for several front
    ends.
    """

    def __init__(self, test: unittest.TestCase, directory: Path, name: str,
                 disk: Path, nr_exports: int = 2) -> None:
        super().__init__(test, directory, name, disk)
        self.sockets = [self.socket] + [
            directory / f'{name}-{number}.socket'
            for number in range(1, nr_exports)]
        self._monitor = directory / f'{name}.monitor'

    def monitor(self) -> QEMUMonitorProtocol:
        """A connection to its monitor."""
        monitor = QEMUMonitorProtocol(str(self._monitor))
        monitor.connect()
        return monitor

    def command(self) -> Sequence[str]:
        command = [*self.program(),
                   '--chardev', 'socket,id=monitor,server=on,wait=off,'
                                f'path={self._monitor}',
                   '--monitor', 'chardev=monitor',
                   '--blockdev',
                   'driver=nbd,node-name=disk,server.type=unix,'
                   f'server.path={self._disk}']
        for number, path in enumerate(self.sockets):
            command += ['--export', f'type=vhost-user-blk,id=export{number},'
                                    'node-name=disk,writable=on,num-queues=2,'
                                    f'addr.type=unix,addr.path={path}']
        return command

    def is_ready(self) -> bool:
        return all(is_listening(path) for path in self.sockets)


class OldStorageDaemon(StorageDaemon):
    """The one of QEMU 7.2, which can hold 32 memory regions."""
    LIMIT = 32

    @staticmethod
    def program() -> Sequence[str]:
        return [environment.stock_storage_daemon()]


class Testpmd(Backend):
    """
    DPDK's, with a network device that returns all packets; it can hold 8
    memory regions, and takes none alone, only the table of all.
    """
    LIMIT = 8

    def command(self) -> Sequence[str]:
        program = _get('dpdk-testpmd', 'dpdk') / 'dpdk-testpmd'
        cpus = ','.join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))
        return [
            str(program), '-m', '64',
            # One thread waits for commands, one forwards packets.
            '--lcores', f'(0,1)@({cpus})',
            '--vdev', f'net_vhost0,iface={self.socket},'
                      'postcopy-support=1',
            # Locked, all memory of the VM would be allocated.
            '--', '--no-mlockall', '--interactive', '--no-numa',
            # What is sent before packets are forwarded is not lost.
            '--no-flush-rx', '--total-num-mbufs=2048',
            '--port-topology=loop']

    def is_ready(self) -> bool:
        return super().is_ready() and 'testpmd>' in self.log()

    def forward(self) -> None:
        """Return packets from now on. That takes all of a CPU."""
        print('start', file=self._input, flush=True)


class TracedMachine(Machine):
    """A machine without a guest that records what KVM and vhost are told."""

    def __init__(self, binary: str, accel: Optional[str] = None,
                 maxmem: int = MAXMEM, machine: str = 'pc') -> None:
        self.accel = accel or ('kvm' if environment.has_kvm() else 'tcg')
        super().__init__(binary, self.accel, maxmem, machine)
        self.trace = self.directory / 'trace'
        self.add_args('-D', str(self.trace))
        for event in ('kvm_set_user_memory', 'vhost_user_write',
                      'vhost_user_postcopy_fault_handler_found'):
            self.add_args('-trace', event)

    def add_device(self, multiple: str, size: int) -> None:
        """Add the virtio-mem device, nothing plugged."""
        self.add_args(
            '-object', f'memory-backend-memfd,id={MEMORY},size={size},'
                       'share=on,reserve=off',
            '-device', f'virtio-mem-pci,id={DEVICE},memdev={MEMORY},'
                       f'addr={DEVICE_SLOT},requested-size={size},'
                       f'unplugged-inaccessible=on,{multiple}')

    def plug_device(self, slot: int, size: int) -> None:
        """Add another virtio-mem device to a machine that runs."""
        self.cmd('object-add', qom_type='memory-backend-memfd',
                 id=f'mem{slot}', size=size, share=True, reserve=False)
        self.cmd('device_add', driver='virtio-mem-pci', id=f'vmem{slot}',
                 memdev=f'mem{slot}', addr=str(slot))

    def memslots(self) -> List[Tuple[int, int]]:
        """
        The memslots that the device has mapped, address and size: what KVM
        was told (where there is KVM) and the flat view have to agree.
        """
        flat = [(part.address, part.size) for part in
                mtree.rendered(self.hmp('info mtree -f'), MEMORY)]
        if self.accel == 'kvm':
            device = self.memory_device(DEVICE)
            first = device['memaddr']
            told = [(address, size) for address, size in self._kvm_memslots()
                    if first <= address < first + device['max-size']]
            assert told == flat, (told, flat)
        return flat

    def device_memslot_calls(self) -> int:
        """How often KVM was told of memslots of the device so far."""
        first = self.memory_device(DEVICE)['memaddr']
        return sum(int(match[1], 16) >= first for match in re.finditer(
            r'^kvm_set_user_memory .*gpa=0x([0-9a-f]+) ',
            self.trace.read_text('utf-8'), re.M))

    def _kvm_memslots(self) -> List[Tuple[int, int]]:
        slots: Dict[str, Tuple[int, int]] = {}
        for match in re.finditer(
                r'^kvm_set_user_memory (.*Slot#\d+) .*gpa=0x([0-9a-f]+) '
                r'size=0x([0-9a-f]+) .*ret=0$',
                self.trace.read_text('utf-8'), re.M):
            if int(match[3], 16):
                slots[match[1]] = (int(match[2], 16), int(match[3], 16))
            else:
                slots.pop(match[1], None)
        return sorted(slots.values())

    def messages(self) -> 'Counter[int]':
        """The messages that backends were sent so far, by their kind."""
        return Counter(int(number) for number in re.findall(
            r'^vhost_user_write .*req:(\d+) ',
            self.trace.read_text('utf-8'), re.M))

    def faults(self) -> int:
        """How often backends needed memory that had not arrived yet."""
        return len(re.findall('^vhost_user_postcopy_fault_handler_found ',
                              self.trace.read_text('utf-8'), re.M))

    def inode(self, size: int) -> int:
        """The file that is the device's memory."""
        return shared_memory(self.get_pid() or 0, size)


def wait_deleted(vm: VirtualMachine, name: str) -> None:
    """Wait until a device is gone that the guest agreed to lose."""
    def is_deleted() -> Optional[bool]:
        # Events are only received together with an answer.
        vm.cmd('query-status')
        return any(event['event'] == 'DEVICE_DELETED'
                   and event['data'].get('device') == name
                   for event in vm.get_qmp_events()) or None
    wait_until(f'{name} is gone', is_deleted, timeout=30)


def add_chardev(vm: VirtualMachine, name: str, socket: Path) -> None:
    """Connect a machine that runs to a backend."""
    vm.cmd('chardev-add', id=name, backend={
        'type': 'socket', 'data': {
            'addr': {'type': 'unix', 'data': {'path': str(socket)}},
            'server': False}})


class Attachment:
    """A backend and the device in front of it."""
    kind: Type[Backend]
    # Names of the character device and the device, and its slot
    chardev: str
    front: str
    slot: int
    # How much can be moved at once
    largest: int

    def __init__(self, test: unittest.TestCase, machine: Machine) -> None:
        self.machine = machine
        self.backend = self.make_backend(test, machine.directory)
        self.backend.start()

    def make_backend(self, test: unittest.TestCase,
                     directory: Path) -> Backend:
        """A backend that has not been started."""
        return self.kind(test, directory, self.front)

    def twin(self, test: unittest.TestCase,
             machine: Machine) -> 'Attachment':
        """One to migrate to."""
        return type(self)(test, machine)

    @classmethod
    def arguments(cls, backend: Backend) -> List[str]:
        """Arguments for a machine that has it from the start."""
        return ['-chardev', f'socket,id={cls.chardev},path={backend.socket},'
                            'reconnect-ms=1000']

    @classmethod
    def connect(cls, vm: VirtualMachine, backend: Backend) -> None:
        """Add it to a machine that runs."""
        add_chardev(vm, cls.chardev, backend.socket)

    @classmethod
    def disconnect(cls, vm: VirtualMachine) -> None:
        """Remove what is left when the guest has agreed to device_del."""
        wait_deleted(vm, cls.front)

    def add(self) -> None:
        """Have it there from the start."""
        self.machine.add_args(*self.arguments(self.backend))

    def plug(self) -> None:
        """Add it while the machine runs."""
        self.connect(self.machine, self.backend)

    def unplug(self) -> None:
        """Remove it while the machine runs."""
        self.machine.cmd('device_del', id=self.front)
        self.machine.eject(self.slot)
        self.disconnect(self.machine)

    def start(self) -> None:
        """Start the device's driver."""
        raise NotImplementedError

    def adopt(self, other: 'Attachment') -> None:
        """Go on with the driver of one that was migrated here."""
        raise NotImplementedError

    def restart(self) -> None:
        """Start the backend again after it was killed."""
        self.backend.start()

    def deliver(self, address: int, data: bytes) -> None:
        """Have the backend write to guest-physical memory."""
        raise NotImplementedError

    def collect(self, address: int, size: int) -> bytes:
        """Have the backend read guest-physical memory."""
        raise NotImplementedError


class Block(Attachment):
    """A block device and its disk."""
    kind: Type[StorageDaemon] = StorageDaemon
    chardev, front, slot = 'vhost0', 'disk', 6
    largest = 64 * 1024
    # Properties of the device
    properties: Dict[str, int] = {}
    DISK = 4 * MIB

    def __init__(self, test: unittest.TestCase, machine: Machine,
                 disk: Optional[Path] = None) -> None:
        self.disk = disk or machine.directory / f'{self.front}.image'
        if disk is None:
            self.disk.write_bytes(bytes(self.DISK))
        self._driver: Optional[VirtioBlk] = None
        super().__init__(test, machine)

    def make_backend(self, test: unittest.TestCase,
                     directory: Path) -> Backend:
        return self.kind(test, directory, self.front, self.disk)

    def twin(self, test: unittest.TestCase, machine: Machine) -> 'Block':
        return type(self)(test, machine, self.disk)

    @classmethod
    def arguments(cls, backend: Backend) -> List[str]:
        return [*super().arguments(backend),
                '-device', f'vhost-user-blk-pci,id={cls.front},'
                           f'chardev={cls.chardev},addr={cls.slot}'
                + ''.join(f',{name}={value}'
                          for name, value in cls.properties.items())]

    @classmethod
    def connect(cls, vm: VirtualMachine, backend: Backend) -> None:
        super().connect(vm, backend)
        vm.cmd('device_add', {
            'driver': 'vhost-user-blk-pci', 'id': cls.front,
            'chardev': cls.chardev, 'addr': str(cls.slot),
            **cls.properties})

    @classmethod
    def disconnect(cls, vm: VirtualMachine) -> None:
        super().disconnect(vm)
        vm.cmd('chardev-remove', id=cls.chardev)

    def start(self) -> None:
        self._driver = VirtioBlk(self.machine, self.slot)

    def adopt(self, other: Attachment) -> None:
        assert isinstance(other, Block) and other._driver is not None
        self._driver = other._driver
        self._driver.machine = self.machine

    def _offset(self, address: int) -> int:
        """Anywhere, but not always the same."""
        return address // 4096 % (self.DISK // self.largest) * self.largest

    def deliver(self, address: int, data: bytes) -> None:
        assert self._driver is not None
        with self.disk.open('r+b') as disk:
            disk.seek(self._offset(address))
            disk.write(data)
        self._driver.transfer(VirtioBlk.IN, self._offset(address), address,
                              len(data))

    def collect(self, address: int, size: int) -> bytes:
        assert self._driver is not None
        self._driver.transfer(VirtioBlk.OUT, self._offset(address), address,
                              size)
        with self.disk.open('rb') as disk:
            disk.seek(self._offset(address))
            return disk.read(size)


class OldBlock(Block):
    """A block device whose backend can hold fewer memory regions."""
    kind = OldStorageDaemon
    chardev, front, slot = 'vhost2', 'old-disk', 4


class Net(Attachment):
    """A network device that gets back what it sends."""
    kind = Testpmd
    chardev, front, slot = 'vhost1', 'nic', 7
    largest = 1024

    def __init__(self, test: unittest.TestCase, machine: Machine) -> None:
        self._driver: Optional[VirtioNet] = None
        self._buffer = machine.allocate(4096)
        super().__init__(test, machine)

    @classmethod
    def arguments(cls, backend: Backend) -> List[str]:
        return [*super().arguments(backend),
                '-netdev', f'vhost-user,id={cls.front}-netdev,'
                           f'chardev={cls.chardev}',
                '-device', f'virtio-net-pci,id={cls.front},'
                           f'netdev={cls.front}-netdev,addr={cls.slot}']

    @classmethod
    def connect(cls, vm: VirtualMachine, backend: Backend) -> None:
        super().connect(vm, backend)
        vm.cmd('netdev_add', type='vhost-user', id=f'{cls.front}-netdev',
               chardev=cls.chardev)
        vm.cmd('device_add', driver='virtio-net-pci', id=cls.front,
               netdev=f'{cls.front}-netdev', addr=str(cls.slot))

    @classmethod
    def disconnect(cls, vm: VirtualMachine) -> None:
        super().disconnect(vm)
        # Takes the character device along.
        vm.cmd('netdev_del', id=f'{cls.front}-netdev')

    def start(self) -> None:
        self._driver = VirtioNet(self.machine, self.slot)
        self._forward()

    def _forward(self) -> None:
        assert isinstance(self.backend, Testpmd)
        self.backend.forward()

    def adopt(self, other: Attachment) -> None:
        assert isinstance(other, Net) and other._driver is not None
        self._driver = other._driver
        self._driver.machine = self.machine
        self._buffer = other._buffer
        # The backend announces the guest, which comes back like all else.
        self._driver.provide(self._buffer)
        self._forward()
        self._driver.receive()

    def restart(self) -> None:
        super().restart()
        self._forward()

    def _loop(self, source: int, target: int, size: int) -> None:
        """Have a packet sent, and received again."""
        assert self._driver is not None
        self._driver.provide(target)
        self._driver.send(source, size)
        received = self._driver.receive()
        assert received == size, (received, size)

    def deliver(self, address: int, data: bytes) -> None:
        self.machine.write(self._buffer, data)
        self._loop(self._buffer, address, len(data))

    def collect(self, address: int, size: int) -> bytes:
        self._loop(address, self._buffer, size)
        return self.machine.read(self._buffer, size)
