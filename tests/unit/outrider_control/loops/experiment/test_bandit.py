"""A bandit's shares: burn-in, floor, how often they move, and what keeps them where they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outrider_control.core.stats.quantiles import BucketMoments
from outrider_control.loops.experiment.decide import RESHARE_MS
from outrider_control.loops.experiment.types import (
    BANDIT,
    HARM,
    HOLD,
    INCONCLUSIVE,
    RESHARE,
    STOP,
    WIN,
    Metric,
    State,
)
from tests.unit.outrider_control.loops.experiment.made import SPEC, THREE, VariantSeen, look, variant

BANDITS = replace(SPEC, method=BANDIT, bandit_burn_in=500)
GOOD = (variant("A", 1_000, 300), variant("B", 1_000, 340))


def test_shares_follow_the_chances() -> None:
    decision, state = look(BANDITS, *GOOD)
    assert decision.action == RESHARE
    assert decision.best[1] > 0.9
    assert decision.shares == state.shares
    assert sum(decision.shares) == pytest.approx(1.0)
    assert decision.shares[1] == pytest.approx(0.05 + 0.9 * decision.best[1])


def test_burns_in_with_the_shares_that_were_planned() -> None:
    uneven = replace(BANDITS, shares=(0.8, 0.2))
    decision, state = look(uneven, variant("A", 1_600, 480), variant("B", 400, 125))
    assert (decision.action, decision.shares, decision.best, state.shares) == (HOLD, (), (), ())


def test_shares_move_at_most_once_a_minute_and_for_a_reason() -> None:
    _, state = look(BANDITS, *GOOD, now_ms=1_000)
    more = variant("A", 1_050, 315), variant("B", 1_300, 400)
    soon, held = look(BANDITS, *more, state=state, now_ms=1_000 + RESHARE_MS // 2)
    if state.reshared_ms:
        assert soon.action == HOLD
    later, _ = look(BANDITS, *more, state=replace(state, reshared_ms=1), now_ms=1_001 + RESHARE_MS)
    assert later.action == RESHARE
    same, _ = look(BANDITS, *more, state=replace(state, reshared_ms=1, shares=later.shares), now_ms=1_001 + RESHARE_MS)
    assert same.action == HOLD
    assert same.best == later.best
    assert held.looks == 2


def test_moved_shares_are_no_mismatch() -> None:
    _, state = look(BANDITS, *GOOD)
    decision, _ = look(BANDITS, variant("A", 1_100, 330), variant("B", 9_000, 3_060), state=state)
    assert (decision.srm.mismatch, decision.srm.p_value) == (False, None)


def test_a_mismatch_keeps_the_shares() -> None:
    decision, state = look(BANDITS, variant("A", 600, 180), variant("B", 1_400, 490))
    assert (decision.srm.mismatch, decision.action, state.shares) == (True, HOLD, ())
    assert decision.best[1] > 0.9


def test_ends_with_a_verdict_that_holds_whatever_the_shares_were() -> None:
    sure, _ = look(
        replace(BANDITS, sample_size=10_000),
        variant("A", 3_000, 900),
        variant("B", 7_000, 3_500),
        state=State(shares=(0.3, 0.7)),
    )
    assert (sure.action, sure.verdict, sure.winner) == (STOP, WIN, "B")
    assert sure.comparisons[0].p_value is None
    close, _ = look(
        replace(BANDITS, sample_size=10_000),
        variant("A", 3_000, 900),
        variant("B", 7_000, 2_200),
        state=State(shares=(0.3, 0.7)),
    )
    assert (close.action, close.verdict) == (STOP, INCONCLUSIVE)


def test_its_intervals_are_wider_than_a_sequential_tests() -> None:
    bandit, _ = look(BANDITS, *GOOD)
    sequential, _ = look(SPEC, *GOOD)
    one, two = bandit.comparisons[0], sequential.comparisons[0]
    assert one.low is not None
    assert two.low is not None
    assert one.low < two.low


def test_what_is_worse_is_taken_out() -> None:
    decision, _ = look(BANDITS, variant("A", 3_000, 1_500), variant("B", 3_000, 600))
    assert (decision.action, decision.verdict) == (STOP, HARM)
    three = replace(THREE, method=BANDIT, bandit_burn_in=500)
    sides = variant("A", 3_000, 1_500), variant("B", 3_000, 600), variant("C", 3_000, 1_520)
    decision, state = look(three, *sides)
    assert (decision.action, decision.harmful, decision.shares[1]) == (RESHARE, ("B",), 0.0)
    decision, _ = look(three, *sides, state=state, now_ms=2_000)
    assert decision.action == RESHARE
    assert (decision.shares[1], decision.best[1]) == (0.0, 0.0)
    assert sum(decision.shares) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", [Metric("latency_quantile", quantile=0.95), Metric("rating")])
def test_without_a_posterior_the_shares_stay(metric: Metric) -> None:
    buckets = BucketMoments()
    for bucket in range(1_000):
        buckets.add({bucket % 50: 1})
    sides = [VariantSeen(name, 1_000, 1_000, {}, buckets) for name in "AB"]
    decision, state = look(replace(BANDITS, metric=metric), *sides)
    assert (decision.action, decision.best, state.shares) == (HOLD, (), ())
