"""A bench of its own that the suite runs: in a process of its own, its output returned."""

from __future__ import annotations

import subprocess
import sys

from bench.process import ROOT, BenchError, python_environment

_TIMEOUT_S = 600.0


def run_bench(module: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """What `python -m module` prints; BenchError with the end of it where its exit code is not one of `codes`."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=python_environment(), check=False, timeout=_TIMEOUT_S, cwd=ROOT
    )
    if done.returncode not in codes:
        raise BenchError(f"{module} ended with code {done.returncode}:\n{(done.stderr or done.stdout)[-800:]}")
    return done.stdout
