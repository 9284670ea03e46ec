"""
Ratios of what subjects cost, and whether they are more than noise.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from bench.formula import MIB
from bench.results import Figure, Results
from bench.tables import (Section, Table, device_text, nested_case,
                          value_text)

# Of all these, less is better.
COSTS: Dict[str, Tuple[str, ...]] = {
    'memory': ('kernel', 'QEMU'), 'start': ('start',),
    'growth': ('time',), 'requests': ('time',),
    'migration': ('set-up', 'kernel for it', 'QEMU for it', 'last sync',
                  'dirty-log time', 'load'),
    'monitor': ('longest wait',),
    'vhost': ('time', 'kernel, 1 GiB plugged', 'memory messages'),
    'nested': ('kernel',), 'plans': ()}
# Less than that makes no difference, whatever the ratio is.
FLOOR = {'bytes': 0.75 * MIB, 's': 30e-6, '': 0.5}
# Nor does a smaller part.
NOISE = 0.05


@dataclass(frozen=True)
class Comparison:
    """One subject beside another one."""
    what: str
    subject: Figure
    peer: Figure

    @property
    def ratio(self) -> Optional[float]:
        """How much more the subject costs: below 1 is less."""
        ours, theirs = self.subject.median, self.peer.median
        if ours is None or theirs is None:
            return None
        floor = FLOOR[self.subject.unit]
        if max(ours, theirs) < floor:
            return 1.0
        return max(ours, 0) / theirs if theirs > 0 else float('inf')

    @property
    def behind(self) -> bool:
        """Whether the peer is better, by more than noise."""
        ours, theirs = self.subject.median, self.peer.median
        if ours is None or theirs is None:
            return False
        return (ours > theirs * (1 + NOISE)
                and ours - theirs > FLOOR[self.subject.unit]
                and self.subject.spread[0] > self.peer.spread[1])

    def text(self) -> str:
        """The ratio, for people to read."""
        ratio = self.ratio
        if ratio is None:
            return ''
        if ratio == float('inf'):
            return 'of 0'
        text = f'{ratio:.2f}' if ratio < 10 else f'{ratio:.0f}'
        return text + (' *' if self.behind else '')


def _what(figure: Figure) -> str:
    parameters = dict(figure.parameters)
    words = [figure.measurement]
    if figure.metric != figure.measurement:
        words.append(figure.metric)
    if figure.measurement == 'nested':
        words.append(nested_case(parameters))
        parameters = {}
    size = parameters.pop('size', None)
    beside = int(parameters.pop('beside', 0))
    if size is not None:
        words.append(device_text(int(size), beside) if size else 'no device')
    words += [f'{value} plugged' if key == 'plugged' else str(value)
              for key, value in parameters.items()]
    return ', '.join(words)


def compare(results: Results, subject: str,
            peer: str) -> List[Comparison]:
    """All that both were measured for."""
    found = []
    for figure in list(results):
        if (figure.subject != subject
                or figure.metric not in COSTS[figure.measurement]):
            continue
        parameters = {key.replace(' ', '_'): value
                      for key, value in figure.parameters.items()}
        other = results.find(figure.measurement, figure.metric, peer,
                             **parameters)
        if other is not None:
            found.append(Comparison(_what(figure), figure, other))
    return found


def pairs(results: Results) -> List[Tuple[str, str]]:
    """Who is to be compared with whom."""
    peers = [name for name in results.subjects if name not in ('on', 'off')]
    found = [('on', peer) for peer in peers] + [
        ('off', peer) for peer in peers if not results.dynamic(peer)]
    return [pair for pair in found if pair[0] in results.subjects]


def ratios(results: Results) -> Section:
    """All ratios."""
    columns = pairs(results)
    table = Table(['', *(f'{subject} / {peer}'
                         for subject, peer in columns)])
    rows: Dict[str, Dict[Tuple[str, str], str]] = {}
    for pair in columns:
        for comparison in compare(results, *pair):
            rows.setdefault(comparison.what, {})[pair] = comparison.text()
    for what, texts in rows.items():
        if any(texts.values()):
            table.rows.append([what, *(texts.get(pair, '')
                                       for pair in columns)])
    return Section(
        'Ratios', 'Below 1, the first one costs less. A star: the second '
        'one is better by more than noise (the middle halves of what was '
        'measured do not overlap, and it is more than '
        f'{NOISE * 100:.0f} %).', table)


# Why that is so, where it is known.
REASONS = {
    'requests': 'Mapping a memslot is part of the request that needs it '
                'first, and unmapping of the one that needs it last; a '
                'single memslot is mapped at start, at once, plugged or '
                'not. "Start and growth" has both.',
    'vhost': 'The same: memslots are mapped as the machine grows, and the '
             'backend is told.'}
DYNAMIC_REASONS = {
    'requests': 'The blocks lie all over the device. Memslots are smaller at '
                'its start, where guests plug first, and larger behind: '
                'see "Start and growth". With memslot-min-size=4G, those '
                'of 1 TiB are as equal as the peer\'s.'}


def _reason(one: Comparison, dynamic: bool) -> str:
    reasons = DYNAMIC_REASONS if dynamic else REASONS
    measurement, metric = one.subject.measurement, one.subject.metric
    return reasons.get(f'{measurement}, {metric}',
                       reasons.get(measurement, ''))


def worse(results: Results) -> Section:
    """Where a peer is better."""
    table = Table(['', 'Subject', 'Peer', 'Ratio', 'Why'])
    for subject, peer in pairs(results):
        for one in compare(results, subject, peer):
            if one.behind:
                unit = one.subject.unit
                table.rows.append([
                    one.what,
                    f'{subject}: {value_text(one.subject.median or 0, unit)}',
                    f'{peer}: {value_text(one.peer.median or 0, unit)}',
                    one.text().rstrip(' *'),
                    _reason(one, results.dynamic(peer))])
    if not table.rows:
        table.rows.append(['nowhere', '', '', '', ''])
    return Section('Where a peer is better', 'By more than noise.', table)
