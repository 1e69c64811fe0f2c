"""Figures of agents: the overview, one agent's course, and the overview as a stream.

Always holds: figures are those of the reader, over exactly the time span that the reply states; an agent that is
configured and was not called is there, with 0 requests and nothing else.

Deliberately not here: how figures are summed (`core.figures`) and read (`intake.reader`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Final

from outrider.v1 import operator_pb2
from outrider_control.api import convert, requests
from outrider_control.api.errors import Exhausted, Invalid, NotFound
from outrider_control.core import query
from outrider_control.core.figures import Figures, merged
from outrider_control.core.sample import OTHER
from outrider_control.intake.reader import Reader
from outrider_control.publish.fleet import Fleet
from outrider_control.state import satisfaction
from outrider_control.state.database import Database
from outrider_control.state.satisfaction import Ratings

WINDOWS_MS: Final = {"10s": 10_000, "1m": 60_000, "1h": 3_600_000}
SPLITS: Final = ("", "method", "variant", "endpoint", "tenant")
MAX_POINTS: Final = 2_000  # of a series
MAX_SPLITS: Final = 500
MAX_METRICS: Final = 1_000
MAX_STREAMS: Final = 200
MAX_SHARED: Final = 16  # time spans whose overview streams share
INTERVAL_MS: Final = 2_000
MIN_INTERVAL_MS: Final = 250
_SLICE: Final = 100  # agents whose quantiles are taken without a pause: some 10 ms


class FiguresApi:
    """What calls did."""

    def __init__(self, fleet: Fleet, reader: Reader, clock_ms: Callable[[], int], db: Database):
        self._db = db
        self._fleet = fleet
        self._reader = reader
        self._clock_ms = clock_ms
        self._streams = 0
        self._overviews: dict[int, tuple[int, asyncio.Task[operator_pb2.Overview]]] = {}  # by time span; oldest first

    async def overview(self, request: operator_pb2.GetOverviewRequest) -> operator_pb2.Overview:
        """All agents' figures."""
        return await self._all(requests.since_ms(request.since_ms, requests.HOUR_MS))

    async def _all(self, since_ms: int) -> operator_pb2.Overview:
        now_ms = self._clock_ms()
        from_ms = query.span(now_ms - since_ms, now_ms).from_s * 1_000
        seen = dict(await self._reader.overview(now_ms - since_ms, now_ms))
        for agent_id in self._fleet.agents:
            if agent_id not in seen:
                seen[agent_id] = Figures()
        return await self._overview(seen, from_ms, now_ms)

    async def _one(self, agent_id: str, since_ms: int) -> operator_pb2.Overview:
        now_ms = self._clock_ms()
        data = await self._reader.metrics(agent_id, now_ms - since_ms, now_ms)
        return await self._overview({agent_id: data.total}, data.from_ms, now_ms)

    async def _overview(self, seen: Mapping[str, Figures], from_ms: int, now_ms: int) -> operator_pb2.Overview:
        reply = operator_pb2.Overview(
            from_unix_ms=from_ms,
            to_unix_ms=now_ms,
            sidecars=sum([sidecar.connected for sidecar in self._fleet.sidecars()]),
        )
        only = next(iter(seen)) if len(seen) == 1 else ""
        ratings = await self._db.read(satisfaction.by_agent, from_ms, now_ms, only)
        for at, agent_id in enumerate(sorted(seen)):
            if at % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            figures = convert.figures(seen[agent_id], now_ms - from_ms)
            _rate(figures, ratings.get(agent_id))
            reply.agents.add(agent_id=convert.text(agent_id), figures=figures)
        total = merged(list(seen.values()))
        reply.total.CopyFrom(convert.figures(total, now_ms - from_ms))
        _rate(reply.total, satisfaction.together([one for name, one in ratings.items() if name in seen]))
        reply.dropped_spans = total.dropped
        return reply

    async def _shared(self, since_ms: int) -> operator_pb2.Overview:
        """The overview that all streams of one quarter of a second get: it is taken once for all of them."""
        turn = self._clock_ms() // MIN_INTERVAL_MS
        held = self._overviews.get(since_ms)
        if held is None or held[0] != turn:
            self._overviews.pop(since_ms, None)
            if len(self._overviews) >= MAX_SHARED:
                del self._overviews[next(iter(self._overviews))]
            task = asyncio.get_running_loop().create_task(self._all(since_ms))
            task.add_done_callback(_retrieve)
            held = self._overviews[since_ms] = (turn, task)
        return await asyncio.shield(held[1])  # a listener that goes takes nothing from the others

    async def metrics(self, request: operator_pb2.GetMetricsRequest) -> operator_pb2.Metrics:
        """One agent's figures and their course."""
        agent_id = requests.name(request.agent_id, "agent_id")
        since_ms = requests.since_ms(request.since_ms, requests.HOUR_MS)
        window_ms = WINDOWS_MS.get(request.window, 0)
        if request.window and not window_ms:
            raise Invalid("window", f"{request.window[:20]!r} is not one of {', '.join(WINDOWS_MS)}")
        if window_ms and since_ms > window_ms * MAX_POINTS:
            reason = f"{request.window} over so long a time are more than {MAX_POINTS:,} points: take a larger one"
            raise Invalid("window", reason)
        if request.by not in SPLITS:
            raise Invalid("by", f"{request.by[:20]!r} is not one of {', '.join(SPLITS[1:])}")
        now_ms = self._clock_ms()
        data = await self._reader.metrics(agent_id, now_ms - since_ms, now_ms, request.window, request.by)
        named = await self._reader.named_metrics(agent_id, now_ms - since_ms, now_ms) if agent_id else []
        if agent_id and agent_id not in self._fleet.agents and not (data.total.requests or data.series or named):
            raise NotFound(f"agent {agent_id!r} is not known, and nobody called it: see `outrider agents list`")
        window_ms = WINDOWS_MS[data.window]
        reply = operator_pb2.Metrics(
            agent_id=agent_id,
            figures=convert.figures(data.total, now_ms - data.from_ms),
            window=data.window,
            from_unix_ms=data.from_ms,
            to_unix_ms=now_ms,
            metrics=[convert.metric(key, figures) for key, figures in named[:MAX_METRICS]],
        )
        rated = await self._db.read(satisfaction.by_agent, data.from_ms, now_ms, agent_id)
        _rate(reply.figures, satisfaction.together(rated.values()))
        by_window = await self._db.read(satisfaction.by_window, data.from_ms, now_ms, window_ms, agent_id)
        for at, (start_ms, figures) in enumerate(data.series):
            if at % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            point_ms = max(1_000, min(start_ms + window_ms, now_ms) - max(start_ms, data.from_ms))
            point = reply.series.add(at_unix_ms=start_ms, figures=convert.figures(figures, point_ms))
            _rate(point.figures, by_window.get(start_ms))
        by_variant = request.by == "variant"
        by_text = await self._db.read(satisfaction.by_text, data.from_ms, now_ms, agent_id) if by_variant else {}
        for name, figures in bounded(data.splits):
            split = reply.splits.add(name=convert.text(name), figures=convert.figures(figures, now_ms - data.from_ms))
            _rate(split.figures, by_text.get(name))
        return reply

    async def stream(self, request: operator_pb2.StreamMetricsRequest) -> AsyncGenerator[operator_pb2.Overview, None]:
        """Overviews, for as long as the caller listens."""
        interval_ms = requests.number(request.interval_ms, 0, requests.HOUR_MS, "interval_ms") or INTERVAL_MS
        requests.number(interval_ms, MIN_INTERVAL_MS, requests.HOUR_MS, "interval_ms")
        since_ms = requests.since_ms(request.since_ms, 60_000)
        agent_id = requests.name(request.agent_id, "agent_id")
        if self._streams >= MAX_STREAMS:
            raise Exhausted(f"{MAX_STREAMS} streams of metrics are open: close one, or ask GetOverview")
        self._streams += 1
        try:
            while True:
                yield await (self._one(agent_id, since_ms) if agent_id else self._shared(since_ms))
                await asyncio.sleep(interval_ms / 1_000)
        finally:
            self._streams -= 1
            if not self._streams:
                self._overviews.clear()


def bounded(splits: Sequence[tuple[str, Figures]]) -> list[tuple[str, Figures]]:
    """The splits, past `MAX_SPLITS` of them as one."""
    if len(splits) <= MAX_SPLITS:
        return list(splits)
    rest = merged([figures for _, figures in splits[MAX_SPLITS - 1 :]])
    kept = [(name, figures) for name, figures in splits[: MAX_SPLITS - 1] if name != OTHER]
    rest = merged([rest, *(figures for name, figures in splits[: MAX_SPLITS - 1] if name == OTHER)])
    return [*kept, (OTHER, rest)]


def _retrieve(task: asyncio.Task[operator_pb2.Overview]) -> None:
    """An error that nobody waited for is nobody's."""
    if not task.cancelled():
        task.exception()


def _rate(figures: operator_pb2.Figures, ratings: Ratings | None) -> None:
    """How content callers were: said by who rated, and absent where nobody did."""
    if ratings is not None and ratings.mean is not None:
        figures.satisfaction = ratings.mean
