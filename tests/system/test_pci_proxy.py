"""
Memslots of a virtio-mem device beside the process of an x-pci-proxy-dev.

That is another QEMU, which emulates one PCI device and is handed at most eight
memory regions.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import socket
import unittest
from typing import Any, Dict, List

from qemu.machine import QEMUMachine
from qemu.machine.machine import VMLaunchFailure
from qemu.qmp import ExecuteError

import environment
from drivers import Answer, Machine, VirtioMem
from vhost_backends import MAXMEM
from vm import GIB, MIB

SIZE = 16 * GIB
MEMORY_SLOT, PROXY_SLOT, FIRST_BAR_SLOT = 5, 6, 7
# REMOTE_MAX_FDS of hw/remote/mpqemu-link.h
LIMIT = 8
BARS = 0xe8000000
REFUSAL = (r"x-pci-proxy-dev 'proxy' can hold 8 memory regions, but [0-9]+ are"
           r" used and 16 are reserved for memory devices")


class TestPCIProxy(unittest.TestCase):
    """A process that holds few memory regions."""

    def setUp(self) -> None:
        environment.require_kvm()
        self.machine = Machine(environment.qemu_system(), 'kvm', MAXMEM)
        self.addCleanup(self.machine.shutdown)
        self.remote = QEMUMachine(environment.qemu_system())
        # It exits when its socket is closed.
        self.addCleanup(self.remote.shutdown, hard=True)
        self.socket, remote_socket = socket.socketpair()
        self.addCleanup(self.socket.close)
        self.addCleanup(remote_socket.close)
        remote_socket.set_inheritable(True)
        self.remote.add_args(
            '-machine', 'x-remote', '-nodefaults',
            '-device', 'pci-testdev,id=dev',
            '-object', 'x-remote-object,id=object,devid=dev,'
                       f'fd={remote_socket.fileno()}')

    def launch(self) -> None:
        """Start both."""
        self.remote.launch()
        self.machine.launch()

    def add_proxy(self) -> None:
        """Plug the device that the other process emulates."""
        self.machine.send_fd_scm(self.socket.fileno())
        self.machine.cmd('getfd', fdname='proxy')
        self.machine.cmd('device_add', driver='x-pci-proxy-dev', id='proxy',
                         fd='proxy', addr=str(PROXY_SLOT))

    def add_memory(self, backend: str = 'memory-backend-memfd',
                   **properties: bool) -> VirtioMem:
        """Plug the memory device."""
        self.machine.cmd('object-add', **{
            'qom-type': backend, 'id': 'backend', 'size': SIZE,
            'reserve': False})
        self.machine.cmd('device_add', **{
            'driver': 'virtio-mem-pci', 'id': 'memory', 'memdev': 'backend',
            'requested-size': SIZE, 'addr': str(MEMORY_SLOT),
            'multiple-memslots': True, 'unplugged-inaccessible': 'on',
            **properties})
        return VirtioMem(self.machine, MEMORY_SLOT)

    def holder(self) -> Dict[str, Any]:
        """What the account tells of the process."""
        holders: List[Dict[str, Any]] = [
            holder for holder in self.machine.cmd('query-memslots')['holders']
            if holder['type'] == 'pci-proxy']
        self.assertEqual(len(holders), 1, holders)
        holder = holders[0]
        self.assertEqual(
            (holder['id'], holder['limit'], holder['free'],
             holder['shared-only'], holder['whole-devices']),
            ('proxy', LIMIT, LIMIT - holder['used'], True, False))
        return holder

    def seen(self) -> int:
        """How many regions the other process has."""
        tree = self.remote.cmd('human-monitor-command',
                               command_line='info mtree')
        return len(set(re.findall(r'remote-mem-\d+', tree)))

    def assert_seen(self, used: int) -> None:
        """The account and the other process tell the same."""
        self.assertEqual(self.holder()['used'], used)
        # Its monitor answers when it has read the message, or before.
        for _ in range(1000):
            if self.seen() == used:
                return
            self.machine.pci_read(PROXY_SLOT, 0)
        self.assertEqual(self.seen(), used)

    def assert_silent(self) -> None:
        """There never was more than a message can carry."""
        self.machine.shutdown()
        log = self.machine.get_log()
        assert log is not None
        self.assertNotIn('fds', log)

    def test_memory_comes_later(self) -> None:
        """The device maps its memory as a whole."""
        self.launch()
        self.add_proxy()
        used = self.holder()['used']
        self.assertGreater(used, 0)
        memory = self.add_memory()
        self.assertEqual(
            self.machine.memory_device('memory')['memslots'], 1)
        self.assertEqual(self.holder()['reserved'], 1)
        for offset in range(0, SIZE, GIB):
            self.assertEqual(memory.plug(offset, 2 * MIB), Answer.ACK)
            self.assert_seen(used + 1)
        self.assertEqual(memory.unplug_all(), Answer.ACK)
        self.assert_seen(used)
        self.assert_silent()

    def test_proxy_comes_later(self) -> None:
        """It is refused, and nothing is left of it."""
        self.launch()
        memory = self.add_memory()
        self.assertEqual(
            self.machine.memory_device('memory')['memslots'], SIZE // GIB)
        for _ in range(2):
            with self.assertRaisesRegex(ExecuteError, REFUSAL):
                self.add_proxy()
        self.assertEqual(
            [holder['type'] for holder in
             self.machine.cmd('query-memslots')['holders']], ['kvm'])
        for offset in range(0, SIZE, GIB):
            self.assertEqual(memory.plug(offset, 2 * MIB), Answer.ACK)
        self.assert_silent()

    def test_cold(self) -> None:
        """On the command line, QEMU ends with the error and its hint."""
        self.machine.add_args(
            '-object', f'memory-backend-memfd,id=backend,size={SIZE},'
                       'reserve=off',
            '-device', 'virtio-mem-pci,id=memory,memdev=backend,'
                       'multiple-memslots=on',
            '-device', f'x-pci-proxy-dev,id=proxy,fd={self.socket.fileno()}')
        self.socket.set_inheritable(True)
        self.remote.launch()
        with self.assertRaises(VMLaunchFailure) as failure:
            self.machine.launch()
        self.assertRegex(failure.exception.output or '',
                         REFUSAL + '\nUse fewer, larger memory devices, with '
                         "'multiple-memslots=off'.\n")

    def test_single(self) -> None:
        """What the error's hint says helps."""
        self.launch()
        memory = self.add_memory(**{'multiple-memslots': False})
        self.add_proxy()
        self.assertEqual(self.holder()['reserved'], 0)
        self.assert_seen(self.holder()['used'])
        self.assertEqual(memory.plug(0, GIB), Answer.ACK)
        self.assert_silent()

    def test_private(self) -> None:
        """Memory without a file descriptor is not handed to the process."""
        self.launch()
        memory = self.add_memory('memory-backend-ram')
        self.add_proxy()
        used = self.holder()['used']
        self.assertEqual(self.holder()['reserved'], 0)
        for offset in range(0, SIZE, GIB):
            self.assertEqual(memory.plug(offset, 2 * MIB), Answer.ACK)
            self.assert_seen(used)
        self.assert_silent()

    def test_no_room(self) -> None:
        """BARs take what the device was promised: the guest has to wait."""
        for slot in range(FIRST_BAR_SLOT, FIRST_BAR_SLOT + LIMIT):
            self.machine.add_args(
                '-object', f'memory-backend-memfd,id=bar{slot},size=1M',
                '-device', f'ivshmem-plain,memdev=bar{slot},addr={slot:x}')
        self.launch()
        self.add_proxy()
        memory = self.add_memory()
        used = self.holder()['used']
        for slot in range(FIRST_BAR_SLOT, FIRST_BAR_SLOT + LIMIT - used):
            self.machine.pci_write(slot, 0x18, BARS + slot * MIB)
            self.machine.pci_write(slot, 0x1c, 0)
            self.machine.pci_write(slot, 0x04, 2)
        self.assert_seen(LIMIT)
        self.assertEqual(memory.plug(0, 2 * MIB), Answer.BUSY)
        event = self.machine.event_wait('MEMORY_DEVICE_REQUEST_REFUSED')
        assert event is not None
        self.assertEqual((event['data']['refuser'], event['data']['backend']),
                         ('pci-proxy', 'proxy'))
        self.assertEqual(event['data']['reason'],
                         "x-pci-proxy-dev 'proxy' can hold 8 memslots, of which"
                         ' 8 are used, but 1 more is needed')
        self.assert_seen(LIMIT)
        self.machine.pci_write(FIRST_BAR_SLOT, 0x04, 0)
        self.assertEqual(memory.plug(0, 2 * MIB), Answer.ACK)
        self.assert_seen(LIMIT)

    def test_proxy_goes(self) -> None:
        """Those that come later may use many memslots again."""
        self.launch()
        self.add_proxy()
        self.machine.cmd('device_del', id='proxy')
        self.machine.eject(PROXY_SLOT)
        self.assertIsNotNone(self.machine.event_wait('DEVICE_DELETED'))
        self.add_memory()
        self.assertEqual(
            self.machine.memory_device('memory')['memslots'], SIZE // GIB)
        self.assert_silent()
