"""What our encoder puts into the table, what it never does, and when its blocks repeat."""

from __future__ import annotations

import random

import pytest

from outrider_http2.hpack import Decoder, Encoder
from outrider_http2.hpack_static import SENSITIVE, UNIQUE

REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/pkg.Service/Method"),
    (b":authority", b"127.0.0.1:7600"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


def entries(decoder: Decoder) -> list[tuple[bytes, bytes]]:
    """The dynamic table, newest first."""
    return decoder._table[62:]


def test_a_warm_encoder_repeats_itself_byte_for_byte():
    encoder, decoder = Encoder(), Decoder()
    blocks = [encoder.encode(REQUEST) for _ in range(5)]
    assert blocks[2] == blocks[3] == blocks[4]
    assert len(blocks[2]) == len(REQUEST)  # indexed, all of it
    assert all(decoder.decode(block) == REQUEST for block in blocks)
    generation = encoder.generation
    encoder.encode(REQUEST)
    assert encoder.generation == generation


def test_fields_may_be_any_iterable():
    assert Encoder().encode(iter(REQUEST)) == Encoder().encode(list(REQUEST))
    assert Encoder().encode(()) == b""


def test_generation_tells_which_blocks_may_be_kept():
    encoder, decoder = Encoder(), Decoder()
    kept: dict[tuple, tuple[int, bytes]] = {}
    rng = random.Random(7)
    fields = [*REQUEST, *((b"x-agent-id", b"agent-%d" % number) for number in range(8))]
    for _ in range(300):
        chosen = tuple(rng.sample(fields, 4))
        if rng.random() < 0.03:
            encoder.resize(rng.choice([0, 200, 400, 4096]))
        generation, block = kept.get(chosen, (-1, b""))
        if generation != encoder.generation:
            before = encoder.generation
            block = encoder.encode(chosen)
            if encoder.generation == before:
                kept[chosen] = (before, block)
        assert decoder.decode(block) == chosen
    assert kept


def test_names_of_the_static_table_are_named_by_their_first_index():
    assert Encoder().encode([(b":path", b"/x"), (b":status", b"201")]) == b"\x04\x02/x\x08\x03201"


def test_a_field_seen_once_is_not_inserted():
    encoder, decoder = Encoder(), Decoder()
    for number in range(1000):
        decoder.decode(encoder.encode([(b"x-unheard-of", b"%d" % number)]))
    assert entries(decoder) == []
    assert encoder.generation == 0
    assert len(encoder._seen) <= 128


def test_the_table_is_filled_once_and_never_evicts():
    encoder, decoder = Encoder(), Decoder()
    fields = [(b"x-number", b"%d" % number) for number in range(300)]
    for field in fields:
        for _ in range(3):
            assert decoder.decode(encoder.encode([field])) == (field,)
    held = entries(decoder)
    assert held == fields[: len(held)][::-1]
    assert 4096 - 50 < sum(len(name) + len(value) + 32 for name, value in held) <= 4096
    for field in fields:
        block = encoder.encode([field])
        assert len(block) <= 2 if field in held else block[0] < 0x10  # a literal, its name by index
        assert b"x-number" not in block
        assert decoder.decode(block) == (field,)


@pytest.mark.parametrize("name", sorted(UNIQUE | SENSITIVE))
def test_what_is_unique_or_secret_never_enters_a_table(name: bytes):
    encoder, decoder = Encoder(), Decoder()
    for value in (b"", b"value", b"value", b"value", b"v" * 126, b"v" * 127, b"v" * 5000):
        block = encoder.encode([(name, value)])
        assert decoder.decode(block) == ((name, value),)
        assert block[0] & 0xF0 == (0x10 if name in SENSITIVE else 0x00)
    assert entries(decoder) == []
    assert encoder.generation == 0


def test_long_values_are_not_inserted():
    encoder, decoder = Encoder(), Decoder()
    for size in (256, 257):
        for _ in range(3):
            decoder.decode(encoder.encode([(b"x-long", b"v" * size)]))
    assert entries(decoder) == [(b"x-long", b"v" * 256)]


def test_the_peer_may_shrink_and_close_the_table():
    encoder, decoder = Encoder(), Decoder()
    for _ in range(3):
        decoder.decode(encoder.encode(REQUEST))
    assert len(entries(decoder)) == 4
    for limit in (120, 0):
        encoder.resize(limit)
        decoder.resize_limit(limit)
        for _ in range(3):
            assert decoder.decode(encoder.encode(REQUEST)) == REQUEST
        assert decoder._used_bytes <= limit
    encoder.resize(4096)
    decoder.resize_limit(4096)
    for _ in range(3):
        assert decoder.decode(encoder.encode(REQUEST)) == REQUEST
    assert len(entries(decoder)) == 4


def test_updates_stand_at_the_start_of_the_next_block_only():
    encoder = Encoder()
    encoder.resize(0)
    encoder.resize(100)
    assert encoder.encode([(b":method", b"GET")]) == b"\x20\x3f\x45\x82"
    assert encoder.encode([(b":method", b"GET")]) == b"\x82"
    encoder.resize(30)
    assert encoder.encode([]) == b"\x3e"


def test_a_block_with_an_update_must_not_be_kept():
    encoder = Encoder()
    encoder.resize(100)
    before = encoder.generation
    encoder.encode(REQUEST[:2])
    assert encoder.generation > before


def test_our_own_use_is_capped():
    encoder = Encoder()
    before = encoder.generation
    encoder.resize(1 << 20)
    assert encoder.encode([(b":method", b"GET")]) == b"\x82"
    assert encoder.generation == before
    assert Encoder(1 << 20).encode([(b":method", b"GET")]) == b"\x82"


def test_a_smaller_table_from_the_start_is_announced():
    assert Encoder(0).encode([(b":method", b"GET")]) == b"\x20\x82"
