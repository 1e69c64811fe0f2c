"""Admit: permits of one agent at one hop, and the queue of calls that wait for one.

Always holds: a call has its permit once, and it is given back once, to the object that gave it, whatever the call's end
was; nobody overtakes the queue; a permit is given only while an endpoint has a free slot, and the call is forwarded in
the same breath, so that the slot is its own; a further try needs a slot but no second permit, and goes before calls
that have none. Past its bounds the queue sheds the least urgent lane first, and says which limit it was.

Deliberately not here: who is next (`engines.lanes`), the limit that adapts (`engines.gradient`), when steps of
degradation are taken (`engines.degradation`), what the steps do (the filters they belong to).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from outrider.policy import LANES, Agent
from outrider_http2.hpack import literal
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import NORMAL, Call, Step
from outrider_sidecar.core.degraded import mark
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.core.treatment import Labels
from outrider_sidecar.engines.degradation import Ladder
from outrider_sidecar.engines.gradient import Gradient2
from outrider_sidecar.engines.lanes import LaneQueue, Waiter
from outrider_sidecar.engines.queues import Queues

_SHEDDING: Final = ("shed_low", "shed_normal", "shed_high")  # by lane; critical calls are never shed by a step
_PRIORITIES: Final = tuple([literal(b"x-priority", lane.encode()) for lane in LANES])
_LOOK_S: Final = 0.05  # between two looks at the pressure while calls come in
_MIN_PUSHBACK_MS: Final = 100
_MAX_PUSHBACK_MS: Final = 30_000
_NO_INSTANCE: Final = "got no instance in time (scaling.activation_wait_ms)"
_NONE_AND_NO_QUEUE: Final = "has no instance, and nothing may wait for one (queue.max_waiting is 0)"
_GONE: Final = "is not configured any more"


class Admission:
    """The live permits and queue of one agent; `configure` with every policy."""

    __slots__ = (
        "_again", "_agent", "_gone", "_looked_at", "_max_wait_s", "_on_done", "_pumping", "_returning", "_runtime",
        "_state", "_taken", "limit", "limiter", "queue", "shed_lanes",
    )  # fmt: skip

    def __init__(self, agent: Agent, state: AgentState, runtime: Runtime):
        self._state = state
        self._runtime = runtime
        self._agent = agent
        self._on_done: Callable[[Call], Any] = self.release  # one object: it is looked for by identity
        self._pumping = False
        self._again = False
        self._gone = False
        self._taken: list[Waiter] = []  # out of the queue, to be shed once who goes on instead has its permit and slot
        self._returning: deque[Waiter] = deque()  # further tries: they have a permit and wait for a slot
        self._looked_at = 0.0
        self._max_wait_s = 0.0
        self.limit = 0
        self.limiter: Gradient2 | None = None
        self.queue = Queues(LaneQueue, agent.queue)
        self.shed_lanes = [0, 0, 0, 0]
        self.configure(agent)

    def configure(self, agent: Agent) -> None:
        """Take a policy: who waits goes on waiting, under the new bounds."""
        self._agent = agent
        limits = agent.limits
        self.queue.configure(agent.queue)
        self._max_wait_s = agent.queue.max_wait_ms / 1e3
        if not limits.adaptive:
            self.limiter = None
            self._set_limit(limits.max_in_flight)
        else:
            if self.limiter is None:
                self.limiter = Gradient2(limits.min_in_flight, limits.max_in_flight)
            else:
                self.limiter.configure(limits.min_in_flight, limits.max_in_flight)
            self._set_limit(self.limiter.limit)
        self.listen()
        ladder: Ladder | None = self._state.ladder
        if ladder is None:
            self._state.ladder = Ladder(agent.degradation)
        else:
            ladder.configure(agent.degradation)

    def listen(self) -> None:
        """Hear of first chunks where the limit adapts to them, whether or not anybody waits."""
        if self.limiter is not None and self._state.pool is not None:
            self._state.pool.heard = self.heard

    def _set_limit(self, limit: int) -> None:
        self.limit = limit
        self._state.capacity = limit

    @property
    def activates(self) -> bool:
        """Whether calls may wait for a first instance."""
        scaling = self._agent.scaling
        return scaling.enabled and scaling.min_instances == 0 and scaling.activation_wait_ms > 0

    # -- a call comes ----------------------------------------------------------------------------------------------

    def admit(self, call: Call) -> bool | None:
        """The step."""
        state = self._state
        if call.read_lane() != NORMAL and not call.value(b"x-priority"):
            call.forward += _PRIORITIES[call.lane]  # the next hop does not read messages
        pool = state.pool
        if (
            state.in_flight >= self.limit or self.queue.waiting or self._returning or pool.crowded
        ) and not self._passes(call):
            return True
        state.in_flight += 1
        if state.idle:
            state.idle = False
            self._runtime.woke()
        call.done.append(self._on_done)
        return None

    def _passes(self, call: Call) -> bool:
        """The slow way in: True where the call may go on, else it waits or is answered."""
        state = self._state
        labels: Labels = call.labels
        if (
            state.in_flight < self.limit
            and not self.queue.waits_for(labels)
            and not self._returns(labels)
            and self.has_room(labels)
        ):
            return True
        self._wait(call)
        return False

    def _returns(self, labels: Labels) -> bool:
        """Whether a further try waits for a slot of these endpoints."""
        return any([waiter.labels == labels for waiter in self._returning])

    def has_room(self, labels: Labels = ()) -> bool:
        """Whether a call that goes on now finds a slot, or is told at once why there is none."""
        pool = self._state.pool
        if pool.empty and self.activates and not self._gone:
            return False
        room: bool = pool.has_room(labels)
        return room

    def _wait(self, call: Call) -> None:
        """Queue the call, or shed it, or somebody less urgent."""
        now = self._runtime.clock()
        queue = self.queue
        lane = call.lane
        if self._gone:
            self._end(call, errors.UNAVAILABLE, _GONE)
            return
        if not self._agent.queue.max_waiting:
            self._shed(call, lane, self._why_full())
            return
        if lane < len(_SHEDDING) and self._state.ladder.takes(_SHEDDING[lane]):
            mark(call, _SHEDDING[lane])
            self._shed(call, lane, f"sheds calls of lane {LANES[lane]} while it is overloaded (degradation.steps)")
            return
        tenant = call.value(b"x-tenant-id")
        if not tenant and call.payload is not None:
            tenant = call.payload.tenant_id.encode("utf-8", "surrogateescape")
        labels: Labels = call.labels
        if queue.hopeless(labels, lane, call.deadline, now, tenant):
            self._shed(call, lane, f"cannot meet the deadline: {queue.waiting} calls wait for it")
            return
        waiter = Waiter(call, lane, tenant, call.deadline)
        waiter.labels = labels
        waiter.queued_at = now
        call.waiter = waiter
        call.done.append(self._on_done)
        state = self._state
        victim = self.queue.put(waiter, now)
        if victim is not waiter:
            waiter.timer = self._runtime.wheel.at(now + self._wait_s, _GiveUp(self, waiter).fire)
            if state.pool.heard is None:
                state.pool.heard = self.heard
        if victim is not None:
            self._shed_waiter(victim, f"has {self.queue.waiting} calls waiting, its limit (queue.max_waiting)")
        self._wake()
        if now - self._looked_at >= _LOOK_S:
            self.look(now)

    @property
    def _wait_s(self) -> float:
        """How long a call may wait, as it stands."""
        if self._state.pool.empty and self.activates:
            return self._agent.scaling.activation_wait_ms / 1e3
        return self._max_wait_s

    def _why_full(self) -> str:
        in_flight = self._state.in_flight
        if in_flight >= self.limit:
            name = "max_in_flight"
            if self.limiter is not None:
                name = "adaptive"
            elif self._state.pool.load_report is not None:
                name = "endpoint_max_in_flight, or ingress.capacity"
            return f"has {in_flight} calls in flight, its limit (limits.{name})"
        if self._state.pool.empty:
            return _NONE_AND_NO_QUEUE
        return "has no endpoint with a free slot (capacity), and nothing may wait (queue.max_waiting is 0)"

    # -- the queue moves -------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Give what permits and slots there are to who is next."""
        if self._pumping:
            self._again = True
            return
        self._pumping = True
        try:
            self._again = True
            while self._again:
                self._again = False
                self._grant_all()
        finally:
            self._pumping = False
        if not self.queue.waiting and self.limiter is None:
            self._state.pool.heard = None

    def _grant_all(self) -> None:
        full: list[Labels] = []
        for waiter in list(self._returning):
            if waiter.labels in full or waiter.call.waiter is not waiter:
                continue
            if not self.has_room(waiter.labels):
                full.append(waiter.labels)
                continue
            self._returning.remove(waiter)
            self._leave(waiter)
            waiter.call.steps[-1](waiter.call)
        moved = True
        while moved:  # queues take turns: each is given one permit in a round
            moved = False
            for labels in self.queue.groups():
                moved = self._grant(labels) or moved

    def _grant(self, labels: Labels) -> bool:
        """Give one permit to who is next for these endpoints, if there is one and a slot; whether it was given."""
        state = self._state
        queue = self.queue
        if not queue.waits_for(labels) or state.in_flight >= self.limit:
            return False
        if self._returns(labels) or not self.has_room(labels):
            return False
        now = self._runtime.clock()
        granted = queue.take(labels, now, self._taken)
        if granted is not None:
            self._leave(granted)
            granted.call.queue_s = now - granted.queued_at
            state.in_flight += 1
            granted.call.run()
        while self._taken:
            waiter = self._taken.pop()
            if waiter.call.waiter is waiter:
                self._shed_waiter(waiter, self._why_late(waiter, now))
        return True

    def _leave(self, waiter: Waiter) -> None:
        """It waits no longer."""
        waiter.call.waiter = None
        if waiter.timer is not None:
            waiter.timer.cancel()

    def release(self, call: Call) -> None:
        """A call is over: its permit, or its place in the queue, is free."""
        waiter: Waiter | None = call.waiter
        if waiter is not None:
            self._leave(waiter)
            if waiter in self._returning:
                self._returning.remove(waiter)
            else:
                self.queue.remove(waiter)
                call.queue_s = self._runtime.clock() - waiter.queued_at
                return
        self._state.in_flight -= 1
        if self.queue.waiting or self._returning:
            self.pump()

    def park(self, call: Call) -> bool:
        """A further try finds no free slot: it waits for one, with the permit the call has."""
        waiter = Waiter(call, call.lane, b"", call.deadline)
        waiter.labels = call.labels
        waiter.queued_at = self._runtime.clock()
        waiter.timer = self._runtime.wheel.at(waiter.queued_at + self._wait_s, _GiveUp(self, waiter).fire)
        call.waiter = waiter
        self._returning.append(waiter)
        return True

    def requeue(self, call: Call) -> None:
        """A waiting call's lane or deadline is another: others read its reply as well, or its caller has gone."""
        waiter: Waiter | None = call.waiter
        if waiter is None or not waiter.queued:
            return
        if call.deadline != waiter.deadline:
            self.queue.set_deadline(waiter, call.deadline)
        if call.lane > waiter.lane:
            self.queue.raise_lane(waiter, call.lane, self._runtime.clock())

    # -- sheds -----------------------------------------------------------------------------------------------------

    def _why_late(self, waiter: Waiter, now: float) -> str:
        if waiter.late:
            return "cannot meet the deadline any more"
        waited_ms = (now - waiter.queued_at) * 1e3
        return f"let it wait {waited_ms:.0f} ms, as every call of its lane waits too long (queue.codel_target_ms)"

    def give_up(self, waiter: Waiter) -> None:
        """The time a call may wait is over."""
        call: Call = waiter.call
        if call.waiter is not waiter:
            return
        wait_s = self._wait_s
        ends_at = waiter.queued_at + wait_s
        if self._runtime.clock() < ends_at:  # it waits for something else by now
            waiter.timer = self._runtime.wheel.at(ends_at, _GiveUp(self, waiter).fire)
            return
        status, why = errors.UNAVAILABLE, _NO_INSTANCE
        if not (self._state.pool.empty and self.activates):
            status = errors.RESOURCE_EXHAUSTED
            why = f"let it wait {wait_s * 1e3:.0f} ms, the most it may (queue.max_wait_ms)"
        self._count(call.lane)
        if self.queue.remove(waiter):
            self._end_waiter(waiter, status, why)
        else:
            call.fail(status, self._said(why), self._extra(status))  # `release` finds it among those that return

    def _shed_waiter(self, waiter: Waiter, why: str) -> None:
        """Of a call that is out of the queue already."""
        self._count(waiter.lane)
        self._end_waiter(waiter, errors.RESOURCE_EXHAUSTED, why)

    def _end_waiter(self, waiter: Waiter, status: int, why: str) -> None:
        self._leave(waiter)
        waiter.call.queue_s = self._runtime.clock() - waiter.queued_at
        self._end(waiter.call, status, why)

    def _shed(self, call: Call, lane: int, why: str) -> None:
        self._count(lane)
        self._end(call, errors.RESOURCE_EXHAUSTED, why)

    def _count(self, lane: int) -> None:
        self._state.shed += 1
        self.shed_lanes[lane] += 1
        self._wake()

    def _wake(self) -> None:
        """The load is reported at once if there was none."""
        if self._state.idle:
            self._state.idle = False
            self._runtime.woke()

    def _end(self, call: Call, status: int, why: str) -> None:
        """Answer a call that holds no permit: `release` must not take one from somebody else."""
        call.done = [callback for callback in call.done if callback is not self._on_done]
        call.fail(status, self._said(why), self._extra(status))

    def _said(self, why: str) -> str:
        return f"agent {self._agent.agent_id!r} {why}"

    def _extra(self, status: int) -> bytes:
        """What a refusal for load carries: when to come again and, at an ingress, how much there is to do."""
        if status != errors.RESOURCE_EXHAUSTED:
            return b""
        runtime = self._runtime
        now = runtime.clock()
        wait_ms = self.queue.longest_wait_s(now) * 500
        pushback_ms = int(max(_MIN_PUSHBACK_MS, min(wait_ms, _MAX_PUSHBACK_MS)) * (1 + runtime.rng.random() / 4))
        extra = literal(b"grpc-retry-pushback-ms", b"%d" % pushback_ms)
        report = self._state.pool.load_report
        return extra if report is None else extra + report(now)

    def moved(self) -> None:
        """Endpoints have come, gone or changed."""
        if self.queue.waiting or self._returning:
            self.pump()

    # -- time ------------------------------------------------------------------------------------------------------

    def heard(self, call: Call, first_chunk_s: float, now: float) -> None:
        """A first chunk has come: what the limit adapts to, and what the queue expects of a call."""
        self.queue.served(call.labels, first_chunk_s, now)
        limiter = self.limiter
        if limiter is not None and limiter.sample(call.head.path, first_chunk_s, self._state.in_flight):
            self._set_limit(limiter.limit)
            self.moved()

    def look(self, now: float) -> float:
        """Tell the ladder how it stands; the pressure. To be called every half a second at least."""
        self._looked_at = now
        queue, policy, ladder = self.queue, self._agent.queue, self._state.ladder
        pressure = 0.0
        if queue.waiting:
            waited_s = queue.longest_wait_s(now)
            pressure = max(queue.waiting / max(1, policy.max_waiting), waited_s / self._max_wait_s)
        if pressure or ladder.level or ladder.pressure:
            ladder.observe(pressure, now)
        if self._state.pool.empty and (queue.waiting or self._returning):
            self._state.pool.hurry()
        self.moved()
        return pressure

    def close(self) -> None:
        """The agent is gone: nobody waits for it any more."""
        self._gone = True
        shed: list[Waiter] = []
        now = self._runtime.clock()
        for labels in self.queue.groups():
            while self.queue.waits_for(labels):
                waiter = self.queue.take(labels, now, shed)
                if waiter is not None:
                    shed.append(waiter)
        for waiter in shed:
            self._end_waiter(waiter, errors.UNAVAILABLE, _GONE)
        while self._returning:
            waiter = self._returning.popleft()
            self._leave(waiter)
            waiter.call.fail(errors.UNAVAILABLE, self._said(_GONE))


class _GiveUp:
    """What the wheel calls when a waiter's time is over."""

    __slots__ = ("_admission", "_waiter")

    def __init__(self, admission: Admission, waiter: Waiter):
        self._admission = admission
        self._waiter = waiter

    def fire(self) -> None:
        self._admission.give_up(self._waiter)


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step:
    """The step for one agent; its permits and queue are made, or take the policy."""
    found: Any = state.admission
    if found is None:
        found = state.admission = Admission(agent, state, runtime)
    else:
        found.configure(agent)
    admission: Admission = found
    return admission.admit
