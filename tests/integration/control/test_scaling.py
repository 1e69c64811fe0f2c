"""The number of instances follows the calls: control plane, local engine, instances and sidecar as processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider.v1.operator_pb2 import ScaleInstance
from tests.fleets import Fleet, Holding, Trickle
from tests.sidecars import Calls, Mesh, Sidecar, channel_to, eventually

CAPACITY = 4  # calls at once of one instance
WIDE = 8  # the same of agents that a trickle of calls is not to keep busy


@pytest.fixture(scope="module")
def fleet(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("fleet")
    narrow = dict.fromkeys(("busy", "zero", "paused"), CAPACITY)
    wide = dict.fromkeys(("leaves", "kept", "dies"), WIDE)
    with Fleet(mesh, folder, **narrow, **wide) as started:
        yield started


@pytest.fixture(scope="module")
def caller(mesh: Mesh, fleet: Fleet) -> Sidecar:
    fleet.apply("busy", max_instances=5, cooldown_s=300)
    return mesh.sidecar({"control": [fleet.control.target]}, "caller")


def test_calls_over_what_one_instance_does_get_more_of_them(fleet: Fleet, caller: Sidecar) -> None:
    fleet.come_to("busy", 1)
    with Holding(fleet, caller, "busy", "b") as holding:
        holding.start(2 * CAPACITY)
        fleet.come_to("busy", 3)  # 8 calls at 70 % of 4 each
        assert {name: len(keys) <= CAPACITY for name, keys in holding.all_run().items()} == dict.fromkeys(
            fleet.pids("busy"), True
        )
        (*_, last) = changes = fleet.changes("busy")
        assert all(one["outcome"]["action"] == "up" and one["author"] == "scaler" for one in changes)
        inputs, outcome = last["inputs"], last["outcome"]
        assert (inputs["engine"], inputs["capacity"]) == ("local", CAPACITY)
        assert inputs["in_flight"] + inputs["queued"] == outcome["demand"]
        demand = max(inputs["stable_demand"], inputs["panic_demand"])
        needed = math.ceil(demand / (inputs["policy.target_utilization"] * inputs["capacity"]))
        assert (outcome["to"], outcome["demand"], needed) == (3, 2 * CAPACITY, 3)
        assert f"up from {outcome['from']} to 3: " in last["reason"]
        assert "need 3 at 70% of 4 each (endpoints)" in last["reason"]
        explained = fleet.control.json("scale", "explain", "busy")
        scale = explained["scale"]
        assert (scale["state"], scale["engine"], scale["ready"], scale["desired"]) == ("scaling", "local", 3, 3)
        assert (scale["demand"], scale["capacity"], scale["problem"]) == (2 * CAPACITY, CAPACITY, "")
        shown = [one for one in explained["decisions"] if one["outcome"]["action"] == "up"]
        assert shown == list(reversed(changes)), "what is explained is what the journal holds"
        assert explained["last"]["inputs"]["in_flight"] is not None
        assert [one["state"] for one in explained["instances"]] == ["ready"] * 3
        holding.end_all()


def test_who_leaves_gets_no_more_calls_and_ends_its_own(fleet: Fleet, caller: Sidecar) -> None:
    fleet.apply("leaves", min_instances=3, max_instances=3)
    fleet.come_to("leaves", 3)
    with Holding(fleet, caller, "leaves", "l") as holding, Trickle(caller, "leaves") as trickle:
        holding.start(3 * WIDE - 1)  # with the trickle everybody has some
        kept = {}
        for name, keys in holding.all_run().items():
            kept[name] = keys[0]
            holding.end(name, *keys[1:])
        addresses, pids = fleet.addresses("leaves"), fleet.pids("leaves")
        assert len(kept) == len(addresses) == 3
        done = fleet.control.cli("scale", "set", "leaves", "--min", "1", "--reason", "night")
        assert done.returncode == 0, done.stderr

        eventually(lambda: len(caller.states("leaves")) == 1, "two endpoints leave the balancer", 30)
        (stays,) = [name for name, address in addresses.items() if address in caller.states("leaves")]
        gone = [name for name in addresses if name != stays]
        trickle.goes_on()
        assert fleet.running("leaves") == set(pids.values()), "who has a call in flight is not ended"
        assert fleet.scale("leaves").draining == 2
        holding.end(gone[0], kept[gone[0]])
        trickle.goes_on()
        assert pids[gone[1]] in fleet.running("leaves"), "who has a call in flight is not ended"
        holding.end(gone[1], kept[gone[1]])
        fleet.come_to("leaves", 1)
        eventually(lambda: fleet.running("leaves") == {pids[stays]}, "the processes of the two end")
        holding.end(stays, kept[stays])
        trickle.goes_on()
    assert fleet.changes("leaves")[-1]["outcome"]["to"] == 1


def test_an_agent_goes_to_zero_and_a_call_brings_it_back(fleet: Fleet, caller: Sidecar) -> None:
    fleet.apply("zero", min_instances=0, max_instances=2, idle_s=1)
    with channel_to(caller.target) as channel:
        calls = Calls(channel, [("x-agent-id", "zero")], 60)
        fleet.come_to("zero", 0)
        pids = []
        for _ in range(2):
            assert fleet.running("zero") == set()
            call = calls.start("Unary", serial=True)
            ((name, pid),) = eventually(lambda: fleet.pids("zero").items(), "the call that waits gets an instance", 30)
            assert call.result().decode().startswith(f"{name}:")
            pids.append(pid or fleet.pids("zero")[name])
            fleet.come_to("zero", 0, 60)
            eventually(lambda: not fleet.running("zero"), "its process ends")
    assert pids[0] != pids[1]
    assert [(one["outcome"]["from"], one["outcome"]["to"]) for one in fleet.changes("zero")] == [(0, 1), (1, 0)] * 2


def test_a_control_plane_killed_under_load_finds_everything_again(fleet: Fleet, caller: Sidecar) -> None:
    fleet.apply("kept", max_instances=4, cooldown_s=300)
    fleet.come_to("kept", 1)
    with Holding(fleet, caller, "kept", "k") as holding, Trickle(caller, "kept") as trickle:
        holding.start(WIDE + 1)
        fleet.come_to("kept", 2)
        before, held = fleet.pids("kept"), holding.all_run()
        changes = fleet.changes("kept")
        trickle.goes_on()
        fleet.control.kill()
        trickle.goes_on()
        name = next(iter(held))
        holding.end(name, held[name][0])
        assert fleet.running("kept") == set(before.values())
        fleet.control.start()
        fleet.come_to("kept", 2)
        assert fleet.pids("kept") == before
        trickle.goes_on()

        # Killed once more, as one is about to start: it is neither lost nor started again.
        fleet.apply("kept", min_instances=3, max_instances=4, cooldown_s=300)
        eventually(lambda: len(fleet.pids("kept")) == 3, "a third one is written down")
        fleet.control.kill()
        trickle.goes_on()
        fleet.control.start()
        fleet.come_to("kept", 3)
        after = fleet.pids("kept")
        assert before.items() < after.items()
        assert fleet.running("kept") == set(after.values())
        holding.end_all()
        trickle.goes_on()
    assert [one["outcome"]["to"] for one in fleet.changes("kept")] == [one["outcome"]["to"] for one in changes] + [3]


def test_instances_that_die_at_their_start_are_said_and_what_serves_stays(fleet: Fleet, caller: Sidecar) -> None:
    fleet.apply("dies", max_instances=3)
    fleet.come_to("dies", 1)
    pids = fleet.pids("dies")
    fleet.break_program("dies")
    with Holding(fleet, caller, "dies", "d") as holding, Trickle(caller, "dies") as trickle:
        holding.start(WIDE - 1)  # more than it is to carry, and a place for the trickle

        def failed() -> list[ScaleInstance]:
            return [one for one in fleet.explain("dies").instances if one.state == "failed"]

        eventually(lambda: len(failed()) >= 2, "another one is tried and dies", 30)
        explained, warnings = fleet.explain("dies"), fleet.warnings()
        record = explained.scale
        assert (record.state, record.ready) == ("failing", 1)
        assert "ended by itself: ended with code 3" in record.problem
        assert record.problem.endswith(": no model to load")
        assert [one for one in warnings if one.startswith("scaling of dies: ")]
        states = [one.state for one in explained.instances]
        assert states.count("ready") == 1
        assert states.count("failed") <= 4, "each is tried later than the one before"
        trickle.goes_on()
        assert pids.items() <= fleet.pids("dies").items(), "what serves stays"
        fleet.mend_program("dies")
        fleet.come_to("dies", 2, 60)
        eventually(lambda: fleet.scale("dies").state == "scaling", "nothing fails any more", 60)
        assert fleet.warnings() == []
        assert pids.items() <= fleet.pids("dies").items()
        holding.end_all()
        trickle.goes_on()


def test_a_pause_holds_against_load_and_a_restart_and_bounds_are_followed(fleet: Fleet, caller: Sidecar) -> None:
    fleet.apply("paused", max_instances=2)
    fleet.come_to("paused", 1)
    control, pids, before = fleet.control, fleet.pids("paused"), fleet.changes("paused")
    assert control.cli("scale", "pause", "paused", "--reason", "release").returncode == 0
    with Holding(fleet, caller, "paused", "p") as holding:
        holding.start(2 * CAPACITY)
        for again in (True, False):
            eventually(lambda: fleet.scale("paused").demand == 2 * CAPACITY, "a turn sees what waits")
            record = fleet.scale("paused")
            assert (record.state, record.paused_reason, record.desired) == ("paused", "release", 1)
            assert fleet.pids("paused") == pids
            if again:
                control.kill()
                control.start()
        assert fleet.changes("paused") == before
        assert control.cli("scale", "resume", "paused", "--reason", "it is out").returncode == 0
        fleet.come_to("paused", 2)
        reason = fleet.scale("paused").reason
        assert "need 3 at 70% of 4 each" in reason
        assert reason.endswith("; max_instances is 2")
        assert control.cli("scale", "set", "paused", "--max", "3", "--reason", "more").returncode == 0
        fleet.come_to("paused", 3)
        holding.end_all()
        assert control.cli("scale", "set", "paused", "--min", "2", "--max", "2", "--reason", "two").returncode == 0
        fleet.come_to("paused", 2)
    assert [one["outcome"]["to"] for one in fleet.changes("paused")[len(before) :]] == [2, 3, 2]
