"""Health and reflection as real callers see them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from outrider.policy import Agent, EndpointPolicy, Policy
from outrider_http2.client import ClientConnection
from outrider_http2.head import Head
from outrider_http2.stream import Handler, Stream
from outrider_sidecar.core import errors
from outrider_sidecar.edge import own_services as own
from outrider_sidecar.edge.upstream import dial
from outrider_sidecar.payloads.wire import Deframer
from tests.in_process import InProcess, in_process

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
PATHS = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]


class Served:
    """A sidecar whose own services answer; `is_up` is what its health says."""

    def __init__(self, mesh: InProcess, channel: grpc.aio.Channel):
        self.mesh = mesh
        self.channel = channel
        self.health: Any = HealthStub(channel)
        self.is_up = True

    def reflection(self, path: str = PATHS[0], **kwargs: Any) -> Any:
        method = self.channel.stream_stream(
            path, ServerReflectionRequest.SerializeToString, ServerReflectionResponse.FromString
        )
        return method(timeout=30, **kwargs)


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(own, "LOOK_EVERY_S", 0.01)
    found: list[Served] = []

    def prepare(mesh: InProcess) -> None:
        mesh.runtime.local = own.own_services(mesh.runtime, lambda _: found[0].is_up)

    # The agent's address is taken by nobody: a call that reached it would be UNAVAILABLE.
    policy = Policy({"a": Agent("a", (EndpointPolicy("127.0.0.1:1"),))}, "a")
    # A window of fixed, usual size, so that a caller that does not read is felt soon.
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65_535),
    ]
    async with (
        in_process(prepare, policy) as mesh,
        grpc.aio.insecure_channel(mesh.target, options) as channel,
    ):
        found.append(Served(mesh, channel))
        yield found[0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value


def asked(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def test_check_says_what_the_process_says(served: Served):
    for name in ("", "grpc.health.v1.Health", "outrider.v1.Agent", "grpc.reflection.v1.ServerReflection"):
        served.is_up = True
        assert (await served.health.Check(asked(name))).status == SERVING
        served.is_up = False
        assert (await served.health.Check(asked(name))).status == NOT_SERVING
    unknown = await failure(served.health.Check(asked("no.such.Service")))
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    assert "no.such.Service" in (unknown.details() or "")


async def test_list_says_it_of_all(served: Served):
    reply = await served.health.List(health_pb2.HealthListRequest())  # type: ignore[attr-defined]  # its stubs lack it
    assert {name: one.status for name, one in reply.statuses.items()} == dict.fromkeys(own.NAMES, SERVING)


async def test_an_agent_that_is_named_answers_for_itself(served: Served):
    named = served.health.Check(asked(), metadata=(("x-agent-id", "a"),), timeout=10)
    assert (await failure(named)).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Nope", "/grpc.reflection.v1.ServerReflection/Nope"])
async def test_unknown_methods_are_unimplemented(served: Served, path: str):
    assert (await failure(served.channel.unary_unary(path)(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_compressed_and_unreadable_requests(served: Served):
    method = served.channel.unary_unary("/grpc.health.v1.Health/Check", None, health_pb2.HealthCheckResponse.FromString)
    name = asked("outrider.v1.Agent").SerializeToString()
    assert (await method(name, compression=grpc.Compression.Gzip)).status == SERVING
    assert (await failure(method(b"\0" * (300 * 1024)))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await method(b"\x0a\x05cut")).status == SERVING  # what does not parse says nothing
    assert len(gzip.compress(b"\0" * 100_000)) < own.MAX_REQUEST_BYTES
    bomb = method(b"\0" * 100_000, compression=grpc.Compression.Gzip)
    assert (await failure(bomb)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_watch_streams_changes_and_only_changes(served: Served):
    watch = served.health.Watch(asked())
    assert (await watch.read()).status == SERVING
    for is_up, status in ((False, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
        served.is_up = is_up
        assert (await watch.read()).status == status
    watch.cancel()
    await until(lambda: not served.mesh.runtime.calls)


async def test_watch_of_an_unknown_service_stays_open(served: Served):
    watch = served.health.Watch(asked("no.such.Service"), timeout=0.2)
    assert (await watch.read()).status == UNKNOWN
    assert (await failure(watch.read())).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not served.mesh.runtime.calls)


async def test_a_drain_is_told_and_ends_open_streams(served: Served):
    watch, talk = served.health.Watch(asked()), served.reflection()
    await talk.write(ServerReflectionRequest(list_services=""))
    assert (await watch.read()).status == SERVING
    assert (await talk.read()).HasField("list_services_response")
    served.is_up = False
    served.mesh.listener.drain()
    assert (await watch.read()).status == NOT_SERVING
    assert (await failure(watch.read())).code() is grpc.StatusCode.UNAVAILABLE
    assert (await failure(talk.read())).code() is grpc.StatusCode.UNAVAILABLE
    await until(lambda: served.mesh.listener.connections == 0)


async def test_open_streams_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(own, "MAX_STREAMS", 3)
    watches = [served.health.Watch(asked()) for _ in range(3)]
    for watch in watches:
        await watch.read()
    assert (await failure(served.health.Watch(asked()).read())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await failure(served.reflection().read())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await served.health.Check(asked())).status == SERVING
    watches[0].cancel()
    await until(lambda: len(served.mesh.runtime.calls) == 2)
    assert (await served.health.Watch(asked()).read()).status == SERVING


async def test_a_caller_that_does_not_read_is_told_the_newest_later(served: Served):
    """Its flow control window is filled by hand: what is told meanwhile is not queued."""
    watch = served.health.Watch(asked())
    await watch.read()
    (call,) = served.mesh.runtime.calls
    down = call.down
    assert isinstance(down, Stream)
    window = down.send_window
    down.send_window = 0
    served.is_up = False
    await until(lambda: down.queue is not None)
    queued = down.queued
    for _ in range(5):
        served.is_up = not served.is_up
        await asyncio.sleep(0.03)
    assert down.queued == queued
    down.send_window = window
    served.mesh.reactor.turn.begin()
    down.pump()
    served.mesh.reactor.turn.end()
    statuses = [(await watch.read()).status, (await watch.read()).status]
    assert statuses == [NOT_SERVING, SERVING]


@pytest.mark.parametrize("path", PATHS)
async def test_reflection_tells_enough_to_call_every_service(served: Served, path: str):
    from google.protobuf.descriptor_pool import DescriptorPool

    talk = served.reflection(path)

    async def ask(**kwargs: Any) -> ServerReflectionResponse:
        request = ServerReflectionRequest(host="h", **kwargs)
        await talk.write(request)
        reply = await talk.read()
        assert (reply.valid_host, reply.original_request) == ("h", request)
        return reply

    services = [one.name for one in (await ask(list_services="*")).list_services_response.service]
    assert services == sorted(services)
    assert "outrider.v1.Agent" in services
    for service in services:
        files = (await ask(file_containing_symbol=service)).file_descriptor_response.file_descriptor_proto
        pool = DescriptorPool()
        for file in reversed(files):  # imports first
            pool.AddSerializedFile(file)
        found = pool.FindServiceByName(service)
        assert found.methods
        by_name = await ask(file_by_filename=found.file.name)
        assert by_name.file_descriptor_response.file_descriptor_proto[0] == files[0]
    numbers = await ask(all_extension_numbers_of_type="outrider.v1.InvokeRequest")
    assert numbers.all_extension_numbers_response.base_type_name == "outrider.v1.InvokeRequest"
    assert not numbers.all_extension_numbers_response.extension_number
    await talk.done_writing()
    assert await talk.read() is grpc.aio.EOF
    assert await talk.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (ServerReflectionRequest(file_by_filename="no.proto"), 5),
        (ServerReflectionRequest(file_containing_symbol="no.Such"), 5),
        (ServerReflectionRequest(all_extension_numbers_of_type="no.Such"), 5),
        (ServerReflectionRequest(file_containing_extension={"containing_type": "outrider.v1.Part"}), 5),
        (ServerReflectionRequest(file_containing_symbol="\x00"), 5),
        (ServerReflectionRequest(), 3),
    ],
)
async def test_what_reflection_does_not_know_is_an_error_in_the_reply(served: Served, request_: Any, code: int):
    talk = served.reflection()
    await talk.write(request_)
    assert (await talk.read()).error_response.error_code == code
    await talk.write(ServerReflectionRequest(list_services=""))
    assert (await talk.read()).HasField("list_services_response")


class Reader(Handler):
    """The receiving side of one stream of our own client: what came, and how it ended."""

    def __init__(self) -> None:
        self.data = b""
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_head(self, stream: Any, head: Any, rest: Any, end: bool) -> None:
        assert head.status == 200
        assert not end

    def on_data(self, stream: Any, data: bytes, end: bool) -> None:
        self.data += data
        stream.credit(len(data))

    def on_tail(self, stream: Any, head: Any, rest: Any) -> None:
        self.ended.set_result(head.values[b"grpc-status"])

    def on_reset(self, stream: Any, code: int, processed: bool) -> None:
        self.ended.set_result(b"reset")

    def on_drain(self, stream: Any, sent_bytes: int) -> None:
        """Nothing waits."""


@pytest.mark.parametrize(("number", "status"), [(200, b"0"), (own.MAX_WAITING + 1, b"8")])
async def test_many_requests_in_one_frame_are_answered_in_order_a_few_a_turn(
    served: Served, number: int, status: bytes
):
    requests = [ServerReflectionRequest(host=str(at), list_services="") for at in range(number)]
    messages = [request.SerializeToString() for request in requests]
    ready = asyncio.Event()

    def prepare(conn: ClientConnection) -> None:
        conn.on_ready = lambda _: ready.set()

    shell = await dial(served.mesh.reactor, served.mesh.target, None, "", prepare)
    await ready.wait()
    reader = Reader()
    assert isinstance(shell.conn, ClientConnection)
    stream = shell.conn.open_stream(reader)
    fields = ((b"content-type", b"application/grpc"), (b"te", b"trailers"))
    stream.send_head(Head(fields, b"POST", b"http", b"localhost", PATHS[0].encode()))
    stream.send_data(b"".join([b"\0" + len(one).to_bytes(4, "big") + one for one in messages]), True)
    assert await asyncio.wait_for(reader.ended, 20) == status
    shell.close()
    replies = [ServerReflectionResponse.FromString(one) for one in Deframer(b"").feed(reader.data)]
    expected = [str(at) for at in range(number)] if status == b"0" else []
    assert [reply.valid_host for reply in replies] == expected


async def test_who_does_not_read_replies_is_not_read_from(served: Served):
    """Requests stop being taken once replies wait, and all are answered when they are read."""
    talk = served.reflection(PATHS[1])
    # All of them together are more than a stream's window: credit has to come back.
    request = ServerReflectionRequest(host="h" * 4_000, file_containing_symbol="outrider.v1.Agent")
    total = 0

    async def write() -> None:
        nonlocal total
        for _ in range(150):
            await talk.write(request)
            total += 1
        await talk.done_writing()

    writing = asyncio.create_task(write())
    await until(lambda: any(call.down.queue is not None for call in served.mesh.runtime.calls))
    (call,) = served.mesh.runtime.calls
    assert isinstance(call.down, Stream)
    assert call.down.queued < 100_000  # not more than the reply that did not fit
    await until(lambda: call.uncredited > 0)  # so that the caller has to stop
    replies = [reply async for reply in talk]
    await writing
    assert len(replies) == total == 150
    assert all(reply == replies[0] for reply in replies)


async def test_too_many_waiting_requests_end_the_stream(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(own, "MAX_WAITING", 4)
    talk = served.reflection()
    await talk.write(ServerReflectionRequest(list_services=""))
    await talk.read()
    (call,) = served.mesh.runtime.calls
    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        for _ in range(2_000):
            await talk.write(ServerReflectionRequest(file_containing_symbol="outrider.v1.Agent"))
        await talk.done_writing()
    assert await talk.code() is not grpc.StatusCode.OK
    assert call.status == errors.RESOURCE_EXHAUSTED
    assert not served.mesh.runtime.calls


async def test_garbage_ends_a_reflection_stream(served: Served):
    talk = served.channel.stream_stream(PATHS[0])(timeout=10)
    await talk.write(b"\xff\xff")
    message: Any = await talk.read()
    reply = ServerReflectionResponse.FromString(message)
    assert reply.error_response.error_code == 3  # one bad message is answered
    await talk.write(b"\0" * (own.MAX_REQUEST_BYTES + 1))
    assert (await failure(talk.read())).code() is grpc.StatusCode.INVALID_ARGUMENT
