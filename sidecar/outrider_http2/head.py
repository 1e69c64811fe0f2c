"""Header blocks as shared objects: what repeats is one interned `Head`, what is unique per call is its `Rest`.

Always holds: a `Head` never changes, and equal heads of one `Heads` are one object while it is remembered, so
everything derived from a head (its encoding, the route it takes) can be memoised by identity. A `Rest` holds the
fields whose values differ from call to call; all but the owned ones are ready to be appended to any block.

Deliberately not here: what the fields mean.
"""

from __future__ import annotations

from typing import Final

from outrider_http2.fields import check_values, content_length, request_parts, response_parts, trailer_parts
from outrider_http2.hpack import literal

Fields = tuple[tuple[bytes, bytes], ...]

# Fields whose values are (nearly) unique per call: kept out of heads so that heads repeat.
VOLATILE: Final = frozenset(
    {
        b"content-length",
        b"date",
        b"endpoint-load-metrics-bin",
        b"grpc-message",
        b"grpc-retry-pushback-ms",
        b"grpc-status-details-bin",
        b"grpc-timeout",
        b"grpc-trace-bin",
        b"idempotency-key",
        b"traceparent",
        b"tracestate",
        b"x-envoy-expected-rq-timeout-ms",
        b"x-outrider-call-id",
        b"x-outrider-prompt-version",
        b"x-outrider-trace-id",
        b"x-outrider-variant",
        b"x-request-id",
        b"x-session-id",
    }
)


class Head:
    """The repeating part of a header block: trailers have status 0, requests the four pseudo-headers."""

    __slots__ = ("authority", "fields", "method", "path", "path_text", "scheme", "status", "values")

    def __init__(
        self,
        fields: Fields,
        method: bytes = b"",
        scheme: bytes = b"",
        authority: bytes = b"",
        path: bytes = b"",
        status: int = 0,
    ):
        self.fields = fields  # regular fields, in order
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.path = path
        self.path_text = path.decode("ascii", "replace")
        self.status = status
        self.values: dict[bytes, bytes] = dict(reversed(fields))  # first value of each name

    def request_fields(self, scheme: bytes) -> Fields:
        """The whole request block, pseudo-headers first, under the scheme of the connection it goes out on."""
        pseudo = ((b":method", self.method), (b":scheme", scheme), (b":path", self.path))
        if self.authority:
            return (*pseudo, (b":authority", self.authority), *self.fields)
        return pseudo + self.fields

    def response_fields(self) -> Fields:
        """The whole response block."""
        return ((b":status", b"%d" % self.status), *self.fields)


class Rest:
    """The fields of a block that do not repeat: `values` by name (repeated ones joined by commas), and `literals`,
    those to be forwarded, ready for any block."""

    __slots__ = ("length", "literals", "values")

    def __init__(self, fields: list[tuple[bytes, bytes]], owned: frozenset[bytes]):
        self.values = {name: value for name, value in fields}  # noqa: C416 - compiled, half the time of dict(fields)
        if len(self.values) != len(fields):
            self.values = {name: b",".join([v for n, v in fields if n == name]) for name in self.values}
        self.length = content_length(fields) if b"content-length" in self.values else None
        self.literals = b"".join([literal(name, value) for name, value in fields if name not in owned])


class Heads:
    """Interns heads for a process. `owned` names are never forwarded as they came: the caller writes its own.

    Of a block whose repeating part was met before, only what moves is looked at: what is remembered has passed.
    """

    __slots__ = ("_empty", "_known", "_max_bytes", "_max_heads", "_owned", "_requests", "_responses", "_trailers")

    def __init__(self, owned: frozenset[bytes] = frozenset(), max_heads: int = 2_048, max_bytes: int = 2_048):
        self._owned = owned
        self._known: dict[object, Head] = {}
        self._max_heads = max_heads
        self._max_bytes = max_bytes  # of one head's fields: larger ones are not remembered
        self._empty = Rest([], owned)
        # By the repeating part as it came, pseudo-headers included: its head, and how many fields come first.
        self._requests: dict[Fields, tuple[Head, int]] = {}
        self._responses: dict[Fields, tuple[Head, int]] = {}
        self._trailers: dict[Fields, tuple[Head, int]] = {}

    def _intern(self, key: tuple, make: tuple) -> Head:
        head = self._known.get(key)
        if head is None:
            head = Head(*make)
            if _size(head.fields) <= self._max_bytes:
                if len(self._known) >= self._max_heads:
                    self._known.clear()
                self._known[key] = head
        return head

    def _met(self, fields: Fields, known: dict[Fields, tuple[Head, int]]) -> tuple[Head | None, Fields, Rest]:
        """The head of a block whose repeating part is known, that part, and the rest; FieldError as by the others."""
        moving: list[tuple[bytes, bytes]] = []
        first = 0
        for at, field in enumerate(fields):
            if field[0] in VOLATILE:
                if not moving:
                    first = at
                moving.append(field)
        stable = fields
        if moving:
            stable = tuple([field for field in fields if field[0] not in VOLATILE])
        met = known.get(stable)
        if met is None:
            return None, stable, self._empty
        if not moving:
            return met[0], stable, self._empty
        if first < met[1]:
            return None, stable, self._empty  # before a pseudo-header: whoever looks at all of it says what is wrong
        check_values(moving)
        return met[0], stable, Rest(moving, self._owned)

    def _rest(self, fields: Fields) -> Rest:
        moving = [field for field in fields if field[0] in VOLATILE]
        return Rest(moving, self._owned) if moving else self._empty

    def _remember(self, known: dict[Fields, tuple[Head, int]], stable: Fields, head: Head, first: int) -> None:
        if _size(stable) <= self._max_bytes:
            if len(known) >= self._max_heads:
                known.clear()
            known[stable] = (head, first)

    def request(self, fields: Fields) -> tuple[Head, Rest]:
        """Validated request head and rest; FieldError when the RFC forbids the block."""
        head, stable, rest = self._met(fields, self._requests)
        if head is None:
            method, scheme, authority, path, regular = request_parts(fields)
            rest = self._rest(fields)
            key = (_stable(regular), method, scheme, authority, path)
            head = self._intern(key, key)
            self._remember(self._requests, stable, head, len(fields) - len(regular))
        return head, rest

    def response(self, fields: Fields) -> tuple[Head, Rest]:
        """Validated response head and rest; FieldError when the RFC forbids the block."""
        head, stable, rest = self._met(fields, self._responses)
        if head is None:
            status, regular = response_parts(fields)
            rest = self._rest(fields)
            own = _stable(regular)
            head = self._intern((own, status), (own, b"", b"", b"", b"", status))
            self._remember(self._responses, stable, head, 1)
        return head, rest

    def trailers(self, fields: Fields) -> tuple[Head, Rest]:
        """Validated trailers and rest; FieldError when the RFC forbids the block."""
        head, stable, rest = self._met(fields, self._trailers)
        if head is None:
            trailer_parts(fields)
            rest = self._rest(fields)
            head = self._intern((stable, 0), (stable,))
            self._remember(self._trailers, stable, head, 0)
        return head, rest


def _stable(regular: Fields) -> Fields:
    return tuple([field for field in regular if field[0] not in VOLATILE])


def _size(fields: Fields) -> int:
    return sum([len(name) + len(value) for name, value in fields])
