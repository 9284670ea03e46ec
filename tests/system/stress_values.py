"""
What is written to memory, and comparisons.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import functools
import random

from qemu.qmp import ExecuteError

from stress_memory import PAGE
from vm import Disagreement


@functools.lru_cache(maxsize=4096)
def pattern(stamp: int) -> bytes:
    """What is written to a page for a number."""
    if not stamp:
        return bytes(PAGE)
    data = random.Random(stamp).randbytes(PAGE - 8)
    return stamp.to_bytes(8, 'little') + data


def read_stamp(data: bytes) -> str:
    """The number that was written to a page."""
    stamp = int.from_bytes(data[:8], 'little')
    return f'{stamp}' if data == pattern(stamp) else 'garbage'


def agree(what: str, shown: object, expected: object) -> None:
    """See that the machine and the model agree."""
    if shown != expected:
        raise Disagreement(f'{what}: {shown}, expected: {expected}')


def see_migrating(error: ExecuteError) -> None:
    """See that a command was refused because of a migration."""
    if 'not allowed while migrating' not in str(error):
        raise error
