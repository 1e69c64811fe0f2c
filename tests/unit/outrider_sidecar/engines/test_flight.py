"""One upstream call for all concurrent callers of a key: leaders leave, followers come and go, nobody notices."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.policy import Limits, Optimization, Queue, Retry
from outrider_http2 import frames
from outrider_sidecar.core import errors
from outrider_sidecar.engines.flight import MAX_ELECTIONS, NOBODY, STALL_S
from tests.wire import ECHO, Caller, Served, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")


def shared(window_bytes: int = 65_535, mode: str = "up", held_bytes: int = 2**26, **more: Any) -> Wire:
    keep = {"cache_enabled": True, "cache_methods": (ECHO,)}
    known = {"cache_max_object_bytes", "cache_replay"}
    optimization = Optimization(**keep, **{name: value for name, value in more.items() if name in known})
    policy = {name: value for name, value in more.items() if name not in known}
    return Wire(agent(optimization=optimization, **policy), mode, window_bytes, held_bytes)


def ask(wire: Wire, reads: bool = True, timeout: str = "") -> Caller:
    return wire.call(*([("grpc-timeout", timeout)] if timeout else []), body=ASK, reads=reads)


def only(wire: Wire) -> Served:
    """The one try that is under way."""
    (served,) = [one for one in wire.served if one.alive]
    return served


def test_all_are_answered_by_one_upstream_call() -> None:
    wire = shared()
    early = [ask(wire) for _ in range(3)]
    served = only(wire)
    served.begin(("x-initial", "1"))
    served.data(message(b"one"))
    late = ask(wire)
    assert late.body == message(b"one")
    served.data(message(b"two"))
    served.finish(0, ("x-trailing", "2"))
    for caller in [*early, late]:
        assert (caller.status, caller.body) == (0, message(b"one") + message(b"two"))
        assert caller.trailer("x-trailing") == "2"
        assert caller.trailer("x-outrider-endpoint") == "a:1"
    verdicts = [caller.trailer("x-outrider-cache") for caller in [*early, late]]
    assert verdicts == ["miss", "coalesced", "coalesced", "coalesced"]
    assert len({span.span_id for span in wire.spans}) == 4
    wire.assert_clean()


@pytest.mark.parametrize("trailers_only", [True, False])
def test_an_error_of_the_agents_is_everybodys(trailers_only: bool) -> None:
    wire = shared()
    callers = [ask(wire) for _ in range(3)]
    if trailers_only:
        only(wire).refuse(errors.NOT_FOUND, text="no such page")
    else:
        served = only(wire)
        served.begin()
        served.finish(errors.NOT_FOUND, text="no such page")
    assert [(caller.status, caller.message) for caller in callers] == [(errors.NOT_FOUND, "no such page")] * 3
    assert len(wire.served) == 1
    wire.assert_clean()


@pytest.mark.parametrize("moment", ["before the head", "after the head", "waiting to connect", "between two tries"])
@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_when_the_leader_leaves_its_work_goes_on_for_the_others(moment: str, end: str) -> None:
    wire = shared(mode="wait" if moment == "waiting to connect" else "up", retry=Retry(backoff_ms=5_000))
    leader = ask(wire, timeout="5S")
    followers = [ask(wire, timeout="60S"), ask(wire)]
    if moment == "after the head":
        only(wire).begin()
        only(wire).data(message(b"one"))
    elif moment == "between two tries":
        only(wire).refuse(errors.UNAVAILABLE, pushback_ms=b"4990")
    if end == "cancel":
        leader.cancel()
    else:
        next(call for call in wire.runtime.calls if call.tap is not None).expire()
        wire.flow()
        assert leader.status == errors.DEADLINE_EXCEEDED
    wire.check()
    assert wire.state().in_flight == 1
    wire.link().come_up()
    served = only(wire)
    assert served.body == ASK
    if not served.answered:
        served.begin()
        served.data(message(b"one"))
    served.data(message(b"two"))
    served.finish()
    assert [(one.status, one.body) for one in followers] == [(0, message(b"one") + message(b"two"))] * 2
    assert wire.call(body=ASK).trailer("x-outrider-cache") == "hit"
    heir = next(span for span in wire.spans if span.endpoint and span.status == 0 and not span.cache)
    first = next(span for span in wire.spans if span.cache == "miss")
    assert (heir.trace_id, heir.parent_id) == (first.trace_id, first.span_id)
    wire.assert_clean()


def test_the_last_one_out_cancels_the_work() -> None:
    wire = shared()
    leader, follower = ask(wire), ask(wire)
    leader.cancel()
    served = only(wire)
    follower.cancel()
    assert served.reset_code == frames.CANCEL
    wire.assert_clean()


def test_the_work_lives_as_long_as_the_latest_deadline() -> None:
    wire = shared()
    leader = ask(wire)
    followers = [ask(wire, timeout="1S"), ask(wire, timeout="3S")]
    leader.cancel()
    served = only(wire)
    wire.pass_s(2.0)
    assert [one.status for one in followers] == [errors.DEADLINE_EXCEEDED, None]
    later = ask(wire, timeout="6S")
    wire.pass_s(2.0)
    assert (followers[1].status, served.alive, later.status) == (errors.DEADLINE_EXCEEDED, True, None)
    wire.pass_s(5.0)
    assert later.status == errors.DEADLINE_EXCEEDED
    assert not served.alive
    wire.assert_clean()


@pytest.mark.parametrize("status", [errors.CANCELLED, errors.DEADLINE_EXCEEDED, errors.RESOURCE_EXHAUSTED])
def test_a_failure_of_the_leaders_own_elects_another(status: int) -> None:
    wire = shared()
    callers = [ask(wire) for _ in range(3)]
    only(wire).refuse(status)
    assert [caller.status for caller in callers] == [status, None, None]
    only(wire).reply(ANSWER)
    assert [caller.status for caller in callers[1:]] == [0, 0]
    wire.assert_clean()


def test_elections_are_bounded() -> None:
    wire = shared()
    callers = [ask(wire) for _ in range(MAX_ELECTIONS + 5)]
    for _ in range(MAX_ELECTIONS + 1):
        only(wire).refuse(errors.RESOURCE_EXHAUSTED)
    assert {caller.status for caller in callers} == {errors.RESOURCE_EXHAUSTED}
    assert len(wire.served) == MAX_ELECTIONS + 1
    wire.assert_clean()


def test_a_failure_after_the_head_is_everybodys() -> None:
    wire = shared()
    callers = [ask(wire) for _ in range(2)]
    served = only(wire)
    served.begin()
    served.data(message(b"one"))
    served.finish(errors.RESOURCE_EXHAUSTED)
    assert [caller.status for caller in callers] == [errors.RESOURCE_EXHAUSTED] * 2
    wire.assert_clean()


def test_a_failure_reaches_followers_although_the_leaders_caller_does_not_read() -> None:
    wire = shared(window_bytes=1_000)
    leader, follower = ask(wire, reads=False), ask(wire)
    served = only(wire)
    served.begin()
    served.data(message(b"r" * 5_000))
    served.cancel(frames.INTERNAL_ERROR)
    assert (leader.status, leader.reset_code) == (None, frames.CANCEL)
    assert (follower.status, follower.body) == (errors.INTERNAL, message(b"r" * 5_000))
    wire.assert_clean()


def test_a_refused_leader_takes_nobody_with_it() -> None:
    wire = shared(limits=Limits(1), queue=Queue(max_waiting=0))
    blocker = wire.call(body=ASK, path="/test.Other/Unary")
    callers = [ask(wire) for _ in range(2)]
    assert [caller.status for caller in callers] == [errors.RESOURCE_EXHAUSTED] * 2
    blocker.cancel()
    wire.assert_clean()


def test_while_recorded_nobody_waits_for_anybody() -> None:
    wire = shared(window_bytes=1_000, cache_max_object_bytes=1_000_000)
    leader, slow, quick = ask(wire, reads=False), ask(wire, reads=False), ask(wire)
    served = only(wire)
    served.begin()
    for _ in range(8):
        served.data(b"r" * 90_000)
    assert len(quick.body) == 720_000
    served.finish()
    assert quick.status == 0
    leader.read()
    slow.read()
    assert leader.body == slow.body == quick.body
    wire.assert_clean()


def test_a_follower_sets_a_stalled_leaders_endpoint_going() -> None:
    wire = shared(window_bytes=1_000, cache_max_object_bytes=2_000_000)
    leader = ask(wire, reads=False)
    served = only(wire)
    served.begin()
    served.data(b"r" * 600_000)
    assert served.stream.queue is not None
    follower = ask(wire)
    assert (len(follower.body), served.stream.queue) == (600_000, None)
    leader.cancel()
    served.finish()
    assert follower.status == 0
    wire.assert_clean()


def test_past_the_recording_the_slowest_sets_the_pace() -> None:
    wire = shared(window_bytes=1_000, cache_max_object_bytes=10_000)
    leader, slow, quick = ask(wire), ask(wire, reads=False), ask(wire)
    served = only(wire)
    served.begin()
    for _ in range(10):
        served.data(b"r" * 90_000)
    assert served.stream.queue is not None
    assert len(quick.body) < 900_000
    late = ask(wire)
    assert late.trailer("x-outrider-cache") == ""
    assert len(wire.served) == 2
    slow.read()
    assert len(quick.body) == len(leader.body) == len(slow.body) == 900_000
    served.finish()
    assert {caller.status for caller in (leader, slow, quick)} == {0}
    late.cancel()
    wire.assert_clean()


@pytest.mark.parametrize("lead", [True, False])
def test_past_the_recording_whoever_stalls_the_others_is_cut(lead: bool) -> None:
    wire = shared(window_bytes=1_000, cache_max_object_bytes=10_000)
    first, second = ask(wire, reads=not lead), ask(wire, reads=lead)
    stalled, quick = (first, second) if lead else (second, first)
    served = only(wire)
    served.begin()
    for _ in range(10):
        served.data(b"r" * 90_000)
    wire.pass_s(STALL_S - 0.1)
    assert stalled.reset_code is None
    wire.pass_s(0.3)
    assert stalled.reset_code == frames.CANCEL
    assert len(quick.body) == 900_000
    served.finish()
    assert quick.status == 0
    wire.assert_clean()


@pytest.mark.parametrize("lead", [True, False])
def test_past_the_recording_slow_is_not_stalled_until_it_is(lead: bool) -> None:
    wire = shared(window_bytes=1_000, cache_max_object_bytes=10_000)
    first, second = ask(wire, reads=not lead), ask(wire, reads=lead)
    slow, quick = (first, second) if lead else (second, first)
    served = only(wire)
    served.begin()
    served.data(b"r" * 500_000)
    for _ in range(5):
        wire.pass_s(STALL_S * 0.7)
        slow.take(600)
    assert slow.reset_code is None
    wire.pass_s(2 * STALL_S + 0.1)
    assert slow.reset_code == frames.CANCEL
    served.finish()
    assert (quick.status, len(quick.body)) == (0, 500_000)
    wire.assert_clean()


def test_a_leader_that_held_up_the_others_sets_them_free_as_it_leaves() -> None:
    wire = shared(window_bytes=1_000, cache_max_object_bytes=10_000)
    leader, quick = ask(wire, reads=False), ask(wire)
    served = only(wire)
    served.begin()
    for _ in range(10):
        served.data(b"r" * 90_000)
    assert len(quick.body) < 900_000
    leader.cancel()
    assert len(quick.body) == 900_000
    served.finish()
    assert quick.status == 0
    wire.assert_clean()


def test_what_is_recorded_counts_as_held_and_is_given_up_when_memory_is_short() -> None:
    wire = shared(1_000_000, cache_max_object_bytes=1_000_000, held_bytes=200_000)
    callers = [ask(wire), ask(wire)]
    served = only(wire)
    served.begin()
    served.data(b"r" * 150_000)
    assert wire.reactor.ledger.held_bytes > 64_000
    wire.check()
    served.data(b"r" * 300_000)
    wire.check()
    assert wire.reactor.ledger.held_bytes == 0
    served.finish()
    assert [(one.status, len(one.body)) for one in callers] == [(0, 450_000)] * 2
    assert len(wire.state().cache.store) == 0
    wire.assert_clean()


def test_nobody_takes_whatever_is_sent() -> None:
    assert NOBODY.queue is None
    NOBODY.send_data(b"x", True)
    NOBODY.credit(1)
    NOBODY.reset(0)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["join", "leave", "leave first", "data", "more", "wait", "stall", "read"]), max_size=25),
    st.sampled_from([0, errors.NOT_FOUND, errors.UNAVAILABLE]),
    st.sampled_from([10_000, 1_000_000]),
)
def test_whoever_stays_gets_what_the_agent_sent(events: list[str], status: int, max_object: int) -> None:
    wire = shared(cache_max_object_bytes=max_object, window_bytes=3_000)
    callers = [ask(wire)]
    served = only(wire)
    served.begin()
    sent = 0
    for event in events:
        alive = [one for one in callers if not one.over]
        if event == "join" and alive:
            callers.append(ask(wire))
        elif event.startswith("leave") and len(alive) > 1:
            alive[0 if event == "leave first" else -1].cancel()
        elif event in ("data", "more") and served.alive:
            sent += 1
            served.data(message(b"%d" % sent + b"." * (20 if event == "data" else 4_000)))
        elif event == "wait":
            wire.pass_s(0.5)
        elif event in ("stall", "read") and alive:
            alive[-1].read() if event == "read" else alive[-1].stop_reading()
        wire.check()
    for caller in callers:
        caller.read()
    while any([one.alive for one in wire.served]):
        for one in [one for one in wire.served if one.alive]:
            one.begin() if not one.answered else one.finish(status)
    bodies = {b"".join(one.sent) for one in wire.served}
    for caller in callers:
        assert caller.over
        if caller.tail is not None:
            assert caller.status == status
            assert caller.body in bodies
    wire.pass_s(0.1)
    wire.assert_clean()
