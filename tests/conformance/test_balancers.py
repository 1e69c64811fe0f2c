"""The one suite every balancing strategy passes: what `core.balancer.Balancer` promises, whatever the algorithm."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.policy import STRATEGIES, Balancing
from outrider_sidecar.core.balancer import CANCELLED_BY_CALLER, SLOW_START_FLOOR, Balancer
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport
from outrider_sidecar.filters.strategies import make_balancer

NOW = 1_000.0  # every ramp of an endpoint added at 0 is over
REPORT = LoadReport(rps_fractional=100.0, application_utilization=0.5)

strategy = pytest.mark.parametrize("name", STRATEGIES)
names = st.sampled_from(STRATEGIES)


def fleet(count: int, added_at: float = 0.0, weight: int = 1) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{index}:9000", weight, now=added_at) for index in range(count)]


def balancer_of(name: str, endpoints: list[Endpoint], now: float = NOW, seed: int = 7) -> Balancer:
    balancer = make_balancer(Balancing(strategy=name), random.Random(seed))
    balancer.update(endpoints, now)
    return balancer


def serve(balancer: Balancer, endpoint: Endpoint, now: float, rtt_s: float = 0.02, status: int = 0) -> None:
    """One whole attempt, at once."""
    endpoint.pending += 1
    balancer.first_byte(endpoint, rtt_s, now)
    balancer.report(endpoint, REPORT, now)
    endpoint.pending -= 1
    balancer.ended(endpoint, status, 0.0, now)


def counts_of(balancer: Balancer, calls: int, now: float = NOW, step_s: float = 0.001) -> Counter[Endpoint]:
    counts: Counter[Endpoint] = Counter()
    for call in range(calls):
        endpoint = balancer.pick(now, b"session-%d" % call)
        assert endpoint is not None
        counts[endpoint] += 1
        serve(balancer, endpoint, now)
        now += step_s
    return counts


@strategy
def test_no_endpoint_gives_none(name: str) -> None:
    balancer = balancer_of(name, [])
    assert balancer.pick(NOW) is None
    assert balancer.pick(NOW, b"key") is None
    assert balancer.explain(NOW) == []
    assert balancer.explain(NOW, b"key") == []


@strategy
def test_losing_all_endpoints_gives_none_and_they_can_return(name: str) -> None:
    endpoints = fleet(3)
    balancer = balancer_of(name, endpoints)
    balancer.pick(NOW, b"key")
    balancer.update([], NOW)
    assert balancer.pick(NOW, b"key") is None
    balancer.update(endpoints, NOW)
    assert balancer.pick(NOW, b"key") in endpoints


@strategy
def test_a_single_endpoint_is_picked_even_if_it_is_to_be_avoided(name: str) -> None:
    (only,) = endpoints = fleet(1)
    balancer = balancer_of(name, endpoints)
    assert balancer.pick(NOW, b"key") is only
    assert balancer.pick(NOW, b"key", (only,)) is only


@strategy
@pytest.mark.parametrize("now", [NOW, 3.0], ids=["warm", "ramping"])
def test_avoided_endpoints_are_the_last_resort(name: str, now: float) -> None:
    endpoints = fleet(4)
    balancer = balancer_of(name, endpoints, now)
    for tried in range(1, 4):
        avoid = set(endpoints[:tried])
        for call in range(50):
            picked = balancer.pick(now, b"key-%d" % call, avoid)
            assert picked in endpoints[tried:]
            serve(balancer, picked, now)
    assert balancer.pick(now, b"key", endpoints) in endpoints


@strategy
@pytest.mark.parametrize("count", [2, 5, 20])
def test_equal_endpoints_get_comparable_numbers_of_calls(name: str, count: int) -> None:
    endpoints = fleet(count)
    counts = counts_of(balancer_of(name, endpoints), 1_000 * count)
    assert set(counts) == set(endpoints)
    assert max(counts.values()) < 1.35 * 1_000
    assert min(counts.values()) > 0.65 * 1_000


@strategy
def test_calls_without_a_key_spread_too(name: str) -> None:
    endpoints = fleet(4)
    balancer = balancer_of(name, endpoints)
    counts: Counter[Endpoint | None] = Counter()
    for call in range(4_000):
        endpoint = balancer.pick(NOW + call * 0.001)
        assert endpoint is not None
        counts[endpoint] += 1
        serve(balancer, endpoint, NOW + call * 0.001)
    assert min(counts[endpoint] for endpoint in endpoints) > 650


@strategy
def test_the_same_seed_gives_the_same_picks(name: str) -> None:
    def addresses(seed: int) -> list[str]:
        balancer = balancer_of(name, fleet(6), seed=seed)
        picks: list[str] = []
        for call in range(200):
            endpoint = balancer.pick(NOW + call)
            assert endpoint is not None
            serve(balancer, endpoint, NOW + call, rtt_s=0.01 + call % 5 * 0.01)
            picks.append(endpoint.address)
        return picks

    assert addresses(3) == addresses(3)
    assert len({tuple(addresses(seed)) for seed in range(8)}) > 1


@strategy
@pytest.mark.parametrize("now", [NOW, 3.0], ids=["warm", "ramping"])
def test_explain_names_every_endpoint_once_best_first(name: str, now: float) -> None:
    endpoints = fleet(7)
    balancer = balancer_of(name, endpoints, now)
    for endpoint in endpoints[:4]:
        serve(balancer, endpoint, now)
    for key in (b"", b"session"):
        rows = balancer.explain(now, key)
        assert sorted(address for address, _, _ in rows) == sorted(endpoint.address for endpoint in endpoints)
        scores = [score for _, score, _ in rows]
        assert scores == sorted(scores)
        assert all(reason for _, _, reason in rows)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "random"])
@pytest.mark.parametrize("now", [NOW, 3.0], ids=["warm", "ramping"])
def test_of_two_endpoints_the_one_explained_as_best_is_picked(name: str, now: float) -> None:
    # With two endpoints both choices of a power-of-two pick are fixed, so that every strategy but random is certain.
    rng = random.Random(11)
    first, second = endpoints = [Endpoint("a:1", 1, now=0.0), Endpoint("b:1", 3, now=-1.0)]
    balancer = balancer_of(name, endpoints, now)
    decided = 0
    for call in range(300):
        first.pending, second.pending = rng.randrange(5), rng.randrange(5)
        key = b"session-%d" % call
        (best, low, _), (_, high, _) = balancer.explain(now, key)
        picked = balancer.pick(now, key)
        assert picked is not None
        if low < high:
            assert picked.address == best
            decided += 1
        balancer.first_byte(picked, rng.uniform(0.001, 0.1), now)
        now += 0.01
    assert decided > 150


def test_random_explains_probabilities() -> None:
    endpoints = [Endpoint("a:1", 1), Endpoint("b:1", 4)]
    balancer = balancer_of("random", endpoints)
    chances = {address: 1.0 / score for address, score, _ in balancer.explain(NOW)}
    assert chances == pytest.approx({"a:1": 0.2, "b:1": 0.8})


@strategy
def test_explain_changes_no_later_pick(name: str) -> None:
    def picks(explaining: bool) -> list[str]:
        balancer = balancer_of(name, fleet(5), now=3.0)
        found: list[str] = []
        for call in range(100):
            if explaining:
                balancer.explain(3.0 + call * 0.1)
                balancer.explain(3.0 + call * 0.1, b"key")
            endpoint = balancer.pick(3.0 + call * 0.1)
            assert endpoint is not None
            found.append(endpoint.address)
        return found

    assert picks(True) == picks(False)


@strategy
def test_a_joining_endpoint_ramps_up(name: str) -> None:
    veterans = fleet(3)
    joiner = Endpoint("10.0.1.0:9000", now=NOW)
    balancer = balancer_of(name, [*veterans, joiner])
    for endpoint in veterans:
        serve(balancer, endpoint, NOW)
    serve(balancer, joiner, NOW)

    def share(now: float) -> float:
        # One attempt stays out at each endpoint: loads differ by the ramp alone.
        picked: Counter[Endpoint | None] = Counter(balancer.pick(now, b"s-%d" % call) for call in range(3_000))
        return picked[joiner] / 3_000

    early, late = share(NOW + 1.0), share(NOW + 10.0)
    assert early < 0.6 * late
    assert late > 0.15
    assert SLOW_START_FLOOR == 0.1


@strategy
def test_an_endpoint_ejected_for_later_is_pickable_in_panic(name: str) -> None:
    endpoints = fleet(3)
    endpoints[0].added_at = NOW + 30.0  # its ramp has not begun
    for policy in (Balancing(strategy=name), Balancing(strategy=name, slow_start_ms=0)):
        balancer = make_balancer(policy, random.Random(1))
        balancer.update(endpoints, NOW)
        assert balancer.pick(NOW, b"key", endpoints[1:]) is endpoints[0]
        assert len(balancer.explain(NOW, b"key")) == 3


@strategy
@pytest.mark.parametrize("other", STRATEGIES)
def test_attempts_of_a_replaced_balancer_end_in_peace(name: str, other: str) -> None:
    endpoints = fleet(3)
    old = balancer_of(name, endpoints)
    new = balancer_of(other, endpoints)
    for endpoint in endpoints:
        serve(old, endpoint, NOW)
        serve(new, endpoint, NOW, status=CANCELLED_BY_CALLER)
        serve(old, endpoint, NOW, status=14)
    assert old.pick(NOW, b"key") in endpoints
    assert new.pick(NOW, b"key") in endpoints
    assert len(old.explain(NOW, b"key")) == len(new.explain(NOW, b"key")) == 3


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.sets(st.integers(0, 5))),
        st.tuples(st.just("pick"), st.binary(max_size=4), st.sets(st.integers(0, 5), max_size=3)),
        st.tuples(st.just("end"), st.integers(-1, 16), st.floats(0.0, 400.0)),
        st.tuples(st.just("wait"), st.floats(0.0, 1e6)),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(name=names, steps=STEPS, seed=st.integers(0, 1000))
def test_any_interleaving_stays_inside_the_set_and_leaves_pending_alone(name: str, steps: list, seed: int) -> None:
    everybody = [Endpoint(f"10.0.0.{index}:9000", index + 1, now=NOW) for index in range(6)]
    balancer = make_balancer(Balancing(strategy=name), random.Random(seed))
    members: list[Endpoint] = []
    out: list[tuple[Endpoint, float]] = []
    now = NOW
    for step, *arguments in steps:
        pending = [endpoint.pending for endpoint in everybody]
        if step == "update":
            members = [everybody[index] for index in sorted(arguments[0])]
            balancer.update(members, now)
        elif step == "wait":
            now += arguments[0]
        elif step == "pick":
            avoid = {everybody[index] for index in arguments[1]}
            rows = balancer.explain(now, arguments[0])
            assert sorted(address for address, _, _ in rows) == sorted(member.address for member in members)
            picked = balancer.pick(now, arguments[0], avoid)
            assert (picked is None) == (not members)
            if picked is not None:
                assert picked in members
                assert picked not in avoid or avoid.issuperset(members)
        elif out:
            endpoint, since = out.pop()
            balancer.first_byte(endpoint, now - since, now)
            balancer.report(endpoint, REPORT, now)
            balancer.ended(endpoint, arguments[0], arguments[1], now)
            endpoint.pending -= 1
            continue
        assert [endpoint.pending for endpoint in everybody] == pending
        if step == "pick" and picked is not None:
            picked.pending += 1
            out.append((picked, now))
