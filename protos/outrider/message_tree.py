"""Protobuf messages from plain data (YAML, JSON, arguments), with the path of the wrong field in every error.

Always holds: names are those of the protobuf fields; nothing is coerced, nothing is ignored; a field that the plain
data leave out is not set, so that the receiver's default holds. A `Reader` takes the short form of a message: where one
is given, a text may stand in place of the mapping.

Deliberately not here: the rules for values (the receiver's), policies of agents (`policy_message`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from outrider import tree
from outrider.policy import PolicyError

M = TypeVar("M", bound=Message)
Reader = Callable[[str, str], Any]  # (text, path) -> message; raises PolicyError

_SCALARS: Final[Mapping[int, type]] = {
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_INT64: int,
    FieldDescriptor.CPPTYPE_STRING: str,
}


def message_of(
    kind: type[M], data: Any, path: str, readers: Mapping[str, Reader], hidden: frozenset[str] = frozenset()
) -> M:
    """A `kind` from a mapping of its fields, from its short form, or itself.

    `readers` are by full name of the message they read; `hidden` are fields ("VariantPolicy.ranges") nobody writes.
    """
    if isinstance(data, kind):
        return data
    made = kind()
    if isinstance(data, str) and made.DESCRIPTOR.full_name in readers:
        made.CopyFrom(readers[made.DESCRIPTOR.full_name](data, path))
        return made
    name = made.DESCRIPTOR.name
    fields = {field.name: field for field in made.DESCRIPTOR.fields if f"{name}.{field.name}" not in hidden}
    for key, value in tree.section(data, path, fields).items():
        _set(made, fields[key], value, tree.join(path, key), readers, hidden)
    return made


def _set(
    made: Message, field: Any, value: Any, path: str, readers: Mapping[str, Reader], hidden: frozenset[str]
) -> None:
    inner = getattr(made, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _set_map(inner, field.message_type.fields_by_name["value"], value, path)
    elif isinstance(field.default_value, list):  # repeated: the one way that every protobuf from our floor on knows
        for at, item in enumerate(tree.items(value, path)):
            one = f"{path}[{at}]"
            if field.message_type is None:
                inner.append(tree.scalar(_SCALARS[field.cpp_type], item, one))
            else:
                made_item = inner.add()
                made_item.CopyFrom(message_of(type(made_item), item, one, readers, hidden))
    elif field.message_type is not None:
        inner.SetInParent()
        inner.CopyFrom(message_of(type(inner), value, path, readers, hidden))
    else:
        _set_scalar(made, field, value, path)


def _set_map(inner: Any, kind: Any, value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise PolicyError(path, f"{tree.show(value)} is not a mapping")
    for key, item in value.items():
        name = tree.scalar(str, key, path)
        inner[name] = tree.scalar(_SCALARS[kind.cpp_type], item, tree.join(path, name))


def _set_scalar(made: Message, field: Any, value: Any, path: str) -> None:
    checked = tree.scalar(_SCALARS[field.cpp_type], value, path)
    try:
        setattr(made, field.name, checked)
    except ValueError:  # more than its bits hold
        raise PolicyError(path, f"{tree.show(value)} is out of range") from None
