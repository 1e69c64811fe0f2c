"""Who writes a workload's spec.replicas beside us, as far as reading it again and again can tell.

Always holds: what somebody else writes is taken as it is and said; a write of ours that was undone is tried once more,
and from the second time on nothing is written for a while, twice as long each time. So two scalers never fight.

Pure. Deliberately not here: who it is (an HPA, KEDA, a person): the API server says so only to those who may list them.
"""

from __future__ import annotations

_MAX_HOLD_MS = 3_600_000
_FIGHT = 2  # writes of ours undone in a row, from which on it is a fight


class ReplicaWriters:
    """Of one workload."""

    __slots__ = ("_expected", "_hold_ms", "_hold_until_ms", "_tried", "_undone", "_wrote_ms", "_yield_ms", "note")

    def __init__(self, yield_s: int):
        self._yield_ms = yield_s * 1_000
        self._expected: int | None = None  # what it was when it was last read or written
        self._tried: int | None = None  # a write whose outcome is not known yet
        self._wrote_ms: int | None = None  # our last write, where nobody has written since and it has not stood yet
        self._undone = 0
        self._hold_ms = 0
        self._hold_until_ms = 0
        self.note = ""  # what others did last, for people

    def saw(self, replicas: int, now_ms: int) -> None:
        """It was read."""
        expected, tried = self._expected, self._tried
        self._expected, self._tried = replicas, None
        stood = self._wrote_ms is not None and now_ms - self._wrote_ms > self._yield_ms
        if expected is None or replicas in (expected, tried):
            if stood:
                self._undone, self._wrote_ms = 0, None
            return
        self.note = (
            f"spec.replicas went from {expected} to {replicas} by another hand (an HPA, KEDA, kubectl scale, a deploy)"
        )
        if self._wrote_ms is None:
            return
        self._undone = 0 if stood else self._undone + 1
        self._wrote_ms = None
        if self._undone >= _FIGHT:
            self._hold_ms = min(self._yield_ms << min(self._undone - _FIGHT, 12), max(_MAX_HOLD_MS, self._yield_ms))
            self._hold_until_ms = now_ms + self._hold_ms

    def trying(self, replicas: int) -> None:
        """A write is on its way: it counts as ours whether or not its answer arrives."""
        self._tried = replicas

    def wrote(self, replicas: int, now_ms: int) -> None:
        """It was written, and the answer said so."""
        self._expected, self._tried = replicas, None
        self._wrote_ms = now_ms

    def refusal(self, now_ms: int) -> str:
        """Why nothing may be written now; empty: it may."""
        left_ms = self._hold_until_ms - now_ms
        if not 0 < left_ms <= self._hold_ms:
            return ""
        return (
            f"{self.note}, {self._undone} times after a change from here: two scalers are at work. Nothing is set from "
            f"here for {-(-left_ms // 1_000)} s more: take the other one away, or this agent out of `deployments`"
        )
