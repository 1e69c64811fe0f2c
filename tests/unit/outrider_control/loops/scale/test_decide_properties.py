"""What holds of every decision, whatever is seen: bounds, no shrinking out of time, monotone, deterministic."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from outrider.policy import Scaling
from outrider_control.loops.scale.decide import SURE, decide
from outrider_control.loops.scale.types import Decision, Seen, State

EPOCH_MS = 1_800_000_000_000
ODD = st.sampled_from([float("nan"), float("inf"), -1.0, 1e300])
CALLS = st.one_of(st.none(), st.floats(0, 5_000), ODD)

looks = st.tuples(
    CALLS,
    CALLS,
    st.one_of(st.none(), st.floats(0.5, 100), ODD),
    st.integers(0, 4),  # sidecars that report, of 3
    st.sampled_from([100, 1_000, 1_000, 1_000, 7_000, 45_000]),  # ms since the last look
    st.one_of(st.none(), st.floats(0, 1_000), ODD),
)
policies = st.builds(
    Scaling,
    min_instances=st.integers(0, 5),
    max_instances=st.integers(5, 200),
    target_utilization=st.floats(0.1, 1.0),
    scale_up=st.floats(0.3, 1.5),
    scale_down=st.floats(0.0, 1.0),
    cooldown_s=st.sampled_from([0, 30, 300]),
    stable_window_s=st.sampled_from([6, 60]),
    panic_threshold=st.floats(1.0, 10.0),
    tolerance=st.floats(0, 0.5),
    max_up=st.sampled_from([1.1, 3.0, 1_000.0]),
    max_down=st.sampled_from([1.1, 2.0, 100.0]),
    idle_s=st.sampled_from([0, 30, 300]),
    predictive=st.booleans(),
    capacity=st.sampled_from([0, 0, 1, 10]),
    instance_usd_per_h=st.sampled_from([0.0, 1.0]),
    max_usd_per_h=st.sampled_from([0.0, 3.0, 50.0]),
)
starts = st.sampled_from([State(), State(desired=7, changed_ms=EPOCH_MS - 1, restored=True), State(desired=3)])
Step = tuple[Seen, State, Decision, State]


def play(seen_of: list[tuple], scaling: Scaling, state: State) -> list[Step]:
    """Instances that are asked for serve two looks later."""
    now_ms, steps, sizes = EPOCH_MS, [], [max(state.desired, 2)] * 3
    for in_flight, queued, capacity, reports, passed_ms, rate in seen_of:
        now_ms += passed_ms
        ready = min(sizes[-3], sizes[-1])
        seen = Seen(
            "a", now_ms, in_flight, queued, ready, max(0, sizes[-1] - ready), 0, capacity, "endpoints", reports, 3
        )
        seen = replace(seen, finished_per_s=rate)
        decision, after = decide(seen, state, scaling, now_ms)
        steps.append((seen, state, decision, after))
        sizes.append(decision.desired)
        state = after
    return steps


def bounds(scaling: Scaling) -> tuple[int, int]:
    high = max(scaling.min_instances, scaling.max_instances)
    if scaling.instance_usd_per_h and scaling.max_usd_per_h:
        high = min(high, max(scaling.min_instances, int(scaling.max_usd_per_h / scaling.instance_usd_per_h)))
    return scaling.min_instances, high


@settings(max_examples=300, deadline=None)
@given(st.lists(looks, min_size=1, max_size=60), policies, starts)
def test_bounds_always_hold(seen: list[tuple], scaling: Scaling, state: State) -> None:
    low, high = bounds(scaling)
    for _, _, decision, after in play(seen, scaling, state):
        assert low <= decision.desired <= high
        assert (decision.min_instances, decision.max_instances) == (low, high)
        assert after.desired == decision.desired


@settings(max_examples=300, deadline=None)
@given(st.lists(looks, min_size=1, max_size=60), policies, starts)
def test_nothing_goes_before_its_time(seen: list[tuple], scaling: Scaling, state: State) -> None:
    _, high = bounds(scaling)
    for look, before, decision, after in play(seen, scaling, state):
        if decision.action != "down" or decision.desired == high:
            continue
        assert not decision.panic
        assert decision.confidence >= SURE
        assert not before.changed_ms or look.now_ms - before.changed_ms >= scaling.cooldown_s * 1_000
        assert look.now_ms - after.steady_since_ms >= scaling.stable_window_s * 1_000


@settings(max_examples=200, deadline=None)
@given(st.lists(looks, min_size=1, max_size=40), policies, starts)
def test_no_data_holds(seen: list[tuple], scaling: Scaling, state: State) -> None:
    low, high = bounds(scaling)
    for _, before, decision, _ in play([(None, *one[1:]) for one in seen], scaling, state):
        if before.desired:
            assert decision.desired == min(max(before.desired, low), high) or before.restored
        assert decision.confidence == 0.0


@settings(max_examples=200, deadline=None)
@given(st.lists(looks, min_size=1, max_size=60), policies, starts)
def test_a_replay_decides_the_same(seen: list[tuple], scaling: Scaling, state: State) -> None:
    assert repr(play(seen, scaling, state)) == repr(play(seen, scaling, state))
    for look, before, decision, after in play(seen, scaling, state):
        assert repr(decide(look, before, scaling, look.now_ms)) == repr((decision, after))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(looks, min_size=1, max_size=60),
    policies.map(lambda one: replace(one, capacity=one.capacity or 10)),
    starts,
    st.floats(0, 3_000),
    st.floats(0, 3_000),
)
@example([(20.0, 0.0, None, 3, 1_000, None)] * 60, Scaling(capacity=10, max_instances=100), State(desired=7), 1.0, 30.0)
def test_more_demand_never_means_fewer_instances(
    seen: list[tuple], scaling: Scaling, state: State, less: float, more: float
) -> None:
    last, before, _, _ = play(seen, scaling, state)[-1]
    low, high = (
        decide(replace(last, in_flight=0.0, queued=demand), before, scaling, last.now_ms)[0].desired
        for demand in sorted((less, more))
    )
    assert low <= high
