"""What a call gave up under pressure: names of `policy.DEGRADATIONS` in `Call.degraded`.

Always holds: a name stands there once, and only if the call felt the step: one whose message held nothing to leave out
was not trimmed. A reply made from less than was asked is an answer to another question: it is `thinned`.

Deliberately not here: when steps are taken (`engines.degradation`), what they do (`filters`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from outrider_sidecar.core.call import Call

SERVE_STALE: Final = "serve_stale"
TRIM_CONTEXT: Final = "trim_context"
CAP_OUTPUT: Final = "cap_output"
HEDGE_OFF: Final = "hedge_off"
_THINNING: Final = (TRIM_CONTEXT, CAP_OUTPUT)


def mark(call: Call, step: str) -> None:
    """The call feels a step."""
    degraded = call.degraded
    if degraded is None:
        call.degraded = [step]
    elif step not in degraded:
        degraded.append(step)


def thinned(call: Call) -> bool:
    """Whether the agent was asked for less than the caller wants: not to be kept for others."""
    degraded = call.degraded
    return degraded is not None and (TRIM_CONTEXT in degraded or CAP_OUTPUT in degraded)


def share(leader: Call, follower: Call) -> None:
    """A reply to one call goes to another one as well."""
    for step in _THINNING:
        if step in (leader.degraded or ()):
            mark(follower, step)
