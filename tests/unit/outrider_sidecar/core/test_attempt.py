"""One try at one endpoint: what its endings mean, and what it gives back."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Agent, Balancing, Retry
from outrider_http2 import frames
from outrider_http2.head import Rest
from outrider_sidecar.core import errors
from outrider_sidecar.core.attempt import ABORTED, MAX_PUSHBACK_S, pushback_s
from outrider_sidecar.core.balancer import Balancer
from tests.wire import Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
ONCE = Retry(max_attempts=1)


class Witness(Balancer):
    """A balancer that writes down what it is told."""

    def __init__(self, inner: Balancer):
        self.inner = inner
        self.told: list[tuple[Any, ...]] = []

    def update(self, endpoints: Any, now: float) -> None:
        self.inner.update(endpoints, now)

    def pick(self, now: float, key: bytes = b"", avoid: Any = ()) -> Any:
        return self.inner.pick(now, key, avoid)

    def first_byte(self, endpoint: Any, rtt_s: float, now: float) -> None:
        self.told.append(("first byte", endpoint.address, round(rtt_s, 3)))
        self.inner.first_byte(endpoint, rtt_s, now)

    def ended(self, endpoint: Any, status: int, penalty_s: float, now: float) -> None:
        self.told.append(("ended", endpoint.address, status, penalty_s))
        self.inner.ended(endpoint, status, penalty_s, now)

    def report(self, endpoint: Any, load: Any, now: float) -> None:
        self.told.append(("report", endpoint.address, load.cpu_utilization))
        self.inner.report(endpoint, load, now)


def watched(policy: Agent, **more: Any) -> tuple[Wire, Witness]:
    wire = Wire(policy, **more)
    pool = wire.state().pool
    pool.balancer = Witness(pool.balancer)
    return wire, pool.balancer


def test_feedback_comes_once_and_in_order() -> None:
    wire, witness = watched(agent())
    wire.call(body=ASK)
    served = wire.link().served[0]
    wire.pass_s(0.25)
    served.begin()
    wire.pass_s(0.25)
    served.data(ANSWER)
    served.data(ANSWER)
    wire.pass_s(0.5)
    served.finish()
    assert witness.told == [("first byte", "a:1", 0.5), ("ended", "a:1", 0, 0.0)]


def test_a_cancelled_try_still_says_how_long_it_waited() -> None:
    wire, witness = watched(agent())
    caller = wire.call(body=ASK)
    wire.pass_s(0.3)
    caller.cancel()
    assert witness.told == [("first byte", "a:1", 0.3), ("ended", "a:1", ABORTED, 0.0)]


def test_a_try_ended_by_the_deadline_counts_against_its_endpoint() -> None:
    wire, witness = watched(agent())
    wire.call(("grpc-timeout", "100m"), body=ASK)
    wire.pass_s(0.2)
    assert witness.told[-1] == ("ended", "a:1", errors.DEADLINE_EXCEEDED, 0.0)
    assert wire.link().endpoint.failures == 1


def test_a_pushback_is_the_endpoints_penalty() -> None:
    wire, witness = watched(agent(retry=ONCE))
    wire.call(body=ASK)
    wire.link().served[0].refuse(errors.UNAVAILABLE, pushback_ms=b"1500")
    assert witness.told[-1] == ("ended", "a:1", errors.UNAVAILABLE, 1.5)


def test_a_load_report_in_trailers_reaches_the_balancer_that_wants_it() -> None:
    wire, witness = watched(agent(balancing=Balancing("weighted_round_robin")))
    for report in ("CQAAAAAAAOA/", "not base64!", "AAAA"):  # cpu_utilization = 0.5, and what is none
        caller = wire.call(body=ASK)
        served = wire.link().served[-1]
        served.begin()
        served.data(ANSWER)
        served.finish(0, ("endpoint-load-metrics-bin", report))
        assert caller.status == 0
    assert next(told for told in witness.told if told[0] == "report") == ("report", "a:1", 0.5)
    wire.assert_clean()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (frames.CANCEL, errors.CANCELLED),
        (frames.INTERNAL_ERROR, errors.INTERNAL),
        (frames.ENHANCE_YOUR_CALM, errors.RESOURCE_EXHAUSTED),
        (frames.NO_ERROR, errors.UNAVAILABLE),
    ],
)
def test_a_reset_without_a_reply(code: int, status: int) -> None:
    wire = Wire(agent(retry=ONCE))
    caller = wire.call(body=ASK)
    wire.link().served[0].cancel(code)
    assert caller.status == status
    assert f"a:1 ended the stream with {frames.error_name(code)}" in caller.message
    assert caller.trailer("x-outrider-endpoint") == "a:1"
    wire.assert_clean()


def test_a_lost_connection_is_unavailable() -> None:
    wire = Wire(agent(retry=ONCE))
    caller = wire.call(body=ASK)
    wire.link().lose()
    assert caller.status == errors.UNAVAILABLE
    wire.assert_clean()


@pytest.mark.parametrize(
    ("http", "content_type", "status"),
    [
        (502, "text/html", errors.UNAVAILABLE),
        (404, "text/plain", errors.UNIMPLEMENTED),
        (200, "text/html", errors.UNKNOWN),
        (302, "application/grpc", errors.UNKNOWN),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>" * 100_000])
def test_what_is_not_grpc_becomes_a_status_and_its_body_is_dropped(
    http: int, content_type: str, status: int, body: bytes
) -> None:
    wire = Wire(agent(retry=ONCE))
    caller = wire.call(body=ASK)
    served = wire.link().served[0]
    served.begin(("content-type", content_type), status=http)
    served.data(body)
    wire.check()
    assert caller.head is None
    served.data(b"", True)
    assert (caller.status, caller.body) == (status, b"")
    assert caller.message == f"a:1 answered HTTP {http}, which is not gRPC"
    wire.assert_clean()


def test_http_trailers_do_not_make_it_grpc() -> None:
    wire = Wire(agent(retry=ONCE))
    caller = wire.call(body=ASK)
    served = wire.link().served[0]
    served.begin(status=503)
    served.finish(0)
    assert caller.status == errors.UNAVAILABLE
    wire.assert_clean()


def test_a_grpc_status_counts_whatever_the_http_status_is() -> None:
    wire = Wire(agent(retry=ONCE))
    caller = wire.call(body=ASK)
    wire.link().served[0].refuse(errors.PERMISSION_DENIED, text="no")
    assert caller.status == errors.PERMISSION_DENIED
    wire.assert_clean()


@pytest.mark.parametrize("data", [b"", ANSWER])
def test_a_reply_without_trailers_is_an_error(data: bytes) -> None:
    wire = Wire(agent(retry=ONCE))
    caller = wire.call(body=ASK)
    served = wire.link().served[0]
    served.begin()
    served.data(data, True)
    assert (caller.status, caller.body) == (errors.INTERNAL, data)
    assert "without trailers" in caller.message
    wire.assert_clean()


def test_a_refused_connection_says_who_and_why() -> None:
    wire = Wire(agent(), mode="refuse")
    wire.link().last_error = "connection refused"
    caller = wire.call(body=ASK)
    assert caller.status == errors.UNAVAILABLE
    assert caller.message == "agent 'a', endpoint a:1: connection refused"
    wire.assert_clean()


def test_a_cancelled_call_leaves_the_connectors_queue() -> None:
    wire = Wire(agent(), mode="wait")
    caller = wire.call(body=ASK)
    assert len(wire.link().waiting) == 1
    caller.cancel()
    wire.assert_clean()
    wire.link().come_up()
    assert wire.served == []


def test_the_time_waited_for_a_connection_is_on_the_span() -> None:
    wire = Wire(agent(), mode="wait")
    wire.call(body=ASK)
    wire.pass_s(0.4)
    wire.link().come_up()
    wire.link().served[0].reply(ANSWER)
    assert wire.spans[0].connect_us == pytest.approx(400_000, abs=10)


def test_the_per_try_timer_ends_when_the_reply_begins() -> None:
    wire = Wire(agent(retry=Retry(max_attempts=2, per_try_timeout_ms=100)))
    caller = wire.call(body=ASK)
    served = wire.link().served[0]
    assert len(wire.runtime.wheel) == 1
    served.begin()
    assert len(wire.runtime.wheel) == 0
    wire.pass_s(1.0)
    served.data(ANSWER)
    served.finish()
    assert caller.status == 0
    wire.assert_clean()


def test_the_per_try_timer_also_bounds_a_reply_that_is_not_grpc() -> None:
    wire = Wire(agent(retry=Retry(max_attempts=1, per_try_timeout_ms=100)))
    caller = wire.call(body=ASK)
    wire.link().served[0].begin(status=500)
    wire.pass_s(0.2)
    assert caller.status == errors.UNAVAILABLE
    wire.assert_clean()


def test_the_per_try_timer_bounds_the_wait_for_a_connection_too() -> None:
    wire = Wire(agent("a:1", "b:1", retry=Retry(max_attempts=1, per_try_timeout_ms=100)), mode="wait")
    caller = wire.call(body=ASK)
    wire.pass_s(0.15)
    assert [len(link.waiting) for link in wire.links] in ([1, 0], [0, 1])
    assert caller.status is None  # nothing has been sent: another endpoint may be tried
    wire.pass_s(1.0)
    assert caller.status == errors.UNAVAILABLE
    assert "no connection within the per-try timeout" in caller.message
    wire.assert_clean()


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (None, None),
        (b"0", 0.0),
        (b"1500", 1.5),
        (b"-1", -1.0),
        (b"", -1.0),
        (b"soon", -1.0),
        (b"1_0", -1.0),
        (b" 1", -1.0),
        (b"999999999", MAX_PUSHBACK_S),
        (b"9" * 400, MAX_PUSHBACK_S),
        (b"9" * 8_000, MAX_PUSHBACK_S),
    ],
)
def test_any_pushback_can_be_read(raw: bytes | None, seconds: float | None) -> None:
    fields = [(b"grpc-retry-pushback-ms", raw)] if raw is not None else []
    assert pushback_s(Rest(fields, frozenset())) == seconds
