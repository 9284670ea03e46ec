# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""make docs: QEMU's whole manual, without a warning."""

from __future__ import annotations

import html
import os
import re
import subprocess
import unittest
from pathlib import Path

from sandbox import REPOSITORY, SandboxTest, write

PAGES = ("system/devices/virtio-mem-memslots", "devel/memory-device-memslots",
         "devel/memory-device-trust")


class Manual(SandboxTest):
    """QEMU's manual, with its own extensions and what they read."""

    def build_dir(self) -> Path:
        """The build whose source has the series."""
        directory = os.environ.get("BUILD_DIR")
        if not directory:
            raise RuntimeError("BUILD_DIR is not set; run the tests with "
                               "\"make check\", or set it (to $PWD/build, "
                               "say)")
        return Path(directory)

    def assert_tells(self, name: str, *words: str) -> None:
        """A page has these words."""
        text = (self.build_dir() / "docs" / name).read_text("utf-8")
        if name.endswith(".html"):
            text = html.unescape(re.sub(r"<[^>]*>", "", text))
        else:
            text = text.replace("\\-", "-")
        for word in words:
            # Not assertIn(), which shows all of the page.
            self.assertTrue(word in text, f"{name} does not tell of {word}")

    def test_builds_without_warnings(self) -> None:
        """What the series adds to it is there."""
        done = subprocess.run(
            [REPOSITORY / "scripts/build-docs", self.build_dir()],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=1100, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        for page in PAGES:
            source = REPOSITORY / "docs" / f"{page}.rst"
            titles = re.findall(r"^(.+)\n[=-]{4,}$",
                                source.read_text("utf-8"), re.M)
            self.assertTrue(titles)
            self.assert_tells(f"{page}.html", *titles)
        users, developers, _ = PAGES
        self.assert_tells(f"{users}.html", "dynamicMemslots='yes'",
                          "<qemu:override>")
        self.assert_tells(f"{developers}.html", "memslot_set_sync")
        self.assertTrue((self.build_dir() / "docs/_images"
                         / "memory-device-memslots.svg").is_file())
        # Commands, for people and for programs
        self.assert_tells("system/monitor.html", "info memslots")
        for name in ("interop/qemu-qmp-ref.html", "man/qemu-qmp-ref.7"):
            self.assert_tells(name, "query-memslots", "soft-limit",
                              "whole-devices", "active-memslots")


class Warnings(SandboxTest):
    """A manual of one page, with something wrong."""

    def setUp(self) -> None:
        super().setUp()
        self.docs = self.build / "qemu/docs"
        write(self.docs / "conf.py", "project = 'tiny'\n")
        self.write_page()

    def write_page(self, text: str = "") -> None:
        """The page, with some text at its end."""
        write(self.docs / "index.rst", f"Tiny\n====\n\n{text}\n")

    def fail_to_build(self, *expected: str) -> None:
        """Twice, as what was read the first time is not to be forgiven."""
        for _ in range(2):
            self.fail_with([*expected, "does not build without warnings"],
                           "scripts/build-docs", "build")

    def test_warnings_of_sphinx(self) -> None:
        """They fail, each time, until they are gone."""
        self.write_page(":doc:`nowhere`")
        self.fail_to_build("unknown document: 'nowhere'")
        self.write_page()
        self.succeed("scripts/build-docs", "build")

    def test_warnings_of_kernel_doc(self) -> None:
        """Sphinx does not count what else is printed."""
        write(self.docs / "conf.py", "import sys\nproject = 'tiny'\n"
              "print('not described', file=sys.stderr)\n")
        self.fail_to_build("not described")


if __name__ == "__main__":
    unittest.main()
