"""Spans that were sent twice, of exporters that do not number their batches.

Always holds: memory is bounded by two generations of `capacity / 2` ids; the newest `capacity / 2` ids at least are
known. An id is known only once its batch is in the store: a batch that could not be committed may come again.
Deliberately not here: numbered batches (`ledger`: exact, by source and sequence).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

CAPACITY: Final = 200_000


class Window:
    """A bounded memory of span ids."""

    __slots__ = ("_before", "_half", "_now", "_pending")

    def __init__(self, capacity: int = CAPACITY):
        self._half = max(1, capacity // 2)
        self._now: set[bytes] = set()
        self._before: set[bytes] = set()
        self._pending: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._now) + len(self._before)

    def __contains__(self, key: bytes) -> bool:
        return key in self._now or key in self._before

    def is_pending(self, keys: Iterable[bytes]) -> bool:
        """Whether a batch that is on its way to the store has one of `keys`: whether it is new is not known yet."""
        return bool(self._pending) and not self._pending.isdisjoint(keys)

    def claim(self, keys: set[bytes]) -> None:
        """These are in a batch on its way to the store; `settle` or `release` follows."""
        self._pending |= keys

    def release(self, keys: set[bytes]) -> None:
        """The batch was not taken."""
        self._pending -= keys

    def settle(self, keys: set[bytes]) -> None:
        """The batch is in the store."""
        self._pending -= keys
        for key in keys:
            if len(self._now) >= self._half:
                self._before, self._now = self._now, set()
            self._now.add(key)
