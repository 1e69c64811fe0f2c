"""The mesh service on grpc.aio: Watch, Register, Renew and Deregister.

Always holds: every message is read defensively: what is malformed ends that call with a status that says what is
wrong; a second stream of an instance ends the first; updates pass through as bytes that were encoded once for all.

Deliberately not here: who may call (the interceptor of `api.auth`), what is pushed (`publisher`), leases (`lessor`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from outrider.policy import PolicyError
from outrider.v1 import feedback_pb2, mesh_pb2, mesh_pb2_grpc
from outrider_control.publish.fleet import MAX_TEXT, Sidecar
from outrider_control.publish.lessor import Full
from outrider_control.publish.publisher import Publisher
from outrider_control.publish.resources import ResourceId
from outrider_control.publish.streams import Stream
from outrider_control.publish.watch import Refused, Watch
from outrider_control.state.database import DatabaseError

HELLO_TIMEOUT_S = 10.0
MAX_RENEWED = 1_000
_Context = grpc.aio.ServicerContext


Deliver = Callable[[mesh_pb2.DeliverFeedbackRequest, _Context], Awaitable[feedback_pb2.CollectFeedbackReply]]


class MeshService(mesh_pb2_grpc.MeshServicer):
    """To be registered with `add_to`: its Watch takes and gives bytes."""

    def __init__(self, publisher: Publisher, deliver: Deliver | None = None):
        """`deliver` takes what callers of sidecars said, and answers errors by itself."""
        self._publisher = publisher
        self._deliver = deliver

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers = {
            "Watch": grpc.stream_stream_rpc_method_handler(self.Watch),
            "Register": grpc.unary_unary_rpc_method_handler(
                self.Register, mesh_pb2.RegisterRequest.FromString, mesh_pb2.RegisterReply.SerializeToString
            ),
            "Renew": grpc.unary_unary_rpc_method_handler(
                self.Renew, mesh_pb2.RenewRequest.FromString, mesh_pb2.RenewReply.SerializeToString
            ),
            "DeliverFeedback": grpc.unary_unary_rpc_method_handler(
                self.DeliverFeedback,
                mesh_pb2.DeliverFeedbackRequest.FromString,
                feedback_pb2.CollectFeedbackReply.SerializeToString,
            ),
            "Deregister": grpc.unary_unary_rpc_method_handler(
                self.Deregister, mesh_pb2.DeregisterRequest.FromString, mesh_pb2.DeregisterReply.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("outrider.v1.Mesh", handlers),))

    async def Watch(self, request_iterator: Any, context: _Context) -> None:  # noqa: N802
        hello = await self._hello(context)
        publisher = self._publisher
        if publisher.closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this control plane is stopping: take another one")
        if publisher.fleet.is_full(hello.instance_id):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many sidecars are connected to this process")
        claimed = {ResourceId(held.kind, held.name): held.version for held in hello.held}
        if publisher.is_older_than(claimed):
            try:
                await publisher.refresh()
            except DatabaseError as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, f"state older than the sidecar's own: {error}")
        await context.write(publisher.welcome())
        reader = _Reader(context)
        watch = Watch(claimed)
        stream = Stream(hello.instance_id, watch, publisher.fleet.catalog, context.write, reader.stop)
        sidecar = publisher.opened(hello, stream, _peer(context))
        try:
            while (payload := await reader.read()) is not None:
                await self._take(sidecar, watch, payload, context)
        finally:
            publisher.closed(sidecar, stream)
            await stream.close()
        if reader.reason:
            await context.abort(grpc.StatusCode.UNAVAILABLE, reader.reason)

    async def _hello(self, context: _Context) -> mesh_pb2.Hello:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                payload = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no hello came")
        if payload is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the stream ended before its hello")
        request = await _parsed(payload, context)
        hello = request.hello
        if not request.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a hello")
        if not 0 < len(hello.instance_id) <= MAX_TEXT:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"hello.instance_id: 1 to {MAX_TEXT} characters")
        return hello

    async def _take(self, sidecar: Sidecar, watch: Watch, payload: bytes, context: _Context) -> None:
        request = await _parsed(payload, context)
        match request.WhichOneof("message"):
            case "ack":
                refused = [
                    Refused(ResourceId(refusal.resource.kind, refusal.resource.name), refusal.resource.version, reason)
                    for refusal in request.ack.refused
                    for reason in [refusal.reason]
                ]
                if watch.ack(request.ack.nonce, refused):
                    self._publisher.acked(sidecar, refused)
            case "load":
                self._publisher.loaded(sidecar, request.load)
            case "announcement":
                self._publisher.announced(sidecar, request.announcement)
            case "hello":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "hello is the first message, and never again")
            case _:
                pass  # of a version to come

    async def Register(self, request: mesh_pb2.RegisterRequest, context: _Context) -> mesh_pb2.RegisterReply:  # noqa: N802
        try:
            lease = await self._publisher.lessor.register(request.endpoint, request.ttl_ms)
        except PolicyError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Full as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except DatabaseError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return mesh_pb2.RegisterReply(lease_id=lease.owner, ttl_ms=lease.ttl_ms)

    async def Renew(self, request: mesh_pb2.RenewRequest, context: _Context) -> mesh_pb2.RenewReply:  # noqa: N802
        if len(request.lease_ids) > MAX_RENEWED:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"lease_ids: more than {MAX_RENEWED:,}")
        try:
            unknown = await self._publisher.renew(request.lease_ids)
        except DatabaseError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return mesh_pb2.RenewReply(unknown=unknown)

    async def Deregister(self, request: mesh_pb2.DeregisterRequest, context: _Context) -> mesh_pb2.DeregisterReply:  # noqa: N802
        try:
            await self._publisher.deregister(request.lease_id)
        except DatabaseError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return mesh_pb2.DeregisterReply()

    async def DeliverFeedback(  # noqa: N802
        self, request: mesh_pb2.DeliverFeedbackRequest, context: _Context
    ) -> feedback_pb2.CollectFeedbackReply:
        if self._deliver is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this control plane takes no feedback")
        return await self._deliver(request, context)


class _Reader:
    """Reads a stream until its client is done, or until somebody here stops it."""

    def __init__(self, context: _Context):
        self._context = context
        self._task = asyncio.current_task()
        self._reading = False
        self.reason = ""

    async def read(self) -> bytes | None:
        """None: the stream is over, with `reason` set where it was stopped."""
        if self.reason:
            return None
        self._reading = True
        try:
            payload = await self._context.read()
        except asyncio.CancelledError:
            if not self.reason or self._task is None or self._task.uncancel() > 0:
                raise
            return None
        finally:
            self._reading = False
        return None if payload is grpc.aio.EOF else payload

    def stop(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            if self._reading and self._task is not None:
                self._task.cancel()


async def _parsed(payload: bytes, context: _Context) -> mesh_pb2.WatchRequest:
    try:
        return mesh_pb2.WatchRequest.FromString(payload)
    except DecodeError:
        return await _refuse(context)


async def _refuse(context: _Context) -> NoReturn:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not an outrider.v1.WatchRequest")
    raise AssertionError("abort raises")


def _peer(context: _Context) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == "x-outrider-peer":
            return str(value)
    return context.peer()
