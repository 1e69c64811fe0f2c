"""Which agent a call is for."""

from __future__ import annotations

import pytest

from outrider.policy import Agent, EndpointPolicy, Policy
from outrider.v1 import agent_pb2 as pb
from outrider_http2 import frames
from outrider_sidecar.core import errors
from tests.wire import Caller, Wire, message

INVOKE = "/outrider.v1.Agent/Invoke"
ASK = message(b"ask")


def policy(default: str = "") -> Policy:
    return Policy(
        {
            "a": Agent("a", (EndpointPolicy("a:1"),)),
            "b": Agent("b", (EndpointPolicy("b:1"),)),
        },
        default,
    )


def invoke(agent_id: str = "", filler: int = 0) -> bytes:
    request = pb.InvokeRequest(agent_id=agent_id)
    if filler:
        request.messages.add().parts.add().text = "x" * filler
    return message(request.SerializeToString())


def reached(wire: Wire, caller: Caller) -> str:
    """The agent a call has reached; empty if none."""
    found = [link.endpoint.address[0] for link in wire.links if any([one.alive for one in link.served])]
    if not found:
        assert caller.status == errors.NOT_FOUND
    return "".join(found)


@pytest.mark.parametrize(
    ("fields", "authority", "default", "expected"),
    [
        ([("x-agent-id", "b")], "a", "a", "b"),
        ([("x-agent-id", "nobody")], "a", "a", ""),
        ([("x-agent-id", "")], "a", "a", ""),
        ([], "b", "a", "b"),
        ([], "b:7600", "a", "b"),
        ([], "elsewhere", "a", "a"),
        ([], "elsewhere", "", ""),
        ([], "elsewhere", "gone", ""),
    ],
)
def test_metadata_then_authority_then_the_default(
    fields: list[tuple[str, str]], authority: str, default: str, expected: str
) -> None:
    wire = Wire(policy(default))
    for _ in range(2):  # the second one is remembered
        caller = wire.call(*fields, body=ASK, authority=authority)
        assert reached(wire, caller) == expected
        caller.cancel()
    wire.assert_clean()


def test_the_authority_goes_on_unchanged() -> None:
    wire = Wire(policy("a"))
    wire.call(body=ASK, authority="elsewhere:99")
    head = wire.link("a:1").served[0].head
    assert head is not None
    assert head.authority == b"elsewhere:99"


def test_an_unknown_agent_is_named_in_the_answer() -> None:
    wire = Wire(policy("a"))
    caller = wire.call(("x-agent-id", "nobody"), body=ASK)
    assert caller.message == "no agent 'nobody' is configured (from x-agent-id)"
    assert wire.spans[-1].status == errors.NOT_FOUND
    assert wire.spans[-1].agent_id == ""
    caller = Wire(policy()).call(body=ASK)
    assert "default_agent" in caller.message


@pytest.mark.parametrize(
    "fields", [[("content-type", "application/json")], [(":method", "GET")], [("content-type", "")]]
)
def test_what_is_not_grpc_is_refused_as_http(fields: list[tuple[str, str]]) -> None:
    wire = Wire(policy("a"))
    caller = wire.call(*fields, body=ASK)
    assert caller.head is not None
    assert (caller.head.status, caller.head.values[b"accept-post"]) == (415, b"application/grpc")
    assert wire.served == []
    wire.assert_clean()


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto", "application/grpc; x=y"])
def test_any_grpc_content_type_will_do(content_type: str) -> None:
    wire = Wire(policy("a"))
    caller = wire.call(("content-type", content_type), body=ASK)
    assert reached(wire, caller) == "a"


@pytest.mark.parametrize(
    ("agent_id", "default", "expected"), [("b", "a", "b"), ("", "a", "a"), ("nobody", "a", ""), ("", "", "")]
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_native_call_may_name_its_agent_in_the_message(
    agent_id: str, default: str, expected: str, pieces: int
) -> None:
    wire = Wire(policy(default))
    body = invoke(agent_id, 40)
    size = len(body) // pieces + 1
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    caller = wire.call(body=parts[0], end=pieces == 1, path=INVOKE)
    for at, part in enumerate(parts[1:], 2):
        assert wire.served == []
        caller.send(part, at == pieces)
    assert reached(wire, caller) == expected
    if expected:
        assert wire.served[0].body == body
    else:
        assert ("'nobody'" in caller.message) == bool(agent_id)
    caller.cancel()
    wire.assert_clean()


def test_metadata_beats_the_message() -> None:
    wire = Wire(policy("a"))
    caller = wire.call(("x-agent-id", "a"), body=invoke("b"), path=INVOKE)
    assert reached(wire, caller) == "a"


def test_a_native_call_too_large_to_be_read_goes_to_the_default_and_says_so() -> None:
    wire = Wire(policy("a"))
    body = invoke("b", 1024 * 1024 + 100_000)
    caller = wire.call(body=body[: len(body) - 10], end=False, path=INVOKE)
    assert reached(wire, caller) == "a"
    caller.send(body[len(body) - 10 :], True)
    served = wire.link("a:1").served[0]
    assert served.body == body
    wire.check()
    served.reply(message(b""))
    assert caller.status == 0
    assert "identify: too_large" in wire.spans[-1].notes
    wire.assert_clean()


def test_a_native_call_that_ends_before_its_message_is_let_go_of() -> None:
    wire = Wire(policy("a"))
    caller = wire.call(body=invoke("b")[:3], end=False, path=INVOKE)
    caller.cancel(frames.CANCEL)
    wire.assert_clean()


def test_own_services_answer_only_where_no_agent_is_named() -> None:
    path = "/grpc.health.v1.Health/Check"
    wire = Wire(policy("a"))
    wire.runtime.local = {b"/grpc.health.v1.Health": lambda call: call.fail(errors.OK, "mine")}
    wire.apply(policy("a"))
    assert wire.call(body=ASK, path=path).message == "mine"
    caller = wire.call(("x-agent-id", "b"), body=ASK, path=path)
    assert reached(wire, caller) == "b"
    caller.cancel()
    assert reached(wire, wire.call(body=ASK, path=path, authority="b")) == "b"
