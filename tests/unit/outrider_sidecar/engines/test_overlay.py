"""The file under what is pushed, and endpoints that registered beside declared ones."""

from __future__ import annotations

from typing import Any

from outrider.policy import Agent, EndpointPolicy, Policy
from outrider_sidecar.core.resource import ENDPOINTS, EPOCHS, MESH, POLICY, Key, Resource
from outrider_sidecar.engines.overlay import overlay

FILE = Policy({"a": Agent("a", (EndpointPolicy("file:1"),), timeout_ms=5), "b": Agent("b")}, "a")


def pushed(*resources: tuple[int, str, Any]) -> dict[Key, Resource]:
    return {(kind, name): Resource(kind, name, 1, b"", value) for kind, name, value in resources}


def addresses(policy: Policy, name: str) -> list[str]:
    return [endpoint.address for endpoint in policy.agents[name].endpoints]


def test_nothing_pushed_is_the_file_itself() -> None:
    assert overlay(FILE, {}) is FILE
    assert overlay(FILE, pushed((EPOCHS, "", {}))) == FILE


def test_a_pushed_agent_replaces_the_files_whole() -> None:
    found = overlay(FILE, pushed((POLICY, "a", Agent("a")), (POLICY, "c", Agent("c"))))
    assert list(found.agents) == ["a", "b", "c"]
    assert found.agents["a"] == Agent("a")
    assert found.agents["b"] is FILE.agents["b"]
    assert FILE.agents["a"].timeout_ms == 5


def test_registered_endpoints_come_beside_declared_ones_of_file_and_push() -> None:
    rows = (EndpointPolicy("file:1", 3, {"zone": "b"}), EndpointPolicy("live:1"))
    found = overlay(FILE, pushed((ENDPOINTS, "a", rows), (ENDPOINTS, "nobody", rows)))
    assert found.agents["a"].endpoints == (EndpointPolicy("file:1", 3, {"zone": "b"}), EndpointPolicy("live:1"))
    assert found.agents["a"].timeout_ms == 5
    assert set(found.agents) == {"a", "b"}
    both = pushed((ENDPOINTS, "c", rows), (POLICY, "c", Agent("c", (EndpointPolicy("own:1"),))))
    assert addresses(overlay(FILE, both), "c") == ["own:1", "file:1", "live:1"]


def test_an_empty_set_takes_declared_endpoints_away_from_nobody() -> None:
    assert addresses(overlay(FILE, pushed((ENDPOINTS, "a", ()))), "a") == ["file:1"]


def test_the_default_agent_is_pushed_where_it_names_one() -> None:
    assert overlay(FILE, pushed((MESH, "", "b"))).default_agent == "b"
    assert overlay(FILE, pushed((MESH, "", "nobody"))).default_agent == "a"
    assert overlay(FILE, pushed((MESH, "", ""))).default_agent == "a"
