"""Figures: what is read from them, merging, bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.figures import MAX_NAMES, Figures, FiguresSum, merged
from outrider_control.core.sample import OTHER
from tests.figure_samples import same, sample, some, together


def test_calls_by_outcome() -> None:
    figures = together(
        [
            *[sample()] * 6,
            *[sample(status="UNAVAILABLE", failed=True)] * 2,
            sample(status="NOT_FOUND"),
            *[sample(status="CANCELLED", cancelled=True)] * 3,
        ]
    )
    assert (figures.requests, figures.errors, figures.cancelled) == (12, 2, 3)
    assert figures.success_rate == pytest.approx(7 / 9)
    assert figures.error_rate == pytest.approx(2 / 9)
    assert figures.statuses == {"UNAVAILABLE": 2, "NOT_FOUND": 1, "CANCELLED": 3}


def test_a_hop_that_does_not_count_the_call_adds_its_cache_queue_and_tokens_alone() -> None:
    figures = together([sample(call=False, status="UNAVAILABLE", failed=True, cache="miss", tier="llm", queue_us=40)])
    assert (figures.requests, figures.errors, figures.statuses, figures.total) == (0, 0, None, None)
    assert figures.verdicts == {"miss": 1}
    assert figures.queue_us(0.5) == [40]


def test_hit_rates() -> None:
    verdicts = [("hit", "llm")] * 3 + [("stale", "tool")] + [("coalesced", "llm")] + [("miss", "llm")] * 4
    verdicts += [("miss", "tool")] + [("bypass", "llm")] * 10
    figures = together([sample(cache=verdict, tier=tier) for verdict, tier in verdicts])
    assert figures.hit_rate == 0.5
    assert figures.hit_rates == {"llm": 0.5, "tool": 0.5}
    assert figures.verdicts == {"hit": 3, "stale": 1, "coalesced": 1, "miss": 5, "bypass": 10}


def test_the_wait_is_over_all_calls() -> None:
    figures = together([sample()] * 90 + [sample(queue_us=3_000)] * 10)
    assert figures.queue_us(0.5, 0.95) == [0.0, 3_000.0]
    assert together([sample()]).queue_us(0.95) == [0.0]


def test_tokens_and_cost() -> None:
    paid = sample(input_tokens=100, output_tokens=20, cache_read_tokens=40, cost_nano_usd=1_500, priced=True)
    unknown = sample(input_tokens=7, output_tokens=1, unpriced=True)
    served = sample(cache="hit", tier="llm", cached_tokens=120)
    figures = together([paid, paid, unknown, served, sample(saved_tokens=9)])
    assert (figures.input_tokens, figures.output_tokens, figures.cache_read_tokens) == (207, 41, 80)
    assert (figures.cached_tokens, figures.saved_tokens, figures.unpriced) == (120, 9, 1)
    assert figures.cost_usd == pytest.approx(3e-6)


def test_what_is_not_known_is_none_and_not_zero() -> None:
    empty = Figures()
    assert (empty.success_rate, empty.error_rate, empty.hit_rate, empty.cost_usd, empty.mean_us) == (None,) * 5
    assert empty.total_us(0.5, 0.99) == empty.first_chunk_us(0.5, 0.99) == empty.queue_us(0.5, 0.99) == [None, None]
    assert together([sample(unpriced=True, input_tokens=5)]).cost_usd is None
    assert together([sample(status="CANCELLED", cancelled=True)]).success_rate is None


@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 5))
def test_merging_in_any_order_is_adding(seed: int, count: int, parts: int) -> None:
    rng = random.Random(seed)
    samples = some(rng, count)
    pieces = [together(samples[number::parts]) for number in range(parts)]
    rng.shuffle(pieces)
    assert same(merged(pieces), together(samples))
    left = merged([merged(pieces[: parts // 2]), merged(pieces[parts // 2 :])])
    assert same(left, together(samples))


@given(st.integers(0, 2**32), st.integers(0, 60))
def test_bytes_hold_everything(seed: int, count: int) -> None:
    figures = together(some(random.Random(seed), count))
    figures.dropped = seed
    back = Figures.decode(figures.encode())
    assert same(back, figures)
    back.merge(figures)
    assert back.requests == 2 * figures.requests


def test_absent_parts_cost_nothing() -> None:
    assert len(Figures().encode()) <= 8
    assert len(together([sample()]).encode()) < 64


@given(st.binary(max_size=120))
def test_junk_is_a_value_error(junk: bytes) -> None:
    try:
        Figures.decode(junk).encode()
    except ValueError:
        pass


@given(st.integers(0, 2**32), st.data())
def test_damage_is_a_value_error_or_figures_that_work(seed: int, data: st.DataObject) -> None:
    encoded = bytearray(together(some(random.Random(seed), 8)).encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        figures = Figures.decode(bytes(encoded))
    except ValueError:
        return
    merged([figures, figures]).encode()
    Figures.decode(figures.encode())


def test_names_are_bounded_and_nothing_is_lost() -> None:
    figures = together([sample(status=f"CODE_{number}", cache="miss", tier=f"t{number}") for number in range(1_000)])
    assert figures.statuses is not None
    assert len(figures.statuses) == MAX_NAMES + 1
    assert sum(figures.statuses.values()) == 1_000
    assert figures.statuses[OTHER] == 1_000 - MAX_NAMES
    assert sum(figures.verdicts.values()) == 1_000
    assert same(Figures.decode(figures.encode()), figures)


@pytest.mark.parametrize("name", ["a\0b", "x" * 65, "\ud800", "a\nb"])
def test_odd_names_are_counted_under_other(name: str) -> None:
    figures = together([sample(status=name, cache="hit", tier=name)])
    assert figures.statuses == {OTHER: 1}
    assert same(Figures.decode(figures.encode()), figures)


def test_a_negative_duration_is_refused_and_changes_nothing() -> None:
    figures = together([sample()])
    before = figures.encode()
    with pytest.raises(ValueError, match="0 and more"):
        figures.add(sample(total_us=-1, status="UNAVAILABLE", failed=True))
    assert figures.encode() == before


def test_absurd_tokens_do_not_stop_the_bytes() -> None:
    figures = together([sample(input_tokens=2**70, output_tokens=-5, priced=True)])
    back = Figures.decode(figures.encode())
    assert (back.input_tokens, back.output_tokens, back.requests) == (2**64 - 1, 0, 1)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 40), max_size=6))
def test_adding_up_bytes_is_merging(seed: int, counts: list[int]) -> None:
    rng = random.Random(seed)
    parts = [together(some(rng, count)) for count in counts]
    summing = FiguresSum()
    for part in parts:
        summing.add(part.encode())
    found = summing.figures()
    assert same(found, merged(parts))
    found.merge(found)
    assert found.requests == 2 * merged(parts).requests


@given(st.integers(0, 2**32), st.data())
def test_adding_up_damaged_bytes_is_a_value_error_or_works(seed: int, data: st.DataObject) -> None:
    encoded = bytearray(together(some(random.Random(seed), 8)).encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    summing = FiguresSum()
    try:
        summing.add(bytes(encoded))
        summing.add(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))
    except ValueError:
        return
    summing.figures()
