"""endpoints, sidecars, traces, explain, decisions, cache stats, tokens list, status: what is shown of what is there."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2

from outrider.v1 import mesh_pb2
from outrider.v1 import operator_pb2 as pb
from outrider_control.commands import traces
from tests.unit.outrider_control.commands.conftest import Ran, Run
from tests.unit.outrider_control.commands.operator_server import Refusal, StandIn

TRACE = "0af7651916cd43dd8448eb211c80319c"


def struct(**values: Any) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(values)
    return made


def fits(ran: Ran) -> bool:
    return max(len(line) for line in ran.out.splitlines()) <= 80


def test_endpoints(run: Run, stand_in: StandIn) -> None:
    endpoint = mesh_pb2.Endpoint(agent_id="a", address="10.0.0.1:9001", labels={"v": "2"}, ingress=True, capacity=8)
    record = pb.EndpointRecord(endpoint=endpoint, source="announced", node="n1", expires_unix_ms=1, in_flight=3)
    declared = pb.EndpointRecord(endpoint=mesh_pb2.Endpoint(agent_id="a", address="b:1"), source="declared")
    stand_in.replies["ListEndpoints"] = pb.ListEndpointsReply(endpoints=[record, declared])
    data = run("endpoints", "a", "--json").data
    assert stand_in.requests("ListEndpoints")[0].agent_id == "a"
    keys = {"agent_id", "address", "weight", "labels", "capacity", "ingress"}
    assert data["endpoints"][0].keys() == keys | {"source", "node", "expires_unix_ms", "in_flight"}
    assert [one["in_flight"] for one in data["endpoints"]] == [3, None]
    ran = run("endpoints")
    assert fits(ran)
    assert "due" in ran.out
    assert "v=2" in ran.out


def test_sidecars(run: Run, stand_in: StandIn) -> None:
    resource = mesh_pb2.ResourceVersion(kind=mesh_pb2.RESOURCE_KIND_POLICY, name="tax", version=9)
    refusal = mesh_pb2.Refusal(resource=resource, reason="hedge.enabled: needs methods")
    load = mesh_pb2.LoadReport(agents=[mesh_pb2.AgentLoad(agent_id="a", in_flight=2), mesh_pb2.AgentLoad(in_flight=1)])
    records = [
        pb.SidecarRecord(instance_id="i1", node="n1", connected=True, refused=[refusal], load=load, version="0.1.0"),
        pb.SidecarRecord(instance_id="i2", node="n2", connected=True, behind=2),
        pb.SidecarRecord(instance_id="i3", node="n3", seen_unix_ms=1),
    ]
    stand_in.replies["ListSidecars"] = pb.ListSidecarsReply(sidecars=records)
    data = run("sidecars", "--json").data["sidecars"]
    assert data[0]["refused"] == [
        {"kind": "policy", "name": "tax", "version": 9, "reason": "hedge.enabled: needs methods"}
    ]
    assert (data[0]["load"]["agents"][0]["in_flight"], data[1]["load"]) == (2, None)
    ran = run("sidecars")
    assert fits(ran)
    assert "n1 refuses policy tax version 9: hedge.enabled: needs methods" in ran.out
    assert "2 behind" in ran.out


def test_traces_list(run: Run, stand_in: StandIn) -> None:
    found = pb.TraceSummary(
        trace_id=TRACE, agent_id="tax", method="/p.S/Invoke", status="DEADLINE_EXCEEDED", duration_ms=5.5, kept="error"
    )
    stand_in.replies["ListTraces"] = pb.ListTracesReply(traces=[found])
    ran = run("traces", "list", "--agent", "tax", "--errors", "--slower", "2s", "--since", "7d", "--limit", "9")
    request = stand_in.requests("ListTraces")[0]
    assert (request.agent_id, request.errors, request.min_ms, request.limit) == ("tax", True, 2_000, 9)
    assert request.since_ms == 7 * 86_400_000
    assert fits(ran)
    assert "5.50ms" in ran.out
    data = run("traces", "list", "--json").data["traces"][0]
    assert (data["trace_id"], data["duration_ms"], data["cache"]) == (TRACE, 5.5, "")


def spans() -> pb.Trace:
    root = pb.SpanRecord(
        span_id="a", name="Invoke", kind="client", agent_id="tax", start_unix_ns=10**18, end_unix_ns=10**18 + 10_000_000
    )
    child = pb.SpanRecord(
        span_id="b",
        parent_id="a",
        name="Invoke",
        kind="server",
        start_unix_ns=10**18 + 5_000_000,
        end_unix_ns=10**18 + 10_000_000,
        status="UNAVAILABLE",
        message="it \x1b]0;died\x07",
        attributes=struct(**{"rpc.method": "p.S/Invoke", "tokens": 12, "ok": True}),
        events=[pb.SpanEvent(name="outrider.attempt", at_unix_ns=10**18 + 6_000_000, attributes=struct(n=1))],
    )
    return pb.Trace(trace_id=TRACE, spans=[root, child])


def test_traces_show(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["GetTrace"] = spans()
    ran = run("traces", "show", TRACE)
    assert fits(ran)
    assert "\x1b" not in ran.out
    lines = ran.out.splitlines()
    root = next(line for line in lines if "(client)" in line)
    child = next(line for line in lines if "(server)" in line)
    assert child.startswith("  Invoke")
    assert root.count("█") == 20
    assert child.count("█") == 10
    assert child.rstrip().endswith("█")
    assert "5.00ms 5.00ms" in " ".join(child.split())
    assert "it \\x1b]0;died\\x07" in ran.out


def test_traces_show_attributes_and_json(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["GetTrace"] = spans()
    out = run("traces", "show", TRACE, "--attributes").out
    assert "rpc.method p.S/Invoke" in " ".join(out.split())
    assert "at 6.00ms outrider.attempt n=1" in " ".join(out.split())
    data = run("traces", "show", TRACE, "--json").data
    assert data["spans"][1]["attributes"] == {"rpc.method": "p.S/Invoke", "tokens": 12, "ok": True}


def test_a_circle_of_parents_ends() -> None:
    trace = pb.Trace(spans=[pb.SpanRecord(span_id="a", parent_id="b"), pb.SpanRecord(span_id="b", parent_id="a")])
    assert traces.span_depths(trace) == {"a": 1, "b": 1}


@pytest.mark.parametrize("command", [("traces", "show"), ("explain",)])
def test_a_trace_that_is_not_there(run: Run, stand_in: StandIn, command: tuple[str, ...]) -> None:
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, "trace f00: not kept")
    stand_in.replies |= {"GetTrace": refusal, "ExplainTrace": refusal}
    ran = run(*command, "f00")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith(": trace f00: not kept\n")


def test_explain(run: Run, stand_in: StandIn) -> None:
    steps = [
        pb.Step(what="cache", text="miss: no entry under this key", facts=struct(key="ab12", tier="exact"), at_ms=0.1),
        pb.Step(what="pick", text="took 10.0.0.1:9001, the better of two", facts=struct(scores=[1.5, {"b": 2}])),
    ]
    call = pb.CallExplanation(
        call_id="b7ad6b7169203331", agent_id="tax", method="/p.S/M", hop="egress", status="OK", steps=steps
    )
    stand_in.replies["ExplainTrace"] = pb.ExplainTraceReply(trace_id=TRACE, calls=[call])
    ran = run("explain", TRACE)
    assert fits(ran)
    words = " ".join(ran.out.split())
    assert "0.10ms cache miss: no entry under this key key=ab12 tier=exact" in words
    assert "pick took 10.0.0.1:9001, the better of two scores=[1.5, {b=2}]" in words
    data = run("explain", TRACE, "--json").data
    assert data["calls"][0]["steps"][1]["at_ms"] is None
    assert data["calls"][0]["steps"][1]["facts"] == {"scores": [1.5, {"b": 2}]}


def test_decisions(run: Run, stand_in: StandIn) -> None:
    decision = pb.Decision(
        id=7,
        kind="apply",
        agent_id="a",
        author="ann",
        reason="why",
        inputs=struct(n=1),
        outcome=struct(version=3, all=[1]),
    )
    stand_in.replies["ListDecisions"] = pb.ListDecisionsReply(decisions=[decision])
    ran = run("decisions", "--agent", "a", "--kind", "apply", "--since", "1d", "--full")
    request = stand_in.requests("ListDecisions")[0]
    assert (request.agent_id, request.kind, request.since_ms, request.limit) == ("a", "apply", 86_400_000, 100)
    assert fits(ran)
    assert "all=[1] version=3" in ran.out or "version=3 all=[1]" in ran.out
    assert "from n=1" in ran.out
    brief = run("decisions").out
    assert "version=3" in brief
    assert "all=" not in brief
    data = run("decisions", "--json").data["decisions"][0]
    assert stand_in.requests("ListDecisions")[1].since_ms == 0
    assert data["outcome"] == {"version": 3, "all": [1]}


def test_cache_stats(run: Run, stand_in: StandIn) -> None:
    cache = mesh_pb2.CacheLoad(verdicts={"hit": 3, "miss": 1}, entries=2, size_bytes=1024 * 1024, max_bytes=2**26)
    agents = [pb.AgentCache(agent_id="a", cache=cache, hit_rate=0.75, sidecars=2), pb.AgentCache(agent_id="b")]
    stand_in.replies["GetCacheStats"] = pb.CacheStats(agents=agents, sidecars=2)
    ran = run("cache", "stats")
    assert fits(ran)
    assert "75.0%" in ran.out
    assert "1.0M/64M" in ran.out
    first, second = run("cache", "stats", "a", "--json").data["agents"]
    assert stand_in.requests("GetCacheStats")[1].agent_id == "a"
    assert first.keys() == second.keys()
    assert (first["verdicts"], first["hit_rate"], second["hit_rate"]) == ({"hit": 3, "miss": 1}, 0.75, None)


def test_tokens_list(run: Run, stand_in: StandIn) -> None:
    token = pb.TokenRecord(id="abc", name="ci", role="viewer", created_unix_ms=1, expires_unix_ms=2, author="ann")
    stand_in.replies["ListTokens"] = pb.ListTokensReply(tokens=[token])
    ran = run("tokens", "list")
    assert fits(ran)
    assert "(expired)" in ran.out
    assert run("tokens", "list", "--json").data["tokens"][0]["role"] == "viewer"


def test_status(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["GetStatus"] = pb.Status(
        instance_id="i", version="0.1.0", store="sqlite", leader=True, intake={"accepted": 5}, warnings=["disk \x07"]
    )
    stand_in.replies["WhoAmI"] = pb.Identity(name="loopback", role="admin")
    ran = run("status")
    assert fits(ran)
    for part in ("leads", "accepted 5", "loopback, role admin", "warning: disk \\x07"):
        assert part in ran.out
    data = run("status", "--json").data
    assert data["caller"] == {"name": "loopback", "role": "admin"}
    assert data["intake"] == {"accepted": 5}


@pytest.mark.parametrize(
    ("command", "method", "reply"),
    [
        (("endpoints",), "ListEndpoints", pb.ListEndpointsReply()),
        (("sidecars",), "ListSidecars", pb.ListSidecarsReply()),
        (("traces", "list"), "ListTraces", pb.ListTracesReply()),
        (("decisions",), "ListDecisions", pb.ListDecisionsReply()),
        (("tokens", "list"), "ListTokens", pb.ListTokensReply()),
        (("agents", "list"), "ListAgents", pb.ListAgentsReply()),
    ],
)
def test_nothing_is_said_to_be_nothing(
    run: Run, stand_in: StandIn, command: tuple[str, ...], method: str, reply: object
) -> None:
    stand_in.replies[method] = reply
    ran = run(*command)
    assert ran.code == 0
    assert ran.out.startswith("no ")
    assert next(iter(run(*command, "--json").data.values())) == []
