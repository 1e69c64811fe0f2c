"""HTTP/1.1 by raw bytes over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_sidecar.edge import http1
from outrider_sidecar.edge.http1 import Http1Server, Request, Response

CHUNK = b"8000\r\n" + b"x" * 32_768 + b"\r\n"


def refuse(status: int, text: str) -> Response:
    return Response(status, json.dumps({"error": text}).encode())


async def echo(request: Request) -> Response:
    if request.path == "/broken":
        raise RuntimeError("secret detail")
    seen = f"{request.method} {request.path} {request.query} {request.headers.get('x-a', '')} ".encode()
    return Response(200, seen + request.body, "text/plain", {"x-b": "c"})


@asynccontextmanager
async def serving(handler: Callable[[Request], Awaitable[Response]] = echo) -> AsyncIterator[tuple[Http1Server, int]]:
    server = Http1Server(handler, refuse)
    port = await server.listen("127.0.0.1", 0)
    try:
        yield server, port
    finally:
        await server.close()


async def exchange(port: int, *parts: bytes, half_close: bool = False) -> bytes:
    """Everything the server says until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if half_close:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def until_closed(answer: Awaitable[bytes]) -> bytes:
    """What `answer` gives, b"" where the server's close reached us as a reset."""
    try:
        return await answer
    except OSError:
        return b""


def get(path: str = "/", extra: str = "connection: close\r\n", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n".encode()


async def test_a_request_is_read_and_answered():
    async with serving() as (_, port):
        body = b"0123456789"
        answer = await exchange(
            port,
            b"POST /a/b?c=d HTTP/1.1\r\nHost: h\r\nX-A: one\r\nX-A: two\r\n"
            b"Content-Length: 10\r\nConnection: close\r\n\r\n" + body,
        )
    head, _, got = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/plain" in head.lower()
    assert b"x-content-type-options: nosniff" in head.lower()
    assert b"cache-control: no-store" in head.lower()
    assert b"x-b: c" in head.lower()
    assert got == b"POST /a/b c=d one " + body


async def test_requests_follow_each_other_on_one_connection_even_pipelined():
    async with serving() as (server, port):
        answer = await exchange(port, get("/1", "") + get("/2", ""), get("/3"))
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        assert [answer.index(b"GET /%d" % n) for n in (1, 2, 3)] == sorted(
            answer.index(b"GET /%d" % n) for n in (1, 2, 3)
        )
        assert len(server.connections) <= 1


async def test_any_split_of_the_bytes_gives_the_same_answer():
    head = b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    request = head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with serving() as (_, port):
        whole = await exchange(port, request)
        single = await exchange(port, *(request[at : at + 1] for at in range(len(request))))
    assert whole.endswith(b"POST /x   abcde")
    assert strip_date(whole) == strip_date(single)


def strip_date(answer: bytes) -> list[bytes]:
    return [line for line in answer.split(b"\r\n") if not line.lower().startswith(b"date:")]


async def test_head_is_answered_without_a_body():
    async with serving() as (_, port):
        head = await exchange(port, get("/x", method="HEAD"))
        full = await exchange(port, get("/x"))
    assert head.endswith(b"\r\n\r\n")
    assert b"content-length: 10" in head.lower()
    assert b"content-length: 9" in full.lower()


async def test_a_caller_that_closes_its_side_still_gets_the_answer():
    gate = asyncio.Event()

    async def slow(request: Request) -> Response:
        await gate.wait()
        return Response(200, b"late")

    async with serving(slow) as (server, port):
        asking = asyncio.ensure_future(exchange(port, get("/x", ""), half_close=True))
        while not server.connections:
            await asyncio.sleep(0.001)
        gate.set()
        assert (await asking).endswith(b"late")


async def test_100_continue():
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"ok")
        assert (await reader.read()).endswith(b"ok")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nBad Name: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n" + b"x" * 65_537, 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK * 2 + b"8000\r\nx", 413),
    ],
    ids=["not HTTP", "no host", "two hosts", "bad name", "bad length", "long head", "long body", "long chunked body"],
)  # fmt: skip
async def test_bad_requests_get_an_answer_and_a_close(request_bytes: bytes, status: int):
    async with serving() as (server, port):
        answer = await exchange(port, request_bytes)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in answer.lower()
        assert b'{"error": ' in answer
        while server.connections:
            await asyncio.sleep(0.001)


async def test_a_failing_handler_is_a_500_without_its_secrets(caplog: pytest.LogCaptureFixture):
    async with serving() as (_, port):
        answer = await exchange(port, get("/broken"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer
    assert "secret detail" in caplog.text


async def test_silent_and_slow_connections_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http1, "REQUEST_TIMEOUT_S", 0.02)
    async with serving() as (server, port):
        assert await exchange(port) == b""
        assert await exchange(port, b"GET / HTTP/1.1\r\nHost:") == b""
        kept = await exchange(port, get("/", ""))  # a kept connection without a next request
        assert kept.startswith(b"HTTP/1.1 200")
        assert not server.connections


async def test_an_answer_has_a_time_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http1, "ANSWER_TIMEOUT_S", 0.02)

    async def never(request: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(never) as (_, port):
        assert await until_closed(exchange(port, get("/"), b"more that nobody reads")) == b""


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http1, "MAX_CONNECTIONS", 2)
    async with serving() as (server, port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        while len(server.connections) < 2:
            await asyncio.sleep(0.001)
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await until_closed(reader.read()) == b""
            writer.close()
        assert len(server.connections) == 2
        for _, writer in held:
            writer.close()
        while server.connections:
            await asyncio.sleep(0.001)
        assert (await exchange(port, get("/"))).startswith(b"HTTP/1.1 200")


async def test_close_ends_requests_that_are_worked_on():
    entered = asyncio.Event()

    async def never(request: Request) -> Response:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    server = Http1Server(never, refuse)
    port = await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(get("/"))
    await entered.wait()
    await server.close()
    assert await until_closed(reader.read()) == b""
    writer.close()


@settings(max_examples=30)
@given(
    st.lists(
        st.one_of(st.binary(max_size=80), st.sampled_from([get("/"), b"\r\n\r\n", b"POST / HTTP/1.1\r\n"])), max_size=5
    )
)
def test_no_bytes_break_the_server(parts: list[bytes]):
    async def run() -> None:
        async with serving() as (_, port):
            answer = await until_closed(exchange(port, *parts, half_close=True))
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            assert (await exchange(port, get("/after"))).endswith(b"GET /after   ")

    asyncio.run(run())
