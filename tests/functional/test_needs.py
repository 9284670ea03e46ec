"""
What is skipped where a machine lacks what a test needs, and what is not.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Dict, List, Tuple

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


if __name__ == '__main__':
    unittest.main()
