"""A stand-in for the control plane: a real grpc.aio server with the Mesh service and a span collector.

Always holds: every watch begins with a welcome and a full update of what is to be held, with what the sidecar holds
already at that version named as current; each later change goes to every watch as a delta; everything a sidecar says
is remembered. In a test's loop as a `MeshPeer`, or as a process of its own (`python -m tests.mesh_peer`), where
`CONTROL` calls its `do_` methods with JSON.

Deliberately not here: leases, stores, figures: the real control plane's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import uvloop
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from bench.serve import announce, until_signal
from outrider.codec import encode_agent
from outrider.policy import Agent
from outrider.policy_parse import agent_from_mapping
from outrider.v1 import feedback_pb2, mesh_pb2, mesh_pb2_grpc

CONTROL = "/test.MeshPeer/Control"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
POLICY, ENDPOINTS = mesh_pb2.RESOURCE_KIND_POLICY, mesh_pb2.RESOURCE_KIND_ENDPOINTS
EPOCHS, MESH = mesh_pb2.RESOURCE_KIND_EPOCHS, mesh_pb2.RESOURCE_KIND_MESH


def resource(kind: Any, name: str, version: int, **body: Any) -> mesh_pb2.Resource:
    """One resource; `body` is the field of its kind."""
    return mesh_pb2.Resource(id=mesh_pb2.ResourceVersion(kind=kind, name=name, version=version), **body)


def policy(agent: Agent, version: int) -> mesh_pb2.Resource:
    return resource(POLICY, agent.agent_id, version, policy=encode_agent(agent))


def endpoints(agent_id: str, version: int, *rows: Mapping[str, Any]) -> mesh_pb2.Resource:
    found = [mesh_pb2.Endpoint(agent_id=agent_id, **row) for row in rows]
    return resource(ENDPOINTS, agent_id, version, endpoints=mesh_pb2.EndpointSet(endpoints=found))


class Watch:
    """One stream: what was said on it, and what is still to be sent."""

    def __init__(self, metadata: Any):
        self.metadata = dict(metadata or ())
        self.hello = mesh_pb2.Hello()
        self.said: list[mesh_pb2.WatchRequest] = []
        self.out: asyncio.Queue[Any] = asyncio.Queue()
        self.newest = 0  # nonce of the last update sent

    def all(self, field: str) -> list[Any]:
        return [getattr(one, field) for one in self.said if one.WhichOneof("message") == field]


class MeshPeer(mesh_pb2_grpc.MeshServicer):
    """`put` and `remove` resources; `watches` and `spans` tell what came."""

    def __init__(self, name: str = "one", load_interval_ms: int = 100):
        self.name = name
        self.load_interval_ms = load_interval_ms
        self.resources: dict[tuple[int, str], mesh_pb2.Resource] = {}
        self.watches: list[Watch] = []
        self.live: list[Watch] = []
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.exports: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.export_metadata: list[dict[str, Any]] = []
        self.feedback: dict[str, feedback_pb2.Feedback] = {}  # by id, in the order it came
        self.deliveries: list[mesh_pb2.DeliverFeedbackRequest] = []
        self.refuse_feedback: Callable[[feedback_pb2.Feedback], tuple[grpc.StatusCode, str] | None] = lambda _: None
        self.nonce = 0

    # -- the mesh --------------------------------------------------------------------------------------------------

    async def Watch(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        if self.refuse is not None:
            await context.abort(*self.refuse)
        watch = Watch(context.invocation_metadata())
        first = await anext(aiter(request_iterator))
        assert first.WhichOneof("message") == "hello"
        watch.hello = first.hello
        self.watches.append(watch)
        welcome = mesh_pb2.Welcome(instance_id=self.name, version="9.9", load_interval_ms=self.load_interval_ms)
        yield mesh_pb2.WatchResponse(welcome=welcome)
        self.live.append(watch)
        watch.out.put_nowait(self.full(watch.hello))
        reading = asyncio.create_task(self._read(watch, request_iterator))
        try:
            while True:
                message = await watch.out.get()
                if message is None:
                    return
                watch.newest = message.update.nonce or watch.newest
                yield message
        finally:
            self.live.remove(watch)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, watch: Watch, requests: Any) -> None:
        async for request in requests:
            watch.said.append(request)
        watch.out.put_nowait(None)  # the sidecar says no more: the call ends here as well

    def full(self, hello: mesh_pb2.Hello) -> mesh_pb2.WatchResponse:
        held = {(int(one.kind), one.name): one.version for one in hello.held}
        known, fresh = [], []
        for key, one in self.resources.items():
            known.append(one.id) if held.get((int(key[0]), key[1])) == one.id.version else fresh.append(one)
        return self._update(full=True, resources=fresh, current=known)

    def _update(self, **fields: Any) -> mesh_pb2.WatchResponse:
        self.nonce += 1
        return mesh_pb2.WatchResponse(update=mesh_pb2.Update(nonce=self.nonce, **fields))

    def put(self, *resources: mesh_pb2.Resource) -> int:
        """New or changed, at once for all who watch; the nonce."""
        for one in resources:
            self.resources[one.id.kind, one.id.name] = one
        return self.send(self._update(resources=resources))

    def remove(self, kind: Any, name: str, version: int) -> int:
        self.resources.pop((kind, name), None)
        gone = mesh_pb2.ResourceVersion(kind=kind, name=name, version=version)
        return self.send(self._update(removed=[gone]))

    def send(self, message: Any) -> int:
        for watch in self.live:
            watch.out.put_nowait(message)
        return self.nonce

    async def export(self, request: bytes, context: Any) -> bytes:
        if self.refuse is not None:
            await context.abort(*self.refuse)
        self.exports.append(trace_service_pb2.ExportTraceServiceRequest.FromString(request))
        self.export_metadata.append(dict(context.invocation_metadata()))
        return b""

    def spans(self) -> list[Any]:
        groups = [group for one in self.exports for group in one.resource_spans]
        return [span for group in groups for scope in group.scope_spans for span in scope.spans]

    async def DeliverFeedback(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Takes each item once; one that `refuse_feedback` speaks against ends the call."""
        self.deliveries.append(request)
        for item in request.feedback:
            refusal = self.refuse or self.refuse_feedback(item)
            if refusal is not None:
                await context.abort(*refusal)
        reply = feedback_pb2.CollectFeedbackReply()
        for item in request.feedback:
            outcome = "duplicate" if item.feedback_id in self.feedback else "taken"
            self.feedback.setdefault(item.feedback_id, item)
            reply.outcomes.add(feedback_id=item.feedback_id, outcome=outcome)
        return reply

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "sidecars do not register")

    Renew = Deregister = Register

    # -- as a process ----------------------------------------------------------------------------------------------

    async def control(self, request: bytes, context: Any) -> bytes:
        asked = json.loads(request)
        return json.dumps(await getattr(self, f"do_{asked.pop('op')}")(**asked)).encode()

    async def do_put(self, agents: list[Any], version: int, registered: Mapping[str, list[str]] | None = None) -> int:
        """Agents as in a configuration file, and addresses that registered, all at one version."""
        found = [policy(agent_from_mapping(one, f"agents[{at}]"), version) for at, one in enumerate(agents)]
        for name, addresses in (registered or {}).items():
            found.append(endpoints(name, version, *[{"address": one} for one in addresses]))
        return self.put(*found)

    async def do_seen(self) -> dict[str, Any]:
        """Everything the sidecars said, and how many spans came with which batch numbers."""
        return {
            "live": len(self.live),
            "watches": [
                {"hello": MessageToDict(one.hello), "said": [MessageToDict(said) for said in one.said]}
                for one in self.watches
            ],
            "spans": [
                {"trace_id": one.trace_id.hex(), "attributes": {a.key: a.value.string_value for a in one.attributes}}
                for one in self.spans()
            ],
        }


class Extra(grpc.GenericRpcHandler):
    """The span collector, and the test's own method."""

    def __init__(self, peer: MeshPeer):
        self._methods = {
            EXPORT: grpc.unary_unary_rpc_method_handler(peer.export),
            CONTROL: grpc.unary_unary_rpc_method_handler(peer.control),
        }

    def service(self, details: Any) -> Any:
        return self._methods.get(details.method)


async def start(peer: MeshPeer, port: int = 0, tls: grpc.ServerCredentials | None = None) -> tuple[Any, int]:
    """A server that is up, and its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    mesh_pb2_grpc.add_MeshServicer_to_server(peer, server)
    server.add_generic_rpc_handlers((Extra(peer),))
    where = f"127.0.0.1:{port}"
    bound = server.add_secure_port(where, tls) if tls is not None else server.add_insecure_port(where)
    await server.start()
    return server, bound


@contextlib.asynccontextmanager
async def serving(peer: MeshPeer, port: int = 0, tls: grpc.ServerCredentials | None = None) -> AsyncIterator[int]:
    """The port of a server in the test's loop."""
    server, bound = await start(peer, port, tls)
    try:
        yield bound
    finally:
        await server.stop(0)


async def main_async(options: argparse.Namespace) -> None:
    peer = MeshPeer(options.name)
    if options.initial:
        await peer.do_put(**json.loads(options.initial))
    server, port = await start(peer, options.port)
    announce({"port": port}, options.ports_file)
    await until_signal()
    await server.stop(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="one")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--initial", default="", help="the arguments of do_put as JSON: what its store holds")
    parser.add_argument("--ports-file", default="")
    uvloop.run(main_async(parser.parse_args()))


if __name__ == "__main__":
    main()
