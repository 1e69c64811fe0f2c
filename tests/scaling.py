"""A scale loop over a real store and a real publisher, with an engine and sidecars inside the test, in virtual time.

Always holds: the engine checks what it is asked: who is ended was drained, and no number is below what may be asked.

Deliberately not here: real engines, real sidecars, the decision (a plain one stands in, unless a test gives another).
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Self

from outrider.policy import Agent, Limits, Scaling
from outrider.v1 import mesh_pb2
from outrider_control.core.decision import Decision as Entry
from outrider_control.loops.scale.loop import ScaleLoop
from outrider_control.loops.scale.types import FAILED, READY, STARTING, Decision, EngineError, Instance, Seen, State
from outrider_control.publish.fleet import Fleet, Sidecar
from outrider_control.publish.publisher import Publisher
from outrider_control.publish.streams import Stream
from outrider_control.publish.watch import Watch
from outrider_control.state import agents, journal
from outrider_control.state.database import Database

T = 1_700_000_000_000
CAPACITY = 10


class Clock:
    def __init__(self, now_ms: int = T):
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def plain_decide(seen: Seen, state: State, scaling: Scaling, now_ms: int) -> tuple[Decision, State]:
    """Demand over capacity at the target, without windows or cooldown: what is asked for is easy to foresee."""
    low, high = scaling.min_instances, scaling.max_instances
    if seen.in_flight is None or seen.queued is None:
        return Decision(seen.agent_id, now_ms, state.desired, "hold", "no data", 0.0), state
    demand = seen.in_flight + seen.queued
    capacity = seen.capacity or CAPACITY
    wanted = max(low, min(high, math.ceil(demand / (scaling.target_utilization * capacity))))
    action = "up" if wanted > state.desired else "down" if wanted < state.desired else "hold"
    reason = f"{demand:g} calls need {wanted}"
    inputs = {"demand": demand, "ready": seen.ready}
    decision = Decision(
        seen.agent_id, now_ms, wanted, action, reason, 1.0, False, demand, capacity, "policy", 0.5, low, high, inputs
    )
    return decision, replace(state, desired=wanted, changed_ms=now_ms if action != "hold" else state.changed_ms)


class World:
    """What runs, whoever asks for it: several engines (of several control planes) may share one."""

    def __init__(self) -> None:
        self.instances: dict[str, Instance] = {}
        self.leases: dict[str, str] = {}  # lease ids by name
        self.names = itertools.count(1)
        self.asked: list[tuple[str, int, tuple[str, ...]]] = []
        self.undrained: list[str] = []  # who was ended while it served

    @property
    def live(self) -> list[Instance]:
        return [one for one in self.instances.values() if one.state in (STARTING, READY)]


class FakeEngine:
    """Starts and ends entries of a World at once. `fails` is raised by what it names: "instances", "grow", "shrink"."""

    kind = "local"

    def __init__(self, scene: Scene, world: World, name: str = "fake", chooses: bool = True, pulls: bool = False):
        self.name = name
        self.chooses = chooses
        self.pulls = pulls
        self.fails: dict[str, str] = {}
        self.lies = False  # takes on what it does not do
        self.dies = False  # what it starts fails at once
        self.hangs = False
        self.agents: set[str] | None = None  # None: all
        self.failed_ms = 0  # when it last failed
        self.started = 0
        self.closed = 0
        self.world = world
        self._scene = scene

    def has(self, agent_id: str) -> bool:
        return self.agents is None or agent_id in self.agents

    async def start(self) -> None:
        self._check("start")
        self.started += 1

    async def close(self) -> None:
        self.closed += 1

    async def instances(self, agent_id: str) -> Sequence[Instance]:
        if self.hangs:
            await asyncio.Event().wait()
        self._check("instances")
        return tuple(self.world.instances.values())

    async def grow(self, agent_id: str, desired: int) -> None:
        self._check("grow")
        world = self.world
        world.asked.append(("grow", desired, ()))
        if self.lies:
            return
        for _ in range(desired - len(world.live)):
            number = next(world.names)
            name = f"{agent_id}-{number}"
            state, note = (FAILED, "Traceback: no module named tax") if self.dies else (STARTING, "")
            world.instances[name] = Instance(name, f"h:{number}", state, self._scene.clock(), note)

    async def shrink(self, agent_id: str, desired: int, leaving: Sequence[Instance]) -> None:
        assert self._scene.clock() - self.failed_ms >= 1_000, "asked for less at once after it failed"
        self._check("shrink")
        world = self.world
        world.asked.append(("shrink", desired, tuple(one.name for one in leaving)))
        if self.lies:
            return
        named = {one.name for one in leaving} & world.instances.keys()  # another control plane may have been faster
        chosen = sorted(named) if self.chooses else [one.name for one in world.live[desired:]]
        assert len(world.live) - len([one for one in world.live if one.name in chosen]) >= desired or not chosen
        for name in chosen:
            if self.chooses:
                self._scene.check_drained(agent_id, world.instances[name])
            del world.instances[name]
            await self._scene.deregister(world.leases.pop(name, ""))

    def _check(self, method: str) -> None:
        if method in self.fails:
            self.failed_ms = self._scene.clock()
            raise EngineError(self.fails[method])


class FakeSidecar:
    """One sidecar: takes every update at once, and reports what it is told to."""

    def __init__(self, publisher: Publisher, instance_id: str = "egress", acks: bool = True):
        self.addresses: dict[str, list[str]] = {}
        self.acks = acks
        self._publisher = publisher
        self._watch = Watch({})
        self._nonces: list[int] = []
        self.instance_id = instance_id
        hello = mesh_pb2.Hello(instance_id=instance_id, node="n")
        self.stream = Stream(instance_id, self._watch, publisher.fleet.catalog, self._take, lambda _: None)
        self.sidecar: Sidecar = publisher.opened(hello, self.stream, "peer")

    async def _take(self, message: bytes) -> None:
        update = mesh_pb2.WatchResponse.FromString(message).update
        for resource in update.resources:
            if resource.HasField("endpoints"):
                self.addresses[resource.id.name] = [one.address for one in resource.endpoints.endpoints]
        for gone in update.removed:
            if gone.kind == mesh_pb2.RESOURCE_KIND_ENDPOINTS:
                self.addresses[gone.name] = []
        self._nonces.append(update.nonce)
        if self.acks:
            self.ack()

    def ack(self) -> None:
        for nonce in self._nonces:
            self._watch.ack(nonce)
        self._nonces.clear()
        self._publisher.acked(self.sidecar, ())

    def report(self, *loads: mesh_pb2.AgentLoad) -> None:
        self._publisher.fleet.loaded(self.sidecar, mesh_pb2.LoadReport(agents=loads))

    async def close(self) -> None:
        self._publisher.closed(self.sidecar, self.stream)
        await self.stream.close()


class Scene:
    """One control plane's scale loop. `world` and `clock` may be shared by several."""

    def __init__(
        self,
        db: Database,
        clock: Clock | None = None,
        world: World | None = None,
        control_id: str = "control-1",
        decide: Callable[..., Any] = plain_decide,
        engine: Callable[[FakeEngine], None] = lambda _: None,
        **loop: Any,
    ):
        self.db = db
        self.clock = clock or Clock()
        self.world = world or World()
        self.leads = True
        self.fleet = Fleet(control_id, self.clock)
        self.publisher = Publisher(db, self.fleet, self.clock)
        self.engine: FakeEngine

        def make() -> FakeEngine:
            self.engine = FakeEngine(self, self.world)
            engine(self.engine)
            return self.engine

        self.loop = ScaleLoop(
            db,
            self.publisher,
            {"fake": make},
            lambda: self.leads,
            self.clock,
            Random(1),
            **{"decide": decide, "drain_ms": 20_000, "timeout_s": 0.2, **loop},
        )
        self.sidecars: list[FakeSidecar] = []

    async def __aenter__(self) -> Self:
        await self.publisher.start()
        ticker = self.publisher.lessor._ticker
        assert ticker is not None
        ticker.cancel()
        await asyncio.gather(ticker, return_exceptions=True)
        self.fleet.on_waiting = self.loop._waiting
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.loop.close()
        for sidecar in self.sidecars:
            await sidecar.close()
        await self.publisher.close()

    async def apply(self, *wanted: Agent) -> None:
        await self.db.write(agents.apply, [agents.Wanted(one, None) for one in wanted], "ada", "test", self.clock())
        await self.publisher.refresh()

    def sidecar(self, instance_id: str = "egress", acks: bool = True) -> FakeSidecar:
        sidecar = FakeSidecar(self.publisher, instance_id, acks)
        self.sidecars.append(sidecar)
        return sidecar

    def load(self, waiting: int = 0, running: int = 0, leaving: dict[str, int] | None = None) -> None:
        """Every connected sidecar reports: the first one these calls, the others none."""
        for at, sidecar in enumerate(self.sidecars):
            if at == 0:
                queued = {"normal": waiting} if waiting else {}
                load = mesh_pb2.AgentLoad(agent_id="tax", in_flight=running, queued=queued, leaving=leaving or {})
                sidecar.report(load)
            else:
                sidecar.report()

    async def turn(self, seconds: float = 1.0) -> None:
        """Time passes, and a turn is taken to its end."""
        self.clock.now_ms += round(seconds * 1_000)
        await self.loop.turn()
        await self.loop.settled()
        await self.loop.settled()
        await self.publisher.refresh()
        await asyncio.sleep(0)

    async def boot(self) -> None:
        """What is starting is ready, and registers."""
        for name, one in list(self.world.instances.items()):
            if one.state == STARTING:
                self.world.instances[name] = replace(one, state=READY)
                endpoint = mesh_pb2.Endpoint(agent_id="tax", address=one.address)
                lease = await self.publisher.lessor.register(endpoint, 3_600_000)
                self.world.leases[name] = lease.owner
        await self.publisher.refresh()
        await self.streams()

    async def streams(self) -> None:
        """Until every sidecar has taken what there is for it."""
        for sidecar in self.sidecars:
            while sidecar.stream._writer is not None:
                await asyncio.sleep(0)

    async def deregister(self, owner: str) -> None:
        if owner:
            await self.publisher.deregister(owner)
            await self.publisher.refresh()

    def check_drained(self, agent_id: str, instance: Instance) -> None:
        """Nobody may be ended whom a sidecar that answers still calls."""
        for sidecar in self.sidecars:
            if sidecar.acks and instance.address in sidecar.addresses.get(agent_id, ()):
                self.world.undrained.append(instance.name)

    async def journal(self) -> list[Entry]:
        """Of the scaler, oldest first."""
        return list(reversed(await self.db.read(journal.read, "", "scale", 0, 1_000)))

    async def reasons(self) -> list[str]:
        return [one.reason for one in await self.journal()]


def tax(**scaling: Any) -> Agent:
    """An agent of which ten calls at once are one instance's, and seven what it is sized for."""
    return Agent("tax", limits=Limits(), scaling=Scaling(**{"max_instances": 10, **scaling}))
