"""
Debian packages, downloaded and unpacked without installing them.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import List, Optional, Sequence

# A version that satisfies whoever depends on some version or a later one
NEWEST = '99:1'


class PackageError(Exception):
    """A package cannot be had; the text says why and what to do."""


class DebianPackages:
    """
    Access to the repositories that the system's apt is set up for.

    The lists of packages are the system's where these do, else private ones
    in @state. A fresh container image has no lists, old lists name packages
    that are gone from the server.

    With a @suite, "bookworm-backports" say, packages come from there if it
    has them. It is expected wherever the system gets "bookworm" from, so the
    system need not be set up for it.
    """

    def __init__(self, state: Path, suite: Optional[str] = None) -> None:
        self._state = state.resolve()
        self._private = False
        self._suite = suite
        if suite is not None:
            self._add_sources(suite)

    def _sources(self) -> Path:
        return self._state / 'sources'

    def _add_sources(self, suite: str) -> None:
        """Keep the system's sources, add the same ones for a suite."""
        places = dict(line.split('=', 1) for line in subprocess.run(
            ['apt-config', 'shell', 'LIST', 'Dir::Etc::sourcelist/f',
             'PARTS', 'Dir::Etc::sourceparts/d'], text=True, check=True,
            stdout=subprocess.PIPE).stdout.splitlines())
        files = [Path(shlex.split(places['LIST'])[0])]
        directory = Path(shlex.split(places['PARTS'])[0])
        self._sources().mkdir(parents=True)
        for kind in ('*.list', '*.sources'):
            for file in sorted(directory.glob(kind)):
                files.append(file)
                shutil.copy(file, self._sources())
        base = re.escape(suite.partition('-')[0])
        for file in files:
            if not file.is_file():
                continue
            # Whatever else an entry says (keys, components) holds for this
            # suite, too.
            text, count = re.subn(rf'(?<=\s){base}(?=\s|$)', suite,
                                  file.read_text(encoding='utf-8'))
            if count:
                copy = self._sources() / f'{suite}-{file.name}'
                copy.write_text(text, encoding='utf-8')

    def _options(self) -> List[str]:
        state = self._state
        for directory in (state / 'lists' / 'partial',
                          state / 'cache' / 'archives' / 'partial'):
            directory.mkdir(parents=True, exist_ok=True)
        options = [f'Dir::Cache={state}/cache',
                   # The directory need not be one that user _apt can enter.
                   'APT::Sandbox::User=root',
                   # Nothing of the system's is going to be written to.
                   'Debug::NoLocking=true']
        if self._private:
            options.append(f'Dir::State::lists={state}/lists')
        if self._suite is not None:
            options += [f'Dir::Etc::sourceparts={self._sources()}',
                        f'APT::Default-Release={self._suite}']
        return [word for option in options for word in ('-o', option)]

    def _run(self, program: str, *arguments: str,
             cwd: str = '.') -> 'subprocess.CompletedProcess[str]':
        return subprocess.run([program, *self._options(), *arguments],
                              cwd=cwd, env={**os.environ, 'LC_ALL': 'C'},
                              stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              check=False)

    def update(self) -> None:
        """Get fresh lists of packages."""
        self._private = True
        # One broken repository of several is no reason to fail: what is
        # wanted may be in another.
        result = self._run('apt-get', 'update')
        if not list((self._state / 'lists').glob('*_Packages*')):
            raise PackageError(
                'cannot get the lists of Debian packages; check the network '
                f'and the system\'s apt sources:\n{result.stderr.strip()}')

    def versions(self, package: str) -> List[str]:
        """The versions of a package on offer, newest first."""
        output = self._run('apt-cache', 'madison', package).stdout
        found = [line.split('|')[1].strip() for line in output.splitlines()
                 if '|' in line and line.split('|')[2].strip() != '']
        return list(dict.fromkeys(found))

    def depends(self, package: str) -> List[str]:
        """Names of the packages that a package depends on."""
        output = self._run('apt-cache', 'show', '--no-all-versions',
                           package).stdout
        match = re.search(r'^Depends: (.*)$', output, re.MULTILINE)
        if match is None:
            return []
        return [re.split(r'[ :(|]', dependency.strip(), maxsplit=1)[0]
                for dependency in match[1].split(',')]

    def download(self, packages: List[str], directory: Path) -> None:
        """Download packages, and not what they depend on."""
        result = self._run('apt-get', 'download', *packages,
                           cwd=str(directory))
        if result.returncode:
            raise PackageError(f'cannot download {" ".join(packages)}:\n'
                               f'{result.stderr.strip()}')

    def missing_for(self, package: str) -> List[str]:
        """
        Package=version of all that installing a package would bring in,
        itself included.
        """
        return self._brought_in_by('--reinstall', package)

    def needed_by(self, packages: Sequence[str],
                  besides: Sequence[str]) -> List[str]:
        """
        Package=version of all that installing packages would bring in on a
        system that has nothing but @besides.
        """
        status = self._state / 'status'
        status.write_text(''.join(
            f'Package: {name}\nStatus: install ok installed\n'
            f'Version: {NEWEST}\nArchitecture: all\nMulti-Arch: foreign\n\n'
            for name in besides), encoding='ascii')
        return self._brought_in_by('-o', f'Dir::State::status={status}',
                                   *packages)

    def _brought_in_by(self, *arguments: str) -> List[str]:
        """Package=version of all that "apt-get install" would install."""
        result = self._run('apt-get', 'install', '--simulate',
                           '--no-install-recommends', *arguments)
        if result.returncode:
            raise PackageError(f'cannot install {arguments[-1]}:\n'
                               f'{result.stderr.strip()}')
        return [f'{name}={version}' for name, version in
                re.findall(r'^Inst (\S+) (?:\[\S+\] )?\((\S+)',
                           result.stdout, re.MULTILINE)]


def unpack(downloads: Path, root: Path) -> None:
    """Unpack all packages in a directory."""
    for package in sorted(downloads.glob('*.deb')):
        subprocess.run(['dpkg-deb', '-x', str(package), str(root)],
                       check=True)
