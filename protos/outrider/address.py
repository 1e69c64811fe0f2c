"""Addresses as people write them: `host:port`, `[v6]:port`, `dns:host:port`, `unix:/path`.

Always holds: what is parsed can be dialled or bound without another look at the text. gRPC's forms `dns:///host:port`
and `unix:///path` mean the same. Standard library only.

Deliberately not here: resolving names.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_HOST_LENGTH = 253
_MAX_UNIX_PATH_BYTES = 107  # sun_path of Linux less the closing NUL


@dataclass(frozen=True, slots=True)
class Address:
    """`host` and `port` of a TCP address (a v6 host without brackets), or `path` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""
    resolve: bool = False  # `dns:`: the name stands for all addresses it resolves to, and is resolved again and again

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it: a unix socket, `localhost`, 127.0.0.0/8 or ::1."""
        if self.path or self.host.lower() in ("localhost", "localhost."):
            return True
        if _is_ip(socket.AF_INET, self.host):
            return self.host.startswith("127.")
        return _is_ip(socket.AF_INET6, self.host) and _V6_LOOPBACK == socket.inet_pton(socket.AF_INET6, self.host)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'dns:' if self.resolve else ''}{host}:{self.port}"


_V6_LOOPBACK = socket.inet_pton(socket.AF_INET6, "::1")


def parse_address(text: str, *, allow_port_zero: bool = False) -> Address:
    """The address that `text` stands for. Port 0, for listeners, means any free one.

    ValueError else: its message is the rest of a sentence that begins with the text.
    """
    scheme, separator, rest = text.partition(":")
    if separator and scheme == "unix":
        return Address(path=_unix_path(rest))
    resolve = bool(separator) and scheme == "dns" and ":" in rest
    host_port = rest.removeprefix("///") if resolve else text
    host, separator, port_text = host_port.rpartition(":")
    if not separator or not host:
        raise ValueError("is not an address: host:port, [v6]:port, dns:host:port or unix:/path")
    lowest = 0 if allow_port_zero else 1
    if not _PORT.fullmatch(port_text) or not lowest <= int(port_text) <= 65_535:
        raise ValueError(f"does not end in a port from {lowest} to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(socket.AF_INET6, host.partition("%")[0]):
            raise ValueError("has no IPv6 address between its brackets")
    elif ":" in host:
        raise ValueError(f"needs brackets around an IPv6 address, as in [::1]:{port_text}")
    elif not is_host(host):
        raise ValueError("begins with neither a host name nor an IPv4 address")
    return Address(host=host, port=int(port_text), resolve=resolve)


def is_host(text: str) -> bool:
    """Whether `text` is a host name or an IPv4 address."""
    if len(text) > _MAX_HOST_LENGTH or not _HOST.fullmatch(text):
        return False
    looks_like_v4 = text.rstrip(".").rpartition(".")[2].isdecimal()  # no top-level domain is all digits
    return not looks_like_v4 or _is_ip(socket.AF_INET, text)


def _unix_path(rest: str) -> str:
    path = rest.removeprefix("//")
    if not path.startswith("/"):
        raise ValueError("needs an absolute path, as in unix:/run/agent.sock")
    if "\0" in path or len(path.encode()) > _MAX_UNIX_PATH_BYTES:
        raise ValueError(f"has a path of more than {_MAX_UNIX_PATH_BYTES} bytes or with a NUL in it")
    return path


def _is_ip(family: socket.AddressFamily, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):  # ValueError: a NUL or a character that is not ASCII
        return False
    return True
