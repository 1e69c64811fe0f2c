"""The policy tree: what the mesh is told to do, as frozen plain data.

Always holds: every value is immutable and compared by its fields, defaults are the documented ones, units stand last
in a name (`_ms`, `_bytes`, ratios are plain fractions of 1). Standard library only, so that anything may import it.

Deliberately not here: reading and checking (`policy_parse`), protobuf (`codec`), live state (sidecar `Runtime`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

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
    """Bounds on what one sidecar does for one agent at a time."""

    max_in_flight: int = 4_096


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
class Scaling:
    """Bounds for the scaler."""

    min_instances: int = 1
    max_instances: int = 10
    target_utilization: float = 0.7


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
    optimization: Optimization = field(default_factory=Optimization)
    scaling: Scaling = field(default_factory=Scaling)


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything one sidecar enforces; replaced whole, never changed."""

    agents: Mapping[str, Agent] = field(default_factory=_nothing)
    default_agent: str = ""
    version: str = ""
