"""Policy to and from protobuf: nothing is lost, nothing wrong comes in, versions before and after are understood."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider import tree
from outrider.codec import decode_agent, encode_agent
from outrider.policy import Agent, EndpointPolicy, Hedge, Optimization, Policy, PolicyError, Scaling
from outrider.policy_parse import validate
from outrider.v1 import policy_pb2
from tests.policies import agents


@given(agents())
@settings(max_examples=60, deadline=None)
def test_round_trip_over_the_wire(agent: Agent) -> None:
    validate(Policy(agents={agent.agent_id: agent}))
    read = policy_pb2.AgentPolicy.FromString(encode_agent(agent).SerializeToString())
    assert decode_agent(read) == agent


@given(agents(), agents())
@settings(max_examples=30, deadline=None)
def test_defaults_give_nothing_to_a_whole_message(agent: Agent, defaults: Agent) -> None:
    defaults = dataclasses.replace(defaults, tls=None)  # absent is how a message says None
    assert decode_agent(encode_agent(agent), defaults) == agent


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_valid_agent_or_a_policy_error(data: bytes) -> None:
    try:
        message = policy_pb2.AgentPolicy.FromString(data)
    except Exception:  # noqa: BLE001 - not a message: the reader of the wire's concern
        return
    try:
        agent = decode_agent(message)
    except PolicyError:
        return
    validate(Policy(agents={agent.agent_id: agent}))


def same_fields(cls: type, message: Descriptor, path: str = "AgentPolicy") -> None:
    hints = tree.field_types(cls)
    assert {one.name for one in message.fields} == set(hints), path
    for one in message.fields:
        kind = hints[one.name]
        arguments = [given for given in get_args(kind) if dataclasses.is_dataclass(given)]
        inner = kind if dataclasses.is_dataclass(kind) else next(iter(arguments), None)
        if inner is not None:
            assert one.message_type is not None, f"{path}.{one.name}"
            same_fields(inner, one.message_type, f"{path}.{one.name}")  # pyright: ignore[reportArgumentType]


def test_message_and_dataclass_have_the_same_fields() -> None:
    same_fields(Agent, policy_pb2.AgentPolicy.DESCRIPTOR)


def unset(message: Any, path: str = "") -> list[str]:
    """Fields with presence that a message does not set, those of its own messages included."""
    missing = []
    for one in message.DESCRIPTOR.fields:
        name = f"{path}{one.name}"
        if one.has_presence and not message.HasField(one.name):
            missing.append(name)
        elif one.has_presence and one.message_type is not None:
            missing += unset(getattr(message, one.name), f"{name}.")
    return missing


def test_every_field_is_set() -> None:
    assert unset(encode_agent(Agent("a"))) == ["tls"]
    assert unset(encode_agent(Agent("a", tls=False))) == []


def test_what_is_not_set_is_the_default() -> None:
    message = policy_pb2.AgentPolicy(agent_id="a", optimization=policy_pb2.OptimizationPolicy(cache_ttl=5))
    assert decode_agent(message) == Agent("a", optimization=Optimization(cache_ttl=5))
    defaults = Agent("defaults", scaling=Scaling(2, 9), optimization=Optimization(cache_enabled=True))
    decoded = decode_agent(message, defaults)
    assert decoded.scaling == Scaling(2, 9)
    assert decoded.optimization == Optimization(cache_enabled=True, cache_ttl=5)


def test_set_and_empty_means_none() -> None:
    defaults = Agent(
        "d", hedge=Hedge(idempotent_methods=("/a.B/C",)), optimization=Optimization(cache_methods=("/a/b",))
    )
    message = policy_pb2.AgentPolicy(agent_id="a", hedge=policy_pb2.HedgePolicy(idempotent_methods=policy_pb2.Texts()))
    decoded = decode_agent(message, defaults)
    assert decoded.hedge.idempotent_methods == ()
    assert decoded.optimization.cache_methods == ("/a/b",)


def test_fields_of_a_later_version_are_passed_over() -> None:
    agent = Agent("a", endpoints=(EndpointPolicy("a:1", labels={"v": "2"}),))
    # Field 999, a text, and field 998, a number: neither is known.
    later = b"\xba\x3e\x05later" + b"\xb0\x3e\x07"
    data = encode_agent(agent).SerializeToString()
    assert decode_agent(policy_pb2.AgentPolicy.FromString(later + data + later)) == agent


FAULTS: list[tuple[Callable[[policy_pb2.AgentPolicy], object], str, str]] = [
    (lambda one: one.ClearField("agent_id"), "agent_id", "'' is not a name"),
    (lambda one: setattr(one, "timeout_ms", -1), "timeout_ms", "-1 is not between"),
    (lambda one: setattr(one.balancing, "strategy", "p2c"), "balancing.strategy", "'p2c' is not one of peak_ewma"),
    (lambda one: setattr(one.balancing, "load_factor", float("nan")), "balancing.load_factor", "nan is not a number"),
    (lambda one: setattr(one.retry, "budget_ratio", float("inf")), "retry.budget_ratio", "inf is not a number"),
    (lambda one: setattr(one.scaling, "min_instances", 30), "scaling.min_instances", "30 is more than max_instances"),
    (lambda one: one.endpoints.add(address="nowhere"), "endpoints[1].address", "'nowhere' is not an address"),
    (lambda one: one.endpoints.add(address="a:1"), "endpoints[1].address", "'a:1' is already endpoints[0]"),
    (lambda one: one.endpoints.add(address="b:1", weight=0), "endpoints[1].weight", "0 is not between 1 and 10000"),
    (lambda one: one.retry.statuses.values.append("OK"), "retry.statuses", "holds 'OK'"),
    (lambda one: one.hedge.idempotent_methods.values.extend(["/a/b"] * 2), "hedge.idempotent_methods[1]", "already"),
    (lambda one: setattr(one.hedge, "enabled", True), "hedge.enabled", "needs idempotent_methods"),
    (lambda one: one.balancing.subset.update({"a b": "c"}), "balancing.subset", "'a b', which is not a name"),
]


@pytest.mark.parametrize(("change", "path", "reason"), FAULTS)
def test_wrong_field_is_named(change: Callable[[policy_pb2.AgentPolicy], object], path: str, reason: str) -> None:
    message = encode_agent(Agent("a", endpoints=(EndpointPolicy("a:1"),)))
    change(message)
    with pytest.raises(PolicyError) as caught:
        decode_agent(message)
    assert caught.value.path == path
    assert reason in caught.value.reason


def test_path_stands_before_the_field() -> None:
    message = encode_agent(Agent("a"))
    message.balancing.strategy = "p2c"
    with pytest.raises(PolicyError, match=r"^agents\[3\]\.balancing\.strategy: "):
        decode_agent(message, path="agents[3]")
