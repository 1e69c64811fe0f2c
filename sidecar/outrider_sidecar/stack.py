"""THE ordered list of filters: what a call runs through, outermost first, and why each stands where it does.

Always holds: a snapshot is compiled whole or not at all; a filter that has nothing to do for an agent is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

from outrider.policy import Agent, EndpointPolicy, Policy
from outrider_sidecar.core.call import Step
from outrider_sidecar.core.runtime import INGRESS_STATE, AgentState, Route, Runtime, Snapshot
from outrider_sidecar.core.span import SERVER
from outrider_sidecar.filters import admit, cache, deadline, dispatch, identify, payload, retry, trace

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
    cache,  # hits take no slot; whatever stands below runs once for all callers of a key
    admit,  # after the cache: hits take no slot
    retry,  # below admit: an attempt reuses the permit
    dispatch,  # last: an attempt per pick
)


# Ingress: the hop before the local agent.
INGRESS: tuple[ModuleType, ...] = (
    deadline,
    payload,
    admit,
    dispatch,
)


def compile_snapshot(policy: Policy, runtime: Runtime) -> Snapshot:
    """The snapshot of a policy for egress; live state is made, updated, or let go of.

    Routes of agents that are as they were are kept, so that a change costs what it changes.
    """
    before = runtime.snapshot.routes
    routes: dict[str, Route] = {}
    for agent_id, agent in policy.agents.items():
        route = before.get(agent_id)
        kept = route is not None and route.agent == agent and runtime.agents.get(agent_id) is route.state
        routes[agent_id] = route if route is not None and kept else _route(agent, runtime, EGRESS, agent_id)
    for agent_id in [name for name in runtime.agents if name not in routes and not name.startswith(INGRESS_STATE)]:
        runtime.agents.pop(agent_id).pool.close()
    return Snapshot(policy, routes, _entry(runtime))


def compile_ingress(agent_id: str, target: str, runtime: Runtime, capacity: int = 0) -> Snapshot:
    """The snapshot of the ingress listener: everything goes to the one local agent, `capacity` calls at once if set."""
    agent = Agent(agent_id, (EndpointPolicy(target),))
    agent = replace(agent, tls=False, outlier=replace(agent.outlier, enabled=False))
    if capacity:
        agent = replace(agent, limits=replace(agent.limits, max_in_flight=capacity))
    route = _route(agent, runtime, INGRESS, INGRESS_STATE + agent_id)
    return Snapshot(Policy({agent_id: agent}, agent_id), {agent_id: route}, _entry(runtime), SERVER)


def _route(agent: Agent, runtime: Runtime, filters: tuple[ModuleType, ...], name: str) -> Route:
    state: AgentState = runtime.state_of(name)
    steps: list[Step] = []
    for module in filters:
        step = module.build(agent, state, runtime)
        if step is not None:
            steps.append(step)
    return Route(agent, state, tuple(steps))


def _entry(runtime: Runtime) -> tuple[Step, ...]:
    return tuple([module.build(runtime) for module in ENTRY])
