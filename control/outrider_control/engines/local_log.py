"""Logs of instances: what they write, bounded, and its last lines for people.

Always holds: an instance writes into its file by itself, so that it goes on while no control plane runs. So the bound
is kept by looking: a file that has grown past it becomes `.1` and begins anew; what is written in that moment may be
lost, and a program that writes more than `log_bytes` between two looks has more for as long.

Deliberately not here: reading logs for anything but their end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 4_096
_TAIL_LINES: Final = 5
_NOTE_CHARACTERS: Final = 400
_COPY_BYTES: Final = 1 << 20


def begin(log: Path) -> None:
    """A fresh file for an instance; the one of its namesake before is kept as `.1`. OSError."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists():
        log.replace(_before(log))


def bound(logs: Iterable[Path], most_bytes: int) -> None:
    """Cut those that have grown too long. A file that cannot be cut is left for the next look."""
    for log in logs:
        try:
            if log.stat().st_size > most_bytes:
                _cut(log, most_bytes)
        except OSError:
            continue


def last_lines(log: Path) -> str:
    """The end of a log as one short text; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    note = ""
    for line in reversed([line.strip() for line in text.splitlines() if line.strip()][-_TAIL_LINES:]):
        longer = f"{line} | {note}" if note else line[-_NOTE_CHARACTERS:]
        if len(longer) > _NOTE_CHARACTERS:
            break
        note = longer
    return "".join([one if one.isprintable() else " " for one in note]).strip()


def _before(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")


def _cut(log: Path, most_bytes: int) -> None:
    """The last `most_bytes` go to `.1`; who has the file open goes on at its beginning, as it only appends."""
    with log.open("r+b") as source, _before(log).open("wb") as target:
        source.seek(-min(most_bytes, source.seek(0, os.SEEK_END)), os.SEEK_END)
        left = most_bytes
        while left > 0 and (chunk := source.read(min(left, _COPY_BYTES))):
            target.write(chunk)
            left -= len(chunk)
        source.truncate(0)
