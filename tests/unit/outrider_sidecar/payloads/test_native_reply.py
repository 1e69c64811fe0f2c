from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.core.payload import (
    FINISH,
    INCOMPLETE,
    MALFORMED,
    NOT_ONE_MESSAGE,
    TOO_LARGE,
    TRUNCATED,
    UNKNOWN_ENCODING,
    ReplyFacts,
    RequestFacts,
    why_not_stored,
)
from outrider_sidecar.payloads.native import NativePayload, _text_alone

UNARY = NativePayload(stream=False)
STREAM = NativePayload(stream=True)
STOP = pb.FINISH_REASON_STOP
USAGE = pb.Usage(input_tokens=10, output_tokens=4, cache_read_tokens=6, cache_write_tokens=2)


def frame(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def body_of(*messages: pb.InvokeReply | pb.InvokeChunk) -> bytes:
    return b"".join([frame(message.SerializeToString()) for message in messages])


def answer(reason: int = STOP, *tools: str) -> pb.InvokeReply:
    reply = pb.InvokeReply(finish_reason=reason, model="m-1", usage=USAGE)  # type: ignore[arg-type]
    reply.parts.add(text="42")
    for tool in tools:
        reply.parts.add().tool_call.name = tool
    return reply


def chunks(reason: int = STOP, *tools: str) -> list[pb.InvokeChunk]:
    found = [pb.InvokeChunk(text="forty "), pb.InvokeChunk(part_index=1, text="two")]
    for tool in tools:
        found.append(pb.InvokeChunk(tool_call=pb.ToolCallDelta(name=tool)))
        found.append(pb.InvokeChunk(tool_call=pb.ToolCallDelta(arguments_json="{}")))
    finish = pb.Finish(reason=reason, model="m-1", usage=USAGE)  # type: ignore[arg-type]
    return [*found, pb.InvokeChunk(finish=finish)]


def read(stream: bool, reason: int = STOP, *tools: str) -> ReplyFacts:
    if stream:
        return STREAM.reply(b"", body_of(*chunks(reason, *tools)))
    return UNARY.reply(b"", body_of(answer(reason, *tools)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_complete_answer(stream: bool):
    assert read(stream) == ReplyFacts(True, True, "", (), 10, 4, 6, 2, "m-1", "stop")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (pb.FINISH_REASON_LENGTH, "length"),
        (pb.FINISH_REASON_CONTENT_FILTER, "content_filter"),
        (pb.FINISH_REASON_REFUSAL, "refusal"),
        (pb.FINISH_REASON_ERROR, "error"),
        (pb.FINISH_REASON_TOOL_CALLS, "tool_calls"),
        (99, "other"),
    ],
)
def test_cut_refused_and_failed_answers_are_not_kept_but_metered(stream: bool, reason: int, name: str):
    facts = read(stream, reason)
    assert (facts.complete, facts.cacheable, facts.reason, facts.finish_reason) == (True, False, FINISH, name)
    assert facts.output_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_a_reason_is_not_complete(stream: bool):
    facts = read(stream, pb.FINISH_REASON_UNSPECIFIED)
    assert (facts.complete, facts.cacheable, facts.finish_reason) == (False, False, "")


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_kept_when_they_only_read(stream: bool):
    facts = read(stream, pb.FINISH_REASON_TOOL_CALLS, "find", "look")
    assert (facts.cacheable, facts.tools) == (True, ("find", "look"))
    assert why_not_stored(RequestFacts(True, read_only_tools=frozenset({"look", "find"})), facts) == ""
    assert why_not_stored(RequestFacts(True, read_only_tools=frozenset({"look"})), facts) == "side_effects"
    assert why_not_stored(RequestFacts(True), read(stream, STOP, "write")) == "side_effects"


def test_a_tool_call_that_comes_whole_counts():
    part = pb.Part(tool_call=pb.ToolCall(name="file"))
    facts = STREAM.reply(b"", body_of(pb.InvokeChunk(part=part), *chunks()))
    assert facts.tools == ("file",)


def test_more_tools_than_are_remembered_are_never_kept():
    names = [f"t{number}" for number in range(500)]
    facts = read(True, pb.FINISH_REASON_TOOL_CALLS, *names)
    assert len(facts.tools) <= 65
    assert why_not_stored(RequestFacts(True, read_only_tools=frozenset(names)), facts) == "side_effects"
    long = "x" * 65
    facts = read(True, pb.FINISH_REASON_TOOL_CALLS, long)
    assert why_not_stored(RequestFacts(True, read_only_tools=frozenset({long})), facts) == "side_effects"


@given(st.integers(0, 400), st.integers(1, 40), st.booleans())
def test_an_answer_cut_anywhere_is_not_complete(cut: int, size: int, stream: bool):
    whole = body_of(*chunks(STOP, "look")) if stream else body_of(answer(STOP, "look"))
    adapter = STREAM if stream else UNARY
    reader = adapter.reader(b"")
    body = whole[:cut]
    for at in range(0, len(body), size):
        reader.feed(body[at : at + size])
        assert reader.facts().complete is (min(at + size, cut) >= len(whole))
    facts = reader.facts()
    assert facts == adapter.reply(b"", body)
    assert facts.complete is facts.cacheable is (cut >= len(whole))
    if not facts.complete:
        assert facts.reason in (INCOMPLETE, TRUNCATED)


def test_a_stream_without_finish_is_incomplete():
    facts = STREAM.reply(b"", body_of(*chunks()[:-1]))
    assert (facts.complete, facts.reason) == (False, INCOMPLETE)
    assert STREAM.reply(b"", b"").reason == UNARY.reply(b"", b"").reason == INCOMPLETE


@pytest.mark.parametrize("late", [pb.InvokeChunk(text="more"), pb.InvokeChunk(finish=pb.Finish(reason=STOP))])
def test_a_chunk_after_the_last_is_malformed(late: pb.InvokeChunk):
    facts = STREAM.reply(b"", body_of(*chunks(), late))
    assert (facts.complete, facts.cacheable, facts.reason) == (False, False, MALFORMED)
    facts = STREAM.reply(b"", body_of(*chunks(), late, chunks()[-1]))
    assert facts.complete is False


def test_a_second_answer_is_one_too_many():
    facts = UNARY.reply(b"", body_of(answer(), answer()))
    assert (facts.complete, facts.cacheable, facts.reason) == (False, False, NOT_ONE_MESSAGE)


def test_compressed_and_unreadable_answers():
    packed = frame(gzip.compress(answer().SerializeToString()), 1)
    assert UNARY.reply(b"gzip", packed) == read(False)
    assert UNARY.reply(b"br", packed).reason == UNKNOWN_ENCODING
    assert UNARY.reply(b"", frame(b"\xff")).reason == MALFORMED
    assert STREAM.reply(b"", frame(b"\xff")).reason == MALFORMED
    assert UNARY.reply(b"", frame(b"\0" * (1 << 20 | 1))).reason == TOO_LARGE


@given(st.binary(max_size=100), st.booleans())
def test_nothing_makes_it_fail(body: bytes, framed: bool):
    for adapter in (UNARY, STREAM):
        facts = adapter.reply(b"gzip", frame(body) if framed else body)
        assert facts.complete or not facts.cacheable


@given(st.integers(0, 300), st.text(max_size=200), st.booleans())
def test_only_chunks_of_nothing_but_text_are_passed_over(index: int, text: str, last: bool):
    chunk = pb.InvokeChunk(part_index=index, text=text)
    if last:
        chunk.finish.reason = STOP
    message = chunk.SerializeToString()
    if _text_alone(message):
        assert not last
    elif not last:
        assert index > 127 or len(text.encode()) > 124


@given(st.binary(max_size=12))
def test_what_is_passed_over_would_parse_as_text(message: bytes):
    if _text_alone(message):
        try:
            chunk = pb.InvokeChunk.FromString(message)
        except Exception:  # noqa: BLE001 - text that is not UTF-8: nothing is lost by not reading it
            return
        assert chunk.WhichOneof("delta") == "text"
        assert not chunk.HasField("finish")
