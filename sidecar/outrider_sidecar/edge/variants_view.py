"""What the admin port shows of splits: those in force, what they gave, what they had to take away.

Always holds: reading changes nothing; no unit is named. Deliberately not here: the page itself (`edge.view`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from outrider_sidecar.core.metric import Family, Labels
from outrider_sidecar.core.runtime import Runtime


def splits_shown(runtime: Runtime) -> dict[str, Any]:
    """Splits in force by agent, with how many units each variant was given, and how many units hold anything."""
    shown = []
    for agent_id, route in runtime.snapshot.routes.items():
        counts = route.state.variants
        for split in route.splits:
            fields = _plain(split)
            fields["overrides"] = len(split.overrides)
            assigned: Mapping[tuple[str, str], int] = counts.assigned if counts is not None else {}
            exceptions: Mapping[tuple[str, str], int] = counts.exceptions if counts is not None else {}
            fields["assigned"] = {name: count for (of, name), count in assigned.items() if of == split.name}
            fields["exceptions"] = {reason: count for (of, reason), count in exceptions.items() if of == split.name}
            shown.append({"agent_id": agent_id, **fields})
    sessions = runtime.sessions
    return {"in_force": shown, "units_held": len(sessions) if sessions is not None else 0}


def split_families(runtime: Runtime) -> Iterable[Family]:
    """The same as metrics."""
    assigned: list[tuple[Labels, float]] = []
    exceptions: list[tuple[Labels, float]] = []
    unassigned: list[tuple[Labels, float]] = []
    for agent_id, state in runtime.agents.items():
        counts = state.variants
        if counts is not None:
            assigned += [((agent_id, split, name), count) for (split, name), count in counts.assigned.items()]
            exceptions += [((agent_id, split, name), count) for (split, name), count in counts.exceptions.items()]
            unassigned.append(((agent_id,), counts.unassigned))
    sessions = runtime.sessions
    held, evicted = (len(sessions), sessions.evicted) if sessions is not None else (0, 0)
    variant = ("agent", "split", "variant")
    reason = ("agent", "split", "reason")
    yield Family("outrider_variant_assigned", "counter", "Units given a variant for the first time.", variant, assigned)
    yield Family("outrider_variant_exceptions", "counter", "Units moved from their variant.", reason, exceptions)
    yield Family("outrider_variant_unassigned", "counter", "Calls that name no unit.", ("agent",), unassigned)
    yield Family("outrider_variant_units_held", "gauge", "Sessions and users that hold variants.", (), [((), held)])
    yield Family("outrider_variant_units_evicted", "counter", "Forgotten for want of room.", (), [((), evicted)])


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
