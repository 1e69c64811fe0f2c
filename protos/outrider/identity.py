"""On whose behalf a call is made: fills it into the message and mirrors it into metadata.

Always holds: message and metadata say the same; the caller's own message is never changed. The experiment variant a
session was assigned is echoed in its later calls, so that another sidecar keeps it too.

Deliberately not here: making calls (`client`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import grpc

from outrider import reply
from outrider.reply import CallInfo, InvalidRequest, Metadata
from outrider.v1 import agent_pb2

Request = str | agent_pb2.InvokeRequest  # a text is one message of the user

_FIELDS = (
    ("agent_id", reply.AGENT),
    ("session_id", reply.SESSION),
    ("user_id", reply.USER),
    ("tenant_id", reply.TENANT),
)
_MAX_SESSIONS = 10_000  # remembered with their variant, least recently used first out


@dataclass(frozen=True, slots=True)
class Identity:
    """What a client says of its calls where a request says nothing. Empty: nothing is said."""

    agent_id: str = ""
    session_id: str = ""
    user_id: str = ""
    tenant_id: str = ""
    priority: agent_pb2.Priority.ValueType = agent_pb2.PRIORITY_UNSPECIFIED


class Caller:
    """Prepares calls of one client; safe to use from several threads."""

    __slots__ = ("_identity", "_lock", "_metadata", "_variants")

    def __init__(self, identity: Identity, metadata: Metadata):
        self._identity = identity
        self._metadata = tuple(metadata)
        self._variants: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(
        self, request: Request, cache_control: str, metadata: Metadata
    ) -> tuple[agent_pb2.InvokeRequest, list[tuple[str, str | bytes]]]:
        """The message to send, identity filled in, and the metadata to send with it."""
        message = agent_pb2.InvokeRequest()
        if isinstance(request, str):
            message.messages.add(role=agent_pb2.ROLE_USER).parts.add(text=request)
        else:
            message.CopyFrom(request)
        pairs = self.identify(message)
        message.priority = message.priority or self._identity.priority
        if message.priority:
            pairs.append((reply.PRIORITY, priority_name(message.priority)))
        if cache_control:
            pairs.append((reply.CACHE_CONTROL, _sendable(cache_control, "cache_control")))
        given = (*self._metadata, *metadata)
        variant = self._variant_of(message)
        if variant and not any(name == reply.VARIANT for name, _ in given):
            pairs.append((reply.VARIANT, variant))
        return message, [*pairs, *given]

    def identify(self, message: Any) -> list[tuple[str, str | bytes]]:
        """Fill identity into those of its fields that the message has; the metadata that say the same."""
        pairs: list[tuple[str, str | bytes]] = []
        known = message.DESCRIPTOR.fields_by_name
        for field, name in _FIELDS:
            value = (getattr(message, field) or getattr(self._identity, field)) if field in known else ""
            if value:
                setattr(message, field, value)
                pairs.append((name, _sendable(value, field)))
        return pairs

    def learn(self, message: agent_pb2.InvokeRequest, info: CallInfo) -> None:
        """Remember the variant that the session of this call was assigned."""
        if not info.variant or not message.session_id:
            return
        key = (message.agent_id, message.session_id)
        with self._lock:
            self._variants[key] = info.variant
            self._variants.move_to_end(key)
            if len(self._variants) > _MAX_SESSIONS:
                self._variants.popitem(last=False)

    def _variant_of(self, message: agent_pb2.InvokeRequest) -> str:
        if not message.session_id:
            return ""
        key = (message.agent_id, message.session_id)
        with self._lock:
            variant = self._variants.get(key, "")
            if variant:
                self._variants.move_to_end(key)
        return variant


def priority_name(priority: agent_pb2.Priority.ValueType) -> str:
    """The word of a priority in metadata: `high` for PRIORITY_HIGH."""
    try:
        return agent_pb2.Priority.Name(priority).removeprefix("PRIORITY_").lower()
    except ValueError:
        raise InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, f"priority: {priority} is not a priority") from None


def _sendable(value: str, field: str) -> str:
    """Metadata hold printable ASCII; what they would lose is refused here rather than on the way."""
    if not value.isascii() or not value.isprintable() or value != value.strip():
        reason = f"{field}: {value[:60]!r} is not printable ASCII without spaces around it, as metadata need"
        raise InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, reason)
    return value
