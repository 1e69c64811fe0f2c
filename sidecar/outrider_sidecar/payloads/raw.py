"""Messages as bytes: exact caching, by policy's leave, of methods nobody here can read.

Always holds: two requests have one digest exactly when path, grpc-encoding and body are byte for byte the same. A
serializer that orders map entries differently from call to call therefore costs hits, never a wrong answer.

Deliberately not here: anything about what the bytes mean.
"""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_128_digest

from outrider.policy import Optimization
from outrider_sidecar.core.payload import (
    MAX_READ_BYTES,
    METHOD_NOT_LISTED,
    NO_MESSAGE,
    TOO_LARGE,
    TRUNCATED,
    ReplyFacts,
    RequestFacts,
)
from outrider_sidecar.payloads.wire import PREFIX_BYTES

_MAX_HEADS: Final = 1_024
_MAX_PATH_BYTES: Final = 1_024


class RawPayload:
    """The adapter of every method that has no other. `seed` is the process's secret (engines `cache_key`)."""

    __slots__ = ("_heads", "_seed", "name")

    def __init__(self, seed: int = 0):
        self._seed = seed
        self._heads: dict[bytes, bytes] = {}  # by path: what digests of bodies without an encoding begin with
        self.name = "raw"

    def request(self, path: bytes, encoding: bytes, body: bytes, policy: Optimization) -> RequestFacts:
        """Cacheable where policy lists the method."""
        if not listed(path, policy.cache_methods):
            return RequestFacts(False, METHOD_NOT_LISTED)
        if len(body) > MAX_READ_BYTES + PREFIX_BYTES:
            return RequestFacts(False, TOO_LARGE)
        head = self._heads.get(path) if not encoding else None
        if head is None:
            head = b"%d %d %b%b" % (len(path), len(encoding), path, encoding)
            if not encoding and len(self._heads) < _MAX_HEADS and len(path) <= _MAX_PATH_BYTES:
                self._heads[path] = head
        return RequestFacts(True, "", xxh3_128_digest(head + body, self._seed))

    def reply(self, encoding: bytes, body: bytes) -> ReplyFacts:
        """Complete when the body ends where a message does; a reply without a message is not worth keeping."""
        reader = RawReader()
        reader.feed(body)
        return reader.facts()

    def reader(self, encoding: bytes) -> RawReader:
        """Holds no message, whatever its size."""
        return RawReader()


class RawReader:
    """Follows the framing of a reply."""

    __slots__ = ("_messages", "_missing_bytes", "_prefix")

    def __init__(self) -> None:
        self._messages = 0
        self._missing_bytes = 0  # of the message that has begun
        self._prefix = b""  # of a message whose length is not whole yet

    def feed(self, data: bytes) -> None:
        """Count what begins and ends in these bytes."""
        at = self._missing_bytes
        if self._prefix:
            data = self._prefix + data
            self._prefix = b""
        size = len(data)
        while at + PREFIX_BYTES <= size:
            self._messages += 1
            at += PREFIX_BYTES + int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
        if at < size:
            self._prefix = data[at:]
            at = size
        self._missing_bytes = at - size

    def facts(self) -> ReplyFacts:
        """As of the bytes fed."""
        if self._missing_bytes or self._prefix:
            return ReplyFacts(False, False, TRUNCATED)
        if not self._messages:
            return ReplyFacts(True, False, NO_MESSAGE)
        return ReplyFacts(True, True)


def listed(path: bytes, methods: tuple[str, ...]) -> bool:
    """Whether "/pkg.Svc/Method" is in a list of such, or of "/pkg.Svc/*"."""
    if not methods:
        return False
    name = path.decode("ascii", "replace")
    return name in methods or name[: name.rfind("/") + 1] + "*" in methods
