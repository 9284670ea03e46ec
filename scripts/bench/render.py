"""
Tables in Markdown and reStructuredText.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from typing import List

from bench.tables import Table


def markdown(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.header, ['---'] * len(table.header), *table.rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def rst(table: Table) -> str:
    """A table in reStructuredText."""
    lines = ['.. list-table::', '   :header-rows: 1', '']
    for row in [table.header, *table.rows]:
        mark = '*'
        for text in row:
            # A lone star would begin something.
            escaped = text.replace('*', r'\*')
            lines.append(f'   {mark} - {escaped}'.rstrip())
            mark = ' '
    return '\n'.join(lines) + '\n'


def rst_title(text: str, line: str) -> List[str]:
    """A title, underlined."""
    return [text, line * len(text), '']
