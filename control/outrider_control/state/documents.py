"""An agent's whole policy as a JSON document, and what differs between two policies. Pure.

Always holds: `decode(encode(agent)) == agent`. A document may be of another version of this program: fields it lacks
come from the defaults, fields that are not known are passed over.

Deliberately not here: versions, the database (`agents`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from outrider import tree
from outrider.policy import Agent, EndpointPolicy
from outrider.policy_parse import agent_from_mapping


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that differs. `path` is as in a configuration file, with endpoints named by their address:
    `optimization.cache_ttl`, `endpoints[127.0.0.1:9001].weight`. Values are JSON; "" where there is none."""

    path: str
    before: str
    after: str


def encode(agent: Agent) -> str:
    """The document: every field, in the order of the policy tree."""
    return _json(_plain(agent))


def decode(text: str) -> Agent:
    """The agent of a document; PolicyError with the path of a field that this version cannot enforce."""
    return agent_from_mapping(_known(json.loads(text), Agent), "")


def difference(before: Agent | None, after: Agent | None) -> tuple[FieldChange, ...]:
    """What changes, in the order of the fields; empty only for equal agents.

    Where one side is None (the agent comes or goes) the other's fields that are not at their default are listed.
    """
    old, new = _leaves_of(before, after is None), _leaves_of(after, before is None)
    paths = dict.fromkeys((*new, *old))
    changes = [
        FieldChange(path, old.get(path, ""), new.get(path, "")) for path in paths if old.get(path) != new.get(path)
    ]
    if not changes and before != after and before is not None and after is not None:
        # The same endpoints in another order.
        orders = [_json([one.address for one in agent.endpoints]) for agent in (before, after)]
        changes.append(FieldChange("endpoints", *orders))
    return tuple(changes)


def _leaves_of(agent: Agent | None, leave_out_defaults: bool) -> dict[str, str]:
    if agent is None:
        return {}
    leaves = dict(_leaves(agent, ""))
    if leave_out_defaults:
        usual = _usual()
        leaves = {path: value for path, value in leaves.items() if usual.get(path) != value}
    return leaves


@functools.cache
def _usual() -> Mapping[str, str]:
    return dict(_leaves(Agent(""), ""))


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, JSON) of every field below `node`, in order."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        inner = tree.join(path, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, inner)
        elif isinstance(node, Agent) and field.name == "endpoints":
            for endpoint in value:
                yield from _leaves(endpoint, f"{inner}[{endpoint.address}]")
        else:
            yield inner, _json(_plain(value))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(sorted(value.items()))
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _known(data: Any, cls: type) -> Any:
    """`data` without the fields that `cls`, or a dataclass inside it, does not have."""
    if not isinstance(data, dict):
        return data
    kept = {}
    for name, kind in tree.field_types(cls).items():
        if name not in data:
            continue
        value = data[name]
        if dataclasses.is_dataclass(kind):
            value = _known(value, typing.cast(type, kind))
        elif kind == tuple[EndpointPolicy, ...] and isinstance(value, list):
            value = [_known(item, EndpointPolicy) for item in value]
        kept[name] = value
    return kept


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
