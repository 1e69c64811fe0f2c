"""TLS contexts that follow their files: a renewed certificate serves the next connection without a restart.

Always holds: a context is built whole from the files before it is used, so a half-written or mismatched pair leaves
the old one in force and is logged once; TLS is 1.2 or newer with ALPN h2; errors name the file and never its
contents. Connections that are up keep the context they began with.

Deliberately not here: where the files are named (settings), ending connections by age (`limits.max_age_s`), expiry
dates, revocation lists.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

ALPN = ["h2"]
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY = b"PRIVATE KEY-----"
_MAX_FILE_BYTES = 4 * 1024 * 1024  # a bundle of all public authorities is a tenth of it

Stamp = tuple[tuple[int, int, int] | None, ...]


class TlsError(OSError):
    """TLS files that cannot be used. `str()` is one line for people: file and reason."""


class ServerTls:
    """The listening side. With `client_ca` callers are asked for a certificate; `require_client` refuses those without
    one, else only a wrong one is refused. TlsError: the files cannot be used."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None, require_client: bool = True):
        self._files = _Files(
            "listeners", (cert, key, client_ca), lambda: _server_context(cert, key, client_ca, require_client)
        )
        self._front = _Front.over(self._files)

    def context(self) -> ssl.SSLContext:
        """One context for as long as the process lives; each handshake runs under the newest files."""
        return self._front

    def poll(self) -> bool:
        """Look at the files, about once a second; True when they were taken anew."""
        return self._files.poll()


class ClientTls:
    """The dialling side: `ca` verifies the peer (None: the system's), `cert` and `key` are ours, if it asks for them.
    TlsError: the files cannot be used."""

    def __init__(self, ca: Path | None = None, cert: Path | None = None, key: Path | None = None):
        self._files = _Files("endpoints", (ca, cert, key), lambda: _client_context(ca, cert, key))

    def context(self) -> ssl.SSLContext:
        """The context to dial with now; ask again for every dial."""
        return self._files.context

    def poll(self) -> bool:
        """Look at the files, about once a second; True when they were taken anew."""
        return self._files.poll()


class _Files:
    """A context and the files it was built from."""

    def __init__(self, whose: str, files: tuple[Path | None, ...], build: Callable[[], ssl.SSLContext]):
        self._whose = whose
        self._paths = [file for file in files if file is not None]
        self._build = build
        # Stamped before they are read: what is written in between is seen by the next look.
        self._seen = self._stamp()
        self.context = build()

    def poll(self) -> bool:
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self.context = self._build()
        except TlsError as error:
            log.error("TLS of the %s: %s; the certificate in use stays", self._whose, error)
            return False
        log.info("TLS of the %s: new files are in use", self._whose)
        return True

    def _stamp(self) -> Stamp:
        return tuple([_stamp(path) for path in self._paths])


class _Front(ssl.SSLContext):
    """What a server is opened with. Each connection's TLS object is made by the newest context, whole.

    A server keeps the context it was opened with, and `sni_callback` may swap the certificate of a handshake but not
    what is asked of the client; asyncio and uvloop both make the TLS object of a connection by `wrap_bio`.
    """

    _files: _Files

    @classmethod
    def over(cls, files: _Files) -> _Front:
        front = cls(ssl.PROTOCOL_TLS_SERVER)
        front._files = files
        return front

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self._files.context.wrap_bio(*args, **kwargs)


def _server_context(cert: Path, key: Path, client_ca: Path | None, require_client: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load_pair(context, cert, key)
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    return context


def _client_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # asks for a certificate and checks the name
    _harden(context)
    if ca is not None:
        _load_authorities(context, ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if cert is not None and key is not None:
        _load_pair(context, cert, key)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(ALPN)


def _load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    # OpenSSL does not say which of the two files it dislikes.
    _expect(cert, _CERTIFICATE, "holds no PEM certificate")
    _expect(key, _PRIVATE_KEY, "holds no PEM private key")
    try:
        context.load_cert_chain(cert, key, password=_Locked(key))
    except TlsError:
        raise
    except ssl.SSLError as error:
        reason = "are no pair: the key is another certificate's" if _is(error, "KEY_VALUES_MISMATCH") else _why(error)
        raise TlsError(f"{cert} and {key}: {reason}") from None
    except OSError as error:
        raise TlsError(f"{cert} and {key}: {error.strerror or error}") from None


def _load_authorities(context: ssl.SSLContext, file: Path) -> None:
    _expect(file, _CERTIFICATE, "holds no PEM certificate")
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError as error:
        raise TlsError(f"{file}: {_why(error)}") from None
    except OSError as error:
        raise TlsError(f"{file}: {error.strerror or error}") from None


def _expect(file: Path, marker: bytes, reason: str) -> None:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TlsError(f"{file}: {error.strerror or error}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise TlsError(f"{file}: is larger than {_MAX_FILE_BYTES} bytes")
    if marker not in data:
        raise TlsError(f"{file}: {reason}")


class _Locked:
    """Asked for the password of an encrypted key; without it OpenSSL would ask at the terminal and wait."""

    def __init__(self, key: Path):
        self._key = key

    def __call__(self) -> str:
        raise TlsError(f"{self._key}: is encrypted; store it without a password, readable by this process alone")


def _is(error: ssl.SSLError, reason: str) -> bool:
    return (error.reason or "").upper().replace(" ", "_") == reason


def _why(error: ssl.SSLError) -> str:
    return f"cannot be read ({(error.reason or 'damaged').lower().replace('_', ' ')})"


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
