"""Which hop counts a call, and which counts its tokens.

A call that passes two sidecars and an instrumented agent leaves three spans. One of them counts it: the SERVER span of
the ingress where there is one, else the CLIENT span of the egress, else a foreign SERVER span.

Always holds: of the spans of one call at most one has `call`, and at most one counts tokens. Whether an agent's foreign
spans count depends on whether a span of ours was seen for it lately: an agent that gets a sidecar, or a control plane
that starts, may see a call counted twice until the first span of ours has come; `Hops.saw` lets the app say which
agents have sidecars before that.

Deliberately not here: what a span says (`otlp`), the figures it becomes (`samples`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

SERVER: Final = 2  # span kinds, as in OTLP
CLIENT: Final = 3
COVERED_MS: Final = 600_000  # how long a span of ours says that its agent has a sidecar
AGENTS_MAX: Final = 10_000


class Counting(NamedTuple):
    """What one span counts for."""

    call: bool
    tokens: bool
    cache: bool  # its cache verdict


_NOTHING: Final = Counting(False, False, False)
_FOREIGN_CALL: Final = Counting(True, True, False)
_FOREIGN_TOKENS: Final = Counting(False, True, False)


def counting(ours: bool, kind: int, through_ingress: bool, detached: bool, covered: bool) -> Counting:
    """`through_ingress`: an ingress counts this call. `detached`: a background flight. `covered`: as `Hops` says."""
    if ours:
        if kind == SERVER:
            return _FOREIGN_CALL
        if kind != CLIENT:
            return _NOTHING
        if detached:
            return Counting(False, not through_ingress, False)
        return Counting(not through_ingress, not through_ingress, True)
    if covered:
        return _NOTHING
    return _FOREIGN_CALL if kind == SERVER else _FOREIGN_TOKENS


class Hops:
    """The agents for which a span of ours was seen, and when."""

    __slots__ = ("_seen_ms",)

    def __init__(self) -> None:
        self._seen_ms: dict[str, int] = {}

    def saw(self, agent_id: str, now_ms: int) -> None:
        seen = self._seen_ms
        if agent_id not in seen and len(seen) >= AGENTS_MAX:
            self._shrink(now_ms)
        seen[agent_id] = now_ms

    def covered(self, agent_id: str, now_ms: int) -> bool:
        seen_ms = self._seen_ms.get(agent_id)
        return seen_ms is not None and now_ms - seen_ms <= COVERED_MS

    def _shrink(self, now_ms: int) -> None:
        """Those seen too long ago go; where that is not enough, the half seen longest ago."""
        by_age = sorted(self._seen_ms.items(), key=lambda item: item[1])
        fresh = [item for item in by_age if now_ms - item[1] <= COVERED_MS]
        self._seen_ms.clear()
        self._seen_ms.update(fresh if len(fresh) < AGENTS_MAX else fresh[AGENTS_MAX // 2 :])
