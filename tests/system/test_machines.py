"""
What the guest sees of virtio-mem is what Debian's QEMU 10.0 shows it, on each
kind of machine: multiple-memslots is a hint to the host alone.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import itertools
import re
import subprocess
import unittest
from typing import Any, Dict, List, Optional, Tuple

import environment
from vhost_backends import peer_qemu
from vm import GIB, VirtualMachine

# What unplugged-inaccessible is by default depends on the version.
MACHINES = {'pc-i440fx-2.4': 'off', 'pc-i440fx-6.2': 'off',
            'pc-i440fx-7.2': 'auto', 'pc-i440fx-10.0': 'on',
            'pc-q35-6.2': 'off', 'pc-q35-7.2': 'auto', 'pc-q35-10.0': 'on'}
BACKENDS = ('memory-backend-ram', 'memory-backend-memfd')
INACCESSIBLE = (None, 'auto', 'on', 'off')

# Machines that do not have what a virtio-mem-pci device needs
REFUSING = (('microvm', '1G'), ('microvm', '1G,slots=2,maxmem=8G'),
            ('none', '1G'), ('none', '1G,maxmem=8G'),
            ('isapc', '1G'), ('isapc', '1G,maxmem=8G'))
# Machines that take the device, but do not map its memory
IGNORANT = (('microvm', 'virtio-mem'), ('microvm,pcie=on', 'virtio-mem-pci'))

# Devices follow one another where no memslot of the first would begin.
SIZE = 3 * GIB // 2
MEMSLOTS = 2

FEATURE = 'VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE'
MULTIPLE = ',multiple-memslots=on'


def variants() -> List[Tuple[str, str, str]]:
    """What to compare, Debian's QEMU first: name, program, properties."""
    ours = environment.qemu_system()
    return [('stock', peer_qemu(), ''),
            ('single', ours, ',multiple-memslots=off'),
            ('multiple', ours, MULTIPLE)]


def add_device(vm: VirtualMachine, name: str, backend: str, device: str,
               properties: str) -> None:
    """Add a device, half of which is requested."""
    vm.add_args('-object', f'{backend},id={name}-backend,size={SIZE}',
                '-device', f'{device},id={name},memdev={name}-backend,'
                           f'requested-size={SIZE // 2}{properties}')


def features(status: Dict[str, Any]) -> List[str]:
    """What a virtio device offers the guest, of its own kind."""
    return list(status['host-features']['dev-features'])


def offers(status: Dict[str, Any]) -> bool:
    """Whether a device tells drivers to leave unplugged memory alone."""
    return any(feature.startswith(FEATURE) for feature in features(status))


class TestMachines(unittest.TestCase):
    """Compare with Debian's QEMU."""

    maxDiff = None

    @staticmethod
    def devices() -> Dict[str, Tuple[str, Optional[str]]]:
        """Each kind of memory with each unplugged-inaccessible."""
        return {f'{backend[len("memory-backend-"):]}-{inaccessible}':
                (backend, inaccessible) for backend, inaccessible
                in itertools.product(BACKENDS, INACCESSIBLE)}

    def shown(self, machine: str, binary: str, properties: str
              ) -> Dict[str, Any]:
        """What a guest could find out about a machine's devices."""
        devices = self.devices()
        with VirtualMachine(binary, 'tcg', GIB,
                            maxmem=GIB + len(devices) * SIZE,
                            machine=machine) as vm:
            vm.add_args('-S')
            for name, (backend, inaccessible) in devices.items():
                choice = '' if inaccessible is None else \
                    f',unplugged-inaccessible={inaccessible}'
                add_device(vm, name, backend, 'virtio-mem-pci',
                           choice + properties)
            vm.launch()
            if properties == MULTIPLE:
                for name in devices:
                    self.assertEqual(len(vm.plan(name)), MEMSLOTS)
            result: Dict[str, Any] = {'pci': vm.hmp('info pci')}
            for name in devices:
                path = f'/machine/peripheral/{name}/virtio-backend'
                data = vm.memory_device(name)
                result[name] = {
                    'status': vm.cmd('x-query-virtio-status', path=path),
                    'resolved': vm.cmd('qom-get', path=path,
                                       property='unplugged-inaccessible'),
                    'data': {key: data[key] for key in
                             ('memaddr', 'size', 'max-size', 'block-size',
                              'requested-size', 'node')},
                }
            return result

    def check_resolved(self, machine: str, shown: Dict[str, Any]) -> None:
        """unplugged-inaccessible: the choice, and what the guest sees."""
        for name, (backend, inaccessible) in self.devices().items():
            choice = inaccessible or MACHINES[machine]
            if choice == 'auto':
                choice = 'off' if backend == 'memory-backend-ram' else 'on'
            self.assertEqual(shown[name]['resolved'], choice, name)
            self.assertEqual(offers(shown[name]['status']), choice == 'on',
                             name)

    def test_guest_sees_the_same(self) -> None:
        """Features, addresses and sizes, however the property is set."""
        for machine in MACHINES:
            stock: Dict[str, Any] = {}
            for variant, binary, properties in variants():
                with self.subTest(machine=machine, variant=variant):
                    shown = self.shown(machine, binary, properties)
                    self.check_resolved(machine, shown)
                    stock = stock or shown
                    self.assertEqual(shown, stock)

    def error(self, machine: str, memory: str, binary: str,
              properties: str) -> str:
        """What a QEMU that does not start says."""
        result = subprocess.run(
            [binary, '-machine', machine, '-m', memory, '-accel', 'tcg',
             '-S', '-nodefaults', '-display', 'none',
             '-object', 'memory-backend-ram,id=mem,size=1G',
             '-device', f'virtio-mem-pci,memdev=mem{properties}'],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=120)
        self.assertEqual(result.returncode, 1, result.stdout)
        # It names the options that it is about. Sanitizers have a say, too.
        said = re.sub(r'^==\d+==WARNING: ASan .*\n', '', result.stdout,
                      flags=re.M)
        return said.replace(properties or '\0', '')

    def test_refused(self) -> None:
        """Machines without PCI or without device memory say the same."""
        for machine, memory in REFUSING:
            stock = ''
            for variant, binary, properties in variants():
                with self.subTest(machine=machine, memory=memory,
                                  variant=variant):
                    error = self.error(machine, memory, binary, properties)
                    stock = stock or error
                    self.assertIn('qemu-system-x86_64: ', error)
                    self.assertEqual(error, stock)

    def unmapped(self, machine: str, device: str, binary: str,
                 properties: str) -> List[Any]:
        """What there is of a device whose memory is nowhere."""
        with VirtualMachine(binary, 'tcg', GIB, maxmem=8 * GIB,
                            machine=machine) as vm:
            vm.add_args('-S')
            add_device(vm, 'vmem', BACKENDS[0], device, properties)
            vm.launch()
            path = '/machine/peripheral/vmem'
            if device == 'virtio-mem-pci':
                path += '/virtio-backend'
            shown: List[Any] = [vm.cmd('x-query-virtio-status',
                                       path=path)]
            for size in (SIZE, 0):
                vm.cmd('qom-set', path=path, property='requested-size',
                       value=size)
                shown += [vm.hmp('info mtree -f').count('vmem-backend'),
                          vm.hmp('info mtree').count('memslot-')]
            vm.cmd('system_reset')
            if binary == environment.qemu_system():
                memslots = vm.cmd('query-memslots')
                self.assertEqual((memslots['required'], memslots['used'],
                                  memslots['reserved']), (0, 0, 0))
            return shown + [vm.cmd('query-status')['status']]

    def test_unmapped(self) -> None:
        """Machines that do not know of memory devices do not map them."""
        for machine, device in IGNORANT:
            stock: List[Any] = []
            for variant, binary, properties in variants():
                with self.subTest(machine=machine, device=device,
                                  variant=variant):
                    shown = self.unmapped(machine, device, binary, properties)
                    stock = stock or shown
                    self.assertEqual(shown, stock)
                    self.assertEqual(shown[1:5], [0, 0, 0, 0])


if __name__ == '__main__':
    unittest.main()
