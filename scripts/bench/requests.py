"""
Requests to plug and unplug: time in QEMU, time in KVM, and KVM's ioctls.

In each place, a block is plugged, which maps a memslot, then some more; then
they are unplugged again.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import statistics
import time
from dataclasses import dataclass
from typing import Dict, List

from drivers import Answer

from bench.formula import GIB, TIB
from bench.machine import BenchMachine
from bench.measurement import Context, Measurement, Parameters, Sample
from bench.subjects import Subject

# What the requests are for, in the order of their times
KINDS = ('plug, maps', 'plug', 'unplug', 'unplug, unmaps')
# How many places in a device, and how many more blocks in each
PLACES = 16
MORE = 7


@dataclass
class Request:
    """What one request took."""
    seconds: float
    kvm_seconds: float
    memslot_calls: int
    calls: int


def _over_kvm(requests: Dict[str, List[Request]]) -> List[Sample]:
    """
    How much more a request takes because it changes memslots than the one
    next to it, in units of what KVM takes for that.
    """
    samples = []
    for mapping, others in (
            (KINDS[0], requests[KINDS[1]][::MORE]),
            (KINDS[3], requests[KINDS[2]][MORE - 1::MORE])):
        pairs = [(a.seconds - b.seconds, a.kvm_seconds - b.kvm_seconds)
                 for a, b in zip(requests[mapping], others)]
        kvm = statistics.median(pair[1] for pair in pairs)
        if kvm > 0:
            more = statistics.median(pair[0] for pair in pairs)
            samples.append(Sample('over KVM', 'ratio', more / kvm,
                                  {'request': mapping}))
    return samples


class Requests(Measurement):
    """See above."""
    name = 'requests'
    estimate = 1.0

    def points(self, quick: bool) -> List[Parameters]:
        """
        With nothing else plugged, and with most of the device, in as many
        memslots as there are by default.
        """
        points: List[Parameters] = [{'size': 64 * GIB, 'beside': 0}]
        if not quick:
            points += [{'size': 256 * GIB, 'beside': 240 * GIB},
                       {'size': TIB, 'beside': 0}]
        return points

    @staticmethod
    def _requests(machine: BenchMachine,
                  beside: int) -> Dict[str, List[Request]]:
        """Do all of them."""
        block = machine.memory.block
        found: Dict[str, List[Request]] = {kind: [] for kind in KINDS}
        order, calls = [], []
        machine.plug(0, beside)
        before = len(machine.requests())
        seen = len(machine.recorder.calls())
        more = range(block, block * (MORE + 1), block)
        for place in range(PLACES):
            first = beside + (machine.size - beside) // PLACES * place
            for kind, action, where in (
                    ('plug, maps', machine.memory.plug, [0]),
                    ('plug', machine.memory.plug, more),
                    ('unplug', machine.memory.unplug, more),
                    ('unplug, unmaps', machine.memory.unplug, [0])):
                for offset in where:
                    answer = action(first + offset, block)
                    if answer != Answer.ACK:
                        raise RuntimeError(f'{kind}: {answer!r}')
                    # What QEMU frees late is no part of the next request.
                    time.sleep(0.005)
                    order.append(kind)
                    calls.append(machine.recorder.calls(seen))
                    seen += len(calls[-1])
        for kind, seconds, made in zip(order, machine.requests()[before:],
                                       calls):
            sets = [call for call in made if call.sets_memslot]
            found[kind].append(Request(
                seconds, sum(call.seconds for call in sets), len(sets),
                len(made)))
        return found

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        size, beside = int(point['size']), int(point['beside'])
        reason = (context.affords_device(subject, size)
                  or context.affords(context.flavour.bytes(beside)))
        if reason is not None:
            return [Sample('time', 's', None, {'request': kind},
                           reason=reason) for kind in KINDS]
        with BenchMachine(subject, context.library, size) as machine:
            machine.add_device()
            machine.trace_requests()
            machine.launch()
            machine.start_driver()
            requests = self._requests(machine, beside)
        samples: List[Sample] = []
        for kind, made in requests.items():
            for metric, unit, value in (
                    ('time', 's', statistics.median(
                        one.seconds for one in made)),
                    ('KVM time', 's', statistics.median(
                        one.kvm_seconds for one in made)),
                    ('memslot ioctls', '', statistics.mean(
                        one.memslot_calls for one in made)),
                    ('KVM ioctls', '', statistics.mean(
                        one.calls for one in made))):
                samples.append(Sample(metric, unit, value,
                                      {'request': kind}))
        return samples + _over_kvm(requests)
