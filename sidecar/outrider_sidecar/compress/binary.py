"""Base64 and binary data become a line that says what it was; models read neither.

    #outrider:binary/1 mfzwizltkq7e2lov: base64, 48,213 characters
    {"name":"logo.png","data":"[base64, 48,213 characters: mfzwizltkq7e2lov]"}

Always holds: lossy, so the original is kept under the handle; what is around the data stays to the character.
"""

from __future__ import annotations

import re
from typing import Final

from outrider_sidecar.compress.block import MARKER, Context, Shrunk, handle_of

NAME: Final = "binary/1"
STEPS_PER_BYTE: Final = 8
_MIN: Final = 512
_RUN: Final = re.compile(r"[A-Za-z0-9+/_-]{512,}+={0,2}")
_CONTROLS: Final = re.compile("[\0-\x08\x0e-\x1f\x7f\ufffd]")


def shrink(text: str, context: Context) -> Shrunk | None:
    """The text without its long runs of base64, or a line in place of binary data; None where there are none."""
    if len(text) < _MIN or not context.budget.take(len(text) * STEPS_PER_BYTE):
        return None
    handle = handle_of(text, context.node)
    if len(_CONTROLS.findall(text)) * 20 > len(text):
        return Shrunk(NAME, f"{MARKER}{NAME} {handle}: binary, {len(text):,} characters", False, True)
    compact = "".join(text.split())
    whole = _RUN.fullmatch(compact.rpartition(",")[2]) if len(compact) * 80 > 79 * len(text) - 80 else None
    if whole is not None and _encoded(whole[0]) and len(compact.rpartition(",")[0]) < 100:
        what = compact.rpartition(",")[0] or "base64"
        return Shrunk(NAME, f"{MARKER}{NAME} {handle}: {what}, {len(text):,} characters", False, True)

    def named(found: re.Match[str]) -> str:
        return f"[base64, {len(found[0]):,} characters: {handle}]" if _encoded(found[0]) else found[0]

    made = _RUN.sub(named, text)
    return None if made == text else Shrunk(NAME, made, False, True)


def _encoded(run: str) -> bool:
    """Whether a run is as mixed as base64 is: capitals, small letters, digits."""
    head = run[:2_000]
    upper = sum([char.isupper() for char in head])
    digits = sum([char.isdigit() for char in head])
    lower = sum([char.islower() for char in head])
    return min(upper, lower) * 8 > len(head) and digits * 20 > len(head)
