"""
The page of the manual, and the figures in README.md: made of the results of
a run that are kept in the repository.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import textwrap
from pathlib import Path
from typing import List, Optional

from bench import compare, plots, tables
from bench.formula import TIB
from bench.render import markdown, rst, rst_title
from bench.results import Figure, Results, load
from bench.tables import Table, cell

PAGE = Path('docs') / 'benchmarks.rst'
KEPT = Path('docs') / 'benchmarks'
RESULTS = KEPT / 'results.json'
README = Path('README.md')
WIDTH = 79
BEGIN, END = '<!-- made by "make bench-page" -->', '<!-- end -->'

INTRODUCTION = '''\
..
  Made by "make bench-page" of docs/benchmarks/results.json: do not edit.

==============================
What a virtio-mem device costs
==============================

Kernel memory and time, measured on ``/dev/kvm`` and, for what that lacks, in
a VM; beside Debian's own QEMU 7.2 and beside QEMU 10.0 of Debian's
backports. To measure it where you are::

    make bench                                   # this QEMU and Debian's 7.2
    make bench BENCH="--backports"               # QEMU 10.0, too
    make bench BENCH="--peer NAME=PATH,OPTION"   # any other QEMU, too
    make bench BENCH="--help"                    # all options

Results are in ``build/bench``: JSON, tables and plots. A run with QEMU 10.0
takes a quarter of an hour; ``--quick`` makes it a minute.

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


def headline(results: Results) -> str:
    """What README.md has: the largest device that all could have."""
    size = TIB if TIB in results.values_of('memory', 'size') else \
        results.values_of('memory', 'size')[-1]
    rows: List[List[str]] = []

    def add(what: str, figures: List[Optional[Figure]]) -> None:
        if any(figures):
            rows.append([what, *(cell(figure) for figure in figures)])
    for stage, what in (('0', 'nothing plugged'), ('1 GiB', '1 GiB plugged'),
                        ('50 %', 'half of it plugged'),
                        ('100 %', 'all of it plugged')):
        add(f'kernel memory, {what}',
            [results.find('memory', 'kernel', subject, size=size,
                          plugged=stage) for subject in results.subjects])
    add('QEMU\'s own memory, nothing plugged',
        [results.find('memory', 'QEMU', subject, size=size, plugged='0')
         for subject in results.subjects])
    add('start to QMP', [results.find('start', 'start', subject, size=size)
                         for subject in results.subjects])
    for metric, what in (('set-up', 'migration set-up'),
                         ('last sync', 'dirty-log sync')):
        add(f'{what}, 1 GiB plugged',
            [results.find('migration', metric, subject, size=size)
             for subject in results.subjects])
    header = [tables.size_text(size)] + [
        plots.label(results, subject) for subject in results.subjects]
    machine = results.about['machine']
    return (markdown(Table(header, rows))
            + f'\nMeasured with {machine["cpus"]} CPUs and '
              f'{machine["memory"]} of memory; KVM with {machine["kvm"]}; '
              f'{machine["kernel"]}.\n')


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
