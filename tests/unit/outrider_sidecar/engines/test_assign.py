"""Assignment: by the hash for who is new, by what is kept for who is not, and the two exceptions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from math import sqrt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.split import PARTS, Split, Variant, ranges_of, reallocated
from outrider_sidecar.engines.assign import ABORTED, KINDS, VANISHED, Assigner, Decision, parse_echo

HALVES = (Variant("A", 0.5), Variant("B", 0.5))
X = Split("x", "a", HALVES)


def assigner(*splits: Split, endpoints: Sequence[dict[str, str]] = ()) -> Assigner:
    return Assigner(splits, endpoints)


def decide(one: Assigner, session: str, user: str = "", request: str = "", **more: Any) -> Decision:
    return one.decide(session.encode(), user.encode(), request.encode(), **more)


def text(decision: Decision) -> str:
    return decision.treatment.variant if decision.treatment is not None else ""


def of(one: Assigner, session: str, **more: Any) -> str:
    return text(decide(one, session, **more))


def chi_square(observed: Sequence[float], expected: Sequence[float]) -> float:
    return sum((seen - due) ** 2 / due for seen, due in zip(observed, expected, strict=True))


def bound(freedom: int) -> float:
    """Above the 99.99th percentile of chi-square (Wilson and Hilferty)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 3.72 * sqrt(spread)) ** 3


# -- by the hash -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["session", "user", "request"])
@pytest.mark.parametrize("form", ["{}", "user-{:08}@example.com", "00000000-0000-4000-8000-{:012x}"])
def test_units_fall_uniformly(unit: str, form: str) -> None:
    shares = [0.5, 0.25, 0.125, 0.0625, 0.0625]
    variants = tuple([Variant(f"v{at}", share) for at, share in enumerate(shares)])
    one = assigner(Split("x", "a", variants, unit=unit))
    count = 50_000
    names = [form.format(at) for at in range(count)]
    found = Counter(text(decide(one, name, name, name)) for name in names)
    seen = [found[f"x=v{at}"] for at in range(len(shares))]
    assert sum(seen) == count
    assert chi_square(seen, [share * count for share in shares]) < bound(len(shares) - 1)


def test_the_parts_themselves_are_uniform() -> None:
    tenths = tuple([Variant(f"v{at}", 0.01) for at in range(100)])
    one = assigner(Split("x", "a", tenths))
    found = Counter(of(one, str(at)) for at in range(100_000))
    assert chi_square(list(found.values()), [1_000] * 100) < bound(99)


@pytest.mark.parametrize("names", [("x", "y"), ("exp-1", "exp-2"), ("a", "aa")])
def test_splits_are_independent(names: tuple[str, str]) -> None:
    """Of seeds, of layers, and of the place in a layer and the variant drawn there."""
    thirds = tuple([Variant(f"v{at}", share) for at, share in enumerate((0.4, 0.3, 0.3))])
    one = assigner(*[Split(name, "a", thirds, layer_to=700_000) for name in names])
    table: Counter[tuple[str, ...]] = Counter()
    count = 60_000
    for at in range(count):
        said = dict(pair.split("=") for pair in of(one, f"s{at}").split(",") if pair)
        table[said.get(names[0], ""), said.get(names[1], "")] += 1
    rows, columns = ({pair[side] for pair in table} for side in (0, 1))
    assert len(rows) == len(columns) == 4  # three variants, and who is outside
    row = {name: sum(table[name, other] for other in columns) for name in rows}
    column = {name: sum(table[other, name] for other in rows) for name in columns}
    cells = [(table[one_, other], row[one_] * column[other] / count) for one_ in rows for other in columns]
    assert chi_square([seen for seen, _ in cells], [due for _, due in cells]) < bound(9)
    assert chi_square([row[""], count - row[""]], [0.3 * count, 0.7 * count]) < bound(1)


def test_the_name_is_the_seed_where_none_is_given() -> None:
    named, seeded = assigner(X), assigner(replace(X, name="other", seed="x"))
    for at in range(200):
        assert of(named, f"s{at}")[-1] == of(seeded, f"s{at}")[-1]


def test_the_unit_is_told_as_a_keyed_hash() -> None:
    decision = decide(assigner(X), "session-1")
    expected = blake2b(b"session-1", key=b"x", digest_size=16).hexdigest()
    assert (decision.units, decision.missing, decision.moved) == (f"x={expected}", "", None)
    long = "s" * 100
    key = blake2b(long.encode(), digest_size=64).digest()
    expected = blake2b(b"session-1", key=key, digest_size=16).hexdigest()
    assert decide(assigner(replace(X, seed=long)), "session-1").units == f"x={expected}"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=5),
    st.integers(0, 4),
    st.integers(1, 30),
    st.integers(0, PARTS),
    st.integers(0, PARTS),
)
def test_raising_a_share_or_the_traffic_only_adds_units(
    weights: list[int], which: int, more: int, reach: int, further: int
) -> None:
    weights[0] += 1
    which %= len(weights)
    before = ranges_of([weight / sum(weights) for weight in weights])
    raised = [weight + (more if at == which else 0) for at, weight in enumerate(weights)]
    shares = [weight / sum(raised) for weight in raised]
    after = reallocated(before, shares)
    reach, further = sorted((reach, further))

    def split(ranges: Any, to: int) -> Assigner:
        variants = [Variant(f"v{at}", shares[at], own) for at, own in enumerate(ranges)]
        return assigner(Split("x", "a", tuple(variants), unit="user", layer_to=to))

    low, high = split(before, reach), split(after, further)
    for at in range(300):
        was, now = (text(one.decide(b"", b"u%d" % at, b"")) for one in (low, high))
        if was == f"x=v{which}":
            assert now == was  # nobody leaves the one that grew
        if was and now != was:
            assert now == f"x=v{which}"  # and nobody goes anywhere else
        assert now or not was  # nobody leaves the experiment


# -- who takes part ----------------------------------------------------------------------------------------------------


def test_splits_of_a_layer_share_no_unit() -> None:
    parts = [(0, 300_000), (300_000, 500_000), (600_000, PARTS)]
    splits = [
        Split(f"x{at}", "a", HALVES, layer="l", layer_from=start, layer_to=end) for at, (start, end) in enumerate(parts)
    ]
    one = assigner(*splits)
    found = Counter(of(one, f"s{at}").split("=")[0] for at in range(20_000))
    assert chi_square([found[name] for name in ("x0", "x1", "x2", "")], [6_000, 4_000, 8_000, 2_000]) < bound(3)


def test_who_holds_a_variant_in_a_layer_takes_part_in_no_other_split_of_it() -> None:
    """However the ranges have moved since."""
    old = Split("old", "a", HALVES, layer="l", layer_from=0, layer_to=0)
    new = Split("new", "a", HALVES, layer="l", layer_from=0, layer_to=PARTS)
    free = Split("free", "a", HALVES)
    for order in ((old, new, free), (new, old, free)):
        one = assigner(*order)
        for at in range(50):
            decision = decide(one, f"s{at}", held=(("old", "A"),))
            assert {pair.split("=")[0] for pair in text(decision).split(",")} == {"old", "free"}
            assert dict(decision.held)["new"] == ""


def test_a_closed_split_keeps_who_is_in_it() -> None:
    one = assigner(replace(X, is_open=False))
    decision = decide(one, "s", held=(("x", "B"),))
    assert (text(decision), decision.units[:2]) == ("x=B", "x=")
    assert (of(one, "s"), of(one, "s", echo={"x": "B"})) == ("", "x=B")


def test_an_observed_split_tells_units_and_gives_no_variant() -> None:
    for variants in ((), HALVES):
        one = assigner(Split("x", "a", variants, observed=True, layer_to=500_000))
        told = [decide(one, f"s{at}") for at in range(2_000)]
        assert {text(decision) for decision in told} == {""}
        assert {decision.held for decision in told} == {()}
        assert 850 < sum(bool(decision.units) for decision in told) < 1_150
    # Those it tells of are those it will have.
    running = assigner(Split("x", "a", HALVES, layer_to=500_000))
    for at, decision in enumerate(told):
        after = decide(running, f"s{at}")
        assert after.units == decision.units
        assert bool(text(after)) == bool(decision.units)


def test_a_call_without_the_unit_takes_no_part() -> None:
    by_user = replace(X, unit="user")
    decision = decide(assigner(by_user), "session")
    assert (text(decision), decision.units, decision.missing) == ("", "", "user")
    decision = decide(assigner(X), "", "user")
    assert (text(decision), decision.units, decision.missing) == ("", "", "session")
    decision = decide(assigner(X, replace(by_user, name="y")), "session", "user")
    assert [pair.split("=")[0] for pair in text(decision).split(",")] == ["x", "y"]
    assert decision.missing == ""


def test_a_unit_of_a_session_keeps_its_variant_when_a_call_leaves_out_the_user() -> None:
    decision = decide(assigner(replace(X, unit="user")), "session", held=(("x", "B"),))
    assert (text(decision), decision.units, decision.missing) == ("x=B", "", "")


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_what_is_kept_wins_over_the_echo_and_the_echo_over_the_hash() -> None:
    one = assigner(X)
    drawn = of(one, "s")[-1]
    other = "B" if drawn == "A" else "A"
    assert of(one, "s", echo={"x": other}) == f"x={other}"
    assert of(one, "s", held=(("x", drawn),), echo={"x": other}) == f"x={drawn}"
    decision = decide(one, "s", echo={"x": other})
    assert (decision.held, decision.fresh) == ((("x", other),), None)
    assert decision.units  # it is counted
    assert decide(one, "s").fresh is not None


def test_an_echo_takes_nobody_into_a_second_split_of_a_layer() -> None:
    old = Split("old", "a", HALVES, layer="l", layer_to=500_000)
    new = Split("new", "a", HALVES, layer="l", layer_from=500_000)
    for order in ((old, new), (new, old)):
        one = assigner(*order)
        decision = decide(one, "s", held=(("old", "A"),), echo={"new": "B"})
        assert (text(decision), dict(decision.held)) == ("old=A", {"old": "A", "new": ""})
        both = decide(one, "s", echo={"old": "A", "new": "B"})
        assert text(both) == f"{order[0].name}={'A' if order[0] is old else 'B'}"


def test_a_user_keeps_what_its_first_session_held() -> None:
    one = assigner(X, replace(X, name="y", unit="user"), replace(X, name="z", unit="user"))
    held = (("x", "A"), ("y", "B"), ("z", ""))
    assert one.by_user == {"y", "z"}
    assert one.of_user(held, ()) == (("y", "B"),)
    assert one.of_user(held, (("y", "A"), ("z", "A"), ("gone", "Z"))) == (("y", "A"), ("z", "A"), ("gone", "Z"))
    assert one.of_user(held, (("y", "C"),)) == (("y", "B"),)  # C has vanished
    assert one.of_user((("x", "A"),), ()) == ()
    paused = assigner(replace(X, name="y", unit="user", observed=True))
    assert paused.of_user((), (("y", "B"),)) == (("y", "B"),)


def test_an_echo_of_other_splits_says_nothing() -> None:
    assert of(assigner(X), "s", echo={"y": "B"}) == of(assigner(X), "s")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"x=A", {"x": "A"}),
        (b"x=A,y=B", {"x": "A", "y": "B"}),
        (b" x=A , y=B ", {"x": "A", "y": "B"}),
        (b"x=A=B", {"x": "A=B"}),
        (b"", None),
        (b"x", None),
        (b"x=", None),
        (b",,=,", None),
        (b"x=\xff\xfe", {"x": "\ufffd\ufffd"}),
        (b"x=" + b"a" * 10_000, None),
    ],
)
def test_echoes_are_read_as_far_as_they_can_be(value: bytes, found: dict[str, str] | None) -> None:
    assert parse_echo(value) == found


def test_weights_affect_new_sessions_only() -> None:
    one = assigner(X)
    kept = {f"s{at}": decide(one, f"s{at}").held for at in range(200)}
    turned = assigner(replace(X, variants=(Variant("A", 1.0), Variant("B", 0.0))))
    for session, held in kept.items():
        assert of(turned, session, held=held) == f"x={held[0][1]}"
        assert of(turned, session) == "x=A"


def test_a_live_session_outside_stays_outside_when_traffic_is_raised_and_a_user_does_not() -> None:
    none = assigner(replace(X, layer_to=0))
    decision = decide(none, "s", "u")
    assert (text(decision), decision.held) == ("", (("x", ""),))
    assert of(assigner(X), "s", held=decision.held) == ""
    by_user = replace(X, unit="user", layer_to=0)
    assert decide(assigner(by_user), "", "u").held == ()


def test_requests_are_not_sticky() -> None:
    one = assigner(replace(X, unit="request"))
    assert (one.sticky, one.per_call) == (False, True)
    found = {text(decide(one, "s", "u", str(at), held=(("x", "A"),), echo={"x": "A"})) for at in range(50)}
    assert found == {"x=A", "x=B"}
    assert ("x", "A") not in decide(one, "s", "u", "1").held


def test_splits_that_are_not_in_force_keep_what_they_gave() -> None:
    decision = decide(assigner(X), "s", held=(("gone", "Z"), ("x", "B")))
    assert decision.held == (("x", "B"), ("gone", "Z"))
    many = tuple([(f"gone{at}", "Z") for at in range(100)])
    assert len(decide(assigner(X), "s", held=many).held) < 40


def test_idle_units_lose_what_their_split_does_not_keep_so_long() -> None:
    one = assigner(replace(X, idle_s=10), replace(X, name="y", idle_s=100))
    held = (("x", "A"), ("y", "B"), ("gone", "Z"))
    assert one.calm_s == 10
    assert one.alive(held, 10) == held
    assert one.alive(held, 11) == held[1:]
    assert one.alive(held, 101) == held[2:]
    assert one.alive(held, 90_000) == ()


# -- the exceptions ----------------------------------------------------------------------------------------------------


def test_an_aborted_variant_gives_its_units_to_the_first_one() -> None:
    one = assigner(replace(X, variants=(HALVES[0], replace(HALVES[1], aborted=True))))
    assert {of(one, f"s{at}") for at in range(50)} == {"x=A"}
    decision = decide(one, "s", held=(("x", "B"),))
    assert (text(decision), decision.held) == ("x=A", (("x", "A"),))
    assert decision.moved is not None
    moved = decision.moved[0]
    assert (moved.split, moved.reason, moved.variant, moved.to) == ("x", ABORTED, "B", "A")
    assert decide(one, "s", held=decision.held).moved is None
    assert of(one, "s", echo={"x": "B"}) == "x=A"
    assert one.warnings() == ["split x: variant B is aborted; its units get A"]


def test_a_variant_that_is_gone_gives_its_units_to_the_first_one() -> None:
    decision = decide(assigner(X), "s", held=(("x", "C"),))
    assert (text(decision), decision.held) == ("x=A", (("x", "A"),))
    assert decision.moved is not None
    assert (decision.moved[0].reason, decision.moved[0].variant) == (VANISHED, "C")


LABELLED = replace(X, variants=(Variant("A", 0.5, labels={"v": "1"}), Variant("B", 0.5, labels={"v": "2", "z": "x"})))


def test_a_variant_without_endpoints_gives_its_units_to_the_first_one() -> None:
    one = assigner(LABELLED, endpoints=[{"v": "1"}, {"v": "2"}])
    assert {of(one, f"s{at}") for at in range(50)} == {"x=A"}
    decision = decide(one, "s", held=(("x", "B"),))
    assert (text(decision), decision.held) == ("x=A", (("x", "A"),))
    assert decision.moved is not None
    assert (decision.moved[0].reason, decision.moved[0].to) == (VANISHED, "A")
    there = assigner(LABELLED, endpoints=[{"v": "1"}, {"v": "2", "z": "x", "more": "y"}])
    assert {of(there, f"s{at}") for at in range(50)} == {"x=A", "x=B"}
    assert there.warnings() == []


def test_an_agent_without_any_endpoint_has_lost_no_variant() -> None:
    """It is scaled to zero, or its endpoints have not registered yet."""
    assert {of(assigner(LABELLED), f"s{at}") for at in range(50)} == {"x=A", "x=B"}


def test_where_the_first_one_is_gone_as_well_the_split_steps_aside() -> None:
    one = assigner(LABELLED, endpoints=[{"v": "3"}])
    decision = decide(one, "s", held=(("x", "B"),))
    assert (text(decision), decision.units) == ("", "")
    assert decision.moved is not None
    assert (decision.moved[0].reason, decision.moved[0].to) == (VANISHED, "")
    half = assigner(LABELLED, endpoints=[{"v": "2", "z": "x"}])
    assert of(half, "s", held=(("x", "B"),)) == "x=B"
    assert of(half, "s", held=(("x", "A"),)) == ""


# -- testers -----------------------------------------------------------------------------------------------------------


def test_overrides_stand_above_everything_and_are_not_counted() -> None:
    one = assigner(replace(X, overrides={"tester": "B"}, layer_to=0, is_open=False))
    decision = decide(one, "tester", held=(("x", "A"),), echo={"x": "A"})
    assert (text(decision), decision.units) == ("x=B", "")
    assert decision.held == (("x", "A"),)
    assert decide(one, "tester").held == ()
    by_request = assigner(replace(X, unit="request", overrides={"tester": "B"}))
    assert {text(decide(by_request, "s", "tester", str(at))) for at in range(20)} == {"x=B"}
    assert {text(decide(by_request, "tester", "", str(at))) for at in range(20)} == {"x=B"}


def test_an_override_of_an_aborted_variant_goes_where_the_others_go() -> None:
    variants = (HALVES[0], replace(HALVES[1], aborted=True))
    assert of(assigner(replace(X, variants=variants, overrides={"s": "B"})), "s") == "x=A"


@pytest.mark.parametrize("kind", ["session", "user", "request"])
@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5),
    st.integers(0, 4),
    st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=20),
)
def test_the_short_way_comes_to_the_same(kind: str, weights: list[float], aborted: int, units: list[bytes]) -> None:
    total = sum(weights)
    variants = tuple(Variant(f"v{at}", weight / total, aborted=0 < at == aborted) for at, weight in enumerate(weights))
    one = assigner(Split("x", "a", variants, unit=kind, seed="s"))
    assert one.lone_kind == KINDS[kind]
    for unit in units:
        names = {"session": b"", "user": b"", "request": b"r", kind: unit}
        decision = one.decide(names["session"], names["user"], names["request"])
        ready, text_of_unit = one.draw(unit)
        assert decision.treatment is not None
        assert ready.treatment.variant == decision.treatment.variant
        assert ready.treatment.key == decision.treatment.key
        assert text_of_unit == decision.units
        assert decision.fresh == [ready.arm]
        assert ready.held == decision.held or (kind == "request" and not decision.held)


def test_it_is_not_as_simple_where_more_decides() -> None:
    labelled = (Variant("A", 0.5), Variant("B", 0.5, labels={"version": "v2"}))
    for one in (
        assigner(X, replace(X, name="y")),
        assigner(replace(X, overrides={"tester": "B"})),
        assigner(replace(X, layer="l", layer_to=PARTS // 2)),
        assigner(Split("x", "a", labelled), endpoints=[{"version": "v1"}]),
    ):
        assert one.lone_kind == -1
