"""Messages out of bytes, however they are cut; bounds; and the end of a call, whoever brings it about."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_http2 import frames
from outrider_http2.head import Head
from outrider_sidecar.core import errors
from outrider_sidecar.edge.grpc_stream import Ended, MessageStream
from tests.wire import message

HEAD = Head(((b"content-type", b"application/grpc"),), b"POST", b"http", b"a", b"/a/b")


class Wire:
    """A connection and its one stream, which remember what is done to them."""

    def __init__(self) -> None:
        self.sent = b""
        self.ended = False
        self.resets: list[int] = []
        self.credited = 0
        self.queue: Any = None
        self.local_closed = False
        self.conn: Any = self
        self.failed: Any = None

    def open_stream(self, handler: Any) -> Wire:
        return self

    def send_head(self, head: Head) -> None:
        pass

    def send_data(self, data: bytes, end: bool = False) -> None:
        self.sent += data
        self.ended = self.ended or end

    def credit(self, size: int) -> None:
        self.credited += size

    def reset(self, code: int) -> None:
        self.resets.append(code)


def opened(max_message_bytes: int = 1_000) -> tuple[MessageStream, Any]:
    wire: Any = Wire()
    return MessageStream(wire, HEAD, max_message_bytes), wire


async def received(stream: MessageStream) -> list[bytes]:
    """Everything that has come, up to the end of the call."""
    found = []
    try:
        while True:
            found.append(await stream.receive())
    except Ended:
        return found


@given(st.lists(st.binary(max_size=30), max_size=6), st.data())
def test_any_cut_gives_the_same_messages(messages: list[bytes], data: st.DataObject) -> None:
    async def check() -> None:
        stream, wire = opened()
        left = b"".join(message(one) for one in messages)
        whole = len(left)
        while left:
            size = data.draw(st.integers(1, len(left)))
            stream.on_data(wire, left[:size], False)
            left = left[size:]
        assert wire.credited == whole
        stream.on_tail(wire, Head(((b"grpc-status", b"0"),)), _rest())
        assert await received(stream) == messages

    asyncio.run(check())


def _rest(**values: bytes) -> Any:
    class Rest:
        pass

    rest: Any = Rest()
    rest.values = {name.replace("_", "-").encode(): value for name, value in values.items()}
    return rest


async def test_what_came_before_the_end_is_given_first_and_then_why_it_ended() -> None:
    stream, wire = opened()
    stream.on_data(wire, message(b"one"), False)
    stream.on_tail(wire, Head(((b"grpc-status", b"16"),)), _rest(grpc_message=b"who%20are%20you"))
    assert await stream.receive() == b"one"
    for _ in range(2):
        with pytest.raises(Ended, match="UNAUTHENTICATED: who are you") as caught:
            await stream.receive()
    assert caught.value.status == errors.UNAUTHENTICATED
    assert wire.resets == [frames.NO_ERROR]
    stream.send(b"into the void")
    assert wire.sent == b""


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (b"\1" + message(b"x")[1:], errors.INTERNAL, "compressed"),
        (b"\0" + (1_001).to_bytes(4, "big"), errors.RESOURCE_EXHAUSTED, "1001 bytes; at most 1000"),
        (message(bytes(1_000)) * 3, errors.RESOURCE_EXHAUSTED, "faster than they are read"),
    ],
)
async def test_what_breaks_a_bound_ends_the_call(data: bytes, status: int, text: str) -> None:
    stream, wire = opened()
    stream.on_data(wire, data, False)
    assert stream.ended is not None
    assert stream.ended.status == status
    assert text in stream.ended.text
    assert wire.resets == [frames.CANCEL]


async def test_every_other_end() -> None:
    stream, wire = opened()
    stream.on_reset(wire, frames.REFUSED_STREAM, False)
    assert str(stream.ended) == "UNAVAILABLE: REFUSED_STREAM"
    stream, wire = opened()
    stream.on_head(wire, Head((), status=503), _rest(), False)
    assert str(stream.ended) == "UNAVAILABLE: HTTP 503"
    stream, wire = opened()
    stream.on_head(wire, Head(((b"grpc-status", b"7"),), status=200), _rest(grpc_message=b"no"), True)
    assert str(stream.ended) == "PERMISSION_DENIED: no"
    stream, wire = opened()
    stream.on_data(wire, b"", True)
    assert str(stream.ended) == "INTERNAL: the peer ended the call without trailers"
    stream, wire = opened()
    stream.close()
    stream.close()
    assert wire.resets == [frames.CANCEL]


async def test_sending_frames_and_says_when_the_peer_does_not_take_it() -> None:
    stream, wire = opened()
    stream.send(b"one")
    assert wire.sent == message(b"one")
    assert not stream.stalled
    wire.queue = [b"waits"]
    assert stream.stalled
