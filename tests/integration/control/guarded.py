"""The guard as a process, with a real grpc.aio server as another one behind it."""

from __future__ import annotations

import json
import socket
from typing import Any

import grpc

from tests.sidecars import Calls, Mesh, Peer, channel_to


class GuardProcess:
    """`target` is where clients dial, `peer` the server behind."""

    def __init__(self, mesh: Mesh, name: str, *arguments: str, beside: GuardProcess | None = None):
        """`beside`: another guard of the same server."""
        self.path = beside.path if beside else str(mesh.children.directory / f"{name}.sock")
        self.peer: Peer = beside.peer if beside else mesh.peer(f"{name}-behind", "--unix", f"unix:{self.path}")
        self.child, self._ports = mesh.module(name, "bench.guard_server", "--backend", self.path, *arguments)

    @property
    def port(self) -> int:
        return self._ports["port"]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def figures(self) -> dict[str, int]:
        with socket.create_connection(("127.0.0.1", self._ports["figures"]), timeout=10) as link:
            return json.loads(link.makefile().readline())

    def channel(self, credentials: grpc.ChannelCredentials | None = None, options: Any = ()) -> grpc.Channel:
        return channel_to(self.target, credentials, options)

    def serves(self) -> bool:
        """Whether a new client's call comes back."""
        with self.channel() as channel:
            return Calls(channel).unary(b"alive").result() == b"alive"

    def is_settled(self) -> bool:
        """Whether nothing is left of any call."""
        figures = self.figures()
        return not (figures["streams_open"] or figures["held_bytes"])
