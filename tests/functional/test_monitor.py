"""
What monitors and properties tell of memslots, and what they are told.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import re
import subprocess
import unittest
from typing import Any, Dict, List

from qemu.machine.machine import VMLaunchFailure

import environment
from drivers import Answer, Machine, VirtioMem
from vhost_backends import MAXMEM, Block, has_kvm
from vm import GIB, MIB, VirtualMachine, virtio_mem_arguments

SLOT = 5
FIGURES = ('memslots', 'active-memslots', 'mapped-size')


def paragraphs(text: str) -> List[Dict[str, str]]:
    """What HMP shows: a title in brackets, then a line for each figure."""
    found: List[Dict[str, str]] = []
    for line in text.splitlines():
        if line.startswith('  '):
            name, value = line.strip().split(': ')
            found[-1][name] = value
        else:
            match = re.fullmatch(r'.* \[(.*)\](?:: "(.*)")?', line)
            assert match is not None, line
            found.append({'title': match[1], 'id': match[2]})
    return found


def shown(values: Dict[str, Any]) -> Dict[str, str]:
    """The same figures as HMP shows them."""
    return {name: str(value).lower() if isinstance(value, bool)
            else str(value) for name, value in values.items()}


class TestFigures(unittest.TestCase):
    """All interfaces tell the same, and what they tell is right."""

    def machine(self, **properties: str) -> Machine:
        """A machine with a device of 4 GiB, not started."""
        machine = Machine(environment.qemu_system(),
                          'kvm' if has_kvm() else 'tcg', MAXMEM)
        self.addCleanup(machine.shutdown)
        machine.add_args(*virtio_mem_arguments(
            'vmem0', 4 * GIB, addr=str(SLOT), requested_size=str(4 * GIB),
            **properties))
        return machine

    def assert_figures(self, machine: Machine, most: int, active: int,
                       size: int) -> None:
        """The device has mapped that much."""
        expected = dict(zip(FIGURES, (most, active, size)))
        device = machine.memory_device('vmem0')
        self.assertEqual({name: device[name] for name in FIGURES}, expected)
        for name in FIGURES:
            self.assertEqual(
                machine.command('qom-get', path='/machine/peripheral/vmem0',
                                property=name), expected[name])
        human = paragraphs(machine.hmp('info memory-devices'))
        self.assertEqual([paragraph['id'] for paragraph in human], ['vmem0'])
        self.assertEqual({name: human[0][name] for name in FIGURES},
                         shown(expected))

        info = machine.command('query-memslots')
        self.assertEqual((info['required'], info['used'], info['reserved']),
                         (most, active, most - active))
        human = paragraphs(machine.hmp('info memslots'))
        holders = info.pop('holders')
        self.assertEqual(human[0], {'title': 'memory devices', 'id': None,
                                    **shown(info)})
        self.assertEqual(human[1:], [
            {'title': holder.pop('type'), 'id': holder.pop('id', None),
             **shown(holder)} for holder in holders])

    def test_multiple(self) -> None:
        """Memslots come and go, beside a vhost backend."""
        machine = self.machine(multiple_memslots='on',
                               unplugged_inaccessible='on')
        Block(self, machine).add()
        machine.launch()
        memory = VirtioMem(machine, SLOT)
        self.assert_figures(machine, 4, 0, 0)
        self.assertEqual(memory.plug(GIB - 2 * MIB, 4 * MIB), Answer.ACK)
        self.assert_figures(machine, 4, 2, 2 * GIB)
        self.assertEqual(memory.unplug(GIB, 2 * MIB), Answer.ACK)
        self.assert_figures(machine, 4, 1, GIB)
        self.assertEqual(memory.unplug_all(), Answer.ACK)
        self.assert_figures(machine, 4, 0, 0)

    def test_single(self) -> None:
        """One memslot that is always mapped."""
        machine = self.machine()
        machine.launch()
        self.assert_figures(machine, 1, 1, 4 * GIB)

    def test_read_only(self) -> None:
        """None of the figures can be set."""
        machine = self.machine(multiple_memslots='on')
        machine.launch()
        for name in FIGURES:
            answer = machine.qmp('qom-set', path='/machine/peripheral/vmem0',
                                 property=name, value=1)
            self.assertIn('error', answer)


class TestTop(unittest.TestCase):
    """scripts/memslots-top."""

    def run_top(self, *arguments: str) -> 'subprocess.CompletedProcess[str]':
        """Run it to its end."""
        program = environment.build_dir() / 'qemu/scripts/memslots-top'
        return subprocess.run(['/usr/bin/python3', str(program), *arguments],
                              check=False, text=True, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_show(self) -> None:
        """It shows what QMP tells, as text and as JSON."""
        machine = Machine(environment.qemu_system(), 'tcg', MAXMEM)
        self.addCleanup(machine.shutdown)
        socket = str(machine.directory / 'qmp')
        machine.add_args('-qmp', f'unix:{socket},server=on,wait=off')
        machine.add_args(*virtio_mem_arguments(
            'vmem0', 4 * GIB, addr=str(SLOT), requested_size=str(4 * GIB),
            multiple_memslots='on', unplugged_inaccessible='on'))
        Block(self, machine).add()
        machine.launch()
        memory = VirtioMem(machine, SLOT)
        self.assertEqual(memory.plug(GIB, 2 * MIB), Answer.ACK)

        result = self.run_top('--once', '--json', socket)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads(result.stdout), {
            'devices': [machine.memory_device('vmem0')],
            'memslots': machine.command('query-memslots')})

        result = self.run_top('--once', socket)
        self.assertEqual(result.returncode, 0, result.stderr)
        print('\n'.join(f'# {line}' for line in result.stdout.splitlines()),
              flush=True)
        self.assertIn(f'plugged [#{"." * 39}] 2 MiB of 4 GiB requested',
                      result.stdout)
        self.assertIn(f'mapped  [{"#" * 10}{"." * 30}] 1 GiB in 1 of 4 '
                      'memslots', result.stdout)
        self.assertRegex(result.stdout, 'vhost0 +32 .* coalesced, shared-only')

    def test_failures(self) -> None:
        """It says what is wrong, without a traceback."""
        for arguments, message in (
                (('--once', '/nonexistent'), '/nonexistent: '),
                (('--once', 'localhost:x'), 'localhost:x: not a port number'),
                (('--interval', '0', 'x'), "--interval: '0' is not more "
                                           'than 0')):
            with self.subTest(arguments=arguments):
                result = self.run_top(*arguments)
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(f'memslots-top: {message}'
                              if message.startswith(('/', 'local'))
                              else message, result.stderr)
                self.assertNotIn('Traceback', result.stderr)

    def test_end(self) -> None:
        """It ends when the VM does."""
        machine = Machine(environment.qemu_system(), 'tcg', MAXMEM)
        self.addCleanup(machine.shutdown)
        socket = str(machine.directory / 'qmp')
        machine.add_args('-qmp', f'unix:{socket},server=on,wait=off')
        machine.launch()
        program = environment.build_dir() / 'qemu/scripts/memslots-top'
        with subprocess.Popen(
                ['/usr/bin/python3', str(program), '--interval', '0.1',
                 socket], text=True, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(),
                             'no virtio-mem devices\n')
            machine.shutdown()
            _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertIn('the VM has gone', errors)
        self.assertNotIn('Traceback', errors)


class TestNames(unittest.TestCase):
    """The property has two names."""

    def launch(self, **properties: str) -> VirtualMachine:
        """Start a machine with a device of 4 GiB."""
        machine = VirtualMachine(environment.qemu_system(), 'tcg', 128 * MIB,
                                 maxmem=8 * GIB)
        self.addCleanup(machine.shutdown)
        machine.add_args('-S', *virtio_mem_arguments('vmem0', 4 * GIB,
                                                     **properties))
        machine.launch()
        return machine

    def test_values(self) -> None:
        """What either name is set to shows under both."""
        for properties, value in (
                ({}, False),
                ({'multiple_memslots': 'on'}, True),
                ({'dynamic_memslots': 'on'}, True),
                ({'dynamic_memslots': 'off'}, False),
                ({'dynamic_memslots': 'on', 'multiple_memslots': 'on'}, True),
                ({'dynamic_memslots': 'off', 'multiple_memslots': 'off'},
                 False)):
            with self.subTest(**properties):
                machine = self.launch(**properties)
                for name in ('multiple-memslots', 'dynamic-memslots'):
                    self.assertEqual(machine.command(
                        'qom-get', path='/machine/peripheral/vmem0',
                        property=name), value)
                self.assertEqual(machine.memory_device('vmem0')['memslots'],
                                 4 if value else 1)

    def test_contradiction(self) -> None:
        """Both set to different values are refused."""
        for multiple, dynamic in (('on', 'off'), ('off', 'on')):
            with self.subTest(multiple=multiple):
                with self.assertRaises(VMLaunchFailure) as failure:
                    self.launch(multiple_memslots=multiple,
                                dynamic_memslots=dynamic)
                self.assertIn(
                    "'multiple-memslots' and 'dynamic-memslots' are the same "
                    f"property, but were set to '{multiple}' and '{dynamic}'",
                    failure.exception.output or '')

    def test_help(self) -> None:
        """Both names are told of, with what they do."""
        machine = self.launch()
        properties = {
            entry['name']: entry.get('description') for entry in
            machine.command('device-list-properties',
                            typename='virtio-mem-pci')}
        for name in ('multiple-memslots', 'dynamic-memslots'):
            self.assertRegex(properties[name] or '', 'several memslots')


if __name__ == '__main__':
    unittest.main()
