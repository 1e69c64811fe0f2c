"""What the API server may answer, and what a person is then told; credentials, TLS, bounds."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kmock import KubernetesError, KubernetesScaffold, Server, action

from outrider_control.engines import kubernetes_api
from outrider_control.engines.kubernetes_api import Api, Right, Watched, read_token
from outrider_control.engines.kubernetes_settings import settings
from outrider_control.loops.scale.types import EngineError
from tests.certificates import Authority
from tests.kubernetes_cluster import answers

PATH = "/apis/apps/v1/namespaces/agents/deployments/tax-agent/scale"
RIGHT = Right("get", "deployments/scale", "agents", "tax-agent")
WRITE = Right("patch", "deployments/scale", "agents", "tax-agent")


class Clock:
    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@asynccontextmanager
async def api_of(url: str, clock: Clock | None = None, **fields: Any) -> AsyncIterator[Api]:
    data = {"namespace": "agents", "server": url, "deployments": {"tax": "tax-agent"}, **fields}
    api = Api("prod", settings(data, "", Path("/")), clock or Clock())
    try:
        yield api
    finally:
        await api.close()


@asynccontextmanager
async def serving(*first: Any, clock: Clock | None = None, **fields: Any) -> AsyncIterator[tuple[Api, Any]]:
    """An API whose server gives these answers one after the other, and then an object for ever."""
    async with KubernetesScaffold() as handler, Server(handler) as server:
        left = list(first)

        def answer(request: Any) -> Any:
            return left.pop(0) if left else {"fine": True}

        answers(handler[lambda request: True], answer)
        async with api_of(str(server.url), clock, **fields) as api:
            yield api, handler


async def told(doing: Awaitable[Any]) -> str:
    with pytest.raises(EngineError) as caught:
        await doing
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    return message


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "refuses the change as invalid (400: it is so)"),
        (401, "wants a token: set token_file (401: it is so)"),
        (403, "the service account needs the right to patch deployments/scale tax-agent in namespace agents"),
        (404, "finds none: create it, or mend `deployments` of engine prod (404"),
        (409, "changed meanwhile by somebody else (409"),
        (410, "the API server refuses (410"),
        (422, "refuses the change as invalid (422: it is so)"),
        (302, "sends elsewhere, which is not followed"),
        (500, "has a fault of its own (500: it is so)"),
        (503, "has a fault of its own (503: it is so)"),
    ],
)
async def test_errors_say_what_to_do(status: int, said: str) -> None:
    async with serving(KubernetesError(status, "Reason", "it is so")) as (api, _):
        message = await told(api.patch(PATH, WRITE, {"spec": {"replicas": 1}}))
    assert message.startswith("engine prod: patch deployments/scale tax-agent in namespace agents at http://127.0.0.1:")
    assert said in message


async def test_a_status_is_kept_on_the_error() -> None:
    async with serving(KubernetesError(409)) as (api, _):
        with pytest.raises(kubernetes_api.ApiError) as caught:
            await api.get(PATH, RIGHT)
    assert caught.value.status == 409


async def test_what_a_server_says_is_cut_and_cleaned() -> None:
    async with serving(KubernetesError(500, "x", "a\x1b[31m\nb" * 1_000)) as (api, _):
        assert "a [31m ba [31m b" in await told(api.get(PATH, RIGHT))


async def test_a_pause_is_kept() -> None:
    clock = Clock()
    async with KubernetesScaffold() as handler, Server(handler) as server:
        answers(handler["get"][:1], 429, {"Retry-After": "7"}, b"slow down")
        answers(handler["get"], {"fine": True})
        async with api_of(str(server.url), clock) as api:
            assert "asks for a pause of 7000 ms (429: slow down)" in await told(api.get(PATH, RIGHT))
            clock.now_ms += 6_999
            assert "asked for a pause, 1 ms more" in await told(api.patch(PATH, WRITE, {}))
            assert len(handler) == 1
            clock.now_ms += 1
            assert await api.get(PATH, RIGHT) == {"fine": True}


@pytest.mark.parametrize(
    ("status", "value", "pause_ms"),
    [
        (429, "86400", 300_000),
        (429, "-5", 1_000),
        (429, "soon", 1_000),
        (429, "9" * 5_000, 1_000),
        (503, "2", 2_000),
    ],
)
async def test_odd_pauses_are_bounded(status: int, value: str, pause_ms: int) -> None:
    clock = Clock()
    async with KubernetesScaffold() as handler, Server(handler) as server:
        answers(handler["get"], status, {"Retry-After": value}, b"no")
        async with api_of(str(server.url), clock) as api:
            assert f"a pause of {pause_ms} ms" in await told(api.get(PATH, RIGHT))
            clock.now_ms -= 3_600_000  # a clock that is set back makes no endless pause
            await told(api.get(PATH, RIGHT))
            assert len(handler) == 2


async def test_a_change_is_a_merge_patch() -> None:
    async with serving() as (api, handler):
        assert await api.patch(PATH, WRITE, {"spec": {"replicas": 3}}) == {"fine": True}
        (request,) = handler
    assert request.action is action.UPDATE
    assert request.subresource == "scale"
    assert request.headers["Content-Type"] == "application/merge-patch+json"
    assert request.data == {"spec": {"replicas": 3}}
    assert "Authorization" not in request.headers


# -- credentials -------------------------------------------------------------------------------------------------------


async def test_a_token_that_is_rotated(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    async with serving(token_file=str(file)) as (api, handler):
        await api.get(PATH, RIGHT)
        replace(file, "second")
        await api.get(PATH, RIGHT)
        replace(file, "")  # half written: the one before is still good
        await api.get(PATH, RIGHT)
        file.unlink()
        await api.get(PATH, RIGHT)
        sent = [request.headers["Authorization"] for request in handler]
    assert sent == ["Bearer first", "Bearer second", "Bearer second", "Bearer second"]


async def test_a_token_that_is_rotated_without_a_trace(tmp_path: Path) -> None:
    """Same size, same time stamp: the server's 401 has it read again."""
    file = tmp_path / "token"
    file.write_text("aaaa")
    async with serving({"fine": True}, KubernetesError(401), token_file=str(file)) as (api, handler):
        await api.get(PATH, RIGHT)
        stat = file.stat()
        file.write_text("bbbb")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert await api.get(PATH, RIGHT) == {"fine": True}
        sent = [request.headers["Authorization"] for request in handler]
    assert sent == ["Bearer aaaa", "Bearer aaaa", "Bearer bbbb"]


async def test_a_wrong_token_is_sent_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    async with serving(KubernetesError(401, "Unauthorized", "Unauthorized"), token_file=str(file)) as (api, handler):
        message = await told(api.get(PATH, RIGHT))
        assert len(handler) == 1
    assert f"does not know the token of {file}" in message
    assert "secret" not in message


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"line\nline", b"\xff", b"x\0y"])
def test_a_file_without_a_token(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(EngineError, match="token cannot be used"):
        Watched(file, read_token).value()


async def test_a_token_that_is_not_there_yet(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("x")
    async with serving(token_file=str(file)) as (api, handler):
        file.unlink()
        assert "token cannot be used" in await told(api.get(PATH, RIGHT))
        assert len(handler) == 0
        file.write_text("late")
        assert await api.get(PATH, RIGHT) == {"fine": True}


def replace(file: Path, content: str) -> None:
    """As kubelet does: another file takes the name."""
    aside = file.with_suffix(".new")
    aside.write_text(content)
    aside.replace(file)


# -- the connection ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(serve: Callable[..., Any], tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that does as `serve` says."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def answering(head: bytes, body: bytes = b"") -> Callable[..., Any]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n" + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return serve


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json"
BODY = b'{"fine": true}'
FINE = answering(OK + b"\r\nContent-Length: 14", BODY)


async def test_nobody_listens() -> None:
    async with listening(FINE) as port:
        pass
    async with api_of(f"http://127.0.0.1:{port}") as api:
        assert "the API server cannot be reached" in await told(api.get(PATH, RIGHT))


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"SSH-2.0-OpenSSH_9.2", b""),
        (OK + b"\r\nContent-Length: 500", BODY),
        (OK + b"\r\nTransfer-Encoding: chunked", b"zz\r\n"),
        (OK + b"\r\nContent-Encoding: gzip\r\nContent-Length: 14", BODY),
        (b"", b""),
    ],
)
async def test_a_connection_that_breaks(head: bytes, body: bytes) -> None:
    async with listening(answering(head, body)) as port, api_of(f"http://127.0.0.1:{port}") as api:
        assert "the API server cannot be reached" in await told(api.get(PATH, RIGHT))


async def test_a_connection_that_is_reset() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    async with listening(reset) as port, api_of(f"http://127.0.0.1:{port}") as api:
        assert "the API server cannot be reached" in await told(api.patch(PATH, WRITE, {}))


async def test_a_server_that_never_answers() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(silent) as port, api_of(f"http://127.0.0.1:{port}", timeout_ms=100) as api:
        assert "no answer within 100 ms" in await told(api.get(PATH, RIGHT))


async def test_a_server_that_never_ends() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n\r\n")
        try:
            while True:
                writer.write(b" " * 65_536)
                await writer.drain()
        except ConnectionError:
            writer.close()

    async with listening(endless) as port, api_of(f"http://127.0.0.1:{port}", timeout_ms=60_000) as api:
        assert f"longer than {kubernetes_api.MAX_ANSWER_BYTES} bytes" in await told(api.get(PATH, RIGHT))


async def test_a_cancelled_request_is_cancelled() -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async with listening(silent) as port, api_of(f"http://127.0.0.1:{port}") as api:
        asking = asyncio.create_task(api.get(PATH, RIGHT))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_a_redirect_is_not_followed() -> None:
    """The token would go with it."""
    asked = []

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1))
        writer.close()

    async with listening(other) as elsewhere:
        location = f"HTTP/1.1 307 x\r\nLocation: http://127.0.0.1:{elsewhere}/\r\nContent-Length: 0".encode()
        async with listening(answering(location)) as port, api_of(f"http://127.0.0.1:{port}") as api:
            assert "is not followed" in await told(api.get(PATH, RIGHT))
    assert asked == []


# -- TLS ---------------------------------------------------------------------------------------------------------------


def server_tls(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.pair("server"))
    return context


async def test_the_server_is_verified(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, theirs = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    async with listening(FINE, server_tls(ours)) as port:
        async with api_of(f"https://127.0.0.1:{port}", ca_file=str(ours.file)) as api:
            assert await api.get(PATH, RIGHT) == {"fine": True}
        async with api_of(f"https://127.0.0.1:{port}", ca_file=str(theirs.file)) as api:
            assert f"its certificate does not verify by {theirs.file}" in await told(api.get(PATH, RIGHT))
        async with api_of(f"https://127.0.0.1:{port}") as api:
            assert "does not verify by what this machine trusts" in await told(api.get(PATH, RIGHT))


async def test_authorities_that_are_rotated(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, theirs = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    file = tmp_path / "ca.crt"
    file.write_bytes(theirs.file.read_bytes())
    async with listening(FINE, server_tls(ours)) as port, api_of(f"https://127.0.0.1:{port}", ca_file=str(file)) as api:
        assert "does not verify" in await told(api.get(PATH, RIGHT))
        replace(file, ours.file.read_text())
        assert await api.get(PATH, RIGHT) == {"fine": True}
        replace(file, "half a certif")
        assert await api.get(PATH, RIGHT) == {"fine": True}


async def test_authorities_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    file.write_text("nothing of the kind")
    async with api_of("https://127.0.0.1:1", ca_file=str(file)) as api:
        assert "ca.crt cannot be used" in await told(api.get(PATH, RIGHT))
