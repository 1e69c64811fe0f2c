"""What went wrong, as a gRPC status: one table from exceptions to statuses for all of the operator's API.

Always holds: a wrong field is INVALID_ARGUMENT, named in the text (`agents[0].optimization.cache_ttl: ...`) and, for
programs, in a `google.rpc.BadRequest` in `grpc-status-details-bin`. What nobody foresaw is INTERNAL, is logged with
its trace, and tells the caller nothing of it: such a text may quote anything.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.rpc import code_pb2, error_details_pb2, status_pb2

from outrider.policy import PolicyError
from outrider_control.state import failures
from outrider_control.state.agents import StaleVersion, UnknownAgent, UnknownVersion
from outrider_control.state.database import DatabaseError
from outrider_control.state.tokens import UnknownToken

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger(__name__)
_DETAILS: Final = "grpc-status-details-bin"
_TEXT_MAX_CHARS: Final = 2_000  # of `grpc-message`: header lists are bounded
# What mends by somebody's hand alone: to try again, or at another control plane of the store, is of no use.
_STANDING: Final = frozenset((failures.FULL, failures.READONLY, failures.CORRUPT, failures.FOREIGN, failures.SCHEMA))


class Invalid(ValueError):
    """A request that cannot be served: `field` is what is wrong in it, `reason` says why."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class NotFound(LookupError):
    """Something named in the request is not there; str() says what, and how to see what there is."""


class Unready(RuntimeError):
    """What is asked for cannot be done as things stand; str() says why, and what can."""


class Exhausted(RuntimeError):
    """A bound of the control plane is reached; str() says which, and what to do."""


async def answer(context: Context, reply: Awaitable[T]) -> T:
    """The reply, or the call ended with the status of what went wrong."""
    try:
        return await reply
    except Exception as error:  # noqa: BLE001 - everything gets a status
        return await _abort(context, error)


async def answer_stream(context: Context, replies: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The replies one by one; a call that ends early, for whatever reason, ends the generator."""
    async with contextlib.aclosing(replies):
        try:
            async for reply in replies:
                yield reply
        except Exception as error:  # noqa: BLE001 - everything gets a status
            await _abort(context, error)


async def _abort(context: Context, error: Exception) -> Any:
    if isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError):
        raise error
    code, text = status_of(error)
    trailers: tuple[tuple[str, bytes], ...] = ()
    field = error.path if isinstance(error, PolicyError) else error.field if isinstance(error, Invalid) else ""
    if field:
        trailers = ((_DETAILS, _bad_request(field, text)),)
    await context.abort(code, text, trailers)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and the text for the caller."""
    match error:
        case PolicyError() | Invalid():
            code, text = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case UnknownAgent() | UnknownVersion() | UnknownToken() | NotFound():
            code, text = grpc.StatusCode.NOT_FOUND, str(error)
        case StaleVersion():
            code, text = grpc.StatusCode.ABORTED, _stale(error)
        case Unready():
            code, text = grpc.StatusCode.FAILED_PRECONDITION, str(error)
        case Exhausted():
            code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        case DatabaseError() if error.code in _STANDING:
            code, text = grpc.StatusCode.FAILED_PRECONDITION, str(error)
        case DatabaseError():
            code, text = grpc.StatusCode.UNAVAILABLE, str(error)
        case _:
            _log.error("a call failed: %s", error, exc_info=error)
            code, text = grpc.StatusCode.INTERNAL, f"the control plane failed ({type(error).__name__}): see its log"
    return code, printable(text)


def printable(text: str) -> str:
    """A text that a status may carry: one line, bounded."""
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_MAX_CHARS else f"{line[: _TEXT_MAX_CHARS - 3]}..."


def _stale(error: StaleVersion) -> str:
    agent_id, expected, actual = error.agent_id, error.expected, error.actual
    if not expected:
        return f"agent {agent_id!r} exists already, at version {actual}: get it, and apply with that version"
    if not actual:
        return f"agent {agent_id!r} does not exist; version {expected} was expected: apply without a version"
    return (
        f"agent {agent_id!r} is at version {actual}, the change is based on {expected}: "
        "get it again, redo the change, apply"
    )


def _bad_request(field: str, text: str) -> bytes:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field=printable(field), description=text.removeprefix(f"{field}: ")
    )
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=text)
    status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return status.SerializeToString()
