"""
What is skipped where a machine lacks what a test needs, and what is not.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Dict, List, Tuple

import environment
import kvm
import needs

RUN = Path(__file__).resolve().with_name('run.py')
TOY = '''
import unittest
import needs

class Toy(unittest.TestCase):
    def test_kvm(self):
        needs.lack(needs.KVM, 'no KVM')

    def test_net(self):
        needs.lack(needs.NET, 'no network')

    def test_part(self):
        needs.insist(needs.ROOT, 'not all of it')
'''


class TestRequire(unittest.TestCase):
    """The environment variable REQUIRE."""

    def setUp(self) -> None:
        # pylint: disable=consider-using-with
        self.directory = Path(self.enterContext(
            tempfile.TemporaryDirectory(prefix='virtio-mem-')))

    def run_here(self, *command: str, require: str, status: int) -> List[str]:
        """Run tests, return their results."""
        result = subprocess.run(command, env={**os.environ,
                                              'REQUIRE': require},
                                stdin=subprocess.DEVNULL, text=True,
                                stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, check=False)
        self.assertEqual(result.returncode, status, result.stdout)
        return [line for line in result.stdout.splitlines()
                if line.startswith(('ok ', 'not ok '))]

    def test_python(self) -> None:
        """Tests in Python."""
        toy = self.directory / 'test_toy.py'
        toy.write_text(TOY, 'utf-8')
        tests = ['test_kvm', 'test_net', 'test_part']
        skips: Dict[str, str] = {'test_kvm': ' # SKIP no KVM',
                                 'test_net': ' # SKIP no network'}
        cases: List[Tuple[str, List[str]]] = [
            ('', []), ('kvm', ['test_kvm']), ('root', ['test_part']),
            ('guest', []), ('kvm,root,net', tests)]
        for require, failing in cases:
            with self.subTest(require=require):
                self.assertEqual(
                    self.run_here(
                        sys.executable, str(RUN), str(toy), require=require,
                        status=1 if failing else 0),
                    [f'not ok {number} test_toy.Toy.{name}'
                     if name in failing else
                     f'ok {number} test_toy.Toy.{name}{skips.get(name, "")}'
                     for number, name in enumerate(tests, 1)])

    def qtest(self, name: str) -> str:
        """A program with tests in C."""
        return str(environment.build_dir() / 'qemu-build/tests/qtest' / name)

    def require_root(self, *command: str) -> None:
        """Skip the test where a command does not work."""
        result = subprocess.run([*command, 'true'], check=False, text=True,
                                stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
        if result.returncode:
            needs.lack(needs.ROOT, result.stdout)

    def test_qtest_kvm(self) -> None:
        """Tests in C, where /dev/kvm is nothing that can be opened."""
        if not Path(kvm.DEVICE).exists():
            prefix: List[str] = []
        else:
            path = self.directory / 'socket'
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
            prefix = ['unshare', '--mount', 'sh', '-c',
                      f'mount --bind {path} {kvm.DEVICE} && exec "$@"', 'sh']
            self.require_root(*prefix)
        command = [*prefix, self.qtest('kvm-memslots-test'), '--tap', '-k']
        for require in ('', 'root,net'):
            self.assertEqual(
                self.run_here(*command, require=require, status=0),
                ['ok 1 /x86_64/kvm-memslots # SKIP /dev/kvm can\'t be opened'])
        self.assertEqual(
            self.run_here(*command, require='kvm,root', status=1),
            ['not ok 1 /x86_64/kvm-memslots'])

    def test_qtest_root(self) -> None:
        """Tests in C that may not mount anything."""
        prefix: List[str] = []
        if os.geteuid() == 0:
            prefix = ['setpriv', '--bounding-set=-sys_admin']
            self.require_root(*prefix)
        test = '/x86_64/virtio-mem/qtest/prealloc-fails/inaccessible'
        command = [*prefix, self.qtest('virtio-mem-test'), '--tap', '-k',
                   '-p', test]
        skipped, = self.run_here(*command, require='kvm', status=0)
        self.assertIn('# SKIP cannot mount a tmpfs: ', skipped)
        self.assertEqual(self.run_here(*command, require='root', status=1),
                         [f'not ok 1 {test}'])


if __name__ == '__main__':
    unittest.main()
