"""Which endpoints are usable: every reason to leave one out, panic, and when time changes the answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Balancing
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.engines.availability import next_change_at, usable

NOW = 1_000.0

UNWELL: dict[str, Callable[[Endpoint], None]] = {
    "not serving": lambda e: setattr(e, "serving", False),
    "unreachable": lambda e: setattr(e, "reachable", False),
    "ejected": lambda e: setattr(e, "ejected_until", NOW + 1),
}
BARRED: dict[str, Callable[[Endpoint], None]] = {
    "draining": lambda e: setattr(e, "draining", True),
    "breaker open": lambda e: setattr(e, "open_until", NOW + 1),
}


def fleet(count: int) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{index}:1") for index in range(count)]


def test_well_endpoints_are_all_usable_in_their_order() -> None:
    endpoints = fleet(3)
    assert usable(endpoints, Balancing(), NOW) == (endpoints, False)
    assert usable([], Balancing(), NOW) == ([], False)


@pytest.mark.parametrize("reason", [*UNWELL, *BARRED])
def test_each_reason_leaves_an_endpoint_out(reason: str) -> None:
    endpoints = fleet(4)
    (UNWELL | BARRED)[reason](endpoints[1])
    assert usable(endpoints, Balancing(), NOW) == ([endpoints[0], *endpoints[2:]], False)


@pytest.mark.parametrize("field", ["ejected_until", "open_until"])
def test_an_ejection_or_open_breaker_is_over_at_its_time(field: str) -> None:
    endpoints = fleet(3)
    setattr(endpoints[0], field, NOW)
    assert usable(endpoints, Balancing(), NOW) == (endpoints, False)


@pytest.mark.parametrize("reason", UNWELL)
def test_panic_ignores_each_reason_that_might_be_a_mistake(reason: str) -> None:
    endpoints = fleet(4)
    for endpoint in endpoints[:2]:
        UNWELL[reason](endpoint)
    assert usable(endpoints, Balancing(), NOW) == (endpoints[2:], False)  # half is not below half
    UNWELL[reason](endpoints[2])
    assert usable(endpoints, Balancing(), NOW) == (endpoints, True)


@pytest.mark.parametrize("reason", BARRED)
def test_panic_never_brings_back_what_is_barred(reason: str) -> None:
    endpoints = fleet(4)
    BARRED[reason](endpoints[0])
    for endpoint in endpoints[1:]:
        endpoint.serving = False
    assert usable(endpoints, Balancing(), NOW) == (endpoints[1:], True)
    for endpoint in endpoints[1:]:
        BARRED[reason](endpoint)
    assert usable(endpoints, Balancing(), NOW)[0] == []


def test_without_a_panic_threshold_all_unwell_means_none() -> None:
    endpoints = fleet(2)
    for endpoint in endpoints:
        endpoint.serving = False
    assert usable(endpoints, Balancing(panic_threshold=0.0), NOW) == ([], False)


def test_a_subset_needs_all_its_labels() -> None:
    endpoints = [
        Endpoint("a:1", labels={"version": "v1", "zone": "eu"}),
        Endpoint("b:1", labels={"version": "v2", "zone": "eu"}),
        Endpoint("c:1", labels={"version": "v2"}),
        Endpoint("d:1"),
    ]
    policy = Balancing(subset={"version": "v2", "zone": "eu"})
    assert usable(endpoints, policy, NOW) == ([endpoints[1]], False)
    assert usable(endpoints, Balancing(subset={"version": "v9"}), NOW) == ([], False)


def test_endpoints_outside_the_subset_have_no_part_in_panic() -> None:
    inside = [Endpoint(f"in{index}:1", labels={"v": "2"}) for index in range(2)]
    outside = [Endpoint(f"out{index}:1") for index in range(8)]
    for endpoint in outside:
        endpoint.serving = False
    assert usable([*inside, *outside], Balancing(subset={"v": "2"}), NOW) == (inside, False)


def test_the_next_change_is_the_first_end_ahead() -> None:
    endpoints = fleet(4)
    assert next_change_at(endpoints, NOW) == math.inf
    endpoints[0].ejected_until = NOW - 1
    endpoints[1].ejected_until = NOW + 9
    endpoints[2].open_until = NOW + 4
    assert next_change_at(endpoints, NOW) == NOW + 4
    assert next_change_at(endpoints, NOW + 4) == NOW + 9


flags = st.tuples(st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0.0, NOW - 1, NOW + 1]), st.booleans())


@given(states=st.lists(flags, max_size=8), threshold=st.floats(0.0, 1.0))
def test_panic_is_exactly_too_few_well(states: list[tuple[bool, bool, bool, float, bool]], threshold: float) -> None:
    endpoints = fleet(len(states))
    for endpoint, (serving, reachable, draining, ejected_until, is_open) in zip(endpoints, states, strict=True):
        endpoint.serving, endpoint.reachable, endpoint.draining = serving, reachable, draining
        endpoint.ejected_until = ejected_until
        endpoint.open_until = NOW + 1 if is_open else 0.0
    found, panic = usable(endpoints, Balancing(panic_threshold=threshold), NOW)
    members = [e for e in endpoints if not e.draining]
    well = [e for e in members if e.serving and e.reachable and e.ejected_until <= NOW and not e.open_until]
    assert panic == (len(well) < threshold * len(members))
    assert found == ([e for e in members if not e.open_until] if panic else well)
