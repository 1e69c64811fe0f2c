"""How often experiments err, how often they find, and how soon: the code that decides, over thousands of made-up ones.

    python -m bench.sim_experiment [--runs N] [--looks N] [--units N] [--seed N] [--processes N] [--quick] [--json]

Always holds: the same arguments give the same figures, however many processes. Exit code 0: everything that must be
reached is; 1: something is not. Figures are written to bench/out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

from bench.process import ROOT
from bench.sim_experiment import scenarios
from bench.sim_experiment.scenarios import Verdict

OUT = ROOT / "bench" / "out"


def main(arguments: list[str] | None = None) -> int:
    options = _arguments(arguments)
    rows = scenarios.rows(options.runs, options.looks, options.units, options.seed)
    names = [row.name for row in rows]
    if options.processes == 1:
        reports = dict(zip(names, map(scenarios.played, rows), strict=True))
    else:
        # Each starts anew: threads of libraries do not outlive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(options.processes, len(rows)), mp_context=context) as pool:
            reports = dict(zip(names, pool.map(scenarios.played, rows), strict=True))
    verdicts = scenarios.verdicts(reports)
    figures = {
        "rows": reports,
        "peeking": scenarios.peeking(options.runs, options.looks, options.units, options.seed),
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "sim-experiment.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1) if options.json else _text(options, figures, verdicts))
    return 0 if all([verdict.is_met for verdict in verdicts]) else 1


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000, help="experiments of each row")
    parser.add_argument("--looks", type=int, default=100, help="at each of them, evenly over the units")
    parser.add_argument("--units", type=int, default=20_000, help="of each of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="200 experiments of each row")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON only")
    options = parser.parse_args(arguments)
    if options.quick:
        options.runs = 200
    for name, least in (("runs", 1), ("looks", 1), ("units", 1_000), ("seed", 0), ("processes", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if options.looks > options.units // 2:
        parser.error("--looks must be at most half of --units")
    return options


def _text(options: argparse.Namespace, figures: dict[str, Any], verdicts: list[Verdict]) -> str:
    head = f"{options.runs:,} experiments a row, {options.looks} looks, {options.units:,} units, alpha 5 %"
    lines = [head, "", f"{'':58}{'verdict':>16}{'win':>8}{'harm':>8}{'SRM':>8}{'median units':>14}{'time':>9}"]
    for name, told in figures["rows"].items():
        error = scenarios.error_of(told["reject_rate"], told["runs"])
        lines.append(
            f"{name:58}{told['reject_rate']:>9.2%} ±{error:>5.2%}{told['win_rate']:>8.1%}{told['harm_rate']:>8.1%}"
            f"{told['srm_rate']:>8.1%}{told['median_units']:>14,.0f}{told['seconds']:>7.1f} s"
        )
    lines.append(f"{'no difference, rate .3, a plain z-test at every look':58}{figures['peeking']:>9.2%}")
    lines.append("")
    lines += [f"{'PASS' if one.is_met else 'MISS'}  {one.what}: {one.found}" for one in verdicts]
    lines.append("\nwritten: sim-experiment.json in bench/out")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
