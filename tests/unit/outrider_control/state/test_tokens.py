from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from outrider_control.state import journal, revision, schema, tokens
from outrider_control.state.database import Database


async def test_a_token_is_found_until_it_is_over_or_revoked(database: Database) -> None:
    token, row = await database.write(tokens.create, "ci", "operator", "ann", 1_000, 5_000, "deploys")
    assert row == tokens.TokenRow(token[:12], "ci", "operator", "ann", 1_000, 5_000)
    assert await database.read(tokens.find, token, 4_999) == row
    assert await database.read(tokens.find, token, 5_000) is None
    forever, other = await database.write(tokens.create, "ann", "admin", "root", 2_000)
    assert await database.read(tokens.find, forever, 10**15) == other
    assert await database.read(tokens.current) == [row, other]
    before = await database.read(revision.current)
    assert await database.write(tokens.revoke, row.id, "ann", "left", 3_000) == row
    assert await database.read(revision.current) == before + 1
    assert await database.read(tokens.find, token, 4_000) is None
    with pytest.raises(tokens.UnknownToken):
        await database.write(tokens.revoke, row.id, "ann", "", 3_000)


async def test_wrong_tokens_are_not_found(database: Database) -> None:
    token, row = await database.write(tokens.create, "ci", "viewer", "ann", 1_000)
    for wrong in ("", "ort_", row.id, token[:-1], token + "x", token.upper(), "x" * 100_000, "ort_\udcff", token[4:]):
        assert await database.read(tokens.find, wrong, 1_000) is None


async def test_a_secret_is_kept_nowhere(database: Database) -> None:
    token, row = await database.write(tokens.create, "ci", "viewer", "ann", 1_000)
    secret = token.removeprefix(row.id)
    assert len(secret) >= 43  # 256 bits in base64
    stored = await database.read(lambda connection: connection.execute(sa.select(schema.tokens)).one())
    decisions = await database.read(journal.read)
    assert secret not in json.dumps([list(stored), [str(one) for one in decisions]])
    error = tokens.UnknownToken(token)
    assert secret not in str(error)
    assert secret not in error.token_id


async def test_making_and_revoking_is_in_the_journal(database: Database) -> None:
    _, row = await database.write(tokens.create, "ci", "viewer", "ann", 1_000, 0, "deploys")
    await database.write(tokens.revoke, row.id, "bob", "left", 2_000)
    revoked, created = await database.read(journal.read, "", "token")
    assert (created.author, created.reason, created.outcome) == ("ann", "deploys", {"outcome": "created", "id": row.id})
    assert (revoked.author, revoked.reason, revoked.outcome) == ("bob", "left", {"outcome": "revoked", "id": row.id})
