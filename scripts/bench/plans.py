"""
How regions are divided into memslots: not measured, but computed by the code
that QEMU has.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import csv
import subprocess
from typing import List

from bench.formula import GIB
from bench.measurement import Context, Measurement, Parameters, Sample
from bench.subjects import Subject

PROGRAM = 'qemu-build/tests/bench/memslot-plan-bench'


class Plans(Measurement):
    """See above."""
    name = 'plans'
    exact = True
    estimate = 0.1

    def points(self, quick: bool) -> List[Parameters]:
        return [{}]

    def run(self, context: Context, subject: Subject,
            point: Parameters) -> List[Sample]:
        if subject.name != 'on':
            return []
        output = subprocess.run([str(context.build / PROGRAM)], check=True,
                                stdout=subprocess.PIPE, text=True).stdout
        samples = []
        for row in csv.DictReader(output.splitlines(), delimiter='\t'):
            where: Parameters = {'size': int(row['size']) * GIB,
                                 'budget': int(row['budget']),
                                 'plan': row['plan']}
            samples += [
                Sample('ratio', 'ratio', float(row['ratio']), where),
                Sample('one block', 'bytes', float(row['random']) * GIB,
                       where),
                Sample('memslots', '', int(row['count']), where)]
        return samples
