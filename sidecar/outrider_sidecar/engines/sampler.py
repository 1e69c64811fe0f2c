"""Head sampling as OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG say.

Always holds: the decision is a pure function of the parent's flags and the trace id, so every hop of one trace
decides alike. It steers foreign exporters only: metrics and the control plane see every call.

Deliberately not here: remote samplers (jaeger_remote, xray).
"""

from __future__ import annotations

from typing import Final

from outrider_sidecar.core.span import SAMPLED

SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
DEFAULT: Final = "parentbased_always_on"


class Sampler:
    """`flags(parent_flags, trace_id)` gives the flags the call's span and its outgoing traceparent carry."""

    __slots__ = ("_bound", "name", "parent_based", "ratio")

    def __init__(self, name: str = DEFAULT, ratio: float = 1.0):
        self.name = name
        self.parent_based = name.startswith("parentbased_")
        kind = name.removeprefix("parentbased_")
        self.ratio = {"always_on": 1.0, "always_off": 0.0}.get(kind, ratio)
        self._bound = round(self.ratio * 2**64)  # TraceIdRatioBased of the SDKs: the low 64 bits below the bound

    def flags(self, parent_flags: int | None, trace_id: bytes) -> int:
        """`parent_flags`: those of a valid incoming traceparent, None for a new trace. `trace_id`: 32 hex digits."""
        if parent_flags is None:
            return SAMPLED if self._takes(trace_id) else 0
        if self.parent_based:
            return parent_flags
        return parent_flags | SAMPLED if self._takes(trace_id) else parent_flags & ~SAMPLED

    def _takes(self, trace_id: bytes) -> bool:
        if self.ratio >= 1.0:
            return True
        return self.ratio > 0.0 and int(trace_id[16:], 16) < self._bound


def parse_sampler(name: str, argument: str = "") -> Sampler:
    """A sampler from the two environment variables; empty means the default. ValueError says what to write instead."""
    name = name.strip().lower() or DEFAULT
    if name not in SAMPLERS:
        raise ValueError(f"OTEL_TRACES_SAMPLER: {name!r} is not known; use one of {', '.join(SAMPLERS)}")
    if not name.endswith("traceidratio") or not argument.strip():
        return Sampler(name)
    try:
        ratio = float(argument)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"OTEL_TRACES_SAMPLER_ARG: {argument!r} is not a ratio from 0 to 1")
    return Sampler(name, ratio)
