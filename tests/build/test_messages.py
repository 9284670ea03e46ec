# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""
Messages: the manual explains each, and tests/messages.md has a test of each.

What the series may print is found in its sources: the first format string of
each call that reports an error, a warning or a hint, in the files that it adds
and in the lines that it adds to QEMU's files.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import unittest
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent.parent
USERS = REPOSITORY / "docs/system/devices/virtio-mem-memslots.rst"
PROVOKED = REPOSITORY / "tests/messages.md"
# Users do not get to see what these print: devices for tests, and what is said
# of a plan to the code that asks for it.
INTERNAL = ("hw/mem/ram-discard-testdev.c", "hw/mem/memslot-testdev.c",
            "hw/mem/memslot-plan.c")
# Where tests of QEMU are
TESTS = ("tests/unit", "tests/qtest", "tests/system")
# Where sources of the series are that may print something
SOURCES = ("accel", "hw", "migration", "subprojects")

REPORTS = re.compile(
    r"\b(?:(?:error|warn|info)_(?:setg|setg_errno|report|report_once|"
    r"reportf_err|prepend|propagate_prepend|append_hint|printf)|hw_error|"
    r"fprintf|panic)\(")
TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([()])|(,)|([A-Za-z_]\w*)|(\s+)|(.)',
                   re.S)
# Stands for what is only known when a message is printed
ANYTHING = "\0"
CONVERSION = re.compile(rf"%[-+ #0]*[\d*]*(?:\.[\d*]+)?"
                        rf"(?:hh?|ll?|[jzt])?(?:[a-zA-Z]|{ANYTHING})")


@dataclass(frozen=True)
class Message:
    """What may be printed; ANYTHING in place of values."""
    text: str
    file: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """What it looks like with values; a prefix may end in more of it."""
        parts = [re.escape(part)
                 for part in self.text.strip().split(ANYTHING)]
        more = ".*" if self.text.endswith((": ", ANYTHING)) else ""
        return re.compile(".+?".join(parts) + more)

    @property
    def longest(self) -> str:
        """The longest part that is always the same."""
        return max(self.text.split(ANYTHING), key=len).strip()

    def __str__(self) -> str:
        return f"{self.file}: {self.text.replace(ANYTHING, '...')!r}"


def format_string(text: str, start: int) -> tuple[str, int]:
    """
    The first string among the arguments of a call, which begin at @start, and
    where that ends.  Adjacent strings and macros are one string.
    """
    depth, parts, found = 0, [], False
    position = start
    for token in TOKEN.finditer(text, start):
        string, bracket, comma, name, blank, _ = token.groups()
        if string is not None and not depth:
            parts.append(string)
            found = True
        elif bracket == ")" and not depth:
            break
        elif bracket:
            depth += 1 if bracket == "(" else -1
        elif comma and not depth:
            if found:
                break
            parts = []
        elif name and not depth:
            parts.append(ANYTHING)
        elif blank is None and not found:
            parts = []
        position = token.end()
    if not found:
        return "", position
    text = CONVERSION.sub(ANYTHING, "".join(parts)).replace("%%", "%")
    text = re.sub(f"{ANYTHING}+", ANYTHING, text).replace("\\n", "")
    return text.replace('\\"', '"'), position


def messages_of_c(text: str, file: str, added: list[bool] | None = None
                  ) -> Iterator[Message]:
    """Messages in C; if given, only those with a line that was added."""
    for call in REPORTS.finditer(text):
        message, end = format_string(text, call.end())
        if call[0].endswith("_errno("):
            message += ": "
        first, last = (text.count("\n", 0, position)
                       for position in (call.end(), end))
        # Without letters, it only joins others.
        if re.search("[a-z]", message) and (
                added is None or any(added[first:last + 1])):
            yield Message(message, file)


@lru_cache(maxsize=None)
def changes_of_qemu() -> tuple[dict[str, tuple[str, list[bool]]], str]:
    """
    For each of QEMU's files that the series changes, what the file is now in
    the places where it does and which lines there are new; and all that these
    places were before, as one text.
    """
    build = os.environ.get("BUILD_DIR")
    if not build:
        raise RuntimeError("BUILD_DIR is not set; run the tests with "
                           "\"make check\", or set it (to $PWD/build, say)")
    diff = subprocess.run(
        ["git", "-C", f"{build}/qemu", "diff", "-U10", "debian", "--", "*.c"],
        stdout=subprocess.PIPE, check=True, text=True).stdout
    files: dict[str, tuple[list[str], list[bool]]] = {}
    before: list[str] = []
    name = ""
    for line in diff.splitlines():
        if line.startswith("+++ "):
            name = line[len("+++ b/"):]
        elif line[:1] in ("+", " ") and not line.startswith("+++"):
            lines, added = files.setdefault(name, ([], []))
            lines.append(line[1:])
            added.append(line[0] == "+")
        if line[:1] in ("-", " ") and not line.startswith("---"):
            before.append(line[1:])
    return ({name: ("\n".join(lines), added)
             for name, (lines, added) in files.items()}, "\n".join(before))


def messages_of_top() -> Iterator[Message]:
    """Messages of scripts/memslots-top, which is Python."""
    file = "scripts/memslots-top"
    failures = ("Failure", "ArgumentTypeError", "error")
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else \
            getattr(called, "id", "")
        if name not in failures:
            continue
        argument = node.args[0]
        values = argument.values if isinstance(argument, ast.JoinedStr) \
            else [argument]
        text = "".join(str(value.value) if isinstance(value, ast.Constant)
                       else ANYTHING for value in values)
        if re.search("[a-z]", text):
            yield Message(text, file)


@lru_cache(maxsize=None)
def all_messages() -> list[Message]:
    """All messages of the series, but for those that QEMU has without it."""
    found: list[Message] = []
    for folder in SOURCES:
        for path in sorted((REPOSITORY / folder).glob("**/*.c")):
            found += messages_of_c(path.read_text("utf-8"),
                                   str(path.relative_to(REPOSITORY)))
    files, before = changes_of_qemu()
    strings = re.sub(r'"\s*"', "", before)
    for name, (text, added) in files.items():
        if not name.startswith("tests/"):
            found += [message
                      for message in messages_of_c(text, name, added)
                      if message.longest.rstrip(" :") not in strings]
    return found + list(messages_of_top())


def table(page: Path, title: str) -> list[list[str]]:
    """The rows of a list-table, without its heading."""
    text = page.read_text("utf-8")
    lines = text[text.index(f".. list-table:: {title}"):].splitlines()[1:]
    rows: list[list[str]] = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        if line.startswith("   * - "):
            rows.append([line[7:]])
        elif line.startswith("     - "):
            rows[-1].append(line[7:])
        elif rows:
            rows[-1][-1] += " " + line.strip()
    return [[" ".join(cell.split()) for cell in row] for row in rows[1:]]


def joined_strings(path: Path) -> str:
    """A source of tests, in which no string is in pieces."""
    text = path.read_text("utf-8")
    if path.suffix == ".c":
        return re.sub(r'"[\s\\]*"', "", text)
    return re.sub(r"(?<!\w)(['\"])\s*\n\s*f?r?(['\"])", "", text)


class Messages(unittest.TestCase):
    """Tables tell of all messages, and of no others."""

    def test_there_are_some(self) -> None:
        """Nothing below is true just because nothing was found."""
        files = {message.file for message in all_messages()}
        for file in ("hw/mem/memslot-account.c",
                     "hw/virtio/virtio-mem-memslots.c",
                     "hw/virtio/virtio-mem.c", "hw/virtio/vhost-memslots.c",
                     "subprojects/libvhost-user/libvhost-user-held.c",
                     "scripts/memslots-top"):
            self.assertIn(file, files)

    def test_explained(self) -> None:
        """The users' page has each message that users may get to see."""
        rows = table(USERS, "Messages of QEMU") \
            + table(USERS, "Messages of memslots-top")
        texts = [text for row in rows
                 for text in re.findall(r"``(.+?)``", row[0])]
        messages = [message for message in all_messages()
                    if message.file not in INTERNAL]
        for message in messages:
            with self.subTest(message=str(message)):
                self.assertTrue(
                    any(message.pattern.fullmatch(text) for text in texts),
                    f"{USERS.name} does not explain {message}")
        for text in texts:
            with self.subTest(text=text):
                self.assertTrue(
                    any(message.pattern.fullmatch(text)
                        for message in messages),
                    f"{USERS.name} explains what nothing prints: {text}")
        for row in rows:
            with self.subTest(row=row[0]):
                self.assertEqual(len(row), 3)
                self.assertTrue(all(row))

    def test_provoked(self) -> None:
        """Each message has a row that names a test which checks it."""
        rows = re.findall(r"^\| `(.+)` \| `?(.+?)`? \| `?(.+?)`? \|$",
                          PROVOKED.read_text("utf-8"), re.M)
        messages = all_messages()
        for message in messages:
            fitting = [row for row in rows
                       if message.pattern.fullmatch(row[0])]
            with self.subTest(message=str(message)):
                self.assertEqual(
                    len(fitting), 1,
                    f"{PROVOKED.name} has to have one row for {message}")
                self._check_test(message, *fitting[0][1:])
        for text, _, _ in rows:
            with self.subTest(text=text):
                self.assertTrue(
                    any(message.pattern.fullmatch(text)
                        for message in messages),
                    f"{PROVOKED.name} has a test of what nothing prints")

    def _check_test(self, message: Message, file: str, test: str) -> None:
        """
        The file has that test, and it, or a file beside it in a folder of
        tests with a subject, the text of the message.
        """
        if file == "none":
            print(f"# no test of {message}: {test}", flush=True)
            return
        self.assertTrue(file.startswith(TESTS), file)
        source = joined_strings(REPOSITORY / file)
        names = (f'"{test}"', f'/{test}"') if file.endswith(".c") \
            else (f"def {test}(",)
        self.assertTrue(any(name in source for name in names),
                        f"{file} has no test {test}")
        folder = Path(file).parent
        texts = [source] if str(folder) in TESTS else \
            [joined_strings(path)
             for path in sorted((REPOSITORY / folder).glob("*.c"))]
        self.assertTrue(any(message.longest in text for text in texts),
                        f"{file} does not check {message}")


if __name__ == "__main__":
    unittest.main()
