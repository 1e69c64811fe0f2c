"""From the decision to abort a rollout to the last sidecar that has everything back on the stable version.

`python -m bench.rollout_abort [--watchers 51] [--rounds 10] [--json]`. The control plane is the whole program in a
process of its own on one core, behind its guard, on SQLite; the watchers are Watch streams of this process on the
other core. A round begins a rollout, waits until every watcher has its weight, and aborts it: in turns by an operator's
call, and by spans of which the candidate's failed. Prints, over all rounds, the time to the last watcher: of an
operator's abort from the sending of the call; of an automatic one from the decision in the journal, and beside it from
the acknowledgement of the spans.

Always holds: a watcher counts when it has parsed a split whose candidate is aborted and has no share; every watcher has
to, or the round is an error. The exit code is 1 where the limit is missed.

Deliberately not here: what a real sidecar takes to put a split in force.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import grpc.aio
import uvloop

from bench import machine
from bench.process import BenchError, Children
from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import mesh_pb2, operator_pb2, operator_pb2_grpc, policy_pb2
from outrider_sidecar.core.span import CLIENT, Span
from outrider_sidecar.engines.otlp import Encoder

LIMIT_MS = 1_000.0
UNITS = 200  # of the candidate, of which all fail
WAIT_S = 30.0
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Watcher:
    """One sidecar's end of Watch. `weights` and `aborted` by split: (wall seconds, share of the candidate)."""

    def __init__(self, at: int):
        self.name = f"i-{at}"
        self.weights: dict[str, float] = {}
        self.aborted: dict[str, float] = {}
        self.changed = asyncio.Event()

    async def run(self, channel: grpc.aio.Channel) -> None:
        call: Any = channel.stream_stream("/outrider.v1.Mesh/Watch")()
        hello = mesh_pb2.Hello(instance_id=self.name, node=self.name, now_unix_ms=time.time_ns() // 1_000_000)
        await call.write(mesh_pb2.WatchRequest(hello=hello).SerializeToString())
        while isinstance(message := await call.read(), bytes):
            response = mesh_pb2.WatchResponse.FromString(message)
            if not response.HasField("update"):
                continue
            for resource in response.update.resources:
                for split in resource.splits.splits:
                    self._take(split)
            ack = mesh_pb2.Ack(nonce=response.update.nonce)
            await call.write(mesh_pb2.WatchRequest(ack=ack).SerializeToString())

    def _take(self, split: policy_pb2.SplitPolicy) -> None:
        candidate = split.variants[1]
        self.weights[split.name] = candidate.share
        if candidate.aborted and not candidate.share:
            self.aborted.setdefault(split.name, time.time())
        self.changed.set()


async def _all(watchers: Sequence[Watcher], what: str, holds: Any) -> None:
    try:
        async with asyncio.timeout(WAIT_S):
            for one in watchers:
                while not holds(one):
                    one.changed.clear()
                    await one.changed.wait()
    except TimeoutError:
        there = sum([bool(holds(one)) for one in watchers])
        raise BenchError(f"{what}: {there} of {len(watchers)} watchers within {WAIT_S:g} s") from None


class Plane:
    """The control plane, and what an operator and a sidecar ask of it."""

    def __init__(self, channel: grpc.aio.Channel, watchers: Sequence[Watcher]):
        self._operator: Any = operator_pb2_grpc.OperatorStub(channel)
        self._export: Any = channel.unary_unary(_EXPORT)
        self._watchers = watchers
        self._encoder = Encoder({"service.name": "outrider-sidecar", "service.instance.id": f"bench-{os.getpid()}"})
        self._rng = random.Random(5)
        self._sent = 0

    async def _configure(self, name: str) -> None:
        policy = policy_pb2.AgentPolicy(agent_id=name)
        for at, version in enumerate(("v1", "v2")):
            policy.endpoints.add(address=f"10.0.0.{at + 1}:9001", labels={"version": version})
        agents = [operator_pb2.AgentConfiguration(policy=policy)]
        await self._operator.ApplyAgents(operator_pb2.ApplyAgentsRequest(agents=agents, reason="bench"))

    async def begin(self, name: str) -> None:
        """A rollout, of an agent of its own, whose first weight every watcher has."""
        await self._configure(name)
        spec = pb.RolloutSpec(name=name, agent_id=name)
        spec.candidate.labels["version"], spec.stable.labels["version"] = "v2", "v1"
        spec.steps.add(weight=0.5, pause_s=3_600)
        spec.analyses.add(metric=pb.Metric(name="error_rate"), max=0.1, interval_s=1)
        await self._operator.CreateRollout(pb.CreateRolloutRequest(spec=spec, reason="bench"))
        await _all(self._watchers, f"{name} begins", lambda one: one.weights.get(name) == 0.5)

    async def by_hand(self, name: str) -> list[float]:
        """Milliseconds to each watcher."""
        begun = time.time()
        await self._operator.AbortRollout(pb.ChangeRolloutRequest(name=name, reason="bench"))
        return await self._waits(name, begun)

    async def by_itself(self, name: str) -> tuple[list[float], float]:
        """Milliseconds from the decision to each watcher, and from the acknowledged spans to the last."""
        await self._export(self._spans(name))
        acked = time.time()
        await _all(self._watchers, f"{name} is aborted", lambda one: name in one.aborted)
        reply = await self._operator.ListDecisions(operator_pb2.ListDecisionsRequest(kind="rollout", limit=1))
        decision = reply.decisions[0]
        if decision.outcome["action"] != "abort" or decision.outcome["rollout"] != name:
            raise BenchError(f"{name}: the journal's last entry is {decision.reason!r}")
        waits = await self._waits(name, decision.at_unix_ms / 1_000)
        return waits, max([one.aborted[name] for one in self._watchers]) * 1_000 - acked * 1_000

    async def _waits(self, name: str, begun: float) -> list[float]:
        await _all(self._watchers, f"{name} is aborted", lambda one: name in one.aborted)
        return [(one.aborted[name] - begun) * 1_000 for one in self._watchers]

    def _spans(self, name: str) -> bytes:
        rng, now_ns = self._rng, time.time_ns()
        spans = [
            self._encoder.span(
                Span(
                    b"%032x" % rng.getrandbits(128), b"%016x" % rng.getrandbits(64), b"%016x" % rng.getrandbits(64),
                    b"", 1, CLIENT, "/agents.v1.Agent/Invoke", name, "10.0.0.2:9001", now_ns - 5_000_000, 5_000, 13,
                    variant=f"{name}=candidate", unit=f"{name}={rng.getrandbits(128):032x}",
                )
            )
            for _ in range(UNITS)
        ]  # fmt: skip
        self._sent += 1
        return self._encoder.request(spans, self._sent)


async def measure(watcher_count: int, rounds: int, folder: Children) -> dict[str, Any]:
    cores = machine.cores()
    config, ports_file = folder.directory / "control.yaml", folder.directory / "ports.json"
    lines = ("grpc: 127.0.0.1:0", "http: 127.0.0.1:0", f"ports_file: {ports_file}", "database: sqlite:///bench.db")
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "outrider_control", "--config", str(config)]
    child = folder.start("control", command, core=cores[0])
    ports = await asyncio.to_thread(folder.ports, child, ports_file, WAIT_S)
    target, watchers = f"127.0.0.1:{ports['grpc']}", [Watcher(at) for at in range(watcher_count)]
    async with contextlib.AsyncExitStack() as stack:
        options = (("grpc.use_local_subchannel_pool", 1),)
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options)) for _ in range(watcher_count)
        ]
        tasks = [asyncio.create_task(one.run(channel)) for one, channel in zip(watchers, channels, strict=True)]
        plane = Plane(await stack.enter_async_context(grpc.aio.insecure_channel(target, options)), watchers)
        by_hand: list[list[float]] = []
        by_itself: list[list[float]] = []
        seen_ms: list[float] = []
        for number in range(rounds):
            await plane.begin(f"hand-{number}")
            by_hand.append(await plane.by_hand(f"hand-{number}"))
            await plane.begin(f"auto-{number}")
            waits, from_spans = await plane.by_itself(f"auto-{number}")
            by_itself.append(waits)
            seen_ms.append(from_spans)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "watchers": watcher_count,
        "rounds": rounds,
        "by_hand": _figures(by_hand),
        "by_itself": _figures(by_itself),
        "from_spans_last_ms": {"median": statistics.median(seen_ms), "max": max(seen_ms)},
    }


def _figures(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    each = sorted([wait for waits in rounds for wait in waits])
    last = [max(waits) for waits in rounds]
    return {
        "p50_ms": statistics.median(each),
        "last_median_ms": statistics.median(last),
        "last_max_ms": max(last),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=51)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores = machine.cores()
    with contextlib.suppress(OSError, IndexError):
        os.sched_setaffinity(0, {cores[1]})
    try:
        with Children() as children:
            found = uvloop.run(measure(options.watchers, options.rounds, children))
    except BenchError as error:
        print(f"rollout_abort: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{found['watchers']} sidecars, {found['rounds']} rounds of each; milliseconds to the last of them")
        for name, words in (("by_hand", "an operator's call"), ("by_itself", "the decision")):
            one = found[name]
            print(f"  from {words:20} median {one['last_median_ms']:8.1f}  worst {one['last_max_ms']:8.1f}")
        one = found["from_spans_last_ms"]
        print(f"  from {'failing spans taken in':20} median {one['median']:8.1f}  worst {one['max']:8.1f}")
    worst = max(found["by_hand"]["last_max_ms"], found["by_itself"]["last_max_ms"])
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
