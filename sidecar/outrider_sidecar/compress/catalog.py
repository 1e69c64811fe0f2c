"""Which compressors try on which kind of block, and how what they made is undone.

Always holds: `lossless` needs nobody's leave, `lossy` an operator's; code is never touched by either; what is restored
is what the compressor would make the same text of again, so that text which only looks like a result stays what it is.

Deliberately not here: whether a conversation may be compressed at all, and how often (the ledger, the controller).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from outrider_sidecar.compress import (
    binary,
    detect,
    diffs,
    lines,
    markdown,
    repeats,
    selection,
    structured,
    tabular,
    unfold,
)
from outrider_sidecar.compress.block import (
    COMPRESSIBLE,
    Block,
    Budget,
    Context,
    Restore,
    Result,
    Shrink,
    marked,
    result_of,
)

MIN_BYTES: Final = 64
_UNBOUNDED: Final = 1 << 62

_LOSSLESS: Final[Mapping[str, tuple[Shrink, ...]]] = {
    detect.JSON: (structured.shrink,),
    detect.LINES: (structured.shrink,),
    detect.LOG: (lines.shrink,),
    detect.TRACE: (lines.shrink,),
    detect.TABLE: (tabular.shrink, lines.shrink),
}
_LOSSY: Final[Mapping[str, tuple[Shrink, ...]]] = {
    detect.HTML: (markdown.shrink,),
    detect.JSON: (binary.shrink,),
    detect.LINES: (binary.shrink,),
    detect.BINARY: (binary.shrink,),
    detect.DIFF: (diffs.shrink,),
    detect.TEXT: (binary.shrink, selection.shrink),
}
_RESTORES: Final[Mapping[str, tuple[Restore, Shrink]]] = {
    "#columns/1 ": (structured.restore_columns, structured.shrink),
    "#lines/1 ": (unfold.unfolded, lines.shrink),
    "#rows/1 ": (tabular.restored, tabular.shrink),
}


def lossless(block: Block, context: Context) -> Result | None:
    """The block made smaller without loss, or None: it stays as it is."""
    text = block.text
    if block.role not in COMPRESSIBLE or len(text) < MIN_BYTES or marked(text):
        return None
    pointed = repeats.shrink(text, context)
    kind = detect.kind_of(text, block.media_type)
    if pointed is not None:
        return result_of(block, kind, pointed, context)
    return _first(_LOSSLESS.get(kind, ()), block, kind, context)


def lossy(block: Block, context: Context) -> Result | None:
    """The block made smaller with its original to be kept under the result's handle, or None."""
    if block.role not in COMPRESSIBLE or len(block.text) < MIN_BYTES or marked(block.text):
        return None
    kind = detect.kind_of(block.text, block.media_type)
    return _first(_LOSSY.get(kind, ()), block, kind, context)


def _first(shrinks: tuple[Shrink, ...], block: Block, kind: str, context: Context) -> Result | None:
    for shrink in shrinks:
        result = result_of(block, kind, shrink(block.text, context), context)
        if result is not None:
            return result
    return None


def restore(text: str, find: Callable[[str], str | None] | None = None) -> str:
    """What a text was before a reversible compressor made it smaller; any other text as it is.

    `find` gives the earlier text of a pointer's label. Costs about three times the compression.
    """
    if text.startswith("#"):
        if find is not None and (pointed := repeats.restored(text, find)) is not None:
            return pointed
        for mark, (undo, shrink) in _RESTORES.items():
            if text.startswith(mark):
                return _checked(text, undo, shrink)
        return text
    if text.startswith(("{", "[")) and "\t" in text[-12:]:
        return _checked(text, structured.restore_json, structured.shrink)
    return text


def _checked(text: str, undo: Restore, shrink: Shrink) -> str:
    original = undo(text)
    if original is None:
        return text
    again = shrink(original, Context(Budget(_UNBOUNDED)))
    return original if again is not None and again.text == text else text
