"""
QEMU without the series: the same source, built with the same options.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict

TAG = 'refs/tags/debian'
PROGRAM = 'qemu-system-x86_64'
DIRECTORY = 'pristine'


class BuildError(Exception):
    """There is no such QEMU."""


def _environment(build: Path) -> Dict[str, str]:
    """Where that of the series finds meson's modules, this one does, too."""
    paths = [file.read_text('utf-8').strip() for file in
             (build / 'qemu-build').glob('pyvenv/lib/*/*/meson.pth')]
    old = os.environ.get('PYTHONPATH')
    return {**os.environ, 'PYTHONPATH': ':'.join(paths + [old] if old
                                                 else paths)}


def _link_firmware(build: Path, target: Path) -> None:
    """What configure has linked to, where QEMU looks for it."""
    theirs = build / 'qemu-build' / 'qemu-bundle'
    for file in theirs.rglob('*'):
        link = target / 'qemu-bundle' / file.relative_to(theirs)
        if file.is_symlink() and not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.readlink(file))


def _build(build: Path, directory: Path, arguments: str) -> None:
    log = directory / 'log'
    source, target = directory / 'qemu', directory / 'qemu-build'
    print(f'Building QEMU without the series in {directory}: as long as that '
          'with it took', file=sys.stderr, flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    source.mkdir(parents=True)
    target.mkdir()
    with log.open('w', encoding='utf-8') as output:
        def run(*command: str) -> None:
            if subprocess.run(command, cwd=target, stdout=output,
                              stderr=output, env=_environment(build),
                              check=False).returncode:
                raise BuildError(f'{command[0]} failed, see {log}')
        run('sh', '-ec', 'git -C "$1" archive "$2" | tar -xf - -C "$3"', 'sh',
            str(build / 'qemu'), TAG, str(source))
        run('../qemu/configure', *arguments.splitlines())
        run('ninja', PROGRAM)
    _link_firmware(build, target)


def qemu(build: Path) -> str:
    """Build it, where it is not there yet or would be another one now."""
    directory = build / DIRECTORY
    made_of = directory / 'made-of'
    binary = directory / 'qemu-build' / PROGRAM
    commit = subprocess.run(
        ['git', '-C', str(build / 'qemu'), 'rev-parse', f'{TAG}^{{tree}}'],
        stdout=subprocess.PIPE, text=True, check=True).stdout
    arguments = (build / 'qemu-configure-arguments').read_text('utf-8')
    state = commit + arguments
    if (not binary.exists() or not made_of.exists()
            or made_of.read_text('utf-8') != state):
        _build(build, directory, arguments)
        made_of.write_text(state, 'utf-8')
    return str(binary)
