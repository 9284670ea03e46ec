"""
Requests to plug and unplug: time in QEMU, time in KVM, and KVM's ioctls.

In each memslot, one block is plugged, which maps it, then another one; then
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
# How many places, and how far apart, in parts of the device
PLACES = 32


@dataclass
class Request:
    """What one request took."""
    seconds: float
    kvm_seconds: float
    memslot_calls: int
    calls: int


def _events(machine: BenchMachine) -> List[float]:
    """How long each request has taken, as QEMU's trace tells."""
    start, found = 0.0, []
    for moment, name, _arguments in machine.events():
        if name.endswith('plug_request'):
            start = moment
        elif name == 'virtio_mem_send_response' and start:
            found.append(moment - start)
            start = 0.0
    return found


def _over_kvm(requests: Dict[str, List[Request]]) -> List[Sample]:
    """
    How much more a request takes because it changes memslots, in units of
    what KVM takes for that.
    """
    samples = []
    for mapping, other in (KINDS[:2], (KINDS[3], KINDS[2])):
        pairs = [(a.seconds - b.seconds, a.kvm_seconds - b.kvm_seconds)
                 for a, b in zip(requests[mapping], requests[other])]
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
        return [{'size': size} for size in
                ([64 * GIB] if quick else [64 * GIB, TIB])]

    @staticmethod
    def _requests(machine: BenchMachine) -> Dict[str, List[Request]]:
        """Do all of them."""
        block = machine.memory.block
        found: Dict[str, List[Request]] = {kind: [] for kind in KINDS}
        order, calls = [], []
        seen = len(machine.recorder.calls())
        for place in range(PLACES):
            offset = machine.size // PLACES * place
            for kind, action, where in (
                    ('plug, maps', machine.memory.plug, offset),
                    ('plug', machine.memory.plug, offset + block),
                    ('unplug', machine.memory.unplug, offset + block),
                    ('unplug, unmaps', machine.memory.unplug, offset)):
                answer = action(where, block)
                if answer != Answer.ACK:
                    raise RuntimeError(f'{kind}: {answer!r}')
                # What QEMU frees late is no part of the next request.
                time.sleep(0.005)
                order.append(kind)
                calls.append(machine.recorder.calls(seen))
                seen += len(calls[-1])
        for kind, seconds, made in zip(order, _events(machine), calls):
            sets = [call for call in made if call.sets_memslot]
            found[kind].append(Request(
                seconds, sum(call.seconds for call in sets), len(sets),
                len(made)))
        return found

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        size = int(point['size'])
        reason = context.affords_device(subject, size)
        if reason is not None:
            return [Sample('time', 's', None, {'request': kind},
                           reason=reason) for kind in KINDS]
        with BenchMachine(subject, context.library, size) as machine:
            machine.add_device()
            machine.add_traces('virtio_mem_plug_request',
                               'virtio_mem_unplug_request',
                               'virtio_mem_send_response')
            machine.launch()
            machine.start_driver()
            requests = self._requests(machine)
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
