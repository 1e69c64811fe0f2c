"""Reading policy: the documented shape loads, defaults hold, and each wrong field is named with its path."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider import policy
from outrider.policy import Agent, Balancing, EndpointPolicy, Optimization, Policy, PolicyError, Retry, Scaling
from outrider.policy_parse import agent_from_mapping, policy_from_mapping, validate

DOCUMENTED: dict[str, Any] = {
    "default_agent": "tax-eu-001",
    "agents": [
        {
            "agent_id": "tax-eu-001",
            "endpoints": [
                "127.0.0.1:9001",
                {"address": "127.0.0.1:9002", "weight": 2, "labels": {"version": "v2"}},
            ],
            "balancing": {"strategy": "peak_ewma"},
            "optimization": {
                "cache_enabled": True,
                "cache_ttl": 3600,
                "cache_strategy": "lru",
                "cache_methods": ["/pkg.Svc/Method"],
                "streaming": True,
                "compression": True,
            },
            "scaling": {"min_instances": 3, "max_instances": 20, "target_utilization": 0.75},
        }
    ],
}


def wrong(change: Callable[[dict[str, Any]], object]) -> PolicyError:
    data = copy.deepcopy(DOCUMENTED)
    change(data)
    with pytest.raises(PolicyError) as caught:
        policy_from_mapping(data)
    return caught.value


def test_documented_shape() -> None:
    loaded = policy_from_mapping(DOCUMENTED)
    agent = loaded.agents["tax-eu-001"]
    assert agent == Agent(
        agent_id="tax-eu-001",
        endpoints=(EndpointPolicy("127.0.0.1:9001"), EndpointPolicy("127.0.0.1:9002", 2, {"version": "v2"})),
        optimization=Optimization(cache_enabled=True, cache_methods=("/pkg.Svc/Method",), compression=True),
        scaling=Scaling(3, 20, 0.75),
    )
    assert loaded.default_agent == "tax-eu-001"
    validate(loaded)


def test_what_is_read_stays_immutable() -> None:
    loaded = policy_from_mapping(DOCUMENTED)
    with pytest.raises(TypeError):
        loaded.agents["other"] = Agent("other")  # pyright: ignore[reportIndexIssue]
    with pytest.raises(TypeError):
        loaded.agents["tax-eu-001"].endpoints[1].labels["a"] = "b"  # pyright: ignore[reportIndexIssue]


def test_defaults_give_what_is_left_out() -> None:
    defaults = Agent("defaults", optimization=Optimization(cache_enabled=True, cache_ttl=60), scaling=Scaling(2, 9))
    agent = agent_from_mapping({"agent_id": "a", "optimization": {"cache_ttl": 5}}, "agents[0]", defaults)
    assert agent.optimization == Optimization(cache_enabled=True, cache_ttl=5)
    assert agent.scaling == Scaling(2, 9)
    assert agent.agent_id == "a"


def test_empty_policy() -> None:
    assert policy_from_mapping({}) == Policy()


AGENT_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"agent_id": 7}, "agent_id", "7 is not text: put it in quotes"),
    ({"agent_id": ""}, "agent_id", "'' is not a name"),
    ({"agent_id": "a b"}, "agent_id", "'a b' is not a name"),
    ({"agent_id": "a\n"}, "agent_id", "characters that cannot be printed"),
    ({"agent_id": "a" * 129}, "agent_id", "is not a name"),
    ({"balancing": {"strategy": "p2c"}}, "balancing.strategy", "'p2c' is not one of peak_ewma, least_request"),
    ({"balancing": {"stratgy": "random"}}, "balancing.stratgy", "is not a field; did you mean 'strategy'?"),
    ({"balancing": {"zz": 1}}, "balancing.zz", "is not a field; known: strategy, subset"),
    ({"balancing": None}, "balancing", "nothing (leave the field out for its default) is not a mapping of fields"),
    ({"balancing": {"subset": ["v2"]}}, "balancing.subset", "is not a mapping"),
    ({"balancing": {"subset": {"version": 2}}}, "balancing.subset.version", "2 is not text: put it in quotes"),
    ({"balancing": {"load_factor": 0.9}}, "balancing.load_factor", "0.9 is not between 1 and 10"),
    ({"balancing": {"load_factor": float("nan")}}, "balancing.load_factor", "nan is not a number"),
    ({"balancing": {"load_factor": 10**400}}, "balancing.load_factor", "is not a number"),
    ({"balancing": {"hash_on": "X-Session"}}, "balancing.hash_on", "is not a metadata name"),
    ({"endpoints": "127.0.0.1:1"}, "endpoints", "'127.0.0.1:1' is not a list"),
    ({"endpoints": [9001]}, "endpoints[0]", "9001 is neither an address nor a mapping with one"),
    ({"endpoints": ["x"]}, "endpoints[0].address", "'x' is not an address: host:port"),
    ({"endpoints": [{"weight": 1}]}, "endpoints[0].address", "is missing"),
    ({"endpoints": [{"address": "a:1", "weight": 0}]}, "endpoints[0].weight", "0 is not between 1 and 10000"),
    ({"endpoints": [{"address": "a:1", "weight": True}]}, "endpoints[0].weight", "True is not a whole number"),
    ({"endpoints": ["a:1", "b:1", "a:1"]}, "endpoints[2].address", "'a:1' is already agents[0].endpoints[0]"),
    ({"health_check": {"interval_ms": 500}}, "health_check.timeout_ms", "1000 is more than interval_ms, which is 500"),
    ({"breaker": {"enabled": 1}}, "breaker.enabled", "1 is not true or false"),
    ({"retry": {"statuses": ["OK"]}}, "retry.statuses", "holds 'OK', which is not one of CANCELLED"),
    ({"retry": {"statuses": ["ABORTED", "ABORTED"]}}, "retry.statuses[1]", "is already agents[0].retry.statuses[0]"),
    ({"retry": {"max_attempts": 2.0}}, "retry.max_attempts", "2.0 is not a whole number"),
    ({"hedge": {"enabled": True}}, "hedge.enabled", "true needs idempotent_methods"),
    ({"hedge": {"idempotent_methods": ["pkg.Svc/M"]}}, "hedge.idempotent_methods", "is not a method"),
    ({"optimization": {"cache_ttl": -1}}, "optimization.cache_ttl", "-1 is not between 0 and 31536000"),
    ({"optimization": {"cache_methods": "/a/b"}}, "optimization.cache_methods", "'/a/b' is not a list"),
    ({"optimization": {"cache_methods": [1]}}, "optimization.cache_methods[0]", "1 is not text"),
    ({"scaling": {"min_instances": 30}}, "scaling.min_instances", "30 is more than max_instances, which is 20"),
    ({"timeout_ms": 2_000, "max_timeout_ms": 1_000}, "timeout_ms", "2000 is more than max_timeout_ms, which is 1000"),
    ({"tls": "yes"}, "tls", "'yes' is not true or false"),
    ({"server_name": "a b"}, "server_name", "'a b' is not a host name"),
]


@pytest.mark.parametrize(("fields", "path", "reason"), AGENT_FAULTS)
def test_wrong_field_of_an_agent(fields: dict[str, Any], path: str, reason: str) -> None:
    def change(data: dict[str, Any]) -> None:
        agent = data["agents"][0]
        for name, value in fields.items():
            agent[name] = {**agent[name], **value} if isinstance(value, dict) and name in agent else value

    error = wrong(change)
    assert error.path == f"agents[0].{path}"
    assert reason in error.reason
    assert str(error) == f"{error.path}: {error.reason}"


def test_wrong_whole() -> None:
    assert wrong(lambda data: data.update(agent=[])).path == "agent"
    assert wrong(lambda data: data["agents"][0].pop("agent_id")).path == "agents[0].agent_id"
    assert wrong(lambda data: data.update(agents={})).reason == "{} is not a list"
    assert "did you mean 'tax-eu-001'?" in wrong(lambda data: data.update(default_agent="tax-eu-01")).reason
    twice = wrong(lambda data: data["agents"].append(copy.deepcopy(data["agents"][0])))
    assert (twice.path, twice.reason) == ("agents[1].agent_id", "'tax-eu-001' is already agents[0]")
    assert "at most 10000" in wrong(lambda data: data["agents"][0].update(endpoints=["a:1"] * 10_001)).reason
    with pytest.raises(PolicyError, match="is not a mapping of fields"):
        policy_from_mapping([])


def test_null_where_it_has_a_meaning() -> None:
    assert agent_from_mapping({"agent_id": "a", "tls": None}, "").tls is None
    assert agent_from_mapping({"agent_id": "a", "tls": False}, "").tls is False


@pytest.mark.parametrize(
    ("agent", "path"),
    [
        (Agent("a", balancing=Balancing(strategy="p2c")), "agents[0].balancing.strategy"),
        (Agent("a", endpoints=(EndpointPolicy("a:1"), EndpointPolicy("nowhere"))), "agents[0].endpoints[1].address"),
        (Agent("a", retry=Retry(max_attempts=0)), "agents[0].retry.max_attempts"),
        (Agent("a", timeout_ms="5"), "agents[0].timeout_ms"),  # pyright: ignore[reportArgumentType]
        (Agent("b"), "agents[0].agent_id"),
    ],
)
def test_validate_checks_what_was_built_elsewhere(agent: Agent, path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        validate(Policy({"a": agent}))
    assert caught.value.path == path


def test_defaults_of_the_tree_are_valid() -> None:
    validate(Policy({"a": Agent("a")}, default_agent="a"))


def test_status_names_are_those_of_grpc() -> None:
    grpc = pytest.importorskip("grpc")
    assert policy.STATUSES == tuple(code.name for code in sorted(grpc.StatusCode, key=lambda code: code.value[0]))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from([field.name for field in dataclasses.fields(Agent)])


@given(st.dictionaries(field_names, plain, max_size=4))
def test_any_data_gives_a_valid_agent_or_a_policy_error(fields: dict[str, Any]) -> None:
    try:
        agent = agent_from_mapping({"agent_id": "a", **fields}, "agents[0]")
    except PolicyError as error:
        assert error.path.startswith("agents[0]")
        assert len(str(error)) < 1_000
    else:
        validate(Policy({agent.agent_id: agent}))
