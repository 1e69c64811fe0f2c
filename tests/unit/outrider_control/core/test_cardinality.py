"""Series are bounded, whatever names come."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.cardinality import IDLE_MS, MAX_KNOWN, Bounds, Cardinality, cleaned
from outrider_control.core.sample import OTHER, SeriesKey

NOW_MS = 1_790_000_000_000


def key(number: int, agent_id: str = "tax", **names: str) -> SeriesKey:
    return SeriesKey(agent_id, **({"method": "/s/m", "variant": "b", "endpoint": f"e{number}", "tenant": "t"} | names))


def test_within_the_bound_names_stay_as_they_are() -> None:
    cardinality = Cardinality()
    keys = [key(number) for number in range(200)]
    assert [cardinality.place(one, NOW_MS) for one in keys] == keys
    assert cardinality.overflowed == 0
    assert cardinality.series == 200


def test_past_it_endpoint_tenant_variant_method_go_in_that_order() -> None:
    cardinality = Cardinality(Bounds(series=16))  # four more series have lost a name
    for number in range(16):
        cardinality.place(key(number), NOW_MS)
    found = [
        cardinality.place(key(100 + number, method=f"m{number}", tenant=f"t{number}", variant=f"v{number}"), NOW_MS)
        for number in range(5)
    ]
    assert found == [
        SeriesKey("tax", "m0", "v0", OTHER, "t0"),
        SeriesKey("tax", "m1", "v1", OTHER, OTHER),
        SeriesKey("tax", "m2", OTHER, OTHER, OTHER),
        SeriesKey("tax", OTHER, OTHER, OTHER, OTHER),
        SeriesKey("tax", OTHER, OTHER, OTHER, OTHER),
    ]
    assert cardinality.overflowed == 5
    assert cardinality.place(key(3), NOW_MS) == key(3)
    assert cardinality.overflowed == 5


def test_ten_thousand_agents_take_no_more_room_than_a_thousand() -> None:
    cardinality = Cardinality()
    places = [cardinality.place(SeriesKey(f"agent-{number}"), NOW_MS) for number in range(10_000)]
    assert places[:1_000] == [SeriesKey(f"agent-{number}") for number in range(1_000)]
    assert set(places[1_000:]) == {SeriesKey(OTHER)}
    assert cardinality.agents == 1_001
    assert cardinality.overflowed == 9_000
    assert cardinality.series == 1_001


@given(st.integers(0, 2**32))
def test_whatever_comes_the_bounds_hold_and_places_are_stable(seed: int) -> None:
    rng = random.Random(seed)
    cardinality = Cardinality(Bounds(agents=3, series=6))
    seen: dict[SeriesKey, SeriesKey] = {}
    for _ in range(400):
        one = SeriesKey(*(f"{rng.choice('ab')}{rng.randrange(5)}" for _ in range(5)))
        place = cardinality.place(one, NOW_MS)
        assert seen.setdefault(one, place) == place
        assert cardinality.place(place, NOW_MS) == place  # a fold may ask for what was placed before
    assert cardinality.agents <= 4
    assert len(set(seen.values())) == cardinality.series <= 4 * (6 + 5)


def test_a_restart_changes_no_place() -> None:
    cardinality = Cardinality(Bounds(agents=5, series=8))
    keys = [key(number, f"agent-{number % 7}") for number in range(200)]
    before = {one: cardinality.place(one, NOW_MS) for one in keys}
    after = Cardinality(Bounds(agents=5, series=8))
    after.load((place, NOW_MS) for place in set(before.values()))
    assert {one: after.place(one, NOW_MS) for one in reversed(keys)} == before


def test_places_are_free_again_after_a_day() -> None:
    cardinality = Cardinality(Bounds(agents=2, series=2))
    for number in range(2):
        cardinality.place(key(number), NOW_MS)
    later_ms = NOW_MS + IDLE_MS // 2
    assert cardinality.place(key(1), later_ms) == key(1)
    assert cardinality.place(key(9), later_ms).endpoint == OTHER
    next_day_ms = NOW_MS + IDLE_MS + 1
    assert cardinality.place(key(9), next_day_ms) == key(9)  # in the place of the first, which nobody asked for
    assert cardinality.place(key(1), next_day_ms) == key(1)
    cardinality.place(key(1, "second"), next_day_ms)
    assert cardinality.place(key(1, "third"), next_day_ms).agent_id == OTHER
    assert cardinality.place(key(1, "third"), next_day_ms + 2 * IDLE_MS) == key(1, "third")


def test_memory_of_names_that_come_once_is_bounded() -> None:
    cardinality = Cardinality(Bounds(agents=2, series=2))
    for number in range(MAX_KNOWN + 10):
        cardinality.place(key(number), NOW_MS)
    assert len(cardinality._known) <= MAX_KNOWN
    assert cardinality.series <= 7


@given(st.lists(st.text(max_size=300), min_size=5, max_size=5))
def test_names_are_what_every_store_takes(names: list[str]) -> None:
    found = cleaned(SeriesKey(*names))
    for name in found:
        assert "\0" not in name
        assert len(name) <= 256
        name.encode("utf-8")
    assert cleaned(found) == found
