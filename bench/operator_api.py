"""How long the operator's API takes to answer, over a full store: `python -m bench.operator_api [AGENTS]`.

One process: SQLite on disk, folded figures of a day for every agent; a client in the same process asks over a unix
socket. Printed: median and worst of `ROUNDS` calls, milliseconds, one call at a time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from outrider.policy import Agent
from outrider.v1 import operator_pb2, policy_pb2
from outrider_control.core.cardinality import Cardinality
from outrider_control.core.sample import Sample
from outrider_control.state import rollups
from outrider_control.state.database import Database
from tests.operator_server import NOW_MS, Plane, operator_plane, sample

ROUNDS = 30
METHODS = 4
ENDPOINTS = 3
STEP_MS = 300_000  # between calls of one series
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def samples(agents: int, begin_ms: int, end_ms: int, chance: random.Random) -> list[Sample]:
    """One call every five minutes for every method and endpoint of every agent."""
    return [
        sample(
            f"agent-{agent:03}", at_ms, method=f"/svc/M{method}", endpoint=f"10.0.0.{endpoint}:9001",
            total_us=int(chance.lognormvariate(10, 1)), queue_us=chance.choice((0, 0, 40)), cache="miss", tier="exact",
            status=chance.choice(("OK", "OK", "OK", "UNAVAILABLE")), input_tokens=100, priced=True, cost_nano_usd=9,
        )
        for at_ms in range(begin_ms, end_ms, STEP_MS)
        for agent in range(agents)
        for method in range(METHODS)
        for endpoint in range(ENDPOINTS)
    ]  # fmt: skip


async def fill(plane: Plane, agents: int) -> int:
    """A day of calls, folded; the last ten minutes not."""
    names = [f"agent-{agent:03}" for agent in range(agents)]
    await plane.apply(*[policy_pb2.AgentPolicy(agent_id=name) for name in names])
    chance, cardinality, calls = random.Random(3), Cardinality(), 0
    for hour in range(24):
        # What ended an hour ago or earlier is late, so the clock goes through the day as well.
        begin_ms = NOW_MS - DAY_MS + hour * HOUR_MS
        plane.now_ms = begin_ms + HOUR_MS
        made = samples(agents, begin_ms, plane.now_ms - (600_000 if hour == 23 else 0), chance)
        calls += len(made)
        await plane.take_in(made)
        while (await plane.db.write(rollups.fold, plane.now_ms, cardinality)).more:
            pass
    made = samples(agents, NOW_MS - 600_000, NOW_MS, chance)
    await plane.take_in(made)
    return calls + len(made)


async def measure(plane: Plane, what: str, method: str, request: Any) -> Any:
    """The last reply; the first call, which fills caches, is not counted."""
    reply = await plane.call(method, request)
    times_ms: list[float] = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        reply = await plane.call(method, request)
        times_ms.append((time.perf_counter() - begin) * 1_000)
    print(f"{what:<44} median {statistics.median(times_ms):7.1f} ms   worst {max(times_ms):7.1f} ms")
    return reply


async def main(agents: int) -> None:
    logging.disable(logging.WARNING)  # the clock leaps by hours, which leases take for a stall
    with tempfile.TemporaryDirectory() as folder:
        db = Database.open(f"sqlite:///{folder}/bench.db")
        try:
            async with operator_plane(db, Path(folder), Agent("defaults")) as plane:
                calls = await fill(plane, agents)
                print(f"{agents} agents, {calls:,} calls over a day")
                for name, since_ms in (("1 h", HOUR_MS), ("24 h", DAY_MS)):
                    request = operator_pb2.GetOverviewRequest(since_ms=since_ms)
                    reply = await measure(plane, f"GetOverview, {name}", "GetOverview", request)
                    assert len(reply.agents) == agents
                assert abs(reply.total.requests - calls) <= calls / 100, reply.total.requests
                for by in ("", "endpoint"):
                    request = operator_pb2.GetMetricsRequest(agent_id="agent-000", since_ms=DAY_MS, by=by)
                    await measure(
                        plane, f"GetMetrics, 24 h of one agent {f'by {by}' if by else ''}", "GetMetrics", request
                    )
                await measure(plane, "ListAgents", "ListAgents", operator_pb2.ListAgentsRequest())
                health = operator_pb2.GetAgentHealthRequest(agent_id="agent-000")
                await measure(plane, "GetAgentHealth", "GetAgentHealth", health)
        finally:
            await db.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 51))
