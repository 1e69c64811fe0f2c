"""The server's role without a socket: work per turn, what is remembered, draining, timers, and any bytes at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_http2 import frames
from outrider_http2.limits import Limits
from tests.conformance.http2 import wire
from tests.unit.outrider_http2.sans_io import OK, TAIL, Bench, Notes

kinds = st.integers(0, 12)
any_frame = st.builds(
    wire.raw, kinds, st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1, 2**31 + 1]), st.binary(max_size=40)
)


def answered(bench: Bench) -> None:
    """Answer what has been asked in full."""
    for notes in bench.notes.values():
        stream = notes.stream
        if stream is not None and notes.ends and not stream.local_closed and stream.queue is None:
            stream.send_head(OK)
            stream.send_data(notes.body)
            stream.send_tail(TAIL)


def check_bounded(bench: Bench, conn: object) -> None:
    """All that a peer can make us keep is within the limits."""
    limits = bench.limits
    assert isinstance(conn, type(bench.server()))
    assert len(conn.streams) <= limits.max_streams
    assert len(conn.resets) <= 1_000
    assert len(conn.recent) <= 256
    assert len(conn.rest) <= 2 * (frames.DEFAULT_FRAME + 9)
    assert conn.assembling is None or conn.assembling[3] <= limits.header_block_bytes
    assert bench.ledger.held_bytes == sum(stream.queued for stream in conn.streams.values())
    if conn.failed is not None:
        assert not conn.streams
        assert not conn.rest
        assert bench.ledger.held_bytes == 0


@given(st.binary(max_size=400), st.booleans(), st.lists(st.integers(1, 50), min_size=1, max_size=4))
@settings(max_examples=300)
def test_random_bytes(data: bytes, greeted: bool, sizes: list[int]) -> None:
    bench = Bench()
    conn = bench.greeted() if greeted else bench.server()
    bench.feed(conn, data, sizes)
    answered(bench)
    check_bounded(bench, conn)


@given(st.lists(any_frame, max_size=30), st.lists(st.integers(1, 100), min_size=1, max_size=4))
@settings(max_examples=400)
def test_random_frames(parts: list[bytes], sizes: list[int]) -> None:
    """Any frames with anything in them, some behind a good request."""
    bench = Bench()
    conn = bench.greeted()
    w = wire.Wire()
    bench.feed(conn, w.open(1) + b"".join(parts), sizes)
    answered(bench)
    check_bounded(bench, conn)
    ended = [
        notes for notes in bench.notes.values() if notes.stream is not None and notes.stream.id not in conn.streams
    ]
    assert all(notes.resets or notes.stream.local_closed for notes in ended if notes.stream is not None)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_sessions(seed: int) -> None:
    """A good session with a few bytes changed, lost or added, many times over."""
    rng = random.Random(seed)
    w = wire.Wire()
    session = wire.PREFACE + wire.settings({4: 50_000}) + wire.settings(flags=1)
    for n in range(12):
        session += w.open(2 * n + 1, ("x-n", str(n // 3))) + wire.window(2 * n + 1, 100)
        session += wire.data(2 * n + 1, bytes(50 * n), pad=n) + w.tail(2 * n + 1)
    session += wire.ping() + wire.rst(1) + wire.priority(3) + wire.goaway()
    for _ in range(150):
        mutant = bytearray(session)
        for _ in range(rng.randint(1, 5)):
            at = rng.randrange(24, len(mutant))
            match rng.randrange(3):
                case 0:
                    mutant[at] = rng.randrange(256)
                case 1:
                    del mutant[at : at + rng.randint(1, 12)]
                case 2:
                    mutant[at:at] = rng.randbytes(rng.randint(1, 12))
        bench = Bench()
        conn = bench.server()
        bench.feed(conn, bytes(mutant), [rng.randint(1, 900)])
        answered(bench)
        check_bounded(bench, conn)
        conn.lost()
        assert not conn.streams
        assert bench.ledger.held_bytes == 0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_any_rechunking_gives_the_same(sizes: list[int]) -> None:
    """The answers depend on the bytes, not on how they came."""
    w = wire.Wire()
    session = wire.PREFACE + wire.settings() + w.open(1) + wire.data(1, b"hello", pad=7) + wire.ping() + w.tail(1)
    session += wire.rst(1) + w.open(3, end=True) + wire.window(0, 5) + wire.data(3, b"late")
    results = []
    for pieces in ([len(session)], sizes):
        bench = Bench()
        conn = bench.server()
        bench.feed(conn, session, pieces)
        answered(bench)
        results.append(
            (bench.take(conn), {n: (notes.body, notes.ends, notes.resets) for n, notes in bench.notes.items()})
        )
    assert results[0] == results[1]


def test_work_per_turn_is_bounded() -> None:
    """However much has come: so many units, then it is somebody else's turn."""
    bench = Bench(Limits(turn_units=10))
    conn = bench.greeted()
    assert bench.feed(conn, wire.ping() * 1_000) >= 100
    w = wire.Wire()
    assert bench.feed(conn, b"".join(w.open(2 * n + 1, end=True) for n in range(100))) >= 33
    before = bench.feed(conn, wire.settings({4: 70_000}))
    assert before == 1
    assert bench.feed(conn, wire.settings([(4, 5), (4, 70_000)]) * 10) >= 10


def test_a_settings_frame_costs_by_the_windows_it_moves() -> None:
    bench = Bench()
    conn = bench.greeted()
    w = wire.Wire()
    bench.feed(conn, b"".join(w.open(2 * n + 1) for n in range(1_000)))
    bench.feed(conn, wire.settings([(4, 1_000 + n % 2) for n in range(30)]) * 20)
    assert conn.failed is not None
    assert conn.failed.code == frames.ENHANCE_YOUR_CALM


def test_handlers_hear_of_the_end_once() -> None:
    """Also when the reset that a fault asks for is itself one answer too many."""
    bench = Bench(Limits(stalled_control_frames=3))
    conn = bench.greeted()
    w = wire.Wire()
    conn.receive(w.open(1) + w.open(3))
    conn.pause()
    conn.receive(wire.ping() * 3 + wire.window(1, 0))
    assert conn.failed is not None
    assert [len(notes.resets) for notes in bench.notes.values()] == [1, 1]


def test_calls_of_a_client_that_does_not_read_are_bounded() -> None:
    """Heads and trailers do not wait for windows: while the socket is full new calls are counted."""
    bench = Bench()
    conn = bench.greeted()
    conn.pause()
    w = wire.Wire()
    for n in range(5_000):
        conn.receive(w.open(2 * n + 1, end=True))
        if conn.failed is not None:
            break
        stream = bench.notes.pop(2 * n + 1).stream
        assert stream is not None
        stream.send_head(OK, b"", True)
    assert conn.failed is not None
    assert conn.failed.code == frames.ENHANCE_YOUR_CALM
    assert len(bench.take(conn)) < 5_000 * 100


def test_late_frames_on_a_stream_we_have_reset() -> None:
    """DATA, trailers and resets on their way are ignored; the header table moves on all the same."""
    bench = Bench()
    conn = bench.greeted()
    w = wire.Wire()
    conn.receive(w.open(1))
    stream = bench.notes[1].stream
    assert stream is not None
    stream.reset(frames.CANCEL)
    conn.receive(wire.data(1, b"x") + w.tail(1, ("x-late", "entered the table")))
    conn.receive(w.open(3, ("x-late", "entered the table")))
    assert conn.failed is None
    assert (b"x-late", b"entered the table") in (bench.notes[3].head or ())


def test_draining_serves_what_is_on_its_way() -> None:
    """First GOAWAY with the highest id and a PING; behind its answer the last id is final."""
    bench = Bench()
    conn = bench.greeted()
    quiet: list[object] = []
    conn.on_quiet = quiet.append
    w = wire.Wire()
    conn.receive(w.open(1, end=True))
    conn.shutdown()
    sent = bench.take(conn)
    assert frames.goaway(frames.MAX_STREAM_ID, frames.NO_ERROR) in sent
    conn.receive(w.open(3, end=True) + wire.ping(sent[-8:], ack=True))
    assert frames.goaway(3, frames.NO_ERROR) in bench.take(conn)
    conn.receive(w.open(5, end=True))
    assert bench.take(conn) == frames.rst_stream(5, frames.REFUSED_STREAM)
    assert not conn.goaway_sent or not quiet
    answered(bench)
    assert quiet == [conn]
    conn.shutdown()
    conn.finish_shutdown()
    assert frames.goaway(3, frames.NO_ERROR) not in bench.take(conn)


def test_keepalive() -> None:
    """A PING when nothing has come for the interval; silence after it ends the connection."""
    bench = Bench(Limits(ping_interval_s=20.0, ping_timeout_s=10.0))
    conn = bench.greeted()
    conn.receive(wire.Wire().open(1))
    conn.tick(19.0)
    assert bench.take(conn) == b""
    conn.tick(21.0)
    assert bench.take(conn) == frames.ping(b"outrider")
    conn.now = 22.0
    conn.receive(wire.ping(b"outrider", ack=True))
    conn.tick(35.0)
    conn.tick(43.0)
    assert bench.take(conn) == frames.ping(b"outrider")
    conn.tick(54.0)
    assert conn.failed is not None
    assert isinstance(bench.notes[1], Notes)
    assert bench.notes[1].resets


def test_a_header_block_has_one_deadline() -> None:
    bench = Bench(Limits(stall_timeout_s=60.0))
    conn = bench.greeted()
    conn.tick(1.0)
    conn.receive(wire.head(1, b"", last=False))
    for n in range(1, 5):
        conn.tick(1.0 + 14.0 * n)
        conn.receive(wire.continuation(1, b"", last=False))
    assert conn.failed is None
    conn.tick(62.0)
    assert conn.failed is not None
    assert conn.failed.code == frames.ENHANCE_YOUR_CALM


def test_frames_that_keep_coming_are_no_stall() -> None:
    bench = Bench(Limits(stall_timeout_s=60.0))
    conn = bench.greeted()
    frame = wire.ping()
    conn.tick(1.0)
    conn.receive(frame[:5])
    for n in range(1, 10):
        conn.tick(50.0 * n)
        conn.receive(frame[5:] + frame[:5])
    assert conn.failed is None
    conn.tick(511.0)
    assert conn.failed is not None


@pytest.mark.parametrize(("ended_well", "holds"), [(3, True), (1, True), (0, False)])
def test_who_cancels_half_of_many_calls_is_no_attacker(ended_well: int, holds: bool) -> None:
    """Resets are paid for by time, and one by each call that ended well."""
    bench = Bench(Limits(reset_burst=20, reset_per_s=0.0))
    conn = bench.greeted()
    w, stream_id = wire.Wire(), 1
    for _ in range(200):
        for _ in range(ended_well):
            bench.feed(conn, w.open(stream_id) + wire.data(stream_id, b"x", True))
            answered(bench)
            stream_id += 2
        conn.receive(w.open(stream_id) + wire.rst(stream_id))
        stream_id += 2
        bench.take(conn)
    assert (conn.failed is None) is holds
