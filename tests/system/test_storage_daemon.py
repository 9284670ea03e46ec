"""
The storage daemon has requests in flight when memory that they use goes away,
or when a virtqueue is stopped.

Whatever a guest does, the daemon goes on for the other VMs that it serves, and
no front end waits for a guest that never ends.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import tempfile
import threading
import unittest
from pathlib import Path
from typing import Optional, Tuple

import environment
from drivers import Answer, VirtioBlk
from host_memory import mapped
from nbd_disk import SLOW, Disk
from test_vhost import Rig
from vhost_backends import Backend, Block, HeldStorageDaemon
from vhost_front_end import (PENDING, TIMEOUT, Busy, FrontEnd, Message, Queue,
                             Region)
from vm import GIB, MIB, wait_until

PAGE = 4096
# Offsets on the disk, of what is answered when the test says so, and of what
# is answered at once
SLOWLY, QUICKLY = 0, SLOW
# As many regions as there can be, VHOST_USER_MAX_RAM_SLOTS, may be in use by
# requests in flight after they were removed.
MAX_REMOVED = 509


class Base(unittest.TestCase):
    """A daemon, its disk, and front ends that are not the test's subject."""

    def setUp(self) -> None:
        # pylint: disable=consider-using-with
        directory = tempfile.TemporaryDirectory(prefix='virtio-mem-')
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.disk = Disk(self, self.directory)

    def use(self, daemon: HeldStorageDaemon) -> None:
        """The daemon; another VM has its second export."""
        self.daemon = daemon
        self.other = FrontEnd(self, daemon.sockets[1])
        self.nr_others = 0

    def assert_runs(self) -> None:
        """The daemon has not ended."""
        self.assertIsNone(self.daemon.ended(), self.daemon.log())

    def wait_used(self, queue: Queue, used: int) -> None:
        """Wait until so many requests of a queue are done."""
        def is_done() -> bool:
            self.assert_runs()
            return queue.used == used
        wait_until(f'{used} requests are done', lambda: is_done() or None,
                   timeout=TIMEOUT, pause=0.001)

    def assert_alive(self) -> None:
        """The daemon serves the other VM."""
        self.assert_runs()
        request = self.other.read(0, QUICKLY, (MIB - PAGE, PAGE))
        self.nr_others += 1
        self.wait_used(self.other.queues[0], self.nr_others)
        self.assertEqual(request.status, 0)

    def nr_mappings(self, region: Region) -> int:
        """How often the daemon has a region mapped."""
        return len(self.daemon.mappings(region.inode))

    def wait_mappings(self, region: Region, number: int) -> None:
        """Wait until the daemon has a region mapped so often."""
        wait_until(f'{number} mappings and not {self.nr_mappings(region)}',
                   lambda: self.nr_mappings(region) == number or None,
                   timeout=30, pause=0.001)


class Raw(Base):
    """No VM: the tests are the front end."""

    def setUp(self) -> None:
        super().setUp()
        daemon = HeldStorageDaemon(self, self.directory, 'daemon',
                                   self.disk.path)
        daemon.start()
        self.use(daemon)

    def front_end(self, used: Optional[Region] = None,
                  queue_size: int = FrontEnd.QUEUE_SIZE) -> FrontEnd:
        """A front end that has started the device."""
        return FrontEnd(self, self.daemon.sockets[0], queue_size=queue_size,
                        used=used)

    def region(self, number: int = 0, size: int = MIB) -> Region:
        """Memory that can be removed."""
        region = Region(FrontEnd.HOTPLUG + number * GIB, size)
        self.addCleanup(region.close)
        return region

    def assert_data(self, region: Region, offset: int, disk: int,
                    size: int) -> None:
        """Part of a region is what is on the disk."""
        self.assertEqual(region.memory[offset:offset + size],
                         self.disk.data[disk:disk + size])


class TestRemoved(Raw):
    """Memory regions are removed that requests in flight use."""

    def test_remove(self) -> None:
        """The region alone is removed, and not waited for."""
        front, region = self.front_end(), self.region()
        front.add(region)
        request = front.read(0, SLOWLY, (region.address, MIB // 2),
                             within=region)
        self.disk.wait_held(1)
        front.remove(region)
        self.assertEqual((request.status, front.queues[0].used),
                         (PENDING, 0))
        kept = self.nr_mappings(region)

        self.disk.release()
        self.wait_used(front.queues[0], 1)
        self.assertEqual((request.status, kept), (0, 1))
        self.assert_data(region, 0, SLOWLY, MIB // 2)
        self.wait_mappings(region, 0)
        request = front.read(0, QUICKLY, (MIB - PAGE, PAGE))
        self.wait_used(front.queues[0], 2)
        self.assertEqual(request.status, 0)
        self.assert_alive()

    def test_parts(self) -> None:
        """
        Buffers lie in several regions, and one buffer in two; each goes when
        the last request goes that uses it.
        """
        front = self.front_end()
        regions = [Region(FrontEnd.HOTPLUG + number * MIB, MIB)
                   for number in range(4)]
        for region in regions:
            self.addCleanup(region.close)
            front.add(region)
        first, second, third, _ = regions
        one = front.read(0, SLOWLY, (first.address + MIB // 2, MIB),
                         (third.address, PAGE))
        self.disk.wait_held(1)
        two = front.read(1, SLOWLY, (third.address, PAGE))
        self.disk.wait_held(2)
        for region in regions:
            front.remove(region)
        # The last one is not used.
        self.assertEqual([self.nr_mappings(region) for region in regions],
                         [1, 1, 1, 0])
        self.disk.release()
        for queue in front.queues:
            self.wait_used(queue, 1)
        self.assertEqual((one.status, two.status), (0, 0))
        self.assert_data(first, MIB // 2, SLOWLY, MIB // 2)
        self.assert_data(second, 0, SLOWLY + MIB // 2, MIB // 2)
        for region in regions:
            self.wait_mappings(region, 0)
        self.assert_alive()

    def test_table(self) -> None:
        """All memory is mapped anew."""
        front, region = self.front_end(), self.region()
        front.add(region)
        request = front.read(0, SLOWLY, (region.address, MIB))
        self.disk.wait_held(1)
        front.set_table(front.boot)
        self.assertEqual(self.nr_mappings(region), 1)
        self.assertEqual(self.nr_mappings(front.boot), 2)
        quick = front.read(1, QUICKLY, (MIB - PAGE, PAGE))
        self.wait_used(front.queues[1], 1)
        self.assertEqual((quick.status, request.status), (0, PENDING))

        self.disk.release()
        self.wait_used(front.queues[0], 1)
        self.assertEqual(request.status, 0)
        self.assert_data(region, 0, SLOWLY, MIB)
        self.wait_mappings(region, 0)
        self.wait_mappings(front.boot, 1)
        self.assert_alive()

    def test_again(self) -> None:
        """A region comes back to where requests still use the former one."""
        front, region, other = self.front_end(), self.region(), self.region()
        front.add(region)
        request = front.read(0, SLOWLY, (region.address, MIB))
        self.disk.wait_held(1)
        for old, new in ((region, region), (region, other), (other, region)):
            front.remove(old)
            front.add(new)
        self.assertEqual(self.nr_mappings(region), 2)
        self.assertEqual(self.nr_mappings(other), 0)
        quick = front.read(1, QUICKLY, (region.address + MIB - PAGE, PAGE))
        self.wait_used(front.queues[1], 1)
        self.assertEqual((quick.status, request.status), (0, PENDING))
        self.assert_data(region, MIB - PAGE, QUICKLY, PAGE)

        self.disk.release()
        self.wait_used(front.queues[0], 1)
        self.assertEqual(request.status, 0)
        self.assert_data(region, 0, SLOWLY, MIB)
        self.wait_mappings(region, 1)
        front.remove(region)
        self.wait_mappings(region, 0)
        self.assert_alive()

    def test_gone(self) -> None:
        """No new request finds a region that requests in flight use."""
        front, region = self.front_end(), self.region()
        front.add(region)
        request = front.read(0, SLOWLY, (region.address, MIB))
        self.disk.wait_held(1)
        front.remove(region)
        front.read(1, QUICKLY, (region.address, PAGE))
        # Such a guest loses its disk, at once.
        self.assertTrue(front.is_closed())
        self.assert_alive()
        self.assertEqual(self.nr_mappings(region), 1)
        self.disk.release()
        self.wait_mappings(region, 0)
        self.assertEqual(request.status, 0)
        self.assert_alive()
        # It may come back.
        front = self.front_end()
        front.read(0, QUICKLY, (MIB - PAGE, PAGE))
        self.wait_used(front.queues[0], 1)

    def test_leave(self) -> None:
        """The front end leaves before the request is done."""
        front, region = self.front_end(), self.region()
        front.add(region)
        front.read(0, SLOWLY, (region.address, MIB // 2), within=region)
        self.disk.wait_held(1)
        front.remove(region)
        front.close()
        self.assert_alive()
        self.assertEqual(self.nr_mappings(region), 1)
        self.disk.release()
        self.wait_mappings(region, 0)
        self.wait_mappings(front.boot, 0)
        self.assert_data(region, 0, SLOWLY, MIB // 2)
        self.assert_alive()
        front = self.front_end()
        front.read(0, QUICKLY, (MIB - PAGE, PAGE))
        self.wait_used(front.queues[0], 1)

    def test_used_ring(self) -> None:
        """Part of a virtqueue lies in what is removed."""
        used, region = self.region(1, PAGE), self.region()
        front = self.front_end(used)
        front.add(region)
        request = front.read(0, SLOWLY, (region.address, MIB))
        self.disk.wait_held(1)
        front.remove(used)
        self.disk.release()
        wait_until('the request is done',
                   lambda: request.status == 0 or None, pause=0.001)
        # There is no way to tell the guest, whose disk is broken.
        front.tell(Message.SET_OWNER)
        self.assertTrue(front.is_closed())
        self.assert_alive()

    def test_unused(self) -> None:
        """Memory that no request uses goes at once, however much comes."""
        front, region = self.front_end(), self.region()
        request = front.read(0, SLOWLY, (MIB - PAGE, PAGE))
        self.disk.wait_held(1)
        for _ in range(2 * MAX_REMOVED):
            front.add(region)
            front.remove(region)
        self.assertEqual(self.nr_mappings(region), 0)
        self.disk.release()
        self.wait_used(front.queues[0], 1)
        self.assertEqual(request.status, 0)
        self.assert_alive()

    def test_limit(self) -> None:
        """
        A guest that has ever more regions removed that it uses loses its
        disk.
        """
        front = self.front_end(queue_size=1024)
        regions = [self.region(number, PAGE) for number in range(100)]
        removed = requests = 0

        def remove(number: int) -> None:
            nonlocal requests
            part = regions[:number]
            for region in part:
                front.add(region)
            front.read(0, SLOWLY, *((region.address, PAGE)
                                    for region in part))
            requests += 1
            self.disk.wait_held(requests)
            for region in part:
                front.remove(region)

        while removed < MAX_REMOVED:
            number = min(len(regions), MAX_REMOVED - removed)
            remove(number)
            removed += number
        self.assertEqual(sum(self.nr_mappings(region) for region in regions),
                         MAX_REMOVED)
        remove(1)
        self.assertTrue(front.is_closed())
        self.assertIn('too many removed memory regions are in use',
                      self.daemon.log())
        self.assert_alive()
        self.disk.release()
        for region in regions:
            self.wait_mappings(region, 0)
        self.assert_alive()


class TestStop(Raw):
    """A virtqueue is stopped."""

    def test_busy(self) -> None:
        """The guest adds requests to a queue without end."""
        front = self.front_end()
        with front.keep_busy(1) as busy:
            self.assert_alive()
            self.assertEqual(front.stop(0), 0)
            busy.wait_progress()
            base = front.stop(1)
            self.assertEqual(front.queues[1].used, base)
            self.assert_alive()
            self.assertEqual(front.queues[1].used, base)
            # So it does when the queue goes on.
            front.start(1, base)
            front.queues[1].kick()
            busy.wait_progress()
        self.assert_alive()

    def test_leave(self) -> None:
        """The front end leaves while the guest adds requests without end."""
        front = self.front_end()
        with front.keep_busy(1):
            front.close()
            self.wait_mappings(front.boot, 0)
            self.assert_alive()

    def test_other(self) -> None:
        """Requests of another queue are in flight."""
        front = self.front_end()
        request = front.read(1, SLOWLY, (MIB - PAGE, PAGE))
        self.disk.wait_held(1)
        self.assertEqual(front.stop(0), 0)
        self.assertEqual((request.status, front.queues[1].used),
                         (PENDING, 0))
        front.begin_stop(1)
        self.assert_alive()
        self.assertFalse(front.is_answered())
        self.disk.release()
        self.assertEqual(front.end_stop(1), 1)
        self.assertEqual((request.status, front.queues[1].used), (0, 1))

    def test_own(self) -> None:
        """
        Requests of the queue are in flight, more are posted; another queue
        goes on.
        """
        front = self.front_end()
        slow, quick = front.queues
        request = front.read(0, SLOWLY, (MIB - PAGE, PAGE))
        self.disk.wait_held(1)
        front.begin_stop(0)
        for number in range(1, 11):
            front.read(1, QUICKLY, (MIB - 2 * PAGE, PAGE))
            self.wait_used(quick, number)
            more = front.read(0, SLOWLY, (MIB - 2 * PAGE, PAGE))
        self.assert_alive()
        self.assertFalse(front.is_answered())
        self.assertEqual((slow.used, self.disk.seen), (0, 1))
        self.disk.release()
        self.assertEqual(front.end_stop(0), 1)
        self.assertEqual((request.status, slow.used), (0, 1))
        self.assert_alive()
        self.assertEqual((more.status, slow.used, self.disk.seen),
                         (PENDING, 1, 1))
        # The kicks are not lost.
        front.start(0, 1)
        self.wait_used(slow, 11)
        self.assertEqual(more.status, 0)

    def test_export(self) -> None:
        """The export goes while the front end waits for a queue to stop."""
        front = self.front_end()
        request = front.read(0, SLOWLY, (MIB - PAGE, PAGE))
        self.disk.wait_held(1)
        front.begin_stop(0)
        monitor = self.daemon.monitor()
        self.addCleanup(monitor.close)
        removal = threading.Thread(target=monitor.cmd,
                                   args=('block-export-del',),
                                   kwargs={'id': 'export0', 'mode': 'hard'})
        removal.start()
        self.assertTrue(front.is_closed())
        self.disk.release()
        removal.join()
        self.assertEqual((request.status, front.queues[0].used), (0, 1))
        self.wait_mappings(front.boot, 0)
        self.assert_alive()


class HeldBlock(Block):
    """A block device whose disk answers when the test says so."""
    def make_backend(self, test: unittest.TestCase,
                     directory: Path) -> Backend:
        assert isinstance(test, Base)
        return HeldStorageDaemon(test, directory, self.front, test.disk.path)

    @property
    def driver(self) -> VirtioBlk:
        """The driver of the device."""
        assert self._driver is not None
        return self._driver


class TestMachine(Base):
    """A machine without a guest."""
    SIZE = 4 * GIB

    def start(self) -> Tuple[Rig, HeldBlock]:
        """The machine with memory and the disk, both used."""
        rig = Rig(self, environment.qemu_system(), 'multiple-memslots=on',
                  size=self.SIZE)
        front = HeldBlock(self, rig.machine)
        assert isinstance(front.backend, HeldStorageDaemon)
        self.use(front.backend)
        front.add()
        rig.add_device()
        rig.launch()
        front.start()
        return rig, front

    def read(self, rig: Rig, front: HeldBlock) -> None:
        """Have a request in flight into memory that is plugged for it."""
        rig.plug(0)
        rig.assert_view(front)
        seen = self.disk.seen
        front.driver.place(rig.memory.start + MIB)
        front.driver.post(VirtioBlk.IN, SLOWLY, rig.memory.start, PAGE)
        self.disk.wait_held(1)
        self.assertEqual(self.disk.seen, seen + 1)

    def wait_driver(self, front: HeldBlock) -> None:
        """Wait until the request is done."""
        def is_done() -> bool:
            self.assert_runs()
            return front.driver.queues[0].is_answered()
        wait_until('the request is done', lambda: is_done() or None,
                   timeout=TIMEOUT, pause=0.001)
        front.driver.wait()

    def test_unplug(self) -> None:
        """The guest unplugs memory that the disk reads into."""
        rig, front = self.start()
        for _ in range(3):
            self.disk.hold()
            self.read(rig, front)
            rig.unplug(0)
            rig.assert_memslots()
            kept = self.daemon.mappings(rig.inode)
            self.disk.release()
            self.wait_driver(front)
            self.assertEqual(len(kept), 1)
            wait_until('the memory is not mapped any more',
                       lambda: not self.daemon.mappings(rig.inode) or None)
            self.assert_alive()

    def test_unplug_all(self) -> None:
        """It unplugs all, and plugs again, while the disk reads."""
        rig, front = self.start()
        self.read(rig, front)
        for _ in range(3):
            self.assertEqual(rig.memory.unplug_all(), Answer.ACK)
            rig.plug(0)
        self.assertEqual(len(self.daemon.mappings(rig.inode)), 2)
        self.disk.release()
        self.wait_driver(front)
        self.assertEqual(rig.machine.read(rig.memory.start, PAGE),
                         self.disk.data[SLOWLY:SLOWLY + PAGE])
        wait_until('the memory is mapped once',
                   lambda: len(self.daemon.mappings(rig.inode)) == 1 or None)
        self.assert_alive()

    def test_busy(self) -> None:
        """The guest adds requests without end, and resets the disk."""
        rig, front = self.start()
        queue = front.driver.queues[0]
        ram = mapped(rig.machine.get_pid() or 0, rig.machine.RAM)
        self.addCleanup(ram.close)
        with Busy(ram, queue.descriptors, queue.available, queue.used,
                  rig.machine.allocate(PAGE),
                  lambda: rig.machine.set_number(queue.doorbell, 'w', 0)):
            self.assert_alive()
            front.start()
            front.driver.transfer(VirtioBlk.IN, QUICKLY, MIB, PAGE)
        self.assert_alive()

    def test_reset(self) -> None:
        """The machine is reset while the disk reads."""
        rig, front = self.start()
        for _ in range(3):
            self.disk.hold()
            self.read(rig, front)
            told = rig.machine.messages()
            # QEMU may wait for the daemon before it answers.
            reset = threading.Thread(target=rig.machine.cmd,
                                     args=('system_reset',))
            reset.start()
            wait_until('the backend is told', lambda: any(
                (rig.machine.messages() - told)[message] for message in
                (Message.GET_VRING_BASE, Message.REM_MEM_REG)) or None)
            self.disk.release()
            reset.join()
            rig.machine.cmd('query-status')
            self.assert_alive()
            rig.restart()
            front.start()
            rig.plug(0)
            front.driver.transfer(VirtioBlk.IN, QUICKLY, rig.memory.start,
                                  PAGE)
            self.assertEqual(rig.machine.read(rig.memory.start, PAGE),
                             self.disk.data[QUICKLY:QUICKLY + PAGE])
            rig.unplug(0)


if __name__ == '__main__':
    unittest.main()
