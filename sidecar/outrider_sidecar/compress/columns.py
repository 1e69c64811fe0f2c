"""JSON with its tables as tables: arrays and maps of objects name their keys once, and quotes go where none are needed.

    #columns/1 JSON; (keys) then rows
    {user:{id:u-17,flights:[(number,from=JFK,to,seats{economy,business})
    HAT069,SEA,12,3
    HAT083,DEN,7,]}}

- `[(keys)` begins a table, a row a line; an empty cell is a key that the object has not. `key=value`: the same in every
  row. `key{a,b}`: an object, its values in the row. `key[a,b]`: an array of objects, each as an array of its values.
- `(@,...)` is an object whose values are objects, `@` its own keys; `key=@` equals them.
- `(keys)/` is an array of arrays of objects, a blank line between two of them.
- A string without quotes is one that reads as nothing else: no number, no literal, nothing of the grammar in it.

Always holds: the order of keys, missing keys, `null`, every number and escape come back as they were, and the
whitespace too where it has a style (`json_text`), which the first line then names; a `raw` style means the whitespace
is gone. What repeats within a table is compared as it stands, never as a number.

Deliberately not here: reading it back (`relaxed`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from outrider_sidecar.compress import json_text
from outrider_sidecar.compress.json_text import Document

MARK: Final = "#columns/1"
LEGEND: Final = " JSON; (keys) then rows\n"
GROUPED: Final = "/"
KEYED: Final = "@"

_OPEN, _ROW, _GROUP, _NOTHING = "\x05", "\x06", "\x07", "\x0b"
_MAX_KEYS: Final = 200  # of a table
_MAX_TABLES: Final = 10_000
_NUMBER: Final = r"-?\d[\d.eE+-]*"  # and a little more
# A string that needs no quotes. As a key it holds no colon; as a value it may, after the first character.
_BARE: Final = re.compile(
    r'"(?<!\\")([A-Za-z_][\w .+@/-]*+|(?!' + _NUMBER + r'")[^\s"\\,:\[\]{}()#=@|\x00-\x1f][^"\\,:\[\]{}=\x00-\x1f]*+'
    r'(?:[:=][^"\\,\[\]{}\x00-\x1f]*+(?="[,\]}]))?)"(?<!"true")(?<!"false")(?<!"null")'
)
_BARE_KEY: Final = re.compile(r"(?!(?:" + _NUMBER + r"|true|false|null)\Z)[\w.$/-][\w .$/-]*\Z")
_HEADER: Final = re.compile(r'\["\\u0005",(\d+)(?:,"\\u000[67]",)?')


@lru_cache(maxsize=4_096)
def _is_bare_key(key: str) -> bool:
    return len(key) <= 100 and _BARE_KEY.match(key) is not None


class _NoTable(Exception):  # control flow: this value is none
    pass


class Fold:
    """A tree in the making: tables become flat arrays with stand-ins, their heads are kept beside."""

    __slots__ = ("document", "heads")

    def __init__(self, document: Document) -> None:
        self.document = document
        self.heads: list[str] = []

    def folded(self, node: Any) -> Any:
        """The node with its tables folded."""
        if type(node) is dict:
            if len(node) > 1 and (table := self._keyed(node)):
                return table
            return {
                key: self.folded(value) if type(value) is dict or type(value) is list else value
                for key, value in node.items()
            }
        if len(node) > 1:
            first = type(node[0])
            if first is dict:
                if set(map(type, node)) == {dict} and (table := self._table(node, None, None)):
                    return table
            elif first is list:
                if set(map(type, node)) == {list} and (table := self._grouped(node)):
                    return table
            elif dict not in (kinds := set(map(type, node))) and list not in kinds:
                return node
        return [self.folded(value) if type(value) is dict or type(value) is list else value for value in node]

    def _keyed(self, node: dict[str, Any]) -> list[Any] | None:
        records = list(node.values())
        if set(map(type, records)) != {dict}:
            return None
        return self._table(records, tuple(node), None)

    def _grouped(self, node: list[Any]) -> list[Any] | None:
        records = list(chain.from_iterable(node))
        if not records or set(map(type, records)) != {dict} or not all(node):
            return None
        return self._table(records, None, list(map(len, node)))

    def _table(
        self, records: list[dict[str, Any]], keys: tuple[str, ...] | None, groups: list[int] | None
    ) -> list[Any] | None:
        """A table as a flat array, or None."""
        if len(self.heads) >= _MAX_TABLES:
            return None
        try:
            head, columns = self._columns(records, keys)
        except _NoTable:
            return None
        if keys is not None:
            head.insert(0, KEYED)
            columns.insert(0, keys)
        if not columns or (len(columns) == 1 and _NOTHING in columns[0]):
            return None
        self.heads.append(f"({','.join(head)}){GROUPED if groups else ''}")
        flat: list[Any] = [_OPEN, len(self.heads) - 1]
        ends = _ends(groups) if groups else ()
        for index, row in enumerate(zip(*columns, strict=True)):
            flat.append(_GROUP if index in ends else _ROW)
            flat += row
        return flat

    def _columns(
        self, records: list[dict[str, Any]], keys: tuple[str, ...] | None
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Heads of columns, and the values of those that are not the same everywhere."""
        shapes = set(map(tuple, records))
        if len(shapes) == 1:
            union = shapes.pop()
            rows: list[Any] = list(map(list, map(dict.values, records)))
        else:
            union = _merged(shapes)
            rows = [[record.get(key, _NOTHING) for key in union] for record in records]
            if sum([row.count(_NOTHING) for row in rows]) * 2 > len(rows) * len(union):
                raise _NoTable
        if not union or len(union) > _MAX_KEYS:
            raise _NoTable
        kinds = set(map(type, chain.from_iterable(rows)))
        deep = dict in kinds or list in kinds
        head: list[str] = []
        columns: list[tuple[Any, ...]] = []
        for key, column in zip(union, zip(*rows, strict=True), strict=True):
            name = key if _is_bare_key(key) else self.document.encode(key)
            if deep and self._deep(name, column, head, columns):
                continue
            value = column[0]
            if value == column[-1] and column.count(value) == len(column) > 1 and self._constant(value, column):
                head.append(f"{name}={self.value_text(value)}")
            elif keys is not None and column == keys:
                head.append(f"{name}={KEYED}")
            else:
                head.append(name)
                columns.append(column)
        return head, columns

    def _constant(self, value: Any, column: tuple[Any, ...]) -> bool:
        """Whether values that are equal are also written alike."""
        kind = type(value)
        if kind is str:
            return value != _NOTHING
        return kind is not float and kind is not dict and kind is not list and len(set(map(type, column))) == 1

    def _deep(self, name: str, column: tuple[Any, ...], head: list[str], columns: list[tuple[Any, ...]]) -> bool:
        """Whether a column was taken that holds objects or arrays."""
        kinds = set(map(type, column))
        if dict not in kinds and list not in kinds:
            return False
        if len(kinds) == 1:
            if dict in kinds:
                if self._nested(name, column, head, columns):
                    return True
            elif self._listed(name, column, head, columns):
                return True
        head.append(name)
        columns.append(tuple([self.folded(v) if type(v) is dict or type(v) is list else v for v in column]))
        return True

    def _nested(self, name: str, column: tuple[Any, ...], head: list[str], columns: list[tuple[Any, ...]]) -> bool:
        """An object in every row: its values get columns of their own."""
        if len(set(map(tuple, column))) != 1 or not column[0]:
            return False
        inner, values = self._columns(list(column), None)
        head.append(f"{name}{{{','.join(inner)}}}")
        columns += values
        return True

    def _listed(self, name: str, column: tuple[Any, ...], head: list[str], columns: list[tuple[Any, ...]]) -> bool:
        """An array of objects in every row, all of one shape: each object becomes the array of its values."""
        records = list(chain.from_iterable(column))
        if len(records) < 2 or set(map(type, records)) != {dict} or len(set(map(tuple, records))) != 1:
            return False
        shape = tuple(records[0])
        if not shape or len(shape) > _MAX_KEYS:
            return False
        head.append(f"{name}[{','.join(map(self._key_text, shape))}]")
        columns.append(tuple([[self.folded(list(record.values())) for record in records] for records in column]))
        return True

    def _key_text(self, key: str) -> str:
        return key if _is_bare_key(key) else self.document.encode(key)

    def value_text(self, value: Any) -> str:
        """A value as it stands in a head."""
        text = self.document.encode([value])
        return text[1:-1] if "(" in text or ")" in text else "".join(_BARE.split(text))[1:-1]


def _ends(groups: list[int]) -> set[int]:
    """Indexes of rows that begin a group, but for the first."""
    ends: set[int] = set()
    at = 0
    for length in groups[:-1]:
        at += length
        ends.add(at)
    return ends


def _merged(shapes: set[tuple[str, ...]]) -> tuple[str, ...]:
    """All keys in an order that every object keeps, or raises."""
    if len(shapes) > 50:
        raise _NoTable
    union: list[str] = []
    for shape in sorted(shapes, key=lambda shape: (-len(shape), shape)):
        at = 0
        for key in shape:
            if key in union:
                found = union.index(key)
                if found < at:
                    raise _NoTable
                at = found + 1
            else:
                union.insert(at, key)
                at += 1
    merged = tuple(union)
    if len(merged) > _MAX_KEYS:
        raise _NoTable
    return merged


def written(document: Document) -> str | None:
    """The text that stands for a document, or None where it holds no table."""
    fold = Fold(document)
    try:
        tree = fold.folded(document.tree)
    except RecursionError:
        return None
    if not isinstance(tree, dict | list):
        return None
    text = "".join(_BARE.split(document.encode(tree)))
    parts = _HEADER.split(text)
    heads = fold.heads
    parts[1::2] = [f"[{heads[int(index)]}\n" for index in parts[1::2]]
    text = "".join(parts)
    if heads:
        text = text.replace(',"\\u0006",', "\n").replace(',"\\u0007",', "\n\n").replace('"\\u000b"', "")
    style = "" if document.style == json_text.DEFAULT else f" {document.style or 'raw'}"
    return f"{MARK}{style}{LEGEND}{text}"
