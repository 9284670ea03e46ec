"""
A real machine that offers the same steps as the model, and shows what it is
like after each of them. There is no guest; drivers.py has the drivers.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import (Any, Callable, Dict, Iterator, List, Optional, Tuple, Type,
                    TypeVar)

from qemu.qmp import ExecuteError

import environment
import nbd_disk
from drivers import Answer, VirtioNet
from stress_devices import Disk, Drivers, HeldDisk, NetworkDevice, OldDisk
from stress_host import (DIRTY_LIMIT, DIRTY_RATE, LISTENER, NEEDS_RESET, SLOTS,
                         Host)
from stress_memory import OK, PAGE, REFUSED
from stress_model import ALONE, INSIDE, OFF, Model, Setup, Step
from stress_rings import DISK, OLD_DISK, Place
from stress_values import agree, pattern, read_stamp, see_migrating
from vhost_backends import TracedMachine
from vm import MIB, Disagreement, Timeout, first_error, wait_until

# Registers of the controller for memory hotplug of machine pc
ACPI_MEMORY, ACPI_MEMORY_FLAGS, ACPI_MEMORY_EJECT = 0xa00, 0x14, 8
# What is dirty at each step while there is a migration, which so does not end:
# QEMU sends 128 KiB every 100 ms, however slow it has to be. Nobody uses it.
BALLAST = range(48 * MIB, 64 * MIB)
# Bytes per second
SLOW, MEDIUM, FAST = 1024, 32 * MIB, 1 << 40
# What a machine may stand still, in milliseconds
SHORT, LONG = 1, 300
# Of KVM: how many pages are in it
DIRTY_RING = ',dirty-ring-size=4096'
STATES = ('plugged', 'unplugged', 'mixed')
DISKS: Dict[int, Type[Disk]] = {OLD_DISK: OldDisk, DISK: HeldDisk}

T = TypeVar('T')


def _add_backend(name: str, size: int, shared: bool) -> List[str]:
    kind = 'memfd,share=on' if shared else 'ram'
    return ['-object', f'memory-backend-{kind},id={name}-backend,'
                       f'size={size},reserve=off']


class RealMachine:
    """A machine that moves from one QEMU to another."""
    # pylint: disable=too-many-public-methods,too-many-instance-attributes

    def __init__(self, accel: str, setup: Setup) -> None:
        self._accel = accel + (DIRTY_RING if setup.ring else '')
        self._setup = setup
        # Ends all processes that it starts
        self._test = unittest.TestCase()
        # pylint: disable=consider-using-with
        directory = tempfile.TemporaryDirectory(prefix='virtio-mem-')
        self._test.addCleanup(directory.cleanup)
        self._directory = Path(directory.name)
        self._snapshots = self._directory / 'snapshots'
        self._disk = nbd_disk.Disk(self._test, self._directory)
        self._saved: Dict[int, Drivers] = {}
        self._added: List[Dict[str, Any]] = []
        self._dimms: List[Tuple[int, bool]] = []
        self._target: Optional[Host] = None
        self._postcopy = False
        # Whether a backend has had requests in flight so far that could write
        # to memory after that is discarded
        self._strays = self._unplugged = False
        try:
            self._host = self._boot()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> Host:
        subprocess.run(
            [str(environment.build_dir() / 'qemu-img'), 'create', '-q', '-f',
             'qcow2', str(self._snapshots), '1M'],
            check=True, stdin=subprocess.DEVNULL)
        host = self._make_host()
        host.machine.launch()
        return host

    def _make_host(self) -> Host:
        machine = TracedMachine(environment.qemu_system(), self._accel)
        self._test.addCleanup(machine.shutdown)
        machine.add_args('-drive', 'if=none,id=snapshots,format=qcow2,'
                                   f'file={self._snapshots}')
        if self._setup.listener:
            machine.add_args('-device', f'ram-discard-testdev,id={LISTENER}')
        return Host(machine, self._setup)

    def close(self) -> None:
        """End it."""
        self._test.doCleanups()

    def post_mortem(self, error: Exception) -> Optional[str]:
        """What QEMU printed, if it is gone."""
        machine = self._host.machine
        if isinstance(error, Disagreement):
            return None
        try:
            # Its sockets may be gone before it is.
            wait_until('QEMU is gone',
                       lambda: not machine.is_running() or None, timeout=10)
        except Timeout:
            return None
        code = machine.exitcode()
        machine.shutdown()
        return f'exit code {code}, output: {machine.get_log()}'

    def check(self, model: Model, step: Optional[Step]) -> None:
        """See that all is as the model has it."""
        self._host.check(model, step)
        if model.migrating:
            self._add_ballast()
            agree('migration', self._migration(self._host)['status'],
                  'active')

    def take(self, step: Step) -> str:
        """Take a step, and tell its outcome."""
        return str(getattr(self, step.kind)(*step.arguments))

    @property
    def _machine(self) -> TracedMachine:
        return self._host.machine

    # What the driver does

    def plug(self, index: int, offset: int, blocks: int) -> str:
        """Request to plug blocks."""
        driver = self._host.driver(index)
        return self._settled(driver.plug(offset, blocks * driver.block))

    def plug_taken(self, index: int, offset: int, blocks: int,
                   taken: int) -> str:
        """Likewise, while a backend takes so many regions and no more."""
        with self._taking(taken):
            return self.plug(index, offset, blocks)

    def unplug(self, index: int, offset: int, blocks: int) -> str:
        """Request to unplug blocks."""
        driver = self._host.driver(index)
        return self._settled(self._perhaps_drained(
            lambda: driver.unplug(offset, blocks * driver.block)))

    def unplug_all(self, index: int) -> str:
        """Request to unplug all."""
        driver = self._host.driver(index)
        return self._settled(self._perhaps_drained(driver.unplug_all))

    @contextlib.contextmanager
    def _taking(self, count: int) -> Iterator[None]:
        backend = self._network.backend
        backend.take(count)
        try:
            yield
        finally:
            backend.take(None)

    def _settled(self, answer: Answer) -> str:
        """
        An answer. What is written to unplugged memory before that is
        discarded goes with it, so both must not happen at the same time.
        """
        self._unplugged = True
        if self._strays:
            self._host.fence()
        return answer.name

    def state(self, index: int, offset: int, blocks: int) -> str:
        """Request to tell the state of blocks."""
        driver = self._host.driver(index)
        answer, state = driver.request_state(offset, blocks * driver.block)
        if answer is not Answer.ACK:
            return answer.name
        return f'{answer.name} {STATES[state]}'

    def restart(self, index: int) -> str:
        """Have a new driver."""
        self._host.drivers.memory.pop(index, None)
        self._host.driver(index)
        return OK

    def malformed(self, index: int) -> str:
        """A request that is none."""
        driver = self._host.driver(index)
        driver.post_malformed()
        wait_until('the device needs a reset',
                   lambda: driver.status() & NEEDS_RESET or None, timeout=30,
                   pause=0.005)
        del self._host.drivers.memory[index]
        return 'broken'

    # What is done with memory

    def _address(self, name: str, page: int) -> int:
        device = self._host.query()[name]
        return int(device.get('memaddr', device.get('addr'))) + page

    def write(self, index: int, page: int, stamp: int) -> str:
        """Write to a page of a device."""
        self._machine.write(self._address(f'vmem{index}', page),
                            pattern(stamp))
        return OK

    def dimm_write(self, index: int, page: int, stamp: int) -> str:
        """Write to a page of a DIMM."""
        self._machine.write(self._address(f'dimm{index}', page),
                            pattern(stamp))
        return OK

    # The disk

    @property
    def _front(self) -> Disk:
        assert self._host.disk is not None
        return self._host.disk

    def disk_in(self, index: int, page: int, stamp: int) -> str:
        """Have the disk's backend write to a page."""
        self._front.with_driver(self._host.drivers).deliver(
            self._address(f'vmem{index}', page), pattern(stamp))
        return OK

    def disk_out(self, index: int, page: int, _stamp: int) -> str:
        """Have the disk's backend read from a page."""
        return read_stamp(self._front.with_driver(self._host.drivers).collect(
            self._address(f'vmem{index}', page), PAGE))

    def disk_begin(self, index: int, page: int, stamp: int) -> str:
        """Have it be about to write to a page."""
        disk = self._front.with_driver(self._host.drivers)
        assert isinstance(disk, HeldDisk)
        if not disk.held:
            self._unplugged = False
        disk.begin(self._address(f'vmem{index}', page), pattern(stamp))
        return OK

    def disk_end(self) -> str:
        """Have it write."""
        assert isinstance(self._host.disk, HeldDisk)
        self._let_discard()
        self._host.disk.end()
        return OK

    def _drained(self, call: Callable[[], T], forgets: bool = False) -> T:
        """
        Do what QEMU cannot do while there are requests in flight, after which
        the rings may not be there any more.
        """
        disk = self._host.disk
        if disk is None or not disk.held:
            return call()
        self._let_discard()
        disk.network = self._host.network and self._host.network.backend
        return disk.drain(call, forgets)

    def _perhaps_drained(self, call: Callable[[], T]) -> T:
        """
        Likewise, if the memory of rings goes with what is done; else requests
        remain in flight.
        """
        disk = self._host.disk
        if disk is None or not disk.held:
            return call()
        disk.network = self._host.network and self._host.network.backend
        return disk.perhaps_drain(call)

    def _let_discard(self) -> None:
        """What is discarded because it was unplugged is gone."""
        if self._unplugged:
            self._host.fence()
            self._strays = True

    def _rings(self, place: int, offset: int) -> Optional[int]:
        """Where the rings of a driver are to be; None: anywhere."""
        if place == Place.BAR:
            return self._host.bars[0].alone + offset
        if place < Place.RAM:
            return self._address(f'vmem{place}', offset)
        return None

    def disk_start(self, place: int, offset: int) -> str:
        """Have a new driver, with rings in memory of which it has all."""
        address = self._rings(place, offset)
        self._drained(lambda: self._front.start_at(address))
        self._host.drivers.disk = self._front.driver
        return OK

    def disk_attach(self, kind: int) -> str:
        """Plug a disk."""
        disk = DISKS[kind](self._test, self._machine, self._disk)
        try:
            disk.plug()
        except ExecuteError as error:
            see_migrating(error)
            self._machine.cmd('chardev-remove', id=disk.chardev)
            disk.backend.kill()
            return REFUSED
        self._host.disk = disk
        return OK

    def disk_detach(self) -> str:
        """Unplug the disk."""
        try:
            if self._target is None:
                self._drained(self._front.unplug)
            else:
                # Nothing has to be waited for.
                self._front.unplug()
        except ExecuteError as error:
            see_migrating(error)
            return REFUSED
        self._front.backend.kill()
        self._host.disk = None
        self._host.drivers.disk = None
        return OK

    # The network device

    @property
    def _network(self) -> NetworkDevice:
        assert self._host.network is not None
        return self._host.network

    def network_attach(self, limit: int, pairs: int) -> str:
        """Plug one."""
        network = NetworkDevice(self._test, self._machine, limit, pairs)
        try:
            network.plug()
        except ExecuteError as error:
            see_migrating(error)
            network.remove()
            return REFUSED
        self._host.network = network
        return OK

    def network_detach(self) -> str:
        """Unplug it."""
        try:
            self._network.unplug()
        except ExecuteError as error:
            see_migrating(error)
            return REFUSED
        self._host.network = None
        self._host.drivers.network = None
        return OK

    def network_start(self, place: int, offset: int) -> str:
        """Have a new driver, with rings in memory of which it has all."""
        self._host.drivers.network = self._network.start(
            self._rings(place, offset))
        started = self._network.backend.started()
        if not all(started) and any(started):
            return f'{started.count(True)} queues'
        return 'backend' if all(started) else 'no backend'

    @property
    def _network_driver(self) -> VirtioNet:
        assert self._host.drivers.network is not None
        return self._host.drivers.network

    def network_in(self, index: int, page: int, stamp: int) -> str:
        """Have the backend write to a page."""
        self._network.deliver(self._network_driver,
                              self._address(f'vmem{index}', page), stamp)
        return OK

    def network_out(self, index: int, page: int, stamp: int) -> str:
        """Have the backend read from a page."""
        return self._network.collect(self._network_driver,
                                     self._address(f'vmem{index}', page),
                                     stamp)

    # BARs

    def bar_write(self, number: int, page: int, stamp: int) -> str:
        """Write to a page of a BAR."""
        self._machine.write(self._host.bars[number].alone + page,
                            pattern(stamp))
        return OK

    def bar_move(self, number: int, place: int, offset: int) -> str:
        """Have a BAR somewhere, in a device so far from its start."""
        bar = self._host.bars[number]
        address: Optional[int] = None
        if place == ALONE:
            address = bar.alone
        elif place != OFF:
            address = self._address(f'vmem{place - INSIDE}', offset)
        self._perhaps_drained(lambda: bar.move(address))
        return OK

    # How fast memory gets dirty

    def measure(self, milliseconds: int) -> str:
        """Begin to measure, and go on in the meantime."""
        self._machine.cmd(
            'calc-dirty-rate', calc_time=milliseconds,
            calc_time_unit='millisecond',
            mode='dirty-ring' if self._setup.ring else 'dirty-bitmap')
        wait_until('the dirty rate is measured', lambda: (
            self._host.measurement() == 'measured'
            or self._host.is_measuring() and self._host.is_logged(DIRTY_RATE)
            or None), pause=0.005)
        return OK

    def slow(self, megabytes: int) -> str:
        """
        Slow down vCPUs that write to more memory than that in a second; 0:
        none any more.
        """
        if megabytes:
            self._machine.cmd('set-vcpu-dirty-limit', dirty_rate=megabytes)
            wait_until('dirty pages are logged', lambda: (
                self._host.is_logged(DIRTY_LIMIT) or None), pause=0.005)
        else:
            self._machine.cmd('cancel-vcpu-dirty-limit')
        return OK

    def measure_end(self) -> str:
        """Wait for the end."""
        wait_until('the dirty rate is known',
                   lambda: not self._host.is_measuring() or None, pause=0.01)
        return self._host.measurement()

    # What the host does

    def request(self, index: int, size: int) -> str:
        """Ask for another size of a device."""
        try:
            self._machine.request(f'vmem{index}', size)
        except ExecuteError:
            self._settled(Answer.BUSY)
            return REFUSED
        return OK

    def request_taken(self, index: int, size: int, taken: int) -> str:
        """Likewise, while a backend takes so many regions and no more."""
        with self._taking(taken):
            return self.request(index, size)

    def limit_listener(self, size: int) -> str:
        """Have the listener refuse more than that; 0: nothing."""
        self._machine.cmd(
            'qom-set', path=f'/machine/peripheral/{LISTENER}',
            property='max-populated', value=size or (1 << 64) - 1)
        return OK

    def stop(self) -> str:
        """Stop the machine."""
        self._drained(lambda: self._machine.cmd('stop'))
        return OK

    def cont(self) -> str:
        """Have it run."""
        self._machine.cmd('cont')
        return OK

    def reset(self) -> str:
        """Reset the machine."""
        def reset() -> None:
            # QEMU may answer before it waits.
            self._machine.cmd('system_reset')
            self._machine.event_wait('RESET')
        # Only boot memory is where it was after that.
        disk = self._host.drivers.disk
        self._drained(reset, forgets=disk is not None and disk.has_places)
        self._host.drivers = Drivers(self._machine)
        return self._settled_ok()

    def _settled_ok(self) -> str:
        self._settled(Answer.ACK)
        return OK

    def device_add(self, size: int, block: int, inaccessible: int,
                   shared: int, multiple: int) -> str:
        """Add a virtio-mem device."""
        index = len(self._added)
        name = f'vmem{index}'
        properties = {
            'block-size': block,
            'unplugged-inaccessible': 'on' if inaccessible else 'off'}
        if not self._add(name, size, bool(shared), {
                **properties, 'driver': 'virtio-mem-pci',
                'addr': str(SLOTS[index]),
                'multiple-memslots': bool(multiple)}):
            return REFUSED
        self._added.append({'size': size, 'shared': bool(shared),
                            'properties': properties})
        return OK

    def device_remove(self) -> str:
        """Unplug the virtio-mem device that was added last."""
        index = len(self._added) - 1
        name = f'vmem{index}'
        try:
            self._machine.cmd('device_del', id=name)
        except ExecuteError as error:
            if 'cannot get unplugged while' not in str(error):
                see_migrating(error)
            return REFUSED
        self._machine.eject(SLOTS[index])
        self._machine.event_wait('DEVICE_DELETED', timeout=30.0,
                                 match={'data': {'device': name}})
        self._machine.cmd('object-del', id=f'{name}-backend')
        self._added.pop()
        self._host.drivers.memory.pop(index, None)
        return OK

    def dimm_add(self, size: int, shared: int) -> str:
        """Add a DIMM."""
        if not self._add(f'dimm{len(self._dimms)}', size, bool(shared),
                         {'driver': 'pc-dimm'}):
            return REFUSED
        self._dimms.append((size, bool(shared)))
        return OK

    def dimm_remove(self, wait: int) -> str:
        """Unplug the DIMM that was added last, and wait until it is freed."""
        name = f'dimm{len(self._dimms) - 1}'
        slot = self._host.query()[name]['slot']
        try:
            self._machine.cmd('device_del', id=name)
        except ExecuteError as error:
            see_migrating(error)
            return REFUSED
        # What the guest's ACPI code does
        self._machine.qtest(f'outl {ACPI_MEMORY} {slot}')
        self._machine.qtest(f'outb {ACPI_MEMORY + ACPI_MEMORY_FLAGS} '
                            f'{ACPI_MEMORY_EJECT}')
        self._machine.event_wait('DEVICE_DELETED', timeout=30.0,
                                 match={'data': {'device': name}})
        self._machine.cmd('object-del', id=f'{name}-backend')
        self._dimms.pop()
        if wait:
            self._host.fence()
        return OK

    def _add(self, name: str, size: int, shared: bool,
             properties: Dict[str, Any]) -> bool:
        backend = {'qom-type': 'memory-backend-memfd', 'share': True
                   } if shared else {'qom-type': 'memory-backend-ram'}
        # Names of properties have dashes.
        self._command('object-add', {'id': f'{name}-backend', 'size': size,
                                     'reserve': False, **backend})
        try:
            self._command('device_add', {
                'id': name, 'memdev': f'{name}-backend', **properties})
        except ExecuteError as error:
            see_migrating(error)
            self._command('object-del', {'id': f'{name}-backend'})
            return False
        return True

    def _command(self, name: str, arguments: Dict[str, Any]) -> None:
        self._machine.cmd(name, conv_keys=False, **arguments)

    # Migration

    def _incoming(self, multiple: int,
                  wrong: Optional[Dict[str, Any]] = None) -> Host:
        """Start a destination; one device of it may be a wrong one."""
        host = self._make_host()
        if self._host.disk is not None:
            host.disk = type(self._host.disk)(self._test, host.machine,
                                              self._disk)
            host.disk.add()
        if self._host.network is not None:
            host.network = self._host.network.twin(self._test, host.machine)
            host.network.add()
        shown = self._host.query()
        for index, (size, shared) in enumerate(self._dimms):
            name = f'dimm{index}'
            host.machine.add_args(
                *_add_backend(name, size, shared),
                '-device', f'pc-dimm,id={name},memdev={name}-backend,'
                           f'addr={shown[name]["addr"]},'
                           f'slot={shown[name]["slot"]}')
        for index, device in enumerate(self._added):
            name = f'vmem{index}'
            if wrong is not None and index == wrong['index']:
                device = {**device, **wrong}
            properties = {
                **device['properties'], 'id': name,
                'memdev': f'{name}-backend', 'addr': SLOTS[index],
                'memaddr': shown[name]['memaddr'],
                'multiple-memslots': 'on' if multiple >> index & 1 else 'off'}
            host.machine.add_args(
                *_add_backend(name, device['size'], device['shared']),
                '-device', ','.join(['virtio-mem-pci'] + [
                    f'{key}={value}' for key, value in properties.items()]))
        host.machine.add_incoming()
        host.machine.launch()
        return host

    def _add_ballast(self) -> None:
        self._machine.qtest(f'memset {BALLAST.start} {len(BALLAST)} 1')

    def _start_migration(self, target: Host, bandwidth: int, downtime: int,
                         return_path: int, postcopy: int = 0) -> None:
        for host in (self._host, target):
            host.machine.cmd('migrate-set-capabilities', capabilities=[
                {'capability': 'return-path', 'state': bool(return_path)},
                {'capability': 'postcopy-ram', 'state': bool(postcopy)}])
        self._machine.cmd('migrate-set-parameters', max_bandwidth=bandwidth,
                          downtime_limit=downtime)
        self._machine.cmd(
            'migrate', uri=f'unix:{target.machine.directory}/migration')

    @staticmethod
    def _migration(host: Host) -> Dict[str, Any]:
        return dict(host.cmd('query-migrate'))

    def _wait_migration(self, *wanted: str) -> str:
        final = {'active', 'completed', 'failed', 'cancelled'} - set(wanted)

        def status() -> Optional[str]:
            info = self._migration(self._host)
            if info['status'] in final and 'active' in wanted:
                raise Disagreement(f'migration: {info}')
            if info['status'] in final - {'active'}:
                raise Disagreement(f'migration: {info}')
            return info['status'] if info['status'] in wanted else None
        return wait_until(f'the migration is {wanted}', status, timeout=120,
                          pause=0.01)

    def migrate(self, multiple: int, return_path: int,
                postcopy: int) -> str:
        """Start to migrate, and not come to an end."""
        self._target = self._incoming(multiple)
        self._postcopy = bool(postcopy)
        self._add_ballast()
        # With a return path, what is dirty later has been sent before.
        bandwidth = MEDIUM if return_path else SLOW
        self._start_migration(self._target, bandwidth, SHORT, return_path,
                              postcopy)
        self._wait_migration('active')
        if return_path:
            self._send_all()
        return OK

    def _send_all(self) -> None:
        def sent() -> bool:
            self._add_ballast()
            ram = self._migration(self._host).get('ram', {})
            return bool(ram.get('dirty-sync-count', 0) > 1)
        wait_until('all has been sent once', lambda: sent() or None,
                   pause=0.02)
        self._machine.cmd('migrate-set-parameters', max_bandwidth=SLOW)
        self._add_ballast()

    def _take_target(self) -> Host:
        assert self._target is not None
        target, self._target = self._target, None
        return target

    def migrate_finish(self) -> str:
        """Go on at the destination."""
        target, old = self._take_target(), self._host
        try:
            self._drained(lambda: self._arrive(target))
        except Exception as error:
            # It depends on who is faster what the source knows.
            target.machine.shutdown()
            log = first_error(target.machine.get_log())
            raise Disagreement(f'the migration fails: {log}') from error
        target.machine.adopt(old.machine)
        target.drivers = old.drivers.copied(target.machine)
        self._host = target
        self._end(old)
        return OK

    def _arrive(self, target: Host) -> None:
        if self._postcopy:
            self._machine.cmd('migrate-start-postcopy')
        self._machine.cmd('migrate-set-parameters', max_bandwidth=FAST,
                          downtime_limit=LONG)
        self._wait_migration('completed')
        wait_until('the destination has all', lambda: (
            target.cmd('query-status')['status'] != 'inmigrate'
            and self._migration(target)['status'] == 'completed') or None)

    @staticmethod
    def _end(host: Host) -> None:
        host.machine.shutdown()
        for device in (host.disk, host.network):
            if device is not None:
                device.backend.kill()

    def migrate_cancel(self) -> str:
        """Stay."""
        self._machine.cmd('migrate_cancel')
        self._wait_migration('cancelled')
        self._end(self._take_target())
        return OK

    def migrate_kill(self) -> str:
        """The destination dies."""
        self._end(self._take_target())
        return self._wait_migration('failed')

    def migrate_wrong(self, index: int, what: int, return_path: int) -> str:
        """Migrate to where a device has another configuration."""
        device = self._added[index]
        block = device['properties']['block-size']
        wrong: Dict[str, Any] = {'index': index}
        if what:
            wrong['size'] = device['size'] - 2 * block
        else:
            wrong['properties'] = {
                **device['properties'],
                'block-size': block // 2 if block > MIB else 2 * block}
        target = self._incoming(0, wrong)
        self._start_migration(target, FAST, LONG, return_path)
        status = self._wait_migration('failed', 'completed')
        wait_until('the destination gives up',
                   lambda: not target.machine.is_running() or None,
                   pause=0.01)
        self._end(target)
        if status == 'completed':
            # The source could not know.
            self._machine.cmd('cont')
        return 'failed'

    # Snapshots and dumps

    def _monitor(self, line: str, forgets: bool = False) -> str:
        printed = self._drained(lambda: self._machine.hmp(line), forgets)
        # What a network device tells whose rings cannot be used
        return '\n'.join(line for line in printed.strip().splitlines()
                         if 'cannot be used by vhost' not in line
                         and 'start vhost net' not in line) or OK

    def savevm(self, name: int) -> str:
        """Take a snapshot."""
        outcome = self._monitor(f'savevm state{name}')
        self._saved[name] = self._host.drivers.copied(self._machine)
        return outcome

    def loadvm(self, name: int) -> str:
        """Go back to a snapshot."""
        outcome = self._monitor(f'loadvm state{name}', forgets=True)
        self._host.drivers = self._saved[name].copied(self._machine)
        self._settled(Answer.ACK)
        return outcome

    def dump(self) -> str:
        """Write all memory to a file."""
        self._drained(lambda: self._machine.cmd(
            'dump-guest-memory', paging=False,
            protocol=f'file:{self._host.dump}'))
        return OK
