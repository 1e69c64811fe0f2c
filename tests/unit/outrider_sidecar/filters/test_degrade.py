"""What native calls give up under pressure, who is told, and that nothing is changed without it."""

from __future__ import annotations

import gzip

import pytest

from outrider.policy import Degradation, Limits, Optimization, Queue, Retry
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.core import errors
from outrider_sidecar.core.span import Admission
from outrider_sidecar.filters import degrade
from tests.wire import ECHO, Wire, agent, message

NATIVE = "/outrider.v1.Agent/Invoke"
REPLY = message(pb.InvokeReply(parts=[pb.Part(text="x")], finish_reason=pb.FINISH_REASON_STOP).SerializeToString())
NAMED = ("x-agent-id", "a")  # else `identify` reads the message first
BOTH = ("trim_context", "cap_output")
CACHED = Optimization(cache_enabled=True)
KB = 1024


def asked(low: str = "low", **generation: int) -> pb.InvokeRequest:
    """A request with a block of little relevance and one of much."""
    made = pb.InvokeRequest(agent_id="a", messages=[pb.Message(parts=[pb.Part(text="ask")])])
    made.context.add(parts=[pb.Part(text=low)], relevance=0.1)
    made.context.add(parts=[pb.Part(text="high")], relevance=0.9)
    for name, value in generation.items():
        setattr(made.generation, name, value)
    return made


def body_of(request: pb.InvokeRequest) -> bytes:
    return message(request.SerializeToString())


ASK = body_of(asked())


def pressed(*steps: str, level: int | None = None, **policy: object) -> Wire:
    """An agent whose ladder has taken `level` of the steps (default: all)."""
    degradation = Degradation(True, steps, enter_ms=0, leave_ms=3_600_000, output_tokens=100)
    wire = Wire(agent("a:1", degradation=degradation, **policy))
    press(wire, len(steps) if level is None else level)
    return wire


def press(wire: Wire, level: int) -> None:
    ladder = wire.state().ladder
    for _ in range(level - ladder.level):
        assert ladder.observe(1.0, wire.loop.now)


def relieve(wire: Wire) -> None:
    """The pressure is gone for so long that no step is left."""
    ladder = wire.state().ladder
    for hours in range(2, 20):
        ladder.observe(0.0, wire.loop.now + 3_600.0 * hours)
    assert ladder.level == 0


def sent(wire: Wire, at: int = 0) -> pb.InvokeRequest:
    return pb.InvokeRequest.FromString(wire.served[at].body[5:])


def felt(wire: Wire, at: int = -1) -> tuple[str, ...]:
    admission = wire.spans[at].admission
    return admission.degraded if admission is not None else ()


@pytest.mark.parametrize("path", [NATIVE, "/outrider.v1.Agent/InvokeStream"])
def test_both_steps_change_the_request_and_nothing_else(path: str) -> None:
    wire = pressed(*BOTH)
    caller = wire.call(NAMED, body=ASK, path=path)
    wanted = asked(max_output_tokens=100)
    del wanted.context[0]
    assert sent(wire) == wanted
    wire.served[0].reply(REPLY)
    assert (caller.status, caller.body) == (0, REPLY)
    assert wire.spans[0].admission == Admission(0, "normal", BOTH)
    assert wire.spans[0].request_bytes == len(ASK)
    wire.assert_clean()


def test_a_step_that_is_not_taken_yet_does_nothing() -> None:
    wire = pressed(*BOTH, level=1)
    wire.call(NAMED, body=ASK, path=NATIVE)
    assert len(sent(wire).context) == 1
    assert not sent(wire).HasField("generation")
    wire.served[0].reply(REPLY)
    assert felt(wire) == ("trim_context",)
    relieve(wire)
    wire.call(NAMED, body=ASK, path=NATIVE)
    assert wire.served[1].body == ASK
    wire.served[1].reply(REPLY)
    assert felt(wire) == ()
    wire.assert_clean()


@pytest.mark.parametrize(
    ("body", "path", "note"),
    [
        (body_of(pb.InvokeRequest(agent_id="a", generation=pb.Generation(max_output_tokens=7))), NATIVE, ()),
        (ASK, ECHO, ()),
        (message(b"\xff" * 50), NATIVE, ("degrade: malformed",)),
        (ASK[:-1], NATIVE, ("degrade: truncated",)),
        (message(b"x" * 1_100 * KB), NATIVE, ("degrade: too_large",)),
        (ASK + ASK, NATIVE, ("degrade: not_one_message",)),
    ],
)
def test_what_holds_nothing_to_give_up_goes_on_as_it_is(body: bytes, path: str, note: tuple[str, ...]) -> None:
    wire = pressed(*BOTH)
    wire.call(NAMED, body=body, path=path)
    assert wire.served[0].body == body
    wire.served[0].reply(REPLY)
    assert (felt(wire), wire.spans[0].notes) == ((), note)
    wire.assert_clean()


def test_an_unknown_encoding_is_said_and_a_known_one_is_read() -> None:
    wire = pressed(*BOTH)
    packed = gzip.compress(ASK[5:])
    body = b"\1" + len(packed).to_bytes(4, "big") + packed
    wire.call(NAMED, ("grpc-encoding", "zstd"), body=body, path=NATIVE)
    assert wire.served[0].body == body
    wire.served[0].reply(REPLY)
    assert wire.spans[0].notes == ("degrade: unknown_encoding",)
    wire.call(NAMED, ("grpc-encoding", "gzip"), body=body, path=NATIVE)
    assert wire.served[1].body[0] == 0
    assert len(sent(wire, 1).context) == 1
    wire.served[1].reply(REPLY)
    wire.assert_clean()


def test_it_waits_for_the_whole_request() -> None:
    wire = pressed(*BOTH)
    body = body_of(asked("x" * 300 * KB))
    caller = wire.call(NAMED, body=body[:7], path=NATIVE, end=False)
    caller.send(body[7 : 200 * KB])
    wire.check()
    assert wire.served == []
    caller.send(body[200 * KB :], True)
    assert len(wire.served[0].body) < 200
    wire.check()
    assert wire.reactor.ledger.held_bytes == 0  # what is left is small
    wire.served[0].reply(REPLY)
    assert caller.status == 0
    wire.assert_clean()


def test_a_caller_that_goes_while_it_waits_leaves_nothing() -> None:
    wire = pressed(*BOTH)
    caller = wire.call(NAMED, body=body_of(asked("x" * 100 * KB))[: 80 * KB], path=NATIVE, end=False)
    assert wire.reactor.ledger.held_bytes > 0
    caller.cancel()
    assert felt(wire) == ()
    wire.assert_clean()


@pytest.mark.parametrize("kept_kb", [0, 10, 40])
def test_what_is_kept_of_the_request_is_counted(kept_kb: int) -> None:
    wire = pressed(*BOTH, retry=Retry(backoff_ms=10))
    request = asked("x" * 60 * KB)
    request.context[1].parts[0].text = "h" * kept_kb * KB
    wire.call(NAMED, body=body_of(request), path=NATIVE)
    wire.check()
    kept_bytes = len(wire.served[0].body)
    assert wire.reactor.ledger.held_bytes == (kept_bytes if kept_kb == 40 else 0)
    wire.served[0].refuse(errors.UNAVAILABLE)
    wire.pass_s(0.1)
    assert wire.served[1].body == wire.served[0].body  # a further try sends the same
    wire.served[1].reply(REPLY)
    wire.assert_clean()


def test_a_request_that_grows_in_the_open_counts_in_full_and_may_be_cut_for_it() -> None:
    request = asked()
    request.context[1].parts[0].text = "h" * 100 * KB
    packed = gzip.compress(request.SerializeToString())
    body = b"\1" + len(packed).to_bytes(4, "big") + packed
    for cap_kb, status in ((200, None), (50, errors.RESOURCE_EXHAUSTED)):
        degradation = Degradation(True, BOTH, enter_ms=0)
        wire = Wire(agent(degradation=degradation, limits=Limits(1)), held_bytes=cap_kb * KB)
        wire.call(body=b"")
        press(wire, 2)
        caller = wire.call(NAMED, ("grpc-encoding", "gzip"), body=body, path=NATIVE)
        assert caller.status == status
        wire.check()
        assert (wire.reactor.ledger.held_bytes > 100 * KB) is (status is None)
        wire.served[0].reply(REPLY)
        if status is None:
            wire.served[1].reply(REPLY)
            assert caller.status == 0
        wire.assert_clean()


def test_a_queue_under_pressure_takes_the_steps_by_itself() -> None:
    degradation = Degradation(True, BOTH, enter=0.01, enter_ms=0, leave=0.005, leave_ms=100)
    wire = Wire(agent("a:1", limits=Limits(1), queue=Queue(max_waiting=50), degradation=degradation))
    for _ in range(3):
        wire.call(NAMED, body=ASK, path=NATIVE)
    wire.pass_s(0.1)
    wire.pass_s(0.1)
    late = wire.call(NAMED, ("x-priority", "high"), body=ASK, path=NATIVE)
    while any(one.alive for one in wire.served):
        next(one for one in wire.served if one.alive).reply(REPLY)
    assert late.status == 0
    (admission,) = [span.admission for span in wire.spans if span.admission and span.admission.lane == "high"]
    assert admission.degraded == BOTH
    for _ in range(4):
        wire.pass_s(1.0)
    wire.call(NAMED, body=ASK, path=NATIVE)
    assert wire.served[-1].body == ASK
    wire.served[-1].reply(REPLY)
    wire.assert_clean()


# -- the cache -----------------------------------------------------------------------------------------------------


def test_a_thinned_reply_is_not_stored() -> None:
    wire = pressed(*BOTH, optimization=CACHED)
    for _ in range(2):
        caller = wire.call(NAMED, body=ASK, path=NATIVE)
        wire.served[-1].reply(REPLY)
        assert caller.trailer("x-outrider-cache") == "miss"
    plain = body_of(pb.InvokeRequest(agent_id="a", generation=pb.Generation(max_output_tokens=7)))
    for verdict in ("miss", "hit"):  # this one had nothing to give up
        caller = wire.call(NAMED, body=plain, path=NATIVE)
        for served in [one for one in wire.served if one.alive]:
            served.reply(REPLY)
        assert (caller.trailer("x-outrider-cache"), felt(wire)) == (verdict, ())
    relieve(wire)
    assert wire.call(NAMED, body=ASK, path=NATIVE).trailer("x-outrider-cache") == ""
    wire.served[-1].reply(REPLY)
    assert wire.call(NAMED, body=ASK, path=NATIVE).trailer("x-outrider-cache") == "hit"
    press(wire, 2)
    assert wire.call(NAMED, body=ASK, path=NATIVE).trailer("x-outrider-cache") == "hit"
    assert felt(wire) == ()
    wire.assert_clean()


@pytest.mark.parametrize("fails", [False, True])
def test_who_follows_a_thinned_flight_is_marked_as_well(fails: bool) -> None:
    wire = pressed(*BOTH, optimization=CACHED)
    callers = [wire.call(NAMED, body=ASK, path=NATIVE) for _ in range(2)]
    if fails:
        wire.served[0].refuse(errors.INTERNAL)
    else:
        wire.served[0].begin()
        callers.append(wire.call(NAMED, body=ASK, path=NATIVE))
        wire.served[0].data(REPLY)
        wire.served[0].finish()
    assert {caller.trailer("x-outrider-cache") for caller in callers} == {"miss", "coalesced"}
    assert [felt(wire, at) for at in range(len(callers))] == [BOTH] * len(callers)
    wire.assert_clean()


def test_followers_who_leave_within_a_thinned_reply_are_marked_and_those_before_it_are_not() -> None:
    wire = pressed(*BOTH, optimization=CACHED)
    leader, before, within = (wire.call(NAMED, body=ASK, path=NATIVE) for _ in range(3))
    before.cancel()
    wire.served[0].begin()
    late = wire.call(NAMED, body=ASK, path=NATIVE)
    for caller in (within, late, leader):
        caller.cancel()
    assert [felt(wire, at) for at in range(4)] == [(), BOTH, BOTH, BOTH]
    wire.assert_clean()


def test_a_thinned_flight_is_not_joined_by_a_caller_who_would_get_more() -> None:
    wire = pressed(*BOTH, optimization=CACHED)
    thin = wire.call(NAMED, body=ASK, path=NATIVE)
    relieve(wire)
    whole, follower = wire.call(NAMED, body=ASK, path=NATIVE), wire.call(NAMED, body=ASK, path=NATIVE)
    assert [len(one.body) < len(ASK) for one in wire.served] == [True, False]
    wire.served[0].reply(message(b""))
    wire.served[1].reply(REPLY)
    assert (thin.body, whole.body, follower.body) == (message(b""), REPLY, REPLY)
    assert [felt(wire, at) for at in range(3)] == [BOTH, (), ()]
    assert wire.call(NAMED, body=ASK, path=NATIVE).body == REPLY
    wire.assert_clean()


def test_the_work_of_a_caller_who_left_stays_thinned() -> None:
    wire = pressed(*BOTH, optimization=CACHED)
    leader = wire.call(NAMED, body=ASK, path=NATIVE)
    follower = wire.call(NAMED, body=ASK, path=NATIVE)
    leader.cancel()
    wire.served[0].reply(REPLY)
    assert follower.status == 0
    assert [felt(wire, at) for at in range(3)] == [BOTH] * 3
    assert wire.call(NAMED, body=ASK, path=NATIVE).trailer("x-outrider-cache") == ""  # nothing was stored
    wire.served[1].reply(REPLY)
    wire.assert_clean()


@pytest.mark.parametrize(
    ("policy", "there"),
    [
        (Degradation(), False),
        (Degradation(True), True),
        (Degradation(True, ("serve_stale", "hedge_off", "shed_low")), False),
        (Degradation(True, ("cap_output",)), True),
    ],
)
def test_it_is_left_out_where_no_step_is_its_own(policy: Degradation, there: bool) -> None:
    wire = Wire(agent())
    made = degrade.build(agent(degradation=policy), wire.state(), wire.runtime)
    assert (made is not None) is there
