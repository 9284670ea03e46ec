"""
What monitors and properties tell of memslots, and what they are told.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import subprocess
import unittest
from pathlib import Path
from typing import Any, Dict, List

from qemu.machine.machine import VMLaunchFailure

import environment
from drivers import Answer, Machine, VirtioMem
from vhost_backends import MAXMEM, Block
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
                          'kvm' if environment.has_kvm() else 'tcg', MAXMEM)
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
                machine.cmd('qom-get', path='/machine/peripheral/vmem0',
                            property=name), expected[name])
        human = paragraphs(machine.hmp('info memory-devices'))
        self.assertEqual([paragraph['id'] for paragraph in human], ['vmem0'])
        self.assertEqual({name: human[0][name] for name in FIGURES},
                         shown(expected))

        info = machine.cmd('query-memslots')
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
                    self.assertEqual(machine.cmd(
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
                    f"property, but were set to '{multiple}' and '{dynamic}'"
                    '\nSet one of them, or both to the same value.\n',
                    failure.exception.output or '')

    def test_help(self) -> None:
        """The properties are told of, with what they are."""
        machine = self.launch()
        properties = {
            entry['name']: entry.get('description') for entry in
            machine.cmd('device-list-properties',
                        typename='virtio-mem-pci')}
        text = subprocess.run(
            [environment.qemu_system(), '-device', 'virtio-mem-pci,help'],
            check=True, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE).stdout
        manual = Path(environment.build_dir() / 'qemu/docs/system/devices'
                      / 'virtio-mem-memslots.rst').read_text('utf-8')
        for name, kind, words in (
                ('multiple-memslots', 'bool', 'several memslots'),
                ('dynamic-memslots', 'bool', 'several memslots'),
                ('memslots', 'uint32', 'the most .*read-only'),
                ('active-memslots', 'uint32', 'mapped .*read-only'),
                ('mapped-size', 'size', 'mapped .*read-only')):
            with self.subTest(name=name):
                self.assertRegex(properties[name] or '', words)
                match = re.search(rf'^  {name}=<{kind}> +- (.*)$', text, re.M)
                assert match is not None
                self.assertEqual(match[1], properties[name])
                self.assertTrue(match[0] in manual,
                                f'the manual does not show {match[0]!r}')


class TestTestDevice(unittest.TestCase):
    """The device that listens as VFIO does says what it cannot do."""

    def machine(self, properties: str = '') -> VirtualMachine:
        """A machine with the device, not started."""
        machine = VirtualMachine(environment.qemu_system(), 'tcg', 128 * MIB)
        self.addCleanup(machine.shutdown)
        machine.add_args('-S', '-device',
                         f'ram-discard-testdev,id=testdev{properties}')
        return machine

    def test_listening(self) -> None:
        """It does not listen from the start."""
        with self.assertRaises(VMLaunchFailure) as failure:
            self.machine(',listening=on').launch()
        self.assertIn('the device does not listen before it is realized',
                      failure.exception.output or '')

    def test_double_discard(self) -> None:
        """What its listeners can do is fixed."""
        machine = self.machine(',double-discard=on')
        machine.launch()
        answer = machine.qmp('qom-set', path='/machine/peripheral/testdev',
                             property='double-discard', value=False)
        self.assertEqual(answer['error']['desc'], 'the device has told its '
                                                  "listeners' kind already")


if __name__ == '__main__':
    unittest.main()
