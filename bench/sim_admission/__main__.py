"""Admission under overload: `python -m bench.sim_admission [--data DIR] [--seed N] [--json]`.

The queue of the data path (`outrider_sidecar.engines.lanes`) beside first come first served, strict priority and no
queue at all, in virtual time: a tenfold burst whose capacity comes ten seconds later, one whose capacity never comes,
a tenant that asks for everything, and arrivals of a trace where `--data` holds one. Prints shed and late calls per
lane as a table or JSON, and draws who waits over time into bench/out/sim-admission-N.svg.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from pathlib import Path
from typing import Any

from bench.chart import Series, chart
from bench.mesh import trace
from bench.process import ROOT
from bench.sim_admission.disciplines import Ask, disciplines
from bench.sim_admission.simulate import DEADLINES_S, SHARES, Scenario, Step, arrivals, by_lane, run
from outrider.policy import LANES, Queue

TRACES = ("azure-llm-2023-conv.csv.gz", "mooncake-conversation.jsonl.gz")
SERVICE_S = 0.3
OUT = ROOT / "bench" / "out"


def scenarios(seed: int, data: Path | None) -> list[Scenario]:
    """What is played."""
    burst = (Step(0.0, 50), Step(20.0, 500), Step(50.0, 50))
    comes = (Step(0.0, 48), Step(30.0, 240))
    stays = (Step(0.0, 48),)
    greedy = (Step(0.0, 50), Step(20.0, 300), Step(50.0, 50))
    weights = (20.0, 1.0, 1.0, 1.0)
    found = [
        Scenario("10 x for 30 s, capacity 10 s later", tuple(arrivals(burst, 90.0, SERVICE_S, seed)), comes),
        Scenario("10 x for 30 s, no more capacity", tuple(arrivals(burst, 90.0, SERVICE_S, seed)), stays),
        Scenario("one tenant asks for 87 %", tuple(arrivals(greedy, 90.0, SERVICE_S, seed, weights)), stays),
    ]
    if data is not None:
        found += [Scenario(name.split(".")[0], _traced(data / name, seed), (Step(0.0, 24),)) for name in TRACES]
    return found


def _traced(path: Path, seed: int) -> tuple[Ask, ...]:
    """The first ten minutes of a trace at four times its speed: 2 ms a token of the reply, and its prefill."""
    rng = random.Random(seed)
    asks = []
    for arrival in trace.read(path, 4.0, 600.0, 30_000):
        lane = rng.choices(range(len(LANES)), SHARES)[0]
        service_s = 0.05 + arrival.output_tokens * 0.002 + arrival.input_tokens * 0.00002
        deadline_s = arrival.at_s + DEADLINES_S[lane]
        asks.append(Ask(arrival.at_s, lane, b"tenant-%d" % rng.randrange(4), service_s, deadline_s))
    return tuple(asks)


def play(seed: int, data: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Figures by scenario and discipline, and a chart of each scenario."""
    figures: dict[str, Any] = {}
    charts: list[str] = []
    for scenario in scenarios(seed, data):
        lines = []
        for name, make in disciplines(Queue()).items():
            asks = [copy.copy(ask) for ask in scenario.asks]
            course = run(Scenario(scenario.name, asks, scenario.permits), make())
            rows = by_lane(asks)
            few = [ask for ask in asks if ask.tenant != b"tenant-0"]
            figures.setdefault(scenario.name, {})[name] = {"lanes": rows, "other_tenants": _share(few)}
            lines.append(Series(name, course, "line", len(lines)))
        charts.append(chart(scenario.name, "s", "calls waiting", lines))
    return figures, charts


def _share(asks: list[Ask]) -> float | None:
    good = sum(0 <= ask.ended_s < ask.deadline_s for ask in asks)
    return good / len(asks) if asks else None


def table(figures: dict[str, Any]) -> str:
    lines = []
    for scenario, by_discipline in figures.items():
        lines.append(f"\n{scenario}")
        lines.append(f"  {'':26}" + "".join(f"{lane:>28}" for lane in reversed(LANES)))
        lines.append(f"  {'':26}" + "".join(f"{'in time  late  shed  P95 wait':>28}" for _ in LANES))
        for name, told in by_discipline.items():
            cells = []
            for lane in reversed(LANES):
                row = told["lanes"][lane]
                share = row["in_time"] / row["calls"] if row["calls"] else 0.0
                wait = "-" if row["wait_p95_s"] is None else f"{row['wait_p95_s']:.1f} s"
                cells.append(f"{share:8.1%} {row['late']:5} {row['shed']:5} {wait:>7}")
            lines.append(f"  {name:26}" + "".join(cells))
        others = ", ".join(
            f"{name} {told['other_tenants']:.1%}"
            for name, told in by_discipline.items()
            if told["other_tenants"] is not None
        )
        if others:
            lines.append(f"  in time of the other tenants: {others}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the traces")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = options.data if all((options.data / name).exists() for name in TRACES) else None
    figures, charts = play(options.seed, data)
    OUT.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(charts, 1):
        (OUT / f"sim-admission-{number}.svg").write_text(text, encoding="utf-8")
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    print(table(figures))
    if data is None:
        print(f"\nno traces in {options.data}: made-up arrivals only")
    print(f"\nwritten: sim-admission-1.svg to sim-admission-{len(charts)}.svg in bench/out")


if __name__ == "__main__":
    main()
