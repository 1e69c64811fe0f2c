"""A text cut into passages: what stands between blank lines, or some sentences at a time where there are none.

Always holds: joined, heads and bodies are the text, character for character. A passage's head is what names it: a first
line that is short and no sentence, `Document [1](Title: ...)`, `Title: ...`, or a Markdown heading, which names what
follows it until the next. Where any of a passage is kept, its head is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from outrider_sidecar.compress import protect

_BLANK: Final = re.compile(r"\n[ \t]*\n\s*")
_HEAD: Final = re.compile(
    r"\s*(?:Document \[\d+\]\s*\(Title: ([^\n]{1,200}?)\)[ \t]*\n?|Title: ([^\n]{1,200})\n|\[\d+\] ([^\n.]{1,120})\n"
    r"|#{1,6} ([^\n]{1,200})(?:\n|\Z))"
)
_MAX_TITLE: Final = 120
_LONG: Final = 1_200  # characters from which on a passage is cut further
_WINDOW: Final = 500  # characters of a cut one, about


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a text."""

    head: str  # as it stands before the body; may be empty
    body: str
    title: str = ""  # what names it, here or in a heading before
    pinned: bool = False  # never left out


def passages_of(text: str) -> list[Passage]:
    """The passages of a text."""
    made: list[Passage] = []
    at = 0
    for start, end in protect.pinned(text):
        if start > at:
            made += _loose(text[at:start])
        made.append(Passage("", text[start:end], pinned=True))
        at = end
    if at < len(text):
        made += _loose(text[at:])
    return made


def _loose(text: str) -> list[Passage]:
    made: list[Passage] = []
    start = 0
    heading = ""
    for cut in (*_cuts(text), len(text)):
        piece = text[start:cut]
        start = cut
        if not piece:
            continue
        head, title = head_of(piece)
        body = piece[len(head) :]
        if head.lstrip().startswith("#"):
            heading = title
        parts = _short(body)
        for index, part in enumerate(parts):
            made.append(Passage("" if index else head, part, title or heading))
    return made


def _cuts(text: str) -> list[int]:
    cuts = [found.end() for found in _BLANK.finditer(text)]
    if len(cuts) >= 2:
        return cuts
    lines = text.splitlines(keepends=True)
    if len(lines) < 3 or len(text) < 100 * len(lines):
        return cuts
    at = 0
    cuts = []
    for line in lines[:-1]:  # long lines are what passages are
        at += len(line)
        cuts.append(at)
    return cuts


def head_of(piece: str) -> tuple[str, str]:
    """The head of a passage as it stands, and the title in it; both empty where it has none."""
    found = _HEAD.match(piece)
    if found is not None:
        return found[0], next((title.strip() for title in found.groups() if title), "")
    first, newline, rest = piece.partition("\n")
    title = first.strip()
    if newline and title and len(title) <= _MAX_TITLE and title[-1] not in ".!?,;:" and len(rest) > len(first):
        return first + newline, title
    return "", ""


def _short(body: str) -> list[str]:
    if len(body) <= _LONG:
        return [body]
    made: list[str] = []
    now = ""
    for sentence in protect.sentences(body):
        if now and len(now) + len(sentence) > _WINDOW:
            made.append(now)
            now = ""
        now += sentence
    made.append(now)
    return made
