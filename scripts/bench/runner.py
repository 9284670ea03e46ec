"""
Runs measurements on subjects in turn, several times.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import statistics
import sys
import time
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Sequence, Tuple

from qemu.machine.machine import VMLaunchFailure
from qemu.qmp import ExecuteError

from drivers import DriverError
from guest import GuestError
from nested import NestedError
from vm import Timeout, first_error

from bench.measurement import Context, Measurement, Parameters
from bench.results import Results
from bench.subjects import Subject

BAR = 30


@dataclass(frozen=True)
class Step:
    """One measurement of one subject."""
    measurement: Measurement
    point: Parameters
    subject: Subject

    def kind(self) -> Tuple[str, str, str]:
        """Steps that take about the same time have the same."""
        return (self.measurement.name, str(self.point), self.subject.name)

    def __str__(self) -> str:
        words = [self.measurement.name]
        words += [f'{value >> 30} GiB' if key == 'size'
                  and isinstance(value, int) else f'{key} {value}'
                  for key, value in self.point.items()]
        return ', '.join(words + [self.subject.name])


def steps(measurements: Sequence[Measurement], subjects: Sequence[Subject],
          rounds: int, quick: bool) -> Iterator[Step]:
    """
    All there is to do. In each round, subjects take turns, and others come
    before and after each: what else the machine does hits all of them, and so
    does what is left of the one before.
    """
    for measurement in measurements:
        points = measurement.points(quick)
        if measurement.exact:
            for subject in subjects:
                for point in points:
                    yield Step(measurement, point, subject)
            continue
        for turn in range(rounds):
            first = turn // 2 % len(subjects)
            order = [*subjects[first:], *subjects[:first]]
            if turn % 2:
                order.reverse()
            for point in points:
                for subject in order:
                    yield Step(measurement, point, subject)


class Progress:
    """A bar on the terminal, and the time that is left."""

    def __init__(self, todo: Sequence[Step]) -> None:
        self._todo = list(todo)
        self._took: Dict[Tuple[str, str, str], List[float]] = {}
        self._terminal = sys.stderr.isatty()
        self._done = 0
        self._began = time.monotonic()
        self._last = ''

    def _guess(self, step: Step) -> float:
        same = self._took.get(step.kind())
        if same:
            return statistics.mean(same)
        like = [seconds for kind, took in self._took.items()
                if kind[0] == step.measurement.name for seconds in took]
        return statistics.mean(like) if like else step.measurement.estimate

    def show(self, what: str = '') -> None:
        """What is going on."""
        step = self._todo[min(self._done, len(self._todo) - 1)]
        left = sum(map(self._guess, self._todo[self._done:]))
        gone = time.monotonic() - self._began
        filled = int(BAR * gone / (gone + left)) if gone + left else BAR
        text = (f'[{"#" * filled}{"." * (BAR - filled)}] '
                f'{int(left) // 60}:{int(left) % 60:02} left: {step}'
                + (f': {what}' if what else ''))
        if self._terminal:
            sys.stderr.write(f'\r\033[K{text[:110]}')
            sys.stderr.flush()
        elif step.measurement.name != self._last:
            # In a log, once for each measurement.
            self._last = step.measurement.name
            print(text, file=sys.stderr, flush=True)

    def done(self, seconds: float) -> None:
        """The step is over."""
        self._took.setdefault(self._todo[self._done].kind(),
                              []).append(seconds)
        self._done += 1

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._terminal:
            sys.stderr.write('\r\033[K')
        print(text, file=sys.stderr, flush=True)


def run(todo: Sequence[Step], make_context: Callable[
        [Callable[[str], None]], Context], results: Results) -> List[str]:
    """Do it all; return what went wrong."""
    progress = Progress(todo)
    context = make_context(progress.show)
    failures: List[str] = []
    last = todo[0].measurement
    try:
        for step in todo:
            if step.measurement is not last:
                last.close()
                last = step.measurement
            progress.show()
            start = time.monotonic()
            try:
                samples = step.measurement.run(context, step.subject,
                                               step.point)
            except (DriverError, ExecuteError, GuestError, NestedError,
                    RuntimeError, Timeout, TimeoutError) as error:
                failures.append(f'{step}: {error}')
                samples = []
            except VMLaunchFailure as failure:
                failures.append(f'{step}: {first_error(failure.output)}')
                samples = []
            if failures and not samples:
                progress.say(failures[-1])
            for sample in samples:
                results.add(step.measurement.name, step.subject.name,
                            step.point, sample)
            progress.done(time.monotonic() - start)
    finally:
        last.close()
    return failures
