"""Memory that is free goes back to the system, at a bounded share of the time."""

from __future__ import annotations

import sys

import pytest

from outrider.heap import Trimmer, malloc_trim


class Clock:
    """Moves by itself: each trim takes so long."""

    def __init__(self, took_s: float) -> None:
        self.now = 100.0
        self.took_s = took_s
        self.trims: list[float] = []

    def __call__(self) -> float:
        return self.now

    def trim(self, pad: int) -> int:
        assert pad == 0
        self.trims.append(self.now)
        self.now += self.took_s
        return 1


@pytest.mark.parametrize(("took_s", "most"), [(0.0001, 100), (0.01, 11), (1.0, 1)])
def test_it_rests_a_thousand_times_as_long_as_it_took_and_a_second_at_least(took_s: float, most: int) -> None:
    clock = Clock(took_s)
    trimmer = Trimmer(clock.trim, clock)
    for second in range(100):
        clock.now = max(clock.now, 100.0 + second)
        trimmer.tick()
        trimmer.tick()
    assert most - 2 <= len(clock.trims) <= most
    assert clock.trims[0] == 100.0


def test_where_the_library_has_none_nothing_is_done() -> None:
    Trimmer(None).tick()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_the_librarys_own_can_be_called_or_is_not_there() -> None:
    trim = malloc_trim()
    assert trim is None or trim(0) in (0, 1)
