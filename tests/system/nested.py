"""
A VM whose Linux guest has a KVM with SMM and a vhost-net of its own, and
QEMUs that run in there.

TCG emulates AMD's SVM, so this needs nothing of the machine that it runs on.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import asyncio
import os
import re
import shlex
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from qemu.machine.machine import VMLaunchFailure
from qemu.qmp import ExecuteError, QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from guest import MIB, Guest
from vm import (BOOT_STALL, GIB, QMP_TIMEOUT, VirtualMachine,
                virtio_mem_arguments, wait_until)

# Enough for a small VM in there, for what KVM needs for large memslots, and
# for a QEMU with sanitizers.
HOST_RAM = 4 * GIB
RAM = 256 * MIB
FIRMWARE = ('bios-256k.bin', 'kvmvapic.bin', 'linuxboot_dma.bin')
TRACE = ('kvm_set_user_memory', 'vhost_region_add_section',
         'vhost_region_add_section_merge', 'vhost_commit')

# What /dev/kvm takes here does not matter in there: TCG's CPU and Debian's KVM
# are the same everywhere, and this works with them.
CPU = 'host'

# Where things are in the host.
QEMU = '/nested/qemu-system-x86_64'
LIBRARIES = '/nested/lib'
SHARE = '/nested/share'
IMAGE = '/nested/image'
LOG = '/nested/log'
# In the log.
SANITIZER_REPORT = '(ERROR: [A-Za-z]*Sanitizer|runtime error): '
# Its virtio-serial ports, and what they are for in the QEMU in there.
PORTS = ('monitor', 'commands', 'console')


class NestedError(Exception):
    """What is to run in the host cannot be had."""


def _port(name: str) -> str:
    return f'/dev/vport0p{PORTS.index(name) + 1}'


def _output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True,
                          check=True).stdout


def _gather(binary: str, wrapper: str, image: Path, root: Path) -> None:
    """
    Put a QEMU and all that it needs below a directory. If there is a wrapper,
    that knows where its firmware is.
    """
    for name in (LIBRARIES, SHARE, IMAGE):
        (root / name[1:]).mkdir(parents=True)
    # Most of it is debug information; sanitizers tell names of functions.
    subprocess.run(['strip', '-g', '-o', str(root / QEMU[1:]), binary],
                   check=True)
    for line in _output('ldd', binary).splitlines():
        match = re.fullmatch(r'\s*(?:(\S+) => )?(/\S+) \(0x[0-9a-f]+\)', line)
        if match:
            # The one that is not looked for is the loader itself.
            copy = (root / LIBRARIES[1:] / match[1] if match[1]
                    else root / match[2][1:])
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(match[2], copy)
    directories = _output(wrapper, '-L', 'help').splitlines()
    for name in FIRMWARE:
        found = [Path(directory) / name for directory in directories
                 if (Path(directory) / name).exists()]
        if not found:
            raise NestedError(f'{name} is not in {directories}')
        shutil.copy(found[0], root / SHARE[1:])
    shutil.copy(image / 'kernel', root / IMAGE[1:])
    _concatenate([image / 'initramfs', image / 'initramfs-nested'],
                 root / IMAGE[1:] / 'initramfs')


def _environment() -> str:
    """
    Variables for a QEMU in there, for a shell. Nobody would see a leak: QEMU
    is killed.
    """
    variables = {'LD_LIBRARY_PATH': LIBRARIES,
                 'ASAN_OPTIONS': 'detect_leaks=0'}
    if 'UBSAN_OPTIONS' in os.environ:
        variables['UBSAN_OPTIONS'] = os.environ['UBSAN_OPTIONS']
    return ' '.join(f'{name}={shlex.quote(value)}'
                    for name, value in variables.items())


def _concatenate(sources: Sequence[Path], target: Path) -> None:
    with target.open('wb') as output:
        for source in sources:
            with source.open('rb') as data:
                shutil.copyfileobj(data, output)


class NestedHost(VirtualMachine):
    """A VM with a Linux guest that runs VMs of a QEMU to be tested."""

    def __init__(self, emulator: str, binary: str, image: Path) -> None:
        super().__init__(emulator, 'tcg', HOST_RAM, cpu='max')
        self._binary_to_test = self._wrapper_to_test = binary
        self._base_image = image
        # Of a Linux guest in there; one at a time.
        self.inner = Guest(self.directory / 'inner-console')

    def _make_image(self) -> Path:
        """An image for a guest that has the QEMU to be tested."""
        image, root = self.directory / 'image', self.directory / 'root'
        archive = self.directory / 'archive'
        image.mkdir()
        root.mkdir()
        _gather(self._binary_to_test, self._wrapper_to_test,
                self._base_image, root)
        names = '\n'.join(str(path.relative_to(root))
                          for path in sorted(root.rglob('*')))
        with archive.open('wb') as output:
            subprocess.run(['cpio', '--quiet', '-o', '-H', 'newc',
                            '-R', '0:0'],
                           input=names.encode(), stdout=output, cwd=root,
                           check=True)
        _concatenate([self._base_image / 'initramfs',
                      self._base_image / 'initramfs-nested', archive],
                     image / 'initramfs')
        (image / 'kernel').symlink_to(self._base_image / 'kernel')
        shutil.rmtree(root)
        archive.unlink()
        return image

    def boot(self) -> None:
        """Start the VM and load the modules that need no special CPU."""
        # Each VM that starts or ends has Linux change its own code. With more
        # than one CPU, TCG may be translating that at the same time, and not
        # notice: the CPU meets a breakpoint that is long gone, for ever.
        guest = self.add_guest(self._make_image(), cpus=1)
        commands = self.inner.qemu_socket
        assert commands is not None
        commands.set_inheritable(True)
        self.add_args('-device', 'virtio-serial-pci')
        for name, chardev in zip(PORTS, (
                f'socket,path={self.directory}/monitor,server=on,wait=off',
                f'socket,fd={commands.fileno()}',
                f'file,path={self.directory}/inner-console')):
            self.add_args('-chardev', f'{chardev},id=inner-{name}',
                          '-device', f'virtserialport,chardev=inner-{name},'
                                     f'name={name}')
        self.launch()
        self.inner.close_qemu_socket()
        guest.wait_ready(BOOT_STALL)
        for module in ('virtio_console', 'vhost_net'):
            guest.run(f'modprobe {module}')
        # The driver learns of its ports one by one.
        guest.run(f'until [ -e {_port(PORTS[-1])} ]; do sleep 0.1; done')

    def shutdown(self, hard: bool = True,
                 timeout: Optional[int] = 30) -> None:
        """End all of it."""
        super().shutdown(hard=hard, timeout=timeout)
        self.inner.close()

    def run(self, command: str) -> str:
        """Run a command in the guest."""
        assert self.guest is not None
        return self.guest.run(command)

    def load_kvm(self) -> None:
        """GuestError if the CPU cannot run VMs."""
        self.run('modprobe kvm_amd')

    def kernel_memory(self) -> int:
        """What the kernel has allocated of virtual memory."""
        assert self.guest is not None
        return self.guest.meminfo('VmallocUsed')

    def kvm_limits(self) -> Tuple[int, int]:
        """Memslots for each address space and address spaces, says KVM."""
        memslots, spaces = self.run('kvm-memslots').split()
        return int(memslots), int(spaces)

    def limit_vhost(self, regions: int) -> None:
        """Have vhost take so many memory regions; nothing may be using it."""
        parameter = '/sys/module/vhost/parameters/max_mem_regions'
        if int(self.run(f'cat {parameter}')) != regions:
            self.run('rmmod vhost_net && rmmod vhost && '
                     f'modprobe vhost max_mem_regions={regions} && '
                     'modprobe vhost_net')
        if int(self.run(f'cat {parameter}')) != regions:
            raise NestedError(f'vhost does not take {regions} regions')


@dataclass(frozen=True)
class KvmCall:
    """One KVM_SET_USER_MEMORY_REGION."""
    space: int
    slot: int
    address: int
    size: int
    result: int


class NestedMachine:
    """A QEMU in there."""

    def __init__(self, host: NestedHost, machine: str = 'q35,smm=on',
                 maxmem: int = 0) -> None:
        self.host = host
        memory = f'{RAM // MIB}M'
        if maxmem:
            memory += f',slots=2,maxmem={maxmem // MIB}M'
        self._args = ['-machine', machine, '-m', memory]
        # The shell that waits for QEMU.
        self._shell: Optional[int] = None
        self._monitor: Optional[QEMUMonitorProtocol] = None
        self._linux = False

    def add_args(self, *args: str) -> None:
        """More arguments for QEMU."""
        self._args += args

    def add_linux(self, parameters: str = '') -> None:
        """Boot the guest of scripts/guest-image, with more modules."""
        self._linux = True
        self.add_args(
            '-no-reboot',
            '-kernel', f'{IMAGE}/kernel', '-initrd', f'{IMAGE}/initramfs',
            '-append', 'console=ttyS0 earlyprintk=ttyS0 panic=-1 '
                       f'memhp_default_state=online_movable {parameters}')
        for name in ('console', 'commands'):
            self.add_args(
                '-chardev', f'pipe,id={name},path={_port(name)}',
                '-serial', f'chardev:{name}')

    def add_virtio_mem(self, name: str, size: int,
                       **properties: str) -> None:
        """As VirtualMachine has it."""
        self.add_args(*virtio_mem_arguments(name, size, **properties))

    def launch(self) -> None:
        """Start QEMU: VMLaunchFailure with what it prints if it exits."""
        command = [QEMU, '-L', SHARE, '-nodefaults', '-display', 'none',
                   '-accel', 'kvm', '-cpu', CPU,
                   '-chardev', f'pipe,id=monitor,path={_port("monitor")}',
                   '-mon', 'chardev=monitor,mode=control']
        for event in TRACE:
            command += ['-trace', event]
        command += self._args
        # What QEMU has to say first would be lost without a listener.
        listener = socket.socket(socket.AF_UNIX)
        listener.connect(str(self.host.directory / 'monitor'))
        self._monitor = QEMUMonitorProtocol(listener)
        # No -daemonize: QEMU has two threads when it forks, and a sanitizer's
        # lock that the other one held is never released in the child. The
        # port stays open when QEMU dies, so that whoever waits for an answer
        # has to be told, by what is no QMP. The shell stays: if a child ends
        # while its parent reads a command, that loses what it has read so far.
        self._shell = int(self.host.run(
            f'{{ {_environment()} {shlex.join(command)}; '
            f'echo "QEMU exits: $?" >{_port("monitor")}; sleep 1d; }} '
            f'>{LOG} 2>&1 & echo $!'))
        try:
            self._monitor.connect()
        except QMPError:
            self._end()
            raise VMLaunchFailure(1, shlex.join(command),
                                  self.messages()) from None
        self._monitor.settimeout(QMP_TIMEOUT)
        if self._linux:
            self.host.inner.wait_ready(BOOT_STALL)

    def _end(self) -> None:
        """Wait until nothing is left of QEMU."""
        if self._monitor is not None:
            try:
                self._monitor.close()
            except QMPError:
                # It repeats what went wrong before.
                pass
            self._monitor = None
        if self._shell is not None:
            # The shell first, or it would report the end of QEMU to the next
            # one's monitor. The first thread may be dead before the others.
            self.host.run(
                f'{{ children=$(cat /proc/{self._shell}/task/*/children); '
                f'kill -9 {self._shell}; wait {self._shell}; '
                'for child in $children; do kill -9 $child; '
                'while grep -q "^State:.[^ZX]" /proc/$child/task/*/status; '
                'do sleep 0.1; done; done; } 2>/dev/null')
            self._shell = None

    def shutdown(self) -> None:
        """End QEMU: NestedError if a sanitizer found something in it."""
        started = self._shell is not None
        self._end()
        if (started and self.host.run(
                f'grep -E "{SANITIZER_REPORT}" {LOG} || true')):
            raise NestedError(f'QEMU printed:\n{self.messages()}')

    def __enter__(self) -> 'NestedMachine':
        return self

    def __exit__(self, *_args: object) -> None:
        self.shutdown()

    def cmd(self, name: str, **arguments: Any) -> Any:
        """Run a QMP command; underscores in arguments stand for dashes."""
        assert self._monitor is not None
        try:
            return self._monitor.cmd(
                name, **{key.replace('_', '-'): value
                         for key, value in arguments.items()})
        except ExecuteError:
            raise
        except (asyncio.TimeoutError, QMPError):
            raise NestedError(f'QEMU does not answer {name}; it printed:\n'
                              f'{self.messages()}') from None

    def memory_device(self, name: str) -> Dict[str, Any]:
        """What query-memory-devices has about a device."""
        for device in self.cmd('query-memory-devices'):
            if device['data'].get('id') == name:
                return dict(device['data'])
        raise KeyError(name)

    def request(self, name: str, size: int) -> None:
        """Set how much memory a device shall have plugged."""
        self.cmd('qom-set', path=f'/machine/peripheral/{name}',
                 property='requested-size', value=size)

    def wait_plugged(self, name: str, size: int) -> None:
        """Wait until the guest has plugged as much as requested."""
        wait_until(f'{name} has plugged {size} bytes',
                   lambda: self.memory_device(name)['size'] == size or None)

    def memslots(self, name: str) -> int:
        """How many memslots a device is divided into."""
        return sum(re.fullmatch(r'memslot-\d+.*', child['name']) is not None
                   for child in self.cmd(
                       'qom-list',
                       path=f'/machine/peripheral/{name}/virtio-backend'
                       '/memslot-set'))

    def log(self) -> str:
        """What QEMU printed since it runs, and its trace events."""
        return self.host.run(f'cat {LOG}')

    def messages(self) -> str:
        """What QEMU printed, or a sanitizer, but for trace events."""
        return '\n'.join(line for line in self.log().splitlines()
                         if not re.match(r'(kvm|vhost)_\w+ ', line))

    def kvm_calls(self) -> List[KvmCall]:
        """All calls that set a memslot."""
        return [KvmCall(space=int(match[1]), slot=int(match[2]),
                        address=int(match[3], 16), size=int(match[4], 16),
                        result=int(match[5]))
                for match in re.finditer(
                    r'^kvm_set_user_memory AddrSpace#(\d+) Slot#(\d+) '
                    r'flags=\S+ gpa=(\S+) size=(\S+) .*ret=(-?\d+)$',
                    self.log(), re.M)]

    def vhost_started(self) -> bool:
        """Whether the vhost device ran when memory changed last."""
        commits = re.findall(r'^vhost_commit Started: (\d)', self.log(), re.M)
        return bool(commits) and commits[-1] == '1'

    def vhost_table(self) -> List[Tuple[int, int]]:
        """
        Address and size of each region of the only vhost device, as of the
        last change of memory.
        """
        regions: List[Tuple[int, int]] = []
        table: List[Tuple[int, int]] = []
        for event, arguments in re.findall(
                r'^(vhost_commit|vhost_region_\w+) (.*)$', self.log(), re.M):
            if event == 'vhost_commit':
                # Memory devices that are seen as a whole come last.
                table, regions = sorted(regions), []
                continue
            numbers = [int(number, 16)
                       for number in re.findall(r'0x([0-9a-f]+)', arguments)]
            if event == 'vhost_region_add_section_merge':
                # The last one has become part of the one before it.
                regions[-2:] = [(numbers[1], numbers[0])]
            else:
                regions.append((numbers[0], numbers[1]))
        return table


def held(calls: Sequence[KvmCall]) -> Dict[int, Dict[int, Tuple[int, int]]]:
    """
    What KVM holds after some calls: address and size of the memslots of each
    address space.
    """
    spaces: Dict[int, Dict[int, Tuple[int, int]]] = {}
    for call in calls:
        if call.result:
            raise NestedError(f'KVM refused {call}')
        slots = spaces.setdefault(call.space, {})
        if call.size:
            slots[call.slot] = (call.address, call.size)
        else:
            del slots[call.slot]
    return spaces
