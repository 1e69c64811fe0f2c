"""Frozen dataclass trees from plain data (YAML, JSON), with the path of the wrong field in every error.

Always holds: what is built has exactly the types its annotations say; nothing is coerced (1 is no bool, 1 is no text),
nothing is ignored (an unknown key is an error), nothing read stays mutable (lists become tuples, mappings read-only).

Deliberately not here: what values mean (`policy_parse`), reading files.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from outrider.policy import PolicyError

T = TypeVar("T")
Reader = Callable[[Any, str], Any]  # (plain value, path) -> value; raises PolicyError

_MAX_ITEMS = 10_000  # in a list or mapping
_MAX_TEXT = 4_096  # characters in a value
_SHOWN = 60  # characters of a wrong value in a message
_NAMES: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Tree:
    """Builds dataclasses; `readers` say how to read the types that are neither scalar, tuple, mapping nor dataclass."""

    __slots__ = ("_readers",)

    def __init__(self, readers: Mapping[type, Reader]):
        self._readers = readers

    def build(
        self, cls: type[T], data: Any, path: str, base: T | None = None, ready: Mapping[str, Any] | None = None
    ) -> T:
        """A `cls` from a mapping; fields that `data` leaves out come from `base`, else from the class's own defaults.

        `ready` holds the fields whose value the caller has read by itself; their keys in `data` are passed over.
        """
        values = dict(ready or {})
        hints = field_types(cls)
        for key, value in section(data, path, hints).items():
            if key not in values:
                inner = getattr(base, key) if base is not None else None
                values[key] = self._value(hints[key], value, join(path, key), inner)
        if base is not None:
            return dataclasses.replace(typing.cast(Any, base), **values)
        for field in dataclasses.fields(typing.cast(Any, cls)):
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and field.name not in values:
                raise PolicyError(join(path, field.name), "is missing")
        return cls(**values)

    def _value(self, kind: Any, value: Any, path: str, base: Any) -> Any:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is types.UnionType:  # only `X | None` stands in our trees
            if value is None:
                return None
            (kind,) = (one for one in arguments if one is not types.NoneType)
            return self._value(kind, value, path, base)
        if kind in self._readers:
            return self._readers[kind](value, path)
        if dataclasses.is_dataclass(kind):
            return self.build(typing.cast(Any, kind), value, path, base)
        if origin is tuple:
            return self._tuple(arguments[0], value, path)
        if origin is Mapping:
            return _texts(value, path)
        return scalar(kind, value, path)

    def _tuple(self, kind: Any, value: Any, path: str) -> tuple[Any, ...]:
        read: list[Any] = []
        for at, item in enumerate(items(value, path)):
            one = self._value(kind, item, f"{path}[{at}]", None)
            if isinstance(one, str) and one in read:
                raise PolicyError(f"{path}[{at}]", f"{show(one)} is already {path}[{read.index(one)}]")
            read.append(one)
        return tuple(read)


def section(data: Any, path: str, known: Iterable[str]) -> Mapping[str, Any]:
    """`data` as a mapping whose keys are all in `known`; PolicyError else, with the nearest known key."""
    if not isinstance(data, Mapping):
        raise PolicyError(path, f"{show(data)} is not a mapping of fields")
    names = list(known)
    for key in data:
        if key not in names:
            raise PolicyError(join(path, str(key)), f"is not a field; {nearest(str(key), names)}")
    return data


def items(data: Any, path: str) -> Sequence[Any]:
    """`data` as a list of bounded length."""
    if not isinstance(data, list | tuple):
        raise PolicyError(path, f"{show(data)} is not a list")
    if len(data) > _MAX_ITEMS:
        raise PolicyError(path, f"has {len(data)} items; at most {_MAX_ITEMS} are read")
    return data


def scalar(kind: type, value: Any, path: str) -> Any:
    """`value` as a bool, int, float or str, exactly; an int is a float too."""
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**53 else math.inf
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        hint = ": put it in quotes" if kind is str and isinstance(value, bool | int | float) else ""
        raise PolicyError(path, f"{show(value)} is not {_NAMES[kind]}{hint}")
    if kind is str and (len(value) > _MAX_TEXT or not value.isprintable()):
        raise PolicyError(path, f"{show(value)} is too long or holds characters that cannot be printed")
    return value


def nearest(name: str, names: Sequence[str]) -> str:
    """Half a sentence for people: the name they may have meant, else all names there are."""
    import difflib  # only here, where something is wrong

    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


def join(path: str, name: str) -> str:
    """The path of a field inside `path`."""
    return f"{path}.{name}" if path else name


def show(value: Any) -> str:
    """A value in an error message: short, and on one line."""
    if value is None:
        return "nothing (leave the field out for its default)"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@functools.cache
def field_types(cls: type) -> Mapping[str, Any]:
    """Field name -> annotated type of a dataclass."""
    return types.MappingProxyType(typing.get_type_hints(cls))


def _texts(value: Any, path: str) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or len(value) > _MAX_ITEMS:
        raise PolicyError(path, f"{show(value)} is not a mapping of at most {_MAX_ITEMS} texts")
    return types.MappingProxyType(
        {scalar(str, key, path): scalar(str, text, join(path, str(key))) for key, text in value.items()}
    )
