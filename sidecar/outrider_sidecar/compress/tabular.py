"""Tables in plain text: columns padded with spaces, and cells between delimiters.

    #rows/1 wide 12 6> 9; a cell with = holds for all rows
    NAME READY STATUS=Running
    web-1 1/1
    web-2 0/1

Always holds: exact, for the table is only taken where writing it again from widths and cells gives the same
characters. `6>` is a column whose cells stand to the right. Without a width the text had one delimiter between cells,
which is named. Cells that are the same in every row below the first stand in the first row, after `=`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from outrider_sidecar.compress.block import Context, Shrunk

NAME: Final = "rows/1"
MARK: Final = "#rows/1 "
_LEGEND: Final = "; a cell with = holds for all rows"
STEPS_PER_BYTE: Final = 60
_MAX_SHARE: Final = 0.85
_MIN_ROWS: Final = 4
_DELIMITERS: Final = {"tabs": "\t", "commas": ",", "semicolons": ";", "bars": "|"}
_CELL: Final = re.compile(r"\S+(?: \S+)*")
_HEAD: Final = re.compile(r"(wide|apart|tabs|commas|semicolons|bars)((?: \d{1,4}>?)*)(!?)" + re.escape(_LEGEND) + "\n")


def shrink(text: str, context: Context) -> Shrunk | None:
    """The table without padding and without columns that say the same everywhere, or None."""
    if "=" in text.partition("\n")[0] or "\r" in text or not context.budget.take(len(text) * STEPS_PER_BYTE):
        return None
    made = written(text)
    return None if made is None or len(made) > _MAX_SHARE * len(text) else Shrunk(NAME, made)


def written(text: str) -> str | None:
    """The table's text, whether or not it is smaller; None where the text is no table."""
    end = "!" if text.endswith("\n") else ""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < _MIN_ROWS or not all(lines):
        return None
    for name, delimiter in _DELIMITERS.items():
        count = lines[0].count(delimiter)
        if count and all([line.count(delimiter) == count for line in lines]):
            rows = [line.split(delimiter) for line in lines]
            return f"{MARK}{name}{end}{_LEGEND}\n{_body(rows, delimiter)}"
    return _aligned(lines, end)


def _aligned(lines: list[str], end: str) -> str | None:
    found = [[cell.span() for cell in _CELL.finditer(line)] for line in lines]
    count = len(found[0])
    if count < 2 or any([len(spans) != count for spans in found]):
        found = [[cell.span() for cell in re.finditer(r"\S+", line)] for line in lines]
        count = len(found[0])
        if count < 2 or any([len(spans) != count for spans in found]):
            return None
    widths: list[str] = []
    left = 0
    for index in range(count):
        starts = {spans[index][0] for spans in found}
        ends = {spans[index][1] for spans in found}
        after = min([spans[index + 1][0] for spans in found]) if index + 1 < count else 0
        if len(starts) == 1 and starts.pop() == left:
            width = max(ends) if index + 1 == count else after
            widths.append(str(width - left))
        elif len(ends) == 1:
            width = ends.pop()
            widths.append(f"{width - left}>")
        else:
            return None
        left = width
    rows = [[line[start:stop] for start, stop in spans] for line, spans in zip(lines, found, strict=True)]
    spaced = any([" " in cell for row in rows for cell in row])
    if (spaced and any(["|" in line for line in lines])) or [_padded(row, widths) for row in rows] != lines:
        return None
    return (
        f"{MARK}{'apart' if spaced else 'wide'} {' '.join(widths)}{end}{_LEGEND}\n{_body(rows, '|' if spaced else ' ')}"
    )


def _padded(row: Sequence[str], widths: Sequence[str]) -> str:
    cells = [
        cell.rjust(int(width[:-1])) if width.endswith(">") else cell.ljust(int(width))
        for cell, width in zip(row, widths, strict=True)
    ]
    return "".join(cells).rstrip(" ")


def _body(rows: list[list[str]], delimiter: str) -> str:
    first, *rest = rows
    kept = [index for index in range(len(first)) if any([row[index] != rest[0][index] for row in rest])]
    if not kept:
        kept = [0]
    same = set(range(len(first))) - set(kept)
    head = [f"{name}={rest[0][index]}" if index in same else name for index, name in enumerate(first)]
    return "\n".join([delimiter.join(head), *[delimiter.join([row[index] for index in kept]) for row in rest]])


def restored(text: str) -> str | None:
    """The table that a text of `rows` stands for, or None."""
    found = _HEAD.match(text, len(MARK)) if text.startswith(MARK) else None
    if found is None:
        return None
    name, widths, end = found[1], found[2].split(), "\n" if found[3] else ""
    delimiter = {"wide": " ", "apart": "|"}.get(name) or _DELIMITERS[name]
    head, *body = [line.split(delimiter) for line in text[found.end() :].split("\n")]
    names = [cell.partition("=") for cell in head]
    open_columns = sum([not equals for _, equals, _ in names])
    if any([len(row) != open_columns for row in body]):
        return None
    rows = [[first for first, _, _ in names]]
    for row in body:
        cells = iter(row)
        rows.append([value if equals else next(cells) for _, equals, value in names])
    if name not in ("wide", "apart"):
        return "\n".join([delimiter.join(row) for row in rows]) + end
    if len(widths) != len(names):
        return None
    return "\n".join([_padded(row, widths) for row in rows]) + end
