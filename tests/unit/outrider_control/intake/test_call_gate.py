"""Which calls are remembered: those of ours and foreign ones that count, with a unit before others."""

from __future__ import annotations

from typing import Any

import pytest

from outrider_control.core.call_record import CALLER, OTHER_HOP, CallRecord
from outrider_control.core.sample import Sample
from outrider_control.intake.call_gate import CallGate
from outrider_control.intake.hop import CLIENT, SERVER
from outrider_control.intake.otlp import DETACHED, UNIT, WIDTH, SpanFields
from tests.operator_server import NOW_MS, sample

UNITS = f"exp={'f' * 32}"


def span(kind: int = CLIENT, **values: Any) -> SpanFields:
    slots: list[Any] = [None] * WIDTH
    slots[UNIT] = values.get("unit")
    slots[DETACHED] = values.get("detached")
    return SpanFields(b"t" * 16, b"c" * 8, kind, 0, 0, False, slots)


def taken(gate: CallGate, ours: bool, read: SpanFields, of: Sample) -> list[CallRecord]:
    calls: list[CallRecord] = []
    gate.take(ours, read, of, calls)
    return calls


@pytest.fixture
def gate() -> CallGate:
    made = CallGate(per_s=1.0)
    made.begin(NOW_MS)
    return made


def test_what_is_remembered_of_a_call(gate: CallGate) -> None:
    of = sample("tax", NOW_MS, variant="exp=B", tenant="t1", total_us=250_000)
    expected = CallRecord(b"c" * 8, b"t" * 16, NOW_MS - 250, CALLER, "tax", "exp=B", "t1", UNITS)
    assert taken(gate, True, span(unit=UNITS), of) == [expected]
    assert taken(gate, True, span(SERVER), of) == [expected._replace(rank=OTHER_HOP, units="")]


@pytest.mark.parametrize(
    ("ours", "read", "of", "expected"),
    [
        (True, span(), sample("tax", call=False), 1),  # an ingress counts it; the caller knows this one's id
        (True, span(detached=True), sample("tax"), 0),
        (True, span(kind=1), sample("tax"), 0),
        (True, span(), sample(""), 0),  # refused before an agent was known
        (False, span(SERVER), sample("tax"), 1),
        (False, span(SERVER), sample("tax", call=False), 0),
        (True, span(unit=7), sample("tax"), 1),
    ],
)
def test_which_spans_are_calls(gate: CallGate, ours: bool, read: SpanFields, of: Sample, expected: int) -> None:
    assert len(taken(gate, ours, read, of)) == expected
    assert gate.refused == 0


def test_past_the_rate_calls_with_a_unit_still_come_through(gate: CallGate) -> None:
    plain = [len(taken(gate, True, span(), sample("tax"))) for _ in range(15)]
    assert (sum(plain), gate.refused) == (10, 5)
    with_unit = [len(taken(gate, True, span(unit=UNITS), sample("tax"))) for _ in range(60)]
    assert (sum(with_unit), gate.refused) == (50, 15)
    gate.begin(NOW_MS + 2_000)
    assert sum(len(taken(gate, True, span(), sample("tax"))) for _ in range(5)) == 2
    gate.begin(NOW_MS - 60_000)  # a clock that jumps back
    gate.begin(NOW_MS + 1_000_000)
    assert sum(len(taken(gate, True, span(), sample("tax"))) for _ in range(20)) == 10
