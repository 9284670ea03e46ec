"""
A guest ejects a virtio-mem device that has memory plugged, unasked, in each
way that a machine has for it.

It goes as an empty one does after device_del: nothing stays behind, and what
it was made of serves again.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import unittest
from typing import List, Tuple, Type

import environment
import host_memory
from drivers import Answer, Machine, VirtioMem, memory_device
from vhost_backends import wait_deleted
from vm import GIB, MIB, wait_until

NAME, BACKEND = 'vmem0', 'vmem0-backend'
SIZE = 4 * GIB
BLOCK = 2 * MIB
# Across two memslots, and in another
PLUGGED = (GIB - BLOCK, GIB, 3 * GIB)
VALUE = 0x1122334455667788

# In the configuration space of a bridge, and which of its capabilities
BUS_NUMBERS, WINDOW = 0x18, 0x20
CAP_EXPRESS = 0x10
PORT_SLOT = 6


def bridge(machine: Machine) -> None:
    """Have a port lead to bus 1, and to the BARs of what is there."""
    machine.pci_write(PORT_SLOT, BUS_NUMBERS, 0x010100)
    machine.pci_write(PORT_SLOT, WINDOW, 0xe0f0e000)
    machine.pci_write(PORT_SLOT, 4, 6)


def capability(machine: Machine, kind: int) -> int:
    """Where in the configuration space of the port a capability is."""
    register = machine.pci_read(PORT_SLOT, 0x34) & 0xff
    while register:
        first = machine.pci_read(PORT_SLOT, register)
        if first & 0xff == kind:
            return register
        register = first >> 8 & 0xff
    raise KeyError(kind)


class Way:
    """A way to have a device ejected: with ACPI, from the machine pc."""
    MACHINE = 'pc'
    # Of the device
    BUS, ADDR = 'pci.0', 5
    ARGUMENTS: Tuple[str, ...] = ()

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @property
    def slot(self) -> int:
        """Where the driver finds the device."""
        return self.ADDR

    def prepare(self) -> None:
        """What the guest's firmware does."""

    def power_on(self) -> None:
        """What the guest does when another device has come."""

    def eject(self) -> None:
        """What the guest does to have it go."""
        self.machine.eject(self.ADDR)


class Port(Way):
    """It is behind a port."""
    BUS, ADDR = 'bridge', 0

    @property
    def slot(self) -> int:
        return 1 << 5 | self.ADDR

    def prepare(self) -> None:
        bridge(self.machine)


class ExpressAcpi(Port):
    """With ACPI, from a port of the machine q35."""
    MACHINE = 'q35'
    ARGUMENTS = ('-device', f'pcie-root-port,id=bridge,addr={PORT_SLOT},'
                            'chassis=1',)
    EJECT, SELECT = 0xcc8, 0xcd0

    def eject(self) -> None:
        bus = self.machine.cmd('qom-get', property='acpi-pcihp-bsel',
                               path='/machine/peripheral/bridge/bridge')
        self.machine.qtest(f'outl {self.SELECT} {bus}')
        self.machine.qtest(f'outl {self.EJECT} {1 << self.ADDR}')


class ExpressNative(ExpressAcpi):
    """By the port itself: the slot's power goes off."""
    ARGUMENTS = ExpressAcpi.ARGUMENTS + (
        '-global', 'ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off')
    # Power controller and power indicator are on, or off
    ON, OFF = 0x100, 0x700

    def _control(self, value: int) -> None:
        register = capability(self.machine, CAP_EXPRESS) + 0x18
        self.machine.pci_write(PORT_SLOT, register, value)

    def power_on(self) -> None:
        self._control(self.ON)

    def eject(self) -> None:
        self._control(self.OFF)


class Shpc(Port):
    """By the controller of a bridge of the machine pc."""
    ADDR = 1
    ARGUMENTS = ('-device', f'pci-bridge,id=bridge,addr={PORT_SLOT},'
                            'chassis_nr=1,shpc=on',
                 '-global',
                 'PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off')
    COMMAND = 0x14
    # Slot enabled and power indicator on, or disabled and off
    ON, OFF = 0x06, 0x0f
    _registers = 0

    def prepare(self) -> None:
        super().prepare()
        self._registers = self.machine.allocate_bar()
        self.machine.pci_write(PORT_SLOT, 0x10, self._registers)
        self.machine.pci_write(PORT_SLOT, 0x14, 0)

    def _command(self, code: int) -> None:
        # Slots count from 1 on.
        self.machine.set_number(self._registers + self.COMMAND, 'w',
                                self.ADDR << 8 | code)

    def power_on(self) -> None:
        self._command(self.ON)

    def eject(self) -> None:
        self._command(self.OFF)


class Base:
    """Hidden from the loader of tests."""

    class Tests(unittest.TestCase):
        """What is tested of each way."""
        accel = 'tcg'
        way_class: Type[Way] = Way
        multiple = True

        def setUp(self) -> None:
            if self.accel == 'kvm':
                environment.require_kvm()
            self.machine = Machine(environment.qemu_system(), self.accel,
                                   16 * GIB, self.way_class.MACHINE)
            self.addCleanup(self.machine.shutdown)
            self.way = self.way_class(self.machine)
            self.machine.add_args(*self.way.ARGUMENTS)
            self.device = {
                **memory_device(NAME, BACKEND, self.way.ADDR, SIZE, BLOCK,
                                self.multiple),
                'bus': self.way.BUS}

        def launch(self) -> None:
            """Start the machine, and what there is of firmware."""
            self.machine.launch()
            self.way.prepare()

        def add_backend(self) -> None:
            """Memory for the device."""
            self.machine.cmd('object-add', qom_type='memory-backend-memfd',
                             id=BACKEND, size=SIZE, share=True, reserve=False)

        def add_device(self) -> None:
            """The device comes while the machine runs."""
            self.machine.cmd('device_add', **self.device)
            self.way.power_on()

        @property
        def pid(self) -> int:
            """QEMU's process."""
            return self.machine.get_pid() or 0

        def descriptors(self) -> int:
            """How many files QEMU has open."""
            return host_memory.nr_descriptors(self.pid)

        def spent(self) -> List[int]:
            """What is spent on each file with memory for the device."""
            return list(host_memory.files(self.pid, SIZE).values())

        def account(self) -> List[int]:
            """Memslots that memory devices were promised, and use."""
            info = self.machine.cmd('query-memslots')
            return [info[name] for name in ('required', 'used')]

        def plug(self) -> None:
            """Plug memory, see that it is new, and use it."""
            memory = VirtioMem(self.machine, self.way.slot)
            for offset in PLUGGED:
                self.assertEqual(memory.plug(offset, BLOCK), Answer.ACK)
                address = memory.start + offset
                self.assertEqual(self.machine.number(address, 'q'), 0)
                self.machine.set_number(address, 'q', VALUE)
            self.assertEqual(self.account(),
                             [4, 3] if self.multiple else [1, 1])

        def eject(self) -> None:
            """Nothing is left of the device but its backend, empty."""
            self.way.eject()
            wait_deleted(self.machine, NAME)
            self.assertEqual(self.machine.cmd('query-memory-devices'), [])
            self.assertEqual(self.account(), [0, 0])
            for form in ('', ' -f'):
                self.assertNotIn(BACKEND,
                                 self.machine.hmp(f'info mtree{form}'))
            self.assertEqual(self.spent(), [0])

        def remove_backend(self) -> None:
            """Nor that, after an RCU grace period."""
            self.machine.cmd('object-del', id=BACKEND)
            wait_until('its file is closed',
                       lambda: self.spent() == [] or None)
            self.assertNotIn(BACKEND, self.machine.hmp('info ramblock'))

        def test_again(self) -> None:
            """The device goes and comes, with the same backend or another."""
            self.launch()
            before = self.descriptors()
            for _ in range(2):
                self.add_backend()
                for _ in range(2):
                    self.add_device()
                    self.plug()
                    self.eject()
                self.remove_backend()
            self.assertEqual(self.descriptors(), before)

        def test_cold(self) -> None:
            """A device that was there from the start."""
            self.machine.add_args(
                '-object', f'memory-backend-memfd,id={BACKEND},size={SIZE},'
                           'reserve=off',
                '-device', json.dumps(self.device))
            self.launch()
            self.plug()
            self.eject()
            self.remove_backend()


class TestAcpi(Base.Tests):
    """ACPI, machine pc."""


class TestAcpiKVM(Base.Tests):
    """The same with KVM, whose memslots go as well."""
    accel = 'kvm'


class TestAcpiSingle(Base.Tests):
    """With one memslot: the control."""
    multiple = False


class TestExpressAcpi(Base.Tests):
    """ACPI, machine q35."""
    way_class = ExpressAcpi


class TestExpressNative(Base.Tests):
    """PCI Express."""
    way_class = ExpressNative


class TestExpressNativeSingle(TestExpressNative):
    """The same, with one memslot."""
    multiple = False


class TestShpc(Base.Tests):
    """SHPC, machine pc."""
    way_class = Shpc


if __name__ == '__main__':
    unittest.main()
