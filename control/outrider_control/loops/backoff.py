"""How long to leave alone what has failed: twice as long each time, with jitter, and from the beginning after a calm.

Pure: the time and the randomness are arguments.
"""

from __future__ import annotations

from random import Random


class Backoff:
    """Of one thing. Until `until_ms` it is left alone; `failures` counts those in a row."""

    __slots__ = ("_base_ms", "_calm_ms", "_max_ms", "_rng", "failures", "until_ms")

    def __init__(self, rng: Random, base_ms: int = 1_000, max_ms: int = 60_000, calm_ms: int = 60_000):
        self._rng = rng
        self._base_ms = base_ms
        self._max_ms = max_ms
        self._calm_ms = calm_ms
        self.failures = 0
        self.until_ms = 0

    def failed(self, now_ms: int) -> None:
        """Wait from now on: 1, 2, 4, ... times the base, each less up to a fifth."""
        wait_ms = min(self._base_ms << min(self.failures, 30), self._max_ms)
        self.failures += 1
        self.until_ms = now_ms + max(self._base_ms, round(wait_ms * self._rng.uniform(0.8, 1)))

    def waits(self, now_ms: int) -> bool:
        return now_ms < self.until_ms

    def worked(self, now_ms: int) -> None:
        """It works: after a while of that a failure counts as the first one again."""
        if self.failures and now_ms - self.until_ms >= self._calm_ms:
            self.failures = 0
