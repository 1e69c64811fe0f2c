"""What is told to a webhook and what it may answer, against a real server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from outrider.policy import PolicyError
from outrider_control.engines.webhook import MAX_ANSWER_BYTES, WebhookEngine, settings
from outrider_control.loops.scale.types import READY, STARTING, Decision, EngineError, Instance
from tests.certificates import Authority

PATH = "scaling.engines.hook"


class Clock:
    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


class Hook:
    """What was asked, and how it is answered: with `replies` one after the other, and then with 204 for ever."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.queries: list[dict[str, str]] = []
        self.replies: list[Any] = []
        self.url = ""

    async def answer(self, request: Any) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.queries.append(dict(request.query))
        if body:
            self.asked.append(json.loads(body))
        reply = self.replies.pop(0) if self.replies else web.Response(status=204)
        return reply if isinstance(reply, web.Response) else await reply(request)


@asynccontextmanager
async def hooked(tls: ssl.SSLContext | None = None) -> AsyncIterator[Hook]:
    hook = Hook()
    server = web.Server(hook.answer, shutdown_timeout=0.1)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    hook.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/scale?key=hunter2"
    try:
        yield hook
    finally:
        await runner.cleanup()


@asynccontextmanager
async def engine_of(
    hook: Hook, listed: bool = False, clock: Clock | None = None, last: Any = None, **fields: Any
) -> AsyncIterator[WebhookEngine]:
    data = {"kind": "webhook", "url": hook.url, "timeout_ms": 5_000, **fields}
    if listed:
        data["instances_url"] = hook.url
    registered = [Instance("10.0.0.5:9001", "10.0.0.5:9001", READY)]
    engine = WebhookEngine("hook", settings(data, PATH, Path("/")), clock or Clock(), lambda _: registered, last)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def told(doing: Awaitable[Any]) -> str:
    """What the error says; never what is secret."""
    with pytest.raises(EngineError) as caught:
        await doing
    text = str(caught.value)
    assert text.startswith("engine hook: ")
    assert "hunter2" not in text
    assert len(text) < 600
    return text


def said(data: Any, status: int = 200) -> web.Response:
    return web.Response(text=data if isinstance(data, str) else json.dumps(data), status=status)


async def test_a_number_is_told_with_its_reason() -> None:
    decision = Decision("tax", 5, 4, "up", "40 calls need 4")
    async with hooked() as hook, engine_of(hook, last=lambda agent_id: decision) as engine:
        await engine.instances("tax")
        await engine.grow("tax", 4)
        leaving = [Instance("10.0.0.5:9001", "10.0.0.5:9001", READY)]
        await engine.shrink("tax", 0, leaving)
    first, second = hook.asked
    assert first == {
        "engine": "hook",
        "agent_id": "tax",
        "desired": 4,
        "ready": 1,
        "reason": "40 calls need 4",
        "at_ms": 1_000_000,
        "leaving": [],
        "idempotency_key": hook.headers[0]["idempotency-key"],
    }
    assert (second["desired"], second["reason"]) == (0, None)  # that decision was another one
    assert second["leaving"] == [{"name": "10.0.0.5:9001", "address": "10.0.0.5:9001"}]
    assert hook.headers[0]["content-type"] == "application/json"
    assert "authorization" not in hook.headers[0]
    assert hook.queries[0] == {"key": "hunter2"}


async def test_the_same_number_has_the_same_key() -> None:
    async with hooked() as hook, engine_of(hook) as engine:
        hook.replies = [said("busy", 503), said("boom", 500)]
        assert "it cannot just now (503: busy)" in await told(engine.grow("tax", 4))
        assert "(500: boom)" in await told(engine.grow("tax", 4))
        await engine.grow("tax", 4)
        await engine.grow("tax", 5)
        await engine.grow("law", 5)
        await engine.grow("tax", 4)
    keys = [one["idempotency_key"] for one in hook.asked]
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys[2:])) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422, 300, 304])
async def test_a_refusal_is_not_asked_again_until_the_number_changes(status: int) -> None:
    async with hooked() as hook, engine_of(hook) as engine:
        hook.replies = [said("no quota\x07left", status) if status != 304 else web.Response(status=304)]
        text = await told(engine.grow("tax", 4))
        assert f"({status}" in text
        assert status == 304 or "no quota left" in text
        assert await told(engine.grow("tax", 4)) == f"{text}; it is asked again when the number changes"
        assert len(hook.asked) == 1
        await engine.grow("tax", 3)
        await engine.grow("tax", 4)
        assert [one["desired"] for one in hook.asked] == [4, 3, 4]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_what_passes_is_asked_again(status: int) -> None:
    async with hooked() as hook, engine_of(hook) as engine:
        hook.replies = [web.Response(status=status)]
        assert f"({status})" in await told(engine.grow("tax", 4))
        await engine.grow("tax", 4)
        assert len(hook.asked) == 2


async def test_a_pause_is_kept() -> None:
    clock = Clock()
    async with hooked() as hook, engine_of(hook, clock=clock) as engine:
        hook.replies = [web.Response(status=429, headers={"Retry-After": "7"})]
        await told(engine.grow("tax", 4))
        assert "a pause was asked for, 7000 ms more" in await told(engine.grow("tax", 5))
        clock.now_ms += 7_000
        await engine.grow("tax", 5)
        hook.replies = [web.Response(status=503, headers={"Retry-After": "9" * 300})]
        await told(engine.grow("tax", 6))
        await engine.grow("tax", 6)  # that was no time to wait
        assert len(hook.asked) == 4


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t0ken\n")
    async with hooked() as hook, hooked() as other, engine_of(hook, listed=True, token_file=str(token)) as engine:
        hook.replies = [web.Response(status=307, headers={"Location": other.url}) for _ in range(2)]
        assert "sends elsewhere, which is not followed" in await told(engine.grow("tax", 4))
        assert "sends elsewhere, which is not followed" in await told(engine.instances("tax"))
        assert other.headers == []


async def test_token_and_signature_are_read_anew(tmp_path: Path) -> None:
    token, secret = tmp_path / "token", tmp_path / "secret"
    token.write_text("first\n")
    secret.write_text("s1\n")
    fields: dict[str, Any] = {"token_file": str(token), "secret_file": str(secret)}
    async with hooked() as hook, engine_of(hook, **fields) as engine:
        hook.replies = [said("who?", 401)]
        assert "does not know the token" in await told(engine.grow("tax", 4))
        await told(engine.grow("tax", 4))
        assert len(hook.asked) == 1
        replace(token, "second")
        replace(secret, "s2")
        await engine.grow("tax", 4)  # refused was the other token
    for at, (bearer, key) in enumerate([("first", b"s1"), ("second", b"s2")]):
        assert hook.headers[at]["authorization"] == f"Bearer {bearer}"
        digest = hmac.new(key, hook.bodies[at], hashlib.sha256).hexdigest()
        assert hook.headers[at]["x-outrider-signature"] == f"sha256={digest}"


def replace(file: Path, text: str) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.replace(file)


@pytest.mark.parametrize("text", ["", " \n", "two words", "umläut"])
async def test_a_token_that_cannot_be_one(tmp_path: Path, text: str) -> None:
    token = tmp_path / "token"
    token.write_text(text)
    data = {"url": "http://127.0.0.1:1/", "token_file": str(token)}
    engine = WebhookEngine("hook", settings(data, PATH, tmp_path), Clock(), lambda _: [])
    assert f"{token} cannot be used" in await told(engine.start())
    assert f"{token} cannot be used" in await told(engine.grow("tax", 1))
    await engine.close()


async def test_who_says_yes_and_does_nothing_is_seen() -> None:
    async with hooked() as hook, engine_of(hook) as engine:
        hook.replies = [said({"done": True, "instances": 99})]
        await engine.grow("tax", 99)
        assert [one.name for one in await engine.instances("tax")] == ["10.0.0.5:9001"]


async def test_instances_by_name() -> None:
    async with hooked() as hook, engine_of(hook, listed=True) as engine:
        rows = [
            {"name": "a", "address": "10.0.0.1:9001", "state": "ready", "started_ms": 5, "more": 1},
            {"name": "b", "state": "starting"},
            {"name": "c", "address": None, "state": "failed", "note": "no\x07 room"},
        ]
        hook.replies = [said({"instances": rows})]
        assert await engine.instances("tax eu&x=1") == [
            Instance("a", "10.0.0.1:9001", "ready", 5),
            Instance("b"),
            Instance("c", state="failed", note="no room"),
        ]
        assert hook.queries == [{"key": "hunter2", "agent_id": "tax eu&x=1"}]


@pytest.mark.parametrize(
    ("data", "states"),
    [
        ({"ready": 2, "desired": 3}, [READY, READY, STARTING]),
        ({"ready": 2, "desired": 1}, [READY, READY]),
        ({"ready": 1}, [READY]),
        ({"ready": 0, "desired": 0}, []),
        ({"instances": []}, []),
    ],
)
async def test_instances_by_number(data: Any, states: list[str]) -> None:
    async with hooked() as hook, engine_of(hook, listed=True) as engine:
        hook.replies = [said(data)]
        found = await engine.instances("tax")
        assert [one.state for one in found] == states
        assert len({one.name for one in found}) == len(found)


@pytest.mark.parametrize(
    "data",
    [
        *("", "<html>", "[]", "7", "null", "{}", '{"ready": NaN}', '{"ready": Infinity}', "[" * 100_000),
        *(f'{{"ready": {text}}}' for text in ("-1", "1.0", "true", "null", '"3"', "10001", "1" + "0" * 5_000)),
        {"ready": 1, "desired": -1},
        *({"instances": rows} for rows in (None, {}, [1], [{}], [{"name": ""}], [{"name": 5}], [{"name": "x" * 254}])),
        {"instances": [{"name": "a"}, {"name": "a"}]},
        {"instances": [{"name": "a", "state": "sleepy"}]},
        {"instances": [{"name": "a", "state": []}]},
        {"instances": [{"name": "a", "address": "nowhere"}]},
        {"instances": [{"name": "a", "address": {"host": "x"}}]},
        {"instances": [{"name": f"a{at}"} for at in range(10_001)]},
    ],
)
async def test_garbage_instead_of_instances(data: Any) -> None:
    async with hooked() as hook, engine_of(hook, listed=True) as engine:
        hook.replies = [said(data)]
        assert "the answer cannot be used: " in await told(engine.instances("tax"))


async def endless(request: web.Request, status: int = 200) -> web.StreamResponse:
    response = web.StreamResponse(status=status)
    await response.prepare(request)
    try:
        while True:
            await response.write(b" " * 65_536)
    except OSError:
        return response


async def test_answers_without_end() -> None:
    async with hooked() as hook, engine_of(hook, listed=True) as engine:
        hook.replies = [endless]
        assert f"longer than {MAX_ANSWER_BYTES} bytes" in await told(engine.instances("tax"))
        hook.replies = [endless]
        await engine.grow("tax", 4)  # it is taken on: what else is said does not matter
        hook.replies = [lambda request: endless(request, 500)]
        assert "(500)" in await told(engine.grow("tax", 5))


async def test_answers_that_do_not_come() -> None:
    released = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"ready": ')
        await released.wait()
        return response

    async with hooked() as hook, engine_of(hook, listed=True, timeout_ms=100) as engine:
        hook.replies = [never, never, half]
        assert "no answer within 100 ms" in await told(engine.grow("tax", 4))
        assert "no answer within 100 ms" in await told(engine.instances("tax"))
        assert "no answer within 100 ms" in await told(engine.instances("tax"))
        released.set()


async def test_connections_that_break() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(replies.pop(0))
        writer.close()

    replies = [b"", b"HTTP/1.1 200", b"\x00\x01\x02\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"]
    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    hook = Hook()
    hook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/scale?key=hunter2"
    async with engine_of(hook, listed=True) as engine:
        async with server:
            while replies:
                assert "cannot be asked: " in await told(engine.instances("tax"))
        assert "cannot be asked: " in await told(engine.grow("tax", 1))  # nobody listens any more


async def test_the_server_is_verified(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, theirs = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*ours.pair("server"))
    async with hooked(tls) as hook:
        async with engine_of(hook, ca=str(ours.file)) as engine:
            await engine.grow("tax", 4)
        async with engine_of(hook, ca=str(theirs.file)) as engine:
            assert f"does not verify by {theirs.file}" in await told(engine.grow("tax", 4))
        async with engine_of(hook) as engine:
            assert "does not verify by what this machine trusts" in await told(engine.grow("tax", 4))
    assert len(hook.asked) == 1


async def test_numbers_of_one_agent_do_not_pass_each_other() -> None:
    go_on = asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.Response()

    async with hooked() as hook, engine_of(hook) as engine:
        hook.replies = [late]
        first = asyncio.create_task(engine.grow("tax", 9))
        while not hook.asked:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(engine.shrink("tax", 2, ()))
        await engine.grow("law", 1)  # another agent's does not wait
        assert [one["agent_id"] for one in hook.asked] == ["tax", "law"]
        go_on.set()
        await asyncio.gather(first, second)
        assert [one["desired"] for one in hook.asked if one["agent_id"] == "tax"] == [9, 2]


@pytest.mark.parametrize("desired", [-1, 10_001, 2.0, True, None])
async def test_numbers_that_cannot_be(desired: Any) -> None:
    async with hooked() as hook, engine_of(hook, agents=["tax"]) as engine:
        assert "is no number of instances" in await told(engine.grow("tax", desired))
        assert not engine.has("law")
        assert "add it to `agents`" in await told(engine.grow("law", 1))
        assert hook.asked == []


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({"url": None}, "url", "nothing"),
        *(
            ({"url": text}, "url", "is not https://HOST/PATH")
            for text in ("", "x", "ftp://h/", "https://", "https://a b")
        ),
        ({"url": "https://[::1/"}, "url", "is no URL"),
        ({"url": "https://h:99999/"}, "url", "is no URL"),
        ({"url": "http://example.org/scale?key=hunter2"}, "url", "is not encrypted"),
        ({"url": "https://me:hunter2@h/"}, "url", "token_file"),
        ({"url": "https://h/#x"}, "url", "fragment"),
        ({"instances_url": "http://10.0.0.1/"}, "instances_url", "is not encrypted"),
        ({"timeout_ms": 0}, "timeout_ms", "is not between"),
        ({"timeout_ms": 60_000}, "timeout_ms", "is not between"),
        ({"token_file": "none"}, "token_file", "is not a file"),
        ({"secret_file": "none"}, "secret_file", "is not a file"),
        ({"ca": "none"}, "ca", "is not a file"),
        ({"agents": "tax"}, "agents", "is not a list"),
        ({"agents": [1]}, "agents[0]", "is not text"),
        ({"allow_insecure": "yes"}, "allow_insecure", "is not true or false"),
        ({"token": "t"}, "token", "did you mean 'token_file'?"),
    ],
)
def test_a_wrong_engine(tmp_path: Path, fields: dict[str, Any], path: str, reason: str) -> None:
    with pytest.raises(PolicyError) as caught:
        settings({"kind": "webhook", "url": "https://example.org/scale", **fields}, PATH, tmp_path)
    assert caught.value.path == f"{PATH}.{path}"
    assert reason in caught.value.reason
    assert "hunter2" not in str(caught.value)


def test_plain_http_where_it_is_fine(tmp_path: Path) -> None:
    for url in ("http://localhost:8080/x", "http://[::1]:80", "http://127.0.0.1/x"):
        assert settings({"url": url}, PATH, tmp_path).url == url
    far = "http://10.0.0.1/x"
    assert settings({"url": far, "allow_insecure": True}, PATH, tmp_path).url == far
    with pytest.raises(PolicyError, match=r"scaling\.engines\.hook\.url: is missing"):
        settings({"kind": "webhook"}, PATH, tmp_path)
