# Copyright: the authors of this file, see git log
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.
"""Topics: parts of the series that are mailed one after the other.

A topic is a folder of patches/.  In build/qemu a commit says in a trailer of
its message which one it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TRAILER = re.compile(r"^Topic: *(\S+) *$", re.M)
OTHER = re.compile(r"[\w-]+: ")
NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class TopicError(Exception):
    """What is wrong with a topic, to follow the name of who is concerned."""


def take(message: str) -> tuple[str, str]:
    """The topic of a message, and the message without it."""
    found = TRAILER.findall(message)
    if not found:
        raise TopicError("names no topic; add a line 'Topic: NAME' above "
                         "its Signed-off-by, NAME being its folder in "
                         "patches/")
    if len(found) > 1:
        raise TopicError("names more than one topic: " + ", ".join(found))
    check(found[0])
    lines = [line for line in message.splitlines() if not TRAILER.match(line)]
    return found[0], tidy("\n".join(lines))


def put(message: str, topic: str) -> str:
    """The message with its topic, above the first who signed it off."""
    paragraphs = tidy(message).rstrip("\n").split("\n\n")
    last = paragraphs[-1].splitlines()
    signed = [number for number, line in enumerate(last)
              if line.startswith("Signed-off-by: ")]
    if len(paragraphs) > 1 and (signed or all(map(OTHER.match, last))):
        last.insert(signed[0] if signed else len(last), f"Topic: {topic}")
        paragraphs[-1] = "\n".join(last)
    else:
        paragraphs.append(f"Topic: {topic}")
    return "\n\n".join(paragraphs) + "\n"


def tidy(message: str) -> str:
    """As git commit leaves it: one blank line at most, none at the ends."""
    text = "\n".join(line.rstrip() for line in message.splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def check(topic: str) -> None:
    if not NAME.fullmatch(topic):
        raise TopicError(f"is of the topic '{topic}', but the name of a topic "
                         "has only small letters, digits and dashes")


def refuse_interleaved(pairs: Iterable[tuple[str, str]]) -> None:
    """Topics have to follow one another; pairs are of topic and name."""
    last, seen = "", set[str]()
    for topic, name in pairs:
        if topic != last and topic in seen:
            raise TopicError(f"{name} is of the topic {topic}, but comes "
                             f"after one of the topic {last}; keep all of a "
                             "topic together")
        seen.add(topic)
        last = topic
