"""What is said of an agent's scale, here and to other control planes."""

from __future__ import annotations

import json
import math

import pytest

from outrider_control.loops.scale import record
from outrider_control.loops.scale.record import Report
from outrider_control.loops.scale.types import READY, Decision, Instance, Seen
from outrider_control.state.scales import ScaleRow

SEEN = Seen("tax", 5, 12.0, 3.0, 2, 1, 1)
DECISION = Decision(
    "tax", 7, 4, "up", "why", 0.5, True, 15.0, 8.0, "policy", 0.9, 1, 10, {"in_flight": 12.0, "odd": math.nan}
)


def test_what_is_not_known_is_absent() -> None:
    found = record.record("tax", record.NO_ENGINE, "", ScaleRow("tax"), None, None, "")
    for name in ("demand", "queued", "capacity", "utilization", "confidence"):
        assert not found.HasField(name)
    blind = record.record("tax", record.NO_DATA, "x", ScaleRow("tax"), Seen("tax", 5, None, None, 2), None, "")
    assert not blind.HasField("demand")
    assert blind.ready == 2


def test_it_goes_through_the_store_and_back() -> None:
    row = ScaleRow("tax", 3, 4, 7, 9, "ann", "night")
    said = record.record("tax", record.PAUSED, "local", row, SEEN, DECISION, "a problem")
    report = Report(said, DECISION, (Instance("tax-1", "h:1", READY, 5, "note"),))
    text = record.to_json(report)
    assert json.loads(text)["last"]["inputs"]["odd"] == "nan"
    back = record.from_json(text)
    assert back is not None
    assert (back.record, back.instances) == (said, report.instances)
    assert back.last is not None
    assert (back.last.reason, back.last.confidence, back.last.inputs["in_flight"]) == ("why", 0.5, 12.0)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"record": 3, "last": null, "instances": []}', "not json"])
def test_what_cannot_be_read_is_nothing(text: str) -> None:
    assert record.from_json(text) is None


def test_fields_of_a_newer_program_are_passed_over() -> None:
    report = Report(record.record("tax", "scaling", "", ScaleRow("tax"), None, None, ""), DECISION, ())
    data = json.loads(record.to_json(report))
    data["record"]["mood"] = "good"
    data["last"]["mood"] = "good"
    back = record.from_json(json.dumps(data))
    assert back is not None
    assert back.record.agent_id == "tax"
