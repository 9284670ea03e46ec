"""
Programs of Debian's that are downloaded and unpacked, not installed.

A program lies in a directory of its own: all that was unpacked below root/,
and a wrapper, named like the program, that runs it there.

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

LIBRARIES = ('lib/x86_64-linux-gnu', 'usr/lib/x86_64-linux-gnu')


class DebianProgram:
    """A program, the package that has it and how it is to be run."""

    def __init__(self, name: str, package: str, version: str = '',
                 suite: Optional[str] = None) -> None:
        """
        Any @version that starts so will do, from a @suite that the system
        need not be set up for.
        """
        self.name = name
        self.package = package
        self.version = version
        self.suite = suite

    def command(self, root: Path) -> List[str]:
        """What runs it."""
        return [str(root / 'usr' / 'bin' / self.name)]

    def arguments(self, _root: Path) -> List[str]:
        """What comes before the arguments that the user gives."""
        return []

    def environment(self, root: Path) -> Dict[str, str]:
        """Environment variables to run it with."""
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
        return packages.missing_for(self.newest(packages, self.package))

    def newest(self, packages: DebianPackages, package: str) -> str:
        """Package=version of the newest one that will do."""
        versions = [version for version in packages.versions(package)
                    if version.split(':')[-1].startswith(self.version)]
        if not versions:
            where = self.suite or 'bookworm'
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

    def arguments(self, root: Path) -> List[str]:
        firmware = [directory for name in self.FIRMWARE
                    for directory in (root / name, Path('/') / name)
                    if directory.is_dir()]
        return [word for directory in firmware
                for word in ('-L', str(directory))]
