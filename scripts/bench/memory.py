"""
Memory: the kernel's and QEMU's own, and memslots, for devices of several
sizes with more and more of them plugged.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from dataclasses import dataclass
from typing import List, Optional, Sequence

from bench.formula import GIB, TIB
from bench.host import Kernel, kernel_memory
from bench.machine import BenchMachine
from bench.measurement import (IMPOSSIBLE, Context, Measurement, Parameters,
                               Sample)
from bench.stages import stages
from bench.subjects import Subject

# Of devices that are mapped on demand, memslots may be that part.
GRANULARITY = 128


@dataclass(frozen=True)
class Spent:
    """What a QEMU with a device takes, or what it takes more."""
    # Of the kernel's memory, and of all that the machine uses
    kernel: int
    machine: Kernel
    # QEMU's own
    own: int

    @classmethod
    def read(cls, machine: BenchMachine) -> 'Spent':
        """As of now."""
        kernel = machine.meter.read()
        return cls(kernel, kernel_memory(), machine.anonymous())

    def __sub__(self, other: 'Spent') -> 'Spent':
        return Spent(self.kernel - other.kernel,
                     self.machine - other.machine, self.own - other.own)


@dataclass(frozen=True)
class Stage:
    """How much is plugged, and bytes that the kernel spends on it."""
    name: str
    plugged: int
    # At most, and at least
    need: int
    least: int


class Memory(Measurement):
    """See above."""
    name = 'memory'
    estimate = 1.3

    def points(self, quick: bool) -> List[Parameters]:
        sizes = [64 * GIB, TIB // 2] if quick else [
            16 * GIB, 128 * GIB, TIB, 4 * TIB, 16 * TIB]
        return [{'size': size} for size in sizes]

    @staticmethod
    def _samples(stage: Parameters, least: Optional[int], reason: str = '',
                 spent: Optional[Spent] = None,
                 memslots: Sequence[int] = ()) -> List[Sample]:
        def sample(metric: str, unit: str, value: Optional[int],
                   predicted: Optional[int] = None) -> Sample:
            return Sample(metric, unit, value, stage, predicted, reason)
        if spent is None:
            return [sample('kernel', 'bytes', None, least),
                    sample('QEMU', 'bytes', None),
                    sample('memslots', '', None),
                    sample('mapped', 'bytes', None)]
        return [sample('kernel', 'bytes', spent.kernel, least),
                sample('QEMU', 'bytes', spent.own),
                sample('memslots', '', len(memslots)),
                sample('mapped', 'bytes', sum(memslots)),
                sample('VmallocUsed', 'bytes', spent.machine.vmalloc),
                sample('Slab', 'bytes', spent.machine.slab),
                sample('PageTables', 'bytes', spent.machine.page_tables)]

    @staticmethod
    def _stages(context: Context, subject: Subject,
                size: int) -> List[Stage]:
        dynamic, flavour = subject.dynamic, context.flavour
        return [Stage(name, plugged,
                      flavour.bytes(min(
                          size, plugged + (size // GRANULARITY if plugged
                                           else 0)) if dynamic else size),
                      flavour.bytes(plugged if dynamic else size))
                for name, plugged in stages(size)]

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        size = int(point['size'])
        samples: List[Sample] = []
        todo = self._stages(context, subject, size)
        reason = context.affords_device(subject, size)
        if reason is not None:
            for stage in todo:
                samples += self._samples(
                    {'plugged': stage.name},
                    None if reason.startswith(IMPOSSIBLE) else stage.least,
                    reason)
            return samples
        with BenchMachine(subject, context.library, size) as machine:
            machine.launch()
            start = Spent.read(machine)
            machine.plug_device()
            done = 0
            for stage in todo:
                reason = context.affords(stage.need)
                if reason is not None:
                    samples += self._samples({'plugged': stage.name},
                                             stage.least, reason)
                    continue
                if stage.plugged:
                    if not done:
                        machine.start_driver()
                    machine.plug(done, stage.plugged)
                    done = stage.plugged
                samples += self._samples(
                    {'plugged': stage.name}, stage.least,
                    spent=Spent.read(machine) - start,
                    memslots=list(machine.memslots().values()))
        return samples
