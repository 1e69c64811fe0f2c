"""Reads what `lines` writes, back into the lines they were.

Always holds: what does not follow the form to its last line gives None; references go backwards only, and what they
bring back is bounded.
"""

from __future__ import annotations

import re
from typing import Final

from outrider_sidecar.compress.lines import _HOLE, _LEGEND, _SAME, _TIME, MARK
from outrider_sidecar.compress.timestamps import Clock, parts_of

_MAX_LINES: Final = 1_000_000
_FORM: Final = re.compile(r"([A-Z]{1,2})=(.*)", re.DOTALL)
_REFERENCE: Final = re.compile(r"@(\d{1,9}) (\d{1,9})\Z")
_TIMED: Final = re.compile(r";(-?\d{1,20})(.*)", re.DOTALL)


def unfolded(text: str) -> str | None:
    """The text that a text of `lines` stands for, or None."""
    if not text.startswith(MARK + _LEGEND):
        return None
    try:
        head, rows = _parts(text[len(MARK + _LEGEND) :])
        return "\n".join(_lines(head, rows))
    except (ValueError, IndexError, KeyError):
        return None


def _parts(text: str) -> tuple[list[str], list[str]]:
    head, gap, body = ("\n" + text).partition("\n\n")
    if not gap:
        raise ValueError
    rows: list[str] = []
    for row in body.split("\n"):
        found = _REFERENCE.match(row)
        if found is None:
            rows.append(row)
            continue
        start, count = int(found[1]) - 1, int(found[2])
        if not 0 <= start < len(rows) or len(rows) + count > _MAX_LINES:
            raise ValueError
        for index in range(start, start + count):
            rows.append(rows[index])
    return head.split("\n")[1:], rows


def _lines(head: list[str], rows: list[str]) -> list[str]:
    clock = None
    now = 0
    if head and head[0].startswith("t "):
        stamp = parts_of(head.pop(0)[2:])
        if stamp is None:
            raise ValueError
        clock = Clock(stamp)
        now = clock.at(stamp) or 0
    forms: dict[str, list[str]] = {}
    for line in head:
        found = _FORM.match(line)
        if found is None:
            raise ValueError
        forms[found[1]] = found[2].split(_HOLE)
    last: dict[str, list[str]] = {}
    lines: list[str] = []
    for row in rows:
        if row.startswith(":"):
            lines.append(row[1:])
            continue
        if row.startswith(";"):
            found = _TIMED.match(row)
            if found is None or clock is None:
                raise ValueError
            now += int(found[1])
            lines.append(clock.text(now) + found[2])
            continue
        letter, *values = row.split(" ")
        form = forms[letter]
        stamp_text = ""
        if form[0].startswith(_TIME):
            if clock is None:
                raise ValueError
            now += int(values.pop(0))
            stamp_text = clock.text(now)
        if len(values) != len(form) - 1:
            raise ValueError
        before = last.setdefault(letter, [""] * len(values))
        for index, value in enumerate(values):
            before[index] = before[index] if value == _SAME else _plain(value)
        filled = "".join([part + value for part, value in zip(form, [*before, ""], strict=True)])
        lines.append(stamp_text + filled.removeprefix(_TIME) if stamp_text else filled)
    return lines


def _plain(value: str) -> str:
    if value == "~":
        return ""
    return value.removeprefix("\\")
