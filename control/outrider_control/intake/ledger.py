"""Takes batches of samples into the store, each exactly once, many batches in one transaction.

Always holds: `commit` answers True only after the transaction that counts the batch is on disk; the number of a
batch's exporter and its figures are one transaction, so that a batch which is sent again is not counted again, in
whichever control plane it arrives. What waits is bounded. A batch that could not be written is not acknowledged.

Deliberately not here: decoding (`intake.otlp`), which spans are kept (`intake.tail`), the rollups (`state.rollups`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Connection

from outrider_control.core.call_record import CallRecord
from outrider_control.core.cardinality import Bounds, Cardinality
from outrider_control.core.metric_figures import KINDS, MetricNames
from outrider_control.core.sample import OTHER, Sample, SeriesKey
from outrider_control.core.unit_sums import UnitCall
from outrider_control.core.windows import Windows
from outrider_control.state import call_index, kept_spans, named_metrics, rollups, unit_sums
from outrider_control.state.kept_spans import KeptSpan

if TYPE_CHECKING:
    from outrider_control.intake.metrics import MetricPoint
    from outrider_control.state.database import Database

LATE_MS = 3_600_000  # what ended longer ago has no window any more
AHEAD_MS = 60_000  # what ends later than this from now is counted now
MAX_SOURCES = 20_000  # whose last batch is remembered
MAX_LOST_AGENTS = 1_001
METRICS_FORGET_MS = 86_400_000


class Overloaded(Exception):
    """More waits than there may: the batch was not taken and is to be sent again later."""

    def __init__(self, retry_ms: int) -> None:
        super().__init__(f"the store is behind: send the batch again in {retry_ms} ms")
        self.retry_ms = retry_ms


class Prepared(NamedTuple):
    """One batch, decoded."""

    source: str  # service.instance.id of an exporter that numbers its batches, else ""
    sequence: int  # with source; -1 without
    samples: Sequence[Sample]
    kept: Sequence[KeptSpan]
    metrics: Sequence[MetricPoint]
    units: Sequence[UnitCall] = ()  # calls of units of splits
    calls: Sequence[CallRecord] = ()  # to be remembered for feedback


@dataclass(frozen=True, slots=True)
class LedgerBounds:
    """How much may wait, and how much is one transaction."""

    pending_samples: int = 200_000
    pending_bytes: int = 128 << 20
    group_samples: int = 20_000
    retry_ms: int = 1_000


_SAMPLE_BYTES = 400  # of memory, about


class _Batch:
    __slots__ = ("bytes", "done", "prepared")

    def __init__(self, prepared: Prepared, size_bytes: int, done: asyncio.Future[bool]) -> None:
        self.prepared = prepared
        self.bytes = size_bytes
        self.done = done


class _Outcome(NamedTuple):
    """What one transaction did: which batches are new, and what is to be counted once it is on disk."""

    taken: list[bool]
    counts: dict[str, int]
    series: int


class Ledger:
    """Takes batches in.

    `counts`: spans by outcome since the start: accepted (in a window), late (too old for one; counted as dropped),
    duplicate, rejected (no figures can be made of it), overflowed (counted under "(other)"), dropped (reported as
    lost by whoever lost them), failed (in a batch that could not be written), overloaded (in a batch refused).
    """

    def __init__(
        self,
        database: Database,
        clock_ms: Callable[[], int],
        cardinality: Bounds | None = None,
        bounds: LedgerBounds | None = None,
    ) -> None:
        self._database = database
        self._clock_ms = clock_ms
        self._cardinality = Cardinality(cardinality)
        self._metric_names = MetricNames()
        self._metrics_forgotten_ms = clock_ms()
        self._bounds = bounds or LedgerBounds()
        self._pending: list[_Batch] = []
        self._pending_samples = 0
        self._pending_bytes = 0
        self._sequences: dict[str, int] = {}
        self._lost: dict[str, int] = {}
        self._postponed = False  # what is lost could not be written by itself
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        self.series = 0  # distinct ones held
        self.counts: dict[str, int] = dict.fromkeys(
            ("accepted", "late", "duplicate", "rejected", "overflowed", "dropped", "failed", "overloaded"), 0
        )

    async def start(self) -> None:
        """Takes up the series there are."""
        now_ms = self._clock_ms()
        self._cardinality.load(await self._database.read(rollups.active_series, now_ms))
        self._metric_names.load(await self._database.read(named_metrics.names, now_ms - METRICS_FORGET_MS))
        self.series = self._cardinality.series

    def seen(self, source: str, sequence: int) -> bool:
        """Whether a batch was taken already, as far as this process knows: cheap, to be asked before decoding."""
        return bool(source) and sequence <= self._sequences.get(source, -1)

    async def commit(self, prepared: Prepared) -> bool:
        """Whether the batch is new; returns once it is on disk (or is known to be there).

        Raises Overloaded past the bound of what waits, DatabaseError where it cannot be written.
        """
        if self._closed:
            raise Overloaded(self._bounds.retry_ms)
        if self.seen(prepared.source, prepared.sequence):
            self.counts["duplicate"] += len(prepared.samples)
            return False
        size = len(prepared.samples)
        size_bytes = _SAMPLE_BYTES * (size + len(prepared.metrics)) + sum(len(span.span) for span in prepared.kept)
        if self._pending_bytes and (  # where nothing waits any batch is taken
            self._pending_samples + size > self._bounds.pending_samples
            or self._pending_bytes + size_bytes > self._bounds.pending_bytes
        ):
            self.counts["overloaded"] += size
            raise Overloaded(self._bounds.retry_ms)
        batch = _Batch(prepared, size_bytes, asyncio.get_running_loop().create_future())
        self._pending.append(batch)
        self._pending_samples += size
        self._pending_bytes += size_bytes
        self._wake()
        return await batch.done

    def add_dropped(self, agent_id: str, count: int, now_ms: int) -> None:
        """Somebody lost spans of an agent: the figures say how many, from now on."""
        if count > 0:
            self._lose(agent_id, count)
            self.counts["dropped"] += count
            self._wake()

    async def close(self) -> None:
        """Takes nothing more, writes what waits."""
        self._closed = True
        while self._writer is not None:
            await asyncio.wait([self._writer])

    # Writing: one transaction at a time; what arrives meanwhile is the next one.

    def _wake(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write(), name="ledger")
            self._writer.add_done_callback(self._wrote)

    def _wrote(self, _: asyncio.Task[None]) -> None:
        self._writer = None
        if self._pending or (self._lost and not self._postponed):
            self._wake()  # came after the writer's last look

    async def _write(self) -> None:
        self._postponed = False
        while self._pending or self._lost:
            group = self._next_group()
            lost, self._lost = self._lost, {}
            try:
                outcome = await self._database.write(self._take, [batch.prepared for batch in group], lost)
            except BaseException as error:
                for agent_id, count in lost.items():
                    self._lose(agent_id, count)
                self._release(group)
                self._fail(group, error)
                if not isinstance(error, Exception):
                    raise
                if not group:
                    self._postponed = True  # lost spans alone: with the next batch
                    return
                continue
            self._release(group)
            self._acknowledge(group, outcome)

    def _next_group(self) -> list[_Batch]:
        samples = 0
        for number, batch in enumerate(self._pending):
            samples += len(batch.prepared.samples)
            if samples > self._bounds.group_samples and number:
                group, self._pending = self._pending[:number], self._pending[number:]
                return group
        group, self._pending = self._pending, []
        return group

    def _release(self, group: list[_Batch]) -> None:
        for batch in group:
            self._pending_samples -= len(batch.prepared.samples)
            self._pending_bytes -= batch.bytes

    def _fail(self, group: list[_Batch], error: BaseException) -> None:
        for batch in group:
            self.counts["failed"] += len(batch.prepared.samples)
            if not batch.done.done():
                if isinstance(error, Exception):
                    batch.done.set_exception(error)
                else:
                    batch.done.cancel()

    def _acknowledge(self, group: list[_Batch], outcome: _Outcome) -> None:
        self.series = outcome.series
        for name, count in outcome.counts.items():
            self.counts[name] += count
        for batch, taken in zip(group, outcome.taken, strict=True):
            source, sequence = batch.prepared.source, batch.prepared.sequence
            if source:
                last = max(self._sequences.pop(source, -1), sequence)
                self._sequences[source] = last
                if len(self._sequences) > MAX_SOURCES:
                    del self._sequences[next(iter(self._sequences))]
            if not batch.done.done():
                batch.done.set_result(taken)

    def _lose(self, agent_id: str, count: int) -> None:
        if agent_id not in self._lost and len(self._lost) >= MAX_LOST_AGENTS:
            agent_id = OTHER
        self._lost[agent_id] = self._lost.get(agent_id, 0) + count

    # In the database's thread. Only one of these runs at a time, and nothing else touches the cardinality.

    def _take(self, connection: Connection, batches: Sequence[Prepared], lost: dict[str, int]) -> _Outcome:
        now_ms = self._clock_ms()
        taken = [True] * len(batches)
        # In one order everywhere: two control planes that wait for each other's rows would be a deadlock.
        numbered = [number for number, batch in enumerate(batches) if batch.source]
        for number in sorted(numbered, key=lambda number: batches[number][:2]):
            taken[number] = rollups.take_sequence(connection, batches[number].source, batches[number].sequence, now_ms)
        counts: dict[str, int] = dict.fromkeys(self.counts, 0)
        windows = Windows()
        kept: list[KeptSpan] = []
        overflowed = self._cardinality.overflowed
        for batch, new in zip(batches, taken, strict=True):
            if new:
                self._count(windows, batch, now_ms, counts)
                kept += batch.kept
            else:
                counts["duplicate"] += len(batch.samples)
        counts["overflowed"] += self._cardinality.overflowed - overflowed
        for agent_id, count in lost.items():
            windows.at(self._cardinality.place(SeriesKey(agent_id), now_ms), now_ms).dropped += count
        if windows:
            rollups.append_delta(connection, windows.encode())
        kept_spans.put(connection, kept)
        units = [call for batch, new in zip(batches, taken, strict=True) if new for call in batch.units]
        if units:
            unit_sums.add(connection, units, now_ms)
        calls = [call for batch, new in zip(batches, taken, strict=True) if new for call in batch.calls]
        if calls:
            call_index.add(connection, calls)
        return _Outcome(taken, counts, self._cardinality.series)

    def _count(self, windows: Windows, batch: Prepared, now_ms: int, counts: dict[str, int]) -> None:
        place = self._cardinality.place
        oldest_ms, newest_ms = now_ms - LATE_MS, now_ms + AHEAD_MS
        accepted = 0
        for sample in batch.samples:
            end_ms = sample.end_ms
            if end_ms < oldest_ms:
                counts["late"] += 1
                if sample.call:
                    windows.at(place(SeriesKey(sample.key.agent_id), now_ms), now_ms).dropped += 1
                continue
            try:
                windows.add(place(sample.key, now_ms), min(end_ms, newest_ms), sample)
                accepted += 1
            except ValueError:
                counts["rejected"] += 1
        counts["accepted"] += accepted
        if batch.metrics:
            self._count_metrics(windows, batch.metrics, now_ms)

    def _count_metrics(self, windows: Windows, points: Iterable[MetricPoint], now_ms: int) -> None:
        if now_ms - self._metrics_forgotten_ms > METRICS_FORGET_MS:
            self._metric_names.forget()
            self._metrics_forgotten_ms = now_ms
        for point in points:
            if point.kind not in KINDS or not (now_ms - LATE_MS) // 60_000 * 60 <= point.start_s <= now_ms // 1000 + 60:
                continue
            agent_id = self._cardinality.place(SeriesKey(point.agent_id), now_ms).agent_id
            metric = self._metric_names.place(agent_id, point.name, point.unit, point.kind)
            try:
                windows.metric(point.start_s, metric).add(point)
            except ValueError:
                continue
