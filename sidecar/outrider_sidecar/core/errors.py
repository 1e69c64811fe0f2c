"""gRPC statuses: the one table of numbers and names, HTTP mapping, and ready-made error heads.

Always holds: a message put into `grpc-message` is percent-encoded, bounded, and says who speaks and what is wrong.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from outrider.policy import STATUSES
from outrider_http2 import frames
from outrider_http2.head import Head
from outrider_http2.hpack import literal

OK: Final = 0
CANCELLED: Final = 1
UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
ALREADY_EXISTS: Final = 6
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
ABORTED: Final = 10
OUT_OF_RANGE: Final = 11
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
DATA_LOSS: Final = 15
UNAUTHENTICATED: Final = 16

NAMES: Final = STATUSES
NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}

_CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
_MAX_MESSAGE_BYTES: Final = 1_024
_KNOWN: Final = {b"%d" % number: number for number in range(17)}

# Trailers-only answers and trailers, one a status; the message is a literal beside it.
ERROR_HEADS: Final = tuple(Head((_CONTENT_TYPE, (b"grpc-status", b"%d" % n)), status=200) for n in range(17))
ERROR_TAILS: Final = tuple(Head(((b"grpc-status", b"%d" % n),)) for n in range(17))
REPLY_HEAD: Final = Head((_CONTENT_TYPE,), status=200)
UNSUPPORTED_MEDIA: Final = Head(((b"accept-post", b"application/grpc"),), status=415)


def status_of(head: Head) -> int:
    """The gRPC status in trailers (or a trailers-only head); UNKNOWN when it is missing or malformed."""
    return _KNOWN.get(head.values.get(b"grpc-status", b""), UNKNOWN)


def from_http(status: int) -> int:
    """gRPC status of an HTTP status without `grpc-status` (gRPC's http-grpc-status-mapping)."""
    if status in (429, 502, 503, 504):
        return UNAVAILABLE
    return {400: INTERNAL, 401: UNAUTHENTICATED, 403: PERMISSION_DENIED, 404: UNIMPLEMENTED}.get(status, UNKNOWN)


def from_reset(code: int) -> int:
    """gRPC status of a stream the peer reset with this HTTP/2 error code (gRPC over HTTP/2, 'Errors')."""
    return {
        frames.REFUSED_STREAM: UNAVAILABLE,
        frames.CANCEL: CANCELLED,
        frames.CONNECT_ERROR: UNAVAILABLE,
        frames.ENHANCE_YOUR_CALM: RESOURCE_EXHAUSTED,
        frames.INADEQUATE_SECURITY: PERMISSION_DENIED,
    }.get(code, INTERNAL)


def encode_message(text: str) -> bytes:
    """Percent-encode a `grpc-message` as gRPC over HTTP/2 says: printable ASCII but `%` stays as it is."""
    raw = text.encode("utf-8", "replace")[:_MAX_MESSAGE_BYTES]
    return b"".join([bytes((b,)) if 0x20 <= b <= 0x7E and b != 0x25 else b"%%%02X" % b for b in raw]).strip(b" ")


def decode_message(raw: bytes) -> str:
    """The text of a received `grpc-message`, bounded; broken escapes stay as they are, as the same page asks."""
    return unquote(raw[: 3 * _MAX_MESSAGE_BYTES].decode("ascii", "replace"), errors="replace")[:_MAX_MESSAGE_BYTES]


def message_literal(text: str) -> bytes:
    """The `grpc-message` field as a literal for any header block."""
    return literal(b"grpc-message", encode_message(text))
