"""The servers of simulated agents: grpc.aio, the native Agent API, a raw echo service and health.

Always holds: a call that is cancelled or past its deadline gives its place back; SIGTERM turns health to NOT_SERVING,
lets calls finish for a moment and ends with code 0. `/bench.Echo/Unary` and `/bench.Echo/Stream` take the same time
and fail at the same rate as Invoke, with bytes instead of messages. Deliberately not here: any model.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health  # pyright: ignore[reportAttributeAccessIssue] # not in its stubs

from bench.agents.behaviour import Behaviour, output_tokens, reply_words, usage
from bench.serve import announce, until_signal
from outrider.registration import AsyncRegistration
from outrider.v1 import agent_pb2, agent_pb2_grpc

_MESSAGE_BYTES = 64 * 1024 * 1024
_ECHO_CHUNK_BYTES = 1024


class Work:
    """The places and the clockwork shared by all services of one agent process."""

    def __init__(self, behaviour: Behaviour, seed: int) -> None:
        self.behaviour = behaviour
        self.rng = random.Random(seed)
        self.places = asyncio.Semaphore(behaviour.concurrency)

    @asynccontextmanager
    async def place(self, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
        """One of the places, waited for or refused as the behaviour says."""
        if self.behaviour.refuses and self.places.locked():
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this simulated agent has no free place")
        async with self.places:
            yield

    async def first_token(self, context: grpc.aio.ServicerContext) -> None:
        """Wait until the first token is due, or end the call as the failure rate says."""
        if self.behaviour.fails(self.rng):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this simulated agent fails at its configured rate")
        await asyncio.sleep(self.behaviour.first_token_s(self.rng))


class AgentService(agent_pb2_grpc.AgentServicer):
    def __init__(self, name: str, work: Work) -> None:
        self.name, self.work = name, work

    async def Invoke(self, request: agent_pb2.InvokeRequest, context: grpc.aio.ServicerContext):  # noqa: N802
        behaviour = self.work.behaviour
        tokens = output_tokens(request, behaviour)
        async with self.work.place(context):
            await self.work.first_token(context)
            await asyncio.sleep(behaviour.tokens_s(tokens))
        return agent_pb2.InvokeReply(
            parts=[agent_pb2.Part(text=" ".join(reply_words(request, tokens)))],
            finish_reason=agent_pb2.FINISH_REASON_STOP,
            model="simulated",
            usage=usage(request, tokens),
            attributes={"instance": self.name},
        )

    async def InvokeStream(  # noqa: N802
        self, request: agent_pb2.InvokeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[agent_pb2.InvokeChunk]:
        behaviour = self.work.behaviour
        tokens = output_tokens(request, behaviour)
        words = list(reply_words(request, tokens))
        async with self.work.place(context):
            await self.work.first_token(context)
            for start in range(0, tokens, behaviour.chunk_tokens):
                chunk = words[start : start + behaviour.chunk_tokens]
                yield agent_pb2.InvokeChunk(text=("" if start == 0 else " ") + " ".join(chunk))
                await asyncio.sleep(behaviour.tokens_s(len(chunk)))
        finish = agent_pb2.Finish(reason=agent_pb2.FINISH_REASON_STOP, model="simulated", usage=usage(request, tokens))
        finish.attributes["instance"] = self.name
        yield agent_pb2.InvokeChunk(finish=finish)


class EchoService(grpc.GenericRpcHandler):
    """Bytes in, the same bytes out: whole, or a kilobyte at a time."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._methods = {
            "/bench.Echo/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/bench.Echo/Stream": grpc.unary_stream_rpc_method_handler(self.stream),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._methods.get(str(handler_call_details.method))

    async def unary(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        async with self.work.place(context):
            await self.work.first_token(context)
        return request

    async def stream(self, request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        behaviour = self.work.behaviour
        async with self.work.place(context):
            await self.work.first_token(context)
            for start in range(0, len(request), _ECHO_CHUNK_BYTES):
                yield request[start : start + _ECHO_CHUNK_BYTES]
                await asyncio.sleep(behaviour.tokens_s(behaviour.chunk_tokens))


@dataclass(frozen=True, slots=True)
class Instance:
    """One simulated agent instance. `port` 0: any free one."""

    name: str
    agent_id: str
    behaviour: Behaviour
    seed: int
    port: int = 0


async def serve(instances: Sequence[Instance], ports_file: str, control: Sequence[str] = ()) -> None:
    """Serve all instances until a signal, registered with the control plane where one is named."""
    started = [await _start(instance) for instance in instances]
    async with AsyncExitStack() as registrations:
        for instance, (_, _, port) in zip(instances, started, strict=True):
            if control:
                address = f"127.0.0.1:{port}"
                registration = AsyncRegistration(
                    control, instance.agent_id, address, {"instance": instance.name}, instance.behaviour.concurrency
                )
                await registrations.enter_async_context(registration)
        ports = {instance.name: port for instance, (_, _, port) in zip(instances, started, strict=True)}
        announce(ports if len(ports) > 1 else {"port": started[0][2]}, ports_file)
        await until_signal()
    await asyncio.gather(*(_stop(server, checks) for server, checks, _ in started))


@asynccontextmanager
async def running(instance: Instance) -> AsyncIterator[int]:
    """One instance that registers nowhere; gives its port."""
    server, checks, port = await _start(instance)
    try:
        yield port
    finally:
        await _stop(server, checks)


async def _start(instance: Instance) -> tuple[grpc.aio.Server, health.HealthServicer, int]:
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MESSAGE_BYTES)]
    server = grpc.aio.server(options=options)
    work = Work(instance.behaviour, instance.seed)
    agent_pb2_grpc.add_AgentServicer_to_server(AgentService(instance.name, work), server)
    server.add_generic_rpc_handlers((EchoService(work),))
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for service in ("", "outrider.v1.Agent"):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    bound = server.add_insecure_port(f"127.0.0.1:{instance.port}")
    await server.start()
    return server, checks, bound


async def _stop(server: grpc.aio.Server, checks: health.HealthServicer) -> None:
    await checks.enter_graceful_shutdown()
    await server.stop(2.0)
