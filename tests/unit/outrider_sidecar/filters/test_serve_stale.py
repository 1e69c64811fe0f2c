"""Stored replies past their time, under pressure: served, not refreshed, and said to be so."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Degradation, Optimization
from tests.wire import ECHO, Caller, Wire, agent, message

ASK, ANSWER, NEW = message(b"ask"), message(b"answer"), message(b"new")
HOUR_S = 3_600.0


def policy(enabled: bool = True, steps: tuple[str, ...] = ("serve_stale",), **cache: Any) -> Any:
    settings: dict[str, Any] = {
        "cache_enabled": True, "cache_methods": (ECHO,), "cache_jitter": 0.0, "cache_ttl": 10, "cache_stale_ratio": 0.5,
    }  # fmt: skip
    degradation = Degradation(enabled, steps, enter_ms=0, leave_ms=1_000_000_000, stale_s=100)
    return agent(optimization=Optimization(**(settings | cache)), degradation=degradation)


def stored(**more: Any) -> Wire:
    wire = Wire(policy(**more))
    wire.call(body=ASK)
    wire.served[0].reply(ANSWER)
    return wire


def press(wire: Wire) -> None:
    assert wire.state().ladder.observe(1.0, wire.loop.now)


def relieve(wire: Wire) -> None:
    ladder = wire.state().ladder
    ladder.observe(0.0, wire.loop.now)
    assert ladder.observe(0.0, wire.loop.now + 2_000_000.0)


def verdict(caller: Caller) -> str:
    return caller.trailer("x-outrider-cache")


def felt(wire: Wire) -> tuple[str, ...]:
    admission = wire.spans[-1].admission
    return admission.degraded if admission is not None else ()


@pytest.mark.parametrize("age_s", [11, 14.9, 15.1, 109.9])
def test_a_reply_past_its_time_is_served_without_a_refresh(age_s: float) -> None:
    wire = stored()
    wire.pass_s(age_s)
    press(wire)
    caller = wire.call(body=ASK)
    assert (verdict(caller), caller.body, felt(wire)) == ("stale", ANSWER, ("serve_stale",))
    assert len(wire.served) == 1
    assert wire.state().cache.counts["stale"] == 1
    wire.assert_clean()


def test_a_fresh_reply_is_no_degraded_one() -> None:
    wire = stored()
    press(wire)
    assert (verdict(wire.call(body=ASK)), felt(wire)) == ("hit", ())


def test_past_the_bound_the_agent_is_asked() -> None:
    wire = stored()
    wire.pass_s(110.1)
    press(wire)
    caller = wire.call(body=ASK)
    assert len(wire.served) == 2
    wire.served[1].reply(NEW)
    assert (verdict(caller), caller.body) == ("miss", NEW)
    wire.assert_clean()


def test_without_pressure_an_old_reply_is_kept_but_not_served() -> None:
    wire = stored()
    wire.pass_s(20)
    caller = wire.call(body=ASK)
    assert len(wire.served) == 2
    caller.cancel()
    assert verdict(wire.call(body=ASK)) == ""  # the agent is asked again
    wire.served[2].refuse(13)
    press(wire)
    assert verdict(wire.call(body=ASK)) == "stale"
    relieve(wire)
    last = wire.call(body=ASK)
    wire.served[-1].reply(NEW)
    assert (verdict(last), last.body) == ("miss", NEW)
    assert wire.call(body=ASK).body == NEW


def test_it_is_served_even_though_somebody_asks_the_agent_just_now() -> None:
    wire = stored()
    wire.pass_s(20)
    asking = wire.call(body=ASK)
    press(wire)
    assert verdict(wire.call(body=ASK)) == "stale"
    wire.served[1].reply(NEW)
    assert asking.body == NEW
    assert wire.call(body=ASK).body == NEW
    wire.assert_clean()


def test_the_callers_wishes_come_first() -> None:
    wire = stored()
    wire.pass_s(20)
    press(wire)
    for number, wish in enumerate(("no-cache", "no-store", "max-age=15")):
        wire.call(("x-cache-control", wish), body=ASK).cancel()
        assert len(wire.served) == number + 2


@pytest.mark.parametrize("how", [{"enabled": False}, {"steps": ("cap_output",)}])
def test_where_the_policy_has_no_such_step_old_replies_go(how: dict[str, Any]) -> None:
    wire = stored(**how)
    wire.pass_s(20)
    if how.get("enabled", True):
        press(wire)
    wire.call(body=ASK).cancel()
    assert len(wire.served) == 2
    assert len(wire.state().cache.store) == 0


def test_a_policy_that_takes_the_step_away_lets_old_replies_go() -> None:
    wire = stored()
    wire.pass_s(20)
    press(wire)
    assert verdict(wire.call(body=ASK)) == "stale"
    wire.apply(policy(steps=("cap_output",)))
    wire.call(body=ASK).cancel()
    assert len(wire.served) == 2
    assert len(wire.state().cache.store) == 0
