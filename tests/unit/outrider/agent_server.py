"""A real grpc.aio server of the Agent API: in the loop of an asyncio test, or in a thread beside a blocking one.

What it does is told by the text of the request: `fail NAME` ends with that status, `hang` waits for its cancellation,
anything else is echoed. It records what it saw and counts the calls it has open.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import grpc.aio

from outrider.v1 import agent_pb2, agent_pb2_grpc

INITIAL = (("x-outrider-call-id", "c1"), ("x-outrider-trace-id", "t1"))
TRAILERS = (
    ("x-outrider-cache", "miss"),
    ("x-outrider-endpoint", "127.0.0.1:9001"),
    ("x-outrider-tokens-saved", "12"),
)


class Agent(agent_pb2_grpc.AgentServicer):
    def __init__(self) -> None:
        self.requests: list[agent_pb2.InvokeRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.trailers: tuple[tuple[str, str], ...] = TRAILERS
        self.open = 0
        self.most_open = 0
        self.cancelled = 0
        self.release = asyncio.Event()
        self.changed = threading.Condition()

    async def _answer(self, request: agent_pb2.InvokeRequest, context: Any) -> str:
        text = request.messages[0].parts[0].text
        with self.changed:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            self.changed.notify_all()
        try:
            await context.send_initial_metadata(INITIAL)
            context.set_trailing_metadata(self.trailers)
            if text.startswith("fail "):
                await context.abort(grpc.StatusCode[text[5:]], "as asked", self.trailers)
            if text == "hang":
                await asyncio.Event().wait()
            if text == "wait":
                await self.release.wait()
            return text
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            with self.changed:
                self.open -= 1
                self.changed.notify_all()

    async def Invoke(self, request: agent_pb2.InvokeRequest, context: Any) -> agent_pb2.InvokeReply:  # noqa: N802
        text = await self._answer(request, context)
        usage = agent_pb2.Usage(input_tokens=3, output_tokens=2)
        return agent_pb2.InvokeReply(
            parts=[agent_pb2.Part(text=text)], finish_reason=agent_pb2.FINISH_REASON_STOP, usage=usage
        )

    async def InvokeStream(  # noqa: N802
        self, request: agent_pb2.InvokeRequest, context: Any
    ) -> AsyncIterator[agent_pb2.InvokeChunk]:
        text = request.messages[0].parts[0].text
        if text == "endless":
            while True:
                yield agent_pb2.InvokeChunk(text="more")
                await asyncio.sleep(0)
        await self._answer(request, context)
        for word in text.split():
            yield agent_pb2.InvokeChunk(text=word)
        if text != "cut":
            yield agent_pb2.InvokeChunk(finish=agent_pb2.Finish(reason=agent_pb2.FINISH_REASON_STOP))

    def wait_for_open(self, calls: int) -> None:
        """Until exactly so many calls are open."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.open == calls, timeout=10), f"{self.open} calls are open"


@contextlib.asynccontextmanager
async def serving(agent: Agent) -> AsyncIterator[str]:
    """Serve an agent on a free port of 127.0.0.1; gives the target to dial."""
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServicer_to_server(agent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


class ServerThread:
    """Serves an agent from a thread with a loop of its own, from `with` to the end of the block."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="agent-server")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def release(self) -> None:
        """Let every call that says `wait` go on."""
        self._loop.call_soon_threadsafe(self.agent.release.set)

    async def _serve(self) -> None:
        self.agent = Agent()
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serving(self.agent) as self.target:
            self._ready.set()
            await self._stop.wait()
