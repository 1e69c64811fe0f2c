"""Dialling real sockets: who is there, who is not, and who does not speak HTTP/2."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from outrider_http2.client import ClientConnection
from outrider_http2.dial import dial
from outrider_http2.limits import Limits
from outrider_http2.shell import Reactor
from outrider_http2.tls import ClientTls, ServerTls
from tests.certificates import Authority
from tests.conformance.http2.peer import REQUEST, Heard, TestServer, serving

BOTH_LOOPS = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


async def spoken(reactor: Reactor, address: tuple[str, int] | str, tls: ssl.SSLContext | None = None) -> Heard:
    """What a call over a fresh connection hears."""
    ready = asyncio.Event()
    prepared: list[ClientConnection] = []

    def prepare(conn: ClientConnection) -> None:
        assert not conn.out
        prepared.append(conn)
        conn.on_ready = lambda _: ready.set()

    limits = Limits(ping_interval_s=3.0)
    shell = await dial(reactor, address, limits, prepare, tls)
    assert prepared == [shell.conn]
    assert shell.conn.limits is limits
    async with asyncio.timeout(10):
        await ready.wait()
        heard = Heard()
        prepared[0].open_stream(heard).send_head(REQUEST, b"", True)
        while not heard.ended:
            await asyncio.sleep(0)
    if not isinstance(address, str):
        sock = shell.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    shell.close()
    return heard


@BOTH_LOOPS
async def test_a_call_over_tcp() -> None:
    async with serving() as (server, port):
        assert (await spoken(server.reactor, ("127.0.0.1", port))).heads[0][0].status == 200


@BOTH_LOOPS
async def test_a_call_over_a_unix_socket(tmp_path: Path) -> None:
    server = TestServer(Limits())
    listening = await server.reactor.loop.create_unix_server(server.make, str(tmp_path / "s.sock"))
    assert (await spoken(server.reactor, str(tmp_path / "s.sock"))).heads[0][0].status == 200
    listening.close()
    await server.reactor.close()


@BOTH_LOOPS
async def test_a_call_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = ServerTls(*authority.pair("server"), authority.file)
    server = TestServer(Limits())
    listening = await server.reactor.loop.create_server(server.make, "127.0.0.1", 0, ssl=tls.context())
    port = listening.sockets[0].getsockname()[1]
    client = ClientTls(authority.file, *authority.pair("client"))
    heard = await spoken(server.reactor, ("127.0.0.1", port), client.context())
    assert heard.heads[0][0].status == 200
    listening.close()
    await server.reactor.close()


async def test_a_tls_peer_without_http2_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.pair("server")
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    plain.load_cert_chain(cert, key)
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=plain)
    port = listening.sockets[0].getsockname()[1]
    reactor = Reactor(asyncio.get_running_loop())
    with pytest.raises(OSError, match="does not speak HTTP/2"):
        await dial(reactor, ("127.0.0.1", port), Limits(), lambda _: None, ClientTls(authority.file).context())
    listening.close()
    await reactor.close()


async def test_nobody_there(tmp_path: Path) -> None:
    reactor = Reactor(asyncio.get_running_loop())
    with pytest.raises(FileNotFoundError):
        await dial(reactor, str(tmp_path / "none.sock"), Limits(), lambda _: None)
    assert not reactor.shells
