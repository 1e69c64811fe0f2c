"""Experiments on a real store: begun, looked at, ended, and found again after a kill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from outrider.policy import PolicyError
from outrider.split import PARTS
from outrider.v1 import experiment_pb2 as pb
from outrider_control.loops.experiment import act
from outrider_control.loops.experiment.act import Refused, UnknownExperiment
from outrider_control.state import experiments, journal, rollouts, splits
from outrider_control.state.agents import UnknownAgent
from outrider_control.state.database import Database
from tests.experiments import Trying, wanted


@pytest.fixture
async def trying(database: Database) -> AsyncIterator[Trying]:
    made = Trying(database)
    await made.start()
    yield made
    await made.close()


async def begun(trying: Trying, spec: pb.ExperimentSpec | None = None) -> pb.ExperimentRecord:
    return await trying.loop.create(spec or wanted(), "ann", "is b better?", True)


async def actions(trying: Trying) -> list[str]:
    return [str(one.outcome["action"]) for one in reversed(await trying.db.read(journal.read, "agent", "experiment"))]


async def test_a_draft_divides_nothing_until_it_is_begun(trying: Trying) -> None:
    made = await trying.loop.create(wanted(), "ann", "is b better?", False)
    assert (made.state, made.author, made.spec.method, made.spec.unit) == ("draft", "ann", "sequential", "session")
    assert [one.share for one in made.spec.variants] == [0.5, 0.5]
    assert "not begun" in made.conclusion
    assert await trying.db.read(splits.get, "test") is None
    running = await trying.loop.begin("test", "bob", "now")
    assert (running.state, running.started_unix_ms) == ("running", trying.now_ms)
    split = await trying.split()
    assert (split.is_open, split.observed, split.layer_to) == (True, False, PARTS)
    assert split.seed == made.spec.seed != ""
    assert await actions(trying) == ["create", "start"]


async def test_a_variant_that_is_better_wins(trying: Trying) -> None:
    await begun(trying)
    await trying.turn()
    assert (await trying.record()).units == 0
    await trying.come("a", 500, failed=150)
    await trying.come("b", 500, failed=25)
    await trying.turn()
    record = await trying.record()
    assert (record.state, record.verdict, record.winner) == ("stopped", "win", "b")
    assert (record.stopped_unix_ms, record.units) == (trying.now_ms, 1_000)
    (comparison,) = record.comparisons
    assert comparison.low <= comparison.effect <= comparison.high < 0
    assert comparison.effect == pytest.approx(-0.25)
    assert [one.value for one in record.variants] == pytest.approx([0.3, 0.05])
    assert [(look.variant, look.units) for look in record.course] == [("b", 1_000)]
    split = await trying.split()
    assert (split.is_open, [one.aborted for one in split.variants]) == (False, [False, False])
    assert await actions(trying) == ["create", "start", "stop"]


async def test_harm_is_taken_back_at_once(trying: Trying) -> None:
    guardrail = pb.Guardrail(metric=pb.Metric(name="error_rate"), margin=0.01)
    await begun(trying, wanted(metric="cost", guardrails=[guardrail]))
    await trying.come("a", 500, failed=5)
    await trying.come("b", 500, failed=200)
    await trying.turn()
    record = await trying.record()
    assert (record.state, record.verdict) == ("stopped", "harm")
    assert record.guardrails[0].state == "breached"
    split = await trying.split()
    assert [one.aborted for one in split.variants] == [False, True]


async def test_no_data_is_no_verdict(trying: Trying) -> None:
    await begun(trying, wanted(max_duration_s=3))
    for _ in range(3):
        await trying.turn()
    record = await trying.record()
    assert (record.state, record.verdict, record.winner) == ("stopped", "inconclusive", "")
    assert not record.comparisons[0].HasField("effect")


async def test_a_mismatch_of_units_blocks_the_verdict(trying: Trying) -> None:
    await begun(trying)
    await trying.come("a", 900, failed=400)
    await trying.come("b", 500, failed=5)
    await trying.turn()
    record = await trying.record()
    assert (record.state, record.verdict, record.srm.mismatch) == ("running", "", True)
    assert "Nothing may be concluded" in record.conclusion


async def test_a_fixed_horizon_hides_what_it_sees(trying: Trying) -> None:
    await begun(trying, wanted(method="fixed", sample_size=1_200))
    await trying.come("a", 500, failed=250)
    await trying.come("b", 500, failed=25)
    await trying.turn()
    hidden = await trying.record()
    assert (hidden.state, hidden.hidden, hidden.units) == ("running", True, 1_000)
    assert not hidden.comparisons
    assert not any([one.HasField("value") for one in hidden.variants])
    assert not hidden.course
    await trying.come("a", 100, begin=500)
    await trying.come("b", 100, begin=500)
    await trying.turn()
    record = await trying.record()
    assert (record.state, record.verdict, record.hidden, record.winner) == ("stopped", "win", False, "b")


async def test_paused_nothing_is_decided_and_nobody_is_added(trying: Trying) -> None:
    await begun(trying)
    paused = await trying.loop.pause("test", "ann", "a holiday")
    assert (paused.state, paused.reason) == ("paused", "a holiday")
    assert not (await trying.split()).is_open
    await trying.come("a", 500, failed=250)
    await trying.come("b", 500)
    await trying.turn()
    assert (await trying.record()).state == "paused"
    assert (await trying.loop.resume("test", "ann", "back")).state == "running"
    assert (await trying.split()).is_open
    await trying.turn()
    assert (await trying.record()).verdict == "win"
    assert await actions(trying) == ["create", "start", "pause", "resume", "stop"]


@pytest.mark.parametrize(("winner", "abort"), [("", False), ("", True), ("b", False)])
async def test_an_end_by_hand(trying: Trying, winner: str, abort: bool) -> None:
    await begun(trying)
    record = await trying.loop.stop("test", "ann", "enough", winner, abort)
    assert (record.state, record.verdict, record.winner, record.reason) == ("stopped", "stopped", winner, "enough")
    split = await trying.split()
    assert (split.is_open, split.variants[1].aborted) == (False, abort)
    with pytest.raises(Refused, match="it is stopped"):
        await trying.loop.stop("test", "ann", "again", "", False)


async def test_its_split_goes_when_no_session_can_hold_a_variant_any_more(trying: Trying) -> None:
    await begun(trying, wanted(idle_s=3_600))
    await trying.loop.stop("test", "ann", "enough", "", False)
    await trying.turn(3_000)
    assert await trying.db.read(splits.get, "test") is not None
    await trying.turn(1_000)
    assert await trying.db.read(splits.get, "test") is None


async def test_a_control_plane_that_follows_goes_on_exactly_there(trying: Trying) -> None:
    await begun(trying)
    await trying.come("a", 40, failed=4)
    await trying.come("b", 40, failed=3)
    for _ in range(3):
        await trying.turn()
    before = await trying.record()
    trying.fresh()
    assert await trying.record() == before
    await trying.turn()
    after = await trying.record()
    assert (after.looks, after.units, after.state) == (before.looks + 1, 80, "running")


async def test_who_does_not_lead_decides_nothing_but_counts_attributes(trying: Trying) -> None:
    await begun(trying, wanted(metric="attribute:turns"))
    trying.leads = False
    await trying.come("a", 500)
    await trying.turn()
    assert (await trying.record()).looks == 0
    assert trying.attributes == {"turns"}


async def test_a_clock_that_jumps_changes_no_verdict(trying: Trying) -> None:
    await begun(trying, wanted(max_duration_s=7_200))
    await trying.come("a", 40)
    await trying.come("b", 40)
    await trying.turn()
    await trying.turn(-100_000)
    await trying.turn(10_000_000)
    assert (await trying.record()).state == "running"


async def test_what_is_observed_before_it_begins_is_history(trying: Trying) -> None:
    await trying.loop.create(wanted(history=True, unit="user"), "ann", "later", False)
    split = await trying.split()
    assert (split.observed, split.variants) == (True, ())
    await trying.loop.begin("test", "ann", "now")
    assert not (await trying.split()).observed


async def test_experiments_in_one_layer_share_no_unit(trying: Trying) -> None:
    await begun(trying, wanted(name="one", layer="ui", traffic=0.6))
    await begun(trying, wanted(name="two", layer="ui", traffic=0.4))
    one, two = await trying.split("one"), await trying.split("two")
    assert (one.layer_from, one.layer_to, two.layer_from, two.layer_to) == (0, 600_000, 600_000, PARTS)
    with pytest.raises(Refused, match="no room"):
        await begun(trying, wanted(name="three", layer="ui", traffic=0.1))
    assert await trying.db.read(experiments.get, "three") is None
    with pytest.raises(Refused, match="no room"):
        await trying.loop.set_traffic("one", 0.7, "ann", "more")
    await trying.loop.stop("two", "ann", "enough", "", False)


async def test_traffic_is_only_raised(trying: Trying) -> None:
    await begun(trying, wanted(traffic=0.1))
    assert (await trying.loop.set_traffic("test", 0.5, "ann", "more")).traffic == 0.5
    assert (await trying.split()).layer_to == 500_000
    with pytest.raises(Refused, match="only be raised"):
        await trying.loop.set_traffic("test", 0.2, "ann", "less")
    with pytest.raises(Refused, match="not above 0"):
        await trying.loop.set_traffic("test", 1.2, "ann", "more")


async def test_a_bandit_moves_traffic_to_what_does_better(trying: Trying) -> None:
    await begun(trying, wanted(method="bandit", bandit_burn_in=50, stop_for_win=False))
    await trying.come("a", 300, failed=120)
    await trying.come("b", 300, failed=30)
    await trying.turn()
    split = await trying.split()
    assert split.variants[1].share > 0.9
    assert split.variants[1].ranges[0][0] == 500_000 or split.variants[1].ranges[-1][1] == PARTS
    record = await trying.record()
    assert (record.state, record.variants[1].best) == ("running", pytest.approx(1.0, abs=0.05))
    assert (await actions(trying))[-1] == "reshare"


def going_out() -> pb.RolloutSpec:
    return pb.RolloutSpec(steps=[pb.RolloutStep(weight=0.5, pause_s=60), pb.RolloutStep(weight=1.0)])


async def test_a_verdict_begins_the_rollout_that_is_asked_for(trying: Trying) -> None:
    await begun(trying, wanted(rollout=going_out()))
    await trying.come("a", 500, failed=150)
    await trying.come("b", 500, failed=25)
    await trying.turn()
    record = await trying.record()
    assert (record.verdict, record.rollout) == ("win", "test-rollout")
    row = await trying.db.read(rollouts.get, "test-rollout")
    assert row is not None
    assert (row.experiment, row.split) == ("test", "test")
    await trying.turn(10_000_000)
    assert await trying.db.read(splits.get, "test") is not None  # it is the rollout's


async def test_what_is_in_the_way_of_its_rollout_is_said(trying: Trying) -> None:
    await begun(trying, wanted(rollout=going_out()))
    await trying.loop.create(wanted(name="test-rollout"), "ann", "another question", False)
    record = await trying.loop.stop("test", "ann", "enough", "b", False)
    assert record.rollout == ""
    assert "its rollout was not begun" in record.reason


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (wanted("a"), "variants: has 1; an experiment compares two"),
        (wanted(traffic=2.0), "traffic: 2 is not above 0"),
        (wanted(unit="planet"), "unit: 'planet' is none of"),
        (wanted(metric="eror_rate"), "is 'error_rate' meant"),
        (wanted(metric="slow_share"), "threshold_ms"),
        (wanted(method="guess"), "method: 'guess' is none of"),
        (wanted(method="fixed"), "sample_size: is missing"),
        (wanted(alpha=0.9), "alpha: 0.9 is not above 0"),
        (wanted(minimum_effect=float("nan")), "minimum_effect: nan is not a number"),
        (wanted(method="bandit", bandit_floor=0.6), "bandit_floor: 0.6 for each of 2"),
        (wanted(history=True, unit="request"), "history: needs units that come back"),
        (wanted(guardrails=[pb.Guardrail(metric=pb.Metric(name="cost"), margin=-1)]), "margin: -1.0 is not a number"),
        (wanted(overrides={"u": "z"}), "'z' is no variant"),
        (wanted(rollout=pb.RolloutSpec()), "spec.rollout.steps: is empty"),
        (wanted("a", "a"), "'a' is already variants[0]"),
        (pb.ExperimentSpec(agent_id="agent"), "name: is missing"),
    ],
)
async def test_what_cannot_be_an_experiment(trying: Trying, spec: pb.ExperimentSpec, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        await begun(trying, spec)
    assert said in str(caught.value)


async def test_shares_that_do_not_sum(trying: Trying) -> None:
    spec = wanted()
    for one in spec.variants:
        one.share = 0.6
    with pytest.raises(PolicyError, match=r"the shares together are 1\.2; they must be 1"):
        await begun(trying, spec)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"name": "none"}, UnknownExperiment, "none"),
        ({"agent_id": "nobody"}, UnknownAgent, "nobody"),
        ({"labels": "v9"}, Refused, "no endpoint of b is there"),
        ({}, Refused, "exists already"),
    ],
)
async def test_what_is_in_the_way(trying: Trying, change: dict[str, Any], error: type[Exception], said: str) -> None:
    await begun(trying)
    spec = wanted()
    if "labels" in change:
        spec.name = "other"
        spec.variants[1].labels["version"] = "v9"
    elif "agent_id" in change:
        spec.name, spec.agent_id = "other", "nobody"
        spec.variants[0].ClearField("labels")
        spec.variants[1].ClearField("labels")
        spec.variants[1].model = "m"
    with pytest.raises(error) as caught:
        await (trying.loop.pause("none", "ann", "x") if "name" in change else begun(trying, spec))
    assert said in str(caught.value)


async def test_who_was_overtaken_changes_nothing(trying: Trying) -> None:
    await begun(trying)
    row = await trying.db.read(experiments.get, "test")
    assert row is not None
    await trying.loop.pause("test", "ann", "first")
    with pytest.raises(act.Overtaken):
        await trying.db.write(_late, row, trying.now_ms)
    assert (await trying.record()).state == "paused"


def _late(connection: Any, row: experiments.ExperimentRow, now_ms: int) -> None:
    from outrider_control.loops.experiment.types import Decision, Seen, State

    act.look(connection, row, Decision(now_ms, "hold", "late", "late"), State(), Seen(now_ms, 0, ()), now_ms)


async def test_a_course_is_bounded(database: Database) -> None:
    for number in range(3 * experiments.MAX_LOOKS):
        look = experiments.LookRow("test", number, number, number, "[]")
        await database.write(experiments.put_look, look)
    course = await database.read(experiments.course, "test")
    assert len(course) <= experiments.MAX_LOOKS
    assert (course[0].number, course[-1].number) == (0, 3 * experiments.MAX_LOOKS - 1)
