"""Rows of an `agent_configurations` table, as JSON or CSV, made into changes of agents.

Always holds: a row changes what it holds and nothing else; an empty cell holds nothing; columns that are no policy are
passed over and named, a wrong value is an error with row and field.

Deliberately not here: reading files, the policies there are (`agents` puts the rows over them).
"""

from __future__ import annotations

import csv
import io
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from outrider import tree
from outrider.policy import Agent, Optimization, PolicyError

ROWS_KEY = "agent_configurations"
_WORDS = {"true": True, "t": True, "1": True, "yes": True, "false": False, "f": False, "0": False, "no": False}
# Tables often hold these fields as columns of their own. Others go by their section: in a table `enabled`, `engine` or
# `capacity` may well mean something else.
_SECTION_OF = {
    **dict.fromkeys(tree.field_types(Optimization), "optimization."),
    **dict.fromkeys(("min_instances", "max_instances", "target_utilization"), "scaling."),
}
_MAX_ROWS = 10_000
_MAX_CELL = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rows:
    """Changes in the order of the rows, and the columns that were passed over."""

    changes: tuple[Mapping[str, Any], ...]
    passed_over: tuple[str, ...]


def read_rows(content: bytes, is_csv: bool) -> Rows:
    """The rows in a file; PolicyError with the row and field where one is wrong."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PolicyError("", f"is not UTF-8 text at byte {error.start}") from None
    found = _csv_rows(text) if is_csv else _json_rows(text)
    if len(found) > _MAX_ROWS:
        raise PolicyError("", f"has {len(found)} rows; at most {_MAX_ROWS} are read")
    changes: list[Mapping[str, Any]] = []
    passed_over: dict[str, None] = {}
    first_of: dict[str, str] = {}
    for where, row in found:
        change = _change(row, where, passed_over)
        first = first_of.setdefault(change["agent_id"], where)
        if first != where:
            raise PolicyError(f"{where}.agent_id", f"{tree.show(change['agent_id'])} is already in {first}")
        changes.append(change)
    if not changes:
        raise PolicyError("", "holds no row")
    return Rows(tuple(changes), tuple(passed_over))


def _json_rows(text: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PolicyError("", f"is not JSON: {error}") from None
    if isinstance(data, dict):
        if ROWS_KEY not in data:
            raise PolicyError("", f"is neither a list of rows nor an object with {ROWS_KEY}")
        data = data[ROWS_KEY]
    if not isinstance(data, list):
        raise PolicyError("", f"{tree.show(data)} is not a list of rows")
    for at, row in enumerate(data):
        if not isinstance(row, dict):
            raise PolicyError(f"row {at + 1}", f"{tree.show(row)} is not an object")
    return [(f"row {at + 1}", row) for at, row in enumerate(data)]


def _csv_rows(text: str) -> list[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[str, Mapping[str, Any]]] = []
    try:
        names = reader.fieldnames or ()
        twice = {name for name in names if list(names).count(name) > 1}
        if twice:
            raise PolicyError("", f"has more than one column {min(twice)!r}")
        for row in reader:
            where = f"line {reader.line_num}"
            if None in row or None in row.values():
                raise PolicyError(where, "does not have as many cells as there are columns")
            rows.append((where, {name: cell for name, cell in row.items() if cell.strip()}))
    except csv.Error as error:
        raise PolicyError(f"line {reader.reader.line_num}", f"is not CSV: {error}") from None
    return rows


def _change(row: Mapping[str, Any], where: str, passed_over: dict[str, None]) -> dict[str, Any]:
    """What a row says about its agent, in the shape of the configuration file."""
    types = tree.field_types(Agent)
    change: dict[str, Any] = {}
    for column, value in row.items():
        name, dot, rest = (_SECTION_OF.get(str(column).strip(), "") + str(column).strip()).partition(".")
        if name not in types:
            passed_over[str(column)] = None
            continue
        path = f"{where}.{column}"
        if value is None:
            continue
        if not dot:
            change[name] = _value(types[name], value, path)
            continue
        inner = tree.field_types(types[name]) if is_dataclass(types[name]) else {}
        if rest not in inner:
            raise PolicyError(path, f"is not a field; {tree.nearest(rest, list(inner))}")
        section = change.setdefault(name, {})
        if not isinstance(section, dict):
            raise PolicyError(path, f"cannot be set in {name}, which is not a section")
        section[rest] = _value(inner[rest], value, path)
    if not isinstance(change.get("agent_id"), str):
        raise PolicyError(f"{where}.agent_id", "is missing, or is not text")
    return change


def _value(kind: Any, value: Any, path: str) -> Any:
    """A cell as its field's type wants it; what is no text is left for the rules to judge."""
    if not isinstance(value, str):
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value
    text = value.strip()
    if len(text) > _MAX_CELL:
        raise PolicyError(path, f"has more than {_MAX_CELL} characters")
    if kind is str:
        return value
    if kind is bool or bool in typing.get_args(kind):
        if text.lower() not in _WORDS:
            raise PolicyError(path, f"{tree.show(value)} is not true or false")
        return _WORDS[text.lower()]
    if typing.get_origin(kind) is tuple and not text.startswith("["):
        return [part.strip() for part in text.split(";") if part.strip()]
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        wanted = "a JSON object" if is_dataclass(kind) else "a number" if kind in (int, float) else "JSON"
        raise PolicyError(path, f"{tree.show(value)} is not {wanted}") from None
    return _value(kind, parsed, path) if isinstance(parsed, dict) else parsed
