"""Shares of limits over the fleet on real watch streams, and the parts of several control planes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from outrider.policy import Agent, EndpointPolicy, Rates
from outrider.v1 import mesh_pb2
from outrider_control.core.quota import REMEMBERED_MS, QuotaKey
from outrider_control.publish.quotas import KEY_NAME, WARM_MS, limit_per_s
from outrider_control.publish.resources import Catalog
from outrider_control.publish.streams import MAX_SAID, Stream
from outrider_control.publish.watch import Watch
from outrider_control.state import meta
from outrider_control.state.database import Database
from tests.watchers import Control, Watcher, until, wall_ms

AGENT = Agent("a", (EndpointPolicy("x:1"),), rates=Rates(agent_requests_per_min=600))
KEY = QuotaKey("a", "agent", "", "requests")
QUOTA = mesh_pb2.Quota(agent_id="a", scope="agent", unit="requests")
KNOWS: dict[str, Any] = {"capabilities": ["policy.v1", "quotas.v1"]}


class Clock:
    def __init__(self) -> None:
        self.now_ms = wall_ms()

    def __call__(self) -> int:
        return self.now_ms


@contextlib.asynccontextmanager
async def ticked_by_hand(control: Control) -> AsyncIterator[Control]:
    async with control:
        ticker = control.publisher.divider._ticker
        assert ticker is not None
        ticker.cancel()
        await asyncio.gather(ticker, return_exceptions=True)
        await control.apply(AGENT)
        await control.publisher.refresh()
        yield control


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def control(database: Database, clock: Clock) -> AsyncIterator[Control]:
    async with ticked_by_hand(Control(database, clock_ms=clock)) as control:
        clock.now_ms += WARM_MS
        yield control


def held_by(watcher: Watcher) -> tuple[float, int]:
    """The share and the version a sidecar would hold."""
    rows = [grant for grants in watcher.grants for grant in grants.grants]
    return (rows[-1].share, rows[-1].version) if rows else (watcher.grants[0].new_share, 0)


async def report(control: Control, watcher: Watcher, demand_per_s: float, share: float = -1.0) -> None:
    held, version = held_by(watcher)
    use = mesh_pb2.QuotaUse(quota=QUOTA, demand_per_s=demand_per_s, share=held if share < 0 else share, version=version)
    fleet = control.fleet
    (sidecar,) = [one for one in fleet.watching() if one.record.instance_id == watcher._hello["instance_id"]]
    sidecar.load = None
    await watcher.send(load=mesh_pb2.LoadReport(quotas=[use]))
    await until(lambda: sidecar.load is not None, "the report is there")
    assert sidecar.load is not None
    assert len(sidecar.load.quotas) == 0  # they are nobody else's business


async def settle(control: Control, clock: Clock, demands: dict[Watcher, float], rounds: int = 8) -> None:
    for _ in range(rounds):
        for watcher, demand in demands.items():
            await report(control, watcher, demand)
        clock.now_ms += 1_000
        await control.publisher.divider.tick()
        for watcher in demands:
            newest = control.publisher.divider.quotas._limits[KEY][str(watcher._hello["instance_id"])].newest
            await until(lambda watcher=watcher, newest=newest: held_by(watcher)[1] == newest, "the grants are there")


async def test_only_sidecars_that_know_quotas_are_told(control: Control) -> None:
    async with Watcher(control.target, "old") as old, Watcher(control.target, "new", **KNOWS) as new:
        await until(lambda: new.grants and old.updates, "greeted")
        assert (new.grants[0].new_share, len(new.grants[0].hash_key), old.grants) == (1.0, 32, [])
        assert new.updates[0].full
    key = await control.db.read(meta.text, KEY_NAME)
    assert bytes.fromhex(key) == new.grants[0].hash_key


async def test_the_key_of_hashes_is_the_stores(database: Database) -> None:
    keys = []
    for name in ("one", "two"):
        async with Control(database, name) as control, Watcher(control.target, **KNOWS) as watcher:
            await until(lambda watcher=watcher: watcher.grants, "greeted")
            keys.append(watcher.grants[0].hash_key)
    assert keys[0] == keys[1]
    assert await database.write(meta.ensure_text, KEY_NAME, "late") == keys[0].hex()


async def test_shares_follow_demand_and_new_ones_the_number_of_sidecars(control: Control, clock: Clock) -> None:
    async with Watcher(control.target, "i-1", **KNOWS) as one, Watcher(control.target, "i-2", **KNOWS) as two:
        await until(lambda: one.grants and two.grants, "greeted")
        await control.publisher.divider.tick()
        await until(lambda: one.grants[-1].new_share == two.grants[-1].new_share == 0.5, "both are counted")
        one.grants[0], two.grants[0] = one.grants[-1], two.grants[-1]
        await settle(control, clock, {one: 100.0, two: 1.0})
        assert held_by(one)[0] + held_by(two)[0] <= 1.0 + 1e-9
        assert held_by(one)[0] > 0.8
        count = len(one.grants)
        await report(control, two, 0.0, share=0.0)
        await settle(control, clock, {one: 100.0}, 2)
        assert (len(one.grants), held_by(one)[0]) == (count + 1, pytest.approx(1.0))


async def test_who_is_away_is_counted_and_keeps_its_share_for_a_while(control: Control, clock: Clock) -> None:
    async with Watcher(control.target, "i-1", **KNOWS) as one:
        async with Watcher(control.target, "i-2", **KNOWS) as two:
            await until(lambda: one.grants and two.grants, "greeted")
            await control.publisher.divider.tick()
            await until(lambda: one.grants[-1].new_share == 0.5, "both are counted")
            one.grants[0] = two.grants[0] = one.grants[-1]
            await settle(control, clock, {one: 100.0, two: 100.0})
        await until(lambda: control.fleet.connected == 1, "it has gone")
        await settle(control, clock, {one: 100.0}, 5)
        assert held_by(one)[0] == pytest.approx(0.5, abs=0.05)
        assert one.grants[-1].new_share == 0.5
        clock.now_ms += REMEMBERED_MS
        await settle(control, clock, {one: 100.0}, 3)
        assert held_by(one)[0] == pytest.approx(1.0, abs=0.03)
        assert one.grants[-1].new_share == 1.0


async def test_nothing_is_given_while_sidecars_of_a_predecessor_may_not_have_spoken(
    database: Database, clock: Clock
) -> None:
    made = Control(database, clock_ms=clock)
    async with ticked_by_hand(made) as control, Watcher(control.target, "i-1", **KNOWS) as one:
        await until(lambda: one.grants, "greeted")
        one.grants[0] = mesh_pb2.Grants(new_share=0.25)
        for _ in range(3):
            await settle(control, clock, {one: 100.0}, 1)
            assert held_by(one) == (0.25, 0)
        clock.now_ms += WARM_MS
        await settle(control, clock, {one: 100.0}, 1)
        assert held_by(one)[0] == pytest.approx(1.0)


async def test_a_sidecars_names_and_figures_are_bounded(control: Control) -> None:
    divider = control.publisher.divider
    async with Watcher(control.target, "i-1", **KNOWS) as one:
        await until(lambda: one.grants, "greeted")
        users = [mesh_pb2.Quota(agent_id="a", scope="user", key=str(number)) for number in range(9)]
        uses = [mesh_pb2.QuotaUse(quota=quota, share=1) for quota in users]
        uses += [mesh_pb2.QuotaUse(quota=mesh_pb2.Quota(agent_id="nobody", scope="agent", unit="requests"), share=1)]
        uses += [mesh_pb2.QuotaUse(quota=QUOTA, share=1, demand_per_s=float("nan"))]
        divider.taken("i-1", mesh_pb2.LoadReport(quotas=uses))
        divider.taken("stranger", mesh_pb2.LoadReport(quotas=[mesh_pb2.QuotaUse(quota=QUOTA, share=1, demand_per_s=1)]))
        assert len(divider.quotas) == 0


async def test_each_of_several_control_planes_divides_its_part(postgres_url: str, clock: Clock) -> None:
    db, other_db = Database.open(postgres_url), Database.open(postgres_url)
    control, other = Control(db, "one", clock_ms=clock), Control(other_db, "two", clock_ms=clock)
    async with ticked_by_hand(control), ticked_by_hand(other):
        clock.now_ms += WARM_MS
        async with Watcher(control.target, "i-1", **KNOWS) as one, Watcher(control.target, "i-2", **KNOWS) as two:
            async with Watcher(other.target, "i-3", **KNOWS) as three:
                everybody = [one, two, three]
                await until(lambda: all(watcher.grants for watcher in everybody), "greeted")
                for plane in (control, other, control):
                    await plane.publisher.remember()
                    await plane.publisher.divider.tick()
                await until(lambda: {w.grants[-1].new_share for w in everybody} == {1 / 3}, "all are counted")
                for watcher in everybody:
                    watcher.grants[0] = watcher.grants[-1]
                for _ in range(3):
                    await settle(control, clock, {one: 100.0, two: 0.1}, 3)
                    await settle(other, clock, {three: 100.0}, 3)
                shares = [held_by(watcher)[0] for watcher in everybody]
                assert shares[0] + shares[1] == pytest.approx(2 / 3, abs=0.03)
                assert shares[2] == pytest.approx(1 / 3)
                assert sum(shares) <= 1.0 + 1e-9
            # It comes to the other one: what it holds is counted there, and no longer here.
            again = Watcher(control.target, "i-3", **KNOWS)
            again.grants = three.grants
            await until(lambda: other.fleet.connected == 0, "it has left")
            clock.now_ms += 1_000
            async with again:
                await until(lambda: control.fleet.connected == 3, "it has come")
                await report(control, again, 100.0)
                for plane in (control, other, control):
                    clock.now_ms += 1_000
                    await plane.publisher.remember()
                    await plane.publisher.divider.tick()
                assert len(other.publisher.divider.quotas.sidecars) == 0
                assert len(other.publisher.divider.quotas) == 0
                await settle(control, clock, {one: 100.0, two: 0.1, again: 100.0})
                shares = [held_by(watcher)[0] for watcher in (one, two, again)]
                assert 0.93 <= sum(shares) <= 1.0 + 1e-9
    await asyncio.gather(db.close(), other_db.close())


async def test_a_stream_that_is_not_read_takes_a_bounded_number_of_messages() -> None:
    read = asyncio.Event()
    written: list[bytes] = []

    async def write(message: bytes) -> None:
        written.append(message)
        await read.wait()

    stream = Stream("i-1", Watch({}), Catalog(), write, lambda _: None)
    said = [stream.say(b"%d" % number) for number in range(MAX_SAID + 8)]
    assert said == [True] * MAX_SAID + [False] * 8
    read.set()
    await until(lambda: len(written) == MAX_SAID + 1, "all that was taken is written")
    assert written[1:] == [b"%d" % number for number in range(MAX_SAID)]  # after the full update
    await stream.close()
    assert not stream.say(b"late")


def test_the_rate_is_the_policys() -> None:
    assert limit_per_s(AGENT, KEY) == 10.0
    assert limit_per_s(AGENT, KEY._replace(unit="tokens")) == 0.0
    assert limit_per_s(AGENT, KEY._replace(scope="balancing", unit="x")) == 0.0
    assert limit_per_s(None, KEY) == 0.0
    assert limit_per_s(Agent("a", rates=Rates(agent_requests_per_min=60, fleet_wide=False)), KEY) == 0.0
