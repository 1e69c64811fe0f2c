"""An agent instance tells the control plane where it can be reached, for as long as it runs.

`with Registration(["127.0.0.1:7700"], "tax-eu-001", "10.0.0.5:9001"): server.wait_for_termination()`, or the same with
`async with AsyncRegistration(...)`.

Always holds: once started nothing is raised into the agent: what goes wrong is logged and tried again, at the next
control plane first. The endpoint is registered again when the control plane does not know its lease (any more), and
taken away when the block ends. Calls never depend on it: sidecars go on with the endpoints they know.

Deliberately not here: health (sidecars look for themselves), load (the ingress sidecar reports it).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import grpc
import grpc.aio

from outrider.address import parse_address
from outrider.v1 import mesh_pb2, mesh_pb2_grpc

DEFAULT_TTL_MS = 15_000
CALL_TIMEOUT_S = 5.0
GOODBYE_TIMEOUT_S = 1.0
BASE_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
MAX_REFUSED_BACKOFF_S = 30.0  # a wrong token or a wrong field mends only by somebody's hand
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
)
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # the next control plane is tried instead
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

_LOG = logging.getLogger("outrider.registration")


class Call(NamedTuple):
    """What is to be asked of a control plane: one of the methods' names, with its request."""

    target: str
    method: str
    request: Any


class Course:
    """What to ask, of whom and when: no I/O and no clock. `next`, ask, then `replied` or `failed`, wait, and again."""

    def __init__(self, control: Sequence[str], request: mesh_pb2.RegisterRequest, chance: random.Random):
        self.registered = False
        self._control = control
        self._at = 0
        self._request = request
        self._chance = chance
        self._lease_id = ""
        self._ttl_ms = DEFAULT_TTL_MS
        self._failures = 0

    def next(self) -> Call:
        target = self._control[self._at]
        if self.registered:
            return Call(target, "Renew", mesh_pb2.RenewRequest(lease_ids=[self._lease_id]))
        return Call(target, "Register", self._request)

    def goodbyes(self) -> list[Call]:
        """The last thing to ask, of one after the other until one answers; empty: no lease was ever given."""
        if not self._lease_id:
            return []
        targets = [*self._control[self._at :], *self._control[: self._at]]
        request = mesh_pb2.DeregisterRequest(lease_id=self._lease_id)
        return [Call(target, "Deregister", request) for target in targets]

    def replied(self, call: Call, reply: Any) -> float:
        """How long to wait, seconds."""
        self._failures = 0
        if call.method == "Register":
            if not self.registered:
                _LOG.info("registered %s at %s", self._request.endpoint.address, call.target)
            self.registered = True
            self._lease_id = reply.lease_id
            self._ttl_ms = reply.ttl_ms or DEFAULT_TTL_MS
        elif self._lease_id in reply.unknown:
            _LOG.warning("%s does not know the lease any more: registering again", call.target)
            self.registered = False
            return 0.0
        return self._ttl_ms / 3_000 * self._chance.uniform(0.9, 1.0)

    def failed(self, call: Call, code: grpc.StatusCode, details: str) -> float:
        """How long to wait, seconds: not at all while there are control planes that were not tried."""
        self._failures += 1
        level = logging.ERROR if code in _REFUSALS else logging.WARNING
        _LOG.log(level, "%s at %s failed: %s: %s", call.method, call.target, code.name, details)
        self._at = (self._at + 1) % len(self._control)
        if self._failures % len(self._control):
            return 0.0
        most_s = MAX_REFUSED_BACKOFF_S if code in _REFUSALS else MAX_BACKOFF_S
        rounds = self._failures // len(self._control)
        return min(BASE_BACKOFF_S * 2 ** min(rounds - 1, 16), most_s) * self._chance.uniform(0.5, 1.0)


class _Settings:
    """What both kinds are made of. ValueError says which argument is wrong."""

    def __init__(
        self,
        control: Sequence[str] | str,
        agent_id: str,
        address: str,
        labels: Mapping[str, str] | None = None,
        capacity: int = 0,
        *,
        weight: int = 1,
        ttl_ms: int = DEFAULT_TTL_MS,
        token: str = "",
        tls: grpc.ChannelCredentials | None = None,
    ):
        targets = [control] if isinstance(control, str) else list(control)
        if not targets:
            raise ValueError("control: name at least one control plane, as in 127.0.0.1:7700")
        if not agent_id:
            raise ValueError("agent_id: is empty")
        for name, text in (*[("control", target) for target in targets], ("address", address)):
            try:
                parse_address(text)
            except ValueError as error:
                raise ValueError(f"{name}: {text!r} {error}") from None
        self._targets = targets
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._tls = tls
        endpoint = mesh_pb2.Endpoint(
            agent_id=agent_id, address=address, weight=weight, labels=labels or {}, capacity=capacity
        )
        request = mesh_pb2.RegisterRequest(endpoint=endpoint, ttl_ms=ttl_ms)
        self._course = Course(targets, request, random.Random())

    @property
    def registered(self) -> bool:
        """Whether a control plane has given a lease that it is not known to have forgotten."""
        return self._course.registered


class Registration(_Settings):
    """Blocking: a background thread registers, renews and, when the block ends, deregisters."""

    _thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("a Registration starts once")
        self._ended = threading.Event()
        self._channels: dict[str, grpc.Channel] = {}
        self._thread = threading.Thread(target=self._run, name="outrider-registration", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Deregisters; returns when that is done, or could not be."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            wait_s = 0.0
            while not self._ended.wait(wait_s):
                wait_s = self._step()
            for goodbye in self._course.goodbyes():
                with contextlib.suppress(grpc.RpcError):
                    self._ask(goodbye, GOODBYE_TIMEOUT_S)
                    break
        except Exception:  # noqa: BLE001 - nothing may be raised into the agent
            _LOG.exception("the registration ended by a fault of its own")
        finally:
            for channel in self._channels.values():
                channel.close()

    def _step(self) -> float:
        call = self._course.next()
        try:
            reply = self._ask(call, CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            code: Any = error
            return self._course.failed(call, code.code(), code.details())
        return self._course.replied(call, reply)

    def _ask(self, call: Call, timeout_s: float) -> Any:
        channel = self._channels.get(call.target)
        if channel is None:
            if self._tls is None:
                channel = grpc.insecure_channel(call.target, _OPTIONS)
            else:
                channel = grpc.secure_channel(call.target, self._tls, _OPTIONS)
            self._channels[call.target] = channel
        stub = mesh_pb2_grpc.MeshStub(channel)
        future = getattr(stub, call.method).future(call.request, timeout=timeout_s, metadata=self._metadata)
        # The block may end while a control plane is silent: that is waited for no longer than a goodbye takes.
        while not future.done() and not (self._ended.is_set() and call.method != "Deregister"):
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.RpcError):
                future.exception(timeout=0.1)
        if not future.done():
            future.cancel()
        try:
            return future.result()
        except grpc.FutureCancelledError:
            raise _Ended from None


class _Ended(grpc.RpcError):
    """The block ended while a call was under way."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return "the registration ends"


class AsyncRegistration(_Settings):
    """The same as a task of the running loop."""

    _task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._task is not None:
            raise RuntimeError("an AsyncRegistration starts once")
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._task = asyncio.get_running_loop().create_task(self._run(), name="outrider-registration")

    async def stop(self) -> None:
        """Deregisters; returns when that is done, or could not be."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for goodbye in self._course.goodbyes():
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._ask(goodbye, GOODBYE_TIMEOUT_S)
                break
        for channel in self._channels.values():
            await channel.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _run(self) -> None:
        while True:
            try:
                wait_s = await self._step()
            except Exception:  # noqa: BLE001 - nothing may be raised into the agent
                _LOG.exception("a step of the registration failed by a fault of its own")
                wait_s = MAX_BACKOFF_S
            await asyncio.sleep(wait_s)

    async def _step(self) -> float:
        call = self._course.next()
        try:
            reply = await self._ask(call, CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return self._course.failed(call, error.code(), error.details() or "")
        return self._course.replied(call, reply)

    async def _ask(self, call: Call, timeout_s: float) -> Any:
        channel = self._channels.get(call.target)
        if channel is None:
            if self._tls is None:
                channel = grpc.aio.insecure_channel(call.target, _OPTIONS)
            else:
                channel = grpc.aio.secure_channel(call.target, self._tls, _OPTIONS)
            self._channels[call.target] = channel
        stub = mesh_pb2_grpc.MeshStub(channel)
        return await getattr(stub, call.method)(call.request, timeout=timeout_s, metadata=self._metadata)
