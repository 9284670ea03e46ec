"""
Without multiple memslots, "info mtree" is what Debian's QEMU 10.0 prints.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import unittest
from typing import Dict, List, Tuple

import environment
from vhost_backends import peer_qemu
from vm import GIB, VirtualMachine

PROPERTIES: Tuple[Dict[str, str], ...] = ({}, {'multiple_memslots': 'off'})


def sections(text: str) -> List[List[str]]:
    """
    The sections of what "info mtree" prints, in an order of our own.

    QEMU gets them, and the address spaces that share one, from a hash table
    of pointers: their order, and the numbers it gives to flat views, differ
    from one run of the same program to the next. All other lines stay as
    and where they are.
    """
    found = []
    for section in text.replace('\r', '').split('\n\n'):
        lines = [re.sub(r'^FlatView #\d+$', 'FlatView', line)
                 for line in section.splitlines()]
        heads = [line for line in lines
                 if re.match(r'address-space: | AS "', line)]
        found.append(sorted(heads)
                     + [line for line in lines if line not in heads])
    return sorted(found)


class TestUnchanged(unittest.TestCase):
    """Compare with Debian's QEMU, same command line."""

    maxDiff = None

    def outputs(self, binary: str, machine: str, inaccessible: str,
                **properties: str) -> List[str]:
        """What the monitor prints about a machine with two devices."""
        with VirtualMachine(binary, 'tcg', GIB, maxmem=20 * GIB,
                            machine=machine) as vm:
            vm.add_args('-S')
            vm.add_virtio_mem('vmem0', 4 * GIB, requested=GIB,
                              unplugged_inaccessible=inaccessible,
                              **properties)
            vm.add_virtio_mem('vmem1', 3 * GIB // 2,
                              unplugged_inaccessible=inaccessible,
                              **properties)
            vm.launch()
            return [vm.hmp(f'info mtree{option}')
                    for option in ('', ' -f', ' -d', ' -o')]

    def test_same(self) -> None:
        """All forms of the command, both kinds of machine and device."""
        for machine in ('pc-q35-10.0', 'pc-i440fx-7.2'):
            for inaccessible in ('on', 'off', 'auto'):
                stock = self.outputs(peer_qemu(), machine, inaccessible)
                for properties in PROPERTIES:
                    with self.subTest(machine=machine,
                                      inaccessible=inaccessible,
                                      **properties):
                        ours = self.outputs(environment.qemu_system(),
                                            machine, inaccessible,
                                            **properties)
                        for ours_text, stock_text in zip(ours, stock):
                            self.assertIn('vmem0-backend', stock_text)
                            self.assertEqual(sections(ours_text),
                                             sections(stock_text))


if __name__ == '__main__':
    unittest.main()
