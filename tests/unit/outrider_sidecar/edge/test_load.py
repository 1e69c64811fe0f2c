"""Load by agent, and the first call of an idle agent."""

from __future__ import annotations

from outrider.policy import Limits, Optimization, Queue
from outrider_sidecar import stack
from outrider_sidecar.core import errors
from outrider_sidecar.edge.load import CacheLoad, Load, loads
from tests.wire import ECHO, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")


def test_what_has_nothing_to_report_is_missing() -> None:
    wire = Wire(agent())
    assert loads(wire.runtime, True) == []


def test_calls_in_flight_sheds_capacity_and_the_cache() -> None:
    policy = agent(
        limits=Limits(1),
        queue=Queue(max_waiting=0),
        optimization=Optimization(cache_enabled=True, cache_methods=(ECHO,)),
    )
    wire = Wire(policy)
    first = wire.call(body=ASK)
    assert wire.call(body=message(b"other")).status == errors.RESOURCE_EXHAUSTED
    (one,) = loads(wire.runtime, False)
    assert (one.agent_id, one.ingress, one.in_flight, one.shed, one.capacity) == ("a", False, 1, 1, 1)
    wire.link().served[0].reply(ANSWER)
    assert first.status == 0
    wire.call(body=ASK)
    (one,) = loads(wire.runtime, False)
    assert one.in_flight == 0
    assert one.cache is not None
    assert one.cache.verdicts == {"hit": 1, "stale": 0, "miss": 2, "coalesced": 0, "bypass": 0}
    assert (one.cache.entries, one.cache.max_bytes, one.cache.evictions) == (1, 64 * 1024 * 1024, 0)
    assert one.cache.size_bytes > len(ANSWER)


def test_an_ingress_is_told_apart_and_takes_its_capacity() -> None:
    wire = Wire(agent())
    wire.runtime.snapshot = stack.compile_ingress("a", "local:1", wire.runtime, 3)
    wire.states.update({id(state): state for state in wire.runtime.agents.values()})
    caller = wire.call(body=ASK)
    assert loads(wire.runtime, False) == [Load("a", True, 1, 0, 3, 0, None)]
    caller.cancel()


def test_calls_that_wait_are_told_by_lane_with_the_longest_wait_and_wake_an_idle_agent() -> None:
    wire = Wire(agent(limits=Limits(1)))
    woken: list[int] = []
    wire.runtime.woke = lambda: woken.append(1)
    callers = [wire.call(("x-priority", lane), body=ASK) for lane in ("low", "low", "low", "critical")]
    wire.pass_s(1.5)
    (one,) = loads(wire.runtime, False)
    assert (one.in_flight, dict(one.queued), one.longest_wait_ms) == (1, {"low": 2, "critical": 1}, 1500)
    assert woken == [1]
    callers[1].cancel()
    (one,) = loads(wire.runtime, True)
    assert one.queued == {"low": 1, "critical": 1}
    assert not wire.state().idle
    for caller in callers:
        caller.cancel()


def test_calls_at_endpoints_that_leave_are_told_until_they_end() -> None:
    wire = Wire(agent("a:1", "b:1"))
    callers = [wire.call(body=ASK) for _ in range(4)]
    wire.apply(agent("a:1"))
    (one,) = loads(wire.runtime, False)
    assert set(one.leaving) == {"b:1"}
    assert one.leaving["b:1"] == len([served for served in wire.link("b:1").served if served.alive])
    for caller in callers:
        caller.cancel()
    assert loads(wire.runtime, False) == []


def test_the_first_call_of_an_idle_agent_wakes_and_the_next_ones_do_not() -> None:
    wire = Wire(agent())
    woken: list[int] = []
    wire.runtime.woke = lambda: woken.append(wire.state().in_flight)
    wire.runtime.snapshot = stack.compile_snapshot(agent_policy(wire, 7), wire.runtime)
    callers = [wire.call(body=ASK) for _ in range(3)]
    assert woken == [1]
    loads(wire.runtime, True)  # three calls are in flight: not idle
    for caller in callers:
        caller.cancel()
    wire.call(body=ASK).cancel()
    assert woken == [1]
    loads(wire.runtime, False)  # not a periodic one
    wire.call(body=ASK).cancel()
    assert woken == [1]
    loads(wire.runtime, True)
    wire.call(body=ASK).cancel()
    assert woken == [1, 1]


def agent_policy(wire: Wire, timeout_ms: int):
    """Another policy, so that the routes are made anew."""
    from dataclasses import replace

    policy = wire.runtime.snapshot.policy
    return replace(policy, agents={"a": replace(policy.agents["a"], max_timeout_ms=timeout_ms * 1_000)})


def test_the_fields_are_those_of_the_message() -> None:
    from outrider.v1 import mesh_pb2

    assert set(CacheLoad._fields) == {one.name for one in mesh_pb2.CacheLoad.DESCRIPTOR.fields}
    assert set(Load._fields) | {"queued"} == {one.name for one in mesh_pb2.AgentLoad.DESCRIPTOR.fields}
