"""A small HTTP/1.1 server on asyncio and h11, for operators' requests only.

Always holds: connections, header size, body size and the time a request or its answer may take are bounded; one
request a connection is worked on at a time, and nothing is read meanwhile; a malformed request gets a 4xx and a close.

Deliberately not here: routes (`edge.admin`), chunked answers, TLS, HTTP/2.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import h11

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024
MAX_CONNECTIONS = 64
REQUEST_TIMEOUT_S = 10.0  # from a connection's first byte, or the answer before, to the end of the request
LINGER_S = 1.0  # for a refused caller to take the answer and close
ANSWER_TIMEOUT_S = 30.0  # for the answer to be made and taken


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # without the query
    query: str
    headers: Mapping[str, str]  # lower-case names; the first of a repeated header
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]
Refuse = Callable[[int, str], Response]


class Http1Server:
    """Listens on one address. `refuse(status, text)` makes the answer to what never reaches the handler."""

    def __init__(self, handler: Handler, refuse: Refuse):
        self.handler = handler
        self.refuse = refuse
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Start; the port really bound. OSError as the system gives it."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port)
        return self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = [connection.abort() for connection in tuple(self.connections)]
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()


class _Connection(asyncio.Protocol):
    def __init__(self, server: Http1Server):
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._refused = False  # answered for good: what still arrives is thrown away
        self._last = False  # the caller has closed its side: no further request can come
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not instances of it
        if len(self._server.connections) >= MAX_CONNECTIONS:
            self._transport.abort()
            return
        self._server.connections.add(self)
        self._arm(REQUEST_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._refused or self._transport.is_closing():
            return
        self._h11.receive_data(data)
        if self._task is None:
            self._advance()

    def eof_received(self) -> bool:
        # A caller may close its side after the request and still wait for the answer.
        self._last = self._task is not None
        return self._last

    def abort(self) -> asyncio.Task[None] | None:
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def _arm(self, timeout_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(timeout_s, self._transport.abort)

    def _advance(self) -> None:
        """Read events until a whole request is there, the caller is done, or more bytes are needed."""
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint, str(error))
                return
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.ConnectionClosed):
                self._transport.close()
                return
            if isinstance(event, h11.Request):
                self._request = event
                if self._h11.they_are_waiting_for_100_continue:
                    self._write(h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MAX_BODY_BYTES:
                    self._refuse(413, f"a request body has at most {MAX_BODY_BYTES} bytes")
                    return
            elif isinstance(event, h11.EndOfMessage):
                self._transport.pause_reading()
                self._arm(ANSWER_TIMEOUT_S)
                self._task = self._loop.create_task(self._answer(), name="admin request")
                return

    async def _answer(self) -> None:
        event = self._request
        assert event is not None
        headers: dict[str, str] = {}
        for name, value in event.headers:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        path, _, query = event.target.decode("latin-1").partition("?")
        request = Request(event.method.decode("latin-1"), path, query, headers, bytes(self._body))
        try:
            response = await self._server.handler(request)
        except Exception:
            log.exception("admin: %s %r failed", request.method, request.path[:200])
            response = self._server.refuse(500, "internal error; the sidecar's log has the details")
        self._task = None
        self._respond(response)
        if self._last or self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            self._transport.close()  # writes what is left first; the answer's timer is still armed
            return
        self._h11.start_next_cycle()
        self._request = None
        self._body.clear()
        self._arm(REQUEST_TIMEOUT_S)
        self._transport.resume_reading()
        self._advance()  # a pipelined request may be there already

    def _refuse(self, status: int, text: str) -> None:
        """Answer, and close once the caller has: to close on unread bytes would reset the answer away."""
        self._refused = True
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._transport.close()
            return
        self._respond(self._server.refuse(status, text), last=True)
        self._transport.write_eof()
        self._arm(LINGER_S)

    def _respond(self, response: Response, last: bool = False) -> None:
        headers = [
            ("content-type", response.content_type),
            ("content-length", str(len(response.body))),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            *response.headers.items(),
        ]
        if last:
            headers.append(("connection", "close"))
        reason = HTTPStatus(response.status).phrase.encode()
        self._write(h11.Response(status_code=response.status, headers=headers, reason=reason))
        if self._request is None or self._request.method != b"HEAD":
            self._write(h11.Data(data=response.body))
        self._write(h11.EndOfMessage())

    def _write(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data and not self._transport.is_closing():
            self._transport.write(data)
