"""CollectFeedback by a real client, delivered to a real server that comes, goes and refuses."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from outrider.address import Address
from outrider.feedback_check import MAX_ITEMS
from outrider.policy import Agent, EndpointPolicy, Policy
from outrider.v1 import feedback_pb2, sidecar_pb2, sidecar_pb2_grpc
from outrider_sidecar.config import Settings
from outrider_sidecar.core.metric import Family
from outrider_sidecar.edge import feedback as edge
from outrider_sidecar.edge.control_plane import ControlPlane
from outrider_sidecar.edge.control_rpc import ControlRpc
from outrider_sidecar.edge.feedback import Feedback
from outrider_sidecar.edge.feedback_spool import FileSpool, MemorySpool, Spool
from outrider_sidecar.edge.own_services import sidecar_service
from outrider_sidecar.edge.parts import control_rpc
from tests.in_process import InProcess, clock, in_process
from tests.mesh_peer import MeshPeer, serving

CALL = "00f067aa0ba902b7"
BYTES = 1024 * 1024


def item(at: int = 0, **fields: Any) -> feedback_pb2.Feedback:
    return feedback_pb2.Feedback(**({"call_id": f"{at + 1:016x}", "rating": 3} | fields))


def request(*items: feedback_pb2.Feedback) -> feedback_pb2.CollectFeedbackRequest:
    return feedback_pb2.CollectFeedbackRequest(feedback=items or [item()])


class Scene:
    """A sidecar that takes feedback; `outcomes` collects items."""

    def __init__(self, mesh: InProcess, feedback: Feedback, spool: Spool, stub: Any):
        self.mesh = mesh
        self.feedback = feedback
        self.spool = spool
        self.stub = stub

    async def collect(self, *items: feedback_pb2.Feedback, **kwargs: Any) -> feedback_pb2.CollectFeedbackReply:
        return await self.stub.CollectFeedback(request(*items), **({"timeout": 30} | kwargs))

    async def outcomes(self, *items: feedback_pb2.Feedback, **kwargs: Any) -> list[str]:
        return [one.outcome for one in (await self.collect(*items, **kwargs)).outcomes]

    async def refused(self, *items: feedback_pb2.Feedback) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.collect(*items)
        return caught.value


def shown(feedback: Feedback, name: str) -> dict:
    (family,) = [one for one in feedback.families() if isinstance(one, Family) and one.name == name]
    return dict(family.samples)


@contextlib.asynccontextmanager
async def scene(
    port: int = 0, spool: Spool | None = None, min_batch: int = 1, now: Callable[[], float] | None = None
) -> AsyncIterator[Scene]:
    """`port`: of the control plane; 0: there is none."""
    found: list[Feedback] = []
    used = spool or MemorySpool(BYTES)
    controls: list[ControlRpc] = []

    def prepare(mesh: InProcess) -> None:
        settings = Settings(control=(Address("127.0.0.1", port),) if port else ())
        plane = ControlPlane(settings, lambda _: lambda: None)
        controls.extend([control_rpc(plane, mesh.reactor)] if port else [])
        found.append(Feedback(mesh.runtime, controls[0] if port else None, used, "instance-1", min_batch))
        mesh.runtime.own = sidecar_service({b"CollectFeedback": found[0].step})

    policy = Policy({"a": Agent("a", (EndpointPolicy("127.0.0.1:1"),))}, "a")
    async with (
        in_process(prepare, policy, now=now or clock) as mesh,
        grpc.aio.insecure_channel(mesh.target, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        feedback = found[0]
        feedback.start()
        try:
            yield Scene(mesh, feedback, used, sidecar_pb2_grpc.SidecarStub(channel))
        finally:
            await feedback.close()
            for control in controls:
                await control.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "HOLD_S", 0.05)
    monkeypatch.setattr(edge, "control_delay_s", lambda failures, rng: 0.02)


async def test_what_the_control_plane_says_is_what_the_caller_hears() -> None:
    peer = MeshPeer()
    async with serving(peer) as port, scene(port) as sidecar:
        reply = await sidecar.collect(item(), item(1, feedback_id="mine"))
        assert [one.outcome for one in reply.outcomes] == ["taken", "taken"]
        assert list(peer.feedback) == [one.feedback_id for one in reply.outcomes]
        assert reply.outcomes[1].feedback_id == "mine"
        assert peer.deliveries[0].instance_id == "instance-1"
        assert all(one.at_unix_ms > 0 for one in peer.feedback.values())
        assert await sidecar.outcomes(item()) == ["duplicate"]
        assert shown(sidecar.feedback, "outrider_feedback") == {("taken",): 2, ("duplicate",): 1}


async def test_it_is_answered_whoever_is_named_and_metadata_name_the_agent() -> None:
    peer = MeshPeer()
    async with serving(peer) as port, scene(port) as sidecar:
        assert await sidecar.outcomes(item(), metadata=(("x-agent-id", "a"),)) == ["taken"]
        assert await sidecar.outcomes(item(1), metadata=(("x-agent-id", "nobody-knows-it"),)) == ["taken"]
        assert [one.agent_id for one in peer.feedback.values()] == ["a", "nobody-knows-it"]
        assert not sidecar.mesh.runtime.calls
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sidecar.stub.FetchOriginal(sidecar_pb2.FetchOriginalRequest(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_what_is_wrong_is_refused_and_the_rest_is_taken() -> None:
    peer = MeshPeer()
    async with serving(peer) as port, scene(port) as sidecar:
        wrong = [item(rating=math.nan), item(scores={"x": math.inf}), item(call_id="?"), feedback_pb2.Feedback()]
        reply = await sidecar.collect(wrong[0], item(7), *wrong[1:])
        assert [one.outcome for one in reply.outcomes] == ["refused", "taken", "refused", "refused", "refused"]
        fields = [one.reason.partition(":")[0] for one in reply.outcomes]
        assert fields == ["rating", "", "scores", "call_id", "call_id"]
        assert list(peer.feedback) == [reply.outcomes[1].feedback_id]
        assert await sidecar.outcomes(item(rating=9)) == ["refused"]


async def test_requests_that_are_none() -> None:
    async with scene() as sidecar:
        error = await sidecar.refused(*[item(at) for at in range(MAX_ITEMS + 1)])
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "1 to 1,000" in (error.details() or "")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sidecar.stub.CollectFeedback(feedback_pb2.CollectFeedbackRequest(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = await sidecar.refused(*[item(at, input="x" * 60_000) for at in range(80)])
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_raw_bytes_that_are_no_request_and_gzip_that_is_one() -> None:
    async with scene() as sidecar, grpc.aio.insecure_channel(sidecar.mesh.target) as channel:
        method: Any = channel.unary_unary("/outrider.v1.Sidecar/CollectFeedback")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"\x0a\xff\xff", timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        data = request(item(correction="x" * 4_000)).SerializeToString()
        assert len(gzip.compress(data)) < len(data)
        reply = await method(data, timeout=20, compression=grpc.Compression.Gzip)
        assert feedback_pb2.CollectFeedbackReply.FromString(reply).outcomes[0].outcome == "queued"


async def test_calls_go_together_once_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = MeshPeer()
    async with serving(peer) as port, scene(port, min_batch=5) as sidecar:
        monkeypatch.setattr(edge, "HOLD_S", 1_000.0)
        waiting = [asyncio.ensure_future(sidecar.outcomes(item(at))) for at in range(4)]
        await until(lambda: len(sidecar.feedback._groups) == 4)
        assert peer.deliveries == []
        assert await sidecar.outcomes(item(4)) == ["taken"]
        assert await asyncio.gather(*waiting) == [["taken"]] * 4
        assert [len(one.feedback) for one in peer.deliveries] == [5]


async def test_one_alone_goes_before_its_caller_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = MeshPeer()
    async with serving(peer) as port, scene(port, min_batch=100) as sidecar:
        monkeypatch.setattr(edge, "HOLD_S", 1_000.0)
        assert await sidecar.outcomes(item(), timeout=2) == ["taken"]


async def test_a_caller_that_leaves_takes_nothing_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = MeshPeer()
    async with serving(peer) as port, scene(port, min_batch=2) as sidecar:
        monkeypatch.setattr(edge, "HOLD_S", 1_000.0)
        leaving = asyncio.ensure_future(sidecar.outcomes(item()))
        await until(lambda: len(sidecar.feedback._groups) == 1)
        leaving.cancel()
        await until(lambda: not sidecar.mesh.runtime.calls)
        assert await sidecar.outcomes(item(1)) == ["taken"]
        assert len(peer.feedback) == 2


@pytest.mark.parametrize("durable", [True, False])
async def test_a_control_plane_that_goes_and_comes_back(tmp_path: Path, durable: bool) -> None:
    spool: Spool = FileSpool(tmp_path, BYTES) if durable else MemorySpool(BYTES)
    peer = MeshPeer()
    async with contextlib.AsyncExitStack() as stack:
        async with serving(peer) as port:
            sidecar = await stack.enter_async_context(scene(port, spool))
            assert await sidecar.outcomes(item()) == ["taken"]
        reply = await sidecar.collect(item(1), item(2))
        assert [one.outcome for one in reply.outcomes] == ["queued", "queued"]
        assert ("on disk" if durable else "in memory") in reply.outcomes[0].reason
        assert await sidecar.outcomes(item(3)) == ["queued"]
        assert spool.count == 3
        async with serving(peer, port):
            await until(lambda: spool.count == 0)
            await until(lambda: shown(sidecar.feedback, "outrider_feedback").get(("taken",)) == 4)
            assert [one.call_id for one in peer.feedback.values()] == [f"{at + 1:016x}" for at in range(4)]
            assert await sidecar.outcomes(item(4)) == ["taken"]


async def test_what_a_process_before_left_is_delivered(tmp_path: Path) -> None:
    async with scene(0, FileSpool(tmp_path, BYTES)) as sidecar:
        reply = await sidecar.collect(item(), item(1))
        assert [one.outcome for one in reply.outcomes] == ["queued", "queued"]
        assert "No control plane is configured" in reply.outcomes[0].reason
    peer = MeshPeer()
    async with serving(peer) as port, scene(port, FileSpool(tmp_path, BYTES)) as sidecar:
        await until(lambda: len(peer.feedback) == 2)
        await until(lambda: sidecar.spool.count == 0)


@pytest.mark.parametrize(
    "code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "INTERNAL"]
)
async def test_a_control_plane_that_refuses_the_sidecar_loses_nothing(code: str) -> None:
    peer = MeshPeer()
    peer.refuse = (grpc.StatusCode[code], "not you, not now: ä")
    async with serving(peer) as port, scene(port) as sidecar:
        reply = await sidecar.collect(item())
        assert reply.outcomes[0].outcome == "queued"
        assert f"{code}: not you, not now: ä" in reply.outcomes[0].reason
        peer.refuse = None
        await until(lambda: sidecar.spool.count == 0)
        assert len(peer.feedback) == 1


async def test_one_item_the_control_plane_cannot_take_blocks_no_other() -> None:
    peer = MeshPeer()
    bad = item(5).call_id
    peer.refuse_feedback = lambda one: (grpc.StatusCode.INVALID_ARGUMENT, "no") if one.call_id == bad else None
    async with serving(peer) as port, scene(port) as sidecar:
        assert await sidecar.outcomes(item(4), item(5), item(6)) == ["taken", "refused", "taken"]
        peer.refuse = (grpc.StatusCode.UNAVAILABLE, "gone")
        assert await sidecar.outcomes(item(7), item(5), item(8)) == ["queued"] * 3
        peer.refuse = None
        await until(lambda: sidecar.spool.count == 0)
        assert len(peer.feedback) == 4


async def test_a_full_spool_says_so_and_takes_nothing_half(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path, 2_000)
    async with scene(0, spool) as sidecar:
        assert await sidecar.outcomes(item(complaint="x" * 1_500)) == ["queued"]
        error = await sidecar.refused(item(1), item(2, complaint="x" * 1_500))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "which is the bound" in (error.details() or "")
        assert spool.count == 1
        assert await sidecar.outcomes(item(3)) == ["queued"]


async def test_a_spool_another_process_holds(tmp_path: Path) -> None:
    other = FileSpool(tmp_path, BYTES)
    other.open()
    async with scene(0, FileSpool(tmp_path, BYTES)) as sidecar:
        error = await sidecar.refused(item())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "another sidecar process" in (error.details() or "")
        other.close()
        assert await sidecar.outcomes(item()) == ["queued"]


async def test_what_the_process_before_leaves_at_its_end_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "OPEN_EVERY_S", 0.01)
    other = FileSpool(tmp_path, BYTES)
    other.append([item().SerializeToString()])
    other.sync()
    peer = MeshPeer()
    async with serving(peer) as port, scene(port, FileSpool(tmp_path, BYTES)) as sidecar:
        assert await sidecar.outcomes(item(1)) == ["taken"]
        other.close()
        await until(lambda: len(peer.feedback) == 2)


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "MAX_WAITING", 3)
    peer = MeshPeer()
    async with serving(peer) as port, scene(port, min_batch=4) as sidecar:
        monkeypatch.setattr(edge, "HOLD_S", 1_000.0)
        waiting = asyncio.ensure_future(sidecar.outcomes(item(), item(1)))
        await until(lambda: len(sidecar.feedback._groups) == 1)
        error = await sidecar.refused(item(2), item(3))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await sidecar.feedback.close()  # the end lets go what waits
        assert await waiting == ["taken", "taken"]
