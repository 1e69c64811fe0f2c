"""Retries: what may be tried again, how often, when, and at whose cost."""

from __future__ import annotations

import pytest

from outrider.policy import Policy, Retry
from outrider_http2 import frames
from outrider_sidecar.core import errors
from outrider_sidecar.filters.retry import matches
from tests.wire import Served, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
QUICK = Retry(max_attempts=4, backoff_ms=10, backoff_multiplier=1.0, budget_min_per_s=100.0)


def last(wire: Wire) -> Served:
    return max([served for served in wire.served if served.alive], key=lambda served: served.stream.id)


def fail_all(wire: Wire, rounds: int = 12) -> None:
    """Every try fails with UNAVAILABLE."""
    for _ in range(rounds):
        for served in [one for one in wire.served if one.alive]:
            served.refuse(errors.UNAVAILABLE, text="down")
        wire.pass_s(0.05)


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_the_policy_bounds_the_tries(attempts: int) -> None:
    wire = Wire(agent(retry=Retry(max_attempts=attempts, backoff_ms=1)))
    caller = wire.call(body=ASK)
    fail_all(wire)
    assert len(wire.served) == attempts
    assert (caller.status, caller.message) == (errors.UNAVAILABLE, "down")
    assert len(wire.spans[-1].attempts) == attempts
    assert {one.status for one in wire.spans[-1].attempts} == {errors.UNAVAILABLE}
    wire.assert_clean()


def test_another_endpoint_is_preferred_and_the_caller_sees_one_reply() -> None:
    wire = Wire(agent("a:1", "b:1", retry=QUICK))
    caller = wire.call(body=ASK)
    last(wire).refuse(errors.UNAVAILABLE)
    assert caller.head is None
    wire.pass_s(0.05)
    assert [len(link.served) for link in wire.links] == [1, 1]
    last(wire).reply(ANSWER)
    assert (caller.status, caller.body) == (0, ANSWER)
    assert [one.status for one in wire.spans[-1].attempts] == [errors.UNAVAILABLE, 0]
    wire.assert_clean()


@pytest.mark.parametrize("status", [s for s in range(1, 17) if s != errors.UNAVAILABLE])
def test_only_the_policys_statuses_are_tried_again(status: int) -> None:
    wire = Wire(agent(retry=QUICK))
    caller = wire.call(body=ASK)
    last(wire).refuse(status)
    wire.pass_s(0.5)
    assert (caller.status, len(wire.served)) == (status, 1)
    wire.assert_clean()


def test_nothing_is_tried_again_after_the_head_went_out() -> None:
    wire = Wire(agent(retry=QUICK))
    for end in ("status", "reset", "lost"):
        caller = wire.call(body=ASK)
        served = last(wire)
        served.begin()
        if end == "status":
            served.finish(errors.UNAVAILABLE)
        elif end == "reset":
            served.cancel(frames.REFUSED_STREAM)
        else:
            wire.link().lose()
        wire.pass_s(0.5)
        assert caller.status == errors.UNAVAILABLE
    assert len(wire.served) == 3
    wire.assert_clean()


def test_the_backoff_is_waited_for() -> None:
    wire = Wire(agent(retry=Retry(backoff_ms=200)))
    wire.call(body=ASK)
    last(wire).refuse(errors.UNAVAILABLE)
    wire.pass_s(0.15)
    assert len(wire.served) == 1
    wire.pass_s(0.12)
    assert len(wire.served) == 2


@pytest.mark.parametrize(("pushback", "waited_s"), [(b"700", 0.7), (b"0", 0.0)])
def test_a_pushback_replaces_the_backoff(pushback: bytes, waited_s: float) -> None:
    wire = Wire(agent(retry=Retry(backoff_ms=100)))
    wire.call(body=ASK)
    last(wire).refuse(errors.UNAVAILABLE, pushback_ms=pushback)
    wire.pass_s(max(0.0, waited_s - 0.02))
    assert len(wire.served) == 1
    wire.pass_s(0.05)
    assert len(wire.served) == 2


@pytest.mark.parametrize("pushback", [b"-1", b"never"])
def test_a_pushback_may_forbid_a_retry(pushback: bytes) -> None:
    wire = Wire(agent(retry=QUICK))
    caller = wire.call(body=ASK)
    last(wire).refuse(errors.UNAVAILABLE, pushback_ms=pushback)
    assert caller.status == errors.UNAVAILABLE
    wire.assert_clean()


def test_no_retry_that_could_not_begin_before_the_deadline() -> None:
    wire = Wire(agent(retry=QUICK))
    caller = wire.call(("grpc-timeout", "500m"), body=ASK)
    last(wire).refuse(errors.UNAVAILABLE, pushback_ms=b"600")
    assert caller.status == errors.UNAVAILABLE
    wire.assert_clean()


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_a_call_that_ends_between_two_tries_leaves_nothing(end: str) -> None:
    wire = Wire(agent(retry=Retry(backoff_ms=500, backoff_multiplier=1.0)))
    caller = wire.call(("grpc-timeout", "900m"), body=ASK)
    last(wire).refuse(errors.UNAVAILABLE)
    if end == "cancel":
        caller.cancel()
    else:
        next(iter(wire.runtime.calls)).expire()
        wire.flow()
        assert "endpoint" not in caller.message
    wire.assert_clean()
    wire.pass_s(2.0)
    assert len(wire.served) == 1


def test_the_budget_bounds_retries_of_all_calls_together() -> None:
    policy = Retry(max_attempts=2, backoff_ms=1, budget_ratio=0.2, budget_min_per_s=0.1)
    wire = Wire(agent(retry=policy))
    for _ in range(20):
        wire.call(body=ASK)
    fail_all(wire)
    assert len(wire.served) == 20 + 5  # a fifth of the calls, and 0.1 a second over ten
    wire.assert_clean()


@pytest.mark.parametrize("how", ["refused stream", "go away", "no connection"])
def test_what_was_not_processed_is_tried_again_at_once_and_for_free(how: str) -> None:
    none = Retry(max_attempts=1, budget_ratio=0.0, budget_min_per_s=0.0)
    wire = Wire(agent("a:1", "b:1", retry=none), mode="wait" if how == "no connection" else "up")
    caller = wire.call(body=ASK)
    if how == "refused stream":
        last(wire).cancel(frames.REFUSED_STREAM)
    elif how == "go away":
        link = next(link for link in wire.links if link.served)
        with wire.held():
            link.go_away()
            caller.cancel()
            caller = wire.call(body=ASK)
    else:
        for link in wire.links:
            link.refuse()
        assert sum(len(link.waiting) for link in wire.links) == 1
        for link in wire.links:
            link.come_up()
    last(wire).reply(ANSWER)
    assert caller.status == 0
    wire.assert_clean()


@pytest.mark.parametrize("endpoints", [1, 3, 200])
def test_even_what_costs_nothing_is_bounded(endpoints: int) -> None:
    addresses = [f"a:{number}" for number in range(1, endpoints + 1)]
    wire = Wire(agent(*addresses), mode="refuse")
    for link in wire.links:
        link.last_error = "connection refused"
        link.endpoint.reachable = False
    wire.state().pool.changed()
    caller = wire.call(body=ASK)
    assert caller.status == errors.UNAVAILABLE
    assert "connection refused" in caller.message
    tries = sum(link.endpoint.calls for link in wire.links)
    assert tries == min(endpoints + 3, 32)
    wire.assert_clean()


def test_a_retry_under_a_policy_that_has_gone_says_that_there_is_no_endpoint() -> None:
    wire = Wire(agent(retry=QUICK))
    caller = wire.call(body=ASK)
    wire.apply(Policy())
    last(wire).refuse(errors.UNAVAILABLE)
    wire.pass_s(0.1)
    assert (caller.status, caller.message) == (errors.UNAVAILABLE, "agent 'a' has no endpoint")
    wire.assert_clean()


def test_a_retry_uses_endpoints_that_came_since() -> None:
    wire = Wire(agent(retry=QUICK))
    caller = wire.call(body=ASK)
    wire.apply(agent("b:1", retry=QUICK))
    last(wire).refuse(errors.UNAVAILABLE)
    wire.pass_s(0.1)
    wire.link("b:1").served[0].reply(ANSWER)
    assert caller.status == 0
    wire.assert_clean()


def test_a_silent_try_is_replaced_after_the_per_try_timeout() -> None:
    wire = Wire(agent("a:1", "b:1", retry=Retry(per_try_timeout_ms=100, backoff_ms=1)))
    caller = wire.call(body=ASK)
    first = wire.served[0]
    wire.pass_s(0.15)
    assert first.reset_code == frames.CANCEL
    last(wire).reply(ANSWER)
    assert caller.status == 0
    wire.assert_clean()


@pytest.mark.parametrize(
    ("path", "names", "expected"),
    [
        (b"/p.S/M", ("/p.S/M",), True),
        (b"/p.S/M", ("/p.S/*",), True),
        (b"/p.S/M", ("/p.S/N", "/p.T/*"), False),
        (b"/p.S/M", (), False),
        (b"", ("/*",), False),
        (b"\xff", ("/p.S/M",), False),
    ],
)
def test_methods_are_named_or_all_of_a_service(path: bytes, names: tuple[str, ...], expected: bool) -> None:
    assert matches(path, names) is expected
