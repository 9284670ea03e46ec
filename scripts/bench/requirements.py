"""
What the plots need beyond what configure installs.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import importlib.util
import os
import subprocess
from typing import Optional

MODULE, PACKAGE = 'matplotlib', 'python3-matplotlib'


def install() -> Optional[str]:
    """Have it there: None, or what the user has to do."""
    if importlib.util.find_spec(MODULE) is not None:
        return None
    advice = f'plots need {PACKAGE}; as root, run\n  apt-get install {PACKAGE}'
    if os.geteuid() != 0:
        return advice
    command = ['apt-get', '-o', 'DPkg::Lock::Timeout=300', '--quiet',
               '--yes', '--no-install-recommends', 'install', PACKAGE]
    environment = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
    print(f'Installing {PACKAGE}', flush=True)
    if subprocess.run(command, env=environment, check=False).returncode:
        # Lists of packages that are too old name files that are gone.
        subprocess.run(['apt-get', '--quiet', 'update'], check=False)
        if subprocess.run(command, env=environment,
                          check=False).returncode:
            return advice
    importlib.invalidate_caches()
    return (None if importlib.util.find_spec(MODULE) is not None
            else advice)
