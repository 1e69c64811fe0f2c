"""Whatever callers, agents, sockets, timers and policies do, in any order: everything taken is given back.

One state machine plays them all. Between any two events what `Wire.check` compares must agree; in the end permits,
pending tries, held bytes, timers, calls, flights and streams are gone, every caller has heard a reply in order with
one end, and what it heard is byte for byte what one agent said.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider.policy import (
    Agent,
    Balancing,
    Breaker,
    Degradation,
    EndpointPolicy,
    Hedge,
    Limits,
    Optimization,
    Policy,
    Queue,
    Rates,
    Retry,
    Scaling,
)
from outrider_http2 import frames
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call
from tests.wire import Caller, Served, Wire, message

PLAIN, HEDGED, CACHED = "/test.Echo/Plain", "/test.Echo/Hedged", "/test.Echo/Cached"
MAX_TRIES = 3 + 2 + 6  # of the policy, hedges, and what was vouched not to be processed
SMALL_BYTES = 100_000
FAILURES = [errors.UNAVAILABLE, errors.INTERNAL, errors.RESOURCE_EXHAUSTED, errors.CANCELLED, errors.INVALID_ARGUMENT]
RESETS = [frames.CANCEL, frames.REFUSED_STREAM, frames.INTERNAL_ERROR, frames.NO_ERROR]

some = st.integers(0, 30)
sizes = st.sampled_from([0, 1, 900, 20_000, 70_000])


CROWDED = {
    "limits": Limits(3, adaptive=True),
    "queue": Queue(max_waiting=4, max_wait_ms=1_500, codel_target_ms=100, codel_interval_ms=50),
    "degradation": Degradation(
        True, ("hedge_off", "serve_stale", "shed_low", "shed_normal"), 0.5, 0.2, enter_ms=30, leave_ms=200
    ),
}


def policy_of(*addresses: str, capacity: int = 0, **more: Any) -> Policy:
    settled: dict[str, Any] = {
        "retry": Retry(per_try_timeout_ms=200, backoff_ms=20),
        "hedge": Hedge(True, 30, 2, (HEDGED, CACHED)),
        "breaker": Breaker(True, 2, 100, 200),
        "limits": Limits(12),
        "optimization": Optimization(cache_enabled=True, cache_methods=(CACHED,), cache_ttl=2, cache_stale_ratio=8.0),
        "max_timeout_ms": 20_000,
    }
    endpoints = tuple([EndpointPolicy(address, capacity=capacity) for address in addresses])
    agent = Agent("a", endpoints, **(settled | more))
    return Policy({"a": agent}, "a")


POLICIES = [
    policy_of("a:1", "b:1"),
    policy_of("b:1", limits=Limits(2), balancing=Balancing("round_robin"), hedge=Hedge()),
    policy_of(
        *("a:1", "b:1", "c:1"),
        optimization=Optimization(
            cache_enabled=True, cache_methods=(CACHED,), cache_max_object_bytes=30_000, cache_replay="paced"
        ),
        breaker=Breaker(),
        retry=Retry(max_attempts=1),
    ),
    policy_of("a:1", max_timeout_ms=0, optimization=Optimization(), tls=False),
    policy_of(),
    Policy(),
    policy_of("a:1", "b:1", capacity=1, **CROWDED),
    policy_of(
        *("a:1", "b:1"),
        capacity=2,
        rates=Rates(120, tenant_requests_per_min=60, agent_tokens_per_min=60_000, fleet_wide=False, burst_s=5),
        **CROWDED | {"limits": Limits(2)},
    ),
    policy_of(scaling=Scaling(min_instances=0, activation_wait_ms=1_000), queue=Queue(max_waiting=8)),
    policy_of(
        *("a:1", "b:1"),
        capacity=1,
        scaling=Scaling(min_instances=0, activation_wait_ms=1_000),
        queue=Queue(max_waiting=8, max_wait_ms=700),
    ),
]


class Mesh(RuleBasedStateMachine):
    @initialize(
        mode=st.sampled_from(["up", "up", "wait"]),
        policy=st.sampled_from([0, 6, 7, 8, 9]),
        held_bytes=st.sampled_from([SMALL_BYTES, 64 * 1024 * 1024]),
        window_bytes=st.sampled_from([8_192, 65_535]),
    )
    def build(self, mode: str, policy: int, held_bytes: int, window_bytes: int) -> None:
        self.registered: list[tuple[Call, int]] = []
        self.run_back: list[tuple[Call, int]] = []
        self.wire = Wire(POLICIES[policy], mode, window_bytes, held_bytes, self.watch)
        self.callers: list[Caller] = []
        self.chunks = 0

    def watch(self, call: Call) -> None:
        """A step that registers two done callbacks."""
        for number in (1, 2):
            self.registered.append((call, number))
            call.on_done(lambda ended, number=number: self.run_back.append((call, number)))

    # -- callers ---------------------------------------------------------------------------------------------------

    @rule(
        path=st.sampled_from([PLAIN, HEDGED, CACHED, CACHED, CACHED]),
        size=sizes,
        end=st.sampled_from([True, True, True, False]),
        timeout=st.sampled_from(["", "", "", "", "0n", "50m", "3S"]),
        control=st.sampled_from(["", "", "", "no-cache"]),
        reads=st.booleans(),
        key=st.sampled_from(["x", "y"]),
        lane=st.sampled_from(["", "", "low", "high", "critical", "odd"]),
        tenant=st.sampled_from(["", "t", "u"]),
    )
    def call(
        self, path: str, size: int, end: bool, timeout: str, control: str, reads: bool, key: str, lane: str, tenant: str
    ) -> None:
        fields = [("grpc-timeout", timeout)] if timeout else []
        fields += [("x-priority", lane)] if lane else []
        fields += [("x-tenant-id", tenant)] if tenant else []
        fields += [("x-cache-control", control)] if control else []
        same = 20_000 if size > 10_000 else 1  # few different questions, so that callers meet
        body = message(key.encode() * (same if path == CACHED else size))
        self.callers.append(self.wire.call(*fields, body=body, end=end, path=path, reads=reads))

    @rule(at=some)
    def call_without_body(self, at: int) -> None:
        self.callers.append(self.wire.call(path=[PLAIN, HEDGED, CACHED][at % 3]))

    def alive(self, at: int) -> Caller | None:
        alive = [caller for caller in self.callers if not caller.over]
        return alive[at % len(alive)] if alive else None

    @rule(at=some, size=sizes, end=st.booleans())
    def send(self, at: int, size: int, end: bool) -> None:
        caller = self.alive(at)
        if caller is not None and not caller.stream.local_closed:
            caller.send(b"z" * size, end)

    @rule(at=some)
    def cancel(self, at: int) -> None:
        caller = self.alive(at)
        if caller is not None:
            caller.cancel()

    @rule(at=some, reads=st.booleans())
    def read(self, at: int, reads: bool) -> None:
        caller = self.alive(at)
        if caller is not None:
            caller.read() if reads else caller.stop_reading()

    # -- agents ----------------------------------------------------------------------------------------------------

    def serving(self, at: int, begun: bool | None = None) -> Served | None:
        alive = [one for one in self.wire.served if one.alive and begun in (None, one.answered)]
        return alive[at % len(alive)] if alive else None

    def chunk(self, size: int) -> bytes:
        self.chunks += 1
        return message(b"%d." % self.chunks + b"r" * size)

    @rule(at=some, size=sizes)
    def answer(self, at: int, size: int) -> None:
        served = self.serving(at, begun=False)
        if served is not None:
            served.begin()
            served.data(self.chunk(size))

    @rule(at=some, size=sizes)
    def stream(self, at: int, size: int) -> None:
        served = self.serving(at, begun=True)
        if served is not None:
            served.data(self.chunk(size))

    @rule(at=some, size=sizes)
    def reply(self, at: int, size: int) -> None:
        served = self.serving(at, begun=False)
        if served is not None:
            served.reply(self.chunk(size), self.chunk(1))

    @rule(at=some, status=st.sampled_from([0, 0, 0, *FAILURES]))
    def finish(self, at: int, status: int) -> None:
        served = self.serving(at, begun=True)
        if served is not None:
            served.finish(status)

    @rule(at=some, status=st.sampled_from(FAILURES), pushback=st.sampled_from([None, None, b"40", b"-1", b"9" * 400]))
    def refuse(self, at: int, status: int, pushback: bytes | None) -> None:
        served = self.serving(at, begun=False)
        if served is not None:
            served.refuse(status, pushback_ms=pushback)

    @rule(at=some, code=st.sampled_from(RESETS))
    def reset(self, at: int, code: int) -> None:
        served = self.serving(at)
        if served is not None:
            served.cancel(code)

    @rule(at=some, ends=st.booleans())
    def misbehave(self, at: int, ends: bool) -> None:
        """Half a gRPC reply, or none at all."""
        served = self.serving(at, begun=False)
        if served is not None:
            served.begin(status=200 if ends else 502)
            served.data(b"", ends)

    @rule(at=some, reads=st.booleans())
    def take(self, at: int, reads: bool) -> None:
        served = self.serving(at)
        if served is not None:
            served.read() if reads else served.stop_reading()

    # -- sockets, time, policy -------------------------------------------------------------------------------------

    @rule(at=some, event=st.sampled_from(["up", "wait", "refuse", "lose", "go away", "unreachable"]))
    def disturb(self, at: int, event: str) -> None:
        links = [link for link in self.wire.links if not link.closed]
        if not links:
            return
        link = links[at % len(links)]
        if event == "lose":
            link.lose()
        elif event == "go away":
            link.go_away()
        elif event == "unreachable":
            link.set_reachable(not link.endpoint.reachable)
        else:
            link.mode = event
            if event == "up":
                link.come_up()
            elif event == "refuse":
                link.refuse()

    @rule(seconds=st.sampled_from([0.006, 0.035, 0.21, 1.3, 11.0]))
    def wait(self, seconds: float) -> None:
        self.wire.pass_s(seconds)

    @rule(at=st.sampled_from([0, 0, 0, 6, 6, 7, 7, 1, 2, 3, 4, 5, 8, 9, 9]))
    def apply(self, at: int) -> None:
        self.wire.apply(POLICIES[at])

    @precondition(lambda self: hasattr(self, "wire"))
    @rule(crossing=st.booleans())
    def cross(self, crossing: bool) -> None:
        self.wire.hold() if crossing else self.wire.release()

    # -- what holds ------------------------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "wire"):
            self.wire.check()

    def teardown(self) -> None:
        if not hasattr(self, "wire"):
            return
        wire = self.wire
        wire.release()
        for link in wire.links:
            link.mode = "up"
            if not link.closed:
                link.come_up()
        for caller in self.callers:
            caller.read()
            if not caller.stream.local_closed:
                caller.send(b"", True)
        for _ in range(40):
            for served in [one for one in wire.served if one.alive]:
                served.read()
                if served.alive and not served.answered:
                    served.begin()
                if served.alive:
                    served.finish()
            wire.pass_s(0.4)
        for caller in [one for one in self.callers if not one.over]:
            caller.cancel()
        wire.pass_s(1.0)
        wire.assert_clean()
        self.judge()

    def judge(self) -> None:
        """What each caller heard, and what each call did."""
        said = [(b"".join(served.sent), served.status) for served in self.wire.served]
        whole = {body for body, status in said if status == errors.OK}
        for caller in self.callers:
            if caller.status == errors.OK:
                assert caller.body in whole
            else:
                assert any([body.startswith(caller.body) for body, _ in said]) or not caller.body
        tries: dict[str, int] = {}
        for served in self.wire.served:
            context = served.value("traceparent")
            tries[context] = tries.get(context, 0) + 1
        assert max(tries.values(), default=0) <= MAX_TRIES
        assert sorted(map(id_of, self.run_back)) == sorted(map(id_of, self.registered))
        order = [number for _, number in self.run_back]
        assert order == [2, 1] * (len(order) // 2)


def id_of(entry: tuple[Call, int]) -> tuple[int, int]:
    return id(entry[0]), entry[1]


TestMesh = Mesh.TestCase
TestMesh.settings = settings(max_examples=150, stateful_step_count=80, deadline=None)
