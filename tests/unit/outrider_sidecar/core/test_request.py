"""Request bytes: credited when taken, kept while a further try may need them, let go of when memory is short."""

from __future__ import annotations

import pytest

from outrider.policy import Optimization, Retry
from outrider_http2 import frames
from outrider_sidecar.core import errors
from outrider_sidecar.core.request import BODY_BYTES_UNCOUNTED
from tests.wire import ECHO, Wire, agent, message

ANSWER = message(b"answer")
CACHED = agent(optimization=Optimization(cache_enabled=True, cache_methods=(ECHO,)))
KB = 1024


def test_a_large_body_is_kept_in_the_ledger_until_the_reply_begins() -> None:
    wire = Wire(agent())
    body = message(b"b" * 100 * KB)
    wire.call(body=body)
    assert wire.reactor.ledger.held_bytes > len(body) - BODY_BYTES_UNCOUNTED - 1
    wire.check()
    served = wire.link().served[0]
    assert served.body == body
    served.begin()
    assert wire.reactor.ledger.held_bytes == 0
    served.finish()
    wire.assert_clean()


@pytest.mark.parametrize(("size", "retried"), [(200 * KB, True), (300 * KB, False)])
def test_what_can_be_replayed_is_bounded(size: int, retried: bool) -> None:
    wire = Wire(agent(retry=Retry(backoff_ms=1)))
    body = message(b"b" * size)
    caller = wire.call(body=body)
    wire.link().served[0].refuse(errors.UNAVAILABLE)
    wire.pass_s(0.1)
    assert len(wire.served) == 1 + retried
    if retried:
        assert wire.served[1].body == body
        wire.served[1].reply(ANSWER)
    assert caller.status == (0 if retried else errors.UNAVAILABLE)
    wire.assert_clean()


def test_a_request_goes_on_between_two_tries() -> None:
    wire = Wire(agent(retry=Retry(backoff_ms=50)))
    caller = wire.call(body=message(b"1"), end=False)
    wire.link().served[0].refuse(errors.UNAVAILABLE)
    caller.send(message(b"2"))
    wire.check()
    wire.pass_s(0.1)
    served = wire.link().served[1]
    assert served.body == message(b"1") + message(b"2")
    caller.send(message(b"3"), True)
    assert served.body.endswith(message(b"3"))
    served.reply(ANSWER)
    assert caller.status == 0
    wire.assert_clean()


def test_a_request_goes_on_while_it_waits_for_a_connection() -> None:
    wire = Wire(agent(), mode="wait")
    caller = wire.call(body=message(b"1"), end=False)
    caller.send(b"2" * 20_000)
    wire.check()
    caller.send(b"3", True)
    assert wire.served == []
    wire.link().come_up()
    served = wire.link().served[0]
    assert (served.body, served.heard_end) == (message(b"1") + b"2" * 20_000 + b"3", True)
    wire.check()
    served.reply(ANSWER)
    assert caller.status == 0
    assert wire.spans[-1].connect_us == 0  # of the test's clock
    wire.assert_clean()


def test_what_nobody_takes_is_bounded_by_the_window() -> None:
    wire = Wire(agent(), mode="wait")
    caller = wire.call(body=message(b"1"), end=False)
    for _ in range(100):
        caller.send(b"2" * 16_000)
    wire.check()
    call = next(iter(wire.runtime.calls))
    assert call.body_bytes <= wire.reactor.limits.stream_window_bytes
    assert caller.stream.queue is not None
    caller.cancel()
    wire.assert_clean()


def test_a_step_that_wants_the_whole_body_gets_more_than_a_window() -> None:
    wire = Wire(CACHED)
    body = message(b"b" * 700 * KB)
    caller = wire.call(body=body[:1], end=False)
    caller.send(body[1:-1])
    assert wire.served == []
    wire.check()
    caller.send(body[-1:], True)
    assert wire.served[0].body == body
    wire.served[0].reply(ANSWER)
    assert caller.trailer("x-outrider-cache") == "miss"
    wire.assert_clean()


def test_past_the_limit_a_waiting_step_goes_on_without_the_rest() -> None:
    wire = Wire(CACHED)
    caller = wire.call(body=message(b"b" * (1024 * KB + 100)), end=False)
    assert len(wire.served) == 1
    caller.send(b"c" * 300 * KB, True)
    served = wire.served[0]
    assert len(served.body) == 1024 * KB + 100 + 5 + 300 * KB
    served.reply(ANSWER)
    assert caller.trailer("x-outrider-cache") == "bypass"
    assert wire.spans[-1].notes == ("cache: too_large",)
    wire.assert_clean()


def test_when_memory_is_short_a_sent_body_is_let_go_of_and_the_call_lives() -> None:
    wire = Wire(agent(), held_bytes=80 * KB)
    callers = [wire.call(body=message(b"b" * 60 * KB)) for _ in range(3)]
    assert wire.reactor.ledger.held_bytes <= 80 * KB
    assert wire.reactor.ledger.cut == 2
    wire.check()
    first, second, third = wire.link().served
    first.refuse(errors.UNAVAILABLE)
    assert callers[0].status == errors.UNAVAILABLE  # nothing is left to try again with
    for served in (second, third):
        served.reply(ANSWER)
    assert [caller.status for caller in callers[1:]] == [0, 0]
    wire.assert_clean()


def test_when_memory_is_short_a_body_nobody_has_taken_ends_its_call() -> None:
    wire = Wire(agent(), mode="wait", held_bytes=80 * KB)
    callers = [wire.call(body=message(b"b" * 60 * KB)) for _ in range(2)]
    assert (callers[0].status, callers[1].status) == (errors.RESOURCE_EXHAUSTED, None)
    assert "limits.held_bytes" in callers[0].message
    wire.check()
    wire.link().come_up()
    wire.link().served[0].reply(ANSWER)
    assert callers[1].status == 0
    wire.assert_clean()


def test_a_leader_cut_for_memory_does_not_take_its_followers_with_it() -> None:
    wire = Wire(CACHED, mode="wait", held_bytes=120 * KB)
    body = message(b"b" * 60 * KB)
    leader, follower = wire.call(body=body), wire.call(body=body)
    other = wire.call(body=message(b"c" * 60 * KB))
    assert (leader.status, follower.status, other.status) == (errors.RESOURCE_EXHAUSTED, None, None)
    wire.check()
    wire.link().come_up()
    for served in list(wire.link().served):
        served.reply(served.body[-1:])
    assert (follower.status, follower.body, other.status, other.body) == (0, b"b", 0, b"c")
    wire.assert_clean()


def test_data_after_the_end_is_credited_and_dropped() -> None:
    wire = Wire(agent())
    caller = wire.call(("x-agent-id", "nobody"), body=message(b"1"), end=False)
    assert (caller.status, caller.reset_code) == (errors.NOT_FOUND, frames.NO_ERROR)
    with wire.held():
        other = wire.call(body=message(b"1"), end=False)
        other.send(message(b"2"))
        other.cancel()
    wire.assert_clean()
