"""What one endpoint says about its own load (ORCA): plain figures, decoded and in range.

Always holds: every figure is finite and not negative; 0.0 or an empty mapping means "not reported".
Deliberately not here: reading the wire format (`engines.orca`) and what a figure does to a pick (the balancers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NOTHING: Mapping[str, float] = MappingProxyType({})


def _nothing() -> Mapping[str, float]:
    return _NOTHING


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The fields of `xds.data.orca.v3.OrcaLoadReport` under their own names."""

    cpu_utilization: float = 0.0  # 1.0: the whole allotment; may exceed it
    mem_utilization: float = 0.0
    rps_fractional: float = 0.0  # calls per second the endpoint serves, all clients together
    eps: float = 0.0  # errors per second
    application_utilization: float = 0.0  # the application's own measure; goes before the CPU's
    request_cost: Mapping[str, float] = field(default_factory=_nothing)
    utilization: Mapping[str, float] = field(default_factory=_nothing)
    named_metrics: Mapping[str, float] = field(default_factory=_nothing)
