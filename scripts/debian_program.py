"""
Programs of Debian's that are downloaded and unpacked, not installed.

A program lies in a directory of its own: all that was unpacked below root/,
and a wrapper, named like the program, that runs it there. It runs with what
the system has if it is of the same release of Debian, else with nothing but
what was unpacked along with it, the C library included.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from debian_packages import DebianPackages, PackageError, unpack
from debian_sources import running_release

LIBRARIES = ('lib/x86_64-linux-gnu', 'usr/lib/x86_64-linux-gnu')
LOADER = 'ld-linux-x86-64.so.2'
# What programs need to be installed, but not to run from where they lie
NOT_NEEDED = ('adduser', 'debconf', 'dpkg', 'passwd', 'perl-base', 'systemd',
              'tar')


class DebianProgram:
    """A program, the package that has it and how it is to be run."""

    def __init__(self, name: str, package: str, version: str = '',
                 suite: Optional[str] = None) -> None:
        """
        Any @version that starts so will do, from a @suite that the system
        need not be set up for, not even for its release.
        """
        self.name = name
        self.package = package
        self.version = version
        self.suite = suite if suite != running_release() else None

    @property
    def alone(self) -> bool:
        """Whether it runs without what the system has."""
        return self.suite is not None \
            and self.suite.partition('-')[0] != running_release()

    def command(self, root: Path) -> List[str]:
        """What runs it."""
        program = str(root / 'usr' / 'bin' / self.name)
        if not self.alone:
            return [program]
        libraries = [root / library for library in LIBRARIES]
        loader = next(library / LOADER for library in libraries
                      if (library / LOADER).exists())
        return [str(loader), '--library-path',
                ':'.join(map(str, libraries)), program]

    def arguments(self, _root: Path) -> List[str]:
        """What comes before the arguments that the user gives."""
        return []

    def environment(self, root: Path) -> Dict[str, str]:
        """Environment variables to run it with."""
        if self.alone:
            return {}
        libraries = [str(root / library) for library in LIBRARIES]
        return {'LD_LIBRARY_PATH': ':'.join(libraries)}

    def check_arguments(self) -> List[str]:
        """Arguments with which it ends at once, successfully if it works."""
        return ['--version']

    def companions(self) -> 'List[DebianProgram]':
        """Others, in the same packages or in those that these need."""
        return []

    def packages(self, packages: DebianPackages) -> List[str]:
        """Package=version of all that has to be downloaded."""
        newest = self.newest(packages, self.package)
        if self.alone:
            return packages.needed_by([newest], NOT_NEEDED)
        return packages.missing_for(newest)

    def newest(self, packages: DebianPackages, package: str) -> str:
        """Package=version of the newest one that will do."""
        versions = [version for version in packages.versions(package)
                    if version.split(':')[-1].startswith(self.version)]
        if not versions:
            where = self.suite or running_release()
            raise PackageError(
                f'apt offers no {package} {self.version}'.rstrip()
                + f'; check that a server with {where} is among the '
                'system\'s apt sources')
        return f'{package}={versions[0]}'


def _write_wrapper(program: DebianProgram, root: Path, path: Path) -> None:
    """Write what runs the unpacked program where it lies."""
    words = program.command(root) + program.arguments(root)
    variables = ''.join(
        f'export {name}={shlex.quote(value)}\n'
        for name, value in program.environment(root).items())
    path.write_text(f'#!/bin/sh\n{variables}exec {shlex.join(words)} "$@"\n',
                    encoding='utf-8')
    path.chmod(0o755)


def _check(program: DebianProgram, wrapper: Path) -> None:
    """PackageError if the program does not run."""
    result = subprocess.run([str(wrapper), *program.check_arguments()],
                            stdin=subprocess.DEVNULL, text=True, check=False,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode:
        output = result.stdout.strip().splitlines()
        raise PackageError(
            f'{program.name} does not run, its exit status is '
            f'{result.returncode}: ' + ' / '.join(output[-4:]))


def _get(program: DebianProgram, directory: Path, work: Path) -> None:
    """Make directory/root and the wrapper."""
    downloads, root = work / 'downloads', work / 'root'
    downloads.mkdir()
    root.mkdir()
    packages = DebianPackages(work / 'apt', program.suite)

    def download() -> None:
        packages.download(program.packages(packages), downloads)
    try:
        download()
    except PackageError:
        packages.update()
        download()
    unpack(downloads, root)
    shutil.rmtree(directory / 'root', ignore_errors=True)
    root.rename(directory / 'root')
    # The program last, as its being there means that all is there.
    for one in (*program.companions(), program):
        _write_wrapper(one, directory / 'root', work / one.name)
        _check(one, work / one.name)
        (work / one.name).rename(directory / one.name)


def main(program: DebianProgram, description: str,
         arguments: Optional[Sequence[str]] = None) -> int:
    """Get a program if it is not there."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('directory', type=Path, help='where it is to be')
    directory: Path = parser.parse_args(arguments).directory.resolve()

    if all((directory / one.name).exists()
           for one in (*program.companions(), program)):
        return 0
    directory.mkdir(parents=True, exist_ok=True)
    print(f'Getting Debian\'s {program.name} {program.version}'.rstrip(),
          'into', directory, flush=True)
    with tempfile.TemporaryDirectory(prefix='program.',
                                     dir=directory) as work:
        try:
            _get(program, directory, Path(work))
        except (PackageError, OSError,
                subprocess.CalledProcessError) as error:
            print(f'{os.path.basename(sys.argv[0])}: {error}',
                  file=sys.stderr)
            return 1
    return 0


class DebianQEMU(DebianProgram):
    """QEMU, which has to be told where its firmware is."""
    # Directories of firmware, each in a package of its own.
    FIRMWARE = ('usr/share/qemu', 'usr/share/seabios', 'usr/lib/ipxe/qemu')

    def __init__(self, version: str, suite: Optional[str] = None) -> None:
        super().__init__('qemu-system-x86_64', 'qemu-system-x86', version,
                         suite)

    def environment(self, root: Path) -> Dict[str, str]:
        # It would look for modules beside what it takes to be the program.
        modules = {'QEMU_MODULE_DIR': str(root / LIBRARIES[1] / 'qemu')} \
            if self.alone else {}
        return {**super().environment(root), **modules}

    def arguments(self, root: Path) -> List[str]:
        firmware = [directory for name in self.FIRMWARE
                    for directory in (root / name, Path('/') / name)
                    if directory.is_dir()]
        return [word for directory in firmware
                for word in ('-L', str(directory))]
