"""
What a measurement is, and what comes of it.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Union

from bench.formula import MOST_OF_A_MEMSLOT, Flavour
from bench.subjects import Subject

# Where a device is more than KVM can do
IMPOSSIBLE = 'does not start'

# Sizes, say, that a figure belongs to
Parameters = Dict[str, Union[int, str]]


@dataclass(frozen=True)
class Sample:
    """One figure, or why there is none."""
    metric: str
    unit: str
    value: Optional[float]
    parameters: Parameters = field(default_factory=dict)
    # What the formula gives, where there is one
    predicted: Optional[float] = None
    # Why it was left out
    reason: str = ''


@dataclass(frozen=True)
class Context:
    """What all measurements need to know."""
    build: Path
    library: Path
    # For files that are short-lived
    scratch: Path
    flavour: Flavour
    # How much memory a case may have the kernel spend
    limit: int
    quick: bool
    # Tells what is going on, in a few words
    progress: Callable[[str], None]

    def affords(self, need: float) -> Optional[str]:
        """Why a case that needs so much memory is left out, or None."""
        if need <= self.limit:
            return None
        return (f'would take {need / (1 << 30):.1f} GiB of kernel memory, '
                f'{self.limit / (1 << 30):.1f} GiB may be used')

    def affords_device(self, subject: Subject, size: int,
                       is_logged: bool = False) -> Optional[str]:
        """Why a device with nothing or little plugged is left out, or None."""
        if subject.dynamic:
            return None
        if size > MOST_OF_A_MEMSLOT:
            return f'{IMPOSSIBLE}: more than a memslot of KVM can hold'
        return self.affords(self.flavour.bytes(size) + (
            self.flavour.dirty_log(size) if is_logged else 0))


class Measurement:
    """The same work for each subject."""
    name: str
    # Whether once is as good as many times
    exact = False
    # Seconds that one run takes for one subject, until it is known
    estimate = 5.0

    def points(self, quick: bool) -> List[Parameters]:
        """What to run it with, one after the other."""
        raise NotImplementedError

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        """Measure."""
        raise NotImplementedError

    def close(self) -> None:
        """There is no more to be run."""
