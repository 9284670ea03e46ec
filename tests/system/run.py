"""
Run a file of unit tests and print what comes of it as TAP.

usage: run.py FILE [TEST...]

Each test is one line, and so is each sub-test of it. Names of tests
(CLASS.method) limit the run to these.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import importlib.util
import sys
import traceback
import unittest
from pathlib import Path
from types import ModuleType, TracebackType
from typing import List, Optional, Tuple, Type, Union

ExcInfo = Union[
    Tuple[Type[BaseException], BaseException, TracebackType],
    Tuple[None, None, None],
]


class TAPResult(unittest.TestResult):
    """A test result that prints TAP."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = 0

    def _print(self, verdict: str, test: unittest.TestCase,
               directive: str = '') -> None:
        self._lines += 1
        name = test.id().replace('#', '')
        print(f'{verdict} {self._lines} {name}{directive}', flush=True)

    @staticmethod
    def _explain(err: ExcInfo) -> None:
        for line in ''.join(traceback.format_exception(*err)).splitlines():
            print(f'# {line}', flush=True)

    @staticmethod
    def _one_line(text: str) -> str:
        return ' '.join(text.split())

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self._print('ok', test)

    def addFailure(self, test: unittest.TestCase, err: ExcInfo) -> None:
        super().addFailure(test, err)
        self._explain(err)
        self._print('not ok', test)

    def addError(self, test: unittest.TestCase, err: ExcInfo) -> None:
        super().addError(test, err)
        self._explain(err)
        self._print('not ok', test)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase,
                   err: Optional[ExcInfo]) -> None:
        super().addSubTest(test, subtest, err)
        if err is None:
            self._print('ok', subtest)
        else:
            self._explain(err)
            self._print('not ok', subtest)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._print('ok', test, f' # SKIP {self._one_line(reason)}')

    def addExpectedFailure(self, test: unittest.TestCase,
                           err: ExcInfo) -> None:
        super().addExpectedFailure(test, err)
        self._print('not ok', test, ' # TODO')

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self._print('not ok', test)

    def print_plan(self) -> None:
        """End the output; reports the number of lines printed so far."""
        print(f'1..{self._lines}', flush=True)


def load(path: Path) -> ModuleType:
    """Import a file of tests."""
    # Tests import the modules beside them, and leave the sources as they are.
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def main(arguments: List[str]) -> int:
    """Run the tests of one file."""
    if not arguments:
        print('usage: run.py FILE [TEST...]', file=sys.stderr)
        return 2
    module = load(Path(arguments[0]).resolve())
    loader = unittest.defaultTestLoader
    if arguments[1:]:
        suite = loader.loadTestsFromNames(arguments[1:], module)
    else:
        suite = loader.loadTestsFromModule(module)
    result = TAPResult()
    suite.run(result)
    result.print_plan()
    return 0 if result.wasSuccessful() else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
