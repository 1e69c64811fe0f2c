"""The key of a cached reply: everything that must be equal for one caller's reply to be another's.

Always holds: parts are length-prefixed, so no two different lists of parts hash the same bytes; tenant, user or
scope, and auth scope are always among them. `seed` is a secret of the process (kept with its snapshots): xxh3 is
no cryptographic hash, and without the seed a caller cannot search for a request that collides with another's.

Deliberately not here: what of a message belongs into its digest (payload adapters).
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Final

from xxhash import xxh3_128_digest

from outrider.digest import blake2b

SCHEMA: Final = b"outrider-1"  # of keys and of what is stored under them: a change orphans all that is older

_LENGTHS: Final = Struct("<9I")
_NO_AUTH: Final = b""
_MEMO_SCOPES: Final = 1_024
_MEMO_VALUE_BYTES: Final = 8_192


def cache_key(
    schema: bytes,
    agent_id: str,
    tenant: str,
    user_or_scope: str,
    auth_scope: bytes,
    variant: str,
    compressor_version: bytes,
    epochs_part: bytes,
    digest: bytes,
    seed: int = 0,
) -> bytes:
    """16 bytes. `user_or_scope` is the user id, or empty where policy says `cache_scope: tenant`.

    Names from metadata that are not UTF-8 come decoded with "surrogateescape": they keep their own keys.
    """
    scope = key_scope(
        schema, agent_id, tenant, user_or_scope, auth_scope, variant, compressor_version, epochs_part, len(digest)
    )
    return key_within(scope, digest, seed)


def key_within(scope: bytes, digest: bytes, seed: int) -> bytes:
    """The key of one digest, of the length that `scope` was made for."""
    return xxh3_128_digest(scope + digest, seed)


def key_scope(
    schema: bytes,
    agent_id: str,
    tenant: str,
    user_or_scope: str,
    auth_scope: bytes,
    variant: str,
    compressor_version: bytes,
    epochs_part: bytes,
    digest_bytes: int,
) -> bytes:
    """What keys of the same caller begin with: everything but the digest, for whoever wants to keep it."""
    agent = agent_id.encode("utf-8", "surrogateescape")
    tenant_id = tenant.encode("utf-8", "surrogateescape")
    user = user_or_scope.encode("utf-8", "surrogateescape")
    group = variant.encode("utf-8", "surrogateescape")
    lengths = _LENGTHS.pack(
        len(schema),
        len(agent),
        len(tenant_id),
        len(user),
        len(auth_scope),
        len(group),
        len(compressor_version),
        len(epochs_part),
        digest_bytes,
    )
    return b"".join((lengths, schema, agent, tenant_id, user, auth_scope, group, compressor_version, epochs_part))


class AuthScopes:
    """Who a call is allowed as, hashed: from `authorization`, or from the claims policy names instead of it."""

    __slots__ = ("_claims", "_memo", "_secret")

    def __init__(self, claims: tuple[str, ...] = (), secret: bytes = b""):
        self._claims = tuple([claim.lower().encode() for claim in claims]) or (b"authorization",)
        self._secret = secret  # at most 64 bytes; makes the hashes useless outside this process
        self._memo: dict[tuple[bytes | None, ...], bytes] = {}

    def of(self, values: Mapping[bytes, bytes]) -> bytes:
        """The scope of a call with these metadata values (by lower-case name); empty when it shows no credential."""
        shown = tuple([values.get(claim) for claim in self._claims])
        if shown.count(None) == len(shown):
            return _NO_AUTH
        scope = self._memo.get(shown)
        if scope is None:
            scope = self._hash(shown)
        return scope

    def _hash(self, shown: tuple[bytes | None, ...]) -> bytes:
        # A cryptographic hash: credentials of others must not be guessed or collided with. The memo makes it cheap.
        state = blake2b(digest_size=16, key=self._secret)
        size = 0
        for value in shown:
            if value is None:
                state.update(b"\x00")
            else:
                state.update(b"\x01" + len(value).to_bytes(4, "big") + value)
                size += len(value)
        scope = state.digest()
        if size <= _MEMO_VALUE_BYTES:
            if len(self._memo) >= _MEMO_SCOPES:
                self._memo.clear()
            self._memo[shown] = scope
        return scope
