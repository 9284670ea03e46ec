"""
A vhost-user backend has a memory region of its own for each memslot.

The backend is real, qemu-storage-daemon's export of a block device. It needs
no guest: vhost looks at guest-physical memory as soon as it is connected.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import subprocess
import unittest
from typing import List, Tuple

import environment
from vm import GIB, VirtualMachine, wait_until

SIZE = 4 * GIB


class TestSections(unittest.TestCase):
    """What vhost makes of the memslots that are mapped."""

    def start(self, vm: VirtualMachine, multiple_memslots: str) -> None:
        """Start a VM with a virtio-mem device and then a vhost-user one."""
        socket = vm.directory / 'vhost-user'
        daemon = subprocess.Popen(
            [str(environment.build_dir() / 'qemu-storage-daemon'),
             '--blockdev', 'driver=null-co,node-name=disk,size=1048576',
             '--export', 'type=vhost-user-blk,id=export,node-name=disk,'
                         f'addr.type=unix,addr.path={socket}'])
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.kill)
        wait_until('qemu-storage-daemon listens',
                   lambda: socket.exists() or None)
        vm.add_args(
            '-S', '-D', str(vm.directory / 'trace'),
            '-trace', 'vhost_region_add_section',
            '-trace', 'vhost_region_add_section_merge',
            '-trace', 'vhost_commit',
            # Without a file descriptor, vhost-user does not see memory.
            '-object', f'memory-backend-memfd,id=mem0,size={SIZE},'
                       'share=on,reserve=off',
            # Memory that the guest may read is mapped before it is plugged.
            '-device', 'virtio-mem-pci,id=vmem0,memdev=mem0,'
                       'unplugged-inaccessible=off,'
                       f'multiple-memslots={multiple_memslots}',
            '-chardev', f'socket,id=vhost,path={socket}',
            '-device', 'vhost-user-blk-pci,chardev=vhost')
        vm.launch()

    @staticmethod
    def events(vm: VirtualMachine) -> List[Tuple[str, str]]:
        """The trace events so far: names and arguments."""
        log = (vm.directory / 'trace').read_text('utf-8')
        return [(match[1], match[2])
                for match in re.finditer(r'^(vhost_\w+) (.*)$', log, re.M)]

    def table(self, vm: VirtualMachine) -> List[Tuple[int, int]]:
        """The device's regions in the table last made: address and size."""
        events = self.events(vm)
        commits = [index for index, (name, _) in enumerate(events)
                   if name == 'vhost_commit']
        start = commits[-2] + 1 if len(commits) > 1 else 0
        regions = []
        for name, arguments in events[start:commits[-1]]:
            if not arguments.startswith('mem0: '):
                continue
            self.assertNotEqual(name, 'vhost_region_add_section_merge',
                                arguments)
            match = re.match(r'mem0: 0x([0-9a-f]+)\+0x([0-9a-f]+) ', arguments)
            if match:
                regions.append((int(match[1], 16), int(match[2], 16)))
        return regions

    def test_multiple(self) -> None:
        """One region per memslot, adjacent ones stay apart."""
        with VirtualMachine(environment.qemu_system(), 'tcg', GIB,
                            maxmem=GIB + SIZE) as vm:
            self.start(vm, 'on')
            base = vm.memory_device('vmem0')['memaddr']
            self.assertEqual(self.table(vm), [])
            for requested, count in ((GIB // 2, 1), (GIB, 2), (SIZE, 4)):
                vm.request('vmem0', requested)
                self.assertEqual(self.table(vm),
                                 [(base + index * GIB, GIB)
                                  for index in range(count)])

    def test_single(self) -> None:
        """Without multiple memslots, one region for all of the device."""
        with VirtualMachine(environment.qemu_system(), 'tcg', GIB,
                            maxmem=GIB + SIZE) as vm:
            self.start(vm, 'off')
            base = vm.memory_device('vmem0')['memaddr']
            self.assertEqual(self.table(vm), [(base, SIZE)])


if __name__ == '__main__':
    unittest.main()
