"""Our HPACK against the `hpack` library, by `bench/hpack.py` in a process of its own on the proxy's core."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.process import ROOT, BenchError, python_environment
from bench.suite.targets import Bed

GO_STYLE = "decode, Go-style, unique traceparent"


def run(bed: Bed, rounds: int) -> dict[str, dict[str, float]]:
    """Figures by name, each with `ours_us` and, where there is something to compare with, `hpack_us` and `ratio`."""
    command = ["taskset", "-c", str(bed.proxy_core), sys.executable, str(ROOT / "bench" / "hpack.py")]
    command += ["--json", f"--rounds={rounds}"]
    done = subprocess.run(command, capture_output=True, text=True, env=python_environment(), check=False, timeout=120)
    if done.returncode:
        raise BenchError(f"bench/hpack.py ended with code {done.returncode}:\n{done.stderr[-800:]}")
    figures: dict[str, dict[str, float]] = json.loads(done.stdout)
    print("\nHPACK, CPU us per header block")
    for name, one in figures.items():
        against = f"hpack {one['hpack_us']:7.2f}   ratio {one['ratio']:.3f}" if "ratio" in one else ""
        print(f"  {name:42} {one['ours_us']:7.2f}   {against}", flush=True)
    return figures
