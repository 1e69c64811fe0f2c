"""`streaming: false`: a native stream is answered as one chunk that carries the whole content.

Always holds: the chunks that leave, put together, say what the chunks that came say, in the same order. An InvokeChunk
carries pieces of one part only, so a reply of several parts is answered by one chunk a part, all at once, the last one
with `finish`; that is the fewest the contract allows. A part that comes whole (`delta.part`) and a chunk with fields of
a newer contract are never joined with others. Up to MAX_HELD_BYTES are held. Past that, and from the first message
on that is compressed, unreadable or follows the last one, everything is relayed as it comes, after what was held.

Deliberately not here: unary calls, decompression, the choice of calls (filter `payload`).
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.payloads.wire import PREFIX_BYTES

MAX_HELD_BYTES = 4 * 1024 * 1024  # of one reply


class Joiner:
    """The stage of one call's reply."""

    __slots__ = ("_chunk", "_finished", "_held_bytes", "_joined", "_kind", "_pieces", "_relays", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()  # what has come of the next message
        self._joined = bytearray()  # framed chunks nothing can be added to
        self._chunk: pb.InvokeChunk | None = None  # the one that is being added to
        self._kind: str | None = None  # of its delta
        self._pieces = bytearray()  # its text so far, UTF-8
        self._held_bytes = 0
        self._finished = False
        self._relays = False

    def head(self, head: object) -> None:
        """Initial metadata says nothing about messages."""

    def feed(self, data: bytes) -> bytes:
        """Holds everything back, until it has to relay."""
        if self._relays:
            return data
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= PREFIX_BYTES:
            start = at + PREFIX_BYTES
            end = start + int.from_bytes(rest[at + 1 : start], "big")
            if rest[at] or self._held_bytes + end - at > MAX_HELD_BYTES:
                return self._relay_from(at)
            if end > len(rest):
                break
            if not self._take(bytes(rest[start:end])):
                return self._relay_from(at)
            self._held_bytes += end - at
            at = end
        if at:
            del rest[:at]
        return b""

    def flush(self, status: int) -> bytes:
        """All there is, also where the stream failed or broke off."""
        return b"" if self._relays else self._relay_from(0)

    def _relay_from(self, at: int) -> bytes:
        self._relays = True
        self._close()
        data = bytes(self._joined + self._rest[at:])
        self._joined.clear()
        self._rest.clear()
        return data

    def _take(self, message: bytes) -> bool:
        """Join one message to what is held; False when it has to be relayed."""
        if self._finished:
            return False
        try:
            chunk = pb.InvokeChunk.FromString(message)
        except DecodeError:
            return False
        self._finished = chunk.HasField("finish")
        if _is_newer(chunk):
            self._close()
            self._joined += _framed(message)
            return True
        kind = chunk.WhichOneof("delta")
        held = self._chunk
        if held is None or (self._kind is None and kind is not None):
            self._begin(chunk, kind)
        elif kind is None or self._continues(held, chunk, kind):
            self._add(held, chunk, kind)
        else:
            self._close()
            self._begin(chunk, kind)
        return True

    def _continues(self, held: pb.InvokeChunk, chunk: pb.InvokeChunk, kind: str) -> bool:
        if kind != self._kind or chunk.part_index != held.part_index or kind == "part":
            return False
        if kind == "tool_call":
            more = chunk.tool_call
            return more.call_id in ("", held.tool_call.call_id) and more.name in ("", held.tool_call.name)
        return kind != "reasoning" or not (held.reasoning.signature and chunk.reasoning.signature)

    def _begin(self, chunk: pb.InvokeChunk, kind: str | None) -> None:
        self._chunk = chunk
        self._kind = kind
        self._pieces += _text_of(chunk, kind).encode()

    def _add(self, held: pb.InvokeChunk, chunk: pb.InvokeChunk, kind: str | None) -> None:
        self._pieces += _text_of(chunk, kind).encode()
        if kind == "reasoning" and chunk.reasoning.signature:
            held.reasoning.signature = chunk.reasoning.signature
        if chunk.HasField("finish"):
            held.finish.CopyFrom(chunk.finish)

    def _close(self) -> None:
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            return
        text = self._pieces.decode()
        self._pieces.clear()
        if self._kind == "text":
            chunk.text = text
        elif self._kind == "json":
            chunk.json = text
        elif self._kind == "tool_call":
            chunk.tool_call.arguments_json = text
        elif self._kind == "reasoning":
            chunk.reasoning.text = text
        self._joined += _framed(chunk.SerializeToString())


def _text_of(chunk: pb.InvokeChunk, kind: str | None) -> str:
    """The text that a delta adds."""
    if kind == "text":
        return chunk.text
    if kind == "json":
        return chunk.json
    if kind == "tool_call":
        return chunk.tool_call.arguments_json
    return chunk.reasoning.text if kind == "reasoning" else ""


def _is_newer(chunk: pb.InvokeChunk) -> bool:
    """Whether it has fields this contract does not know, where joining could lose them."""
    if len(UnknownFieldSet(chunk)):
        return True
    if chunk.HasField("tool_call"):
        return bool(len(UnknownFieldSet(chunk.tool_call)))
    return chunk.HasField("reasoning") and bool(len(UnknownFieldSet(chunk.reasoning)))


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message
