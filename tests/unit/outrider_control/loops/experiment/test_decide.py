"""What is decided of an experiment: every rule, in its order, and what is never decided."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest

from outrider_control.loops.experiment.decide import MAX_STEP_MS, decide
from outrider_control.loops.experiment.types import (
    FIXED,
    HARM,
    HOLD,
    INCONCLUSIVE,
    NO_DIFFERENCE,
    RESHARE,
    SRM,
    STOP,
    WIN,
    Guardrail,
    Seen,
    State,
)
from tests.unit.outrider_control.loops.experiment.made import (
    ACCURACY,
    ERRORS,
    GUARDED,
    SPEC,
    THREE,
    look,
    seen,
    variant,
    verdicts,
)

BETTER = (variant("A", 5_000, 1_500), variant("B", 5_000, 1_800))
WORSE = (variant("A", 5_000, 1_500), variant("B", 5_000, 1_200))
EQUAL = (variant("A", 5_000, 1_500), variant("B", 5_000, 1_510))
WHOLE = (variant("A", 10_000, 3_000), variant("B", 10_000, 3_010))
SKEWED = (variant("A", 4_000, 1_200), variant("B", 6_000, 3_000))


# -- no data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variants",
    [
        (variant("A", 0), variant("B", 0)),
        (variant("A", 5_000, 1_500), variant("B", 0)),
        (variant("A", 0), variant("B", 99, 99)),
        (variant("A", 99, 0), variant("B", 99, 99)),
    ],
)
@pytest.mark.parametrize("method", ["sequential", "bandit"])
def test_no_verdict_from_no_data(variants: tuple, method: str) -> None:
    decision, state = look(replace(SPEC, method=method, sample_size=0, shares=(0.5, 0.5)), *variants)
    assert (decision.action, decision.verdict, decision.winner) == (HOLD, "", "")
    assert set(verdicts(decision).values()) == {"open"}
    assert state.looks == 1


def test_units_without_the_metric_are_no_data() -> None:
    """Nobody rated: units there are, but nothing that could be compared."""
    spec = replace(SPEC, metric=replace(ACCURACY, name="rating"))
    decision, _ = look(spec, *BETTER)
    assert decision.action == HOLD
    assert decision.comparisons[0].effect is None
    assert "cannot be compared" in decision.conclusion


def test_three_ratings_among_thousands_of_units_are_no_verdict() -> None:
    one, two = variant("A", 3_000), variant("B", 3_000)
    for side, value in ((one, 0.0), (two, 1.0)):
        moments = side.moments[ACCURACY.key]
        moments.sums[:2] = [3 * value, 3.0]
        moments.products[:2] = [3 * value, 3 * value]
        moments.products[4] = 3.0
    decision, _ = look(SPEC, one, two)
    assert (decision.action, decision.comparisons[0].verdict) == (HOLD, "open")


def test_end_without_data_is_inconclusive() -> None:
    spec = replace(SPEC, sample_size=0, max_duration_s=1)
    decision, _ = look(spec, variant("A", 0), variant("B", 0), state=State(last_ms=1, elapsed_ms=999), now_ms=2)
    assert (decision.action, decision.verdict) == (STOP, INCONCLUSIVE)
    assert "fewer than 100 units of A, B" in decision.reason


def test_variants_that_are_not_the_specs_are_refused() -> None:
    with pytest.raises(ValueError, match="not \\('A', 'B'\\)"):
        look(SPEC, variant("B", 5), variant("A", 5))
    with pytest.raises(ValueError, match="checkout"):
        decide(Seen(0, 0, ()), State(), SPEC, 1, Random(1))


# -- verdicts --------------------------------------------------------------------------------------------------------


def test_wins_early() -> None:
    decision, _ = look(SPEC, *BETTER)
    assert (decision.action, decision.verdict, decision.winner, decision.harmful) == (STOP, WIN, "B", ())
    assert decision.comparisons[0].low is not None
    assert decision.comparisons[0].low > 0.0
    assert decision.comparisons[0].relative == pytest.approx(0.2)


def test_less_may_be_better() -> None:
    spec = replace(SPEC, metric=replace(ACCURACY, direction="down"))
    assert look(spec, *WORSE)[0].winner == "B"
    assert look(spec, *BETTER)[0].verdict == HARM


def test_harm_ends_it_also_where_a_win_would_not() -> None:
    for spec in (SPEC, replace(SPEC, stop_for_win=False)):
        decision, _ = look(spec, *WORSE)
        assert (decision.action, decision.verdict, decision.harmful, decision.winner) == (STOP, HARM, ("B",), "")


def test_a_win_may_have_to_wait_for_the_end() -> None:
    spec = replace(SPEC, stop_for_win=False)
    decision, state = look(spec, *BETTER)
    assert (decision.action, decision.verdict) == (HOLD, "")
    assert "goes on to its end" in decision.reason
    decision, _ = look(spec, variant("A", 10_000, 3_000), variant("B", 10_000, 3_600), state=state)
    assert (decision.action, decision.verdict, decision.winner) == (STOP, WIN, "B")


def test_no_difference_needs_to_be_said_what_one_would_be() -> None:
    assert look(SPEC, *EQUAL)[0].action == HOLD
    decision, _ = look(replace(SPEC, minimum_effect=0.05), *EQUAL)
    assert (decision.action, decision.verdict) == (STOP, NO_DIFFERENCE)
    decision, _ = look(replace(SPEC, minimum_effect=0.05, stop_for_win=False), *EQUAL)
    assert decision.action == HOLD
    decision, _ = look(replace(SPEC, minimum_effect=0.05, stop_for_win=False), *WHOLE)
    assert decision.verdict == NO_DIFFERENCE


def test_ends_at_its_sample_size() -> None:
    decision, _ = look(SPEC, *WHOLE)
    assert (decision.action, decision.verdict) == (STOP, INCONCLUSIVE)
    assert decision.reason == "sample size reached without a verdict"


def test_without_a_size_or_a_duration_it_goes_on() -> None:
    assert look(replace(SPEC, sample_size=0), *WHOLE)[0].action == HOLD


# -- guardrails ------------------------------------------------------------------------------------------------------


def test_a_breached_guardrail_ends_it_for_harm() -> None:
    decision, _ = look(GUARDED, variant("A", 2_000, 600, 20), variant("B", 2_000, 900, 200))
    assert (decision.action, decision.verdict, decision.harmful) == (STOP, HARM, ("B",))
    assert decision.reason == "guardrail breached: error_rate of B"
    assert "where 0.01 is allowed" in decision.conclusion


def test_a_guardrail_that_is_not_sure_yet_holds_up_an_early_win() -> None:
    sides = variant("A", 2_000, 600, 40), variant("B", 2_000, 900, 45)
    decision, state = look(GUARDED, *sides)
    assert decision.guardrails[0].state == "open"
    assert decision.action == HOLD
    assert "not yet shown to keep: error_rate" in decision.reason
    whole = variant("A", 10_000, 3_000, 200), variant("B", 10_000, 4_500, 200)
    decision, _ = look(GUARDED, *whole, state=state)
    assert decision.guardrails[0].state == "kept"
    assert (decision.verdict, decision.winner) == (WIN, "B")


def test_a_win_at_the_end_says_what_is_not_shown() -> None:
    spec = replace(GUARDED, sample_size=4_000)
    decision, _ = look(spec, variant("A", 2_000, 600, 40), variant("B", 2_000, 900, 45))
    assert decision.verdict == WIN
    assert "that it is not worse in error_rate is not shown" in decision.conclusion


def test_a_guardrail_without_data_is_unknown_and_no_breach() -> None:
    decision, _ = look(GUARDED, *EQUAL)
    assert (decision.action, decision.guardrails[0].state, decision.guardrails[0].harm) == (HOLD, "unknown", None)


def test_guardrails_are_watched_while_results_are_hidden() -> None:
    spec = replace(GUARDED, method=FIXED)
    decision, _ = look(spec, variant("A", 2_000, 600, 20), variant("B", 2_000, 900, 200))
    assert (decision.verdict, decision.hidden) == (HARM, True)
    assert decision.comparisons[0].effect is None


# -- sample ratio ----------------------------------------------------------------------------------------------------


def test_a_mismatch_blocks_every_verdict_of_the_metric() -> None:
    decision, state = look(SPEC, *SKEWED)
    assert decision.srm.mismatch
    assert (decision.action, decision.verdict) == (HOLD, "")
    assert "Nothing may be concluded: units came 40.0% / 60.0% where 50.0% / 50.0% were planned" in decision.conclusion
    # It stays, also where units even out.
    decision, state = look(SPEC, *BETTER, state=state)
    assert (decision.action, decision.srm.mismatch) == (HOLD, True)
    decision, _ = look(SPEC, variant("A", 10_000, 3_000), variant("B", 10_000, 3_600), state=state)
    assert (decision.action, decision.verdict, decision.winner) == (STOP, SRM, "")


def test_harm_is_averted_under_a_mismatch_too() -> None:
    decision, _ = look(GUARDED, variant("A", 4_000, 1_200, 40), variant("B", 6_000, 1_800, 600))
    assert (decision.srm.mismatch, decision.verdict, decision.harmful) == (True, HARM, ("B",))
    assert "which may be why" in decision.conclusion


def test_worse_by_the_metric_alone_is_no_verdict_under_a_mismatch() -> None:
    decision, _ = look(SPEC, variant("A", 4_000, 1_600), variant("B", 6_000, 600))
    assert (decision.srm.mismatch, decision.action, decision.harmful) == (True, HOLD, ())


def test_units_of_a_variant_without_a_share_are_a_mismatch_that_is_a_number() -> None:
    decision, state = look(replace(SPEC, shares=(1.0, 0.0)), *BETTER)
    assert decision.srm.mismatch
    json.dumps(state.plain(), allow_nan=False)


# -- fixed horizon ---------------------------------------------------------------------------------------------------


def test_fixed_hides_everything_until_its_size() -> None:
    spec = replace(SPEC, method=FIXED, guardrails=(Guardrail(ACCURACY, 0.5), Guardrail(ERRORS, 0.5)))
    decision, state = look(spec, variant("A", 5_000, 1_500, 50), variant("B", 5_000, 1_800, 50))
    assert (decision.action, decision.hidden) == (HOLD, True)
    one = decision.comparisons[0]
    assert (one.control, one.value, one.effect, one.low, one.high, one.p_value) == (None,) * 6
    assert (decision.guardrails[0].harm, decision.guardrails[0].low, decision.guardrails[0].high) == (None,) * 3
    assert decision.guardrails[1].harm is not None
    assert "0.3" not in json.dumps(dict(decision.inputs)) + decision.conclusion + json.dumps(state.plain())
    assert "before 20,000 units are there: 10,000 units are there" in decision.conclusion


@pytest.mark.parametrize(
    ("successes", "verdict", "winner"), [(3_300, WIN, "B"), (2_700, HARM, ""), (3_010, INCONCLUSIVE, "")]
)
def test_fixed_decides_once_at_its_size(successes: int, verdict: str, winner: str) -> None:
    spec = replace(SPEC, method=FIXED)
    decision, _ = look(spec, variant("A", 10_000, 3_000), variant("B", 10_000, successes))
    assert (decision.action, decision.verdict, decision.winner, decision.hidden) == (STOP, verdict, winner, False)


def test_fixed_whose_time_is_over_is_looked_at_once_then() -> None:
    spec = replace(SPEC, method=FIXED, max_duration_s=60)
    decision, _ = look(spec, *BETTER, state=State(last_ms=1, elapsed_ms=60_000))
    assert (decision.verdict, decision.winner, decision.hidden) == (WIN, "B", False)


# -- several variants ------------------------------------------------------------------------------------------------


def test_waits_for_a_rival_that_may_be_as_good() -> None:
    rivals = variant("A", 3_000, 900), variant("B", 3_000, 1_110), variant("C", 3_000, 1_050)
    decision, _ = look(THREE, *rivals)
    assert verdicts(decision)["B"] == "better"
    assert decision.action == HOLD
    assert decision.reason == "B is better, but C may be as good"


def test_the_best_wins_where_no_other_can_reach_it() -> None:
    decision, _ = look(THREE, variant("A", 3_000, 900), variant("B", 3_000, 1_000), variant("C", 3_000, 1_800))
    assert (decision.verdict, decision.winner) == (WIN, "C")


def test_at_the_end_the_best_wins() -> None:
    whole = variant("A", 10_000, 3_000), variant("B", 10_000, 3_500), variant("C", 10_000, 3_450)
    decision, _ = look(THREE, *whole)
    assert (decision.verdict, decision.winner) == (WIN, "B")
    assert "B gained most" in decision.conclusion


def test_a_harmful_variant_is_taken_out_and_the_others_go_on() -> None:
    decision, state = look(THREE, variant("A", 3_000, 900), variant("B", 3_000, 600), variant("C", 3_000, 920))
    assert (decision.action, decision.verdict, decision.harmful) == (RESHARE, "", ("B",))
    assert decision.shares == pytest.approx((0.5, 0.0, 0.5))
    assert state.out == ("B",)
    assert decision.conclusion.startswith("B is worse than A")
    # It is not taken out again, its missing units are no mismatch, and the other one still may win.
    decision, state = look(
        THREE, variant("A", 9_000, 2_700), variant("B", 3_000, 600), variant("C", 9_000, 2_760), state=state
    )
    assert (decision.action, decision.harmful, decision.srm.mismatch) == (HOLD, (), False)
    decision, _ = look(
        THREE, variant("A", 9_500, 2_850), variant("B", 3_000, 600), variant("C", 9_500, 3_600), state=state
    )
    assert (decision.verdict, decision.winner) == (WIN, "C")


def test_the_last_one_that_is_taken_out_ends_it() -> None:
    state = State(out=("B",), shares=(0.5, 0.0, 0.5))
    decision, _ = look(THREE, variant("A", 3_000, 900), variant("B", 1_000, 300), variant("C", 3_000, 600), state=state)
    assert (decision.action, decision.verdict, decision.harmful) == (STOP, HARM, ("C",))


def test_at_the_end_one_that_is_worse_is_aborted_beside_the_winner() -> None:
    whole = variant("A", 10_000, 3_000), variant("B", 10_000, 2_500), variant("C", 10_000, 3_500)
    decision, _ = look(THREE, *whole)
    assert (decision.verdict, decision.winner, decision.harmful) == (WIN, "C", ("B",))
    decision, _ = look(THREE, *whole[:2], variant("C", 10_000, 3_010))
    assert (decision.verdict, decision.harmful) == (INCONCLUSIVE, ("B",))


def test_several_variants_share_the_level() -> None:
    """What would win alone does not among ten."""
    few = variant("A", 2_000, 600), variant("B", 2_000, 690)
    assert look(replace(SPEC, sample_size=4_000), *few)[0].verdict == WIN
    names = ("A", *[f"B{number}" for number in range(10)])
    many = replace(SPEC, variants=names, shares=(1 / 11,) * 11, sample_size=22_000)
    sides = [variant("A", 2_000, 600), *[variant(name, 2_000, 690) for name in names[1:]]]
    assert set(verdicts(look(many, *sides)[0]).values()) == {"open"}


# -- the clock -------------------------------------------------------------------------------------------------------


def test_time_counts_from_look_to_look() -> None:
    spec = replace(SPEC, max_duration_s=10)
    decision, state = look(spec, *EQUAL, now_ms=1_000_000)
    assert (decision.action, state.elapsed_ms) == (HOLD, 0)
    decision, state = look(spec, *EQUAL, state=state, now_ms=1_009_999)
    assert (decision.action, state.elapsed_ms) == (HOLD, 9_999)
    decision, _ = look(spec, *EQUAL, state=state, now_ms=1_010_000)
    assert (decision.action, decision.reason) == (STOP, "longest duration reached without a verdict")


def test_a_clock_that_jumps_back_changes_nothing() -> None:
    _, state = look(SPEC, *EQUAL, state=State(last_ms=10**12, elapsed_ms=5_000), now_ms=10**9)
    decision, same = look(SPEC, *EQUAL, state=State(last_ms=10**12, elapsed_ms=5_000), now_ms=10**12)
    assert replace(state, last_ms=0) == replace(same, last_ms=0)
    assert look(SPEC, *EQUAL, now_ms=-5)[0].comparisons == decision.comparisons


def test_a_clock_that_jumps_ahead_ends_nothing() -> None:
    spec = replace(SPEC, max_duration_s=86_400)
    decision, state = look(spec, *EQUAL, state=State(last_ms=1_000), now_ms=10**13)
    assert (decision.action, state.elapsed_ms) == (HOLD, MAX_STEP_MS)


def test_decision_is_of_its_look() -> None:
    decision, state = look(SPEC, *EQUAL, now_ms=77)
    assert (decision.at_ms, state.last_ms, decision.inputs["looks"]) == (77, 77, 1)
    assert decision.inputs["units"] == {"A": 5_000, "B": 5_000}
    told = decide(seen(*EQUAL, flipped=3, left_out=4), State(), SPEC, 77, Random(1))[0].inputs
    assert (told["flipped"], told["left_out"]) == (3, 4)
    json.dumps(dict(told), allow_nan=False)
