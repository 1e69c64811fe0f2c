"""What is seen of load: the demand rule, what is stale or missing, capacity, and who serves."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Agent, EndpointPolicy, Limits
from outrider.v1 import mesh_pb2
from outrider_control.core.leases import REGISTERED, Lease
from outrider_control.loops.scale import observe
from outrider_control.loops.scale.types import DRAINING, FAILED, READY, STARTING, Instance, Seen
from outrider_control.publish.fleet import Report

T = 1_700_000_000_000


def load(**more: Any) -> mesh_pb2.AgentLoad:
    return mesh_pb2.AgentLoad(**{"agent_id": "a", **more})


def report(*loads: mesh_pb2.AgentLoad, name: str = "s", age_ms: int = 0, **more: Any) -> Report:
    fields = {"fresh": age_ms <= 3_000, "connected": True, "own": True, **more}
    return Report(name, mesh_pb2.LoadReport(agents=loads), T - age_ms, **fields)


def lease(address: str, capacity: int = 0, draining: bool = False, owner: str = "o") -> Lease:
    endpoint = mesh_pb2.Endpoint(agent_id="a", address=address, capacity=capacity).SerializeToString()
    return Lease("a", address, owner, REGISTERED, "n", endpoint, 1, 1, draining=draining)


def seen(*reports: Report, agent: Agent | None = None, leases: Any = (), instances: Any = None, **more: Any) -> Seen:
    sight = observe.look(reports, T)
    given = {"leaving": {}, "asked": 0, "finished_per_s": None, **more}
    return observe.seen(agent or Agent("a"), sight, leases, instances, **given)


def test_what_runs_at_egress_counts_only_without_an_ingress() -> None:
    egress = report(load(in_flight=9, queued={"low": 1, "high": 2}))
    found = seen(egress)
    assert (found.in_flight, found.queued) == (9, 3)
    ingress = report(load(ingress=True, in_flight=4, queued={"normal": 5}), name="i")
    found = seen(egress, ingress)
    assert (found.in_flight, found.queued) == (4, 8)


def test_no_report_is_no_zero() -> None:
    assert (seen().in_flight, seen().queued, seen().newest_report_ms) == (None, None, 0)
    stale = seen(report(load(in_flight=9), age_ms=3_001))
    assert (stale.in_flight, stale.reports, stale.sidecars, stale.newest_report_ms) == (None, 0, 1, T - 3_001)
    never = seen(Report("s", None, 0, False, True, True))
    assert (never.in_flight, never.sidecars) == (None, 1)
    nothing = seen(report())  # it has no load, and says so
    assert (nothing.in_flight, nothing.queued, nothing.reports) == (0, 0, 1)


def test_who_went_away_in_the_midst_of_calls_is_missed_for_a_while() -> None:
    gone = {"fresh": False, "connected": False}
    idle = report(load(), name="idle", age_ms=5_000, **gone)
    busy = report(load(in_flight=1), name="busy", age_ms=5_000, **gone)
    waiting = report(load(queued={"low": 1}), name="waiting", age_ms=5_000, **gone)
    long_ago = report(load(in_flight=1), name="long ago", age_ms=60_001, **gone)
    found = seen(report(), idle, busy, waiting, long_ago)
    assert (found.in_flight, found.reports, found.sidecars) == (0, 1, 3)


def test_what_cannot_be_is_passed_on() -> None:
    found = seen(report(load(in_flight=-4)), report(load(in_flight=100), name="t"))
    assert found.in_flight == -4
    assert seen(report(load(queued={"low": -1, "high": 5}))).queued == -1


@pytest.mark.parametrize(
    ("agent", "leases", "limits", "wanted"),
    [
        (Agent("a"), [lease("h:1", 8), lease("h:2", 4), lease("h:3"), lease("h:4", 99, True)], [], (6, "endpoints")),
        (Agent("a", (EndpointPolicy("h:9", capacity=3),)), [], [7], (3, "endpoints")),
        (Agent("a", (EndpointPolicy("h:1", capacity=3),)), [lease("h:1", 5)], [], (5, "endpoints")),
        (Agent("a", limits=Limits(adaptive=True)), [], [20, 4_096], (2_058, "learnt")),
        (Agent("a"), [lease("h:1")], [20, 40, 4_096], (30, "learnt")),
        (Agent("a"), [lease("h:1")], [4_096], (None, "")),
    ],
)
def test_capacity(agent: Agent, leases: list[Lease], limits: list[int], wanted: tuple[float | None, str]) -> None:
    reports = [
        report(load(ingress=True, capacity=limit), load(capacity=5), name=f"i{at}") for at, limit in enumerate(limits)
    ]
    found = seen(*reports, agent=agent, leases=leases)
    assert (found.capacity, found.capacity_source) == wanted


def test_who_serves() -> None:
    instances = [
        Instance("registered", "h:1", READY),
        Instance("not yet", "h:2", READY),
        Instance("booting", "h:3", STARTING),
        Instance("leaving", "h:4", READY),
        Instance("ending", "h:5", DRAINING),
        Instance("dead", "h:6", FAILED),
        Instance("anywhere", "", READY),
        Instance("pod", "10.0.0.7", READY),
    ]
    leases = [lease("h:1"), lease("h:3"), lease("h:4", draining=True), lease("10.0.0.7:9000")]
    found = seen(report(), leases=leases, instances=instances, leaving={"leaving": None})
    assert (found.ready, found.starting, found.draining) == (3, 2, 2)
    asked = seen(report(), leases=leases, instances=instances, leaving={"leaving": None}, asked=9)
    assert (asked.ready, asked.starting) == (3, 6)


def test_where_nothing_registers_the_engines_word_counts() -> None:
    instances = [Instance("pod", "10.0.0.7:1", READY)]
    declared = Agent("a", (EndpointPolicy("dns:a.svc:9000"),))
    assert seen(report(), agent=declared, instances=instances).ready == 1
    assert seen(report(), instances=instances).ready == 0  # nobody can call it


def test_without_an_engine_endpoints_are_counted() -> None:
    declared = Agent("a", (EndpointPolicy("h:1"), EndpointPolicy("h:9")))
    found = seen(report(), agent=declared, leases=[lease("h:1"), lease("h:2", draining=True)])
    assert (found.ready, found.starting, found.draining) == (2, 0, 1)


def test_calls_that_end_per_second() -> None:
    rate = observe.Rate()

    def take(at_ms: int, egress: int, ingress: int | None = None) -> float | None:
        reports = [Report("e", mesh_pb2.LoadReport(agents=[load(calls=egress)]), T + at_ms, True, True, True)]
        if ingress is not None:
            loads = mesh_pb2.LoadReport(agents=[load(calls=ingress, ingress=True)])
            reports.append(Report("i", loads, T + at_ms, True, True, True))
        return rate.take(observe.look(reports, T + at_ms).of("a"))

    assert take(0, 100) is None
    assert take(1_000, 150) == 50
    assert take(1_000, 150) == 50  # no newer report
    assert take(3_000, 150) == 0
    assert take(4_000, 20) is None  # started again
    assert take(5_000, 30) == 10
    assert take(6_000, 90, 500) is None  # the ingress counts from here on
    assert take(8_000, 99, 520) == 10


def test_empty_is_what_everybody_says_since() -> None:
    leaving = lease("h:1", owner="i")
    cases = [
        (report(), True),
        (report(load(leaving={"h:2": 3})), True),
        (report(load(leaving={"h:1": 1})), False),
        (report(load(ingress=True, in_flight=1), name="i"), False),
        (report(load(ingress=True, queued={"low": 1}), name="i"), False),
        (report(load(ingress=True, in_flight=1), name="another"), True),
        (report(age_ms=20), False),  # older than the question
        (report(own=False), False),  # may not have heard of it when it spoke
        (report(own=False, age_ms=-2_000), True),
        (Report("mute", None, 0, False, True, True), False),
        (report(name="gone", age_ms=20, connected=False), True),
    ]
    for one, wanted in cases:
        assert observe.look([one], T).is_empty("a", leaving, T - 10) is wanted, one
