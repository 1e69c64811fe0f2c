"""Any gRPC method passes byte for byte: metadata, early heads, trailers, cancellation, deadlines, large messages."""

from __future__ import annotations

import base64
import queue
import random
from collections.abc import Callable, Iterator

import grpc
import pytest

from tests.sidecars import Calls, Mesh, Peer, Sidecar, channel_to, eventually, new_key, read_all, standalone

MIB = 1024 * 1024
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0),)  # else grpcio itself takes 16 MB that nobody has read
OURS = ("x-outrider-call-id", "x-outrider-trace-id", "x-outrider-endpoint")


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, peer: Peer) -> Sidecar:
    return mesh.sidecar(standalone(peer))


@pytest.fixture
def calls(sidecar: Sidecar) -> Iterator[Calls]:
    with channel_to(sidecar.target) as channel:
        yield Calls(channel)
    sidecar.settled()


def test_request_metadata_keeps_values_order_and_repetition(calls: Calls, peer: Peer) -> None:
    key = new_key()
    sent = [
        ("x-list", "1"),
        ("x-other", "a b  c"),
        ("x-list", "2"),
        ("x-blob-bin", bytes(range(256))),
        ("x-empty", ""),
        ("x-blob-bin", b"\x00"),
        ("x-list", "1"),
        ("authorization", "Bearer s3cret"),
        ("x-ascii", "".join(chr(code) for code in range(0x21, 0x7F))),
    ]
    calls.unary(b"", key=key, metadata=sent).result()
    seen = [pair for pair in peer.record(key)["metadata"] if pair[0] in dict(sent)]
    assert seen == [[k, base64.b64encode(v).decode() if isinstance(v, bytes) else v] for k, v in sent]


def test_reply_metadata_keeps_values_order_and_repetition(calls: Calls) -> None:
    pairs = [["x-list", "1"], ["x-b-bin", base64.b64encode(b"\xff\x00").decode()], ["x-list", "2"], ["x-empty", ""]]
    call = calls.unary(b"", head=pairs, tail=pairs)
    wanted = [("x-list", "1"), ("x-b-bin", b"\xff\x00"), ("x-list", "2"), ("x-empty", "")]
    assert [tuple(pair) for pair in call.initial_metadata() if pair[0] not in OURS] == wanted
    assert [tuple(pair) for pair in call.trailing_metadata() if pair[0] not in OURS] == wanted


def test_nothing_hop_by_hop_and_nothing_unasked_reaches_the_agent(calls: Calls, peer: Peer) -> None:
    key = new_key()
    calls.unary(b"", key=key, timeout_s=30).result()
    names = {name for name, _ in peer.record(key)["metadata"]}
    assert names == {"x-key", "user-agent", "traceparent"}


def test_initial_metadata_comes_before_the_first_message(calls: Calls, peer: Peer) -> None:
    key = new_key()
    call = calls.start("Download", b"", key=key, head=[["x-early", "yes"]], hold=True, sizes=[3])
    assert dict(call.initial_metadata())["x-early"] == "yes"
    assert peer.record(key)["messages"] == 0
    peer.control("release", key=key)
    assert list(call) == [bytes(3)]


def test_every_chunk_is_relayed_as_it_comes(calls: Calls, peer: Peer) -> None:
    key = new_key()
    call = calls.start("Download", b"", key=key, sizes=[5, 6, 7], hold_after=2)
    assert [len(next(call)), len(next(call))] == [5, 6]
    peer.control("release", key=key)
    assert [len(message) for message in call] == [7]


def test_half_close_reaches_the_agent_after_the_messages(calls: Calls, peer: Peer) -> None:
    key = new_key()
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call = calls.start("Chat", iter(asked.get, None), key=key)
    asked.put(b"a")
    assert next(call) == b"a"
    assert peer.record(key)["outcome"] == "running"
    asked.put(None)
    assert list(call) == []
    peer.wait_outcome(key, "done")


def test_status_details_pass_through(calls: Calls) -> None:
    details = bytes(random.Random(7).randbytes(700))
    call = calls.unary(b"", status=9, tail=[["grpc-status-details-bin", base64.b64encode(details).decode()]])
    assert call.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert dict(call.trailing_metadata())["grpc-status-details-bin"] == details


def test_trailers_after_messages_carry_the_status(calls: Calls) -> None:
    messages, call = read_all(
        calls.start("Download", b"", sizes=[4, 4], status=13, message="50% of it", tail=[["x", "y"]])
    )
    assert messages == [bytes(4)] * 2
    assert (call.code(), call.details()) == (grpc.StatusCode.INTERNAL, "50% of it")
    assert dict(call.trailing_metadata())["x"] == "y"


@pytest.mark.parametrize("method", ["Unary", "Download", "Upload", "Chat"])
def test_the_callers_cancellation_reaches_the_agent(calls: Calls, peer: Peer, method: str) -> None:
    key = new_key()
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    asked.put(b"x")
    body = iter(asked.get, None) if method in ("Upload", "Chat") else b"x"
    call = calls.start(method, body, key=key, hold=True, timeout_s=60)
    peer.record(key)
    call.cancel()
    asked.put(None)
    peer.wait_outcome(key, "cancelled")


def test_a_caller_that_vanishes_is_a_cancellation(sidecar: Sidecar, peer: Peer) -> None:
    key = new_key()
    with channel_to(sidecar.target) as channel:
        call = Calls(channel).start("Unary", b"", key=key, hold=True)
        peer.record(key)
    assert call.code() is grpc.StatusCode.CANCELLED
    peer.wait_outcome(key, "cancelled")
    sidecar.settled()


def test_a_deadline_shrinks_on_its_way(calls: Calls, peer: Peer) -> None:
    """The second try has less time left than the first, by the pause the agent asked for between them at least."""
    for timeout_s in (5.0, 300.0, 40_000.0):
        key = new_key()
        calls.unary(b"", key=key, timeout_s=timeout_s, fail_first=1, status=14, tail=[["grpc-retry-pushback-ms", "50"]])
        first, second = [record["left_s"] for record in peer.records(key)]
        assert first < timeout_s * 1.01, "grpcio rounds long timeouts up"
        assert second < first - 0.04


def test_a_call_without_deadline_gets_none(sidecar: Sidecar, peer: Peer) -> None:
    key = new_key()
    with channel_to(sidecar.target) as channel:
        channel.unary_unary("/test.Agent/Unary")(b"", metadata=(("x-key", key),))
    assert peer.record(key)["left_s"] is None


def test_an_expired_deadline_says_so_and_cancels_the_agent(calls: Calls, peer: Peer) -> None:
    key = new_key()
    call = calls.unary(b"", key=key, hold=True, timeout_s=0.2)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    peer.wait_outcome(key, "cancelled")


@pytest.mark.parametrize("size", [1, 16_379, 16_380, 65_530, 65_536, 262_144, 5_000_003])
def test_messages_of_all_sizes_come_back_whole(calls: Calls, size: int) -> None:
    message = random.Random(size).randbytes(size)
    assert calls.unary(message).result() == message


def test_64_mb_both_ways_are_streamed_not_held(calls: Calls, sidecar: Sidecar) -> None:
    """A message of 64 MB up and one down, while the sidecar stays small."""
    calls.unary(b"warm").result()
    before = sidecar.rss_bytes()
    message = random.Random(64).randbytes(MIB) * 64
    message = message[: 64 * MIB - 100]
    call = calls.start("Upload", iter([message]), timeout_s=60)
    grown = 0
    while not call.done():
        grown = max(grown, sidecar.rss_bytes() - before)
    assert call.result() == str(len(message)).encode()
    down = calls.start("Download", b"", sizes=[len(message)], timeout_s=60)
    grown = max(grown, sidecar.rss_bytes() - before)
    assert len(next(down)) == len(message)
    assert list(down) == []
    grown = max(grown, sidecar.rss_bytes() - before)
    assert grown < 24 * MIB, f"the sidecar grew by {grown / MIB:.0f} MB"


def test_a_caller_that_does_not_read_stops_the_agent(sidecar: Sidecar, peer: Peer) -> None:
    """Back-pressure end to end: of 64 MB only a few leave the agent while nobody reads, and others are served."""
    key = new_key()
    with channel_to(sidecar.target, options=SMALL_WINDOW) as channel:
        calls = Calls(channel, timeout_s=60)
        call = calls.start("Download", b"", key=key, sizes=[MIB] * 64)
        next(call)
        seen = until_still(lambda: peer.record(key)["messages"], calls)
        assert seen < 5, f"{seen} MB left the agent"
        assert sidecar.metric("outrider_held_bytes") < 4 * MIB
        assert sum(len(message) for message in call) == 63 * MIB
    sidecar.settled()


def until_still(count: Callable[[], int], calls: Calls) -> int:
    """The count once many served calls have gone by without a change of it."""
    seen: list[int] = []

    def still() -> bool:
        assert calls.unary(b"others are served").result() == b"others are served"
        seen.append(count())
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    eventually(still, "the sender stops")
    return seen[-1]


def test_an_agent_that_does_not_read_stops_the_caller(calls: Calls, sidecar: Sidecar, peer: Peer) -> None:
    key = new_key()
    taken = []

    def messages() -> Iterator[bytes]:
        for number in range(64):
            taken.append(number)
            yield bytes(MIB)

    call = calls.start("Upload", messages(), key=key, hold=True, timeout_s=60)
    peer.record(key)
    assert until_still(lambda: len(taken), calls) < 6
    peer.control("release", key=key)
    assert call.result() == str(64 * MIB).encode()


def test_a_thousand_streams_at_a_time(sidecar: Sidecar, peer: Peer) -> None:
    key = new_key()
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel, timeout_s=60)
        running = [calls.start("Unary", b"%d" % number, key=key, hold=True) for number in range(900)]
        eventually(lambda: len(peer.records(key)) == 900, "all calls are at the agent at a time")
        peer.control("release", key=key)
        assert [call.result() for call in running] == [b"%d" % number for number in range(900)]
    sidecar.settled()
