"""The gRPC interop cases by their names, through a sidecar, with grpcio on both ends."""

from __future__ import annotations

import base64
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.sidecars import Calls, Mesh, Peer, Sidecar, channel_to, new_key, read_all, standalone

LARGE_REQUEST, LARGE_REPLY = 271_828, 314_159
CLIENT_SIZES = (27_182, 8, 1_828, 45_904)
SERVER_SIZES = (31_415, 9, 2_653, 58_979)
PING_PONG = tuple(zip(CLIENT_SIZES, SERVER_SIZES, strict=True))


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, peer: Peer) -> Sidecar:
    return mesh.sidecar(standalone(peer))


@pytest.fixture
def calls(sidecar: Sidecar) -> Iterator[Calls]:
    with channel_to(sidecar.target) as channel:
        yield Calls(channel)
    sidecar.settled()


def padded(request: int, reply: int) -> bytes:
    """A message of `request` bytes that asks for `reply` bytes."""
    return b"%d\n" % reply + bytes(max(0, request - len(b"%d\n" % reply)))


def test_empty_unary(calls: Calls) -> None:
    assert calls.unary(b"").result() == b""


def test_large_unary(calls: Calls, peer: Peer) -> None:
    key = new_key()
    request = bytes(i % 251 for i in range(LARGE_REQUEST))
    assert calls.unary(request).result() == request
    assert calls.unary(request, key=key, size=LARGE_REPLY).result() == bytes(LARGE_REPLY)


def test_client_streaming(calls: Calls, peer: Peer) -> None:
    key = new_key()
    assert calls.start("Upload", iter([bytes(size) for size in CLIENT_SIZES]), key=key).result() == b"74922"
    assert peer.record(key)["messages"] == 4


def test_server_streaming(calls: Calls) -> None:
    messages, call = read_all(calls.start("Download", b"", sizes=SERVER_SIZES))
    assert messages == [bytes(size) for size in SERVER_SIZES]
    assert call.code() is grpc.StatusCode.OK


def test_ping_pong(calls: Calls) -> None:
    """Each request leaves only when the reply before it is here: nothing may be held on the way."""
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call = calls.start("Chat", iter(asked.get, None))
    for request, reply in PING_PONG:
        asked.put(padded(request, reply))
        assert len(next(call)) == reply
    asked.put(None)
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_empty_stream(calls: Calls) -> None:
    messages, call = read_all(calls.start("Chat", iter(())))
    assert messages == []
    assert call.code() is grpc.StatusCode.OK


def test_cancel_after_begin(calls: Calls, peer: Peer) -> None:
    key = new_key()
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call = calls.start("Upload", iter(asked.get, None), key=key, hold_end=True)
    peer.record(key)
    call.cancel()
    asked.put(None)
    assert call.code() is grpc.StatusCode.CANCELLED
    peer.wait_outcome(key, "cancelled")


def test_cancel_after_first_response(calls: Calls, peer: Peer) -> None:
    key = new_key()
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call = calls.start("Chat", iter(asked.get, None), key=key, hold_end=True)
    asked.put(padded(*PING_PONG[0]))
    assert len(next(call)) == SERVER_SIZES[0]
    call.cancel()
    asked.put(None)
    _, call = read_all(call)
    assert call.code() is grpc.StatusCode.CANCELLED
    peer.wait_outcome(key, "cancelled")


def test_timeout_on_sleeping_server(calls: Calls, peer: Peer) -> None:
    key = new_key()
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    asked.put(bytes(27_182))
    _, call = read_all(calls.start("Chat", iter(asked.get, None), key=key, timeout_s=0.3, hold=True))
    asked.put(None)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    peer.wait_outcome(key, "cancelled")


@pytest.mark.parametrize("method", ["Unary", "Chat"])
def test_custom_metadata(calls: Calls, peer: Peer, method: str) -> None:
    """The initial value comes back in initial metadata, the -bin value in trailers, both at the server too."""
    key = new_key()
    initial, trailing = "test_initial_metadata_value", bytes((0xAB,)) * 3
    sent = (("x-grpc-test-echo-initial", initial), ("x-grpc-test-echo-trailing-bin", trailing))
    encoded = base64.b64encode(trailing).decode()
    plan: dict[str, Any] = {"head": [[sent[0][0], initial]], "tail": [[sent[1][0], encoded]]}
    body = b"x" if method == "Unary" else iter([b"x"])
    call = calls.start(method, body, key=key, metadata=sent, **plan)
    if method == "Unary":
        assert call.result() == b"x"
    else:
        assert list(call) == [b"x"]
    assert dict(call.initial_metadata())[sent[0][0]] == initial
    assert dict(call.trailing_metadata())[sent[1][0]] == trailing
    seen = peer.record(key)["metadata"]
    assert [sent[0][0], initial] in seen
    assert [sent[1][0], encoded] in seen


@pytest.mark.parametrize("method", ["Unary", "Chat"])
def test_status_code_and_message(calls: Calls, method: str) -> None:
    body = b"" if method == "Unary" else iter([b"x"])
    call = calls.start(method, body, status=2, message="test status message")
    if method == "Chat":
        _, call = read_all(call)
    assert (call.code(), call.details()) == (grpc.StatusCode.UNKNOWN, "test status message")


def test_special_status_message(calls: Calls) -> None:
    message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
    call = calls.unary(b"", status=2, message=message)
    assert (call.code(), call.details()) == (grpc.StatusCode.UNKNOWN, message)


@pytest.mark.parametrize("path", ["/test.Agent/Unheard", "/grpc.testing.UnimplementedService/UnimplementedCall"])
def test_unimplemented(calls: Calls, path: str) -> None:
    assert calls.unary(b"", method=path).code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_client_compressed_unary(calls: Calls, peer: Peer, algorithm: grpc.Compression) -> None:
    """Compressed messages pass as they are, with the encoding's name; the server reads what the client wrote."""
    key = new_key()
    request = b"outrider " * 5_000
    assert calls.unary(request, key=key, compression=algorithm).result() == request


def test_client_compressed_streaming(calls: Calls) -> None:
    sizes = (27_182, 45_904)
    call = calls.start("Upload", iter([bytes(size) for size in sizes]), compression=grpc.Compression.Gzip)
    assert call.result() == b"73086"


@pytest.mark.parametrize("method", ["Unary", "Download"])
def test_server_compressed(calls: Calls, method: str) -> None:
    if method == "Unary":
        assert calls.unary(b"", size=LARGE_REPLY, compress=True).result() == bytes(LARGE_REPLY)
        return
    messages, _ = read_all(calls.start("Download", b"", sizes=[31_415, 92_653], compress=True))
    assert [len(message) for message in messages] == [31_415, 92_653]


def test_compressed_bytes_are_relayed_not_inflated(calls: Calls, sidecar: Sidecar) -> None:
    """A megabyte of zeros travels as a few kilobytes: the sidecar's own count of bytes says so."""
    before = sidecar.metric("outrider_request_bytes_total")
    calls.unary(bytes(1_000_000), compression=grpc.Compression.Gzip).result()
    sidecar.settled()
    assert 0 < sidecar.metric("outrider_request_bytes_total") - before < 50_000


def test_status_details_of_every_code(calls: Calls) -> None:
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            call = calls.unary(b"", status=code.value[0], message=f"this is {code.name}", tail=[["x-of", code.name]])
            assert (call.code(), call.details()) == (code, f"this is {code.name}")
            assert dict(call.trailing_metadata())["x-of"] == code.name


def test_concurrent_large_unary(sidecar: Sidecar) -> None:
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        running = [calls.start("Unary", bytes([number]) * LARGE_REQUEST) for number in range(100)]
        for number, call in enumerate(running):
            assert call.result() == bytes([number]) * LARGE_REQUEST
    sidecar.settled()
