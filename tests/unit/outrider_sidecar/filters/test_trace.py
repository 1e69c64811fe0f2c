"""Ids in, ids out, and one span a call."""

from __future__ import annotations

import re

import pytest

from outrider.policy import Balancing, Limits, Optimization, Retry
from outrider_http2.hpack import literal
from outrider_sidecar.core import errors
from outrider_sidecar.core.span import DETACHED, SAMPLED, THROUGH_INGRESS, Admission
from outrider_sidecar.engines.sampler import parse_sampler
from tests.wire import ECHO, Wire, agent, message
from tests.wire_peers import Served, reply_head

ASK, ANSWER = message(b"ask"), message(b"answer")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_call_without_context_begins_a_trace() -> None:
    wire = Wire(agent())
    caller = wire.call(body=ASK)
    served = wire.link().served[0]
    found = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01", served.value("traceparent"))
    assert found is not None
    served.reply(ANSWER)
    span = wire.spans[0]
    assert (span.trace_id.decode(), span.span_id.decode()) == found.groups()
    assert (span.parent_id, span.flags & SAMPLED) == (b"", SAMPLED)
    assert caller.head_rest is not None
    for values in (caller.head_rest.values, caller.tail_rest.values if caller.tail_rest else {}):
        assert values[b"x-outrider-trace-id"] == span.trace_id
        assert values[b"x-outrider-call-id"] == span.span_id


def test_context_is_continued_with_our_span_in_between() -> None:
    wire = Wire(agent())
    wire.call(("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "v=1,w=2"), body=ASK)
    served = wire.link().served[0]
    served.reply(ANSWER)
    span = wire.spans[0]
    assert served.value("traceparent") == f"00-{TRACE}-{span.span_id.decode()}-01"
    assert served.value("tracestate") == "v=1,w=2"
    assert (span.trace_id, span.parent_id, span.tracestate) == (TRACE.encode(), PARENT.encode(), b"v=1,w=2")


@pytest.mark.parametrize("raw", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
def test_bad_context_begins_a_new_trace(raw: str) -> None:
    wire = Wire(agent())
    wire.call(("traceparent", raw), ("tracestate", "v=1"), body=ASK)
    served = wire.link().served[0]
    assert TRACE not in served.value("traceparent")
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", served.value("traceparent"))
    assert served.value("tracestate") == ""


@pytest.mark.parametrize(("flags", "sampled"), [("01", True), ("00", False)])
def test_the_parents_choice_of_sampling_stands(flags: str, sampled: bool) -> None:
    wire = Wire(agent())
    wire.call(("traceparent", f"00-{TRACE}-{PARENT}-{flags}"), body=ASK).cancel()
    assert bool(wire.spans[0].flags & SAMPLED) is sampled


def test_a_ratio_of_nothing_samples_no_root() -> None:
    wire = Wire(agent())
    wire.runtime.sampler = parse_sampler("traceidratio", "0")
    wire.apply(agent())
    wire.call(body=ASK).cancel()
    assert not wire.spans[0].flags & SAMPLED


def test_a_span_says_what_happened() -> None:
    wire = Wire(agent(retry=Retry(backoff_ms=10, backoff_multiplier=1.0)))
    wire.call(body=ASK)
    wire.pass_s(0.1)
    wire.link().served[0].refuse(errors.UNAVAILABLE, text="busy")
    wire.pass_s(0.05)
    served = wire.link().served[1]
    wire.pass_s(0.1)
    served.begin()
    served.data(ANSWER)
    wire.pass_s(0.1)
    served.finish()
    span = wire.spans[0]
    assert (span.method, span.agent_id, span.endpoint, span.status) == ("/test.Echo/Unary", "a", "a:1", 0)
    assert (span.request_bytes, span.reply_bytes) == (len(ASK), len(ANSWER))
    assert span.total_us == pytest.approx(350_000, abs=100)
    assert span.first_byte_us == pytest.approx(250_000, abs=100)
    assert [(one.endpoint, one.status) for one in span.attempts] == [("a:1", errors.UNAVAILABLE), ("a:1", 0)]
    assert span.attempts[1].start_us >= 100_000
    assert min(span.total_us, span.connect_us, span.first_byte_us) >= 0
    assert span.admission is None


def test_a_span_says_how_the_call_got_in() -> None:
    wire = Wire(agent(limits=Limits(1)))
    wire.call(body=ASK)
    wire.call(("x-priority", "high"), body=ASK)
    wire.pass_s(0.25)
    wire.link().served[0].reply(ANSWER)
    wire.link().served[1].reply(ANSWER)
    wire.call(("x-priority", "normal"), body=ASK)
    wire.link().served[2].reply(ANSWER)
    assert [span.admission for span in wire.spans] == [None, Admission(250_000, "high"), None]


@pytest.mark.parametrize("how", ["refused", "not grpc", "deadline"])
def test_calls_answered_here_leave_a_span_too(how: str) -> None:
    wire = Wire(agent())
    field = {
        "refused": ("x-agent-id", "nobody"),
        "not grpc": ("content-type", "text/html"),
        "deadline": ("grpc-timeout", "0S"),
    }[how]
    wire.call(field, body=ASK)
    span = wire.spans[0]
    assert (len(wire.spans), span.endpoint, span.attempts) == (1, "", ())
    assert span.error
    assert span.status != 0


def test_tracestate_beyond_its_bounds_is_dropped() -> None:
    wire = Wire(agent())
    wire.call(("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "=,=,=" * 10), body=ASK)
    served = wire.link().served[0]
    assert TRACE in served.value("traceparent")
    served.reply(ANSWER)
    assert wire.spans[0].status == 0


IDS = literal(b"x-outrider-call-id", PARENT.encode()) + literal(b"x-outrider-trace-id", TRACE.encode())
PLAIN_TRACE, DETAILED_TRACE = "1" * 32, "1" * 31 + "0"


def answer_as_ingress(served: Served, status: int = 0) -> None:
    """A reply as an ingress sends it on, or its own refusal."""
    served.answered = True
    served.status = status
    if status:
        served.stream.send_head(reply_head(200, ("grpc-status", str(status))), IDS, True)
    else:
        served.stream.send_head(reply_head(200), IDS)
        served.data(ANSWER)
        served.finish()
    served.flows.flow()


def test_a_reply_through_an_ingress_says_so() -> None:
    wire = Wire(agent())
    for end in (
        lambda served: answer_as_ingress(served),
        lambda served: answer_as_ingress(served, errors.INTERNAL),
        lambda served: served.reply(ANSWER),
    ):
        wire.call(body=ASK)
        end(wire.link().served[-1])
    assert [span.hop for span in wire.spans] == [THROUGH_INGRESS, THROUGH_INGRESS, 0]


def test_a_try_that_failed_at_an_ingress_does_not_count_for_the_answer() -> None:
    wire = Wire(agent("a:1", "b:1", retry=Retry(backoff_ms=0)))
    wire.call(body=ASK)
    answer_as_ingress(wire.served[0], errors.UNAVAILABLE)
    wire.pass_s(0.1)
    wire.served[1].reply(ANSWER)
    assert [span.hop for span in wire.spans] == [0]


def test_what_goes_on_behind_a_caller_is_detached() -> None:
    wire = Wire(agent(optimization=Optimization(cache_enabled=True, cache_methods=(ECHO,))))
    leader, follower = wire.call(body=ASK), wire.call(body=ASK)
    leader.cancel()
    answer_as_ingress(wire.link().served[0])
    assert follower.status == 0
    found = {(span.cache, span.hop) for span in wire.spans}
    assert found == {("miss", 0), ("coalesced", 0), ("", DETACHED | THROUGH_INGRESS)}


def test_the_tenant_is_told() -> None:
    wire = Wire(agent())
    wire.call(("x-tenant-id", "acme"), body=ASK).cancel()
    wire.call(body=ASK).cancel()
    assert [span.tenant for span in wire.spans] == ["acme", ""]


@pytest.mark.parametrize(("trace", "detailed"), [(PLAIN_TRACE, False), (DETAILED_TRACE, True)])
def test_key_and_candidates_of_one_in_sixteen(trace: str, detailed: bool) -> None:
    cached = Optimization(cache_enabled=True, cache_methods=(ECHO,))
    wire = Wire(agent("a:1", "b:1", optimization=cached, balancing=Balancing(strategy="least_request")))
    wire.call(("traceparent", f"00-{trace}-{PARENT}-01"), body=ASK)
    wire.served[0].reply(ANSWER)
    details = wire.spans[0].details
    assert (details is not None) is detailed
    if details is not None:
        assert len(details.cache_key) == 16
        assert sorted(one.split(" ")[0] for one in details.pick) == ["a:1", "b:1"]
        assert all(float(one.split(" ")[1]) > 0 for one in details.pick)


def test_candidates_of_calls_that_failed_or_were_tried_again() -> None:
    wire = Wire(agent("a:1", "b:1", "c:1", retry=Retry(max_attempts=2, backoff_ms=0)))
    for ends in ((errors.INTERNAL,), (errors.UNAVAILABLE, 0)):
        wire.call(("traceparent", f"00-{PLAIN_TRACE}-{PARENT}-01"), body=ASK)
        for status in ends:
            served = next(one for one in wire.served if one.alive)
            served.refuse(status) if status else served.reply(ANSWER)
            wire.pass_s(0.1)
    assert [span.status for span in wire.spans] == [errors.INTERNAL, 0]
    for span in wire.spans:
        assert span.details is not None
        assert len(span.details.pick) == 2


def test_a_single_endpoint_was_compared_with_nothing() -> None:
    wire = Wire(agent())
    wire.call(("traceparent", f"00-{DETAILED_TRACE}-{PARENT}-01"), body=ASK)
    wire.served[0].reply(ANSWER)
    assert wire.spans[0].details is None
