"""Reads the policy tree from plain data and checks that it can be enforced.

Always holds: a policy that comes out of here is valid; a wrong one raises PolicyError with the path of the first wrong
field, and changes nothing. `validate` checks a policy from any source (YAML, a push, a snapshot) by the same rules.

Deliberately not here: the fields and their defaults (`policy`), files and environment (sidecar `config`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from outrider import policy, split_parse, tree
from outrider.address import is_host, parse_address
from outrider.policy import Agent, EndpointPolicy, Policy, PolicyError

_DAY_MS = 86_400_000
_YEAR_S = 31_536_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_METADATA = re.compile(r"[a-z0-9._-]{1,128}")
_METHOD = re.compile(r"/[A-Za-z_][A-Za-z0-9_.]{0,254}/([A-Za-z_][A-Za-z0-9_]{0,254}|\*)")
_SERVICE = re.compile(r"([A-Za-z_][A-Za-z0-9_.]{0,254})?")
_MAX_LABELS = 64

Rule = Callable[[Any], str | None]  # the reason why a value is wrong, or None


def agent_from_mapping(data: Any, path: str, defaults: Agent | None = None) -> Agent:
    """One agent from a mapping as in the configuration file; `defaults` gives what the mapping leaves out."""
    fields = tree.section(data, path, tree.field_types(Agent))
    if "agent_id" not in fields:
        raise PolicyError(tree.join(path, "agent_id"), "is missing")
    agent = _TREE.build(Agent, fields, path, defaults)
    _check(agent, path)
    return agent


def policy_from_mapping(data: Any, defaults: Agent | None = None) -> Policy:
    """A whole policy from `{agents: [...], splits: [...], default_agent: ..., version: ...}`."""
    fields = tree.section(data, "", tree.field_types(Policy))
    agents = _agents(fields.get("agents", ()), defaults)
    ready = {"agents": agents, "splits": split_parse.splits_from_items(fields.get("splits", ()), "splits", agents)}
    built = _TREE.build(Policy, fields, "", None, ready)
    _check_default_agent(built)
    return built


def validate(whole: Policy) -> None:
    """PolicyError for the first thing in a policy, however it was made, that cannot be enforced."""
    for at, (name, agent) in enumerate(whole.agents.items()):
        path = f"agents[{at}]"
        if name != agent.agent_id:
            raise PolicyError(f"{path}.agent_id", f"{tree.show(agent.agent_id)} is kept under {tree.show(name)}")
        _check(agent, path)
    for agent_id, splits in whole.splits.items():
        path = f"splits[{agent_id}]"
        if agent_id not in whole.agents:
            raise PolicyError(path, f"{tree.show(agent_id)} is no agent; {tree.nearest(agent_id, list(whole.agents))}")
        split_parse.check_splits(splits, agent_id, path)
    _check_default_agent(whole)


def _agents(data: Any, defaults: Agent | None) -> Mapping[str, Agent]:
    agents: dict[str, Agent] = {}
    for at, item in enumerate(tree.items(data, "agents")):
        agent = agent_from_mapping(item, f"agents[{at}]", defaults)
        if agent.agent_id in agents:
            first = list(agents).index(agent.agent_id)
            raise PolicyError(f"agents[{at}].agent_id", f"{tree.show(agent.agent_id)} is already agents[{first}]")
        agents[agent.agent_id] = agent
    return MappingProxyType(agents)


def _endpoint(data: Any, path: str) -> EndpointPolicy:
    """An endpoint is a text, the address alone, or a mapping."""
    if not isinstance(data, str | Mapping):
        raise PolicyError(path, f"{tree.show(data)} is neither an address nor a mapping with one")
    return _TREE.build(EndpointPolicy, {"address": data} if isinstance(data, str) else data, path)


def _check(node: Any, path: str) -> None:
    """Apply the rules to every field of a dataclass and of those inside it."""
    cls = type(node)
    rules = _RULES.get(cls, {})
    hints = tree.field_types(cls)
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        inner = tree.join(path, field.name)
        if dataclasses.is_dataclass(value):
            _check(value, inner)
            continue
        if hints[field.name] in (bool, int, float, str):
            tree.scalar(hints[field.name], value, inner)
        rule = rules.get(field.name)
        reason = rule(value) if rule is not None else None
        if reason is not None:
            raise PolicyError(inner, f"{tree.show(value)} {reason}")
    for low, high in _ORDERED.get(cls, ()):
        if getattr(node, low) > getattr(node, high):
            values = f"{getattr(node, low)} is more than {high}, which is {getattr(node, high)}"
            raise PolicyError(tree.join(path, low), values)
    if isinstance(node, Agent):
        _check_agent(node, path)


def _check_agent(agent: Agent, path: str) -> None:
    seen: dict[str, int] = {}
    for at, endpoint in enumerate(agent.endpoints):
        inner = tree.join(path, f"endpoints[{at}]")
        _check(endpoint, inner)
        if endpoint.address in seen:
            first = tree.join(path, f"endpoints[{seen[endpoint.address]}]")
            raise PolicyError(f"{inner}.address", f"{tree.show(endpoint.address)} is already {first}")
        seen[endpoint.address] = at
    if 0 < agent.max_timeout_ms < agent.timeout_ms:
        reason = f"{agent.timeout_ms} is more than max_timeout_ms, which is {agent.max_timeout_ms}"
        raise PolicyError(tree.join(path, "timeout_ms"), reason)
    if agent.hedge.enabled and not agent.hedge.idempotent_methods:
        reason = "true needs idempotent_methods: only calls of these are hedged"
        raise PolicyError(tree.join(path, "hedge.enabled"), reason)
    queue = agent.queue
    if queue.share_critical + queue.share_high + queue.share_normal + queue.share_low > 1.0 + 1e-9:
        raise PolicyError(tree.join(path, "queue.share_critical"), "the four shares together are more than 1")
    if agent.scaling.max_usd_per_h and not agent.scaling.instance_usd_per_h:
        reason = f"{agent.scaling.max_usd_per_h} needs scaling.instance_usd_per_h: what one instance costs"
        raise PolicyError(tree.join(path, "scaling.max_usd_per_h"), reason)


def _check_default_agent(whole: Policy) -> None:
    name = whole.default_agent
    if name and name not in whole.agents:
        raise PolicyError("default_agent", f"{tree.show(name)} is no agent; {tree.nearest(name, list(whole.agents))}")


def _within(low: float, high: float) -> Rule:
    return lambda value: None if low <= value <= high else f"is not between {low} and {high}"


def _one_of(names: tuple[str, ...]) -> Rule:
    return lambda value: None if value in names else f"is not one of {', '.join(names)}"


def _matches(pattern: re.Pattern[str], what: str) -> Rule:
    return lambda value: None if pattern.fullmatch(value) else f"is not {what}"


def _each(rule: Rule) -> Rule:
    def check(values: Iterable[str]) -> str | None:
        for value in values:
            reason = rule(value)
            if reason is not None:
                return f"holds {tree.show(value)}, which {reason}"
        return None

    return check


def _is_address(value: str) -> str | None:
    try:
        parse_address(value)
    except ValueError as error:
        return str(error)
    return None


def _is_server_name(value: str) -> str | None:
    return None if not value or is_host(value) else "is not a host name"


def _are_labels(value: Mapping[str, str]) -> str | None:
    if len(value) > _MAX_LABELS:
        return f"has more than {_MAX_LABELS} labels"
    return _each(_matches(_NAME, _NAME_TEXT))(value)


_TREE = tree.Tree({EndpointPolicy: _endpoint})

_NAME_TEXT = "a name: letters, digits, '.', '_' and '-', at most 128, beginning with a letter or digit"
_COUNT = _within(1, 10_000)
_SHARE = _within(0, 1)
_RATE = _within(0, 1_000_000_000_000)
_WAIT_MS = _within(0, _DAY_MS)
_SPAN_MS = _within(1, _DAY_MS)
_METADATA_NAME = _matches(_METADATA, "a metadata name: lower-case letters, digits, '.', '_' and '-'")
_METHODS = _each(_matches(_METHOD, "a method: /pkg.Service/Method or /pkg.Service/*"))

_RULES: Mapping[type, Mapping[str, Rule]] = {
    EndpointPolicy: {
        "address": _is_address,
        "weight": _COUNT,
        "labels": _are_labels,
        "capacity": _within(0, 1_000_000),
    },
    policy.Balancing: {
        "strategy": _one_of(policy.STRATEGIES),
        "subset": _are_labels,
        "hash_on": _METADATA_NAME,
        "load_factor": _within(1, 10),
        "decay_ms": _SPAN_MS,
        "slow_start_ms": _WAIT_MS,
        "panic_threshold": _SHARE,
        "failfast_ms": _WAIT_MS,
    },
    policy.HealthCheck: {
        "interval_ms": _within(50, _DAY_MS),
        "timeout_ms": _SPAN_MS,
        "unhealthy_after": _COUNT,
        "healthy_after": _COUNT,
        "service": _matches(_SERVICE, "the name of a gRPC service"),
    },
    policy.Outlier: {
        "consecutive_failures": _COUNT,
        "interval_ms": _SPAN_MS,
        "base_ejection_ms": _SPAN_MS,
        "max_ejection_ms": _SPAN_MS,
        "max_ejected_share": _SHARE,
        "success_rate_stdev": _within(0, 100),
        "success_rate_min_hosts": _COUNT,
        "success_rate_min_calls": _within(1, 1_000_000),
        "failure_share": _SHARE,
        "failure_min_hosts": _COUNT,
        "failure_min_calls": _within(1, 1_000_000),
    },
    policy.Breaker: {
        "consecutive_failures": _COUNT,
        "min_open_ms": _SPAN_MS,
        "max_open_ms": _SPAN_MS,
        "jitter": _SHARE,
    },
    policy.Retry: {
        "max_attempts": _within(1, 10),
        "per_try_timeout_ms": _WAIT_MS,
        "backoff_ms": _WAIT_MS,
        "max_backoff_ms": _WAIT_MS,
        "backoff_multiplier": _within(1, 10),
        "statuses": _each(_one_of(policy.STATUSES[1:])),
        "budget_ratio": _SHARE,
        "budget_min_per_s": _within(0, 100_000),
        "buffer_bytes": _within(0, 64 * 1024 * 1024),
    },
    policy.Hedge: {"delay_ms": _SPAN_MS, "max_hedges": _within(1, 5), "idempotent_methods": _METHODS},
    policy.Limits: {
        "max_in_flight": _within(1, 1_000_000),
        "endpoint_max_in_flight": _within(0, 1_000_000),
        "min_in_flight": _within(1, 1_000_000),
    },
    policy.Queue: {
        "max_waiting": _within(0, 1_000_000),
        "max_wait_ms": _within(1, _DAY_MS),
        "share_critical": _SHARE,
        "share_high": _SHARE,
        "share_normal": _SHARE,
        "share_low": _SHARE,
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
        "burst_s": _within(0.1, 86_400),
        "reply_tokens": _within(0, 10_000_000),
    },
    policy.Degradation: {
        "steps": _each(_one_of(policy.DEGRADATIONS)),
        "enter": _within(0.01, 10),
        "leave": _within(0, 10),
        "enter_ms": _WAIT_MS,
        "leave_ms": _WAIT_MS,
        "stale_s": _within(0, _YEAR_S),
        "relevance": _SHARE,
        "output_tokens": _within(1, 10_000_000),
    },
    policy.Optimization: {
        "cache_ttl": _within(0, _YEAR_S),
        "cache_tool_ttl": _within(0, _YEAR_S),
        "cache_strategy": _one_of(policy.CACHE_STRATEGIES),
        "cache_methods": _METHODS,
        "cache_max_bytes": _within(0, 2**40),
        "cache_max_object_bytes": _within(0, 64 * 1024 * 1024),
        "cache_jitter": _SHARE,
        "cache_stale_ratio": _within(0, 100),
        "cache_scope": _one_of(policy.CACHE_SCOPES),
        "cache_auth_claims": _each(_METADATA_NAME),
        "cache_replay": _one_of(policy.CACHE_REPLAYS),
    },
    policy.Compression: {
        "mode": _one_of(policy.COMPRESSIONS),
        "provider": lambda value: None if not value else _one_of(policy.PROVIDERS[1:])(value),
        "input_usd": _within(0, 1_000_000),
        "cache_read_usd": _within(0, 1_000_000),
        "cache_write_usd": _within(0, 1_000_000),
        "output_usd": _within(0, 1_000_000),
        "min_tokens": _within(0, 1_000_000),
        "max_input_tokens": _within(0, 1_000_000_000),
        "drop_first": _each(_one_of(policy.DROPPED)),
        "lossy_ratio": _within(0.01, 1),
        "lossy_min_tokens": _within(0, 100_000_000),
        "clear_after_tokens": _within(0, 1_000_000_000),
        "clear_keep": _within(0, 10_000),
        "summary_agent": lambda value: None if not value else _matches(_NAME, _NAME_TEXT)(value),
        "handle_ttl_s": _within(0, _YEAR_S),
        "handle_max_bytes": _within(0, 2**40),
        "max_steps": _within(0, 1_000_000_000),
    },
    policy.Scaling: {
        "min_instances": _within(0, 10_000),
        "max_instances": _COUNT,
        "target_utilization": _within(0.01, 1),
        "engine": lambda value: None if not value else _matches(_NAME, _NAME_TEXT)(value),
        "capacity": _within(0, 1_000_000),
        "scale_up": _within(0.01, 100),
        "scale_down": _within(0, 1),
        "cooldown_s": _within(0, 86_400),
        "stable_window_s": _within(1, 3_600),
        "panic_window_s": _within(1, 3_600),
        "panic_threshold": _within(1, 1_000),
        "tolerance": _within(0, 1),
        "max_up": _within(1.1, 10_000),
        "max_down": _within(1.1, 10_000),
        "idle_s": _within(0, _YEAR_S),
        "activation_wait_ms": _WAIT_MS,
        "horizon_s": _within(1, 3_600),
        "instance_usd_per_h": _within(0, 1_000_000),
        "max_usd_per_h": _within(0, 1_000_000_000),
    },
    Agent: {
        "agent_id": _matches(_NAME, _NAME_TEXT),
        "timeout_ms": _WAIT_MS,
        "max_timeout_ms": _WAIT_MS,
        "server_name": _is_server_name,
    },
}

_ORDERED: Mapping[type, tuple[tuple[str, str], ...]] = {  # the first is at most the second
    policy.HealthCheck: (("timeout_ms", "interval_ms"),),
    policy.Outlier: (("base_ejection_ms", "max_ejection_ms"),),
    policy.Breaker: (("min_open_ms", "max_open_ms"),),
    policy.Retry: (("backoff_ms", "max_backoff_ms"),),
    policy.Limits: (("min_in_flight", "max_in_flight"),),
    policy.Degradation: (("leave", "enter"), ("enter_ms", "leave_ms")),
    policy.Scaling: (
        ("min_instances", "max_instances"),
        ("panic_window_s", "stable_window_s"),
    ),
}
