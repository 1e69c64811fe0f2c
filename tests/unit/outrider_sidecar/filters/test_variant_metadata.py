"""What an ingress hands on to its agent of the caller's sidecar's word."""

from __future__ import annotations

import pytest

from outrider.policy import Policy
from outrider.split import Split, Variant
from outrider_sidecar import stack
from tests.wire import Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
VARIANT, PROMPT = ("x-outrider-variant", "x=B,y=A"), ("x-outrider-prompt-version", "p 7")


def ingress(policy: Policy) -> Wire:
    wire = Wire(Policy())
    wire.runtime.snapshot = stack.compile_ingress("a", "local:1", wire.runtime, 0, policy)
    wire.states.update({id(state): state for state in wire.runtime.agents.values()})
    return wire


@pytest.mark.parametrize("fields", [(), (VARIANT,), (PROMPT,), (VARIANT, PROMPT)])
def test_the_two_fields_reach_the_agent_as_they_came(fields: tuple[tuple[str, str], ...]) -> None:
    wire = ingress(Policy())
    caller = wire.call(("x-session-id", "s"), *fields, body=ASK)
    wire.served[0].reply(ANSWER)
    assert caller.status == 0
    for name in ("x-outrider-variant", "x-outrider-prompt-version"):
        assert wire.served[0].value(name) == dict(fields).get(name, "")
    wire.assert_clean()


def test_an_ingress_assigns_nobody() -> None:
    split = Split("x", "a", (Variant("A", 1.0),))
    wire = ingress(Policy({"a": agent()}, splits={"a": (split,)}))
    caller = wire.call(("x-session-id", "s"), body=ASK)
    wire.served[0].reply(ANSWER)
    assert (wire.served[0].value("x-outrider-variant"), caller.trailer("x-outrider-variant")) == ("", "")
    assert (wire.spans[-1].variant, wire.spans[-1].unit) == ("", "")
    wire.assert_clean()
