"""Cache and single-flight: answer from memory what has been answered before, ask once for what many ask at a time.

Always holds: a key contains agent, tenant, user (unless the policy shares per tenant), auth scope, variants and epochs,
so an answer never crosses them; only complete OK replies are stored; a call that cannot be cached says why on its span
and goes on. Hits take no slot: everything below this step runs for flights only. A reply to a request that was thinned
out under pressure is not stored, and its flight is joined only while callers would be given no better. While
`serve_stale` is taken stored replies are served past their time, and none is refreshed.
"""

from __future__ import annotations

from typing import Any, Final

from outrider.policy import Agent, Degradation, Optimization
from outrider_http2.hpack import literal
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.degraded import CAP_OUTPUT, SERVE_STALE, TRIM_CONTEXT, mark, thinned
from outrider_sidecar.core.entry import Entry
from outrider_sidecar.core.payload import TOO_LARGE, Payload, RequestFacts, why_not_stored
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.core.wheel import Timer
from outrider_sidecar.engines.cache import Cache
from outrider_sidecar.engines.cache_control import parse as parse_control
from outrider_sidecar.engines.cache_key import SCHEMA, AuthScopes, key_scope, key_within
from outrider_sidecar.engines.flight import NOBODY, Flight
from outrider_sidecar.engines.ghost import Ghosts
from outrider_sidecar.payloads import may_be_cached

MAX_REQUEST_BYTES: Final = 1024 * 1024
REVALIDATE_S: Final = 60.0  # deadline of a refresh nobody waits for
_MAX_KNOWN: Final = 1_024
_MAX_TREATMENTS: Final = 64
_NO_GAPS: Final[tuple[int, ...]] = ()
_NO_TOKENS: Final = (0, 0)
_NAMES: Final = ("hit", "stale", "miss", "coalesced", "bypass")
VERDICTS: Final = {name: literal(b"x-outrider-cache", name.encode()) for name in _NAMES}


class CacheState:
    """What one agent's cache keeps across policies."""

    __slots__ = ("counts", "flights", "ghosts", "policy", "store")

    def __init__(self, store: Cache, ghosts: Ghosts | None):
        self.store = store
        self.ghosts = ghosts
        self.policy: Optimization | None = None  # the ghosts were made for
        self.flights: dict[bytes, Flight] = {}
        self.counts = {"hit": 0, "stale": 0, "miss": 0, "coalesced": 0, "bypass": 0}


class CacheFilter:
    """The cache of one agent under one policy."""

    def __init__(self, agent: Agent, state: AgentState, runtime: Runtime):
        policy = agent.optimization
        self._policy = policy
        self._agent_id = agent.agent_id
        self._runtime = runtime
        self._state = state
        self._keeps = _keep_s(agent.degradation) > 0.0
        self._scopes = AuthScopes(policy.cache_auth_claims, runtime.secret)
        self._claims = bool(policy.cache_auth_claims)
        self._per_user = policy.cache_scope == "user"
        self._paced = policy.cache_replay == "paced"
        self._adapters: dict[bytes, Payload | None] = {}
        self._parts: dict[Any, tuple[str, str, bytes]] = {}
        # Scopes of keys by treatment and head, for messages that say nothing of tags or identity.
        self._plain: dict[Any, dict[Any, bytes]] = {}
        self._plain_changes = -1  # of the epochs, when they were made
        self._cache: CacheState = _state_for(agent, state, runtime)

    # -- the step --------------------------------------------------------------------------------------------------

    def step(self, call: Call) -> bool | None:
        path = call.head.path
        try:
            adapter = self._adapters[path]
        except KeyError:
            adapter = self._adapter(path)
        if adapter is None:
            return None
        if not call.request_ended and call.want_body(MAX_REQUEST_BYTES, self.step):
            return True
        control = call.head.values.get(b"x-cache-control")
        wish = parse_control(control) if control is not None else None
        if wish is not None and wish.no_store:
            return self._bypass(call, "")
        if call.body_bytes > MAX_REQUEST_BYTES or not call.request_ended:
            return self._bypass(call, TOO_LARGE)
        body = call.body
        assert body is not None
        whole = body[0] if len(body) == 1 else b"".join(body)
        encoding = call.head.values.get(b"grpc-encoding", b"")
        facts = adapter.request(path, encoding, whole, self._policy)
        if facts.model:
            call.payload = facts
        call.cache_tier = facts.tier
        if not facts.cacheable:
            return self._bypass(call, facts.reason)
        key = call.cache_key = self._key(call, facts)
        return self._look_up(call, key, facts, adapter, wish)

    def _look_up(self, call: Call, key: bytes, facts: RequestFacts, adapter: Payload, wish: Any) -> bool | None:
        cache = self._cache
        now = self._runtime.wall_clock()
        entry, stale = None, False
        late = self._keeps and self._takes(SERVE_STALE)
        if wish is None:
            entry, stale = cache.store.get(key, now, None, facts.tier, late)
        elif not wish.no_cache:
            entry, stale = cache.store.get(key, now, wish.max_age_s, facts.tier, late)
        if entry is not None and not _accepts(call, entry):
            entry = None
        if entry is not None:
            if cache.ghosts is not None:
                cache.ghosts.record(key, entry.weight_bytes, True, now, entry.fresh_until - entry.stored_at)
            self._verdict(call, "stale" if stale else "hit")
            if stale and late:
                mark(call, SERVE_STALE)
            elif stale and key not in cache.flights:
                self._revalidate(call, key, facts, adapter)
            self._replay(call, entry)
            return True
        flight = cache.flights.get(key)
        if flight is not None and self._joins(flight) and (wish is None or not wish.no_cache):
            self._verdict(call, "coalesced")
            flight.join(call)
            return True
        self._verdict(call, "miss")
        self._begin(call, key, facts, adapter)
        return None

    def _takes(self, step: str) -> bool:
        ladder = self._state.ladder
        return ladder is not None and ladder.level > 0 and bool(ladder.takes(step))

    def _joins(self, flight: Flight) -> bool:
        """Whether a caller may follow: a reply made from less is only for those who would get no other."""
        if not flight.open:
            return False
        return not thinned(flight.leader) or self._takes(TRIM_CONTEXT) or self._takes(CAP_OUTPUT)

    def _bypass(self, call: Call, reason: str) -> bool | None:
        self._verdict(call, "bypass")
        if reason:
            call.note(f"cache: {reason}")
        return None

    def _verdict(self, call: Call, verdict: str) -> None:
        call.cache_verdict = verdict
        call.tail_extra += VERDICTS[verdict]
        self._cache.counts[verdict] += 1

    def _adapter(self, path: bytes) -> Payload | None:
        """Who reads messages of this method; None: it is not cached."""
        cached = may_be_cached(path, self._policy.cache_methods)
        found: Payload | None = self._runtime.payloads.of(path) if cached else None
        if len(self._adapters) < _MAX_KNOWN:
            self._adapters[path] = found
        return found

    def _key(self, call: Call, facts: RequestFacts) -> bytes:
        head = call.head
        epochs, seed = self._runtime.epochs, self._runtime.seed
        plain: dict[Any, bytes] | None = None
        if not (facts.tags or facts.tenant_id or facts.user_id or self._claims):
            plain = self._plain_scopes(call.treatment)
            scope = plain.get(head)
            if scope is not None:
                return key_within(scope, facts.digest, seed)
        parts = self._parts.get(head)
        if parts is None or self._claims:
            values = {**head.values, **call.rest.values} if self._claims else head.values
            tenant = values.get(b"x-tenant-id", b"").decode("utf-8", "surrogateescape") or facts.tenant_id
            user = values.get(b"x-user-id", b"").decode("utf-8", "surrogateescape") or facts.user_id
            parts = (tenant, user if self._per_user else "", self._scopes.of(values))
            if not facts.tenant_id and not facts.user_id:
                if len(self._parts) >= _MAX_KNOWN:
                    self._parts.clear()
                self._parts[head] = parts
        elif facts.tenant_id or facts.user_id:
            tenant = parts[0] or facts.tenant_id
            parts = (tenant, (parts[1] or facts.user_id) if self._per_user else "", parts[2])
        part = epochs.part(self._agent_id, parts[0], facts.tags)
        variant = call.treatment.key if call.treatment is not None else ""
        tenant, user, auth = parts
        scope = key_scope(SCHEMA, self._agent_id, tenant, user, auth, variant, b"", part, len(facts.digest))
        if plain is not None and len(plain) < _MAX_KNOWN:
            plain[head] = scope
        return key_within(scope, facts.digest, seed)

    def _plain_scopes(self, treatment: Any) -> dict[Any, bytes]:
        changes: int = self._runtime.epochs.changes
        if changes != self._plain_changes or len(self._plain) > _MAX_TREATMENTS:
            self._plain_changes = changes
            self._plain.clear()
        scopes = self._plain.get(treatment)
        if scopes is None:
            scopes = self._plain[treatment] = {}
        return scopes

    # -- flights ---------------------------------------------------------------------------------------------------

    def _begin(self, leader: Call, key: bytes, facts: RequestFacts, adapter: Payload) -> Flight:
        flight = Flight(key, self._policy.cache_max_object_bytes, self, leader, facts, adapter)
        self._cache.flights[key] = flight
        return flight

    def _revalidate(self, call: Call, key: bytes, facts: RequestFacts, adapter: Payload) -> None:
        """Refresh a stale reply behind the caller's back."""
        leader = call.detach(NOBODY)
        self._begin(leader, key, facts, adapter)
        self._runtime.own_span(leader, call)
        leader.set_deadline(self._runtime.clock() + REVALIDATE_S)
        leader.run()

    def lead(self, call: Call, flight: Flight) -> Flight:
        """A follower leads after the leader's own failure."""
        return self._begin(call, flight.key, flight.facts, flight.adapter)

    def ended(self, flight: Flight, status: int) -> None:
        """The reply is whole: store it if it may be."""
        flights = self._cache.flights
        if flights.get(flight.key) is flight:
            del flights[flight.key]
        facts, adapter, leader = flight.facts, flight.adapter, flight.leader
        weight = 0
        now = self._runtime.wall_clock()
        if status == errors.OK and flight.chunks is not None and flight.head is not None and not thinned(leader):
            reply = leader.tokens
            if reply is None:
                encoding = flight.head.values.get(b"grpc-encoding", b"")
                reply = adapter.reply(encoding, b"".join(flight.chunks))
            if not why_not_stored(facts, reply):
                tokens = (reply.input_tokens, reply.output_tokens)
                weight = self._store(flight, facts, tokens if any(tokens) else _NO_TOKENS, now)
        if self._cache.ghosts is not None:
            self._cache.ghosts.record(flight.key, weight, False, now, self._ttl_s(facts))

    def _ttl_s(self, facts: RequestFacts) -> float:
        return float(self._policy.cache_tool_ttl if facts.tier == "tool" else self._policy.cache_ttl)

    def _store(self, flight: Flight, facts: RequestFacts, tokens: tuple[int, int], now: float) -> int:
        """Weight of what was stored; 0 when it was too large."""
        assert flight.head is not None
        assert flight.tail is not None
        assert flight.chunks is not None
        head, tail = flight.head, flight.tail
        entry = Entry(
            flight.key,
            head,
            tuple(flight.chunks),
            tail,
            head_bytes=0,  # heads are interned: one object for all replies alike
            gaps_ms=tuple(flight.gaps_ms) if len(flight.gaps_ms) > 1 else _NO_GAPS,  # one chunk: nothing to pace
            tier=facts.tier,
            tags=facts.tags,
            tokens=tokens,
        )
        stored = self._cache.store.put(entry, self._ttl_s(facts), now)
        return entry.weight_bytes if stored else 0

    # -- hits ------------------------------------------------------------------------------------------------------

    def _replay(self, call: Call, entry: Entry) -> None:
        call.reply_head(entry.head)
        if self._paced and len(entry.chunks) > 1:
            Pace(call, entry).next()
            return
        for chunk in entry.chunks:
            call.reply_data(chunk)
        call.reply_tail(entry.trailers, b"", errors.OK)


def _accepts(call: Call, entry: Entry) -> bool:
    """Whether the caller can decompress what was stored for somebody else."""
    encoding = entry.head.values.get(b"grpc-encoding")
    if encoding is None or encoding == b"identity":
        return True
    accepted = call.head.values.get(b"grpc-accept-encoding", b"")
    return encoding in [one.strip() for one in accepted.split(b",")]


class Pace:
    """Replays a stream with the pauses it was recorded with."""

    __slots__ = ("_at", "_call", "_entry", "_timer")

    def __init__(self, call: Call, entry: Entry):
        self._call = call
        self._entry = entry
        self._at = 0
        self._timer: Timer | None = None
        call.done.append(self._stop)

    def _stop(self, _: Call) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def next(self) -> None:
        """Send what is due; then wait for the next pause to pass."""
        call, entry = self._call, self._entry
        while not call.over:
            at = self._at
            if at >= len(entry.chunks):
                call.reply_tail(entry.trailers, b"", errors.OK)
                return
            self._at = at + 1
            call.reply_data(entry.chunks[at])
            gap_ms = entry.gaps_ms[at + 1] if at + 1 < len(entry.gaps_ms) else 0
            if gap_ms:
                wheel = call.runtime.wheel
                self._timer = wheel.at(call.runtime.clock() + gap_ms / 1e3, self.next)
                return


def _keep_s(policy: Degradation) -> float:
    """How long entries outlive their time, for the day they are wanted."""
    return float(policy.stale_s) if policy.enabled and SERVE_STALE in policy.steps else 0.0


def _state_for(agent: Agent, state: AgentState, runtime: Runtime) -> CacheState:
    policy, keep_s = agent.optimization, _keep_s(agent.degradation)
    found: CacheState | None = state.cache
    ghosts = Ghosts(policy.cache_strategy, policy.cache_max_bytes) if policy.cache_ghosts else None
    if found is None:
        store = Cache(
            policy.cache_strategy,
            policy.cache_max_bytes,
            policy.cache_max_object_bytes,
            policy.cache_jitter,
            policy.cache_stale_ratio,
            runtime.rng,
            keep_s,
        )
        found = state.cache = CacheState(store, ghosts)
    else:
        found.store.reconfigure(
            policy.cache_strategy,
            policy.cache_max_bytes,
            policy.cache_max_object_bytes,
            policy.cache_jitter,
            policy.cache_stale_ratio,
            keep_s,
        )
        if ghosts is None or found.ghosts is None or policy != found.policy:
            found.ghosts = ghosts
    found.policy = policy
    return found


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step | None:
    """The step for one agent; None where nothing is cached."""
    if not agent.optimization.cache_enabled:
        return None
    return CacheFilter(agent, state, runtime).step
