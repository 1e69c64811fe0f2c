"""Policy as it travels: `outrider.policy` to and from the messages of `v1/policy.proto`, by the names of the fields.

Always holds: what is encoded has every field set and decodes to an equal agent; what comes out of `decode_agent` is
valid by the rules of `policy_parse`, and a wrong message raises PolicyError with the path of the first wrong field.
A field that is not set comes from the defaults; one that is not known is passed over, so that the version before and
the version after understand each other.

Deliberately not here: the fields and their defaults (`policy`), their rules (`policy_parse`).
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

from outrider import tree
from outrider.policy import Agent, EndpointPolicy
from outrider.policy_parse import agent_from_mapping
from outrider.v1 import policy_pb2


def encode_agent(agent: Agent) -> policy_pb2.AgentPolicy:
    """The message of a valid agent, every field set; `tls` alone says None by its absence."""
    message = policy_pb2.AgentPolicy()
    _write(message, agent)
    return message


def decode_agent(message: policy_pb2.AgentPolicy, defaults: Agent | None = None, path: str = "") -> Agent:
    """The agent of a message; `defaults` (None: those of `Agent`) gives the fields that are not set.

    Lists of messages and maps have no presence on the wire: empty means empty, not the default. PolicyError names the
    first wrong field, `path` before it.
    """
    return agent_from_mapping(_plain(message, Agent), path, defaults)


def _write(message: Any, node: Any) -> None:
    for name, shape in _shape(type(node)):
        value = getattr(node, name)
        if shape is _SECTION:
            inner = getattr(message, name)
            inner.SetInParent()
            _write(inner, value)
        elif shape is _TEXTS:
            inner = getattr(message, name)
            inner.SetInParent()
            inner.values.extend(value)
        elif shape is _LIST:
            for item in value:
                _write(getattr(message, name).add(), item)
        elif shape is _MAP:
            getattr(message, name).update(value)
        elif value is not None:
            setattr(message, name, value)


def _plain(message: Any, cls: type) -> dict[str, Any]:
    """The fields of a message that are set, as the mapping that a configuration file would hold."""
    fields: dict[str, Any] = {}
    hints = tree.field_types(cls)
    for name, shape in _shape(cls):
        if shape is _LIST:
            fields[name] = [_plain(item, EndpointPolicy) for item in getattr(message, name)]
        elif shape is _MAP:
            fields[name] = dict(getattr(message, name))
        elif shape is _ALWAYS:
            fields[name] = getattr(message, name)
        elif message.HasField(name):
            value = getattr(message, name)
            if shape is _SECTION:
                value = _plain(value, hints[name])
            elif shape is _TEXTS:
                value = list(value.values)
            fields[name] = value
    return fields


# What a field is on the wire.
_SECTION = "a message of its own"
_TEXTS = "a list of texts with presence"
_LIST = "repeated messages"
_MAP = "a map of texts"
_ALWAYS = "a scalar without presence"
_SCALAR = "a scalar with presence"

_REQUIRED: Mapping[type, str] = types.MappingProxyType({Agent: "agent_id", EndpointPolicy: "address"})


@functools.cache
def _shape(cls: type) -> tuple[tuple[str, str], ...]:
    """The fields of a dataclass of the policy tree, in order, each with its shape on the wire."""
    hints = tree.field_types(cls)
    return tuple((one.name, _shape_of(cls, one.name, hints[one.name])) for one in dataclasses.fields(cls))


def _shape_of(cls: type, name: str, hint: Any) -> str:
    if _REQUIRED.get(cls) == name:
        return _ALWAYS
    if dataclasses.is_dataclass(hint):
        return _SECTION
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _TEXTS if typing.get_args(hint)[0] is str else _LIST
    return _MAP if origin is Mapping else _SCALAR
