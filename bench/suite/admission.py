"""Admission's figures: what it adds to a call when nothing waits, and how long a decision takes when 10,000 do.

Always holds: nothing is judged that was not measured; a bench that fails is an error and not a figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.suite.part import run_bench
from bench.suite.report import Verdict

_ADDED = 1.15  # times the CPU of a call without
_DECISION_US = 200.0

Figures = dict[str, Any]


def run(rounds: int) -> Figures:
    """`added`: ratios by case; `decisions`: the P95 of each kind of decision, microseconds."""
    added = json.loads(run_bench("bench.admission_cost", "--json", f"--rounds={max(3, rounds)}"))
    decisions = json.loads(run_bench("bench.admission", "--json", codes=(0, 1)))
    print("\nadmission: CPU per call when nothing waits, against the same data path without it", flush=True)
    for name, one in added.items():
        ratios = ", ".join(f"{ratio:.3f}" for ratio in one["ratios"])
        print(f"  {name:52} {one['without_us']:6.1f} us without; with it x {ratios}")
    print(f"admission: decisions with {decisions['waiting']} waiting, P95")
    for tenants, kinds in decisions["figures"].items():
        told = ", ".join(f"{kind} {one['p95_us']:.1f} us" for kind, one in kinds.items())
        print(f"  {tenants:14} {told}", flush=True)
    worst = {name: max(one["p95_us"] for one in kinds.values()) for name, kinds in decisions["figures"].items()}
    return {"added": {name: one["ratios"] for name, one in added.items()}, "decisions": worst}


def verdicts(figures: Mapping[str, Any]) -> list[Verdict]:
    """What must be reached, with what was measured."""
    added: Mapping[str, list[float]] = figures.get("added", {})
    dearest = max(added.values(), key=sum, default=[])
    decisions: Mapping[str, float] = figures.get("decisions", {})
    return [
        Verdict("CPU of a call with every admission on, of one without", _ADDED, dearest),
        Verdict(
            "queue decision with 10,000 waiting, P95",
            _DECISION_US,
            [max(decisions.values())] if decisions else [],
            "us",
        ),
    ]
