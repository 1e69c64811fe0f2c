"""Names that stand for many addresses: every `dns:host:port` endpoint becomes one endpoint per address it resolves to.

Always holds: a name keeps its last good addresses while it cannot be resolved; one that has never been resolved stays
as it is, and its connector resolves it at every dial; a set is never replaced by an empty one. Weight and labels are
the name's, for each address; an address that is configured by itself, or by an earlier name, counts once. A name is
resolved every `interval_s` with jitter, and soon after one of its addresses cannot be reached, one lookup at a time.

Deliberately not here: records' times to live (getaddrinfo does not tell them), SRV records, applying the policy.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from outrider.address import Address, parse_address
from outrider.policy import Agent, EndpointPolicy, Policy
from outrider_sidecar.core.runtime import Runtime

log = logging.getLogger(__name__)

INTERVAL_S = 30.0
JITTER = 0.1  # of the interval, either way
MIN_GAP_S = 1.0  # between two lookups of a name, whatever asks for one
MAX_ADDRESSES = 256  # of one name; which ones are kept does not change from lookup to lookup
LOOK_EVERY_S = 1.0

Lookup = Callable[[str, int], Awaitable[list[str]]]


class _Name:
    """What is known of one `dns:` address. Times are those of the runtime's clock."""

    __slots__ = ("addresses", "failures", "fruitless", "host", "looked_at", "lookup", "next_at", "port", "written")

    def __init__(self, address: Address):
        self.host = address.host
        self.port = address.port
        self.written = str(address)
        self.addresses: tuple[str, ...] = ()  # as endpoints are written; empty: never resolved
        self.failures = 0  # in a row
        self.fruitless = 0  # lookups in a row that brought nothing new while an address could not be reached
        self.looked_at = float("-inf")
        self.next_at = float("-inf")
        self.lookup: asyncio.Task[None] | None = None


class Resolver:
    """`expand` the policy before it is compiled; `changed()` is called when `expand` would give another answer.

    `lookup(host, port)` gives IP addresses as text; OSError says why there are none.
    """

    def __init__(
        self,
        runtime: Runtime,
        changed: Callable[[], Any],
        interval_s: float = INTERVAL_S,
        lookup: Lookup | None = None,
    ):
        self._runtime = runtime
        self._changed = changed
        self._interval_s = interval_s
        self._lookup = lookup or self._getaddrinfo
        self._names: dict[str, _Name] = {}
        self._hosts: dict[tuple[str, str], str] = {}  # (agent, address) -> the name it came from
        self._looking: asyncio.Task[None] | None = None

    def expand(self, policy: Policy) -> Policy:
        """The policy with addresses in the place of names, as far as they are known. Names it no longer has go."""
        hosts: dict[tuple[str, str], str] = {}
        names: dict[str, _Name] = {}
        agents: dict[str, Agent] = {}
        for agent_id, agent in policy.agents.items():
            if any(_is_name(endpoint.address) for endpoint in agent.endpoints):
                agent = self._expand_agent(agent_id, agent, names, hosts)
            agents[agent_id] = agent
        for address in self._names.keys() - names.keys():
            gone = self._names[address].lookup
            if gone is not None:
                gone.cancel()
        self._names, self._hosts = names, hosts
        return replace(policy, agents=agents) if names else policy

    def server_name(self, agent_id: str, address: str) -> str:
        """The host name an endpoint's address was resolved from, for TLS; empty where it was configured by itself."""
        return self._hosts.get((agent_id, address), "")

    async def first(self, timeout_s: float) -> None:
        """Wait until each name that has not been resolved has been tried, so that a start begins with addresses."""
        self.sweep(self._runtime.clock())
        lookups = [name.lookup for name in self._names.values() if name.lookup is not None and not name.addresses]
        if lookups:
            await asyncio.wait(lookups, timeout=timeout_s)

    def start(self) -> None:
        """Begin to resolve again and again."""
        self._looking = self._runtime.reactor.loop.create_task(self._look())

    async def close(self) -> None:
        """End everything under way."""
        tasks = [name.lookup for name in self._names.values() if name.lookup is not None]
        if self._looking is not None:
            tasks.append(self._looking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            try:
                self.sweep(self._runtime.clock())
            except Exception:
                log.exception("looking for names to resolve failed; the next look is in %g s", LOOK_EVERY_S)
            await asyncio.sleep(LOOK_EVERY_S)

    def sweep(self, now: float) -> None:
        """Begin the lookups that are due, those of unreachable addresses included."""
        if not self._names:
            return
        lost = self._unreachable()
        for address, name in self._names.items():
            if lost.isdisjoint(name.addresses):
                name.fruitless = 0
                due = now >= name.next_at
            else:
                due = now >= min(name.next_at, name.looked_at + self._gap_s(name))
            if due and name.lookup is None:
                name.looked_at = now
                name.lookup = self._runtime.reactor.loop.create_task(self._resolve(address, name))

    # -- expanding -------------------------------------------------------------------------------------------------

    def _expand_agent(
        self, agent_id: str, agent: Agent, names: dict[str, _Name], hosts: dict[tuple[str, str], str]
    ) -> Agent:
        taken = {endpoint.address for endpoint in agent.endpoints if not _is_name(endpoint.address)}
        endpoints: list[EndpointPolicy] = []
        for endpoint in agent.endpoints:
            if not _is_name(endpoint.address):
                endpoints.append(endpoint)
                continue
            name = self._name(endpoint.address, names)
            for address in name.addresses or (name.written,):
                if address not in taken:
                    taken.add(address)
                    hosts[agent_id, address] = name.host
                    endpoints.append(replace(endpoint, address=address))
        return replace(agent, endpoints=tuple(endpoints))

    def _name(self, address: str, names: dict[str, _Name]) -> _Name:
        name = names.get(address) or self._names.get(address) or _Name(parse_address(address))
        names[address] = name
        return name

    def _unreachable(self) -> set[str]:
        """Addresses out of names that cannot be reached."""
        return {
            endpoint.address
            for agent_id, agent in self._runtime.agents.items()
            if agent.pool is not None
            for endpoint in agent.pool.endpoints.values()
            if not endpoint.reachable and (agent_id, endpoint.address) in self._hosts
        }

    # -- looking up ------------------------------------------------------------------------------------------------

    def _gap_s(self, name: _Name) -> float:
        """Lookups that fail or bring nothing new become rarer, up to the interval."""
        return min(self._interval_s, MIN_GAP_S * 2.0 ** min(name.failures + name.fruitless, 10))

    async def _resolve(self, address: str, name: _Name) -> None:
        found: tuple[str, ...] = ()
        reason = "the name has no address"
        try:
            found = _endpoints(await self._lookup(name.host, name.port), name.port)
        except OSError as error:
            reason = error.strerror or str(error)
        except Exception as error:
            log.exception("resolving %s broke off", address)
            reason = str(error)
        finally:
            name.lookup = None
        now = self._runtime.clock()
        jitter = self._runtime.rng.uniform(1.0 - JITTER, 1.0 + JITTER)
        if not found:
            name.failures += 1
            name.next_at = now + self._gap_s(name) * jitter
            if name.failures == 1:
                kept = "its last addresses stay" if name.addresses else "it is tried again"
                log.warning("%s cannot be resolved (%s); %s", address, reason, kept)
            return
        if name.failures:
            log.info("%s is resolved again", address)
        name.failures = 0
        name.next_at = now + self._interval_s * jitter
        name.fruitless += 1
        if found != name.addresses:
            name.fruitless = 0
            log.info("%s stands for %d addresses", address, len(found))
            name.addresses = found
            self._changed()

    async def _getaddrinfo(self, host: str, port: int) -> list[str]:
        loop = self._runtime.reactor.loop
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        return [str(where[0]) for _, _, _, _, where in found]


def _is_name(address: str) -> bool:
    return address.startswith("dns:")


def _endpoints(addresses: list[str], port: int) -> tuple[str, ...]:
    """Addresses as endpoints are written, in an order that does not change from lookup to lookup."""
    written = {str(Address(host=address, port=port)) for address in addresses}
    return tuple(sorted(written)[:MAX_ADDRESSES])
