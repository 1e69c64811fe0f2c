"""Who is at the other end of a connection, in fields that only the guard may write.

Always holds: every field whose name begins with `x-outrider-peer` is the guard's own: a client's are taken out of its
request; values are printable ASCII, so that no certificate can write a field of its own; a peer is called loopback
only when its address says so and nothing in the request says that a proxy brought it from elsewhere.

Deliberately not here: what a peer may do (`api`).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import quote

from outrider_http2.head import Head
from outrider_http2.hpack import literal

PREFIX = b"x-outrider-peer"
ADDRESS = b"x-outrider-peer"
LOOPBACK = b"x-outrider-peer-loopback"
CERTIFICATE = b"x-outrider-peer-certificate"
MAX_NAME_BYTES = 512  # a certificate with a longer name counts as one without a name

# What proxies add for callers they bring: such a call did not begin on this machine, whoever the last hop was.
FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"x-envoy-external-address")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


class Identity:
    """A connection's peer. `fields(head)` are the literals to add to a request of it."""

    __slots__ = ("_far", "_near")

    def __init__(self, address: str, loopback: bool, certificate: str):
        common = literal(ADDRESS, _safe(address).encode())
        if certificate:
            common += literal(CERTIFICATE, certificate.encode())
        self._far = common + literal(LOOPBACK, b"0")
        self._near = common + literal(LOOPBACK, b"1") if loopback else self._far

    def fields(self, head: Head) -> bytes:
        """The peer's fields as literals of a header block."""
        near = self._near
        if near is not self._far:
            values = head.values
            for name in FORWARDED:
                if name in values:
                    return self._far
        return near


def identify(peername: object, unix: bool, certificate: Mapping[str, Any] | None) -> Identity:
    """`peername` is a socket's ((host, port, ...) of TCP), `unix` tells that it is a unix socket, `certificate` is
    `ssl_object.getpeercert()` where the peer has shown one that was verified."""
    name = certificate_name(certificate) if certificate else ""
    if unix:
        return Identity("unix", True, name)  # only this machine reaches it, and only whom the file's mode lets
    if isinstance(peername, tuple) and len(peername) >= 2:
        host, port = str(peername[0]), peername[1]
        return Identity(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", is_loopback(host), name)
    return Identity("unknown", False, name)  # a socket whose peer has gone already does not tell who it was


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own; also an IPv4 one as IPv6 sockets write it."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def certificate_name(certificate: Mapping[str, Any]) -> str:
    """The first URI of the subject's alternative names, else the first DNS name, else the common name; may be empty.

    Bytes that are not printable ASCII, and `%`, are percent-encoded as UTF-8.
    """
    alternative: tuple[tuple[str, str], ...] = certificate.get("subjectAltName", ())
    for kind in ("URI", "DNS"):
        for found, value in alternative:
            if found == kind:
                return _bounded(value)
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return _bounded(value)
    return ""


def without_peer(head: Head) -> Head:
    """The head as it came, unless it holds fields that are the guard's to write."""
    for name in head.values:
        if name.startswith(PREFIX):
            fields = tuple([field for field in head.fields if not field[0].startswith(PREFIX)])
            return Head(fields, head.method, head.scheme, head.authority, head.path)
    return head


def _bounded(name: str) -> str:
    safe = _safe(name)
    return safe if len(safe) <= MAX_NAME_BYTES else ""


def _safe(text: str) -> str:
    return quote(text, safe=_PRINTABLE, errors="replace")
