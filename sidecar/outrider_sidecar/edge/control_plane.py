"""The control planes this sidecar may talk to: which one is in use, how each is dialled, and what proves who we are.

Always holds: the watch decides which one is in use and the span export follows it; the token's file is read anew at
every dial, so that a token can be exchanged without a restart, and neither it nor its content is ever logged.

TLS: as `control_tls` says; where it says nothing, TLS for every address that other machines reach, if `tls.upstream`
says how. Addresses of this machine are dialled in the clear.

Deliberately not here: the watch itself (`edge.mesh`).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from outrider.address import Address
from outrider_sidecar.config import Settings

log = logging.getLogger(__name__)

_MAX_TOKEN_BYTES = 4_096

Context = Callable[[], ssl.SSLContext | None]


class ControlPlane:
    """`addresses` as configured; `current` is the index of the one in use. `context_for` gives TLS, if wanted."""

    def __init__(self, settings: Settings, context_for: Callable[[bool | None], Context]):
        self.addresses = tuple([str(address) for address in settings.control])
        self.current = 0
        self._token_file = settings.control_token_file
        self._token = settings.control_token
        has_tls = settings.tls.upstream is not None
        self._contexts = [
            context_for(settings.control_tls if settings.control_tls is not None else _wants_tls(address, has_tls))
            for address in settings.control
        ]
        self._complained = ""

    def context(self, at: int) -> Context:
        """The TLS context to dial an address with, asked for at each dial."""
        return self._contexts[at]

    def move_on(self, at: int) -> None:
        """This one is lost or cannot be reached: the next one is in use."""
        if at == self.current:
            self.current = (at + 1) % len(self.addresses)

    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        """What goes with every call: the token, where there is one."""
        token = self._token
        if self._token_file is not None:
            token = self._read(self._token_file) or token
        return ((b"authorization", b"Bearer " + token.encode()),) if token else ()

    def _read(self, path: Path) -> str:
        problem = ""
        token = ""
        try:
            with path.open("rb") as file:
                token = file.read(_MAX_TOKEN_BYTES + 1).decode("ascii").strip()
        except OSError as error:
            problem = error.strerror or str(error)
        except UnicodeDecodeError:
            problem = "is not ASCII text"
        if not problem and (not token.isprintable() or " " in token or not 0 < len(token) <= _MAX_TOKEN_BYTES):
            token, problem = "", "does not hold one token"
        if problem != self._complained:
            self._complained = problem
            if problem:
                log.error("control_token_file: %s: %s", path, problem)
        return token


def _wants_tls(address: Address, has_tls: bool) -> bool:
    return has_tls and not address.is_loopback
