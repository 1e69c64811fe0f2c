"""What the admin port shows of a running sidecar.

Always holds: reading changes nothing; figures are of this moment and of this process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from outrider.policy import LANES
from outrider_http2.shell import Reactor
from outrider_sidecar import config
from outrider_sidecar.core import call
from outrider_sidecar.core.metric import Family, HistogramFamily, Labels
from outrider_sidecar.core.runtime import INGRESS_STATE, AgentState, Runtime
from outrider_sidecar.edge.access_log import AccessLog
from outrider_sidecar.edge.compress_view import compression_families, compression_shown
from outrider_sidecar.edge.compress_worker import CompressWorker
from outrider_sidecar.edge.export import Export
from outrider_sidecar.edge.feedback import Feedback
from outrider_sidecar.edge.listener import Listener
from outrider_sidecar.edge.session_file import SessionFile
from outrider_sidecar.edge.variants_view import split_families, splits_shown
from outrider_sidecar.engines.series import Series
from outrider_sidecar.filters.dispatch import state_of

# Whether the data path runs compiled (`make native`) or as it stands.
COMPILED = not call.__file__.endswith(".py")


class Link(Protocol):
    """The link to the control plane (`edge.mesh`), which is not there where none is configured."""

    def state(self) -> dict[str, Any]: ...

    def families(self) -> list[Family]: ...


class Sidecar(Protocol):
    """What the composition root offers to be looked at."""

    version: str
    settings: config.Settings
    draining: bool
    started: bool
    last_reload: str
    reloads: dict[str, int]
    runtime: Runtime
    reactor: Reactor
    series: Series
    export: Export
    feedback: Feedback
    compressor: CompressWorker
    access_log: AccessLog | None
    listeners: dict[str, Listener]
    session_file: SessionFile | None

    @property
    def link(self) -> Link | None: ...

    @property
    def waiting_for_policy(self) -> bool: ...

    def purge(self, agent: str, tenant: str, tag: str) -> int: ...

    def request_stop(self) -> None: ...


class SidecarView:
    """Implements `edge.admin.View`."""

    def __init__(self, sidecar: Sidecar):
        self._sidecar = sidecar

    def healthy(self) -> tuple[bool, str]:
        return True, ""

    def ready(self) -> tuple[bool, str]:
        if self._sidecar.draining:
            return False, "draining"
        if not self._sidecar.started:
            return False, "starting"
        if self._sidecar.waiting_for_policy:
            return False, "no agent is known yet: waiting for the control plane's first update"
        return True, ""

    def config(self) -> Any:
        """The file's settings with secrets masked, and the link to the control plane."""
        shown = config.masked(self._sidecar.settings)
        shown["last_reload"] = self._sidecar.last_reload
        link = self._sidecar.link
        shown["splits"] = splits_shown(self._sidecar.runtime)
        shown["compression"] = compression_shown(self._sidecar.runtime)
        shown["control_link"] = link.state() if link is not None else None
        return shown

    def agents(self) -> Any:
        runtime = self._sidecar.runtime
        now = runtime.clock()
        shown = []
        for agent_id, route in runtime.snapshot.routes.items():
            pool = route.state.pool
            endpoints = [
                {
                    "address": endpoint.address,
                    "state": state_of(endpoint),
                    "weight": endpoint.weight,
                    "labels": dict(endpoint.labels),
                    "pending": endpoint.pending,
                    "capacity": endpoint.capacity or None,
                    "calls": endpoint.calls,
                    "failures": endpoint.failures,
                    "connections": endpoint.connector.connections,
                    "last_error": endpoint.connector.last_error,
                }
                for endpoint in pool.endpoints.values()
            ]
            scores = [
                {"address": address, "score": score, "reason": reason}
                for address, score, reason in pool.balancer.explain(now)
            ]
            shown.append(
                {
                    "agent_id": agent_id,
                    "strategy": route.agent.balancing.strategy,
                    "in_flight": route.state.in_flight,
                    "limit": route.state.admission.limit,
                    "waiting": dict(zip(LANES, route.state.admission.queue.lane_waiting(), strict=True)),
                    "shed": dict(zip(LANES, route.state.admission.shed_lanes, strict=True)),
                    "degraded": list(route.state.ladder.steps),
                    "panic": pool.panic,
                    "endpoints": endpoints,
                    "scores": scores,
                }
            )
        return {"agents": shown}

    def cache(self) -> Any:
        return {
            "epochs": self._sidecar.runtime.epochs.version,
            "agents": [
                {"agent_id": agent_id, **self._cache_of(state)}
                for agent_id, state in self._sidecar.runtime.agents.items()
                if state.cache is not None
            ],
        }

    def _cache_of(self, state: AgentState) -> dict[str, Any]:
        found = state.cache
        counts = found.counts
        eligible = sum(counts.values())
        answered = counts["hit"] + counts["stale"] + counts["coalesced"]
        return {
            "verdicts": dict(counts),
            "hit_rate": answered / eligible if eligible else None,
            "in_flight": len(found.flights),
            "store": found.store.stats(),
            "ghosts": found.ghosts.report() if found.ghosts is not None else None,
        }

    def purge(self, agent: str, tenant: str, tag: str) -> Any:
        if agent and agent not in self._sidecar.runtime.snapshot.routes:
            raise ValueError(f"no agent {agent!r} is configured")
        return {"epoch": self._sidecar.purge(agent, tenant, tag)}

    def drain(self) -> Any:
        self._sidecar.request_stop()
        return {"draining": True}

    # -- metrics ---------------------------------------------------------------------------------------------------

    def metrics_families(self) -> Iterable[Family | HistogramFamily]:
        sidecar = self._sidecar
        yield from sidecar.series.families()
        yield from sidecar.export.families()
        yield from sidecar.feedback.families()
        if sidecar.access_log is not None:
            yield from sidecar.access_log.families()
        if sidecar.link is not None:
            yield from sidecar.link.families()
        yield from self._process_families()
        yield from self._endpoint_families()
        yield from self._admission_families()
        yield from self._rate_families()
        yield from self._cache_families()
        yield from split_families(sidecar.runtime)
        yield from compression_families(sidecar.runtime, sidecar.compressor)
        if sidecar.session_file is not None:
            yield from sidecar.session_file.families()

    def _process_families(self) -> Iterable[Family]:
        sidecar = self._sidecar
        ledger = sidecar.reactor.ledger
        connections: list[tuple[Labels, float]] = [
            ((name,), listener.connections) for name, listener in sidecar.listeners.items()
        ]
        build: list[tuple[Labels, float]] = [((self._sidecar.version, "true" if COMPILED else "false"), 1)]
        yield Family("outrider_build_info", "gauge", "What runs: always 1.", ("version", "compiled"), build)
        yield Family("outrider_calls_in_flight", "gauge", "Calls not over yet.", (), [((), len(sidecar.runtime.calls))])
        yield Family("outrider_held_bytes", "gauge", "Bytes waiting for a peer.", (), [((), ledger.held_bytes)])
        yield Family("outrider_streams_cut", "counter", "Streams reset for held bytes.", (), [((), ledger.cut)])
        yield Family("outrider_connections", "gauge", "Accepted connections.", ("listener",), connections)
        yield Family(
            "outrider_reloads",
            "counter",
            "Configuration reloads.",
            ("outcome",),
            [((outcome,), count) for outcome, count in sidecar.reloads.items()],
        )

    def _endpoint_families(self) -> Iterable[Family]:
        usable: list[tuple[Labels, float]] = []
        pending: list[tuple[Labels, float]] = []
        in_flight: list[tuple[Labels, float]] = []
        for agent_id, route in self._sidecar.runtime.snapshot.routes.items():
            in_flight.append(((agent_id,), route.state.in_flight))
            for endpoint in route.state.pool.endpoints.values():
                usable.append(((agent_id, endpoint.address), float(state_of(endpoint) == "ready")))
                pending.append(((agent_id, endpoint.address), endpoint.pending))
        labels = ("agent", "endpoint")
        yield Family("outrider_endpoint_ready", "gauge", "1: may be picked.", labels, usable)
        yield Family("outrider_endpoint_pending", "gauge", "Attempts in flight.", labels, pending)
        yield Family("outrider_agent_in_flight", "gauge", "Calls holding a permit.", ("agent",), in_flight)

    def _admission_families(self) -> Iterable[Family]:
        waiting: list[tuple[Labels, float]] = []
        shed: list[tuple[Labels, float]] = []
        limits: list[tuple[Labels, float]] = []
        steps: list[tuple[Labels, float]] = []
        for name, state in self._sidecar.runtime.agents.items():
            ingress = name.startswith(INGRESS_STATE)
            agent_id, hop = (name[len(INGRESS_STATE) :], "ingress") if ingress else (name, "egress")
            admission = state.admission
            for lane, count, refused in zip(LANES, admission.queue.lane_waiting(), admission.shed_lanes, strict=True):
                waiting.append(((agent_id, hop, lane), count))
                shed.append(((agent_id, hop, lane), refused))
            limits.append(((agent_id, hop), admission.limit))
            steps.append(((agent_id, hop), state.ladder.level))
        lanes = ("agent", "hop", "lane")
        yield Family("outrider_queue_waiting", "gauge", "Calls that wait for a permit.", lanes, waiting)
        yield Family("outrider_shed", "counter", "Calls refused for load.", lanes, shed)
        yield Family("outrider_limit", "gauge", "Calls that may run at once.", ("agent", "hop"), limits)
        yield Family("outrider_degradation_level", "gauge", "Degradation steps taken.", ("agent", "hop"), steps)

    def _rate_families(self) -> Iterable[Family]:
        limited: list[tuple[Labels, float]] = []
        for agent_id, state in self._sidecar.runtime.agents.items():
            if state.rates is not None:
                limited += [((agent_id, name), count) for name, count in state.rates.refused.items()]
        yield Family("outrider_rate_limited", "counter", "Calls over a limit.", ("agent", "limit"), limited)

    def _cache_families(self) -> Iterable[Family]:
        verdicts: list[tuple[Labels, float]] = []
        sizes: list[tuple[Labels, float]] = []
        evictions: list[tuple[Labels, float]] = []
        for agent_id, state in self._sidecar.runtime.agents.items():
            if state.cache is not None:
                verdicts += [((agent_id, name), count) for name, count in state.cache.counts.items()]
                sizes.append(((agent_id,), state.cache.store.size_bytes))
                evictions.append(((agent_id,), state.cache.store.evictions))
        yield Family("outrider_cache_verdicts", "counter", "Eligible calls.", ("agent", "verdict"), verdicts)
        yield Family("outrider_cache_bytes", "gauge", "Weight of stored replies.", ("agent",), sizes)
        yield Family("outrider_cache_evictions", "counter", "Replies evicted for space.", ("agent",), evictions)
