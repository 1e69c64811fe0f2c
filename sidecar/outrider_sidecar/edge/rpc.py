"""Unary gRPC calls of the sidecar's own (health checks, span export), over our own HTTP/2.

Always holds: one connection per target, dialled when needed; a call ends by its timeout at the latest and never
raises for what the peer does: it answers with a gRPC status.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64decode
from collections.abc import Callable
from typing import NamedTuple

from outrider_http2 import frames
from outrider_http2.client import ClientConnection
from outrider_http2.head import Head, Rest
from outrider_http2.hpack import literal
from outrider_http2.shell import Reactor, Shell
from outrider_http2.stream import Handler, Stream
from outrider_sidecar.core import errors
from outrider_sidecar.edge.upstream import dial

MAX_REPLY_BYTES = 4 * 1024 * 1024
DIAL_TIMEOUT_S = 5.0

Fields = tuple[tuple[bytes, bytes], ...]


async def connect(
    reactor: Reactor, address: str, tls: ssl.SSLContext | None, server_name: str, prepare: Prepare | None = None
) -> Shell:
    """A connection whose peer has sent its SETTINGS. OSError says why there is none; `prepare` as in `dial`."""
    ready: asyncio.Future[None] = reactor.loop.create_future()

    def watch(conn: ClientConnection) -> None:
        conn.on_ready = lambda _: None if ready.done() else ready.set_result(None)
        conn.on_closed = lambda _: (
            None if ready.done() else ready.set_exception(OSError("the peer closed the connection"))
        )
        if prepare is not None:
            prepare(conn)

    shell = await dial(reactor, address, tls, server_name, watch)
    try:
        await ready
    except BaseException:
        shell.close()
        raise
    return shell


def head_for(address: str, path: str, fields: Fields) -> Head:
    """The head of a call of our own."""
    own = ((b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"user-agent", b"outrider"))
    authority = b"localhost" if address.startswith("unix:") else address.removeprefix("dns:").encode()
    return Head(own + fields, b"POST", b"http", authority, path.encode())


Prepare = Callable[[ClientConnection], object]


class RpcReply(NamedTuple):
    """What came back: gRPC status, the message's bytes, the status text, decoded details and the pushback."""

    status: int
    message: bytes = b""
    text: str = ""
    details: bytes = b""
    pushback_ms: int | None = None


class _Unary(Handler):
    """The stream handler of one call."""

    def __init__(self, done: asyncio.Future[RpcReply]):
        self.done = done
        self._data: list[bytes] = []
        self._size = 0

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        if head.status != 200:
            self._answer(RpcReply(errors.from_http(head.status), text=f"HTTP {head.status}"))
            if not end:
                stream.reset(frames.CANCEL)
        elif end:
            self.on_tail(stream, head, rest)

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        self._size += len(data)
        if self._size > MAX_REPLY_BYTES:
            stream.reset(frames.CANCEL)
            self._answer(RpcReply(errors.RESOURCE_EXHAUSTED, text="the reply is over 4 MB"))
            return
        self._data.append(data)
        stream.credit(len(data))
        if end:
            self._answer(RpcReply(errors.INTERNAL, text="no trailers"))

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        body = b"".join(self._data)
        values = rest.values
        pushback = values.get(b"grpc-retry-pushback-ms", b"")
        details = values.get(b"grpc-status-details-bin", b"")
        try:
            decoded = b64decode(details + b"=" * (-len(details) % 4)) if details else b""
        except ValueError:
            decoded = b""
        self._answer(
            RpcReply(
                errors.status_of(head),
                body[5:],
                values.get(b"grpc-message", b"").decode("ascii", "replace"),
                decoded,
                int(pushback) if pushback.lstrip(b"-").isdigit() else None,
            )
        )

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        self._answer(RpcReply(errors.from_reset(code), text=frames.error_name(code)))

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        """Nothing waits for the request to leave."""

    def _answer(self, reply: RpcReply) -> None:
        if not self.done.done():
            self.done.set_result(reply)


class Rpc:
    """Unary calls to one target. `fields` go with every call (authentication, for instance); asked for where they
    can change."""

    def __init__(
        self,
        reactor: Reactor,
        address: str,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        server_name: str = "",
        fields: Fields | Callable[[], Fields] = (),
    ):
        self._reactor = reactor
        self._address = address
        self._tls = tls
        self._server_name = server_name
        self._fields = fields if callable(fields) else lambda: fields
        self._heads: dict[str, Head] = {}
        self._shell: Shell | None = None
        self._dialling: asyncio.Task[ClientConnection] | None = None

    async def unary(self, path: str, message: bytes, timeout_s: float) -> RpcReply:
        """One call."""
        stream: Stream | None = None
        try:
            async with asyncio.timeout(timeout_s):
                conn = await self._connection()
                done: asyncio.Future[RpcReply] = self._reactor.loop.create_future()
                stream = conn.open_stream(_Unary(done))
                extra = literal(b"grpc-timeout", b"%dm" % max(1, int(timeout_s * 1e3)))
                stream.send_head(self._head(path), extra)
                stream.send_data(b"\0" + len(message).to_bytes(4, "big") + message, True)
                return await done
        except TimeoutError:
            return RpcReply(errors.DEADLINE_EXCEEDED, text=f"no answer within {timeout_s:g} s")
        except (OSError, ValueError) as error:
            return RpcReply(errors.UNAVAILABLE, text=f"{self._address}: {error}")
        finally:
            if stream is not None and not (stream.local_closed and stream.remote_closed):
                stream.reset(frames.CANCEL)

    def forget_fields(self) -> bool:
        """Ask for the fields again with the next call, not only with the next dial; whether they have changed."""
        before, self._heads = self._heads, {}
        fields = self._fields()
        return any(head.fields[-len(fields) :] != fields for head in before.values()) if fields else False

    def _head(self, path: str) -> Head:
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = head_for(self._address, path, self._fields())
        return head

    async def _connection(self) -> ClientConnection:
        shell = self._shell
        if shell is not None and shell.conn.has_room:  # type: ignore[attr-defined]
            return shell.conn  # type: ignore[return-value]
        if self._dialling is None or self._dialling.done():
            self._dialling = self._reactor.loop.create_task(self._dial())
        return await asyncio.shield(self._dialling)

    async def _dial(self) -> ClientConnection:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            if self._shell is not None:
                self._shell.close()
            self._heads.clear()
            self._shell = await connect(self._reactor, self._address, self._tls(), self._server_name)
        conn = self._shell.conn
        assert isinstance(conn, ClientConnection)
        return conn

    async def close(self) -> None:
        """End the connection."""
        if self._dialling is not None and not self._dialling.done():
            self._dialling.cancel()
            await asyncio.gather(self._dialling, return_exceptions=True)
        if self._shell is not None:
            self._shell.close()
