from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.engines.epochs import Epochs

NAMES = st.sampled_from(("", "a", "b"))
SCOPES = st.tuples(NAMES, NAMES, NAMES)
REQUESTS = [
    (agent, tenant, tags)
    for agent in ("a", "b")
    for tenant in ("", "a", "b")
    for tags in ((), ("a",), ("b",), ("a", "b"))
]


def parts(epochs: Epochs) -> dict:
    return {request: epochs.part(*request) for request in REQUESTS}


def covers(scope: tuple[str, str, str], request: tuple[str, str, tuple[str, ...]]) -> bool:
    agent, tenant, tag = scope
    return agent in ("", request[0]) and tenant in ("", request[1]) and (not tag or tag in request[2])


@given(before=st.lists(SCOPES, max_size=6), scope=SCOPES, clock=st.floats(0, 2e9))
def test_a_bump_changes_exactly_what_its_scope_covers(before: list, scope: tuple[str, str, str], clock: float):
    epochs = Epochs()
    for earlier in before:
        epochs.bump(clock, *earlier)
    old = parts(epochs)
    epochs.bump(clock, *scope)
    for request, part in parts(epochs).items():
        assert (part != old[request]) == covers(scope, request)


@given(st.lists(st.tuples(SCOPES, st.floats(0, 2e9)), max_size=30))
def test_no_part_ever_comes_back(bumps: list):
    epochs = Epochs(max_counters=3)
    seen: dict = {request: {epochs.part(*request)} for request in REQUESTS}
    for scope, now in bumps:
        old = parts(epochs)
        epochs.bump(now, *scope)
        for request, part in parts(epochs).items():
            if part != old[request]:
                assert part not in seen[request]
                seen[request].add(part)
            else:
                assert not covers(scope, request)


def test_the_order_and_repetition_of_tags_do_not_matter():
    epochs = Epochs()
    epochs.bump(1.0, tag="x")
    epochs.bump(2.0, tag="y")
    assert epochs.part("a", "t", ("x", "y")) == epochs.part("a", "t", ("y", "x", "x"))


def test_values_follow_the_wall_clock_and_never_fall_behind():
    epochs = Epochs()
    assert epochs.bump(1_000.0, "a") == 1_000_000
    assert epochs.bump(900.0, "a") == 1_000_001
    assert epochs.bump(1_001.0, "a") == 1_001_000
    assert epochs.version == 1_001_000


def test_too_many_counters_orphan_everything_once_and_stay_bounded():
    epochs = Epochs(max_counters=10)
    for number in range(10):
        epochs.bump(1.0, tag=f"t{number}")
    untouched = epochs.part("a", "t", ("quiet",))
    tagged = epochs.part("a", "t", ("t3",))
    epochs.bump(1.0, tag="t10")
    assert len(epochs) == 0
    assert epochs.part("a", "t", ("quiet",)) != untouched
    assert epochs.part("a", "t", ("t3",)) != tagged
    after = epochs.part("a", "t", ("t3",))
    epochs.bump(1.0, tag="t3")
    assert epochs.part("a", "t", ("t3",)) not in (after, tagged)


def test_export_and_merge_give_the_same_parts():
    one, other = Epochs(), Epochs()
    for number, scope in enumerate((("a", "", ""), ("", "b", ""), ("a", "b", "a"), ("", "", ""), ("b", "", "b"))):
        one.bump(float(number), *scope)
    assert other.merge(one.export())
    assert parts(other) == parts(one)
    assert not other.merge(one.export())


@given(st.lists(st.tuples(st.booleans(), SCOPES), max_size=20))
def test_merge_is_commutative_and_never_lowers(bumps: list):
    one, other = Epochs(), Epochs()
    for at, (first, scope) in enumerate(bumps):
        (one if first else other).bump(float(at), *scope)
    left, right = Epochs(), Epochs()
    left.merge(one.export())
    left.merge(other.export())
    right.merge(other.export())
    right.merge(one.export())
    assert parts(left) == parts(right)
    current = parts(left)
    assert not left.merge(one.export())
    assert parts(left) == current


def test_an_older_copy_does_not_bring_erased_data_back():
    epochs = Epochs()
    epochs.bump(1.0, tenant="t")
    old = epochs.export()
    before = epochs.part("a", "t")
    epochs.bump(2.0, tenant="t")
    after = epochs.part("a", "t")
    assert not epochs.merge(old)
    assert epochs.part("a", "t") == after != before


def test_a_bump_after_the_floor_rule_wins_over_an_older_counter_elsewhere():
    here, there = Epochs(max_counters=2), Epochs()
    for epochs in (here, there):
        epochs.bump(1.0, tag="x")
    here.bump(1.0, tag="y")
    here.bump(1.0, tag="z")
    before = there.part("a", "t", ("x",))
    there.merge(here.export())
    middle = there.part("a", "t", ("x",))
    here.bump(1.0, tag="x")
    there.merge(here.export())
    assert len({before, middle, there.part("a", "t", ("x",))}) == 3


def test_a_floor_of_now_orphans_all_that_was_before():
    lost = Epochs()
    lost.bump(1_000.0, "a", "t")
    assert Epochs(floor=2_000_000).part("a", "t") != lost.part("a", "t")


@pytest.mark.parametrize(
    "exported",
    [
        None,
        {},
        {"floor": 1},
        {"floor": -1, "counters": []},
        {"floor": True, "counters": []},
        {"floor": "1", "counters": []},
        {"floor": 1, "counters": [["a", "b", 1]]},
        {"floor": 1, "counters": [["a", "b", 3, 1]]},
        {"floor": 1, "counters": [["a", "b", "c", 1 << 63]]},
        {"floor": 1, "counters": 7},
    ],
)
def test_malformed_state_is_refused_whole(exported: object):
    epochs = Epochs()
    with pytest.raises(ValueError, match="epochs are malformed"):
        epochs.merge(exported)
    assert epochs.version == 0


@pytest.mark.parametrize("name", ["x" * 1_025, "\ud800"])
def test_names_that_cannot_be_kept_are_refused(name: str):
    epochs = Epochs()
    with pytest.raises(ValueError, match="at most 1024 characters"):
        epochs.bump(1.0, tag=name)
    with pytest.raises(ValueError, match="is no name"):
        epochs.merge({"floor": 1, "counters": [["a", "b", name, 1]]})
    assert epochs.version == 0
