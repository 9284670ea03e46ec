"""
The figures of a run as plots.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from bench import tables
from bench.formula import GIB, MIB, TIB
from bench.results import Figure, Results, digest
from bench.stages import plugged, stages
from bench.tables import size_text

COLORS = ('#7f7f7f', '#d9a441', '#1f77b4', '#b2443a', '#6a51a3', '#2a8c55')
WIDTH, HEIGHT = 8.0, 4.6
MADE_OF = 'made of results with SHA-256 '


class Plot:
    """A picture with one or more panels."""

    def __init__(self, results: Results, panels: int = 1,
                 rows: int = 1) -> None:
        # pylint: disable=import-outside-toplevel
        import matplotlib
        matplotlib.use('Agg')
        from matplotlib import pyplot
        matplotlib.rcParams['svg.hashsalt'] = 'virtio-mem'
        # Text stays text: small, and to be searched for.
        matplotlib.rcParams['svg.fonttype'] = 'none'
        self.results = results
        self._pyplot = pyplot
        self._figure, axes = pyplot.subplots(
            rows, panels // rows, squeeze=False,
            figsize=(WIDTH, HEIGHT if rows == 1 else HEIGHT * 1.5))
        self.axes: List[Any] = [axis for row in axes for axis in row]
        for axis in self.axes:
            axis.grid(axis='y', alpha=0.3)
            axis.set_axisbelow(True)
            for side in ('top', 'right'):
                axis.spines[side].set_visible(False)

    def color(self, subject: str) -> str:
        """Each subject has the same in all plots."""
        return COLORS[self.results.subjects.index(subject) % len(COLORS)]

    def legend(self) -> None:
        """One legend for all panels, below them."""
        handles, labels = self.axes[0].get_legend_handles_labels()
        self._figure.legend(handles, labels, loc='lower center', ncols=3,
                            bbox_to_anchor=(0.5, 0.06), fontsize='small',
                            frameon=False)

    def _about(self) -> str:
        machine = self.results.about['machine']
        versions = dict.fromkeys(
            f'QEMU {subject["version"].split()[0]}'
            for subject in self.results.about['subjects'])
        return (f'{machine["cpu"]}, {machine["cpus"]} CPUs, '
                f'{machine["memory"]}; {machine["kernel"]}; '
                f'KVM: {machine["kvm"]}; {", ".join(versions)}')

    def save(self, path: Path, title: str, made_of: str,
             formats: Sequence[str]) -> None:
        """Write it, in several formats."""
        self._figure.suptitle(title, fontsize='medium')
        self._figure.text(0.5, 0.015, self._about(), ha='center',
                          fontsize=5.5, color='#555555')
        self._figure.tight_layout(rect=(0, 0.15, 1, 0.98))
        for suffix in formats:
            metadata: Dict[str, Optional[str]] = {
                'Description': MADE_OF + made_of}
            if suffix == 'svg':
                metadata['Date'] = None
            self._figure.savefig(path.with_suffix(f'.{suffix}'), dpi=120,
                                 metadata=metadata)
        self._pyplot.close(self._figure)


def label(results: Results, subject: str) -> str:
    """What a subject is called in a legend."""
    for entry in results.about['subjects']:
        if entry['name'] == subject:
            version = entry['version'].split()[0]
            option = entry['option']
            if subject in ('on', 'off'):
                return f'with the series, {subject}'
            if version in subject:
                return subject
            return f'{subject}: {version}' + (f', {option}' if option
                                              else '')
    return subject


def _error(figures: Sequence[Figure]) -> List[List[float]]:
    """Distances from medians to quartiles."""
    low, high = [], []
    for figure in figures:
        median = figure.median or 0.0
        low.append(max(median - figure.spread[0], 0))
        high.append(max(figure.spread[1] - median, 0))
    return [low, high]


def _largest_measured(results: Results, measurement: str, metric: str,
                      **parameters: str) -> int:
    """The largest device with which each subject was measured."""
    sizes = results.values_of(measurement, 'size')
    return max((size for size in sizes
                if all((figure := results.find(
                    measurement, metric, subject, size=size, **parameters))
                    and figure.values for subject in results.subjects)),
               default=sizes[0])


def kernel_memory(results: Results) -> Tuple[Plot, str]:
    """Kernel memory by what is plugged."""
    plot = Plot(results)
    axis = plot.axes[0]
    size = _largest_measured(results, 'memory', 'kernel', plugged='0')
    names = [name for name, _bytes in stages(size)]
    for number, subject in enumerate(results.subjects):
        figures = [results.find('memory', 'kernel', subject, size=size,
                                plugged=name) for name in names]
        where = [at + 0.2 * number - 0.1 * (len(results.subjects) - 1)
                 for at, one in enumerate(figures) if one and one.values]
        axis.bar(where, [max(one.median or 0, 0) / MIB
                         for one in figures if one and one.values],
                 0.18, label=label(results, subject),
                 color=plot.color(subject))
    needs = [tables.flavour(results).bytes(plugged(name, size)) / MIB
             for name in names]
    places = range(len(names))
    axis.hlines(needs, [at - 0.42 for at in places],
                [at + 0.42 for at in places], color='black', linewidth=1,
                label='what KVM needs for what is plugged', zorder=3)
    axis.set_yscale('symlog', linthresh=1)
    axis.set_ylim(0, 10000)
    axis.set_xticks(range(len(names)), names)
    axis.set_xlabel(f'plugged of {size_text(size)}')
    axis.set_ylabel('kernel memory, MiB')
    plot.legend()
    return plot, f'Kernel memory for a device of {size_text(size)}'


def _by_size(plot: Plot, measurement: str, metric: str, scale: float,
             **parameters: Any) -> None:
    """A line for each subject, dotted where it is what the formula gives."""
    results, axis = plot.results, plot.axes[0]
    sizes = results.values_of(measurement, 'size')
    for subject in results.subjects:
        figures = [(at, found) for at, size in enumerate(sizes)
                   if (found := results.find(measurement, metric, subject,
                                             size=size, **parameters))]
        seen = [(at, found) for at, found in figures if found.values]
        axis.errorbar([at for at, _figure in seen],
                      [max(found.median or 0, 0) / scale
                       for _at, found in seen],
                      [[error / scale for error in errors] for errors in
                       _error([found for _at, found in seen])],
                      marker='o', markersize=4, capsize=3, elinewidth=1,
                      # Lines that lie on each other are all seen.
                      linewidth=max(4.5 - results.subjects.index(subject), 1),
                      color=plot.color(subject),
                      label=label(results, subject))
        guessed = [(at, found.predicted / scale) for at, found in figures
                   if found.predicted is not None and not found.values]
        if guessed and seen:
            last = (seen[-1][0], max(seen[-1][1].median or 0, 0) / scale)
            axis.plot(*zip(last, *guessed), linestyle=':', marker='o',
                      fillstyle='none', color=plot.color(subject))
    axis.set_xticks(range(len(sizes)), [size_text(size) if size else 'none'
                                        for size in sizes])
    axis.set_xlabel('device')


def kernel_memory_unplugged(results: Results) -> Tuple[Plot, str]:
    """Kernel memory by size, nothing plugged."""
    plot = Plot(results)
    _by_size(plot, 'memory', 'kernel', MIB, plugged='0')
    plot.axes[0].set_yscale('symlog', linthresh=1)
    plot.axes[0].set_ylim(0, plot.axes[0].get_ylim()[1] * 3)
    plot.axes[0].set_ylabel('kernel memory, MiB (dotted: formula)')
    plot.legend()
    return plot, 'Kernel memory with nothing plugged'


def qemu_memory(results: Results) -> Tuple[Plot, str]:
    """QEMU's own memory by size."""
    plot = Plot(results)
    _by_size(plot, 'memory', 'QEMU', MIB, plugged='0')
    plot.axes[0].set_yscale('log')
    plot.axes[0].set_ylabel('anonymous memory, MiB')
    plot.legend()
    return plot, 'QEMU\'s own memory for a device, nothing plugged'


def start(results: Results) -> Tuple[Plot, str]:
    """Time to start."""
    plot = Plot(results)
    _by_size(plot, 'start', 'start', 1.0)
    plot.axes[0].set_yscale('log')
    plot.axes[0].set_ylabel('seconds')
    plot.legend()
    return plot, 'Time from exec to the first QMP command'


def growth(results: Results) -> Tuple[Plot, str]:
    """Start and growth."""
    sizes = results.values_of('growth', 'size')
    plot = Plot(results, len(sizes))
    for axis, size in zip(plot.axes, sizes):
        names = [name for name, _bytes in stages(size)]
        for subject in results.subjects:
            seen = [(at, found) for at, name in enumerate(names)
                    if (found := results.find('growth', 'time', subject,
                                              size=size, plugged=name))
                    and found.values]
            axis.errorbar([at for at, _figure in seen],
                          [found.median for _at, found in seen],
                          _error([found for _at, found in seen]),
                          marker='o', markersize=4, capsize=3, elinewidth=1,
                          color=plot.color(subject),
                          label=label(results, subject))
        axis.set_yscale('log')
        axis.set_xticks(range(len(names)), names, fontsize='small')
        axis.set_xlabel(f'plugged of {size_text(size)}')
    plot.axes[0].set_ylabel('seconds')
    plot.legend()
    return plot, 'Time from exec until so much is plugged'


def requests(results: Results) -> Tuple[Plot, str]:
    """Requests: time in KVM and around it."""
    cases = tables.request_cases(results)
    kinds = results.values_of('requests', 'request')
    plot = Plot(results, len(cases))
    count = len(results.subjects)
    for axis, (text, case) in zip(plot.axes, cases):
        for number, subject in enumerate(results.subjects):
            where = [at + 0.2 * number - 0.1 * (count - 1)
                     for at in range(len(kinds))]

            def medians(metric: str, subject: str = subject,
                        case: Dict[str, int] = case) -> List[float]:
                found = [results.find('requests', metric, subject,
                                      request=kind, **case)
                         for kind in kinds]
                return [(one.median or 0) * 1e6 if one else 0
                        for one in found]
            axis.bar(where, medians('time'), 0.18,
                     color=plot.color(subject),
                     label=label(results, subject))
            axis.bar(where, medians('KVM time'), 0.18, color='none',
                     hatch='////', edgecolor='white', linewidth=0)
        axis.set_xticks(range(len(kinds)),
                        [kind.replace(', ', ',\n') for kind in kinds],
                        fontsize='small')
        axis.set_title(text, fontsize='small')
    plot.axes[0].set_ylabel('µs (hatched: in KVM\'s ioctl)')
    plot.legend()
    return plot, 'Time of a request to plug or unplug one block'


def _bars(plot: Plot, axis: Any, figures: Dict[str, Optional[Figure]],
          scale: float, title: str) -> None:
    """One bar for each subject."""
    for number, (subject, figure) in enumerate(figures.items()):
        if figure is None or not figure.values:
            continue
        value = (figure.median or 0) / scale
        axis.bar([number], [value], 0.7, color=plot.color(subject),
                 yerr=[[error[0] / scale] for error in _error([figure])],
                 capsize=3, label=label(plot.results, subject))
        top = max(value, figure.spread[1] / scale)
        text = f'{value:.3g}' if value < 1000 else f'{value:.0f}'
        axis.annotate(text, (number, top), ha='center', xytext=(0, 3),
                      textcoords='offset points', fontsize='x-small')
    axis.set_xticks([])
    axis.margins(y=0.15)
    axis.set_title(title, fontsize='small')


def migration(results: Results) -> Tuple[Plot, str]:
    """What a migration costs."""
    plot = Plot(results, 6, 2)
    size = _largest_measured(results, 'migration', 'set-up')
    for axis, (metric, scale, unit) in zip(plot.axes, (
            ('set-up', 1e-3, 'ms'), ('kernel for it', MIB, 'MiB'),
            ('QEMU for it', MIB, 'MiB'), ('last sync', 1e-3, 'ms'),
            ('dirty-log time', 1e-3, 'ms'), ('load', 1e-3, 'ms'))):
        _bars(plot, axis, {
            subject: results.find('migration', metric, subject, size=size)
            for subject in results.subjects}, scale, f'{metric}, {unit}')
    plot.legend()
    return plot, (f'Migration: device of {size_text(size)}, '
                  '1 GiB plugged')


def monitor(results: Results) -> Tuple[Plot, str]:
    """The longest wait for the monitor."""
    plot = Plot(results)
    _by_size(plot, 'monitor', 'longest wait', 1.0)
    plot.axes[0].set_yscale('log')
    plot.axes[0].set_ylabel('seconds')
    plot.legend()
    return plot, 'Longest wait for the monitor while a migration starts'


def vhost(results: Results) -> Tuple[Plot, str]:
    """Growth beside vhost-user."""
    plot = Plot(results, 4)
    size = results.values_of('vhost', 'size')[0]
    for axis, (metric, scale, title) in zip(plot.axes, (
            ('time', 1e-3, 'time, ms'),
            ('kernel, 1 GiB plugged', MIB,
             'kernel memory\nafter 1 GiB, MiB'),
            ('memory messages', 1, 'messages'),
            ('memslots', 1, 'memslots in KVM'))):
        _bars(plot, axis, {
            subject: results.find('vhost', metric, subject, size=size)
            for subject in results.subjects}, scale, title)
    plot.legend()
    return plot, ('Growing by 48 GiB beside vhost-user-blk with '
                  '509 regions')


def nested(results: Results) -> Tuple[Plot, str]:
    """Predicted and measured."""
    plot = Plot(results)
    axis = plot.axes[0]
    cases = tables.nested_cases(results)
    count = len(results.subjects)
    first = True
    for number, subject in enumerate(results.subjects):
        found = [(at + 0.2 * number - 0.1 * (count - 1), figure)
                 for at, case in enumerate(cases)
                 if (figure := results.find('nested', 'kernel', subject,
                                            **case)) and figure.values]
        axis.bar([at for at, _figure in found],
                 [(figure.median or 0) / MIB for _at, figure in found],
                 0.18, color=plot.color(subject),
                 label=label(results, subject))
        axis.scatter([at for at, _figure in found],
                     [(figure.predicted or 0) / MIB
                      for _at, figure in found],
                     marker='_', s=160, color='black', linewidths=1,
                     label='predicted by the formula' if first else None,
                     zorder=3)
        first = False
    axis.set_yscale('log')
    axis.set_xticks(range(len(cases)), [
        tables.nested_case(case).replace(', ', ',\n') for case in cases],
        fontsize='small')
    axis.set_ylabel('kernel memory, MiB')
    plot.legend()
    return plot, ('Kernel memory for a device of 512 GiB, '
                  'predicted and measured')


def plans(results: Results) -> Tuple[Plot, str]:
    """How memslots are divided."""
    plot = Plot(results, 4, 2)
    budgets = results.values_of('plans', 'budget')
    for column, size in enumerate((TIB, 16 * TIB)):
        for row, (metric, title) in enumerate((
                ('ratio', 'mapped beyond what is\nplugged, at worst, %'),
                ('one block', 'mapped for a block\nanywhere, GiB'))):
            axis = plot.axes[2 * row + column]
            for number, (name, text) in enumerate(tables.PLANS.items()):
                figures = [results.find('plans', metric, 'on', size=size,
                                        budget=budget, plan=name)
                           for budget in budgets]
                values = [figure.median or 0 for figure in figures if figure]
                axis.plot(budgets, [
                    100 * (value - 1) if metric == 'ratio' else value / GIB
                    for value in values], marker='o', markersize=3,
                    color=COLORS[number], label=text)
            axis.set_xscale('log', base=2)
            axis.set_yscale('log')
            axis.set_xticks(budgets, [str(budget) for budget in budgets])
            axis.set_title(f'{size_text(size)}: {title}', fontsize='small')
            if row:
                axis.set_xlabel('budget of memslots')
    plot.legend()
    return plot, 'Memslots that are equal, and such that grow'


PLOTS: Dict[str, Callable[[Results], Tuple[Plot, str]]] = {
    'kernel-memory': kernel_memory,
    'kernel-memory-unplugged': kernel_memory_unplugged,
    'qemu-memory': qemu_memory, 'start': start, 'growth': growth,
    'requests': requests, 'migration': migration, 'monitor': monitor,
    'vhost': vhost, 'nested': nested, 'plans': plans}


def write(results: Results, file: Path, output: Path,
          formats: Sequence[str]) -> None:
    """Write all plots that the results have figures for."""
    for section in tables.sections(results):
        for name in section.plots:
            plot, title = PLOTS[name](results)
            plot.save(output / name, title, digest(file), formats)
