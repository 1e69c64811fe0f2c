"""Which policy is in force: the file's agents under the pushed ones, endpoints that registered beside declared ones.

Always holds: a pushed agent stands for the file's agent of that name, whole; an agent that is no longer pushed is the
file's again, or gone. The pushed splits of an agent stand for the file's of that agent, all of them. An address that is
declared and registered counts once, with the weight and labels it registered with. Endpoints and splits of an agent
nobody has configured are kept for the day somebody does.

Deliberately not here: where the parts come from (`edge.pushed`), names that stand for addresses (`edge.resolver`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from outrider.policy import Agent, EndpointPolicy, Policy
from outrider_sidecar.core.resource import ENDPOINTS, MESH, POLICY, SPLITS, Key, Resource


def overlay(file: Policy, resources: Mapping[Key, Resource]) -> Policy:
    """The policy in force. The pushed default agent goes before the file's where it names an agent."""
    if not resources:
        return file
    agents: dict[str, Agent] = dict(file.agents)
    for (kind, name), one in resources.items():
        if kind == POLICY:
            agents[name] = one.value
    for (kind, name), one in resources.items():
        if kind == ENDPOINTS and one.value and name in agents:
            agents[name] = with_registered(agents[name], one.value)
    splits = dict(file.splits)
    for (kind, name), one in resources.items():
        if kind == SPLITS:
            splits[name] = one.value
    splits = {name: found for name, found in splits.items() if found and name in agents}
    mesh = resources.get((MESH, ""))
    default_agent: str = mesh.value if mesh is not None and mesh.value in agents else file.default_agent
    return replace(file, agents=MappingProxyType(agents), default_agent=default_agent, splits=MappingProxyType(splits))


def with_registered(agent: Agent, registered: tuple[EndpointPolicy, ...]) -> Agent:
    """The agent with its declared endpoints first, then those that registered at other addresses."""
    by_address = {endpoint.address: endpoint for endpoint in agent.endpoints}
    by_address.update({endpoint.address: endpoint for endpoint in registered})
    return replace(agent, endpoints=tuple(by_address.values()))
