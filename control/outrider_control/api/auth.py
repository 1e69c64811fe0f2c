"""Who calls, and whether they may: the one place where the control plane's port tells friend from stranger.

Always holds: a call reaches its handler only when its caller is known and its method's rule (`roles`) names the
caller's role; a credential that is wrong is refused even where none would have been needed. A token's secret is hashed
on arrival and appears in no log line, error or reply. A revoked or expired token opens no new call: at this control
plane at once, at others on the same store within `TOKEN_KEPT_MS`. A call under way is not ended by it.

Identity comes from the guard's metadata (`x-outrider-peer*`), which clients cannot set. A call that did not come
through the guard is from nowhere: it needs a token.

Deliberately not here: TLS and what loopback is (`guard`), tokens in the store (`state.tokens`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from outrider_control.api.roles import ADMIN, ROLES, RULES, SIDECAR

PEER: Final = "x-outrider-peer"
PEER_LOOPBACK: Final = "x-outrider-peer-loopback"
PEER_CERTIFICATE: Final = "x-outrider-peer-certificate"

_log = logging.getLogger(__name__)

TOKEN_KEPT_MS: Final = 1_000  # how long the store's answer about a token is believed
_TOKENS_KEPT: Final = 4_096  # answers held; wrong tokens push out the oldest
_TOKEN_MAX_CHARS: Final = 512


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    name: str
    role: str
    peer: str = ""  # "host:port" it connects from


class Token(Protocol):
    """What the store knows of a token."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def expires_ms(self) -> int: ...


# token, now_ms -> what it is; None: no such token, or not any more.
FindToken = Callable[[str, int], Awaitable[Token | None]]


class Unauthenticated(Exception):
    """Nobody we know; str() says why. What to do about it depends on who calls, and is said there."""


_caller: ContextVar[Caller] = ContextVar("outrider_caller")


def current_caller() -> Caller:
    """Who makes the call being handled; RuntimeError where no interceptor has let it in."""
    caller = _caller.get(None)
    if caller is None:
        raise RuntimeError("no caller: the server runs without auth.Interceptor")
    return caller


class Authenticator:
    """Resolves a call's metadata to its caller."""

    def __init__(
        self,
        find_token: FindToken,
        clock_ms: Callable[[], int],
        loopback: bool = True,
        certificates: Mapping[str, str] | None = None,
    ):
        """`loopback`: whether a loopback peer without credentials is admin.

        `certificates` maps names of verified client certificates, `*` and `?` allowed, to roles, the first match
        counts; a name without one is a sidecar. ValueError where a role is none of ours."""
        self._find_token = find_token
        self._clock_ms = clock_ms
        self._loopback = loopback
        self._certificates = dict(certificates or {})
        for pattern, role in self._certificates.items():
            if role not in ROLES:
                raise ValueError(f"auth.certificates[{pattern!r}]: {role!r} is not one of {', '.join(ROLES)}")
        self._known: dict[bytes, tuple[int, Token | None]] = {}  # digest -> asked at, answer; oldest first
        self._forgotten = 0  # how often: an answer that was asked for before is not kept

    async def caller(self, metadata: Sequence[tuple[str, str | bytes]]) -> Caller:
        """Who sent this metadata; Unauthenticated if that cannot be told. Raises what `find_token` raises."""
        peer = _only(metadata, PEER)
        authorization = [value for key, value in metadata if key == "authorization"]
        if authorization:
            return await self._bearer(authorization, peer)
        certificate = _only(metadata, PEER_CERTIFICATE)
        if certificate:
            return Caller(certificate, self._certificate_role(certificate), peer)
        if _only(metadata, PEER_LOOPBACK) == "1":
            if self._loopback:
                return Caller("loopback", ADMIN, peer)
            raise Unauthenticated("no token, and auth.loopback is off")
        raise Unauthenticated("no token and no client certificate")

    def forget_tokens(self) -> None:
        """Ask the store again for every token: one was revoked."""
        self._known.clear()
        self._forgotten += 1

    async def _bearer(self, values: Sequence[str | bytes], peer: str) -> Caller:
        value = values[0]
        if len(values) > 1 or not isinstance(value, str):
            raise Unauthenticated("`authorization` must be there once, as text")
        scheme, _, secret = value.strip().partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not 0 < len(secret) <= _TOKEN_MAX_CHARS:
            raise Unauthenticated("`authorization` is not `Bearer TOKEN`")
        now_ms = self._clock_ms()
        token = await self._token(secret, now_ms)
        if token is None or (token.expires_ms and token.expires_ms <= now_ms):
            raise Unauthenticated("the token is wrong, expired or revoked")
        return Caller(token.name, token.role, peer)

    async def _token(self, secret: str, now_ms: int) -> Token | None:
        digest = hashlib.blake2b(secret.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        held = self._known.get(digest)
        if held is not None and 0 <= now_ms - held[0] < TOKEN_KEPT_MS:
            return held[1]
        known, forgotten = self._known, self._forgotten
        token = await self._find_token(secret, now_ms)
        if forgotten == self._forgotten:
            known.pop(digest, None)
            known[digest] = (now_ms, token)
            if len(known) > _TOKENS_KEPT:
                del known[next(iter(known))]
        return token

    def _certificate_role(self, name: str) -> str:
        for pattern, role in self._certificates.items():
            if fnmatchcase(name, pattern):
                return role
        return SIDECAR


def _only(metadata: Sequence[tuple[str, str | bytes]], key: str) -> str:
    """The one value of a key the guard sets; "" if it is not there, or there twice: then it is not the guard's."""
    values = [value for name, value in metadata if name == key]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""


class Interceptor(grpc.aio.ServerInterceptor):
    """Lets calls in by `roles.RULES` and sets `current_caller`."""

    def __init__(self, authenticator: Authenticator):
        self._authenticator = authenticator

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The method's handler, or one that refuses."""
        details: Any = handler_call_details
        method: str = details.method
        try:
            caller = await self._authenticator.caller(details.invocation_metadata or ())
        except Unauthenticated as error:
            return _refusal(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except Exception as error:  # noqa: BLE001 - whatever the store says, the caller is not known
            # The kind alone: an error of the database may quote what it was asked for.
            _log.error("a token cannot be checked: %s", type(error).__name__)
            return _refusal(grpc.StatusCode.UNAVAILABLE, "the token cannot be checked: the store does not answer")
        handler = await continuation(handler_call_details)
        rule = RULES.get(method, ())
        if handler is not None and caller.role not in rule:
            if not rule:
                return _refusal(grpc.StatusCode.PERMISSION_DENIED, f"nobody may call {method}")
            needs = rule[0] if len(rule) == 1 else f"{', '.join(rule[:-1])} or {rule[-1]}"
            text = f"{method} needs the role {needs}; {caller.name!r} is {caller.role}"
            return _refusal(grpc.StatusCode.PERMISSION_DENIED, text)
        _caller.set(caller)  # the handler runs in this call's own task, hence in its own context
        return handler


def _refusal(code: grpc.StatusCode, text: str) -> grpc.RpcMethodHandler:
    # Streaming on both sides whatever the method is: it answers without waiting for a message.
    async def refuse(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(code, text)

    return grpc.stream_stream_rpc_method_handler(refuse)  # pyright: ignore[reportArgumentType]
