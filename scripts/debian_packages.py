"""
Debian packages, downloaded and unpacked without installing them.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import List, Optional, Sequence

import debian_sources

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

    With a @suite, "trixie" or "bookworm-backports" say, packages come from
    there, or from that release if backports do not have them. The system need
    not be set up for it: it is expected at the mirrors that are the system's.
    With @types="deb-src", source packages do.
    """

    def __init__(self, state: Path, suite: Optional[str] = None,
                 types: str = 'deb') -> None:
        self._state = state.resolve()
        self._suite = suite
        self._private = suite is not None
        if suite is not None:
            release = suite.partition('-')[0]
            debian_sources.write(
                self._sources(),
                list(dict.fromkeys([*debian_sources.all_pockets(release),
                                    suite])), types)

    def _sources(self) -> Path:
        return self._state / 'sources'

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
            options += [f'Dir::State::lists={state}/lists',
                        'Dir::Cache::pkgcache=', 'Dir::Cache::srcpkgcache=']
        if self._suite is not None:
            # Backports are only taken when they are asked for. To ask for a
            # release would put it before its own updates.
            default = self._suite if '-' in self._suite else ''
            options += ['Dir::Etc::sourcelist=/dev/null',
                        f'Dir::Etc::sourceparts={self._sources()}',
                        f'APT::Default-Release={default}']
        return [word for option in options for word in ('-o', option)]

    def _run(self, program: str, *arguments: str,
             cwd: str = '.') -> 'subprocess.CompletedProcess[str]':
        return subprocess.run([program, *self._options(), *arguments],
                              cwd=cwd, env={**os.environ, 'LC_ALL': 'C'},
                              stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              check=False)

    def update(self) -> str:
        """Get fresh lists of packages; returns what apt complains of."""
        self._private = True
        # One broken repository of several is no reason to fail: what is
        # wanted may be in another.
        complaints = self._run('apt-get', 'update').stderr.strip()
        if not list((self._state / 'lists').glob('*_*_*')):
            where = f' of {self._suite}' if self._suite else ''
            raise PackageError(
                f'cannot get the lists of Debian packages{where}; check the '
                f'network and the system\'s apt sources:\n{complaints}')
        return complaints

    def versions(self, package: str) -> List[str]:
        """The versions of a package on offer, newest first."""
        output = self._run('apt-cache', 'madison', package).stdout
        found = [line.split('|')[1].strip() for line in output.splitlines()
                 if '|' in line and line.split('|')[2].strip() != '']
        return list(dict.fromkeys(found))

    def source_versions(self, package: str) -> List[str]:
        """The versions of a source package on offer, newest first."""
        output = self._run('apt-cache', 'showsrc', '--only-source',
                           package).stdout
        return newest_first(re.findall(r'^Version: (\S+)$', output,
                                       re.MULTILINE))

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

    def download_source(self, package: str, version: str,
                        directory: Path) -> None:
        """Download a source package; what is there already is kept."""
        result = self._run('apt-get', 'source', '--only-source',
                           '--download-only', f'{package}={version}',
                           cwd=str(directory))
        if result.returncode:
            raise PackageError(f'cannot download the source of {package} '
                               f'{version}:\n{result.stderr.strip()}')

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


def is_newer(version: str, other: str) -> bool:
    """Whether one version of a package is newer than another one."""
    return subprocess.run(['dpkg', '--compare-versions', version, 'gt',
                           other], check=False).returncode == 0


def newest_first(versions: Sequence[str]) -> List[str]:
    """Versions of a package in their order, each once."""
    def order(one: str, other: str) -> int:
        return is_newer(one, other) - is_newer(other, one)
    return sorted(set(versions), key=functools.cmp_to_key(order),
                  reverse=True)


def unpack(downloads: Path, root: Path) -> None:
    """Unpack all packages in a directory."""
    for package in sorted(downloads.glob('*.deb')):
        subprocess.run(['dpkg-deb', '-x', str(package), str(root)],
                       check=True)
