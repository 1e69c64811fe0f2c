"""What a variant changes of a native request: the model and its parameters, and nothing else."""

from __future__ import annotations

import gzip
from typing import Any

from outrider.policy import Optimization, Policy
from outrider.split import Split, Variant
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.filters.generation import MAX_REQUEST_BYTES
from tests.wire import Wire, agent, message

NATIVE = "/outrider.v1.Agent/Invoke"
REPLY = message(pb.InvokeReply(parts=[pb.Part(text="x")], finish_reason=pb.FINISH_REASON_STOP).SerializeToString())
NAMED = (("x-agent-id", "a"), ("x-session-id", "s"))
WANTED: dict[str, Any] = {"model": "m2", "temperature": 0.5, "top_p": 0.25, "max_output_tokens": 7}


def wire_of(optimization: Optimization | None = None, **fields: Any) -> Wire:
    split = Split("x", "a", (Variant("A", 1.0, **fields),))
    return Wire(Policy({"a": agent(optimization=optimization or Optimization())}, "a", splits={"a": (split,)}))


def asked(**generation: Any) -> pb.InvokeRequest:
    made = pb.InvokeRequest(agent_id="a", messages=[pb.Message(parts=[pb.Part(text="ask")])])
    for name, value in generation.items():
        setattr(made.generation, name, value)
    return made


def body_of(request: pb.InvokeRequest) -> bytes:
    return message(request.SerializeToString())


def sent(wire: Wire, body: bytes, *fields: tuple[str, str], path: str = NATIVE) -> bytes:
    """What the agent is asked."""
    caller = wire.call(*NAMED, *fields, body=body, path=path)
    served = wire.served[-1]
    served.reply(REPLY)
    assert caller.status == 0
    return served.body


def test_the_variants_parameters_stand_in_place_of_the_callers() -> None:
    wire = wire_of(Optimization(cache_enabled=True), **WANTED)
    expected = asked(**WANTED, seed=3)
    for request in (asked(model="m1", temperature=1.0, top_p=1.0, max_output_tokens=9_000, seed=3), asked(seed=3)):
        assert pb.InvokeRequest.FromString(sent(wire, body_of(request))[5:]) == expected
    span = wire.spans[-1]
    assert span.generation is not None
    assert (span.generation.model, span.notes) == ("m2", ())
    wire.assert_clean()


def test_what_a_variant_leaves_out_stays() -> None:
    wire = wire_of(temperature=0.0)
    request = asked(model="m1", temperature=1.0, max_output_tokens=9)
    found = pb.InvokeRequest.FromString(sent(wire, body_of(request))[5:])
    assert found == asked(model="m1", temperature=0.0, max_output_tokens=9)
    assert found.generation.HasField("temperature")


def test_a_variant_that_says_nothing_of_it_touches_nothing() -> None:
    wire = wire_of(prompt_version="2")
    body = body_of(asked(model="m1"))
    assert sent(wire, body) == body


def test_the_key_is_of_what_was_asked_and_of_the_variant() -> None:
    wire = wire_of(Optimization(cache_enabled=True), temperature=0.0)
    assert sent(wire, body_of(asked(model="m1"))) != body_of(asked(model="m1"))
    caller = wire.call(*NAMED, body=body_of(asked(model="m1")), path=NATIVE)
    assert caller.trailer("x-outrider-cache") == "hit"
    caller = wire.call(*NAMED, body=body_of(asked(model="m3")), path=NATIVE)
    wire.served[-1].reply(REPLY)
    assert caller.trailer("x-outrider-cache") == "miss"
    wire.assert_clean()


def test_what_cannot_be_changed_is_forwarded_as_it_is_and_that_is_said() -> None:
    wire = wire_of(model="m2")
    for body, fields, path, note in (
        (b"\0\0", (), NATIVE, "generation: truncated"),
        (message(b"\x0a\xff"), (), NATIVE, "generation: malformed"),
        (b"\1" + body_of(asked())[1:], (("grpc-encoding", "zstd"),), NATIVE, "generation: unknown_encoding"),
        (body_of(asked()), (), "/test.Echo/Unary", "generation: not_native"),
        (message(b"x" * (MAX_REQUEST_BYTES + 1)), (), NATIVE, "generation: too_large"),
    ):
        assert sent(wire, body, *fields, path=path) == body
        assert wire.spans[-1].notes == (note,)
    wire.assert_clean()


def test_a_compressed_request_is_read() -> None:
    wire = wire_of(model="m2")
    raw = gzip.compress(asked(model="m1").SerializeToString())
    body = b"\1" + len(raw).to_bytes(4, "big") + raw
    got = sent(wire, body, ("grpc-encoding", "gzip"))
    assert got[:1] == b"\0"
    assert pb.InvokeRequest.FromString(got[5:]) == asked(model="m2")


def test_a_request_in_pieces_is_waited_for() -> None:
    wire = wire_of(model="m2")
    body = body_of(asked(model="m1"))
    caller = wire.call(*NAMED, body=body[:7], path=NATIVE, end=False)
    assert wire.served == []
    caller.send(body[7:], True)
    wire.served[-1].reply(REPLY)
    assert pb.InvokeRequest.FromString(wire.served[-1].body[5:]) == asked(model="m2")
    assert caller.status == 0
    wire.assert_clean()
