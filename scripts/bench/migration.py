"""
Migration of a machine with 1 GiB plugged, or no device: what it costs to start
one, to keep track of dirty pages, and to load it.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import time
from pathlib import Path
from typing import List, Optional

from vm import wait_until

from bench.formula import GIB, TIB
from bench.machine import BenchMachine
from bench.measurement import Context, Measurement, Parameters, Sample
from bench.subjects import Subject

PLUGGED = GIB
# For a device that there is none of
ROOM = GIB
# Bytes per second: few enough for a migration to go on, then no limit
SLOW, FAST = 64 << 10, 1 << 40


def wait_active(machine: BenchMachine) -> float:
    """Wait until a migration is under way; seconds that QEMU says it took."""
    def active() -> Optional[float]:
        info = machine.cmd('query-migrate')
        return (info.get('setup-time', 0) / 1e3
                if info.get('status') == 'active' else None)
    return wait_until('migration is active', active, pause=0.01)


def _wait_completed(machine: BenchMachine) -> None:
    def completed() -> Optional[bool]:
        status = machine.cmd('query-migrate').get('status')
        if status == 'failed':
            raise RuntimeError('migration has failed')
        return status == 'completed' or None
    wait_until('migration is complete', completed, pause=0.002)


def _syncs(machine: BenchMachine) -> List[float]:
    """How long QEMU took to collect dirty pages, each time."""
    start, found = 0.0, []
    for moment, name, _arguments in machine.events():
        if name == 'migration_bitmap_sync_start':
            start = moment
        elif name == 'migration_bitmap_sync_end':
            found.append(moment - start)
    return found


class Migration(Measurement):
    """See above."""
    name = 'migration'
    estimate = 2.6

    def points(self, quick: bool) -> List[Parameters]:
        return [{'size': size} for size in
                ([0, 128 * GIB] if quick else [0, 128 * GIB, TIB, 16 * TIB])]

    @staticmethod
    def _source(machine: BenchMachine, size: int,
                file: Path) -> List[Sample]:
        """Migrate to a file."""
        if size:
            machine.start_driver()
            machine.plug(0, PLUGGED)
        kernel, own = machine.meter.read(), machine.anonymous()
        memslots = machine.memslots() if size else {}
        seen = len(machine.recorder.calls())
        machine.cmd('migrate-set-parameters', max_bandwidth=SLOW)
        machine.cmd('migrate', uri=f'exec:cat >{file}')
        setup = wait_active(machine)
        kernel = machine.meter.read() - kernel
        own = machine.anonymous() - own
        machine.cmd('migrate-set-parameters', max_bandwidth=FAST)
        _wait_completed(machine)
        syncs = _syncs(machine)
        logs = [call for call in machine.recorder.calls(seen)
                if call.is_dirty_log]
        of_device = [call for call in logs if call.slot in memslots]
        return [Sample('set-up', 's', setup),
                Sample('kernel for it', 'bytes', kernel),
                Sample('QEMU for it', 'bytes', own),
                # The last one is with the vCPUs stopped.
                Sample('last sync', 's', syncs[-1]),
                Sample('dirty-log time', 's',
                       sum(call.seconds for call in logs)),
                Sample('dirty-log ioctls', '', len(logs)),
                Sample('syncs', '', len(syncs)),
                Sample('fetches for the device', '',
                       sum(call.fetches_log for call in of_device)),
                Sample('clears for the device', '',
                       sum(not call.fetches_log for call in of_device))]

    @staticmethod
    def _destination(machine: BenchMachine, size: int,
                     file: Path) -> List[Sample]:
        """Load that file."""
        start = time.monotonic()
        machine.cmd('migrate-incoming', uri=f'exec:cat {file}')
        _wait_completed(machine)
        seconds = time.monotonic() - start
        return [Sample('load', 's', seconds),
                Sample('memslots of the destination', '',
                       len(machine.memslots()) if size else 0)]

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        size = int(point['size'])
        reason = context.affords_device(subject, size, is_logged=True)
        if reason is not None:
            return [Sample('set-up', 's', None, reason=reason)]
        with BenchMachine(subject, context.library,
                          size or ROOM) as source:
            if size:
                source.add_device()
            source.add_traces('migration_bitmap_sync_start',
                              'migration_bitmap_sync_end')
            source.launch()
            file = context.scratch / 'migration'
            samples = self._source(source, size, file)
        with BenchMachine(subject, context.library,
                          size or ROOM) as destination:
            if size:
                destination.add_device()
            destination.add_args('-incoming', 'defer')
            destination.launch()
            samples += self._destination(destination, size, file)
        file.unlink()
        return samples
