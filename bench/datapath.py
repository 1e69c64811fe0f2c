"""The data path without sockets: CPU per unary call inside one process, to profile and to compare changes.

    python -m bench.datapath [--calls N] [--in-flight 32] [--bytes 1024] [--profile] [--plain | --hits | --store]

Received bytes are fed to the real server connection, the real filter chain and the real client connection; what they
would write is discarded, replies are built from the stream ids that must come next. So the figure is ours alone: no
kernel, no peer, little noise. By default every call misses the cache, is recorded and not stored (too large);
`--store` stores them all in a full cache, `--hits` answers all from it; `--plain` leaves out cache and span export.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

from outrider.policy import Agent, EndpointPolicy, Optimization, Policy
from outrider.split import Split
from outrider_http2 import frames
from outrider_http2.client import ClientConnection
from outrider_http2.hpack import Encoder, literal
from outrider_http2.limits import Limits
from outrider_http2.server import ServerConnection
from outrider_http2.shell import Reactor
from outrider_sidecar import app, stack
from outrider_sidecar.core.call import Call
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.engines.epochs import Epochs
from outrider_sidecar.engines.otlp import Encoder as SpanEncoder
from outrider_sidecar.engines.sampler import parse_sampler
from outrider_sidecar.engines.series import Series
from outrider_sidecar.filters.trace import child_ids, span_of
from outrider_sidecar.payloads import Payloads

REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/bench.Echo/Unary"),
    (b":authority", b"127.0.0.1:7600"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"grpc-bench/1"),
    (b"grpc-timeout", b"20S"),
)


class _Loop:
    def call_soon(self, *_: Any) -> None:
        pass

    def call_later(self, *_: Any) -> None:
        pass


class Path:
    """One sidecar's data path with one client connection and one upstream connection."""

    def __init__(
        self,
        size: int,
        in_flight: int,
        full: bool,
        hits: bool = False,
        store: bool = False,
        policy: Mapping[str, Any] | None = None,
        capacity: int = 0,
        filters: tuple[ModuleType, ...] = stack.EGRESS,
        splits: tuple[Split, ...] = (),
        fields: Callable[[int], tuple[tuple[bytes, bytes], ...]] = lambda _: (),
    ):
        self.reactor = Reactor(_Loop(), Limits(), app.OWNED)  # type: ignore[arg-type]
        runtime = self.runtime = Runtime(self.reactor, time.monotonic, time.time, random.Random(1))
        runtime.epochs, runtime.payloads, runtime.sampler = Epochs(), Payloads(7), parse_sampler("")
        runtime.own_span = lambda call, parent: child_ids(call, parent, runtime)
        self.series, self.spans = Series(), SpanEncoder({"service.name": "bench"})
        runtime.record = self._record if full else (lambda _: None)
        self.full = full
        self.upstream = self._connection(ClientConnection)
        connector = SimpleNamespace(
            conn=self.upstream, literal=literal(b"x-outrider-endpoint", b"127.0.0.1:9001"), begin=lambda _: None
        )
        runtime.connector = lambda endpoint, agent: connector
        optimization = Optimization(cache_enabled=full, cache_methods=("/bench.Echo/Unary",), cache_max_bytes=2**23)
        if not hits and not store:
            optimization = replace(optimization, cache_max_object_bytes=64)
        endpoint = EndpointPolicy("127.0.0.1:9001", labels={"version": "v1"}, capacity=capacity)
        agent = Agent("a", (endpoint,), optimization=optimization, **(policy or {}))
        runtime.snapshot = stack.compile_snapshot(Policy({"a": agent}, "a", splits={"a": splits}), runtime, filters)
        self.client = self._connection(ServerConnection, self._accept)
        self._in_flight = in_flight
        self._peer, self._endpoint = Encoder(), Encoder()
        self._prefix = b"\0" + size.to_bytes(4, "big")
        self._filler = bytes(max(0, size - 8))
        self._hits = hits
        self._fields = fields
        self.client.receive(frames.PREFACE + frames.settings(((4, 2**31 - 1),)) + frames.SETTINGS_ACK)
        self.client.receive(frames.window_update(0, 2**31 - 1 - 65_535))
        self.upstream.open()
        self.upstream.receive(frames.settings(((4, 2**31 - 1),)) + frames.SETTINGS_ACK)
        self.upstream.receive(frames.window_update(0, 2**31 - 1 - 65_535))
        self.next_in, self.next_out = 1, 1
        if hits:
            self._in_flight = 1
            self.batch()  # the one that is stored
            self._in_flight = in_flight
        for _ in range(4):
            self.batch()

    def _connection(self, kind: Any, *first: Any) -> Any:
        reactor = self.reactor
        return kind(*first, reactor.limits, reactor.heads, reactor.turn, reactor.ledger, time.monotonic())

    def _record(self, call: Call) -> None:
        span = span_of(call, time.monotonic(), call.snapshot.kind)
        self.series.record(span)
        self.spans.span(span)

    def _accept(self, stream: Any, head: Any, rest: Any, end: bool) -> None:
        call = Call(self.runtime, self.runtime.snapshot, stream, head, rest, end, self.runtime.clock())
        stream.handler = call
        call.run()

    def batch(self) -> float:
        """One turn: `in_flight` requests in, their replies back; seconds spent in our code."""
        parts = []
        for at in range(self._in_flight):
            stream_id = self.next_in + 2 * at
            block = self._peer.encode((*REQUEST, *self._fields(stream_id)))
            # Every request is another one: equal ones would share a flight.
            body = self._prefix + (0 if self._hits else stream_id).to_bytes(8, "big") + self._filler
            parts += [frames.header_frames(stream_id, block, False, 16_384), frames.frame(0, 1, stream_id, body)]
        requests = b"".join(parts)
        parts = []
        missing = 0 if self._hits and self.next_out > 1 else self._in_flight
        for at in range(missing):
            stream_id = self.next_out + 2 * at
            head = self._endpoint.encode(((b":status", b"200"), (b"content-type", b"application/grpc")))
            tail = self._endpoint.encode(((b"grpc-status", b"0"),))
            parts += [
                frames.header_frames(stream_id, head, False, 16_384),
                frames.frame(0, 0, stream_id, self._prefix + bytes(8) + self._filler),
                frames.header_frames(stream_id, tail, True, 16_384),
            ]
        replies = b"".join(parts)
        self.next_in += 2 * self._in_flight
        self.next_out += 2 * missing
        began = time.process_time()
        for conn, data in ((self.client, requests), (self.upstream, replies)):
            self.reactor.turn.begin()
            conn.now = time.monotonic()
            conn.receive(data)
            while conn.more:
                conn.receive(b"")
            self.reactor.turn.end()
        return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=40_000)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--bytes", type=int, default=1_024)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--hits", action="store_true")
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    path = Path(options.bytes, options.in_flight, not options.plain, options.hits, options.store)
    batches = max(1, options.calls // options.in_flight)
    if options.profile:
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(batches):
            path.batch()
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    times = sorted(path.batch() for _ in range(batches))
    each = [one / options.in_flight * 1e6 for one in times]
    if path.runtime.calls:
        raise SystemExit(f"{len(path.runtime.calls)} calls are not over: the bench is wrong")
    print(f"us per call: median {each[len(each) // 2]:.2f}  p10 {each[len(each) // 10]:.2f}  best {each[0]:.2f}")


if __name__ == "__main__":
    main()
