"""How many series there may be: names come from callers, and must not fill the memory or the store.

At most so many agents; further ones are counted under "(other)". Per agent at most so many series; what comes past
that loses its endpoint, then its tenant, its variant and its method to "(other)", as far as a quarter more series have
room for it. A name's place is free again once nothing was heard of it for a day.

Always holds: every key gets a place; the places do not depend on what else is asked in between (while they are not
free again); memory is bounded. Names are at most 256 characters, printable or not, without NUL (no store takes it).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from outrider_control.core.sample import OTHER, SeriesKey

MAX_AGENTS = 1_000
MAX_SERIES = 200
MAX_NAME = 256  # characters
IDLE_MS = 86_400_000
MAX_KNOWN = 50_000  # keys as they come, with their places
_COLLAPSE = ("endpoint", "tenant", "variant")
_SWEEP_MS = 60_000  # between two searches for what is idle


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many."""

    agents: int = MAX_AGENTS
    series: int = MAX_SERIES  # per agent


class _Agent:
    __slots__ = ("collapsed", "seen_ms", "series", "swept_ms")

    def __init__(self, now_ms: int) -> None:
        self.series: dict[SeriesKey, int] = {}  # with when it was last seen
        self.collapsed: dict[SeriesKey, int] = {}
        self.seen_ms = now_ms
        self.swept_ms = now_ms


class Cardinality:
    """Gives keys their series."""

    __slots__ = ("_agents", "_bounds", "_known", "_swept_ms", "overflowed")

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._agents: dict[str, _Agent] = {}
        self._known: dict[SeriesKey, tuple[SeriesKey, bool, int]] = {}  # series, overflow, looked up when
        self._swept_ms = 0
        self.overflowed = 0  # keys that were asked for and got a series of the overflow

    @property
    def series(self) -> int:
        """How many places are taken."""
        return sum(len(agent.series) + len(agent.collapsed) for agent in self._agents.values())

    @property
    def agents(self) -> int:
        return len(self._agents)

    def load(self, keys: Iterable[tuple[SeriesKey, int]]) -> None:
        """Takes places up again: series that are in the store, and when each was last seen (unix ms)."""
        for key, seen_ms in sorted(keys, key=lambda pair: -pair[1]):
            self.place(key, seen_ms)
        self.overflowed = 0

    def place(self, key: SeriesKey, now_ms: int) -> SeriesKey:
        """The series a key is counted under."""
        known = self._known.get(key)
        if known is None or now_ms - known[2] > _SWEEP_MS:
            known = self._look_up(key, now_ms)
        if known[1]:
            self.overflowed += 1
        return known[0]

    def _look_up(self, key: SeriesKey, now_ms: int) -> tuple[SeriesKey, bool, int]:
        series = self._find(cleaned(key), now_ms)
        # A series with "(other)" in it may itself be asked for again: by a fold, after a restart.
        known = (series, OTHER in series, now_ms)
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = known
        return known

    def _find(self, key: SeriesKey, now_ms: int) -> SeriesKey:
        agent = self._agent(key.agent_id, now_ms)
        if agent is None:
            key = key._replace(agent_id=OTHER)
            agent = self._agents.get(OTHER)
            if agent is None:
                agent = self._agents[OTHER] = _Agent(now_ms)
        agent.seen_ms = max(agent.seen_ms, now_ms)
        return self._series(agent, key, now_ms)

    def _agent(self, agent_id: str, now_ms: int) -> _Agent | None:
        found = self._agents.get(agent_id)
        if found is None:
            if len(self._agents) - (OTHER in self._agents) >= self._bounds.agents and agent_id != OTHER:
                self._sweep_agents(now_ms)
                if len(self._agents) - (OTHER in self._agents) >= self._bounds.agents:
                    return None
            found = self._agents[agent_id] = _Agent(now_ms)
        return found

    def _series(self, agent: _Agent, key: SeriesKey, now_ms: int) -> SeriesKey:
        bound = self._bounds.series
        if OTHER not in key[1:]:
            if key not in agent.series and len(agent.series) >= bound:
                self._sweep_series(agent, now_ms)
            if key in agent.series or len(agent.series) < bound:
                agent.series[key] = max(now_ms, agent.series.get(key, 0))
                return key
        # Each step that loses more may fill more of the room, so that the first does not take all of it.
        room = max(bound // 4, len(_COLLAPSE) + 1)
        for step, name in enumerate(_COLLAPSE):
            key = key._replace(**{name: OTHER}) if getattr(key, name) else key
            if key in agent.collapsed or len(agent.collapsed) < (step + 1) * room // (len(_COLLAPSE) + 1):
                agent.collapsed[key] = max(now_ms, agent.collapsed.get(key, 0))
                return key
        key = SeriesKey(key.agent_id, OTHER, OTHER, OTHER, OTHER)
        agent.collapsed[key] = max(now_ms, agent.collapsed.get(key, 0))
        return key

    def _sweep_agents(self, now_ms: int) -> None:
        if now_ms - self._swept_ms < _SWEEP_MS:
            return
        self._swept_ms = now_ms
        for agent_id in [name for name, agent in self._agents.items() if now_ms - agent.seen_ms > IDLE_MS]:
            del self._agents[agent_id]
        self._known.clear()

    def _sweep_series(self, agent: _Agent, now_ms: int) -> None:
        if now_ms - agent.swept_ms < _SWEEP_MS:
            return
        agent.swept_ms = now_ms
        for places in (agent.series, agent.collapsed):
            for key in [key for key, seen_ms in places.items() if now_ms - seen_ms > IDLE_MS]:
                del places[key]
        self._known.clear()


def cleaned(key: SeriesKey) -> SeriesKey:
    """The same key with names that every store and every encoding takes."""
    for name in key:
        if len(name) > MAX_NAME or not name.isprintable():
            return SeriesKey(*(clean(name) for name in key))
    return key


def clean(name: str, bound: int = MAX_NAME) -> str:
    """A name that every store takes: no NUL, no half of a surrogate pair, cut to a bound."""
    return name[:bound].replace("\0", "").encode("utf-8", "replace").decode("utf-8")
