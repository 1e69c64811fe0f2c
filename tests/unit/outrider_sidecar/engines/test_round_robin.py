"""Round robin: order, fairness, what a change of the set does to the rotation, and ramping."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Balancing
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.engines.round_robin import RoundRobin

NOW = 1_000.0


def fleet(count: int) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{index}:1", weight=index + 1) for index in range(count)]


def made(endpoints: list[Endpoint], seed: int = 1) -> RoundRobin:
    balancer = RoundRobin(Balancing(), random.Random(seed))
    balancer.update(endpoints, NOW)
    return balancer


def test_every_endpoint_takes_its_turn_whatever_its_weight() -> None:
    endpoints = fleet(4)
    balancer = made(endpoints)
    first_round = [balancer.pick(NOW) for _ in range(4)]
    assert set(first_round) == set(endpoints)
    assert [balancer.pick(NOW) for _ in range(8)] == first_round * 2


def test_sidecars_start_at_different_endpoints() -> None:
    endpoints = fleet(4)
    assert {made(endpoints, seed).pick(NOW) for seed in range(40)} == set(endpoints)


@given(before=st.integers(1, 6), passed=st.integers(0, 12), kept=st.sets(st.integers(0, 5)), added=st.integers(0, 3))
def test_a_change_of_the_set_keeps_the_turn(before: int, passed: int, kept: set[int], added: int) -> None:
    endpoints = fleet(before)
    balancer = made(endpoints)
    for _ in range(passed):
        balancer.pick(NOW)
    order = [endpoint.address for endpoint in endpoints]
    at = order.index(balancer.explain(NOW)[0][0])
    rest = [endpoint for index, endpoint in enumerate(endpoints) if index in kept]
    balancer.update([*(Endpoint(f"new-{index}:1") for index in range(added)), *rest], NOW)
    if rest:
        due = next(e for e in endpoints[at:] + endpoints[:at] if e in rest)
        assert balancer.pick(NOW) is due


def test_an_avoided_endpoint_is_passed_by() -> None:
    endpoints = fleet(3)
    balancer = made(endpoints)
    due = next(endpoint for endpoint in endpoints if endpoint.address == balancer.explain(NOW)[0][0])
    following = endpoints[(endpoints.index(due) + 1) % 3]
    assert balancer.pick(NOW, b"", (due,)) is following


def test_a_ramping_endpoint_takes_its_share_of_turns() -> None:
    endpoints = fleet(4)
    endpoints[2].added_at = NOW - 3.0  # 30 %: parts of turns that do not add up to whole ones are not lost
    balancer = made(endpoints)
    picked = Counter(balancer.pick(NOW) for _ in range(660))
    assert picked[endpoints[2]] == 60
    assert {picked[endpoint] for endpoint in endpoints if endpoint is not endpoints[2]} == {200}


def test_explain_counts_the_turns_a_ramping_endpoint_skips() -> None:
    endpoints = fleet(3)
    endpoints[2].added_at = NOW - 2.5
    balancer = made(endpoints)
    while balancer.explain(NOW)[0][0] != endpoints[0].address:
        balancer.pick(NOW)
    rows = {address: (score, reason) for address, score, reason in balancer.explain(NOW)}
    assert rows[endpoints[0].address] == (0.0, "turns to wait: 0")
    assert rows[endpoints[1].address] == (1.0, "turns to wait: 1")
    score, reason = rows[endpoints[2].address]
    assert reason.startswith("turns to wait: 2, ramping at 25%: skips ")
    skips = int(reason.rsplit(" ", 1)[1])
    assert score == 2.0 + 3 * skips
    for _ in range(3 * skips + 2 - skips):  # the others' turns until then
        assert balancer.pick(NOW) is not endpoints[2]
    assert balancer.pick(NOW) is endpoints[2]


def test_a_fleet_that_ramps_as_one_takes_turns_as_ever() -> None:
    endpoints = fleet(3)
    for endpoint in endpoints:
        endpoint.added_at = NOW
    balancer = made(endpoints)
    assert set(Counter(balancer.pick(NOW + 1.0) for _ in range(300)).values()) == {100}


def test_explained_order_is_the_order_of_the_picks_while_ramping() -> None:
    endpoints = fleet(4)
    endpoints[1].added_at = NOW - 3.0
    balancer = made(endpoints)
    for _ in range(60):
        best = balancer.explain(NOW)[0][0]
        picked = balancer.pick(NOW)
        assert picked is not None
        assert picked.address == best
