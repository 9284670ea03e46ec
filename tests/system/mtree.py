"""
Read what the monitor command "info mtree" prints.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
from dataclasses import dataclass
from typing import Iterator, List, Optional

_RANGE = re.compile(r'(?P<indent> *)'
                    r'(?P<first>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) '
                    r'\(prio -?\d+, [^)]*\): (?P<what>.*)')
_ALIAS = re.compile(r'alias (?P<name>\S+) @(?P<target>\S+) '
                    r'(?P<first>[0-9a-f]{16})-[0-9a-f]{16}')
_RENDERED = re.compile(r'(?P<name>\S+)(?: @(?P<offset>[0-9a-f]{16}))?'
                       r'(?: KVM)?$')


@dataclass(frozen=True)
class MappedRange:
    """A range of guest-physical addresses and what is mapped there."""
    name: str
    address: int
    size: int
    # offset into the memory region that is mapped
    offset: int


def _section(text: str, header: str) -> Iterator['re.Match[str]']:
    """The ranges below a header line, up to the next empty line."""
    inside = False
    for line in text.splitlines():
        line = line.rstrip('\r')
        if line.strip() == header:
            inside = True
        elif not line.strip():
            inside = False
        elif inside:
            match = _RANGE.match(line)
            if match:
                yield match


def _size(match: 're.Match[str]') -> int:
    return int(match['last'], 16) - int(match['first'], 16) + 1


def aliases(info_mtree: str, target: str) -> List[MappedRange]:
    """
    The aliases into a memory region that the tree of the address space
    "memory" holds, by address.
    """
    found = []
    for match in _section(info_mtree, 'address-space: memory'):
        alias = _ALIAS.match(match['what'])
        if alias and alias['target'] == target:
            found.append(MappedRange(alias['name'], int(match['first'], 16),
                                     _size(match), int(alias['first'], 16)))
    return sorted(found, key=lambda mapped: mapped.address)


def rendered(info_mtree_f: str, region: str) -> List[MappedRange]:
    """
    The ranges of a memory region in the flat view of the address space
    "memory" (as "info mtree -f" prints it), by address.
    """
    found = []
    for match in _section(info_mtree_f, 'AS "memory", root: system'):
        what: Optional['re.Match[str]'] = _RENDERED.match(match['what'])
        if what and what['name'] == region:
            found.append(MappedRange(region, int(match['first'], 16),
                                     _size(match),
                                     int(what['offset'] or '0', 16)))
    return sorted(found, key=lambda mapped: mapped.address)
