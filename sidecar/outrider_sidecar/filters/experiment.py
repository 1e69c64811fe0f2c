"""Experiment: which variant of each split of its agent a call is served with.

Always holds: a call is assigned once, above the cache, and everything below it (and every hop after it) goes by that:
the key of a stored reply, the endpoints, the parameters of the model. The variants are on the span, in the trailer
`x-outrider-variant` and in metadata to the agent, `x-outrider-prompt-version` beside it; what the caller sent under
these names is not forwarded. A session's variants are kept (`engines.sessions`), so they outlast policies and
restarts; of splits by user those of the user as well, so that its next session has them too. A call that does not name
the split's unit takes part in nothing and says so on its span. A native call is known by its message where its metadata
do not say who it is.

Deliberately not here: the rules (`engines.assign`), the model's parameters (filter `generation`), the choice of an
endpoint (filter `dispatch`).
"""

from __future__ import annotations

import logging
from typing import Final

from outrider.policy import Agent
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.payload import TOO_LARGE
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.core.treatment import Arm, Treatment
from outrider_sidecar.engines.assign import REQUEST, SESSION, Assigner, Decision, parse_echo
from outrider_sidecar.engines.sessions import Held, Sessions, Unit, key_of
from outrider_sidecar.payloads import NATIVE_PATHS, request_identity

MAX_REQUEST_BYTES: Final = 1024 * 1024  # of a native request that is waited for, to know who it is from
_MAX_COUNTS: Final = 1_000

log = logging.getLogger(__name__)


class VariantCounts:
    """What one agent's splits have done, across policies."""

    __slots__ = ("assigned", "exceptions", "unassigned")

    def __init__(self) -> None:
        self.assigned: dict[tuple[str, str], int] = {}  # units (requests, where these are it) by split and variant
        self.exceptions: dict[tuple[str, str], int] = {}  # units that did not get their own, by split and reason
        self.unassigned = 0  # calls that did not name the unit of a split

    def count_one(self, arm: Arm) -> None:
        """A unit was given a variant for the first time."""
        self.assigned[arm.count_key] = self.assigned.get(arm.count_key, 0) + 1

    def count(self, decision: Decision) -> None:
        for arm in decision.fresh or ():
            self.count_one(arm)
        for moved in decision.moved or ():
            key = (moved.split, moved.reason)
            self.exceptions[key] = self.exceptions.get(key, 0) + 1

    def keep(self, splits: frozenset[str]) -> None:
        """Forget splits that are gone, where there are too many to keep."""
        for counts in (self.assigned, self.exceptions):
            if len(counts) >= _MAX_COUNTS:
                for key in [key for key in counts if key[0] not in splits]:
                    del counts[key]


class ExperimentFilter:
    """The splits of one agent under one policy."""

    __slots__ = (
        "_assigner", "_by_session", "_by_user", "_calm_s", "_counts", "_memo", "_session_prefix", "_sessions",
        "_sticky", "_user_prefix",
    )  # fmt: skip

    def __init__(self, agent: Agent, assigner: Assigner, counts: VariantCounts, sessions: Sessions):
        self._assigner = assigner
        self._counts = counts
        self._sessions = sessions
        self._calm_s = assigner.calm_s
        self._sticky = assigner.sticky
        self._memo = assigner.sticky and not assigner.per_call
        self._by_user = assigner.by_user
        self._by_session = assigner.lone_kind == SESSION
        name = agent.agent_id.encode()
        self._session_prefix = name + b"\0s"
        self._user_prefix = name + b"\0u"

    def step(self, call: Call) -> bool | None:
        values = call.rest.values
        session = values.get(b"x-session-id") or call.head.values.get(b"x-session-id", b"")
        if session and self._memo:
            key = key_of(self._session_prefix, session)
            unit = self._sessions.known(key, self, call.started_at, self._calm_s)
            if unit is not None:
                if unit.user_key:
                    self._sessions.touch(unit.user_key, call.started_at)
                _treat(call, unit.treatment, unit.units)
                return None
            if self._by_session and self._draw(call, session, key):
                return None
        user = values.get(b"x-user-id") or call.head.values.get(b"x-user-id", b"")
        if call.head.path in NATIVE_PATHS and (not session or (bool(self._by_user) and not user)):
            if not call.request_ended and call.want_body(MAX_REQUEST_BYTES, self.step):
                return True
            session, user = self._named(call, session, user)
        self._assign(call, session, user)
        return None

    def _draw(self, call: Call, session: bytes, key: bytes) -> bool:
        """Whether the session's first call is assigned by this, the short way: one split, and nothing known of it."""
        if b"x-outrider-variant" in call.rest.values or self._sessions.holds(key):
            return False
        ready, units = self._assigner.draw(session)
        unit = self._sessions.put(key, ready.held, call.started_at)
        unit.owner = self
        unit.treatment = ready.treatment
        unit.units = units
        self._counts.count_one(ready.arm)
        _treat(call, ready.treatment, units)
        return True

    def _named(self, call: Call, session: bytes, user: bytes) -> tuple[bytes, bytes]:
        """Who a native call is from: metadata beats the message."""
        if not call.request_ended or call.body_bytes > MAX_REQUEST_BYTES:
            call.note(f"experiment: {TOO_LARGE}")
            return session, user
        encoding = call.head.values.get(b"grpc-encoding", b"")
        said_session, said_user = request_identity(b"".join(call.body or ()), encoding)
        return session or said_session.encode(), user or said_user.encode()

    def _assign(self, call: Call, session: bytes, user: bytes) -> None:
        """The long way: everything but the next call of a unit that is known."""
        key = b""
        if session:
            key = key_of(self._session_prefix, session)
        elif user:
            key = key_of(self._user_prefix, user)
        now = call.started_at
        assigner, sessions = self._assigner, self._sessions
        if key and self._memo:
            known = sessions.known(key, self, now, self._calm_s)
            if known is not None:
                _treat(call, known.treatment, known.units)
                return
        request = call.trace[1]
        if not self._sticky or not key:
            self._take(call, assigner.decide(session, user, request))
            return
        unit = sessions.get(key)
        held = self._alive(unit, now)
        user_key = b""
        of_user: Held = ()
        if session and user and self._by_user:
            user_key = key_of(self._user_prefix, user)
            of_user = self._alive(sessions.get(user_key), now)
            if of_user:
                names = {split for split, _ in held}
                held += tuple([pair for pair in of_user if pair[0] in self._by_user and pair[0] not in names])
        said = call.rest.values.get(b"x-outrider-variant")
        decision = assigner.decide(session, user, request, held, parse_echo(said) if said is not None else None)
        if user_key:
            kept = assigner.of_user(decision.held, of_user)
            if kept:
                sessions.put(user_key, kept, now)
            else:
                user_key = b""
        if unit is not None or decision.held:
            unit = sessions.put(key, decision.held, now)
            unit.user_key = user_key
            if self._memo and not decision.missing:
                unit.owner = self
                unit.treatment = decision.treatment
                unit.units = decision.units
        self._take(call, decision)

    def _alive(self, unit: Unit | None, now: float) -> Held:
        """What a unit holds, less what it has not kept alive."""
        if unit is None:
            return ()
        idle_s = now - unit.seen_at
        return unit.held if idle_s <= self._calm_s else self._assigner.alive(unit.held, idle_s)

    def _take(self, call: Call, decision: Decision) -> None:
        if decision.fresh is not None or decision.moved is not None:
            self._counts.count(decision)
            for moved in decision.moved or ():
                to = moved.to or "no variant"
                call.note(f"experiment: {moved.split}: {moved.variant} is {moved.reason}, served by {to}")
        if decision.missing:
            self._counts.unassigned += 1
            call.note(f"experiment: the call names no {decision.missing}")
        _treat(call, decision.treatment, decision.units)

    def by_request(self, call: Call) -> None:
        """The step where requests alone decide."""
        ready, units = self._assigner.draw(call.trace[1])
        self._counts.count_one(ready.arm)
        _treat(call, ready.treatment, units)


def _treat(call: Call, treatment: Treatment | None, units: str) -> None:
    """What the call is served with from here on."""
    call.unit = units
    if treatment is not None:
        call.treatment = treatment
        call.tail_extra += treatment.trailer
        call.forward += treatment.metadata
        call.compress = treatment.compression
        call.labels = treatment.labels


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step | None:
    """The step for one agent; None where it has no splits."""
    splits = state.splits
    if not splits:
        return None
    subset = agent.balancing.subset.items()
    labels = [endpoint.labels for endpoint in agent.endpoints if subset <= endpoint.labels.items()]
    assigner = Assigner(splits, labels)
    for text in assigner.warnings():
        log.warning("agent %s: %s", agent.agent_id, text)
    if runtime.sessions is None:
        runtime.sessions = Sessions()
    sessions: Sessions = runtime.sessions
    sessions.knows([float(split.idle_s) for split in splits])
    if state.variants is None:
        state.variants = VariantCounts()
    counts: VariantCounts = state.variants
    counts.keep(frozenset([split.name for split in splits]))
    experiment = ExperimentFilter(agent, assigner, counts, sessions)
    return experiment.by_request if assigner.lone_kind == REQUEST else experiment.step
