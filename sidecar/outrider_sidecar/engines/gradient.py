"""The limit that adapts: Gradient2 (Netflix concurrency-limits) on the time to the first chunk.

    gradient = 1.5 * long / short, within 0.5 and 1
    limit   := 0.8 * limit + 0.2 * (gradient * limit + 4), within floor and ceiling

`short` is the mean of a window of one route's calls (ten, or a quarter of the limit: the calls that were under way at a
change tell nothing about it), `long` the moving average over 600 calls in such windows; where long is more than twice
short it falls by a twentieth. With fewer than half the limit in flight nothing is said about the limit. Times are kept
by route (method path), as routes differ in time; the limit is one, as they share an agent.

An agent that is busy throughout would pass its own queue off as its usual time, and the limit would creep up to the
ceiling. So windows that fill while it is busy do not raise `long`; instead, after BUSY_CALLS of them, the limit is
halved until calls that began since have been seen: their time is the usual one from then on, shorter or longer.

Always holds: floor <= limit <= ceiling, memory is bounded by MAX_ROUTES, and a time that is no time changes nothing.

Deliberately not here: who waits for the limit (`lanes`), and errors: they are no sample.
"""

from __future__ import annotations

from math import inf
from typing import Final

MAX_ROUTES: Final = 64  # the others share one
BUSY_CALLS: Final = 600  # and at least four times the limit
_WINDOW: Final = 10
_LONG_WEIGHT: Final = 2.0 / (600 / _WINDOW + 1)
_WARM_UP: Final = 10  # windows over which the first long average is a plain mean
_INITIAL: Final = 20
_TOLERANCE: Final = 1.5
_SMOOTHING: Final = 0.2
_QUEUE: Final = 4.0  # calls by which the limit may be above what the agent serves at once
_MEASURED: Final = 20  # calls of which the usual time is taken at the halved limit
_MEASURED_BY_ROUTE: Final = 3  # fewer of a route say nothing about it

# What happens at the halved limit, in this order.
_OFF: Final = 0
_DRAINING: Final = 1  # until no more are in flight than it allows
_SETTLING: Final = 2  # until those that began before that have been heard of
_MEASURING: Final = 3


class _Route:
    """The times of one route."""

    __slots__ = ("count", "long_s", "total_s", "windows")

    def __init__(self) -> None:
        self.count = 0  # of the window that runs
        self.total_s = 0.0
        self.windows = 0
        self.long_s = 0.0

    def begin(self) -> None:
        """A new window."""
        self.count = 0
        self.total_s = 0.0

    def learn(self, short_s: float, busy: bool) -> None:
        """Move the long average by a window's mean."""
        self.windows += 1
        if self.windows <= _WARM_UP:
            self.long_s += (short_s - self.long_s) / self.windows
        elif not busy or short_s < self.long_s:
            self.long_s += (short_s - self.long_s) * _LONG_WEIGHT
        if self.long_s > 2.0 * short_s:
            self.long_s *= 0.95


class Gradient2:
    """See the module. `limit` is how many calls may be in flight."""

    __slots__ = ("_busy", "_ceiling", "_exact", "_floor", "_left", "_others", "_phase", "_routes", "limit")

    def __init__(self, floor: int, ceiling: int):
        self._routes: dict[bytes, _Route] = {}
        self._others = _Route()
        self._exact = float(_INITIAL)
        self._busy = 0  # calls since the agent was not
        self._phase = _OFF
        self._left = 0  # calls until the phase is over
        self._floor = 1
        self._ceiling = 1
        self.limit = 0
        self.configure(floor, ceiling)

    def configure(self, floor: int, ceiling: int) -> None:
        """Take new bounds; what was learnt stays. A floor above the ceiling gives way to it."""
        self._ceiling = max(1, ceiling)
        self._floor = max(1, min(floor, self._ceiling))
        self._exact = max(float(self._floor), min(self._exact, float(self._ceiling)))
        self._set(self._allowed())

    def sample(self, route: bytes, first_chunk_s: float, in_flight: int) -> bool:
        """A call's first chunk has come after so long, with so many in flight (it among them); True: another limit."""
        if not 0.0 < first_chunk_s < inf:
            return False
        times = self._times(route)
        if self._phase != _OFF:
            return self._measure(times, first_chunk_s, in_flight)
        busy = in_flight >= self._exact / 2.0
        self._busy = self._busy + 1 if busy else 0
        times.total_s += first_chunk_s
        times.count += 1
        if times.count >= max(_WINDOW, self.limit // 4):
            short_s = times.total_s / times.count
            times.begin()
            times.learn(short_s, busy)
            if busy:
                self._step(times.long_s / short_s)
        if self._busy >= max(BUSY_CALLS, 4 * self.limit):
            self._busy = 0
            self._phase = _DRAINING
        return self._set(self._allowed())

    def _times(self, route: bytes) -> _Route:
        times = self._routes.get(route)
        if times is None:
            if len(self._routes) >= MAX_ROUTES - 1:
                return self._others
            times = self._routes[route] = _Route()
        return times

    def _step(self, long_by_short: float) -> None:
        gradient = max(0.5, min(_TOLERANCE * long_by_short, 1.0))
        wanted = self._exact * gradient + _QUEUE
        exact = self._exact * (1.0 - _SMOOTHING) + wanted * _SMOOTHING
        self._exact = max(float(self._floor), min(exact, float(self._ceiling)))

    def _measure(self, times: _Route, first_chunk_s: float, in_flight: int) -> bool:
        """A sample at the halved limit."""
        if self._phase == _DRAINING:
            if in_flight <= self.limit:
                self._phase = _SETTLING
                self._left = self.limit
            return False
        self._left -= 1
        if self._phase == _MEASURING:
            times.count += 1
            times.total_s += first_chunk_s
        if self._left > 0:
            return False
        if self._phase == _SETTLING:
            self._phase = _MEASURING
            self._left = _MEASURED
            for known in (*self._routes.values(), self._others):
                known.begin()
            return False
        for known in (*self._routes.values(), self._others):
            if known.count >= _MEASURED_BY_ROUTE:
                known.long_s = known.total_s / known.count
                known.windows = max(known.windows, _WARM_UP)  # a better average than the first windows' mean
            known.begin()
        self._phase = _OFF
        return self._set(self._allowed())

    def _allowed(self) -> int:
        exact = int(self._exact)
        return exact if self._phase == _OFF else max(self._floor, exact // 2)

    def _set(self, limit: int) -> bool:
        changed = limit != self.limit
        self.limit = limit
        return changed
