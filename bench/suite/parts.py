"""Sections that have a list of requirements of their own: experiments and compression, each in its own process.

Always holds: their lists are printed as they judge them; nothing is judged twice.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from bench.suite.part import run_bench
from bench.suite.report import Verdict

Figures = dict[str, Any]


def experiment(quick: bool, rounds: int) -> Figures:
    """What assignment costs a call; how often experiments err and find."""
    print("\nexperiments: what assignment adds to the data path's own CPU", flush=True)
    cost = json.loads(run_bench("bench.experiment_cost", "--json", f"--rounds={max(3, rounds)}"))
    for name, one in cost["cases"].items():
        print(f"  {name:48} {statistics.median(one['ratios']) - 1:+.1%} of {one['without_us']:.1f} us", flush=True)
    print("\nexperiments: the code that decides, over made-up ones", flush=True)
    quickly = ["--quick"] if quick else []
    simulated = json.loads(run_bench("bench.sim_experiment", "--json", *quickly, codes=(0, 1)))
    _print(simulated)
    return {"cost": cost, "simulated": simulated}


def compression(quick: bool) -> Figures:
    """What compression saves, keeps and costs."""
    print("\ncompression", flush=True)
    quickly = ["--quick"] if quick else []
    figures: Figures = json.loads(run_bench("bench.compression", "--json", *quickly, codes=(0, 1)))
    _print(figures)
    return figures


def _print(figures: Figures) -> None:
    for one in figures["verdicts"]:
        print(f"  {'PASS' if one['is_met'] else 'MISS'}  {one['what']}: {one['found']}", flush=True)


def verdicts(experiment: Figures) -> list[Verdict]:
    """What the lists of the sections do not hold: the cost of a call's assignment where its session is known."""
    cases = experiment["cost"]["cases"] if experiment else {}
    known = cases.get("one split, sessions that are known", {}).get("ratios", [])
    return [Verdict("CPU of a call with an assignment, of one without", 1.05, known)]
