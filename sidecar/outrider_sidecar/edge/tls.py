"""The sidecar's TLS settings as contexts that follow their files.

Deliberately not here: the contexts themselves (`outrider_http2.tls`).
"""

from __future__ import annotations

from outrider_http2 import tls
from outrider_http2.tls import TlsError as TlsError
from outrider_sidecar.config import Tls, UpstreamTls


class ServerTls(tls.ServerTls):
    """The listeners' side. Callers need a certificate where `client_ca` is set. TlsError: the files cannot be used."""

    def __init__(self, settings: Tls):
        if settings.cert is None or settings.key is None:
            raise TlsError("tls.cert and tls.key are needed to listen with TLS")
        super().__init__(settings.cert, settings.key, settings.client_ca)


class ClientTls(tls.ClientTls):
    """The dialling side. TlsError: the files cannot be used."""

    def __init__(self, settings: UpstreamTls):
        super().__init__(settings.ca, settings.cert, settings.key)
