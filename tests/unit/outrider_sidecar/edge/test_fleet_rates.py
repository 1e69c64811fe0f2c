"""Shares over the link to the control plane: reported, granted, put in force, given back."""

from __future__ import annotations

from typing import Any

from outrider.v1 import mesh_pb2
from outrider_sidecar.edge.fleet_rates import FleetRates
from outrider_sidecar.engines.gcra import Cell
from outrider_sidecar.engines.shares import IDLE_S, Granted, Shares
from tests.mesh_peer import MeshPeer, Watch, serving
from tests.mesh_side import Side, side, until

KEY = b"k" * 32


def grants(*rows: mesh_pb2.Grant, new_share: float = 0.5) -> mesh_pb2.WatchResponse:
    return mesh_pb2.WatchResponse(grants=mesh_pb2.Grants(grants=rows, new_share=new_share, hash_key=KEY))


def ask(link: Side, units: float) -> Any:
    now = link.reactor.loop.time()
    held = link.rates.shares.hold("one", "user", b"ann", "requests", now)
    if held.cell is None:
        held.rate_per_s, held.burst_s = 100.0, 10.0
        held.cell = Cell(100.0 * held.share, 10.0, now)
        held.cell.held = held
    link.rates.shares.ask(held, units, now)
    return held


def uses(watch: Watch) -> list[mesh_pb2.QuotaUse]:
    return [use for load in watch.all("load") for use in load.quotas]


async def test_demand_is_reported_and_a_grant_is_in_force_and_echoed() -> None:
    peer = MeshPeer()
    async with serving(peer) as port, side(port) as link:
        await until(lambda: peer.live, "watched")
        peer.send(grants())
        await until(lambda: link.rates.shares.new_share == 0.5, "the share of what is new has come")
        held = ask(link, 5.0)
        (use,) = await until(lambda: uses(peer.watches[0]), "the demand is reported")
        assert (use.quota.agent_id, use.quota.scope, use.quota.unit) == ("one", "user", "requests")
        assert "ann" not in use.quota.key
        assert (use.share, use.version) == (0.5, 0)
        assert use.demand_per_s > 0
        peer.send(grants(mesh_pb2.Grant(quota=use.quota, share=0.8, version=7)))
        echoes = await until(lambda: [one for one in uses(peer.watches[0]) if one.version], "the grant is echoed")
        assert (echoes[0].share, echoes[0].version) == (0.8, 7)
        assert held.cell.interval_s == 1 / 80.0
    given_back = uses(peer.watches[0])[-1]
    assert (given_back.share, given_back.version, given_back.quota.key) == (0.0, 7, use.quota.key)


async def test_grants_that_make_no_sense_end_nothing() -> None:
    peer = MeshPeer()
    async with serving(peer) as port, side(port) as link:
        await until(lambda: peer.live, "watched")
        peer.send(grants())
        await until(lambda: link.rates.shares.hash_key, "the key has come")
        held = ask(link, 1.0)
        (use,) = await until(lambda: uses(peer.watches[0]), "the demand is reported")
        stranger = mesh_pb2.Quota(agent_id="x", scope="galaxy", key="?", unit="tokens")
        rows = [mesh_pb2.Grant(quota=stranger, share=0.5, version=1)]
        rows += [mesh_pb2.Grant(quota=use.quota, share=share, version=9) for share in (-1.0, float("nan"), 2.0)]
        peer.send(grants(*rows, new_share=float("nan")))
        await until(lambda: link.rates.grants == 2, "the grants were read")
        assert (held.share, held.version, link.rates.shares.new_share) == (0.5, 0, 0.5)
        assert link.link.sessions == 1


def test_what_is_idle_passes_at_the_share_of_what_is_new_again() -> None:
    now = [100.0]
    shares = Shares(now[0])
    rates = FleetRates(shares, lambda: now[0])
    rates.take((), 0.1, KEY)
    held = shares.hold("a", "agent", b"", "requests", now[0])
    held.rate_per_s, held.burst_s = 10.0, 5.0
    cell = held.cell = Cell(1.0, 5.0, now[0])
    cell.held = held
    shares.ask(held, 1.0, now[0])
    now[0] += 1
    (use,) = rates.uses()
    rates.take([Granted(use.agent_id, use.scope, use.key, use.unit, 0.9, 5)], 0.1, KEY)
    assert cell.interval_s == 1 / 9.0
    rates.uses()
    now[0] += IDLE_S + 1
    assert rates.uses() == []
    assert cell.interval_s == 1.0
