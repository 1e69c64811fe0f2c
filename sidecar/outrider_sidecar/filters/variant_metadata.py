"""Variant metadata at an ingress: what the caller's sidecar says of the call's variant reaches the agent.

Always holds: an ingress assigns nobody; it hands the two fields on as they came. They need a step because no sidecar
forwards them by itself: at an egress they are the caller's, and replaced.
"""

from __future__ import annotations

from typing import Final

from outrider.policy import Agent
from outrider_http2.hpack import literal
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.runtime import AgentState, Runtime

_NAMES: Final = (b"x-outrider-variant", b"x-outrider-prompt-version")


def variant_metadata(call: Call) -> None:
    """The step."""
    values = call.rest.values
    if b"x-outrider-variant" in values or b"x-outrider-prompt-version" in values:
        for name in _NAMES:
            value = values.get(name)
            if value is not None:
                call.forward += literal(name, value)


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step:
    """The step for one agent."""
    return variant_metadata
