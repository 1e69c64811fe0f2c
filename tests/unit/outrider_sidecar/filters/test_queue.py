"""Calls that wait for a permit or a slot: who goes next, who is shed, and what they are told."""

from __future__ import annotations

import pytest

from outrider.policy import (
    Agent,
    Degradation,
    EndpointPolicy,
    Hedge,
    Limits,
    Optimization,
    Policy,
    Queue,
    Retry,
    Scaling,
)
from outrider_sidecar.core import errors
from tests.wire import ECHO, Caller, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
ONE = Limits(1)


def capable(capacity: int, *more: str, **policy: object) -> Agent:
    """An agent whose endpoint a:1 declares a capacity; the others declare none."""
    first = EndpointPolicy("a:1", capacity=capacity)
    return Agent("a", (first, *[EndpointPolicy(address) for address in more]), **policy)  # type: ignore[arg-type]


def lane(wire: Wire, name: str, *fields: tuple[str, str]) -> Caller:
    return wire.call(("x-priority", name), *fields, body=ASK)


def waiting(wire: Wire) -> tuple[int, ...]:
    return tuple(wire.state().admission.queue.lane_waiting())


def finish(wire: Wire) -> None:
    """The agent answers until nobody waits."""
    for _ in range(100):
        for served in [one for one in wire.served if one.alive]:
            served.reply(ANSWER)
        if not wire.runtime.calls:
            return
        wire.pass_s(0.05)
    raise AssertionError("calls are left")


def test_a_call_past_the_limit_waits_and_follows_when_a_permit_is_free() -> None:
    wire = Wire(agent(limits=ONE))
    callers = [wire.call(body=ASK) for _ in range(3)]
    assert (len(wire.served), waiting(wire)) == (1, (0, 2, 0, 0))
    wire.pass_s(0.5)
    wire.served[0].reply(ANSWER)
    assert (callers[0].status, len(wire.served), waiting(wire)) == (0, 2, (0, 1, 0, 0))
    finish(wire)
    assert [caller.status for caller in callers] == [0, 0, 0]
    queued_us = [call.queue_s for call in wire.ended]
    assert queued_us[0] == 0
    assert queued_us[1] == pytest.approx(0.5, abs=0.02)
    wire.assert_clean()


def test_more_urgent_lanes_go_first_and_none_starves() -> None:
    wire = Wire(agent(limits=ONE))
    first = lane(wire, "low")
    callers = [(name, lane(wire, name)) for name in ("low", "normal", "high", "critical") for _ in range(20)]
    assert waiting(wire) == (20, 20, 20, 20)
    order: list[str] = []
    for _ in range(41):
        done = {id(caller) for _, caller in callers if caller.over}
        next(one for one in wire.served if one.alive).reply(ANSWER)
        order += [name for name, caller in callers if caller.over and id(caller) not in done]
    assert first.status == 0
    counts = {name: order.count(name) for name in ("critical", "high", "normal", "low")}
    assert order[0] == "critical"
    assert all(
        [abs(counts[name] - due) <= 3 for name, due in (("critical", 16), ("high", 12), ("normal", 8), ("low", 4))]
    )
    finish(wire)
    wire.assert_clean()


def test_an_endpoint_is_given_no_more_than_its_capacity_and_the_other_takes_the_rest() -> None:
    wire = Wire(capable(2, "b:1"))
    callers = [wire.call(body=ASK) for _ in range(9)]
    assert len(wire.link("a:1").served) <= 2
    assert len(wire.link("b:1").served) >= 7
    assert waiting(wire) == (0, 0, 0, 0)
    finish(wire)
    assert {caller.status for caller in callers} == {0}


def test_calls_wait_for_a_slot_and_a_new_endpoint_takes_them_at_once() -> None:
    wire = Wire(capable(2))
    callers = [wire.call(body=ASK) for _ in range(6)]
    assert (len(wire.served), waiting(wire)) == (2, (0, 4, 0, 0))
    more = Agent("a", (EndpointPolicy("a:1", capacity=2), EndpointPolicy("b:1", capacity=3)))
    wire.apply(more)
    wire.flow()
    assert (len(wire.link("b:1").served), waiting(wire)) == (3, (0, 1, 0, 0))
    finish(wire)
    assert {caller.status for caller in callers} == {0}
    wire.assert_clean()


def test_a_further_try_waits_for_a_slot_with_the_permit_it_has_and_goes_first() -> None:
    wire = Wire(capable(1, retry=Retry(max_attempts=2, backoff_ms=20)))
    first, second, third = [wire.call(body=ASK) for _ in range(3)]
    wire.served[0].refuse(errors.UNAVAILABLE)  # the slot goes to the second call while the first one backs off
    assert (len(wire.served), waiting(wire), wire.state().in_flight) == (2, (0, 1, 0, 0), 2)
    wire.pass_s(0.1)
    assert (len(wire.served), first.status) == (2, None)
    wire.served[1].reply(ANSWER)
    assert (second.status, len(wire.served), waiting(wire)) == (0, 3, (0, 1, 0, 0))
    wire.served[2].reply(ANSWER)
    assert (first.status, third.status) == (0, None)
    finish(wire)
    wire.assert_clean()


def test_a_hedge_takes_a_free_slot_or_none() -> None:
    endpoints = (EndpointPolicy("a:1", capacity=1), EndpointPolicy("b:1", capacity=1))
    wire = Wire(Agent("a", endpoints, hedge=Hedge(True, 10, 1, (ECHO,))))
    callers = [wire.call(body=ASK) for _ in range(2)]
    wire.pass_s(0.1)
    assert len(wire.served) == 2
    finish(wire)
    assert {caller.status for caller in callers} == {0}


@pytest.mark.parametrize("end", ["cancel", "deadline", "shed", "policy"])
def test_any_end_gives_the_place_in_the_queue_back(end: str) -> None:
    wire = Wire(agent(limits=ONE, queue=Queue(max_wait_ms=2_000)))
    first = wire.call(body=ASK)
    caller = wire.call(("grpc-timeout", "1S"), body=ASK) if end == "deadline" else wire.call(body=ASK)
    {
        "cancel": caller.cancel,
        "deadline": lambda: wire.pass_s(1.1),
        "shed": lambda: wire.pass_s(2.1),
        "policy": lambda: wire.apply(Policy()),
    }[end]()
    wire.flow()
    wanted = {"deadline": errors.DEADLINE_EXCEEDED, "shed": errors.RESOURCE_EXHAUSTED, "policy": errors.UNAVAILABLE}
    assert caller.status == wanted.get(end)
    wire.check()
    first.cancel()
    wire.assert_clean()


def test_a_full_queue_sheds_the_least_urgent_and_says_so() -> None:
    wire = Wire(agent(limits=ONE, queue=Queue(max_waiting=2)))
    wire.call(body=ASK)
    low, normal = lane(wire, "low"), lane(wire, "normal")
    urgent = lane(wire, "critical")
    assert (low.status, normal.status, urgent.status) == (errors.RESOURCE_EXHAUSTED, None, None)
    assert low.message == "agent 'a' has 2 calls waiting, its limit (queue.max_waiting)"
    assert int(low.trailer("grpc-retry-pushback-ms")) >= 100
    again = lane(wire, "low")
    assert again.status == errors.RESOURCE_EXHAUSTED
    assert (wire.state().shed, wire.state().admission.shed_lanes) == (2, [2, 0, 0, 0])
    finish(wire)
    wire.assert_clean()


def test_a_call_that_waits_too_long_is_told_the_limit() -> None:
    wire = Wire(agent(limits=ONE, queue=Queue(max_wait_ms=300)))
    first = wire.call(body=ASK)
    caller = wire.call(body=ASK)
    wire.pass_s(0.4)
    assert caller.message == "agent 'a' let it wait 300 ms, the most it may (queue.max_wait_ms)"
    first.cancel()


def test_an_agent_at_zero_parks_calls_until_an_instance_comes() -> None:
    scaling = Scaling(min_instances=0, activation_wait_ms=5_000)
    wire = Wire(Agent("a", (), scaling=scaling))
    woken: list[int] = []
    wire.runtime.woke = lambda: woken.append(1)
    callers = [wire.call(body=ASK) for _ in range(3)]
    assert (waiting(wire), woken, [caller.status for caller in callers]) == ((0, 3, 0, 0), [1], [None] * 3)
    wire.pass_s(4.0)
    wire.apply(Agent("a", (EndpointPolicy("a:1"),), scaling=scaling))
    wire.flow()
    finish(wire)
    assert {caller.status for caller in callers} == {0}
    wire.assert_clean()


def test_an_agent_at_zero_says_so_when_no_instance_comes() -> None:
    wire = Wire(Agent("a", (), scaling=Scaling(min_instances=0, activation_wait_ms=1_000)))
    caller = wire.call(body=ASK)
    wire.pass_s(1.1)
    assert caller.status == errors.UNAVAILABLE
    assert caller.message == "agent 'a' got no instance in time (scaling.activation_wait_ms)"
    wire.assert_clean()


def test_steps_of_degradation_shed_the_lowest_lanes_and_are_undone() -> None:
    degradation = Degradation(True, ("shed_low", "shed_normal"), enter=0.2, leave=0.1, enter_ms=100, leave_ms=200)
    wire = Wire(agent(limits=ONE, queue=Queue(max_waiting=10), degradation=degradation))
    wire.call(body=ASK)
    for _ in range(3):
        lane(wire, "high")
    wire.pass_s(0.2)  # from here on the pressure is known
    wire.pass_s(0.15)
    assert wire.state().ladder.steps == ("shed_low",)
    low, normal = lane(wire, "low"), lane(wire, "normal")
    assert (low.status, normal.status) == (errors.RESOURCE_EXHAUSTED, None)
    assert low.message == "agent 'a' sheds calls of lane low while it is overloaded (degradation.steps)"
    finish(wire)
    wire.pass_s(1.0)
    wire.pass_s(1.0)
    assert wire.state().ladder.steps == ()
    wire.assert_clean()


def test_a_flight_waits_in_its_most_urgent_readers_lane() -> None:
    cached = Optimization(cache_enabled=True, cache_methods=(ECHO,))
    wire = Wire(agent(limits=ONE, optimization=cached))
    wire.call(body=message(b"other"))
    wire.call(("x-priority", "low"), body=ASK)
    assert waiting(wire) == (1, 0, 0, 0)
    wire.call(("x-priority", "critical"), body=ASK)
    assert waiting(wire) == (0, 0, 0, 1)
    finish(wire)
    wire.assert_clean()


def test_a_flight_whose_first_caller_leaves_the_queue_waits_on_for_the_others() -> None:
    cached = Optimization(cache_enabled=True, cache_methods=(ECHO,))
    wire = Wire(agent(limits=ONE, optimization=cached))
    wire.call(body=message(b"other"))
    leader = wire.call(("grpc-timeout", "5S"), body=ASK)
    follower = wire.call(("grpc-timeout", "9S"), body=ASK)
    leader.cancel()
    assert waiting(wire) == (0, 1, 0, 0)
    wire.pass_s(6.0)
    assert follower.status is None
    finish(wire)
    assert follower.status == 0
    wire.assert_clean()


def test_an_unknown_priority_is_normal_and_noted() -> None:
    wire = Wire(agent())
    lane(wire, "urgent")
    finish(wire)
    assert wire.ended[0].lane == 1
    assert wire.ended[0].notes == ["admit: x-priority is not one of low, normal, high, critical"]
