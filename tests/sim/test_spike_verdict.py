"""What a spike came to: the verdict is taken from the calls, and can go either way."""

from __future__ import annotations

from bench.agents.behaviour import Behaviour
from bench.spike.load import LANES, Callers, Outcome, Phase, planned
from bench.spike.verdict import Look, capacity_s, summary, table, verdicts

PHASES = (Phase("before", 5.0, 50.0), Phase("spike", 5.0, 500.0), Phase("after", 5.0, 50.0))


def outcomes(spike_ms: float = 110.0, fails: str = "") -> list[Outcome]:
    """A run in which every call of the spike takes `spike_ms`; the first of lane `fails` fails."""
    plan = planned((Phase("before", 20, 50), Phase("spike", 20, 500), Phase("after", 10, 50)), 1)
    times = {"before": 100.0, "spike": spike_ms, "after": 100.0}
    found = [Outcome(call.phase, call.lane, call.at_s, times[call.phase]) for call in plan]
    for one in found:
        if one.lane == fails:
            one.reason = "DEADLINE_EXCEEDED: too late"
            break
    return found


def looks(waits_until_s: float = 25.0) -> list[Look]:
    return [Look(at / 2, 9, 0, 0, 9, 500 if 20 < at / 2 < waits_until_s else 0, 100) for at in range(100)]


def reached(found: list[Outcome], seen: list[Look]) -> list[bool]:
    return [good for _, _, good in verdicts(summary(found, seen, 20.0, 40.0))]


def test_the_plan_is_the_same_for_the_same_seed_and_has_every_lane_and_phase() -> None:
    plan = list(planned(PHASES, 7))
    assert plan == list(planned(PHASES, 7))
    assert plan != list(planned(PHASES, 8))
    assert [call.at_s for call in plan] == sorted(call.at_s for call in plan)
    assert {call.lane for call in plan} == set(LANES)
    counts = [sum(call.phase == phase.name for call in plan) for phase in PHASES]
    assert counts[1] > 5 * counts[0]
    assert counts[1] > 5 * counts[2]


def test_a_good_run_is_reached_in_every_line() -> None:
    assert reached(outcomes(), looks()) == [True] * 5
    figures = summary(outcomes(), looks(), 20.0, 40.0)
    assert figures["to_capacity_s"] == 5.0
    assert "capacity was there after 5.0 s" in table(figures)


def test_each_line_can_be_missed() -> None:
    good = outcomes()
    assert reached([one for one in good if one.started_s < 30][:9_000], looks())[0] is False
    assert reached(outcomes(fails="critical"), looks())[1] is False
    assert reached(outcomes(fails="high"), looks())[2] is False
    lost = outcomes()
    for one in lost[::500]:
        one.reason = "UNAVAILABLE: gone"
    assert reached(lost, looks())[3] is False
    assert reached(outcomes(spike_ms=151.0), looks())[4] is False


def test_without_capacity_before_the_end_there_is_no_figure_to_reach() -> None:
    assert capacity_s(looks(60.0), 20.0, 40.0) is None
    assert reached(outcomes(), looks(60.0))[4] is False


def test_a_spike_that_nothing_waits_in_has_its_capacity_at_once() -> None:
    assert capacity_s(looks(0.0), 20.0, 40.0) == 20.0


async def test_callers_tell_why_a_call_failed() -> None:
    callers = Callers("tax", [1], Behaviour())
    try:
        await callers.run(planned((Phase("spike", 0.02, 100.0),), 3))
    finally:
        await callers.close()
    assert callers.outcomes
    assert all(one.reason.startswith("UNAVAILABLE") for one in callers.outcomes)
    assert callers.in_flight == 0
