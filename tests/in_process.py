"""A sidecar's runtime and listener inside a test's loop, without a process: for parts that need a real caller.

Always holds: leaving the block closes every socket; calls leave no span anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable

from outrider.policy import Policy
from outrider_http2.shell import Reactor, clock
from outrider_sidecar import stack
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.edge.listener import Listener
from outrider_sidecar.edge.upstream import Connector
from outrider_sidecar.engines.epochs import Epochs
from outrider_sidecar.engines.sampler import parse_sampler
from outrider_sidecar.payloads import Payloads


class InProcess:
    """`target` is where callers dial."""

    def __init__(self, now: Callable[[], float] = clock):
        self.reactor = Reactor(asyncio.get_running_loop())
        self.runtime = Runtime(self.reactor, now, time.time, random.Random(7))
        self.runtime.epochs = Epochs()
        self.runtime.sampler = parse_sampler("parentbased_always_on", "1.0")
        self.runtime.payloads = Payloads()
        self.runtime.connector = lambda endpoint, agent: Connector(
            self.reactor, endpoint, self.runtime.rng, lambda: None, agent.server_name
        )
        self.listener = Listener(self.runtime, lambda: self.runtime.snapshot)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.listener.port}"

    def apply(self, policy: Policy) -> None:
        self.runtime.snapshot = stack.compile_snapshot(policy, self.runtime)


@contextlib.asynccontextmanager
async def in_process(
    prepare: Callable[[InProcess], object] = lambda _: None,
    policy: Policy | None = None,
    tls: ssl.SSLContext | None = None,
    now: Callable[[], float] = clock,
) -> AsyncIterator[InProcess]:
    """A listener under a policy; `prepare` runs before the policy is compiled."""
    mesh = InProcess(now)
    prepare(mesh)
    mesh.apply(policy or Policy())
    await mesh.listener.open(("127.0.0.1", 0), tls)
    try:
        yield mesh
    finally:
        mesh.listener.close()
        for state in mesh.runtime.agents.values():
            state.pool.close()
        for shell in list(mesh.reactor.shells):
            shell.transport.abort()  # a TLS peer may be slow to say goodbye
        await mesh.reactor.close()
