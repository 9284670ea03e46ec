"""
Virtual machines with virtio-mem devices.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import (Any, Callable, Dict, List, NoReturn, Optional, Sequence,
                    Tuple, TypeVar)

from qemu.machine import QEMUMachine

import mtree
from guest import MIB, Guest

GIB = 1 << 30
# Only hit when something hangs: machines are slow and shared.
QMP_TIMEOUT = 120.0
RESIZE_TIMEOUT = 180.0
# A guest that is alive prints something more often than that while it boots.
BOOT_STALL = 60.0

T = TypeVar('T')

# Its warnings are about machines that we end on purpose or report on.
logging.getLogger('qemu.machine.machine').setLevel(logging.ERROR)


class Timeout(Exception):
    """What was waited for did not come about."""


class Disagreement(Exception):
    """Two views of the same thing differ."""


class MigrationFailure(Exception):
    """QEMU gave up on a migration."""


def wait_until(what: str, probe: Callable[[], Optional[T]],
               timeout: float = RESIZE_TIMEOUT, pause: float = 0.1) -> T:
    """Wait until a probe gives something that is not None."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value is not None:
            return value
        if time.monotonic() > deadline:
            raise Timeout(f'{what}: not after {timeout:.0f} s')
        time.sleep(pause)


def exit_on_signals() -> None:
    """
    Have signals that end the program unwind it, so that no QEMU is left
    running and no files stay behind.
    """
    def unwind(number: int, _frame: Optional[FrameType]) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, unwind)


@dataclass(frozen=True)
class Memslot:
    """A memslot of a device, as the plan has it."""
    index: int
    offset: int
    size: int


def virtio_mem_arguments(name: str, size: int,
                         **properties: str) -> List[str]:
    """
    Arguments for a virtio-mem device and its backend, "NAME-backend".

    Underscores in names of properties stand for dashes.
    """
    device = {'id': name, 'memdev': f'{name}-backend'}
    device.update((key.replace('_', '-'), value)
                  for key, value in properties.items())
    # Without reserve=off, the host may refuse to overcommit.
    return ['-object',
            f'memory-backend-ram,id={name}-backend,size={size},reserve=off',
            '-device', ','.join(['virtio-mem-pci']
                                + [f'{k}={v}' for k, v in device.items()])]


class VirtualMachine(QEMUMachine):
    """A QEMU process, its monitor, and where asked for a guest."""

    def __init__(self, binary: str, accel: str, ram: int,
                 maxmem: int = 0, machine: str = 'q35',
                 cpu: Optional[str] = None) -> None:
        # The directory is short-lived, its path short enough for sockets.
        self._directory = tempfile.TemporaryDirectory(prefix='virtio-mem-')
        super().__init__(binary, base_temp_dir=self._directory.name)
        self.guest: Optional[Guest] = None
        self.directory = Path(self._directory.name)
        self.set_machine(machine)
        memory = f'{ram // MIB}M'
        if maxmem:
            memory += f',slots=2,maxmem={maxmem // MIB}M'
        self.add_args('-nodefaults', '-accel', accel, '-m', memory)
        if cpu is not None:
            self.add_args('-cpu', cpu)

    def add_guest(self, image: Path, cpus: int = 2) -> Guest:
        """Boot the guest of scripts/guest-image."""
        console = self.directory / 'console'
        guest = Guest(console)
        assert guest.qemu_socket is not None
        serial = guest.qemu_socket.fileno()
        os.set_inheritable(serial, True)
        self.add_args(
            '-smp', str(cpus), '-no-reboot',
            '-kernel', str(image / 'kernel'),
            '-initrd', str(image / 'initramfs'),
            # Memory that is online as movable can be unplugged again.
            '-append', 'console=ttyS0 earlyprintk=ttyS0 panic=-1 '
                       'memhp_default_state=online_movable',
            '-serial', f'file:{console}',
            '-chardev', f'socket,id=commands,fd={serial}',
            '-serial', 'chardev:commands')
        self.guest = guest
        return guest

    def _post_launch(self) -> None:
        # With this end open, we would not see QEMU close the other one.
        if self.guest is not None:
            self.guest.close_qemu_socket()
        # It waits for the monitor for good.
        watchdog = threading.Timer(QMP_TIMEOUT, self._subp.kill)
        watchdog.start()
        try:
            super()._post_launch()
        finally:
            watchdog.cancel()

    def add_virtio_mem(self, name: str, size: int, requested: int = 0,
                       **properties: str) -> None:
        """
        Add a virtio-mem device and its backend, "NAME-backend".

        Underscores in names of properties stand for dashes.
        """
        self.add_args(*virtio_mem_arguments(
            name, size, requested_size=str(requested), **properties))

    def shutdown(self, hard: bool = True,
                 timeout: Optional[int] = 30) -> None:
        """Kill QEMU: nothing in the guest wants to be saved."""
        super().shutdown(hard=hard, timeout=timeout)
        if self.guest is not None:
            self.guest.close()
        self._directory.cleanup()

    def hmp(self, line: str) -> str:
        """Run a command of the human monitor."""
        output = self.cmd('human-monitor-command', command_line=line)
        assert isinstance(output, str)
        return output

    def memory_device(self, name: str) -> Dict[str, Any]:
        """What query-memory-devices has about a device."""
        for device in self.cmd('query-memory-devices'):
            if device['data'].get('id') == name:
                return dict(device['data'])
        raise KeyError(name)

    def plugged(self, name: str) -> int:
        """Bytes plugged of a device."""
        return int(self.memory_device(name)['size'])

    def request(self, name: str, size: int) -> None:
        """Ask the guest to plug or unplug memory until it has @size."""
        self.cmd('qom-set', path=f'/machine/peripheral/{name}',
                 property='requested-size', value=size)

    def wait_plugged(self, name: str, size: int) -> None:
        """Wait until the guest has plugged as much as requested."""
        wait_until(f'{name} has plugged {size} bytes',
                   lambda: self.plugged(name) == size or None)

    def plan(self, name: str) -> List[Memslot]:
        """The memslots that a device is divided into."""
        path = f'/machine/peripheral/{name}/virtio-backend'
        children = self.cmd('qom-list', path=path)
        # Without the series, they are the device's.
        if any(child['name'] == 'memslot-set' for child in children):
            path += '/memslot-set'
            children = self.cmd('qom-list', path=path)
        found = {}
        for child in children:
            match = re.fullmatch(r'memslot-(\d+)\[\d+\]', child['name'])
            if match:
                found[int(match[1])] = child['name']
        slots = []
        offset = 0
        for index in sorted(found):
            size = int(self.cmd('qom-get',
                                path=f'{path}/{found[index]}',
                                property='size'))
            slots.append(Memslot(index, offset, size))
            offset += size
        return slots

    def mapped_memslots(self, name: str) -> List[int]:
        """
        Indices of the memslots of a device that are mapped.

        Both views of guest-physical memory have to tell the same.
        """
        tree = mtree.aliases(self.hmp('info mtree'), f'{name}-backend')
        flat = mtree.rendered(self.hmp('info mtree -f'), f'{name}-backend')
        ranges = [(slot.address, slot.size, slot.offset) for slot in tree]
        if ranges != [(slot.address, slot.size, slot.offset)
                      for slot in flat]:
            raise Disagreement(f'{name}: "info mtree" has {tree}, '
                               f'"info mtree -f" has {flat}')
        return [int(slot.name[len('memslot-'):]) for slot in tree]

    def migrate_to(self, other: 'VirtualMachine') -> None:
        """Migrate to a machine that was started with add_incoming()."""
        self.cmd('migrate-set-parameters', max_bandwidth=1 << 40)
        self.cmd('migrate', uri=f'unix:{other.directory}/migration')

        def finished() -> Optional[str]:
            info = self.cmd('query-migrate')
            if info['status'] == 'failed':
                raise MigrationFailure(str(info))
            return info['status'] if info['status'] == 'completed' else None
        wait_until('migration is done', finished)
        wait_until('the destination runs', lambda: other.cmd(
            'query-status')['status'] == 'running' or None)

    def wait_migration(self, status: str) -> None:
        """Wait until the status of its migration is this one."""
        wait_until(f'the migration is {status}', lambda: self.cmd(
            'query-migrate')['status'] == status or None)

    def add_incoming(self) -> None:
        """Be the destination of a migration."""
        self.add_args('-incoming', f'unix:{self.directory}/migration')


def touched(slots: Sequence[Memslot],
            ranges: Sequence[Tuple[int, int]]) -> List[int]:
    """Indices of the memslots that ranges of offsets (first, last) touch."""
    return [slot.index for slot in slots
            if any(first < slot.offset + slot.size and slot.offset <= last
                   for first, last in ranges)]


def plugged_memslots(vm: VirtualMachine, name: str,
                     slots: Sequence[Memslot]) -> List[int]:
    """
    Indices of the memslots of which the guest has taken memory, as its own
    /proc/iomem says.
    """
    assert vm.guest is not None
    device = vm.memory_device(name)
    start, size = device['memaddr'], device['max-size']
    return touched(slots, [(first - start, last - start)
                           for first, last in vm.guest.virtio_mem_ranges()
                           if start <= first < start + size])


def usable_memslots(slots: Sequence[Memslot], usable: int) -> List[int]:
    """Indices of the memslots that the usable region touches."""
    return touched(slots, [(0, usable - 1)] if usable else [])


def usable_region(requested: int, device: Dict[str, Any]) -> int:
    """
    The size of the usable region of a device that has only seen requests
    for more memory.
    """
    if not requested:
        return 0
    block = int(device['block-size'])
    # QEMU grants the guest some leeway for where it plugs blocks.
    wanted = -(-(requested + 256 * MIB) // block) * block
    return min(wanted, int(device['max-size']))


@dataclass(frozen=True)
class Accelerator:
    """An accelerator and the arguments that it takes."""
    name: str
    cpu: Optional[str]


TCG = Accelerator('tcg', None)


def first_error(log: Optional[str]) -> str:
    """The line of QEMU's output that most likely tells what went wrong."""
    lines = [line for line in (log or '').splitlines() if line.strip()]
    errors = [line for line in lines if 'error:' in line]
    return (errors + lines + ['it does not say why'])[0]
