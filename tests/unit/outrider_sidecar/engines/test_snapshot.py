from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.core.entry import Entry, Fields
from outrider_sidecar.engines import snapshot
from outrider_sidecar.engines.snapshot import Decoder, Header, SnapshotRefused, encode, encode_entry, encode_header

EPOCHS = {"floor": 7, "counters": [["a", "t", "tag", 9]]}
HEAD: Fields = ((b":status", b"200"), (b"x-bin", b"\x00\xff"))
TRAILERS: Fields = ((b"grpc-status", b"0"),)
ENTRY_FIELDS = (
    *("key", "head", "chunks", "gaps_ms", "trailers", "tier", "tags", "tokens"),
    *("weight_bytes", "stored_at", "fresh_until", "stale_until", "used_at", "uses"),
)


def fields_of(block: Any) -> Fields:
    return block[1]


def make_head(fields: Fields) -> Any:
    return ("head", fields)


def make_trailers(fields: Fields) -> Any:
    return ("trailers", fields)


def make_entry(number: int, body: bytes = b"body") -> Entry:
    entry = Entry(
        number.to_bytes(16, "big"),
        ("head", HEAD),
        (body, b"second"),
        ("trailers", TRAILERS),
        head_bytes=300,
        gaps_ms=(0, 12),
        tier="tool",
        tags=("x", "y"),
        tokens=(number, 5),
    )
    entry.stored_at, entry.fresh_until, entry.stale_until, entry.used_at = 1.5, 2.5, 3.5, 1.75
    entry.uses = 3
    return entry


def facts(pair: tuple[str, Entry]) -> tuple:
    agent, entry = pair
    return (agent, *[getattr(entry, name) for name in ENTRY_FIELDS])


def written(count: int, seed: int = 11, body: bytes = b"body") -> list[bytes]:
    entries = [(f"agent{number}", make_entry(number, body)) for number in range(count)]
    return list(encode(Header(1_000.0, seed, EPOCHS, count), entries, fields_of))


def read(data: bytes, pieces: int = 1 << 30, **options: int) -> tuple[list[tuple[str, Entry]], Decoder]:
    decoder = Decoder(make_head, make_trailers, **options)
    found = []
    for at in range(0, len(data), pieces):
        found += decoder.feed(data[at : at + pieces])
    return found + decoder.finish(), decoder


def numbers(found: list[tuple[str, Entry]]) -> list[int]:
    return [int.from_bytes(entry.key, "big") for _, entry in found]


@pytest.mark.parametrize("pieces", [1, 7, 100, 1 << 20])
def test_what_is_written_is_read_in_order(pieces: int):
    found, decoder = read(b"".join(written(4)), pieces)
    assert [facts(pair) for pair in found] == [facts((f"agent{n}", make_entry(n))) for n in range(4)]
    assert decoder.header == Header(1_000.0, 11, EPOCHS, 4)
    assert (decoder.good, decoder.lost) == (4, 0)


def test_records_can_be_appended():
    data = b"".join(written(2)) + encode_entry("late", make_entry(9), fields_of, 11)
    found, decoder = read(data)
    assert numbers(found) == [0, 1, 9]
    assert decoder.lost == 0


def test_epochs_alone_are_a_snapshot():
    found, decoder = read(encode_header(Header(5.0, 2**64 - 1, EPOCHS)))
    assert found == []
    assert decoder.header is not None
    assert decoder.header.seed == 2**64 - 1


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_a_cut_tail_loses_only_the_last(at: int, pieces: int):
    parts = written(5)
    data = b"".join(parts)
    cut = len(parts[0]) + at % (len(data) - len(parts[0]))
    found, decoder = read(data[:cut], pieces)
    whole = sum(len(parts[0]) + sum(map(len, parts[1 : n + 1])) <= cut for n in range(1, 6))
    assert numbers(found) == list(range(whole))
    assert decoder.lost == 5 - whole


@given(st.integers(0, 10_000), st.integers(1, 255), st.integers(1, 64))
def test_a_flipped_byte_loses_one_record(at: int, flip: int, pieces: int):
    parts = written(5)
    data = bytearray(b"".join(parts))
    at = len(parts[0]) + at % (len(data) - len(parts[0]))
    data[at] ^= flip
    found, decoder = read(bytes(data), pieces)
    assert len(found) == 4
    assert numbers(found) == sorted(numbers(found))
    assert decoder.lost == 1


@given(st.binary(min_size=1, max_size=200), st.integers(0, 4))
def test_garbage_between_records_hides_none(garbage: bytes, at: int):
    parts = written(4)
    found, decoder = read(b"".join([*parts[: at + 1], garbage, *parts[at + 1 :]]))
    assert numbers(found) == [0, 1, 2, 3]
    assert decoder.lost <= 1


@given(st.binary(max_size=400))
def test_nothing_makes_it_fail_or_trust(data: bytes):
    found, decoder = read(written(0)[0] + data)
    assert found == []
    assert decoder.lost <= len(data)


def test_a_length_that_lies_is_not_waited_for():
    parts = written(3)
    lying = bytearray(parts[1])
    lying[4:8] = (1 << 31).to_bytes(4, "little")
    found, decoder = read(b"".join([parts[0], bytes(lying), *parts[2:]]), max_record_bytes=10_000)
    assert numbers(found) == [1, 2]
    assert decoder.lost == 1


def test_a_body_that_imitates_a_record_is_not_taken_for_one():
    forged = encode_entry("victim", make_entry(666), fields_of, seed=0)
    parts = written(2, seed=12_345, body=forged)
    damaged = bytearray(parts[1])
    damaged[10] ^= 1
    found, decoder = read(b"".join([parts[0], bytes(damaged), parts[2]]))
    assert numbers(found) == [1]
    assert decoder.lost == 1


def test_entries_the_caller_refuses_are_lost_not_fatal():
    def refuse(fields: Fields) -> Any:
        raise ValueError("no such head")

    decoder = Decoder(refuse, make_trailers)
    assert decoder.feed(b"".join(written(2))) + decoder.finish() == []
    assert decoder.lost == 2


@pytest.mark.parametrize(
    "record", [7, [], ["a"] * 15, ["a", b"k", [], 7, [], [], 1.0, 2.0, 3.0, 1.0, 1, "llm", ["t"], [1, 2], 3]]
)
def test_a_record_of_the_wrong_shape_is_lost(record: object):
    payload = snapshot._pack(record)
    framed = snapshot._RECORD.pack(snapshot._MARK, len(payload), snapshot.xxh3_64_intdigest(payload, 11)) + payload
    parts = written(1)
    found, decoder = read(parts[0] + framed + parts[1])
    assert numbers(found) == [0]
    assert decoder.lost == 1


def test_later_additions_to_a_record_are_ignored():
    payload = snapshot._pack([*msgpack.unpackb(written(1)[1][16:]), "new", 1])
    framed = snapshot._RECORD.pack(snapshot._MARK, len(payload), snapshot.xxh3_64_intdigest(payload, 11)) + payload
    found, _ = read(written(1)[0] + framed)
    assert facts(found[0]) == facts(("agent0", make_entry(0)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends before its header"),
        (b"OUTRS", "ends before its header"),
        (b"PK\x03\x04 something else", "not a snapshot"),
        (written(1)[0][:-1], "ends before its header"),
        (written(1)[0][:8] + b"\x02" + written(1)[0][9:], "schema version 2; this sidecar reads 1"),
        (written(1)[0][:12] + b"\xff\xff\xff\xff" + written(1)[0][16:], "header is damaged"),
        (written(1)[0][:-1] + b"\x00", "checksum does not match"),
    ],
)
def test_a_bad_header_refuses_the_whole(data: bytes, reason: str):
    with pytest.raises(SnapshotRefused, match=reason):
        read(data)


def test_a_header_without_its_fields_is_refused():
    payload = snapshot._pack({"saved_at": 1.0})
    header = snapshot._HEADER.pack(snapshot._MAGIC, 1, len(payload), snapshot._header_sum(1, payload)) + payload
    with pytest.raises(SnapshotRefused, match="cannot be read"):
        read(header)


def test_large_bodies_survive_any_split():
    body = random.Random(3).randbytes(300_000)
    found, decoder = read(b"".join(written(3, body=body)), 65_536)
    assert [entry.chunks[0] == body for _, entry in found] == [True] * 3
    assert decoder.lost == 0
