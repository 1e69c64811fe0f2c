"""Reads one YAML document of plain data from a file.

Always holds: no tag builds an object (the safe loader), no key stands twice in a mapping, and a file past the bound is
not read at all. Every error says where in the file it is, as far as the parser knows.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MAX_FILE_BYTES = 4 * 1024 * 1024
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser where PyYAML was built with it


class YamlError(ValueError):
    """A file that cannot be read: `place` is its line and column, empty where none is known."""

    def __init__(self, place: str, reason: str):
        super().__init__(f"{place}: {reason}" if place else reason)
        self.place = place
        self.reason = reason


def read(path: Path) -> Any:
    """The file's document; an empty mapping for an empty file."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise YamlError("", f"cannot be read: {error.strerror or error}") from None
    if len(text) > MAX_FILE_BYTES:
        raise YamlError("", f"has more than {MAX_FILE_BYTES} bytes")
    return parse(text)


def parse(text: bytes) -> Any:
    """The document in `text`; an empty mapping where there is none."""
    try:
        document = yaml.load(text, Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        raise YamlError(_place(error.problem_mark), " ".join(filter(None, (error.context, error.problem)))) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise YamlError("", f"is not YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError) as error:  # ValueError: a date or number that looks like one and is none
        raise YamlError("", f"is not YAML that can be read: {error}") from None
    return {} if document is None else document


class _UniqueKeys(_Loader):  # pyright: ignore[reportUntypedBaseClass, reportGeneralTypeIssues]
    """The safe loader; a second key of the same name is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands here twice", key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
