"""An agent: answers by repeating the question, a word at a time.

Always holds: it stops working on a call as soon as the caller is gone (cancelled, or the deadline is over); it waits
when the caller reads slower than it writes. What happens is told on stdout, a JSON object a line. With `--control` (it
may be repeated) it is registered there for as long as it runs; calls do not depend on that.

Run: python agent.py [--port 9001] [--word-ms 50] [--control 127.0.0.1:7700 [--agent-id echo]]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health  # pyright: ignore[reportAttributeAccessIssue] # not in its stubs

from outrider.registration import AsyncRegistration
from outrider.v1 import agent_pb2, agent_pb2_grpc

MODEL = "echo"
GRACE_S = 10.0  # how long calls in flight may take once the agent is told to stop
SERVICES = ("", "outrider.v1.Agent")
# grpcio takes 4 MB at most unless it is told otherwise; the sidecar passes 64 MB.
MESSAGE_LIMITS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
]


def tell(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def usage_of(words: list[str]) -> agent_pb2.Usage:
    return agent_pb2.Usage(input_tokens=len(words), output_tokens=len(words))


class EchoAgent(agent_pb2_grpc.AgentServicer):
    def __init__(self, word_s: float) -> None:
        self._word_s = word_s

    async def Invoke(self, request: agent_pb2.InvokeRequest, context: Any) -> agent_pb2.InvokeReply:  # noqa: N802
        words = [word async for word in self._answer("Invoke", request, context)]
        return agent_pb2.InvokeReply(
            parts=[agent_pb2.Part(text=" ".join(words))],
            finish_reason=agent_pb2.FINISH_REASON_STOP,
            model=MODEL,
            usage=usage_of(words),
        )

    async def InvokeStream(  # noqa: N802
        self, request: agent_pb2.InvokeRequest, context: Any
    ) -> AsyncIterator[agent_pb2.InvokeChunk]:
        words: list[str] = []
        async for word in self._answer("InvokeStream", request, context):
            yield agent_pb2.InvokeChunk(text=f" {word}" if words else word)
            words.append(word)
        finish = agent_pb2.Finish(reason=agent_pb2.FINISH_REASON_STOP, model=MODEL, usage=usage_of(words))
        yield agent_pb2.InvokeChunk(finish=finish)

    async def _answer(self, method: str, request: agent_pb2.InvokeRequest, context: Any) -> AsyncIterator[str]:
        """The words, as they are thought of; tells how the call began and how it ended."""
        metadata = dict(context.invocation_metadata())
        session, left_s = metadata.get("x-session-id"), context.time_remaining()
        tell(
            "call",
            method=method,
            agent=metadata.get("x-agent-id"),
            session=session,
            message_session=request.session_id,
            left_ms=None if left_s is None else round(left_s * 1000),
        )
        words = [word for part in request.messages[-1].parts for word in part.text.split()] if request.messages else []
        if not words:
            tell("failed", method=method, session=session)
            reason = "nothing to answer – the last message has no words"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
        try:
            for word in words:
                await asyncio.sleep(self._word_s)
                yield word
        except (asyncio.CancelledError, GeneratorExit):
            tell("cancelled", method=method, session=session)
            raise
        tell("done", method=method, session=session)


async def serve(port: int, word_s: float, control: Sequence[str], agent_id: str) -> None:
    server = grpc.aio.server(options=[*MESSAGE_LIMITS, ("grpc.so_reuseport", 0)])  # a port that is taken is an error
    agent_pb2_grpc.add_AgentServicer_to_server(EchoAgent(word_s), server)
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for service in SERVICES:
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with contextlib.AsyncExitStack() as until_stopped:
        if control:
            registration = AsyncRegistration(control, agent_id, f"127.0.0.1:{bound}")
            await until_stopped.enter_async_context(registration)
        tell("listening", port=bound)
        await stopped.wait()
    # Sidecars have heard that it is gone; what is under way is finished.
    await checks.enter_graceful_shutdown()
    await server.stop(GRACE_S)


def main() -> None:
    parser = argparse.ArgumentParser(description="An agent that repeats the question, a word at a time.")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--word-ms", type=float, default=50.0)
    parser.add_argument("--control", action="append", default=[], help="a control plane to register with")
    parser.add_argument("--agent-id", default="echo", help="what callers name it by")
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.word_ms / 1000, options.control, options.agent_id))


if __name__ == "__main__":
    main()
