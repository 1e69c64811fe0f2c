"""Which spans are kept."""

from __future__ import annotations

import random
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from outrider_control.intake.otlp import Origin
from outrider_control.intake.span_view import view
from outrider_control.intake.tail import Tail, TailPolicy, TailSpan
from outrider_control.state.kept_spans import KeptSpan

NOW_MS = 1_763_800_000_000
NEVER = b"\xff" * 16  # a trace id no share falls upon
ORIGIN = Origin("service", "instance", "", "outrider", 1)


def span(trace_id: bytes = NEVER, number: int = 0, **fields: Any) -> TailSpan:
    span_id = number.to_bytes(8, "big")
    otlp = Span(trace_id=trace_id, span_id=span_id, name=f"span {number}").SerializeToString()
    made = TailSpan(trace_id, span_id, "a", NOW_MS, 1_000, False, True, True, "", ORIGIN, otlp)
    return made._replace(**fields)


def observe(tail: Tail, *spans: TailSpan, now_ms: int = NOW_MS) -> list[KeptSpan]:
    kept: list[KeptSpan] = []
    for one in spans:
        tail.observe(one, now_ms, kept)
    return kept


def why(kept: list[KeptSpan]) -> list[tuple[str, str]]:
    return [(view(one.span).name, one.kept) for one in kept]


def test_nothing_speaks_for_an_ordinary_span():
    assert observe(Tail(TailPolicy(share=0)), span()) == []


def test_an_error_keeps_its_trace_before_and_after():
    tail = Tail(TailPolicy(share=0))
    kept = observe(tail, span(number=1), span(b"\xfe" * 16, 9), span(number=2, failed=True), span(number=3))
    assert why(kept) == [("span 1", "error"), ("span 2", "error"), ("span 3", "error")]
    (later,) = observe(tail, span(number=4), now_ms=NOW_MS + 59_000)
    assert (later.trace_id, later.span_id, later.agent_id) == ("ff" * 16, "0000000000000004", "a")
    assert observe(tail, span(b"\xfe" * 16, 10), now_ms=NOW_MS + 59_000) == []


def test_spans_longer_ago_are_gone():
    tail = Tail(TailPolicy(share=0))
    observe(tail, span(number=1))
    observe(tail, span(b"\xfe" * 16, 2), now_ms=NOW_MS + 10_000)
    observe(tail, span(b"\xfe" * 16, 3), now_ms=NOW_MS + 20_000)
    assert why(observe(tail, span(number=4, failed=True), now_ms=NOW_MS + 20_001)) == [("span 4", "error")]


def test_a_kept_trace_is_forgotten_in_time():
    tail = Tail(TailPolicy(share=0))
    observe(tail, span(failed=True))
    for minutes in (1, 2, 3):
        observe(tail, span(bytes([minutes]) * 16, 1, failed=True), now_ms=NOW_MS + minutes * 60_000)
    assert observe(tail, span(number=2), now_ms=NOW_MS + 180_001) == []


def test_slow_is_relative_to_the_agent():
    tail = Tail(TailPolicy(share=0))
    assert why(observe(tail, span(duration_us=2_100_000))) == [("span 0", "slow")]  # nothing is known yet
    draw = random.Random(1)
    observe(tail, *(span(draw.randbytes(16), 1, duration_us=draw.randrange(900_000, 1_000_000)) for _ in range(500)))
    assert observe(tail, span(b"\xfd" * 16, 2, duration_us=2_100_000)) == []  # 3 x 1 s is not reached
    assert why(observe(tail, span(b"\xfc" * 16, 3, duration_us=4_000_000))) == [("span 3", "slow")]
    # Spans of an agent's inside have no percentile to be held against.
    assert observe(tail, span(b"\xfb" * 16, 4, duration_us=9_000_000, counted=False, ours=False)) == []


def test_the_running_percentile_is_near_the_exact_one():
    draw = random.Random(2)
    tail = Tail(TailPolicy(share=0))
    durations = sorted(int(draw.lognormvariate(13, 1)) for _ in range(3_000))
    shuffled = draw.sample(durations, len(durations))
    observe(tail, *(span(draw.randbytes(16), duration_us=duration) for duration in shuffled))
    exact = durations[int(len(durations) * 0.95)]
    assert 0.8 * exact <= tail._durations["a"].p95_us <= 1.3 * exact


def test_variants_and_ratings_are_kept():
    tail = Tail(TailPolicy(share=0))
    assert why(observe(tail, span(variant="b"))) == [("span 0", "variant")]
    observe(tail, span(b"\xfe" * 16, 1))
    assert why(tail.mark(b"\xfe" * 16, NOW_MS)) == [("span 1", "rated")]
    assert why(observe(tail, span(b"\xfe" * 16, 2))) == [("span 2", "rated")]


def test_the_share_is_by_trace_id_and_the_same_everywhere():
    draw = random.Random(3)
    ids = [draw.randbytes(16) for _ in range(20_000)]
    policy = TailPolicy(share=0.05, max_per_s=1e9)
    kept = {one.trace_id for one in observe(Tail(policy), *(span(one) for one in ids))}
    again = {one.trace_id for one in observe(Tail(policy), *(span(one) for one in reversed(ids)))}
    assert kept == again
    assert 0.04 < len(kept) / len(ids) < 0.06
    assert len(observe(Tail(TailPolicy(share=1, max_per_s=1e9)), *(span(one) for one in ids))) == len(ids)


def test_an_error_storm_stays_within_its_budget_and_leaves_the_others_theirs():
    draw = random.Random(4)
    tail = Tail(TailPolicy(share=0, max_per_s=100, burst_s=10))
    kept = observe(tail, *(span(draw.randbytes(16), failed=True) for _ in range(10_000)))
    assert len(kept) == 100  # each trace takes one to begin and one for its span, of 100 / 5 reasons x 10 s
    assert tail.counts["over_budget"] == 9_900
    assert why(observe(tail, span(variant="b"))) == [("span 0", "variant")]
    assert len(observe(tail, *(span(draw.randbytes(16), failed=True) for _ in range(99)), now_ms=NOW_MS + 1_000)) == 10


def test_memory_is_bounded():
    draw = random.Random(5)
    policy = TailPolicy(share=0, ring_bytes=100_000, traces=1_000, max_per_s=1e9)
    tail = Tail(policy)
    for number in range(30_000):
        one = span(draw.randbytes(16), agent_id=f"agent {number}", failed=number % 3 == 0)
        observe(tail, one, now_ms=NOW_MS + number // 10)
    held = [*tail._ring.values(), *tail._ring_before.values()]
    assert sum(len(one.span) + 400 for spans in held for one in spans) <= policy.ring_bytes + 1_000
    assert len(tail._kept) + len(tail._kept_before) <= policy.traces
    assert len(tail._durations) <= 1_001


def test_a_span_that_cannot_be_shown_is_counted_and_not_kept():
    tail = Tail(TailPolicy(share=0))
    assert observe(tail, span(failed=True, span=b"\x2a\x02\xff\xfe")) == []  # a name that is not UTF-8
    assert tail.counts["unreadable"] == 1
