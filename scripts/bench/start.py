"""
Time from exec until a QEMU answers its first QMP command.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import socket
import subprocess
import time
from typing import List

import environment

from bench.formula import GIB, MIB, TIB
from bench.measurement import Context, Measurement, Parameters, Sample
from bench.subjects import Subject

HELLO = (b'{"execute": "qmp_capabilities"}\n'
         b'{"execute": "query-status", "id": "last"}\n')
TIMEOUT = 120.0


class Start(Measurement):
    """Without a device, and with devices that have nothing plugged."""
    name = 'start'
    estimate = 0.5

    def points(self, quick: bool) -> List[Parameters]:
        sizes = [0, TIB // 2] if quick else [0, 16 * GIB, 128 * GIB, TIB,
                                             4 * TIB, 16 * TIB]
        return [{'size': size} for size in sizes]

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        size = int(point['size'])
        reason = context.affords_device(subject, size)
        if reason is not None:
            return [Sample('start', 's', None, reason=reason)]
        ours, theirs = socket.socketpair()
        command = [
            subject.binary, '-S', '-nodefaults', '-display', 'none',
            '-machine', 'pc',
            '-accel', 'kvm', '-cpu', environment.require_kvm(),
            '-m', f'64M,slots=2,maxmem={64 + size // MIB}M' if size
            else '64M',
            '-chardev', f'socket,id=qmp,fd={theirs.fileno()}',
            '-mon', 'chardev=qmp,mode=control']
        if size:
            command += [
                '-object',
                f'memory-backend-ram,id=mem0,size={size},reserve=off',
                '-device', subject.device(memdev='mem0')]
        with ours, theirs:
            ours.settimeout(TIMEOUT)
            start = time.monotonic()
            with subprocess.Popen(command,
                                  pass_fds=(theirs.fileno(),)) as process:
                theirs.close()
                try:
                    ours.sendall(HELLO)
                    answer = b''
                    while b'"last"' not in answer:
                        data = ours.recv(65536)
                        if not data:
                            raise RuntimeError('QEMU has ended')
                        answer += data
                    seconds = time.monotonic() - start
                finally:
                    process.kill()
        return [Sample('start', 's', seconds)]
