"""Streams and the ledger: what waits, in which order it leaves, and who is cut when too much does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_http2 import frames
from tests.conformance.http2 import wire
from tests.unit.outrider_http2.sans_io import OK, TAIL, Bench


def opened(bench: Bench, count: int = 1, **settings: int) -> list:
    """A server and so many of its streams, each with its head sent."""
    conn = bench.greeted(**settings)
    w = wire.Wire()
    conn.receive(b"".join(w.open(2 * n + 1) for n in range(count)))
    streams = [bench.notes[2 * n + 1].stream for n in range(count)]
    for stream in streams:
        assert stream is not None
        stream.send_head(OK)
    bench.take(conn)
    return [conn, *streams]


def bodies(data: bytes) -> list[tuple[int, bytes, bool]]:
    """(stream, bytes, end) of each DATA frame."""
    found, at = [], 0
    while at < len(data):
        word, flags, stream_id = frames.unpack_head(data, at)
        end = at + 9 + (word >> 8)
        if word & 0xFF == frames.DATA:
            found.append((stream_id, data[at + 9 : end], bool(flags & 1)))
        at = end
    return found


@given(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=6),
    st.lists(st.integers(1, 30_000), max_size=10),
    st.booleans(),
)
def test_bytes_leave_in_order_and_whole(sizes: list[int], grants: list[int], trailers: bool) -> None:
    """Whatever the windows do: the same bytes, no frame too large, the end behind them, the ledger level."""
    bench = Bench()
    conn, stream = opened(bench, INITIAL_WINDOW_SIZE=100)
    whole = b""
    for n, size in enumerate(sizes):
        part = bytes([n]) * size
        whole += part
        stream.send_data(part, end=not trailers and n == len(sizes) - 1)
    if trailers:
        stream.send_tail(TAIL)
    out = bench.take(conn)
    for grant in [*grants, len(whole) + 1]:
        assert bench.ledger.held_bytes == stream.queued
        conn.receive(wire.window(0, grant) + wire.window(1, grant))
        out += bench.take(conn)
    sent = bodies(out)
    assert b"".join(part for _, part, _ in sent) == whole
    assert all(len(part) <= frames.DEFAULT_FRAME for _, part, _ in sent)
    assert [end for _, _, end in sent if end] == [True] * (not trailers)
    assert stream.local_closed
    assert stream.queue is None
    assert bench.ledger.held_bytes == 0


def test_an_end_needs_no_window() -> None:
    bench = Bench()
    conn, stream = opened(bench, INITIAL_WINDOW_SIZE=0)
    conn.pause()
    stream.send_data(b"", True)
    assert bodies(bench.take(conn)) == [(1, b"", True)]


def test_nothing_leaves_behind_the_end() -> None:
    bench = Bench()
    conn, ended, reset, cancelled = opened(bench, 3)
    ended.send_tail(TAIL)
    reset.reset(frames.CANCEL)
    conn.receive(wire.rst(5))
    bench.take(conn)
    for stream in (ended, reset, cancelled):
        stream.send_head(OK)
        stream.send_data(b"late")
        stream.send_data(b"", True)
        stream.send_tail(TAIL)
        stream.credit(1_000_000)
    reset.reset(frames.CANCEL)
    sent = bench.take(conn)
    assert bodies(sent) == []
    assert b"late" not in sent
    assert len(sent) <= 13  # the credit of the stream whose other side is open
    assert bench.ledger.held_bytes == 0


def test_streams_take_turns() -> None:
    """A frame each, then the next: a large reply does not make a small one wait for all of it."""
    bench = Bench()
    conn, large, small = opened(bench, 2, INITIAL_WINDOW_SIZE=1_000_000)
    large.send_data(bytes(65_535))
    large.send_data(bytes(100_000))
    small.send_data(bytes(100))
    bench.take(conn)
    conn.receive(wire.window(0, 60_000))
    order = [stream_id for stream_id, _, _ in bodies(bench.take(conn))]
    assert order[:3] == [1, 3, 1]


def test_a_full_socket_holds_data_back_but_not_for_good() -> None:
    bench = Bench()
    conn, stream = opened(bench)
    conn.pause()
    stream.send_data(b"waits", True)
    assert bodies(bench.take(conn)) == []
    assert bench.ledger.held_bytes == 5
    conn.resume()
    assert bodies(bench.take(conn)) == [(1, b"waits", True)]


def test_the_ledger_cuts_the_longest_stalled() -> None:
    bench = Bench(cap_bytes=10_000)
    conn, first, second, third = opened(bench, 3, INITIAL_WINDOW_SIZE=0)
    first.send_data(bytes(4_000))
    second.send_data(bytes(4_000))
    conn.receive(wire.window(1, 1))  # the first has moved: the second is now the one that stalled longest
    third.send_data(bytes(4_000))
    assert bench.notes[3].resets == [(frames.ENHANCE_YOUR_CALM, True)]
    assert not bench.notes[1].resets
    assert bench.ledger.cut == 1
    assert bench.ledger.held_bytes == 7_999


def test_one_reply_larger_than_the_cap_cuts_itself() -> None:
    bench = Bench(cap_bytes=20_000)
    conn, stream = opened(bench, INITIAL_WINDOW_SIZE=0)
    stream.send_data(bytes(100_000), True)
    assert bench.notes[1].resets == [(frames.ENHANCE_YOUR_CALM, True)]
    assert bench.ledger.held_bytes == 0
    assert not bench.ledger.stalled
    assert conn.failed is None


def test_credit_is_announced_in_large_steps() -> None:
    bench = Bench()
    conn, stream = opened(bench)
    step = bench.limits.stream_window_bytes // 2
    stream.recv_window -= step
    stream.credit(step - 1)
    assert bench.take(conn) == b""
    stream.credit(1)
    assert bench.take(conn) == frames.window_update(1, step)
