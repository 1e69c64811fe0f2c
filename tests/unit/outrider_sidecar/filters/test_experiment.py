"""What calls are told and served with for their variants, and what is kept of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from outrider.policy import Agent, Balancing, EndpointPolicy, Optimization, Policy
from outrider.split import Split, Variant
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.engines.assign import ABORTED, VANISHED
from tests.wire import ECHO, Caller, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
NATIVE = "/outrider.v1.Agent/Invoke"
REPLY = message(pb.InvokeReply(parts=[pb.Part(text="x")], finish_reason=pb.FINISH_REASON_STOP).SerializeToString())
HALVES = (Variant("A", 0.5), Variant("B", 0.5))
X = Split("x", "a", HALVES)


def policy(*splits: Split, **more: Any) -> Policy:
    return Policy({"a": agent(**more)}, "a", splits={"a": splits})


def ask(wire: Wire, *fields: tuple[str, str], body: bytes = ASK, path: str = ECHO, answer: bytes = ANSWER) -> Caller:
    """A call, answered if it reaches the agent."""
    caller = wire.call(*fields, body=body, path=path)
    for served in [one for one in wire.served if one.alive]:
        served.reply(answer)
    assert caller.status == 0
    return caller


def of(wire: Wire, session: str, *fields: tuple[str, str]) -> str:
    """The variant that a session's call says it was served with."""
    return ask(wire, ("x-session-id", session), *fields).trailer("x-outrider-variant")


def both(wire: Wire) -> tuple[str, str]:
    """A session of each half."""
    found: dict[str, str] = {}
    for at in range(100):
        found.setdefault(of(wire, f"s{at}"), f"s{at}")
    return found["x=A"], found["x=B"]


# -- what is said ------------------------------------------------------------------------------------------------------


def test_the_variant_is_in_the_trailer_in_metadata_and_on_the_span() -> None:
    variants = (Variant("A", 1.0, prompt_version="p 7"), Variant("B", 0.0))
    wire = Wire(policy(replace(X, variants=variants), Split("y", "a", (Variant("only", 1.0),))))
    for _ in range(2):  # by the hash, and from memory
        caller = ask(wire, ("x-session-id", "s"), ("x-outrider-prompt-version", "mine"))
        served, span = wire.served[-1], wire.spans[-1]
        assert caller.trailer("x-outrider-variant") == "x=A,y=only"
        assert served.value("x-outrider-variant") == "x=A,y=only"
        assert served.value("x-outrider-prompt-version") == "p 7"
        assert (span.variant, [pair.partition("=")[0] for pair in span.unit.split(",")]) == ("x=A,y=only", ["x", "y"])
        assert [len(pair.partition("=")[2]) for pair in span.unit.split(",")] == [32, 32]
    assert wire.spans[0].unit == wire.spans[1].unit
    assert wire.state().variants.assigned == {("x", "A"): 1, ("y", "only"): 1}
    wire.assert_clean()


def test_an_agent_without_splits_is_told_nothing_and_neither_is_its_caller() -> None:
    wire = Wire(policy())
    caller = ask(wire, ("x-session-id", "s"), ("x-outrider-variant", "x=A"))
    assert caller.trailer("x-outrider-variant") == ""
    assert wire.served[-1].value("x-outrider-variant") == ""  # what a caller says is not forwarded
    assert (wire.spans[-1].variant, wire.spans[-1].unit) == ("", "")


def test_a_call_that_fails_says_its_variant_too() -> None:
    wire = Wire(policy(X), mode="wait")
    caller = wire.call(("x-session-id", "s"), ("grpc-timeout", "50m"), body=ASK)
    wire.pass_s(0.1)
    assert (caller.status, caller.trailer("x-outrider-variant")[:2]) == (4, "x=")
    assert wire.spans[-1].variant == caller.trailer("x-outrider-variant")
    wire.assert_clean()


def test_a_call_that_names_no_unit_takes_no_part_and_says_so() -> None:
    wire = Wire(policy(X, replace(X, name="u", unit="user")))
    caller = ask(wire)
    assert caller.trailer("x-outrider-variant") == ""
    assert wire.spans[-1].notes == ("experiment: the call names no session",)
    assert wire.state().variants.unassigned == 1
    assert len(wire.runtime.sessions) == 0


def test_requests_are_units_of_their_own() -> None:
    wire = Wire(policy(replace(X, unit="request")))
    found = Counter(of(wire, "s") for _ in range(60))
    assert set(found) == {"x=A", "x=B"}
    assert len({span.unit for span in wire.spans}) == 60
    assert wire.state().variants.assigned == {("x", "A"): found["x=A"], ("x", "B"): found["x=B"]}
    assert len(wire.runtime.sessions) == 0
    wire.apply(policy(replace(X, unit="request"), Split("y", "a", HALVES)))
    assert len({of(wire, "s").partition(",")[2] for _ in range(20)}) == 1  # y is by session
    wire.assert_clean()


# -- who it is ---------------------------------------------------------------------------------------------------------


def native(session_id: str = "", user_id: str = "") -> bytes:
    request = pb.InvokeRequest(
        agent_id="a",
        messages=[pb.Message(parts=[pb.Part(text="ask")])],
        session_id=session_id,
        user_id=user_id,
    )
    return message(request.SerializeToString())


def test_a_native_call_is_known_by_its_message() -> None:
    wire = Wire(policy(X, replace(X, name="u", unit="user")))
    told = ask(wire, ("x-session-id", "s"), ("x-user-id", "me"), body=ASK).trailer("x-outrider-variant")
    named = (("x-agent-id", "a"),)
    body = native(session_id="s", user_id="me")
    caller = ask(wire, *named, body=body, path=NATIVE, answer=REPLY)
    assert caller.trailer("x-outrider-variant") == told
    assert wire.served[-1].value("x-outrider-variant") == told
    assert wire.spans[-1].unit == wire.spans[0].unit
    other = ask(wire, *named, ("x-session-id", "s"), body=native(session_id="t", user_id="me"), path=NATIVE)
    assert other.trailer("x-outrider-variant") == told  # metadata beats the message
    caller = wire.call(*named, body=body[:20], path=NATIVE, end=False)
    assert not [one for one in wire.served if one.alive]  # it waits for the message
    caller.send(body[20:], True)
    wire.served[-1].reply(REPLY)
    assert caller.trailer("x-outrider-variant") == told
    assert wire.served[-1].body == body
    wire.assert_clean()


def test_a_native_message_that_cannot_be_read_names_nobody() -> None:
    wire = Wire(policy(X))
    for body in (message(b"\xff"), b"\0\0"):
        caller = ask(wire, ("x-agent-id", "a"), body=body, path=NATIVE, answer=REPLY)
        assert caller.trailer("x-outrider-variant") == ""
        assert wire.served[-1].body == body
    assert wire.spans[-1].notes[0] == "experiment: the call names no session"


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_a_session_keeps_its_variant_across_policies_and_shares() -> None:
    wire = Wire(policy(X))
    first, second = both(wire)
    for variants in ((Variant("A", 1.0), Variant("B", 0.0)), (Variant("A", 0.0), Variant("B", 1.0))):
        wire.apply(policy(replace(X, variants=variants), timeout_ms=5_000))
        assert (of(wire, first), of(wire, second)) == ("x=A", "x=B")
    assert {of(wire, f"new{at}") for at in range(20)} == {"x=B"}
    wire.apply(policy())
    assert of(wire, first) == ""
    wire.apply(policy(X))
    assert (of(wire, first), of(wire, second)) == ("x=A", "x=B")


def test_a_callers_word_counts_where_nothing_is_kept() -> None:
    wire = Wire(policy(X))
    assert {of(wire, f"a{at}", ("x-outrider-variant", "x=B")) for at in range(10)} == {"x=B"}
    assert {of(wire, f"a{at}", ("x-outrider-variant", "x=A")) for at in range(10)} == {"x=B"}
    assert {of(wire, f"a{at}") for at in range(10)} == {"x=B"}


def test_a_session_that_is_idle_for_too_long_is_a_new_one() -> None:
    wire = Wire(policy(replace(X, idle_s=60)))
    _, second = both(wire)
    wire.apply(policy(replace(X, idle_s=60, variants=(Variant("A", 1.0), Variant("B", 0.0)))))
    for _ in range(5):
        wire.pass_s(59)
        assert of(wire, second) == "x=B"
    wire.pass_s(61)
    assert of(wire, second) == "x=A"


def test_all_sessions_of_a_user_are_alike() -> None:
    split = replace(X, unit="user", idle_s=60)
    wire = Wire(policy(split))
    by_user = {of(wire, f"s{at}", ("x-user-id", f"u{at}")): at for at in range(40)}
    second = by_user["x=B"]
    user = ("x-user-id", f"u{second}")
    wire.apply(policy(replace(split, variants=(Variant("A", 1.0), Variant("B", 0.0)))))
    assert of(wire, "new", user) == "x=B"
    assert ask(wire, user).trailer("x-outrider-variant") == "x=B"
    assert of(wire, "new") == "x=B"  # the session's next call leaves out the user
    for _ in range(4):
        wire.pass_s(50)
        assert of(wire, "new", user) == "x=B"
    assert of(wire, "newer", user) == "x=B"  # the user was alive by the calls of another session
    assert wire.state().variants.assigned[("x", "B")] < 40


# -- the exceptions ----------------------------------------------------------------------------------------------------


def test_an_aborted_variant_is_left_at_once_and_that_is_said() -> None:
    wire = Wire(policy(X))
    _, second = both(wire)
    wire.apply(policy(replace(X, variants=(HALVES[0], replace(HALVES[1], aborted=True)))))
    assert of(wire, second) == "x=A"
    assert wire.spans[-1].notes == ("experiment: x: B is aborted, served by A",)
    assert wire.state().variants.exceptions == {("x", ABORTED): 1}
    assert of(wire, second) == "x=A"
    assert wire.spans[-1].notes == ()


LABELLED = replace(X, variants=(Variant("A", 0.5, labels={"v": "1"}), Variant("B", 0.5, labels={"v": "2"})))


def versions(*splits: Split, endpoints: tuple[str, ...] = ("1", "1", "2"), **more: Any) -> Policy:
    """An agent with endpoints of these versions, at 0:1, 1:1 and so on."""
    found = [EndpointPolicy(f"{at}:1", labels={"v": version}) for at, version in enumerate(endpoints)]
    return Policy({"a": Agent("a", tuple(found), **more)}, "a", splits={"a": splits})


def test_a_variant_whose_endpoints_leave_gives_its_sessions_to_the_first_one() -> None:
    wire = Wire(versions(LABELLED))
    _, second = both(wire)
    wire.apply(versions(LABELLED, endpoints=("1", "1")))
    assert of(wire, second) == "x=A"
    assert wire.spans[-1].notes == ("experiment: x: B is vanished, served by A",)
    assert wire.state().variants.exceptions == {("x", VANISHED): 1}
    wire.apply(versions(LABELLED))
    assert of(wire, second) == "x=A"  # one change, not two


def test_a_variant_is_served_by_endpoints_with_its_labels_alone() -> None:
    wire = Wire(versions(LABELLED, balancing=Balancing(strategy="round_robin")))
    first, second = both(wire)
    before = [len(wire.link(f"{at}:1").served) for at in range(3)]
    for _ in range(4):
        assert (of(wire, first), of(wire, second)) == ("x=A", "x=B")
    assert [len(wire.link(f"{at}:1").served) - was for at, was in enumerate(before)] == [2, 2, 4]


def test_a_subset_of_the_policy_is_no_place_for_a_variant() -> None:
    """Its endpoints are there, but the agent's balancing leaves them out."""
    wire = Wire(versions(LABELLED, balancing=Balancing(subset={"v": "1"})))
    assert {of(wire, f"s{at}") for at in range(20)} == {"x=A"}


# -- testers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["session", "user", "request"])
def test_testers_get_what_they_ask_for_and_are_not_counted(unit: str) -> None:
    wire = Wire(policy(replace(X, unit=unit, overrides={"tester": "B"}, variants=(Variant("A", 1.0), Variant("B")))))
    who = (("x-user-id", "tester"),) if unit == "user" else ()
    assert of(wire, "s" if who else "tester", *who) == "x=B"
    assert (wire.spans[-1].variant, wire.spans[-1].unit) == ("x=B", "")
    assert of(wire, "other", ("x-user-id", "u")) == "x=A"
    assert wire.spans[-1].unit[:2] == "x="


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_stored_reply_is_the_variants_own() -> None:
    cached = Optimization(cache_enabled=True, cache_methods=(ECHO,), cache_jitter=0.0)
    wire = Wire(policy(X, optimization=cached))
    sessions = [f"s{at}" for at in range(20)]
    verdicts = Counter((of(wire, one), wire.spans[-1].cache) for one in sessions)
    assert (verdicts["x=A", "miss"], verdicts["x=B", "miss"]) == (1, 1)
    assert sum(verdicts.values()) - 2 == verdicts["x=A", "hit"] + verdicts["x=B", "hit"]
    # A variant that comes to mean something else is another one, the others' replies stay.
    wire.apply(policy(replace(X, variants=(HALVES[0], replace(HALVES[1], prompt_version="2"))), optimization=cached))
    again = Counter((of(wire, one), wire.spans[-1].cache) for one in sessions)
    assert (again["x=A", "miss"], again["x=B", "miss"]) == (0, 1)
    wire.assert_clean()


def test_a_flight_is_shared_within_a_variant_only() -> None:
    cached = Optimization(cache_enabled=True, cache_methods=(ECHO,))
    wire = Wire(policy(X, optimization=cached))
    first, second = both(Wire(policy(X)))
    callers = [wire.call(("x-session-id", one), body=ASK) for one in (first, second, first, second)]
    assert sorted(served.value("x-outrider-variant") for served in wire.served) == ["x=A", "x=B"]
    for served in wire.served:
        served.reply(message(served.value("x-outrider-variant").encode()))
    assert [caller.body[5:] for caller in callers] == [b"x=A", b"x=B"] * 2
    assert [caller.trailer("x-outrider-variant") for caller in callers] == ["x=A", "x=B"] * 2
    wire.assert_clean()
