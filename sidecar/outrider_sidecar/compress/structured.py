"""JSON and JSON lines made smaller: as tables where these pay, else without whitespace.

    json/1      compact JSON; whitespace behind its end, which no reader of JSON minds, names the style it had
    columns/1   see `columns`

Always holds: a table is chosen by its size in bytes alone, and only where it is clearly smaller than compact JSON,
which stays JSON for programs that read it. What has no style is compacted too, and is then not called reversible."""

from __future__ import annotations

from typing import Final

from outrider_sidecar.compress import columns, json_text, relaxed
from outrider_sidecar.compress.block import Context, Shrunk

JSON: Final = "json/1"
COLUMNS: Final = "columns/1"
STEPS_PER_BYTE: Final = 30
_TABLE_SHARE: Final = 0.86  # of compact JSON's size, below which a table has fewer tokens too: quotes cost few
_STYLES: Final = {"d": "\t", "t": "\t\t", **{str(width): "\t" + " " * width for width in range(1, 9)}}
_STYLE_OF: Final = {code: style for style, code in _STYLES.items()}


def shrink(text: str, context: Context) -> Shrunk | None:
    """JSON, or lines of JSON, made smaller."""
    if not context.budget.take(len(text) * STEPS_PER_BYTE):
        return None
    document = json_text.read(text) or json_text.read_lines(text)
    if document is None:
        return None
    if document.faithful:
        table = columns.written(document)
        if table is not None and len(table) < _TABLE_SHARE * document.compact_size:
            return Shrunk(COLUMNS, table, bool(document.style))
        compact = document.compact or document.encode(document.tree)
    else:
        compact = document.compact
    if document.style.startswith(json_text.LINES):
        return None
    code = _STYLES.get(document.style.removesuffix("n"))
    if code is None:
        return None if len(compact) >= len(text.rstrip()) else Shrunk(JSON, compact, False)
    return Shrunk(JSON, compact + code + ("\n" if document.style.endswith("n") else ""))


def restore_json(text: str) -> str | None:
    """What compact JSON was, by the whitespace behind it."""
    compact = text.rstrip(" \t\n")
    code = text[len(compact) :]
    style = _STYLE_OF.get(code.removesuffix("\n"))
    if style is None or not compact.startswith(("{", "[")):
        return None
    return json_text.restyled(compact, style + ("n" if code.endswith("\n") else ""))


def restore_columns(text: str) -> str | None:
    """The JSON that a table stands for."""
    return relaxed.restored(text)
