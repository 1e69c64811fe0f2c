"""What a feature may know about a message without knowing its format: facts, and the adapter that reads them.

Always holds: an adapter never raises on what a peer sent, never changes a message, and reads at most 1 MB of one;
where it cannot read it steps aside with a reason out of a small, fixed set, fit for a span and a metric. Everything
in `RequestFacts.digest` decides the answer, and nothing else is in it: identity is the key's business (engines
`cache_key`), trace metadata nobody's.

Deliberately not here: adapters (`payloads`), who may see a cached reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from outrider.policy import Optimization

MAX_READ_BYTES: Final = 1024 * 1024  # of one message, decompressed

# Why an adapter steps aside or a reply is not kept. Adapters use no other words.
TOO_LARGE: Final = "too_large"
TRUNCATED: Final = "truncated"  # gRPC framing ends within a message
MALFORMED: Final = "malformed"
UNKNOWN_ENCODING: Final = "unknown_encoding"
NOT_ONE_MESSAGE: Final = "not_one_message"
METHOD_NOT_LISTED: Final = "method_not_listed"
SAMPLED: Final = "sampled"  # temperature above 0 without `cache_sampled`
SIDE_EFFECTS: Final = "side_effects"
UNDIGESTED_LINK: Final = "undigested_link"  # what the link leads to may change
TOO_MANY_TAGS: Final = "too_many_tags"
INCOMPLETE: Final = "incomplete"
NO_MESSAGE: Final = "no_message"
FINISH: Final = "finish"  # cut, filtered, refused or failed


@dataclass(slots=True)
class RequestFacts:
    """What is known about a request. Identity fields are what the message says; metadata beats them."""

    cacheable: bool
    reason: str = ""  # why not
    digest: bytes = b""  # 16 bytes; empty where not cacheable
    tier: str = "raw"  # "llm", "tool" or "raw"
    tags: tuple[str, ...] = ()  # names to purge the reply by
    read_only_tools: frozenset[str] = frozenset()  # tools whose calls change nothing
    agent_id: str = ""
    session_id: str = ""
    user_id: str = ""
    tenant_id: str = ""
    priority: int = 0  # outrider.v1.Priority
    model: str = ""  # asked for
    stream: bool = False
    max_output_tokens: int = 0  # the most the reply may have; 0: not bounded, or not known


@dataclass(slots=True)
class ReplyFacts:
    """What is known about a reply that ended with status OK. 0 tokens: none, or not known."""

    complete: bool  # whole messages, and an end that the format recognises
    cacheable: bool
    reason: str = ""  # why not
    tools: tuple[str, ...] = ()  # names of the tools it calls
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    model: str = ""  # that answered
    finish_reason: str = ""  # lower case, as gen_ai.response.finish_reasons has it


class ReplyReader(Protocol):
    """Reads a reply as it passes, holding at most one message."""

    def feed(self, data: bytes) -> None:
        """DATA payload as received, cut anywhere."""
        ...

    def facts(self) -> ReplyFacts:
        """What is known so far: final once the stream has ended."""
        ...


class Payload(Protocol):
    """One format of messages. `encoding` is the value of `grpc-encoding`, empty where there is none."""

    name: str

    def request(self, path: bytes, encoding: bytes, body: bytes, policy: Optimization) -> RequestFacts:
        """Facts of a whole request body, gRPC framing included."""
        ...

    def reply(self, encoding: bytes, body: bytes) -> ReplyFacts:
        """Facts of a whole reply body: all DATA joined."""
        ...

    def reader(self, encoding: bytes) -> ReplyReader:
        """For a reply that is not held."""
        ...


def why_not_stored(request: RequestFacts, reply: ReplyFacts) -> str:
    """Why the reply must not be kept for other callers; empty when it may be."""
    if not request.cacheable:
        return request.reason
    if not reply.complete:
        return reply.reason or INCOMPLETE
    if not reply.cacheable:
        return reply.reason
    for tool in reply.tools:
        if tool not in request.read_only_tools:
            return SIDE_EFFECTS
    return ""
