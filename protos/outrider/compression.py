"""A context to be compressed by the local sidecar: the request it becomes, and what came back.

Always holds: pure; identity is filled in as it is for calls. Deliberately not here: sending it (`client`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from outrider.identity import Caller
from outrider.v1 import agent_pb2, sidecar_pb2

_Pairs = list[tuple[str, str | bytes]]


class CompressAsked(TypedDict, total=False):
    """How it is to be compressed; left out: as the agent's policy says."""

    token_budget: int  # at most so many tokens, as far as can be
    mode: str  # "off", "lossless" or "lossy"
    model: str  # whose vocabulary counts
    agent_id: str  # whose policy holds
    session_id: str  # what was compressed once in it stays byte for byte
    tenant_id: str  # who alone may fetch originals


@dataclass(frozen=True, slots=True)
class CompressedBlock:
    """One block that is smaller, or gone."""

    path: str  # "messages[3].parts[0]", "context[1].parts[0]"
    kind: str  # "json", "log", "html", ...
    compressor: str  # with its version: "columns/1"
    tokens_before: int
    tokens_after: int
    reversible: bool
    handle: str = ""  # for `fetch_original`


@dataclass(frozen=True, slots=True)
class Compressed:
    """A context in fewer tokens."""

    messages: tuple[agent_pb2.Message, ...]
    context: tuple[agent_pb2.ContextBlock, ...]
    tokens_before: int
    tokens_after: int
    exact: bool  # whether the counts are a vocabulary's, not an estimate
    blocks: tuple[CompressedBlock, ...]
    notes: tuple[str, ...]  # what was not done, and why

    @property
    def tokens_saved(self) -> int:
        return self.tokens_before - self.tokens_after


def request_of(
    caller: Caller,
    messages: Sequence[agent_pb2.Message],
    context: Sequence[agent_pb2.ContextBlock],
    asked: CompressAsked,
) -> tuple[sidecar_pb2.CompressRequest, _Pairs]:
    """The request, and metadata that say the same of identity."""
    message = sidecar_pb2.CompressRequest(messages=messages, context=context, **asked)
    return message, caller.identify(message)


def handle_request_of(caller: Caller, handle: str, tenant_id: str) -> tuple[sidecar_pb2.FetchOriginalRequest, _Pairs]:
    """The request, and metadata that say the same of the tenant."""
    message = sidecar_pb2.FetchOriginalRequest(handle=handle, tenant_id=tenant_id)
    return message, caller.identify(message)


def compressed_of(reply: sidecar_pb2.CompressReply) -> Compressed:
    """The reply, typed."""
    return Compressed(
        tuple(reply.messages),
        tuple(reply.context),
        reply.tokens_before,
        reply.tokens_after,
        reply.exact,
        tuple(
            [
                CompressedBlock(
                    one.path,
                    one.kind,
                    one.compressor,
                    one.tokens_before,
                    one.tokens_after,
                    one.reversible,
                    one.handle,
                )
                for one in reply.blocks
            ]
        ),
        tuple(reply.notes),
    )
