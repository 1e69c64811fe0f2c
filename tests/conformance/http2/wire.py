"""Frames written byte by byte, legal or not, with nothing of ours in them: what a raw peer sends.

Always holds: a `Wire` holds one HPACK encoder (of the `hpack` library), so the blocks of one connection must be made in
the order they are sent; frame heads are packed here, because no library writes the broken ones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, PRIORITY_FLAG, ACK = 0x1, 0x4, 0x8, 0x20, 0x1
MAX_WINDOW = 2**31 - 1

NO_ERROR, PROTOCOL, INTERNAL, FLOW_CONTROL, SETTINGS_TIMEOUT, CLOSED, FRAME_SIZE = range(7)
REFUSED, CANCEL, COMPRESSION, CONNECT, CALM = range(7, 12)

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

Fields = Sequence[tuple[str | bytes, str | bytes]]


def raw(kind: int, flags: int, stream_id: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """Any frame; `length` may lie about the payload, and `stream_id` may have the reserved bit set."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def settings(values: Iterable[tuple[int, int]] | Mapping[int, int] = (), flags: int = 0, stream_id: int = 0) -> bytes:
    pairs = values.items() if isinstance(values, Mapping) else values
    return raw(SETTINGS, flags, stream_id, b"".join(struct.pack(">HI", key, value) for key, value in pairs))


def data(stream_id: int, payload: bytes = b"", end: bool = False, pad: int | None = None) -> bytes:
    flags = END_STREAM if end else 0
    if pad is not None:
        return raw(DATA, flags | PADDED, stream_id, bytes((pad,)) + payload + bytes(pad))
    return raw(DATA, flags, stream_id, payload)


def rst(stream_id: int, code: int = CANCEL) -> bytes:
    return raw(RST_STREAM, 0, stream_id, struct.pack(">I", code))


def window(stream_id: int, increment: int) -> bytes:
    return raw(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", increment))


def priority(stream_id: int, depends_on: int = 0, weight: int = 15) -> bytes:
    return raw(PRIORITY, 0, stream_id, struct.pack(">IB", depends_on, weight))


def ping(payload: bytes = b"01234567", ack: bool = False) -> bytes:
    return raw(PING, ACK if ack else 0, 0, payload)


def goaway(last_stream_id: int = 0, code: int = NO_ERROR, debug: bytes = b"") -> bytes:
    return raw(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + debug)


def continuation(stream_id: int, block: bytes = b"", last: bool = True) -> bytes:
    return raw(CONTINUATION, END_HEADERS if last else 0, stream_id, block)


def head(
    stream_id: int,
    block: bytes,
    end: bool = True,
    last: bool = True,
    pad: int | None = None,
    depends_on: int | None = None,
) -> bytes:
    """A HEADERS frame around a ready block."""
    flags = (END_STREAM if end else 0) | (END_HEADERS if last else 0)
    if depends_on is not None:
        flags |= PRIORITY_FLAG
        block = struct.pack(">IB", depends_on, 15) + block
    if pad is not None:
        flags |= PADDED
        block = bytes((pad,)) + block + bytes(pad)
    return raw(HEADERS, flags, stream_id, block)


class Wire:
    """One side's header blocks."""

    def __init__(self) -> None:
        self.encoder = Encoder()

    def block(self, fields: Fields) -> bytes:
        return self.encoder.encode(list(fields))

    def request(self, *more: tuple[str | bytes, str | bytes], path: str | bytes = "/echo") -> bytes:
        """The block of a well-formed request with more fields."""
        return self.block([*basic(path), *more])

    def open(self, stream_id: int = 1, *more: tuple[str, str], end: bool = False, path: str = "/echo") -> bytes:
        """HEADERS of a well-formed request."""
        return head(stream_id, self.request(*more, path=path), end)

    def response(self, stream_id: int = 1, *more: tuple[str, str], end: bool = False, status: str = "200") -> bytes:
        """HEADERS of a well-formed gRPC response."""
        return head(stream_id, self.block([(":status", status), ("content-type", "application/grpc"), *more]), end)

    def tail(self, stream_id: int = 1, *more: tuple[str, str], end: bool = True) -> bytes:
        """HEADERS of gRPC trailers."""
        return head(stream_id, self.block([("grpc-status", "0"), *more]), end)


def basic(path: str | bytes = "/echo") -> list[tuple[str | bytes, str | bytes]]:
    """The fields no request lacks."""
    return [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
