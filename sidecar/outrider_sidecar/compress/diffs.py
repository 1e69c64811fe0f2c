"""Diffs with less context: what was changed, and one line around it.

Always holds: every line that a diff adds or takes away, and every header, stays to the character; only unchanged lines
go beyond the first beside a change. Lossy, for line counts of `@@` headers then speak of the original, which is kept
under the handle."""

from __future__ import annotations

from typing import Final

from outrider_sidecar.compress.block import MARKER, Context, Shrunk, handle_of

NAME: Final = "diff/1"
STEPS_PER_BYTE: Final = 20
_AROUND: Final = 1
_MIN_CUT: Final = 2  # lines; one alone stays


def shrink(text: str, context: Context) -> Shrunk | None:
    """The diff with less context, or None where it has none to spare."""
    if not context.budget.take(len(text) * STEPS_PER_BYTE):
        return None
    lines = text.split("\n")
    keep = [False] * len(lines)
    inside = False
    for index, line in enumerate(lines):
        if line.startswith("@@"):
            inside = True
        elif inside and line[:1] not in (" ", "+", "-", "\\", ""):
            inside = False
        if inside and (line[:1] == " " or not line):
            continue
        changed = inside and line[:1] in ("+", "-")
        around = _AROUND if changed else 0
        for near in range(max(0, index - around), min(len(lines), index + around + 1)):
            keep[near] = True
    keep[-1] = True
    made: list[str] = []
    at = 0
    cut = 0
    while at < len(lines):
        if keep[at]:
            made.append(lines[at])
            at += 1
            continue
        run = at
        while run < len(lines) and not keep[run]:
            run += 1
        if run - at < _MIN_CUT:
            made += lines[at:run]
        else:
            made.append(f"[... {run - at}]")
            cut += run - at
        at = run
    if not cut:
        return None
    head = f"{MARKER}{NAME} {handle_of(text, context.node)}: diff, [... n] stands for n lines without changes\n"
    return Shrunk(NAME, head + "\n".join(made), False, True)
