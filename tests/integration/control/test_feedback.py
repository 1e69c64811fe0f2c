"""Feedback on its whole way: said to a sidecar, kept while nobody takes it, joined with its call, counted once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from outrider.v1 import feedback_pb2, sidecar_pb2_grpc
from tests.controls import Control, holds, watching
from tests.sidecars import Calls, Mesh, Peer, Sidecar, channel_to, eventually, new_key, trailers

AGENT = "judged"
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


def satisfaction(control: Control) -> tuple[int, float | None, int]:
    """Ratings, their mean and complaints of all calls of the agent."""
    rows: list[dict[str, Any]] = control.json("feedback", "satisfaction", "--agent", AGENT)["satisfaction"]
    whole = [one for one in rows if not one.get("variant")]
    return (whole[0]["ratings"], whole[0].get("mean"), whole[0]["complaints"]) if whole else (0, None, 0)


def test_what_is_said_before_and_after_its_span_joins_its_call(
    control: Control, sidecar: Sidecar, service: sidecar_pb2_grpc.SidecarStub
) -> None:
    first, second = call_ids(sidecar, 2)
    early = feedback_pb2.Feedback(feedback_id="early", call_id=first, rating=5.0)
    assert say(service, early)[0] in KEPT  # its span is on its way as well
    eventually(lambda: satisfaction(control)[0] == 1, "the first is joined")
    eventually(lambda: control.requests(AGENT) == 2, "the spans are there")
    late = feedback_pb2.Feedback(
        feedback_id="late", call_id=second, rating=2.0, complaint="wrong", correction="42", input="what?", output="41"
    )
    assert say(service, late, late, early)[1:] == ["duplicate", "duplicate"]
    eventually(lambda: satisfaction(control) == (2, 3.5, 1), "the second is joined")
    unknown = feedback_pb2.Feedback(feedback_id="nobody", call_id="f" * 16, rating=0.0)
    assert say(service, unknown) == ["unknown_call"]
    eventually(lambda: len(control.json("feedback", "list", "--unknown")["feedback"]) == 1, "it is kept and marked")
    assert satisfaction(control) == (2, 3.5, 1)
    refused = service.CollectFeedback(
        feedback_pb2.CollectFeedbackRequest(feedback=[feedback_pb2.Feedback(call_id=first, rating=float("nan"))]),
        timeout=20,
    )
    assert refused.outcomes[0].outcome == "refused"
    assert "rating" in refused.outcomes[0].reason


def test_nothing_is_lost_and_nothing_counted_twice_while_the_control_plane_is_dead(
    control: Control, sidecar: Sidecar, service: sidecar_pb2_grpc.SidecarStub
) -> None:
    before = satisfaction(control)[0]
    calls = call_ids(sidecar, 3)
    items = [feedback_pb2.Feedback(feedback_id=f"dark-{at}", call_id=one, rating=4.0) for at, one in enumerate(calls)]
    assert say(service, items[0])[0] in KEPT
    control.kill()
    assert say(service, *items[1:]) == ["queued", "queued"]
    control.start()
    eventually(lambda: satisfaction(control)[0] == before + 3, "all three are there")
    control.kill()
    assert say(service, *items) == ["queued"] * 3  # what is sent again is not counted again
    control.start()
    eventually(lambda: watching(sidecar), "the sidecar is back")
    last = feedback_pb2.Feedback(feedback_id="last", call_id=calls[0], complaint="slow")
    say(service, last)
    eventually(lambda: satisfaction(control)[2] >= 2, "what was said afterwards is there, so all before it is")
    assert satisfaction(control)[0] == before + 3
