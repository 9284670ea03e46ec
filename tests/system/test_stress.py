"""
Machines with memory devices, driven by random steps and compared with a model
after each of them; see stress.py. And the same with machines that are only
made up and have bugs, which have to be found.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import shlex
import unittest
from collections import Counter
from pathlib import Path
from typing import List, Optional, Type

import environment
from stress import (Failure, Pair, Shrinker, Stress, command, parse_steps,
                    run)
from stress_values import agree
from stress_model import Model, Setup, Step
from stress_steps import Chooser, limited, replay, without_device
from vm import GIB, MIB

STEPS = 200
# Together, these take all kinds of steps, and often.
SEEDS = {'kvm': (564, 665, 784), 'tcg': (1264, 1389)}
# Without machines, steps cost nothing.
FAKE_SEEDS = range(20)
FAKE_STEPS = 600
# By then, any seed has come across any bug.
FAKE_STEPS_TO_BUG = 10000


class FakeMachine:
    """A machine that is another model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.closed = False

    def take(self, step: Step) -> str:
        """Take a step, and tell its outcome."""
        return self.model.take(step)

    def check(self, model: Model, _step: Optional[Step]) -> None:
        """See that all is as the model has it."""
        agree('devices', self.model.devices, model.devices)

    def post_mortem(self, _error: Exception) -> Optional[str]:
        """What is known of its end, if it has come."""
        return None

    def close(self) -> None:
        """End it."""
        self.closed = True


class LosesMemory(Model):
    """A destination has less plugged than the source had."""

    def migrate_finish(self) -> str:
        outcome = super().migrate_finish()
        for device in self.devices:
            if device.multiple:
                device.plugged = device.plugged - {max(device.plugged,
                                                       default=0)}
        return outcome


class KeepsMemory(Model):
    """What is unplugged is not gone."""

    def unplug(self, index: int, offset: int, blocks: int) -> str:
        device = self.devices[index]
        contents = device.contents
        outcome = super().unplug(index, offset, blocks)
        device.contents = contents
        return outcome


class IsBusy(Model):
    """With a DIMM there, the second device has no time."""

    def plug(self, index: int, offset: int, blocks: int) -> str:
        outcome = super().plug(index, offset, blocks)
        if self.dimms and index and outcome == 'ACK':
            return 'BUSY'
        return outcome


class Dies(Model):
    """A snapshot with a disk ends it."""

    def savevm(self, name: int) -> str:
        if self.disk:
            raise EOFError
        return super().savevm(name)


class DeadMachine(FakeMachine):
    """A machine the end of which is noticed."""

    def post_mortem(self, _error: Exception) -> str:
        return 'exit code -6'


class TestShrinker(unittest.TestCase):
    """Bugs that are known are found, and few steps are left."""

    def shrink(self, buggy: Type[Model], seed: int,
               machine: Type[FakeMachine] = FakeMachine) -> List[str]:
        """The kinds of the steps that are left."""
        chooser = Chooser(seed)

        def make() -> Pair:
            return Pair(Model(chooser.setup),
                        machine(buggy(chooser.setup)))
        with self.assertRaises(Failure, msg=f'seed {seed}') as failure:
            run(make(), limited(chooser, FAKE_STEPS_TO_BUG), Counter())
        steps = failure.exception.taken
        shrinker = Shrinker(make, failure.exception, FAKE_STEPS_TO_BUG)
        self.assertTrue(shrinker.reproduces())
        left = shrinker.shrink()

        # None of the steps can be left out.
        for number in range(len(left)):
            again = Shrinker(make, failure.exception)
            again.failure.taken = left[:number] + left[number + 1:]
            self.assertFalse(again.reproduces(), left)
        # What is printed is what fails.
        with self.assertRaises(Failure):
            run(make(), replay(parse_steps('; '.join(map(str, left)))),
                Counter())
        self.tries.append(shrinker.tries)
        self.steps.append(len(steps))
        return [step.kind for step in left]

    def setUp(self) -> None:
        self.tries: List[int] = []
        self.steps: List[int] = []

    def assert_shrinks(self, buggy: Type[Model], *expected: List[str],
                       machine: Type[FakeMachine] = FakeMachine) -> None:
        """
        All seeds come to some of these kinds of steps, in some order. A few
        may be needed where one would do in another place.
        """
        for seed in FAKE_SEEDS:
            kinds = self.shrink(buggy, seed, machine)
            self.assertIn(set(kinds), [set(steps) for steps in expected],
                          f'seed {seed}')
            self.assertLessEqual(max(Counter(kinds).values()), 4, kinds)
        steps = sum(self.steps) // len(self.steps)
        print(f'# {buggy.__name__}: {steps} steps shrink to '
              f'{len(expected[0])} in {min(self.tries)} to '
              f'{max(self.tries)} tries', flush=True)

    def test_migration(self) -> None:
        """Memory is lost on the way."""
        self.assert_shrinks(LosesMemory, [
            'device_add', 'request', 'plug', 'migrate', 'migrate_finish'])

    def test_contents(self) -> None:
        """Memory is not discarded."""
        self.assert_shrinks(
            KeepsMemory,
            ['device_add', 'request', 'plug', 'write', 'unplug'])

    def test_two_devices(self) -> None:
        """A device that is needed stays."""
        self.assert_shrinks(IsBusy, [
            'device_add', 'device_add', 'dimm_add', 'request', 'plug'])

    def test_death(self) -> None:
        """The machine ends."""
        self.assert_shrinks(Dies, ['disk_attach', 'savevm'],
                            machine=DeadMachine)

    def test_no_bug(self) -> None:
        """A model agrees with itself, and machines are closed."""
        for seed in FAKE_SEEDS:
            chooser = Chooser(seed)
            machine = FakeMachine(Model(chooser.setup))
            outcomes: 'Counter[tuple[str, str]]' = Counter()
            taken = run(Pair(Model(chooser.setup), machine),
                        limited(chooser, FAKE_STEPS), outcomes)
            self.assertEqual((taken, sum(outcomes.values())),
                             (FAKE_STEPS, FAKE_STEPS))
            self.assertTrue(machine.closed)

    def test_another_failure(self) -> None:
        """What fails in another way is not what is looked for."""
        steps = parse_steps('disk_attach 1; savevm 0')
        with self.assertRaises(Failure) as failure:
            run(Pair(Model(Setup()), DeadMachine(Dies(Setup()))),
                replay(steps), Counter())
        shrinker = Shrinker(
            lambda: Pair(Model(Setup()), FakeMachine(Dies(Setup()))),
            failure.exception)
        self.assertFalse(shrinker.reproduces())


class TestSteps(unittest.TestCase):
    """Steps and the model by themselves."""

    def test_text(self) -> None:
        """Steps are written and read."""
        for step in (Step('reset'), Step('plug', (0, 1 << 40, 3)),
                     Step('unplug', (2, -4096, 0xffff))):
            self.assertEqual(Step.parse(str(step)), step)
        words = shlex.split(command(
            'tcg', Setup(listener=True),
            parse_steps('plug 0 0x200000 1;reset')))
        self.assertEqual(words[-5:], ['--accel', 'tcg', '--listener',
                                      '--replay', 'plug 0 0x200000 1; reset'])
        self.assertTrue(Path(words[-6]).is_absolute())

    def test_without_device(self) -> None:
        """Other devices move up."""
        steps = parse_steps(
            'device_add 1 1 0 0 0; device_add 2 1 0 0 0; '
            'device_add 3 1 0 0 0; write 0 4 5; write 1 6 7; write 2 8 9; '
            'network_start 0 4; network_start 1 4; network_start 2 4; '
            'network_start 8 0; bar_move 0 1 0; bar_move 0 2 4; '
            'bar_move 0 3 4; bar_move 0 4 4; migrate 6 1 0')
        self.assertEqual(without_device(steps, 1), parse_steps(
            'device_add 1 1 0 0 0; device_add 3 1 0 0 0; write 0 4 5; '
            'write 1 8 9; network_start 0 4; network_start 1 4; '
            'network_start 8 0; bar_move 0 1 0; bar_move 0 2 4; '
            'bar_move 0 3 4; migrate 2 1 0'))
        steps += parse_steps('device_remove')
        self.assertEqual(without_device(steps, 1), steps)

    def test_same_seed(self) -> None:
        """A seed stands for its steps."""
        for seed in FAKE_SEEDS:
            first, second = Chooser(seed), Chooser(seed)
            model = Model(first.setup)
            for _ in range(50):
                step = first(model)
                self.assertEqual(step, second(model))
                model.take(step)

    def test_every_step(self) -> None:
        """There is none that no seed chooses."""
        found = set()
        for seed in FAKE_SEEDS:
            chooser = Chooser(seed)
            model = Model(chooser.setup)
            for _ in range(FAKE_STEPS):
                step = chooser(model)
                found.add((step.kind, model.take(step)))
        for outcome in ('ACK', 'NACK', 'BUSY', 'ERROR'):
            self.assertIn(('plug', outcome), found)
            self.assertIn(('plug_taken', outcome), found)
        for kind in ('request', 'request_taken', 'device_add',
                     'device_remove', 'dimm_add', 'disk_attach',
                     'disk_detach', 'network_attach', 'network_detach'):
            self.assertLessEqual({(kind, 'ok'), (kind, 'refused')}, found)
        for outcome in ('backend', 'no backend'):
            self.assertIn(('network_start', outcome), found)
        for kind in ('migrate_finish', 'migrate_cancel', 'migrate_kill',
                     'migrate_wrong', 'disk_in', 'disk_out', 'disk_begin',
                     'disk_end', 'network_in', 'network_out', 'bar_move',
                     'bar_write', 'measure', 'measure_end', 'loadvm', 'dump',
                     'dimm_remove'):
            self.assertIn(kind, {kind for kind, _ in found})

    def test_rule(self) -> None:
        """What is mapped, where that is easily said."""
        size, block = 5 * GIB // 2, 2 * MIB
        for inaccessible, multiple, expected in (
                (True, True, [(GIB, GIB), (2 * GIB, GIB // 2)]),
                (False, True, [(0, GIB), (GIB, GIB), (2 * GIB, GIB // 2)]),
                (True, False, [(0, size)])):
            model = Model(Setup())
            model.device_add(size, block, inaccessible, True, multiple)
            device = model.devices[0]
            self.assertEqual(device.mapped(), [] if multiple else expected)
            model.request(0, 2 * GIB)
            # The last block of one memslot, the first one of the next
            self.assertEqual(model.plug(0, 2 * GIB - block, 2), 'ACK')
            self.assertEqual(device.mapped(), expected)
            self.assertEqual(model.unplug(0, 2 * GIB - block, 2), 'ACK')
            self.assertEqual(device.mapped(),
                             [] if inaccessible and multiple else expected)


class TestKnown(unittest.TestCase):
    """Steps that failed once."""
    DISK = ('device_add 0x80000000 0x200000 1 1 1; request 0 0x40000000; '
            'plug 0 0 1; disk_attach 1; dimm_add 0xc000000 1; disk_in 0 0 1; '
            'reset; dimm_remove 1; ')
    AGAIN = 'plug 0 0 1; disk_in 0 0 2'
    RINGS = ('device_add 0x40000000 0x200000 1 1 1; request 0 0x40000000; '
             'plug 0 0 1; network_attach 509 2; network_start 0 0; '
             'unplug 0 0 1; ')

    def test_memory_gone(self) -> None:
        """Memory goes while the disk's backend is not told."""
        Stress('tcg').replay(Setup(), parse_steps(self.DISK + self.AGAIN))

    def test_memory_replaced(self) -> None:
        """Other memory comes to where it was."""
        Stress('tcg').replay(Setup(), parse_steps(
            self.DISK + 'dimm_add 0xc000000 1; ' + self.AGAIN))

    def test_freed_meanwhile(self) -> None:
        """Memory is freed while dirty pages start to be noted."""
        Stress('tcg').replay(Setup(), parse_steps(
            'device_add 0x80000000 0x200000 1 1 1; '
            + 20 * 'dimm_add 0xc000000 0; dimm_remove 0; savevm 0; '))

    def test_devices_gone(self) -> None:
        """Devices go while a memory map that they were in still exists."""
        environment.require_kvm()
        for _ in range(3):
            Stress('kvm').replay(Setup(listener=True), parse_steps(
                'device_add 0x80000000 0x400000 1 0 1; '
                'device_add 0x108e00000 0x100000 0 0 1; '
                'device_add 0x100000000 0x1000000 1 0 1; '
                'restart 1; device_remove; '
                'device_add 0x300000000 0x200000 1 0 1; device_remove'))

    def test_loaded_while_stopped(self) -> None:
        """A snapshot is loaded into a machine that does not run."""
        for _ in range(3):
            Stress('tcg').replay(Setup(), parse_steps(
                'device_add 0x6c000000 0x1000000 1 1 1; '
                'request 0 0x6c000000; plug 0 0x63000000 9; '
                'write 0 0x6a000000 10; savevm 1; stop; loadvm 1; '
                # One that is still to be discarded must not be, either.
                'cont; unplug 0 0x63000000 9; loadvm 1; unplug_all 0; '
                'loadvm 1'))


    def test_pairs_of_queues(self) -> None:
        """Memory goes that several pairs of queues have their rings in."""
        Stress('tcg').replay(Setup(), parse_steps(self.RINGS))

    def test_name_again(self) -> None:
        """
        Memory of a name comes while rings are in memory that had it before.
        """
        for size in 0x40000000, 0x80000000:
            Stress('tcg').replay(Setup(), parse_steps(
                self.RINGS + 'request 0 0; device_remove; '
                f'device_add {size} 0x200000 1 1 1; request 0 {size}; '
                'plug 0 0x200000 1; write 0 0x200000 1'))


class Machines:
    """What is tested with each accelerator."""

    class Base(unittest.TestCase):
        """Real machines."""
        accel: str

        def test_seeds(self) -> None:
            """Seeds that are always the same; "make stress" has others."""
            environment.build_dir()
            stress = Stress(self.accel)
            for seed in SEEDS[self.accel]:
                print(f'# seed {seed}, {STEPS} steps, {self.accel}',
                      flush=True)
                with self.subTest(seed=seed):
                    try:
                        stress.seed(seed, STEPS)
                    except Failure as failure:
                        # All else has been printed.
                        self.fail(str(failure))
            stress.print_summary()


class TestTCG(Machines.Base):
    """With emulation."""
    accel = 'tcg'


class TestKVM(Machines.Base):
    """With KVM."""
    accel = 'kvm'

    def setUp(self) -> None:
        environment.require_kvm()


if __name__ == '__main__':
    unittest.main()
