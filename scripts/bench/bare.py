"""
KVM without QEMU: how much memory and time one memslot takes.

Run as a program, it waits for a line before it maps a memslot, prints the
seconds, and waits for another one.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import ctypes
import fcntl
import mmap
import os
import subprocess
import sys
import time
from typing import Tuple

KVM_CREATE_VM = 0xae01
KVM_SET_USER_MEMORY_REGION = 0x4020ae46
ADDRESS = 4 << 30


def memslot(size: int) -> Tuple[int, float]:
    """Bytes and seconds that KVM spends on a memslot."""
    # pylint: disable=import-outside-toplevel
    from bench.meter import Meter
    meter = Meter()
    try:
        with subprocess.Popen(
                [*meter.command(), sys.executable, '-B', __file__,
                 str(size)], text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            before = meter.read()
            print(file=process.stdin, flush=True)
            seconds = float(process.stdout.readline())
            spent = meter.read() - before
            print(file=process.stdin, flush=True)
            process.wait()
        return spent, seconds
    finally:
        meter.close()


def _main(size: int) -> None:
    kvm = os.open('/dev/kvm', os.O_RDWR | os.O_CLOEXEC)
    machine = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                       | getattr(mmap, 'MAP_NORESERVE', 0x4000))
    where = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = bytes((ctypes.c_uint64 * 4)(0, ADDRESS, size, where))
    print('ready', flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    fcntl.ioctl(machine, KVM_SET_USER_MEMORY_REGION, region)
    print(time.monotonic() - start, flush=True)
    sys.stdin.readline()


if __name__ == '__main__':
    _main(int(sys.argv[1]))
