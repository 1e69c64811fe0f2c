"""What is held of the control plane: resource by resource, full and delta, and any bytes on the disk."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.core.resource import ENDPOINTS, EPOCHS, POLICY, Key, Resource, Update
from outrider_sidecar.engines.held import Held, HeldRefused, decode, encode, refuse


def policy(name: str, version: int, value: object = None, reason: str = "") -> Resource:
    return Resource(POLICY, name, version, b"body", None if reason else value or f"{name}{version}", reason)


def take(held: Held, update: Update) -> tuple[set[str], list[str]]:
    """Names that changed, and names that were refused."""
    plan = held.plan(update)
    held.commit(plan)
    return {name for _, name in plan.changed}, [one.name for one in plan.refused]


def versions(held: Held) -> dict[str, int]:
    return {name: one.version for (_, name), one in held.resources.items()}


def test_a_delta_changes_what_it_names_and_a_full_update_drops_what_it_does_not() -> None:
    held = Held()
    assert take(held, Update(True, [policy("a", 1), policy("b", 1)])) == ({"a", "b"}, [])
    assert take(held, Update(False, [policy("b", 2)], [policy("a", 3)])) == ({"a", "b"}, [])
    assert versions(held) == {"b": 2}
    assert take(held, Update(True, [policy("c", 4)], current=[policy("b", 2)])) == ({"c"}, [])
    assert versions(held) == {"b": 2, "c": 4}
    assert take(held, Update(True)) == ({"b", "c"}, [])
    assert held.updates == 4


def test_a_refused_resource_leaves_the_last_good_one_and_its_siblings_are_taken() -> None:
    held = Held()
    take(held, Update(True, [policy("a", 1), policy("b", 1)]))
    assert take(held, Update(False, [policy("a", 2, reason="wrong"), policy("b", 2)])) == ({"b"}, ["a"])
    assert versions(held) == {"a": 1, "b": 2}
    assert {key[1]: one.reason for key, one in held.refused.items()} == {"a": "wrong"}
    take(held, Update(True, [policy("a", 2, reason="still")], current=[policy("b", 2)]))
    assert versions(held) == {"a": 1, "b": 2}
    take(held, Update(False, [policy("a", 3)]))
    assert (versions(held), dict(held.refused)) == ({"a": 3, "b": 2}, {})


def test_a_removed_resource_takes_its_refusal_along() -> None:
    held = Held()
    take(held, Update(False, [policy("a", 2, reason="wrong")]))
    take(held, Update(False, removed=[policy("a", 3)]))
    assert dict(held.refused) == {}


def test_a_delta_that_is_older_than_what_is_held_changes_nothing() -> None:
    held = Held()
    take(held, Update(True, [policy("a", 5)]))
    assert take(held, Update(False, [policy("a", 4)], [policy("a", 3)])) == (set(), [])
    assert versions(held) == {"a": 5}
    assert take(held, Update(True, [policy("a", 4)])) == ({"a"}, [])  # a store that was put back: full is the truth
    assert versions(held) == {"a": 4}


def test_the_same_value_at_a_new_version_is_no_change() -> None:
    held = Held()
    take(held, Update(True, [policy("a", 1, "same")]))
    assert take(held, Update(False, [policy("a", 2, "same")])) == (set(), [])
    assert versions(held) == {"a": 2}


def test_gone_and_added_in_one_update_is_never_empty_in_between() -> None:
    held = Held()
    take(held, Update(True, [policy("a", 1)]))
    plan = held.plan(Update(False, [policy("a", 3)], [policy("a", 2)]))
    assert plan.held[POLICY, "a"].version == 3


def test_what_turns_out_not_to_work_stays_as_it_was() -> None:
    held = Held()
    take(held, Update(True, [policy("a", 1), policy("gone", 1)]))
    plan = held.plan(Update(False, [policy("a", 2), policy("new", 2)], [policy("gone", 2)]))
    plan = refuse(plan, held.resources, dict.fromkeys(plan.changed, "no"))
    held.commit(plan)
    assert versions(held) == {"a": 1, "gone": 1}
    assert {one.name: (one.version, one.reason) for one in plan.refused} == {"a": (2, "no"), "new": (2, "no")}
    assert plan.changed == frozenset()


NAMES = st.sampled_from("abc")
OFFERS = st.builds(lambda name, reason: (name, reason), NAMES, st.sampled_from(("", "", "bad")))
STEPS = st.tuples(st.booleans(), st.lists(OFFERS, max_size=3), st.lists(NAMES, max_size=2))


@given(st.lists(STEPS, max_size=20))
def test_it_ends_at_the_newest_good_version_of_what_there_is(steps: list) -> None:
    """Against a model: a dict of the newest good version of each name, versions only rising."""
    held, model = Held(), {}
    for version, (full, offers, gone) in enumerate(steps, 1):
        resources = [policy(name, version, reason=reason) for name, reason in dict(offers).items()]
        removed = [policy(name, version) for name in gone if name not in dict(offers)]
        keep = {name: held.resources[POLICY, name] for name in model if version % 2 and name not in gone}
        take(held, Update(full, resources, [] if full else removed, list(keep.values()) if full else []))
        if full:
            named = keep.keys() | dict(offers).keys()
            model = {name: kept for name, kept in model.items() if name in named}
        else:
            model = {name: kept for name, kept in model.items() if name not in {one.name for one in removed}}
        model.update({one.name: version for one in resources if not one.reason})
        assert versions(held) == model
        assert all(one.value == f"{name}{model[name]}" for (_, name), one in held.resources.items())


RESOURCES = st.tuples(
    st.sampled_from((POLICY, ENDPOINTS, EPOCHS)),
    st.text(max_size=5),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=50),
).map(lambda fields: Resource(*fields))


@given(st.lists(RESOURCES, max_size=5))
def test_bytes_and_back(resources: list[Resource]) -> None:
    assert decode(encode(resources)) == resources


@given(st.lists(RESOURCES, max_size=3), st.data())
def test_damaged_bytes_are_refused(resources: list[Resource], data: st.DataObject) -> None:
    whole = encode(resources)
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    wrong = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :]
    with pytest.raises(HeldRefused):
        decode(wrong)


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(HeldRefused):
        decode(data)


def _packed(value: object) -> bytes:
    import msgpack
    from xxhash import xxh3_128_digest

    from outrider_sidecar.engines import held

    payload: bytes = msgpack.packb(value)  # pyright: ignore[reportAssignmentType]
    return held._HEADER.pack(held._MAGIC, held.SCHEMA_VERSION, len(payload), xxh3_128_digest(payload)) + payload


@pytest.mark.parametrize(
    "value", [[], {}, {"resources": 5}, {"resources": [[1]]}, {"resources": [[9, "a", 1, b""]]}, {"resources": [["x"]]}]
)
def test_a_good_checksum_does_not_make_it_meaningful(value: object) -> None:
    with pytest.raises(HeldRefused, match="malformed"):
        decode(_packed(value))


def test_what_a_later_version_adds_is_passed_over() -> None:
    data = _packed({"resources": [[POLICY, "a", 1, b"x", "more"]], "more": 1})
    assert decode(data) == [Resource(POLICY, "a", 1, b"x")]


def test_another_schema_is_refused() -> None:
    data = bytearray(encode([]))
    data[8] = 2
    with pytest.raises(HeldRefused, match="schema version 2"):
        decode(bytes(data))


def test_refusals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    many: Callable[[int], list[Resource]] = lambda at: [policy(f"{at}-{n}", 1, reason="no") for n in range(3_000)]  # noqa: E731
    for at in range(3):
        take(held, Update(False, many(at)))
    key: Key = (POLICY, "0-0")
    assert len(held.refused) == 4_096
    assert key in held.refused
