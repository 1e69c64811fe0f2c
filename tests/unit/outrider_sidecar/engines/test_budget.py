"""The retry budget's bound, over any sequence of calls and retries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Retry
from outrider_sidecar.engines.budget import WINDOW_S, RetryBudget

NOW = 1_000.0


def made(ratio: float = 0.2, min_per_s: float = 0.0) -> RetryBudget:
    return RetryBudget(Retry(budget_ratio=ratio, budget_min_per_s=min_per_s))


def granted(budget: RetryBudget, asked: int, now: float) -> int:
    return sum(budget.withdraw(now) for _ in range(asked))


def test_retries_are_a_share_of_calls() -> None:
    budget = made(0.2)
    for _ in range(100):
        budget.deposit(NOW)
    assert granted(budget, 50, NOW) == 20


def test_without_calls_and_without_a_minimum_there_are_no_retries() -> None:
    assert granted(made(0.2), 5, NOW) == 0


def test_the_minimum_serves_rare_calls_all_at_once_if_need_be() -> None:
    budget = made(0.0, min_per_s=3.0)
    assert granted(budget, 100, NOW) == 3 * WINDOW_S
    assert granted(budget, 100, NOW + WINDOW_S - 1) == 0
    assert granted(budget, 100, NOW + WINDOW_S) == 3 * WINDOW_S


def test_calls_and_retries_are_forgotten_after_the_window() -> None:
    budget = made(0.5)
    for second in range(WINDOW_S):
        for _ in range(2):
            budget.deposit(NOW + second)
    assert granted(budget, 100, NOW + 9) == 10
    for second in range(10, 15):
        budget.deposit(NOW + second)
    # The window holds 5 seconds of 2 calls and 5 of 1; the 10 retries of second 9 are still in it.
    assert granted(budget, 100, NOW + 14) == 0
    assert budget.allowance == pytest.approx(7.5)
    assert granted(budget, 100, NOW + 19) == 2  # 5 calls left, no retries


def test_a_long_silence_empties_the_window() -> None:
    budget = made(1.0)
    for _ in range(50):
        budget.deposit(NOW)
    assert granted(budget, 1, NOW + 1e6) == 0
    assert budget.allowance == 0.0


def test_a_clock_that_steps_back_frees_nothing() -> None:
    budget = made(1.0)
    budget.deposit(NOW)
    assert granted(budget, 5, NOW) == 1
    assert granted(budget, 5, NOW - 100) == 0
    budget.deposit(NOW - 100)
    assert granted(budget, 5, NOW) == 1


def test_a_new_policy_keeps_what_was_spent() -> None:
    budget = made(0.5)
    for _ in range(20):
        budget.deposit(NOW)
    assert granted(budget, 100, NOW) == 10
    budget.configure(Retry(budget_ratio=1.0, budget_min_per_s=0.0))
    assert granted(budget, 100, NOW) == 10


@given(
    ratio=st.floats(0.0, 1.0),
    min_per_s=st.integers(0, 5),
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.floats(0.0, 4.0)), max_size=60),
)
def test_never_more_than_the_share_and_the_minimum(
    ratio: float, min_per_s: int, steps: list[tuple[int, int, float]]
) -> None:
    budget = made(ratio, min_per_s)
    calls: list[float] = []
    retries: list[float] = []
    now = NOW
    for deposits, asked, gap_s in steps:
        now += gap_s
        for _ in range(deposits):
            budget.deposit(now)
            calls.append(now)
        retries += [now] * granted(budget, asked, now)
        since = int(now) - WINDOW_S + 1  # the first second of the window
        bound = ratio * sum(at >= since for at in calls) + min_per_s * WINDOW_S
        in_window = sum(at >= since for at in retries)
        if retries and retries[-1] == now:
            assert in_window <= bound + 1e-6
        if asked and (not retries or retries[-1] != now):
            assert in_window + 1 > bound - 1e-6  # refused only for want of budget
    elapsed_windows = (now - NOW) / WINDOW_S + 2
    assert len(retries) <= ratio * len(calls) * 2 + min_per_s * WINDOW_S * elapsed_windows
