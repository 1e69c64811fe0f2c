"""A real grpc.aio server of the operator's API, in a thread beside a blocking client: it answers as it is told.

`replies` maps an RPC's name to what it answers: a message, a list of messages (a stream), a `Refusal`, or a function
of the request that gives one of these. It records the requests and their metadata.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc
import grpc.aio

from outrider.v1 import operator_pb2 as pb
from outrider.v1 import operator_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["Operator"]


@dataclass(frozen=True)
class Refusal:
    """A status instead of an answer."""

    status: grpc.StatusCode
    text: str


class StandIn:
    """What the server answers, and what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, Any]] = []

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.asked if name == method]

    async def answer(self, method: str, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.asked.append((method, request))
        self.metadata.append(dict(context.invocation_metadata() or ()))
        reply = self.replies.get(method)
        if callable(reply):
            reply = reply(request)
        if isinstance(reply, Refusal):
            await context.abort(reply.status, reply.text)
        if reply is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not prepared")
        return reply


def _servicer(stand_in: StandIn) -> operator_pb2_grpc.OperatorServicer:
    def unary(name: str) -> Callable[..., Any]:
        async def handle(_: Any, request: Any, context: Any) -> Any:
            return await stand_in.answer(name, request, context)

        return handle

    def stream(name: str) -> Callable[..., Any]:
        async def handle(_: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            for message in await stand_in.answer(name, request, context):
                if isinstance(message, Refusal):
                    await context.abort(message.status, message.text)
                yield message

        return handle

    made = {method.name: (stream if method.server_streaming else unary)(method.name) for method in SERVICE.methods}
    return type("Servicer", (operator_pb2_grpc.OperatorServicer,), made)()


class OperatorServer:
    """Serves a stand-in from a thread with a loop of its own, from `with` to the end of the block."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.stand_in = StandIn()
        self.port = 0
        self._credentials = credentials
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="operator-server")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server()
        operator_pb2_grpc.add_OperatorServicer_to_server(_servicer(self.stand_in), server)
        if self._credentials is None:
            self.port = server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = server.add_secure_port("127.0.0.1:0", self._credentials)
        await server.start()
        self._ready.set()
        await self._stop.wait()
        await server.stop(grace=None)
