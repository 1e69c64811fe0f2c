"""One call from its head to its end: order, ends, done callbacks, and replies that come early or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Optimization, Retry
from outrider_http2 import frames
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call
from tests.wire import Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
BIG = message(b"r" * 100_000)


def test_a_unary_call_passes_byte_for_byte() -> None:
    wire = Wire(agent())
    caller = wire.call(("x-kept", "1"), ("x-bin", "AAE="), body=ASK)
    served = wire.link().served[0]
    assert (served.body, served.heard_end) == (ASK, True)
    assert (served.value("x-kept"), served.value("x-bin")) == ("1", "AAE=")
    served.begin(("x-initial", "2"))
    served.data(ANSWER)
    served.finish(0, ("x-trailing", "3"))
    assert (caller.status, caller.body) == (0, ANSWER)
    assert caller.head is not None
    assert caller.head.values[b"x-initial"] == b"2"
    assert caller.trailer("x-trailing") == "3"
    assert caller.trailer("x-outrider-endpoint") == "a:1"
    wire.assert_clean()


def test_a_request_of_a_head_only_is_answered() -> None:
    wire = Wire(agent())
    caller = wire.call()
    served = wire.link().served[0]
    assert (served.heard_end, served.chunks) == (True, [])
    served.reply(ANSWER)
    assert caller.status == 0
    wire.assert_clean()


@pytest.mark.parametrize("end", [True, False])
def test_empty_messages_and_empty_frames_pass(end: bool) -> None:
    wire = Wire(agent())
    caller = wire.call(body=b"", end=end)
    if not end:
        caller.send(message(b""))
        caller.send(b"", True)
    served = wire.link().served[0]
    assert (served.heard_end, served.body) == (True, b"" if end else message(b""))
    served.begin()
    served.data(b"")
    served.data(message(b""))
    served.finish()
    assert (caller.status, caller.body) == (0, message(b""))
    wire.assert_clean()


def test_both_sides_stream_at_once() -> None:
    wire = Wire(agent())
    caller = wire.call(body=message(b"0"), end=False)
    served = wire.link().served[0]
    served.begin()
    for number in range(1, 4):
        served.data(message(b"r%d" % number))
        assert caller.body.endswith(b"r%d" % number)
        caller.send(message(b"%d" % number))
        assert served.body.endswith(b"%d" % number)
    caller.send(b"", True)
    served.finish()
    assert caller.status == 0
    wire.assert_clean()


def test_trailers_only_and_an_application_error_pass_as_they_are() -> None:
    wire = Wire(agent())
    caller = wire.call(body=ASK)
    wire.link().served[0].refuse(errors.INVALID_ARGUMENT, ("x-why", "7"), text="no such thing")
    assert (caller.status, caller.message, caller.trailer("x-why")) == (3, "no such thing", "7")
    assert caller.trailer("x-outrider-endpoint") == "a:1"
    wire.assert_clean()


def test_an_early_reply_ends_both_sides_of_the_request() -> None:
    wire = Wire(agent())
    caller = wire.call(body=ASK, end=False)
    served = wire.link().served[0]
    served.reply(ANSWER)
    assert (caller.status, caller.reset_code) == (0, frames.NO_ERROR)
    assert served.reset_code == frames.CANCEL
    wire.assert_clean()


def test_an_early_reply_that_waits_for_its_caller_ends_the_request_when_it_has_left() -> None:
    wire = Wire(agent(), window_bytes=1_000)
    caller = wire.call(body=ASK, end=False, reads=False)
    served = wire.link().served[0]
    served.begin()
    served.data(message(b"r" * 5_000))
    served.finish(errors.FAILED_PRECONDITION)
    assert (caller.status, caller.reset_code) == (None, None)
    caller.send(message(b"more"))
    caller.read()
    assert (caller.status, caller.reset_code) == (errors.FAILED_PRECONDITION, frames.NO_ERROR)
    assert caller.body == message(b"r" * 5_000)
    wire.assert_clean()


def test_a_failure_half_way_becomes_trailers_where_the_caller_reads() -> None:
    wire = Wire(agent())
    caller = wire.call(body=ASK)
    served = wire.link().served[0]
    served.begin()
    served.data(ANSWER)
    served.cancel(frames.INTERNAL_ERROR)
    assert (caller.status, caller.body) == (errors.INTERNAL, ANSWER)
    assert "a:1 ended the stream with INTERNAL_ERROR" in caller.message
    wire.assert_clean()


def test_a_failure_half_way_is_a_reset_where_the_caller_does_not_read() -> None:
    wire = Wire(agent(), window_bytes=1_000)
    caller = wire.call(body=ASK, reads=False)
    served = wire.link().served[0]
    served.begin()
    served.data(message(b"r" * 5_000))
    served.cancel(frames.INTERNAL_ERROR)
    assert (caller.status, caller.reset_code) == (None, frames.CANCEL)
    assert wire.spans[-1].status == errors.INTERNAL
    wire.assert_clean()


def test_a_cancelled_call_cancels_upstream() -> None:
    wire = Wire(agent())
    caller = wire.call(body=ASK)
    caller.cancel()
    assert wire.link().served[0].reset_code == frames.CANCEL
    assert (wire.spans[-1].status, wire.spans[-1].error) == (1, "cancelled by the caller (CANCEL)")
    wire.assert_clean()


@pytest.mark.parametrize("began", [False, True])
def test_the_deadline_answers_and_cancels_upstream(began: bool) -> None:
    wire = Wire(agent())
    caller = wire.call(("grpc-timeout", "80m"), body=ASK)
    served = wire.link().served[0]
    if began:
        served.begin()
        served.data(ANSWER)
    wire.pass_s(0.07)
    assert caller.status is None
    wire.pass_s(0.02)
    assert (caller.status, served.reset_code) == (errors.DEADLINE_EXCEEDED, frames.CANCEL)
    assert caller.message.startswith("deadline exceeded after ")
    assert "endpoint" not in caller.message
    wire.assert_clean()


def test_a_deadline_before_any_endpoint_says_so() -> None:
    wire = Wire(agent(optimization=Optimization(cache_enabled=True, cache_methods=("/test.Echo/*",))))
    caller = wire.call(("grpc-timeout", "80m"), body=ASK, end=False)
    wire.pass_s(0.1)
    assert caller.status == errors.DEADLINE_EXCEEDED
    assert caller.message.endswith("before an endpoint was reached")
    wire.assert_clean()


def test_back_pressure_reaches_the_agent_and_credit_comes_back() -> None:
    wire = Wire(agent(), window_bytes=10_000)
    caller = wire.call(body=ASK, reads=False)
    served = wire.link().served[0]
    served.begin()
    for _ in range(20):
        served.data(BIG)
    wire.check()
    held = wire.reactor.ledger.held_bytes
    assert 0 < held <= wire.reactor.limits.stream_window_bytes
    assert served.stream.queue is not None
    served.finish()
    caller.read()
    assert (caller.status, caller.body) == (0, BIG * 20)
    wire.assert_clean()


def test_back_pressure_reaches_the_caller_and_credit_comes_back() -> None:
    wire = Wire(agent(), window_bytes=10_000)
    caller = wire.call(body=ASK, end=False)
    served = wire.link().served[0]
    served.stop_reading()
    for _ in range(20):
        caller.send(BIG)
    wire.check()
    assert caller.stream.queue is not None
    caller.send(b"", True)
    served.read()
    assert (served.body, served.heard_end) == (ASK + BIG * 20, True)
    served.reply(ANSWER)
    assert caller.status == 0
    wire.assert_clean()


def test_done_callbacks_run_once_last_in_first_out_before_the_call_is_forgotten() -> None:
    seen: list[Any] = []

    def before(call: Call) -> None:
        for number in (1, 2, 3):
            call.on_done(lambda ended, number=number: seen.append((number, ended.status, ended.over)))

    wire = Wire(agent(), before=before)
    caller = wire.call(body=ASK)
    call = next(iter(wire.runtime.calls))
    caller.cancel()
    assert seen == [(3, 1, True), (2, 1, True), (1, 1, True)]
    call.finish(0)
    call.expire()
    assert call.fail(errors.INTERNAL, "too late")
    assert (len(seen), call.status) == (3, 1)


def test_a_parked_call_runs_nothing_until_it_is_resumed() -> None:
    parked: list[Call] = []

    def park(call: Call) -> bool:
        parked.append(call)
        return True

    wire = Wire(agent(), before=park)
    caller = wire.call(body=ASK)
    assert (wire.served, len(parked)) == ([], 1)
    parked[0].run()
    wire.flow()
    wire.link().served[0].reply(ANSWER)
    assert caller.status == 0
    parked[0].run()
    wire.assert_clean()


def test_notes_are_bounded_and_reach_the_span() -> None:
    def talk(call: Call) -> None:
        for number in range(20):
            call.note(f"note {number}")

    wire = Wire(agent(), before=talk)
    wire.call(body=ASK).cancel()
    assert wire.spans[-1].notes == tuple([f"note {number}" for number in range(8)])


@pytest.mark.parametrize(
    ("timeout", "waited_s", "left"),
    [
        ("2S", 0.0, "2000000u"),
        ("1500m", 0.0, "1500000u"),
        ("1H", 0.0, "3600000m"),
        ("99999999H", 0.0, "99999999S"),
        ("100M", 0.0, "6000000m"),
    ],
)
def test_what_is_left_of_the_deadline_goes_upstream(timeout: str, waited_s: float, left: str) -> None:
    wire = Wire(agent())
    wire.call(("grpc-timeout", timeout), body=ASK)
    assert wire.link().served[0].value("grpc-timeout") == left


def test_a_further_try_carries_less_time_and_the_number_of_tries() -> None:
    wire = Wire(agent(retry=Retry(backoff_ms=100, backoff_multiplier=1.0)))
    wire.call(("grpc-timeout", "2S"), body=ASK)
    first = wire.link().served[0]
    first.refuse(errors.UNAVAILABLE)
    wire.pass_s(0.2)
    second = wire.link().served[1]
    assert (first.value("grpc-previous-rpc-attempts"), second.value("grpc-previous-rpc-attempts")) == ("", "1")
    assert 1_870_000 <= int(second.value("grpc-timeout")[:-1]) <= 1_920_000


def test_a_stream_of_replies_ends_with_the_grace_of_the_process() -> None:
    wire = Wire(agent())
    caller = wire.call(body=ASK)
    wire.link().served[0].begin()
    for call in list(wire.runtime.calls):
        assert call.fail(errors.UNAVAILABLE, "shutting down")
    wire.flow()
    assert (caller.status, caller.message) == (errors.UNAVAILABLE, "shutting down")
    wire.assert_clean()
