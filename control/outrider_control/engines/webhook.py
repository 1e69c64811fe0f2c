"""Has somebody else run the instances: tells a URL how many there are to be.

Always holds: that a number was taken on proves nothing: `instances` is what `instances_url` says now, and without it
what has registered. One control plane asks for the same number under the same `idempotency-key` (its successor under a
new one: numbers are absolute, so asking again changes nothing), and for numbers of one agent in the order they were
decided in. A refusal (4xx) is not asked again before the number, or the token, changes. Redirects are
not followed, what is read is bounded, and whatever happens is an EngineError that repeats no credential.

A receiver sees `POST {engine, agent_id, desired, ready, reason, at_ms, leaving, idempotency_key}`; any 2xx says that it
is taken on. With `secret_file` the header `x-outrider-signature: sha256=HEX` is the HMAC of the body, in which `at_ms`
tells a repeated one. `instances_url` gets `?agent_id=` and answers `{"instances": [{name, address, state}]}` or
`{"ready": n, "desired": n}`.

Deliberately not here: draining (the receiver's own hooks), asking again (the loop).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote

import aiohttp

from outrider.address import parse_address
from outrider_control.engines.kubernetes_api import Watched, read_token
from outrider_control.engines.kubernetes_objects import text
from outrider_control.engines.webhook_settings import WebhookSettings, settings, shown
from outrider_control.loops.scale.types import (
    DRAINING,
    FAILED,
    READY,
    STARTING,
    Decision,
    EngineError,
    Instance,
)

__all__ = ["WebhookEngine", "WebhookSettings", "settings"]

MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_INSTANCES: Final = 10_000
MAX_PAUSE_MS: Final = 300_000
_SAID_BYTES: Final = 2_048  # of a refusal, for people
_CHUNK_BYTES: Final = 65_536
_STATES: Final = (STARTING, READY, DRAINING, FAILED)
_RETRYABLE: Final = (408, 425, 429)


@dataclass(slots=True)
class _Asked:
    """The number of one agent that was asked for last."""

    desired: int
    key: str
    refusal: str = ""  # what was said to it
    token: str | None = None  # that it was refused with


class WebhookEngine:
    """See `Engine` of `loops.scale.types`.

    `endpoints(agent_id)` gives what has registered; `last(agent_id)` the decision that is carried out, for its reason.
    """

    kind = "webhook"
    chooses = False
    pulls = False

    def __init__(
        self,
        name: str,
        settings: WebhookSettings,
        clock_ms: Callable[[], int],
        endpoints: Callable[[str], Sequence[Instance]],
        last: Callable[[str], Decision | None] | None = None,
    ):
        self.name = name
        self._settings = settings
        self._where = f"engine {name}"
        self._clock_ms = clock_ms
        self._endpoints = endpoints
        self._last = last
        self._token = Watched(settings.token_file, read_token) if settings.token_file is not None else None
        self._secret = Watched(settings.secret_file, _read_secret) if settings.secret_file is not None else None
        authorities = lambda file: ssl.create_default_context(cafile=str(file))  # noqa: E731
        self._tls = Watched(settings.ca, authorities) if settings.ca is not None else None
        self._session: aiohttp.ClientSession | None = None
        self._asked: dict[str, _Asked] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._ready: dict[str, int] = {}
        self._pause_until_ms = 0

    def has(self, agent_id: str) -> bool:
        return not self._settings.agents or agent_id in self._settings.agents

    async def start(self) -> None:
        """Nothing runs here; files that cannot be used are said now."""
        for file in (self._token, self._secret, self._tls):
            if file is not None:
                self._value(file)

    async def instances(self, agent_id: str) -> Sequence[Instance]:
        self._check(agent_id)
        found = await self._listed(agent_id) if self._settings.instances_url else list(self._endpoints(agent_id))
        self._ready[agent_id] = sum([one.state == READY for one in found])
        return found

    async def grow(self, agent_id: str, desired: int) -> None:
        await self._ask(agent_id, desired, ())

    async def shrink(self, agent_id: str, desired: int, leaving: Sequence[Instance]) -> None:
        await self._ask(agent_id, desired, leaving)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- asking ----------------------------------------------------------------------------------------------------

    async def _ask(self, agent_id: str, desired: Any, leaving: Sequence[Instance]) -> None:
        self._check(agent_id)
        if type(desired) is not int or not 0 <= desired <= MAX_INSTANCES:
            raise EngineError(f"{self._where}: {desired!r} is no number of instances for {agent_id!r}")
        async with self._turns.setdefault(agent_id, asyncio.Lock()):
            asked = self._asked.get(agent_id)
            if asked is None or asked.desired != desired:
                asked = self._asked[agent_id] = _Asked(desired, secrets.token_hex(16))
            token = self._value(self._token)
            if asked.refusal and asked.token == token:
                raise EngineError(f"{asked.refusal}; it is asked again when the number changes")
            asked.refusal = ""
            await self._post(agent_id, asked, leaving, token)

    async def _post(self, agent_id: str, asked: _Asked, leaving: Sequence[Instance], token: str | None) -> None:
        decision = self._last(agent_id) if self._last is not None else None
        body = json.dumps(
            {
                "engine": self.name,
                "agent_id": agent_id,
                "desired": asked.desired,
                "ready": self._ready.get(agent_id),
                "reason": decision.reason if decision is not None and decision.desired == asked.desired else None,
                "at_ms": self._clock_ms(),
                "leaving": [{"name": one.name, "address": one.address} for one in leaving],
                "idempotency_key": asked.key,
            }
        ).encode()
        headers = {"content-type": "application/json", "idempotency-key": asked.key}
        secret = self._value(self._secret)
        if secret is not None:
            headers["x-outrider-signature"] = f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"
        what = f"{self._where}: {asked.desired} instances of {agent_id} at {shown(self._settings.url)}"
        status, _, said = await self._send("POST", self._settings.url, what, headers, body, token)
        if 200 <= status < 300:
            return
        problem = _problem(what, status, said)
        if 300 <= status < 500 and status not in _RETRYABLE:
            asked.refusal, asked.token = problem, token
        raise EngineError(problem)

    # -- looking ---------------------------------------------------------------------------------------------------

    async def _listed(self, agent_id: str) -> list[Instance]:
        url = self._settings.instances_url
        what = f"{self._where}: the instances of {agent_id} at {shown(url)}"
        url += f"{'&' if '?' in url else '?'}agent_id={quote(agent_id, safe='')}"
        status, whole, data = await self._send("GET", url, what, {}, None, self._value(self._token))
        if not 200 <= status < 300:
            raise EngineError(_problem(what, status, data))
        if not whole:
            raise EngineError(f"{what}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
        try:
            return _instances(json.loads(data, parse_constant=_no_number), agent_id)
        except (ValueError, RecursionError) as error:
            raise EngineError(f"{what}: the answer cannot be used: {text(error)}") from None

    # -- HTTP ------------------------------------------------------------------------------------------------------

    async def _send(
        self, method: str, url: str, what: str, headers: dict[str, str], body: bytes | None, token: str | None
    ) -> tuple[int, bool, bytes]:
        """Status, whether all of it was read, and what was; of a POST that is taken on nothing is read."""
        left_ms = self._pause_until_ms - self._clock_ms()
        if 0 < left_ms <= MAX_PAUSE_MS:  # more: the clock was set back
            raise EngineError(f"{what}: a pause was asked for, {left_ms} ms more")
        headers |= {"accept": "application/json", "user-agent": "outrider-control"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        tls = self._value(self._tls)
        try:
            async with asyncio.timeout(self._settings.timeout_ms / 1_000):
                async with self._client().request(
                    method, url, data=body, headers=headers, ssl=True if tls is None else tls, allow_redirects=False
                ) as answer:
                    status = answer.status
                    if status in (429, 503):
                        self._pause_until_ms = self._clock_ms() + _pause_ms(answer.headers.get("Retry-After", ""))
                    if method == "POST" and 200 <= status < 300:
                        return status, True, b""
                    most = MAX_ANSWER_BYTES if 200 <= status < 300 else _SAID_BYTES
                    return status, *await _read(answer, most)
        except TimeoutError:
            raise EngineError(f"{what}: no answer within {self._settings.timeout_ms} ms") from None
        except aiohttp.ClientConnectorCertificateError as error:
            by = self._settings.ca if self._settings.ca is not None else "what this machine trusts"
            reason = text(error.certificate_error)
            raise EngineError(f"{what}: its certificate does not verify by {by}: {reason}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineError(f"{what}: cannot be asked: {_cause(error)}") from None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=8)
            )
        return self._session

    def _check(self, agent_id: str) -> None:
        if not self.has(agent_id):
            raise EngineError(f"{self._where}: is not for {agent_id!r}: add it to `agents`")

    def _value(self, file: Watched | None) -> Any:
        """None without a file."""
        if file is None:
            return None
        try:
            return file.value()
        except EngineError as error:
            raise EngineError(f"{self._where}: {error}") from None


async def _read(answer: aiohttp.ClientResponse, most: int) -> tuple[bool, bytes]:
    data = bytearray()
    async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
        data += chunk
        if len(data) > most:
            return False, bytes(data[:most])
    return True, bytes(data)


def _read_secret(file: Path) -> bytes:
    """ValueError where there is none."""
    secret = file.read_bytes().strip()
    if not secret:
        raise ValueError("it is empty")
    return secret


def _problem(what: str, status: int, said: bytes) -> str:
    if 300 <= status < 400:
        reason = "it sends elsewhere, which is not followed: name the last address of all"
    elif status in (401, 403):
        reason = "it does not know the token, or does not allow it what is asked"
    elif status in _RETRYABLE or status >= 500:
        reason = "it cannot just now"
    else:
        reason = "it refuses"
    words = text(said.decode("utf-8", "replace"), 200)
    return f"{what}: {reason} ({status}{f': {words}' if words else ''})"


def _cause(error: BaseException) -> str:
    """Without the URL, whose query may be secret."""
    if isinstance(error, aiohttp.InvalidURL):
        return "its URL cannot be used"
    if isinstance(error, aiohttp.ClientResponseError):  # as text it holds the URL
        return f"the answer is no HTTP: {text(error.message, 100)}"
    return text(getattr(error, "os_error", None) or error) or type(error).__name__


def _pause_ms(value: str) -> int:
    """Of Retry-After in seconds; 0: none is asked for, or not in seconds."""
    return min(int(value) * 1_000, MAX_PAUSE_MS) if value.isdecimal() and len(value) < 10 else 0


def _instances(data: Any, agent_id: str) -> list[Instance]:
    """ValueError: it is neither of the two forms."""
    if not isinstance(data, dict):
        raise ValueError("it is no object")
    if "instances" in data:
        found = data["instances"]
        if not isinstance(found, list) or len(found) > MAX_INSTANCES:
            raise ValueError(f"instances is no list of at most {MAX_INSTANCES}")
        instances = [_instance(one) for one in found]
        if len({one.name for one in instances}) < len(instances):
            raise ValueError("two instances have the same name")
        return instances
    if "ready" not in data:
        raise ValueError("it has neither instances nor ready")
    ready = _count(data, "ready")
    desired = _count(data, "desired") if "desired" in data else ready
    total = max(ready, desired)
    return [Instance(f"{agent_id}-{at}", state=READY if at <= ready else STARTING) for at in range(1, total + 1)]


def _instance(data: Any) -> Instance:
    if not isinstance(data, dict):
        raise ValueError("an instance is no object")
    name, address = data.get("name"), data.get("address") or ""
    if not isinstance(name, str) or not 0 < len(name) <= 253 or not name.isprintable():
        raise ValueError("an instance has no name")
    state = data.get("state", READY)
    if state not in _STATES:
        raise ValueError(f"{text(repr(state), 40)} is no state of an instance: {', '.join(_STATES)}")
    if not isinstance(address, str):
        raise ValueError("the address of an instance is no text")
    if address:
        try:
            parse_address(address)
        except ValueError as error:
            raise ValueError(f"{text(repr(address), 60)} {error}") from None
    note, started_ms = data.get("note", ""), data.get("started_ms", 0)
    return Instance(
        name,
        address,
        state,
        started_ms if type(started_ms) is int and 0 <= started_ms < 2**53 else 0,
        text(note, 400) if isinstance(note, str) else "",
    )


def _count(data: dict[str, Any], name: str) -> int:
    value = data[name]
    if type(value) is not int or not 0 <= value <= MAX_INSTANCES:
        raise ValueError(f"{name} is no number from 0 to {MAX_INSTANCES}")
    return value


def _no_number(value: str) -> NoReturn:
    raise ValueError(f"{value} is no number")
