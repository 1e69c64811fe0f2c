"""The client's role without a socket: room for streams, what comes back unprocessed, and any bytes at all."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_http2 import frames
from outrider_http2.client import ClientConnection
from outrider_http2.head import Head
from outrider_http2.limits import Limits
from outrider_http2.stream import Stream
from tests.conformance.http2 import wire
from tests.unit.outrider_http2.sans_io import Bench, Notes

any_frame = st.builds(
    wire.raw,
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 2**31 + 1]),
    st.binary(max_size=40),
)
limits = st.lists(st.integers(0, 5), max_size=30)


def ready(bench: Bench, **values: int) -> ClientConnection:
    conn = bench.client()
    conn.receive(wire.settings([(getattr(frames, name), value) for name, value in values.items()]))
    bench.take(conn)
    return conn


@given(st.lists(any_frame, max_size=30), st.lists(st.integers(1, 100), min_size=1, max_size=4))
@settings(max_examples=400)
def test_random_frames(parts: list[bytes], sizes: list[int]) -> None:
    bench = Bench()
    conn = ready(bench)
    streams = [bench.call(conn, end=bool(n)) for n in range(2)]
    streams[0].send_data(bytes(100_000))
    bench.feed(conn, wire.Wire().response(1) + b"".join(parts), sizes)
    assert len(conn.streams) <= 2
    assert len(conn.rest) <= 2 * (frames.DEFAULT_FRAME + 9)
    assert bench.ledger.held_bytes == sum(stream.queued for stream in conn.streams.values())
    conn.lost()
    assert not conn.streams
    assert bench.ledger.held_bytes == 0
    for stream in streams:
        notes = bench.notes[stream.id]
        assert notes.ends or notes.resets or stream.handler is None


@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    bench = Bench()
    conn = bench.client()
    bench.feed(conn, data, [7])
    assert not conn.has_room or conn.peer_settings


@given(
    st.lists(
        st.one_of(st.tuples(st.just("limit"), st.integers(0, 4)), st.tuples(st.just("end"), st.integers(0, 9))),
        max_size=40,
    )
)
def test_whoever_waits_for_room_is_told(steps: list[tuple[str, int]]) -> None:
    """Streams are opened as long as there is room; without room, the next room that appears is announced."""
    bench = Bench()
    conn = bench.client()
    opened: list[int] = []

    def fill(_: object = None) -> None:
        while conn.has_room and len(opened) < 100:
            opened.append(bench.call(conn, end=True).id)

    conn.on_room = fill
    conn.on_ready = fill
    conn.receive(wire.settings({3: 2}))
    for what, number in steps:
        if what == "limit":
            conn.receive(wire.settings({3: number}))
        elif conn.streams:
            stream_id = list(conn.streams)[number % len(conn.streams)]
            conn.receive(wire.rst(stream_id))
        if conn.failed is None:
            assert not conn.has_room or len(opened) == 100, "there is room, and nobody was told"


def test_ids_run_out() -> None:
    bench = Bench()
    conn = ready(bench)
    conn.next_id = frames.MAX_STREAM_ID - 2
    assert bench.call(conn).id == frames.MAX_STREAM_ID - 2
    assert not conn.has_room


def test_goaway_while_handlers_end_streams() -> None:
    """The handler of one refused stream resets another refused one: each hears of one end at most."""
    bench = Bench()
    conn = ready(bench)

    class Ending(Notes):
        """Resets another stream as its own ends."""

        def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
            super().on_reset(stream, code, processed)
            second.reset(frames.CANCEL)

    first = bench.call(conn, notes=Ending())
    second = bench.call(conn)
    conn.receive(wire.goaway(0))
    assert len(bench.notes[first.id].resets) == 1
    assert not bench.notes[second.id].resets
    assert not conn.streams


def test_lost_before_a_reply() -> None:
    bench = Bench()
    conn = ready(bench)
    stream = bench.call(conn)
    closed: list[object] = []
    conn.on_closed = closed.append
    conn.lost()
    conn.lost()
    assert closed == [conn]
    assert bench.notes[stream.id].resets == [(frames.CONNECT_ERROR, True)]
    stream.send_data(b"late")
    assert bench.take(conn) == b""


def test_requests_larger_than_a_frame_of_headers() -> None:
    """CONTINUATION on the way out: the peer gets one block."""
    bench = Bench()
    conn = ready(bench)
    stream = conn.open_stream(Notes())
    fields = tuple((b"x-%d" % n, b"v" * 1_000) for n in range(40))
    stream.send_head(Head(fields, b"POST", b"http", b"localhost", b"/"), b"", True)
    other = Bench()
    server = other.greeted()
    server.receive(bench.take(conn))
    assert other.notes[1].head == fields
    assert other.notes[1].ends == 1


def replied(w: wire.Wire, stream_id: int, body: bytes = b"late") -> bytes:
    return w.response(stream_id) + wire.data(stream_id, body) + w.tail(stream_id)


def test_cancelling_many_calls_costs_the_others_nothing() -> None:
    """Replies that were on their way when their calls were cancelled are no fault of the peer's, at any rate."""
    bench = Bench(Limits(control_burst=20, control_per_s=0.0, reset_burst=5, reset_per_s=0.0))
    conn = ready(bench)
    w = wire.Wire()
    for n in range(2_000):
        cancelled = bench.call(conn, end=True)
        if n % 10:
            cancelled.reset(frames.CANCEL)
        conn.receive(replied(w, cancelled.id))
        assert conn.failed is None
        assert bench.notes[cancelled.id].ends == (0 if n % 10 else 1)
    bench.take(conn)


def test_a_peer_may_refuse_all_it_is_asked() -> None:
    """How many streams there are to reset is ours to say."""
    bench = Bench(Limits(reset_burst=5, reset_per_s=0.0))
    conn = ready(bench)
    for _ in range(2_000):
        stream = bench.call(conn, end=True)
        conn.receive(wire.rst(stream.id, frames.REFUSED_STREAM))
        assert bench.notes[stream.id].resets == [(frames.REFUSED_STREAM, False)]
    assert conn.failed is None


def test_late_data_is_taken_up_to_the_window() -> None:
    """What the window held may be on its way when a stream is reset, in pieces of any size; more than that may not."""
    limits = Limits(control_burst=3, control_per_s=0.0, stream_window_bytes=70_000, connection_window_bytes=1 << 20)
    bench = Bench(limits)
    conn = ready(bench)
    stream = bench.call(conn, end=True)
    conn.receive(wire.Wire().response(stream.id))
    stream.reset(frames.CANCEL)
    bench.feed(conn, wire.data(stream.id, b"x" * 100) * 700)
    assert conn.failed is None
    bench.feed(conn, wire.data(stream.id, b"x") * 40)
    assert conn.failed is not None
    assert conn.failed.code == frames.ENHANCE_YOUR_CALM
