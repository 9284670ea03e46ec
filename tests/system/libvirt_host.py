"""
Hosts with a libvirtd each, and the domains there.

A host is a process in namespaces of its own with a root of its own, made of
Debian's packages: the system gets no libvirtd, and several of any version run
beside each other. All of a host ends with its first process.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import functools
import json
import os
import signal
import socket
import subprocess
import unittest
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import environment
import needs
from guest import Guest
from vm import wait_until

INIT = Path(__file__).resolve().with_suffix('') / 'init'
REPOSITORY = Path(__file__).resolve().parents[2]
# Where QEMU's firmware is, see ./configure.
FIRMWARE = ('/usr/share/qemu', '/usr/share/seabios', '/usr/lib/ipxe/qemu')
NAMESPACES = ('unshare', '--fork', '--kill-child', '--mount', '--pid',
              '--net', '--uts', '--ipc')
# Only hit when something hangs.
START_TIMEOUT = 60.0
VIRSH_TIMEOUT = 180.0
# In the root of each host, so that a domain may move: what the kernel prints,
# the socket of who talks to the guest, and where it is saved to.
CONSOLE, COMMANDS, IMAGE = '/guest/console', '/guest/commands', '/guest/image'
QEMU_NAMESPACE = 'http://libvirt.org/schemas/domain/qemu/1.0'
ET.register_namespace('qemu', QEMU_NAMESPACE)


class LibvirtError(Exception):
    """What virsh or libvirtd has to say about a failure."""


@functools.lru_cache(maxsize=None)
def _why_no_root() -> Optional[str]:
    if os.geteuid():
        return 'libvirtd needs root, to mount its own root, for one'
    result = subprocess.run([*NAMESPACES, 'mount', '-t', 'tmpfs', 'tmpfs',
                             '/proc'], check=False, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode:
        return f'libvirtd needs namespaces: {result.stdout.strip()}'
    return None


def _require_namespaces() -> None:
    """Skip the test if there can be no host here."""
    reason = _why_no_root()
    if reason is not None:
        needs.lack(needs.ROOT, reason)
    if environment.has_sanitizers():
        raise unittest.SkipTest('QEMU with sanitizers may hang when it forks, '
                                'as it does when libvirt looks at what it can '
                                'do')


@functools.lru_cache(maxsize=None)
def _packages(version: str) -> Path:
    """Where a version of libvirt is; skips the test if it cannot be had."""
    directory = environment.build_dir() / f'libvirt-{version}'
    result = subprocess.run(
        [str(environment.SCRIPTS / 'libvirt'), version, str(directory)],
        stdin=subprocess.DEVNULL, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode:
        needs.lack(needs.NET, result.stdout)
    return directory


def children(pid: int) -> Iterator[int]:
    """The processes that have a process as their parent."""
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            # The name of the program may hold anything.
            fields = path.read_text('utf-8', 'replace').rpartition(')')[2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields.split()[1]) == pid:
            yield int(path.parent.name)


class Host:  # pylint: disable=too-many-instance-attributes
    """A libvirtd."""

    def __init__(self, version: str, directory: Path) -> None:
        """
        @directory is for the files of all hosts of a test; each host has it
        at the same place.
        """
        _require_namespaces()
        self.version = version
        self.packages = _packages(version)
        self.directory = directory
        identity = uuid.uuid4()
        self.state = directory / identity.hex[:8]
        self.guest_directory = self.state / 'guest'
        self.uri = ('qemu+unix:///system?socket='
                    f'{self.guest_directory}/libvirt-sock')
        self._log = self.state / 'log'
        self._process: Optional['subprocess.Popen[bytes]'] = None
        self._listener: Optional[socket.socket] = None
        for name in ('root', 'etc', 'guest'):
            (self.state / name).mkdir(parents=True)
        # The hosts of a test would have the same UUID else, and not migrate.
        (self.state / 'etc' / 'libvirtd.conf').write_text(
            f'host_uuid = "{identity}"\n'
            'unix_sock_dir = "/guest"\n'
            'auth_unix_rw = "none"\n', encoding='ascii')
        # QEMU may be where only root gets at it. There is no virtlogd, no
        # cgroups and no AppArmor in there.
        (self.state / 'etc' / 'qemu.conf').write_text(
            'user = "root"\n'
            'group = "root"\n'
            'stdio_handler = "file"\n'
            'security_driver = "none"\n'
            'cgroup_controllers = []\n'
            'namespaces = []\n', encoding='ascii')

    def start(self) -> None:
        """Start libvirtd, and wait until it answers."""
        qemu = Path(environment.qemu_system()).resolve()
        directories = [str(self.directory), str(REPOSITORY),
                       str(environment.build_dir()), str(qemu.parent),
                       *FIRMWARE]
        with self._log.open('wb') as log:
            # Not even a test that is killed leaves anything running.
            # pylint: disable-next=consider-using-with
            self._process = subprocess.Popen(
                ['setpriv', '--pdeathsig', 'KILL', *NAMESPACES, str(INIT),
                 str(self.packages / 'root'), str(self.state), *directories],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def answers() -> Optional[str]:
            assert self._process is not None
            if self._process.poll() is not None:
                raise LibvirtError(f'libvirtd {self.version} ends: '
                                   + self._log.read_text('utf-8', 'replace'))
            try:
                return self.virsh('uri')
            except LibvirtError:
                return None
        wait_until(f'libvirtd {self.version} answers', answers,
                   START_TIMEOUT)

    def first_process(self) -> int:
        """The process that all others of the host end with."""
        assert self._process is not None
        for pid in children(self._process.pid):
            return pid
        raise LibvirtError(f'libvirtd {self.version} is not running')

    def stop(self) -> None:
        """End libvirtd and all of its domains; its files stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._process is None:
            return
        # Its parent waits for it, and that takes until all others are gone.
        for pid in children(self._process.pid):
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def virsh(self, *arguments: str) -> str:
        """Run virsh, return what it prints."""
        result = subprocess.run(
            [str(self.packages / 'virsh'), '--quiet', '--connect', self.uri,
             *arguments], stdin=subprocess.DEVNULL, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=VIRSH_TIMEOUT)
        if result.returncode:
            raise LibvirtError(result.stderr.strip())
        return result.stdout.strip()

    def listen(self) -> None:
        """Be there when QEMU connects the guest's serial port."""
        if self._listener is not None:
            self._listener.close()
        path = self.guest_directory / 'commands'
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(VIRSH_TIMEOUT)

    def accept(self) -> Guest:
        """The guest whose serial port QEMU has connected."""
        assert self._listener is not None
        connection, _ = self._listener.accept()
        return Guest(self.guest_directory / 'console', connection)


class Memory(NamedTuple):
    """What libvirt tells of a virtio-mem device."""
    requested: int
    # None: the domain is not running
    current: Optional[int]


def _size(element: Optional[ET.Element]) -> Optional[int]:
    if element is None:
        return None
    units = {'b': 1, 'bytes': 1, 'KiB': 1 << 10, 'MiB': 1 << 20,
             'GiB': 1 << 30}
    return int(element.text or '') * units[element.get('unit', 'KiB')]


def only(elements: List[ET.Element]) -> ET.Element:
    """The one element that is expected."""
    element, = elements
    return element


def _alias(xml: ET.Element) -> str:
    """The name of the virtio-mem device."""
    return only(xml.findall('devices/memory/alias')).attrib['name']


class Domain:
    """A domain with one virtio-mem device, as its XML has it."""

    def __init__(self, host: Host, xml: ET.Element) -> None:
        self.host = host
        self.name = xml.findtext('name', '')
        self.alias = _alias(xml)
        self._guest: Optional[Guest] = None
        self.define(xml)

    @property
    def guest(self) -> Guest:
        """The guest; the domain has to be running."""
        assert self._guest is not None
        return self._guest

    def close(self) -> None:
        """Let go of the guest."""
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def _file(self, xml: ET.Element) -> str:
        """A file with XML, for virsh to read."""
        path = self.host.directory / 'domain.xml'
        ET.ElementTree(xml).write(path, encoding='unicode')
        return str(path)

    def virsh(self, command: str, *arguments: str) -> str:
        """Run a command of virsh on this domain."""
        return self.host.virsh(command, self.name, *arguments)

    def define(self, xml: ET.Element) -> None:
        """Have libvirt check the XML and keep it."""
        self.host.virsh('define', '--validate', self._file(xml))

    def _connect(self, host: Host) -> None:
        self.close()
        self._guest = host.accept()
        self.host = host

    def start(self, *options: str) -> None:
        """Start the domain."""
        self.host.listen()
        self.virsh('start', *options)
        self._connect(self.host)

    def save(self) -> None:
        """Save the running domain to a file, which stops it."""
        self.virsh('save', IMAGE)

    def saved_xml(self) -> ET.Element:
        """The XML in that file."""
        return ET.fromstring(self.host.virsh('save-image-dumpxml', IMAGE))

    def restore(self, xml: Optional[ET.Element] = None) -> None:
        """Go on where it was saved, with other XML if given."""
        self.host.listen()
        options = ['--xml', self._file(xml)] if xml is not None else []
        self.host.virsh('restore', IMAGE, *options)
        self._connect(self.host)

    def attach(self, device: ET.Element) -> None:
        """Hotplug a device."""
        self.virsh('attach-device', '--live', self._file(device))

    def migrate(self, host: Host, xml: Optional[ET.Element] = None) -> None:
        """Migrate to another host, with other XML there if given."""
        host.listen()
        options = ['--xml', self._file(xml)] if xml is not None else []
        self.virsh('migrate', '--live', *options, host.uri,
                   f'unix://{host.directory}/migration')
        self._connect(host)

    def state(self) -> str:
        """As virsh has it."""
        return self.virsh('domstate')

    def xml(self, *options: str) -> ET.Element:
        """The XML of the domain."""
        return ET.fromstring(self.virsh('dumpxml', *options))

    def memory(self) -> Memory:
        """What the XML has about the virtio-mem device."""
        target = only(self.xml().findall('devices/memory/target'))
        requested = _size(target.find('requested'))
        assert requested is not None
        return Memory(requested, _size(target.find('current')))

    def request(self, size: str) -> None:
        """Ask the guest for a size, in words of virsh."""
        self.virsh('update-memory-device', '--requested-size', size)

    def command(self, name: str) -> Any:
        """Run a command of QEMU's monitor."""
        return json.loads(self.virsh(
            'qemu-monitor-command', json.dumps({'execute': name})))['return']

    def hmp(self, line: str) -> str:
        """Run a command of QEMU's human monitor."""
        return self.virsh('qemu-monitor-command', '--hmp', line)

    def memory_device(self) -> Dict[str, Any]:
        """What QEMU tells of the virtio-mem device."""
        device, = self.command('query-memory-devices')
        assert device['data']['id'] == self.alias
        return dict(device['data'])


def example(name: str) -> ET.Element:
    """
    An example of the manual's, with what it leaves to its reader filled in:
    QEMU, kernel and initrd.
    """
    root = ET.parse(REPOSITORY / 'docs/system/devices' / name).getroot()
    image = environment.image()
    for path, value in (('os/kernel', image / 'kernel'),
                        ('os/initrd', image / 'initramfs'),
                        ('devices/emulator', environment.qemu_system())):
        only(root.findall(path)).text = str(value)
    return root


def use_tcg(xml: ET.Element) -> None:
    """Have a domain emulated, which has no CPU to pass through."""
    xml.set('type', 'qemu')
    del only(xml.findall('cpu')).attrib['mode']


def use_kvm(xml: ET.Element, cpu: str) -> None:
    """
    Have a domain pass the host's CPU through as an argument of QEMU's does:
    "host", and features that it is to be without.
    """
    parent = only(xml.findall('cpu'))
    model, *features = cpu.split(',')
    assert (parent.get('mode'), model) == ('host-passthrough', 'host')
    for feature in features:
        assert feature.startswith('-'), cpu
        ET.SubElement(parent, 'feature', {'policy': 'disable',
                                          'name': feature[1:]})


def take_commands(xml: ET.Element) -> None:
    """Have a domain connect its serial port to who talks to the guest."""
    devices = only(xml.findall('devices'))
    devices.remove(only(devices.findall('console')))
    for kind, source in (('file', {'path': CONSOLE}),
                         ('unix', {'mode': 'connect', 'path': COMMANDS})):
        serial = ET.SubElement(devices, 'serial', {'type': kind})
        ET.SubElement(serial, 'source', source)


def override(xml: ET.Element, name: str, kind: str, value: str) -> None:
    """Set a property of the virtio-mem device through QEMU's namespace."""
    parent = xml
    steps: Tuple[Tuple[str, Dict[str, str]], ...] = (
        ('override', {}), ('device', {'alias': _alias(xml)}),
        ('frontend', {}), ('property', {'name': name}))
    for tag, attributes in steps:
        tag = f'{{{QEMU_NAMESPACE}}}{tag}'
        for child in parent.findall(tag):
            if attributes.items() <= child.attrib.items():
                parent = child
                break
        else:
            parent = ET.SubElement(parent, tag, attributes)
    parent.attrib.update(type=kind, value=value)
