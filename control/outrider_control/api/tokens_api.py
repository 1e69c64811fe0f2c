"""Tokens: made once, shown once, taken back.

Always holds: the secret leaves in the reply that made it and nowhere else: not in the journal, a log or a list.

Deliberately not here: who a token lets in (`auth`), how it is kept (`state.tokens`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from outrider.v1 import operator_pb2
from outrider_control.api import convert, requests
from outrider_control.api.auth import current_caller
from outrider_control.api.errors import Invalid
from outrider_control.api.roles import ROLES
from outrider_control.state import tokens
from outrider_control.state.database import Database

MAX_TTL_MS: Final = 10 * 366 * 86_400_000
MIN_TTL_MS: Final = 1_000


class TokensApi:
    """`on_revoked` is called when a token has become void, so that nobody goes on believing in it."""

    def __init__(self, db: Database, clock_ms: Callable[[], int], on_revoked: Callable[[], None]):
        self._db = db
        self._clock_ms = clock_ms
        self._on_revoked = on_revoked

    async def create(self, request: operator_pb2.CreateTokenRequest) -> operator_pb2.CreateTokenReply:
        """A new token."""
        why = requests.reason(request)
        name = requests.name(request.name, "name", required=True)
        if request.role not in ROLES:
            raise Invalid("role", f"{request.role[:20]!r} is not one of {', '.join(ROLES)}")
        now_ms = self._clock_ms()
        if request.ttl_ms:
            requests.number(request.ttl_ms, MIN_TTL_MS, MAX_TTL_MS, "ttl_ms")
        expires_ms = now_ms + request.ttl_ms if request.ttl_ms else 0
        author = current_caller().name
        secret, row = await self._db.write(tokens.create, name, request.role, author, now_ms, expires_ms, why)
        return operator_pb2.CreateTokenReply(token=secret, record=convert.token(row))

    async def list_all(self, _request: operator_pb2.ListTokensRequest) -> operator_pb2.ListTokensReply:
        """All tokens, in the order they were made."""
        rows = await self._db.read(tokens.current)
        return operator_pb2.ListTokensReply(tokens=[convert.token(row) for row in rows])

    async def revoke(self, request: operator_pb2.RevokeTokenRequest) -> operator_pb2.RevokeTokenReply:
        """Make a token void."""
        why = requests.reason(request)
        token_id = requests.name(request.id, "id", required=True)
        await self._db.write(tokens.revoke, token_id, current_caller().name, why, self._clock_ms())
        self._on_revoked()
        return operator_pb2.RevokeTokenReply()
