"""Limit: what may pass over time, per agent, user and tenant, in requests and in tokens.

Always holds: a call passes all limits it is under or is refused by one, and then it has taken nothing of the others; a
limit is counted once a call, at egress, below the cache (hits and callers that share a flight are not counted). A call
that names no user, or no tenant, is under no limit of that kind. Nothing waits for a network: the rate of a limit that
holds over the fleet is this sidecar's share of it.

Tokens are reserved before the call and settled once when it is over, whatever its end was. Reserved: a quarter of the
request's bytes (of those that are here; only native requests are waited for), and what the reply is bounded to, or
`rates.reply_tokens`. Settled: what the reply says it has used; where it says nothing, a quarter of the bytes that
passed both ways; nothing where no endpoint has begun to serve it. A request that was let through stays counted.

Deliberately not here: the algorithm (`engines.gcra`), where shares come from (`engines.shares`).
"""

from __future__ import annotations

from typing import Final

from outrider.policy import Agent
from outrider_http2.hpack import literal
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.payload import RequestFacts
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.engines.gcra import Cell, Table
from outrider_sidecar.engines.shares import Held, Shares

SCOPES: Final = ("agent", "user", "tenant")
REQUESTS: Final = "requests"
TOKENS: Final = "tokens"
MAX_REQUEST_BYTES: Final = 1024 * 1024  # of a native request that is waited for, to know its size
_BYTES_PER_TOKEN: Final = 4.0
_RESHARE_S: Final = 2.0  # from there on the control plane may have given a larger share
_MAX_PUSHBACK_MS: Final = 3_600_000
_JITTER: Final = 0.1  # who is refused at one moment need not come back at one moment
_UNSERVED: Final = (errors.UNAVAILABLE, errors.RESOURCE_EXHAUSTED)  # without a byte of a reply: nobody worked on it
_WHOSE: Final = ("of all its calls", "of this call's user (x-user-id)", "of this call's tenant (x-tenant-id)")


class Limit:
    """One field of the policy, with a cell for each name it holds for."""

    __slots__ = ("agent_id", "burst_s", "field", "per_min", "rate_per_s", "scope", "shares", "table", "tokens")

    def __init__(self, agent_id: str, scope: int, tokens: bool):
        self.agent_id = agent_id
        self.scope = scope  # index of SCOPES
        self.tokens = tokens
        self.field = f"rates.{SCOPES[scope]}_{TOKENS if tokens else REQUESTS}_per_min"
        self.table = Table()
        self.shares: Shares | None = None  # None: the limit holds at this sidecar
        self.per_min = 0.0
        self.rate_per_s = 0.0
        self.burst_s = 0.0

    def configure(self, per_min: float, burst_s: float, shares: Shares | None, now: float) -> None:
        """Take a policy; what was used stays used."""
        same = per_min == self.per_min and burst_s == self.burst_s and shares is self.shares
        self.per_min = per_min
        self.rate_per_s = per_min / 60.0
        self.burst_s = burst_s
        self.shares = shares
        if same:
            return
        for name, cell in self.table.items():
            cell.held = None
            cell.configure(self.rate_per_s * self._share(name, cell, now), burst_s, now)

    def cell(self, name: bytes, now: float) -> Cell:
        """The cell of a name; a new one is full."""
        cell = self.table.get(name)
        if cell is None:
            cell = self._new_cell(name, now)
        return cell

    def _new_cell(self, name: bytes, now: float) -> Cell:
        cell = Cell(self.rate_per_s, self.burst_s, now)
        cell.configure(self.rate_per_s * self._share(name, cell, now), self.burst_s, now)
        self.table.add(name, cell, now)
        return cell

    def _share(self, name: bytes, cell: Cell, now: float) -> float:
        """The share of the limit that the cell is to pass; the cell is told of its changes from now on."""
        if self.shares is None:
            return 1.0
        held = self.shares.hold(self.agent_id, SCOPES[self.scope], name, TOKENS if self.tokens else REQUESTS, now)
        cell.held = held
        held.cell = cell
        held.rate_per_s = self.rate_per_s
        held.burst_s = self.burst_s
        share: float = held.share
        return share

    def why(self, wait_s: float) -> str:
        """What the caller is told. It names no user and no tenant: what is said here is on the span as well."""
        unit = TOKENS if self.tokens else REQUESTS
        where = "" if self.shares is None else " over all sidecars"
        allowed = f"{self.per_min:.15g} {unit} a minute {_WHOSE[self.scope]}{where}"
        return f"agent {self.agent_id!r} allows {allowed} ({self.field}): try again in {wait_s:.3g} s"


class Rates:
    """The limits of one agent across policies, in `AgentState.rates`."""

    __slots__ = ("limits", "refused")

    def __init__(self) -> None:
        self.limits: dict[str, Limit] = {}  # by field
        self.refused: dict[str, int] = {}  # calls ever, by field


class Reservation:
    """The tokens one call has taken until it is over."""

    __slots__ = ("_cells", "_runtime", "_tokens")

    def __init__(self, runtime: Runtime, cells: list[Cell], tokens: float):
        self._runtime = runtime
        self._cells: list[Cell] | None = cells  # None: it is settled
        self._tokens = tokens

    def settle(self, call: Call) -> None:
        """The call is over: take what it has used, instead of what was expected."""
        cells, self._cells = self._cells, None
        if cells is None:
            return
        now = self._runtime.clock()
        used = used_tokens(call)
        for cell in cells:
            cell.settle(self._tokens, used, now)
            if cell.held is not None:
                self._runtime.shares.ask(cell.held, used - self._tokens, now)


class LimitFilter:
    """The limits of one agent under one policy."""

    __slots__ = ("_limits", "_policy", "_rates", "_reply_tokens", "_runtime", "_tokens")

    def __init__(self, agent: Agent, rates: Rates, runtime: Runtime):
        self._limits = list(rates.limits.values())
        self._rates = rates
        self._runtime = runtime
        self._policy = agent.optimization
        self._reply_tokens = float(agent.rates.reply_tokens)
        self._tokens = any([limit.tokens for limit in self._limits])

    def step(self, call: Call) -> bool | None:
        """Pass the call, or refuse it."""
        facts: RequestFacts | None = call.payload
        expected = 0.0
        if self._tokens:
            if call.adapter is not None:
                # A native request is one message: it says what it costs, and what the reply may cost.
                if not call.request_ended and call.want_body(MAX_REQUEST_BYTES, self.step):
                    return True
                if facts is None:
                    facts = self._read(call)
            reply_tokens = self._reply_tokens
            if facts is not None and facts.max_output_tokens > 0:
                reply_tokens = float(facts.max_output_tokens)
            expected = max(1.0, call.request_bytes / _BYTES_PER_TOKEN + reply_tokens)
        now = self._runtime.clock()
        cells: list[Cell] = []
        token_cells: list[Cell] = []
        wait_s = 0.0
        over: Limit | None = None
        for limit in self._limits:
            name = b""
            if limit.scope:
                name = _name(call, facts, limit.scope)
                if not name:
                    continue
            cell = limit.cell(name, now)
            cost = expected if limit.tokens else 1.0
            if limit.shares is not None:
                limit.shares.ask(cell.held, cost, now)
            needed_s = cell.wait_s(cost, now)
            if needed_s > 0.0:
                needed_s = _earliest_s(cell.held, needed_s)
                if needed_s > wait_s:
                    wait_s, over = needed_s, limit
            elif limit.tokens:
                token_cells.append(cell)
            else:
                cells.append(cell)
        if over is not None:
            return self._refuse(call, over, wait_s)
        for cell in cells:
            cell.take(1.0, now)
        if token_cells:
            for cell in token_cells:
                cell.take(expected, now)
            call.done.append(Reservation(self._runtime, token_cells, expected).settle)
        return None

    def _read(self, call: Call) -> RequestFacts | None:
        """What a native request says, where nothing has read it yet."""
        body = call.body
        if not body or call.body_bytes > MAX_REQUEST_BYTES or call.adapter is None:
            return None
        whole = body[0] if len(body) == 1 else b"".join(body)
        encoding = call.head.values.get(b"grpc-encoding", b"")
        facts = call.adapter.request(call.head.path, encoding, whole, self._policy)
        if facts.model:
            call.payload = facts
        return facts

    def _refuse(self, call: Call, limit: Limit, wait_s: float) -> bool:
        refused = self._rates.refused
        refused[limit.field] = refused.get(limit.field, 0) + 1
        pushback_ms = min(int(wait_s * 1e3 * (1.0 + _JITTER * self._runtime.rng.random())) + 1, _MAX_PUSHBACK_MS)
        extra = literal(b"grpc-retry-pushback-ms", b"%d" % pushback_ms)
        return call.fail(errors.RESOURCE_EXHAUSTED, limit.why(wait_s), extra)


def used_tokens(call: Call) -> float:
    """What an ended call has used, as far as anybody says."""
    said = call.tokens
    if said is not None and said.input_tokens + said.output_tokens > 0:
        return float(said.input_tokens + said.output_tokens)
    if not call.tried or (call.status in _UNSERVED and not call.reply_bytes):
        return 0.0
    return (call.request_bytes + call.reply_bytes) / _BYTES_PER_TOKEN


def _name(call: Call, facts: RequestFacts | None, scope: int) -> bytes:
    """Who the user or the tenant is: metadata beats the message. Empty: the call names none."""
    name = call.value(b"x-user-id" if scope == 1 else b"x-tenant-id")
    if not name and facts is not None:
        name = (facts.user_id if scope == 1 else facts.tenant_id).encode()
    return name


def _earliest_s(held: Held | None, wait_s: float) -> float:
    """When it is worth to try again: the share may grow meanwhile."""
    if held is None:
        return wait_s
    return min(wait_s, max(wait_s * held.share, _RESHARE_S))


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step | None:
    """The step for one agent; None where nothing is limited."""
    policy = agent.rates
    now = runtime.clock()
    values = (
        (policy.agent_requests_per_min, 0, False),
        (policy.user_requests_per_min, 1, False),
        (policy.tenant_requests_per_min, 2, False),
        (policy.agent_tokens_per_min, 0, True),
        (policy.user_tokens_per_min, 1, True),
        (policy.tenant_tokens_per_min, 2, True),
    )
    rates: Rates | None = state.rates
    limits: dict[str, Limit] = {}
    for per_min, scope, tokens in values:
        if per_min <= 0.0:
            continue
        limit = Limit(agent.agent_id, scope, tokens)
        if rates is not None and limit.field in rates.limits:
            limit = rates.limits[limit.field]
        limit.configure(per_min, policy.burst_s, runtime.shares if policy.fleet_wide else None, now)
        limits[limit.field] = limit
    if rates is None:
        if not limits:
            return None
        rates = state.rates = Rates()
    rates.limits = limits
    return LimitFilter(agent, rates, runtime).step if limits else None
