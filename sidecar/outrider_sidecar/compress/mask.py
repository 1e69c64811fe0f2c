"""Old tool results cleared: a line stands for what a tool gave, so that its call still has an answer.

Always holds: pure; the message stays where it is, with its role and call id, only its text goes. Which results are old
enough, and when history may be edited at all, is not decided here.
"""

from __future__ import annotations

from typing import Final

from outrider_sidecar.compress.block import MARKER, Block, Context, Result, Shrunk, handle_of, marked, result_of

NAME: Final = "cleared/1"


def cleared(block: Block, kind: str, context: Context) -> Result | None:
    """The line that stands for a result, or None where it would be no smaller, or is one already."""
    if block.text.startswith(f"{MARKER}{NAME} "):
        return None
    source = " ".join(block.source.split())[:40] or "an earlier step"
    was = "a compressed result" if marked(block.text) else f"{kind}, {len(block.text):,} characters"
    text = f"{MARKER}{NAME} {handle_of(block.text, context.node)}: what {source} gave ({was}) was cleared"
    return result_of(block, kind, Shrunk(NAME, text, exact=False, lossy=True), context)
