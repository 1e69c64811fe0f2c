"""Feedback on its whole way: said to a sidecar, kept while nobody takes it, joined with its call, counted once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from outrider.v1 import experiment_pb2, feedback_pb2, operator_pb2_grpc, sidecar_pb2_grpc
from tests.controls import Control, holds, watching
from tests.experiments import wanted
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually, new_key, trailers

AGENT = "judged"
TRIED = "tried"  # an agent of two versions, in an experiment of the same name
KEPT = ("taken", "unknown_call")  # as its span is there already or not


@pytest.fixture(scope="module")
def control(mesh: Mesh) -> Control:
    return Control(mesh, "judging")


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, control: Control, peer: Peer) -> Sidecar:
    control.apply({"agent_id": AGENT, "endpoints": [{"address": peer.address}]})
    made = mesh.sidecar({"control": [control.target], "state_dir": "state"}, "judging-side")
    eventually(lambda: watching(made) and holds(made, AGENT), "the sidecar has its policy")
    return made


@pytest.fixture
def service(sidecar: Sidecar) -> Iterator[sidecar_pb2_grpc.SidecarStub]:
    with channel_to(sidecar.target) as channel:
        yield sidecar_pb2_grpc.SidecarStub(channel)


def call_ids(sidecar: Sidecar, count: int) -> list[str]:
    """Calls are made; what their replies name them."""
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel, [("x-agent-id", AGENT)])
        made = [calls.unary(b"x", key=new_key()) for _ in range(count)]
        return [str(trailers(call)["x-outrider-call-id"]) for call in made]


def say(service: sidecar_pb2_grpc.SidecarStub, *items: feedback_pb2.Feedback) -> list[str]:
    reply = service.CollectFeedback(feedback_pb2.CollectFeedbackRequest(feedback=items), timeout=20)
    return [one.outcome for one in reply.outcomes]


def satisfaction(control: Control, agent_id: str = AGENT) -> dict[str, tuple[int, float, int]]:
    """(ratings, their mean, complaints) of an agent by variant; all of them under ""."""
    with channel_to(control.target) as channel:
        request = experiment_pb2.GetSatisfactionRequest(agent_id=agent_id)
        rows = operator_pb2_grpc.OperatorStub(channel).GetSatisfaction(request, timeout=20).rows
    return {row.variant: (row.ratings, row.mean, row.complaints) for row in rows}


def all_of(control: Control) -> tuple[int, float, int]:
    """The same of all calls of the agent that is in no experiment."""
    return satisfaction(control).get("", (0, 0.0, 0))


def test_what_is_said_before_and_after_its_span_joins_its_call(
    control: Control, sidecar: Sidecar, service: sidecar_pb2_grpc.SidecarStub
) -> None:
    first, second = call_ids(sidecar, 2)
    early = feedback_pb2.Feedback(feedback_id="early", call_id=first, rating=5.0)
    assert say(service, early)[0] in KEPT  # its span is on its way as well
    eventually(lambda: all_of(control)[0] == 1, "the first is joined")
    eventually(lambda: control.requests(AGENT) == 2, "the spans are there")
    late = feedback_pb2.Feedback(
        feedback_id="late", call_id=second, rating=2.0, complaint="wrong", correction="42", input="what?", output="41"
    )
    assert say(service, late, late, early)[1:] == ["duplicate", "duplicate"]
    eventually(lambda: all_of(control) == (2, 3.5, 1), "the second is joined")
    unknown = feedback_pb2.Feedback(feedback_id="nobody", call_id="f" * 16, rating=0.0)
    assert say(service, unknown) == ["unknown_call"]
    eventually(lambda: len(control.json("feedback", "list", "--unknown")["feedback"]) == 1, "it is kept and marked")
    assert all_of(control) == (2, 3.5, 1)
    refused = service.CollectFeedback(
        feedback_pb2.CollectFeedbackRequest(feedback=[feedback_pb2.Feedback(call_id=first, rating=float("nan"))]),
        timeout=20,
    )
    assert refused.outcomes[0].outcome == "refused"
    assert "rating" in refused.outcomes[0].reason


def test_nothing_is_lost_and_nothing_counted_twice_while_the_control_plane_is_dead(
    control: Control, sidecar: Sidecar, service: sidecar_pb2_grpc.SidecarStub
) -> None:
    before, _, complaints = all_of(control)
    calls = call_ids(sidecar, 3)
    items = [feedback_pb2.Feedback(feedback_id=f"dark-{at}", call_id=one, rating=4.0) for at, one in enumerate(calls)]
    assert say(service, items[0])[0] in KEPT
    control.kill()
    assert say(service, *items[1:]) == ["queued", "queued"]
    control.start()
    eventually(lambda: all_of(control)[0] == before + 3, "all three are there")
    control.kill()
    assert say(service, *items) == ["queued"] * 3  # what is sent again is not counted again
    control.start()
    eventually(lambda: watching(sidecar), "the sidecar is back")
    last = feedback_pb2.Feedback(feedback_id="last", call_id=calls[0], complaint="slow")
    say(service, last)
    eventually(lambda: all_of(control)[2] == complaints + 1, "what was said last is there, so all before it is")
    assert all_of(control)[0] == before + 3


def called(sidecar: Sidecar, session: str, trace_id: str = "") -> dict[str, Any]:
    """What the reply of a call of the tried agent says of it."""
    sent = [("x-agent-id", TRIED), ("x-session-id", session)]
    if trace_id:
        sent.append(("traceparent", f"00-{trace_id}-{'ab' * 8}-01"))
    with channel_to(sidecar.target) as channel:
        return trailers(Calls(channel, sent).unary(b""))


@pytest.fixture
def sessions(mesh: Mesh, control: Control, sidecar: Sidecar) -> dict[str, str]:
    """One session of each variant of an experiment that runs. The control plane has counted all calls until then."""
    versions = [{"address": mesh.peer(f"{TRIED}-{one}").address, "labels": {"version": one}} for one in ("v1", "v2")]
    control.apply(agent(TRIED, *versions))
    spec = wanted(name=TRIED, min_units=1_000)  # none of it is decided by the calls of a test
    spec.agent_id = TRIED
    with channel_to(control.target) as channel:
        request = experiment_pb2.CreateExperimentRequest(spec=spec, reason="a test", start=True)
        operator_pb2_grpc.OperatorStub(channel).CreateExperiment(request)
    found: dict[str, str] = {}
    numbers = itertools.count()

    def both() -> bool:
        session = f"session-{next(numbers)}"
        variant = called(sidecar, session).get("x-outrider-variant", "")
        if variant:
            found[variant] = session
        return len(found) == 2

    eventually(lambda: holds(sidecar, TRIED), "the agent reaches the sidecar")
    eventually(both, "a session of each variant")
    made = next(numbers)
    eventually(lambda: control.requests(TRIED) == made, "their calls are counted")
    return found


def test_it_joins_the_variant_of_its_call_though_it_came_first_and_the_control_plane_died_between(
    control: Control, sidecar: Sidecar, service: sidecar_pb2_grpc.SidecarStub, sessions: dict[str, str]
) -> None:
    first, second = sorted(sessions)
    trace_id = "5" * 32
    early = feedback_pb2.Feedback(trace_id=trace_id, rating=5.0)
    assert say(service, early) == ["unknown_call"]  # nobody has made it yet
    counted = control.requests(TRIED)
    answered = called(sidecar, sessions[second])
    eventually(lambda: control.requests(TRIED) == counted + 1, "the span is there")
    late = feedback_pb2.Feedback(call_id=str(answered["x-outrider-call-id"]), rating=1.0, complaint="wrong")
    assert say(service, late) == ["taken"]
    control.kill()
    answered = called(sidecar, sessions[first], trace_id)  # its span waits in the sidecar
    assert (answered["x-outrider-trace-id"], answered["x-outrider-variant"]) == (trace_id, first)
    control.start()
    rows = {"": (2, 3.0, 1), first: (1, 5.0, 0), second: (1, 1.0, 1)}
    eventually(lambda: satisfaction(control, TRIED) == rows, "both are joined")
    eventually(lambda: say(service, early, late) == ["duplicate"] * 2, "both are known after the kill")
    assert satisfaction(control, TRIED) == rows
    shown = control.json("feedback", "satisfaction", "--agent", TRIED)["satisfaction"]
    assert {one["variant"] or "": (one["ratings"], one["mean"], one["complaints"]) for one in shown} == rows
    (one,) = control.json("feedback", "list", "--trace", trace_id)["feedback"]
    assert (one["joined"], one["call_id"], one["agent_id"], one["variant"]) == (
        *(True, answered["x-outrider-call-id"], TRIED, first),
    )
