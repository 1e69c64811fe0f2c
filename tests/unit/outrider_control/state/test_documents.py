from __future__ import annotations

import dataclasses
import json
from types import MappingProxyType

import hypothesis
import pytest
from hypothesis import strategies as st

from outrider.policy import Agent, Balancing, EndpointPolicy, Optimization, PolicyError
from outrider_control.state.documents import FieldChange, decode, difference, encode
from tests import policies


@hypothesis.given(policies.agents())
def test_a_document_gives_the_same_agent_back(agent: Agent) -> None:
    assert decode(encode(agent)) == agent


@hypothesis.given(policies.agents(), policies.agents())
def test_only_equal_agents_have_no_difference(one: Agent, other: Agent) -> None:
    assert difference(one, one) == ()
    assert (difference(one, other) == ()) == (one == other)
    there, back = difference(one, other), difference(other, one)
    assert {(change.path, change.before, change.after) for change in there} == {
        (change.path, change.after, change.before) for change in back
    }


@hypothesis.given(policies.agents())
def test_an_agent_that_comes_or_goes_lists_what_is_not_usual(agent: Agent) -> None:
    came, went = difference(None, agent), difference(agent, None)
    assert came[0] == FieldChange("agent_id", "", json.dumps(agent.agent_id))
    assert [change.path for change in came] == [change.path for change in went]
    assert all(change.before == "" for change in came)
    assert all(change.after == "" for change in went)


@hypothesis.given(policies.agents(), st.text(min_size=1), st.integers())
def test_fields_of_a_newer_program_are_passed_over(agent: Agent, name: str, value: int) -> None:
    data = json.loads(encode(agent))
    known = {field.name for field in dataclasses.fields(Agent)}
    hypothesis.assume(name not in known)
    data[name] = value
    data["optimization"]["mind_reading"] = {"enabled": True}
    for endpoint in data["endpoints"]:
        endpoint["mood"] = "sunny"
    assert decode(json.dumps(data)) == agent


def test_fields_of_an_older_document_are_the_defaults() -> None:
    assert decode('{"agent_id":"tax","optimization":{"cache_ttl":5}}') == Agent(
        "tax", optimization=Optimization(cache_ttl=5)
    )


def test_a_value_that_cannot_be_enforced_is_named() -> None:
    with pytest.raises(PolicyError) as caught:
        decode('{"agent_id":"tax","balancing":{"strategy":"clairvoyant"}}')
    assert caught.value.path == "balancing.strategy"


def test_fields_are_named_as_in_the_file_and_in_its_order() -> None:
    before = Agent("tax", endpoints=(EndpointPolicy("10.0.0.1:1"), EndpointPolicy("10.0.0.2:1", weight=2)))
    after = Agent(
        "tax",
        endpoints=(EndpointPolicy("10.0.0.2:1", weight=3), EndpointPolicy("10.0.0.3:1")),
        balancing=Balancing(subset=MappingProxyType({"version": "v2"})),
        optimization=Optimization(cache_methods=("/a.B/C",), cache_enabled=True),
    )
    assert difference(before, after) == (
        FieldChange("endpoints[10.0.0.2:1].weight", "2", "3"),
        FieldChange("endpoints[10.0.0.3:1].address", "", '"10.0.0.3:1"'),
        FieldChange("endpoints[10.0.0.3:1].weight", "", "1"),
        FieldChange("endpoints[10.0.0.3:1].labels", "", "{}"),
        FieldChange("endpoints[10.0.0.3:1].capacity", "", "0"),
        FieldChange("balancing.subset", "{}", '{"version":"v2"}'),
        FieldChange("optimization.cache_enabled", "false", "true"),
        FieldChange("optimization.cache_methods", "[]", '["/a.B/C"]'),
        FieldChange("endpoints[10.0.0.1:1].address", '"10.0.0.1:1"', ""),
        FieldChange("endpoints[10.0.0.1:1].weight", "1", ""),
        FieldChange("endpoints[10.0.0.1:1].labels", "{}", ""),
        FieldChange("endpoints[10.0.0.1:1].capacity", "0", ""),
    )


def test_another_order_of_endpoints_is_a_difference() -> None:
    one, two = EndpointPolicy("10.0.0.1:1"), EndpointPolicy("10.0.0.2:1")
    (change,) = difference(Agent("tax", endpoints=(one, two)), Agent("tax", endpoints=(two, one)))
    assert change == FieldChange("endpoints", '["10.0.0.1:1","10.0.0.2:1"]', '["10.0.0.2:1","10.0.0.1:1"]')
