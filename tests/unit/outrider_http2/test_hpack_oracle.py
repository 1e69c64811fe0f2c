"""HPACK against the `hpack` library: both directions, resizes between blocks, and blocks that are nearly valid."""

from __future__ import annotations

import hpack
from hypothesis import given
from hypothesis import strategies as st

from outrider_http2.hpack import Decoder, Encoder, HeaderListTooLarge, HpackError, literal
from outrider_http2.hpack_static import SENSITIVE, STATIC, UNIQUE

Field = tuple[bytes, bytes]

NAMES = st.sampled_from(
    [b"x-a", b"x-b", b"x-" + b"long" * 40, *sorted(UNIQUE | SENSITIVE), *(name for name, _ in STATIC[1:])]
)
VALUES = (
    st.sampled_from([b"", b"a", b"application/grpc", b"/pkg.Service/Method", b"v" * 126, b"v" * 127, b"v" * 300])
    | st.binary(max_size=40)
    | st.text("0123456789abcdef-", max_size=60).map(str.encode)
)
FIELDS = st.tuples(NAMES, VALUES) | st.sampled_from(STATIC[1:]) | st.tuples(st.binary(min_size=1, max_size=20), VALUES)
LISTS = st.lists(FIELDS, max_size=8)
# A connection: fields to send, or a new table limit. Few distinct lists, so that they repeat.
SIZES = st.sampled_from([0, 40, 100, 300, 1000, 4096, 8192])
SESSIONS = st.lists(LISTS, min_size=1, max_size=4).flatmap(
    lambda lists: st.lists(st.sampled_from(lists) | SIZES, max_size=20)
)


def entries(decoder: Decoder) -> list[Field]:
    """The dynamic table, newest first."""
    return decoder._table[62:]


def is_in_step(decoder: Decoder) -> bool:
    return decoder._used_bytes == sum(len(n) + len(v) + 32 for n, v in entries(decoder)) <= decoder._max_bytes


@given(SESSIONS, st.lists(st.booleans(), min_size=20, max_size=20))
def test_we_decode_what_the_library_encodes(session: list[list[Field] | int], huffman: list[bool]):
    theirs, ours = hpack.Encoder(), Decoder()
    for step, coded in zip(session, huffman, strict=False):
        if isinstance(step, int):
            theirs.header_table_size = step
            ours.resize_limit(step)
            # A block after each resize: of several the library sends all, also those above the last, or forgets them.
            step = []
        fields = [
            hpack.NeverIndexedHeaderTuple(name, value) if name in SENSITIVE else hpack.HeaderTuple(name, value)
            for name, value in step
        ]
        assert ours.decode(theirs.encode(fields, huffman=coded)) == tuple(step)
        assert entries(ours) == [tuple(entry) for entry in theirs.header_table.dynamic_entries]
        assert is_in_step(ours)


@given(SESSIONS)
def test_the_library_decodes_what_we_encode(session: list[list[Field] | int]):
    ours, theirs, mirror = Encoder(), hpack.Decoder(), Decoder()
    for step in session:
        if isinstance(step, int):
            ours.resize(step)
            theirs.max_allowed_table_size = step
            mirror.resize_limit(step)
            if step > 4096:  # ours stays at its cap; the mirror has nothing to wait for
                continue
            continue
        block = ours.encode(step)
        assert [tuple(field) for field in theirs.decode(block, raw=True)] == step
        assert mirror.decode(block) == tuple(step)
        assert entries(mirror) == list(reversed(ours._entries))
        assert mirror._used_bytes == ours._used_bytes
        assert is_in_step(mirror)


def library_decodes(decoder: hpack.Decoder, block: bytes) -> list[Field] | None:
    try:
        return [tuple(field) for field in decoder.decode(block, raw=True)]  # pyright: ignore[reportReturnType]
    except hpack.HPACKError:
        return None


def we_decode(decoder: Decoder, block: bytes) -> list[Field] | None:
    try:
        return list(decoder.decode(block))
    except (HpackError, HeaderListTooLarge):
        return None


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_are_read_as_the_library_reads_them_or_refused(blocks: list[bytes]):
    ours, theirs = Decoder(), hpack.Decoder()
    for block in blocks:
        mine, other = we_decode(ours, block), library_decodes(theirs, block)
        if mine is None or other is None:
            return
        assert mine == other
        assert entries(ours) == [tuple(entry) for entry in theirs.header_table.dynamic_entries]
        assert is_in_step(ours)


@given(st.lists(LISTS, min_size=1, max_size=6), st.data())
def test_nearly_valid_blocks_are_read_as_the_library_reads_them_or_refused(
    lists: list[list[Field]], data: st.DataObject
):
    encoder, ours, theirs = hpack.Encoder(), Decoder(), hpack.Decoder()
    for fields in lists:
        block = bytearray(encoder.encode(fields, huffman=data.draw(st.booleans())))
        if block and data.draw(st.booleans()):
            block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
        mine, other = we_decode(ours, bytes(block)), library_decodes(theirs, bytes(block))
        if mine is None or other is None:
            return
        assert mine == other
        assert is_in_step(ours)


@given(st.binary(max_size=300), st.sampled_from([0, 64, 4096]), st.sampled_from([0, 100, 65536]))
def test_any_bytes_raise_nothing_but_our_errors(block: bytes, table_bytes: int, list_bytes: int):
    decoder = Decoder(table_bytes, list_bytes)
    for _ in range(2):
        try:
            fields = decoder.decode(block)
        except HeaderListTooLarge:
            continue
        except HpackError:
            return
        assert sum(len(name) + len(value) + 32 for name, value in fields) <= list_bytes
        assert is_in_step(decoder)


@given(LISTS, st.lists(FIELDS, max_size=4))
def test_literals_may_follow_any_block_of_ours(fields: list[Field], tail: list[Field]):
    encoder, theirs, ours = Encoder(), hpack.Decoder(), Decoder()
    for _ in range(3):
        block = encoder.encode(fields) + b"".join(literal(name, value) for name, value in tail)
        assert ours.decode(block) == (*fields, *tail)
        assert [tuple(field) for field in theirs.decode(block, raw=True)] == fields + tail
