"""Tokens of operators and sidecars.

Always holds: a token is 256 random bits and is shown once; only its SHA-256 is kept, which is enough for a secret that
cannot be guessed. Making and revoking one is in the journal, without the secret, and raises the revision, so that every
control plane forgets what it remembers of tokens.

Deliberately not here: what a role may do (`api.roles`), whose call it is (`api.auth`).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider.policy import PolicyError
from outrider_control.core.decision import Decision
from outrider_control.state import journal, revision
from outrider_control.state.schema import tokens as table

_PREFIX = "ort_"
_ID_CHARS = len(_PREFIX) + 8  # shown to tell tokens apart: in front of the secret bits
_MAX_TOKENS = 10_000
_MAX_TOKEN_CHARS = 512


class UnknownToken(LookupError):
    """There is no token of that id."""

    def __init__(self, token_id: str):
        super().__init__(f"there is no token {token_id[:_ID_CHARS]!r}")
        self.token_id = token_id[:_ID_CHARS]  # somebody may have given the whole token


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token without its secret."""

    id: str  # the token's first characters
    name: str
    role: str
    author: str
    created_ms: int
    expires_ms: int  # 0: never


def create(
    connection: Connection, name: str, role: str, author: str, now_ms: int, expires_ms: int = 0, reason: str = ""
) -> tuple[str, TokenRow]:
    """A new token, this once, and what is kept of it."""
    revision.lock(connection)
    if connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() >= _MAX_TOKENS:
        raise PolicyError("name", f"there are {_MAX_TOKENS} tokens already: revoke some")
    token = _PREFIX + secrets.token_hex(4) + secrets.token_urlsafe(32)
    while connection.execute(sa.select(table.c.id).where(table.c.id == token[:_ID_CHARS])).scalar() is not None:
        token = _PREFIX + secrets.token_hex(4) + secrets.token_urlsafe(32)
    row = TokenRow(token[:_ID_CHARS], journal.stored(name), role, journal.stored(author), now_ms, expires_ms)
    values = {"id": row.id, "hash": _digest(token), "name": row.name, "role": role, "author": row.author}
    connection.execute(sa.insert(table).values(**values, created_ms=now_ms, expires_ms=expires_ms))
    revision.bump(connection)
    inputs = {"name": row.name, "role": role, "expires_ms": expires_ms}
    outcome = {"outcome": "created", "id": row.id}
    journal.append(connection, Decision("token", author, reason, "", inputs, outcome, now_ms))
    return token, row


def find(connection: Connection, token: str, now_ms: int) -> TokenRow | None:
    """What a token is; None where it is wrong, revoked or over."""
    if not token.startswith(_PREFIX) or len(token) > _MAX_TOKEN_CHARS:
        return None
    # Looked up by its hash: how long that takes says nothing about the token.
    row = connection.execute(sa.select(table).where(table.c.hash == _digest(token))).one_or_none()
    return _row(row) if row is not None and (row.expires_ms == 0 or row.expires_ms > now_ms) else None


def current(connection: Connection) -> list[TokenRow]:
    """All tokens, those that are over too, in the order they were made."""
    return [_row(row) for row in connection.execute(sa.select(table).order_by(table.c.created_ms, table.c.id))]


def revoke(connection: Connection, token_id: str, author: str, reason: str, now_ms: int) -> TokenRow:
    """Make a token void; what it was. UnknownToken."""
    revision.lock(connection)
    row = connection.execute(sa.select(table).where(table.c.id == token_id)).one_or_none()
    if row is None:
        raise UnknownToken(token_id)
    connection.execute(sa.delete(table).where(table.c.id == token_id))
    revision.bump(connection)
    inputs, outcome = {"name": row.name, "role": row.role}, {"outcome": "revoked", "id": row.id}
    journal.append(connection, Decision("token", author, reason, "", inputs, outcome, now_ms))
    return _row(row)


def _row(row: sa.Row) -> TokenRow:
    return TokenRow(row.id, row.name, row.role, row.author, row.created_ms, row.expires_ms)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
