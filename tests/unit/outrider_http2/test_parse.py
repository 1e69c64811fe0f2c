"""What a connection and a process remember of header blocks: never stale, bounded, and no way round a check."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_http2.base import KNOWN_BLOCKS, UNKNOWN_BLOCKS, Fault
from outrider_http2.fields import FieldError
from outrider_http2.head import Heads
from outrider_http2.hpack import literal
from tests.unit.outrider_http2.sans_io import Bench

INSERT_A = b"\x40\x01a\x01A"
INSERT_B = b"\x40\x01b\x01B"
NEWEST, SECOND = b"\xbe", b"\xbf"
PIECES = [INSERT_A, INSERT_B, NEWEST, SECOND, b"\x7e\x01x", b"\x00\x01p\x01q", b"\x40\x23" + b"n" * 35 + b"\x01v"]
PSEUDO = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b":authority", b"localhost"))
MOVING = (b"traceparent", b"00-1")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"", b"", b"", b"\x20", b"\x3f\x59", b"\x3f\x79"]),
            st.lists(st.sampled_from(PIECES), max_size=4),
        ),
        max_size=40,
    )
)
def test_what_is_remembered_is_never_stale(blocks: list[tuple[bytes, list[bytes]]]) -> None:
    remembering, forgetful = Bench().server(), Bench().server()

    def parsed(conn: Any, block: bytes) -> Any:
        try:
            return conn.parse(block, True)[0].fields
        except Fault as error:
            return str(error)

    for update, pieces in blocks:
        for block in (update + b"".join(pieces), b"".join(pieces)):
            forgetful.parsed_tails.clear()
            expected = parsed(forgetful, block)
            assert parsed(remembering, block) == expected
            if isinstance(expected, str):
                return


def test_blocks_are_remembered_within_bounds_and_not_where_none_comes_again() -> None:
    conn = Bench().server()
    block = literal(b"grpc-status", b"0")
    assert conn.parse(block, True)[1] is conn.parse(block, True)[1]
    assert conn.parsed_tails
    for number in range(2 * KNOWN_BLOCKS):
        conn.parse(literal(b"traceparent", b"%055d" % number), True)
        assert len(conn.parsed_tails) <= KNOWN_BLOCKS
    assert 0 < conn.unparsed <= UNKNOWN_BLOCKS
    before = len(conn.parsed_tails)
    conn.parse(literal(b"traceparent", b"of a call"), True)
    assert len(conn.parsed_tails) == before
    tried_again = False
    for number in range(UNKNOWN_BLOCKS):
        conn.parse(literal(b"traceparent", b"%056d" % number), True)
        tried_again = tried_again or not conn.unparsed
    assert tried_again


def test_blocks_that_come_again_stay_remembered() -> None:
    conn = Bench().server()
    blocks = [literal(b"grpc-status", b"%d" % number) for number in range(KNOWN_BLOCKS // 2)]
    for number in range(20):
        for block in blocks:
            conn.parse(block, True)
        conn.parse(literal(b"traceparent", b"%055d" % number), True)
    assert not conn.unparsed


@pytest.mark.parametrize(
    "fields",
    [
        (PSEUDO[0], MOVING, *PSEUDO[1:]),
        (*PSEUDO[:3], MOVING, PSEUDO[3]),
        (MOVING, *PSEUDO),
        (*PSEUDO, (b"traceparent", b"a\rb")),
        (*PSEUDO, (b"traceparent", b" a")),
        (*PSEUDO, MOVING, (b"x-session-id", b"a\0b")),
        (*PSEUDO, (b"content-length", b"1"), (b"content-length", b"2")),
        (*PSEUDO, (b"content-length", b"-1")),
    ],
)
def test_a_head_that_is_known_lets_nothing_through(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    """What moves is checked every time, also where what repeats has passed before."""
    heads = Heads()
    head, _ = heads.request((*PSEUDO, MOVING))
    again, rest = heads.request((*PSEUDO, (b"traceparent", b"00-2")))
    assert again is head
    assert rest.values == {b"traceparent": b"00-2"}
    with pytest.raises(FieldError):
        heads.request(fields)
    if fields[: len(PSEUDO)] == PSEUDO:
        heads.response(((b":status", b"200"), MOVING))
        with pytest.raises(FieldError):
            heads.response(((b":status", b"200"), *fields[len(PSEUDO) :]))
        heads.trailers((MOVING,))
        with pytest.raises(FieldError):
            heads.trailers(fields[len(PSEUDO) :])


def test_requests_replies_and_trailers_are_not_taken_for_each_other() -> None:
    heads = Heads()
    heads.trailers((MOVING,))
    with pytest.raises(FieldError):
        heads.response((MOVING,))
    with pytest.raises(FieldError):
        heads.request((MOVING,))
    heads.response(((b":status", b"200"),))
    heads.request(PSEUDO)
    for fields in (PSEUDO, ((b":status", b"200"),)):
        with pytest.raises(FieldError):
            heads.trailers(fields)
    with pytest.raises(FieldError):
        heads.request(((b":status", b"200"),))
    with pytest.raises(FieldError):
        heads.response(PSEUDO)
