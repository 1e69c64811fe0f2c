"""What there is to be seen of agents' load: fresh reports of all sidecars, added up by agent once for all of them.

Always holds: demand is what waits at egress, and what waits and runs at ingress; what runs at egress counts only for an
agent without an ingress, for else it is counted there. Nothing is made up: without a fresh report load is None, and a
number that cannot be (a negative one) is passed on as it is, for the decision to refuse.

Deliberately not here: the decision (`decide`), who keeps the reports (`publish.fleet`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from outrider.policy import Agent
from outrider.v1 import mesh_pb2
from outrider_control.core.leases import Lease
from outrider_control.loops.scale.types import DRAINING, READY, STARTING, Instance, Seen
from outrider_control.publish.fleet import Report

LOST_MS = 60_000  # how long a sidecar that went away in the midst of calls is missed
FOREIGN_LATE_MS = 1_000  # by how much another control plane's sidecars may hear of a change after ours

Source = tuple[str, bool]  # instance id, whether it is the agent's ingress


@dataclass(slots=True)
class AgentSight:
    """One agent over all fresh reports."""

    running: float = 0.0  # at egress
    running_at_ingress: float = 0.0
    queued: float = 0.0
    ingresses: int = 0
    limits: list[int] = field(default_factory=list)  # of the ingresses: calls they let through
    busy: dict[str, int] = field(default_factory=dict)  # calls at an ingress, by its sidecar
    leaving: dict[str, int] = field(default_factory=dict)  # calls at endpoints that are given none any more
    finished: dict[Source, tuple[int, int]] = field(default_factory=dict)  # (calls ever, reported when)
    missed: int = 0  # sidecars that went away in the midst of its calls


@dataclass(slots=True)
class Sight:
    """The mesh at one moment."""

    at_ms: int
    reports: int = 0  # fresh
    sidecars: int = 0  # connected
    newest_ms: int = 0
    heard: list[tuple[int, bool]] = field(default_factory=list)  # of connected ones: (last report, whether it is ours)
    agents: dict[str, AgentSight] = field(default_factory=dict)

    def of(self, agent_id: str) -> AgentSight:
        return self.agents.get(agent_id) or AgentSight()

    def is_empty(self, agent_id: str, lease: Lease, since_ms: int) -> bool:
        """Whether an endpoint that is given no calls since then has none left, by everybody's word."""
        sight = self.of(agent_id)
        if sight.leaving.get(lease.address) or sight.busy.get(lease.owner):
            return False
        return all(at_ms > since_ms + (0 if own else FOREIGN_LATE_MS) for at_ms, own in self.heard)


def look(reports: Iterable[Report], now_ms: int, only: str = "") -> Sight:
    """Everything that is reported, added up; with `only` of that agent alone."""
    sight = Sight(now_ms)
    for report in reports:
        take(sight, report, only)
    return sight


def take(sight: Sight, report: Report, only: str = "") -> None:
    """One more report."""
    sight.newest_ms = max(sight.newest_ms, report.at_ms)
    if report.connected:
        sight.sidecars += 1
        sight.heard.append((report.at_ms, report.own))
    if report.load is None:
        return
    if not report.fresh:
        if not report.connected and sight.at_ms - report.at_ms <= LOST_MS:
            _miss(sight, report.load)
        return
    sight.reports += 1
    for load in report.load.agents:
        agent_id = load.agent_id
        if not only or agent_id == only:
            _add(sight.agents.setdefault(agent_id, AgentSight()), load, report)


def _miss(sight: Sight, load: mesh_pb2.LoadReport) -> None:
    for agent in load.agents:
        if agent.in_flight > 0 or any([waiting > 0 for waiting in agent.queued.values()]):
            sight.agents.setdefault(agent.agent_id, AgentSight()).missed += 1


def _add(sight: AgentSight, load: mesh_pb2.AgentLoad, report: Report) -> None:
    for waiting in load.queued.values():
        sight.queued = _sum(sight.queued, waiting)
    if load.ingress:
        sight.ingresses += 1
        sight.running_at_ingress = _sum(sight.running_at_ingress, load.in_flight)
        sight.limits.append(load.capacity)
        sight.busy[report.instance_id] = load.in_flight + sum(load.queued.values())
    else:
        sight.running = _sum(sight.running, load.in_flight)
        for address, calls in load.leaving.items():
            sight.leaving[address] = sight.leaving.get(address, 0) + calls
    sight.finished[report.instance_id, load.ingress] = load.calls, report.at_ms


def _sum(total: float, value: float) -> float:
    """A number that cannot be is not hidden by those that can."""
    if total < 0:
        return total
    return float(value) if value < 0 else total + value


class Rate:
    """How many calls of one agent end per second, from counters that sidecars keep since their start."""

    __slots__ = ("_rates",)

    def __init__(self) -> None:
        self._rates: dict[Source, tuple[int, int, float | None]] = {}  # (calls, at_ms, per second)

    def take(self, sight: AgentSight) -> float | None:
        """None: no counter was seen twice."""
        known, self._rates = self._rates, {}
        for source, (calls, at_ms) in sight.finished.items():
            if source[1] != (sight.ingresses > 0):  # one hop counts a call
                continue
            before = known.get(source)
            if before is None or calls < before[0]:  # new, or started again
                self._rates[source] = calls, at_ms, None
            elif at_ms <= before[1]:
                self._rates[source] = before
            else:
                self._rates[source] = calls, at_ms, (calls - before[0]) * 1_000 / (at_ms - before[1])
        rates = [rate for _, _, rate in self._rates.values() if rate is not None]
        return sum(rates) if rates else None


@functools.lru_cache(16_384)
def _declared(endpoint: bytes) -> int:
    return mesh_pb2.Endpoint.FromString(endpoint).capacity


def capacity(agent: Agent, leases: Sequence[Lease], sight: AgentSight) -> tuple[float | None, str]:
    """Calls at once of one instance, and where that is known from.

    The limit of an ingress says something where it adapts or was set; else it is the bound of all agents' calls.
    """
    declared = [found for lease in leases if not lease.draining and (found := _declared(lease.endpoint)) > 0]
    registered = {lease.address for lease in leases}
    declared += [one.capacity for one in agent.endpoints if one.capacity > 0 and one.address not in registered]
    if declared:
        return sum(declared) / len(declared), "endpoints"
    limits = sight.limits
    if not agent.limits.adaptive:
        limits = [limit for limit in limits if limit < agent.limits.max_in_flight]
    return (sum(limits) / len(limits), "learnt") if limits else (None, "")


def serves(instance: Instance, addresses: Iterable[str], registers: bool) -> bool:
    """Whether an instance is ready, and registered where its engine knows where it listens.

    `registers`: whether anything of the agent registers; where its endpoints are declared instead the engine's word
    counts. An engine may know the host alone.
    """
    if instance.state != READY or not instance.address or not registers:
        return instance.state == READY
    return any([one == instance.address or one.startswith(f"{instance.address}:") for one in addresses])


def seen(
    agent: Agent,
    sight: Sight,
    leases: Sequence[Lease],
    instances: Sequence[Instance] | None,
    leaving: Mapping[str, object],
    asked: int,
    finished_per_s: float | None,
) -> Seen:
    """One agent. `instances` as its engine lists them, None without an engine; `leaving` are those that are drained, by
    name; `asked` is what the engine has taken on to run, 0 where that is not known."""
    load = sight.of(agent.agent_id)
    known = sight.reports > 0
    addresses = [lease.address for lease in leases if not lease.draining]
    fixed = [one.address for one in agent.endpoints]
    if instances is None:
        ready, starting = len({*addresses, *fixed}), 0
        draining = len(leases) - len(addresses)
    else:
        registers = bool(leases) or not fixed
        staying = [one for one in instances if one.name not in leaving and one.state in (STARTING, READY)]
        ready = sum([serves(one, (*addresses, *fixed), registers) for one in staying])
        starting = max(len(staying), asked) - ready
        draining = len({*leaving, *(one.name for one in instances if one.state == DRAINING)})
    size, source = capacity(agent, leases, load)
    return Seen(
        agent.agent_id,
        sight.at_ms,
        (load.running_at_ingress if load.ingresses else load.running) if known else None,
        load.queued if known else None,
        ready,
        starting,
        draining,
        size,
        source,
        sight.reports,
        sight.sidecars + load.missed,
        sight.newest_ms,
        finished_per_s,
    )
