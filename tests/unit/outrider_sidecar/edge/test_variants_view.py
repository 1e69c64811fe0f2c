"""What the admin port shows of splits."""

from __future__ import annotations

import json
from typing import Any

from outrider.policy import Policy
from outrider.split import Split, Variant
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.edge.variants_view import split_families, splits_shown
from tests.wire import Wire, agent, message

SPLIT = Split(
    "x", "a", (Variant("A", 0.5), Variant("B", 0.5, labels={"v": "2"}, temperature=0.5)), overrides={"me": "B"}
)


def used(*sessions: str) -> Wire:
    wire = Wire(Policy({"a": agent()}, "a", splits={"a": (SPLIT,)}))
    for session in sessions:
        fields = (("x-session-id", session),) if session else ()
        wire.call(*fields, body=message(b"ask"))
        wire.served[-1].reply(message(b"answer"))
    return wire


def figures(runtime: Runtime) -> dict[str, Any]:
    return {family.name: dict(family.samples) for family in split_families(runtime)}


def test_splits_in_force_and_what_they_gave() -> None:
    shown = splits_shown(used("s1", "s2", "s2", "me").runtime)
    json.dumps(shown)
    (split,) = shown["in_force"]
    assert (split["agent_id"], split["name"], split["overrides"]) == ("a", "x", 1)
    assert [one["name"] for one in split["variants"]] == ["A", "B"]
    assert (split["variants"][1]["labels"], split["variants"][1]["temperature"]) == ({"v": "2"}, 0.5)
    assert sum(split["assigned"].values()) == 2
    assert shown["units_held"] == 2
    assert "s1" not in json.dumps(shown)


def test_the_same_as_metrics() -> None:
    wire = used("s1", "s2", "", "s1")
    before = figures(wire.runtime)["outrider_variant_exceptions"].get(("a", "x", "vanished"), 0)
    gone = Split("x", "a", (Variant("C", 1.0),))
    wire.apply(Policy({"a": agent()}, "a", splits={"a": (gone,)}))
    wire.call(("x-session-id", "s1"), body=message(b"ask"))
    wire.served[-1].reply(message(b"answer"))
    found = figures(wire.runtime)
    assert sum(found["outrider_variant_assigned"].values()) == 2
    assert found["outrider_variant_exceptions"] == {("a", "x", "vanished"): before + 1}
    assert found["outrider_variant_unassigned"] == {("a",): 1}
    assert found["outrider_variant_units_held"] == {(): 2}
    assert found["outrider_variant_units_evicted"] == {(): 0}


def test_an_agent_without_splits_and_a_runtime_without_a_store() -> None:
    wire = Wire(agent())
    assert splits_shown(wire.runtime) == {"in_force": [], "units_held": 0}
    assert figures(wire.runtime)["outrider_variant_units_held"] == {(): 0}
