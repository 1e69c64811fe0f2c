"""Two scalers of one workload, told apart by what is read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_control.engines.replica_writers import ReplicaWriters

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def write(writers: ReplicaWriters, replicas: int, now_ms: int) -> None:
    writers.trying(replicas)
    writers.wrote(replicas, now_ms)


def fight(writers: ReplicaWriters, now_ms: int) -> None:
    """A write of ours, undone."""
    write(writers, 9, now_ms)
    writers.saw(5, now_ms + 1)


def test_alone() -> None:
    writers = ReplicaWriters(300)
    for now_ms, replicas in enumerate((5, 5, 7, 9, 9)):
        if now_ms > 1:
            write(writers, replicas, now_ms)
        writers.saw(replicas, now_ms)
    assert writers.note == ""
    assert writers.refusal(10) == ""


def test_the_first_look_is_nobody_elses_doing() -> None:
    writers = ReplicaWriters(300)
    writers.saw(7, 0)
    assert writers.note == ""
    writers.saw(8, 1)
    assert "from 7 to 8" in writers.note
    assert writers.refusal(2) == ""


def test_a_write_without_an_answer_is_ours_either_way() -> None:
    for found in (5, 9):
        writers = ReplicaWriters(300)
        writers.saw(5, 0)
        writers.trying(9)  # and the answer is lost
        writers.saw(found, 1)
        assert writers.note == ""


def test_the_second_undoing_is_a_fight_and_every_further_one_holds_twice_as_long() -> None:
    writers, now_ms = ReplicaWriters(300), 0
    writers.saw(5, now_ms)
    fight(writers, now_ms)
    assert writers.refusal(now_ms + 2) == ""
    holds = []
    for _ in range(6):
        fight(writers, now_ms)
        start_ms = now_ms + 1
        assert writers.refusal(start_ms)
        hold_ms = next(at for at in range(MINUTE_MS, 2 * HOUR_MS, MINUTE_MS) if not writers.refusal(start_ms + at))
        assert writers.refusal(start_ms + hold_ms - 1)
        holds.append(hold_ms // MINUTE_MS)
        now_ms = start_ms + hold_ms
    assert holds == [5, 10, 20, 40, 60, 60]


def test_a_write_that_stands_ends_the_fight() -> None:
    writers = ReplicaWriters(300)
    writers.saw(5, 0)
    fight(writers, 0)
    write(writers, 9, 10)
    writers.saw(9, 10 + 301_000)
    fight(writers, 400_000)
    assert writers.refusal(400_002) == ""


def test_others_who_write_while_we_do_not_are_no_fight() -> None:
    writers = ReplicaWriters(300)
    for now_ms in range(50):
        writers.saw(now_ms % 7, now_ms)
    assert writers.refusal(51) == ""


def test_a_clock_that_is_set_back_holds_nobody_for_ever() -> None:
    writers = ReplicaWriters(300)
    writers.saw(5, 10 * HOUR_MS)
    fight(writers, 10 * HOUR_MS)
    fight(writers, 10 * HOUR_MS)
    assert writers.refusal(10 * HOUR_MS + 2)
    assert writers.refusal(0) == ""


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 400_000)), max_size=40))
def test_writes_that_are_undone_get_rarer(steps: list[tuple[bool, int, int]]) -> None:
    """Whatever others do: of our writes that were undone at once, at most two fall into any `yield_s`."""
    writers, now_ms, undone = ReplicaWriters(300), 0, []
    writers.saw(0, now_ms)
    for we, replicas, wait_ms in steps:
        if we and not writers.refusal(now_ms):
            write(writers, replicas + 10, now_ms)
            writers.saw(replicas, now_ms)
            undone.append(now_ms)
        else:
            writers.saw(replicas, now_ms)
        now_ms += wait_ms
    assert all(later - first >= 300_000 for first, later in zip(undone, undone[2:], strict=False))
