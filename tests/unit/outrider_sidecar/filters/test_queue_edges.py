"""Calls that wait while something else happens: elections, refused tries, limits that move, agents that come and go."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Agent, EndpointPolicy, Hedge, Limits, Optimization, Policy, Queue, Retry, Scaling
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.core import errors
from tests.wire import ECHO, Caller, Wire, agent, message

ASK, OTHER, ANSWER = message(b"ask"), message(b"other"), message(b"answer")
NATIVE = "/outrider.v1.Agent/Invoke"
ONE = Limits(1)
CACHED = Optimization(cache_enabled=True, cache_methods=(ECHO,))
AT_ZERO = Scaling(min_instances=0, activation_wait_ms=5_000)


def slots(*capacities: int, **policy: Any) -> Agent:
    """An agent whose endpoints a:1, b:1, ... declare capacities."""
    endpoints = [EndpointPolicy(f"{name}:1", capacity=one) for name, one in zip("abc", capacities, strict=False)]
    return Agent("a", tuple(endpoints), **policy)


def native(**fields: Any) -> bytes:
    request = pb.InvokeRequest(agent_id="a", **fields)
    request.generation.model = "m"
    return message(request.SerializeToString())


def waiting(wire: Wire) -> tuple[int, ...]:
    return tuple(wire.state().admission.queue.lane_waiting())


def finish(wire: Wire, *callers: Caller) -> None:
    """The agent answers until no call is left; all are well."""
    for _ in range(100):
        for served in [one for one in wire.served if one.alive]:
            served.reply(ANSWER)
        if not wire.runtime.calls:
            break
        wire.pass_s(0.05)
    assert [caller.status for caller in callers] == [0] * len(callers)
    wire.assert_clean()


# -- permits -----------------------------------------------------------------------------------------------------------


def test_who_follows_a_call_that_is_shed_takes_no_permit_that_is_given_already() -> None:
    wire = Wire(agent(limits=ONE, optimization=CACHED))
    wire.call(body=message(b"one"))
    wire.call(body=message(b"two"))
    wire.pass_s(1.0)
    wire.served[0].reply(ANSWER)  # the fastest first chunk takes a second
    late = wire.call(("grpc-timeout", "2S"), body=ASK)
    follower = wire.call(("grpc-timeout", "20S"), body=ASK)
    other = wire.call(body=OTHER)
    wire.pass_s(1.5)
    wire.served[1].reply(ANSWER)
    assert (late.status, follower.status) == (errors.RESOURCE_EXHAUSTED, None)
    assert (wire.state().in_flight, waiting(wire)) == (1, (0, 1, 0, 0))
    finish(wire, follower, other)


def test_who_leads_after_a_failure_is_the_most_urgent() -> None:
    wire = Wire(agent(limits=ONE, optimization=CACHED, retry=Retry(max_attempts=1)))
    wire.call(("x-priority", "low"), body=ASK)
    callers = [wire.call(("x-priority", name), body=ASK) for name in ("low", "critical", "high")]
    callers.append(wire.call(body=OTHER))
    wire.served[0].refuse(errors.RESOURCE_EXHAUSTED)
    assert waiting(wire) == (0, 0, 0, 1)
    finish(wire, *callers)


def test_a_refresh_nobody_waits_for_is_the_least_urgent_until_somebody_does() -> None:
    cached = Optimization(cache_enabled=True, cache_methods=(ECHO,), cache_ttl=1, cache_jitter=0.0, cache_stale_ratio=9)
    wire = Wire(agent(limits=ONE, optimization=cached))
    wire.call(body=ASK)
    wire.served[0].reply(ANSWER)
    wire.pass_s(1.5)
    blocker = wire.call(body=OTHER)
    assert wire.call(("x-priority", "critical"), body=ASK).status == 0
    assert waiting(wire) == (1, 0, 0, 0)
    wire.pass_s(9.0)
    follower = wire.call(("x-priority", "high"), body=ASK)
    assert waiting(wire) == (0, 0, 1, 0)
    finish(wire, blocker, follower)


def test_tenants_that_only_their_messages_name_take_turns() -> None:
    wire = Wire(agent(limits=ONE, optimization=Optimization(cache_enabled=True)))
    alone = ("x-cache-control", "no-cache")
    callers = [
        wire.call(alone, body=native(tenant_id=tenant), path=NATIVE) for tenant in ("loud", "loud", "loud", "quiet")
    ]
    wire.served[0].refuse(errors.INVALID_ARGUMENT)
    wire.served[1].refuse(errors.INVALID_ARGUMENT)
    assert b"quiet" in b"".join(wire.served[2].chunks)
    for caller in callers:
        caller.cancel()
    wire.assert_clean()


# -- limits that adapt -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
def test_a_limit_that_adapts_learns_while_nobody_waits(later: bool) -> None:
    adaptive = agent(limits=Limits(100, adaptive=True))
    wire = Wire(agent() if later else adaptive)
    wire.apply(adaptive)
    first = wire.state().admission.limit
    for _ in range(5):
        for _ in range(first - 1):
            wire.call(body=ASK)
        wire.pass_s(0.01)
        finish(wire)
    assert wire.state().admission.limit > first


def test_a_limit_that_has_risen_lets_go_on_who_waits_at_once() -> None:
    wire = Wire(agent(limits=Limits(100, adaptive=True)))
    callers = [wire.call(body=ASK) for _ in range(40)]
    wire.pass_s(0.01)
    for served in list(wire.served):  # streams that go on for long
        served.begin()
        served.data(ANSWER)
    assert wire.state().admission.limit > 20
    assert len(wire.served) == wire.state().admission.limit
    for caller in callers:
        caller.cancel()
    wire.assert_clean()


# -- slots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["won", "cancelled", "deadline", "timeout"])
def test_a_try_that_is_cancelled_leaves_its_endpoint_before_the_next_one_comes(end: str) -> None:
    retry = Retry(max_attempts=1, per_try_timeout_ms=100 if end == "timeout" else 0)
    wire = Wire(slots(1, 1, hedge=Hedge(True, 10, 1, (ECHO,)), retry=retry))
    caller = wire.call(("grpc-timeout", "50m" if end == "deadline" else "9S"), body=ASK)
    wire.pass_s(0.03)
    waits = [wire.call(body=ASK) for _ in range(2)]
    assert len(wire.served) == 2
    if end == "won":
        wire.link("a:1").served[0].reply(ANSWER)
    elif end == "cancelled":
        caller.cancel()
    else:
        wire.pass_s(0.11)
    assert len(wire.served) > 2
    assert max(link.peak for link in wire.links) == 1
    for one in waits:
        one.cancel()
    finish(wire)


def test_who_waits_is_not_sent_to_an_endpoint_that_leaves() -> None:
    wire = Wire(slots(1), "wait")
    callers = [wire.call(body=ASK) for _ in range(4)]
    assert waiting(wire) == (0, 3, 0, 0)
    wire.apply(Agent("a", (EndpointPolicy("b:1", capacity=2),)))
    assert [caller.status for caller in callers] == [None] * 4
    wire.link("b:1").come_up()
    assert len(wire.served) == 2
    finish(wire, *callers)


def test_a_further_try_does_not_wait_longer_than_any_call_may() -> None:
    wire = Wire(slots(1, retry=Retry(max_attempts=2, backoff_ms=20), queue=Queue(max_wait_ms=300), max_timeout_ms=0))
    first, second = [wire.call(body=ASK) for _ in range(2)]
    wire.served[0].refuse(errors.UNAVAILABLE)
    wire.pass_s(0.1)
    assert (first.status, len(wire.served)) == (None, 2)
    wire.pass_s(0.4)
    assert first.status == errors.RESOURCE_EXHAUSTED
    assert first.message == "agent 'a' let it wait 300 ms, the most it may (queue.max_wait_ms)"
    assert (wire.state().shed, wire.state().in_flight) == (1, 1)
    finish(wire, second)


def test_thousands_whose_tries_are_refused_at_once_are_all_told() -> None:
    wire = Wire(slots(1, limits=Limits(2_000)), "wait")
    with wire.held():
        callers = [wire.call(body=ASK) for _ in range(1_000)]
    link = wire.link()
    link.mode = "refuse"
    link.refuse()
    assert {caller.status for caller in callers} == {errors.UNAVAILABLE}
    wire.assert_clean()


# -- agents that come and go -------------------------------------------------------------------------------------------


def test_a_call_that_comes_to_an_agent_that_is_gone_does_not_wait() -> None:
    wire = Wire(Agent("a", (), scaling=AT_ZERO, optimization=CACHED))
    caller = wire.call(body=ASK, end=False)
    wire.apply(Policy())
    caller.send(b"", True)
    assert caller.status == errors.UNAVAILABLE
    wire.assert_clean()


def test_calls_that_waited_for_an_instance_may_wait_for_a_slot_of_it() -> None:
    scaling = Scaling(min_instances=0, activation_wait_ms=1_000)
    wire = Wire(Agent("a", (), scaling=scaling, queue=Queue(max_wait_ms=5_000)))
    callers = [wire.call(body=ASK) for _ in range(2)]
    wire.pass_s(0.5)
    wire.apply(slots(1, scaling=scaling, queue=Queue(max_wait_ms=5_000)))
    wire.flow()
    wire.pass_s(1.0)
    assert [caller.status for caller in callers] == [None, None]
    wire.pass_s(3.6)
    assert callers[1].message == "agent 'a' let it wait 5000 ms, the most it may (queue.max_wait_ms)"
    finish(wire, callers[0])


def test_calls_that_waited_for_a_permit_may_wait_for_an_instance() -> None:
    policy = {"scaling": AT_ZERO, "queue": Queue(max_wait_ms=1_000), "limits": ONE}
    wire = Wire(slots(1, **policy))
    first, second = [wire.call(body=ASK) for _ in range(2)]
    wire.apply(slots(**policy))
    first.cancel()
    wire.pass_s(2.0)
    assert second.status is None
    wire.pass_s(3.1)
    assert (second.status, second.message) == (
        errors.UNAVAILABLE,
        "agent 'a' got no instance in time (scaling.activation_wait_ms)",
    )
    assert wire.ended[-1].queue_s == pytest.approx(5.0, abs=0.05)
    wire.assert_clean()


def test_an_agent_that_starts_from_zero_is_waited_for_until_it_can_be_reached() -> None:
    wire = Wire(slots(1, scaling=AT_ZERO), "wait")
    early = wire.call(body=ASK)
    link = wire.link()
    link.set_reachable(False)
    link.refuse()
    later = wire.call(body=ASK)
    wire.pass_s(1.0)
    assert (early.status, later.status) == (None, None)
    assert link.hurried
    link.mode = "up"
    link.come_up()
    link.set_reachable(True)
    wire.flow()
    finish(wire, early, later)


def test_an_agent_at_zero_where_nothing_may_wait_says_that_it_has_no_instance() -> None:
    wire = Wire(Agent("a", (), scaling=AT_ZERO, queue=Queue(max_waiting=0)))
    woken: list[int] = []
    wire.runtime.woke = lambda: woken.append(1)
    caller = wire.call(body=ASK)
    assert woken == [1]
    assert caller.message == "agent 'a' has no instance, and nothing may wait for one (queue.max_waiting is 0)"
    wire.assert_clean()


# -- what is told ------------------------------------------------------------------------------------------------------


def test_a_call_that_is_shed_when_it_comes_has_not_waited() -> None:
    wire = Wire(agent(limits=ONE, queue=Queue(max_waiting=1)))
    first, second = wire.call(body=ASK), wire.call(body=ASK)
    wire.call(body=ASK)
    assert [call.queue_s for call in wire.ended] == [0.0]
    finish(wire, first, second)


def test_a_caller_that_leaves_a_flight_that_waits_has_waited() -> None:
    wire = Wire(agent(limits=ONE, optimization=CACHED))
    blocker = wire.call(body=OTHER)
    leader, follower = wire.call(body=ASK), wire.call(body=ASK)
    wire.pass_s(1.0)
    leader.cancel()
    assert wire.ended[0].queue_s == pytest.approx(1.0, abs=0.02)
    finish(wire, blocker, follower)


def test_the_next_hop_is_told_the_lane_that_only_the_message_names() -> None:
    body = native(priority=pb.PRIORITY_CRITICAL)
    wire = Wire(agent(optimization=Optimization(cache_enabled=True)))
    callers = [wire.call(body=body, path=NATIVE), wire.call(("x-priority", "high"), body=ASK)]
    assert [served.value("x-priority") for served in wire.served] == ["critical", "high"]
    for caller in callers:
        caller.cancel()
    wire.assert_clean()
