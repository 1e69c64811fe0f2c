"""Reads what `columns` writes, back into the JSON it was.

Always holds: what does not follow the grammar to its last character gives None, at any depth and size; nothing here is
on a call's path.

Deliberately not here: the grammar in words (`columns`), whitespace (`json_text`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from outrider_sidecar.compress import json_text
from outrider_sidecar.compress.columns import KEYED, LEGEND, MARK

_FIRST_LINE: Final = re.compile(re.escape(MARK) + r"(?: (\w+))?" + re.escape(LEGEND))
_STRING: Final = re.compile(r'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"')
_NUMBER_OR_LITERAL: Final = re.compile(r"(?:-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)\Z")
_VALUE: Final = re.compile(r"[^,{}\[\]\"\\\n]+")
_HEAD_VALUE: Final = re.compile(r"[^,(){}\[\]\"\\\n]+")
_KEY: Final = re.compile(r"[^,:=(){}\[\]\"\\\n]+")
_RAW: Final = "raw"
_MISSING: Final = object()
_MAX_DEPTH: Final = 2 * json_text.MAX_DEPTH


class _Unreadable(ValueError):
    """Not the grammar."""


@dataclass(slots=True)
class _Column:
    """One entry of a table's head."""

    key: str  # as JSON text; empty: the keys of an object of objects
    constant: str | None = None
    keyed: bool = False  # equal to the key of its row
    nested: list[_Column] | None = None  # an object of these
    listed: list[str] | None = None  # an array of objects with these keys


@dataclass(slots=True)
class _Pairs:
    """An object: keys as JSON text, and values."""

    items: list[tuple[str, Any]] = field(default_factory=list)


def restored(text: str) -> str | None:
    """The JSON that a text of `columns` stands for, or None."""
    first = _FIRST_LINE.match(text)
    if first is None:
        return None
    style = first[1] or json_text.DEFAULT
    try:
        reader = _Reader(text, first.end())
        tree = reader.value(0)
        if reader.at != len(text):
            return None
        made: list[str] = []
        _write(tree, made)
        compact = "".join(made)
        return compact if style == _RAW else json_text.unstyled(compact, style)
    except (ValueError, IndexError, RecursionError):
        return None


def _write(node: Any, made: list[str]) -> None:
    if isinstance(node, str):
        made.append(node)
    elif isinstance(node, _Pairs):
        made.append("{")
        for index, (key, value) in enumerate(node.items):
            made.append(f",{key}:" if index else f"{key}:")
            _write(value, made)
        made.append("}")
    elif isinstance(node, list):
        made.append("[")
        for index, value in enumerate(node):
            if index:
                made.append(",")
            _write(value, made)
        made.append("]")
    else:
        raise _Unreadable


class _Reader:
    """A place in a text, and what is read from there on."""

    __slots__ = ("at", "text")

    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at

    def value(self, depth: int) -> Any:
        """A value of any kind."""
        if depth > _MAX_DEPTH:
            raise _Unreadable
        if self.text.startswith("[(", self.at):
            return self._table(depth)
        if self._took("["):
            return self._list(depth)
        if self._took("{"):
            return self._object(depth)
        return self._leaf()

    def _took(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def _need(self, token: str) -> None:
        if not self._took(token):
            raise _Unreadable

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise _Unreadable
        self.at = found.end()
        return found[0]

    def _leaf(self, pattern: re.Pattern[str] = _VALUE) -> str:
        if self.text.startswith('"', self.at):
            return self._match(_STRING)
        bare = self._match(pattern)
        return bare if _NUMBER_OR_LITERAL.match(bare) else f'"{bare}"'

    def _key(self) -> str:
        return self._match(_STRING) if self.text.startswith('"', self.at) else f'"{self._match(_KEY)}"'

    def _list(self, depth: int) -> list[Any]:
        values: list[Any] = []
        if self._took("]"):
            return values
        while True:
            values.append(self.value(depth + 1))
            if self._took("]"):
                return values
            self._need(",")

    def _object(self, depth: int) -> _Pairs:
        pairs = _Pairs()
        if self._took("}"):
            return pairs
        while True:
            key = self._key()
            self._need(":")
            pairs.items.append((key, self.value(depth + 1)))
            if self._took("}"):
                return pairs
            self._need(",")

    def _table(self, depth: int) -> Any:
        self._need("[(")
        columns = self._columns(")")
        grouped = self._took("/")
        groups: list[list[Any]] = [[]]
        keyed = bool(columns) and not columns[0].key
        pairs = _Pairs()
        while self._took("\n"):
            if grouped and self._took("\n"):
                groups.append([])
            cells = self._cells(sum(map(_width, columns)), depth)
            if keyed:
                own = cells[0]
                pairs.items.append((own, _record(columns[1:], cells[1:], own)))
            else:
                groups[-1].append(_record(columns, cells, None))
        self._need("]")
        if keyed:
            return pairs
        return groups if grouped else groups[0]

    def _cells(self, width: int, depth: int) -> list[Any]:
        cells: list[Any] = []
        for index in range(width):
            if index:
                self._need(",")
            following = self.text[self.at : self.at + 1]
            cells.append(_MISSING if following in (",", "\n", "]") else self.value(depth + 1))
        return cells

    def _columns(self, end: str) -> list[_Column]:
        columns: list[_Column] = []
        while not self._took(end):
            if columns:
                self._need(",")
            elif self._took(KEYED):
                columns.append(_Column("", keyed=True))
                continue
            column = _Column(self._key())
            if self._took("="):
                if self._took(KEYED):
                    column.keyed = True
                else:
                    column.constant = self._leaf(_HEAD_VALUE)
            elif self._took("{"):
                column.nested = self._columns("}")
            elif self._took("["):
                column.listed = []
                while not self._took("]"):
                    if column.listed:
                        self._need(",")
                    column.listed.append(self._key())
            columns.append(column)
        return columns


def _width(column: _Column) -> int:
    """Cells that a column takes of a row."""
    if column.nested is not None:
        return sum(map(_width, column.nested))
    if column.keyed:
        return 0 if column.key else 1
    return 0 if column.constant is not None else 1


def _record(columns: list[_Column], cells: list[Any], own: str | None) -> _Pairs:
    """The object of a row; takes its cells from the front of the list."""
    pairs = _Pairs()
    for column in columns:
        if column.nested is not None:
            width = _width(column)
            pairs.items.append((column.key, _record(column.nested, cells[:width], own)))
            del cells[:width]
            continue
        if column.keyed:
            value = own
        elif column.constant is not None:
            value = column.constant
        else:
            value = cells.pop(0)
        if value is _MISSING:
            continue
        if column.listed is not None and isinstance(value, list):
            value = [_Pairs(list(zip(column.listed, inner, strict=True))) for inner in value]
        pairs.items.append((column.key, value))
    return pairs
