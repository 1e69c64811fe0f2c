"""gRPC message framing and compression, as far as adapters need to look inside.

Always holds: `Unreadable` with a reason of `core.payload` is the only error; at most `max_bytes` of a message are ever
held or decompressed, whatever its length prefix or compression ratio claims.

Deliberately not here: writing frames; stream encodings other than gzip, deflate and identity.
"""

from __future__ import annotations

import zlib
from typing import Final

from outrider_sidecar.core.payload import MALFORMED, MAX_READ_BYTES, NOT_ONE_MESSAGE, TOO_LARGE, TRUNCATED
from outrider_sidecar.core.payload import UNKNOWN_ENCODING as UNKNOWN

PREFIX_BYTES: Final = 5  # compression flag, 4 bytes of length
_WBITS: Final = {b"gzip": 31, b"deflate": 15}


class Unreadable(Exception):
    """The message cannot be read; `reason` is one of `core.payload`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def one_message(body: bytes, encoding: bytes, max_bytes: int = MAX_READ_BYTES) -> bytes:
    """The message of a body that holds exactly one."""
    size = len(body) - PREFIX_BYTES
    if size < 0:
        raise Unreadable(TRUNCATED if body else NOT_ONE_MESSAGE)
    length = int.from_bytes(body[1:PREFIX_BYTES], "big")
    if length != size:
        raise Unreadable(NOT_ONE_MESSAGE if length < size else TRUNCATED)
    if size > max_bytes:
        raise Unreadable(TOO_LARGE)
    return _plain(body[0], body[PREFIX_BYTES:], encoding, max_bytes)


class Deframer:
    """Cuts a body that comes in pieces into messages.

    After the first message that cannot be read `reason` says why, and nothing more is read or held.
    """

    __slots__ = ("_encoding", "_held", "_max_bytes", "_needed_bytes", "reason")

    def __init__(self, encoding: bytes, max_bytes: int = MAX_READ_BYTES):
        self._encoding = encoding
        self._held = bytearray()
        self._max_bytes = max_bytes
        self._needed_bytes = PREFIX_BYTES  # to be held before there is anything to do
        self.reason = ""

    @property
    def between_messages(self) -> bool:
        """The body may end here."""
        return not self._held and not self.reason

    def feed(self, data: bytes) -> list[bytes]:
        """The messages completed by these bytes."""
        if self.reason:
            return []
        if self._held or len(data) < PREFIX_BYTES:
            self._held += data
            if len(self._held) < self._needed_bytes:
                return []
            data = bytes(self._held)
            self._held.clear()
        found: list[bytes] = []
        try:
            at = self._cut(data, found)
        except Unreadable as error:
            self.reason = error.reason
            return found
        if at < len(data):
            self._held += data[at:]
        return found

    def _cut(self, data: bytes, found: list[bytes]) -> int:
        at = 0
        size = len(data)
        self._needed_bytes = PREFIX_BYTES
        while size - at >= PREFIX_BYTES:
            start = at + PREFIX_BYTES
            length = int.from_bytes(data[at + 1 : start], "big")
            if length > self._max_bytes:
                raise Unreadable(TOO_LARGE)
            end = start + length
            if end > size:
                self._needed_bytes = PREFIX_BYTES + length
                break
            found.append(_plain(data[at], data[start:end], self._encoding, self._max_bytes))
            at = end
        return at


def _plain(flag: int, message: bytes, encoding: bytes, max_bytes: int) -> bytes:
    if flag == 0:
        return message
    if flag != 1:
        raise Unreadable(MALFORMED)
    wbits = _WBITS.get(encoding)
    if wbits is None:
        raise Unreadable(UNKNOWN)
    inflater = zlib.decompressobj(wbits)
    try:
        plain = inflater.decompress(message, max_bytes + 1)
    except zlib.error as error:
        raise Unreadable(MALFORMED) from error
    if len(plain) > max_bytes:
        raise Unreadable(TOO_LARGE)
    if not inflater.eof or inflater.unused_data:
        raise Unreadable(MALFORMED)
    return plain
