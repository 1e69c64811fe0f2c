"""What a proxy adds to a call of a real grpcio client to a real grpcio server, one call in flight.

Added latency is the difference to the direct call within a round; the ratio of two proxies is taken within a round
too. The interval is a bootstrap over rounds (seeded), 90 %.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.process import BenchError, python_environment
from bench.suite import envoy, sidecar
from bench.suite.targets import Bed, start_sink

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Added:
    """Per target and round: what p50 and p90 are above direct, in microseconds."""

    p50_us: dict[str, list[float]]
    p90_us: dict[str, list[float]]
    direct: list[list[float]]

    def ratio(self, target: str, base: str, p90: bool = False) -> list[float]:
        """(median ratio, low, high): the interval is the bootstrap's 5 % and 95 %; empty where not measured."""
        added = self.p90_us if p90 else self.p50_us
        if target not in added or base not in added:
            return []
        return _interval(added[target], added[base])


def _interval(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    rng = random.Random(7)
    rounds = range(len(ours))

    def ratio(chosen: Sequence[int]) -> float:
        return statistics.median(ours[i] for i in chosen) / max(1.0, statistics.median(theirs[i] for i in chosen))

    drawn = sorted(ratio([rng.choice(rounds) for _ in rounds]) for _ in range(_RESAMPLES))
    return [drawn[_RESAMPLES // 20], ratio(rounds), drawn[-_RESAMPLES // 20]]


def run(bed: Bed, rounds: int, calls: int) -> Added:
    """Start proxies before a grpcio server and measure all of them in turns."""
    children = bed.children
    server, ports = children.start_module("grpcio-server", "bench.grpc_pair", "server", core=bed.load_core)
    port = ports["port"]
    targets = {"direct": port}
    started = [server]
    if "sidecar" in bed.targets:
        running = sidecar.start(children, "sidecar-latency", port, bed.proxy_core, start_sink(bed, "sink-latency-1"))
        targets["sidecar"] = running.port
        started.append(running.child)
    if "envoy bare" in bed.targets:
        child, targets["envoy bare"] = envoy.start(children, "envoy-latency", port, bed.proxy_core)
        started.append(child)
        sink = start_sink(bed, "sink-latency-2")
        child, targets["envoy full"] = envoy.start(children, "envoy-latency-full", port, bed.proxy_core, sink)
        started.append(child)
    child, proxy = children.start_module(
        "grpc-aio-latency", "bench.grpc_proxy", "--target", f"127.0.0.1:{port}", core=bed.proxy_core
    )
    targets["grpc.aio"] = proxy["port"]
    started.append(child)
    command = ["taskset", "-c", str(bed.load_core), sys.executable, "-m", "bench.grpc_pair", "client"]
    command += [f"--rounds={rounds}", f"--calls={calls}"]
    command += [f"--target={name}={port}" for name, port in targets.items()]
    done = subprocess.run(command, capture_output=True, text=True, env=python_environment(), check=False, timeout=600)
    if done.returncode:
        raise BenchError(f"the grpcio client ended with code {done.returncode}:\n{done.stderr[-800:]}")
    for child in started:
        children.stop(child)
    added = _added(json.loads(done.stdout))
    _show(added)
    return added


def _added(result: dict[str, list[list[float]]]) -> Added:
    direct = result.pop("direct")
    p50 = {name: [a[0] - d[0] for a, d in zip(got, direct, strict=True)] for name, got in result.items()}
    p90 = {name: [a[1] - d[1] for a, d in zip(got, direct, strict=True)] for name, got in result.items()}
    return Added(p50, p90, direct)


def _show(added: Added) -> None:
    p50, p90 = (statistics.median(one[i] for one in added.direct) for i in (0, 1))
    print(f"\nlatency added to a grpcio call, 1 in flight, us (direct: p50 {p50:.0f}, p90 {p90:.0f})")
    print(f"  {'':16} {'p50 +':>8} {'range':>15} {'p90 +':>8} {'range':>15}")
    for name, values in added.p50_us.items():
        high = added.p90_us[name]
        print(
            f"  {name:16} {statistics.median(values):8.0f} {f'{min(values):.0f} - {max(values):.0f}':>15}"
            f" {statistics.median(high):8.0f} {f'{min(high):.0f} - {max(high):.0f}':>15}",
            flush=True,
        )
