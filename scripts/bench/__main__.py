"""
Measure what a virtio-mem device costs, beside other QEMUs.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

SCRIPTS = Path(__file__).resolve().parents[1]
ROOT = SCRIPTS.parent
sys.dont_write_bytecode = True
# Python put this directory first, whose files have names of modules.
sys.path[0] = str(SCRIPTS)
sys.path.insert(0, str(ROOT / 'tests' / 'system'))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='bench', description=__doc__.strip().splitlines()[0])
    parser.add_argument('--build-dir', type=Path, default=ROOT / 'build')
    parser.add_argument(
        '--output', type=Path,
        help='directory for the results (default: bench in the build '
             'directory)')
    parser.add_argument('--rounds', type=int,
                        help='how often to measure (default: 7; 3 with '
                             '--quick)')
    parser.add_argument('--quick', action='store_true',
                        help='fewer and smaller devices')
    parser.add_argument('--only', metavar='NAME,...',
                        help='run these measurements only')
    parser.add_argument('--list', action='store_true',
                        help='print the names of the measurements')
    parser.add_argument('--peer', action='append', default=[],
                        metavar='NAME=PATH[,OPTION]',
                        help='measure one more QEMU; OPTION is a property '
                             'for its virtio-mem devices')
    parser.add_argument('--old', action='store_true',
                        help='measure Debian 12\'s QEMU 7.2, too')
    parser.add_argument('--no-stock', action='store_true',
                        help='do not measure (nor build) the same QEMU '
                             'without the series')
    parser.add_argument('--memory', type=float, metavar='GIB',
                        help='how much the kernel may spend on a machine '
                             '(default: half of what is available); what '
                             'would take more is left out')
    parser.add_argument('--report', type=Path, metavar='JSON',
                        help='measure nothing, make tables and plots of '
                             'these results')
    parser.add_argument('--page', action='store_true',
                        help='make the page docs/benchmarks.rst, and what '
                             'README.md says, of the results')
    return parser.parse_args()


ARGUMENTS = parse_arguments()
BUILD_DIR: Path = ARGUMENTS.build_dir.resolve()
QEMU = BUILD_DIR / 'qemu-system-x86_64'
QEMU_PYTHON = BUILD_DIR / 'qemu' / 'python'
if not QEMU.exists() or not QEMU_PYTHON.is_dir():
    sys.exit(f'bench: no QEMU in {BUILD_DIR}; run ./configure and '
             '"ninja -C build", or "make bench", which does both')
sys.path.insert(0, str(QEMU_PYTHON))
# The tests' helpers look there.
os.environ['BUILD_DIR'] = str(BUILD_DIR)
os.environ['QEMU_SYSTEM'] = str(QEMU)

# pylint: disable=wrong-import-position
import environment  # noqa: E402

from bench import bare, formula, host, ioctls, page  # noqa: E402
from bench import pristine, report, requirements, results  # noqa: E402
from bench import runner, subjects  # noqa: E402
from bench.growth import Growth  # noqa: E402
from bench.measurement import Context, Measurement  # noqa: E402
from bench.memory import Memory  # noqa: E402
from bench.meter import Meter  # noqa: E402
from bench.migration import Migration  # noqa: E402
from bench.monitor import Monitor  # noqa: E402
from bench.nested_kvm import NestedKvm  # noqa: E402
from bench.plans import Plans  # noqa: E402
from bench.requests import Requests  # noqa: E402
from bench.start import Start  # noqa: E402
from bench.vhost import Vhost  # noqa: E402

MEASUREMENTS = (Memory, Start, Growth, Requests, Migration, Monitor, Vhost,
                NestedKvm, Plans)


def choose_subjects() -> List[subjects.Subject]:
    """What is to be measured."""
    chosen = []
    if not ARGUMENTS.no_stock:
        try:
            chosen += subjects.stock(pristine.qemu(BUILD_DIR))
        except pristine.BuildError as error:
            sys.exit(f'bench: {error}')
    chosen += subjects.ours(str(QEMU))
    if ARGUMENTS.old:
        chosen.append(subjects.old(environment.stock_qemu()))
    try:
        return chosen + [subjects.parse(text) for text in ARGUMENTS.peer]
    except ValueError as error:
        sys.exit(f'bench: {error}')


def choose_measurements() -> List[Measurement]:
    """The ones that are asked for."""
    names = {kind.name: kind for kind in MEASUREMENTS}
    if not ARGUMENTS.only:
        return [kind() for kind in MEASUREMENTS]
    wanted = ARGUMENTS.only.split(',')
    for name in wanted:
        if name not in names:
            sys.exit(f'bench: no measurement "{name}"; there are '
                     + ', '.join(names))
    return [names[name]() for name in wanted]


def kvm_flavour() -> formula.Flavour:
    """What kind of KVM there is, and that it does as the formula says."""
    size = 64 * formula.GIB
    return formula.guess(size, bare.memslot(size)[0])


def about(chosen: List[subjects.Subject], rounds: int,
          flavour: formula.Flavour) -> Dict[str, Any]:
    """What the results are of."""
    meter = Meter()
    method = meter.method
    meter.close()
    return {
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
        'machine': {**host.describe(), 'kvm': str(flavour)},
        'flavour': {'rmap': flavour.rmap, 'tracking': flavour.tracking},
        'kernel memory': method, 'rounds': rounds,
        'quick': ARGUMENTS.quick,
        'subjects': [{'name': subject.name, 'version': subject.version(),
                      'option': subject.option} for subject in chosen]}


def measure() -> results.Results:
    """Run all that is to be run, and keep the results."""
    # What it has to say is not of the results.
    with contextlib.redirect_stdout(sys.stderr):
        has_kvm = environment.has_kvm()
    if not has_kvm:
        sys.exit('bench: without KVM, there is nothing to measure')
    chosen = choose_subjects()
    rounds = ARGUMENTS.rounds or (3 if ARGUMENTS.quick else 7)
    flavour = kvm_flavour()
    limit = (int(ARGUMENTS.memory * formula.GIB) if ARGUMENTS.memory
             else host.available() // 2)
    found = results.Results(about(chosen, rounds, flavour))
    todo = list(runner.steps(choose_measurements(), chosen, rounds,
                             ARGUMENTS.quick))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='virtio-mem-') as scratch:
        def context(progress: Callable[[str], None]) -> Context:
            return Context(BUILD_DIR, ioctls.library(BUILD_DIR),
                           Path(scratch), flavour, limit, ARGUMENTS.quick,
                           progress)
        failures = runner.run(todo, context, found)
    print(f'\nDone after {time.monotonic() - start:.0f} s',
          file=sys.stderr)
    found.about['failures'] = failures
    return found


def main() -> int:
    """Measure and report."""
    if ARGUMENTS.list:
        print('\n'.join(kind.name for kind in MEASUREMENTS))
        return 0
    advice = requirements.install()
    if advice is not None:
        print(f'bench: {advice}', file=sys.stderr)
        return 1
    output = (ARGUMENTS.output or BUILD_DIR / 'bench').resolve()
    output.mkdir(parents=True, exist_ok=True)
    file = output / 'results.json'
    if ARGUMENTS.report:
        found = results.load(ARGUMENTS.report)
        if ARGUMENTS.report.resolve() != file:
            file.write_bytes(ARGUMENTS.report.read_bytes())
    else:
        found = measure()
        found.save(file)
        # As it will be read.
        found = results.load(file)
    report.write(found, file, output)
    print((output / 'results.md').read_text('utf-8'))
    print(f'Tables and plots are in {output}')
    if ARGUMENTS.page:
        page.write(file, ROOT)
    return 1 if found.about.get('failures') else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
