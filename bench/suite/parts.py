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


_JUDGED = {"known": "one split, sessions that are known", "by request": "one split by request"}


def verdicts(experiment: Figures, call_us: float) -> list[Verdict]:
    """What the lists of the sections do not hold: what an assignment adds, of the CPU of a whole call (`call_us`, from
    the same run, sockets included; 0: not measured)."""
    cases = experiment["cost"]["cases"] if experiment and call_us else {}
    found = []
    for name, case in _JUDGED.items():
        one = cases.get(case, {"ratios": [], "without_us": 0.0})
        shares = [100 * (ratio - 1) * one["without_us"] / call_us for ratio in one["ratios"]]
        found.append(Verdict(f"what an assignment adds to a call's CPU, {name}", 5.0, shares, "%"))
    return found
