"""
What scripts/bench measures, small and quick: the claims of docs/benchmarks.rst
as ratios and counts. And that it measures what it says.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import sys
import tempfile
import unittest
from pathlib import Path
from typing import Dict, List, Optional

from qemu.machine.machine import VMLaunchFailure

import environment
import needs

sys.path.insert(0, str(environment.SCRIPTS))

# pylint: disable=wrong-import-position
from bench import bare, formula, ioctls, runner, subjects  # noqa: E402
from bench.formula import GIB, KIB, MIB, TIB, Flavour  # noqa: E402
from bench.growth import Growth  # noqa: E402
from bench.machine import BenchMachine  # noqa: E402
from bench.measurement import (IMPOSSIBLE, Context,  # noqa: E402
                               Measurement, Parameters, Sample)
from bench.memory import Memory  # noqa: E402
from bench.meter import Meter  # noqa: E402
from bench.migration import Migration  # noqa: E402
from bench.monitor import Monitor  # noqa: E402
from bench.requests import KINDS, PLACES, Requests  # noqa: E402
from bench.results import Results, load  # noqa: E402
from bench.stages import stages  # noqa: E402
from bench.start import Start  # noqa: E402
from bench.subjects import Subject  # noqa: E402
from bench.vhost import SIZE, STEP, Vhost  # noqa: E402

# What a QEMU has the kernel allocate for other reasons: stacks of threads,
# page tables, the memslots' own nodes
SLACK = 768 * KIB
# How much more than the formula's result it may be
EXACT = 1.05
# The most that is mapped of a device of 512 GiB, over what is plugged
RATIO = 1.015

FLAVOUR: Flavour
SCRATCH: Path


def setUpModule() -> None:  # pylint: disable=invalid-name
    """Find out what kind of KVM there is."""
    global FLAVOUR, SCRATCH  # pylint: disable=global-statement
    environment.require_kvm()
    meter = Meter()
    method = meter.method
    meter.close()
    if method != 'control group':
        needs.lack(needs.ROOT, 'no control group for memory: all that runs on '
                               'the machine would be seen, too')
    size = 16 * GIB
    FLAVOUR = formula.guess(size, bare.memslot(size)[0])
    # pylint: disable=consider-using-with
    directory = tempfile.TemporaryDirectory(prefix='virtio-mem-')
    unittest.addModuleCleanup(directory.cleanup)
    SCRATCH = Path(directory.name)


def context(limit: int = 4 * GIB) -> Context:
    """What measurements need to know."""
    return Context(environment.build_dir(),
                   ioctls.library(environment.build_dir()), SCRATCH,
                   FLAVOUR, limit, True, lambda text: None)


def subject(name: str) -> Subject:
    """Our QEMU with many memslots: on or off."""
    return {one.name: one for one in
            subjects.ours(environment.qemu_system())}[name]


def measure(measurement: Measurement, name: str,
            **point: int) -> Dict[str, Sample]:
    """Samples by metric and, where there are any, parameters."""
    parameters: Parameters = dict(point)
    return {': '.join([sample.metric, *map(str, sample.parameters.values())]):
            sample for sample in measurement.run(
                context(), subject(name), parameters)}


class BenchTestCase(unittest.TestCase):
    """Looks at samples."""

    def value(self, samples: Dict[str, Sample], name: str) -> float:
        """What was measured."""
        value = samples[name].value
        assert value is not None, samples[name]
        return value


class TestMemory(BenchTestCase):
    """The kernel's memory, on /dev/kvm."""

    def check(self, size: int, memslots: int) -> float:
        """Return what is spent with nothing plugged."""
        samples = measure(Memory(), 'on', size=size)
        kernel = {name: self.value(samples, f'kernel: {name}')
                  for name in ('0', '1 GiB', '10 %', '100 %')}
        print(f'# {size // GIB} GiB:', {
            name: f'{value / MIB:.2f} MiB' for name, value in kernel.items()
        }, flush=True)
        self.assertLess(kernel['0'], SLACK)
        self.assertEqual(self.value(samples, 'memslots: 0'), 0)
        self.assertEqual(self.value(samples, 'memslots: 100 %'), memslots)
        for name, plugged in stages(size):
            if f'kernel: {name}' not in samples:
                continue
            mapped = self.value(samples, f'mapped: {name}')
            # One memslot may be plugged in part.
            self.assertLessEqual(mapped, max(plugged + GIB if plugged else 0,
                                             RATIO * plugged), name)
            self.assertGreaterEqual(mapped, plugged)
            self.assertLess(self.value(samples, f'kernel: {name}'),
                            EXACT * FLAVOUR.bytes(int(mapped)) + SLACK)
        return kernel['0']

    def test_costs_what_is_plugged(self) -> None:
        """Nothing is proportional to the size of the device."""
        small = self.check(64 * GIB, 64)
        large = self.check(512 * GIB, 256)
        self.assertLess(abs(large - small), SLACK)

    def test_own_memory(self) -> None:
        """QEMU keeps next to nothing for what is not plugged."""
        for size, limit in ((TIB, 4 * MIB), (16 * TIB, 16 * MIB)):
            with BenchMachine(subject('on'), context().library,
                              size) as machine:
                machine.launch()
                before = machine.anonymous()
                machine.plug_device()
                machine.start_driver()
                unplugged = machine.anonymous() - before
                machine.plug(0, GIB)
                plugged = machine.anonymous() - before
            print(f'# {size // TIB} TiB: {unplugged / MIB:.2f} MiB, '
                  f'{plugged / MIB:.2f} MiB with 1 GiB plugged', flush=True)
            self.assertLess(plugged, limit)

    def test_formula(self) -> None:
        """A single memslot costs what the formula gives."""
        samples = measure(Memory(), 'off', size=64 * GIB)
        for name in ('0', '1 GiB', '100 %'):
            ratio = (self.value(samples, f'kernel: {name}')
                     / FLAVOUR.bytes(64 * GIB))
            self.assertLess(abs(ratio - 1), 0.05, name)
            self.assertEqual(self.value(samples, f'memslots: {name}'), 1)

    def test_left_out(self) -> None:
        """What the machine cannot afford is predicted."""
        size = 64 * GIB
        samples = Memory().run(context(limit=FLAVOUR.bytes(GIB)),
                               subject('off'), {'size': size})
        self.assertTrue(samples)
        for sample in samples:
            self.assertIsNone(sample.value)
            self.assertIn('would take', sample.reason)
            if sample.metric == 'kernel':
                self.assertEqual(sample.predicted, FLAVOUR.bytes(size))
        samples = Memory().run(context(limit=FLAVOUR.bytes(8 * GIB)),
                               subject('on'), {'size': size})
        self.assertEqual(
            [sample.parameters['plugged'] for sample in samples
             if sample.metric == 'kernel' and sample.value is None],
            ['50 %', '100 %'])

    def test_does_not_start(self) -> None:
        """What does not fit into one memslot is no matter of memory."""
        size = 8 * TIB
        for measurement in (Memory(), Start(), Migration(), Monitor()):
            for sample in measurement.run(context(limit=64 * GIB),
                                          subject('off'), {'size': size}):
                self.assertIsNone(sample.value)
                self.assertIsNone(sample.predicted)
                self.assertTrue(sample.reason.startswith(IMPOSSIBLE))
        with BenchMachine(subject('off'), context().library,
                          size) as machine:
            machine.add_device()
            with self.assertRaises(VMLaunchFailure) as caught:
                machine.launch()
        self.assertIn('Invalid argument', caught.exception.output or '')


class TestRequests(BenchTestCase):
    """KVM is called once for a memslot, and not otherwise."""

    def test_ioctls(self) -> None:
        """For each kind of request."""
        for name, mapping, beside in (('on', 1, 0), ('on', 1, 64 * GIB),
                                      ('off', 0, 0)):
            samples = measure(Requests(), name, beside=beside,
                              size=beside + PLACES * GIB)
            for kind in KINDS:
                expected = mapping if 'maps' in kind else 0
                for metric in ('memslot ioctls', 'KVM ioctls'):
                    self.assertEqual(
                        self.value(samples, f'{metric}: {kind}'), expected,
                        (name, beside, kind, metric))
                self.assertGreater(self.value(samples, f'time: {kind}'), 0)
                self.assertEqual(
                    self.value(samples, f'KVM time: {kind}') > 0,
                    expected > 0)


class TestGrowth(BenchTestCase):
    """What comes later takes longer."""

    def test_growth(self) -> None:
        """With many memslots, and with one."""
        size = 128 * GIB
        for name in ('on', 'off'):
            samples = measure(Growth(), name, size=size)
            times = [self.value(samples, f'time: {stage}')
                     for stage, _bytes in stages(size)]
            self.assertGreater(times[0], 0)
            self.assertEqual(times, sorted(times))
            self.assertLess(times[0], times[-1])

    def test_left_out(self) -> None:
        """All of it is what the machine has to afford."""
        for name in ('on', 'off'):
            sample, = Growth().run(context(limit=FLAVOUR.bytes(GIB)),
                                   subject(name), {'size': 64 * GIB})
            self.assertIsNone(sample.value)
            self.assertIn('would take', sample.reason)


class TestMigration(BenchTestCase):
    """Dirty logs are those of what is plugged."""

    def test_dirty_log(self) -> None:
        """Memory for them, and the calls to fetch them."""
        size = 128 * GIB
        single = measure(Migration(), 'off', size=size)
        many = measure(Migration(), 'on', size=size)
        self.assertGreaterEqual(self.value(single, 'kernel for it'),
                                FLAVOUR.dirty_log(size))
        # The rest is what boot memory and the migration itself take.
        self.assertLess(self.value(many, 'kernel for it'),
                        FLAVOUR.dirty_log(GIB) + SLACK)
        # A bit for each page, as KVM has it and in QEMU's own bitmap
        self.assertLess(self.value(single, 'QEMU for it'),
                        size // 4096 // 8 * 2 + 2 * MIB)
        # A bit for each page: of what is plugged, and in boot memory
        self.assertLess(self.value(many, 'QEMU for it'), 2 * MIB)
        self.assertLess(self.value(many, 'QEMU for it'),
                        self.value(single, 'QEMU for it'))
        # How often boot memory's log is cleared differs by chance.
        for samples in (single, many):
            self.assertEqual(self.value(samples, 'fetches for the device'),
                             self.value(samples, 'syncs'))
        # A gibibyte of it is cleared at once; the rest was never dirty.
        for samples in (single, many):
            self.assertEqual(self.value(samples, 'clears for the device'), 1)
        self.assertEqual(
            self.value(many, 'memslots of the destination'), 1)

    def test_monitor(self) -> None:
        """It answers, and how long that takes is seen."""
        for size in (0, 128 * GIB):
            samples = measure(Monitor(), 'on', size=size)
            self.assertGreater(self.value(samples, 'longest wait'), 0)


class TestVhost(BenchTestCase):
    """A backend that holds so many regions that it is shown memslots."""

    def test_messages(self) -> None:
        """It is told of each, like KVM; of a single one, never."""
        for name, told, memslots in (('on', SIZE // STEP, SIZE // STEP),
                                     ('off', 0, 1)):
            samples = measure(Vhost(), name, size=SIZE)
            self.assertEqual(self.value(samples, 'memory messages'), told)
            self.assertEqual(self.value(samples, 'memslots'), memslots)
            self.assertEqual(self.value(samples, 'regions of the backend'),
                             memslots)


class TestStart(BenchTestCase):
    """It is measured at all."""

    def test_start(self) -> None:
        """With and without a device."""
        for size in (0, 64 * GIB):
            samples = measure(Start(), 'on', size=size)
            self.assertGreater(self.value(samples, 'start'), 0)


class Fake(Measurement):
    """Gives what it is told to, and fails where it is told to."""
    name = 'fake'

    def __init__(self, fails_for: str = '') -> None:
        self._fails_for = fails_for
        self.closed = False

    def points(self, quick: bool) -> List[Parameters]:
        return [{'size': GIB}, {'size': 2 * GIB}]

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        # pylint: disable=redefined-outer-name
        if subject.name == self._fails_for:
            raise RuntimeError('of its mood')
        return [Sample('metric', 'bytes', float(int(point['size'])))]

    def close(self) -> None:
        self.closed = True


class TestRunner(unittest.TestCase):
    """Turns and failures."""
    SUBJECTS = [Subject(name, '/bin/true') for name in 'abc']

    def test_turns(self) -> None:
        """Others come before and after each subject."""
        steps = list(runner.steps([Fake()], self.SUBJECTS, 3, False))
        self.assertEqual(
            ''.join(step.subject.name for step in steps),
            'abcabc' + 'cbacba' + 'bcabca')

    def test_failure(self) -> None:
        """It is reported, and the rest is measured."""
        fake = Fake(fails_for='b')
        results = Results({'subjects': [], 'rounds': 2})
        failures = runner.run(
            list(runner.steps([fake], self.SUBJECTS, 2, False)),
            lambda progress: context(), results)
        self.assertEqual(failures, [
            f'fake, {size} GiB, b: of its mood'
            for size in (1, 2)] * 2)
        self.assertTrue(fake.closed)
        found = results.find('fake', 'metric', 'c', size=2 * GIB)
        assert found is not None
        self.assertEqual(found.values, [2.0 * GIB] * 2)
        self.assertIsNone(results.find('fake', 'metric', 'b', size=GIB))

    def test_kept(self) -> None:
        """Results are what they were once they are read again."""
        results = Results({'subjects': [], 'rounds': 1})
        runner.run(list(runner.steps([Fake()], self.SUBJECTS, 1, False)),
                   lambda progress: context(), results)
        results.add('fake', 'a', {'size': 0},
                    Sample('metric', 'bytes', None, {}, 5.0, 'too large'))
        file = SCRATCH / 'results.json'
        results.save(file)
        self.assertEqual([vars(figure) for figure in load(file)],
                         [vars(figure) for figure in results])


class TestSubjects(unittest.TestCase):
    """Peers from the command line."""

    def test_peers(self) -> None:
        """NAME=PATH[,option]"""
        peer = subjects.parse('mine=/bin/sh,dynamic-memslots=on')
        self.assertEqual((peer.name, peer.option),
                         ('mine', 'dynamic-memslots=on'))
        self.assertTrue(peer.dynamic)
        self.assertFalse(subjects.parse('mine=/bin/sh').dynamic)
        for text in ('mine', '=/bin/sh', 'mine=', 'mine=/no/such/file',
                     'mine=/bin/sh,on'):
            with self.assertRaises(ValueError, msg=text):
                subjects.parse(text)

    def test_stock(self) -> None:
        """Its names tell the version."""
        off, on = subjects.stock(environment.qemu_system())
        version = subject('on').version()
        self.assertEqual((off.name, on.name), (f'stock {version}, off',
                                               f'stock {version}, on'))
        self.assertEqual((off.dynamic, on.dynamic), (False, True))

    def test_dead(self) -> None:
        """A QEMU that does not start is an error, not a figure."""
        dead = Subject('dead', '/bin/false')
        error: Optional[Exception] = None
        try:
            Start().run(context(), dead, {'size': 0})
        except (RuntimeError, OSError) as caught:
            error = caught
        self.assertIsNotNone(error)


if __name__ == '__main__':
    unittest.main()
