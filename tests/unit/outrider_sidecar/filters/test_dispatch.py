"""The pool: endpoints come, go and are judged; attempts find one that may be used."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Agent, Balancing, Breaker, EndpointPolicy, Outlier, Policy, Retry
from outrider_sidecar.core import errors
from outrider_sidecar.filters.dispatch import FAILURES, state_of
from tests.wire import Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
ONCE = Retry(max_attempts=1)
OPENS = Breaker(True, 1, 1_000, 10_000, 0.0)
NO_EJECTION = Outlier(enabled=False)


def test_an_endpoint_keeps_its_state_for_as_long_as_it_is_configured() -> None:
    wire = Wire(agent("a:1", "b:1"))
    kept = wire.link("b:1").endpoint
    wire.apply(Agent("a", (EndpointPolicy("b:1", 5, {"zone": "x"}), EndpointPolicy("c:1"))))
    assert list(wire.state().pool.endpoints) == ["b:1", "c:1"]
    assert wire.state().pool.endpoints["b:1"] is kept
    assert (kept.weight, kept.labels) == (5, {"zone": "x"})
    assert wire.link("a:1").closed


def test_an_endpoint_that_leaves_serves_what_it_has_and_gets_nothing_new() -> None:
    wire = Wire(agent("a:1"))
    caller = wire.call(body=ASK)
    leaving = wire.link("a:1").endpoint
    wire.apply(agent("b:1"))
    pool = wire.state().pool
    assert (leaving.draining, pool.leaving, state_of(leaving)) == (True, {leaving}, "draining")
    for _ in range(3):
        wire.call(body=ASK).cancel()
    wire.link("a:1").served[0].reply(ANSWER)
    assert caller.status == 0
    assert (len(wire.link("a:1").served), pool.leaving) == (1, set())
    wire.assert_clean()


def test_an_idle_endpoint_that_leaves_is_gone_at_once() -> None:
    wire = Wire(agent("a:1", "b:1"))
    wire.apply(agent("b:1"))
    assert wire.state().pool.leaving == set()


def test_other_tls_means_other_connections() -> None:
    wire = Wire(agent("a:1"))
    first = wire.link()
    wire.apply(agent("a:1", timeout_ms=5))
    assert wire.link() is first
    wire.apply(agent("a:1", tls=True, server_name="x"))
    assert first.closed
    assert wire.link() is not first
    assert wire.state().pool.endpoints["a:1"] is not first.endpoint


def test_an_agent_that_goes_drains_all_its_endpoints() -> None:
    wire = Wire(agent("a:1"))
    pool = wire.state().pool
    caller = wire.call(body=ASK)
    wire.apply(Policy())
    assert (pool.endpoints, len(pool.leaving)) == ({}, 1)
    wire.link("a:1").served[0].reply(ANSWER)
    assert (caller.status, pool.leaving) == (0, set())
    wire.assert_clean()


def test_no_endpoint_at_all() -> None:
    wire = Wire(Agent("a"))
    caller = wire.call(body=ASK)
    assert (caller.status, caller.message) == (errors.UNAVAILABLE, "agent 'a' has no endpoint")
    wire.assert_clean()


def test_no_usable_endpoint_names_each_and_why() -> None:
    wire = Wire(agent("a:1", "b:1", balancing=Balancing(subset={"zone": "y"})))
    wire.link("a:1").endpoint.serving = False
    wire.link("b:1").endpoint.reachable = False
    wire.link("b:1").last_error = "refused"
    caller = wire.call(body=ASK)
    assert caller.message == "agent 'a' has no usable endpoint: a:1 unhealthy, b:1 unreachable (refused)"


def test_one_word_for_each_state() -> None:
    wire = Wire(agent())
    endpoint: Any = wire.link().endpoint
    assert state_of(endpoint) == "ready"
    endpoint.ejected_until = 5.0
    assert state_of(endpoint) == "ejected"
    endpoint.open_until = 5.0
    assert state_of(endpoint) == "circuit open"


@pytest.mark.parametrize("status", range(17))
def test_only_failures_of_the_endpoint_count_against_it(status: int) -> None:
    wire = Wire(agent(retry=ONCE))
    wire.call(body=ASK)
    served = wire.link().served[0]
    if status:
        served.refuse(status)
    else:
        served.reply(ANSWER)
    assert wire.link().endpoint.failures == int(status in FAILURES)


def test_a_run_of_failures_ejects_and_time_brings_the_endpoint_back() -> None:
    outlier = Outlier(consecutive_failures=3, interval_ms=100, base_ejection_ms=1_000)
    turns = Balancing("round_robin", slow_start_ms=0)
    wire = Wire(agent("a:1", "b:1", outlier=outlier, balancing=turns, retry=ONCE))
    bad = wire.link("a:1")

    def calls(count: int) -> int:
        """Tries the bad endpoint got of so many calls."""
        before = len(bad.served)
        for _ in range(count):
            wire.call(body=ASK)
            for served in [one for one in wire.served if one.alive]:
                served.refuse(errors.INTERNAL) if served in bad.served else served.reply(ANSWER)
        return len(bad.served) - before

    assert calls(10) == 3
    assert state_of(bad.endpoint) == "ejected"
    assert calls(10) == 0
    wire.pass_s(1.5)
    assert calls(4) == 2


def test_an_open_breaker_lets_one_probe_through_when_its_time_has_come() -> None:
    wire = Wire(agent(breaker=OPENS, outlier=NO_EJECTION, retry=ONCE))
    wire.call(body=ASK)
    wire.link().served[0].refuse(errors.INTERNAL)
    assert wire.call(body=ASK).message.endswith("a:1 circuit open")
    wire.pass_s(1.01)
    probe, other = wire.call(body=ASK), wire.call(body=ASK)
    assert (probe.status, other.status) == (None, errors.UNAVAILABLE)
    wire.link().served[1].reply(ANSWER)
    assert probe.status == 0
    assert wire.call(body=ASK).status is None


def test_a_probe_that_is_cancelled_lets_the_next_one_through() -> None:
    wire = Wire(agent(breaker=OPENS, outlier=NO_EJECTION, retry=ONCE))
    wire.call(body=ASK)
    wire.link().served[0].refuse(errors.INTERNAL)
    wire.pass_s(1.01)
    wire.call(body=ASK).cancel()
    assert wire.call(body=ASK).status is None
    assert len(wire.link().served) == 3


def test_a_denied_endpoint_gives_way_to_one_that_was_tried_and_may_be_used() -> None:
    wire = Wire(agent("a:1", "b:1", breaker=OPENS, outlier=NO_EJECTION))
    pool = wire.state().pool
    opened, fine = wire.link("a:1").endpoint, wire.link("b:1").endpoint
    opened.open_until = wire.loop.now + 5.0  # the balancer does not know yet
    wire.call(body=ASK).cancel()
    call = wire.ended[-1]
    for tried in ([fine], [fine, opened], [opened], []):
        call.tried = list(tried)
        attempt = pool.make(call)
        assert attempt is not None
        assert attempt.endpoint is fine
        pool.discard(attempt)
        pool.balancer.update([opened, fine], wire.loop.now)
    fine.open_until = wire.loop.now + 5.0
    assert pool.make(call) is None


def test_ring_hash_keeps_a_session_on_its_endpoint() -> None:
    wire = Wire(agent("a:1", "b:1", "c:1", balancing=Balancing("ring_hash")))
    homes = {}
    for session in ("s1", "s2", "s3", "s4", "s5"):
        for _ in range(4):
            wire.call(("x-session-id", session), body=ASK)
            link = next(link for link in wire.links if any([one.alive for one in link.served]))
            assert homes.setdefault(session, link.endpoint.address) == link.endpoint.address
            link.served[-1].reply(ANSWER)
    assert len(set(homes.values())) > 1


def test_reachability_news_reach_the_balancer() -> None:
    wire = Wire(agent("a:1", "b:1"))
    wire.link("a:1").set_reachable(False)
    for _ in range(5):
        wire.call(body=ASK)
    assert [len(link.served) for link in wire.links] == [0, 5]
    wire.link("b:1").set_reachable(False)
    assert wire.state().pool.panic
    assert wire.call(body=ASK).status is None  # nobody is well: everybody may be tried
