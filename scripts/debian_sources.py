"""
The system's apt sources, as they would be for other suites of Debian.

The mirrors are the system's, and so is all else that an entry says: its keys,
its options, its components. Only suites and types are others.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set

# How Debian's suites begin; others' may have anything for a suite.
RELEASES = ('bookworm', 'trixie', 'forky', 'duke', 'sid', 'oldstable',
            'stable', 'testing', 'unstable')
SUITE = re.compile(rf'(?:{"|".join(RELEASES)})(-[a-z-]+)?')
BACKPORTS = '-backports'

ONE_LINE = re.compile(r'^deb(?:-src)?\s+(?:\[(?P<options>[^]]*)\]\s+)?'
                      r'(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>[^#]*)')


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE,
                          text=True).stdout


def running_release() -> str:
    """The code name of the Debian that this runs on, as "bookworm"."""
    text = Path('/etc/os-release').read_text(encoding='utf-8')
    match = re.search(r'^VERSION_CODENAME="?([a-z]+)', text, re.MULTILINE)
    return match[1] if match else ''


def all_pockets(release: str) -> List[str]:
    """The suites that a system with a release gets its packages from."""
    return [release, f'{release}-updates', f'{release}-security']


def _files() -> List[Path]:
    """What apt reads."""
    places = dict(line.split('=', 1) for line in _run(
        'apt-config', 'shell', 'LIST', 'Dir::Etc::sourcelist/f',
        'PARTS', 'Dir::Etc::sourceparts/d').splitlines())
    files = [Path(shlex.split(places['LIST'])[0])]
    parts = Path(shlex.split(places['PARTS'])[0])
    if parts.is_dir():
        files += sorted(parts.glob('*.list')) + sorted(parts.glob('*.sources'))
    return [file for file in files if file.is_file()]


def _foreign_uris() -> Set[str]:
    """URIs that apt has seen to be someone else's than Debian's."""
    output = _run('apt-get', 'indextargets', '--format',
                  '$(REPO_URI) $(ORIGIN)', 'Created-By: Packages')
    pairs = (line.partition(' ') for line in output.splitlines())
    # apt leaves a field it does not know as it is.
    return {uri.rstrip('/') for uri, _, origin in pairs
            if origin not in ('Debian', '', '$(ORIGIN)')}


def _pocket(suite: str) -> Optional[str]:
    """What follows the release in the name of a suite of Debian's."""
    match = SUITE.fullmatch(suite)
    return (match[1] or '') if match else None


def _wanted_at(suite: str, wanted: Sequence[str]) -> List[str]:
    """The suites that are where the system gets a suite from."""
    return [other for other in wanted
            # Backports are wherever the release is.
            if (_pocket(other) or '').replace(BACKPORTS, '') == _pocket(suite)]


def _one_line_entries(text: str, wanted: Sequence[str], types: str,
                      foreign: Set[str]) -> List[str]:
    entries = []
    for line in text.splitlines():
        entry = ONE_LINE.match(line.strip())
        if not entry or entry['uri'].startswith('cdrom:') \
                or entry['uri'].rstrip('/') in foreign:
            continue
        options = f'[{entry["options"]}] ' if entry['options'] else ''
        entries += [f'{kind} {options}{entry["uri"]} {suite}'
                    f'{entry["components"].rstrip()}\n'
                    for suite in _wanted_at(entry['suite'], wanted)
                    for kind in types.split()]
    return entries


def _deb822_stanzas(text: str, wanted: Sequence[str], types: str,
                    foreign: Set[str]) -> List[str]:
    stanzas = []
    lines = '\n'.join(line for line in text.splitlines()
                      if not line.startswith('#'))
    for stanza in re.split(r'\n\s*\n', lines):
        fields: Dict[str, str] = {
            name.lower(): value for name, value in re.findall(
                r'^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)', stanza, re.MULTILINE)}
        uris = fields.get('uris', '').split()
        suites = [other for suite in fields.get('suites', '').split()
                  for other in _wanted_at(suite, wanted)]
        if not uris or not suites \
                or fields.get('enabled', 'yes').strip().lower() in \
                ('no', 'false', '0') \
                or all(uri.rstrip('/') in foreign for uri in uris):
            continue
        fields['types'] = types
        fields['suites'] = ' '.join(dict.fromkeys(suites))
        stanzas.append(''.join(f'{name.title()}: {value}\n'
                               for name, value in fields.items()))
    return stanzas


def write(directory: Path, wanted: Sequence[str], types: str) -> None:
    """
    Make a directory of sources for the suites that are wanted, each at the
    mirrors from which the system gets the same of its own release. Types are
    "deb", "deb-src" or both.

    Entries of which apt knows that they are not Debian's are left out.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    foreign = _foreign_uris()
    for number, file in enumerate(_files()):
        text = file.read_text(encoding='utf-8')
        if file.suffix == '.sources':
            entries = _deb822_stanzas(text, wanted, types, foreign)
        else:
            entries = _one_line_entries(text, wanted, types, foreign)
        if entries:
            (directory / f'{number}-{file.name}').write_text(
                '\n'.join(dict.fromkeys(entries)), encoding='utf-8')
