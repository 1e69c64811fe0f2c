"""Memory and start: RSS after load, RSS of a filled cache, ready time, growth over a long mixed load.

Always holds: every figure is of a process started for it. RSS is what /proc says after the load has settled.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.request import urlopen

from bench import machine
from bench.suite import envoy, sidecar
from bench.suite.sidecar import Sidecar
from bench.suite.targets import SETTLE_S, Bed, Target, raw_load, start_sink

MB = 1024 * 1024
BIG_CACHE_BYTES, QUICK_CACHE_BYTES = 64 * MB, 24 * MB
GROWTH_MB = 2.0  # noise of the allocator; a leak of 10 bytes a call would show as 4 MB


@dataclass(slots=True)
class Memory:
    """What was measured, in MB (2**20) and seconds; empty where it was not."""

    ready_s: list[float] = field(default_factory=list)
    sidecar_mb: list[float] = field(default_factory=list)
    envoy_mb: list[float] = field(default_factory=list)
    cache_factor: list[float] = field(default_factory=list)
    growth_mb: list[float] = field(default_factory=list)


def ready(bed: Bed, times: int) -> list[float]:
    """Seconds from the start of the process to the first 200 of /readyz."""
    seconds: list[float] = []
    for number in range(times):
        running = sidecar.start(bed.children, f"sidecar-ready-{number}", bed.backend_port, bed.proxy_core)
        seconds.append(running.ready_s)
        bed.children.stop(running.child)
    print(f"\nready after {statistics.median(seconds):.3f} s (of {times}: {min(seconds):.3f} - {max(seconds):.3f})")
    return seconds


def after_load(bed: Bed, calls: int, memory: Memory) -> None:
    """RSS after the same load, sidecar with an 8 MB cache and Envoy with the same features."""
    sink_port = start_sink(bed, "sink-memory")
    running = sidecar.start(bed.children, "sidecar-memory", bed.backend_port, bed.proxy_core, sink_port)
    memory.sidecar_mb.append(_load_and_rss(bed, Target("sidecar", running.port, running.pid), calls))
    bed.children.stop(running.child)
    line = f"RSS after {calls} calls of 1 KB: sidecar with an 8 MB cache {memory.sidecar_mb[-1]:.1f} MB"
    if envoy.program() is not None:
        child, port = envoy.start(bed.children, "envoy-memory", bed.backend_port, bed.proxy_core)
        memory.envoy_mb.append(_load_and_rss(bed, Target("envoy", port, child.pid), calls))
        bed.children.stop(child)
        line += f", Envoy bare {memory.envoy_mb[-1]:.1f} MB"
    print(line, flush=True)


def _load_and_rss(bed: Bed, target: Target, calls: int) -> float:
    raw_load(bed, target, calls, 32, "--size=1024", seed=99)
    raw_load(bed, target, max(200, calls // 20), 32, "--size=16384", seed=98)
    time.sleep(SETTLE_S)
    return machine.rss_bytes(target.pid or 0) / MB


def filled_cache(bed: Bed, big_bytes: int, memory: Memory) -> None:
    """RSS a filled cache adds over its configured bytes: against a sidecar with the same load and a 1 MB cache."""
    rss: list[float] = []
    held = 0
    for number, cache_bytes in enumerate((1 * MB, big_bytes)):
        running = sidecar.start(
            bed.children, f"sidecar-cache-{number}", bed.backend_port, bed.proxy_core, None, cache_bytes
        )
        target = Target("sidecar", running.port, running.pid)
        fill = int(big_bytes * 1.4)
        raw_load(bed, target, fill // 2 // 1024, 32, "--size=1024", seed=5)
        raw_load(bed, target, fill // 2 // 16_384, 32, "--size=16384", seed=6)
        time.sleep(SETTLE_S)
        rss.append(machine.rss_bytes(running.pid) / MB)
        held = _cache_bytes(running)
        bed.children.stop(running.child)
    factor = (rss[1] - rss[0]) / ((big_bytes - MB) / MB)
    memory.cache_factor.append(factor)
    full = f"{held / MB:.1f} MB held by its own count" if held else "its own count is not known"
    print(f"a filled cache of {big_bytes // MB} MB adds {rss[1] - rss[0]:.1f} MB of RSS ({factor:.2f} x; {full})")


def _cache_bytes(running: Sidecar) -> int:
    """The bytes /cache says are held, wherever it nests them."""
    with urlopen(running.admin("/cache"), timeout=5) as reply:
        return _find_bytes(json.loads(reply.read()))


def _find_bytes(node: Any) -> int:
    if isinstance(node, dict):
        own = node.get("bytes")
        return int(own) if isinstance(own, int | float) else max(map(_find_bytes, node.values()), default=0)
    return max(map(_find_bytes, node), default=0) if isinstance(node, list) else 0


def soak(bed: Bed, calls: int, memory: Memory) -> None:
    """Growth over `calls` calls with cancels and errors mixed in: RSS after the first fifth against RSS at the end."""
    sink_port = start_sink(bed, "sink-soak")
    running = sidecar.start(bed.children, "sidecar-soak", bed.backend_port, bed.proxy_core, sink_port)
    target = Target("sidecar", running.port, running.pid)
    parts = 10
    print(f"\nsoak: {calls} calls of 1 KB, 4 % errors, 6 % cancelled")
    rss: list[float] = []
    for part in range(parts):
        result = raw_load(bed, target, calls // parts, 32, "--size=1024", "--mixed", seed=1000 + part)
        time.sleep(SETTLE_S)
        rss.append(machine.rss_bytes(running.pid) / MB)
        print(
            f"  {(part + 1) * calls // parts:8} calls: RSS {rss[-1]:6.1f} MB, {result['cancelled']} not ok", flush=True
        )
    memory.growth_mb.append(rss[-1] - rss[1])
    bed.children.stop(running.child)


def measure(bed: Bed, quick: bool) -> Memory:
    """All but the soak; nothing where there is no sidecar."""
    memory = Memory()
    if "sidecar" in bed.targets:
        memory.ready_s = ready(bed, 3 if quick else 5)
        after_load(bed, 20_000 if quick else 100_000, memory)
        filled_cache(bed, QUICK_CACHE_BYTES if quick else BIG_CACHE_BYTES, memory)
    return memory
