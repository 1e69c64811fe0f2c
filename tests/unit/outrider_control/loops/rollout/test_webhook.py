from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from outrider_control.loops.rollout import record
from outrider_control.loops.rollout.webhook import MAX_ATTEMPTS, Webhooks
from outrider_control.state import journal, rollouts
from outrider_control.state.database import Database
from outrider_control.state.rollouts import MAX_BACKOFF_MS, RolloutRow
from tests.rollouts import AGENT, Rolling, wanted

NOW_MS = 1_800_000_000_000


class Receiver:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.status = 200
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.port = 0
        self._over = asyncio.Event()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/{name}", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        self._over.set()
        await self._runner.cleanup()

    def url(self, name: str = "hook") -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.heard.append((request.path, headers, body))
        if self.status == 0:
            await self._over.wait()
        return web.Response(status=self.status, headers={"location": self.url("other")})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.start()
    yield made
    await made.close()


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def row(name: str = "out") -> RolloutRow:
    return RolloutRow(name, AGENT, 1, "progressing", b"", "{}", "ann", "", name, 0, NOW_MS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def webhooks(database: Database, clock: Clock) -> AsyncIterator[Webhooks]:
    made = Webhooks(database, clock, random.Random(1), timeout_s=0.5)
    yield made
    await made.close()


async def test_every_transition_is_told_in_order_and_signed(
    database: Database, receiver: Receiver, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"hush\n")
    rolling = Rolling(database)
    await rolling.start()
    await rolling.loop.create(wanted("0.5:2", "1", webhooks=[receiver.url()]), "ann", "v2")
    for _ in range(6):
        await rolling.turn()
    webhooks = Webhooks(database, rolling.clock_ms, random.Random(1), secret)
    while await webhooks.round():
        pass
    bodies = [json.loads(body) for _, _, body in receiver.heard]
    assert [one["event"] for one in bodies] == ["create", "initialize", "step", "promote", "finalise", "succeed"]
    assert [one["weight"] for one in bodies] == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert all([one["rollout"] == "out" and one["agent_id"] == AGENT and one["reason"] for one in bodies])
    assert (bodies[0]["author"], bodies[1]["author"]) == ("ann", "rollout")
    for (_, headers, body), one in zip(receiver.heard, bodies, strict=True):
        signature = hmac.new(b"hush", body, hashlib.sha256).hexdigest()
        assert headers["x-outrider-signature"] == f"sha256={signature}"
        assert headers["idempotency-key"] == one["id"]
    assert len({one["id"] for one in bodies}) == len(bodies)
    assert await database.read(rollouts.waiting) == []
    await webhooks.close()
    await rolling.close()


@pytest.mark.parametrize("status", [500, 404, 302, 0], ids=["fails", "refuses", "sends elsewhere", "is silent"])
async def test_what_is_not_taken_is_told_again_later_and_with_the_same_key(
    database: Database, receiver: Receiver, webhooks: Webhooks, clock: Clock, status: int
) -> None:
    await database.write(rollouts.tell, row(), [receiver.url()], "{}", "key", NOW_MS)
    receiver.status = status
    assert await webhooks.round() == 0
    assert await webhooks.round() == 0  # it is not due
    assert len(receiver.heard) == 1
    waits = []
    for _ in range(12):
        (message,) = await database.read(rollouts.waiting)
        waits.append(message.due_ms - clock.now_ms)
        if status == 0:
            break
        clock.now_ms = message.due_ms
        assert await webhooks.round() == 0
    assert all([0 < wait <= MAX_BACKOFF_MS for wait in waits])
    assert status == 0 or waits[5] > 8 * waits[0]
    receiver.status = 200
    clock.now_ms += MAX_BACKOFF_MS
    assert await webhooks.round() == 1
    assert {headers["idempotency-key"] for _, headers, _ in receiver.heard} == {"key"}
    assert {path for path, _, _ in receiver.heard} == {"/hook"}  # redirects are not followed


async def test_one_that_never_answers_is_given_up_and_journalled(
    database: Database, receiver: Receiver, webhooks: Webhooks, clock: Clock
) -> None:
    await database.write(rollouts.tell, row(), [f"{receiver.url()}?token=hush"], "{}", "key", NOW_MS)
    receiver.status = 503
    for _ in range(MAX_ATTEMPTS):
        assert await database.read(rollouts.waiting)
        assert await webhooks.round() == 0
        clock.now_ms += MAX_BACKOFF_MS
    assert await database.read(rollouts.waiting) == []
    (entry,) = await database.read(journal.read, AGENT, record.KIND)
    assert entry.outcome["action"] == "webhook_given_up"
    assert "503" in entry.reason
    assert "hush" not in entry.reason


async def test_one_url_holds_up_no_other_and_each_is_told_in_order(
    database: Database, receiver: Receiver, webhooks: Webhooks, clock: Clock
) -> None:
    nobody = "http://127.0.0.1:9/hook"
    for number in range(3):
        urls = [nobody, receiver.url()]
        await database.write(rollouts.tell, row(), urls, json.dumps(number), f"key-{number}", NOW_MS)
    for _ in range(6):
        await webhooks.round()
    assert [json.loads(body) for _, _, body in receiver.heard] == [0, 1, 2]
    left = await database.read(rollouts.waiting)
    assert [(one.url, one.key) for one in left] == [(nobody, f"key-{number}") for number in range(3)]
    assert [one.attempts for one in left] == [1, 0, 0]


async def test_a_clock_that_was_set_back_delays_nothing_for_long(
    database: Database, receiver: Receiver, webhooks: Webhooks, clock: Clock
) -> None:
    await database.write(rollouts.tell, row(), [receiver.url()], "{}", "key", NOW_MS)
    clock.now_ms -= 86_400_000
    assert await webhooks.round() == 1


async def test_a_secret_that_cannot_be_read_sends_nothing_unsigned(
    database: Database, receiver: Receiver, clock: Clock, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    await database.write(rollouts.tell, row(), [receiver.url()], "{}", "key", NOW_MS)
    webhooks = Webhooks(database, clock, random.Random(1), secret)
    for content in (None, b" \n"):
        if content is not None:
            secret.write_bytes(content)
        assert await webhooks.round() == 0
        assert "webhooks of rollouts wait" in webhooks.problem
    assert receiver.heard == []
    secret.write_bytes(b"hush")
    assert await webhooks.round() == 1
    assert webhooks.problem == ""
    await webhooks.close()


async def test_the_outbox_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "MAX_OUTBOX", 3)
    assert await database.write(rollouts.tell, row(), ["https://a/", "https://b/"], "{}", "1", NOW_MS) == 2
    assert await database.write(rollouts.tell, row(), ["https://a/", "https://b/"], "{}", "2", NOW_MS) == 0
    assert await database.write(rollouts.tell, row(), ["https://a/"], "{}", "3", NOW_MS) == 1
    assert len(await database.read(rollouts.waiting)) == 3
