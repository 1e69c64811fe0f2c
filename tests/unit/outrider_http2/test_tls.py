"""Contexts of files: whether callers need a certificate. Rotation and damaged files: the sidecar's tests of `edge`."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest

from outrider_http2.tls import ClientTls, ServerTls, TlsError
from tests.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def handshake(server: ServerTls, client: ClientTls) -> Mapping[str, object] | None:
    """What the server knows of the client's certificate after a handshake in memory; ssl.SSLError if there is none."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    behind = server.context().wrap_bio(to_server, to_client, server_side=True)
    front = client.context().wrap_bio(to_client, to_server, server_hostname="localhost")
    left = {front, behind}
    while left:
        for end in tuple(left):
            try:
                end.do_handshake()
                left.discard(end)
            except ssl.SSLWantReadError:
                pass
    return behind.getpeercert()


@pytest.mark.parametrize(("require", "wanted"), [(True, ssl.CERT_REQUIRED), (False, ssl.CERT_OPTIONAL)])
def test_a_certificate_is_shown_and_verified(authority: Authority, require: bool, wanted: ssl.VerifyMode) -> None:
    server = ServerTls(*authority.pair("server"), authority.file, require)
    assert server._files.context.verify_mode is wanted
    shown = handshake(server, ClientTls(authority.file, *authority.pair("client", "agent-7")))
    assert shown is not None
    assert ((("commonName", "agent-7"),),) == shown["subject"]


def test_without_one(authority: Authority) -> None:
    pair = authority.pair("server")
    client = ClientTls(authority.file)
    assert not handshake(ServerTls(*pair, authority.file, require_client=False), client)
    assert not handshake(ServerTls(*pair), client)
    with pytest.raises(ssl.SSLError):
        handshake(ServerTls(*pair, authority.file), client)


@pytest.mark.parametrize("require", [True, False])
def test_a_strangers_is_refused(authority: Authority, tmp_path: Path, require: bool) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "other")
    server = ServerTls(*authority.pair("server"), authority.file, require)
    with pytest.raises(ssl.SSLError):
        handshake(server, ClientTls(authority.file, *stranger.pair("client")))


def test_files_that_are_not_there_are_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.pair("server")
    with pytest.raises(TlsError, match=r"none\.pem"):
        ServerTls(cert, key, tmp_path / "none.pem")
    with pytest.raises(TlsError, match=r"none\.key"):
        ClientTls(authority.file, cert, tmp_path / "none.key")
