"""Contexts that follow their files, seen by real peers on both loops."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import serialization

from outrider.policy import Agent, EndpointPolicy, Policy
from outrider_sidecar.config import Tls, UpstreamTls
from outrider_sidecar.edge.tls import ClientTls, ServerTls, TlsError
from outrider_sidecar.edge.upstream import Connector
from tests.certificates import Authority
from tests.in_process import InProcess, in_process

BOTH_LOOPS = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


class Signer:
    """An authority whose pairs are handed out as bytes, to be put where a test wants them."""

    def __init__(self, name: str):
        with tempfile.TemporaryDirectory() as folder:
            self._authority = Authority(Path(folder), name)
            self.pem = self._authority.file.read_bytes()

    def issue(self) -> tuple[bytes, bytes]:
        """(certificate, key) in PEM."""
        with tempfile.TemporaryDirectory() as folder:
            self._authority.folder = Path(folder)
            cert, key = self._authority.pair("pair")
            return cert.read_bytes(), key.read_bytes()

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """The files NAME.pem and NAME.key of a fresh pair."""
        self._authority.folder = folder
        return self._authority.pair(name)


def encrypted(key: bytes) -> bytes:
    private = serialization.load_pem_private_key(key, None)
    lock = serialization.BestAvailableEncryption(b"secret")
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


ONE, TWO = Signer("one"), Signer("two")


def replace(file: Path, data: bytes) -> None:
    """As certificate managers do: a new file in the place of the old one."""
    fresh = file.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(file)


def server_files(folder: Path, client_ca: Signer | None = None) -> Tls:
    cert, key = ONE.write(folder, "localhost")
    if client_ca is None:
        return Tls(cert, key)
    (folder / "clients.pem").write_bytes(client_ca.pem)
    return Tls(cert, key, folder / "clients.pem")


async def call(target: str, authority: Signer, pair: tuple[bytes, bytes] | None = None) -> grpc.StatusCode:
    """The status a caller gets from a sidecar that has no agents; UNAVAILABLE where there is no connection."""
    certificate, key = pair or (None, None)
    credentials = grpc.ssl_channel_credentials(authority.pem, key, certificate)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(target, credentials, options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/a.B/C")(b"", timeout=10)
    return failed.value.code()


async def certificate_seen(port: int, server_name: str | None = None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=server_name or "")
    found = writer.get_extra_info("ssl_object")
    assert found.selected_alpn_protocol() == "h2"
    seen = ssl.DER_cert_to_PEM_cert(found.getpeercert(binary_form=True)).encode()
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return seen


@BOTH_LOOPS
async def test_a_new_pair_serves_the_next_connection(tmp_path: Path):
    files = server_files(tmp_path)
    tls = ServerTls(files)
    async with in_process(tls=tls.context()) as mesh:
        assert await call(mesh.target, ONE) is grpc.StatusCode.NOT_FOUND
        assert tls.poll() is False
        certificate, key = TWO.issue()
        assert files.cert is not None
        assert files.key is not None
        replace(files.key, key)
        replace(files.cert, certificate)
        assert await call(mesh.target, ONE) is grpc.StatusCode.NOT_FOUND  # nobody has looked yet
        assert tls.poll() is True
        assert tls.poll() is False
        assert await call(mesh.target, TWO) is grpc.StatusCode.NOT_FOUND
        assert await call(mesh.target, ONE) is grpc.StatusCode.UNAVAILABLE
        # With a server name in the handshake and without one.
        assert await certificate_seen(mesh.listener.port) == certificate
        assert await certificate_seen(mesh.listener.port, "localhost") == certificate


@BOTH_LOOPS
async def test_a_connection_that_is_up_stays_up(tmp_path: Path):
    files = server_files(tmp_path)
    tls = ServerTls(files)
    async with in_process(tls=tls.context()) as mesh:
        credentials = grpc.ssl_channel_credentials(ONE.pem)
        async with grpc.aio.secure_channel(mesh.target, credentials) as channel:
            method = channel.unary_unary("/a.B/C")
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await method(b"", timeout=10)
                assert failed.value.code() is grpc.StatusCode.NOT_FOUND
                TWO.write(tmp_path, "localhost")
                tls.poll()
            assert mesh.listener.connections == 1


@BOTH_LOOPS
async def test_callers_need_a_certificate_of_the_client_authority_and_it_rotates(tmp_path: Path):
    files = server_files(tmp_path, client_ca=ONE)
    tls = ServerTls(files)
    of_one, of_two = ONE.issue(), TWO.issue()
    async with in_process(tls=tls.context()) as mesh:
        assert await call(mesh.target, ONE) is grpc.StatusCode.UNAVAILABLE
        assert await call(mesh.target, ONE, of_two) is grpc.StatusCode.UNAVAILABLE
        assert await call(mesh.target, ONE, of_one) is grpc.StatusCode.NOT_FOUND
        assert files.client_ca is not None
        replace(files.client_ca, TWO.pem)
        assert tls.poll() is True
        assert await call(mesh.target, ONE, of_one) is grpc.StatusCode.UNAVAILABLE
        assert await call(mesh.target, ONE, of_two) is grpc.StatusCode.NOT_FOUND


@BOTH_LOOPS
async def test_a_mismatched_pair_keeps_the_old_and_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    files = server_files(tmp_path)
    tls = ServerTls(files)
    certificate, key = TWO.issue()
    assert files.cert is not None
    assert files.key is not None
    async with in_process(tls=tls.context()) as mesh:
        replace(files.cert, certificate)
        assert [tls.poll() for _ in range(3)] == [False] * 3
        assert await call(mesh.target, ONE) is grpc.StatusCode.NOT_FOUND
        refusals = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(refusals) == 1
        assert str(files.cert) in refusals[0]
        assert "no pair" in refusals[0]
        replace(files.key, key)
        assert tls.poll() is True
        assert await call(mesh.target, TWO) is grpc.StatusCode.NOT_FOUND


DAMAGES: list[tuple[str, str, Callable[[bytes], bytes | None]]] = [
    ("localhost.pem", "holds no PEM certificate", lambda _: b""),
    ("localhost.pem", "cannot be read", lambda data: data[: len(data) // 2]),
    ("localhost.pem", "No such file", lambda _: None),
    ("localhost.key", "holds no PEM private key", lambda _: b"garbage"),
    ("localhost.key", "cannot be read", lambda data: data[: len(data) // 2]),
    ("localhost.key", "no pair", lambda _: ONE.issue()[1]),
    ("localhost.key", "is encrypted", encrypted),
    ("localhost.key", "is larger", lambda data: data + b"\n" * (4 * 1024 * 1024)),
    ("clients.pem", "holds no PEM certificate", lambda _: b""),
    ("clients.pem", "cannot be read", lambda data: data[: len(data) // 2] + b"\n-----END CERTIFICATE-----\n"),
]


@pytest.mark.parametrize(("name", "reason", "damage"), DAMAGES)
def test_damaged_files_are_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, reason: str, damage: Callable[[bytes], bytes | None]
):
    files = server_files(tmp_path, client_ca=ONE)
    tls = ServerTls(files)
    file = tmp_path / name
    damaged = damage(file.read_bytes())
    if damaged is None:
        file.unlink()
    else:
        replace(file, damaged)
    with pytest.raises(TlsError) as refused:
        ServerTls(files)
    assert str(file) in str(refused.value)
    assert reason in str(refused.value)
    assert tls.poll() is False
    text = caplog.text + str(refused.value)
    assert str(file) in caplog.text
    assert "secret" not in text
    assert "BEGIN" not in text


def test_a_file_is_seen_to_change_by_time_size_or_inode(tmp_path: Path):
    files = server_files(tmp_path)
    assert files.cert is not None
    tls = ServerTls(files)
    found = files.cert.stat()
    data = files.cert.read_bytes()
    replace(files.cert, data)
    os.utime(files.cert, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert tls.poll() is True  # another inode of the same size and time
    os.utime(files.cert, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert tls.poll() is True
    files.cert.write_bytes(data + b"\n")
    os.utime(files.cert, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert tls.poll() is True
    assert tls.poll() is False


def test_old_versions_of_tls_are_off(tmp_path: Path):
    context = ClientTls(UpstreamTls(ca=server_files(tmp_path).cert)).context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(TlsError, match=r"tls\.cert and tls\.key"):
        ServerTls(Tls())


@BOTH_LOOPS
async def test_endpoints_are_dialled_with_the_newest_files(tmp_path: Path):
    """Two sidecars, one behind the other: the first is known to the second by a certificate that is replaced."""
    server = ServerTls(server_files(tmp_path, client_ca=TWO))
    (tmp_path / "servers.pem").write_bytes(ONE.pem)
    cert, key = ONE.write(tmp_path, "client")
    client = ClientTls(UpstreamTls(tmp_path / "servers.pem", cert, key))

    def dial_by_tls(mesh: InProcess) -> None:
        mesh.runtime.connector = lambda endpoint, agent: Connector(
            mesh.reactor, endpoint, mesh.runtime.rng, client.context, "localhost"
        )

    async with in_process(tls=server.context()) as behind:
        policy = Policy({"a": Agent("a", (EndpointPolicy(behind.target),))}, "a")
        async with in_process(dial_by_tls, policy) as front, grpc.aio.insecure_channel(front.target) as channel:

            async def status() -> grpc.StatusCode:
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await channel.unary_unary("/a.B/C")(b"", timeout=10)
                return failed.value.code()

            assert await status() is grpc.StatusCode.UNAVAILABLE
            assert behind.listener.connections == 0
            TWO.write(tmp_path, "client")
            assert client.poll() is True
            while (seen := await status()) is grpc.StatusCode.UNAVAILABLE:
                await asyncio.sleep(0.01)  # the connector's backoff
            assert seen is grpc.StatusCode.NOT_FOUND  # said by the sidecar behind: it has no agents
