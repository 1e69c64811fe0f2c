"""The loop as a whole: what it decides is in the store, is done, and is found again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from outrider.policy import Agent
from outrider_control.state import agents, scales
from outrider_control.state.database import Database
from tests.scaling import Scene, tax


@pytest.fixture
async def scene(database: Database) -> AsyncIterator[Scene]:
    async with Scene(database) as scene:
        await scene.apply(tax())
        scene.sidecar()
        yield scene


def tax_named(agent_id: str) -> Agent:
    return replace(tax(), agent_id=agent_id)


async def _serving(scene: Scene, running: int) -> None:
    """As many instances as that takes are there and serve."""
    scene.load(running=running)
    await scene.turn()
    await scene.boot()
    scene.load(running=running)
    await scene.turn()


async def test_from_nothing_to_what_is_needed(scene: Scene) -> None:
    scene.load(waiting=30, running=5)
    await scene.turn()
    assert scene.world.asked == [("grow", 5, ())]
    row = await scene.db.read(scales.of_agent, "tax")
    assert (row.desired, row.changed_ms) == (5, scene.clock())
    record = scene.loop.record("tax")
    assert (record.state, record.engine, record.desired, record.ready) == ("scaling", "fake", 5, 0)
    assert (record.demand, record.queued, record.capacity) == (35, 30, 10)
    await scene.boot()
    scene.load(running=35)
    await scene.turn()
    record = scene.loop.record("tax")
    assert (record.ready, record.starting, record.problem) == (5, 0, "")
    assert len(scene.world.asked) == 1
    (entry,) = await scene.journal()
    assert (entry.kind, entry.author, entry.agent_id, entry.reason) == ("scale", "scaler", "tax", "35 calls need 5")
    assert (entry.outcome["from"], entry.outcome["to"], entry.outcome["action"]) == (0, 5, "up")
    assert entry.inputs == {"engine": "fake", "demand": 35, "ready": 0}
    last = scene.loop.last("tax")
    assert last is not None
    assert (last.action, last.desired) == ("hold", 5)
    assert scene.loop.actions == {("tax", "up"): 1, ("tax", "hold"): 1}
    assert [one.state for one in scene.loop.instances("tax")] == ["ready"] * 5


async def test_a_scale_down_drains_first(scene: Scene) -> None:
    await _serving(scene, 30)
    assert scene.loop.record("tax").ready == 5
    scene.load(running=20)
    await scene.turn()
    assert scene.loop.record("tax").desired == 3
    assert scene.loop.record("tax").draining == 2
    await scene.streams()
    assert len(scene.sidecars[0].addresses["tax"]) == 3
    assert scene.world.asked[-1][0] == "grow"  # nothing is ended yet
    leaving = [one.address for one in scene.loop.instances("tax") if one.state == "draining"]
    for _ in range(3):
        scene.load(running=20, leaving={leaving[0]: 1})
        await scene.turn()
    assert len(scene.world.live) == 5
    scene.clock.now_ms += 10
    scene.load(running=20)
    await scene.turn()
    assert scene.world.asked[-1][:2] == ("shrink", 3)
    scene.load(running=20)
    await scene.turn()
    record = scene.loop.record("tax")
    assert (record.ready, record.draining, record.desired) == (3, 0, 3)
    assert scene.world.undrained == []


async def test_a_drain_is_over_at_its_time_whatever_runs(scene: Scene) -> None:
    await _serving(scene, 10)
    scene.load(running=7)
    await scene.turn()
    (leaving,) = [one.address for one in scene.loop.instances("tax") if one.state == "draining"]
    for _ in range(19):
        scene.load(running=7, leaving={leaving: 1})
        await scene.turn()
    assert len(scene.world.live) == 2
    scene.load(running=7, leaving={leaving: 1})
    await scene.turn()
    assert len(scene.world.live) == 1
    assert scene.world.undrained == []


async def test_who_is_about_to_leave_is_had_back_first(scene: Scene) -> None:
    await _serving(scene, 35)
    scene.load(running=7)
    await scene.turn()
    assert scene.loop.record("tax").draining == 4
    grown = len(scene.world.asked)
    scene.load(running=21)
    await scene.turn()
    await scene.streams()
    assert scene.loop.record("tax").draining == 2
    assert len(scene.sidecars[0].addresses["tax"]) == 3
    scene.load(waiting=1, running=42)
    await scene.turn()
    await scene.streams()
    assert len(scene.sidecars[0].addresses["tax"]) == 5
    assert scene.world.asked[grown:] == [("grow", 7, ())]
    assert scene.world.undrained == []


async def test_a_sidecar_that_does_not_answer_bounds_the_wait(scene: Scene) -> None:
    mute = scene.sidecar("mute", acks=False)
    await _serving(scene, 14)
    mute.ack()
    scene.load(running=7)
    await scene.turn()
    for _ in range(5):
        assert len(scene.world.live) == 2
        scene.load(running=7)
        await scene.turn()
    for _ in range(3):
        scene.load(running=7)
        await scene.turn()
    assert len(scene.world.live) == 1


async def test_without_reports_nothing_changes_and_it_is_said_once(scene: Scene) -> None:
    await _serving(scene, 14)
    before = len(await scene.journal())
    for _ in range(10):
        await scene.turn()
    record = scene.loop.record("tax")
    assert (record.state, record.desired, record.HasField("demand")) == ("no data", 2, False)
    assert len(scene.world.live) == 2
    assert [one.reason for one in (await scene.journal())[before:]] == ["no data"]


async def test_a_call_that_waits_at_zero_is_seen_at_once(database: Database) -> None:
    async with Scene(database) as scene:
        await scene.apply(tax(min_instances=0))
        scene.sidecar()
        scene.load()
        await scene.turn()
        assert scene.world.asked == []
        scene.load(waiting=1)
        await scene.loop.settled()
        assert scene.world.asked == [("grow", 1, ())]


async def test_what_is_paused_stays_as_it_is_across_a_restart(scene: Scene) -> None:
    await _serving(scene, 14)
    record = await scene.loop.pause("tax", "ann", "a release")
    assert (record.state, record.paused_by, record.paused_reason) == ("paused", "ann", "a release")
    scene.load(running=70)
    await scene.turn()
    assert len(scene.world.live) == 2
    async with Scene(scene.db, scene.clock, scene.world, "control-2") as after:
        after.sidecar()
        after.load(running=70)
        await after.turn()
        assert after.loop.record("tax").state == "paused"
        assert len(scene.world.live) == 2
        record = await after.loop.resume("tax", "ann", "done")
        assert (record.state, record.paused_by) == ("scaling", "")
        after.load(running=70)
        await after.turn()
        assert len(scene.world.live) == 10
    with pytest.raises(KeyError):
        await scene.loop.pause("nobody", "ann", "")
    with pytest.raises(KeyError):
        scene.loop.record("nobody")


async def test_pausing_takes_back_who_was_about_to_leave(scene: Scene) -> None:
    await _serving(scene, 14)
    scene.load(running=7)
    await scene.turn()
    assert scene.loop.record("tax").draining == 1
    await scene.loop.pause("tax", "ann", "wait")
    scene.load(running=7)
    await scene.turn()
    await scene.streams()
    assert len(scene.sidecars[0].addresses["tax"]) == 2
    assert (await scene.db.read(scales.of_agent, "tax")).desired == 2


async def test_what_is_switched_off_or_has_no_engine_is_let_be(database: Database) -> None:
    async with Scene(database) as scene:
        await scene.apply(tax(enabled=False))
        scene.sidecar()
        scene.load(running=70)
        await scene.turn()
        assert scene.loop.record("tax").state == "disabled"
        scene.engine.agents = set()
        await scene.apply(tax())
        scene.load(running=70)
        await scene.turn()
        record = scene.loop.record("tax")
        assert (record.state, record.engine, record.problem) == ("no engine", "", "")
        await scene.apply(tax(engine="prod"))
        await scene.turn()
        assert "'prod', which is not in this control plane's configuration" in scene.loop.record("tax").problem
        assert scene.world.asked == []
        assert await scene.journal() == []
        assert (await scene.db.read(scales.of_agent, "tax")).version == 0


async def test_a_restart_keeps_what_there_is_and_goes_on_draining(scene: Scene) -> None:
    await _serving(scene, 35)
    scene.load(running=20)
    await scene.turn()
    assert scene.loop.record("tax").draining == 2
    async with Scene(scene.db, scene.clock, scene.world, "control-2") as after:
        sidecar = after.sidecar()
        after.load(running=20)
        await after.turn()
        assert after.loop.record("tax").desired == 3
        assert after.loop.record("tax").draining == 2
        for _ in range(3):
            after.load(running=20)
            await after.turn()
        assert len(scene.world.live) == 3
        assert len(sidecar.addresses["tax"]) == 3
        assert scene.world.undrained == []
        assert len([entry for entry in await after.journal() if entry.outcome["action"] != "hold"]) == 2


async def test_a_restart_that_finds_more_than_was_left_takes_nothing_away(scene: Scene) -> None:
    await _serving(scene, 14)
    await scene.engine.grow("tax", 4)
    await scene.boot()
    async with Scene(scene.db, scene.clock, scene.world, "control-2") as after:
        after.sidecar()
        await after.turn()
        assert after.loop.record("tax").desired == 4
        assert (await after.reasons())[-2:] == ["4 instances run and not 2, as was left: goes on from 4", "no data"]


async def test_who_does_not_lead_does_nothing_and_says_what_the_leader_said(database: Database) -> None:
    async with Scene(database, shared=True) as leader:
        await leader.apply(tax())
        leader.sidecar()
        leader.load(running=14)
        await leader.turn()
        await leader.boot()
        for _ in range(3):
            leader.load(running=14)
            await leader.turn()
        async with Scene(database, leader.clock, leader.world, "control-2", shared=True) as other:
            other.leads = False
            await other.turn()
            assert other.engine.started == 0
            record = other.loop.record("tax")
            assert (record.state, record.desired, record.ready, record.engine) == ("scaling", 2, 2, "fake")
            assert record.demand == 14
            last = other.loop.last("tax")
            assert last is not None
            assert last.reason == "14 calls need 2"
            assert [one.state for one in other.loop.instances("tax")] == ["ready", "ready"]
            assert (await other.loop.pause("tax", "ann", "why")).state == "paused"
            leader.load(running=70)
            await leader.turn()
            assert leader.loop.record("tax").state == "paused"
            assert len(leader.world.live) == 2


async def test_losing_the_lead_ends_everything_at_once(scene: Scene) -> None:
    await _serving(scene, 14)
    engine = scene.engine
    scene.leads = False
    scene.load(running=70)
    await scene.turn()
    assert engine.closed == 1
    assert len(scene.world.live) == 2
    scene.load(waiting=5)
    await scene.loop.settled()
    scene.leads = True
    scene.load(running=70)
    await scene.turn()
    assert scene.engine is not engine
    assert len(scene.world.live) == 10


async def test_losing_the_lead_in_the_midst_of_a_turn(scene: Scene) -> None:
    await _serving(scene, 14)
    instances = scene.engine.instances

    async def late(agent_id: str):
        scene.leads = False
        return await instances(agent_id)

    scene.engine.instances = late
    before = await scene.journal()
    await scene.turn(4)  # no data: that would be told
    scene.leads = True
    scene.load(running=70)
    await scene.turn()
    assert await scene.journal() == before
    assert len(scene.world.live) == 2


async def test_an_engine_that_hangs_holds_up_nobody_else(database: Database) -> None:
    async with Scene(database) as scene:
        await scene.apply(tax(), tax_named("law"))
        scene.sidecar()
        scene.load(running=7)
        await scene.turn()
        instances = scene.engine.instances
        asked: list[str] = []

        async def some(agent_id: str):
            asked.append(agent_id)
            if agent_id == "law":
                await asyncio.Event().wait()
            return await instances(agent_id)

        scene.engine.instances = some  # pyright: ignore[reportAttributeAccessIssue]
        scene.load(running=70)
        scene.clock.now_ms += 1_000
        await scene.loop.turn()
        while "tax" in scene.loop._tasks:
            await asyncio.sleep(0)
        assert scene.loop.record("tax").desired == 10
        assert "law" in scene.loop._tasks
        await scene.loop.settled()
        assert "gives no answer within 0.2 s" in scene.loop.record("law").problem


async def test_an_agent_that_is_gone_is_forgotten(scene: Scene) -> None:
    await _serving(scene, 14)
    await scene.db.write(agents.delete, ["tax"], "ann", "", 5)
    await scene.publisher.refresh()
    await scene.turn()
    assert scene.loop.records() == []
    assert scene.loop._scalers == {}
    assert len(scene.world.live) == 2


async def test_the_loop_runs_by_itself(database: Database) -> None:
    async with Scene(database, interval_ms=1) as scene:
        await scene.apply(tax())
        scene.sidecar()
        scene.load(running=70)
        scene.loop.start()
        async with asyncio.timeout(10):
            while len(scene.world.live) < 10:
                await asyncio.sleep(0.001)
