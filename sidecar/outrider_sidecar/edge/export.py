"""Span export: call records in, OTLP requests out to any number of collectors.

Always holds: `add` costs one append; records are encoded once for all collectors, `SLICE` and a sixteenth of the
backlog a loop turn, so neither a burst nor a dead collector stalls a call; under load they are encoded as soon as there
is a slice of them, while the processor's cache still holds them; everything that waits is bounded and what is dropped
is counted. Collectors are served independently. A foreign collector gets sampled spans only, the control plane
gets all.

Deliberately not here: the connection (each `Collector` is given a `send`), queue and retry rules
(`engines.export_queue`), the bytes (`engines.otlp`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import NamedTuple

from outrider_sidecar.core import errors
from outrider_sidecar.core.metric import Family, Labels
from outrider_sidecar.core.span import SAMPLED, Span
from outrider_sidecar.engines.export_queue import Batch, ExportPolicy, ExportQueue
from outrider_sidecar.engines.otlp import Encoder
from outrider_sidecar.engines.otlp_reply import partial_success, retry_delay_s

log = logging.getLogger(__name__)

PATH = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
CONTROL = "control"  # the name of the control plane's collector
SLICE = 16  # spans encoded in one loop turn at least: about 60 us; more where many wait
TICK_S = 0.02  # how long fewer records than that gather
OUTCOMES = ("exported", "rejected", "dropped_full", "dropped_refused")  # counters of an ExportQueue


class Answer(NamedTuple):
    """What came back for one request."""

    status: int  # gRPC status
    message: bytes = b""  # ExportTraceServiceResponse when the status is OK
    details: bytes = b""  # decoded grpc-status-details-bin, when there is one
    pushback_ms: int | None = None  # grpc-retry-pushback-ms, when there is one; negative: do not retry
    text: str = ""  # grpc-message, for the log


Send = Callable[[bytes], Awaitable[Answer]]


class Collector:
    """One destination: a queue and the task that empties it."""

    def __init__(
        self,
        name: str,
        send: Send,
        encoder: Encoder,
        policy: ExportPolicy,
        random: Random,
        every_span: bool = False,
    ):
        self.name = name
        self.every_span = every_span  # the control plane: unsampled spans too, and numbered batches
        self.queue = ExportQueue(policy, random)
        self._send = send
        self._encoder = encoder
        self._policy = policy
        self._wake = asyncio.Event()
        self._flushing = False
        self._task: asyncio.Task[None] | None = None
        self._last_failure = ""

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"export {self.name}")

    def put(self, span: bytes, now: float) -> None:
        if self.queue.put(span, now):
            self._wake.set()

    async def close(self, deadline: float) -> None:
        """Send what waits until `deadline` (loop time), then drop the rest."""
        self._flushing = True
        self._wake.set()
        if self._task is not None:
            remaining_s = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait((self._task,), timeout=remaining_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        dropped = self.queue.abandon()
        if dropped:
            log.warning("export to %s: %d spans dropped at exit", self.name, dropped)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = self.queue.due(self._flushing)
            now = loop.time()
            if due is not None and due <= now:
                await self._export(self.queue.take(now))
                continue
            if due is None and self._flushing:
                return
            self._wake.clear()
            timer = loop.call_at(due, self._wake.set) if due is not None else None
            try:
                await self._wake.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    async def _export(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        request = self._encoder.request(batch.spans, batch.sequence if self.every_span else None)
        try:
            async with asyncio.timeout(self._policy.timeout_ms / 1e3):
                answer = await self._send(request)
        except TimeoutError:
            answer = Answer(errors.DEADLINE_EXCEEDED)
        except OSError:
            answer = Answer(errors.UNAVAILABLE)
        except Exception:
            # A defect in the client must not end the task that empties the queue.
            log.exception("export to %s: the request could not be sent", self.name)
            answer = Answer(errors.UNAVAILABLE)
        if answer.status == 0:
            partial = partial_success(answer.message)
            self.queue.sent(partial.rejected)
            said = partial.rejected or partial.message
            self._report(f"{partial.rejected} spans rejected: {partial.message!r}" if said else "")
            return
        delay_s = retry_delay_s(answer.details)
        if answer.pushback_ms is not None:
            delay_s = answer.pushback_ms / 1e3
        self.queue.failed(loop.time(), answer.status, delay_s)
        name = errors.NAMES[answer.status] if 0 <= answer.status <= 16 else str(answer.status)
        self._report(f"failed with {name}{f': {answer.text[:200]!r}' if answer.text else ''}")

    def _report(self, failure: str) -> None:
        """Log changes only: a collector that stays down says so once."""
        if failure != self._last_failure:
            self._last_failure = failure
            if failure:
                log.warning("export to %s: %s", self.name, failure)
            else:
                log.info("export to %s: works again", self.name)


class Export:
    """Takes every finished call and feeds all collectors. Lives on one loop."""

    def __init__(self, encoder: Encoder, collectors: Sequence[Collector], max_records: int = 8_192):
        self._encoder = encoder
        self._collectors = tuple(collectors)
        self._max_records = max_records
        self._records: deque[Span] = deque()
        self._timer: asyncio.TimerHandle | None = None  # at most one of the two is set
        self._soon = False
        self._closed = not collectors
        self._loop: asyncio.AbstractEventLoop | None = None
        self.dropped_full = 0  # records never encoded: the oldest went
        self.broken = 0  # records that could not be encoded: a defect of ours

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for collector in self._collectors:
            collector.start()
        if self._records:
            self._schedule(self._loop)

    def add(self, span: Span) -> None:
        if self._closed:
            return
        records = self._records
        if len(records) >= self._max_records:
            records.popleft()
            self.dropped_full += 1
        records.append(span)
        if not self._soon and (self._timer is None or len(records) >= SLICE) and self._loop is not None:
            self._schedule(self._loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._records) < SLICE:
            self._timer = loop.call_later(TICK_S, self._slice)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._soon = True
        loop.call_soon(self._slice)

    def _slice(self) -> None:
        self._timer = None
        self._soon = False
        # A backlog makes the slices larger: at full load a fixed size would fall behind, and hold and drop records.
        self._encode(SLICE + len(self._records) // 16)
        if self._records and self._loop is not None:
            self._schedule(self._loop)

    def _encode(self, count: int) -> None:
        assert self._loop is not None
        now = self._loop.time()
        records = self._records
        for _ in range(min(count, len(records))):
            span = records.popleft()
            try:
                encoded = self._encoder.span(span)
            except Exception:
                if not self.broken:
                    log.exception("a span could not be encoded; further ones are only counted")
                self.broken += 1
                continue
            sampled = span.flags & SAMPLED
            for collector in self._collectors:
                if sampled or collector.every_span:
                    collector.put(encoded, now)

    async def close(self, timeout_s: float = 2.0) -> None:
        """Flush: encode what waits, send it, give up after `timeout_s`. Nothing is taken from here on."""
        self._closed = True
        if self._loop is None:
            return
        deadline = self._loop.time() + timeout_s
        while self._records:
            self._encode(SLICE)
            await asyncio.sleep(0)
        await asyncio.gather(*(collector.close(deadline) for collector in self._collectors))

    def dropped(self, name: str) -> int:
        """Spans that were dropped on their way to this collector."""
        queues = [one.queue for one in self._collectors if one.name == name]
        return self.dropped_full + self.broken + sum([queue.dropped_full + queue.dropped_refused for queue in queues])

    def families(self) -> list[Family]:
        counts: list[tuple[Labels, float]] = []
        waiting: list[tuple[Labels, float]] = []
        retries: list[tuple[Labels, float]] = []
        for collector in self._collectors:
            queue, name = collector.queue, collector.name
            waiting.append(((name,), queue.waiting))
            retries.append(((name,), queue.retries))
            counts += [((name, outcome), getattr(queue, outcome)) for outcome in OUTCOMES]
        unencoded: list[tuple[Labels, float]] = [(("full",), self.dropped_full), (("broken",), self.broken)]
        return [
            Family("outrider_export_spans", "counter", "Spans by their end.", ("collector", "outcome"), counts),
            Family("outrider_export_waiting", "gauge", "Spans held for a collector.", ("collector",), waiting),
            Family("outrider_export_retries", "counter", "Batches sent again.", ("collector",), retries),
            Family("outrider_export_unencoded_spans", "counter", "Spans dropped before.", ("reason",), unencoded),
        ]
