"""
How the CPU for KVM is chosen, with QEMUs that are only made up.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import io
import os
import tempfile
import unittest
from pathlib import Path
from typing import Callable
from unittest import mock

import environment
import kvm

MSR = 'qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69'
# Answers like a QEMU that is told to quit, unless $hostile matches its CPU.
QEMU = f'''#!/bin/sh
case " $* " in
*" -accel kvm "*) ;;
*) exit 3 ;;
esac
while [ "$1" != -cpu ]; do shift; done
case $2 in
@hostile@)
    echo 'qemu-system-x86_64: warning: of something else' >&2
    echo '{MSR}' >&2
    kill -ABRT $$ ;;
esac
@body@
'''
QUITS = 'read line && read line && case $line in *quit*) exit 0;; esac; exit 4'


class Scratch(unittest.TestCase):
    """A directory of its own for each test."""

    def setUp(self) -> None:
        # pylint: disable=consider-using-with
        self.directory = Path(self.enterContext(
            tempfile.TemporaryDirectory(prefix='virtio-mem-')))

    def qemu(self, hostile: str, body: str = QUITS) -> str:
        """A QEMU that aborts with CPUs that match a pattern."""
        path = self.directory / 'qemu-system-x86_64'
        path.write_text(QEMU.replace('@hostile@', hostile)
                        .replace('@body@', body), 'utf-8')
        path.chmod(0o755)
        return str(path)


class TestChoice(Scratch):
    """The CPU for KVM."""

    def setUp(self) -> None:
        super().setUp()
        # Anything that can be opened will do.
        self.enterContext(mock.patch.object(kvm, 'DEVICE', '/dev/null'))

    def choose(self, hostile: str, body: str = QUITS) -> kvm.Choice:
        """What is chosen for such a QEMU."""
        qemu = self.qemu(hostile, body)
        return kvm.choose(lambda: qemu)

    def test_any(self) -> None:
        """As on Intel's CPUs: all of the host's features."""
        choice = self.choose('none')
        self.assertEqual(choice, kvm.Choice('host'))
        self.assertEqual(str(choice), 'KVM: -cpu host')

    def test_without_feature(self) -> None:
        """As on some of AMD's: one of the features is refused."""
        choice = self.choose('host|host,+*')
        self.assertEqual(choice.cpu, 'host,-arch-capabilities')
        self.assertEqual(
            str(choice), 'KVM: -cpu host,-arch-capabilities '
                         f'(with -cpu host: {MSR})')

    def test_none(self) -> None:
        """Where QEMU starts with no CPU, all that it says is told."""
        choice = self.choose('*')
        self.assertIsNone(choice.cpu)
        self.assertEqual(
            str(choice), f'KVM cannot be used: with -cpu host: {MSR}; '
                         f'with -cpu host,-arch-capabilities: {MSR}')

    def test_hangs(self) -> None:
        """A QEMU that does not end is no better."""
        with mock.patch.object(kvm, 'TIMEOUT', 0.2):
            choice = self.choose('none', 'exec sleep 60')
        self.assertIsNone(choice.cpu)
        self.assertIn('QEMU has not ended', str(choice))

    def test_no_device(self) -> None:
        """Without KVM, no QEMU has to be there."""
        with mock.patch.object(kvm, 'DEVICE', '/nowhere'):
            choice = kvm.choose(lambda: self.fail('a QEMU is asked for'))
        self.assertEqual(str(choice), 'KVM cannot be used: /nowhere: '
                                      'No such file or directory')

    def test_no_guest(self) -> None:
        """A guest that does not come up."""
        for body, reason in (('exit 1', f'QEMU exits: {MSR}'),
                             ('exit 0', 'QEMU exits: it does not say why')):
            with self.subTest(reason):
                qemu = self.qemu('host' if MSR in reason else 'none', body)
                self.assertEqual(
                    kvm.why_no_guest(qemu, self.directory, 'host'), reason)


class TestEnvironment(Scratch):
    """What tests get to see of that."""

    def setUp(self) -> None:
        super().setUp()
        # pylint: disable-next=protected-access
        for cached in [environment.kvm_choice, environment._why_no_guest]:
            # Another test may have asked, or will.
            clear: Callable[[], None] = getattr(cached, 'cache_clear')
            clear()
            self.addCleanup(clear)
        self.enterContext(mock.patch.object(kvm, 'DEVICE', '/dev/null'))
        # What is said here is not of this machine.
        self.output = self.enterContext(
            contextlib.redirect_stdout(io.StringIO()))
        # The QEMU to be tested is not asked.
        self.enterContext(mock.patch.dict(os.environ, {
            'QEMU_SYSTEM': '/nowhere', 'REQUIRE': ''}))
        self.enterContext(mock.patch.object(
            environment, 'image', return_value=self.directory))

    def use(self, hostile: str, body: str = QUITS) -> None:
        """Have such a QEMU as the stock one."""
        self.enterContext(mock.patch.object(
            environment, 'stock_qemu',
            return_value=self.qemu(hostile, body)))

    def test_kvm(self) -> None:
        """The stock QEMU's word counts."""
        self.use('host')
        self.assertTrue(environment.has_kvm())
        self.assertEqual(environment.require_kvm(), kvm.CPUS[1])
        self.assertEqual(self.output.getvalue(),
                         f'# note: {environment.kvm_choice()}\n')

    def test_no_kvm(self) -> None:
        """Tests that need it are skipped, unless they have to run."""
        self.use('*')
        self.assertFalse(environment.has_kvm())
        with self.assertRaisesRegex(unittest.SkipTest, MSR):
            environment.require_kvm()
        with self.assertRaisesRegex(unittest.SkipTest, MSR):
            environment.accelerator('kvm')
        os.environ['REQUIRE'] = 'net,kvm'
        with self.assertRaisesRegex(AssertionError, MSR):
            environment.require_kvm()

    def test_no_guest(self) -> None:
        """KVM that boots no guest is KVM all the same."""
        self.use('none')
        with self.assertRaisesRegex(unittest.SkipTest, 'no guest with KVM'):
            environment.accelerator('kvm')
        os.environ['REQUIRE'] = 'kvm'
        self.assertEqual(environment.require_kvm(), 'host')
        with self.assertRaisesRegex(unittest.SkipTest, 'no guest with KVM'):
            environment.accelerator('kvm')
        os.environ['REQUIRE'] = 'guest'
        with self.assertRaisesRegex(AssertionError, 'no guest with KVM'):
            environment.accelerator('kvm')
        self.assertEqual(environment.accelerator('tcg').name, 'tcg')


if __name__ == '__main__':
    unittest.main()
