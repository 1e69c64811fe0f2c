"""What a feature may know about a message without knowing its format: facts, and the adapter that reads them.

Always holds: an adapter never raises on what a peer sent, never changes a message, and reads at most 1 MB of one;
where it cannot read it steps aside with a reason out of a small, fixed set, fit for a span and a metric. Everything
in `RequestFacts.digest` decides the answer, and nothing else is in it: identity is the key's business (engines
`cache_key`), trace metadata nobody's.

Deliberately not here: adapters (`payloads`), who may see a cached reply.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

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

_NO_TOOLS: Final[frozenset[str]] = frozenset()
_REPLY_FIELDS: Final = (
    *("complete", "cacheable", "reason", "tools", "input_tokens", "output_tokens"),
    *("cache_read_tokens", "cache_write_tokens", "model", "finish_reason"),
)
_REQUEST_FIELDS: Final = (
    *("cacheable", "reason", "digest", "tier", "tags", "read_only_tools", "agent_id", "session_id", "user_id"),
    *("tenant_id", "priority", "model", "stream", "max_output_tokens"),
)


class RequestFacts:
    """What is known about a request. Identity fields are what the message says; metadata beats them.

    A plain class: a compiled one costs a third of a dataclass to make and to read, and there is one per call.
    """

    __slots__ = (
        "agent_id",
        "cacheable",
        "digest",
        "max_output_tokens",
        "model",
        "priority",
        "read_only_tools",
        "reason",
        "session_id",
        "stream",
        "tags",
        "tenant_id",
        "tier",
        "user_id",
    )

    def __init__(
        self,
        cacheable: bool,
        reason: str = "",
        digest: bytes = b"",
        tier: str = "raw",
        tags: tuple[str, ...] = (),
        read_only_tools: frozenset[str] = _NO_TOOLS,
        agent_id: str = "",
        session_id: str = "",
        user_id: str = "",
        tenant_id: str = "",
        priority: int = 0,
        model: str = "",
        stream: bool = False,
        max_output_tokens: int = 0,
    ):
        self.cacheable = cacheable
        self.reason = reason  # why not
        self.digest = digest  # 16 bytes; empty where not cacheable
        self.tier = tier  # "llm", "tool" or "raw"
        self.tags = tags  # names to purge the reply by
        self.read_only_tools = read_only_tools  # tools whose calls change nothing
        self.agent_id = agent_id
        self.session_id = session_id
        self.user_id = user_id
        self.tenant_id = tenant_id
        self.priority = priority  # outrider.v1.Priority
        self.model = model  # asked for
        self.stream = stream
        self.max_output_tokens = max_output_tokens  # the most the reply may have; 0: not bounded, or not known

    def with_generation(self, model: str, max_output_tokens: int) -> RequestFacts:
        """The same of a request that asks for another model or bound; empty and 0: as it asked."""
        return RequestFacts(
            self.cacheable,
            self.reason,
            self.digest,
            self.tier,
            self.tags,
            self.read_only_tools,
            self.agent_id,
            self.session_id,
            self.user_id,
            self.tenant_id,
            self.priority,
            model or self.model,
            self.stream,
            max_output_tokens or self.max_output_tokens,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestFacts) and _fields(self) == _fields(other)

    def __repr__(self) -> str:
        return f"RequestFacts({_fields(self)})"


class ReplyFacts:
    """What is known about a reply that ended with status OK. 0 tokens: none, or not known."""

    __slots__ = (
        "cache_read_tokens",
        "cache_write_tokens",
        "cacheable",
        "complete",
        "finish_reason",
        "input_tokens",
        "model",
        "output_tokens",
        "reason",
        "tools",
    )

    def __init__(
        self,
        complete: bool,
        cacheable: bool,
        reason: str = "",
        tools: tuple[str, ...] = (),
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        model: str = "",
        finish_reason: str = "",
    ):
        self.complete = complete  # whole messages, and an end that the format recognises
        self.cacheable = cacheable
        self.reason = reason  # why not
        self.tools = tools  # names of the tools it calls
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.cache_read_tokens = cache_read_tokens
        self.cache_write_tokens = cache_write_tokens
        self.model = model  # that answered
        self.finish_reason = finish_reason  # lower case, as gen_ai.response.finish_reasons has it

    def cut(self, reason: str) -> ReplyFacts:
        """The same of a reply that is not whole."""
        return ReplyFacts(
            False,
            False,
            reason,
            self.tools,
            self.input_tokens,
            self.output_tokens,
            self.cache_read_tokens,
            self.cache_write_tokens,
            self.model,
            self.finish_reason,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReplyFacts) and _fields(self) == _fields(other)

    def __repr__(self) -> str:
        return f"ReplyFacts({_fields(self)})"


def _fields(facts: RequestFacts | ReplyFacts) -> dict[str, Any]:
    """For tests and people."""
    names = _REPLY_FIELDS if isinstance(facts, ReplyFacts) else _REQUEST_FIELDS
    return {name: getattr(facts, name) for name in names}


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
