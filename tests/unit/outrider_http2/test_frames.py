"""Frames as the `hyperframe` library reads them."""

from __future__ import annotations

from hyperframe import frame as hf
from hypothesis import given
from hypothesis import strategies as st

from outrider_http2 import frames

stream_ids = st.integers(1, frames.MAX_STREAM_ID)
words = st.integers(0, 2**32 - 1)


def parsed(data: bytes) -> list[hf.Frame]:
    found, at = [], 0
    while at < len(data):
        one, length = hf.Frame.parse_frame_header(memoryview(data[at : at + 9]), strict=True)
        one.parse_body(memoryview(data[at + 9 : at + 9 + length]))
        found.append(one)
        at += 9 + length
    return found


@given(st.dictionaries(st.integers(1, 0xFFFF), words, max_size=8))
def test_settings(values: dict[int, int]) -> None:
    (one,) = parsed(frames.settings(values.items()))
    assert isinstance(one, hf.SettingsFrame)
    assert one.settings == values
    assert one.stream_id == 0
    assert not one.flags


@given(stream_ids, st.integers(1, frames.MAX_WINDOW), words)
def test_words(stream_id: int, increment: int, code: int) -> None:
    update, reset = parsed(frames.window_update(stream_id, increment) + frames.rst_stream(stream_id, code))
    assert isinstance(update, hf.WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (stream_id, increment)
    assert isinstance(reset, hf.RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (stream_id, code)


@given(st.binary(min_size=8, max_size=8), st.booleans(), stream_ids, words, st.binary(max_size=50))
def test_connection_frames(payload: bytes, ack: bool, last: int, code: int, debug: bytes) -> None:
    ping, away, acknowledged = parsed(
        frames.ping(payload, ack) + frames.goaway(last, code, debug) + frames.SETTINGS_ACK
    )
    assert isinstance(ping, hf.PingFrame)
    assert (ping.opaque_data, "ACK" in ping.flags) == (payload, ack)
    assert isinstance(away, hf.GoAwayFrame)
    assert (away.last_stream_id, away.error_code, away.additional_data) == (last, code, debug)
    assert isinstance(acknowledged, hf.SettingsFrame)
    assert "ACK" in acknowledged.flags


@given(stream_ids, st.binary(max_size=300), st.booleans(), st.integers(1, 100))
def test_header_frames(stream_id: int, block: bytes, end: bool, max_frame: int) -> None:
    first, *others = parsed(frames.header_frames(stream_id, block, end, max_frame))
    assert isinstance(first, hf.HeadersFrame)
    assert all(isinstance(one, hf.ContinuationFrame) for one in others)
    assert ("END_STREAM" in first.flags) == end
    marked = ["END_HEADERS" in one.flags for one in (first, *others)]
    assert marked == [False] * len(others) + [True]
    pieces = [one.data for one in (first, *others) if isinstance(one, hf.HeadersFrame | hf.ContinuationFrame)]
    assert b"".join(pieces) == block
    assert all(len(piece) <= max_frame for piece in pieces)


def test_error_names() -> None:
    assert frames.error_name(frames.ENHANCE_YOUR_CALM) == "ENHANCE_YOUR_CALM"
    assert frames.error_name(0x10) == "error 0x10"
    assert len(frames.ERROR_NAMES) == frames.HTTP_1_1_REQUIRED + 1
