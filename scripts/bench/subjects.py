"""
What is measured: a QEMU binary, and how its virtio-mem devices are set up.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import List


@dataclass(frozen=True)
class Subject:
    """A QEMU, and a property that its virtio-mem devices get."""
    name: str
    binary: str
    option: str = ''

    @property
    def dynamic(self) -> bool:
        """Whether its devices are meant to have many memslots."""
        return self.option.endswith('=on')

    def version(self) -> str:
        """What it says its version is."""
        output = subprocess.run([self.binary, '--version'], text=True,
                                stdout=subprocess.PIPE, check=True).stdout
        match = re.search(r'version (.*)', output)
        return match[1] if match else output.splitlines()[0]

    def device(self, **properties: object) -> str:
        """The argument of -device for a virtio-mem device."""
        words = ['virtio-mem-pci', 'unplugged-inaccessible=on']
        if self.option:
            words.append(self.option)
        return ','.join(words + [f'{key}={value}'
                                 for key, value in properties.items()])


def parse(text: str) -> Subject:
    """A subject from NAME=PATH[,option]; ValueError if it is not one."""
    match = re.fullmatch(r'([^=,]+)=([^,]+)(?:,([^=,]+=[^,]+))?', text)
    if match is None:
        raise ValueError(f'{text}: NAME=PATH[,option] is expected')
    if not Path(match[2]).exists():
        raise ValueError(f'{match[2]}: no such file')
    return Subject(match[1], str(Path(match[2]).resolve()), match[3] or '')


def ours(binary: str) -> List[Subject]:
    """The QEMU with the series, without and with many memslots."""
    return [Subject(name, binary, f'dynamic-memslots={name}')
            for name in ('off', 'on')]


def stock(binary: str) -> List[Subject]:
    """The same QEMU without the series, without and with many memslots."""
    version = Subject('', binary).version()
    return [Subject(f'stock {version}, {name}', binary,
                    f'dynamic-memslots={name}') for name in ('off', 'on')]


def old(binary: str) -> Subject:
    """Debian 12's QEMU 7.2."""
    return Subject('7.2', binary)
