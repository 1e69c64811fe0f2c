"""The circuit breaker's states, its one probe, its backoff, and no path that leaves an endpoint shut for good."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Breaker
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.engines.breaker import CircuitBreaker, Grant

NOW = 1_000.0
POLICY = Breaker(enabled=True, consecutive_failures=3, min_open_ms=1_000, max_open_ms=60_000, jitter=0.0)


def made(policy: Breaker = POLICY) -> CircuitBreaker:
    return CircuitBreaker(policy, random.Random(1))


def opened(breaker: CircuitBreaker) -> Endpoint:
    endpoint = Endpoint("a:1")
    for _ in range(3):
        breaker.record(endpoint, False, NOW)
    return endpoint


def test_failures_in_a_row_open_it() -> None:
    breaker, endpoint = made(), Endpoint("a:1")
    assert breaker.allow(endpoint, NOW) is Grant.ADMITTED
    assert [breaker.record(endpoint, False, NOW) for _ in range(3)] == [False, False, True]
    assert endpoint.open_until == NOW + 1.0
    assert breaker.allow(endpoint, NOW + 0.999) is Grant.DENIED
    assert not Grant.DENIED
    assert Grant.PROBE


def test_a_success_breaks_the_run() -> None:
    breaker, endpoint = made(), Endpoint("a:1")
    for ok in (False, False, True) * 5:
        assert not breaker.record(endpoint, ok, NOW)
    assert endpoint.open_until == 0.0


def test_when_due_one_probe_goes_out_and_no_other() -> None:
    breaker = made()
    endpoint = opened(breaker)
    due = endpoint.open_until
    assert breaker.allow(endpoint, due) is Grant.PROBE
    assert endpoint.open_until > due  # not usable for anybody else meanwhile
    assert breaker.allow(endpoint, due) is Grant.DENIED
    assert breaker.allow(endpoint, due + 30.0) is Grant.DENIED


def test_a_good_probe_closes_it_and_starts_a_ramp() -> None:
    breaker = made()
    endpoint = opened(breaker)
    due = endpoint.open_until
    grant = breaker.allow(endpoint, due)
    assert breaker.record(endpoint, True, due + 0.5, grant)
    assert endpoint.open_until == 0.0
    assert endpoint.added_at == due + 0.5
    assert breaker.allow(endpoint, due + 0.5) is Grant.ADMITTED
    assert not breaker.record(endpoint, False, due + 0.5)  # the run starts from nothing


def test_failed_probes_double_the_wait_up_to_the_ceiling() -> None:
    breaker = made()
    endpoint = opened(breaker)
    waits = [endpoint.open_until - NOW]
    for _ in range(8):
        due = endpoint.open_until
        assert breaker.record(endpoint, False, due, breaker.allow(endpoint, due))
        waits.append(endpoint.open_until - due)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_closing_forgets_the_backoff() -> None:
    breaker = made()
    endpoint = opened(breaker)
    for ok in (False, False, True):
        due = endpoint.open_until
        breaker.record(endpoint, ok, due, breaker.allow(endpoint, due))
    for _ in range(3):
        breaker.record(endpoint, False, NOW + 100)
    assert endpoint.open_until == NOW + 101


@pytest.mark.parametrize("ok", [True, False])
def test_attempts_from_before_the_opening_say_nothing(ok: bool) -> None:
    breaker = made()
    endpoint = opened(breaker)
    until = endpoint.open_until
    assert not breaker.record(endpoint, ok, NOW + 0.1, Grant.ADMITTED)
    assert endpoint.open_until == until
    grant = breaker.allow(endpoint, until)
    lease = endpoint.open_until
    assert not breaker.record(endpoint, ok, until, Grant.ADMITTED)
    assert endpoint.open_until == lease
    assert breaker.record(endpoint, True, until, grant)


def test_a_cancelled_probe_makes_room_for_another_at_once() -> None:
    breaker = made()
    endpoint = opened(breaker)
    due = endpoint.open_until
    assert breaker.release(endpoint, due + 0.2, breaker.allow(endpoint, due))
    assert breaker.allow(endpoint, due + 0.2) is Grant.PROBE


def test_releasing_an_ordinary_attempt_changes_nothing() -> None:
    breaker = made()
    endpoint = opened(breaker)
    until = endpoint.open_until
    assert not breaker.release(endpoint, NOW + 0.1, Grant.ADMITTED)
    assert endpoint.open_until == until


def test_a_probe_nobody_reports_on_gives_way_in_the_end() -> None:
    breaker = made()
    endpoint = opened(breaker)
    due = endpoint.open_until
    breaker.allow(endpoint, due)
    assert breaker.allow(endpoint, due + 60.0) is Grant.PROBE


def test_a_probe_that_reported_its_first_byte_ends_as_any_attempt() -> None:
    breaker = made()
    endpoint = opened(breaker)
    due = endpoint.open_until
    grant = breaker.allow(endpoint, due)
    breaker.record(endpoint, True, due, grant)
    assert not breaker.record(endpoint, False, due + 5, grant)
    assert endpoint.open_until == 0.0


def test_jitter_adds_up_to_its_share_and_respects_the_ceiling() -> None:
    waits: set[float] = set()
    for seed in range(200):
        policy = Breaker(enabled=True, consecutive_failures=1, min_open_ms=10_000, max_open_ms=14_000, jitter=0.5)
        endpoint = Endpoint("a:1")
        CircuitBreaker(policy, random.Random(seed)).record(endpoint, False, NOW)
        waits.add(endpoint.open_until - NOW)
    assert 10.0 <= min(waits) < 10.5
    assert max(waits) == pytest.approx(14.0)
    assert len(waits) > 100


def test_without_a_breaker_nothing_opens_and_what_was_open_closes() -> None:
    endpoint = opened(made())
    closed = Endpoint("b:1")
    breaker = made(Breaker(enabled=False, consecutive_failures=1))
    assert breaker.update([endpoint, closed], NOW + 0.1)
    assert endpoint.open_until == 0.0
    assert not breaker.update([endpoint, closed], NOW + 0.1)
    assert not any(breaker.record(endpoint, False, NOW) for _ in range(50))
    assert breaker.allow(endpoint, NOW) is Grant.ADMITTED


def test_a_new_policy_with_a_breaker_keeps_the_state() -> None:
    endpoint = opened(made())
    breaker = made()
    assert not breaker.update([endpoint], NOW)
    assert breaker.allow(endpoint, NOW) is Grant.DENIED


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["call", "ok", "fail", "cancel"]), st.integers(0, 5), st.floats(0.0, 5.0)), max_size=150
)


@given(actions=ACTIONS, seed=st.integers(0, 99))
def test_one_probe_at_a_time_and_never_shut_for_good(actions: list[tuple[str, int, float]], seed: int) -> None:
    policy = Breaker(enabled=True, consecutive_failures=2, max_open_ms=4_000)
    breaker, endpoint, now = CircuitBreaker(policy, random.Random(seed)), Endpoint("a:1"), NOW
    out: list[tuple[Grant, float]] = []
    for action, which, gap_s in actions:
        now += gap_s
        if action == "call":
            grant = breaker.allow(endpoint, now)
            if grant is Grant.PROBE:  # any other probe that is out is past its lease
                assert all(now - since >= 4.0 for other, since in out if other is Grant.PROBE)
            if grant:
                out.append((grant, now))
        elif out:
            grant, _ = out.pop(which % len(out))
            if action == "cancel":
                breaker.release(endpoint, now, grant)
            else:
                breaker.record(endpoint, action == "ok", now, grant)
        assert endpoint.open_until <= now + 4.0
    assert breaker.allow(endpoint, now + 4.0)
