"""Summaries of old tool results by another agent: asked for behind the call's back, in force from the next epoch on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from outrider.policy import Agent, Compression, EndpointPolicy, Optimization, Policy
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.compress import work
from outrider_sidecar.edge import summarizer
from outrider_sidecar.edge.summarizer import Summarizer
from tests.wire import Served, Wire, message

NATIVE = "/outrider.v1.Agent/Invoke"
NAMED = ("x-agent-id", "a")
LOSSY = Compression(
    mode="lossy", provider="none", clear_after_tokens=2_000, clear_keep=1, lossy_min_tokens=10**6, summary_agent="short"
)
TENANT = ("x-tenant-id", "one")


@pytest.fixture(autouse=True)
def everybody_is_treated(monkeypatch: pytest.MonkeyPatch) -> None:
    from outrider_sidecar.compress.controller import Controller

    monkeypatch.setattr(Controller, "treats", lambda self, session, now: not self.off_since)


class Worker:
    """Compresses whatever it is given, in the next turn of the loop."""

    def __init__(self, wire: Wire):
        self._wire = wire

    def start(self) -> None:
        pass

    def offer(self, jobs: list[work.Job], then: Callable[[Any], Any], wait_s: float) -> bool:
        self._wire.loop.call_soon(then, work.read(work.done(work.packed(jobs))))
        return True


def wire_of(policy: Compression = LOSSY) -> Wire:
    agents = {
        "a": Agent("a", (EndpointPolicy("a:1"),), optimization=Optimization(compression=True), compression=policy),
        "short": Agent("short", (EndpointPolicy("s:1"),)),
    }
    wire = Wire(Policy(agents, "a"))
    wire.runtime.summarizer = Summarizer(wire.runtime)
    wire.runtime.compressor = Worker(wire)
    return wire


def prose(at: int) -> str:
    return f"Result {at}. " + " ".join([f"Claim {at}-{line} was filed and {line * 7} was paid." for line in range(60)])


def asked(results: int) -> pb.InvokeRequest:
    made = pb.InvokeRequest(agent_id="a", session_id="s")
    for at in range(results):
        made.messages.add(role=pb.ROLE_USER, parts=[pb.Part(text=f"and {at}?")])
        call = pb.ToolCall(call_id=str(at), name="search", arguments_json="{}")
        made.messages.add(role=pb.ROLE_ASSISTANT, parts=[pb.Part(tool_call=call)])
        result = pb.ToolResult(call_id=str(at), name="search", parts=[pb.Part(text=prose(at))])
        made.messages.add(role=pb.ROLE_TOOL, parts=[pb.Part(tool_result=result)])
    made.messages.add(role=pb.ROLE_USER, parts=[pb.Part(text="so?")])
    return made


def ask(wire: Wire, results: int) -> tuple[Any, pb.InvokeRequest]:
    """The call, and what the agent got."""
    caller = wire.call(NAMED, TENANT, body=message(asked(results).SerializeToString()), path=NATIVE)
    (mine,) = [one for one in wire.served if one.value("x-agent-id") == "a" and one.alive]
    mine.reply(reply("done"))
    return caller, pb.InvokeRequest.FromString(mine.body[5:])


def reply(text: str) -> bytes:
    made = pb.InvokeReply(parts=[pb.Part(text=text)], finish_reason=pb.FINISH_REASON_STOP)
    return message(made.SerializeToString())


def to_summarize(wire: Wire) -> list[Served]:
    return [one for one in wire.served if one.value("x-agent-id") == "short" and one.alive]


def results(request: pb.InvokeRequest) -> list[str]:
    return [one.parts[0].tool_result.parts[0].text for one in request.messages if one.role == pb.ROLE_TOOL]


def test_a_summary_is_asked_for_early_and_stands_for_the_result_at_the_epoch() -> None:
    wire = wire_of()
    caller, sent = ask(wire, 2)
    assert caller.status == 0
    assert results(sent) == [prose(0), prose(1)]  # nobody waits for it
    (one,) = to_summarize(wire)
    assert one.value("x-tenant-id") == "one"
    request = pb.InvokeRequest.FromString(one.body[5:])
    assert prose(0) in request.messages[-1].parts[0].text
    one.reply(reply("nought was paid"))
    detached = [span for span in wire.spans if span.hop & 2]
    assert [span.agent_id for span in detached] == ["short"]
    _, sent = ask(wire, 4)
    first, second, third, last = results(sent)
    assert first.startswith("#outrider:summary/1 ")
    assert first.endswith("\nnought was paid")
    assert second.startswith("#outrider:cleared/1 ")  # nobody has summarized it yet
    assert third.startswith("#outrider:cleared/1 ")
    assert last == prose(3)
    for late in to_summarize(wire):
        late.reply(reply("late"))
    _, again = ask(wire, 4)
    assert again == sent
    wire.assert_clean()


@pytest.mark.parametrize("failure", ["status", "long", "nothing", "garbage", "lost"])
def test_without_a_summary_results_are_cleared_as_they_are_otherwise(failure: str) -> None:
    wire = wire_of()
    ask(wire, 2)
    (one,) = to_summarize(wire)
    if failure == "status":
        one.refuse(3)
    elif failure == "lost":
        one.cancel()
        wire.pass_s(summarizer.WAIT_S + 1)
    else:
        one.reply({"long": reply("x" * 3_000), "nothing": reply(" "), "garbage": message(b"\xff")}[failure])
    assert not to_summarize(wire)
    _, sent = ask(wire, 4)
    assert results(sent)[0].startswith("#outrider:cleared/1 ")
    assert wire.runtime.summarizer.counts["made"] == 0
    for late in to_summarize(wire):
        late.reply(reply("late"))
    wire.assert_clean()


def test_it_asks_for_so_many_at_once_and_after_a_failure_not_again_for_a_while() -> None:
    wire = wire_of()
    asker = wire.runtime.summarizer
    made: list[str] = []
    for at in range(summarizer.MAX_ASKED):
        assert asker.ask(("short", "t", str(at)), "search", prose(at), made.append)
        assert not asker.ask(("short", "t", str(at)), "search", prose(at), made.append)  # it is under way
    assert not asker.ask(("short", "t", "more"), "search", prose(0), made.append)
    assert not asker.ask(("nobody", "t", "1"), "search", prose(0), made.append)
    assert not asker.ask(("short", "t", "large"), "search", "x" * (summarizer.MAX_TEXT + 1), made.append)
    wire.flow()
    for one in to_summarize(wire):
        one.refuse(13)
    for one in to_summarize(wire):
        one.refuse(13)
    wire.flow()
    assert not asker.ask(("short", "t", "0"), "search", prose(0), made.append)
    wire.pass_s(summarizer.AGAIN_S + 1)
    assert asker.ask(("short", "t", "0"), "search", prose(0), made.append)
    wire.flow()
    (one,) = to_summarize(wire)
    one.reply(reply("short"))
    assert made == ["short"]
    assert json.dumps(asker.counts) == json.dumps({"made": 1, "failed": summarizer.MAX_ASKED})
    wire.assert_clean()
