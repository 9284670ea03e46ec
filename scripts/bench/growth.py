"""
Start, and then growth: what a QEMU takes in all until so much is plugged.

A single memslot is paid for at start, many are as the device grows.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from typing import List

from bench.formula import GIB, TIB
from bench.machine import BenchMachine
from bench.measurement import Context, Measurement, Parameters, Sample
from bench.stages import stages
from bench.start import Start
from bench.subjects import Subject


class Growth(Measurement):
    """From the start of the device, as guests do, 1 GiB with each request."""
    name = 'growth'
    estimate = 4.0
    STEP = GIB

    def __init__(self) -> None:
        self._start = Start()

    def points(self, quick: bool) -> List[Parameters]:
        return [{'size': size} for size in
                ([64 * GIB] if quick else [64 * GIB, TIB])]

    def _grow(self, machine: BenchMachine) -> List[float]:
        """How long each request takes in QEMU."""
        for offset in range(0, machine.size, self.STEP):
            machine.plug(offset, offset + self.STEP)
        return machine.requests()

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        size = int(point['size'])
        # All of it becomes plugged.
        reason = context.affords(context.flavour.bytes(size))
        if reason is not None:
            return [Sample('time', 's', None, reason=reason)]
        started = self._start.run(context, subject, point)[0].value
        assert started is not None
        with BenchMachine(subject, context.library, size) as machine:
            machine.add_device()
            machine.trace_requests()
            machine.launch()
            machine.start_driver()
            taken = self._grow(machine)
        return [Sample('time', 's',
                       started + sum(taken[:-(-plugged // self.STEP)]),
                       {'plugged': name})
                for name, plugged in stages(size)]
