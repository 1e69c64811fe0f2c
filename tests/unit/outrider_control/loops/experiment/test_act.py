"""What is carried out of experiments beside their common course: looks and changes that cross, ends, what is hidden."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Connection

from outrider.v1 import experiment_pb2 as pb
from outrider_control.loops.experiment import act
from outrider_control.loops.experiment import loop as experiment_loop
from outrider_control.loops.experiment.act import Refused
from outrider_control.loops.experiment.decide import decide
from outrider_control.loops.rollout import act as rollout_act
from outrider_control.state import agents, experiments, journal, rollouts, splits, unit_sums
from outrider_control.state.database import Database
from outrider_control.state.unit_sums import Told
from tests.experiments import Trying, wanted
from tests.units import AGENT, call


@pytest.fixture
async def trying(database: Database) -> AsyncIterator[Trying]:
    made = Trying(database)
    await made.start()
    yield made
    await made.close()


async def begun(trying: Trying, spec: pb.ExperimentSpec | None = None) -> pb.ExperimentRecord:
    return await trying.loop.create(spec or wanted(), "ann", "is b better?", True)


async def test_a_split_stays_while_its_sessions_live(trying: Trying) -> None:
    await begun(trying, wanted(idle_s=3_600))
    await trying.loop.stop("test", "ann", "enough", "", False)
    for _ in range(3):
        await trying.turn(3_000)
        await trying.db.write(unit_sums.add, [call("a lasting session")], trying.now_ms)
    assert await trying.db.read(splits.get, "test") is not None
    await trying.turn(3_000)
    await trying.turn(1_000)
    assert await trying.db.read(splits.get, "test") is None
    (entry, *_) = await trying.db.read(journal.read, AGENT, "experiment")
    assert (entry.outcome["action"], entry.author) == ("tidy", "experiment")


async def drafted(trying: Trying, *variants: str, **fields: Any) -> None:
    await trying.loop.create(wanted(*variants, name="other", **fields), "ann", "another question", False)


async def test_two_do_not_decide_on_the_same_of_a_call(trying: Trying) -> None:
    await begun(trying)
    await drafted(trying)
    with pytest.raises(Refused, match=r"experiment 'test' decides on labels of calls of 'agent' as well.*one layer"):
        await trying.loop.begin("other", "ann", "go")
    assert (await trying.record("other")).state == "draft"
    await trying.loop.stop("test", "ann", "enough", "", False)
    with pytest.raises(Refused, match="its sessions keep"):
        await trying.loop.begin("other", "ann", "go")
    await trying.turn(90_000)
    await trying.turn(90_000)  # nobody holds a variant of it: it is taken away
    assert (await trying.loop.begin("other", "ann", "go")).state == "running"


async def test_two_of_one_layer_share_no_unit(trying: Trying) -> None:
    await begun(trying, wanted(layer="l", traffic=0.5))
    await drafted(trying, layer="l", traffic=0.5)
    assert (await trying.loop.begin("other", "ann", "go")).state == "running"
    one, other = await trying.split(), await trying.split("other")
    assert (one.layer_from, one.layer_to, other.layer_from, other.layer_to) == (0, 500_000, 500_000, 1_000_000)


async def test_a_rollout_is_to_end_first_and_is_then_what_is_tried_against(trying: Trying) -> None:
    rolled = pb.RolloutSpec(name="out", agent_id=AGENT, steps=[pb.RolloutStep(weight=1.0)])
    rolled.candidate.labels["version"], rolled.stable.labels["version"] = "v2", "v1"
    row = await trying.db.write(rollout_act.create, rolled, "ann", "v2", trying.now_ms)
    await drafted(trying)
    with pytest.raises(Refused, match=r"rollout 'out' decides on labels .* wait for its end"):
        await trying.loop.begin("other", "ann", "go")
    ended = row._replace(phase="succeeded", ended_ms=trying.now_ms)
    assert await trying.db.write(rollouts.change, ended) is not None
    assert (await trying.loop.begin("other", "ann", "go")).state == "running"


class Crossing:
    """A pause that somebody else's change crosses so many times."""

    def __init__(self, times: int):
        self._times = times
        self.crossed = 0

    def pause(self, connection: Connection, name: str, author: str, reason: str, now_ms: int) -> Any:
        if self.crossed < self._times:
            self.crossed += 1
            raise act.Overtaken
        return _pause(connection, name, author, reason, now_ms)


_pause = act.pause


@pytest.mark.parametrize(("times", "state"), [(1, "paused"), (4, "paused"), (100, "running")])
async def test_a_change_by_hand_that_a_look_crosses_is_made_again(
    trying: Trying, monkeypatch: pytest.MonkeyPatch, times: int, state: str
) -> None:
    await begun(trying)
    crossing = Crossing(times)
    monkeypatch.setattr(act, "pause", crossing.pause)
    if state == "paused":
        await trying.loop.pause("test", "ann", "wait")
        assert crossing.crossed == times
    else:
        with pytest.raises(act.Overtaken):
            await trying.loop.pause("test", "ann", "wait")
    assert (await trying.record()).state == state


async def test_one_that_cannot_be_looked_at_holds_up_no_other_and_is_named(
    trying: Trying, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun(trying, wanted(name="broken", layer="l", traffic=0.5))
    await begun(trying, wanted(name="whole", layer="l", traffic=0.5))

    def fails(seen: Any, state: Any, spec: Any, *more: Any) -> Any:
        if spec.name == "broken":
            raise ZeroDivisionError
        return decide(seen, state, spec, *more)

    with monkeypatch.context() as patch:
        patch.setattr(experiment_loop, "decide", fails)
        await trying.turn()
    assert ((await trying.record("broken")).looks, (await trying.record("whole")).looks) == (0, 1)
    assert [text for text in trying.loop.warnings() if "broken" in text]
    assert not [text for text in trying.loop.warnings() if "whole" in text]
    await trying.turn()
    assert trying.loop.warnings() == []
    assert (await trying.record("broken")).looks == 1


@pytest.mark.parametrize("metric", ["rating", "error_rate"])
async def test_a_fixed_horizon_hides_ratings_where_they_are_what_is_decided_on(trying: Trying, metric: str) -> None:
    await begun(trying, wanted(metric=metric, method="fixed", sample_size=1_000))
    await trying.come("a", 20)
    await trying.db.write(unit_sums.tell, [Told("test=a0", "test=a", 4.0, False, {})], trying.now_ms)
    await trying.turn()
    (first, _) = (await trying.record()).variants
    assert first.feedback == 1
    assert first.HasField("satisfaction") == (metric == "error_rate")


async def test_a_verdict_stands_although_its_rollout_cannot_begin_for_want_of_an_agent(trying: Trying) -> None:
    rollout = pb.RolloutSpec(steps=[pb.RolloutStep(weight=1.0)])
    await begun(trying, wanted(rollout=rollout))
    await trying.db.write(agents.delete, [AGENT], "ann", "gone", trying.now_ms)
    await trying.come("a", 500, failed=150)
    await trying.come("b", 500, failed=25)
    await trying.turn()
    record = await trying.record()
    assert (record.state, record.verdict, record.winner, record.rollout) == ("stopped", "win", "b", "")
    assert "its rollout was not begun" in record.reason


async def test_a_look_changes_all_or_nothing(trying: Trying, monkeypatch: pytest.MonkeyPatch) -> None:
    await begun(trying)
    before = await trying.db.read(experiments.get, "test")
    standing = await trying.split()
    await trying.come("a", 500, failed=150)
    await trying.come("b", 500, failed=25)

    def fails(*_: object) -> None:
        raise ValueError("at the very end of the transaction")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", fails)
        await trying.turn()
    assert await trying.db.read(experiments.get, "test") == before
    assert await trying.split() == standing
    assert await trying.db.read(experiments.course, "test") == []
    await trying.turn()
    assert (await trying.record()).verdict == "win"


async def test_what_nobody_told_is_no_figure(trying: Trying) -> None:
    """Costs that are not known are not nought: nothing is concluded from them."""
    await begun(trying, wanted(metric="cost", minimum_effect=0.01))
    calls = [call(f"{name}{at}", name, cost_nano_usd=None, tokens=None) for name in "ab" for at in range(500)]
    await trying.db.write(unit_sums.add, calls, trying.now_ms)
    await trying.turn()
    record = await trying.record()
    assert (record.state, record.verdict, record.units) == ("running", "", 1_000)
    assert not record.comparisons[0].HasField("effect")
    assert not record.variants[0].HasField("value")
