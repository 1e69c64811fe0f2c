"""Native calls that leave smaller: what changes, what never does, and calls that wait for the worker."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from outrider.policy import Compression, Optimization
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.compress import work
from outrider_sidecar.filters.compress import FETCH, LOOP_BYTES, CompressFilter
from tests.wire import Wire, agent, message

NATIVE = "/outrider.v1.Agent/Invoke"
USAGE = pb.Usage(input_tokens=900, output_tokens=10, cache_read_tokens=0)
REPLY = message(
    pb.InvokeReply(parts=[pb.Part(text="x")], finish_reason=pb.FINISH_REASON_STOP, usage=USAGE).SerializeToString()
)
NAMED = ("x-agent-id", "a")
ON = Optimization(compression=True)
NONE = Compression(provider="none")
ROWS = [{"flight": f"HAT{at:03}", "from": "JFK", "to": "SEA", "seats": at, "status": "available"} for at in range(30)]
TABLE = json.dumps(ROWS)


def asked(*results: str, session: str = "s1", turns: tuple[str, ...] = ("which flight?",)) -> pb.InvokeRequest:
    """A conversation with tool results after its first question."""
    made = pb.InvokeRequest(agent_id="a", session_id=session)
    made.messages.add(role=pb.ROLE_SYSTEM, parts=[pb.Part(text="You help. " * 20)])
    made.messages.add(role=pb.ROLE_USER, parts=[pb.Part(text=turns[0])])
    for at, text in enumerate(results):
        call = pb.ToolCall(call_id=str(at), name="search", arguments_json="{}")
        made.messages.add(role=pb.ROLE_ASSISTANT, parts=[pb.Part(tool_call=call)])
        result = pb.ToolResult(call_id=str(at), name="search", parts=[pb.Part(json=text)])
        made.messages.add(role=pb.ROLE_TOOL, parts=[pb.Part(tool_result=result)])
    for text in turns[1:]:
        made.messages.add(role=pb.ROLE_USER, parts=[pb.Part(text=text)])
    return made


def _filter(wire: Wire) -> CompressFilter:
    return wire.state().compression


def ask(wire: Wire, request: pb.InvokeRequest, *headers: tuple[str, str]) -> Any:
    return wire.call(NAMED, *headers, body=message(request.SerializeToString()), path=NATIVE)


def sent(wire: Wire, at: int = -1) -> pb.InvokeRequest:
    return pb.InvokeRequest.FromString(wire.served[at].body[5:])


def result_of(request: pb.InvokeRequest, at: int = 3) -> str:
    part = request.messages[at].parts[0].tool_result.parts[0]
    return part.text or part.json


@pytest.fixture(autouse=True)
def everybody_is_treated(monkeypatch: pytest.MonkeyPatch) -> None:
    from outrider_sidecar.compress.controller import Controller

    monkeypatch.setattr(Controller, "treats", lambda self, session, now: not self.off_since)


def wire_of(policy: Compression = NONE, optimization: Optimization = ON, **more: Any) -> Wire:
    return Wire(agent("a:1", compression=policy, optimization=optimization, **more))


def test_a_tool_result_leaves_smaller_and_all_else_as_it_was() -> None:
    wire = wire_of()
    caller = ask(wire, asked(TABLE))
    got = result_of(sent(wire))
    assert got.startswith("#columns/1")
    assert len(got) < len(TABLE) / 2
    wanted = asked(TABLE)
    wanted.messages[3].parts[0].tool_result.parts[0].text = got
    assert sent(wire) == wanted
    wire.served[0].reply(REPLY)
    assert caller.status == 0
    saved = int(caller.trailer("x-outrider-tokens-saved"))
    compression = wire.spans[0].compression
    assert compression is not None
    assert compression.tokens_saved == saved > 0
    assert compression.compressors == ("columns/1",)
    assert compression.net == _filter(wire).controller.saved > 0
    shown = _filter(wire)
    assert (shown.calls, shown.changed) == (1, 1)
    assert shown.compressors["columns/1"][0] == 1
    assert shown.controller.calls == 1
    wire.assert_clean()


def test_the_prefix_leaves_byte_for_byte_as_it_did() -> None:
    wire = wire_of(Compression(provider="openai"))
    first = asked(TABLE)
    ask(wire, first)
    longer = asked(
        TABLE, json.dumps(ROWS[5:] * 4), json.dumps({"b": list(range(400))}), turns=("which flight?", "and now?")
    )
    ask(wire, longer)
    before, after = sent(wire, 0), sent(wire, 1)
    assert list(after.messages)[: len(before.messages)] == list(before.messages)
    ask(wire, longer)
    assert sent(wire, 2) == after


def test_conversations_of_two_tenants_share_nothing() -> None:
    wire = wire_of()
    ask(wire, asked(TABLE), ("x-tenant-id", "one"))
    ask(wire, asked(TABLE, TABLE), ("x-tenant-id", "two"))
    assert "gave before" in result_of(sent(wire, 1), 5)
    assert result_of(sent(wire, 0)) == result_of(sent(wire, 1))


@pytest.mark.parametrize(
    ("policy", "optimization"),
    [(NONE, Optimization()), (Compression(mode="off"), ON)],
)
def test_it_is_off_where_the_policy_says_so(policy: Compression, optimization: Optimization) -> None:
    wire = Wire(agent("a:1", compression=policy, optimization=optimization))
    assert wire.state().compression is None
    ask(wire, asked(TABLE))
    assert sent(wire) == asked(TABLE)


def test_what_the_operator_denies_or_the_caller_wants_verbatim_stays() -> None:
    wire = wire_of(Compression(provider="none", deny_tools=("search",)))
    request = asked(TABLE)
    request.context.add(parts=[pb.Part(json=TABLE)], verbatim=True)
    request.context.add(parts=[pb.Part(json=TABLE)])
    ask(wire, request)
    assert result_of(sent(wire)) == TABLE
    assert sent(wire).context[0].parts[0].json == TABLE
    assert sent(wire).context[1].parts[0].json == ""


def test_users_system_and_agents_words_are_never_touched() -> None:
    wire = wire_of()
    request = asked(TABLE, turns=(TABLE, TABLE))
    request.messages[0].parts[0].text = TABLE
    request.messages.add(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text=TABLE)])
    ask(wire, request)
    got = sent(wire)
    assert [got.messages[at].parts[0].text for at in (0, 1, 4, 5)] == [TABLE] * 4


def test_messages_that_cannot_be_read_leave_as_they_came_and_the_span_says_so() -> None:
    wire = wire_of()
    body = message(b"\x3a\xff\x01")
    wire.call(NAMED, body=body, path=NATIVE)
    assert wire.served[0].body == body
    wire.served[0].reply(REPLY)
    assert "compress: malformed" in wire.spans[0].notes


def test_other_calls_than_native_ones_are_not_looked_at() -> None:
    wire = wire_of()
    wire.call(NAMED, body=message(TABLE.encode()), path="/any.Service/Method")
    wire.served[0].reply(REPLY)
    assert wire.spans[0].compression is None
    assert _filter(wire).calls == 0


def test_a_compressed_request_is_read() -> None:
    wire = wire_of()
    packed = gzip.compress(asked(TABLE).SerializeToString())
    body = b"\1" + len(packed).to_bytes(4, "big") + packed
    wire.call(NAMED, ("grpc-encoding", "gzip"), body=body, path=NATIVE)
    assert wire.served[0].body[:1] == b"\0"
    assert result_of(sent(wire)).startswith("#columns/1")


def test_a_budget_leaves_context_out_first_the_least_relevant_before_others() -> None:
    wire = wire_of(Compression(provider="none", max_input_tokens=400, min_tokens=10_000))
    request = asked()
    for relevance in (0.9, 0.1, 0.5):
        request.context.add(parts=[pb.Part(text=f"{relevance} " * 100)], relevance=relevance)
    ask(wire, request)
    assert [round(one.relevance, 1) for one in sent(wire).context] == [0.9]
    assert len(sent(wire).messages) == 2


LOSSY = Compression(provider="none", mode="lossy", lossy_min_tokens=200, clear_after_tokens=0)
PAGE = (
    "<html><body>"
    + "".join([f"<p class='x'>Paragraph {at} of the <b>page</b>.</p>" for at in range(60)])
    + "</body></html>"
)


def paged(session: str = "s1") -> pb.InvokeRequest:
    request = asked(session=session)
    request.context.add(parts=[pb.Part(text=PAGE)], source="page.html")
    return request


def test_the_original_of_a_lossy_block_is_kept_for_its_tenant() -> None:
    wire = wire_of(LOSSY)
    worker = wire.runtime.compressor = Worker()
    ask(wire, paged(), ("x-tenant-id", "one"))
    with wire.held():
        worker.answer()
    wire.served[0].reply(REPLY)
    originals = _filter(wire).originals
    assert len(originals) == 1
    ((tenant, handle),) = originals._rows
    now = wire.loop.now
    assert tenant == "one"
    assert originals.get("one", handle, now) == PAGE
    assert originals.get("two", handle, now) is None
    assert originals.get("one", handle, now + 4_000) is None


def test_an_original_is_put_back_where_it_is_asked_for() -> None:
    wire = wire_of(LOSSY)
    worker = wire.runtime.compressor = Worker()
    ask(wire, paged())
    with wire.held():
        worker.answer()
    ((_, handle),) = _filter(wire).originals._rows
    request = paged()
    for wanted in (handle, "unknown"):
        result = pb.ToolResult(call_id="9", name=FETCH, parts=[pb.Part(text=wanted)])
        request.messages.add(role=pb.ROLE_TOOL, parts=[pb.Part(tool_result=result)])
    ask(wire, request)
    assert result_of(sent(wire), -2) == PAGE
    assert result_of(sent(wire), -1) == "unknown"
    assert _filter(wire).fetched == 1


def test_a_policy_that_changes_keeps_what_was_sent() -> None:
    wire = wire_of()
    ask(wire, asked(TABLE))
    wire.apply(agent("a:1", compression=Compression(provider="none", min_tokens=100_000), optimization=ON))
    ask(wire, asked(TABLE, turns=("which flight?", "go on")))
    assert result_of(sent(wire, 1)) == result_of(sent(wire, 0))
    wire.apply(agent("a:1", compression=NONE, optimization=Optimization()))
    ask(wire, asked(TABLE))
    assert sent(wire, 2) == asked(TABLE)


# -- the worker --------------------------------------------------------------------------------------------------------

BIG = json.dumps(ROWS * 20)
assert len(BIG) > LOOP_BYTES


class Worker:
    """Takes what it is offered and answers when told."""

    def __init__(self, takes: bool = True):
        self.takes = takes
        self.jobs: list[list[work.Job]] = []
        self._then: list[Callable[[Any], Any]] = []
        self.started = 0

    def start(self) -> None:
        self.started += 1

    def offer(self, jobs: list[work.Job], then: Callable[[Any], Any], wait_s: float) -> bool:
        if self.takes:
            self.jobs.append(jobs)
            self._then.append(then)
        return self.takes

    def answer(self, at: int = 0) -> None:
        self._then[at](work.read(work.done(work.packed(self.jobs[at]))))

    def give_up(self, at: int = 0) -> None:
        self._then[at](None)


def big(worker: Worker | None, **more: Any) -> Wire:
    wire = wire_of(**more)
    wire.runtime.compressor = worker
    wire.apply(agent("a:1", compression=Compression(provider="none", min_tokens=65), **({"optimization": ON} | more)))
    return wire


def test_large_blocks_are_compressed_by_the_worker_while_the_call_waits() -> None:
    worker = Worker()
    wire = big(worker)
    caller = ask(wire, asked(BIG))
    assert not wire.served
    with wire.held():
        worker.answer()
    assert result_of(sent(wire)).startswith("#columns/1")
    wire.served[0].reply(REPLY)
    assert caller.status == 0
    ask(wire, asked(BIG))  # remembered
    assert len(worker.jobs) == 1
    assert sent(wire, 1) == sent(wire, 0)


@pytest.mark.parametrize("worker", [None, Worker(takes=False)])
def test_without_a_worker_large_blocks_stay_as_they_are_for_good(worker: Worker | None) -> None:
    wire = big(worker)
    ask(wire, asked(BIG))
    assert sent(wire) == asked(BIG)
    wire.served[0].reply(REPLY)
    assert any("no worker" in note for note in wire.spans[0].notes)
    wire.runtime.compressor = Worker()
    ask(wire, asked(BIG, TABLE))
    assert result_of(sent(wire, 1)) == BIG
    assert result_of(sent(wire, 1), 5).startswith("#columns/1")


def test_a_worker_that_is_late_costs_the_wait_and_nothing_else() -> None:
    worker = Worker()
    wire = big(worker)
    caller = ask(wire, asked(BIG))
    with wire.held():
        worker.give_up()
    assert sent(wire) == asked(BIG)
    wire.served[0].reply(REPLY)
    assert caller.status == 0


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_a_call_that_ends_while_the_worker_has_it_is_over(end: str) -> None:
    worker = Worker()
    wire = big(worker)
    caller = ask(wire, asked(BIG), ("grpc-timeout", "1S"))
    if end == "cancel":
        caller.cancel()
    else:
        wire.pass_s(2.0)
        assert caller.status == 4
    with wire.held():
        worker.answer()
    assert not wire.served
    wire.assert_clean()


def test_who_shares_the_flight_of_a_call_that_waits_goes_on_without_it() -> None:
    worker = Worker()
    wire = big(worker, optimization=Optimization(compression=True, cache_enabled=True))
    leader = ask(wire, asked(BIG))
    follower = ask(wire, asked(BIG))
    leader.cancel()
    with wire.held():
        for at in range(len(worker.jobs)):
            worker.answer(at)
    assert len(wire.served) == 1
    wire.served[0].reply(REPLY)
    assert follower.status == 0
    wire.assert_clean()


@pytest.mark.parametrize("body", ["{}", "words"])
def test_the_keys_of_schemas_are_put_in_order_where_the_policy_lets_them(body: str) -> None:
    request = asked(body)
    request.tools.add(name="search", input_schema_json='{"type": "object", "properties": {"b": 1.0, "a": 2}}')
    wire = wire_of(Compression(provider="none", order_json_keys=True))
    ask(wire, request)
    assert sent(wire).tools[0].input_schema_json == '{"properties":{"a":2,"b":1.0},"type":"object"}'
    wire = wire_of()
    ask(wire, request)
    assert sent(wire) == request
