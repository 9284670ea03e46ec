# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""A copy of this repository with a series of its own, and a tiny QEMU.

The tiny QEMU has what the build machinery looks at: a version, a configure
that makes a build.ninja, a checkpatch.pl, a file to patch.  So configure,
graft, export, format and the outer build all run for real, in seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MACHINERY = (".ci", ".gitignore", "Makefile", "configure", "meson.build",
             "meson_options.txt", "scripts")

# The patches that there are to begin with, both of one topic
FIRST = "core/0001-mem-first.patch"
SECOND = "core/0002-mem-second.patch"

LINES = [f"line {number}\n" for number in range(1, 41)]

CONFIGURE = r"""#!/bin/sh
src=$(cd "$(dirname "$0")" && pwd)
echo "$PYTHONPATH" > python-path
mkdir -p pyvenv/lib/python3/site-packages
{
    printf 'rule copy\n command = mkdir -p $$(dirname $out) && '
    printf 'cp $in $out && chmod +x $out\n'
    for program in storage-daemon/qemu-storage-daemon qemu-system-x86_64 \
            qemu-system-aarch64; do
        echo "build $program: copy $src/VERSION"
    done
    echo "build qemu-img: copy $src/hw/mem/core.c"
    # Meson's can be asked to bring itself up to date.
    echo "build build.ninja: phony"
    for test in "$src"/tests/unit/test-*.c "$src"/tests/qtest/*-test.c; do
        name=${test#"$src/"}
        [ ! -e "$test" ] || echo "build ${name%.c}: copy $test"
    done
} > build.ninja
"""

CHECKPATCH = r"""
@ARGV = grep { !/^--/ } @ARGV;
my $bad = grep { /^\+.*\t/ } <>;
print "ERROR: tab in $bad lines\n" if $bad;
exit($bad ? 1 : 0);
"""

AUTHOR = {"GIT_AUTHOR_NAME": "Ann Author", "GIT_AUTHOR_EMAIL": "ann@x.org",
          "GIT_AUTHOR_DATE": "2020-02-20T20:20:20+0100",
          "GIT_COMMITTER_NAME": "Con Mitter", "GIT_COMMITTER_EMAIL": "c@x.org"}


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


def tiny_qemu(place: Path, version: str = "10.0.99") -> Path:
    write(place / "VERSION", version + "\n")
    write(place / "configure", CONFIGURE)
    (place / "configure").chmod(0o755)
    write(place / "scripts" / "checkpatch.pl", CHECKPATCH)
    write(place / "hw" / "mem" / "core.c", "".join(LINES))
    write(place / "tests" / "README", "tests\n")
    # QEMU ignores such files in git, Debian's source has them.
    write(place / ".gitignore", "*.patch\n")
    write(place / "debian" / "patches" / "a.patch", "a patch of Debian's\n")
    (place / "link").symlink_to("VERSION")
    return place


def diff_of_line(number: int, text: str, context: int = 3) -> str:
    """The hunk that changes one line of the tiny QEMU's hw/mem/core.c."""
    first, last = number - context, number + context
    body = "".join(f" {line}" for line in LINES[first - 1:number - 1])
    body += f"-{LINES[number - 1]}+{text}\n"
    body += "".join(f" {line}" for line in LINES[number:last])
    count = last - first + 1
    return ("diff --git a/hw/mem/core.c b/hw/mem/core.c\n"
            "--- a/hw/mem/core.c\n+++ b/hw/mem/core.c\n"
            f"@@ -{first},{count} +{first},{count} @@\n{body}")


def mail(subject: str, diff: str, adds: tuple[str, ...] = ()) -> str:
    return ("From 0000000000000000000000000000000000000000 "
            "Mon Sep 17 00:00:00 2001\n"
            "From: Ann Author <ann@x.org>\n"
            "Date: Thu, 20 Feb 2020 20:20:20 +0100\n"
            f"Subject: [PATCH] {subject}\n\n"
            "Why it is so.\n\nSigned-off-by: Ann Author <ann@x.org>\n---\n"
            + "".join(f"Adds: {path}\n" for path in adds) + "\n" + diff)


class SandboxTest(unittest.TestCase):
    """Each test has its own repository in self.root, QEMU in self.source."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="build-test-")
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name).resolve()
        # A test may look at it as another user.
        self.scratch.chmod(0o755)
        self.root = self.scratch / "repository"
        (self.root / "tests").mkdir(parents=True)
        for name in MACHINERY:
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, self.root / name,
                                ignore=shutil.ignore_patterns(
                                    "__pycache__", "memslots-top"))
            else:
                shutil.copy2(REPOSITORY / name, self.root / name)
        self.source = tiny_qemu(self.scratch / "qemu-10.0.99")
        self.build = self.root / "build"
        self.qemu = self.build / "qemu"
        write(self.root / "hw" / "mem" / "new.c", "new file\n")
        self.write_series({
            FIRST: mail("mem: first", diff_of_line(10, "first"),
                        ("hw/mem/new.c",)),
            SECOND: mail("mem: second", diff_of_line(30, "second")),
        })

    def write_series(self, patches: dict[str, str]) -> None:
        """Patches by name, and a cover letter for each of their topics."""
        for name, text in patches.items():
            topic = name.partition("/")[0]
            write(self.root / "patches" / name, text)
            write(self.root / "patches" / topic / "cover-letter.txt",
                  f"mem: {topic}\n\nWhat {topic} is about.\n")
        write(self.root / "patches" / "series",
              "# The order counts\n" + "".join(f"{n}\n" for n in patches))

    def run_here(self, *command: str, env: dict[str, str] | None = None
                 ) -> subprocess.CompletedProcess[str]:
        # A make that is run here is not part of the one that runs the tests.
        outside = {name: value for name, value in os.environ.items()
                   if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        return subprocess.run(
            command, cwd=self.root, env={**outside, **(env or {})},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, text=True, timeout=300, check=False)

    def succeed(self, *command: str, env: dict[str, str] | None = None) -> str:
        done = self.run_here(*command, env=env)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def fail_with(self, expected: list[str], *command: str,
                  env: dict[str, str] | None = None) -> str:
        done = self.run_here(*command, env=env)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        for text in expected:
            self.assertIn(text, done.stdout)
        self.assertNotIn("Traceback", done.stdout)
        return done.stdout

    def configure(self, *options: str) -> str:
        return self.succeed("./configure", f"--qemu-src={self.source}",
                            *options)

    def git(self, *args: str) -> str:
        return self.succeed("git", "-C", str(self.qemu), *args,
                            env=AUTHOR).rstrip("\n")

    def commit(self, subject: str, text: str = "Why.", topic: str = "core"
               ) -> None:
        """Commit what was edited in build/qemu, and what was added."""
        self.git("commit", "--quiet", "-am",
                 f"{subject}\n\n{text}\n\nTopic: {topic}\n")

    def edit_core(self, number: int, text: str) -> None:
        file = self.qemu / "hw" / "mem" / "core.c"
        lines = file.read_text().splitlines(keepends=True)
        lines[number - 1] = f"{text}\n"
        write(file, "".join(lines))

    def assert_not_half_made(self) -> None:
        self.assertFalse(self.qemu.exists())
        self.assertFalse((self.build / "qemu.tmp").exists())

    def patches(self) -> dict[str, bytes]:
        patches = self.root / "patches"
        return {str(file.relative_to(patches)): file.read_bytes()
                for file in patches.rglob("*") if file.is_file()}
