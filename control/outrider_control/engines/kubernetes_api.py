"""One Kubernetes API server over HTTPS: GET and merge-PATCH with a bearer token, and what went wrong in words.

Always holds: whatever happens between here and there is an EngineError that says what was asked, what came back and
what to do; a cancelled request is cancelled. The server is verified, redirects are not followed, a token goes to this
server alone. Token and authorities are read anew when their files change; while a new one cannot be read the one before
stays. What is read is bounded. A server that asks for a pause gets it.

Deliberately not here: watches (a scaler asks once a second at most, and for a few workloads), kubeconfig files.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import aiohttp

from outrider_control.engines.kubernetes_objects import text
from outrider_control.engines.kubernetes_settings import KubernetesSettings
from outrider_control.loops.scale.types import EngineError

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
MAX_PAUSE_MS: Final = 300_000
_PAUSE_MS = 1_000  # where a server asks for one and does not say how long
_CHUNK_BYTES = 65_536
_EXAMPLE = "examples/kubernetes/rbac.yaml has the rights"


class ApiError(EngineError):
    """The API server answered with an error."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Right:
    """What a request needs, as a Role names it."""

    verb: str  # "get", "list", "patch"
    resource: str  # "deployments/scale"
    namespace: str
    name: str = ""  # of the object; empty: of all

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f' {self.name}' if self.name else ''} in namespace {self.namespace}"


class Watched:
    """A file that is read anew when it was replaced."""

    __slots__ = ("_file", "_read", "_seen", "_value")

    def __init__(self, file: Path, read: Callable[[Path], Any]):
        self._file = file
        self._read = read
        self._seen: tuple[int, int, int] | None = None
        self._value: Any = None

    def value(self, again: bool = False) -> Any:
        """What `read` makes of it; EngineError where there has never been anything to read."""
        try:
            stat = self._file.stat()
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if again or seen != self._seen:
                self._value = self._read(self._file)
                self._seen = seen
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            if self._value is None:
                raise EngineError(f"{self._file} cannot be used: {text(error)}") from None
        return self._value


def read_token(file: Path) -> str:
    """ValueError where it holds nothing that can stand in a header."""
    token = file.read_text(encoding="ascii").strip()
    if not token or any(not "!" <= c <= "~" for c in token):
        raise ValueError("it holds no token")
    return token


class Api:
    """The API server of one engine's settings. `name` is the engine's, for messages."""

    def __init__(self, name: str, settings: KubernetesSettings, clock_ms: Callable[[], int]):
        self._where = f"engine {name}"
        self._server = settings.server
        self._timeout_ms = settings.timeout_ms
        self._clock_ms = clock_ms
        self._token_file = settings.token_file
        self._token = Watched(settings.token_file, read_token) if settings.token_file is not None else None
        self._ca_file = settings.ca_file
        authorities = lambda file: ssl.create_default_context(cafile=str(file))  # noqa: E731
        self._tls = Watched(settings.ca_file, authorities) if settings.ca_file is not None else None
        self._session: aiohttp.ClientSession | None = None
        self._pause_until_ms = 0

    async def get(self, path: str, right: Right, query: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        """The object at a path."""
        return await self._ask("GET", path, right, query, None)

    async def patch(self, path: str, right: Right, change: Mapping[str, Any]) -> Mapping[str, Any]:
        """Merge a change into the object at a path; the object as it is then."""
        return await self._ask("PATCH", path, right, None, json.dumps(change).encode())

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(
        self, method: str, path: str, right: Right, query: Mapping[str, str] | None, body: bytes | None
    ) -> Mapping[str, Any]:
        left_ms = self._pause_until_ms - self._clock_ms()
        if 0 < left_ms <= MAX_PAUSE_MS:  # more: the clock was set back
            raise EngineError(f"{self._where}: {right}: the API server asked for a pause, {left_ms} ms more")
        token = self._token.value() if self._token is not None else None
        try:
            status, headers, data = await self._send(method, path, query, body, token)
            if status == 401 and self._token is not None:
                fresh = self._token.value(again=True)
                if fresh != token:  # rotated, within the file's time stamp
                    status, headers, data = await self._send(method, path, query, body, fresh)
        except TimeoutError:
            raise EngineError(f"{self._asked(right)}: no answer within {self._timeout_ms} ms") from None
        except aiohttp.ClientConnectorCertificateError as error:
            self._fail_tls(right, error.certificate_error)
        except ssl.SSLError as error:
            self._fail_tls(right, error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = text(error) or type(error).__name__
            raise EngineError(f"{self._asked(right)}: the API server cannot be reached: {reason}") from None
        if not 200 <= status < 300:
            self._refuse(status, headers, data, right)
        return self._read(data, right)

    async def _send(
        self, method: str, path: str, query: Mapping[str, str] | None, body: bytes | None, token: str | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=8)
            )
        headers = {"accept": "application/json", "user-agent": "outrider-control"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        if body is not None:
            headers["content-type"] = "application/merge-patch+json"
        tls = self._tls.value() if self._tls is not None else True
        async with asyncio.timeout(self._timeout_ms / 1_000):
            async with self._session.request(
                method, self._server + path, params=query, data=body, headers=headers, ssl=tls, allow_redirects=False
            ) as answer:
                data = bytearray()
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    data += chunk
                    if len(data) > MAX_ANSWER_BYTES:
                        raise ValueError(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
                return answer.status, answer.headers, bytes(data)

    def _asked(self, right: Right) -> str:
        return f"{self._where}: {right} at {self._server}"

    def _fail_tls(self, right: Right, error: BaseException) -> NoReturn:
        by = self._ca_file if self._ca_file is not None else "what this machine trusts"
        raise EngineError(f"{self._asked(right)}: its certificate does not verify by {by}: {text(error)}") from None

    def _read(self, data: bytes, right: Right) -> Mapping[str, Any]:
        try:
            found = json.loads(data, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise EngineError(f"{self._asked(right)}: the answer is not JSON: {text(error)}") from None
        if not isinstance(found, dict):
            raise EngineError(f"{self._asked(right)}: the answer is no object but {text(repr(found), 40)}")
        return found

    def _refuse(self, status: int, headers: Mapping[str, str], data: bytes, right: Right) -> NoReturn:
        said = _message(data)
        if status == 429 or (status == 503 and "Retry-After" in headers):
            pause_ms = _pause_ms(headers.get("Retry-After", ""))
            self._pause_until_ms = self._clock_ms() + pause_ms
            what = f"has too much to do and asks for a pause of {pause_ms} ms"
        elif status == 401:
            what = f"does not know the token of {self._token_file}: is it of this cluster, and not expired?"
            if self._token_file is None:
                what = "wants a token: set token_file"
        elif status == 403:
            what = f"does not allow it: the service account needs the right to {right} ({_EXAMPLE})"
        elif status == 404:
            what = f"finds none: create it, or mend `deployments` of {self._where}"
        elif status == 409:
            what = "says it was changed meanwhile by somebody else"
        elif status in (400, 422):
            what = "refuses the change as invalid"
        elif 300 <= status < 400:
            what = "sends elsewhere, which is not followed: is `server` the API server itself?"
        elif status >= 500:
            what = "has a fault of its own"
        else:
            what = "refuses"
        raise ApiError(f"{self._asked(right)}: the API server {what} ({status}{f': {said}' if said else ''})", status)


def _message(data: bytes) -> str:
    """What a Status object says, else the answer's beginning."""
    try:
        found = json.loads(data)
        said = found.get("message") or found.get("reason") if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        said = None
    return text(said if isinstance(said, str) else data[:1_000].decode("utf-8", "replace"), 200)


def _pause_ms(value: str) -> int:
    """Of Retry-After in seconds, as the API server sends it."""
    return min(int(value) * 1_000, MAX_PAUSE_MS) if value.isdecimal() and len(value) < 10 else _PAUSE_MS


def _no_number(value: str) -> NoReturn:
    raise ValueError(f"{value} is no number")
