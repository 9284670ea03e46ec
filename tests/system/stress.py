"""
Drive a machine with memory devices by random steps, and compare it with a
model after each of them.

What the steps are depends on a seed. Where the machine and the model do not
agree, fewer steps are looked for that end in the same way, and the command is
printed that takes these again.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import argparse
import os
import re
import shlex
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Protocol, Sequence

import environment
from stress_machine import RealMachine
from stress_model import Model, Setup, Step
from stress_steps import Chooser, limited, plainer, replay, without_device
from stress_values import agree

# What it takes to run this
VARIABLES = ('BUILD_DIR', 'QEMU_SYSTEM', 'PYTHONPATH')
# How often steps are taken once more to find fewer ones
MOST_TRIES = 200

Choose = Callable[[Model], Optional[Step]]


class Machine(Protocol):
    """What is driven."""

    def take(self, step: Step) -> str:
        """Take a step, and tell its outcome."""

    def check(self, model: Model, step: Optional[Step]) -> None:
        """See that all is as the model has it after a step."""

    def post_mortem(self, error: Exception) -> Optional[str]:
        """What is known of its end, if it has come and led to an error."""

    def close(self) -> None:
        """End it."""


class Pair(NamedTuple):
    """What is compared."""
    model: Model
    machine: Machine


class Failure(Exception):
    """The machine and the model do not agree, or the machine is no more."""

    def __init__(self, taken: List[Step], error: Exception,
                 post_mortem: Optional[str]) -> None:
        super().__init__(str(error))
        # The last one of these made it fail.
        self.taken = taken
        self._error = error
        self._post_mortem = post_mortem

    @property
    def signature(self) -> str:
        """The same for failures that are most likely of one kind."""
        if self._post_mortem is not None:
            return 'QEMU is gone'
        words = re.sub(r'[\[{(].*|\d+', '', str(self._error))
        return f'{type(self._error).__name__}: {words}'

    def explain(self) -> str:
        """All that is known."""
        lines = traceback.format_exception(
            type(self._error), self._error, self._error.__traceback__,
            chain=False)
        if self._post_mortem is not None:
            lines.append(f'QEMU is gone: {self._post_mortem}')
        return ''.join(lines)


def run(pair: Pair, choose: Choose, outcomes: 'Counter[tuple[str, str]]',
        show: Callable[[str], None] = lambda line: None) -> int:
    """
    Take steps until there are no more; those that make no sense are skipped.
    Returns how many were taken, and counts their kinds and outcomes.
    """
    model, machine = pair
    taken: List[Step] = []
    try:
        machine.check(model, None)
        for step in iter(lambda: choose(model), None):
            if not model.is_possible(step):
                continue
            taken.append(step)
            shown, expected = machine.take(step), model.take(step)
            show(f'{step}: {shown}')
            agree(f'outcome of {step.kind}', shown, expected)
            machine.check(model, step)
            outcomes[step.kind, shown] += 1
    # Whatever goes wrong in a machine is a failure of it.
    except Exception as error:
        raise Failure(taken, error, machine.post_mortem(error)) from error
    finally:
        machine.close()
    return len(taken)


class Shrinker:
    """Looks for few steps that end in the same failure."""

    def __init__(self, make: Callable[[], Pair], failure: Failure,
                 most_tries: int = MOST_TRIES) -> None:
        self._make = make
        self._most_tries = most_tries
        self._signature = failure.signature
        self.tries = 0
        self.failure = failure

    def _fails(self, steps: Sequence[Step]) -> bool:
        """Whether these do; keeps them if so."""
        self.tries += 1
        try:
            run(self._make(), replay(steps), Counter())
        except Failure as failure:
            if failure.signature == self._signature:
                self.failure = failure
                return True
        return False

    def reproduces(self) -> bool:
        """Whether the steps fail each time."""
        return self._fails(self.failure.taken)

    def shrink(self) -> List[Step]:
        """
        Leave out steps, many at once at first. Without any one of those that
        are left there is no such failure, but for a lack of tries.
        """
        width = max(len(self.failure.taken) // 2, 1)
        while self.tries < self._most_tries:
            before = self.failure.taken
            self._leave_out(width)
            self._leave_out_devices()
            if width > 1:
                width //= 2
                continue
            self._make_plainer()
            if self.failure.taken == before:
                break
        return self.failure.taken

    def _leave_out(self, width: int) -> None:
        # The last step is what fails, so the earlier it is, the better.
        first = len(self.failure.taken) - 1 - width
        while self.tries < self._most_tries:
            steps = self.failure.taken
            first = min(first, len(steps) - 1 - width)
            if first < 0:
                if first <= -width:
                    break
                candidate = steps[first + width:]
            else:
                candidate = steps[:first] + steps[first + width:]
            self._fails(candidate)
            first -= width

    def _leave_out_devices(self) -> None:
        # Without its device, no step would be the same.
        for index in reversed(range(Model.MAX_DEVICES)):
            candidate = without_device(self.failure.taken, index)
            if 0 < len(candidate) < len(self.failure.taken):
                self._fails(candidate)


    def _make_plainer(self) -> None:
        # Then others may not be needed any more.
        for number in range(len(self.failure.taken)):
            steps = self.failure.taken
            if self.tries >= self._most_tries or number >= len(steps):
                break
            step = plainer(steps[number])
            if step is not None:
                self._fails([*steps[:number], step, *steps[number + 1:]])


def summary(outcomes: 'Counter[tuple[str, str]]') -> List[str]:
    """A table of the kinds of steps and how they went."""
    kinds = sorted({kind for kind, _ in outcomes})
    lines = []
    for kind in kinds:
        found = {outcome: count for (other, outcome), count
                 in sorted(outcomes.items()) if other == kind}
        if kind in ('disk_out', 'network_out'):
            found = {'ok': sum(found.values())}
        lines.append(f'{kind:16}{sum(found.values()):6}  ' + ', '.join(
            f'{count} {outcome}' for outcome, count in found.items()))
    return lines


class Stress:
    """Runs sequences of steps and counts them."""

    def __init__(self, accel: str, show: bool = False) -> None:
        self._accel = accel
        self._show = show
        self.sequences = 0
        self.steps = 0
        self.outcomes: 'Counter[tuple[str, str]]' = Counter()

    def _pair(self, setup: Setup) -> Pair:
        setup = setup._replace(ring=setup.ring and self._accel == 'kvm')
        return Pair(Model(setup), RealMachine(self._accel, setup))

    def _print(self, line: str) -> None:
        if self._show:
            print(f'# {line}', flush=True)

    def seed(self, seed: int, steps: int, shrink: bool = True) -> None:
        """Run the sequence of a seed."""
        chooser = Chooser(seed)
        try:
            self._run(chooser.setup, limited(chooser, steps))
        except Failure as failure:
            print(f'# seed {seed} fails at step {len(failure.taken)}: '
                  f'{failure}', flush=True)
            if shrink:
                self._shrink(chooser.setup, failure)
            raise

    def replay(self, setup: Setup, steps: List[Step]) -> None:
        """Run given steps."""
        self._run(setup, replay(steps))

    def _run(self, setup: Setup, choose: Choose) -> None:
        self.sequences += 1
        try:
            self.steps += run(self._pair(setup), choose, self.outcomes,
                              self._print)
        except Failure as failure:
            self.steps += len(failure.taken) - 1
            raise

    def _shrink(self, setup: Setup, failure: Failure) -> None:
        shrinker = Shrinker(lambda: self._pair(setup), failure)
        if not shrinker.reproduces():
            print('# taken again, the same steps do not fail', flush=True)
        else:
            shrinker.shrink()
        steps = shrinker.failure.taken
        print(f'# {len(steps)} steps are left after {shrinker.tries} tries; '
              'to take them again:', flush=True)
        print(f'# {command(self._accel, setup, steps)}', flush=True)
        for line in shrinker.failure.explain().splitlines():
            print(f'# {line}', flush=True)

    def print_summary(self) -> None:
        """Tell what was done."""
        print(f'# {self._accel}: {self.sequences} sequences, {self.steps} '
              'steps', flush=True)
        for line in summary(self.outcomes):
            print(f'#   {line}', flush=True)


def command(accel: str, setup: Setup, steps: Sequence[Step]) -> str:
    """The command that takes steps again, from anywhere."""
    words = ['env', *(f'{name}={os.environ[name]}' for name in VARIABLES
                      if name in os.environ),
             sys.executable, str(Path(__file__).resolve()), '--accel', accel]
    words += [f'--{name}' for name in Setup._fields if getattr(setup, name)]
    words += ['--replay', '; '.join(str(step) for step in steps)]
    return ' '.join(map(shlex.quote, words))


def parse_steps(text: str) -> List[Step]:
    """Steps from a command line."""
    return [Step.parse(part) for part in text.split(';') if part.strip()]


def main(arguments: Sequence[str]) -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        description='Stress machines with memory devices.')
    parser.add_argument('--accel', choices=('kvm', 'tcg'),
                        help='(default: kvm where it can be used, else tcg)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--seeds', type=int, default=1,
                        help='run that many sequences')
    parser.add_argument('--steps', type=int, default=200,
                        help='how long each sequence is')
    parser.add_argument('--no-shrink', action='store_true')
    parser.add_argument('--show', action='store_true',
                        help='print each step')
    parser.add_argument('--replay', metavar='STEPS')
    parser.add_argument('--listener', action='store_true',
                        help='for --replay: with a listener')
    parser.add_argument('--ring', action='store_true',
                        help='for --replay: with a ring of dirty pages')
    options = parser.parse_args(arguments)

    accel = options.accel or ('kvm' if environment.has_kvm() else 'tcg')
    stress = Stress(accel, options.show or bool(options.replay))
    try:
        if options.replay:
            stress.replay(Setup(options.listener, options.ring),
                          parse_steps(options.replay))
        else:
            for seed in range(options.seed, options.seed + options.seeds):
                print(f'# seed {seed}, {options.steps} steps', flush=True)
                stress.seed(seed, options.steps, not options.no_shrink)
    except Failure as failure:
        print(failure.explain(), flush=True)
        return 1
    finally:
        stress.print_summary()
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
