"""A block that the conversation has had already becomes a pointer to it.

    #outrider:same/1 mfzwizlt: what get_user_details gave before, beginning {"name":{"first_name":"Mia"

Always holds: the pointer names the earlier block by its digest, by what it came from and by how it begins, so that a
model finds it and a program cannot mistake it; it is restored from the earlier block alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from outrider_sidecar.compress.block import MARKER, Context, Shrunk, digest_of, label_of

NAME: Final = "same/1"
MIN_BYTES: Final = 200
STEPS_PER_BYTE: Final = 2
_BEGINNING: Final = 40


def pointer(text: str, origin: str) -> str:
    """What stands for a text that was there before."""
    beginning = " ".join(text[: 2 * _BEGINNING].split())[:_BEGINNING]
    source = " ".join(origin.split())[:_BEGINNING]
    what = f"what {source or 'an earlier block'} gave before, beginning {beginning}"
    return f"{MARKER}{NAME} {label_of(digest_of(text))}: {what}"


def shrink(text: str, context: Context) -> Shrunk | None:
    """A pointer, if the context has seen the text."""
    if len(text) < MIN_BYTES or not context.seen or not context.budget.take(len(text) * STEPS_PER_BYTE):
        return None
    origin = context.seen.get(digest_of(text))
    return None if origin is None else Shrunk(NAME, pointer(text, origin))


def restored(text: str, find: Callable[[str], str | None]) -> str | None:
    """The text a pointer stands for; `find` gives the earlier text of a label."""
    start = f"{MARKER}{NAME} "
    if not text.startswith(start):
        return None
    label, colon, rest = text[len(start) :].partition(":")
    original = find(label) if colon else None
    if original is None:
        return None
    origin = rest.removeprefix(" what ").partition(" gave before, beginning ")[0]
    return original if pointer(original, "" if origin == "an earlier block" else origin) == text else None
