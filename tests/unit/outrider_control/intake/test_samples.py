"""From spans to samples: the counting rules on spans as they come over the wire."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from outrider_control.core.sample import Sample, SeriesKey
from outrider_control.intake.hop import Hops
from outrider_control.intake.otlp import Origin, SpanReader
from outrider_control.intake.prices import Prices
from outrider_control.intake.samples import DURATION_MAX_NS, Sampler, contributes, refusal

NOW_MS = 1_763_800_000_000
SERVER, CLIENT, INTERNAL = 2, 3, 1
PRICES = Prices({"m": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}})
OURS = Origin("outrider-sidecar", "i", "", "outrider", 1)
FOREIGN = Origin("billing", "", "", "my.library", -1)


def span(kind: int = CLIENT, total_us: int = 5_000, end_ms: int = NOW_MS, error: bool = False, **given: Any) -> bytes:
    made = Span(trace_id=b"t" * 16, span_id=b"s" * 8, kind=kind, end_time_unix_nano=end_ms * 1_000_000)  # type: ignore[arg-type]
    made.start_time_unix_nano = made.end_time_unix_nano - total_us * 1_000
    if error:
        made.status.code = 2  # type: ignore[assignment]
    for name, value in given.items():
        target = made.attributes.add(key=name.replace("__", ".")).value
        if isinstance(value, str):
            target.string_value = value
        elif isinstance(value, bool):
            target.bool_value = value
        elif isinstance(value, int):
            target.int_value = value
        else:
            target.double_value = value
    return made.SerializeToString()


def sample(
    origin: Origin, data: bytes, offset_ms: int = 0, hops: Hops | None = None, prices: Prices = PRICES
) -> Sample:
    sampler = Sampler(hops or Hops(), prices)
    fields = SpanReader().span(data)
    assert not refusal(fields)
    first = sampler.sample(origin, fields, offset_ms, NOW_MS)
    assert sampler.sample(origin, fields, offset_ms, NOW_MS) == first  # the second time from memory
    return first


GEN: dict[str, Any] = {
    "gen_ai__agent__id": "a",
    "gen_ai__request__model": "m",
    "gen_ai__usage__input_tokens": 100,
    "gen_ai__usage__output_tokens": 10,
}


def changed(values: dict[str, Any]) -> dict[str, Any]:
    return GEN | values


def test_an_egress_call_says_everything():
    found = sample(
        OURS,
        span(
            rpc__method="p.S/M", rpc__response__status_code="UNAVAILABLE", outrider__endpoint="h:1",
            outrider__cache="miss", outrider__cache__tier="exact", outrider__variant="b", outrider__tenant="t",
            outrider__queue_us=7, outrider__first_byte_us=300, outrider__tokens_saved=40, **GEN,
        ),
    )  # fmt: skip
    assert found == Sample(
        SeriesKey("a", "/p.S/M", "b", "h:1", "t"), NOW_MS, True, "UNAVAILABLE", True, False, 5_000, 300, 7, "miss",
        "exact", 100, 10, 0, 0, 0, 40, 120_000, True, False,
    )  # fmt: skip


@pytest.mark.parametrize("verdict", ["hit", "stale", "coalesced"])
def test_tokens_of_replies_from_the_cache_are_not_paid(verdict: str):
    found = sample(OURS, span(outrider__cache=verdict, **GEN))
    assert (found.cached_tokens, found.input_tokens, found.output_tokens, found.cost_nano_usd) == (110, 0, 0, 0)
    assert not found.priced
    assert not found.unpriced
    assert found.call


def test_behind_an_ingress_the_egress_counts_its_verdict_alone():
    found = sample(OURS, span(outrider__hop="ingress", outrider__cache="miss", outrider__first_byte_us=5, **GEN))
    assert not found.call
    assert (found.cache, found.input_tokens, found.priced, found.unpriced) == ("miss", 0, False, False)
    assert found.first_chunk_us == 0
    ingress = sample(OURS, span(SERVER, outrider__cache="miss", **GEN))
    assert ingress.call
    assert (ingress.cache, ingress.input_tokens) == ("", 100)


def test_a_detached_flight_counts_tokens_alone():
    found = sample(OURS, span(outrider__detached=True, outrider__cache="miss", **GEN))
    assert (found.call, found.cache, found.input_tokens, found.priced) == (False, "", 100, True)


def test_what_is_not_priced_says_so():
    for data in (
        span(**changed({"gen_ai__request__model": "no such model of anybody"})),
        span(gen_ai__usage__input_tokens=5),
    ):
        found = sample(OURS, data)
        assert (found.priced, found.unpriced, found.cost_nano_usd) == (False, True, 0)


@pytest.mark.parametrize(
    ("status", "failed", "cancelled"),
    [
        *((name, True, False) for name in ("UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED")),
        *((name, True, False) for name in ("INTERNAL", "UNAVAILABLE", "DATA_LOSS")),
        *((name, False, False) for name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "ABORTED")),
        ("CANCELLED", False, True),
    ],
)
def test_outcomes(status: str, failed: bool, cancelled: bool):
    found = sample(OURS, span(rpc__response__status_code=status, error=status != "OK"))
    assert (found.status, found.failed, found.cancelled) == (status, failed, cancelled)


def test_foreign_spans_count_where_there_is_no_sidecar():
    call = span(SERVER, error=True, rpc__service="p.S", rpc__method="M")
    model = span(INTERNAL, **changed({"gen_ai__response__time_to_first_chunk": 0.25}))
    hops = Hops()
    found = sample(FOREIGN, call, hops=hops)
    assert found.key == SeriesKey("billing", "/p.S/M")
    assert (found.call, found.status, found.failed) == (True, "ERROR", True)
    tokens = sample(FOREIGN, model, hops=hops)
    assert (tokens.key.agent_id, tokens.call, tokens.input_tokens, tokens.first_chunk_us) == ("a", False, 100, 0)
    hops.saw("billing", NOW_MS)
    hops.saw("a", NOW_MS)
    assert not contributes(sample(FOREIGN, call, hops=hops))
    assert not contributes(sample(FOREIGN, model, hops=hops))


def test_older_conventions_are_understood():
    found = sample(FOREIGN, span(SERVER, rpc__grpc__status_code=14, gen_ai__response__time_to_first_chunk=0.25))
    assert (found.status, found.failed, found.first_chunk_us) == ("UNAVAILABLE", True, 250_000)


def test_the_agent_is_the_span_s_else_the_resource_s_else_the_service():
    of_resource = FOREIGN._replace(agent_id="r")
    assert sample(of_resource, span(SERVER, gen_ai__agent__id="a")).key.agent_id == "a"
    assert sample(of_resource, span(SERVER)).key.agent_id == "r"
    assert sample(FOREIGN, span(SERVER)).key.agent_id == "billing"
    assert sample(OURS, span()).key.agent_id == ""  # a sidecar's own name is no agent's
    assert sample(FOREIGN, span(SERVER, gen_ai__agent__id=17)).key.agent_id == "billing"


def test_clocks_are_corrected():
    assert sample(OURS, span(end_ms=NOW_MS + 60_000), offset_ms=60_000).end_ms == NOW_MS
    sampler = Sampler(Hops(), PRICES)
    ahead = SpanReader().span(span(end_ms=NOW_MS + 6_000))
    assert sampler.sample(OURS, ahead, 0, NOW_MS).end_ms == NOW_MS
    assert sampler.skewed == 1
    near = SpanReader().span(span(end_ms=NOW_MS + 4_000))
    assert sampler.sample(OURS, near, 0, NOW_MS).end_ms == NOW_MS + 4_000
    assert sampler.skewed == 1


def test_absurd_counts_are_not_taken():
    found = sample(
        OURS,
        span(
            gen_ai__usage__input_tokens=-5,
            gen_ai__usage__output_tokens=2**62,
            outrider__queue_us=-1,
            gen_ai__agent__id="a",
        ),
    )
    assert (found.input_tokens, found.output_tokens, found.queue_us) == (0, 0, 0)
    assert sample(OURS, span(gen_ai__usage__input_tokens=7.0)).input_tokens == 7
    assert sample(OURS, span(gen_ai__usage__input_tokens="7")).input_tokens == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trace_id": b"t"}, "trace id"),
        ({"trace_id": bytes(16)}, "trace id"),
        ({"span_id": b"s" * 9}, "span id"),
        ({"span_id": bytes(8)}, "span id"),
        ({"start_time_unix_nano": 0}, "no start"),
        ({"end_time_unix_nano": 0}, "no start or no end"),
        ({"start_time_unix_nano": 7, "end_time_unix_nano": 6}, "before the start"),
        ({"start_time_unix_nano": 1, "end_time_unix_nano": DURATION_MAX_NS + 2}, "7 days"),
    ],
)
def test_spans_that_cannot_be_counted_say_why(change: dict[str, Any], reason: str):
    made = Span.FromString(span())
    for name, value in change.items():
        setattr(made, name, value)
    assert reason in refusal(SpanReader().span(made.SerializeToString()))


def test_a_duration_of_zero_is_one():
    assert sample(OURS, span(total_us=0)).total_us == 0


def test_memory_is_bounded():
    sampler, reader = Sampler(Hops(), PRICES), SpanReader()
    for number in range(20_000):
        sampler.sample(OURS, reader.span(span(gen_ai__agent__id=f"agent {number}")), 0, NOW_MS)
    assert len(sampler._facts) <= 16_384
