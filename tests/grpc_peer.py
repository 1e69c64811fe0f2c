"""A real grpcio server in a process of its own: the agent behind a sidecar under test, told what to do call by call.

Always holds: messages are bytes and come back as they went in unless a call says otherwise; every call is recorded
with the metadata and the time it had left, and how it ended. A call says what it wants in metadata `x-do` (a `Plan`
as JSON) and is found again by `x-key`; `mode` is a plan for every call. Anything that waits, waits for `release`.

With `--agent` it is an instance of that agent and registers with `--control`; SIGTERM withdraws it, and cuts the calls
that it still has.

Deliberately not here: malformed replies (`tests.h2_peer`). Run: `python -m tests.grpc_peer --name N --ports-file FILE`
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import functools
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health  # pyright: ignore[reportAttributeAccessIssue] # not in its stubs

from bench.serve import announce, until_signal
from outrider.registration import AsyncRegistration

AGENT = "/test.Agent/"
NATIVE = "/outrider.v1.Agent/Invoke"  # so that a native request may be looked at as it has come
CONTROL = "/test.Peer/Control"
SPANS = "/test.Peer/Spans"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
MESSAGE_BYTES = 80 * 1024 * 1024
CODES = {code.value[0]: code for code in grpc.StatusCode}

Plan = dict[str, Any]
"""What one call does, in this order:
head: [[name, value]] of initial metadata, sent at once; hold: wait for `release` of the call's key; hold_end: the
same when all requests are here and the replies are out;
fail_first: n calls of this key end with `status`, later ones do not; status, message, tail: [[name, value]];
size: bytes of the reply (default: the request); serial: the reply is "NAME:number of the call";
sizes: of a stream's messages; hold_after: wait for `release` after so many of them; compress: the reply by gzip.
Values of `-bin` names are base64."""


def fields(pairs: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Metadata from JSON pairs."""
    return tuple((name, base64.b64decode(value) if name.endswith("-bin") else value) for name, value in pairs or ())


def plain(metadata: Any) -> list[list[str]]:
    """Metadata as JSON pairs."""
    return [[k, base64.b64encode(v).decode() if isinstance(v, bytes) else v] for k, v in metadata or ()]


class Peer(grpc.GenericRpcHandler):
    """All methods, and what is remembered of their calls."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mode: Plan = {}
        self.records: list[dict[str, Any]] = []
        self.failed: Counter[str] = Counter()
        self.released: dict[str, asyncio.Event] = {}
        self.exports: list[bytes] = []
        self.export_headers: list[list[list[str]]] = []
        self.health = health.HealthServicer()
        self.server: Any = None
        unary, download = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        self.methods = {
            f"{AGENT}Unary": unary(functools.partial(self.unary, "Unary")),
            f"{AGENT}Other": unary(functools.partial(self.unary, "Other")),
            NATIVE: unary(functools.partial(self.unary, "Invoke")),
            f"{AGENT}Download": download(functools.partial(self.download, "Download")),
            f"{AGENT}Upload": grpc.stream_unary_rpc_method_handler(functools.partial(self.upload, "Upload")),
            f"{AGENT}Chat": grpc.stream_stream_rpc_method_handler(functools.partial(self.chat, "Chat")),
            CONTROL: unary(self.control),
            SPANS: unary(self.spans),
            EXPORT: unary(self.export),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self.methods.get(str(handler_call_details.method))

    # -- calls -----------------------------------------------------------------------------------------------------

    async def begin(self, method: str, context: Any) -> tuple[dict[str, Any], Plan]:
        """Record a call and do what comes before its reply; raises when the plan says that it fails."""
        metadata = context.invocation_metadata() or ()
        named = {k: v for k, v in metadata if isinstance(v, str)}
        record: dict[str, Any] = {
            "key": named.get("x-key", ""),
            "method": method,
            "metadata": plain(metadata),
            "left_s": context.time_remaining(),
            "peer": context.peer(),
            "messages": 0,
            "outcome": "running",
        }
        self.records.append(record)
        context.add_done_callback(lambda _: self.ended(record))
        plan = {**self.mode, **json.loads(named.get("x-do", "{}"))}
        if plan.get("compress"):
            context.set_compression(grpc.Compression.Gzip)
        if "head" in plan:
            await context.send_initial_metadata(fields(plan["head"]))
        if plan.get("hold"):
            await self.event(record["key"]).wait()
        return record, plan

    def ended(self, record: dict[str, Any]) -> None:
        if record["outcome"] == "running":
            record["outcome"] = "cancelled"

    def event(self, key: str) -> asyncio.Event:
        return self.released.setdefault(key, asyncio.Event())

    async def finish(self, record: dict[str, Any], plan: Plan, context: Any) -> None:
        """Trailers, and the failure if there is to be one."""
        if plan.get("hold_end"):
            await self.event(record["key"]).wait()
        status = plan.get("status", 0)
        if "fail_first" in plan:
            self.failed[record["key"]] += 1
            status = status if self.failed[record["key"]] <= plan["fail_first"] else 0
        if status:
            record["outcome"] = "failed"
            await context.abort(CODES[status], plan.get("message", "as asked"), fields(plan.get("tail")))
        context.set_trailing_metadata(fields(plan.get("tail")))
        record["outcome"] = "done"

    async def unary(self, method: str, request: bytes, context: Any) -> bytes:
        record, plan = await self.begin(method, context)
        record["messages"] = 1
        await self.finish(record, plan, context)
        if plan.get("serial"):
            return f"{self.name}:{len(self.records)}".encode()
        return bytes(plan["size"]) if "size" in plan else request

    async def download(self, method: str, request: bytes, context: Any) -> AsyncIterator[bytes]:
        record, plan = await self.begin(method, context)
        for at, size in enumerate(plan.get("sizes", ())):
            if at == plan.get("hold_after", -1):
                await self.event(record["key"]).wait()
            yield f"{self.name}:{len(self.records)}:{at}".encode() if plan.get("serial") else bytes(size)
            record["messages"] = at + 1
        if plan.get("hold_after", -1) == len(plan.get("sizes", ())):
            await self.event(record["key"]).wait()
        await self.finish(record, plan, context)

    async def upload(self, method: str, requests: AsyncIterator[bytes], context: Any) -> bytes:
        record, plan = await self.begin(method, context)
        total = 0
        async for message in requests:
            total += len(message)
            record["messages"] += 1
        await self.finish(record, plan, context)
        return str(total).encode()

    async def chat(self, method: str, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Every message comes back; "SIZE newline ..." asks for SIZE bytes instead."""
        record, plan = await self.begin(method, context)
        async for message in requests:
            record["messages"] += 1
            size, newline, _ = message.partition(b"\n")
            yield bytes(int(size)) if newline and size.isdigit() else message
        await self.finish(record, plan, context)

    # -- control and telemetry -------------------------------------------------------------------------------------

    async def control(self, request: bytes, context: Any) -> bytes:
        asked = json.loads(request)
        return json.dumps(await getattr(self, f"do_{asked.pop('op')}")(**asked)).encode()

    async def do_mode(self, **plan: Any) -> None:
        self.mode = plan

    async def do_records(self, key: str = "") -> list[dict[str, Any]]:
        return [record for record in self.records if not key or record["key"] == key]

    async def do_forget(self) -> None:
        self.records.clear()
        self.exports.clear()
        self.export_headers.clear()

    async def do_release(self, key: str) -> None:
        self.event(key).set()

    async def do_health(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.health.set("", status)

    async def do_stop(self, grace_s: float) -> None:
        """GOAWAY; calls in flight get `grace_s`. The process stays."""
        self.stopping = asyncio.create_task(self.server.stop(grace_s))

    async def do_export_headers(self) -> list[list[list[str]]]:
        return self.export_headers

    async def export(self, request: bytes, context: Any) -> bytes:
        self.exports.append(request)
        self.export_headers.append(plain(context.invocation_metadata()))
        return b""

    async def spans(self, request: bytes, context: Any) -> bytes:
        """All exports as one ExportTraceServiceRequest: protobuf messages one after the other merge."""
        return b"".join(self.exports)


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal."""
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", options.max_streams),
            ("grpc.http2.bdp_probe", 0),  # windows stay small, so that back-pressure can be seen
        ]
    )
    peer = Peer(options.name)
    peer.server = server
    server.add_generic_rpc_handlers((peer,))
    health_pb2_grpc.add_HealthServicer_to_server(peer.health, server)
    await peer.do_health(True)
    if options.tls:
        folder = Path(options.tls)
        pairs = [((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())]
        ca = (folder / "ca.pem").read_bytes()
        port = server.add_secure_port(
            f"127.0.0.1:{options.port}", grpc.ssl_server_credentials(pairs, ca, options.mutual)
        )
    else:
        port = server.add_insecure_port(options.unix or f"127.0.0.1:{options.port}")
    control = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    control.add_generic_rpc_handlers((peer,))
    control_port = control.add_insecure_port("127.0.0.1:0")
    await server.start()
    await control.start()
    announce({"port": port, "control": control_port}, options.ports_file)
    async with contextlib.AsyncExitStack() as registered:
        if options.agent:
            address = f"127.0.0.1:{port}"
            registration = AsyncRegistration([options.control], options.agent, address, {}, options.capacity)
            await registered.enter_async_context(registration)
        await until_signal()
    await server.stop(0)
    await control.stop(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="peer")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--unix", default="", help="unix:/path instead of a port")
    parser.add_argument("--ports-file", default="")
    parser.add_argument("--max-streams", type=int, default=10_000)
    parser.add_argument("--tls", default="", help="folder with ca.pem, server.pem and server.key")
    parser.add_argument("--agent", default="", help="register as an instance of it")
    parser.add_argument("--control", default="", help="the control plane to register with")
    parser.add_argument("--capacity", type=int, default=0, help="calls at once, as it is registered")
    parser.add_argument("--mutual", action="store_true", help="ask for a client certificate")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
