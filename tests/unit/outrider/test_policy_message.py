"""Sparse policy: what the plain data say is what the message says, no more and no less."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider import policy_message
from outrider.policy import Agent, PolicyError
from outrider.policy_parse import agent_from_mapping
from outrider.v1 import policy_pb2

NAMES = st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True)


def sparse(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any part of the fields, at least one."""
    return st.fixed_dictionaries({}, optional=fields).filter(bool)


ENDPOINT = st.one_of(
    st.integers(1, 65_535).map(lambda port: f"10.0.0.1:{port}"),
    st.fixed_dictionaries(
        {"address": st.integers(1, 65_535).map(lambda port: f"10.0.0.2:{port}"), "weight": st.integers(2, 9)},
        optional={"labels": st.dictionaries(NAMES, NAMES, min_size=1, max_size=2)},
    ),
)
AGENTS = st.fixed_dictionaries(
    {"agent_id": NAMES},
    optional={
        "endpoints": st.lists(ENDPOINT, min_size=1, max_size=3, unique_by=str),
        "timeout_ms": st.integers(0, 1_000),
        "tls": st.booleans(),
        "server_name": st.sampled_from(["", "agent.internal"]),
        "balancing": sparse(
            strategy=st.sampled_from(["peak_ewma", "random"]),
            subset=st.dictionaries(NAMES, NAMES, min_size=1, max_size=2),
            load_factor=st.floats(1, 10),
        ),
        "retry": sparse(
            statuses=st.lists(st.sampled_from(["UNAVAILABLE", "INTERNAL"]), unique=True),
            budget_ratio=st.floats(0, 1),
        ),
        "optimization": sparse(
            cache_enabled=st.booleans(),
            cache_ttl=st.sampled_from([0, 60, 3_600]),
            cache_methods=st.lists(st.sampled_from(["/a.B/C", "/a.B/*"]), unique=True),
            streaming=st.booleans(),
        ),
        "scaling": sparse(min_instances=st.integers(0, 1), max_instances=st.integers(1, 20)),
    },
)


@given(AGENTS)
def test_there_and_back(data: dict[str, Any]) -> None:
    policy_message.check(data, "")
    message = policy_pb2.AgentPolicy.FromString(policy_message.message_of(data).SerializeToString())
    assert policy_message.plain_of(message) == data


@given(AGENTS)
def test_nothing_is_lost_with_the_defaults(data: dict[str, Any]) -> None:
    pruned = policy_message.without_defaults(data, keep=())
    assert agent_from_mapping(pruned, "") == agent_from_mapping(data, "")


@given(AGENTS)
def test_defaults_that_can_move_stay(data: dict[str, Any]) -> None:
    pruned = policy_message.without_defaults(data)
    for path in policy_message.MOVABLE_DEFAULTS:
        section, name = path.split(".")
        if name in data.get(section, {}):
            assert pruned[section][name] == data[section][name]


@given(AGENTS, AGENTS)
def test_a_change_over_a_base(base: dict[str, Any], change: dict[str, Any]) -> None:
    result = policy_message.merged(base, change)
    for name in base.keys() | change.keys():
        if name in ("balancing", "retry", "optimization", "scaling"):
            assert result[name] == {**base.get(name, {}), **change.get(name, {})}
        else:
            assert result[name] == change.get(name, base.get(name))


def test_none_and_nothing() -> None:
    message = policy_message.message_of({"agent_id": "a", "tls": None, "optimization": {"cache_methods": []}})
    assert not message.HasField("tls")
    assert message.optimization.HasField("cache_methods")
    assert policy_message.message_of({"agent_id": "a", "endpoints": []}) == policy_pb2.AgentPolicy(agent_id="a")


def test_every_field_of_an_agent_has_its_place_in_the_message() -> None:
    names = {field.name for field in policy_pb2.AgentPolicy.DESCRIPTOR.fields}
    assert names == set(Agent.__dataclass_fields__)


def test_bounds_that_the_receivers_defaults_decide_pass() -> None:
    policy_message.check({"agent_id": "a", "scaling": {"min_instances": 50}}, "")
    policy_message.check({"agent_id": "a", "scaling": {"max_instances": 1}}, "")
    with pytest.raises(PolicyError, match=r"x\.scaling\.min_instances: 5 is more than max_instances, which is 2"):
        policy_message.check({"agent_id": "a", "scaling": {"min_instances": 5, "max_instances": 2}}, "x")
    with pytest.raises(PolicyError, match=r"x\.hedge\.enabled"):
        policy_message.check({"agent_id": "a", "hedge": {"enabled": True}}, "x")
