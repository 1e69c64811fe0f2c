"""What a cell lets pass, over any window and whatever becomes of its rate; and the bound of a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.engines.gcra import Cell, Table

NOW = 1_000.0
EPSILON = 1e-6

gaps_s = st.one_of(st.just(0.0), st.floats(0.0, 0.5), st.floats(0.0, 30.0))
rates = st.floats(0.05, 500.0)
bursts_s = st.floats(0.1, 30.0)


def passes(cell: Cell, cost: float, now: float) -> bool:
    if cell.wait_s(cost, now) > 0.0:
        return False
    cell.take(cost, now)
    return True


def test_a_burst_at_once_then_one_an_interval() -> None:
    cell = Cell(2.0, 5.0, NOW)
    assert sum(passes(cell, 1, NOW) for _ in range(50)) == 10
    assert cell.wait_s(1, NOW) == pytest.approx(0.5)
    assert not passes(cell, 1, NOW + 0.49)
    assert passes(cell, 1, NOW + 0.5)
    assert not passes(cell, 1, NOW + 0.5)
    assert sum(passes(cell, 1, NOW + 100) for _ in range(50)) == 10


def test_asking_takes_nothing() -> None:
    cell = Cell(1.0, 3.0, NOW)
    for _ in range(10):
        assert cell.wait_s(3, NOW) == 0.0
    assert cell.room(NOW) == pytest.approx(3.0)
    assert cell.is_full(NOW)


def test_a_call_larger_than_a_burst_passes_a_full_cell_and_is_paid_off() -> None:
    cell = Cell(1.0, 0.5, NOW)
    assert passes(cell, 1, NOW)
    assert cell.room(NOW) == pytest.approx(-0.5)
    assert cell.wait_s(1, NOW) == pytest.approx(1.0)
    assert passes(cell, 1, NOW + 1.0)
    assert passes(cell, 100, NOW + 2.0)
    assert cell.wait_s(0.1, NOW + 2.0) == pytest.approx(99.6)


def test_settling_gives_back_or_takes_the_difference() -> None:
    cell = Cell(10.0, 10.0, NOW)
    cell.take(80.0, NOW)
    cell.settle(80.0, 30.0, NOW)
    assert cell.room(NOW) == pytest.approx(70.0)
    cell.settle(0.0, 100.0, NOW)
    assert cell.room(NOW) == pytest.approx(-30.0)
    cell.settle(500.0, 0.0, NOW)
    assert cell.room(NOW) == pytest.approx(100.0)  # never more than a burst


def test_another_rate_keeps_the_room_up_to_the_new_burst() -> None:
    cell = Cell(10.0, 10.0, NOW)
    cell.take(80.0, NOW)
    cell.configure(100.0, 10.0, NOW)
    assert cell.room(NOW) == pytest.approx(20.0)
    assert cell.room(NOW + 1) == pytest.approx(120.0)
    cell.configure(1.0, 10.0, NOW)
    assert cell.room(NOW) == pytest.approx(10.0)
    cell.take(15.0, NOW)
    cell.configure(10.0, 1.0, NOW)
    assert cell.room(NOW) == pytest.approx(-5.0)


def test_time_that_steps_back_gives_nothing() -> None:
    cell = Cell(1.0, 2.0, NOW)
    assert sum(passes(cell, 1, NOW) for _ in range(5)) == 2
    assert not passes(cell, 1, NOW - 50)
    assert not passes(cell, 1, NOW + 0.5)


@given(rates, bursts_s, st.lists(st.tuples(gaps_s, st.floats(0.01, 20.0)), min_size=1, max_size=60))
def test_no_window_lets_more_pass(rate: float, burst_s: float, steps: list[tuple[float, float]]) -> None:
    cell, now, taken = Cell(rate, burst_s, NOW), NOW, [(NOW, 0.0)]
    for gap_s, cost in steps:
        now += gap_s
        if passes(cell, cost, now):
            taken.append((now, cost))
    for first in range(len(taken)):
        total = most = 0.0
        for at, cost in taken[first:]:
            total += cost
            most = max(most, cost)
            assert total <= max(rate * burst_s, most) + rate * (at - taken[first][0]) + EPSILON * total + EPSILON


@given(rates, bursts_s, st.floats(0.01, 20.0), st.floats(1.0, 200.0))
def test_at_least_the_rate_passes(rate: float, burst_s: float, cost: float, seconds: float) -> None:
    """Somebody who always comes at the time it was told gets the whole rate."""
    cell, now, total = Cell(rate, burst_s, NOW), NOW, 0.0
    for _ in range(3_000):
        wait_s = cell.wait_s(cost, now)
        assert wait_s <= max(cost / rate, burst_s) + EPSILON
        now += wait_s
        if now > NOW + seconds:
            break
        assert passes(cell, cost, now)
        total += cost
    assert total >= rate * min(seconds, now - NOW) - cost - EPSILON


@given(
    st.floats(1.0, 100.0),
    st.floats(0.1, 20.0),
    st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.01, 1.0), st.integers(0, 40)), min_size=1, max_size=30),
)
def test_rate_moved_between_cells_lets_no_more_pass_in_sum(
    rate: float, burst_s: float, steps: list[tuple[float, float, int]]
) -> None:
    now = NOW
    cells = [Cell(rate / 2, burst_s, now), Cell(rate / 2, burst_s, now)]
    passed = 0.0
    for gap_s, share, asked in steps:
        now += gap_s
        for cell, part in zip(cells, sorted((share * 0.98 + 0.01, 0.99 - share * 0.98)), strict=True):
            cell.configure(rate * part, burst_s, now)
        cells.reverse()
        passed += sum(passes(cell, 0.25, now) for cell in cells for _ in range(asked)) * 0.25
        assert passed <= rate * (burst_s + now - NOW) + 2 * 0.25 + EPSILON * passed


def test_a_table_drops_what_is_full_again_first() -> None:
    table = Table(3)
    for at, name in enumerate((b"a", b"b", b"c")):
        table.add(name, Cell(1.0, 5.0, NOW + at), NOW + at)
        cell = table.get(name)
        assert cell is not None
        cell.take(2.0, NOW + at)
    table.add(b"d", Cell(1.0, 5.0, NOW + 2.5), NOW + 2.5)  # a is full again
    assert (table.get(b"a"), len(table), table.evicted) == (None, 3, 0)
    assert table.get(b"b") is not None


def test_past_its_bound_a_table_drops_the_one_used_longest_ago() -> None:
    table = Table(100)
    for number in range(1_000):
        cell = Cell(0.01, 5.0, NOW)
        cell.take(1.0, NOW)
        table.add(b"%d" % number, cell, NOW)
        table.get(b"0")
    assert (len(table), table.evicted) == (100, 900)
    assert table.get(b"0") is not None
    assert table.get(b"899") is None
    assert {key for key, _ in table.items()} == {b"0", *[b"%d" % number for number in range(901, 1_000)]}
