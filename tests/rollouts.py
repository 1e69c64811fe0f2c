"""Rollouts for tests: specs, units that are said to have come, and a loop on a real store in virtual time.

Always holds: nothing is replaced but the clock and the tally, whose sums the test says; every turn is a second later.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from outrider.policy import Agent, EndpointPolicy
from outrider.split import Split
from outrider.v1 import experiment_pb2 as pb
from outrider_control.core.stats.moments import Moments
from outrider_control.core.stats.quantiles import BucketMoments
from outrider_control.loops.experiment.types import Metric, VariantSeen
from outrider_control.loops.rollout.loop import RolloutLoop
from outrider_control.loops.rollout.spec import checked, spec_of
from outrider_control.loops.rollout.types import Spec
from outrider_control.loops.rollout.webhook import Webhooks
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.publisher import Publisher
from outrider_control.state import agents, splits
from outrider_control.state.agents import Wanted
from outrider_control.state.database import Database

AGENT = "agent"
NOW_MS = 1_800_000_000_000


def wanted(*steps: str, name: str = "out", analyses: Sequence[pb.Analysis] = (), **fields: object) -> pb.RolloutSpec:
    """A rollout of version v2 over v1. Each step is "WEIGHT[:PAUSE_S][:confirm]"."""
    made = pb.RolloutSpec(name=name, agent_id=AGENT, analyses=analyses, **fields)  # pyright: ignore[reportArgumentType]
    made.candidate.labels["version"] = "v2"
    made.stable.labels["version"] = "v1"
    for text in steps:
        weight, *more = text.split(":")
        pause = [one for one in more if one.isdecimal()]
        made.steps.add(weight=float(weight), pause_s=int(pause[0]) if pause else 0, confirm="confirm" in more)
    return made


def spec(*steps: str, **fields: object) -> Spec:
    """What of it decides."""
    return spec_of(checked(wanted(*steps, **fields)))  # pyright: ignore[reportArgumentType]


def errors(maximum: float = 0.1, **fields: object) -> pb.Analysis:
    """At most this share of calls may fail."""
    return pb.Analysis(metric=pb.Metric(name="error_rate"), max=maximum, **fields)  # pyright: ignore[reportArgumentType]


def variant(name: str, units: int, failed: int = 0, key: str = "error_rate", calls_each: int = 1) -> VariantSeen:
    """Units of equal calls, of which the first `failed` failed with all of theirs."""
    moments = Moments()
    for at in range(units):
        moments.add((float(calls_each * (at < failed)), float(calls_each), 0.0, 0.0))
    return VariantSeen(name, units, units * calls_each, {key: moments})


def slow(name: str, latencies_ms: Sequence[Mapping[int, int]]) -> VariantSeen:
    """Units by their calls in buckets of latency."""
    buckets = BucketMoments()
    for one in latencies_ms:
        buckets.add(one)
    return VariantSeen(name, len(latencies_ms), sum([sum(one.values()) for one in latencies_ms]), {}, buckets)


class Tallied:
    """What is said to have come of every split."""

    def __init__(self) -> None:
        self.variants: dict[str, VariantSeen] = {}

    def say(self, *variants: VariantSeen) -> None:
        self.variants = {one.name: one for one in variants}

    def keep(self, owner: str, splits: Iterable[str]) -> None:
        pass

    def want(self, split: str, metrics: Iterable[Metric]) -> None:
        pass

    async def refresh(self, splits: Iterable[str] | None = None) -> None:
        pass

    def seen(self, split: str, metrics: Sequence[Metric]) -> Mapping[str, VariantSeen]:
        return self.variants


class Rolling:
    """A control plane's rollouts: `turn` takes one turn of the loop, a second later."""

    def __init__(self, db: Database):
        self.db = db
        self.now_ms = NOW_MS
        self.tally = Tallied()
        self.leads = True
        self.fleet = Fleet("control-1", self.clock_ms)
        self.publisher = Publisher(db, self.fleet, self.clock_ms, "1")
        self.loop = self.fresh()

    def clock_ms(self) -> int:
        return self.now_ms

    def fresh(self) -> RolloutLoop:
        """A loop that knows nothing but the store: another control plane, or this one after a kill."""
        webhooks = Webhooks(self.db, self.clock_ms, random.Random(1))
        self.loop = RolloutLoop(self.db, self.publisher, self.tally, webhooks, lambda: self.leads, self.clock_ms)
        return self.loop

    async def start(self, versions: Sequence[str] = ("v1", "v2")) -> None:
        await self.have(versions)
        await self.publisher.start()

    async def have(self, versions: Sequence[str]) -> None:
        """The agent has one endpoint of each version."""
        endpoints = tuple(
            [EndpointPolicy(f"127.0.0.1:{9000 + at}", labels={"version": one}) for at, one in enumerate(versions)]
        )
        await self.db.write(agents.apply, [Wanted(Agent(AGENT, endpoints=endpoints))], "test", "test", self.now_ms)

    async def close(self) -> None:
        await self.loop.close()
        await self.publisher.close()

    async def turn(self, seconds: float = 1.0) -> None:
        self.now_ms += round(seconds * 1_000)
        await self.loop.turn()

    async def split(self, name: str = "out") -> Split:
        found = await self.db.read(splits.get, name)
        assert found is not None
        return found

    async def weight(self, name: str = "out") -> float:
        """Of the candidate, as sidecars are told."""
        return (await self.split(name)).variants[1].share
