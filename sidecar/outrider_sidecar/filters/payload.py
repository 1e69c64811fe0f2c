"""Payload: who reads the messages of a call, where somebody can.

Always holds: messages are read beside the relay, never changed and never waited for, so that usage reaches the span
also where nothing is cached. `streaming: false` alone changes a reply: a native stream is answered as one chunk.
"""

from __future__ import annotations

from outrider.policy import Agent
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.payloads import NATIVE_PATHS, NATIVE_STREAM, one_chunk


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step:
    """The step for one agent."""
    payloads = runtime.payloads
    relays = agent.optimization.streaming

    def payload(call: Call) -> None:
        path = call.head.path
        if path in NATIVE_PATHS:
            call.adapter = payloads.of(path)
            if not relays and path == NATIVE_STREAM:
                call.stages = [*(call.stages or ()), one_chunk()]

    return payload
