"""
All figures of a run, and what it ran on: kept as JSON.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import hashlib
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from bench.measurement import Parameters, Sample

FORMAT = 1
# Of the kinds of spread there are, this one does not mind a single outlier.
QUARTILES = 4


# Each is one line of the JSON.
# pylint: disable=too-many-instance-attributes
@dataclass
class Figure:
    """What was measured in all rounds, or why it was not."""
    measurement: str
    subject: str
    parameters: Parameters
    metric: str
    unit: str
    values: List[float] = field(default_factory=list)
    predicted: Optional[float] = None
    reason: str = ''

    @property
    def median(self) -> Optional[float]:
        """The middle of what was measured."""
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self) -> Tuple[float, float]:
        """Between these two is the middle half of what was measured."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        cuts = statistics.quantiles(self.values, n=QUARTILES,
                                    method='inclusive')
        return cuts[0], cuts[-1]

    def key(self) -> Tuple[Any, ...]:
        """What there is one figure for."""
        return (self.measurement, self.subject, self.metric,
                tuple(sorted(self.parameters.items())))


class Results:
    """The figures of a run."""

    def __init__(self, about: Dict[str, Any]) -> None:
        """@about: machine, subjects, rounds."""
        self.about = about
        self._figures: Dict[Tuple[Any, ...], Figure] = {}

    def add(self, measurement: str, subject: str, point: Parameters,
            sample: Sample) -> None:
        """One more."""
        figure = Figure(measurement, subject, {**point, **sample.parameters},
                        sample.metric, sample.unit)
        figure = self._figures.setdefault(figure.key(), figure)
        if sample.value is not None:
            figure.values.append(round(sample.value, 9))
        figure.predicted = sample.predicted
        figure.reason = sample.reason

    def insert(self, figure: Figure) -> None:
        """One that is complete."""
        self._figures[figure.key()] = figure

    def __iter__(self) -> Iterator[Figure]:
        return iter(self._figures.values())

    def find(self, measurement: str, metric: str, subject: str,
             **parameters: Any) -> Optional[Figure]:
        """A figure; underscores in names of parameters stand for blanks."""
        wanted = {name.replace('_', ' '): value
                  for name, value in parameters.items()}
        return self._figures.get(Figure(
            measurement, subject, wanted, metric, '').key())

    def values_of(self, measurement: str, parameter: str) -> List[Any]:
        """The values of a parameter, in the order of the measurement."""
        return list(dict.fromkeys(
            figure.parameters[parameter] for figure in self
            if figure.measurement == measurement
            and parameter in figure.parameters))

    @property
    def subjects(self) -> List[str]:
        """Names of what was measured."""
        return [subject['name'] for subject in self.about['subjects']]

    def dynamic(self, subject: str) -> bool:
        """Whether a subject's devices are meant to have many memslots."""
        return any(entry['option'].endswith('=on')
                   for entry in self.about['subjects']
                   if entry['name'] == subject)

    def save(self, file: Path) -> None:
        """Write it all."""
        figures = [{key: value for key, value in vars(figure).items()
                    if key == 'unit' or value not in (None, '', [])}
                   for figure in self]
        # One line a figure: to be compared, and small.
        lines = ',\n'.join(json.dumps(figure) for figure in figures)
        about = json.dumps(self.about, indent=1)
        file.write_text(f'{{"format": {FORMAT},\n"about": {about},\n'
                        f'"figures": [\n{lines}\n]}}\n', 'utf-8')


def load(file: Path) -> Results:
    """What save() wrote."""
    data = json.loads(file.read_text('utf-8'))
    if data['format'] != FORMAT:
        raise ValueError(f'{file} has format {data["format"]}, '
                         f'not {FORMAT}')
    results = Results(data['about'])
    for entry in data['figures']:
        figure = Figure(**entry)
        results.insert(figure)
    return results


def digest(file: Path) -> str:
    """Tells whether something was made of these results."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
