"""`streaming: false`: fewer chunks that say the same, whatever comes and however it is cut."""

from __future__ import annotations

import gzip
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Agent, EndpointPolicy, Optimization, Policy
from outrider.v1 import agent_pb2 as pb
from outrider.v1 import agent_pb2_grpc
from outrider_sidecar.payloads import joiner, one_chunk
from outrider_sidecar.payloads.joiner import MAX_HELD_BYTES, Joiner
from tests.in_process import in_process

FINISH = pb.Finish(
    reason=pb.FINISH_REASON_STOP, model="m-1", usage=pb.Usage(input_tokens=10, output_tokens=0), attributes={"a": "b"}
)
LAST = pb.InvokeChunk(finish=FINISH)
NEWER = b"\xfa\x06\x03new"  # field 111: of a contract yet to come


def frame(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def body_of(*chunks: pb.InvokeChunk) -> bytes:
    return b"".join([frame(chunk.SerializeToString()) for chunk in chunks])


def unframed(body: bytes) -> list[pb.InvokeChunk]:
    found = []
    while body:
        assert body[0] == 0
        size = int.from_bytes(body[1:5], "big")
        assert len(body) >= 5 + size
        found.append(pb.InvokeChunk.FromString(body[5 : 5 + size]))
        body = body[5 + size :]
    return found


def through(body: bytes, size: int = 0) -> bytes:
    """What leaves when the body comes in pieces of `size` bytes (0: at once)."""
    stage = one_chunk()
    pieces = [body[at : at + size] for at in range(0, len(body), size)] if size else [body]
    return b"".join([stage.feed(piece) for piece in pieces]) + stage.flush(0)


def joined(*chunks: pb.InvokeChunk) -> list[pb.InvokeChunk]:
    return unframed(through(body_of(*chunks)))


def text(piece: str, index: int = 0) -> pb.InvokeChunk:
    return pb.InvokeChunk(part_index=index, text=piece)


def tool(index: int, arguments: str = "", call_id: str = "", name: str = "") -> pb.InvokeChunk:
    delta = pb.ToolCallDelta(call_id=call_id, name=name, arguments_json=arguments)
    return pb.InvokeChunk(part_index=index, tool_call=delta)


def thought(piece: str, signature: bytes = b"") -> pb.InvokeChunk:
    return pb.InvokeChunk(reasoning=pb.Reasoning(text=piece, signature=signature))


def test_a_text_is_one_chunk_with_its_finish():
    assert joined(text("for"), text("ty "), text("two"), LAST) == [pb.InvokeChunk(text="forty two", finish=FINISH)]
    assert joined(text("whole")) == [text("whole")]  # incomplete, and it stays so
    assert joined(LAST) == [LAST]
    assert joined() == []


def test_every_part_is_one_chunk():
    image = pb.InvokeChunk(part_index=3, part=pb.Part(blob=pb.Blob(media_type="image/png", data=b"\x00")))
    chunks = [
        thought("let me "),
        thought("see", b"sig"),
        text("a", 1),
        text("b", 1),
        tool(2, call_id="c1", name="find"),
        tool(2, '{"a":'),
        tool(2, "1}"),
        image,
        pb.InvokeChunk(part_index=4, json="{"),
        pb.InvokeChunk(part_index=4, json="}"),
        pb.InvokeChunk(finish=FINISH),
    ]
    assert joined(*chunks) == [
        thought("let me see", b"sig"),
        text("ab", 1),
        tool(2, '{"a":1}', "c1", "find"),
        image,
        pb.InvokeChunk(part_index=4, json="{}", finish=FINISH),
    ]


def test_what_cannot_be_one_delta_is_not_joined():
    part = pb.InvokeChunk(part=pb.Part(link=pb.Link(uri="x:y")))
    apart = [
        [text("a"), pb.InvokeChunk(json="b")],
        [tool(0, "{}", "c1", "find"), tool(0, "{}", "c2", "find")],
        [tool(0, "{}", "c1", "find"), tool(0, "{}", "", "look")],
        [thought("a", b"one"), thought("b", b"two")],
        [part, part],
        [text("a", 1), text("b", 0)],
    ]
    for chunks in apart:
        assert joined(*chunks) == chunks


def test_chunks_without_content_vanish_in_others():
    empty = pb.InvokeChunk()
    assert joined(empty, text("a", 1), empty, text("b", 1), empty) == [text("ab", 1)]
    assert joined(empty, empty) == [empty]


def test_fields_of_a_newer_contract_are_not_lost():
    newer = text("b").SerializeToString() + NEWER
    delta = b"\x22" + bytes([len(NEWER)]) + NEWER  # in a tool call
    finish = b"\x3a" + bytes([len(FINISH.SerializeToString() + NEWER)]) + FINISH.SerializeToString() + NEWER
    body = body_of(text("a"), text("a")) + frame(newer) + frame(delta) + body_of(text("c")) + frame(finish)
    out = through(body)
    assert frame(newer) in out
    assert frame(delta) in out
    chunks = unframed(out)
    assert len(chunks) == 4
    assert chunks[0] == text("aa")
    assert NEWER in chunks[3].SerializeToString()
    assert chunks[3].text == "c"


@pytest.mark.parametrize(
    "bad",
    [
        frame(gzip.compress(text("b").SerializeToString(), mtime=0), 1),
        frame(text("b").SerializeToString(), 2),
        frame(b"\xff\xff"),
        frame(b"\x12\x01\xff"),  # not UTF-8
        b"\0\xff\xff\xff\xff",
        b"\0\0\0\0\x05abc",  # cut off
        b"\0\0",
    ],
)
@pytest.mark.parametrize("size", [0, 1, 7])
def test_from_the_first_message_that_cannot_be_joined_all_is_relayed(bad: bytes, size: int):
    rest = body_of(text("c"), text("d"), LAST)
    whole = bad in (b"\0\0", b"\0\0\0\0\x05abc")
    body = body_of(text("a"), text("a")) + bad + (b"" if whole else rest)
    assert through(body, size) == body_of(text("aa")) + bad + (b"" if whole else rest)


def test_relaying_does_not_wait():
    stage = Joiner()
    assert stage.feed(body_of(text("a"))) == b""
    assert stage.feed(frame(b"zip", 1)) == body_of(text("a")) + frame(b"zip", 1)
    assert stage.feed(b"any") == b"any"
    assert stage.flush(0) == b""


def test_what_follows_the_last_chunk_is_relayed():
    end = pb.InvokeChunk(text="a", finish=FINISH)
    assert through(body_of(text("b"), end, text("c"), text("d"))) == body_of(
        pb.InvokeChunk(text="ba", finish=FINISH), text("c"), text("d")
    )


def test_what_is_held_is_bounded():
    piece = text("x" * 65_536)
    stage = Joiner()
    out, fed, most = bytearray(), 0, 0
    while fed < MAX_HELD_BYTES + 20 * 65_536:
        body = body_of(piece)
        out += stage.feed(body)
        fed += len(body)
        most = max(most, fed - len(out))
    assert MAX_HELD_BYTES - 70_000 < most <= MAX_HELD_BYTES
    chunks = unframed(bytes(out) + stage.flush(0))
    assert 1 < len(chunks) <= 22
    assert "".join([chunk.text for chunk in chunks]) == "x" * (65_536 * (fed // len(body_of(piece))))
    huge = Joiner()
    start = b"\0" + (MAX_HELD_BYTES + 1).to_bytes(4, "big")
    assert huge.feed(start + b"12") == start + b"12"  # known from the prefix, so never held
    assert joiner.MAX_HELD_BYTES == 4 * 1024 * 1024


KINDS = st.sampled_from(["text", "json", "tool", "reasoning", "part", "none"])


@st.composite
def streams(draw: st.DrawFn) -> list[pb.InvokeChunk]:
    index, chunks = 0, []
    for _ in range(draw(st.integers(0, 12))):
        index += draw(st.integers(0, 1))
        kind, piece = draw(KINDS), draw(st.text(max_size=5))
        if kind == "text":
            chunks.append(text(piece, index))
        elif kind == "json":
            chunks.append(pb.InvokeChunk(part_index=index, json=piece))
        elif kind == "tool":
            chunks.append(tool(index, piece, draw(st.sampled_from(["", "c1", "c2"]))))
        elif kind == "reasoning":
            chunks.append(thought(piece, draw(st.sampled_from([b"", b"s"]))))
        elif kind == "part":
            chunks.append(pb.InvokeChunk(part_index=index, part=pb.Part(text=piece)))
        else:
            chunks.append(pb.InvokeChunk(part_index=index))
    if draw(st.booleans()):
        chunks.append(pb.InvokeChunk(part_index=index, finish=FINISH))
    return chunks


def told(chunks: list[pb.InvokeChunk]) -> list[Any]:
    """What chunks say, put together by a reader of its own: letters and marks in order, each with its part and kind."""
    found: list[Any] = []
    for chunk in chunks:
        kind, index = chunk.WhichOneof("delta"), chunk.part_index
        if kind in ("text", "json"):
            found += [(index, kind, letter) for letter in getattr(chunk, kind)]
        elif kind == "tool_call":
            found += [(index, "call", chunk.tool_call.call_id)] if chunk.tool_call.call_id else []
            found += [(index, kind, letter) for letter in chunk.tool_call.arguments_json]
        elif kind == "reasoning":
            found += [(index, kind, letter) for letter in chunk.reasoning.text]
        elif kind == "part":
            found.append((index, chunk.part.text))
        if chunk.HasField("finish"):
            found.append(chunk.finish)
    return found


def calls_told_once(said: list[Any]) -> list[Any]:
    """Naming a call again that is being told says nothing."""
    found: list[Any] = []
    current = None
    for one in said:
        if isinstance(one, tuple) and len(one) == 3 and one[1] == "call":
            if one == current:
                continue
            current = one
        elif not (isinstance(one, tuple) and len(one) == 3 and one[1] == "tool_call"):
            current = None
        found.append(one)
    return found


@given(streams(), st.integers(1, 40))
def test_it_says_the_same_however_it_is_cut(chunks: list[pb.InvokeChunk], size: int):
    body = body_of(*chunks)
    out = through(body)
    assert out == through(body, size)
    found = unframed(out)
    assert calls_told_once(told(found)) == calls_told_once(told(chunks))
    assert len(found) <= len(chunks)
    assert bool(found) == bool(chunks)
    signatures = [[c.reasoning.signature for c in said if c.reasoning.signature] for said in (found, chunks)]
    assert signatures[0] == signatures[1]


@given(st.binary(max_size=200), st.integers(1, 20))
def test_nothing_makes_it_fail_or_lose_the_end(body: bytes, size: int):
    assert through(body, size) == through(body)


async def test_a_caller_gets_one_chunk_where_streaming_is_off():
    class Servicer(agent_pb2_grpc.AgentServicer):
        async def Invoke(self, request: pb.InvokeRequest, context: Any) -> pb.InvokeReply:  # noqa: N802
            return pb.InvokeReply()

        async def InvokeStream(self, request: pb.InvokeRequest, context: Any) -> Any:  # noqa: N802
            for piece in ("for", "ty ", "two"):
                yield text(piece)
            yield LAST

    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    endpoints = (EndpointPolicy(f"127.0.0.1:{port}"),)
    counts = {}
    for streaming in (True, False):
        agent = Agent("a", endpoints, optimization=Optimization(streaming=streaming))
        async with (
            in_process(policy=Policy({"a": agent}, "a")) as mesh,
            grpc.aio.insecure_channel(mesh.target, [("grpc.use_local_subchannel_pool", 1)]) as channel,
        ):
            call = agent_pb2_grpc.AgentStub(channel).InvokeStream(pb.InvokeRequest(), timeout=20)
            chunks = [chunk async for chunk in call]
        assert "".join([chunk.text for chunk in chunks]) == "forty two"
        assert chunks[-1].finish == FINISH
        counts[streaming] = len(chunks)
    await server.stop(None)
    assert counts == {True: 4, False: 1}
