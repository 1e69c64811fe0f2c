"""What leaves a native request under pressure, and that nothing else does."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.core import payload
from outrider_sidecar.payloads.rewrite import Rewritten, rewritten
from tests.wire import message

BOUND, TOKENS = 0.5, 512


def block(text: str, relevance: float | None = None, verbatim: bool = False) -> pb.ContextBlock:
    made = pb.ContextBlock(block_id=text, parts=[pb.Part(text=text)], source="s", tags=["t"], verbatim=verbatim)
    if relevance is not None:
        made.relevance = relevance
    return made


def request(*blocks: pb.ContextBlock, tokens: int | None = None) -> pb.InvokeRequest:
    made = pb.InvokeRequest(agent_id="a", messages=[pb.Message(parts=[pb.Part(text="ask")])], context=blocks)
    if tokens is not None:
        made.generation.max_output_tokens = tokens
    return made


def rewrite(raw: bytes, relevance: float = BOUND, tokens: int = TOKENS) -> Rewritten:
    return rewritten(message(raw), b"", relevance, tokens)


def inside(done: Rewritten) -> pb.InvokeRequest:
    assert done.body[:5] == b"\0" + (len(done.body) - 5).to_bytes(4, "big")
    return pb.InvokeRequest.FromString(done.body[5:])


def test_blocks_rated_below_the_bound_go_and_others_stay_in_order() -> None:
    asked = request(
        block("low", 0.1), block("high", 0.9), block("unrated"), block("kept", 0.0, True), block("bound", 0.5),
        block("zero", 0.0), block("negative", -1.0), block("nan", float("nan")),
    )  # fmt: skip
    done = rewrite(asked.SerializeToString(), tokens=0)
    assert [one.block_id for one in inside(done).context] == ["high", "unrated", "kept", "bound", "nan"]
    assert (done.trimmed, done.capped, done.reason) == (3, False, "")
    left = rewrite(asked.SerializeToString(), relevance=0.0, tokens=0)
    assert left == Rewritten(message(asked.SerializeToString()))


def test_a_block_at_the_bound_stays_although_the_message_is_less_precise() -> None:
    for bound in (0.1, 0.3, 0.7, 0.9):
        assert rewrite(request(block("b", bound)).SerializeToString(), bound, 0).trimmed == 0


@pytest.mark.parametrize(
    ("tokens", "after", "capped"),
    [(None, 512, True), (0, 0, False), (511, 511, False), (512, 512, False), (513, 512, True), (2**32 - 1, 512, True)],
)
def test_the_answer_is_bounded_by_the_smaller_number(tokens: int | None, after: int, capped: bool) -> None:
    asked = request(tokens=tokens)
    asked.generation.model = "m"
    done = rewrite(asked.SerializeToString())
    asked.generation.max_output_tokens = after
    assert inside(done) == asked
    assert done.capped is capped
    without = request(tokens=tokens)
    assert inside(rewrite(without.SerializeToString())).generation.max_output_tokens == after


def test_the_number_is_changed_where_it_stands() -> None:
    raw = b"\x52\x07\x0a\x01m\x28\x80\x08\x58" + b"\x01" + b"\x2a\x01u"  # generation {model, 1024, tool_choice}: broken
    assert rewrite(raw).reason == payload.MALFORMED
    raw = b"\x52\x08\x0a\x01m\x28\x80\x08\x58\x01" + b"\x2a\x01u"
    assert rewrite(raw).body[5:] == b"\x52\x08\x0a\x01m\x28\x80\x04\x58\x01" + b"\x2a\x01u"
    assert rewrite(raw, tokens=7).body[5:] == b"\x52\x07\x0a\x01m\x28\x07\x58\x01" + b"\x2a\x01u"
    assert rewrite(b"\x52\x03\x0a\x01m\x2a\x01u").body[5:] == b"\x52\x06\x0a\x01m\x28\x80\x04\x2a\x01u"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x52\x03\x28\x80\x08\x52\x03\x0a\x01m",  # generation in two pieces, the first says the number
        b"\x52\x03\x0a\x01m\x52\x03\x28\x80\x08",
        b"\x52\x03\x0a\x01m\x52\x02\x38\x01",  # neither does
        b"\x52\x05\x28\x01\x28\x80\x08",  # twice: the last one counts
        b"\x52\x03\x28\x80\x08\x52\x02\x28\x01",
        b"\xd2\x00\x83\x00\x28\x80\x08",  # tag and length longer than they need be
        b"\x52\x09\x28\x80\x88\x80\x80\x80\x80\x80\x01",  # a number of 64 bits
        b"\x50\x01",  # generation's number with another wire type: an unknown field
        b"\x52\x04\x2d\0\0\0",  # broken
        b"",
    ],
)
def test_odd_encodings_of_the_generation(raw: bytes) -> None:
    try:
        asked = pb.InvokeRequest.FromString(raw)
    except DecodeError:
        assert rewrite(raw) == Rewritten(message(raw), reason=payload.MALFORMED)
        return
    if asked.generation.HasField("max_output_tokens"):
        asked.generation.max_output_tokens = min(TOKENS, asked.generation.max_output_tokens)
    else:
        asked.generation.max_output_tokens = TOKENS
    assert inside(rewrite(raw)).SerializeToString() == asked.SerializeToString()


@pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_a_compressed_message_is_read_and_leaves_plain(encoding: bytes, pack: object) -> None:
    raw = request(block("low", 0.1), block("high", 0.9)).SerializeToString()
    packed = pack(raw)  # type: ignore[operator]
    body = b"\1" + len(packed).to_bytes(4, "big") + packed
    done = rewritten(body, encoding, BOUND, 0)
    assert done == rewrite(raw, tokens=0)
    assert (done.trimmed, done.body[0]) == (1, 0)
    assert rewritten(body, encoding, 0.05, 0) == Rewritten(body)


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (b"", b"", payload.NOT_ONE_MESSAGE),
        (message(b"")[:4], b"", payload.TRUNCATED),
        (message(b"xy")[:-1], b"", payload.TRUNCATED),
        (message(b"") + message(b""), b"", payload.NOT_ONE_MESSAGE),
        (b"\1" + message(b"xy")[1:], b"zstd", payload.UNKNOWN_ENCODING),
        (b"\1" + message(b"xy")[1:], b"", payload.UNKNOWN_ENCODING),
        (b"\1" + message(b"xy")[1:], b"gzip", payload.MALFORMED),
        (b"\2" + message(b"")[1:], b"", payload.MALFORMED),
        (message(b"\0" * (payload.MAX_READ_BYTES + 1)), b"", payload.TOO_LARGE),
    ],
)
def test_what_cannot_be_read_leaves_as_it_came(body: bytes, encoding: bytes, reason: str) -> None:
    done = rewritten(body, encoding, BOUND, TOKENS)
    assert done == Rewritten(body, reason=reason)
    assert done.body is body


@pytest.mark.parametrize(
    "raw",
    [
        b"\x42",  # ends within a field
        b"\x42\x05\x2d\0\0\0",
        b"\x42\x04\x2d\0\0\0",  # a block that ends within its relevance
        b"\x42\x01\x38",
        b"\x00\x01",  # field number 0
        b"\x0e\x01",  # no such wire type
        b"\x0c",  # the end of no group
        b"\x0b\x14",  # of another one
        b"\x0b",  # of one that does not end
        b"\x08" + b"\x80" * 10 + b"\x01",
        b"\xff\xff\xff\xff\x7f",  # a tag over 32 bits
        b"\x09\0\0\0",
        b"\x0b" * 200 + b"\x0c" * 200,
    ],
)
def test_broken_messages_leave_as_they_came(raw: bytes) -> None:
    assert rewrite(raw) == Rewritten(message(raw), reason=payload.MALFORMED)


def test_a_group_is_passed_over() -> None:
    group = b"\xfb\x06" + b"\x08\x01" + b"\x13\x1d\0\0\0\0\x14" + b"\xfc\x06"
    raw = group + request(block("low", 0.1)).SerializeToString() + group
    assert rewrite(raw, tokens=0).body[5:] == group + request().SerializeToString() + group


# -- any message ---------------------------------------------------------------------------------------------------

RATINGS = st.none() | st.floats(width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0])
# Fields no contract has: a number of 20 to 4000, and one value of each wire type.
UNKNOWN = st.builds(
    lambda number, value: _varint(number << 3 | value[0]) + value[1],
    st.integers(20, 4_000),
    st.one_of(
        st.integers(0, 2**64 - 1).map(lambda value: (0, _varint(value))),
        st.binary(min_size=8, max_size=8).map(lambda value: (1, value)),
        st.binary(max_size=200).map(lambda value: (2, _varint(len(value)) + value)),
        st.binary(min_size=4, max_size=4).map(lambda value: (5, value)),
    ),
)
BLOCKS = st.builds(
    lambda made, unknown, cut: _mixed(made.SerializeToString(), unknown, cut),
    st.builds(block, st.text(max_size=20), RATINGS, st.booleans()),
    st.lists(UNKNOWN, max_size=2),
    st.booleans(),
)
GENERATIONS = st.builds(
    lambda model, tokens, unknown, cut: _mixed(
        pb.Generation(model=model, max_output_tokens=tokens, stop=["."]).SerializeToString(), unknown, cut
    ),
    st.text(max_size=5),
    st.none() | st.integers(0, 2**32 - 1),
    st.lists(UNKNOWN, max_size=2),
    st.booleans(),
)
FIELDS = st.one_of(
    BLOCKS.map(lambda raw: (8, raw)),
    BLOCKS.map(lambda raw: (8, raw)),
    GENERATIONS.map(lambda raw: (10, raw)),
    UNKNOWN.map(lambda raw: (0, raw)),
    st.text(max_size=9).map(lambda text: (0, pb.InvokeRequest(user_id=text).SerializeToString())),
    st.text(max_size=9).map(lambda text: (0, pb.InvokeRequest(messages=[pb.Message(name=text)]).SerializeToString())),
)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _mixed(raw: bytes, unknown: list[bytes], before: bool) -> bytes:
    return b"".join([*unknown, raw]) if before else b"".join([raw, *unknown])


def _field(number: int, raw: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw if number else raw


@given(st.lists(FIELDS, max_size=12), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([0, 1, 512, 10**7]))
def test_exactly_what_is_said_changes(fields: list[tuple[int, bytes]], bound: float, tokens: int) -> None:
    raw = b"".join([_field(*one) for one in fields])
    done = rewrite(raw, bound, tokens)
    assert done.reason == ""

    def stays(number: int, one: bytes) -> bool:
        if number != 8 or not bound:
            return True
        read = pb.ContextBlock.FromString(one)
        return not (read.HasField("relevance") and read.relevance < bound and not read.verbatim)

    kept = [one for one in fields if stays(*one)]
    assert done.trimmed == len(fields) - len(kept)
    wanted = b"".join([_field(*one) for one in kept])
    before = pb.InvokeRequest.FromString(wanted)
    said = before.generation.HasField("max_output_tokens")
    over = tokens > 0 and (not said or before.generation.max_output_tokens > tokens)
    assert done.capped is over
    if not over:
        assert done.body[5:] == wanted  # byte for byte
        return
    before.generation.max_output_tokens = tokens
    after = inside(done)
    assert after == before
    assert after.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)  # unknown too
    plain = b"".join([_field(*one) for one in kept if one[0] != 10])
    if not any([number == 10 for number, _ in kept]):
        assert done.body[5:].startswith(plain)


@given(st.binary(max_size=300), st.sampled_from([b"", b"gzip"]), st.booleans())
def test_garbage_never_raises_and_leaves_whole_or_readable(raw: bytes, encoding: bytes, framed: bool) -> None:
    body = message(raw) if framed else raw
    done = rewritten(body, encoding, BOUND, TOKENS)
    if done.reason:
        assert done == Rewritten(body, reason=done.reason)
        return
    assert done.body[:5] == b"\0" + (len(done.body) - 5).to_bytes(4, "big")
    try:
        before = pb.InvokeRequest.FromString(raw)
    except DecodeError:
        return  # a text that is no UTF-8, or the like: the agent's to say
    before.generation.max_output_tokens = min(TOKENS, before.generation.max_output_tokens or TOKENS)
    assert inside(done).generation.max_output_tokens <= TOKENS


def test_any_cut_of_a_message_is_taken_or_refused_as_the_library_does() -> None:
    rng = random.Random(5)
    whole = request(block("low", 0.1), block("é" * 30, 0.9), tokens=9_000).SerializeToString()
    for at in range(len(whole)):
        raw = bytearray(whole[:at])
        if at % 2 and raw:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        done = rewrite(bytes(raw))
        try:
            pb.InvokeRequest.FromString(bytes(raw))
        except DecodeError:
            continue
        assert done.reason == ""
        inside(done)
