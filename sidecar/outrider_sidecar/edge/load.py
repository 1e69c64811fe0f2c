"""The load of this sidecar by agent, as the control plane is told of it.

Always holds: reading changes nothing but the mark that says an agent was idle when a periodic report was made: the
first call after that asks for a report at once (filters `admit`), and costs nothing else.

Deliberately not here: when reports are sent (`edge.mesh`), their bytes (`edge.mesh_codec`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from outrider.policy import LANES
from outrider_sidecar.core.runtime import INGRESS_STATE, AgentState, Runtime

_NONE: Mapping[str, int] = MappingProxyType({})


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
    queued: Mapping[str, int] = _NONE  # by lane; lanes without any are left out
    shed_lanes: Mapping[str, int] = _NONE
    longest_wait_ms: int = 0
    leaving: Mapping[str, int] = _NONE  # calls at endpoints that are given none any more, by address
    degradation: int = 0  # steps taken
    degradation_step: str = ""  # the last of them


def loads(runtime: Runtime, periodic: bool) -> list[Load]:
    """Agents with anything to report. `periodic`: those that are idle now will be reported at their next call."""
    found = []
    now = runtime.clock()
    for name, state in runtime.agents.items():
        admission = state.admission
        busy = state.in_flight or admission.queue.waiting
        if periodic:
            state.idle = not busy
        if state.calls or busy or state.shed or state.pool.leaving:
            ingress = name.startswith(INGRESS_STATE)
            agent_id = name[len(INGRESS_STATE) :] if ingress else name
            ladder = state.ladder
            found.append(
                Load(
                    agent_id,
                    ingress,
                    state.in_flight,
                    state.shed,
                    state.capacity,
                    state.calls,
                    _cache_of(state),
                    _by_lane(admission.queue.lane_waiting()),
                    _by_lane(admission.shed_lanes),
                    int(admission.queue.longest_wait_s(now) * 1e3),
                    {endpoint.address: endpoint.pending for endpoint in state.pool.leaving if endpoint.pending},
                    ladder.level,
                    ladder.steps[-1] if ladder.steps else "",
                )
            )
    return found


def _by_lane(counts: Sequence[int]) -> dict[str, int]:
    return {lane: count for lane, count in zip(LANES, counts, strict=True) if count}


def _cache_of(state: AgentState) -> CacheLoad | None:
    if state.cache is None:
        return None
    store = state.cache.store
    return CacheLoad(dict(state.cache.counts), len(store), store.size_bytes, store.max_bytes, store.evictions)
