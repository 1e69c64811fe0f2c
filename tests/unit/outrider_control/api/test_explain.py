"""What is read off a call's span: step by step, over everything a sidecar may write and much that it does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from outrider_control.api import convert, explain
from outrider_control.api.explain import Explanation, explain_call, explain_trace
from outrider_control.intake import names, span_view
from outrider_control.intake.span_view import EventView, SpanView
from outrider_sidecar.core import attributes
from outrider_sidecar.core.span import CLIENT, SERVER, Admission, Attempt, Compression, Generation, Span
from outrider_sidecar.engines.otlp import Encoder

START_NS = 1_700_000_000_000_000_000
MUCH_GIVEN_UP = (
    "given up under pressure: context of little relevance was left out, the length of the answer was bounded, "
    "no attempt was made beside a silent one, new_step"
)
WHATS = {"identify", "variant", "cache", "admit", "pick", "attempt", "retry", "hedge", "tokens", "counting"}


def written(**fields: Any) -> SpanView:
    """A span as a sidecar's encoder writes it and the store gives it back."""
    base: dict[str, Any] = {
        "trace_id": b"a" * 32, "span_id": b"b" * 16, "parent_id": b"", "tracestate": b"", "flags": 1, "kind": CLIENT,
        "method": "/tax.Tax/Ask", "agent_id": "tax-eu-001", "endpoint": "10.0.0.1:9001", "start_unix_ns": START_NS,
        "total_us": 12_500, "status": 0,
    }  # fmt: skip
    encoder = Encoder({"service.name": "outrider-sidecar"})
    entry = encoder.span(Span(**(base | fields)))
    request = ExportTraceServiceRequest.FromString(encoder.request([entry]))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    return span_view.view(span_view.pack(b"outrider-sidecar", b"i1", b"outrider", span.SerializeToString()))


def with_attributes(span: SpanView, **more: Any) -> SpanView:
    return span._replace(attributes=span.attributes | {name.replace("__", "."): value for name, value in more.items()})


def steps(explanation: Explanation, what: str) -> list[explain.Step]:
    return [step for step in explanation.steps if step.what == what]


def texts(explanation: Explanation) -> dict[str, str]:
    return {step.what: step.text for step in explanation.steps}


def test_names_are_the_sidecars() -> None:
    assert attributes.NOTES == explain.NOTES
    assert attributes.UNIT == explain.UNIT
    assert attributes.LANE == explain.LANE
    assert attributes.DEGRADED == explain.DEGRADED
    assert attributes.CONNECT_US == explain.CONNECT_US
    assert attributes.ATTEMPT == explain.ATTEMPT
    assert attributes.ATTEMPT_US == explain.ATTEMPT_US
    assert attributes.ATTEMPT_REASON == explain.ATTEMPT_REASON
    assert attributes.CONVERSATION_ID == explain.CONVERSATION_ID


def test_a_plain_call() -> None:
    call = explain_call(written(first_byte_us=4_000, session="s1"))
    assert (call.call_id, call.agent_id, call.method, call.hop) == ("bb" * 8, "tax-eu-001", "/tax.Tax/Ask", "egress")
    assert [step.what for step in call.steps] == ["identify", "pick", "attempt", "counting", "end"]
    said = texts(call)
    assert said["identify"] == "/tax.Tax/Ask for agent tax-eu-001"
    assert said["attempt"] == "one attempt, at 10.0.0.1:9001"
    assert said["counting"] == "counts here: no ingress answered it"
    assert said["end"] == "OK after 12.5 ms, the first chunk after 4.0 ms"
    assert steps(call, "identify")[0].facts["session"] == "s1"


@pytest.mark.parametrize("verdict", ["hit", "stale", "coalesced"])
def test_what_came_from_the_cache_asked_nobody(verdict: str) -> None:
    usage = Generation(model="m", input_tokens=900, output_tokens=100)
    span = with_attributes(
        written(cache=verdict, cache_tier="exact", endpoint="", generation=usage), outrider__cache__key="c0ffee"
    )
    call = explain_call(span, price=lambda _: 5)
    assert [step.what for step in call.steps] == ["identify", "cache", "tokens", "counting", "end"]
    assert steps(call, "cache")[0].facts == {"verdict": verdict, "tier": "exact", "key": "c0ffee"}
    assert "none sent and none paid" in texts(call)["tokens"]
    assert "cost_usd" not in steps(call, "tokens")[0].facts


def test_a_bypass_says_why() -> None:
    call = explain_call(written(cache="bypass", notes=("cache: request over 1 MB", "identify: too_large")))
    assert texts(call)["cache"] == "the cache stepped aside: request over 1 MB"
    assert [step.text for step in steps(call, "note")] == ["cache: request over 1 MB", "identify: too_large"]


def test_candidates_and_the_pick() -> None:
    span = with_attributes(written(), outrider__pick=["10.0.0.1:9001 1.25", "10.0.0.2:9001 80", "junk", "x NaN", 7])
    step = steps(explain_call(span), "pick")[0]
    assert step.text == "compared 10.0.0.1:9001 (1.25), 10.0.0.2:9001 (80); picked 10.0.0.1:9001, the lower score"
    assert step.facts["candidates"] == [
        {"endpoint": "10.0.0.1:9001", "score": 1.25},
        {"endpoint": "10.0.0.2:9001", "score": 80.0},
    ]


def test_retries_are_told_in_order() -> None:
    tries = (Attempt("10.0.0.1:9001", 0, 2_000, 14, "refused"), Attempt("10.0.0.2:9001", 30_000, 5_000, 0))
    call = explain_call(written(attempts=tries, endpoint="10.0.0.2:9001"))
    told = [(step.what, step.text) for step in call.steps if step.what in ("pick", "attempt", "retry", "hedge")]
    assert told == [
        ("pick", "picked 10.0.0.1:9001; the scores of this call were not recorded"),
        ("attempt", "attempt 1 at 10.0.0.1:9001: UNAVAILABLE after 2.0 ms (refused)"),
        ("retry", "tried again: attempt 1 ended with UNAVAILABLE"),
        ("attempt", "attempt 2 at 10.0.0.2:9001: OK after 5.0 ms"),
    ]
    assert [step.at_ms for step in steps(call, "attempt")] == [0.0, 30.0]


def test_a_try_beside_another_is_a_hedge() -> None:
    ended_first = Attempt("b:1", 500_000, 10_000, 0)
    call = explain_call(written(attempts=(ended_first, Attempt("a:1", 0, 511_000, 1))))
    assert [step.what for step in call.steps if step.what in ("attempt", "retry", "hedge")] == [
        "attempt", "hedge", "attempt",
    ]  # fmt: skip
    assert steps(call, "attempt")[0].facts["endpoint"] == "a:1"


def test_tokens_and_cost() -> None:
    usage = Generation(model="m1", input_tokens=12_000, output_tokens=300, cache_read_tokens=9_000)
    priced = explain_call(written(generation=usage, compression=Compression(16_000, 12_000)), price=lambda _: 1_230_000)
    assert texts(priced)["tokens"] == (
        "12,000 in, 300 out, 9,000 of the input from the provider's cache, $0.00123; compression took 4,000 away (m1)"
    )
    assert steps(priced, "tokens")[0].facts["cost_usd"] == pytest.approx(0.00123)
    assert "no price known for m1" in texts(explain_call(written(generation=usage), price=lambda _: None))["tokens"]
    assert "price" not in texts(explain_call(written(generation=usage)))["tokens"]


@pytest.mark.parametrize(
    ("kind", "more", "counts"),
    [
        (SERVER, {}, True),
        (CLIENT, {}, True),
        (CLIENT, {"outrider__hop": "ingress"}, False),
        (CLIENT, {"outrider__detached": True}, False),
        (CLIENT, {"outrider__detached": False}, True),
    ],
)
def test_which_hop_counts(kind: int, more: dict[str, Any], counts: bool) -> None:
    call = explain_call(with_attributes(written(kind=kind), **more))
    assert steps(call, "counting")[0].facts["counts"] is counts


def test_refused_for_load() -> None:
    call = explain_call(written(endpoint="", status=8, error="queue is full"))
    assert texts(call)["admit"] == "refused for load: queue is full"
    call = explain_call(written(endpoint="", status=8, error="sheds", admission=Admission(0, "low", ("shed_low",))))
    assert texts(call)["admit"] == (
        "refused for load in lane low: sheds; given up under pressure: lane low was refused"
    )
    assert steps(call, "admit")[0].facts == {"lane": "low", "degraded": ["shed_low"], "reason": "sheds"}
    call = explain_call(written(endpoint="", status=8, error="late", admission=Admission(2_000, "low")))
    assert texts(call)["admit"] == "waited 2.0 ms for a permit in lane low; refused for load: late"


@pytest.mark.parametrize(
    ("admission", "told", "facts"),
    [
        (Admission(1_500), "waited 1.5 ms for a permit in lane normal", {"queue_ms": 1.5, "lane": "normal"}),
        (Admission(0, "critical"), "got a permit at once in lane critical", {"lane": "critical"}),
        (
            Admission(1_500, "high", ("trim_context", "cap_output", "hedge_off", "new_step")),
            "waited 1.5 ms for a permit in lane high; " + MUCH_GIVEN_UP,
            {"queue_ms": 1.5, "lane": "high", "degraded": ["trim_context", "cap_output", "hedge_off", "new_step"]},
        ),
    ],
)
def test_admission(admission: Admission, told: str, facts: dict[str, Any]) -> None:
    assert steps(explain_call(written(admission=admission)), "admit") == [explain.Step("admit", told, facts)]
    assert not steps(explain_call(written()), "admit")


def test_a_stale_reply_under_pressure_is_not_said_to_be_refreshed() -> None:
    plain = texts(explain_call(written(cache="stale", endpoint="")))
    assert "fetched in the background" in plain["cache"]
    late = texts(explain_call(written(cache="stale", endpoint="", admission=Admission(0, "normal", ("serve_stale",)))))
    assert "none is fetched" in late["cache"]
    assert late["admit"] == "given up under pressure: a reply past its time was served"


def test_a_variant() -> None:
    call = explain_call(written(variant="b", unit="00ff"))
    assert steps(call, "variant")[0].facts == {"variant": "b", "unit": "00ff"}


def test_a_trace_is_its_calls_in_order() -> None:
    outer, inner = written(total_us=9), written(span_id=b"c" * 16, start_unix_ns=START_NS + 5, kind=SERVER)
    foreign = inner._replace(span_id="d" * 16, ours=False, start_ns=START_NS + 6)
    internal = foreign._replace(span_id="e" * 16, kind="internal")
    told = explain_trace([internal, foreign, inner, outer])
    assert [(call.call_id[0], call.hop) for call in told] == [("b", "egress"), ("c", "ingress"), ("d", "foreign")]
    assert texts(told[2])["counting"].startswith("counts as a call only while")


def test_older_conventions_of_the_method() -> None:
    span = written()._replace(attributes={names.RPC_METHOD: "Ask", names.RPC_SERVICE: "tax.Tax"}, service="tax")
    assert (explain.method_of(span), explain.agent_of(span)) == ("/tax.Tax/Ask", "tax")


KNOWN = [text for module in (names, explain) for text in vars(module).values() if isinstance(text, str) and "." in text]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ATTRIBUTES = st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=5), VALUES, max_size=10)
TIMES = st.integers(0, 2**64 - 1)


@given(
    attributes=ATTRIBUTES,
    events=st.lists(st.builds(EventView, st.just(explain.ATTEMPT) | st.text(), TIMES, ATTRIBUTES), max_size=4),
    kind=st.sampled_from(["client", "server", "internal"]),
    ours=st.booleans(),
    start_ns=TIMES,
    end_ns=TIMES,
    text=st.text(max_size=10),
)
def test_anything_is_explained_and_can_be_sent(
    attributes: dict[str, Any], events: list[EventView], kind: str, ours: bool, start_ns: int, end_ns: int, text: str
) -> None:
    span = SpanView(
        "a" * 32, "b" * 16, "", text, kind, text, text, text, ours, start_ns, end_ns, text, text, attributes,
        tuple(events),
    )  # fmt: skip
    call = explain_call(span)
    assert {step.what for step in call.steps} <= WHATS | {"note", "end"}
    assert call.steps[0].what == "identify"
    assert call.steps[-1].what == "end"
    sent = convert.explanation(call)
    assert type(sent).FromString(sent.SerializeToString()) == sent
    assert convert.span(span, "error").SerializeToString()
