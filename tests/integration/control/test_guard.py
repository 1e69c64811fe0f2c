"""grpcio clients, the guard, a grpc.aio server: every kind of call, its end from either side, and who the peer is."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.certificates import Authority
from tests.integration.control.guarded import GuardProcess
from tests.sidecars import Calls, Mesh, code_of, eventually, health_of, new_key, read_all, trailers

WINDOW = 256 * 1024


@pytest.fixture(scope="module")
def guard(mesh: Mesh) -> GuardProcess:
    return GuardProcess(mesh, "guard")


@pytest.fixture
def calls(guard: GuardProcess) -> Iterator[Calls]:
    with guard.channel() as channel:
        yield Calls(channel)
    eventually(guard.is_settled, "nothing is left of the calls")


def identity(guard: GuardProcess, key: str) -> dict[str, str]:
    """What the server behind reads of the peer."""
    fields = [(name, value) for name, value in guard.peer.record(key)["metadata"] if name.startswith("x-outrider")]
    assert len(dict(fields)) == len(fields)
    return dict(fields)


def test_unary_with_metadata_of_all_kinds(guard: GuardProcess, calls: Calls) -> None:
    key = new_key()
    sent = (("x-plain", "a b,c"), ("x-twice", "1"), ("x-twice", "2"), ("x-data-bin", b"\0\xff\x80"))
    call = calls.unary(b"x", key=key, metadata=sent, head=[["x-head", "h"]], tail=[["x-tail-bin", "AP8="]])
    assert call.result() == b"x"
    assert dict(call.initial_metadata())["x-head"] == "h"
    assert trailers(call)["x-tail-bin"] == b"\0\xff"
    seen = guard.peer.record(key)["metadata"]
    assert [pair for pair in seen if pair[0] in ("x-plain", "x-twice")] == [list(pair) for pair in sent[:3]]
    assert ["x-data-bin", "AP+A"] in seen


def test_the_streaming_shapes(calls: Calls) -> None:
    assert [len(one) for one in calls.start("Download", sizes=[0, 5, 100_000, 1])] == [0, 5, 100_000, 1]
    assert calls.start("Upload", iter([b"a" * 70_000, b"", b"b" * 3])).result() == b"70003"
    talk: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    stream = calls.start("Chat", iter(talk.get, None))
    for n in range(20):  # each message answered before the next is sent
        talk.put(b"%d" % n)
        assert next(stream) == b"%d" % n
    talk.put(None)
    assert next(stream, None) is None
    assert code_of(stream) is grpc.StatusCode.OK


def test_large_messages(calls: Calls) -> None:
    message = bytes(i % 251 for i in range(1_000_003)) * 20
    assert calls.unary(message, compression=grpc.Compression.NoCompression).result() == message
    assert calls.unary(message, compress=True, compression=grpc.Compression.Gzip).result() == message


def test_errors_come_with_their_details(calls: Calls) -> None:
    call = calls.unary(b"x", status=9, message="nö, 100 %", tail=[["x-why", "w"], ["grpc-status-details-bin", "AQID"]])
    assert call.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert call.details() == "nö, 100 %"
    assert (trailers(call)["x-why"], trailers(call)["grpc-status-details-bin"]) == ("w", b"\1\2\3")
    assert calls.unary(b"x", method="/no.Such/Method").code() is grpc.StatusCode.UNIMPLEMENTED
    messages, stream = read_all(calls.start("Download", sizes=[3, 3], status=13))
    assert (len(messages), code_of(stream)) == (2, grpc.StatusCode.INTERNAL)


def test_health_passes(guard: GuardProcess) -> None:
    with guard.channel() as channel:
        assert health_of(channel) == "SERVING"


def test_a_deadline_passes_and_ends_the_call_on_both_sides(guard: GuardProcess, calls: Calls) -> None:
    key, other = new_key(), new_key()
    assert calls.unary(b"x", key=key, hold=True, timeout_s=0.5).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0 < guard.peer.record(key)["left_s"] < 0.6  # of another process's clock
    guard.peer.wait_outcome(key, "cancelled")
    assert calls.unary(b"x", key=other, timeout_s=3_000).result() == b"x"
    assert 2_900 < guard.peer.record(other)["left_s"] < 3_100  # grpcio rounds up what it sends


@pytest.mark.parametrize("method", ["Unary", "Download", "Upload", "Chat"])
def test_a_clients_cancellation_arrives(guard: GuardProcess, calls: Calls, method: str) -> None:
    key = new_key()
    request = itertools.repeat(b"x", 3) if method in ("Upload", "Chat") else b"x"
    call = calls.start(method, request, key=key, hold=True)
    guard.peer.record(key)
    call.cancel()
    guard.peer.wait_outcome(key, "cancelled")


def test_a_server_may_end_a_stream_that_the_client_keeps_open(guard: GuardProcess, calls: Calls) -> None:
    """As a watch is ended: trailers arrive although the client has not half-closed."""
    talk: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call = calls.start("Upload", iter(talk.get, None), status=10)
    talk.put(b"x")
    key = new_key()
    aborted = calls.start("Chat", iter(talk.get, None), key=key, head=[["x-head", "1"]], hold=True, status=10)
    guard.peer.record(key)
    talk.put(None)
    talk.put(None)
    guard.peer.control("release", key=key)
    assert call.exception().code() is grpc.StatusCode.ABORTED
    assert code_of(read_all(aborted)[1]) is grpc.StatusCode.ABORTED


def test_a_client_that_does_not_read_holds_up_its_server(guard: GuardProcess) -> None:
    """Of 200 messages of 64 KB the server can send what windows take, and all of them once they are read."""
    key = new_key()
    with guard.channel(options=(("grpc.http2.bdp_probe", 0),)) as channel:
        stream = Calls(channel).start("Download", key=key, sizes=[65_536] * 200)
        next(stream)
        eventually(lambda: guard.figures()["held_bytes"], "the guard holds something")
        assert guard.figures()["held_bytes"] <= WINDOW
        assert guard.peer.record(key)["messages"] < 100
        assert sum(len(message) for message in stream) == 199 * 65_536
    eventually(guard.is_settled, "nothing is held")


def test_a_server_that_does_not_read_holds_up_its_client(guard: GuardProcess) -> None:
    key, sent = new_key(), []

    def messages() -> Iterator[bytes]:
        for n in range(200):
            sent.append(n)
            yield bytes(65_536)

    with guard.channel(options=(("grpc.http2.bdp_probe", 0),)) as channel:
        call = Calls(channel).start("Upload", messages(), key=key, hold=True)
        guard.peer.record(key)
        eventually(lambda: guard.figures()["held_bytes"], "the guard holds something")
        assert guard.figures()["held_bytes"] <= WINDOW
        assert len(sent) < 100
        guard.peer.control("release", key=key)
        assert call.result() == b"%d" % (200 * 65_536)
    eventually(guard.is_settled, "nothing is held")


def test_more_streams_than_one_connection_behind_takes(guard: GuardProcess) -> None:
    """450 silent streams of three clients, as of watches: several connections behind, and each call finds its own."""
    keys = [new_key() for _ in range(450)]
    channels = [guard.channel() for _ in range(3)]
    waiting = [
        Calls(channels[n % 3]).start("Unary", b"%d" % n, key=key, hold=True, timeout_s=60) for n, key in enumerate(keys)
    ]
    eventually(lambda: set(keys) <= {one["key"] for one in guard.peer.records()}, "all calls have come")
    figures = guard.figures()
    assert (figures["streams_open"], figures["backend_connections"]) == (450, 3)
    for key in keys:
        guard.peer.control("release", key=key)
    assert [call.result() for call in waiting] == [b"%d" % n for n in range(450)]
    for channel in channels:
        channel.close()


def test_a_peer_is_named_by_the_guard_alone(guard: GuardProcess, calls: Calls) -> None:
    key = new_key()
    lies = [(name, "root") for name in ("x-outrider-peer", "x-outrider-peer-certificate", "x-outrider-peer-loopback")]
    assert calls.unary(b"x", key=key, metadata=[*lies, ("x-outrider-peer-more-bin", b"\0")]).result() == b"x"
    seen = identity(guard, key)
    assert seen.pop("x-outrider-peer").startswith("127.0.0.1:")
    assert seen == {"x-outrider-peer-loopback": "1"}
    forwarded = new_key()
    calls.unary(b"x", key=forwarded, metadata=[("x-forwarded-for", "192.0.2.1")])
    assert identity(guard, forwarded)["x-outrider-peer-loopback"] == "0"


def test_a_certificate_names_its_owner(mesh: Mesh, guard: GuardProcess) -> None:
    folder = Path(mesh.children.directory)
    authority = Authority(folder)
    cert, key_file = authority.pair("server")
    arguments = ["--cert", str(cert), "--key", str(key_file), "--client-ca", str(authority.file)]
    secure = GuardProcess(mesh, "secure", *arguments, beside=guard)
    root = authority.file.read_bytes()
    mine, mine_key = authority.pair("agent")
    for credentials, name in (
        (grpc.ssl_channel_credentials(root, mine_key.read_bytes(), mine.read_bytes()), "localhost"),
        (grpc.ssl_channel_credentials(root), None),
    ):
        key = new_key()
        with secure.channel(credentials) as channel:
            lie = [("x-outrider-peer-certificate", "root")]
            assert Calls(channel).unary(b"x", key=key, metadata=lie).result() == b"x"
        assert identity(guard, key).get("x-outrider-peer-certificate") == name
    with secure.channel() as plain:
        assert Calls(plain, timeout_s=5).unary(b"x").code() is grpc.StatusCode.UNAVAILABLE


def test_a_server_that_is_killed_and_comes_back(mesh: Mesh) -> None:
    guard = GuardProcess(mesh, "lonely")
    with guard.channel() as channel:
        calls = Calls(channel)
        key = new_key()
        under_way = calls.start("Unary", b"x", key=key, hold=True)
        guard.peer.record(key)
        guard.peer.kill()
        assert under_way.exception().code() is grpc.StatusCode.UNAVAILABLE
        assert "was lost" in under_way.details()
        refused = calls.unary(b"x")
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert "cannot be reached" in refused.details()
        guard.peer.start()
        eventually(lambda: calls.unary(b"x").code() is grpc.StatusCode.OK, "the server is found again")
        # It ends in good order: calls under way are finished, the next ones refused.
        key = new_key()
        under_way = calls.start("Unary", b"y", key=key, hold=True)
        guard.peer.record(key)
        guard.peer.control("stop", grace_s=10)
        eventually(lambda: calls.unary(b"x").code() is grpc.StatusCode.UNAVAILABLE, "no new call is taken")
        guard.peer.control("release", key=key)
        assert under_way.result() == b"y"
    eventually(guard.is_settled, "nothing is left of the calls")
