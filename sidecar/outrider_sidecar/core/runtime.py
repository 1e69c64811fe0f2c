"""What outlives a policy, and what a policy compiles to.

Always holds: a `Snapshot` freezes policy only and is swapped by one reference; a call keeps the snapshot it started
with. Live state (`AgentState`: endpoints, caches, counters, limiters) is found by agent id and survives rebuilds.

Deliberately not here: what the steps do (`filters`), their order (`stack`), sockets (`edge`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from outrider.policy import Agent, Policy
from outrider.split import Split
from outrider_http2.head import Head
from outrider_http2.shell import Reactor
from outrider_sidecar.core.span import CLIENT
from outrider_sidecar.core.wheel import Wheel

if TYPE_CHECKING:
    from outrider_sidecar.core.call import Call, Step
    from outrider_sidecar.core.endpoint import Endpoint

_MAX_ROUTES: Final = 4_096
INGRESS_STATE: Final = "ingress of "  # begins the name of an ingress's state: it shares nothing with the egress's


class AgentState:
    """All live state of one agent. Filters put theirs into the slot of their name when they are built."""

    __slots__ = (
        "admission",
        "agent_id",
        "cache",
        "calls",
        "capacity",
        "compression",
        "failed",
        "flights",
        "idle",
        "in_flight",
        "ladder",
        "pool",
        "rates",
        "retry",
        "shed",
        "splits",
        "variants",
    )

    def __init__(self, agent_id: str):
        self.agent_id = agent_id
        self.in_flight = 0  # calls that hold a permit
        self.capacity = 0  # how many may at once
        self.shed = 0  # calls ever that were refused for load
        self.calls = 0  # calls ever that are over
        self.failed = 0  # of them, those that ended with a status that is the agent's or the mesh's failure
        self.idle = True  # had no call when the load was last reported: the next one is reported at once
        self.pool: Any = None  # endpoints, balancer, ejection, breaker (filters.dispatch)
        self.retry: Any = None  # budget (filters.retry)
        self.admission: Any = None  # queue and limit (filters.admit)
        self.ladder: Any = None  # degradation steps that are taken (filters.admit)
        self.rates: Any = None  # limits over time (filters.limit)
        self.compression: Any = None  # conversations, what pays (filters.compress)
        self.cache: Any = None  # stored replies, ghosts (filters.cache)
        self.flights: Any = None  # single-flight (filters.cache)
        self.splits: tuple[Split, ...] = ()  # of the policy that its filters are built for
        self.variants: Any = None  # counts of assignments (filters.experiment)


class Route:
    """Where calls of one agent go: its policy, its live state and the steps after identification."""

    __slots__ = ("agent", "agent_id", "splits", "state", "steps")

    def __init__(self, agent: Agent, state: AgentState, steps: tuple[Step, ...] = (), splits: tuple[Split, ...] = ()):
        self.agent = agent
        self.agent_id = agent.agent_id
        self.state = state
        self.steps = steps
        self.splits = splits


class Snapshot:
    """One compiled policy. `steps` run until identification; then the route's."""

    __slots__ = ("_by_head", "kind", "policy", "routes", "steps")

    def __init__(self, policy: Policy, routes: Mapping[str, Route], steps: tuple[Step, ...], kind: int = CLIENT):
        self.kind = kind  # of its calls' spans
        self.policy = policy
        self.routes = routes
        self.steps = steps
        self._by_head: dict[Head, Any] = {}

    def known(self, head: Head) -> Any:
        """What was remembered of a head under this policy, or None."""
        return self._by_head.get(head)

    def remember(self, head: Head, value: Any) -> None:
        if len(self._by_head) >= _MAX_ROUTES:
            self._by_head.clear()
        self._by_head[head] = value


class Runtime:
    """The process: clock, timers, randomness, live calls, live agents, and the current snapshot."""

    def __init__(
        self,
        reactor: Reactor,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        rng: random.Random,
        replay_bytes: int = 256 * 1024,
    ):
        self.reactor = reactor
        self.ledger = reactor.ledger
        self.clock = clock
        self.wall_clock = wall_clock
        self.rng = rng
        self.replay_bytes = replay_bytes
        self.wheel = Wheel(lambda delay_s: reactor.loop.call_later(delay_s, self._advance), clock())
        self.calls: set[Call] = set()
        self.agents: dict[str, AgentState] = {}
        self.snapshot = Snapshot(Policy(), {}, ())
        self.pressure = 0.0  # the highest of all agents (filters.admit), at the last look
        self.secret = b""  # of this process: makes keys and hashes useless elsewhere
        self.seed = 0
        self.epochs: Any = None  # cache invalidation (engines.epochs)
        self.sampler: Any = None  # engines.sampler
        self.shares: Any = None  # of limits over the fleet (engines.shares); None: no control plane is configured
        self.sessions: Any = None  # what sessions and users hold of splits (engines.sessions)
        self.payloads: Any = None  # payload adapters
        self.summarizer: Any = None  # asks for summaries (edge.summarizer); None: nobody does
        self.compressor: Any = None  # compresses off the loop (edge.compress_worker); None: nobody does
        self.node = ""  # what handles of originals that are kept here name
        self.record: Callable[[Call], Any] = _ignore  # what becomes of an ended call's facts
        self.woke: Callable[[], Any] = _nothing  # an agent that was idle has a call
        self.own_span: Callable[[Call, Call | None], Any] = _no_span  # gives a detached call a span of its own
        self.local: Mapping[bytes, Step] = {}  # paths the sidecar answers itself when no agent is named
        self.own: Mapping[bytes, Step] = {}  # paths the sidecar answers itself whoever is named
        self.connector: Callable[[Endpoint, Agent], Any] = _no_connector

    def _advance(self) -> None:
        turn = self.reactor.turn
        turn.begin()
        try:
            self.wheel.advance(self.clock())
        finally:
            turn.end()

    def state_of(self, agent_id: str) -> AgentState:
        state = self.agents.get(agent_id)
        if state is None:
            state = self.agents[agent_id] = AgentState(agent_id)
        return state


def _no_span(call: Call, parent: Call | None) -> None:
    pass


def _ignore(_: Any) -> None:
    pass


def _nothing() -> None:
    pass


def _no_connector(endpoint: Endpoint, agent: Agent) -> Any:
    raise LookupError("no edge is attached to this runtime")
