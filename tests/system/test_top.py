"""
scripts/memslots-top: what it shows, live and once, and what it says when it
cannot.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import unittest
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, List, Optional

import environment
from drivers import Answer, Machine, VirtioMem
from vhost_backends import MAXMEM, Block, OldBlock
from vm import GIB, MIB, VirtualMachine, virtio_mem_arguments, wait_until

SLOT = 5
# Longer than any test takes: what happens in between has another reason.
FOREVER = '3600'
# The sequences that put a frame on a terminal
HOME, CLEAR_LINE, CLEAR_BELOW = '\033[H', '\033[K', '\033[J'


def command_line(*arguments: str) -> List[str]:
    """What runs the program."""
    program = environment.build_dir() / 'qemu/scripts/memslots-top'
    # A shell has programs that it starts in the background ignore SIGINT.
    return ['/usr/bin/env', '--default-signal=INT',
            '/usr/bin/python3', str(program), *arguments]


def add_qmp(machine: VirtualMachine) -> str:
    """Give a machine a QMP socket of its own."""
    path = str(machine.directory / 'qmp')
    machine.add_args('-qmp', f'unix:{path},server=on,wait=off')
    return path


class Terminal:
    """The program on a terminal."""

    def __init__(self, test: unittest.TestCase, columns: int, lines: int,
                 *arguments: str) -> None:
        self._screen, screen = pty.openpty()
        test.addCleanup(os.close, self._screen)
        self.resize(columns, lines)
        self._output = ''
        # The terminal controls it, so that it is told of another size, and
        # gets what is typed.
        # pylint: disable=consider-using-with
        self.process = subprocess.Popen(
            ['setsid', '--ctty', *command_line(*arguments)], stdin=screen,
            stdout=screen, stderr=subprocess.PIPE, text=True)
        os.close(screen)
        test.addCleanup(self._end)

    def _end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._screen, termios.TIOCSWINSZ,
                    struct.pack('HHHH', lines, columns, 0, 0))

    def type(self, key: bytes) -> None:
        """Type a key."""
        os.write(self._screen, key)

    def printed(self) -> str:
        """All that it printed to the terminal so far."""
        while select.select([self._screen], [], [], 0)[0]:
            try:
                self._output += os.read(self._screen, 65536).decode()
            except OSError:
                # Nobody has the other end open any more.
                break
        return self._output

    def frame(self, what: str,
              wanted: Callable[[List[str]], bool]) -> List[str]:
        """Wait until a whole frame is as it should be; returns its lines."""
        def probe() -> Optional[List[str]]:
            frames = re.findall(
                f'{re.escape(HOME)}([^\033]*(?:{re.escape(CLEAR_LINE)}'
                f'[^\033]*)*){re.escape(CLEAR_BELOW)}', self.printed())
            if not frames:
                return None
            lines = frames[-1].replace(CLEAR_LINE, '').split('\r\n')[:-1]
            return lines if wanted(lines) else None
        return wait_until(what, probe, timeout=60)

    def ending(self) -> str:
        """Wait for its end; what it printed to stderr by then."""
        _, errors = self.process.communicate(timeout=60)
        return errors


class TopTest(unittest.TestCase):
    """Tests of the program."""

    def machine(self) -> Machine:
        """A machine with a device of 4 GiB, not started."""
        machine = Machine(environment.qemu_system(), 'tcg', MAXMEM)
        self.addCleanup(machine.shutdown)
        machine.add_args(*virtio_mem_arguments(
            'vmem0', 4 * GIB, addr=str(SLOT), requested_size=str(4 * GIB),
            multiple_memslots='on', unplugged_inaccessible='on'))
        return machine

    def run_top(self, *arguments: str, env: Optional[Dict[str, str]] = None
                ) -> 'subprocess.CompletedProcess[str]':
        """Run it to its end."""
        return subprocess.run(command_line(*arguments), check=False, env=env,
                              text=True, timeout=60, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def start_top(self, *arguments: str) -> 'subprocess.Popen[str]':
        """Run it in the background."""
        # pylint: disable=consider-using-with
        process = subprocess.Popen(command_line(*arguments), text=True,
                                   stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)

        def end() -> None:
            process.kill()
            process.communicate()
        self.addCleanup(end)
        return process

    def assert_fails(self, message: str, *arguments: str,
                     env: Optional[Dict[str, str]] = None) -> None:
        """It says that, in one line, and nothing else."""
        result = self.run_top(*arguments, env=env)
        self.assertEqual(result.stderr, f'memslots-top: {message}\n')
        self.assertEqual((result.returncode, result.stdout), (1, ''))


class TestOnce(TopTest):
    """It prints once."""

    def test_show(self) -> None:
        """It shows what QMP tells, as text and as JSON."""
        machine = self.machine()
        path = add_qmp(machine)
        Block(self, machine).add()
        OldBlock(self, machine).add()
        machine.launch()
        memory = VirtioMem(machine, SLOT)
        self.assertEqual(memory.plug(GIB, 2 * MIB), Answer.ACK)

        result = self.run_top('--once', '--json', path)
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        self.assertEqual(json.loads(result.stdout), {
            'devices': [machine.memory_device('vmem0')],
            'memslots': machine.cmd('query-memslots'),
            'refusals': []})

        result = self.run_top('--once', path)
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        print('\n'.join(f'# {line}' for line in result.stdout.splitlines()),
              flush=True)
        self.assertIn(f'plugged [#{"." * 39}] 2 MiB of 4 GiB requested',
                      result.stdout)
        self.assertIn(f'mapped  [{"#" * 10}{"." * 30}] 1 GiB in 1 of 4 '
                      'memslots', result.stdout)
        self.assertRegex(result.stdout, 'vhost0 +509 +.* [0-9]+  shared-only')
        self.assertRegex(result.stdout,
                         'vhost2 +32 .* whole-devices, shared-only')

    def test_no_device(self) -> None:
        """It says that there is none, over TCP as well."""
        machine = VirtualMachine(environment.qemu_system(), 'tcg', 128 * MIB)
        self.addCleanup(machine.shutdown)
        with socket.create_server(('localhost', 0)) as server:
            os.set_inheritable(server.fileno(), True)
            machine.add_args(
                '-chardev', f'socket,id=c,fd={server.fileno()},server=on,'
                            'wait=off', '-mon', 'c,mode=control')
            machine.launch()
            port = server.getsockname()[1]
        result = self.run_top('--once', f'localhost:{port}')
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        self.assertEqual(result.stdout.splitlines()[0],
                         'no virtio-mem devices')


class TestFailures(TopTest):
    """It says what is wrong, without a traceback."""

    def setUp(self) -> None:
        self._stack = ExitStack()
        self.addCleanup(self._stack.close)

    def listen(self, directory: Path, backlog: bool = True) -> str:
        """A socket that somebody has bound, and listens to if @backlog."""
        server = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        path = str(directory / 'listening')
        server.bind(path)
        if backlog:
            server.listen()
        return path

    def test_command_line(self) -> None:
        """What is given makes no sense."""
        for arguments, message in (
                ((), 'one of the arguments SOCKET --domain is required'),
                (('x', '--domain', 'y'), 'not allowed with argument'),
                (('x', '--connect', 'y'), '--connect is for --domain only'),
                (('--interval', '0', 'x'), "--interval: '0' is not a number "
                 'of seconds above 0, up to a day'),
                (('--interval', 'nan', 'x'), "'nan' is not a number"),
                (('--timeout', '1e9', 'x'), "'1e9' is not a number")):
            with self.subTest(arguments=arguments):
                result = self.run_top(*arguments)
                self.assertEqual(result.returncode, 2)
                self.assertIn(message, result.stderr)
                self.assertNotIn('Traceback', result.stderr)

    def test_no_socket(self) -> None:
        """There is nothing that listens."""
        machine = self.machine()
        file = machine.directory / 'file'
        file.touch()
        dead = self.listen(machine.directory, backlog=False)
        for address, message in (
                ('/nonexistent', '[Errno 2] No such file or directory'),
                (str(file), '[Errno 111] Connection refused'),
                (dead, '[Errno 111] Connection refused'),
                ('localhost:x', "'x' is not a port number; a path to a socket "
                 'with a colon in it starts with a "/" or "./"')):
            with self.subTest(address=address):
                self.assert_fails(f'{address}: {message}', address)

    def test_wrong_socket(self) -> None:
        """Who listens does not speak QMP, or not with us."""
        machine = self.machine()
        human = machine.directory / 'hmp'
        machine.add_args('-monitor', f'unix:{human},server=on,wait=off')
        qmp = add_qmp(machine)
        machine.launch()
        self.assert_fails(f'{human}: it is a socket, but not one for QMP',
                          str(human))
        silent = self.listen(machine.directory)
        other = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        other.connect(qmp)
        for path in (silent, qmp):
            with self.subTest(path=path):
                self.assert_fails(
                    f'{path}: no answer within 0.5 s; is it a QMP socket, and '
                    'is nobody else connected to it?', '--timeout=0.5', path)
        other.close()
        result = self.run_top('--once', qmp)
        self.assertEqual((result.returncode, result.stderr), (0, ''))

    def test_virsh(self) -> None:
        """There is no virsh, or it does not help."""
        def command(line: str) -> Dict[str, str]:
            directory = self._stack.enter_context(TemporaryDirectory())
            program = Path(directory) / 'virsh'
            program.write_text(f'#!/bin/sh\n{line}\n', encoding='ascii')
            program.chmod(0o755)
            return {'PATH': directory}
        error = ('{"error": {"class": "CommandNotFound", "desc": "The command '
                 'query-memslots has not been found"}}')
        for env, message in (
                ({'PATH': '/nonexistent'}, 'virsh is needed for domains of '
                 'libvirt; install libvirt-clients, or use a QMP socket'),
                (command('exec /bin/sleep 60'),
                 'vm: libvirt does not answer within 0.5 s'),
                (command('echo error: no such domain >&2; exit 1'),
                 'error: no such domain'),
                (command(f"echo '{error}'"),
                 'this QEMU has no query-memslots: it maps each memory '
                 'device in one memslot')):
            with self.subTest(message=message):
                self.assert_fails(message, '--timeout=0.5', '--domain', 'vm',
                                  env=env)

    def test_closed_at_once(self) -> None:
        """Who listens has no time for us."""
        directory = self.machine().directory
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(directory / 'listening'))
            server.listen()
            process = self.start_top(str(directory / 'listening'))
            server.accept()[0].close()
            _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(errors, f'memslots-top: {directory}/listening: the '
                                 'connection was closed at once\n')

    def test_stock_qemu(self) -> None:
        """Debian's QEMU has nothing to tell."""
        machine = VirtualMachine(environment.stock_qemu(), 'tcg', 128 * MIB,
                                 maxmem=8 * GIB)
        self.addCleanup(machine.shutdown)
        path = add_qmp(machine)
        machine.add_args('-S', *virtio_mem_arguments('vmem0', GIB))
        machine.launch()
        for mode in ('--once', '--json'):
            with self.subTest(mode=mode):
                self.assert_fails(
                    'this QEMU has no query-memslots: it maps each memory '
                    'device in one memslot', mode, path)

    def test_hangs(self) -> None:
        """The VM does not answer any more."""
        machine = self.machine()
        path = add_qmp(machine)
        machine.launch()
        process = self.start_top('--json', '--interval=0.1', '--timeout=1',
                                 path)
        assert process.stdout is not None
        process.stdout.readline()
        pid = machine.get_pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            os.kill(pid, signal.SIGCONT)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(errors, f'memslots-top: {path}: the VM does not '
                                 'answer within 1 s\n')


class TestLive(TopTest):
    """It prints again and again."""

    def launch(self) -> Machine:
        """A machine that runs, with a QMP socket."""
        machine = self.machine()
        add_qmp(machine)
        machine.launch()
        return machine

    def terminal(self, machine: Machine, columns: int, lines: int,
                 *arguments: str) -> Terminal:
        """Run it on a terminal."""
        return Terminal(self, columns, lines, *arguments,
                        str(machine.directory / 'qmp'))

    def test_terminal(self) -> None:
        """Frames take the place of each other."""
        machine = self.launch()
        memory = VirtioMem(machine, SLOT)
        terminal = self.terminal(machine, 100, 30, '--interval=0.1')
        lines = terminal.frame('it shows the device', lambda lines: any(
            f'plugged [{"." * 40}] 0 B of 4 GiB' in line for line in lines))
        self.assertRegex(lines[0], re.escape(f'{machine.directory}/qmp, ')
                         + r'\d\d:\d\d:\d\d, every 0.1 s')
        self.assertEqual(memory.plug(0, GIB), Answer.ACK)
        lines = terminal.frame('it shows plugged memory', lambda lines: any(
            f'plugged [{"#" * 10}{"." * 30}] 1 GiB of 4 GiB' in line
            for line in lines))
        print('\n'.join(f'# {line}' for line in lines), flush=True)

        # Ctrl-C
        terminal.type(b'\3')
        self.assertEqual(terminal.ending(), '')
        self.assertEqual(terminal.process.returncode, 0)

    def test_resize(self) -> None:
        """What does not fit is left out; other sizes show at once."""
        machine = self.launch()
        terminal = self.terminal(machine, 100, 30, f'--interval={FOREVER}')
        all_lines = terminal.frame('it shows all', lambda lines: any(
            line.startswith('TCG') or line.startswith('memory devices')
            for line in lines))
        terminal.resize(60, 30)
        lines = terminal.frame('the gauge is shorter', lambda lines: any(
            line.endswith(f'[{"." * 16}] 0 B of 4 GiB requested')
            for line in lines))
        self.assertEqual(len(lines), len(all_lines))
        terminal.resize(20, 30)
        lines = terminal.frame('all is cut', lambda lines: all(
            len(line) <= 20 for line in lines))
        self.assertEqual(lines[2:], [
            line.replace('.' * 40, '.')[:20] for line in all_lines[2:]])
        terminal.resize(100, 5)
        left_out = len(all_lines) - 3
        lines = terminal.frame('lines are left out', lambda lines: lines[-1]
                               == f'({left_out} more lines)')
        self.assertEqual(lines[:-1], all_lines[:3])
        terminal.resize(100, 1)
        terminal.frame('one is left', lambda lines: lines == [
            f'({len(all_lines)} more lines)'])
        # Not even its size is known.
        terminal.resize(0, 0)
        terminal.frame('it shows all again', lambda lines: len(lines)
                       == len(all_lines))
        terminal.process.send_signal(signal.SIGINT)
        self.assertEqual(terminal.ending(), '')
        self.assertEqual(terminal.process.returncode, 0)

    def test_once_on_a_terminal(self) -> None:
        """Whatever the size, all is printed, and no control sequences."""
        machine = self.launch()
        terminal = self.terminal(machine, 50, 3, '--once')
        self.assertEqual(terminal.ending(), '')
        self.assertEqual(terminal.process.returncode, 0)
        output = terminal.printed()
        self.assertIn('memory devices', output)
        self.assertIn(f'plugged [{"." * 6}] 0 B of 4 GiB', output)
        self.assertNotIn('\033', output)

    def test_end(self) -> None:
        """It ends when the VM does, on a terminal or not."""
        machine = self.launch()
        terminal = self.terminal(machine, 80, 24, '--interval=0.1')
        terminal.frame('it shows something', bool)
        machine.shutdown()
        self.assertEqual(
            terminal.ending(),
            f'memslots-top: {machine.directory}/qmp: the VM has gone\n')
        self.assertEqual(terminal.process.returncode, 1)

    def test_no_terminal(self) -> None:
        """Reports follow each other, without control sequences."""
        machine = self.launch()
        process = self.start_top('--interval=0.1',
                                 str(machine.directory / 'qmp'))
        assert process.stdout is not None
        reports: List[List[str]] = [[]]
        while len(reports) < 4:
            line = process.stdout.readline()
            self.assertNotIn('\033', line)
            if line.startswith('vmem0'):
                reports.append([])
            reports[-1].append(line)
        self.assertEqual(reports[1], reports[2])
        self.assertEqual(reports[1][-1], '\n')
        machine.shutdown()
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(
            errors,
            f'memslots-top: {machine.directory}/qmp: the VM has gone\n')

    def read_json(self, process: 'subprocess.Popen[str]') -> Dict[str, Any]:
        """What the next line of JSON says of the device."""
        assert process.stdout is not None
        status = json.loads(process.stdout.readline())
        self.assertEqual(set(status), {'devices', 'memslots', 'refusals'})
        device: Dict[str, Any] = status['devices'][0]
        return device

    def test_json(self) -> None:
        """A line of JSON each time, up to an interrupt."""
        machine = self.launch()
        memory = VirtioMem(machine, SLOT)
        process = self.start_top('--json', '--interval=0.1',
                                 str(machine.directory / 'qmp'))
        self.assertEqual(self.read_json(process)['size'], 0)
        self.assertEqual(memory.plug(0, GIB), Answer.ACK)
        wait_until('it tells of plugged memory', lambda: (
            self.read_json(process)['size'] == GIB) or None)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, errors), (0, ''))

    def test_refused(self) -> None:
        """It tells of requests that are refused while it looks."""
        machine = self.machine()
        path = add_qmp(machine)
        machine.add_args('-device', 'ram-discard-testdev,id=listener')
        # Each is reported once a minute.
        machine.add_args(*virtio_mem_arguments(
            'vmem1', GIB, addr=str(SLOT + 1), requested_size=str(GIB)))
        machine.launch()
        memory = VirtioMem(machine, SLOT)
        process = self.start_top('--json', '--interval=0.1', path)
        assert process.stdout is not None
        status = json.loads(process.stdout.readline())
        self.assertEqual(status['refusals'], [])
        machine.cmd('qom-set', path='/machine/peripheral/listener',
                    property='max-populated', value=0)
        for _ in range(2):
            self.assertEqual(memory.plug(0, GIB), Answer.BUSY)
        while not status['refusals']:
            status = json.loads(process.stdout.readline())
        refusal = status['refusals'][0]
        self.assertEqual((refusal['id'], refusal['refuser'],
                          refusal['left-out']), ('vmem0', 'dma', 0))
        # It is not forgotten.
        status = json.loads(process.stdout.readline())
        self.assertEqual(status['refusals'], [refusal])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

        terminal = self.terminal(machine, 100, 30, '--interval=0.1')
        terminal.frame('it shows something', bool)
        other = VirtioMem(machine, SLOT + 1)
        self.assertEqual(other.plug(0, GIB), Answer.BUSY)
        lines = terminal.frame('it shows the refusal', lambda lines:
                               'REFUSED' in lines)
        self.assertRegex(lines[-1], r'^\d\d:\d\d:\d\d vmem1: a device that'
                                    r' does DMA, .*: No space left')

    def test_interrupt_while_waiting(self) -> None:
        """It can be ended while the VM hangs, too."""
        machine = self.launch()
        process = self.start_top('--json', '--interval=0.1',
                                 f'--timeout={FOREVER}',
                                 str(machine.directory / 'qmp'))
        self.read_json(process)
        pid = machine.get_pid()
        assert pid is not None and process.stdout is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            # What was on its way is printed, then there is nothing any more.
            while select.select([process.stdout], [], [], 1)[0]:
                os.read(process.stdout.fileno(), 65536)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            os.kill(pid, signal.SIGCONT)
        self.assertEqual((process.returncode, errors), (0, ''))

    def test_closed_pipe(self) -> None:
        """It ends quietly when nobody reads what it prints."""
        machine = self.launch()
        arguments: List[str]
        for arguments in (['--json'], []):
            with self.subTest(arguments=arguments):
                process = self.start_top(*arguments, '--interval=0.1',
                                         str(machine.directory / 'qmp'))
                assert process.stdout is not None
                process.stdout.readline()
                process.stdout.close()
                process.wait(timeout=60)
                assert process.stderr is not None
                self.assertEqual(process.stderr.read(), '')
                self.assertEqual(process.returncode, 0)


if __name__ == '__main__':
    unittest.main()
