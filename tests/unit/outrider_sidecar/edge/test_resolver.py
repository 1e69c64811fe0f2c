"""Names that stand for many addresses: what the policy becomes, and when a name is looked up again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise

import grpc
import grpc.aio
import pytest

from outrider.policy import Agent, EndpointPolicy, Policy
from outrider_sidecar.edge import resolver as edge
from outrider_sidecar.edge.resolver import Resolver
from tests.in_process import InProcess, in_process

NAME = "dns:agents.test:900"


def policy_of(*endpoints: str | EndpointPolicy) -> Policy:
    made = [EndpointPolicy(one) if isinstance(one, str) else one for one in endpoints]
    return Policy({"a": Agent("a", tuple(made))}, "a")


class Bench:
    """A runtime whose names are answered from a table, at the test's time."""

    def __init__(self, mesh: InProcess):
        self.mesh = mesh
        self.at = 1_000.0
        self.answers: dict[str, list[str] | Exception] = {}
        self.asked: list[str] = []
        self.changes = 0
        self.resolver = Resolver(mesh.runtime, self._changed, lookup=self._lookup)

    def _changed(self) -> None:
        self.changes += 1

    async def _lookup(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        await asyncio.sleep(0)
        answer = self.answers.get(host, OSError(-2, "Name or service not known"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def expanded(self, policy: Policy) -> list[str]:
        expanded = self.resolver.expand(policy)
        return [endpoint.address for endpoint in expanded.agents["a"].endpoints]

    async def look(self, forward_s: float = 0.0) -> int:
        """How many lookups are made when so much time has passed."""
        self.at += forward_s
        before = len(self.asked)
        self.resolver.sweep(self.at)
        await asyncio.gather(*[name.lookup for name in self.resolver._names.values() if name.lookup is not None])
        return len(self.asked) - before


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    benches: list[Bench] = []
    async with in_process(now=lambda: benches[0].at if benches else 1_000.0) as mesh:
        benches.append(Bench(mesh))
        yield benches[0]
        await benches[0].resolver.close()


async def test_a_name_becomes_its_addresses_with_weight_and_labels(bench: Bench):
    named = EndpointPolicy(NAME, 3, {"zone": "b"})
    policy = policy_of("10.0.0.9:1", named, "unix:/run/a.sock")
    bench.answers["agents.test"] = ["10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2"]
    assert bench.expanded(policy) == ["10.0.0.9:1", NAME, "unix:/run/a.sock"]  # until it is resolved
    await bench.look()
    assert bench.changes == 1
    found = bench.resolver.expand(policy).agents["a"].endpoints
    addresses = ["10.0.0.1:900", "10.0.0.2:900", "[fd00::1]:900"]
    assert [one.address for one in found] == ["10.0.0.9:1", *addresses, "unix:/run/a.sock"]
    assert found[1] == replace(named, address="10.0.0.1:900")
    assert policy.agents["a"].endpoints[1] is named
    assert {bench.resolver.server_name("a", address) for address in addresses} == {"agents.test"}
    assert bench.resolver.server_name("a", "10.0.0.9:1") == ""
    assert bench.resolver.server_name("b", addresses[0]) == ""


async def test_all_ways_to_write_a_name_mean_the_same(bench: Bench):
    policy = policy_of("dns:///agents.test:900", NAME)
    assert bench.expanded(policy) == [NAME]
    bench.answers["agents.test"] = ["10.0.0.1"]
    await bench.look()
    assert bench.expanded(policy) == ["10.0.0.1:900"]


async def test_a_policy_without_names_is_left_alone(bench: Bench):
    policy = policy_of("10.0.0.9:1", "agents.test:900")
    assert bench.resolver.expand(policy) is policy
    assert await bench.look(1_000.0) == 0


async def test_an_address_counts_once_and_its_own_entry_wins(bench: Bench):
    own = EndpointPolicy("10.0.0.1:900", 7)
    policy = policy_of(NAME, "dns:more.test:900", own)
    bench.answers |= {"agents.test": ["10.0.0.1", "10.0.0.2"], "more.test": ["10.0.0.2", "10.0.0.3"]}
    bench.resolver.expand(policy)
    await bench.look()
    assert bench.expanded(policy) == ["10.0.0.2:900", "10.0.0.3:900", "10.0.0.1:900"]
    assert bench.resolver.server_name("a", "10.0.0.2:900") == "agents.test"
    assert bench.resolver.server_name("a", "10.0.0.1:900") == ""


async def test_the_last_good_answer_stays(bench: Bench, caplog: pytest.LogCaptureFixture):
    policy = policy_of(NAME)
    bench.answers["agents.test"] = ["10.0.0.1"]
    bench.resolver.expand(policy)
    await bench.look()
    for failure in (OSError(-3, "Temporary failure in name resolution"), [], ValueError("a defect")):
        bench.answers["agents.test"] = failure
        assert await bench.look(40.0) == 1
        assert bench.expanded(policy) == ["10.0.0.1:900"]
    assert bench.changes == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"{NAME} cannot be resolved (Temporary failure in name resolution); its last addresses stay"]
    bench.answers["agents.test"] = ["10.0.0.2"]
    await bench.look(40.0)
    assert bench.changes == 2
    assert bench.expanded(policy) == ["10.0.0.2:900"]


async def test_a_name_is_looked_up_every_interval_with_jitter(bench: Bench):
    bench.answers["agents.test"] = ["10.0.0.1"]
    bench.resolver.expand(policy_of(NAME))
    assert await bench.look() == 1
    gaps = []
    for _ in range(20):
        since = bench.at
        while await bench.look(0.5) == 0:
            pass
        gaps.append(bench.at - since)
    assert 27.0 <= min(gaps) < max(gaps) <= 33.5
    assert bench.changes == 1


async def test_failed_lookups_become_rarer(bench: Bench):
    bench.resolver.expand(policy_of(NAME))
    times = [bench.at for _ in range(400) if await bench.look(0.25)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 1.75 <= gaps[0] <= 2.5
    assert all(later > earlier for earlier, later in pairwise(gaps[:4]))
    assert max(gaps) <= 33.5


async def test_an_address_that_cannot_be_reached_asks_for_a_lookup(bench: Bench):
    policy = policy_of(NAME)
    bench.answers["agents.test"] = ["127.0.0.1"]  # nobody listens on port 900
    bench.resolver.expand(policy)
    await bench.look()
    bench.mesh.apply(bench.resolver.expand(policy))
    (endpoint,) = bench.mesh.runtime.agents["a"].pool.endpoints.values()
    assert await bench.look(1.5) == 0
    endpoint.reachable = False
    assert await bench.look(0.1) == 1
    assert await bench.look(1.5) == 0  # nothing new: later and later
    assert await bench.look(3.0) == 1
    bench.answers["agents.test"] = ["127.0.0.2"]
    assert await bench.look(9.0) == 1
    assert bench.expanded(policy) == ["127.0.0.2:900"]
    bench.mesh.apply(Policy())


async def test_one_lookup_of_a_name_at_a_time_and_none_for_names_that_went(bench: Bench):
    bench.resolver.expand(policy_of(NAME))
    bench.resolver.sweep(bench.at)
    bench.resolver.sweep(bench.at + 100.0)
    await asyncio.sleep(0)
    assert bench.asked == ["agents.test"]
    bench.answers["agents.test"] = ["10.0.0.1"]
    bench.resolver.expand(Policy())
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.changes == 0
    assert await bench.look(100.0) == 0


async def test_a_name_of_very_many_addresses_is_bounded_and_steady(bench: Bench):
    bench.answers["agents.test"] = [f"10.0.{number // 250}.{number % 250}" for number in range(1_000)]
    policy = policy_of(NAME)
    bench.resolver.expand(policy)
    await bench.look()
    kept = bench.expanded(policy)
    assert len(kept) == edge.MAX_ADDRESSES
    bench.answers["agents.test"] = list(reversed(bench.answers["agents.test"]))  # type: ignore[arg-type]
    await bench.look(40.0)
    assert bench.expanded(policy) == kept
    assert bench.changes == 1


@pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
async def test_real_names_and_a_real_call():
    """localhost resolves; a sidecar behind it answers under the name's policy."""
    async with in_process() as behind, in_process() as front:
        policy = policy_of(f"dns:localhost:{behind.listener.port}")
        resolver = Resolver(front.runtime, lambda: front.apply(resolver.expand(policy)))
        resolver.expand(policy)
        resolver.start()
        await resolver.first(10.0)
        addresses = [endpoint.address for endpoint in resolver.expand(policy).agents["a"].endpoints]
        assert f"127.0.0.1:{behind.listener.port}" in addresses
        assert list(front.runtime.agents["a"].pool.endpoints) == addresses
        async with grpc.aio.insecure_channel(front.target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary("/a.B/C")(b"", timeout=10)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND  # said by the one behind: it has no agents
        await resolver.close()
