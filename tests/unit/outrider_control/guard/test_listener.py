"""The guard as its owner sees it: opened, drained, closed; full, over TLS, on a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from outrider_control.guard import listener as listener_module
from outrider_control.guard.listener import LIMITS, Guard
from outrider_control.guard.socket_file import SocketFile
from outrider_http2.tls import ServerTls
from tests.certificates import Authority, serial_of
from tests.conformance.http2 import wire
from tests.conformance.http2.peer import RawPeer
from tests.conformance.http2.wire import NO_ERROR, data, rst
from tests.unit.outrider_control.guard.scene import guarded, opening

BOTH_LOOPS = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


@BOTH_LOOPS
async def test_a_drain_lets_calls_end() -> None:
    async with guarded() as scene, scene.client() as client, scene.client() as idle:
        await idle.probe()
        server = await scene.through(client, 1, opening(client, 1))
        draining = asyncio.ensure_future(scene.guard.drain(10.0))
        await client.until(lambda seen: seen.goaway is not None)
        client.send(opening(client, 3))  # was on its way: still served
        await server.until(lambda seen: 3 in seen.blocks)
        client.send(wire.ping(b"draining", ack=True))
        await client.until(lambda seen: seen.last_stream_id == 3)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", scene.guard.port)
        for stream_id in (1, 3):
            server.send(server.wire.response(stream_id), server.wire.tail(stream_id))
        client.send(data(1, b"", True), data(3, b"", True))
        seen = await client.until(lambda _: False)
        assert {1, 3} <= seen.ended
        idle.send(wire.ping(b"draining", ack=True))
        assert (await idle.until(lambda _: False)).goaway == NO_ERROR
        assert await draining is True


async def test_a_drain_gives_up_on_streams_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "_DRAIN_PING_S", 0.0)
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1))
        assert await scene.guard.drain(0.05) is False
        await client.until(lambda seen: seen.last_stream_id == 1)  # although the PING was not answered
        await scene.guard.close()
        assert (await client.until(lambda _: False)).closed
        assert (await server.until(lambda _: False)).closed


async def test_when_all_connections_are_used_one_without_streams_makes_room() -> None:
    async with guarded(max_connections=2) as scene, scene.client() as busy, scene.client() as silent:
        await scene.through(busy, 1, opening(busy, 1))
        await silent.probe()
        async with scene.client() as third:
            await third.probe()
            assert (await silent.until(lambda _: False)).goaway == NO_ERROR
            assert scene.behind is not None
            third.send(opening(third, 1))
            await scene.behind.until(lambda seen: 3 in seen.blocks)
            async with scene.client() as fourth:  # both that are left carry a stream
                assert (await fourth.until(lambda _: False)).closed
        assert (await busy.probe()).goaway is None
        figures = scene.guard.figures()
        assert (figures["connections_evicted"], figures["connections_refused"]) == (1, 1)


async def test_figures_count_streams() -> None:
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1))
        client.send(opening(client, 3))
        await server.until(lambda seen: 3 in seen.blocks)
        assert (scene.guard.figures()["streams_open"], scene.guard.figures()["streams_taken"]) == (2, 2)
        client.send(rst(1), rst(3))
        await server.until(lambda seen: len(seen.resets) == 2)
        figures = scene.guard.figures()
        assert (figures["streams_open"], figures["streams_taken"], figures["backend_connections"]) == (0, 2, 1)


def context(authority: Authority, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(authority.file))
    made.set_alpn_protocols(["h2"])
    if pair is not None:
        made.load_cert_chain(*pair)
    return made


async def tls_client(port: int, tls: ssl.SSLContext) -> RawPeer:
    peer = RawPeer(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))
    peer.send(wire.PREFACE + wire.settings() + wire.settings(flags=wire.ACK))
    return peer


@BOTH_LOOPS
async def test_a_verified_certificate_names_its_peer(tmp_path: Path) -> None:
    """One without a certificate is served too, without a name: what it may do is decided by its token."""
    authority = Authority(tmp_path)
    tls = ServerTls(*authority.pair("server"), authority.file, require_client=False)
    async with guarded(tls=tls) as scene:
        for pair, name in ((authority.pair("agent"), "localhost"), (None, None)):
            client = await tls_client(scene.guard.port, context(authority, pair))
            stream_id = 1 if name else 3
            spoofed = ("x-outrider-peer-certificate", "root")
            client.send(opening(client, 1, spoofed, end=True))
            server = scene.behind or await scene.server.peer()
            scene.behind = server
            await server.until(lambda seen: stream_id in seen.blocks)  # noqa: B023
            asked = server.seen.blocks[stream_id][0]
            assert asked.get("x-outrider-peer-certificate") == name
            assert asked[":scheme"] == "http"  # of the socket behind
            await client.close()


async def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other", "other")
    tls = ServerTls(*authority.pair("server"), authority.file, require_client=False)
    async with guarded(tls=tls) as scene:
        try:
            client = await tls_client(scene.guard.port, context(authority, other.pair("agent")))
        except OSError:
            pass
        else:  # TLS 1.3 tells a client only with the first bytes it reads
            with contextlib.suppress(OSError):
                assert not (await client.until(lambda seen: seen.settings)).settings
            await client.close()
        assert scene.guard.figures()["connections_accepted"] == 0


async def test_new_files_are_seen_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "_TLS_POLL_S", 0.0)
    authority = Authority(tmp_path)
    async with guarded(tls=ServerTls(*authority.pair("server"))) as scene:
        certificate, _ = authority.pair("server")
        wanted = serial_of(certificate.read_bytes())
        async with asyncio.timeout(10):
            while True:
                client = await tls_client(scene.guard.port, context(authority))
                shown = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                await client.close()
                if serial_of(ssl.DER_cert_to_PEM_cert(shown).encode()) == wanted:
                    break


async def test_on_a_unix_socket_everybody_is_local(tmp_path: Path) -> None:
    async with guarded() as scene:
        path = tmp_path / "front.sock"
        guard = Guard(scene.reactor, scene.server.path)
        await guard.open(str(path))
        assert guard.port == 0
        client = RawPeer(*await asyncio.open_unix_connection(str(path)))
        client.send(wire.PREFACE + wire.settings() + wire.settings(flags=wire.ACK))
        client.send(opening(client, 1, end=True))
        server = await scene.server.peer()
        await server.until(lambda seen: 1 in seen.blocks)
        asked = server.seen.blocks[1][0]
        assert (asked["x-outrider-peer"], asked["x-outrider-peer-loopback"]) == ("unix", "1")
        await client.close()
        await guard.close()


def test_the_limits_suit_long_silent_streams() -> None:
    """A keepalive PING comes more often than NAT tables forget (a minute is short), and dead peers are found by it."""
    assert 0 < LIMITS.ping_interval_s < 60
    assert 0 < LIMITS.ping_timeout_s
    assert 0 < LIMITS.preface_timeout_s <= 10
    assert 0 < LIMITS.idle_timeout_s


def test_the_socket_is_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = SocketFile()
    folder = Path(place.path).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    Path(place.path).touch(0o666)
    place.protect()
    assert Path(place.path).stat().st_mode & 0o777 == 0o600
    assert place.address == f"unix:{place.path}"
    place.remove()
    assert not folder.exists()
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(OSError, match="longer than 107 bytes"):
        SocketFile(deep)
    assert list(deep.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    elsewhere = SocketFile()
    assert Path(elsewhere.path).parent.stat().st_mode & 0o777 == 0o700
    elsewhere.remove()
    assert list(deep.iterdir()) == []
