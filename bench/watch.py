"""From a policy change to the last sidecar that has it in force: many watchers of one control plane.

Always holds: the control plane (store, publisher, grpc.aio, behind its guard with `--guard`) is one process on one
core; the watchers are another process on the other core, each a Watch stream of its own, several on a connection; a
change is applied to the real store, and a watcher counts when its ack has arrived: the figures hold the commit, the
push, the watcher's parsing and the way back.

Deliberately not here: what a real sidecar takes to put a policy in force (it says so itself, in `applied_us`).
Run: `python -m bench.watch [--watchers 51 1000] [--agents 51] [--changes 30] [--guard]`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import grpc.aio
import uvloop

from bench.machine import cores, cpu_s, rss_bytes
from outrider.policy import Agent, EndpointPolicy
from outrider.v1 import mesh_pb2
from outrider_control.guard.listener import Guard, guard_reactor
from outrider_control.publish.fleet import Fleet, Sidecar
from outrider_control.publish.mesh_service import MeshService
from outrider_control.publish.publisher import Publisher
from outrider_control.publish.resources import POLICY
from outrider_control.publish.watch import Refused
from outrider_control.state import agents
from outrider_control.state.database import Database

STREAMS_A_CHANNEL = 50
REACH_MS = {51: 100.0, 1_000: 1_000.0}  # what must be reached: p99 with that many watchers


class Timed(Publisher):
    """Remembers when acks came in."""

    acked_at: list[float]

    def acked(self, sidecar: Sidecar, refused: list[Refused]) -> None:
        self.acked_at.append(time.monotonic())
        super().acked(sidecar, refused)


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


def agent(at: int, timeout_ms: int) -> Agent:
    endpoints = tuple(EndpointPolicy(f"10.0.{at}.{host}:9001") for host in range(1, 4))
    return Agent(f"agent-{at}", endpoints=endpoints, timeout_ms=timeout_ms)


async def apply(db: Database, *wanted: Agent) -> int:
    """The version of the last one."""
    rows = [agents.Wanted(each, None) for each in wanted]
    return (await db.write(agents.apply, rows, "bench", "to see how long it takes", clock_ms()))[-1].version


async def one(changes: int, watchers: int, agent_count: int, guarded: bool, folder: Path) -> dict[str, float]:
    db = Database.open(f"sqlite:///{folder}/watch-{watchers}.db")
    fleet = Fleet("bench", clock_ms)
    publisher = Timed(db, fleet, clock_ms, "bench")
    publisher.acked_at = []
    await apply(db, *[agent(at, 1) for at in range(agent_count)])
    await publisher.start()
    server = grpc.aio.server(options=(("grpc.max_concurrent_streams", 10_000),))
    MeshService(publisher).add_to(server)
    async with contextlib.AsyncExitStack() as stack:
        if guarded:
            backend = f"{folder}/backend-{watchers}.sock"
            server.add_insecure_port(f"unix:{backend}")
            reactor = guard_reactor(asyncio.get_running_loop())
            stack.push_async_callback(reactor.close)
            guard = Guard(reactor, backend)
            await guard.open(("127.0.0.1", 0))
            stack.push_async_callback(guard.close)
            port = guard.port
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 1.0)
        stack.push_async_callback(publisher.close)
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.watch", "--client", str(port), "--watchers", str(watchers)
        )
        try:
            return await _measure(publisher, db, changes, watchers, agent_count)
        finally:
            client.terminate()
            await client.wait()
            await db.close()


async def _measure(publisher: Timed, db: Database, changes: int, watchers: int, agent_count: int) -> dict[str, float]:
    started = time.monotonic()
    while publisher.fleet.confirmed(POLICY, "agent-0", 1)[1] < watchers:
        await asyncio.sleep(0.05)
        if time.monotonic() - started > 120:
            raise TimeoutError(f"{publisher.fleet.connected} of {watchers} watchers came")
    joined_s = time.monotonic() - started
    waits_ms: list[float] = []
    last_ms: list[float] = []
    cpu_before = cpu_s(os.getpid())
    for change in range(changes):
        publisher.acked_at.clear()
        begun = time.monotonic()
        version = await apply(db, agent(change % agent_count, 2 + change))
        name = f"agent-{change % agent_count}"
        connected, confirmed = await publisher.confirmed(POLICY, name, version, 30.0)
        if (connected, confirmed) != (watchers, watchers):
            raise AssertionError(f"{confirmed} of {connected} watchers have the change, {watchers} were expected")
        waits = [(at - begun) * 1_000 for at in publisher.acked_at]
        waits_ms.extend(waits)
        last_ms.append(max(waits))
    cpu_ms = (cpu_s(os.getpid()) - cpu_before) * 1_000
    waits_ms.sort()
    return {
        "watchers": watchers,
        "p50_ms": waits_ms[len(waits_ms) // 2],
        "p99_ms": waits_ms[int(len(waits_ms) * 0.99)],
        "max_ms": waits_ms[-1],
        "last_median_ms": sorted(last_ms)[len(last_ms) // 2],
        "cpu_us_per_watcher": cpu_ms * 1_000 / changes / watchers,
        "joined_s": joined_s,
        "rss_mb": rss_bytes(os.getpid()) / 1e6,
    }


async def watch(port: int, watchers: int) -> None:
    """All watchers, until the process is ended."""
    _pin(cores()[1])
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options))
            for _ in range(-(-watchers // STREAMS_A_CHANNEL))
        ]
        await asyncio.gather(*[_watcher(channels[at % len(channels)], at) for at in range(watchers)])


async def _watcher(channel: grpc.aio.Channel, at: int) -> None:
    call = channel.stream_stream("/outrider.v1.Mesh/Watch")()
    hello = mesh_pb2.Hello(instance_id=f"i-{at}", node=f"n-{at}", now_unix_ms=clock_ms())
    await call.write(mesh_pb2.WatchRequest(hello=hello).SerializeToString())
    while isinstance(message := await call.read(), bytes):
        response = mesh_pb2.WatchResponse.FromString(message)
        if response.HasField("update"):
            ack = mesh_pb2.Ack(nonce=response.update.nonce)
            await call.write(mesh_pb2.WatchRequest(ack=ack).SerializeToString())


def _pin(core: int) -> None:
    with contextlib.suppress(OSError):  # a machine that does not let it: the figures are those of all its cores
        os.sched_setaffinity(0, {core})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, nargs="+", default=list(REACH_MS))
    parser.add_argument("--agents", type=int, default=51)
    parser.add_argument("--changes", type=int, default=30)
    parser.add_argument("--guard", action="store_true", help="behind the guard, as in production")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client is not None:
        uvloop.run(watch(options.client, options.watchers[0]))
        return 0
    _pin(cores()[0])
    missed = False
    for watchers in options.watchers:
        with tempfile.TemporaryDirectory() as folder:
            figures = uvloop.run(one(options.changes, watchers, options.agents, options.guard, Path(folder)))
        if options.json:
            sys.stdout.write(json.dumps(figures) + "\n")
        else:
            sys.stdout.write("  ".join([f"{name} {value:.1f}" for name, value in figures.items()]) + "\n")
        missed |= figures["p99_ms"] > REACH_MS.get(watchers, float("inf"))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
