"""The operator's API as a control plane serves it, for tests: real store, publisher, ledger, reader and gRPC server.

Always holds: nothing is replaced but the clock and the guard, whose metadata the caller writes itself; what is started
is closed when the block ends.
"""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import grpc.aio

from outrider.policy import Agent
from outrider.v1 import mesh_pb2, mesh_pb2_grpc, operator_pb2, operator_pb2_grpc
from outrider_control.api import auth
from outrider_control.api.feedback_api import FeedbackApi
from outrider_control.api.operator_service import OperatorService, add_reflection
from outrider_control.core.sample import Sample, SeriesKey
from outrider_control.intake.ledger import Ledger, Prepared
from outrider_control.intake.prices import Prices
from outrider_control.intake.reader import Reader
from outrider_control.loops.experiment.loop import ExperimentLoop
from outrider_control.loops.rollout.loop import RolloutLoop
from outrider_control.loops.rollout.webhook import Webhooks
from outrider_control.loops.scale.decide import decide
from outrider_control.loops.scale.loop import ScaleLoop
from outrider_control.loops.scale.types import Engine
from outrider_control.loops.tally import Tallies
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.mesh_service import MeshService
from outrider_control.publish.publisher import Publisher
from outrider_control.state import tokens
from outrider_control.state.database import Database
from outrider_control.state.kept_spans import KeptSpan
from tests.rollouts import Tallied

LOOPBACK = ((auth.PEER, "127.0.0.1:5555"), (auth.PEER_LOOPBACK, "1"))
REMOTE = ((auth.PEER, "192.0.2.1:5555"), (auth.PEER_LOOPBACK, "0"))
NOW_MS = 1_800_000_000_000
PRICES = {"m1": {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0}}


def _itself(engine: Engine) -> Engine:
    return engine


class Plane:
    """A control plane's services on a unix socket."""

    def __init__(self, db: Database, defaults: Agent, engines: Mapping[str, Engine]):
        self.now_ms = NOW_MS
        self.db = db
        self.ledger = Ledger(db, self.clock_ms)
        self.fleet = Fleet("control-1", self.clock_ms)
        self.publisher = Publisher(db, self.fleet, self.clock_ms, "1.2.3")
        self.reader = Reader(db)
        makers = {name: functools.partial(_itself, engine) for name, engine in engines.items()}
        self.scale = ScaleLoop(db, self.publisher, makers, lambda: True, self.clock_ms, random.Random(1), decide=decide)
        self.tally = Tallied()
        self.marked: list[str] = []  # traces whose spans are to be kept
        webhooks = Webhooks(db, self.clock_ms, random.Random(1))
        self.rollouts = RolloutLoop(db, self.publisher, self.tally, webhooks, lambda: True, self.clock_ms)
        tallies = Tallies(db)
        self.experiments = ExperimentLoop(
            db, self.publisher, tallies, lambda _: None, lambda: True, self.clock_ms, random.Random(1), look_ms=0
        )
        self.authenticator = auth.Authenticator(
            lambda token, now_ms: db.read(tokens.find, token, now_ms), self.clock_ms
        )
        self.service = OperatorService(
            db,
            self.publisher,
            self.fleet,
            self.reader,
            lambda: operator_pb2.Status(instance_id="control-1", store=db.dialect),
            self.clock_ms,
            defaults=defaults,
            on_token_revoked=self.authenticator.forget_tokens,
            scales=self.scale,
            experiments=self.experiments,
            feedback=FeedbackApi(db, self.clock_ms, self._marked),
            rollouts=self.rollouts,
            price=Prices(PRICES).cost_nano_usd,
        )
        self.channel: grpc.aio.Channel
        self.stub: Any

    async def _marked(self, trace_id: str) -> None:
        self.marked.append(trace_id)

    def clock_ms(self) -> int:
        return self.now_ms

    async def call(self, method: str, request: Any, metadata: Sequence[tuple[str, str]] = LOOPBACK) -> Any:
        """The reply of one unary method."""
        return await getattr(self.stub, method)(request, metadata=metadata, timeout=20)

    async def refused(self, method: str, request: Any, metadata: Sequence[tuple[str, str]] = LOOPBACK) -> Any:
        """The error of one unary method, which must be one."""
        try:
            reply = await self.call(method, request, metadata)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError(f"{method} answered {reply}")

    async def apply(self, *policies: Any, reason: str = "test") -> operator_pb2.ApplyAgentsReply:
        """Apply policies as they are, and have the publisher see them."""
        agents = [operator_pb2.AgentConfiguration(policy=policy) for policy in policies]
        reply = await self.call("ApplyAgents", operator_pb2.ApplyAgentsRequest(agents=agents, reason=reason))
        await self.publisher.refresh()
        return reply

    async def scale_turn(self) -> None:
        """One turn of the scale loop, a second later."""
        self.now_ms += 1_000
        await self.scale.turn()
        await self.scale.settled()

    async def take_in(self, samples: Sequence[Sample] = (), kept: Sequence[KeptSpan] = ()) -> None:
        """Count samples and keep spans."""
        assert await self.ledger.commit(Prepared("", -1, samples, kept, ()))


@asynccontextmanager
async def operator_plane(
    db: Database, folder: Path, defaults: Agent | None = None, engines: Mapping[str, Engine] = MappingProxyType({})
) -> AsyncIterator[Plane]:
    """A running control plane on an open store; the store stays open. The scale loop takes the turns it is told to."""
    plane = Plane(db, defaults or Agent("defaults"), engines)
    await plane.ledger.start()
    await plane.publisher.start()
    server = grpc.aio.server(interceptors=[auth.Interceptor(plane.authenticator)])
    plane.service.add_to(server)
    MeshService(plane.publisher).add_to(server)
    add_reflection(server)
    target = f"unix:{folder / 'operator.sock'}"
    server.add_insecure_port(target)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(target) as channel:
            plane.channel = channel
            plane.stub = operator_pb2_grpc.OperatorStub(channel)
            yield plane
    finally:
        await plane.scale.close()
        await plane.publisher.close()
        await server.stop(None)
        await plane.ledger.close()


class Watcher:
    """A sidecar's stream, as far as operators see it."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.epochs = mesh_pb2.Epochs()
        self.policies: dict[str, int] = {}

    async def take(self, refuse: dict[str, str] | None = None) -> mesh_pb2.Update:
        """Take the next update and answer it; policies named in `refuse` are refused for that reason."""
        update = (await self.stream.read()).update
        refused = []
        for resource in update.resources:
            if resource.id.kind == mesh_pb2.RESOURCE_KIND_EPOCHS:
                self.epochs = resource.epochs
            elif resource.id.kind == mesh_pb2.RESOURCE_KIND_POLICY:
                self.policies[resource.id.name] = resource.id.version
                if refuse and resource.id.name in refuse:
                    refused.append(mesh_pb2.Refusal(resource=resource.id, reason=refuse[resource.id.name]))
        ack = mesh_pb2.Ack(nonce=update.nonce, refused=refused)
        await self.stream.write(mesh_pb2.WatchRequest(ack=ack))
        return update

    async def load(self, *agents: mesh_pb2.AgentLoad) -> None:
        """Report load."""
        await self.stream.write(mesh_pb2.WatchRequest(load=mesh_pb2.LoadReport(agents=agents)))

    async def announce(self, *endpoints: mesh_pb2.Endpoint) -> None:
        """Speak for endpoints."""
        announcement = mesh_pb2.Announcement(endpoints=endpoints)
        await self.stream.write(mesh_pb2.WatchRequest(announcement=announcement))


@asynccontextmanager
async def watcher(plane: Plane, instance_id: str = "sidecar-1", **hello: Any) -> AsyncIterator[Watcher]:
    """A connected sidecar that has taken the first, full update."""
    stream: Any = mesh_pb2_grpc.MeshStub(plane.channel).Watch(metadata=LOOPBACK)
    greeting = mesh_pb2.Hello(instance_id=instance_id, node=f"node-of-{instance_id}", **hello)
    await stream.write(mesh_pb2.WatchRequest(hello=greeting))
    assert (await stream.read()).WhichOneof("message") == "welcome"
    watching = Watcher(stream)
    await watching.take()
    try:
        yield watching
    finally:
        stream.cancel()


def sample(agent_id: str, at_ms: int = NOW_MS - 1_000, **fields: Any) -> Sample:
    """A call of one millisecond that went well, but for `fields`."""
    key = SeriesKey(agent_id, *(fields.pop(name, "") for name in ("method", "variant", "endpoint", "tenant")))
    base: dict[str, Any] = {
        "call": True, "status": "OK", "failed": False, "cancelled": False, "total_us": 1_000, "first_chunk_us": 0,
        "queue_us": 0, "cache": "", "tier": "", "input_tokens": 0, "output_tokens": 0, "cache_read_tokens": 0,
        "cache_write_tokens": 0, "cached_tokens": 0, "saved_tokens": 0, "cost_nano_usd": 0, "priced": False,
        "unpriced": False,
    }  # fmt: skip
    return Sample(key=key, end_ms=at_ms, **(base | fields))
