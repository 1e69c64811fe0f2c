"""Sparse policy: plain data to the message that says just as much, and back.

Always holds: a field that the plain data leave out is not set in the message, so that whoever receives it puts in its
own default; what comes out is what `policy_parse` reads. Names are those of the configuration file, which are those of
the protobuf fields.

Deliberately not here: the rules for values (`policy_parse`), whole policy trees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from google.protobuf.message import Message

from outrider.policy import Agent, EndpointPolicy, Scaling
from outrider.policy_parse import agent_from_mapping
from outrider.v1 import policy_pb2

# The control plane's environment may give these another default (`outrider.defaults`), so that leaving them out could
# mean another value than the one that was seen.
MOVABLE_DEFAULTS = frozenset(
    {
        "optimization.cache_enabled",
        "optimization.cache_ttl",
        "optimization.cache_strategy",
        "scaling.enabled",
        "scaling.min_instances",
        "scaling.max_instances",
    }
)


# Where a rule compares two fields of which one is left out, the receiver's default decides: these let both pass.
_ANY_DEFAULTS = Agent(agent_id="", scaling=Scaling(min_instances=0, max_instances=10_000))


def check(data: Any, path: str) -> None:
    """PolicyError for the first field of an agent in plain data that is wrong whatever the receiver's defaults are."""
    agent_from_mapping(data, path, _ANY_DEFAULTS)


def message_of(data: Mapping[str, Any]) -> policy_pb2.AgentPolicy:
    """The message that says what `data`, an agent that `policy_parse` accepts, says; no field more."""
    message = policy_pb2.AgentPolicy()
    _fill(message, data)
    return message


def plain_of(message: policy_pb2.AgentPolicy) -> dict[str, Any]:
    """Every field that is set in `message`, in the order of the fields; sections that say nothing are left out."""
    return _plain(message)


def without_defaults(data: Mapping[str, Any], keep: Collection[str] = MOVABLE_DEFAULTS) -> dict[str, Any]:
    """`data` less what a field has by default anyway; the paths of `keep` stay whatever they hold."""
    return _pruned(data, Agent(agent_id=""), "", keep)


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `change` says put over it: sections field by field, lists and labels as a whole."""
    result = dict(base)
    for name, value in change.items():
        field = policy_pb2.AgentPolicy.DESCRIPTOR.fields_by_name.get(name)
        is_section = field is not None and field.message_type is not None and not _is_repeated(field)
        if is_section and isinstance(value, Mapping) and isinstance(result.get(name), Mapping):
            result[name] = {**result[name], **value}
        else:
            result[name] = value
    return result


def _fill(message: Message, data: Mapping[str, Any]) -> None:
    for name, value in data.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if value is None:
            continue
        if _is_map(field):
            getattr(message, name).update(value)
        elif _is_repeated(field) and field.message_type is not None:
            for item in value:
                _fill(getattr(message, name).add(), {"address": item} if isinstance(item, str) else item)
        elif _is_repeated(field):
            getattr(message, name).extend(value)
        elif _is_texts(field):
            inner = getattr(message, name)
            inner.SetInParent()
            inner.values.extend(value)
        elif field.message_type is not None:
            inner = getattr(message, name)
            inner.SetInParent()
            _fill(inner, value)
        else:
            setattr(message, name, value)


def _plain(message: Message) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if _is_map(field):
            if value:
                data[field.name] = dict(sorted(value.items()))
        elif _is_repeated(field):
            if value:
                data[field.name] = [_endpoint(item) if isinstance(item, Message) else item for item in value]
        elif field.message_type is None:
            if not field.has_presence or message.HasField(field.name):
                data[field.name] = value
        elif message.HasField(field.name):
            inner = list(value.values) if _is_texts(field) else _plain(value)
            if inner or _is_texts(field):
                data[field.name] = inner
    return data


def _endpoint(message: Message) -> Any:
    """An endpoint that is nothing but an address is written as one."""
    data = _pruned(_plain(message), EndpointPolicy(address=""), "", ())
    return data["address"] if data.keys() == {"address"} else data


def _pruned(data: Mapping[str, Any], default: Any, path: str, keep: Collection[str]) -> dict[str, Any]:
    defaults = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    left: dict[str, Any] = {}
    for name, value in data.items():
        inner = f"{path}{name}"
        usual = defaults.get(name)
        if dataclasses.is_dataclass(usual) and isinstance(value, Mapping):
            section = _pruned(value, usual, f"{inner}.", keep)
            if section:
                left[name] = section
        elif inner in keep or name not in defaults or value != (list(usual) if isinstance(usual, tuple) else usual):
            left[name] = value
    return left


def _is_repeated(field: Any) -> bool:
    return isinstance(field.default_value, list)  # the one way that every protobuf from our floor on knows


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_texts(field: Any) -> bool:
    return field.message_type is not None and field.message_type.full_name == "outrider.v1.Texts"
