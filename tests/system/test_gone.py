"""
Memory goes that is still used, by I/O that ends later: that must be no harm,
even if other memory has come in its place and under its name.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import os
import unittest
from pathlib import Path
from typing import Dict, List

from qemu.qmp import ExecuteError

import environment
import host_memory
from drivers import Answer, Machine, VirtioBlk, VirtioMem, memory_device
from nbd_disk import Disk
from vhost_backends import wait_deleted
from vm import GIB, MIB, wait_until

NAME, BACKEND = 'vmem0', 'vmem0-backend'
DEVICE_SLOT, DISK_SLOT = 5, 6
SIZE = 4 * GIB
BLOCK = 2 * MIB
PAGE = 4096
VALUE = 0x1122334455667788
# Of the controller of memory slots: which one, and what to do to it
SLOT_PORT, CONTROL_PORT = 0xa00, 0xa14
EJECT = 8


class Base:
    """Hidden from the loader of tests."""

    class Rig(unittest.TestCase):
        """A machine with a disk that can be slow."""
        machine_type = 'pc'
        # Of the files that are watched
        size = SIZE
        disk_properties = ''

        def setUp(self) -> None:
            self.machine = Machine(environment.qemu_system(), 'tcg', 16 * GIB,
                                   self.machine_type)
            self.addCleanup(self.machine.shutdown)
            self.slow = Disk(self, self.machine.directory)
            self.machine.add_args(
                '-blockdev', 'nbd,node-name=disk,server.type=unix,'
                             f'server.path={self.slow.path}',
                '-object', 'iothread,id=iothread',
                '-device', f'virtio-blk-pci,drive=disk,addr={DISK_SLOT}'
                           + self.disk_properties)
            # Looking for partitions, for example
            self.slow.release()
            self.machine.launch()
            self.disk = VirtioBlk(self.machine, DISK_SLOT)
            self.before = self.descriptors()

        def descriptors(self) -> int:
            """How many files QEMU has open."""
            return host_memory.nr_descriptors(self.machine.get_pid() or 0)

        def files(self) -> Dict[int, int]:
            """Files with the memory that is watched; what each has of it."""
            found = {}
            directory = f'/proc/{self.machine.get_pid()}/fd'
            for name in os.listdir(directory):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(f'{directory}/{name}')
                    if status.st_size == self.size:
                        found[status.st_ino] = status.st_blocks * 512
            return found

        def begin(self, kind: int, address: int) -> None:
            """Start I/O that does not end before finish()."""
            self.slow.hold()
            self.disk.post(kind, 0, address, PAGE)
            self.slow.wait_held(1)

        def finish(self) -> None:
            """End it."""
            self.slow.release()
            self.disk.wait()

        def wait_closed(self, left: int = 0) -> None:
            """So many of these files are left in the end."""
            wait_until(f'{left} files are left', lambda: len(
                self.files()) == left or None)

        def drain(self) -> None:
            """
            Nobody but the I/O uses the memory any more: when a device cannot
            be plugged, QEMU waits until RCU has freed what there is to free.
            """
            # What is freed may be the last to use something else.
            for _ in range(3):
                with self.assertRaisesRegex(ExecuteError, 'memdev'):
                    self.machine.cmd('device_add', driver='virtio-mem-pci')

    class Tests(Rig):
        """What is tested with each kind of memory and of disk."""
        backend = 'memory-backend-memfd'
        multiple = True
        # From add() on
        memory: VirtioMem

        def add_backend(self) -> None:
            """Memory for the device."""
            self.machine.cmd('object-add', qom_type=self.backend, id=BACKEND,
                             size=SIZE, share=True, reserve=False)

        def add(self) -> None:
            """Plug a device that has a block of memory plugged."""
            self.add_backend()
            self.machine.cmd('device_add', **memory_device(
                NAME, BACKEND, DEVICE_SLOT, SIZE, BLOCK, self.multiple))
            self.memory = VirtioMem(self.machine, DEVICE_SLOT)
            self.plug()

        def plug(self) -> None:
            """Plug a block, see that it is new, and use it."""
            self.assertEqual(self.memory.plug(0, BLOCK), Answer.ACK)
            self.assertEqual(self.machine.number(self.memory.start, 'q'), 0)
            self.machine.set_number(self.memory.start, 'q', VALUE)

        def remove(self, asked: bool) -> None:
            """Have the device go, and delete its backend."""
            if asked:
                self.machine.request(NAME, 0)
                self.assertEqual(self.memory.unplug_all(), Answer.ACK)
                self.machine.cmd('device_del', id=NAME)
            self.machine.eject(DEVICE_SLOT)
            wait_deleted(self.machine, NAME)
            self.machine.cmd('object-del', id=BACKEND)

        def check(self, kind: int, asked: bool) -> None:
            """I/O ends after its memory has gone."""
            for _ in range(2):
                self.add()
                self.begin(kind, self.memory.start)
                self.remove(asked)
                self.drain()
                self.assertEqual(len(self.files()), 1)
                self.finish()
                self.wait_closed()
            self.assertEqual(self.descriptors(), self.before)

        def test_read(self) -> None:
            """The disk was read from."""
            self.check(VirtioBlk.IN, True)

        def test_write(self) -> None:
            """The disk was written to."""
            self.check(VirtioBlk.OUT, True)

        def test_unasked(self) -> None:
            """The memory was still plugged."""
            self.check(VirtioBlk.IN, False)

        def test_dimm(self) -> None:
            """It is no virtio-mem device's."""
            for _ in range(2):
                self.add_backend()
                self.machine.cmd('device_add', driver='pc-dimm', id=NAME,
                                 memdev=BACKEND)
                self.begin(VirtioBlk.IN,
                           self.machine.memory_device(NAME)['addr'])
                self.machine.qtest(f'outl {SLOT_PORT} 0')
                self.machine.qtest(f'outb {CONTROL_PORT} {EJECT}')
                wait_deleted(self.machine, NAME)
                self.machine.cmd('object-del', id=BACKEND)
                self.drain()
                self.finish()
                self.wait_closed()
            self.assertEqual(self.descriptors(), self.before)

        def open_file(self) -> Path:
            """
            Have QEMU open a file with something in it, by the number that was
            the last to become free.
            """
            path = self.machine.directory / 'file'
            path.write_bytes(b'x' * BLOCK)
            self.machine.cmd('blockdev-add', driver='file', filename=str(path),
                             node_name='file')
            return path

        def assert_alone(self, numbers: List[int]) -> None:
            """Memory of the same name is one's own, and no other file's."""
            self.drain()
            self.assertEqual(len(self.files()), 1)
            self.assertNotIn(list(self.files())[0], numbers)
            path = self.open_file()
            self.assertEqual(self.machine.number(self.memory.start, 'q'),
                             VALUE)
            self.assertEqual(self.memory.unplug(0, BLOCK), Answer.ACK)
            self.assertEqual(list(self.files().values()), [0])
            self.plug()
            self.assertEqual(path.read_bytes(), b'x' * BLOCK)
            self.remove(True)
            self.machine.cmd('blockdev-del', node_name='file')
            self.wait_closed()
            self.assertEqual(path.read_bytes(), b'x' * BLOCK)
            self.assertEqual(self.descriptors(), self.before)

        def test_name_in_flight(self) -> None:
            """Memory of the same name comes before the I/O ends."""
            self.add()
            numbers = list(self.files())
            self.begin(VirtioBlk.IN, self.memory.start)
            self.remove(True)
            self.drain()
            self.add()
            self.finish()
            self.assert_alone(numbers)


class TestMain(Base.Tests):
    """The main loop does the I/O, in a coroutine."""


class TestSingle(Base.Tests):
    """The same, with one memslot."""
    multiple = False


class TestIOThread(Base.Tests):
    """Another thread does the I/O, without the BQL."""
    disk_properties = ',iothread=iothread'


class TestIOThreadSingle(TestIOThread):
    """The same, with one memslot."""
    multiple = False


class TestShm(Base.Tests):
    """Memory of POSIX's kind."""
    backend = 'memory-backend-shm'


class TestRam(Base.Tests):
    """RAM that is shared: a file, too."""
    backend = 'memory-backend-ram'


class TestDeviceRam(Base.Rig):
    """With aux-ram-share=on, RAM of devices has files by its name, too."""
    machine_type = 'pc,aux-ram-share=on'
    size = 4 * MIB
    ADDRESS = 0xe8000000
    ROM_BAR, ENABLE = 0x30, 1

    def setUp(self) -> None:
        super().setUp()
        self.rom = self.machine.directory / 'rom'
        self.rom.write_bytes(b'r' * self.size)

    def add(self, name: str) -> None:
        """Plug a device that has a ROM, and map it."""
        self.machine.cmd('device_add', driver='virtio-rng-pci', id=name,
                         addr=f'{DEVICE_SLOT:#x}', romfile=str(self.rom))
        self.machine.pci_write(DEVICE_SLOT, self.ROM_BAR,
                               self.ADDRESS | self.ENABLE)
        self.machine.pci_write(DEVICE_SLOT, 4, 6)
        self.assertEqual(self.machine.read(self.ADDRESS, 1), b'r')

    def test_slot_in_flight(self) -> None:
        """A device comes to the slot of one whose ROM is still used."""
        self.add('first')
        self.begin(VirtioBlk.OUT, self.ADDRESS)
        self.machine.eject(DEVICE_SLOT)
        self.drain()
        self.assertEqual(len(self.files()), 1)
        self.add('second')
        self.assertEqual(len(self.files()), 2)
        self.finish()
        wait_deleted(self.machine, 'first')
        self.wait_closed(1)
        self.machine.eject(DEVICE_SLOT)
        wait_deleted(self.machine, 'second')
        self.wait_closed()
        self.assertEqual(self.descriptors(), self.before)


class TestFailed(Base.Rig):
    """Memory that there cannot be leaves no file."""

    def test_too_large(self) -> None:
        """More than there are addresses for."""
        for kind in 'memfd', 'shm', 'ram':
            with self.assertRaisesRegex(ExecuteError, 'Cannot allocate'):
                self.machine.cmd('object-add', id=BACKEND, share=True,
                                 qom_type=f'memory-backend-{kind}',
                                 size=1 << 48)
            self.assertEqual(self.descriptors(), self.before, kind)


if __name__ == '__main__':
    unittest.main()
