"""The sticky store: who is kept, who is forgotten, what a disk is told."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_sidecar.engines.sessions import Sessions, key_of

A = (("x", "A"),)
B = (("x", "B"),)
ME = object()


def keys(store: Sessions) -> list[bytes]:
    return [unit.key for unit in store]


def saving(max_units: int = 100) -> tuple[Sessions, list[int]]:
    """A store with a disk, and one entry for each time it was asked for."""
    store, asked = Sessions(max_units), []
    store.wants_saving = lambda: asked.append(store.unsaved)
    return store, asked


def test_the_one_idle_longest_goes_where_there_is_no_room() -> None:
    store = Sessions(3)
    for name in (b"1", b"2", b"3"):
        store.put(name, A, 0.0)
    assert store.get(b"1") is not None  # as a call of it does
    store.put(b"4", A, 1.0)
    assert (keys(store), store.evicted, len(store)) == ([b"3", b"1", b"4"], 1, 3)


def test_idle_units_are_forgotten_a_few_at_a_time() -> None:
    store = Sessions()
    store.knows([10.0])
    store.idle_s = 10.0
    for at in range(100):
        store.put(b"%d" % at, A, float(at))
    assert store.sweep(60.0, most=30) == 30
    assert store.sweep(60.0, most=30) == 20
    assert store.sweep(60.0, most=30) == 0
    assert keys(store) == [b"%d" % at for at in range(50, 100)]


def test_a_known_unit_is_one_worked_out_by_who_asks_and_not_idle_for_too_long() -> None:
    store = Sessions()
    unit = store.put(b"1", A, 0.0)
    assert store.known(b"1", ME, 1.0, 10.0) is None
    unit.owner = ME
    assert store.known(b"2", ME, 1.0, 10.0) is None
    assert store.known(b"1", object(), 1.0, 10.0) is None
    assert store.known(b"1", ME, 10.0, 10.0) is unit
    assert store.known(b"1", ME, 20.0, 10.0) is unit
    assert store.known(b"1", ME, 30.1, 10.0) is None
    assert unit.seen_at == 20.0


def test_a_clock_that_seems_to_go_back_forgets_nobody() -> None:
    store = Sessions()
    store.put(b"1", A, 1_000.0).owner = ME
    assert store.known(b"1", ME, 10.0, 10.0) is not None
    assert store.sweep(10.0) == 0


def test_a_disk_is_told_of_what_changes_and_now_and_then_of_who_is_alive() -> None:
    store, asked = saving()
    store.knows([80.0])
    assert store.stale_s == 10.0
    unit = store.put(b"1", A, 0.0)
    unit.owner = ME
    assert [one.key for one in store.take_changed()] == [b"1"]
    store.put(b"1", A, 1.0)
    store.known(b"1", ME, 9.0, 100.0)
    assert (asked, store.unsaved) == ([1], 0)
    store.put(b"1", B, 9.0)
    store.put(b"1", A, 9.0)
    assert (asked, store.unsaved) == ([1, 1, 1], 1)
    store.take_changed()
    store.known(b"1", ME, 19.5, 100.0)
    store.known(b"1", ME, 19.6, 100.0)
    assert (asked, store.unsaved) == ([1, 1, 1], 1)  # it is not asked for: it goes along
    store.take_changed()
    store.put(b"1", A, 30.0)
    store.touch(b"1", 35.0)
    assert (asked, store.unsaved) == ([1, 1, 1], 1)
    store.take_changed()
    store.touch(b"1", 41.0)
    store.touch(b"nobody", 41.0)
    assert ([one.key for one in store.take_changed()], unit.seen_at) == ([b"1"], 41.0)


def test_nothing_is_collected_without_a_disk() -> None:
    store = Sessions()
    store.put(b"1", A, 0.0)
    assert store.unsaved == 0


def test_what_could_not_be_written_waits_and_is_bounded() -> None:
    store, _ = saving(10)
    for at in range(10):
        store.put(b"%d" % at, A, 0.0)
    taken = store.take_changed()
    store.put(b"9", B, 0.0)
    store.put_back(taken)
    assert store.unsaved == 10
    for at in range(10, 1_000):
        store.put(b"%d" % at, A, 0.0)
        assert store.unsaved <= 21
    assert {unit.key for unit in store} <= {unit.key for unit in store.take_changed()}


def test_units_are_restored_with_the_time_they_were_idle() -> None:
    """Less what the disk may lag behind."""
    store = Sessions(3)
    store.knows([80.0])
    store.idle_s = 80.0
    live = store.put(b"live", A, 990.0)
    found = [(b"old", A, 500.0), (b"1", A, 90.0), (b"2", A, 50.0), (b"3", B, -5.0), (b"live", B, 1.0)]
    assert store.restore(found, 1_000.0) == 2
    assert keys(store) == [b"2", b"3", b"live"]  # three at most, and who makes calls already goes last
    assert live.held == A
    assert [unit.seen_at for unit in store] == [960.0, 1_000.0, 990.0]


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_keys_are_bounded_and_differ(one: bytes, other: bytes) -> None:
    first, second = key_of(b"a\0s", one), key_of(b"a\0s", other)
    assert len(first) <= 100
    assert (first == second) == (one == other)
    assert first.startswith(b"a\0s")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([A, B])), max_size=200), st.integers(1, 10))
def test_it_is_never_larger_than_its_bound_and_holds_the_newest(rows: list[tuple[int, object]], bound: int) -> None:
    store = Sessions(bound)
    newest: dict[bytes, object] = {}
    for at, (number, held) in enumerate(rows):
        key = b"%d" % number
        store.get(key)
        store.put(key, held, float(at))  # type: ignore[arg-type]
        newest.pop(key, None)
        newest[key] = held
        assert len(store) <= bound
    expected = list(newest.items())[-bound:]
    assert [(unit.key, unit.held) for unit in store] == expected
