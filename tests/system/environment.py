"""
What the tests run with: programs and images, made where they are missing.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import functools
import os
import subprocess
from pathlib import Path
from typing import Optional

import kvm
import needs
import vm
from vm import Accelerator

# A test that takes too long is ended by a signal.
vm.exit_on_signals()

SCRIPTS = Path(__file__).resolve().parents[2] / 'scripts'


def _variable(name: str, example: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise RuntimeError(f'{name} is not set; run the tests with '
                           f'"make check", or set it (to {example}, say)')
    return value


def build_dir() -> Path:
    """The build directory."""
    return Path(_variable('BUILD_DIR', '$PWD/build'))


def qemu_system() -> str:
    """The QEMU to be tested."""
    return _variable('QEMU_SYSTEM', '$PWD/build/qemu-system-x86_64')


def _make(script: str, directory: Path) -> Path:
    result = subprocess.run([str(SCRIPTS / script), str(directory)],
                            stdin=subprocess.DEVNULL, text=True, check=False,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode:
        raise RuntimeError(result.stdout)
    return directory


@functools.lru_cache(maxsize=None)
def image() -> Path:
    """The directory with the guest's kernel and initramfs."""
    return _make('guest-image', build_dir() / 'guest')


@functools.lru_cache(maxsize=None)
def stock_qemu() -> str:
    """Debian's own QEMU."""
    return str(_make('stock-qemu', build_dir() / 'stock')
               / 'qemu-system-x86_64')


def stock_storage_daemon() -> str:
    """The storage daemon that comes with it."""
    return str(Path(stock_qemu()).with_name('qemu-storage-daemon'))


def has_sanitizers() -> bool:
    """Whether the QEMU to be tested was built with sanitizers."""
    # Not ASAN_OPTIONS: a newer meson than Debian 12's sets that for any test.
    return 'QEMU_HAS_SANITIZERS' in os.environ


def emulator() -> str:
    """
    What emulates the machine that the QEMU to be tested runs in: that itself,
    but for one with sanitizers, which make it slow.
    """
    return stock_qemu() if has_sanitizers() else qemu_system()


@functools.lru_cache(maxsize=None)
def kvm_choice() -> kvm.Choice:
    """The CPU for KVM, if there is KVM; the first to ask has it printed."""
    choice = kvm.choose(stock_qemu)
    print(f'# note: {choice}', flush=True)
    return choice


def has_kvm() -> bool:
    """Whether KVM can be used; no guest has to boot with it."""
    return kvm_choice().cpu is not None


def require_kvm() -> str:
    """The CPU for KVM; skips the test if there is no KVM."""
    choice = kvm_choice()
    if choice.cpu is None:
        needs.lack(needs.KVM, str(choice))
    return choice.cpu


@functools.lru_cache(maxsize=None)
def _why_no_guest(cpu: str) -> Optional[str]:
    return kvm.why_no_guest(stock_qemu(), image(), cpu)


def accelerator(name: str) -> Accelerator:
    """
    An accelerator that the guest boots with; skips the test if it does not.
    """
    if name != 'kvm':
        return Accelerator(name, None)
    cpu = require_kvm()
    reason = _why_no_guest(cpu)
    if reason is not None:
        needs.lack(needs.GUEST, f'no guest with KVM: {reason}')
    return Accelerator(name, cpu)
