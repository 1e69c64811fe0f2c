"""What is known of sidecars: own and others', fresh and old, bounded."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Agent, EndpointPolicy
from outrider.v1 import mesh_pb2, operator_pb2
from outrider_control.publish import fleet as module
from outrider_control.publish.fleet import Fleet, Sidecar
from outrider_control.publish.watch import Watch
from outrider_control.state.sidecars import SidecarRow

T = 1_700_000_000_000


class Clock:
    now_ms = T

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dropped() -> list[tuple[str, str, int]]:
    return []


@pytest.fixture
def fleet(clock: Clock, dropped: list[tuple[str, str, int]]) -> Fleet:
    return Fleet("mine", clock, lambda *growth: dropped.append(growth))


def opened(fleet: Fleet, instance_id: str = "i", **hello: Any) -> Sidecar:
    return fleet.open(mesh_pb2.Hello(instance_id=instance_id, **hello), Watch({}), "127.0.0.1:5")


def foreign(instance_id: str, seen_ms: int, connected: bool = True, **record: Any) -> SidecarRow:
    whole = operator_pb2.SidecarRecord(instance_id=instance_id, control_id="other", seen_unix_ms=seen_ms, **record)
    return SidecarRow(instance_id, "other", connected, seen_ms, whole.SerializeToString())


def report(spans_dropped: int = 0, in_flight: int = 3) -> mesh_pb2.LoadReport:
    return mesh_pb2.LoadReport(
        agents=[mesh_pb2.AgentLoad(agent_id="a", in_flight=in_flight)], spans_dropped=spans_dropped
    )


def test_a_hello_becomes_a_record(fleet: Fleet) -> None:
    opened(fleet, node="n", agent_id="a", version="1", capabilities=["policy.v1"], now_unix_ms=T + 250, compiled=True)
    (record,) = fleet.sidecars()
    assert (record.node, record.agent_id, record.version, record.compiled) == ("n", "a", "1", True)
    assert (record.connected, record.connected_unix_ms, record.seen_unix_ms) == (True, T, T)
    assert (record.clock_offset_ms, record.peer, record.control_id) == (250, "127.0.0.1:5", "mine")
    assert list(record.capabilities) == ["policy.v1"]
    assert fleet.clock_offset_ms("i") == 250
    assert fleet.clock_offset_ms("nobody") == 0


def test_long_words_are_cut(fleet: Fleet) -> None:
    opened(fleet, node="n" * 9_999, capabilities=["c" * 9_999] * 99)
    (record,) = fleet.sidecars()
    assert len(record.node) == module.MAX_TEXT
    assert [len(text) for text in record.capabilities] == [module.MAX_TEXT] * module.MAX_CAPABILITIES


def test_declared_endpoints_are_shown_as_declared(fleet: Fleet) -> None:
    fleet.agents["a"] = Agent("a", endpoints=(EndpointPolicy("h:1", weight=2, capacity=8), EndpointPolicy("h:2")))
    shown = [
        (one.endpoint.address, one.endpoint.weight, one.endpoint.capacity, one.source) for one in fleet.endpoints("a")
    ]
    assert shown == [("h:1", 2, 8, "declared"), ("h:2", 1, 0, "declared")]


def test_load_is_fresh_for_three_seconds(fleet: Fleet, clock: Clock) -> None:
    sidecar = opened(fleet)
    assert not fleet.sidecars()[0].HasField("load")
    fleet.loaded(sidecar, report())
    clock.now_ms += module.LOAD_STALE_MS
    assert fleet.loads()["i"].agents[0].in_flight == 3
    clock.now_ms += 1
    assert fleet.loads() == {}
    fleet.loaded(sidecar, report())
    fleet.closed(sidecar)
    assert fleet.loads() == {}


def test_dropped_spans_count_once(fleet: Fleet, dropped: list[tuple[str, str, int]]) -> None:
    sidecar = opened(fleet, agent_id="a")
    for total in (0, 5, 5, 9):
        fleet.loaded(sidecar, report(total))
    assert dropped == [("i", "a", 5), ("i", "a", 4)]
    sidecar = opened(fleet, agent_id="a")  # it comes back
    fleet.loaded(sidecar, report(10))
    assert dropped[2:] == [("i", "a", 1)]


def test_what_was_counted_before_a_restart_or_elsewhere_is_not_counted_again(
    fleet: Fleet, clock: Clock, dropped: list[tuple[str, str, int]]
) -> None:
    before = Fleet("before", clock)
    before.loaded(opened(before), report(7))
    (row,) = before.to_store(with_loads=False)
    fleet.learn([row])
    fleet.loaded(opened(fleet), report(9))
    assert dropped == [("i", "", 2)]


def test_those_of_other_control_planes_are_shown_as_old_as_they_are(fleet: Fleet, clock: Clock) -> None:
    opened(fleet, "own", node="b")
    fleet.learn(
        [
            foreign("fresh", T, node="a", load=report(), clock_offset_ms=9),
            foreign("silent", T - module.FOREIGN_STALE_MS - 1, node="a", load=report()),
            foreign("gone", T, connected=False, node="c"),
            foreign("forgotten", T - module.REMEMBERED_MS - 1),
            SidecarRow("own", "mine", False, T, b""),
        ]
    )
    assert [(each.instance_id, each.connected) for each in fleet.sidecars()] == [
        ("fresh", True),
        ("own", True),
        ("silent", False),
        ("gone", False),
    ]
    assert set(fleet.loads()) == {"fresh"}
    assert fleet.clock_offset_ms("fresh") == 9
    assert fleet.connected == 1
    clock.now_ms += module.LOAD_STALE_MS + 1
    assert fleet.loads() == {}


def test_where_no_other_control_plane_can_be_nobody_else_serves(fleet: Fleet) -> None:
    fleet.learn([foreign("left", T, node="a", load=report(), clock_offset_ms=9)])
    assert fleet.sidecars()[0].connected
    fleet.alone = True
    (record,) = fleet.sidecars()
    assert (record.node, record.connected, record.HasField("load")) == ("a", False, False)
    assert fleet.loads() == {}
    assert fleet.clock_offset_ms("left") == 9


def connected(fleet: Fleet) -> bool:
    (record,) = fleet.sidecars()
    return record.connected


def test_a_control_plane_that_is_gone_serves_nobody(fleet: Fleet, clock: Clock) -> None:
    fleet.meet({"mine": T})
    fleet.learn([foreign("i", T + 1, load=report())])
    assert connected(fleet)  # it may have come since that look
    clock.now_ms += 2_000
    fleet.meet({"mine": clock.now_ms})
    assert not connected(fleet)
    assert fleet.loads() == {}


def test_a_control_plane_that_is_silent_serves_nobody(fleet: Fleet, clock: Clock) -> None:
    fleet.meet({"other": T})
    clock.now_ms += module.PEER_STALE_MS
    fleet.learn([foreign("i", clock.now_ms)])
    assert connected(fleet)
    clock.now_ms += 1
    assert not connected(fleet)
    fleet.meet({"other": clock.now_ms})
    assert connected(fleet)


@pytest.mark.parametrize("skew_ms", [-9_000, 0, 9_000])
def test_a_control_plane_is_there_while_it_goes_on_saying_so(fleet: Fleet, clock: Clock, skew_ms: int) -> None:
    for _ in range(5):
        fleet.meet({"other": clock.now_ms + skew_ms})
        clock.now_ms += 2_000
    fleet.learn([foreign("i", clock.now_ms)])
    assert connected(fleet)


def test_one_that_went_to_another_control_plane_is_shown_as_that_one_says(fleet: Fleet, clock: Clock) -> None:
    sidecar = opened(fleet)
    assert fleet.closed(sidecar)
    clock.now_ms += 1_000
    fleet.learn([foreign("i", clock.now_ms, node="n")])
    (record,) = fleet.sidecars()
    assert (record.connected, record.control_id) == (True, "other")


def test_the_end_of_a_replaced_stream_changes_nothing(fleet: Fleet) -> None:
    older = opened(fleet)
    newer = opened(fleet)
    assert not fleet.closed(older)
    assert fleet.connected == 1
    assert fleet.closed(newer)
    assert fleet.connected == 0


def test_those_who_went_are_forgotten_after_ten_minutes(fleet: Fleet, clock: Clock) -> None:
    fleet.closed(opened(fleet, "went"))
    clock.now_ms += module.REMEMBERED_MS
    opened(fleet, "stays")
    assert len(fleet.sidecars()) == 2
    clock.now_ms += 1
    fleet.learn([])
    assert [each.instance_id for each in fleet.sidecars()] == ["stays"]


def test_there_are_never_too_many(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SIDECARS", 10)
    for at in range(30):
        fleet.closed(opened(fleet, f"went-{at:02}"))
    assert [each.instance_id for each in fleet.sidecars()] == [f"went-{at:02}" for at in range(20, 30)]
    for at in range(10):
        opened(fleet, f"here-{at}")
    assert fleet.is_full("one more")
    assert not fleet.is_full("here-3")
    assert {each.instance_id for each in fleet.sidecars()} == {f"here-{at}" for at in range(10)}
    fleet.learn([foreign(f"foreign-{at}", T) for at in range(30)])
    assert len(fleet.sidecars()) == 20


def test_only_what_is_new_goes_to_the_store(fleet: Fleet, clock: Clock) -> None:
    sidecar = opened(fleet)
    rows = fleet.to_store(with_loads=False)
    assert [(row.instance_id, row.control_id, row.connected, row.seen_ms) for row in rows] == [("i", "mine", True, T)]
    fleet.loaded(sidecar, report())
    assert fleet.to_store(with_loads=False) == []
    (row,) = fleet.to_store(with_loads=True)
    assert operator_pb2.SidecarRecord.FromString(row.record).load.agents[0].in_flight == 3
    fleet.acked(sidecar)
    rows = fleet.to_store(with_loads=False)
    assert len(rows) == 1
    fleet.not_stored(rows)
    assert len(fleet.to_store(with_loads=False)) == 1
    fleet.closed(sidecar)
    (row,) = fleet.to_store(with_loads=False)
    assert not row.connected
