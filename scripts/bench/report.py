"""
What a run leaves: a Markdown file with all tables, and the plots.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from pathlib import Path
from typing import List

from bench import compare, plots, tables
from bench.render import markdown
from bench.results import Results


def text(results: Results) -> str:
    """The Markdown file."""
    lines: List[str] = ['# What a virtio-mem device costs', '']
    lines += [f'- {name}: {value}' for name, value in tables.about(results)]
    for section in [*tables.sections(results), compare.ratios(results),
                    compare.worse(results)]:
        lines += ['', f'## {section.title}', '', section.text, '',
                  markdown(section.table)]
        lines += [f'![]({name}.svg)' for name in section.plots]
    failures = results.about.get('failures', [])
    if failures:
        lines += ['', '## What failed', '']
        lines += [f'- {failure}' for failure in failures]
    return '\n'.join(lines) + '\n'


def write(results: Results, file: Path, output: Path) -> None:
    """Write all of it; the results are in a file."""
    (output / 'results.md').write_text(text(results), 'utf-8')
    plots.write(results, file, output, ('svg', 'png'))
