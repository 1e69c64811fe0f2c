"""Looks at an instance from outside: whether its port answers, whether it says that it serves, whether it registered.

Always holds: a look takes no longer than its bound and raises nothing; what is wrong comes back in words.

Deliberately not here: what follows from it (`local_instance`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.address import Address

_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: what is asked is whether one can be had
)
_MAX_PORTS_BYTES: Final = 4_096
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING


async def connects(address: Address, timeout_s: float) -> str:
    """Empty: something accepts connections there."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError:
        return f"no connection within {timeout_s:g} s"
    except OSError as error:
        return f"no connection: {error.strerror or error}"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return ""


async def serves(address: Address, timeout_s: float) -> str:
    """Empty: grpc.health.v1 says SERVING of the whole server."""
    channel = grpc.aio.insecure_channel(str(address), _OPTIONS)
    try:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            return "it does not offer grpc.health.v1: say ready: port, or add the service"
        return f"its health check fails: {error.code().name}"
    finally:
        await channel.close()
    if reply.status == _SERVING:
        return ""
    return f"it says {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)} of its health"


async def answers(address: Address, timeout_s: float) -> str:
    """Empty: a gRPC server is there and does not say that it is not serving, whether or not it offers health."""
    wrong = await serves(address, timeout_s)
    return "" if wrong.startswith("it does not offer") else wrong


def told_port(file: Path) -> int:
    """The port that a program has written down as {"port": n}; 0: not (yet)."""
    try:
        with file.open("rb") as source:
            found = json.loads(source.read(_MAX_PORTS_BYTES))
    except (OSError, ValueError, RecursionError):
        return 0
    port = found.get("port") if isinstance(found, dict) else None
    return port if type(port) is int and 0 < port < 65_536 else 0


class Ports:
    """Ports given to instances. Not one is given twice while its instance lives; between here and the program another
    process may take it: then the instance dies at its start, and the next one gets another."""

    def __init__(self) -> None:
        self._held: set[int] = set()
        self._next: dict[tuple[int, int], int] = {}

    def hold(self, port: int) -> None:
        self._held.add(port)

    def give(self, port: int) -> None:
        self._held.discard(port)

    def take(self, host: str, ports: tuple[int, int] | None) -> int:
        """A free one; OSError: there is none."""
        if ports is None:
            for _ in range(100):
                port = _bound(host, 0)
                if port not in self._held:
                    self._held.add(port)
                    return port
            raise OSError("there is no free port")
        low, high = ports
        first = self._next.get(ports, low)
        for port in (*range(first, high + 1), *range(low, first)):  # in turn: one that was just left rests
            if port in self._held:
                continue
            try:
                _bound(host, port)
            except OSError:
                continue
            self._held.add(port)
            self._next[ports] = port + 1 if port < high else low
            return port
        raise OSError(f"all ports from {low} to {high} are taken")


def _bound(host: str, port: int) -> int:
    """Binds and lets go; OSError: somebody has it."""
    kind, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(kind, socket.SOCK_STREAM) as listener:
        if port:  # connections that have ended do not keep the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        return int(listener.getsockname()[1])
