"""Our scaler beside Kubernetes' HPA v2 and Knative's KPA in a simulated fleet.

    python -m bench.sim_scale [--data DIR] [--seeds N] [--turns N] [--delay S] [--patience S S] [--quick] [--json]

Always holds: the same arguments give the same figures. Exit code 0: everything that must be reached is; 1: something is
not; without the traces the fronts are left out, which is said. Charts and figures are written to bench/out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.process import BenchError
from bench.sim_scale import fronts, measure, report, workload

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "bench" / "out"
STEPS = (2, 5, 10)  # instances before a step
OTHERS = (("spike", 5), ("ramp", 5))


def main(arguments: list[str] | None = None) -> int:
    options = _arguments(arguments)
    try:
        figures = simulate(options)
    except BenchError as error:
        print(f"sim_scale: {error}", file=sys.stderr)
        return 1
    verdicts = report.verdicts(figures)
    figures["verdicts"] = [asdict(verdict) for verdict in verdicts]
    charts = figures.pop("charts")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "sim-scale.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, text in charts.items():
        (OUT / f"sim-scale-{name}.svg").write_text(text, encoding="utf-8")
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        print(report.text(figures, verdicts))
        print(f"\nwritten: {', '.join(['sim-scale.json', *[f'sim-scale-{name}.svg' for name in charts]])} in bench/out")
    return 0 if all([verdict.is_met for verdict in verdicts]) else 1


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="where the traces are")
    parser.add_argument("--seeds", type=int, default=5, help="of each made-up load")
    parser.add_argument("--turns", type=int, default=3, help="moments at which each trace is begun")
    parser.add_argument("--capacity", type=int, default=4, help="calls at once of one instance")
    parser.add_argument("--start", type=float, default=10.0, help="seconds until an instance serves")
    parser.add_argument("--delay", type=int, default=300, help="seconds before a scale-down, of all scalers")
    parser.add_argument("--queue", choices=("deadline", "fifo"), default="deadline")
    parser.add_argument(
        "--patience", type=float, nargs=2, default=workload.PATIENCE_S, metavar="S", help="of urgent calls, of others"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="one seed, one turn, a coarse grid")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON only")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds = options.turns = 1
    for name, least in (("seeds", 1), ("turns", 1), ("capacity", 1), ("start", 0), ("delay", 0), ("processes", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if min(options.patience) < 0:
        parser.error("--patience must not be negative")
    return options


def simulate(options: argparse.Namespace) -> dict[str, Any]:
    patience = options.patience[0], options.patience[1]
    paths = [path for name in workload.TRACES if (path := workload.find(options.data, name)) is not None]
    loads = [
        [workload.made_up(kind, instances, seed, options.capacity, patience) for seed in range(options.seeds)]
        for kind, instances in (*[("step", instances) for instances in STEPS], *OTHERS)
    ]
    loads += [
        [workload.traced(path, turn, options.turns, options.capacity, patience) for turn in range(options.turns)]
        for path in paths
    ]
    rows: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    for runs in loads:
        for name, make in measure.SCALERS.items():
            done = [
                measure.run(one, make(options.capacity, options.delay), options.capacity, options.start, options.queue)
                for one in runs
            ]
            row = {"scenario": runs[0].name, "scaler": name, "is_step": runs[0].name.startswith("step")}
            rows.append(row | measure.average([figures for figures, _ in done]))
            if runs[0].name == "step x10 from 5":
                curves[name] = (runs[0], done[0][1])
    figures: dict[str, Any] = {
        "capacity": options.capacity,
        "start_s": options.start,
        "delay_s": options.delay,
        "queue": options.queue,
        "patience_s": list(patience),
        "seeds": options.seeds,
        "turns": options.turns,
        "rows": rows,
        "traces": [path.name for path in paths],
        "charts": {"step": report.step_chart(curves, options.capacity)},
    }
    if paths:
        bed = fronts.Bed(
            tuple(paths), options.turns, options.capacity, options.start, options.delay, options.queue, patience
        )
        found = fronts.points(fronts.grid(options.quick), bed, options.processes)
        figures["fronts"] = report.fronts_figures(found)
        figures["charts"]["fronts"] = report.fronts_chart(found, options.delay)
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
