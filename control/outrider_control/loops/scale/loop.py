"""The scale loop: looks at every agent once a second, decides how many instances it should have, and has that done.

Always holds: only the leader acts, and stops at once when it leads no more; an agent has one turn at a time, and one
whose engine takes its time holds up nobody else; an agent without instances is looked at as soon as a call of it waits.
A control plane that does not lead says what the leader last said.

Deliberately not here: what is seen (`observe`), the decision (`decide`), how it is carried out (`act`, `instances`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from outrider.v1 import operator_pb2
from outrider_control.loops.scale import observe, record
from outrider_control.loops.scale.act import Decide, Scaler, Surroundings
from outrider_control.loops.scale.engine_set import EngineSet, Seat
from outrider_control.loops.scale.observe import Sight
from outrider_control.loops.scale.record import Report
from outrider_control.loops.scale.types import Decision, Engine, Instance
from outrider_control.publish.publisher import Publisher
from outrider_control.state import scales
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.scales import ScaleRow

REPORT_MS = 2_000  # how often the others are told
WAKE_MS = 200  # between two early looks at an agent
LOADS_AT_ONCE = 2_000  # read of reports before others have their turn
AGENTS_AT_ONCE = 100  # whose turns begin before others have theirs

_LOG = logging.getLogger("outrider.control.scale")


class ScaleLoop:
    """All agents' scaling. `start` it once the publisher has started, `close` it before the publisher.

    `engines` makes each engine of the configuration, by name; `leads` says whether this control plane may act;
    `shared`: others may be on the store, and are told.
    """

    def __init__(
        self,
        db: Database,
        publisher: Publisher,
        engines: Mapping[str, Callable[[], Engine]],
        leads: Callable[[], bool],
        clock_ms: Callable[[], int],
        rng: Random,
        *,
        decide: Decide,
        default_engine: str = "",
        enabled: bool = True,
        interval_ms: int = 1_000,
        drain_ms: int = 60_000,
        timeout_s: float = 30.0,
        shared: bool | None = None,
    ):
        self.failing = ""  # why the last turn could not be taken; empty: it was
        self.on_figures: Callable[[], None] = lambda: None  # called when the figures of agents are new
        self._db = db
        self._fleet = publisher.fleet
        seats = {name: Seat(name, make, rng, timeout_s) for name, make in engines.items()}
        self._engines = EngineSet(seats, default_engine)
        self._leads = leads
        self._clock_ms = clock_ms
        self._interval_ms = interval_ms
        self._shared = db.dialect == "postgresql" if shared is None else shared
        self._around = Surroundings(db, publisher, self._engines, decide, leads, rng, drain_ms, enabled)
        self._enabled = enabled
        self._scalers: dict[str, Scaler] = {}
        self._rows: Mapping[str, ScaleRow] = {}
        self._told: dict[str, str] = {}  # reports as the store has them
        self._told_ms = 0
        self._heard: dict[str, tuple[str, Report | None]] = {}  # of the leader: (as it stands in the store, read)
        self._tasks: dict[str, asyncio.Task[None]] = {}  # turns, by agent
        self._again: set[str] = set()  # agents of which a call waited while they had their turn
        self._woken: dict[str, int] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._led = False
        self._closed = False

    # -- for the operator's API: nothing blocks but `pause` and `resume`, which write to the store --------------------

    def record(self, agent_id: str) -> operator_pb2.ScaleRecord:
        """One agent's scale as it is known here; on a control plane that does not lead, as the leader last said.

        An agent that is not configured: KeyError.
        """
        return self._report(agent_id).record

    def records(self) -> list[operator_pb2.ScaleRecord]:
        """All configured agents', in the order of their ids."""
        return [self.record(agent_id) for agent_id in sorted(self._fleet.agents)]

    def last(self, agent_id: str) -> Decision | None:
        """The last decision of all, holds included, with every input; None: none was taken (known of)."""
        return self._report(agent_id).last

    def instances(self, agent_id: str) -> Sequence[Instance]:
        """What the agent's engine last said there is, with DRAINING for those that are given no more calls."""
        return self._report(agent_id).instances

    async def pause(self, agent_id: str, author: str, reason: str) -> operator_pb2.ScaleRecord:
        """Leaves the number of instances as it is until it is resumed; in the store and in the journal on return.

        Paused again: the newer author and reason stand. KeyError: not configured; DatabaseError: nothing has changed.
        """
        return await self._switch(scales.pause, agent_id, author, reason)

    async def resume(self, agent_id: str, author: str, reason: str) -> operator_pb2.ScaleRecord:
        """Decides again. Not paused: nothing changes and nothing is journalled. Errors as `pause`."""
        return await self._switch(scales.resume, agent_id, author, reason)

    @property
    def engines(self) -> Mapping[str, Engine]:
        """By their names in the configuration."""
        return {name: seat.engine for name, seat in self._engines.seats.items()}

    def engine_of(self, agent_id: str) -> Engine | None:
        """The one that runs an agent; None: there is none, or no such agent."""
        agent = self._fleet.agents.get(agent_id)
        seat = self._engines.of(agent) if agent is not None else None
        return seat.engine if seat is not None else None

    def registered(self, agent_id: str) -> Sequence[Instance]:
        """An agent's registered endpoints as instances, for engines that have nothing else to go by."""
        leases = self._fleet.leases.of_agent(agent_id)
        return [Instance(one.address, one.address, "draining" if one.draining else "ready") for one in leases]

    @property
    def actions(self) -> Mapping[tuple[str, str], int]:
        """Decisions taken here since the start, by agent and action."""
        return {(name, action): n for name, one in self._scalers.items() for action, n in one.actions.items() if n}

    def warnings(self) -> list[str]:
        """What is wrong, in words."""
        problems = [(agent_id, self._report(agent_id).record.problem) for agent_id in sorted(self._fleet.agents)]
        found = [f"scaling of {agent_id}: {problem}" for agent_id, problem in problems if problem]
        return [f"scaling: {self.failing}", *found] if self.failing else found

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the first turn is taken at once."""
        self._fleet.on_waiting = self._waiting
        self._ticker = asyncio.get_running_loop().create_task(self._run(), name="scale")

    async def close(self) -> None:
        """End what is under way and let the engines go. Instances go on, and what drains is found at the next start."""
        self._closed = True
        self._fleet.on_waiting = lambda _agent_id: None
        tasks = [*([self._ticker] if self._ticker is not None else []), *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engines.let_go(pulled_too=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.turn()
                self._works()
            except DatabaseError as error:
                self._fails(f"the store is away, nothing is changed: {error}")
            except Exception:  # noqa: BLE001 - the loop goes on
                _LOG.exception("scaling: a turn failed")
                self.failing = "a defect: see the log"
            await asyncio.sleep(self._interval_ms / 1_000)

    # -- turns -------------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Everybody's turn begins, to be called every interval; `settled` waits for their ends. DatabaseError: none."""
        leads = self._leads()
        if leads != self._led:
            self._led = leads
            if not leads:
                await self._stop_leading()
        self._rows = await self._db.read(scales.current)
        now_ms = self._clock_ms()
        sight = await self._look(now_ms)
        for at, agent_id in enumerate(list(self._fleet.agents)):
            if at % AGENTS_AT_ONCE == AGENTS_AT_ONCE - 1:
                await asyncio.sleep(0)
            if leads or self._is_pulled(agent_id):
                self._begin(agent_id, sight)
        for agent_id in [one for one in self._scalers if one not in self._fleet.agents and one not in self._tasks]:
            del self._scalers[agent_id]
        self.on_figures()
        if leads and self._shared and now_ms - self._told_ms >= REPORT_MS:
            self._told_ms = now_ms
            await self._tell_others(now_ms)

    async def _look(self, now_ms: int) -> Sight:
        """All reports; calls on this loop go on meanwhile."""
        sight, taken = Sight(now_ms), 0
        for report in self._fleet.reports():
            observe.take(sight, report)
            taken += len(report.load.agents) if report.load is not None else 0
            if taken >= LOADS_AT_ONCE:
                taken = 0
                await asyncio.sleep(0)
        return sight

    async def settled(self) -> None:
        """Until every turn that has begun is over."""
        while tasks := [*self._tasks.values()]:
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, agent_id: str, sight: Sight) -> None:
        if agent_id in self._tasks or self._closed:
            return
        scaler = self._scalers.get(agent_id)
        if scaler is None:
            scaler = self._scalers[agent_id] = Scaler(agent_id, self._around)
        task = asyncio.get_running_loop().create_task(self._take(scaler, sight), name=f"scale {agent_id}")
        self._tasks[agent_id] = task

    async def _take(self, scaler: Scaler, sight: Sight) -> None:
        agent_id = scaler.agent_id
        try:
            agent = self._fleet.agents.get(agent_id)
            if agent is not None:
                row = self._rows.get(agent_id) or ScaleRow(agent_id)
                await scaler.turn(agent, max(row, scaler.row, key=lambda one: one.version), sight)
        except DatabaseError as error:
            self._fails(f"the store is away, nothing is changed: {error}")
        except Exception:  # noqa: BLE001 - so do the other agents
            _LOG.exception("scaling of %s: a turn failed", agent_id)
            scaler.problem = "a defect: see the log"
        finally:
            self._tasks.pop(agent_id, None)
        if agent_id in self._again:
            self._again.discard(agent_id)
            self._waiting(agent_id)

    def _waiting(self, agent_id: str) -> None:
        """A report says that calls of an agent wait: one that has no instance does not wait for the next turn."""
        scaler = self._scalers.get(agent_id)
        if scaler is None or not scaler.waits_for_first or not self._led or not self._leads():
            return
        now_ms = self._clock_ms()
        if agent_id in self._tasks:
            self._again.add(agent_id)
        elif not 0 <= now_ms - self._woken.get(agent_id, 0) < WAKE_MS:
            self._woken[agent_id] = now_ms
            self._begin(agent_id, observe.look(self._fleet.reports(), now_ms, agent_id))
            self.on_figures()

    async def _stop_leading(self) -> None:
        """Another control plane leads: nothing of ours goes on."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._again.clear()
        self._scalers.clear()
        self._told.clear()
        await self._engines.let_go(pulled_too=False)

    def _is_pulled(self, agent_id: str) -> bool:
        engine = self.engine_of(agent_id)
        return engine is not None and engine.pulls

    # -- what is known -------------------------------------------------------------------------------------------------

    def _report(self, agent_id: str) -> Report:
        agent = self._fleet.agents.get(agent_id)
        if agent is None:
            raise KeyError(agent_id)
        scaler = self._scalers.get(agent_id)
        if scaler is not None:
            return scaler.report()
        row = self._rows.get(agent_id) or ScaleRow(agent_id)
        text, heard = self._heard.get(agent_id, ("", None))
        if text != row.report:
            heard = record.from_json(row.report)
            self._heard[agent_id] = row.report, heard
        seat = self._engines.of(agent)
        engine = seat.name if seat is not None else ""
        if heard is not None:
            found = operator_pb2.ScaleRecord()
            found.CopyFrom(heard.record)
            found.paused_by, found.paused_reason = row.paused_by, row.paused_reason  # newer than the leader's word
            if row.paused_ms and found.state not in (record.NO_ENGINE, record.DISABLED):
                found.state = record.PAUSED
            return Report(found, heard.last, heard.instances)
        word = record.SCALING if seat is not None else record.NO_ENGINE
        if row.paused_ms:
            word = record.PAUSED
        if not (self._enabled and agent.scaling.enabled):
            word = record.DISABLED
        return Report(record.record(agent_id, word, engine, row, None, None, ""), None, ())

    async def _tell_others(self, now_ms: int) -> None:
        reports = {name: record.to_json(one.report()) for name, one in self._scalers.items()}
        new = [(name, text) for name, text in reports.items() if self._told.get(name) != text]
        if new:
            await self._db.write(scales.report, new, now_ms)
        self._told = reports

    async def _switch(self, change: Callable[..., ScaleRow], agent_id: str, author: str, reason: str) -> Any:
        if agent_id not in self._fleet.agents:
            raise KeyError(agent_id)
        row = await self._db.write(change, agent_id, author, reason, self._clock_ms())
        self._rows = {**self._rows, agent_id: row}
        scaler = self._scalers.get(agent_id)
        if scaler is not None:
            scaler.switched(row)
        return self.record(agent_id)

    def _fails(self, why: str) -> None:
        if not self.failing:
            _LOG.warning("scaling: %s", why)
        self.failing = why

    def _works(self) -> None:
        if self.failing:
            _LOG.info("scaling: works again")
        self.failing = ""
