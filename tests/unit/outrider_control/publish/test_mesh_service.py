"""The Watch stream over real sockets: what a sidecar is told, what it may say, and who else suffers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from outrider.policy import Agent, EndpointPolicy
from outrider.v1 import mesh_pb2
from outrider_control.publish.resources import EPOCHS, POLICY
from outrider_control.state import agents, epochs
from outrider_control.state.database import Database
from tests.watchers import Control, Watcher, until, wall_ms


@pytest.fixture
async def control(database: Database) -> AsyncIterator[Control]:
    async with Control(database) as control:
        yield control


async def test_full_state_comes_first_and_changes_after(control: Control) -> None:
    await control.apply(Agent("a"), Agent("b"))
    await control.publisher.refresh()
    async with Watcher(control.target) as watcher:
        await until(lambda: watcher.versions() == {"a": 1, "b": 1})
        assert watcher.welcome is not None
        assert watcher.welcome.instance_id == "control-1"
        assert watcher.welcome.version == "9.9"
        assert watcher.welcome.load_interval_ms == 1_000
        assert [update.full for update in watcher.updates] == [True]
        await control.apply(Agent("b", timeout_ms=7))
        await until(lambda: watcher.versions() == {"a": 1, "b": 2})
        update = watcher.updates[-1]
        assert not update.full
        assert [resource.policy.timeout_ms for resource in update.resources] == [7]
        assert update.changed_unix_us > 0
        await control.delete("a")
        await until(lambda: watcher.versions() == {"b": 2})
        assert [(gone.name, gone.version) for gone in watcher.updates[-1].removed] == [("a", 2)]


async def test_what_a_sidecar_holds_is_not_sent_again(control: Control) -> None:
    await control.apply(Agent("a"), Agent("b"), Agent("c"))
    watcher = Watcher(control.target)
    async with watcher:
        await until(lambda: len(watcher.versions()) == 3)
    await control.apply(Agent("b", timeout_ms=7))
    await control.delete("c")
    await control.publisher.refresh()
    watcher.updates.clear()
    async with watcher:
        await until(lambda: watcher.updates)
        (update,) = watcher.updates
        assert update.full
        assert [resource.id.name for resource in update.resources] == ["b"]
        assert [current.name for current in update.current] == ["a"]
        assert watcher.versions() == {"a": 1, "b": 2}


async def test_epochs_and_the_default_agent_are_resources(control: Control) -> None:
    async with Watcher(control.target) as watcher:
        await until(lambda: watcher.updates)
        assert watcher.held == {}
        await control.apply(Agent("a"))
        await control.db.write(agents.set_default_agent, "a", "ada", "why not", wall_ms())
        value = await control.db.write(epochs.bump, "a", "t", "", wall_ms())
        await until(lambda: {(EPOCHS, ""), (mesh_pb2.RESOURCE_KIND_MESH, "")} <= watcher.held.keys())
        assert watcher.held[mesh_pb2.RESOURCE_KIND_MESH, ""].mesh.default_agent == "a"
        (epoch,) = watcher.held[EPOCHS, ""].epochs.epochs
        assert (epoch.agent_id, epoch.tenant_id, epoch.value) == ("a", "t", value)


async def test_a_refused_resource_blocks_no_sibling_and_is_remembered(control: Control) -> None:
    def refuse(resource: mesh_pb2.Resource) -> str:
        return "policy.timeout_ms: no thirteen" if resource.policy.timeout_ms == 13 else ""

    await control.apply(Agent("a"), Agent("b"))
    async with Watcher(control.target, refuse=refuse) as watcher:
        await until(lambda: len(watcher.versions()) == 2)
        await control.apply(Agent("a", timeout_ms=13), Agent("b", timeout_ms=7))
        await until(lambda: watcher.versions() == {"a": 1, "b": 2})
        await until(lambda: control.fleet.sidecars()[0].refused)
        (record,) = control.fleet.sidecars()
        (refusal,) = record.refused
        assert (refusal.resource.name, refusal.resource.version) == ("a", 2)
        assert refusal.reason == "policy.timeout_ms: no thirteen"
        assert record.behind == 1
        told = len(watcher.updates)
        await control.apply(Agent("b", timeout_ms=8))
        await until(lambda: watcher.versions() == {"a": 1, "b": 3})
        assert [resource.id.name for update in watcher.updates[told:] for resource in update.resources] == ["b"]
        await control.apply(Agent("a", timeout_ms=14))
        await until(lambda: watcher.versions() == {"a": 3, "b": 3})
        await until(lambda: not control.fleet.sidecars()[0].refused)
        assert control.fleet.sidecars()[0].behind == 0


async def test_confirmed_waits_for_all_and_says_how_many(control: Control) -> None:
    async with Watcher(control.target, "one") as one, Watcher(control.target, "two", acks=False) as two:
        await until(lambda: one.updates and two.updates)
        await control.apply(Agent("a"))
        await until(lambda: one.versions() and two.versions())
        assert await control.publisher.confirmed(POLICY, "a", 1, 0.2) == (2, 1)
        await two.send(ack=mesh_pb2.Ack(nonce=two.updates[-1].nonce))
        assert await control.publisher.confirmed(POLICY, "a", 1, 10) == (2, 2)
        assert await control.publisher.confirmed(POLICY, "a", 2, 0.05) == (2, 0)
        await control.delete("a")
        await two.send(ack=mesh_pb2.Ack(nonce=3))
        await until(lambda: not two.versions())
        await two.send(ack=mesh_pb2.Ack(nonce=two.updates[-1].nonce))
        assert await control.publisher.confirmed(POLICY, "a", 2, 10) == (2, 2)


async def test_a_refusal_ends_the_wait_for_confirmation(control: Control) -> None:
    async with Watcher(control.target, refuse=lambda _: "never") as watcher:
        await until(lambda: watcher.updates)
        await control.apply(Agent("a"))
        assert await control.publisher.confirmed(POLICY, "a", 1, 10) == (1, 0)


async def test_the_newer_stream_of_an_instance_wins(control: Control) -> None:
    await control.apply(Agent("a"))
    async with Watcher(control.target, "same") as older:
        await until(lambda: older.versions())
        async with Watcher(control.target, "same") as newer:
            await until(lambda: newer.versions())
            await until(lambda: older.ended)
            assert older.ended is not None
            assert older.ended.code() is grpc.StatusCode.UNAVAILABLE
            assert "newer stream" in str(older.ended.details())
            await until(lambda: control.publisher.counts["replaced"] == 1)
            assert control.fleet.connected == 1
            assert [record.connected for record in control.fleet.sidecars()] == [True]
    await until(lambda: control.fleet.connected == 0)
    assert [record.connected for record in control.fleet.sidecars()] == [False]


async def test_a_sidecar_that_never_acks_is_behind_and_harms_nobody(control: Control) -> None:
    async with Watcher(control.target, "mute", acks=False) as mute, Watcher(control.target, "good") as good:
        await until(lambda: mute.updates and good.updates)
        for timeout_ms in range(1, 30):
            await control.apply(Agent("a", timeout_ms=timeout_ms))
        await until(lambda: good.versions() == mute.versions() == {"a": 29})
        await control.publisher.confirmed(POLICY, "a", 29, 0.2)
        behind = {record.instance_id: record.behind for record in control.fleet.sidecars()}
        assert behind == {"mute": 1, "good": 0}


async def _message(call: grpc.aio.StreamStreamCall) -> bytes:
    message = await call.read()
    assert isinstance(message, bytes)
    return message


async def test_a_slow_reader_gets_the_newest_and_not_every_version(control: Control) -> None:
    labels = {name: name * 100 for name in "uvw"}
    big = [EndpointPolicy(f"host-{at}:1", labels=labels) for at in range(1, 700)]
    async with grpc.aio.insecure_channel(control.target) as channel, Watcher(control.target, "quick") as quick:
        slow = channel.stream_stream("/outrider.v1.Mesh/Watch")()
        await slow.write(mesh_pb2.WatchRequest(hello=mesh_pb2.Hello(instance_id="slow")).SerializeToString())
        await until(lambda: control.fleet.connected == 2)
        last = 40
        for timeout_ms in range(1, last + 1):  # several megabytes, which is more than its window and buffers hold
            await control.apply(Agent("a", endpoints=tuple(big), timeout_ms=timeout_ms))
        await until(lambda: quick.versions() == {"a": last})
        versions = []
        while not versions or versions[-1] != last:
            response = mesh_pb2.WatchResponse.FromString(await _message(slow))
            versions.extend([resource.id.version for resource in response.update.resources])
        assert versions == sorted(versions)
        assert len(versions) < last
        slow.cancel()


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        ([b"\xff\xff\xff"], grpc.StatusCode.INVALID_ARGUMENT, "WatchRequest"),
        ([mesh_pb2.WatchRequest(ack=mesh_pb2.Ack(nonce=1))], grpc.StatusCode.INVALID_ARGUMENT, "must be a hello"),
        ([mesh_pb2.WatchRequest(hello=mesh_pb2.Hello())], grpc.StatusCode.INVALID_ARGUMENT, "instance_id"),
        (
            [mesh_pb2.WatchRequest(hello=mesh_pb2.Hello(instance_id="x" * 300))],
            grpc.StatusCode.INVALID_ARGUMENT,
            "instance_id",
        ),
        (
            [mesh_pb2.WatchRequest(hello=mesh_pb2.Hello(instance_id="x"))] * 2,
            grpc.StatusCode.INVALID_ARGUMENT,
            "never again",
        ),
        (
            [mesh_pb2.WatchRequest(hello=mesh_pb2.Hello(instance_id="x")), b"\xff"],
            grpc.StatusCode.INVALID_ARGUMENT,
            "WatchRequest",
        ),
    ],
)
async def test_what_is_malformed_ends_its_stream_alone(
    control: Control, messages: list[bytes | mesh_pb2.WatchRequest], code: grpc.StatusCode, words: str
) -> None:
    async with grpc.aio.insecure_channel(control.target) as channel, Watcher(control.target, "good") as good:
        call = channel.stream_stream("/outrider.v1.Mesh/Watch")()
        for message in messages:
            await call.write(message if isinstance(message, bytes) else message.SerializeToString())
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass  # a status comes after every message was read
        assert await call.code() is code
        assert words in await call.details()
        await control.apply(Agent("a"))
        await until(lambda: good.versions() == {"a": 1})
        assert control.fleet.connected == 1


async def test_a_stream_without_a_hello_ends(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outrider_control.publish.mesh_service.HELLO_TIMEOUT_S", 0.05)
    async with grpc.aio.insecure_channel(control.target) as channel:
        silent = channel.stream_stream("/outrider.v1.Mesh/Watch")()
        await silent.wait_for_connection()
        assert await silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        closed = channel.stream_stream("/outrider.v1.Mesh/Watch")()
        await closed.done_writing()
        assert await closed.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_acks_of_nothing_and_unknown_messages_change_nothing(control: Control) -> None:
    async with Watcher(control.target) as watcher:
        await until(lambda: watcher.updates)
        await watcher.send(ack=mesh_pb2.Ack(nonce=99))
        await watcher.call.write(mesh_pb2.WatchRequest())
        await control.apply(Agent("a"))
        assert await control.publisher.confirmed(POLICY, "a", 1, 10) == (1, 1)
        assert watcher.ended is None


async def test_closing_tells_sidecars_to_go_elsewhere(control: Control) -> None:
    async with Watcher(control.target) as watcher:
        await until(lambda: watcher.updates)
        await control.publisher.close()
        await until(lambda: watcher.ended)
        assert watcher.ended is not None
        assert watcher.ended.code() is grpc.StatusCode.UNAVAILABLE
        assert "stopping" in str(watcher.ended.details())


async def test_a_control_plane_that_lags_catches_up_before_it_answers(database: Database) -> None:
    async with Control(database, "first") as first, Control(database, "second") as second:
        second.publisher._stop_listening()  # as if its poll of the store had not come round yet
        watcher = Watcher(first.target)
        async with watcher:
            await first.apply(Agent("a"))
            await until(lambda: watcher.versions() == {"a": 1})
        assert second.fleet.catalog.resources == {}
        watcher.target = second.target
        heard = len(watcher.updates)  # the first may have come with the policy in it
        async with watcher:
            await until(lambda: len(watcher.updates) > heard)
            assert watcher.versions() == {"a": 1}
        assert {resource.key.name for resource in second.fleet.catalog.resources.values()} == {"a"}


async def test_many_changes_at_once_reach_everybody(control: Control) -> None:
    watchers = [Watcher(control.target, f"i-{at}") for at in range(10)]
    for watcher in watchers:
        await watcher.__aenter__()
    try:
        await asyncio.gather(*[control.apply(Agent(f"a-{at}", timeout_ms=at)) for at in range(40)])
        await until(lambda: all(len(watcher.versions()) == 40 for watcher in watchers))
        for at in range(40):
            assert await control.publisher.confirmed(POLICY, f"a-{at}", 1, 10) == (10, 10)
    finally:
        for watcher in watchers:
            await watcher.__aexit__()
