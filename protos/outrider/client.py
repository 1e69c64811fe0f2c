"""A thin client of the local sidecar, blocking (`Outrider`) and asyncio (`AsyncOutrider`).

Always holds: identity stands in the message and, the same, in metadata; a failed call raises an OutriderError; leaving
a stream or a fan-out early cancels its calls. The client neither retries nor caches nor balances: the sidecar does.

Deliberately not here: services other than the Agent API (dial them by their own stubs over `channel`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from outrider import compression, feedback
from outrider.compression import CompressAsked, Compressed
from outrider.fanout import Budget
from outrider.feedback import FeedbackOutcome, Said
from outrider.identity import Caller, Identity, Request
from outrider.many import AsyncMany, Many
from outrider.reply import CallInfo, IncompleteReply, Metadata, OutriderError, Reply, error_of, info_of
from outrider.v1 import agent_pb2, agent_pb2_grpc, sidecar_pb2_grpc

DEFAULT_TARGET = "127.0.0.1:7600"
DEFAULT_TIMEOUT_S = 120.0
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # the sidecar is local, whatever the environment says about proxies
    ("grpc.enable_retries", 0),  # the sidecar retries, within one budget
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
)
_NO_BOUND = Budget()


class Stream:
    """The chunks of one answer; iterate once. Leaving its `with` block before the end cancels the call."""

    def __init__(self, call: Any, caller: Caller, message: agent_pb2.InvokeRequest):
        self._call = call
        self._caller = caller
        self._message = message
        self.info = CallInfo()  # complete when the stream has ended, well or not
        self.finish: agent_pb2.Finish | None = None

    def __iter__(self) -> Iterator[agent_pb2.InvokeChunk]:
        try:
            for chunk in self._call:
                if chunk.HasField("finish"):
                    self.finish = chunk.finish
                yield chunk
        except grpc.RpcError as error:
            self.info = info_of(self._call.initial_metadata(), self._call.trailing_metadata())
            raise error_of(self._call.code(), self._call.details(), self.info) from error
        self.info = info_of(self._call.initial_metadata(), self._call.trailing_metadata())
        _end(self._caller, self._message, self.info, self.finish)

    def cancel(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()


class AsyncStream:
    """The chunks of one answer; iterate once. Leaving its `async with` block before the end cancels the call."""

    def __init__(self, call: Any, caller: Caller, message: agent_pb2.InvokeRequest):
        self._call = call
        self._caller = caller
        self._message = message
        self.info = CallInfo()  # complete when the stream has ended, well or not
        self.finish: agent_pb2.Finish | None = None

    async def __aiter__(self) -> AsyncIterator[agent_pb2.InvokeChunk]:
        try:
            while (chunk := await self._call.read()) is not grpc.aio.EOF:
                if chunk.HasField("finish"):
                    self.finish = chunk.finish
                yield chunk
            code = await self._call.code()
        except grpc.aio.AioRpcError as error:
            self.info = info_of(error.initial_metadata(), error.trailing_metadata())
            raise error_of(error.code(), error.details(), self.info) from error
        self.info = info_of(await self._call.initial_metadata(), await self._call.trailing_metadata())
        if code is not grpc.StatusCode.OK:
            raise error_of(code, await self._call.details(), self.info)
        _end(self._caller, self._message, self.info, self.finish)

    def cancel(self) -> None:
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()


class Outrider:
    """Blocking client; safe to use from several threads. Arguments are what calls say that say nothing themselves."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        agent_id: str = "",
        session_id: str = "",
        user_id: str = "",
        tenant_id: str = "",
        priority: agent_pb2.Priority.ValueType = agent_pb2.PRIORITY_UNSPECIFIED,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        metadata: Metadata = (),
        credentials: grpc.ChannelCredentials | None = None,
    ):
        self._caller = Caller(Identity(agent_id, session_id, user_id, tenant_id, priority), metadata)
        self._timeout_s = timeout_s
        if credentials is None:
            self.channel = grpc.insecure_channel(target, _OPTIONS)
        else:
            self.channel = grpc.secure_channel(target, credentials, _OPTIONS)
        self._stub: Any = agent_pb2_grpc.AgentStub(self.channel)
        self._sidecar: Any = sidecar_pb2_grpc.SidecarStub(self.channel)

    def invoke(
        self, request: Request, *, timeout_s: float | None = None, cache_control: str = "", metadata: Metadata = ()
    ) -> Reply:
        """The whole answer; OutriderError when there is none within `timeout_s` (None: the client's)."""
        message, pairs = self._caller.prepare(request, cache_control, metadata)
        call = self._stub.Invoke.future(
            message, timeout=self._timeout_s if timeout_s is None else timeout_s, metadata=pairs
        )
        try:
            return self._reply(call, message)
        except BaseException:
            call.cancel()  # Ctrl-C while waiting
            raise

    def invoke_stream(
        self, request: Request, *, timeout_s: float | None = None, cache_control: str = "", metadata: Metadata = ()
    ) -> Stream:
        """The answer in chunks: `with client.invoke_stream(...) as stream: for chunk in stream: ...`."""
        message, pairs = self._caller.prepare(request, cache_control, metadata)
        call = self._stub.InvokeStream(
            message, timeout=self._timeout_s if timeout_s is None else timeout_s, metadata=pairs
        )
        return Stream(call, self._caller, message)

    def invoke_many(
        self,
        requests: Sequence[Request],
        *,
        timeout_s: float | None = None,
        budget: Budget = _NO_BOUND,
        in_order: bool = True,
        cache_control: str = "",
        metadata: Metadata = (),
    ) -> Many:
        """All answers, made in parallel under one deadline, one budget and one cancellation (see `many`)."""
        prepared = [self._caller.prepare(request, cache_control, metadata) for request in requests]

        def start(at: int, left_s: float | None) -> grpc.Future:
            message, pairs = prepared[at]
            return self._stub.Invoke.future(message, timeout=left_s, metadata=pairs)

        def read(at: int, call: Any) -> Reply:
            return self._reply(call, prepared[at][0])

        return Many(len(prepared), start, read, self._timeout_s if timeout_s is None else timeout_s, budget, in_order)

    def collect_feedback(
        self, call: feedback.Call, *, timeout_s: float | None = None, metadata: Metadata = (), **said: Unpack[Said]
    ) -> FeedbackOutcome:
        """Say something of a call: of a Reply, of its CallInfo, or of a call id; for a trace, of "" with `trace_id`.

        Returns once it cannot be lost; the sidecar waits up to a second for more of it. InvalidRequest: it is wrong.
        """
        message, pairs = feedback.request_of(call, said)
        sent = self._sidecar.CollectFeedback.future(
            message, timeout=self._timeout_s if timeout_s is None else timeout_s, metadata=[*pairs, *metadata]
        )
        return feedback.outcome_of(self._answer(sent))

    def optimize_token_usage(
        self,
        messages: Sequence[agent_pb2.Message] = (),
        context: Sequence[agent_pb2.ContextBlock] = (),
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
        **asked: Unpack[CompressAsked],
    ) -> Compressed:
        """The same conversation and material in fewer tokens; nobody is called for it."""
        message, pairs = compression.request_of(self._caller, messages, context, asked)
        sent = self._sidecar.Compress.future(
            message, timeout=self._timeout_s if timeout_s is None else timeout_s, metadata=[*pairs, *metadata]
        )
        return compression.compressed_of(self._answer(sent))

    def fetch_original(
        self, handle: str, *, tenant_id: str = "", timeout_s: float | None = None, metadata: Metadata = ()
    ) -> bytes:
        """What a block was before it was compressed with loss. NotFound: it is not kept any more, or not there."""
        message, pairs = compression.handle_request_of(self._caller, handle, tenant_id)
        sent = self._sidecar.FetchOriginal.future(
            message, timeout=self._timeout_s if timeout_s is None else timeout_s, metadata=[*pairs, *metadata]
        )
        return self._answer(sent).original

    def _answer(self, sent: Any) -> Any:
        try:
            return sent.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            info = info_of(sent.initial_metadata(), sent.trailing_metadata())
            raise error_of(sent.code(), sent.details(), info) from error
        except BaseException:
            sent.cancel()  # Ctrl-C while waiting
            raise

    def _reply(self, call: Any, message: agent_pb2.InvokeRequest) -> Reply:
        try:
            answer = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            info = info_of(call.initial_metadata(), call.trailing_metadata())
            raise error_of(call.code(), call.details(), info) from error
        info = info_of(call.initial_metadata(), call.trailing_metadata())
        self._caller.learn(message, info)
        return Reply(answer, info)

    def close(self) -> None:
        """Close the connection; calls that are under way are cancelled."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncOutrider:
    """asyncio client, of the loop it is made in. Arguments are what calls say that say nothing themselves."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        agent_id: str = "",
        session_id: str = "",
        user_id: str = "",
        tenant_id: str = "",
        priority: agent_pb2.Priority.ValueType = agent_pb2.PRIORITY_UNSPECIFIED,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        metadata: Metadata = (),
        credentials: grpc.ChannelCredentials | None = None,
    ):
        self._caller = Caller(Identity(agent_id, session_id, user_id, tenant_id, priority), metadata)
        self._timeout_s = timeout_s
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(target, _OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(target, credentials, _OPTIONS)
        self._stub: Any = agent_pb2_grpc.AgentStub(self.channel)
        self._sidecar: Any = sidecar_pb2_grpc.SidecarStub(self.channel)

    async def invoke(
        self, request: Request, *, timeout_s: float | None = None, cache_control: str = "", metadata: Metadata = ()
    ) -> Reply:
        """The whole answer; OutriderError when there is none within `timeout_s` (None: the client's)."""
        message, pairs = self._caller.prepare(request, cache_control, metadata)
        return await self._invoke(message, pairs, self._timeout_s if timeout_s is None else timeout_s)

    def invoke_stream(
        self, request: Request, *, timeout_s: float | None = None, cache_control: str = "", metadata: Metadata = ()
    ) -> AsyncStream:
        """The answer in chunks: `async with client.invoke_stream(...) as stream: async for chunk in stream: ...`."""
        message, pairs = self._caller.prepare(request, cache_control, metadata)
        call = self._stub.InvokeStream(
            message, timeout=self._timeout_s if timeout_s is None else timeout_s, metadata=pairs
        )
        return AsyncStream(call, self._caller, message)

    def invoke_many(
        self,
        requests: Sequence[Request],
        *,
        timeout_s: float | None = None,
        budget: Budget = _NO_BOUND,
        in_order: bool = True,
        cache_control: str = "",
        metadata: Metadata = (),
    ) -> AsyncMany:
        """All answers, made in parallel under one deadline, one budget and one cancellation (see `many`)."""
        prepared = [self._caller.prepare(request, cache_control, metadata) for request in requests]

        def start(at: int, left_s: float | None) -> asyncio.Task[Reply]:
            return asyncio.create_task(self._invoke(*prepared[at], left_s))

        return AsyncMany(len(prepared), start, self._timeout_s if timeout_s is None else timeout_s, budget, in_order)

    async def collect_feedback(
        self, call: feedback.Call, *, timeout_s: float | None = None, metadata: Metadata = (), **said: Unpack[Said]
    ) -> FeedbackOutcome:
        """Say something of a call: of a Reply, of its CallInfo, or of a call id; for a trace, of "" with `trace_id`.

        Returns once it cannot be lost; the sidecar waits up to a second for more of it. InvalidRequest: it is wrong.
        """
        message, pairs = feedback.request_of(call, said)
        timeout = self._timeout_s if timeout_s is None else timeout_s
        try:
            reply = await self._sidecar.CollectFeedback(message, timeout=timeout, metadata=[*pairs, *metadata])
        except grpc.aio.AioRpcError as error:
            info = info_of(error.initial_metadata(), error.trailing_metadata())
            raise error_of(error.code(), error.details(), info) from error
        return feedback.outcome_of(reply)

    async def optimize_token_usage(
        self,
        messages: Sequence[agent_pb2.Message] = (),
        context: Sequence[agent_pb2.ContextBlock] = (),
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
        **asked: Unpack[CompressAsked],
    ) -> Compressed:
        """The same conversation and material in fewer tokens; nobody is called for it."""
        message, pairs = compression.request_of(self._caller, messages, context, asked)
        timeout = self._timeout_s if timeout_s is None else timeout_s
        try:
            reply = await self._sidecar.Compress(message, timeout=timeout, metadata=[*pairs, *metadata])
        except grpc.aio.AioRpcError as error:
            info = info_of(error.initial_metadata(), error.trailing_metadata())
            raise error_of(error.code(), error.details(), info) from error
        return compression.compressed_of(reply)

    async def fetch_original(
        self, handle: str, *, tenant_id: str = "", timeout_s: float | None = None, metadata: Metadata = ()
    ) -> bytes:
        """What a block was before it was compressed with loss. NotFound: it is not kept any more, or not there."""
        message, pairs = compression.handle_request_of(self._caller, handle, tenant_id)
        timeout = self._timeout_s if timeout_s is None else timeout_s
        try:
            reply = await self._sidecar.FetchOriginal(message, timeout=timeout, metadata=[*pairs, *metadata])
        except grpc.aio.AioRpcError as error:
            info = info_of(error.initial_metadata(), error.trailing_metadata())
            raise error_of(error.code(), error.details(), info) from error
        return reply.original

    async def _invoke(
        self, message: agent_pb2.InvokeRequest, pairs: Sequence[tuple[str, str | bytes]], timeout_s: float | None
    ) -> Reply:
        call = self._stub.Invoke(message, timeout=timeout_s, metadata=pairs)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            info = info_of(error.initial_metadata(), error.trailing_metadata())
            raise error_of(error.code(), error.details(), info) from error
        info = info_of(await call.initial_metadata(), await call.trailing_metadata())
        self._caller.learn(message, info)
        return Reply(answer, info)

    async def close(self) -> None:
        """Close the connection; calls that are under way are cancelled."""
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _end(caller: Caller, message: agent_pb2.InvokeRequest, info: CallInfo, finish: agent_pb2.Finish | None) -> None:
    caller.learn(message, info)
    if finish is None:
        reason = "the stream ended without saying why: the answer may be cut"
        raise IncompleteReply(grpc.StatusCode.DATA_LOSS, reason, info)


__all__ = ["AsyncOutrider", "AsyncStream", "Budget", "FeedbackOutcome", "Outrider", "OutriderError", "Reply", "Stream"]
