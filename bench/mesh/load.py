"""The load process: every caller dials the sidecar beside it with plain grpc.aio stubs.

Always holds: calls start at their planned time whatever the others do (open loop), at most `IN_FLIGHT` at once; a
reply of the Agent API is compared with what the simulated agent must say, so a mixed-up or stale reply counts as
failed. Deliberately not here: printing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterator
from dataclasses import dataclass, field
from time import monotonic

import grpc

from bench.agents.behaviour import Behaviour, output_tokens, reply_words
from bench.mesh.plan import PlannedCall
from outrider.v1 import agent_pb2, agent_pb2_grpc

IN_FLIGHT = 512
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(slots=True)
class Outcome:
    """How one call went."""

    agent_id: str
    tier: str
    streamed: bool
    ok: bool
    reason: str = ""
    total_ms: float = 0.0
    first_ms: float = 0.0
    cache: str = ""  # hit, stale, miss, coalesced, bypass
    endpoint: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Progress:
    """What the progress line shows while the load runs."""

    started: int = 0
    late: int = 0  # started over 100 ms after their time: this process was too slow
    in_flight: int = 0
    outcomes: list[Outcome] = field(default_factory=list)


class Callers:
    """One channel per caller, each to its own sidecar."""

    def __init__(self, ports: list[int], behaviour: Behaviour, timeout_s: float) -> None:
        self.channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS) for port in ports]
        self.stubs = [agent_pb2_grpc.AgentStub(channel) for channel in self.channels]
        self.echoes = [channel.unary_unary("/bench.Echo/Unary") for channel in self.channels]
        self.behaviour = behaviour
        self.timeout_s = timeout_s
        self.progress = Progress()

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()

    async def run(self, plan: Iterator[PlannedCall]) -> None:
        """Make every planned call; returns when the last one is over."""
        progress = self.progress
        begun_at = monotonic()
        places = asyncio.Semaphore(IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            for call in plan:
                await asyncio.sleep(max(0.0, begun_at + call.at_s - monotonic()))
                await places.acquire()
                progress.late += monotonic() - begun_at - call.at_s > 0.1
                progress.started += 1
                progress.in_flight += 1
                group.create_task(self._one(call, places))

    async def _one(self, call: PlannedCall, places: asyncio.Semaphore) -> None:
        outcome = Outcome(call.agent_id, call.tier, call.streamed, ok=False)
        begun_at = monotonic()
        try:
            await self._call(call, outcome, begun_at)
        except grpc.aio.AioRpcError as error:
            outcome.reason = f"{error.code().name}: {error.details()}"
            _read_metadata(outcome, error.trailing_metadata())
        finally:
            outcome.total_ms = (monotonic() - begun_at) * 1000
            outcome.first_ms = outcome.first_ms or outcome.total_ms
            self.progress.outcomes.append(outcome)
            self.progress.in_flight -= 1
            places.release()

    async def _call(self, call: PlannedCall, outcome: Outcome, begun_at: float) -> None:
        metadata = (
            ("x-agent-id", call.agent_id),
            ("x-session-id", f"session-{call.caller}"),
            ("x-tenant-id", "demo"),
        )
        if isinstance(call.message, bytes):
            echo = self.echoes[call.caller](call.message, metadata=metadata, timeout=self.timeout_s)
            outcome.ok = await echo == call.message
            outcome.reason = "" if outcome.ok else "an echo came back changed"
            _read_metadata(outcome, await echo.trailing_metadata())
            return
        stub, request = self.stubs[call.caller], call.message
        if call.streamed:
            stream = stub.InvokeStream(request, metadata=metadata, timeout=self.timeout_s)
            text, usage = await _read_stream(stream, outcome, begun_at)
            trailers = await stream.trailing_metadata()
        else:
            unary = stub.Invoke(request, metadata=metadata, timeout=self.timeout_s)
            reply = await unary
            text, usage = "".join(part.text for part in reply.parts), reply.usage
            trailers = await unary.trailing_metadata()
        outcome.ok = text == " ".join(reply_words(request, output_tokens(request, self.behaviour)))
        outcome.reason = "" if outcome.ok else "the reply is not the one the agent gives to this request"
        outcome.input_tokens, outcome.output_tokens = usage.input_tokens, usage.output_tokens
        _read_metadata(outcome, trailers)


async def _read_stream(
    stream: AsyncIterable[agent_pb2.InvokeChunk], outcome: Outcome, begun_at: float
) -> tuple[str, agent_pb2.Usage]:
    pieces: list[str] = []
    usage = agent_pb2.Usage()
    async for chunk in stream:
        if not outcome.first_ms:
            outcome.first_ms = (monotonic() - begun_at) * 1000
        pieces.append(chunk.text)
        if chunk.HasField("finish"):
            usage = chunk.finish.usage
    return "".join(pieces), usage


def _read_metadata(outcome: Outcome, metadata) -> None:
    for name, value in metadata or ():
        if name == "x-outrider-cache":
            outcome.cache = str(value)
        elif name == "x-outrider-endpoint":
            outcome.endpoint = str(value)
