"""What an assignment comes to: plain data between those who make it (`engines.assign`) and those who follow it."""

from __future__ import annotations

from outrider_sidecar.core.treatment import Arm, Treatment

Held = tuple[tuple[str, str], ...]  # (split, variant) in the order of the splits


class Moved:
    """One exception: a unit does not get the variant that is its own."""

    __slots__ = ("reason", "split", "to", "variant")

    def __init__(self, split: str, reason: str, variant: str, to: str):
        self.split = split
        self.reason = reason
        self.variant = variant
        self.to = to  # empty: no variant


class Decision:
    """What became of one call. `held` is to be kept for its unit; `fresh` are the arms given for the first time."""

    __slots__ = ("fresh", "held", "missing", "moved", "treatment", "units")

    def __init__(
        self,
        treatment: Treatment | None,
        units: str,
        held: Held,
        fresh: list[Arm] | None,
        moved: list[Moved] | None,
        missing: str,
    ):
        self.treatment = treatment
        self.units = units
        self.held = held
        self.fresh = fresh
        self.moved = moved
        self.missing = missing  # the kind of unit that the call does not name; empty: none is missing


class Ready:
    """What units that fall in one range of a split come to, where that one split is all there is."""

    __slots__ = ("arm", "held", "treatment")

    def __init__(self, arm: Arm, held: Held, treatment: Treatment):
        self.arm = arm
        self.held = held
        self.treatment = treatment
