"""The load of this sidecar by agent, as the control plane is told of it.

Always holds: reading changes nothing but the mark that says an agent was idle when a periodic report was made: the
first call after that asks for a report at once (filters `admit`), and costs nothing else.

Deliberately not here: when reports are sent (`edge.mesh`), their bytes (`edge.mesh_codec`).
"""

from __future__ import annotations

from typing import NamedTuple

from outrider_sidecar.core.runtime import INGRESS_STATE, AgentState, Runtime


class CacheLoad(NamedTuple):
    """What one agent's cache did; the names of `outrider.v1.CacheLoad`."""

    verdicts: dict[str, int]
    entries: int
    size_bytes: int
    max_bytes: int
    evictions: int


class Load(NamedTuple):
    """One agent at one hop. Counters are since the start of the process."""

    agent_id: str
    ingress: bool
    in_flight: int
    shed: int
    capacity: int
    calls: int
    cache: CacheLoad | None


def loads(runtime: Runtime, periodic: bool) -> list[Load]:
    """Agents with anything to report. `periodic`: those that are idle now will be reported at their next call."""
    found = []
    for name, state in runtime.agents.items():
        if periodic:
            state.idle = state.in_flight == 0
        if state.calls or state.in_flight or state.shed:
            ingress = name.startswith(INGRESS_STATE)
            agent_id = name[len(INGRESS_STATE) :] if ingress else name
            found.append(
                Load(agent_id, ingress, state.in_flight, state.shed, state.capacity, state.calls, _cache_of(state))
            )
    return found


def _cache_of(state: AgentState) -> CacheLoad | None:
    if state.cache is None:
        return None
    store = state.cache.store
    return CacheLoad(dict(state.cache.counts), len(store), store.size_bytes, store.max_bytes, store.evictions)
