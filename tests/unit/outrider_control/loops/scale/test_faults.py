"""Engines that fail, lie and hang, instances that die, others who change the number: what serves goes on serving."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from outrider_control.loops.scale.types import FAILED, READY, Decision, Instance, State
from outrider_control.state import scales
from outrider_control.state.database import Database, DatabaseError
from tests.scaling import Clock, Scene, plain_decide, tax


@pytest.fixture
async def scene(database: Database) -> AsyncIterator[Scene]:
    """Five instances that serve 35 calls."""
    async with Scene(database) as scene:
        await scene.apply(tax())
        scene.sidecar()
        await _turn(scene, 35)
        await scene.boot()
        await _turn(scene, 35)
        assert scene.loop.record("tax").ready == 5
        yield scene


async def _turn(scene: Scene, running: int, times: int = 1) -> None:
    for _ in range(times):
        scene.load(running=running)
        await scene.turn()


async def test_an_engine_that_says_nothing_keeps_the_last_good_size(scene: Scene) -> None:
    scene.engine.fails["instances"] = "the API server is away"
    await _turn(scene, 7, 120)
    record = scene.loop.record("tax")
    assert (record.state, record.desired, record.problem) == ("failing", 5, "the API server is away")
    assert len(scene.world.live) == 5
    reasons = await scene.reasons()
    assert [one for one in reasons if "API server" in one] == ["the API server is away; the last good size is kept"]
    scene.engine.fails.clear()
    await _turn(scene, 35, 61)
    assert scene.loop.record("tax").state == "scaling"


async def test_an_engine_that_cannot_grow_is_asked_again_and_less_often(scene: Scene) -> None:
    scene.engine.fails["grow"] = "no more room on this host"
    asked: list[int] = []
    grow = scene.engine.grow

    async def counted(agent_id: str, desired: int) -> None:
        asked.append(scene.clock())
        await grow(agent_id, desired)

    scene.engine.grow = counted
    await _turn(scene, 70, 300)
    assert scene.loop.record("tax").desired == 10
    assert scene.loop.record("tax").problem == "no more room on this host"
    waits = [b - a for a, b in itertools.pairwise(asked)]
    assert 7 <= len(asked) <= 15
    assert 40_000 <= max(waits) <= 61_000
    assert waits[0] < 5_000
    scene.engine.fails.clear()
    await _turn(scene, 70, 61)
    assert len(scene.world.live) == 10
    await scene.boot()
    await _turn(scene, 70, 2)
    assert scene.loop.record("tax").problem == ""


async def test_less_is_not_asked_of_an_engine_that_fails(scene: Scene) -> None:
    scene.engine.fails["shrink"] = "permission denied"
    await _turn(scene, 14, 4)
    assert "permission denied" in scene.loop.record("tax").problem
    await _turn(scene, 14)
    await scene.streams()
    assert scene.loop.record("tax").desired == 5
    assert len(scene.sidecars[0].addresses["tax"]) == 5  # who was drained serves again
    assert (await scene.reasons())[-1].startswith("permission denied; the last good size")
    assert len(scene.world.live) == 5


async def test_an_engine_that_does_not_end_what_it_took_on_to_end(scene: Scene) -> None:
    scene.engine.lies = True
    await _turn(scene, 14, 90)
    shrinks = [one for one in scene.world.asked if one[0] == "shrink"]
    assert 2 <= len(shrinks) <= 7
    assert all(one[1] == 2 and len(one[2]) == 3 for one in shrinks)
    assert scene.loop.record("tax").problem.endswith("and runs 5")
    scene.engine.lies = False
    await _turn(scene, 14, 61)
    assert len(scene.world.live) == 2
    assert scene.world.undrained == []


async def test_one_that_dies_during_a_drain_keeps_the_others(scene: Scene) -> None:
    await _turn(scene, 14)
    (drained,) = [one for one in scene.loop.instances("tax") if one.state == "draining"][:1]
    staying = next(one for one in scene.loop.instances("tax") if one.state == READY)
    scene.load(running=14, leaving={drained.address: 1})
    scene.world.instances[staying.name] = replace(scene.world.instances[staying.name], state=FAILED)
    await scene.turn()
    await scene.streams()
    assert scene.loop.record("tax").desired == 5
    assert len(scene.sidecars[0].addresses["tax"]) == 5
    assert not [one for one in scene.world.asked if one[0] == "shrink"]


async def test_who_ends_badly_when_told_to_is_no_failure(scene: Scene) -> None:
    shrink = scene.engine.shrink

    async def badly(agent_id: str, desired: int, leaving: Any) -> None:
        before = dict(scene.world.instances)
        await shrink(agent_id, desired, leaving)
        scene.world.instances |= {one.name: replace(before[one.name], state=FAILED) for one in leaving}

    scene.engine.shrink = badly
    await _turn(scene, 14, 6)
    record = scene.loop.record("tax")
    assert (record.desired, record.ready, record.problem) == (2, 2, "")


async def test_instances_that_die_at_their_start(scene: Scene) -> None:
    scene.engine.dies = True
    await _turn(scene, 70, 200)
    record = scene.loop.record("tax")
    assert (record.state, record.desired, record.ready) == ("failing", 10, 5)
    assert "ended by itself: Traceback: no module named tax" in record.problem
    grown = [one for one in scene.world.asked if one == ("grow", 10, ())]
    assert 4 <= len(grown) <= 15  # and not 200 times
    assert [one.state for one in scene.loop.instances("tax")].count(READY) == 5
    assert sum("ended by itself" in one for one in await scene.reasons()) <= 15
    await _turn(scene, 7)  # nothing is taken away meanwhile
    assert len(scene.world.live) == 5


async def test_one_that_dies_is_replaced(scene: Scene) -> None:
    scene.world.instances["tax-3"] = replace(scene.world.instances["tax-3"], state=FAILED, note="killed")
    await _turn(scene, 35)
    assert scene.loop.record("tax").problem == "instance tax-3 ended by itself: killed"
    await _turn(scene, 35, 2)
    assert len(scene.world.live) == 5
    await scene.boot()
    await _turn(scene, 35, 2)
    record = scene.loop.record("tax")
    assert (record.ready, record.problem, record.state) == (5, "", "scaling")


async def test_an_engine_that_lies_is_found_out(scene: Scene) -> None:
    scene.engine.lies = True
    await _turn(scene, 70, 90)
    problem = scene.loop.record("tax").problem
    assert problem.startswith("engine fake was asked for 10 instances")
    assert problem.endswith("and runs 5")
    assert len([one for one in scene.world.asked if one[1] == 10]) <= 7
    scene.engine.lies = False
    await _turn(scene, 70, 61)
    assert len(scene.world.live) == 10


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        ([Instance("a"), Instance("a")], "lists an instance twice"),
        ([Instance("a", state="odd")], "'odd' of a, which is no state"),
        (ValueError("what"), "a defect, see the log: ValueError('what')"),
        (None, "answers with no list of instances"),
        (["tax-1"], "answers with no list of instances"),
    ],
)
async def test_what_an_engine_says_is_checked(scene: Scene, listed: Any, problem: str) -> None:
    async def instances(agent_id: str) -> Any:
        if isinstance(listed, Exception):
            raise listed
        return listed

    scene.engine.instances = instances
    await _turn(scene, 7, 3)
    assert problem in scene.loop.record("tax").problem
    assert scene.loop.record("tax").desired == 5


async def test_somebody_else_changes_the_number(scene: Scene) -> None:
    for name in ("tax-1", "tax-2"):
        del scene.world.instances[name]
        await scene.deregister(scene.world.leases.pop(name))
    await _turn(scene, 35, 3)
    assert (await scene.reasons())[-1] == "somebody else changed tax from 5 to 3"
    assert scene.loop.record("tax").desired == 3
    await _turn(scene, 35, 3)
    assert len(scene.world.live) == 5  # after a moment, for the demand says so
    assert sum("somebody else" in one for one in await scene.reasons()) == 1


async def test_two_who_fight_do_so_less_and_less(scene: Scene) -> None:
    changes = 0
    for _ in range(300):
        await _turn(scene, 35)
        await scene.boot()
        if scene.loop.record("tax").ready == 5:
            changes += 1
            name = scene.world.live[0].name
            del scene.world.instances[name]
            await scene.deregister(scene.world.leases.pop(name))
    told = sum("somebody else" in one for one in await scene.reasons())
    assert 3 <= told <= 14
    assert changes <= told + 2


async def test_what_others_set_past_the_bounds_is_brought_back_gently(scene: Scene) -> None:
    await scene.engine.grow("tax", 14)
    await scene.boot()
    await _turn(scene, 35, 3)
    reason = (await scene.reasons())[-1]
    assert reason == "somebody else changed tax from 5 to 14; its policy asks for 10"
    await _turn(scene, 70, 8)
    assert len(scene.world.live) == 10
    assert scene.world.undrained == []


async def test_an_engine_without_choice_drains_nothing(database: Database) -> None:
    def plain(engine: Any) -> None:
        engine.chooses = False

    async with Scene(database, engine=plain) as scene:
        await scene.apply(tax())
        scene.sidecar()
        await _turn(scene, 35)
        await scene.boot()
        await _turn(scene, 35, 2)
        await _turn(scene, 14)
        assert scene.world.asked[-1] == ("shrink", 2, ())


async def test_an_engine_that_pulls_is_only_told(database: Database) -> None:
    def pulls(engine: Any) -> None:
        engine.pulls = True

    async with Scene(database, engine=pulls) as scene:
        told = []
        scene.loop.on_figures = lambda: told.append(scene.loop.last("tax"))
        await scene.apply(tax())
        scene.sidecar()
        scene.leads = False  # every control plane is asked
        await _turn(scene, 35, 2)
        assert (scene.loop.record("tax").desired, scene.loop.record("tax").engine) == (5, "fake")
        assert told[-1].demand == 35
        assert scene.world.asked == []
        assert await scene.journal() == []


async def test_an_engine_that_does_not_start(database: Database) -> None:
    def broken(engine: Any) -> None:
        engine.fails["start"] = "no such folder"

    async with Scene(database, engine=broken) as scene:
        await scene.apply(tax())
        scene.sidecar()
        await _turn(scene, 35, 5)
        record = scene.loop.record("tax")
        assert (record.state, record.problem, scene.loop.warnings()) == (
            "failing",
            "no such folder",
            ["scaling of tax: no such folder"],
        )
        assert await scene.reasons() == ["no such folder"]
        scene.engine.fails.clear()
        await _turn(scene, 35, 10)
        assert len(scene.world.live) == 5


async def test_what_cannot_be_is_told_once_and_as_json(database: Database) -> None:
    def frozen(seen: Any, state: State, scaling: Any, now_ms: int) -> tuple[Decision, State]:
        decision, following = plain_decide(seen, state, scaling, now_ms)
        inputs = {"in_flight": math.nan, "queued": -math.inf, "list": (1, math.nan)}
        return replace(decision, desired=state.desired, action="hold", reason="cannot be", inputs=inputs), following

    async with Scene(database, decide=frozen) as scene:
        await scene.apply(tax())
        scene.sidecar()
        await _turn(scene, -35, 5)
        (entry,) = await scene.journal()
        assert entry.reason == "cannot be"
        assert entry.inputs == {"engine": "fake", "in_flight": "nan", "queued": "-inf", "list": [1, "nan"]}


async def test_a_decision_that_cannot_be_is_not_taken(database: Database) -> None:
    def mad(seen: Any, state: State, scaling: Any, now_ms: int) -> tuple[Decision, State]:
        return Decision(seen.agent_id, now_ms, -3, "down", "mad"), state

    async with Scene(database, decide=mad) as scene:
        await scene.apply(tax())
        scene.sidecar()
        await _turn(scene, 7, 2)
        last = scene.loop.last("tax")
        assert last is not None
        assert (last.action, last.desired) == ("hold", 0)


async def test_a_decision_that_raises_ends_no_other_turn(database: Database) -> None:
    def broken(seen: Any, *_: Any) -> Any:
        raise ZeroDivisionError

    async with Scene(database, decide=broken) as scene:
        await scene.apply(tax())
        scene.sidecar()
        await _turn(scene, 7)
        assert scene.loop.record("tax").problem == "a defect: see the log"


async def test_while_the_store_is_away_nothing_is_asked_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> Any:
        raise DatabaseError("the store", "is away")

    before = list(scene.world.asked)
    with monkeypatch.context() as patch:
        patch.setattr(scene.db, "write", away)
        for _ in range(3):
            with contextlib.suppress(DatabaseError):
                await _turn(scene, 70)
        assert "the store is away" in scene.loop.failing
        assert "the store is away" in scene.loop.warnings()[0]
    assert scene.world.asked == before
    await _turn(scene, 70)
    assert scene.world.asked[-1] == ("grow", 10, ())


async def test_two_loops_at_once_agree(database: Database) -> None:
    clock = Clock()
    async with Scene(database, clock) as one, Scene(database, clock, one.world, "control-2") as two:
        await one.apply(tax())
        await two.publisher.refresh()
        for scene in (one, two):
            scene.sidecar(f"of {scene.fleet.control_id}")
        for calls in (7, 70, 70, 21, 21, 21, 21, 21, 70, 7):
            for scene in (one, two):
                scene.load(running=calls)
            clock.now_ms += 1_000
            await asyncio.gather(one.loop.turn(), two.loop.turn())
            await asyncio.gather(one.loop.settled(), two.loop.settled())
            for scene in (one, two):
                await scene.publisher.refresh()
            await one.boot()
            await two.publisher.refresh()
            await two.streams()
        assert one.world.undrained == []
        moves = [
            (entry.outcome["from"], entry.outcome["to"])
            for entry in await one.journal()
            if entry.outcome["action"] != "hold"
        ]
        assert all(after == following for (_, after), (following, _) in itertools.pairwise(moves))
        row = await database.read(scales.of_agent, "tax")
        assert row.desired == moves[-1][1]
        assert row.version == len(moves) + 1
