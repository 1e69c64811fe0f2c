"""The decision, case by case: sizes, windows, holds, bounds, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from outrider.policy import Scaling
from outrider_control.loops.scale.decide import decide
from outrider_control.loops.scale.types import Decision, Seen, State

EPOCH_MS = 1_800_000_000_000
POLICY = Scaling(max_instances=100, capacity=10)


class Run:
    """Looks once a second."""

    def __init__(self, scaling: Scaling = POLICY, state: State | None = None, ready: int = 4):
        self.scaling = scaling
        self.state = state if state is not None else State(desired=ready, changed_ms=EPOCH_MS - 3_600_000)
        self.ready = ready
        self.now_ms = EPOCH_MS
        self.last: Decision | None = None

    def look(self, in_flight: float | None, queued: float | None = 0.0, **more: Any) -> Decision:
        self.now_ms += 1_000
        values = {"ready": self.ready, "reports": 3, "sidecars": 3} | more
        seen = Seen("tax", self.now_ms, in_flight, queued, **values)
        self.last, self.state = decide(seen, self.state, self.scaling, self.now_ms)
        return self.last

    def looks(self, count: int, in_flight: float | None, queued: float | None = 0.0, **more: Any) -> Decision:
        """The last of so many, with instances that are ready at once."""
        decision = self.look(in_flight, queued, **more)
        for _ in range(count - 1):
            self.ready = more.get("ready", decision.desired)
            decision = self.look(in_flight, queued, **more)
        return decision


def test_a_step_is_sized_to_the_target_in_one_decision() -> None:
    run = Run()
    run.looks(120, 28.0)
    sizes = [run.look(40.0, 240.0).desired for _ in range(8)]
    assert sizes[-1] == 40  # 280 calls / (0.7 x 10)
    assert run.last is not None
    assert run.last.panic
    assert "need 40 at 70% of 10 each (policy)" in run.last.reason or "hold 40" in run.last.reason


def test_arrivals_that_have_multiplied_are_seen_before_the_demand_shows_them() -> None:
    run = Run()
    for _ in range(120):
        run.look(28.0, finished_per_s=7.0)  # calls of 4 s
    for second in (1, 2, 3):
        decision = run.look(40.0, 63.0 * second - 12.0, finished_per_s=7.0)
    assert decision.demand == pytest.approx(217.0)
    assert 36 <= decision.desired <= 46  # what 70 calls a second of 4 s come to, not the 31 of the moment


def test_nothing_is_done_between_the_thresholds() -> None:
    run = Run()
    for demand in (13.0, 20.0, 31.0):
        decision = run.looks(120, demand)
        assert (decision.desired, decision.action) == (4, "hold")
    assert "between 30% and 80%" in decision.reason


def test_above_the_upper_threshold_it_is_sized_to_the_target() -> None:
    run = Run()
    run.looks(120, 28.0)
    assert run.looks(90, 36.0).desired == 5
    assert run.last is not None
    assert run.last.utilization == pytest.approx(0.72)


def test_instances_that_start_are_not_asked_for_twice() -> None:
    run = Run()
    run.looks(120, 28.0)
    wanted = [run.look(40.0, 100.0, starting=16 if second > 6 else 0).desired for second in range(15)]
    assert wanted[-1] == max(wanted) == 20


def test_the_way_down_waits_for_the_cooldown() -> None:
    run = Run()
    run.looks(120, 28.0)
    run.looks(10, 40.0, 240.0, ready=4)
    assert run.state.desired == 40
    changed_ms = run.state.changed_ms
    while run.look(28.0).desired == 40:
        run.ready = 40
        assert run.now_ms < EPOCH_MS + 3_600_000
    assert run.now_ms - changed_ms >= 300_000
    assert run.last is not None
    assert run.last.action == "down"


def test_the_highest_demand_of_the_cooldown_is_kept_room_for() -> None:
    run = Run(ready=40, state=State(desired=40, changed_ms=EPOCH_MS - 3_600_000))
    for second in range(600):
        decision = run.looks(1, 70.0 if second % 200 < 8 else 2.0)
        assert decision.desired >= 10
    assert run.looks(400, 2.0).desired < 10


def test_down_is_by_a_half_at_a_time() -> None:
    run = Run(ready=40, state=State(desired=40, changed_ms=EPOCH_MS - 3_600_000))
    sizes = [run.looks(1, 1.0).desired for _ in range(1_500) if not setattr(run, "ready", run.state.desired)]
    assert list(dict.fromkeys(sizes)) == [40, 20, 10, 5, 2, 1]


def test_up_is_by_so_many_times_at_once() -> None:
    run = Run(replace(POLICY, max_up=3.0))
    run.looks(120, 28.0)
    assert max(run.look(40.0, 400.0).desired for _ in range(8)) == 12
    assert run.last is not None
    assert "at most 3 times" in run.last.reason or "hold" in run.last.reason


def test_small_changes_are_not_made() -> None:
    run = Run(replace(POLICY, scale_up=0.7), ready=20, state=State(desired=20, changed_ms=EPOCH_MS - 3_600_000))
    assert run.looks(120, 146.0).desired == 20  # 21 would do
    assert run.looks(120, 154.0).desired == 22


@pytest.mark.parametrize("figure", ["in_flight", "queued", "ready", "starting"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1])
def test_a_figure_that_cannot_be_is_no_data(figure: str, value: float) -> None:
    run = Run()
    run.looks(120, 28.0)
    decision = run.look(**({"in_flight": 500.0, "queued": 0.0} | {figure: value}))
    assert (decision.desired, decision.action, decision.confidence) == (4, "hold", 0.0)
    assert f"{figure} is {value}" in decision.reason
    json.dumps(dict(decision.inputs), allow_nan=False)


def test_a_capacity_that_cannot_be_is_named_and_not_used() -> None:
    run = Run(replace(POLICY, capacity=0))
    decision = run.look(50.0, capacity=float("nan"), capacity_source="endpoints")
    assert decision.desired == 4
    assert decision.capacity is None
    assert "capacity is nan, which cannot be" in decision.reason


def test_no_data_holds_and_nothing_shrinks_for_a_stable_window_after() -> None:
    run = Run(ready=20, state=State(desired=20, changed_ms=EPOCH_MS - 3_600_000))
    decision = run.looks(600, None, None, reports=0, ready=20)
    assert (decision.desired, decision.confidence, decision.demand) == (20, 0.0, None)
    assert "no sidecar's report is fresh" in decision.reason
    sizes = [run.look(1.0).desired for _ in range(62)]
    assert sizes[:58] == [20] * 58
    assert sizes[-1] == 10


def test_missing_reports_lower_the_confidence_and_only_stop_the_way_down() -> None:
    run = Run(ready=20, state=State(desired=20, changed_ms=EPOCH_MS - 3_600_000))
    decision = run.looks(900, 1.0, reports=2, ready=20)
    assert decision.confidence == pytest.approx(2 / 3)
    assert decision.desired == 20
    assert "only 2 of 3 sidecars report" in decision.reason
    assert run.looks(20, 400.0, reports=2, ready=20).desired == 58
    assert Run(ready=20, state=State(desired=20)).looks(900, 1.0).desired < 20


def test_without_a_capacity_it_holds_and_says_what_to_declare() -> None:
    run = Run(replace(POLICY, capacity=0))
    decision = run.looks(30, 500.0, 100.0)
    assert decision.desired == 4
    assert "declare scaling.capacity" in decision.reason
    assert Run(Scaling(min_instances=6), State(desired=4)).look(5.0).desired == 6


def test_without_a_capacity_calls_that_wait_get_a_first_instance() -> None:
    run = Run(Scaling(min_instances=0), State(), ready=0)
    assert run.look(0.0, 0.0).desired == 0
    assert run.look(0.0, 7.0).desired == 1


def test_to_zero_and_back() -> None:
    run = Run(replace(POLICY, min_instances=0, idle_s=300), ready=2)
    run.state = replace(run.state, desired=2)
    run.look(1.0)
    sizes = [run.looks(1, 0.0).desired for _ in range(700) if not setattr(run, "ready", run.state.desired)]
    assert sizes[299] > 0
    assert sizes[-1] == 0
    decision = run.look(0.0, 25.0)
    assert (decision.desired, decision.action) == (4, "up")
    assert "no instance" in decision.reason


def test_never_to_zero_without_data_or_above_a_minimum() -> None:
    run = Run(replace(POLICY, min_instances=0), ready=2, state=State(desired=2))
    assert run.looks(900, None, None, ready=2).desired == 2
    assert Run(POLICY, State(desired=2), ready=2).looks(1_500, 0.0).desired == 1


def test_a_restart_keeps_what_there_is() -> None:
    for state in (State(desired=12, changed_ms=1, restored=True), State(desired=3, restored=True), State()):
        run = Run(state=state, ready=12)
        decision = run.look(1.0)
        assert (decision.desired, decision.panic) == (12, True)
        assert all(run.look(1.0).desired == 12 for _ in range(58))
        assert run.looks(10, 1.0).desired == 6


def test_a_restart_without_data_keeps_what_the_store_says() -> None:
    run = Run(state=State(desired=12, restored=True), ready=0)
    assert run.looks(10, None, None, ready=0).desired == 12
    assert run.state.restored
    run.look(1.0, ready=3)
    assert not run.state.restored
    assert run.state.desired == 12


def test_the_cost_cap_lowers_the_upper_bound_and_never_the_lower() -> None:
    capped = replace(POLICY, instance_usd_per_h=2.5, max_usd_per_h=20.0)
    decision = Run(capped).looks(20, 500.0)
    assert (decision.desired, decision.max_instances) == (8, 8)
    assert Run(capped, State(desired=4)).look(500.0, 500.0).reason.endswith("20 USD per hour pay for 8")
    low = Run(replace(capped, min_instances=10)).look(500.0)
    assert (low.desired, low.min_instances, low.max_instances) == (10, 10, 10)
    assert "min_instances 10 stands" in low.reason


def test_bounds_that_moved_are_kept_at_once() -> None:
    assert Run(replace(POLICY, max_instances=3)).look(None, None).desired == 3
    assert Run(replace(POLICY, min_instances=7)).look(None, None).desired == 7
    assert "max_instances is 3" in Run(replace(POLICY, max_instances=3)).look(28.0).reason


def test_min_over_max_is_the_minimum() -> None:
    decision = Run(replace(POLICY, min_instances=9, max_instances=5)).look(28.0)
    assert (decision.desired, decision.min_instances, decision.max_instances) == (9, 9, 9)


def test_switched_off_it_leaves_everything_as_it_is() -> None:
    run = Run(replace(POLICY, enabled=False, max_instances=2))
    decision = run.looks(90, 500.0, ready=4)
    assert (decision.desired, decision.action) == (4, "hold")
    assert "scaling is off" in decision.reason


def test_a_forecast_asks_earlier() -> None:
    def first_up(scaling: Scaling) -> int:
        run = Run(scaling)
        for second in range(600):
            if run.look(10.0 + second * 0.1).desired > 4:
                return second
        return 600

    assert first_up(replace(POLICY, predictive=True)) < first_up(POLICY) - 10


def test_a_reason_and_all_inputs_stand_in_the_decision() -> None:
    run = Run()
    decision = run.looks(90, 36.0, finished_per_s=9.0)
    inputs = json.loads(json.dumps(dict(decision.inputs), allow_nan=False))
    for name in Seen.__slots__:
        assert name in inputs or name == "agent_id"
    for name in Scaling.__slots__:
        assert inputs[f"policy.{name}"] == getattr(POLICY, name)
    assert {"stable_demand", "panic_demand", "highest_demand", "forecast", "desired_before"} <= inputs.keys()


def test_windows_are_bounded_however_long_they_are() -> None:
    run = Run(replace(POLICY, stable_window_s=3_600, cooldown_s=86_400))
    for _ in range(5_000):
        run.look(28.0 - 1e-3 * (run.now_ms // 1_000 % 7))
    assert len(run.state.samples) <= 601
    assert len(run.state.peaks) <= 601
