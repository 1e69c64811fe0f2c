"""The configured engines, as the loop asks them: started while this control plane leads, and let go when it does not.

Always holds: whatever an engine does, what comes out is an answer or an EngineError, and it comes within a bound.

Deliberately not here: which engines there are and how they are made (`engines.registry`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import TypeVar

from outrider.policy import Agent
from outrider_control.loops.backoff import Backoff
from outrider_control.loops.scale.types import Engine, EngineError

T = TypeVar("T")
TIMEOUT_S = 30.0
AT_ONCE = 32  # questions to one engine

_LOG = logging.getLogger("outrider.control.scale")


class Seat:
    """One engine of the configuration. `make` gives a fresh one: who has let go does not start again."""

    def __init__(self, name: str, make: Callable[[], Engine], rng: Random, timeout_s: float = TIMEOUT_S):
        self.name = name
        self.engine = make()
        self.problem = ""  # why it is not started
        self._make = make
        self._timeout_s = timeout_s
        self._backoff = Backoff(rng)
        self.started = False
        self._starting = asyncio.Lock()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def start(self, now_ms: int) -> None:
        """Where it has not started and may be tried again; for the first agent that it runs. Never raises: `problem`
        says why it has not."""
        async with self._starting:
            if self.started or self._backoff.waits(now_ms):
                return
            try:
                await self._ask(self.engine.start())
            except EngineError as error:
                self._backoff.failed(now_ms)
                if self.problem != str(error):
                    _LOG.warning("engine %s does not start: %s", self.name, error)
                self.problem = str(error)
                return
            self.started = True
            self.problem = ""

    async def ask(self, question: Callable[[Engine], Awaitable[T]]) -> T:
        """What the engine answers; EngineError."""
        if not self.started:
            raise EngineError(self.problem or f"engine {self.name} is starting")
        return await self._ask(question(self.engine))

    async def _ask(self, answer: Awaitable[T]) -> T:
        try:
            async with self._slots, asyncio.timeout(self._timeout_s):
                return await answer
        except EngineError:
            raise
        except TimeoutError:
            raise EngineError(f"engine {self.name} gives no answer within {self._timeout_s:g} s") from None
        except Exception as error:
            _LOG.exception("engine %s fails in a way it should not", self.name)
            raise EngineError(f"engine {self.name}: a defect, see the log: {error!r}") from error

    async def close(self) -> None:
        """Let go of what runs; it goes on."""
        started, self.started = self.started, False
        engine, self.engine = self.engine, self._make()
        if not started:
            return
        try:
            await self._ask(engine.close())
        except EngineError as error:
            _LOG.warning("engine %s: %s", self.name, error)


class EngineSet:
    """All of them; `default` is for agents that name none."""

    def __init__(self, seats: Mapping[str, Seat], default: str = ""):
        self.seats = dict(seats)
        self._default = default or (next(iter(self.seats)) if len(self.seats) == 1 else "")

    def of(self, agent: Agent) -> Seat | None:
        """The one that runs an agent."""
        seat = self.seats.get(agent.scaling.engine or self._default)
        return seat if seat is not None and seat.engine.has(agent.agent_id) else None

    def missing(self, agent: Agent) -> str:
        """Why an agent has none, where its policy asks for one by name."""
        name = agent.scaling.engine
        if not name:
            return ""
        if name not in self.seats:
            return f"scaling.engine names {name!r}, which is not in this control plane's configuration"
        return f"engine {name!r} is not told how to run this agent"

    async def let_go(self, pulled_too: bool) -> None:
        """Those that act, or all of them: what is only asked (KEDA's) serves at every control plane."""
        wanted = [seat for seat in self.seats.values() if pulled_too or not seat.engine.pulls]
        await asyncio.gather(*[seat.close() for seat in wanted])
