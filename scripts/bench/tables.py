"""
The figures of a run as tables: what to say, not how it is marked up.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from bench.formula import GIB, KIB, MIB, TIB, Flavour
from bench.measurement import IMPOSSIBLE
from bench.results import Figure, Results
from bench.stages import plugged, stages


@dataclass
class Table:
    """Rows of cells, below a header."""
    header: List[str]
    rows: List[List[str]] = field(default_factory=list)


@dataclass
class Section:
    """Something that was measured."""
    title: str
    text: str
    table: Table
    plots: List[str] = field(default_factory=list)
    note: str = ''


def size_text(size: float) -> str:
    """Bytes for people to read."""
    for unit, name in ((TIB, 'TiB'), (GIB, 'GiB')):
        if size >= unit and size % unit == 0:
            return f'{size // unit:.0f} {name}'
    if abs(size) >= 100 * GIB:
        return f'{size / GIB:.0f} GiB'
    if abs(size) >= 10 * GIB:
        return f'{size / GIB:.1f} GiB'
    if abs(size) >= 10 * MIB:
        return f'{size / MIB:.0f} MiB'
    # What is less than 50 KiB is a thread's stack, a file's page table.
    if abs(size) < 50 * KIB:
        return '0'
    return f'{size / MIB:.1f} MiB'


def device_text(size: int, beside: int = 0) -> str:
    """A device, and what is plugged of it all the time."""
    text = size_text(size)
    return f'{text}, {size_text(beside)} plugged' if beside else text


def time_text(seconds: float) -> str:
    """Seconds for people to read."""
    if seconds >= 1:
        return f'{seconds:.2f} s'
    if seconds >= 0.1:
        return f'{seconds * 1e3:.0f} ms'
    if seconds >= 0.001:
        return f'{seconds * 1e3:.1f} ms'
    return f'{seconds * 1e6:.0f} µs'


def value_text(value: float, unit: str) -> str:
    """A value with its unit."""
    if unit == 'bytes':
        return size_text(value)
    if unit == 's':
        return time_text(value)
    if unit == 'ratio':
        return f'{value:.2f}'
    return f'{value:.0f}' if value == round(value) else f'{value:.1f}'


def cell(figure: Optional[Figure], spread: bool = False) -> str:
    """A figure; what was predicted, if it was not measured."""
    if figure is None:
        return ''
    median = figure.median
    if median is None:
        if figure.predicted is not None:
            return f'({size_text(figure.predicted)})'
        if figure.reason.startswith(IMPOSSIBLE):
            return IMPOSSIBLE
        return 'left out'
    text = value_text(median, figure.unit)
    if spread and len(figure.values) > 1:
        low, high = (value_text(value, figure.unit)
                     for value in figure.spread)
        if low.split()[-1] == high.split()[-1]:
            low = low.split()[0]
        if low != high.split()[0]:
            text += f' ({low} to {high})'
    return text


def flavour(results: Results) -> Flavour:
    """The kind of KVM that it was measured on."""
    return Flavour(**results.about['flavour'])


def memory(results: Results) -> Section:
    """The kernel's memory."""
    table = Table(['Device', 'Plugged', *results.subjects,
                   'KVM, for what is plugged'])
    for size in results.values_of('memory', 'size'):
        for stage, _bytes in stages(size):
            table.rows.append([size_text(size), stage] + [
                cell(results.find('memory', 'kernel', subject, size=size,
                                  plugged=stage))
                for subject in results.subjects]
                + [size_text(flavour(results).bytes(plugged(stage, size)))])
    return Section(
        'Kernel memory',
        'How much more memory the kernel uses with the device. In '
        'parentheses: what the formula gives, where the machine has too '
        'little memory to try.', table,
        ['kernel-memory', 'kernel-memory-unplugged'])


def own(results: Results) -> Section:
    """QEMU's memory."""
    table = Table(['Device', *results.subjects])
    for size in results.values_of('memory', 'size'):
        table.rows.append([size_text(size)] + [
            cell(results.find('memory', 'QEMU', subject, size=size,
                              plugged='0'))
            for subject in results.subjects])
    return Section(
        'QEMU\'s own memory',
        'Anonymous memory, which is not page cache, over that of a QEMU '
        'without the device; nothing is plugged.', table, ['qemu-memory'])


def memslots(results: Results) -> Section:
    """Memslots."""
    names = [name for name, _bytes in stages(1 << 60)]
    subjects = [name for name in results.subjects if results.dynamic(name)]
    table = Table(['Device', '', *names])
    for size in results.values_of('memory', 'size'):
        for subject in subjects:
            table.rows.append([size_text(size), subject] + [
                cell(results.find('memory', 'memslots', subject, size=size,
                                  plugged=name)) for name in names])
    return Section(
        'Memslots', 'How many memslots the device has in KVM, by what is '
        'plugged. The others always have one.', table)


def start(results: Results) -> Section:
    """Time to start."""
    table = Table(['Device', *results.subjects])
    for size in results.values_of('start', 'size'):
        table.rows.append([size_text(size) if size else 'none'] + [
            cell(results.find('start', 'start', subject, size=size), True)
            for subject in results.subjects])
    return Section(
        'Start', 'Time from exec until QEMU answers its first QMP command.',
        table, ['start'])


def growth(results: Results) -> Section:
    """Start and growth."""
    table = Table(['Device', 'Plugged', *results.subjects])
    for size in results.values_of('growth', 'size'):
        for stage, _bytes in stages(size):
            table.rows.append([size_text(size), stage] + [
                cell(results.find('growth', 'time', subject, size=size,
                                  plugged=stage), True)
                for subject in results.subjects])
    return Section(
        'Start and growth',
        'The same, and what QEMU takes for the requests of a guest that '
        'plugs from the start of the device, 1 GiB with each, until so much '
        'is plugged. A single memslot is paid for at start, many are as the '
        'device grows.', table, ['growth'])


def request_cases(results: Results) -> List[Tuple[str, Dict[str, int]]]:
    """All devices that requests were measured with."""
    cases = {}
    for figure in results:
        if figure.measurement == 'requests':
            case = {name: int(figure.parameters[name])
                    for name in ('size', 'beside')}
            cases[device_text(**case)] = case
    return list(cases.items())


def requests(results: Results) -> Section:
    """Requests."""
    table = Table(['Device', 'Request', '', *results.subjects])
    for text, case in request_cases(results):
        for kind in results.values_of('requests', 'request'):
            for metric in ('time', 'KVM time', 'memslot ioctls',
                           'over KVM'):
                figures = [results.find('requests', metric, subject,
                                        request=kind, **case)
                           for subject in results.subjects]
                if any(figure and any(figure.values) for figure in figures):
                    table.rows.append(
                        [text, kind, metric]
                        + [cell(figure, metric == 'time')
                           for figure in figures])
    return Section(
        'Requests',
        'Time that QEMU takes for a request of the guest to plug or unplug '
        'one block: the first one in a memslot ("plug, maps"), one of seven '
        'more ("plug"), and back again, in 16 places that are evenly spread '
        'over the device; or over its end, with the rest plugged and '
        'mapped. "KVM time" is what KVM\'s ioctl takes of it. "Over KVM" '
        'is how many times of that a request takes more, because it changes '
        'memslots, than the one next to it: 1 would mean that KVM\'s ioctl '
        'is all that it costs.', table, ['requests'])


MIGRATION = ('set-up', 'kernel for it', 'QEMU for it', 'last sync',
             'dirty-log time', 'dirty-log ioctls', 'load')


def migration(results: Results) -> Section:
    """Migration."""
    table = Table(['Device', '', *results.subjects])
    for size in results.values_of('migration', 'size'):
        for metric in MIGRATION:
            table.rows.append([size_text(size) if size else 'no device',
                               metric] + [
                cell(results.find('migration', metric, subject, size=size),
                     True) for subject in results.subjects])
    return Section(
        'Migration',
        'With 1 GiB plugged. "Set-up" is the time until memory is sent, as '
        'QEMU tells; "for it" is the memory that kernel and QEMU take to '
        'keep track of dirty pages; "last sync" collects them with the '
        'vCPUs stopped; "dirty-log" is about KVM\'s ioctls for that; "load" '
        'is the time of the destination, for a migration that comes from a '
        'file.', table, ['migration'])


def monitor(results: Results) -> Section:
    """The monitor."""
    table = Table(['Device', *results.subjects])
    for size in results.values_of('monitor', 'size'):
        table.rows.append([size_text(size) if size else 'no device'] + [
            cell(results.find('monitor', 'longest wait', subject, size=size),
                 True) for subject in results.subjects])
    return Section(
        'Longest wait for the monitor',
        'While a migration starts, with 1 GiB plugged: the status is asked '
        'for again and again on a monitor of its own, until half a second '
        'after memory is sent.', table, ['monitor'])


def vhost(results: Results) -> Section:
    """vhost-user."""
    table = Table(['', *results.subjects])
    for metric in ('time', 'kernel, 1 GiB plugged', 'memory messages',
                   'regions of the backend', 'memslots'):
        figures = [results.find('vhost', metric, subject,
                                size=results.values_of('vhost', 'size')[0])
                   for subject in results.subjects]
        table.rows.append([metric] + [cell(figure, True)
                                      for figure in figures])
    return Section(
        'Growth beside vhost-user',
        'A machine whose disk is the storage daemon\'s (vhost-user-blk, 509 '
        'memory regions) plugs 48 GiB, 1 GiB at a time: what QEMU takes for '
        'the 48 requests, all of the kernel\'s memory for QEMU after the '
        'first one, how often the backend is told of memory, and what both '
        'have in the end.', table, ['vhost'])


def nested_case(parameters: Dict[str, Any]) -> str:
    """A case of the nested VM, in words."""
    words = ['TDP MMU' if parameters['TDP MMU'] == 'Y' else 'shadow paging',
             'SMM' if parameters['SMM'] == 'on' else 'no SMM']
    if parameters['guest'] != 'none':
        words.append(f'{parameters["guest"]}, 1 GiB plugged')
    return ', '.join(words)


def nested_cases(results: Results) -> List[Dict[str, Any]]:
    """All cases of the nested VM."""
    found: Dict[str, Dict[str, Any]] = {}
    for figure in results:
        if figure.measurement == 'nested':
            found.setdefault(str(figure.parameters), figure.parameters)
    return list(found.values())


def nested(results: Results) -> Section:
    """The nested VM."""
    table = Table(['KVM', '', *results.subjects])
    for case in nested_cases(results):
        figures = [results.find('nested', 'kernel', subject, **case)
                   for subject in results.subjects]
        measured, predicted, off = [], [], []
        for figure in figures:
            measured.append(cell(figure))
            known = figure is not None and figure.predicted is not None
            predicted.append(size_text(figure.predicted or 0)
                             if figure and known else '')
            off.append(f'{100 * (figure.median / figure.predicted - 1):+.1f}'
                       ' %' if figure and figure.median and figure.predicted
                       and figure.predicted > 64 * MIB else '')
        name = nested_case(case)
        table.rows += [[name, 'measured', *measured],
                       [name, 'predicted', *predicted],
                       [name, 'difference', *off]]
    return Section(
        'KVM with SMM and the TDP MMU',
        'The kernel\'s memory for a device of 512 GiB, in a VM that has a '
        'KVM with SMM and the TDP MMU (AMD\'s SVM, as QEMU\'s TCG emulates '
        'it), with nothing plugged unless it says so. Predicted is what the '
        'formula gives for the memory that has memslots: for devices that '
        'have many memslots, the plugged part and the machine\'s 256 MiB.',
        table, ['nested'])


# Names of plans, and how they are called
PLANS = {'equal': 'equal', 'spread-2': 'up to twice as large (default)',
         'spread-4': 'up to 4 times as large', 'spread-0': 'no bound'}


def plans(results: Results) -> Section:
    """How memslots are divided."""
    table = Table(['Device', 'Budget', '', *PLANS.values()])
    for size in results.values_of('plans', 'size'):
        for budget in results.values_of('plans', 'budget'):
            where = {'size': size, 'budget': budget}
            for metric in ('memslots', 'ratio', 'one block'):
                table.rows.append(
                    [size_text(size), str(budget), metric] + [
                        cell(results.find('plans', metric, 'on', plan=plan,
                                          **where)) for plan in PLANS])
    return Section(
        'How memslots are divided',
        'Plans for a budget of memslots: all equal, or growing with their '
        'distance from the start, with a bound for the largest one in terms '
        'of equal ones. "Ratio" is what is mapped over what is plugged, at '
        'worst, for a guest that plugs from the start, one smallest memslot '
        'being for free; "one block" is what a single block, that lies '
        'anywhere, has mapped on average. Computed by the code that QEMU '
        'has, not measured.', table, ['plans'])


SECTIONS = {'memory': (memory, own, memslots), 'start': (start,),
            'growth': (growth,),
            'requests': (requests,), 'migration': (migration,),
            'monitor': (monitor,), 'vhost': (vhost,), 'nested': (nested,),
            'plans': (plans,)}


def sections(results: Results) -> List[Section]:
    """A section for each thing that was measured."""
    measured = {figure.measurement for figure in results}
    return [make(results) for name, makers in SECTIONS.items()
            if name in measured for make in makers]


def about(results: Results) -> List[Tuple[str, str]]:
    """What it was measured on, and with."""
    machine = results.about['machine']
    lines = [
        ('Machine', f'{machine["cpu"]}, {machine["cpus"]} CPUs, '
                    f'{machine["memory"]}'),
        ('Kernel', machine['kernel']), ('KVM', machine['kvm']),
        ('Kernel memory', f'read from: {results.about["kernel memory"]}'),
        ('Rounds', str(results.about['rounds'])),
        ('Date', results.about['date'])]
    for subject in results.about['subjects']:
        lines.append((subject['name'], f'QEMU {subject["version"]}'
                      + (f', {subject["option"]}' if subject['option']
                         else '')))
    return lines
