"""
The machine that is measured: no guest, a driver in its place.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import environment
from drivers import Answer, Machine, VirtioMem

from bench.formula import MIB
from bench.host import anonymous
from bench.ioctls import Recorder
from bench.meter import Meter
from bench.subjects import Subject

DEVICE, BACKEND, SLOT = 'vmem0', 'mem0', 5
# A request counts blocks in 16 bits.
MOST_BLOCKS = 65535


class MeteredMachine(Machine):
    """A machine with a meter of its own, whose trace has the time."""

    meter: Meter
    # Where QEMU writes it
    stamped_trace: Path

    def add_traces(self, *events: str) -> None:
        """Have events written to the trace."""
        for event in events:
            self.add_args('-trace', event)

    def events(self) -> Iterator[Tuple[float, str, str]]:
        """Time, name and arguments of the events so far."""
        for match in re.finditer(r'^(?:\d+@)?(\d+\.\d+):(\w+) (.*)$',
                                 self.stamped_trace.read_text('utf-8'), re.M):
            yield float(match[1]), match[2], match[3]

    def trace_requests(self) -> None:
        """Have requests written to the trace."""
        self.add_traces('virtio_mem_plug_request',
                        'virtio_mem_unplug_request',
                        'virtio_mem_send_response')

    def requests(self) -> List[float]:
        """How long each request so far has taken in QEMU."""
        start, found = 0.0, []
        for moment, name, _arguments in self.events():
            if name.endswith('plug_request'):
                start = moment
            elif name == 'virtio_mem_send_response' and start:
                found.append(moment - start)
                start = 0.0
        return found

    def shutdown(self, hard: bool = True,
                 timeout: Optional[int] = 30) -> None:
        """End it, and what was there for it."""
        try:
            super().shutdown(hard=hard, timeout=timeout)
        finally:
            self.meter.close()


class BenchMachine(MeteredMachine):
    """A QEMU with a virtio-mem device, or room for it."""

    memory: VirtioMem

    def __init__(self, subject: Subject, library: Path, size: int) -> None:
        super().__init__(subject.binary, 'kvm', self.RAM + size)
        self._subject = subject
        self.size = size
        self.recorder = Recorder(library, self.directory / 'ioctls')
        self.meter = Meter()
        # Meson has the allocator fill, and so touch, all that it gives.
        self._wrapper = [*self.meter.command(), 'env', '-u', 'MALLOC_PERTURB_',
                         *self.recorder.environment()]
        self.stamped_trace = self.directory / 'trace'
        self.add_args('-cpu', environment.require_kvm(),
                      '-D', str(self.stamped_trace), '-msg', 'timestamp=on')

    def add_device(self) -> None:
        """Have the device there from the start."""
        self.add_args(
            '-object', f'memory-backend-ram,id={BACKEND},size={self.size},'
                       'reserve=off',
            '-device', self._subject.device(
                id=DEVICE, memdev=BACKEND, addr=SLOT,
                **{'requested-size': self.size}))

    def plug_device(self) -> None:
        """Add the device while the machine runs."""
        self.cmd('object-add', qom_type='memory-backend-ram', id=BACKEND,
                 size=self.size, reserve=False)
        text = self.hmp('device_add ' + self._subject.device(
            id=DEVICE, memdev=BACKEND, addr=SLOT,
            **{'requested-size': self.size}))
        if text.strip():
            raise RuntimeError(text.strip())

    def start_driver(self) -> None:
        """From here on, memory can be plugged."""
        self.memory = VirtioMem(self, SLOT)

    def pid(self) -> int:
        """QEMU's process."""
        pid = self.get_pid()
        assert pid is not None
        return pid

    def plug(self, offset: int, end: int) -> None:
        """Plug all between two offsets."""
        chunk = MOST_BLOCKS // 2 * self.memory.block
        while offset < end:
            size = min(chunk, end - offset)
            answer = self.memory.plug(offset, size)
            if answer != Answer.ACK:
                raise RuntimeError(f'{size // MIB} MiB at {offset // MIB} '
                                   f'MiB: {answer!r}')
            offset += size

    def anonymous(self) -> int:
        """Bytes of QEMU's own memory."""
        return anonymous(self.pid())

    def memslots(self) -> Dict[int, int]:
        """Sizes of the device's memslots by number, as KVM was told."""
        first = self.memory_device(DEVICE)['memaddr']
        return self.recorder.memslots(first, self.size)
