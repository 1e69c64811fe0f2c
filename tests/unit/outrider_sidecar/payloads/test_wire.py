from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.core.payload import MALFORMED, NOT_ONE_MESSAGE, TOO_LARGE, TRUNCATED, UNKNOWN_ENCODING
from outrider_sidecar.payloads.wire import Deframer, Unreadable, one_message

REASONS = {MALFORMED, NOT_ONE_MESSAGE, TOO_LARGE, TRUNCATED, UNKNOWN_ENCODING}


def frame(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def why(body: bytes, encoding: bytes = b"", max_bytes: int = 1_000) -> str:
    with pytest.raises(Unreadable) as caught:
        one_message(body, encoding, max_bytes)
    return caught.value.reason


def test_plain_and_compressed_messages():
    assert one_message(frame(b"hello"), b"") == b"hello"
    assert one_message(frame(b""), b"gzip") == b""
    assert one_message(frame(b"hello"), b"br") == b"hello"
    assert one_message(frame(gzip.compress(b"hello"), 1), b"gzip") == b"hello"
    assert one_message(frame(zlib.compress(b"hello"), 1), b"deflate") == b"hello"


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (b"", b"", NOT_ONE_MESSAGE),
        (b"\0\0", b"", TRUNCATED),
        (frame(b"abc")[:-1], b"", TRUNCATED),
        (frame(b"a") + frame(b"b"), b"", NOT_ONE_MESSAGE),
        (frame(b"a" * 1_001), b"", TOO_LARGE),
        (frame(b"a", 2), b"", MALFORMED),
        (frame(b"a", 1), b"", UNKNOWN_ENCODING),
        (frame(b"a", 1), b"identity", UNKNOWN_ENCODING),
        (frame(b"a", 1), b"br", UNKNOWN_ENCODING),
        (frame(b"not gzip", 1), b"gzip", MALFORMED),
        (frame(gzip.compress(b"abc", mtime=0)[:-3], 1), b"gzip", MALFORMED),
        (frame(gzip.compress(b"abc", mtime=0) + b"more", 1), b"gzip", MALFORMED),
        (frame(gzip.compress(b"a" * 1_001, mtime=0), 1), b"gzip", TOO_LARGE),
        (frame(zlib.compress(b"\0" * 10_000_000), 1), b"deflate", TOO_LARGE),
    ],
)
def test_why_not(body: bytes, encoding: bytes, reason: str):
    assert why(body, encoding) == reason


@given(st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=8), st.data())
def test_messages_come_out_however_the_body_is_cut(messages: list, data: st.DataObject):
    body = b"".join(frame(gzip.compress(m), 1) if packed else frame(m) for m, packed in messages)
    deframer = Deframer(b"gzip")
    found: list[bytes] = []
    at = 0
    while at < len(body):
        size = data.draw(st.integers(0, 30))
        found += deframer.feed(body[at : at + size])
        at += size
    assert found == [m for m, _ in messages]
    assert deframer.between_messages
    assert deframer.reason == ""


@given(st.lists(st.binary(max_size=50), max_size=10), st.sampled_from((b"", b"gzip", b"deflate", b"x")))
def test_nothing_makes_it_fail_or_hold_more_than_a_message(pieces: list[bytes], encoding: bytes):
    deframer = Deframer(encoding, max_bytes=60)
    for piece in pieces:
        deframer.feed(piece)
        assert len(deframer._held) <= 65
    assert deframer.reason in REASONS | {""}


def test_a_partial_message_is_not_between_messages():
    deframer = Deframer(b"")
    assert deframer.between_messages
    assert deframer.feed(frame(b"abc") + b"\0") == [b"abc"]
    assert not deframer.between_messages


def test_the_first_unreadable_message_ends_it_and_nothing_is_held():
    deframer = Deframer(b"", max_bytes=10)
    assert deframer.feed(frame(b"ok") + frame(b"x" * 11)[:8]) == [b"ok"]
    assert deframer.reason == TOO_LARGE
    assert deframer.feed(frame(b"ok")) == []
    assert not deframer.between_messages
    assert not deframer._held


def test_a_megabyte_in_single_bytes_is_cut_once(monkeypatch: pytest.MonkeyPatch):
    rounds = []
    cut = Deframer._cut

    def counted(self: Deframer, data: bytes, found: list[bytes]) -> int:
        rounds.append(len(data))
        return cut(self, data, found)

    monkeypatch.setattr(Deframer, "_cut", counted)
    deframer = Deframer(b"")
    body = frame(b"x" * 200_000)
    found = [message for at in range(len(body)) for message in deframer.feed(body[at : at + 1])]
    assert found == [b"x" * 200_000]
    assert sum(rounds) <= 2 * len(body) + 10
