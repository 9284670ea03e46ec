"""
The longest wait for the monitor while a migration starts: the status is asked
for over and over, on a monitor of its own. 1 GiB is plugged, or there is no
device.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import socket
import threading
import time
from pathlib import Path
from typing import IO, List

from bench.formula import GIB, TIB
from bench.machine import BenchMachine
from bench.measurement import Context, Measurement, Parameters, Sample
from bench.migration import PLUGGED, ROOM, SLOW, wait_active
from bench.subjects import Subject

# Between two questions, before the migration, and once it is under way
PAUSE, BEFORE, AFTER = 0.001, 0.1, 0.5
TIMEOUT = 120.0


def _ask(stream: IO[str], command: str) -> None:
    stream.write(json.dumps({'execute': command, 'id': command}) + '\n')
    stream.flush()
    for line in stream:
        if json.loads(line).get('id') == command:
            return
    raise RuntimeError('the monitor is closed')


class Watch(threading.Thread):
    """Keeps asking."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._ended = threading.Event()
        self.waits: List[float] = []

    def run(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(TIMEOUT)
            monitor.connect(str(self._path))
            with monitor.makefile('rw', encoding='utf-8') as stream:
                _ask(stream, 'qmp_capabilities')
                while not self._ended.wait(PAUSE):
                    start = time.monotonic()
                    _ask(stream, 'query-status')
                    self.waits.append(time.monotonic() - start)

    def longest(self) -> float:
        """End, when the last answer is there."""
        self._ended.set()
        self.join()
        if not self.waits:
            raise RuntimeError('the monitor does not answer')
        return max(self.waits)


class Monitor(Measurement):
    """See above."""
    name = 'monitor'
    estimate = 2.0

    def points(self, quick: bool) -> List[Parameters]:
        return [{'size': size} for size in
                ([0, 128 * GIB] if quick else [0, 128 * GIB, TIB, 16 * TIB])]

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        size = int(point['size'])
        reason = context.affords_device(subject, size, is_logged=True)
        if reason is not None:
            return [Sample('longest wait', 's', None, reason=reason)]
        with BenchMachine(subject, context.library, size or ROOM) as machine:
            path = machine.directory / 'monitor'
            machine.add_args(
                '-chardev',
                f'socket,id=second,path={path},server=on,wait=off',
                '-mon', 'chardev=second,mode=control')
            if size:
                machine.add_device()
            machine.launch()
            if size:
                machine.start_driver()
                machine.plug(0, PLUGGED)
            machine.cmd('migrate-set-parameters', max_bandwidth=SLOW)
            watch = Watch(path)
            watch.start()
            time.sleep(BEFORE)
            machine.cmd('migrate', uri='exec:cat >/dev/null')
            wait_active(machine)
            time.sleep(AFTER)
            return [Sample('longest wait', 's', watch.longest())]
