"""
The page of the manual, and the figures in README.md: made of the results of
a run that are kept in the repository.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import textwrap
from pathlib import Path
from typing import List

from bench import compare, plots, tables
from bench.formula import TIB
from bench.render import markdown, rst, rst_title
from bench.results import Results, load
from bench.tables import Table, cell

PAGE = Path('docs') / 'benchmarks.rst'
KEPT = Path('docs') / 'benchmarks'
RESULTS = KEPT / 'results.json'
README = Path('README.md')
WIDTH = 79
# Of devices in README.md
HEAD_SIZES = (TIB, 16 * TIB)
BEGIN, END = '<!-- made by "make bench-page" -->', '<!-- end -->'

INTRODUCTION = '''\
..
  Made by "make bench-page" of docs/benchmarks/results.json: do not edit.

==============================
What a virtio-mem device costs
==============================

Kernel memory and time, measured on ``/dev/kvm`` and, for what that lacks, in
a VM; beside the same QEMU without the series, "stock", which has
``dynamic-memslots``, too. To measure it where you are::

    make bench                                   # builds stock QEMU, too
    make bench BENCH="--old"                     # Debian 12's QEMU 7.2, too
    make bench BENCH="--peer NAME=PATH,OPTION"   # any other QEMU, too
    make bench BENCH="--help"                    # all options

Results are in ``build/bench``: JSON, tables and plots. A run takes a quarter
of an hour; ``--quick`` makes it a minute.

Method
======

No guest runs, but for one case: a driver for virtio-mem and for virtio-blk
does what a guest's would do, over the protocol of QEMU's own tests, while
the only vCPU sleeps. Memslots, their metadata, dirty logs and migrations
are real.

All subjects do the same work. They take turns, in another order in each
round, so that what else the machine does, and what is left of the one before,
hits all of them. A figure is the median of all rounds; what is in parentheses
behind it is where the middle half of them lies.

The kernel's memory is what it accounts to a control group that QEMU has for
itself, all kinds of it, read when it has settled; without control groups,
it is VmallocUsed of the machine. QEMU's own is anonymous memory. The time of
a request is what QEMU's trace events say, the time in KVM is taken around
each ioctl, with a library that is preloaded.

What KVM on x86 needs for a memslot is, per TiB of it: 2 GiB + 4 MiB + 8 KiB
with shadow paging, for the reverse map; 512 MiB for page tracking; 2 MiB +
4 KiB for large pages; and twice that with SMM. A case that would take more
memory than there is is predicted with this formula, and not measured.
'''


def _head_rows(results: Results, size: int) -> List[List[str]]:
    """What README.md has of devices of one size."""
    rows: List[List[str]] = []

    def add(what: str, measurement: str, metric: str, **where: str) -> None:
        figures = [results.find(measurement, metric, subject, size=size,
                                **where) for subject in results.subjects]
        if any(figure and figure.values for figure in figures):
            rows.append([tables.size_text(size), what, *map(cell, figures)])
    for stage, what in (('0', 'nothing plugged'), ('1 GiB', '1 GiB plugged'),
                        ('100 %', 'all of it plugged')):
        add(f'kernel memory, {what}', 'memory', 'kernel', plugged=stage)
    add('QEMU\'s own memory, nothing plugged', 'memory', 'QEMU', plugged='0')
    add('start to QMP', 'start', 'start')
    add('migration set-up, 1 GiB plugged', 'migration', 'set-up')
    add('longest wait for the monitor meanwhile', 'monitor', 'longest wait')
    return rows


def headline(results: Results) -> str:
    """What README.md has."""
    header = ['device', ''] + [plots.label(results, subject)
                               for subject in results.subjects]
    rows = [row for size in HEAD_SIZES for row in _head_rows(results, size)]
    machine = results.about['machine']
    return (markdown(Table(header, rows))
            + f'\nMeasured with {machine["cpus"]} CPUs ({machine["cpu"]}) and '
              f'{machine["memory"]} of memory; KVM with {machine["kvm"]}; '
              f'{machine["kernel"]}. A memslot of KVM holds less than 8 TiB: '
              'with it off, a larger device does not start.\n')


def text(results: Results) -> str:
    """The page."""
    lines = [INTRODUCTION, *rst_title('What was measured', '=')]
    lines += [f'- {name}: {value}' for name, value in tables.about(results)]
    for section in [*tables.sections(results), compare.worse(results),
                    compare.ratios(results)]:
        lines += ['', *rst_title(section.title, '='),
                  textwrap.fill(section.text, WIDTH), '',
                  rst(section.table)]
        for name in section.plots:
            lines += [f'.. image:: benchmarks/{name}.svg',
                      f'   :alt: {section.title}', '']
    return '\n'.join(lines).rstrip() + '\n'


def readme(old: str, results: Results) -> str:
    """README.md with its figures replaced."""
    before, begin, rest = old.partition(BEGIN)
    _figures, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f'{README} has no place for figures')
    return f'{before}{BEGIN}\n\n{headline(results)}\n{END}{after}'


def write(file: Path, root: Path) -> None:
    """Keep the results, make all that is made of them."""
    kept = root / RESULTS
    kept.parent.mkdir(parents=True, exist_ok=True)
    if file.resolve() != kept.resolve():
        kept.write_bytes(file.read_bytes())
    results = load(kept)
    (root / PAGE).write_text(text(results), 'utf-8')
    old = (root / README).read_text('utf-8')
    (root / README).write_text(readme(old, results), 'utf-8')
    plots.write(results, kept, root / KEPT, ('svg',))
