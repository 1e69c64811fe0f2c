"""Logs and stack traces folded: lines of one form are named by a letter, only what differs in them is written.

    #lines/1 A=form with <>, a line: letter and values; ^ as the last one had; @n m: m lines from line n again
    t 2026-11-22T10:00:00.123Z <t> in 0.001 s after the line before
    A=<t> INFO [worker-<>] request <> took <> ms

    A 0 1 8f2c 12
    A 15 2 77ab ^
    ;3 WARN a line of its own, by time
    :one that has no time either
    @1 2

Always holds: the lines come back in their order, character for character (`unfold`); a line that could be read as
something else is written whole. Times that follow one format are steps from line to line, any other is a value. A form
is cut at whitespace and punctuation, so what varies is a whole word less the beginning and end that all have.

Deliberately not here: which lines matter. Nothing is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from outrider_sidecar.compress.block import Context, Shrunk
from outrider_sidecar.compress.timestamps import Clock, parts_of

NAME: Final = "lines/1"
MARK: Final = "#lines/1"
_LEGEND: Final = " A=form with <>, a line: letter and values; ^ as the last one had; @n m: m lines from line n again\n"
STEPS_PER_BYTE: Final = 120
MIN_LINES: Final = 4
_MAX_FORMS: Final = 600
_MAX_SHARE: Final = 0.8  # of the size: below it a fold is fewer tokens too
_WORD: Final = re.compile(r"([^\s=,;:()\[\]{}\"'|]+)")
_HOLE: Final = "<>"
_TIME: Final = "<t>"
_EMPTY, _SAME = "~", "^"
_ESCAPED: Final = ("~", "^", "\\")
_MIN_STATIC: Final = 8  # characters that a line must have in common with others
_MIN_RUN: Final = 3  # lines, for a reference to earlier ones

Form = tuple[str, ...]


@dataclass(slots=True)
class _Cluster:
    """Lines of one form."""

    seps: Form
    words: list[str | None]  # None: differs from line to line
    rows: list[tuple[int, list[str]]] = field(default_factory=list)  # (line, its words)


def letter_of(index: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    first, last = divmod(index, 26)
    return (chr(64 + first) if first else "") + chr(65 + last)


def shrink(text: str, context: Context) -> Shrunk | None:
    """The text with its lines folded, or None where that does not pay."""
    if not context.budget.take(len(text) * STEPS_PER_BYTE):
        return None
    folded = fold(text)
    return None if folded is None or len(folded) > _MAX_SHARE * len(text) else Shrunk(NAME, folded)


def fold(text: str) -> str | None:
    """The text folded, whether or not that makes it smaller; None where it cannot be."""
    lines = text.split("\n")
    if len(lines) < MIN_LINES or "\r" in text:
        return None
    clock, steps, bodies = _timed(lines)
    clusters = _clusters(bodies, [step is not None for step in steps])
    if clusters is None:
        return None
    forms, rows = _rows(clusters, lines, steps, bodies)
    if not forms and not clock:
        return None
    head = f"t {clock.base} {_TIME} in {clock.unit} s after the line before\n" if clock else ""
    return f"{MARK}{_LEGEND}{head}{''.join(forms)}\n" + "\n".join(_referenced(rows))


def _timed(lines: list[str]) -> tuple[Clock | None, list[int | None], list[str]]:
    """The clock of the lines, the steps of those it reads, and the lines without what it read."""
    clock = None
    last = 0
    read = 0
    steps: list[int | None] = []
    bodies: list[str] = []
    for line in lines:
        found = parts_of(line)
        if found is not None and clock is None:
            clock = Clock(found)
            last = clock.at(found) or 0
        at = clock.at(found) if clock is not None and found is not None else None
        body = line[found.end :] if found is not None and at is not None else line
        if at is None or body[:1].isdigit():
            steps.append(None)
            bodies.append(line)
            continue
        steps.append(at - last)
        bodies.append(body)
        last = at
        read += 1
    if clock is None or read * 2 < len(lines):
        return None, [None] * len(lines), lines
    return clock, steps, bodies


def _clusters(bodies: list[str], timed: list[bool]) -> list[_Cluster] | None:
    """Forms that two lines and more have; None where there are too many for logs."""
    exact: dict[tuple[bool, Form, Form], _Cluster] = {}
    for index, body in enumerate(bodies):
        if _HOLE in body or _TIME in body or len(body) > 4_000:
            continue
        parts = _WORD.split(body)
        words = parts[1::2]
        seps = tuple(parts[0::2])
        key = (timed[index], seps, tuple([word if word.isalpha() else "" for word in words]))
        cluster = exact.get(key)
        if cluster is None:
            exact[key] = cluster = _Cluster(seps, list(words))
        cluster.rows.append((index, words))
    by_seps: dict[tuple[bool, Form], list[_Cluster]] = {}
    for (with_time, seps, masked), cluster in exact.items():
        cluster.words = [word or None for word in masked]
        near = by_seps.setdefault((with_time, seps), [])
        home = _nearest(near, cluster)
        if home is None:
            near.append(cluster)
        else:
            home.rows += cluster.rows
    found = [cluster for near in by_seps.values() for cluster in near if _worth(cluster)]
    if len(found) > _MAX_FORMS:
        return None
    return sorted(found, key=lambda cluster: cluster.rows[0][0])


def _nearest(near: list[_Cluster], cluster: _Cluster) -> _Cluster | None:
    """A cluster that differs in few words; those become holes of it."""
    for home in near[:20]:
        differing = [
            index
            for index, (a, b) in enumerate(zip(home.words, cluster.words, strict=True))
            if a != b and a is not None
        ]
        shared = len([word for word in home.words if word is not None]) - len(differing)
        if len(differing) <= shared:
            for index in differing:
                home.words[index] = None
            return home
    return None


def _worth(cluster: _Cluster) -> bool:
    count = len(cluster.rows)
    if count < 2:
        return False
    cluster.rows.sort(key=lambda row: row[0])
    static = sum(map(len, cluster.seps)) + sum([len(word) for word in cluster.words if word is not None])
    return static >= _MIN_STATIC or count >= MIN_LINES


def _rows(
    clusters: list[_Cluster], lines: list[str], steps: list[int | None], bodies: list[str]
) -> tuple[list[str], list[str]]:
    """The forms, as lines, and what stands for each line of the text."""
    rows = [
        f":{line}" if step is None else f";{step}{body}" for line, step, body in zip(lines, steps, bodies, strict=True)
    ]
    forms: list[str] = []
    for number, cluster in enumerate(clusters):
        letter = letter_of(number)
        indexes = [index for index, _ in cluster.rows]
        with_time = steps[indexes[0]] is not None
        made = [cluster.seps[0]]
        values: list[Sequence[str]] = []
        columns = zip(*[words for _, words in cluster.rows], strict=True)
        for sep, column in zip(cluster.seps[1:], columns, strict=True):
            made.append(_column(column, values) + sep)
        if with_time:
            values.insert(0, [str(steps[index]) for index in indexes])
        forms.append(f"{letter}={_TIME if with_time else ''}{''.join(made)}\n")
        if values:
            for index, row in zip(indexes, zip(*values, strict=True), strict=True):
                rows[index] = f"{letter} {' '.join(row)}"
        else:
            for index in indexes:
                rows[index] = letter
    return forms, rows


def _column(column: tuple[str, ...], values: list[Sequence[str]]) -> str:
    """How a word stands in the form; what differs is added to the values."""
    low, high = min(column), max(column)
    if low == high:
        return low
    start = _whole(_common(low, high), column)
    ends = [word[len(start) :][::-1] for word in column]
    end = _whole(_common(min(ends), max(ends)), ends)[::-1]
    cut = len(end)
    made: list[str] = []
    last = ""
    for word in column:
        value = word[len(start) : len(word) - cut] if cut else word[len(start) :]
        if value == last and len(value) > 2:
            made.append(_SAME)
            continue
        last = value
        made.append(_EMPTY if not value else "\\" + value if value.startswith(_ESCAPED) else value)
    values.append(made)
    return f"{start}{_HOLE}{end}"


def _whole(start: str, words: Sequence[str]) -> str:
    """As much of what all words begin with as does not end amid a number or a name."""
    start = start.rstrip("0123456789")
    if start[-1:].isalpha():
        at = len(start)
        if any([word[at : at + 1].isalpha() or len(word) == at for word in words]):
            while start[-1:].isalnum():
                start = start[:-1]
    return start


def _common(low: str, high: str) -> str:
    """The beginning of both."""
    for index, char in enumerate(low):
        if index >= len(high) or high[index] != char:
            return low[:index]
    return low


def _referenced(rows: list[str]) -> list[str]:
    """The rows, runs of what stood before replaced by where it stood (counted from 1)."""
    made: list[str] = []
    places: dict[tuple[str, ...], int] = {}
    at = 0
    while at < len(rows):
        run = 0
        place = places.get(tuple(rows[at : at + _MIN_RUN]), -1)
        if place >= 0:
            while at + run < len(rows) and rows[place + run] == rows[at + run]:
                run += 1
        reference = f"@{place + 1} {run}"
        taken = run if run >= _MIN_RUN and sum(map(len, rows[at : at + run])) + run > len(reference) + 1 else 1
        made.append(reference if taken > 1 else rows[at])
        for index in range(at, at + taken):
            if index + _MIN_RUN <= len(rows):
                places.setdefault(tuple(rows[index : index + _MIN_RUN]), index)
        at += taken
    return made
