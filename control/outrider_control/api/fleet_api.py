"""Endpoints, sidecars and the health of agents.

Always holds: what is shown is the fleet as this control plane knows it now, others' sidecars as the store has them.

Deliberately not here: how the fleet comes to be known (`publish.fleet`), what makes an agent unwell (`agent_health`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from outrider.v1 import mesh_pb2, operator_pb2
from outrider_control.api import convert, requests
from outrider_control.api.agent_health import AgentState, SidecarState, judge
from outrider_control.api.errors import Invalid, NotFound
from outrider_control.intake.reader import Reader
from outrider_control.publish.fleet import Fleet

MAX_ENDPOINTS: Final = 20_000  # of one reply
HEALTH_MS: Final = 300_000


class FleetApi:
    """What there is in the mesh."""

    def __init__(self, fleet: Fleet, reader: Reader, clock_ms: Callable[[], int]):
        self._fleet = fleet
        self._reader = reader
        self._clock_ms = clock_ms

    async def endpoints(self, request: operator_pb2.ListEndpointsRequest) -> operator_pb2.ListEndpointsReply:
        """Declared and registered endpoints, by agent and address."""
        agent_id = requests.name(request.agent_id, "agent_id")
        found = self._fleet.endpoints(agent_id)
        if len(found) > MAX_ENDPOINTS:
            reason = f"there are {len(found):,} endpoints, more than one reply holds ({MAX_ENDPOINTS:,}): name an agent"
            raise Invalid("agent_id", reason)
        return operator_pb2.ListEndpointsReply(endpoints=found)

    async def sidecars(self, _request: operator_pb2.ListSidecarsRequest) -> operator_pb2.ListSidecarsReply:
        """Sidecars, connected ones first."""
        return operator_pb2.ListSidecarsReply(
            sidecars=requests.slim(self._fleet.sidecars(), ("load", "refused", "capabilities"))
        )

    async def health(self, request: operator_pb2.GetAgentHealthRequest) -> operator_pb2.AgentHealth:
        """How an agent is, and why."""
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        now_ms = self._clock_ms()
        seen = await self._reader.metrics(agent_id, now_ms - HEALTH_MS, now_ms)
        endpoints = self._fleet.endpoints(agent_id)
        agent = self._fleet.agents.get(agent_id)
        if agent is None and not endpoints and not seen.total.requests:
            raise NotFound(f"agent {agent_id!r} is not known: `outrider agents list` says which are")
        sidecars = self._fleet.sidecars()
        in_flight, queued, capacity = load_of(agent_id, sidecars)
        verdict = judge(
            AgentState(
                figures=seen.total,
                agent=agent,
                endpoints=len(endpoints),
                sidecars=[sidecar_state(one, agent_id, now_ms) for one in sidecars],
                in_flight=in_flight,
                queued=queued,
                capacity=capacity,
            )
        )
        return operator_pb2.AgentHealth(
            agent_id=agent_id,
            state=verdict.state,
            reasons=[
                operator_pb2.HealthReason(severity=one.severity, text=convert.text(one.text)) for one in verdict.reasons
            ],
            figures=convert.figures(seen.total, HEALTH_MS),
            endpoints=len(endpoints),
        )


def sidecar_state(record: operator_pb2.SidecarRecord, agent_id: str, now_ms: int) -> SidecarState:
    """What a sidecar's record says about an agent's health."""
    last_ms = max(record.acked_unix_ms, record.connected_unix_ms)
    return SidecarState(
        name=record.node or record.instance_id,
        beside=record.agent_id == agent_id,
        connected=record.connected,
        behind=record.behind,
        silent_ms=max(0, now_ms - last_ms),
        clock_offset_ms=record.clock_offset_ms,
        refusals=tuple(
            f"version {one.resource.version}: {one.reason}" for one in record.refused if one.resource.name == agent_id
        ),
    )


def load_of(agent_id: str, sidecars: Iterable[operator_pb2.SidecarRecord]) -> tuple[int, int, int]:
    """(in flight, queued, capacity) of an agent. Demand = egress queued + ingress queued + ingress in flight; egress in
    flight only where there is no ingress."""
    egress: list[mesh_pb2.AgentLoad] = []
    ingress: list[mesh_pb2.AgentLoad] = []
    for sidecar in sidecars:
        if sidecar.HasField("load"):
            for load in sidecar.load.agents:
                if load.agent_id == agent_id:
                    (ingress if load.ingress else egress).append(load)
    queued = sum([sum(load.queued.values()) for load in (*egress, *ingress)])
    serving = ingress or egress
    return sum([load.in_flight for load in serving]), queued, sum([load.capacity for load in serving])
