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

# What is plugged with each request
STEP = GIB


class Growth(Measurement):
    """From the start of the device, as guests do."""
    name = 'growth'
    estimate = 4.0

    def points(self, quick: bool) -> List[Parameters]:
        return [{'size': size} for size in
                ([64 * GIB] if quick else [64 * GIB, TIB])]

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        size = int(point['size'])
        # All of it becomes plugged.
        reason = context.affords(context.flavour.bytes(size))
        if reason is not None:
            return [Sample('time', 's', None, reason=reason)]
        started = Start().run(context, subject, point)[0].value
        assert started is not None
        with BenchMachine(subject, context.library, size) as machine:
            machine.add_device()
            machine.trace_requests()
            machine.launch()
            machine.start_driver()
            for offset in range(0, size, STEP):
                machine.plug(offset, offset + STEP)
            taken = machine.requests()
        return [Sample('time', 's',
                       started + sum(taken[:-(-plugged // STEP)]),
                       {'plugged': name})
                for name, plugged in stages(size)]
