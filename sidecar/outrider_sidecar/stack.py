"""THE ordered list of filters: what a call runs through, outermost first, and why each stands where it does.

Always holds: a snapshot is compiled whole or not at all; a filter that has nothing to do for an agent is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

from outrider.policy import Agent, EndpointPolicy, Outlier, Policy, Scaling
from outrider.split import Split
from outrider_sidecar.core.call import Step
from outrider_sidecar.core.runtime import INGRESS_STATE, AgentState, Route, Runtime, Snapshot
from outrider_sidecar.core.span import SERVER
from outrider_sidecar.filters import (
    admit,
    cache,
    compress,
    deadline,
    degrade,
    dispatch,
    experiment,
    generation,
    identify,
    limit,
    payload,
    retry,
    trace,
    variant_metadata,
)
from outrider_sidecar.filters.load_report import LoadReporter

Snapshots = Callable[[], Snapshot]
# Before the agent is known.
ENTRY: tuple[ModuleType, ...] = (
    trace,  # outermost: sees sheds, refusals and hits
    identify,  # everything below belongs to one agent
)

# Egress: the hop beside the caller.
EGRESS: tuple[ModuleType, ...] = (
    deadline,  # before anything that may wait: the only filter that ends a call by time
    payload,  # above the cache: hits are shaped by it too
    experiment,  # above the cache: the variant is part of the key
    cache,  # hits take no slot; whatever stands below runs once for all callers of a key
    generation,  # below the cache: a key is of what was asked, and of the variant; before its tokens are reserved
    limit,  # below the cache: hits use up no rate; before anything is spent on a call that is refused
    compress,  # below the cache: a key is of what was asked; before admission: what waits is small already
    degrade,  # below the cache: a key is of what was asked; before calls wait, as their bytes do
    admit,  # after the cache: hits take no slot
    retry,  # below admit: an attempt reuses the permit
    dispatch,  # last: an attempt per pick
)


# Ingress: the hop before the local agent.
INGRESS: tuple[ModuleType, ...] = (
    deadline,
    payload,
    variant_metadata,  # before dispatch: the agent is told what the caller's sidecar says
    admit,
    dispatch,
)


def compile_snapshot(policy: Policy, runtime: Runtime, filters: tuple[ModuleType, ...] = EGRESS) -> Snapshot:
    """The snapshot of a policy for egress; live state is made, updated, or let go of.

    Routes of agents that are as they were are kept, so that a change costs what it changes.
    """
    before = runtime.snapshot.routes
    routes: dict[str, Route] = {}
    for agent_id, agent in policy.agents.items():
        route = before.get(agent_id)
        splits = policy.splits.get(agent_id, ())
        kept = route is not None and route.agent == agent and route.splits == splits
        if route is None or not kept or runtime.agents.get(agent_id) is not route.state:
            route = _route(agent, runtime, EGRESS, agent_id, splits)
        routes[agent_id] = route
    for agent_id in [name for name in runtime.agents if name not in routes and not name.startswith(INGRESS_STATE)]:
        runtime.agents.pop(agent_id).pool.close()
    return Snapshot(policy, routes, _entry(runtime))


def compile_ingress(
    agent_id: str, target: str, runtime: Runtime, capacity: int = 0, policy: Policy | None = None
) -> Snapshot:
    """The snapshot of the ingress listener: everything goes to the one local agent.

    Its limits, queue, deadlines and degradation are those of `policy`; where that leaves it open, `capacity` calls run
    at once if set.
    """
    told = policy.agents.get(agent_id) if policy is not None else None
    known = told if told is not None else Agent(agent_id)
    limits = known.limits
    most = limits.endpoint_max_in_flight or capacity or limits.max_in_flight
    agent = Agent(
        agent_id,
        (EndpointPolicy(target),),
        timeout_ms=known.timeout_ms,
        max_timeout_ms=known.max_timeout_ms,
        tls=False,
        outlier=Outlier(enabled=False),
        limits=replace(limits, max_in_flight=most, min_in_flight=min(limits.min_in_flight, most)),
        queue=known.queue,
        degradation=known.degradation,
        scaling=Scaling(),  # of its instances there is this one
    )
    route = _route(agent, runtime, INGRESS, INGRESS_STATE + agent_id)
    pool = route.state.pool
    if pool.load_report is None:
        pool.load_report = LoadReporter(route.state, runtime.clock()).literal_at
    return Snapshot(Policy({agent_id: agent}, agent_id), {agent_id: route}, _entry(runtime), SERVER)


def _route(
    agent: Agent, runtime: Runtime, filters: tuple[ModuleType, ...], name: str, splits: tuple[Split, ...] = ()
) -> Route:
    state: AgentState = runtime.state_of(name)
    state.splits = splits
    steps: list[Step] = []
    for module in filters:
        step = module.build(agent, state, runtime)
        if step is not None:
            steps.append(step)
    return Route(agent, state, tuple(steps), splits)


def _entry(runtime: Runtime) -> tuple[Step, ...]:
    return tuple([module.build(runtime) for module in ENTRY])
