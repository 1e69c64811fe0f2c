"""The policy tree: what the mesh is told to do, as frozen plain data.

Always holds: every value is immutable and compared by its fields, defaults are the documented ones, units stand last
in a name (`_ms`, `_bytes`, ratios are plain fractions of 1). Nothing but the standard library and `split` is needed, so
that anything may import it.

Deliberately not here: reading and checking (`policy_parse`), protobuf (`codec`), live state (sidecar `Runtime`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from outrider.split import Split

STRATEGIES = (
    "peak_ewma",
    "least_request",
    "round_robin",
    "weighted_round_robin",
    "ring_hash",
    "random",
)
CACHE_STRATEGIES = ("lru", "lfu")
CACHE_SCOPES = ("user", "tenant")
CACHE_REPLAYS = ("at_once", "paced")
LANES = ("low", "normal", "high", "critical")  # of the queue, the least urgent first
COMPRESSIONS = ("off", "lossless", "lossy")
PROVIDERS = ("", "anthropic", "openai", "none")  # whose rules of prefix caching hold; empty: as the model's name says
DROPPED = ("context", "tool_results", "messages")  # what may be left out for `compression.max_input_tokens`
DEGRADATIONS = ("serve_stale", "trim_context", "cap_output", "hedge_off", "shed_low", "shed_normal", "shed_high")

STATUSES = (  # gRPC status names in the order of their codes
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _nothing() -> Mapping[str, Any]:
    return _NOTHING


class PolicyError(ValueError):
    """A policy that cannot be enforced: `path` is the wrong field (`agents[0].hedge.enabled`), `reason` says why."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """One address an agent can be reached at: `host:port`, `[v6]:port`, `dns:host:port` or `unix:/path`."""

    address: str
    weight: int = 1
    labels: Mapping[str, str] = field(default_factory=_nothing)
    capacity: int = 0  # calls at once that it serves; 0: not declared


@dataclass(frozen=True, slots=True)
class Balancing:
    """How an endpoint is picked for an attempt."""

    strategy: str = "peak_ewma"
    subset: Mapping[str, str] = field(default_factory=_nothing)  # only endpoints that carry all these labels
    hash_on: str = "x-session-id"  # ring_hash: the metadata name that is hashed
    load_factor: float = 1.25  # ring_hash: bounded load, times the mean
    decay_ms: int = 10_000  # peak_ewma: how long a sample lasts
    slow_start_ms: int = 10_000  # a new or returning endpoint's ramp; 0: none
    panic_threshold: float = 0.5  # below this share of usable endpoints health and ejection are ignored
    failfast_ms: int = 1_000  # how long a call waits for the first connection


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Active checks by grpc.health.v1."""

    enabled: bool = False
    interval_ms: int = 5_000
    timeout_ms: int = 1_000
    unhealthy_after: int = 3
    healthy_after: int = 2
    service: str = ""


@dataclass(frozen=True, slots=True)
class Outlier:
    """Passive ejection after gRFC A50, plus a run of consecutive failures."""

    enabled: bool = True
    consecutive_failures: int = 7
    interval_ms: int = 10_000
    base_ejection_ms: int = 30_000
    max_ejection_ms: int = 300_000
    max_ejected_share: float = 0.1  # at least one endpoint may be ejected, never the last one
    success_rate_stdev: float = 1.9
    success_rate_min_hosts: int = 5
    success_rate_min_calls: int = 100
    failure_share: float = 0.85
    failure_min_hosts: int = 5
    failure_min_calls: int = 50


@dataclass(frozen=True, slots=True)
class Breaker:
    """Circuit breaker per endpoint: opens after consecutive failures, one probe at a time closes it."""

    enabled: bool = False
    consecutive_failures: int = 7
    min_open_ms: int = 1_000
    max_open_ms: int = 60_000
    jitter: float = 0.5


@dataclass(frozen=True, slots=True)
class Retry:
    """Retries within one deadline; `max_attempts` counts the first try. Statuses are gRPC status names."""

    max_attempts: int = 3
    per_try_timeout_ms: int = 0  # 0: only the call's deadline
    backoff_ms: int = 25
    max_backoff_ms: int = 1_000
    backoff_multiplier: float = 2.0
    statuses: tuple[str, ...] = ("UNAVAILABLE",)
    budget_ratio: float = 0.2
    budget_min_per_s: float = 10.0
    buffer_bytes: int = 256 * 1024


@dataclass(frozen=True, slots=True)
class Hedge:
    """A second try while the first is still silent. Only for methods named idempotent."""

    enabled: bool = False
    delay_ms: int = 500
    max_hedges: int = 1
    idempotent_methods: tuple[str, ...] = ()  # "/pkg.Svc/Method" or "/pkg.Svc/*"


@dataclass(frozen=True, slots=True)
class Limits:
    """How many calls run at once."""

    max_in_flight: int = 4_096  # of one agent at one sidecar; the ceiling where the limit adapts
    endpoint_max_in_flight: int = 0  # at the endpoint's own ingress; 0: as `ingress.capacity` says, else max_in_flight
    adaptive: bool = False  # Gradient2 on the time to the first chunk of each method
    min_in_flight: int = 1  # the floor where the limit adapts


@dataclass(frozen=True, slots=True)
class Queue:
    """Calls that wait for a permit. The shares are of the permits given while calls of all lanes wait."""

    max_waiting: int = 4_096  # in all lanes of one agent at one sidecar; 0: nothing waits
    max_wait_ms: int = 30_000  # however late the deadline is
    share_critical: float = 0.4
    share_high: float = 0.3
    share_normal: float = 0.2
    share_low: float = 0.1
    codel_target_ms: int = 10_000  # a lane whose shortest wait stays above this sheds who waits twice as long; 0: off
    codel_interval_ms: int = 1_000  # over which the shortest wait is taken


@dataclass(frozen=True, slots=True)
class Rates:
    """What may pass over time; 0: no limit. A limit in tokens reserves before a call and settles after it."""

    agent_requests_per_min: float = 0.0
    user_requests_per_min: float = 0.0
    tenant_requests_per_min: float = 0.0
    agent_tokens_per_min: float = 0.0
    user_tokens_per_min: float = 0.0
    tenant_tokens_per_min: float = 0.0
    burst_s: float = 10.0  # what so many seconds allow may come at once
    reply_tokens: int = 1_000  # reserved for the reply of a call that does not bound it
    fleet_wide: bool = True  # over all sidecars, by shares that the control plane gives; false: at each sidecar


@dataclass(frozen=True, slots=True)
class Degradation:
    """What is given up under pressure, one step after the other, and taken back in the opposite order.

    Pressure is the larger of the queue's fill (of `queue.max_waiting`) and its longest wait (of `queue.max_wait_ms`).
    """

    enabled: bool = False
    steps: tuple[str, ...] = ("serve_stale", "trim_context", "cap_output", "hedge_off", "shed_low", "shed_normal")
    enter: float = 0.3  # pressure from which on the next step is taken
    leave: float = 0.05  # pressure below which the last step is taken back
    enter_ms: int = 500  # how long the pressure must hold before each step
    leave_ms: int = 5_000  # how long it must be gone before each step back
    stale_s: int = 86_400  # by serve_stale: how long past its time a stored reply may be served
    relevance: float = 0.5  # by trim_context: blocks below it are left out, `verbatim` and unrated ones excepted
    output_tokens: int = 512  # by cap_output: the most a reply is asked to have


@dataclass(frozen=True, slots=True)
class Optimization:
    """Caching, streaming and compression, in the customer's names."""

    cache_enabled: bool = False
    cache_ttl: int = 3_600  # seconds
    cache_tool_ttl: int = 60  # seconds, for replies of the tool tier
    cache_strategy: str = "lru"
    cache_methods: tuple[str, ...] = ()  # "/pkg.Svc/Method" or "/pkg.Svc/*"; the native Agent API needs no entry
    cache_max_bytes: int = 64 * 1024 * 1024
    cache_max_object_bytes: int = 1024 * 1024
    cache_jitter: float = 0.1  # share of the TTL
    cache_stale_ratio: float = 0.25  # stale-while-revalidate, times the TTL
    cache_scope: str = "user"
    cache_auth_claims: tuple[str, ...] = ()  # metadata names that replace `authorization` as auth scope
    cache_sampled: bool = False  # also cache replies of temperature > 0
    cache_replay: str = "at_once"
    cache_ghosts: bool = True
    streaming: bool = True
    compression: bool = False


@dataclass(frozen=True, slots=True)
class Compression:
    """How requests are made smaller, where `optimization.compression` is on. Prices are US dollars per million tokens;
    0: from the table of the provider's ratios, relative to the input's."""

    mode: str = "lossless"  # of COMPRESSIONS
    provider: str = ""  # of PROVIDERS
    model: str = ""  # whose vocabulary counts where a call names none
    exact_tokens: bool = False  # count with the vocabulary (costs memory); else by a calibrated estimate
    input_usd: float = 0.0
    cache_read_usd: float = 0.0
    cache_write_usd: float = 0.0
    output_usd: float = 0.0
    deny_tools: tuple[str, ...] = ()  # results of these tools are never touched
    min_tokens: int = 64  # smaller blocks are left as they are
    max_input_tokens: int = 0  # a budget for the whole request; 0: none
    drop_first: tuple[str, ...] = ("context", "tool_results")  # of DROPPED, in this order, for the budget
    lossy_ratio: float = 0.5  # of its tokens that a block selected from keeps
    lossy_min_tokens: int = 1_000  # smaller blocks are not selected from
    clear_after_tokens: int = 100_000  # old tool results are cleared from here on, where it pays
    clear_keep: int = 3  # newest tool results that are never cleared
    summary_agent: str = ""  # the agent that is asked for summaries at epochs; empty: none are made
    handle_ttl_s: int = 3_600  # how long originals of lossy blocks are kept
    handle_max_bytes: int = 16 * 1024 * 1024
    max_steps: int = 2_000_000  # of work per request, about 5 ms: what is left then stays as it is
    order_tools: bool = False  # tools may be put in the order of their names
    order_json_keys: bool = False  # keys of JSON schemas of tools may be sorted


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many instances an agent has."""

    min_instances: int = 1  # 0: scales to zero, and the sidecars' queues hold calls until an instance is there
    max_instances: int = 10
    target_utilization: float = 0.7  # what instances are sized for
    enabled: bool = True
    engine: str = ""  # of the control plane's configuration; empty: its default one
    capacity: int = 0  # calls at once of one instance; 0: as its endpoints declare, else learnt
    scale_up: float = 0.8  # utilization above which instances are added; at least the target
    scale_down: float = 0.3  # utilization below which instances are taken away; at most the target
    cooldown_s: int = 300  # between a change and a scale-down; never before a scale-up
    stable_window_s: int = 60
    panic_window_s: int = 6
    panic_threshold: float = 2.0  # demand of the panic window over what is ready: from here on only upwards
    tolerance: float = 0.1  # a change by a smaller share is not made
    max_up: float = 1_000.0  # times what is ready, per decision
    max_down: float = 2.0  # what is ready is divided by it at most, per decision
    idle_s: int = 300  # without demand before an agent goes to zero
    activation_wait_ms: int = 30_000  # how long calls wait for a first instance
    predictive: bool = False  # the larger of what is needed and what a linear forecast says
    horizon_s: int = 30  # how far the forecast looks
    instance_usd_per_h: float = 0.0  # what one instance costs; 0: not known
    max_usd_per_h: float = 0.0  # what all instances may cost; 0: no cap


@dataclass(frozen=True, slots=True)
class Agent:
    """All policy of one agent."""

    agent_id: str
    endpoints: tuple[EndpointPolicy, ...] = ()
    timeout_ms: int = 0  # deadline for calls that bring none; 0: none
    max_timeout_ms: int = 0  # ceiling on any deadline; 0: none
    tls: bool | None = None  # dial endpoints by TLS; None: as `tls.upstream` in the sidecar's file says
    server_name: str = ""  # TLS name to expect; empty: the endpoint's host
    balancing: Balancing = field(default_factory=Balancing)
    health_check: HealthCheck = field(default_factory=HealthCheck)
    outlier: Outlier = field(default_factory=Outlier)
    breaker: Breaker = field(default_factory=Breaker)
    retry: Retry = field(default_factory=Retry)
    hedge: Hedge = field(default_factory=Hedge)
    limits: Limits = field(default_factory=Limits)
    queue: Queue = field(default_factory=Queue)
    rates: Rates = field(default_factory=Rates)
    degradation: Degradation = field(default_factory=Degradation)
    optimization: Optimization = field(default_factory=Optimization)
    compression: Compression = field(default_factory=Compression)
    scaling: Scaling = field(default_factory=Scaling)


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything one sidecar enforces; replaced whole, never changed."""

    agents: Mapping[str, Agent] = field(default_factory=_nothing)
    default_agent: str = ""
    version: str = ""
    splits: Mapping[str, tuple[Split, ...]] = field(default_factory=_nothing)  # by agent
