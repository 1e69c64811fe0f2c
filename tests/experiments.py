"""Experiments for tests: specs, and a loop on a real store in virtual time.

Always holds: nothing is replaced but the clock; units come as the intake puts them; every turn is two seconds later.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from outrider.policy import Agent, EndpointPolicy
from outrider.split import Split
from outrider.v1 import experiment_pb2 as pb
from outrider_control.loops.experiment.loop import ExperimentLoop
from outrider_control.loops.tally import Tallies
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.publisher import Publisher
from outrider_control.state import agents, splits
from outrider_control.state.agents import Wanted
from outrider_control.state.database import Database
from tests.units import AGENT, call, put

NOW_MS = 1_800_000_000_000


def wanted(*variants: str, name: str = "test", metric: str = "error_rate", **fields: Any) -> pb.ExperimentSpec:
    """Variants a and b (or those named), by the version of their endpoints."""
    made = pb.ExperimentSpec(name=name, agent_id=AGENT, **{"min_units": 10, **fields})
    made.metric.name = metric
    for at, one in enumerate(variants or ("a", "b")):
        made.variants.add(name=one).labels["version"] = f"v{at + 1}"
    return made


class Trying:
    """A control plane's experiments: `turn` takes one turn of the loop, two seconds later."""

    def __init__(self, db: Database):
        self.db = db
        self.now_ms = NOW_MS
        self.leads = True
        self.attributes: set[str] = set()
        self.fleet = Fleet("control-1", self.clock_ms)
        self.publisher = Publisher(db, self.fleet, self.clock_ms, "1")
        self.loop = self.fresh()

    def clock_ms(self) -> int:
        return self.now_ms

    def fresh(self) -> ExperimentLoop:
        """A loop that knows nothing but the store: another control plane, or this one after a kill."""
        self.tallies = Tallies(self.db)
        self.loop = ExperimentLoop(
            self.db, self.publisher, self.tallies, self._want, lambda: self.leads, self.clock_ms, random.Random(1)
        )
        return self.loop

    def _want(self, names: Iterable[str]) -> None:
        self.attributes = set(names)

    async def start(self, versions: Sequence[str] = ("v1", "v2", "v3")) -> None:
        endpoints = tuple(
            [EndpointPolicy(f"127.0.0.1:{9000 + at}", labels={"version": one}) for at, one in enumerate(versions)]
        )
        await self.db.write(agents.apply, [Wanted(Agent(AGENT, endpoints=endpoints))], "test", "test", self.now_ms)
        await self.publisher.start()

    async def close(self) -> None:
        await self.loop.close()
        await self.publisher.close()

    async def turn(self, seconds: float = 2.0) -> None:
        self.now_ms += round(seconds * 1_000)
        await self.loop.turn()

    async def come(self, variant: str, units: int, failed: int = 0, split: str = "test", begin: int = 0) -> None:
        """New units of one call each, of which the first `failed` failed."""
        await put(
            self.db,
            [call(f"{variant}{begin + at}", variant, split, failed=at < failed) for at in range(units)],
        )

    async def split(self, name: str = "test") -> Split:
        found = await self.db.read(splits.get, name)
        assert found is not None
        return found

    async def record(self, name: str = "test") -> pb.ExperimentRecord:
        return await self.loop.get(name)
