"""
What KVM can do here, as tried with a QEMU that is known to be good.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Tuple

from qemu.machine.machine import VMLaunchFailure

from guest import GuestError
from vm import GIB, VirtualMachine, first_error

DEVICE = '/dev/kvm'
# The first one that works is taken. There are KVMs for AMD's CPUs that offer
# the feature but refuse its MSR, and QEMU aborts.
CPUS = ('host', 'host,-arch-capabilities')
# Only hit when something hangs.
TIMEOUT = 60.0
QUIT = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'


@dataclass(frozen=True)
class Choice:
    """The CPU that VMs get with KVM, as an argument of QEMU's."""
    # None: there is none, and no KVM for tests
    cpu: Optional[str]
    # What kept it from being another
    reasons: Tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = '; '.join(self.reasons)
        if self.cpu is None:
            return f'KVM cannot be used: {reasons}'
        return f'KVM: -cpu {self.cpu}' + (f' ({reasons})' if reasons else '')


def _why_not(binary: str, cpu: str) -> Optional[str]:
    """Have a QEMU start and quit: None if it does, else the reason."""
    try:
        result = subprocess.run(
            [binary, '-S', '-nodefaults', '-display', 'none', '-m', '64M',
             '-accel', 'kvm', '-cpu', cpu, '-qmp', 'stdio'],
            input=QUIT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f'QEMU has not ended after {TIMEOUT:.0f} s'
    return first_error(result.stderr) if result.returncode else None


def choose(binary: Callable[[], str]) -> Choice:
    """
    The first CPU that a QEMU starts with. Where there is no KVM, no QEMU is
    asked for.

    Not the QEMU that is tested: if that does not start, a test has to fail.
    """
    try:
        os.close(os.open(DEVICE, os.O_RDWR))
    except OSError as error:
        return Choice(None, (f'{DEVICE}: {error.strerror}',))
    reasons: Tuple[str, ...] = ()
    for cpu in CPUS:
        reason = _why_not(binary(), cpu)
        if reason is None:
            return Choice(cpu, reasons)
        reasons += (f'with -cpu {cpu}: {reason}',)
    return Choice(None, reasons)


def why_no_guest(binary: str, image: Path, cpu: str) -> Optional[str]:
    """Have a QEMU boot the guest: None if it comes up, else the reason."""
    with VirtualMachine(binary, 'kvm', GIB, cpu=cpu) as vm:
        guest = vm.add_guest(image)
        try:
            vm.launch()
            # Booting a kernel, KVM is silent for no more than a moment.
            guest.wait_ready(stall=10.0)
        except VMLaunchFailure as failure:
            return 'QEMU exits: ' + first_error(failure.output)
        except GuestError as error:
            if vm.is_running():
                # After that, it is about the console.
                return 'the guest does not boot: ' + str(error).split(';')[0]
            vm.shutdown()
            return 'QEMU exits: ' + first_error(vm.get_log())
    return None
