"""The log of sessions: what is written is read, whatever is torn or damaged between."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_sidecar.engines.session_log import MARK, Clocks, encode_clocks, encode_unit, read

START = Clocks("boot", 1_000.0, 50.0)
LATER = Clocks("boot", 1_100.0, 150.0)
A = (("x", "A"), ("y", ""))

held = st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=3).map(tuple)
units = st.lists(st.tuples(st.binary(max_size=20), held, st.floats(50, 150)), max_size=20)


def found(data: bytes, now: Clocks = LATER) -> dict[bytes, object]:
    return {unit.key: unit.held for unit in read(data, now).units}


@given(units)
def test_what_is_written_is_read_the_newest_counts(
    rows: list[tuple[bytes, tuple[tuple[str, str], ...], float]],
) -> None:
    data = encode_clocks(START) + b"".join([encode_unit(*row) for row in rows])
    log = read(data, LATER)
    assert (log.lost, log.records) == (0, len(rows) + 1)
    assert {unit.key: unit.held for unit in log.units} == {key: held for key, held, _ in rows}
    idle = [unit.idle_s for unit in log.units]
    assert idle == sorted(idle, reverse=True)


@settings(max_examples=200, deadline=None)
@given(units, st.data())
def test_damage_costs_what_it_hits_alone(
    rows: list[tuple[bytes, tuple[tuple[str, str], ...], float]], data: st.DataObject
) -> None:
    """Cut anywhere, with anything between: as when a process is killed in a write and the next one appends."""
    rows = [(b"%d" % at, held, seen_at) for at, (_, held, seen_at) in enumerate(rows)]
    records = [encode_clocks(START), *[encode_unit(*row) for row in rows]]
    hit = data.draw(st.integers(0, len(records) - 1))
    torn = records[hit][: data.draw(st.integers(0, len(records[hit]) - 1))] + data.draw(st.binary(max_size=30))
    log = read(b"".join([*records[:hit], torn, *records[hit + 1 :]]), LATER)
    kept = {unit.key for unit in log.units}
    whole = {key for at, (key, _, _) in enumerate(rows) if at + 1 != hit}
    assert kept - {b"%d" % (hit - 1)} == whole


@given(st.binary(max_size=400))
def test_no_bytes_break_it(data: bytes) -> None:
    read(data, LATER)
    read(encode_clocks(START) + data + MARK + encode_unit(b"1", A, 60.0), LATER)


def test_a_flipped_bit_is_noticed() -> None:
    record = bytearray(encode_unit(b"1", A, 60.0))
    for at in range(len(record)):
        record[at] ^= 1
        assert found(encode_clocks(START) + bytes(record)) == {}
        record[at] ^= 1
    assert found(encode_clocks(START) + bytes(record)) == {b"1": A}


def idle_s(data: bytes, now: Clocks) -> float:
    (unit,) = read(data, now).units
    return unit.idle_s


LOG = encode_clocks(START) + encode_unit(b"1", A, 60.0)


@pytest.mark.parametrize("wall_s", [1_100.0, 0.0, 10.0**9])
def test_within_a_boot_the_wall_clock_means_nothing(wall_s: float) -> None:
    assert idle_s(LOG, Clocks("boot", wall_s, 150.0)) == 90.0


def test_across_boots_the_wall_clock_counts_and_one_that_went_back_makes_nobody_older() -> None:
    assert idle_s(LOG, Clocks("next", 1_100.0, 3.0)) == 90.0  # seen at 1,010 by the wall
    assert idle_s(LOG, Clocks("next", 500.0, 3.0)) == 0.0
    assert idle_s(LOG, Clocks("", 1_100.0, 3.0)) == 90.0


def test_a_wall_clock_that_was_set_while_it_ran_counts_as_it_was_written_last() -> None:
    data = LOG + encode_clocks(Clocks("boot", 5_020.0, 70.0))
    assert idle_s(data, Clocks("next", 5_100.0, 3.0)) == 90.0  # seen at 5,010 by the clock as it is set now


def test_a_boot_that_is_not_known_is_told_by_the_wall_clock() -> None:
    data = encode_clocks(Clocks("", 1_000.0, 50.0)) + encode_unit(b"1", A, 60.0)
    assert idle_s(data, Clocks("", 1_100.0, 9_999.0)) == 90.0


def test_records_without_their_clocks_are_rather_kept_too_long() -> None:
    assert idle_s(encode_unit(b"1", A, 60.0), LATER) == 0.0


def test_a_record_that_is_too_large_is_left_out() -> None:
    assert encode_unit(b"k" * 70_000, A, 1.0) == b""
