"""Active health checks: asks `grpc.health.v1.Health/Check` of every endpoint whose agent's policy wants it.

Always holds: at most MAX_CHECKS checks are under way; an endpoint is asked over one connection kept for checks, which
closes when the endpoint leaves or its checks are turned off, and then it counts as serving. Whatever goes wrong with
a check is a failed check.

Deliberately not here: when a check is due and what its result means (engines `health`), picking (filter `dispatch`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from outrider.policy import Agent, HealthCheck
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.edge.protobuf import bytes_field, last_varint
from outrider_sidecar.edge.rpc import Rpc
from outrider_sidecar.engines.health import HealthChecker, passed

log = logging.getLogger(__name__)

PATH = "/grpc.health.v1.Health/Check"
MAX_CHECKS = 64
LOOK_EVERY_S = 1.0  # at the least: policies and endpoints change in between
_STATUS = 1  # field of HealthCheckResponse
_SERVICE = 1  # field of HealthCheckRequest


class Checks:
    """`rpc_for(endpoint, agent)` makes the connection an endpoint is asked over."""

    def __init__(self, runtime: Runtime, rpc_for: Callable[[Endpoint, Agent], Rpc]):
        self._runtime = runtime
        self._rpc_for = rpc_for
        self._checkers: dict[str, tuple[HealthCheck, HealthChecker]] = {}
        self._rpcs: dict[Endpoint, Rpc] = {}
        self._room = asyncio.Semaphore(MAX_CHECKS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to check."""
        self._looking = self._runtime.reactor.loop.create_task(self._look())

    async def close(self) -> None:
        """End everything under way; what endpoints count as stays."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        rpcs = list(self._rpcs.values())
        self._rpcs.clear()
        await asyncio.gather(*[rpc.close() for rpc in rpcs])

    async def _look(self) -> None:
        while True:
            wait_s = LOOK_EVERY_S
            try:
                now = self._runtime.clock()
                wait_s = min(LOOK_EVERY_S, max(0.01, self.sweep(now) - now))
            except Exception:
                log.exception("looking for due health checks failed; the next look is in %g s", LOOK_EVERY_S)
            await asyncio.sleep(wait_s)

    def sweep(self, now: float) -> float:
        """Launch the checks that are due; when to come again (seconds of the runtime's clock)."""
        come_at = now + LOOK_EVERY_S
        checked: set[Endpoint] = set()
        for name, state in self._runtime.agents.items():
            pool = state.pool
            if pool is None:
                continue
            policy: HealthCheck = pool.agent.health_check
            checker = self._checker(name, policy)
            endpoints = list(pool.endpoints.values())
            if not policy.enabled:
                changed = [checker.forget(endpoint) for endpoint in endpoints if endpoint.health is not None]
                if any(changed):
                    pool.changed()
                continue
            checked.update(endpoints)
            due, ask_at = checker.due(endpoints, now)
            come_at = min(come_at, ask_at)
            for endpoint in due:
                self._spawn(self._check(endpoint, pool, policy, checker))
        for endpoint in self._rpcs.keys() - checked:
            self._spawn(self._rpcs.pop(endpoint).close())
        for name in self._checkers.keys() - self._runtime.agents.keys():
            del self._checkers[name]
        return come_at

    def _checker(self, name: str, policy: HealthCheck) -> HealthChecker:
        found = self._checkers.get(name)
        if found is None or found[0] != policy:
            found = self._checkers[name] = policy, HealthChecker(policy, self._runtime.rng)
        return found[1]

    def _spawn(self, work: Any) -> None:
        task = self._runtime.reactor.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self, endpoint: Endpoint, pool: Any, policy: HealthCheck, checker: HealthChecker) -> None:
        async with self._room:
            if pool.endpoints.get(endpoint.address) is not endpoint:
                return  # it has left meanwhile
            try:
                rpc = self._rpcs.get(endpoint)
                if rpc is None:
                    rpc = self._rpcs[endpoint] = self._rpc_for(endpoint, pool.agent)
                reply = await rpc.unary(PATH, request(policy.service), policy.timeout_ms / 1e3)
                ok = passed(reply.status, last_varint(reply.message, _STATUS))
            except Exception:
                log.exception("the health check of %s broke off and counts as failed", endpoint.address)
                ok = False
        if checker.result(endpoint, ok, self._runtime.clock()):
            log.info("%s counts as %s", endpoint.address, "healthy" if ok else "unhealthy")
            pool.changed()


def request(service: str) -> bytes:
    """A HealthCheckRequest."""
    return bytes_field(_SERVICE, service.encode()) if service else b""
