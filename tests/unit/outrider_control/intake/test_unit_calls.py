"""Which spans say something of a unit, and what."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.trace.v1 import trace_pb2

from outrider_control.core.sample import Sample, SeriesKey
from outrider_control.core.unit_sums import UnitCall
from outrider_control.intake import otlp
from outrider_control.intake.hop import CLIENT, SERVER
from outrider_control.intake.otlp import SpanFields
from outrider_control.intake.prices import Prices
from outrider_control.intake.unit_calls import UnitCalls

PRICES = {"m1": {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0}}
USAGE = {"INPUT_TOKENS": 1_000, "OUTPUT_TOKENS": 100}


def span(kind: int = CLIENT, **values: Any) -> SpanFields:
    slots: list[Any] = [None] * otlp.WIDTH
    for name, value in ({"UNIT": "test=U1", "VARIANT": "test=a"} | values).items():
        slots[getattr(otlp, name)] = value
    return SpanFields(b"t" * 16, b"s" * 8, kind, 1, 2, False, slots)


def sample(**more: Any) -> Sample:
    fields: dict[str, Any] = dict.fromkeys(Sample._fields, 0)
    fields |= {"key": SeriesKey("agent"), "total_us": 5_000, "cache": ""}
    return Sample(**(fields | more))


def calls_of(read: SpanFields, of: Sample, data: bytes = b"", wanted: tuple[str, ...] = ()) -> list[UnitCall]:
    calls = UnitCalls(Prices(PRICES))
    calls.want(wanted)
    return list(calls.of(data, read, of, 1_800_000_000_000))


def test_a_call_of_several_splits_is_one_of_each() -> None:
    found = calls_of(span(UNIT="test=U1,other=U2,seen=U3", VARIANT="other=b,test=a"), sample(failed=True))
    assert [(one.split, one.unit, one.variant) for one in found] == [
        ("test", "U1", "a"), ("other", "U2", "b"), ("seen", "U3", ""),
    ]  # fmt: skip
    assert (found[0].failed, found[0].total_us) == (True, 5_000)


@pytest.mark.parametrize("hop", [None, "ingress"])
@pytest.mark.parametrize(
    ("values", "tokens", "cost_nano_usd"),
    [
        (USAGE | {"REQUEST_MODEL": "m1"}, 1_100, 4_500_000),
        (USAGE | {"REQUEST_MODEL": "other", "RESPONSE_MODEL": "m1"}, 1_100, 4_500_000),
        (USAGE | {"REQUEST_MODEL": "nobody-sells-it"}, 1_100, None),
        (USAGE, 1_100, None),
        ({"REQUEST_MODEL": "m1", "OUTPUT_TOKENS": 100}, 100, 1_500_000),
        ({"REQUEST_MODEL": "m1"}, None, None),
    ],
)
def test_what_a_call_used_is_its_spans_whoever_counts_it_else(
    values: dict[str, Any], tokens: int | None, cost_nano_usd: int | None, hop: str | None
) -> None:
    (found,) = calls_of(span(HOP=hop, **values), sample(call=hop is None))
    assert (found.tokens, found.cost_nano_usd) == (tokens, cost_nano_usd)


def test_a_reply_from_the_cache_costs_nothing() -> None:
    (found,) = calls_of(span(REQUEST_MODEL="m1", **USAGE), sample(cache="hit"))
    assert (found.tokens, found.cost_nano_usd) == (0, 0)


@pytest.mark.parametrize(
    ("values", "first_chunk_us"),
    [({"FIRST_BYTE_US": 700}, 700), ({"FIRST_CHUNK_S": 0.25}, 250_000), ({}, 0), ({"FIRST_BYTE_US": -1}, 0)],
)
def test_the_first_chunk_is_its_spans(values: dict[str, Any], first_chunk_us: int) -> None:
    (found,) = calls_of(span(HOP="ingress", **values), sample())
    assert found.first_chunk_us == first_chunk_us


@pytest.mark.parametrize(
    ("read", "of"),
    [
        (span(SERVER), sample()),
        (span(DETACHED=True), sample()),
        (span(), sample(cancelled=True)),
        (span(UNIT=7), sample()),
        (span(UNIT="no pair"), sample()),
        (span(UNIT="=u,x="), sample()),
    ],
)
def test_what_says_nothing_of_a_unit(read: SpanFields, of: Sample) -> None:
    assert calls_of(read, of) == []


def test_wanted_attributes_that_are_numbers_are_read() -> None:
    made = trace_pb2.Span()
    for key, value in (("turns", 3), ("other", 4)):
        made.attributes.add(key=key).value.int_value = value
    made.attributes.add(key="share").value.double_value = 0.5
    made.attributes.add(key="name").value.string_value = "x"
    made.attributes.add(key="yes").value.bool_value = True
    (found,) = calls_of(span(), sample(), made.SerializeToString(), ("turns", "share", "name", "yes"))
    assert found.attributes == {"turns": 3.0, "share": 0.5}


def test_many_splits_are_bounded() -> None:
    units = ",".join([f"s{at}=u" for at in range(50)])
    assert len(calls_of(span(UNIT=units), sample())) == 8
