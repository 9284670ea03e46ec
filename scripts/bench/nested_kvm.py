"""
The kernel's memory where KVM has SMM, with and without the TDP MMU: in a VM
of its own, as nested.py has it. Nothing is plugged but for the last case, in
which a Linux guest plugs memory.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import environment
import nested
from nested import NestedHost, NestedMachine

from bench.formula import GIB, Flavour
from bench.host import settled
from bench.measurement import Context, Measurement, Parameters, Sample
from bench.subjects import Subject

NAME = 'vmem0'
SIZE = 512 * GIB
# Enough for what the most expensive case takes
HOST_MEMORY = '4G'
LINUX_PLUGS = GIB


def _unwrap(binary: str) -> Tuple[str, str]:
    """The program that a wrapper runs, and where its libraries are."""
    with open(binary, 'rb') as file:
        if file.read(2) != b'#!':
            return binary, ''
    text = Path(binary).read_text('utf-8')
    program = re.search(r'^exec (\S+)', text, re.M)
    libraries = re.search(r'^export LD_LIBRARY_PATH=(\S+)', text, re.M)
    assert program is not None and libraries is not None
    return program[1], libraries[1]


class Host(NestedHost):
    """A host that runs another QEMU than it is run by."""

    def __init__(self, binary: str) -> None:
        super().__init__(environment.emulator(), binary, environment.image())
        self.add_args('-m', HOST_MEMORY)
        self.measured = binary
        self._binary_to_test, self._libraries = _unwrap(binary)

    def _make_image(self) -> Path:
        before = os.environ.get('LD_LIBRARY_PATH')
        if self._libraries:
            os.environ['LD_LIBRARY_PATH'] = self._libraries
        try:
            return super()._make_image()
        finally:
            if before is None:
                os.environ.pop('LD_LIBRARY_PATH', None)
            else:
                os.environ['LD_LIBRARY_PATH'] = before

    def reload_kvm(self, tdp_mmu: str) -> None:
        """Have KVM with or without the TDP MMU."""
        self.run('if grep -q "^kvm_amd " /proc/modules; then '
                 'rmmod kvm_amd && rmmod kvm; fi && '
                 f'modprobe kvm tdp_mmu={tdp_mmu} && modprobe kvm_amd')
        is_set = self.run('cat /sys/module/kvm/parameters/tdp_mmu').strip()
        if is_set != tdp_mmu:
            raise nested.NestedError(f'tdp_mmu is {is_set}')


def _memslots(machine: NestedMachine) -> int:
    """How many memslots of the device KVM has, in its address spaces."""
    device = machine.memory_device(NAME)
    first = device['memaddr']
    slots: Dict[str, int] = {}
    for match in re.finditer(
            r'^kvm_set_user_memory ((?:AddrSpace#\d+ )?Slot#\d+) .*'
            r'gpa=0x(\w+) size=0x(\w+)', machine.log(), re.M):
        address = int(match[2], 16)
        if first <= address < first + device['max-size']:
            slots[match[1]] = int(match[3], 16)
    return sum(size > 0 for size in slots.values())


class NestedKvm(Measurement):
    """See above."""
    name = 'nested'
    exact = True
    estimate = 15.0

    def __init__(self) -> None:
        self._host: Optional[Host] = None

    def points(self, quick: bool) -> List[Parameters]:
        cases: List[Parameters] = [
            {'TDP MMU': tdp_mmu, 'SMM': smm, 'guest': 'none'}
            for tdp_mmu in ('N', 'Y') for smm in ('on', 'off')]
        return [] if quick else cases + [
            {'TDP MMU': 'Y', 'SMM': 'on', 'guest': 'Linux'}]

    def close(self) -> None:
        """End the host."""
        if self._host is not None:
            self._host.shutdown()
            self._host = None

    def _get_host(self, binary: str) -> Host:
        if self._host is not None and self._host.measured != binary:
            self.close()
        if self._host is None:
            self._host = Host(binary)
            self._host.boot()
        return self._host

    @staticmethod
    def _machine(host: Host, subject: Subject,
                 point: Parameters) -> NestedMachine:
        """A machine with the device, not started."""
        properties: Dict[str, Any] = {'unplugged-inaccessible': 'on'}
        if subject.option:
            name, _, value = subject.option.partition('=')
            properties[name] = value
        machine = NestedMachine(host, f'q35,smm={point["SMM"]}',
                                maxmem=GIB + SIZE)
        machine.add_virtio_mem(NAME, SIZE, **properties)
        if point['guest'] == 'Linux':
            machine.add_linux()
        else:
            machine.add_args('-S')
        return machine

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        flavour = Flavour(point['TDP MMU'] == 'N',
                          spaces=2 if point['SMM'] == 'on' else 1)
        plugged = LINUX_PLUGS if point['guest'] == 'Linux' else 0
        context.progress('booting the host')
        host = self._get_host(subject.binary)
        host.reload_kvm(str(point['TDP MMU']))
        before = settled(host.kernel_memory)
        with self._machine(host, subject, point) as machine:
            context.progress('starting a machine in there')
            machine.launch()
            if plugged:
                machine.request(NAME, plugged)
                machine.wait_plugged(NAME, plugged)
            kernel = settled(host.kernel_memory) - before
            least = nested.RAM + (plugged if subject.dynamic else SIZE)
            return [Sample('kernel', 'bytes', kernel,
                           predicted=flavour.bytes(least)),
                    Sample('memslots', '', _memslots(machine))]
