"""Generation: the model and its parameters that a call's variants ask for, in place of what the caller did.

Always holds: nothing is touched without a variant that says so, nor where a message cannot be read, which the span
says; only native requests can be changed. It stands below the cache: a key is of what was asked, and of the variant.

Deliberately not here: the messages (`payloads.rewrite`), which variant (filter `experiment`).
"""

from __future__ import annotations

from typing import Final

from outrider.policy import Agent
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.payload import TOO_LARGE
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.core.treatment import Rewrite
from outrider_sidecar.payloads import NATIVE_PATHS
from outrider_sidecar.payloads.rewrite import regenerated

MAX_REQUEST_BYTES: Final = 1024 * 1024


def generation(call: Call) -> bool | None:
    """The step."""
    treatment = call.treatment
    if treatment is None or treatment.rewrite is None:
        return None
    if call.head.path not in NATIVE_PATHS:
        call.note("generation: not_native")
        return None
    if call.want_body(MAX_REQUEST_BYTES, generation):
        return True
    body = call.body
    if not call.request_ended or call.body_bytes > MAX_REQUEST_BYTES:
        call.note(f"generation: {TOO_LARGE}")
        return None
    if body is None:
        return None
    wanted: Rewrite = treatment.rewrite
    encoding = call.head.values.get(b"grpc-encoding", b"")
    done = regenerated(
        b"".join(body), encoding, wanted.model, wanted.temperature, wanted.top_p, wanted.max_output_tokens
    )
    if done.reason:
        call.note(f"generation: {done.reason}")
        return None
    if call.payload is not None:  # the flight's own stay as they were asked
        call.payload = call.payload.with_generation(wanted.model, wanted.max_output_tokens or 0)
    return not call.replace_body(done.body)


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step | None:
    """The step for one agent; None where no variant asks for anything."""
    variants = [variant for split in state.splits for variant in split.variants]
    for one in variants:
        if one.model or (one.temperature, one.top_p, one.max_output_tokens) != (None, None, None):
            return generation
    return None
