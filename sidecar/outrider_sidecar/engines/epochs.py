"""Invalidation epochs: numbers that are part of every cache key, so that raising one orphans all it covers at once.

Always holds: a bump is O(1) and raises the key part of everything its scope covers; values only ever rise, here and
across merges (`merge` takes the larger of each, in any order, any number of times), so erased data is not brought
back by an older copy of this state; the number of counters is bounded. A value is a hybrid logical clock (Kulkarni et
al. 2014): milliseconds of the bump's wall clock, or one more than the last value where that is larger.

Floor rule: when one counter too many would be kept, all are dropped and the floor is raised instead, which orphans
everything once and costs nothing for ever after.

Deliberately not here: freeing the memory of what was orphaned (engines `cache`), writing this state to disk. Where
the state cannot be read back, start with `floor=int(now * 1000)`: nothing stored before can then be served.
"""

from __future__ import annotations

import re
from typing import Any, Final

_MAX_VALUE: Final = (1 << 63) - 1
_MAX_NAME_CHARS: Final = 1_024
_MEMO_PARTS: Final = 1_024

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")

Scope = tuple[str, str, str]  # agent, tenant, tag; an empty one covers all


class Epochs:
    """The counters of one process. `agent`, `tenant` and `tag` name what is covered; empty covers all of them."""

    __slots__ = ("_clock", "_counters", "_floor", "_max_counters", "_memo", "changes")

    def __init__(self, max_counters: int = 4_096, floor: int = 0):
        self._counters: dict[Scope, int] = {}
        self._floor = floor
        self._clock = floor  # the largest value seen
        self._max_counters = max_counters
        self._memo: dict[tuple[str, str, tuple[str, ...]], bytes] = {}
        self.changes = 0  # of any counter: while it stands still, so does every `part`

    def __len__(self) -> int:
        return len(self._counters)

    @property
    def version(self) -> int:
        """The largest value seen: unchanged means that nothing was bumped or merged in."""
        return self._clock

    def bump(self, now: float, agent: str = "", tenant: str = "", tag: str = "") -> int:
        """Orphan what the scope covers; the scope's new value. `now` is unix seconds."""
        if not all(map(_is_name, (agent, tenant, tag))):
            raise ValueError(f"agent, tenant and tag are Unicode of at most {_MAX_NAME_CHARS} characters")
        value = self._clock = max(self._clock + 1, int(now * 1000))
        self._memo = {}
        self.changes += 1
        scope = (agent, tenant, tag)
        if scope == ("", "", ""):
            self._floor = value
        else:
            self._counters[scope] = value
            self._bound()
        return value

    def part(self, agent: str, tenant: str, tags: tuple[str, ...] = ()) -> bytes:
        """What the key of a request of this agent, tenant and these tags has to contain."""
        memo = self._memo
        asked = (agent, tenant, tags)
        part = memo.get(asked)
        if part is None:
            part = self._part(agent, tenant, tags)
            if len(memo) < _MEMO_PARTS:
                memo[asked] = part
        return part

    def _part(self, agent: str, tenant: str, tags: tuple[str, ...]) -> bytes:
        values = [self._floor]
        if self._counters:
            get = self._counters.get
            for tag in ("", *sorted(set(tags))):
                scopes = ((agent, tenant, tag), (agent, "", tag), ("", tenant, tag), ("", "", tag))
                values += [get(scope, 0) for scope in scopes]
        while len(values) > 1 and values[-1] == 0:  # the same before and after somebody else's first bump
            values.pop()
        return b"".join([value.to_bytes(8, "big") for value in values])

    def export(self) -> dict[str, Any]:
        """This state as plain data, for snapshots and for `merge` elsewhere."""
        return {"floor": self._floor, "counters": [[*scope, value] for scope, value in self._counters.items()]}

    def merge(self, exported: Any) -> bool:
        """Take over whatever is larger in another's state; whether anything was.

        ValueError, and no change, when it is malformed.
        """
        floor, counters = _checked(exported)
        changed = floor > self._floor
        self._floor = max(self._floor, floor)
        for scope, value in counters.items():
            if value > self._counters.get(scope, 0):
                self._counters[scope] = value
                changed = True
        if changed:
            self._clock = max(self._clock, self._floor, *self._counters.values(), 0)
            self._memo = {}
            self.changes += 1
            self._bound()
        return changed

    def _bound(self) -> None:
        if len(self._counters) > self._max_counters:
            self._counters.clear()
            self._clock += 1
            self._floor = self._clock


def _checked(exported: Any) -> tuple[int, dict[Scope, int]]:
    try:
        floor = _value(exported["floor"])
        counters: dict[Scope, int] = {}
        for agent, tenant, tag, value in exported["counters"]:
            for name in (agent, tenant, tag):
                if not _is_name(name):
                    raise ValueError(f"{name!r} is no name")
            counters[agent, tenant, tag] = _value(value)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"epochs are malformed: {error}") from error
    return floor, counters


def _is_name(name: Any) -> bool:
    # A lone surrogate could be bumped but not written to disk.
    return isinstance(name, str) and len(name) <= _MAX_NAME_CHARS and not _SURROGATE.search(name)


def _value(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_VALUE:
        raise ValueError(f"{value!r} is no epoch")
    return value
