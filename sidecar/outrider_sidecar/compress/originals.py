"""Originals of blocks that were compressed with loss, for as long as somebody may want them.

Always holds: an original is given to the tenant alone whose data it is; what is kept is bounded in bytes and time, and
what was used last goes last.

Deliberately not here: handles' form (`block`), who asks for originals (`edge.compress_service`, filter `compress`).
"""

from __future__ import annotations

from collections import OrderedDict

from outrider_sidecar.compress.block import size

_COST = 200  # bytes of an entry, about


class Originals:
    """One agent's. `now` is monotonic seconds."""

    __slots__ = ("_bytes", "_max_bytes", "_rows", "_ttl_s")

    def __init__(self, max_bytes: int, ttl_s: float):
        self._rows: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()  # (tenant, handle) -> text, until
        self._bytes = 0
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def configure(self, max_bytes: int, ttl_s: float) -> None:
        """Take other bounds; those for bytes hold at once, the time for what is kept from here on."""
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._shrink()

    def keep(self, tenant: str, handle: str, text: str, now: float) -> None:
        """Keep an original, or keep it longer."""
        key = (tenant, handle)
        old = self._rows.pop(key, None)
        if old is not None:
            self._bytes -= _COST + size(old[0])
        self._rows[key] = (text, now + self._ttl_s)
        self._bytes += _COST + size(text)
        self._shrink()

    def get(self, tenant: str, handle: str, now: float) -> str | None:
        """The original, while it is kept."""
        found = self._rows.get((tenant, handle))
        if found is None or found[1] <= now:
            return None
        self._rows.move_to_end((tenant, handle))
        return found[0]

    def expire(self, now: float, at_most: int = 100) -> None:
        """Let go of some whose time is over."""
        while self._rows and at_most:
            key, (text, until) = next(iter(self._rows.items()))
            if until > now:
                return
            del self._rows[key]
            self._bytes -= _COST + size(text)
            at_most -= 1

    def _shrink(self) -> None:
        while self._bytes > self._max_bytes and self._rows:
            _, (text, _) = self._rows.popitem(last=False)
            self._bytes -= _COST + size(text)
