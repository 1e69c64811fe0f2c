"""Splits from plain data: what is wrong is an error with its path, and nothing wrong comes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.policy import PolicyError
from outrider.policy_parse import policy_from_mapping, validate
from outrider.split import PARTS, Split, Variant, ranges_of, reallocated
from outrider.split_codec import decode_split, decode_splits, encode_split
from outrider.split_parse import MAX_SPLITS, MAX_VARIANTS, check_split, check_splits, split_from_mapping
from outrider.v1 import policy_pb2

A = {"name": "A", "share": 0.5}
B = {"name": "B", "share": 0.5}


def split(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "agent_id": "a", "variants": [A, B], **fields}


def policy(*splits: dict[str, Any]) -> dict[str, Any]:
    return {"agents": [{"agent_id": "a"}, {"agent_id": "b"}], "splits": list(splits)}


def test_a_file_holds_splits_by_agent() -> None:
    found = policy_from_mapping(
        policy(
            split(layer="l", layer_to=300_000, overrides={"tester": "B"}, idle_s=60, unit="user"),
            split(name="y", layer="l", layer_from=300_000, unit="user"),
            split(name="z", agent_id="b", variants=[], observed=True),
        )
    )
    assert [one.name for one in found.splits["a"]] == ["x", "y"]
    assert found.splits["b"] == (Split("z", "b", observed=True),)
    assert found.splits["a"][0] == Split(
        "x",
        "a",
        (Variant("A", 0.5), Variant("B", 0.5)),
        unit="user",
        layer="l",
        layer_to=300_000,
        idle_s=60,
        overrides={"tester": "B"},
    )
    validate(found)


WRONG = [
    ({"variants": []}, "splits[0].variants", "is empty"),
    ({"variants": [A]}, "splits[0].variants", "together are 0.5; they must be 1"),
    ({"variants": [{**A, "share": 0.500_01}, B]}, "splits[0].variants", "they must be 1"),
    ({"variants": [{**A, "share": -0.5}, {**B, "share": 1.5}]}, "splits[0].variants[0].share", "between 0 and 1"),
    ({"variants": [{**A, "share": float("nan")}, B]}, "splits[0].variants[0].share", "not a number"),
    ({"variants": [{**A, "temperature": float("nan")}, B]}, "splits[0].variants[0].temperature", "not a number"),
    ({"variants": [{**A, "temperature": float("inf")}, B]}, "splits[0].variants[0].temperature", "not a number"),
    ({"variants": [{**A, "top_p": 1.1}, B]}, "splits[0].variants[0].top_p", "between 0 and 1"),
    ({"variants": [{**A, "max_output_tokens": 0}, B]}, "splits[0].variants[0].max_output_tokens", "between 1"),
    ({"variants": [A, {**B, "name": "A"}]}, "splits[0].variants[1].name", "is already variants[0]"),
    ({"variants": [{**A, "name": "a=b"}, B]}, "splits[0].variants[0].name", "no '='"),
    ({"variants": [{**A, "name": "a,b"}, B]}, "splits[0].variants[0].name", "no ','"),
    ({"variants": [{**A, "name": "a b"}, B]}, "splits[0].variants[0].name", "is not a name"),
    ({"variants": [{**A, "prompt_version": "ü"}, B]}, "splits[0].variants[0].prompt_version", "metadata"),
    ({"variants": [{**A, "prompt_version": " x"}, B]}, "splits[0].variants[0].prompt_version", "metadata"),
    ({"variants": [{**A, "labels": {"ü": "x"}}, B]}, "splits[0].variants[0].labels", "name of a label"),
    ({"variants": [{**A, "aborted": True}, B]}, "splits[0].variants[0].aborted", "first variant"),
    ({"variants": [{**A, "model": "m" * 300}, B]}, "splits[0].variants[0].model", "more than 256"),
    ({"variants": [{**A, "surprise": 1}, B]}, "splits[0].variants[0].surprise", "is not a field"),
    ({"variants": [{"name": f"v{at}"} for at in range(MAX_VARIANTS + 1)]}, "splits[0].variants", "at most"),
    ({"name": "x=y"}, "splits[0].name", "no '='"),
    ({"name": ""}, "splits[0].name", "is not a name"),
    ({"unit": "device"}, "splits[0].unit", "session, user, request"),
    ({"layer": "a,b"}, "splits[0].layer", "no ','"),
    ({"layer_from": -1}, "splits[0].layer_from", "between 0"),
    ({"layer_to": PARTS + 1}, "splits[0].layer_to", "between 0"),
    ({"layer_from": 5, "layer_to": 4}, "splits[0].layer_from", "more than layer_to"),
    ({"idle_s": 0}, "splits[0].idle_s", "between 1"),
    ({"overrides": {"u": "C"}}, "splits[0].overrides.u", "is no variant"),
    ({"overrides": {"": "A"}}, "splits[0].overrides", "empty unit"),
    ({"agent_id": "c"}, "splits[0].agent_id", "is no agent; known: a, b"),
    ({"agent_id": "a a"}, "splits[0].agent_id", "is not the name of an agent"),
    ({"is_open": 1}, "splits[0].is_open", "true or false"),
]


@pytest.mark.parametrize(("fields", "path", "reason"), WRONG)
def test_what_is_wrong_is_named(fields: dict[str, Any], path: str, reason: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from_mapping(policy(split(**fields)))
    assert caught.value.path == path
    assert reason in caught.value.reason


def ranges(*each: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    share = 1 / len(each)
    return [{"name": f"v{at}", "share": share, "ranges": [list(pair) for pair in one]} for at, one in enumerate(each)]


@pytest.mark.parametrize(
    ("each", "path", "reason"),
    [
        ([[(0, 10)], [(9, PARTS)]], "splits[0].variants[1].ranges", "overlaps a range that ends at 10"),
        ([[(0, 10)], [(11, PARTS)]], "splits[0].variants", "no variant has the parts from 10 to 11"),
        ([[(1, 10)], [(10, PARTS)]], "splits[0].variants", "from 0 to 1"),
        ([[(0, 10)], [(10, PARTS - 1)]], "splits[0].variants", f"from {PARTS - 1} to {PARTS}"),
        ([[(0, 10)], []], "splits[0].variants", f"from 10 to {PARTS}"),
        ([[(0, 0)], [(0, PARTS)]], "splits[0].variants[0].ranges[0]", "half-open"),
        ([[(0, PARTS + 1)], []], "splits[0].variants[0].ranges[0]", "half-open"),
        ([[(0, 5, 9)], []], "splits[0].variants[0].ranges[0]", "half-open"),
    ],
)
def test_ranges_that_are_not_everything_once(each: Any, path: str, reason: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from_mapping(policy(split(variants=ranges(*each))))
    assert (caught.value.path, reason in caught.value.reason) == (path, True), caught.value


def test_ranges_may_be_in_pieces() -> None:
    check_split(split_from_mapping(split(variants=ranges([(0, 10), (20, 30)], [(10, 20), (30, PARTS)]))))


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        ({"layer_to": 10}, {"layer_from": 9}, "layer_from"),
        ({}, {}, "layer_from"),
        ({"layer_to": 10}, {"layer_from": 10, "unit": "user"}, "unit"),
    ],
)
def test_splits_of_one_layer_share_no_unit(first: dict[str, Any], second: dict[str, Any], path: str) -> None:
    both = [split(layer="l", **first), split(name="y", layer="l", **second)]
    with pytest.raises(PolicyError) as caught:
        policy_from_mapping(policy(*both))
    assert caught.value.path == f"splits[1].{path}"
    policy_from_mapping(policy(both[0], {**both[1], "agent_id": "b"}))  # layers are an agent's own
    policy_from_mapping(policy({**both[0], "layer": ""}, both[1]))


def test_names_are_unique_among_all_agents() -> None:
    with pytest.raises(PolicyError, match=r"splits\[1\].name: 'x' is already splits\[0\]"):
        policy_from_mapping(policy(split(), split(agent_id="b")))


def test_what_is_kept_under_another_agent_or_too_much() -> None:
    one = split_from_mapping(split())
    with pytest.raises(PolicyError, match="is kept under 'b'"):
        check_splits([one], "b")
    many = [split_from_mapping(split(name=f"x{at}")) for at in range(MAX_SPLITS + 1)]
    with pytest.raises(PolicyError, match="at most"):
        check_splits(many, "a")
    found = policy_from_mapping(policy(split()))
    with pytest.raises(PolicyError, match="'gone' is no agent"):
        validate(type(found)(found.agents, splits={"gone": found.splits["a"]}))


# -- on the wire -------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,9}", fullmatch=True)
labels = st.dictionaries(st.sampled_from(["version", "zone"]), names, max_size=2)


@st.composite
def splits(draw: st.DrawFn) -> Split:
    found = draw(st.lists(names, unique=True, min_size=1, max_size=4))
    weights = [draw(st.integers(0, 9)) for _ in found]
    weights[0] += 1
    shares = [weight / sum(weights) for weight in weights]
    given_ranges = draw(st.booleans())
    own = reallocated([()] * len(found), shares) if given_ranges else [()] * len(found)
    variants = [
        Variant(
            name,
            share,
            ranges_,
            draw(labels),
            draw(st.sampled_from(["", "p 1"])),
            draw(st.sampled_from(["", "m"])),
            draw(st.none() | st.floats(0, 2)),
            draw(st.none() | st.floats(0, 1)),
            draw(st.none() | st.integers(1, 100)),
            draw(st.none() | st.booleans()),
            at > 0 and draw(st.booleans()),
        )
        for at, (name, share, ranges_) in enumerate(zip(found, shares, own, strict=True))
    ]
    bounds = sorted([draw(st.integers(0, PARTS)), draw(st.integers(0, PARTS))])
    return Split(
        draw(names),
        "a",
        tuple(variants),
        draw(st.sampled_from(["", "seed"])),
        draw(st.sampled_from(["session", "user", "request"])),
        draw(st.sampled_from(["", "layer"])),
        bounds[0],
        bounds[1],
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(1, 90_000)),
        draw(st.dictionaries(st.sampled_from(["u1", "ü 2"]), st.sampled_from(found), max_size=2)),
    )


@settings(max_examples=150, deadline=None)
@given(splits())
def test_what_is_sent_is_what_is_received(one: Split) -> None:
    message = policy_pb2.SplitPolicy.FromString(encode_split(one).SerializeToString())
    assert decode_split(message) == one
    assert decode_splits([message], "a") == (one,)


def test_an_empty_range_stays_empty_on_the_wire() -> None:
    """Nobody takes part: not to be mistaken for everybody."""
    one = Split("x", "a", (Variant("A", 1.0),), layer_from=0, layer_to=0)
    assert decode_split(encode_split(one)) == one


def test_a_wrong_message_is_refused_with_its_path() -> None:
    message = encode_split(Split("x", "a", (Variant("A", 1.0),)))
    message.variants[0].share = float("nan")
    with pytest.raises(PolicyError, match=r"splits\[0\].variants\[0\].share: nan is not a number"):
        decode_splits([message], "a")
    message = policy_pb2.SplitPolicy(name="x", agent_id="a")
    with pytest.raises(PolicyError, match="at least one variant"):
        decode_split(message)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=5), st.lists(st.integers(0, 20), min_size=5, max_size=5))
def test_reallocation_is_valid_and_moves_only_what_it_must(first: list[int], second: list[int]) -> None:
    first[0] += 1
    second[0] += 1
    weights = second[: len(first)]
    before = ranges_of([one / sum(first) for one in first])
    shares = [one / sum(weights) for one in weights]
    after = reallocated(before, shares)
    check_split(Split("x", "a", tuple([Variant(f"v{at}", shares[at], own) for at, own in enumerate(after)])))
    for own, mine in zip(before, after, strict=True):
        grew = sum(end - start for start, end in mine) >= sum(end - start for start, end in own)
        larger, smaller = (mine, own) if grew else (own, mine)
        assert all(any(a <= start and end <= b for a, b in larger) for start, end in smaller)
