"""HPACK against RFC 7541: its examples, its errors, our bounds, and what may be kept while `generation` stands.

The comparison with the `hpack` library on any input is in test_hpack_oracle.py.
"""

from __future__ import annotations

import pytest

from outrider_http2.hpack import Decoder, HeaderListTooLarge, HpackError, literal

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
SECURE = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), (b":authority", b"www.example.com")]
REDIRECT = [
    (b":status", b"302"),
    (b"cache-control", b"private"),
    (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
    (b"location", b"https://www.example.com"),
]
COOKIE = b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
CODED = [
    (b":status", b"200"),
    (b"cache-control", b"private"),
    (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT"),
    (b"location", b"https://www.example.com"),
    (b"content-encoding", b"gzip"),
    (b"set-cookie", COOKIE),
]
REQUESTS = [GET, [*GET, (b"cache-control", b"no-cache")], [*SECURE, (b"custom-key", b"custom-value")]]
RESPONSES = [REDIRECT, [(b":status", b"307"), *REDIRECT[1:]], CODED]
EXAMPLES = {  # appendix C: (table limit, fields and size of the table after each block, blocks)
    "C.3": (4096, REQUESTS, [57, 110, 164], """
        828684410f7777772e6578616d706c652e636f6d
        828684be58086e6f2d6361636865
        828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565"""),
    "C.4": (4096, REQUESTS, [57, 110, 164], """
        828684418cf1e3c2e5f23a6ba0ab90f4ff
        828684be5886a8eb10649cbf
        828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"""),
    "C.5": (256, RESPONSES, [222, 222, 215], """
        4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d
        4803333037c1c0bf
        88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31"""),
    "C.6": (256, RESPONSES, [222, 222, 215], """
        488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3
        4883640effc1c0bf
        88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"""),
}  # fmt: skip

INSERT_A = b"\x40\x01a\x01A"  # a: A, 34 bytes of the table
INSERT_B = b"\x40\x01b\x01B"
NEWEST, SECOND = b"\xbe", b"\xbf"


def entries(decoder: Decoder) -> list[tuple[bytes, bytes]]:
    """The dynamic table, newest first."""
    return decoder._table[62:]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_rfc(name: str):
    limit, lists, sizes, blocks = EXAMPLES[name]
    decoder = Decoder(limit)
    for fields, size, block in zip(lists, sizes, blocks.split(), strict=True):
        assert decoder.decode(bytes.fromhex(block)) == tuple(fields)
        assert decoder._used_bytes == size == sum(len(n) + len(v) + 32 for n, v in entries(decoder))


@pytest.mark.parametrize(
    ("block", "field", "size"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", (b"custom-key", b"custom-header"), 55),
        ("040c2f73616d706c652f70617468", (b":path", b"/sample/path"), 0),
        ("100870617373776f726406736563726574", (b"password", b"secret"), 0),
        ("82", (b":method", b"GET"), 0),
    ],
)
def test_literals_of_the_rfc(block: str, field: tuple[bytes, bytes], size: int):
    decoder = Decoder()
    assert decoder.decode(bytes.fromhex(block)) == (field,)
    assert decoder._used_bytes == size


def test_empty_block():
    assert Decoder().decode(b"") == ()


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("80", "index 0"),
        ("8001610162", "index 0 before what would be a literal"),
        ("be", "beyond an empty dynamic table"),
        ("ff00", "beyond the tables, long index"),
        ("7f0001", "name beyond the tables"),
        ("0f3001", "name beyond the tables, without indexing"),
        ("ff8080808000", "long form of 127, beyond the tables"),
        ("ff", "index cut short"),
        ("ff80", "continuation cut short"),
        ("40", "no name"),
        ("4001", "name cut short"),
        ("400161", "no value"),
        ("40016101", "value cut short"),
        ("0083", "Huffman name cut short"),
        ("00017f7f", "length of value cut short"),
        ("00016185ffff", "Huffman value cut short"),
        ("00016184ffffffff", "Huffman value with EOS"),
        ("00016182ffff", "Huffman value of padding"),
        ("0082ffff00", "Huffman name of padding"),
        ("000161ff00" + "ff" * 127, "long Huffman value with EOS"),
        ("00016107", "value beyond the block"),
        ("0001617fff7f", "long value beyond the block"),
        ("8220", "update after a field"),
        ("822001610162", "update before what would be a literal"),
        ("823f00", "long update after a field"),
        ("3fe21f", "update above the limit"),
        ("3f", "update cut short"),
    ],
)
def test_errors(block: str, why: str):
    with pytest.raises(HpackError):
        Decoder().decode(bytes.fromhex(block))


@pytest.mark.parametrize("block", ["ff808080808000", "ff82ffff7f", "3fffffffff7f", "0001617fffffffff7f"])
def test_integers_are_bounded(block: str):
    with pytest.raises(HpackError, match="integer"):
        Decoder(1 << 40).decode(bytes.fromhex(block))


def test_long_integers_are_read():
    decoder = Decoder()
    assert decoder.decode(b"\x0f\x2e\x00") == ((b"www-authenticate", b""),)  # 15 + 46 = 61
    value = b"v" * 300
    assert decoder.decode(b"\x00\x01n\x7f\xad\x01" + value) == ((b"n", value),)
    assert decoder.decode(b"\x00\x01n\x7f\xad\x81\x80\x80\x00" + value) == ((b"n", value),)  # padded to five bytes
    for number in range(80):
        decoder.decode(b"\x40\x03%03d\x00" % number)
    assert decoder.decode(b"\xff\x0c") == ((b"002", b""),)  # index 139, the 78th newest


def test_entries_are_evicted_oldest_first():
    decoder = Decoder(80)
    assert decoder.decode(INSERT_A + INSERT_B + SECOND + NEWEST)[2:] == ((b"a", b"A"), (b"b", b"B"))
    assert decoder.decode(b"\x40\x01c\x01C") == ((b"c", b"C"),)
    assert entries(decoder) == [(b"c", b"C"), (b"b", b"B")]


def test_an_entry_larger_than_the_table_empties_it():
    decoder = Decoder(80)
    decoder.decode(INSERT_A)
    assert decoder.decode(b"\x40\x01x\x31" + b"y" * 49) == ((b"x", b"y" * 49),)
    assert entries(decoder) == []
    assert decoder._used_bytes == 0


def test_an_entry_may_fill_the_table():
    decoder = Decoder(34)
    decoder.decode(INSERT_A)
    assert entries(decoder) == [(b"a", b"A")]


def test_a_name_may_come_from_the_entry_that_is_evicted_for_it():
    decoder = Decoder(40)
    decoder.decode(INSERT_A)
    assert decoder.decode(b"\x7e\x01Z") == ((b"a", b"Z"),)
    assert entries(decoder) == [(b"a", b"Z")]


def test_updates_resize_the_table():
    decoder = Decoder()
    decoder.decode(INSERT_A + INSERT_B)
    decoder.decode(b"\x3f\x09" + NEWEST)  # 40 bytes
    assert entries(decoder) == [(b"b", b"B")]
    decoder.decode(b"\x20\x3f\xe1\x1f")  # none, then 4096 again
    assert entries(decoder) == []
    decoder.decode(INSERT_A + INSERT_B)
    assert len(entries(decoder)) == 2


def test_a_lowered_limit_must_be_acknowledged():
    for block in (b"\x82", b"", b"\x3f\x46", b"\x3f\x46\x82"):  # no update, and updates to 101
        decoder = Decoder()
        decoder.resize_limit(100)
        with pytest.raises(HpackError):
            decoder.decode(block)
    decoder = Decoder()
    decoder.decode(b"\x82")
    decoder.resize_limit(100)
    assert decoder.decode(b"\x3f\x45\x82") == ((b":method", b"GET"),)
    assert decoder.decode(b"\x82") == ((b":method", b"GET"),)


def test_a_remembered_block_does_not_hide_a_missing_update():
    decoder = Decoder()
    assert decoder.decode(b"\x82") == decoder.decode(b"\x82")
    decoder.resize_limit(0)
    with pytest.raises(HpackError):
        decoder.decode(b"\x82")


def test_the_smallest_of_several_limits_must_be_acknowledged():
    for block, ok in (
        (b"\x82", False),
        (b"\x3f\xe1\x1f\x82", False),
        (b"\x20\x3f\xe1\x1f\x82", True),
        (b"\x20\x82", True),
    ):
        decoder = Decoder()
        decoder.resize_limit(0)
        decoder.resize_limit(4096)
        if ok:
            assert decoder.decode(block) == ((b":method", b"GET"),)
        else:
            with pytest.raises(HpackError):
                decoder.decode(block)


def test_a_limit_raised_a_little_still_owes_the_smallest():
    decoder = Decoder()
    decoder.resize_limit(0)
    decoder.resize_limit(100)
    with pytest.raises(HpackError):
        decoder.decode(b"\x3f\x45\x82")


@pytest.mark.parametrize("size", [1020, 1021, 1022, 1023, 1024, 1025, 1026, 2046, 2047, 2048, 2049])
@pytest.mark.parametrize("update", [b"", b"\x20", b"\x3f\x45"])
def test_blocks_around_a_step_of_decoding(size: int, update: bytes):
    assert Decoder(max_list_bytes=1 << 20).decode(update + b"\x82" * size) == ((b":method", b"GET"),) * size


def test_a_raised_limit_may_be_used():
    decoder = Decoder()
    decoder.resize_limit(8192)
    assert decoder.decode(b"\x82")
    assert decoder.decode(b"\x3f\xe1\x3f\x82")  # 8192
    with pytest.raises(HpackError):
        decoder.decode(b"\x3f\xe2\x3f\x82")


def field_block(count: int, value_bytes: int) -> bytes:
    return literal(b"name", b"v" * value_bytes) * count


def test_a_list_at_the_limit_passes():
    block = field_block(10, 100)  # 136 bytes each
    assert len(Decoder(max_list_bytes=1360).decode(block)) == 10
    with pytest.raises(HeaderListTooLarge):
        Decoder(max_list_bytes=1359).decode(block)


@pytest.mark.parametrize("count", [1, 9, 30])  # within one step of decoding and over several
def test_a_list_too_large_leaves_the_table_in_step(count: int):
    decoder = Decoder(max_list_bytes=136 * count - 1)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(INSERT_A + field_block(count, 100) + INSERT_B)
    assert entries(decoder) == [(b"b", b"B"), (b"a", b"A")]
    assert decoder.decode(SECOND) == ((b"a", b"A"),)


def test_an_error_in_a_list_too_large_is_an_error():
    with pytest.raises(HpackError):
        Decoder(max_list_bytes=100).decode(field_block(2, 100) + b"\x80")


@pytest.mark.parametrize("value_bytes", [0, 100, 4000])
def test_a_list_is_counted_as_the_rfc_counts(value_bytes: int):
    entry = 36 + value_bytes
    insert = b"\x40" + literal(b"name", b"v" * value_bytes)[1:]
    decoder = Decoder(max_list_bytes=8 * entry)
    assert len(decoder.decode(insert + NEWEST * 7)) == 8
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(NEWEST * 9)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(NEWEST * 32)
    with pytest.raises(HpackError):
        decoder.decode(NEWEST * 33)


@pytest.mark.skipif(not hasattr(Decoder._walk, "__code__"), reason="compiled code calls its inner methods directly")
def test_bomb_ends_at_once():
    walked: list[int] = []

    class Watched(Decoder):
        def _walk(self, block: bytes, pos: int, stop: int, fields: list) -> int:
            walked.append(stop)
            return super()._walk(block, pos, stop, fields)

    watched = Watched()
    watched.decode(b"\x40" + literal(b"bomb", b"v" * 4000)[1:])
    walked.clear()
    with pytest.raises(HpackError):
        watched.decode(NEWEST * 1_000_000)
    assert walked[-1] <= 2048  # of a million bytes


def test_generation_rises_with_every_change_and_only_then():
    decoder = Decoder()
    seen = [decoder.generation]
    for block, changes in (
        (b"\x82", False), (INSERT_A, True), (NEWEST, False), (INSERT_A, True), (literal(b"a", b"b"), False),
        (b"\x3f\x09", True), (b"\x3f\x09" + NEWEST, False), (INSERT_B, True), (b"\x20", True), (b"\x20", False),
    ):  # fmt: skip
        decoder.decode(block)
        seen.append(decoder.generation)
        assert (seen[-1] > seen[-2]) == changes, block
    assert seen == sorted(seen)


def test_literal_is_valid_in_any_block_of_any_connection():
    fields = [(b"x-trace", b"a" * size) for size in (0, 1, 126, 127, 128, 5000)] + [(b"n" * 200, b"\xff\x00")]
    tail = b"".join(literal(*field) for field in fields)
    for decoder in (Decoder(), Decoder(0)):
        before = decoder.generation
        assert decoder.decode(tail) == tuple(fields)
        assert decoder.decode(b"\x82" + tail) == ((b":method", b"GET"), *fields)
        assert decoder.generation == before
    assert literal(b"a", b"b") == b"\x00\x01a\x01b"
