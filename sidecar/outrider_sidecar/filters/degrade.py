"""Degrade: under pressure an agent is asked for less, by native requests without their least relevant context and with
a bound on the answer.

Always holds: nothing is touched while no step is taken, nor where a message cannot be read, which the span says; what
changes is what attempts send, never what the caller is counted with; a call is marked with the steps it felt. Calls
answered from the cache, or by somebody else's flight, do not come here.

Deliberately not here: which steps are taken (`engines.degradation`, fed by `admit`), the messages
(`payloads.rewrite`), steps that are other filters' (`cache`, `retry`, `admit`).
"""

from __future__ import annotations

from typing import Any, Final

from outrider.policy import Agent
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.degraded import CAP_OUTPUT, TRIM_CONTEXT, mark
from outrider_sidecar.core.payload import TOO_LARGE
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.payloads import NATIVE_PATHS
from outrider_sidecar.payloads.rewrite import rewritten

MAX_REQUEST_BYTES: Final = 1024 * 1024


class DegradeFilter:
    """The steps of one agent's policy that change requests."""

    __slots__ = ("_output_tokens", "_relevance", "_state")

    def __init__(self, agent: Agent, state: AgentState):
        policy = agent.degradation
        self._state = state
        self._relevance = policy.relevance
        self._output_tokens = policy.output_tokens

    def step(self, call: Call) -> bool | None:
        ladder: Any = self._state.ladder
        if not ladder.level or call.head.path not in NATIVE_PATHS:
            return None
        relevance = self._relevance if ladder.takes(TRIM_CONTEXT) else 0.0
        output_tokens = self._output_tokens if ladder.takes(CAP_OUTPUT) else 0
        if not relevance and not output_tokens:
            return None
        if call.want_body(MAX_REQUEST_BYTES, self.step):
            return True
        body = call.body
        if not call.request_ended or call.body_bytes > MAX_REQUEST_BYTES:
            call.note(f"degrade: {TOO_LARGE}")
            return None
        if body is None:
            return None
        whole = body[0] if len(body) == 1 else b"".join(body)
        done = rewritten(whole, call.head.values.get(b"grpc-encoding", b""), relevance, output_tokens)
        if done.reason:
            call.note(f"degrade: {done.reason}")
        if done.trimmed:
            mark(call, TRIM_CONTEXT)
        if done.capped:
            mark(call, CAP_OUTPUT)
        if done.body is not whole:
            return not call.replace_body(done.body)
        return None


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step | None:
    """The step for one agent; None where no step of its ladder changes requests."""
    policy = agent.degradation
    if not policy.enabled or not {TRIM_CONTEXT, CAP_OUTPUT}.intersection(policy.steps):
        return None
    return DegradeFilter(agent, state).step
