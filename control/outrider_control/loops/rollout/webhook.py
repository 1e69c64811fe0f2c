"""Tells webhooks of rollouts' transitions, out of the outbox.

Always holds: each transition is told at least once, or given up after `MAX_ATTEMPTS` and journalled so; a URL is told
in order, and one that does not answer holds up no other; waits double to a bound. Redirects are not followed, no answer
is read but its status, and no part of a URL that may be secret is repeated anywhere.

A receiver sees `POST {id, event, rollout, agent_id, before, phase, step, weight_before, weight, reason, author,
experiment, at_ms}`, `id` also as the header `idempotency-key`; any 2xx says that it is taken. With a secret the header
`x-outrider-signature: sha256=HEX` is the HMAC of the body, as the webhook engine of scaling has it.

Deliberately not here: what is told (`act`), when (`loop`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

import aiohttp

from outrider_control.core.decision import Decision
from outrider_control.loops.rollout.record import AUTHOR, KIND
from outrider_control.state import journal, rollouts
from outrider_control.state.database import Database
from outrider_control.state.rollouts import MAX_BACKOFF_MS, Message

MAX_ATTEMPTS: Final = 30
AT_ONCE: Final = 32
TIMEOUT_S: Final = 10.0
_BASE_MS: Final = 1_000

_LOG = logging.getLogger("outrider.control.rollout")


class Webhooks:
    """`secret_file`: what is sent is signed with what it holds; it is read at each round, so that it may be rotated."""

    def __init__(
        self,
        db: Database,
        clock_ms: Callable[[], int],
        rng: Random,
        secret_file: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ):
        self.problem = ""  # of the secret, for people
        self._db = db
        self._clock_ms = clock_ms
        self._rng = rng
        self._secret_file = secret_file
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def round(self) -> int:
        """Send what is due, the oldest of each URL; how many were delivered. DatabaseError: what was may come again."""
        messages = await self._db.read(rollouts.due, self._clock_ms(), AT_ONCE)
        if not messages:
            return 0
        try:
            secret = self._secret()
        except (OSError, ValueError) as error:
            self.problem = f"webhooks of rollouts wait: {self._secret_file} cannot be used: {error}"
            return 0
        self.problem = ""
        causes = await asyncio.gather(*[self._post(message, secret) for message in messages])
        done = [message.id for message, cause in zip(messages, causes, strict=True) if not cause]
        failed = [(message, cause) for message, cause in zip(messages, causes, strict=True) if cause]
        if done:
            await self._db.write(rollouts.delivered, done)
        for message, cause in failed:
            await self._failed(message, cause)
        return len(done)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, message: Message, secret: bytes | None) -> str:
        """Why it was not taken; empty: it was."""
        body = message.body.encode()
        headers = {
            "content-type": "application/json",
            "idempotency-key": message.key,
            "user-agent": "outrider-control",
        }
        if secret is not None:
            headers["x-outrider-signature"] = f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"
        try:
            async with asyncio.timeout(self._timeout_s):
                async with self._client().post(
                    message.url, data=body, headers=headers, allow_redirects=False
                ) as answer:
                    return "" if 200 <= answer.status < 300 else f"it answers {answer.status}"
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"it cannot be reached ({type(error).__name__})"  # as text it may hold the URL

    async def _failed(self, message: Message, cause: str) -> None:
        attempts, now_ms = message.attempts + 1, self._clock_ms()
        if attempts >= MAX_ATTEMPTS:
            _LOG.warning("a webhook of rollout %s is given up after %d attempts: %s", message.rollout, attempts, cause)
            await self._db.write(give_up, message, attempts, cause, now_ms)
            return
        wait_ms = min(_BASE_MS << min(attempts - 1, 20), MAX_BACKOFF_MS)
        due_ms = now_ms + round(wait_ms * self._rng.uniform(0.8, 1.0))
        await self._db.write(rollouts.failed, message.id, attempts, due_ms)

    def _secret(self) -> bytes | None:
        if self._secret_file is None:
            return None
        secret = self._secret_file.read_bytes().strip()
        if not secret:
            raise ValueError("it is empty")
        return secret

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=AT_ONCE)
            )
        return self._session


def give_up(connection: rollouts.Connection, message: Message, attempts: int, cause: str, now_ms: int) -> None:
    """It is not told any more, and the journal says so."""
    rollouts.delivered(connection, [message.id])
    where = message.url.partition("?")[0]
    reason = f"webhook {where} is not told of {message.key}: {attempts} attempts failed, at last: {cause}"
    outcome = {"rollout": message.rollout, "action": "webhook_given_up"}
    journal.append(connection, Decision(KIND, AUTHOR, reason, message.agent_id, {}, outcome, now_ms))
