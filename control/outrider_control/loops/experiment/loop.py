"""The experiment loop: reads what units came to, looks at every experiment that runs, and has done what is decided.

Always holds: only the leader decides; everything it goes by is in the store, so that whoever leads next goes on exactly
there; one look is stored with its effects before the next; an experiment that cannot be looked at holds up no other.
Every control plane counts the attributes of spans that are metrics. Changes by hand go the same way, anywhere.

Deliberately not here: the decision (`decide`), how it is stored (`act`), how units are counted (`loops.tally`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from sqlalchemy import Connection

from outrider.v1 import experiment_pb2 as pb
from outrider_control.loops.experiment import act, record
from outrider_control.loops.experiment.decide import decide
from outrider_control.loops.experiment.spec import metrics_of, spec_of
from outrider_control.loops.experiment.types import Seen, Spec, VariantSeen
from outrider_control.loops.rollout import observe as rollout_observe
from outrider_control.loops.rollout.spec import spec_of as rollout_spec_of
from outrider_control.loops.tally import Tallies
from outrider_control.publish.publisher import Publisher
from outrider_control.state import experiments, rollouts, splits, unit_sums
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.experiments import ExperimentRow

TIDY_MS = 60_000
_TRIES = 5  # of a change by hand

_LOG = logging.getLogger("outrider.control.experiment")

Write = Callable[..., ExperimentRow]


class ExperimentLoop:
    """All experiments. `start` it once the publisher has started, `close` it before the publisher.

    `want_attributes` is told which attributes of spans are metrics.
    """

    def __init__(
        self,
        db: Database,
        publisher: Publisher,
        tallies: Tallies,
        want_attributes: Callable[[Iterable[str]], None],
        leads: Callable[[], bool],
        clock_ms: Callable[[], int],
        rng: Random,
        interval_ms: int = 1_000,
        look_ms: int = 2_000,
    ):
        self.failing = ""  # why the last turn could not be taken; empty: it was
        self._db = db
        self._publisher = publisher
        self._tallies = tallies
        self._want_attributes = want_attributes
        self._leads = leads
        self._clock_ms = clock_ms
        self._rng = rng
        self._interval_ms = interval_ms
        self._look_ms = look_ms
        self._looked_ms: dict[str, int] = {}
        self._defects: set[str] = set()  # names of those whose last look failed
        self._tidied_ms = 0
        self._task: asyncio.Task[None] | None = None

    # -- what operators ask ------------------------------------------------------------------------------------------

    async def get(self, name: str) -> pb.ExperimentRecord:
        """One, with its course; UnknownExperiment."""
        found = await self._db.read(_whole, name)
        if found is None:
            raise act.UnknownExperiment(name)
        row, split, course = found
        return record.record(row, split, course, self._problem(row))

    async def newest(self, agent_id: str = "", state: str = "") -> list[pb.ExperimentRecord]:
        """Newest first, without their courses."""
        rows = await self._db.read(experiments.newest, agent_id, state)
        return [record.record(row, None, (), self._problem(row)) for row in rows]

    async def create(self, wanted: pb.ExperimentSpec, author: str, reason: str, start: bool) -> pb.ExperimentRecord:
        """A draft, or one that runs. Errors as `act.create` and `act.start`; then there is none."""
        if start:
            self._check_endpoints(wanted)
        row = await self._db.write(_create, wanted, author, reason, start, self._clock_ms())
        self._tallies.forget(row.name)
        return await self.get(row.name)

    async def begin(self, name: str, author: str, reason: str) -> pb.ExperimentRecord:
        """A draft runs. UnknownExperiment, Refused."""
        row = await self._db.read(experiments.get, name)
        if row is not None and row.state == act.DRAFT:
            self._check_endpoints(pb.ExperimentSpec.FromString(row.spec))
        return await self._by_hand(act.start, name, author, reason)

    async def pause(self, name: str, author: str, reason: str) -> pb.ExperimentRecord:
        """No new units, no verdict. UnknownExperiment, Refused."""
        return await self._by_hand(act.pause, name, author, reason)

    async def resume(self, name: str, author: str, reason: str) -> pb.ExperimentRecord:
        """It goes on. UnknownExperiment, Refused."""
        return await self._by_hand(act.resume, name, author, reason)

    async def stop(self, name: str, author: str, reason: str, winner: str, abort: bool) -> pb.ExperimentRecord:
        """Its end. UnknownExperiment, Refused."""
        return await self._by_hand(act.stop, name, author, reason, winner, abort)

    async def set_traffic(self, name: str, traffic: float, author: str, reason: str) -> pb.ExperimentRecord:
        """More units take part. UnknownExperiment, Refused."""
        return await self._by_hand(act.set_traffic, name, traffic, author, reason)

    async def _by_hand(self, write: Write, name: str, *arguments: Any) -> pb.ExperimentRecord:
        for left in reversed(range(_TRIES)):
            try:
                await self._db.write(write, name, *arguments, self._clock_ms())
                break
            except act.Overtaken:  # by a look, most likely: what is asked for is checked against what stands then
                if not left:
                    raise
        return await self.get(name)

    def warnings(self) -> list[str]:
        """What is wrong, in words."""
        found = [f"experiments: {self.failing}"] if self.failing else []
        return found + [f"experiment {name}: it cannot be looked at: see the log" for name in sorted(self._defects)]

    def _check_endpoints(self, wanted: pb.ExperimentSpec) -> None:
        missing = rollout_observe.missing(wanted.variants, self._publisher.fleet.endpoints(wanted.agent_id))
        if missing:
            raise act.Refused(f"it cannot begin: {missing}")

    def _problem(self, row: ExperimentRow) -> str:
        if row.state != act.RUNNING:
            return ""
        if row.agent_id not in self._publisher.fleet.agents:
            return f"agent {row.agent_id!r} is not configured any more"
        spec = pb.ExperimentSpec.FromString(row.spec)
        return rollout_observe.missing(spec.variants, self._publisher.fleet.endpoints(row.agent_id))

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="experiments")

    async def close(self) -> None:
        """End what is under way. Experiments stand where they stand."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.turn()
                self.failing = ""
            except DatabaseError as error:
                self._fails(f"the store is away, nothing is decided: {error}")
            except Exception:  # noqa: BLE001 - the loop goes on
                _LOG.exception("experiments: a turn failed")
                self.failing = "a defect: see the log"
            await asyncio.sleep(self._interval_ms / 1_000)

    def _fails(self, why: str) -> None:
        if not self.failing:
            _LOG.warning("experiments: %s", why)
        self.failing = why

    # -- turns -------------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """One look at every experiment whose time has come. DatabaseError: the store is away."""
        rows, going_out = await self._db.read(_under_way)
        specs = {row.name: spec_of(pb.ExperimentSpec.FromString(row.spec)) for row in rows}
        for name, spec in specs.items():
            self._tallies.want(name, metrics_of(spec))
        for row in going_out:
            wanted = rollout_spec_of(pb.RolloutSpec.FromString(row.spec))
            self._tallies.want(row.split, rollout_observe.metrics_of(wanted))
        self._tallies.keep("experiments", [*specs, *[row.split for row in going_out]])
        self._want_attributes(self._tallies.attributes)
        if not self._leads():
            return
        await self._tallies.refresh()
        self._looked_ms = {name: at_ms for name, at_ms in self._looked_ms.items() if name in specs}
        self._defects &= set(specs)
        now_ms = self._clock_ms()
        for row in rows:
            if row.state == act.RUNNING and self._is_due(row.name, now_ms):
                await self._look(row, specs[row.name])
        if abs(now_ms - self._tidied_ms) >= TIDY_MS:
            self._tidied_ms = now_ms
            await self._db.write(act.tidy, now_ms)

    def _is_due(self, name: str, now_ms: int) -> bool:
        looked_ms = self._looked_ms.get(name)
        if looked_ms is not None and 0 <= now_ms - looked_ms < self._look_ms:
            return False
        self._looked_ms[name] = now_ms
        return True

    async def _look(self, row: ExperimentRow, spec: Spec) -> None:
        """One experiment's look."""
        if not self._leads():
            return
        now_ms = self._clock_ms()
        seen = await self._see(row, spec, now_ms)
        try:
            decision, state = decide(seen, record.state_of(row.carried), spec, now_ms, self._rng)
            stored = await self._db.write(act.look, row, decision, state, seen, now_ms)
            self._defects.discard(row.name)
        except act.Overtaken:  # by hand: the next look goes on from there
            return
        except DatabaseError:
            raise
        except Exception:  # noqa: BLE001 - the others are looked at
            if row.name not in self._defects:
                _LOG.exception("experiment %s: its look failed", row.name)
            self._defects.add(row.name)
            return
        if stored.state != row.state:
            _LOG.info("experiment %s: %s: %s", row.name, stored.verdict or stored.state, stored.reason)

    async def _see(self, row: ExperimentRow, spec: Spec, now_ms: int) -> Seen:
        found = self._tallies.seen(row.name, metrics_of(spec))
        counts = await self._db.read(unit_sums.counts, row.name)
        return Seen(
            now_ms,
            row.started_ms,
            tuple([found.get(name) or VariantSeen(name) for name in spec.variants]),
            self._tallies.flipped(row.name),
            counts.left_out,
        )


def _whole(connection: Connection, name: str) -> Any:
    row = experiments.get(connection, name)
    if row is None:
        return None
    return row, splits.get(connection, name), experiments.course(connection, name)


def _under_way(connection: Connection) -> tuple[Sequence[ExperimentRow], Sequence[rollouts.RolloutRow]]:
    return experiments.in_state(connection, act.RUNNING, act.PAUSED), rollouts.under_way(connection)


def _create(
    connection: Connection, wanted: pb.ExperimentSpec, author: str, reason: str, start: bool, now_ms: int
) -> ExperimentRow:
    row = act.create(connection, wanted, author, reason, now_ms)
    return act.start(connection, row.name, author, reason, now_ms) if start else row
