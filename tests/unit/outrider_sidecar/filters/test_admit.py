"""The permit: taken once a call, given back whatever happens."""

from __future__ import annotations

import pytest

from outrider.policy import Hedge, Limits, Policy, Queue, Retry
from outrider_sidecar.core import errors
from tests.wire import ECHO, Wire, agent, message

NOTHING_WAITS = Queue(max_waiting=0)
ASK, ANSWER = message(b"ask"), message(b"answer")


def test_past_the_limit_a_call_is_refused_at_once_and_told_which_limit() -> None:
    wire = Wire(agent(limits=Limits(2), queue=NOTHING_WAITS))
    callers = [wire.call(body=ASK) for _ in range(3)]
    assert (wire.state().in_flight, len(wire.served)) == (2, 2)
    assert [caller.status for caller in callers] == [None, None, errors.RESOURCE_EXHAUSTED]
    assert callers[2].message == "agent 'a' has 2 calls in flight, its limit (limits.max_in_flight)"
    wire.link().served[0].reply(ANSWER)
    assert wire.call(body=ASK).status is None
    for caller in callers:
        caller.cancel()


@pytest.mark.parametrize("end", ["reply", "error", "cancel", "deadline", "reset", "lost"])
def test_any_end_gives_the_permit_back_once(end: str) -> None:
    wire = Wire(agent(limits=Limits(1), retry=Retry(max_attempts=1)))
    caller = wire.call(("grpc-timeout", "1S"), body=ASK)
    served = wire.link().served[0]
    {
        "reply": lambda: served.reply(ANSWER),
        "error": lambda: served.refuse(errors.INTERNAL),
        "cancel": caller.cancel,
        "deadline": lambda: wire.pass_s(1.1),
        "reset": served.cancel,
        "lost": wire.link().lose,
    }[end]()
    assert wire.state().in_flight == 0
    wire.assert_clean()


def test_further_tries_reuse_the_permit() -> None:
    wire = Wire(agent("a:1", "b:1", limits=Limits(1), hedge=Hedge(True, 10, 1, (ECHO,))))
    caller = wire.call(body=ASK)
    wire.pass_s(0.05)
    assert (len(wire.served), wire.state().in_flight) == (2, 1)
    for served in wire.served:
        served.refuse(errors.UNAVAILABLE)
    wire.pass_s(0.2)
    assert (len(wire.served), wire.state().in_flight) == (3, 1)
    wire.served[-1].reply(ANSWER) if wire.served[-1].alive else wire.served[1].reply(ANSWER)
    caller.cancel()
    wire.assert_clean()


def test_a_permit_returns_to_the_state_that_gave_it() -> None:
    wire = Wire(agent(limits=Limits(1)))
    caller = wire.call(body=ASK)
    first = wire.state()
    wire.apply(Policy())
    wire.apply(agent(limits=Limits(1)))
    second = wire.state()
    assert (first.in_flight, second.in_flight) == (1, 0)
    other = wire.call(body=ASK)
    caller.cancel()
    assert (first.in_flight, second.in_flight) == (0, 1)
    other.cancel()
    wire.assert_clean()


def test_a_lower_limit_counts_calls_admitted_under_the_old_one() -> None:
    wire = Wire(agent(limits=Limits(3)))
    callers = [wire.call(body=ASK) for _ in range(3)]
    wire.apply(agent(limits=Limits(1), queue=NOTHING_WAITS))
    assert wire.call(body=ASK).status == errors.RESOURCE_EXHAUSTED
    for caller in callers:
        caller.cancel()
    assert wire.call(body=ASK).status is None
