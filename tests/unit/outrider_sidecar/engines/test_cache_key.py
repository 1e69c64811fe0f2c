from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.engines.cache_key import SCHEMA, AuthScopes, cache_key

TEXT = st.text(alphabet="ab\0é", max_size=3)
BYTES = st.binary(max_size=3)
PARTS = st.tuples(BYTES, TEXT, TEXT, TEXT, BYTES, TEXT, BYTES, BYTES, BYTES)


@given(one=PARTS, other=PARTS)
def test_keys_are_equal_exactly_when_all_parts_are(one: tuple, other: tuple):
    assert len(cache_key(*one)) == 16
    assert (cache_key(*one) == cache_key(*other)) == (one == other)


def test_a_part_cannot_move_into_its_neighbour():
    key = cache_key(SCHEMA, "ab", "c", "", b"", "", b"", b"", b"digest")
    assert key != cache_key(SCHEMA, "a", "bc", "", b"", "", b"", b"", b"digest")
    assert key != cache_key(SCHEMA, "ab", "", "c", b"", "", b"", b"", b"digest")


def test_names_that_are_not_utf8_keep_their_own_keys():
    users = [raw.decode("utf-8", "surrogateescape") for raw in (b"\xff", b"\xfe", "\u00ff".encode())]
    assert len({cache_key(SCHEMA, "a", "t", user, b"", "", b"", b"", b"d") for user in users}) == 3


def test_the_seed_changes_every_key():
    parts = (SCHEMA, "a", "t", "u", b"", "", b"", b"", b"digest")
    assert len({cache_key(*parts, seed=seed) for seed in (0, 1, 2**64 - 1)}) == 3


def test_no_credential_is_no_scope():
    assert AuthScopes().of({b"x-user": b"me"}) == b""
    assert AuthScopes(("x-user",)).of({b"authorization": b"Bearer me"}) == b""


def test_scopes_follow_authorization():
    scopes = AuthScopes(secret=b"s")
    one = scopes.of({b"authorization": b"Bearer one"})
    assert len(one) == 16
    assert one == scopes.of({b"authorization": b"Bearer one", b"other": b"x"})
    assert one != scopes.of({b"authorization": b"Bearer two"})
    assert one != AuthScopes(secret=b"t").of({b"authorization": b"Bearer one"})
    assert b"Bearer" not in one


def test_claims_replace_authorization_and_keep_their_places():
    scopes = AuthScopes(("X-Org", "x-role"))
    org = scopes.of({b"x-org": b"v", b"authorization": b"secret"})
    assert org == scopes.of({b"x-org": b"v", b"authorization": b"another"})
    assert org != scopes.of({b"x-role": b"v"})
    assert org != scopes.of({b"x-org": b"v", b"x-role": b""})
    assert scopes.of({b"x-org": b"ab", b"x-role": b"c"}) != scopes.of({b"x-org": b"a", b"x-role": b"bc"})


def test_the_memo_is_bounded_and_changes_nothing():
    scopes = AuthScopes()
    first = scopes.of({b"authorization": b"0"})
    for number in range(3_000):
        scopes.of({b"authorization": b"%d" % number})
    assert len(scopes._memo) <= 1_024
    assert scopes.of({b"authorization": b"0"}) == first
    long = b"x" * 100_000
    assert scopes.of({b"authorization": long}) == AuthScopes().of({b"authorization": long})
    assert long not in scopes._memo
