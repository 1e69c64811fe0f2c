"""Runs agents as processes of this machine, by a command template: starts them, looks after them, ends them.

Always holds: nothing is signalled that this engine, or the one before it by its state file, has not started. A control
plane that is killed leaves its instances running; the next one takes over those that still run. Instances that die are
started again, at a pace that dying slows down; what serves is not touched by it. A name is not used again while its
instance lives or its failure is shown.

Deliberately not here: which instances leave (the loop drains them first), one instance's life (`local_instance`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from random import Random
from typing import Any, Final

from outrider_control.engines import local_log
from outrider_control.engines.local_instance import TOKEN, Host, LocalInstance
from outrider_control.engines.local_ledger import Entry, Ledger
from outrider_control.engines.local_process import Process, leader_with
from outrider_control.engines.local_settings import MAX_INSTANCES, LocalAgent, LocalSettings, settings
from outrider_control.engines.local_starts import STEADY_S, Starts
from outrider_control.loops.scale.types import FAILED, READY, STARTING, EngineError, Instance

__all__ = ["LocalAgent", "LocalEngine", "LocalSettings", "settings"]

TICK_S: Final = 0.5
MAX_FAILED: Final = 10  # failures of an agent that are shown
FAILED_MS: Final = 600_000  # for how long
CLOSE_S: Final = 20.0  # `stop_on_exit`: what is left after so long is killed

_LOG = logging.getLogger("outrider.control.engines.local")


class LocalEngine:
    """See `Engine` of `loops.scale.types`.

    `endpoints(agent_id)` gives what has registered of an agent; `control` the address at which instances reach the
    control plane. `first_s` is the first wait after an instance died.
    """

    kind = "local"
    chooses = True
    pulls = False

    def __init__(
        self,
        name: str,
        settings: LocalSettings,
        clock_ms: Callable[[], int],
        endpoints: Callable[[str], Sequence[Instance]],
        control: Callable[[], str],
        rng: Random,
        first_s: float = 1.0,
    ):
        self.name = name
        self._settings = settings
        self._where = f"engine {name}"
        self._ledger = Ledger(self._where, settings.state_dir)
        boots = asyncio.Semaphore(settings.boots)
        self._host = Host(self._where, settings, self._ledger, clock_ms, endpoints, control, boots)
        self._pools = {
            agent_id: _Pool(self._host, agent_id, agent, Starts(rng, first_s))
            for agent_id, agent in settings.agents.items()
        }
        self._keeper: asyncio.Task[None] | None = None

    def has(self, agent_id: str) -> bool:
        return agent_id in self._pools

    async def start(self) -> None:
        if self._keeper is not None:
            return
        entries = await asyncio.to_thread(self._ledger.open)
        for entry in entries:
            self._adopt(entry)
        await self._ledger.save()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"outrider-{self.name}-keeper")

    async def instances(self, agent_id: str) -> Sequence[Instance]:
        return self._pool(agent_id).seen()

    async def grow(self, agent_id: str, desired: int) -> None:
        pool = self._pool(agent_id)
        self._aim(pool, agent_id, desired)
        told = pool.starts.told(asyncio.get_running_loop().time())
        if told:
            raise EngineError(f"{self._where}: {agent_id}: {told}")

    async def shrink(self, agent_id: str, desired: int, leaving: Sequence[Instance]) -> None:
        pool = self._pool(agent_id)
        named = {(one.name, one.started_ms) for one in leaving}
        self._aim(pool, agent_id, desired, named)

    async def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        try:
            if self._settings.stop_on_exit:
                await asyncio.gather(*[pool.end(CLOSE_S) for pool in self._pools.values()])
        finally:
            for pool in self._pools.values():
                pool.closing = True
            tasks = [task for pool in self._pools.values() for task in pool.tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                if keeper is not None:
                    await self._ledger.save()
            finally:
                self._ledger.close()

    def _pool(self, agent_id: str) -> _Pool:
        pool = self._pools.get(agent_id)
        if pool is None:
            raise EngineError(f"{self._where}: knows no command for {agent_id!r}: add it to `agents`")
        if self._keeper is None:
            raise EngineError(f"{self._where}: is not started")
        return pool

    def _aim(
        self, pool: _Pool, agent_id: str, desired: Any, leaving: AbstractSet[tuple[str, int]] = frozenset()
    ) -> None:
        if type(desired) is not int or desired < 0:
            raise EngineError(f"{self._where}: {desired!r} is no number of instances for {agent_id!r}")
        others = sum([one.target for one in self._pools.values() if one is not pool])
        if desired + others > MAX_INSTANCES:
            reason = f"at most {MAX_INSTANCES} run here, and {others} are of other agents"
            raise EngineError(f"{self._where}: {desired} instances of {agent_id!r} are too many: {reason}")
        pool.aim(desired, leaving)

    def _adopt(self, entry: Entry) -> None:
        """Take over a process, if it still runs."""
        pid, start = entry.pid, entry.start
        if not pid:  # the control plane ended between writing this down and knowing the pid
            found = leader_with(f"{TOKEN}={entry.token}")
            pid, start = (found.pid, found.start) if found is not None else (0, 0)
        process = Process.adopt(pid, start) if pid else None
        if process is None:
            self._ledger.remove(entry.name)
            return
        self._ledger.change(entry.name, pid=pid, start=start)
        pool = self._pools.get(entry.agent_id)
        if pool is None:
            process.release()
            _LOG.warning(
                "%s: %s (pid %d) still runs, but %s is not in the configuration any more: it is left alone",
                *(self._where, entry.name, pid, entry.agent_id),
            )
            return
        pool.adopt(entry, process)
        _LOG.info("%s: %s (pid %d) still runs and is taken over", self._where, entry.name, pid)

    async def _keep(self) -> None:
        """Logs are kept short, and who waits to be tried again is."""
        while True:
            await asyncio.sleep(TICK_S)
            logs = [one.log for pool in self._pools.values() for one in pool.living if one.process is not None]
            await asyncio.to_thread(local_log.bound, logs, self._settings.log_bytes)
            for pool in self._pools.values():
                pool.settle()


class _Pool:
    """One agent's instances."""

    def __init__(self, host: Host, agent_id: str, agent: LocalAgent, starts: Starts):
        self.target = 0
        self.starts = starts
        self.closing = False
        self._host = host
        self._agent_id = agent_id
        self._agent = agent
        self._instances: dict[str, LocalInstance] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed: deque[tuple[int, Instance]] = deque(maxlen=MAX_FAILED)

    @property
    def living(self) -> list[LocalInstance]:
        return list(self._instances.values())

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return list(self._tasks.values())

    def seen(self) -> list[Instance]:
        self._forget()
        return [*(one.seen for one in self._instances.values()), *(one for _, one in self._failed)]

    def aim(self, desired: int, leaving: AbstractSet[tuple[str, int]]) -> None:
        """So many from here on; those named end."""
        self.target = desired
        for one in self.living:
            if (one.name, one.started_ms) in leaving and one.state in (STARTING, READY):
                self._end(one)
        self.settle()

    def adopt(self, entry: Entry, process: Process) -> None:
        one = LocalInstance.adopt(self._host, self._agent, entry, process, self._may_fail)
        self._run(one)
        if not one.leaving:
            self.target += 1

    async def end(self, within_s: float) -> None:
        """All of them."""
        self.target = 0
        for one in self.living:
            self._end(one, within_s)
        if self._tasks:
            await asyncio.wait(self.tasks, timeout=within_s + 1.0)
        for one in self.living:
            one.kill()
        if self._tasks:
            await asyncio.wait(self.tasks)

    def settle(self) -> None:
        """Start those that are missing and may start; who has not started and is not needed any more is dropped."""
        if self.closing:
            return
        now_s = asyncio.get_running_loop().time()
        for one in self._instances.values():
            if one.state == READY:
                self.starts.served(one.began_s, one.ready_s, now_s)
        # One that failed and still ends has its place until it has ended.
        staying = [one for one in self._instances.values() if not one.leaving]
        surplus = len(staying) - self.target
        for one in reversed(staying):
            if one.waits and (surplus > 0 or self.starts.is_vain(one.asked_s)):
                self._end(one)
                surplus -= 1
        staying = [one for one in staying if not one.leaving]
        starting = sum([one.state == STARTING for one in staying])
        for _ in range(self.starts.room(self.target - len(staying), starting, now_s)):
            self._run(LocalInstance(self._host, self._agent_id, self._agent, self._name(), self._may_fail))

    def _name(self) -> str:
        self._forget()
        taken = {*self._instances, *(one.name for _, one in self._failed)}
        number = 1
        while f"{self._agent_id}-{number}" in taken:
            number += 1
        return f"{self._agent_id}-{number}"

    def _run(self, one: LocalInstance) -> None:
        task = asyncio.get_running_loop().create_task(one.run(), name=f"outrider-instance-{one.name}")
        self._instances[one.name] = one
        self._tasks[one.name] = task
        task.add_done_callback(lambda task: self._ended(one, task))

    def _end(self, one: LocalInstance, drain_s: float | None = None) -> None:
        one.leave(drain_s)
        if one.process is None:
            self._tasks[one.name].cancel()

    def _ended(self, one: LocalInstance, task: asyncio.Task[None]) -> None:
        del self._instances[one.name], self._tasks[one.name]
        if self.closing:
            return
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("%s: a defect in the life of %s", self._host.where, one.name, exc_info=task.exception())
            one.state, one.note = FAILED, f"a defect, see the log: {task.exception()!r}"
        if one.state == FAILED:
            self._failed.append((self._host.clock_ms(), one.seen))
            now_s = asyncio.get_running_loop().time()
            if not one.ready_s or now_s - one.ready_s < STEADY_S:
                self.starts.failed(one.began_s, f"{one.name} {one.note}", now_s)
        self.settle()

    def _may_fail(self) -> bool:
        """Whether one more that is silent may end: a third of them at a time, so that a mistake has its bound."""
        ending = sum([one.state == FAILED for one in self._instances.values()])
        return ending < max(1, len(self._instances) // 3)

    def _forget(self) -> None:
        now_ms = self._host.clock_ms()
        while self._failed and not now_ms - FAILED_MS < self._failed[0][0] <= now_ms:
            self._failed.popleft()
