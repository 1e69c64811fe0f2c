"""Where the environment says OTLP goes: the standard variables of one signal, those for all signals behind them.

Always holds: a value that cannot be used is passed over with a note, as the specification asks; no note and no text
holds a header's value. Nothing is ever sent to the control plane itself: that would go round for good.

Deliberately not here: sending (`forward`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import grpc

TIMEOUT_MS: Final = 10_000
_TIMEOUT_MAX_MS: Final = 3_600_000
_HEADERS_MAX: Final = 128
_PORT: Final = 4317
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")


class Destination(NamedTuple):
    """One collector."""

    target: str  # host:port
    credentials: grpc.ChannelCredentials | None  # None: no TLS
    headers: tuple[tuple[str, str], ...]  # holds secrets
    timeout_ms: int
    compression: grpc.Compression


def destination(environ: Mapping[str, str], signal: str, own: Collection[str], notes: list[str]) -> Destination | None:
    """The collector of `signal` ("traces", "metrics"); None: there is none. What is passed over is put to `notes`."""

    def text(name: str) -> tuple[str, str]:
        for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
            value = environ.get(variable, "").strip()
            if value:
                return variable, value
        return f"OTEL_EXPORTER_OTLP_{name}", ""

    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if off or environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() == "none":
        return None
    variable, endpoint = text("ENDPOINT")
    if not endpoint:
        return None
    protocol_variable, protocol = text("PROTOCOL")
    if protocol not in ("", "grpc"):
        notes.append(f"{protocol_variable}: {protocol!r} is not grpc; {signal} are not forwarded to {endpoint}")
        return None
    try:
        target, scheme = _target(endpoint)
    except ValueError as error:
        notes.append(f"{variable}: {endpoint!r} {error}; {signal} are not forwarded")
        return None
    if _is_own(target, own):
        notes.append(f"{variable}: {endpoint} is this control plane; {signal} are not forwarded to itself")
        return None
    # Without a scheme the specification's default is TLS unless INSECURE says otherwise.
    secure = scheme == "https" or (not scheme and text("INSECURE")[1].lower() != "true")
    try:
        credentials = _credentials(text) if secure else None
    except OSError as error:
        notes.append(f"{error.filename}: cannot be read ({error.strerror}); {signal} are not forwarded")
        return None
    return Destination(
        target,
        credentials,
        _headers(*text("HEADERS"), notes),
        _timeout_ms(*text("TIMEOUT"), notes),
        _compression(*text("COMPRESSION"), notes),
    )


def _target(endpoint: str) -> tuple[str, str]:
    """(host:port, scheme). ValueError: it is no endpoint."""
    scheme, separator, _ = endpoint.partition("://")
    parts = urlsplit(endpoint if separator else f"//{endpoint}")
    if separator and scheme not in ("http", "https"):
        raise ValueError("is not http:// or https://")
    if not parts.hostname:
        raise ValueError("names no host")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or _PORT}", scheme if separator else ""


def _is_own(target: str, own: Collection[str]) -> bool:
    host, _, port = target.rpartition(":")
    for address in own:
        own_host, _, own_port = address.rpartition(":")
        same_host = host == own_host or (host.strip("[]") in _LOOPBACK and own_host.strip("[]") in _LOOPBACK)
        if port == own_port and same_host:
            return True
    return False


def _credentials(text: Callable[[str], tuple[str, str]]) -> grpc.ChannelCredentials:
    files = [text(name)[1] for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")]
    authority, key, certificate = (Path(name).read_bytes() if name else None for name in files)
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _headers(variable: str, value: str, notes: list[str]) -> tuple[tuple[str, str], ...]:
    headers: list[tuple[str, str]] = []
    for pair in value.split(",") if value else ():
        name, separator, content = (unquote(part.strip()) for part in pair.partition("="))
        name = name.lower()
        usable = (
            separator and name and name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        )
        if not usable or not content.isascii() or not content.isprintable() or name.endswith("-bin"):
            notes.append(f"{variable}: a header that is no name=value is left out")
        elif len(headers) < _HEADERS_MAX:
            headers.append((name, content))
    return tuple(headers)


def _timeout_ms(variable: str, value: str, notes: list[str]) -> int:
    if not value:
        return TIMEOUT_MS
    if value.isascii() and value.isdecimal() and 0 < len(value) < 9 and 1 <= int(value) <= _TIMEOUT_MAX_MS:
        return int(value)
    notes.append(f"{variable}: {value!r} is not a whole number of milliseconds; {TIMEOUT_MS} is taken")
    return TIMEOUT_MS


def _compression(variable: str, value: str, notes: list[str]) -> grpc.Compression:
    if value.lower() == "gzip":
        return grpc.Compression.Gzip
    if value.lower() not in ("", "none"):
        notes.append(f"{variable}: {value!r} is not gzip or none; none is taken")
    return grpc.Compression.NoCompression
