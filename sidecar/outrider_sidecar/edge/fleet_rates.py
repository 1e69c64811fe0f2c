"""Between the link to the control plane and the shares of limits that hold over the fleet.

Always holds: a share that has come is in force when `take` returns; nothing here waits, and no call waits for it.
Deliberately not here: the shares (`engines.shares`), messages (`edge.mesh_codec`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from outrider_sidecar.engines.shares import Granted, Shares, Use


class FleetRates:
    """One a process."""

    def __init__(self, shares: Shares, clock: Callable[[], float]):
        self.shares = shares
        self.grants = 0  # messages taken
        self._clock = clock

    def uses(self) -> list[Use]:
        """What the next periodic report says."""
        now = self._clock()
        self.shares.expire(now)
        return self.shares.uses(now)

    def take(self, grants: Iterable[Granted], new_share: float, hash_key: bytes) -> None:
        """Shares from the control plane."""
        self.grants += 1
        self.shares.take(grants, new_share, hash_key, self._clock())

    def state(self) -> dict[str, Any]:
        """As plain data, for people."""
        return {"limits": len(self.shares), "new_share": self.shares.new_share, "grants": self.grants}

    def give_back(self) -> list[Use]:
        """What the last report of this process says."""
        return self.shares.give_back()
