# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""The series in its two forms: patches/ in the repository, commits in build/qemu.

build/qemu is a git repository.  The tag `debian` is QEMU's source without the
series, the tag `grafted` is the commit that the patches last gave.  Both forms
are turned into each other in git's object database only; the work tree moves
in one step once all has gone well, and keeps the timestamps of files that are
the same before and after.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import topics

LINK_MODE = "120000"
# Spelt out, as QEMU's source has a directory debian.
PRISTINE = "refs/tags/debian"
GRAFTED = "refs/tags/grafted"

# These files, and those below these directories, belong to the series; each is
# added by one of its patches.
SERIES_FILES = ("accel", "docs/devel", "docs/system", "hw", "include",
                "migration", "net", "qapi", "scripts/memslots-top", "stubs",
                "subprojects", "system", "tests/bench", "tests/qtest",
                "tests/unit", "util")


class SeriesError(Exception):
    """What is wrong and what to do about it, for the user to read."""


def die(error: SeriesError) -> NoReturn:
    sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")


@dataclass(frozen=True)
class Author:
    name: str
    email: str
    date: str

    def environment(self) -> dict[str, str]:
        # A commit is the same whoever makes it and whenever, so that two
        # grafts can be compared by their commit's hash.
        return {f"GIT_{role}_{field}": value
                for role in ("AUTHOR", "COMMITTER")
                for field, value in (("NAME", self.name),
                                     ("EMAIL", self.email),
                                     ("DATE", self.date))}


@dataclass(frozen=True)
class Patch:
    name: str
    author: Author
    # with its topic
    message: str
    adds: tuple[str, ...]
    diff: bytes


@dataclass(frozen=True)
class Entry:
    """A file in a git tree."""
    mode: str
    blob: str
    path: str


class Git:
    """Runs git in one work tree, deaf to the user's own configuration."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.env = {name: value for name, value in os.environ.items()
                    if not name.startswith("GIT_")}
        self.env.update(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_NOSYSTEM="1",
                        LC_ALL="C.UTF-8", TZ="UTC")

    def attempt(self, *args: str, stdin: bytes = b"",
                env: dict[str, str] | None = None
                ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", *args], cwd=self.tree, input=stdin,
                              env=self.env | (env or {}),
                              capture_output=True, check=False)

    def raw(self, *args: str, stdin: bytes = b"",
            env: dict[str, str] | None = None) -> bytes:
        done = self.attempt(*args, stdin=stdin, env=env)
        if done.returncode:
            raise SeriesError(f"git {' '.join(args)} in {self.tree} failed:\n"
                              + done.stderr.decode(errors="replace").rstrip())
        return done.stdout

    def run(self, *args: str, stdin: bytes = b"",
            env: dict[str, str] | None = None) -> str:
        return self.raw(*args, stdin=stdin, env=env).decode().rstrip("\n")

    def commit_id(self, name: str) -> str | None:
        done = self.attempt("rev-parse", "--verify", "--quiet",
                            f"{name}^{{commit}}")
        return done.stdout.decode().strip() or None

    def tree_id(self, commit: str) -> str:
        return self.run("rev-parse", f"{commit}^{{tree}}")

    def commits(self, since: str, until: str) -> list[str]:
        return self.run("rev-list", "--reverse", f"{since}..{until}", "--").split()

    def subject(self, commit: str) -> str:
        return self.run("show", "-s", "--format=%h %s", commit, "--")

    def message(self, commit: str) -> str:
        return self.run("show", "-s", "--format=%B", commit, "--") + "\n"

    def author(self, commit: str) -> Author:
        name, email, date = self.run("show", "-s", "--format=%an%n%ae%n%ad",
                                     "--date=raw", commit, "--").split("\n")
        return Author(name, email, f"@{date}")

    def entries(self, commit: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for line in self.run("ls-tree", "-r", "-z", commit).split("\0"):
            if line:
                facts, path = line.split("\t", 1)
                mode, _, blob = facts.split()
                found[path] = Entry(mode, blob, path)
        return found

    def changes(self, old: str, new: str) -> list[tuple[str, str]]:
        """(status letter, path) of each file that differs."""
        out = self.run("diff-tree", "-r", "-z", "--no-renames",
                       "--name-status", old, new)
        fields = out.rstrip("\0").split("\0") if out else []
        return list(zip(fields[0::2], fields[1::2]))

    def store(self, content: bytes) -> str:
        return self.run("hash-object", "-w", "--stdin", stdin=content)

    def commit_tree(self, tree: str, parents: list[str], author: Author,
                    message: str) -> str:
        flags = [flag for parent in parents for flag in ("-p", parent)]
        return self.run("commit-tree", tree, *flags, stdin=message.encode(),
                        env=author.environment())

    @contextlib.contextmanager
    def index(self, commit: str | None = None) -> Iterator[Index]:
        """An index of its own, apart from the work tree's."""
        with tempfile.TemporaryDirectory(prefix="series-") as scratch:
            index = Index(self, Path(scratch) / "index")
            if commit:
                index.run("read-tree", commit)
            yield index


class Index:
    def __init__(self, git: Git, path: Path) -> None:
        self.git = git
        self.env = {"GIT_INDEX_FILE": str(path)}

    def attempt(self, *args: str, stdin: bytes = b""
                ) -> subprocess.CompletedProcess[bytes]:
        return self.git.attempt(*args, stdin=stdin, env=self.env)

    def run(self, *args: str, stdin: bytes = b"") -> str:
        return self.git.run(*args, stdin=stdin, env=self.env)

    def put(self, entries: list[Entry]) -> None:
        lines = "".join(f"{e.mode} {e.blob}\t{e.path}\0" for e in entries)
        self.run("update-index", "-z", "--add", "--replace", "--index-info",
                 stdin=lines.encode())

    def tree(self) -> str:
        return self.run("write-tree")


def parse_patch(git: Git, patches: Path, name: str) -> Patch:
    file = patches / name
    with tempfile.TemporaryDirectory(prefix="series-") as scratch:
        body, rest = Path(scratch) / "body", Path(scratch) / "rest"
        header = git.run("mailinfo", "-b", "--encoding=UTF-8", str(body),
                         str(rest), stdin=file.read_bytes())
        message, tail = body.read_text("utf-8"), rest.read_bytes()
    fields = dict(line.split(": ", 1) for line in header.splitlines()
                  if ": " in line)
    for field, spelt in (("Author", "From"), ("Email", "From"),
                         ("Date", "Date"), ("Subject", "Subject")):
        if not fields.get(field):
            raise SeriesError(
                f"patches/{name} has no {spelt}: line; "
                "each patch is a mail as git format-patch writes it")
    notes, mark, hunks = tail.partition(b"diff --git ")
    adds = tuple(re.findall(r"^Adds: *(\S+) *$", notes.decode(), re.M))
    author = Author(fields["Author"], fields["Email"], fields["Date"])
    text = fields["Subject"] + "\n\n" + message
    return Patch(name, author, topics.put(text, topic_of(name)), adds,
                 mark + hunks)


def topic_of(name: str) -> str:
    """The folder that a patch is in."""
    topic, slash, file = name.partition("/")
    if not slash or "/" in file:
        raise SeriesError(f"patches/series names {name}, but each patch is in "
                          "the folder of its topic, as TOPIC/NNNN-NAME.patch")
    try:
        topics.check(topic)
    except topics.TopicError as error:
        raise SeriesError(f"patches/{name} {error}") from error
    return topic


def offsets_in(said: str) -> str:
    """From what git apply says, which hunks landed elsewhere."""
    places: list[str] = []
    path = ""
    for line in said.splitlines():
        if match := re.match(r"Checking patch (?:.* => )?(.*)\.\.\.$", line):
            path = match[1]
        elif match := re.search(r"\(offset (-?\d+) lines?\)", line):
            places.append(f"{path} {int(match[1]):+}")
    return ", ".join(dict.fromkeys(places))


class Series:
    """The series of the repository at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.patches = root / "patches"
        self.list = self.patches / "series"
        self.qemu = root / "build" / "qemu"
        self.git = Git(self.qemu)
        # What apply() has to tell of patches that are not quite where they
        # were made for
        self.offsets: dict[str, str] = {}

    @classmethod
    def of_this_repository(cls) -> Series:
        return cls(Path(__file__).resolve().parent.parent.parent)

    def names(self) -> list[str]:
        if not self.list.is_file():
            raise SeriesError(f"{self.list} is missing; "
                              "restore it with git checkout patches/series")
        lines = (line.strip() for line in self.list.read_text().splitlines())
        return [line for line in lines if line and not line.startswith("#")]

    def parse(self) -> list[Patch]:
        names = self.names()
        try:
            topics.refuse_interleaved((topic_of(name), f"patches/{name}")
                                      for name in names)
        except topics.TopicError as error:
            raise SeriesError(str(error)) from error
        for name in names:
            if not (self.patches / name).is_file():
                raise SeriesError(
                    f"patches/series names {name}, which patches/ does not "
                    "hold; restore the file or take the line out")
        return [parse_patch(self.git, self.patches, name) for name in names]

    def link(self, path: str) -> Entry:
        """A link in build/qemu to the repository's file of the same path."""
        where = (self.qemu / path).parent
        target = os.path.relpath(self.root / path, where)
        return Entry(LINK_MODE, self.git.store(target.encode()), path)

    def apply(self, base: str) -> str:
        """Commit each patch on top of `base`; returns the last commit."""
        base = self.git.run("rev-parse", f"{base}^{{commit}}")
        tip = base
        self.offsets.clear()
        with self.git.index(base) as index:
            for patch in self.parse():
                tip = self._apply_one(index, patch, tip)
        return tip

    def _apply_one(self, index: Index, patch: Patch, parent: str) -> str:
        if patch.diff:
            # git apply takes all lines of context to be there as they are.
            done = index.attempt("apply", "--cached", "--verbose",
                                 "--whitespace=nowarn", "-", stdin=patch.diff)
            said = done.stderr.decode()
            if done.returncode:
                raise SeriesError(self._misfit(patch, said,
                                               self.version(parent)))
            if offsets := offsets_in(said):
                self.offsets[patch.name] = offsets
        present = self.git.entries(parent)
        for path in patch.adds:
            if path in present:
                raise SeriesError(
                    f"patches/{patch.name} adds {path}, which QEMU or an "
                    "earlier patch has already; name each new file in one "
                    "patch only")
            if not (self.root / path).is_file():
                raise SeriesError(
                    f"patches/{patch.name} adds {path}, which this repository "
                    "does not hold; restore the file or take the Adds: line "
                    "out")
        index.put([self.link(path) for path in patch.adds])
        tree = index.tree()
        changes = self.git.changes(parent, tree)
        if not changes:
            raise SeriesError(f"patches/{patch.name} changes nothing; "
                              "take it out of patches/series")
        for status, path in changes:
            if status == "A" and path not in patch.adds:
                raise SeriesError(
                    f"patches/{patch.name} holds the new file {path}; move "
                    f"it into this repository and write 'Adds: {path}' below "
                    "the patch's --- line")
        return self.git.commit_tree(tree, [parent], patch.author,
                                    patch.message)

    @staticmethod
    def _misfit(patch: Patch, stderr: str, version: str) -> str:
        places = re.findall(r"^error: patch failed: (.*):(\d+)$", stderr, re.M)
        if places:
            where = ", ".join(f"{path} (line {line})" for path, line in places)
        else:
            missing = re.findall(r"^error: (.*): does not exist in index$",
                                 stderr, re.M)
            where = ", ".join(f"{path} (no such file)" for path in missing) \
                or stderr.strip()
        return (
            f"patches/{patch.name} does not apply to QEMU {version}: "
            f"{where}\n"
            "Nothing was changed.  Either restore patches/ (git checkout "
            "patches),\n"
            "or give a source that it fits (./configure --qemu-src=...), or "
            "rework it:\n"
            "take its line and those after it out of patches/series, run "
            "./configure,\n"
            "make the change in build/qemu, commit it, run "
            "scripts/series/export.")

    def version(self, commit: str = PRISTINE) -> str:
        return self.git.run("show", f"{commit}:VERSION")

    # State of build/qemu

    def require_graft(self) -> None:
        if not (self.qemu / ".git").is_dir():
            raise SeriesError(f"{self.qemu} does not exist; run ./configure")
        for tag in (PRISTINE, GRAFTED):
            if not self.git.commit_id(tag):
                raise SeriesError(
                    f"{self.qemu} lacks {tag}, which ./configure "
                    "sets; move the directory away and run ./configure")

    def edits(self) -> list[str]:
        """Files of QEMU's that were edited and not committed."""
        out = self.git.run("status", "--porcelain", "--untracked-files=no")
        return [line[3:] for line in out.splitlines()]

    def refuse_edits(self, to_do: str) -> None:
        if edits := self.edits():
            raise SeriesError(
                f"build/qemu has edits that are not committed, {to_do}:\n"
                + "".join(f"  {path}\n" for path in edits)
                + "Keep them: commit them in build/qemu, then run "
                "scripts/series/export.\n"
                "Drop them: git -C build/qemu checkout .")

    def unexported(self) -> list[str]:
        """Commits in build/qemu that patches/ did not give."""
        return self.git.commits(GRAFTED, "HEAD") or \
            self.git.commits("HEAD", GRAFTED)

    def refuse_unexported(self, to_do: str) -> None:
        if commits := self.unexported():
            raise SeriesError(
                "build/qemu has commits that are not in patches/ (or lacks "
                f"some that are), {to_do}:\n"
                + "".join(f"  {self.git.subject(c)}\n" for c in commits)
                + "Keep them: run scripts/series/export (if patches/ was "
                "changed too, first put\n"
                "its change aside with git stash -- patches).\n"
                f"Drop them: git -C build/qemu reset --keep grafted")

    def patches_changed(self) -> bool:
        """Whether patches/ would no longer give what it gave last."""
        try:
            return self.apply(PRISTINE) != self.git.commit_id(GRAFTED)
        except SeriesError:
            return True

    def move_to(self, commit: str) -> None:
        """Bring branch, index and work tree of build/qemu to `commit`."""
        self.git.run("reset", "--quiet", "--keep", commit)
        self.git.run("update-ref", GRAFTED, commit)

    # Making build/qemu

    def create(self, source: Path, origin: str) -> None:
        """Turn an unpacked source into build/qemu, all or nothing."""
        git = Git(source)
        git.run("init", "--quiet", "--initial-branch=series")
        git.run("config", "core.autocrlf", "false")
        git.run("config", "gc.auto", "0")
        builder = Series(self.root)
        builder.git = git
        base = builder.import_tree(source, origin)
        git.run("update-ref", PRISTINE, base)
        tip = builder.apply(base)
        git.run("update-ref", "HEAD", base)
        git.run("read-tree", base)
        # Else git takes every file for changed, as its index knows no times.
        git.attempt("update-index", "-q", "--refresh")
        builder.move_to(tip)
        self.offsets = builder.offsets
        source.rename(self.qemu)

    def import_tree(self, source: Path, origin: str) -> str:
        """Commit `source`, an unpacked QEMU, to the repository of self.git."""
        version = (source / "VERSION").read_text().strip()
        with self.git.index() as index:
            self.git.run("-C", str(source), "--git-dir",
                         str(self.git.tree / ".git"), "--work-tree", ".",
                         "add", "--all", "--force", ".", env=index.env)
            tree = index.tree()
        # No date: the commit is to depend on the source alone.
        author = Author("configure", "configure@localhost", "@0 +0000")
        return self.git.commit_tree(tree, [], author,
                                    f"QEMU {version}\n\nSource: {origin}\n")

    def tested_with(self) -> str:
        """The version of Debian's package that all tests passed with."""
        file = self.patches / "tested-with"
        return file.read_text().strip() if file.is_file() else ""

    def is_tested(self) -> bool:
        """Whether that is the source which is in build/qemu."""
        package = self.origin().removeprefix("Debian qemu ")
        if package != self.origin():
            return package == self.tested_with()
        upstream = re.sub(r"^\d+:|[+~-].*$", "", self.tested_with())
        return self.version() == upstream

    def origin(self) -> str:
        return self.git.run("show", "-s", "--format=%b", PRISTINE
                            ).removeprefix("Source: ").strip()

    def update(self, source: Path | None = None, origin: str = "") -> bool:
        """Bring build/qemu to what patches/ (and a new source) give."""
        self.require_graft()
        old_base = self.git.commit_id(PRISTINE)
        assert old_base
        base = self.import_tree(source, origin) if source else old_base
        tip = self.apply(base)
        if tip == self.git.commit_id(GRAFTED):
            return False
        if tip != self.git.commit_id("HEAD"):
            self.refuse_edits("and patches/ or the source has changed")
            self.refuse_unexported("and patches/ or the source has changed")
        self.git.run("update-ref", PRISTINE, base)
        self.move_to(tip)
        return True

    # Files of the repository

    def files(self) -> list[str]:
        found = [top for top in SERIES_FILES if (self.root / top).is_file()]
        for top in SERIES_FILES:
            for directory, below, names in os.walk(self.root / top):
                below[:] = [d for d in below if d != "__pycache__"]
                found += [os.path.relpath(os.path.join(directory, name),
                                          self.root)
                          for name in names
                          if not name.startswith(".") and name[-1] != "~"]
        return sorted(found)

    def refuse_unclaimed(self) -> None:
        claimed = {path for patch in self.parse() for path in patch.adds}
        if unclaimed := [f for f in self.files() if f not in claimed]:
            raise SeriesError(
                "no patch adds these files:\n"
                + "".join(f"  {path}\n" for path in unclaimed)
                + "Write 'Adds: FILE' below the --- line of the patch that "
                "introduces each.")

    def content(self, path: str) -> Entry:
        """The repository's file itself, in place of the link to it."""
        file = self.root / path
        mode = "100755" if os.access(file, os.X_OK) else "100644"
        return Entry(mode, self.git.store(file.read_bytes()), path)
