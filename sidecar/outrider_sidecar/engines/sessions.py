"""The sticky store: what units hold, by session or, for calls without one, by user.

Always holds: a unit that makes calls keeps what it holds; one that makes none is forgotten after its idle time, and the
one that has been idle longest when there are more than `max_units`. Idle time is monotonic: a wall clock that jumps
moves nobody. What changed since the last `take_changed` is known, so that a disk may follow without looking at all of
it; that a unit is still alive is written now and then only (`stale_s`).

Deliberately not here: which variant (`engines.assign`), the disk (`edge.session_file`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from outrider.digest import blake2b

MAX_UNITS: Final = 200_000
_MAX_KEY_BYTES: Final = 96  # longer ones are hashed: callers choose the length of their ids
_STALE_PART: Final = 8.0  # of the idle time: how far what is written may lag behind the last call
_MAX_STALE_S: Final = 600.0
_DEFAULT_IDLE_S: Final = 86_400.0

Held = tuple[tuple[str, str], ...]


class Unit:
    """What one session or user holds. `owner`, `treatment` and `units` are what `held` came to at the last call, for
    whoever worked it out; None: it has to be worked out."""

    __slots__ = ("changed", "held", "key", "owner", "saved_at", "seen_at", "treatment", "units", "user_key")

    def __init__(self, key: bytes, held: Held, now: float):
        self.key = key
        self.held = held
        self.seen_at = now
        self.saved_at = now
        self.changed = False
        self.owner: Any = None
        self.treatment: Any = None
        self.units = ""
        self.user_key = b""  # of a session: the unit of its user, where that one holds something of it


class Sessions:
    """See the module. `wants_saving` is called when something has changed that a disk should know soon."""

    __slots__ = ("_by_key", "_changed", "_units", "evicted", "idle_s", "max_units", "stale_s", "wants_saving")

    def __init__(self, max_units: int = MAX_UNITS):
        self._units: OrderedDict[bytes, Unit] = OrderedDict()  # idle longest first
        self._by_key: dict[bytes, Unit] = self._units  # the same one, by the fast calls of a dict
        self._changed: list[Unit] = []
        self.max_units = max_units
        self.evicted = 0  # ever, for lack of room
        self.idle_s = _DEFAULT_IDLE_S  # the longest of all splits known
        self.stale_s = _MAX_STALE_S
        self.wants_saving: Callable[[], Any] | None = None  # None: nothing is written

    def __len__(self) -> int:
        return len(self._units)

    def __iter__(self) -> Iterator[Unit]:
        return iter(list(self._units.values()))

    def knows(self, idle_s: Iterable[float]) -> None:
        """Splits with these idle times may be in force."""
        for one in idle_s:
            self.idle_s = max(self.idle_s, one)
            self.stale_s = min(self.stale_s, one / _STALE_PART)

    # -- units -----------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> Unit | None:
        """The unit, if it holds anything; it goes last among those to be forgotten."""
        unit = self._by_key.get(key)
        if unit is not None:
            self._units.move_to_end(key)
        return unit

    def holds(self, key: bytes) -> bool:
        """Whether the unit is there."""
        return key in self._by_key

    def known(self, key: bytes, owner: Any, now: float, calm_s: float) -> Unit | None:
        """The unit, which makes a call, if `owner` has worked out what it holds and it was not idle for longer."""
        unit = self._by_key.get(key)
        if unit is None or unit.owner is not owner or now - unit.seen_at > calm_s:
            return None
        self._use(unit, now)
        return unit

    def touch(self, key: bytes, now: float) -> None:
        """The unit, if it holds anything, makes a call."""
        unit = self._by_key.get(key)
        if unit is not None:
            self._use(unit, now)

    def _use(self, unit: Unit, now: float) -> None:
        self._units.move_to_end(unit.key)
        unit.seen_at = now
        if now - unit.saved_at > self.stale_s and not unit.changed:
            self._note(unit, now)

    def put(self, key: bytes, held: Held, now: float) -> Unit:
        """What a unit holds from now on."""
        unit = self._by_key.get(key)
        if unit is None:
            unit = self._by_key[key] = Unit(key, held, now)
            self._note(unit, now)
            self._wake()
            if len(self._by_key) > self.max_units:
                self._units.popitem(last=False)
                self.evicted += 1
        else:
            self._use(unit, now)
            if unit.held != held:
                unit.held = held
                self._note(unit, now)
                self._wake()
        return unit

    def sweep(self, now: float, most: int = 2_000) -> int:
        """Forget units that have been idle for longer than any split allows, so many at a time; how many."""
        gone = 0
        units = self._units
        while units and gone < most:
            key = next(iter(units))
            if now - units[key].seen_at <= self.idle_s:
                break
            del units[key]
            gone += 1
        return gone

    # -- the disk --------------------------------------------------------------------------------------------------

    def restore(self, found: Iterable[tuple[bytes, Held, float]], now: float) -> int:
        """Take units from a disk as (key, held, seconds idle), those idle longest first; how many are kept. Units that
        have made calls meanwhile stay as they are. What is written may lag behind the last call by `stale_s`, which
        counts for the unit: rather kept too long than lost while it lives."""
        kept = 0
        live = list(self._units)
        for key, held, idle_s in found:
            since_s = max(0.0, idle_s - self.stale_s)
            if since_s > self.idle_s or key in self._units:
                continue
            unit = Unit(key, held, now)
            unit.seen_at = unit.saved_at = now - since_s
            self._units[key] = unit
            kept += 1
        for key in live:
            self._units.move_to_end(key)
        while len(self._units) > self.max_units:
            self._units.popitem(last=False)
            kept -= 1
        return kept

    def take_changed(self) -> list[Unit]:
        """The units to be written, each once; they count as written from here on."""
        changed, self._changed = self._changed, []
        for unit in changed:
            unit.changed = False
        return changed

    def put_back(self, units: Iterable[Unit]) -> None:
        """They could not be written."""
        for unit in units:
            if not unit.changed and self._units.get(unit.key) is unit:
                unit.changed = True
                self._changed.append(unit)

    @property
    def unsaved(self) -> int:
        """How many units wait to be written."""
        return len(self._changed)

    def _note(self, unit: Unit, now: float) -> None:
        unit.saved_at = now
        if self.wants_saving is not None and not unit.changed:
            unit.changed = True
            self._changed.append(unit)
            if len(self._changed) > 2 * self.max_units:  # nobody takes them: those forgotten meanwhile need not wait
                self.put_back(self.take_changed())

    def _wake(self) -> None:
        if self.wants_saving is not None:
            self.wants_saving()


def key_of(prefix: bytes, unit: bytes) -> bytes:
    """The key of a unit in the store. `prefix` names agent and kind."""
    if len(unit) > _MAX_KEY_BYTES:
        return prefix + b"#" + blake2b(unit, digest_size=32).digest()
    return prefix + unit
