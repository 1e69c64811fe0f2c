"""Calls to one of several control planes: the one that is watched first, another where it is gone."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.address import Address
from outrider_sidecar.config import Settings
from outrider_sidecar.core import errors
from outrider_sidecar.edge.control_plane import ControlPlane
from outrider_sidecar.edge.control_rpc import ControlRpc
from outrider_sidecar.edge.rpc import RpcReply


class Link:
    """A connection to a control plane that gives prepared answers."""

    def __init__(self, *statuses: int, exchanged: bool = False):
        self._statuses = list(statuses)
        self._exchanged = exchanged
        self.asked = 0

    async def unary(self, path: str, message: bytes, timeout_s: float) -> RpcReply:
        self.asked += 1
        assert timeout_s == 5.0
        return RpcReply(self._statuses.pop(0))

    def forget_fields(self) -> bool:
        return self._exchanged


@pytest.mark.parametrize(
    ("current", "first", "second", "status", "asked"),
    [
        (0, Link(errors.OK), Link(), errors.OK, (1, 0)),
        (1, Link(), Link(errors.OK), errors.OK, (0, 1)),
        (0, Link(errors.UNAVAILABLE), Link(errors.OK), errors.OK, (1, 1)),
        (1, Link(errors.OK), Link(errors.UNAVAILABLE), errors.OK, (1, 1)),
        (0, Link(errors.UNAVAILABLE), Link(errors.UNAVAILABLE), errors.UNAVAILABLE, (1, 1)),
        (0, Link(errors.RESOURCE_EXHAUSTED), Link(), errors.RESOURCE_EXHAUSTED, (1, 0)),
        (0, Link(errors.UNAUTHENTICATED), Link(), errors.UNAUTHENTICATED, (1, 0)),
        (0, Link(errors.UNAUTHENTICATED, errors.OK, exchanged=True), Link(), errors.OK, (2, 0)),
    ],
)
async def test_calls_go_to_the_control_plane_that_is_watched_else_to_another(
    current: int, first: Any, second: Any, status: int, asked: tuple[int, int]
) -> None:
    plane = ControlPlane(Settings(control=(Address("a", 1), Address("b", 1))), lambda _: lambda: None)
    plane.current = current
    assert (await ControlRpc(plane, [first, second]).unary("/a.B/C", b"message", 10.0)).status == status
    assert (first.asked, second.asked) == asked
