"""
Growing beside a vhost-user backend: a machine whose disk is the storage
daemon's plugs more and more memory. Nothing but that is going on.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import unittest
from typing import List

import environment
from drivers import Answer, VirtioMem
from vhost_backends import DEVICE_SLOT, Block, TracedMachine

from bench.formula import GIB
from bench.machine import MeteredMachine
from bench.measurement import Context, Measurement, Parameters, Sample
from bench.meter import Meter
from bench.subjects import Subject

SIZE = 48 * GIB
STEP = GIB
# Messages that tell a backend of memory: SET_MEM_TABLE, ADD_MEM_REG and
# REM_MEM_REG
MEMORY_MESSAGES = {5, 37, 38}


_STAMP = re.compile(r'^(?:\d+@)?\d+\.\d+:', re.M)


class StampedMachine(MeteredMachine, TracedMachine):
    """A machine whose trace has the time."""

    def __init__(self, binary: str) -> None:
        super().__init__(binary)
        self.add_args('-cpu', environment.require_kvm(),
                      '-msg', 'timestamp=on')
        self.trace_requests()
        self.stamped_trace = self.trace
        self.meter = Meter()
        self._wrapper = self.meter.command()

    def look(self) -> None:
        """Have the helpers see what has happened so far."""
        self.trace = self.directory / 'plain-trace'
        self.trace.write_text(
            _STAMP.sub('', self.stamped_trace.read_text('utf-8')), 'utf-8')


class Vhost(Measurement):
    """See above."""
    name = 'vhost'
    estimate = 0.5

    def points(self, quick: bool) -> List[Parameters]:
        return [{'size': SIZE}]

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        # The helpers are made for tests.
        case = unittest.TestCase()
        try:
            return self._run(case, subject)
        finally:
            case.doCleanups()

    @staticmethod
    def _run(case: unittest.TestCase, subject: Subject) -> List[Sample]:
        machine = StampedMachine(subject.binary)
        case.addCleanup(machine.shutdown)
        disk = Block(case, machine)
        disk.add()
        machine.add_device(subject.option or 'unplugged-inaccessible=on',
                           SIZE)
        machine.launch()
        memory = VirtioMem(machine, DEVICE_SLOT)
        disk.start()
        first = 0
        machine.look()
        before = machine.messages()
        for offset in range(0, SIZE, STEP):
            answer = memory.plug(offset, STEP)
            if answer != Answer.ACK:
                raise RuntimeError(f'{offset // GIB} GiB: {answer!r}')
            if not offset:
                first = machine.meter.read()
        machine.look()
        sent = machine.messages() - before
        return [
            Sample('time', 's', sum(machine.requests())),
            Sample('kernel, 1 GiB plugged', 'bytes', first),
            Sample('memory messages', '',
                   sum(count for message, count in sent.items()
                       if message in MEMORY_MESSAGES)),
            Sample('messages', '', sum(sent.values())),
            Sample('regions of the backend', '', len(
                disk.backend.mappings(machine.inode(SIZE)))),
            Sample('memslots', '', len(machine.memslots()))]
