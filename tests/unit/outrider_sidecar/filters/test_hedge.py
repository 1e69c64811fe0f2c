"""Hedges: a further try while the first is silent; one answers, the others are cancelled."""

from __future__ import annotations

import pytest

from outrider.policy import Breaker, Degradation, Hedge, Retry
from outrider_http2 import frames
from outrider_sidecar.core import errors
from tests.wire import ECHO, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
HEDGED = Hedge(True, 50, 1, (ECHO,))
TWICE = Hedge(True, 50, 2, ("/test.Echo/*",))


def three(hedge: Hedge = HEDGED, **more: object) -> Wire:
    return Wire(agent("a:1", "b:1", "c:1", hedge=hedge, **more))


@pytest.mark.parametrize("winner", [0, 1])
def test_the_first_head_answers_and_the_other_try_is_cancelled(winner: int) -> None:
    wire = three()
    caller = wire.call(body=ASK)
    first = wire.served[0]
    wire.pass_s(0.07)
    second = next(one for one in wire.served if one is not first)
    tries = [first, second]
    assert second.body == ASK
    wire.check()
    tries[winner].begin()
    assert tries[1 - winner].reset_code == frames.CANCEL
    tries[winner].data(ANSWER)
    tries[winner].finish()
    assert (caller.status, caller.body) == (0, ANSWER)
    assert caller.trailer("x-outrider-endpoint") == wire.spans[-1].attempts[-1].endpoint
    wire.assert_clean()


def test_two_heads_that_cross_are_answered_by_one() -> None:
    wire = three()
    caller = wire.call(body=ASK)
    wire.pass_s(0.07)
    with wire.held():
        for number, served in enumerate(wire.served):
            served.reply(message(b"%d" % number))
    assert caller.status == 0
    assert caller.body in (message(b"0"), message(b"1"))
    wire.assert_clean()


def test_hedges_are_bounded_and_spaced() -> None:
    wire = three(TWICE)
    caller = wire.call(body=ASK)
    counts = []
    for _ in range(6):
        wire.pass_s(0.055)
        counts.append(len(wire.served))
    assert counts == [2, 3, 3, 3, 3, 3]
    wire.check()
    caller.cancel()
    assert {served.reset_code for served in wire.served} == {frames.CANCEL}
    wire.assert_clean()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_as_long_as_one_is_under_way_failures_of_the_others_do_not_matter(order: tuple[int, ...]) -> None:
    wire = three(TWICE, retry=Retry(max_attempts=1))
    caller = wire.call(body=ASK)
    wire.pass_s(0.2)
    tries = wire.served
    for number in order[:2]:
        tries[number].refuse(errors.UNAVAILABLE)
        assert caller.status is None
        wire.check()
    tries[order[2]].reply(ANSWER)
    assert (caller.status, caller.body) == (0, ANSWER)
    wire.assert_clean()


def test_when_all_have_failed_the_call_has() -> None:
    wire = three(TWICE, retry=Retry(max_attempts=1))
    caller = wire.call(body=ASK)
    wire.pass_s(0.2)
    for served in wire.served:
        served.refuse(errors.UNAVAILABLE)
    assert caller.status == errors.UNAVAILABLE
    assert len(wire.spans[-1].attempts) == 3
    wire.assert_clean()


def test_an_endpoint_that_is_being_tried_is_not_tried_twice() -> None:
    wire = Wire(agent(hedge=TWICE, retry=Retry(budget_ratio=0.0, budget_min_per_s=0.1, per_try_timeout_ms=500)))
    caller = wire.call(body=ASK)
    wire.pass_s(0.3)
    assert len(wire.served) == 1
    wire.check()
    wire.pass_s(0.4)  # no hedge has spent the one retry there is
    assert len(wire.served) == 2
    wire.served[1].reply(ANSWER)
    assert caller.status == 0
    wire.assert_clean()


@pytest.mark.parametrize("why", ["another method", "unfinished request", "no budget", "too large"])
def test_what_is_not_hedged(why: str) -> None:
    budget = Retry(budget_ratio=0.0, budget_min_per_s=0.0) if why == "no budget" else Retry()
    wire = three(retry=budget)
    caller = wire.call(
        body=message(b"x" * 300_000) if why == "too large" else ASK,
        path="/test.Other/Unary" if why == "another method" else ECHO,
        end=why != "unfinished request",
    )
    wire.pass_s(0.3)
    assert len(wire.served) == 1
    caller.cancel()
    wire.assert_clean()


def test_a_reply_that_has_begun_is_not_hedged() -> None:
    wire = three()
    caller = wire.call(body=ASK)
    wire.served[0].begin()
    wire.pass_s(0.3)
    assert len(wire.served) == 1
    wire.served[0].finish()
    assert caller.status == 0
    wire.assert_clean()


def test_a_hedge_that_is_refused_at_once_leaves_the_first_try_alone() -> None:
    wire = three()
    caller = wire.call(body=ASK)
    for link in wire.links:
        if not link.served:
            link.lose()
            link.mode = "refuse"
    wire.pass_s(0.3)
    wire.check()
    assert caller.status is None
    wire.served[0].reply(ANSWER)
    assert caller.status == 0
    wire.assert_clean()


def test_hedges_that_wait_for_a_connection_go_with_the_call() -> None:
    wire = three()
    caller = wire.call(body=ASK)
    for link in wire.links:
        if not link.served:
            link.lose()
            link.mode = "wait"
    wire.pass_s(0.3)
    assert sum(len(link.waiting) for link in wire.links) == 1
    wire.served[0].reply(ANSWER)
    assert caller.status == 0
    wire.assert_clean()


def test_a_body_that_a_waiting_hedge_needs_is_not_let_go_of() -> None:
    wire = Wire(agent("a:1", "b:1", hedge=HEDGED), held_bytes=80_000)
    body = message(b"b" * 60_000)
    caller = wire.call(body=body)
    other = next(link for link in wire.links if not link.served)
    other.lose()
    other.mode = "wait"
    wire.pass_s(0.1)
    wire.call(("x-agent-id", "a"), body=body, path="/test.Other/Unary").cancel()
    wire.check()
    other.come_up()
    assert all([served.body == body for served in other.served if served.alive])
    assert caller.over or caller.status is None
    caller.cancel()
    wire.assert_clean()


def test_an_open_breaker_is_not_probed_by_a_hedge_that_does_not_start() -> None:
    breaker = Breaker(True, 1, 60_000, 60_000, 0.0)
    wire = Wire(agent("a:1", "b:1", hedge=HEDGED, breaker=breaker, retry=Retry(max_attempts=1)))
    caller = wire.call(body=ASK)
    caller_link = next(link for link in wire.links if link.served)
    other = next(link for link in wire.links if link is not caller_link)
    other.endpoint.open_until = wire.loop.now + 60.0
    wire.state().pool.changed()
    wire.pass_s(0.2)
    assert len(wire.served) == 1
    caller.cancel()
    wire.assert_clean()


def test_no_hedge_is_made_while_the_step_is_taken() -> None:
    degradation = Degradation(True, ("hedge_off",), enter_ms=0, leave_ms=3_600_000)
    wire = three(degradation=degradation)
    ladder = wire.state().ladder
    silent, quick = wire.call(body=ASK), wire.call(body=ASK)
    ladder.observe(1.0, wire.loop.now)
    assert ladder.steps == ("hedge_off",)
    next(one for one in wire.served if one.alive).reply(ANSWER)
    wire.pass_s(0.07)
    assert len(wire.served) == 2
    next(one for one in wire.served if one.alive).reply(ANSWER)
    assert (silent.status, quick.status) == (0, 0)
    felt = [span.admission.degraded if span.admission else () for span in wire.spans]
    assert felt == [(), ("hedge_off",)]  # the quick one would not have been hedged
    ladder.observe(0.0, wire.loop.now + 4_000.0)
    assert ladder.steps == ()
    wire.call(body=ASK)
    wire.pass_s(0.07)
    assert len(wire.served) == 4
    for served in [one for one in wire.served if one.alive][:1]:
        served.reply(ANSWER)
    assert wire.spans[-1].admission is None
    wire.assert_clean()
