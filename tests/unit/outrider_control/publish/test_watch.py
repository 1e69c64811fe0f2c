"""One stream's state, case by case; the model-based test beside covers their combinations."""

from __future__ import annotations

from outrider.policy import Agent
from outrider_control.publish import resources
from outrider_control.publish.resources import POLICY, Catalog, ResourceId
from outrider_control.publish.watch import MAX_REASON, Refused, Watch

A = ResourceId(POLICY, "a")
B = ResourceId(POLICY, "b")


def change(catalog: Catalog, watch: Watch, key: ResourceId, version: int) -> None:
    catalog.put(resources.policy(Agent(key.name), version, 1))
    watch.mark([key])
    assert watch.next(catalog) is not None


def begun() -> tuple[Catalog, Watch]:
    catalog, watch = Catalog(), Watch({})
    assert watch.next(catalog) is not None
    assert watch.ack(1)
    return catalog, watch


def test_one_ack_confirms_every_update_before_it() -> None:
    catalog, watch = begun()
    change(catalog, watch, A, 1)
    change(catalog, watch, B, 1)
    assert watch.behind(catalog) == 2
    assert watch.ack(3)
    assert watch.behind(catalog) == 0
    assert watch.holds(A, 1, catalog)
    assert watch.holds(B, 1, catalog)


def test_an_ack_of_an_older_update_confirms_nothing_that_was_sent_since() -> None:
    catalog, watch = begun()
    change(catalog, watch, A, 1)
    change(catalog, watch, A, 2)
    assert watch.ack(2)
    assert not watch.holds(A, 1, catalog)
    assert watch.behind(catalog) == 1


def test_a_refusal_counts_for_the_version_that_was_sent_and_until_the_next_is_taken() -> None:
    catalog, watch = begun()
    change(catalog, watch, A, 5)
    assert watch.ack(2, [Refused(A, 5, "x" * 9_999), Refused(B, 1, "never sent")])
    assert watch.refused == [Refused(A, 5, "x" * MAX_REASON)]
    assert watch.refuses(A)
    assert not watch.holds(A, 5, catalog)
    change(catalog, watch, A, 6)
    assert not watch.refuses(A)
    assert watch.ack(3, [Refused(A, 4, "of another version")])
    assert watch.refused == []
    assert watch.holds(A, 6, catalog)


def test_acks_of_updates_that_were_never_sent_change_nothing() -> None:
    catalog, watch = begun()
    change(catalog, watch, A, 1)
    assert not watch.ack(0)
    assert not watch.ack(3)
    assert watch.behind(catalog) == 1


def test_nothing_new_is_nothing_to_say() -> None:
    catalog, watch = begun()
    assert watch.next(catalog) is None
    assert Watch({}).behind(catalog) == 0
