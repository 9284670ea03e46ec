"""
Benchmarks: what a virtio-mem device costs, beside other QEMUs.

SPDX-License-Identifier: GPL-2.0-or-later
"""
