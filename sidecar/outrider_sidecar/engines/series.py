"""Counters and latency histograms of calls, per (agent, method, status, cache verdict, endpoint).

Always holds: the number of rows is bounded; calls that find no row of their own are counted under "other" and never
lost, so sums over all rows are exact. Histograms are exponential, base 2 with scale 3 as in OpenTelemetry: a bound is
2**(1/8) = 1.09 times the one before, an estimated quantile is off by at most 4.5 % from 16 us to 72 minutes.

Deliberately not here: rates and windows (the reader's work), exposition (`edge.exposition`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from outrider_sidecar.core import errors
from outrider_sidecar.core.metric import Family, HistogramFamily, Labels
from outrider_sidecar.core.span import Admission, Span

OTHER: Final = "other"
METHOD_MAX_CHARS: Final = 256  # a path may be as long as a header list; a label may not

_PER_OCTAVE: Final = 8
_FIRST_OCTAVE: Final = 4  # 16 us
_LAST_OCTAVE: Final = 32  # 4295 s
# Upper bounds, inclusive. Figures are whole, so comparing with the floor is exact and cheaper than with the float.
BOUNDS_US: Final = tuple(
    int(2 ** (step / _PER_OCTAVE)) for step in range(_FIRST_OCTAVE * _PER_OCTAVE, _LAST_OCTAVE * _PER_OCTAVE + 1)
)
# What is exposed: every octave from 64 us to 268 s. They are bounds of ours too, so the exposed counts are exact.
_EXPOSED: Final = tuple((octave - _FIRST_OCTAVE) * _PER_OCTAVE for octave in range(6, 29))
EXPOSED_BOUNDS_S: Final = (*(f"{BOUNDS_US[index] / 1e6:.6f}".rstrip("0") for index in _EXPOSED), "+Inf")
# For each bucket the exposed one it falls into; the overflow bucket is past the last bound.
_SLOTS: Final = tuple(bisect_left(_EXPOSED, bucket) for bucket in range(len(BOUNDS_US) + 1))

Buckets = dict[int, int]  # bucket number -> count; sparse: a row meets a dozen of the 226
Key = tuple[str, str, int, str, str]


class Row:
    """Sums of the calls that share one key."""

    __slots__ = ("buckets", "calls", "first_buckets", "first_byte_us", "reply_bytes", "request_bytes", "total_us")

    def __init__(self) -> None:
        self.calls = 0
        self.total_us = 0
        self.first_byte_us = 0
        self.request_bytes = 0
        self.reply_bytes = 0
        self.buckets: Buckets = {}
        self.first_buckets: Buckets = {}


class Series:
    """All rows of one sidecar. `max_methods` bounds what one agent's callers can invent, `max_rows` everything."""

    __slots__ = ("_degraded", "_methods", "_queues", "_rows", "_tokens", "max_methods", "max_models", "max_rows")

    def __init__(self, max_rows: int = 1_000, max_methods: int = 100, max_models: int = 200):
        self.max_rows = max_rows
        self.max_methods = max_methods
        self.max_models = max_models
        self._rows: dict[Key, Row] = {}
        self._methods: dict[str, set[str]] = {}
        self._tokens: dict[tuple[str, str], list[int]] = {}
        self._queues: dict[tuple[str, str], _Sum] = {}
        self._degraded: dict[tuple[str, str], int] = {}

    def record(self, span: Span) -> None:
        """Count one finished call."""
        (
            _, _, _, _, _, _, method, agent_id, endpoint, _, total_us, status, _, admission, _, first_byte_us,
            request_bytes, reply_bytes, cache, _, _, _, _, _, generation, compression, _, _, _, _,
        ) = span  # fmt: skip
        key = (agent_id, method, status, cache, endpoint)
        row = self._rows.get(key)
        if row is None:
            row = self._row(key)
        row.calls += 1
        row.total_us += total_us
        bucket = bisect_left(BOUNDS_US, total_us)
        try:
            row.buckets[bucket] += 1
        except KeyError:
            row.buckets[bucket] = 1
        if first_byte_us:
            row.first_byte_us += first_byte_us
            bucket = bisect_left(BOUNDS_US, first_byte_us)
            try:
                row.first_buckets[bucket] += 1
            except KeyError:
                row.first_buckets[bucket] = 1
        row.request_bytes += request_bytes
        row.reply_bytes += reply_bytes
        if generation is not None or compression is not None:
            self._count_tokens(span)
        if admission is not None:
            self._count_admission(agent_id, admission)

    def _row(self, key: Key) -> Row:
        """A row for a key not met before: its own, or that of "other" where a bound is reached."""
        agent_id, method, status, cache, endpoint = key
        methods = self._methods.get(agent_id)
        if methods is None:
            # Bounded like the rows: an agent without a row of its own gets no set of methods either.
            methods = self._methods.setdefault(agent_id, set()) if len(self._rows) < self.max_rows else set()
        if method not in methods:
            if len(methods) >= self.max_methods or len(method) > METHOD_MAX_CHARS:
                method = OTHER
            elif len(self._rows) < self.max_rows:
                methods.add(method)
        key = (agent_id, method, status, cache, endpoint)
        if key not in self._rows and len(self._rows) >= self.max_rows:
            key = (OTHER, OTHER, status, OTHER, OTHER)  # one per status, on top of max_rows
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = Row()
        return row

    def _count_tokens(self, span: Span) -> None:
        generation = span.generation
        key = (span.agent_id, (generation.reply_model or generation.model) if generation else "")
        counts = self._tokens.get(key)
        if counts is None:
            if len(self._tokens) >= self.max_models or len(key[1]) > METHOD_MAX_CHARS:
                key = (OTHER, OTHER)
            counts = self._tokens.setdefault(key, [0] * len(_TOKEN_KINDS))
        if generation:
            counts[0] += generation.input_tokens
            counts[1] += generation.output_tokens
            counts[2] += generation.cache_read_tokens
            counts[3] += generation.cache_write_tokens
        if span.compression is not None:
            counts[4] += span.compression.tokens_saved

    def _count_admission(self, agent_id: str, admission: Admission) -> None:
        """Lanes and steps are few and fixed, agents are bounded as rows are."""
        queue_us, lane, degraded = admission
        if queue_us:
            key = (agent_id, lane)
            if key not in self._queues and len(self._queues) >= self.max_rows:
                key = (OTHER, lane)
            wait = self._queues.get(key)
            if wait is None:
                wait = self._queues[key] = _Sum()
            bucket = bisect_left(BOUNDS_US, queue_us)
            wait.buckets[bucket] = wait.buckets.get(bucket, 0) + 1
            wait.sum_us += queue_us
        for step in degraded:
            key = (agent_id, step)
            if key not in self._degraded and len(self._degraded) >= self.max_rows:
                key = (OTHER, step)
            self._degraded[key] = self._degraded.get(key, 0) + 1

    def rows(self) -> Iterable[tuple[Key, Row]]:
        return self._rows.items()

    def quantile_us(self, share: float, agent_id: str | None = None) -> float | None:
        """The estimated latency below which `share` (0..1) of the calls stayed; None without calls."""
        merged: Buckets = {}
        for key, row in self._rows.items():
            if agent_id is None or key[0] == agent_id:
                add(merged, row.buckets)
        return quantile_us(merged, share)

    def families(self) -> list[Family | HistogramFamily]:
        """Everything counted, as one consistent copy.

        Counters keep all five labels; histograms, 24 lines a sample, are summed to (agent, method, cache) and
        (agent, endpoint), which keeps a scrape short.
        """
        calls: list[tuple[Labels, float]] = []
        request_bytes: dict[Labels, float] = {}
        reply_bytes: dict[Labels, float] = {}
        durations: dict[Labels, _Sum] = {}
        endpoints: dict[Labels, _Sum] = {}
        firsts: dict[Labels, _Sum] = {}
        for (agent_id, method, status, cache, endpoint), row in self._rows.items():
            calls.append(((agent_id, method, errors.NAMES[status], cache, endpoint), row.calls))
            by_method = (agent_id, method)
            request_bytes[by_method] = request_bytes.get(by_method, 0) + row.request_bytes
            reply_bytes[by_method] = reply_bytes.get(by_method, 0) + row.reply_bytes
            durations.setdefault((agent_id, method, cache), _Sum()).add(row.buckets, row.total_us)
            if endpoint:
                endpoints.setdefault((agent_id, endpoint), _Sum()).add(row.buckets, row.total_us)
            if row.first_buckets:
                firsts.setdefault((agent_id, method, cache), _Sum()).add(row.first_buckets, row.first_byte_us)
        received, answered = [*request_bytes.items()], [*reply_bytes.items()]
        return [
            Family("outrider_calls", "counter", "Finished calls.", _LABELS, calls),
            Family("outrider_request_bytes", "counter", "Message bytes from callers.", _LABELS[:2], received),
            Family("outrider_reply_bytes", "counter", "Message bytes to callers.", _LABELS[:2], answered),
            Family("outrider_tokens", "counter", "Model tokens.", ("agent", "model", "kind"), self._token_samples()),
            Family("outrider_degraded", "counter", "Calls that felt a step.", ("agent", "step"), self._degraded_now()),
            _histogram("outrider_call_duration_seconds", "Start to end of a call.", _BY_CACHE, durations),
            _histogram("outrider_first_byte_seconds", "Start to the first byte of the reply.", _BY_CACHE, firsts),
            _histogram("outrider_endpoint_duration_seconds", "Calls by endpoint.", ("agent", "endpoint"), endpoints),
            _histogram("outrider_queue_seconds", "Waits for a permit.", ("agent", "lane"), self._queues_now()),
        ]

    def _queues_now(self) -> dict[Labels, _Sum]:
        found: dict[Labels, _Sum] = {}
        for key, wait in self._queues.items():
            found[key] = _Sum()
            found[key].add(wait.buckets, wait.sum_us)
        return found

    def _degraded_now(self) -> list[tuple[Labels, float]]:
        return [(key, count) for key, count in self._degraded.items()]

    def _token_samples(self) -> list[tuple[Labels, float]]:
        return [
            ((agent_id, model, kind), count)
            for (agent_id, model), counts in self._tokens.items()
            for kind, count in zip(_TOKEN_KINDS, counts, strict=True)
            if count
        ]


_LABELS: Final = ("agent", "method", "status", "cache", "endpoint")
_BY_CACHE: Final = ("agent", "method", "cache")
_TOKEN_KINDS: Final = ("input", "output", "cache_read", "cache_write", "saved")


class _Sum:
    __slots__ = ("buckets", "sum_us")

    def __init__(self) -> None:
        self.buckets: Buckets = {}
        self.sum_us = 0

    def add(self, buckets: Buckets, sum_us: int) -> None:
        add(self.buckets, buckets)
        self.sum_us += sum_us


def _histogram(name: str, text: str, labels: tuple[str, ...], sums: dict[Labels, _Sum]) -> HistogramFamily:
    return HistogramFamily(name, text, labels, EXPOSED_BOUNDS_S, _samples(sums))


def _samples(sums: dict[Labels, _Sum]) -> Iterator[tuple[Labels, list[int], float]]:
    """Over sums of its own, one at a time: whoever renders it pays for each sample when it takes it."""
    for values, entry in sums.items():
        yield values, cumulative(entry.buckets), entry.sum_us / 1e6


def add(into: Buckets, buckets: Buckets) -> None:
    for bucket, count in buckets.items():
        into[bucket] = into.get(bucket, 0) + count


def cumulative(buckets: Buckets) -> list[int]:
    """Counts at or below each of EXPOSED_BOUNDS_S."""
    counts = [0] * len(EXPOSED_BOUNDS_S)
    for bucket, count in buckets.items():
        counts[_SLOTS[bucket]] += count
    return list(accumulate(counts))


def quantile_us(buckets: Buckets, share: float) -> float | None:
    """The geometric middle of the bucket that holds the quantile: at most half a bucket off."""
    total = sum(buckets.values())
    if not total:
        return None
    rank = max(1.0, share * total)
    seen = 0
    for bucket, count in sorted(buckets.items()):
        seen += count
        if seen >= rank:
            return _middle_us(bucket)
    return _middle_us(max(buckets))


def _middle_us(bucket: int) -> float:
    if bucket == 0:
        return BOUNDS_US[0] / 2
    if bucket >= len(BOUNDS_US):
        return float(BOUNDS_US[-1])
    return 2 ** (_FIRST_OCTAVE + (bucket - 0.5) / _PER_OCTAVE)
