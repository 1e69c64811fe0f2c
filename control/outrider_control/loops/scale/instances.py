"""One agent's instances, as its engine runs them: looked at, made more, drained and made fewer.

Always holds: an engine that fails is left alone for 1 to 60 s with jitter, and is not asked for less than the last good
size meanwhile; nothing is ended that was not drained, where the engine lets us choose; what was taken on and does not
come about is asked for again and said. Each call is a step and never waits for instances.

Deliberately not here: how many there should be (`decide`, `act`), what a drain waits for (`drain`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

from outrider_control.loops.backoff import Backoff
from outrider_control.loops.scale.drain import Drain, Strays, lease_of, victims
from outrider_control.loops.scale.engine_set import Seat
from outrider_control.loops.scale.observe import Sight
from outrider_control.loops.scale.types import DRAINING, FAILED, READY, STARTING, EngineError, Instance
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.lessor import Lessor

LATE_MS = 60_000  # how long an engine may take to do what it took on before that is said
AGAIN_MS = 5_000  # the first wait before it is asked again
SURE = 3  # looks in a row before a number that nobody here asked for counts
MAX_INSTANCES = 100_000
_MAX_NOTE = 500
_STATES = (STARTING, READY, DRAINING, FAILED)


class Instances:
    """Of one agent, at one engine."""

    def __init__(self, agent_id: str, seat: Seat, fleet: Fleet, lessor: Lessor, drain_ms: int, rng: Random):
        self.seat = seat
        self.all: Sequence[Instance] = ()
        self.count = 0  # how many the engine is to run, as far as it says so
        self.known = False  # looked at once at least
        self.problem = ""  # what is wrong, in words
        self.backoff = Backoff(rng)
        self.good = 0  # the last size that was there as it was asked for
        self.asked: int | None = None  # what the engine took on last
        self.drain: Drain | None = None
        self.refused = False  # the engine did not end what it was to end, and nothing was concluded from it yet
        self._agent_id = agent_id
        self._fleet = fleet
        self._lessor = lessor
        self._drain_ms = drain_ms
        self._blind = False  # the last look failed
        self._cause = ""  # of `problem`: "look", "ask", "died", "late"
        self._died: set[tuple[str, int]] = set()
        self._ended: set[tuple[str, int]] = set()  # who was told to end: how that goes is no failure
        self._asked_ms = 0
        self._again = Backoff(rng, AGAIN_MS)
        self._settled = False  # what was asked for was there, and nothing was asked since
        self._odd = 0  # looks in a row at a number that nobody here asked for
        self._strays = Strays(agent_id, fleet, lessor)

    @property
    def live(self) -> list[Instance]:
        return [one for one in self.all if one.state in (STARTING, READY)]

    @property
    def leaving(self) -> dict[str, Instance]:
        return self.drain.leaving if self.drain is not None else {}

    @property
    def taken_on(self) -> int:
        """How many the engine has taken on to run and is not late with."""
        return self.asked if self.asked is not None and not self.drain and not self.problem else 0

    def fails(self, now_ms: int) -> bool:
        """Whether the engine is not to be asked for less: it failed, and has not been seen to work since."""
        return self._blind or self.refused or self.backoff.waits(now_ms)

    def marked(self) -> int:
        """How many of them are marked as draining in the store."""
        leases = self._fleet.leases.of_agent(self._agent_id)
        return sum([(lease := lease_of(one, leases)) is not None and lease.draining for one in self.live])

    async def look(self, desired: int | None, now_ms: int) -> bool:
        """What there is now. False: the engine does not say."""
        if self._blind and self.backoff.waits(now_ms):
            return False
        try:
            found = _checked(await self.seat.ask(lambda engine: engine.instances(self._agent_id)), self.seat.name)
            live = sum([one.state in (STARTING, READY) for one in found])
            count = live if live == desired else await self._replicas(live)
        except EngineError as error:
            self._blind = True
            self._failed("look", str(error), now_ms)
            return False
        self._blind = False
        self._mended("look")
        first, self.known = not self.known, True
        self.all, self.count = found, count
        if first:
            self.good = count
        self._ended &= {(one.name, one.started_ms) for one in found}
        died = {(one.name, one.started_ms): one for one in found if one.state == FAILED}
        died = {key: one for key, one in died.items() if key not in self._ended}
        new = [one for key, one in died.items() if key not in self._died]
        self._died = set(died)
        if new and not first:
            newest = max(new, key=lambda one: (one.started_ms, one.name))
            self._settled = False
            self._failed("died", f"instance {newest.name} ended by itself{_note(newest)}", now_ms)
        if self.drain is not None:
            self.drain.keep(self.live)
            if not self.drain.leaving:
                self.drain = None
        return True

    async def _replicas(self, live: int) -> int:
        """An engine may know what is asked for apart from what runs (a rollout has more for a while)."""
        replicas: Callable[[str], Awaitable[Any]] | None = getattr(self.seat.engine, "replicas", None)
        if replicas is None:
            return live
        return int((await self.seat.ask(lambda _: replicas(self._agent_id))).asked)

    def settle(self, desired: int, now_ms: int) -> None:
        """After a look: whether all is as it was asked for, and what is wrong if it is not."""
        if self.count == desired and self.drain is None:
            self._settled = True
            self._odd = 0
            self.asked = None
            if not self.backoff.waits(now_ms):
                self.good = desired
                if self._cause != "died" or sum([one.state == READY for one in self.all]) >= desired:
                    self.problem = self._cause = ""
                    self.backoff.worked(now_ms)
        elif self._asked_ms and self.asked == desired and now_ms - self._asked_ms > LATE_MS and not self.problem:
            self._cause = "late"
            self.problem = (
                f"engine {self.seat.name} was asked for {desired} instances {(now_ms - self._asked_ms) // 1_000} s ago "
                f"and runs {self.count}"
            )

    def odd(self, desired: int) -> bool:
        """Whether somebody else changed the number: it was as we asked, and is not any more, and nothing died."""
        if not self._settled or self.drain is not None or self.count == desired:
            self._odd = 0
            return False
        self._odd += 1
        return self._odd >= SURE

    def contention(self) -> str:
        """What the engine knows of others who change the number; empty: nothing."""
        contention: Callable[[str], str] | None = getattr(self.seat.engine, "contention", None)
        return contention(self._agent_id) if contention is not None else ""

    def unsettle(self) -> None:
        """Another number is asked for from here on."""
        self._settled = False
        self._odd = 0

    def _failed(self, cause: str, problem: str, now_ms: int) -> None:
        self._cause, self.problem = cause, problem
        self.backoff.failed(now_ms)

    def _mended(self, cause: str) -> None:
        if self._cause == cause:
            self._cause = self.problem = ""

    async def bring_to(self, desired: int, sight: Sight, now_ms: int, may_act: Callable[[], Awaitable[bool]]) -> None:
        """One step towards `desired`. `may_act` is asked before an engine is. DatabaseError: at the next step."""
        if self._settled and self.count != desired:
            return  # somebody else's number: it is looked at again before it counts
        drain = self.drain
        if drain is not None and not drain.asked_ms and self.count - len(drain.leaving) < desired:
            await drain.readmit(desired - self.count + len(drain.leaving))
            if not drain.leaving:
                drain = self.drain = None
        if self.count - len(self.leaving) < desired:
            if await may_act():
                await self._grow(desired, now_ms)
        elif self.count > desired:
            if self.seat.engine.chooses and (drain is None or not drain.asked_ms):
                self._leave(desired, sight, now_ms)
            drain = self.drain
            if drain is None or drain.asked_ms or await drain.is_over(sight, now_ms):
                await self._shrink(desired, now_ms, may_act)
        await self._strays.readmit(self.all, self.leaving, now_ms)

    async def stay(self, now_ms: int) -> None:
        """Nothing is drained or asked for: who was about to leave serves again, unless it is told to end already."""
        if self.drain is not None and not self.drain.asked_ms:
            await self.drain.readmit(len(self.drain.leaving))
            self.drain = None
        await self._strays.readmit(self.all, self.leaving, now_ms)

    def _leave(self, desired: int, sight: Sight, now_ms: int) -> None:
        """Those that are more than `desired` begin to drain. What is asked for and not there yet goes before them."""
        surplus = len(self.live) - len(self.leaving) - desired
        if surplus <= 0:
            return
        leases = self._fleet.leases.of_agent(self._agent_id)
        chosen = victims(self.live, leases, self.leaving, sight.of(self._agent_id).busy, surplus)
        if self.drain is None:
            self.drain = Drain(self._agent_id, self._fleet, self._lessor, now_ms, self._drain_ms)
        self.drain.add(chosen, now_ms)

    async def _grow(self, desired: int, now_ms: int) -> None:
        if self.backoff.waits(now_ms) or (self.asked == desired and self._again.waits(now_ms)):
            return
        try:
            await self.seat.ask(lambda engine: engine.grow(self._agent_id, desired))
        except EngineError as error:
            self._failed("ask", str(error), now_ms)
            return
        self._took_on(desired, now_ms)

    async def _shrink(self, desired: int, now_ms: int, may_act: Callable[[], Awaitable[bool]]) -> None:
        """Those that were drained end. Where others are to leave as well by now, their turn comes after."""
        leaving = tuple(self.leaving.values())
        if self.seat.engine.chooses:
            desired = max(desired, len(self.live) - len(leaving))
        if self.fails(now_ms) or (self.asked == desired and self._again.waits(now_ms)) or not await may_act():
            return
        try:
            await self.seat.ask(lambda engine: engine.shrink(self._agent_id, desired, leaving))
        except EngineError as error:
            self.refused = True
            self._failed("ask", str(error), now_ms)
            return
        self._ended |= {(one.name, one.started_ms) for one in leaving}
        if self.drain is not None and not self.drain.asked_ms:
            self.drain.asked_ms = now_ms
        self._took_on(desired, now_ms)

    def _took_on(self, desired: int, now_ms: int) -> None:
        if self.asked != desired:
            self.asked, self._asked_ms = desired, now_ms
            self._again.failures = 0
        self._again.failed(now_ms)
        self._mended("ask")
        self.unsettle()


def _checked(found: Sequence[Instance], name: str) -> tuple[Instance, ...]:
    """What an engine says there is, as far as that can be; EngineError else."""
    if not isinstance(found, list | tuple) or not all([isinstance(one, Instance) for one in found]):
        raise EngineError(f"engine {name} answers with no list of instances")
    several = tuple(found)
    if len(several) > MAX_INSTANCES:
        raise EngineError(f"engine {name} lists {len(several):,} instances, which cannot be")
    if len({one.name for one in several}) < len(several):
        raise EngineError(f"engine {name} lists an instance twice")
    for one in several:
        if one.state not in _STATES:
            raise EngineError(f"engine {name} says {one.state!r} of {one.name}, which is no state of an instance")
    return several


def _note(instance: Instance) -> str:
    note = instance.note.strip()
    return f": {note[-_MAX_NOTE:]}" if note else ""
