"""The ladder of degradation: which steps are taken at the pressure there is.

Always holds: steps are taken in the policy's order and taken back in the opposite one, one at a time, each after the
pressure has held (or been gone) for its time anew; between `leave` and `enter` nothing changes. Where the policy turns
degradation off no step is taken.

Deliberately not here: what pressure is (the caller measures it) and what a step does (the filters do it).
"""

from __future__ import annotations

from math import isnan
from typing import Final

from outrider.policy import Degradation

_NEVER: Final = -1.0


class Ladder:
    """See the module. `level` is how many steps are taken, `pressure` what was observed last."""

    __slots__ = (
        "_above_since",
        "_below_since",
        "_enter_s",
        "_leave",
        "_leave_s",
        "_policy",
        "_taken",
        "level",
        "pressure",
    )

    def __init__(self, policy: Degradation):
        self.level = 0
        self.pressure = 0.0
        self._above_since = _NEVER
        self._below_since = _NEVER
        self._taken: frozenset[str] = frozenset()
        self.configure(policy)

    def configure(self, policy: Degradation) -> None:
        """Take a policy: as many steps stay taken as it has, none where it is off."""
        self._policy = policy
        self._enter_s = policy.enter_ms / 1e3
        self._leave_s = policy.leave_ms / 1e3
        self._leave = min(policy.leave, policy.enter)  # else a pressure between them would be both
        if not policy.enabled:
            self._above_since = self._below_since = _NEVER
        self._set(min(self.level, len(policy.steps)) if policy.enabled else 0)

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that are taken, the first one first."""
        return self._policy.steps[: self.level]

    def takes(self, name: str) -> bool:
        """Whether a step of `policy.DEGRADATIONS` is taken."""
        return name in self._taken

    def observe(self, pressure: float, now: float) -> bool:
        """Take note of the pressure at a moment; True if a step was taken or taken back. NaN says nothing."""
        if isnan(pressure):
            return False
        self.pressure = pressure
        policy = self._policy
        if not policy.enabled:
            return False
        if pressure >= policy.enter:
            self._below_since = _NEVER
            if self._above_since == _NEVER or now < self._above_since:
                self._above_since = now
            if now - self._above_since < self._enter_s or self.level >= len(policy.steps):
                return False
            self._above_since = now
            self._set(self.level + 1)
            return True
        self._above_since = _NEVER
        if pressure >= self._leave:
            self._below_since = _NEVER
            return False
        if self._below_since == _NEVER or now < self._below_since:
            self._below_since = now
        if now - self._below_since < self._leave_s or not self.level:
            return False
        self._below_since = now
        self._set(self.level - 1)
        return True

    def _set(self, level: int) -> None:
        self.level = level
        self._taken = frozenset(self._policy.steps[:level])
