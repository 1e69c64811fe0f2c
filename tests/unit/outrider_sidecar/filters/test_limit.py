"""Limits over time: who is refused by which, what it is told, and what a call leaves behind."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.policy import Agent, Limits, Optimization, Policy, Queue, Rates, Retry
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.core import errors
from outrider_sidecar.engines.gcra import Cell
from outrider_sidecar.engines.shares import Granted, Shares
from outrider_sidecar.filters import limit
from tests.wire import ECHO, Wire, agent, message
from tests.wire_peers import Caller

ASK, ANSWER = message(b"ask"), message(b"answer")
NATIVE = "/outrider.v1.Agent/Invoke"
ANN, BOB = ("x-user-id", "ann"), ("x-user-id", "bob")
KEY = b"k" * 32


def limited(**rates: Any) -> Agent:
    return agent(rates=Rates(**rates))


def cell(wire: Wire, field: str, name: bytes = b"") -> Cell:
    found = wire.state().rates.limits[f"rates.{field}"].table.get(name)
    assert found is not None
    return found


def room(wire: Wire, field: str, name: bytes = b"") -> float:
    return cell(wire, field, name).room(wire.loop.now)


def statuses(callers: list[Caller]) -> list[int | None]:
    return [caller.status for caller in callers]


def test_without_rates_there_is_no_step_and_no_state() -> None:
    wire = Wire(agent())
    wire.call(body=ASK)
    assert limit.build(agent(), wire.state(), wire.runtime) is None
    assert wire.state().rates is None


def test_past_the_limit_calls_are_told_which_it_was_and_when_to_come_again() -> None:
    wire = Wire(limited(agent_requests_per_min=60, burst_s=3))
    callers = [wire.call(body=ASK) for _ in range(5)]
    assert statuses(callers) == [None] * 3 + [errors.RESOURCE_EXHAUSTED] * 2
    assert callers[3].message == (
        "agent 'a' allows 60 requests a minute of all its calls (rates.agent_requests_per_min): try again in 1 s"
    )
    pushbacks = [int(caller.trailer("grpc-retry-pushback-ms")) for caller in callers[3:]]
    assert all(1_000 <= pushback <= 1_101 for pushback in pushbacks)
    assert (wire.state().rates.refused, wire.state().shed) == ({"rates.agent_requests_per_min": 2}, 0)
    assert wire.spans[-1].error == callers[4].message
    wire.pass_s(max(pushbacks) / 1e3)
    assert statuses([wire.call(body=ASK), wire.call(body=ASK)]) == [None, errors.RESOURCE_EXHAUSTED]


@pytest.mark.parametrize(("scope", "header"), [("user", "x-user-id"), ("tenant", "x-tenant-id")])
def test_each_user_and_tenant_has_its_own_and_nobody_is_named(scope: str, header: str) -> None:
    wire = Wire(limited(**{f"{scope}_requests_per_min": 60, "burst_s": 1}))
    assert statuses([wire.call((header, "ann"), body=ASK) for _ in range(2)]) == [None, errors.RESOURCE_EXHAUSTED]
    assert statuses([wire.call((header, "bob"), body=ASK)]) == [None]
    assert statuses([wire.call(body=ASK) for _ in range(9)]) == [None] * 9  # names nobody: under no such limit
    refused = wire.call((header, "ann"), body=ASK)
    assert f"60 requests a minute of this call's {scope} ({header})" in refused.message
    assert "ann" not in refused.message


def test_a_refusal_by_one_limit_takes_nothing_of_the_others() -> None:
    wire = Wire(limited(agent_requests_per_min=600, user_requests_per_min=60, agent_tokens_per_min=600_000, burst_s=2))
    assert statuses([wire.call(ANN, body=ASK) for _ in range(10)]) == [None] * 2 + [errors.RESOURCE_EXHAUSTED] * 8
    assert room(wire, "agent_requests_per_min") == pytest.approx(18)
    assert wire.call(BOB, body=ASK).status is None


def test_of_several_limits_the_one_that_takes_longest_is_told() -> None:
    wire = Wire(limited(agent_requests_per_min=60, user_requests_per_min=6, burst_s=1))
    wire.call(ANN, body=ASK)
    assert "(rates.user_requests_per_min): try again in 10 s" in wire.call(ANN, body=ASK).message
    assert wire.state().rates.refused == {"rates.user_requests_per_min": 1}


def test_hits_and_shared_flights_use_up_no_rate() -> None:
    optimization = Optimization(cache_enabled=True, cache_methods=(ECHO,))
    wire = Wire(agent(rates=Rates(agent_requests_per_min=60, burst_s=1), optimization=optimization))
    flight = [wire.call(body=ASK) for _ in range(5)]
    wire.link().served[0].reply(ANSWER)
    hits = [wire.call(body=ASK) for _ in range(5)]
    assert statuses(flight + hits) == [0] * 10
    assert wire.call(body=message(b"other")).status == errors.RESOURCE_EXHAUSTED


def test_what_was_used_outlives_a_policy() -> None:
    wire = Wire(limited(agent_requests_per_min=60, burst_s=10))
    for _ in range(10):
        wire.call(body=ASK)
    wire.apply(limited(agent_requests_per_min=600, burst_s=10))
    assert wire.call(body=ASK).status == errors.RESOURCE_EXHAUSTED
    wire.pass_s(0.11)
    assert wire.call(body=ASK).status is None
    wire.apply(agent())
    assert statuses([wire.call(body=ASK) for _ in range(50)]) == [None] * 50
    assert wire.state().rates.refused == {"rates.agent_requests_per_min": 1}


# -- tokens ------------------------------------------------------------------------------------------------------------


def native(max_output_tokens: int = 0, **fields: Any) -> bytes:
    request = pb.InvokeRequest(agent_id="a", **fields)
    if max_output_tokens:
        request.generation.max_output_tokens = max_output_tokens
    return message(request.SerializeToString())


def answer(input_tokens: int, output_tokens: int) -> bytes:
    reply = pb.InvokeReply(finish_reason=pb.FINISH_REASON_STOP)
    reply.usage.input_tokens, reply.usage.output_tokens = input_tokens, output_tokens
    return message(reply.SerializeToString())


def tokens(**more: Any) -> Agent:
    return agent(rates=Rates(agent_tokens_per_min=6_000, burst_s=10, reply_tokens=300), **more)


def test_tokens_are_reserved_and_settled_with_what_was_used() -> None:
    wire = Wire(tokens())
    body = native()
    caller = wire.call(body=body, path=NATIVE)
    assert room(wire, "agent_tokens_per_min") == pytest.approx(1_000 - 300 - len(body) / 4)
    wire.link().served[0].reply(answer(500, 200))
    assert caller.status == 0
    assert room(wire, "agent_tokens_per_min") == pytest.approx(300)
    bounded = native(max_output_tokens=100)
    wire.call(body=bounded, path=NATIVE).cancel()
    wire.call(body=bounded, path=NATIVE)
    assert room(wire, "agent_tokens_per_min") == pytest.approx(300 - 100 - 2 * len(bounded) / 4)


def test_what_was_used_beyond_the_reservation_is_paid_off_first() -> None:
    wire = Wire(tokens())
    wire.call(body=native(), path=NATIVE)
    wire.link().served[0].reply(answer(4_000, 1_000))
    refused = wire.call(body=native(), path=NATIVE)
    assert refused.status == errors.RESOURCE_EXHAUSTED
    assert "allows 6000 tokens a minute of all its calls (rates.agent_tokens_per_min)" in refused.message
    assert int(refused.trailer("grpc-retry-pushback-ms")) >= 40_000


def test_a_native_request_is_read_whole_before_its_tokens_are_reserved() -> None:
    wire = Wire(agent(rates=Rates(user_tokens_per_min=6_000, burst_s=10)))
    body = native(user_id="ann", max_output_tokens=10)
    caller = wire.call(body=body[:20], end=False, path=NATIVE)
    assert wire.served == []
    caller.send(body[20:], True)
    assert len(wire.served) == 1
    assert room(wire, "user_tokens_per_min", b"ann") == pytest.approx(1_000 - 10 - len(body) / 4)
    caller.cancel()
    wire.assert_clean()


BODY = message(b"x" * 395)  # 400 bytes: 100 tokens


@pytest.mark.parametrize(
    ("end", "used"),
    [
        ("reply", 200),  # nobody says: both ways, four bytes a token
        ("error", 100),
        ("cancel", 100),
        ("deadline", 100),
        ("cancel in the reply", 200),
        ("unreachable", 0),
        ("shed by the endpoint", 0),
    ],
)
def test_what_an_end_without_usage_costs(end: str, used: float) -> None:
    wire = Wire(tokens(retry=Retry(max_attempts=1)), mode="refuse" if end == "unreachable" else "up")
    caller = wire.call(("grpc-timeout", "1S"), body=BODY)
    served: Any = next(iter(wire.served), None)
    if wire.served:
        assert room(wire, "agent_tokens_per_min") == pytest.approx(700)
    before = wire.loop.now
    if end == "reply":
        served.reply(BODY)
    elif end == "error":
        served.refuse(errors.INTERNAL)
    elif end == "shed by the endpoint":
        served.refuse(errors.RESOURCE_EXHAUSTED)
    elif end == "cancel in the reply":
        served.begin()
        served.data(BODY)
        caller.cancel()
    elif end == "cancel":
        caller.cancel()
    else:
        wire.pass_s(1.5)
    filled = (wire.loop.now - before) * 100
    assert room(wire, "agent_tokens_per_min") == pytest.approx(min(1_000, 1_000 - used + filled), abs=2)
    wire.assert_clean()


def test_a_call_shed_below_gives_its_tokens_back_and_keeps_its_request_counted() -> None:
    rates = Rates(agent_tokens_per_min=6_000, agent_requests_per_min=60, burst_s=10, reply_tokens=300)
    wire = Wire(agent(rates=rates, limits=Limits(1), queue=Queue(max_waiting=0)))
    wire.call(body=BODY)
    assert wire.call(body=BODY).status == errors.RESOURCE_EXHAUSTED
    assert room(wire, "agent_tokens_per_min") == pytest.approx(700)
    assert room(wire, "agent_requests_per_min") == pytest.approx(8)
    assert wire.state().rates.refused == {}


def test_a_flight_that_its_leader_leaves_settles_once() -> None:
    optimization = Optimization(cache_enabled=True, cache_methods=(ECHO,))
    wire = Wire(tokens(optimization=optimization))
    leader, follower = wire.call(body=BODY), wire.call(body=BODY)
    leader.cancel()
    assert room(wire, "agent_tokens_per_min") == pytest.approx(600)
    wire.link().served[0].reply(BODY)
    assert follower.status == 0
    assert room(wire, "agent_tokens_per_min") == pytest.approx(800)
    wire.assert_clean()


EVENTS = ["call", "call", "cancel", "serve", "fail", "time", "policy", "hold", "release", "lose", "half"]


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(EVENTS), max_size=40))
def test_every_reservation_is_settled_exactly_once(seed: int, events: list[str]) -> None:
    """What a call may use is next to nothing beside what is reserved for it: a lost or a second settling stands out."""
    rng = random.Random(seed)
    optimization = Optimization(cache_enabled=True, cache_methods=(ECHO,), cache_ttl=1)
    rates = Rates(agent_tokens_per_min=0.06, burst_s=1e9, reply_tokens=10_000)  # a million at once, and then no more
    policy = agent(rates=rates, optimization=optimization, limits=Limits(3), retry=Retry(backoff_ms=10))
    wire = Wire(policy)
    limits = wire.state().rates.limits["rates.agent_tokens_per_min"]
    counted = limits.cell(b"", wire.loop.now)
    counted.take(500_000, wire.loop.now)  # else what is given back twice is lost in a full cell
    callers: list[Caller] = []
    for event in events:
        alive = [served for served in wire.served if served.alive]
        served = rng.choice(alive) if alive else None
        if event == "call":
            body = message(rng.choice([b"a", b"b", b"c"]))
            callers.append(wire.call(("grpc-timeout", f"{rng.choice([50, 500])}m"), body=body))
        elif event == "half":
            callers.append(wire.call(body=BODY[:6], end=False, path=rng.choice([ECHO, NATIVE])))
        elif event == "cancel" and callers:
            rng.choice(callers).cancel()
        elif event == "serve" and served is not None:
            served.reply(ANSWER)
        elif event == "fail" and served is not None:
            served.refuse(rng.choice([errors.UNAVAILABLE, errors.INTERNAL]))
        elif event == "time":
            wire.pass_s(rng.choice([0.01, 0.06, 1.2]))
        elif event == "policy":
            wire.apply(rng.choice([policy, replace(policy, limits=Limits(1)), replace(policy, queue=Queue(2))]))
        elif event == "hold":
            wire.hold()
        elif event == "release":
            wire.release()
        elif event == "lose" and wire.links:
            wire.link().lose()
    wire.release()
    for caller in callers:
        caller.cancel()
    for served in [one for one in wire.served if one.alive]:
        served.reply(ANSWER)  # a refresh is nobody's: it outlives its callers
    wire.pass_s(3)
    most = (6 + len(ANSWER)) / 4  # tokens that one call has used
    assert 500_000 - most * len(wire.ended) - 1 <= counted.room(wire.loop.now) <= 500_000 + 1
    wire.assert_clean()


# -- over the fleet ----------------------------------------------------------------------------------------------------


def fleet(new_share: float, **rates: Any) -> tuple[Wire, Shares]:
    wire = Wire(agent())
    shares = wire.runtime.shares = Shares(wire.loop.now)
    shares.take((), new_share, KEY, wire.loop.now)
    wire.apply(limited(**rates))
    return wire, shares


def test_a_sidecar_passes_its_share_of_a_limit_over_the_fleet() -> None:
    wire, shares = fleet(0.25, agent_requests_per_min=240, user_tokens_per_min=6_000, burst_s=4, reply_tokens=100)
    callers = [wire.call(ANN, body=BODY) for _ in range(6)]
    assert statuses(callers) == [None] + [errors.RESOURCE_EXHAUSTED] * 5  # of 100 tokens a second a quarter, for 4 s
    assert "6000 tokens a minute of this call's user (x-user-id) over all sidecars" in callers[1].message
    wire.pass_s(1)
    told = {(use.scope, use.unit): use for use in shares.uses(wire.loop.now)}
    assert told["agent", "requests"].demand_per_s == pytest.approx(6)
    assert told["user", "tokens"].demand_per_s == pytest.approx(600)
    assert told["user", "tokens"].key
    granted = [Granted(u.agent_id, u.scope, u.key, u.unit, 1.0, 7) for u in told.values()]
    shares.take(granted, 0.25, KEY, wire.loop.now)
    assert statuses([wire.call(ANN, body=BODY)]) == [errors.RESOURCE_EXHAUSTED]  # more comes by the rate, not at once
    wire.pass_s(0.8)
    assert statuses([wire.call(ANN, body=BODY)]) == [None]


def test_usage_corrects_the_demand_that_is_told() -> None:
    wire, shares = fleet(0.5, agent_tokens_per_min=60_000, reply_tokens=900)
    wire.call(body=BODY)
    wire.link().served[0].reply(BODY)
    wire.pass_s(1)
    (use,) = shares.uses(wire.loop.now)
    assert use.demand_per_s == pytest.approx(200)


def test_a_refusal_says_when_a_larger_share_may_be_there() -> None:
    wire, _ = fleet(0.001, agent_requests_per_min=60, burst_s=1)
    wire.call(body=ASK)
    pushback_ms = int(wire.call(body=ASK).trailer("grpc-retry-pushback-ms"))
    assert 2_000 <= pushback_ms <= 2_201


def test_a_limit_may_become_the_sidecars_own_and_the_fleets_again() -> None:
    wire, shares = fleet(0.5, agent_requests_per_min=60, burst_s=10)
    assert statuses([wire.call(body=ASK) for _ in range(6)])[-1] == errors.RESOURCE_EXHAUSTED
    wire.apply(limited(agent_requests_per_min=60, burst_s=10, fleet_wide=False))
    shares.uses(wire.loop.now + 1)
    wire.pass_s(2)
    assert statuses([wire.call(body=ASK) for _ in range(3)]) == [None, None, errors.RESOURCE_EXHAUSTED]
    assert shares.uses(wire.loop.now + 1) == []
    wire.apply(limited(agent_requests_per_min=60, burst_s=10))
    wire.pass_s(4)
    assert statuses([wire.call(body=ASK) for _ in range(3)]) == [None, None, errors.RESOURCE_EXHAUSTED]
    assert [use.demand_per_s > 0 for use in shares.uses(wire.loop.now + 1)] == [True]


def test_an_agent_that_is_gone_and_comes_again_starts_anew() -> None:
    wire, shares = fleet(0.5, agent_requests_per_min=60, burst_s=2)
    wire.call(body=ASK)
    wire.apply(Policy())
    wire.apply(limited(agent_requests_per_min=60, burst_s=2))
    assert statuses([wire.call(body=ASK) for _ in range(2)]) == [None, errors.RESOURCE_EXHAUSTED]
    assert len(shares) == 1
