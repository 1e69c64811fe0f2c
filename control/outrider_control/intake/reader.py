"""Answers about figures: the rollups and what is not folded into them yet, read at one moment.

Always holds: an answer counts everything that was acknowledged before the question, once; the points of a course add
up to its total. Decoding and merging happen in the database's reading threads.

Deliberately not here: rates per second and protobuf (`api`), which windows answer what (`core.query`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from sqlalchemy import Connection

from outrider_control.core import query
from outrider_control.core.figures import Figures, FiguresSum, merged
from outrider_control.core.metric_figures import MetricFigures, MetricKey
from outrider_control.core.sample import SeriesKey
from outrider_control.core.windows import Windows
from outrider_control.state import kept_spans, named_metrics, rollups
from outrider_control.state.kept_spans import KeptSpan, KeptTrace

if TYPE_CHECKING:
    from outrider_control.state.database import Database

K = TypeVar("K")


@dataclass(slots=True)
class MetricsData:
    """One agent's figures (or all agents') over a span of time."""

    window: str  # width of the points: 10s, 1m, 1h
    from_ms: int  # unix milliseconds
    to_ms: int
    total: Figures = field(default_factory=Figures)
    series: list[tuple[int, Figures]] = field(default_factory=list)  # (start_ms, figures), oldest first
    splits: list[tuple[str, Figures]] = field(default_factory=list)  # by name, most requests first


class Unfolded:
    """What waits to be folded, merged: each delta is decoded once. Not for two threads at a time."""

    __slots__ = ("_folds", "_ids", "_windows", "by_agent", "totals", "unreadable")

    def __init__(self) -> None:
        self._folds = 0
        self._ids: set[int] = set()
        self._windows = Windows()
        self.by_agent: dict[str, list[tuple[int, SeriesKey, Figures]]] = {}
        self.totals: dict[str, dict[int, Figures]] = {}  # of agents as a whole, by ten seconds
        self.unreadable = 0

    @property
    def metrics(self) -> dict[tuple[int, MetricKey], MetricFigures]:
        """By minute and metric."""
        return {(start_s, metric): figures for (start_s, metric), figures in self._windows.metrics.items()}

    def update(self, connection: Connection) -> None:
        """Makes this what the store holds at the moment of this transaction."""
        folds = rollups.folds(connection)
        ids = rollups.delta_ids(connection)
        if folds != self._folds:  # what is left is little; and an id may stand for another delta (SQLite)
            self._folds = folds
            self._ids.clear()
            self._windows = Windows()
            self.by_agent = {}
            self.totals = {}
        fresh = [number for number in ids if number not in self._ids]
        for data in rollups.read_deltas(connection, fresh):
            try:
                windows = Windows.decode(data)
            except ValueError:
                self.unreadable += 1
                continue
            known = set(self._windows.figures)
            self._windows.merge(windows)
            for key, figures in windows.figures.items():
                of_agent = self.totals.setdefault(key.series.agent_id, {})
                if key.start_s not in of_agent:
                    of_agent[key.start_s] = Figures()
                of_agent[key.start_s].merge(figures)
                if key not in known:
                    found = self.by_agent.setdefault(key.series.agent_id, [])
                    found.append((key.start_s, key.series, self._windows.figures[key]))
        self._ids.update(fresh)


class Reader:
    """Answers questions about figures and kept spans."""

    def __init__(self, database: Database, keep_s: Mapping[int, int] = query.KEEP_S) -> None:
        """`keep_s`: how long windows of each width are kept (`core.query.keep`)."""
        self._database = database
        self._keep_s = keep_s
        self._unfolded = Unfolded()
        self._lock = threading.Lock()  # of what is not folded: several threads read

    async def overview(self, since_ms: int, now_ms: int) -> dict[str, Figures]:
        """Figures of every agent that has any, from `since_ms` to `now_ms`, unix milliseconds."""
        return await self._database.read(self._overview, query.span(since_ms, now_ms, "", self._keep_s))

    async def metrics(self, agent_id: str, since_ms: int, now_ms: int, window: str = "", by: str = "") -> MetricsData:
        """Figures of one agent ("": all together) and their course from `since_ms` to `now_ms`, unix milliseconds.

        `window`: width of the points ("": what suits; a coarser one where that is not kept for so long). `by`:
        "method", "variant", "endpoint", "tenant" or "" for no split. ValueError: neither of these.
        """
        query.check_split(by)
        span = query.span(since_ms, now_ms, window, self._keep_s)
        return await self._database.read(self._metrics, agent_id, span, by)

    async def named_metrics(self, agent_id: str, since_ms: int, now_ms: int) -> list[tuple[MetricKey, MetricFigures]]:
        """Metrics that an agent sent by itself, in the order of their names."""
        since_s = query.span(since_ms, now_ms, "", self._keep_s).from_s
        found = await self._database.read(self._named_metrics, agent_id, since_s)
        return sorted(found.items(), key=lambda item: item[0])

    async def traces(
        self,
        since_ms: int,
        agent_id: str = "",
        errors: bool = False,
        min_ms: int = 0,
        limit: int = 50,
    ) -> list[KeptTrace]:
        """Kept traces with a span that began since then (unix milliseconds), newest first."""
        return await self._database.read(kept_spans.traces, since_ms, agent_id, errors, min_ms * 1000, limit or 50)

    async def trace(self, trace_id: str) -> list[KeptSpan]:
        """The kept spans of one trace (32 hex digits, or 16 of a call) in the order of their starts."""
        return await self._database.read(kept_spans.trace, trace_id)

    # In the database's threads. First what is not folded: the transaction sees one moment from its first statement.

    def _rest(self, connection: Connection, agent_id: str, from_s: int, by: str = "") -> _Rest:
        """Copies of what is not folded, of one agent or all."""
        with self._lock:
            unfolded = self._unfolded
            unfolded.update(connection)
            names = [agent_id] if agent_id else list(unfolded.totals)
            totals = [
                (name, start_s, merged([figures]))
                for name in names
                for start_s, figures in unfolded.totals.get(name, {}).items()
                if start_s >= from_s
            ]
            splits = [
                (query.split_name(series, by), merged([figures]))
                for name in (names if by else ())
                for start_s, series, figures in unfolded.by_agent.get(name, ())
                if start_s >= from_s
            ]
        return _Rest(totals, splits)

    def _overview(self, connection: Connection, span: query.Span) -> dict[str, Figures]:
        rest = self._rest(connection, "", span.from_s)
        found: _Sums[str] = _Sums()
        pieces = query.cover(span.from_s, span.now_s, query.LEVELS_S[-1])
        for agent_id, _, data in rollups.totals(connection, rollups.agents(connection), pieces):
            found.add(agent_id, data)
        return found.figures((agent_id, figures) for agent_id, _, figures in rest.totals)

    def _metrics(self, connection: Connection, agent_id: str, span: query.Span, by: str) -> MetricsData:
        rest = self._rest(connection, agent_id, span.from_s, by)
        answer = MetricsData(span.window, span.from_s * 1000, span.now_s * 1000)
        agents = [agent_id] if agent_id else rollups.agents(connection)
        width_s = span.point_s
        sums: _Sums[int] = _Sums()
        for _, start_s, data in rollups.totals(connection, agents, query.cover(span.from_s, span.now_s, width_s)):
            sums.add(start_s // width_s * width_s, data)
        points = sums.figures((start_s // width_s * width_s, figures) for _, start_s, figures in rest.totals)
        answer.series = [(start_s * 1000, points[start_s]) for start_s in sorted(points)]
        answer.total = merged(list(points.values()))
        if by:
            splits: _Sums[str] = _Sums()
            pieces = query.cover(span.from_s, span.now_s, query.LEVELS_S[-1])
            for name in agents:
                for series, data in rollups.by_series(connection, name, pieces):
                    splits.add(query.split_name(series, by), data)
            found = splits.figures(rest.splits)
            answer.splits = sorted(found.items(), key=lambda item: (-item[1].requests, item[0]))
        return answer

    def _named_metrics(self, connection: Connection, agent_id: str, since_s: int) -> dict[MetricKey, MetricFigures]:
        found = named_metrics.read(connection, agent_id, since_s)
        with self._lock:
            self._unfolded.update(connection)
            for (start_s, metric), figures in sorted(self._unfolded.metrics.items(), key=lambda item: item[0][0]):
                if start_s >= since_s // 60 * 60 and agent_id in ("", metric.agent_id):
                    if metric not in found:
                        found[metric] = MetricFigures(metric.kind)
                    found[metric].merge(figures)
        return found


class _Rest(NamedTuple):
    """What is not folded, of one question."""

    totals: list[tuple[str, int, Figures]]  # (agent, start, figures)
    splits: list[tuple[str, Figures]]  # by name


class _Sums(Generic[K]):
    """Encoded figures of the store, added up by place."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums: dict[K, FiguresSum] = {}

    def add(self, place: K, data: bytes) -> None:
        found = self._sums.get(place)
        if found is None:
            found = self._sums[place] = FiguresSum()
        found.add(data)

    def figures(self, rest: Iterable[tuple[K, Figures]]) -> dict[K, Figures]:
        """What was added, and what is not folded; the latter stays as it is."""
        together = {place: summing.figures() for place, summing in self._sums.items()}
        for place, figures in rest:
            if place not in together:
                together[place] = Figures()
            together[place].merge(figures)
        return together
