"""Dispatch: pick an endpoint and forward. The last step of every route.

Always holds: an endpoint's live state survives policy changes for as long as its address stays configured; an endpoint
that is no longer configured drains (no new attempts) and goes when its last attempt is over; feedback of every attempt
reaches balancer, outlier detector and breaker; an endpoint that declares a capacity is given no more calls at once, but
where a call must not wait; a call whose variant names labels goes to endpoints that carry all of them and to no other,
first tries, further ones and hedges alike. What is learnt of an endpoint serves all who may pick it.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable
from typing import Any, Final

from outrider.policy import Agent, Balancing
from outrider_sidecar.core import errors
from outrider_sidecar.core.attempt import ABORTED, Attempt
from outrider_sidecar.core.balancer import Balancer
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.core.treatment import Labels
from outrider_sidecar.engines.availability import next_change_at, usable
from outrider_sidecar.engines.breaker import CircuitBreaker
from outrider_sidecar.engines.orca import decode_load_report
from outrider_sidecar.engines.outlier import OutlierDetector
from outrider_sidecar.filters.strategies import make_balancer

# Statuses that say something about the endpoint; the others are the caller's or the application's business.
FAILURES: Final = frozenset(
    {
        errors.UNKNOWN,
        errors.DEADLINE_EXCEEDED,
        errors.RESOURCE_EXHAUSTED,
        errors.INTERNAL,
        errors.UNAVAILABLE,
        errors.DATA_LOSS,
    }
)


class Subset:
    """The endpoints that carry some labels, and what decides among them: where calls of one variant go."""

    __slots__ = ("able", "balancer", "labels", "limited")

    def __init__(self, labels: Labels, balancer: Balancer):
        self.labels = frozenset(labels)
        self.balancer = balancer
        self.able: list[Endpoint] = []  # may be picked
        self.limited = False  # one of them declares a capacity

    def update(self, members: Iterable[Endpoint], policy: Balancing, now: float) -> None:
        """Work out anew who may be picked."""
        own = [endpoint for endpoint in members if self.labels <= endpoint.labels.items()]
        self.able, _ = usable(own, policy, now)
        self.limited = any([endpoint.capacity for endpoint in self.able])
        self.balancer.update(self.able, now)


class Pool:
    """The live endpoints of one agent and everything that decides among them."""

    def __init__(self, agent: Agent, runtime: Runtime, now: float):
        self._runtime = runtime
        self.endpoints: dict[str, Endpoint] = {}
        self.leaving: set[Endpoint] = set()
        self.panic = False
        self.able: list[Endpoint] = []  # may be picked
        self.empty = True  # no endpoint is configured, or none can be reached
        self.crowded = False  # there may be no slot: ask `has_room`
        self.admission: Any = None  # whose calls wait for slots (filters.admit)
        self.heard: Callable[[Call, float, float], Any] | None = None  # is told of first chunks, while it needs to know
        self.load_report: Callable[[float], bytes] | None = None  # ingress: a literal for trailers that have none
        self._limited = False  # an endpoint that may be picked declares a capacity
        self._several = False  # endpoints that may be picked: with one there is nothing to compare
        self._subsets: dict[Labels, Subset] = {}
        self._next_change_at = float("inf")
        self._next_sweep_at = now
        self._configure(agent)
        self.update(agent, now)

    def _configure(self, agent: Agent) -> None:
        self.agent = agent
        self._subsets = {}
        self.balancer = make_balancer(agent.balancing, self._runtime.rng)
        self._detector = OutlierDetector(agent.outlier)
        self._breaker = CircuitBreaker(agent.breaker, self._runtime.rng)
        self.wants_reports = agent.balancing.strategy == "weighted_round_robin"
        self._hashed = agent.balancing.strategy == "ring_hash"
        self._hash_on = agent.balancing.hash_on.encode()
        self._per_try_s = agent.retry.per_try_timeout_ms / 1e3

    def update(self, agent: Agent, now: float, variants: Iterable[Labels] = ()) -> None:
        """Take a policy: keep what stays, start what is new, let go of what left. `variants`: sets of labels that calls
        will be bound to."""
        if agent != self.agent:
            before = self.agent
            self._configure(agent)
            redial = (before.tls, before.server_name) != (agent.tls, agent.server_name)
        else:
            redial = False
        wanted = {endpoint.address: endpoint for endpoint in agent.endpoints}
        gone = [self.endpoints.pop(address) for address in list(self.endpoints) if address not in wanted or redial]
        for address, policy in wanted.items():
            known = self.endpoints.get(address)
            endpoint = known if known is not None else Endpoint(address, now=now)
            endpoint.weight = policy.weight
            endpoint.capacity = policy.capacity
            endpoint.labels = policy.labels
            if known is None:
                endpoint.connector = self._runtime.connector(endpoint, agent)
                self.endpoints[address] = endpoint
                endpoint.connector.begin(self.changed)
        self._detector.update(list(self.endpoints.values()))
        self._breaker.update(self.endpoints.values(), now)
        self._subsets = {labels: self._subsets.get(labels) or self._subset(labels) for labels in variants}
        self.refresh(now)
        self._let_go(gone)

    def _subset(self, labels: Labels) -> Subset:
        return Subset(labels, make_balancer(self.agent.balancing, self._runtime.rng))

    def _bound_to(self, labels: Labels) -> Subset:
        """The endpoints with these labels; those of a policy that is not in force any more are found anew."""
        subset = self._subsets.get(labels)
        if subset is None:
            subset = self._subsets[labels] = self._subset(labels)
            subset.update(self.endpoints.values(), self.agent.balancing, self._runtime.clock())
        return subset

    def _let_go(self, gone: list[Endpoint]) -> None:
        """They may not be picked any more; tries that wait for a connection to them are made elsewhere."""
        for endpoint in gone:
            endpoint.draining = True
            if endpoint.pending:
                self.leaving.add(endpoint)
        for endpoint in gone:
            endpoint.connector.drain()

    def changed(self) -> None:
        """Something about an endpoint's reachability or health is different."""
        self.refresh(self._runtime.clock())

    def refresh(self, now: float) -> None:
        """Work out anew who may be picked."""
        members = self.endpoints.values()
        able, self.panic = usable(members, self.agent.balancing, now)
        self.able = able
        self.empty = not any([endpoint.reachable for endpoint in members])
        self._limited = any([endpoint.capacity for endpoint in able])
        for subset in self._subsets.values():
            subset.update(members, self.agent.balancing, now)
            self._limited = self._limited or subset.limited
        self.crowded = self._limited or self.empty
        self._several = len(able) > 1
        self._next_change_at = next_change_at(members, now)
        self.balancer.update(able, now)
        if self.admission is not None:
            self.admission.moved()

    def has_room(self, labels: Labels = ()) -> bool:
        """Whether an endpoint that may be picked, and has these labels, has a free slot; True as well where none may be
        picked."""
        able = self._bound_to(labels).able if labels else self.able
        if not self._limited or not able:
            return True
        for endpoint in able:  # noqa: SIM110 - a generator costs more than the first look
            if not endpoint.capacity or endpoint.pending < endpoint.capacity:
                return True
        return False

    def hurry(self) -> None:
        """Calls wait until an endpoint can be reached."""
        for endpoint in self.endpoints.values():
            endpoint.connector.hurry()

    def tick(self, now: float) -> None:
        """Time passes: sweep outliers, let ejected endpoints return."""
        changed = now >= self._next_change_at
        if now >= self._next_sweep_at:
            self._next_sweep_at = now + self.agent.outlier.interval_ms / 1e3
            changed = self._detector.sweep(list(self.endpoints.values()), now) or changed
        if changed:
            self.refresh(now)

    def close(self) -> None:
        """The agent is gone from the policy."""
        gone = list(self.endpoints.values())
        self.endpoints.clear()
        self.able = []
        self._subsets.clear()
        self.balancer.update([], self._runtime.clock())
        if self.admission is not None:
            self.admission.close()
        self._let_go(gone)

    # -- attempts --------------------------------------------------------------------------------------------------

    def make(self, call: Call) -> Attempt | None:
        """An attempt at the endpoint the balancer picks; None when there is none."""
        now = self._runtime.clock()
        key = call.value(self._hash_on) if self._hashed else b""
        balancer, able = self.balancer, self.able
        if call.labels:
            subset = self._bound_to(call.labels)
            balancer, able = subset.balancer, subset.able
        avoid = call.tried
        denied: list[Endpoint] = []
        while True:
            endpoint = balancer.pick(now, key, avoid)
            if endpoint is not None and self._limited and 0 < endpoint.capacity <= endpoint.pending:
                full = [one for one in able if 0 < one.capacity <= one.pending]
                endpoint = balancer.pick(now, key, [*call.tried, *denied, *full])
                if endpoint in full:  # what is left was tried: better once more than over its capacity
                    endpoint = balancer.pick(now, key, [*denied, *full])
            if endpoint is None:
                return None
            grant = None
            if not endpoint.open_until:
                break
            grant = self._breaker.allow(endpoint, now)
            self.refresh(now)
            if grant:
                break
            if endpoint in denied:
                return None  # every breaker is open
            denied.append(endpoint)
            avoid = [*call.tried, *denied]
        if self._several and not call.tried:  # of the first attempt: what is left to a later one says less
            call.compared = balancer.compared()
        attempt = Attempt(call, endpoint, now)
        attempt.grant = grant
        if self._per_try_s:
            attempt.timer = self._runtime.wheel.at(now + self._per_try_s, attempt.time_out)
        return attempt

    def discard(self, attempt: Attempt) -> None:
        """An attempt that was made and will not be started gives back its timer and the breaker's leave."""
        if attempt.timer is not None:
            attempt.timer.cancel()
        if attempt.grant is not None:
            now = self._runtime.clock()
            if self._breaker.release(attempt.endpoint, now, attempt.grant):
                self.refresh(now)

    def dispatch(self, call: Call) -> bool:
        """The step: launch an attempt, or say why not."""
        if call.tried and self.crowded and not self.admission.has_room(call.labels):
            parked: bool = self.admission.park(call)
            return parked
        attempt = self.make(call)
        if attempt is None:
            return call.fail(errors.UNAVAILABLE, self._why_none(call.labels))
        call.attempt = attempt
        call.tried.append(attempt.endpoint)
        attempt.start()
        return True

    def _why_none(self, labels: Labels) -> str:
        name = self.agent.agent_id
        if labels:
            name += " (" + ", ".join([f"{label}={value}" for label, value in labels]) + ")"
        if not self.endpoints:
            return f"agent {name!r} has no endpoint"
        states = [f"{endpoint.address} {state_of(endpoint)}" for endpoint in list(self.endpoints.values())[:8]]
        return f"agent {name!r} has no usable endpoint: " + ", ".join(states)

    def settled(self, attempt: Attempt, status: int, penalty_s: float, now: float) -> None:
        """An attempt is over; -1 means we cancelled it without a verdict."""
        endpoint = attempt.endpoint
        if status == ABORTED and attempt.call.ended_by == "deadline":
            status = errors.DEADLINE_EXCEEDED
        self.balancer.ended(endpoint, status, penalty_s, now)
        if status == ABORTED:
            if attempt.grant is not None and self._breaker.release(endpoint, now, attempt.grant):
                self.refresh(now)
        else:
            ok = status not in FAILURES
            if not ok:
                endpoint.failures += 1
            changed = self._detector.record(endpoint, ok, now)
            if not ok or endpoint.breaker is not None or attempt.grant is not None:
                if attempt.grant is not None:
                    changed = self._breaker.record(endpoint, ok, now, attempt.grant) or changed
                else:
                    changed = self._breaker.record(endpoint, ok, now) or changed
            if changed:
                self.refresh(now)
        if endpoint.draining and not endpoint.pending:
            self.leaving.discard(endpoint)
        if self._limited:
            self.admission.moved()  # a slot is free

    def report(self, endpoint: Endpoint, encoded: bytes, now: float) -> None:
        """An ORCA report in trailers (base64, as -bin metadata is)."""
        try:
            load = decode_load_report(b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True))
        except (Base64Error, ValueError):
            return
        if load is not None:
            self.balancer.report(endpoint, load, now)


def state_of(endpoint: Endpoint) -> str:
    """One word about an endpoint, for people."""
    if endpoint.draining:
        return "draining"
    if endpoint.open_until:
        return "circuit open"
    if not endpoint.reachable:
        return f"unreachable ({endpoint.connector.last_error})"
    if not endpoint.serving:
        return "unhealthy"
    if endpoint.ejected_until:
        return "ejected"
    return "ready"


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step:
    """The step for one agent; its pool is made or updated."""
    variants = [tuple(sorted(one.labels.items())) for split in state.splits for one in split.variants if one.labels]
    if state.pool is None:
        state.pool = Pool(agent, runtime, runtime.clock())
        if variants:
            state.pool.update(agent, runtime.clock(), variants)
        state.pool.admission = state.admission
        state.admission.listen()
    else:
        state.pool.update(agent, runtime.clock(), variants)
    return state.pool.dispatch
