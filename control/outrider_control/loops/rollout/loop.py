"""The rollout loop: looks at every rollout that is under way once a second, decides, and has that done.

Always holds: only the leader acts; everything it goes by is in the store and is read anew at every turn, so that
whoever leads next goes on exactly there; a transition is stored with its effects before the next look; a rollout that
cannot be looked at holds up no other. Transitions by hand go the same way, on any control plane.

Deliberately not here: what is seen (`observe`), the decision (`advance`, `by_hand`), how it is stored (`act`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy import Connection

from outrider.v1 import experiment_pb2 as pb
from outrider_control.loops.rollout import act, advance, by_hand, observe, record
from outrider_control.loops.rollout.advance import Moved
from outrider_control.loops.rollout.observe import Tally
from outrider_control.loops.rollout.spec import spec_of
from outrider_control.loops.rollout.types import Rollout, Seen, Spec, UnknownRollout
from outrider_control.loops.rollout.webhook import Webhooks
from outrider_control.publish.publisher import Publisher
from outrider_control.state import rollouts, splits
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.rollouts import RolloutRow

SAVE_MS = 5_000  # the step's clock is stored this often where nothing else is new; below types.MAX_LOOK_MS
MOVES_AT_ONCE = 8  # transitions of one rollout in one turn

_LOG = logging.getLogger("outrider.control.rollout")

Decide = Callable[[Rollout, Spec, Seen], Moved]


class RolloutLoop:
    """All rollouts. `start` it once the publisher has started, `close` it before the publisher."""

    def __init__(
        self,
        db: Database,
        publisher: Publisher,
        tally: Tally,
        webhooks: Webhooks,
        leads: Callable[[], bool],
        clock_ms: Callable[[], int],
        interval_ms: int = 1_000,
    ):
        self.failing = ""  # why the last turn could not be taken; empty: it was
        self._db = db
        self._publisher = publisher
        self._tally = tally
        self._webhooks = webhooks
        self._leads = leads
        self._clock_ms = clock_ms
        self._interval_ms = interval_ms
        self._tasks: list[asyncio.Task[None]] = []

    # -- what operators ask ------------------------------------------------------------------------------------------

    async def get(self, name: str) -> pb.RolloutRecord:
        """One; UnknownRollout."""
        row = await self._db.read(rollouts.get, name)
        if row is None:
            raise UnknownRollout(name)
        return self.record(row)

    async def newest(self, agent_id: str = "") -> list[pb.RolloutRecord]:
        """Newest first."""
        return [self.record(row) for row in await self._db.read(rollouts.newest, agent_id)]

    def record(self, row: RolloutRow) -> pb.RolloutRecord:
        """One row, with the sidecars of this moment."""
        connected, confirmed = observe.taken(row, self._publisher.fleet)
        return record.record(row, spec_of(pb.RolloutSpec.FromString(row.spec)), connected, confirmed)

    async def create(self, wanted: pb.RolloutSpec, author: str, reason: str) -> pb.RolloutRecord:
        """A new one. Errors as `act.create`."""
        row = await self._db.write(act.create, wanted, author, reason, self._clock_ms())
        return self.record(row)

    async def promote(self, name: str, author: str, reason: str, full: bool) -> pb.RolloutRecord:
        """On to the next step, or to the end. UnknownRollout, Refused."""
        now_ms = self._clock_ms()
        return await self._by_hand(
            name,
            lambda rollout, spec, seen: by_hand.promote(rollout, spec, seen, now_ms, author, reason, full),
        )

    async def pause(self, name: str, author: str, reason: str) -> pb.RolloutRecord:
        """Stay at its weight. UnknownRollout, Refused."""
        return await self._by_hand(name, lambda rollout, _spec, _seen: by_hand.pause(rollout, author, reason))

    async def resume(self, name: str, author: str, reason: str) -> pb.RolloutRecord:
        """Go on. UnknownRollout, Refused."""
        return await self._by_hand(name, lambda rollout, spec, _seen: by_hand.resume(rollout, spec, author, reason))

    async def abort(self, name: str, author: str, reason: str) -> pb.RolloutRecord:
        """Everything back on the stable version. UnknownRollout, Refused."""
        now_ms = self._clock_ms()
        return await self._by_hand(name, lambda rollout, _spec, _seen: by_hand.abort(rollout, now_ms, author, reason))

    async def _by_hand(self, name: str, decide: Decide) -> pb.RolloutRecord:
        """Decided over the row as it is in the transaction that changes it: nothing is ever in between."""
        row = await self._db.read(rollouts.get, name)
        if row is None:
            raise UnknownRollout(name)
        wanted = pb.RolloutSpec.FromString(row.spec)
        seen = observe.seen(row, wanted, spec_of(wanted), None, self._publisher.fleet)
        stored = await self._db.write(_change, name, decide, seen, self._clock_ms())
        return self.record(stored)

    def warnings(self) -> list[str]:
        """What is wrong, in words."""
        found = [f"rollouts: {self.failing}"] if self.failing else []
        return [*found, self._webhooks.problem] if self._webhooks.problem else found

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._forever(self.turn), name="rollouts"),
            loop.create_task(self._forever(self._tell), name="rollouts' webhooks"),
        ]

    async def close(self) -> None:
        """End what is under way. Rollouts stand where they stand."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._webhooks.close()

    async def _forever(self, turn: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await turn()
                self.failing = ""
            except DatabaseError as error:
                self._fails(f"the store is away, nothing is changed: {error}")
            except Exception:  # noqa: BLE001 - the loop goes on
                _LOG.exception("rollouts: a turn failed")
                self.failing = "a defect: see the log"
            await asyncio.sleep(self._interval_ms / 1_000)

    async def _tell(self) -> None:
        if self._leads():
            while await self._webhooks.round():
                pass

    def _fails(self, why: str) -> None:
        if not self.failing:
            _LOG.warning("rollouts: %s", why)
        self.failing = why

    # -- turns -------------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """One look at every rollout that is under way. DatabaseError: the store is away."""
        if not self._leads():
            return
        rows = await self._db.read(rollouts.under_way)
        self._tally.keep(record.KIND, [row.split for row in rows])
        for row in rows:
            if not self._leads():
                return
            try:
                await self._take(row)
            except (act.Overtaken, DatabaseError):
                raise
            except Exception:  # noqa: BLE001 - so do the other rollouts
                _LOG.exception("rollout %s: its turn failed", row.name)

    async def _take(self, row: RolloutRow) -> None:
        """One rollout's turn."""
        wanted = pb.RolloutSpec.FromString(row.spec)
        spec = spec_of(wanted)
        self._tally.want(row.split, observe.metrics_of(spec))
        await self._tally.refresh([row.split])
        fleet = self._publisher.fleet
        for _ in range(MOVES_AT_ONCE):
            now_ms = self._clock_ms()
            before = record.from_json(row.state)
            seen = observe.seen(row, wanted, spec, self._tally, fleet)
            after, transition = self._decide(before, spec, seen, now_ms)
            if transition is None and not _worth_saving(before, after):
                return
            try:
                row = await self._db.write(act.store, row, before, after, transition, now_ms)
            except act.Overtaken:  # by hand: the next turn goes on from there
                return
            if transition is None:
                return
            _LOG.info("rollout %s: %s: %s", row.name, transition.action, transition.reason)

    def _decide(self, before: Rollout, spec: Spec, seen: Seen, now_ms: int) -> Moved:
        if spec.agent_id not in self._publisher.fleet.agents:
            return advance.abort(before, now_ms, f"agent {spec.agent_id!r} is not configured any more")
        return advance.advance(before, spec, seen, now_ms)


def _worth_saving(before: Rollout, after: Rollout) -> bool:
    """Whether more is new than that time goes on."""
    if not before.seen_ms or not 0 <= after.seen_ms - before.seen_ms < SAVE_MS:
        return True
    return (after.runs, after.problem) != (before.runs, before.problem)


def _change(connection: Connection, name: str, decide: Decide, seen: Seen, now_ms: int) -> RolloutRow:
    row = rollouts.get(connection, name)
    if row is None:
        raise UnknownRollout(name)
    before = record.from_json(row.state)
    last = rollouts.of_split(connection, row.split)
    if before.ended and (splits.get(connection, row.split) is None or last is None or last.name != name):
        raise by_hand.Refused("it has ended, and another rollout has followed it, or its agent is gone")
    after, transition = decide(before, spec_of(pb.RolloutSpec.FromString(row.spec)), seen)
    return act.store(connection, row, before, after, transition, now_ms)
