"""
A Linux guest with plugged memory migrates between QEMUs that map it in
multiple memslots, in one, and Debian's own of two versions.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import unittest
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence

import environment
import mtree
from vhost_backends import peer_qemu
from vm import (BOOT_STALL, GIB, MIB, Accelerator,
                VirtualMachine, plugged_memslots, usable_memslots,
                usable_region, wait_until)

NAME = 'vmem0'
SIZE = 6 * GIB
# What the guest has plugged at most, before any migration
PEAK = 4 * GIB
# What it has while it travels, and for a moment after it arrived.
PLUGGED = 3 * GIB
MORE = PLUGGED + 256 * MIB
SEED = 7


@dataclass(frozen=True, eq=False)
class Host:
    """A QEMU to migrate from and to."""
    name: str
    # None: Debian's, which has no such property
    multiple_memslots: Optional[str]
    # What gives the program
    qemu: Callable[[], str] = environment.qemu_system


ON = Host('on', 'on')
OFF = Host('off', 'off')
STOCK = Host('7.2', None, environment.stock_qemu)
PEER = Host('10.0', None, peer_qemu)
# All machines have a version that all QEMUs on the way have. Each way holds
# each pair of ON and OFF, and some version of Debian's as source and as
# destination.
WAYS = (('pc-q35-7.2', (STOCK, ON, ON, OFF, ON, STOCK)),
        ('pc-q35-10.0', (PEER, ON, ON, OFF, ON, PEER)))


def guest_visible(device: Dict[str, Any]) -> Dict[str, Any]:
    """What does not depend on how the host maps the device."""
    return {name: value for name, value in device.items()
            if name not in ('memslots', 'active-memslots', 'mapped-size')}


class MigrationTests:
    """What is tested with each accelerator."""

    class Base(unittest.TestCase):
        """One guest a test, that is migrated from host to host."""
        accel: str
        accelerator: Accelerator
        version: str
        inaccessible: str

        def machine(self, host: Host) -> VirtualMachine:
            """A machine that has not been started."""
            vm = VirtualMachine(host.qemu(), self.accelerator.name, GIB,
                                maxmem=GIB + SIZE, machine=self.version,
                                cpu=self.accelerator.cpu)
            self.addCleanup(vm.shutdown)
            properties: Dict[str, str] = {}
            if host.multiple_memslots is not None:
                properties['multiple_memslots'] = host.multiple_memslots
            vm.add_guest(environment.image())
            vm.add_virtio_mem(NAME, SIZE,
                              unplugged_inaccessible=self.inaccessible,
                              **properties)
            return vm

        def assert_mapped(self, vm: VirtualMachine, host: Host) -> None:
            """What is mapped is what the rule for the host says."""
            if host is not ON:
                device = vm.memory_device(NAME)
                flat = mtree.rendered(vm.hmp('info mtree -f'),
                                      f'{NAME}-backend')
                self.assertEqual([(r.address, r.size) for r in flat],
                                 [(device['memaddr'], SIZE)])
                return

            def wanted() -> List[int]:
                if self.inaccessible == 'on':
                    return plugged_memslots(vm, NAME, vm.plan(NAME))
                usable = usable_region(PEAK, vm.memory_device(NAME))
                return usable_memslots(vm.plan(NAME), usable)
            wait_until(f'memslots {wanted()} are mapped (and not '
                       f'{vm.mapped_memslots(NAME)})',
                       lambda: vm.mapped_memslots(NAME) == wanted() or None,
                       timeout=10)

        def journeys(self, inaccessible: str) -> None:
            """Go all ways."""
            self.accelerator = environment.accelerator(self.accel)
            self.inaccessible = inaccessible
            for self.version, hosts in WAYS:
                self.journey(hosts)
                self.doCleanups()

        def journey(self, hosts: Sequence[Host]) -> None:
            """Boot on the first host, then visit the others."""
            host, vm = hosts[0], self.machine(hosts[0])
            vm.launch()
            guest = vm.guest
            assert guest is not None
            guest.wait_ready(BOOT_STALL)
            # Leave a hole: of what was plugged, all of the second GiB goes.
            vm.request(NAME, PEAK)
            vm.wait_plugged(NAME, PEAK)
            start = vm.memory_device(NAME)['memaddr']
            guest.offline(start + GIB, start + 2 * GIB - 1)
            vm.request(NAME, PLUGGED)
            vm.wait_plugged(NAME, PLUGGED)
            size = guest.fill_movable(SEED)

            for destination in hosts[1:]:
                arrived = False
                with self.subTest(f'{host.name} to {destination.name}',
                                  machine=self.version,
                                  inaccessible=self.inaccessible):
                    vm = self.migrate(vm, host, destination, size)
                    arrived = True
                if not arrived:
                    # Where the guest is now, nobody knows.
                    return
                host = destination

        def migrate(self, source: VirtualMachine, old: Host, new: Host,
                    size: int) -> VirtualMachine:
            """Migrate a guest and see that nothing was lost."""
            vm = self.machine(new)
            vm.add_incoming()
            vm.launch()
            before = guest_visible(source.memory_device(NAME))
            mapped = source.mapped_memslots(NAME) if old is ON else None
            source.migrate_to(vm)
            source.shutdown()

            self.assertEqual(guest_visible(vm.memory_device(NAME)), before)
            self.assert_mapped(vm, new)
            if new is ON and mapped is not None:
                self.assertEqual(vm.mapped_memslots(NAME), mapped)
            elif new is ON and old.multiple_memslots is None:
                # The hole, and what no request has reached
                self.assertEqual(vm.mapped_memslots(NAME),
                                 [0, 2, 3] if self.inaccessible == 'on'
                                 else [0, 1, 2, 3, 4])

            assert vm.guest is not None
            vm.guest.check(SEED, size)
            for plugged in (MORE, PLUGGED):
                vm.request(NAME, plugged)
                vm.wait_plugged(NAME, plugged)
                self.assert_mapped(vm, new)
            vm.guest.check(SEED, size)
            return vm

        def test_inaccessible(self) -> None:
            """Guests that leave unplugged memory alone."""
            self.journeys('on')

        def test_accessible(self) -> None:
            """Guests that may read unplugged memory."""
            self.journeys('off')


class TestTCG(MigrationTests.Base):
    """With emulation."""
    accel = 'tcg'


class TestKVM(MigrationTests.Base):
    """With virtualisation."""
    accel = 'kvm'


if __name__ == '__main__':
    unittest.main()
