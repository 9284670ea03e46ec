# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""What mails of the series have to stand, beside a clone of QEMU."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from mails import Topic, label
from series import LINK_MODE, PRISTINE, Git, Series, SeriesError


def pristine_clone(series: Series, place: Path) -> Git:
    series.git.run("clone", "--quiet", "--shared", "--no-checkout", ".",
                   str(place))
    clone = Git(place)
    clone.run("checkout", "--quiet", "--detach", PRISTINE)
    return clone


def apply_mails(clone: Git, mails: list[Path], author_env: dict[str, str]
                ) -> None:
    done = clone.attempt("am", "--quiet", *map(str, mails), env=author_env)
    if done.returncode:
        raise SeriesError("git am refuses the mails on the pristine source:\n"
                          + (done.stdout + done.stderr).decode())


def refuse_difference(series: Series, clone: Git) -> None:
    """Compare the trees file by file, by what is in them."""
    def tree(git: Git) -> set[str]:
        return set(git.run("ls-files", "-z").rstrip("\0").split("\0"))

    ours, theirs = tree(series.git), tree(clone)
    pristine = series.git.entries(PRISTINE)

    def same(path: str) -> bool:
        a, b = series.qemu / path, clone.tree / path
        if path in pristine and pristine[path].mode == LINK_MODE:
            return b.is_symlink() and os.readlink(a) == os.readlink(b)
        return not b.is_symlink() and a.read_bytes() == b.read_bytes() and \
            os.access(a, os.X_OK) == os.access(b, os.X_OK)

    different = sorted(ours ^ theirs) + \
        sorted(path for path in ours & theirs if not same(path))
    if different:
        raise SeriesError("the mails do not give the tree in build/qemu:\n"
                          + "".join(f"  {path}\n" for path in different)
                          + "This is a fault of scripts/series/format.")


def refuse_style(clone: Git, mails: list[Path]) -> None:
    complaints = ""
    for mail in mails:
        done = subprocess.run(
            ["perl", "scripts/checkpatch.pl", "--quiet", "--color=never",
             str(mail)],
            cwd=clone.tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False)
        if done.returncode or done.stdout.strip():
            complaints += f"{label(mail)}:\n{done.stdout}\n"
    if complaints:
        raise SeriesError(f"checkpatch.pl is not silent:\n{complaints}")


def refuse_dependence(git: Git, topic: Topic) -> None:
    """Apply each patch of a topic alone to the pristine source."""
    misfits = ""
    for number, mail in enumerate(topic.mails, 1):
        wanted, pending = {number}, [number]
        while pending:
            needed = topic.needs.get(pending.pop(), [])
            pending += [n for n in needed if n not in wanted and n < number]
            wanted.update(pending)
        with git.index(PRISTINE) as index:
            for one in sorted(wanted):
                done = index.attempt("apply", "--cached",
                                     "--whitespace=nowarn",
                                     str(topic.mails[one - 1]))
                if done.returncode:
                    misfits += f"{label(mail)}:\n{done.stderr.decode()}"
                    break
    if misfits:
        raise SeriesError(
            f"patches of {topic.name} do not apply alone:\n{misfits}"
            "Have them touch other lines, or tell in patches/"
            f"{topic.name}/cover-letter.txt, as in \"Patch 7 needs patches 2 "
            "and 3.\"")


def build_each(series: Series, clone: Git, mails: list[Path],
               wanted: list[str]) -> None:
    """Build the pristine source with each prefix of the series."""
    arguments = series.root / "build" / "qemu-configure-arguments"
    if not arguments.is_file():
        raise SeriesError(f"{arguments} is missing; run ./configure")
    build = clone.tree.parent / "build"
    # Where ./configure has put a newer meson than the system's
    env = {**os.environ, "PYTHONPATH": str(
        series.root / "build/meson/usr/lib/python3/dist-packages")}
    build.mkdir()
    commits = clone.commits(PRISTINE, "HEAD")
    clone.run("checkout", "--quiet", commits[0])
    subprocess.run([clone.tree / "configure",
                    *arguments.read_text().splitlines()], cwd=build, env=env,
                   check=True, stdout=subprocess.DEVNULL)
    for mail, commit in zip(mails, commits):
        clone.run("checkout", "--quiet", commit)
        subprocess.run(["ninja", "-C", build, "build.ninja"], env=env,
                       check=True, stdout=subprocess.DEVNULL)
        known = subprocess.run(["ninja", "-C", build, "-t", "targets", "all"],
                               check=True, capture_output=True, text=True)
        targets = set(re.findall(r"^(\S+): ", known.stdout, re.M))
        print(f"building with {label(mail)}", flush=True)
        done = subprocess.run(
            ["ninja", "-C", build, *(w for w in wanted if w in targets)],
            env=env, check=False)
        if done.returncode:
            raise SeriesError(f"QEMU does not build with {label(mail)} as the "
                              "last patch; mend that commit in build/qemu "
                              "(git rebase -i) and export")
