"""
How much of a device is plugged when its memory is measured.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from typing import List, Tuple

from bench.formula import GIB, MIB

# Names, and parts of the device
STAGES: List[Tuple[str, float]] = [
    ('0', 0), ('1 GiB', 0), ('1 %', 0.01), ('10 %', 0.1), ('50 %', 0.5),
    ('100 %', 1)]
# Whatever the size of blocks is, within reason
ALIGNMENT = 128 * MIB


def plugged(stage: str, size: int) -> int:
    """How many bytes are plugged in a stage."""
    if stage.endswith('GiB'):
        return int(stage.split()[0]) * GIB
    return int(size * dict(STAGES)[stage]) // ALIGNMENT * ALIGNMENT


def stages(size: int) -> List[Tuple[str, int]]:
    """Names and bytes, from few to many."""
    return sorted(((name, plugged(name, size)) for name, _part in STAGES),
                  key=lambda stage: stage[1])
