"""
Domains of libvirt whose virtio-mem device has its memslots mapped on demand,
made from the examples in the manual.

libvirt 9.0 knows nothing of the property, which is set behind its back; 11.3
has an attribute for it.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import copy
import json
import os
import signal
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import environment
from guest import MIB, PAGE_SIZE
from libvirt_host import (Domain, Host, LibvirtError, example, only, override,
                          take_commands, use_kvm, use_tcg)
from vm import BOOT_STALL, GIB, Memslot, touched, wait_until

OLD, NEW = '9.0', '11.3'
OVERRIDE = 'virtio-mem-memslots-override.xml'
DYNAMIC = 'virtio-mem-memslots-dynamic.xml'
# The device in the examples, and the memslots that it is divided into
SIZE = 64 * GIB
SLOTS = [Memslot(index, index * GIB, GIB) for index in range(64)]
# What is mapped of these, and how much, when nothing is plugged
NOTHING = (len(SLOTS), 0, 0)
# What a guest writes to the device's memory, to find it again
PATTERN = 256 * MIB


def say(text: str) -> None:
    """Show what came of it."""
    for line in text.splitlines():
        print(f'# {line}'.rstrip(), flush=True)


def plugged_memslots(domain: Domain) -> List[int]:
    """Indices of the memslots that the guest itself says it uses."""
    start = domain.memory_device()['memaddr']
    return touched(SLOTS, [(first - start, last - start) for first, last
                           in domain.guest.virtio_mem_ranges()])


class LibvirtTest(unittest.TestCase):
    """Hosts and domains that are gone when a test ends."""

    def setUp(self) -> None:
        # pylint: disable=consider-using-with
        self.directory = Path(self.enterContext(
            tempfile.TemporaryDirectory(prefix='virtio-mem-')))

    def host(self, version: str) -> Host:
        """A libvirtd that runs."""
        host = Host(version, self.directory)
        self.addCleanup(host.stop)
        host.start()
        return host

    def domain(self, host: Host, xml: ET.Element) -> Domain:
        """A domain that is defined."""
        domain = Domain(host, xml)
        self.addCleanup(domain.close)
        return domain

    def define(self, host: Host, name: str) -> Domain:
        """A domain from one of the examples."""
        xml = example(name)
        take_commands(xml)
        use_tcg(xml)
        return self.domain(host, xml)

    def pause(self, host: Host, name: str) -> Domain:
        """The same, that has QEMU run but not the guest."""
        domain = self.define(host, name)
        domain.start('--paused')
        return domain

    def boot(self, host: Host, name: str) -> Domain:
        """The same, and the guest takes commands."""
        domain = self.define(host, name)
        domain.start()
        domain.guest.wait_ready(BOOT_STALL)
        return domain

    def assert_figures(self, domain: Domain, plugged: int,
                       memslots: Tuple[int, int, int]) -> None:
        """
        All who tell of the device tell the same. @memslots: at most, mapped,
        and how large these are.
        """
        most, active, mapped = memslots
        expected = {'requested-size': plugged, 'size': plugged,
                    'max-size': SIZE, 'memslots': most,
                    'active-memslots': active, 'mapped-size': mapped}
        device = domain.memory_device()
        self.assertEqual({name: device[name] for name in expected}, expected)
        self.assertEqual(domain.memory(), (plugged, plugged))
        account = domain.command('query-memslots')
        self.assertEqual((account['required'], account['used'],
                          account['reserved']),
                         (most, active, most - active))
        for line, figures in (
                ('info memory-devices', expected),
                ('info memslots', {'required': most, 'used': active,
                                   'reserved': most - active})):
            shown = [entry.strip() for entry in domain.hmp(line).splitlines()]
            for name, value in figures.items():
                self.assertIn(f'{name}: {value}', shown)

    def assert_multiple(self, domain: Domain, plugged: int) -> None:
        """Those memslots are mapped that the guest uses."""
        active = len(plugged_memslots(domain))
        self.assertEqual(active > 0, plugged > 0)
        self.assert_figures(domain, plugged,
                            (len(SLOTS), active, active * GIB))

    def assert_single(self, domain: Domain, plugged: int) -> None:
        """All of the device is mapped in a single memslot."""
        self.assert_figures(domain, plugged, (1, 1, SIZE))

    def resize(self, domain: Domain, gib: int) -> None:
        """Have the guest plug or unplug memory."""
        size = gib * GIB
        domain.request(f'{gib}GiB')
        wait_until(f'libvirt knows that {gib} GiB are plugged',
                   lambda: domain.memory() == (size, size) or None)
        # The guest's own books follow what it tells the device.
        wait_until(f'{gib} GiB are plugged in as many memslots as they take',
                   lambda: domain.memory_device()['active-memslots']
                   == len(plugged_memslots(domain)) or None, timeout=10)
        self.assert_multiple(domain, size)
        device = domain.memory_device()
        say(f'libvirt {domain.host.version}: {gib} GiB requested and '
            f'plugged, {device["active-memslots"]} of {device["memslots"]} '
            f'memslots mapped')

    def fill(self, domain: Domain) -> None:
        """Write to the device's memory."""
        free, _ = domain.guest.movable_pages()
        domain.guest.fill(1, PATTERN)
        left, _ = domain.guest.movable_pages()
        self.assertGreater(free - left, PATTERN // 2 // PAGE_SIZE)

    def check(self, domain: Domain) -> None:
        """It is still there."""
        domain.guest.check(1, PATTERN)

    def popen_top(self, *arguments: str, **environment_variables: str
                  ) -> 'subprocess.Popen[str]':
        """Start scripts/memslots-top."""
        program = environment.build_dir() / 'qemu/scripts/memslots-top'
        return subprocess.Popen(
            ['/usr/bin/python3', str(program), *arguments], text=True,
            env={**os.environ, **environment_variables},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run_top(self, *arguments: str, **environment_variables: str
                ) -> 'subprocess.CompletedProcess[str]':
        """Run scripts/memslots-top to its end."""
        with self.popen_top('--once', *arguments,
                            **environment_variables) as process:
            output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode,
                                           output, errors)

    def assert_top(self, domain: Domain) -> None:
        """scripts/memslots-top shows what QEMU tells."""
        path = str(domain.host.packages)
        result = self.run_top('--json', '--domain', domain.name,
                              '--connect', domain.host.uri, PATH=path)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads(result.stdout), {
            'devices': [domain.memory_device()],
            'memslots': domain.command('query-memslots'),
            # libvirt hands no events on.
            'refusals': []})
        result = self.run_top('--domain', domain.name, PATH=path,
                              LIBVIRT_DEFAULT_URI=domain.host.uri)
        self.assertEqual(result.returncode, 0, result.stderr)
        say(result.stdout)
        device = domain.memory_device()
        self.assertIn(f'{domain.alias}: 64 GiB at ', result.stdout)
        self.assertIn(f' in {device["active-memslots"]} of 64 memslots\n',
                      result.stdout)


class LifeTests:
    """What is tested with each version of libvirt."""

    class Base(LibvirtTest):
        """One domain a test."""
        version: str
        example: str
        # What to set to use a single memslot after all
        name: str

        def save_and_restore(self, domain: Domain,
                             multiple: Optional[bool] = None) -> None:
            """Its memory is as it was, mapped as it was or else asked for."""
            domain.save()
            self.assertEqual(domain.state(), 'shut off')
            xml = None
            if multiple is not None:
                xml = domain.saved_xml()
                override(xml, self.name, 'bool', str(multiple).lower())
            domain.restore(xml)
            self.check(domain)
            if multiple is False:
                self.assert_single(domain, GIB)
            else:
                self.assert_multiple(domain, GIB)
            device = domain.memory_device()
            say(f'libvirt {domain.host.version}: restored with '
                f'{device["active-memslots"]} of {device["memslots"]} '
                'memslots mapped')

        def test_life(self) -> None:
            """From define to destroy."""
            host = self.host(self.version)
            domain = self.boot(host, self.example)
            self.assertEqual(domain.state(), 'running')
            self.assert_multiple(domain, 0)
            base = domain.guest.meminfo('MemTotal')
            self.resize(domain, 2)
            self.assertEqual(domain.guest.meminfo('MemTotal'),
                             base + 2 * GIB)
            self.assert_top(domain)
            self.resize(domain, 1)

            self.fill(domain)
            self.save_and_restore(domain)
            for multiple in (False, True):
                self.save_and_restore(domain, multiple)
            domain.guest.free()
            self.resize(domain, 3)
            self.resize(domain, 0)

            domain.virsh('destroy')
            self.assertEqual(domain.state(), 'shut off')
            self.assertEqual(domain.memory(), (0, None))
            domain.virsh('undefine')
            self.assertEqual(host.virsh('list', '--all', '--name'), '')

        def test_request_refused(self) -> None:
            """libvirt keeps requests away that QEMU would refuse."""
            host = self.host(self.version)
            domain = self.pause(host, self.example)
            for size in ('65GiB', '1MiB'):
                with self.subTest(size=size):
                    with self.assertRaises(LibvirtError) as failure:
                        domain.request(size)
                    say(str(failure.exception))
                    self.assert_figures(domain, 0, NOTHING)

        def test_kvm(self) -> None:
            """With KVM, the example is used as it is, if the CPU lets it."""
            cpu = environment.require_kvm()
            xml = example(self.example)
            use_kvm(xml, cpu)
            take_commands(xml)
            domain = self.domain(self.host(self.version), xml)
            # Nothing in here asks for a guest, and not all KVMs boot one.
            domain.start('--paused')
            self.assertEqual(domain.state(), 'paused')
            self.assert_figures(domain, 0, NOTHING)
            holder, = domain.command('query-memslots')['holders']
            self.assertEqual((holder['type'], holder['reserved']),
                             ('kvm', len(SLOTS)))
            self.assertEqual(holder['used'] + holder['free'],
                             holder['limit'])
            say(domain.hmp('info memslots'))


class TestCPU(unittest.TestCase):
    """The CPU for KVM, as a domain has it."""

    def test_features(self) -> None:
        """Some of the host's features may be missing."""
        cases: List[Tuple[str, List[str]]] = [
            ('host', []), ('host,-arch-capabilities', ['arch-capabilities'])]
        for cpu, disabled in cases:
            xml = example(DYNAMIC)
            use_kvm(xml, cpu)
            self.assertEqual(
                [feature.attrib for feature in xml.findall('cpu/feature')],
                [{'policy': 'disable', 'name': name} for name in disabled])


class TestOverride(LifeTests.Base):
    """libvirt as Debian 12 has it."""
    version = OLD
    example = OVERRIDE
    name = 'multiple-memslots'


class TestDynamic(LifeTests.Base):
    """A later libvirt."""
    version = NEW
    example = DYNAMIC
    name = 'dynamic-memslots'


class TestMigration(LibvirtTest):
    """Domains that move between versions of libvirt."""

    def test_override(self) -> None:
        """On to on, to off, and to on again."""
        old, new = self.host(OLD), self.host(NEW)
        domain = self.boot(old, OVERRIDE)
        self.resize(domain, 1)
        self.fill(domain)

        domain.migrate(new)
        self.check(domain)
        self.assert_multiple(domain, GIB)
        self.resize(domain, 2)
        for host, value in ((old, 'false'), (new, 'true')):
            xml = domain.xml('--migratable')
            override(xml, 'multiple-memslots', 'bool', value)
            domain.migrate(host, xml)
            self.check(domain)
            if value == 'true':
                self.assert_multiple(domain, 2 * GIB)
            else:
                self.assert_single(domain, 2 * GIB)
        self.resize(domain, 1)

    def test_dynamic(self) -> None:
        """It stays, an older libvirt drops it, and may be told again."""
        old, new, other = self.host(OLD), self.host(NEW), self.host(NEW)
        domain = self.boot(new, DYNAMIC)
        self.resize(domain, 1)
        self.fill(domain)

        domain.migrate(other)
        self.check(domain)
        self.assert_multiple(domain, GIB)
        domain.migrate(old)
        self.check(domain)
        self.assert_single(domain, GIB)
        xml = domain.xml('--migratable')
        override(xml, 'dynamic-memslots', 'bool', 'true')
        domain.migrate(new, xml)
        self.check(domain)
        self.assert_multiple(domain, GIB)

    def test_attribute_kept(self) -> None:
        """libvirt itself does not let the attribute change."""
        source, destination = self.host(NEW), self.host(NEW)
        domain = self.pause(source, DYNAMIC)
        xml = domain.xml('--migratable')
        target = only(xml.findall('devices/memory/target'))
        target.set('dynamicMemslots', 'no')
        with self.assertRaisesRegex(LibvirtError, 'dynamicMemslots'):
            domain.migrate(destination, xml)
        self.assertEqual(domain.state(), 'paused')


class TestErrors(LibvirtTest):
    """What QEMU has to say reaches the user."""

    def assert_refused(self, version: str, xml: ET.Element, multiple: str,
                       dynamic: str) -> None:
        """The domain does not start, and it is said why."""
        host = self.host(version)
        domain = self.domain(host, xml)
        with self.assertRaises(LibvirtError) as failure:
            domain.start()
        say(str(failure.exception))
        self.assertIn(
            "'multiple-memslots' and 'dynamic-memslots' are the same "
            f"property, but were set to '{multiple}' and '{dynamic}'",
            str(failure.exception))
        self.assertIn('Set one of them, or both to the same value.',
                      str(failure.exception))
        self.assertEqual(domain.state(), 'shut off')

    def test_attribute_and_override(self) -> None:
        """The attribute says yes, and the override no."""
        xml = example(DYNAMIC)
        take_commands(xml)
        use_tcg(xml)
        override(xml, 'multiple-memslots', 'bool', 'false')
        self.assert_refused(NEW, xml, 'off', 'on')

    def test_two_overrides(self) -> None:
        """One override says yes, and another one no."""
        xml = example(OVERRIDE)
        take_commands(xml)
        use_tcg(xml)
        override(xml, 'dynamic-memslots', 'bool', 'false')
        self.assert_refused(OLD, xml, 'on', 'off')


class TestTop(LibvirtTest):
    """scripts/memslots-top, when something is wrong."""

    def test_failures(self) -> None:
        """It says what is wrong, without a traceback."""
        host = self.host(OLD)
        domain = self.define(host, OVERRIDE)
        path = str(host.packages)
        for arguments, path, message in (
                (('--domain', 'nobody', '--connect', host.uri), path,
                 "failed to get domain 'nobody'"),
                (('--domain', domain.name, '--connect', host.uri), path,
                 'domain is not running'),
                (('--domain', domain.name, '--connect',
                  f'{host.uri}-nowhere'), path, 'failed to connect'),
                (('--domain', domain.name), '/nonexistent',
                 'virsh is needed')):
            with self.subTest(message=message):
                result = self.run_top(*arguments, PATH=path)
                self.assertEqual(result.returncode, 1)
                self.assertRegex(result.stderr, '^memslots-top: ')
                self.assertIn(message, result.stderr)
                self.assertNotIn('Traceback', result.stderr)

    def test_end(self) -> None:
        """It ends when the domain does."""
        host = self.host(OLD)
        domain = self.pause(host, OVERRIDE)
        with self.popen_top('--domain', domain.name, '--interval', '0.1',
                            '--json', '--connect', host.uri,
                            PATH=str(host.packages)) as process:
            assert process.stdout is not None
            for _ in range(3):
                device, = json.loads(process.stdout.readline())['devices']
                self.assertEqual(device['id'], domain.alias)
            domain.virsh('destroy')
            _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertIn('memslots-top: ', errors)
        self.assertNotIn('Traceback', errors)


class TestHotplug(LibvirtTest):
    """A device that comes while the domain runs."""

    def test_dynamic(self) -> None:
        """The attribute does for such a one, too."""
        xml = example(DYNAMIC)
        take_commands(xml)
        use_tcg(xml)
        room = only(xml.findall('maxMemory'))
        room.text = str(int(room.text or '') + 8)
        domain = self.domain(self.host(NEW), xml)
        device = copy.deepcopy(only(xml.findall('devices/memory')))
        only(device.findall('target/size')).text = '8'
        only(device.findall('alias')).set('name', 'ua-vmem1')
        domain.start()
        domain.guest.wait_ready(BOOT_STALL)
        domain.attach(device)
        domain.virsh('update-memory-device', '--alias', 'ua-vmem1',
                     '--requested-size', '2GiB')

        def figures() -> Dict[str, Tuple[int, ...]]:
            names = ('size', 'memslots', 'active-memslots', 'mapped-size')
            return {data['id']: tuple(data[name] for name in names)
                    for data in (device['data'] for device in
                                 domain.command('query-memory-devices'))}
        wait_until('2 GiB of the second device are plugged', lambda: figures()
                   == {'ua-vmem0': (0, len(SLOTS), 0, 0),
                       'ua-vmem1': (2 * GIB, 8, 2, 2 * GIB)} or None)


class TestCleanUp(LibvirtTest):
    """Nothing stays behind, and nothing of the system's is touched."""

    def processes(self, namespace: str) -> List[str]:
        """Names of the processes in a PID namespace."""
        found = []
        for path in Path('/proc').glob('[0-9]*'):
            try:
                if os.readlink(path / 'ns/pid') == namespace:
                    found.append((path / 'comm').read_text('utf-8').strip())
            except OSError:
                # It ended, or is not for us to look at.
                pass
        return sorted(found)

    @staticmethod
    def end(pid: int) -> None:
        """End a process, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def test_stop(self) -> None:
        """All that was started and mounted goes with the host."""
        places = [Path(top) / 'libvirt' for top in
                  ('/etc', '/run', '/var/cache', '/var/lib', '/var/log')]

        def changed() -> List[Optional[int]]:
            return [place.stat().st_mtime_ns if place.exists() else None
                    for place in places]
        before = changed()
        host = self.host(OLD)
        namespace = os.readlink(f'/proc/{host.first_process()}/ns/pid')
        self.pause(host, OVERRIDE)
        names = self.processes(namespace)
        self.assertIn('libvirtd', names)
        self.assertIn('qemu-system-x86', names)
        self.assertEqual(changed(), before)
        mounts = Path('/proc/self/mounts').read_text('utf-8')
        self.assertNotIn(str(self.directory), mounts)
        host.stop()
        self.assertEqual(self.processes(namespace), [])
        self.assertEqual(list((host.state / 'root').iterdir()), [])

    def test_killed(self) -> None:
        """Not even a test that is killed leaves processes behind."""
        # Where there can be no host, the test is skipped here.
        Host(OLD, self.directory)
        program = ('import sys; from pathlib import Path; '
                   'from libvirt_host import Host; '
                   f'host = Host({OLD!r}, Path(sys.argv[1])); '
                   'host.start(); '
                   'print(host.first_process(), flush=True); '
                   'sys.stdin.read()')
        path = f'{Path(__file__).parent}:{os.environ["PYTHONPATH"]}'
        with subprocess.Popen(
                ['/usr/bin/python3', '-B', '-c', program,
                 str(self.directory)],
                env={**os.environ, 'PYTHONPATH': path}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            namespace = os.readlink(f'/proc/{pid}/ns/pid')
            self.addCleanup(self.end, pid)
            self.assertIn('libvirtd', self.processes(namespace))
            process.kill()
        wait_until('its processes are gone',
                   lambda: self.processes(namespace) == [] or None)


if __name__ == '__main__':
    unittest.main()
