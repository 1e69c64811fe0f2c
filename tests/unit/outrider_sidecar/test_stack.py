"""The order of the filters, and what compiling a policy does to live state."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from types import ModuleType

import pytest

from outrider.policy import Agent, EndpointPolicy, Limits, Optimization, Policy, Queue
from outrider_sidecar import stack
from outrider_sidecar.core.span import CLIENT, SERVER
from outrider_sidecar.engines.orca import decode_load_report
from outrider_sidecar.filters import admit, cache, deadline, degrade, dispatch, identify, payload, retry, trace
from tests.wire import Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")


def before(order: tuple[ModuleType, ...], *modules: ModuleType) -> bool:
    """Whether these stand in this order."""
    places = [order.index(module) for module in modules]
    return places == sorted(places)


def test_the_order_of_the_filters() -> None:
    assert stack.ENTRY == (trace, identify)
    assert before(stack.EGRESS, deadline, payload, cache, degrade, admit, retry, dispatch)
    assert before(stack.INGRESS, deadline, payload, admit, dispatch)
    for order in (stack.EGRESS, stack.INGRESS):
        assert order[-1] is dispatch
        assert len(set(order)) == len(order)


def test_a_filter_with_nothing_to_do_is_not_in_the_route() -> None:
    wire = Wire(agent())
    plain = len(wire.runtime.snapshot.routes["a"].steps)
    wire.apply(agent(optimization=Optimization(cache_enabled=True)))
    assert len(wire.runtime.snapshot.routes["a"].steps) == plain + 1


def test_agents_come_and_go_and_those_that_stay_keep_their_state() -> None:
    wire = Wire(Policy({name: Agent(name, (EndpointPolicy(f"{name}:1"),)) for name in "abc"}, "a"))
    kept, gone = wire.state("b"), wire.state("c")
    wire.apply(Policy({name: Agent(name, (EndpointPolicy(f"{name}:1"),)) for name in "bd"}, "b"))
    assert sorted(wire.runtime.agents) == ["b", "d"]
    assert wire.state("b") is kept
    assert gone.pool.endpoints == {}
    assert wire.link("c:1").closed
    assert not wire.link("b:1").closed
    assert wire.runtime.snapshot.kind == CLIENT


def test_routes_of_agents_that_do_not_change_are_kept() -> None:
    agents = {name: Agent(name, (EndpointPolicy(f"{name}:1"),)) for name in "ab"}
    wire = Wire(Policy(agents, "a"))
    before = wire.runtime.snapshot.routes
    wire.apply(Policy({"a": replace(agents["a"]), "b": replace(agents["b"], timeout_ms=5)}, "b"))
    after = wire.runtime.snapshot.routes
    assert after["a"] is before["a"]
    assert after["b"] is not before["b"]
    assert after["b"].agent.timeout_ms == 5
    wire.apply(Policy({"b": after["b"].agent}))
    wire.apply(Policy(agents))
    assert wire.runtime.snapshot.routes["a"] is not before["a"]  # it was gone, and its live state with it
    assert wire.runtime.snapshot.routes["a"].state is wire.state("a")


def ingress(policy: Policy, capacity: int = 0) -> Wire:
    wire = Wire(Policy())
    wire.runtime.snapshot = stack.compile_ingress("a", "local:1", wire.runtime, capacity, policy)
    wire.states.update({id(state): state for state in wire.runtime.agents.values()})
    return wire


def test_at_an_ingress_what_is_over_its_capacity_waits() -> None:
    wire = ingress(Policy(), 1)
    first, second = wire.call(body=ASK), wire.call(body=ASK)
    assert (len(wire.served), first.status, second.status) == (1, None, None)
    first.cancel()
    assert len(wire.served) == 2
    second.cancel()
    wire.assert_clean()


def test_an_ingress_is_under_the_limits_queue_and_deadlines_of_its_agents_policy() -> None:
    agent = Agent("a", timeout_ms=2_000, limits=Limits(endpoint_max_in_flight=2), queue=Queue(max_waiting=1))
    wire = ingress(Policy({"a": agent}))
    callers = [wire.call(body=ASK) for _ in range(4)]
    assert [caller.status for caller in callers] == [None, None, None, 8]
    wire.runtime.snapshot = stack.compile_ingress("a", "local:1", wire.runtime, 0, Policy({"a": Agent("a")}))
    wire.flow()
    assert len(wire.served) == 3  # the limit is higher: who waited goes on
    wire.pass_s(2.1)
    assert [caller.status for caller in callers[:3]] == [4, 4, 4]
    wire.assert_clean()


@pytest.mark.parametrize(
    ("limits", "capacity", "limit"),
    [(Limits(9), 0, 9), (Limits(9), 4, 4), (Limits(9, 2), 4, 2), (Limits(9, 6), 4, 6), (Limits(9, 6), 0, 6)],
)
def test_an_ingress_is_bounded_by_the_policy_then_its_capacity(limits: Limits, capacity: int, limit: int) -> None:
    wire = ingress(Policy({"a": Agent("a", limits=limits)}), capacity)
    (state,) = wire.runtime.agents.values()
    assert (state.admission.limit, state.capacity) == (limit, limit)


@pytest.mark.parametrize(
    ("adaptive", "name"),
    [(False, "limits.endpoint_max_in_flight, or ingress.capacity"), (True, "limits.adaptive")],
)
def test_an_ingress_where_nothing_waits_says_which_limit_it_was(adaptive: bool, name: str) -> None:
    limits = Limits(adaptive=adaptive)
    wire = ingress(Policy({"a": Agent("a", limits=limits, queue=Queue(max_waiting=0))}), 1)
    callers = [wire.call(body=ASK) for _ in range(2)]
    assert callers[1].message == f"agent 'a' has 1 calls in flight, its limit ({name})"
    callers[0].cancel()
    wire.assert_clean()


def test_an_ingress_that_refuses_for_load_tells_its_load() -> None:
    wire = ingress(Policy({"a": Agent("a", queue=Queue(max_waiting=1))}), 2)
    callers = [wire.call(body=ASK) for _ in range(4)]
    report = decode_load_report(b64decode(callers[3].trailer("endpoint-load-metrics-bin") + "=="))
    assert report is not None
    assert report.application_utilization == 1.5
    for caller in callers:
        caller.cancel()
    wire.assert_clean()


def test_an_ingress_tells_callers_of_its_load_unless_the_agent_does() -> None:
    wire = ingress(Policy(), 4)
    callers = [wire.call(body=ASK) for _ in range(3)]
    wire.served[0].reply(b"\0\0\0\0\0")
    report = decode_load_report(b64decode(callers[0].trailer("endpoint-load-metrics-bin") + "=="))
    assert report is not None
    assert report.application_utilization == 0.75
    wire.served[1].begin()
    wire.served[1].finish(0, ("endpoint-load-metrics-bin", "CQAAAAAAAPA/"))
    assert callers[1].trailer("endpoint-load-metrics-bin") == "CQAAAAAAAPA/"
    callers[2].cancel()
    wire.assert_clean()


def test_ingress_and_egress_of_an_agent_share_nothing() -> None:
    wire = Wire(agent(optimization=Optimization(cache_enabled=True)))
    egress = wire.runtime.snapshot
    ingress = stack.compile_ingress("a", "local:1", wire.runtime)
    assert ingress.kind == SERVER
    assert ingress.routes["a"].state is not egress.routes["a"].state
    assert list(ingress.routes["a"].state.pool.endpoints) == ["local:1"]
    wire.apply(Policy())
    assert list(ingress.routes["a"].state.pool.endpoints) == ["local:1"]
    assert len(wire.runtime.agents) == 1


def test_ingress_takes_every_call_to_its_one_agent() -> None:
    wire = Wire(Policy())
    wire.runtime.snapshot = stack.compile_ingress("a", "local:1", wire.runtime)
    wire.states.update({id(state): state for state in wire.runtime.agents.values()})
    for fields, authority in (((), "elsewhere"), ((("x-agent-id", "a"),), "b")):
        caller = wire.call(*fields, body=ASK, authority=authority)
        wire.link("local:1").served[-1].reply(ANSWER)
        assert (caller.status, wire.spans[-1].kind) == (0, SERVER)
    assert wire.call(("x-agent-id", "b"), body=ASK).status == 5
    wire.assert_clean()


def test_ingress_neither_retries_nor_ejects() -> None:
    wire = Wire(Policy())
    wire.runtime.snapshot = stack.compile_ingress("a", "local:1", wire.runtime)
    wire.states.update({id(state): state for state in wire.runtime.agents.values()})
    for count in range(1, 12):
        caller = wire.call(body=ASK)
        assert len(wire.link("local:1").served) == count
        wire.link("local:1").served[-1].refuse(14)
        assert caller.status == 14
    wire.assert_clean()
