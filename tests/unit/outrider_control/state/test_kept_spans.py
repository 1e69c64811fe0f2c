"""Spans that were kept, on both stores."""

from __future__ import annotations

import random

from outrider_control.state import kept_spans
from outrider_control.state.database import Database
from outrider_control.state.kept_spans import LISTED_SPANS, KeptSpan
from tests.figure_samples import NOW_MS


def span(trace: int, number: int = 0, **fields) -> KeptSpan:
    start_ms = NOW_MS + trace * 1_000 + number
    plain = KeptSpan(f"{trace:032x}", f"{trace * 1000 + number:016x}", "tax", start_ms, 5_000, False, "sampled", b"\1")
    return plain._replace(**fields)


def test_a_trace_is_found_by_its_id_and_by_a_call_of_it(database: Database) -> None:
    spans = [span(7, number) for number in range(5)]
    shuffled = random.Random(1).sample(spans, 5)
    database.write_now(kept_spans.put, [*shuffled, span(8)])
    assert database.read_now(kept_spans.trace, f"{7:032x}") == spans
    assert database.read_now(kept_spans.trace, spans[3].span_id.upper()) == spans
    assert database.read_now(kept_spans.trace, "f" * 32) == []
    assert database.read_now(kept_spans.trace, "f" * 16) == []


def test_a_span_is_kept_once(database: Database) -> None:
    database.write_now(kept_spans.put, [span(1), span(1, failed=True), span(2)])
    database.write_now(kept_spans.put, [span(1, kept="slow"), span(3)])
    database.write_now(kept_spans.put, [])
    (kept,) = database.read_now(kept_spans.trace, f"{1:032x}")
    assert kept.kept == "sampled"
    assert len(database.read_now(kept_spans.traces, 0)) == 3


def test_lists(database: Database) -> None:
    spans = [span(trace, number) for trace in range(10) for number in range(3)]
    spans += [span(3, 9, failed=True, kept="error"), span(4, 9, agent_id="law"), span(5, 9, duration_us=3_000_000)]
    database.write_now(kept_spans.put, spans)

    def listed(*arguments, **named) -> list[int]:
        return [int(found.trace_id, 16) for found in database.read_now(kept_spans.traces, *arguments, **named)]

    assert listed(0) == list(range(9, -1, -1))
    assert listed(0, limit=2) == [9, 8]
    assert listed(NOW_MS + 8_000) == [9, 8]
    assert listed(0, errors=True) == [3]
    assert listed(0, agent_id="law") == [4]
    assert listed(0, min_us=1_000_000) == [5]
    assert listed(0, agent_id="law", errors=True) == []
    (found,) = database.read_now(kept_spans.traces, 0, errors=True)
    assert found.count == 4
    assert found.spans == [*(span(3, number) for number in range(3)), span(3, 9, failed=True, kept="error")]


def test_a_list_holds_the_first_spans_of_a_long_trace(database: Database) -> None:
    database.write_now(kept_spans.put, [span(1, number) for number in range(LISTED_SPANS + 30)])
    (found,) = database.read_now(kept_spans.traces, 0)
    assert found.count == LISTED_SPANS + 30
    assert found.spans == [span(1, number) for number in range(LISTED_SPANS)]


def test_the_outermost_of_two_that_start_together_is_first(database: Database) -> None:
    inner, outer = span(1, 0), span(1, 1, start_ms=span(1).start_ms, duration_us=90_000)
    database.write_now(kept_spans.put, [inner, outer])
    assert database.read_now(kept_spans.trace, inner.trace_id) == [outer, inner]
    (found,) = database.read_now(kept_spans.traces, 0)
    assert found.spans == [outer, inner]


def test_old_ones_go_and_so_does_what_is_too_much(database: Database) -> None:
    database.write_now(kept_spans.put, [span(trace) for trace in range(10)])
    assert database.write_now(kept_spans.prune, NOW_MS + 3_000) == 3
    assert database.write_now(kept_spans.prune, 0, 4) == 3
    assert [int(found.trace_id, 16) for found in database.read_now(kept_spans.traces, 0)] == [9, 8, 7, 6]
    assert database.write_now(kept_spans.prune, 0, 4) == 0


def test_odd_values_do_not_stop_the_others(database: Database) -> None:
    odd = span(1, agent_id="a\0\ud800b", start_ms=-5, duration_us=2**80, kept="x" * 99)
    database.write_now(kept_spans.put, [odd, span(2)])
    (found,) = database.read_now(kept_spans.trace, odd.trace_id)
    assert (found.agent_id, found.start_ms, len(found.kept)) == ("a?b", 0, 32)
    assert len(database.read_now(kept_spans.traces, 0)) == 2
