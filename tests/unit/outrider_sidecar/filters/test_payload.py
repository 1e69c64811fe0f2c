"""Messages are read beside the relay; `streaming: false` alone changes a reply."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Optimization
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.core import errors
from outrider_sidecar.payloads.wire import Deframer
from tests.wire import Wire, agent, message

STREAM, UNARY = "/outrider.v1.Agent/InvokeStream", "/outrider.v1.Agent/Invoke"
ASK = message(pb.InvokeRequest(agent_id="a").SerializeToString())


def chunk(text: str = "", last: bool = False) -> bytes:
    sent = pb.InvokeChunk(text=text)
    if last:
        sent.finish.SetInParent()
        sent.finish.usage.input_tokens, sent.finish.usage.output_tokens = 11, 7
    return message(sent.SerializeToString())


def relayed(streaming: bool) -> Wire:
    return Wire(agent(optimization=Optimization(streaming=streaming)))


def texts(body: bytes) -> list[str]:
    return [pb.InvokeChunk.FromString(data).text for data in Deframer(b"").feed(body)]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_native_stream_is_relayed_or_answered_as_one_chunk(streaming: bool) -> None:
    wire = relayed(streaming)
    caller = wire.call(body=ASK, path=STREAM)
    served = wire.link().served[0]
    served.begin()
    for text in ("a", "b", "c"):
        served.data(chunk(text))
        assert bool(caller.body.endswith(chunk(text))) is streaming
    served.data(chunk("d", True))
    served.finish()
    assert caller.status == 0
    assert texts(caller.body) == (["a", "b", "c", "d"] if streaming else ["abcd"])
    generation = wire.spans[-1].generation
    assert generation is not None
    assert (generation.input_tokens, generation.output_tokens) == (11, 7)
    assert wire.spans[-1].reply_bytes == len(caller.body)
    wire.assert_clean()


@pytest.mark.parametrize("end", ["status", "reset", "deadline"])
def test_what_was_held_back_leaves_before_the_error(end: str) -> None:
    wire = relayed(False)
    caller = wire.call(("grpc-timeout", "1S"), body=ASK, path=STREAM)
    served = wire.link().served[0]
    served.begin()
    served.data(chunk("a"))
    served.data(chunk("b"))
    if end == "status":
        served.finish(errors.RESOURCE_EXHAUSTED)
    elif end == "reset":
        served.cancel()
    else:
        wire.pass_s(1.1)
    assert caller.status not in (None, 0)
    assert texts(caller.body) == ["ab"]
    wire.assert_clean()


def test_a_joined_reply_larger_than_a_frame_keeps_its_trailers_last() -> None:
    wire = Wire(agent(optimization=Optimization(streaming=False)), window_bytes=5_000)
    caller = wire.call(body=ASK, path=STREAM, reads=False)
    served = wire.link().served[0]
    served.begin()
    for _ in range(30):
        served.data(chunk("x" * 3_000))
    served.finish()
    assert caller.status is None
    caller.read()
    assert (caller.status, texts(caller.body)) == (0, ["x" * 90_000])
    wire.assert_clean()


@pytest.mark.parametrize("path", [UNARY, "/test.Echo/Unary"])
def test_nothing_else_is_joined(path: str) -> None:
    wire = relayed(False)
    caller = wire.call(body=ASK, path=path)
    served = wire.link().served[0]
    served.begin()
    served.data(chunk("a"))
    assert texts(caller.body) == ["a"]
    served.finish()
    assert caller.status == 0
    assert (wire.spans[-1].generation is not None) == (path == UNARY)


@pytest.mark.parametrize("data", [b"\xff" * 40, message(b"\xff\xff"), message(b"")[:3]])
def test_what_cannot_be_read_passes_unchanged(data: bytes) -> None:
    for streaming in (True, False):
        for path in (STREAM, UNARY):
            wire = relayed(streaming)
            caller = wire.call(body=ASK, path=path)
            served = wire.link().served[0]
            served.begin()
            served.data(data)
            served.finish()
            assert (caller.status, caller.body) == (0, data)
            wire.assert_clean()


def test_each_follower_of_a_flight_is_answered_in_its_own_way() -> None:
    settings: dict[str, Any] = {"cache_enabled": True, "streaming": False, "cache_sampled": True}
    wire = Wire(agent(optimization=Optimization(**settings)))
    leader = wire.call(body=ASK, path=STREAM)
    served = wire.link().served[0]
    served.begin()
    served.data(chunk("a"))
    follower = wire.call(body=ASK, path=STREAM)
    leader.cancel()
    served.data(chunk("b", True))
    served.finish()
    assert (follower.status, texts(follower.body)) == (0, ["ab"])
    assert follower.trailer("x-outrider-cache") == "coalesced"
    wire.assert_clean()
