"""Balancing strategies side by side in a simulated fleet, after Finagle's balancer simulator.

    python -m bench.sim_balance [--calls N] [--seed N] [--json]

One client sends Poisson arrivals to five endpoints for each scenario and strategy. An endpoint serves `SLOTS` calls at
a time, in order of arrival, with log-normal service times; the client picks by the strategy under test, as the
sidecar does: `pick`, `pending`, `first_byte`, `ended`. Time is simulated and everything is seeded: the same arguments
give the same table. Latencies are those a caller sees, waiting included.

Deliberately not here: the sidecar, the network, retries and ejection. This compares picks, nothing else.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, exp, log

from outrider.policy import STRATEGIES, Balancing
from outrider_sidecar.core.balancer import Balancer
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport
from outrider_sidecar.filters.strategies import make_balancer

ENDPOINTS = 5
SLOTS = 8
MEDIAN_S = 0.020
SIGMA = 0.5  # of the log-normal service time
UTILIZATION = 0.5  # offered load over the capacity of five healthy endpoints
START_S = 1_000.0
FAIL_S = 0.001  # a failing endpoint fails fast: it looks idle
SESSIONS = 500  # keys for ring_hash
OK, UNAVAILABLE = 0, 14


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is special about endpoint 0 over `part`, the time since the start as a share of the run."""

    name: str
    slowdown: Callable[[float], float] = lambda part: 1.0  # times the service time
    failing: Callable[[float], bool] = lambda part: False
    joins_at: float = 0.0  # share of the run after which endpoint 0 is there at all

    def window(self, part: float) -> bool:
        """Whether a call that starts now counts: from when the special thing happens."""
        return part >= (self.joins_at or (0.3 if self.name != "steady" else 0.0))


SCENARIOS = (
    Scenario("steady"),
    Scenario("slow one of 5 (x10)", slowdown=lambda part: 10.0 if part >= 0.3 else 1.0),
    Scenario("slow middle (x10, heals)", slowdown=lambda part: 10.0 if 0.3 <= part < 0.6 else 1.0),
    Scenario("cold start (joins, x8 at first)", slowdown=lambda part: 8.0 if part < 0.45 else 1.0, joins_at=0.3),
    Scenario("failing one of 5 (fast)", failing=lambda part: part >= 0.3),
)


class Server:
    """One endpoint's process: SLOTS calls in service, the others wait in order."""

    def __init__(self) -> None:
        self.busy = 0
        self.waiting: deque[tuple[float, float]] = deque()  # (arrival, service time)
        self.reported_at = START_S
        self.done = 0  # these since the last report
        self.failed = 0
        self.busy_s = 0.0


@dataclass(slots=True)
class Result:
    latencies_s: list[float]
    calls: int = 0
    failures: int = 0
    to_special: int = 0


class Run:
    """One strategy in one scenario."""

    def __init__(self, strategy: str, scenario: Scenario, calls: int, seed: int):
        self.scenario = scenario
        self.rng = random.Random(seed)
        self.balancer: Balancer = make_balancer(Balancing(strategy=strategy), random.Random(seed + 1))
        self.endpoints = [Endpoint(f"10.0.0.{index}:9000", now=0.0) for index in range(ENDPOINTS)]
        self.servers = {endpoint: Server() for endpoint in self.endpoints}
        mean_s = MEDIAN_S * exp(SIGMA * SIGMA / 2)
        self.rate = UTILIZATION * ENDPOINTS * SLOTS / mean_s
        self.calls = calls
        self.duration_s = calls / self.rate
        self.events: list[tuple[float, int, Endpoint, float, float, bool]] = []  # see `at_end`
        self.order = 0
        self.result = Result([])
        self.joined = scenario.joins_at == 0.0
        self.balancer.update(self.endpoints if self.joined else self.endpoints[1:], START_S)

    def play(self) -> Result:
        now = START_S
        for _ in range(self.calls):
            now += self.rng.expovariate(self.rate)
            self.finish_until(now)
            part = (now - START_S) / self.duration_s
            if not self.joined and part >= self.scenario.joins_at:
                self.joined = True
                self.endpoints[0].added_at = now
                self.balancer.update(self.endpoints, now)
            self.arrive(now, part)
        self.finish_until(float("inf"))
        return self.result

    def arrive(self, now: float, part: float) -> None:
        endpoint = self.balancer.pick(now, b"session-%d" % self.rng.randrange(SESSIONS))
        assert endpoint is not None
        endpoint.pending += 1
        special = endpoint is self.endpoints[0]
        if self.scenario.window(part):
            self.result.calls += 1
            self.result.to_special += special
        if special and self.scenario.failing(part):
            self.at_end(now + FAIL_S, endpoint, now, FAIL_S, False)
            return
        service_s = self.rng.lognormvariate(log(MEDIAN_S), SIGMA)
        if special:
            service_s *= self.scenario.slowdown(part)
        server = self.servers[endpoint]
        if server.busy < SLOTS:
            server.busy += 1
            self.serve(now, endpoint, now, service_s)
        else:
            server.waiting.append((now, service_s))

    def serve(self, now: float, endpoint: Endpoint, arrival: float, service_s: float) -> None:
        self.at_end(now + service_s, endpoint, arrival, service_s, True)

    def at_end(self, end: float, endpoint: Endpoint, arrival: float, service_s: float, ok: bool) -> None:
        """Schedule the end of a call; equal times end in the order they were scheduled."""
        self.order += 1
        heapq.heappush(self.events, (end, self.order, endpoint, arrival, service_s, ok))

    def finish_until(self, now: float) -> None:
        events = self.events
        while events and events[0][0] <= now:
            end, _, endpoint, arrival, service_s, ok = heapq.heappop(events)
            self.balancer.first_byte(endpoint, end - arrival, end)
            self.report(endpoint, end, ok, service_s)
            endpoint.pending -= 1
            self.balancer.ended(endpoint, OK if ok else UNAVAILABLE, 0.0, end)
            if self.scenario.window((arrival - START_S) / self.duration_s):
                if ok:
                    self.result.latencies_s.append(end - arrival)
                else:
                    self.result.failures += 1
            if ok:
                self.freed(endpoint, end)

    def freed(self, endpoint: Endpoint, now: float) -> None:
        """A slot came free: the call that waits longest takes it."""
        server = self.servers[endpoint]
        if server.waiting:
            waited_since, service_s = server.waiting.popleft()
            self.serve(now, endpoint, waited_since, service_s)
        else:
            server.busy -= 1

    def report(self, endpoint: Endpoint, now: float, ok: bool, service_s: float) -> None:
        """Count the call; once a second report rates and slot time of that second, as ORCA servers do."""
        server = self.servers[endpoint]
        server.done += 1
        server.failed += not ok
        server.busy_s += service_s
        elapsed_s = now - server.reported_at
        if elapsed_s < 1.0:
            return
        load = LoadReport(
            rps_fractional=server.done / elapsed_s,
            eps=server.failed / elapsed_s,
            application_utilization=server.busy_s / (elapsed_s * SLOTS),
        )
        server.reported_at = now
        server.done = server.failed = 0
        server.busy_s = 0.0
        self.balancer.report(endpoint, load, now)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else float("nan")


def rows(calls: int, seed: int) -> Iterator[dict[str, object]]:
    """One row per scenario and strategy."""
    for scenario in SCENARIOS:
        for strategy in STRATEGIES:
            result = Run(strategy, scenario, calls, seed).play()
            yield {
                "scenario": scenario.name,
                "strategy": strategy,
                "p50_ms": round(percentile(result.latencies_s, 0.50) * 1e3, 1),
                "p99_ms": round(percentile(result.latencies_s, 0.99) * 1e3, 1),
                "share_of_endpoint_0": round(result.to_special / result.calls, 4),
                "failed_share": round(result.failures / result.calls, 4),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description="Balancing strategies side by side in a simulated fleet.")
    parser.add_argument("--calls", type=int, default=60_000, help="calls per scenario and strategy (default: 60000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document in place of the table")
    options = parser.parse_args()
    table = list(rows(options.calls, options.seed))
    if options.json:
        print(json.dumps(table, indent=2))
        return
    print(
        f"{ENDPOINTS} endpoints, {SLOTS} calls at a time each, median service {MEDIAN_S * 1e3:.0f} ms, "
        f"{UTILIZATION:.0%} load, {options.calls} calls, seed {options.seed}"
    )
    print("From the moment endpoint 0 turns special. Share: calls it gets (even: 20 %); failed: of all calls.\n")
    scenario = ""
    for row in table:
        if row["scenario"] != scenario:
            scenario = str(row["scenario"])
            print(f"{scenario:34}{'p50 ms':>10}{'p99 ms':>10}{'share':>9}{'failed':>9}")
        print(
            f"  {row['strategy']:32}{row['p50_ms']:>10}{row['p99_ms']:>10}"
            f"{row['share_of_endpoint_0']:>9.1%}{row['failed_share']:>9.2%}"
        )


if __name__ == "__main__":
    main()
