"""How many calls at once one instance serves: as it is declared, else learnt from what agents do under load.

Always holds: the policy goes before endpoints and ingresses, these before what is learnt. What is learnt is at least
1, is only learnt from instances that are full, and errs to the low side: too many instances, not too much load.

Learning is the bandwidth-delay product. Below its capacity an instance needs the same time whatever runs at once
(Little: time = calls at once / calls per second); above it calls per second stand still and the time grows. So
capacity = most calls per second x shortest time, once the time is `INFLATED` while throughput is at its `PLATEAU`.
Where nothing is learnt yet and the mesh itself holds calls back (they wait in the sidecars' queues all the time) it is
what runs at once; that is never lowered by more waiting, for where a sidecar's own limit holds them back more
instances run fewer calls each, and one would be added after the other. An agent that was full from the first look on
without calls that wait teaches nothing until its load falls once.

Deliberately not here: service times that drift within the hour. The shortest time and the highest throughput are
forgotten slowly (`FORGET_PER_TICK`), and longer calls alone lower throughput below its plateau and teach nothing.
"""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from outrider.policy import Scaling
from outrider_control.loops.scale.types import Seen, State

SMOOTHING = 0.15  # of one look: with one a second the last ten seconds count
MIN_LOOKS = 20  # before anything is believed
HELD_LOOKS = 10  # with calls waiting, one after the other
INFLATED = 1.5  # times the shortest time
PLATEAU = 0.9  # of the highest throughput
STEP = 0.1  # how far one look moves what is learnt
FORGET_PER_TICK = 0.0001  # a third in an hour of seconds


class Learning(NamedTuple):
    """What the learner keeps, as `State.learning` holds it; concurrency and throughput are of one instance."""

    looks: float = 0.0
    concurrency: float = 0.0  # smoothed
    per_s: float = 0.0  # smoothed
    shortest_s: float = 0.0  # 0: not known
    most_per_s: float = 0.0
    held_looks: float = 0.0  # with calls waiting, up to now


def known(seen: Seen, state: State, scaling: Scaling) -> tuple[float | None, str]:
    """Calls at once of one instance and where that is from: "policy", "endpoints", "learnt"; None and "": not known."""
    if scaling.capacity > 0:
        return float(scaling.capacity), "policy"
    if seen.capacity is not None and isfinite(seen.capacity) and seen.capacity > 0:
        return seen.capacity, seen.capacity_source or "endpoints"
    if state.learnt_capacity is not None:
        return state.learnt_capacity, "learnt"
    return None, ""


def learn(seen: Seen, state: State) -> tuple[float | None, tuple[float, ...]]:
    """What is learnt and what the learner keeps, after one more look. `seen` holds usable figures of calls."""
    rate = seen.finished_per_s
    if rate is None or not isfinite(rate) or rate < 0.0 or seen.ready < 1 or seen.starting or not seen.in_flight:
        return state.learnt_capacity, state.learning  # instances that come or go share the load unevenly
    old = Learning(*state.learning)
    share = max(SMOOTHING, 1.0 / (old.looks + 1.0))
    looks = min(old.looks + 1.0, float(MIN_LOOKS))
    concurrency = old.concurrency + share * (seen.in_flight / seen.ready - old.concurrency)
    per_s = old.per_s + share * (rate / seen.ready - old.per_s)
    held = old.held_looks + 1.0 if seen.queued else 0.0
    new = Learning(looks, concurrency, per_s, old.shortest_s, old.most_per_s, min(held, float(HELD_LOOKS)))
    if looks < MIN_LOOKS or per_s <= 0.0:
        return state.learnt_capacity, tuple(new)
    time_s = concurrency / per_s
    shortest_s = min(time_s, old.shortest_s * (1.0 + FORGET_PER_TICK)) if old.shortest_s else time_s
    most_per_s = max(per_s, old.most_per_s * (1.0 - FORGET_PER_TICK))
    new = new._replace(shortest_s=shortest_s, most_per_s=most_per_s)
    return _learnt(new, state.learnt_capacity), tuple(new)


def _learnt(new: Learning, before: float | None) -> float | None:
    done = max(1.0, new.per_s * new.shortest_s)  # so much it does for certain
    if new.concurrency / new.per_s >= INFLATED * new.shortest_s and new.per_s >= PLATEAU * new.most_per_s:
        found = max(1.0, new.most_per_s * new.shortest_s)
        return found if before is None else max(done, before + STEP * (found - before))
    if before is None:
        return max(1.0, new.concurrency) if new.held_looks >= HELD_LOOKS else None
    return max(before, done)
