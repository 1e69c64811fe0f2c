"""A raw HTTP/2 gRPC load generator on uvloop: about 5 us a call, every message unique where that is asked.

h2load can only repeat one body, which is a cache hit or a coalesced call in front of a caching proxy. This one
numbers its messages, checks that each reply carries back the number it sent, and can mix in cancels and errors.

Always holds: a call counts as ok only if its reply brought exactly the octets expected and, for an echo, the message
that was sent. Both levels of flow control are kept when sending. Headers enter the peer's dynamic table with the first
call, as a real client's do; `--varied` adds what differs from call to call there: traceparent and grpc-timeout.
Deliberately not here: TLS, decoding of reply headers, back-pressure on replies (they get the largest windows).

Run: `python -m bench.raw_load --port N [...]`; prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import struct
from array import array
from collections import deque
from time import perf_counter
from typing import cast

import uvloop

from bench.echo_backend import (
    ACK,
    DATA,
    END_STREAM,
    FRAME_BYTES,
    GOAWAY,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

_HEAD = struct.Struct(">BHBBL")
_CANCEL = struct.pack(">L", 8)
_HELD_CANCEL_S = 0.005


def _field(name: bytes, value: bytes, first_octet: int) -> bytes:
    return bytes((first_octet, len(name))) + name + bytes((len(value),)) + value


class Headers:
    """The header block of a connection's first call and of all later ones."""

    def __init__(self, path: str, authority: str, metadata: list[tuple[str, str]], varied: bool, rng: random.Random):
        fields = [(":path", path), (":authority", authority), ("te", "trailers"), ("content-type", "application/grpc")]
        fields += [("user-agent", "grpc-bench/1"), *metadata]
        if not varied:
            fields.append(("grpc-timeout", "20S"))
        static = b"\x83\x86"  # :method POST, :scheme http
        self.first = static + b"".join(_field(name.encode(), value.encode(), 0x40) for name, value in fields)
        self.later = static + bytes(0x80 | (62 + i) for i in reversed(range(len(fields))))
        self._varied, self._rng, self._calls = varied, rng, 0

    def block(self, first: bool) -> bytes:
        block = self.first if first else self.later
        if not self._varied:
            return block
        self._calls += 1
        trace = b"00-%032x-%016x-01" % (self._rng.getrandbits(128) | 1, self._rng.getrandbits(64) | 1)
        timeout = b"%du" % (20_000_000 - self._calls % 9973)
        return block + _field(b"traceparent", trace, 0) + _field(b"grpc-timeout", timeout, 0)


class Plan:
    """What to send, shared by all connections: hands out messages and takes in results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.calls: int = options.calls
        self.started = self.done = self.ok = self.failed = self.cancelled = 0
        self.reply_bytes = 0
        self.latencies = array("d")
        self.first_bytes = array("d")
        self.rng = random.Random(options.seed)
        self.distinct: int = options.distinct
        self.size: int = options.size
        self.filler = bytes(97 + i % 26 for i in range(max(0, self.size - 16)))
        self.prefix = b"%08x" % (options.seed & 0xFFFFFFFF)
        self.message: bytes = options.message.encode() + b"\n" if options.message else b""
        self.expected: int = options.expect
        self.mixed: bool = options.mixed
        self.finished = asyncio.get_running_loop().create_future()

    def next(self) -> tuple[bytes, bytes, int, str]:
        """(message, what the reply must start with, octets of reply, fate) of one more call."""
        number = self.started
        self.started += 1
        if self.message:
            return self.message, b"", self.expected, "ok"
        if self.mixed:
            dice = self.rng.random()
            if dice < 0.04:
                return b"!fail 13\n", b"", 0, "fail"
            if dice < 0.07:
                return b"!hang\n", b"", 0, "hang"
        marker = self.prefix + b"%08x" % (number % self.distinct if self.distinct else number)
        fate = "cancel" if self.mixed and dice > 0.97 else "ok"
        return marker + self.filler, marker, self.size + 5, fate

    def end(self) -> None:
        self.done += 1
        if self.done == self.calls and not self.finished.done():
            self.finished.set_result(None)


class _Call:
    __slots__ = ("expected", "fate", "first_at", "marker", "received", "started_at")

    def __init__(self, marker: bytes, expected: int, fate: str, now: float) -> None:
        self.marker, self.expected, self.fate, self.started_at = marker, expected, fate, now
        self.received, self.first_at = 0, 0.0


class Client(asyncio.Protocol):
    def __init__(self, plan: Plan, headers: Headers, in_flight: int) -> None:
        self.plan, self.headers, self.in_flight = plan, headers, in_flight
        self.transport: asyncio.Transport | None = None
        self.buffer = b""
        self.calls: dict[int, _Call] = {}
        self.next_id = 1
        self.window = 65_535
        self.held: deque[bytes] = deque()
        self.received = 0
        self.out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        settings = struct.pack(">HLHL", 2, 0, 4, MAX_WINDOW)  # ENABLE_PUSH, INITIAL_WINDOW_SIZE
        grant = struct.pack(">L", MAX_WINDOW - 65_535)
        self.transport.write(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, grant))
        self.top_up()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.plan.finished.done():
            error = ConnectionError(f"the proxy closed the connection with {len(self.calls)} calls open: {exc}")
            self.plan.finished.set_exception(error)

    def top_up(self) -> None:
        plan = self.plan
        while len(self.calls) < self.in_flight and plan.started < plan.calls:
            message, marker, expected, fate = plan.next()
            stream_id, self.next_id = self.next_id, self.next_id + 2
            block = self.headers.block(stream_id == 1)
            self.out.append(frame(HEADERS, 4, stream_id, block))
            body = b"\0" + len(message).to_bytes(4, "big") + message
            for offset in range(0, len(body), FRAME_BYTES):
                part = body[offset : offset + FRAME_BYTES]
                last = END_STREAM if offset + FRAME_BYTES >= len(body) else 0
                self.send_data(frame(DATA, last, stream_id, part))
            self.calls[stream_id] = _Call(marker, expected, fate, perf_counter())
            if fate == "cancel":
                asyncio.get_running_loop().call_soon(self.cancel, stream_id)
            elif fate == "hang":
                asyncio.get_running_loop().call_later(_HELD_CANCEL_S, self.cancel, stream_id)

    def send_data(self, data: bytes) -> None:
        size = len(data) - 9
        if self.held or size > self.window:
            self.held.append(data)
        else:
            self.window -= size
            self.out.append(data)

    def cancel(self, stream_id: int) -> None:
        call = self.calls.get(stream_id)
        if call is None or self.held:
            return
        self.out.append(frame(RST_STREAM, 0, stream_id, _CANCEL))
        self.ended(stream_id, call)
        self.flush()

    def flush(self) -> None:
        if self.out and self.transport is not None:
            self.transport.write(b"".join(self.out))
            self.out.clear()

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        offset, size = 0, len(buffer)
        while size - offset >= 9:
            high, low, kind, flags, stream_id = _HEAD.unpack_from(buffer, offset)
            end = offset + 9 + (high << 16 | low)
            if end > size:
                break
            if kind == DATA:
                self.data(stream_id, flags, buffer, offset + 9, end)
            elif kind == HEADERS:
                if flags & END_STREAM and (call := self.calls.get(stream_id)) is not None:
                    self.ended(stream_id, call)
            else:
                self.control(kind, flags, stream_id, buffer[offset + 9 : end])
            offset = end
        self.buffer = buffer[offset:]
        self.flush()

    def data(self, stream_id: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        length = end - start
        self.received += length
        if self.received > 2**29:
            self.out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", self.received)))
            self.received = 0
        call = self.calls.get(stream_id)
        if call is None:
            return
        if flags & PADDED:
            length -= 1 + buffer[start]
            start += 1
        if not call.received:
            call.first_at = perf_counter()
            if call.marker and not buffer.startswith(call.marker, start + 5):
                call.fate = "wrong"
        call.received += length
        if flags & END_STREAM:
            self.ended(stream_id, call)

    def ended(self, stream_id: int, call: _Call) -> None:
        del self.calls[stream_id]
        plan, now = self.plan, perf_counter()
        plan.reply_bytes += call.received
        if call.fate == "ok":
            if call.received == call.expected or (not call.expected and call.received):
                plan.ok += 1
                plan.latencies.append(now - call.started_at)
                plan.first_bytes.append(call.first_at - call.started_at)
            else:
                plan.failed += 1
        elif call.fate == "wrong" or (call.fate == "fail" and call.received):
            plan.failed += 1
        else:
            plan.cancelled += 1
        plan.end()
        self.top_up()

    def control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.out.append(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.out.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and not stream_id:
            self.window += int.from_bytes(payload, "big")
            while self.held and len(self.held[0]) - 9 <= self.window:
                data = self.held.popleft()
                self.window -= len(data) - 9
                self.out.append(data)
        elif kind == RST_STREAM and (call := self.calls.get(stream_id)) is not None:
            call.received = -1
            self.ended(stream_id, call)
        elif kind == GOAWAY and not self.plan.finished.done():
            self.plan.finished.set_exception(ConnectionError(f"GOAWAY from the proxy: {payload[4:]!r}"))


def _quantiles(values: array[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    shares = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99}
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6 for name, share in shares.items()}


async def run(options: argparse.Namespace) -> dict[str, object]:
    plan = Plan(options)
    metadata = [tuple(header.split("=", 1)) for header in options.header]
    loop = asyncio.get_running_loop()
    started_at = perf_counter()
    for number in range(options.connections):
        share = options.in_flight // options.connections + (number < options.in_flight % options.connections)
        headers = Headers(options.path, f"127.0.0.1:{options.port}", metadata, options.varied, plan.rng)
        await loop.create_connection(lambda h=headers, n=share: Client(plan, h, n), "127.0.0.1", options.port)
    await asyncio.wait_for(plan.finished, options.timeout_s)
    elapsed_s = perf_counter() - started_at
    return {
        "calls": plan.done,
        "ok": plan.ok,
        "failed": plan.failed,
        "cancelled": plan.cancelled,
        "elapsed_s": elapsed_s,
        "reply_bytes": plan.reply_bytes,
        "total": _quantiles(plan.latencies),
        "first": _quantiles(plan.first_bytes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/bench.Echo/Unary")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--size", type=int, default=1024, help="octets of each message, at least 16")
    parser.add_argument("--distinct", type=int, default=0, help="number of different messages; 0: every one is new")
    parser.add_argument("--message", default="", help="send this directive to the echo backend instead of messages")
    parser.add_argument("--expect", type=int, default=0, help="octets of reply DATA with --message; 0: any")
    parser.add_argument("--mixed", action="store_true", help="4 %% errors, 3 %% cancels at once, 3 %% after a wait")
    parser.add_argument("--varied", action="store_true", help="traceparent and grpc-timeout differ from call to call")
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout-s", type=float, default=120.0)
    options = parser.parse_args()
    try:
        result = uvloop.run(run(options))
    except (ConnectionError, TimeoutError) as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(result))
    return 1 if "error" in result or result["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
