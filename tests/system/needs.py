"""
What tests need of the machine that they run on.

Where that is not there, they are skipped, unless the environment variable
REQUIRE names it: then they fail. Tests in C have libqos/host.h for that.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import unittest
from typing import NoReturn

# A KVM that QEMU starts with; one that boots a Linux guest as well; what only
# root may do; and what comes from the network. See README.md, and
# scripts/check, which knows these names.
KVM, GUEST, ROOT, NET = 'kvm', 'guest', 'root', 'net'


def insist(need: str, reason: str) -> None:
    """Have the test that runs fail if REQUIRE names what it lacks."""
    if need in os.environ.get('REQUIRE', '').split(','):
        raise AssertionError(f'{reason} (REQUIRE has "{need}")')


def lack(need: str, reason: str) -> NoReturn:
    """End the test that runs: there is not what it needs."""
    insist(need, reason)
    raise unittest.SkipTest(reason)
