"""h2load as the load: one command line, its figures, and the check that the calls were real gRPC successes.

Always holds: h2load counts an HTTP 200 as success whatever grpc-status says, so a run is believed only if every reply
carried the bytes a success carries (compared with the DATA octets h2load counted).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.process import BenchError

METADATA = {"te": "trailers", "content-type": "application/grpc", "user-agent": "grpc-bench/1", "grpc-timeout": "20S"}
_FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s|m), ([\d.]+) req/s")
_REQUESTS = re.compile(r"requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded")
_TRAFFIC = re.compile(r"traffic: .*\((\d+)\) total, .*\((\d+)\) headers.*, .*\((\d+)\) data")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of a load generator saw. Latencies in microseconds, sorted."""

    calls: int
    failed: int
    elapsed_s: float
    latencies_us: Sequence[float]
    reply_data_bytes: int

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.elapsed_s if self.elapsed_s else 0.0

    def quantile_us(self, share: float) -> float:
        if not self.latencies_us:
            return 0.0
        return self.latencies_us[min(len(self.latencies_us) - 1, int(share * len(self.latencies_us)))]


def available() -> bool:
    return shutil.which("h2load") is not None


def grpc_frame(message: bytes) -> bytes:
    """`message` behind the five octets of gRPC's length prefix, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def run(
    port: int,
    body: Path,
    calls: int,
    in_flight: int,
    connections: int = 1,
    core: int | None = None,
    path: str = "/bench.Echo/Unary",
    metadata: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> Load:
    """Send `calls` calls, `in_flight` at a time over `connections` connections, from one core."""
    log = body.with_suffix(".times")
    log.unlink(missing_ok=True)
    command = [] if core is None else ["taskset", "-c", str(core)]
    command += ["h2load", f"-n{calls}", f"-c{connections}", f"-m{max(1, in_flight // connections)}", "-t1"]
    command += ["-d", str(body), f"--log-file={log}"]
    for name, value in (METADATA | dict(metadata or {})).items():
        command += ["-H", f"{name}: {value}"]
    command.append(f"http://127.0.0.1:{port}{path}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise BenchError("h2load is not installed (Debian package nghttp2-client)") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"h2load did not finish {calls} calls on port {port} within {timeout_s:g} s") from None
    return parse(done.stdout, log)


def parse(output: str, log: Path) -> Load:
    """The figures of h2load's report and of its per-request log."""
    finished, requests, traffic = _FINISHED.search(output), _REQUESTS.search(output), _TRAFFIC.search(output)
    if not (finished and requests and traffic):
        raise BenchError(f"h2load's report was not understood:\n{output[-800:]}")
    times: list[float] = []
    if log.exists():
        with log.open(encoding="ascii") as lines:
            times = sorted(float(line.rsplit("\t", 1)[1]) for line in lines if "\t" in line)
    calls, succeeded = int(requests[1]), int(requests[2])
    elapsed_s = float(finished[1]) * _SECONDS[finished[2]]
    return Load(calls, calls - succeeded, elapsed_s, times, int(traffic[3]))


def check(load: Load, reply_bytes: int, name: str) -> None:
    """Raise BenchError unless every call brought a whole reply message of `reply_bytes` octets of DATA."""
    if load.failed or load.reply_data_bytes != load.calls * reply_bytes:
        whole = load.reply_data_bytes / max(1, reply_bytes)
        raise BenchError(f"{name}: {load.failed} of {load.calls} calls failed, {whole:.1f} whole replies came back")
