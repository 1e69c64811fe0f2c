"""One agent's turn: what is there, what should be, and that it is in the store before anything is done about it.

Always holds: a number is changed by compare-and-set on its row, in one transaction with its entry in the journal, and
only then is an engine asked; who loses takes the winner's number and decides again at its next turn. While an engine
fails the last good size is kept: nothing less is asked of it. What somebody else set outside counts, and is not changed
back more often than a backoff allows. Each turn is short: what takes time (a drain, a start) goes on at the next.

Deliberately not here: the decision (`decide`), the engine's side (`instances`), when a turn is due (`loop`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from outrider.policy import Agent, Scaling
from outrider_control.core import decision as journal_entry
from outrider_control.loops.backoff import Backoff
from outrider_control.loops.scale import observe, record
from outrider_control.loops.scale.engine_set import EngineSet, Seat
from outrider_control.loops.scale.instances import Instances
from outrider_control.loops.scale.observe import Sight
from outrider_control.loops.scale.record import Report
from outrider_control.loops.scale.types import Decision, Seen, State
from outrider_control.publish.publisher import Publisher
from outrider_control.state import journal, scales
from outrider_control.state.database import Database
from outrider_control.state.scales import ScaleRow

Decide = Callable[[Seen, State, Scaling, int], tuple[Decision, State]]

TOLD_AGAIN_MS = 60_000  # the same words are not journalled more often
_MAX_TOLD = 32


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all agents' scalers share. `leads` says whether this control plane may act now."""

    db: Database
    publisher: Publisher
    engines: EngineSet
    decide: Decide
    leads: Callable[[], bool]
    rng: Random
    drain_ms: int = 60_000
    enabled: bool = True


class Scaler:
    """One agent's scaling. Not for two turns at once."""

    def __init__(self, agent_id: str, around: Surroundings):
        self.agent_id = agent_id
        self.row = ScaleRow(agent_id)
        self.seen: Seen | None = None
        self.last: Decision | None = None
        self.instances: Instances | None = None
        self.word = record.NO_ENGINE
        self.problem = ""
        self.actions = {"up": 0, "down": 0, "hold": 0}  # decisions since the start
        self._around = around
        self._state: State | None = None  # None: nothing was decided yet
        self._rate = observe.Rate()
        self._told: dict[str, int] = {}
        self._contended = Backoff(around.rng, calm_ms=600_000)

    # -- what others ask -------------------------------------------------------------------------------------------

    def report(self) -> Report:
        """As of the last turn."""
        seat = self.instances.seat.name if self.instances is not None else ""
        found = record.record(self.agent_id, self.word, seat, self.row, self.seen, self.last, self.problem)
        if seat and self.instances is not None and self.instances.seat.engine.pulls and self.last is not None:
            found.desired = max(0, self.last.desired)  # a proposal: nobody here acts on it
        listed = self.instances.all if self.instances is not None else ()
        leaving = self.instances.leaving if self.instances is not None else {}
        shown = [dataclasses.replace(one, state="draining") if one.name in leaving else one for one in listed]
        return Report(found, self.last, tuple(shown))

    @property
    def waits_for_first(self) -> bool:
        """Whether it has no instance and could get one: a call that waits is to be seen at once."""
        return self.word in (record.SCALING, record.NO_DATA) and self._state is not None and not self._state.desired

    def switched(self, row: ScaleRow) -> None:
        """It was paused or resumed: so it is said from now on, and done at the next turn."""
        self._take_row(row)
        if self.word not in (record.NO_ENGINE, record.DISABLED):
            self.word = record.PAUSED if row.paused_ms else record.SCALING

    # -- a turn ----------------------------------------------------------------------------------------------------

    async def turn(self, agent: Agent, row: ScaleRow, sight: Sight) -> None:
        """DatabaseError: the store is away, nothing was changed."""
        now_ms = sight.at_ms
        self._take_row(row)
        seat = self._around.engines.of(agent)
        if seat is None:
            await self._without_engine(agent, sight)
            return
        if self.instances is None or self.instances.seat is not seat:
            around = self._around
            fleet, lessor = around.publisher.fleet, around.publisher.lessor
            self.instances = Instances(self.agent_id, seat, fleet, lessor, around.drain_ms, around.rng)
        if not seat.started and (seat.engine.pulls or self._around.leads()):
            await seat.start(now_ms)
        if not seat.started:
            self.word = record.FAILING if seat.problem else record.SCALING
            self.problem = seat.problem
            await self._tell(seat.problem, seat, now_ms)
            return
        instances = self.instances
        looked = await instances.look(self._state.desired if self._state is not None else self.row.desired, now_ms)
        self._see(agent, sight, instances)
        if seat.engine.pulls:
            self._propose(agent.scaling, now_ms)
            return
        if not self._around.leads():
            return
        if self.row.paused_ms or not agent.scaling.enabled or not self._around.enabled:
            self.word = record.PAUSED if self.row.paused_ms else record.DISABLED
            self.problem = instances.problem
            self._state = None  # begins anew with what is there by then
            if looked:
                await self._keep(instances, now_ms)
                self._see(agent, sight, instances)
            return
        if not looked and self._state is None:
            self.word, self.problem = record.FAILING, instances.problem
            await self._tell(f"{instances.problem}; nothing is changed", seat, now_ms)
            return
        if self._state is None and not await self._begin(agent, instances, now_ms):
            return
        await self._decide(agent, instances, looked, now_ms)
        if looked and self._state is not None and not self._contended.waits(now_ms):
            await instances.bring_to(self._state.desired, sight, now_ms, self._may_act)
            self._see(agent, sight, instances)  # what is said of it is how it is now
        self._say(instances)

    def _take_row(self, row: ScaleRow) -> None:
        """What the store says, where somebody else wrote."""
        if row.version < self.row.version:
            return
        if row.version != self.row.version and self._state is not None and row.desired is not None:
            if row.desired != self._state.desired and self.instances is not None:
                self.instances.unsettle()
            self._state = dataclasses.replace(self._state, desired=row.desired, changed_ms=row.changed_ms)
        self.row = row

    def _see(self, agent: Agent, sight: Sight, instances: Instances | None) -> None:
        rate = self._rate.take(sight.of(self.agent_id))
        leases = self._around.publisher.fleet.leases.of_agent(self.agent_id)
        listed = instances.all if instances is not None else None
        leaving = instances.leaving if instances is not None else {}
        taken_on = instances.taken_on if instances is not None else 0
        self.seen = observe.seen(agent, sight, leases, listed, leaving, taken_on, rate)

    async def _without_engine(self, agent: Agent, sight: Sight) -> None:
        self.instances, self._state, self.last = None, None, None
        self._see(agent, sight, None)
        disabled = not agent.scaling.enabled or not self._around.enabled
        self.word = record.DISABLED if disabled else record.PAUSED if self.row.paused_ms else record.NO_ENGINE
        self.problem = "" if disabled else self._around.engines.missing(agent)
        if self._around.leads():
            publisher = self._around.publisher
            marked = [one.address for one in publisher.fleet.leases.of_agent(self.agent_id) if one.draining]
            if marked:  # nobody drains them any more
                await publisher.lessor.mark(self.agent_id, marked, False)

    def _propose(self, scaling: Scaling, now_ms: int) -> None:
        """For an engine that asks for the demand by itself: what we would do, and nothing is done."""
        assert self.seen is not None
        state = self._state if self._state is not None else State(desired=self.seen.ready)
        self.last, self._state = self._around.decide(self.seen, state, scaling, now_ms)
        self.actions[self.last.action] += 1
        self.problem = self.instances.problem if self.instances is not None else ""
        self.word = record.SCALING if self.seen.in_flight is not None else record.NO_DATA

    async def _begin(self, agent: Agent, instances: Instances, now_ms: int) -> bool:
        """The first decision starts from the number in the store, and from what runs where that is more."""
        row, scaling = self.row, agent.scaling
        there = instances.count - instances.marked()
        if row.desired is None:
            changed = await self._around.db.write(scales.change, self.agent_id, row.version, there, 0, None)
            if changed is None:
                return await self._lost()
            self.row = changed
            self._state = State(desired=there)
            return True
        state = State(desired=row.desired, changed_ms=row.changed_ms, restored=True)
        if there > row.desired:
            adopted = max(row.desired, min(there, max(scaling.min_instances, scaling.max_instances)))
            reason = f"{there} instances run and not {row.desired}, as was left: goes on from {adopted}"
            if adopted != row.desired:
                return await self._change(_moved(self.agent_id, row.desired, adopted, reason, now_ms), state, now_ms)
        self._state = state
        return True

    async def _keep(self, instances: Instances, now_ms: int) -> None:
        """Paused or disabled: who was about to leave stays, and the number is what there is."""
        await instances.stay(now_ms)
        desired = self.row.desired
        there = instances.count - len(instances.leaving)
        if desired is not None and desired != there and not instances.fails(now_ms):
            changed = await self._around.db.write(
                scales.change, self.agent_id, self.row.version, there, self.row.changed_ms, None
            )
            self.row = changed or self.row

    async def _decide(self, agent: Agent, instances: Instances, looked: bool, now_ms: int) -> None:
        """One decision, and the store has it when this returns."""
        state, seen, scaling = self._state, self.seen, agent.scaling
        assert state is not None
        assert seen is not None
        if looked:
            instances.settle(state.desired, now_ms)
            if instances.odd(state.desired):
                await self._somebody_else(instances, state, scaling, now_ms)
                return
        if instances.fails(now_ms):
            instances.refused = False
            if state.desired < instances.good <= max(scaling.max_instances, state.desired):
                reason = f"{instances.problem}; the last good size {instances.good} is kept"
                moved = _moved(self.agent_id, state.desired, instances.good, reason, now_ms)
                await self._change(moved, state, now_ms)
                return
            await self._tell(f"{instances.problem}; the last good size is kept", instances.seat, now_ms)
        if not looked:
            reason = f"{instances.problem}; the last good size is kept"
            self._hold(Decision(self.agent_id, now_ms, state.desired, "hold", reason, confidence=0.0))
            return
        decision, following = self._around.decide(seen, state, scaling, now_ms)
        decision = self._within(decision, state, instances, now_ms)
        if decision.desired == state.desired:
            self._state = dataclasses.replace(following, desired=state.desired, changed_ms=state.changed_ms)
            await self._tell_hold(decision, seen, instances.seat, now_ms)
            self._hold(decision)
            return
        await self._change(decision, dataclasses.replace(following, desired=state.desired), now_ms)

    def _within(self, decision: Decision, state: State, instances: Instances, now_ms: int) -> Decision:
        """What may not be done now is not."""
        reason = ""
        if decision.desired < 0:
            reason = f"a decision for {decision.desired} instances cannot be"
        elif decision.desired < min(state.desired, instances.good) and instances.fails(now_ms):
            reason = f"{instances.problem}; the last good size is kept"
        elif decision.desired != state.desired and self._contended.waits(now_ms):
            left_s = math.ceil((self._contended.until_ms - now_ms) / 1_000)
            reason = f"somebody else changed the number lately: it is left alone for {left_s} s more"
        if not reason:
            return decision
        return dataclasses.replace(decision, desired=state.desired, action="hold", reason=reason)

    async def _somebody_else(self, instances: Instances, state: State, scaling: Scaling, now_ms: int) -> None:
        """The number was changed outside: that is where we go on from."""
        there = instances.count
        low = min(scaling.min_instances, scaling.max_instances)
        adopted = min(max(there, low), max(scaling.max_instances, low))
        reason = f"somebody else changed {self.agent_id} from {state.desired} to {there}"
        if contention := instances.contention():
            reason += f": {contention}"
        if adopted != there:
            reason += f"; its policy asks for {adopted}"
        self._contended.failed(now_ms)
        instances.unsettle()
        moved = _moved(self.agent_id, state.desired, adopted, reason, now_ms)
        if adopted == state.desired:
            await self._journal(record.note(self.agent_id, reason, instances.seat.name, adopted, {}, now_ms))
            self._hold(moved)
            return
        await self._change(moved, state, now_ms)

    async def _change(self, decision: Decision, following: State, now_ms: int) -> bool:
        """The number is changed, here and in the store; False: somebody else was faster, or we do not lead any more."""
        around, before = self._around, following.desired
        if not around.leads():
            return False
        engine = self.instances.seat.name if self.instances is not None else ""
        told = record.entry(decision, engine, before)
        row = await around.db.write(scales.change, self.agent_id, self.row.version, decision.desired, now_ms, told)
        if row is None:
            return await self._lost()
        self.row = row
        self._state = dataclasses.replace(following, desired=decision.desired, changed_ms=now_ms)
        self.last = decision
        self.actions[decision.action] += 1
        if self.instances is not None:
            self.instances.unsettle()
        return True

    async def _lost(self) -> bool:
        """Another loop was faster: its number counts."""
        self._take_row(await self._around.db.read(scales.of_agent, self.agent_id))
        return False

    async def _may_act(self) -> bool:
        """Just before an engine is asked: whether this control plane leads, and knows the newest number."""
        around = self._around
        newest = await around.db.read(scales.is_newest, self.agent_id, self.row.version)
        return newest and around.leads()

    # -- telling ---------------------------------------------------------------------------------------------------

    def _hold(self, decision: Decision) -> None:
        self.last = decision
        self.actions["hold"] += 1

    def _say(self, instances: Instances) -> None:
        self.problem = instances.problem
        no_data = self.seen is None or self.seen.in_flight is None or self.seen.queued is None
        self.word = record.FAILING if self.problem else record.NO_DATA if no_data else record.SCALING

    async def _tell_hold(self, decision: Decision, seen: Seen, seat: Seat, now_ms: int) -> None:
        """Why nothing can be decided, once for each kind of reason."""
        kind = _kind(decision, seen)
        if not kind:
            return
        if self._is_new(kind, now_ms):
            inputs = record.plain(decision.inputs) or record.plain(seen)
            await self._journal(
                record.note(self.agent_id, decision.reason, seat.name, decision.desired, inputs, now_ms)
            )

    async def _tell(self, reason: str, seat: Seat, now_ms: int) -> None:
        """What is wrong with an engine or its instances, once for each text."""
        if reason and self._around.leads() and self._is_new(reason, now_ms):
            desired = self.row.desired
            await self._journal(record.note(self.agent_id, reason, seat.name, desired, {}, now_ms))

    def _is_new(self, text: str, now_ms: int) -> bool:
        """Whether it was not told within the last minute; while it stays true it is not told again."""
        told_ms = self._told.pop(text, 0)
        self._told[text] = now_ms
        if len(self._told) > _MAX_TOLD:
            del self._told[next(iter(self._told))]
        return not told_ms or now_ms - told_ms > TOLD_AGAIN_MS

    async def _journal(self, entry: journal_entry.Decision) -> None:
        await self._around.db.write(journal.append, entry)


def _moved(agent_id: str, before: int, desired: int, reason: str, now_ms: int) -> Decision:
    action = "up" if desired > before else "down" if desired < before else "hold"
    return Decision(agent_id, now_ms, desired, action, reason)


def _kind(decision: Decision, seen: Seen) -> str:
    """Of a hold that is worth telling; empty: nothing is wrong."""
    if seen.in_flight is None or seen.queued is None:
        return "no data"
    numbers = [seen.in_flight, seen.queued, seen.capacity, seen.finished_per_s]
    if any([one is not None and (not math.isfinite(one) or one < 0) for one in numbers]):
        return "frozen"
    if decision.capacity is None and seen.in_flight + seen.queued > 0:
        return "no capacity"
    return ""
