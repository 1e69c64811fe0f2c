"""The queue before one OTLP collector: what is sent when, what is retried, what is dropped.

Always holds: at most `max_queue` spans wait and at most one batch is out; when the queue is full the OLDEST span goes
and is counted; every span that entered is counted exactly once as exported, rejected or dropped, or is still held.
Batches are numbered from 0 in the order they are first sent, and a retry keeps its number.

Deliberately not here: encoding (`engines.otlp`), sockets and tasks (`edge.export`). Retryable statuses and the use
of RetryInfo follow the OTLP specification; names and defaults follow the SDK's batch span processor.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

RESOURCE_EXHAUSTED = 8
# CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS; RESOURCE_EXHAUSTED only with RetryInfo.
RETRYABLE = frozenset((1, 4, 10, 11, 14, 15))


@dataclass(frozen=True, slots=True)
class ExportPolicy:
    """OTEL_BSP_MAX_QUEUE_SIZE, OTEL_BSP_MAX_EXPORT_BATCH_SIZE, OTEL_BSP_SCHEDULE_DELAY, OTEL_EXPORTER_OTLP_TIMEOUT."""

    max_queue: int = 2_048
    max_batch: int = 512
    schedule_delay_ms: int = 1_000
    timeout_ms: int = 10_000
    first_backoff_ms: int = 1_000
    max_backoff_ms: int = 30_000
    max_elapsed_ms: int = 300_000  # a batch older than this is dropped; also the longest wait a collector may ask for


class Batch(NamedTuple):
    spans: tuple[bytes, ...]  # as `Encoder.span` gives them
    sequence: int
    first_sent_at: float
    tries: int  # this one included


class ExportQueue:
    """`put` spans; when `due` says so `take` a batch and report `sent` or `failed`. Times are monotonic seconds."""

    __slots__ = (
        "_first_put_at",
        "_out",
        "_policy",
        "_random",
        "_resume_at",
        "_retry",
        "_sequence",
        "_waiting",
        "dropped_full",
        "dropped_refused",
        "exported",
        "rejected",
        "retries",
    )

    def __init__(self, policy: ExportPolicy, random: Random):
        self._policy = policy
        self._random = random
        self._waiting: deque[bytes] = deque()
        self._first_put_at = 0.0
        self._resume_at = 0.0  # no batch before this: backoff
        self._retry: Batch | None = None  # failed, waits for its next try
        self._out: Batch | None = None  # taken, neither sent nor failed yet
        self._sequence = 0
        self.exported = 0  # accepted by the collector
        self.rejected = 0  # refused one by one in a partial success
        self.dropped_full = 0  # the oldest, to make room
        self.dropped_refused = 0  # batches the collector refused for good, or that grew too old
        self.retries = 0

    @property
    def waiting(self) -> int:
        """Spans held, those of a batch on its way or between tries included."""
        held = len(self._waiting)
        for batch in (self._retry, self._out):
            held += len(batch.spans) if batch else 0
        return held

    def put(self, span: bytes, now: float) -> bool:
        """True when this span may have brought `due` forward; all others leave it as it was."""
        waiting = self._waiting
        if len(waiting) >= self._policy.max_queue:
            waiting.popleft()
            self.dropped_full += 1
            waiting.append(span)
            return False
        if not waiting:
            self._first_put_at = now
        waiting.append(span)
        return len(waiting) == 1 or len(waiting) == self._policy.max_batch

    def due(self, flush: bool = False) -> float | None:
        """When the next batch may be taken (in the past: now), None while there is none or one is out.

        `flush`: do not wait for a batch to fill, but do keep to the backoff a collector asked for.
        """
        if self._out is not None:
            return None
        if self._retry is not None:
            return self._resume_at
        if not self._waiting:
            return None
        if flush or len(self._waiting) >= self._policy.max_batch:
            return self._resume_at
        return max(self._resume_at, self._first_put_at + self._policy.schedule_delay_ms / 1e3)

    def take(self, now: float) -> Batch:
        """The batch to send now: the one to retry, else the oldest spans. Only when `due` is not after `now`."""
        if self._retry is not None:
            batch = self._retry._replace(tries=self._retry.tries + 1)
            self._retry = None
            self.retries += 1
        else:
            count = min(len(self._waiting), self._policy.max_batch)
            spans = tuple(self._waiting.popleft() for _ in range(count))
            batch = Batch(spans, self._sequence, now, 1)
            self._sequence += 1
            self._first_put_at = now  # what stays behind waits one more delay, or until a batch is full
        self._out = batch
        return batch

    def sent(self, rejected: int = 0) -> None:
        """The collector took the batch that is out, but for `rejected` spans."""
        count = len(self._over().spans)
        rejected = min(max(rejected, 0), count)
        self.exported += count - rejected
        self.rejected += rejected
        self._resume_at = 0.0

    def failed(self, now: float, status: int, retry_delay_s: float | None = None) -> None:
        """The batch that is out came back with a gRPC `status`, and perhaps the collector's own retry delay.

        A negative delay means "do not retry", as in gRPC's pushback.
        """
        batch = self._over()
        policy = self._policy
        refused = status not in RETRYABLE and (status != RESOURCE_EXHAUSTED or retry_delay_s is None)
        if refused or (retry_delay_s is not None and retry_delay_s < 0):
            self.dropped_refused += len(batch.spans)
            self._resume_at = 0.0
            return
        wait_ms = min(policy.first_backoff_ms * 2 ** min(batch.tries - 1, 20), policy.max_backoff_ms)
        wait_s = wait_ms / 1e3 * self._random.uniform(0.8, 1.2)
        if retry_delay_s is not None:
            wait_s = retry_delay_s
        max_elapsed_s = policy.max_elapsed_ms / 1e3
        self._resume_at = now + min(wait_s, max_elapsed_s)
        if self._resume_at - batch.first_sent_at > max_elapsed_s:
            self.dropped_refused += len(batch.spans)
        else:
            self._retry = batch

    def abandon(self) -> int:
        """Drop everything held, at the end of the process; says how many."""
        count = self.waiting
        self.dropped_refused += count
        self._waiting.clear()
        self._retry = self._out = None
        return count

    def _over(self) -> Batch:
        if self._out is None:
            raise RuntimeError("no batch is out")
        batch, self._out = self._out, None
        return batch
