"""Our connections against the `h2` library, in either role: any valid session, any interleaving, any re-chunking.

The other side being `h2`, whatever we send against the rules raises there.
"""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_http2 import frames
from outrider_http2.limits import Limits
from tests.unit.outrider_http2.sans_io import OK, TAIL, Bench, Notes

LIMITS = Limits(max_streams=20, turn_units=7, turn_out_bytes=9_000, connection_window_bytes=200_000)
STREAMS = 6
GRPC = [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "localhost"), ("te", "trailers")]
SETTINGS = h2.settings.SettingCodes

sizes = st.lists(st.integers(1, 3_000), min_size=1, max_size=5)
payloads = st.integers(0, 70_000)
which = st.integers(0, STREAMS - 1)
values = st.sampled_from(
    [
        (SETTINGS.INITIAL_WINDOW_SIZE, 0),
        (SETTINGS.INITIAL_WINDOW_SIZE, 10),
        (SETTINGS.INITIAL_WINDOW_SIZE, 65_535),
        (SETTINGS.INITIAL_WINDOW_SIZE, 200_000),
        (SETTINGS.HEADER_TABLE_SIZE, 0),
        (SETTINGS.HEADER_TABLE_SIZE, 100),
        (SETTINGS.HEADER_TABLE_SIZE, 4_096),
        (SETTINGS.MAX_FRAME_SIZE, 30_000),
    ]
)
theirs = st.one_of(
    st.tuples(st.just("open"), st.booleans(), st.integers(0, 3)),
    st.tuples(st.just("data"), which, payloads, st.booleans()),
    st.tuples(st.just("padded"), which, st.integers(0, 255)),
    st.tuples(st.just("tail"), which),
    st.tuples(st.just("reset"), which),
    st.tuples(st.just("grant"), which, st.integers(1, 100_000)),
    st.tuples(st.just("settings"), values),
    st.tuples(st.just("ping")),
)
ours = st.one_of(
    st.tuples(st.just("our_head"), which, st.integers(0, 3)),
    st.tuples(st.just("our_data"), which, payloads),
    st.tuples(st.just("our_end"), which),
    st.tuples(st.just("our_tail"), which),
    st.tuples(st.just("our_reset"), which),
    st.tuples(st.just("credit"), which),
    st.tuples(st.just("pause")),
    st.tuples(st.just("resume")),
)
exchanges = st.tuples(st.just("exchange"), sizes, sizes)
openings = st.lists(
    st.tuples(st.just("open"), st.sampled_from([False, False, False, True]), st.integers(0, 3)), min_size=1
)
sessions = st.tuples(
    openings.map(lambda ops: ops[:STREAMS]),
    exchanges,
    st.lists(st.one_of(theirs, ours, exchanges), min_size=12, max_size=60),
).map(lambda parts: [*parts[0], parts[1], *parts[2]])


class Session:
    """One of ours and one of theirs. `sent` is what they sent on a stream, `got` what they were told."""

    def __init__(self, client_side: bool):
        self.bench = Bench(LIMITS)
        self.client_side = client_side  # whether ours is the client
        self.conn: Any = self.bench.client() if client_side else self.bench.server()
        config = h2.config.H2Configuration(client_side=not client_side, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.ids: list[int] = []
        self.opened: set[int] = set()  # streams whose head they have sent
        self.head_sent: set[int] = set()  # by us
        self.ended: set[int] = set()  # by us
        self.sent: dict[int, dict[str, Any]] = {}
        self.ours: dict[int, dict[str, Any]] = {}
        self.got: dict[int, dict[str, Any]] = {}
        self.reset: set[int] = set()  # by anybody
        self.exchange([4_096], [4_096])

    # -- the wire --------------------------------------------------------------------------------------------------

    def exchange(self, to_us: list[int], to_them: list[int]) -> None:
        """Carry bytes both ways until neither side has more to say."""
        while True:
            theirs = self.h2.data_to_send()
            self.bench.feed(self.conn, theirs, to_us)
            assert self.conn.failed is None, self.conn.failed
            mine = self.bench.take(self.conn)
            n = 0
            at = 0
            while at < len(mine):
                size = to_them[n % len(to_them)]
                for event in self.h2.receive_data(mine[at : at + size]):
                    self.on_event(event)
                at += size
                n += 1
            if not theirs and not mine:
                return

    def on_event(self, event: Any) -> None:
        stream_id = getattr(event, "stream_id", None)
        got = self.got.setdefault(stream_id, {"body": b"", "end": False}) if stream_id else {}
        if isinstance(event, h2.events.DataReceived):
            got["body"] += event.data
            if event.flow_controlled_length:
                self.h2.increment_flow_control_window(event.flow_controlled_length)
        elif isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
            got["head"] = tuple((bytes(name), bytes(value)) for name, value in event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            got["tail"] = tuple((bytes(name), bytes(value)) for name, value in event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            got["end"] = True
        elif isinstance(event, h2.events.StreamReset):
            self.reset.add(event.stream_id)

    # -- they ------------------------------------------------------------------------------------------------------

    def pick(self, index: int) -> int | None:
        return self.ids[index % len(self.ids)] if self.ids else None

    def open(self, end: bool, extra: int) -> None:
        """A stream: opened by whoever is the client."""
        if len(self.ids) >= STREAMS:
            return
        fields = [(f"x-{n}", f"v{n}") for n in range(extra)]
        if self.client_side:
            if not self.conn.has_room:
                return
            stream = self.bench.call(self.conn, end)
            stream_id = stream.id
            self.head_sent.add(stream_id)
            if end:
                self.ended.add(stream_id)
        else:
            stream_id = self.h2.get_next_available_stream_id()
            self.h2.send_headers(stream_id, [*GRPC, *fields], end_stream=end)
            self.opened.add(stream_id)
            self.sent[stream_id] = {"head": fields, "body": b"", "tail": None, "end": end}
        self.ids.append(stream_id)
        self.sent.setdefault(stream_id, {"head": [], "body": b"", "tail": None, "end": False})
        self.ours[stream_id] = {"body": b"", "tail": False}

    def may_send(self, stream_id: int | None) -> bool:
        if stream_id is None or stream_id in self.reset or self.sent[stream_id]["end"]:
            return False
        if stream_id not in self.opened:  # a server's head comes before its data
            if stream_id not in self.got:
                return False
            self.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
            self.opened.add(stream_id)
        return True

    def data(self, index: int, size: int, end: bool) -> None:
        stream_id = self.pick(index)
        if stream_id is None or not self.may_send(stream_id):
            return
        size = max(0, min(size, self.h2.local_flow_control_window(stream_id)))
        body = bytes((stream_id + n) & 0xFF for n in range(size))
        for at in range(0, max(size, 1), 16_384):
            part = body[at : at + 16_384]
            last = at + 16_384 >= size
            self.h2.send_data(stream_id, part, end_stream=end and last)
        self.sent[stream_id]["body"] += body
        self.sent[stream_id]["end"] = end

    def padded(self, index: int, pad: int) -> None:
        stream_id = self.pick(index)
        if stream_id is not None and self.may_send(stream_id) and self.h2.local_flow_control_window(stream_id) > 300:
            self.h2.send_data(stream_id, b"padded", pad_length=pad)
            self.sent[stream_id]["body"] += b"padded"

    def tail(self, index: int) -> None:
        stream_id = self.pick(index)
        if stream_id is not None and self.may_send(stream_id):
            self.h2.send_headers(stream_id, [("x-tail", "1")], end_stream=True)
            self.sent[stream_id] |= {"tail": ((b"x-tail", b"1"),), "end": True}

    def reset_by_them(self, index: int) -> None:
        stream_id = self.pick(index)
        if stream_id is not None and stream_id not in self.reset and stream_id in self.opened | set(self.got):
            try:
                self.h2.reset_stream(stream_id, frames.CANCEL)
            except (h2.exceptions.ProtocolError, KeyError):
                return
            self.reset.add(stream_id)

    def grant(self, index: int, size: int) -> None:
        stream_id = self.pick(index)
        try:
            if stream_id is not None and stream_id in self.opened | set(self.got):
                self.h2.increment_flow_control_window(size, stream_id)
            self.h2.increment_flow_control_window(size)
        except (h2.exceptions.ProtocolError, ValueError, KeyError):
            pass  # the stream is closed, or the window is as large as it gets

    # -- we --------------------------------------------------------------------------------------------------------

    def stream(self, index: int) -> tuple[int, Any] | None:
        stream_id = self.pick(index)
        notes = self.bench.notes.get(stream_id) if stream_id is not None else None
        if stream_id is None or notes is None or stream_id in self.ended or notes.resets:
            return None
        return stream_id, notes.stream

    def our_head(self, index: int, extra: int) -> None:
        found = self.stream(index)
        if found is not None and found[0] not in self.head_sent:
            found[1].send_head(OK, b"".join(b"\x00\x03x-%d\x01v" % n for n in range(extra)))
            self.head_sent.add(found[0])

    def our_data(self, index: int, size: int, end: bool = False) -> None:
        found = self.stream(index)
        if found is None or found[0] in self.reset:
            return
        self.our_head(index, 0)
        body = bytes((found[0] * 3 + n) & 0xFF for n in range(size))
        self.ours[found[0]]["body"] += body
        found[1].send_data(body, end)
        if end:
            self.ended.add(found[0])

    def our_end(self, index: int) -> None:
        found = self.stream(index)
        if found is not None and found[1].send_window >= 0:  # RFC 9113, 6.9.1 allows it below 0; `h2` does not
            self.our_data(index, 0, True)

    def our_tail(self, index: int) -> None:
        found = self.stream(index)
        if found is not None and found[0] not in self.reset:
            self.our_head(index, 0)
            found[1].send_tail(TAIL)
            self.ours[found[0]]["tail"] = True
            self.ended.add(found[0])

    def our_reset(self, index: int) -> None:
        found = self.stream(index)
        if found is not None:
            found[1].reset(frames.CANCEL)
            self.ended.add(found[0])
            self.reset.add(found[0])

    def credit(self, index: int) -> None:
        stream_id = self.pick(index)
        notes = self.bench.notes.get(stream_id) if stream_id is not None else None
        if notes is not None and notes.stream is not None:
            owed, notes.owed = notes.owed, 0
            notes.stream.credit(owed)

    def step(self, op: tuple) -> None:
        name, *arguments = op
        if name == "settings":
            self.h2.update_settings(dict(arguments))
        elif name == "ping":
            self.h2.ping(b"propertY")
        elif name == "reset":
            self.reset_by_them(*arguments)
        elif name in ("pause", "resume"):
            getattr(self.conn, name)()
        else:
            getattr(self, name)(*arguments)
        assert self.conn.send_window >= 0
        assert self.bench.ledger.held_bytes == sum(stream.queued for stream in self.conn.streams.values())

    # -- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Open all windows, so that what waits can leave."""
        self.conn.resume()
        self.exchange([1_000], [1_000])
        self.h2.update_settings({SETTINGS.INITIAL_WINDOW_SIZE: 2**24})
        for _ in range(3):
            self.exchange([16_384], [16_384])
            self.h2.increment_flow_control_window(1_000_000)
        self.exchange([16_384], [16_384])

    def compare(self) -> None:
        """What was sent on either side is what came out on the other."""
        for stream_id in self.ids:
            notes: Notes = self.bench.notes[stream_id]
            sent, mine, got = self.sent[stream_id], self.ours[stream_id], self.got.get(stream_id, {"body": b""})
            if stream_id in self.reset or notes.resets:
                assert sent["body"].startswith(notes.body)
                assert mine["body"].startswith(got["body"])
                continue
            assert notes.body == sent["body"]
            assert notes.tail == sent["tail"]
            assert notes.ends == sent["end"]
            assert got["body"] == mine["body"]
            assert got.get("end", False) == (stream_id in self.ended)
            assert (got.get("tail") == TAIL.fields) == mine["tail"]
            if not self.client_side:
                names = tuple((name.encode(), value.encode()) for name, value in sent["head"])
                assert notes.head == ((b"te", b"trailers"), *names)
        assert self.bench.ledger.held_bytes == 0
        assert not self.bench.ledger.stalled
        assert not self.conn.blocked
        assert all(stream.queue is None for stream in self.conn.streams.values())


def play(session: Session, ops: list[tuple]) -> None:
    for op in ops:
        session.step(op)
    session.finish()
    session.compare()
    session.conn.lost()
    assert not session.conn.streams


@given(sessions)
@settings(max_examples=150)
def test_our_server_and_their_client(ops: list[tuple]) -> None:
    play(Session(client_side=False), ops)


@given(sessions)
@settings(max_examples=150)
def test_our_client_and_their_server(ops: list[tuple]) -> None:
    play(Session(client_side=True), ops)
