"""Admit: the bound on what one sidecar does for one agent at a time.

Always holds: `in_flight` counts admitted calls that are not over; past the limit a call is refused at once. The first
call of an agent that was idle when its load was last reported wakes the reporter; every other call costs one look.
"""

from __future__ import annotations

from outrider.policy import Agent
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.runtime import AgentState, Runtime


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step:
    """The step for one agent."""
    limit = agent.limits.max_in_flight
    state.capacity = limit
    woke = runtime.woke

    def release(call: Call) -> None:
        state.in_flight -= 1

    def admit(call: Call) -> bool | None:
        if state.in_flight >= limit:
            state.shed += 1
            return call.fail(
                errors.RESOURCE_EXHAUSTED,
                f"agent {agent.agent_id!r} has {limit} calls in flight, its limit (limits.max_in_flight)",
            )
        state.in_flight += 1
        if state.idle:
            state.idle = False
            woke()
        call.done.append(release)
        return None

    return admit
