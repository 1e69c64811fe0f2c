"""Hypothesis strategies for policy: whole agents that are valid, every field varied."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from outrider import policy
from outrider.policy import Agent, EndpointPolicy

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789"
_NAME_CHARACTERS = _LETTERS + "._-"

names = st.builds(
    lambda first, rest: first + rest, st.sampled_from(_LETTERS), st.text(alphabet=_NAME_CHARACTERS, max_size=12)
)
labels = st.dictionaries(names, names, max_size=3)
metadata_names = st.text(alphabet="abcxyz0129._-", min_size=1, max_size=12)
methods = st.builds(
    lambda service, method: f"/{service}/{method}",
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,8}", fullmatch=True),
    st.one_of(st.just("*"), st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)),
)
addresses = st.one_of(
    st.builds(lambda host, port: f"10.0.0.{host}:{port}", st.integers(1, 254), st.integers(1, 65_535)),
    st.builds(lambda port: f"[::1]:{port}", st.integers(1, 65_535)),
    st.builds(lambda name, port: f"dns:{name}.example:{port}", st.sampled_from(("a", "b")), st.integers(1, 65_535)),
    st.sampled_from(("unix:/run/agent.sock", "unix:/run/other.sock")),
)


def _texts(one: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(one, max_size=3, unique=True).map(tuple)


_COUNT = st.integers(1, 10_000)
_MANY = st.integers(0, 1_000_000)
_SHARE = st.floats(0, 1)
_RATE = st.floats(0, 1e12)
_WAIT_MS = st.integers(0, 86_400_000)
_SPAN_MS = st.integers(1, 86_400_000)
_FIELDS: Mapping[type, Mapping[str, st.SearchStrategy[Any]]] = {
    EndpointPolicy: {"address": addresses, "weight": _COUNT, "labels": labels, "capacity": _MANY},
    policy.Balancing: {
        "strategy": st.sampled_from(policy.STRATEGIES),
        "subset": labels,
        "hash_on": metadata_names,
        "load_factor": st.floats(1, 10),
        "decay_ms": _SPAN_MS,
        "slow_start_ms": _WAIT_MS,
        "panic_threshold": _SHARE,
        "failfast_ms": _WAIT_MS,
    },
    policy.HealthCheck: {
        "enabled": st.booleans(),
        "interval_ms": st.integers(5_000, 86_400_000),
        "timeout_ms": st.integers(1, 5_000),
        "unhealthy_after": _COUNT,
        "healthy_after": _COUNT,
        "service": st.from_regex(r"([A-Za-z_][A-Za-z0-9_.]{0,8})?", fullmatch=True),
    },
    policy.Outlier: {
        "enabled": st.booleans(),
        "consecutive_failures": _COUNT,
        "interval_ms": _SPAN_MS,
        "base_ejection_ms": st.integers(1, 30_000),
        "max_ejection_ms": st.integers(30_000, 86_400_000),
        "max_ejected_share": _SHARE,
        "success_rate_stdev": st.floats(0, 100),
        "success_rate_min_hosts": _COUNT,
        "success_rate_min_calls": st.integers(1, 1_000_000),
        "failure_share": _SHARE,
        "failure_min_hosts": _COUNT,
        "failure_min_calls": st.integers(1, 1_000_000),
    },
    policy.Breaker: {
        "enabled": st.booleans(),
        "consecutive_failures": _COUNT,
        "min_open_ms": st.integers(1, 60_000),
        "max_open_ms": st.integers(60_000, 86_400_000),
        "jitter": _SHARE,
    },
    policy.Retry: {
        "max_attempts": st.integers(1, 10),
        "per_try_timeout_ms": _WAIT_MS,
        "backoff_ms": st.integers(0, 1_000),
        "max_backoff_ms": st.integers(1_000, 86_400_000),
        "backoff_multiplier": st.floats(1, 10),
        "statuses": _texts(st.sampled_from(policy.STATUSES[1:])),
        "budget_ratio": _SHARE,
        "budget_min_per_s": st.floats(0, 100_000),
        "buffer_bytes": st.integers(0, 64 * 1024 * 1024),
    },
    policy.Hedge: {
        "enabled": st.just(False),
        "delay_ms": _SPAN_MS,
        "max_hedges": st.integers(1, 5),
        "idempotent_methods": _texts(methods),
    },
    policy.Limits: {
        "max_in_flight": st.integers(100, 1_000_000),
        "endpoint_max_in_flight": _MANY,
        "adaptive": st.booleans(),
        "min_in_flight": st.integers(1, 100),
    },
    policy.Queue: {
        "max_waiting": _MANY,
        "max_wait_ms": _SPAN_MS,
        "share_critical": st.floats(0, 0.4),
        "share_high": st.floats(0, 0.3),
        "share_normal": st.floats(0, 0.2),
        "share_low": st.floats(0, 0.1),
        "codel_target_ms": _WAIT_MS,
        "codel_interval_ms": _SPAN_MS,
    },
    policy.Rates: {
        "agent_requests_per_min": _RATE,
        "user_requests_per_min": _RATE,
        "tenant_requests_per_min": _RATE,
        "agent_tokens_per_min": _RATE,
        "user_tokens_per_min": _RATE,
        "tenant_tokens_per_min": _RATE,
        "burst_s": st.floats(0.1, 86_400),
        "reply_tokens": st.integers(0, 10_000_000),
        "fleet_wide": st.booleans(),
    },
    policy.Degradation: {
        "enabled": st.booleans(),
        "steps": _texts(st.sampled_from(policy.DEGRADATIONS)),
        "enter": st.floats(0.3, 10),
        "leave": st.floats(0, 0.3),
        "enter_ms": st.integers(0, 1_000),
        "leave_ms": st.integers(1_000, 86_400_000),
        "stale_s": st.integers(0, 31_536_000),
        "relevance": _SHARE,
        "output_tokens": st.integers(1, 10_000_000),
    },
    policy.Optimization: {
        "cache_enabled": st.booleans(),
        "cache_ttl": st.integers(0, 31_536_000),
        "cache_tool_ttl": st.integers(0, 31_536_000),
        "cache_strategy": st.sampled_from(policy.CACHE_STRATEGIES),
        "cache_methods": _texts(methods),
        "cache_max_bytes": st.integers(0, 2**40),
        "cache_max_object_bytes": st.integers(0, 64 * 1024 * 1024),
        "cache_jitter": _SHARE,
        "cache_stale_ratio": st.floats(0, 100),
        "cache_scope": st.sampled_from(policy.CACHE_SCOPES),
        "cache_auth_claims": _texts(metadata_names),
        "cache_sampled": st.booleans(),
        "cache_replay": st.sampled_from(policy.CACHE_REPLAYS),
        "cache_ghosts": st.booleans(),
        "streaming": st.booleans(),
        "compression": st.booleans(),
    },
    policy.Scaling: {
        "min_instances": st.integers(0, 10),
        "max_instances": st.integers(10, 10_000),
        "target_utilization": st.floats(0.01, 1),
        "enabled": st.booleans(),
        "engine": st.one_of(st.just(""), names),
        "capacity": _MANY,
        "scale_up": st.floats(0.01, 100),
        "scale_down": _SHARE,
        "cooldown_s": st.integers(0, 86_400),
        "stable_window_s": st.integers(60, 3_600),
        "panic_window_s": st.integers(1, 60),
        "panic_threshold": st.floats(1, 1_000),
        "tolerance": _SHARE,
        "max_up": st.floats(1.1, 10_000),
        "max_down": st.floats(1.1, 10_000),
        "idle_s": st.integers(0, 31_536_000),
        "activation_wait_ms": _WAIT_MS,
        "predictive": st.booleans(),
        "horizon_s": st.integers(1, 3_600),
        "instance_usd_per_h": st.floats(0.01, 1_000_000),
        "max_usd_per_h": st.floats(0, 1_000_000_000),
    },
}


def _section(cls: type) -> st.SearchStrategy[Any]:
    fields = _FIELDS[cls]
    assert set(fields) == {one.name for one in dataclasses.fields(cls)}, f"{cls.__name__}: a field without a strategy"
    return st.builds(cls, **fields)


@st.composite
def agents(draw: st.DrawFn) -> Agent:
    """A whole agent that `policy_parse.validate` accepts."""
    hedge = draw(_section(policy.Hedge))
    if hedge.idempotent_methods:
        hedge = dataclasses.replace(hedge, enabled=draw(st.booleans()))
    max_timeout_ms = draw(_WAIT_MS)
    return Agent(
        agent_id=draw(names),
        endpoints=draw(st.lists(_section(EndpointPolicy), max_size=3, unique_by=lambda one: one.address).map(tuple)),
        timeout_ms=draw(st.integers(0, max_timeout_ms)) if max_timeout_ms else draw(_WAIT_MS),
        max_timeout_ms=max_timeout_ms,
        tls=draw(st.sampled_from((None, True, False))),
        server_name=draw(st.sampled_from(("", "agents.example", "10.0.0.9"))),
        balancing=draw(_section(policy.Balancing)),
        health_check=draw(_section(policy.HealthCheck)),
        outlier=draw(_section(policy.Outlier)),
        breaker=draw(_section(policy.Breaker)),
        retry=draw(_section(policy.Retry)),
        hedge=hedge,
        limits=draw(_section(policy.Limits)),
        queue=draw(_section(policy.Queue)),
        rates=draw(_section(policy.Rates)),
        degradation=draw(_section(policy.Degradation)),
        optimization=draw(_section(policy.Optimization)),
        scaling=draw(_section(policy.Scaling)),
    )
