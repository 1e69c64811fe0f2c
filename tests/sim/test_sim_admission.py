"""The admission simulator: every call ends once, the same seed plays the same, and what the queue promises is seen."""

from __future__ import annotations

import copy
from xml.etree import ElementTree

import pytest

from bench.sim_admission.__main__ import play, table
from bench.sim_admission.disciplines import Ask, disciplines
from bench.sim_admission.simulate import Scenario, Step, arrivals, by_lane, run
from outrider.policy import LANES, Queue

BURST = (Step(0.0, 20), Step(5.0, 200), Step(12.0, 20))
OVERLOAD = Scenario("overload", tuple(arrivals(BURST, 20.0, 0.3, 3, (5.0, 1.0, 1.0))), (Step(0.0, 12),))
NAMES = list(disciplines(Queue()))


def played(name: str, scenario: Scenario = OVERLOAD, policy: Queue | None = None) -> list[Ask]:
    asks = [copy.copy(ask) for ask in scenario.asks]
    run(Scenario(scenario.name, asks, scenario.permits), disciplines(policy or Queue())[name]())
    return asks


@pytest.mark.parametrize("name", NAMES)
def test_every_call_ends_once(name: str) -> None:
    asks = played(name)
    for ask in asks:
        assert (ask.shed_s >= 0) != (ask.ended_s >= 0)
        assert ask.granted_s < 0 or ask.at_s <= ask.granted_s <= ask.ended_s
    rows = by_lane(asks)
    assert sum(row["calls"] or 0 for row in rows.values()) == len(asks)
    for row in rows.values():
        assert row["calls"] == (row["in_time"] or 0) + (row["late"] or 0) + (row["shed"] or 0)


@pytest.mark.parametrize("name", NAMES)
def test_no_more_run_at_once_than_there_are_permits(name: str) -> None:
    begun = [(ask.granted_s, 1) for ask in played(name) if ask.granted_s >= 0]
    ended = [(ask.ended_s, -1) for ask in played(name) if ask.ended_s >= 0]
    running = most = 0
    for _, change in sorted(begun + ended):
        running += change
        most = max(most, running)
    assert most == 12


@pytest.mark.parametrize("name", NAMES)
def test_the_same_calls_end_the_same(name: str) -> None:
    once, again = played(name), played(name)
    assert [(ask.granted_s, ask.shed_s) for ask in once] == [(ask.granted_s, ask.shed_s) for ask in again]


def test_ours_lets_no_urgent_call_fail_where_a_simple_queue_does() -> None:
    ours, simple = by_lane(played("ours")), by_lane(played("first come first served"))
    for lane in ("critical", "high"):
        assert ours[lane]["in_time"] == ours[lane]["calls"]
        assert (ours[lane]["wait_p95_s"] or 0.0) < (simple[lane]["wait_p95_s"] or 0.0)


def test_ours_starves_no_lane_where_strict_priority_does() -> None:
    urgent = tuple([Ask(at * 0.001, 3, b"t", 0.1, 60.0) for at in range(1_000)])
    low = tuple([Ask(0.5, 0, b"t", 0.1, 60.0) for _ in range(10)])
    scenario = Scenario("urgent calls without end", sorted(urgent + low, key=lambda ask: ask.at_s), (Step(0.0, 2),))
    waits = {}
    for name in ("ours", "strict priority"):
        waits[name] = max(ask.granted_s - ask.at_s for ask in played(name, scenario) if ask.lane == 0)
    assert waits["ours"] * 3 < waits["strict priority"]


def test_a_tenant_that_asks_for_everything_delays_itself() -> None:
    asks = played("ours")
    greedy = [ask.granted_s - ask.at_s for ask in asks if ask.tenant == b"tenant-0" and ask.granted_s >= 0]
    others = [ask.granted_s - ask.at_s for ask in asks if ask.tenant != b"tenant-0" and ask.granted_s >= 0]
    assert sum(others) / len(others) < sum(greedy) / len(greedy)


def test_the_whole_without_traces() -> None:
    figures, charts = play(1, None)
    shown = table(figures)
    for name in NAMES:
        assert name in shown
    assert len(charts) == len(figures) == 3
    for text in charts:
        assert {f"■ {name}" for name in NAMES} <= {element.text for element in ElementTree.fromstring(text).iter()}
    for told in figures.values():
        assert set(told["ours"]["lanes"]) == set(LANES)
