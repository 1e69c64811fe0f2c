"""Puts the scale loop together as it is configured: its engines, and what KEDA is told.

Always holds: engines are made where they are used, from their own settings; a control plane that does not scale has a
loop all the same, which says so of every agent.

Deliberately not here: the loop (`loops.scale`), which engines there are (`engines.registry`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from outrider_control import config
from outrider_control.engines import registry
from outrider_control.engines.keda import KedaFigures, KedaScaler
from outrider_control.loops.scale.decide import decide
from outrider_control.loops.scale.loop import ScaleLoop
from outrider_control.loops.scale.types import Decision, Instance
from outrider_control.publish.publisher import Publisher
from outrider_control.state.database import Database

STALE_MS = 10_000  # a decision that is older says nothing of the demand


def make_loop(
    settings: config.Scaling,
    db: Database,
    publisher: Publisher,
    leads: Callable[[], bool],
    clock_ms: Callable[[], int],
    control: Callable[[], str],
) -> ScaleLoop:
    """`control` says where agents reach this control plane, once it listens."""

    def endpoints(agent_id: str) -> Sequence[Instance]:
        return loop.registered(agent_id)

    def last(agent_id: str) -> Decision | None:
        return loop.last(agent_id)

    offers = {
        "clock_ms": clock_ms,
        "endpoints": endpoints,
        "last": last,
        "control": control,
        "rng": random.Random(),
    }
    sections = settings.engines if settings.enabled else {}
    loop = ScaleLoop(
        db,
        publisher,
        {name: registry.maker(name, section, offers) for name, section in sections.items()},
        leads,
        clock_ms,
        random.Random(),
        decide=decide,
        default_engine=settings.engine,
        enabled=settings.enabled,
        interval_ms=settings.interval_ms,
        drain_ms=round(settings.drain_s * 1_000),
    )
    return loop


def keda_of(loop: ScaleLoop, publisher: Publisher, clock_ms: Callable[[], int]) -> KedaScaler | None:
    """What KEDA asks; None where no engine is for it."""
    if not any([engine.pulls for engine in loop.engines.values()]):
        return None

    def figures(agent_id: str) -> KedaFigures | None:
        engine, agent = loop.engine_of(agent_id), publisher.fleet.agents.get(agent_id)
        if engine is None or agent is None or not engine.pulls:
            return None
        last = loop.last(agent_id)
        if last is None or clock_ms() - last.at_ms > STALE_MS:
            return KedaFigures(None, None)
        target = last.capacity * agent.scaling.target_utilization if last.capacity is not None else None
        return KedaFigures(last.demand, target, last.desired > 0)

    scaler = KedaScaler(figures)
    loop.on_figures = scaler.changed
    return scaler
