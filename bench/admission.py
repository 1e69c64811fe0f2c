"""The queue of admission: how long one decision takes with 10,000 calls waiting.

    python -m bench.admission [--waiting 10000] [--rounds 20000] [--json]

Decisions are timed one by one on the real `LaneQueue`, which holds the same number throughout: all four lanes, half of
the calls of one tenant and the rest of 500 others (then: all of one tenant), deadlines of 10 and 30 s and none, virtual
time at 500 grants a second. `arrive` is what a call that finds no permit costs: is there hope, then its place in the
queue; `arrive, full` finds a full queue, where somebody must make room; `grant` is who gets a permit; `leave` is a
caller that gives up, from anywhere in the queue; `raise` moves one to a more urgent lane. The clock's own 40 ns or so
are in the figures. PYTHONPATH=build/native takes the compiled modules (`make native`). Ends with 1 where a P95 is
above 200 us.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

from outrider.policy import Queue
from outrider_sidecar.engines import lanes
from outrider_sidecar.engines.lanes import LaneQueue, Waiter

BOUND_US = 200.0
GRANTS_PER_S = 500.0
LANE_SHARES = (30, 45, 15, 10)  # of the calls, low to critical
DEADLINES_S = ((30.0, 0.0), (30.0, 0.0), (10.0,), (10.0,))  # by lane; 0.0: none


class Load:
    """A queue at a constant length, and the times of what is done to it."""

    def __init__(self, waiting: int, tenants: int, seed: int = 4):
        self.rng = Random(seed)
        self.tenants = tenants
        self.now = 1_000.0
        # Nobody is shed for his wait: it would be others' decisions that are timed.
        self.room = Queue(max_waiting=waiting + 1, codel_target_ms=0)
        self.full = Queue(max_waiting=waiting, codel_target_ms=0)
        self.queue = LaneQueue(self.room)
        self.waiting: list[Waiter] = []  # those that have left are passed over
        self.shed: list[Waiter] = []
        self.times_us: dict[str, list[float]] = {}
        for _ in range(waiting):
            self.put(self.waiter())

    def waiter(self, lane: int = -1) -> Waiter:
        rng = self.rng
        if lane < 0:
            lane = rng.choices((0, 1, 2, 3), LANE_SHARES)[0]
        left_s = rng.choice(DEADLINES_S[lane])
        crowd = self.tenants == 1 or rng.random() < 0.5
        tenant = b"crowd" if crowd else b"tenant-%d" % rng.randrange(self.tenants)
        return Waiter(None, lane, tenant, left_s and self.now + left_s * rng.uniform(0.5, 1.0))

    def put(self, waiter: Waiter) -> None:
        self.waiting.append(waiter)
        self.queue.put(waiter, self.now)

    def any_waiting(self) -> Waiter:
        """One from anywhere in the queue."""
        while True:
            index = self.rng.randrange(len(self.waiting))
            chosen = self.waiting[index]
            if chosen.queued:
                return chosen
            self.waiting[index] = self.waiting[-1]
            self.waiting.pop()

    def timed(self, name: str, decision: Callable[..., Any], *arguments: Any) -> None:
        began = time.perf_counter_ns()
        decision(*arguments)
        took = time.perf_counter_ns() - began
        self.times_us.setdefault(name, []).append(took / 1e3)

    def arrive(self, waiter: Waiter) -> None:
        queue = self.queue
        queue.hopeless(waiter.lane, waiter.deadline, self.now, waiter.tenant)
        queue.put(waiter, self.now)

    def refill(self, waiting: int) -> None:
        """Untimed: those that were shed for their deadline are replaced."""
        while self.queue.waiting < waiting:
            self.put(self.waiter())

    def round(self, waiting: int) -> None:
        """One of each decision; the queue is as long as before."""
        self.now += 1.0 / GRANTS_PER_S
        queue = self.queue
        waiter = self.waiter()
        self.waiting.append(waiter)
        self.timed("arrive", self.arrive, waiter)
        self.timed("grant", queue.take, self.now, self.shed)
        self.refill(waiting)
        self.timed("leave", queue.remove, self.any_waiting())
        self.refill(waiting)
        chosen = self.any_waiting()
        if chosen.lane < 3:
            self.timed("raise", queue.raise_lane, chosen, chosen.lane + 1, self.now)
        queue.configure(self.full)
        waiter = self.waiter(3)
        self.waiting.append(waiter)
        self.timed("arrive, full", self.arrive, waiter)
        queue.configure(self.room)
        self.shed.clear()


def percentiles(times_us: list[float]) -> dict[str, float]:
    ordered = sorted(times_us)
    last = len(ordered) - 1
    return {f"p{percent:g}_us": round(ordered[int(last * percent / 100)], 2) for percent in (50, 95, 99, 100)}


def measure(waiting: int, tenants: int, rounds: int) -> dict[str, dict[str, float]]:
    load = Load(waiting, tenants)
    for _ in range(rounds // 20):
        load.round(waiting)
    load.times_us.clear()
    for _ in range(rounds):
        load.round(waiting)
    return {name: percentiles(times_us) for name, times_us in sorted(load.times_us.items())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    compiled = not str(lanes.__file__).endswith(".py")
    figures = {
        name: measure(options.waiting, tenants, options.rounds)
        for name, tenants in (("many tenants", 500), ("one tenant", 1))
    }
    worst_us = max(one["p95_us"] for decisions in figures.values() for one in decisions.values())
    met = worst_us <= BOUND_US
    if options.json:
        print(json.dumps({"compiled": compiled, "waiting": options.waiting, "met": met, "figures": figures}, indent=2))
        return 0 if met else 1
    print(f"{options.waiting} waiting, {'compiled' if compiled else 'interpreted'}; microseconds a decision")
    for name, decisions in figures.items():
        print(f"\n{name:<16}{'P50':>8}{'P95':>8}{'P99':>8}{'most':>10}")
        for decision, one in decisions.items():
            print(f"  {decision:<14}{one['p50_us']:8.1f}{one['p95_us']:8.1f}{one['p99_us']:8.1f}{one['p100_us']:10.1f}")
    print(f"\nhighest P95 {worst_us:.1f} us, bound {BOUND_US:.0f} us: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
