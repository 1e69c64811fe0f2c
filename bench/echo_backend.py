"""A raw HTTP/2 gRPC echo server that costs about 10 us a call, so that the proxy in front of it is what is measured.

Always holds: request header blocks are never decoded. What a call gets is decided by its first message alone:

    anything else                     echoed, grpc-status 0
    `!stream COUNT SIZE [GAP_MS]\\n`   COUNT messages of SIZE bytes, GAP_MS apart, grpc-status 0
    `!fail STATUS\\n`                  a trailers-only reply with that grpc-status
    `!hang\\n`                         nothing until the caller resets the stream
    `!stats\\n`                        one message of JSON: calls, messages, cancelled, open

Replies keep both levels of flow control; requests are granted the largest windows there are, because a bench backend
must never be what stops a sender. Deliberately not here: TLS, HTTP/1.1, limits, protection from a hostile peer.

Run: `python -m bench.echo_backend [--port N] [--ports-file FILE]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import uvloop

from bench.serve import announce, until_signal

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, PADDED = 1, 1, 8
MAX_WINDOW = 2**31 - 1
FRAME_BYTES = 16_384
_HEAD = struct.Struct(">BHBBL")  # length as 8 + 16 bits, type, flags, stream


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    length = len(payload)
    return _HEAD.pack(length >> 16, length & 0xFFFF, kind, flags, stream_id) + payload


def _literal(name: bytes, value: bytes, first_octet: int) -> bytes:
    return bytes((first_octet, len(name))) + name + bytes((len(value),)) + value


# Two fields enter the peer's dynamic table on a connection's first reply, as with any real server; later replies are
# two and one octets of header block.
_STATUS_200 = b"\x88"
_INSERT_TYPE = _STATUS_200 + _literal(b"content-type", b"application/grpc", 0x40)
_INSERT_OK = _literal(b"grpc-status", b"0", 0x40)
_PLAIN_HEAD = _STATUS_200 + _literal(b"content-type", b"application/grpc", 0x00)
_PLAIN_OK = _literal(b"grpc-status", b"0", 0x00)
_SMALL_TABLE_BYTES = 256  # a peer that grants less gets literals


@lru_cache(maxsize=32)
def _stream_message(size: int) -> bytes:
    return b"\0" + size.to_bytes(4, "big") + bytes(97 + i % 26 for i in range(size))


@dataclass(slots=True)
class Counters:
    calls: int = 0
    messages: int = 0
    cancelled: int = 0
    open: int = 0

    def json(self) -> bytes:
        return json.dumps(
            {"calls": self.calls, "messages": self.messages, "cancelled": self.cancelled, "open": self.open}
        ).encode()


@dataclass(slots=True)
class Reply:
    """One open stream: the request read so far and what flow control still holds back of the reply."""

    window: int
    request: list[bytes] = field(default_factory=list)
    held: deque[bytes] = field(default_factory=deque)
    ending: bool = False
    timer: asyncio.TimerHandle | None = None


class EchoProtocol(asyncio.Protocol):
    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.transport: asyncio.Transport | None = None
        self.buffer = b""
        self.preface_seen = False
        self.streams: dict[int, Reply] = {}
        self.window = 65_535
        self.initial_window = 65_535
        self.frame_bytes = FRAME_BYTES
        self.received = 0
        self.type_sent = self.ok_sent = False
        self.small_table = False
        self.out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        settings = struct.pack(">HLHL", 3, 100_000, 4, MAX_WINDOW)  # MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE
        grant = struct.pack(">L", MAX_WINDOW - 65_535)
        self.transport.write(frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, grant))

    def connection_lost(self, exc: Exception | None) -> None:
        for stream in self.streams.values():
            if stream.timer is not None:
                stream.timer.cancel()
        self.counters.cancelled += len(self.streams)
        self.counters.open -= len(self.streams)
        self.streams.clear()

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        offset, size = 0, len(buffer)
        if not self.preface_seen:
            if size < len(PREFACE):
                self.buffer = buffer
                return
            offset, self.preface_seen = len(PREFACE), True
        while size - offset >= 9:
            high, low, kind, flags, stream_id = _HEAD.unpack_from(buffer, offset)
            end = offset + 9 + (high << 16 | low)
            if end > size:
                break
            self._frame(kind, flags, stream_id, buffer[offset + 9 : end])
            offset = end
        self.buffer = buffer[offset:]
        self._flush()

    def _flush(self) -> None:
        if self.out and self.transport is not None:
            self.transport.write(b"".join(self.out))
            self.out.clear()

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == DATA:
            self._data(flags, stream_id, payload)
        elif kind == HEADERS:
            self.streams[stream_id] = Reply(self.initial_window)
            self.counters.open += 1
            if flags & END_STREAM:
                self._request_complete(stream_id)
        elif kind == WINDOW_UPDATE:
            self._granted(stream_id, int.from_bytes(payload, "big"))
        elif kind == RST_STREAM:
            self._forget(stream_id, cancelled=True)
        elif kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == PING and not flags & ACK:
            self.out.append(frame(PING, ACK, 0, payload))

    def _settings(self, payload: bytes) -> None:
        for offset in range(0, len(payload), 6):
            name, value = struct.unpack_from(">HL", payload, offset)
            if name == 1:
                self.small_table = value < _SMALL_TABLE_BYTES
            elif name == 4:
                for stream in self.streams.values():
                    stream.window += value - self.initial_window
                self.initial_window = value
        self.out.append(frame(SETTINGS, ACK, 0))
        self._drain_all()

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self.received += len(payload)
        if self.received > 2**29:
            self.out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", self.received)))
            self.received = 0
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if flags & PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        stream.request.append(payload)
        if flags & END_STREAM:
            self._request_complete(stream_id)

    def _request_complete(self, stream_id: int) -> None:
        stream = self.streams[stream_id]
        body = stream.request[0] if len(stream.request) == 1 else b"".join(stream.request)
        stream.request.clear()
        self.counters.calls += 1
        if body[5:6] == b"!":
            self._directed(stream_id, stream, body[5:].split(b"\n", 1)[0].split())
            return
        self.counters.messages += 1
        head = self._head(stream_id)
        size = len(body)
        if size <= self.frame_bytes and size <= stream.window and size <= self.window:
            self.window -= size
            self.out += (head, frame(DATA, 0, stream_id, body), self._ok(stream_id))
            self._forget(stream_id)
            return
        self.out.append(head)
        stream.ending = True
        self._send(stream_id, stream, body)

    def _directed(self, stream_id: int, stream: Reply, words: list[bytes]) -> None:
        verb = words[0]
        if verb == b"!stream":
            self.out.append(self._head(stream_id))
            gap_s = int(words[3]) / 1000 if len(words) > 3 else 0.0
            self._stream(stream_id, stream, int(words[1]), _stream_message(int(words[2])), gap_s)
        elif verb == b"!fail":
            fields = _PLAIN_HEAD + _literal(b"grpc-status", words[1], 0x00) + _literal(b"grpc-message", b"asked", 0x00)
            self.out.append(frame(HEADERS, 4 | END_STREAM, stream_id, fields))
            self._forget(stream_id)
        elif verb == b"!stats":
            stream.ending = True
            self.out.append(self._head(stream_id))
            stats = self.counters.json()
            self._send(stream_id, stream, b"\0" + len(stats).to_bytes(4, "big") + stats)

    def _stream(self, stream_id: int, stream: Reply, left: int, message: bytes, gap_s: float) -> None:
        count = min(1, left) if gap_s else left
        self.counters.messages += count
        stream.ending = left == count
        for _ in range(count - 1):
            self._queue(stream_id, stream, message)
        if count:
            self._send(stream_id, stream, message)
        elif stream.ending:
            self.out.append(self._ok(stream_id))
            self._forget(stream_id)
        if not stream.ending:
            loop = asyncio.get_running_loop()
            stream.timer = loop.call_later(gap_s, self._stream, stream_id, stream, left - 1, message, gap_s)
        self._flush()

    def _queue(self, stream_id: int, stream: Reply, message: bytes) -> None:
        size = len(message)
        if not stream.held and size <= stream.window and size <= self.window and size <= self.frame_bytes:
            stream.window -= size
            self.window -= size
            self.out.append(frame(DATA, 0, stream_id, message))
        else:
            stream.held.append(message)

    def _send(self, stream_id: int, stream: Reply, body: bytes) -> None:
        stream.held.append(body)
        self._drain(stream_id, stream)

    def _drain(self, stream_id: int, stream: Reply) -> None:
        held = stream.held
        while held:
            body = held[0]
            room = min(self.window, stream.window, self.frame_bytes)
            if room <= 0:
                return
            part = body[:room]
            stream.window -= len(part)
            self.window -= len(part)
            self.out.append(frame(DATA, 0, stream_id, part))
            if len(part) == len(body):
                held.popleft()
            else:
                held[0] = body[room:]
        if stream.ending:
            self.out.append(self._ok(stream_id))
            self._forget(stream_id)

    def _granted(self, stream_id: int, credit: int) -> None:
        if stream_id:
            stream = self.streams.get(stream_id)
            if stream is not None:
                stream.window += credit
                if stream.held:
                    self._drain(stream_id, stream)
            return
        self.window += credit
        self._drain_all()

    def _drain_all(self) -> None:
        for waiting_id, stream in list(self.streams.items()):
            if stream.held:
                self._drain(waiting_id, stream)
                if self.window <= 0:
                    return

    def _head(self, stream_id: int) -> bytes:
        if self.small_table:
            return frame(HEADERS, 4, stream_id, _PLAIN_HEAD)
        if not self.type_sent:
            self.type_sent = True
            return frame(HEADERS, 4, stream_id, _INSERT_TYPE)
        return frame(HEADERS, 4, stream_id, b"\x88\xbf" if self.ok_sent else b"\x88\xbe")

    def _ok(self, stream_id: int) -> bytes:
        if self.small_table:
            return frame(HEADERS, 4 | END_STREAM, stream_id, _PLAIN_OK)
        if not self.ok_sent:
            self.ok_sent = True
            return frame(HEADERS, 4 | END_STREAM, stream_id, _INSERT_OK)
        return frame(HEADERS, 4 | END_STREAM, stream_id, b"\xbe")

    def _forget(self, stream_id: int, cancelled: bool = False) -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            return
        self.counters.open -= 1
        self.counters.cancelled += cancelled
        if stream.timer is not None:
            stream.timer.cancel()


async def serve(port: int, ports_file: str) -> None:
    counters = Counters()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EchoProtocol(counters), "127.0.0.1", port, backlog=512)
    announce({"port": server.sockets[0].getsockname()[1]}, ports_file)
    async with server:
        await until_signal()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ports-file", default="", help="the bound port as JSON; printed where absent")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.ports_file))


if __name__ == "__main__":
    main()
