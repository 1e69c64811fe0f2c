"""Live state outlives policies; what a snapshot remembers is bounded."""

from __future__ import annotations

import pytest

from outrider.policy import Policy
from outrider_http2.head import Head
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.runtime import _MAX_ROUTES, Snapshot
from tests.wire import Wire, agent, message


def test_a_snapshot_remembers_heads_by_identity_and_forgets_all_past_its_bound() -> None:
    snapshot = Snapshot(Policy(), {}, ())
    first = Head(())
    assert snapshot.known(first) is None
    snapshot.remember(first, "route")
    assert snapshot.known(first) == "route"
    assert snapshot.known(Head(())) is None
    for _ in range(_MAX_ROUTES - 1):
        snapshot.remember(Head(()), "route")
    assert snapshot.known(first) == "route"
    last = Head(())
    snapshot.remember(last, "route")
    assert snapshot.known(first) is None
    assert snapshot.known(last) == "route"


def test_an_agents_state_is_one_object_for_as_long_as_it_is_configured() -> None:
    wire = Wire(agent())
    state, endpoint = wire.state(), wire.link().endpoint
    wire.apply(agent("a:1", "b:1", timeout_ms=50))
    assert wire.state() is state
    assert wire.link().endpoint is endpoint
    wire.apply(Policy())
    assert wire.runtime.agents == {}
    wire.apply(agent())
    assert wire.state() is not state


def test_a_call_keeps_the_snapshot_it_started_with() -> None:
    wire = Wire(agent())
    caller = wire.call(body=message(b"1"))
    wire.apply(Policy())
    later = wire.call(body=message(b"2"))
    assert later.status == 5
    wire.link().served[0].reply(message(b"reply"))
    assert (caller.status, caller.body) == (0, message(b"reply"))
    wire.assert_clean()


def test_without_an_edge_there_is_no_endpoint() -> None:
    wire = Wire(Policy())
    runtime = type(wire.runtime)(wire.reactor, wire.loop.time, wire.wall, wire.runtime.rng)
    with pytest.raises(LookupError, match="no edge"):
        runtime.connector(Endpoint("a:1"), agent())


def test_a_timer_that_raises_leaves_the_turn_closed() -> None:
    wire = Wire(agent())

    def break_down() -> None:
        raise ZeroDivisionError

    wire.runtime.wheel.at(wire.loop.now + 0.01, break_down)
    with pytest.raises(ZeroDivisionError):
        wire.pass_s(1.0)
    caller = wire.call(body=message(b"1"))
    wire.link().served[0].reply(message(b"2"))
    assert caller.status == 0
