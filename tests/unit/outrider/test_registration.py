"""An instance's registration: its course without I/O, and both clients against a real mesh service."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from outrider import registration as module
from outrider.registration import AsyncRegistration, Course, Registration
from outrider.v1 import mesh_pb2
from outrider_control.state.database import Database
from tests.watchers import Control, until

REQUEST = mesh_pb2.RegisterRequest(endpoint=mesh_pb2.Endpoint(agent_id="a", address="h:1"), ttl_ms=15_000)
AWAY = grpc.StatusCode.UNAVAILABLE


def course(*targets: str) -> Course:
    return Course(targets or ("one",), REQUEST, random.Random(1))


def registered(on: Course) -> Course:
    on.replied(on.next(), mesh_pb2.RegisterReply(lease_id="l", ttl_ms=15_000))
    return on


def test_it_registers_and_renews_every_third_of_the_time() -> None:
    on = course()
    assert on.goodbyes() == []
    call = on.next()
    assert (call.target, call.method, call.request) == ("one", "Register", REQUEST)
    assert 4.5 <= on.replied(call, mesh_pb2.RegisterReply(lease_id="l", ttl_ms=15_000)) <= 5.0
    call = on.next()
    assert (call.method, list(call.request.lease_ids)) == ("Renew", ["l"])
    assert 4.5 <= on.replied(call, mesh_pb2.RenewReply()) <= 5.0


def test_goodbye_is_said_to_the_first_that_listens_beginning_with_the_present_one() -> None:
    on = registered(course("one", "two", "three"))
    on.failed(on.next(), AWAY, "gone")
    goodbyes = on.goodbyes()
    assert [(call.target, call.method) for call in goodbyes] == [
        ("two", "Deregister"),
        ("three", "Deregister"),
        ("one", "Deregister"),
    ]
    assert {call.request.lease_id for call in goodbyes} == {"l"}


def test_a_lease_that_is_not_known_any_more_is_made_again_at_once() -> None:
    on = registered(course())
    assert on.replied(on.next(), mesh_pb2.RenewReply(unknown=["l"])) == 0
    assert not on.registered
    assert on.next().method == "Register"


def test_the_next_control_plane_is_tried_at_once_and_all_of_them_with_backoff() -> None:
    on = registered(course("one", "two", "three"))
    waits, targets = [], []
    for _ in range(60):
        call = on.next()
        assert call.method == "Renew", "another control plane of the same store knows the lease"
        targets.append(call.target)
        waits.append(on.failed(call, AWAY, "gone"))
    assert targets == ["one", "two", "three"] * 20
    rounds = waits[2::3]
    assert waits[0::3] == waits[1::3] == [0.0] * 20
    assert 0.05 <= rounds[0] <= 0.1
    assert rounds[0] < rounds[2] < rounds[4]
    assert all(wait <= module.MAX_BACKOFF_S for wait in rounds)
    on.replied(on.next(), mesh_pb2.RenewReply())
    on.failed(on.next(), AWAY, "gone again")
    assert on.next().target == "two"


def test_what_is_refused_is_tried_seldom_and_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    on = course()
    with caplog.at_level(logging.ERROR, "outrider.registration"):
        waits = [on.failed(on.next(), grpc.StatusCode.UNAUTHENTICATED, "a wrong token") for _ in range(20)]
    assert module.MAX_REFUSED_BACKOFF_S / 2 <= waits[-1] <= module.MAX_REFUSED_BACKOFF_S
    assert "a wrong token" in caplog.text


@pytest.mark.parametrize(
    ("control", "agent_id", "address", "field"),
    [
        ([], "a", "h:1", "control"),
        (["nowhere"], "a", "h:1", "control"),
        (["h:1"], "", "h:1", "agent_id"),
        (["h:1"], "a", "h", "address"),
    ],
)
def test_what_cannot_work_is_said_before_the_start(control: list[str], agent_id: str, address: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        Registration(control, agent_id, address)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(f"sqlite:///{tmp_path / 'outrider.db'}")
    yield opened
    opened.close_now()


@pytest.fixture
async def control(store: Database) -> AsyncIterator[Control]:
    async with Control(store) as control:
        yield control


def addresses(control: Control) -> list[str]:
    return [record.endpoint.address for record in control.fleet.endpoints("a")]


async def test_the_endpoint_is_there_while_the_block_runs(control: Control) -> None:
    async with AsyncRegistration(control.target, "a", "h:1", {"zone": "eu"}, 8) as registration:
        await until(lambda: registration.registered)
        (record,) = control.fleet.endpoints("a")
        assert (dict(record.endpoint.labels), record.endpoint.capacity) == ({"zone": "eu"}, 8)
    await until(lambda: addresses(control) == [])


async def test_the_blocking_one_does_the_same(control: Control) -> None:
    registration = Registration([control.target], "a", "h:1")
    with registration:
        await until(lambda: registration.registered and addresses(control) == ["h:1"])
        with pytest.raises(RuntimeError):
            registration.start()
        await asyncio.to_thread(registration.stop)
    await until(lambda: addresses(control) == [])


async def test_the_blocking_one_ends_although_nobody_answers() -> None:
    registration = Registration(["127.0.0.1:1"], "a", "h:1")
    with registration:
        assert not registration.registered
        await asyncio.to_thread(registration.stop)


def _noted(asked: list[str], control: Control) -> Callable[[Sequence[str]], Awaitable[list[str]]]:
    renew = control.publisher.renew

    async def noted(lease_ids: Sequence[str]) -> list[str]:
        asked.append(control.fleet.control_id)
        return await renew(lease_ids)

    return noted


async def test_it_goes_to_the_next_control_plane(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Control(store, "one"), Control(store, "two")
    await one.start()
    await two.start()
    asked: list[str] = []
    for control in (one, two):
        monkeypatch.setattr(control.publisher, "renew", _noted(asked, control))
    try:
        async with AsyncRegistration([one.target, two.target], "a", "h:1", ttl_ms=1_000) as registration:
            await until(lambda: asked[:1] == ["one"])
            await one.stop()
            await until(lambda: asked[-1:] == ["two"])
            assert registration.registered
            assert addresses(two) == ["h:1"]
        await until(lambda: addresses(two) == [])
    finally:
        await two.stop()


async def test_a_control_plane_that_forgot_everything_is_told_again(tmp_path: Path) -> None:
    first_store = Database.open(f"sqlite:///{tmp_path / 'first.db'}")
    second_store = Database.open(f"sqlite:///{tmp_path / 'second.db'}")
    try:
        first = Control(first_store, "first")
        await first.start()
        async with AsyncRegistration(first.target, "a", "h:1", ttl_ms=1_000) as registration:
            await until(lambda: registration.registered)
            await first.stop()
            second = Control(second_store, "second")
            await second.start(first.port)
            await until(lambda: addresses(second) == ["h:1"])
        await until(lambda: addresses(second) == [])
        await second.stop()
    finally:
        first_store.close_now()
        second_store.close_now()
