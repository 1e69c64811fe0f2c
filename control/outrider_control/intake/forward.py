"""Forwarding: every export request that was taken goes on to an OpenTelemetry Collector, as the bytes that came.

Always holds: nothing here delays an acknowledgement; what waits is bounded in bytes, and what is dropped (queue full,
refused by the collector, tried for too long) is counted; bytes are not parsed and not changed. One collector for
traces and one for metrics, each with a queue of its own, so that one that is down does not hold up the other.

Configured by the standard variables: OTEL_EXPORTER_OTLP_[TRACES_|METRICS_]{ENDPOINT, HEADERS, TIMEOUT, COMPRESSION,
CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, INSECURE, PROTOCOL}, OTEL_{TRACES,METRICS}_EXPORTER=none,
OTEL_SDK_DISABLED. Timeouts are milliseconds, as the specification says.

Deliberately not here: OTLP over HTTP (a protocol other than grpc is passed over with a note), the control plane's own
telemetry (`own_telemetry`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Mapping
from random import Random
from typing import Final

import grpc
import grpc.aio

from outrider_control.intake.destination import Destination, destination

log = logging.getLogger(__name__)

PATHS: Final = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
QUEUE_MAX_BYTES: Final = 32 * 2**20
TRIES_S: Final = 300.0  # how long one request is tried
_BACKOFF_S: Final = (0.5, 30.0)
_MAX_MESSAGE: Final = (("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0))
# What the OTLP specification calls retryable.
_RETRYABLE: Final = frozenset(
    (
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)


class _Queue:
    """One collector: what waits for it, and the task that sends it."""

    def __init__(self, signal: str, to: Destination, random: Random, max_bytes: int):
        self.signal = signal
        self.to = to
        self.counts = {"sent": 0, "dropped_full": 0, "dropped_refused": 0, "dropped_late": 0, "retries": 0}
        self.failure = ""
        self._random = random
        self._max_bytes = max_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"forward {self.signal}")

    def put(self, request: bytes) -> None:
        if self._closing or self._waiting_bytes + len(request) > self._max_bytes:
            self.counts["dropped_full"] += 1
            return
        self._waiting.append(request)
        self._waiting_bytes += len(request)
        self._wake.set()

    async def close(self, timeout_s: float) -> None:
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=timeout_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.counts["dropped_late"] += len(self._waiting)
        self._waiting.clear()

    async def _run(self) -> None:
        to = self.to
        if to.credentials is None:
            channel = grpc.aio.insecure_channel(to.target, _MAX_MESSAGE, to.compression)
        else:
            channel = grpc.aio.secure_channel(to.target, to.credentials, _MAX_MESSAGE, to.compression)
        async with channel:
            export = channel.unary_unary(PATHS[self.signal])
            while True:
                while self._waiting:
                    request = self._waiting[0]
                    await self._send(export, request)
                    self._waiting.popleft()
                    self._waiting_bytes -= len(request)
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()

    async def _send(self, export: grpc.aio.UnaryUnaryMultiCallable, request: bytes) -> None:
        """Until it is taken, refused or too old."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + TRIES_S
        backoff_s, longest_s = _BACKOFF_S
        while True:
            try:
                await export(request, timeout=self.to.timeout_ms / 1e3, metadata=self.to.headers)
            except grpc.aio.AioRpcError as error:
                self._report(f"{error.code().name}: {(error.details() or '')[:200]}")
                if error.code() not in _RETRYABLE:
                    self.counts["dropped_refused"] += 1
                    return
                wait_s = max(_pushback_s(error), backoff_s * self._random.uniform(0.5, 1.0))
            else:
                self.counts["sent"] += 1
                self._report("")
                return
            if loop.time() + wait_s > give_up_at:
                self.counts["dropped_late"] += 1
                return
            self.counts["retries"] += 1
            await asyncio.sleep(wait_s)
            backoff_s = min(longest_s, backoff_s * 2)

    def _report(self, failure: str) -> None:
        """Logs changes only: a collector that stays down says so once."""
        if bool(failure) != bool(self.failure):
            if failure:
                log.warning("forwarding %s to %s failed: %s", self.signal, self.to.target, failure)
            else:
                log.info("forwarding %s to %s works again", self.signal, self.to.target)
        self.failure = failure


class Forward:
    """Where taken requests go on to. Lives on one loop."""

    def __init__(self, destinations: Mapping[str, Destination], random: Random, max_bytes: int = QUEUE_MAX_BYTES):
        self._queues = {signal: _Queue(signal, to, random, max_bytes) for signal, to in destinations.items()}

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], own: Collection[str], random: Random
    ) -> tuple[Forward | None, tuple[str, ...]]:
        """(what forwards, or None where the environment names no collector; a note for each value passed over).

        `own`: the control plane's own addresses ("127.0.0.1:7700"), to which nothing is forwarded.
        """
        found: dict[str, Destination] = {}
        notes: list[str] = []
        for signal in PATHS:
            to = destination(environ, signal, own, notes)
            if to is not None:
                found[signal] = to
        return (cls(found, random) if found else None), tuple(notes)

    def start(self) -> None:
        for queue in self._queues.values():
            queue.start()

    def traces(self, request: bytes) -> None:
        """An ExportTraceServiceRequest that was taken."""
        if "traces" in self._queues:
            self._queues["traces"].put(request)

    def metrics(self, request: bytes) -> None:
        """An ExportMetricsServiceRequest that was taken."""
        if "metrics" in self._queues:
            self._queues["metrics"].put(request)

    async def close(self, timeout_s: float = 2.0) -> None:
        """Sends what waits until `timeout_s` is over, drops and counts the rest."""
        await asyncio.gather(*(queue.close(timeout_s) for queue in self._queues.values()))

    @property
    def to(self) -> str:
        """For people; without secrets."""
        return ", ".join(dict.fromkeys(queue.to.target for queue in self._queues.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Requests by outcome since the start: `traces_sent`, `metrics_dropped_full`, ..."""
        return {
            f"{signal}_{name}": count for signal, queue in self._queues.items() for name, count in queue.counts.items()
        }

    @property
    def warnings(self) -> list[str]:
        """What is wrong now, in words."""
        return [
            f"{queue.signal} are not forwarded to {queue.to.target} ({queue.failure}): check the collector, or unset "
            "OTEL_EXPORTER_OTLP_ENDPOINT"
            for queue in self._queues.values()
            if queue.failure
        ]


def _pushback_s(error: grpc.aio.AioRpcError) -> float:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-retry-pushback-ms" and str(value).isdecimal():
            return min(int(value), 60_000) / 1e3
    return 0.0
