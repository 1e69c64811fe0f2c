from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Optimization
from outrider_sidecar.core.payload import (
    INCOMPLETE,
    MAX_READ_BYTES,
    METHOD_NOT_LISTED,
    NO_MESSAGE,
    SIDE_EFFECTS,
    TOO_LARGE,
    TRUNCATED,
    ReplyFacts,
    RequestFacts,
    why_not_stored,
)
from outrider_sidecar.payloads import NATIVE_STREAM, NATIVE_UNARY, Payloads, may_be_cached
from outrider_sidecar.payloads.raw import RawPayload, listed

POLICY = Optimization(cache_methods=("/a.B/C", "/x.Y/*"))
RAW = RawPayload()
SMALL = st.binary(max_size=2)


def frame(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/a.B/C", True),
        (b"/a.B/D", False),
        (b"/a.B/C/", False),
        (b"/x.Y/Any", True),
        (b"/x.Y/", True),
        (b"/x.Z/Any", False),
        (b"/x.Y", False),
        (b"", False),
        (b"/\xff/C", False),
    ],
)
def test_methods_are_listed_by_name_or_service(path: bytes, expected: bool):
    assert listed(path, POLICY.cache_methods) is expected
    assert RAW.request(path, b"", frame(b"m"), POLICY).cacheable is expected


def test_nothing_is_listed_by_default():
    facts = RAW.request(b"/a.B/C", b"", frame(b"m"), Optimization())
    assert (facts.cacheable, facts.reason, facts.digest) == (False, METHOD_NOT_LISTED, b"")


@given(one=st.tuples(SMALL, SMALL, SMALL), other=st.tuples(SMALL, SMALL, SMALL))
def test_digests_are_equal_exactly_when_path_encoding_and_body_are(one: tuple, other: tuple):
    first = RAW.request(b"/x.Y/" + one[0].hex().encode(), one[1], one[2], POLICY)
    second = RAW.request(b"/x.Y/" + other[0].hex().encode(), other[1], other[2], POLICY)
    assert len(first.digest) == 16
    assert (first.digest == second.digest) == (one == other)


def test_the_seed_changes_digests():
    args = (b"/a.B/C", b"", frame(b"m"), POLICY)
    assert RawPayload(1).request(*args).digest != RawPayload(2).request(*args).digest


def test_large_requests_step_aside():
    assert RAW.request(b"/a.B/C", b"", frame(b"x" * MAX_READ_BYTES), POLICY).cacheable
    facts = RAW.request(b"/a.B/C", b"", frame(b"x" * (MAX_READ_BYTES + 1)), POLICY)
    assert (facts.cacheable, facts.reason) == (False, TOO_LARGE)


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(0, 200), st.integers(1, 12))
def test_a_reply_is_complete_when_it_ends_where_a_message_does(messages: list[bytes], cut: int, size: int):
    body = b"".join(map(frame, messages))[:cut]
    ends = {0}
    for message in messages:
        ends.add(max(ends) + 5 + len(message))
    whole = len(body) in ends
    reader = RAW.reader(b"")
    for at in range(0, len(body), size):
        reader.feed(body[at : at + size])
    facts = reader.facts()
    assert facts == RAW.reply(b"", body)
    assert facts.complete is whole
    assert facts.cacheable is (whole and bool(body))
    assert facts.reason == ("" if facts.cacheable else NO_MESSAGE if whole else TRUNCATED)


def test_a_huge_message_is_followed_without_being_held():
    reader = RAW.reader(b"")
    reader.feed(b"\0" + (1 << 31).to_bytes(4, "big"))
    for _ in range(10):
        reader.feed(b"x" * 1_000)
    assert reader._prefix == b""
    assert reader.facts().complete is False


def test_the_adapter_follows_the_path():
    payloads = Payloads()
    assert payloads.of(b"/a.B/C").name == "raw"
    assert payloads.of(NATIVE_UNARY).name == payloads.of(NATIVE_STREAM).name == "native"
    assert payloads.of(NATIVE_UNARY) is not payloads.of(NATIVE_STREAM)
    assert payloads.of(NATIVE_UNARY) is payloads.of(NATIVE_UNARY)


def test_native_methods_need_no_entry():
    assert may_be_cached(NATIVE_UNARY, ())
    assert may_be_cached(NATIVE_STREAM, ())
    assert may_be_cached(b"/a.B/C", ("/a.B/C",))
    assert not may_be_cached(b"/a.B/C", ())


def test_what_is_stored_needs_both_sides():
    yes = RequestFacts(True, read_only_tools=frozenset({"look"}))
    assert why_not_stored(yes, ReplyFacts(True, True)) == ""
    assert why_not_stored(yes, ReplyFacts(True, True, tools=("look",))) == ""
    assert why_not_stored(yes, ReplyFacts(True, True, tools=("look", "write"))) == SIDE_EFFECTS
    assert why_not_stored(yes, ReplyFacts(True, False, "finish")) == "finish"
    assert why_not_stored(yes, ReplyFacts(False, True)) == INCOMPLETE
    assert why_not_stored(yes, ReplyFacts(False, False, TRUNCATED)) == TRUNCATED
    assert why_not_stored(RequestFacts(False, "sampled"), ReplyFacts(True, True)) == "sampled"
