"""
What happens to memory devices while their VM migrates, or when it has: it is
reset, loads its devices, hears of free pages, or has its memory ejected.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import struct
import tempfile
import unittest
from itertools import product
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple

from qemu.qmp import ExecuteError

import environment
from drivers import (Answer, DriverError, Machine, VirtioBlk, VirtioDevice,
                     VirtioMem)
from vhost_backends import DEVICE, DEVICE_SLOT, MEMORY, TracedMachine
from vm import GIB, MIB, wait_until
from writer import PAGE, wait_soon

SIZE = 4 * GIB
BLOCK = 2 * MIB
MAXMEM = 16 * GIB
# What is plugged: at either end of the device, which are different memslots.
PLACES = (0, SIZE - BLOCK)
# So little a second that a migration does not end by itself
SLOW = 8 * 1024
FAST = 1 << 40
MEMSLOTS = ('off', 'on')


class Side(TracedMachine):
    """A machine that migrates, or that another one migrates to."""
    MACHINE = 'pc'

    def __init__(self, multiple: str, file: Path,
                 before: Sequence[str] = (), **properties: str) -> None:
        """What is added before the device comes before it in the stream."""
        super().__init__(environment.qemu_system(), maxmem=MAXMEM,
                         machine=self.MACHINE)
        self.is_early = properties.get('x-early-migration') != 'off'
        device: Dict[str, Any] = {
            'id': DEVICE, 'memdev': MEMORY, 'addr': DEVICE_SLOT,
            'requested-size': SIZE, 'dynamic-memslots': multiple}
        device.update(properties)
        self.add_args(
            *before, '-object',
            f'memory-backend-file,share=on,mem-path={file},id={MEMORY},'
            f'size={SIZE},reserve=off',
            '-device', ','.join(['virtio-mem-pci'] + [
                f'{name}={value}' for name, value in device.items()]))

    @property
    def uri(self) -> str:
        """Where others can migrate to this one."""
        return f'unix:{self.directory}/migration'

    def set_capabilities(self, *names: str) -> None:
        """Migrate with these capabilities."""
        self.cmd('migrate-set-capabilities', capabilities=[
            {'capability': name, 'state': True} for name in names])

    def migration(self) -> Dict[str, Any]:
        """What there is to know about a migration."""
        return dict(self.cmd('query-migrate'))

    def wait_status(self, *wanted: str) -> None:
        """Wait until a migration is that far."""
        def arrived() -> Any:
            info = self.migration()
            if info.get('status') in ('failed', 'postcopy-paused'):
                raise AssertionError(str(info))
            return info.get('status') in wanted or None
        wait_soon(f'the migration is {wanted}', arrived)

    def wait_runs(self) -> None:
        """Wait until the vCPU may run."""
        wait_soon('it runs', lambda: self.cmd(
            'query-status')['status'] == 'running' or None)

    def reset(self) -> None:
        """Reset it, and wait for that."""
        self.get_qmp_events()
        self.cmd('system_reset')

        def done() -> Any:
            # Events are only received together with an answer.
            self.cmd('query-status')
            return any(event['event'] == 'RESET'
                       for event in self.get_qmp_events()) or None
        wait_soon('it is reset', done)


class PortSide(Side):
    """With the device behind a PCIe port, and nothing requested of it."""
    MACHINE = 'q35'
    SLOT = 8
    # ACPI would take it over.
    PORT = ('-device', f'pcie-root-port,id=port0,slot=1,addr={SLOT}',
            '-global', 'ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off')
    ADDRESS = '0'
    CAPABILITY = 0x10
    # Slot control: the power controller's bit, and its indicator to be off
    CONTROL, POWER_OFF = 24, 0x700

    def __init__(self, multiple: str, file: Path) -> None:
        super().__init__(multiple, file, self.PORT, **{
            'bus': 'port0', 'addr': self.ADDRESS, 'requested-size': '0'})

    def switch_off(self) -> None:
        """What the guest does about device_del."""
        place = self.pci_read(self.SLOT, 0x34) & 0xff
        while self.pci_read(self.SLOT, place) & 0xff != self.CAPABILITY:
            place = self.pci_read(self.SLOT, place) >> 8 & 0xff
        place += self.CONTROL
        self.pci_write(self.SLOT, place, self.POWER_OFF | self.pci_read(
            self.SLOT, place) & 0xffff)


class BridgeSide(PortSide):
    """The same behind a PCI bridge with a hotplug controller (SHPC)."""
    MACHINE = 'pc'
    PORT = ('-device', f'pci-bridge,id=port0,chassis_nr=1,shpc=on,addr='
            f'{PortSide.SLOT}', '-global',
            'PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off')
    ADDRESS = '1'
    # The register for commands; slot, and its indicators and power off
    COMMAND, OFF = 0x14, 0x13f

    def switch_off(self) -> None:
        base = self.allocate_bar()
        self.pci_write(self.SLOT, 0x10, base)
        self.pci_write(self.SLOT, 0x14, 0)
        # Memory space
        self.pci_write(self.SLOT, 4, 2)
        self.set_number(base + self.COMMAND, 'w', self.OFF)


class Moving:
    """What tests of migration have in common."""

    class Base(unittest.TestCase):
        """A device whose memory is known, at the source."""
        directory: Path
        source: Side
        memory: VirtioMem

        def side(self, name: str, multiple: str, *before: str,
                 **properties: str) -> Side:
            """A machine, whose memory is in the file of this name."""
            side = Side(multiple, self.directory / name, before, **properties)
            self.addCleanup(side.shutdown)
            return side

        def make_directory(self) -> None:
            """Where files with memory are."""
            self.directory = Path(self.enterContext(
                tempfile.TemporaryDirectory(prefix='virtio-mem-',
                                            dir='/dev/shm')))

        def launch_source(self, multiple: str, *before: str,
                          **properties: str) -> None:
            """A machine with memory plugged, and something in it."""
            self.make_directory()
            self.source = self.side('source', multiple, *before, **properties)
            self.source.launch()
            self.memory = self.driver()
            for place in PLACES:
                self.assertEqual(self.memory.plug(place, BLOCK), Answer.ACK)
            for address, data in self.contents():
                self.source.write(address, data)

        def driver(self) -> VirtioMem:
            """Who has the source's device."""
            return VirtioMem(self.source, DEVICE_SLOT)

        def contents(self) -> Iterator[Tuple[int, bytes]]:
            """What is in memory, by address."""
            for place in PLACES:
                for page in (0, BLOCK - PAGE):
                    yield (self.memory.start + place + page,
                           f'{place + page:#x}'.encode('ascii') * 256)

        def launch_target(self, name: str, multiple: str, *before: str,
                          **properties: str) -> Side:
            """Where to migrate to."""
            target = self.side(name, multiple, *before, **properties)
            target.add_args('-incoming', 'defer')
            target.launch()
            return target

        def start(self, target: Side, *capabilities: str,
                  plugged: int = len(PLACES) * BLOCK) -> None:
            """Migrate, slowly, until the target knows what is plugged."""
            for side in (self.source, target):
                side.set_capabilities(*capabilities)
            self.source.cmd('migrate-set-parameters', max_bandwidth=SLOW,
                            avail_switchover_bandwidth=SLOW,
                            max_postcopy_bandwidth=SLOW)
            target.cmd('migrate-incoming', uri=target.uri)
            self.source.cmd('migrate', uri=target.uri)
            self.source.wait_status('active')
            if target.is_early:
                wait_soon('the early state has arrived', lambda:
                          target.plugged(DEVICE) == plugged or None)

        def finish(self, target: Side, *capabilities: str) -> None:
            """Have it end; in postcopy, all is asked for before it comes."""
            if 'postcopy-ram' in capabilities:
                self.source.cmd('migrate-start-postcopy')
                target.wait_runs()
            self.source.cmd('migrate-set-parameters', max_bandwidth=FAST,
                            avail_switchover_bandwidth=FAST,
                            max_postcopy_bandwidth=FAST)
            for side in (self.source, target):
                side.wait_status('completed')
            target.wait_runs()

        def verify(self, side: Side) -> None:
            """All is plugged there, and holds what it has to."""
            self.assertEqual(side.plugged(DEVICE), len(PLACES) * BLOCK)
            for address, data in self.contents():
                self.assertEqual(side.read(address, len(data)), data,
                                 hex(address - self.memory.start))


class TestReset(Moving.Base):
    """A reset unplugs what is one's own."""

    def at_target(self, multiple: str, name: str, *capabilities: str) -> None:
        """The target is reset before all has come."""
        self.launch_source(multiple)
        target = self.launch_target(name, multiple)
        self.start(target, *capabilities)
        target.reset()
        self.assertEqual(target.plugged(DEVICE), len(PLACES) * BLOCK)
        self.verify(self.source)
        self.finish(target, *capabilities)
        self.verify(target)

    def test_precopy(self) -> None:
        """What has come stays."""
        for multiple in MEMSLOTS:
            with self.subTest(multiple=multiple):
                self.at_target(multiple, 'target')

    def test_postcopy(self) -> None:
        """The same where postcopy may follow, and does."""
        for multiple in MEMSLOTS:
            with self.subTest(multiple=multiple):
                self.at_target(multiple, 'target', 'postcopy-ram')

    def test_shared(self) -> None:
        """What the source runs on stays."""
        for multiple in MEMSLOTS:
            with self.subTest(multiple=multiple):
                self.at_target(multiple, 'source', 'x-ignore-shared')

    def test_left(self) -> None:
        """What the destination runs on stays, and what it does not goes."""
        for multiple in MEMSLOTS:
            for name, capabilities in (('source', ['x-ignore-shared']),
                                       ('target', [])):
                with self.subTest(multiple=multiple, memory=name):
                    self.left(multiple, name, capabilities)

    def left(self, multiple: str, name: str,
             capabilities: Sequence[str]) -> None:
        """The source is reset when the target runs."""
        self.launch_source(multiple)
        target = self.launch_target(name, multiple)
        self.start(target, *capabilities)
        self.finish(target)
        for _ in range(2):
            self.source.reset()
        self.verify(target)
        self.assertEqual(self.source.plugged(DEVICE) == 0,
                         not capabilities)


class TestRing(Moving.Base):
    """
    A device that was there first has its ring in memory that is plugged, which
    it looks at when it is loaded.
    """
    SLOT = 6
    DISK = ('-blockdev', 'null-co,node-name=disk,size=1048576,read-zeroes=on',
            '-device', f'virtio-blk-pci,drive=disk,addr={SLOT}')

    def travel(self, *capabilities: str) -> None:
        """In all ways, between devices that are created in all ways."""
        for multiple, early, requested in product(
                MEMSLOTS, ('on', 'off'), (SIZE, 0)):
            with self.subTest(multiple=multiple, early=early,
                              requested=requested):
                self.take_disk(multiple, requested, capabilities,
                               **{'x-early-migration': early})

    def take_disk(self, multiple: str, requested: int,
                  capabilities: Sequence[str], **properties: str) -> None:
        """The disk serves here, and there."""
        self.launch_source(multiple, *self.DISK, **properties)
        buffer = self.source.allocate(PAGE)
        disk = VirtioBlk(self.source, self.SLOT, rings=[
            self.memory.start + SIZE - BLOCK + 4 * PAGE])
        disk.transfer(disk.IN, 0, buffer, PAGE)
        properties['requested-size'] = str(requested)
        target = self.launch_target('target', multiple, *self.DISK,
                                    **properties)
        self.start(target, *capabilities)
        # What was sent of the ring is not what it is now.
        disk.transfer(disk.IN, 0, buffer, PAGE)
        self.finish(target, *capabilities)
        self.verify(target)
        target.adopt(self.source)
        disk.machine = target
        disk.transfer(disk.IN, 0, buffer, PAGE)

    def test_precopy(self) -> None:
        """All memory is there before the disk, but it has to be mapped."""
        self.travel()

    def test_postcopy(self) -> None:
        """What is missing is asked for."""
        self.travel('postcopy-ram')


class IOMMU(VirtioDevice):
    """A virtio-iommu device."""
    ATTACH, MAP = 1, 3
    DOMAIN = 1
    READ, WRITE = 1, 2

    def __init__(self, machine: Machine, slot: int) -> None:
        super().__init__(machine, slot, 2)
        self._buffer = machine.allocate(PAGE)

    def _request(self, data: bytes) -> None:
        self.machine.write(self._buffer, data + b'\xff')
        status = self._buffer + len(data)
        self.queues[0].request([(self._buffer, len(data), False),
                                (status, 4, True)])
        if self.machine.number(status, 'b'):
            raise DriverError(f'request {data.hex()} failed')

    def attach(self, slot: int, size: int) -> None:
        """A device sees nothing but boot memory, where that is."""
        self._request(struct.pack('<B3xIII4x', self.ATTACH, self.DOMAIN,
                                  slot << 3, 0))
        self._request(struct.pack('<B3xIQQQI', self.MAP, self.DOMAIN, 0,
                                  size - 1, 0, self.READ | self.WRITE))


class Translated(VirtioMem):
    """A virtio-mem device behind an IOMMU."""
    FEATURES = VirtioMem.FEATURES | 1 << 33


class TestTranslated(Moving.Base):
    """The ring of the device itself can be behind an IOMMU."""
    SLOT = 7
    # What is not attached, or not yet, sees nothing.
    IOMMU = ('-device', f'virtio-iommu-pci,addr={SLOT},boot-bypass=off')

    def driver(self) -> VirtioMem:
        IOMMU(self.source, self.SLOT).attach(DEVICE_SLOT, self.source.RAM)
        return Translated(self.source, DEVICE_SLOT)

    def test_ring(self) -> None:
        """The IOMMU knows where it is when the device is loaded."""
        for multiple, early in product(MEMSLOTS, ('on', 'off')):
            with self.subTest(multiple=multiple, early=early):
                both = {'x-early-migration': early, 'iommu_platform': 'on'}
                self.launch_source(multiple, *self.IOMMU, **both)
                target = self.launch_target('target', multiple, *self.IOMMU,
                                            **both)
                self.start(target)
                self.finish(target)
                self.verify(target)
                target.adopt(self.source)
                self.memory.machine = target
                self.assertEqual(self.memory.plug(BLOCK, BLOCK), Answer.ACK)


class Balloon(VirtioDevice):
    """A virtio-balloon device that tells which pages are free."""
    HINTS = 1 << 3
    QUEUE = 3
    # From here on, numbers are those of a migration.
    MIN_COMMAND = 1 << 31

    def __init__(self, machine: Machine, slot: int) -> None:
        super().__init__(machine, slot, self.QUEUE + 1, self.HINTS)
        self._buffer = machine.allocate(PAGE)

    def command(self) -> int:
        """The number that QEMU asks by."""
        return self.config(8, 'l')

    def answer(self, command: int) -> None:
        """Begin to tell."""
        self.machine.set_number(self._buffer, 'l', command)
        self.queues[self.QUEUE].request([(self._buffer, 4, False)])

    def tell(self, address: int, size: int) -> None:
        """The guest has no use for what this memory holds."""
        self.queues[self.QUEUE].request([(address, size, True)])


class TestHints(Moving.Base):
    """The guest tells which memory is free; some stays where it is."""
    SLOT = 6
    BALLOON = ('-object', 'iothread,id=io', '-device', 'virtio-balloon-pci,'
               f'free-page-hint=on,iothread=io,addr={SLOT}')

    def test_shared(self) -> None:
        """What is not sent anyway may be free."""
        for multiple in MEMSLOTS:
            with self.subTest(multiple=multiple):
                self.launch_source(multiple, *self.BALLOON)
                balloon = Balloon(self.source, self.SLOT)
                target = self.launch_target('source', multiple, *self.BALLOON)
                self.start(target, 'x-ignore-shared')
                wait_soon('QEMU asks', lambda: balloon.command()
                          >= balloon.MIN_COMMAND or None)
                balloon.answer(balloon.command())
                for address in (self.memory.start + PAGE,
                                self.source.allocate(PAGE),
                                self.memory.start + SIZE - BLOCK + PAGE):
                    balloon.tell(address, PAGE)
                self.finish(target)
                self.verify(target)


class TestEjected(Moving.Base):
    """
    A guest that was asked to give a memory device back does so when a
    migration has begun.
    """
    DIMM, DIMM_MEMORY, DIMM_SIZE = 'dimm0', 'dimm0-backend', 128 * MIB
    DIMMS = ('-object', f'memory-backend-ram,id={DIMM_MEMORY},'
             f'size={DIMM_SIZE},reserve=off',
             '-device',
             f'pc-dimm,id={DIMM},memdev={DIMM_MEMORY},addr={12 * GIB}')
    # Of the memory hotplug controller of machine pc: selector, control
    ACPI_SELECT, ACPI_CONTROL, ACPI_EJECT = 0xa00, 0xa14, 8

    def eject_dimm(self, side: Side) -> None:
        """What the guest's ACPI code does about device_del."""
        side.qtest(f'outl {self.ACPI_SELECT} 0')
        side.qtest(f'outb {self.ACPI_CONTROL} {self.ACPI_EJECT}')

    def start_unplug(self, name: str) -> Side:
        """Ask the guest for a device, then migrate; returns where to."""
        self.source.cmd('device_del', id=name)
        target = self.launch_target('target', 'off', *self.DIMMS)
        self.source.cmd('migrate-set-parameters', max_bandwidth=SLOW,
                         avail_switchover_bandwidth=SLOW)
        target.cmd('migrate-incoming', uri=target.uri)
        self.source.cmd('migrate', uri=target.uri)
        self.source.wait_status('active')
        return target

    def assert_gone(self, side: Side, name: str, memory: str) -> None:
        """Nothing is left of a device."""
        self.assertNotIn(name, [
            device['data'].get('id')
            for device in side.cmd('query-memory-devices')])
        side.cmd('object-del', id=memory)

    def assert_cancelled(self, target: Side, name: str, memory: str) -> None:
        """It is gone, and it was said why the migration is, too."""
        self.source.wait_status('cancelled')
        self.assertRegex(self.source.migration()['error-desc'],
                         f"RAM block '.*{memory}' removed during migration")
        wait_soon('the target ends', lambda: not target.is_running() or None)
        self.assert_gone(self.source, name, memory)

    def test_dimm(self) -> None:
        """A DIMM; the VM migrates without it then."""
        for multiple in MEMSLOTS:
            with self.subTest(multiple=multiple):
                self.launch_source(multiple, *self.DIMMS)
                target = self.start_unplug(self.DIMM)
                self.eject_dimm(self.source)
                self.assert_cancelled(target, self.DIMM, self.DIMM_MEMORY)
                self.verify(self.source)
                target = self.launch_target('again', multiple)
                self.start(target)
                self.finish(target)
                self.verify(target)

    def test_device(self) -> None:
        """A virtio-mem device, of which nothing is plugged any more."""
        for multiple in MEMSLOTS:
            with self.subTest(multiple=multiple):
                self.launch_source(multiple, *self.DIMMS)
                self.assertEqual(self.memory.unplug_all(), Answer.ACK)
                self.source.request(DEVICE, 0)
                target = self.start_unplug(DEVICE)
                self.source.eject(DEVICE_SLOT)
                self.assert_cancelled(target, DEVICE, MEMORY)

    @staticmethod
    def remove(side: Side, device: str) -> Optional[bool]:
        """Ask for a device, once postcopy allows that: just after the end."""
        try:
            side.cmd('device_del', id=device)
        except ExecuteError as error:
            if 'not allowed while migrating' in str(error):
                return None
            raise
        return True

    def test_postcopy(self) -> None:
        """Nothing can go before it has come."""
        for multiple in MEMSLOTS:
            with self.subTest(multiple=multiple):
                self.launch_source(multiple, *self.DIMMS)
                self.source.cmd('device_del', id=self.DIMM)
                target = self.launch_target('target', multiple, *self.DIMMS)
                self.start(target, 'postcopy-ram')
                self.source.cmd('migrate-start-postcopy')
                target.wait_runs()
                self.assert_stays(target, self.DIMM,
                                  lambda: self.eject_dimm(target))
                self.assert_stays(target, DEVICE,
                                  lambda: target.eject(DEVICE_SLOT))
                self.finish(target)
                self.verify(target)
                wait_until('postcopy is really over',
                           lambda: self.remove(target, self.DIMM))
                self.eject_dimm(target)
                self.assert_gone(target, self.DIMM, self.DIMM_MEMORY)
                target.adopt(self.source)
                self.memory.machine = target
                self.assertEqual(self.memory.unplug_all(), Answer.ACK)
                target.request(DEVICE, 0)
                target.cmd('device_del', id=DEVICE)
                target.eject(DEVICE_SLOT)
                self.assert_gone(target, DEVICE, MEMORY)

    def test_port(self) -> None:
        """The same by a port or a slot that the guest switches off."""
        for multiple, kind in product(MEMSLOTS, (PortSide, BridgeSide)):
            with self.subTest(multiple=multiple, kind=kind.__name__):
                self.make_directory()
                self.source = kind(multiple, self.directory / 'source')
                self.addCleanup(self.source.shutdown)
                self.source.launch()
                self.source.cmd('device_del', id=DEVICE)
                target = kind(multiple, self.directory / 'target')
                self.addCleanup(target.shutdown)
                target.add_args('-incoming', 'defer')
                target.launch()
                self.start(target, 'postcopy-ram', plugged=0)
                self.source.cmd('migrate-start-postcopy')
                target.wait_runs()
                self.assert_stays(target, DEVICE, target.switch_off)
                self.finish(target)
                # The guest need not be asked again.
                wait_until('postcopy is really over',
                           lambda: self.remove(target, DEVICE))
                self.assert_gone(target, DEVICE, MEMORY)

    def assert_stays(self, side: Side, name: str,
                     eject: Callable[[], None]) -> None:
        """The guest cannot eject it now, nor can it be asked to."""
        with self.assertRaisesRegex(ExecuteError, 'while migrating'):
            side.cmd('device_del', id=name)
        side.get_qmp_events()
        eject()
        side.cmd('query-status')
        self.assertIn(('DEVICE_UNPLUG_GUEST_ERROR', name), [
            (event['event'], event['data'].get('device'))
            for event in side.get_qmp_events() if 'data' in event])
        side.memory_device(name)


if __name__ == '__main__':
    unittest.main()
