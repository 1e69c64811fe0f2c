"""Upstreams that break rules: the caller gets the status the gRPC specifications name, and the next call is served.

Statuses: "HTTP to gRPC status code mapping" and "gRPC over HTTP/2", section Errors.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.sidecars import Calls, Mesh, Sidecar, agent, channel_to, eventually, new_key, trailers

CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 8, 7, 11, 12
NEVER = {"max_attempts": 1}


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh) -> Sidecar:
    address = mesh.h2_peer()
    one_stream = mesh.h2_peer("narrow", "--max-streams", "1")
    agents = [
        agent("odd", address, retry=NEVER, outlier={"enabled": False}),
        agent("narrow", one_stream, retry=NEVER, outlier={"enabled": False}),
        agent("tight", one_stream, retry=NEVER, outlier={"enabled": False}, balancing={"failfast_ms": 20_000}),
    ]
    return mesh.sidecar({"default_agent": "odd", "agents": agents})


@pytest.fixture
def calls(sidecar: Sidecar) -> Iterator[Calls]:
    """Afterwards the sidecar holds nothing and still serves."""
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        yield calls
        sidecar.settled()
        assert calls.unary(method="/odd.Http/Ok").result() == b"odd"


@pytest.mark.parametrize(
    ("http", "code"),
    [
        (400, "INTERNAL"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "UNIMPLEMENTED"),
        (429, "UNAVAILABLE"),
        (500, "UNKNOWN"),
        (502, "UNAVAILABLE"),
        (503, "UNAVAILABLE"),
        (504, "UNAVAILABLE"),
        (418, "UNKNOWN"),
    ],
)
@pytest.mark.parametrize("kind", ["Http", "HttpBare"])
def test_http_statuses(calls: Calls, kind: str, http: int, code: str) -> None:
    call = calls.unary(method=f"/odd.Http/{kind}{http}")
    assert call.code().name == code
    assert str(http) in call.details()


def test_a_reply_that_is_not_grpc(calls: Calls) -> None:
    assert calls.unary(method="/odd.Http/NotGrpc").code() is grpc.StatusCode.UNKNOWN


def test_missing_trailers(calls: Calls) -> None:
    call = calls.unary(method="/odd.Http/NoTrailers")
    assert call.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def test_trailers_without_a_status(calls: Calls) -> None:
    assert calls.unary(method="/odd.Http/NoStatus").code() is grpc.StatusCode.UNKNOWN


def test_a_status_that_is_no_number_is_the_callers_to_judge(calls: Calls) -> None:
    """It passes as it is; grpcio answers INTERNAL where the sidecar counts it as UNKNOWN."""
    assert calls.unary(method="/odd.Http/BadStatus").code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def test_a_status_out_of_range_is_unknown(calls: Calls) -> None:
    assert calls.unary(method="/odd.Http/Status99").code() is grpc.StatusCode.UNKNOWN


def test_escapes_of_a_message_pass_as_they_are(calls: Calls) -> None:
    """Decoding is the receiver's: valid escapes are decoded, broken ones stay."""
    assert calls.unary(method="/odd.Http/Encoded").details() == "€ 100% %zz 50%"


@pytest.mark.parametrize("when", ["Reset", "ResetAfterHead", "ResetAfterData"])
@pytest.mark.parametrize(
    ("code", "status"),
    [
        (2, "INTERNAL"),
        (CANCEL, "CANCELLED"),
        (ENHANCE_YOUR_CALM, "RESOURCE_EXHAUSTED"),
        (INADEQUATE_SECURITY, "PERMISSION_DENIED"),
    ],
)
def test_resets(calls: Calls, when: str, code: int, status: str) -> None:
    """The specification's table, also after the head and after a message (rst_after_header, rst_after_data)."""
    call = calls.unary(method=f"/odd.Http/{when}{code}")
    assert call.code().name == status


def test_a_reset_after_messages_keeps_them(calls: Calls) -> None:
    stream = calls.channel.unary_stream("/odd.Http/ResetAfterData2")(b"", timeout=10)
    assert next(stream) == b"odd"
    with pytest.raises(grpc.RpcError):
        next(stream)
    assert stream.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("method", ["UpperCase", "ConnectionField"])
def test_malformed_fields_are_refused_not_forwarded(calls: Calls, method: str) -> None:
    assert calls.unary(method=f"/odd.Http/{method}").code() is grpc.StatusCode.INTERNAL


def test_refused_streams_are_tried_again(calls: Calls) -> None:
    """The upstream did nothing, so this is no retry of the policy's: max_attempts is 1 here."""
    call = calls.unary(method="/odd.Http/Refuse2", key=new_key())
    assert call.result() == b"odd"
    assert trailers(call)["x-calls"] == "3"


def test_streams_refused_for_ever_end_unavailable(calls: Calls) -> None:
    assert calls.unary(method="/odd.Http/Refuse99", key=new_key()).code() is grpc.StatusCode.UNAVAILABLE


def test_a_goaway_that_leaves_the_call_out_is_survived(calls: Calls) -> None:
    call = calls.unary(method="/odd.Http/Goaway1", key=new_key())
    assert call.result() == b"odd"
    assert trailers(call)["x-calls"] == "2"


def test_a_goaway_that_includes_the_call_lets_it_end(calls: Calls, sidecar: Sidecar) -> None:
    call = calls.unary(method="/odd.Http/GoawayAndServe")
    assert call.result() == b"odd"
    before = int(trailers(call)["x-connections"])
    again = calls.unary(method="/odd.Http/Ok")
    assert again.result() == b"odd"
    assert int(trailers(again)["x-connections"]) > before


def test_a_connection_dropped_under_a_call_is_unavailable(calls: Calls) -> None:
    assert calls.unary(method="/odd.Http/DropConnection").code() is grpc.StatusCode.UNAVAILABLE


def test_pings_are_answered(calls: Calls) -> None:
    assert calls.unary(method="/odd.Http/Ping").result() == b"odd"


def test_informational_heads_are_passed_over(calls: Calls) -> None:
    assert calls.unary(method="/odd.Http/Hints").result() == b"odd"


def test_padded_frames_of_one_byte(calls: Calls) -> None:
    assert calls.unary(method="/odd.Http/Crumbs").result() == b"odd"


def test_an_early_reply_needs_no_whole_request(calls: Calls) -> None:
    assert calls.unary(bytes(3_000_000), method="/odd.Http/EarlyReply").result() == b"odd"


def test_more_calls_than_an_upstream_takes_streams(sidecar: Sidecar) -> None:
    """max_streams 1: calls wait for a stream or take a further connection; none fails."""
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel, [("x-agent-id", "narrow")])
        running = [calls.start("/odd.Http/Ok") for _ in range(200)]
        assert [call.result() for call in running] == [b"odd"] * 200
        most = max(int(trailers(call)["x-connections"]) for call in running)
    assert most <= 16
    sidecar.settled()


def test_calls_that_wait_for_a_stream_bring_up_connections(sidecar: Sidecar) -> None:
    """Five calls at a time to an upstream of one stream a connection: none waits behind another that hangs."""
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel, [("x-agent-id", "tight")], timeout_s=60)
        hanging = [calls.start("/odd.Http/Hang") for _ in range(5)]
        eventually(lambda: sidecar.agent("tight")["endpoints"][0]["connections"] >= 5, "each has a connection")
        assert not any(call.done() for call in hanging)
        assert calls.unary(method="/odd.Http/Ok").result() == b"odd"
        for call in hanging:
            call.cancel()
    sidecar.settled()


def test_a_silent_upstream_is_left_when_the_caller_leaves(calls: Calls, sidecar: Sidecar) -> None:
    call = calls.start("/odd.Http/Hang", timeout_s=60)
    eventually(lambda: sidecar.metric("outrider_endpoint_pending") == 1, "the call is upstream")
    call.cancel()
    sidecar.settled()
