"""The callers of a spike: an open loop of native calls over lanes, at a rate that steps up and down.

Always holds: a call starts at its planned time whatever the others do; the same seed plans the same calls; a reply is
compared with what the simulated agent must say. Deliberately not here: processes, printing, the verdict.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

import grpc

from bench.agents.behaviour import Behaviour, output_tokens, reply_words
from outrider.v1 import agent_pb2, agent_pb2_grpc

LANES = ("critical", "high", "normal", "low")
SHARES = (0.05, 0.15, 0.5, 0.3)  # of the calls
DEADLINES_S = {"critical": 10.0, "high": 10.0, "normal": 30.0, "low": 30.0}
_TENANTS = ("acme", "globex", "initech", "umbrella")


@dataclass(frozen=True, slots=True)
class Phase:
    """`rate` calls per second for `seconds`."""

    name: str
    seconds: float
    rate: float


@dataclass(frozen=True, slots=True)
class PlannedCall:
    at_s: float
    phase: str
    lane: str
    tenant: str
    number: int


@dataclass(slots=True)
class Outcome:
    """How one call went; times in seconds since the load began."""

    phase: str
    lane: str
    started_s: float
    total_ms: float
    reason: str = ""  # empty: it succeeded

    @property
    def ended_s(self) -> float:
        return self.started_s + self.total_ms / 1e3


def planned(phases: Sequence[Phase], seed: int) -> Iterator[PlannedCall]:
    """Poisson arrivals, phase after phase."""
    rng = random.Random(seed)
    begins_s, number = 0.0, 0
    for phase in phases:
        at_s = begins_s
        while True:
            at_s += rng.expovariate(phase.rate)
            if at_s >= begins_s + phase.seconds:
                break
            number += 1
            lane = rng.choices(LANES, SHARES)[0]
            yield PlannedCall(at_s, phase.name, lane, rng.choice(_TENANTS), number)
        begins_s += phase.seconds


class Callers:
    """One channel per sidecar; calls take turns."""

    def __init__(self, agent_id: str, ports: Sequence[int], behaviour: Behaviour):
        self._channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}") for port in ports]
        self._stubs = [agent_pb2_grpc.AgentStub(channel) for channel in self._channels]
        self._agent_id = agent_id
        self._behaviour = behaviour
        self.outcomes: list[Outcome] = []
        self.in_flight = 0
        self.late = 0  # started over 100 ms after their time: this process was too slow
        self.begun_at = 0.0

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def run(self, plan: Iterator[PlannedCall]) -> None:
        """Make every planned call; returns when the last one is over."""
        self.begun_at = monotonic()
        async with asyncio.TaskGroup() as group:
            for call in plan:
                wait_s = self.begun_at + call.at_s - monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                self.late += wait_s < -0.1
                group.create_task(self._one(call))

    async def _one(self, call: PlannedCall) -> None:
        self.in_flight += 1
        begun_at = monotonic()
        outcome = Outcome(call.phase, call.lane, begun_at - self.begun_at, 0.0, "not finished")
        request = agent_pb2.InvokeRequest(agent_id=self._agent_id, tenant_id=call.tenant)
        request.messages.add(role=agent_pb2.ROLE_USER).parts.add(text=f"Question {call.number}: what is due?")
        metadata = (
            ("x-agent-id", self._agent_id),
            ("x-priority", call.lane),
            ("x-tenant-id", call.tenant),
        )
        stub = self._stubs[call.number % len(self._stubs)]
        try:
            reply = await stub.Invoke(request, metadata=metadata, timeout=DEADLINES_S[call.lane])
            wanted = " ".join(reply_words(request, output_tokens(request, self._behaviour)))
            outcome.reason = "" if reply.parts and reply.parts[0].text == wanted else "the reply is another call's"
        except grpc.aio.AioRpcError as error:
            outcome.reason = f"{error.code().name}: {error.details()}"
        finally:
            outcome.total_ms = (monotonic() - begun_at) * 1e3
            self.outcomes.append(outcome)
            self.in_flight -= 1
