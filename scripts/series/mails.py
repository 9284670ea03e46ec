# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""The series as mails: a cover letter and patches for each topic."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import topics
from series import LINK_MODE, PRISTINE, Git, Series, SeriesError

NEEDS = re.compile(r"\bpatch\s+(\d+)\s+needs\s+patch(?:es)?\s+"
                   r"(\d[\d,\sand]*)\.", re.I)


@dataclass
class Topic:
    """A part of the series that is mailed by itself."""
    name: str
    base: str
    subject: str
    text: str
    commits: list[str] = field(default_factory=list)
    mails: list[Path] = field(default_factory=list)

    @property
    def needs(self) -> dict[int, list[int]]:
        """The patches, by number, that some need besides the source."""
        return {int(patch): [int(n) for n in re.findall(r"\d+", needed)]
                for patch, needed in NEEDS.findall(self.text)}


def with_content(series: Series) -> list[Topic]:
    """The commits with the repository's files in place of links to them."""
    git = series.git
    pristine = git.entries(PRISTINE)
    parent = git.run("rev-parse", PRISTINE)
    whole: list[Topic] = []
    for commit in git.commits(PRISTINE, "HEAD"):
        links = [entry.path for path, entry in git.entries(commit).items()
                 if entry.mode == LINK_MODE and path not in pristine]
        with git.index(commit) as index:
            index.put([series.content(path) for path in links])
            tree = index.tree()
        name, message = topics.take(git.message(commit))
        if not whole or name != whole[-1].name:
            whole.append(Topic(name, parent, *cover_text(series, name)))
        parent = git.commit_tree(tree, [parent], git.author(commit), message)
        whole[-1].commits.append(parent)
    return whole


def cover_text(series: Series, topic: str) -> tuple[str, str]:
    """Subject and text of the cover letter of a topic."""
    name = f"patches/{topic}/cover-letter.txt"
    file = series.patches / topic / "cover-letter.txt"
    if not file.is_file():
        raise SeriesError(f"{name} is missing; its first line is the cover "
                          "letter's subject, the rest its text")
    text = file.read_text("utf-8")
    if not text.isascii():
        raise SeriesError(f"{name} has characters outside ASCII, which not "
                          "every mailer carries; spell them in ASCII")
    subject, _, body = text.partition("\n")
    if not subject.strip() or not body.strip():
        raise SeriesError(f"{name} needs a subject in its first line and text "
                          "below it")
    if subject.lower().startswith("subject:"):
        raise SeriesError(f"{name} begins with '{subject[:8]}', which the "
                          "mail has before its subject anyhow; take it out")
    return subject.strip(), body.strip()


def write_mails(series: Series, target: Path) -> list[Topic]:
    parts = with_content(series)
    if not parts:
        raise SeriesError("patches/series names no patch, so there is nothing "
                          "to mail")
    shutil.rmtree(target, ignore_errors=True)
    base = f"Based on QEMU {series.version()}"
    for number, topic in enumerate(parts):
        before = ", ".join(part.name for part in parts[:number])
        write_topic(series.git, topic, target / topic.name,
                    f"{base} and, in this order, {before}." if before
                    else f"{base}.")
    return parts


def write_topic(git: Git, topic: Topic, target: Path, base: str) -> None:
    target.mkdir(parents=True)
    git.run("format-patch", "--quiet", "--numbered", "--cover-letter",
            "--cover-from-description=none", "--zero-commit", "--no-signature",
            "--no-renames", "--no-thread", "--output-directory",
            str(target), f"{topic.base}..{topic.commits[-1]}",
            env=git.author(topic.commits[-1]).environment())
    cover, *topic.mails = sorted(target.glob("*.patch"))
    letter = cover.read_text("utf-8")
    text = f"{topic.text}\n\n{textwrap.fill(base, 72)}"
    for blank, text in (("*** SUBJECT HERE ***", topic.subject),
                        ("*** BLURB HERE ***", text)):
        if blank not in letter:
            raise SeriesError(f"git format-patch left no '{blank}' in the "
                              "cover letter; this git is not understood")
        letter = letter.replace(blank, text)
    cover.write_text(letter, "utf-8")


def label(mail: Path) -> str:
    """What a mail is called in messages."""
    return f"{mail.parent.name}/{mail.name}"
