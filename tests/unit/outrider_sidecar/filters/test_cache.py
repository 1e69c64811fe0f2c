"""What is answered from memory, for whom, and what says so."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Optimization
from outrider_sidecar.core import errors
from tests.wire import ECHO, Caller, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")


def cached(**more: Any) -> Wire:
    settings: dict[str, Any] = {"cache_enabled": True, "cache_methods": (ECHO,), "cache_jitter": 0.0}
    return Wire(agent(optimization=Optimization(**(settings | more))))


def ask(wire: Wire, *fields: tuple[str, str], body: bytes = ASK, answer: bytes = ANSWER) -> Caller:
    """A call, answered if it reaches the agent."""
    caller = wire.call(*fields, body=body)
    for served in [one for one in wire.served if one.alive]:
        served.reply(answer)
    return caller


def verdict(caller: Caller) -> str:
    return caller.trailer("x-outrider-cache")


def test_the_second_call_is_answered_from_memory_byte_for_byte() -> None:
    wire = cached()
    first = wire.call(body=ASK)
    served = wire.link().served[0]
    served.begin(("x-initial", "1"))
    served.data(message(b"one"))
    served.data(message(b"two"))
    served.finish(0, ("x-trailing", "2"))
    second = wire.call(body=ASK)
    assert (verdict(first), verdict(second)) == ("miss", "hit")
    assert (second.status, second.body, second.trailer("x-trailing")) == (0, first.body, "2")
    assert second.head is not None
    assert second.head.values[b"x-initial"] == b"1"
    assert len(wire.served) == 1
    assert second.trailer("x-outrider-endpoint") == ""
    assert wire.state().cache.counts == {"hit": 1, "stale": 0, "miss": 1, "coalesced": 0, "bypass": 0}
    assert [span.cache for span in wire.spans] == ["miss", "hit"]
    wire.assert_clean()


@pytest.mark.parametrize(
    ("fields", "shared"),
    [
        ([("x-tenant-id", "t")], False),
        ([("x-user-id", "u")], False),
        ([("authorization", "Bearer b")], False),
        ([("grpc-encoding", "gzip")], False),
        ([("x-request-id", "r")], True),
        ([("x-session-id", "s")], True),
        ([("user-agent", "other")], True),
        ([("grpc-timeout", "1S")], True),
    ],
)
def test_who_shares_an_answer(fields: list[tuple[str, str]], shared: bool) -> None:
    wire = cached()
    ask(wire)
    assert verdict(ask(wire, *fields)) == ("hit" if shared else "miss")
    assert verdict(ask(wire, *fields)) == "hit"


def test_users_of_a_tenant_may_share_and_claims_may_replace_authorization() -> None:
    wire = cached(cache_scope="tenant", cache_auth_claims=("x-role", "x-session-id"))
    ask(wire, ("x-user-id", "1"), ("x-role", "r"), ("authorization", "1"))
    assert verdict(ask(wire, ("x-user-id", "2"), ("x-role", "r"), ("authorization", "2"))) == "hit"
    assert verdict(ask(wire, ("x-role", "other"))) == "miss"
    assert verdict(ask(wire, ("x-role", "r"), ("x-session-id", "s"))) == "miss"


def test_another_body_or_method_is_another_question() -> None:
    wire = cached(cache_methods=("/test.Echo/*",))
    ask(wire)
    assert verdict(ask(wire, body=message(b"other"))) == "miss"
    caller = wire.call(body=ASK, path="/test.Echo/Else")
    wire.served[-1].reply(ANSWER)
    assert verdict(caller) == "miss"
    other = wire.call(body=ASK, path="/test.Other/Unary")
    wire.served[-1].reply(ANSWER)
    assert verdict(other) == ""


@pytest.mark.parametrize(
    ("control", "verdicts"),
    [("no-store", ["bypass", "miss"]), ("no-cache", ["miss", "hit"]), ("max-age=0", ["miss", "hit"])],
)
def test_the_callers_wishes(control: str, verdicts: list[str]) -> None:
    wire = cached()
    assert [verdict(ask(wire, ("x-cache-control", control))), verdict(ask(wire))] == verdicts


def test_no_cache_asks_the_agent_and_refreshes_what_is_stored() -> None:
    wire = cached()
    ask(wire)
    fresh = ask(wire, ("x-cache-control", "no-cache"), answer=message(b"new"))
    assert (verdict(fresh), fresh.body) == ("miss", message(b"new"))
    assert ask(wire).body == message(b"new")


@pytest.mark.parametrize("status", [errors.UNKNOWN, errors.NOT_FOUND, errors.UNAVAILABLE])
def test_only_ok_is_stored(status: int) -> None:
    wire = cached()
    wire.call(body=ASK)
    wire.served[0].reply(ANSWER, status=status)
    wire.call(body=ASK)
    assert len(wire.served) == 2


@pytest.mark.parametrize("answer", [b"", ANSWER[:-1], ANSWER + b"\0\0"])
def test_only_whole_messages_are_stored(answer: bytes) -> None:
    wire = cached()
    ask(wire, answer=answer)
    assert verdict(ask(wire)) == "miss"


def test_a_large_reply_passes_and_is_not_stored() -> None:
    wire = cached(cache_max_object_bytes=10_000)
    big = message(b"b" * 20_000)
    assert ask(wire, answer=big).body == big
    assert (verdict(ask(wire, answer=big)), len(wire.state().cache.store)) == ("miss", 0)
    wire.assert_clean()


def test_a_stale_reply_is_served_while_it_is_refreshed_once() -> None:
    wire = cached(cache_ttl=10, cache_stale_ratio=1.0)
    ask(wire)
    wire.pass_s(15)
    first, second = wire.call(body=ASK), wire.call(body=ASK)
    assert [(verdict(one), one.body) for one in (first, second)] == [("stale", ANSWER)] * 2
    assert len(wire.served) == 2
    wire.served[1].reply(message(b"new"))
    third = wire.call(body=ASK)
    assert (verdict(third), third.body) == ("hit", message(b"new"))
    refresh = next(span for span in wire.spans if span.endpoint and span.parent_id)
    assert refresh.status == 0
    wire.assert_clean()
    wire.pass_s(30)
    assert verdict(wire.call(body=ASK)) == ""  # past its stale life: the agent is asked


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_refresh_that_fails_harms_nobody(how: str) -> None:
    wire = cached(cache_ttl=1_000, cache_stale_ratio=1.0)
    ask(wire)
    wire.pass_s(1_001)
    assert verdict(wire.call(body=ASK)) == "stale"
    if how == "refused":
        wire.served[1].refuse(errors.INTERNAL)
    else:
        wire.pass_s(61)
    wire.assert_clean()
    assert verdict(wire.call(body=ASK)) == "stale"


def test_invalidated_replies_are_never_served_again() -> None:
    wire = cached()
    ask(wire)
    wire.runtime.epochs.bump(wire.wall(), "a", "", "")
    assert verdict(ask(wire)) == "miss"
    assert verdict(ask(wire)) == "hit"


def test_a_caller_that_cannot_decompress_what_is_stored_asks_the_agent() -> None:
    wire = cached()
    wire.call(("grpc-accept-encoding", "gzip"), body=ASK)
    served = wire.served[0]
    served.begin(("grpc-encoding", "gzip"))
    served.data(b"\1" + ANSWER[1:])
    served.finish()
    assert verdict(wire.call(("grpc-accept-encoding", "identity, gzip"), body=ASK)) == "hit"
    assert verdict(ask(wire, ("grpc-accept-encoding", "identity"))) == "miss"


def test_hits_take_no_slot_and_work_while_the_agent_is_down() -> None:
    wire = cached()
    ask(wire)
    wire.link().lose()
    wire.link().mode = "refuse"
    assert verdict(wire.call(body=ASK)) == "hit"
    assert wire.state().in_flight == 0
    wire.assert_clean()


def test_a_paced_replay_keeps_the_pauses_and_stops_with_its_caller() -> None:
    wire = cached(cache_replay="paced")
    wire.call(body=ASK)
    served = wire.served[0]
    served.begin()
    for part in (b"1", b"2", b"3"):
        wire.pass_s(0.2)
        served.data(message(part))
    served.finish()
    first, second = wire.call(body=ASK), wire.call(("grpc-timeout", "300m"), body=ASK)
    assert (first.body, first.status) == (message(b"1"), None)
    second.cancel()
    assert len(wire.runtime.wheel) == 1
    wire.pass_s(0.25)
    assert first.body == message(b"1") + message(b"2")
    wire.pass_s(0.25)
    assert (first.body, first.status) == (message(b"1") + message(b"2") + message(b"3"), 0)
    wire.assert_clean()


def test_the_cache_outlives_a_policy_and_takes_its_new_figures() -> None:
    wire = cached()
    ask(wire)
    state = wire.state().cache
    more = Optimization(cache_enabled=True, cache_methods=(ECHO,), cache_strategy="lfu", cache_max_bytes=1_000_000)
    wire.apply(agent(optimization=more))
    assert wire.state().cache is state
    assert (state.store.strategy, state.store.max_bytes) == ("lfu", 1_000_000)
    assert verdict(ask(wire)) == "hit"
    wire.apply(agent())
    assert verdict(ask(wire)) == ""
    assert len(wire.served) == 2


def test_what_is_remembered_of_callers_and_methods_is_bounded() -> None:
    wire = cached(cache_methods=("/test.Echo/*",))
    for number in range(1_100):
        wire.call(("x-user-id", str(number)), body=b"", path=f"/test.Echo/M{number}").cancel()
    wire.assert_clean()


def test_a_body_that_comes_in_pieces_is_waited_for() -> None:
    wire = cached()
    ask(wire)
    caller = wire.call(body=ASK[:2], end=False)
    assert (caller.over, len(wire.served)) == (False, 1)
    caller.send(ASK[2:], True)
    assert (verdict(caller), len(wire.served)) == ("hit", 1)
    wire.assert_clean()
