"""The rules of a fan-out: bounds hold for any order of endings, and no call is lost or started twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.fanout import Budget, FanOut


def started(fan: FanOut) -> list[int]:
    calls = []
    while (call := fan.next_call()) is not None:
        calls.append(call)
    return calls


def test_one_ends_one_starts() -> None:
    fan = FanOut(5, Budget(max_in_flight=2))
    assert started(fan) == [0, 1]
    fan.ended(failed=False)
    assert started(fan) == [2]
    assert list(fan.not_started()) == []


def test_failures_past_the_bound_cancel_the_rest() -> None:
    fan = FanOut(5, Budget(max_in_flight=2, max_failures=1))
    started(fan)
    fan.ended(failed=True)
    assert (fan.must_cancel, started(fan)) == (False, [2])
    fan.ended(failed=True)
    assert (fan.must_cancel, started(fan)) == (True, [])
    assert fan.stopped == "2 calls failed; at most 1 may"
    assert list(fan.not_started()) == [3, 4]
    assert list(fan.not_started()) == []


def test_used_tokens_stop_the_start_but_cancel_nothing() -> None:
    fan = FanOut(4, Budget(max_in_flight=2, max_tokens=10))
    started(fan)
    fan.ended(failed=False, tokens=9)
    assert started(fan) == [2]
    fan.ended(failed=False, tokens=1)
    assert (started(fan), fan.must_cancel, list(fan.not_started())) == ([], False, [3])
    assert fan.stopped == "10 tokens are used; 10 are allowed"


def test_no_tokens_no_call() -> None:
    fan = FanOut(2, Budget(max_tokens=0))
    assert (started(fan), list(fan.not_started())) == ([], [0, 1])


@pytest.mark.parametrize("wrong", [{"max_in_flight": 0}, {"max_failures": -1}, {"max_tokens": -1}])
def test_wrong_budget(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Budget(**wrong)


bound = st.none() | st.integers(0, 12)


@given(
    st.integers(0, 20),
    st.builds(Budget, st.integers(1, 5), bound, bound),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=30),
)
def test_every_call_starts_once_or_never(count: int, budget: Budget, endings: list[tuple[bool, int]]) -> None:
    fan = FanOut(count, budget)
    calls, never, over, failures = started(fan), list(fan.not_started()), 0, 0
    for failed, tokens in endings:
        if over == len(calls):
            break
        over, failures = over + 1, failures + failed
        fan.ended(failed, tokens)
        calls += started(fan)
        never += fan.not_started()
        assert len(calls) - over <= budget.max_in_flight
        assert fan.must_cancel == (budget.max_failures is not None and failures > budget.max_failures)
    assert calls + never == list(range(len(calls) + len(never)))
    if over == len(calls):
        assert len(calls) + len(never) == count
