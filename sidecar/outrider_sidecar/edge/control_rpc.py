"""Unary calls to the control plane: to the one that is watched, else to the first of the others that is there.

Always holds: one connection per control plane, shared by all who call; a token that was exchanged is read anew.

Deliberately not here: the watch (`edge.mesh`), which control plane is in use (`edge.control_plane`).
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider_sidecar.core import errors
from outrider_sidecar.edge.control_plane import ControlPlane
from outrider_sidecar.edge.rpc import Rpc, RpcReply


class ControlRpc:
    """Calls to any of the control planes of one mesh; `links` are one for each, in their order."""

    def __init__(self, plane: ControlPlane, links: Sequence[Rpc]):
        self._plane = plane
        self._links = tuple(links)

    async def unary(self, path: str, message: bytes, timeout_s: float) -> RpcReply:
        """One call; each control plane has its part of `timeout_s`."""
        links = self._links
        each_s = timeout_s / len(links)
        first = self._plane.current
        reply = RpcReply(errors.UNAVAILABLE)
        for step in range(len(links)):
            rpc = links[(first + step) % len(links)]
            reply = await rpc.unary(path, message, each_s)
            if reply.status == errors.UNAUTHENTICATED and rpc.forget_fields():
                reply = await rpc.unary(path, message, each_s)  # the token was exchanged since the dial
            if reply.status != errors.UNAVAILABLE:
                break
        return reply

    async def close(self) -> None:
        """End the connections."""
        for rpc in self._links:
            await rpc.close()
