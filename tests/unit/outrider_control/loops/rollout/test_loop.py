from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from outrider.policy import PolicyError
from outrider.split import PARTS
from outrider_control.loops.rollout import act, record
from outrider_control.loops.rollout.by_hand import Refused
from outrider_control.loops.rollout.types import UnknownRollout
from outrider_control.state import agents, journal, rollouts, splits
from outrider_control.state.agents import UnknownAgent
from outrider_control.state.database import Database, DatabaseError
from tests.rollouts import AGENT, Rolling, errors, variant, wanted


@pytest.fixture
async def rolling(database: Database) -> AsyncIterator[Rolling]:
    made = Rolling(database)
    await made.start()
    yield made
    await made.close()


async def told(rolling: Rolling, action: bool = True) -> list[Any]:
    """What the journal has of rollouts, oldest first."""
    entries = await rolling.db.read(journal.read, AGENT, record.KIND)
    return [one.outcome["action"] if action else one for one in reversed(entries)]


async def test_a_rollout_that_is_good(rolling: Rolling) -> None:
    first = await rolling.loop.create(wanted("0.1:5", "0.5", analyses=[errors(interval_s=5)]), "ann", "v2 is ready")
    assert (first.phase, first.weight, first.author, first.reason) == ("initializing", 0.0, "ann", "v2 is ready")
    assert await rolling.weight() == 0.0
    await rolling.turn()
    assert await rolling.weight() == 0.1
    ranges = [one.ranges for one in (await rolling.split()).variants]
    assert ranges == [((0, 900_000),), ((900_000, PARTS),)]
    for units in range(100, 2_000, 100):
        rolling.tally.say(variant("candidate", units, units // 50), variant("stable", 1_000))
        await rolling.turn()
    found = await rolling.loop.get("out")
    assert (found.phase, found.weight, found.step) == ("succeeded", 1.0, 1)
    assert found.candidate_units
    assert found.stable_units == 1_000
    assert found.ended_unix_ms
    assert await rolling.weight() == 1.0
    assert await told(rolling) == ["create", "initialize", "step", "promote", "finalise", "succeed"]


async def test_a_rollout_that_does_harm(rolling: Rolling) -> None:
    await rolling.loop.create(wanted("0.5", "1", analyses=[errors(interval_s=1)]), "ann", "try")
    await rolling.turn()
    rolling.tally.say(variant("candidate", 200, 150))
    await rolling.turn()
    found = await rolling.loop.get("out")
    assert (found.phase, found.weight) == ("failed", 0.0)
    assert found.analyses[0].state == "failed"
    assert found.analyses[0].value == pytest.approx(0.75)
    split = await rolling.split()
    assert [(one.name, one.share, one.aborted) for one in split.variants] == [
        ("stable", 1.0, False), ("candidate", 0.0, True),
    ]  # fmt: skip
    entry = (await told(rolling, False))[-1]
    assert (entry.outcome["action"], entry.outcome["weight"], entry.author) == ("abort", 0.0, "rollout")
    assert entry.inputs["analyses"][0]["failed"] == 1
    for _ in range(10):
        await rolling.turn()
    assert await rolling.weight() == 0.0


async def test_it_waits_for_its_endpoints(rolling: Rolling) -> None:
    await rolling.have(["v1"])
    await rolling.publisher.refresh()
    await rolling.loop.create(wanted("0.5:1000", "1"), "ann", "try")
    for _ in range(3):
        await rolling.turn()
    found = await rolling.loop.get("out")
    assert (found.phase, found.weight) == ("initializing", 0.0)
    assert "version=v2" in found.problem
    await rolling.have(["v1", "v2"])
    await rolling.publisher.refresh()
    await rolling.turn()
    found = await rolling.loop.get("out")
    assert (found.phase, found.problem) == ("progressing", "")


async def test_only_the_leader_acts_but_anybody_takes_a_change(rolling: Rolling) -> None:
    rolling.leads = False
    await rolling.loop.create(wanted("0.5:1000", "1"), "ann", "try")
    for _ in range(3):
        await rolling.turn()
    assert (await rolling.loop.get("out")).phase == "initializing"
    assert (await rolling.loop.promote("out", "ann", "now", False)).weight == 0.5
    assert (await rolling.loop.pause("out", "ann", "wait")).phase == "paused"
    assert (await rolling.loop.resume("out", "ann", "on")).phase == "progressing"
    assert (await rolling.loop.abort("out", "ann", "no")).phase == "failed"
    assert await rolling.weight() == 0.0
    authors = {one.author for one in await told(rolling, False)}
    assert authors == {"ann"}


async def test_what_a_person_promotes_elsewhere_counts_units_from_the_next_look(rolling: Rolling) -> None:
    await rolling.loop.create(wanted("0.1", "0.5", "1", analyses=[errors(interval_s=1)]), "ann", "try")
    await rolling.turn()
    rolling.tally.say(variant("candidate", 1_000, 0))
    await rolling.loop.promote("out", "ann", "on", False)  # no measurement of the first step's units
    for _ in range(5):
        await rolling.turn()
    found = await rolling.loop.get("out")
    assert (found.step, found.analyses[0].successful) == (1, 0)
    rolling.tally.say(variant("candidate", 1_200, 0))
    await rolling.turn()
    assert (await rolling.loop.get("out")).step == 2


async def test_an_abort_by_hand_wins_over_a_turn_that_is_under_way(rolling: Rolling) -> None:
    await rolling.loop.create(wanted("0.1", "0.5", "1"), "ann", "try")
    row = await rolling.db.read(rollouts.get, "out")
    assert row is not None
    await rolling.loop.abort("out", "ann", "no")
    before = record.from_json(row.state)
    with pytest.raises(act.Overtaken):
        await rolling.db.write(act.store, row, before, before, None, rolling.now_ms)
    await rolling.turn()
    assert await rolling.weight() == 0.0
    assert await told(rolling) == ["create", "abort"]


async def test_changes_that_cannot_be(rolling: Rolling) -> None:
    loop = rolling.loop
    with pytest.raises(UnknownRollout):
        await loop.get("none")
    with pytest.raises(UnknownRollout):
        await loop.abort("none", "ann", "x")
    other = wanted("1")
    other.agent_id = "nobody"
    with pytest.raises(UnknownAgent):
        await loop.create(other, "ann", "x")
    with pytest.raises(PolicyError, match="steps: is empty"):
        await loop.create(wanted(), "ann", "x")
    await loop.create(wanted("0.1:1000"), "ann", "x")
    with pytest.raises(act.Conflict, match="exists already"):
        await loop.create(wanted("0.1"), "ann", "x")
    with pytest.raises(act.Conflict, match="under way"):
        await loop.create(wanted("0.1", name="second"), "ann", "x")
    with pytest.raises(Refused, match="not paused"):
        await loop.resume("out", "ann", "x")
    assert await told(rolling) == ["create"]  # what was refused left nothing


async def following(rolling: Rolling, **fields: Any) -> Any:
    """A rollout of v3 after one of v2 that has succeeded."""
    await rolling.loop.create(wanted("1"), "ann", "v2")
    for _ in range(5):
        await rolling.turn()
    assert (await rolling.loop.get("out")).phase == "succeeded"
    await rolling.have(["v1", "v2", "v3"])
    await rolling.publisher.refresh()
    third = wanted("0.1:1000", "1", name="third", **fields)
    third.candidate.labels["version"] = "v3"
    third.ClearField("stable")
    made = await rolling.loop.create(third, "ann", "v3")
    assert made.spec.stable.labels["version"] == "v2"  # what the last one has left in force
    await rolling.turn()
    with pytest.raises(Refused, match="followed"):
        await rolling.loop.abort("out", "ann", "back to v1")
    return made


async def test_the_next_rollout_goes_on_in_the_split_of_the_last_one(rolling: Rolling) -> None:
    made = await following(rolling, overrides={"tester": "candidate"})
    assert (made.spec.stable.name, made.spec.candidate.name) == ("candidate", "candidate-2")
    (split,) = await rolling.db.read(splits.of_agent, AGENT)
    shown = [(one.name, one.labels["version"], one.share) for one in split.variants]
    assert shown == [("candidate", "v2", 0.9), ("stable", "v1", 0.0), ("candidate-2", "v3", 0.1)]
    assert split.overrides == {"tester": "candidate-2"}
    assert split.name == "out"  # so sessions that have v1 or v2 keep it
    rolling.tally.say(variant("candidate-2", 10), variant("candidate", 20))
    await rolling.turn(6)
    await rolling.loop.abort("third", "ann", "no")
    found = await rolling.loop.get("third")
    assert (found.weight, found.candidate_units, found.stable_units) == (0.0, 10, 20)
    (split,) = await rolling.db.read(splits.of_agent, AGENT)
    assert [(one.share, one.aborted) for one in split.variants] == [(1.0, False), (0.0, False), (0.0, True)]


async def test_the_next_rollout_takes_the_place_of_one_that_it_cannot_continue(rolling: Rolling) -> None:
    await following(rolling, unit="user")
    (split,) = await rolling.db.read(splits.of_agent, AGENT)
    assert (split.name, split.unit) == ("third", "user")
    assert [dict(one.labels) for one in split.variants] == [{"version": "v2"}, {"version": "v3"}]


async def test_a_version_may_be_tried_again(rolling: Rolling) -> None:
    names = []
    for number in range(25):
        made = await rolling.loop.create(wanted("0.5:1000", "1", name=f"try-{number}"), "ann", "again")
        names.append(made.spec.candidate.name)
        await rolling.turn()
        assert (await rolling.loop.get(f"try-{number}")).weight == 0.5
        (split,) = await rolling.db.read(splits.of_agent, AGENT)
        assert [one.share for one in split.variants if one.share] == [0.5, 0.5]
        assert len(split.variants) <= 20
        await rolling.loop.abort(f"try-{number}", "ann", "no")
    assert len(set(names)) == 25
    assert names[:3] == ["candidate", "candidate-2", "candidate-3"]


async def test_a_success_can_be_taken_back(rolling: Rolling) -> None:
    await rolling.loop.create(wanted("1"), "ann", "v2")
    for _ in range(5):
        await rolling.turn()
    found = await rolling.loop.abort("out", "ann", "complaints")
    assert (found.phase, found.weight, found.reason) == ("failed", 0.0, "complaints")
    assert await rolling.weight() == 0.0


async def test_an_agent_that_is_taken_away(rolling: Rolling) -> None:
    await rolling.loop.create(wanted("0.1:1000"), "ann", "v2")
    await rolling.turn()
    await rolling.db.write(agents.delete, [AGENT], "ann", "gone", rolling.now_ms)
    await rolling.publisher.refresh()
    await rolling.turn()
    found = await rolling.loop.get("out")
    assert found.phase == "failed"
    assert "not configured" in found.reason


class Killed(BaseException):
    """Nothing of the process goes on."""


class Mortal:
    """A store whose user is killed at its n-th transaction: before it, or once it is committed."""

    def __init__(self, db: Database, at: int, committed: bool):
        self.dialect = db.dialect
        self.read = db.read
        self._db = db
        self._left = at
        self._committed = committed

    async def write(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._committed:
            raise Killed
        result = await self._db.write(function, *arguments)
        if self._left == 0:
            raise Killed
        return result


class Traffic:
    """Sixty units a second, which fail once the candidate has half of the traffic."""

    def __init__(self) -> None:
        self.units = self.failed = 0

    def come(self, rolling: Rolling, weight: float) -> None:
        self.units += 60
        self.failed += 60 if weight >= 0.5 else 0
        rolling.tally.say(variant("candidate", self.units, self.failed), variant("stable", 1_000))


async def course(db: Database, kill_at: int, committed: bool) -> tuple[list[Any], bool]:
    """The transitions of a rollout that goes some steps and is then aborted, and whether it was killed on the way."""
    rolling, traffic = Rolling(db), Traffic()
    await rolling.start()
    steps = wanted("0.1:3", "0.3:3", "0.6:3", "1", analyses=[errors(interval_s=1)], webhooks=["https://a.test/hook"])
    await rolling.loop.create(steps, "ann", "try")
    rolling.loop._db = Mortal(db, kill_at, committed)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    killed = False
    for _ in range(30):
        traffic.come(rolling, await rolling.weight())
        try:
            await rolling.turn()
        except Killed:
            killed = True
            rolling.fresh()
    entries = await told(rolling, False)
    messages = await db.read(rollouts.waiting)
    assert [json.loads(one.body)["event"] for one in messages] == [one.outcome["action"] for one in entries]
    assert len({one.key for one in messages}) == len(messages)
    await rolling.close()
    shown = ("action", "before", "phase", "step", "weight_before", "weight")
    return [tuple([one.outcome[name] for name in shown]) for one in entries], killed


@pytest.mark.parametrize("committed", [False, True], ids=["before", "committed"])
async def test_killed_at_any_transaction_it_goes_on_where_it_stood(tmp_path: Path, committed: bool) -> None:
    async def once(number: int) -> tuple[list[Any], bool]:
        db = Database.open(f"sqlite:///{tmp_path}/{number}.db")
        try:
            return await course(db, number, committed)
        finally:
            await db.close()

    undisturbed, _ = await once(0)
    assert [one[0] for one in undisturbed] == ["create", "initialize", "step", "step", "abort"]
    number, killed = 0, True
    while killed:
        number += 1
        found, killed = await once(number)
        assert found == undisturbed, number
    assert number > len(undisturbed)


async def test_a_store_that_is_away_changes_nothing(rolling: Rolling) -> None:
    await rolling.loop.create(wanted("0.1:3", "1"), "ann", "try")
    real = rolling.loop._db  # pyright: ignore[reportPrivateUsage]

    class Away:
        dialect = real.dialect

        async def read(self, *_arguments: Any) -> Any:
            raise DatabaseError("store", "is away")

        write = read

    rolling.loop._db = Away()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    with pytest.raises(DatabaseError):
        await rolling.turn()
    rolling.loop._db = real  # pyright: ignore[reportPrivateUsage]
    await rolling.turn()
    assert (await rolling.loop.get("out")).phase == "progressing"


async def test_it_runs_by_itself(rolling: Rolling) -> None:
    rolling.loop._interval_ms = 1  # pyright: ignore[reportPrivateUsage]
    rolling.loop.start()
    await rolling.loop.create(wanted("1"), "ann", "try")
    async with asyncio.timeout(20):
        while (await rolling.loop.get("out")).phase != "succeeded":
            await asyncio.sleep(0.005)
    assert rolling.loop.warnings() == []
