"""An experiment from its beginning to its verdict: control plane, sidecar and agents as processes of their own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest

from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import operator_pb2_grpc
from tests.controls import Control, holds
from tests.experiments import wanted
from tests.sidecars import Calls, Mesh, Sidecar, agent, channel_to, eventually, trailers

SESSIONS = 40  # of one round
STATUS = 13
_numbers = itertools.count()


@pytest.fixture(scope="module")
def control(mesh: Mesh) -> Control:
    return Control(mesh)


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, control: Control) -> Sidecar:
    return mesh.sidecar({"control": [control.target], "state_dir": "state"}, "assigning")


class Tried:
    """One agent of two versions, and its callers: sessions of two calls each, the second of which may fail."""

    def __init__(self, mesh: Mesh, control: Control, sidecar: Sidecar, name: str):
        self.name = name
        self.control = control
        self.sidecar = sidecar
        versions = [{"address": mesh.peer(f"{name}-{one}").address, "labels": {"version": one}} for one in ("v1", "v2")]
        control.apply(agent(name, *versions))
        eventually(lambda: holds(sidecar, name), f"{name} reaches the sidecar")

    def call(self, session: str) -> str:
        """The variant that a call of the session had; empty: none."""
        with channel_to(self.sidecar.target) as channel:
            calls = Calls(channel, [("x-agent-id", self.name), ("x-session-id", session)])
            return trailers(calls.unary(b"")).get("x-outrider-variant", "")

    def round(self, fails: Mapping[str, bool], ends_in_abort: bool = False) -> Counter[str]:
        """Sessions that begin: how many each variant got. `ends_in_abort`: it may take one back between its calls."""
        found: Counter[str] = Counter()
        with channel_to(self.sidecar.target) as channel:
            for _ in range(SESSIONS):
                calls = Calls(channel, [("x-agent-id", self.name), ("x-session-id", f"session-{next(_numbers)}")])
                first = trailers(calls.unary(b"")).get("x-outrider-variant", "")
                variant = first.partition("=")[2]
                second = calls.unary(b"", status=STATUS) if fails.get(variant) else calls.unary(b"")
                again = trailers(second).get("x-outrider-variant", "")
                is_taken_back = ends_in_abort and again == f"try-{self.name}=a"
                assert again == first or is_taken_back, "a session keeps its variant"
                found[variant] += 1
        return found

    def spec(self) -> pb.ExperimentSpec:
        spec = wanted(name=f"try-{self.name}")
        spec.agent_id = self.name
        return spec

    def record(self) -> pb.ExperimentRecord:
        with channel_to(self.control.target) as channel:
            stub = operator_pb2_grpc.OperatorStub(channel)
            return stub.GetExperiment(pb.GetExperimentRequest(name=f"try-{self.name}"))

    def create(self) -> None:
        with channel_to(self.control.target) as channel:
            stub = operator_pb2_grpc.OperatorStub(channel)
            made = stub.CreateExperiment(pb.CreateExperimentRequest(spec=self.spec(), reason="a test", start=True))
        assert made.state == "running"
        eventually(lambda: self.call(f"waiting-{next(_numbers)}"), "the split reaches the sidecar")


@pytest.fixture
def stopping(control: Control) -> Iterator[list[str]]:
    """Names of experiments that are ended when the test is over."""
    names: list[str] = []
    yield names
    with channel_to(control.target) as channel:
        stub = operator_pb2_grpc.OperatorStub(channel)
        for name in names:
            stub.StopExperiment(pb.StopExperimentRequest(name=name, reason="the test is over"))


def verdict_after(
    tried: Tried, fails: Mapping[str, bool], ends_in_abort: bool = False
) -> tuple[pb.ExperimentRecord, Counter[str]]:
    """Sessions come until there is a verdict; those that were assigned, by variant."""
    came: Counter[str] = Counter()
    record = pb.ExperimentRecord()

    def decided() -> bool:
        came.update(tried.round(fails, ends_in_abort))
        record.CopyFrom(tried.record())
        return record.state == "stopped"

    eventually(decided, "a verdict", 60)
    return record, came


def test_a_variant_that_is_better_wins_and_its_sessions_keep_it(mesh: Mesh, control: Control, sidecar: Sidecar) -> None:
    tried = Tried(mesh, control, sidecar, "improved")
    tried.create()
    variant = eventually(lambda: tried.call("an old session"), "a variant")
    record, came = verdict_after(tried, {"a": True})
    assert (record.verdict, record.winner) == ("win", "b"), record
    assert record.comparisons[0].high < 0
    assert came["a"]
    assert came["b"]
    assert 0 < record.units <= sum(came.values()) + 2  # the old session, and the one that waited for the split
    shown = control.json("experiment", "status", "try-improved")
    assert (shown["state"], shown["winner"]) == ("stopped", "b")
    eventually(lambda: not tried.call(f"new-{next(_numbers)}"), "nobody else gets a variant")
    assert tried.call("an old session") == variant
    kinds = [one["outcome"]["action"] for one in control.json("decisions", "--agent", "improved")["decisions"]
             if one["kind"] == "experiment"]  # fmt: skip
    assert kinds == ["stop", "start", "create"]


def test_harm_takes_every_session_back_at_once(mesh: Mesh, control: Control, sidecar: Sidecar) -> None:
    tried = Tried(mesh, control, sidecar, "harmed")
    tried.create()
    held = {session: tried.call(session) for session in [f"held-{at}" for at in range(20)]}
    assert set(held.values()) == {"try-harmed=a", "try-harmed=b"}
    record, _ = verdict_after(tried, {"b": True}, ends_in_abort=True)
    assert (record.verdict, record.winner) == ("harm", ""), record
    eventually(lambda: all([tried.call(session) == "try-harmed=a" for session in held]), "all are back on the first")


def test_a_killed_control_plane_goes_on_where_it_stood(
    mesh: Mesh, control: Control, sidecar: Sidecar, stopping: list[str]
) -> None:
    tried = Tried(mesh, control, sidecar, "survivor")
    tried.create()
    stopping.append("try-survivor")
    tried.round({})
    before = eventually(lambda: (one := tried.record()).units >= SESSIONS and one, "the sessions are counted")
    held = tried.call("through the kill")
    control.kill()
    assert tried.call("through the kill") == held, "it is never in the path of a call"
    control.start()
    after = tried.record()
    assert (after.state, after.spec, after.started_unix_ms) == (before.state, before.spec, before.started_unix_ms)
    assert after.units >= before.units
    tried.round({})
    eventually(lambda: tried.record().units >= 2 * SESSIONS, "sessions go on being counted")
    assert tried.record().looks > after.looks
    assert tried.call("through the kill") == held
