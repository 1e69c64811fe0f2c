"""Heads and rests: what is one object, what is kept apart, and that nothing is lost between the two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_http2.head import VOLATILE, Heads
from outrider_http2.hpack import Decoder

PSEUDO = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b":authority", b"localhost"))
OWNED = frozenset({b"grpc-timeout", b"traceparent"})
# Fields a message may have: names of both kinds, values any text between visible bytes.
names = st.sampled_from(sorted(VOLATILE - {b"content-length"})) | st.from_regex(rb"\Ax-[a-z]{1,6}\Z")
values = st.binary(max_size=30).map(lambda raw: bytes(byte for byte in raw if byte > 0x20))
fields = st.lists(st.tuples(names, values), max_size=12).map(tuple)


@given(fields)
def test_nothing_is_lost(regular: tuple[tuple[bytes, bytes], ...]) -> None:
    """Head and literals together are the block, but for what the caller owns; order is kept within each."""
    head, rest = Heads(OWNED).request(PSEUDO + regular)
    assert head.fields == tuple(field for field in regular if field[0] not in VOLATILE)
    moving = [field for field in regular if field[0] in VOLATILE and field[0] not in OWNED]
    assert list(Decoder(4_096, 1 << 20).decode(rest.literals)) == moving
    for name in {name for name, _ in regular}:
        all_values = [value for other, value in regular if other == name]
        if name in VOLATILE:
            assert rest.values[name] == b",".join(all_values)
        else:
            assert head.values[name] == all_values[0]


@given(fields)
def test_equal_heads_are_one(regular: tuple[tuple[bytes, bytes], ...]) -> None:
    heads = Heads()
    changed = tuple((name, b"other" if name in VOLATILE else value) for name, value in regular)
    assert heads.request(PSEUDO + regular)[0] is heads.request(PSEUDO + changed)[0]
    assert heads.trailers(regular)[0] is heads.trailers(changed)[0]
    response = ((b":status", b"200"), *regular)
    assert heads.response(response)[0] is heads.response(response)[0]
    assert heads.response(response)[0] is not heads.trailers(regular)[0]


def test_the_parts_of_a_head() -> None:
    head, _ = Heads().request((*PSEUDO, (b"te", b"trailers")))
    assert (head.method, head.scheme, head.path, head.authority) == tuple(value for _, value in PSEUDO)
    assert head.request_fields(b"https") == (PSEUDO[0], (b":scheme", b"https"), *PSEUDO[2:], (b"te", b"trailers"))
    answer, _ = Heads().response(((b":status", b"404"), (b"server", b"x")))
    assert answer.status == 404
    assert answer.response_fields() == ((b":status", b"404"), (b"server", b"x"))


def test_memory_is_bounded() -> None:
    heads = Heads(max_heads=10, max_bytes=100)
    for n in range(1_000):
        heads.trailers(((b"x-n", b"%d" % n),))
        assert len(heads._known) <= 10
    large = ((b"x-large", b"v" * 200),)
    assert heads.trailers(large)[0] is not heads.trailers(large)[0]


def test_content_length_is_read_and_kept_apart() -> None:
    head, rest = Heads().request((*PSEUDO, (b"content-length", b"12")))
    assert rest.length == 12
    assert head.fields == ()
