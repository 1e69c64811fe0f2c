"""What comes back from a call besides its content: who answered it and how, or why it failed.

Always holds: every failed call of the client raises an OutriderError; its class says what a caller may do about it, its
`info` is as complete as what arrived. Names of metadata stand here and nowhere else in the client.

Deliberately not here: making calls (`client`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import grpc

from outrider.v1 import agent_pb2

AGENT = "x-agent-id"
SESSION = "x-session-id"
USER = "x-user-id"
TENANT = "x-tenant-id"
PRIORITY = "x-priority"
CACHE_CONTROL = "x-cache-control"
VARIANT = "x-outrider-variant"
_CALL_ID = "x-outrider-call-id"
_TRACE_ID = "x-outrider-trace-id"
_CACHE = "x-outrider-cache"
_ENDPOINT = "x-outrider-endpoint"
_TOKENS_SAVED = "x-outrider-tokens-saved"
_PUSHBACK = "grpc-retry-pushback-ms"

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What the mesh says about one call. A field the mesh did not send is empty."""

    call_id: str = ""  # feedback refers to it
    trace_id: str = ""
    cache: str = ""  # hit, stale, miss, coalesced or bypass
    variant: str = ""
    endpoint: str = ""
    tokens_saved: int = 0
    retry_pushback_ms: int | None = None  # wait at least this long before the next try; below 0: do not try again
    metadata: tuple[tuple[str, str | bytes], ...] = ()  # initial metadata and trailers, as they came

    @property
    def is_from_cache(self) -> bool:
        """Whether no agent worked for this call alone."""
        return self.cache in ("hit", "stale", "coalesced")


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer and what the mesh says about it."""

    message: agent_pb2.InvokeReply
    info: CallInfo

    @property
    def text(self) -> str:
        """All text parts, one after the other."""
        return "".join(part.text for part in self.message.parts)


class OutriderError(Exception):
    """A call that failed, with its gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str, info: CallInfo | None = None):
        super().__init__(f"{code.name}: {details}" if details else code.name)
        self.code = code
        self.details = details
        self.info = info or CallInfo()


class Unavailable(OutriderError):
    """Nobody could take the call: no sidecar, or no endpoint. Trying again later may help."""


class DeadlineExceeded(OutriderError):
    """The time given to the call is over."""


class Cancelled(OutriderError):
    """The call was cancelled, by the caller or by whoever answered it."""


class NotFound(OutriderError):
    """The mesh knows no such agent, or the agent does not know what was asked for."""


class Overloaded(OutriderError):
    """A limit is reached: the call was shed. `info.retry_pushback_ms` says when to try again, where it is known."""


class InvalidRequest(OutriderError):
    """The request is wrong; it stays wrong however often it is sent."""


class NotPermitted(OutriderError):
    """The caller is not known or may not do this."""


class IncompleteReply(OutriderError):
    """A stream that ended without saying why."""


class BudgetExhausted(OutriderError):
    """A call of `invoke_many` that was not started, or was cancelled, because the budget was used up."""


_CLASSES: dict[grpc.StatusCode, type[OutriderError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.PERMISSION_DENIED: NotPermitted,
    grpc.StatusCode.UNAUTHENTICATED: NotPermitted,
}


def error_of(code: grpc.StatusCode, details: str | None, info: CallInfo) -> OutriderError:
    """The error for a status."""
    return _CLASSES.get(code, OutriderError)(code, details or "", info)


def info_of(initial: Metadata | None, trailing: Metadata | None) -> CallInfo:
    """What the metadata of a call say; of a name that comes twice the last value counts."""
    pairs = (*_pairs(initial), *_pairs(trailing))
    values = {name: value for name, value in pairs if isinstance(value, str)}
    return CallInfo(
        call_id=values.get(_CALL_ID, ""),
        trace_id=values.get(_TRACE_ID, ""),
        cache=values.get(_CACHE, ""),
        variant=values.get(VARIANT, ""),
        endpoint=values.get(_ENDPOINT, ""),
        tokens_saved=_number(values.get(_TOKENS_SAVED)) or 0,
        retry_pushback_ms=_number(values.get(_PUSHBACK)),
        metadata=pairs,
    )


def _pairs(metadata: Metadata | None) -> Iterator[tuple[str, str | bytes]]:
    yield from metadata or ()  # grpc.aio's Metadata iterate as pairs, grpcio's are pairs


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None
