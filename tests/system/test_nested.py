"""
What KVM with SMM and the kernel's vhost-net get to see of virtio-mem devices,
in a VM that emulates a machine which has both.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import unittest
from typing import Any, Dict, List, Optional, Sequence, Tuple

from qemu.qmp import ExecuteError

import environment
from guest import MIB
from nested import NestedHost, NestedMachine, held
from vm import GIB, wait_until

NAME = 'vmem0'
NET = 'net0'
TAP = {'id': NET, 'ifname': 'tap0', 'script': 'no', 'downscript': 'no'}
HOST_ADDRESS, GUEST_ADDRESS = '10.0.0.1', '10.0.0.2'
# What vhost takes by default, and more than KVM has ever promised.
FEW_REGIONS, MANY_REGIONS = 64, 600
# vhost that can hold fewer sees each device as a whole.
HISTORICAL_MAX = 509
# Where the guest may read unplugged memory, memslots are mapped for some more
# than is requested.
LEEWAY = 256 * MIB

HOST: NestedHost


def setUpModule() -> None:  # pylint: disable=invalid-name
    """Boot the host: it takes longer than most tests."""
    global HOST  # pylint: disable=global-statement
    HOST = NestedHost(environment.emulator(), environment.qemu_system(),
                      environment.image())
    unittest.addModuleCleanup(HOST.shutdown)
    HOST.boot()
    HOST.load_kvm()


class NestedTestCase(unittest.TestCase):
    """One machine a test, most often without a guest."""
    machine: NestedMachine

    def create(self, size: int, machine: str = 'q35,smm=on',
               vhost: bool = False, **properties: str) -> NestedMachine:
        """
        Create a machine with a device that may have many memslots, in place
        of the one before.
        """
        self.doCleanups()
        self.machine = NestedMachine(HOST, machine, maxmem=GIB + size)
        self.addCleanup(self.machine.shutdown)
        if vhost:
            self.machine.add_args('-netdev', ','.join(
                ['tap'] + [f'{key}={value}' for key, value in TAP.items()]
                + ['vhost=on', 'vhostforce=on']))
        self.machine.add_virtio_mem(
            NAME, size, **{'multiple_memslots': 'on', **properties})
        return self.machine

    def start(self, size: int, machine: str = 'q35,smm=on',
              vhost: bool = False, **properties: str) -> None:
        """Start such a machine without a guest."""
        self.create(size, machine, vhost,
                    **{'unplugged_inaccessible': 'off', **properties})
        self.machine.add_args('-S')
        self.machine.launch()

    def map_memslots(self, count: int) -> None:
        """Have so many memslots of 1 GiB mapped, with no guest to ask."""
        self.machine.request(NAME, count * GIB - LEEWAY)

    def unmap_all(self) -> None:
        """As when the VM starts."""
        self.machine.request(NAME, 0)
        self.machine.cmd('system_reset')
        wait_until('no memslot is mapped',
                   lambda: self.machine.cmd('query-memslots')['used'] == 0
                   or None)

    def holders(self) -> Dict[str, Dict[str, Any]]:
        """What query-memslots has about KVM, and each vhost device's id."""
        answer = self.machine.cmd('query-memslots')
        return {holder.get('id', holder['type']): holder
                for holder in answer['holders']}

    def check_memory_devices(self, used: int, reserved: int) -> None:
        """Compare with what query-memslots has about all of them."""
        self.assertEqual(
            {key: value for key, value
             in self.machine.cmd('query-memslots').items()
             if key != 'holders'},
            {'soft-limit': 256, 'required': used + reserved, 'used': used,
             'reserved': reserved})

    def check_kvm(self, used: int, reserved: int) -> None:
        """Compare what query-memslots has with what KVM has."""
        limit = HOST.kvm_limits()[0]
        self.assertEqual(
            self.holders()['kvm'],
            {'type': 'kvm', 'limit': limit, 'used': used,
             'free': limit - used, 'reserved': reserved,
             'shared-only': False, 'whole-devices': False})

    def check_vhost(self, limit: int, reserved: int) -> int:
        """
        Compare what query-memslots has with what vhost has; return how many
        regions that is.
        """
        used = len(self.machine.vhost_table())
        self.assertEqual(
            self.holders()[NET],
            {'type': 'vhost', 'id': NET, 'limit': limit, 'used': used,
             'free': limit - used, 'reserved': reserved,
             'shared-only': False, 'whole-devices': limit < HISTORICAL_MAX})
        return used

    def seen_by_vhost(self) -> List[Tuple[int, int]]:
        """Offsets and sizes of the device's regions in vhost's table."""
        start = self.machine.memory_device(NAME)['memaddr']
        return [(address - start, size)
                for address, size in self.machine.vhost_table()
                if address >= start]

    def check_step(self, before: int, spaces: int, memslots: Sequence[int],
                   mapped: bool) -> int:
        """
        KVM was called once per memslot and address space since as many calls
        as @before, and for nothing else of the device; return how many calls
        that makes.
        """
        device = self.machine.memory_device(NAME)
        start, size = device['memaddr'], device['max-size']
        calls = self.machine.kvm_calls()
        self.assertEqual(
            sorted((call.space, call.address, call.size)
                   for call in calls[before:]
                   if start <= call.address < start + size),
            [(space, start + index * GIB, GIB if mapped else 0)
             for space in range(spaces) for index in memslots])
        return len(calls)

    def check_books(self, spaces: int, memslots: int) -> None:
        """What QEMU says, and what it told KVM."""
        table = held(self.machine.kvm_calls())
        self.assertEqual(sorted(table), list(range(spaces)))
        reserved = self.machine.memslots(NAME) - memslots
        self.check_memory_devices(memslots, reserved)
        self.check_kvm(max(map(len, table.values())), reserved)


class TestKvm(NestedTestCase):
    """Each address space has the memslots, and query-memslots is right."""

    def test_address_spaces(self) -> None:
        """SMM has an address space of its own."""
        self.assertEqual(HOST.kvm_limits()[1], 2)
        for machine, spaces in (('q35,smm=on', 2), ('pc,smm=on', 2),
                                ('q35,smm=off', 1)):
            with self.subTest(machine=machine):
                self.start(8 * GIB, machine)
                seen = self.check_step(0, spaces, [], True)
                self.check_books(spaces, 0)
                self.map_memslots(2)
                seen = self.check_step(seen, spaces, [0, 1], True)
                self.check_books(spaces, 2)
                self.map_memslots(5)
                seen = self.check_step(seen, spaces, [2, 3, 4], True)
                self.check_books(spaces, 5)
                self.unmap_all()
                self.check_step(seen, spaces, range(5), False)
                self.check_books(spaces, 0)


class TestVhost(NestedTestCase):
    """vhost-net takes 64 memory regions, or as many as it is told to."""

    def add_vhost(self, force: bool = True) -> Optional[str]:
        """Plug a vhost-net device: None, or the error if it is refused."""
        try:
            self.machine.cmd('netdev_add', type='tap', vhost=True,
                             vhostforce=force, **TAP)
        except ExecuteError as error:
            return str(error)
        return None

    def check_refused(self, error: Optional[str], limit: int, used: int,
                      reserved: int) -> None:
        """A vhost device was refused, and nothing is left of it."""
        self.assertIsNotNone(error)
        self.assertIn(f"vhost backend '{NET}' can hold {limit} memory "
                      f'regions, but {used} are used and {reserved} are '
                      'reserved for memory devices', error)
        self.assertEqual(list(self.holders()), ['kvm'])

    def boot_regions(self) -> int:
        """How many regions vhost needs for what is not the device's."""
        HOST.limit_vhost(FEW_REGIONS)
        self.assertIsNone(self.add_vhost())
        regions = self.machine.vhost_table()
        self.machine.cmd('netdev_del', id=NET)
        return len(regions) - len(self.seen_by_vhost())

    def test_many_regions(self) -> None:
        """vhost that can hold them gets all memslots."""
        HOST.limit_vhost(MANY_REGIONS)
        self.start(100 * GIB, vhost=True)
        self.assertEqual(self.machine.memslots(NAME), 100)
        unplugged = self.check_vhost(MANY_REGIONS, 100)
        self.map_memslots(7)
        self.check_memory_devices(7, 93)
        self.assertEqual(self.check_vhost(MANY_REGIONS, 93), unplugged + 7)
        self.assertEqual(self.seen_by_vhost(),
                         [(index * GIB, GIB) for index in range(7)])
        self.unmap_all()
        self.assertEqual(self.check_vhost(MANY_REGIONS, 100), unplugged)

    def test_few_regions(self) -> None:
        """Other vhost sees all of the device, and does not limit it."""
        HOST.limit_vhost(FEW_REGIONS)
        self.start(100 * GIB, vhost=True)
        self.assertEqual(self.machine.memslots(NAME), 100)
        regions = self.check_vhost(FEW_REGIONS, 0)
        self.assertEqual(self.seen_by_vhost(), [(0, 100 * GIB)])
        for memslots in (1, 7, 100):
            self.map_memslots(memslots)
            self.check_memory_devices(memslots, 100 - memslots)
            self.assertEqual(self.check_vhost(FEW_REGIONS, 0), regions)
            self.assertEqual(self.seen_by_vhost(), [(0, 100 * GIB)])
        self.unmap_all()
        self.assertEqual(self.check_vhost(FEW_REGIONS, 0), regions)
        self.assertEqual(self.seen_by_vhost(), [(0, 100 * GIB)])

    def test_queues(self) -> None:
        """However many pairs of queues there are, they are one backend."""
        HOST.limit_vhost(MANY_REGIONS)
        self.start(100 * GIB)
        self.machine.cmd('netdev_add', type='tap', vhost=True, vhostforce=True,
                         queues=4, **{**TAP, 'ifname': 'tap1'})
        before = self.holders()[NET]
        self.map_memslots(100)
        self.check_memory_devices(100, 0)
        self.assertEqual(
            [holder for holder in self.machine.cmd('query-memslots')['holders']
             if holder['type'] == 'vhost'],
            [{**before, 'used': before['used'] + 100,
              'free': before['free'] - 100, 'reserved': 0}])
        self.machine.cmd('netdev_del', id=NET)
        self.assertEqual(list(self.holders()), ['kvm'])

    def test_after_device(self) -> None:
        """It may come when memory is plugged already, and go again."""
        for limit, table in (
                (FEW_REGIONS, [(0, 100 * GIB)]),
                (MANY_REGIONS, [(index * GIB, GIB) for index in range(20)])):
            with self.subTest(limit=limit):
                self.doCleanups()
                HOST.limit_vhost(limit)
                self.start(100 * GIB)
                self.map_memslots(20)
                self.assertIsNone(self.add_vhost())
                self.check_vhost(limit, 80 if limit == MANY_REGIONS else 0)
                self.assertEqual(self.seen_by_vhost(), table)
                self.machine.cmd('netdev_del', id=NET)
                self.assertEqual(list(self.holders()), ['kvm'])
                self.map_memslots(30)
                self.check_memory_devices(30, 70)

    def test_refused(self) -> None:
        """It is told if it cannot even hold one region per device."""
        self.start(100 * GIB)
        boot = self.boot_regions()
        HOST.limit_vhost(boot)
        self.check_refused(self.add_vhost(), boot, boot + 1, 0)
        self.map_memslots(20)
        for force in (True, False):
            self.check_refused(self.add_vhost(force), boot, boot + 1, 0)
        # Nothing is left of it, or the module could not be replaced.
        HOST.limit_vhost(boot + 1)
        self.assertIsNone(self.add_vhost())
        self.assertEqual(self.check_vhost(boot + 1, 0), boot + 1)
        self.map_memslots(100)
        self.assertEqual(self.check_vhost(boot + 1, 0), boot + 1)


class TestLinux(NestedTestCase):
    """A Linux guest on KVM, with memory that vhost has to see."""
    SIZE = 4 * GIB

    def ranges(self) -> List[int]:
        """Memslots that the guest has memory of, by its own account."""
        start = self.machine.memory_device(NAME)['memaddr']
        return sorted({index for first, last in HOST.inner.virtio_mem_ranges()
                       for index in range((first - start) // GIB,
                                          (last - start) // GIB + 1)})

    def resize(self, size: int, memslots: Sequence[int]) -> None:
        """Have the guest plug or unplug memory."""
        self.machine.request(NAME, size)
        self.machine.wait_plugged(NAME, size)
        wait_until(f'the guest has memory of {memslots}',
                   lambda: self.ranges() == list(memslots) or None)

    def check_network(self) -> None:
        """vhost sees the device as a whole, and packets get through it."""
        self.assertEqual(self.seen_by_vhost(), [(0, self.SIZE)])
        HOST.inner.run(f'ping -c 5 -i 0.2 -s 1400 {HOST_ADDRESS}')

    def boot(self, machine: str, parameters: str, *devices: str) -> None:
        """Boot Linux with a network card that vhost works for."""
        HOST.limit_vhost(FEW_REGIONS)
        self.create(self.SIZE, machine, vhost=True,
                    unplugged_inaccessible='on')
        self.machine.add_linux(parameters)
        self.machine.add_args('-trace', 'vhost_iotlb_miss')
        for device in devices:
            self.machine.add_args('-device', device)
        self.machine.launch()
        HOST.run(f'ip address add {HOST_ADDRESS}/24 dev {TAP["ifname"]} && '
                 f'ip link set {TAP["ifname"]} up')

    def use_network(self) -> None:
        """Have vhost use memory of the device, and plug some more."""
        guest = HOST.inner
        # All memory that is not the device's is in the zone DMA32: Linux
        # takes the other first.
        guest.run('echo online_kernel '
                  '>/sys/devices/system/memory/auto_online_blocks')
        self.resize(GIB, [0])
        guest.run(f'modprobe virtio_net && ip link set eth0 up && '
                  f'ip address add {GUEST_ADDRESS}/24 dev eth0')
        self.check_network()
        self.resize(3 * GIB, [0, 1, 2])
        self.check_network()
        self.assertTrue(self.machine.vhost_started())

    def test_iommu(self) -> None:
        """vhost asks QEMU for each translation of the guest's IOMMU."""
        self.boot('q35,smm=on,kernel-irqchip=split', 'intel_iommu=on',
                  'intel-iommu,caching-mode=on,device-iotlb=on',
                  f'virtio-net-pci,id=card,netdev={NET},romfile=,'
                  'iommu_platform=on,ats=on,disable-legacy=on')
        self.use_network()
        self.assertIn('vhost_iotlb_miss', self.machine.log())

    def test_guest(self) -> None:
        """Plug, use, unplug; then have the network card use it."""
        self.boot('q35,smm=on', '',
                  f'virtio-net-pci,id=card,netdev={NET},romfile=')
        guest = HOST.inner

        seen = self.check_step(0, 2, [], True)
        self.resize(GIB + 128 * MIB, [0, 1])
        seen = self.check_step(seen, 2, [0, 1], True)
        self.check_books(2, 2)
        guest.fill(1, 128 * MIB)
        self.resize(2 * GIB + 128 * MIB, [0, 1, 2])
        seen = self.check_step(seen, 2, [2], True)
        self.check_books(2, 3)
        guest.check(1, 128 * MIB)
        guest.free()
        self.resize(0, [])
        seen = self.check_step(seen, 2, [0, 1, 2], False)
        self.check_books(2, 0)

        self.use_network()
        start = self.machine.memory_device(NAME)['memaddr']
        for queue in (0, 1):
            self.assertGreaterEqual(
                self.machine.cmd(
                    'x-query-virtio-queue-status',
                    path='/machine/peripheral/card/virtio-backend',
                    queue=queue)['vring-desc'], start)


class TestKernelMemory(NestedTestCase):
    """What the kernel allocates for a device."""
    SIZE = 256 * GIB

    def growth(self, since: int) -> int:
        """How much more the kernel uses."""
        return HOST.kernel_memory() - since

    def test_costs_what_is_mapped(self) -> None:
        """With both address spaces."""
        base = HOST.kernel_memory()
        self.start(self.SIZE, multiple_memslots='off')
        single = self.growth(base)
        # Two address spaces, two bytes per page.
        self.assertGreater(single, self.SIZE // 4096 * 2 * 2)
        self.machine.shutdown()
        wait_until('the kernel has freed it',
                   lambda: self.growth(base) < single // 50 or None)

        base = HOST.kernel_memory()
        self.start(self.SIZE)
        self.assertGreater(self.machine.memslots(NAME), 50)
        self.assertLess(self.growth(base), single // 50)
        self.map_memslots(2)
        self.assertLess(self.growth(base), single // 50)


if __name__ == '__main__':
    unittest.main()
