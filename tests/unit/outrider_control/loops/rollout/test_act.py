"""Rollouts that an experiment's verdict begins."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from outrider.split import PARTS, Split, Variant
from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import policy_pb2
from outrider_control.loops.rollout import act
from outrider_control.state import agents, revision, rollouts, splits
from outrider_control.state.database import Database
from tests.rollouts import AGENT, NOW_MS, Rolling, wanted


@pytest.fixture
async def rolling(database: Database) -> AsyncIterator[Rolling]:
    made = Rolling(database)
    await made.start(("v1", "v2", "v3"))
    yield made
    await made.close()


def experiment(**rollout: Any) -> pb.ExperimentSpec:
    made = pb.ExperimentSpec(name="test", agent_id=AGENT, unit="user", idle_s=60)
    for name, version, share in (("control", "v1", 0.4), ("two", "v2", 0.3), ("three", "v3", 0.3)):
        made.variants.add(name=name, share=share).labels["version"] = version
    made.rollout.CopyFrom(pb.RolloutSpec(**rollout))
    made.rollout.steps.add(weight=0.5, pause_s=1_000)
    return made


def running() -> Split:
    """The experiment's split: three variants of a fifth of the traffic."""
    variants = [
        Variant("control", 0.4, ((0, 400_000),), {"version": "v1"}),
        Variant("two", 0.3, ((400_000, 700_000),), {"version": "v2"}),
        Variant("three", 0.3, ((700_000, PARTS),), {"version": "v3"}),
    ]
    return Split("test", AGENT, tuple(variants), "seed", "user", "", 0, 200_000, False, idle_s=60)


async def verdict(rolling: Rolling, spec: pb.ExperimentSpec, winner: str) -> rollouts.RolloutRow | None:
    await rolling.db.write(splits.put, running())
    return await rolling.db.write(act.create_of_verdict, spec, winner, "two is better", NOW_MS)


async def test_a_winner_is_rolled_out_in_the_split_of_its_experiment(rolling: Rolling) -> None:
    row = await verdict(rolling, experiment(), "two")
    assert row is not None
    assert (row.name, row.experiment, row.split, row.author) == ("test-rollout", "test", "test", "experiment")
    assert await rolling.split("test") == running()  # until the first step begins
    await rolling.turn()
    split = await rolling.split("test")
    assert (split.seed, split.unit, split.is_open, split.layer_to) == ("seed", "user", True, PARTS)
    control, two, three = split.variants
    assert [one.share for one in split.variants] == [0.5, 0.5, 0.0]
    assert two.ranges[0] == (400_000, 700_000)  # who had it keeps it
    assert control.ranges[0] == (0, 400_000)
    assert not three.aborted  # its sessions end on what they have
    record = await rolling.loop.get("test-rollout")
    assert record.experiment == "test"
    assert (record.spec.candidate.name, record.spec.stable.name) == ("two", "control")
    await rolling.loop.abort("test-rollout", "ann", "no")
    split = await rolling.split("test")
    assert [(one.share, one.aborted) for one in split.variants] == [(1.0, False), (0.0, True), (0.0, False)]


@pytest.mark.parametrize("winner", ["", "control"])
async def test_nothing_is_rolled_out_where_nothing_new_has_won(rolling: Rolling, winner: str) -> None:
    assert await verdict(rolling, experiment(), winner) is None
    assert await rolling.db.read(rollouts.newest) == []


async def test_an_experiment_without_a_rollout_begins_none(rolling: Rolling) -> None:
    spec = experiment()
    spec.ClearField("rollout")
    assert await verdict(rolling, spec, "two") is None


async def test_what_is_in_the_way_is_said_and_nothing_is_done(rolling: Rolling) -> None:
    await rolling.loop.create(wanted("0.1:1000"), "ann", "first")
    with pytest.raises(act.Conflict, match="under way"):
        await verdict(rolling, experiment(name="second"), "two")
    assert (await rolling.split("test")) == running()


async def test_a_rollout_does_not_share_a_layer_with_an_experiment(rolling: Rolling) -> None:
    models = (Variant("a", 0.5, model="m1"), Variant("b", 0.5, model="m2"))
    await rolling.db.write(splits.put, Split("other", AGENT, models, "s", layer="l", layer_to=500_000))
    with pytest.raises(act.Conflict, match="layer 'l' has experiment 'other'"):
        await rolling.loop.create(wanted("0.1", layer="l"), "ann", "try")
    await rolling.loop.create(wanted("0.1", layer="m"), "ann", "try")


async def test_two_do_not_decide_on_the_same_of_a_call(rolling: Rolling) -> None:
    await rolling.db.write(splits.put, running())
    with pytest.raises(act.Conflict, match=r"experiment 'test' decides on labels .* as well"):
        await rolling.loop.create(wanted("0.1"), "ann", "try")


async def test_the_name_of_an_experiment_is_taken(rolling: Rolling) -> None:
    await rolling.db.write(splits.put, running())
    with pytest.raises(act.Conflict, match="is the name of"):
        await rolling.loop.create(wanted("0.1", name="test"), "ann", "try")


async def test_an_agent_that_is_gone_takes_its_split_with_it(rolling: Rolling) -> None:
    await rolling.loop.create(wanted("0.1:1000"), "ann", "try")
    await rolling.db.write(agents.delete, [AGENT], "ann", "gone", NOW_MS)
    await rolling.publisher.refresh()
    await rolling.turn()
    assert (await rolling.loop.get("out")).phase == "failed"
    assert await rolling.db.read(splits.of_agent, AGENT) == ()


async def test_old_ones_are_taken_out_but_for_the_one_in_force(rolling: Rolling) -> None:
    for name in ("one", "two"):
        await rolling.loop.create(wanted("1", name=name), "ann", "try")
        for _ in range(6):
            await rolling.turn()
    assert await rolling.db.write(rollouts.prune, rolling.now_ms + 1, 100) == 1
    assert [row.name for row in await rolling.db.read(rollouts.newest)] == ["two"]


async def ended(rolling: Rolling, spec: pb.RolloutSpec) -> None:
    await rolling.loop.create(spec, "ann", "try")
    for _ in range(6):
        await rolling.turn()
    assert (await rolling.loop.get(spec.name)).phase == "succeeded"


async def test_a_candidate_is_what_is_in_force_with_what_is_said_of_it(rolling: Rolling) -> None:
    await ended(rolling, wanted("1"))
    second = wanted("1", name="second")
    second.ClearField("stable")
    second.candidate.ClearField("labels")
    second.candidate.prompt_version = "p2"
    await ended(rolling, second)
    third = pb.RolloutSpec(name="third", agent_id=AGENT, steps=[pb.RolloutStep(weight=1.0)])
    third.candidate.model = "m2"
    made = await rolling.loop.create(third, "ann", "try")
    found = made.spec.candidate
    assert (dict(found.labels), found.prompt_version, found.model) == ({"version": "v2"}, "p2", "m2")
    assert (made.spec.stable.prompt_version, made.spec.stable.model) == ("p2", "")


async def test_what_a_verdict_says_nothing_of_stays_as_the_last_rollout_left_it(rolling: Rolling) -> None:
    await ended(rolling, wanted("1"))
    prompts = pb.ExperimentSpec(name="prompts", agent_id=AGENT, unit="session")
    for name, version in (("old", "p1"), ("new", "p2")):
        prompts.variants.add(name=name, share=0.5, prompt_version=version)
    prompts.rollout.steps.add(weight=1.0)
    halves = (Variant("old", 0.5, prompt_version="p1"), Variant("new", 0.5, prompt_version="p2"))
    since = await rolling.db.read(revision.current)
    await rolling.db.write(splits.put, Split("prompts", AGENT, halves, "s"))
    assert await rolling.db.write(act.create_of_verdict, prompts, "new", "better", NOW_MS) is not None
    assert await published(rolling, since) == ["out", "prompts"]  # v2 stays, or everybody would be back at v1
    version = wanted("1", name="version")
    version.candidate.prompt_version, version.stable.prompt_version = "p2", "p2"
    await rolling.turn()
    for _ in range(6):
        await rolling.turn()
    await ended(rolling, version)
    assert await published(rolling, since) == ["version"]  # it says all that the others said


async def published(rolling: Rolling, since: int) -> list[str]:
    """The splits that a sidecar is told of, in their order: the last one's word counts."""
    news = await rolling.db.read(splits.changed_since, since)
    return [policy_pb2.SplitPolicy.FromString(one).name for one in news[AGENT].splits]


async def test_an_experiment_is_tried_against_what_a_rollout_has_left(rolling: Rolling) -> None:
    since = await rolling.db.read(revision.current)
    await ended(rolling, wanted("1", name="z"))
    await rolling.db.write(splits.put, dataclasses.replace(running(), name="a"))
    assert await published(rolling, since) == ["z", "a"]
