"""What the fields of a message must look like between gRPC peers (RFC 9113, section 8; RFC 9110, section 5).

Always holds: fields that pass are safe to forward: names are lower-case tokens, values hold no NUL, CR or LF and no
space or tab at either end, pseudo-headers are the right ones, once each and first, and nothing speaks of the
connection. All else is a `FieldError`, which makes the message malformed: the stream is refused, the connection stays.

Deliberately not here: CONNECT, and what values mean to gRPC (content-type, grpc-timeout). Bytes from 0x80 up are
allowed in ordinary values, as the RFC has it, but not in pseudo-headers: `:path` and `:authority` are printable ASCII,
for there are servers that stop for good when they are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

Field = tuple[bytes, bytes]


class FieldError(Exception):
    """The message is malformed: PROTOCOL_ERROR on the stream."""


_NAME_BYTES: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_TOKEN_BYTES: Final = _NAME_BYTES + b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PRINTABLE_BYTES: Final = bytes(range(0x21, 0x7F))
_PLAIN_BYTES: Final = bytes(sorted(set(range(256)) - set(b"\0\r\n\t ")))  # in a value these are never wrong
_BAD_VALUE: Final = re.compile(rb"[\0\r\n]|\A[ \t]|[ \t]\Z")
_NULS: Final = bytes(256)
_SCHEME: Final = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*")
_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path"))
_MAX_LENGTH_DIGITS: Final = 18

# Names of one hop, which HTTP/2 does not have.
_CONNECTION_NAMES: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)

# Names known to be good: nothing to look at. `te` and `host` are not among them: their values matter.
_KNOWN_NAMES: Final = frozenset(
    b"accept accept-encoding authorization content-encoding content-length content-type cookie date "
    b"grpc-accept-encoding grpc-encoding grpc-message grpc-previous-rpc-attempts grpc-retry-pushback-ms "
    b"grpc-status grpc-status-details-bin grpc-tags-bin grpc-timeout grpc-trace-bin server traceparent tracestate "
    b"user-agent x-agent-id x-cache-control x-envoy-upstream-service-time x-forwarded-for x-forwarded-proto "
    b"x-outrider-cache x-outrider-call-id x-outrider-endpoint x-outrider-tokens-saved x-outrider-trace-id "
    b"x-outrider-variant x-priority x-request-id x-session-id x-tenant-id x-user-id".split()
)


def request_parts(fields: Sequence[Field]) -> tuple[bytes, bytes, bytes, bytes, tuple[Field, ...]]:
    """(method, scheme, authority, path, regular fields) of a request; the authority may come from `host`."""
    authority: bytes | None
    pseudo = dict(fields[:4])
    try:  # four fields that hold these four names hold nothing else
        method, scheme, path, authority = (
            pseudo[b":method"],
            pseudo[b":scheme"],
            pseudo[b":path"],
            pseudo[b":authority"],
        )
        regular = tuple(fields[4:])
    except KeyError:
        method, scheme, path, authority, regular = _pseudo(fields)
    if method != b"POST":
        _check_method(method)
    if scheme != b"http" and scheme != b"https" and not _SCHEME.fullmatch(scheme):
        raise FieldError(f":scheme {scheme[:64]!r} is not a scheme")
    if path[:1] != b"/" and not (path == b"*" and method == b"OPTIONS"):
        raise FieldError(f":path {path[:64]!r} does not start with '/'")
    if path.translate(None, _PRINTABLE_BYTES):
        raise FieldError(f":path {path[:64]!r} has bytes that are not printable ASCII")
    hosts = _check(regular)
    if hosts or authority is None:
        authority = _agreed(authority, hosts)
    if not authority or authority.translate(None, _PRINTABLE_BYTES):
        raise FieldError(f"authority {authority[:64]!r} is empty or has bytes that are not printable ASCII")
    return method, scheme, authority, path, regular


def response_parts(fields: Sequence[Field]) -> tuple[int, tuple[Field, ...]]:
    """(status, regular fields) of a response, final or interim."""
    if not fields or fields[0][0] != b":status":
        raise FieldError("a response does not start with :status")
    status = fields[0][1]
    if len(status) != 3 or not status.isdigit() or not b"100" <= status <= b"599":
        raise FieldError(f":status {status[:64]!r} is not a status from 100 to 599")
    regular = tuple(fields[1:])
    _check(regular)
    return int(status), regular


def trailer_parts(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields of a trailer section: regular ones only."""
    regular = tuple(fields)
    _check(regular)
    return regular


def content_length(fields: Iterable[Field]) -> int | None:
    """The declared length in bytes, None where there is none; the same value may be given more than once."""
    found: bytes | None = None
    for name, value in fields:
        if name == b"content-length":
            if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
                raise FieldError(f"content-length {value[:64]!r} is not a length")
            if found is not None and int(found) != int(value):
                raise FieldError(f"content-length is both {found!r} and {value!r}")
            found = value
    return None if found is None else int(found)


def _pseudo(fields: Sequence[Field]) -> tuple[bytes, bytes, bytes, bytes | None, tuple[Field, ...]]:
    """(method, scheme, path, authority, regular fields) of a request that has other than the usual four in front."""
    count = 0
    for name, _ in fields:
        if name[:1] != b":":
            break
        count += 1
    pseudo = dict(fields[:count])
    if len(pseudo) != count:
        raise FieldError("a pseudo-header is repeated")
    unknown = pseudo.keys() - _REQUEST_PSEUDO
    if unknown:
        raise FieldError(f"a request has the unknown pseudo-header {min(unknown)[:64]!r}")
    if pseudo.get(b":method") == b"CONNECT":
        raise FieldError("CONNECT is not supported")
    try:
        return (
            pseudo[b":method"],
            pseudo[b":scheme"],
            pseudo[b":path"],
            pseudo.get(b":authority"),
            tuple(fields[count:]),
        )
    except KeyError as missing:
        raise FieldError(f"a request lacks {missing.args[0].decode()}") from None


def _check(regular: tuple[Field, ...]) -> list[bytes]:
    """Refuses what no regular field may be; returns the values of `host`."""
    hosts: list[bytes] = []
    odd = [field for field in regular if field[0] not in _KNOWN_NAMES]
    for name, value in odd:
        if name == b"te":
            if value != b"trailers":
                raise FieldError(f"te is {value[:64]!r}, not 'trailers'")
        elif name == b"host":
            hosts.append(value)
        else:
            _check_name(name)
    check_values(regular)
    return hosts


def check_values(fields: Sequence[Field]) -> None:
    """Refuses what no value may hold."""
    # One look at all values: what is left of them joined must be the NULs between them, else each is looked at.
    left = b"\0".join([value for _, value in fields]).translate(None, _PLAIN_BYTES)
    if left and left != _NULS[: len(fields) - 1]:
        for name, value in fields:
            if _BAD_VALUE.search(value):
                raise FieldError(f"the value of {name.decode()} has NUL, CR or LF, or a space or tab at an end")


def _check_name(name: bytes) -> None:
    if name in _CONNECTION_NAMES:
        raise FieldError(f"{name.decode()} belongs to one hop and must not be sent over HTTP/2")
    if name[:1] == b":":
        raise FieldError(f"the pseudo-header {name[:64]!r} is out of place")
    if not name or name.translate(None, _NAME_BYTES):
        raise FieldError(f"the name {name[:64]!r} is empty or not made of lower-case token characters")


def _check_method(method: bytes) -> None:
    if method == b"CONNECT":
        raise FieldError("CONNECT is not supported")
    if not method or method.translate(None, _TOKEN_BYTES):
        raise FieldError(f":method {method[:64]!r} is not a token")


def _agreed(authority: bytes | None, hosts: list[bytes]) -> bytes:
    """The authority that :authority (None: absent) and every `host` agree on."""
    for host in hosts:
        if authority is not None and host != authority:
            raise FieldError(f"host {host[:64]!r} differs from {authority[:64]!r}")
        authority = host
    if authority is None:
        raise FieldError("a request has neither :authority nor host")
    return authority
