"""
Commands come while another one is at work with the memory of a virtio-mem
device: they wait, or are refused, and the machine goes on.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import itertools
import os
import struct
import subprocess
import unittest
from pathlib import Path
from typing import Optional

from qemu.qmp import ExecuteError

import environment
from drivers import Answer, Machine, VirtioMem, memory_device
from dumps import PAGE, Elf
from vhost_backends import wait_deleted
from vm import GIB, MIB, wait_until

NAME, BACKEND = 'vmem0', 'vmem0-backend'
SLOT = 5
SIZE = 4 * GIB
BLOCK = 2 * MIB
# In two memslots
PLUGGED = (0, GIB)
# Bytes per second: what is plugged would take minutes, or next to nothing
SLOW, FAST = 4096, 1 << 40


class Base:
    """Hidden from the loader of tests."""

    class Tests(unittest.TestCase):
        """What is tested with each kind of device."""
        multiple: bool
        # From add() on
        memory: VirtioMem

        def setUp(self) -> None:
            self.machine = Machine(environment.qemu_system(), 'tcg', 16 * GIB)
            self.addCleanup(self.machine.shutdown)
            disk = self.machine.directory / 'disk'
            subprocess.run([os.environ['QTEST_QEMU_IMG'], 'create', '-q',
                            '-f', 'qcow2', str(disk), '1M'], check=True)
            self.machine.add_args(
                '-blockdev', 'qcow2,node-name=disk,file.driver=file,'
                             f'file.filename={disk}')
            self.machine.launch()
            self.job_ids = (f'job{number}' for number in itertools.count())

        def add(self) -> None:
            """Plug a device, and memory that is written to."""
            self.machine.cmd('object-add', qom_type='memory-backend-ram',
                             id=BACKEND, size=SIZE, reserve=False)
            self.machine.cmd('device_add', **memory_device(
                NAME, BACKEND, SLOT, SIZE, BLOCK, self.multiple))
            self.memory = VirtioMem(self.machine, SLOT)
            for offset in PLUGGED:
                self.assertEqual(self.memory.plug(offset, BLOCK), Answer.ACK)
                address = self.memory.start + offset
                self.machine.write(address, self.pattern(address, BLOCK))

        @staticmethod
        def pattern(address: int, size: int = PAGE) -> bytes:
            """What is written there."""
            return struct.pack('<Q', address) * (size // 8)

        def request_removal(self) -> None:
            """Have the device wait for the guest to eject it."""
            self.machine.request(NAME, 0)
            self.assertEqual(self.memory.unplug_all(), Answer.ACK)
            self.machine.cmd('device_del', id=NAME)

        def status(self) -> str:
            """Whether the machine runs, and if not, why."""
            status = self.machine.cmd('query-status')['status']
            assert isinstance(status, str)
            return status

        def snapshot(self, what: str, tag: str) -> Optional[str]:
            """Save or load a snapshot; return what QEMU says against it."""
            job_id = next(self.job_ids)
            self.machine.cmd(f'snapshot-{what}', job_id=job_id, tag=tag,
                             vmstate='disk', devices=['disk'])

            def concluded() -> Optional[bool]:
                return any(job['id'] == job_id
                           and job['status'] == 'concluded'
                           for job in self.machine.cmd('query-jobs')) or None
            wait_until(f'{job_id} is done', concluded)
            errors = [job.get('error')
                      for job in self.machine.cmd('query-jobs')]
            self.machine.cmd('job-dismiss', id=job_id)
            assert len(errors) == 1
            return errors[0]

        def set_bandwidth(self, bandwidth: int) -> None:
            """How quickly a migration goes on, and can be over."""
            self.machine.cmd('migrate-set-parameters',
                             max_bandwidth=bandwidth,
                             avail_switchover_bandwidth=bandwidth)

        def migrate(self, bandwidth: int) -> None:
            """Start a migration to nowhere."""
            self.set_bandwidth(bandwidth)
            self.machine.cmd('migrate', uri='exec:cat > /dev/null')

        # Tests

        def test_load_while_migrating(self) -> None:
            """A snapshot is not loaded, and the migration goes on."""
            self.add()
            self.assertIsNone(self.snapshot('save', 'before'))
            self.migrate(SLOW)
            self.machine.wait_migration('active')
            self.assertEqual(self.snapshot('load', 'before'),
                             "There's a migration process in progress")
            self.assertIn("There's a migration process in progress",
                          self.machine.hmp('loadvm before'))
            self.assertEqual(self.status(), 'running')
            self.set_bandwidth(FAST)
            self.machine.wait_migration('completed')
            # Over is over.
            self.machine.cmd('cont')
            self.assertIsNone(self.snapshot('load', 'before'))

        def test_migrate_after_load(self) -> None:
            """A machine is stopped when a snapshot is not loaded."""
            self.add()
            self.assertIn('does not exist',
                          self.snapshot('load', 'none') or '')
            self.assertEqual(self.status(), 'restore-vm')
            self.migrate(FAST)
            self.machine.wait_migration('completed')

        def test_reset_while_dumping(self) -> None:
            """The reset comes after the dump, which has all memory."""
            self.add()
            pipe, path = (self.machine.directory / name
                          for name in ('pipe', 'dump'))
            os.mkfifo(pipe)
            with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK),
                      'rb') as reader:
                self.machine.cmd('dump-guest-memory', paging=False,
                                 detach=True, protocol=f'file:{pipe}')
                self.machine.cmd('system_reset')
                self.assertEqual(self.status(), 'save-vm')
                self.assertEqual(self.machine.plugged(NAME),
                                 len(PLUGGED) * BLOCK)
                os.set_blocking(reader.fileno(), True)
                path.write_bytes(reader.read())
            wait_until('the machine is reset', lambda: self.machine.plugged(
                NAME) == 0 or None)
            self.assert_dump(path)
            self.assertEqual(self.machine.cmd('query-dump')['status'],
                             'completed')
            wait_until('the machine runs',
                       lambda: self.status() == 'running' or None)

        def assert_dump(self, path: Path) -> None:
            """A dump has what was plugged, as it was."""
            found = dict(Elf(path).pages(self.memory.start))
            self.assertEqual(len(found), len(PLUGGED) * BLOCK // PAGE)
            for offset in PLUGGED:
                address = self.memory.start + offset
                self.assertEqual(found[address], self.pattern(address))

        def test_load_while_unplugging(self) -> None:
            """The device goes: a snapshot needs to have been without it."""
            self.assertIsNone(self.snapshot('save', 'without'))
            for tag in 'with', 'without':
                self.add()
                self.request_removal()
                if tag == 'with':
                    self.assertIsNone(self.snapshot('save', tag))
                error = self.snapshot('load', tag)
                self.assertEqual(error, None if tag == 'without' else
                                 'Error -22 while loading VM state')
                wait_deleted(self.machine, NAME)
                self.machine.cmd('object-del', id=BACKEND)
                self.assertEqual(self.status(), 'running' if error is None
                                 else 'restore-vm')
                self.machine.cmd('cont')

        def test_unrealize(self) -> None:
            """A device is unplugged, or stays."""
            self.add()
            for part in '/virtio-backend', '':
                with self.assertRaisesRegex(
                        ExecuteError,
                        "' cannot be unrealized, only unplugged"):
                    self.machine.cmd('qom-set', property='realized',
                                     path=f'/machine/peripheral/{NAME}{part}',
                                     value=False)
            self.machine.cmd('system_reset')
            wait_until('the machine is reset', lambda: self.machine.plugged(
                NAME) == 0 or None)
            self.machine.eject(SLOT)
            wait_deleted(self.machine, NAME)
            self.machine.cmd('object-del', id=BACKEND)


class TestMultiple(Base.Tests):
    """With many memslots."""
    multiple = True


class TestSingle(Base.Tests):
    """With one: the control."""
    multiple = False


if __name__ == '__main__':
    unittest.main()
